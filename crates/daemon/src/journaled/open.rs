//! Making a journal, and opening one with the disk that it belongs to. Everything here blocks.

use super::handle::{CALLS, JournalHandle};
use super::inbox::{Inbox, Order};
use super::thread::Baton;
use super::through;
use super::worker::{Worker, now};
use super::{Figures, JournalView, JournaledDisk, Mode};
use crate::spares::SparesView;
use bytes::Bytes;
use holdfast_format::BlockError;
use holdfast_format::journal::Compression;
use holdfast_journal::driver::{
    Backing, CURSORS, Device, Files, GIVEN_UP, Log, LogError, MAKING, Media, Open, Place, RESCUED,
    RawMedia, device_room, open_claimed,
};
use holdfast_journal::ship::FOLLOWING;
use holdfast_journal::{Damage, RecoverError, Settings, WriteBackLimits};
use holdfast_store::{BufferPool, Disk, DiskInfo, DiskOp, Outcome};
use holdfast_units::{
    ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId, format_size,
};
use rustix::fs::statvfs;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use tokio::sync::{Semaphore, watch};

/// The smallest journal: four segments of the smallest size.
pub(crate) const MIN_SIZE: u64 = 4 * MIN_SEGMENT;
const MIN_SEGMENT: u64 = 4 << 20;
const MAX_SEGMENT: u64 = 64 << 20;
/// What a journal may take when nobody says.
const DEFAULT_SIZE: u64 = 1 << 30;
/// The names of spares that are made beforehand do not meet those of segments.
const FIRST_SPARE: u64 = 1 << 63;
/// How many files were begun to be made beforehand by this process.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The journal of a resource on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalSpec {
    /// The directory of its files, or the device that holds them.
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
        Self::of_segment(limit, segment, disk_ops)
    }

    /// The same with segments of another size; the limit is that of four of them at least.
    pub(super) fn of_segment(limit: u64, segment: u64, disk_ops: usize) -> Self {
        let limit = limit.max(4 * segment);
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
            batches: through::MOST,
            ..Settings::new(resource, node, epoch)
        }
    }
}

/// The bytes of a segment of a journal that may take so many.
pub(crate) fn segment_bytes(size: u64) -> u64 {
    Sizes::of(size, 1).segment
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
    /// The device holds something.
    #[error("no journal was made on {}: there is something on it already", .0.display())]
    Used(PathBuf),
    /// No journal can be there.
    #[error("no journal was made in {}: {why}", dir.display())]
    NoPlace {
        /// Where it was to be.
        dir: PathBuf,
        /// What is there instead.
        why: &'static str,
    },
    /// The device is shorter than the journal may become.
    #[error(
        "no journal was made on {}: it needs {}, and there is room for {} beside its tables",
        dir.display(), format_size(*needs), format_size(*has)
    )]
    TooShort {
        /// Where it was to be.
        dir: PathBuf,
        /// What it needs.
        needs: u64,
        /// What segments can take there.
        has: u64,
    },
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

