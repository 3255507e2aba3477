//! `verify` and `scrub` of a running resource: when they begin, how far they are, and what came out.
//!
//! A `verify` lives as long as the core. A scrub survives the daemon: how far it is, and what it found
//! until then, is in a file of the state directory, and the next start goes on there.

use crate::events::unix_ms;
use crate::logpeer::FollowScrub;
use crate::node::Node;
use crate::rate::RateMeter;
use crate::resource::Resource;
use crate::shard::ResourceHandle;
use crate::statefile;
use holdfast_api::options::{OptionMap, Settings};
use holdfast_api::survey::{SurveyPlace, SurveyReport, SurveyReports};
use holdfast_core::{
    Command, MAX_FOUND, Notice, SurveyAction, SurveyEnd, SurveyKind, SurveyOrder, SurveyProgress,
};
use holdfast_units::ResourceId;
use holdfast_wire::RepairMode;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// The first word of a scrub's file, and the version of its content.
const HEAD: &str = "holdfast-scrub 1 ";
/// How often it is looked at how far they are, and the file is written while a scrub runs.
const LOOK: Duration = Duration::from_millis(500);
/// A run that is not seen in so many looks has ended; a busy machine may begin one late.
const UNSEEN: u32 = 20;
/// A scrub that could not begin is tried again after so long.
const RETRY: Duration = Duration::from_secs(5);

/// Who reads the disk: the core, or the thread of a node that follows.
#[derive(Clone)]
pub(crate) enum Surveyed {
    /// A node that has a core.
    Core(ResourceHandle),
    /// One that follows a journal. It has scrubs only.
    Follower(FollowScrub),
}

impl Surveyed {
    fn notices(&self) -> Receiver<Notice> {
        match self {
            Self::Core(handle) => handle.notices(),
            Self::Follower(scrub) => scrub.notices(),
        }
    }

    async fn command(&self, command: Command) -> Result<(), holdfast_core::Refusal> {
        match self {
            Self::Core(handle) => handle.command(command).await,
            Self::Follower(scrub) => scrub.command(command).await,
        }
    }

    async fn refresh(&self) {
        if let Self::Core(handle) = self {
            handle.refresh().await;
        }
    }

    fn progress(&self) -> Vec<SurveyProgress> {
        match self {
            Self::Core(handle) => handle.snapshot().snapshot.surveys.clone(),
            Self::Follower(scrub) => Vec::from_iter(scrub.progress()),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Core(handle) => handle.snapshot().snapshot.own_size,
            Self::Follower(scrub) => scrub.size(),
        }
    }
}

/// What is kept of the scrubs of a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScrubFile {
    /// One is under way: it goes on at `next`.
    current: Option<ScrubRun>,
    /// The last one that ended.
    last: Option<SurveyReport>,
    /// When it was begun to count the days to the first one, in milliseconds since 1970.
    since_unix_ms: u64,
}

/// A scrub that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct ScrubRun {
    /// Where to go on.
    next: u64,
    /// The size of the device for which that holds.
    #[serde(default)]
    size: u64,
    /// A person began it: it does not wait for its time of the day.
    by_person: bool,
    /// A person has paused it.
    paused: bool,
    /// What came out until `next` was reached.
    before: SurveyReport,
}

impl ScrubRun {
    /// Where it goes on on a device of this size. On another size than before the numbers of chunks
    /// stand for others: it looks at everything again, and keeps what it found.
    fn on(self, size: u64) -> Self {
        if self.size == size || self.next == 0 {
            return Self { size, ..self };
        }
        let before = SurveyReport {
            percent: 0.0,
            bytes_done: 0,
            bytes_compared: 0,
            bytes_skipped: 0,
            ..self.before
        };
        Self { next: 0, size, before, ..self }
    }
}

/// What is known of the runs of a resource.
#[derive(Debug, Default)]
pub(crate) struct Surveys {
    verify: Option<Run>,
    last_verify: Option<SurveyReport>,
    scrub: Option<Run>,
    file: ScrubFile,
    /// The file is the one of the state directory.
    loaded: bool,
}

/// A run of the core.
#[derive(Debug)]
struct Run {
    /// What came out before the core's run began.
    before: SurveyReport,
    now: Option<SurveyReport>,
    meter: RateMeter,
    /// Looks in which the core did not know it.
    unseen: u32,
    next: u64,
    size: u64,
    /// It is held because its time of the day is over.
    out_of_window: bool,
}

impl Run {
    fn new(before: SurveyReport, next: u64, size: u64) -> Self {
        let meter = RateMeter::default();
        Self { before, now: None, meter, unseen: 0, next, size, out_of_window: false }
    }

