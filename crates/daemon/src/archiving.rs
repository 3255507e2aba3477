//! Archives: a thread for each resource that is Primary here, has a journal, and is to be archived.

use crate::journaled::{JournalCallError, JournalHandle, Mode};
use crate::logpeer::read_as_given;
use crate::node::Node;
use crate::resource::Resource;
use bytes::{Bytes, BytesMut};
use holdfast_api::error::without_numbers;
use holdfast_api::options::Settings;
use holdfast_api::status::ArchiveStatus;
use holdfast_archive::{ArchiveError, Keep, Source, SourceError, Store, Writer, open_store};
use holdfast_format::journal::SegmentHeader;
use holdfast_journal::ship::Found;
use holdfast_units::{ByteRange, HybridTime, LogPosition, ResourceId, Role};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;

/// The pause between two looks at what is to be archived.
const LOOK: Duration = Duration::from_millis(500);
/// What is younger stays although nothing names it: another node may be about to.
const SWEEP_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// The pauses after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pause after a part of the disk could not be had for a base image.
const UNREAD_PAUSE: Duration = Duration::from_secs(10);

/// Keeps a thread for each resource that is to be archived by this node, until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let mut jobs: BTreeMap<ResourceId, Job> = BTreeMap::new();
    // Those that were told to end: two of one resource would work against each other.
    let mut ending: Vec<(ResourceId, thread::JoinHandle<()>)> = Vec::new();
    loop {
        let resources = node.resources();
        let wanted: BTreeMap<ResourceId, (Arc<Resource>, Wanted)> = resources
            .into_iter()
            .filter_map(|resource| {
                Some((resource.id, (Arc::clone(&resource), wanted(&node, &resource)?)))
            })
            .collect();
        let over = jobs.extract_if(.., |id, job| {
            let same = wanted.get(id).is_some_and(|(_, wanted)| wanted.same(&job.wanted));
            if !same {
                job.resource.state().archive = None;
            }
            !same || job.thread.is_finished()
        });
        ending.extend(over.map(|(id, job)| (id, job.thread)));
        ending.retain(|(_, thread)| !thread.is_finished());
        for (id, (resource, wanted)) in wanted {
            if !jobs.contains_key(&id)
                && !ending.iter().any(|(ending, _)| *ending == id)
                && let Some(job) = start(&node, resource, wanted)
            {
                jobs.insert(id, job);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = node.stopped() => return,
        }
    }
}

/// What is to be archived, and how.
#[derive(Clone)]
struct Wanted {
    name: String,
    place: String,
    interval: Duration,
    base_interval: Duration,
    keep: Keep,
    /// Which start of the resource.
    start: u64,
    journal: JournalHandle,
}

impl Wanted {
    fn same(&self, other: &Self) -> bool {
        (&self.name, &self.place, self.interval, self.base_interval, self.keep, self.start)
            == (
                &other.name,
                &other.place,
                other.interval,
                other.base_interval,
                other.keep,
                other.start,
            )
    }
}

fn wanted(node: &Node, resource: &Resource) -> Option<Wanted> {
    let options = node.view().records.resource(resource.id)?.options;
    let settings = Settings::resolve(&options, None);
    let place = settings.archive?;
    let state = resource.state();
    let handle = &state.running.as_ref()?.handle;
    let journal = handle.journal()?.clone();
    let leads =
        handle.snapshot().snapshot.role == Role::Primary && journal.view().mode == Mode::Lead;
    let age = u64::try_from(settings.archive_keep.as_millis()).ok().filter(|age| *age > 0);
    leads.then(|| Wanted {
        name: state.local.name.clone(),
        place,
        interval: settings.archive_interval,
        base_interval: settings.archive_base_age,
        keep: Keep { age, bases: None },
        start: state.starts,
        journal,
    })
}

/// A thread that archives. It ends soon after this is dropped.
struct Job {
    wanted: Wanted,
    resource: Arc<Resource>,
    thread: thread::JoinHandle<()>,
    _alive: Sender<()>,
}

fn start(node: &Arc<Node>, resource: Arc<Resource>, wanted: Wanted) -> Option<Job> {
    let (alive, ended) = channel();
    let mut archiver = Archiver {
        node: Arc::clone(node),
        resource: Arc::clone(&resource),
        wanted: wanted.clone(),
        ended,
        runtime: Handle::current(),
    };
    let spawned = thread::Builder::new().name("archive".into()).spawn(move || archiver.run());
    match spawned {
        Ok(thread) => Some(Job { wanted, resource, thread, _alive: alive }),
        Err(error) => {
            tracing::warn!(
                "resource {} is not archived: no thread was started: {error}",
                wanted.name
            );
            None
        }
    }
}

