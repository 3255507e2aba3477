//! Making a journal, and opening one with the disk that it belongs to. Everything here blocks.

use super::handle::{CALLS, JournalHandle};
use super::inbox::{Inbox, Order};
use super::thread::Baton;
use super::worker::{Worker, now};
use super::{JournalView, JournaledDisk, Mode};
use bytes::Bytes;
use holdfast_format::BlockError;
use holdfast_journal::driver::{
    Backing, CURSORS, Directory, DirectoryOptions, Files, GIVEN_UP, Log, LogError, Open, spare_name,
};
use holdfast_journal::ship::FOLLOWING;
use holdfast_journal::{Damage, RecoverError, Settings, WriteBackLimits};
use holdfast_store::{BufferPool, Disk, DiskInfo, DiskOp, Outcome};
use holdfast_units::{
    ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId, format_size,
};
use rustix::fs::statvfs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use tokio::sync::{Semaphore, watch};

/// The smallest journal: four segments of the smallest size.
pub(crate) const MIN_SIZE: u64 = 4 * MIN_SEGMENT;
const MIN_SEGMENT: u64 = 4 << 20;
const MAX_SEGMENT: u64 = 64 << 20;
/// The names of spares that are made beforehand do not meet those of segments.
const FIRST_SPARE: u64 = 1 << 63;

/// The journal of a resource on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalSpec {
    /// The directory of its files.
    pub dir: PathBuf,
    /// The bytes that its files may take.
    pub size: u64,
}

/// How its room is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// All files together.
    pub(super) limit: u64,
    pub(super) segment: u64,
    pub(super) spares: u64,
    /// Segments are given up when they take more than this.
    pub(super) budget: u64,
    /// Bytes of the disk that may wait to be written back.
    pub(super) dirty: u64,
    /// Bytes of a round of write-back.
    pub(super) round: u64,
    /// Payloads kept in memory; more than may be written and not synced.
    pub(super) cache_bytes: usize,
    pub(super) pool_bytes: usize,
    /// Operations that the backing disk gets at a time.
    pub(super) disk_ops: usize,
}

impl Sizes {
    pub(super) fn of(limit: u64, disk_ops: usize) -> Self {
        let segment = (limit / 16 / (1 << 20) * (1 << 20)).clamp(MIN_SEGMENT, MAX_SEGMENT);
        let count = limit / segment;
        // The journal grows past its budget while what it holds cannot be given up yet.
        let (spares, extra) = (1, (count / 8).max(1));
        let budget = (count - spares - extra) * segment;
        Self {
            limit,
            segment,
            spares,
            budget,
            dirty: (budget / 2).clamp(MIN_SEGMENT, 512 << 20),
            round: 4 << 20,
            cache_bytes: 32 << 20,
            pool_bytes: 16 << 20,
            disk_ops,
        }
    }

    /// The segments may take no more than this, whatever they are needed for.
    pub(super) const fn most_segments(&self) -> u64 {
        self.limit - self.spares * self.segment
    }

    fn settings(&self, resource: ResourceId, node: NodeId, epoch: u64) -> Settings {
        Settings {
            segment_bytes: self.segment,
            batch_bytes: 1 << 20,
            unsynced_bytes: (self.cache_bytes / 2) as u64,
            dirty_bytes: self.dirty,
            dirty_parts: 128 << 10,
            // Everything within the budget: for peers that were away, and to go back to.
            keep_bytes: u64::MAX,
            budget_bytes: self.budget,
            ..Settings::new(resource, node, epoch)
        }
    }
}

