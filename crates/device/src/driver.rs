//! The ways of the kernel behind one seam: what a device needs of its driver.

use crate::backend::Backend;
use crate::blockdev::BlockDevice;
use crate::claim::Claim;
use crate::device::DeviceOptions;
use crate::error::DeviceError;
use crate::fuse_loop::FuseLoop;
use crate::nbd_kernel::{self, NbdDevice};
use crate::record::Record;
use crate::ublk::Ublk;
use crate::via::Kind;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The driver of one device. Dropping it takes the device away by force, unless it was left.
pub(crate) enum Driver {
    /// Boxed: it comes back in the error of a refused detach.
    Fuse(Box<FuseLoop>),
    Nbd(Box<NbdDevice>),
    Ublk(Box<Ublk>),
}

impl Driver {
    /// Makes a device. One that can outlive this process has its [`Record`] written first.
    pub(crate) fn attach(
        kind: Kind,
        name: &str,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Self, DeviceError> {
        match kind {
            Kind::Fuse => FuseLoop::attach(name, backend, &options.run_dir, options.threads)
                .map(|made| Self::Fuse(Box::new(made))),
            Kind::Ublk => {
                Ublk::attach(name, backend, options).map(|made| Self::Ublk(Box::new(made)))
            }
            Kind::Nbd => {
                NbdDevice::attach(name, backend, options).map(|made| Self::Nbd(Box::new(made)))
            }
        }
    }

    /// Takes over the device that an earlier process left; `None` when the kernel does not have it
    /// any more. What the record says of size and blocks is what the backend has.
    pub(crate) fn recover(
        record: &Record,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Option<Self>, DeviceError> {
        match record.kind {
            Kind::Fuse => Ok(None),
            Kind::Ublk => {
                let taken = Ublk::recover(record, backend, options)?;
                Ok(taken.map(|taken| Self::Ublk(Box::new(taken))))
            }
            Kind::Nbd => {
                let taken = NbdDevice::recover(record, backend, options)?;
                Ok(taken.map(|taken| Self::Nbd(Box::new(taken))))
            }
        }
    }

    /// The kernel's device.
    pub(crate) fn device(&self) -> &BlockDevice {
        match self {
            Self::Fuse(driver) => driver.device(),
            Self::Nbd(driver) => driver.device(),
            Self::Ublk(driver) => driver.device(),
        }
    }

    /// Takes the device away when nobody has it open. The claim keeps
    /// others off; `false` when somebody else still has it open: then everything is as it was.
    pub(crate) fn close(&mut self, claim: Claim) -> io::Result<bool> {
        match self {
            Self::Fuse(driver) => driver.close(claim),
            Self::Ublk(driver) => driver.close(claim),
            Self::Nbd(driver) => driver.close(claim).map(|()| true),
        }
    }

    /// Fails what is pending and all I/O from now on, and takes the device away as far as those
    /// allow who have it open.
    pub(crate) fn abort(&mut self) {
        match self {
            Self::Fuse(driver) => driver.abort(),
            Self::Nbd(driver) => driver.abort(),
            Self::Ublk(driver) => driver.abort(),
        }
    }

    /// Whether the device can wait for another process, with its I/O.
    pub(crate) fn can_be_left(&self) -> bool {
        match self {
            Self::Fuse(_) => false,
            Self::Nbd(_) => true,
            Self::Ublk(driver) => driver.survives(),
        }
    }

    /// Gives the device up without taking it away: its I/O waits until another process recovers
    /// it. One that cannot wait is taken away by force.
    pub(crate) fn leave(&mut self) {
        match self {
            Self::Fuse(driver) => driver.abort(),
            Self::Nbd(driver) => driver.leave(),
            Self::Ublk(driver) => driver.leave(),
        }
    }

    /// Tells the kernel's device another size; `false` when it keeps the old one.
    pub(crate) fn resize(&mut self, bytes: u64) -> io::Result<bool> {
        match self {
            Self::Fuse(driver) => driver.resize(bytes).map(|()| true),
            Self::Nbd(driver) => driver.resize(bytes).map(|()| true),
            Self::Ublk(driver) => driver.resize(bytes),
        }
    }
}

/// Whether the kernel still has the device of this record.
pub(crate) fn exists(record: &Record) -> bool {
    match record.kind {
        Kind::Nbd => nbd_kernel::exists(record),
        Kind::Ublk => holdfast_ublk::exists(record.id, record.token),
        Kind::Fuse => false,
    }
}

/// The node of the device of this record.
pub(crate) fn node(record: &Record) -> PathBuf {
    PathBuf::from(match record.kind {
        Kind::Fuse => format!("/dev/loop{}", record.id),
        Kind::Nbd => format!("/dev/nbd{}", record.id),
        Kind::Ublk => format!("/dev/ublkb{}", record.id),
    })
}

/// Takes a device away that nobody serves, by force: its I/O fails. `false` when the kernel does
/// not have it any more.
pub(crate) fn remove_left(record: &Record) -> io::Result<bool> {
    match record.kind {
        Kind::Nbd => nbd_kernel::remove_left(record),
        Kind::Ublk => Ok(holdfast_ublk::remove(record.id, record.token)?),
        Kind::Fuse => Ok(false),
    }
}
