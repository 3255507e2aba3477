//! A resource that this node is a member of: what is kept of it, and its core while it is up.

use crate::checksums;
use crate::comeback;
use crate::commands::device;
use crate::dial;
use crate::disk::room;
use crate::growth;
use crate::health::{self, Health};
use crate::keeper;
use crate::local::{Local, LocalDisk, LocalJournal};
use crate::logpeer::{self, Claims, Following, Serving, SteppedBack};
use crate::node::{Node, PeerMember};
use crate::rate::RateMeter;
use crate::replacing::{self, Replacing};
use crate::resyncs::{self, Turn};
use crate::shard::{
    DiskSpec, Limits, OpenError, PastHandle, ResourceHandle, ResourceSpec, ResourceView,
};
use crate::space::Space;
use crate::spares::tell_map;
use crate::survey::{self, Surveyed, Surveys};
use crate::task::Task;
use crate::{refuse, remote};
use holdfast_api::error::without_numbers;
use holdfast_api::options::{OptionMap, Settings as OptionSettings};
use holdfast_api::status::{ArchiveStatus, PeerProblem};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::{Config, Options, PeerConfig};
use holdfast_device::{LocalDevice, NbdBackend};
use holdfast_store::SpareFill;
use holdfast_units::{NodeId, ResourceId};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// How long a command waits for the one before it on the same resource.
const COMMAND_WAIT: Duration = Duration::from_secs(10);

/// A resource that this node is a member of.
pub(crate) struct Resource {
    pub(crate) id: ResourceId,
    /// Held by the one command that changes the resource at a time.
    command: tokio::sync::Mutex<()>,
    /// Held while disk and metadata are made ready for a larger size, until the core has taken it.
    pub(crate) growth: Arc<tokio::sync::Mutex<()>>,
    /// The largest size that its core has, or is just being given: nothing is written behind it.
    pub(crate) most: Arc<AtomicU64>,
    state: Mutex<State>,
    /// Asks for the next attempt to make a link to be made at once.
    pub(crate) dial_now: Notify,
    /// Counts changes, for those who wait for something.
    changes: watch::Sender<u64>,
}

/// What changes of a resource.
pub(crate) struct State {
    /// What survives a restart; always as in the state directory.
    pub(crate) local: Local,
    /// While it is up.
    pub(crate) running: Option<Running>,
    /// While this node follows the journal of another one.
    pub(crate) following: Option<Arc<Following>>,
    /// Its disk as an export, while it is shown although this node follows.
    pub(crate) past: Option<Arc<PastHandle>>,
    /// What this node does for those who follow it.
    pub(crate) serving: Option<Arc<Serving>>,
    /// It is about to be Primary.
    pub(crate) claims: Option<Claims>,
    /// It stepped back for another node.
    pub(crate) stepped_back: Option<SteppedBack>,
    /// Who wanted to lead does not any more, so it is not to step back for him.
    pub(crate) recalled: bool,
    /// It could not begin to follow, and does not try before then.
    pub(crate) follow_after: Option<Instant>,
    /// How often it was started.
    pub(crate) starts: u64,
    /// Why the disk is not in use although it should be.
    pub(crate) trouble: Option<String>,
    /// The local block device.
    pub(crate) device: Option<Device>,
    /// There is a device that an earlier run of the daemon left: its I/O waits until this node is
    /// Primary again, and fails when it is not by then.
    pub(crate) device_waits: Option<Instant>,
    /// How fast resyncs go.
    pub(crate) rates: BTreeMap<NodeId, RateMeter>,
    /// Why peers are not connected, as far as the core has told.
    pub(crate) problems: BTreeMap<NodeId, Problem>,
    /// Members that lead, or keep data of their own, apart from this node.
    pub(crate) apart: BTreeMap<NodeId, PeerProblem>,
    /// Members that the core was not told of, for want of room in the metadata, and that in words.
    pub(crate) no_room: BTreeMap<NodeId, String>,
    /// How large a resource its disk has room for, in bytes, as far as that is known.
    pub(crate) room: Option<u64>,
    /// Whether its resync waits for its turn.
    pub(crate) turn: Turn,
    /// Why it has not the name yet that the cluster knows it by.
    pub(crate) rename_trouble: Option<String>,
    /// Why it has not the size that its members agreed on.
    pub(crate) growth_trouble: Option<String>,
    /// How much room the journal has.
    pub(crate) space: Space,
    /// How full the spares of the disk were when that was last told.
    pub(crate) spare_fill: Option<SpareFill>,
    /// How far the followers had fetched when that was last looked at, while writes may be slowed
    /// down.
    pub(crate) fetched: Option<(Instant, BTreeMap<u8, u64>)>,
    /// Its data are being moved to another disk, or that has failed.
    pub(crate) replacing: Option<Replacing>,
    /// How the archive stands, while this node writes to it.
    pub(crate) archive: Option<ArchiveStatus>,
    /// What is compared and read through.
    pub(crate) surveys: Surveys,
    /// How the disk is.
    pub(crate) health: Health,
}

