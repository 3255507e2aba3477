//! Wrong commands: the right exit status, one clear sentence, nothing changed.

use crate::{MIB, SOON, binary, cluster};
use holdfast_api::status::NodeStatus;
use holdfast_testkit::{Cluster, ClusterOptions, Node, Output, files, holds_within, wait_until};
use serde_json::Value;

/// One wrong command: on which node, its words, the exit status, the code of the error document.
/// `{dir}` stands for the directory of the whole.
type Case = (usize, &'static str, i32, &'static str);

const ALPHA: usize = 0;
const BETA: usize = 1;
const GAMMA: usize = 2;

/// Alpha is Primary of r0 and has it open, beta is Secondary, gamma knows of it only.
const CASES: &[Case] = &[
    // Names.
    (ALPHA, "create bad/name --disk {dir}/new", 2, "USAGE"),
    (ALPHA, "create all --disk {dir}/new", 2, "USAGE"),
    (ALPHA, "create none --disk {dir}/new", 2, "USAGE"),
    (ALPHA, "create .. --disk {dir}/new", 2, "USAGE"),
    (ALPHA, "create -x --disk {dir}/new", 2, "USAGE"),
    (ALPHA, "create .x --disk {dir}/new", 2, "USAGE"),
    (
        ALPHA,
        "create aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --disk {dir}/new",
        2,
        "USAGE",
    ),
    (ALPHA, "create r0 --disk {dir}/new", 1, "ALREADY_EXISTS"),
    (GAMMA, "create r0 --disk {dir}/new", 1, "ALREADY_EXISTS"),
    // Disks.
    (ALPHA, "create r1 --disk {dir}/absent", 1, "DISK_NOT_FOUND"),
    (ALPHA, "create r1 --disk {dir}/absent/disk --size 8M", 1, "DISK_NOT_FOUND"),
    (ALPHA, "create r1 --disk {dir}", 1, "DISK_UNUSABLE"),
    (ALPHA, "create r1 --disk /dev/null", 1, "DISK_UNUSABLE"),
    (ALPHA, "create r1 --disk {dir}/alpha/run/control.sock", 1, "DISK_UNUSABLE"),
    (ALPHA, "create r1 --disk {dir}/alpha/r0.disk", 1, "DISK_BUSY"),
    (ALPHA, "create r1 --disk {dir}/new --size 2G", 1, "DISK_TOO_SMALL"),
    (ALPHA, "create r1 --disk {dir}/tiny --meta internal", 1, "DISK_TOO_SMALL"),
    (ALPHA, "create r1 --disk {dir}/empty", 1, "DISK_TOO_SMALL"),
    (ALPHA, "create r1", 2, "USAGE"),
    (GAMMA, "join r0 --disk {dir}/tiny", 1, "DISK_TOO_SMALL"),
    (GAMMA, "join r0 --disk {dir}", 1, "DISK_UNUSABLE"),
    (GAMMA, "join r0", 2, "USAGE"),
    (GAMMA, "join r0 --disk {dir}/new --diskless", 2, "USAGE"),
    // Sizes.
    (ALPHA, "create r1 --disk {dir}/new --size 0", 1, "INVALID_SIZE"),
    (ALPHA, "create r1 --disk {dir}/new --size 1000", 1, "INVALID_SIZE"),
    (ALPHA, "create r1 --disk {dir}/new --size 1X", 2, "USAGE"),
    (ALPHA, "create r1 --disk {dir}/new --size -1", 2, "USAGE"),
    (ALPHA, "create r1 --disk {dir}/new --size 99999999999999999999", 2, "USAGE"),
    // Metadata.
    (ALPHA, "create r1 --disk {dir}/new --meta {dir}/noise", 1, "METADATA_EXISTS"),
    (ALPHA, "create r1 --disk {dir}/new --meta {dir}/absent/meta", 1, ""),
    (ALPHA, "meta dump {dir}/absent", 1, "DISK_NOT_FOUND"),
    (ALPHA, "meta check {dir}/noise", 1, "METADATA_INVALID"),
    // Options.
    (ALPHA, "create r1 --disk {dir}/new --set nope=1", 4, "NO_SUCH_OPTION"),
    (ALPHA, "create r1 --disk {dir}/new --set ping-int=0", 1, "INVALID_OPTION"),
    (ALPHA, "create r1 --disk {dir}/new --set ping-int", 2, "USAGE"),
    (ALPHA, "set r0 ping-int=0", 1, "INVALID_OPTION"),
    (ALPHA, "set r0 ping-int=121", 1, "INVALID_OPTION"),
    (ALPHA, "set r0 resync-rate=fast", 1, "INVALID_OPTION"),
    (ALPHA, "set r0 nope=1", 4, "NO_SUCH_OPTION"),
    (ALPHA, "set r0 protocol=A", 1, "NOT_SUPPORTED_YET"),
    (ALPHA, "set r0 ping-int=3 connect-int=0", 1, "INVALID_OPTION"),
    (ALPHA, "set r0 ping-int=3 --peer gamma", 4, "NO_SUCH_PEER"),
    (ALPHA, "set r0 al-extents=100 --peer beta", 1, "INVALID_OPTION"),
    (ALPHA, "set r0", 2, "USAGE"),
    (ALPHA, "get r0 nope", 4, "NO_SUCH_OPTION"),
    (ALPHA, "get nope", 4, "NO_SUCH_RESOURCE"),
    // Resources that are not there, or not here.
    (ALPHA, "up nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "down nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "primary nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "delete nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "status nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "device nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "wait nope --for connected --timeout 1", 4, "NO_SUCH_RESOURCE"),
    (GAMMA, "join nope --disk {dir}/new", 4, "NO_SUCH_RESOURCE"),
    (GAMMA, "primary r0", 1, "NOT_MEMBER"),
    (GAMMA, "leave r0", 1, "NOT_MEMBER"),
    (BETA, "join r0 --disk {dir}/new", 1, "ALREADY_MEMBER"),
    // States.
    (BETA, "primary r0", 1, "OTHER_PRIMARY"),
    (BETA, "primary r0 --force", 1, "OTHER_PRIMARY"),
    (ALPHA, "secondary r0", 1, "IN_USE"),
    (ALPHA, "down r0", 1, "IN_USE"),
    (ALPHA, "down all", 1, "IN_USE"),
    (ALPHA, "leave r0", 1, ""),
    (ALPHA, "delete r0", 1, "IN_USE"),
    (BETA, "delete r0", 1, ""),
    (ALPHA, "invalidate r0", 1, "IS_PRIMARY"),
    (BETA, "invalidate r0 --peer alpha", 1, "OTHER_PRIMARY"),
    (ALPHA, "connect r0 --discard-my-data", 1, "IS_PRIMARY"),
    (ALPHA, "attach-disk r0", 1, "ALREADY_ATTACHED"),
    (ALPHA, "connect r0 --peer nope", 4, ""),
    (ALPHA, "disconnect r0 --peer gamma", 4, "NO_SUCH_PEER"),
    (BETA, "device r0", 1, "NOT_PRIMARY"),
    (ALPHA, "device r0 --via carrier-pigeon", 2, "USAGE"),
    (ALPHA, "device r0 --remove", 4, "NO_SUCH_DEVICE"),
    (ALPHA, "resize r0", 1, "DISK_TOO_SMALL"),
    (ALPHA, "resize r0 --size 1G", 1, "DISK_TOO_SMALL"),
    (ALPHA, "resize r0 --size 4K", 1, "INVALID_SIZE"),
    (ALPHA, "resize r0 --size 5000001", 1, "INVALID_SIZE"),
    (BETA, "resize r0", 1, "OTHER_PRIMARY"),
    (ALPHA, "wait r0 --for ready", 2, "USAGE"),
    (ALPHA, "wait r0 --for secondary --timeout 0.2", 5, "TIMED_OUT"),
    (ALPHA, "wait r0 --for synced --peer gamma --timeout 1", 4, "NO_SUCH_PEER"),
    // Remote exports.
    (ALPHA, "attach", 2, "USAGE"),
    (ALPHA, "attach ftp://h/x", 1, "INVALID_ADDRESS"),
    (ALPHA, "attach nbd+unix:///x?socket={dir}/none.sock", 1, "SERVER_UNUSABLE"),
    (ALPHA, "attach nbd://h/x --connections 0", 2, "USAGE"),
    (ALPHA, "attach nbd://h/x --connections 17", 2, "USAGE"),
    (ALPHA, "attach nbd://h/x --name r0", 1, "ALREADY_EXISTS"),
    (ALPHA, "attach nbd://h/x --tls-certificates {dir}", 1, "INVALID_REQUEST"),
    (ALPHA, "attach nbd://h/x nbd://h/x", 1, "INVALID_REQUEST"),
    (ALPHA, "attach nbd://h/x --mirror", 1, "INVALID_REQUEST"),
    (ALPHA, "attach nbd://h/x --copy-first", 2, "USAGE"),
    (ALPHA, "attach nbd://h/x --via carrier-pigeon", 2, "USAGE"),
    (ALPHA, "attachments nope", 4, "NO_SUCH_ATTACHMENT"),
    (ALPHA, "detach nope", 4, "NO_SUCH_ATTACHMENT"),
    (ALPHA, "abort nope --hold 1", 4, "NO_SUCH_ATTACHMENT"),
    (ALPHA, "abort nope --hold -1", 2, "USAGE"),
    // Another name.
    (ALPHA, "rename r0 r1", 1, "IN_USE"),
    (BETA, "rename r0 r1", 1, "IN_USE"),
    (GAMMA, "rename r0 r1", 1, "NOT_MEMBER"),
    (ALPHA, "rename nope r1", 4, "NO_SUCH_RESOURCE"),
    // What later versions do.
    (ALPHA, "pause r0 io", 1, "NOT_SUPPORTED_YET"),
    (ALPHA, "verify r0 --start 8K --stop 4K", 1, "INVALID_SIZE"),
    (ALPHA, "verify r0 --peer nobody", 4, "NO_SUCH_PEER"),
    (ALPHA, "verify r0 --pause", 1, "SURVEY_STATE"),
    (ALPHA, "verify r0 --pause --repair", 2, "USAGE"),
    (ALPHA, "scrub nope", 4, "NO_SUCH_RESOURCE"),
    (ALPHA, "scrub r0 --resume", 1, "SURVEY_STATE"),
    (ALPHA, "join r0 --disk {dir}/new --protocol Z", 2, "USAGE"),
    // The cluster.
    (ALPHA, "cluster create", 1, "ALREADY_IN_CLUSTER"),
    (ALPHA, "cluster join hf1-nonsense", 1, "INVALID_TOKEN"),
    (ALPHA, "cluster remove nope --force", 4, "NO_SUCH_NODE"),
    (ALPHA, "cluster remove gamma", 1, ""),
    (ALPHA, "cluster remove alpha --force", 1, ""),
    (ALPHA, "cluster leave", 1, ""),
    (ALPHA, "cluster token --ttl 400d", 2, "USAGE"),
    (ALPHA, "cluster token --ttl 100d", 1, ""),
    (ALPHA, "cluster token --addr not:an:address", 1, "INVALID_ADDRESS"),
    // The command line.
    (ALPHA, "frobnicate r0", 2, "USAGE"),
    (ALPHA, "status --frobnicate", 2, "USAGE"),
    (ALPHA, "primary", 2, "USAGE"),
    (ALPHA, "cluster", 2, "USAGE"),
    (ALPHA, "-q -v status", 2, "USAGE"),
    (ALPHA, "pause r0 breathing", 2, "USAGE"),
    (ALPHA, "--timeout soon status", 2, "USAGE"),
];

