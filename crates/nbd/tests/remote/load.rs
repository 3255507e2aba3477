//! Threads that write numbered blocks and check what they read.

use holdfast_nbd::RemoteDisk;
use holdfast_testkit::Rng;
use holdfast_units::ByteRange;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

pub(crate) const BLOCK: usize = 4096;

/// What a block holds after the write with this number; 0 is zeroes.
pub(crate) fn block(number: u64, count: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK];
    if count > 0 {
        Rng::new(number << 32 | count).fill(&mut data);
        data[..8].copy_from_slice(&number.to_le_bytes());
        data[8..16].copy_from_slice(&count.to_le_bytes());
    }
    data
}

/// What must be in each block: the number of the write.
pub(crate) type Counts = Vec<u64>;

/// Threads under way.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Counts>>,
}

impl Load {
    /// Begins; each thread has its own part of the disk, and panics when a request fails.
    pub(crate) fn start(disk: &RemoteDisk, threads: u64, seed: u64) -> Self {
        Self::begin(disk, threads, seed, false)
    }

    /// As above, but requests may fail: a block whose write failed holds what it held or what was
    /// written, until it is written again.
    pub(crate) fn start_where_requests_fail(disk: &RemoteDisk, threads: u64, seed: u64) -> Self {
        Self::begin(disk, threads, seed, true)
    }

    fn begin(disk: &RemoteDisk, threads: u64, seed: u64, may_fail: bool) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let blocks = disk.info().size / BLOCK as u64 / threads;
        let threads = (0..threads)
            .map(|thread| {
                let (disk, stop, done) = (disk.clone(), Arc::clone(&stop), Arc::clone(&done));
                std::thread::spawn(move || {
                    let mut part = Part::new(&disk, thread * blocks, blocks, seed + thread);
                    part.may_fail = may_fail;
                    while !stop.load(Ordering::Relaxed) {
                        part.step();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    part.make_certain();
                    part.counts
                })
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Waits until so many more requests are done.
    pub(crate) fn wait_for(&self, requests: u64) {
        self.wait_for_while(requests, || {});
    }

    /// As above; `meanwhile` is called again and again.
    pub(crate) fn wait_for_while(&self, requests: u64, mut meanwhile: impl FnMut()) {
        let goal = self.done.load(Ordering::Relaxed) + requests;
        holdfast_testkit::wait_until(std::time::Duration::from_secs(30), "requests end", || {
            meanwhile();
            let panicked = self.threads.iter().any(JoinHandle::is_finished);
            assert!(!panicked, "a thread found something wrong");
            self.done.load(Ordering::Relaxed) >= goal
        });
    }

    /// Ends; what each block holds.
    pub(crate) fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

struct Part<'a> {
    disk: &'a RemoteDisk,
    first: u64,
    counts: Counts,
    /// What blocks may hold instead, because a write of it failed.
    instead: BTreeMap<u64, BTreeSet<u64>>,
    /// No content has a number twice, so that one that should be gone is not taken for another.
    next: u64,
    may_fail: bool,
    rng: Rng,
}

impl<'a> Part<'a> {
    fn new(disk: &'a RemoteDisk, first: u64, blocks: u64, seed: u64) -> Self {
        Self {
            disk,
            first,
            counts: vec![0; blocks as usize],
            instead: BTreeMap::new(),
            next: 1,
            may_fail: false,
            rng: Rng::new(seed),
        }
    }

    fn step(&mut self) {
        let at = self.rng.below(self.counts.len() as u64);
        let offset = (self.first + at) * BLOCK as u64;
        match self.rng.below(12) {
            0..6 => self.write(at),
            6 => {
                let range = ByteRange::new(offset, BLOCK as u64);
                let result = self.disk.write_zeroes(range, true);
                self.changed(at, 0, &result);
            }
            7 => self.allow(&self.disk.flush()),
            _ => self.read(at),
        }
    }

    fn write(&mut self, at: u64) {
        let (number, count) = (self.first + at, self.next);
        self.next += 1;
        let fua = count % 8 == 0;
        let result = self.disk.write_at(&block(number, count), number * BLOCK as u64, fua);
        self.changed(at, count, &result);
    }

    fn changed(&mut self, at: u64, count: u64, result: &io::Result<()>) {
        self.allow(result);
        if result.is_ok() {
            self.counts[at as usize] = count;
            self.instead.remove(&at);
        } else {
            self.instead.entry(at).or_default().insert(count);
        }
    }

    fn allow(&self, result: &io::Result<()>) {
        assert!(self.may_fail || result.is_ok(), "{result:?}");
    }

    fn read(&mut self, at: u64) {
        let number = self.first + at;
        let mut data = vec![0; BLOCK];
        let result = self.disk.read_at(&mut data, number * BLOCK as u64);
        self.allow(&result);
        if result.is_ok() {
            let due = self.counts[at as usize];
            let mut may_be = self.instead.get(&at).into_iter().flatten().chain([&due]);
            assert!(
                may_be.any(|count| data == block(number, *count)),
                "block {number} is not of write {due}"
            );
        }
    }

    /// Writes what is uncertain again, until it is certain.
    fn make_certain(&mut self) {
        while let Some(at) = self.instead.keys().next().copied() {
            self.write(at);
        }
    }
}

/// Panics unless the disk holds what was written.
pub(crate) fn check(disk: &RemoteDisk, counts: &Counts) {
    for (number, count) in (0..).zip(counts) {
        let mut data = vec![0; BLOCK];
        disk.read_at(&mut data, number * BLOCK as u64).unwrap();
        assert!(data == block(number, *count), "block {number} is not of write {count}");
    }
}

/// Panics unless an image holds what was written.
pub(crate) fn check_image(image: &[u8], counts: &Counts) {
    for (number, count) in (0..).zip(counts) {
        let at = number as usize * BLOCK;
        assert!(image[at..at + BLOCK] == block(number, *count), "block {number} differs");
    }
}
