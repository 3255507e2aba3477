//! The thread of a resource that follows: it owns journal and disk.

mod healing;

use super::disk::OwnDisk;
use super::scrub::ScrubCall;
use super::session::{self, Link};
use super::{lead, losses};
use crate::checksums::{self, LatestChecksums};
use crate::commands::blocking;
use crate::growth;
use crate::journaled::open::{claimed_files, follow_budget, follow_settings};
use crate::local::{Local, LocalDisk};
use crate::node::Node;
use crate::refuse;
use crate::resource::Resource;
use crate::shard::DiskSpec;
use crate::spares::{MapChanges, SparesView, tell_map};
use crate::survey::{self, Surveyed};
use crate::task::Task;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::{Notice as CoreNotice, Refusal, SurveyProgress};
use holdfast_format::journal::{SegmentHeader, SegmentLink};
use holdfast_journal::driver::Files;
use holdfast_journal::ship::{
    Answer, ConnId, FollowError, FollowOptions, FollowStatus, Follower, Holding, RefuseCode,
    Request, Trouble,
};
use holdfast_store::ChecksumHandle;
use holdfast_units::{LogPosition, NodeId, ResourceId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use healing::FollowScrub;
use healing::Tended;

/// How long the thread waits for something to happen before it looks at the time.
const TICK: Duration = Duration::from_millis(50);
/// Orders that wait.
const QUEUE: usize = 256;
/// When nothing is fetched for so long although there is something and the leader is in reach, an
/// event says so.
const STALL: Duration = Duration::from_secs(30);
/// After a failure it is tried again so long after.
const RETRY: Duration = Duration::from_secs(5);

type BoxedFiles = Box<dyn Files + Send>;
type OpenFiles = Box<dyn FnMut() -> io::Result<BoxedFiles> + Send>;
type Logic = Follower<OpenFiles, BoxedFiles, OwnDisk>;

/// What the thread is told.
pub(super) enum Order {
    Meet {
        leader: NodeId,
        bundle: u64,
        lent: bool,
    },
    Lend(Request, oneshot::Sender<Answer>),
    Part,
    NotReached(String),
    Opened(Link),
    Closed(ConnId),
    Answer(ConnId, Answer),
    Switches {
        fetch: bool,
        replay: bool,
        done: oneshot::Sender<Result<(), String>>,
    },
    Rewind {
        from: LogPosition,
        to: LogPosition,
        done: oneshot::Sender<Result<bool, String>>,
    },
    BeginRestore(oneshot::Sender<Result<bool, String>>),
    Restored(LogPosition, Option<SegmentHeader>, oneshot::Sender<Result<bool, String>>),
    Delay(Duration),
    /// No delay counts, or it counts again.
    Hurry(bool),
    /// The journal may take so many bytes.
    Limit(u64),
    /// The disk is ready for so many bytes.
    Grown(u64, oneshot::Sender<()>),
    Fork(Option<LogPosition>, oneshot::Sender<Result<(), String>>),
    Discard(oneshot::Sender<Result<(), String>>),
    Scrub(ScrubCall, oneshot::Sender<Result<(), Refusal>>),
    Chain(oneshot::Sender<Vec<SegmentLink>>),
    Stop(oneshot::Sender<()>),
}

/// How following goes.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct FollowView {
    /// What the logic says; `None` while journal and disk are not open.
    pub(crate) status: Option<FollowStatus>,
    /// Who leads; `None` while nobody is connected.
    pub(crate) leader: Option<NodeId>,
    /// Who lends what it has fetched, while nobody who leads is in reach.
    pub(crate) lender: Option<NodeId>,
    /// Why nobody is.
    pub(crate) unreached: Option<String>,
    /// Why journal or disk cannot be used.
    pub(crate) failure: Option<String>,
    /// Bytes a second that come, lately.
    pub(crate) rate: u64,
    /// The bytes that a filling copies in all; 0 when none is under way.
    pub(crate) fill_bytes: u64,
    /// Bytes a second that are replayed, lately.
    pub(crate) replay_rate: u64,
    /// The spares of its disk for bad sectors.
    pub(crate) spares: Option<SparesView>,
    /// The scrub of its disk that goes on.
    pub(crate) scrub: Option<SurveyProgress>,
    /// The bytes of the resource that its disk is ready for.
    pub(crate) size: u64,
    /// The bytes that its journal may take.
    pub(crate) limit: u64,
}

