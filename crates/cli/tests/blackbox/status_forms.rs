//! `status` in its forms, for people, scripts and monitoring.

use crate::{BLOCK, MIB, SOON, binary, cluster, write_blocks};
use holdfast_testkit::{Node, run, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

fn to_file(node: &Node, arguments: &[&str], path: &Path) {
    let file = File::options().create(true).append(true).open(path).expect("it can be made");
    let mut command = node.command(arguments);
    assert!(command.stdout(file).status().expect("it runs").success());
}

#[test]
fn row_047_colours_are_for_terminals_without_no_color() {
    let cluster = cluster(1);
    cluster.create("r0", 4 * MIB, &[]);
    let plain = cluster[0].ok(&["status"]);
    assert!(plain.contains("Primary") && !plain.contains('\x1b'), "{plain}");
    if run(Command::new("script").arg("--version")).status != 0 {
        eprintln!("not tested: there is no script(1) to make a terminal");
        return;
    }
    let line = format!("{} --socket {} status", binary(), cluster[0].socket().display());
    let on_terminal = |no_color: Option<&str>| {
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
        command.envs(no_color.map(|value| ("NO_COLOR", value)));
        run(&mut command).ok()
    };
    assert!(on_terminal(None).contains("\x1b[32mUpToDate"));
    assert!(on_terminal(Some("")).contains('\x1b'));
    let without = on_terminal(Some("1"));
    assert!(without.contains("UpToDate") && !without.contains('\x1b'), "{without:?}");
}

#[test]
fn row_048_049_050_forms_for_scripts() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster.create("r1", 8 * MIB, &[]);
    let node = &cluster[0];
    // Two looks at a moment's distance, between which a node may be found to answer late.
    wait_until(SOON, "both are the same", || {
        node.json(&["status"]) == node.json(&["status", "--format", "json"])
    });
    let json = node.json(&["status"]);
    assert_eq!(json["resources"][0]["disk"]["health"]["score"], 100);
    let same = node.json(&["health", "r0"]);
    assert_eq!(same["score"], 100);
    // Three appends have one header, and each a line for each resource.
    let log = cluster.scratch().join("log.csv");
    for _ in 0..3 {
        to_file(node, &["status", "--format", "csv"], &log);
    }
    let text = fs::read_to_string(&log).expect("it is there");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 7, "{text}");
    let columns: Vec<&str> = lines[0].split(',').collect();
    assert_eq!(&columns[..4], ["time", "node", "resource", "role"]);
    for line in &lines[1..] {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), columns.len(), "{line}");
        let of: BTreeMap<_, _> = columns.iter().zip(fields).collect();
        assert_eq!((of[&"node"], of[&"role"], of[&"disk"]), ("alpha", "Primary", "UpToDate"));
        assert_eq!((of[&"health"], of[&"quorum"]), ("100", "true"), "{line}");
    }
    assert!(lines[1].contains(",r0,") && lines[2].contains(",r1,"), "{text}");
    let piped = node.ok(&["status", "r1", "--format", "csv"]);
    assert_eq!(piped.lines().count(), 2, "{piped}");
    let bare = node.ok(&["status", "r1", "--format", "csv", "--no-header"]);
    assert_eq!(bare.lines().count(), 1, "{bare}");
    let line = node.ok(&["status", "r0", "--format", "line"]);
    assert!(
        line.starts_with(
            "resource=r0 node=alpha role=Primary disk=UpToDate health=100 size_bytes="
        ),
        "{line}"
    );
    assert!(line.ends_with(" peers=beta:Connected:Secondary:UpToDate:Established\n"), "{line}");
    let table = node.ok(&["status", "r0", "--format", "table"]);
    assert_eq!(table, node.ok(&["status", "r0"]));
    node.refused(&["status", "--json", "--format", "csv"], 2, "another form");
    node.refused(&["status", "r0", "--watch", "x"], 2, "no number of seconds");
}

/// A command whose output goes to a file.
fn started(node: &Node, arguments: &[&str], path: &Path) -> Child {
    let file = File::create(path).expect("it can be made");
    let mut command = node.command(arguments);
    command.stdin(Stdio::null()).stdout(file);
    command.spawn().expect("it starts")
}

#[test]
fn row_051_watching_ends_cleanly() {
    let cluster = cluster(1);
    cluster.create("r0", 4 * MIB, &[]);
    let forms: [(&[&str], &str, usize); 4] = [
        (&["status", "-w", "0.1", "--format", "line"], "resource=r0 ", 3),
        (&["status", "r0", "--watch", "0.1", "--format", "csv"], ",r0,Primary,", 3),
        (&["status", "--watch", "0.1", "--json"], "{\"version\":", 3),
        (&["status", "--watch", "r0"], "node alpha", 2),
    ];
    for (arguments, part, times) in forms {
        let path = cluster.scratch().join("out");
        let mut child = started(&cluster[0], arguments, &path);
        let read = || fs::read_to_string(&path).unwrap_or_default();
        wait_until(SOON, "it was printed several times", || read().matches(part).count() >= times);
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::INT).expect("it runs");
        let status = child.wait().expect("it is a child of this process");
        assert_eq!(status.code(), Some(0), "{arguments:?}: {status}");
        assert_eq!(read().matches("time,node,").count(), usize::from(arguments.contains(&"csv")));
    }
}

