//! The state of a journal: what is queued, written, durable, not yet written back.

use crate::chain::first_chain;
use crate::index::{Index, Part, WriteBack, WriteBackLimits};
use crate::op::{Op, PushError, Ticket};
use crate::recover::{Backlog, Found, links};
use bytes::Bytes;
use holdfast_format::journal::{
    Compression, Cursors, FrameContext, FrameError, FrameHeader, MAX_FRAME_LEN, MAX_FRAME_RECORDS,
    SEGMENT_HEADER_LEN, SegmentHeader, SegmentLink, frame_len,
};
use holdfast_units::{
    ByteRange, GenerationId, HybridTime, LogPosition, MAX_REQUEST, NodeId, ResourceId,
};
use std::collections::VecDeque;

/// What a journal is told when it is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Whose journal it is.
    pub resource: ResourceId,
    /// This node: the origin of what it appends.
    pub node: NodeId,
    /// A random number, drawn anew for every opening.
    pub epoch: u64,
    /// The bytes of a segment's file; a multiple of 4096. An op whose frame does not fit into a
    /// fresh one is refused: with 4 MiB and 4 KiB or more, all do.
    pub segment_bytes: u64,
    /// What frames are aligned to: 512 or 4096.
    pub alignment: u32,
    /// A batch takes no further op when its payloads would have more bytes.
    pub batch_bytes: u32,
    /// How many batches may be with the disk at the same time; at least 1.
    pub batches: usize,
    /// At most so many bytes of payloads are queued (and at least one op).
    pub queue_bytes: u64,
    /// At most so many bytes are written and not synced; then a sync is asked for.
    pub unsynced_bytes: u64,
    /// At most so many bytes of the disk wait to be written back.
    pub dirty_bytes: u64,
    /// At most so many parts of the disk wait to be written back: what the index may hold.
    pub dirty_parts: usize,
    /// So many of the newest bytes are kept to go back to.
    pub keep_bytes: u64,
    /// The files of segments shall not take more bytes.
    pub budget_bytes: u64,
    /// What shall be pushed compressed: see [`Journal::packing`].
    pub compression: Compression,
}

impl Settings {
    /// Sensible numbers: segments of 64 MiB, batches of 256 KiB, a budget of 1 GiB.
    #[must_use]
    pub const fn new(resource: ResourceId, node: NodeId, epoch: u64) -> Self {
        Self {
            resource,
            node,
            epoch,
            segment_bytes: 64 << 20,
            alignment: 4096,
            batch_bytes: 256 << 10,
            batches: 1,
            queue_bytes: 16 << 20,
            unsynced_bytes: 32 << 20,
            dirty_bytes: 512 << 20,
            dirty_parts: 256 << 10,
            keep_bytes: 0,
            budget_bytes: 1 << 30,
            compression: Compression::None,
        }
    }
}

/// The number of a batch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BatchId(pub u64);

/// One write to a segment.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Its number, for [`Journal::written`].
    pub id: BatchId,
    /// The segment.
    pub segment: u64,
    /// Where in its file, in bytes; a multiple of the alignment.
    pub offset: u64,
    /// What is written, one part after the other; together a multiple of the alignment. Payloads
    /// are the very buffers that were pushed.
    pub parts: Vec<Bytes>,
    /// Where in the file each payload begins, and the payload as it is stored. Empty when it is a
    /// copy.
    pub payloads: Vec<(u64, Bytes)>,
    /// The position of its first record; those behind it count up by one.
    pub position: LogPosition,
    /// The position behind it.
    pub end: LogPosition,
    /// The tickets of its records: the first one, and the first behind them. Empty when it is a
    /// copy.
    pub tickets: std::ops::Range<u64>,
}

/// What a journal wants to be done next.
#[derive(Clone, Debug)]
pub enum Next {
    /// Nothing.
    Idle,
    /// Nothing until a batch is written, a sync done, or a segment begun.
    Wait,
    /// A sync, so that [`Journal::synced`] can be told of at least this position.
    Sync(LogPosition),
    /// A new segment: a file of its capacity, written once, with this header. When header, file
    /// and its name are durable, tell [`Journal::begun`].
    Begin(SegmentHeader),
    /// A write; then tell [`Journal::written`].
    Write(Batch),
}

