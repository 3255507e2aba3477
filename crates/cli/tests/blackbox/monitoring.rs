//! Metrics, Prometheus, events for tools, and `top`.

use crate::{BLOCK, MIB, SOON, SYNC, binary, cluster, write_blocks};
use holdfast_daemon::{STATUS_FIELDS, Told};
use holdfast_testkit::{Cluster, ClusterOptions, files, holds_within, wait_until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Nodes whose metrics can be had by TCP.
fn scraped_cluster(count: usize) -> Cluster {
    let arguments = &["--http", "127.0.0.1:0"];
    let options = ClusterOptions { arguments, ..ClusterOptions::default() };
    Cluster::with(&binary(), count, options)
}

/// Where the running daemon of a node serves its metrics.
fn http_address(cluster: &Cluster, index: usize) -> SocketAddr {
    let log = cluster[index].log();
    let marker = "metrics are served on http://";
    let rest = log.rsplit_once(marker).expect("it says where").1;
    rest.split('/').next().and_then(|text| text.parse().ok()).expect("it is an address")
}

/// The answer to a request by TCP: head and body.
fn fetch(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(SOON)).expect("a limit can be set");
    let head = format!("{request}Host: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it is answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

/// Whether a program is there; says so when it is not.
fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed (Debian: prometheus)");
    }
    found
}

/// The path of each value of a document that is neither a list nor an object.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            leaves(value, &format!("{path}{dot}{key}"), found);
        }),
        Value::Array(items) => {
            items.iter().for_each(|item| leaves(item, &format!("{path}[]"), found));
        }
        Value::Null => {}
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn each_field_of_a_real_status_has_a_metric_or_a_reason() {
    let cluster = scraped_cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let journal = cluster.scratch().join("journal").display().to_string();
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, MIB);
    let spare = spare.display().to_string();
    let journal = ["--journal", &journal, "--journal-size", "16M"];
    let more = ["--spare", &spare, "--checksums"];
    cluster.create("r1", 8 * MIB, &[&journal[..], &more].concat());
    write_blocks(&cluster[0], "r0", 1, 0..8);
    write_blocks(&cluster[0], "r1", 1, 0..8);
    cluster[0].ok(&["scrub", "r0", "--wait"]);
    let status = cluster[0].json(&["status"]);
    let (_, text) = fetch(http_address(&cluster, 0), "GET /metrics HTTP/1.1\r\n");
    let told: BTreeMap<&str, Told> = STATUS_FIELDS.iter().copied().collect();
    let mut found = BTreeSet::new();
    leaves(&status, "", &mut found);
    assert!(found.len() > 90, "{found:?}");
    for path in found {
        match told.get(path.as_str()) {
            Some(Told::By(metric)) => {
                let named = |line: &str| line.split(['{', ' ']).next() == Some(metric);
                // What has no value yet, such as the moment of the last error, has no line.
                let is_empty = path.ends_with("[]") || path.ends_with("problem");
                assert!(is_empty || text.lines().any(named), "{path}: no {metric} in\n{text}");
            }
            Some(Told::Not(why)) => assert!(!why.is_empty()),
            None => panic!("{path} is told by no metric, and no reason is given"),
        }
    }
    // Each stage of a write and of a flush was timed.
    for (name, labels) in [
        ("holdfast_client_request_duration_seconds", "op=\"write\""),
        ("holdfast_disk_operation_duration_seconds", "op=\"write\""),
        ("holdfast_peer_answer_duration_seconds", "peer=\"beta\",op=\"write\""),
        ("holdfast_client_request_duration_seconds", "op=\"flush\""),
        ("holdfast_disk_operation_duration_seconds", "op=\"flush\""),
        ("holdfast_peer_answer_duration_seconds", "peer=\"beta\",op=\"flush\""),
    ] {
        let value = |part: &str| -> f64 {
            let head = format!("{name}{part}{{resource=\"r0\",{labels}");
            let line = text.lines().find(|line| {
                line.starts_with(&head) && (part != "_bucket" || line.contains("+Inf"))
            });
            let line = line.unwrap_or_else(|| panic!("no {head} in\n{text}"));
            line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).expect("a number")
        };
        let due = if labels.contains("write") { 8.0 } else { 1.0 };
        assert!(value("_count") >= due && value("_sum") > 0.0, "{name} {labels}");
        assert!((value("_bucket") - value("_count")).abs() < 0.5, "{name} {labels}");
    }
}

