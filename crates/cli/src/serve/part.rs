//! One file or block device of an export.

use holdfast_nbd::{Extent, Lend, LentRange};
use holdfast_store::{
    BackingKind, BufferPool, Completion, DirectMode, Disk, DiskInfo, DiskOp, Lent, OpId, OpenError,
    OpenOptions,
};
use holdfast_units::ByteRange;
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// How many operations the disk gets at a time; more wait here.
const MAX_IN_FLIGHT: usize = 1024;
/// Writes from this length on are made by another thread, when the file lives in memory.
const HAND_OFF: usize = 512 << 10;
/// No more than this is read ahead for one cache request.
const MAX_CACHED: u64 = 64 << 20;

/// What of a mirror a part has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// All of it, as every part of anything else.
    InSync,
    /// It is being filled: writes reach it, reads do not.
    Filling,
    /// It has failed, or missed something, and is left alone.
    Failed,
}

/// How parts are opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartOptions {
    pub(super) read_only: bool,
    /// `None`: past the page cache for block devices only.
    pub(super) direct: Option<bool>,
}

/// A part of a file in memory.
#[derive(Debug)]
struct LentPart(Lent);

impl Lend for LentPart {
    fn send(&self, socket: BorrowedFd<'_>, skip: u64) -> io::Result<usize> {
        self.0.send(socket, skip)
    }
}

/// An open file or device with its operations.
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) state: State,
    disk: Disk,
    /// The same file, for what the disk does not do; `None` for memory.
    file: Option<File>,
    waiting: VecDeque<(OpId, DiskOp)>,
    /// Something was submitted that the kernel has not been told of.
    unkicked: bool,
    completed: Vec<Completion>,
}

impl Part {
    pub(super) fn open(
        path: &Path,
        options: PartOptions,
        pool: &BufferPool,
    ) -> Result<Self, OpenError> {
        let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
        let direct = match options.direct {
            Some(true) => DirectMode::Always,
            Some(false) => DirectMode::Never,
            // A write that the page cache has survives the end of the server, and a flush makes
            // it survive more.
            None if is_file => DirectMode::Never,
            None => DirectMode::Auto,
        };
        let open = OpenOptions {
            read_only: options.read_only,
            direct,
            max_in_flight: MAX_IN_FLIGHT,
            exclusive: !options.read_only,
            exact_size: true,
            hand_off: Some(HAND_OFF),
            ..OpenOptions::default()
        };
        let disk = Disk::open(path, &open, pool)?;
        let file = File::options().read(true).write(!options.read_only).open(path).ok();
        Ok(Self::of_disk(path, disk, file))
    }

    pub(super) fn of_disk(path: &Path, disk: Disk, file: Option<File>) -> Self {
        Self {
            path: path.to_owned(),
            state: State::InSync,
            disk,
            file,
            waiting: VecDeque::new(),
            unkicked: false,
            completed: Vec::new(),
        }
    }

    pub(super) const fn info(&self) -> &DiskInfo {
        self.disk.info()
    }

    pub(super) const fn size(&self) -> u64 {
        self.disk.size()
    }

    pub(super) fn is_file(&self) -> bool {
        self.info().kind == BackingKind::File
    }

    /// The same file, for marks about it.
    pub(super) const fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// The range to be sent from where it is, when that is as good as a read.
    pub(super) fn lend(&self, range: ByteRange) -> Option<LentRange> {
        let lent = LentPart(self.disk.lend(range)?);
        Some(LentRange { from: Rc::new(lent), skip: 0, len: range.len })
    }

    /// What becomes readable when something has completed.
    pub(super) fn event_fd(&self) -> io::Result<OwnedFd> {
        self.disk.event_fd().try_clone_to_owned()
    }

    /// Whether a flush may hold up the thread.
    pub(super) fn wait_for_flushes(&mut self, wait: bool) {
        self.disk.wait_for_flushes(wait);
    }

