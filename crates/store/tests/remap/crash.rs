//! Crashes at every point of recorded runs, with every or many subsets of the writes that were not
//! flushed, also torn ones. Whatever is left must open, have everything that was acknowledged as
//! durable, nothing older, and go on.

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_format::remap::{EntryState, SpareId};
use holdfast_store::{
    BadSector, BufferPool, Disk, DiskOp, MemoryStore, OpId, Outcome, RemapOp, SpareAt,
};
use holdfast_units::ByteRange;

use crate::bed::{BLOCK, Bed, OWNER, at, blocks, slot_offset};
use crate::world::{Event, Rng, World, unsynced};

const BLOCKS: u64 = 24;
const SECTORS: usize = 24 * 8;
const SLOTS: [u32; 2] = [14, 9];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Write,
    Durable,
    Flush,
    Repair,
    Lose,
    /// Changes nothing that can be read.
    Other,
}

/// One operation, and where in the record it was submitted and ended well.
struct Op {
    kind: Kind,
    range: ByteRange,
    submitted: usize,
    ended: Option<usize>,
}

struct Run {
    world: World,
    start: Vec<Vec<u8>>,
    ops: Vec<Op>,
}

fn image(store: &MemoryStore) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(store.size()).unwrap()];
    store.read(0, &mut bytes);
    bytes
}

fn fill_of(op: usize) -> u8 {
    u8::try_from(op + 1).unwrap()
}

/// A random run of operations, several of them at a time.
fn record(seed: u64, count: usize) -> Run {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9) | 1);
    let bed = Bed::new(BLOCKS, 4096, &SLOTS);
    let world = World::default();
    let start: Vec<_> = [&bed.main, &bed.spares[0], &bed.spares[1]].map(image).into();
    start.iter().for_each(|image| world.add(image.clone()));
    for _ in 0..3 {
        let run = blocks(rng.below(BLOCKS - 3), 1 + rng.below(3));
        let bad = if rng.one_in(3) { BadSector::Stuck } else { BadSector::Forever };
        world.spoil(0, run, bad);
    }
    world.spoil(1, at(slot_offset(1, BLOCK, rng.below(4)), 512), BadSector::Forever);
    let pool = BufferPool::new(1 << 20);
    let spares = [1, 2].map(|n| SpareAt::Disk(Box::new(disk_of(&bed, n)))).into();
    // Opened on memory, then moved into the world: opening waits for each step.
    drop(disk_of(&bed, 0).with_spares(spares, &OWNER).unwrap());
    let mut run = Run { world: world.clone(), start, ops: Vec::new() };
    let opener = open_in(&world, &pool);
    let mut disk = opener;
    world.state().log.clear();
    let mut done = Vec::new();
    while run.ops.len() < count || disk.in_flight() > 0 {
        if run.ops.len() < count && (disk.in_flight() < 3 && rng.one_in(2) || disk.in_flight() == 0)
        {
            let at_once = submit(&mut run, &mut disk, &mut rng, count);
            done.extend(at_once);
        }
        world.tick(&mut rng);
        disk.completions(&mut done);
        for completion in done.drain(..) {
            let number = usize::try_from(completion.op.0).unwrap();
            let well = completion.result.is_ok();
            let mut state = world.state();
            state.log.push(Event::Mark);
            run.ops[number].ended = well.then_some(state.log.len());
        }
    }
    run
}

fn disk_of(bed: &Bed, number: usize) -> Disk {
    bed.plain(if number == 0 { &bed.main } else { &bed.spares[number - 1] })
}

/// Opens the disks of a world, while somebody else drives them.
fn open_in(world: &World, pool: &BufferPool) -> Disk {
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
        let spares = [1, 2].map(|n| SpareAt::Disk(Box::new(world.open(n, pool)))).into();
        let disk = world.open(0, pool).with_spares(spares, &OWNER);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        disk.unwrap()
    })
}

