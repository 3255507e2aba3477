//! Sockets that whoever started the server has opened for it: systemd, or a client of libnbd.

use super::listen::Listener;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_daemon::inherited_sockets;
use socket2::{Domain, Socket};
use tokio::net::{TcpListener, UnixListener};

/// Takes the sockets that were handed over to this process; none when nobody did. To be called once,
/// before this process opens anything.
pub(super) fn take() -> Result<Vec<Socket>, ApiError> {
    let handed_over = inherited_sockets().map_err(|why| refuse(&why))?;
    let socket = |one: holdfast_daemon::Inherited| {
        one.socket.map_err(|why| refuse(&format!("descriptor {}: {why}", one.number)))
    };
    handed_over.into_iter().map(socket).collect()
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