#[test]
fn metrics_by_tcp_are_clean_and_nothing_else_is_there() {
    let cluster = scraped_cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..4);
    let address = http_address(&cluster, 0);
    let (head, text) = fetch(address, "GET /metrics HTTP/1.1\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"));
    let open = "GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n";
    let (head, open) = fetch(address, open);
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    for (request, status) in [
        ("GET /v1/status HTTP/1.1\r\n", "404"),
        ("POST /v1/resources/r0/secondary HTTP/1.1\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n", "405"),
    ] {
        let (head, _) = fetch(address, request);
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
    }
    if !is_there("promtool") {
        return;
    }
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    check.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = check.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// A program that is killed with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_scrapes_and_its_alert_fires_when_a_peer_is_lost() {
    if !is_there("prometheus") || !is_there("promtool") {
        return;
    }
    let rules = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/guide/prometheus/holdfast.rules.yml");
    let checked = Command::new("promtool").args(["check", "rules"]).arg(&rules).output();
    let checked = checked.expect("it runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let mut cluster = scraped_cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let dir = cluster.scratch().to_owned();
    // As they are shipped, but for the time that they wait.
    let text = fs::read_to_string(&rules).expect("the rules are there");
    assert!(text.contains("        for: 1m\n"));
    let text: Vec<&str> =
        text.lines().filter(|line| !line.trim_start().starts_with("for: ")).collect();
    fs::write(dir.join("rules.yml"), text.join("\n")).expect("it can be written");
    let config = format!(
        "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
         rule_files: [rules.yml]\n\
         scrape_configs:\n  - job_name: holdfast\n    static_configs: [{{targets: ['{}']}}]\n",
        http_address(&cluster, 0)
    );
    fs::write(dir.join("prometheus.yml"), config).expect("it can be written");
    // It does not tell which port it was given, so a free one is looked for: of an address that no other
    // test has, so that nobody takes it meanwhile, as connections from 127.0.0.1 would.
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 1, high, low.max(1));
    let listen = TcpListener::bind((own, 0)).and_then(|listener| listener.local_addr());
    let listen = listen.expect("there is a free port");
    let log = fs::File::create(dir.join("prometheus.log")).expect("it can be made");
    let prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
        .arg(format!("--web.listen-address={listen}"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    let _prometheus = Running(prometheus.expect("it starts"));
    let ask = |path: &str| -> Option<Value> {
        TcpStream::connect(listen).ok()?;
        let (_, body) = fetch(listen, &format!("GET {path} HTTP/1.0\r\n"));
        serde_json::from_str(&body).ok()
    };
    let value = |query: &str| -> Option<String> {
        let answer = ask(&format!("/api/v1/query?query={query}"))?;
        Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
    };
    wait_until(SYNC, "the metrics are scraped", || {
        value("holdfast_connected").as_deref() == Some("1")
    });
    // A scrape that was late, as on a machine that stands still for a moment, counts until the next one.
    wait_until(SOON, "it is up", || value("up").as_deref() == Some("1"));
    let fires = |name: &str| {
        let answer = ask("/api/v1/alerts").unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        alerts
            .iter()
            .any(|alert| alert["labels"]["alertname"] == name && alert["state"] == "firing")
    };
    wait_until(SOON, "the rules are evaluated", || {
        let answer = ask("/api/v1/rules").unwrap_or_default();
        let rules = answer["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok")
    });
    wait_until(SOON, "nothing is wrong", || {
        !fires("HoldfastPeerLost") && !fires("HoldfastDaemonDown")
    });
    cluster[1].kill9();
    wait_until(SYNC, "the lost peer is an alert", || fires("HoldfastPeerLost"));
    cluster[1].start();
    wait_until(SYNC, "and none any more", || !fires("HoldfastPeerLost"));
}

/// The events in a file.
fn events_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_follower_of_events_survives_a_restart_and_says_what_it_missed() {
    let mut cluster = cluster(1);
    cluster.create("r0", 4 * MIB, &[]);
    let log = cluster.scratch().join("events");
    let follow = |file: &Path, arguments: &[&str]| {
        let out = fs::File::create(file).expect("it can be made");
        let command = [&["events", "--json", "--follow"], arguments].concat();
        let child = cluster[0].command(&command).stdout(out).stderr(Stdio::null()).spawn();
        Running(child.expect("the command starts"))
    };
    let _follower = follow(&log, &[]);
    let ends = || events_in(&log).iter().filter(|event| event["object"] == "-").count();
    wait_until(SOON, "the dump is there", || ends() == 1);
    let before = events_in(&log).last().and_then(|event| event["seq"].as_u64());
    let before = before.expect("events have numbers");
    let mut patient = follow(&cluster.scratch().join("patient"), &["--timeout", "1"]);

    cluster[0].stop();
    wait_until(SOON, "who has no patience ends", || {
        patient.0.try_wait().expect("it is a child").is_some_and(|end| end.code() == Some(3))
    });
    cluster[0].start();
    wait_until(SOON, "there is another dump", || ends() == 2);
    let told = events_in(&log);
    let missed = told.iter().find(|event| event["kind"] == "missed").expect("it is said");
    assert_eq!(missed["fields"]["reason"], "the daemon was started since");
    assert_eq!(missed["object"], "events");
    let after = told.last().and_then(|event| event["seq"].as_u64()).expect("a number");
    assert!(after > before, "numbers go on upwards");

    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    let now = cluster[0].ok(&["events", "--json"]);
    let last = now.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let last = last.and_then(|event| event["seq"].as_u64()).expect("a number");
    cluster[0].ok(&["secondary", "r0"]);
    let secondary = |event: &Value| event["fields"]["role"] == "Secondary";
    wait_until(SOON, "the change is told", || {
        events_in(&log).iter().any(|e| e["seq"].as_u64() > Some(last) && secondary(e))
    });
    // The same for who comes later.
    let since = cluster[0].ok(&["events", "--json", "--since", &last.to_string()]);
    let since: Vec<Value> =
        since.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(since.iter().any(secondary), "{since:?}");
    let changes = &since[..since.len() - 1];
    assert!(changes.iter().all(|e| e["kind"] != "exists" && e["seq"].as_u64() > Some(last)));
    assert_eq!(since[since.len() - 1]["object"], "-");
    let old = cluster[0].ok(&["events", "--since", "7"]);
    assert!(
        old.starts_with("missed events reason:the daemon was started since since:7\n"),
        "{old}"
    );
    assert!(old.contains("exists resource name:r0"), "{old}");
}

#[test]
fn a_follower_of_events_ends_when_nobody_reads_it() {
    let cluster = cluster(1);
    let mut follower = cluster[0]
        .command(&["events", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("the command starts");
    let mut lines = BufReader::new(follower.0.stdout.take().expect("it is piped")).lines();
    // The dump is read to its end, so nothing is printed any more.
    let last = lines.find(|line| line.as_ref().is_ok_and(|line| line == "exists -"));
    assert!(last.is_some());
    drop(lines);
    wait_until(SOON, "it ends", || {
        follower.0.try_wait().expect("it is a child").is_some_and(|end| end.success())
    });
}

#[test]
fn top_prints_rates_and_latencies_for_scripts() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster.create("r1", 4 * MIB, &[]);
    let top = |arguments: &[&str]| {
        let child = cluster[0].command(arguments).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("the command starts");
        while child.try_wait().expect("it is a child").is_none() {
            write_blocks(&cluster[0], "r0", 1, 0..32);
        }
        let output = child.wait_with_output().expect("it has ended");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("it is text")
    };
    // Long enough that something is written meanwhile even when this thread stands still for a moment.
    let look: Value =
        serde_json::from_str(&top(&["top", "--once", "-d", "5", "--json"])).expect("JSON");
    assert_eq!((&look["node"], &look["nodes_alive"]), (&"alpha".into(), &2.into()));
    let r0 = &look["resources"][0];
    let number = |value: &Value| value.as_f64().expect("a number");
    assert_eq!(
        (&r0["name"], &r0["role"], &r0["disk"]),
        (&"r0".into(), &"Primary".into(), &"UpToDate".into())
    );
    let (writes, bytes) = (number(&r0["writes_per_second"]), number(&r0["write_bytes_per_second"]));
    assert!(writes > 1.0, "{r0}");
    let block = f64::from(u32::try_from(BLOCK).expect("it is small"));
    assert!((bytes - writes * block).abs() < 1.0, "{r0}");
    assert!(number(&r0["p99_seconds"]) > 0.0 && number(&r0["p99_seconds"]) < 30.0);
    let stages = r0["stages"].as_array().expect("a list");
    for stage in ["client", "disk", "peer"] {
        let writes = |one: &&Value| one["stage"] == stage && one["op"] == "write";
        let found = stages.iter().find(writes).unwrap_or_else(|| panic!("no {stage}: {r0}"));
        assert!(number(&found["per_second"]) > 1.0 && number(&found["p99_seconds"]) > 0.0);
    }
    assert!(number(&r0["peers"][0]["sent_bytes_per_second"]) > 0.0, "{r0}");
    assert_eq!(number(&look["resources"][1]["writes_per_second"]), 0.0);

    let text = top(&["top", "-b", "-n", "2", "-d", "0.5", "--sort", "iops"]);
    assert_eq!(text.matches("NAME").count(), 2, "{text}");
    assert!(
        !text.contains('\x1b') && text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    for row in ["  r0     Pri  UpToDate       1/1 ", "  r1     Pri  UpToDate       0/0     0     0"]
    {
        assert!(text.contains(row), "{row} is missing in\n{text}");
    }
    // Where no screen is there, it prints as well.
    let plain = cluster[0].ok(&["top", "-n", "1", "-d", "0.1", "r1"]);
    assert!(plain.contains("  r1     Pri") && !plain.contains("r0"), "{plain}");
    cluster[0].refused(&["top", "nothing"], 4, "nothing");
    cluster[0].refused(&["top", "-n", "0"], 2, "error");
}

/// Whether these are the numbers of a colour.
fn is_colour(numbers: &str) -> bool {
    numbers.chars().all(|c| c.is_ascii_digit() || c == ';')
}

/// `top` on a terminal of its own, which `script` makes.
struct OnTerminal {
    script: Running,
    dir: std::path::PathBuf,
    screen: std::path::PathBuf,
}

impl OnTerminal {
    fn new(cluster: &Cluster, words: &str) -> Self {
        let dir = cluster.scratch().join("terminal");
        // A terminal for each, one after the other.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).expect("it can be made");
        let screen = dir.join("screen");
        let socket = cluster[0].socket();
        let shell = format!(
            "cd {dir}; stty rows 20 cols 80; stty -g > before; tty > tty\n\
             sh -c 'echo $$ > pid; exec {binary} --socket {socket} top {words}'\n\
             echo $? > status; stty -g > after",
            dir = dir.display(),
            binary = binary(),
            socket = socket.display()
        );
        let child = Command::new("script")
            .args(["-q", "-f", "-e", "-c", &shell, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&screen).expect("it can be made"))
            .spawn();
        Self { script: Running(child.expect("script starts")), dir, screen }
    }

    fn press(&mut self, keys: &str) {
        let keyboard = self.script.0.stdin.as_mut().expect("it is piped");
        keyboard.write_all(keys.as_bytes()).and_then(|()| keyboard.flush()).expect("it is typed");
    }

    fn all(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.screen).unwrap_or_default()).into_owned()
    }

    /// The last screen that is complete, without its colours.
    fn shown(&self) -> String {
        let all = self.all();
        let frames: Vec<&str> = all.split("\x1b[H").collect();
        let complete = frames.iter().rev().find(|frame| frame.contains("\x1b[K\x1b[J"));
        // Colours are looked at elsewhere.
        let parts = complete.map_or("", |frame| frame).split("\x1b[");
        let plain = |(at, part): (usize, &str)| match part.split_once('m') {
            Some((numbers, text)) if at > 0 && is_colour(numbers) => text.to_owned(),
            _ if at > 0 => format!("\x1b[{part}"),
            _ => part.to_owned(),
        };
        parts.enumerate().map(plain).collect()
    }

    #[track_caller]
    fn wait(&self, text: &str) {
        let seen = holds_within(SOON, || self.shown().contains(text));
        assert!(seen, "no {text:?} on the screen:\n{}", self.shown());
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.dir.join(file)).unwrap_or_default().trim().to_owned()
    }

    /// Waits for the end; the terminal must be as it was.
    #[track_caller]
    fn ended(&self) {
        wait_until(SOON, "it ends", || !self.read("after").is_empty());
        assert_eq!(self.read("status"), "0");
        assert_eq!(self.read("before"), self.read("after"), "the terminal is as it was");
        let leave = "\x1b[?25h\x1b[?1049l";
        wait_until(SOON, "the screen is left", || self.all().contains(leave));
        let all = self.all();
        let left = all.rfind(leave).expect("it was left");
        assert!(all[left..].rfind("\x1b[H").is_none(), "nothing is drawn after that");
    }
}

