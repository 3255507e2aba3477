//! The data of this node move to another disk while the resource is used: what the control plane does
//! about it. The copying itself is the store's. See `docs/design/replace-disk.md`.

use crate::commands::updown::publish;
use crate::disk;
use crate::local::{Local, LocalDisk, LocalReplacing};
use crate::node::Node;
use crate::rate::RateMeter;
use crate::refuse;
use crate::resource::{Resource, told};
use crate::shard::{
    DiskSpec, DiskView, NewPlace, OpenError, ResourceHandle, Successor, check_room, keep_metadata,
    move_metadata, open_successor,
};
use crate::spares;
use crate::task::Task;
use holdfast_api::status::DiskReplacing;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::Command;
use holdfast_store::{ReplaceHandle, ReplaceState, ReplaceStatus, RetiredDisk};
use holdfast_units::ResourceId;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The store has no clock that wakes it.
const TICK: Duration = Duration::from_millis(5);
/// How often it is looked at how far it is.
const LOOK: Duration = Duration::from_millis(100);
/// How often blocks that could not be read are tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long requests may wait for the switch; after that they go on, and it is tried again.
const HOLD: Duration = Duration::from_secs(10);
/// How long after that.
const PAUSE: Duration = Duration::from_secs(5);

/// A move that is under way, or has failed.
pub(crate) struct Replacing {
    what: LocalReplacing,
    seen: Arc<Mutex<Seen>>,
    handle: Option<ReplaceHandle>,
    /// It ends when this is dropped.
    task: Option<Task>,
}

/// How it is.
#[derive(Default)]
struct Seen {
    status: ReplaceStatus,
    rate: RateMeter,
    finishing: bool,
    problem: Option<String>,
    failed: bool,
}

impl Replacing {
    /// One that cannot go on now: the disk is not in use.
    pub(crate) fn waiting(what: LocalReplacing) -> Self {
        Self { what, seen: Arc::default(), handle: None, task: None }
    }

    /// Begins to copy: to a disk that is open already, or is to be opened.
    pub(crate) fn begin(
        node: &Arc<Node>,
        resource: &Arc<Resource>,
        handle: &ResourceHandle,
        what: LocalReplacing,
        successor: Option<Successor>,
    ) -> Self {
        let Some(replace) = handle.replace().cloned() else { return Self::waiting(what) };
        let total = handle.snapshot().snapshot.own_size;
        let status = ReplaceStatus { total, ..ReplaceStatus::default() };
        let seen = Arc::new(Mutex::new(Seen { status, ..Seen::default() }));
        let mover = Mover {
            node: Arc::clone(node),
            resource: Arc::clone(resource),
            handle: handle.clone(),
            replace: replace.clone(),
            what: what.clone(),
            seen: Arc::clone(&seen),
        };
        let task = Some(Task::spawn(mover.run(successor)));
        Self { what, seen, handle: Some(replace), task }
    }

    /// Whether it has ended without success.
    pub(crate) fn has_failed(&self) -> bool {
        lock(&self.seen).failed
    }

    /// Ends it, for who keeps other commands out.
    pub(crate) fn stop(self) {
        drop(self.task);
        if let Some(handle) = self.handle {
            handle.stop();
        }
    }

    /// The disk is about to be closed. What has begun to switch goes on to do so: requests that it lets
    /// wait must not go to the old disk.
    pub(crate) fn close(self) {
        let finishing = lock(&self.seen).finishing;
        drop(self.task);
        if let Some(handle) = self.handle.filter(|_| !finishing) {
            handle.stop();
        }
    }

    /// For status.
    pub(crate) fn show(&self) -> DiskReplacing {
        let seen = lock(&self.seen);
        let ReplaceStatus { total, done, left_over, .. } = seen.status;
        let rate = if seen.failed { 0 } else { seen.rate.rate(Instant::now(), done) };
        let state = match &seen.status.state {
            _ if seen.failed => "failed",
            _ if seen.finishing => "finishing",
            _ if self.task.is_none() => "waiting",
            _ => "copying",
        };
        let problem = seen.problem.clone().or_else(|| {
            let why = "it goes on when the old disk is in use again, from its beginning";
            self.task.is_none().then(|| why.to_owned())
        });
        DiskReplacing {
            path: self.what.disk.path.display().to_string(),
            state: state.to_owned(),
            percent: if total == 0 { 0.0 } else { crate::status::percent(done, total) },
            bytes_done: done,
            bytes_total: total,
            rate_bytes_per_second: rate,
            eta_seconds: total.saturating_sub(done).checked_div(rate).unwrap_or(0),
            unreadable_blocks: left_over,
            problem,
        }
    }
}

