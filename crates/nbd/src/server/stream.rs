//! What the server needs of the stream to a client.

use crate::LentRange;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A stream to a client: a socket, or what wraps one.
pub trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where what is written to it reaches the client as it is.
    fn socket(&self) -> Option<Socket<'_>> {
        None
    }
}

/// A socket of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Socket<'a> {
    /// Of this machine.
    Unix(&'a UnixStream),
    /// Of any machine.
    Tcp(&'a TcpStream),
}

impl Socket<'_> {
    /// Sends the first bytes of what is lent, from where they are; how many.
    ///
    /// # Errors
    /// What the socket or the lender says.
    pub(super) fn poll_send(
        self,
        cx: &mut Context<'_>,
        range: &LentRange,
    ) -> Poll<io::Result<usize>> {
        loop {
            let sent = match self {
                Self::Unix(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    let send = || range.from.send(socket.as_fd(), range.skip);
                    socket.try_io(Interest::WRITABLE, send)
                }
                Self::Tcp(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    let send = || range.from.send(socket.as_fd(), range.skip);
                    socket.try_io(Interest::WRITABLE, send)
                }
            };
            if !sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return Poll::Ready(sent);
            }
        }
    }
}

impl ClientStream for UnixStream {
    fn socket(&self) -> Option<Socket<'_>> {
        Some(Socket::Unix(self))
    }
}

impl ClientStream for TcpStream {
    fn socket(&self) -> Option<Socket<'_>> {
        Some(Socket::Tcp(self))
    }
}

impl ClientStream for tokio::io::DuplexStream {}
impl<S: ClientStream> ClientStream for TlsStream<S> {}
impl<S: ClientStream> ClientStream for Box<TlsStream<S>> {}
