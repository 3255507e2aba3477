//! Block devices served by this process, through the kernel's ublk driver (Linux 6.0 and later).
//!
//! [`UblkDevice::create`] makes `/dev/ublkbN`; each of its requests is given to a [`Target`], which
//! answers it now or later, on any thread. The device outlives the process where the kernel can do
//! that (6.1 and later): its I/O waits, what was under way is issued again, and
//! [`UblkDevice::recover`] of the next process goes on with it.
//!
//! All commands to the driver have a time limit. The `unsafe` code of the crate is what io_uring,
//! the shared memory of the driver and its structures need, and nothing else.

#![deny(clippy::cast_possible_truncation)]

mod control;
mod copy;
mod device;
mod memory;
mod queue;
mod request;
mod uapi;

pub use device::{
    DeviceSpec, Features, MAX_DEPTH, MAX_QUEUES, Stopped, UblkDevice, UblkError, exists, features,
    is_free, obstacle, remove,
};
pub use request::{Op, Request, Target};
