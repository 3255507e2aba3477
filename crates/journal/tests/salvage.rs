//! What the records that are kept say of blocks that the disk cannot read any more: the newest that
//! was written, or nothing. `crash.rs` looks at it after every crash, too.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use holdfast_format::journal::{Compression, Switches};
use holdfast_journal::driver::{Files, Log, LogError, Open};
use holdfast_journal::{Held, Op, RecoverError, RunPiece, Settings, WriteBackLimits};
use holdfast_units::{ByteRange, GenerationId, HybridTime, NodeId, ResourceId};
use support::{Sim, State};

const RESOURCE: ResourceId = ResourceId([9; 16]);
const ALL: WriteBackLimits = WriteBackLimits { bytes: 1 << 30, runs: 1000, run_bytes: 1 << 20 };

fn open_as(sim: &Sim, node: u8, leads: bool) -> Log<Sim> {
    let node = NodeId::new(node).unwrap();
    // Frames of 8 KiB: four to a segment.
    let settings = Settings {
        segment_bytes: 9 * 4096,
        budget_bytes: 1 << 30,
        keep_bytes: u64::MAX,
        ..Settings::new(RESOURCE, node, u64::from(node.number()) + 1)
    };
    let (generation, time) = (GenerationId(4), HybridTime(0));
    let open = Open { settings, leads, generation, time, cut: None, spares: 1 };
    Log::open(sim.clone(), &open).unwrap().0
}

fn made() -> (Sim, Log<Sim>) {
    let sim = Sim::new(State::with_disk(64 * 4096), false);
    let log = open_as(&sim, 0, true);
    (sim, log)
}

fn append<F: Files>(log: &mut Log<F>, op: Op) {
    log.push(op).unwrap();
    log.flush().unwrap();
}

fn write<F: Files>(log: &mut Log<F>, block: u64, fill: u8) {
    let op = Op::write(block * 4096, vec![fill; 4096].into(), HybridTime(1), false);
    append(log, op.unwrap());
}

/// All is on the disk, so nothing is newer in the journal.
fn write_back(log: &mut Log<Sim>, sim: &Sim) {
    let disk = &mut sim.clone();
    while log.write_back(disk, ALL, true).unwrap() {}
    log.store_cursors().unwrap();
    assert_eq!(log.journal().status().dirty_bytes, 0);
}

/// What these blocks are full of, by the records.
fn held<F: Files>(log: &Log<F>, blocks: std::ops::Range<u64>) -> Vec<Option<u8>> {
    let mut salvage = log.journal().salvage(blocks.clone());
    while log.go_on_salvaging(&mut salvage) {}
    let of = |block: u64| {
        let range = ByteRange::of_blocks(block..block + 1);
        match salvage.found().get(&block)? {
            Held::Zeroes => Some(0),
            Held::Data { place, skip } => {
                let data = log.piece(&RunPiece { range, place: *place, skip: *skip }).ok()?;
                assert!(data.iter().all(|byte| *byte == data[0]), "a block of two writes");
                Some(data[0])
            }
        }
    };
    blocks.map(of).collect()
}

#[test]
fn the_newest_record_of_a_block_counts_in_whichever_segment_it_is() {
    let (sim, mut log) = made();
    for (block, fill) in [(0, 1), (1, 2), (2, 3), (0, 4), (3, 5), (1, 6), (4, 7), (5, 8), (4, 9)] {
        write(&mut log, block, fill);
    }
    let parts = [vec![10; 4096], vec![11; 4096], vec![12; 4096]].concat();
    let packed = Op::write_packed(7 * 4096, parts.into(), HybridTime(1), false, Compression::Lz4);
    append(&mut log, packed.unwrap());
    append(&mut log, Op::zeroes(ByteRange::of_blocks(3..4), HybridTime(1), false, false).unwrap());
    append(&mut log, Op::zeroes(ByteRange::of_blocks(8..9), HybridTime(1), true, false).unwrap());
    let right = [4, 6, 3, 0, 9, 8].map(Some).into_iter();
    let right: Vec<_> = right.chain([None, Some(10), Some(0), Some(12), None]).collect();
    assert_eq!(held(&log, 0..11), right, "from what is not written back");
    write_back(&mut log, &sim);
    assert_eq!(held(&log, 0..11), right, "from what is");
    drop(log);
    let mut log = open_as(&sim, 0, true);
    assert_eq!(held(&log, 0..11), right, "and after a restart");
    // A segment that is given up takes along what only it had.
    assert!(log.journal().history().len() > 3);
    let (second, _) = log.journal().history()[1];
    log.journal_mut().set_budget(0);
    let plan = log.journal().plan_cut().unwrap();
    log.journal_mut().cut(&plan);
    log.recycle().unwrap();
    assert!(log.journal().history().iter().all(|(header, _)| header.number > second.number));
    let left = held(&log, 0..11);
    assert_eq!(left[2], None, "its record is gone");
    assert!(left.iter().zip(&right).all(|(left, right)| left.is_none() || left == right));
    assert_eq!(left[9], Some(12));
}

