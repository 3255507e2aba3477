//! Crashes at every point of recorded runs, with every or many subsets of the writes that were not
//! flushed, also torn ones. Whatever is left must open, have everything that was acknowledged as
//! durable, nothing older, and go on. The same when the power fails while the disks are opened again
//! that a killed process left.

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_format::remap::{EntryState, SpareId};
use holdfast_store::{
    BadSector, BufferPool, Disk, DiskOp, MemoryStore, OpId, Outcome, RemapOp, SpareAt,
    SpareErrorKind, TableWrites,
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
#[derive(Clone)]
struct Op {
    kind: Kind,
    range: ByteRange,
    submitted: usize,
    ended: Option<usize>,
}

#[derive(Clone)]
struct Run {
    world: World,
    /// One copy of each table cannot be written: what tears the other may have the spare refused.
    weak: bool,
    start: Vec<Vec<u8>>,
    ops: Vec<Op>,
    /// How often the tables were written durably, and from where in the record on.
    noted: Vec<(usize, TableWrites)>,
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
fn record(seed: u64, count: usize, weak: bool) -> Run {
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
    if weak {
        // Of all of a block, or only of its end.
        let skip = [0, 3584][usize::from(rng.one_in(2))];
        let copies = [BLOCK, start[2].len() as u64 - 2 * BLOCK];
        for (disk, copy) in (1..).zip(copies) {
            world.spoil(disk, at(copy + skip, BLOCK - skip), BadSector::Stuck);
        }
    }
    let pool = BufferPool::new(1 << 20);
    let spares = [1, 2].map(|n| SpareAt::Disk(Box::new(disk_of(&bed, n)))).into();
    // Opened on memory, then moved into the world: opening waits for each step.
    drop(disk_of(&bed, 0).with_spares(spares, &OWNER).unwrap());
    let mut run = Run { world: world.clone(), weak, start, ops: Vec::new(), noted: Vec::new() };
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
        let writes = writes_of(&disk);
        if run.noted.last().is_none_or(|(_, before)| *before != writes) {
            run.noted.push((world.state().log.len(), writes));
        }
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

fn writes_of(disk: &Disk) -> TableWrites {
    disk.spares().iter().map(|spare| (spare.id, spare.table_writes)).collect()
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

/// The disks after these events and a crash: of the unsynced writes `lost` are not there, and of one of
/// them only some sectors.
fn after(
    run: &Run,
    log: &[Event],
    lost: &BTreeSet<usize>,
    torn: Option<(usize, u32)>,
) -> Vec<Vec<u8>> {
    let mut images = run.start.clone();
    for (place, event) in log.iter().enumerate() {
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

fn check(run: &Run, end: usize, images: &[Vec<u8>], torn: bool, what: &str) {
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
    let noted = run.noted.iter().take_while(|(since, _)| *since <= end).last();
    let noted = noted.map(|(_, writes)| writes.clone()).unwrap_or_default();
    let mut disk = match main.with_noted_spares(spares, &OWNER, &noted) {
        Ok(disk) => disk,
        Err(error) if torn && run.weak && matches!(error.kind, SpareErrorKind::Table { .. }) => {
            return;
        }
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

fn sweep(seed: u64, ops: usize, weak: bool) -> usize {
    let run = record(seed, ops, weak);
    let log = run.world.state().log.clone();
    let mut rng = Rng(seed + 99);
    let mut checked = 0;
    for end in 0..=log.len() {
        checked += crashes(&run, end, &log[..end], &mut rng, &format!("seed {seed}"));
    }
    checked
}

/// What a killed process left at every point is opened, and the power fails meanwhile.
fn sweep_openings(seed: u64, ops: usize, weak: bool) -> usize {
    let run = record(seed, ops, weak);
    let log = run.world.state().log.clone();
    let (pool, mut rng) = (BufferPool::new(1 << 20), Rng(seed + 199));
    let mut checked = 0;
    for end in 0..=log.len() {
        let left = after(&run, &log[..end], &BTreeSet::new(), None);
        let world = run.world.restarted(&log[..end], left);
        let spares = [1, 2].map(|n| SpareAt::Disk(Box::new(world.open(n, &pool)))).into();
        let disk = world.open(0, &pool).with_spares(spares, &OWNER).unwrap();
        let writes = writes_of(&disk);
        drop(disk);
        let log = world.state().log.clone();
        // Before it writes, it leaves what a crash of the run itself leaves.
        let is_write = |event: &Event| matches!(event, Event::Write { .. });
        let Some(first) = log[end..].iter().position(is_write) else { continue };
        for upto in end + first + 1..=log.len() {
            let what = format!("seed {seed}, killed at {end} and opened");
            checked += crashes(&run, end, &log[..upto], &mut rng, &what);
        }
        // What the opening told holds for whatever a crash leaves behind it.
        let told = Run { noted: vec![(0, writes)], ..run.clone() };
        let what = format!("seed {seed}, killed at {end}, opened, and told");
        checked += crashes(&told, end, &log, &mut rng, &what);
    }
    checked
}

/// The power fails after these events, of which the operations of the run are those up to `end`.
fn crashes(run: &Run, end: usize, log: &[Event], rng: &mut Rng, of: &str) -> usize {
    let mut checked = 0;
    let open = unsynced(log, log.len());
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
        let what = format!("{of}, crash at {}, without {lost:?}", log.len());
        check(run, end, &after(run, log, lost, None), false, &what);
        checked += 1;
    }
    // The newest write, in parts.
    if let Some(place) = open.last() {
        for mask in [0x01, 0x80, 0x7f, 0xfe, 0x55, u32::try_from(rng.below(255)).unwrap()] {
            let lost = open.iter().copied().filter(|p| p != place && rng.one_in(4)).collect();
            let at = log.len();
            let what = format!("{of}, crash at {at}, torn by {mask:#x}, without {lost:?}");
            let images = after(run, log, &lost, Some((*place, mask * 0x0101_0101)));
            check(run, end, &images, true, &what);
            checked += 1;
        }
    }
    checked
}

/// As many seeds as are asked for, or these few.
fn seeds(few: &[u64]) -> Vec<u64> {
    let seeds = std::env::var("HOLDFAST_CRASH_SEEDS").ok();
    seeds.map_or(few.to_vec(), |text| (0..text.parse().unwrap()).collect())
}

#[test]
fn nothing_is_lost_or_stale_whenever_the_power_fails() {
    let checked: usize = seeds(&[0, 1]).into_iter().map(|seed| sweep(seed, 24, false)).sum();
    eprintln!("{checked} crashes");
    assert!(checked > 1000, "only {checked} crashes were tried");
}

#[test]
fn nothing_is_lost_or_stale_when_the_power_fails_while_the_disk_is_opened() {
    // The first finds an old entry that is freed too soon, the other a copy that is in a cache only.
    let checked: usize =
        seeds(&[0, 3]).into_iter().map(|seed| sweep_openings(seed, 24, false)).sum();
    eprintln!("{checked} crashes");
    assert!(checked > 1000, "only {checked} crashes were tried");
}

#[test]
fn nothing_is_stale_when_the_only_good_copy_of_a_table_is_torn() {
    let checked: usize = seeds(&[0, 1]).into_iter().map(|seed| sweep(seed, 24, true)).sum();
    let opened: usize = seeds(&[2]).into_iter().map(|seed| sweep_openings(seed, 12, true)).sum();
    eprintln!("{checked} and {opened} crashes");
    assert!(checked > 1000 && opened > 100, "only {checked} and {opened} crashes were tried");
}
