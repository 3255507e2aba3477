//! Long outages of a log peer, and a filesystem on one. `HOLDFAST_OUTAGE_MIB` says how much is written while it
//! cannot be reached, `HOLDFAST_ROUNDS` how often it is frozen.

use crate::device::{FileWriter, content, device, file, kept, skipped};
use crate::logpeer::{assert_same, disk_state, follow, wait_all};
use crate::{MIB, SOON, SYNC, cluster, cluster_with_proxies, number_of, rounds, seed};
use holdfast_testkit::{Cut, Mount, Node, Rng, files, run_ok, wait_until};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// What is written to: so much that it is written over several times.
const HOT: u64 = 16 * MIB;
const CHUNK: u64 = 64 << 10;
/// The longest that a write may wait while the journal is cut. Who waited for the peer would wait until
/// the link is healed, which comes after all writes; a machine that has much to do stands still for
/// seconds.
const LONGEST: Duration = Duration::from_secs(10);

fn outage() -> u64 {
    number_of("HOLDFAST_OUTAGE_MIB", 64) * MIB
}

/// Writes so many bytes to random places among the first of [`HOT`]; how long the slowest write took.
fn write_much(node: &Node, bytes: u64, seed: u64) -> Duration {
    let mut client = node.open("r0");
    let mut dice = Rng::new(seed);
    let mut data = vec![0; usize::try_from(CHUNK).expect("it is small")];
    let mut slowest = Duration::ZERO;
    for _ in 0..bytes / CHUNK {
        dice.fill(&mut data[..4096]);
        let start = Instant::now();
        client.write_at(&data, dice.below(HOT / CHUNK) * CHUNK).expect("the Primary takes writes");
        slowest = slowest.max(start.elapsed());
    }
    client.flush().expect("the Primary can flush");
    slowest
}

#[test]
fn a_filesystem_on_a_frozen_log_peer_needs_its_own_journal_and_no_repair() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    follow(&cluster, "64M");
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    let path = device(&cluster, 0);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[0].dir().join("mnt"));
    wait_all(&cluster[0]);
    let mut dice = Rng::new(seed());
    let mut durable = 0;
    for round in 0..rounds() {
        let writer = FileWriter::start(mount.path(), durable);
        let due = durable + 20 + dice.below(60);
        wait_until(SYNC, "some files", || writer.durable() > due);
        cluster[1].freeze();
        let copy = cluster.scratch().join("copy");
        files::copy(&cluster[1].disk("r0"), &copy);
        cluster[1].thaw();
        let copy = copy.display().to_string();
        let past = Mount::new(&copy, &cluster[1].dir().join("mnt"));
        durable = writer.stop();
        for number in kept(durable) {
            // A past state: none yet, or a file that was written at some time, perhaps not to its end.
            let Ok(found) = fs::read(file(past.path(), number)) else { continue };
            let known = (0..=durable)
                .filter(|other| file(past.path(), *other) == file(past.path(), number))
                .any(|other| content(other).starts_with(&found));
            assert!(known, "round {round}: file {number} is none that was written");
        }
        past.unmount();
        run_ok(Command::new("e2fsck").args(["-f", "-n", &copy]));
    }
    mount.unmount();
    cluster[0].ok(&["device", "r0", "--remove"]);
}

#[test]
fn an_outage_that_the_journal_has_room_for_never_makes_the_peer_inconsistent() {
    let cluster = cluster_with_proxies(2);
    let room = (2 * outage() / MIB).max(64);
    follow(&cluster, &format!("{room}M"));
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    wait_all(&cluster[0]);
    cluster[0].proxy().cut(Cut::Reset);
    cluster[1].wait_peer("r0", "alpha", SOON, "the link is gone", |p| p.connection != "Connected");
    write_much(&cluster[0], outage(), 1);
    cluster[0].wait_peer("r0", "beta", SOON, "all of it is missing there", |peer| {
        peer.replay.as_ref().is_some_and(|replay| replay.lag_bytes >= outage())
    });
    cluster[0].proxy().heal();
    wait_until(10 * SYNC, "it catches up", || {
        assert_eq!(disk_state(&cluster[1]), "UpToDate", "an old state is a state");
        assert_ne!(cluster[0].peer("r0", "beta").replication, "SyncSource", "nothing is copied");
        cluster[0].peer("r0", "beta").replay.is_some_and(|replay| replay.lag_bytes == 0)
    });
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn an_outage_past_the_budget_holds_nobody_up_and_costs_what_changed() {
    let cluster = cluster_with_proxies(2);
    let room = (outage() / MIB / 4).max(16);
    follow(&cluster, &format!("{room}M"));
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    wait_all(&cluster[0]);
    cluster[0].proxy().cut(Cut::Reset);
    cluster[1].wait_peer("r0", "alpha", SOON, "the link is gone", |p| p.connection != "Connected");
    let before = cluster[1].peer("r0", "alpha").received_bytes;
    let slowest = write_much(&cluster[0], outage(), 2);
    assert!(slowest < LONGEST, "a write took {slowest:?} while the journal was cut");
    cluster[0].wait_resource("r0", SOON, "the journal is kept small", |r| {
        r.journal.as_ref().is_some_and(|j| j.bytes <= j.limit_bytes && j.emergency)
    });
    cluster[0].proxy().heal();
    wait_until(10 * SYNC, "it catches up", || {
        let peer = cluster[0].peer("r0", "beta");
        peer.connection == "Connected" && peer.replay.is_some_and(|replay| replay.lag_bytes == 0)
    });
    wait_all(&cluster[0]);
    let received = cluster[1].peer("r0", "alpha").received_bytes - before;
    assert!(received <= HOT * 11 / 10, "{received} bytes for {HOT} that changed");
    assert_same(&cluster, 0, 1);
}
