//! The configuration file: what is wrong in it is said, what is in it is used.

use crate::{MIB, SOON, binary, cluster};
use holdfast_testkit::{Cluster, ClusterOptions, Node, Scratch, files, run, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const BAD: &str = "name = \"alpha\"\nlistne = \"127.0.0.1:0\"\nnbd-tls = \"maybe\"\n\
                   [resource-defaults]\nping-int = 0\n";

/// The lines that are said about [`BAD`].
fn lines_of_bad(file: &Path) -> String {
    let file = file.display();
    format!(
        "{file}:2:1: there is no key listne: did you mean listen?\n\
         {file}:3:11: nbd-tls cannot be \"maybe\": it is \"required\" or \"optional\"\n\
         {file}:5:12: ping-int cannot be \"0\": ping-int must be between 1 and 120 seconds; 0 was \
         given\n"
    )
}

fn holdfast(arguments: &[&str]) -> holdfast_testkit::Output {
    // There is no daemon behind this socket.
    run(Command::new(binary()).args(["--socket", "/nowhere/holdfast.sock"]).args(arguments))
}

fn file(scratch: &Scratch, text: &str) -> String {
    let path = scratch.join("holdfast.toml");
    fs::write(&path, text).expect("it can be written");
    path.display().to_string()
}

#[test]
fn a_file_is_checked_without_a_daemon_and_all_that_is_wrong_is_said() {
    let scratch = Scratch::new();
    let path = file(&scratch, BAD);
    let output = holdfast(&["config", "check", &path]);
    assert_eq!(output.status, 1, "{output}");
    let due = lines_of_bad(Path::new(&path))
        + &format!("error: the configuration file {path} was refused: it has 3 errors\n");
    assert!(output.stderr.starts_with(&due), "{output}");
    assert!(output.stderr.contains("\nhint: ") && output.stdout.is_empty(), "{output}");

    let output = holdfast(&["config", "check", &path, "--json"]);
    let said: Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    let error: Value = serde_json::from_str(&output.stderr).expect("it is JSON");
    assert_eq!((output.status, &said["valid"]), (1, &Value::Bool(false)));
    let fault = &said["errors"][0];
    assert_eq!((fault["line"].as_u64(), fault["column"].as_u64()), (Some(2), Some(1)));
    assert_eq!(fault["why"], "did you mean listen?");
    assert_eq!(error["error"]["code"], "INVALID_REQUEST");

    let path = file(&scratch, "name = \"alpha\"\n");
    assert!(holdfast(&["config", "check", &path]).ok().contains("can be used"));
    assert!(holdfast(&["config", "check", &path, "-q"]).ok().is_empty());
    let output = holdfast(&["config", "check", "/nowhere/x.toml"]);
    assert_eq!(output.status, 1, "{output}");
    assert!(output.stderr.contains("/nowhere/x.toml was refused: "), "{output}");
}

#[test]
fn the_template_can_be_used_and_what_holds_is_shown_with_its_line() {
    let scratch = Scratch::new();
    let path = file(&scratch, &holdfast(&["config", "template"]).ok());
    let _ = holdfast(&["config", "check", &path]).ok();
    let path = file(&scratch, "\nlisten = \"192.0.2.1\"\n[resource.db]\nresync-rate = \"50M\"\n");
    let shown = holdfast(&["config", "show", &path]).ok();
    let row = |key: &str| {
        let line = shown.lines().find(|line| line.starts_with(key)).expect(key);
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("listen"), ["listen", "192.0.2.1", "line", "2"]);
    assert_eq!(row("nbd-tls "), ["nbd-tls", "required", "default"]);
    assert_eq!(row("resync-rate"), ["resync-rate", "50", "MiB/s", "[resource.\"db\"]"]);
    let json: Value =
        serde_json::from_str(&holdfast(&["config", "show", &path, "--json"]).ok()).expect("JSON");
    let values = json["values"].as_array().expect("a list");
    let listen = values.iter().find(|value| value["key"] == "listen").expect("listen");
    assert_eq!((&listen["source"], listen["line"].as_u64()), (&"file".into(), Some(2)));
    assert_eq!(json["resource"]["db"]["resync-rate"], "52428800");
}

#[test]
fn a_daemon_is_not_started_with_a_bad_file_and_says_the_same() {
    let scratch = Scratch::new();
    let path = file(&scratch, BAD);
    let mut node = Node::new(Path::new(&binary()), "alpha", scratch.path())
        .with_arguments(&["--config", &path]);
    let why = node.try_start().expect_err("the file is bad");
    assert!(why.contains(&lines_of_bad(Path::new(&path))), "{why}");
    let error = "error: the daemon was not started: the configuration file ";
    assert!(why.contains(error), "{why}");
    assert!(!node.state_dir().exists(), "nothing was made");
}

#[test]
fn a_signal_has_the_file_read_again_and_a_bad_one_changes_nothing() {
    let scratch = Scratch::new();
    let path = file(&scratch, "[resource-defaults]\nping-int = 3\n");
    let options = ClusterOptions { arguments: &["--config", &path], ..ClusterOptions::default() };
    let cluster = Cluster::with(&binary(), 1, options);
    let alpha = &cluster[0];
    file(&scratch, BAD);
    alpha.signal(Signal::HUP);
    alpha.wait_log("the configuration was not read again, and the daemon goes on as before");
    for line in lines_of_bad(Path::new(&path)).lines() {
        assert!(alpha.log().contains(line), "{line}");
    }
    let create = |name: &str| {
        let disk = alpha.disk(name);
        files::make_sparse(&disk, 4 * MIB);
        alpha.ok(&["create", name, "--disk", &disk.display().to_string()])
    };
    let said = create("r0");
    assert!(said.contains("; as the configuration file says, ping-int=3"), "{said}");
    assert_eq!(alpha.ok(&["get", "r0", "ping-int", "-q"]), "3\n");

    file(&scratch, "nbd-tls = \"optional\"\n[resource-defaults]\nping-int = 4\n");
    alpha.signal(Signal::HUP);
    alpha.wait_log("the defaults for resources have changed");
    alpha.wait_log("nbd-tls changed in the configuration: this holds from the next start on");
    create("r1");
    assert_eq!(alpha.ok(&["get", "r1", "ping-int", "-q"]), "4\n");
    assert_eq!(alpha.ok(&["get", "r0", "ping-int", "-q"]), "3\n", "what exists is not changed");
}

#[test]
fn defaults_of_the_file_are_used_once_and_set_has_the_last_word() {
    let scratch = Scratch::new();
    let text = "[resource-defaults]\nresync-rate = \"50M\"\nchecksums = \"on\"\nping-int = 3\n\
                [resource.r0]\nresync-rate = \"60M\"\n";
    let path = file(&scratch, text);
    let options = ClusterOptions { arguments: &["--config", &path], ..ClusterOptions::default() };
    let mut cluster = Cluster::with(&binary(), 2, options);
    cluster.create("r0", 4 * MIB, &["--set", "ping-int=5"]);
    let get = |cluster: &Cluster, node: usize, key: &str| {
        cluster[node].ok(&["get", "r0", key, "-q"]).trim().to_owned()
    };
    assert_eq!(get(&cluster, 0, "resync-rate"), (60 * MIB).to_string());
    assert_eq!(get(&cluster, 0, "ping-int"), "5", "--set goes before the file");
    let beta = &cluster[1];
    cluster.join_resource(beta, "r0", 4 * MIB, &[]);
    beta.wait_synced("r0", SOON);
    assert_eq!(get(&cluster, 0, "checksums"), "on");
    assert_eq!(get(&cluster, 1, "checksums"), "on", "join uses what each node has for itself");

    beta.ok(&["set", "r0", "resync-rate=70M"]);
    wait_until(SOON, "the other node has heard", || {
        get(&cluster, 0, "resync-rate") == (70 * MIB).to_string()
    });
    file(&scratch, "[resource-defaults]\nresync-rate = \"80M\"\n");
    cluster[0].signal(Signal::HUP);
    cluster[0].wait_log("the defaults for resources have changed");
    cluster[0].restart();
    cluster[0].wait_synced("r0", SOON);
    assert_eq!(get(&cluster, 0, "resync-rate"), (70 * MIB).to_string());
}

#[test]
fn without_a_file_nothing_is_taken_from_one() {
    let cluster = cluster(1);
    cluster.resource("r0", 4 * MIB, 1);
    assert_eq!(cluster[0].ok(&["get", "r0", "resync-rate", "-q"]), "0\n");
}

#[test]
fn a_key_is_set_and_a_file_that_the_daemon_does_not_start_with_is_put_back() {
    let scratch = Scratch::new();
    let path = file(&scratch, "# ours\n#listen = \"127.0.0.1:7850\"\n[resource-defaults]\n");
    // A service manager whose daemon starts when this script says so.
    let bin = scratch.join("bin");
    fs::create_dir(&bin).expect("it can be made");
    let manager = |script: &str| {
        files::make_program(&bin.join("systemctl"), &format!("#!/bin/sh\n{script}\n"));
    };
    let set = |arguments: &[&str]| {
        let others = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(binary());
        command.args(["config", "set"]).args(arguments).env("HOLDFAST_CONFIG", &path);
        run(command.env("PATH", format!("{}:{others}", bin.display())))
    };
    let text = || fs::read_to_string(&path).expect("it is there");

    let said = set(&["listen=192.0.2.1"]).ok();
    assert!(said.ends_with("from its next start on: `systemctl restart holdfast`\n"));
    let with_address = "# ours\nlisten = \"192.0.2.1\"\n[resource-defaults]\n";
    assert_eq!(text(), with_address);

    // What it cannot use is not written, nor is what else the command line has.
    for refused in ["listen=a:b", "listne=192.0.2.1", "nbd-tls=maybe", "ping-int=5"] {
        let output = set(&["name=alpha", refused]);
        assert_eq!((output.status, text().as_str()), (1, with_address), "{refused}");
    }

    manager("grep -q 192.0.2.1 \"$HOLDFAST_CONFIG\" || { echo no such address >&2; exit 1; }");
    assert!(set(&["max-resyncs=2", "--restart"]).ok().ends_with("says which file it uses\n"));
    let good = format!("max-resyncs = 2\n{with_address}");
    assert_eq!(text(), good);
    let output = set(&["listen=192.0.2.9", "--restart"]);
    assert_eq!((output.status, text().as_str()), (1, good.as_str()), "{}", output.stderr);
    assert!(output.stderr.contains("was put back as it was, and the daemon runs with that"));
    assert!(output.stderr.contains("no such address"), "{}", output.stderr);

    manager("exit 1");
    let other = scratch.join("other.toml");
    let place = other.display().to_string();
    let output = set(&["listen=192.0.2.9", "--restart", "--file", &place]);
    assert!(output.status == 1 && !other.exists(), "there was none: {output}");
    let output = set(&["listen=192.0.2.9", "--restart"]);
    assert_eq!((output.status, text().as_str()), (1, good.as_str()), "{}", output.stderr);
    assert!(output.stderr.contains("neither with the change nor without it"), "{}", output.stderr);
}
