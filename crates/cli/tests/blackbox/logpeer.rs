//! A node that follows the Primary's journal: its disk is a past state at every moment.

use crate::{
    MIB, SOON, SYNC, binary, check_blocks, cluster, cluster_with_proxies, rounds, seed,
    write_blocks,
};
use holdfast_testkit::{
    Cluster, ClusterOptions, Cut, Ledger, Node, Rng, Writer, WriterOptions, files, wait_until,
};

pub(crate) const SIZE: u64 = 32 * MIB;
const BLOCKS: usize = 4096;

fn journal_of(node: &Node, size: &str) -> [String; 4] {
    let dir = node.dir().join("r0.journal").display().to_string();
    ["--journal".to_owned(), dir, "--journal-size".to_owned(), size.to_owned()]
}

/// Makes r0 with a journal on the first node, and has all others follow it.
pub(crate) fn follow(cluster: &Cluster, size: &str) {
    let arguments = journal_of(&cluster[0], size);
    cluster.create("r0", SIZE, &arguments.each_ref().map(String::as_str));
    for node in &cluster.nodes()[1..] {
        join(cluster, node, size);
    }
}

fn join(cluster: &Cluster, node: &Node, size: &str) {
    let arguments = journal_of(node, size);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cluster.join_resource(node, "r0", SIZE, &[&["--protocol", "log"], &arguments[..]].concat());
}

/// Has the status of a node show its journal as it is now. Otherwise that is of a moment ago, and may be
/// without what was written and flushed just before.
pub(crate) fn look_at_journal(node: &Node) {
    // Where there is none in use there is nothing newer to be seen, either.
    let _ = node.get("/v1/resources/r0/log");
}

/// Where the journal of a node that leads ends, behind all that was written by now.
pub(crate) fn head_of(primary: &Node) -> u64 {
    primary.json(&["log", "ls", "r0"])["head"].as_u64().expect("it is a number")
}

/// Waits until a node has fetched everything that was written by now.
pub(crate) fn wait_fetched(primary: &Node, node: &Node) {
    let head = head_of(primary);
    node.wait_resource("r0", SYNC, "it has fetched all of that", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.fetched >= head)
    });
}

/// Waits until a node that was started says itself that it follows. Whoever leads looks at his followers
/// now and then only: when one was back quickly, he shows it for a moment as it was before.
pub(crate) fn wait_follows(node: &Node) {
    node.wait_resource("r0", SYNC, "it follows", |r| {
        r.peers.iter().any(|peer| {
            peer.role == "Primary" && peer.connection == "Connected" && peer.replication != "Off"
        })
    });
}

/// Waits until a node has seen that it is not connected to another one any more.
pub(crate) fn wait_gone(node: &Node, peer: &str) {
    node.wait_peer("r0", peer, SOON, "it is gone", |p| p.connection != "Connected");
}

/// Waits until a node says itself that its disk is a state: whoever leads may have heard of it first.
pub(crate) fn wait_up_to_date(node: &Node) {
    node.wait_resource("r0", SOON, "its disk is a state", |r| r.disk.state == "UpToDate");
}

/// Waits until the Primary knows that its followers have everything that was written by now.
pub(crate) fn wait_all(primary: &Node) {
    look_at_journal(primary);
    primary.wait_resource("r0", SYNC, "everybody has everything", |r| {
        !r.peers.is_empty()
            && r.peers.iter().all(|peer| {
                peer.connection == "Connected"
                    && peer.disk == "UpToDate"
                    && peer.problem.is_none()
                    && peer.replay.as_ref().is_some_and(|replay| {
                        replay.lag_bytes == 0
                            && r.journal.as_ref().is_some_and(|j| replay.replayed == j.head)
                    })
            })
    });
}