/// A resource that follows.
pub(crate) struct Following {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<FollowView>,
    checksums: LatestChecksums,
    scrub: FollowScrub,
    _tasks: [Task; 4],
}

/// Says where the checksums of the disk are: they may come and go between two openings.
type Sums = Box<dyn Fn() -> Option<PathBuf> + Send>;

/// What journal and disk are opened with.
struct Place {
    name: String,
    resource: ResourceId,
    slot: NodeId,
    disk: DiskSpec,
    journal: crate::journaled::JournalSpec,
    size: u64,
    delay: Duration,
    /// What this node wrote while it led may be replaced unseen.
    expendable: bool,
    /// Where the checksums of the disk are, if some are kept then, and how they stand.
    sums: Sums,
    checksums: LatestChecksums,
    /// Where it is kept which of its blocks have no good copy.
    losses: PathBuf,
}

/// Begins to follow.
///
/// # Errors
/// When this node has no disk or no journal for it, or they cannot be used.
pub(crate) async fn start(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    local: &Local,
) -> Result<Following, ApiError> {
    let view = node.view();
    let refuse = |why: &str| {
        let message = format!("resource {} was not started: {why}", local.name);
        ApiError::new(ErrorCode::NotMember, message)
    };
    if view.records.resource(local.id).is_none() {
        return Err(refuse("the cluster does not know it any more"));
    }
    let slot = view.slot_of(local.id, node.uuid);
    let slot = slot.ok_or_else(|| refuse("this node is no member of it any more"))?;
    let disk = local.disk.as_ref().ok_or_else(|| refuse("it follows by the log without a disk"))?;
    if !local.attached {
        return Err(refuse("its disk is detached, and what is on that is kept"));
    }
    let journal = local.journal.as_ref();
    let journal = journal.ok_or_else(|| refuse("it follows by the log without a journal"))?;
    let losses = losses::path(&node.settings.state_dir, local.id);
    let size = growth::settle_size(node, resource).await?;
    take_over_losses(&losses, disk, local.id, size).await?;
    let place = Place {
        name: local.name.clone(),
        resource: local.id,
        slot,
        disk: disk.spec_in(&node.store, local.id),
        journal: journal.spec(),
        size,
        delay: session::delay_of(node, local.id, None),
        expendable: local.expendable,
        sums: sums_of(node, resource),
        checksums: Arc::default(),
        losses,
    };
    let sums = Arc::clone(&place.checksums);
    let (orders, queue) = mpsc::channel(QUEUE);
    let nothing = FollowView {
        status: None,
        leader: None,
        lender: None,
        unreached: None,
        failure: None,
        rate: 0,
        fill_bytes: 0,
        replay_rate: 0,
        spares: None,
        scrub: None,
        size: place.size,
        limit: place.journal.size,
    };
    let (shown, seen) = watch::channel(nothing);
    let (opened, is_open) = oneshot::channel();
    let notice = Notice { node: Arc::clone(node), resource: Arc::clone(resource) };
    let runtime = Handle::current();
    let (ended, _) = broadcast::channel(QUEUE);
    let scrub = FollowScrub::new(orders.clone(), seen.clone(), ended.clone());
    let thread = std::thread::Builder::new().name("follow".into());
    thread
        .spawn(move || Thread::new(place, runtime, notice, shown, ended).run(queue, opened))
        .map_err(|error| refuse::internal("a thread was not started", &error))?;
    match is_open.await {
        Ok(Ok(())) => {}
        Ok(Err(NotOpen::Unproven)) => {
            return Err(ApiError { code: ErrorCode::SplitBrain, ..refuse(UNPROVEN) });
        }
        Ok(Err(NotOpen::Failed(why))) => return Err(refuse(&why)),
        Err(_) => return Err(refuse("its thread ended")),
    }
    let session =
        session::run(Arc::clone(node), Arc::clone(resource), orders.clone(), seen.clone());
    let computing = checksums::run_latest(Arc::clone(&sums));
    let growing = FollowOrders(orders.clone());
    let growing = growth::follow(Arc::clone(node), Arc::clone(resource), growing);
    let surveyed = Surveyed::Follower(scrub.clone());
    let surveys = survey::run(Arc::clone(node), Arc::clone(resource), surveyed);
    let tasks =
        [Task::spawn(session), Task::spawn(computing), Task::spawn(growing), Task::spawn(surveys)];
    Ok(Following { orders, view: seen, checksums: sums, scrub, _tasks: tasks })
}

