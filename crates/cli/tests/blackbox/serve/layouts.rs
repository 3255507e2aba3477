//! Where the bytes go.

use super::{Server, have, have_libnbd, nbdsh};
use crate::MIB;
use holdfast_nbd::codec::consts::{flag, option};
use holdfast_nbd::codec::{ReplyStyle, RequestHeader, SIMPLE_REPLY_LEN, option_request};
use holdfast_testkit::{Scratch, files, run, run_ok};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

#[test]
fn one_after_the_other() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let scratch = Scratch::new();
    let lens = [MIB, 4097, 3 * MIB + 1];
    for (name, len) in ["a", "b", "c"].iter().zip(lens) {
        files::make_sparse(&scratch.join(name), len);
    }
    let server = Server::start(scratch.path(), &[&["a", "b", "c"], &LISTEN[..]].concat());
    let total = lens.iter().sum();
    let image = scratch.join("image");
    files::make_random(&image, total, 3);
    run_ok(Command::new("nbdcopy").arg(&image).arg(server.uri()));
    server.stop();
    let joined: Vec<u8> = ["a", "b", "c"]
        .iter()
        .flat_map(|name| std::fs::read(scratch.join(name)).expect("it is there"))
        .collect();
    assert!(joined == std::fs::read(&image).expect("it is there"));
}

#[test]
fn in_turns() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let scratch = Scratch::new();
    for name in ["a", "b", "c"] {
        files::make_sparse(&scratch.join(name), MIB + 5);
    }
    let stripe = ["a", "b", "c", "--layout", "stripe", "--chunk", "16K"];
    let server = Server::start(scratch.path(), &[&stripe, &LISTEN[..]].concat());
    assert_eq!(server.ready["exports"][0]["size_bytes"], 3 * MIB);
    let image = scratch.join("image");
    files::make_random(&image, 3 * MIB, 4);
    run_ok(Command::new("nbdcopy").arg(&image).arg(server.uri()));
    let back = scratch.join("back");
    run_ok(Command::new("nbdcopy").arg(server.uri()).arg(&back));
    files::assert_equal(&image, &back, 3 * MIB);
    server.stop();
    let content = std::fs::read(&image).expect("it is there");
    for (number, chunk) in content.chunks(16 << 10).enumerate() {
        let (part, at) = (["a", "b", "c"][number % 3], (number / 3) << 14);
        assert!(files::read(&scratch.join(part), at as u64, 16 << 10) == chunk, "chunk {number}");
    }
}

#[test]
fn what_is_read_only_is_not_written_and_can_be_served_twice() {
    if !have_libnbd() {
        return;
    }
    let scratch = Scratch::new();
    files::make_random(&scratch.join("a"), MIB, 5);
    let before =
        std::fs::metadata(scratch.join("a")).and_then(|m| m.modified()).expect("it is there");
    let arguments = [&["a", "--read-only"], &LISTEN[..]].concat();
    let servers =
        [Server::start(scratch.path(), &arguments), Server::start(scratch.path(), &arguments)];
    let script = "
for uri in sys.argv[1:]:
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_uri(uri)
    assert h.is_read_only()
    for bad in (lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
        try:
            bad()
            raise SystemExit('it was written')
        except nbd.Error as e:
            assert e.errno == 'EPERM', e
    h.pread(1 << 20, 0)
    h.shutdown()
";
    nbdsh(script, &[&servers[0].uri(), &servers[1].uri()]);
    servers.into_iter().for_each(|server| drop(server.stop()));
    let after =
        std::fs::metadata(scratch.join("a")).and_then(|m| m.modified()).expect("it is there");
    assert_eq!(before, after);
}

/// A connection in transmission, made by hand.
fn enter(server: &Server) -> (TcpStream, u64, u16) {
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("it greets");
    let mut bytes = 3u32.to_be_bytes().to_vec();
    option_request(&mut bytes, option::EXPORT_NAME, b"");
    stream.write_all(&bytes).expect("it listens");
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).expect("there is a default export");
    let (size, flags) = answer.split_first_chunk().expect("it is long enough");
    (stream, u64::from_be_bytes(*size), u16::from_be_bytes([flags[0], flags[1]]))
}

/// Sends one request; the error number of the reply.
fn ask(stream: &mut TcpStream, command: u16, offset: u64, len: u64, payload: &[u8]) -> u32 {
    let mut bytes = Vec::new();
    RequestHeader { flags: 0, command, cookie: 7, offset, len }
        .encode(ReplyStyle::Simple, &mut bytes);
    bytes.extend(payload);
    stream.write_all(&bytes).expect("it listens");
    let mut reply = [0; SIMPLE_REPLY_LEN];
    stream.read_exact(&mut reply).expect("it answers");
    u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]])
}

const WRITE: u16 = 1;
const RESIZE: u16 = 8;

