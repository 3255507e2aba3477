//! Keeps the connections of a session: which server is dialled, when, and for which place.

use super::engine::Engine;
use super::join::{NotMade, join};
use super::link::Ending;
use super::session::Session;
use crate::codec::consts::flag;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The first pause between attempts.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// A server that lasted so long was good: the next pause is short again.
const GOOD: Duration = Duration::from_secs(1);
/// How long requests under way and farewells may take at the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// Time between two looks at old requests, unknown samples and rates.
const LONGEST_TICK: Duration = Duration::from_millis(500);
/// How many samples are read at a look.
const LOOKS: usize = 8;

type Joining = Pin<Box<dyn Future<Output = Result<(), NotMade>>>>;

/// Told when the first connection was made, or every server was tried in vain, and why.
pub(super) type Opened = oneshot::Sender<Result<(), Vec<String>>>;

pub(super) struct Keeper {
    engine: Rc<Engine>,
    /// The place and the attempt under way.
    joining: Option<(usize, Joining)>,
    /// The server in use, or to be tried next.
    server: usize,
    /// How many servers were tried since the last pause, and whether one was another export.
    tried: usize,
    refused: bool,
    pause: Duration,
    not_before: Option<Instant>,
    /// The end of the hold of the last abort.
    held: Option<Instant>,
    online_since: Option<Instant>,
    /// Who waits for the first connection, and what went wrong so far.
    opened: Option<Opened>,
    errors: Vec<String>,
}

impl Keeper {
    pub(super) fn new(engine: Rc<Engine>, opened: Option<Opened>) -> Self {
        Self {
            engine,
            joining: None,
            server: 0,
            tried: 0,
            refused: false,
            pause: SHORTEST_PAUSE,
            not_before: None,
            held: None,
            online_since: None,
            opened,
            errors: Vec::new(),
        }
    }

    /// Runs until the engine is closed.
    pub(super) async fn run(mut self) {
        let ticking = tokio::task::spawn_local(tick(Rc::clone(&self.engine)));
        while !self.engine.progress.borrow().closed {
            self.look_around();
            self.begin_joining();
            let not_before = self.not_before.filter(|_| self.joining.is_none());
            tokio::select! {
                joined = joined(&mut self.joining) => self.joined(joined),
                () = until(not_before) => self.not_before = None,
                () = self.engine.news.notified() => {}
            }
        }
        ticking.abort();
        self.drop_joining();
        // Those that take longer are cut off.
        let _ = tokio::time::timeout(FAREWELL, self.farewells()).await;
        for lane in &self.engine.lanes {
            lane.cut_off();
        }
        self.engine.over.notify_one();
    }

    async fn farewells(&self) {
        while self.attached() > 0 {
            self.engine.news.notified().await;
        }
    }

    /// How many places have a connection.
    fn attached(&self) -> usize {
        self.engine.lanes.iter().filter(|lane| lane.notes.borrow().attached).count()
    }

    /// Notices that the first connection has come, the last is gone, or all were aborted.
    fn look_around(&mut self) {
        let online = self.engine.is_online();
        match self.online_since {
            None if online => self.online_since = Some(Instant::now()),
            Some(since) if !online => {
                self.online_since = None;
                self.engine.progress.borrow_mut().outages += 1;
                // An attempt to add a connection may be stuck with the server that has gone.
                self.drop_joining();
                (self.tried, self.refused) = (0, false);
                if since.elapsed() > GOOD {
                    self.pause = SHORTEST_PAUSE;
                }
                self.rest();
            }
            _ => {}
        }
        let held = self.engine.progress.borrow().held_until;
        if held != self.held {
            self.held = held;
            self.drop_joining();
            self.pause = SHORTEST_PAUSE;
            self.not_before = held;
        }
        self.engine.note_state();
    }

    fn drop_joining(&mut self) {
        if let Some((lane, _)) = self.joining.take() {
            self.engine.lanes[lane].end(Ending::AtOnce);
        }
    }

    /// Pauses, longer each time.
    fn rest(&mut self) {
        let at = Instant::now() + jittered(self.pause);
        self.not_before = self.not_before.max(Some(at));
        self.pause = (self.pause * 2).min(self.engine.options.longest_pause.max(SHORTEST_PAUSE));
    }

    fn begin_joining(&mut self) {
        let paused = self.not_before.is_some_and(|at| at > Instant::now());
        if self.joining.is_some() || paused {
            return;
        }
        let online = self.engine.is_online();
        if online && self.attached() >= self.wanted() {
            return;
        }
        let free = |lane: &usize| !self.engine.lanes[*lane].notes.borrow().attached;
        let Some(lane) = (0..self.engine.lanes.len()).find(free) else { return };
        let uri = self.engine.options.uris[self.server].clone();
        self.engine.lanes[lane].notes.borrow_mut().uri = uri.to_string();
        let joining = Box::pin(join(Rc::clone(&self.engine), lane, uri));
        self.joining = Some((lane, joining));
    }

