//! What cannot be served, and in which words.

use super::Server;
use crate::{MIB, binary};
use holdfast_testkit::{Output, Scratch, files, run};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

fn serve(scratch: &Scratch, arguments: &[&str]) -> Output {
    run(Command::new(binary()).arg("serve").args(arguments).current_dir(scratch.path()))
}

#[test]
fn what_is_wrong_is_said_in_one_sentence_with_a_way_out() {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), MIB);
    files::make_sparse(&scratch.join("b"), MIB);
    files::make_sparse(&scratch.join("small"), 100);
    files::make_sparse(&scratch.join("empty"), 0);
    std::os::unix::fs::symlink("a", scratch.join("again")).expect("it can be made");
    std::fs::create_dir(scratch.join("dir")).expect("it can be made");
    let listen = ["--listen", "127.0.0.1:0"];
    for (arguments, why) in [
        (
            &["missing"][..],
            "the export was not served: the disk missing cannot be opened: it does not exist",
        ),
        (&["dir"], "it is a directory"),
        (&["empty"], "it is empty"),
        (&["a", "again"], "again is named twice"),
        (&["a", "--size", "2M"], "the export was not served: a has 1 MiB, not 2 MiB"),
        (&["new", "a", "--size", "2M"], "a has 1 MiB, not 2 MiB"),
        (&["no/new", "--size", "2M"], "no/new cannot be made: No such file or directory"),
        (&["a", "small", "--layout", "stripe"], "a part is smaller than the chunk of 64 KiB"),
        (
            &["a", "--name", "x", "--export", "x=b"],
            "export x was not served: its name is given twice",
        ),
        (
            &["a", "--tls-certificates", "dir"],
            "TLS cannot be offered: dir/server-cert.pem cannot be used: it does not exist",
        ),
        (
            &["a", "--listen", "nobody.invalid:1"],
            "nobody.invalid:1 cannot be listened at: the name is not known",
        ),
        (
            &["a", "--listen", "192.0.2.1:1"],
            "192.0.2.1:1 cannot be listened at: this machine does not have the address",
        ),
        (&["a", "--unix", "no/socket"], "the directory does not exist"),
        (&["a", "--unix", "b"], "something is there already"),
    ] {
        let output = serve(&scratch, &[&listen, arguments].concat());
        assert_eq!(output.status, 1, "{output}");
        let first = output.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("error: ") && first.contains(why), "{output}");
        assert!(!first.contains("os error"), "{output}");
        assert!(output.stdout.is_empty(), "{output}");
        let json = serve(&scratch, &[&["--json"][..], &listen, arguments].concat());
        assert!(json.stderr.starts_with("{\"error\":{\"code\":\""), "{json}");
    }
    assert!(scratch.join("b").is_file());
    assert!(!scratch.join("new").exists(), "what was made for nothing is gone again");
}

#[test]
fn a_line_that_cannot_be_understood_is_a_usage_error() {
    let scratch = Scratch::new();
    for arguments in [
        &[][..],
        &["a", "--layout", "raid6"],
        &["a", "--chunk", "1000"],
        &["a", "--allow", "1.2.3.4/24"],
        &["a", "--allow", "here"],
        &["a", "--export", "b"],
        &["a", "--tls", "optional"],
        &["a", "--tls-verify-peer"],
        &["a", "--read-only", "--resizable"],
        &["a", "--read-only", "--size", "1M"],
        &["a", "--size", "much"],
        &["a", "--max-connections", "0"],
        &["a", "--name", &"n".repeat(4097)],
    ] {
        let output = serve(&scratch, arguments);
        assert_eq!(output.status, 2, "{output}");
        assert!(output.stderr.contains("hint: "), "{output}");
    }
}

#[test]
fn what_somebody_else_uses_is_not_served() {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), MIB);
    files::make_sparse(&scratch.join("b"), MIB);
    let server = Server::start(scratch.path(), &["a", "--listen", "127.0.0.1:0"]);
    let output = serve(&scratch, &["a", "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("it is in use by another process"), "{output}");
    let place = server.address().to_string();
    let output = serve(&scratch, &["b", "--listen", &place]);
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("another program listens there"), "{output}");
    assert!(output.stderr.contains("hint: choose another port"), "{output}");
    server.stop();
}

/// Serves until it has printed so many lines, and then ends it in good order.
fn serve_until(scratch: &Scratch, arguments: &[&str], lines: usize) -> Output {
    let mut child = Command::new(binary())
        .arg("serve")
        .args(arguments)
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut stdout = String::new();
    for _ in 0..lines {
        // Nothing more comes when it has ended by itself: what it said tells why.
        let _ = out.read_line(&mut stdout).expect("it prints text");
    }
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it is our child");
    out.read_to_string(&mut stdout).expect("it prints text");
    let output = child.wait_with_output().expect("it ends");
    Output {
        command: "holdfast serve".into(),
        status: output.status.code().unwrap_or(-1),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn what_is_printed_says_what_to_type() {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), MIB);
    let plain = serve_until(&scratch, &["a", "--listen", "127.0.0.1:0", "--name", "disk"], 2);
    assert_eq!(plain.status, 0, "{plain}");
    let lines: Vec<_> = plain.stdout.lines().collect();
    let [serving, here, stopped] = lines[..] else { panic!("{plain}") };
    let (what, uri) = serving.split_once(" at ").expect("it says where");
    assert_eq!(what, "serving 1 MiB of a");
    assert!(uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/disk"), "{plain}");
    assert!(here.contains(&format!("holdfast attach {uri}")), "{plain}");
    assert_eq!(stopped, "stopped: 0 clients, 0 B read, 0 B written");
    assert!(plain.stderr.is_empty(), "{plain}");
    let quiet = serve_until(&scratch, &["-q", "a", "--unix", "s"], 1);
    assert_eq!(quiet.stdout, format!("nbd+unix:///?socket={}\n", scratch.join("s").display()));
}
