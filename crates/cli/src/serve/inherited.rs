//! Sockets that whoever started the server has opened for it: systemd, or a client of libnbd.

use super::listen::Listener;
use holdfast_api::{ApiError, ErrorCode};
use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, Socket, Type};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use tokio::net::{TcpListener, UnixListener};

/// The first of the descriptors, by the protocol of systemd.
const FIRST: RawFd = 3;
/// Nobody has more of them.
const MAX: RawFd = 64;

/// Takes the sockets that were handed over to this process; none when nobody did. To be called once,
/// before this process opens anything.
pub(super) fn take() -> Result<Vec<Socket>, ApiError> {
    let variable = |name| std::env::var(name).ok();
    let count = count(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id());
    let count = count.map_err(|why| refuse(&why))?;
    let take = |fd| take_one(fd).map_err(|why| refuse(&format!("descriptor {fd}: {why}")));
    (FIRST..FIRST + count).map(take).collect()
}

/// Listens at one of them.
pub(super) fn listen(socket: Socket) -> Result<Listener, ApiError> {
    let path = socket.local_addr().ok().and_then(|address| Some(address.as_pathname()?.to_owned()));
    let listener = match (path, socket.domain()) {
        (Some(path), _) => UnixListener::from_std(socket.into())
            .map(|listener| Listener::handed_over(listener, path)),
        (None, Ok(Domain::UNIX)) => return Err(refuse("a Unix socket has no path")),
        (None, _) => TcpListener::from_std(socket.into()).and_then(|listener| {
            let address = listener.local_addr()?;
            Ok(Listener::Tcp(listener, address))
        }),
    };
    listener.map_err(|why| refuse(&why.to_string()))
}

fn refuse(why: &str) -> ApiError {
    let message = format!("the sockets that were handed over cannot be listened at: {why}");
    ApiError::new(ErrorCode::InvalidAddress, message)
        .hint("hand over TCP or Unix stream sockets that listen (`ListenStream=` of systemd)")
}

/// How many there are. They are for the process that `pid` names.
fn count(pid: Option<String>, count: Option<String>, own: u32) -> Result<RawFd, String> {
    if pid.and_then(|pid| pid.parse().ok()) != Some(own) {
        return Ok(0);
    }
    let text = count.unwrap_or_default();
    let count = text.parse().ok().filter(|count| (0..=MAX).contains(count));
    count.ok_or_else(|| format!("LISTEN_FDS is {text:?}, no number up to {MAX}"))
}

#[allow(unsafe_code)]
fn take_one(fd: RawFd) -> Result<Socket, String> {
    // SAFETY: only borrowed to ask whether it is open; numbers from 3 on are never -1.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    // Programs that this one starts do not get it.
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|why| io::Error::from(why).to_string())?;
    // SAFETY: it is open, and since before this process opened anything; whoever started this
    // process says that it is ours, and nobody takes it twice.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let is_stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    if !is_stream || !socket.is_listener().unwrap_or(false) {
        return Err("it is no stream socket that listens".into());
    }
    socket.set_nonblocking(true).map_err(|why| why.to_string())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::{MAX, count};

    #[test]
    fn sockets_are_for_the_process_that_is_named() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(count(None, None, 7), Ok(0));
        assert_eq!(count(some("8"), some("1"), 7), Ok(0));
        assert_eq!(count(some("x"), some("1"), 7), Ok(0));
        assert_eq!(count(None, some("1"), 7), Ok(0));
        assert_eq!(count(some("7"), some("2"), 7), Ok(2));
        assert_eq!(count(some("7"), some("64"), 7), Ok(MAX));
        for bad in ["", "-1", "65", "99999999999", "two"] {
            assert!(count(some("7"), some(bad), 7).unwrap_err().contains(bad), "{bad}");
        }
        assert!(count(some("7"), None, 7).is_err());
    }
}