/// What the metadata say of blocks without a good copy, if this node has led since it followed last.
async fn take_over_losses(
    path: &Path,
    disk: &LocalDisk,
    resource: ResourceId,
    size: u64,
) -> Result<(), ApiError> {
    let (path, disk) = (path.to_owned(), disk.clone());
    blocking(move || losses::take_over(&path, &disk, resource, size)).await
}

/// Tells the thread what becomes of its disk.
pub(crate) struct FollowOrders(mpsc::Sender<Order>);

impl FollowOrders {
    /// The disk is ready for so many bytes; returns when they are used.
    pub(crate) async fn grown(&self, size: u64) {
        let (done, end) = oneshot::channel();
        // A thread that has ended begins with the new size.
        if self.0.send(Order::Grown(size, done)).await.is_ok() {
            let _ = end.await;
        }
    }
}

fn sums_of(node: &Node, resource: &Arc<Resource>) -> Sums {
    let (state_dir, resource) = (node.settings.state_dir.clone(), Arc::clone(resource));
    Box::new(move || checksums::wanted_at(&state_dir, &resource.local()))
}

impl Following {
    /// How it goes.
    pub(crate) fn view(&self) -> FollowView {
        self.view.borrow().clone()
    }

    /// The layer for checksums of its disk; `None` while that is not open.
    pub(crate) fn checksums(&self) -> Option<ChecksumHandle> {
        checksums::latest(&self.checksums).clone()
    }

    /// The scrub of its disk.
    pub(crate) const fn scrub(&self) -> &FollowScrub {
        &self.scrub
    }

    /// Tells of changes of [`Self::view`]; ends with the thread.
    pub(crate) fn watch(&self) -> watch::Receiver<FollowView> {
        self.view.clone()
    }

    /// Turns the switches, durably.
    ///
    /// # Errors
    /// When that could not be written.
    pub(crate) async fn set_switches(&self, fetch: bool, replay: bool) -> Result<(), String> {
        self.order(|done| Order::Switches { fetch, replay, done }).await
    }