/// Why a journal cannot be made or used: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is none where it was.
    #[error("the journal in {} is gone: {why}", dir.display())]
    Missing {
        /// Where it should be.
        dir: PathBuf,
        /// What is there instead.
        why: &'static str,
    },
    /// It is not this resource's.
    #[error("the journal in {} cannot be used: {why}", dir.display())]
    Foreign {
        /// Where it is.
        dir: PathBuf,
        /// Whose it is, or which version.
        why: String,
    },
    /// It is not whole any more.
    #[error(
        "the journal in {} is damaged in segment {} at position {}: {} ({})",
        dir.display(), .damage.segment, .damage.position, .damage.why, .damage.evidence
    )]
    Damaged {
        /// Where it is.
        dir: PathBuf,
        /// What is damaged.
        damage: Damage,
    },
    /// Somebody else uses it.
    #[error("the journal in {} is in use by another process or resource", .0.display())]
    InUse(PathBuf),
    /// The directory is not empty.
    #[error("no journal was made in {}: it holds a journal already", .0.display())]
    Occupied(PathBuf),
    /// Its filesystem has not so much room.
    #[error(
        "no journal was made in {}: it needs {}, and its filesystem has {}",
        dir.display(), format_size(*needs), format_size(*has)
    )]
    NoRoom {
        /// Where it was to be.
        dir: PathBuf,
        /// What it needs.
        needs: u64,
        /// What is free.
        has: u64,
    },
    /// The system refused something.
    #[error("the journal in {} cannot be used: {error}", dir.display())]
    Io {
        /// Where it is or was to be.
        dir: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl JournalError {
    fn io(dir: &Path, error: io::Error) -> Self {
        Self::Io { dir: dir.to_owned(), error }
    }

    fn of(dir: &Path, error: LogError) -> Self {
        let dir = dir.to_owned();
        let foreign = |why: &BlockError| match why {
            BlockError::Resource { .. } => "it belongs to another resource".to_owned(),
            why => why.to_string(),
        };
        match error {
            LogError::Io(error) => Self::Io { dir, error },
            LogError::Recover(RecoverError::Damaged(damage)) => Self::Damaged { dir, damage },
            LogError::Recover(RecoverError::Foreign { why, .. }) => {
                Self::Foreign { dir, why: foreign(&why) }
            }
            LogError::Cursors(why @ BlockError::Resource { .. }) => {
                Self::Foreign { dir, why: foreign(&why) }
            }
            LogError::Cursors(why) => {
                let why = format!("its cursors cannot be used: {why}");
                Self::Foreign { dir, why }
            }
            error => Self::Io { dir, error: io::Error::other(error.to_string()) },
        }
    }
}

/// Checks that a journal can be made in a directory; it need not be there yet when the one above
/// it is. Changes nothing.
///
/// # Errors
/// What is in the way.
pub(crate) fn check_new(spec: &JournalSpec) -> Result<(), JournalError> {
    let dir = &spec.dir;
    let fail = |error: io::Error| JournalError::io(dir, error);
    let there = dir.exists();
    let place = if there { dir } else { dir.parent().unwrap_or(dir) };
    let stat = statvfs(place).map_err(|errno| fail(errno.into()))?;
    let has = stat.f_bavail.saturating_mul(stat.f_frsize);
    if has < spec.size {
        return Err(JournalError::NoRoom { dir: dir.clone(), needs: spec.size, has });
    }
    if !there {
        return Ok(());
    }
    let files = claimed(dir)?;
    let names = files.list().map_err(fail)?;
    let ours = |name: &String| {
        *name == CURSORS || name.starts_with("segment-") || name.starts_with("spare-")
    };
    if names.iter().any(ours) {
        return Err(JournalError::Occupied(dir.clone()));
    }
    Ok(())
}

/// Makes an empty journal; the directory, too, when it is not there. Whether it was not.
///
/// # Errors
/// When something is in the way.
pub(crate) fn make(
    spec: &JournalSpec,
    resource: ResourceId,
    node: NodeId,
) -> Result<bool, JournalError> {
    check_new(spec)?;
    let fail = |error: io::Error| JournalError::io(&spec.dir, error);
    let made = !spec.dir.exists();
    if made {
        std::fs::create_dir(&spec.dir).map_err(fail)?;
    }
    let sizes = Sizes::of(spec.size, 1);
    let opened = claimed(&spec.dir).and_then(|files| {
        let mut log = open_log(spec, files, &sizes, resource, node)?;
        log.prepare_spare().map_err(fail)
    });
    if opened.is_err() {
        remove(spec, made);
    }
    opened.map(|()| made)
}

/// Takes the files of a journal away, and the directory with `dir`. What cannot be removed stays.
pub(crate) fn remove(spec: &JournalSpec, dir: bool) {
    let removed = claimed(&spec.dir).and_then(|mut files| {
        let names = files.list().map_err(|error| JournalError::io(&spec.dir, error))?;
        let ours = |name: &&String| {
            let name = name.as_str();
            let file = name.starts_with("segment-") || name.starts_with("spare-");
            file || name == CURSORS || name == GIVEN_UP || name == FOLLOWING
        };
        for name in names.iter().filter(ours) {
            files.remove(name).map_err(|error| JournalError::io(&spec.dir, error))?;
        }
        Ok(())
    });
    if let Err(error) = removed {
        tracing::warn!("a journal was not removed: {error}");
    }
    if dir {
        // One that is not empty stays.
        let _ = std::fs::remove_dir(&spec.dir);
    }
}

/// The files of a journal, claimed, for a node that follows.
///
/// # Errors
/// When they are in use or cannot be used.
pub(crate) fn claimed_files(spec: &JournalSpec) -> Result<Directory, JournalError> {
    claimed(&spec.dir)
}

/// The settings of the journal of a node that follows.
///
/// # Errors
/// When the system gives no random number.
pub(crate) fn follow_settings(
    spec: &JournalSpec,
    resource: ResourceId,
    node: NodeId,
) -> Result<Settings, JournalError> {
    let failed =
        |error: getrandom::Error| JournalError::io(&spec.dir, io::Error::other(error.to_string()));
    let epoch = getrandom::u64().map_err(failed)?;
    Ok(Sizes::of(spec.size, 1).settings(resource, node, epoch))
}

/// Says durably that what is in a journal makes the disk what it is: this node may lead.
///
/// # Errors
/// When that could not be written.
pub(crate) fn mark_led(spec: &JournalSpec, resource: ResourceId) -> Result<(), JournalError> {
    let mut files = claimed(&spec.dir)?;
    let names = files.list().map_err(|error| JournalError::io(&spec.dir, error))?;
    if !names.iter().any(|name| name == CURSORS || name == GIVEN_UP) {
        // Whoever opens it says what is wrong.
        return Ok(());
    }
    holdfast_journal::ship::mark_led(&mut files, resource)
        .map_err(|error| JournalError::io(&spec.dir, error))
}

fn claimed(dir: &Path) -> Result<Directory, JournalError> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            JournalError::Missing { dir: dir.to_owned(), why: "the directory does not exist" }
        }
        _ => JournalError::io(dir, error),
    };
    let files = Directory::open(dir, DirectoryOptions { direct: true }).map_err(fail)?;
    match files.claim() {
        Ok(()) => Ok(files),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(JournalError::InUse(dir.to_owned()))
        }
        Err(error) => Err(fail(error)),
    }
}