/// Why bytes of another node's journal were not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CopyError {
    /// Something is under way; ask again when it is done.
    #[error("the journal is not ready for more")]
    Busy,
    /// The segment does not continue what is here.
    #[error("segment {0} does not continue the journal of this node")]
    Segment(u64),
    /// The bytes are not whole frames that continue what is here: fetch them again.
    #[error("the bytes for position {position} are not the frame that belongs there: {why}")]
    Frame {
        /// Where they were to go.
        position: LogPosition,
        /// What is wrong.
        why: FrameError,
    },
    /// The journal is not one that follows, or has failed.
    #[error("this journal takes no copies")]
    NotFollowing,
}

/// How a journal stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalStatus {
    /// The first position that is still kept.
    pub tail: LogPosition,
    /// The position behind everything that is written.
    pub head: LogPosition,
    /// The position behind everything that is durable.
    pub durable: LogPosition,
    /// The position behind everything that is durable on the local disk, too.
    pub written_back: LogPosition,
    /// The bytes of the segments' files.
    pub bytes: u64,
    /// Bytes of the disk that wait to be written back.
    pub dirty_bytes: u64,
    /// The time of the newest record.
    pub time: HybridTime,
    /// Whether a write or a sync failed.
    pub failed: bool,
}

struct InFlight {
    id: BatchId,
    segment: u64,
    frames: Vec<(FrameHeader, u64)>,
    end: LogPosition,
    next_ticket: u64,
    written: bool,
}

/// A journal without its files.
pub struct Journal {
    pub(crate) settings: Settings,
    generation: GenerationId,
    /// With the bytes of frames that are made; the last one is the one that is written to.
    pub(crate) segments: VecDeque<(SegmentHeader, u64)>,
    /// The segment that was asked for.
    beginning: Option<SegmentHeader>,
    must_begin: bool,
    /// The next segment continues nothing: it begins another history.
    anew: bool,
    /// A segment is to be begun also when nothing is queued.
    rotate: bool,
    leads: bool,
    /// The epoch of the newest frame.
    epoch: u64,
    time: HybridTime,
    queue: VecDeque<Op>,
    queued_bytes: u64,
    next_ticket: u64,
    /// The ticket of the first op in the queue.
    first_queued: u64,
    in_flight: VecDeque<InFlight>,
    next_batch: u64,
    /// Ends of written frames that are not synced, with the first ticket behind each.
    unsynced: VecDeque<(LogPosition, u64)>,
    written: LogPosition,
    written_ticket: u64,
    synced: LogPosition,
    durable_ticket: u64,
    index: Index,
    /// Of a journal that follows: what was replayed.
    replayed: LogPosition,
    /// What lies before this may not be what the disk holds: a part behind it was given up.
    proven_from: LogPosition,
    pub(crate) cursors: Cursors,
    /// Nothing before this is kept for going back.
    pub(crate) floor: LogPosition,
    failed: bool,
}

impl Journal {
    /// A journal of what was found, with the cursors that were stored.
    ///
    /// With `leads`, this node appends, and gets what `recover` showed by [`Self::restore`].
    /// Without, it takes copies of another node's segments. The first thing that it wants is a
    /// sync of all that was found. `time` is what the clock says.
    #[must_use]
    pub fn new(
        settings: Settings,
        found: &Found,
        cursors: Cursors,
        leads: bool,
        generation: GenerationId,
        time: HybridTime,
    ) -> Self {
        let end = found.end();
        let first = found.segments.first().map_or(end, |(header, _)| header.base);
        let replayed = cursors.written_back.clamp(first, end);
        Self {
            settings,
            generation,
            segments: found.segments.iter().copied().collect(),
            beginning: None,
            must_begin: found.cut || (leads && of_another(found, settings.node)),
            anew: false,
            rotate: false,
            leads,
            epoch: found.epoch,
            time: found.time.next(time),
            queue: VecDeque::new(),
            queued_bytes: 0,
            next_ticket: 0,
            first_queued: 0,
            in_flight: VecDeque::new(),
            next_batch: 0,
            unsynced: VecDeque::new(),
            written: end,
            written_ticket: 0,
            synced: first,
            durable_ticket: 0,
            index: Index::default(),
            replayed,
            proven_from: if found.cut { end } else { LogPosition::START },
            cursors,
            floor: LogPosition::START,
            failed: false,
        }
    }