/// Holds the disk of this follower of the first node behind by 15 minutes, and writes until something is
/// held back; with which tag that was.
pub(crate) fn hold_back(cluster: &Cluster, follower: usize) -> u64 {
    let node = &cluster[follower];
    cluster[0].ok(&["set", "r0", "replay-delay=15m", "--peer", node.name()]);
    // It takes a moment until it has heard of it. That something was fetched and not replayed may be so
    // for a moment only, too: it is held back when more was fetched since, and nothing was replayed.
    let mut round = 1;
    let mut before = None;
    wait_until(SYNC, "something is held back", || {
        round += 1;
        write_blocks(&cluster[0], "r0", round, 0..50);
        wait_fetched(&cluster[0], node);
        let replay = node.resource("r0").replay.expect("it follows");
        let waits = (replay.replayed < replay.fetched).then_some(replay.replayed);
        let held = waits.is_some() && waits == before;
        before = waits;
        held
    });
    round
}

/// Waits until the Primary knows that one of its followers has everything that was written by now.
fn wait_follower(primary: &Node, name: &str) {
    look_at_journal(primary);
    primary.wait_resource("r0", SYNC, "a follower has everything", |r| {
        let head = r.journal.as_ref().map(|journal| journal.head);
        r.peers.iter().any(|peer| {
            peer.node == name
                && peer.disk == "UpToDate"
                && peer.replay.as_ref().is_some_and(|replay| Some(replay.replayed) == head)
        })
    });
}

pub(crate) fn disk_state(node: &Node) -> String {
    node.resource("r0").disk.state
}

pub(crate) fn assert_same(cluster: &Cluster, a: usize, b: usize) {
    for node in [a, b] {
        if cluster[node].resource("r0").role == "Primary" {
            let node = &cluster[node];
            look_at_journal(node);
            wait_until(SOON, "all is written back", || {
                let journal = node.resource("r0").journal.expect("it has one");
                journal.dirty_bytes == 0 && journal.written_back == journal.head
            });
        }
    }
    cluster.assert_equal_disks("r0", SIZE, &[a, b]);
}

#[test]
fn a_follower_is_filled_and_its_disk_is_an_exact_past_state_whenever_it_dies() {
    // On a disk: in memory, a block that is just being written when its daemon is killed may be torn.
    let options = ClusterOptions { on_disk: true, ..ClusterOptions::default() };
    let mut cluster = Cluster::with(&binary(), 2, options);
    follow(&cluster, "64M");
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    let mut dice = Rng::new(seed());
    let mut ledger = Ledger::new(seed(), BLOCKS);
    let mut newest = 0;
    for round in 0..2 * rounds() + 2 {
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
        writer.wait_acknowledged(300 + dice.below(700));
        // After a crash it says that it is no state yet until it has replayed what it may have had.
        cluster[1].wait_resource("r0", SOON, "it holds a state", |r| r.disk.state == "UpToDate");
        // Frozen or killed in the middle of it.
        if round % 2 == 0 {
            cluster[1].freeze();
        } else {
            cluster[1].kill9();
        }
        let copy = cluster.scratch().join("copy");
        files::copy(&cluster[1].disk("r0"), &copy);
        ledger = writer.stop_well();
        let found = ledger.verify_prefix(&copy);
        assert!(found >= newest, "it went back from write {newest} to {found}");
        newest = found;
        if round % 2 == 0 {
            cluster[1].thaw();
        } else {
            cluster[1].start();
        }
    }
    wait_all(&cluster[0]);
    assert!(newest > 0, "it follows while it is written");
    assert_same(&cluster, 0, 1);
    let copied = ledger.verify_prefix(&cluster[1].disk("r0"));
    assert!(copied >= newest);
}

