//! From one mode to the other, and what becomes of a journal that fails.

use super::worker::{Flight, Worker, now};
use super::writeback::Trimming;
use super::{JournalCallError, Mode};
use holdfast_journal::{Op, Ticket as Record};
use holdfast_store::{DiskOp, Outcome, Ticket};
use holdfast_units::GenerationId;
use rustix::io::Errno;
use std::io;
use tokio::sync::oneshot;

type Answer<T> = oneshot::Sender<Result<T, JournalCallError>>;

/// Modes that were asked for, and who waits for them.
#[derive(Default)]
pub(super) struct Wishes {
    leading: Vec<Leading>,
    settling: Vec<Answer<()>>,
    pub(super) trimming: Vec<Trimming>,
    /// The flush before records are taken is under way.
    flushing_first: bool,
}

/// Somebody wants this node to lead.
struct Leading {
    generation: GenerationId,
    /// The disk misses what the journal does not have either.
    anew: bool,
    done: Answer<()>,
}

impl Wishes {
    fn is_leading_anew(&self) -> bool {
        self.leading.iter().any(|leading| leading.anew)
    }

    pub(super) const fn is_leading(&self) -> bool {
        !self.leading.is_empty()
    }

    /// Nothing of it will be.
    pub(super) fn refuse(&mut self, error: &dyn Fn() -> io::Error) {
        let leading = self.leading.drain(..).map(|leading| leading.done);
        for done in leading.chain(self.settling.drain(..)) {
            // Who asked may be gone.
            let _ = done.send(Err(error().into()));
        }
        for (_, done) in self.trimming.drain(..) {
            let _ = done.send(Err(error().into()));
        }
    }
}

impl Worker {
    /// From now on writes are records, when all that must come before that is done: of another
    /// history, when it is `anew`.
    pub(super) fn lead(&mut self, generation: GenerationId, anew: bool, done: Answer<()>) {
        if let Some(errno) = self.broken {
            let error = io::Error::from_raw_os_error(errno);
            return drop(done.send(Err(error.into())));
        }
        if self.mode == Mode::Follow && !self.leave_follow(generation) {
            return drop(done.send(Err(JournalCallError::Mode(self.mode))));
        }
        // Whoever wanted the opposite has changed his mind.
        for settling in self.wishes.settling.drain(..) {
            let _ = settling.send(Err(JournalCallError::Mode(Mode::Lead)));
        }
        self.wishes.leading.push(Leading { generation, anew, done });
    }

    /// What comes now is of another generation.
    pub(super) fn begin_generation(&mut self, generation: GenerationId) {
        for leading in &mut self.wishes.leading {
            leading.generation = generation;
        }
        if self.mode == Mode::Lead {
            self.end_empty(generation);
            self.log.journal_mut().begin_generation(generation);
        }
    }

    /// A segment without a record would keep the generation that it was begun in, also when records
    /// come: it gets one that says nothing, and what comes now begins another one.
    fn end_empty(&mut self, generation: GenerationId) {
        self.append();
        if self.log.journal().is_begun_in_another(generation)
            && let Ok(record) = self.log.push(Op::flush(now()))
        {
            self.pushed = Record(record.0 + 1);
            self.append();
        }
    }

    /// From now on writes go to the disk as they are, when everything is written back.
    pub(super) fn settle(&mut self, done: Answer<()>) {
        if let Some(errno) = self.broken {
            let error = io::Error::from_raw_os_error(errno);
            return drop(done.send(Err(error.into())));
        }
        for leading in self.wishes.leading.drain(..) {
            let _ = leading.done.send(Err(JournalCallError::Mode(Mode::Direct)));
        }
        if self.mode == Mode::Lead {
            self.mode = Mode::Draining;
        }
        self.wishes.settling.push(done);
    }

    /// Goes on to the mode that is wanted, as far as that can be done now.
    pub(super) fn change_mode(&mut self) {
        if self.broken.is_some() {
            return;
        }
        if self.is_ending() && self.mode == Mode::Lead {
            self.mode = Mode::Draining;
        }
        match self.mode {
            Mode::Draining => {
                if self.may_lead_at_once() {
                    self.take_the_lead();
                } else if self.is_drained() {
                    self.drained();
                }
            }
            Mode::Rescuing if self.is_rescued() => self.rescued(),
            _ => {}
        }
        if !self.wishes.leading.is_empty() {
            match self.mode {
                Mode::Direct => self.lead_from_direct(),
                Mode::Lead => self.take_the_lead(),
                Mode::Without => self.answer_leading(),
                Mode::Draining | Mode::Rescuing | Mode::Follow => {}
            }
        }
        if matches!(self.mode, Mode::Direct | Mode::Follow | Mode::Without) {
            if self.wishes.leading.is_empty() {
                self.release_held();
            }
            for done in self.wishes.settling.drain(..) {
                // Who asked may be gone.
                let _ = done.send(Ok(()));
            }
        }
    }

    /// What this node wrote last as Primary is in the journal, and it goes on from there.
    fn may_lead_at_once(&self) -> bool {
        let anew = self.log.journal().switches().bypassed || self.wishes.is_leading_anew();
        !self.wishes.leading.is_empty() && !anew && !self.is_ending()
    }

