//! `doctor`: machines that were broken on purpose, each for real where that is possible.

use crate::{BLOCK, MIB, SOON, binary, cluster, disks};
use holdfast_testkit::{
    Cluster, ClusterOptions, Mount, Node, Output, Scratch, run, run_ok, wait_until,
};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// A line of a configuration: other daemons of this machine are not in the way.
const FREE_PORT: &str = "listen = \"127.0.0.1:0\"\n";

/// `doctor --json` without a daemon, with these arguments.
fn doctor(scratch: &Scratch, arguments: &[&str]) -> Output {
    run(&mut doctor_command(scratch, arguments))
}

fn doctor_command(scratch: &Scratch, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--socket").arg(scratch.join("none.sock")).args(["doctor", "--json"]);
    command.args(arguments).env_remove("HOLDFAST_SOCKET");
    command
}

fn findings(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|why| panic!("{why}: {output}"))
}

/// The findings of a check: severity and what was found.
fn of(document: &Value, check: &str) -> Vec<(String, String)> {
    let list = document["findings"].as_array().expect("there is a list");
    let of = list.iter().filter(|finding| finding["check"] == check);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of.map(|finding| (text(&finding["severity"]), text(&finding["what"]))).collect()
}

/// The one finding of a check, which must have this severity and say this.
#[track_caller]
fn assert_one(document: &Value, check: &str, severity: &str, words: &str) {
    let found = of(document, check);
    let fits = |(found, what): &(String, String)| found == severity && what.contains(words);
    assert!(found.iter().filter(|one| fits(one)).count() == 1, "{check}: {found:?}");
}

fn config(scratch: &Scratch, text: &str) -> String {
    let path = scratch.join("holdfast.toml");
    fs::write(&path, text).expect("the file can be written");
    path.display().to_string()
}

fn doctor_of(node: &Node, status: i32) -> Value {
    let output = node.cli(&["doctor", "--json"]);
    assert_eq!(output.status, status, "{output}");
    findings(&output)
}

#[test]
fn a_machine_in_order_has_no_error_and_is_shown_in_80_columns() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 8 * MIB, 2);
    let document = doctor_of(&cluster[0], 0);
    assert_one(&document, "daemon.answers", "ok", "the daemon of node alpha runs");
    assert_one(&document, "ports.nodes", "ok", "the daemon listens at");
    wait_until(SOON, "the clock of beta is known", || {
        !of(&doctor_of(&cluster[0], 0), "cluster.clock").is_empty()
    });
    let document = doctor_of(&cluster[0], 0);
    assert_one(&document, "cluster.clock", "ok", "the clock of node beta is right");
    assert_one(&document, "cluster.peers", "ok", "node beta is there");
    assert_one(&document, "disks.health", "ok", "r0: the health of the disk is ");
    assert_one(&document, "tls.node", "ok", "4096");
    let checks: Vec<&str> = document["findings"]
        .as_array()
        .expect("there is a list")
        .iter()
        .filter_map(|finding| finding["check"].as_str())
        .collect();
    for check in [
        "kernel.version",
        "kernel.io_uring",
        "kernel.secure_boot",
        "kernel.ublk",
        "limits.files",
        "space.state",
        "speed.digests",
    ] {
        assert!(checks.contains(&check), "no {check} in {checks:?}");
    }
    let text = cluster[0].ok(&["doctor"]);
    for line in text.lines() {
        let long = line.chars().count() > 80 && line.trim().contains(' ');
        let one_word = line.split_whitespace().any(|word| word.len() > 60);
        assert!(!long || one_word, "{line}");
    }
    assert!(text.starts_with("Kernel\n") && text.contains("\nSpeed\n"), "{text}");

    // The peer dies, and then this daemon.
    cluster[1].kill9();
    wait_until(SOON, "the peer is missed", || {
        of(&doctor_of(&cluster[0], 0), "cluster.peers").iter().any(|one| one.0 == "warning")
    });
    cluster[0].kill9();
    let scratch = Scratch::new();
    let state = cluster[0].state_dir().display().to_string();
    let config = config(&scratch, FREE_PORT);
    let files = ["--config", &config, "--state-dir", &state];
    let output = cluster[0].cli(&[&["doctor", "--json"], &files[..]].concat());
    assert_eq!(output.status, 0, "{output}");
    let document = findings(&output);
    assert_eq!(document["node"], "alpha");
    assert_one(&document, "daemon.answers", "warning", "control.sock");
    assert_one(&document, "cluster.peers", "warning", "the port of node beta does not answer");
    let strict = cluster[0].cli(&[&["doctor", "--strict", "-q"], &files[..]].concat());
    assert_eq!(strict.status, 1, "{strict}");
    assert!(!strict.stdout.contains("  ok "), "{strict}");
    // The disk goes, too.
    fs::remove_file(cluster[0].disk("r0")).expect("it is there");
    let output = cluster[0].cli(&[&["doctor", "--json"], &files[..]].concat());
    assert_eq!(output.status, 1, "{output}");
    assert_one(&findings(&output), "disks.disk", "error", "no such file");
}

