//! The backing of a disk is replaced while it is written to, with faults of either one.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{beds, disk_scratch};
use holdfast_format::checksums::file_length;
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BadSector, BufferPool, ChecksumFile, Completion, Disk, DiskErrorKind, DiskIdentity, DiskOp,
    FaultHandle, MemoryStore, OpId, OpenOptions, Outcome, RemapOp, ReplaceHandle, ReplaceState,
    SpareAt, SpareFormat, create_file, format_spare,
};
use holdfast_units::{ByteRange, ResourceId};

const BLOCK: u64 = 4096;

/// A small generator of numbers that look random.
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn memory(store: &MemoryStore) -> (Disk, FaultHandle) {
    Disk::memory(store, &BufferPool::new(64 << 20)).unwrap().with_faults(&[])
}

fn contents(store: &MemoryStore) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(store.size()).unwrap()];
    store.read(0, &mut all);
    all
}

/// Drives a disk until its replacement is as wanted.
fn until(disk: &mut Disk, handle: &ReplaceHandle, wanted: impl Fn(&ReplaceState) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut done = Vec::new();
    while !wanted(&handle.status().state) {
        assert!(Instant::now() < deadline, "it stays {:?}", handle.status());
        handle.tick();
        disk.wait(&mut done, Duration::from_millis(2));
        disk.completions(&mut done);
    }
    assert!(done.is_empty(), "nothing was asked for");
}

fn switch(disk: &mut Disk, handle: &ReplaceHandle) {
    until(disk, handle, |state| *state == ReplaceState::InStep);
    handle.hold();
    until(disk, handle, |state| *state == ReplaceState::Held);
    handle.switch();
    until(disk, handle, |state| *state == ReplaceState::Switched);
    assert!(handle.take_retired().is_some());
}

fn write(disk: &mut Disk, offset: u64, fill: u8, len: u64) -> Result<Outcome, DiskErrorKind> {
    let data = Bytes::from(vec![fill; usize::try_from(len).unwrap()]);
    let request = DiskOp::Write { range: ByteRange::new(offset, len), data, fua: true };
    run(disk, request)
}

fn read(disk: &mut Disk, offset: u64, len: u64) -> Result<Outcome, DiskErrorKind> {
    run(disk, DiskOp::Read { range: ByteRange::new(offset, len), holes: false })
}

fn run(disk: &mut Disk, request: DiskOp) -> Result<Outcome, DiskErrorKind> {
    disk.execute(request).map_err(|error| error.kind)
}

fn is_failed(state: &ReplaceState) -> bool {
    matches!(state, ReplaceState::Failed(_))
}

/// Many requests at a time over a disk that is being replaced, and what the disk must hold then.
struct Load {
    rng: Rng,
    size: u64,
    /// By block: what it may hold.
    model: Vec<Vec<u8>>,
    /// What is under way, by number: its blocks and what it writes.
    flights: Vec<(u64, std::ops::Range<usize>, u8)>,
    next: u64,
}

impl Load {
    fn new(seed: u64, size: u64) -> Self {
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let blocks = usize::try_from(size / BLOCK).unwrap();
        Self { rng, size, model: vec![vec![0]; blocks], flights: Vec::new(), next: 0 }
    }

    fn step(&mut self, disk: &mut Disk) {
        let blocks = self.size / BLOCK;
        let start = self.rng.below(blocks);
        let longest = if self.rng.below(4) == 0 { 300 } else { 4 };
        let count = 1 + self.rng.below(longest.min(blocks - start));
        let range = ByteRange::of_blocks(start..start + count);
        let span = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
        let fill = u8::try_from(1 + self.rng.below(255)).unwrap();
        let bytes = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
        let (request, fill) = match self.rng.below(8) {
            0 => (DiskOp::WriteZeroes { range, unmap: true, fua: false }, 0),
            1 => (DiskOp::Flush, 0),
            _ => (DiskOp::Write { range, data: bytes, fua: self.rng.below(3) == 0 }, fill),
        };
        self.next += 1;
        if !matches!(request, DiskOp::Flush) {
            self.flights.push((self.next, span, fill));
        }
        let done = disk.submit(OpId(self.next), request);
        self.take(done.into_iter().collect());
        if self.rng.below(3) == 0 {
            disk.kick();
        }
        if self.rng.below(4) == 0 {
            let mut done = Vec::new();
            disk.completions(&mut done);
            self.take(done);
        }
        while self.flights.len() > 24 {
            self.wait(disk);
        }
    }

