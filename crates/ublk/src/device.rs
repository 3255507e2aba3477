//! A device from making to taking away.

use crate::control::{CONTROL, Control, try_ring};
use crate::copy::Copy;
use crate::memory::{Buffers, Descriptors};
use crate::queue::{Mode, Queue, QueueRing};
use crate::request::Target;
use crate::uapi::{
    BasicParams, Command, DeviceInfo, DiscardParams, PARAMS_LENGTH, Params, attribute, feature,
    param, state,
};
use rustix::fs::{CWD, FileType, Mode as Permissions};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The most queues that a device gets.
pub const MAX_QUEUES: u16 = 4;
/// How many requests of a queue the kernel has under way, at most.
pub const MAX_DEPTH: u16 = 128;

/// For commands that only note something.
const SHORT: Duration = Duration::from_secs(5);
/// For the start, which looks for partitions: the target answers those reads.
const START_LIMIT: Duration = Duration::from_secs(90);
/// For the kernel to notice that the process before is gone. Where all requests of a queue were
/// with it, kernels before 6.15 need a request's time-out of 30 seconds.
const QUIESCE_LIMIT: Duration = Duration::from_secs(45);
/// For the kernel to end what is under way.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// The same after everything was failed.
const ABORT_LIMIT: Duration = Duration::from_secs(10);
/// For the threads to end, and for the kernel to let go of a device.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// One request zeroes or discards at most this many sectors: 1 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 21;
const SECTOR: u64 = 512;
/// What filesystems are to align to.
const PHYSICAL_SHIFT: u8 = 12;

/// Why a device could not be made, taken over, changed or taken away.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct UblkError {
    /// What was being done.
    pub what: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl UblkError {
    fn new(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { what: what.into(), source }
    }

    fn command(command: Command) -> impl FnOnce(io::Error) -> Self {
        Self::new(format!("the ublk command {}", command.name()))
    }
}

impl From<UblkError> for io::Error {
    fn from(error: UblkError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// What a device is to be like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceSpec {
    /// 1 to [`MAX_QUEUES`]. The kernel may give fewer.
    pub queues: u16,
    /// 2 to [`MAX_DEPTH`].
    pub depth: u16,
    /// The longest read or write, in bytes: a multiple of 4096, at most 1 MiB.
    pub max_io_bytes: u32,
    /// In bytes, a multiple of the block size.
    pub size: u64,
    /// The logical blocks: a power of two from 512 to 4096 bytes.
    pub block_size: u32,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
    /// Kept by the kernel with the device, to know it by.
    pub token: u64,
    /// Copy data by reads and writes where the kernel can. Without, the kernel copies itself.
    pub user_copy: bool,
}

impl DeviceSpec {
    fn params(&self) -> Params {
        let block_shift =
            u8::try_from(self.block_size.trailing_zeros()).expect("a shift is at most 32");
        let mut attributes = attribute::VOLATILE_CACHE | attribute::FUA;
        if self.read_only {
            attributes |= attribute::READ_ONLY;
        }
        let physical = PHYSICAL_SHIFT.max(block_shift);
        let basic = BasicParams {
            attributes,
            logical_block_shift: block_shift,
            physical_block_shift: physical,
            optimal_io_shift: physical,
            minimum_io_shift: physical,
            max_sectors: self.max_io_bytes / 512,
            sectors: self.size / SECTOR,
            ..BasicParams::default()
        };
        let (types, discard) = match self.read_only {
            true => (param::BASIC, DiscardParams::default()),
            false => {
                let discard = DiscardParams {
                    granularity: 1 << physical,
                    max_sectors: MAX_RANGE_SECTORS,
                    max_zeroes_sectors: MAX_RANGE_SECTORS,
                    max_segments: 1,
                    ..DiscardParams::default()
                };
                (param::BASIC | param::DISCARD, discard)
            }
        };
        Params { length: PARAMS_LENGTH, types, basic, discard, unused: 0 }
    }

    fn wanted_flags(&self) -> u64 {
        let recovery = feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE;
        let copy = if self.user_copy { feature::USER_COPY } else { 0 };
        recovery | copy | feature::CMD_IOCTL_ENCODE | feature::UPDATE_SIZE
    }
}

/// What became of a device that was to be taken away gently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It is gone.
    Gone,
    /// Somebody has it open: it is as it was.
    InUse,
}

/// A block device that this process serves. Dropping it fails its I/O and takes it away.
pub struct UblkDevice {
    control: Control,
    info: DeviceInfo,
    queues: Vec<Arc<Queue>>,
    threads: Vec<JoinHandle<()>>,
    open: bool,
}

