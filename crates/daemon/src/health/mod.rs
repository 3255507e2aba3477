//! The health of disks: what they went through, what they say of themselves, and a score with its
//! reasons. `docs/design/health.md` has the formula.
//!
//! The shard counts (`shard/vitals.rs`); once a second what has come together is taken from it and
//! kept here, on a thread that no data go through.

mod below;
mod kept;
mod score;
mod smart;

use crate::checksums;
use crate::commands::updown;
use crate::events::unix_ms;
use crate::node::Node;
use crate::options::SmartProgram;
use crate::resource::{Resource, State};
use crate::shard::{ResourceHandle, Times};
use crate::statefile;
use crate::status;
use holdfast_api::health::{DiskHealth, DiskLatency, SmartStatus};
use holdfast_api::request::Done;
use holdfast_api::status::DiskStatus;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_units::ResourceId;
use kept::Kept;
use score::{Facts, Level};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked at.
const TICK: Duration = Duration::from_secs(1);
/// What is kept is written no more often than that.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Devices are asked no more often than that; what is below a disk is looked up as often, and when
/// there is another disk.
const ASK_EVERY: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether there is another disk.
const SMART_TICK: Duration = Duration::from_secs(2);
/// The first word of a file, and the version of its content.
const HEAD: &str = "holdfast-health 1 ";
/// The kinds of operations, in the order of the shard's times.
const KINDS: [&str; 3] = ["read", "write", "flush"];

/// What is known of the disk of one resource, apart from what its devices say.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// `None` until it was read.
    kept: Option<Kept>,
    times: [Times; 3],
    oldest_pending: Duration,
    level: Level,
    /// So many blocks with a wrong checksum are counted as such.
    wrong_checksums: u64,
    /// What a person should do something about, and the way out.
    problem: Option<String>,
    /// There is more than was written last, and when that was.
    dirty: bool,
    written: Option<Instant>,
    /// So many errors were written.
    errors_written: u64,
    /// The devices at the bottom.
    devices: Vec<PathBuf>,
}

/// What the devices of this node say of themselves.
#[derive(Debug, Default)]
pub(crate) struct Smart(Mutex<BTreeMap<PathBuf, Asked>>);

#[derive(Clone, Debug)]
struct Asked {
    at: Instant,
    said: SmartStatus,
    /// It is the program that failed, not the device.
    broken: bool,
}

impl Smart {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, devices: &[PathBuf]) -> Vec<SmartStatus> {
        let known = self.lock();
        devices.iter().filter_map(|device| Some(known.get(device)?.said.clone())).collect()
    }

    /// What is wrong with the program, one sentence for each device.
    fn problems(&self) -> Vec<String> {
        let known = self.lock();
        let broken = known.values().filter(|asked| asked.broken);
        broken
            .filter_map(|asked| {
                let why = asked.said.problem.as_ref()?;
                let device = &asked.said.device;
                Some(format!("the SMART values of {device} are not known: {why}"))
            })
            .collect()
    }
}

/// Looks after the health of all disks until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    loop {
        for resource in node.resources() {
            look(&node, &resource).await;
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = node.stopped() => return,
        }
    }
}

/// Takes what the shard has counted, judges it, tells of a change, and keeps it now and then.
pub(crate) async fn look(node: &Arc<Node>, resource: &Arc<Resource>) {
    if !load(node, resource).await {
        return;
    }
    match resource.handle() {
        Some(handle) => take(resource, &handle).await,
        None => {
            // Nothing is under way any more.
            let health = &mut resource.state().health;
            (health.times, health.oldest_pending) = (Default::default(), Default::default());
        }
    }
    judge(node, resource);
    save(node, resource, Some(WRITE_EVERY)).await;
}

