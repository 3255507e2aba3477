//! Crash-point sweep: the files and the disk of a run after every step and every kind of crash,
//! opened again.
//!
//! Checked are the promises: what is found is exactly a prefix of what was appended, with all
//! that was completed (after a kill) or flushed (after a power failure); disk and journal
//! together are exactly the state of that prefix, never a mixture; and a crash is never taken
//! for damage.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use bytes::Bytes;
use holdfast_format::journal::DEVICE_DATA_AT;
use holdfast_format::journal::{Compression, RecordKind};
use holdfast_journal::driver::{Backing, Device, Files, Log, Open};
use holdfast_journal::{Held, Op, RunPiece, Settings, WriteBackLimits};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use support::{CRASHES, Crash, Dice, Sim, SimMedia, State, Step};

const BLOCKS: u64 = 12;
const DISK: u64 = BLOCKS * 4096;
/// Tables, cursors, and room for nine segments.
const DEVICE: u64 = DEVICE_DATA_AT + (4 + 9 * 9) * 4096;
/// The time of an op tells which one it is; it may be raised a little.
const TIME_STEP: u64 = 1000;

/// What was pushed.
#[derive(Clone, Debug)]
struct Pushed {
    kind: RecordKind,
    range: ByteRange,
    data: Vec<u8>,
}

impl Pushed {
    fn any(dice: &mut Dice, salt: u64) -> Self {
        let kind = match dice.below(10) {
            0 => RecordKind::Zeroes,
            1 => RecordKind::Discard,
            2 => RecordKind::Flush,
            _ => RecordKind::Write,
        };
        let len = (1 + dice.below(2)) * 4096;
        let range = ByteRange::new(dice.below(BLOCKS - 1) * 4096, len);
        let range = if kind == RecordKind::Flush { ByteRange::default() } else { range };
        let mut data = vec![0; usize::try_from(range.len).unwrap()];
        if kind == RecordKind::Write {
            let noise = dice.one_in(2);
            for word in data.chunks_exact_mut(8) {
                let word_data = if noise { dice.below(u64::MAX) } else { salt };
                word.copy_from_slice(&word_data.to_le_bytes());
            }
        }
        Self { kind, range, data }
    }

    fn op(&self, time: u64, packed: bool) -> Op {
        let time = HybridTime(time);
        let compression = match self.range.offset / 4096 % 3 {
            0 if packed => Compression::Lz4,
            1 if packed => Compression::Zstd,
            _ => Compression::None,
        };
        let data = Bytes::from(self.data.clone());
        match self.kind {
            RecordKind::Write => {
                Op::write_packed(self.range.offset, data, time, false, compression).unwrap()
            }
            RecordKind::Flush => Op::flush(time),
            kind => Op::zeroes(self.range, time, kind == RecordKind::Discard, false).unwrap(),
        }
    }
}

/// The disk after these ops.
fn replayed(ops: &[Pushed]) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(DISK).unwrap()];
    for op in ops {
        let from = usize::try_from(op.range.offset).unwrap();
        disk[from..from + op.data.len()].copy_from_slice(&op.data);
    }
    disk
}

#[derive(Clone, Copy)]
struct Shape {
    alignment: u32,
    through: bool,
    packed: bool,
    unsynced_bytes: u64,
    device: bool,
}

fn open(sim: &Sim, shape: Shape, epoch: u64) -> Log<Box<dyn Files>> {
    let node = NodeId::new(0).unwrap();
    let settings = Settings {
        segment_bytes: 9 * 4096,
        alignment: shape.alignment,
        batch_bytes: 12 << 10,
        unsynced_bytes: shape.unsynced_bytes,
        budget_bytes: 3 * 9 * 4096,
        ..Settings::new(ResourceId([7; 16]), node, epoch)
    };
    let open = Open {
        settings,
        leads: true,
        generation: GenerationId(4),
        time: HybridTime(0),
        cut: None,
        spares: 1,
    };
    let files: Box<dyn Files> = match shape.device {
        true => Box::new(on_device(sim)),
        false => Box::new(sim.clone()),
    };
    Log::open(files, &open).expect("a crash is no damage").0
}

/// The device, made if it is new.
fn on_device(sim: &Sim) -> Device<SimMedia> {
    match Device::open(SimMedia(sim.clone())) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Device::format(SimMedia(sim.clone())).expect("it is long enough")
        }
        device => device.expect("a crash is no damage"),
    }
}