#[test]
fn top_on_a_terminal_obeys_keys_sizes_and_signals() {
    let cluster = cluster(2);
    cluster.resource("data", 4 * MIB, 2);
    cluster.create("other", 4 * MIB, &[]);
    let mut top = OnTerminal::new(&cluster, "-d 0.2");
    top.wait("> data ");
    top.press("j");
    top.wait("> other");
    top.press("\x1b[A");
    top.wait("> data ");
    top.press("\r");
    top.wait("CONNECTION");
    top.wait("beta");
    write_blocks(&cluster[0], "data", 1, 0..4);
    top.press("\x1b");
    top.wait("> data ");
    top.press("s");
    top.wait("s sort: IOPS");
    top.press("/oth");
    top.wait("filter: oth_");
    top.press("\r");
    top.wait("> other");
    assert!(!top.shown().contains("data"));
    top.press("\x1b");
    top.wait("data");
    top.press("h");
    top.wait("members that are connected");
    top.press("h ");
    top.wait("PAUSED");
    assert!(top.all().contains("\x1b[32m"), "there are colours");
    // Another size: all of it fits.
    let tty = top.read("tty");
    let resized = Command::new("stty").args(["-F", &tty, "rows", "4", "cols", "40"]).status();
    assert!(resized.expect("stty runs").success());
    wait_until(SOON, "it fits", || top.shown().matches("\r\n").count() == 3);
    top.press("q");
    top.ended();

    let top = OnTerminal::new(&cluster, "-d 0.2 --color never");
    top.wait("> data ");
    let all = top.all();
    let mut parts = all.split("\x1b[").skip(1).filter_map(|part| part.split_once('m'));
    assert!(!parts.any(|(numbers, _)| is_colour(numbers)), "{all:?}");
    let pid = top.read("pid");
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    top.ended();

    let mut top = OnTerminal::new(&cluster, "other");
    top.wait("> other");
    top.press("\x03");
    top.ended();
}

