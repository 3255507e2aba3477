//! Several servers that hold the same data. Each is a leg with an engine of its own; this decides
//! which of them gets what, and which may be believed.

mod bitmap;
mod book;
mod copy;
mod legs;
mod open;
mod proof;
mod requests;

use super::engine::Engine;
use super::order::{Access, Order};
use super::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use super::session::{Done, Shape};
use super::status::{LegState, LegStatus, RemoteState, RemoteStatus};
use crate::NbdUri;
use bitmap::Bitmap;
use book::Book;
use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Notes for all mirrors whose state directories are in `dir` that these exports are used without the
/// others of their mirror: the next time that is attached, the others are not equal to them any more.
/// To be called before the first write.
///
/// # Errors
/// When such a mirror is attached, or the note cannot be written; as a sentence.
pub fn note_use(dir: &Path, uris: &[NbdUri]) -> Result<(), String> {
    let uris: Vec<_> = uris.iter().map(ToString::to_string).collect();
    book::note_use(dir, None, &uris)
}

/// Requests that are under way, also those whose callers have given up.
const MAX_REQUESTS: usize = 4096;

pub(super) struct Mirror {
    legs: Vec<Rc<Engine>>,
    shape: Shape,
    patience: Duration,
    timeout: Option<Duration>,
    book: Option<Rc<Book>>,
    /// Where the legs were written to lately in an earlier time.
    noted_places: Vec<ByteRange>,
    state: RefCell<State>,
    /// Marked as changed when a leg goes online or offline, and when there is an end.
    changes: watch::Sender<()>,
}

struct State {
    legs: Vec<Leg>,
    order: Order,
    /// Who waits for its turn, by number.
    turns: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
    /// Callers that were not told, by number, and until when they have to be.
    callers: BTreeMap<u64, (Option<Instant>, Done)>,
    under_way: usize,
    /// The round of writes between two attempts to cool the book down.
    round: u64,
    closed: bool,
}

struct Leg {
    is: LegState,
    missing: Bitmap,
    /// What it holds was not compared with the others since it was away.
    unproved: bool,
    /// It has been in sync since the mirror was opened: its session knows what it was.
    was_in_sync: bool,
    /// What it is said to lack is more than it will: it is compared before it is written.
    doubtful: bool,
    copied: u64,
    away_since: Option<Instant>,
    /// Whether a task copies to it.
    copying: bool,
    /// After a failure, not before this; and the pause after the next.
    retry_at: Option<Instant>,
    pause: Duration,
}

/// The first pause after a leg has failed.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Leg {
    fn new(is: LegState, missing: Bitmap) -> Self {
        Self {
            is,
            missing,
            unproved: false,
            was_in_sync: is == LegState::InSync,
            doubtful: false,
            copied: 0,
            away_since: None,
            copying: false,
            retry_at: None,
            pause: FIRST_PAUSE,
        }
    }

    /// One of which nothing is known.
    fn unknown(size: u64) -> Self {
        let mut all = Bitmap::default();
        all.set(ByteRange::new(0, size));
        Self { doubtful: true, ..Self::new(LegState::Behind, all) }
    }

    /// It gets writes.
    fn takes_part(&self) -> bool {
        self.is != LegState::Behind
    }
}

/// A place in the order of overlapping requests, until it is dropped.
struct Turn {
    mirror: Rc<Mirror>,
    number: u64,
    free: Option<oneshot::Receiver<()>>,
}

impl Turn {
    /// Waits until all earlier requests that overlap are over.
    async fn comes(&mut self) {
        if let Some(free) = self.free.take() {
            // Whoever has to tell lives as long as the mirror.
            let _ = free.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.mirror.state.borrow_mut();
        let State { order, turns, .. } = &mut *state;
        turns.remove(&self.number);
        order.leave(self.number, |later| {
            if let Some(waiting) = turns.remove(&later) {
                // Nobody may wait any more.
                let _ = waiting.send(());
            }
        });
    }
}

impl Mirror {
    pub(super) const fn shape(&self) -> Shape {
        self.shape
    }

    /// The leg that is asked what the disk is like.
    pub(super) fn first(&self) -> &Rc<Engine> {
        let leg = self.in_sync().next().unwrap_or(0);
        &self.legs[leg]
    }

