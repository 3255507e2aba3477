//! Disks with a volatile cache, whose every write is recorded: what is left of them after a crash at
//! any point can be made of the record. Operations end in any order.
#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_store::{
    BackingKind, BadSector, BufferPool, Disk, DiskInfo, DiskOp, EngineKind, ExternalDisk, Outcome,
    Ticket,
};
use holdfast_units::ByteRange;

/// Numbers that are the same each time.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Clone, Debug)]
pub enum Event {
    /// One with `fua` is on the disk at once.
    Write { disk: usize, offset: u64, data: Bytes, fua: bool },
    /// It covers what was written before it was submitted: before this place in the record.
    Flush { disk: usize, submitted: usize },
    /// The test's own: an operation was submitted, or ended.
    Mark,
}

struct Pending {
    disk: usize,
    submitted: usize,
    request: DiskOp,
    ticket: Ticket,
}

#[derive(Default)]
pub struct State {
    pub images: Vec<Vec<u8>>,
    pub bad: Vec<BTreeMap<u64, BadSector>>,
    pub log: Vec<Event>,
    pending: Vec<Pending>,
    /// Every operation is done when it is submitted.
    at_once: bool,
}

#[derive(Clone, Default)]
pub struct World(Arc<Mutex<State>>);

struct Driven {
    world: World,
    disk: usize,
}

impl ExternalDisk for Driven {
    fn submit(&mut self, request: DiskOp, ticket: Ticket) {
        let mut state = self.world.state();
        let submitted = state.log.len();
        if state.at_once {
            let result = state.run(self.disk, submitted, &request);
            drop(state);
            return ticket.complete(result);
        }
        state.pending.push(Pending { disk: self.disk, submitted, request, ticket });
    }
}

impl World {
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The same disks with this content, whose record goes on from here, and that do at once what they
    /// are asked for.
    pub fn restarted(&self, log: &[Event], images: Vec<Vec<u8>>) -> Self {
        let (bad, log) = (self.state().bad.clone(), log.to_vec());
        let state = State { images, bad, log, pending: Vec::new(), at_once: true };
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn add(&self, image: Vec<u8>) {
        self.state().images.push(image);
        self.state().bad.push(BTreeMap::new());
    }

    pub fn spoil(&self, disk: usize, range: ByteRange, bad: BadSector) {
        let sectors = (range.offset..range.end()).step_by(512).map(|at| (at, bad));
        self.state().bad[disk].extend(sectors);
    }

    pub fn open(&self, disk: usize, pool: &BufferPool) -> Disk {
        let info = DiskInfo {
            path: None,
            kind: BackingKind::BlockDevice,
            engine: EngineKind::External,
            size: self.state().images[disk].len() as u64,
            read_only: false,
            direct: true,
            block_size: 512,
            discard: false,
            discard_zeroes: false,
            fast_zeroes: false,
            rotational: None,
            volatile_cache: None,
            notes: Vec::new(),
        };
        let driven = Box::new(Driven { world: self.clone(), disk });
        Disk::external(driven, info, 64, pool).unwrap()
    }

    /// Does one of the operations that are under way; whether there was one.
    pub fn tick(&self, rng: &mut Rng) -> bool {
        let mut state = self.state();
        let count = state.pending.len() as u64;
        if count == 0 {
            return false;
        }
        let pending = state.pending.swap_remove(usize::try_from(rng.below(count)).unwrap());
        let result = state.run(pending.disk, pending.submitted, &pending.request);
        drop(state);
        pending.ticket.complete(result);
        true
    }
}

impl State {
    fn run(&mut self, disk: usize, submitted: usize, request: &DiskOp) -> io::Result<Outcome> {
        let eio = || Err(io::Error::from_raw_os_error(5));
        let range = request.range();
        let span = usize::try_from(range.offset).unwrap()..usize::try_from(range.end()).unwrap();
        match request {
            DiskOp::Read { .. } => {
                let mut bad = self.bad[disk].range(range.offset..range.end());
                if bad.any(|(_, bad)| *bad != BadSector::Stuck) {
                    return eio();
                }
                Ok(Outcome::Data(Bytes::copy_from_slice(&self.images[disk][span])))
            }
            DiskOp::Write { data, fua, .. } => {
                let first =
                    self.bad[disk].range(range.offset..range.end()).next().map(|(at, _)| *at);
                let len = usize::try_from(first.unwrap_or(range.end()) - range.offset).unwrap();
                self.images[disk][span.start..span.start + len].copy_from_slice(&data[..len]);
                if len > 0 {
                    let data = data.slice(..len);
                    self.log.push(Event::Write { disk, offset: range.offset, data, fua: *fua });
                }
                if first.is_some() { eio() } else { Ok(Outcome::Done) }
            }
            DiskOp::Flush => {
                self.log.push(Event::Flush { disk, submitted });
                Ok(Outcome::Done)
            }
            DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => eio(),
        }
    }
}

/// Which writes a crash after the first `end` events may or may not leave, by place in the record; all
/// others before are on the disks.
pub fn unsynced(log: &[Event], end: usize) -> Vec<usize> {
    let mut synced: BTreeMap<usize, usize> = BTreeMap::new();
    for event in &log[..end] {
        if let Event::Flush { disk, submitted } = event {
            let upto = synced.entry(*disk).or_default();
            *upto = (*upto).max(*submitted);
        }
    }
    let open = |(at, event): (usize, &Event)| match event {
        Event::Write { disk, fua: false, .. } => {
            (at >= synced.get(disk).copied().unwrap_or(0)).then_some(at)
        }
        _ => None,
    };
    log[..end].iter().enumerate().filter_map(open).collect()
}
