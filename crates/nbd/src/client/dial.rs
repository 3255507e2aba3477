//! From a URI to a connection that is ready for requests.

use super::ClientError;
use super::negotiate::{Agreed, enter, greet, start_tls};
use super::tls::ClientTls;
use crate::codec::ReplyStyle;
use crate::{NbdUri, UriTransport};
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How servers are dialled.
#[derive(Clone, Debug)]
pub(super) struct DialOptions {
    /// How long until a connection is ready for requests.
    pub(super) patience: Duration,
    /// How long the kernel waits for acknowledgements of what was sent.
    pub(super) silence: Duration,
    pub(super) certificates: Option<PathBuf>,
}

/// A socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What requests go through.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// Connects, haggles, enters the export.
///
/// # Errors
/// [`ClientError`]; [`ClientError::Unreachable`] when it takes too long.
pub(super) async fn dial(
    uri: &NbdUri,
    options: &DialOptions,
) -> Result<(Transport, Agreed), ClientError> {
    let dialled = tokio::time::timeout(options.patience, dial_patiently(uri, options));
    dialled.await.unwrap_or_else(|_| {
        let why = format!("it did not let us in within {:?}", options.patience);
        Err(ClientError::Unreachable(io::Error::new(io::ErrorKind::TimedOut, why)))
    })
}

async fn dial_patiently(
    uri: &NbdUri,
    options: &DialOptions,
) -> Result<(Transport, Agreed), ClientError> {
    let place = options.certificates.as_deref();
    let tls = uri.tls.then(|| ClientTls::of(uri, place)).transpose()?;
    let mut socket = match &uri.transport {
        UriTransport::Unix { path } => {
            let connected = UnixStream::connect(path).await;
            Socket::Unix(connected.map_err(ClientError::Unreachable)?)
        }
        UriTransport::Tcp { host, port } => {
            let connected = TcpStream::connect((host.as_str(), *port)).await;
            let stream = connected.map_err(ClientError::Unreachable)?;
            prepare(&stream, options.silence)?;
            Socket::Tcp(stream)
        }
    };
    let greeted = greet(&mut socket).await?;
    let mut transport = match tls {
        None => Transport::Plain(socket),
        Some(tls) => {
            start_tls(&mut socket).await?;
            let connector = TlsConnector::from(tls.config);
            let stream = connector.connect(tls.name, socket).await;
            Transport::Tls(Box::new(stream.map_err(|error| ClientError::Tls(error.to_string()))?))
        }
    };
    let (style, export) = (ReplyStyle::Extended, uri.export.as_str());
    let agreed = enter(&mut transport, greeted, export, style, false).await?;
    Ok((transport, agreed))
}

/// A dead peer is noticed while nothing is sent, and when it does not acknowledge what is.
fn prepare(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(silence))?;
    // When it is dropped, the server is to forget what it has not read: see `Transport::polite`.
    socket.set_linger(Some(Duration::ZERO))
}

impl Transport {
    /// The connection ends in peace: what was sent last is to arrive.
    pub(super) fn polite(&self) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        if let Socket::Tcp(stream) = socket {
            // If not, the server sees a reset instead of an end.
            let _ = SockRef::from(stream).set_linger(None);
        }
    }
}

macro_rules! forward {
    ($type:ty, $a:ident, $b:ident) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_read(cx, buf),
                    Self::$b(stream) => Pin::new(stream).poll_read(cx, buf),
                }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_write(cx, buf),
                    Self::$b(stream) => Pin::new(stream).poll_write(cx, buf),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                    Self::$b(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
                }
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_flush(cx),
                    Self::$b(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::$a(stream) => Pin::new(stream).poll_shutdown(cx),
                    Self::$b(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }
        }
    };
}

forward!(Socket, Tcp, Unix);
forward!(Transport, Plain, Tls);