    fn lead_from_direct(&mut self) {
        if self.wishes.flushing_first || self.is_passing() {
            return;
        }
        if self.unflushed_direct {
            // A flush of the journal does not cover what went past it. Nor does this one cover what
            // goes past the journal while it is under way: when it ends is too late to say so.
            self.wishes.flushing_first = true;
            self.unflushed_direct = false;
            return self.fly(Flight::FlushFirst, DiskOp::Flush);
        }
        if self.wishes.is_leading_anew() && (!self.note_bypass() || self.mode != Mode::Direct) {
            return;
        }
        if self.log.journal().switches().bypassed && !self.log.journal_mut().begin_anew() {
            let error = io::Error::other("something is left in it");
            return self.journal_failed("a new history could not be begun", &error);
        }
        self.take_the_lead();
    }

    pub(super) fn flushed_first(&mut self, result: io::Result<()>) {
        self.wishes.flushing_first = false;
        if let Err(error) = result {
            self.break_disk("a flush failed", &error);
        }
    }

    fn take_the_lead(&mut self) {
        if self.mode != Mode::Lead {
            if let Some(leading) = self.wishes.leading.last() {
                self.log.journal_mut().begin_generation(leading.generation);
            }
            self.mode = Mode::Lead;
            self.moved = true;
        }
        self.make_spare();
        self.answer_leading();
    }

    fn answer_leading(&mut self) {
        for leading in self.wishes.leading.drain(..) {
            // Who asked may be gone.
            let _ = leading.done.send(Ok(()));
        }
    }

    /// Whether everything in the journal is durable on the disk.
    fn is_drained(&self) -> bool {
        let status = self.log.journal().status();
        self.appending.is_empty()
            && self.syncing.is_empty()
            && self.back.is_idle()
            && status.dirty_bytes == 0
            && status.written_back == status.head
    }

    fn drained(&mut self) {
        if let Err(error) = self.log.store_cursors() {
            return self.journal_failed("its cursors could not be stored", &error);
        }
        self.mode = Mode::Direct;
        self.unflushed_direct = false;
        self.moved = true;
        self.answer_trims();
    }

    fn release_held(&mut self) {
        while let Some((request, ticket)) = self.held.pop_front() {
            self.pass(request, ticket);
        }
    }

    /// The disk is about to be written to past the journal, or misses what was written elsewhere: what
    /// is appended later does not continue what is there, and that must be known also after a crash.
    /// Whether it is.
    pub(super) fn note_bypass(&mut self) -> bool {
        let mut switches = self.log.journal().switches();
        let nothing_there = self.log.journal().links().is_empty();
        if switches.bypassed || nothing_there {
            return true;
        }
        switches.bypassed = true;
        self.log.journal_mut().set_switches(switches);
        if let Err(error) = self.log.store_cursors() {
            self.journal_failed("its cursors could not be stored", &error);
            return self.broken.is_none() && self.give_up_journal();
        }
        true
    }

    /// A write or a sync of the journal failed. Everything that it holds goes to the disk, from
    /// memory or from its segments; then the disk is used without.
    pub(super) fn journal_failed(&mut self, what: &str, error: &io::Error) {
        if matches!(self.mode, Mode::Rescuing | Mode::Without) || self.broken.is_some() {
            return;
        }
        tracing::error!("a journal is not used any more: {what}: {error}");
        self.problem = Some(format!("{what}: {error}").into());
        self.log.journal_mut().fail();
        self.through.forget();
        // Those that are written stay: the index has them.
        let written = self.log.journal().written_ticket();
        while let Some(waiting) = self.appending.pop_back() {
            if waiting.record >= written {
                self.held.push_front((waiting.request, waiting.ticket));
            } else {
                waiting.ticket.complete(Ok(Outcome::Done));
            }
        }
        self.mode = Mode::Rescuing;
        self.back.rescue();
        self.moved = true;
    }

    /// Before anything goes to the disk that the journal may not have after a crash.
    pub(super) fn begin_rescue(&mut self) {
        if let Err(error) = self.log.begin_rescue() {
            // No other place has it. Nobody is answered before the journal is marked as given up.
            tracing::error!("that a journal has failed could not be noted in it: {error}");
        }
    }

    fn is_rescued(&self) -> bool {
        self.back.is_idle() && self.log.journal().status().dirty_bytes == 0
    }

    /// Everything is durable on the disk: so is what flushes and durable writes wait for.
    fn rescued(&mut self) {
        if !self.give_up_journal() {
            return;
        }
        self.mode = Mode::Without;
        self.cache.clear();
        self.moved = true;
        let syncing: Vec<Ticket> = self.syncing.drain(..).map(|(_, ticket, _)| ticket).collect();
        for ticket in syncing {
            ticket.complete(Ok(Outcome::Done));
        }
        for (_, done) in self.wishes.trimming.drain(..) {
            let _ = done.send(Err(JournalCallError::Mode(Mode::Without)));
        }
        self.release_held();
    }

    /// Marks the journal as given up, durably: it must not be written back again later, over what
    /// is newer. Without that the disk cannot be used.
    fn give_up_journal(&mut self) -> bool {
        let given_up = self.log.give_up();
        if let Err(error) = &given_up {
            self.break_disk("the journal has failed, and could not be marked as such", error);
        }
        given_up.is_ok()
    }

    /// Why the disk cannot be used.
    pub(super) fn broken_error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.broken.unwrap_or(Errno::IO.raw_os_error()))
    }
}
