//! One resource on its shard: the core, and what carries out its actions.

mod runner;

use super::catch_up::{JournalRead, read_journal};
use super::disk::DiskDriver;
use super::export::{Topic, allocation, set_bits};
use super::frontend::Frontend;
use super::handle::{CloseError, RenameRefused};
use super::link::{self, Link, LinkOrigin, LinkStream};
use super::meta_io::{MetaDone, MetaIo};
use super::open::{NewPlace, OpenDisk};
use super::stages::{PeerTimes, StageTimes};
use super::thread::Context;
use super::view::{DiskFailure, DiskView, ResourceView};
use super::vitals::{Vitals, VitalsReport};
use super::{ResourceHandle, ResourceSpec};
use crate::events::unix_ms;
use crate::journaled::JournalHandle;
use crate::spares::{MapChanges, RemapAnswer, SparesView};
use bytes::Bytes;
use holdfast_core::{
    Action, Attachment, Command, CommandId, Core, Event, IoFailure, LinkId, Notice, Refusal,
    Snapshot,
};
use holdfast_nbd::{Extent, PeerAddress, Reply, Request, ShutdownHandle, Spinner};
use holdfast_store::{BufferPool, ChecksumHandle, RemapEntry, RemapOp, ReplaceHandle};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, GenerationId, Millis, NodeId, PeerSet, Role,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};

/// Counters in the view are at most so old.
const VIEW_AGE: Duration = Duration::from_millis(100);
/// Commands and links that wait for the resource's task.
const QUEUE: usize = 64;
/// Notices that a slow reader can lag behind.
const NOTICES: usize = 256;
/// How long the core may take to stop, and how long links and disk may take then.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the journal may take to write back. What is left is found at the next start.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a range of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FirstLost {
    /// Where the first block is of which it has no good copy.
    pub(crate) at: Option<u64>,
    /// Whether it has the current data of all others.
    pub(crate) else_good: bool,
}

/// What the control plane sends to a resource.
pub(super) enum ToResource {
    Command(Command, oneshot::Sender<Result<(), Refusal>>),
    Link(NodeId, LinkOrigin, Box<dyn LinkStream>),
    EndConnections,
    PeerNames(BTreeMap<NodeId, String>),
    Rename(String, oneshot::Sender<Result<(), RenameRefused>>),
    Remap(RemapOp, oneshot::Sender<RemapAnswer>),
    RemapEntries {
        skip: usize,
        most: usize,
        done: oneshot::Sender<Vec<RemapEntry>>,
    },
    Refresh(oneshot::Sender<()>),
    Read(ByteRange, oneshot::Sender<Result<Bytes, IoFailure>>),
    FirstLost(ByteRange, oneshot::Sender<FirstLost>),
    /// The backing disk is about to be replaced.
    ForgetHoles(oneshot::Sender<()>),
    /// And its metadata moved.
    HoldMetadata(oneshot::Sender<()>),
    /// It was.
    DiskReplaced(Box<NewPlace>, oneshot::Sender<()>),
    Vitals(oneshot::Sender<VitalsReport>),
    StageTimes(oneshot::Sender<StageTimes>),
    Close(oneshot::Sender<Result<(), CloseError>>),
}

/// A resource, shared by the tasks of its thread. No task keeps it borrowed while it waits.
pub(super) struct Resource {
    inner: RefCell<Inner>,
    /// The time of the next tick was moved forward.
    rearm: Notify,
    /// Something was submitted to a disk with a journal.
    kick: Notify,
    /// Something ended that closing waits for.
    ended: Notify,
}

/// A command under way.
struct Pending {
    done: oneshot::Sender<Result<(), Refusal>>,
    changes: Option<RoleChange>,
    /// The disk was half of one state and half of another when the command came.
    was_inconsistent: bool,
}

/// What a command does to the role, when it succeeds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RoleChange {
    Promotes,
    Demotes,
}