    fn report(&self) -> SurveyReport {
        self.now.clone().unwrap_or_else(|| self.before.clone())
    }
}

fn path_of(node: &Node, id: ResourceId) -> PathBuf {
    node.settings.state_dir.join(format!("scrub-{id}.state"))
}

/// Nothing is kept of the scrubs of a resource any more.
pub(crate) fn forget(node: &Node, id: ResourceId) {
    if let Err(error) = statefile::remove(&path_of(node, id)) {
        tracing::warn!("what was kept of a scrub was not removed: {error}");
    }
}

/// What goes on and what came out, with the places that differed.
pub(crate) fn reports(node: &Node, resource: &Resource, kind: SurveyKind) -> SurveyReports {
    let state = resource.state();
    let surveys = &state.surveys;
    match kind {
        SurveyKind::Verify => SurveyReports {
            current: surveys.verify.as_ref().map(Run::report),
            last: surveys.last_verify.clone(),
            next_unix_ms: None,
        },
        SurveyKind::Scrub => {
            let waits =
                surveys.file.current.as_ref().map(|run| shown_waiting(run, &state.local.name));
            let current = surveys.scrub.as_ref().map(Run::report).or(waits);
            let interval = interval(&options(node, resource.id));
            SurveyReports {
                next_unix_ms: interval
                    .filter(|_| current.is_none() && surveys.loaded)
                    .map(|interval| surveys.file.due(interval)),
                current,
                last: surveys.file.last.clone(),
            }
        }
    }
}

/// A scrub that is under way, while the core does not work on it.
fn shown_waiting(run: &ScrubRun, name: &str) -> SurveyReport {
    let (state, reason) = if run.paused {
        ("paused", format!("`holdfast scrub {name} --resume` goes on"))
    } else {
        ("waiting", "it goes on at its time of the day, when the disk is in use".to_owned())
    };
    SurveyReport { state: state.to_owned(), reason: Some(reason), ..run.before.clone() }
}

/// For `status`: what goes on, or the last one, without the places.
pub(crate) fn shown(node: &Node, resource: &Resource, kind: SurveyKind) -> Option<SurveyReport> {
    let SurveyReports { current, last, .. } = reports(node, resource, kind);
    current.or(last).map(|report| SurveyReport { places: Vec::new(), ..report })
}

fn options(node: &Node, id: ResourceId) -> OptionMap {
    node.view().records.resource(id).map(|record| record.options).unwrap_or_default()
}

fn interval(options: &OptionMap) -> Option<Duration> {
    Some(Settings::resolve(options, None).scrub_interval).filter(|interval| !interval.is_zero())
}

impl ScrubFile {
    /// When the next one is due.
    fn due(&self, interval: Duration) -> u64 {
        let last = self.last.as_ref().and_then(|last| last.ended_unix_ms);
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        last.unwrap_or(self.since_unix_ms).saturating_add(millis)
    }
}

/// Begins a `verify`. Its end is told by the core.
///
/// # Errors
/// The core's refusal.
pub(crate) async fn begin_verify(
    resource: &Resource,
    handle: &ResourceHandle,
    order: SurveyOrder,
) -> Result<(), holdfast_core::Refusal> {
    let before = SurveyReport {
        state: "running".to_owned(),
        repair: word_of(order.repair).to_owned(),
        started_unix_ms: unix_ms(),
        ..SurveyReport::default()
    };
    let already = {
        let mut state = resource.state();
        let already = state.surveys.verify.is_some();
        if !already {
            state.surveys.verify = Some(Run::new(before, 0, 0));
        }
        already
    };
    if already {
        return Err(holdfast_core::Refusal::SurveyRunning);
    }
    let begun = handle.command(Command::Survey(order)).await;
    if begun.is_err() {
        resource.state().surveys.verify = None;
    }
    begun
}

