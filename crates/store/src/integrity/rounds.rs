//! The file of the sums: what is read from it and written to it, in which order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_format::Block;
use holdfast_format::checksums::{
    PAGES_PER_GROUP, decode_page, encode_page, page_offset, state_offset,
};
use holdfast_units::{BLOCK_SIZE, ByteRange};

use super::layer::{Integrity, Kept};
use super::table::{Effect, pages_of};
use crate::{Completion, DiskError, DiskOp, OpId, Outcome};

/// From so many open pages on, those that were not written to for longest are settled.
const SETTLE_FROM: usize = 1024;
/// More are never open.
const MAX_OPEN: usize = 2 * SETTLE_FROM;
/// Ticks between two looks for pages that are at rest, and for how long they must have been.
const REST: u32 = 50;
/// Who writes page by page has so many unmarked at a time.
const AHEAD: u64 = 8;
/// At most so many pages that failed to be computed are remembered.
const MAX_SKIPPED: usize = 4096;

/// What is under way on the file.
pub(super) enum FileIo {
    Load(u64),
    /// A page of the settling round.
    Page(u64),
    PagesFlush,
    State,
    StateFlush,
}

/// Which bits change in the file.
#[derive(Default)]
struct StateRound {
    unmarked: Vec<u64>,
    left: usize,
}

/// Pages that become what the disk is.
struct Settling {
    pages: Vec<u64>,
    /// Pages that are not written yet.
    left: usize,
    pages_durable: bool,
    disk_durable: bool,
}

/// The page that gets its sums.
struct Building {
    page: u64,
    todo: Vec<Range<u64>>,
    running: bool,
    /// What was read is not what is there any more.
    stale: bool,
    bad: bool,
}

#[derive(Default)]
pub(super) struct Rounds {
    /// Pages that somebody wants to write to.
    to_unmark: BTreeSet<u64>,
    /// Pages that are settled but for their bit.
    to_mark: Vec<u64>,
    state: Option<StateRound>,
    settling: Option<Settling>,
    /// All that is open is to be settled.
    settle_all: bool,
    /// What is at rest is.
    settle_rested: bool,
    building: Option<Building>,
    /// So many more pages may be built.
    may_build: u32,
    next_build: u64,
    /// Pages that could not be read whole, until somebody writes to them.
    skipped: BTreeSet<u64>,
}

impl Rounds {
    /// Somebody writes on: what is open may stay open.
    pub(super) fn written_to(&mut self) {
        self.settle_all = false;
    }

    pub(super) fn are_idle(&self) -> bool {
        self.state.is_none()
            && self.settling.is_none()
            && self.building.is_none()
            && self.to_unmark.is_empty()
            && self.to_mark.is_empty()
    }

    /// The page is to be taken for unknown after a crash from now on.
    pub(super) fn unmark(&mut self, page: u64) {
        self.to_unmark.insert(page);
    }

    /// Somebody wrote to these blocks; `lost`: what they hold now is not known.
    pub(super) fn build_is_stale(&mut self, blocks: &Range<u64>, lost: bool) {
        let pages = pages_of(blocks);
        if !self.skipped.is_empty() {
            self.skipped.retain(|page| !pages.contains(page));
        }
        if let Some(building) = &mut self.building {
            building.stale |= lost && pages.contains(&building.page);
        }
    }

    /// A read for building ended; whether its sums are of use.
    pub(super) fn build_read(&mut self, blocks: &Range<u64>, failed: bool, bad: bool) -> bool {
        let Some(building) = &mut self.building else { return false };
        building.running = false;
        if failed && blocks.end - blocks.start > 1 {
            let middle = blocks.start + (blocks.end - blocks.start) / 2;
            building.todo.extend([middle..blocks.end, blocks.start..middle]);
            return false;
        }
        building.bad |= bad;
        !failed && !building.stale
    }
}

impl Kept {
    /// Has a page read; `reader` waits for it.
    pub(super) fn load(&mut self, page: u64, reader: Option<usize>) {
        let known = self.loads.contains_key(&page);
        self.loads.entry(page).or_default().extend(reader);
        if !known {
            let range = ByteRange::new(page_offset(page), BLOCK_SIZE);
            self.send(FileIo::Load(page), DiskOp::Read { range, holes: false });
        }
    }

