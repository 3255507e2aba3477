//! Random requests, several at a time, on a disk whose operations end in any order; blocks change
//! behind everybody's back. Held against what was written.
#![allow(unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_store::{
    BufferPool, ChecksumFile, ChecksumHandle, Completion, Disk, DiskErrorKind, DiskOp, MemoryStore,
    OpId, Outcome,
};

use crate::scratch::{OWNER, PAGE, Scratch, blocks};
use crate::world::{Rng, World};

pub const BLOCKS: u64 = 2 * PAGE + 40;

pub fn seeds(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

pub fn image(store: &MemoryStore) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(store.size()).unwrap()];
    store.read(0, &mut bytes);
    bytes
}

/// A disk and its file in a world, with sums for everything.
pub fn open_in(world: &World, scratch: &Scratch, pool: &BufferPool) -> (Disk, ChecksumHandle) {
    world.add(image(&scratch.main));
    world.add(image(&scratch.file));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng(7);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if !world.tick(&mut rng) {
                    std::thread::yield_now();
                }
            }
        });
        let file = ChecksumFile::load(world.open(1, pool), OWNER, BLOCKS * 4096).unwrap();
        let disk = world.open(0, pool).with_checksums(BLOCKS * 4096, Some(file));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        disk
    })
}

/// Blocks near each other, in all pages.
pub fn some_blocks(rng: &mut Rng) -> std::ops::Range<u64> {
    let first = [0, PAGE - 6, 2 * PAGE - 5, 2 * PAGE + 30][usize::try_from(rng.below(4)).unwrap()];
    let first = first + rng.below(8);
    first..first + 1 + rng.below(5).min(BLOCKS - first - 1)
}

struct Flight {
    write: bool,
    blocks: std::ops::Range<u64>,
    /// What a read may find: what was there when it began, and what was written meanwhile.
    allowed: BTreeMap<u64, BTreeSet<u8>>,
    fill: u8,
    /// What was changed behind its back before it began.
    wrong: BTreeSet<u64>,
}

struct Model {
    content: BTreeMap<u64, BTreeSet<u8>>,
    wrong: BTreeSet<u64>,
    flights: BTreeMap<u64, Flight>,
    found: u64,
}

impl Model {
    fn ended(&mut self, disk: &mut Disk, Completion { op, result }: Completion) {
        let Some(flight) = self.flights.remove(&op.0) else { return };
        if flight.write {
            assert_eq!(result, Ok(Outcome::Done));
            for block in flight.blocks {
                // Writes that overlap end in any order: while another one is under way, either may
                // be what stays.
                let others = self.flights.values().filter(|f| f.write && f.blocks.contains(&block));
                let others: Vec<u8> = others.map(|f| f.fill).collect();
                let content = self.content.entry(block).or_default();
                if others.is_empty() && flight.allowed.is_empty() {
                    *content = BTreeSet::from([flight.fill]);
                } else {
                    content.insert(flight.fill);
                    content.extend(others);
                }
            }
            return;
        }
        let (data, bad) = match result {
            Ok(Outcome::Data(data)) => (data, Vec::new()),
            Err(error) => {
                assert_eq!(error.kind, DiskErrorKind::Unreadable);
                let partial = disk.partial(op).unwrap();
                (partial.data, partial.bad)
            }
            other => panic!("{other:?}"),
        };
        for (block, data) in flight.blocks.clone().zip(data.chunks(4096)) {
            let is_bad = bad.iter().any(|bad| bad.overlaps(blocks(block, 1)));
            if is_bad {
                assert!(flight.wrong.contains(&block), "block {block} is good");
                self.found += 1;
                continue;
            }
            assert!(data.iter().all(|byte| *byte == data[0]), "block {block} is torn or changed");
            let allowed = &flight.allowed[&block];
            assert!(allowed.contains(&data[0]), "block {block}: {} of {allowed:?}", data[0]);
        }
    }
}