#[test]
fn a_record_that_is_not_durable_yet_goes_before_one_that_is() {
    let (sim, mut log) = made();
    (3..6).for_each(|block| write(&mut log, block, 1));
    write_back(&mut log, &sim);
    log.push(Op::write(3 * 4096, vec![2; 4096].into(), HybridTime(1), false).unwrap()).unwrap();
    let range = ByteRange::of_blocks(4..5);
    log.push(Op::zeroes(range, HybridTime(1), false, false).unwrap()).unwrap();
    while log.step_cached().unwrap().is_some() {}
    // A client may have been answered already: what was there before is old.
    let salvage = log.journal().salvage(3..6);
    let newer = |block: u64| salvage.found().contains_key(&block);
    assert_eq!([newer(3), newer(4), newer(5)], [true, true, false], "without a search");
    assert_eq!(held(&log, 3..6), [Some(2), Some(0), Some(1)]);
    log.flush().unwrap();
    assert_eq!(held(&log, 3..6), [Some(2), Some(0), Some(1)]);
}

#[test]
fn what_was_kept_before_a_cut_says_nothing() {
    let (sim, mut log) = made();
    for n in 0..12_u8 {
        write(&mut log, u64::from(n % 6), n);
    }
    write_back(&mut log, &sim);
    drop(log);
    // The last segment is damaged at its second frame: the disk has what was cut off.
    sim.0.borrow_mut().now.rot(&holdfast_journal::driver::segment_name(3), 4096 + 8192, &[0xEE]);
    let node = NodeId::new(0).unwrap();
    let settings = Settings {
        segment_bytes: 9 * 4096,
        budget_bytes: 1 << 30,
        keep_bytes: u64::MAX,
        ..Settings::new(RESOURCE, node, 7)
    };
    let (generation, time) = (GenerationId(4), HybridTime(0));
    let mut open = Open { settings, leads: true, generation, time, cut: None, spares: 1 };
    let damage = match Log::open(sim.clone(), &open) {
        Err(LogError::Recover(RecoverError::Damaged(damage))) => damage,
        other => panic!("it was to be damaged: {:?}", other.map(|_| ())),
    };
    open.cut = Some(damage.position);
    let mut log = Log::open(sim.clone(), &open).unwrap().0;
    assert!(log.journal().links().len() > 1, "older segments are there still");
    assert_eq!(held(&log, 0..6), vec![None; 6]);
    write(&mut log, 2, 50);
    assert_eq!(held(&log, 0..6), [None, None, Some(50), None, None, None]);
}

#[test]
fn what_was_written_past_the_journal_ends_what_it_says() {
    let (sim, mut log) = made();
    for block in 0..6 {
        write(&mut log, block, 1);
    }
    write_back(&mut log, &sim);
    assert_eq!(held(&log, 0..6), vec![Some(1); 6]);
    log.journal_mut().set_switches(Switches { bypassed: true, ..Switches::default() });
    log.store_cursors().unwrap();
    assert_eq!(held(&log, 0..6), vec![None; 6]);
    drop(log);
    let mut log = open_as(&sim, 0, true);
    assert_eq!(held(&log, 0..6), vec![None; 6], "that is known after a restart, too");
    // Another history begins; what is left of the old one is not a part of it.
    assert!(log.journal_mut().begin_anew());
    log.journal_mut().set_switches(Switches::default());
    assert_eq!(held(&log, 0..6), vec![None; 6]);
    write(&mut log, 5, 2);
    write_back(&mut log, &sim);
    assert!(log.journal().links().len() > 1, "the old segments are there still");
    assert_eq!(held(&log, 0..6), [vec![None; 5], vec![Some(2)]].concat());
    drop(log);
    let log = open_as(&sim, 0, true);
    assert_eq!(held(&log, 0..6), [vec![None; 5], vec![Some(2)]].concat());
}

