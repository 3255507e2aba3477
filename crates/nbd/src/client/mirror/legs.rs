//! What the legs are worth, and what changes that.

use super::{Bitmap, LONGEST_PAUSE, Mirror};
use crate::client::status::{LegState, RemoteState};
use holdfast_units::ByteRange;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Time between two attempts to cool the book down.
const COOLING: Duration = Duration::from_secs(10);
/// How long a leg may take to show what it holds.
const LONGEST_LEARNING: Duration = Duration::from_secs(2);
const LONGEST_LOOK: Duration = Duration::from_millis(250);

impl Mirror {
    /// The legs that have everything.
    pub(super) fn in_sync(&self) -> impl Iterator<Item = usize> {
        let state = self.state.borrow();
        let legs: Vec<_> = state.legs.iter().map(|leg| leg.is == LegState::InSync).collect();
        legs.into_iter().enumerate().filter_map(|(leg, is)| is.then_some(leg))
    }

    /// Whether a leg's server answers, and is one that fits.
    pub(super) fn is_usable(&self, leg: usize) -> bool {
        let engine = &self.legs[leg];
        engine.is_serving() && engine.shape().is_some_and(|shape| self.fits(shape))
    }

    fn fits(&self, shape: super::Shape) -> bool {
        shape.size == self.shape.size
            && shape.block <= self.shape.block
            && (self.shape.read_only || !shape.read_only)
    }

    /// A leg has missed something: from now on it is not believed, and gets no changes, until it
    /// has been given what it lacks. False for the last one in sync, which stays.
    pub(super) fn demote(&self, leg: usize) -> bool {
        let engine = &self.legs[leg];
        {
            let mut state = self.state.borrow_mut();
            let others = |(number, other): (usize, &super::Leg)| {
                number != leg && other.is == LegState::InSync
            };
            let last = !state.legs.iter().enumerate().any(others);
            let it = &mut state.legs[leg];
            if it.is == LegState::Behind {
                return true;
            }
            if last {
                return false;
            }
            it.is = LegState::Behind;
            it.unproved = true;
            it.retry_at = Some(Instant::now() + it.pause);
            it.pause = (it.pause * 2).min(LONGEST_PAUSE);
            // What its server may have lost is missing as well.
            let mut session = engine.session.borrow_mut();
            session.unflushed().pieces().for_each(|(range, _)| it.missing.set(range));
            session.forget_unflushed();
            if let Some(book) = &self.book {
                book.set_leg(leg, LegState::Behind);
                book.add_missing(leg, &it.missing);
            }
        }
        engine.abort(Duration::ZERO);
        true
    }

    /// Looks after the legs, and after requests that are too old.
    pub(super) async fn manage(self: Rc<Self>) {
        let mut changes = self.changes.subscribe();
        let period = (self.patience / 4).clamp(Duration::from_millis(5), LONGEST_LOOK);
        let period = self.timeout.map_or(period, |timeout| period.min(timeout / 8));
        let mut cooled = Instant::now();
        while !self.state.borrow().closed {
            let now = Instant::now();
            self.expire(now);
            self.look_at_legs(now);
            if now - cooled > COOLING {
                cooled = now;
                let mirror = Rc::clone(&self);
                tokio::task::spawn_local(async move { mirror.cool_down().await });
            }
            // The end of the time is as good as a change.
            let _ = tokio::time::timeout(period, changes.changed()).await;
        }
    }

    fn look_at_legs(self: &Rc<Self>, now: Instant) {
        for leg in 0..self.legs.len() {
            let usable = self.is_usable(leg);
            let (is, away) = {
                let mut state = self.state.borrow_mut();
                let it = &mut state.legs[leg];
                if usable {
                    it.away_since = None;
                } else {
                    it.away_since.get_or_insert(now);
                }
                (it.is, it.away_since.map(|since| now - since))
            };
            let others = self.in_sync().any(|other| other != leg && self.is_usable(other));
            if self.legs[leg].state() == RemoteState::Refused && others {
                // Whatever is there, and whatever comes back later: it is not believed any more.
                self.demote(leg);
                self.lacks_everything(leg);
                continue;
            }
            let given_up = match is {
                LegState::InSync => away.is_some_and(|away| away >= self.patience) && others,
                LegState::Syncing => !usable,
                LegState::Behind => false,
            };
            if given_up {
                self.demote(leg);
            } else if is == LegState::Behind && usable && others {
                self.begin_copying(leg, now);
            }
        }
    }