/// With `built` every block has a sum from the start, and blocks change behind everybody's back;
/// otherwise sums are computed meanwhile.
fn run(seed: u64, built: bool) -> u64 {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9) | 1);
    let pool = BufferPool::new(8 << 20);
    let scratch = if built { Scratch::built(BLOCKS) } else { Scratch::new(BLOCKS) };
    let world = World::default();
    let (mut disk, handle) = open_in(&world, &scratch, &pool);
    let mut model = Model {
        content: (0..BLOCKS).map(|block| (block, BTreeSet::from([0]))).collect(),
        wrong: BTreeSet::new(),
        flights: BTreeMap::new(),
        found: 0,
    };
    let mut done = Vec::new();
    let mut op = 0;
    while op < 400 || disk.in_flight() > 0 {
        if op < 400 && disk.in_flight() < 6 && rng.one_in(2) {
            op += 1;
            submit(&mut model, &mut disk, &mut rng, op, &mut done);
        }
        if rng.one_in(40) {
            disk.settle_checksums();
        }
        if rng.one_in(20) {
            handle.tick(u32::from(!built));
        }
        world.tick(&mut rng);
        disk.completions(&mut done);
        for completion in done.drain(..) {
            model.ended(&mut disk, completion);
        }
        if built && disk.in_flight() == 0 && rng.one_in(4) {
            // Only while nobody writes it can be said what a change means.
            let block = some_blocks(&mut rng).start;
            let mut state = world.state();
            let at = usize::try_from(block * 4096 + rng.below(4096)).unwrap();
            state.images[0][at] ^= 1 << rng.below(8);
            model.wrong.insert(block);
        }
    }
    assert_eq!(handle.stats().checksum_errors, model.found);
    model.found
}

fn submit(model: &mut Model, disk: &mut Disk, rng: &mut Rng, op: u64, done: &mut Vec<Completion>) {
    let range = some_blocks(rng);
    let bytes = blocks(range.start, range.end - range.start);
    match rng.below(10) {
        0..5 => {
            let fill = u8::try_from(1 + op % 250).unwrap();
            let mut others = BTreeMap::new();
            for flight in model.flights.values_mut() {
                for block in range.clone().filter(|block| flight.blocks.contains(block)) {
                    flight.allowed.entry(block).or_default().insert(fill);
                    if flight.write {
                        others.entry(block).or_insert_with(BTreeSet::new).insert(flight.fill);
                    }
                }
            }
            for block in range.clone() {
                model.wrong.remove(&block);
            }
            let wrong = BTreeSet::new();
            let flight = Flight { write: true, blocks: range, allowed: others, fill, wrong };
            model.flights.insert(op, flight);
            let data = Bytes::from(vec![fill; usize::try_from(bytes.len).unwrap()]);
            done.extend(disk.submit(OpId(op), DiskOp::Write { range: bytes, data, fua: false }));
        }
        5..9 => {
            let mut allowed: BTreeMap<u64, BTreeSet<u8>> =
                range.clone().map(|block| (block, model.content[&block].clone())).collect();
            for flight in model.flights.values().filter(|flight| flight.write) {
                for (block, allowed) in &mut allowed {
                    if flight.blocks.contains(block) {
                        allowed.insert(flight.fill);
                    }
                }
            }
            let wrong = model.wrong.clone();
            let flight = Flight { write: false, blocks: range, allowed, fill: 0, wrong };
            model.flights.insert(op, flight);
            done.extend(disk.submit(OpId(op), DiskOp::Read { range: bytes, holes: false }));
        }
        _ => done.extend(disk.submit(OpId(op), DiskOp::Flush)),
    }
}

#[test]
fn random_requests_find_what_was_written_or_what_was_changed() {
    let found: u64 = (0..seeds("HOLDFAST_MODEL_SEEDS", 12)).map(|seed| run(seed, true)).sum();
    assert!(found > 50, "{found}");
}

#[test]
fn sums_that_are_computed_while_others_write_fit() {
    let found: u64 = (0..seeds("HOLDFAST_MODEL_SEEDS", 24)).map(|seed| run(seed, false)).sum();
    assert_eq!(found, 0);
}
