//! Many clients, rude clients, and those that are not let in.

use super::{Server, have_libnbd, nbdsh};
use crate::{MIB, SOON};
use holdfast_testkit::{Scratch, files, wait_until};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

fn server(arguments: &[&str]) -> (Scratch, Server) {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), 64 * MIB);
    let server =
        Server::start(scratch.path(), &[&["a", "--listen", "127.0.0.1:0"], arguments].concat());
    (scratch, server)
}

/// How many bytes a new client is told before the connection ends or pauses.
fn greeted(server: &Server) -> bool {
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    match stream.read_exact(&mut [0; 18]) {
        Ok(()) => true,
        Err(why) => {
            assert!(matches!(why.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
            false
        }
    }
}

#[test]
fn only_those_on_the_list_are_let_in() {
    let (_scratch, server) = self::server(&["--allow", "10.0.0.0/8", "--allow", "127.0.0.2"]);
    assert!(!greeted(&server), "not a byte for a stranger");
    if have_libnbd() {
        let script = "
import socket
host, port = sys.argv[1].rsplit(':', 1)
for source, due in (('127.0.0.1', b''), ('127.0.0.2', b'NBDMAGIC'), ('127.0.0.20', b'')):
    s = socket.create_connection((host, int(port)), source_address=(source, 0))
    try:
        found = s.recv(8)
    except ConnectionResetError:
        found = b''
    assert found == due, (source, found)
";
        nbdsh(script, &[&server.address().to_string()]);
    }
    server.stop();
    let (_scratch, server) = self::server(&["--allow", "127.0.0.0/8"]);
    assert!(greeted(&server));
}

#[test]
fn no_more_clients_than_allowed() {
    let (_scratch, server) = server(&["--max-connections", "3"]);
    let connect = || {
        let mut stream = TcpStream::connect(server.address()).expect("it listens");
        stream.read_exact(&mut [0; 18]).expect("it greets");
        stream
    };
    let mut three = [connect(), connect(), connect()];
    assert!(!greeted(&server));
    three[1] = {
        let gone = three[0].try_clone().expect("it is a socket");
        gone.shutdown(std::net::Shutdown::Both).expect("it is connected");
        let mut next = None;
        wait_until(SOON, "a place is free", || {
            let mut stream = TcpStream::connect(server.address()).expect("it listens");
            let in_time = stream.read_exact(&mut [0; 18]).is_ok();
            next = in_time.then_some(stream);
            in_time
        });
        next.expect("it was let in")
    };
}

#[test]
fn hundreds_of_clients_at_once() {
    if !have_libnbd() {
        return;
    }
    let (scratch, server) = server(&[]);
    let script = "
n = 300
hs = []
for i in range(n):
    h = nbd.NBD()
    h.connect_uri(sys.argv[1])
    hs.append(h)
for i, h in enumerate(hs):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i % 256]) * 4096), i * 4096)
for h in hs:
    while h.aio_in_flight():
        h.poll(-1)
hs[7].flush()
for i, h in enumerate(hs):
    j = (i * 7) % n
    assert h.pread(4096, j * 4096) == bytes([j % 256]) * 4096
for h in hs:
    h.shutdown()
";
    nbdsh(script, &[&server.uri()]);
    assert_eq!(server.stop()["clients"], 300);
    for number in 0..300u64 {
        let mark = u8::try_from(number % 256).expect("it is small");
        assert_eq!(files::read(&scratch.join("a"), number * 4096, 4096), [mark; 4096]);
    }
}

/// The resident memory of the server, in bytes.
fn resident(server: &Server) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is told");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("it is told")
        << 10
}

#[test]
fn idle_and_hostile_clients_cost_little_and_stop_nobody() {
    let (_scratch, server) = server(&[]);
    let enter = || {
        let mut stream = TcpStream::connect(server.address()).expect("it listens");
        let mut bytes = vec![0, 0, 0, 3];
        bytes.extend(*b"IHAVEOPT");
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        stream.write_all(&bytes).expect("it listens");
        stream.read_exact(&mut [0; 28]).expect("it lets us in");
        stream
    };
    let before = resident(&server);
    let idle: Vec<_> = (0..500).map(|_| enter()).collect();
    let with_idle = resident(&server);
    println!("500 idle clients take {} KiB", (with_idle - before) >> 10);
    assert!(with_idle - before < 32 << 20, "500 idle clients take {}", with_idle - before);
    let request = |command: u8, len: u32| {
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, command];
        bytes.extend([0; 16]);
        bytes.extend(len.to_be_bytes());
        bytes
    };
    let hostile: Vec<_> = (0..50)
        .map(|number| {
            let mut stream = enter();
            if number % 2 == 0 {
                // Announces much and stalls.
                stream.write_all(&request(1, 32 << 20)).expect("it listens");
                stream.write_all(&[1; 30_000]).expect("it listens");
            } else {
                // Asks for much and reads nothing.
                let many: Vec<u8> = (0..50).flat_map(|_| request(0, 8 << 20)).collect();
                stream.write_all(&many).expect("it listens");
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        let mut stream = enter();
        stream.write_all(&request(0, 65536)).expect("it listens");
        stream.read_exact(&mut vec![0; 16 + 65536]).expect("others are served");
    }
    let grown = resident(&server) - with_idle;
    println!("50 hostile clients take {} MiB", grown >> 20);
    assert!(grown < 512 << 20, "50 hostile clients take {grown}");
    drop((idle, hostile));
    server.stop();
}