/// Why a peer is not connected.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) what: PeerProblem,
    /// The connection that it ended was seen to be gone.
    pub(crate) seen_apart: bool,
}

/// The local block device of a resource.
#[derive(Clone)]
pub(crate) struct Device {
    pub(crate) path: String,
    pub(crate) kind: &'static str,
    /// Why in this way.
    pub(crate) reason: String,
    /// `None` while it is being taken away.
    pub(crate) device: Arc<Mutex<Option<LocalDevice>>>,
    /// What it is made over.
    pub(crate) backend: Arc<NbdBackend>,
    /// Who had it open a moment ago.
    pub(crate) openers: Vec<String>,
    /// The size that it was given last since it was made, in bytes.
    pub(crate) size: u64,
    /// Why it did not take that size.
    pub(crate) kept_size: Option<String>,
}

/// The core of a resource and what serves it.
pub(crate) struct Running {
    pub(crate) handle: ResourceHandle,
    /// They end when this is dropped.
    _tasks: [Task; 7],
}

/// What a resource is started with, from records and local state.
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) peers: BTreeMap<NodeId, PeerMember>,
    pub(crate) limits: Limits,
}

impl Resource {
    pub(crate) fn new(local: Local) -> Arc<Self> {
        let state = State {
            local,
            running: None,
            following: None,
            past: None,
            serving: None,
            claims: None,
            stepped_back: None,
            recalled: false,
            follow_after: None,
            starts: 0,
            trouble: None,
            device: None,
            device_waits: None,
            rates: BTreeMap::new(),
            problems: BTreeMap::new(),
            apart: BTreeMap::new(),
            no_room: BTreeMap::new(),
            room: None,
            turn: Turn::Now,
            rename_trouble: None,
            growth_trouble: None,
            space: Space::default(),
            spare_fill: None,
            fetched: None,
            replacing: None,
            archive: None,
            surveys: Surveys::default(),
            health: Health::default(),
        };
        let id = state.local.id;
        let (changes, _) = watch::channel(0);
        let command = tokio::sync::Mutex::default();
        let dial_now = Notify::new();
        let (growth, most) = (Arc::default(), Arc::default());
        Arc::new(Self { id, command, growth, most, state: Mutex::new(state), dial_now, changes })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub(crate) fn name(&self) -> String {
        self.state().local.name.clone()
    }

    /// A copy of what survives a restart.
    pub(crate) fn local(&self) -> Local {
        self.state().local.clone()
    }

    /// Its core, while it is up.
    pub(crate) fn handle(&self) -> Option<ResourceHandle> {
        self.state().running.as_ref().map(|running| running.handle.clone())
    }

    /// What follows the journal of another node, while it does.
    pub(crate) fn following(&self) -> Option<Arc<Following>> {
        self.state().following.clone()
    }

    /// Whether it is up.
    pub(crate) fn is_up(&self) -> bool {
        let state = self.state();
        state.running.is_some() || state.following.is_some()
    }

    /// How it is, while it is up.
    pub(crate) fn view(&self) -> Option<Arc<ResourceView>> {
        self.handle().map(|handle| handle.snapshot())
    }

    /// Its core.
    ///
    /// # Errors
    /// `RESOURCE_DOWN`.
    pub(crate) fn need_handle(&self) -> Result<ResourceHandle, ApiError> {
        self.handle().ok_or_else(|| {
            let name = self.name();
            if self.following().is_some() {
                let why = "this node follows the journal of another one";
                let message = format!("the command was refused for {name}: {why}");
                return ApiError::new(ErrorCode::Follows, message).hint(format!(
                    "run it on the Primary, or make this node Primary: `holdfast primary {name}`"
                ));
            }
            ApiError::new(
                ErrorCode::ResourceDown,
                format!("resource {name} is not usable: it is down on this node"),
            )
            .hint(format!("`holdfast up {name}` starts it"))
        })
    }

    /// Waits until no other command changes it.
    ///
    /// # Errors
    /// `BUSY` when that takes too long.
    pub(crate) async fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
        tokio::time::timeout(COMMAND_WAIT, self.command.lock()).await.map_err(|_| {
            ApiError::new(
                ErrorCode::Busy,
                format!("the command was refused for {}: another one is under way", self.name()),
            )
            .hint("try again when it has ended")
        })
    }

