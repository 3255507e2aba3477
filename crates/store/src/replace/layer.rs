//! Requests while the disk is replaced, and the copier's own.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::copier::{Copier, Step};
use super::{Link, Order, ReplaceState, SHOWN};
use crate::engine::nested::Nested;
use crate::engine::{Done, Engine, Job, Mark, More, Tag};
use crate::wake::Wake;
use crate::{Completion, Disk, DiskError, DiskOp, OpId, OpKind, Outcome, RemapOp};

/// The new disk is given up when it answers nothing for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many pieces are begun before others have their turn.
const AT_ONCE: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Nothing is replaced: requests are handed on as they are.
    Idle,
    /// Requests wait until those that were handed on are over.
    Beginning,
    Copying,
    InStep,
    /// Requests wait for the end of those that are under way.
    Holding,
    /// And now for the flush with this key.
    Flushing(u64),
    Held,
    /// The new disk is not used any more.
    Ended,
    /// Nor is the old one: all requests fail.
    Broken,
}

/// What is asked of the disk.
pub(crate) enum Work {
    Job(Job),
    /// Of the layer for bad sectors.
    Ask(OpId, RemapOp),
}

impl Work {
    fn range(&self) -> ByteRange {
        match self {
            Self::Job(job) => job.request.range(),
            Self::Ask(_, what) => what.range(),
        }
    }

    fn op(&self) -> OpId {
        match self {
            Self::Job(job) => job.op,
            Self::Ask(op, _) => *op,
        }
    }

    fn failed(self) -> Done {
        let (op, kind, range) = (self.op(), self.kind(), self.range());
        let (tag, mark) = match self {
            Self::Job(job) => (job.tag, job.mark),
            Self::Ask(..) => (Tag::Plain, Mark::default()),
        };
        Done { op, tag, mark, kind, range, result: Err(Errno::IO), more: None }
    }

    fn kind(&self) -> OpKind {
        match self {
            Self::Job(job) => job.request.kind(),
            Self::Ask(..) => OpKind::Write,
        }
    }
}

/// A request.
struct Flight {
    op: OpId,
    mark: Mark,
    /// What it changes.
    range: ByteRange,
    /// What it does to the new disk, apart from that.
    effect: Effect,
    /// The new disk has not answered yet.
    waits_for_new: bool,
    /// What the old one said.
    done: Option<Done>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It is behind the cursor, or changes no content.
    None,
    /// Both disks get the same.
    Both,
    /// There is no good copy any more.
    Lost,
}

pub(crate) struct Replace {
    /// The disk.
    current: Engine,
    /// The one that is to take its place.
    new: Option<Disk>,
    /// Bytes that can be written; 0 of a disk that cannot be.
    size: u64,
    link: Arc<Link>,
    wake: Arc<Wake>,
    phase: Phase,
    copier: Copier,
    /// Requests with the disk that are handed back as they are.
    passing: usize,
    /// Requests are to wait as soon as both disks are in step.
    hold: bool,
    /// Reads of the copier.
    reading: usize,
    flights: HashMap<u64, Flight>,
    waiting: VecDeque<Work>,
    next_key: u64,
    /// When the new disk answered last, while it has something to do.
    answered: Option<Instant>,
    /// A flush of the copier.
    flushing: Option<u64>,
    ready: Vec<Done>,
    collected: Vec<Done>,
    completed: Vec<Completion>,
}

impl Replace {
    /// Around an engine that has nothing to do, of a disk that can be written up to `size`.
    pub(crate) fn new(current: Engine, size: u64, link: &Arc<Link>, wake: &Arc<Wake>) -> Self {
        Self {
            current,
            new: None,
            size,
            link: Arc::clone(link),
            wake: Arc::clone(wake),
            phase: Phase::Idle,
            copier: Copier::new(0, 0),
            passing: 0,
            hold: false,
            reading: 0,
            flights: HashMap::new(),
            waiting: VecDeque::new(),
            next_key: 0,
            answered: None,
            flushing: None,
            ready: Vec::new(),
            collected: Vec::new(),
            completed: Vec::new(),
        }
    }

    pub(crate) const fn current(&self) -> &Engine {
        &self.current
    }

    pub(crate) const fn current_mut(&mut self) -> &mut Engine {
        &mut self.current
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.phase == Phase::Idle && self.current.is_inline()
    }

    /// Signals another eventfd from now on. Nothing may be in flight.
    pub(crate) fn rewire(&mut self, wake: &Arc<Wake>) -> io::Result<()> {
        self.current.rewire(wake)?;
        self.link.rewire(wake);
        self.wake = Arc::clone(wake);
        Ok(())
    }

