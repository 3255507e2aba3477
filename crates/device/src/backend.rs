use holdfast_nbd::TransmissionFlags;
use holdfast_units::ByteRange;
use std::io;
use std::os::unix::net::UnixStream;

/// What stands behind a block device: the data of one resource or export.
///
/// Requests come from several threads at once and never leave `0..size()`. Their bounds are
/// multiples of `block_size()`, and a read or write is at most [`holdfast_units::MAX_REQUEST`] long;
/// `trim` and `write_zeroes` can be up to 4 GiB.
///
/// Every call must end in bounded time, with an error if need be: a request that waits for ever
/// makes a process that nobody can kill. The block device reports `ENOSPC` as such and every
/// other error as an I/O error.
pub trait Backend: Send + Sync + 'static {
    /// The size in bytes. It may grow while a device is attached, which hears of it by
    /// [`LocalDevice::resize`](crate::LocalDevice::resize), and does not change otherwise.
    fn size(&self) -> u64;

    /// What the bounds of every request are a multiple of, and the logical block size of the
    /// device: a power of two from 512 to 4096.
    ///
    /// The default is 512 bytes, what nearly every disk has: a partition table or an image that
    /// was made elsewhere then means the same here.
    fn block_size(&self) -> u32 {
        512
    }

    /// Whether the device refuses writes; then none comes here. Does not change.
    fn is_read_only(&self) -> bool {
        false
    }

    /// A new connection to an NBD server that has the same data, for the kernel's NBD client to use
    /// directly; `None` when there is no such server. The connections do not depend on each other,
    /// and requests on them obey the same rules as those on the backend.
    ///
    /// # Errors
    /// When the server cannot be reached now, or has something else by now.
    fn kernel_line(&self) -> Option<io::Result<KernelLine>> {
        None
    }

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// When the data could not be read; what `data` holds then is not used.
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes `data` at `offset`; with `fua` it is durable on return.
    ///
    /// # Errors
    /// When the write did not happen, happened in part or is not known to have happened.
    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()>;

    /// Makes everything durable that was completed, on any thread, before the call.
    ///
    /// # Errors
    /// When that is not certain.
    fn flush(&self) -> io::Result<()>;

    /// Says that the range is not needed; what it reads as afterwards is not defined.
    ///
    /// # Errors
    /// When the range could not be given up.
    fn trim(&self, range: ByteRange) -> io::Result<()>;

    /// Makes the range read as zeroes. With `may_unmap` its space may be given back.
    ///
    /// # Errors
    /// As [`Backend::write_at`]. [`io::ErrorKind::Unsupported`] makes the kernel write zeroes
    /// itself.
    fn write_zeroes(&self, range: ByteRange, may_unmap: bool) -> io::Result<()>;
}

/// A connection to an NBD server, past its handshake, with simple replies.
#[derive(Debug)]
pub struct KernelLine {
    /// The client's end.
    pub socket: UnixStream,
    /// What the server can.
    pub flags: TransmissionFlags,
}