/// Takes what the shard has counted.
pub(crate) async fn take(resource: &Resource, handle: &ResourceHandle) {
    let Some(report) = handle.take_vitals().await else {
        // The thread that could tell is perhaps held up by this disk.
        resource.state().health.oldest_pending = handle.in_call();
        return;
    };
    let mut state = resource.state();
    let wrong = checksums::status(&state).checksum_errors;
    let health = &mut state.health;
    // A disk does not answer for what the one before it went through.
    let kept = health.kept.as_ref();
    if kept.is_some_and(|kept| *kept.disk != *report.disk.display().to_string()) {
        return;
    }
    health.times = report.times;
    health.oldest_pending = report.oldest_pending;
    if let Some(kept) = &mut health.kept {
        health.dirty |= kept.take(&report, unix_ms());
        // They are counted from 0 whenever the disk is opened.
        let seen = health.wrong_checksums.min(wrong);
        health.wrong_checksums = seen + kept.were_checksums(wrong - seen);
    }
}

/// Reads what was kept of the disk that there is now; whether there is one. What the disk goes through
/// counts from then on.
pub(crate) async fn load(node: &Node, resource: &Resource) -> bool {
    let disk = {
        let mut state = resource.state();
        let Some(disk) = state.local.disk.as_ref().map(|disk| disk.path.display().to_string())
        else {
            state.health = Health::default();
            return false;
        };
        if state.health.kept.as_ref().is_some_and(|kept| kept.disk == disk) {
            return true;
        }
        disk
    };
    let path = node.store.health_path(resource.id);
    let read = tokio::task::spawn_blocking(move || read(&path)).await.ok().flatten();
    let found = read.filter(|kept| kept.disk == disk);
    let mut state = resource.state();
    if state.health.kept.as_ref().is_none_or(|kept| kept.disk != disk) {
        // Another disk does not answer for the faults of the one before.
        let kept = found.unwrap_or_else(|| Kept::new(&disk, unix_ms()));
        let devices = std::mem::take(&mut state.health.devices);
        state.health = Health { kept: Some(kept), devices, ..Health::default() };
    }
    true
}

/// What is in the file, if that can be used: these figures are not worth a refusal.
fn read(path: &Path) -> Option<Kept> {
    if !path.exists() {
        return None;
    }
    let why = match statefile::read::<Kept>(path, HEAD) {
        Ok(kept) if kept.is_sound() => return Some(kept),
        Ok(_) => "its windows have another shape".to_owned(),
        Err(why) => why,
    };
    tracing::warn!("errors are counted from nothing: {} cannot be used: {why}", path.display());
    None
}

/// Compares the score with the levels, and tells when one is passed.
fn judge(node: &Arc<Node>, resource: &Arc<Resource>) {
    let shown = status::resource(node, resource);
    let Some(health) = shown.disk.health else { return };
    let name = shown.name;
    let disk = shown.disk.path.unwrap_or_default();
    let why = health.reasons.iter().map(|reason| &*reason.text).collect::<Vec<_>>().join(", ");
    let (before, now) = {
        let mut state = resource.state();
        let before = state.health.level;
        let now = before.after(health.score);
        state.health.level = now;
        // A disk that is not used has a problem of its own.
        let failed = shown.disk.problem.is_some();
        state.health.problem = Some(now)
            .filter(|level| *level > Level::Ok && !failed)
            .map(|level| problem(&name, &disk, health.score, level, &why));
        (before, now)
    };
    if now == before {
        return;
    }
    let level = now.as_str();
    let text = match now {
        Level::Ok => format!("the disk is healthy again: {} of 100", health.score),
        _ => format!("the health of the disk is {} of 100 ({level}): {why}", health.score),
    };
    if now > before {
        tracing::warn!(resource = name, "{text}");
    } else {
        tracing::info!(resource = name, "{text}");
    }
    node.hub.notice(&name, None, &text);
    node.cluster_changed();
    updown::publish(node, resource);
}