    /// Starts a request.
    pub(super) fn submit(self: &Rc<Self>, request: RemoteRequest, done: Done) {
        if let Some(early) = self.answer_early(&request) {
            return done(early);
        }
        let number = {
            let mut state = self.state.borrow_mut();
            let number = state.next;
            state.next += 1;
            state.under_way += 1;
            let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
            state.callers.insert(number, (deadline, done));
            number
        };
        // Its place in the order is that of its arrival.
        let turn = (request != RemoteRequest::Flush)
            .then(|| self.enter(number, request.range(), request.access()));
        let mirror = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let outcome = mirror.run(request, turn).await;
            mirror.state.borrow_mut().under_way -= 1;
            mirror.tell(number, outcome);
        });
    }

    fn answer_early(&self, request: &RemoteRequest) -> Option<RemoteOutcome> {
        let state = self.state.borrow();
        if state.closed {
            return Some(Err(RemoteFailure::Closed));
        }
        if state.under_way >= MAX_REQUESTS {
            return Some(Err(RemoteFailure::Busy));
        }
        let Shape { size, block, read_only } = self.shape;
        if let Some(fault) = request.fault(size, block, read_only) {
            return Some(Err(fault.into()));
        }
        let empty = request.range().is_empty() && *request != RemoteRequest::Flush;
        empty.then(|| Ok(Bytes::new()))
    }

    fn enter(self: &Rc<Self>, number: u64, range: ByteRange, access: Access) -> Turn {
        let mut state = self.state.borrow_mut();
        let free = if state.order.enter(number, range, access) {
            None
        } else {
            let (sender, receiver) = oneshot::channel();
            state.turns.insert(number, sender);
            Some(receiver)
        };
        Turn { mirror: Rc::clone(self), number, free }
    }

    fn tell(&self, number: u64, outcome: RemoteOutcome) {
        let caller = self.state.borrow_mut().callers.remove(&number);
        if let Some((_, done)) = caller {
            done(outcome);
        }
    }

    /// Fails what is too old. What it has begun goes on.
    fn expire(&self, now: Instant) {
        let old: Vec<u64> = {
            let state = self.state.borrow();
            let all = state.callers.iter();
            // Those that came later have more time.
            let old = all.take_while(|(_, (deadline, _))| deadline.is_some_and(|at| at <= now));
            old.map(|(number, _)| *number).collect()
        };
        for number in old {
            self.tell(number, Err(RemoteFailure::TimedOut));
        }
    }

    /// As [`Engine::abort`], for all legs.
    pub(super) fn abort(&self, hold: Duration) {
        self.tell_all(RemoteFailure::Aborted);
        for leg in &self.legs {
            leg.abort(hold);
        }
    }

    fn tell_all(&self, failure: RemoteFailure) {
        let callers = std::mem::take(&mut self.state.borrow_mut().callers);
        for (_, (_, done)) in callers {
            done(Err(failure));
        }
    }

    /// Ends it; in good order if everything was flushed before.
    pub(super) fn close(&self) {
        self.state.borrow_mut().closed = true;
        self.tell_all(RemoteFailure::Closed);
        for leg in &self.legs {
            leg.close();
        }
        self.changes.send_replace(());
    }

    /// Gives up what is written down about it, after [`Mirror::close`], and waits until all
    /// connections have taken their leave.
    pub(super) async fn release(&self) {
        if let Some(book) = &self.book {
            book.release().await;
        }
        for leg in &self.legs {
            leg.over.notified().await;
        }
    }

    /// The last flush, and that it was the last is written down.
    pub(super) async fn farewell(self: &Rc<Self>) -> RemoteOutcome {
        self.flush().await?;
        self.cool_down().await;
        self.remember_legs().await;
        let Some(book) = &self.book else { return Ok(Bytes::new()) };
        // Somebody may still have written: then extents are hot, and it was no good end.
        let noted = if book.is_hot() { book.commit().await } else { book.close().await };
        noted.map(|()| Bytes::new()).map_err(|_| crate::NbdError::Io.into())
    }

    pub(super) fn status(&self) -> RemoteStatus {
        let sessions: Vec<_> = self.legs.iter().map(|leg| leg.status()).collect();
        let state = self.state.borrow();
        let rank = |state: RemoteState| match state {
            RemoteState::Connected => 0,
            RemoteState::Restoring => 1,
            RemoteState::Held => 2,
            RemoteState::Refused => 3,
            _ => 4,
        };
        let in_sync = state.legs.iter().zip(&sessions).filter(|(l, _)| l.is == LegState::InSync);
        let best = in_sync.map(|(_, session)| session.state).min_by_key(|state| rank(*state));
        let identity = self.in_sync().next().map(|leg| sessions[leg].identity.clone());
        let missing = |leg: &Leg| (leg.missing.count() * BLOCK_SIZE).min(self.shape.size);
        RemoteStatus {
            state: if state.closed {
                RemoteState::Closed
            } else {
                best.unwrap_or(RemoteState::Closed)
            },
            size: self.shape.size,
            identity: identity.unwrap_or_default(),
            pending: state.callers.len(),
            legs: state
                .legs
                .iter()
                .zip(sessions)
                .map(|(leg, session)| LegStatus {
                    state: leg.is,
                    missing_bytes: missing(leg),
                    copied_bytes: leg.copied,
                    session,
                })
                .collect(),
        }
    }
}