    pub(crate) fn grown_to(&mut self, size: u64) {
        self.current.grown_to(size);
        if self.size > 0 {
            self.size = self.size.max(size);
        }
        self.end(&ReplaceState::Failed("the resource has grown meanwhile".to_owned()));
    }

    /// Does what was ordered.
    fn heed(&mut self) {
        if !self.link.take_call() {
            return;
        }
        while let Some(order) = self.link.next_order() {
            match order {
                Order::Begin { new, size, rate } => {
                    if let Err(why) = self.begin(*new, size, rate) {
                        self.link.tell(|status| status.state = ReplaceState::Failed(why));
                    }
                }
                Order::Stop => self.end(&ReplaceState::None),
                Order::Hold => self.hold = true,
                Order::Release => self.release(),
                Order::Switch => self.switch(),
                Order::Fail(why) => self.fail(why),
                Order::Again => self.copier.try_again(),
            }
        }
    }

    fn begin(&mut self, mut new: Disk, size: u64, rate: u64) -> Result<(), String> {
        if self.phase != Phase::Idle {
            return Err("another disk is still in use for that".to_owned());
        }
        if size > self.size || size > new.size() || new.info().read_only {
            return Err(format!("the new disk cannot hold {size} bytes"));
        }
        new.rewire(&self.wake).map_err(|error| format!("the new disk: {error}"))?;
        self.new = Some(new);
        self.copier = Copier::new(size, rate);
        self.hold = false;
        self.phase = Phase::Beginning;
        Ok(())
    }

    /// The new disk takes the place of the old one.
    fn switch(&mut self) {
        if self.phase != Phase::Held {
            return;
        }
        let Some(new) = self.new.take() else { return };
        let nested = Engine::Nested(Box::new(Nested::new(new)));
        let old = std::mem::replace(&mut self.current, nested);
        self.phase = Phase::Idle;
        for work in std::mem::take(&mut self.waiting) {
            self.pass(work);
        }
        self.link.retire(old);
        self.link.set_waits(false);
        self.link.decided();
        self.link.tell(|status| status.state = ReplaceState::Switched);
    }

    /// It is not known which of the two counts, so nothing more goes to either.
    fn fail(&mut self, why: String) {
        if self.phase != Phase::Held {
            return;
        }
        tracing::error!("a disk is not used any more: {why}");
        self.phase = Phase::Broken;
        self.ready.extend(std::mem::take(&mut self.waiting).into_iter().map(Work::failed));
        self.link.set_waits(false);
        self.link.decided();
        self.link.tell(|status| status.state = ReplaceState::Failed(why));
    }

    /// Nothing is left of what has ended.
    fn rest(&mut self) {
        let busy = self.new.as_ref().is_some_and(|new| new.in_flight() > 0);
        let over = self.flights.is_empty() && self.waiting.is_empty() && self.reading == 0;
        if self.phase == Phase::Ended && over && !busy {
            self.new = None;
            self.phase = Phase::Idle;
        }
    }

    fn new_in_flight(&self) -> usize {
        self.new.as_ref().map_or(0, Disk::in_flight)
    }

    pub(crate) fn submit(&mut self, work: Work) -> Option<Done> {
        if self.phase == Phase::Idle {
            return self.hand_on(work);
        }
        if self.phase == Phase::Broken {
            return Some(work.failed());
        }
        let op = work.op();
        self.copier.asked();
        if self.holds() || self.conflicts(&work) {
            self.waiting.push_back(work);
        } else {
            self.start(work);
        }
        if self.ready.len() == 1 && self.ready[0].op == op {
            return self.ready.pop();
        }
        if !self.ready.is_empty() {
            self.wake.signal();
        }
        None
    }

    fn holds(&self) -> bool {
        matches!(self.phase, Phase::Beginning | Phase::Holding | Phase::Flushing(_) | Phase::Held)
    }

    /// Whether it changes something that others are at, or wait for.
    fn conflicts(&self, work: &Work) -> bool {
        let range = work.range();
        self.changes(work)
            && (self.is_taken(range) || self.waiting.iter().any(|w| w.range().overlaps(range)))
    }

    fn is_taken(&self, range: ByteRange) -> bool {
        self.copier.is_locked(range) || self.flights.values().any(|f| f.range.overlaps(range))
    }

    fn changes(&self, work: &Work) -> bool {
        let changes = match work {
            Work::Job(job) => !matches!(job.request.kind(), OpKind::Read | OpKind::Flush),
            Work::Ask(..) => true,
        };
        changes && self.phase != Phase::Ended
    }

