//! A device of the kernel's NBD client.
//!
//! The kernel speaks NBD over a Unix socket whose other end is an NBD server of this machine: the
//! backend's own, where it has one, else threads of this process. When the socket dies, because the
//! process was killed for instance, I/O waits, and the device is given a new one.

use crate::backend::{Backend, KernelLine};
use crate::blockdev::BlockDevice;
use crate::claim::Claim;
use crate::device::DeviceOptions;
use crate::error::DeviceError;
use crate::nbd_netlink::{DeadLinks, NbdNetlink, Setup};
use crate::nbd_serve;
use crate::record::Record;
use crate::sysinfo;
use crate::via::Kind;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long I/O waits for a new socket; then it fails, and the device with it.
const DEAD_LIMIT: Duration = Duration::from_secs(600);
/// How often the kernel looks after a request that has no answer: so long after a new socket is
/// there, at most, those that were lost with the old one are sent again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The kernel's own interval, for the next user of the device.
const LOOK_AGAIN_DEFAULT: Duration = Duration::from_secs(30);
/// The pauses between attempts to make a new socket double from this to this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long closing waits for the kernel to free the device.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long the keeper is waited for when it is not wanted any more.
const KEEPER_LIMIT: Duration = Duration::from_secs(1);
/// Sockets that the kernel may have; more are not kept track of.
const MAX_LINES: usize = 4;

/// How many free numbers are tried that turn out to be somebody else's.
const TRIES: usize = 16;

/// A device over a backend. Dropping it takes the device away by force, unless it was left.
pub(crate) struct NbdDevice {
    shared: Arc<Shared>,
    device: BlockDevice,
    /// Closing it ends the keeper.
    stop: Option<UnixStream>,
    keeper: Option<std::thread::JoinHandle<()>>,
    /// Whether the kernel's device is ours.
    attached: bool,
}

/// What the keeper works with.
struct Shared {
    index: u32,
    /// The kernel's name, `nbdN`.
    name: String,
    /// By which the kernel knows that the device is this one.
    identifier: String,
    backend: Arc<dyn Backend>,
    threads: usize,
    /// The sockets that were given to the kernel and are not dead.
    lines: Mutex<Vec<UnixStream>>,
}