fn problem(name: &str, disk: &str, score: u8, level: Level, why: &str) -> String {
    let replace = format!("holdfast replace-disk {name} --disk NEW");
    let way = match level {
        Level::Critical => format!("replace the disk: `{replace}`"),
        _ => format!("`holdfast health {name}` tells more, `{replace}` replaces it"),
    };
    let level = level.as_str();
    format!(
        "resource {name}: the health of its disk {disk} is {score} of 100 ({level}): {why}; {way}"
    )
}

/// Writes what is kept, if there is more than was written last, and `every` is over since.
async fn save(node: &Node, resource: &Resource, every: Option<Duration>) {
    let kept = {
        let mut state = resource.state();
        let health = &mut state.health;
        let errors = health.kept.as_ref().map_or(0, Kept::all_errors);
        // That a disk has errors at all does not wait.
        let first = errors > 0 && health.errors_written == 0;
        let due = match (every, health.written) {
            (Some(every), Some(at)) => first || at.elapsed() >= every,
            _ => true,
        };
        if !health.dirty || !due {
            return;
        }
        health.dirty = false;
        health.written = Some(Instant::now());
        health.errors_written = errors;
        health.kept.clone()
    };
    let (Some(kept), path) = (kept, node.store.health_path(resource.id)) else { return };
    let shown = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || statefile::write(&path, HEAD, &kept)).await;
    if let Err(why) = written.unwrap_or_else(|why| Err(io::Error::other(why))) {
        tracing::warn!("what is known of the health of a disk was not written to {shown}: {why}");
    }
}

/// Keeps what is known of all disks: the daemon stops.
pub(crate) async fn save_all(node: &Arc<Node>) {
    for resource in node.resources() {
        save(node, &resource, None).await;
    }
}

/// How the disk of a resource is; `None` without one.
pub(crate) fn show(node: &Node, state: &State, disk: &DiskStatus) -> Option<DiskHealth> {
    let kept = state.health.kept.as_ref()?;
    let now = unix_ms();
    let health = &state.health;
    let smart = node.smart.of(&health.devices);
    let hot_regions = kept.hot_regions();
    let (score, reasons) = score::score(&Facts {
        failed: disk.problem.as_deref(),
        now_ms: now,
        errors: kept.errors(),
        errors_last_hour: kept.errors_last_hour(now),
        errors_last_day: kept.errors_last_day(now),
        last_error_ms: kept.last_error,
        stalls_last_hour: kept.stalls_last_hour(now),
        oldest_pending: health.oldest_pending,
        hot_regions: &hot_regions,
        lost_blocks: disk.unreadable_blocks,
        remapped_sectors: disk.remapped_sectors,
        spare_sectors_free: disk.spare_sectors_free,
        smart: &smart,
    });
    Some(DiskHealth {
        score,
        level: health.level.after(score).as_str().to_owned(),
        reasons,
        errors: kept.errors(),
        errors_last_hour: kept.errors_last_hour(now),
        errors_last_day: kept.errors_last_day(now),
        last_error_unix_ms: kept.last_error,
        counted_since_unix_ms: kept.since,
        latency: latency(&health.times),
        stalls: kept.stalls,
        stalls_last_hour: kept.stalls_last_hour(now),
        outliers: kept.outliers,
        oldest_pending_micros: u64::try_from(health.oldest_pending.as_micros()).unwrap_or(u64::MAX),
        hot_regions,
        smart,
    })
}

fn latency(times: &[Times; 3]) -> Vec<DiskLatency> {
    let shown = KINDS.iter().zip(times).filter(|(_, times)| times.operations > 0);
    shown
        .map(|(kind, times)| DiskLatency {
            kind: (*kind).to_owned(),
            operations: times.operations,
            p50_micros: times.p50,
            p99_micros: times.p99,
            p999_micros: times.p999,
            max_micros: times.max,
        })
        .collect()
}

/// What a person should do something about.
pub(crate) fn problems(node: &Node) -> Vec<String> {
    let of_disks = node.resources().into_iter().filter_map(|r| r.state().health.problem.clone());
    of_disks.chain(node.smart.problems()).collect()
}