    /// Of a journal that was just opened by a node that appends: what is to be written back.
    pub fn restore(&mut self, backlog: Backlog) {
        if self.leads {
            self.index = backlog.index;
        }
    }

    /// Queues an op. Its time becomes at least that of the op before it.
    ///
    /// # Errors
    /// [`PushError`]; the op was not taken.
    pub fn push(&mut self, mut op: Op) -> Result<Ticket, PushError> {
        if self.failed {
            return Err(PushError::Failed);
        }
        if !self.leads {
            return Err(PushError::Following);
        }
        let room = self.settings.segment_bytes.saturating_sub(SEGMENT_HEADER_LEN);
        if frame_len(&[op.record], self.settings.alignment).is_none_or(|len| u64::from(len) > room)
        {
            return Err(PushError::TooLong);
        }
        let bytes = op.stored.len() as u64;
        if !self.queue.is_empty() && self.queued_bytes + bytes > self.settings.queue_bytes {
            return Err(PushError::Queue);
        }
        let waiting = self.index.len() + self.queue.len();
        let much = waiting >= self.settings.dirty_parts
            || self.index.bytes() + self.queued_bytes >= self.settings.dirty_bytes;
        // A flush is nothing that the disk gets.
        let few = op.record.range.is_empty() && self.queue.len() < self.settings.dirty_parts;
        if much && !few {
            return Err(PushError::WriteBack);
        }
        self.time = self.time.max(op.record.time);
        op.record.time = self.time;
        if op.is_packed() {
            self.begin_packed();
        }
        self.queued_bytes += bytes;
        self.queue.push_back(op);
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        Ok(ticket)
    }

    /// How ops are to be compressed before they are pushed; `None` also while the last segment says
    /// that nothing in it is compressed, and another one cannot be begun yet.
    #[must_use]
    pub fn packing(&self) -> Compression {
        let unpacked = |header: &SegmentHeader| !header.packed;
        let begun = self.beginning.as_ref().is_some_and(unpacked);
        let last = self.segments.back().filter(|_| !self.must_begin);
        let last = last.is_some_and(|(header, len)| unpacked(header) && *len == 0);
        if begun || last { Compression::None } else { self.settings.compression }
    }

    /// How ops shall be compressed from now on.
    pub fn set_compression(&mut self, compression: Compression) {
        self.settings.compression = compression;
    }

    /// Compressed records go into segments whose header says so.
    fn begin_packed(&mut self) {
        self.must_begin |=
            self.segments.back().is_some_and(|(header, len)| !header.packed && *len > 0);
    }

    /// What is to be done next. Ask again until it is `Idle` or `Wait`, and after every change.
    pub fn next_step(&mut self) -> Next {
        if self.failed {
            return Next::Idle;
        }
        let too_much = self.written.since(self.synced) > self.settings.unsynced_bytes;
        if too_much && !self.segments.is_empty() {
            return Next::Sync(self.written);
        }
        if self.queue.is_empty() && !self.rotate {
            return Next::Idle;
        }
        if self.beginning.is_some() || self.in_flight.len() >= self.settings.batches.max(1) {
            return Next::Wait;
        }
        match self.batch_that_fits() {
            Some((count, len)) => Next::Write(self.compose(count, len)),
            None => self.begin_next(),
        }
    }