    /// Keeps commands out, unless one is under way.
    pub(crate) fn try_begin(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.command.try_lock().ok()
    }

    /// Changes what survives a restart, durably.
    ///
    /// # Errors
    /// When it could not be written; nothing has changed then.
    pub(crate) async fn change_local(
        self: &Arc<Self>,
        node: &Node,
        change: impl FnOnce(&mut Local),
    ) -> Result<(), ApiError> {
        let mut next = self.local();
        change(&mut next);
        if next == self.state().local {
            return Ok(());
        }
        let (store, resource) = (node.store.clone(), Arc::clone(self));
        let write = tokio::task::spawn_blocking(move || {
            store.save(&next)?;
            resource.state().local = next;
            Ok(())
        });
        write.await.map_err(|e| refuse::internal("a state file was not written", &e))?
    }

    /// Says that something has changed.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells of changes.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// The options of a resource as the core wants them.
pub(crate) fn core_options(set: &OptionMap) -> (Options, Limits) {
    let settings = OptionSettings::resolve(set, None);
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let options = Options {
        ping_interval_ms: millis(settings.ping_int),
        ping_timeout_ms: millis(settings.ping_timeout),
        request_timeout_ms: millis(settings.timeout),
        ko_count: u64::from(settings.ko_count),
        al_extents: u32::from(settings.al_extents),
        resync_rate: settings.resync_rate,
        resync_window: settings.resync_in_flight,
        verify_rate: settings.verify_rate,
        scrub_rate: settings.scrub_rate,
        read_hedge_ms: millis(settings.read_hedge),
        disk_timeout_ms: millis(settings.disk_timeout),
    };
    let requests = usize::try_from(settings.max_in_flight_requests).unwrap_or(usize::MAX);
    let limits =
        Limits { in_flight_bytes: settings.max_in_flight_bytes, in_flight_requests: requests };
    (options, limits)
}

/// What a resource is to be started with.
///
/// # Errors
/// When the records do not have it, or not this node as a member.
pub(crate) fn plan(node: &Node, local: &Local) -> Result<Plan, ApiError> {
    let view = node.view();
    let refuse = |why: &str| {
        let message = format!("resource {} was not started: {why}", local.name);
        ApiError::new(ErrorCode::NotMember, message)
    };
    let record = view.records.resource(local.id);
    let record = record.ok_or_else(|| refuse("the cluster does not know it any more"))?;
    let slot = view.slot_of(local.id, node.uuid);
    let slot = slot.ok_or_else(|| refuse("this node is no member of it any more"))?;
    let peers = view.core_peers_of(local.id, node.uuid);
    let (options, limits) = core_options(&record.options);
    let standalone = |peer: &PeerMember| local.disconnected.contains(&peer.uuid);
    let configs = peers
        .values()
        .map(|peer| PeerConfig {
            node: peer.slot,
            diskless: peer.diskless,
            standalone: standalone(peer),
        })
        .collect();
    let is_remote = local.disk.as_ref().is_some_and(|disk| remote::uri_of(&disk.path).is_some());
    let config = Config {
        node: slot,
        resource: local.id,
        size: record.size_bytes,
        boot: if is_remote { random_boot()? } else { node.boot },
        peers: configs,
        options,
        sync_pause: resyncs::pause_of(local, Turn::Now),
        seed: random()?,
    };
    Ok(Plan { name: local.name.clone(), config, peers, limits })
}

/// What a remote disk had not made durable is only certain to be there while this process keeps it:
/// each start of a resource on one counts as a boot of its own.
fn random_boot() -> Result<[u8; 16], ApiError> {
    let mut boot = [0; 16];
    boot[..8].copy_from_slice(&random()?.to_le_bytes());
    boot[8..].copy_from_slice(&random()?.to_le_bytes());
    Ok(boot)
}

/// A number that nobody can guess.
///
/// # Errors
/// When the system gives none.
pub(crate) fn random() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|e| refuse::internal("the system gave no random number", &e))
}

