//! Making the disk another state than the one that it is, while its replay is paused.

use super::Follower;
use super::types::{FollowError, Holding};
use crate::driver::{Backing, Files};
use holdfast_format::journal::{FollowState, Following, SegmentHeader};
use holdfast_units::LogPosition;
use std::io;

/// The number of a filling from an archive: no leader has it. And, of a disk that is a state, that
/// it is on its way back: what is behind `applying` is on it, too.
pub const BACKWARDS: u64 = u64::MAX;

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// The disk is to stay the state that it is, or to become one by a restore.
    pub(super) fn is_held(&self) -> bool {
        self.state.replay_paused
            && (self.state.state == FollowState::Consistent || self.is_restored())
    }

    /// The disk is being restored from an archive.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        self.state.state == FollowState::Filling && self.state.fill == BACKWARDS
    }

    /// Makes the disk the state at `to`, by replaying the journal from `from` on. When it is the
    /// state at a later position, whatever was written between must be in the journal from `from`
    /// to `to`, too. Goes on by [`Self::work`], also after a crash, until [`Self::holding`] says
    /// that it is that state. `false`, and nothing has changed, when its replay is not paused, it
    /// is no state, or the journal does not have all of that.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn rewind(&mut self, from: LogPosition, to: LogPosition) -> Result<bool, FollowError> {
        let is_state = matches!(self.holding(), Holding::StateAt(_));
        if !self.state.replay_paused || !is_state || self.state.limit.is_some_and(|l| to > l) {
            return Ok(false);
        }
        self.flush_disk(self.flushed_at)?;
        let tail = self.log()?.journal().status().tail;
        let goes_on = from == self.applied || from >= tail;
        if from > to.min(self.applied) || to > self.durable() || !goes_on {
            return Ok(false);
        }
        // From here on a crash is followed by replaying from `from` to `to`.
        let fill = if to < self.applied { BACKWARDS } else { self.state.fill };
        self.state = Following { replayed: from, applying: to, fill, ..self.state };
        self.store()?;
        (self.applied, self.recover_to) = (from, to);
        self.log_mut()?.journal_mut().rewound(from);
        Ok(true)
    }

    /// Says durably that the disk is nothing that counts, so that an archive can be restored onto it
    /// by the caller. `false`, and nothing has changed, when its replay is not paused.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn begin_restore(&mut self) -> Result<bool, FollowError> {
        if !self.is_held() {
            return Ok(false);
        }
        self.flush_disk(self.flushed_at)?;
        self.state = Following {
            state: FollowState::Filling,
            fill: BACKWARDS,
            fill_to: None,
            limit: None,
            ..self.state
        };
        self.store()?;
        self.recover_to = LogPosition::START;
        self.healing.begin_again();
        self.verdict = None;
        self.round += 1;
        self.fetcher.forget();
        self.must_greet = true;
        Ok(true)
    }

    /// The disk was restored: it is durably the state at this position, which lies in this segment.
    /// The journal stays if it goes on from there; else it is given up, and the disk is compared
    /// with the leader's when the replay is resumed. Whether it stays.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn restored(
        &mut self,
        at: LogPosition,
        segment: Option<SegmentHeader>,
    ) -> Result<bool, FollowError> {
        if !self.is_restored() {
            return Ok(false);
        }
        let own = self.log()?.journal().durable_segments();
        let same = |(own, len): &(SegmentHeader, u64)| {
            segment.is_some_and(|of| {
                (of.number, of.origin, of.epoch, of.base, of.chain)
                    == (own.number, own.origin, own.epoch, own.base, own.chain)
                    && (of.base..=own.base.after(*len)).contains(&at)
            })
        };
        let stays = own.iter().any(same);
        self.state = Following {
            state: FollowState::Consistent,
            replayed: at,
            applying: at,
            fill: 0,
            wipe: !stays,
            ..self.state
        };
        self.store()?;
        (self.applied, self.recover_to) = (at, LogPosition::START);
        self.healing.begin_again();
        if stays {
            self.log_mut()?.journal_mut().rewound(at);
        } else {
            self.wipe()?;
        }
        self.must_greet = true;
        Ok(stays)
    }
}
