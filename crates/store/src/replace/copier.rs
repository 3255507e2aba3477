//! What is copied next, what could not be, and how fast that may go.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use holdfast_units::{BLOCK_SIZE, ByteRange};

use super::MAX_LEFT_OVER;

/// What is copied as one, and locked meanwhile.
const PIECE: u64 = 1 << 20;
/// How many are under way when nobody else does anything.
const PIECES: usize = 4;
/// Nobody does anything when no request came for so long.
const QUIET: Duration = Duration::from_millis(20);
/// The new disk is flushed behind so many bytes.
const FLUSH_EVERY: u64 = 64 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// For requests that were there before it.
    Waiting,
    Reading,
    Writing,
}

/// A part of the disk that is being copied.
pub(super) struct Piece {
    /// What is locked.
    pub(super) range: ByteRange,
    /// What is left of it.
    todo: Vec<ByteRange>,
    /// What is under way, by this key.
    pub(super) part: ByteRange,
    pub(super) key: u64,
    pub(super) step: Step,
    began: Instant,
}

pub(super) struct Copier {
    size: u64,
    rate: u64,
    /// All before it was taken.
    pub(super) cursor: u64,
    pub(super) pieces: Vec<Piece>,
    /// To be copied once more.
    again: VecDeque<ByteRange>,
    /// Blocks that could not be read, by number.
    left_over: BTreeSet<u64>,
    /// Those of them that nobody was told of.
    untold: Vec<ByteRange>,
    pub(super) holes: u64,
    unflushed: u64,
    /// No piece is begun before.
    not_before: Instant,
    /// When a request came last.
    asked: Option<Instant>,
}

impl Copier {
    pub(super) fn new(size: u64, rate: u64) -> Self {
        Self {
            size,
            rate,
            cursor: 0,
            pieces: Vec::new(),
            again: VecDeque::new(),
            left_over: BTreeSet::new(),
            untold: Vec::new(),
            holes: 0,
            unflushed: 0,
            not_before: Instant::now(),
            asked: None,
        }
    }

    /// A request came.
    pub(super) fn asked(&mut self) {
        self.asked = Some(Instant::now());
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.asked.is_none_or(|at| at.elapsed() > QUIET)
    }

    /// Whether nothing is left to be copied, and nothing could not be.
    pub(super) fn is_complete(&self) -> bool {
        self.is_at_end() && self.left_over.is_empty()
    }

    /// Whether everything was taken once, and nothing is under way.
    pub(super) fn is_at_end(&self) -> bool {
        self.cursor >= self.size && self.pieces.is_empty() && self.again.is_empty()
    }

    /// Whether something waits to be copied.
    pub(super) fn has_more(&self) -> bool {
        self.cursor < self.size || !self.again.is_empty()
    }

    /// Takes the next piece, locked from now on, when it is time.
    pub(super) fn take(&mut self) -> bool {
        let most = if self.is_quiet() { PIECES } else { 1 };
        if self.pieces.len() >= most || Instant::now() < self.not_before {
            return false;
        }
        let range = if let Some(range) = self.again.pop_front() {
            let first = ByteRange::new(range.offset, range.len.min(PIECE));
            if first.len < range.len {
                self.again.push_front(ByteRange::new(first.end(), range.len - first.len));
            }
            first
        } else if self.cursor < self.size {
            let range = ByteRange::new(self.cursor, PIECE.min(self.size - self.cursor));
            self.cursor = range.end();
            range
        } else {
            return false;
        };
        if self.is_locked(range) {
            // The same is being copied for another reason, perhaps with what was there before.
            self.again.push_back(range);
            return false;
        }
        self.written(range);
        self.pieces.push(Piece {
            range,
            todo: Vec::new(),
            part: range,
            key: 0,
            step: Step::Waiting,
            began: Instant::now(),
        });
        true
    }

    pub(super) fn is_locked(&self, range: ByteRange) -> bool {
        self.pieces.iter().any(|piece| piece.range.overlaps(range))
    }

    /// Which piece the operation with this key is of.
    pub(super) fn piece_of(&self, key: u64) -> Option<usize> {
        self.pieces.iter().position(|piece| piece.step != Step::Waiting && piece.key == key)
    }