#[test]
fn after_a_cut_link_it_catches_up_and_is_a_past_state_all_the_time() {
    let cluster = cluster_with_proxies(2);
    follow(&cluster, "64M");
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_all(&cluster[0]);
    cluster[0].proxy().cut(Cut::Reset);
    cluster[1].wait_peer("r0", "alpha", SOON, "the link is gone", |p| p.connection != "Connected");
    write_blocks(&cluster[0], "r0", 2, 100..800);
    let mut late = None;
    wait_until(SOON, "the Primary says that it lags", || {
        late = cluster[0].peer("r0", "beta").replay.filter(|replay| replay.lag_bytes > 0);
        late.is_some()
    });
    let late = late.expect("it was waited for");
    assert_eq!(disk_state(&cluster[1]), "UpToDate", "an old state is a state");
    cluster[0].proxy().heal();
    wait_until(SYNC, "it catches up", || {
        assert_eq!(disk_state(&cluster[1]), "UpToDate");
        cluster[0]
            .peer("r0", "beta")
            .replay
            .is_some_and(|replay| replay.lag_bytes == 0 && replay.replayed > late.replayed)
    });
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn a_journal_that_is_too_small_for_an_outage_costs_a_copy_of_what_changed_and_no_more() {
    let mut cluster = cluster(2);
    follow(&cluster, "16M");
    wait_all(&cluster[0]);
    cluster[1].stop();
    // Much more than the journal holds, over a small part of the disk.
    for round in 0..8 {
        write_blocks(&cluster[0], "r0", round, 0..1024);
    }
    cluster[0].wait_resource("r0", SOON, "the journal is kept small", |r| {
        let journal = r.journal.as_ref().expect("it has one");
        journal.bytes <= journal.limit_bytes && journal.emergency
    });
    // Its followers are looked at behind that.
    cluster[0]
        .wait_peer("r0", "beta", SOON, "it is said of whom", |p| p.replication == "Emergency");
    cluster[1].start();
    wait_all(&cluster[0]);
    cluster[0].wait_resource("r0", SOON, "that is over", |r| {
        r.journal.as_ref().is_some_and(|journal| !journal.emergency)
    });
    let received = cluster[1].peer("r0", "alpha").received_bytes;
    let changed = 1024 * 4096;
    assert!(received <= changed * 11 / 10, "{received} bytes for {changed} that changed");
    assert_same(&cluster, 0, 1);
    check_blocks(&cluster[0], "r0", 7, (0..1024).step_by(31));
}

#[test]
fn a_planned_handover_there_and_back_loses_nothing() {
    let cluster = cluster(3);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..500);
    wait_all(&cluster[0]);
    for (turn, (from, to)) in [(0, 1), (1, 0), (0, 2), (2, 1)].into_iter().enumerate() {
        let tag = u64::try_from(turn).expect("small") + 10;
        write_blocks(&cluster[from], "r0", tag, 0..400);
        cluster[to].ok(&["primary", "r0"]);
        let what = format!("the other one follows by itself, turn {turn}");
        cluster[from].wait_resource("r0", SOON, &what, |r| r.role == "Secondary");
        check_blocks(&cluster[to], "r0", tag, (0..400).step_by(13));
        write_blocks(&cluster[to], "r0", tag + 100, 200..600);
        wait_all(&cluster[to]);
        for other in (0..3).filter(|other| *other != to) {
            wait_up_to_date(&cluster[other]);
            assert_same(&cluster, to, other);
        }
    }
    // Whoever has it open is in the way.
    let open = cluster[1].open("r0");
    cluster[0].refused(&["primary", "r0"], 1, "open");
    drop(open);
    assert_eq!(cluster[1].resource("r0").role, "Primary");
}