    fn send(&mut self, io: FileIo, request: DiskOp) {
        let key = self.ios.insert(io);
        if !self.file.disk.has_room() {
            self.backlog.push_back((key, request));
        } else if let Some(done) = self.file.disk.submit(OpId(key as u64), request) {
            self.landed.push_back((key, done.result));
        }
    }

    fn write(&mut self, io: FileIo, offset: u64, block: &Block) {
        let range = ByteRange::new(offset, BLOCK_SIZE);
        let data = Bytes::copy_from_slice(block);
        self.send(io, DiskOp::Write { range, data, fua: false });
    }

    pub(super) fn collect(&mut self, completed: &mut Vec<Completion>) {
        self.file.disk.gather(completed);
        while self.file.disk.has_room()
            && let Some((key, request)) = self.backlog.pop_front()
        {
            completed.extend(self.file.disk.submit(OpId(key as u64), request));
        }
        for Completion { op, result } in completed.drain(..) {
            self.landed.push_back((usize::try_from(op.0).unwrap_or(usize::MAX), result));
        }
        self.file.disk.kick();
    }

    /// Of pages all of whose blocks nobody knows any more nothing is kept.
    pub(super) fn forget_whole(&mut self, blocks: &Range<u64>, effect: &Effect) {
        if !matches!(effect, Effect::Unknown) {
            return;
        }
        for page in pages_of(blocks) {
            let own = self.table.blocks_of(page);
            if blocks.start <= own.start && own.end <= blocks.end {
                self.table.forget(page);
            }
        }
    }

    /// Writes the bits that are to change. Whether there was something to do.
    fn start_state_round(&mut self, is_busy: impl Fn(&Range<u64>) -> bool) -> bool {
        let rounds = &self.rounds;
        if rounds.state.is_some() || (rounds.to_mark.is_empty() && rounds.to_unmark.is_empty()) {
            return false;
        }
        let mut groups = BTreeSet::new();
        for page in std::mem::take(&mut self.rounds.to_mark) {
            let clean = self.table.get_mut(page).is_none_or(|page| !page.dirty);
            if clean
                && self.table.is_complete(page)
                && !self.table.is_marked(page)
                && !self.rounds.to_unmark.contains(&page)
                && !is_busy(&self.table.blocks_of(page))
            {
                self.table.set_marked(page, true);
                groups.insert(page / PAGES_PER_GROUP);
            }
        }
        let room = MAX_OPEN.saturating_sub(self.table.open.len());
        let unmarked = self.take_unmarks(room);
        groups.extend(unmarked.iter().map(|page| page / PAGES_PER_GROUP));
        if groups.is_empty() {
            return false;
        }
        self.rounds.state = Some(StateRound { unmarked, left: groups.len() });
        for group in groups {
            self.write_state(group);
        }
        true
    }

    /// The pages that are unmarked next: those that are wanted, and what probably comes behind them.
    fn take_unmarks(&mut self, room: usize) -> Vec<u64> {
        let (mut taken, mut open) = (BTreeSet::new(), 0);
        let mut later = BTreeSet::new();
        for page in std::mem::take(&mut self.rounds.to_unmark) {
            if !self.table.is_marked(page) {
                continue;
            }
            let complete = self.table.is_complete(page);
            if complete && open >= room {
                later.insert(page);
                continue;
            }
            open += usize::from(complete && taken.insert(page));
            taken.insert(page);
            let in_order = page > 0 && self.table.open.contains(&(page - 1));
            let end = if in_order { page + AHEAD } else { page };
            for next in page + 1..end.min(self.table.page_count()) {
                if open < room / 2 && self.table.is_marked(next) && taken.insert(next) {
                    open += 1;
                }
            }
        }
        self.rounds.to_unmark = later;
        taken.into_iter().collect()
    }

    fn write_state(&mut self, group: u64) {
        let Some(index) = usize::try_from(group).ok() else { return };
        self.table.states[index].sequence += 1;
        let mut state = self.table.states[index].clone();
        let unmarked = self.rounds.state.iter().flat_map(|round| &round.unmarked);
        for page in unmarked.filter(|page| **page / PAGES_PER_GROUP == group) {
            let within = page % PAGES_PER_GROUP;
            if let Some(word) = state.words.get_mut(usize::try_from(within / 64).unwrap_or(0)) {
                *word &= !(1 << (within % 64));
            }
        }
        let block = state.encode(self.file.resource, group);
        self.write(FileIo::State, state_offset(group, state.copy()), &block);
    }

