//! Requests of the kernel, and who answers them.

use crate::queue::Queue;
use crate::uapi::{IoDescriptor, op};
use std::io;
use std::sync::Arc;

const SECTOR: u64 = 512;

/// What answers the requests of a device.
pub trait Target: Send + Sync + 'static {
    /// Takes a request. Called by the threads that talk to the kernel, which do nothing else
    /// meanwhile: so it hands the request on where answering takes time.
    fn submit(&self, request: Request);
}

/// What a request asks for. Bounds are in bytes, within the device, and multiples of its logical
/// blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read `length` bytes.
    Read {
        /// Where.
        offset: u64,
        /// How much; at most [`DeviceSpec::max_io_bytes`](crate::DeviceSpec::max_io_bytes).
        length: u32,
    },
    /// Write `length` bytes.
    Write {
        /// Where.
        offset: u64,
        /// How much; at most [`DeviceSpec::max_io_bytes`](crate::DeviceSpec::max_io_bytes).
        length: u32,
        /// Whether it is durable when it is answered.
        fua: bool,
    },
    /// Make durable what was answered before.
    Flush,
    /// The range is not needed any more.
    Discard {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// Where.
        offset: u64,
        /// How much.
        length: u64,
        /// Whether its space may be given back.
        may_unmap: bool,
    },
}

impl Op {
    /// Reads what the kernel wrote; `None` for what is not known, or makes no sense.
    pub(crate) fn from_kernel(descriptor: &IoDescriptor) -> Option<Self> {
        if descriptor.op_flags & op::MASK == op::FLUSH {
            // It has no range; the kernel leaves what is there.
            return Some(Self::Flush);
        }
        let length = u64::from(descriptor.sectors) * SECTOR;
        let offset = descriptor.start_sector.checked_mul(SECTOR)?;
        offset.checked_add(length)?;
        let short = u32::try_from(length).ok();
        let has = |flag| descriptor.op_flags & flag != 0;
        Some(match descriptor.op_flags & op::MASK {
            op::READ => Self::Read { offset, length: short? },
            op::WRITE => Self::Write { offset, length: short?, fua: has(op::FUA) },
            op::DISCARD => Self::Discard { offset, length },
            op::WRITE_ZEROES => Self::WriteZeroes { offset, length, may_unmap: !has(op::NO_UNMAP) },
            _ => return None,
        })
    }

    /// What the kernel is told when all went well.
    pub(crate) fn success(&self) -> i32 {
        match *self {
            Self::Read { length, .. } | Self::Write { length, .. } => {
                i32::try_from(length).expect("requests are at most 32 MiB")
            }
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => 0,
        }
    }
}

/// A request of the kernel. One that is dropped without an answer fails with an I/O error.
pub struct Request {
    queue: Arc<Queue>,
    tag: u16,
    /// Which request of this tag it is: a device that was aborted has answered it itself.
    turn: u64,
    op: Op,
    answered: bool,
}

impl Request {
    pub(crate) fn new(queue: Arc<Queue>, tag: u16, turn: u64, op: Op) -> Self {
        Self { queue, tag, turn, op, answered: false }
    }

    /// What it asks for.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// Fills `data`, as long as the request, with what is to be written.
    ///
    /// # Errors
    /// When the request is not waited for any more, because the device was aborted.
    pub fn read_data(&self, data: &mut [u8]) -> io::Result<()> {
        self.queue.with_live(self.tag, self.turn, |copy, device| {
            copy.read(device, self.queue.id(), self.tag, data)
        })
    }

    /// Gives the kernel the data, as long as the request, that were read.
    ///
    /// # Errors
    /// As [`Request::read_data`].
    pub fn write_data(&self, data: &[u8]) -> io::Result<()> {
        self.queue.with_live(self.tag, self.turn, |copy, device| {
            copy.write(device, self.queue.id(), self.tag, data)
        })
    }

    /// Answers it. The kernel tells its caller of "no space" and "not supported" as such, of any
    /// other error as an I/O error.
    // The answer is given: nothing can be asked of the result any more.
    #[allow(clippy::needless_pass_by_value)]
    pub fn answer(mut self, result: io::Result<()>) {
        self.answered = true;
        let result = match result {
            Ok(()) => self.op.success(),
            Err(error) => -errno_of(&error),
        };
        self.queue.answer(self.tag, self.turn, result);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered {
            self.queue.answer(self.tag, self.turn, -libc::EIO);
        }
    }
}

/// `EAGAIN` and others mean something to the block layer that is not meant here.
fn errno_of(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::StorageFull => libc::ENOSPC,
        io::ErrorKind::Unsupported => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(op_flags: u32, sectors: u32, start_sector: u64) -> Option<Op> {
        Op::from_kernel(&IoDescriptor { op_flags, sectors, start_sector, address: 0 })
    }

    #[test]
    fn operations_and_their_flags() {
        assert_eq!(op(op::READ, 8, 2), Some(Op::Read { offset: 1024, length: 4096 }));
        let write = |fua| Some(Op::Write { offset: 0, length: 512, fua });
        assert_eq!(op(op::WRITE | 1 << 8, 1, 0), write(false));
        assert_eq!(op(op::WRITE | op::FUA, 1, 0), write(true));
        assert_eq!(op(op::FLUSH, 0, u64::MAX), Some(Op::Flush));
        let length = u64::from(u32::MAX) * 512;
        assert_eq!(op(op::DISCARD, u32::MAX, 1), Some(Op::Discard { offset: 512, length }));
        let zeroes = |may_unmap| Some(Op::WriteZeroes { offset: 512, length: 512, may_unmap });
        assert_eq!(op(op::WRITE_ZEROES, 1, 1), zeroes(true));
        assert_eq!(op(op::WRITE_ZEROES | op::NO_UNMAP, 1, 1), zeroes(false));
    }

    #[test]
    fn what_makes_no_sense_is_no_operation() {
        assert_eq!(op(4, 1, 0), None);
        assert_eq!(op(op::READ, u32::MAX, 0), None);
        assert_eq!(op(op::READ, 1, u64::MAX / 512 + 1), None);
        assert_eq!(op(op::DISCARD, 2, u64::MAX / 512), None);
    }

    #[test]
    fn only_errors_that_a_block_device_knows_pass() {
        assert_eq!(errno_of(&io::Error::from_raw_os_error(libc::ENOSPC)), libc::ENOSPC);
        assert_eq!(errno_of(&io::ErrorKind::Unsupported.into()), libc::EOPNOTSUPP);
        for error in [libc::EAGAIN, libc::EINTR, libc::ENODEV, libc::ETIMEDOUT] {
            assert_eq!(errno_of(&io::Error::from_raw_os_error(error)), libc::EIO);
        }
        assert_eq!(Op::Flush.success(), 0);
        assert_eq!(Op::Read { offset: 0, length: 4096 }.success(), 4096);
    }
}