fn submit(
    run: &mut Run,
    disk: &mut Disk,
    rng: &mut Rng,
    count: usize,
) -> Option<holdfast_store::Completion> {
    let number = run.ops.len();
    let first = rng.below(BLOCKS);
    let whole = blocks(first, 1 + rng.below((BLOCKS - first).min(6)));
    let small = at(whole.offset + rng.below(8) * 512, 512);
    let data = |range: ByteRange| Bytes::from(vec![fill_of(number); range.len as usize]);
    let (kind, range) = match rng.below(16) {
        _ if number + 1 == count => (Kind::Other, blocks(0, 0)),
        0..5 => (Kind::Write, whole),
        5..7 => (Kind::Durable, whole),
        7 => (Kind::Write, small),
        8..10 => (Kind::Flush, blocks(0, 0)),
        10..12 => (Kind::Repair, whole),
        12 => (Kind::Lose, blocks(first, 1)),
        _ => (Kind::Other, whole),
    };
    let submitted = {
        let mut state = run.world.state();
        state.log.push(Event::Mark);
        state.log.len()
    };
    run.ops.push(Op { kind, range, submitted, ended: None });
    let op = OpId(number as u64);
    match kind {
        Kind::Write => disk.submit(op, DiskOp::Write { range, data: data(range), fua: false }),
        Kind::Durable => disk.submit(op, DiskOp::Write { range, data: data(range), fua: true }),
        Kind::Flush => disk.submit(op, DiskOp::Flush),
        Kind::Repair => disk.remap(op, RemapOp::Repair { range, data: data(range) }),
        Kind::Lose => disk.remap(op, RemapOp::MarkLost { range }),
        Kind::Other if range.is_empty() => {
            disk.remap(op, RemapOp::RemoveSpare { spare: SpareId([1; 16]), empty: true })
        }
        Kind::Other if rng.one_in(2) => disk.remap(op, RemapOp::MoveBack { range }),
        Kind::Other => {
            let range = ByteRange::new(range.offset, BLOCK);
            disk.remap(op, RemapOp::Move { range, imported: false })
        }
    }
}

/// The disks after a crash: the first `end` events, of the unsynced writes only `kept`, and of one of
/// them only `torn` sectors.
fn after(
    run: &Run,
    end: usize,
    lost: &BTreeSet<usize>,
    torn: Option<(usize, u32)>,
) -> Vec<Vec<u8>> {
    let state = run.world.state();
    let mut images = run.start.clone();
    for (place, event) in state.log[..end].iter().enumerate() {
        let Event::Write { disk, offset, data, .. } = event else { continue };
        if lost.contains(&place) {
            continue;
        }
        let offset = usize::try_from(*offset).unwrap();
        // Sectors are written as a whole; but these tables are short, and would never be torn.
        let grain = if data.starts_with(b"HOLDFAST") { 16 } else { 512 };
        for (i, part) in data.chunks(grain).enumerate() {
            if torn.is_some_and(|(which, mask)| which == place && mask >> (i % 32) & 1 == 1) {
                continue;
            }
            images[*disk][offset + i * grain..][..part.len()].copy_from_slice(part);
        }
    }
    images
}

fn check(run: &Run, end: usize, images: &[Vec<u8>], what: &str) {
    let pool = BufferPool::new(0);
    let bad = run.world.state().bad.clone();
    let mut disks = images.iter().zip(&bad).map(|(image, bad)| {
        let store = MemoryStore::new(image.len() as u64);
        store.write(0, image);
        let (disk, faults) = Disk::memory(&store, &pool).unwrap().with_faults(&[]);
        bad.iter().for_each(|(offset, bad)| faults.spoil(at(*offset, 512), *bad));
        disk
    });
    let main = disks.next().unwrap();
    let spares = disks.map(|disk| SpareAt::Disk(Box::new(disk))).collect();
    let mut disk = match main.with_spares(spares, &OWNER) {
        Ok(disk) => disk,
        Err(error) => panic!("{what}: {error}"),
    };
    let mut units = BTreeSet::new();
    for entry in disk.remap_entries().filter(|entry| entry.state != EntryState::BadSlot) {
        assert!(units.insert(entry.range), "{what}: {} has two places", entry.range);
    }
    let found = contents(&mut disk);
    for (sector, value) in found.iter().enumerate() {
        if let Err(why) = allowed(run, end, &bad[0], sector, *value) {
            panic!("{what}: sector {sector} is {value:?}: {why}");
        }
    }
    // It goes on, and whatever takes slots now takes nobody's.
    let mut expected = found;
    for first in [0, BLOCKS / 2] {
        let range = blocks(first, 2);
        let data = Bytes::from(vec![255; range.len as usize]);
        let written = disk.execute(DiskOp::Write { range, data, fua: false }).is_ok();
        let (found, start) = (contents(&mut disk), usize::try_from(first * 8).unwrap());
        for here in start..start + 16 {
            // One that failed, for want of a slot, may have been done in part.
            let partly = !written && found[here] != expected[here];
            if written || partly {
                expected[here] = Some(255);
            }
        }
        assert!(found == expected, "{what}: a write harmed its neighbours");
    }
}