    /// The open pages that are to be settled now.
    fn choose_to_settle(&mut self, is_busy: impl Fn(&Range<u64>) -> bool) -> Vec<u64> {
        let table = &self.table;
        let full = table.open.len() >= SETTLE_FROM;
        let rested = std::mem::take(&mut self.rounds.settle_rested);
        if table.open.is_empty() || !(self.rounds.settle_all || full || rested) {
            return Vec::new();
        }
        let free = |page: &u64| !is_busy(&table.blocks_of(*page));
        let mut pages: Vec<u64> = table.open.iter().copied().filter(free).collect();
        if self.rounds.settle_all {
            return pages;
        }
        pages.sort_by_key(|page| table.written(*page));
        let rests = |page: &u64| table.written(*page) + REST <= table.tick;
        let resting = pages.iter().take_while(|page| rests(page)).count();
        let half = if full { pages.len() / 2 } else { 0 };
        pages.truncate(resting.max(half));
        pages
    }

    /// Writes these pages to the file.
    fn start_settling(&mut self, pages: Vec<u64>) {
        let resource = self.file.resource;
        let mut blocks = Vec::new();
        for number in &pages {
            if let Some(page) = self.table.get_mut(*number).filter(|page| page.dirty) {
                (page.dirty, page.writing) = (false, true);
                blocks.push((*number, encode_page(&page.sums, resource, *number)));
            }
        }
        // One more, so that it is not over before the last one was begun.
        let left = blocks.len() + 1;
        self.rounds.settling =
            Some(Settling { pages, left, pages_durable: false, disk_durable: false });
        for (number, block) in blocks {
            self.write(FileIo::Page(number), page_offset(number), &block);
        }
        self.page_settled();
    }

    fn page_settled(&mut self) {
        let Some(settling) = &mut self.rounds.settling else { return };
        settling.left -= 1;
        if settling.left == 0 {
            self.send(FileIo::PagesFlush, DiskOp::Flush);
        }
    }

    /// What the disk has and what the file has is durable: the bits may follow.
    fn settled(&mut self) {
        if let Some(settling) = self.rounds.settling.take_if(|s| s.pages_durable && s.disk_durable)
        {
            self.rounds.to_mark.extend(settling.pages);
        }
    }
}

impl Integrity {
    /// Starts what can be done next. Whether there was something.
    pub(super) fn go_on(&mut self) -> bool {
        let (busy, waiting, ops) = (&self.busy, &self.waiting, &self.ops);
        let is_busy = |blocks: &Range<u64>| {
            let wants = |key: &usize| {
                let wanted = &ops[*key].blocks;
                wanted.start < blocks.end && blocks.start < wanted.end
            };
            busy.overlaps(blocks) || waiting.iter().any(wants)
        };
        let Some(kept) = self.sums.as_mut().filter(|kept| !kept.failed) else { return false };
        if kept.start_state_round(is_busy) {
            return true;
        }
        if kept.rounds.settling.is_none() && kept.rounds.to_mark.is_empty() {
            let pages = kept.choose_to_settle(is_busy);
            if !pages.is_empty() {
                kept.start_settling(pages);
                self.flush_for_settling();
                return true;
            }
        }
        self.go_on_building()
    }

    fn go_on_building(&mut self) -> bool {
        let changing = self.is_changing();
        let Some(kept) = self.kept() else { return false };
        let rounds = &mut kept.rounds;
        if rounds.building.is_none() {
            if rounds.may_build == 0 || changing || kept.table.open.len() >= MAX_OPEN {
                return false;
            }
            let mut next = kept.table.next_incomplete(rounds.next_build);
            let first = next;
            while let Some(page) = next.filter(|page| rounds.skipped.contains(page)) {
                next = kept.table.next_incomplete(page + 1).filter(|next| Some(*next) != first);
            }
            let Some(page) = next else { return false };
            rounds.may_build -= 1;
            rounds.next_build = page + 1;
            let todo = vec![kept.table.blocks_of(page)];
            rounds.building =
                Some(Building { page, todo, running: false, stale: false, bad: false });
            if kept.table.is_marked(page) {
                kept.rounds.unmark(page);
            }
            return true;
        }
        let Some(building) = &mut rounds.building else { return false };
        if building.running || kept.table.is_marked(building.page) {
            return false;
        }
        match building.todo.pop() {
            Some(blocks) => {
                building.running = true;
                self.read_for_building(blocks);
            }
            None => {
                if building.bad && rounds.skipped.len() < MAX_SKIPPED {
                    rounds.skipped.insert(building.page);
                }
                rounds.building = None;
            }
        }
        true
    }

