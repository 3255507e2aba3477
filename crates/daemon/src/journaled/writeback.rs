//! From the journal to the disk: sorted, merged, in idle moments and under pressure.

use super::open::Sizes;
use super::worker::{Flight, Worker};
use super::{JournalCallError, Mode};
use bytes::Bytes;
use holdfast_journal::{JournalStatus, Run, RunKind, WriteBack, WriteBackLimits};
use holdfast_store::DiskOp;
use holdfast_units::LogPosition;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A moment is idle when nothing was written for so long.
const IDLE: Duration = Duration::from_millis(100);
/// The disk is flushed behind so many bytes at the latest.
const FLUSH_EVERY: u64 = 32 << 20;
/// Rounds at a time.
const ROUNDS: usize = 2;

/// So much of a segment is read ahead at a time.
const AHEAD: u64 = 16 << 20;

/// Who waits for a trim, and what was written when he asked.
pub(super) type Trimming = (LogPosition, oneshot::Sender<Result<u64, JournalCallError>>);

/// What is being written back.
#[derive(Default)]
pub(super) struct Back {
    rounds: HashMap<u64, Round>,
    flushing: bool,
    /// What was written back and is not flushed.
    unflushed: u64,
    /// The disk must be flushed once more, whatever was written back.
    flush_anyway: bool,
    /// The journal has failed, and it is not durable yet that it did.
    unmarked: bool,
    /// Nothing more can be written back before the journal is synced.
    pub(super) wants_sync: bool,
    /// The journal is being made shorter, to what lies behind this position.
    shortens: Option<LogPosition>,
    /// What waits is being made less.
    thins: bool,
    /// Up to here, in this segment, what is written back is read ahead.
    expected: (u64, u64),
}

struct Round {
    left: usize,
    bytes: u64,
    failed: Option<io::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Urgency {
    None,
    /// As nobody else does anything.
    Idle,
    /// Only what has not been overwritten since this position, the oldest first: what is written
    /// again and again need not reach the disk each time.
    Oldest(LogPosition),
    /// Everything, in the order of the disk.
    All,
}

impl Back {
    /// Nothing is under way, and nothing waits for a flush.
    pub(super) fn is_idle(&self) -> bool {
        let nothing_left = self.unflushed == 0 && !self.flush_anyway;
        self.rounds.is_empty() && !self.flushing && nothing_left
    }

    /// The journal has failed: what flushes wait for is on the disk after the next one.
    pub(super) fn rescue(&mut self) {
        self.flush_anyway = true;
        self.unmarked = true;
    }
}

/// Before which position all is to be written back: from one half of the budget on down to three
/// eighths of it as they are then. Were they those of each moment, somebody who writes on and on
/// would have the disk flushed for every few records.
fn shorten_to(
    begun: Option<LogPosition>,
    status: &JournalStatus,
    budget: u64,
) -> Option<LogPosition> {
    if let Some(to) = begun.filter(|to| status.written_back < *to && *to <= status.head) {
        return Some(to);
    }
    let waits = status.head.since(status.written_back);
    (waits > budget / 2).then(|| LogPosition(status.head.0.saturating_sub(budget / 8 * 3)))
}

impl Worker {
    fn urgency(&mut self) -> Urgency {
        if self.broken.is_some() {
            return Urgency::None;
        }
        match self.mode {
            Mode::Draining | Mode::Rescuing => return Urgency::All,
            Mode::Direct | Mode::Follow | Mode::Without => return Urgency::None,
            Mode::Lead => {}
        }
        if !self.wishes.trimming.is_empty() {
            return Urgency::All;
        }
        let status = self.log.journal().status();
        if self.pressed || self.no_room {
            return Urgency::Oldest(status.head);
        }
        // From one half of what may wait it goes on to three eighths, so that there is always much
        // to sort.
        let Sizes { budget, dirty, .. } = self.sizes;
        let enough = |limit: u64, begun: bool| limit / 8 * if begun { 3 } else { 4 };
        self.back.shortens = shorten_to(self.back.shortens, &status, budget);
        self.back.thins = status.dirty_bytes > enough(dirty, self.back.thins) / 2 * 3;
        if self.back.thins {
            Urgency::Oldest(status.head)
        } else if let Some(to) = self.back.shortens {
            Urgency::Oldest(to)
        } else if status.dirty_bytes > 0 && self.last_write.elapsed() >= IDLE {
            Urgency::Idle
        } else {
            Urgency::None
        }
    }

    /// When an idle moment may begin.
    pub(super) fn next_write_back(&self) -> Option<Instant> {
        let waits = self.mode == Mode::Lead && self.broken.is_none() && self.back.is_idle();
        let dirty = waits && self.log.journal().status().dirty_bytes > 0;
        dirty.then(|| self.last_write + IDLE)
    }

