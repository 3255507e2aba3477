//! Requests that the core does not take as they are: too long, or with partial blocks.
//!
//! A write of partial blocks reads the blocks at its edges first, then writes whole blocks. Who
//! runs it sees to it that no other write of these blocks is under way meanwhile.

use super::frontend::error_of;
use bytes::Bytes;
use holdfast_core::{IoFailure, RequestKind};
use holdfast_nbd::{ReadChunk, Reply, ReplyData, Request};
use holdfast_store::BufferPool;
use holdfast_units::{BLOCK_SIZE, ByteRange, EXTENT_SIZE, MAX_REQUEST};

/// The longest request for zeroes that goes to the core.
pub(super) const LONGEST_ZEROES: u64 = EXTENT_SIZE;
/// How many pieces of one job are under way at a time.
const PIECES: usize = 8;
/// Writes of partial blocks up to this length are copied into one piece.
const COPIED: u64 = 64 << 10;

static ZEROES: [u8; MAX_REQUEST as usize] = [0; MAX_REQUEST as usize];

/// Whether a job needs the blocks at its edges for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum JobKind {
    Plain,
    Partial,
}

/// The end of a piece.
pub(super) struct PieceResult {
    pub(super) offset: u64,
    pub(super) result: Result<Option<Bytes>, IoFailure>,
}

enum Op {
    Read,
    /// Store these data.
    Write(Bytes),
    /// Store zeroes, which take space.
    Fill,
    Zeroes,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Stage {
    Waiting,
    /// The edges are being read.
    Edges,
    Body,
}

/// A request in pieces.
pub(super) struct Job {
    reply: Reply,
    op: Op,
    /// What the client asked for, and the blocks that it touches.
    range: ByteRange,
    outer: ByteRange,
    fua: bool,
    cost: u64,
    stage: Stage,
    /// Where the next piece begins.
    cursor: u64,
    in_flight: usize,
    /// Contents of the blocks that are written in part, or the pieces of a read, by offset.
    parts: Vec<(u64, Bytes)>,
    failure: Option<IoFailure>,
}

impl Job {
    /// `None`, answered, when nothing is to be done.
    pub(super) fn new(request: Request, reply: Reply, cost: u64) -> Option<Self> {
        use holdfast_nbd::RequestKind as Nbd;
        let Request { kind, mut range, fua, no_hole, payload, .. } = request;
        let op = match kind {
            Nbd::Write => Op::Write(payload),
            Nbd::WriteZeroes if no_hole => Op::Fill,
            Nbd::WriteZeroes => Op::Zeroes,
            Nbd::Trim => {
                // What a trim leaves is undefined: partial blocks stay as they are.
                let start = range.offset.next_multiple_of(BLOCK_SIZE);
                let end = range.end() / BLOCK_SIZE * BLOCK_SIZE;
                if start >= end {
                    reply.complete(Ok(ReplyData::Done));
                    return None;
                }
                range = ByteRange::new(start, end - start);
                Op::Zeroes
            }
            Nbd::Read | Nbd::Flush | Nbd::Cache | Nbd::BlockStatus | Nbd::Resize => Op::Read,
        };
        let outer = range.aligned_out();
        Some(Self {
            reply,
            op,
            range,
            outer,
            fua,
            cost,
            stage: Stage::Waiting,
            cursor: outer.offset,
            in_flight: 0,
            parts: Vec::new(),
            failure: None,
        })
    }

    pub(super) const fn outer(&self) -> ByteRange {
        self.outer
    }

    pub(super) const fn cost(&self) -> u64 {
        self.cost
    }

    pub(super) const fn writes(&self) -> bool {
        !matches!(self.op, Op::Read)
    }

    /// Whether it changes blocks in part.
    pub(super) const fn is_partial(&self) -> bool {
        self.writes() && !self.range.is_aligned()
    }

    pub(super) fn is_running(&self) -> bool {
        self.stage != Stage::Waiting
    }

    pub(super) fn start(&mut self) -> JobKind {
        if self.is_partial() {
            self.stage = Stage::Edges;
            JobKind::Partial
        } else {
            self.stage = Stage::Body;
            JobKind::Plain
        }
    }

    /// Whether nothing is under way and nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        let all = self.stage == Stage::Body && self.cursor >= self.outer.end();
        self.in_flight == 0 && (all || self.failure.is_some())
    }

    /// The next request to the core and its offset; `None` when nothing can be asked for now.
    pub(super) fn next_piece(&mut self, pool: &BufferPool) -> Option<(u64, RequestKind)> {
        if self.failure.is_some() || self.in_flight >= PIECES {
            return None;
        }
        if self.stage == Stage::Edges {
            let Some(edge) = self.next_edge() else {
                if self.in_flight > 0 {
                    return None;
                }
                self.stage = Stage::Body;
                self.cursor = self.outer.offset;
                return self.next_piece(pool);
            };
            self.cursor = edge.end();
            self.in_flight += 1;
            return Some((edge.offset, RequestKind::Read(edge)));
        }
        if self.cursor >= self.outer.end() {
            return None;
        }
        let range = self.piece_at(self.cursor);
        self.cursor = range.end();
        self.in_flight += 1;
        Some((range.offset, self.request(range, pool)))
    }