/// Begins a scrub, as a person says, or does something to it; durably.
///
/// # Errors
/// The core's refusal.
pub(crate) async fn scrub(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    handle: &Surveyed,
    action: Option<SurveyAction>,
) -> Result<(), holdfast_core::Refusal> {
    use holdfast_core::Refusal;
    load(node, resource).await;
    let running = {
        let mut state = resource.state();
        let surveys = &mut state.surveys;
        let running = surveys.scrub.is_some();
        match (&mut surveys.file.current, action) {
            (Some(_), None) => return Err(Refusal::SurveyRunning),
            (None, Some(_)) => return Err(Refusal::NoSurvey),
            (current @ None, None) => {
                let before = fresh_scrub();
                *current = Some(ScrubRun { by_person: true, before, ..ScrubRun::default() });
            }
            (Some(run), Some(SurveyAction::Pause)) => run.paused = true,
            (Some(run), Some(SurveyAction::Resume)) => (run.paused, run.by_person) = (false, true),
            (current @ Some(_), Some(SurveyAction::Stop)) if !running => {
                let run = current.take().unwrap_or_default();
                surveys.file.last = Some(ended(run.before, "stopped", None));
            }
            (Some(_), Some(SurveyAction::Stop)) => {}
        }
        running
    };
    save(node, resource).await;
    match action {
        Some(action) if running => {
            handle.command(Command::SurveyControl(SurveyKind::Scrub, action)).await
        }
        Some(SurveyAction::Pause | SurveyAction::Stop) => Ok(()),
        None | Some(SurveyAction::Resume) => {
            let begun = go_on_with_scrub(resource, handle).await;
            if begun.is_err() && action.is_none() {
                resource.state().surveys.file.current = None;
                save(node, resource).await;
            }
            begun
        }
    }
}

fn fresh_scrub() -> SurveyReport {
    SurveyReport {
        state: "running".to_owned(),
        repair: word_of(RepairMode::Majority).to_owned(),
        started_unix_ms: unix_ms(),
        ..SurveyReport::default()
    }
}

/// Has the core work on the scrub that is under way.
async fn go_on_with_scrub(
    resource: &Resource,
    handle: &Surveyed,
) -> Result<(), holdfast_core::Refusal> {
    let from = {
        let mut state = resource.state();
        let surveys = &mut state.surveys;
        let Some(run) = surveys.file.current.clone().filter(|_| surveys.scrub.is_none()) else {
            return Ok(());
        };
        let run = run.on(handle.size());
        surveys.scrub = Some(Run::new(run.before, run.next, run.size));
        run.next
    };
    let (kind, repair) = (SurveyKind::Scrub, RepairMode::Majority);
    let order = SurveyOrder { kind, range: None, peer: None, repair, from };
    let begun = handle.command(Command::Survey(order)).await;
    if begun.is_err() {
        resource.state().surveys.scrub = None;
    }
    begun
}

/// Writes the file, if it is not as it should be there.
async fn save(node: &Arc<Node>, resource: &Arc<Resource>) {
    let (path, resource) = (path_of(node, resource.id), Arc::clone(resource));
    let written = tokio::task::spawn_blocking(move || {
        let file = resource.state().surveys.file.clone();
        statefile::write(&path, HEAD, &file)
    });
    if let Ok(Err(error)) = written.await {
        tracing::warn!("how far a scrub is was not written: {error}");
    }
}

/// Looks after the runs of a resource while it is up. To be called before anybody can begin one.
pub(crate) fn run(
    node: Arc<Node>,
    resource: Arc<Resource>,
    handle: Surveyed,
) -> impl Future<Output = ()> {
    {
        // The core is another one: what it worked on is over.
        let surveys = &mut resource.state().surveys;
        (surveys.verify, surveys.scrub) = (None, None);
    }
    let notices = handle.notices();
    look_after(node, resource, handle, notices)
}