    /// The answer to another node that follows.
    pub(super) async fn lend(&self, request: Request) -> Option<Answer> {
        let (done, end) = oneshot::channel();
        self.orders.send(Order::Lend(request, done)).await.ok()?;
        end.await.ok()
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Order,
    ) -> Result<T, String> {
        let (done, end) = oneshot::channel();
        let gone = || "it is being stopped".to_owned();
        self.orders.send(order(done)).await.map_err(|_| gone())?;
        end.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Begins to make the disk the state at `to`, by the journal from `from` on; `false` when it
    /// cannot be had so.
    ///
    /// # Errors
    /// When journal or disk failed.
    pub(crate) async fn rewind(&self, from: LogPosition, to: LogPosition) -> Result<bool, String> {
        self.order(|done| Order::Rewind { from, to, done }).await
    }

    /// Says durably that the disk is nothing; the caller may write to it until [`Self::restored`].
    ///
    /// # Errors
    /// When that could not be written.
    pub(crate) async fn begin_restore(&self) -> Result<bool, String> {
        self.order(Order::BeginRestore).await
    }

    /// The disk is durably the state at this position.
    ///
    /// # Errors
    /// When that could not be written.
    pub(crate) async fn restored(
        &self,
        at: LogPosition,
        segment: Option<SegmentHeader>,
    ) -> Result<bool, String> {
        self.order(|done| Order::Restored(at, segment, done)).await
    }

    /// Replays without a delay from now on, or with it again. A thread that has ended hears of
    /// nothing.
    pub(crate) async fn hurry(&self, on: bool) {
        let _ = self.orders.send(Order::Hurry(on)).await;
    }

    /// Where both went on apart by what a leader said holds this node back. Without one it is to lead with
    /// all that is here.
    ///
    /// # Errors
    /// When that could not be written.
    pub(crate) async fn set_fork(&self, fork: Option<LogPosition>) -> Result<(), String> {
        self.order(|done| Order::Fork(fork, done)).await
    }

    /// Its journal may take so many bytes from now on. A thread that has ended hears of nothing.
    pub(crate) async fn set_limit(&self, bytes: u64) {
        let _ = self.orders.send(Order::Limit(bytes)).await;
    }

    /// Gives up what is here: it is filled anew.
    ///
    /// # Errors
    /// When that could not be written.
    pub(crate) async fn discard(&self) -> Result<(), String> {
        self.order(Order::Discard).await
    }

    /// The chain of what was fetched, when the disk is a state of it and nothing is left out.
    pub(super) async fn chain(&self) -> Option<Vec<SegmentLink>> {
        let (done, end) = oneshot::channel();
        self.orders.send(Order::Chain(done)).await.ok()?;
        end.await.ok()
    }

    /// Ends it in good order: what was replayed is durable, journal and disk are free.
    pub(crate) async fn stop(&self) {
        let (done, end) = oneshot::channel();
        if self.orders.send(Order::Stop(done)).await.is_ok() {
            // It ends with the thread.
            let _ = end.await;
        }
    }
}

/// Why journal and disk were not opened.
enum NotOpen {
    /// What this node wrote while it led would be given up.
    Unproven,
    Failed(String),
}

pub(super) const UNPROVEN: &str = "it led, and its journal does not say what it wrote";

/// Where events go.
struct Notice {
    node: Arc<Node>,
    resource: Arc<Resource>,
}

impl Notice {
    /// Tells what becomes of bad sectors, until the disk is closed.
    fn follow_map(&self, runtime: &Handle, changes: &MapChanges) {
        let Some(changes) = changes.subscribe() else { return };
        runtime.spawn(tell_map(Arc::clone(&self.node), self.resource.id, changes));
    }

    fn tell(&self, text: &str) {
        let name = self.resource.name();
        tracing::warn!(resource = name, "{text}");
        self.node.hub.notice(&name, None, text);
    }
}

/// How fast something goes, over the last seconds.
struct Meter {
    at: Instant,
    count: u64,
    rate: u64,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self { at: now, count: 0, rate: 0 }
    }

    fn note(&mut self, now: Instant, count: u64) {
        let millis = now.duration_since(self.at).as_millis();
        if millis < 1000 {
            return;
        }
        let moved = u128::from(count.saturating_sub(self.count)) * 1000 / millis;
        let moved = u64::try_from(moved).unwrap_or(u64::MAX);
        self.rate = if self.rate == 0 { moved } else { (self.rate * 3 + moved) / 4 };
        (self.at, self.count) = (now, count);
    }
}

struct Thread {
    /// When it began: what it counts the time from, whatever becomes of the clock.
    begun: Instant,
    place: Place,
    runtime: Handle,
    notice: Notice,
    shown: watch::Sender<FollowView>,
    logic: Option<Logic>,
    links: BTreeMap<ConnId, Link>,
    first: Option<ConnId>,
    leader: Option<NodeId>,
    lender: Option<NodeId>,
    unreached: Option<String>,
    failure: Option<String>,
    failed_at: Instant,
    received: Meter,
    replayed: Meter,
    /// When something came last, and how much had come by then.
    progress: (Instant, u64),
    stalled: bool,
    told: Option<Trouble>,
    delay_ms: u64,
    hurries: bool,
    /// The most that a filling had left.
    fill_bytes: u64,
    /// How the spares of the disk are.
    spares: Option<watch::Receiver<Option<SparesView>>>,
    tended: Tended,
}