/// What must be as it was: the status without what changes by itself.
fn state(node: &Node) -> NodeStatus {
    let mut status = node.status();
    for node in status.cluster.iter_mut().flat_map(|cluster| &mut cluster.nodes) {
        node.last_seen_seconds = 0;
        node.clock_offset_seconds = None;
    }
    status
}

fn states(cluster: &Cluster) -> Vec<NodeStatus> {
    cluster.nodes().iter().map(state).collect()
}

fn words<'a>(line: &'a str, dir: &str) -> Vec<std::borrow::Cow<'a, str>> {
    line.split(' ').map(|word| word.replace("{dir}", dir).into()).collect()
}

/// What is wrong with the way in which a command was refused; nothing when all is right.
fn faults(text: &Output, json: &Output, status: i32, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |right: bool, what: &str| {
        if !right {
            faults.push(what.to_owned());
        }
    };
    check(text.status == status, &format!("exit status {}, not {status}", text.status));
    check(json.status == status, &format!("exit status {} with --json", json.status));
    check(text.stdout.is_empty() && json.stdout.is_empty(), "something on standard output");
    let lines: Vec<&str> = text.stderr.lines().collect();
    let sentence = lines.first().and_then(|line| line.strip_prefix("error: "));
    check(sentence.is_some_and(|s| s.len() > 15), "no sentence after `error: `");
    check(!sentence.is_some_and(|s| s.ends_with('.')), "a full stop");
    check(!text.stderr.contains("os error"), "an error of the system as it is");
    let rest = &lines[lines.len().min(1)..];
    let hint = rest.len() <= 1 && rest.iter().all(|line| line.starts_with("hint: "));
    check(hint, "more than a sentence and a hint");
    match serde_json::from_str::<Value>(&json.stderr) {
        Err(why) => check(false, &format!("the error is no JSON: {why}")),
        Ok(document) => {
            let error = &document["error"];
            let found = error["code"].as_str().unwrap_or_default();
            check(!found.is_empty() && found != "INTERNAL", &format!("code {found:?}"));
            check(code.is_empty() || found == code, &format!("code {found}, not {code}"));
            // How long it was waited differs.
            let same = error["message"].as_str() == sentence || found == "TIMED_OUT";
            check(same, "another message in JSON");
        }
    }
    faults
}