struct Inner {
    name: Arc<str>,
    node: NodeId,
    core: Core,
    /// Of the data, as the journal was told.
    generation: GenerationId,
    began: Instant,
    /// When [`Inner::run`] looked at the clock last.
    clock: Instant,
    events: VecDeque<Event>,
    actions: Vec<Action>,
    /// Events since the last [`Resource::finish`].
    handled: usize,
    spinner: Rc<Spinner>,
    disk: Option<DiskDriver>,
    /// The journal before it.
    journal: Option<JournalHandle>,
    disk_view: Option<DiskView>,
    /// Why the disk is not used any more.
    failure: Option<DiskFailure>,
    /// What the disk went through that is not used any more.
    left: Option<Vitals>,
    /// The task that waits for the disk's completions.
    disk_task: Option<AbortHandle>,
    links: BTreeMap<NodeId, Link>,
    /// How long peers take to answer.
    peer_times: BTreeMap<NodeId, PeerTimes>,
    /// Links whose tasks have not ended; more than `links` while old ones say farewell.
    link_tasks: usize,
    last_link: u64,
    /// Peers that the core wants links to.
    wanted: PeerSet,
    /// Their names, as far as they have been told.
    peer_names: BTreeMap<NodeId, String>,
    frontend: Frontend,
    connections: BTreeMap<u64, (PeerAddress, ShutdownHandle)>,
    last_connection: u64,
    pending: BTreeMap<CommandId, Pending>,
    /// Roles changed, and the journal is to be told before the command is answered.
    journal_orders: Option<mpsc::UnboundedSender<JournalOrder>>,
    /// The journal is to be read for a peer.
    journal_reads: Option<mpsc::UnboundedSender<JournalRead>>,
    last_command: u64,
    /// The last promotion is done, durably.
    promoted: bool,
    /// When that was, in milliseconds since 1970.
    changes_since: u64,
    role: Role,
    disk_state: DiskState,
    stopped: bool,
    /// What the view shows has changed: states, or counters.
    changed: bool,
    moved: bool,
    published: Instant,
    /// When the timer task will wake.
    armed: Option<Instant>,
    view: watch::Sender<Arc<ResourceView>>,
    wanted_links: watch::Sender<PeerSet>,
    notices: broadcast::Sender<Notice>,
}

/// What a journal is told when a role has changed.
struct JournalOrder {
    journal: JournalHandle,
    change: RoleChange,
    generation: GenerationId,
    /// The disk does not have everything, or did not before a person said that it has: what the
    /// journal holds is not what it lacks.
    anew: bool,
    /// Who gave the command that changed the role.
    done: Option<oneshot::Sender<Result<(), Refusal>>>,
}