    /// How many connections there should be to this server.
    fn wanted(&self) -> usize {
        let session = self.engine.session.borrow();
        let several = session.agreed().is_some_and(|agreed| {
            agreed.flags.has(flag::CAN_MULTI_CONN) || agreed.flags.has(flag::READ_ONLY)
        });
        if several { self.engine.lanes.len() } else { 1 }
    }

    fn joined(&mut self, result: Result<(), NotMade>) {
        let Some((lane, _)) = self.joining.take() else { return };
        let uri = self.engine.options.uris[self.server].to_string();
        match result {
            Ok(()) => self.made(lane, uri),
            Err(error) => self.not_made(lane, &uri, &error),
        }
    }

    fn made(&mut self, lane: usize, uri: String) {
        let now = Instant::now();
        {
            let mut notes = self.engine.lanes[lane].notes.borrow_mut();
            notes.made += 1;
            notes.live_since = Some(now);
        }
        {
            let mut progress = self.engine.progress.borrow_mut();
            progress.uri = uri;
            progress.ever_online = true;
            progress.refused = false;
        }
        (self.tried, self.refused) = (0, false);
        self.errors.clear();
        if let Some(opened) = self.opened.take() {
            // Nobody may wait any more.
            let _ = opened.send(Ok(()));
        }
    }

    fn not_made(&mut self, lane: usize, uri: &str, error: &NotMade) {
        let text = format!("{uri}: {error}");
        self.engine.lanes[lane].end(Ending::AtOnce);
        self.engine.lanes[lane].notes.borrow_mut().last_error = Some(error.to_string());
        self.engine.progress.borrow_mut().last_error = Some(text.clone());
        if self.engine.is_online() {
            return self.rest();
        }
        self.refused |= matches!(error, NotMade::Different(_));
        self.errors.push(text);
        self.tried += 1;
        self.server = (self.server + 1) % self.engine.options.uris.len();
        if self.tried < self.engine.options.uris.len() {
            return;
        }
        self.engine.progress.borrow_mut().refused = self.refused;
        let errors = std::mem::take(&mut self.errors);
        if let Some(opened) = self.opened.take() {
            // Nobody may wait any more.
            let _ = opened.send(Err(errors));
        }
        (self.tried, self.refused) = (0, false);
        self.rest();
    }
}

/// What came of the attempt under way.
async fn joined(joining: &mut Option<(usize, Joining)>) -> Result<(), NotMade> {
    match joining {
        Some((_, joining)) => joining.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A quarter more or less, so that not all clients of a server come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let chance = RandomState::new().build_hasher().finish() % 1000;
    let chance = u32::try_from(chance).unwrap_or(0);
    pause * 3 / 4 + pause / 2 * chance / 1000
}

/// Looks now and then: requests that are too old, samples to be learnt, rates.
async fn tick(engine: Rc<Engine>) {
    let period = engine.options.timeout.map_or(LONGEST_TICK, |timeout| timeout / 8);
    let period = period.clamp(Duration::from_millis(5), LONGEST_TICK);
    let learning = Rc::new(());
    loop {
        let next = engine.with(Session::tick);
        if Rc::strong_count(&learning) == 1 && engine.is_serving() {
            learn(&engine, &learning);
        }
        engine.note_rates();
        let at = Instant::now() + period;
        tokio::time::sleep_until(next.map_or(at, |next| next.min(at)).into()).await;
    }
}

/// Reads some samples that are not known. Holds on to `learning` until it is over.
fn learn(engine: &Rc<Engine>, learning: &Rc<()>) {
    let reads = engine.with(|session, now| {
        let Some(lane) = session.live_lane(usize::MAX) else { return Vec::new() };
        let looks = session.looks_to_learn().into_iter().take(LOOKS);
        looks.map(|look| (look, session.read_privately(lane, look.range, now))).collect()
    });
    for (look, read) in reads {
        let (engine, learning) = (Rc::clone(engine), Rc::clone(learning));
        tokio::task::spawn_local(async move {
            if let Ok(Ok(data)) = read.await {
                engine.session.borrow_mut().identity.learn(look, &data);
            }
            drop(learning);
        });
    }
}

impl std::fmt::Display for NotMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(error) => error.fmt(f),
            Self::Different(why) => write!(f, "the export is not the one that it was: {why}"),
        }
    }
}
