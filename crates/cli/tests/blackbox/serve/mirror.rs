//! Mirrors whose parts fail, and servers that are killed in the middle.

use super::{Server, have, have_libnbd, nbdsh};
use crate::{MIB, SOON, binary};
use holdfast_testkit::{Scratch, files, run, run_ok};
use std::path::Path;
use std::process::Command;

const SIZE: u64 = 8 * MIB;
const MIRROR: [&str; 5] = ["--layout", "mirror", "--listen", "127.0.0.1:0", "a"];

/// Two sparse parts on a filesystem with extended attributes; `None` where there is none.
fn parts() -> Option<Scratch> {
    let scratch = Scratch::on_disk();
    for part in ["a", "b"] {
        files::make_sparse(&scratch.join(part), SIZE);
    }
    let probe = scratch.join("a");
    let probe = probe.to_str().expect("it is text");
    let set = "import os, sys; os.setxattr(sys.argv[1], 'user.x', b'y')";
    let set = run(Command::new("/usr/bin/python3").args(["-c", set, probe]));
    if set.status != 0 {
        println!("skipped: there are no extended attributes here");
    }
    (set.status == 0 && have_libnbd()).then_some(scratch)
}

fn start(scratch: &Scratch, parts: &[&str]) -> Server {
    Server::start(scratch.path(), &[&MIRROR[..4], parts].concat())
}

/// Writes a mark to each of these MiB.
fn write(server: &Server, mark: &str, places: &[&str]) {
    let script = "
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for place in sys.argv[3:]:
    h.pwrite(sys.argv[2].encode() * 4096, int(place) << 20)
h.flush()
h.shutdown()
";
    nbdsh(script, &[&[&*server.uri(), mark], places].concat());
}

/// The first byte of each MiB, as a client reads it.
fn marks(server: &Server) -> String {
    let script = "
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print(''.join(chr(h.pread(1, i << 20)[0] or 46) for i in range(8)))
h.shutdown()
";
    nbdsh(script, &[&server.uri()]).trim().to_owned()
}

#[test]
fn the_parts_are_equal_and_stay_so() {
    let Some(scratch) = parts() else { return };
    let server = start(&scratch, &["a", "b"]);
    write(&server, "x", &["0", "3", "7"]);
    server.event("part_filled");
    server.stop();
    files::assert_equal(&scratch.join("a"), &scratch.join("b"), SIZE);
    // After a good end nothing has to be compared: the next event is the end.
    let server = start(&scratch, &["b", "a"]);
    assert_eq!(marks(&server), "x..x...x");
    let pid = server.pid();
    let told = server.stop();
    assert_eq!(told["event"], "stopped", "{pid}");
}

#[test]
fn a_part_that_was_lost_is_never_read_and_is_filled_again() {
    let Some(scratch) = parts() else { return };
    let server = start(&scratch, &["a", "b"]);
    server.event("part_filled");
    write(&server, "1", &["0", "1"]);
    // The first part is the one that is read: cut short, it cannot give what was there.
    files::make_sparse(&scratch.join("a"), 4096);
    assert_eq!(marks(&server), "11......");
    let lost = server.event("part_lost");
    assert!(lost["part"].as_str().is_some_and(|part| part.ends_with('a')), "{lost}");
    files::make_sparse(&scratch.join("a"), SIZE);
    write(&server, "2", &["0", "5"]);
    assert_eq!(marks(&server), "21...2..");
    server.stop();
    assert_eq!(files::read(&scratch.join("a"), 0, 1), b"1", "it is left alone");
    // However it is named, and when the server was killed, too: nothing stale is read.
    let server = start(&scratch, &["a", "b"]);
    assert_eq!(marks(&server), "21...2..");
    write(&server, "3", &["6"]);
    server.event("part_filled");
    assert_eq!(marks(&server), "21...23.");
    server.stop();
    files::assert_equal(&scratch.join("a"), &scratch.join("b"), SIZE);
}

#[test]
fn one_that_missed_something_is_known_after_a_crash() {
    let Some(scratch) = parts() else { return };
    let server = start(&scratch, &["a", "b"]);
    server.event("part_filled");
    write(&server, "1", &["0"]);
    files::make_sparse(&scratch.join("a"), 4096);
    marks(&server);
    server.event("part_lost");
    files::make_sparse(&scratch.join("a"), SIZE);
    write(&server, "2", &["0"]);
    server.kill();
    let server = start(&scratch, &["a", "b"]);
    assert_eq!(marks(&server), "2.......");
    server.event("part_filled");
    server.stop();
    files::assert_equal(&scratch.join("a"), &scratch.join("b"), SIZE);
}