/// Starts a resource on the calling thread. The handle is its only owner outside.
pub(super) fn start(
    spec: ResourceSpec,
    disk: Option<OpenDisk>,
    context: &Context,
) -> io::Result<ResourceHandle> {
    let (commands, queue) = mpsc::channel(QUEUE);
    let (notices, _) = broadcast::channel(NOTICES);
    let (wanted_links, wanted) = watch::channel(PeerSet::EMPTY);
    let name: Arc<str> = spec.name.clone().into();
    let node = spec.config.node;
    let core = Core::new(spec.config);
    let mut parts = match disk {
        Some(disk) => Some(DiskParts::of(disk)?),
        None => None,
    };
    let disk_view = parts.as_ref().map(|parts| parts.view.clone());
    let (view, seen) = watch::channel(Arc::new(ResourceView {
        name: spec.name,
        snapshot: core.snapshot(),
        exported: false,
        open_count: 0,
        openers: Vec::new(),
        disk: disk_view.clone(),
        spares: parts.as_ref().and_then(|parts| parts.driver.spares()),
        failure: None,
        reads: 0,
        read_bytes: 0,
        writes: 0,
        written_bytes: 0,
        flushes: 0,
        under_way: 0,
        oldest: None,
    }));
    let now = Instant::now();
    let (journal_orders, orders) = match parts.as_ref().and_then(|parts| parts.journal.as_ref()) {
        // Bounded by the commands that are under way.
        Some(_) => {
            let (sender, receiver) = mpsc::unbounded_channel();
            (Some(sender), Some(receiver))
        }
        None => (None, None),
    };
    let (journal_reads, reads) = mpsc::unbounded_channel();
    let journal_reads = Some(journal_reads);
    let map_changes = parts.as_mut().map(|parts| Arc::clone(&parts.map_changes));
    let map_changes = map_changes.unwrap_or_else(|| Arc::new(MapChanges::none()));
    let attachment = parts.as_mut().and_then(|parts| parts.attachment.take());
    let journal = parts.as_ref().and_then(|parts| parts.journal.clone());
    let replace = parts.as_ref().map(|parts| parts.replace.clone());
    let checksums = parts.as_ref().map(|parts| parts.checksums.clone());
    let in_call = parts.as_mut().map(|parts| parts.driver.vitals().in_call());
    let (driver, completions) = match parts {
        Some(parts) => (Some(parts.driver), Some((parts.ready, parts.meta_ends))),
        None => (None, None),
    };
    let resource = Rc::new(Resource {
        inner: RefCell::new(Inner {
            name: Arc::clone(&name),
            node,
            generation: core.generation(),
            core,
            began: now,
            clock: now,
            events: VecDeque::new(),
            actions: Vec::new(),
            handled: 0,
            spinner: Rc::clone(&context.spinner),
            disk: driver,
            journal: journal.clone(),
            disk_view,
            failure: None,
            left: None,
            disk_task: None,
            links: BTreeMap::new(),
            peer_times: BTreeMap::new(),
            link_tasks: 0,
            last_link: 0,
            wanted: PeerSet::EMPTY,
            peer_names: BTreeMap::new(),
            frontend: Frontend::new(spec.limits, context.pool.clone()),
            connections: BTreeMap::new(),
            last_connection: 0,
            pending: BTreeMap::new(),
            journal_orders,
            journal_reads,
            last_command: 0,
            promoted: false,
            changes_since: 0,
            role: Role::Secondary,
            disk_state: DiskState::Diskless,
            stopped: false,
            changed: true,
            moved: false,
            published: now,
            armed: None,
            view,
            wanted_links,
            notices: notices.clone(),
        }),
        rearm: Notify::new(),
        kick: Notify::new(),
        ended: Notify::new(),
    });
    if let Some((ready, meta_ends)) = completions {
        let task = spawn_local(drive_disk(Rc::clone(&resource), ready));
        resource.inner.borrow_mut().disk_task = Some(task.abort_handle());
        spawn_local(drive_metadata(Rc::clone(&resource), meta_ends));
    }
    if let Some(journal) = journal.clone() {
        spawn_local(read_journal(Rc::clone(&resource), journal, reads));
    }
    if let Some(orders) = orders {
        spawn_local(keep_journal(Rc::clone(&resource), orders));
        spawn_local(kick_journal(Rc::clone(&resource)));
    }
    spawn_local(keep_time(Rc::clone(&resource)));
    resource.feed(attachment.map_or(Event::Tick, |found| Event::Attach(Box::new(found))));
    resource.finish();
    context.registry.insert(&name, &resource);
    let registry = Rc::clone(&context.registry);
    let runner = runner::Runner { resource, registry, pool: context.pool.clone() };
    spawn_local(runner.run(queue));
    Ok(ResourceHandle {
        commands,
        view: seen,
        wanted,
        notices,
        journal,
        checksums,
        map_changes,
        replace,
        in_call,
    })
}

/// An open disk, taken apart for the tasks that drive it.
struct DiskParts {
    driver: DiskDriver,
    ready: AsyncFd<OwnedFd>,
    meta_ends: UnboundedReceiver<MetaDone>,
    attachment: Option<Attachment>,
    view: DiskView,
    journal: Option<JournalHandle>,
    replace: ReplaceHandle,
    map_changes: Arc<MapChanges>,
    checksums: ChecksumHandle,
}

impl DiskParts {
    fn of(disk: OpenDisk) -> io::Result<Self> {
        let ready = readable(disk.disk.event_fd().try_clone_to_owned()?)?;
        let (meta, meta_ends) = MetaIo::start(disk.meta)?;
        let mut driver = DiskDriver::new(disk.disk, meta, disk.probe, &disk.view);
        driver.has_journal(disk.journal.clone());
        let OpenDisk { attachment, view, journal, map_changes, checksums, replace, .. } = disk;
        let (attachment, map_changes) = (Some(attachment), Arc::new(map_changes));
        Ok(Self {
            driver,
            ready,
            meta_ends,
            attachment,
            view,
            journal,
            map_changes,
            checksums,
            replace,
        })
    }
}

/// Registers a descriptor with the runtime.
#[allow(unsafe_code)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps one and the same descriptor open until it is dropped, which the
    // `AsyncFd` does after it has taken it out of the event queue.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Takes the disk's completions until the disk is closed.
async fn drive_disk(resource: Rc<Resource>, ready: AsyncFd<OwnedFd>) {
    while let Ok(mut guard) = ready.readable().await {
        guard.clear_ready();
        resource.collect_disk();
        resource.finish();
    }
}

/// Gives a journal what was submitted, when all that is ready to run has submitted: many writes
/// become one frame.
async fn kick_journal(resource: Rc<Resource>) {
    while !resource.inner.borrow().is_closed() {
        resource.kick.notified().await;
        resource.kick_journal();
        resource.finish();
    }
}