impl NbdDevice {
    /// Makes a device; first its [`Record`] is written.
    pub(crate) fn attach(
        name: &str,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Self, DeviceError> {
        let mut record = Record {
            kind: Kind::Nbd,
            id: 0,
            token: token().map_err(failed("taking a random number", name))?,
            size: backend.size(),
            block_size: backend.block_size(),
            read_only: backend.is_read_only(),
        };
        let mut netlink = NbdNetlink::open().map_err(failed("reaching the NBD client", name))?;
        let dead_links =
            DeadLinks::listen().map_err(failed("listening to the NBD client", name))?;
        let line = line_to(&backend, options.threads)
            .map_err(failed("making a connection for the NBD client", name))?;
        let identifier = identifier(record.token);
        let setup = Setup {
            size: record.size,
            block_size: record.block_size,
            flags: line.flags.0,
            dead_seconds: DEAD_LIMIT.as_secs(),
            identifier: &identifier,
        };
        let mut busy = Vec::new();
        while busy.len() < TRIES {
            record.id = free_number(&busy).map_err(failed("finding a free NBD device", name))?;
            record.save(&options.run_dir, name)?;
            match netlink.connect(record.id, &setup, line.socket.as_fd()) {
                Ok(()) => {
                    set_look_again(&name_of(record.id), LOOK_AGAIN);
                    let shared = Shared::new(&record, backend, options.threads, line.socket);
                    return Self::keep(shared, dead_links).map_err(|error| {
                        // Nobody uses it yet.
                        let _ = netlink.disconnect(record.id);
                        failed("setting up an NBD device", name)(error)
                    });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => busy.push(record.id),
                Err(error) => return Err(failed("making an NBD device", name)(error)),
            }
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        Err(failed("finding a free NBD device", name)(busy))
    }

    /// Takes over the device of the record, and gives it a new socket: its I/O, which waits, goes
    /// on. `None` when there is no such device any more.
    pub(crate) fn recover(
        record: &Record,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Option<Self>, DeviceError> {
        let name = &name_of(record.id);
        if !exists(record) {
            return Ok(None);
        }
        let mut netlink = NbdNetlink::open().map_err(failed("reaching the NBD client", name))?;
        // First this, then the new socket: should the old one die only afterwards, we hear of it.
        let dead_links =
            DeadLinks::listen().map_err(failed("listening to the NBD client", name))?;
        let line = line_to(&backend, options.threads)
            .map_err(failed("making a connection for the NBD client", name))?;
        netlink
            .reconnect(record.id, &identifier(record.token), line.socket.as_fd())
            .map_err(failed("giving the NBD client a new socket", name))?;
        let shared = Shared::new(record, backend, options.threads, line.socket);
        Self::keep(shared, dead_links).map(Some).map_err(failed("taking over an NBD device", name))
    }

    /// The device that the kernel has; from now on it gets a new socket when the old one dies.
    fn keep(shared: Shared, mut dead_links: DeadLinks) -> io::Result<Self> {
        let device = BlockDevice::named(shared.name.clone())?;
        device.make_node()?;
        let shared = Arc::new(shared);
        let owned = Arc::clone(&shared);
        let (stop, stopped) = UnixStream::pair()?;
        let keep = move || {
            while dead_links.wait(owned.index, stopped.as_fd()) && owned.renew(&stopped) {}
        };
        let keeper = std::thread::Builder::new().name("nbd-keeper".to_owned()).spawn(keep)?;
        Ok(Self { shared, device, stop: Some(stop), keeper: Some(keeper), attached: true })
    }

    pub(crate) fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// Takes the device away, which is flushed; the claim keeps others off. Somebody who has opened it
    /// meanwhile without claiming it gets errors.
    pub(crate) fn close(&mut self, claim: Claim) -> io::Result<()> {
        self.stop_keeper();
        self.disconnect()?;
        self.attached = false;
        self.shared.cut();
        set_look_again(&self.shared.name, LOOK_AGAIN_DEFAULT);
        drop(claim);
        let deadline = Instant::now() + CLOSE_LIMIT;
        // One that somebody has opened meanwhile is freed when it is closed.
        while sysinfo::nbd_is_connected(&self.shared.name) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Fails what is pending and all I/O from now on. The kernel's device goes with its last user.
    pub(crate) fn abort(&mut self) {
        self.stop_keeper();
        if std::mem::take(&mut self.attached)
            && let Err(error) = {
                // The kernel sends a farewell, which a server that takes nothing would hold up.
                self.shared.cut();
                self.disconnect()
            }
        {
            tracing::warn!(device = self.shared.name, %error, "disconnecting failed");
        }
    }

    /// Leaves the device to the next process: its I/O waits until [`NbdDevice::recover`].
    pub(crate) fn leave(&mut self) {
        self.stop_keeper();
        self.attached = false;
        self.shared.cut();
    }

    /// Tells the kernel that the backend has another size.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn resize(&self, size: u64) -> io::Result<()> {
        let shared = &self.shared;
        NbdNetlink::open()?.resize(shared.index, &shared.identifier, size)
    }

    fn disconnect(&self) -> io::Result<()> {
        NbdNetlink::open()?.disconnect(self.shared.index)
    }

    fn stop_keeper(&mut self) {
        self.stop = None;
        let Some(keeper) = self.keeper.take() else { return };
        // One that waits for a server which does not answer ends later. What it does then concerns
        // this device alone, which the kernel knows by its identifier.
        let deadline = Instant::now() + KEEPER_LIMIT;
        while !keeper.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Whether the kernel has the device of the record.
pub(crate) fn exists(record: &Record) -> bool {
    is_ours(&name_of(record.id), &identifier(record.token))
}

/// Takes away the device of the record, which nobody serves: its I/O fails. `false` when the kernel
/// does not have it.
pub(crate) fn remove_left(record: &Record) -> io::Result<bool> {
    if !exists(record) {
        return Ok(false);
    }
    NbdNetlink::open()?.disconnect(record.id).map(|()| true)
}

impl Shared {
    fn new(record: &Record, backend: Arc<dyn Backend>, threads: usize, line: UnixStream) -> Self {
        Self {
            index: record.id,
            name: name_of(record.id),
            identifier: identifier(record.token),
            backend,
            threads,
            lines: Mutex::new(vec![line]),
        }
    }

    fn cut(&self) {
        for line in self.lines().drain(..) {
            // One that is dead is cut already.
            let _ = line.shutdown(std::net::Shutdown::Both);
        }
    }

    fn lines(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the device a new socket, as soon as there is a server; false when it is not wanted any
    /// more, or the device is gone.
    fn renew(&self, stop: &UnixStream) -> bool {
        tracing::warn!(device = self.name, "the connection of a device broke; its I/O waits");
        let mut pause = SHORTEST_PAUSE;
        loop {
            match self.try_to_renew() {
                Ok(()) => {
                    tracing::info!(device = self.name, "the device is connected again");
                    return true;
                }
                Err(error) => {
                    tracing::debug!(device = self.name, %error, "no new connection yet");
                }
            }
            if !is_ours(&self.name, &self.identifier) || wait(stop, pause) {
                return false;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn try_to_renew(&self) -> io::Result<()> {
        let line = line_to(&self.backend, self.threads)?;
        let mut netlink = NbdNetlink::open()?;
        netlink.reconnect(self.index, &self.identifier, line.socket.as_fd())?;
        let mut lines = self.lines();
        // A kernel that has heard of no dead socket takes none: one more may be there that is used.
        lines.retain(|line| !is_hung_up(line));
        if lines.len() >= MAX_LINES {
            lines.remove(0);
        }
        lines.push(line.socket);
        Ok(())
    }
}

/// A new connection between the kernel and what serves the backend: the kernel's end.
fn line_to(backend: &Arc<dyn Backend>, threads: usize) -> io::Result<KernelLine> {
    if let Some(line) = backend.kernel_line() {
        return line;
    }
    let socket = nbd_serve::serve(backend, threads)?;
    Ok(KernelLine { socket, flags: nbd_serve::flags_of(&**backend) })
}

fn name_of(index: u32) -> String {
    format!("nbd{index}")
}

fn token() -> io::Result<u64> {
    getrandom::u64().map_err(|error| io::Error::other(error.to_string()))
}

fn identifier(token: u64) -> String {
    format!("holdfast-{token:016x}")
}

fn failed(what: &'static str, name: &str) -> impl FnOnce(io::Error) -> DeviceError {
    DeviceError::system(what, Path::new(name))
}

/// The first number that nobody uses; when all that the kernel has are used, one more. One that is
/// not connected can be `busy` all the same: somebody, such as udev, has it open.
fn free_number(busy: &[u32]) -> io::Result<u32> {
    let numbers = sysinfo::nbd_numbers()?;
    let is_free =
        |number: &&u32| !busy.contains(number) && !sysinfo::nbd_is_connected(&name_of(**number));
    let next = numbers.iter().chain(busy).max().map_or(0, |last| last.saturating_add(1));
    Ok(numbers.iter().find(is_free).copied().unwrap_or(next))
}

/// Whether the device is the one that was made with the identifier.
fn is_ours(name: &str, identifier: &str) -> bool {
    sysinfo::nbd_is_connected(name)
        && fs::read_to_string(format!("/sys/block/{name}/backend"))
            .is_ok_and(|told| told.trim_end_matches('\n') == identifier)
}

/// Only for a device whose requests, if there are any, end: from Linux 6.12 on the kernel first
/// waits for them.
fn set_look_again(name: &str, interval: Duration) {
    let path = format!("/sys/block/{name}/queue/io_timeout");
    if let Err(error) = fs::write(&path, interval.as_millis().to_string()) {
        tracing::debug!(path, %error, "the kernel's interval stays");
    }
}

fn is_hung_up(line: &UnixStream) -> bool {
    let mut polled = [PollFd::new(line, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && !polled[0].revents().is_empty()
}

/// Waits so long, or until told to stop: then true.
fn wait(stop: &UnixStream, pause: Duration) -> bool {
    let mut polled = [PollFd::new(stop, PollFlags::IN)];
    let Ok(pause) = Timespec::try_from(pause) else { return true };
    // Interrupted early is no harm.
    poll(&mut polled, Some(&pause)).is_ok() && !polled[0].revents().is_empty()
}
