//! Blocks that the backing disk cannot read: what they hold, by the records that are still kept, and
//! how they are stored again.

use super::Mode;
use super::worker::{Flight, Worker, io_error};
use bytes::Bytes;
use holdfast_journal::{Held, Learned, RunPiece, Salvage};
use holdfast_store::{DiskError, DiskOp, Outcome, RemapOp, Ticket};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;

/// From so many blocks on that something is known of, nothing is any more.
const MOST_LEARNED: usize = 1 << 16;

/// All of it. Bounded by the operations that the core has under way.
#[derive(Default)]
pub(super) struct Salvaging {
    /// Who asked since the search began that is under way.
    waiting: Vec<(u64, Ticket)>,
    search: Option<Salvage>,
    searching: Vec<(u64, Ticket)>,
    /// What searches have said of blocks: only what came since is looked at again.
    learned: BTreeMap<u64, Learned>,
    /// What is being stored again, and what of it the disk had no room for yet.
    restores: HashMap<u64, Restore>,
    starting: VecDeque<u64>,
}

struct Restore {
    range: ByteRange,
    data: Bytes,
    step: Step,
    ticket: Ticket,
}

#[derive(Clone, Copy)]
enum Step {
    /// The layer for bad sectors does all of it.
    Remap,
    Write,
    Flush,
    ReadBack,
}

impl Worker {
    /// What a block holds that the backing disk could not read. Fails when that cannot be proved.
    pub(super) fn salvage(&mut self, range: ByteRange, ticket: Ticket) {
        if range.len != BLOCK_SIZE || !range.is_aligned() || self.broken.is_some() {
            return ticket.complete(Err(Errno::IO.into()));
        }
        self.salvaging.waiting.push((range.blocks().start, ticket));
    }

    /// Begins to store again what there is room for, and goes on with the search, a little at a time:
    /// meanwhile others are served. All who wait when it begins are answered by it.
    pub(super) fn go_on_salvaging(&mut self) {
        self.start_restores();
        if self.salvaging.search.is_none() && !self.salvaging.waiting.is_empty() {
            self.salvaging.searching = std::mem::take(&mut self.salvaging.waiting);
            let blocks = self.salvaging.searching.iter().map(|(block, _)| *block);
            let search = self.log.journal().salvage_again(blocks, &self.salvaging.learned);
            self.salvaging.search = Some(search);
        }
        let Some(mut search) = self.salvaging.search.take() else { return };
        self.moved = true;
        if self.log.go_on_salvaging(&mut search) {
            self.salvaging.search = Some(search);
            return;
        }
        for (block, ticket) in std::mem::take(&mut self.salvaging.searching) {
            let data = match search.found().get(&block) {
                Some(held) => self.held_data(block, held),
                None => Err(Errno::IO.into()),
            };
            ticket.complete(data.map(Outcome::Data));
        }
        let learned = &mut self.salvaging.learned;
        if learned.len() >= MOST_LEARNED {
            learned.clear();
        }
        learned.extend(search.learned());
    }

    fn held_data(&mut self, block: u64, held: &Held) -> io::Result<Bytes> {
        let range = ByteRange::of_blocks(block..block + 1);
        match held {
            Held::Zeroes => Ok(Bytes::from_static(&[0; BLOCK_SIZE as usize])),
            Held::Data { place, skip } => {
                self.piece(&RunPiece { range, place: *place, skip: *skip })
            }
        }
    }

    /// Stores again what [`Self::salvage`] gave, in its place, durably. Nobody writes there meanwhile, so
    /// the content of the disk does not change, and it needs no record.
    pub(super) fn restore(&mut self, range: ByteRange, data: Bytes, ticket: Ticket) {
        if self.broken.is_some() || self.mode == Mode::Follow {
            return ticket.complete(Err(Errno::IO.into()));
        }
        let id = self.next_id();
        let step = if self.disk.remap_stats().is_some() { Step::Remap } else { Step::Write };
        self.salvaging.restores.insert(id, Restore { range, data, step, ticket });
        self.salvaging.starting.push_back(id);
    }

    fn start_restores(&mut self) {
        while self.has_room()
            && let Some(id) = self.salvaging.starting.pop_front()
        {
            let Some(restore) = self.salvaging.restores.get(&id) else { continue };
            let (range, data) = (restore.range, restore.data.clone());
            match restore.step {
                Step::Remap => self.repair(id, RemapOp::Repair { range, data }),
                _ => self.fly(Flight::Restore { id }, DiskOp::Write { range, data, fua: false }),
            }
        }
    }

    /// A step of storing something again has ended.
    pub(super) fn restored(&mut self, id: u64, result: Result<Outcome, DiskError>) {
        let Some(mut restore) = self.salvaging.restores.remove(&id) else { return };
        let range = restore.range;
        let (step, request) = match (restore.step, result) {
            (_, Err(error)) => return restore.ticket.complete(Err(io_error(&error))),
            (Step::Remap, Ok(_)) => return restore.ticket.complete(Ok(Outcome::Done)),
            (Step::Write, Ok(_)) => (Step::Flush, DiskOp::Flush),
            (Step::Flush, Ok(_)) => {
                self.disk.uncache(range);
                (Step::ReadBack, DiskOp::Read { range, holes: false })
            }
            (Step::ReadBack, Ok(found)) => {
                let same = matches!(found, Outcome::Data(found) if found == restore.data);
                let result = if same { Ok(Outcome::Done) } else { Err(Errno::IO.into()) };
                return restore.ticket.complete(result);
            }
        };
        restore.step = step;
        self.salvaging.restores.insert(id, restore);
        self.fly(Flight::Restore { id }, request);
    }
}