/// Takes the ends of metadata writes until the metadata are closed.
async fn drive_metadata(resource: Rc<Resource>, mut ends: UnboundedReceiver<MetaDone>) {
    while let Some(done) = ends.recv().await {
        resource.metadata_ended(done);
        resource.finish();
    }
}

/// Tells the journal of roles, until the resource is closed. Each order is on its way before the
/// next one is looked at, so the last one counts.
async fn keep_journal(resource: Rc<Resource>, mut orders: UnboundedReceiver<JournalOrder>) {
    while let Some(order) = orders.recv().await {
        let resource = Rc::clone(&resource);
        spawn_local(async move {
            let JournalOrder { journal, change, generation, anew, done } = order;
            let told = match change {
                RoleChange::Promotes if anew => journal.lead_anew(generation).await,
                RoleChange::Promotes => journal.lead(generation).await,
                RoleChange::Demotes => journal.settle().await,
            };
            if let Err(error) = told {
                // The disk says what is wrong when it is used. A closed journal is no news: the
                // resource is being stopped.
                tracing::debug!(resource = %resource.inner.borrow().name, "{error}");
            }
            if let Some(done) = done {
                resource.inner.borrow_mut().role_changed(Some(change), done, Ok(()));
                resource.finish();
            }
        });
    }
}

/// Ticks when the core wants it, and when the view is due.
async fn keep_time(resource: Rc<Resource>) {
    loop {
        let at = resource.inner.borrow().armed;
        match at {
            Some(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => resource.tick(),
                    () = resource.rearm.notified() => {}
                }
            }
            None => resource.rearm.notified().await,
        }
        if resource.inner.borrow().is_closed() {
            return;
        }
    }
}

impl Resource {
    /// Takes an event, and carries out what follows at once, apart from sending and the disk.
    /// [`Self::finish`] must follow when the caller has no more events for the moment.
    pub(super) fn feed(&self, event: Event) {
        self.inner.borrow_mut().feed(event);
    }

    /// Does what is done once for many events: sends, gives operations to the disk, publishes the
    /// view, sets the timer.
    pub(super) fn finish(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.finish();
        let over = inner.stopped || inner.disk.is_none();
        // At the end, so that the timer task sees it.
        let closed = inner.is_closed();
        let rearm = inner.rearm() || closed;
        let kick = inner.disk.as_ref().is_some_and(DiskDriver::wants_journal) || closed;
        drop(inner);
        if kick {
            self.kick.notify_one();
        }
        if rearm {
            self.rearm.notify_one();
        }
        if over {
            self.ended.notify_one();
        }
    }

