//! How a server ends, and what is left then.

use super::{Server, have_libnbd, nbdsh};
use crate::{MIB, SOON};
use holdfast_testkit::{Scratch, files, wait_until};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

const TCP: [&str; 3] = ["a", "--listen", "127.0.0.1:0"];

fn disk() -> Scratch {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), 16 * MIB);
    scratch
}

#[test]
fn it_ends_while_clients_are_in_every_state() {
    let scratch = disk();
    let mut server = Server::start(scratch.path(), &[&TCP[..], &["--unix", "socket"]].concat());
    let silent: Vec<_> = (0..25).map(|_| connect(&server)).collect();
    let half: Vec<_> = (0..25)
        .map(|_| {
            let mut stream = connect(&server);
            stream.write_all(&[0, 0, 0, 3, b'I', b'H']).expect("it listens");
            stream
        })
        .collect();
    let busy: Vec<_> = (0..10).map(|_| writer(&server)).collect();
    let begin = Instant::now();
    server.signal(Signal::TERM);
    let output = server.wait();
    assert_eq!(output.status, 0, "{output}");
    // Those that have begun something have 5 seconds for it; nobody is waited for much longer.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    assert!(!scratch.join("socket").exists());
    server.event("stopped");
    drop((silent, half, busy));
}

#[test]
fn every_signal_that_asks_for_an_end_is_heeded() {
    let scratch = disk();
    for signal in [Signal::INT, Signal::HUP] {
        let mut server = Server::start(scratch.path(), &TCP);
        server.signal(signal);
        assert_eq!(server.wait().status, 0);
        server.event("stopped");
    }
    // One that is to outlive its terminal does.
    let mut command = Command::new("nohup");
    command.arg(crate::binary()).args(["serve", "--json"]).args(TCP).current_dir(scratch.path());
    let server = Server::of(&mut command);
    server.signal(Signal::HUP);
    // None of these would get in if it were about to end.
    (0..50).for_each(|_| drop(connect(&server)));
    server.stop();
}

fn connect(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).expect("it listens");
    stream.read_exact(&mut [0; 18]).expect("it greets");
    stream
}

/// A client that has sent half of a write.
fn writer(server: &Server) -> TcpStream {
    let mut stream = connect(server);
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(*b"IHAVEOPT");
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    // A write of 1 MiB.
    bytes.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
    bytes.extend([0; 16]);
    bytes.extend([0, 0x10, 0, 0]);
    bytes.extend([5; 100_000]);
    stream.write_all(&bytes).expect("it listens");
    stream
}

/// Waits until the server has read all that was sent to it, so that a write that was begun is known to it.
#[track_caller]
fn wait_taken(stream: &TcpStream) {
    let port = |address: std::io::Result<SocketAddr>| {
        format!(":{:04X}", address.expect("it is connected").port())
    };
    let (here, there) = (port(stream.local_addr()), port(stream.peer_addr()));
    wait_until(SOON, "the server has read what was sent", || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("there is such a table");
        // `NUMBER: LOCAL REMOTE STATE UNSENT:UNREAD ...`
        let queues = |local: &str, remote: &str| -> Option<(String, String)> {
            let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let mut rows = rows.filter(|row| row.len() > 4);
            let row = rows.find(|row| row[1].ends_with(local) && row[2].ends_with(remote))?;
            let (unsent, unread) = row[4].split_once(':')?;
            Some((unsent.to_owned(), unread.to_owned()))
        };
        let unsent = queues(&here, &there).map(|(unsent, _)| unsent);
        let unread = queues(&there, &here).map(|(_, unread)| unread);
        unsent.as_deref() == Some("00000000") && unread.as_deref() == Some("00000000")
    });
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    if !have_libnbd() {
        return;
    }
    let scratch = disk();
    let server = Server::start(scratch.path(), &TCP);
    let script = "
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(16):
    h.pwrite(bytes([i + 1]) * (1 << 20), i << 20)
os._exit(0)
";
    nbdsh(script, &[&server.uri()]);
    server.kill();
    for mib in 0..16u8 {
        assert_eq!(files::read(&scratch.join("a"), (u64::from(mib) << 20) + 99, 1), [mib + 1]);
    }
}

#[test]
fn it_ends_with_the_last_client_where_that_is_asked_for() {
    if !have_libnbd() {
        return;
    }
    let scratch = disk();
    let mut server = Server::start(scratch.path(), &["a", "--unix", "s", "--exit-after-last"]);
    let script = "
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1])
b.connect_uri(sys.argv[1])
a.shutdown()
b.pwrite(b'last', 0)
b.shutdown()
";
    nbdsh(script, &[&server.uri()]);
    assert_eq!(server.wait().status, 0);
    assert_eq!(server.event("stopped")["clients"], 2);
    assert_eq!(files::read(&scratch.join("a"), 0, 4), b"last");
}

#[test]
fn a_killed_server_leaves_nothing_in_the_way_of_the_next() {
    let scratch = disk();
    let server = Server::start(scratch.path(), &["a", "--unix", "s"]);
    server.kill();
    assert!(scratch.join("s").exists());
    let server = Server::start(scratch.path(), &["a", "--unix", "s"]);
    let mut greeting = [0; 8];
    let mut stream = UnixStream::connect(scratch.join("s")).expect("it listens");
    stream.read_exact(&mut greeting).expect("it greets");
    assert_eq!(&greeting, b"NBDMAGIC");
    server.stop();
    assert!(!scratch.join("s").exists());
}

#[test]
fn new_requests_are_refused_and_clients_told_while_it_ends() {
    let scratch = disk();
    let server = Server::start(scratch.path(), &TCP);
    let address = server.address();
    let mut stream = writer(&server);
    wait_taken(&stream);
    server.signal(Signal::TERM);
    wait_until(SOON, "nobody is let in", || TcpStream::connect(address).is_err());
    // The rest of the write, and a read behind it.
    let mut bytes = vec![5; (1 << 20) - 100_000];
    bytes.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
    bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend([0; 8]);
    bytes.extend([0, 0, 2, 0]);
    stream.write_all(&bytes).expect("it still listens");
    let mut answer = [0; 10 + 16 + 16];
    stream.read_exact(&mut answer).expect("it answers");
    // In either order.
    let mut answers = [&answer[10..26], &answer[26..]];
    answers.sort_by_key(|answer| answer[15]);
    let [written, refused] = answers.map(|answer| (&answer[..8], answer[15]));
    assert_eq!(written, (&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], 0), "the write was done");
    assert_eq!(refused, (&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 108][..], 1), "the read was refused");
    let mut server = server;
    assert_eq!(server.wait().status, 0);
    assert_eq!(files::read(&scratch.join("a"), 0, 4), [5; 4]);
}