impl Thread {
    fn new(
        place: Place,
        runtime: Handle,
        notice: Notice,
        shown: watch::Sender<FollowView>,
        ended: broadcast::Sender<CoreNotice>,
    ) -> Self {
        let now = Instant::now();
        let delay_ms = u64::try_from(place.delay.as_millis()).unwrap_or(u64::MAX);
        Self {
            begun: now,
            place,
            runtime,
            notice,
            shown,
            logic: None,
            links: BTreeMap::new(),
            first: None,
            leader: None,
            lender: None,
            unreached: None,
            failure: None,
            failed_at: now,
            received: Meter::new(now),
            replayed: Meter::new(now),
            progress: (now, 0),
            stalled: false,
            told: None,
            delay_ms,
            hurries: false,
            fill_bytes: 0,
            spares: None,
            tended: Tended::new(ended),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn open(&mut self) -> Result<Logic, NotOpen> {
        let Place { resource, slot, journal, size, .. } = &self.place;
        let sums = (self.place.sums)();
        let opened =
            OwnDisk::open(&self.place.disk, sums.as_deref(), *resource, *size, &self.place.losses);
        let (disk, seen) = opened.map_err(|error| NotOpen::Failed(error.to_string()))?;
        self.notice.follow_map(&self.runtime, &seen.changes);
        self.spares = Some(seen.spares);
        *checksums::latest(&self.place.checksums) = Some(seen.checksums);
        let settings = follow_settings(journal, *resource, *slot)
            .map_err(|error| NotOpen::Failed(error.to_string()))?;
        let spec = journal.clone();
        let open: OpenFiles = Box::new(move || claimed_files(&spec).map_err(io::Error::other));
        let may_give_up = self.place.expendable;
        let options = FollowOptions { may_give_up, ..FollowOptions::new(settings, *size) };
        let opened = Follower::open(open, disk, options).map_err(|error| match error {
            FollowError::Unproven => NotOpen::Unproven,
            error => NotOpen::Failed(error.to_string()),
        });
        let mut logic = opened?;
        logic.clock_says(self.now_ms(), lead::now());
        Ok(logic)
    }

    fn run(
        mut self,
        mut queue: mpsc::Receiver<Order>,
        opened: oneshot::Sender<Result<(), NotOpen>>,
    ) {
        match self.open() {
            Ok(logic) => self.logic = Some(logic),
            Err(why) => return drop(opened.send(Err(why))),
        }
        // Before anything is replayed, whoever leads and whether he is in reach.
        self.set_delay();
        // Who looks behind that is not told that the disk cannot be used.
        self.publish();
        if opened.send(Ok(())).is_err() {
            return;
        }
        let mut more = false;
        loop {
            let order = if more {
                queue.try_recv().ok()
            } else {
                let next = async { tokio::time::timeout(TICK, queue.recv()).await };
                match self.runtime.block_on(next) {
                    Ok(None) => break,
                    Ok(order) => order,
                    Err(_) => None,
                }
            };
            let mut next = order;
            while let Some(order) = next {
                if let Order::Stop(done) = order {
                    self.close();
                    // Who asked may be gone.
                    let _ = done.send(());
                    return;
                }
                self.take(order);
                next = queue.try_recv().ok();
            }
            more = self.work();
            more |= self.scrub_on();
            self.publish();
        }
        self.close();
    }

    fn close(&mut self) {
        *checksums::latest(&self.place.checksums) = None;
        self.links.clear();
        if let Some(logic) = self.logic.take()
            && let Err(error) = logic.close()
        {
            tracing::warn!(resource = self.place.name, "following did not end cleanly: {error}");
        }
    }

    fn take(&mut self, order: Order) {
        let now = self.now_ms();
        match order {
            Order::Lend(request, done) => {
                let away = || Answer::Refuse {
                    code: RefuseCode::Failed,
                    text: "its journal is not open".to_owned(),
                };
                let logic = self.logic.as_ref();
                let answer = logic.map_or_else(away, |logic| logic.lend(lead::now(), &request));
                // Who asked may be gone.
                let _ = done.send(answer);
            }
            Order::Meet { leader, bundle, lent } => {
                self.part();
                if lent {
                    self.lender = Some(leader);
                } else {
                    self.leader = Some(leader);
                    self.unreached = None;
                }
                self.progress = (Instant::now(), 0);
                if let Some(logic) = &mut self.logic {
                    logic.meet(leader, bundle);
                }
            }
            Order::Part => self.part(),
            Order::NotReached(why) => {
                self.leader = None;
                self.unreached = Some(why);
            }
            Order::Opened(link) => {
                let conn = link.conn;
                self.first.get_or_insert(conn);
                self.links.insert(conn, link);
                if let Some(logic) = &mut self.logic {
                    logic.opened(conn);
                }
            }
            Order::Closed(conn) => self.closed(conn),
            Order::Answer(conn, answer) => {
                if !self.links.contains_key(&conn) {
                    return;
                }
                let answered = self.logic.as_mut().map(|logic| logic.answer(now, conn, answer));
                match answered {
                    Some(Ok(true)) | None => {}
                    Some(Ok(false)) => self.closed(conn),
                    Some(Err(error)) => self.fail(&error.to_string()),
                }
            }
            Order::Switches { fetch, replay, done } => {
                self.carry_out(done, |logic| logic.set_switches(fetch, replay));
            }
            Order::Rewind { from, to, done } => self.carry_out(done, |l| l.rewind(from, to)),
            Order::BeginRestore(done) => self.carry_out(done, Follower::begin_restore),
            Order::Restored(at, segment, done) => {
                self.carry_out(done, |logic| logic.restored(at, segment));
            }
            Order::Delay(delay) => {
                self.delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                self.set_delay();
            }
            Order::Hurry(on) => {
                self.hurries = on;
                self.set_delay();
            }
            Order::Limit(bytes) => {
                self.place.journal.size = bytes;
                if let Some(logic) = &mut self.logic {
                    logic.set_budget(follow_budget(bytes));
                }
            }
            Order::Grown(size, done) => {
                self.place.size = self.place.size.max(size);
                if let Some(logic) = &mut self.logic {
                    logic.grown(size);
                }
                self.publish();
                // Who asked may be gone.
                let _ = done.send(());
            }
            Order::Fork(fork, done) => self.carry_out(done, |logic| logic.set_fork(fork)),
            Order::Discard(done) => self.carry_out(done, Follower::discard),
            Order::Scrub(call, done) => {
                let answer = self.scrub_call(&call);
                self.publish();
                // Who asked may be gone.
                let _ = done.send(answer);
            }
            Order::Chain(done) => {
                let chain = self.logic.as_ref().map(Follower::chain);
                // Who asked may be gone.
                let _ = done.send(chain.unwrap_or_default());
            }
            Order::Stop(_) => {}
        }
    }

    fn carry_out<T>(
        &mut self,
        done: oneshot::Sender<Result<T, String>>,
        order: impl FnOnce(&mut Logic) -> Result<T, FollowError>,
    ) {
        let result = match &mut self.logic {
            Some(logic) => order(logic).map_err(|error| error.to_string()),
            None => Err("its journal is not open".to_owned()),
        };
        // Before it is answered, so that who asked sees what it led to.
        self.publish();
        // Who asked may be gone.
        let _ = done.send(result);
    }

    fn set_delay(&mut self) {
        let delay_ms = if self.hurries { 0 } else { self.delay_ms };
        if let Some(logic) = &mut self.logic {
            logic.set_delay(delay_ms);
        }
    }

    fn part(&mut self) {
        self.links.clear();
        self.first = None;
        (self.leader, self.lender) = (None, None);
        if let Some(logic) = &mut self.logic {
            logic.part();
        }
    }

    fn closed(&mut self, conn: ConnId) {
        if self.links.remove(&conn).is_none() {
            return;
        }
        let now = self.now_ms();
        if self.first == Some(conn) {
            self.part();
        } else if let Some(logic) = &mut self.logic {
            logic.closed(now, conn);
        }
    }

    /// Journal or disk failed: all is closed, and tried again later.
    fn fail(&mut self, why: &str) {
        self.part();
        *checksums::latest(&self.place.checksums) = None;
        self.logic = None;
        if self.failure.as_deref() != Some(why) {
            self.notice.tell(&format!("this node does not follow any more: {why}"));
        }
        self.failure = Some(why.to_owned());
        self.failed_at = Instant::now();
    }

    fn work(&mut self) -> bool {
        if self.logic.is_none() && self.failed_at.elapsed() >= RETRY {
            match self.open() {
                Ok(logic) => {
                    // Who was met meanwhile has to be met again.
                    self.part();
                    self.logic = Some(logic);
                    self.set_delay();
                    self.look_again();
                    self.failure = None;
                }
                Err(NotOpen::Failed(why)) => self.fail(&why),
                Err(NotOpen::Unproven) => self.fail(UNPROVEN),
            }
        }
        let now = self.now_ms();
        let Some(logic) = &mut self.logic else { return false };
        let worked = logic.work(now);
        let out = logic.outgoing();
        let mut full = Vec::new();
        for send in out {
            let link = self.links.get(&send.conn);
            if link.is_some_and(|link| link.requests.try_send(send.request).is_err()) {
                full.push(send.conn);
            }
        }
        full.into_iter().for_each(|conn| self.closed(conn));
        match worked {
            Ok(more) => more,
            Err(error) => {
                self.fail(&error.to_string());
                false
            }
        }
    }

    fn publish(&mut self) {
        let status = self.logic.as_ref().map(Follower::status);
        let now = Instant::now();
        if let Some(status) = &status {
            self.received.note(now, status.received);
            self.replayed.note(now, status.replayed.0);
            let left = status.fill_left;
            self.fill_bytes = if left == 0 { 0 } else { self.fill_bytes.max(left) };
            self.watch_progress(now, status);
            self.tell_healing(&status.healed);
        }
        let view = FollowView {
            status,
            leader: self.leader,
            lender: self.lender,
            unreached: self.unreached.clone(),
            failure: self.failure.clone(),
            rate: self.received.rate,
            fill_bytes: self.fill_bytes,
            replay_rate: self.replayed.rate,
            spares: self.spares.as_ref().and_then(|seen| seen.borrow().clone()),
            scrub: self.tended.progress(),
            size: self.place.size,
            limit: self.place.journal.size,
        };
        self.tell_unkept(&view);
        self.shown.send_if_modified(|shown| {
            let changed = *shown != view;
            *shown = view;
            changed
        });
    }

    /// Nothing fails silently: who does not get on although he could says so.
    fn watch_progress(&mut self, now: Instant, status: &FollowStatus) {
        let waits = status.follows
            && !status.fetch_paused
            && (status.head > status.fetched || status.fill_left > 0);
        // What comes damaged, again and again, is no progress.
        let came = match status.trouble {
            Some(Trouble::Damaged(_)) => status.fetched.0,
            _ => status.received,
        };
        if !waits || came != self.progress.1 || self.leader.is_none() {
            self.progress = (now, came);
            if std::mem::take(&mut self.stalled) {
                self.notice.tell("fetching goes on");
            }
        } else if !self.stalled && now.duration_since(self.progress.0) >= STALL {
            self.stalled = true;
            let why = match &status.trouble {
                Some(Trouble::NoRoom) => {
                    "the journal of this node is full until more of it is replayed".to_owned()
                }
                Some(Trouble::Damaged(at)) => {
                    format!("what comes for position {at} is damaged")
                }
                Some(Trouble::Refused(_, text)) => text.clone(),
                Some(Trouble::Held | Trouble::Smaller(_)) | None => match &status.healed.unkept {
                    Some(why) => why.clone(),
                    None => "nothing comes although the node that leads is in reach".to_owned(),
                },
            };
            let seconds = STALL.as_secs();
            self.notice.tell(&format!("nothing was fetched for {seconds} seconds: {why}"));
        }
        let refused = |t: &Trouble| matches!(t, Trouble::Refused(..));
        let told = status.trouble.clone().filter(|t| refused(t) && self.lender.is_none());
        if told != self.told {
            if let Some(Trouble::Refused(_, text)) = &told {
                self.notice.tell(&format!("the node that leads refuses this one: {text}"));
            }
            self.told = told;
        }
    }
}

/// The word for a disk that is followed onto.
pub(super) const fn word_of(holding: Holding) -> &'static str {
    match holding {
        Holding::Nothing | Holding::Filling => "Inconsistent",
        // A mixture until its own journal has been replayed as far as it was before.
        Holding::Recovering => "Attaching",
        Holding::StateAt(_) => "UpToDate",
    }
}