    /// Whether [`Self::next_step`] would be a write.
    #[must_use]
    pub fn is_write_next(&self) -> bool {
        let ready = !self.failed
            && self.written.since(self.synced) <= self.settings.unsynced_bytes
            && !self.queue.is_empty()
            && self.beginning.is_none()
            && self.in_flight.len() < self.settings.batches.max(1);
        ready && self.batch_that_fits().is_some()
    }

    /// How many queued ops go into the next frame, and its length; `None` without room for one.
    fn batch_that_fits(&self) -> Option<(usize, u32)> {
        let (header, len) = self.segments.back().filter(|_| !self.must_begin)?;
        let room = header.capacity - SEGMENT_HEADER_LEN - len;
        let mut records = Vec::with_capacity(self.queue.len().min(MAX_FRAME_RECORDS));
        let mut payloads = 0;
        for op in self.queue.iter().take(MAX_FRAME_RECORDS) {
            payloads += u64::from(op.record.stored_len);
            if !records.is_empty() && payloads > u64::from(self.settings.batch_bytes) {
                break;
            }
            records.push(op.record);
        }
        // Nearly always all of them fit.
        while !records.is_empty() {
            match frame_len(&records, header.alignment) {
                Some(len) if u64::from(len) <= room => return Some((records.len(), len)),
                _ => records.pop(),
            };
        }
        None
    }

    fn begin_next(&mut self) -> Next {
        if !self.in_flight.is_empty() {
            return Next::Wait;
        }
        if self.synced < self.written {
            return Next::Sync(self.written);
        }
        let last = self.segments.back().map(|(header, len)| header.link(*len));
        let base = last.map_or(LogPosition::START, |link| link.end());
        let before = last.filter(|_| !self.anew);
        let first_chain = first_chain(self.settings.epoch, base);
        let header = SegmentHeader {
            resource: self.settings.resource,
            number: last.map_or(1, |link| link.number + 1),
            origin: self.settings.node,
            epoch: self.settings.epoch,
            base,
            capacity: self.settings.segment_bytes,
            alignment: self.settings.alignment,
            time: self.queue.front().map_or(self.time, |op| op.record.time),
            chain: before.map_or(first_chain, |link| link.chain_after()),
            predecessor: before.map(|link| (link.origin, link.epoch, link.len)),
            generation: self.generation,
            packed: self.settings.compression != Compression::None
                || self.queue.iter().any(Op::is_packed),
        };
        self.beginning = Some(header);
        Next::Begin(header)
    }

    /// The segment that was asked for could not be made, for want of room; it is asked for again.
    pub fn not_begun(&mut self) {
        self.beginning = None;
    }

    /// The segment that was asked for is durable: file, header and name.
    pub fn begun(&mut self, number: u64) {
        if let Some(header) = self.beginning.take_if(|header| header.number == number) {
            self.epoch = header.epoch;
            self.segments.push_back((header, 0));
            self.must_begin = false;
            self.anew = false;
            self.rotate = false;
        }
    }

    /// A new segment is begun even if nothing is queued; not when the last one has no record yet.
    pub fn rotate_now(&mut self) {
        let has_records = self.segments.back().is_none_or(|(_, len)| *len > 0);
        if self.leads && !self.failed && (has_records || self.must_begin) {
            (self.must_begin, self.rotate) = (true, true);
        }
    }

    fn compose(&mut self, count: usize, len: u32) -> Batch {
        let (segment, filled) = self.segments.back_mut().expect("the frame fits into a segment");
        let (number, alignment) = (segment.number, segment.alignment);
        let position = segment.base.after(*filled);
        let offset = SEGMENT_HEADER_LEN + *filled;
        *filled += u64::from(len);
        let ops: Vec<Op> = self.queue.drain(..count).collect();
        let header = FrameHeader {
            position,
            epoch: self.settings.epoch,
            previous_epoch: self.epoch,
            durable: self.synced,
            segment: number,
            len,
            records: ops.iter().map(|op| op.record).collect(),
        };
        self.epoch = header.epoch;
        let parts = parts_of(&header, &ops, alignment);
        let places = header.payloads(alignment).map(|range| offset + u64::from(range.start));
        let payloads = places.zip(ops.iter().map(|op| op.stored.clone()));
        let payloads = payloads.filter(|(_, stored)| !stored.is_empty()).collect();
        self.queued_bytes -= ops.iter().map(|op| op.stored.len() as u64).sum::<u64>();
        let first = self.first_queued;
        self.first_queued += count as u64;
        let tickets = first..self.first_queued;
        let end = header.end();
        let id = self.fly(number, vec![(header, offset)], end, tickets.end);
        Batch { id, segment: number, offset, parts, payloads, position, end, tickets }
    }

