//! A log over its files: damage, cutting, following, going back; and a real directory.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use bytes::Bytes;
use holdfast_format::journal::{Compression, PeerSwitches, RecordKind};
use holdfast_journal::driver::{
    Backing, Directory, DirectoryOptions, Files, Log, LogError, Open, segment_name,
};
use holdfast_journal::{
    Damage, Op, PushError, RecoverError, Relation, Settings, WriteBackLimits, compare,
};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use support::{Crash, Dice, Sim, State};

const DISK: usize = 64 * 4096;
const RESOURCE: ResourceId = ResourceId([9; 16]);
const ALL: WriteBackLimits = WriteBackLimits { bytes: 1 << 30, runs: 1000, run_bytes: 1 << 20 };

fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

fn options(epoch: u64) -> Open {
    let settings = Settings { segment_bytes: 9 * 4096, ..Settings::new(RESOURCE, node(0), epoch) };
    Open {
        settings,
        leads: true,
        generation: GenerationId(4),
        time: HybridTime(0),
        cut: None,
        spares: 1,
    }
}

fn sim() -> Sim {
    Sim::new(State::with_disk(DISK), false)
}

fn open(sim: &Sim, epoch: u64) -> Log<Sim> {
    Log::open(sim.clone(), &options(epoch)).unwrap().0
}

fn write(block: u64, fill: u8) -> Op {
    let time = HybridTime::from_unix_millis(u64::from(fill));
    Op::write(block * 4096, vec![fill; 4096].into(), time, false).unwrap()
}

/// Appends one op after the other, each in a frame of its own, and flushes.
fn append<F: Files>(log: &mut Log<F>, ops: impl IntoIterator<Item = Op>) {
    for op in ops {
        log.push(op).unwrap();
        log.flush().unwrap();
    }
}

fn damage(result: Result<(Log<Sim>, holdfast_journal::Found), LogError>) -> Damage {
    match result.map(|_| ()) {
        Err(LogError::Recover(RecoverError::Damaged(damage))) => damage,
        other => panic!("it was to be damaged: {other:?}"),
    }
}

fn positions<F: Files>(log: &Log<F>) -> Vec<u64> {
    let tail = log.journal().status().tail;
    log.records(tail).unwrap().iter().map(|(position, _)| position.0).collect()
}

#[test]
fn rot_of_what_was_durable_is_damage_and_names_its_ranges() {
    // Frames of 8 KiB: four to a segment, so six are in two segments.
    let sim = sim();
    append(&mut open(&sim, 1), (0..6).map(|n| write(n, 1)));
    let clean = sim.0.borrow().now.clone();
    for frame in 0..5_u64 {
        let (segment, at) = (1 + frame / 4, 4096 + frame % 4 * 8192);
        for (within, known) in [(0, false), (70, false), (4096, true), (8191, true)] {
            let mut state = clean.clone();
            let at = usize::try_from(at).unwrap() + within;
            state.rot(&segment_name(segment), at, &[0xee]);
            let found = damage(Log::open(Sim::new(state.clone(), false), &options(2)));
            assert_eq!((found.segment, found.position), (segment, LogPosition(frame * 8192)));
            let range = ByteRange::new(frame * 4096, 4096);
            assert_eq!(found.ranges, known.then(|| vec![range]), "{within}");

            // Cut there, it goes on in a segment of its own, and the chain tells.
            let cut = Open { cut: Some(found.position), ..options(2) };
            let whole = open(&Sim::new(clean.clone(), false), 3).journal().links();
            let (mut log, _) = Log::open(Sim::new(state, false), &cut).unwrap();
            append(&mut log, [write(9, 9)]);
            assert_eq!(log.records(LogPosition(0)).unwrap().len() as u64, frame + 1);
            let relation = compare(&log.journal().links(), &whole);
            let common = Some(found.position);
            assert!(
                matches!(relation, Relation::Apart { common: c, .. } if c == common),
                "{relation:?}"
            );
            let epoch = options(4);
            let again = Log::open(log.into_files(), &epoch).unwrap().0;
            assert_eq!(again.records(LogPosition(0)).unwrap().len() as u64, frame + 1);
        }
    }
    // Of the last frame nobody says that it was durable, but for the cursors.
    let mut state = clean.clone();
    state.rot(&segment_name(2), 4096 + 8192, &[0xee]);
    let log = open(&Sim::new(state, false), 2);
    assert_eq!(log.records(LogPosition(0)).unwrap().len(), 5);
    let sim = Sim::new(clean, false);
    open(&sim, 2).store_cursors().unwrap();
    let mut state = sim.0.borrow().now.clone();
    state.rot(&segment_name(2), 4096 + 8192, &[0xee]);
    assert_eq!(damage(Log::open(Sim::new(state, false), &options(3))).position.0, 5 * 8192);
}

