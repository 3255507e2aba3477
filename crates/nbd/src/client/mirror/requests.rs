//! What becomes of a request: which legs are asked, and what their answers mean.

use super::{Mirror, Turn};
use crate::NbdError;
use crate::client::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use crate::client::status::LegState;
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::rc::Rc;
use std::time::Duration;

/// Added to the mean time of a leg, so that those that were never asked are no better than others.
const BASE_TIME: Duration = Duration::from_micros(50);

impl Mirror {
    pub(super) async fn run(
        self: &Rc<Self>,
        request: RemoteRequest,
        turn: Option<Turn>,
    ) -> RemoteOutcome {
        let Some(mut turn) = turn else { return self.flush().await };
        turn.comes().await;
        if !self.state.borrow().callers.contains_key(&turn.number) {
            // Its caller was told that it has failed, and nothing has been sent yet.
            return Err(RemoteFailure::Aborted);
        }
        match request {
            RemoteRequest::Read { range } => self.read(range).await,
            change => self.change(change).await,
        }
    }

    /// Asks the best leg, and the others when it fails or goes away.
    pub(super) async fn read(&self, range: ByteRange) -> RemoteOutcome {
        let mut changes = self.changes.subscribe();
        let mut failed = vec![None; self.legs.len()];
        while let Some(leg) = self.best_to_read(&failed) {
            let mut answer = self.legs[leg].begin(RemoteRequest::Read { range });
            let outcome = loop {
                tokio::select! {
                    outcome = &mut answer => break outcome.unwrap_or(Err(RemoteFailure::Closed)),
                    _ = changes.changed() => {
                        let better = self.best_to_read(&failed);
                        let go = better.is_some_and(|leg| self.is_usable(leg));
                        if !self.is_usable(leg) && go {
                            break Err(RemoteFailure::Aborted);
                        }
                    }
                }
            };
            match outcome {
                Ok(data) => return Ok(data),
                // It went away, or is not believed any more.
                Err(RemoteFailure::Aborted) if self.is_other_than(leg) => {}
                Err(failure) => failed[leg] = Some(failure),
            }
        }
        Err(failed.into_iter().flatten().next().unwrap_or(RemoteFailure::Aborted))
    }

    /// The leg in sync that will answer first, of those that have not failed.
    fn best_to_read(&self, failed: &[Option<RemoteFailure>]) -> Option<usize> {
        self.in_sync().filter(|leg| failed[*leg].is_none()).min_by_key(|leg| {
            let session = self.legs[*leg].session.borrow();
            let ahead = u32::try_from(session.pending()).unwrap_or(u32::MAX).saturating_add(1);
            let time = (session.counters.read_time + BASE_TIME).saturating_mul(ahead);
            (!self.is_usable(*leg), time)
        })
    }

    /// Whether another leg is in sync and usable.
    fn is_other_than(&self, leg: usize) -> bool {
        self.in_sync().any(|other| other != leg && self.is_usable(other))
    }

    /// Asks all legs that take part; those that fail are behind from then on.
    async fn change(&self, request: RemoteRequest) -> RemoteOutcome {
        let range = request.range();
        let heated = match &self.book {
            Some(book) if book.heat(range) => book.commit().await,
            _ => Ok(()),
        };
        let outcome = match heated {
            Ok(()) => self.change_legs(request, range).await,
            Err(_) => Err(NbdError::Io.into()),
        };
        if let Some(book) = &self.book {
            book.end(range, self.state.borrow().round);
        }
        outcome
    }

    async fn change_legs(&self, request: RemoteRequest, range: ByteRange) -> RemoteOutcome {
        let answers: Vec<_> = self
            .legs_for_change(range)
            .into_iter()
            .map(|leg| (leg, self.legs[leg].begin(request.clone())))
            .collect();
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for (leg, answer) in answers {
            match answer.await.unwrap_or(Err(RemoteFailure::Closed)) {
                Ok(_) => done.push(leg),
                Err(failure) => failed.push((leg, failure)),
            }
        }
        let good = self.in_sync().any(|leg| done.contains(&leg));
        if !good {
            self.make_equal(range);
            let failure = failed.first().map(|(_, failure)| *failure);
            return Err(failure.unwrap_or(RemoteFailure::Aborted));
        }
        for (leg, _) in &failed {
            self.state.borrow_mut().legs[*leg].missing.set(range);
            self.demote(*leg);
        }
        self.note_down().await
    }

    /// The legs that get a change of this range; it is noted what the others miss.
    fn legs_for_change(&self, range: ByteRange) -> Vec<usize> {
        let mut state = self.state.borrow_mut();
        let mut targets = Vec::new();
        for (number, leg) in state.legs.iter_mut().enumerate() {
            if leg.takes_part() {
                targets.push(number);
            } else {
                leg.missing.set(range);
            }
        }
        targets
    }

    /// A change failed on all legs that could be believed: nobody knows what the range is, but it
    /// must be the same everywhere.
    fn make_equal(&self, range: ByteRange) {
        let Some(source) = self.in_sync().next() else { return };
        for leg in (0..self.legs.len()).filter(|leg| *leg != source) {
            self.state.borrow_mut().legs[leg].missing.set(range);
            self.demote(leg);
        }
    }

    /// Before something is completed that a leg has missed, that it is behind must be durable.
    async fn note_down(&self) -> RemoteOutcome {
        let all = self.state.borrow().legs.iter().all(|leg| leg.is == LegState::InSync);
        if let Some(book) = self.book.as_ref().filter(|_| !all)
            && book.commit().await.is_err()
        {
            return Err(NbdError::Io.into());
        }
        Ok(Bytes::new())
    }

    /// Flushes all legs that take part; those that cannot are behind from then on.
    pub(super) async fn flush(&self) -> RemoteOutcome {
        let legs: Vec<usize> = {
            let state = self.state.borrow();
            (0..self.legs.len()).filter(|leg| state.legs[*leg].takes_part()).collect()
        };
        let answers: Vec<_> =
            legs.iter().map(|leg| (*leg, self.legs[*leg].begin(RemoteRequest::Flush))).collect();
        let mut failure = None;
        let mut done = Vec::new();
        for (leg, answer) in answers {
            let mut answer = answer.await.unwrap_or(Err(RemoteFailure::Closed));
            if matches!(answer, Err(RemoteFailure::Server(_))) {
                // Everything that may have been lost is written again before the second attempt.
                answer = self.legs[leg].ask(RemoteRequest::Flush).await;
            }
            match answer {
                Ok(_) => done.push(leg),
                Err(why) => {
                    if !self.demote(leg) {
                        failure = Some(why);
                    }
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        if !self.in_sync().any(|leg| done.contains(&leg)) {
            return Err(RemoteFailure::Aborted);
        }
        self.note_down().await
    }
}