#[test]
fn wrong_commands_are_refused_and_change_nothing() {
    let cluster = cluster(3);
    cluster.resource("r0", 8 * MIB, 2);
    wait_until(SOON, "gamma knows the resource", || {
        cluster[GAMMA].cli(&["primary", "r0"]).status == 1
    });
    let _open = cluster[ALPHA].open("r0");
    let dir = cluster.scratch();
    files::make_sparse(&dir.join("new"), 64 * MIB);
    files::make_sparse(&dir.join("tiny"), 8192);
    files::make_sparse(&dir.join("empty"), 0);
    files::make_random(&dir.join("noise"), 100_000, 1);
    let dir = dir.display().to_string();
    cluster[ALPHA].wait_resource("r0", SOON, "it is open", |r| r.open_count == 1);
    let before = states(&cluster);
    let new = files::fingerprint(&cluster.scratch().join("new"), 64 * MIB);

    let mut wrong = Vec::new();
    for (node, line, status, code) in CASES {
        let words = words(line, &dir);
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let text = cluster[*node].cli(&words);
        let json = cluster[*node].cli(&[&["--json"], &*words].concat());
        let mut found = faults(&text, &json, *status, code);
        // A node that answers late, as on a machine that stands still, is out of reach for a moment.
        if !holds_within(SOON, || states(&cluster) == before) {
            found.push("the status has changed".to_owned());
        }
        if !found.is_empty() {
            wrong.push(format!("{line}: {}\n    {}", found.join("; "), text.stderr.trim()));
        }
    }
    assert!(CASES.len() >= 40);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    let after = files::fingerprint(&cluster.scratch().join("new"), 64 * MIB);
    assert_eq!(after, new, "a disk was written to");
    assert!(!cluster.scratch().join("absent").exists());
}