    /// The disk was flushed for what settles.
    pub(super) fn disk_is_flushed(&mut self, well: bool) {
        let Some(kept) = self.kept() else { return };
        if let (true, Some(settling)) = (well, &mut kept.rounds.settling) {
            settling.disk_durable = true;
        }
        kept.settled();
    }

    pub(super) fn file_landed(&mut self, key: usize, result: &Result<Outcome, DiskError>) {
        let Some(kept) = &mut self.sums else { return };
        let Some(io) = kept.ios.try_remove(key) else { return };
        if kept.failed {
            return;
        }
        if let FileIo::Load(page) = &io {
            return self.page_loaded(*page, result.as_ref().ok());
        }
        if let Err(error) = result {
            return self.give_up(&error.to_string());
        }
        match io {
            FileIo::Load(_) => {}
            FileIo::Page(number) => {
                if let Some(page) = kept.table.get_mut(number) {
                    page.writing = false;
                }
                kept.page_settled();
            }
            FileIo::PagesFlush => {
                if let Some(settling) = &mut kept.rounds.settling {
                    settling.pages_durable = true;
                }
                kept.settled();
            }
            FileIo::State => {
                let Some(round) = &mut kept.rounds.state else { return };
                round.left -= 1;
                if round.left == 0 {
                    kept.send(FileIo::StateFlush, DiskOp::Flush);
                }
            }
            FileIo::StateFlush => {
                let tick = kept.table.tick;
                for page in kept.rounds.state.take().into_iter().flat_map(|round| round.unmarked) {
                    kept.table.set_marked(page, false);
                    if let Some(page) = kept.table.get_mut(page) {
                        page.written = tick;
                    }
                }
                self.retry |= !self.waiting.is_empty();
            }
        }
    }

    fn page_loaded(&mut self, page: u64, outcome: Option<&Outcome>) {
        let Some(kept) = self.kept() else { return };
        let block = match outcome {
            Some(Outcome::Data(data)) => <&Block>::try_from(&data[..]).ok(),
            _ => None,
        };
        let found = block.map(|block| decode_page(block, kept.file.resource, page));
        let readers = kept.loads.remove(&page).unwrap_or_default();
        match found {
            Some(Ok(sums)) => kept.table.loaded(page, sums),
            other => {
                let why = other.and_then(Result::err);
                let why = why.map_or("it cannot be read".into(), |error| error.to_string());
                if kept.table.is_complete(page) && !kept.table.has(page) {
                    tracing::warn!(page, "a page of checksums is computed anew: {why}");
                    kept.table.forget(page);
                    if kept.table.is_marked(page) {
                        kept.rounds.unmark(page);
                    }
                    self.handle.figures().broken.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.page_is_there(readers);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, ticks: u32, pages: u32) {
        let Some(kept) = self.kept() else { return };
        if ticks == 0 {
            return;
        }
        let before = kept.table.tick;
        kept.table.tick = before.saturating_add(ticks);
        kept.rounds.settle_rested |= before / REST != kept.table.tick / REST;
        kept.rounds.may_build = pages;
    }

    pub(crate) fn settle(&mut self) {
        if let Some(kept) = self.kept() {
            kept.rounds.settle_all = true;
            kept.rounds.may_build = 0;
        }
        self.pump();
        self.kick();
    }

    pub(crate) fn is_settled(&self) -> bool {
        let settled =
            |kept: &Kept| kept.failed || (kept.table.open.is_empty() && kept.rounds.are_idle());
        self.dead || self.sums.as_ref().is_none_or(settled)
    }

    /// The file does not work. What is in it must not be believed when it is opened again: where that
    /// cannot be made sure, the disk is not used any more.
    pub(super) fn give_up(&mut self, why: &str) {
        let Some(kept) = self.kept() else { return };
        kept.failed = true;
        kept.rounds = Rounds::default();
        let readers: Vec<usize> = kept.loads.drain().flat_map(|(_, readers)| readers).collect();
        let mut problem = format!("checksums are not kept any more: {why}");
        if let Err(error) = kept.file.revoke() {
            problem = format!(
                "{problem}; nor can their file be removed ({error}), so the disk is not used"
            );
            self.dead = true;
        }
        tracing::error!("{problem}");
        self.handle.figures().say(Some(problem));
        self.page_is_there(readers);
    }
}