#[test]
fn a_port_that_is_taken() {
    let scratch = Scratch::new();
    // Of an address that nobody connects from, so that nobody takes the port when it is free again.
    let listener = TcpListener::bind("127.0.0.99:0").expect("there is a free port");
    let address = listener.local_addr().expect("it has one");
    let text = format!("listen = \"{address}\"\nnbd-listen = \"127.0.0.1:0\"\n");
    let config = config(&scratch, &text);
    let state = scratch.join("state").display().to_string();
    let arguments = ["--config", &config, "--state-dir", &state];
    let output = doctor(&scratch, &arguments);
    assert_eq!(output.status, 1, "{output}");
    let document = findings(&output);
    let own = format!("(process {})", std::process::id());
    assert_one(&document, "ports.nodes", "error", &own);
    assert_one(&document, "ports.nbd", "ok", "any free port");
    assert_one(&document, "cluster.membership", "note", "in no cluster");
    assert!(!Path::new(&state).exists(), "doctor made the state directory");
    drop(listener);
    // A process that another test has just forked has it open until it becomes another program.
    wait_until(SOON, "the port is free", || doctor(&scratch, &arguments).status == 0);
    let output = doctor(&scratch, &arguments);
    assert_eq!(output.status, 0, "{output}");
    assert_one(&findings(&output), "ports.nodes", "ok", "is free");
}

#[test]
fn a_configuration_that_is_refused() {
    let scratch = Scratch::new();
    let config = config(&scratch, "listne = \"x\"\n");
    let output = doctor(&scratch, &["--config", &config]);
    assert_eq!(output.status, 1, "{output}");
    assert_one(&findings(&output), "daemon.configuration", "error", "it has 1 error");
    let way = "holdfast config check";
    assert!(output.stdout.contains(way), "{output}");
}

/// A kernel without the modules cannot be had without another kernel: its files can.
#[test]
fn a_kernel_without_modules() {
    let scratch = Scratch::new();
    let root = scratch.join("root");
    let write = |path: &str, content: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("it can be made");
        fs::write(path, content).expect("it can be written");
    };
    let empty = doctor(&scratch, &["--root", &scratch.join("nowhere").display().to_string()]);
    assert_eq!(empty.status, 1, "{empty}");
    assert!(empty.stderr.contains("holdfast support"), "{empty}");
    write("proc/sys/kernel/osrelease", "5.4.0-1-generic\n");
    write("proc/sys/kernel/io_uring_disabled", "2\n");
    let shown = root.display().to_string();
    let output = doctor(&scratch, &["--root", &shown]);
    assert_eq!(output.status, 0, "{output}");
    let document = findings(&output);
    assert_one(&document, "kernel.version", "warning", "5.4.0-1-generic");
    assert_one(&document, "kernel.devices", "warning", "cannot make a local block device");
    assert_one(&document, "kernel.io_uring", "warning", "switched off");
    write("lib/modules/5.4.0-1-generic/modules.dep", "kernel/drivers/block/nbd.ko.xz:\n");
    let document = findings(&doctor(&scratch, &["--root", &shown]));
    assert_one(&document, "kernel.nbd", "ok", "loaded when it is needed");
    assert!(of(&document, "kernel.devices").is_empty());
    let both = doctor(&scratch, &["--root", &shown, "--config", "x"]);
    assert_eq!(both.status, 2, "{both}");
}

/// A daemon whose clock is two hours ahead: what it asks the system for the time is answered by a
/// library that is loaded before.
#[test]
fn a_clock_that_is_off() {
    let source = "
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int r = syscall(SYS_clock_gettime, id, t);
    if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += 7200;
    return r;
}
";
    let scratch = Scratch::new();
    let (code, library) = (scratch.join("ahead.c"), scratch.join("ahead.so"));
    fs::write(&code, source).expect("it can be written");
    let made =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status();
    if !made.is_ok_and(|status| status.success()) {
        return println!("skipped: there is no C compiler");
    }
    let mut cluster = Cluster::strangers(&binary(), 2, ClusterOptions::default());
    cluster[0].ok(&["cluster", "create"]);
    cluster.join(1);
    cluster[1].stop();
    cluster[1].start_with_environment(&[("LD_PRELOAD", &library.display().to_string())]);
    wait_until(SOON, "the clock is found to be off", || {
        let document = findings(&cluster[0].cli(&["doctor", "--json"]));
        of(&document, "cluster.clock").iter().any(|one| one.0 == "error")
    });
    let document = doctor_of(&cluster[0], 1);
    let (_, what) = &of(&document, "cluster.clock")[0];
    assert!(what.contains("node beta") && what.contains("ahead of this node's"), "{what}");
}