    fn wait(&mut self, disk: &mut Disk) {
        let mut done = Vec::new();
        disk.wait(&mut done, Duration::from_secs(10));
        assert!(!done.is_empty(), "nothing completed for 10 seconds");
        self.take(done);
    }

    fn drain(&mut self, disk: &mut Disk) {
        while disk.in_flight() > 0 {
            self.wait(disk);
        }
        assert!(self.flights.is_empty());
    }

    fn take(&mut self, done: Vec<Completion>) {
        for Completion { op, result } in done {
            let Some(at) = self.flights.iter().position(|flight| flight.0 == op.0) else {
                continue;
            };
            let (_, span, fill) = self.flights.swap_remove(at);
            for block in span {
                // Requests at the same time have no order: any of them may be the last one.
                let alone = !self.flights.iter().any(|(_, other, _)| other.contains(&block));
                let may = &mut self.model[block];
                if alone && result.is_ok() && may.len() == 1 {
                    may.clear();
                }
                may.push(fill);
            }
        }
    }

    /// All that it holds may be there.
    fn check(&self, held: &[u8]) {
        for (block, may) in self.model.iter().enumerate() {
            let at = block * 4096;
            let bytes = &held[at..at + 4096];
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is mixed");
            assert!(may.contains(&bytes[0]), "block {block} is {} and not {may:?}", bytes[0]);
        }
    }
}

#[test]
fn after_random_writes_both_disks_are_the_same_and_the_new_one_goes_on() {
    for seed in 0..40 {
        let (one, two) = (MemoryStore::new(6 << 20), MemoryStore::new(7 << 20));
        two.write(0, &[0x55; 4 << 20]);
        let (mut disk, _) = memory(&one);
        let handle = disk.replace_handle();
        let mut load = Load::new(seed, 6 << 20);
        for _ in 0..60 {
            load.step(&mut disk);
        }
        handle.begin(memory(&two).0, 6 << 20, 0);
        let mut held = 0;
        for step in 0..4000 {
            load.step(&mut disk);
            handle.tick();
            match handle.status().state {
                ReplaceState::Copying => {}
                ReplaceState::InStep if step % 7 == 0 => handle.hold(),
                ReplaceState::Held if held < 2 => {
                    held += 1;
                    assert!(contents(&one)[..] == contents(&two)[..6 << 20], "seed {seed}");
                    handle.release();
                }
                ReplaceState::Held => handle.switch(),
                ReplaceState::Switched => break,
                ReplaceState::InStep => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
        load.drain(&mut disk);
        switch_if_not_yet(&mut disk, &handle);
        let before = contents(&one);
        for _ in 0..50 {
            load.step(&mut disk);
        }
        load.drain(&mut disk);
        load.check(&contents(&two));
        assert!(before == contents(&one), "the old disk is left alone");
    }
}

fn switch_if_not_yet(disk: &mut Disk, handle: &ReplaceHandle) {
    match handle.status().state {
        ReplaceState::Switched => return,
        ReplaceState::Held => handle.release(),
        _ => {}
    }
    switch(disk, handle);
}

#[test]
fn a_new_disk_that_fails_at_any_moment_ends_only_the_move() {
    for seed in 0..40 {
        let (one, two) = (MemoryStore::new(4 << 20), MemoryStore::new(4 << 20));
        let (mut disk, _) = memory(&one);
        let (new, faults) = memory(&two);
        let handle = disk.replace_handle();
        let mut load = Load::new(seed, 4 << 20);
        for _ in 0..40 {
            load.step(&mut disk);
        }
        let verb = ["write", "flush", "zeroes", "write"][usize::try_from(seed % 4).unwrap()];
        let error = ["EIO", "ENOSPC"][usize::try_from(seed % 2).unwrap()];
        let rule = format!("{verb}:after={}:error={error}", seed % 13);
        faults.add(rule.parse().unwrap()).unwrap();
        handle.begin(new, 4 << 20, 0);
        for _ in 0..400 {
            load.step(&mut disk);
            handle.tick();
            match handle.status().state {
                ReplaceState::InStep => handle.hold(),
                ReplaceState::Held => handle.release(),
                _ => {}
            }
        }
        handle.release();
        load.drain(&mut disk);
        until(&mut disk, &handle, |state| is_failed(state) || *state == ReplaceState::InStep);
        if !is_failed(&handle.status().state) {
            handle.stop();
            until(&mut disk, &handle, |state| *state == ReplaceState::None);
        }
        load.check(&contents(&one));
        // Another one can be tried.
        handle.begin(memory(&two).0, 4 << 20, 0);
        switch(&mut disk, &handle);
        load.check(&contents(&two));
    }
}

#[test]
fn what_the_old_disk_cannot_read_is_left_over_until_it_is_written() {
    let (one, two) = (MemoryStore::new(3 << 20), MemoryStore::new(3 << 20));
    one.write(0, &[7; 3 << 20]);
    let (mut disk, faults) = memory(&one);
    for block in [0, 1, 300, 700] {
        faults.spoil(ByteRange::new(block * BLOCK + 512, 512), BadSector::UntilWritten);
    }
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 3 << 20, 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while handle.status().done < 3 << 20 {
        assert!(Instant::now() < deadline);
        handle.tick();
        disk.wait(&mut Vec::new(), Duration::from_millis(1));
        disk.completions(&mut Vec::new());
    }
    let status = handle.status();
    assert_eq!((status.state, status.left_over), (ReplaceState::Copying, 4));
    let blocks = |first: u64, count| ByteRange::of_blocks(first..first + count);
    assert_eq!(status.left_over_at, [blocks(0, 2), blocks(300, 1), blocks(700, 1)]);
    assert_eq!(read(&mut disk, 0, BLOCK), Err(DiskErrorKind::Io));
    // A part of a block does not make it whole.
    assert_eq!(write(&mut disk, 300 * BLOCK + 512, 1, 512), Ok(Outcome::Done));
    write(&mut disk, 0, 9, 2 * BLOCK).unwrap();
    handle.tick();
    disk.completions(&mut Vec::new());
    assert_eq!(handle.status().left_over, 2);
    // The sector of that block was written, so it can be read now. The last one is made good, too.
    faults.mend(ByteRange::new(700 * BLOCK, BLOCK));
    handle.try_again();
    switch(&mut disk, &handle);
    assert!(contents(&one) == contents(&two));
}

#[test]
fn a_disk_that_cannot_be_read_at_all_is_not_replaced() {
    let (one, two) = (MemoryStore::new(300 << 20), MemoryStore::new(300 << 20));
    let (mut disk, faults) = memory(&one);
    faults.add("read:error=EIO".parse().unwrap()).unwrap();
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 300 << 20, 0);
    until(&mut disk, &handle, is_failed);
}

#[test]
fn a_write_that_the_old_disk_refuses_fails_and_is_copied_again() {
    let (one, two) = (MemoryStore::new(2 << 20), MemoryStore::new(2 << 20));
    let (mut disk, faults) = memory(&one);
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 2 << 20, 0);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    faults.add("write:count=1:error=EIO".parse().unwrap()).unwrap();
    assert_eq!(write(&mut disk, BLOCK, 5, BLOCK), Err(DiskErrorKind::Io));
    switch(&mut disk, &handle);
    assert!(contents(&one) == contents(&two));
}