type AnyWriter = Writer<Box<dyn Store + Send>>;

struct Archiver {
    node: Arc<Node>,
    resource: Arc<Resource>,
    wanted: Wanted,
    ended: Receiver<()>,
    runtime: Handle,
}

impl Archiver {
    fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let Err(error) = self.archive() else { return };
            if self.has_ended(Duration::ZERO) {
                return;
            }
            // What worked for a while is tried again soon.
            if begun.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            self.trouble(&error);
            if self.has_ended(pause) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether it shall end, within this time.
    fn has_ended(&self, wait: Duration) -> bool {
        self.ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected)
    }

    fn trouble(&self, error: &ArchiveError) {
        let what = without_numbers(&error.to_string());
        self.warn(&what);
        let mut state = self.resource.state();
        let status = state.archive.get_or_insert_default();
        status.place.clone_from(&self.wanted.place);
        status.problem = Some(what);
        drop(state);
        self.resource.changed();
    }

    /// Says a problem that was not told yet.
    fn warn(&self, what: &str) {
        let known = self.resource.state().archive.as_ref().and_then(|a| a.problem.clone());
        if known.as_deref() == Some(what) {
            return;
        }
        let (name, place) = (&self.wanted.name, &self.wanted.place);
        tracing::warn!("resource {name} is not all archived in {place}: {what}");
        let text = format!("not everything is archived at present: {what}");
        self.node.hub.notice(name, None, &text);
    }

    fn tell(&self, writer: &AnyWriter, base_percent: Option<f64>, problem: Option<String>) {
        let line = writer.manifest().line();
        let first = line.and_then(|line| line.bases.first());
        let complete = line.filter(|line| !line.bases.is_empty());
        let status = ArchiveStatus {
            place: self.wanted.place.clone(),
            position: writer.archived().unwrap_or_default().0,
            complete_unix_ms: complete.map_or(0, |line| line.complete_until().unix_millis()),
            oldest_unix_ms: first.map_or(0, |base| HybridTime(base.time).unix_millis()),
            base_percent,
            problem,
        };
        self.resource.state().archive = Some(status);
        self.resource.changed();
    }

    /// Archives until it shall end.
    fn archive(&self) -> Result<(), ArchiveError> {
        let Wanted { name, place, interval, .. } = &self.wanted;
        let opened = open_store(place, true);
        let store = opened.map_err(|why| ArchiveError::Refused(format!("{place}: {why}")))?;
        let mut writer = Writer::open(store, name, self.resource.id)?;
        let mut source = Resources {
            resource: Arc::clone(&self.resource),
            journal: self.wanted.journal.clone(),
            runtime: self.runtime.clone(),
            unread: None,
        };
        let mut unread: Option<(String, Instant)> = None;
        loop {
            self.follow(&mut writer, &mut source)?;
            if self.base_wanted(&writer, &mut source) {
                writer.begin_base(&mut source)?;
            }
            let again = unread.as_ref().is_none_or(|(_, at)| at.elapsed() >= UNREAD_PAUSE);
            if writer.base_pending() && again {
                unread = match self.make_base(&mut writer, &mut source)? {
                    Made::Finished => {
                        self.clear_up(&mut writer, &mut source)?;
                        None
                    }
                    Made::Ended => return Ok(()),
                    Made::Unread(why) => {
                        self.warn(&why);
                        // What need not be kept is given up all the same.
                        self.clear_up(&mut writer, &mut source)?;
                        Some((why, Instant::now()))
                    }
                };
            }
            self.tell(&writer, None, unread.as_ref().map(|(why, _)| why.clone()));
            if self.has_ended(*interval) {
                return Ok(());
            }
        }
    }

    /// Gives up what need not be kept any more. `expire` keeps what the newest base image needs, so
    /// this is right whether or not there is a new one.
    fn clear_up(&self, writer: &mut AnyWriter, source: &mut Resources) -> Result<(), ArchiveError> {
        writer.expire(self.wanted.keep, source.now())?;
        let before = SystemTime::now().checked_sub(SWEEP_AGE);
        let before = before.unwrap_or(SystemTime::UNIX_EPOCH);
        writer.sweep(before, &mut || !self.has_ended(Duration::ZERO)).map(drop)
    }

    fn follow(&self, writer: &mut AnyWriter, source: &mut Resources) -> Result<(), ArchiveError> {
        let had_one = writer.newest_base().is_some();
        let followed = writer.follow(source)?;
        match writer.given_up() {
            0 => {}
            count => {
                let name = &self.wanted.name;
                let text = format!(
                    "the archive has no room to name more: its {count} oldest base images and the \
                     moments before the next one were given up; archive-keep says what is kept"
                );
                tracing::warn!("resource {name}: {text}");
                self.node.hub.notice(name, None, &text);
            }
        }
        if followed.new_line && had_one {
            let name = &self.wanted.name;
            let text = "the archive cannot go on from where it was: moments from then until \
                        another base image is finished cannot be restored";
            tracing::warn!("resource {name}: {text}");
            self.node.hub.notice(name, None, text);
        }
        Ok(())
    }

    fn base_wanted(&self, writer: &AnyWriter, source: &mut Resources) -> bool {
        let interval = self.wanted.base_interval;
        let newest = writer.newest_base().map_or(0, HybridTime::unix_millis);
        let age = source.now().unix_millis().saturating_sub(newest);
        !interval.is_zero() && u128::from(age) >= interval.as_millis()
    }

    /// Goes on with a base image until it is finished, as far as the disk can be read; not when this
    /// shall end before that.
    fn make_base(
        &self,
        writer: &mut AnyWriter,
        source: &mut Resources,
    ) -> Result<Made, ArchiveError> {
        let mut followed = Instant::now();
        loop {
            if self.has_ended(Duration::ZERO) {
                return Ok(Made::Ended);
            }
            let step = writer.base_step(source);
            if let Some(why) = source.unread.take() {
                return Ok(Made::Unread(why));
            }
            let progress = step?;
            if progress.finished {
                return Ok(Made::Finished);
            }
            // Precise enough for a percentage.
            let percent = (progress.done * 1000 / progress.total.max(1)) as f64 / 10.0;
            self.tell(writer, Some(percent), None);
            // The journal is not kept for long while this takes its time.
            if followed.elapsed() > self.wanted.interval.min(Duration::from_secs(5)) {
                self.follow(writer, source)?;
                followed = Instant::now();
            }
        }
    }
}