#[test]
fn a_segment_without_a_header_is_a_beginning_or_damage() {
    let sim = sim();
    append(&mut open(&sim, 1), (0..5).map(|n| write(n, 1)));
    // With one frame in it nothing says that it was durable; with two the second one does.
    let mut state = sim.0.borrow().now.clone();
    state.rot(&segment_name(2), 0, &[0; 4096]);
    let log = open(&Sim::new(state, false), 2);
    assert_eq!(positions(&log), [0, 8192, 16384, 24576]);
    append(&mut open(&sim, 3), [write(5, 1)]);
    let mut state = sim.0.borrow().now.clone();
    state.rot(&segment_name(2), 0, &[0; 4096]);
    let found = damage(Log::open(Sim::new(state, false), &options(4)));
    assert_eq!((found.segment, found.position), (2, LogPosition(4 * 8192)));
    // A missing one is damage, too, as long as it is not written back.
    open(&sim, 4).store_cursors().unwrap();
    let mut middle = sim.clone();
    middle.rename(&segment_name(1), "elsewhere").unwrap();
    let found = damage(Log::open(middle.clone(), &options(5)));
    assert_eq!((found.segment, found.position.0), (2, 4 * 8192));
}

#[test]
fn a_file_that_was_cut_short_is_a_tail() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(segment_name(1));
    let direct = DirectoryOptions { direct: false };
    let files = Directory::open(dir.path(), direct).unwrap();
    let mut log = Log::open(files, &options(1)).unwrap().0;
    append(&mut log, (0..3).map(|n| write(n, 1)));
    drop(log);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(4096 + 2 * 8192 + 5000).unwrap();
    let files = Directory::open(dir.path(), direct).unwrap();
    let mut log = Log::open(files, &options(2)).unwrap().0;
    assert_eq!(positions(&log), [0, 8192]);
    append(&mut log, [write(7, 2)]);
    assert_eq!(file.metadata().unwrap().len(), 9 * 4096, "it has its length again");
    assert_eq!(positions(&log), [0, 8192, 16384]);
}

#[test]
fn a_journal_of_another_resource_is_refused() {
    let sim = sim();
    append(&mut open(&sim, 1), [write(0, 1)]);
    let mut foreign = options(2);
    foreign.settings.resource = ResourceId([1; 16]);
    let refused = Log::open(sim, &foreign).map(|_| ());
    assert!(matches!(refused, Err(LogError::Recover(RecoverError::Foreign { .. }))));
}

#[test]
fn the_oldest_that_somebody_needs_is_kept() {
    let sim = sim();
    let mut disk = sim.clone();
    let mut log = open(&sim, 1);
    let (near, far) = (node(1), node(2));
    let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
    log.journal_mut().set_peer(near, PeerSwitches { keeps_journal: true, ..counts });
    append(&mut log, (0..20).map(|n| write(n % 7, 1)));
    let segments = log.journal().durable_segments();
    assert_eq!(segments.len(), 5);
    assert_eq!(log.recycle().unwrap(), 0, "nothing is written back");
    while log.write_back(&mut disk, ALL, true).unwrap() {}
    assert_eq!(log.recycle().unwrap(), 0, "a peer needs it");
    let end = |n: usize| segments[n].0.base.after(segments[n].1);
    log.journal_mut().peer_reached(near, end(1), LogPosition(0));
    assert_eq!(log.recycle().unwrap(), 2, "it has fetched it");
    log.journal_mut().peer_reached(near, LogPosition(0), LogPosition(0));
    assert_eq!(log.journal().peer(near).fetched, end(1), "cursors do not go back");
    // A peer without a journal must have replayed.
    log.journal_mut().set_peer(far, counts);
    log.journal_mut().peer_reached(far, end(3), end(2));
    log.journal_mut().peer_reached(near, end(4), end(4));
    assert_eq!(log.recycle().unwrap(), 1);
    log.journal_mut().set_peer(far, PeerSwitches::default());
    assert_eq!(log.recycle().unwrap(), 1, "it does not count any more");
    assert_eq!(log.recycle().unwrap(), 0, "the last one stays");
    let fetched = log.journal().peer(near);
    log.store_cursors().unwrap();
    let files = log.into_files();
    assert_eq!(files.list().unwrap().iter().filter(|name| name.starts_with("spare")).count(), 1);
    assert_eq!(open(&files, 2).journal().peer(near), fetched, "cursors are persistent");
}

