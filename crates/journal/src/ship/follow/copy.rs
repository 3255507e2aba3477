//! Taking what was fetched into the journal, and giving up what is not needed.

use super::state::journal;
use super::types::{FollowError, Trouble};
use super::{DAMAGED_MS, Follower};
use crate::driver::{Backing, CopyFailed, Files};
use crate::journal::CopyError;
use bytes::Bytes;
use holdfast_format::journal::{FollowState, FrameError};
use holdfast_units::LogPosition;
use std::io;

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// Takes into the journal what was fetched; whether there may be more at once.
    pub(super) fn copy_journal(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        let mut moved = false;
        if !self.follows() {
            return Ok(false);
        }
        loop {
            let log = self.log()?;
            let last = log.journal().durable_segments().last().map(|(header, _)| *header);
            let at = log.journal().head();
            let Some(header) = last else {
                if !self.begin_segment(None)? {
                    break;
                }
                moved = true;
                continue;
            };
            if self.fetcher.has_more(at, header.number) {
                match self.copy_frames(now_ms, at, header.number)? {
                    true => moved = true,
                    false => break,
                }
                continue;
            }
            let ended = self.fetcher.segment(header.number + 1).is_some_and(|(h, _)| h.base == at);
            if !(ended && self.begin_segment(Some(header.number))?) {
                break;
            }
            moved = true;
        }
        if moved {
            self.flush_log()?;
        }
        Ok(moved)
    }

    fn copy_frames(
        &mut self,
        now_ms: u64,
        at: LogPosition,
        number: u64,
    ) -> Result<bool, FollowError> {
        let bytes = self.fetcher.front(at, number);
        if bytes.is_empty() {
            return Ok(false);
        }
        let header = self.log()?.journal().durable_segments().last().map(|(header, _)| *header);
        let Some(header) = header else { return Ok(false) };
        match self.log_mut()?.copy(&header, &bytes) {
            Ok(used) => {
                self.fetcher.used(&bytes, used);
                if self.trouble == Some(Trouble::Damaged(at)) {
                    self.trouble = None;
                }
                if used < bytes.len() {
                    // Behind the last whole frame there is a part of one, or damage.
                    let at = self.log()?.journal().head();
                    self.copy_frames(now_ms, at, number)?;
                }
                Ok(true)
            }
            // The leader's bytes always end with a frame.
            Err(CopyFailed::Copy(CopyError::Frame { why: FrameError::Short, .. }))
                if self.fetcher.goes_on(at.after(bytes.len() as u64), number) =>
            {
                self.fetcher.used(&bytes, 0);
                Ok(false)
            }
            Err(CopyFailed::Copy(CopyError::Frame { position, .. })) => {
                // Whatever it is, it is not kept, and is fetched again: not at once for ever.
                self.trouble = Some(Trouble::Damaged(position));
                let times = if self.damaged.0 == position { self.damaged.1 + 1 } else { 1 };
                self.damaged = (position, times);
                if times > 1 {
                    self.fetch_from_ms = now_ms + DAMAGED_MS;
                }
                self.round += 1;
                self.fetcher.restart(at);
                Ok(false)
            }
            Err(error) => Err(FollowError::Journal(error.to_string())),
        }
    }

    /// Begins the segment behind this one; whether that was possible.
    pub(super) fn begin_segment(&mut self, after: Option<u64>) -> Result<bool, FollowError> {
        let first = match (after, self.state.state) {
            (Some(after), _) => after + 1,
            (None, FollowState::Filling) => self.state.fill_segment,
            (None, _) => 1,
        };
        let Some((header, _)) = self.fetcher.segment(first) else { return Ok(false) };
        let place = after.is_some() || header.base == self.start();
        if !place {
            self.must_greet = true;
            return Ok(false);
        }
        let bytes = self.log()?.journal().status().bytes;
        if bytes + header.capacity > self.options.settings.budget_bytes && after.is_some() {
            // The leader's segments may be larger than those of this node.
            let kept = self.kept_bytes(header.capacity);
            self.log_mut()?.journal_mut().set_budget(kept);
            self.recycle()?;
            let journal = self.log()?.journal();
            let bytes = journal.status().bytes;
            // Of segments that are large beside this journal two must fit.
            let only = journal.durable_segments().len() == 1 && self.state.replayed >= header.base;
            if bytes + header.capacity > self.options.settings.budget_bytes && !only {
                self.trouble = Some(Trouble::NoRoom);
                return Ok(false);
            }
        }
        if self.trouble == Some(Trouble::NoRoom) {
            self.trouble = None;
        }
        match self.log_mut()?.copy(&header, &Bytes::new()) {
            Ok(_) => {
                self.fetcher.passed(header.number);
                Ok(true)
            }
            Err(CopyFailed::Copy(_)) => {
                // The leader judges.
                self.must_greet = true;
                Ok(false)
            }
            Err(CopyFailed::Io(error)) => Err(journal(error)),
        }
    }

    pub(super) fn flush_log(&mut self) -> Result<(), FollowError> {
        self.log_mut()?.flush().map_err(journal)
    }

    /// Gives up segments that are replayed, when they are not kept for going back or there are too
    /// many of them.
    pub(super) fn recycle(&mut self) -> Result<(), FollowError> {
        let replayed = self.state.replayed;
        let log = self.log_mut()?;
        log.journal_mut().replayed(replayed);
        if let Some(plan) = log.journal().plan_cut() {
            log.journal_mut().cut(&plan);
        }
        if log.journal().recyclable().is_some() {
            log.recycle().map_err(journal)?;
        }
        Ok(())
    }
}