    fn tick(&self) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.armed = None;
            let now = inner.now();
            if inner.core.deadline().is_some_and(|at| at <= now) {
                inner.feed(Event::Tick);
            }
        }
        self.finish();
    }

    fn kick_journal(&self) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        if let Some(disk) = &mut inner.disk {
            disk.kick_journal(&mut inner.events);
        }
        inner.run();
    }

    fn collect_disk(&self) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        if let Some(disk) = &mut inner.disk {
            disk.collect(&mut inner.events);
        }
        inner.run();
    }

    fn metadata_ended(&self, done: MetaDone) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        if let Some(disk) = &mut inner.disk {
            disk.meta_ended(done, &mut inner.events);
        }
        inner.run();
    }

    /// A request of an NBD client.
    pub(super) fn request(&self, request: Request, reply: Reply) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let now = Instant::now();
        inner.frontend.submit(request, reply, now, &mut inner.events);
        inner.run_at(now);
    }

    /// Reads whole blocks as a client would.
    fn read(&self, range: ByteRange, done: oneshot::Sender<Result<Bytes, IoFailure>>) {
        {
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            inner.frontend.read(range, done, &mut inner.events);
            inner.run_at(Instant::now());
        }
        self.finish();
    }

    /// What is known of a range of the disk here.
    fn first_lost(&self, range: ByteRange) -> FirstLost {
        let inner = self.inner.borrow();
        let (list, blocks) = (inner.core.unreadable(), range.blocks());
        let first = [&list.old, &list.unread].into_iter().filter_map(|b| b.next_set(blocks.start));
        let first = first.min().filter(|block| blocks.contains(block));
        FirstLost {
            at: first.map(|block| block * BLOCK_SIZE),
            else_good: inner.disk_state == DiskState::UpToDate,
        }
    }

    /// What is to be told of a range: at least one extent from its start on.
    pub(super) fn extents(&self, topic: Topic, range: ByteRange) -> Vec<Extent> {
        let inner = self.inner.borrow();
        let good_disk = || inner.disk.as_ref().filter(|_| inner.disk_state == DiskState::UpToDate);
        let told = match topic {
            // A block without a good copy may lie in a hole: who takes that for zeroes does not read it.
            Topic::Allocation => {
                let list = inner.core.unreadable();
                let listed = [&list.old, &list.unread].map(|bits| bits.count_range(blocks(range)));
                Some(match listed {
                    [0, 0] => allocation(range, good_disk()),
                    _ => vec![Extent::data(range.len)],
                })
            }
            Topic::Changed => inner.frontend.changes().map(|changes| changes.extents(range)),
            Topic::OutOfSync(peer) => {
                inner.core.out_of_sync(peer).map(|bits| set_bits(range, bits))
            }
        };
        // A peer that has just left: who asks must not take its copy for a good one.
        told.unwrap_or_else(|| vec![Extent::dirty(range.len, true)])
    }

    /// Since when it is remembered what clients change, in milliseconds since 1970.
    pub(super) fn changes_since(&self) -> Option<u64> {
        let inner = self.inner.borrow();
        inner.frontend.changes().map(|_| inner.changes_since)
    }

    /// The peers with a disk whose names are known.
    pub(super) fn peer_names(&self) -> Vec<(NodeId, String)> {
        let inner = self.inner.borrow();
        let with_disk =
            inner.peer_names.iter().filter(|(peer, _)| inner.core.out_of_sync(**peer).is_some());
        with_disk.map(|(peer, name)| (*peer, name.clone())).collect()
    }

    /// The task of a link has ended.
    pub(super) fn link_ended(&self, peer: NodeId, id: LinkId) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.link_tasks -= 1;
            if inner.links.get(&peer).is_some_and(|link| link.id == id) {
                inner.links.remove(&peer);
            }
            inner.feed(Event::PeerDown(peer, id));
            inner.publish_wanted();
        }
        self.finish();
        self.ended.notify_one();
    }

    /// Takes a link over, unless a better one stands.
    fn add_link(
        self: &Rc<Self>,
        peer: NodeId,
        origin: LinkOrigin,
        mut stream: Box<dyn LinkStream>,
        pool: &BufferPool,
    ) {
        let mut inner = self.inner.borrow_mut();
        let preferred = origin.is_preferred(inner.node, peer);
        if inner.links.get(&peer).is_some_and(|link| link.preferred && !preferred) {
            return;
        }
        if let Err(error) = stream.move_here() {
            tracing::warn!(%peer, %error, "a link was lost before it began");
            return;
        }
        inner.last_link += 1;
        let id = LinkId(inner.last_link);
        let (link, task) = link::start(self, peer, id, preferred, stream, pool.clone());
        if let Some(old) = inner.links.insert(peer, link) {
            old.abort();
        }
        inner.link_tasks += 1;
        spawn_local(task);
        inner.feed(Event::PeerUp(peer, id));
        inner.publish_wanted();
        drop(inner);
        self.finish();
    }

    fn command(&self, command: Command, done: oneshot::Sender<Result<(), Refusal>>) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.last_command += 1;
            let id = CommandId(inner.last_command);
            let changes = match command {
                Command::Promote { .. } => Some(RoleChange::Promotes),
                Command::Demote { .. } => Some(RoleChange::Demotes),
                _ => None,
            };
            if let Command::Grow { size, disk_ready: true } = command {
                inner.disk_has_grown(size);
            }
            let was_inconsistent = inner.disk_state == DiskState::Inconsistent;
            inner.pending.insert(id, Pending { done, changes, was_inconsistent });
            inner.feed(Event::Command(id, command));
        }
        self.finish();
    }

    fn remap(&self, what: RemapOp, done: oneshot::Sender<RemapAnswer>) {
        {
            let mut inner = self.inner.borrow_mut();
            // What it does shows in the view.
            inner.moved = true;
            // Without a disk the answer is that there is none.
            if let Some(disk) = &mut inner.disk {
                disk.remap(what, done);
            }
        }
        self.finish();
    }

    /// Whether clients may open the export.
    pub(super) fn is_exported(&self) -> bool {
        self.inner.borrow().is_exported()
    }

    /// The export's size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.inner.borrow().view.borrow().snapshot.size
    }

    /// Counts a connection that has the export open; its number.
    pub(super) fn connection_opened(&self, client: PeerAddress, end: ShutdownHandle) -> u64 {
        let number = {
            let mut inner = self.inner.borrow_mut();
            inner.last_connection += 1;
            let number = inner.last_connection;
            inner.connections.insert(number, (client, end));
            inner.changed = true;
            number
        };
        self.finish();
        number
    }

    pub(super) fn connection_closed(&self, number: u64) {
        {
            let mut inner = self.inner.borrow_mut();
            inner.connections.remove(&number);
            inner.changed = true;
        }
        self.finish();
    }
}