#[test]
fn a_cut_gives_each_peer_exactly_the_ranges_that_it_does_not_get() {
    let sim = sim();
    let mut disk = sim.clone();
    let mut settings = options(1);
    settings.settings.budget_bytes = 3 * 9 * 4096;
    let mut log = Log::open(sim.clone(), &settings).unwrap().0;
    let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
    (1..4).for_each(|n| log.journal_mut().set_peer(node(n), counts));
    append(&mut log, (0..20).map(|n| write(n, 1)));
    assert!(log.cut(|_| panic!("nothing can be cut")).unwrap().is_none());
    let wanted = log.journal().write_back_wanted();
    assert_eq!(wanted, Some(LogPosition(8 * 8192)), "the disk must come that far");
    while log.write_back(&mut disk, ALL, true).unwrap() {}
    assert_eq!(log.journal().write_back_wanted(), None);
    // Peer 1 has nothing, peer 2 is in the middle of the second segment, peer 3 behind it.
    log.journal_mut().peer_reached(node(2), LogPosition(0), LogPosition(5 * 8192));
    log.journal_mut().peer_reached(node(3), LogPosition(0), LogPosition(9 * 8192));
    let fails = log.cut(|_| Err(std::io::Error::other("no bits")));
    assert!(fails.is_err() && positions(&log).len() == 20, "bits first");
    let mut lost = std::collections::BTreeMap::new();
    let plan = log
        .cut(|ranges| {
            lost.clone_from(ranges);
            Ok(())
        })
        .unwrap()
        .unwrap();
    assert_eq!(plan.up_to, LogPosition(8 * 8192));
    let ranges = |n| lost[&node(n)].iter().collect::<Vec<_>>();
    assert_eq!(ranges(1), [ByteRange::new(0, 8 * 4096)]);
    assert_eq!(ranges(2), [ByteRange::new(5 * 4096, 3 * 4096)]);
    assert_eq!(lost.len(), 2, "peer 3 loses nothing");
    assert_eq!(positions(&log)[0], 8 * 8192);
    assert!(log.journal().peer(node(1)).switches.cut && !log.journal().peer(node(3)).switches.cut);
    assert!(log.records(LogPosition(0)).is_err(), "it is gone");
    // What comes behind the cut is kept for who was cut, until it is cut again.
    log.journal_mut().peer_reached(node(3), LogPosition(0), LogPosition(u64::MAX));
    log.journal_mut().peer_reached(node(2), LogPosition(0), LogPosition(u64::MAX));
    assert_eq!(log.journal().needed_from(), LogPosition(8 * 8192));
    log.journal_mut().peer_restarts(node(1), LogPosition(10 * 8192));
    assert_eq!(log.journal().needed_from(), LogPosition(10 * 8192));
    assert!(!log.journal().peer(node(1)).switches.cut);
}

