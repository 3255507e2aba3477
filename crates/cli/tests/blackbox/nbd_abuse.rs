//! Bytes that no good client sends, to `serve` and to a daemon: the classes of input that have
//! brought down NBD servers. After each of them the server still serves.

use crate::serve::Server;
use crate::{MIB, SOON, cluster};
use holdfast_nbd::codec::consts::{OPTION_MAGIC, command_flag, option, option_reply};
use holdfast_nbd::codec::{
    InfoRequest, MetaRequest, OptionReplyHeader, ReplyHeader, ReplyStyle, RequestHeader,
    option_request,
};
use holdfast_nbd::{Client, Command};
use holdfast_testkit::{Cluster, Scratch, files};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A server with one export of 16 GiB.
struct Target {
    socket: PathBuf,
    export: &'static str,
    pid: u32,
    _keep: Keep,
}

enum Keep {
    Serve(#[expect(dead_code, reason = "it ends with the test")] (Server, Scratch)),
    Daemon(#[expect(dead_code, reason = "it ends with the test")] Cluster),
}

const SIZE: u64 = 16 << 30;

/// `serve`, and a daemon.
fn targets() -> [Target; 2] {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), SIZE);
    let server = Server::start(scratch.path(), &["a", "--name", "disk", "--unix", "socket"]);
    let serve = Target {
        socket: scratch.join("socket"),
        export: "disk",
        pid: server.pid(),
        _keep: Keep::Serve((server, scratch)),
    };
    let cluster = cluster(1);
    cluster.create("disk", SIZE, &[]);
    let daemon = Target {
        socket: cluster[0].dir().join("run/nbd.sock"),
        export: "disk",
        pid: cluster[0].pid(),
        _keep: Keep::Daemon(cluster),
    };
    [serve, daemon]
}

impl Target {
    /// A connection after the greetings.
    fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("a socket takes a limit");
        stream.read_exact(&mut [0; 18]).expect("it greets");
        stream.write_all(&3u32.to_be_bytes()).expect("it listens");
        stream
    }

    /// A good client is served.
    fn is_well(&self, after: &str) {
        let mut client = Client::connect_unix(&self.socket, self.export)
            .unwrap_or_else(|error| panic!("after {after}: {error}"));
        client.write_at(&[9; 5000], 7 * MIB + 1).expect("it is written");
        let mut found = [0; 5000];
        client.read_at(&mut found, 7 * MIB + 1).expect("it is read");
        assert_eq!(found, [9; 5000], "after {after}");
    }

    /// A connection in the export, with structured replies and `base:allocation`.
    fn enter(&self) -> UnixStream {
        let mut stream = self.connect();
        let meta = MetaRequest {
            name: self.export.to_owned(),
            queries: vec![b"base:allocation".to_vec()],
        };
        for (code, data) in [
            (option::STRUCTURED_REPLY, Vec::new()),
            (option::SET_META_CONTEXT, meta.encode()),
            (option::GO, go(self.export)),
        ] {
            let kinds = ask(&mut stream, code, &data);
            assert_eq!(kinds.last(), Some(&option_reply::ACK), "option {code}");
        }
        stream
    }
}

fn go(export: &str) -> Vec<u8> {
    InfoRequest { name: export.to_owned(), kinds: Vec::new() }.encode()
}

/// Sends an option; the kinds of all replies to it.
fn ask(stream: &mut UnixStream, code: u32, data: &[u8]) -> Vec<u32> {
    let mut bytes = Vec::new();
    option_request(&mut bytes, code, data);
    stream.write_all(&bytes).expect("it listens");
    let mut kinds = Vec::new();
    loop {
        let mut head = [0; OptionReplyHeader::LEN];
        stream.read_exact(&mut head).expect("it answers");
        let head = OptionReplyHeader::parse(&head).expect("the answer is well-formed");
        assert_eq!(head.option, code);
        assert!(head.len < 5000, "a text of {} bytes", head.len);
        stream.read_exact(&mut vec![0; head.len as usize]).expect("it is complete");
        kinds.push(head.kind);
        if head.kind == option_reply::ACK || head.kind & option_reply::ERROR != 0 {
            return kinds;
        }
    }
}

fn request(command: Command, flags: u16, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    RequestHeader { flags, command: command.number(), cookie: 1, offset, len }
        .encode(ReplyStyle::Structured, &mut bytes);
    bytes
}

/// The error number of a reply, or 0; what it holds is skipped.
fn outcome(stream: &mut UnixStream) -> u32 {
    let mut error = 0;
    loop {
        let mut magic = [0; 4];
        stream.read_exact(&mut magic).expect("it answers");
        let len = ReplyHeader::rest_len(ReplyStyle::Structured, magic).expect("it is a reply");
        let mut rest = vec![0; len];
        stream.read_exact(&mut rest).expect("it is complete");
        match ReplyHeader::parse(magic, &rest).expect("it is a reply") {
            ReplyHeader::Simple { error, .. } => return error,
            ReplyHeader::Chunk { kind, done, len, .. } => {
                let mut payload = vec![0; usize::try_from(len).expect("it is short")];
                stream.read_exact(&mut payload).expect("it is complete");
                if kind & 0x8000 != 0 {
                    error = u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]]);
                }
                if done {
                    return error;
                }
            }
        }
    }
}