#[test]
fn after_a_crash_in_the_middle_of_writes_the_parts_are_made_equal() {
    let Some(scratch) = parts() else { return };
    if !have(&["fio"]) {
        return;
    }
    let server = start(&scratch, &["a", "b"]);
    server.event("part_filled");
    let mut fio = Command::new("fio")
        .current_dir(scratch.path())
        .args(["--name=w", "--ioengine=nbd", "--rw=randwrite", "--bs=16k", "--size=8M"])
        .args(["--iodepth=32", "--time_based", "--runtime=60"])
        .arg(format!("--uri={}", server.uri()))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    holdfast_testkit::wait_until(SOON, "something is written", || {
        files::first_difference(&scratch.join("a"), Path::new("/dev/zero"), MIB).is_some()
    });
    server.kill();
    fio.wait().expect("it notices");
    // What is in one of them only may be of a write that nobody was told of.
    let server = start(&scratch, &["a", "b"]);
    server.event("part_filled");
    server.stop();
    files::assert_equal(&scratch.join("a"), &scratch.join("b"), SIZE);
}

#[test]
fn a_part_that_was_written_alone_is_the_newer_one() {
    let Some(scratch) = parts() else { return };
    let server = start(&scratch, &["a", "b"]);
    server.event("part_filled");
    write(&server, "1", &["0"]);
    server.stop();
    let server = start(&scratch, &["b"]);
    write(&server, "2", &["1"]);
    server.stop();
    let server = start(&scratch, &["a", "b"]);
    assert_eq!(marks(&server), "12......");
    server.event("part_filled");
    server.stop();
    files::assert_equal(&scratch.join("a"), &scratch.join("b"), SIZE);
}

#[test]
fn strangers_are_not_overwritten() {
    let Some(scratch) = parts() else { return };
    let server = start(&scratch, &["a", "b"]);
    server.event("part_filled");
    server.stop();
    for part in ["c", "d"] {
        files::make_random(&scratch.join(part), SIZE, 8);
    }
    let server = start(&scratch, &["c", "d"]);
    server.event("part_filled");
    server.stop();
    let before = files::read(&scratch.join("c"), 0, 4096);
    for (parts, why) in [(["a", "c"], "another mirror"), (["new", "c"], "is new")] {
        files::make_sparse(&scratch.join("new"), SIZE);
        let output = run(Command::new(binary())
            .current_dir(scratch.path())
            .args(["serve", "--listen", "127.0.0.1:0", "--layout", "mirror"])
            .args(parts));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains(why) && output.stderr.contains("hint: "), "{output}");
    }
    assert!(files::read(&scratch.join("c"), 0, 4096) == before);
    // A new one behind a known one is filled.
    let server = start(&scratch, &["c", "new"]);
    server.event("part_filled");
    server.stop();
    files::assert_equal(&scratch.join("c"), &scratch.join("new"), SIZE);
}

/// A part on a filesystem that is full: a write fails there, and only there.
#[test]
fn a_part_that_cannot_be_written_is_dropped() {
    if !have(&["unshare", "mount"]) || !have_libnbd() {
        return;
    }
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.join("small")).expect("it can be made");
    let mount = "mount -t tmpfs -o size=2M none small";
    if run(Command::new("unshare").current_dir(scratch.path()).args(["-rm", "sh", "-c", mount]))
        .status
        != 0
    {
        return println!("skipped: there are no namespaces for us");
    }
    files::make_sparse(&scratch.join("a"), SIZE);
    let script = format!(
        "{mount} && truncate -s {SIZE} small/b && exec \"$0\" serve --json --layout mirror \
         --unix socket small/b a"
    );
    let mut command = Command::new("unshare");
    command.current_dir(scratch.path()).args(["-rm", "sh", "-c", &script, &binary()]);
    let server = Server::of(&mut command);
    let uri = format!("nbd+unix:///?socket={}", scratch.join("socket").display());
    let script = "
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(8):
    h.pwrite(bytes([65 + i]) * (1 << 20), i << 20)
    h.flush()
for i in range(8):
    assert h.pread(1 << 20, i << 20) == bytes([65 + i]) * (1 << 20), i
h.shutdown()
";
    nbdsh(script, &[&uri]);
    let lost = server.event("part_lost");
    assert!(lost["part"].as_str().is_some_and(|part| part.ends_with("small/b")), "{lost}");
    assert_eq!(lost["parts_left"], 1);
    server.stop();
    for mib in 0..8u8 {
        assert!(files::read(&scratch.join("a"), u64::from(mib) * MIB, 4096) == [65 + mib; 4096]);
    }
    run_ok(&mut Command::new("true"));
}
