//! Crashes at every point of recorded runs, with many subsets of the writes that were not flushed,
//! also torn ones. Whatever is left: nothing that nobody changed is refused, and what was at rest is
//! still verified.

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_format::checksums::{file_length, page_offset};
use holdfast_store::{BufferPool, ChecksumMode, DiskOp, MemoryStore, OpId};

use crate::model::{BLOCKS, image, open_in, seeds, some_blocks};
use crate::scratch::{PAGE, Scratch, blocks, build, read, settle};
use crate::world::{Event, Rng, World, unsynced};

struct Run {
    log: Vec<Event>,
    file: Vec<u8>,
    /// Where in the record a write was begun, and its pages.
    begun: Vec<(usize, BTreeSet<u64>)>,
    touched: BTreeSet<u64>,
}

fn record(seed: u64, count: u64) -> Run {
    let mut rng = Rng(seed.wrapping_mul(0x51_7cc1) | 1);
    let pool = BufferPool::new(8 << 20);
    let (world, scratch) = (World::default(), Scratch::built(BLOCKS));
    let (mut disk, handle) = open_in(&world, &scratch, &pool);
    world.state().log.clear();
    let file = image(&scratch.file);
    let mut run = Run { log: Vec::new(), file, begun: Vec::new(), touched: BTreeSet::new() };
    let (mut op, mut done) = (0, Vec::new());
    while op < count || disk.in_flight() > 0 || !disk.checksums_are_settled() {
        if op < count && disk.in_flight() < 3 && rng.one_in(2) {
            op += 1;
            let range = some_blocks(&mut rng);
            if rng.one_in(4) {
                done.extend(disk.submit(OpId(op), DiskOp::Flush));
            } else {
                run.touched.extend(range.clone());
                let pages = range.clone().map(|block| block / PAGE).collect();
                run.begun.push((world.state().log.len(), pages));
                let range = blocks(range.start, range.end - range.start);
                let data = vec![u8::try_from(op).unwrap(); usize::try_from(range.len).unwrap()];
                let write = DiskOp::Write { range, data: Bytes::from(data), fua: false };
                done.extend(disk.submit(OpId(op), write));
            }
        }
        if rng.one_in(12) || op == count {
            disk.settle_checksums();
        }
        if rng.one_in(15) {
            handle.tick(1);
        }
        world.tick(&mut rng);
        disk.completions(&mut done);
        done.clear();
    }
    run.log = world.state().log.clone();
    run
}

/// What is left on both disks after the first `end` events, without what `lost` says.
fn left(run: &Run, end: usize, lost: &BTreeSet<usize>, torn: Option<(usize, u64)>) -> Scratch {
    let scratch = Scratch {
        main: MemoryStore::new(BLOCKS * 4096),
        file: MemoryStore::new(file_length(BLOCKS * 4096)),
        pool: BufferPool::new(8 << 20),
    };
    scratch.file.write(0, &run.file);
    for (at, event) in run.log[..end].iter().enumerate() {
        let Event::Write { disk, offset, data, .. } = event else { continue };
        let store = if *disk == 0 { &scratch.main } else { &scratch.file };
        match torn {
            Some((number, mask)) if number == at => {
                let sectors = data.chunks(512).enumerate();
                for (i, sector) in sectors.filter(|(i, _)| mask >> (i % 64) & 1 == 1) {
                    store.write(offset + i as u64 * 512, sector);
                }
            }
            _ if lost.contains(&at) => {}
            _ => store.write(*offset, data),
        }
    }
    scratch
}

fn check(run: &Run, end: usize, scratch: &Scratch, state_is_whole: bool, rng: &mut Rng) {
    let (mut disk, handle) = scratch.open();
    for block in &run.touched {
        assert!(read(&mut disk, *block, 1).is_ok(), "block {block} after {end} events");
    }
    if end == run.log.len() {
        assert_eq!(handle.stats().mode, ChecksumMode::On, "all was settled");
    }
    // Nobody has begun to write there.
    let begun: BTreeSet<u64> = run
        .begun
        .iter()
        .filter(|(at, _)| *at < end)
        .flat_map(|(_, pages)| pages.iter().copied())
        .collect();
    // Where a copy of the state is torn, nothing is believed; who writes page by page has some ahead.
    let at_rest = |page: &u64| state_is_whole && (0..=*page).all(|page| !begun.contains(&page));
    for page in (0..3).filter(at_rest) {
        let block = page * PAGE + rng.below(8);
        scratch.flip(block);
        assert!(read(&mut disk, block, 1).is_err(), "page {page} after {end} events");
        scratch.flip(block);
    }
    if rng.one_in(8) {
        build(&mut disk, &handle);
        settle(&mut disk);
        let (mut disk, handle) = scratch.open();
        assert_eq!(handle.stats().mode, ChecksumMode::On);
        for block in &run.touched {
            assert!(read(&mut disk, *block, 1).is_ok());
        }
        let block = *run.touched.first().unwrap();
        scratch.flip(block);
        assert!(read(&mut disk, block, 1).is_err());
    }
}

fn sweep(seed: u64) {
    let mut rng = Rng(seed | 1);
    let run = record(seed, 24);
    assert!(run.log.iter().any(|event| matches!(event, Event::Write { disk: 1, .. })));
    for end in 0..=run.log.len() {
        let open = unsynced(&run.log, end);
        check(&run, end, &left(&run, end, &BTreeSet::new(), None), true, &mut rng);
        check(&run, end, &left(&run, end, &open.iter().copied().collect(), None), true, &mut rng);
        for at in &open {
            let others: BTreeSet<usize> =
                open.iter().copied().filter(|other| other != at).collect();
            check(&run, end, &left(&run, end, &BTreeSet::from([*at]), None), true, &mut rng);
            check(&run, end, &left(&run, end, &others, None), true, &mut rng);
        }
        for _ in 0..3 {
            let lost: BTreeSet<usize> = open.iter().copied().filter(|_| rng.one_in(2)).collect();
            check(&run, end, &left(&run, end, &lost, None), true, &mut rng);
            if let Some(at) = open.get(usize::try_from(rng.below(open.len() as u64)).unwrap()) {
                let torn = Some((*at, rng.below(u64::MAX)));
                let whole = !matches!(
                    &run.log[*at],
                    Event::Write { disk: 1, offset, .. } if *offset < page_offset(0)
                );
                check(&run, end, &left(&run, end, &lost, torn), whole, &mut rng);
            }
        }
    }
}

#[test]
fn no_crash_makes_good_data_unreadable_or_forgets_what_was_at_rest() {
    (1..=seeds("HOLDFAST_CRASH_SEEDS", 10)).for_each(sweep);
}