/// Starts a resource. With `or_diskless`, a disk that cannot be used is left out, and the reason
/// kept: the peers may still serve the data.
///
/// # Errors
/// When it cannot be started, or its disk not be used; nothing is left open then.
pub(crate) async fn start(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    or_diskless: bool,
) -> Result<(), ApiError> {
    let local = resource.local();
    if logpeer::follows(node, &local) {
        match follow(node, resource, &local).await {
            // Nobody asked for that to be given up: it is kept, and whoever leads is looked for.
            Err(error) if error.code == ErrorCode::SplitBrain => {
                logpeer::tell_unproven(node, &local.name);
            }
            followed => return followed,
        }
    }
    open_core(node, resource, or_diskless).await
}

/// Starts the core of a resource, whoever leads.
///
/// # Errors
/// As [`start`].
pub(crate) async fn start_core(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
    open_core(node, resource, false).await
}

async fn open_core(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    or_diskless: bool,
) -> Result<(), ApiError> {
    let local = resource.local();
    let mut plan = plan(node, &local)?;
    plan.config.sync_pause = resyncs::at_start(node, resource);
    replacing::settle(&local).await;
    let sums = checksums::wanted_at(&node.settings.state_dir, &local);
    let disk = local.disk.as_ref().filter(|_| local.attached);
    let disk = disk.map(|disk| DiskSpec { checksums: sums, ..disk.spec_in(&node.store, local.id) });
    let spec = ResourceSpec {
        name: plan.name.clone(),
        config: plan.config.clone(),
        journal: local.journal.as_ref().filter(|_| disk.is_some()).map(LocalJournal::spec),
        disk,
        limits: plan.limits,
    };
    let shard = node.shard()?;
    health::load(node, resource).await;
    if let Some(disk) = local.disk.clone().filter(|_| local.attached) {
        reserve_room(&plan, disk).await;
    }
    // The server of a remote disk may only be late.
    let mut late = None;
    let opened = match logpeer::settle_losses(node, &local).await {
        Ok(()) => shard.open(spec.clone()).await.map_err(|error| {
            let is_disk = matches!(error, OpenError::Disk(_));
            (is_disk, open_error(&error))
        }),
        Err(error) => Err((false, error)),
    };
    let (handle, trouble) = match opened {
        Ok(handle) => (handle, None),
        Err((is_disk, error)) => {
            if !or_diskless || spec.disk.is_none() {
                return Err(error);
            }
            tracing::error!("resource {} has no disk: {}", plan.name, error.message);
            let mut trouble = told(&error);
            let place = spec.disk.as_ref().filter(|_| is_disk);
            late = place.and_then(|disk| remote::uri_of(&disk.path));
            if late.is_some() {
                trouble.push_str("; it is used as soon as its server answers");
            }
            let without = ResourceSpec { disk: None, journal: None, ..spec };
            let handle = shard.open(without).await.map_err(|e| open_error(&e))?;
            (handle, Some(trouble))
        }
    };
    let wish = local.primary;
    let (of, name) = (Arc::clone(node), plan.name.clone());
    let asked = tokio::task::spawn_blocking(move || device::is_left(&of, &name));
    let device_waits = resource.state().device.is_none() && asked.await.unwrap_or(false);
    let until = Instant::now() + keeper::LEFT_LIMIT;
    {
        // Before the tasks are there that find what is wrong now.
        let mut state = resource.state();
        state.device_waits = device_waits.then_some(until);
        state.trouble.clone_from(&trouble);
        state.rates.clear();
        state.problems.clear();
        state.apart.clear();
        state.no_room.clear();
        state.growth_trouble = None;
    }
    let keeper = keeper::Keeper::new(node, resource, handle.clone(), &plan, wish);
    let dial = dial::run(Arc::clone(node), Arc::clone(resource), handle.clone());
    let growth = growth::run(Arc::clone(node), Arc::clone(resource), handle.clone());
    let leads = logpeer::keep(Arc::clone(node), Arc::clone(resource), handle.clone());
    let looks = logpeer::look_around(Arc::clone(node), Arc::clone(resource), handle.clone());
    if let Some(changes) = handle.map_changes().subscribe() {
        // It ends with the disk.
        tokio::spawn(tell_map(Arc::clone(node), resource.id, changes));
    }
    let sums = checksums::run(handle.checksums().cloned());
    let surveys =
        survey::run(Arc::clone(node), Arc::clone(resource), Surveyed::Core(handle.clone()));
    let tasks = [
        Task::spawn(keeper.run()),
        Task::spawn(dial),
        Task::spawn(growth),
        Task::spawn(leads),
        Task::spawn(looks),
        Task::spawn(sums),
        Task::spawn(surveys),
    ];
    {
        let mut state = resource.state();
        state.running = Some(Running { handle, _tasks: tasks });
        state.starts += 1;
    }
    if let Some(uri) = late {
        comeback::wait_for_disk(node, resource, uri);
    }
    if let Some(trouble) = trouble {
        node.hub.notice(&plan.name, None, &format!("the disk is not used: {trouble}"));
    }
    replacing::resume(node, resource);
    resource.changed();
    Ok(())
}

