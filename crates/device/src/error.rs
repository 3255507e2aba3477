use crate::openers::Opener;
use crate::via::Refusal;
use holdfast_units::NameError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a device could not be made, asked about or taken away. Each prints as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The name cannot be the name of a device.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The kernel offers no way that Holdfast can use.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The backend's size cannot be the size of a block device.
    #[error("the device {name} was not made: {size} bytes are not one or more blocks of {block}")]
    Size {
        /// The device.
        name: String,
        /// The backend's size in bytes.
        size: u64,
        /// The backend's block size in bytes.
        block: u32,
    },
    /// The backend's block size cannot be the block size of a block device.
    #[error("the device {name} was not made: its blocks of {block} bytes are not 512 to 4096")]
    BlockSize {
        /// The device.
        name: String,
        /// The backend's block size in bytes.
        block: u32,
    },
    /// Something else has the place that the device would take.
    #[error("the device {name} was not made: {} {why}", path.display())]
    Exists {
        /// The device.
        name: String,
        /// What is in the way.
        path: PathBuf,
        /// What it is.
        why: String,
    },
    /// The data are not those that the device was made for.
    #[error("the device {name} was not taken over: {why}")]
    Changed {
        /// The device.
        name: String,
        /// What is different.
        why: String,
    },
    /// Somebody has the device open.
    #[error("the device {} was not taken away: it is {}", path.display(), list(openers))]
    Busy {
        /// The device.
        path: PathBuf,
        /// Who has it open: at least one.
        openers: Vec<Opener>,
    },
    /// The last writes are not known to be durable.
    #[error("the device {} was not taken away: its last writes could not be flushed: {source}",
        path.display())]
    Flush {
        /// The device.
        path: PathBuf,
        /// What the flush said.
        source: io::Error,
    },
    /// A call to the kernel failed.
    #[error("{what} failed for {}: {source}", path.display())]
    System {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A call to the kernel did not come back in time; it goes on in the background.
    #[error("{what} of {} did not end within {seconds} seconds", path.display())]
    TimedOut {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
}

impl DeviceError {
    /// What a person can do about it; `None` when nothing better than the message is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Exists { .. } => Some("remove it if nothing needs it, then try again"),
            Self::Busy { .. } => Some("unmount or close it first"),
            Self::Flush { .. } => {
                Some("it cannot make its writes durable: look at the disk, and at its peers")
            }
            _ => None,
        }
    }

    /// Makes an error of a failed call, for `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, path: path.to_owned(), source: error.into() }
    }
}

fn list(openers: &[Opener]) -> String {
    const SHOWN: usize = 3;
    let mut shown: Vec<String> = openers.iter().take(SHOWN).map(ToString::to_string).collect();
    if openers.len() > SHOWN {
        shown.push(format!("{} more", openers.len() - SHOWN));
    }
    shown.join(", ")
}