/// What each sector reads as; `None` when it cannot be read.
fn contents(disk: &mut Disk) -> Vec<Option<u8>> {
    let range = blocks(0, BLOCKS);
    let (data, bad) = match disk.execute(DiskOp::Read { range, holes: false }) {
        Ok(Outcome::Data(data)) => (data, Vec::new()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            let partial = disk.partial(OpId(0)).unwrap_or_else(|| panic!("{error}"));
            (partial.data, partial.bad)
        }
    };
    let value = |sector: usize| {
        let here = at(sector as u64 * 512, 512);
        let bytes = &data[sector * 512..][..512];
        if bad.iter().any(|range| range.overlaps(here)) {
            return None;
        }
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "sector {sector} is mixed");
        Some(bytes[0])
    };
    (0..SECTORS).map(value).collect()
}

/// Whether a sector may have this value after a crash at `end`.
fn allowed(
    run: &Run,
    end: usize,
    bad: &std::collections::BTreeMap<u64, BadSector>,
    sector: usize,
    value: Option<u8>,
) -> Result<(), String> {
    let here = at(sector as u64 * 512, 512);
    let begun = |op: &Op| op.submitted <= end && op.range.overlaps(here);
    let flushed = |op: &Op| {
        run.ops.iter().any(|flush| {
            flush.kind == Kind::Flush
                && flush.ended.is_some_and(|ended| ended <= end)
                && op.ended.is_some_and(|ended| ended < flush.submitted)
        })
    };
    let durable = |op: &&Op| {
        begun(op)
            && op.ended.is_some_and(|ended| ended <= end)
            && match op.kind {
                Kind::Durable | Kind::Repair | Kind::Lose => true,
                Kind::Write => flushed(op),
                Kind::Flush | Kind::Other => false,
            }
    };
    // The last moment at which what was found was current.
    let until = match value {
        Some(0) => 0,
        Some(fill) => {
            let op = &run.ops[usize::from(fill) - 1];
            if !begun(op) {
                return Err("it was never written there".into());
            }
            op.ended.unwrap_or(usize::MAX)
        }
        None => {
            let lost = run.ops.iter().filter(|op| begun(op) && op.kind == Kind::Lose);
            let lost = lost.map(|op| op.ended.unwrap_or(usize::MAX)).max();
            let unit = here.offset / BLOCK * BLOCK;
            let rotten = bad.range(unit..unit + BLOCK).next().is_some();
            match lost {
                Some(until) => until,
                None if rotten => 0,
                None => return Err("nothing is wrong with it".into()),
            }
        }
    };
    match run.ops.iter().find(|op| durable(op) && op.submitted > until) {
        Some(op) => Err(format!("{:?} of {} came after it and was durable", op.kind, op.range)),
        None => Ok(()),
    }
}

fn sweep(seed: u64, ops: usize) -> usize {
    let run = record(seed, ops);
    let log = run.world.state().log.clone();
    let mut rng = Rng(seed + 99);
    let mut checked = 0;
    for end in 0..=log.len() {
        let open = unsynced(&log, end);
        let mut subsets: BTreeSet<BTreeSet<usize>> = BTreeSet::new();
        subsets.insert(BTreeSet::new());
        subsets.insert(open.iter().copied().collect());
        if open.len() <= 3 {
            for mask in 0..1_u32 << open.len() {
                let lost = open.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
                subsets.insert(lost.map(|(_, place)| *place).collect());
            }
        } else {
            for _ in 0..4 {
                subsets.insert(open.iter().copied().filter(|_| rng.one_in(2)).collect());
            }
        }
        for lost in &subsets {
            let what = format!("seed {seed}, crash at {end}, without {lost:?}");
            check(&run, end, &after(&run, end, lost, None), &what);
            checked += 1;
        }
        // The newest write, in parts.
        if let Some(place) = open.last() {
            for mask in [0x01, 0x80, 0x7f, 0xfe, 0x55, u32::try_from(rng.below(255)).unwrap()] {
                let lost = open.iter().copied().filter(|p| p != place && rng.one_in(4)).collect();
                let what =
                    format!("seed {seed}, crash at {end}, torn by {mask:#x}, without {lost:?}");
                let images = after(&run, end, &lost, Some((*place, mask * 0x0101_0101)));
                check(&run, end, &images, &what);
                checked += 1;
            }
        }
    }
    checked
}

#[test]
fn nothing_is_lost_or_stale_whenever_the_power_fails() {
    let seeds = std::env::var("HOLDFAST_CRASH_SEEDS").ok();
    let seeds = seeds.map_or(2, |text| text.parse().unwrap());
    let checked: usize = (0..seeds).map(|seed| sweep(seed, 24)).sum();
    eprintln!("{checked} crashes");
    assert!(checked > 1000, "only {checked} crashes were tried");
}