pub(super) fn open_log<F: Files + Send + 'static>(
    spec: &JournalSpec,
    files: F,
    sizes: &Sizes,
    resource: ResourceId,
    node: NodeId,
) -> Result<Log<Box<dyn Files + Send>>, JournalError> {
    let random =
        |error: getrandom::Error| JournalError::io(&spec.dir, io::Error::other(error.to_string()));
    let epoch = getrandom::u64().map_err(random)?;
    let open = Open {
        settings: sizes.settings(resource, node, epoch),
        leads: true,
        generation: GenerationId::NONE,
        time: now(),
        cut: None,
        spares: usize::try_from(sizes.spares).unwrap_or(1),
    };
    let files: Box<dyn Files + Send> = Box::new(files);
    let opened = Log::open(files, &open).map_err(|error| JournalError::of(&spec.dir, error))?;
    Ok(opened.0)
}

/// Opens the journal of a resource, reads what is not written back, and puts it before the disk.
/// Reads and writes of the disk go through it from then on.
///
/// # Errors
/// When the journal is not there, not this resource's, damaged, or in use: the disk alone is not
/// what was completed, and must not be used.
pub(crate) fn open(
    spec: &JournalSpec,
    resource: ResourceId,
    node: NodeId,
    disk: Disk,
    max_in_flight: usize,
    pool: &BufferPool,
) -> Result<(Disk, JournalHandle), JournalError> {
    let files = claimed(&spec.dir)?;
    let names = files.list().map_err(|error| JournalError::io(&spec.dir, error))?;
    if !names.iter().any(|name| name == CURSORS || name == GIVEN_UP) {
        let why = "there is none in the directory; is its filesystem mounted?";
        return Err(JournalError::Missing { dir: spec.dir.clone(), why });
    }
    let sizes = Sizes::of(spec.size, max_in_flight);
    let log = open_log(spec, files, &sizes, resource, node)?;
    start(log, disk, sizes, Some(spec.dir.clone()), max_in_flight, pool)
        .map_err(|error| JournalError::io(&spec.dir, error))
}