/// Goes on with the move that was under way when the resource was stopped, from its beginning.
pub(crate) fn resume(node: &Arc<Node>, resource: &Arc<Resource>) {
    let local = resource.local();
    if let Some(old) = local.retired {
        forget_old(node, resource, old, None);
    }
    let Some(what) = local.replacing else { return };
    let handle = resource.handle().filter(|_| local.attached);
    let replacing = match handle {
        Some(handle) => Replacing::begin(node, resource, &handle, what, None),
        None => Replacing::waiting(what),
    };
    resource.state().replacing = Some(replacing);
}

/// Overwrites the metadata of a disk that is not that of the resource any more, in the background.
/// What is still open of it is closed before.
fn forget_old(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    old: LocalDisk,
    closed: Option<RetiredDisk>,
) {
    let (node, resource) = (Arc::clone(node), Arc::clone(resource));
    tokio::spawn(async move {
        let id = resource.id;
        let now = resource.local().disk;
        let forget = move || {
            drop(closed);
            forget_now_old(&old, now.as_ref(), id);
        };
        let _ = tokio::task::spawn_blocking(forget).await;
        if let Ok(_begun) = resource.begin().await {
            let forgotten = resource.change_local(&node, |local| local.retired = None).await;
            if let Err(error) = forgotten {
                tracing::warn!(resource = resource.name(), "{}", told(&error));
            }
        }
    });
}

/// Gives up what says that a disk is that of the resource: its spares and its metadata. What is broken
/// cannot be overwritten: it is said in the log.
fn forget_now_old(old: &LocalDisk, now: Option<&LocalDisk>, resource: ResourceId) {
    // Devices may have changed their names since.
    if now.is_some_and(|now| disk::same_object(&now.path, &old.path)) {
        return;
    }
    spares::retire_of_old(&old.spec(), resource);
    if old.meta.is_none() || now.is_none_or(|now| now.meta != old.meta) {
        disk::wipe(&LocalDisk { spares: Vec::new(), ..old.clone() }, resource);
    }
}

/// A disk that took the place of one with spares has none; its metadata may not say so yet. Before it
/// is opened.
pub(crate) async fn settle(local: &Local) {
    let (Some(disk), Some(_)) = (&local.disk, &local.retired) else { return };
    let (disk, id) = (disk.clone(), local.id);
    let work = move || {
        if disk.spares.is_empty()
            && let Err(error) = disk::unmark(&disk, id)
        {
            tracing::warn!("{error}");
        }
    };
    let _ = tokio::task::spawn_blocking(work).await;
}

/// The task.
struct Mover {
    node: Arc<Node>,
    resource: Arc<Resource>,
    handle: ResourceHandle,
    replace: ReplaceHandle,
    what: LocalReplacing,
    seen: Arc<Mutex<Seen>>,
}