#[test]
fn clients_may_make_it_larger_where_they_may() {
    let scratch = Scratch::new();
    for (arguments, parts) in [
        (&["a", "--resizable"][..], &[("a", 5 * MIB)][..]),
        (&["a", "b", "--resizable"], &[("a", MIB), ("b", 4 * MIB)]),
        (
            &["a", "b", "--resizable", "--layout", "stripe"],
            &[("a", 2 * MIB + (1 << 19)), ("b", 2 * MIB + (1 << 19))],
        ),
        (&["a", "b", "--resizable", "--layout", "mirror"], &[("a", 5 * MIB), ("b", 5 * MIB)]),
    ] {
        for name in ["a", "b"] {
            // A new file: one that knows its mirror is none of another layout.
            let _ = std::fs::remove_file(scratch.join(name));
            files::make_sparse(&scratch.join(name), MIB);
        }
        let server = Server::start(scratch.path(), &[arguments, &LISTEN].concat());
        let (mut one, size, flags) = enter(&server);
        let (mut other, _, _) = enter(&server);
        assert_ne!(flags & flag::SEND_RESIZE, 0);
        assert_ne!(ask(&mut other, WRITE, 5 * MIB - 3, 3, b"end"), 0, "beyond the end");
        assert_eq!(ask(&mut one, RESIZE, size - 1, 0, &[]), 1, "it never shrinks");
        assert_eq!(ask(&mut one, RESIZE, u64::MAX, 0, &[]), 28);
        assert_eq!(ask(&mut one, RESIZE, 5 * MIB, 0, &[]), 0);
        assert_eq!(ask(&mut other, WRITE, 5 * MIB - 3, 3, b"end"), 0, "others use it at once");
        assert_eq!(enter(&server).1, 5 * MIB);
        server.stop();
        for (name, len) in parts {
            assert_eq!(std::fs::metadata(scratch.join(name)).expect("it is there").len(), *len);
        }
    }
}

#[test]
fn nobody_else_may_and_growth_from_outside_is_seen() {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), MIB);
    let server = Server::start(scratch.path(), &[&["a"], &LISTEN[..]].concat());
    let (mut client, size, flags) = enter(&server);
    assert_eq!((size, flags & flag::SEND_RESIZE), (MIB, 0));
    assert_eq!(ask(&mut client, RESIZE, 5 * MIB, 0, &[]), 22);
    assert_eq!(ask(&mut client, WRITE, 2 * MIB, 3, b"abc"), 28);
    files::make_sparse(&scratch.join("a"), 3 * MIB);
    assert_eq!(ask(&mut client, WRITE, 2 * MIB, 3, b"abc"), 0);
    assert_eq!(enter(&server).1, 3 * MIB);
    assert_eq!(files::read(&scratch.join("a"), 2 * MIB, 3), b"abc");
}

#[test]
fn a_block_device_is_served_as_it_is() {
    if !have(&["losetup", "nbdinfo", "nbdcopy"]) {
        return;
    }
    let scratch = Scratch::on_disk();
    let (file, image) = (scratch.join("file"), scratch.join("image"));
    files::make_sparse(&file, 8 * MIB);
    files::make_random(&image, 8 * MIB, 6);
    let made = run(Command::new("losetup").args(["--find", "--show"]).arg(&file));
    if made.status != 0 {
        return println!("skipped: there are no loop devices for us");
    }
    let device = made.stdout.trim();
    let server = Server::start(scratch.path(), &[&[device], &LISTEN[..]].concat());
    run_ok(Command::new("nbdcopy").args(["--flush"]).arg(&image).arg(server.uri()));
    let back = scratch.join("back");
    run_ok(Command::new("nbdcopy").arg(server.uri()).arg(&back));
    files::assert_equal(&image, &back, 8 * MIB);
    server.stop();
    run_ok(Command::new("losetup").args(["-d", device]));
    files::assert_equal(&image, &file, 8 * MIB);
}

#[test]
fn files_that_are_not_there_are_made_where_a_size_is_given() {
    let scratch = Scratch::new();
    let arguments = ["x", "y", "--layout", "stripe", "--size", "3M", "--listen", "127.0.0.1:0"];
    for _ in 0..2 {
        let server = Server::start(scratch.path(), &arguments);
        assert_eq!(server.ready["exports"][0]["size_bytes"], 6 * MIB);
        server.stop();
    }
    for name in ["x", "y"] {
        assert_eq!(scratch.join(name).metadata().expect("it was made").len(), 3 * MIB);
    }
}

const HUGE: &str = r#"
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
end = h.get_size()
assert end == 1 << 62
h.pwrite(b"x" * 4096, end - 4096)
assert h.pread(8192, end - 8192) == bytes(4096) + b"x" * 4096
h.zero(1 << 31, end - (1 << 32))
h.trim(4096, end - 4096)
seen = []
h.block_status((1 << 32) - 1, 0, lambda name, offset, entries, error: seen.extend(entries) and 0)
assert sum(seen[0::2]) >= 65536 and seen[1] == 3, seen
h.flush()
h.shutdown()
"#;

#[test]
fn offsets_have_64_bits() {
    if !have_libnbd() {
        return;
    }
    let scratch = Scratch::new();
    let made = std::fs::File::create(scratch.join("huge")).and_then(|file| file.set_len(1 << 62));
    if let Err(why) = made {
        return println!("skipped: files cannot be so large here: {why}");
    }
    let server = Server::start(scratch.path(), &["huge", "--unix", "s", "--track-changes"]);
    nbdsh(HUGE, &[&server.uri()]);
    server.stop();
}

#[test]
fn it_listens_at_ipv6_too() {
    if !have(&["nbdinfo"]) {
        return;
    }
    if let Err(why) = std::net::TcpListener::bind("[::1]:0") {
        return println!("skipped: there is no IPv6 here: {why}");
    }
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), MIB);
    let arguments = ["a", "--listen", "[::1]:0", "--allow", "::1", "--direct", "never"];
    let server = Server::start(scratch.path(), &arguments);
    assert!(server.uri().starts_with("nbd://[::1]:"), "{}", server.uri());
    assert_eq!(run_ok(Command::new("nbdinfo").args(["--size", &server.uri()])).trim(), "1048576");
}