    fn key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn start(&mut self, work: Work) {
        let (key, op) = (self.key(), work.op());
        let mark = match &work {
            Work::Job(job) => job.mark,
            Work::Ask(..) => Mark::default(),
        };
        // Those that change nothing are in nobody's way.
        let range = if self.changes(&work) { work.range() } else { ByteRange::new(0, 0) };
        let mirrored = self.phase != Phase::Ended && range.offset < self.copier.cursor;
        let to_new = self.twin(&work).filter(|_| mirrored);
        let effect = match &work {
            Work::Ask(_, RemapOp::MarkLost { .. } | RemapOp::MarkUnread { .. }) => Effect::Lost,
            _ if to_new.is_some() => Effect::Both,
            _ => Effect::None,
        };
        let waits_for_new = to_new.is_some();
        self.flights.insert(key, Flight { op, mark, range, effect, waits_for_new, done: None });
        let ours = OpId(key);
        let done = match work {
            Work::Job(job) => self.current.submit(Job { op: ours, ..job }),
            Work::Ask(_, what) => self.current.ask(ours, what),
        };
        if let Some(done) = done {
            self.old_done(done);
        }
        if let Some(request) = to_new {
            self.send_new(key, request);
        }
    }

    /// Hands it on as it is.
    fn hand_on(&mut self, work: Work) -> Option<Done> {
        let done = match work {
            Work::Job(job) => self.current.submit(job),
            Work::Ask(op, what) if self.current.remap().is_some() => self.current.ask(op, what),
            // The spares went with the old disk, and what they were asked for waited for the switch.
            Work::Ask(op, RemapOp::Repair { range, data }) => {
                let request = DiskOp::Write { range, data, fua: true };
                self.current.submit(Job { op, tag: Tag::Durable, mark: Mark::default(), request })
            }
            // There is nothing here that could remember it.
            Work::Ask(op, what @ (RemapOp::MarkLost { .. } | RemapOp::MarkUnread { .. })) => {
                return Some(without_spares(op, &what, Ok(Outcome::Done)));
            }
            Work::Ask(op, what) => return Some(without_spares(op, &what, Err(Errno::INVAL))),
        };
        if done.is_none() {
            self.passing += 1;
        }
        done
    }

    /// The same, when nobody waits for the answer of this call.
    fn pass(&mut self, work: Work) {
        let done = self.hand_on(work);
        self.ready.extend(done);
    }

    /// What has the same effect on the new disk. It need not be durable there before the switch.
    fn twin(&self, work: &Work) -> Option<DiskOp> {
        Some(match work {
            Work::Job(job) => match job.request.clone() {
                DiskOp::Write { range, data, .. } => DiskOp::Write { range, data, fua: false },
                DiskOp::WriteZeroes { range, unmap, .. } => {
                    DiskOp::WriteZeroes { range, unmap, fua: false }
                }
                // What it leaves on the old one is not known; what it leaves on the new one may
                // differ, but must not be what somebody else had there.
                DiskOp::Discard { range } => DiskOp::WriteZeroes { range, unmap: true, fua: false },
                DiskOp::Read { .. } | DiskOp::Flush => return None,
            },
            Work::Ask(_, RemapOp::Repair { range, data }) => {
                DiskOp::Write { range: *range, data: data.clone(), fua: false }
            }
            Work::Ask(..) => return None,
        })
    }

    fn send_new(&mut self, key: u64, request: DiskOp) {
        if self.phase == Phase::Ended {
            return;
        }
        self.answered.get_or_insert_with(Instant::now);
        let Some(new) = &mut self.new else { return };
        if let Some(completion) = new.submit(OpId(key), request) {
            self.new_done(completion);
        }
    }

    /// The old disk has done something.
    fn old_done(&mut self, done: Done) {
        if matches!(self.phase, Phase::Idle | Phase::Beginning) {
            self.passing -= 1;
            return self.ready.push(done);
        }
        let key = done.op.0;
        let Some(flight) = self.flights.get_mut(&key) else {
            self.reading -= 1;
            if let Some(at) = self.copier.piece_of(key) {
                self.piece_read(at, done);
            }
            return;
        };
        flight.done = Some(Done { op: flight.op, mark: flight.mark, ..done });
        if !flight.waits_for_new {
            self.finish(key);
        }
    }