/// Writes everything that is only in a journal to its disk, which nobody else uses.
///
/// # Errors
/// When either cannot be used.
pub(crate) fn write_all_back(
    spec: &JournalSpec,
    resource: ResourceId,
    disk: &Path,
) -> Result<(), JournalError> {
    let fail = |error: io::Error| JournalError::io(&spec.dir, error);
    let files = claimed(&spec.dir)?;
    let sizes = Sizes::of(spec.size, 1);
    let node = NodeId::new(0).expect("0 is a node");
    // Nothing is appended, so it does not matter which node this is.
    let mut log = open_log(spec, files, &sizes, resource, node)?;
    if log.journal().status().dirty_bytes == 0 {
        return Ok(());
    }
    let pool = BufferPool::new(sizes.pool_bytes);
    let options = holdfast_store::OpenOptions::default();
    let opened = crate::shard::open_backing(disk, &options, &pool);
    let mut disk = opened.map_err(|error| fail(io::Error::other(error)))?;
    let limits = WriteBackLimits { bytes: sizes.round, runs: 128, run_bytes: 1 << 20 };
    let failed = |error: LogError| JournalError::of(&spec.dir, error);
    while log.write_back(&mut Plain(&mut disk), limits, false).map_err(failed)? {}
    log.write_back(&mut Plain(&mut disk), limits, true).map_err(failed)?;
    log.store_cursors().map_err(fail)
}

/// A disk that is used by one operation after the other.
struct Plain<'a>(&'a mut Disk);

impl Backing for Plain<'_> {
    fn read(&mut self, range: ByteRange) -> io::Result<Bytes> {
        match self.0.execute(DiskOp::Read { range, holes: false }) {
            Ok(Outcome::Data(data)) => Ok(data),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = ByteRange::new(offset, data.len() as u64);
        let data = Bytes::copy_from_slice(data);
        self.0.execute(DiskOp::Write { range, data, fua: false }).map_err(io::Error::other)?;
        Ok(())
    }

    fn zeroes(&mut self, range: ByteRange, discard: bool) -> io::Result<()> {
        let op = DiskOp::WriteZeroes { range, unmap: discard, fua: false };
        self.0.execute(op).map_err(io::Error::other)?;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.execute(DiskOp::Flush).map_err(io::Error::other)?;
        Ok(())
    }
}

/// Starts the thread.
pub(super) fn start(
    log: Log<Box<dyn Files + Send>>,
    disk: Disk,
    sizes: Sizes,
    spare_dir: Option<PathBuf>,
    max_in_flight: usize,
    pool: &BufferPool,
) -> io::Result<(Disk, JournalHandle)> {
    let inbox = Arc::new(Inbox::new()?);
    // What it is before the thread has looked at it.
    let (view, seen) = watch::channel(JournalView {
        mode: Mode::Draining,
        tail: LogPosition::START,
        head: LogPosition::START,
        durable: LogPosition::START,
        written_back: LogPosition::START,
        bytes: 0,
        dirty_bytes: 0,
        limit_bytes: sizes.limit,
        time: HybridTime::default(),
        cut_wanted: false,
        emergency: false,
        problem: None,
    });
    let info = DiskInfo { block_size: 4096, ..disk.info().clone() };
    let completes = disk.event_fd().try_clone_to_owned()?;
    let baton = Baton::new(Worker::new(log, disk, Arc::clone(&inbox), view, sizes, spare_dir));
    let outer =
        JournaledDisk { inbox: Arc::clone(&inbox), baton: Arc::clone(&baton), unkicked: false };
    let told = Arc::clone(&inbox);
    let work = move || super::thread::run(&baton, &told, &completes);
    thread::Builder::new().name("journal".into()).spawn(work)?;
    let outer = Disk::external(Box::new(outer), info, max_in_flight, pool)?;
    let handle = JournalHandle { inbox, permits: Arc::new(Semaphore::new(CALLS)), view: seen };
    Ok((outer, handle))
}

impl Worker {
    /// Has a spare made by a thread of its own. Whether it is on its way.
    pub(super) fn start_spare(&mut self, dir: PathBuf) -> bool {
        let number = FIRST_SPARE + self.next_id();
        let (len, inbox) = (self.sizes.segment, self.inbox());
        let make = move || {
            let made = Directory::open(&dir, DirectoryOptions::default()).and_then(|mut files| {
                let name = spare_name(number);
                let made = files.create(&name, len).and_then(|()| files.sync(&name));
                if made.is_err() {
                    // A part of one is of no use.
                    let _ = files.remove(&name);
                }
                made
            });
            inbox.push(Order::Call(Box::new(move |worker| worker.spare_made(number, &made))));
        };
        thread::Builder::new().name("journal-spare".into()).spawn(make).is_ok()
    }

    fn spare_made(&mut self, number: u64, made: &io::Result<()>) {
        self.spare_in_making = false;
        // Without one it is made when it is needed, or not: that is seen to there.
        if made.is_ok() {
            // One that is too many and stays is used by the next opening.
            let _ = self.log.spare_made(number);
            self.no_room = false;
            self.log.journal_mut().set_budget(self.sizes.budget);
        }
    }
}
