//! `support`: an archive with what helps, and without secrets.

use crate::serve::tls::certificates;
use crate::{MIB, binary};
use holdfast_testkit::{Cluster, ClusterOptions, Output, Scratch, run, run_ok};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What begins a secret of these tests.
const PLANTED: &str = "Planted7Secret";

/// Unpacks an archive; the directory that came out.
fn unpack(archive: &Path, into: &Path) -> PathBuf {
    fs::create_dir_all(into).expect("it can be made");
    run_ok(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into));
    let mut entries = fs::read_dir(into).expect("it can be read");
    let top = entries.next().expect("there is something").expect("it can be read").path();
    assert!(entries.next().is_none(), "there is more than one directory");
    top
}

/// All files below a directory with what is in them.
fn all_files(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(all_files(&path));
        } else {
            let bytes = fs::read(&path).expect("it can be read");
            found.push((path, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    found
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

#[test]
fn no_secret_is_in_the_archive_wherever_it_was_planted() {
    let secret = |place: &str| format!("{PLANTED}{place}");
    let scratch = Scratch::new();
    let tls = scratch.join("tls");
    certificates(&tls);
    let config = scratch.join("holdfast.toml");
    let text = format!(
        "# nbd://user:{}@host/x\n# password = \"{}\"\n# token: {}\n\
         nbd-listen = \"127.0.0.1:0\"\nnbd-tls-certificates = {:?}\n",
        secret("Uri"),
        secret("Config"),
        secret("Comment"),
        tls.display().to_string(),
    );
    fs::write(&config, text).expect("it can be written");
    let config = config.display().to_string();
    let arguments = ["--config", config.as_str()];
    let options = ClusterOptions { arguments: &arguments, ..ClusterOptions::default() };
    let mut cluster = Cluster::strangers(&binary(), 2, options);
    cluster[0].stop();
    let daemon_secret = secret("DaemonVariable");
    cluster[0].start_with_environment(&[
        ("AWS_SECRET_ACCESS_KEY", &daemon_secret),
        ("HOLDFAST_LOG", "debug"),
    ]);
    cluster[0].ok(&["cluster", "create"]);
    let token = cluster[0].ok(&["cluster", "token"]);
    let spare_token = cluster[0].ok(&["cluster", "token"]);
    cluster[1].ok(&["cluster", "join", token.trim()]);
    let journal = cluster[0].dir().join("j").display().to_string();
    cluster.create("r0", 16 * MIB, &["--journal", &journal, "--journal-size", "32M"]);
    cluster[0].ok(&["cluster", "set", &format!("note={}", secret("ClusterKey"))]);
    let state = cluster[0].state_dir();
    fs::write(state.join("passphrase"), secret("StateDir")).expect("it can be written");
    // An export of a server that is not there, with a password in its URI.
    let uri = format!("nbd://me:{}@127.0.0.1:1/x", secret("AttachUri"));
    let _ = cluster[0].cli(&["attach", &uri, "--name", "far", "--timeout", "2"]);
    let mut log = fs::File::options()
        .append(true)
        .open(cluster[0].dir().join("log"))
        .expect("the log is there");
    let lines = [
        format!("INFO connecting with password={}", secret("Log")),
        format!("DEBUG Authorization: Bearer {}", secret("Bearer")),
        format!("DEBUG joined by {}", spare_token.trim()),
        format!("DEBUG the store said {daemon_secret} is wrong"),
        fs::read_to_string(state.join("identity/key.pem")).expect("it can be read"),
        fs::read_to_string(tls.join("server-key.pem")).expect("it can be read"),
    ];
    for line in &lines {
        writeln!(log, "{line}").expect("it can be written");
    }

    let archive = scratch.join("out.tar.gz");
    let output = archive.display().to_string();
    let mut command = cluster[0].command(&["support", "--output", &output]);
    command.env("HOLDFAST_TEST_PASSWORD", secret("Variable"));
    let told: Output = run(&mut command);
    assert_eq!(told.status, 0, "{told}");
    assert!(told.stdout.starts_with(&output), "{told}");
    let mode = fs::metadata(&archive).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let top = unpack(&archive, &scratch.join("unpacked"));

    let pem = |path: &Path| fs::read_to_string(path).expect("it can be read");
    let mut secrets = vec![
        PLANTED.to_owned(),
        token.trim().to_owned(),
        spare_token.trim().to_owned(),
        "-----BEGIN".to_owned(),
    ];
    for path in [state.join("identity/key.pem"), tls.join("server-key.pem")] {
        secrets.extend(pem(&path).lines().filter(|l| !l.starts_with("-----")).map(str::to_owned));
    }
    let files = all_files(&top);
    for (path, text) in &files {
        let found = secrets.iter().find(|secret| text.contains(secret.as_str()));
        assert!(found.is_none(), "{found:?} is in {}", path.display());
    }
    // It would be easy to leave everything out.
    let daemon_log = pem(&top.join("logs/daemon.txt"));
    for words in [
        "connecting with password=***",
        "Authorization: ***",
        "joined by hf1-***",
        "the store said *** is wrong",
        "ready: node alpha",
    ] {
        assert!(daemon_log.contains(words), "{words:?} is not in the log");
    }
    let kept = pem(&top.join("config/holdfast.toml"));
    assert!(kept.contains("# password = \"***\"\n# token: ***\nnbd-listen"), "{kept}");
    assert!(kept.contains("nbd://***@host/x"), "{kept}");
    let status = json(&top.join("status.json"));
    assert_eq!((&status["node"], &status["resources"][0]["name"]), (&"alpha".into(), &"r0".into()));
    assert_eq!(json(&top.join("doctor.json"))["node"], "alpha");
    assert_eq!(json(&top.join("resources/r0/metadata.json"))["size_bytes"], 16 * MIB);
    assert!(json(&top.join("resources/r0/options.json")).as_array().is_some_and(|o| o.len() > 20));
    assert!(json(&top.join("resources/r0/log.json"))["segments"].is_array());
    assert!(pem(&top.join("metrics.txt")).contains("holdfast_"));
    assert!(pem(&top.join("events.jsonl")).lines().count() > 3);
    assert!(pem(&top.join("state-dir.txt")).contains("identity/key.pem"));
    let names = pem(&top.join("environment.txt"));
    assert!(names.contains("HOLDFAST_TEST_PASSWORD\n"), "{names}");
    let manifest = json(&top.join("manifest.json"));
    let parts = manifest["parts"].as_array().expect("it has parts");
    let there = parts.iter().filter(|part| part["problem"].is_null()).count();
    assert_eq!(there + 1, files.len(), "the manifest is one more");

    // The archive is a machine that doctor can look at.
    let root = top.display().to_string();
    let seen = cluster[1].cli(&["doctor", "--json", "--root", &root]);
    let seen: Value = serde_json::from_str(&seen.stdout).expect("it is JSON");
    assert_eq!(seen["node"], "alpha");
    let of = |document: &Value, check: &str| {
        let list = document["findings"].as_array().cloned().unwrap_or_default();
        list.into_iter().find(|finding| finding["check"] == check).map(|f| f["what"].clone())
    };
    let here = json(&top.join("doctor.json"));
    for check in ["kernel.version", "kernel.nbd", "kernel.fuse", "limits.files", "daemon.answers"] {
        assert!(of(&here, check).is_some(), "{check}");
        assert_eq!(of(&seen, check), of(&here, check), "{check}");
    }
}

#[test]
fn without_a_daemon_there_is_less_and_what_fails_is_listed() {
    let scratch = Scratch::new();
    let output = scratch.join("out.tar.gz");
    let support = |more: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("--socket").arg(scratch.join("none.sock")).arg("support");
        command.arg("--state-dir").arg(scratch.join("state")).args(more);
        run(command.arg("--output").arg(&output).env_remove("HOLDFAST_SOCKET"))
    };
    let told = support(&["--json", "--lines", "10"]);
    assert_eq!(told.status, 0, "{told}");
    let answer: Value = serde_json::from_str(&told.stdout).expect("it is JSON");
    assert_eq!(answer["path"], output.display().to_string());
    let top = unpack(&output, &scratch.join("unpacked"));
    let manifest = json(&top.join("manifest.json"));
    let parts = manifest["parts"].as_array().expect("it has parts");
    let status = parts.iter().find(|part| part["name"] == "status.json");
    let why = status.and_then(|part| part["problem"].as_str()).unwrap_or_default();
    assert!(why.contains("none.sock"), "{why}");
    assert!(json(&top.join("doctor.json"))["findings"].is_array());
    let kernel = fs::read_to_string(top.join("logs/dmesg.txt")).unwrap_or_default();
    assert!(kernel.lines().count() <= 14, "{kernel}");
    // What is there is not replaced.
    let before = fs::read(&output).expect("it is there");
    let again = support(&[]);
    assert_eq!(again.status, 1, "{again}");
    assert!(again.stderr.contains("was not written") && again.stderr.contains("hint:"), "{again}");
    assert_eq!(fs::read(&output).expect("it is there"), before);
    let nowhere = run(Command::new(binary()).args(["support", "--output", "/nowhere/x.tar.gz"]));
    assert_eq!(nowhere.status, 1, "{nowhere}");
    assert!(support(&["--lines", "0"]).status == 2, "no lines");
}
