//! A session with its connections, on one thread: what the keeper, the links and the callers of a
//! disk have in common.

use super::link::{Ending, Port};
use super::options::RemoteOptions;
use super::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use super::session::{Done, Limits, Session, Shape, Wire};
use super::status::{ConnectionState, ConnectionStatus, RemoteState, SessionStatus};
use crate::{HeapBuffers, NbdError, PayloadBuffers};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

/// Told when a session goes online or offline.
type Watcher = Box<dyn Fn()>;

pub(super) struct Engine {
    pub(super) options: RemoteOptions,
    pub(super) session: RefCell<Session>,
    pub(super) lanes: Vec<LaneSide>,
    pub(super) buffers: Rc<dyn PayloadBuffers>,
    /// Somebody further up is telling what is over.
    settling: Cell<bool>,
    pub(super) progress: RefCell<Progress>,
    /// Wakes the keeper: an abort, the end.
    pub(super) news: Notify,
    /// The keeper has ended, and with it all connections.
    pub(super) over: Notify,
    watcher: RefCell<Option<Watcher>>,
}

/// The engine's side of one connection.
#[derive(Default)]
pub(super) struct LaneSide {
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
    pub(super) notes: RefCell<LaneNotes>,
}

/// What people want to know of a connection.
#[derive(Default)]
pub(super) struct LaneNotes {
    pub(super) uri: String,
    pub(super) attached: bool,
    pub(super) task: Option<AbortHandle>,
    pub(super) made: u64,
    pub(super) live_since: Option<Instant>,
    pub(super) last_error: Option<String>,
    /// Bytes read and written at the last look, the rates between the last two, and its time.
    pub(super) looked: (u64, u64),
    pub(super) rates: (u64, u64),
    pub(super) looked_at: Option<Instant>,
}

/// How the keeper is getting on.
pub(super) struct Progress {
    pub(super) ever_online: bool,
    /// What answered last is another export.
    pub(super) refused: bool,
    pub(super) held_until: Option<Instant>,
    pub(super) closed: bool,
    pub(super) uri: String,
    pub(super) outages: u64,
    pub(super) last_error: Option<String>,
    state: RemoteState,
    since: Instant,
}

impl Engine {
    pub(super) fn new(options: RemoteOptions, limits: Limits) -> Rc<Self> {
        let count = options.connections;
        let progress = Progress {
            ever_online: false,
            refused: false,
            held_until: None,
            closed: false,
            uri: options.uris.first().map(ToString::to_string).unwrap_or_default(),
            outages: 0,
            last_error: None,
            state: RemoteState::Connecting,
            since: Instant::now(),
        };
        Rc::new(Self {
            session: RefCell::new(Session::new(limits, count, Default::default())),
            lanes: (0..count).map(|_| LaneSide::default()).collect(),
            buffers: Rc::new(HeapBuffers::default()),
            settling: Cell::new(false),
            progress: RefCell::new(progress),
            news: Notify::new(),
            over: Notify::new(),
            watcher: RefCell::new(None),
            options,
        })
    }

    /// Has somebody told when the session goes online or offline.
    pub(super) fn watch(&self, watcher: Watcher) {
        self.watcher.replace(Some(watcher));
    }

    pub(super) fn tell_watcher(&self) {
        if let Some(watcher) = &*self.watcher.borrow() {
            watcher();
        }
    }