#[test]
fn row_052_086_a_document_is_shown_to_everybody_and_the_daemon_answers_only_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: this is not run by root");
        return;
    }
    let cluster = cluster(1);
    cluster.create("r0", 4 * MIB, &[]);
    let open = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it can be set");
    };
    let dir = cluster.scratch().join("open");
    fs::create_dir(&dir).expect("it can be made");
    open(cluster.scratch(), 0o755);
    open(&dir, 0o755);
    // Where nobody can run it.
    let program = dir.join("holdfast");
    fs::copy(binary(), &program).expect("it can be copied");
    open(&program, 0o755);
    let saved = dir.join("saved.json");
    fs::write(&saved, cluster[0].ok(&["status", "--json"])).expect("it can be written");
    open(&saved, 0o644);
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--socket").arg(cluster[0].socket()).args(arguments);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        run(&mut command)
    };
    let from = saved.display().to_string();
    for arguments in [&["status"][..], &["status", "r0", "--format", "line"], &["status", "--json"]]
    {
        let due = cluster[0].ok(arguments);
        assert_eq!(nobody(&[arguments, &["--from", &from]].concat()).ok(), due);
    }
    assert_eq!(nobody(&["status", "--check", "--from", &from]).status, 0);
    let csv = nobody(&["status", "--format", "csv", "--from", &from]).ok();
    assert_eq!(
        csv,
        nobody(&["status", "--format", "csv", "--from", &from]).ok(),
        "time of the file"
    );
    for (arguments, status, words) in [
        (["status", "--from", "/nowhere"], 1, "the document /nowhere was not read: no such file"),
        (["status", "--from", "/etc/passwd"], 1, "the document /etc/passwd was not read"),
    ] {
        let output = nobody(&arguments);
        assert_eq!(output.status, status, "{output}");
        assert!(output.stderr.to_lowercase().contains(words), "{output}");
    }
    assert_eq!(nobody(&["status", "r1", "--from", &from]).status, 4);
    // The daemon itself does not answer everybody.
    for arguments in [&["status"][..], &["primary", "r0"], &["health", "r0"]] {
        let output = nobody(arguments);
        assert_eq!(output.status, 3, "{output}");
        assert!(output.stderr.contains("permission denied"), "{output}");
        assert!(output.stderr.contains("hint: only root and the user of the daemon"), "{output}");
    }
}

/// What is wrong with metrics as Prometheus reads them.
fn lint(text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut series = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            if help.is_empty() || !help.ends_with('.') || kinds.contains_key(name) {
                wrong.push(format!("help: {line}"));
            }
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            let total = name.ends_with("_total");
            if name != current
                || !["counter", "gauge", "histogram"].contains(&kind)
                || total != (kind == "counter")
            {
                wrong.push(format!("type: {line}"));
            }
            kinds.insert(name, kind);
        } else {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let parts = ["_bucket", "_sum", "_count"];
            let name = match parts.iter().find_map(|part| name.strip_suffix(part)) {
                Some(histogram) if kinds.get(histogram) == Some(&"histogram") => histogram,
                _ => name,
            };
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
            if name != current || !name.starts_with("holdfast_") || !name.chars().all(plain) {
                wrong.push(format!("name: {line}"));
            }
            let labels = line.rsplit_once(' ').map_or(line, |(labels, _)| labels);
            // A clock may be ahead or behind.
            let may_be_negative = name.ends_with("_offset_seconds");
            if value.is_none_or(|value| value < 0.0 && !may_be_negative) || !series.insert(labels) {
                wrong.push(format!("value: {line}"));
            }
        }
    }
    wrong
}

/// The values of all counters, by their series.
fn counters(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter(|line| line.split('{').next().is_some_and(|name| name.ends_with("_total")))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[test]
fn row_053_metrics_are_as_prometheus_wants_them() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let journal = cluster.scratch().join("journal").display().to_string();
    cluster.create("r1", 8 * MIB, &["--journal", &journal, "--journal-size", "16M"]);
    let metrics = || cluster[0].get("/metrics").expect("it answers");
    write_blocks(&cluster[0], "r0", 1, 0..4);
    let first = metrics();
    assert_eq!(lint(&first), [""; 0]);
    write_blocks(&cluster[0], "r0", 2, 0..4);
    write_blocks(&cluster[0], "r1", 2, 0..4);
    let before = counters(&first);
    let sent = "holdfast_sent_bytes_total{resource=\"r0\",peer=\"beta\"}";
    let due = before[sent] + 4.0 * f64::from(u32::try_from(BLOCK).unwrap());
    wait_until(SOON, "what was sent is counted", || counters(&metrics())[sent] >= due);
    let second = counters(&metrics());
    assert!(before.len() > 10, "{before:?}");
    for (series, value) in before {
        assert!(second.get(&series).is_some_and(|now| *now >= value), "{series} was {value}");
    }
    // The lint itself finds what is wrong.
    for bad in [
        "# HELP holdfast_x_total A thing.\n# TYPE holdfast_x_total gauge\n",
        "# HELP holdfast_x A thing.\n# TYPE holdfast_x counter\n",
        "# HELP holdfast_x\n# TYPE holdfast_x gauge\n",
        "holdfast_x 1\n",
        "# HELP holdfast_x A thing.\n# TYPE holdfast_x gauge\nholdfast_x 1\nholdfast_x 2\n",
    ] {
        assert_eq!(lint(bad).len(), 1, "{bad}");
    }
}