    /// The first block from the cursor on that is changed in part.
    fn next_edge(&self) -> Option<ByteRange> {
        let first = ByteRange::new(self.outer.offset, BLOCK_SIZE);
        let last = ByteRange::new(self.outer.end() - BLOCK_SIZE, BLOCK_SIZE);
        [first, last].into_iter().find(|b| b.offset >= self.cursor && !self.range.contains(*b))
    }

    fn piece_at(&self, from: u64) -> ByteRange {
        let left = self.outer.end() - from;
        let edge = !self.range.contains(ByteRange::new(from, BLOCK_SIZE));
        let len = match self.op {
            Op::Read => left.min(MAX_REQUEST),
            Op::Write(_) | Op::Fill if self.outer.len <= COPIED => left,
            _ if edge => BLOCK_SIZE,
            Op::Write(_) | Op::Fill => self.whole_blocks(from, MAX_REQUEST),
            Op::Zeroes => self.whole_blocks(from, LONGEST_ZEROES),
        };
        ByteRange::new(from, len)
    }

    /// How many bytes of blocks that are covered whole lie from `from` on, up to the next multiple
    /// of `step`. Pieces so cut touch one extent of the activity log each.
    fn whole_blocks(&self, from: u64, step: u64) -> u64 {
        let end = self.range.end() / BLOCK_SIZE * BLOCK_SIZE;
        end.min((from / step + 1) * step) - from
    }

    fn request(&self, range: ByteRange, pool: &BufferPool) -> RequestKind {
        let fua = self.fua;
        let whole = self.range.contains(range);
        match &self.op {
            Op::Read => RequestKind::Read(range),
            Op::Zeroes if whole => RequestKind::Zeroes { range, fua },
            Op::Write(payload) if whole => {
                let from = size(range.offset - self.range.offset);
                let data = payload.slice(from..from + size(range.len));
                RequestKind::Write { range, data, fua }
            }
            Op::Fill if whole => {
                let data = Bytes::from_static(&ZEROES[..size(range.len)]);
                RequestKind::Write { range, data, fua }
            }
            _ => RequestKind::Write { range, data: self.compose(range, pool), fua },
        }
    }

    /// Whole blocks of what was there and what the client wants to be there.
    fn compose(&self, range: ByteRange, pool: &BufferPool) -> Bytes {
        let mut buffer = pool.get(size(range.len));
        for (offset, old) in &self.parts {
            if range.contains(ByteRange::new(*offset, BLOCK_SIZE)) {
                let at = size(offset - range.offset);
                buffer[at..at + old.len()].copy_from_slice(old);
            }
        }
        let start = self.range.offset.max(range.offset);
        let end = self.range.end().min(range.end());
        let new = &mut buffer[size(start - range.offset)..size(end - range.offset)];
        match &self.op {
            Op::Write(payload) => {
                let from = size(start - self.range.offset);
                new.copy_from_slice(&payload[from..from + new.len()]);
            }
            Op::Read | Op::Fill | Op::Zeroes => new.fill(0),
        }
        buffer.freeze()
    }

    pub(super) fn piece_done(&mut self, piece: PieceResult) {
        self.in_flight -= 1;
        match piece.result {
            Ok(Some(data)) => self.parts.push((piece.offset, data)),
            Ok(None) => {}
            Err(failure) => {
                self.failure.get_or_insert(failure);
            }
        }
    }

    /// Answers the client.
    pub(super) fn answer(mut self) {
        let result = match (self.failure, &self.op) {
            (Some(failure), _) => Err(error_of(failure)),
            (None, Op::Read) => Ok(ReplyData::ReadChunks(self.chunks())),
            (None, _) => Ok(ReplyData::Done),
        };
        self.reply.complete(result);
    }

    /// What was read, cut to what was asked for.
    fn chunks(&mut self) -> Vec<ReadChunk> {
        let mut parts = std::mem::take(&mut self.parts);
        parts.sort_unstable_by_key(|(offset, _)| *offset);
        let range = self.range;
        let cut = |(offset, data): (u64, Bytes)| {
            let from = size(range.offset.saturating_sub(offset));
            let to = size(range.end() - offset).min(data.len());
            ReadChunk::Data(data.slice(from..to))
        };
        parts.into_iter().map(cut).collect()
    }
}

/// Lengths here are those of payloads in memory, or of a block.
fn size(len: u64) -> usize {
    usize::try_from(len).expect("a payload fits the address space")
}
