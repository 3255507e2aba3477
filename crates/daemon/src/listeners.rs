//! The sockets that others come by: those that the service manager kept while the daemon was
//! restarted, where they still fit, otherwise new ones. Who connects meanwhile waits in the queue
//! of such a socket.
//!
//! The port for other nodes is not kept: to be refused tells them at once that this node is away,
//! and a start asks them to dial again.

use crate::inherited::{Inherited, inherited_sockets};
use crate::service;
use holdfast_api::{ApiError, ErrorCode};
use socket2::{Domain, Socket, Type};
use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// What the sockets are called in the service manager's store.
pub(crate) const CONTROL: &str = "control";
pub(crate) const NBD: &str = "nbd";
pub(crate) const NBD_TCP: &str = "nbd-tcp";

/// The sockets that the service manager kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    sockets: Vec<Inherited>,
    /// Why none of them is used.
    trouble: Option<String>,
}

impl Kept {
    /// Takes them. To be called once, before this process opens anything.
    pub(crate) fn take() -> Self {
        match inherited_sockets() {
            Ok(sockets) => Self { sockets, trouble: None },
            // There is no log yet.
            Err(why) => Self { sockets: Vec::new(), trouble: Some(why) },
        }
    }

    /// The socket of this name, if it fits. What does not is forgotten for good.
    fn named(&mut self, name: &str, fits: impl Fn(&Socket) -> bool) -> Option<Socket> {
        let given: Vec<_> = self.sockets.extract_if(.., |one| one.name == name).collect();
        let count = given.len();
        let found = given.into_iter().filter_map(|one| one.socket.ok()).find(|one| fits(one));
        if count > usize::from(found.is_some()) {
            service::forget(name);
            if let Some(socket) = &found {
                service::keep(name, socket.as_fd());
            }
        }
        found
    }

    /// Listens at a Unix socket that only the own user can open.
    ///
    /// # Errors
    /// When another daemon has it, or it cannot be made.
    pub(crate) fn unix(
        &mut self,
        name: &str,
        path: &Path,
        what: &'static str,
    ) -> Result<UnixListener, ApiError> {
        let fits = |socket: &Socket| {
            let address = socket.local_addr().ok();
            address.is_some_and(|address| address.as_pathname() == Some(path))
                && fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        };
        if let Some(socket) = self.named(name, fits) {
            tracing::debug!(path = %path.display(), "the socket is that of the run before");
            return Ok(socket.into());
        }
        let listener = bind_socket(path, what)?;
        service::keep(name, listener.as_fd());
        Ok(listener)
    }

    /// Listens at a TCP port; any port, when it is 0.
    ///
    /// # Errors
    /// When it cannot be listened at; `option` says where.
    pub(crate) fn tcp(
        &mut self,
        name: &str,
        address: SocketAddr,
        option: &str,
    ) -> Result<TcpListener, ApiError> {
        let fits = |socket: &Socket| {
            let at = socket.local_addr().ok().and_then(|at| at.as_socket());
            at.is_some_and(|at| at == address || (address.port() == 0 && at.ip() == address.ip()))
        };
        if let Some(socket) = self.named(name, fits) {
            return Ok(socket.into());
        }
        let listener = bind(address, option)?;
        service::keep(name, listener.as_fd());
        Ok(listener)
    }

    /// Closes those that nobody has asked for.
    pub(crate) fn close_rest(self) {
        if let Some(why) = self.trouble {
            tracing::warn!("no socket that was handed over is used: {why}");
        }
        for Inherited { name, number, socket } in self.sockets {
            let why = socket.err().unwrap_or_else(|| "it is not needed any more".to_owned());
            tracing::info!("descriptor {number} ({name}), which was handed over, is closed: {why}");
            service::forget(&name);
        }
    }
}

/// How many connections may wait to be taken: as many as the standard library has.
const BACKLOG: i32 = 128;