/// Starts a resource on a node that follows by the log.
async fn follow(node: &Arc<Node>, resource: &Arc<Resource>, local: &Local) -> Result<(), ApiError> {
    replacing::settle(local).await;
    let following = Arc::new(logpeer::start(node, resource, local).await?);
    {
        let mut state = resource.state();
        state.following = Some(Arc::clone(&following));
        state.apart.clear();
        state.starts += 1;
        state.trouble = None;
    }
    replacing::resume(node, resource);
    logpeer::tell(node, resource, &following);
    logpeer::watch_for_home(node, resource, &following);
    logpeer::show_again(node, resource);
    resource.changed();
    Ok(())
}

/// Makes room in the metadata for the bitmaps of members that joined while it was down. The bits
/// of those that it knows are there already, so it starts also without the room.
async fn reserve_room(plan: &Plan, disk: LocalDisk) {
    let peers = plan.peers.values().filter(|peer| !peer.diskless);
    let members: Vec<NodeId> = peers.map(|peer| peer.slot).collect();
    let resource = plan.config.resource;
    let made = tokio::task::spawn_blocking(move || room::reserve(&disk, resource, &members));
    if let Ok(Err(full)) = made.await {
        tracing::warn!(resource = plan.name, "{}", told(&full.here()));
    }
}

/// A refusal and the way out, in one sentence.
pub(crate) fn told(error: &ApiError) -> String {
    let message = without_numbers(&error.message);
    match &error.hint {
        Some(hint) => format!("{message}; {hint}"),
        None => message,
    }
}

fn open_error(error: &OpenError) -> ApiError {
    match error {
        OpenError::Disk(error) => refuse::disk(error),
        OpenError::Metadata(error) => refuse::metadata(error),
        OpenError::Spares(error) => refuse::spares(error),
        OpenError::Journal(error) => refuse::journal(error),
        OpenError::NameTaken(_) => ApiError::new(ErrorCode::Busy, error.to_string())
            .hint("it may still be stopping; try again in a few seconds"),
        OpenError::Io(_) => ApiError::new(ErrorCode::DiskFailed, error.to_string()),
        OpenError::Stopped => ApiError::new(ErrorCode::ShuttingDown, error.to_string()),
    }
}

/// Stops the core of a resource in good order. The local device is gone already.
///
/// # Errors
/// When it did not end in time; it is not used any more in any case.
pub(crate) async fn stop(resource: &Arc<Resource>) -> Result<(), ApiError> {
    let past = resource.state().past.take();
    if let Some(past) = past {
        past.close().await;
    }
    let following = resource.state().following.take();
    if let Some(following) = following {
        following.stop().await;
        resource.changed();
    }
    let running = resource.state().running.take();
    let Some(running) = running else { return Ok(()) };
    let handle = running.handle.clone();
    health::take(resource, &handle).await;
    // The tasks hold handles too.
    drop(running);
    // It goes on at the next start.
    let replacing = resource.state().replacing.take();
    if let Some(replacing) = replacing {
        replacing.close();
    }
    let serving = resource.state().serving.take();
    if let Some(serving) = serving {
        serving.end();
    }
    let closed = handle.close().await;
    resource.changed();
    closed.map_err(|error| {
        let message = format!("resource {} was not stopped cleanly: {error}", resource.name());
        ApiError::new(ErrorCode::TimedOut, message)
            .hint("its metadata will be treated as after a crash; that costs a short resync")
    })
}
