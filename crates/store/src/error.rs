use std::fmt;
use std::path::{Path, PathBuf};

use holdfast_units::{ByteRange, format_size};
use rustix::io::Errno;

use crate::OpKind;

/// Why an operation failed, as far as a caller acts on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DiskErrorKind {
    /// The device or filesystem reported an error for this range.
    Io,
    /// The filesystem below is full.
    NoSpace,
    /// The range is not inside the disk.
    OutOfRange,
    /// The request makes no sense: too long, not on block boundaries, data of another length.
    Invalid,
    /// The disk was opened for reading only.
    ReadOnly,
    /// More operations are in flight than the disk was opened for.
    Busy,
    /// This flush failed, or the flush of this write: nothing is known about what is durable.
    FlushFailed,
    /// An earlier flush failed, so the disk is not used any more.
    Poisoned,
    /// Some blocks of the range cannot be read; [`crate::Disk::partial`] has the others.
    Unreadable,
    /// A block cannot be written, and no spare has room for it.
    SpareFull,
}

impl DiskErrorKind {
    const fn why(self) -> &'static str {
        match self {
            Self::Io => "the device reported an error",
            Self::NoSpace => "no space is left on the filesystem",
            Self::OutOfRange => "the range is not inside the disk",
            Self::Invalid => "the request is malformed",
            Self::ReadOnly => "the disk is open for reading only",
            Self::Busy => "too many operations are in flight",
            Self::FlushFailed => "the data could not be made durable",
            Self::Poisoned => "an earlier flush failed and the disk is not used any more",
            Self::Unreadable => "some of its blocks cannot be read",
            Self::SpareFull => "a block cannot be written and no spare has room for it",
        }
    }
}

/// Why one operation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskError {
    /// What kind of failure.
    pub kind: DiskErrorKind,
    /// What was asked for.
    pub op: OpKind,
    /// Where; empty for a flush.
    pub range: ByteRange,
    /// What the kernel said, if it was asked.
    pub errno: Option<i32>,
}

impl DiskError {
    /// A refusal that the kernel had no part in.
    pub(crate) const fn refused(kind: DiskErrorKind, op: OpKind, range: ByteRange) -> Self {
        Self { kind, op, range, errno: None }
    }

    /// The kernel's error for an operation that is not a flush.
    pub(crate) fn from_errno(errno: Errno, op: OpKind, range: ByteRange) -> Self {
        let kind = match errno {
            Errno::NOSPC | Errno::DQUOT => DiskErrorKind::NoSpace,
            _ => DiskErrorKind::Io,
        };
        Self { kind, op, range, errno: Some(errno.raw_os_error()) }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} failed: {}", self.op, self.range, self.kind.why())?;
        match self.errno {
            Some(errno) => write!(f, " ({})", Errno::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for DiskError {}

/// Why a disk could not be opened or created, as far as a caller acts on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenErrorKind {
    /// Nothing is at the path.
    NotFound,
    /// Something is at the path already.
    Exists,
    /// The permissions do not allow it.
    PermissionDenied,
    /// It is neither a regular file nor a block device.
    NotADisk(&'static str),
    /// It is smaller than one block of 4096 bytes. Its size in bytes.
    TooSmall(u64),
    /// Another process has claimed it, or it is mounted.
    InUse,
    /// It can be read only, and writing was asked for.
    ReadOnly,
    /// `DirectMode::Always`, and it cannot be read with `O_DIRECT`.
    NoDirect(String),
    /// The engine that was asked for cannot be used.
    NoEngine(String),
    /// It is on another machine, and cannot be reached or used there.
    Remote(String),
    /// Anything else; the system's error says what.
    Io,
}

/// Why a disk could not be opened or created: one sentence with the path and the way out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the disk {} cannot be {verb}: {}", .path.display(), self.why())]
pub struct OpenError {
    /// What kind of failure.
    pub kind: OpenErrorKind,
    /// Which disk.
    pub path: PathBuf,
    /// What the kernel said, if it was asked.
    pub errno: Option<i32>,
    verb: &'static str,
}

impl OpenError {
    /// A disk that was not opened.
    #[must_use]
    pub fn new(path: &Path, kind: OpenErrorKind) -> Self {
        Self { kind, path: path.to_owned(), errno: None, verb: "opened" }
    }

    /// Takes an error of the system apart.
    pub(crate) fn from_io(path: &Path, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error();
        let kind = match errno.map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::NXIO) => {
                OpenErrorKind::NotFound
            }
            Some(Errno::ACCESS | Errno::PERM) => OpenErrorKind::PermissionDenied,
            Some(Errno::BUSY | Errno::WOULDBLOCK | Errno::TXTBSY) => OpenErrorKind::InUse,
            Some(Errno::ROFS) => OpenErrorKind::ReadOnly,
            Some(Errno::ISDIR) => OpenErrorKind::NotADisk("a directory"),
            Some(Errno::EXIST) => OpenErrorKind::Exists,
            _ => OpenErrorKind::Io,
        };
        Self { kind, path: path.to_owned(), errno, verb: "opened" }
    }

    pub(crate) fn creating(self) -> Self {
        Self { verb: "created", ..self }
    }

    fn why(&self) -> String {
        match &self.kind {
            OpenErrorKind::NotFound => "it does not exist; check the path".into(),
            OpenErrorKind::Exists => "something is there already; choose another path".into(),
            OpenErrorKind::PermissionDenied => {
                "permission is denied; check its owner and mode".into()
            }
            OpenErrorKind::NotADisk(what) => {
                format!("it is {what}; name a regular file or a block device")
            }
            OpenErrorKind::TooSmall(0) => "it is empty; make it larger first".into(),
            OpenErrorKind::TooSmall(size) => {
                format!("it has only {}; a disk needs 4 KiB at least", format_size(*size))
            }
            OpenErrorKind::InUse => {
                "it is in use by another process or resource, or mounted; release it there first"
                    .into()
            }
            OpenErrorKind::ReadOnly => {
                "it can only be read; make it writable or choose another".into()
            }
            OpenErrorKind::NoDirect(why) => {
                format!("direct I/O was asked for, but {why}; allow page-cached I/O")
            }
            OpenErrorKind::NoEngine(why) => format!("{why}; let the engine be chosen by itself"),
            OpenErrorKind::Remote(why) => why.clone(),
            OpenErrorKind::Io => self.errno.map_or_else(
                || "the system reported an error".into(),
                |errno| Errno::from_raw_os_error(errno).to_string(),
            ),
        }
    }
}