impl Inner {
    fn now(&self) -> Millis {
        self.millis_at(Instant::now())
    }

    fn millis_at(&self, now: Instant) -> Millis {
        let passed = now.saturating_duration_since(self.began).as_millis();
        Millis(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        self.run();
    }

    /// Runs the core until no event is left.
    fn run(&mut self) {
        if !self.events.is_empty() {
            self.run_at(Instant::now());
        }
    }

    /// The same for who has just looked at the clock.
    fn run_at(&mut self, clock: Instant) {
        if self.events.is_empty() {
            return;
        }
        self.clock = clock;
        let now = self.millis_at(clock);
        self.moved = true;
        while let Some(event) = self.events.pop_front() {
            self.handled += 1;
            self.time_peer(&event);
            let mut actions = std::mem::take(&mut self.actions);
            self.core.on(now, event, &mut actions);
            self.mark_generation();
            for action in actions.drain(..) {
                self.act(action);
            }
            self.actions = actions;
        }
    }

    /// A member that was lost misses what is written from now on: that is in segments of their own, so
    /// that nobody takes it for data which that member has, too. To be told before any of it is written.
    fn mark_generation(&mut self) {
        let generation = self.core.generation();
        let before = std::mem::replace(&mut self.generation, generation);
        if let Some(journal) = self.journal.as_ref().filter(|_| before != generation) {
            journal.begin_generation(generation);
        }
    }

    /// Looks at an event for how long a peer took.
    fn time_peer(&mut self, event: &Event) {
        match event {
            Event::PeerMessage(peer, _, message) => {
                if let Some(times) = self.peer_times.get_mut(peer) {
                    times.came(message, self.clock);
                }
            }
            Event::PeerUp(peer, _) => self.peer_times.entry(*peer).or_default().forget_unanswered(),
            Event::Command(_, Command::RemovePeer { peer }) => {
                self.peer_times.remove(peer);
            }
            _ => {}
        }
    }

    /// How long the stages of requests took.
    fn stage_times(&self) -> StageTimes {
        let disk = self.disk.as_ref().map(DiskDriver::spreads);
        let peers = self.peer_times.iter().map(|(peer, times)| (*peer, times.spreads()));
        StageTimes { client: self.frontend.spreads(), disk, peers: peers.collect() }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Complete(id, result) => {
                self.frontend.complete(id, result, self.clock, &mut self.events);
            }
            Action::Send(peer, id, message) => {
                if let Some(link) = self.links.get(&peer).filter(|link| link.id == id) {
                    if let Some(times) = self.peer_times.get_mut(&peer) {
                        times.sent(&message, self.clock);
                    }
                    link.send(&message);
                }
            }
            Action::DiskRead { op, range, holes } => match &mut self.disk {
                Some(disk) => disk.read(op, range, holes, &mut self.events),
                None => self.events.push_back(no_disk(op)),
            },
            Action::DiskWrite { op, range, data, fua } => match &mut self.disk {
                Some(disk) => disk.write(op, range, data, fua),
                None => self.events.push_back(no_disk(op)),
            },
            Action::DiskZeroes { op, range, fua } => match &mut self.disk {
                Some(disk) => disk.zeroes(op, range, fua),
                None => self.events.push_back(no_disk(op)),
            },
            Action::DiskFlush { op } => match &mut self.disk {
                Some(disk) => disk.flush(op),
                None => self.events.push_back(no_disk(op)),
            },
            Action::DiskRepair { op, range, data, salvaged } => match &mut self.disk {
                Some(disk) if salvaged => disk.restore(op, range, data, &mut self.events),
                Some(disk) => disk.repair(op, range, data, &mut self.events),
                None => self.events.push_back(no_disk(op)),
            },
            Action::DiskMarkLost { op, range, unread } => match &mut self.disk {
                Some(disk) => disk.mark_lost(op, range, unread, &mut self.events),
                None => self.events.push_back(no_disk(op)),
            },
            Action::ReadJournal { id, from, bytes } => {
                let asked = self
                    .journal_reads
                    .as_ref()
                    .map(|reads| reads.send(JournalRead { id, from, bytes }));
                if !matches!(asked, Some(Ok(()))) {
                    let gone = Err(holdfast_core::IoFailure::NoData);
                    self.events.push_back(Event::JournalRead(id, gone));
                }
            }
            Action::MetaWrite { op, blocks } => match &mut self.disk {
                Some(disk) => disk.write_meta(op, blocks, &mut self.events),
                None => {
                    let failure = Err(holdfast_core::IoFailure::Disk);
                    self.events.push_back(Event::MetaDone(op, failure));
                }
            },
            Action::DiskHung => {
                if let Some(disk) = &mut self.disk {
                    disk.is_hung();
                }
            }
            Action::CloseDisk => {
                if let Some(disk) = &mut self.disk {
                    disk.close();
                }
            }
            Action::Connect(peer) => {
                self.wanted.insert(peer);
                self.publish_wanted();
            }
            Action::Disconnect(peer, id) => {
                self.wanted.remove(peer);
                let link = self.links.get(&peer).filter(|link| Some(link.id) == id);
                link.into_iter().for_each(Link::close);
                self.publish_wanted();
            }
            Action::Reset(peer, id) => {
                let link = self.links.get(&peer).filter(|link| link.id == id);
                link.into_iter().for_each(Link::abort);
            }
            Action::CommandDone(id, result) => self.command_done(id, result),
            Action::StateChanged => self.state_changed(),
            Action::Notice(notice) => {
                tracing::debug!(resource = %self.name, ?notice, "the replication core reports");
                // Nobody may be listening.
                let _ = self.notices.send(notice);
            }
            Action::Stopped => {
                self.stopped = true;
                self.state_changed();
            }
        }
    }