#[test]
fn top_shows_a_resync_with_its_rate_and_its_end() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 64 * MIB, 2);
    cluster[0].ok(&["set", "r0", "resync-rate=1M"]);
    cluster[1].kill9();
    write_blocks(&cluster[0], "r0", 1, (0..64 * MIB / BLOCK).step_by(2));
    cluster[1].start();
    let shows = || {
        let text = cluster[0].ok(&["top", "--once", "-d", "0.5"]);
        text.contains("    sync to beta [") && text.contains("/s  ETA ")
    };
    wait_until(SYNC, "the resync is shown", shows);
    cluster[0].ok(&["set", "r0", "resync-rate=0"]);
    cluster[0].wait_synced("r0", Duration::from_secs(90));
    assert!(!cluster[0].ok(&["top", "--once", "-d", "0.1"]).contains("sync to"));
}

#[test]
fn a_request_that_hangs_is_told_with_its_age() {
    let cluster = cluster(2);
    cluster.resource("r0", 8 * MIB, 2);
    let io = || cluster[0].resource("r0").io.expect("it is up");
    assert_eq!((io().under_way, io().oldest_op), (0, None));
    let metric = || cluster[0].metric("holdfast_client_oldest_request_seconds", &["r0"]);
    assert_eq!(metric(), Some(0.0));
    // It answers nothing, and is not given up before it was looked at.
    cluster[0].ok(&["set", "r0", "ping-int=120"]);
    cluster[1].freeze();
    let mut client = cluster[0].open("r0");
    let writer = std::thread::spawn(move || {
        client.write_at(&[7; 4096], 0).expect("it is written when the peer is given up");
    });
    wait_until(SOON, "it is told with its age", || io().oldest_seconds >= 1.2);
    let hangs = io();
    assert_eq!((hangs.under_way, hangs.oldest_op.as_deref()), (1, Some("write")));
    assert!(metric().is_some_and(|seconds| seconds >= 1.0), "{:?}", metric());
    let text = cluster[0].ok(&["status", "r0"]);
    assert!(text.contains("a write is under way for "), "{text}");
    cluster[1].thaw();
    writer.join().expect("it does not panic");
    wait_until(SOON, "it is over", || io().under_way == 0 && metric() == Some(0.0));
    assert!(!cluster[0].ok(&["status", "r0"]).contains("under way"));
}