impl Mover {
    async fn run(self, successor: Option<Successor>) {
        let opened = match successor {
            Some(successor) => Ok(successor),
            None => self.open().await,
        };
        let Successor { disk, place } = match opened {
            Ok(successor) => successor,
            Err(why) => return self.failed(&why).await,
        };
        if let Err(why) = self.check_room(disk.size()).await {
            return self.failed(&why).await;
        }
        let size = self.handle.snapshot().snapshot.own_size;
        self.replace.begin(disk, size, self.what.rate);
        let name = self.resource.name();
        let path = self.what.disk.path.display().to_string();
        let text = format!("the data of this node are being copied to the new disk {path}");
        tracing::info!(resource = name, "{text}");
        self.node.hub.notice(&name, None, &text);
        let mut place = place;
        loop {
            if let Err(why) = self.copy().await {
                if let Some(why) = why {
                    self.failed(&why).await;
                }
                return;
            }
            lock(&self.seen).finishing = true;
            publish(&self.node, &self.resource);
            // Not to be interrupted: between the steps the disk would be neither.
            let this = self.again();
            let finished = tokio::spawn(async move { this.finish(place).await }).await;
            lock(&self.seen).finishing = false;
            match finished {
                Ok(Finished::Switched) | Err(_) => return,
                Ok(Finished::Failed(why)) => return self.failed(&why).await,
                Ok(Finished::NotYet(back)) => place = *back,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn again(&self) -> Self {
        Self {
            node: Arc::clone(&self.node),
            resource: Arc::clone(&self.resource),
            handle: self.handle.clone(),
            replace: self.replace.clone(),
            what: self.what.clone(),
            seen: Arc::clone(&self.seen),
        }
    }

    async fn open(&self) -> Result<Successor, String> {
        let spec = self.what.disk.spec();
        let opened = tokio::task::spawn_blocking(move || open_successor(&spec)).await;
        match opened {
            Ok(Ok(successor)) => Ok(successor),
            Ok(Err(error)) => Err(told(&open_error(&error))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The metadata in their old and their new place, when they move.
    fn metadata(&self, new_len: u64) -> Option<[(DiskSpec, u64); 2]> {
        let old = self.resource.local().disk?;
        let view = self.handle.snapshot().disk.clone()?;
        let new = &self.what.disk;
        let stays = old.meta.is_some() && old.meta == new.meta;
        (!stays).then(|| [(old.spec(), view.size), (new.spec(), new_len)])
    }

    async fn check_room(&self, new_len: u64) -> Result<(), String> {
        let Some([old, new]) = self.metadata(new_len) else { return Ok(()) };
        let check = move || check_room((&old.0, old.1), (&new.0, new.1));
        match tokio::task::spawn_blocking(check).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(told(&refuse::metadata(&error))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Copies the metadata, if they move; nobody writes to them from then on.
    async fn move_metadata(&self, place: &mut NewPlace) -> Result<(), String> {
        let moves = self.metadata(place.view.size);
        let local = self.resource.local().disk.filter(|old| !old.spares.is_empty());
        let stays = local.zip(self.handle.snapshot().disk.clone());
        let stays = stays.map(|(old, view)| (old.spec(), view.size));
        if moves.is_none() && stays.is_none() {
            return Ok(());
        }
        if !self.handle.hold_metadata().await {
            return Err("the metadata could not be written in time".to_owned());
        }
        let work = move || match (&moves, &stays) {
            (Some([old, new]), _) => move_metadata((&old.0, old.1), (&new.0, new.1)).map(Some),
            (None, Some(old)) => keep_metadata((&old.0, old.1)).map(Some),
            (None, None) => Ok(None),
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(moved)) => {
                place.meta = moved;
                Ok(())
            }
            Ok(Err(error)) => Err(told(&refuse::metadata(&error))),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Until both disks are in step. An error without a reason: nothing is left to be told.
    async fn copy(&self) -> Result<(), Option<String>> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut looked, mut again) = (Instant::now(), Instant::now());
        loop {
            ticks.tick().await;
            self.replace.tick();
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            self.heal().await;
            let status = self.replace.status();
            let state = status.state.clone();
            let at_end = status.done == status.total && status.left_over > 0;
            self.note(status);
            match state {
                ReplaceState::Copying | ReplaceState::Held => {}
                ReplaceState::InStep => return Ok(()),
                ReplaceState::Failed(why) => return Err(Some(why)),
                ReplaceState::None | ReplaceState::Closed | ReplaceState::Switched => {
                    return Err(None);
                }
            }
            if at_end && again.elapsed() >= AGAIN {
                again = Instant::now();
                self.replace.try_again();
            }
        }
    }

    /// Has what the old disk cannot read fetched from where it is, and stored again: on both disks.
    async fn heal(&self) {
        let unreadable = self.replace.take_unreadable();
        if !unreadable.is_empty() {
            // A core that takes no commands now is asked again when the blocks are tried again.
            let _ = self.handle.command(Command::Heal(unreadable)).await;
        }
    }

    /// Keeps it for status, and tells of what is in the way.
    fn note(&self, status: ReplaceStatus) {
        let blocks = status.left_over;
        let problem = (blocks > 0).then(|| {
            let at = status.left_over_at.first().map_or(0, |range| range.offset);
            let what = match blocks {
                1 => format!("1 block of 4096 bytes of the old disk, at byte {at}, cannot"),
                _ => format!(
                    "{blocks} blocks of 4096 bytes of the old disk, the first at byte {at}, cannot"
                ),
            };
            format!("{what} be read; the move ends when they have been written or healed")
        });
        let mut seen = lock(&self.seen);
        seen.rate.note(Instant::now(), status.done);
        seen.status = status;
        let is_new = problem.is_some() && seen.problem.is_none();
        seen.problem.clone_from(&problem);
        drop(seen);
        publish(&self.node, &self.resource);
        if let Some(problem) = problem.filter(|_| is_new) {
            let name = self.resource.name();
            tracing::warn!(resource = name, "{problem}");
            self.node.hub.notice(&name, None, &problem);
        }
    }

    /// The switch. Runs to its end, whoever waits for it.
    async fn finish(self, mut place: NewPlace) -> Finished {
        let Ok(_begun) = self.resource.begin().await else {
            return Finished::NotYet(Box::new(place));
        };
        if self.resource.local().replacing.as_ref() != Some(&self.what) {
            return Finished::Switched;
        }
        // Who makes the old disk ready for a larger size would leave out the new one.
        let Ok(_no_growth) = Arc::clone(&self.resource.growth).try_lock_owned() else {
            return Finished::NotYet(Box::new(place));
        };
        let old = self.handle.snapshot().disk.clone();
        self.handle.forget_holes().await;
        if let Err(why) = self.move_metadata(&mut place).await {
            self.stays(old).await;
            return Finished::Failed(why);
        }
        self.replace.hold();
        if let Err(state) = self.reach(&ReplaceState::Held).await {
            self.replace.release();
            self.stays(old).await;
            place.meta = None;
            return match state {
                ReplaceState::Failed(why) => Finished::Failed(why),
                _ => Finished::NotYet(Box::new(place)),
            };
        }
        if !self.replace.commit() {
            self.replace.release();
            self.stays(old).await;
            place.meta = None;
            return Finished::NotYet(Box::new(place));
        }
        match self.commit().await {
            Ok(()) => {}
            Err(Uncommitted::OldStays(error)) => {
                self.replace.release();
                self.stays(old).await;
                return Finished::Failed(told(&error));
            }
            Err(Uncommitted::Unknown(error)) => {
                self.give_up_both(old, &told(&error)).await;
                return Finished::Switched;
            }
        }
        self.replace.switch();
        settle(&self.resource.local()).await;
        // When the resource is being stopped, the new disk is used from its next start on.
        if let Err(state) = self.reach_switched().await
            && state != ReplaceState::Closed
        {
            self.give_up_both(old, "the disk did not take the new one's place").await;
            return Finished::Switched;
        }
        let text = format!(
            "the disk was replaced: {} is the disk of this node now, {} is not used any more",
            self.what.disk.path.display(),
            old.map(|old| old.path.display().to_string()).unwrap_or_default()
        );
        self.handle.disk_replaced(place).await;
        self.resource.state().replacing = None;
        let name = self.resource.name();
        tracing::info!(resource = name, "{text}");
        self.node.hub.notice(&name, None, &text);
        publish(&self.node, &self.resource);
        let closed = self.replace.take_retired();
        match self.resource.local().retired {
            Some(old) => forget_old(&self.node, &self.resource, old, closed),
            // A failing disk may take its time.
            None => drop(tokio::task::spawn_blocking(move || drop(closed))),
        }
        Finished::Switched
    }

    /// The state file names the new disk, durably. After this nothing goes to the old one.
    async fn commit(&self) -> Result<(), Uncommitted> {
        let before = self.resource.local();
        let next = self.what.disk.clone();
        let moved =
            |old: &LocalDisk| old.meta.is_none() || old.meta != next.meta || !old.spares.is_empty();
        let retired = before.disk.clone().filter(moved);
        let changed = self
            .resource
            .change_local(&self.node, |local| {
                local.disk = Some(next);
                local.retired = retired;
                local.replacing = None;
            })
            .await;
        let Err(error) = changed else { return Ok(()) };
        // It may be there after all, and not be known to be durable.
        let store = self.node.store.clone();
        let taken_back = tokio::task::spawn_blocking(move || {
            store.is_there(&before) || store.save(&before).is_ok()
        });
        match taken_back.await {
            Ok(true) => Err(Uncommitted::OldStays(error)),
            Ok(false) | Err(_) => Err(Uncommitted::Unknown(error)),
        }
    }

    /// Which of the two disks the next start takes is not known, so nothing more may go to either:
    /// both have everything that was completed.
    async fn give_up_both(&self, old: Option<DiskView>, why: &str) {
        let (name, new) = (self.resource.name(), self.what.disk.path.display().to_string());
        let was = old.as_ref().map(|old| old.path.display().to_string()).unwrap_or_default();
        let text = format!(
            "the disk of this node is not used any more: it is not certain whether the next start \
             takes {new} or {was} for it, which are the same now ({why}); check the disk of the state \
             directory, then `holdfast down {name}` and `holdfast up {name}`"
        );
        self.replace.fail(text.clone());
        self.stays(old).await;
        tracing::error!(resource = name, "{text}");
        self.node.hub.notice(&name, None, &text);
        {
            let mut seen = lock(&self.seen);
            (seen.failed, seen.problem) = (true, Some(text.clone()));
        }
        // That it fails is what is wanted.
        let _ = self.handle.command(Command::Detach).await;
        self.resource.state().trouble = Some(text);
        publish(&self.node, &self.resource);
    }

    /// Waits for the switch that was ordered, however long the thread of the disk takes: nobody else
    /// ends it.
    async fn reach_switched(&self) -> Result<(), ReplaceState> {
        loop {
            match self.reach(&ReplaceState::Switched).await {
                Err(ReplaceState::Held) => {
                    let name = self.resource.name();
                    tracing::warn!(resource = name, "the thread of the disk does not answer");
                }
                reached => return reached,
            }
        }
    }

    /// Waits for a state of the store, which others have to work for.
    async fn reach(&self, wanted: &ReplaceState) -> Result<(), ReplaceState> {
        let deadline = Instant::now() + HOLD;
        loop {
            let state = self.replace.status().state;
            if state == *wanted {
                return Ok(());
            }
            let over =
                !matches!(state, ReplaceState::Copying | ReplaceState::InStep | ReplaceState::Held);
            if over || Instant::now() >= deadline {
                return Err(state);
            }
            self.replace.tick();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The old disk stays.
    async fn stays(&self, old: Option<DiskView>) {
        let Some(old) = old else { return };
        let again = tokio::task::spawn_blocking(move || NewPlace::again(old)).await;
        if let Ok(place) = again {
            self.handle.disk_replaced(place).await;
        }
    }

    async fn failed(&self, why: &str) {
        // Else every write would go on to reach the new disk, too.
        self.replace.stop();
        let name = self.resource.name();
        let path = self.what.disk.path.display();
        let text = format!("the disk was not replaced by {path}: {why}; the old one stays");
        tracing::error!(resource = name, "{text}");
        self.node.hub.notice(&name, None, &text);
        // Who sees that it has failed may name another disk at once.
        forget(&self.node, &self.resource, &self.what).await;
        {
            let mut seen = lock(&self.seen);
            (seen.failed, seen.problem) = (true, Some(text));
        }
        publish(&self.node, &self.resource);
    }
}

/// Why the state file does not name the new disk.
enum Uncommitted {
    /// It names the old one.
    OldStays(ApiError),
    /// It may name either after a loss of power.
    Unknown(ApiError),
}

/// How the last step ended.
enum Finished {
    Switched,
    Failed(String),
    /// Something is in the way that passes.
    NotYet(Box<NewPlace>),
}

/// A move is not wished for any more.
async fn forget(node: &Arc<Node>, resource: &Arc<Resource>, what: &LocalReplacing) {
    let forgotten = match resource.begin().await {
        Ok(_begun) => forget_now(node, resource, what).await,
        Err(error) => Err(error),
    };
    if let Err(error) = forgotten {
        tracing::warn!(resource = resource.name(), "{}", told(&error));
    }
}

/// The same for who keeps other commands out.
///
/// # Errors
/// When that could not be noted.
pub(crate) async fn forget_now(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: &LocalReplacing,
) -> Result<(), ApiError> {
    if resource.local().replacing.as_ref() != Some(what) {
        return Ok(());
    }
    resource.change_local(node, |local| local.replacing = None).await?;
    if what.made_file {
        let path = what.disk.path.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await;
        if let Ok(Err(error)) = removed {
            let path = what.disk.path.display();
            tracing::warn!(resource = resource.name(), "{path} was not removed: {error}");
        }
    }
    Ok(())
}

/// Why a disk could not be opened, for people.
pub(crate) fn open_error(error: &OpenError) -> ApiError {
    match error {
        OpenError::Disk(error) => refuse::disk(error),
        other => ApiError::new(ErrorCode::DiskUnusable, other.to_string()),
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
