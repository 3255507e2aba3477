//! A device of the kernel's NBD client.
//!
//! The kernel speaks NBD over a Unix socket whose other end is an NBD server of this machine: the
//! backend's own, where it has one, else threads of this process. When the socket dies, because the
//! process was killed for instance, I/O waits, and the device is given a new one.

use crate::backend::{Backend, KernelLine};
use crate::error::DeviceError;
use crate::nbd_netlink::{DeadLinks, NbdNetlink, Setup};
use crate::nbd_serve;
use crate::sysinfo::{self, DeviceNumber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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
/// Sockets that the kernel may have; more are not kept track of.
const MAX_LINES: usize = 4;

/// A device over a backend. Dropping it does nothing to the kernel's device but to cut its
/// connection.
pub(crate) struct NbdDevice {
    shared: Arc<Shared>,
    node: PathBuf,
    number: DeviceNumber,
    /// Closing it ends the keeper.
    stop: Option<UnixStream>,
    keeper: Option<std::thread::JoinHandle<()>>,
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
    /// Makes a device. The identifier is what [`NbdDevice::recover`] knows it by.
    pub(crate) fn attach(
        backend: Arc<dyn Backend>,
        identifier: &str,
        threads: usize,
    ) -> Result<Self, DeviceError> {
        let path = Path::new("nbd");
        let failed = |what| DeviceError::system::<io::Error>(what, path);
        let mut netlink = NbdNetlink::open().map_err(failed("reaching the kernel's NBD client"))?;
        let dead_links = DeadLinks::listen().map_err(failed("listening to the NBD client"))?;
        let line = line_to(&backend, threads).map_err(failed("connecting the NBD client"))?;
        let setup = Setup {
            size: backend.size(),
            block_size: backend.block_size(),
            flags: line.flags.0,
            dead_seconds: DEAD_LIMIT.as_secs(),
            identifier,
        };
        let index = netlink
            .connect(&setup, line.socket.as_fd())
            .map_err(failed("making a device of the NBD client"))?;
        let made = Self::keep(index, identifier, backend, threads, vec![line.socket], dead_links);
        if made.is_err() {
            // Nobody uses it yet.
            let _ = netlink.disconnect(index);
        }
        made
    }

    /// Takes over a device that another process made with this identifier, and gives it a new
    /// socket: its I/O, which waits, goes on.
    ///
    /// # Errors
    /// When there is no such device any more, the backend has another size, or a call fails.
    pub(crate) fn recover(
        index: u32,
        backend: Arc<dyn Backend>,
        identifier: &str,
        threads: usize,
    ) -> Result<Self, DeviceError> {
        let name = format!("nbd{index}");
        let node = PathBuf::from(format!("/dev/{name}"));
        let failed = |what| DeviceError::system::<io::Error>(what, &node);
        if !is_ours(&name, identifier) {
            let gone = io::Error::from_raw_os_error(libc::ENODEV);
            return Err(failed("taking over a device of the NBD client")(gone));
        }
        let size = sysinfo::size_bytes(&name).map_err(failed("reading the size"))?;
        if size != backend.size() {
            let now = backend.size();
            let why = format!("the device has {size} bytes, and what is behind it has {now}");
            return Err(failed("taking it over")(io::Error::other(why)));
        }
        let mut netlink = NbdNetlink::open().map_err(failed("reaching the kernel's NBD client"))?;
        // First this, then the new socket: should the old one die only afterwards, we hear of it.
        let dead_links = DeadLinks::listen().map_err(failed("listening to the NBD client"))?;
        let line = line_to(&backend, threads).map_err(failed("connecting the NBD client"))?;
        netlink
            .reconnect(index, identifier, line.socket.as_fd())
            .map_err(failed("giving the NBD client a new socket"))?;
        Self::keep(index, identifier, backend, threads, vec![line.socket], dead_links)
    }

    fn keep(
        index: u32,
        identifier: &str,
        backend: Arc<dyn Backend>,
        threads: usize,
        lines: Vec<UnixStream>,
        mut dead_links: DeadLinks,
    ) -> Result<Self, DeviceError> {
        let name = format!("nbd{index}");
        let node = PathBuf::from(format!("/dev/{name}"));
        let failed = |what| DeviceError::system::<io::Error>(what, &node);
        let number = sysinfo::device_number(&name).map_err(failed("reading the number"))?;
        sysinfo::make_node(&node, number).map_err(failed("making the node"))?;
        set_look_again(&name, LOOK_AGAIN);
        let (stop, stopped) = UnixStream::pair().map_err(failed("making a socket"))?;
        let identifier = identifier.to_owned();
        let lines = Mutex::new(lines);
        let shared = Arc::new(Shared { index, name, identifier, backend, threads, lines });
        let owned = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("nbd-keeper".to_owned())
            .spawn(move || {
                while dead_links.wait(index, stopped.as_fd()) && owned.renew(&stopped) {}
            })
            .map_err(failed("starting a thread"))?;
        Ok(Self { shared, node, number, stop: Some(stop), keeper: Some(keeper) })
    }

    /// The kernel's number of the device.
    pub(crate) fn index(&self) -> u32 {
        self.shared.index
    }

    /// The kernel's name.
    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn node(&self) -> &Path {
        &self.node
    }

    pub(crate) fn number(&self) -> DeviceNumber {
        self.number
    }

    /// Opens the device; nobody can mount it or take it exclusively until the file is closed.
    ///
    /// # Errors
    /// `EBUSY` when somebody has it exclusively, which is what a mount does.
    pub(crate) fn claim(&self) -> io::Result<File> {
        File::options().read(true).custom_flags(libc::O_EXCL).open(&self.node)
    }

    /// Takes the device away. `claimed` is the device, opened by [`NbdDevice::claim`] and flushed.
    pub(crate) fn close(&mut self, claimed: File) -> io::Result<()> {
        self.stop_keeper();
        self.disconnect()?;
        drop(claimed);
        let deadline = Instant::now() + CLOSE_LIMIT;
        // One that somebody has opened meanwhile is freed when it is closed.
        while is_connected(&self.shared.name) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Fails what is pending and all I/O from now on. The kernel's device goes with its last user.
    pub(crate) fn abort(&mut self) {
        self.stop_keeper();
        if let Err(error) = self.disconnect() {
            tracing::warn!(device = %self.node.display(), %error, "disconnecting failed");
        }
    }

    /// Leaves the device to the next process: its I/O waits until [`NbdDevice::recover`].
    pub(crate) fn leave(mut self) {
        self.stop_keeper();
        self.cut();
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
        set_look_again(&self.shared.name, LOOK_AGAIN_DEFAULT);
        // The kernel sends a farewell, which a server that takes nothing would hold up.
        self.cut();
        NbdNetlink::open()?.disconnect(self.shared.index)
    }

    fn cut(&self) {
        for line in self.shared.lines().drain(..) {
            // One that is dead is cut already.
            let _ = line.shutdown(std::net::Shutdown::Both);
        }
    }

    fn stop_keeper(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            // It does not panic, and there would be nothing to do about it.
            let _ = keeper.join();
        }
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        self.stop_keeper();
        self.cut();
    }
}

impl Shared {
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

/// Whether the device with this kernel name has a connection, dead or not.
fn is_connected(name: &str) -> bool {
    Path::new(&format!("/sys/block/{name}/pid")).exists()
}

/// Whether the device is the one that was made with the identifier. Kernels before 5.14 do not
/// tell: then it is enough that it is connected.
fn is_ours(name: &str, identifier: &str) -> bool {
    is_connected(name)
        && match fs::read_to_string(format!("/sys/block/{name}/backend")) {
            Ok(told) => told.trim_end_matches('\n') == identifier,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
}

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
