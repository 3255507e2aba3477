use super::*;
use holdfast_units::{ConnectionState, Role};
use std::os::unix::fs::FileExt;

/// Writes of all kinds against a model of the content.
fn scribble(client: &mut Client, model: &mut [u8], numbers: &mut Numbers, rounds: usize) {
    for _ in 0..rounds {
        let kind = numbers.below(10);
        // Mostly short, sometimes several MiB; half of them on block boundaries.
        let longest = if numbers.below(8) == 0 { 5 << 20 } else { 40_000 };
        let (mut at, mut len) = (numbers.below(SIZE), 1 + numbers.below(longest));
        if numbers.below(2) == 0 {
            at = at / 4096 * 4096;
            len = len.next_multiple_of(4096);
        }
        len = len.min(SIZE - at);
        let (from, to) = (usize::try_from(at).unwrap(), usize::try_from(at + len).unwrap());
        match kind {
            0 => {
                client.write_zeroes(at, len).unwrap();
                model[from..to].fill(0);
            }
            1 => {
                let mut found = vec![0; to - from];
                client.read_at(&mut found, at).unwrap();
                assert!(found == model[from..to], "read of {at}+{len}");
            }
            2 => client.flush().unwrap(),
            _ => {
                let bytes = numbers.bytes(len);
                match kind {
                    3 => client.write_durable_at(&bytes, at).unwrap(),
                    _ => client.write_at(&bytes, at).unwrap(),
                }
                model[from..to].copy_from_slice(&bytes);
            }
        }
    }
}

fn mirrored(place: Where, meta: fn(&Path) -> MetaPlace, spin: Duration) {
    let rt = runtime();
    let dir = directory(place);
    let plans = [(0, &[(1, false)]), (1, &[(0, false)])];
    let [a, b] = plans.map(|(number, peers)| {
        Node::start(&rt, &Plan { meta, spin, ..Plan::new(dir.path(), number, peers) })
    });
    a.promote(&rt);
    let mut client = a.client();
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let mut numbers = Numbers(11);
    // Some of it before the peer is there, so that a first resync has something to do.
    scribble(&mut client, &mut model, &mut numbers, 40);
    dial(&rt, &a, &b);
    scribble(&mut client, &mut model, &mut numbers, 100);
    a.wait_in_sync(&rt);
    scribble(&mut client, &mut model, &mut numbers, 60);
    let mut whole = vec![0; model.len()];
    client.read_at(&mut whole, 0).unwrap();
    assert!(whole == model);
    drop(client);
    let disks = [a.disk.clone(), b.disk.clone()];
    a.stop(&rt);
    b.stop(&rt);
    for disk in &disks {
        assert!(data(disk) == model, "{}", disk.display());
    }
}

#[test]
fn both_disks_hold_what_the_client_wrote_in_memory() {
    mirrored(Where::Memory, beside, Duration::ZERO);
}

#[test]
fn both_disks_hold_what_the_client_wrote_on_disk() {
    mirrored(Where::Disk, beside, Duration::ZERO);
}

#[test]
fn both_disks_hold_what_the_client_wrote_with_internal_metadata_and_polling() {
    mirrored(Where::Disk, |_| MetaPlace::Internal, Duration::from_micros(50));
}

