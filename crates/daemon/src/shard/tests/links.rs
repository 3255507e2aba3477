use super::*;
use holdfast_cluster::{Identity, NodeTls, PinSet, PinnedNode, Purpose};
use holdfast_units::ConnectionState;

fn connected(view: &ResourceView) -> bool {
    view.snapshot.peers[0].connection == ConnectionState::Connected
}

#[test]
fn when_both_dial_at_once_one_link_stays() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let a = Node::start(&rt, &Plan::new(dir.path(), 0, &[(1, false)]));
    let b = Node::start(&rt, &Plan::new(dir.path(), 1, &[(0, false)]));
    for _ in 0..5 {
        let (ab_near, ab_far, _) = sockets(&rt);
        let (ba_near, ba_far, keep) = sockets(&rt);
        a.resource.add_link(n(1), LinkOrigin::Dialled, Box::new(ab_near));
        b.resource.add_link(n(0), LinkOrigin::Dialled, Box::new(ba_near));
        a.resource.add_link(n(1), LinkOrigin::Accepted, Box::new(ba_far));
        b.resource.add_link(n(0), LinkOrigin::Accepted, Box::new(ab_far));
        a.wait(&rt, "connected", connected);
        b.wait(&rt, "connected", connected);
        assert!(a.resource.wanted_links().borrow().is_empty());
        // The link that node 1 dialled is not the one in use.
        let _ = keep.0.shutdown(Shutdown::Both);
        a.command(&rt, Command::Disconnect { peer: None });
        b.wait(&rt, "disconnected", |view| !connected(view));
        assert!(a.resource.wanted_links().borrow().is_empty(), "by wish");
        for node in [&a, &b] {
            node.command(&rt, Command::Connect { peer: None, discard_my_data: false });
        }
    }
    a.stop(&rt);
    b.stop(&rt);
}

#[test]
fn a_peer_that_speaks_nonsense_is_cut_off_and_harms_nothing() {
    use std::io::{Read, Write};
    let rt = runtime();
    let dir = directory(Where::Memory);
    let a = Node::start(&rt, &Plan::new(dir.path(), 0, &[(1, false)]));
    a.promote(&rt);
    let (near, far, stranger) = sockets(&rt);
    drop(near);
    a.resource.add_link(n(1), LinkOrigin::Accepted, Box::new(far));
    let mut stranger = stranger.0;
    stranger.set_nonblocking(false).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    stranger.write_all(&[0xEE; 4096]).unwrap();
    // An end or a reset, but not silence.
    if let Err(error) = stranger.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    a.wait(&rt, "alone", |view| !connected(view));
    a.client().write_at(&[1; 4096], 0).unwrap();
    a.stop(&rt);
}

#[test]
fn links_run_inside_tls() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let (a, b, cable) = pair(&rt, dir.path());
    cable.cut();
    for node in [&a, &b] {
        node.wait(&rt, "alone", |view| !connected(view));
    }
    let nodes = ["alpha", "beta"].map(|name| {
        let state = dir.path().join(name);
        std::fs::create_dir(&state).unwrap();
        Identity::create(&state, name).unwrap()
    });
    let pins = PinSet::new();
    pins.replace(nodes.iter().map(|node| {
        let pinned = PinnedNode { uuid: node.uuid(), name: node.name().to_owned() };
        (node.fingerprint(), pinned)
    }));
    let [dialler, acceptor] = nodes.each_ref().map(|node| NodeTls::new(node, pins.clone()));
    let (near, far, _cable) = sockets(&rt);
    let (near, far) = rt.block_on(async {
        tokio::join!(
            dialler.connect(near, Purpose::Data, nodes[1].uuid(), "beta"),
            acceptor.accept(far, "alpha"),
        )
    });
    join(&a, &b, Box::new(near.unwrap()), Box::new(far.unwrap().0));
    a.wait_in_sync(&rt);
    let mut client = a.client();
    let mut numbers = Numbers(5);
    for i in 0..64 {
        client.write_at(&numbers.bytes(300_000), i * 400_000).unwrap();
    }
    drop(client);
    a.wait(&rt, "counted", |view| view.snapshot.peers[0].sent >= 64 * 300_000);
    let (one, two) = (a.disk.clone(), b.disk.clone());
    a.stop(&rt);
    b.stop(&rt);
    assert!(data(&one) == data(&two));
}