#[test]
fn after_a_forced_promotion_the_old_primary_follows_or_says_that_both_wrote() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_all(&cluster[0]);
    // Nothing is lost: it follows by itself when it returns.
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].refused(&["primary", "r0"], 1, "not in reach");
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", 1, (0..300).step_by(7));
    write_blocks(&cluster[1], "r0", 2, 0..200);
    cluster[0].start();
    wait_all(&cluster[1]);
    assert_same(&cluster, 0, 1);
    // Now the one that is killed has what the other one never got.
    cluster[0].freeze();
    write_blocks(&cluster[1], "r0", 3, 0..100);
    cluster[1].kill9();
    cluster[0].thaw();
    cluster[0].wait_peer("r0", "beta", SOON, "the link is gone", |p| p.connection != "Connected");
    cluster[0].ok(&["primary", "r0", "--force"]);
    let before = files::fingerprint(&cluster[0].disk("r0"), SIZE);
    write_blocks(&cluster[0], "r0", 4, 500..650);
    cluster[1].start();
    for (node, other) in [(0, "beta"), (1, "alpha")] {
        cluster[node].wait_peer("r0", other, SOON, "it is told", |peer| {
            peer.problem.as_ref().is_some_and(|problem| problem.code == "SPLIT_BRAIN")
        });
        let text = cluster[node].ok(&["status", "r0"]);
        assert!(text.contains("went on apart at position"), "{text}");
    }
    assert_ne!(before, files::fingerprint(&cluster[1].disk("r0"), SIZE), "nobody's data are gone");
    // With that nobody takes over in good order.
    cluster[1].refused(&["primary", "r0"], 1, "r0");
    assert_eq!(cluster[0].resource("r0").role, "Primary");
    check_blocks(&cluster[0], "r0", 2, (100..200).step_by(7));
    // A person says whose are good.
    cluster[1].ok(&["connect", "r0", "--discard-my-data"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
    check_blocks(&cluster[0], "r0", 4, 500..600);
}

#[test]
fn a_delay_holds_the_disk_of_one_follower_behind() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..50);
    wait_all(&cluster[0]);
    let round = hold_back(&cluster, 1);
    let before = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    let replayed = cluster[1].resource("r0").replay.expect("it follows").replayed;
    write_blocks(&cluster[0], "r0", round + 1, 0..50);
    wait_fetched(&cluster[0], &cluster[1]);
    cluster[1].wait_resource("r0", SOON, "it is fetched all the same", |r| {
        r.replay.as_ref().is_some_and(|r| r.fetched == r.head && r.lag_bytes > 200_000)
    });
    assert_eq!(cluster[1].resource("r0").replay.expect("it follows").replayed, replayed);
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), before);
    cluster[0].ok(&["set", "r0", "replay-delay=0", "--peer", "beta"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn fetch_and_replay_are_paused_by_themselves_and_stay_so_over_a_restart() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    let frozen = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    write_blocks(&cluster[0], "r0", 2, 0..100);
    wait_fetched(&cluster[0], &cluster[1]);
    cluster[1].wait_resource("r0", SOON, "it is fetched", |r| {
        r.replay.as_ref().is_some_and(|replay| {
            replay.fetched == replay.head && replay.lag_bytes > 0 && replay.paused == ["replay"]
        })
    });
    cluster[1].kill9();
    cluster[1].start();
    cluster[1].wait_resource("r0", SOON, "it is still so", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.paused == ["replay"])
    });
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), frozen);
    cluster[1].refused(&["primary", "r0"], 1, "paused");
    cluster[1].ok(&["pause", "r0", "fetch"]);
    cluster[1].ok(&["resume", "r0", "replay"]);
    cluster[1].wait_resource("r0", SOON, "what is here is replayed", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.replayed == replay.fetched)
    });
    write_blocks(&cluster[0], "r0", 3, 0..100);
    cluster[1].wait_resource("r0", SOON, "it knows that it is behind", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.head > replay.fetched)
    });
    cluster[1].ok(&["resume", "r0", "fetch"]);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
    cluster[0].refused(&["pause", "r0", "fetch"], 1, "does not follow");
}

#[test]
fn what_a_log_member_needs_is_said_before_anything_changes() {
    let cluster = cluster(2);
    cluster.create("r0", SIZE, &[]);
    let disk = cluster[1].disk("r0");
    files::make_sparse(&disk, SIZE);
    let disk = disk.display().to_string();
    cluster[1].refused(
        &["join", "r0", "--disk", &disk, "--protocol", "log"],
        1,
        "needs a disk and a journal",
    );
    let journal = journal_of(&cluster[1], "64M");
    let journal: Vec<&str> = journal.iter().map(String::as_str).collect();
    let join = [&["join", "r0", "--disk", &disk, "--protocol", "log"], &journal[..]].concat();
    cluster[1].refused(&join, 1, "has no journal here");
    assert!(cluster[0].resource("r0").peers.is_empty());
}