/// Certificates for NBD clients: one that ends soon, one that has ended, none.
#[test]
fn certificates_that_end() {
    let scratch = Scratch::new();
    let dir = scratch.join("tls");
    fs::create_dir(&dir).expect("it can be made");
    let key = KeyPair::generate().expect("keys can be made");
    let now = today();
    let put = |name: &str, days: i64| {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        let (year, month, day) = civil(now + days);
        params.not_after = date_time_ymd(year, month, day);
        let certificate = params.self_signed(&key).expect("it can be signed");
        fs::write(dir.join(name), certificate.pem()).expect("it can be written");
    };
    let config = config(
        &scratch,
        &format!("{FREE_PORT}nbd-tls-certificates = {:?}\n", dir.display().to_string()),
    );
    let state = scratch.join("state").display().to_string();
    let look = |status: i32| {
        let output = doctor(&scratch, &["--config", &config, "--state-dir", &state]);
        assert_eq!(output.status, status, "{output}");
        findings(&output)
    };
    assert_one(&look(0), "tls.nbd", "warning", "cannot be read");
    put("server-cert.pem", 400);
    put("ca-cert.pem", 12);
    let document = look(0);
    assert_one(&document, "tls.nbd", "ok", "is valid until");
    assert_one(&document, "tls.nbd_authority", "warning", "ends in 1");
    put("server-cert.pem", -3);
    assert_one(&look(1), "tls.nbd", "error", "is not valid any more");
    fs::write(dir.join("server-cert.pem"), "no certificate").expect("it can be written");
    assert_one(&look(1), "tls.nbd", "error", "holds no certificate");
}

/// Days since 1970, as the system's clock says.
fn today() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.expect("it is later than 1970").as_secs() / 86_400).expect("it is small")
}

/// The date that is so many days after 1970-01-01.
fn civil(days: i64) -> (i32, u8, u8) {
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let (mut year, mut left) = (1970, days);
    loop {
        let len = if leap(year) { 366 } else { 365 };
        if left < len {
            break;
        }
        left -= len;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1_u8;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < len {
            break;
        }
        left -= len;
        month += 1;
    }
    let day = u8::try_from(left + 1).expect("it is a day of a month");
    (i32::try_from(year).expect("it is small"), month, day)
}

/// The state directory is on a real filesystem of one megabyte, in a mount namespace of its own.
#[test]
fn a_disk_that_is_full() {
    let scratch = Scratch::new();
    let state = scratch.join("state");
    fs::create_dir(&state).expect("it can be made");
    let script = r#"mount -t tmpfs -o size=1M none "$1" && shift && exec "$@""#;
    let inner = doctor_command(&scratch, &["--state-dir", &state.display().to_string()]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "--", "sh", "-c", script, "sh"]).arg(&state);
    command.arg(inner.get_program()).args(inner.get_args()).env_remove("HOLDFAST_SOCKET");
    let output = run(&mut command);
    if output.stdout.is_empty() {
        return println!("skipped: no mounts in namespaces here: {output}");
    }
    assert_eq!(output.status, 1, "{output}");
    let document = findings(&output);
    assert_one(&document, "space.state", "error", "1 MiB free");
    assert_one(&document, "space.volatile", "warning", "in memory");
}

/// A disk that became smaller while the daemon did not run.
#[test]
fn a_disk_that_is_short() {
    let mut cluster = cluster(1);
    cluster.create("r0", 16 * MIB, &[]);
    cluster[0].stop();
    let disk = cluster[0].disk("r0");
    fs::File::options()
        .write(true)
        .open(&disk)
        .and_then(|file| file.set_len(16 * MIB - BLOCK))
        .expect("it can be cut");
    let state = cluster[0].state_dir().display().to_string();
    let output = cluster[0].cli(&["doctor", "--json", "--state-dir", &state]);
    assert_eq!(output.status, 1, "{output}");
    assert_one(&findings(&output), "disks.size", "error", "r0: the disk");
}

/// A block device that is mounted behind the back of the daemon.
#[test]
fn a_disk_that_somebody_has_mounted() {
    let mut cluster = cluster(1);
    let Some(device) = disks::loop_of(&cluster, "file", 32 * MIB, &[]) else { return };
    run_ok(Command::new("mkfs.ext4").args(["-q", &device]));
    cluster[0].ok(&["create", "r0", "--disk", &device]);
    let described = format!("r0: {device}, 32 MiB, ");
    assert_one(&doctor_of(&cluster[0], 0), "disks.disk", "ok", &described);
    cluster[0].stop();
    let mount = Mount::new(&device, &cluster.scratch().join("mnt"));
    let state = cluster[0].state_dir().display().to_string();
    let output = cluster[0].cli(&["doctor", "--json", "--state-dir", &state]);
    assert_eq!(output.status, 1, "{output}");
    let words = format!("is also mounted at {}", mount.path().display());
    assert_one(&findings(&output), "disks.claimed", "error", &words);
    mount.unmount();
    disks::let_go(&device);
}