    fn fly(
        &mut self,
        segment: u64,
        frames: Vec<(FrameHeader, u64)>,
        end: LogPosition,
        next_ticket: u64,
    ) -> BatchId {
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        self.in_flight.push_back(InFlight {
            id,
            segment,
            frames,
            end,
            next_ticket,
            written: false,
        });
        id
    }

    /// A batch is written: a crash of this program cannot lose it.
    pub fn written(&mut self, id: BatchId) {
        if let Some(batch) = self.in_flight.iter_mut().find(|batch| batch.id == id) {
            batch.written = true;
        }
        while let Some(batch) = self.in_flight.pop_front_if(|batch| batch.written) {
            self.written = batch.end;
            self.written_ticket = batch.next_ticket;
            self.unsynced.push_back((batch.end, batch.next_ticket));
            let alignment = self
                .segments
                .iter()
                .rev()
                .find(|(header, _)| header.number == batch.segment)
                .map(|(header, _)| header.alignment);
            if let (true, Some(alignment)) = (self.leads, alignment) {
                for (frame, offset) in &batch.frames {
                    self.index.add_frame(frame, *offset, alignment, LogPosition::START);
                }
            }
        }
    }

    /// What a sync that begins now will make durable: pass it to [`Self::synced`] when it is
    /// done. `None` when all that is written is durable.
    #[must_use]
    pub fn sync_target(&self) -> Option<LogPosition> {
        (self.synced < self.written && !self.failed).then_some(self.written)
    }

    /// A sync is done that began when [`Self::sync_target`] was `up_to`.
    pub fn synced(&mut self, up_to: LogPosition) {
        if self.failed {
            return;
        }
        self.synced = self.synced.max(up_to.min(self.written));
        self.index.synced(self.synced);
        while let Some((_, ticket)) = self.unsynced.pop_front_if(|(end, _)| *end <= self.synced) {
            self.durable_ticket = ticket;
        }
    }

    /// A write or a sync failed. Nothing is taken any more, and nothing becomes durable.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// All ops with lower tickets are written, and so is everything before them: they may be
    /// answered.
    #[must_use]
    pub const fn written_ticket(&self) -> Ticket {
        Ticket(self.written_ticket)
    }

    /// All ops with lower tickets are durable: a flush that came behind them may be answered.
    #[must_use]
    pub const fn durable_ticket(&self) -> Ticket {
        Ticket(self.durable_ticket)
    }

    /// The position behind everything that is durable: what peers may be given.
    #[must_use]
    pub const fn durable(&self) -> LogPosition {
        self.synced
    }

    /// The position behind everything that is written.
    #[must_use]
    pub const fn head(&self) -> LogPosition {
        self.written
    }

    /// The time of the newest op.
    #[must_use]
    pub const fn time(&self) -> HybridTime {
        self.time
    }

    /// Where the newest data of a range are: in the journal, on the disk, or nowhere.
    #[must_use]
    pub fn lookup(&self, range: ByteRange) -> Vec<Part> {
        self.index.lookup(range)
    }

    /// The next writes to the disk: sorted, neighbours merged, only durable records, no range
    /// where a write is still under way. `None` when there is nothing to write back now.
    ///
    /// Of a journal that has failed, all that was written goes to the disk: nobody gets it from
    /// here any more, so the disk cannot be ahead of anybody.
    pub fn write_back(&mut self, limits: WriteBackLimits) -> Option<WriteBack> {
        let up_to = if self.failed { self.written } else { self.synced };
        self.index.plan(limits, up_to)
    }