/// What came to a node that follows, as soon as it is connected to whoever leads.
fn received_by(node: &Node, leader: &str) -> u64 {
    let connected = |peer: &holdfast_api::status::PeerStatus| peer.connection == "Connected";
    node.wait_peer("r0", leader, SOON, "it is connected", connected).received_bytes
}

#[test]
fn a_log_peer_of_a_pair_goes_on_when_the_pair_fails_over_without_being_sent_everything() {
    let mut cluster = cluster(3);
    let journal = |node: &Node| node.dir().join("r0.journal").display().to_string();
    let dirs: Vec<String> = cluster.nodes().iter().map(journal).collect();
    cluster.create("r0", SIZE, &["--journal", &dirs[0], "--journal-size", "64M"]);
    let size = ["--journal-size", "64M"];
    cluster.join_resource(
        &cluster[1],
        "r0",
        SIZE,
        &[&["--protocol", "C", "--journal", &dirs[1]], &size[..]].concat(),
    );
    join(&cluster, &cluster[2], "64M");
    cluster[1].wait_resource("r0", SYNC, "the pair is in step", |r| r.disk.state == "UpToDate");
    write_blocks(&cluster[0], "r0", 1, 0..6000);
    // It waits for what it has heard of; the Primary knows how much there is.
    cluster[2].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
    wait_follower(&cluster[0], "gamma");
    let old = files::fingerprint(&cluster[2].disk("r0"), SIZE);
    let before = received_by(&cluster[2], "alpha");
    cluster[0].kill9();
    assert_eq!(disk_state(&cluster[2]), "UpToDate", "it is an old state meanwhile");
    assert_eq!(files::fingerprint(&cluster[2].disk("r0"), SIZE), old);
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 2, 100..200);
    wait_follower(&cluster[1], "gamma");
    assert_same(&cluster, 1, 2);
    let after = received_by(&cluster[2], "beta");
    let received = after - before;
    assert!(received < SIZE / 20, "{received} bytes came although nearly all is equal");

    // The one that died comes back into the pair, and may lead again.
    cluster[0].start();
    cluster[0].wait_peer("r0", "beta", SYNC, "the pair is whole again", |peer| {
        peer.replication == "Established"
    });
    cluster[0].wait_resource("r0", SYNC, "it has everything", |r| r.disk.state == "UpToDate");
    write_blocks(&cluster[1], "r0", 3, 300..400);
    cluster[1].ok(&["secondary", "r0"]);
    cluster[0].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 4, 350..450);
    wait_follower(&cluster[0], "gamma");
    assert_same(&cluster, 0, 2);
    assert_same(&cluster, 0, 1);
    check_blocks(&cluster[0], "r0", 3, (300..350).step_by(7));
    let received = received_by(&cluster[2], "alpha") - after;
    assert!(received < SIZE / 20, "{received} bytes came although nearly all is equal");
}

