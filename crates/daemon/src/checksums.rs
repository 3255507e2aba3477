//! Checksums of a disk's blocks: where their file is, when there is one, and who computes them. What
//! they promise: `docs/design/integrity.md`.

use crate::commands::blocking;
use crate::local::Local;
use crate::node::Node;
use crate::refuse;
use crate::resource::{Resource, State};
use holdfast_api::options::{CHECKSUMS, OptionMap};
use holdfast_api::request::Done;
use holdfast_api::status::DiskStatus;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_store::{
    BufferPool, ChecksumError, ChecksumFile, ChecksumHandle, ChecksumMode, Disk, OpenErrorKind,
    remove_checksums,
};
use holdfast_units::ResourceId;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the layer is told that time passes.
const TICK: Duration = Duration::from_millis(200);
/// So many pages of 3.9 MiB are computed in that time: about 100 MiB a second.
const PAGES: u32 = 5;
/// How long a disk may take to use its checksums no more, until their file is removed all the same.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// What the file is read and written with.
const POOL: usize = 1 << 20;

/// Where the checksums of a resource's disk are.
pub(crate) fn path(state_dir: &Path, resource: ResourceId) -> PathBuf {
    state_dir.join("meta").join(format!("{resource}.checksums"))
}

/// The same, when they are to be kept.
pub(crate) fn wanted_at(state_dir: &Path, local: &Local) -> Option<PathBuf> {
    local.checksums.then(|| path(state_dir, local.id))
}

/// Whether a new resource, or member, keeps them; the option is no longer among the others then, which
/// hold for all members.
pub(crate) fn wanted(options: &mut OptionMap, given: bool) -> bool {
    options.remove(CHECKSUMS).map_or(given, |word| given || word == "on")
}

/// Removes the file, durably.
///
/// # Errors
/// What the filesystem says.
pub(crate) fn remove(path: &Path) -> Result<(), ApiError> {
    remove_checksums(path).map_err(|error| {
        refuse::internal(&format!("the checksums in {} were not removed", path.display()), &error)
    })
}

/// The disk with the layer for checksums, which keeps them in this file. One that cannot be used is
/// made anew; where that fails the disk is used without, and the handle has the reason.
pub(crate) fn with_layer(
    disk: Disk,
    path: Option<&Path>,
    resource: ResourceId,
    size: u64,
    pool: &BufferPool,
) -> (Disk, ChecksumHandle) {
    let (file, problem) = match path.map(|path| open(path, resource, size, pool)) {
        None => (None, None),
        Some(Ok(file)) => (Some(file), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let (disk, handle) = disk.with_checksums(size, file);
    if let Some(problem) = problem {
        tracing::error!("a disk is used without its checksums: {problem}");
        handle.report(problem);
    }
    (disk, handle)
}

fn open(
    path: &Path,
    resource: ResourceId,
    size: u64,
    pool: &BufferPool,
) -> Result<ChecksumFile, ChecksumError> {
    match ChecksumFile::open(path, resource, size, pool) {
        Err(ChecksumError::Open(error)) if error.kind == OpenErrorKind::NotFound => {}
        Err(error @ ChecksumError::Broken { .. }) => tracing::warn!("{error}"),
        result => return result,
    }
    ChecksumFile::create(path, resource, size, pool)
}

/// Has them computed, and settled, as time passes.
pub(crate) async fn run(handle: Option<ChecksumHandle>) {
    let Some(handle) = handle else { return };
    loop {
        tokio::time::sleep(TICK).await;
        tick(&handle);
    }
}

/// The layer of a disk that may be opened anew; `None` while it is not open.
pub(crate) type LatestChecksums = Arc<Mutex<Option<ChecksumHandle>>>;

/// What it is now.
pub(crate) fn latest(handle: &LatestChecksums) -> MutexGuard<'_, Option<ChecksumHandle>> {
    // It is whole between any two statements.
    handle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`run`], for a disk that may be opened anew.
pub(crate) async fn run_latest(handle: LatestChecksums) {
    loop {
        tokio::time::sleep(TICK).await;
        latest(&handle).iter().for_each(tick);
    }
}

fn tick(handle: &ChecksumHandle) {
    let stats = handle.stats();
    let idle = match stats.mode {
        ChecksumMode::Off | ChecksumMode::Failed => true,
        ChecksumMode::On => stats.unsettled == 0,
        ChecksumMode::Building => false,
    };
    if !idle {
        handle.tick(PAGES);
    }
}

/// The layer of the disk of a resource that is up.
fn handle_of(state: &State) -> Option<ChecksumHandle> {
    let core = state.running.as_ref().and_then(|running| running.handle.checksums().cloned());
    core.or_else(|| state.following.as_ref().and_then(|following| following.checksums()))
}

/// Keeps checksums for the disk that this node has of a resource from now on, or none.
///
/// # Errors
/// When it has none, or their file cannot be made or removed.
pub(crate) async fn switch(node: &Arc<Node>, name: &str, on: bool) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let local = resource.local();
    if local.disk.is_none() {
        let message = format!("{CHECKSUMS} was not set for {name}: this node has no disk of it");
        return Err(ApiError::new(ErrorCode::NoDisk, message)
            .hint("set it on a node that has; each has its own"));
    }
    let path = path(&node.settings.state_dir, resource.id);
    if on { turn_on(node, &resource, path).await } else { turn_off(node, &resource, path).await }
}

