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
    /// Whether [`poll_send_lent`](Self::poll_send_lent) can be used.
    fn sends_lent(&self) -> bool {
        false
    }

    /// Sends the first bytes of what is lent, from where they are; how many.
    ///
    /// # Errors
    /// What the socket says; `Unsupported` where [`sends_lent`](Self::sends_lent) is false.
    fn poll_send_lent(
        &mut self,
        cx: &mut Context<'_>,
        range: &LentRange,
    ) -> Poll<io::Result<usize>> {
        let (_, _) = (cx, range);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl ClientStream for UnixStream {
    fn sends_lent(&self) -> bool {
        true
    }

    fn poll_send_lent(
        &mut self,
        cx: &mut Context<'_>,
        range: &LentRange,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            let sent =
                self.try_io(Interest::WRITABLE, || range.from.send(self.as_fd(), range.skip));
            if !would_block(&sent) {
                return Poll::Ready(sent);
            }
        }
    }
}

impl ClientStream for TcpStream {
    fn sends_lent(&self) -> bool {
        true
    }

    fn poll_send_lent(
        &mut self,
        cx: &mut Context<'_>,
        range: &LentRange,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            let sent =
                self.try_io(Interest::WRITABLE, || range.from.send(self.as_fd(), range.skip));
            if !would_block(&sent) {
                return Poll::Ready(sent);
            }
        }
    }
}

impl ClientStream for tokio::io::DuplexStream {}
impl<S: ClientStream> ClientStream for TlsStream<S> {}
impl<S: ClientStream> ClientStream for Box<TlsStream<S>> {}

fn would_block(sent: &io::Result<usize>) -> bool {
    sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
