//! The commands of the kernel's NBD client.

use crate::genl::{Attributes, Family, find, u32_at};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The name of its family.
const FAMILY: &str = "nbd";
/// Who of those that listen to it hears of sockets that died.
const GROUP: &str = "nbd_mc_group";

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const LINK_DEAD: u8 = 4;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const CLIENT_FLAGS: u16 = 6;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
    /// In a list of sockets, and in each of its items.
    pub(super) const SOCKET_ITEM: u16 = 1;
    pub(super) const SOCKET_FD: u16 = 1;
}

/// What a device is made with.
pub(crate) struct Setup<'a> {
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    /// The transmission flags of the server.
    pub(crate) flags: u16,
    /// How long requests wait for a new socket when the last one is gone, in seconds.
    pub(crate) dead_seconds: u64,
    /// By which the device is known again.
    pub(crate) identifier: &'a str,
}

/// A connection to the kernel's NBD client.
pub(crate) struct NbdNetlink(Family);

impl NbdNetlink {
    /// # Errors
    /// `ENOENT` when the module is not loaded.
    pub(crate) fn open() -> io::Result<Self> {
        Family::open(FAMILY).map(Self)
    }

    /// Makes the device of this number over the socket.
    ///
    /// # Errors
    /// What the kernel said: `EBUSY` when the number is in use.
    pub(crate) fn connect(
        &mut self,
        index: u32,
        setup: &Setup<'_>,
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut all = Attributes::default();
        all.u32(attribute::INDEX, index)
            .u64(attribute::SIZE_BYTES, setup.size)
            .u64(attribute::BLOCK_SIZE_BYTES, setup.block_size.into())
            .u64(attribute::SERVER_FLAGS, setup.flags.into())
            // The device stays when its last user closes it, and its number when it is taken away.
            .u64(attribute::CLIENT_FLAGS, 0)
            // A server that is slow is no reason to cut the connection.
            .u64(attribute::TIMEOUT, 0)
            .u64(attribute::DEAD_CONN_TIMEOUT, setup.dead_seconds)
            .text(attribute::BACKEND_IDENTIFIER, setup.identifier)
            .nested(attribute::SOCKETS, &socket_list(socket)?);
        self.0.ask(command::CONNECT, &all).map(drop)
    }

    /// Gives a device a socket in the place of a dead one.
    ///
    /// # Errors
    /// What the kernel said: `EINVAL` when there is no such device any more, or it has another
    /// identifier.
    pub(crate) fn reconnect(
        &mut self,
        index: u32,
        identifier: &str,
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut all = Attributes::default();
        all.u32(attribute::INDEX, index)
            .text(attribute::BACKEND_IDENTIFIER, identifier)
            .nested(attribute::SOCKETS, &socket_list(socket)?);
        self.0.ask(command::RECONFIGURE, &all).map(drop)
    }

    /// Changes the size of a device, under those who use it.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn resize(&mut self, index: u32, identifier: &str, size: u64) -> io::Result<()> {
        let mut all = Attributes::default();
        all.u32(attribute::INDEX, index)
            .text(attribute::BACKEND_IDENTIFIER, identifier)
            .u64(attribute::SIZE_BYTES, size);
        self.0.ask(command::RECONFIGURE, &all).map(drop)
    }

    /// Takes a device away: what is pending fails, and its number is free when its last user closes
    /// it.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn disconnect(&mut self, index: u32) -> io::Result<()> {
        self.0
            .ask(command::DISCONNECT, Attributes::default().u32(attribute::INDEX, index))
            .map(drop)
    }
}

/// Hears of the sockets that die, of all devices.
pub(crate) struct DeadLinks(Family);

impl DeadLinks {
    /// # Errors
    /// As [`NbdNetlink::open`].
    pub(crate) fn listen() -> io::Result<Self> {
        let mut family = Family::open(FAMILY)?;
        family.subscribe(GROUP)?;
        Ok(Self(family))
    }

    /// Waits until a socket of the device has died, or may have: true. False when there is
    /// something to read from `stop`, or its other end is closed.
    pub(crate) fn wait(&mut self, index: u32, stop: BorrowedFd<'_>) -> bool {
        loop {
            let mut polled = [
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
                PollFd::from_borrowed_fd(self.0.fd(), PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return false,
                Ok(_) if !polled[0].revents().is_empty() => return false,
                Ok(_) => {}
            }
            let index_of = |told: &[u8]| find(told, attribute::INDEX).and_then(|v| u32_at(v, 0));
            let is_ours = |message: &(u8, Vec<u8>)| {
                message.0 == command::LINK_DEAD && index_of(&message.1) == Some(index)
            };
            // After an error messages may have been lost, ours among them.
            if self.0.receive().map_or(true, |messages| messages.iter().any(is_ours)) {
                return true;
            }
        }
    }
}

/// A list with one socket. Kernels before 2025 take anything that can be shut down, and hang or
/// crash over what is no stream.
fn socket_list(socket: BorrowedFd<'_>) -> io::Result<Attributes> {
    let refuse = |_| io::Error::new(io::ErrorKind::InvalidInput, "it is no socket");
    let kind = sockopt::socket_type(socket).map_err(refuse)?;
    let domain = sockopt::socket_domain(socket).map_err(refuse)?;
    let known = [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6];
    if kind != SocketType::STREAM || !known.contains(&domain) {
        let why = "it is neither a TCP nor a Unix stream socket";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let fd = u32::try_from(socket.as_fd().as_raw_fd()).expect("a descriptor is not negative");
    let mut item = Attributes::default();
    item.u32(attribute::SOCKET_FD, fd);
    let mut list = Attributes::default();
    list.nested(attribute::SOCKET_ITEM, &item);
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::socket_list;
    use std::fs::File;
    use std::io;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn only_streams_reach_the_kernel() {
        let (unix, _other) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(socket_list(unix.as_fd()).is_ok());
        assert!(socket_list(tcp.as_fd()).is_ok());
        let (datagram, _other) = UnixDatagram::pair().unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = File::open("/dev/null").unwrap();
        for fd in [datagram.as_fd(), udp.as_fd(), file.as_fd()] {
            let refused = socket_list(fd).err().expect("it is refused");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