/// A pair in step; what the Primary writes then, the other one misses. A log peer joins before that or
/// behind it.
fn is_asked_about(joins_late: bool) {
    let mut cluster = cluster(3);
    let journal = |node: &Node| node.dir().join("r0.journal").display().to_string();
    let dirs: Vec<String> = cluster.nodes().iter().map(journal).collect();
    cluster.create("r0", SIZE, &["--journal", &dirs[0], "--journal-size", "64M"]);
    let arguments = ["--protocol", "C", "--journal", &dirs[1], "--journal-size", "64M"];
    cluster.join_resource(&cluster[1], "r0", SIZE, &arguments);
    if !joins_late {
        join(&cluster, &cluster[2], "64M");
    }
    cluster[1].wait_resource("r0", SYNC, "the pair is in step", |r| r.disk.state == "UpToDate");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    if !joins_late {
        wait_follower(&cluster[0], "gamma");
    }
    // The other one is away, and misses what only the log peer gets.
    cluster[1].kill9();
    cluster[0].wait_peer("r0", "beta", SOON, "it is gone", |p| p.connection != "Connected");
    write_blocks(&cluster[0], "r0", 2, 50..150);
    if joins_late {
        join(&cluster, &cluster[2], "64M");
    }
    wait_follower(&cluster[0], "gamma");
    cluster[0].kill9();
    let kept = files::fingerprint(&cluster[2].disk("r0"), SIZE);
    cluster[1].start();
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 3, 0..50);
    cluster[1].wait_peer("r0", "gamma", SOON, "it is told", |peer| {
        peer.problem.as_ref().is_some_and(|problem| problem.code == "SPLIT_BRAIN")
    });
    assert_eq!(files::fingerprint(&cluster[2].disk("r0"), SIZE), kept);
    cluster[2].ok(&["connect", "r0", "--discard-my-data"]);
    wait_follower(&cluster[1], "gamma");
    assert_same(&cluster, 1, 2);
}

#[test]
fn what_a_log_peer_got_after_a_failover_is_not_given_up_unasked() {
    let mut cluster = cluster(3);
    let journal = |node: &Node| node.dir().join("r0.journal").display().to_string();
    let dirs: Vec<String> = cluster.nodes().iter().map(journal).collect();
    cluster.create("r0", SIZE, &["--journal", &dirs[0], "--journal-size", "64M"]);
    let arguments = ["--protocol", "C", "--journal", &dirs[1], "--journal-size", "64M"];
    cluster.join_resource(&cluster[1], "r0", SIZE, &arguments);
    cluster[1].wait_resource("r0", SYNC, "the pair is in step", |r| r.disk.state == "UpToDate");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].kill9();
    cluster[1].ok(&["primary", "r0", "--force"]);
    // It is filled before the first write without the other one.
    join(&cluster, &cluster[2], "64M");
    wait_follower(&cluster[1], "gamma");
    write_blocks(&cluster[1], "r0", 2, 50..150);
    wait_follower(&cluster[1], "gamma");
    cluster[1].kill9();
    let kept = files::fingerprint(&cluster[2].disk("r0"), SIZE);
    cluster[0].start();
    cluster[0].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[0], "r0", 3, 0..50);
    cluster[0].wait_peer("r0", "gamma", SOON, "it is told", |peer| {
        peer.problem.as_ref().is_some_and(|problem| problem.code == "SPLIT_BRAIN")
    });
    assert_eq!(files::fingerprint(&cluster[2].disk("r0"), SIZE), kept);
}

#[test]
fn what_a_log_peer_got_of_a_primary_that_went_on_alone_is_not_given_up_unasked() {
    is_asked_about(false);
}

#[test]
fn what_a_log_peer_was_filled_with_by_a_primary_that_went_on_alone_is_not_given_up_unasked() {
    is_asked_about(true);
}

#[test]
fn a_log_peer_that_has_left_joins_again_by_comparing() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..3000);
    wait_all(&cluster[0]);
    for node in cluster.nodes() {
        let disk = std::fs::OpenOptions::new().write(true).open(node.disk("r0"));
        disk.and_then(|disk| disk.set_len(2 * SIZE)).expect("it can be made larger");
    }
    cluster[1].ok(&["leave", "r0"]);
    cluster[0].wait_resource("r0", SOON, "it has gone", |r| r.peers.is_empty());
    cluster[0].ok(&["resize", "r0", "--size", "64M"]);
    assert_eq!(cluster[0].resource("r0").size_bytes, 2 * SIZE);
    write_blocks(&cluster[0], "r0", 2, [0, 2 * SIZE / 4096 - 1]);
    let journal = cluster[1].dir().join("r0.journal-2").display().to_string();
    let disk = cluster[1].disk("r0").display().to_string();
    let mut join = vec!["join", "r0", "--disk", &disk, "--protocol", "log", "--force"];
    join.extend(["--journal", &journal, "--journal-size", "64M"]);
    cluster[1].ok(&join);
    wait_all(&cluster[0]);
    let received = cluster[1].peer("r0", "alpha").received_bytes;
    assert!(received < 2 * SIZE / 20, "{received} bytes came although nearly all is equal");
    cluster.assert_equal_disks("r0", 2 * SIZE, &[0, 1]);
}