/// Does anything for a while, until a step fails. The log found `base` ops when it was opened.
fn work(
    sim: &Sim,
    log: &mut Log<Box<dyn Files>>,
    base: usize,
    all: &mut Vec<Pushed>,
    dice: &mut Dice,
    shape: Shape,
) {
    let salt = dice.below(u64::MAX);
    let limits = WriteBackLimits { bytes: 32 << 10, runs: 4, run_bytes: 16 << 10 };
    let mut disk = sim.clone();
    for _ in 0..14 {
        let result = match dice.below(12) {
            0 => log.store_cursors().map_err(|_| ()),
            1 => log.recycle().map(|_| ()).map_err(|_| ()),
            2 => log.prepare_spare().map_err(|_| ()),
            3..=5 => {
                let flush = dice.one_in(2);
                log.write_back(&mut disk, limits, flush).map(|_| ()).map_err(|_| ())
            }
            6 => log.cut(|_| Ok(())).map(|_| ()).map_err(|_| ()),
            n => {
                for _ in 0..1 + dice.below(4) {
                    let op = Pushed::any(dice, salt ^ all.len() as u64);
                    let time = all.len() as u64 * TIME_STEP;
                    if log.push(op.op(time, shape.packed)).is_err() {
                        return;
                    }
                    all.push(op);
                }
                let pushed = sim.step(Step::Pushed(all.len()));
                let done = if n < 9 { log.flush() } else { log.pump() };
                pushed.and(done).map_err(|_| ())
            }
        };
        let count = |n: u64| base + usize::try_from(n).unwrap();
        let completed = Step::Completed(count(log.journal().written_ticket().0));
        let flushed = Step::Flushed(count(log.journal().durable_ticket().0));
        if result.and(sim.step(completed).map_err(|_| ())).is_err() || sim.step(flushed).is_err() {
            return;
        }
    }
}

/// Opens what a crash left and checks the promises; how many ops were found.
fn check(sim: &Sim, log: &Log<Box<dyn Files>>, all: &[Pushed], crash: Crash) -> usize {
    let (pushed, completed, flushed) = {
        let tracing = sim.0.borrow();
        (tracing.start.pushed, tracing.start.completed, tracing.start.flushed)
    };
    let tail = log.journal().status().tail;
    let records = log.records(tail).expect("all that was found can be read");
    let mut found = None;
    let mut position = None;
    for (at, op) in &records {
        assert!(position.is_none_or(|before: LogPosition| before < *at), "in order");
        position = Some(*at);
        let index = usize::try_from(op.time().0 / TIME_STEP).unwrap();
        assert!(found.is_none_or(|before: usize| before + 1 == index), "without gaps");
        let expected = &all[index];
        assert_eq!((op.kind(), op.range()), (expected.kind, expected.range));
        if op.kind() == RecordKind::Write {
            assert!(*op.payload() == expected.data, "not the payload that was submitted");
        }
        found = Some(index);
    }
    // What was recycled is on the disk.
    let needed = if crash == Crash::Kill { completed } else { flushed };
    let count = match found {
        Some(last) => last + 1,
        None => {
            let now = read_all(sim, log);
            (needed..=pushed)
                .rev()
                .find(|n| now == replayed(&all[..*n]))
                .expect("the disk is a state in time")
        }
    };
    assert!(count >= needed, "{count} ops were found, and {needed} were promised ({crash:?})");
    assert!(count <= pushed, "{count} ops were found, and {pushed} were made");
    let now = read_all(sim, log);
    assert!(now == replayed(&all[..count]), "not a prefix ({crash:?})");
    check_salvage(log, &now, &records);
    count
}

/// What the records say of blocks is what disk and journal hold together, and they say it of all that
/// they have.
fn check_salvage(log: &Log<Box<dyn Files>>, now: &[u8], records: &[(LogPosition, Op)]) {
    let mut salvage = log.journal().salvage(0..BLOCKS);
    while log.go_on_salvaging(&mut salvage) {}
    for (block, now) in (0..).zip(now.chunks(4096)) {
        let held = salvage.found().get(&block);
        let is_kept = records.iter().any(|(_, op)| op.range().blocks().contains(&block));
        assert_eq!(held.is_some(), is_kept, "block {block}");
        let range = ByteRange::of_blocks(block..block + 1);
        match held {
            Some(Held::Data { place, skip }) => {
                let piece = RunPiece { range, place: *place, skip: *skip };
                assert!(log.piece(&piece).unwrap() == now, "block {block} is another one");
            }
            Some(Held::Zeroes) => assert!(now.iter().all(|byte| *byte == 0), "block {block}"),
            None => {}
        }
    }
}