#[test]
fn a_flush_of_the_old_disk_that_fails_poisons_it_as_without_a_move() {
    let (one, two) = (MemoryStore::new(1 << 20), MemoryStore::new(1 << 20));
    let (mut disk, faults) = memory(&one);
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 1 << 20, 0);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    faults.add("flush:error=EIO".parse().unwrap()).unwrap();
    assert_eq!(run(&mut disk, DiskOp::Flush), Err(DiskErrorKind::FlushFailed));
    assert_eq!(read(&mut disk, 0, BLOCK), Err(DiskErrorKind::Poisoned));
    drop(disk);
    assert_eq!(handle.status().state, ReplaceState::Closed);
}

#[test]
fn a_new_disk_that_is_too_small_is_refused() {
    let (one, two) = (MemoryStore::new(2 << 20), MemoryStore::new(1 << 20));
    let (mut disk, _) = memory(&one);
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 2 << 20, 0);
    until(&mut disk, &handle, is_failed);
    assert_eq!(write(&mut disk, 0, 1, BLOCK), Ok(Outcome::Done));
}

#[test]
fn a_second_new_disk_is_refused_and_the_first_goes_on() {
    let (one, two) = (MemoryStore::new(2 << 20), MemoryStore::new(2 << 20));
    let (mut disk, _) = memory(&one);
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 2 << 20, 0);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    handle.begin(memory(&MemoryStore::new(2 << 20)).0, 2 << 20, 0);
    disk.completions(&mut Vec::new());
    switch(&mut disk, &handle);
    write(&mut disk, 0, 3, BLOCK).unwrap();
    assert_eq!(contents(&two)[0], 3);
}