impl UblkDevice {
    /// Makes `/dev/ublkbID` and serves it. The target is asked before this returns: the kernel
    /// looks for partitions.
    ///
    /// # Errors
    /// When the driver refuses; [`io::ErrorKind::AlreadyExists`] is the kind of the source when
    /// the number is taken. Nothing is left behind.
    pub fn create(id: u32, spec: &DeviceSpec, target: &Arc<dyn Target>) -> Result<Self, UblkError> {
        let control = Control::open().map_err(UblkError::new(format!("opening {CONTROL}")))?;
        let wanted = DeviceInfo {
            queues: spec.queues.clamp(1, MAX_QUEUES),
            depth: spec.depth.clamp(2, MAX_DEPTH),
            max_io_bytes: spec.max_io_bytes,
            id,
            flags: spec.wanted_flags() & control.features().unwrap_or(u64::MAX),
            token: spec.token,
            ..DeviceInfo::default()
        };
        let add = Command::AddDevice;
        let info = control.exchange(add, id, 0, wanted, SHORT).map_err(UblkError::command(add))?;
        let mut device =
            Self { control, info, queues: Vec::new(), threads: Vec::new(), open: true };
        let set = Command::SetParams;
        device
            .control
            .exchange(set, id, 0, spec.params(), SHORT)
            .map_err(UblkError::command(set))?;
        let start = device.prepare(target)?;
        start.go(&mut device)?;
        device.finish(Command::StartDevice)?;
        device.tune();
        Ok(device)
    }

    /// Takes over the device that a process before left, and issues its I/O again; `None` when
    /// there is none with this number and token. One that cannot be taken over is removed.
    ///
    /// # Errors
    /// When the driver refuses. The device waits as before then.
    pub fn recover(
        id: u32,
        token: u64,
        target: &Arc<dyn Target>,
    ) -> Result<Option<Self>, UblkError> {
        let control = Control::open().map_err(UblkError::new(format!("opening {CONTROL}")))?;
        let Some(info) = info_of(&control, id, token).map_err(asking)? else { return Ok(None) };
        if info.flags & feature::USER_RECOVERY == 0 || info.state == state::DEAD {
            // It never had a disk, or has none any more: nobody can have it open.
            delete(&control, id).map_err(UblkError::command(Command::DeleteDevice))?;
            return Ok(None);
        }
        let mut device =
            Self { control, info, queues: Vec::new(), threads: Vec::new(), open: true };
        match device.take_over(target) {
            Ok(()) => Ok(Some(device)),
            Err(error) => {
                device.leave();
                Err(error)
            }
        }
    }

    fn take_over(&mut self, target: &Arc<dyn Target>) -> Result<(), UblkError> {
        // From the start of the recovery to the last fetch as little as possible is done: kernels
        // before 6.16 cannot go on with a device whose next server dies in between.
        let start = self.prepare(target)?;
        self.start_recovery()?;
        start.go(self)?;
        self.finish(Command::EndRecovery)
    }

