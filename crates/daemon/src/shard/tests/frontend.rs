use super::*;
use holdfast_nbd::ConnectOptions;
use std::thread;

fn lone(rt: &Runtime, dir: &Path, limits: Limits) -> Node {
    let node = Node::start(rt, &Plan { limits, ..Plan::new(dir, 0, &[]) });
    node.promote(rt);
    node
}

#[test]
fn an_export_is_there_only_on_the_primary() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let node = Node::start(&rt, &Plan::new(dir.path(), 0, &[]));
    let refusal = Client::connect_unix(&node.socket, "r0").unwrap_err().to_string();
    assert!(refusal.contains("not Primary"), "{refusal}");
    node.promote(&rt);
    let mut client = node.client();
    assert_eq!(client.size(), SIZE);
    let unnamed = Client::connect_unix(&node.socket, "").unwrap();
    assert_eq!(unnamed.size(), SIZE, "the only export is the default one");
    node.wait(&rt, "open twice", |view| view.open_count == 2);
    drop(unnamed);
    node.wait(&rt, "open once", |view| view.open_count == 1);
    assert!(Client::connect_unix(&node.socket, "r1").is_err());
    client.write_at(b"hello", 3).unwrap();
    node.command(&rt, Command::Demote { force: true });
    node.wait(&rt, "closed", |view| view.open_count == 0);
    assert!(client.write_at(b"hello", 3).is_err());
    assert!(Client::connect_unix(&node.socket, "r0").is_err());
    node.stop(&rt);
}

#[test]
fn writes_into_one_block_do_not_lose_each_other() {
    const CLIENTS: u64 = 6;
    const ROUNDS: u64 = 60;
    let rt = runtime();
    // Disks that work asynchronously, so that requests really meet.
    let dir = directory(Where::Disk);
    let node = lone(&rt, dir.path(), Limits::default());
    // Each client has its own 100 bytes of every 700, over two blocks; all also zero some.
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let mut connection = node.client();
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let at = round % 12 * 700 + client * 100;
                    let mark = u8::try_from(1 + client * 30 + round % 12).unwrap();
                    if round < 24 {
                        connection.write_zeroes(at, 100).unwrap();
                    }
                    connection.write_at(&[mark; 100], at).unwrap();
                    if round % 7 == client {
                        // Whole blocks next to them, which are written anew afterwards.
                        connection.write_at(&[0xFF; 4096], 65536 + client * 4096).unwrap();
                    }
                }
            });
        }
    });
    let mut found = vec![0; 12 * 700];
    node.client().read_at(&mut found, 0).unwrap();
    for piece in 0..12 {
        for client in 0..CLIENTS {
            let at = usize::try_from(piece * 700 + client * 100).unwrap();
            let mark = u8::try_from(1 + client * 30 + piece).unwrap();
            assert!(found[at..at + 100].iter().all(|b| *b == mark), "{piece} {client}");
        }
    }
    node.stop(&rt);
}

/// A write of whole blocks that meets a partial one must come out as if one had been first.
#[test]
fn partial_and_whole_writes_of_a_block_are_done_one_after_the_other() {
    let rt = runtime();
    let dir = directory(Where::Disk);
    let node = lone(&rt, dir.path(), Limits::default());
    let mut whole = node.client();
    let mut partial = node.client();
    for round in 1..=80_u8 {
        thread::scope(|scope| {
            scope.spawn(|| whole.write_at(&[round; 8192], 0).unwrap());
            scope.spawn(|| partial.write_at(&[0xF0; 100], 4050).unwrap());
        });
        let mut found = [0; 8192];
        whole.read_at(&mut found, 0).unwrap();
        let outside = found[..4050].iter().chain(&found[4150..]);
        assert!(outside.copied().all(|b| b == round), "old bytes came back in round {round}");
        let inside = &found[4050..4150];
        assert!(inside == [0xF0; 100] || inside == [round; 100]);
    }
    node.stop(&rt);
}

#[test]
fn long_requests_are_cut_and_put_together() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let node = lone(&rt, dir.path(), Limits::default());
    let mut client = node.client();
    let bytes = Numbers(3).bytes(SIZE);
    client.write_at(&bytes, 0).unwrap();
    let mut found = vec![0; bytes.len()];
    client.read_at(&mut found, 0).unwrap();
    assert!(found == bytes);
    // All of it but one byte at either end.
    client.trim(1, SIZE - 2).unwrap();
    client.read_at(&mut found, 0).unwrap();
    assert!(
        found[..4096] == bytes[..4096]
            && found[found.len() - 4096..] == bytes[bytes.len() - 4096..]
    );
    assert!(found[4096..found.len() - 4096].iter().all(|b| *b == 0));
    let extents = client.block_status(0, SIZE).unwrap();
    assert!(extents.len() == 3 && extents[1].len == SIZE - 8192, "{extents:?}");
    client.write_zeroes(1, SIZE - 2).unwrap();
    client.read_at(&mut found, 0).unwrap();
    assert_eq!((found[0], found[found.len() - 1]), (bytes[0], bytes[bytes.len() - 1]));
    assert!(found[1..found.len() - 1].iter().all(|b| *b == 0));
    node.stop(&rt);
}

#[test]
fn requests_above_the_limits_wait_and_are_done() {
    let rt = runtime();
    let dir = directory(Where::Disk);
    let limits = Limits { in_flight_bytes: 16384, in_flight_requests: 3 };
    let node = lone(&rt, dir.path(), limits);
    thread::scope(|scope| {
        for client in 0..8_u8 {
            let mut connection = node.client();
            scope.spawn(move || {
                let base = u64::from(client) * (2 << 20);
                for round in 0..20 {
                    let len = [4096, 1 << 20, 700][round % 3];
                    connection
                        .write_at(&vec![client + 1; len], base + 77 * (round as u64))
                        .unwrap();
                }
                connection.flush().unwrap();
                let mut found = [0; 700];
                connection.read_at(&mut found, base + 77 * 19).unwrap();
                assert_eq!(found, [client + 1; 700]);
            });
        }
    });
    node.wait(&rt, "idle", |view| view.snapshot.in_flight == 0);
    node.stop(&rt);
}

#[test]
fn simple_clients_are_served_too() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let node = lone(&rt, dir.path(), Limits::default());
    let stream = std::os::unix::net::UnixStream::connect(&node.socket).unwrap();
    let options = ConnectOptions {
        style: holdfast_nbd::ReplyStyle::Simple,
        block_status: false,
        ..ConnectOptions::default()
    };
    let mut client = Client::over_unix(stream, "r0", &options).unwrap();
    client.write_at(b"Holdfast", 4092).unwrap();
    let mut found = vec![0; 3 << 20];
    client.read_at(&mut found, 4000).unwrap();
    assert_eq!(&found[92..100], b"Holdfast");
    drop(client);
    node.stop(&rt);
}