    /// As [`Self::write_back`], but only of records before `before`, the oldest ones first: a few
    /// thousand of them at a time are sorted. What was overwritten since stays in the journal.
    pub fn write_back_oldest(
        &mut self,
        limits: WriteBackLimits,
        before: LogPosition,
    ) -> Option<WriteBack> {
        let up_to = if self.failed { self.written } else { self.synced };
        self.index.plan_oldest(limits, before.min(up_to))
    }

    /// All writes of a write-back are done; or, when it did not work, any of them.
    pub fn written_back(&mut self, id: u64, worked: bool) {
        self.index.plan_done(id, worked);
    }

    /// What a flush of the disk that begins now will cover.
    #[must_use]
    pub const fn disk_flush_token(&self) -> u64 {
        self.index.flush_token()
    }

    /// A flush of the disk is done that began when [`Self::disk_flush_token`] was `token`.
    pub fn disk_flushed(&mut self, token: u64) {
        self.index.flushed(token);
    }

    /// Everything before this is durable on the local disk.
    #[must_use]
    pub fn written_back_to(&self) -> LogPosition {
        if self.leads {
            self.index.oldest().unwrap_or(self.synced).min(self.synced)
        } else {
            self.replayed
        }
    }

    /// A journal that follows: everything before `position` is durable on the local disk.
    pub fn replayed(&mut self, position: LogPosition) {
        if !self.leads {
            self.replayed = self.replayed.max(position.min(self.synced));
        }
    }

    /// Of a journal that follows: what is on the disk is made an earlier state, so that the journal
    /// is needed from there on again.
    pub fn rewound(&mut self, position: LogPosition) {
        if !self.leads {
            self.replayed = position.min(self.synced);
        }
    }

    /// Whether this node appends.
    #[must_use]
    pub const fn leads(&self) -> bool {
        self.leads
    }

    /// The generation of the data, as the next segment's header will have it.
    #[must_use]
    pub const fn generation(&self) -> GenerationId {
        self.generation
    }

    /// The number of the segment that is appended to.
    #[must_use]
    pub fn last_segment(&self) -> Option<u64> {
        self.segments.back().map(|(header, _)| header.number)
    }

    /// Whether the next record begins a segment of its own.
    #[must_use]
    pub const fn is_to_begin(&self) -> bool {
        self.must_begin
    }

    /// The next record begins a segment of its own, unless the last one is empty.
    pub fn rotate(&mut self) {
        self.must_begin |= self.segments.back().is_some_and(|(_, len)| *len > 0);
    }