#[test]
fn a_node_without_cluster_and_a_node_that_is_not_there() {
    let cluster = Cluster::strangers(&binary(), 1, ClusterOptions::default());
    files::make_sparse(&cluster.scratch().join("new"), 8 * MIB);
    let dir = cluster.scratch().display().to_string();
    let mut wrong = Vec::new();
    let mut check = |node: &Node, line: &str, status: i32, code: &str| {
        let words = words(line, &dir);
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let found =
            faults(&node.cli(&words), &node.cli(&[&words[..], &["--json"]].concat()), status, code);
        if !found.is_empty() {
            wrong.push(format!("{line}: {}", found.join("; ")));
        }
    };
    for (line, status, code) in [
        ("join r0 --disk {dir}/new", 1, "NO_CLUSTER"),
        ("create r0 --disk {dir}/absent", 1, "DISK_NOT_FOUND"),
        ("primary r0", 4, "NO_SUCH_RESOURCE"),
        ("cluster token", 1, "NO_CLUSTER"),
        ("cluster leave", 1, "NO_CLUSTER"),
        ("cluster status", 1, "NO_CLUSTER"),
        ("cluster remove alpha --force", 1, "NO_CLUSTER"),
    ] {
        check(&cluster[0], line, status, code);
    }
    let nobody = Node::new(binary().as_ref(), "nobody", &cluster.scratch().join("nobody"));
    for line in ["status", "cluster create", "primary r0", "wait r0 --for primary", "events"] {
        check(&nobody, line, 3, "NOT_REACHABLE");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cluster[0].status().cluster.is_none());
    // A node that is to be alone needs no ceremony.
    cluster[0].ok(&["create", "r0", "--disk", &format!("{dir}/new")]);
    assert_eq!(cluster[0].resource("r0").role, "Primary");
}

#[test]
fn errors_of_the_system_are_told_in_words() {
    let cluster = cluster(1);
    let output = cluster[0].cli(&["demo", "--once", "--dir", "/proc/nowhere/at/all"]);
    assert_eq!(output.status, 1, "{output}");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let mut command = cluster[0].command(&["status"]);
    let status = command.stdout(full).stderr(std::process::Stdio::piped()).spawn();
    let unprinted = status.and_then(std::process::Child::wait_with_output).expect("it runs");
    let unprinted = String::from_utf8_lossy(&unprinted.stderr).into_owned();
    assert!(unprinted.contains("not printed on standard output: No space left"), "{unprinted}");
    // A disk that goes away under a resource leaves lines in the log.
    cluster.create("r0", 4 * MIB, &[]);
    cluster[0].ok(&["down", "r0"]);
    std::fs::remove_file(cluster[0].disk("r0")).expect("it was there");
    let up = cluster[0].cli(&["up", "r0"]);
    for text in [output.stderr, unprinted, up.stderr, cluster[0].log()] {
        assert!(!text.contains("os error"), "{text}");
    }
}