    /// Waits until the kernel has noticed that the process before is gone.
    fn start_recovery(&self) -> Result<(), UblkError> {
        let command = Command::StartRecovery;
        let deadline = Instant::now() + QUIESCE_LIMIT;
        loop {
            match self.control.command(command, self.info.id, 0, SHORT) {
                Ok(()) => return Ok(()),
                // A server before has begun the recovery and died before it had a queue: kernels
                // before 6.16 do not begin twice, and do not need it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                Err(error)
                    if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {}
                Err(error) => return Err(UblkError::command(command)(error)),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The kernel's name of the block device.
    #[must_use]
    pub fn name(&self) -> String {
        format!("ublkb{}", self.info.id)
    }

    /// Whether the device waits for [`UblkDevice::recover`] when this process ends, without an
    /// error for those who use it.
    #[must_use]
    pub fn survives(&self) -> bool {
        let needed = feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE;
        self.info.flags & needed == needed
    }

    /// Changes the size; `false` when the kernel cannot do that.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn resize(&self, bytes: u64) -> Result<bool, UblkError> {
        if self.info.flags & feature::UPDATE_SIZE == 0 {
            return Ok(false);
        }
        let command = Command::UpdateSize;
        self.control
            .command(command, self.info.id, bytes / SECTOR, SHORT)
            .map_err(UblkError::command(command))?;
        Ok(true)
    }

    /// Takes the device away after everything under way was answered. Nobody should have it open.
    /// Where the kernel can tell (7.0 and later), a device that somebody has open stays.
    ///
    /// # Errors
    /// When the driver refuses, or does not end in time. The device is served as before then.
    pub fn stop(&mut self) -> Result<Stopped, UblkError> {
        match self.try_stop(Command::TryStopDevice) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY) => return Ok(Stopped::InUse),
                Some(libc::ENODEV) => {}
                _ => self
                    .try_stop(Command::StopDevice)
                    .map_err(UblkError::command(Command::StopDevice))?,
            },
        }
        self.open = false;
        self.join();
        self.delete();
        Ok(Stopped::Gone)
    }

    fn try_stop(&self, command: Command) -> io::Result<()> {
        self.control.command(command, self.info.id, 0, STOP_LIMIT)
    }

    /// Fails all I/O, also what is under way, and takes the device away, whoever has it open.
    pub fn abort(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        self.set_mode(Mode::Abort);
        if let Err(error) = self.control.command(Command::StopDevice, self.info.id, 0, ABORT_LIMIT)
        {
            tracing::warn!(device = self.name(), %error, "a device was not stopped");
        }
        self.join();
        self.delete();
    }

    /// Stops serving, and leaves the device to the next process: its I/O waits. What is being
    /// worked on is not answered, but issued again.
    pub fn leave(&mut self) {
        if std::mem::take(&mut self.open) {
            self.set_mode(Mode::Leave);
            self.join();
            self.queues.clear();
        }
    }

    fn set_mode(&self, mode: Mode) {
        for queue in &self.queues {
            queue.set_mode(mode);
        }
    }

    /// Starts a thread with a ring for each queue.
    fn prepare(&self, target: &Arc<dyn Target>) -> Result<Start, UblkError> {
        let mut start = Start { threads: Vec::new(), parts: Vec::new() };
        let (ready, rings) = channel();
        for queue in 0..self.info.queues {
            let (send, parts) = channel();
            let (ready, target) = (ready.clone(), Arc::clone(target));
            let depth = self.info.depth;
            let thread = std::thread::Builder::new()
                .name(format!("ublk{}-{queue}", self.info.id))
                .stack_size(256 << 10)
                .spawn(move || serve(depth, &ready, &parts, &*target))
                .map_err(UblkError::new("starting a thread"))?;
            start.threads.push(thread);
            start.parts.push(send);
        }
        drop(ready);
        for ring in rings.iter().take(start.threads.len()) {
            ring.map_err(UblkError::new("making a ring"))?;
        }
        Ok(start)
    }

    /// The command that ends the preparation: the kernel waits for every fetch, then the device
    /// is there.
    fn finish(&self, command: Command) -> Result<(), UblkError> {
        let pid = u64::from(std::process::id());
        self.control
            .command(command, self.info.id, pid, START_LIMIT)
            .map_err(UblkError::command(command))
    }

    /// Where every request of a queue is with this process, kernels before 6.15 do not notice at
    /// once that it died. So one request less than there is room for is let through, which needs
    /// the queue to be without a scheduler.
    fn tune(&self) {
        let queue = format!("/sys/block/{}/queue", self.name());
        let set = |what: &str, value: &str| {
            if let Err(error) = fs::write(format!("{queue}/{what}"), value) {
                tracing::debug!(device = self.name(), what, %error, "not set");
            }
        };
        set("scheduler", "none");
        set("nr_requests", &(self.info.depth - 1).to_string());
    }

    /// Waits for the threads to end; they do so when the device is stopped or left.
    fn join(&mut self) {
        let deadline = Instant::now() + JOIN_LIMIT;
        for thread in self.threads.drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A panic has been reported.
                let _ = thread.join();
            } else {
                tracing::warn!(device = self.info.id, "a thread of a device did not end");
            }
        }
    }

    /// Gives the number free.
    fn delete(&mut self) {
        // They have the character device open.
        self.queues.clear();
        if let Err(error) = delete(&self.control, self.info.id) {
            tracing::warn!(device = self.name(), %error, "a device was not deleted");
        }
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Threads that wait for their queues.
struct Start {
    threads: Vec<JoinHandle<()>>,
    parts: Vec<Sender<(Arc<Queue>, Descriptors)>>,
}

impl Start {
    /// Opens the character device and lets the threads fetch.
    fn go(self, device: &mut UblkDevice) -> Result<(), UblkError> {
        let info = device.info;
        // Without their parts they end.
        device.threads = self.threads;
        let node = open_char_device(info.id)
            .map_err(UblkError::new(format!("opening /dev/ublkc{}", info.id)))?;
        let mapped = UblkError::new("sharing memory with the driver");
        let make = |id: u16| {
            let copy = match info.flags & feature::USER_COPY {
                0 => Copy::Kernel(Buffers::new(
                    info.depth,
                    usize::try_from(info.max_io_bytes).map_err(io::Error::other)?,
                )?),
                _ => Copy::User,
            };
            let encoded = device.control.is_encoded();
            let queue = Queue::new(id, info.depth, node.try_clone()?, copy, encoded)?;
            Ok((Arc::new(queue), Descriptors::map(&node, id, info.depth)?))
        };
        let made: io::Result<Vec<_>> = (0..info.queues).map(make).collect();
        for (parts, (queue, descriptors)) in self.parts.iter().zip(made.map_err(mapped)?) {
            device.queues.push(Arc::clone(&queue));
            // A thread that is gone is noticed by the kernel, which waits for its fetches.
            let _ = parts.send((queue, descriptors));
        }
        Ok(())
    }
}

/// The life of a thread: makes its ring, waits for its queue, serves it.
fn serve(
    depth: u16,
    ready: &Sender<io::Result<()>>,
    parts: &Receiver<(Arc<Queue>, Descriptors)>,
    target: &dyn Target,
) {
    // Memory for serving a write must not wait for that very write to free memory.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "a serving thread has no claim on memory reserves");
    }
    let ring = match QueueRing::new(depth) {
        Ok(ring) => ring,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let _ = ready.send(Ok(()));
    let Ok((queue, descriptors)) = parts.recv() else { return };
    if let Err(error) = ring.serve(&queue, &descriptors, target) {
        tracing::error!(queue = queue.id(), %error, "a queue of a device is not served any more");
    }
}

/// Opens `/dev/ublkcN`, which is there a moment after the kernel made the device; makes the node
/// where no devtmpfs does.
fn open_char_device(id: u32) -> io::Result<File> {
    let deadline = Instant::now() + SHORT;
    let node = format!("/dev/ublkc{id}");
    loop {
        let error = match File::options().read(true).write(true).open(&node) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        if error.kind() == io::ErrorKind::NotFound {
            make_node(Path::new(&node), &format!("/sys/class/ublk-char/ublkc{id}/dev"));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Makes the node of a character device whose number the kernel tells in `sysfs`.
fn make_node(node: &Path, sysfs: &str) {
    let number = fs::read_to_string(sysfs).ok().and_then(|text| {
        let (major, minor) = text.trim().split_once(':')?;
        Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
    });
    let Some(number) = number else { return };
    let mode = Permissions::from_raw_mode(0o600);
    if let Err(error) = rustix::fs::mknodat(CWD, node, FileType::CharacterDevice, mode, number) {
        tracing::debug!(node = %node.display(), %error, "a device node was not made");
    }
}

/// Deletes a device that is stopped, or stops it.
fn delete(control: &Control, id: u32) -> io::Result<()> {
    // The kernel frees the number when the last of those has let go who had the device open.
    let asked = control.command(Command::DeleteDeviceAsync, id, 0, ABORT_LIMIT);
    let result = match asked {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
            control.command(Command::DeleteDevice, id, 0, JOIN_LIMIT)
        }
        asked => asked,
    };
    match result {
        Err(error)
            if error.raw_os_error() != Some(libc::ENODEV)
                && error.kind() != io::ErrorKind::TimedOut =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// What the driver knows of a device; `None` when there is none with this token.
fn info_of(control: &Control, id: u32, token: u64) -> io::Result<Option<DeviceInfo>> {
    let asked = control.exchange(Command::GetDeviceInfo, id, 0, DeviceInfo::default(), SHORT);
    match asked {
        Ok(info) => Ok((info.token == token).then_some(info)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn asking(source: io::Error) -> UblkError {
    UblkError::command(Command::GetDeviceInfo)(source)
}

/// Whether a number is free, as far as can be seen.
#[must_use]
pub fn is_free(id: u32) -> bool {
    fs::symlink_metadata(format!("/sys/class/ublk-char/ublkc{id}")).is_err()
}

/// Whether there is a device with this number and token that [`UblkDevice::recover`] can take
/// over.
#[must_use]
pub fn exists(id: u32, token: u64) -> bool {
    let info = Control::open().and_then(|control| info_of(&control, id, token));
    info.is_ok_and(|info| info.is_some_and(|info| info.state != state::DEAD))
}

/// Takes away a device that no process serves, whoever has it open; `false` when there is none
/// with this number and token.
///
/// # Errors
/// When the driver refuses.
pub fn remove(id: u32, token: u64) -> Result<bool, UblkError> {
    let control = match Control::open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(UblkError::new(format!("opening {CONTROL}")))?,
    };
    let Some(info) = info_of(&control, id, token).map_err(asking)? else { return Ok(false) };
    // Until the kernel has noticed that its process is gone it waits for its answers.
    let deadline = Instant::now() + QUIESCE_LIMIT;
    let mut now = Some(info);
    while now.is_some_and(|info| info.state == state::LIVE) && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
        now = info_of(&control, id, token).map_err(asking)?;
    }
    if let Err(error) = control.command(Command::StopDevice, id, 0, ABORT_LIMIT) {
        tracing::warn!(device = id, %error, "a device of an earlier run was not stopped");
    }
    delete(&control, id).map_err(UblkError::command(Command::DeleteDevice))?;
    Ok(true)
}

/// What the driver says that it can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// A device outlives its process, and what was under way is issued again.
    pub recovery: bool,
    /// Data are copied by calls instead of through shared memory.
    pub user_copy: bool,
    /// A device can grow while it is in use.
    pub resize: bool,
}

/// What the driver can do; `None` when it cannot say, before Linux 6.5. Only asks.
///
/// # Errors
/// When there is no driver, or it may not be opened.
pub fn features() -> io::Result<Option<Features>> {
    let told = Control::open()?.features();
    Ok(told.map(|bits| Features {
        recovery: bits & feature::USER_RECOVERY != 0 && bits & feature::USER_RECOVERY_REISSUE != 0,
        user_copy: bits & feature::USER_COPY != 0,
        resize: bits & feature::UPDATE_SIZE != 0,
    }))
}

/// What stands against using ublk here, as a clause; `None` when it can be used.
#[must_use]
pub fn obstacle() -> Option<String> {
    if fs::symlink_metadata(CONTROL).is_err() {
        make_node(Path::new(CONTROL), "/sys/class/misc/ublk-control/dev");
    }
    match Control::open() {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Some(format!("{CONTROL} does not exist; `modprobe ublk_drv` may bring it"));
        }
        Err(error) => return Some(format!("{CONTROL} cannot be opened: {error}")),
    }
    try_ring().err().map(|error| {
        format!("io_uring cannot be used ({error}); see the sysctl kernel.io_uring_disabled")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: DeviceSpec = DeviceSpec {
        queues: 2,
        depth: 64,
        max_io_bytes: 1 << 20,
        size: 1 << 30,
        block_size: 512,
        read_only: false,
        token: 9,
        user_copy: true,
    };

    #[test]
    fn a_disk_with_a_write_cache_that_can_discard() {
        let params = SPEC.params();
        assert_eq!((params.length, params.types), (60, 3));
        let basic = params.basic;
        assert_eq!(basic.attributes, attribute::VOLATILE_CACHE | attribute::FUA);
        assert_eq!((basic.logical_block_shift, basic.physical_block_shift), (9, 12));
        assert_eq!((basic.max_sectors, basic.sectors), (2048, 1 << 21));
        assert_eq!((basic.chunk_sectors, basic.boundary_mask), (0, 0));
        let discard = params.discard;
        assert_eq!((discard.granularity, discard.max_segments), (4096, 1));
        assert_eq!((discard.max_sectors, discard.max_zeroes_sectors), (1 << 21, 1 << 21));
    }

    #[test]
    fn a_read_only_disk_does_not_discard() {
        let params = DeviceSpec { read_only: true, block_size: 4096, ..SPEC }.params();
        assert_eq!(params.types, param::BASIC);
        assert_eq!(params.basic.attributes & attribute::READ_ONLY, attribute::READ_ONLY);
        assert_eq!(params.basic.logical_block_shift, 12);
        assert_eq!(params.discard, DiscardParams::default());
    }

    #[test]
    fn recovery_is_always_asked_for() {
        let flags = DeviceSpec { user_copy: false, ..SPEC }.wanted_flags();
        assert_eq!(flags, (1 << 3) | (1 << 4) | (1 << 6) | (1 << 10));
        assert_eq!(SPEC.wanted_flags() & !flags, 1 << 7);
    }

    #[test]
    fn a_machine_without_the_driver_says_so() {
        if Path::new(CONTROL).exists() {
            return;
        }
        assert!(obstacle().unwrap().contains("modprobe ublk_drv"));
        assert!(!exists(0, 0));
        assert!(!remove(0, 0).unwrap());
        assert!(is_free(1_000_000));
    }
}