    /// The bytes of frames that the last segment still takes; 0 when another one is to be begun.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.segments.back().filter(|_| !self.must_begin).map_or(0, |(header, len)| {
            (header.capacity - SEGMENT_HEADER_LEN - len).saturating_sub(self.queued_bytes)
        })
    }

    /// Whether the next record would be the first one of a segment that says another generation.
    #[must_use]
    pub fn is_begun_in_another(&self, generation: GenerationId) -> bool {
        let empty =
            |(header, len): &(SegmentHeader, u64)| *len == 0 && header.generation != generation;
        self.leads && !self.must_begin && self.segments.back().is_some_and(empty)
    }

    /// What is appended from now on is of this generation of the data, in segments that say so. One
    /// without a record keeps the generation that it was begun in, also when records come.
    pub fn begin_generation(&mut self, generation: GenerationId) {
        self.generation = generation;
        let other =
            |(header, len): &(SegmentHeader, u64)| *len > 0 && header.generation != generation;
        self.must_begin |= self.leads && self.segments.back().is_some_and(other);
    }

    /// The disk was written to past the journal, after everything had been written back and the
    /// cursors stored: what is appended from now on begins another history, and what was kept for
    /// peers is of no use to them. Whether it was possible.
    pub fn begin_anew(&mut self) -> bool {
        let idle = self.queue.is_empty() && self.in_flight.is_empty() && self.beginning.is_none();
        let all = self.synced == self.written && self.written_back_to() == self.synced;
        if self.failed || !self.leads || !idle || !all {
            return false;
        }
        self.anew = true;
        self.must_begin = true;
        self.cut_everything();
        true
    }

    /// Whether the next segment begins anew: what is here is not what comes before it.
    #[must_use]
    pub const fn begins_anew(&self) -> bool {
        self.anew
    }

    /// From now on this node appends. Everything must be written, synced and replayed; what it
    /// appends goes into a segment of its own. Whether it was possible.
    pub fn lead(&mut self, generation: GenerationId) -> bool {
        let all = self.synced == self.written && self.in_flight.is_empty();
        if self.failed || self.leads || !all || self.replayed < self.synced {
            return self.leads;
        }
        self.generation = generation;
        self.leads = true;
        self.must_begin = true;
        true
    }

    /// From now on this node takes copies of another one's journal. Everything must be durable and
    /// written back. Whether it was possible.
    pub fn follow(&mut self) -> bool {
        let idle = self.queue.is_empty() && self.in_flight.is_empty() && self.beginning.is_none();
        let all = self.synced == self.written && self.written_back_to() == self.synced;
        if self.failed || !self.leads || !idle || !all {
            return !self.leads;
        }
        self.replayed = self.synced;
        self.leads = false;
        true
    }

    /// Takes over the header of another node's segment; it must continue what is here, or be the
    /// first one. Write it as for [`Next::Begin`].
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn copy_segment(&mut self, header: SegmentHeader) -> Result<SegmentHeader, CopyError> {
        self.may_copy()?;
        if self.synced < self.written {
            return Err(CopyError::Busy);
        }
        let before = self.segments.back().map(|(header, len)| header.link(*len));
        let fits = before.is_none_or(|before| header.continues(&before));
        if !fits || header.resource != self.settings.resource {
            return Err(CopyError::Segment(header.number));
        }
        if before.is_none() {
            (self.written, self.synced, self.replayed) = (header.base, header.base, header.base);
        }
        self.beginning = Some(header);
        Ok(header)
    }

    /// Of a journal that follows: gives up the last segment if it has no frame; its number. Take
    /// its file away.
    pub fn drop_empty(&mut self) -> Option<u64> {
        let idle = self.beginning.is_none() && self.in_flight.is_empty() && !self.leads;
        let (header, _) = self.segments.pop_back_if(|(_, len)| idle && *len == 0)?;
        Some(header.number)
    }

    /// Takes whole frames of another node's journal that continue what is here; the write to make,
    /// and how many bytes were taken (a frame that is not whole is left).
    ///
    /// # Errors
    /// [`CopyError`] when not even one frame can be taken. Nothing has changed.
    pub fn copy_frames(&mut self, bytes: &Bytes) -> Result<(Batch, usize), CopyError> {
        self.may_copy()?;
        let Some((segment, filled)) = self.segments.back() else {
            return Err(CopyError::Segment(0));
        };
        let (segment, filled) = (*segment, *filled);
        let room = segment.capacity - SEGMENT_HEADER_LEN - filled;
        let mut context = FrameContext {
            position: segment.base.after(filled),
            segment: segment.number,
            epoch: self.epoch,
            alignment: segment.alignment,
        };
        let first = context.position;
        let (mut frames, mut taken) = (Vec::new(), 0_usize);
        let offset = SEGMENT_HEADER_LEN + filled;
        while taken < bytes.len() {
            match copied_frame(&bytes[taken..], &context, room - taken as u64) {
                Ok((header, len)) => {
                    context.position = header.end();
                    context.epoch = header.epoch;
                    self.time =
                        header.records.last().map_or(self.time, |last| self.time.max(last.time));
                    frames.push((header, offset + taken as u64));
                    taken += len;
                }
                Err(_) if !frames.is_empty() => break,
                Err(why) => return Err(CopyError::Frame { position: context.position, why }),
            }
        }
        if frames.is_empty() {
            return Err(CopyError::Frame { position: first, why: FrameError::Short });
        }
        if let Some((_, filled)) = self.segments.back_mut() {
            *filled += taken as u64;
        }
        self.epoch = context.epoch;
        let (end, tickets) = (context.position, self.first_queued..self.first_queued);
        let id = self.fly(segment.number, frames, end, tickets.end);
        let parts = vec![bytes.slice(..taken)];
        let batch = Batch {
            id,
            segment: segment.number,
            offset,
            parts,
            payloads: Vec::new(),
            position: first,
            end,
            tickets,
        };
        Ok((batch, taken))
    }

    fn may_copy(&self) -> Result<(), CopyError> {
        if self.leads || self.failed {
            Err(CopyError::NotFollowing)
        } else if self.beginning.is_some() || self.in_flight.len() >= self.settings.batches.max(1) {
            Err(CopyError::Busy)
        } else {
            Ok(())
        }
    }

    /// Nothing before this says what the disk holds.
    pub(crate) const fn proven_from(&self) -> LogPosition {
        self.proven_from
    }

    /// The chain of what is durable here, oldest segment first: what peers are told.
    #[must_use]
    pub fn links(&self) -> Vec<SegmentLink> {
        links(&self.durable_segments())
    }

    /// The segments, oldest first, with the bytes of their frames that are durable.
    #[must_use]
    pub fn durable_segments(&self) -> Vec<(SegmentHeader, u64)> {
        let durable = |(header, len): &(SegmentHeader, u64)| {
            (*header, (*len).min(self.synced.since(header.base)))
        };
        self.segments.iter().map(durable).collect()
    }

    /// The settings it was opened with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> JournalStatus {
        JournalStatus {
            tail: self.segments.front().map_or(self.written, |(header, _)| header.base),
            head: self.written,
            durable: self.synced,
            written_back: self.written_back_to(),
            bytes: self.segments.iter().map(|(header, _)| header.capacity).sum(),
            dirty_bytes: self.index.bytes(),
            time: self.time,
            failed: self.failed,
        }
    }
}