fn read_all(sim: &Sim, log: &Log<Box<dyn Files>>) -> Vec<u8> {
    let disk: &mut dyn Backing = &mut sim.clone();
    log.read(ByteRange::new(0, DISK), disk).unwrap().to_vec()
}

/// Crashes a run after each of its steps (or each `stride`-th) and in all ways; with `depth`, a
/// few of what is found are worked with, and crash again.
fn sweep(
    trace: (&State, &[Step]),
    all: &[Pushed],
    dice: &mut Dice,
    shape: Shape,
    stride: u64,
    depth: u32,
) -> usize {
    let (start, steps) = trace;
    let mut state = start.clone();
    let mut opened = 0;
    for n in 0..=steps.len() {
        if n > 0 {
            state.apply(&steps[n - 1]);
        }
        let promise = n > 0 && matches!(steps[n - 1], Step::Completed(_) | Step::Flushed(_));
        // Promises are made in between of steps: right behind them is where they break.
        if !dice.one_in(if promise { stride / 3 } else { stride }) {
            continue;
        }
        for crash in CRASHES {
            let sim = Sim::new(state.crash(crash, dice), shape.through);
            let epoch = dice.below(u64::MAX);
            let mut log = open(&sim, shape, epoch);
            let count = check(&sim, &log, all, crash);
            opened += 1;
            if depth > 0 && dice.one_in(40 / u64::from(depth)) {
                let mut all = all[..count].to_vec();
                {
                    let mut tracing = sim.0.borrow_mut();
                    for step in [Step::Pushed(count), Step::Completed(count), Step::Flushed(count)]
                    {
                        tracing.now.apply(&step);
                        tracing.steps.push(step);
                    }
                }
                work(&sim, &mut log, count, &mut all, dice, shape);
                let tracing = sim.0.borrow();
                // Before the first step, what was promised in the run before counts.
                let first = tracing.steps.iter().position(|s| matches!(s, Step::Flushed(_)));
                let (opening, rest) = tracing.steps.split_at(first.unwrap() + 1);
                let mut start = tracing.start.clone();
                opening.iter().for_each(|step| start.apply(step));
                opened += sweep((&start, rest), &all, dice, shape, 9, depth - 1);
            }
        }
    }
    opened
}

fn run(seed: u64, shape: Shape) -> usize {
    let mut dice = Dice::new(seed);
    let mut state = State::with_disk(usize::try_from(DISK).unwrap());
    if shape.device {
        // Of an earlier use.
        let old = (0..DEVICE).map(|n| if n < DEVICE_DATA_AT { 0 } else { n.to_le_bytes()[1] | 1 });
        state.add_file("device", old.collect());
    }
    let sim = Sim::new(state, shape.through);
    let mut log = open(&sim, shape, seed);
    let mut all = Vec::new();
    for _ in 0..3 {
        work(&sim, &mut log, 0, &mut all, &mut dice, shape);
    }
    let tracing = sim.0.borrow();
    // A device is longer, and each crash copies it.
    let (stride, depth) = if shape.device { (20, 1) } else { (3, 2) };
    sweep((&tracing.start, &tracing.steps), &all, &mut dice, shape, stride, depth)
}

const PLAIN: Shape = Shape {
    alignment: 4096,
    through: false,
    packed: false,
    unsynced_bytes: 1 << 20,
    device: false,
};

/// Runs seeds from `first` on: 2, or as many as `HOLDFAST_JOURNAL_SEEDS` says.
fn seeds(first: u64, shape: Shape) {
    let count = std::env::var("HOLDFAST_JOURNAL_SEEDS").ok().and_then(|text| text.parse().ok());
    for seed in first..first + count.unwrap_or(2) {
        let opened = run(seed, shape);
        let least = if shape.device { 100 } else { 300 };
        assert!(opened > least, "seed {seed}: only {opened} crashes were tried");
    }
}

#[test]
fn through_the_page_cache() {
    seeds(0, PLAIN);
}

#[test]
fn around_the_page_cache() {
    seeds(1000, Shape { through: true, ..PLAIN });
}

#[test]
fn small_sectors_and_compression() {
    let shape = Shape { alignment: 512, packed: true, unsynced_bytes: 16 << 10, ..PLAIN };
    seeds(2000, shape);
}

