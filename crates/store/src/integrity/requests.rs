//! Requests: what a write has to wait for, and what a read is compared with.

use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use holdfast_format::checksums::{block_sum, zero_sum};
use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::layer::{Ask, Integrity, What};
use super::table::{Effect, pages_of};
use crate::engine::{Done, Job, Mark, More, Tag};
use crate::remap::{PartialRead, merged};
use crate::{DiskOp, OpId, OpKind, Outcome};

/// Zeroes and discards of more pages than this leave them without sums, which are computed later.
const MAX_ZEROED: u64 = 64;

impl Integrity {
    /// A write, or a read that wants to be alone, begins when it is its turn and its pages are ready.
    pub(super) fn enqueue(&mut self, key: usize) {
        let op = &mut self.ops[key];
        let pages = pages_of(&op.blocks);
        if matches!(op.what, What::Write(Effect::Zeroes)) && pages.end - pages.start > MAX_ZEROED {
            op.what = What::Write(Effect::Unknown);
        }
        if self.may_begin(key) {
            self.begin(key);
        } else {
            self.waiting.push_back(key);
        }
    }

    pub(super) fn retry_waiting(&mut self) {
        for key in std::mem::take(&mut self.waiting) {
            if self.may_begin(key) {
                self.begin(key);
            } else {
                self.waiting.push_back(key);
            }
        }
    }

    /// Whether nobody works on its blocks or wanted to before, and its pages are ready; if they are
    /// not, what they lack is begun.
    fn may_begin(&mut self, key: usize) -> bool {
        let op = &self.ops[key];
        let blocks = op.blocks.clone();
        let overlaps = |other: &usize| {
            let other = &self.ops[*other].blocks;
            other.start < blocks.end && blocks.start < other.end
        };
        if self.busy.overlaps(&blocks) || self.waiting.iter().any(overlaps) {
            return false;
        }
        match &self.ops[key].what {
            What::Write(effect) => {
                let unknown = matches!(effect, Effect::Unknown);
                self.pages_ready(&blocks, unknown)
            }
            _ => true,
        }
    }

    fn pages_ready(&mut self, blocks: &Range<u64>, unknown: bool) -> bool {
        let Some(kept) = self.kept() else { return true };
        let mut ready = true;
        for page in pages_of(blocks) {
            let own = kept.table.blocks_of(page);
            let whole = blocks.start <= own.start && own.end <= blocks.end;
            if whole && unknown {
                kept.table.forget(page);
            }
            if kept.table.is_marked(page) {
                kept.rounds.unmark(page);
                ready = false;
            }
            if !whole && kept.table.is_complete(page) && !kept.table.has(page) {
                kept.load(page, None);
                ready = false;
            }
        }
        ready
    }

    fn begin(&mut self, key: usize) {
        let blocks = self.ops[key].blocks.clone();
        self.busy.take(&blocks);
        if matches!(self.ops[key].what, What::Write(_))
            && let Some(kept) = self.kept()
        {
            for page in pages_of(&blocks) {
                if let Some(page) = kept.table.get_mut(page) {
                    // It stays in memory, and is not settled as it is.
                    page.dirty = true;
                }
            }
        }
        self.start(key);
    }

    fn done_with(&mut self, key: usize) {
        self.busy.give_back(&self.ops[key].blocks);
        self.retry |= !self.waiting.is_empty();
    }

    /// A write ended. One that failed leaves the sums as they are: what is on the disk now is no
    /// more what anybody wrote than before, unless it fits.
    pub(super) fn was_written(&mut self, key: usize, done: Done) {
        self.done_with(key);
        let (blocks, failed) = (self.ops[key].blocks.clone(), done.result.is_err());
        let effect = std::mem::replace(&mut self.ops[key].what, What::Pass);
        if let (What::Write(effect), Some(kept)) = (effect, self.kept()) {
            kept.rounds.build_is_stale(&blocks, failed || matches!(effect, Effect::Unknown));
            if !failed {
                kept.forget_whole(&blocks, &effect);
                kept.table.changed(&blocks, &effect);
            }
        }
        self.over(key, done);
    }

    /// A read ended: now the sums must be there.
    pub(super) fn was_read(&mut self, key: usize, done: Done) {
        let blocks = self.ops[key].blocks.clone();
        let readable = done.result.is_ok() || partial_of(&done).is_some();
        let Some(kept) = self.kept().filter(|_| readable) else {
            return self.compared(key, done);
        };
        let mut missing = None;
        for page in pages_of(&blocks) {
            if kept.table.is_complete(page) && !kept.table.has(page) {
                missing = Some(page);
            }
        }
        match missing {
            Some(page) => {
                kept.load(page, Some(key));
                self.ops[key].parked = Some(done);
            }
            None => self.compare(key, done),
        }
    }

    fn compare(&mut self, key: usize, done: Done) {
        let wrong = self.wrong_blocks(key, &done);
        if wrong.is_empty() {
            return self.compared(key, done);
        }
        if matches!(self.ops[key].what, What::Read { alone: true }) {
            let errors = &self.handle.figures().errors;
            errors.fetch_add(wrong.len() as u64, Ordering::Relaxed);
            tracing::warn!(range = %done.range, blocks = wrong.len(), "blocks do not fit their checksums");
            let done = self.unreadable(done, &wrong);
            return self.compared(key, done);
        }
        // Perhaps somebody wrote meanwhile, or the page cache has it wrong.
        for block in &wrong {
            self.below.uncache(ByteRange::of_blocks(*block..*block + 1));
        }
        let Done { range, tag, .. } = done;
        let request = DiskOp::Read { range, holes: false };
        let job = Job { op: OpId(0), tag, mark: Mark::default(), request };
        let op = &mut self.ops[key];
        (op.what, op.ask) = (What::Read { alone: true }, Some(Ask::Io(job)));
        self.enqueue(key);
    }

