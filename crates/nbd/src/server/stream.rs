//! What the server needs of the stream to a client.

use crate::FileRange;
use rustix::fs::sendfile;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// A stream to a client: a socket, or what wraps one.
pub trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    /// Whether [`poll_send_file`](Self::poll_send_file) can be used.
    fn sends_files(&self) -> bool {
        false
    }

    /// Sends the front of a part of a file without a copy; how many bytes went, 0 when the file ends
    /// before.
    ///
    /// # Errors
    /// What the socket says; `Unsupported` where [`sends_files`](Self::sends_files) is false.
    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        range: &FileRange,
    ) -> Poll<io::Result<usize>> {
        let (_, _) = (cx, range);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl ClientStream for UnixStream {
    fn sends_files(&self) -> bool {
        true
    }

    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        range: &FileRange,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            let sent = self.try_io(Interest::WRITABLE, || send(&*self, range));
            if !would_block(&sent) {
                return Poll::Ready(sent);
            }
        }
    }
}

impl ClientStream for TcpStream {
    fn sends_files(&self) -> bool {
        true
    }

    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        range: &FileRange,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            let sent = self.try_io(Interest::WRITABLE, || send(&*self, range));
            if !would_block(&sent) {
                return Poll::Ready(sent);
            }
        }
    }
}

impl ClientStream for tokio::io::DuplexStream {}
impl<S: ClientStream> ClientStream for TlsStream<S> {}
impl<S: ClientStream> ClientStream for Box<TlsStream<S>> {}

fn send(socket: impl AsFd, range: &FileRange) -> io::Result<usize> {
    let mut offset = range.offset;
    let len = usize::try_from(range.len).unwrap_or(usize::MAX);
    Ok(rustix::io::retry_on_intr(|| sendfile(&socket, &*range.file, Some(&mut offset), len))?)
}

fn would_block(sent: &io::Result<usize>) -> bool {
    sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