    fn command_done(&mut self, id: CommandId, result: Result<(), Refusal>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        let journal = self.journal.clone().filter(|_| self.disk.is_some());
        if let (Ok(()), Some(change), Some(journal)) = (&result, pending.changes, journal) {
            // The journal goes first: no write comes before its mode fits the role.
            self.state_changed();
            let Snapshot { generation, disk, .. } = self.core.snapshot();
            let anew = pending.was_inconsistent || disk != DiskState::UpToDate;
            let done = Some(pending.done);
            self.order_journal(JournalOrder { journal, change, generation, anew, done });
            return;
        }
        self.role_changed(pending.changes, pending.done, result);
    }

    fn order_journal(&self, order: JournalOrder) {
        // Without a task it is being closed: who asked hears that when the order is dropped.
        if let Some(orders) = &self.journal_orders {
            let _ = orders.send(order);
        }
    }

    /// A command has ended, and the journal, if there is one, is as the role wants it.
    fn role_changed(
        &mut self,
        change: Option<RoleChange>,
        done: oneshot::Sender<Result<(), Refusal>>,
        result: Result<(), Refusal>,
    ) {
        self.state_changed();
        if change == Some(RoleChange::Promotes) && result.is_ok() && self.role == Role::Primary {
            if !self.promoted {
                self.frontend.track_changes(self.core.snapshot().size);
                self.changes_since = unix_ms();
            }
            self.promoted = true;
        }
        // Who gave the command sees its effect in the view.
        self.publish();
        // Who asked may have lost patience.
        let _ = done.send(result);
    }

    /// Who gives the core a larger size has made sure that the disk has it.
    fn disk_has_grown(&mut self, size: u64) {
        if let Some(disk) = &mut self.disk {
            disk.grown_to(size);
        }
        if let Some(view) = &mut self.disk_view {
            view.size = view.size.max(size);
        }
    }

    /// Looks at what changed, for what depends on it here.
    fn state_changed(&mut self) {
        self.changed = true;
        let Snapshot { role, disk, size, .. } = self.core.snapshot();
        self.disk_state = disk;
        self.frontend.grown_to(size);
        if self.role == Role::Primary && role != Role::Primary {
            self.promoted = false;
            self.end_connections();
            if let Some(journal) = self.journal.clone().filter(|_| self.disk.is_some()) {
                let (change, generation) = (RoleChange::Demotes, GenerationId::NONE);
                let (anew, done) = (false, None);
                self.order_journal(JournalOrder { journal, change, generation, anew, done });
            }
        }
        self.role = role;
    }

    fn is_exported(&self) -> bool {
        self.promoted && self.role == Role::Primary && !self.stopped
    }