async fn look_after(
    node: Arc<Node>,
    resource: Arc<Resource>,
    handle: Surveyed,
    mut notices: Receiver<Notice>,
) {
    load(&node, &resource).await;
    let mut retry_at = Instant::now();
    loop {
        tokio::select! {
            told = notices.recv() => match told {
                Ok(Notice::SurveyEnded(end, progress)) => {
                    over(&node, &resource, end, &progress).await;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(LOOK) => {
                handle.refresh().await;
                look(&node, &resource, &handle).await;
                if Instant::now() >= retry_at && !schedule(&node, &resource, &handle).await {
                    retry_at = Instant::now() + RETRY;
                }
            }
        }
    }
}

/// Reads the file, once.
async fn load(node: &Arc<Node>, resource: &Arc<Resource>) {
    if resource.state().surveys.loaded {
        return;
    }
    let path = path_of(node, resource.id);
    let read =
        tokio::task::spawn_blocking(move || match statefile::read::<ScrubFile>(&path, HEAD) {
            Ok(file) => Some(file),
            Err(why) => {
                if path.exists() {
                    tracing::warn!("{} is not used: {why}", path.display());
                }
                None
            }
        });
    let found = read.await.ok().flatten();
    let fresh = found.is_none();
    {
        let mut state = resource.state();
        let surveys = &mut state.surveys;
        if surveys.loaded {
            // Somebody else was at it, too, and may have begun something since.
            return;
        }
        let since_unix_ms = unix_ms();
        surveys.file = found.unwrap_or(ScrubFile { since_unix_ms, ..ScrubFile::default() });
        surveys.loaded = true;
    }
    if fresh {
        save(node, resource).await;
    }
}

/// Notes how far the runs are.
async fn look(node: &Arc<Node>, resource: &Arc<Resource>, handle: &Surveyed) {
    let progresses = handle.progress();
    let mut lost = Vec::new();
    let moved = {
        let mut state = resource.state();
        let surveys = &mut state.surveys;
        let before = surveys.file.clone();
        for (kind, run) in
            [(SurveyKind::Verify, &mut surveys.verify), (SurveyKind::Scrub, &mut surveys.scrub)]
        {
            let Some(run) = run else { continue };
            match progresses.iter().find(|progress| progress.kind == kind) {
                Some(progress) => note(run, node, resource.id, progress),
                None => run.unseen += 1,
            }
            if run.unseen > UNSEEN {
                // Its end was told while too much else was.
                lost.push(kind);
            }
        }
        if let (Some(current), Some(run)) = (&mut surveys.file.current, &surveys.scrub) {
            (current.next, current.size, current.before) = (run.next, run.size, run.report());
        }
        surveys.file != before
    };
    for kind in lost {
        let mut state = resource.state();
        match kind {
            SurveyKind::Verify => {
                let why = "its end was not told".to_owned();
                let run = state.surveys.verify.take();
                state.surveys.last_verify = run.map(|r| ended(r.report(), "failed", Some(why)));
            }
            SurveyKind::Scrub => state.surveys.scrub = None,
        }
    }
    if moved {
        save(node, resource).await;
    }
}

/// Adds what the core's run gave to what came before it.
fn note(run: &mut Run, node: &Node, id: ResourceId, progress: &SurveyProgress) {
    run.unseen = 0;
    (run.next, run.size) = (progress.next, progress.size);
    let (before, view) = (&run.before, node.view());
    let name = |slot| view.slot_name(id, slot);
    let bytes_done = before.bytes_done + progress.done;
    let bytes_total = before.bytes_done + progress.total;
    let now = Instant::now();
    run.meter.note(now, bytes_done);
    let rate = run.meter.rate(now, bytes_done);
    let mut peers = before.peers.clone();
    peers.extend(progress.peers.iter().map(name));
    peers.sort();
    peers.dedup();
    let mut places = before.places.clone();
    places.extend(progress.found.iter().map(|found| SurveyPlace {
        node: name(found.node),
        offset: found.first * holdfast_units::BLOCK_SIZE,
        length: found.blocks * holdfast_units::BLOCK_SIZE,
        repaired: found.repaired,
        majority: found.majority,
    }));
    places.truncate(MAX_FOUND);
    let (state, reason) = match progress.waiting {
        _ if run.out_of_window => ("waiting", Some("its time of the day is over".to_owned())),
        _ if progress.paused => ("paused", None),
        Some(peer) => ("waiting", Some(format!("it waits for {} to be UpToDate", name(peer)))),
        None => ("running", None),
    };
    run.now = Some(SurveyReport {
        state: state.to_owned(),
        reason,
        repair: word_of(progress.repair).to_owned(),
        started_unix_ms: before.started_unix_ms,
        ended_unix_ms: None,
        percent: crate::status::percent(bytes_done, bytes_total),
        bytes_done,
        bytes_total,
        bytes_compared: before.bytes_compared + progress.compared,
        bytes_skipped: before.bytes_skipped + progress.skipped,
        rate_bytes_per_second: rate,
        eta_seconds: bytes_total.saturating_sub(bytes_done).checked_div(rate).unwrap_or(0),
        differing_blocks: before.differing_blocks + progress.differing,
        repaired_blocks: before.repaired_blocks + progress.repaired,
        unreadable_blocks: before.unreadable_blocks + progress.unreadable,
        peers,
        places,
    });
}

/// A run of the core has ended.
async fn over(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    end: SurveyEnd,
    progress: &SurveyProgress,
) {
    let name = |slot| node.view().slot_name(resource.id, slot);
    let (word, why) = match end {
        SurveyEnd::Done => ("done", None),
        SurveyEnd::Stopped => ("stopped", None),
        SurveyEnd::PeerLost(peer) => {
            ("failed", Some(format!("{} was gone for too long, or for good", name(peer))))
        }
        SurveyEnd::DiskLost => ("failed", Some("this node's disk is not used any more".to_owned())),
    };
    let scrub = progress.kind == SurveyKind::Scrub;
    {
        let mut state = resource.state();
        let surveys = &mut state.surveys;
        let run = if scrub { surveys.scrub.take() } else { surveys.verify.take() };
        let Some(mut run) = run else { return };
        note(&mut run, node, resource.id, progress);
        let report = run.report();
        if !scrub {
            surveys.last_verify = Some(ended(report, word, why));
        } else if end == SurveyEnd::DiskLost {
            if let Some(current) = &mut surveys.file.current {
                (current.next, current.size, current.before) = (run.next, run.size, report);
            }
        } else {
            surveys.file.current = None;
            surveys.file.last = Some(ended(report, word, why));
        }
    }
    if scrub {
        save(node, resource).await;
    }
    crate::commands::updown::publish(node, resource);
}

fn ended(report: SurveyReport, state: &str, reason: Option<String>) -> SurveyReport {
    SurveyReport {
        state: state.to_owned(),
        reason,
        ended_unix_ms: Some(unix_ms()),
        rate_bytes_per_second: 0,
        eta_seconds: 0,
        ..report
    }
}

/// Begins what is due, and holds a scrub outside of its time. False when that was refused.
async fn schedule(node: &Arc<Node>, resource: &Arc<Resource>, handle: &Surveyed) -> bool {
    let options = options(node, resource.id);
    let settings = Settings::resolve(&options, None);
    let inside = settings.scrub_window.contains(minute_of_day());
    enum Step {
        Nothing,
        Hold(bool),
        GoOn,
        Begin,
    }
    let step = {
        let mut state = resource.state();
        let surveys = &mut state.surveys;
        match (&surveys.file.current, &mut surveys.scrub) {
            (Some(current), Some(run)) => {
                let out = !inside && !current.by_person;
                let news = run.out_of_window != out && !current.paused;
                run.out_of_window = out;
                if news { Step::Hold(out) } else { Step::Nothing }
            }
            (Some(current), None) if !current.paused && (inside || current.by_person) => Step::GoOn,
            (None, None) => {
                let due = interval(&options).map(|interval| surveys.file.due(interval));
                let due = due.is_some_and(|due| unix_ms() >= due);
                if due && inside { Step::Begin } else { Step::Nothing }
            }
            _ => Step::Nothing,
        }
    };
    let done = match step {
        Step::Nothing => return true,
        Step::Hold(hold) => {
            let action = if hold { SurveyAction::Pause } else { SurveyAction::Resume };
            handle.command(Command::SurveyControl(SurveyKind::Scrub, action)).await
        }
        Step::GoOn => go_on_with_scrub(resource, handle).await,
        Step::Begin => {
            let before = fresh_scrub();
            resource.state().surveys.file.current =
                Some(ScrubRun { before, ..ScrubRun::default() });
            save(node, resource).await;
            go_on_with_scrub(resource, handle).await
        }
    };
    done.is_ok()
}

/// How fast a scrub may read, in bytes a second; 0 is as fast as it can.
pub(crate) fn scrub_rate(node: &Node, id: ResourceId) -> u64 {
    Settings::resolve(&options(node, id), None).scrub_rate
}

/// Minutes since midnight of local time.
fn minute_of_day() -> u16 {
    let now = jiff::Zoned::now();
    u16::try_from(i32::from(now.hour()) * 60 + i32::from(now.minute())).unwrap_or(0)
}

fn word_of(repair: RepairMode) -> &'static str {
    match repair {
        RepairMode::Never => "never",
        RepairMode::Majority => "majority",
        RepairMode::Always => "always",
    }
}

#[cfg(test)]
mod tests {
    use super::{ScrubRun, SurveyReport};

    fn half() -> ScrubRun {
        let before = SurveyReport {
            bytes_done: 700,
            bytes_compared: 600,
            differing_blocks: 3,
            ..Default::default()
        };
        ScrubRun { next: 5, size: 1 << 30, before, ..ScrubRun::default() }
    }

    #[test]
    fn a_scrub_goes_on_where_it_was_on_a_device_of_the_same_size() {
        assert_eq!(half().on(1 << 30), half());
    }

    #[test]
    fn a_scrub_begins_again_on_a_device_that_has_grown_and_keeps_what_it_found() {
        let run = half().on(2 << 30);
        assert_eq!((run.next, run.size), (0, 2 << 30));
        assert_eq!((run.before.bytes_done, run.before.bytes_compared), (0, 0));
        assert_eq!(run.before.differing_blocks, 3);
        // A file of before says no size.
        assert_eq!(ScrubRun { size: 0, ..half() }.on(1 << 30).next, 0);
    }
}
