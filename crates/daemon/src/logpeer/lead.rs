//! The node that leads: who follows it, their connections, and what is cut from the journal.

use super::source::{Led, NoteFiles, failed};
use super::{given, notes_dir, wire};
use crate::commands::updown::publish;
use crate::node::Node;
use crate::opening;
use crate::resource::Resource;
use crate::shard::{JournalHandle, JournalMode, JournalView, LinkSocket, ResourceHandle};
use holdfast_cluster::PinnedNode;
use holdfast_core::{Command, Snapshot};
use holdfast_journal::ship::{
    Answer, FollowerStatus, Found, Handed, LeadError, Leader, Message, Notes as _, RefuseCode,
    Reply, Request, Source as _, fetch_piece, filling, healed,
};
use holdfast_units::{
    ByteRange, ConnectionState, GenerationId, HybridTime, LogPosition, NodeId, Role,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_rustls::server::TlsStream;

/// How often the followers are looked at: who they are, and what must become durable for them.
const TICK: Duration = Duration::from_millis(200);
/// How long lies between two cuts.
const SHORT: Duration = Duration::from_millis(5);
/// Requests of a connection that wait.
const QUEUE: usize = 16;
/// How long the opening of a connection may take.
const SILENCE: Duration = Duration::from_secs(10);
/// A node that does not lead any more lets its followers fetch the rest for at most so long.
const PARTING: Duration = Duration::from_secs(60);

/// What this node does for its followers, while it is Primary.
pub(crate) struct Serving {
    resource: Weak<Resource>,
    inner: Mutex<Inner>,
    journal: JournalHandle,
    next_conn: AtomicU64,
    /// Counts what followers must hear of at once.
    news: watch::Sender<u64>,
    shown: watch::Sender<BTreeMap<NodeId, FollowerStatus>>,
    over: watch::Sender<bool>,
    /// Those from whom a person disconnected.
    barred: watch::Sender<BTreeSet<NodeId>>,
    /// Members that stream, and follow by the log until they are taken back.
    guests: Mutex<BTreeSet<NodeId>>,
    /// Those of them for whom a data link was not allowed again since they came.
    newcomers: Mutex<BTreeSet<NodeId>>,
    /// This node does not lead any more: what is there may be fetched, nobody new is judged.
    parting: AtomicBool,
}

struct Inner {
    leader: Leader,
    notes: NoteFiles,
    source: Led,
    followers: BTreeSet<NodeId>,
}

impl Serving {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all connections: nothing can be had here any more.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }

    /// Whether somebody may begin to follow.
    fn takes(&self) -> bool {
        !self.parting.load(Ordering::Relaxed)
    }

    fn guests(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members that stream, and follow by the log at present.
    pub(super) fn all_guests(&self) -> BTreeSet<NodeId> {
        self.guests().clone()
    }

    fn newcomers(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.newcomers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a member that streams follows by the log at present.
    pub(crate) fn is_guest(&self, node: NodeId) -> bool {
        self.guests().contains(&node)
    }

    /// How a follower stood a moment ago.
    pub(crate) fn shown(&self, node: NodeId) -> Option<FollowerStatus> {
        self.shown.borrow().get(&node).copied()
    }
}

/// What the clock of this node says.
pub(super) fn now() -> HybridTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    HybridTime::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Leads the followers of a resource whenever this node is its Primary, until it is closed.
pub(crate) async fn keep(node: Arc<Node>, resource: Arc<Resource>, handle: ResourceHandle) {
    let Some(journal) = handle.journal().cloned() else { return };
    let mut views = handle.watch();
    loop {
        let primary = views.borrow_and_update().snapshot.role == Role::Primary;
        if primary && let Some(left) = lead(&node, &resource, &handle, &journal).await {
            see_off(&node, &resource, &handle, &left).await;
            continue;
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Leads until this node is not Primary any more; what its followers are connected to then.
async fn lead(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    handle: &ResourceHandle,
    journal: &JournalHandle,
) -> Option<Arc<Serving>> {
    let mut led: Option<Arc<Serving>> = None;
    let mut views = handle.watch();
    let mut journal_views = journal.watch();
    loop {
        let view = handle.snapshot();
        let snapshot = &view.snapshot;
        resource.most.fetch_max(snapshot.own_size, Ordering::SeqCst);
        match journal.led_segments().await {
            Ok(segments) if !segments.is_empty() => {
                if led.is_none() {
                    led = Serving::begin(node, resource, journal).map(Arc::new);
                }
            }
            // What is here is nobody's past: whoever has it must see that.
            Ok(_) => {
                retire(resource, led.take());
                if begin_history(node, resource, journal).await {
                    continue;
                }
            }
            // The journal is not ready yet, or has failed: clients write past it.
            Err(_) => retire(resource, led.take()),
        }
        if let Some(serving) = &led {
            let followers = serving.all_followers(node, resource, snapshot);
            serving.barred.send_replace(disconnected(node, resource));
            connect_guests(node, resource, handle, serving).await;
            // Not what was handed over: whoever stepped back may write on in those, and that is no past.
            let lineage = [snapshot.generation].into_iter().chain(snapshot.history).collect();
            let state = Arc::clone(serving);
            let ticked = tokio::task::spawn_blocking(move || state.tick(followers, lineage));
            let ticked = ticked.await;
            if ticked.is_err() {
                tracing::error!(resource = resource.name(), "the followers cannot be looked after");
            }
            let before = resource.state().serving.replace(Arc::clone(serving));
            if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, serving)) {
                before.end();
            }
        }
        publish(node, resource);
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            // At once: writers must not wait for it.
            () = cut_wanted(&mut journal_views), if led.is_some() => {
                // When the cut does not work it is tried again, not without a pause.
                tokio::time::sleep(SHORT).await;
            }
            changed = views.changed() => {
                let primary = views.borrow_and_update().snapshot.role == Role::Primary;
                if changed.is_err() || !primary {
                    return led;
                }
            }
        }
    }
}

/// Begins a history that nobody has anything of: what was noted of the followers is about another
/// one, and is forgotten before. Whether that was possible.
async fn begin_history(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    journal: &JournalHandle,
) -> bool {
    let dir = notes_dir(&node.settings.state_dir, resource);
    let mut notes = NoteFiles::new(dir, resource.id);
    let forgotten = tokio::task::spawn_blocking(move || notes.forget_all()).await;
    let begun = match forgotten {
        Ok(Ok(())) => journal.begin_segment().await.map(drop).map_err(failed),
        Ok(Err(error)) => Err(error),
        Err(_) => return false,
    };
    if let Err(error) = &begun {
        tracing::warn!(resource = resource.name(), "no history was begun: {error}");
    }
    begun.is_ok()
}

/// Those who are connected still fetch what is there: in a planned handover one of them waits for
/// it. It ends when all have it, after a while, or when this node leads again.
async fn see_off(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    handle: &ResourceHandle,
    serving: &Arc<Serving>,
) {
    serving.parting.store(true, Ordering::Relaxed);
    let until = Instant::now() + PARTING;
    let mut views = handle.watch();
    while Instant::now() < until {
        if views.borrow_and_update().snapshot.role == Role::Primary {
            break;
        }
        let followers = serving.all_followers(node, resource, &handle.snapshot().snapshot);
        let state = Arc::clone(serving);
        let ended = tokio::task::spawn_blocking(move || state.have_all(&followers)).await;
        if ended.unwrap_or(true) {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            changed = views.changed() => if changed.is_err() { return },
        }
    }
    retire(resource, Some(Arc::clone(serving)));
    publish(node, resource);
}

/// Nothing can be had here any more.
fn retire(resource: &Resource, serving: Option<Arc<Serving>>) {
    let Some(serving) = serving else { return };
    serving.end();
    let mut state = resource.state();
    if state.serving.as_ref().is_some_and(|now| Arc::ptr_eq(now, &serving)) {
        state.serving = None;
    }
}

/// Ends when the journal is over its budget, or closed.
async fn cut_wanted(views: &mut watch::Receiver<JournalView>) {
    drop(views.wait_for(|view| view.cut_wanted).await);
}

/// Who follows by the log until it is taken back comes with metadata that were made anew: that it was
/// refused for those before does not count any more. That is said once each time that it comes, and not
/// when both wrote apart: a person connects those.
async fn connect_guests(
    node: &Node,
    resource: &Resource,
    handle: &ResourceHandle,
    serving: &Serving,
) {
    let by_person = disconnected(node, resource);
    let view = handle.snapshot();
    for peer in &view.snapshot.peers {
        let alone = peer.connection == ConnectionState::StandAlone;
        let apart = || {
            let state = resource.state();
            let problem = state.problems.get(&peer.node);
            problem.is_some_and(|problem| is_split(&problem.what.code))
        };
        let came = || !by_person.contains(&peer.node) && serving.newcomers().remove(&peer.node);
        if alone && came() && !apart() {
            let command = Command::Connect { peer: Some(peer.node), discard_my_data: false };
            if let Err(refusal) = handle.command(command).await {
                tracing::debug!(?refusal, "a member that follows by the log is not connected to");
            }
        }
    }
}

fn is_split(code: &str) -> bool {
    ["SPLIT_BRAIN", "TWO_PRIMARIES"].contains(&code)
}

/// The members from which a person disconnected this node.
fn disconnected(node: &Node, resource: &Resource) -> BTreeSet<NodeId> {
    let chosen = resource.state().local.disconnected.clone();
    let peers = node.view().peers_of(resource.id, node.uuid).into_values();
    peers.filter(|peer| chosen.contains(&peer.uuid)).map(|peer| peer.slot).collect()
}

/// The members that follow this node by the log.
pub(super) fn followers_of(node: &Node, resource: &Resource) -> BTreeSet<NodeId> {
    let view = node.view();
    let own = view.follows_by_log(resource.id, node.uuid);
    let peers = view.peers_of(resource.id, node.uuid).into_values();
    peers.filter(|peer| !peer.diskless && (peer.log || own)).map(|peer| peer.slot).collect()
}

impl Serving {
    fn begin(node: &Node, resource: &Arc<Resource>, journal: &JournalHandle) -> Option<Self> {
        let random = getrandom::u64().ok()?;
        let inner = Inner {
            leader: Leader::new(resource.id, random),
            notes: NoteFiles::new(notes_dir(&node.settings.state_dir, resource), resource.id),
            source: Led {
                resource: Arc::downgrade(resource),
                journal: journal.clone(),
                runtime: Handle::current(),
                size: Arc::clone(&resource.most),
            },
            followers: BTreeSet::new(),
        };
        Some(Self {
            resource: Arc::downgrade(resource),
            inner: Mutex::new(inner),
            journal: journal.clone(),
            next_conn: AtomicU64::new(0),
            news: watch::channel(0).0,
            shown: watch::channel(BTreeMap::new()).0,
            over: watch::channel(false).0,
            barred: watch::channel(BTreeSet::new()).0,
            guests: Mutex::default(),
            newcomers: Mutex::default(),
            parting: AtomicBool::new(false),
        })
    }

    /// Who follows by the log now: guests that stream again do not any more.
    fn all_followers(
        &self,
        node: &Node,
        resource: &Resource,
        snapshot: &Snapshot,
    ) -> BTreeSet<NodeId> {
        let mut guests = self.guests();
        guests.retain(|guest| {
            let peer = snapshot.peers.iter().find(|peer| peer.node == *guest);
            peer.is_some_and(|peer| peer.connection != ConnectionState::Connected)
        });
        let mut followers = followers_of(node, resource);
        followers.extend(guests.iter().copied());
        followers
    }

    /// Whether nothing comes any more that a connected follower has not fetched. Blocks.
    fn have_all(&self, followers: &BTreeSet<NodeId>) -> bool {
        let view = self.journal.view();
        if view.mode != JournalMode::Direct || view.head > view.durable {
            return view.mode == JournalMode::Without;
        }
        let inner = self.lock();
        let statuses =
            followers.iter().filter_map(|n| inner.leader.status(*n, now(), &inner.source));
        statuses.filter(|status| status.connected).all(|status| status.fetched >= view.durable)
    }

    /// A node follows that is perhaps new. Blocks.
    fn know(&self, node: NodeId) {
        let mut inner = self.lock();
        let Inner { leader, notes, source, followers } = &mut *inner;
        if followers.insert(node) {
            leader.add(node, source, notes);
        }
    }

    /// Looks after the followers. Blocks.
    fn tick(&self, mut followers: BTreeSet<NodeId>, lineage: Vec<GenerationId>) {
        let mut inner = self.lock();
        // Who came since is known already, and stays.
        followers.extend(self.all_guests());
        let Inner { leader, notes, source, followers: known } = &mut *inner;
        leader.set_lineage(lineage);
        for gone in known.difference(&followers) {
            leader.remove(*gone, source);
            // What it gets otherwise is not noted.
            if let Err(error) = notes.forget(*gone) {
                tracing::warn!("{error}");
            }
        }
        for new in followers.difference(known) {
            leader.add(*new, source, notes);
        }
        *known = followers;
        let view = self.journal.view();
        let now_ms = now().unix_millis();
        leader.moment(now_ms, view.durable);
        if !known.is_empty() && view.head > view.durable {
            // Followers get what is durable; a client that never flushes must not hold them back.
            let flushed = source.runtime.block_on(self.journal.flush());
            if let Err(error) = flushed {
                tracing::debug!("{error}");
            }
        }
        let mut failing = false;
        if view.cut_wanted {
            match cut(leader, notes, source) {
                Ok(()) => self.news.send_modify(|count| *count += 1),
                Err(error) => {
                    tracing::error!("the journal is over its budget: {error}");
                    failing = true;
                }
            }
        }
        let statuses = known.iter().filter_map(|n| Some((*n, leader.status(*n, now(), source)?)));
        self.shown.send_replace(statuses.collect());
        drop(inner);
        if failing {
            // The reason is not gone the next moment.
            std::thread::sleep(TICK);
        }
    }
}

/// Notes durably what the followers lose, then gives it up.
fn cut(
    leader: &mut Leader,
    notes: &mut NoteFiles,
    source: &Led,
) -> Result<(), holdfast_journal::ship::LeadError> {
    let (runtime, journal) = (&source.runtime, &source.journal);
    let Some((plan, lost)) = runtime.block_on(journal.plan_cut()).map_err(failed)? else {
        return Ok(());
    };
    let segments = runtime.block_on(journal.segments()).map_err(failed)?;
    let cursors = runtime.block_on(journal.cursors()).map_err(failed)?;
    let cursor = |node: NodeId| cursors.peers[usize::from(node.number())];
    for error in leader.cut(&lost, plan.up_to, &segments, source.size(), cursor, notes) {
        tracing::warn!("a log peer will be copied to as a whole: {error}");
    }
    runtime.block_on(journal.cut(plan)).map_err(failed)
}

/// Serves a connection of a node that follows, until it ends.
///
/// # Errors
/// When the connection fails.
pub(crate) async fn take(
    node: &Arc<Node>,
    mut stream: TlsStream<LinkSocket>,
    peer: &PinnedNode,
) -> io::Result<()> {
    let opening = tokio::time::timeout(SILENCE, opening::read(&mut stream)).await;
    let opening = opening.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let mut is_guest = false;
    let found = opening.and_then(|opening| {
        let resource = opening.resource_of(node, peer)?;
        let serving = resource.state().serving.clone().filter(|serving| serving.takes());
        let serving = serving.ok_or("this node does not lead, or not by its journal")?;
        if !followers_of(node, &resource).contains(&opening.from) {
            if !is_away(&resource, opening.from) {
                return Err("the caller does not follow by the log");
            }
            is_guest = true;
        }
        if disconnected(node, &resource).contains(&opening.from) {
            return Err("this node was disconnected from the caller by a person");
        }
        if is_guest {
            serving.guests().insert(opening.from);
            serving.newcomers().insert(opening.from);
        }
        Ok((serving, opening.from))
    });
    let Some((serving, follower)) = opening::answer(&mut stream, found).await? else {
        return Ok(());
    };
    let state = Arc::clone(&serving);
    let known = tokio::task::spawn_blocking(move || state.know(follower));
    known.await.map_err(io::Error::other)?;
    let conn = serving.next_conn.fetch_add(1, Ordering::Relaxed);
    let mut over = serving.over.subscribe();
    let mut barred = serving.barred.subscribe();
    let served = tokio::select! {
        served = serve(&serving, stream, follower, conn) => served,
        _ = over.wait_for(|over| *over) => Ok(()),
        _ = barred.wait_for(|barred| barred.contains(&follower)) => Ok(()),
    };
    let gone = tokio::task::spawn_blocking(move || {
        serving.lock().leader.closed(follower, conn);
    });
    // It only panics when something else did.
    let _ = gone.await;
    match served {
        // That is how a node that is killed, or turns to another one, leaves.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        served => served,
    }
}

/// Whether a member that streams is not connected: it may follow by the log until it is.
fn is_away(resource: &Resource, peer: NodeId) -> bool {
    let Some(view) = resource.view() else { return false };
    let known = view.snapshot.peers.iter().find(|known| known.node == peer && !known.diskless);
    known.is_some_and(|known| known.connection != ConnectionState::Connected)
}

async fn serve(
    serving: &Arc<Serving>,
    stream: TlsStream<LinkSocket>,
    follower: NodeId,
    conn: u64,
) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let (requests, mut asked) = mpsc::channel(QUEUE);
    let reading = crate::task::Task::spawn(async move {
        loop {
            // Who has nothing to ask is silent; that he is gone is found out by the socket.
            let read = wire::read(&mut from).await;
            let done = !matches!(read, Ok(Some(_)));
            if requests.send(read).await.is_err() || done {
                return;
            }
        }
    });
    let mut next = asked.recv().await;
    while let Some(read) = next.take() {
        let Some(Message::Request(request)) = read? else { break };
        if matches!(request, Request::Hello(_) | Request::Join(_)) && !serving.takes() {
            break;
        }
        let (answer, came) = answer(serving, follower, conn, request, &mut asked).await?;
        wire::write(&mut to, &Message::Answer(answer)).await?;
        next = match came {
            Some(came) => Some(came),
            None => asked.recv().await,
        };
    }
    drop(reading);
    Ok(())
}

type Came = io::Result<Option<Message>>;

/// The answer to a request; what came meanwhile, if that ended a wait.
async fn answer(
    serving: &Arc<Serving>,
    follower: NodeId,
    conn: u64,
    request: Request,
    asked: &mut mpsc::Receiver<Came>,
) -> io::Result<(Answer, Option<Came>)> {
    let known = match &request {
        Request::Await(ask) => ask.known,
        _ => LogPosition::START,
    };
    let reply = match request {
        Request::Fetch(fetch) => {
            let may = serving.lock().leader.may_fetch(follower);
            let answer = match may {
                Ok(features) => {
                    let max = usize::try_from(fetch.len).unwrap_or(usize::MAX);
                    let bytes = serving.journal.fetch(fetch.segment, fetch.from, max.min(1 << 20));
                    Answer::Piece(match bytes.await {
                        Ok(bytes) => fetch_piece(fetch, features, bytes),
                        Err(error) => return Ok((gone(&error), None)),
                    })
                }
                Err(refusal) => refusal.into(),
            };
            Reply::Now(answer)
        }
        Request::Copy { fill } => {
            let out = serving.lock().leader.hand_out(follower, conn, fill);
            Reply::Now(match out {
                Ok(handed) => part(serving, follower, conn, fill, handed).await?,
                Err(refusal) => refusal.into(),
            })
        }
        Request::Take { fill, range } => {
            let may = {
                let mut inner = serving.lock();
                let size = inner.source.size();
                inner.leader.may_take(follower, fill, range, size)
            };
            Reply::Now(match may {
                Ok(features) => {
                    let handed = Handed { range, features, offer: None };
                    part(serving, follower, conn, fill, handed).await?
                }
                Err(refusal) => refusal.into(),
            })
        }
        Request::Heal(range) => {
            let (may, size) = {
                let inner = serving.lock();
                (inner.leader.may_heal(follower, range), inner.source.size())
            };
            Reply::Now(match may {
                Ok(features) => heal(serving, range, features, size).await,
                Err(refusal) => refusal.into(),
            })
        }
        request => {
            let state = Arc::clone(serving);
            let reply = tokio::task::spawn_blocking(move || {
                let mut inner = state.lock();
                let Inner { leader, notes, source, .. } = &mut *inner;
                leader.request(now(), follower, conn, request, source, notes)
            });
            reply.await.map_err(io::Error::other)?
        }
    };
    let ms = match reply {
        Reply::Now(answer) => return Ok((answer, None)),
        Reply::Wait { ms } => ms,
    };
    let came = wait(serving, known, Duration::from_millis(u64::from(ms)), asked).await;
    let state = Arc::clone(serving);
    let head = tokio::task::spawn_blocking(move || {
        let inner = state.lock();
        inner.leader.head(now(), follower, &inner.source)
    });
    Ok((Answer::Head(head.await.map_err(io::Error::other)?), came))
}

/// What is found of a part of a filling that was handed out.
async fn part(
    serving: &Serving,
    follower: NodeId,
    conn: u64,
    fill: u64,
    handed: Handed,
) -> io::Result<Answer> {
    let found = match handed.range.is_empty() {
        true => Ok(Found::Good(bytes::Bytes::new())),
        false => given::read(&serving.resource, &serving.journal, handed.range).await,
    };
    let found = match found {
        Ok(found) => found,
        Err(LeadError(text)) => return Ok(Answer::Refuse { code: RefuseCode::Failed, text }),
    };
    let handed = serving.lock().leader.found(follower, conn, handed, &found);
    tokio::task::spawn_blocking(move || filling(fill, handed, found))
        .await
        .map_err(io::Error::other)
}

/// A part of which the follower has no good copy; nothing when there is none here, either.
async fn heal(serving: &Serving, range: ByteRange, features: u64, size: u64) -> Answer {
    let found = match range.end() <= size {
        true => given::read(&serving.resource, &serving.journal, range).await.ok(),
        false => None,
    };
    let bytes = found.and_then(|found| found.all_of(range));
    // Behind what was read: all of that is in the journal before this position.
    match serving.journal.flush().await {
        Ok(position) => healed(range, features, bytes, position),
        Err(error) => Answer::Refuse { code: RefuseCode::Failed, text: error.to_string() },
    }
}

/// Waits for something durable behind `known`, other news, the next request, or the time.
async fn wait(
    serving: &Serving,
    known: LogPosition,
    limit: Duration,
    asked: &mut mpsc::Receiver<Came>,
) -> Option<Came> {
    let mut views = serving.journal.watch();
    let mut news = serving.news.subscribe();
    tokio::select! {
        came = asked.recv() => Some(came.unwrap_or(Ok(None))),
        // Its end shows when it is asked.
        _ = views.wait_for(|view| view.durable > known) => None,
        _ = news.changed() => None,
        () = tokio::time::sleep(limit) => None,
    }
}

fn gone(error: &crate::shard::JournalCallError) -> Answer {
    Answer::Refuse { code: RefuseCode::Gone, text: error.to_string() }
}