    /// Does something with the session, then tells and wakes whom it concerns.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Session, Instant) -> T) -> T {
        let result = act(&mut self.session.borrow_mut(), Instant::now());
        self.settle();
        result
    }

    fn settle(&self) {
        // Whoever is told may ask for more; the loop further up sees to that, too.
        if self.settling.replace(true) {
            return;
        }
        loop {
            let (finished, woken) = {
                let mut session = self.session.borrow_mut();
                (session.finished(), session.woken())
            };
            if finished.is_empty() && woken.is_empty() {
                break;
            }
            for lane in woken {
                self.lanes[lane].wake();
            }
            for (done, outcome) in finished {
                done(outcome);
            }
        }
        self.settling.set(false);
        self.note_state();
    }

    pub(super) fn submit(&self, request: RemoteRequest, done: Done) {
        self.with(|session, now| session.submit(request, done, now));
    }

    /// Submits; the outcome will come.
    pub(super) fn begin(&self, request: RemoteRequest) -> oneshot::Receiver<RemoteOutcome> {
        let (sender, receiver) = oneshot::channel();
        // Nobody may wait any more.
        self.submit(request, Box::new(|outcome| drop(sender.send(outcome))));
        receiver
    }

    /// Submits, and waits for the outcome.
    pub(super) async fn ask(&self, request: RemoteRequest) -> RemoteOutcome {
        self.begin(request).await.unwrap_or(Err(RemoteFailure::Closed))
    }

    /// Reads all samples that are not known and can be read now.
    pub(super) async fn learn_all(&self) {
        let looks = self.session.borrow().looks_to_learn();
        for look in looks {
            if let Ok(data) = self.ask(RemoteRequest::Read { range: look.range }).await {
                self.session.borrow_mut().identity.learn(look, &data);
            }
        }
    }

    pub(super) fn shape(&self) -> Option<Shape> {
        self.session.borrow().shape()
    }

    pub(super) fn is_online(&self) -> bool {
        self.session.borrow().is_online()
    }

    /// Whether requests go to the server.
    pub(super) fn is_serving(&self) -> bool {
        let session = self.session.borrow();
        session.is_online() && !session.is_restoring()
    }

    /// Fails all requests, closes all connections, and dials again after `hold`.
    pub(super) fn abort(&self, hold: Duration) {
        self.progress.borrow_mut().held_until = Some(Instant::now() + hold);
        self.with(|session, _| session.fail_all(RemoteFailure::Aborted));
        self.end_links(Ending::AtOnce);
        self.news.notify_one();
    }

    /// Fails all requests and ends all connections, for good. [`Self::over`] is notified when they
    /// have taken their leave.
    pub(super) fn close(&self) {
        self.progress.borrow_mut().closed = true;
        self.with(|session, _| session.close());
        for (number, lane) in self.lanes.iter().enumerate() {
            self.with(|session, _| session.retire(number));
            lane.end(Ending::Polite);
        }
        self.news.notify_one();
    }

    /// Ends all connections; none of them is sent anything more.
    pub(super) fn end_links(&self, how: Ending) {
        for (number, lane) in self.lanes.iter().enumerate() {
            self.with(|session, _| session.retire(number));
            lane.end(how);
        }
    }

    pub(super) fn state(&self) -> RemoteState {
        let session = self.session.borrow();
        let progress = self.progress.borrow();
        if progress.closed {
            RemoteState::Closed
        } else if session.is_online() {
            let restoring = session.is_restoring();
            if restoring { RemoteState::Restoring } else { RemoteState::Connected }
        } else if progress.held_until.is_some_and(|until| until > Instant::now()) {
            RemoteState::Held
        } else if progress.refused {
            RemoteState::Refused
        } else if progress.ever_online {
            RemoteState::Reconnecting
        } else {
            RemoteState::Connecting
        }
    }

    /// Keeps account of since when it is so; tells who wants to know.
    pub(super) fn note_state(&self) {
        let state = self.state();
        let changed = {
            let mut progress = self.progress.borrow_mut();
            let changed = progress.state != state;
            if changed {
                progress.state = state;
                progress.since = Instant::now();
            }
            changed
        };
        if changed {
            self.tell_watcher();
        }
    }

    /// Measures how much went over each connection since the last time, once a second.
    pub(super) fn note_rates(&self) {
        let now = Instant::now();
        let session = self.session.borrow();
        for (number, lane) in self.lanes.iter().enumerate() {
            let mut notes = lane.notes.borrow_mut();
            let (counters, _) = session.lane_counters(number);
            let bytes = (counters.bytes_read, counters.bytes_written);
            let passed = notes.looked_at.map_or(Duration::ZERO, |at| now - at).as_millis();
            if notes.looked_at.is_some() && passed < 1000 {
                continue;
            }
            let rate = |new: u64, old: u64| {
                let rate = u128::from(new - old) * 1000 / passed.max(1);
                u64::try_from(rate).unwrap_or(u64::MAX)
            };
            if passed > 0 {
                notes.rates = (rate(bytes.0, notes.looked.0), rate(bytes.1, notes.looked.1));
            }
            (notes.looked, notes.looked_at) = (bytes, Some(now));
        }
    }

    pub(super) fn status(&self) -> SessionStatus {
        self.note_state();
        let session = self.session.borrow();
        let progress = self.progress.borrow();
        let connections = self.lanes.iter().enumerate().map(|(number, lane)| {
            let notes = lane.notes.borrow();
            let (counters, under_way) = session.lane_counters(number);
            ConnectionStatus {
                state: match (session.is_live(number), notes.attached) {
                    (true, _) => ConnectionState::Live,
                    (false, true) => ConnectionState::Connecting,
                    (false, false) => ConnectionState::Idle,
                },
                uri: notes.uri.clone(),
                requests: counters.requests,
                errors: counters.errors,
                bytes_read: counters.bytes_read,
                bytes_written: counters.bytes_written,
                read_rate: notes.rates.0,
                write_rate: notes.rates.1,
                under_way,
                reconnects: notes.made.saturating_sub(1),
                live_for: notes.live_since.map(|since| since.elapsed()),
                last_error: notes.last_error.clone(),
            }
        });
        SessionStatus {
            state: progress.state,
            state_for: progress.since.elapsed(),
            uri: progress.uri.clone(),
            pending: session.pending(),
            unflushed_bytes: session.unflushed().weight(),
            resent: session.counters.resent,
            restored: session.counters.restored,
            outages: progress.outages,
            last_error: progress.last_error.clone(),
            identity: session.identity.fingerprint(),
            remembered: session.identity.remembered(),
            connections: connections.collect(),
        }
    }
}

impl LaneSide {
    pub(super) fn begin(&self) {
        self.ending.set(None);
    }

    pub(super) fn end(&self, how: Ending) {
        self.ending.set(Some(how));
        self.wake();
    }

    /// Ends the connection without waiting for anything.
    pub(super) fn cut_off(&self) {
        if let Some(task) = self.notes.borrow_mut().task.take() {
            task.abort();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// One connection's way to the engine.
pub(super) struct LanePort {
    pub(super) engine: Rc<Engine>,
    pub(super) lane: usize,
}

impl Port for LanePort {
    fn next(&self) -> Option<Wire> {
        self.engine.session.borrow_mut().next_wire(self.lane)
    }

    fn answer(&self, cookie: u64, answer: Result<Bytes, NbdError>) -> bool {
        self.engine.with(|session, now| session.answered(self.lane, cookie, answer, now))
    }

    fn listen(&self, waker: &Waker) {
        self.engine.lanes[self.lane].waker.replace(Some(waker.clone()));
    }

    fn ending(&self) -> Option<Ending> {
        self.engine.lanes[self.lane].ending.get()
    }
}