#[test]
fn behind_what_cannot_be_read_nothing_older_counts() {
    let (sim, mut log) = made();
    // Four to a segment: the third block of each is written in each.
    for n in 0..12_u8 {
        let block = if n % 4 == 2 { 2 } else { u64::from(n) };
        write(&mut log, block, 100 + n);
    }
    write_back(&mut log, &sim);
    let right = [Some(100), Some(101), Some(110), Some(103), Some(104), Some(105), None];
    assert_eq!(held(&log, 0..7), right);
    let numbers: Vec<u64> = log.journal().history().iter().map(|(h, _)| h.number).collect();
    let name = |n: usize| holdfast_journal::driver::segment_name(numbers[n]);
    // The header of the second frame of the segment in the middle.
    let clean = sim.0.borrow().now.clone();
    sim.0.borrow_mut().now.rot(&name(1), 4096 + 8192 + 8, &[0xEE]);
    let found = held(&log, 0..12);
    assert_eq!(found[..8], [None, None, Some(110), None, None, None, None, None]);
    assert_eq!(found[8..], [Some(108), Some(109), None, Some(111)], "what is newer counts");
    // The payload of the newest record of a block: an older one is not taken instead.
    sim.0.borrow_mut().now = clean;
    sim.0.borrow_mut().now.rot(&name(2), 4096 + 2 * 8192 + 4096 + 9, &[0xEE]);
    assert_eq!(held(&log, 0..4), [Some(100), Some(101), None, Some(103)]);
}

#[test]
fn the_records_of_another_node_say_nothing() {
    let (sim, mut log) = made();
    for block in 0..4 {
        write(&mut log, block, 1);
    }
    write_back(&mut log, &sim);
    drop(log);
    // The same files at a node that has copied them, and leads now.
    let mut log = open_as(&sim, 1, true);
    assert_eq!(held(&log, 0..4), vec![None; 4]);
    write(&mut log, 2, 7);
    write_back(&mut log, &sim);
    assert_eq!(held(&log, 0..4), [None, None, Some(7), None]);
    drop(log);
    let log = open_as(&sim, 1, false);
    assert_eq!(held(&log, 0..4), vec![None; 4], "a disk that follows is where it was replayed to");
}

#[test]
fn a_journal_that_has_failed_says_nothing() {
    let (sim, mut log) = made();
    write(&mut log, 1, 1);
    write_back(&mut log, &sim);
    assert_eq!(held(&log, 1..2), [Some(1)]);
    log.journal_mut().fail();
    assert_eq!(held(&log, 1..2), [None]);
}

#[test]
fn a_long_segment_is_gone_through_in_steps() {
    let sim = Sim::new(State::with_disk(64 * 4096), false);
    let node = NodeId::new(0).unwrap();
    let settings = Settings { segment_bytes: 8 << 20, ..Settings::new(RESOURCE, node, 1) };
    let (generation, time) = (GenerationId(4), HybridTime(0));
    let open = Open { settings, leads: true, generation, time, cut: None, spares: 1 };
    let mut log = Log::open(sim.clone(), &open).unwrap().0;
    for n in 0..600_u16 {
        let block = if n == 0 { 63 } else { u64::from(n % 60) };
        write(&mut log, block, n.to_le_bytes()[0]);
    }
    write_back(&mut log, &sim);
    let mut salvage = log.journal().salvage([3, 63]);
    let mut steps = 1;
    while log.go_on_salvaging(&mut salvage) {
        assert!(salvage.found().is_empty(), "not before the end of the segment");
        steps += 1;
    }
    assert!((10..=24).contains(&steps), "{steps}: of 256 KiB each");
    let last = u8::try_from(543 % 256).unwrap();
    assert_eq!([held(&log, 3..4), held(&log, 63..64)].concat(), [Some(last), Some(0)]);
}

#[test]
fn what_a_search_has_learned_is_not_looked_for_again() {
    let (sim, mut log) = made();
    let mut learned = std::collections::BTreeMap::new();
    // Whether each of two blocks is held, and how many steps that took.
    let mut search = |log: &Log<Sim>| {
        let mut salvage = log.journal().salvage_again([2, 9], &learned);
        let mut steps = 1;
        while log.go_on_salvaging(&mut salvage) {
            steps += 1;
        }
        let found = [2, 9].map(|block| match salvage.found().get(&block) {
            Some(Held::Data { place, skip }) => {
                let range = ByteRange::of_blocks(block..block + 1);
                let data = log.piece(&RunPiece { range, place: *place, skip: *skip }).unwrap();
                Some(data[0])
            }
            Some(Held::Zeroes) => Some(0),
            None => None,
        });
        learned.extend(salvage.learned());
        (found, steps)
    };
    for n in 0..12 {
        write(&mut log, n % 8, u8::try_from(n + 1).unwrap());
    }
    write_back(&mut log, &sim);
    let (found, steps) = search(&log);
    assert_eq!(found, [Some(11), None]);
    assert!(steps > 2, "{steps}");
    assert_eq!(search(&log), (found, 1), "nothing has come since");
    write(&mut log, 9, 77);
    write_back(&mut log, &sim);
    let (found, again) = search(&log);
    assert_eq!(found, [Some(11), Some(77)]);
    assert!(again < steps, "{again}");
    for n in 12..20 {
        write(&mut log, 2, n);
    }
    assert_eq!(search(&log).0, [Some(19), Some(77)], "from what is not written back");
    write_back(&mut log, &sim);
    assert_eq!(search(&log).0, [Some(19), Some(77)]);
}