    fn openers(&self) -> Vec<PeerAddress> {
        let clients = self.connections.values().map(|(client, _)| *client);
        clients.take(ResourceView::OPENERS).collect()
    }

    fn end_connections(&self) {
        self.connections.values().for_each(|(_, end)| end.request());
    }

    fn finish(&mut self) {
        // Peers first: they work on what they are sent while this node's disk does.
        loop {
            self.links.values().for_each(Link::flush);
            let Some(disk) = &mut self.disk else { break };
            disk.submit_waiting(&mut self.events);
            if self.events.is_empty() {
                break;
            }
            self.run();
        }
        self.spinner.note(std::mem::take(&mut self.handled));
        if let Some(disk) = &mut self.disk {
            disk.kick();
            if self.failure.is_none()
                && let Some(failure) = disk.failure()
            {
                self.failure = Some(failure.clone());
                self.changed = true;
            }
            if disk.is_done()
                && let Some(disk) = self.disk.take()
            {
                self.left = Some(disk.release());
                self.disk_task.take().iter().for_each(AbortHandle::abort);
                self.disk_view = None;
                self.changed = true;
            }
        }
        for link in self.links.values() {
            link.unthrottle();
        }
        if self.changed || (self.moved && self.published.elapsed() >= VIEW_AGE) {
            self.publish();
        }
    }

    fn disk_replaced(&mut self, place: NewPlace) {
        if let Some(disk) = &mut self.disk {
            self.disk_view = Some(disk.replaced(place, &mut self.events));
            self.publish();
        }
        self.run();
    }

    /// Hands over what the disk has gone through since the last time.
    fn tell_vitals(&mut self, done: oneshot::Sender<VitalsReport>) {
        let vitals = self.disk.as_mut().map(DiskDriver::vitals).or(self.left.as_mut());
        let Some(vitals) = vitals else { return };
        if let Err(unheard) = done.send(vitals.take(Instant::now())) {
            vitals.put_back(unheard);
        }
    }

    fn publish(&mut self) {
        self.changed = false;
        self.moved = false;
        self.published = Instant::now();
        let stats = self.frontend.stats();
        let view = ResourceView {
            name: self.name.to_string(),
            snapshot: self.core.snapshot(),
            exported: self.is_exported(),
            open_count: self.connections.len(),
            openers: self.openers(),
            disk: self.disk_view.clone(),
            spares: self.spares(),
            failure: self.failure.clone(),
            reads: stats.reads,
            read_bytes: stats.read_bytes,
            writes: stats.writes,
            written_bytes: stats.written_bytes,
            flushes: stats.flushes,
            under_way: self.frontend.under_way(),
            oldest: self.frontend.oldest(),
        };
        self.view.send_if_modified(|seen| {
            let differs = **seen != view;
            if differs {
                *seen = Arc::new(view);
            }
            differs
        });
    }

    /// How the spares of the disk are: a journal has the disk that they belong to.
    fn spares(&self) -> Option<SparesView> {
        let disk = self.disk.as_ref()?;
        match &self.journal {
            Some(journal) => journal.view().spares,
            None => disk.spares(),
        }
    }

    /// Tells to which peers a link is wanted and missing.
    fn publish_wanted(&self) {
        let linked: PeerSet = self.links.keys().copied().collect();
        let missing = self.wanted.difference(linked);
        self.wanted_links.send_if_modified(|seen| {
            let differs = *seen != missing;
            *seen = missing;
            differs
        });
    }

    /// Sets the time of the next tick. Whether the timer task must be told; it need not when it
    /// wakes too early.
    fn rearm(&mut self) -> bool {
        let deadline = self.core.deadline();
        let tick = deadline.and_then(|at| self.began.checked_add(Duration::from_millis(at.0)));
        let view = self.moved.then(|| self.published + VIEW_AGE);
        let Some(next) = [tick, view].into_iter().flatten().min() else { return false };
        let sooner = self.armed.is_none_or(|armed| next < armed);
        if sooner {
            self.armed = Some(next);
        }
        sooner
    }

    fn is_closed(&self) -> bool {
        self.stopped && self.disk.is_none() && self.link_tasks == 0
    }
}

fn no_disk(op: holdfast_core::DiskOpId) -> Event {
    Event::DiskDone(op, Err(holdfast_core::IoFailure::Disk))
}

/// The blocks that a range touches.
const fn blocks(range: ByteRange) -> Range<u64> {
    range.offset / BLOCK_SIZE..range.end().div_ceil(BLOCK_SIZE)
}