#[test]
fn holes_stay_holes_and_what_was_there_goes() {
    let (one, two) = (MemoryStore::new(8 << 20), MemoryStore::new(8 << 20));
    one.write(5 << 20, &[1; 4096]);
    two.write(0, &[9; 8 << 20]);
    let (mut disk, _) = memory(&one);
    let handle = disk.replace_handle();
    handle.begin(memory(&two).0, 8 << 20, 0);
    switch(&mut disk, &handle);
    assert!(contents(&one) == contents(&two));
    assert!(two.allocated() <= 1 << 20, "{}", two.allocated());
    assert_eq!(handle.status().holes, 7 << 20);
}

#[test]
fn with_a_rate_it_takes_as_long_as_that() {
    let (one, two) = (MemoryStore::new(4 << 20), MemoryStore::new(4 << 20));
    one.write(0, &[1; 4 << 20]);
    let (mut disk, _) = memory(&one);
    let handle = disk.replace_handle();
    let begin = Instant::now();
    handle.begin(memory(&two).0, 4 << 20, 20 << 20);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    assert!(begin.elapsed() >= Duration::from_millis(100), "{:?}", begin.elapsed());
}

#[test]
fn every_engine_can_be_replaced_by_a_file_on_a_disk() {
    for bed in beds(3 << 20) {
        let scratch = disk_scratch();
        let path = scratch.path().join("new");
        create_file(&path, 4 << 20).unwrap();
        let options = OpenOptions { max_in_flight: 8192, ..OpenOptions::default() };
        let new = Disk::open(&path, &options, &BufferPool::new(8 << 20)).unwrap();
        let mut disk = bed.open();
        let handle = disk.replace_handle();
        eprintln!("{}", bed.name);
        let mut load = Load::new(5, 3 << 20);
        for _ in 0..100 {
            load.step(&mut disk);
        }
        handle.begin(new, 3 << 20, 0);
        for _ in 0..300 {
            load.step(&mut disk);
            handle.tick();
        }
        load.drain(&mut disk);
        switch(&mut disk, &handle);
        for _ in 0..100 {
            load.step(&mut disk);
        }
        load.drain(&mut disk);
        run(&mut disk, DiskOp::Flush).unwrap();
        drop(disk);
        load.check(&std::fs::read(&path).unwrap());
    }
}

#[test]
fn checksums_go_on_to_verify_what_is_on_the_new_disk() {
    let (size, id) = (2 << 20, ResourceId([1; 16]));
    let (one, two) = (MemoryStore::new(size), MemoryStore::new(size));
    let (mut disk, _) = memory(&one);
    let handle = disk.replace_handle();
    let sums = memory(&MemoryStore::new(file_length(size))).0;
    let file = ChecksumFile::format(sums, id, size).unwrap();
    let (mut disk, checks) = disk.with_checksums(size, Some(file));
    write(&mut disk, 0, 5, 4 * BLOCK).unwrap();
    handle.begin(memory(&two).0, size, 0);
    switch(&mut disk, &handle);
    assert!(matches!(read(&mut disk, 0, 4 * BLOCK), Ok(Outcome::Data(_))));
    two.write(BLOCK, &[6; 4096]);
    assert_eq!(read(&mut disk, 0, 4 * BLOCK), Err(DiskErrorKind::Unreadable));
    assert_eq!(checks.stats().checksum_errors, 1);
    write(&mut disk, BLOCK, 7, BLOCK).unwrap();
    assert!(matches!(read(&mut disk, 0, 4 * BLOCK), Ok(Outcome::Data(_))));
}

#[test]
fn once_it_is_committed_nothing_but_the_switch_ends_it() {
    let size = 4 << 20;
    let (old, new) = (MemoryStore::new(size), MemoryStore::new(2 * size));
    let (mut disk, _) = memory(&old);
    let handle = disk.replace_handle();
    assert!(!handle.commit());
    handle.begin(memory(&new).0, size, 0);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    assert!(!handle.commit(), "requests may still go to the old one only");
    handle.hold();
    until(&mut disk, &handle, |state| *state == ReplaceState::Held);
    assert!(handle.commit());
    handle.stop();
    disk.completions(&mut Vec::new());
    disk.grown_to(size);
    assert_eq!(handle.status().state, ReplaceState::Held);
    handle.switch();
    until(&mut disk, &handle, |state| *state == ReplaceState::Switched);
    write(&mut disk, 0, 7, BLOCK).unwrap();
    assert_eq!((contents(&old)[0], contents(&new)[0]), (0, 7));
    // What was taken back can be ended.
    let third = MemoryStore::new(size);
    handle.begin(memory(&third).0, size, 0);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    handle.hold();
    until(&mut disk, &handle, |state| *state == ReplaceState::Held);
    assert!(handle.commit());
    handle.release();
    handle.stop();
    until(&mut disk, &handle, |state| *state == ReplaceState::None);
    write(&mut disk, 0, 8, BLOCK).unwrap();
    assert_eq!((contents(&new)[0], contents(&third)[0]), (8, 7));
}

