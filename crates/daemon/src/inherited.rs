//! Sockets that whoever started this process has opened for it: systemd, or a client of libnbd.

use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Socket, Type};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The first of the descriptors, by the protocol of systemd.
const FIRST: RawFd = 3;
/// Nobody has more of them.
const MAX: RawFd = 64;
/// What a descriptor is called that nobody has named.
const UNNAMED: &str = "unknown";

/// A descriptor that was handed over.
#[derive(Debug)]
pub struct Inherited {
    /// What it is called in `LISTEN_FDNAMES`; `unknown` where nobody says.
    pub name: String,
    /// Its number.
    pub number: RawFd,
    /// A stream socket that listens and does not block, or why it is none, as the end of a
    /// sentence.
    pub socket: Result<Socket, String>,
}

/// Takes the sockets that were handed over to this process (`LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES`); none when nobody did. To be called once, before this process opens anything.
///
/// # Errors
/// When the variables are for this process and make no sense, as the end of a sentence.
pub fn inherited_sockets() -> Result<Vec<Inherited>, String> {
    let variable = |name| std::env::var(name).ok();
    let count = count(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())?;
    let names = names(variable("LISTEN_FDNAMES").as_deref(), count);
    let numbers = FIRST..FIRST + count;
    Ok(numbers.zip(names).map(|(fd, name)| take_one(fd, name)).collect())
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

/// The names of so many descriptors.
fn names(text: Option<&str>, count: RawFd) -> Vec<String> {
    let mut given = text.into_iter().flat_map(|text| text.split(':'));
    let name = |_| given.next().filter(|name| !name.is_empty()).unwrap_or(UNNAMED).to_owned();
    (0..count).map(name).collect()
}

#[allow(unsafe_code)]
fn take_one(number: RawFd, name: String) -> Inherited {
    // SAFETY: only borrowed to ask whether it is open; numbers from 3 on are never -1.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    // Programs that this one starts do not get it.
    let owned = fcntl_setfd(borrowed, FdFlags::CLOEXEC).map(|()| {
        // SAFETY: it is open, and since before this process opened anything; whoever started this
        // process says that it is ours, and nobody takes it twice.
        unsafe { OwnedFd::from_raw_fd(number) }
    });
    let socket = owned.map_err(|why| io::Error::from(why).to_string()).and_then(listening);
    Inherited { name, number, socket }
}

fn listening(fd: OwnedFd) -> Result<Socket, String> {
    let socket = Socket::from(fd);
    let is_stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    if !is_stream || !socket.is_listener().unwrap_or(false) {
        return Err("it is no stream socket that listens".into());
    }
    socket.set_nonblocking(true).map_err(|why| why.to_string())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::{MAX, count, listening, names};
    use std::net::{TcpListener, UdpSocket};

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

    #[test]
    fn each_has_a_name() {
        assert_eq!(names(None, 2), ["unknown", "unknown"]);
        assert_eq!(names(Some("a:b"), 2), ["a", "b"]);
        assert_eq!(names(Some("a::c"), 3), ["a", "unknown", "c"]);
        assert_eq!(names(Some("a"), 2), ["a", "unknown"]);
        assert_eq!(names(Some("a:b:c"), 2), ["a", "b"]);
        assert_eq!(names(Some(""), 0), [""; 0]);
    }

    #[test]
    fn only_what_listens_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = listening(listener.into()).unwrap();
        assert_eq!(taken.local_addr().unwrap().as_socket(), Some(address));
        let why = listening(UdpSocket::bind("127.0.0.1:0").unwrap().into()).unwrap_err();
        assert_eq!(why, "it is no stream socket that listens");
    }
}