#[test]
fn on_a_device() {
    seeds(3000, Shape { device: true, ..PLAIN });
    seeds(4000, Shape { device: true, through: true, packed: true, ..PLAIN });
}

#[test]
fn after_an_error_nothing_more_is_promised() {
    for fail_at in 8..80 {
        let mut dice = Dice::new(fail_at);
        let sim = Sim::new(State::with_disk(usize::try_from(DISK).unwrap()), false);
        let mut log = open(&sim, PLAIN, 1);
        sim.0.borrow_mut().fail_at = usize::try_from(fail_at).unwrap();
        let mut all = Vec::new();
        for _ in 0..4 {
            work(&sim, &mut log, 0, &mut all, &mut dice, PLAIN);
        }
        let mut state = sim.0.borrow().now.clone();
        state.pushed = all.len();
        for crash in CRASHES {
            let sim = Sim::new(state.crash(crash, &mut dice), false);
            let log = open(&sim, PLAIN, 2);
            check(&sim, &log, &all, crash);
        }
    }
}

/// After a failed sync what was written goes to the disk, also what is not durable in the journal.
#[test]
fn a_rescue_that_is_cut_off_is_never_taken_for_the_same_history() {
    let limits = WriteBackLimits { bytes: 8 << 10, runs: 2, run_bytes: 4 << 10 };
    let mut bypasses = 0;
    for (seed, cursors_fail) in (0..12).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut dice = Dice::new(seed);
        let sim = Sim::new(State::with_disk(usize::try_from(DISK).unwrap()), false);
        let mut log = open(&sim, PLAIN, 1);
        let mut all = Vec::new();
        for count in [6, 3] {
            for _ in 0..count {
                let op = Pushed::any(&mut dice, seed ^ all.len() as u64);
                log.push(op.op(all.len() as u64 * TIME_STEP, false)).unwrap();
                all.push(op);
            }
            if count == 6 { log.flush().unwrap() } else { log.pump().unwrap() }
        }
        let flushed = usize::try_from(log.journal().durable_ticket().0).unwrap();
        sim.0.borrow_mut().fail_sync = true;
        if log.flush().is_ok() {
            continue;
        }
        let begin = sim.0.borrow().steps.len();
        sim.0.borrow_mut().fail_sync = cursors_fail;
        log.begin_rescue().unwrap();
        let mut disk = sim.clone();
        while log.write_back(&mut disk, limits, false).unwrap() {}
        log.write_back(&mut disk, limits, true).unwrap();
        log.give_up().unwrap();
        let tracing = sim.0.borrow();
        let mut state = tracing.start.clone();
        for (n, step) in (1..).zip(&tracing.steps) {
            state.apply(step);
            (state.pushed, state.completed, state.flushed) = (all.len(), all.len(), flushed);
            for crash in CRASHES.into_iter().filter(|_| n >= begin) {
                let sim = Sim::new(state.crash(crash, &mut dice), false);
                let log = open(&sim, PLAIN, 2);
                bypasses += usize::from(check_rescued(&sim, &log, &all, flushed, crash));
            }
        }
    }
    assert!(bypasses > 100, "{bypasses}");
}

/// What the disk has of a rescue is either what the journal says, or it is said that it is not;
/// whether it is.
fn check_rescued(
    sim: &Sim,
    log: &Log<Box<dyn Files>>,
    all: &[Pushed],
    flushed: usize,
    crash: Crash,
) -> bool {
    let tail = log.journal().status().tail;
    let records = log.records(tail).unwrap();
    if log.journal().links().is_empty() {
        assert!(read_all(sim, log) == replayed(all), "given up before all was on the disk");
        return false;
    }
    if !log.journal().switches().bypassed {
        check(sim, log, all, crash);
        return false;
    }
    assert!(log.journal().history().is_empty(), "the disk may be newer than the records");
    let found = records.len();
    assert!(found >= flushed, "{found} of {flushed} ({crash:?})");
    let states: Vec<Vec<u8>> = (found..=all.len()).map(|n| replayed(&all[..n])).collect();
    for (block, now) in read_all(sim, log).chunks(512).enumerate() {
        let at = block * 512..(block + 1) * 512;
        let known = |state: &Vec<u8>| state[at.clone()] == *now;
        assert!(crash == Crash::Any || states.iter().any(known), "sector {block} ({crash:?})");
    }
    true
}
