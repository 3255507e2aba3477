//! A resource as a local block device.
//!
//! [`LocalDevice::attach`] gives a [`Backend`] a block device of the kernel and a stable name,
//! `/dev/holdfast/NAME`. The kernel side is whatever [`choose`] finds: ublk, the kernel's NBD client,
//! or a FUSE filesystem with one file under a loop device. A write that the block device has completed has been
//! completed by the backend: no cache of the kernel stands between them.
//!
//! Everything here blocks, and every wait has an end as long as the backend keeps its promise to
//! answer each request in bounded time.

#![deny(clippy::cast_possible_truncation)]

mod backend;
mod blockdev;
mod claim;
mod device;
mod driver;
mod error;
mod fuse;
mod fuse_loop;
mod genl;
mod links;
mod loopdev;
mod nbd;
mod nbd_kernel;
mod nbd_netlink;
mod nbd_serve;
mod openers;
mod pool;
mod record;
mod stale;
mod sysinfo;
mod ublk;
mod udev;
mod via;

pub use backend::{Backend, KernelLine};
pub use claim::hold;
pub use device::{DeviceOptions, LocalDevice};
pub use error::DeviceError;
pub use nbd::{NbdBackend, NbdError, NbdOptions};
pub use openers::Opener;
pub use stale::{Cleaned, clean_up_stale};
pub use via::{Choice, Kind, Refusal, Via, choose};