/// A disk in memory with a spare.
fn with_spare(store: &MemoryStore) -> Disk {
    let spare = MemoryStore::new(1 << 20);
    let owner = DiskIdentity { resource: ResourceId([1; 16]), disk: [2; 16] };
    let (id, disk_size) = (SpareId([1; 16]), store.size());
    let (unit, slots, force, created) = (4096, None, false, 1);
    let format = SpareFormat { id, unit, slots, force, disk_size, created };
    format_spare(&mut memory(&spare).0, None, &owner, &format).unwrap();
    let spares = vec![SpareAt::Disk(Box::new(memory(&spare).0))];
    memory(store).0.with_spares(spares, &owner).unwrap()
}

#[test]
fn what_the_spares_were_asked_for_during_the_switch_is_done_on_the_new_disk() {
    for flushes in [true, false] {
        let size = 4 << 20;
        let (old, new) = (MemoryStore::new(size), MemoryStore::new(size));
        let mut disk = with_spare(&old);
        let handle = disk.replace_handle();
        let (fresh, faults) = memory(&new);
        handle.begin(fresh, size, 0);
        until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
        handle.hold();
        until(&mut disk, &handle, |state| *state == ReplaceState::Held);
        assert!(handle.commit());
        let place = |block: u64| ByteRange::new(block * BLOCK, BLOCK);
        let (range, data) = (place(1), Bytes::from(vec![7; 4096]));
        let asked = [
            RemapOp::Repair { range, data },
            RemapOp::MarkLost { range: place(2) },
            RemapOp::MarkUnread { range: place(3) },
            RemapOp::Move { range: place(4), imported: false },
        ];
        for (op, what) in (1..).zip(asked) {
            assert!(disk.remap(OpId(op), what).is_none(), "it waits");
        }
        if !flushes {
            faults.add("flush:error=EIO".parse().unwrap()).unwrap();
        }
        handle.switch();
        let mut done = Vec::new();
        while done.len() < 4 {
            disk.wait(&mut done, Duration::from_secs(20));
        }
        done.sort_unstable_by_key(|completion| completion.op.0);
        let well: Vec<bool> = done.iter().map(|completion| completion.result.is_ok()).collect();
        assert_eq!(well, [flushes, true, true, false], "{done:?}");
        assert_eq!(disk.is_poisoned(), !flushes, "a repair is durable when it is done");
        assert_eq!(contents(&new)[4096..8192], [7; 4096]);
        assert_eq!(contents(&old)[4096..8192], [0; 4096]);
    }
}

#[test]
fn when_it_is_not_known_which_disk_counts_neither_is_used() {
    let size = 4 << 20;
    let (old, new) = (MemoryStore::new(size), MemoryStore::new(size));
    let (mut disk, _) = memory(&old);
    let handle = disk.replace_handle();
    handle.begin(memory(&new).0, size, 0);
    until(&mut disk, &handle, |state| *state == ReplaceState::InStep);
    handle.hold();
    until(&mut disk, &handle, |state| *state == ReplaceState::Held);
    assert!(handle.commit());
    let range = ByteRange::new(0, BLOCK);
    let data = Bytes::from(vec![7; 4096]);
    // One that waits for the end of that.
    assert!(disk.submit(OpId(1), DiskOp::Write { range, data, fua: false }).is_none());
    handle.fail("nobody knows which disk counts".to_owned());
    let mut done = Vec::new();
    disk.completions(&mut done);
    assert!(matches!(&done[..], [Completion { op: OpId(1), result: Err(_) }]), "{done:?}");
    assert!(is_failed(&handle.status().state));
    assert_eq!(write(&mut disk, 0, 7, BLOCK), Err(DiskErrorKind::Io));
    assert_eq!(read(&mut disk, 0, BLOCK), Err(DiskErrorKind::Io));
    assert_eq!((contents(&old)[0], contents(&new)[0]), (0, 0));
    assert_eq!(disk.in_flight(), 0);
}