    fn new_done(&mut self, Completion { op, result }: Completion) {
        self.answered = (self.new_in_flight() > 0).then(Instant::now);
        if self.phase == Phase::Ended {
            return;
        }
        if let Err(error) = result {
            return self.end(&ReplaceState::Failed(self.failure(&error)));
        }
        let key = op.0;
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.waits_for_new = false;
            if flight.done.is_some() {
                self.finish(key);
            }
        } else if let Some(at) = self.copier.piece_of(key) {
            self.copier.part_done(at);
        } else if self.flushing == Some(key) {
            self.flushing = None;
        } else if self.phase == Phase::Flushing(key) {
            self.phase = Phase::Held;
        }
    }

    fn failure(&self, error: &DiskError) -> String {
        match self.new.as_ref().and_then(|new| new.info().path.as_ref()) {
            Some(path) => format!("the new disk {}: {error}", path.display()),
            None => format!("the new disk: {error}"),
        }
    }

    /// Both disks have answered, or the new one is not waited for.
    fn finish(&mut self, key: u64) {
        let Some(Flight { range, effect, done: Some(done), .. }) = self.flights.remove(&key) else {
            return;
        };
        match (effect, done.result.is_ok()) {
            (Effect::Both, true) => self.copier.written(range),
            // What it left on the old disk is not known.
            (Effect::Both, false) => self.copier.copy_again(range),
            (Effect::Lost, true) => self.copier.leave_over(range),
            (Effect::None | Effect::Lost, _) => {}
        }
        self.ready.push(done);
    }

    fn piece_read(&mut self, at: usize, done: Done) {
        let (range, key) = (done.range, self.copier.pieces[at].key);
        let request = match done.result {
            Ok(Outcome::Data(data)) => DiskOp::Write { range, data, fua: false },
            Ok(Outcome::Zeroes) => {
                self.copier.holes += range.len;
                DiskOp::WriteZeroes { range, unmap: true, fua: false }
            }
            Ok(Outcome::Done | Outcome::Logged(_)) | Err(_) => {
                match done.more.as_deref() {
                    Some(More::Partial(partial)) => self.copier.part_partial(at, &partial.bad),
                    _ => self.copier.part_unreadable(at),
                }
                self.copier.part_done(at);
                if self.copier.is_hopeless() {
                    let why = "the old disk can be read nearly nowhere";
                    self.end(&ReplaceState::Failed(why.to_owned()));
                }
                return;
            }
        };
        self.copier.pieces[at].step = Step::Writing;
        self.send_new(key, request);
    }

    pub(crate) fn kick(&mut self) {
        self.current.kick();
        if let Some(new) = &mut self.new {
            new.kick();
        }
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        self.heed();
        let mut collected = std::mem::take(&mut self.collected);
        self.current.collect(&mut collected);
        for done in collected.drain(..) {
            self.old_done(done);
        }
        self.collected = collected;
        let mut completed = std::mem::take(&mut self.completed);
        if let Some(new) = &mut self.new {
            new.gather(&mut completed);
        }
        for completion in completed.drain(..) {
            self.new_done(completion);
        }
        self.completed = completed;
        self.go_on();
        out.append(&mut self.ready);
    }

    /// Does what can be done now, apart from collecting.
    fn go_on(&mut self) {
        if matches!(self.phase, Phase::Idle | Phase::Broken) {
            return;
        }
        if self.phase == Phase::Beginning && self.passing == 0 {
            self.phase = Phase::Copying;
        }
        self.start_waiting();
        self.copy();
        if self.phase == Phase::InStep && self.hold {
            self.phase = Phase::Holding;
        }
        if self.phase == Phase::Holding && self.is_idle() {
            if self.copier.is_complete() {
                let key = self.key();
                self.phase = Phase::Flushing(key);
                self.send_new(key, DiskOp::Flush);
            } else {
                // A request has failed meanwhile.
                self.phase = Phase::Copying;
                self.wake.signal();
            }
        }
        if self.answered.is_some_and(|at| at.elapsed() > PATIENCE) {
            let why = format!("the new disk did not answer for {} seconds", PATIENCE.as_secs());
            self.end(&ReplaceState::Failed(why));
        }
        self.kick();
        self.tell();
        self.rest();
    }

    fn is_idle(&self) -> bool {
        self.flights.is_empty()
            && self.reading == 0
            && self.copier.pieces.is_empty()
            && self.new_in_flight() == 0
    }

    /// Starts those that wait for nobody any more, in their order.
    fn start_waiting(&mut self) {
        if self.waiting.is_empty() || self.holds() {
            return;
        }
        let mut before: Vec<ByteRange> = Vec::new();
        for work in std::mem::take(&mut self.waiting) {
            let range = work.range();
            let blocked = self.changes(&work)
                && (self.is_taken(range) || before.iter().any(|other| other.overlaps(range)));
            if blocked {
                before.push(range);
                self.waiting.push_back(work);
            } else {
                self.start(work);
            }
        }
    }

    fn copy(&mut self) {
        if self.phase == Phase::InStep && !self.copier.is_complete() {
            self.phase = Phase::Copying;
        }
        if self.phase != Phase::Copying {
            return;
        }
        for _ in 0..if self.copier.is_quiet() { AT_ONCE } else { 1 } {
            let taken = self.copier.take();
            self.read_pieces();
            if !taken || self.phase != Phase::Copying {
                break;
            }
        }
        if self.phase != Phase::Copying {
            return;
        }
        if self.copier.take_flush() && self.flushing.is_none() {
            let key = self.key();
            self.flushing = Some(key);
            self.send_new(key, DiskOp::Flush);
        }
        if self.copier.is_complete() {
            self.phase = Phase::InStep;
        }
    }

    /// Starts what is left of the pieces that wait for nobody.
    fn read_pieces(&mut self) {
        let mut at = 0;
        while at < self.copier.pieces.len() {
            let piece = &self.copier.pieces[at];
            let (range, part) = (piece.range, piece.part);
            let busy = self.flights.values().any(|flight| flight.range.overlaps(range));
            if piece.step != Step::Waiting || busy {
                at += 1;
                continue;
            }
            let key = self.key();
            let piece = &mut self.copier.pieces[at];
            (piece.key, piece.step) = (key, Step::Reading);
            self.reading += 1;
            let (op, request) = (OpId(key), DiskOp::Read { range: part, holes: true });
            let job = Job { op, tag: Tag::Plain, mark: Mark::default(), request };
            if let Some(done) = self.current.submit(job) {
                // It may have changed the list.
                self.old_done(done);
                at = 0;
            }
        }
    }

    /// Ends it: the old disk stays.
    fn end(&mut self, state: &ReplaceState) {
        if matches!(self.phase, Phase::Ended | Phase::Idle | Phase::Broken)
            || !self.link.end(state.clone())
        {
            return;
        }
        if let ReplaceState::Failed(why) = state {
            tracing::error!("a disk is not replaced: {why}");
        }
        if self.phase == Phase::Beginning {
            // Nothing was begun.
            (self.phase, self.new) = (Phase::Idle, None);
            for work in std::mem::take(&mut self.waiting) {
                self.pass(work);
            }
            return;
        }
        self.phase = Phase::Ended;
        self.answered = None;
        self.copier.pieces.clear();
        let keys: Vec<u64> = self.flights.keys().copied().collect();
        for key in keys {
            if let Some(flight) = self.flights.get_mut(&key) {
                flight.waits_for_new = false;
                if flight.done.is_some() {
                    self.finish(key);
                }
            }
        }
        self.link.set_waits(false);
        self.start_waiting();
    }

    /// Requests go on.
    fn release(&mut self) {
        self.hold = false;
        self.link.decided();
        if self.holds() && self.phase != Phase::Beginning {
            self.phase = Phase::InStep;
        }
    }

    fn tell(&mut self) {
        if matches!(self.phase, Phase::Ended | Phase::Idle | Phase::Broken) {
            return;
        }
        let more = self.phase == Phase::Copying && self.copier.has_more();
        let idle = self.reading == 0 && self.new_in_flight() == 0;
        if more && idle && self.copier.is_quiet() && self.copier.is_time() {
            // Nobody else would have the disk looked at.
            self.wake.signal();
        }
        self.link.set_waits(more || self.answered.is_some());
        self.link.unreadable(self.copier.take_untold());
        let (copier, phase) = (&self.copier, self.phase);
        self.link.tell(|status| {
            status.state = match phase {
                Phase::Beginning | Phase::Copying => ReplaceState::Copying,
                Phase::Held => ReplaceState::Held,
                _ => ReplaceState::InStep,
            };
            status.done = copier.done();
            status.holes = copier.holes;
            if status.left_over != copier.count_left_over() {
                status.left_over = copier.count_left_over();
                status.left_over_at = copier.left_over(SHOWN);
            }
        });
    }
}

/// The answer to what the layer for bad sectors is asked for, when there is none any more.
fn without_spares(op: OpId, what: &RemapOp, result: Result<Outcome, Errno>) -> Done {
    let (tag, mark, kind) = (Tag::Plain, Mark::default(), OpKind::Write);
    Done { op, tag, mark, kind, range: what.range(), result, more: None }
}