#[test]
fn what_was_before_a_new_history_is_kept_for_nobody_who_is_away() {
    let sim = sim();
    let mut disk = sim.clone();
    let mut settings = options(1);
    let segment = settings.settings.segment_bytes;
    settings.settings.budget_bytes = 5 * segment;
    let mut log = Log::open(sim.clone(), &settings).unwrap().0;
    let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
    log.journal_mut().set_peer(node(1), counts);
    append(&mut log, (0..20).map(|n| write(n, 1)));
    while log.write_back(&mut disk, ALL, true).unwrap() {}
    assert!(log.journal().status().bytes >= 5 * segment);
    assert!(log.journal_mut().begin_anew());
    // A client that is only let on while there is room would wait for ever otherwise.
    for n in 0..30 {
        append(&mut log, [write(n, 2)]);
        while log.write_back(&mut disk, ALL, true).unwrap() {}
        log.cut(|_| Ok(())).unwrap();
        log.recycle().unwrap();
        let bytes = log.journal().status().bytes;
        assert!(bytes <= 6 * segment, "{} segments after {n} writes", bytes / segment);
    }
    assert!(log.journal().peer(node(1)).switches.cut, "it is filled when it is back");
}

#[test]
fn history_is_kept_to_go_back_to() {
    let sim = sim();
    let mut disk = sim.clone();
    let mut settings = options(1);
    settings.settings.keep_bytes = 40_000;
    let mut log = Log::open(sim.clone(), &settings).unwrap().0;
    append(&mut log, (0..20).map(|n| write(n, 1)));
    while log.write_back(&mut disk, ALL, true).unwrap() {}
    log.recycle().unwrap();
    assert_eq!(positions(&log)[0], 12 * 8192);
}

/// A disk in memory.
struct Memory(Vec<u8>);