/// What is at the path of a journal; nothing, when it is still to be made.
fn place(dir: &Path) -> Result<Option<Place>, JournalError> {
    match Place::at(dir) {
        Ok(place) => Ok(Some(place)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(JournalError::io(dir, error)),
    }
}

/// What the segments of a journal can take on its device; nothing, where it is in a directory, or
/// where that cannot be told. Blocks.
pub(crate) fn room_on_device(dir: &Path) -> Option<u64> {
    if Place::at(dir).ok()? != Place::Device {
        return None;
    }
    // Only to read: udev looks at a device anew when somebody closes it who could have written.
    let mut file = std::fs::File::open(dir).ok()?;
    Some(device_room(file.seek(io::SeekFrom::End(0)).ok()?))
}

/// Where nobody says how large a journal may grow: 1 GiB, or the whole of its device. Blocks.
pub(crate) fn usual_size(dir: &Path) -> u64 {
    room_on_device(dir).unwrap_or(DEFAULT_SIZE)
}

/// Checks that a journal can be made in a directory or on a device; a directory need not be there yet
/// when the one above it is. Changes nothing.
///
/// # Errors
/// What is in the way.
pub(crate) fn check_new(spec: &JournalSpec) -> Result<(), JournalError> {
    let dir = &spec.dir;
    let place = place(dir)?;
    match place {
        Some(Place::Device) => return blank_device(spec).map(drop),
        Some(Place::Other) => {
            let why = "it is neither a directory nor a block device nor a regular file";
            return Err(JournalError::NoPlace { dir: dir.clone(), why });
        }
        None if dir.starts_with("/dev") && !dir.starts_with("/dev/shm") => {
            return Err(JournalError::NoPlace { dir: dir.clone(), why: "there is no such device" });
        }
        Some(Place::Directory) | None => {}
    }
    let fail = |error: io::Error| JournalError::io(dir, error);
    let room_of = if place.is_some() { dir } else { dir.parent().unwrap_or(dir) };
    let stat = statvfs(room_of).map_err(|errno| fail(errno.into()))?;
    let has = stat.f_bavail.saturating_mul(stat.f_frsize);
    if has < spec.size {
        return Err(JournalError::NoRoom { dir: dir.clone(), needs: spec.size, has });
    }
    if place.is_none() {
        return Ok(());
    }
    let names = claimed(dir)?.list().map_err(fail)?;
    let ours = |name: &String| {
        *name == CURSORS || name.starts_with("segment-") || name.starts_with("spare-")
    };
    if names.iter().any(ours) {
        return Err(JournalError::Occupied(dir.clone()));
    }
    Ok(())
}

/// A device that holds nothing and has room for the journal, claimed.
fn blank_device(spec: &JournalSpec) -> Result<RawMedia, JournalError> {
    let dir = &spec.dir;
    let media = RawMedia::open(dir, true).map_err(|error| unusable(dir, error))?;
    let fail = |error: io::Error| JournalError::io(dir, error);
    let has = device_room(media.size().map_err(fail)?);
    if has < spec.size {
        return Err(JournalError::TooShort { dir: dir.clone(), needs: spec.size, has });
    }
    if Device::is_blank(&media).map_err(fail)? {
        Ok(media)
    } else {
        Err(JournalError::Used(dir.clone()))
    }
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
    let opened = new_files(spec).and_then(|files| {
        let mut log = open_log(spec, files, &sizes, resource, node)?;
        log.prepare_spare().map_err(fail)
    });
    if opened.is_err() {
        remove(spec, made);
    }
    opened.map(|()| made)
}

/// The files of a journal that is made, claimed: there are none.
fn new_files(spec: &JournalSpec) -> Result<Box<dyn Files + Send>, JournalError> {
    if place(&spec.dir)? != Some(Place::Device) {
        return claimed(&spec.dir);
    }
    let device = Device::format(blank_device(spec)?);
    Ok(Box::new(device.map_err(|error| JournalError::io(&spec.dir, error))?))
}

/// Takes the files of a journal away, and the directory with `dir`. What cannot be removed stays.
pub(crate) fn remove(spec: &JournalSpec, dir: bool) {
    let removed = claimed(&spec.dir).and_then(|mut files| {
        remove_files(&mut *files).map_err(|error| JournalError::io(&spec.dir, error))?;
        drop(files);
        free_device(&spec.dir)
    });
    if let Err(error) = removed {
        tracing::warn!("a journal was not removed: {error}");
    }
    if dir {
        // One that is not empty stays.
        let _ = std::fs::remove_dir(&spec.dir);
    }
}

/// A device without files is nobody's from now on.
fn free_device(dir: &Path) -> Result<(), JournalError> {
    if place(dir)? != Some(Place::Device) {
        return Ok(());
    }
    let device = RawMedia::open(dir, true).and_then(Device::open);
    device.and_then(Device::wipe).map_err(|error| unusable(dir, error))
}

/// What is left of it when that is interrupted counts for nothing.
fn remove_files(files: &mut dyn Files) -> io::Result<()> {
    let mut names = files.list()?;
    if names.iter().any(|name| name == CURSORS) && !names.iter().any(|name| name == GIVEN_UP) {
        files.rename(CURSORS, GIVEN_UP)?;
        files.sync_dir()?;
        names = files.list()?;
    }
    let ours = |name: &&String| {
        let file = ["segment-", "spare-", MAKING].iter().any(|begin| name.starts_with(begin));
        file || [CURSORS, RESCUED, FOLLOWING].contains(&name.as_str())
    };
    for name in names.iter().filter(ours) {
        files.remove(name)?;
    }
    match names.iter().any(|name| name == GIVEN_UP) {
        true => files.remove(GIVEN_UP),
        false => Ok(()),
    }
}

/// The disk is not the one any more that a node that follows knows something of: that is forgotten,
/// durably. Without a journal there is nothing to forget.
///
/// # Errors
/// When that could not be written.
pub(crate) fn forget_disk(spec: &JournalSpec) -> Result<(), JournalError> {
    let mut files = match claimed(&spec.dir) {
        Err(JournalError::Missing { .. }) => return Ok(()),
        files => files?,
    };
    let forget = |files: &mut dyn Files| -> io::Result<()> {
        if files.list()?.iter().any(|name| name == FOLLOWING) {
            files.remove(FOLLOWING)?;
            files.sync_dir()?;
        }
        Ok(())
    };
    forget(&mut *files).map_err(|error| JournalError::io(&spec.dir, error))
}

/// The files of a journal, claimed, for a node that follows.
///
/// # Errors
/// When they are in use or cannot be used.
pub(crate) fn claimed_files(spec: &JournalSpec) -> Result<Box<dyn Files + Send>, JournalError> {
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

/// What the segments of a node that follows may take of a journal that may take so many bytes.
pub(crate) fn follow_budget(size: u64) -> u64 {
    Sizes::of(size, 1).budget
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

fn claimed(dir: &Path) -> Result<Box<dyn Files + Send>, JournalError> {
    open_claimed(dir).map_err(|error| unusable(dir, error))
}

/// Why the place of a journal was not opened.
fn unusable(dir: &Path, error: io::Error) -> JournalError {
    let dir = dir.to_owned();
    match error.kind() {
        io::ErrorKind::WouldBlock => JournalError::InUse(dir),
        io::ErrorKind::InvalidData => JournalError::Foreign { dir, why: error.to_string() },
        io::ErrorKind::NotFound => {
            let why = match Place::at(&dir) {
                Ok(_) => "nothing is on the device",
                Err(_) => "the directory or device does not exist",
            };
            JournalError::Missing { dir, why }
        }
        _ => JournalError::Io { dir, error },
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
        let why = "there is none; is its filesystem mounted?";
        return Err(JournalError::Missing { dir: spec.dir.clone(), why });
    }
    let sizes = Sizes::of(spec.size, max_in_flight);
    let mut log = open_log(spec, files, &sizes, resource, node)?;
    let sizes = as_it_is(&mut log, sizes);
    start(log, disk, sizes, max_in_flight, pool).map_err(|error| JournalError::io(&spec.dir, error))
}

/// Writes everything that is only in a journal to its disk, which nobody else uses.
///
/// # Errors
/// When either cannot be used.
pub(crate) fn write_all_back(
    spec: &JournalSpec,
    resource: ResourceId,
    disk: &crate::shard::DiskSpec,
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
    let opened = crate::shard::open_backing(&disk.path, &options, &pool);
    let opened = opened.map_err(|error| fail(io::Error::other(error)))?;
    let opened = crate::spares::open_with(opened, disk, resource, &pool);
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

/// The size of a journal's segments stays when its room is changed: their files are used again.
fn as_it_is(log: &mut Log<Box<dyn Files + Send>>, sizes: Sizes) -> Sizes {
    let segments = log.journal().durable_segments();
    let Some(segment) = segments.last().map(|(header, _)| header.capacity) else { return sizes };
    if segment == sizes.segment || !(MIN_SEGMENT..=MAX_SEGMENT).contains(&segment) {
        return sizes;
    }
    let sizes = Sizes::of_segment(sizes.limit, segment, sizes.disk_ops);
    log.journal_mut().set_segment_bytes(segment);
    log.journal_mut().set_budget(sizes.budget);
    sizes
}

/// Starts the thread.
pub(super) fn start(
    log: Log<Box<dyn Files + Send>>,
    disk: Disk,
    sizes: Sizes,
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
        spares: SparesView::of(&disk),
        bytes: 0,
        dirty_bytes: 0,
        limit_bytes: sizes.limit,
        time: HybridTime::default(),
        cut_wanted: false,
        emergency: false,
        compression: Compression::None,
        figures: Figures { budget_bytes: sizes.budget, ..Figures::default() },
        problem: None,
    });
    let info = DiskInfo { block_size: 4096, ..disk.info().clone() };
    let completes = disk.event_fd().try_clone_to_owned()?;
    let baton = Baton::new(Worker::new(log, disk, Arc::clone(&inbox), view, sizes));
    let outer =
        JournaledDisk { inbox: Arc::clone(&inbox), baton: Arc::clone(&baton), unkicked: false };
    let told = Arc::clone(&inbox);
    let work = move || super::thread::run(&baton, &told, &completes);
    thread::Builder::new().name("journal".into()).spawn(work)?;
    let outer = Disk::external(Box::new(outer), info, max_in_flight, pool)?;
    let bell = outer.bell();
    inbox.push(Order::Call(Box::new(move |worker| worker.tell_of_frames(bell))));
    let handle = JournalHandle { inbox, permits: Arc::new(Semaphore::new(CALLS)), view: seen };
    Ok((outer, handle))
}

impl Worker {
    /// Has a spare made by a thread of its own. Whether it is on its way.
    ///
    /// That thread may go on when this journal is closed, and even when the directory is opened
    /// again. So what it writes to is a segment's file only from the moment on when this journal
    /// takes it, and no other thread of this process writes to a file of that name. (On a device it
    /// ends with the journal.)
    pub(super) fn start_spare(&mut self) -> bool {
        let name = format!("{MAKING}{:016x}", MADE.fetch_add(1, Ordering::Relaxed));
        let making = self.log.files_mut().create_apart(&name, self.sizes.segment);
        // Where it cannot be made apart it is made when it is needed, or not: that is seen to there.
        let Ok(Some(making)) = making else { return false };
        let (inbox, made_name) = (self.inbox(), name.clone());
        let make = move || {
            let made = making();
            inbox.push(Order::Call(Box::new(move |worker| worker.spare_made(&made_name, &made))));
        };
        let begun = thread::Builder::new().name("journal-spare".into()).spawn(make).is_ok();
        if !begun {
            self.drop_spare(&name);
        }
        begun
    }

    fn spare_made(&mut self, name: &str, made: &io::Result<()>) {
        self.spare_in_making = false;
        let number = FIRST_SPARE + self.next_id();
        if made.is_err() {
            return self.drop_spare(name);
        }
        if self.log.spare_made(name, number).is_ok() {
            self.no_room = false;
            self.log.journal_mut().set_budget(self.sizes.budget);
        }
    }

    /// A part of one is of no use. Where it is not even that, there is nothing to remove.
    fn drop_spare(&mut self, name: &str) {
        let _ = self.log.files_mut().remove(name);
    }
}
