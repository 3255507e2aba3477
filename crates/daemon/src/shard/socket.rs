//! The TCP socket below the TLS of a link.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How much is read from the kernel at a time. rustls asks for 4 KiB steps; one system call for
/// each of them would cost more than the decryption. More than this would not stay in the cache.
const READ_BUFFER: usize = 64 << 10;
/// A connection without any traffic is probed after so long.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The congestion control of connections within a machine, where nothing can be congested. Where
/// the system's choice paces what is sent, as BBR does, it costs a third of the sender's time there
/// for timers and small segments. Every Linux has this one and lets everybody use it.
const UNPACED: &[u8] = b"reno";

/// Whether both ends are on this machine. To other machines the system's choice stands.
fn is_on_this_machine(stream: &TcpStream) -> io::Result<bool> {
    Ok(stream.local_addr()?.ip() == stream.peer_addr()?.ip()
        || stream.peer_addr()?.ip().is_loopback())
}

/// A TCP connection for a link between nodes: without delay, with keepalive, read in large pieces,
/// and able to move to the runtime of another thread. Wrap the socket in it before the TLS
/// handshake.
#[derive(Debug)]
pub struct LinkSocket {
    /// `None` only after a move that failed.
    stream: Option<TcpStream>,
    buffer: Box<[u8]>,
    at: usize,
    end: usize,
}

impl LinkSocket {
    /// Sets the socket up.
    ///
    /// # Errors
    /// What the system says when the socket is unusable.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        if is_on_this_machine(&stream)? {
            // Without it the link is slower, not worse.
            let _ = socket.set_tcp_congestion(UNPACED);
        }
        let buffer = vec![0; READ_BUFFER].into();
        Ok(Self { stream: Some(stream), buffer, at: 0, end: 0 })
    }

    /// Registers the socket with the runtime of the calling thread, in which it is used from now
    /// on.
    ///
    /// # Errors
    /// What the system says; the connection is lost then.
    pub fn move_here(&mut self) -> io::Result<()> {
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        self.stream = Some(TcpStream::from_std(stream.into_std()?)?);
        Ok(())
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncRead for LinkSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.at == this.end {
            let Some(stream) = &mut this.stream else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let mut buffer = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            (this.at, this.end) = (0, buffer.filled().len());
        }
        let count = out.remaining().min(this.end - this.at);
        out.put_slice(&this.buffer[this.at..this.at + count]);
        this.at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{LinkSocket, UNPACED};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn within_a_machine_nothing_is_paced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        for stream in [dialled.unwrap(), accepted.unwrap().0] {
            let socket = LinkSocket::new(stream).unwrap();
            let stream = socket.stream.as_ref().unwrap();
            let name = socket2::SockRef::from(stream).tcp_congestion().unwrap();
            assert!(name.starts_with(UNPACED), "{name:?}");
        }
    }
}