/// What became of a base image.
enum Made {
    Finished,
    /// The thread shall end.
    Ended,
    /// What comes next cannot be had now, and why. The journal can be archived all the same.
    Unread(String),
}

/// A resource as what an archive is made of.
struct Resources {
    resource: Arc<Resource>,
    journal: JournalHandle,
    runtime: Handle,
    /// Why a part of the disk was not had, the last time.
    unread: Option<String>,
}

fn failed(error: &JournalCallError) -> SourceError {
    SourceError(error.to_string())
}

impl Source for Resources {
    fn segments(&mut self) -> Result<Vec<(SegmentHeader, u64)>, SourceError> {
        self.runtime.block_on(self.journal.led_segments()).map_err(|error| failed(&error))
    }

    fn fetch(&mut self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, SourceError> {
        let max = max.min(1 << 20);
        self.runtime
            .block_on(self.journal.fetch(segment, from, max))
            .map_err(|error| failed(&error))
    }

    fn flush(&mut self) -> Result<LogPosition, SourceError> {
        // Only while this node appends is what the disk has in the journal.
        self.segments()?;
        self.runtime.block_on(self.journal.flush()).map_err(|error| failed(&error))
    }

    fn read(&mut self, range: ByteRange) -> Result<Bytes, SourceError> {
        let resource = Arc::downgrade(&self.resource);
        let mut found = BytesMut::new();
        let mut rest = range;
        while !rest.is_empty() {
            let read = self.runtime.block_on(read_as_given(&resource, &self.journal, rest));
            let why = match read {
                Ok(Found::Good(bytes)) if !bytes.is_empty() => {
                    let read = bytes.len() as u64;
                    rest = ByteRange::new(rest.offset + read, rest.len - read);
                    found.extend_from_slice(&bytes);
                    continue;
                }
                Ok(Found::Lost(_)) => "no member in reach has a good copy of it".to_owned(),
                Ok(Found::Good(_)) => "it could not be read".to_owned(),
                Err(error) => error.to_string(),
            };
            let at = rest.offset;
            let why = format!("no base image can be made, for what lies at byte {at}: {why}");
            self.unread = Some(why.clone());
            return Err(SourceError(why));
        }
        Ok(found.freeze())
    }

    fn size(&mut self) -> Result<u64, SourceError> {
        let view = self.resource.view();
        let view = view.ok_or_else(|| SourceError("the resource was stopped".to_owned()))?;
        Ok(view.snapshot.size)
    }

    fn now(&mut self) -> HybridTime {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        HybridTime::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