    /// What a leg holds is not what it should be: that is durable as soon as possible, and until it
    /// was compared everything counts as missing.
    pub(super) fn lacks_everything(self: &Rc<Self>, leg: usize) {
        let all = ByteRange::new(0, self.shape.size);
        let mut state = self.state.borrow_mut();
        let it = &mut state.legs[leg];
        if it.missing.count() == all.blocks().end {
            return;
        }
        it.missing.set(all);
        it.doubtful = true;
        if let Some(book) = &self.book {
            book.add_missing(leg, &it.missing);
            let book = Rc::clone(book);
            // If it failed, no further change will be completed.
            tokio::task::spawn_local(async move { book.commit().await });
        }
    }

    fn begin_copying(self: &Rc<Self>, leg: usize, now: Instant) {
        let mut state = self.state.borrow_mut();
        let it = &mut state.legs[leg];
        if it.copying || it.retry_at.is_some_and(|at| at > now) {
            return;
        }
        it.is = LegState::Syncing;
        it.copying = true;
        let mirror = Rc::clone(self);
        tokio::task::spawn_local(async move {
            mirror.copy_to(leg).await;
            mirror.state.borrow_mut().legs[leg].copying = false;
        });
    }

    /// Extents that nobody writes to are flushed, so that they need not be copied after a crash.
    pub(super) async fn cool_down(&self) {
        let Some(book) = self.book.as_ref().filter(|book| book.is_hot()) else { return };
        let round = {
            let mut state = self.state.borrow_mut();
            state.round += 1;
            state.round
        };
        if self.flush().await.is_err() {
            return;
        }
        {
            let state = self.state.borrow();
            for (number, leg) in state.legs.iter().enumerate() {
                if leg.is != LegState::InSync {
                    book.add_missing(number, &leg.missing);
                }
            }
        }
        self.remember_legs().await;
        // What is remembered must be durable before it is relied on.
        if book.commit().await.is_ok() {
            book.cool(round);
            // If it failed, the next change will say so.
            let _ = book.commit().await;
        }
    }

    /// Puts into the book what the legs in sync hold.
    pub(super) async fn remember_legs(&self) {
        let Some(book) = &self.book else { return };
        for leg in self.in_sync() {
            let engine = &self.legs[leg];
            if self.is_usable(leg) {
                // What cannot be looked at now is left out.
                let _ = tokio::time::timeout(LONGEST_LEARNING, engine.learn_all()).await;
            }
            let remembered = engine.session.borrow().identity.remembered();
            book.remember(leg, remembered);
        }
    }

    /// A leg has got everything.
    pub(super) async fn promote(&self, leg: usize) -> bool {
        {
            let mut state = self.state.borrow_mut();
            let it = &mut state.legs[leg];
            if it.is != LegState::Syncing || !it.missing.is_empty() {
                return false;
            }
            it.is = LegState::InSync;
            it.pause = super::FIRST_PAUSE;
            it.retry_at = None;
            it.missing = Bitmap::default();
            (it.unproved, it.was_in_sync, it.doubtful) = (false, true, false);
        }
        if let Some(book) = &self.book {
            let remembered = self.legs[leg].session.borrow().identity.remembered();
            book.remember(leg, remembered);
            book.set_leg(leg, LegState::InSync);
            book.clear_missing(leg);
            // If it failed, it will be copied to once more after a crash.
            let _ = book.commit().await;
        }
        true
    }
}