#[test]
fn a_follower_that_does_not_reach_the_primary_fetches_what_another_one_has() {
    let mut cluster = cluster_with_proxies(3);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_all(&cluster[0]);
    // The second follower is away while there is more, which the first one gets.
    cluster[2].stop();
    write_blocks(&cluster[0], "r0", 2, 100..900);
    wait_follower(&cluster[0], "beta");
    let head = head_of(&cluster[0]);
    cluster[0].kill9();
    cluster[2].start();
    cluster[2].wait_resource("r0", SYNC, "it has what the other one has", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.replayed >= head)
    });
    cluster.assert_equal_disks("r0", SIZE, &[1, 2]);
    // Nothing of that makes it another history: it follows when the Primary is there again.
    cluster[2].refused(&["primary", "r0"], 1, "not in reach");
    cluster[0].start();
    write_blocks_when_primary(&cluster[0], 3);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 2);
    assert_same(&cluster, 0, 1);
    // A Primary that cannot be reached by the network is the same.
    cluster[0].proxy().cut(Cut::Reset);
    for node in [1, 2] {
        let gone = |p: &holdfast_api::status::PeerStatus| p.connection != "Connected";
        cluster[node].wait_peer("r0", "alpha", SOON, "the link is gone", gone);
    }
    let text = cluster[2].ok(&["status", "r0"]);
    assert!(text.contains("Secondary"), "{text}");
    cluster[0].proxy().heal();
    wait_all(&cluster[0]);
}

fn write_blocks_when_primary(node: &Node, tag: u64) {
    node.wait_resource("r0", SOON, "it is Primary again", |r| r.role == "Primary");
    write_blocks(node, "r0", tag, 0..50);
}

#[test]
fn a_log_peer_has_its_metadata_at_the_end_of_its_disk_or_its_disk_on_another_machine() {
    let mut cluster = cluster(4);
    let served = cluster[3].disk("far");
    files::make_sparse(&served, SIZE);
    cluster[3].ok(&["create", "far", "--disk", &served.display().to_string()]);
    let uri = cluster[3].uri("far").to_string();
    let arguments = journal_of(&cluster[0], "64M");
    cluster.create("r0", SIZE, &arguments.each_ref().map(String::as_str));
    write_blocks(&cluster[0], "r0", 1, 0..50);

    let long = cluster[1].disk("r0");
    files::make_sparse(&long, SIZE + 8 * MIB);
    let long = long.display().to_string();
    for (node, disk) in [(1, vec![&*long, "--meta", "internal"]), (2, vec![&*uri])] {
        let journal = journal_of(&cluster[node], "64M");
        let journal: Vec<&str> = journal.iter().map(String::as_str).collect();
        let join = ["join", "r0", "--protocol", "log", "--disk"];
        cluster[node].ok(&[&join, &*disk, &journal].concat());
    }
    wait_all(&cluster[0]);
    for node in [1, 2] {
        cluster[node].restart();
    }
    write_blocks(&cluster[0], "r0", 2, 25..75);
    wait_all(&cluster[0]);
    // Each of them leads, and gives back.
    for node in [1, 2, 0] {
        cluster[node].ok(&["primary", "r0"]);
        check_blocks(&cluster[node], "r0", 2, 25..75);
        check_blocks(&cluster[node], "r0", 1, 0..25);
        wait_all(&cluster[node]);
    }
}