/// Reads until the server closes it.
fn ends(mut stream: UnixStream, what: &str) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_client_that_hangs_up_at_any_byte_harms_nobody() {
    for target in targets() {
        let mut whole = 3u32.to_be_bytes().to_vec();
        option_request(&mut whole, option::STRUCTURED_REPLY, &[]);
        option_request(&mut whole, option::GO, &go("nobody"));
        option_request(&mut whole, option::GO, &go(target.export));
        whole.extend(request(Command::Write, 0, 0, 512));
        for end in 0..whole.len() {
            let mut stream = UnixStream::connect(&target.socket).expect("it listens");
            stream.write_all(&whole[..end]).expect("it listens");
            match end % 3 {
                0 => {}
                1 => stream.shutdown(Shutdown::Write).expect("it is connected"),
                _ => stream.read_exact(&mut [0; 10]).expect("it greets"),
            }
        }
        target.is_well("hanging up");
    }
}

#[test]
fn names_and_options_whose_lengths_lie_are_refused_in_step() {
    for target in targets() {
        let mut stream = target.connect();
        // (name length, what follows): the length of the name is not that of the option.
        let lie = |len: u32, data: &[u8]| [&len.to_be_bytes(), data].concat();
        let long = vec![b'n'; 5000];
        let count = [&3u32.to_be_bytes()[..], b"abc", &[0xff, 0xff]].concat();
        for (code, data) in [
            (option::GO, lie(u32::MAX, b"disk\0\0")),
            (option::INFO, lie(u32::MAX - 1, b"disk\0\0")),
            (option::GO, lie(1 << 31, &[])),
            (option::GO, Vec::new()),
            (option::INFO, vec![0; 3]),
            (option::GO, go(&"n".repeat(257))),
            (option::INFO, go(&"n".repeat(4096))),
            (option::GO, lie(5000, &[&long[..], &[0, 0]].concat())),
            (option::GO, count),
            (option::STARTTLS, vec![0; 7]),
            (option::LIST, vec![1]),
            (option::STRUCTURED_REPLY, vec![1]),
            (option::SET_META_CONTEXT, lie(u32::MAX, b"")),
            (option::LIST_META_CONTEXT, lie(4, b"disk\xff\xff\xff\xff")),
            (0x7fff_fff0, vec![0; 4000]),
        ] {
            let kinds = ask(&mut stream, code, &data);
            assert!(kinds[0] & option_reply::ERROR != 0, "option {code}, {} bytes", data.len());
        }
        assert_eq!(ask(&mut stream, option::GO, &go(target.export)).last(), Some(&1));
        target.is_well("lengths that lie");
    }
}