/// Listens at a TCP port. A service does so also at an address that the machine does not have yet: at
/// boot it may come late, and local devices need no network.
///
/// # Errors
/// When it cannot be listened at; `option` says where.
pub(crate) fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, ApiError> {
    let bound = match TcpListener::bind(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && service::is_managed() => {
            tracing::warn!(
                "this machine does not have the address {address}; when it has, others reach the \
                 daemon there"
            );
            bind_ahead(address)
        }
        bound => bound,
    };
    let listener = bound.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
    listener.map_err(|error| {
        let message =
            format!("the daemon was not started: {address} cannot be listened at: {error}");
        ApiError::new(ErrorCode::InvalidAddress, message)
            .hint(format!("choose another address with {option}"))
    })
}

/// Listens at an address that the machine may get later (`IP_FREEBIND`, ip(7)).
fn bind_ahead(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What a start says that fails because of `what`.
pub(crate) fn broken(what: &'static str) -> impl Fn(io::Error) -> ApiError {
    move |error| {
        ApiError::new(
            ErrorCode::Internal,
            format!("the daemon was not started: {what} cannot be used: {error}"),
        )
    }
}

/// Binds a Unix socket that only the own user can open. A socket that a dead daemon left behind is
/// replaced.
fn bind_socket(path: &Path, what: &'static str) -> Result<UnixListener, ApiError> {
    let fail = broken(what);
    if fs::symlink_metadata(path).is_ok() {
        match UnixStream::connect(path) {
            Ok(_) => {
                let message = format!(
                    "the daemon was not started: another daemon has {what} {}",
                    path.display()
                );
                return Err(ApiError::new(ErrorCode::AlreadyExists, message)
                    .hint("stop it, or give this one a --socket in a directory of its own"));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(&fail)?;
            }
            Err(error) => return Err(fail(error)),
        }
    }
    let listener = UnixListener::bind(path).map_err(&fail)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(&fail)?;
    listener.set_nonblocking(true).map_err(&fail)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(sockets: impl IntoIterator<Item = (&'static str, Socket)>) -> Kept {
        let one = |(name, socket): (&str, Socket)| Inherited {
            name: name.to_owned(),
            number: 3,
            socket: Ok(socket),
        };
        Kept { sockets: sockets.into_iter().map(one).collect(), trouble: None }
    }

    #[test]
    fn an_address_that_may_come_is_listened_at_and_one_that_is_taken_is_not() {
        // TEST-NET-1 and the documentation's IPv6: no machine has them.
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            let listener = bind_ahead(address).unwrap();
            assert_eq!(listener.local_addr().unwrap().ip(), address.ip());
            assert!(bind(address, "--listen").unwrap_err().message.contains("listened at"));
        }
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(bind_ahead(taken.local_addr().unwrap()).is_err());
    }

    #[test]
    fn a_port_that_still_fits_is_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let any = SocketAddr::new(at.ip(), 0);
        for wanted in [at, any] {
            let mut kept = kept([(NBD_TCP, listener.try_clone().unwrap().into())]);
            let again = kept.tcp(NBD_TCP, wanted, "--nbd-listen").unwrap();
            assert_eq!(again.local_addr().unwrap(), at);
        }
        // Another name, or another address, is another socket.
        for (name, wanted) in [("other", any), (NBD_TCP, "127.0.0.2:0".parse().unwrap())] {
            let mut kept = kept([(name, listener.try_clone().unwrap().into())]);
            let new = kept.tcp(NBD_TCP, wanted, "--nbd-listen").unwrap().local_addr().unwrap();
            assert_ne!(new, at);
            assert_eq!(new.ip(), wanted.ip());
            assert_eq!(kept.sockets.len(), usize::from(name == "other"));
        }
    }

    #[test]
    fn a_unix_socket_is_used_again_while_its_path_leads_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = Kept::default().unix(NBD, &path, "the socket").unwrap();
        let again = || kept([(NBD, listener.try_clone().unwrap().into())]);
        // As long as somebody listens there, only the one who was handed it may.
        let taken = Kept::default().unix(NBD, &path, "the socket").unwrap_err();
        assert_eq!(taken.code, ErrorCode::AlreadyExists);
        let same = again().unix(NBD, &path, "the socket").unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let (_, _) = same.accept().unwrap();
        drop(client);
        fs::remove_file(&path).unwrap();
        let new = again().unix(NBD, &path, "the socket").unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        new.accept().unwrap();
        let elsewhere = dir.path().join("b.sock");
        again().unix(NBD, &elsewhere, "the socket").unwrap();
        assert!(elsewhere.exists());
    }
}