    /// A part of a piece was copied, or left over. Whether the piece has another one.
    pub(super) fn part_done(&mut self, at: usize) -> bool {
        let piece = &mut self.pieces[at];
        if let Some(next) = piece.todo.pop() {
            (piece.part, piece.step) = (next, Step::Waiting);
            return true;
        }
        let piece = self.pieces.swap_remove(at);
        let took = piece.began.elapsed();
        let pause = if self.is_quiet() { Duration::ZERO } else { took };
        let mut next = Instant::now() + pause;
        if let Some(nanos) = piece.range.len.saturating_mul(1_000_000_000).checked_div(self.rate) {
            next = next.max(self.not_before.max(piece.began) + Duration::from_nanos(nanos));
        }
        self.not_before = self.not_before.max(next);
        self.unflushed += piece.range.len;
        false
    }

    /// A part of a piece could not be read: halves of it are tried, or it is left over.
    pub(super) fn part_unreadable(&mut self, at: usize) {
        let piece = &mut self.pieces[at];
        let part = piece.part;
        if part.len <= BLOCK_SIZE {
            self.leave_over(part);
            self.untold.push(part);
            return;
        }
        let half = (part.len / 2).next_multiple_of(BLOCK_SIZE);
        piece.todo.push(ByteRange::new(part.offset + half, part.len - half));
        piece.todo.push(ByteRange::new(part.offset, half));
    }

    /// It is known what of a part cannot be read: all else of it is tried again.
    pub(super) fn part_partial(&mut self, at: usize, bad: &[ByteRange]) {
        let part = self.pieces[at].part;
        let mut from = part.offset;
        for bad in bad.iter().map(|bad| bad.aligned_out()) {
            if bad.offset > from {
                self.pieces[at].todo.push(ByteRange::new(from, bad.offset - from));
            }
            from = from.max(bad.end());
            self.leave_over(bad);
            self.untold.push(bad);
        }
        if part.end() > from {
            self.pieces[at].todo.push(ByteRange::new(from, part.end() - from));
        }
    }

    /// These have no good copy here.
    pub(super) fn leave_over(&mut self, range: ByteRange) {
        let end = self.cursor.min(self.size);
        if range.offset < end {
            let range = ByteRange::new(range.offset, range.len.min(end - range.offset));
            self.left_over.extend(range.blocks());
        }
    }

    /// Both disks have the same here.
    pub(super) fn written(&mut self, range: ByteRange) {
        if self.left_over.is_empty() {
            return;
        }
        let whole = range.offset.div_ceil(BLOCK_SIZE)..range.end() / BLOCK_SIZE;
        let whole = whole.start..whole.end.max(whole.start);
        let gone: Vec<u64> = self.left_over.range(whole).copied().collect();
        for block in gone {
            self.left_over.remove(&block);
        }
    }

    /// The two may differ here.
    pub(super) fn copy_again(&mut self, range: ByteRange) {
        let range = range.aligned_out();
        let end = self.cursor.min(self.size);
        if range.offset < end {
            self.again.push_back(ByteRange::new(range.offset, range.len.min(end - range.offset)));
        }
    }

    /// What was left over is tried again.
    pub(super) fn try_again(&mut self) {
        if self.is_at_end() {
            self.again.extend(self.left_over(usize::MAX));
        }
    }

    /// What could not be read since this was last called.
    pub(super) fn take_untold(&mut self) -> Vec<ByteRange> {
        std::mem::take(&mut self.untold)
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.left_over.len() > MAX_LEFT_OVER
    }

    pub(super) fn count_left_over(&self) -> u64 {
        self.left_over.len() as u64
    }

    /// Where blocks are left over, at most `most` ranges.
    pub(super) fn left_over(&self, most: usize) -> Vec<ByteRange> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        for block in &self.left_over {
            let full = ranges.len() == most;
            match ranges.last_mut() {
                Some(last) if last.end() == block * BLOCK_SIZE => last.len += BLOCK_SIZE,
                _ if full => break,
                _ => ranges.push(ByteRange::of_blocks(*block..block + 1)),
            }
        }
        ranges
    }

    /// Whether the new disk should be flushed now; it is then.
    pub(super) fn take_flush(&mut self) -> bool {
        let due = self.unflushed >= FLUSH_EVERY;
        if due {
            self.unflushed = 0;
        }
        due
    }

    /// Bytes that were taken and are not under way any more.
    pub(super) fn done(&self) -> u64 {
        self.cursor - self.pieces.iter().map(|piece| piece.range.len).sum::<u64>().min(self.cursor)
    }

    /// Whether nothing speaks against another piece but those that are under way.
    pub(super) fn is_time(&self) -> bool {
        self.has_more() && Instant::now() >= self.not_before
    }
}