#[test]
fn options_of_4_gib_and_without_end_do_not_keep_it_busy() {
    for target in targets() {
        let mut stream = target.connect();
        let mut head = OPTION_MAGIC.to_be_bytes().to_vec();
        head.extend([option::INFO.to_be_bytes(), u32::MAX.to_be_bytes()].concat());
        stream.write_all(&head).expect("it listens");
        let piece = vec![0; 64 << 10];
        let mut sent = 0u64;
        while stream.write_all(&piece).is_ok() {
            sent += piece.len() as u64;
            assert!(sent < 64 << 20, "it reads on and on");
        }
        let mut stream = target.connect();
        let mut many = Vec::new();
        (0..3000).for_each(|_| option_request(&mut many, 0x7fff_fff1, &[0; 1000]));
        let mut rounds = 0;
        stream.set_nonblocking(true).expect("it is a socket");
        let began = std::time::Instant::now();
        loop {
            let _ = stream.read(&mut vec![0; 64 << 10]);
            match stream.write(&many) {
                Ok(_) => rounds += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            assert!(began.elapsed() < SOON && rounds < 100_000, "it goes on and on");
        }
        target.is_well("endless options");
    }
}

#[test]
fn options_in_an_unusual_order_are_no_matter() {
    for target in targets() {
        let mut stream = target.connect();
        let meta = |queries: &[&str]| {
            let queries = queries.iter().map(|query| query.as_bytes().to_vec()).collect();
            MetaRequest { name: target.export.to_owned(), queries }.encode()
        };
        for (code, data) in [
            (option::INFO, go(target.export)),
            (option::INFO, go(target.export)),
            (option::SET_META_CONTEXT, meta(&["base:allocation"])),
            (option::STRUCTURED_REPLY, Vec::new()),
            (option::SET_META_CONTEXT, meta(&["base:allocation"])),
            (option::INFO, go("nobody")),
            (option::STRUCTURED_REPLY, Vec::new()),
            (option::SET_META_CONTEXT, meta(&[])),
            (option::LIST, Vec::new()),
            (option::EXTENDED_HEADERS, Vec::new()),
            (option::INFO, go(target.export)),
            (option::LIST_META_CONTEXT, meta(&[])),
            (option::SET_META_CONTEXT, meta(&["base:", "x-holdfast:", "qemu:dirty-bitmap:x"])),
        ] {
            ask(&mut stream, code, &data);
        }
        assert_eq!(ask(&mut stream, option::GO, &go(target.export)).last(), Some(&1));
        target.is_well("an unusual order");
    }
}

#[test]
fn requests_that_cannot_be_are_refused_or_end_the_connection() {
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    for target in targets() {
        let mut stream = target.enter();
        let huge = u64::from(u32::MAX);
        for (command, flags, offset, len, due) in [
            (Command::Read, 0, 0, huge, EINVAL),
            (Command::Read, 0, SIZE - 1, 2, EINVAL),
            (Command::Read, 0, u64::MAX - 1, 512, EINVAL),
            (Command::Trim, 0, SIZE, 1, EINVAL),
            (Command::Trim, 0, u64::MAX, huge, EINVAL),
            (Command::WriteZeroes, 0, SIZE - 512, 1024, ENOSPC),
            (Command::Cache, 0, u64::MAX - 5, 10, EINVAL),
            (Command::BlockStatus, 0, 0, 0, EINVAL),
            (Command::BlockStatus, 0, SIZE, 1, EINVAL),
            (Command::Flush, 1 << 15, 0, 0, EINVAL),
            (Command::Read, command_flag::FAST_ZERO, 0, 512, EINVAL),
        ] {
            stream.write_all(&request(command, flags, offset, len)).expect("it listens");
            let found = outcome(&mut stream);
            assert_eq!(found, due, "{command:?} {offset} {len}");
        }
        // A write of 4 GiB is not waited for.
        let mut other = target.enter();
        other.write_all(&request(Command::Write, 0, 0, huge)).expect("it listens");
        ends(other, "a write of 4 GiB");
        let mut other = target.enter();
        other.write_all(&[0x5a; 28]).expect("it listens");
        ends(other, "a wrong magic");
        stream.write_all(&request(Command::Read, 0, 0, 512)).expect("it listens");
        assert_eq!(outcome(&mut stream), 0);
        target.is_well("requests that cannot be");
    }
}

/// One extent is larger than 32 bits can say, and ranges end where 32 bits do.
#[test]
fn block_status_at_the_edge_of_32_bits_is_answered() {
    for target in targets() {
        let mut stream = target.enter();
        for flags in [0, command_flag::REQ_ONE] {
            for (offset, len) in [
                (0, u64::from(u32::MAX)),
                (1, u64::from(u32::MAX)),
                (5, (1 << 32) - 512),
                ((1 << 32) - 1, 3),
                ((1 << 32) - 511, (1 << 32) - 1),
                (SIZE - 1, 1),
                (SIZE - u64::from(u32::MAX), u64::from(u32::MAX)),
            ] {
                let command = request(Command::BlockStatus, flags, offset, len);
                stream.write_all(&command).expect("it listens");
                assert_eq!(outcome(&mut stream), 0, "{offset} {len}");
            }
        }
        target.is_well("block status");
    }
}

#[test]
fn clients_that_vanish_with_answers_under_way_harm_nobody() {
    for target in targets() {
        for round in 0..60 {
            let mut stream = target.enter();
            let mut many = Vec::new();
            for number in 0..40 {
                let offset = number * 4 * MIB;
                many.extend(request(Command::Read, 0, offset, 256 << 10));
                many.extend(request(Command::Write, 0, offset, 4096));
                many.extend([7; 4096]);
            }
            let cut = many.len() - 97 * round;
            stream.write_all(&many[..cut]).expect("it listens");
            if round % 2 == 0 {
                stream.shutdown(Shutdown::Read).expect("it is connected");
            }
        }
        target.is_well("vanishing");
    }
}

#[test]
fn signals_at_any_moment_are_survived() {
    for target in targets() {
        let pid = i32::try_from(target.pid).ok().and_then(Pid::from_raw).expect("it is a process");
        let mut stream = target.enter();
        for round in 0..400 {
            for signal in [Signal::CHILD, Signal::PIPE, Signal::CONT, Signal::WINCH, Signal::URG] {
                kill_process(pid, signal).expect("it is our child");
            }
            stream.write_all(&request(Command::Read, 0, round * 512, 512)).expect("it listens");
            assert_eq!(outcome(&mut stream), 0);
        }
        target.is_well("signals");
    }
}

#[test]
fn without_descriptors_it_waits_until_there_are_some() {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), SIZE);
    let mut command = std::process::Command::new("sh");
    let serve = format!("ulimit -n 40; exec {} serve --json a --unix socket", crate::binary());
    command.args(["-c", &serve]).current_dir(scratch.path());
    let server = Server::of(&mut command);
    let socket = scratch.join("socket");
    // More than there are descriptors, and fewer than the backlog of the socket.
    let crowd: Vec<_> =
        (0..100).map(|_| UnixStream::connect(&socket).expect("it listens")).collect();
    drop(crowd);
    let target =
        Target { socket, export: "", pid: server.pid(), _keep: Keep::Serve((server, scratch)) };
    target.is_well("a crowd");
}