/// Whether the last segment is another node's: this one begins a segment of its own behind it.
fn of_another(found: &Found, node: NodeId) -> bool {
    found.segments.last().is_some_and(|(header, _)| header.origin != node)
}

fn copied_frame(
    bytes: &[u8],
    context: &FrameContext,
    room: u64,
) -> Result<(FrameHeader, usize), FrameError> {
    let header = FrameHeader::decode(bytes, context.alignment)?;
    header.follows(context)?;
    let len = usize::try_from(header.len).map_err(|_| FrameError::Short)?;
    let frame = bytes.get(..len).ok_or(FrameError::Short)?;
    if u64::from(header.len) > room {
        return Err(FrameError::Content("it does not fit into its segment"));
    }
    header.check_payloads(frame, context.alignment)?;
    Ok((header, len))
}

/// Header, payloads and the zeroes between them.
fn parts_of(header: &FrameHeader, ops: &[Op], alignment: u32) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(ops.len() + 2);
    let mut glue = header.encode();
    let mut at = u32::try_from(glue.len()).unwrap_or(u32::MAX);
    for (range, op) in header.payloads(alignment).zip(ops).filter(|(range, _)| !range.is_empty()) {
        extend(&mut glue, range.start - at);
        if !glue.is_empty() {
            parts.push(Bytes::from(std::mem::take(&mut glue)));
        }
        parts.push(op.stored.clone());
        at = range.end;
    }
    extend(&mut glue, header.len - at);
    if !glue.is_empty() {
        parts.push(Bytes::from(glue));
    }
    parts
}

fn extend(glue: &mut Vec<u8>, zeroes: u32) {
    let len = glue.len() + usize::try_from(zeroes).unwrap_or(0);
    glue.resize(len, 0);
}

const _: () = assert!(MAX_REQUEST + 4096 <= MAX_FRAME_LEN as u64);

#[cfg(test)]
mod tests;
