//! The binary against a stand-in for the daemon: which call each command makes, what it prints, and
//! how it ends.

// The helpers are test code too, which the lint cannot see from here.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Answers every call with the same status and body, and remembers the calls.
struct StandIn {
    dir: tempfile::TempDir,
    calls: Arc<Mutex<Vec<String>>>,
    _thread: JoinHandle<()>,
}

impl StandIn {
    fn new(status: u16, body: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (body, seen) = (body.to_owned(), Arc::clone(&calls));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let call = read_call(&mut BufReader::new(&stream));
                let events = call.contains("/v1/events");
                seen.lock().unwrap().push(call);
                let kind = if events { "text/event-stream" } else { "application/json" };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
                );
                // A command that has seen enough may be gone.
                let _ = stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(body.as_bytes()));
            }
        });
        Self { dir, calls, _thread: thread }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn run(&self, line: &str) -> Output {
        holdfast(&self.socket(), line)
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

/// `METHOD path body`.
fn read_call(stream: &mut impl BufRead) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let call = line.rsplit_once(' ').unwrap().0.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).unwrap();
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    format!("{call} {}", String::from_utf8(body).unwrap()).trim_end().to_owned()
}

fn holdfast(socket: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(line.split_whitespace())
        .env("HOLDFAST_SOCKET", socket)
        .env_remove("NO_COLOR")
        .current_dir("/")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const DONE: &str = r#"{"message":"done"}"#;

#[test]
fn every_command_is_one_call() {
    let cases = [
        ("cluster leave", r#"POST /v1/cluster/leave {"force":false}"#),
        ("cluster remove beta --force", r#"POST /v1/cluster/remove {"node":"beta","force":true}"#),
        (
            "create r0 --disk /d --size 1G --meta internal --set timeout=6s --set ko-count=3",
            r#"POST /v1/resources {"name":"r0","disk":"/d","size":1073741824,"meta":"internal","set":{"ko-count":"3","timeout":"6s"}}"#,
        ),
        (
            "create r0 --disk /d --journal /j --journal-size 4G",
            r#"POST /v1/resources {"name":"r0","disk":"/d","size":null,"meta":null,"journal":"/j","journal_size":4294967296,"set":{}}"#,
        ),
        (
            "create r0 --disk /d --checksums",
            r#"POST /v1/resources {"name":"r0","disk":"/d","size":null,"meta":null,"checksums":true,"set":{}}"#,
        ),
        ("log rotate r0", "POST /v1/resources/r0/log/rotate {}"),
        ("log trim r0", "POST /v1/resources/r0/log/trim {}"),
        (
            "create r0 --disk d",
            r#"POST /v1/resources {"name":"r0","disk":"/d","size":null,"meta":null,"set":{}}"#,
        ),
        (
            "join r0 --disk /d --protocol C --meta /m",
            r#"POST /v1/resources/r0/join {"disk":"/d","diskless":false,"meta":"/m","protocol":"C","force":false}"#,
        ),
        (
            "join r0 --diskless",
            r#"POST /v1/resources/r0/join {"disk":null,"diskless":true,"meta":null,"protocol":null,"force":false}"#,
        ),
        (
            "join r0 --disk /d --force",
            r#"POST /v1/resources/r0/join {"disk":"/d","diskless":false,"meta":null,"protocol":null,"force":true}"#,
        ),
        ("leave r0", "POST /v1/resources/r0/leave {}"),
        ("leave r0 --dry-run", r#"POST /v1/resources/r0/leave {"dry_run":true}"#),
        ("rename r0 data", r#"POST /v1/resources/r0/rename {"new":"data"}"#),
        ("delete r0", "POST /v1/resources/r0/delete {}"),
        ("up all", "POST /v1/resources/all/up {}"),
        ("down r0", "POST /v1/resources/r0/down {}"),
        ("primary r0 --force", r#"POST /v1/resources/r0/primary {"force":true}"#),
        (
            "primary r0 --timeout 5",
            r#"POST /v1/resources/r0/primary {"force":false,"timeout_seconds":5.0}"#,
        ),
        ("secondary r0", r#"POST /v1/resources/r0/secondary {"force":false}"#),
        (
            "attach-disk r0",
            r#"POST /v1/resources/r0/attach-disk {"disk":null,"meta":null,"force":false}"#,
        ),
        ("detach-disk r0 --force", r#"POST /v1/resources/r0/detach-disk {"force":true}"#),
        (
            "replace-disk r0 --disk /d --rate 1M",
            r#"POST /v1/resources/r0/replace-disk {"disk":"/d","meta":null,"force":false,"rate":1048576,"stop":false}"#,
        ),
        (
            "replace-disk r0 --stop",
            r#"POST /v1/resources/r0/replace-disk {"disk":null,"meta":null,"force":false,"rate":0,"stop":true}"#,
        ),
        (
            "connect r0 --discard-my-data",
            r#"POST /v1/resources/r0/connect {"peer":null,"discard_my_data":true}"#,
        ),
        (
            "disconnect r0 --peer beta",
            r#"POST /v1/resources/r0/disconnect {"peer":"beta","force":false}"#,
        ),
        ("pause r0 sync", r#"POST /v1/resources/r0/pause {"what":"sync"}"#),
        (
            "pause r0 fetch --peer beta",
            r#"POST /v1/resources/r0/pause {"what":"fetch","peer":"beta"}"#,
        ),
        ("resume r0 replay --all", r#"POST /v1/resources/r0/resume {"what":"replay","all":true}"#),
        ("resume r0 io", r#"POST /v1/resources/r0/resume {"what":"io"}"#),
        ("invalidate r0", r#"POST /v1/resources/r0/invalidate {"peer":null}"#),
        ("resize r0", r#"POST /v1/resources/r0/resize {"size":null}"#),
        ("resize r0 --size 2G", r#"POST /v1/resources/r0/resize {"size":2147483648}"#),
        (
            "set r0 timeout=6s --peer beta",
            r#"PUT /v1/resources/r0/options {"set":{"timeout":"6s"},"peer":"beta"}"#,
        ),
        (
            "wait r0 --for synced --peer beta --timeout 1000",
            r#"POST /v1/resources/r0/wait {"for":"synced","peer":"beta","timeout_seconds":30.0}"#,
        ),
        (
            "wait r0 --for uptodate",
            r#"POST /v1/resources/r0/wait {"for":"uptodate","peer":null,"timeout_seconds":30.0}"#,
        ),
        (
            "wait r0 --while synced",
            r#"POST /v1/resources/r0/wait {"for":"synced","ended":true,"peer":null,"timeout_seconds":30.0}"#,
        ),
        ("device r0 --remove", "POST /v1/resources/r0/device/remove {}"),
        ("detach d0 --force", r#"POST /v1/attachments/d0/detach {"force":true}"#),
        ("detach d0", r#"POST /v1/attachments/d0/detach {"force":false}"#),
        ("abort d0 --hold 2.5", r#"POST /v1/attachments/d0/abort {"hold_seconds":2.5}"#),
        ("abort d0", r#"POST /v1/attachments/d0/abort {"hold_seconds":null}"#),
    ];
    let daemon = StandIn::new(200, DONE);
    for (line, call) in cases {
        let output = daemon.run(line);
        assert_eq!(text(&output.stderr), "", "{line}");
        assert_eq!(text(&output.stdout), "done\n", "{line}");
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert_eq!(daemon.calls(), [call], "{line}");
    }
}

#[test]
fn a_wait_asks_for_the_time_that_is_left() {
    let daemon = StandIn::new(200, DONE);
    let output = daemon.run("wait r0 --for synced --peer beta --timeout 20");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("done\n", ""));
    let calls = daemon.calls();
    let (call, left) = calls[0].rsplit_once(':').unwrap();
    let due = r#"POST /v1/resources/r0/wait {"for":"synced","peer":"beta","timeout_seconds""#;
    assert_eq!((call, calls.len()), (due, 1));
    // A little less than was given: the command has taken some of it.
    let left: f64 = left.trim_end_matches('}').parse().unwrap();
    assert!(left > 0.0 && left <= 20.0, "{left}");
}

#[test]
fn what_was_asked_for_stands_alone_on_stdout() {
    let cases = [
        ("cluster create --name x", r#"{"uuid":"u-1","name":"x"}"#, "u-1\n"),
        ("cluster token --ttl 2m", r#"{"token":"t-1","expires_unix_ms":5}"#, "t-1\n"),
        (
            "device r0 --via fuse",
            r#"{"path":"/dev/holdfast/r0","kind":"fuse"}"#,
            "/dev/holdfast/r0\n",
        ),
    ];
    for (line, answer, printed) in cases {
        let daemon = StandIn::new(200, answer);
        for quiet in ["", " -q"] {
            let output = daemon.run(&format!("{line}{quiet}"));
            assert_eq!(text(&output.stdout), printed, "{line}");
        }
        let output = daemon.run(&format!("--json {line}"));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(answer).unwrap());
    }
    let daemon = StandIn::new(200, DONE);
    assert_eq!(text(&daemon.run("-q up r0").stdout), "");
    assert_eq!(text(&daemon.run("up r0 -v").stderr), "> POST /v1/resources/r0/up\n");
}

#[test]
fn refusals_decide_the_exit_status() {
    for (code, http, exit) in [
        ("SPLIT_BRAIN", 409, 1),
        ("NO_SUCH_RESOURCE", 404, 4),
        ("NO_SUCH_PEER", 404, 4),
        ("TIMED_OUT", 504, 5),
        ("NOT_SUPPORTED_YET", 501, 1),
        ("OF_THE_FUTURE", 500, 1),
    ] {
        let body = format!(r#"{{"error":{{"code":"{code}","message":"m: w","hint":"h"}}}}"#);
        let daemon = StandIn::new(http, &body);
        let output = daemon.run("up r0");
        assert_eq!(output.status.code(), Some(exit), "{code}");
        assert_eq!(text(&output.stderr), "error: m: w\nhint: h\n");
        assert_eq!(text(&output.stdout), "");
        let output = daemon.run("up r0 --json");
        assert_eq!(output.status.code(), Some(exit), "{code}");
        if code != "OF_THE_FUTURE" {
            assert_eq!(text(&output.stderr), format!("{body}\n"));
        }
    }
}

#[test]
fn a_wait_that_is_over_is_exit_5() {
    let body = r#"{"error":{"code":"TIMED_OUT","message":"m"}}"#;
    let daemon = StandIn::new(504, body);
    let output = daemon.run("wait r0 --for connected --timeout 0");
    assert_eq!(output.status.code(), Some(5));
    let message = text(&output.stderr);
    assert!(message.starts_with("error: waiting for connected of resource r0 was given up: "));
    assert_eq!(daemon.calls().len(), 1);
}

#[test]
fn no_daemon_is_exit_3() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    for line in ["status", "up r0", "events", "get r0", "wait r0 --for synced", "cluster status"] {
        let output = holdfast(&socket, line);
        assert_eq!(output.status.code(), Some(3), "{line}");
        let message = text(&output.stderr);
        assert!(message.starts_with("error: the daemon was not reached at "), "{message}");
        assert!(message.contains("\nhint: "), "{message}");
    }
}

#[test]
fn a_wrong_command_line_is_exit_2_and_calls_nobody() {
    let daemon = StandIn::new(200, DONE);
    for line in [
        "",
        "nope",
        "up",
        "up a/b",
        "up -- -x",
        "up none",
        "delete all",
        "create r0",
        "create r0 --disk /d --size 1X",
        "create r0 --disk /d --size -1",
        "create r0 --disk /d --set novalue",
        "join r0",
        "join r0 --disk /d --diskless",
        "join r0 --disk /d --protocol D",
        "wait r0",
        "wait r0 --for ready",
        "wait r0 --while ready",
        "wait r0 --for synced --while synced",
        "wait r0 --for synced --timeout -1",
        "pause r0 everything",
        "device r0 --via scsi",
        "device r0 --remove --via fuse",
        "connect r0 --peer a/b",
        "set r0",
        "status r0 r1",
        "status --color sometimes",
        "cluster token --ttl 1x",
        "demo --nodes 1",
        "demo --once --keep",
        "resize",
        "resize r0 --size x",
        "rename r0 all",
    ] {
        let output = daemon.run(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        let message = text(&output.stderr);
        assert!(message.starts_with("error: the command was not understood: "), "{message}");
        assert_eq!(message.lines().count(), 2, "{message}");
        let output = daemon.run(&format!("--json {line}"));
        let json: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(json["error"]["code"], "USAGE", "{line}");
    }
    assert_eq!(daemon.calls(), Vec::<String>::new());
}

#[test]
fn status_is_the_document_or_a_table() {
    let document = r#"{"version":"0.1.0","node":"alpha","cluster":null,"resources":[
        {"name":"r0","role":"Primary","size_bytes":4096,"suspended":[],"quorum":true,
         "open_count":0,"device":null,"device_kind":null,"read_only":false,"device_waits_seconds":null,"nbd_uri":"nbd+unix:///r0?socket=s",
         "disk":{"state":"UpToDate","path":"/d","io_errors":0,"checksum_errors":0,
                 "checksums":"on","checksums_percent":100,
                 "healed_blocks":0,"unreadable_blocks":0,"unreadable":[],"remapped_sectors":0,"spare_sectors_free":0,
                 "problem":null},
         "generation":"0A","promotable":true,"journal":null,"replay":null,"peers":[]}],
        "attachments":[]}"#;
    let daemon = StandIn::new(200, document);
    let output = daemon.run("status --json");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    // A daemon of an earlier version did not say what was added since: that has its default.
    let due: holdfast_api::status::NodeStatus = serde_json::from_str(document).unwrap();
    assert_eq!(json, serde_json::to_value(due).unwrap());
    let said: serde_json::Value = serde_json::from_str(document).unwrap();
    let disk =
        |value: &serde_json::Value| value["resources"][0]["disk"].as_object().unwrap().clone();
    assert!(disk(&said).iter().all(|(key, value)| disk(&json)[key] == *value), "{json}");
    assert!(output.stdout.starts_with(b"{\n  \"version\""), "in the order of the contract");
    let table = daemon.run("status r0");
    assert!(text(&table.stdout).contains("alpha  Primary  UpToDate"), "{}", text(&table.stdout));
    assert!(!text(&table.stdout).contains('\x1b'), "no colour in a pipe");
    assert!(text(&daemon.run("status --color always").stdout).contains('\x1b'));
    let output = daemon.run("status r1");
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn a_device_is_held_and_flushed_until_the_input_ends() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut holder = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["hold-device".as_ref(), file.path()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = holder.stdin.take().unwrap();
    let mut answers = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert_eq!(answers.next().unwrap().unwrap(), "0", "it has it");
    let held = format!("/proc/{}/fd", holder.id());
    // What it had open for its start may just have been closed.
    let holds = |link: std::fs::DirEntry| {
        std::fs::read_link(link.path()).is_ok_and(|held| held == file.path())
    };
    assert!(std::fs::read_dir(held).unwrap().any(|link| holds(link.unwrap())));
    orders.write_all(b"\n").unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), "0", "it was flushed");
    drop(orders);
    assert!(holder.wait().unwrap().success());
    let missing = file.path().with_extension("missing");
    let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["hold-device".as_ref(), missing.as_path()])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "2\n", "ENOENT");
}

#[test]
fn events_end_with_the_dump_unless_followed() {
    let stream = "event: exists\ndata: {\"seq\":1,\"time_unix_ms\":2,\"kind\":\"exists\",\
        \"object\":\"resource\",\"name\":\"r0\",\"fields\":{\"role\":\"Primary\"}}\n\n\
        data: {\"seq\":1,\"time_unix_ms\":2,\"kind\":\"exists\",\"object\":\"-\",\"name\":\"\"}\n\n\
        data: {\"seq\":2,\"time_unix_ms\":3,\"kind\":\"change\",\"object\":\"resource\",\
        \"name\":\"r0\"}\n\n";
    let daemon = StandIn::new(200, stream);
    let output = daemon.run("events");
    assert_eq!(text(&output.stdout), "exists resource name:r0 role:Primary\nexists -\n");
    assert_eq!(output.status.code(), Some(0));
    let output = daemon.run("events --json");
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["object"]), (2, &"-".into()));
    daemon.calls();
    let mut follower = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["events", "--follow", "--socket"])
        .arg(daemon.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let told: Vec<String> = lines.map(|line| line.unwrap()).take(6).collect();
    assert_eq!(told[2], "change resource name:r0");
    assert_eq!(told[..3], told[3..], "the daemon ended the stream, and was asked again");
    follower.kill().and_then(|()| follower.wait()).unwrap();
    assert_eq!(daemon.calls()[..2], ["GET /v1/events", "GET /v1/events?since=2"]);
}

#[test]
fn version_names_git_and_protocols() {
    let output = holdfast(Path::new("/none"), "--version");
    let text = text(&output.stdout);
    assert!(text.starts_with("holdfast ") && text.contains("(git "), "{text}");
    assert!(text.contains("node protocol 1"), "{text}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let shell = format!("{} man | head -c 10", env!("CARGO_BIN_EXE_holdfast"));
    let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.stdout.len(), 10);
}