    /// Starts an operation, or keeps it until there is room; its end when that was at once.
    pub(super) fn submit(&mut self, id: OpId, operation: DiskOp) -> Option<Completion> {
        if !self.waiting.is_empty() || self.disk.in_flight() >= MAX_IN_FLIGHT {
            self.waiting.push_back((id, operation));
            return None;
        }
        self.give(id, operation)
    }

    fn give(&mut self, id: OpId, operation: DiskOp) -> Option<Completion> {
        let ended = self.disk.submit(id, operation);
        self.unkicked |= ended.is_none();
        ended
    }

    /// Tells the kernel of what was submitted.
    pub(super) fn kick(&mut self) {
        if std::mem::take(&mut self.unkicked) {
            self.disk.kick();
        }
    }

    /// Takes what has completed, and starts what waits.
    pub(super) fn collect(&mut self, out: &mut VecDeque<Completion>) {
        self.disk.completions(&mut self.completed);
        out.extend(self.completed.drain(..));
        while self.disk.in_flight() < MAX_IN_FLIGHT
            && let Some((id, operation)) = self.waiting.pop_front()
        {
            out.extend(self.give(id, operation));
        }
        self.kick();
    }

    /// Looks how long the file or device is now; its usable length.
    pub(super) fn look_again(&mut self) -> u64 {
        let block = u64::from(self.info().block_size);
        if let Some(size) = self.file.as_ref().and_then(|file| seek(file, SeekFrom::End(0)).ok()) {
            self.disk.grown_to(size / block * block);
        }
        self.size()
    }

    /// Makes the file at least `size` bytes long, durably.
    pub(super) fn grow(&mut self, size: u64) -> io::Result<()> {
        let file = self.file.as_ref().filter(|_| self.info().kind == BackingKind::File);
        let file = file.ok_or(io::ErrorKind::Unsupported)?;
        if file.metadata()?.len() < size {
            file.set_len(size)?;
            file.sync_all()?;
        }
        self.disk.grown_to(size);
        Ok(())
    }

    /// Cuts off what lies behind `size`, if anything does.
    pub(super) fn cut_behind(&self, size: u64) -> io::Result<()> {
        match &self.file {
            Some(file) if self.is_file() && file.metadata()?.len() > size => file.set_len(size),
            _ => Ok(()),
        }
    }

    /// A range will be read soon. Advice: that it is not taken is no error.
    pub(super) fn read_ahead(&self, range: ByteRange) {
        if let Some(file) = self.file.as_ref().filter(|_| !self.info().direct)
            && let Some(len) = std::num::NonZeroU64::new(range.len.min(MAX_CACHED))
        {
            let _ = fadvise(file, range.offset, Some(len), Advice::WillNeed);
        }
    }

    /// What a range holds, in at most `most` stretches from its start on.
    pub(super) fn allocation(&self, range: ByteRange, most: usize) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut at = range.offset;
        while at < range.end() && extents.len() < most {
            let Some(data) = self.next(at, SeekFrom::Data(at)) else {
                // Nobody knows: all of it may be data.
                extents.push(Extent::data(range.end() - at));
                break;
            };
            let data = data.min(range.end());
            if data > at {
                extents.push(Extent::hole(data - at));
                at = data;
            } else {
                let hole = self.next(at, SeekFrom::Hole(at)).unwrap_or(u64::MAX);
                // A hole that begins here is one that has just been made.
                let hole = hole.clamp(at + 1, range.end());
                extents.push(Extent::data(hole - at));
                at = hole;
            }
        }
        extents
    }

    /// Where data or a hole begin from `at` on; the end of all places when nowhere, and `None`
    /// when that cannot be known.
    fn next(&self, at: u64, what: SeekFrom) -> Option<u64> {
        let file = self.file.as_ref().filter(|_| self.is_file())?;
        match seek(file, what) {
            Ok(place) => Some(place.max(at)),
            Err(rustix::io::Errno::NXIO) => Some(u64::MAX),
            Err(_) => None,
        }
    }
}