impl Backing for Memory {
    fn read(&mut self, range: ByteRange) -> std::io::Result<Bytes> {
        let blocks = usize::try_from(range.offset).unwrap()..usize::try_from(range.end()).unwrap();
        Ok(Bytes::copy_from_slice(&self.0[blocks]))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.0[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zeroes(&mut self, range: ByteRange, _discard: bool) -> std::io::Result<()> {
        self.write(range.offset, &vec![0; usize::try_from(range.len).unwrap()])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a disk holds after records, as a peer replays them.
fn replay(disk: &mut Memory, ops: &[(LogPosition, Op)]) -> Vec<u8> {
    for (_, op) in ops {
        match op.kind() {
            RecordKind::Write => disk.write(op.range().offset, op.payload()).unwrap(),
            RecordKind::Flush => disk.flush().unwrap(),
            RecordKind::Zeroes | RecordKind::Discard => disk.zeroes(op.range(), true).unwrap(),
        }
    }
    disk.0.clone()
}

#[test]
fn a_replay_is_the_exact_state_at_every_record() {
    let mut dice = Dice::new(5);
    for (alignment, packed) in [(512, true), (4096, false)] {
        let sim = sim();
        let mut settings = options(1);
        settings.settings.alignment = alignment;
        let mut log = Log::open(sim, &settings).unwrap().0;
        let mut states = vec![vec![0; DISK]];
        for n in 0..120_u64 {
            let time = HybridTime(10 + n);
            let range = ByteRange::new(dice.below(60) * 4096, (1 + dice.below(3)) * 4096);
            let (op, fill) = match dice.below(5) {
                0 => (Op::flush(time), None),
                1 => (Op::zeroes(range, time, dice.one_in(2), false).unwrap(), Some(0)),
                _ => {
                    let fill = u8::try_from(n).unwrap();
                    let data = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
                    let kind = if packed { Compression::Lz4 } else { Compression::None };
                    (Op::write_packed(range.offset, data, time, false, kind).unwrap(), Some(fill))
                }
            };
            log.push(op).unwrap();
            if dice.one_in(3) {
                log.flush().unwrap();
            }
            let mut state = states[states.len() - 1].clone();
            let bytes =
                usize::try_from(range.offset).unwrap()..usize::try_from(range.end()).unwrap();
            if let Some(fill) = fill {
                state[bytes].fill(fill);
            }
            states.push(state);
        }
        log.flush().unwrap();
        let all = log.records(LogPosition(0)).unwrap();
        assert_eq!(all.len(), 120);
        let mut disk = Memory(vec![0; DISK]);
        for (n, record) in all.iter().enumerate() {
            assert!(replay(&mut disk, std::slice::from_ref(record)) == states[n + 1], "record {n}");
        }
        // A position in the middle of a frame is one as any other; a time leads to the record
        // behind it.
        for (index, (position, _)) in all.iter().enumerate() {
            let rest = log.records(*position).unwrap();
            assert_eq!(rest.len(), all.len() - index);
            let same = |(a, b): (&(LogPosition, Op), &(LogPosition, Op))| {
                a.0 == b.0 && a.1.payload() == b.1.payload()
            };
            assert!(rest.iter().zip(&all[index..]).all(same));
            let time = HybridTime(10 + index as u64);
            let next = all.get(index + 1).map_or(log.journal().durable(), |(next, _)| *next);
            assert_eq!(log.position_after(LogPosition(0), time).unwrap(), next);
        }
    }
}

#[test]
fn a_follower_is_a_copy_and_a_forced_promotion_cuts_its_tail() {
    let mut origin = open(&sim(), 1);
    append(&mut origin, (0..10).map(|n| write(n, 1)));
    for torn in 0..3 {
        let follower = sim();
        let mut settings = options(50);
        settings.settings.node = node(1);
        let mut log = Log::open(follower.clone(), &settings).unwrap().0;
        assert!(log.journal_mut().follow());
        for (header, _) in origin.journal().durable_segments() {
            let mut from = header.base;
            loop {
                let bytes = origin.fetch(header.number, from, 20_000).unwrap();
                let taken = log.copy(&header, &bytes).unwrap();
                if taken == 0 {
                    break;
                }
                from = from.after(taken as u64);
            }
        }
        log.flush().unwrap();
        assert_eq!(log.journal().links(), origin.journal().links());
        for (header, len) in origin.journal().durable_segments() {
            let own = log.fetch(header.number, header.base, 1 << 20).unwrap();
            assert_eq!(own.len() as u64, len);
            assert_eq!(own, origin.fetch(header.number, header.base, 1 << 20).unwrap());
        }
        assert!(
            log.journal().lookup(ByteRange::new(0, 4096))[0].source
                == holdfast_journal::PartSource::Disk
        );

        // It dies; of its last frame a part is lost. Promoted, it goes on behind what is whole.
        let mut state = follower.0.borrow().now.clone();
        let last = 4096 + 8192;
        if torn > 0 {
            state.rot(&segment_name(3), last + (torn - 1) * 4096, &[0; 512]);
        }
        let sim = Sim::new(state, false);
        let found = Open { leads: false, ..settings };
        let (mut log, _) = Log::open(sim, &found).unwrap();
        let end = log.journal().durable();
        assert_eq!(end.0, if torn > 0 { 9 * 8192 } else { 10 * 8192 });
        log.journal_mut().replayed(end);
        assert!(log.journal_mut().lead(GenerationId(6)));
        append(&mut log, [write(40, 4), write(41, 5)]);
        let relation = compare(&log.journal().links(), &origin.journal().links());
        if torn > 0 {
            assert!(
                matches!(relation, Relation::Apart { common, ours: 16384, theirs: 8192, .. } if common == Some(end)),
                "{relation:?}"
            );
        } else {
            assert_eq!(relation, Relation::Ahead);
        }
        // And the origin can follow it up to there: the same segments, byte for byte.
        assert_eq!(log.journal().durable_segments().last().unwrap().0.origin, node(1));
    }
}

#[test]
fn after_a_failed_sync_nothing_is_called_durable() {
    let sim = sim();
    let mut log = open(&sim, 1);
    append(&mut log, [write(0, 1)]);
    log.push(write(1, 1)).unwrap();
    log.pump().unwrap();
    sim.0.borrow_mut().fail_sync = true;
    log.flush().unwrap_err();
    // The next sync would work, and prove nothing.
    let flushed = log.flush();
    assert_eq!(log.journal().durable_ticket().0, 1, "{flushed:?}");
    assert_eq!(log.push(write(2, 1)), Err(PushError::Failed));
    assert!(log.journal().status().failed);
}

#[test]
fn cursors_that_could_not_be_stored_are_not_the_only_good_ones() {
    // A block of cursors of which a part was written is of no use: it differs from the one before in
    // more than one sector.
    let change = |log: &mut Log<Sim>| {
        append(log, [write(0, 1)]);
        let to = log.journal().durable();
        (0..32).for_each(|peer| log.journal_mut().peer_reached(node(peer), to, to));
    };
    for seed in 0..40 {
        let sim = sim();
        let mut log = open(&sim, 1);
        for _ in 0..2 {
            change(&mut log);
            log.store_cursors().unwrap();
        }
        // The copy that could not be stored may be torn, so the other one must stay.
        for _ in 0..3 {
            change(&mut log);
            sim.0.borrow_mut().fail_sync = true;
            log.store_cursors().unwrap_err();
        }
        let state = sim.0.borrow().now.crash(Crash::Any, &mut Dice::new(seed));
        let log = open(&Sim::new(state, false), 2);
        assert!(log.journal().cursors().sequence >= 2, "seed {seed}");
    }
}

#[test]
fn what_was_given_up_can_be_given_up_again() {
    let sim = sim();
    let mut log = open(&sim, 1);
    append(&mut log, [write(0, 1)]);
    log.give_up().unwrap();
    log.give_up().unwrap();
    assert_eq!(positions(&open(&sim, 2)), []);
}

#[test]
fn a_file_in_the_making_is_nobodys_until_it_is_taken() {
    let sim = sim();
    let len = options(1).settings.segment_bytes;
    let mut files = sim.clone();
    files.create("making-0", len).unwrap();
    let mut log = open(&sim, 1);
    assert_eq!(log.spares(), 0);
    assert!(!sim.list().unwrap().contains(&"making-0".into()));
    for (name, number) in [("making-1", 7), ("making-2", 8)] {
        files.create(name, len).unwrap();
        log.spare_made(name, number).unwrap();
        assert!(!sim.list().unwrap().contains(&name.into()));
    }
    assert_eq!(log.spares(), 1);
    assert!(sim.list().unwrap().contains(&"spare-0000000000000007".into()));
}

#[test]
fn nothing_that_is_not_durable_is_given_to_peers() {
    let sim = sim();
    let mut log = open(&sim, 1);
    append(&mut log, [write(0, 1)]);
    log.push(write(1, 1)).unwrap();
    log.pump().unwrap();
    assert_eq!(log.journal().head().0, 2 * 8192);
    assert_eq!(log.fetch(1, LogPosition(0), 1 << 20).unwrap().len(), 8192);
    assert_eq!(positions(&log), [0]);
    assert_eq!(log.journal().links()[0].len, 8192);
    // After a kill what is in the page cache is found, and durable before it is used.
    let state = sim.0.borrow().now.crash(Crash::Kill, &mut Dice::new(1));
    let sim = Sim::new(state, false);
    let log = open(&sim, 2);
    assert_eq!(positions(&log), [0, 8192]);
    let state = sim.0.borrow().now.crash(Crash::Nothing, &mut Dice::new(1));
    assert_eq!(positions(&open(&Sim::new(state, false), 3)), [0, 8192]);
    drop(log);
}

#[test]
fn a_real_directory_with_and_without_o_direct() {
    for direct in [false, true] {
        let scratch = tempfile::Builder::new().prefix("journal").tempdir_in("/var/tmp").unwrap();
        let options_of = |epoch| {
            let mut open = options(epoch);
            open.settings.segment_bytes = 256 << 10;
            open.settings.budget_bytes = 2 << 20;
            open
        };
        let mut disk = Memory(vec![0; DISK]);
        let mut expected = vec![0; DISK];
        for epoch in 1..4 {
            let files = Directory::open(scratch.path(), DirectoryOptions { direct }).unwrap();
            let (mut log, _) = Log::open(files, &options_of(epoch)).unwrap();
            let range = ByteRange::new(0, DISK as u64);
            assert!(log.read(range, &mut disk).unwrap() == expected, "opened again");
            for n in 0..200_u64 {
                let fill = u8::try_from(n).unwrap();
                let block = (n * 7 + epoch) % 64;
                log.push(write(block, fill)).unwrap();
                let at = usize::try_from(block).unwrap() * 4096;
                expected[at..at + 4096].fill(fill);
                if n % 5 == 0 {
                    log.flush().unwrap();
                }
                if n % 50 == 0 {
                    log.write_back(&mut disk, ALL, true).unwrap();
                    log.recycle().unwrap();
                    log.prepare_spare().unwrap();
                }
            }
            log.flush().unwrap();
            assert!(log.read(range, &mut disk).unwrap() == expected);
            assert!(log.journal().status().bytes <= 2 << 20);
        }
    }
}
