//! Bad lines to a log peer: long ones, lossy ones, slow ones. Nobody waits for them, and in the end all is there.

use crate::logpeer::{assert_same, disk_state, follow, wait_all};
use crate::{MIB, SOON, SYNC, cluster_with_proxies};
use holdfast_testkit::{Cluster, Cut, Far, Ledger, Writer, WriterOptions, files, wait_until};
use std::time::{Duration, Instant};

const BLOCKS: usize = 2048;

/// A Primary and a log peer that has everything, then this way between them.
fn followed_over(far: Far) -> Cluster {
    let cluster = cluster_with_proxies(2);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    for node in cluster.nodes() {
        node.proxy().far(Some(far));
        // What stands was made over the short way.
        node.proxy().cut_once(Cut::Reset);
    }
    cluster
}

fn lag(cluster: &Cluster) -> u64 {
    cluster[0].peer("r0", "beta").replay.map_or(0, |replay| replay.lag_bytes)
}

/// Nothing was cut from the journal or copied besides: the journal alone brought it.
fn assert_journal_was_enough(cluster: &Cluster) {
    assert_eq!(cluster[0].resource("r0").journal.expect("it has one").cuts, 0);
}

#[test]
fn a_line_that_loses_delays_and_breaks_makes_only_the_lag_grow() {
    // Far less than the journal holds, however long it takes until the lag is seen.
    const WRITTEN: u64 = 20 * MIB;
    let one_way = Duration::from_millis(100);
    let cluster = followed_over(Far { one_way, one_lost_of: 4, line: 0 });
    let limit = WRITTEN / 4096;
    let options = WriterOptions { flush_every: 8, limit, ..WriterOptions::default() };
    let start = Instant::now();
    let writer = Writer::start(&cluster[0].uri("r0"), Ledger::new(53, BLOCKS), options);
    wait_until(SOON, "it is behind", || lag(&cluster) > 0);
    for node in cluster.nodes() {
        node.proxy().cut_once(Cut::Reset);
    }
    writer.wait_acknowledged((writer.acknowledged() + 200).min(limit));
    let took = start.elapsed();
    let acknowledged = u32::try_from(writer.acknowledged()).expect("it is small");
    let mut ledger = writer.stop_well();
    // One client, one write after the other: with a round trip for each it would have taken much longer.
    assert!(took < 2 * one_way * acknowledged / 2, "{acknowledged} writes took {took:?}");
    wait_until(SYNC, "it catches up", || {
        assert_eq!(disk_state(&cluster[1]), "UpToDate", "an old state is a state");
        lag(&cluster) == 0
    });
    wait_all(&cluster[0]);
    assert_journal_was_enough(&cluster);
    assert_same(&cluster, 0, 1);
    ledger.verify_file(&cluster[1].disk("r0"));
}

#[test]
fn a_line_slower_than_the_writers_is_bridged_and_caught_up_when_it_is_faster() {
    const WRITTEN: u64 = 24 * MIB;
    let cluster = cluster_with_proxies(2);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    let before = cluster[0].peer("r0", "beta").replay.expect("it follows").replayed;
    cluster[0].proxy().limit_rate(300_000);
    let options = WriterOptions { limit: WRITTEN / 4096, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), Ledger::new(54, BLOCKS), options);
    cluster[0].wait_peer("r0", "beta", SOON, "it lags far behind, and follows", |peer| {
        assert_eq!((&*peer.connection, &*peer.replication), ("Connected", "Shipping"));
        let replay = peer.replay.as_ref().expect("it follows");
        replay.lag_bytes > WRITTEN / 3 && replay.replayed > before
    });
    // What it has meanwhile is a past state.
    cluster[1].freeze();
    let copy = cluster.scratch().join("copy");
    files::copy(&cluster[1].disk("r0"), &copy);
    cluster[1].thaw();
    // Nobody has waited for it.
    let (mut ledger, errors) = writer.join();
    assert_eq!(errors, Vec::<String>::new());
    let shown = ledger.verify_prefix(&copy);
    assert!(shown < ledger.begun() as u64, "it has everything already");
    cluster[0].proxy().heal();
    wait_until(SYNC, "the lag is gone", || lag(&cluster) == 0);
    wait_all(&cluster[0]);
    assert_journal_was_enough(&cluster);
    assert_same(&cluster, 0, 1);
    ledger.verify_file(&cluster[1].disk("r0"));
}

#[test]
fn what_comes_by_several_connections_over_a_lossy_line_is_put_together() {
    const WRITTEN: u64 = 8 * MIB;
    let one_way = Duration::from_millis(20);
    let cluster = followed_over(Far { one_way, one_lost_of: 20, line: 0 });
    cluster[1].wait_peer("r0", "alpha", SOON, "it follows", |peer| peer.connection == "Connected");
    let before = cluster[0].proxy().carried();
    let options =
        WriterOptions { connections: 8, limit: WRITTEN / 4096 / 8, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), Ledger::new(56, BLOCKS), options);
    let (mut ledger, errors) = writer.join();
    assert_eq!(errors, Vec::<String>::new());
    wait_all(&cluster[0]);
    assert_journal_was_enough(&cluster);
    assert_same(&cluster, 0, 1);
    ledger.verify_file(&cluster[1].disk("r0"));
    // Nobody carried it all.
    let mut carried = cluster[0].proxy().carried();
    for (connection, bytes) in before {
        *carried.get_mut(&connection).expect("it was there before") -= bytes;
    }
    let busy = carried.values().filter(|bytes| **bytes > WRITTEN / 50).count();
    assert!(busy >= 2, "{carried:?}");
}