async fn turn_on(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    path: PathBuf,
) -> Result<Done, ApiError> {
    let name = resource.name();
    if resource.state().past.is_some() {
        let message = format!(
            "{CHECKSUMS} was not set for {name}: its past state is shown read-only, and with \
             checksums that is not supported by this version"
        );
        return Err(ApiError::new(ErrorCode::NotSupportedYet, message)
            .hint(format!("`holdfast device {name} --remove` first")));
    }
    let handle = handle_of(&resource.state());
    let works = |handle: &ChecksumHandle| {
        matches!(handle.stats().mode, ChecksumMode::On | ChecksumMode::Building)
    };
    if resource.local().checksums && handle.as_ref().is_none_or(works) {
        return Ok(Done::new(format!(
            "checksums are kept for resource {name} on this node already"
        )));
    }
    let Some(handle) = handle else {
        blocking(move || remove(&path)).await?;
        resource.change_local(node, |local| local.checksums = true).await?;
        return Ok(Done::new(format!(
            "checksums will be kept for resource {name} on this node when its disk is used again"
        )));
    };
    let (id, size, made) = (resource.id, handle.covered(), path.clone());
    let file = blocking(move || {
        ChecksumFile::create(&made, id, size, &BufferPool::new(POOL)).map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("{CHECKSUMS} was not set: {error}"))
                .hint("they take a thousandth of the disk's size in the state directory")
        })
    })
    .await?;
    if let Err(error) = resource.change_local(node, |local| local.checksums = true).await {
        drop(file);
        blocking(move || remove(&path)).await?;
        return Err(error);
    }
    handle.turn_on(file);
    Ok(Done::new(format!(
        "checksums are kept for resource {name} on this node; those of what is there already are \
         computed in the background, `holdfast status {name}` says how far that is"
    )))
}

async fn turn_off(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    path: PathBuf,
) -> Result<Done, ApiError> {
    resource.change_local(node, |local| local.checksums = false).await?;
    let handle = handle_of(&resource.state());
    if let Some(handle) = handle {
        handle.turn_off();
        let until = Instant::now() + PATIENCE;
        while handle.stats().mode != ChecksumMode::Off && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }
    blocking(move || remove(&path)).await?;
    let name = resource.name();
    Ok(Done::new(format!("no checksums are kept for resource {name} on this node")))
}

/// What the status of the disk says of them.
pub(crate) fn status(state: &State) -> DiskStatus {
    let none = DiskStatus::default();
    let Some(handle) = handle_of(state).filter(|_| state.local.disk.is_some()) else { return none };
    let stats = handle.stats();
    let word = match stats.mode {
        ChecksumMode::Off if state.local.checksums && stats.problem.is_some() => "failed",
        ChecksumMode::Off => "off",
        ChecksumMode::Building => "building",
        ChecksumMode::On => "on",
        ChecksumMode::Failed => "failed",
    };
    DiskStatus {
        checksum_errors: stats.checksum_errors,
        checksums: word.to_owned(),
        checksums_percent: stats.percent(),
        checksums_problem: stats.problem.filter(|_| state.local.checksums),
        ..none
    }
}
