//! Commands to the driver, one at a time, each with a time limit.
#![allow(unsafe_code)]

use crate::uapi::{Command, ControlCommand, NO_QUEUE, Plain};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

pub(crate) const CONTROL: &str = "/dev/ublk-control";

/// `/dev/ublk-control`, and what the driver can do.
pub(crate) struct Control {
    file: File,
    /// Since Linux 6.5 the driver tells.
    features: Option<u64>,
}

impl Control {
    /// Opens the driver.
    ///
    /// # Errors
    /// When there is none, or it may not be opened.
    pub(crate) fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(CONTROL)?;
        let mut control = Self { file, features: Some(0) };
        let limit = Duration::from_secs(5);
        control.features = control.exchange(Command::GetFeatures, u32::MAX, 0, 0_u64, limit).ok();
        Ok(control)
    }

    /// What the driver can do; `None` when it cannot say.
    pub(crate) fn features(&self) -> Option<u64> {
        self.features
    }

    /// Whether commands are encoded like ioctls. All drivers that know this encoding and do not
    /// tell their features know the bare numbers, too.
    pub(crate) fn is_encoded(&self) -> bool {
        self.features.is_some()
    }

    /// A command with a number.
    ///
    /// # Errors
    /// What the driver says, and [`io::ErrorKind::TimedOut`].
    pub(crate) fn command(
        &self,
        command: Command,
        device: u32,
        data: u64,
        limit: Duration,
    ) -> io::Result<()> {
        let header = ControlCommand {
            device,
            queue: NO_QUEUE,
            length: 0,
            address: 0,
            data,
            path_length: 0,
            pad: 0,
            reserved: 0,
        };
        self.run(command, &header, limit)
    }

    /// A command with a structure that the kernel reads and may write; as it is afterwards.
    ///
    /// # Errors
    /// As [`Control::command`].
    pub(crate) fn exchange<T: Plain>(
        &self,
        command: Command,
        device: u32,
        data: u64,
        payload: T,
        limit: Duration,
    ) -> io::Result<T> {
        // A command that is given up may still write to it: then it is never freed.
        let payload = Box::into_raw(Box::new(payload));
        let header = ControlCommand {
            device,
            queue: NO_QUEUE,
            length: u16::try_from(size_of::<T>()).expect("the structures are small"),
            address: payload.expose_provenance() as u64,
            data,
            path_length: 0,
            pad: 0,
            reserved: 0,
        };
        let result = self.run(command, &header, limit);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // SAFETY: it came out of `Box::into_raw` above and is taken back once. The command has
        // ended, so the kernel does not touch it any more; whatever it wrote is a `T` (`Plain`).
        let payload = unsafe { Box::from_raw(payload) };
        result.map(|()| *payload)
    }

    /// Runs a command. The memory that its header names lives on when the time is out.
    fn run(&self, command: Command, header: &ControlCommand, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        // A ring of its own: when the command is given up, the ring is, and the kernel's worker
        // with it.
        let mut ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(2)?;
        let entry =
            opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), command.code(self.is_encoded()))
                .cmd(header.bytes())
                .build();
        // SAFETY: the memory that the header names is owned by `exchange`, which keeps it until
        // the command has ended or for ever; the descriptor is open as long as `self` is.
        unsafe { ring.submission().push(&entry) }.expect("the ring is empty");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timespec = Timespec::from(left);
            let args = SubmitArgs::new().timespec(&timespec);
            let waited = ring.submitter().submit_with_args(1, &args);
            if let Some(entry) = ring.completion().next() {
                return match entry.result() {
                    0.. => Ok(()),
                    error => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            match waited {
                Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Whether io_uring can be used as the driver wants it.
///
/// # Errors
/// Why not.
pub(crate) fn try_ring() -> io::Result<()> {
    IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(2).map(drop)
}