    fn compared(&mut self, key: usize, done: Done) {
        if matches!(self.ops[key].what, What::Read { alone: true }) {
            self.done_with(key);
        }
        self.over(key, done);
    }

    /// The blocks of a read that could be read and do not fit.
    fn wrong_blocks(&mut self, key: usize, done: &Done) -> Vec<u64> {
        let mut wrong = Vec::new();
        let (blocks, range) = (self.ops[key].blocks.clone(), done.range);
        let Some(kept) = self.kept() else { return wrong };
        let (data, bad): (&[u8], &[ByteRange]) = match (&done.result, partial_of(done)) {
            (Ok(Outcome::Data(data)), _) => (data, &[]),
            (Err(_), Some(partial)) => (&partial.data, &partial.bad),
            (Err(_), None) => return wrong,
            (Ok(_), _) => (&[], &[]),
        };
        for page in pages_of(&blocks) {
            let own = kept.table.blocks_of(page);
            let Some(sums) = kept.table.look(page) else { continue };
            for block in own.start.max(blocks.start)..own.end.min(blocks.end) {
                let sum = sums[to_index(block - own.start)];
                let at = to_index(block * 4096 - range.offset);
                let found = || match data.get(at..at + 4096) {
                    Some(data) => block_sum(block, data),
                    None => zero_sum(block),
                };
                let is_bad = || {
                    let place = ByteRange::of_blocks(block..block + 1);
                    bad.iter().any(|bad| bad.overlaps(place))
                };
                if sum != 0 && found() != sum && !is_bad() {
                    wrong.push(block);
                }
            }
        }
        wrong
    }

    /// A read that failed for these blocks, too.
    fn unreadable(&self, mut done: Done, wrong: &[u64]) -> Done {
        let mut bad: Vec<_> =
            wrong.iter().map(|block| ByteRange::of_blocks(*block..*block + 1)).collect();
        let wrong = bad.clone();
        // Who only sees the error knows by it that it was not the disk that said so.
        let result = std::mem::replace(&mut done.result, Err(Errno::BADMSG));
        let data = match (result, done.more.take().map(|more| *more)) {
            (Ok(Outcome::Data(data)), _) => data,
            (_, Some(More::Partial(partial))) => {
                bad.extend(partial.bad);
                partial.data
            }
            _ => zeros(&self.pool, done.range.len),
        };
        done.more = Some(Box::new(More::Partial(PartialRead { data, bad: merged(bad), wrong })));
        done
    }

    /// A page came, or will not come: those who waited for it go on.
    pub(super) fn page_is_there(&mut self, readers: Vec<usize>) {
        self.retry |= !self.waiting.is_empty();
        for key in readers {
            if let Some(done) = self.ops.get_mut(key).and_then(|op| op.parked.take()) {
                self.was_read(key, done);
            }
        }
    }

    /// A read of the layer itself, for blocks that lack sums.
    pub(super) fn read_for_building(&mut self, blocks: Range<u64>) {
        let request = DiskOp::Read { range: ByteRange::of_blocks(blocks.clone()), holes: true };
        let job = Job { op: OpId(0), tag: Tag::Plain, mark: Mark::default(), request };
        let key = self.ops.insert(super::layer::Op {
            op: OpId(0),
            blocks,
            what: What::Build,
            ask: Some(Ask::Io(job)),
            parked: None,
        });
        self.start(key);
    }

    /// Such a read ended.
    pub(super) fn was_built(&mut self, key: usize, done: &Done) {
        let blocks = self.ops.remove(key).blocks;
        debug_assert_eq!(done.kind, OpKind::Read);
        let Some(kept) = self.kept() else { return };
        let bad = match (&done.result, partial_of(done)) {
            (Ok(_), _) => Vec::new(),
            (_, Some(partial)) => partial.bad.clone(),
            _ => vec![ByteRange::of_blocks(blocks.clone())],
        };
        let is_bad =
            |block| bad.iter().any(|bad| bad.overlaps(ByteRange::of_blocks(block..block + 1)));
        let data: &[u8] = match (&done.result, partial_of(done)) {
            (Ok(Outcome::Data(data)), _) => data,
            (_, Some(partial)) => &partial.data,
            _ => &[],
        };
        let start = blocks.start;
        let sum_of = |block: u64| {
            let at = to_index((block - start) * 4096);
            match data.get(at..at + 4096) {
                _ if is_bad(block) => 0,
                Some(data) => block_sum(block, data),
                None => zero_sum(block),
            }
        };
        let whole_failed = done.result.is_err() && partial_of(done).is_none();
        if kept.rounds.build_read(&blocks, whole_failed, !bad.is_empty()) {
            kept.table.built(blocks.clone(), blocks.map(sum_of));
        }
    }
}

fn partial_of(done: &Done) -> Option<&PartialRead> {
    match done.more.as_deref() {
        Some(More::Partial(partial)) => Some(partial),
        _ => None,
    }
}

fn zeros(pool: &crate::BufferPool, len: u64) -> Bytes {
    let mut buffer = pool.get(to_index(len));
    buffer.fill(0);
    buffer.freeze()
}

fn to_index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