    /// Starts what is to be written back now.
    pub(super) fn write_back(&mut self) {
        if std::mem::take(&mut self.back.unmarked) && self.broken.is_none() {
            self.begin_rescue();
        }
        let urgency = self.urgency();
        let rounds = match urgency {
            Urgency::None => 0,
            Urgency::Idle => 1,
            Urgency::Oldest(_) | Urgency::All => ROUNDS,
        };
        let mut all = urgency == Urgency::None;
        while self.back.rounds.len() < rounds && self.broken.is_none() {
            match self.next_round(urgency) {
                Some(plan) => self.begin_round(&plan),
                None => {
                    all = true;
                    break;
                }
            }
        }
        let Back { rounds, flushing, unflushed, flush_anyway, .. } = &self.back;
        let last = all && rounds.is_empty() && (*unflushed > 0 || *flush_anyway);
        if !flushing && (last || *unflushed >= FLUSH_EVERY) && self.broken.is_none() {
            self.back.flushing = true;
            self.back.unflushed = 0;
            self.back.flush_anyway = false;
            let token = self.log.journal().disk_flush_token();
            self.fly(Flight::Flush { token }, DiskOp::Flush);
        }
        if all && self.back.is_idle() {
            self.written_back();
        }
    }

    /// The next writes. What is not durable in the journal yet must become so first.
    fn next_round(&mut self, urgency: Urgency) -> Option<WriteBack> {
        let plan = self.plan_round(urgency);
        let journal = self.log.journal();
        // What overwrote an old record keeps the position back until it is durable itself.
        let idle = self.back.is_idle() && self.back.unflushed == 0;
        let reached = |before| !idle || journal.written_back_to() >= before;
        let durable = journal.sync_target().is_none()
            || matches!(urgency, Urgency::Oldest(at) if at <= journal.durable() && reached(at));
        self.back.wants_sync = plan.is_none() && !durable;
        plan
    }

    fn plan_round(&mut self, urgency: Urgency) -> Option<WriteBack> {
        let limits = WriteBackLimits { bytes: self.sizes.round, runs: 128, run_bytes: 1 << 20 };
        let journal = self.log.journal_mut();
        match urgency {
            Urgency::Oldest(before) => journal.write_back_oldest(limits, before),
            _ => journal.write_back(limits),
        }
    }

