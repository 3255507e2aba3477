//! Writing the journal to the disk, and saying durably how far that is.

use super::super::codec::MAX_COPIED;
use super::super::message::Verdict;
use super::rewind::BACKWARDS;
use super::types::{FollowError, Trouble};
use super::{Asked, Conn, FLUSH_MS, Follower, REPLAY_BYTES};
use crate::driver::{Backing, Files, LogError, Logged};
use crate::records::RecordsError;
use holdfast_format::journal::{FollowState, RecordKind};
use holdfast_units::LogPosition;
use std::io;

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// Up to where may be replayed.
    fn replay_to(&self) -> LogPosition {
        let durable = self.durable();
        // The disk may have a part of what lies before `recover_to`: without all of that it is no state.
        let limited = durable.min(self.state.limit.map_or(durable, |l| l.max(self.recover_to)));
        match self.state.state {
            FollowState::Nothing | FollowState::Led => self.applied,
            FollowState::Consistent if self.state.replay_paused => self.recover_to.min(limited),
            FollowState::Consistent => limited,
            // While it is copied nothing may come between; but what is to be filled anew must be
            // replayed first.
            FollowState::Filling if self.state.replay_paused => self.applied,
            FollowState::Filling => {
                let goes = self.state.fill_to.is_some() || self.verdict == Some(Verdict::Drain);
                if goes { limited } else { self.applied }
            }
        }
    }

    /// Replays a part; whether there is more.
    pub(super) fn replay(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        let to = self.replay_to();
        if self.applied >= to {
            return Ok(false);
        }
        if self.verdict == Some(Verdict::Drain) && !self.copied_unflushed.is_empty() {
            self.flush_disk(now_ms)?;
        }
        let found = match self.log()?.records_from(self.applied, self.options.replay) {
            Err(LogError::Records(RecordsError::Damaged { position, .. })) => {
                self.note_cut(position)?;
                self.open_log(Some(position))?;
                return Ok(true);
            }
            found => found?,
        };
        let mut moved = false;
        for logged in found {
            if logged.position >= to || self.is_early(now_ms, &logged) {
                break;
            }
            if logged.op.range().end() > self.options.size {
                // It may hear of a larger size later than of what was written there.
                self.trouble.get_or_insert(Trouble::Smaller(logged.position));
                break;
            }
            if logged.next > self.state.applying {
                self.flush_disk(now_ms)?;
                self.state.applying = self.horizon(logged.next);
                self.store()?;
            }
            self.apply(&logged)?;
            self.healing.stored(logged.op.range());
            self.applied = logged.next;
            self.unflushed = true;
            moved = true;
        }
        Ok(moved)
    }

    /// A delay begins: what was said beforehand of what may be written is taken back.
    pub(super) fn tighten(&mut self, now_ms: u64) -> Result<(), FollowError> {
        let at_most = self.applied.max(self.recover_to);
        let whole = self.state.state == FollowState::Consistent;
        if !self.is_held_behind() || !whole || self.state.applying <= at_most {
            return Ok(());
        }
        self.flush_disk(now_ms)?;
        self.state.applying = at_most;
        self.store()
    }

    /// Up to where the disk may be written to without saying so again.
    fn horizon(&self, next: LogPosition) -> LogPosition {
        // With a delay or a pause, a crash must not make more be replayed than was.
        if self.is_held_behind() || self.state.replay_paused {
            return next;
        }
        let ahead = self.applied.after(REPLAY_BYTES);
        next.max(self.state.limit.map_or(ahead, |limit| limit.min(ahead)))
    }

    /// Whether a delay counts. What is to be filled anew must be replayed before it is: nothing is
    /// fetched meanwhile, and then the disk is the newest state in any case.
    fn is_held_behind(&self) -> bool {
        self.delay.ms() > 0 && self.verdict != Some(Verdict::Drain)
    }

    /// Everything before this is known to be there, here or at the leader whose journal this is.
    pub(super) fn known(&self) -> LogPosition {
        let head = self.head.as_ref().filter(|_| self.follows());
        head.map_or(self.durable(), |head| self.durable().max(head.durable))
    }

    fn is_early(&self, now_ms: u64, logged: &Logged) -> bool {
        let whole = self.state.state == FollowState::Consistent && logged.next > self.recover_to;
        let over = || self.delay.is_over(now_ms, logged.position, logged.op.time());
        self.is_held_behind() && whole && !over()
    }

    fn apply(&mut self, logged: &Logged) -> Result<(), FollowError> {
        let op = &logged.op;
        let result = match op.kind() {
            RecordKind::Write => self.disk.write(op.range().offset, op.payload()),
            RecordKind::Zeroes => self.disk.zeroes(op.range(), false),
            RecordKind::Discard => self.disk.zeroes(op.range(), true),
            RecordKind::Flush => Ok(()),
        };
        result.map_err(FollowError::Disk)
    }

    pub(super) fn flush_when_due(&mut self, now_ms: u64, more: bool) -> Result<(), FollowError> {
        let flies = |conn: &Conn| conn.asked.iter().any(|asked| matches!(asked, Asked::Copy(_)));
        let all_came =
            self.copies_given_out && self.takes.is_empty() && !self.conns.values().any(flies);
        let copied = !self.copied_unflushed.is_empty()
            && self.healing.may_be_kept(now_ms)
            && (self.copied_bytes >= self.options.copy_flush
                || all_came
                || self.copied_unflushed.len() >= MAX_COPIED);
        let due = now_ms.saturating_sub(self.flushed_at) >= FLUSH_MS;
        let ended = self
            .state
            .fill_to
            .is_some_and(|to| self.state.state == FollowState::Filling && self.applied >= to);
        let drained = !more && self.verdict == Some(Verdict::Drain);
        if copied || ended || (self.unflushed && (due || drained)) {
            self.flush_disk(now_ms)?;
        }
        Ok(())
    }

    /// Makes durable what was written to the disk; then it is said.
    pub(super) fn flush_disk(&mut self, now_ms: u64) -> Result<(), FollowError> {
        self.flushed_at = now_ms;
        if !self.unflushed && self.copied_unflushed.is_empty() && !self.fill_ends() {
            return Ok(());
        }
        self.disk.flush().map_err(FollowError::Disk)?;
        self.unflushed = false;
        self.check_stored()?;
        self.keep_losses(now_ms);
        // A part of which there is no good copy anywhere must not be taken for one after a crash.
        if self.healing.is_kept() {
            self.copied.append(&mut self.copied_unflushed);
            self.copied_bytes = 0;
        }
        let ends = self.fill_ends();
        if self.state.replayed < self.applied || ends {
            self.state.replayed = self.state.replayed.max(self.applied);
            let tight = self.is_held_behind() || self.state.replay_paused;
            // What is being recovered may be on the disk already, in part, up to its end.
            let at_least = self.applied.max(self.recover_to);
            self.state.applying = if tight { at_least } else { self.state.applying.max(at_least) };
            if self.state.fill == BACKWARDS && self.applied >= self.recover_to {
                self.state.fill = 0;
            }
            if ends {
                self.state.state = FollowState::Consistent;
                // A crash may have been behind it.
                self.recover_to = self.recover_to.max(self.applied);
            }
            self.store()?;
        }
        Ok(())
    }

    /// Everything of a filling is on the disk, and all that came meanwhile.
    fn fill_ends(&self) -> bool {
        self.state.state == FollowState::Filling
            && self.state.fill_to.is_some_and(|to| self.applied >= to)
    }
}
