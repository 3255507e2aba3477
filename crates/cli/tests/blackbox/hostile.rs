//! Clients and strangers that hold on to what they can get.

use crate::{MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_nbd::{Client, ConnectOptions};
use holdfast_testkit::{Node, wait_until};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A client in the export, through the shortest handshake there is.
fn enter(node: &Node, resource: &str) -> UnixStream {
    let path = node.dir().join("run/nbd.sock");
    let mut stream = UnixStream::connect(path).expect("the daemon listens");
    stream.set_read_timeout(Some(SOON)).expect("a socket takes a limit");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("the server greets");
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(1u32.to_be_bytes());
    hello.extend(u32::try_from(resource.len()).expect("a name is short").to_be_bytes());
    hello.extend(resource.as_bytes());
    stream.write_all(&hello).expect("the server reads");
    let mut export = [0; 10];
    stream.read_exact(&mut export).expect("the export is opened");
    stream
}

/// The header of a request with simple replies.
fn header(command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Nobody is slow or has to be cut for the small requests of others: those who hold on are cut after ten
/// seconds.
fn serves_others(node: &Node) {
    let start = Instant::now();
    write_blocks(node, "r0", 1, 0..20);
    check_blocks(node, "r0", 1, 0..20);
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn half_sent_writes_take_bounded_memory_and_make_room_for_others() {
    let cluster = cluster(1);
    cluster.resource("r0", 64 * MIB, 1);
    let node = &cluster[0];
    let before = node.memory();
    let stalled: Vec<_> = (0..14)
        .map(|_| {
            let mut stream = enter(node, "r0");
            let mut half = header(1, 0, 32 << 20);
            half.push(7);
            stream.write_all(&half).expect("the server reads");
            stream
        })
        .collect();
    serves_others(node);
    let mut most = 0;
    // A write as large as theirs waits until one of them is sent away.
    let uri = node.uri("r0");
    let large = std::thread::spawn(move || {
        let options = ConnectOptions { timeout: Some(SYNC), ..ConnectOptions::default() };
        let mut client = Client::connect(&uri, &options).expect("the export can be opened");
        client.write_at(&vec![9; 32 << 20], 32 * MIB).expect("it is written in the end");
    });
    wait_until(SYNC, "the large write ends", || {
        most = most.max(node.memory());
        large.is_finished()
    });
    large.join().expect("it is written in the end");
    let grown = most.saturating_sub(before);
    assert!(grown < 380 * MIB, "{} MiB more, {} MiB before", grown / MIB, before / MIB);
    node.wait_log("kept others waiting");
    drop(stalled);
    serves_others(node);
}

#[test]
fn replies_that_nobody_fetches_take_bounded_memory() {
    let cluster = cluster(1);
    cluster.resource("r0", 64 * MIB, 1);
    let node = &cluster[0];
    write_blocks(node, "r0", 1, 0..16384);
    let before = node.memory();
    let lazy: Vec<_> = (0..24)
        .map(|_| {
            let mut stream = enter(node, "r0");
            stream.write_all(&header(0, 0, 32 << 20)).expect("the server reads");
            stream
        })
        .collect();
    serves_others(node);
    let mut most = 0;
    let start = Instant::now();
    wait_until(SOON, "three seconds", || {
        most = most.max(node.memory());
        start.elapsed() > Duration::from_secs(3)
    });
    let grown = most.saturating_sub(before);
    assert!(grown < 450 * MIB, "{} MiB more, {} MiB before", grown / MIB, before / MIB);
    serves_others(node);
    drop(lazy);
}

/// Says that it is over when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps 300 connections open that say nothing, and renews those that are closed, until told to
/// stop. Counts how many it has made.
fn idle_strangers(address: SocketAddr, stop: &AtomicBool, made: &AtomicUsize) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        open.retain_mut(|stream| match stream.read(&mut [0]) {
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        });
        while open.len() < 300 && !stop.load(Ordering::Relaxed) {
            if let Ok(stream) = TcpStream::connect(address) {
                stream.set_nonblocking(true).expect("it is a socket");
                open.push(stream);
                made.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(Duration::from_millis(20)); // bounded poll
    }
}

#[test]
fn idle_strangers_on_the_port_keep_no_node_out() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let stop = &AtomicBool::new(false);
    let made = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let logged = || cluster.nodes().iter().map(|node| node.log().len()).sum::<usize>();
    let before = logged();
    std::thread::scope(|scope| {
        // Also when something is not as it should be.
        let _stop = StopAtEnd(stop);
        for (node, made) in cluster.nodes().iter().zip(&made) {
            scope.spawn(move || idle_strangers(node.address(), stop, made));
        }
        let started = Instant::now();
        let mut times = 0;
        // Longer than a silent node counts as alive.
        wait_until(SYNC, "twelve seconds, five connects, and many strangers", || {
            cluster[1].ok(&["disconnect", "r0"]);
            cluster[1].ok(&["connect", "r0"]);
            cluster[0].wait_peer("r0", "beta", SOON, "it is back", |peer| {
                peer.connection == "Connected" && peer.disk == "UpToDate"
            });
            times += 1;
            let many = made.iter().all(|made| made.load(Ordering::Relaxed) > 600);
            many && times >= 5 && started.elapsed() > Duration::from_secs(12)
        });
        for node in cluster.nodes() {
            wait_until(SOON, "everybody is alive in spite of them", || {
                let nodes = node.status().cluster.expect("it is in a cluster").nodes;
                nodes.iter().all(|node| node.alive)
            });
        }
    });
    let grown = logged() - before;
    assert!(grown < 100_000, "the logs grew by {grown} bytes");
}

/// A caller that asks for the events and keeps the connection; the first line of the answer.
fn reader(node: &Node) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(node.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(SOON)).expect("a socket takes a limit");
    let call = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(call).expect("the daemon reads");
    let mut line = vec![0; 12];
    stream.read_exact(&mut line).expect("the daemon answers");
    (stream, String::from_utf8_lossy(&line).into_owned())
}

#[test]
fn readers_of_events_are_not_in_the_way_of_commands() {
    let cluster = cluster(1);
    let node = &cluster[0];
    let readers: Vec<_> = (0..256).map(|_| reader(node)).collect();
    let served = readers.iter().filter(|(_, line)| line == "HTTP/1.1 200").count();
    let refused = readers.iter().filter(|(_, line)| line == "HTTP/1.1 503").count();
    assert_eq!((served, refused), (64, 192));
    node.ok(&["status"]);
    let words = "error: the events were refused: 64 readers are served, and no more\nhint: ";
    node.refused(&["events"], 1, words);
    node.refused(&["--json", "events"], 1, r#"{"error":{"code":"TOO_MANY_CALLERS","#);
    drop(readers);
    wait_until(SOON, "there is room again", || node.cli(&["events"]).status == 0);
}

#[test]
fn a_caller_too_many_is_told_so() {
    let cluster = cluster(1);
    let node = &cluster[0];
    let idle: Vec<_> =
        (0..320).map(|_| UnixStream::connect(node.socket()).expect("the daemon listens")).collect();
    let words =
        "error: the call was refused: 320 callers are connected, as many as the daemon takes";
    node.refused(&["status"], 1, words);
    drop(idle);
    wait_until(SOON, "there is room again", || node.cli(&["status"]).status == 0);
}