    fn begin_round(&mut self, plan: &WriteBack) {
        self.expect_pieces(plan);
        let mut requests = Vec::with_capacity(plan.runs.len());
        for run in &plan.runs {
            match self.request_of(run) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    // It was completed, and there is no other place that has it.
                    self.log.journal_mut().written_back(plan.id, false);
                    let what = format!("what the journal holds for {} cannot be read", run.range);
                    return self.break_disk(&what, &error);
                }
            }
        }
        let bytes = plan.runs.iter().map(|run| run.range.len).sum();
        let round = Round { left: requests.len(), bytes, failed: None };
        self.back.rounds.insert(plan.id, round);
        for request in requests {
            self.fly(Flight::Run { plan: plan.id }, request);
        }
    }

    /// What is in no memory any more is read ahead, in one go: record by record that would be many
    /// trips to the device, with the shard kept from the journal.
    fn expect_pieces(&mut self, plan: &WriteBack) {
        let mut spans: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let data = plan.runs.iter().filter(|run| run.kind == RunKind::Data);
        for piece in data.flat_map(|run| &run.pieces).filter(|piece| !self.cache.has(&piece.place))
        {
            let (begin, end) =
                (piece.place.offset, piece.place.offset + u64::from(piece.place.stored_len));
            let span = spans.entry(piece.place.segment).or_insert((begin, end));
            *span = (span.0.min(begin), span.1.max(end));
        }
        for (segment, (begin, end)) in spans {
            let (last, reached) = self.back.expected;
            let begin = if last == segment { begin.max(reached) } else { begin };
            let len = end.saturating_sub(begin).min(AHEAD);
            if len > 0 {
                self.log.expect(segment, begin, len);
                self.back.expected = (segment, begin + len);
            }
        }
    }

    fn request_of(&mut self, run: &Run) -> io::Result<DiskOp> {
        let range = run.range;
        Ok(match run.kind {
            RunKind::Data => DiskOp::Write { range, data: self.data_of(run)?, fua: false },
            RunKind::Zeroes => DiskOp::WriteZeroes { range, unmap: false, fua: false },
            RunKind::Discard => DiskOp::WriteZeroes { range, unmap: true, fua: false },
        })
    }

    fn data_of(&mut self, run: &Run) -> io::Result<Bytes> {
        if let [piece] = &run.pieces[..] {
            return self.piece(piece);
        }
        let mut data = self.pool.get(usize::try_from(run.range.len).map_err(io::Error::other)?);
        let mut at = 0;
        for piece in &run.pieces {
            let part = self.piece(piece)?;
            data[at..at + part.len()].copy_from_slice(&part);
            at += part.len();
        }
        Ok(data.freeze())
    }

    /// A write of a round has ended.
    pub(super) fn run_done(&mut self, plan: u64, result: io::Result<()>) {
        let Some(round) = self.back.rounds.get_mut(&plan) else { return };
        round.left -= 1;
        if let Err(error) = result {
            round.failed = Some(error);
        }
        if round.left > 0 {
            return;
        }
        let Some(round) = self.back.rounds.remove(&plan) else { return };
        self.log.journal_mut().written_back(plan, round.failed.is_none());
        match round.failed {
            Some(error) => self.break_disk("the journal could not be written back to it", &error),
            None => self.back.unflushed += round.bytes.max(1),
        }
    }

    pub(super) fn disk_flushed(&mut self, token: u64, result: io::Result<()>) {
        self.back.flushing = false;
        if let Err(error) = result {
            return self.break_disk("a flush failed", &error);
        }
        self.log.journal_mut().disk_flushed(token);
        self.pressed = false;
        if !matches!(self.mode, Mode::Lead | Mode::Draining) {
            return;
        }
        if let Err(error) = self.log.store_cursors() {
            return self.journal_failed("its cursors could not be stored", &error);
        }
        self.make_room();
        self.answer_trims();
    }

    /// There is nothing more to write back now.
    fn written_back(&mut self) {
        if self.mode == Mode::Lead {
            self.answer_trims();
        }
        let waits = match self.mode {
            Mode::Lead => !self.cut_wanted,
            // Nobody notes any more what peers lose.
            Mode::Draining => !self.appending.is_empty(),
            _ => false,
        };
        let drained = self.log.journal().status().dirty_bytes == 0;
        if drained && waits && self.no_room && self.log.spares() == 0 {
            let error = io::Error::from(io::ErrorKind::StorageFull);
            self.journal_failed("there is no room for its next segment", &error);
        }
    }

    /// Gives up what nobody needs, for those who asked before what is written back now was written:
    /// somebody who writes on and on does not keep them waiting.
    pub(super) fn answer_trims(&mut self) {
        let to = self.log.journal().written_back_to();
        let asked = std::mem::take(&mut self.wishes.trimming);
        let (done, waiting) = asked.into_iter().partition(|(head, _)| *head <= to);
        self.wishes.trimming = waiting;
        let done: Vec<Trimming> = done;
        if done.is_empty() {
            return;
        }
        let freed = self.trim_now();
        for (_, done) in done {
            // Who asked may be gone.
            let _ = done.send(Ok(freed));
        }
    }

    fn trim_now(&mut self) -> u64 {
        let before = self.log.journal().status().bytes;
        self.log.journal_mut().trim();
        self.recycle();
        before.saturating_sub(self.log.journal().status().bytes)
    }

    /// Gives up what nobody needs, after everything that is there now was written back.
    pub(super) fn trim(&mut self, done: oneshot::Sender<Result<u64, JournalCallError>>) {
        if self.broken.is_some() {
            return drop(done.send(Err(self.broken_error().into())));
        }
        match self.mode {
            Mode::Lead => self.wishes.trimming.push((self.log.journal().head(), done)),
            Mode::Direct => {
                // Who asked may be gone.
                let _ = done.send(Ok(self.trim_now()));
            }
            mode => drop(done.send(Err(JournalCallError::Mode(mode)))),
        }
    }

    /// Has the next segment's file made by another thread, so that it begins without delay.
    pub(super) fn make_spare(&mut self) {
        let bytes = self.log.journal().status().bytes;
        let more = self.log.spares() == 0 && bytes + self.sizes.segment <= self.sizes.limit;
        if self.mode != Mode::Lead || self.spare_in_making || !more {
            return;
        }
        self.spare_in_making = self.start_spare();
    }
}

#[cfg(test)]
mod tests {
    use super::shorten_to;
    use holdfast_journal::JournalStatus;
    use holdfast_units::{HybridTime, LogPosition};

    const BUDGET: u64 = 8000;

    fn status(head: u64, written_back: u64) -> JournalStatus {
        let (head, written_back) = (LogPosition(head), LogPosition(written_back));
        JournalStatus {
            tail: LogPosition::START,
            head,
            durable: head,
            written_back,
            bytes: 0,
            dirty_bytes: 0,
            time: HybridTime::default(),
            failed: false,
        }
    }

    #[test]
    fn who_writes_on_does_not_move_the_end_of_a_shortening() {
        let mut begun = None;
        let (mut head, mut back, mut times) = (0, 0, 0);
        while head < 100 * BUDGET {
            head += 7;
            let before = begun;
            begun = shorten_to(begun, &status(head, back), BUDGET);
            match (before, begun) {
                (None, Some(to)) => {
                    times += 1;
                    assert_eq!(to.0, head - 3000);
                }
                (Some(before), Some(to)) => assert_eq!(before, to),
                _ => {}
            }
            // What is to be written back is there, at a multiple of the writers' speed.
            back = begun.map_or(back, |to| to.0.min(back + 21));
        }
        assert!(times <= 100 * 8, "each makes room for an eighth of the budget: {times}");
        // A journal that was emptied.
        assert_eq!(shorten_to(Some(LogPosition(5000)), &status(10, 0), BUDGET), None);
    }
}