#[test]
fn a_cut_link_costs_a_resync_of_what_was_written_meanwhile() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let (a, b, cable) = pair(&rt, dir.path());
    let mut client = a.client();
    client.write_at(&[1; 65536], 0).unwrap();
    assert!(a.resource.wanted_links().borrow().is_empty());
    cable.cut();
    a.wait(&rt, "disconnected", |v| v.snapshot.peers[0].connection == ConnectionState::Connecting);
    let wanted = *a.resource.wanted_links().borrow();
    assert!(wanted.contains(n(1)), "a lost link is wanted again");
    client.write_at(&[2; 8192], 4096).unwrap();
    client.write_at(&[3; 4096], 20 << 20).unwrap();
    let view = a.resource.snapshot();
    assert_eq!(view.snapshot.peers[0].resync_sent, 0);
    b.wait(&rt, "alone", |v| v.snapshot.peers[0].connection == ConnectionState::Connecting);
    dial(&rt, &b, &a);
    a.wait_in_sync(&rt);
    a.wait(&rt, "counted", |v| v.snapshot.peers[0].resync_sent >= 12288);
    let carried = a.resource.snapshot().snapshot.peers[0].resync_sent;
    assert!((12288..=65536).contains(&carried), "{carried} bytes were carried");
    drop(client);
    let (one, two) = (a.disk.clone(), b.disk.clone());
    a.stop(&rt);
    b.stop(&rt);
    assert!(data(&one) == data(&two));
    assert_eq!(data(&two)[20 << 20], 3);
}

#[test]
fn a_resource_comes_back_as_it_was_left() {
    let rt = runtime();
    let dir = directory(Where::Disk);
    let peers = [];
    let plan = Plan::new(dir.path(), 0, &peers);
    let node = Node::start(&rt, &plan);
    node.promote(&rt);
    let mut client = node.client();
    client.write_at(&[9; 12288], 4096).unwrap();
    drop(client);
    let view = node.resource.snapshot();
    assert_eq!(view.disk.as_ref().unwrap().path, node.disk);
    node.stop(&rt);

    let node = Node::start(&rt, &plan);
    let view = node.resource.snapshot();
    assert_eq!((view.snapshot.role, view.snapshot.disk), (Role::Secondary, DiskState::UpToDate));
    assert!(!view.exported);
    node.promote(&rt);
    let mut found = [0; 12288];
    node.client().read_at(&mut found, 4096).unwrap();
    assert_eq!(found, [9; 12288]);
    node.stop(&rt);
}

#[test]
fn a_diskless_primary_works_on_its_peers_disk() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let storage = Node::start(&rt, &Plan::new(dir.path(), 0, &[(1, true)]));
    let plan = Plan { disk: None, ..Plan::new(dir.path(), 1, &[(0, false)]) };
    let diskless = Node::start(&rt, &plan);
    dial(&rt, &diskless, &storage);
    diskless.wait(&rt, "connected", |view| {
        view.snapshot.peers[0].connection == ConnectionState::Connected && view.snapshot.promotable
    });
    diskless.promote(&rt);
    let mut client = diskless.client();
    client.write_at(&[5; 100_000], 1000).unwrap();
    client.flush().unwrap();
    let mut found = vec![0; 100_000];
    client.read_at(&mut found, 1000).unwrap();
    assert!(found == vec![5; 100_000]);
    drop(client);
    let file = std::fs::File::open(&storage.disk).unwrap();
    file.read_exact_at(&mut found, 1000).unwrap();
    assert!(found == vec![5; 100_000]);
    diskless.stop(&rt);
    storage.stop(&rt);
}

#[test]
fn when_the_disk_fails_the_peers_disk_serves_the_clients() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let (a, b, _cable) = pair(&rt, dir.path());
    let mut client = a.client();
    client.write_at(&[6; 8192], 4096).unwrap();
    // Whoever reads behind the end of the file gets an error of the disk.
    std::fs::File::options().write(true).open(&a.disk).unwrap().set_len(0).unwrap();
    let mut found = [0; 8192];
    client.read_at(&mut found, 4096).unwrap();
    assert_eq!(found, [6; 8192]);
    a.wait(&rt, "without its disk", |view| {
        view.snapshot.disk == DiskState::Failed && view.disk.is_none()
    });
    client.write_at(&[7; 5000], 5000).unwrap();
    client.flush().unwrap();
    client.read_at(&mut found[..5000], 5000).unwrap();
    assert_eq!(found[..5000], [7; 5000]);
    drop(client);
    let disk = b.disk.clone();
    a.stop(&rt);
    b.stop(&rt);
    assert_eq!(data(&disk)[5000..10_000], [7; 5000]);
}