/// `GET /v1/resources/{name}/health`.
///
/// # Errors
/// `NO_SUCH_RESOURCE`, `NO_DISK`.
pub(crate) async fn of(node: &Arc<Node>, name: &str) -> Result<DiskHealth, ApiError> {
    let resource = node.resource_named(name)?;
    look(node, &resource).await;
    let shown = status::resource(node, &resource);
    shown.disk.health.ok_or_else(|| no_disk("health was not told", name))
}

fn no_disk(what: &str, name: &str) -> ApiError {
    let message = format!("{what} for {name}: this node has no disk of it");
    ApiError::new(ErrorCode::NoDisk, message).hint("run it on a node that has one")
}

/// `health --clear`: forgets the errors that were counted. Remapped sectors stay.
///
/// # Errors
/// `NO_SUCH_RESOURCE`, `NO_DISK`.
pub(crate) async fn clear(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    look(node, &resource).await;
    {
        let mut state = resource.state();
        let Some(kept) = &mut state.health.kept else {
            return Err(no_disk("health was not cleared", name));
        };
        *kept = Kept::new(&kept.disk, unix_ms());
        state.health.dirty = true;
    }
    save(node, &resource, None).await;
    judge(node, &resource);
    Ok(Done::new(format!(
        "the errors of the disk of {name} on this node are counted from 0 again; what is remapped \
         stays so"
    )))
}

/// Asks the devices below all disks what they say of themselves, now and then.
pub(crate) async fn run_smart(node: Arc<Node>) {
    let mut disks: BTreeMap<ResourceId, PathBuf> = BTreeMap::new();
    let mut looked_below: Option<Instant> = None;
    loop {
        let now = disks_of(&node);
        if now != disks || looked_below.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
            looked_below = Some(Instant::now());
            look_below(&node, &now).await;
            disks = now;
        }
        ask_all(&node).await;
        tokio::select! {
            () = tokio::time::sleep(SMART_TICK) => {}
            () = node.stopped() => return,
        }
    }
}

fn disks_of(node: &Node) -> BTreeMap<ResourceId, PathBuf> {
    let disk = |resource: Arc<Resource>| {
        let disk = resource.state().local.disk.as_ref()?.path.clone();
        crate::remote::uri_of(&disk).is_none().then_some((resource.id, disk))
    };
    node.resources().into_iter().filter_map(disk).collect()
}

async fn look_below(node: &Node, disks: &BTreeMap<ResourceId, PathBuf>) {
    for resource in node.resources() {
        let Some(disk) = disks.get(&resource.id).cloned() else { continue };
        let found = tokio::task::spawn_blocking(move || below::devices(&disk)).await;
        resource.state().health.devices = found.unwrap_or_default();
    }
}

async fn ask_all(node: &Arc<Node>) {
    let program = match &node.settings.smartctl {
        SmartProgram::Off => None,
        SmartProgram::Installed => smart::installed(),
        SmartProgram::At(path) => Some(path.clone()),
    };
    let wanted: BTreeSet<PathBuf> = match program {
        Some(_) => node.resources().iter().flat_map(|r| r.state().health.devices.clone()).collect(),
        None => BTreeSet::new(),
    };
    node.smart.lock().retain(|device, _| wanted.contains(device));
    let Some(program) = program else { return };
    for device in wanted {
        let known = node.smart.lock().get(&device).map(|asked| asked.at);
        if known.is_some_and(|at| at.elapsed() < ASK_EVERY) {
            continue;
        }
        let (said, broken) = tokio::select! {
            answer = smart::ask(&program, &device, smart::LIMIT) => answer,
            () = node.stopped() => return,
        };
        if broken && let Some(why) = &said.problem {
            tracing::warn!("the SMART values of {} are not known: {why}", device.display());
        }
        node.smart.lock().insert(device, Asked { at: Instant::now(), said, broken });
        if broken {
            node.cluster_changed();
        }
    }
}
