//! A blocking client.

mod blocking;
mod dial;
mod engine;
mod identity;
mod join;
mod keeper;
mod link;
mod mirror;
mod negotiate;
mod options;
mod order;
mod remembered;
mod remote;
mod request;
mod session;
mod status;
mod tls;
mod transfer;
mod unflushed;
mod volume;

use crate::codec::consts::flag;
use crate::codec::{Extent, ReplyStyle, TransmissionFlags, WireError};
use crate::{NbdError, NbdUri, UriTransport};
use blocking::{Ready, Socket, Stream, finish};
pub use mirror::note_use;
use negotiate::{Agreed, enter, greet, start_tls};
pub use options::{MAX_CONNECTIONS, MAX_URIS, MirrorOptions, MirrorStart, RemoteOptions};
pub use remembered::Remembered;
pub use remote::RemoteDisk;
pub use request::{RemoteFailure, RemoteOutcome, RemoteRequest};
pub use status::{
    ConnectionState, ConnectionStatus, LegState, LegStatus, RemoteState, RemoteStatus,
    SessionStatus,
};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tls::ClientTls;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};
pub use volume::{LastSeen, OpenFault, RemoteInfo, RemoteOpenError, RemoteVolume};

/// How a client connects.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The most that the client asks for: simple, structured or extended replies. The server may
    /// offer less.
    pub style: ReplyStyle,
    /// Whether to ask for `base:allocation`, so that [`Client::block_status`] works.
    pub block_status: bool,
    /// How long to wait for a connection, and for any single read or write on the socket.
    /// `None` waits for ever.
    pub timeout: Option<Duration>,
    /// Where `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` where the server asks for
    /// them, are; a URI may name another directory. Only used for URIs that demand TLS.
    pub tls_certificates: Option<PathBuf>,
}

impl Default for ConnectOptions {
    /// Structured replies, block status, a patience of 30 s.
    fn default() -> Self {
        Self {
            style: ReplyStyle::Structured,
            block_status: true,
            timeout: Some(Duration::from_secs(30)),
            tls_certificates: None,
        }
    }
}

/// Why a client could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server was reached.
    #[error("the connection to the NBD server could not be made: {0}")]
    Unreachable(io::Error),
    /// The socket failed. The connection cannot be used any more.
    #[error("the connection to the NBD server broke: {0}")]
    Io(#[from] io::Error),
    /// The server broke the protocol. The connection cannot be used any more.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The server does not give this export.
    #[error("the NBD server refused the export {export:?}: {message}")]
    Refused {
        /// The name that was asked for.
        export: String,
        /// What the server said, or what its error number means.
        message: String,
    },
    /// The URI demands TLS, and it cannot be had. Nothing was said in the clear but that.
    #[error("TLS with the NBD server is not possible: {0}")]
    Tls(String),
    /// The server answered the request with an error. The connection can still be used.
    #[error("the NBD server answered: {0}")]
    Request(#[from] NbdError),
    /// The URI asks for something that this client cannot do.
    #[error("this NBD client cannot do that: {0}")]
    Unsupported(&'static str),
}

impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.0)
    }
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Io(error) | ClientError::Unreachable(error) => error,
            ClientError::Request(error) => error.into(),
            other => Self::other(other),
        }
    }
}

/// One connection to an export. Every call waits for its answer; for several requests at a time
/// open several clients.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    agreed: Agreed,
    cookie: u64,
    /// Set when the stream cannot be followed any more.
    broken: bool,
}

impl Client {
    /// Connects to what a URI says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(uri: &NbdUri, options: &ConnectOptions) -> Result<Self, ClientError> {
        let place = options.tls_certificates.as_deref();
        let tls = uri.tls.then(|| ClientTls::of(uri, place)).transpose()?;
        let socket = match &uri.transport {
            UriTransport::Unix { path } => Socket::Unix(UnixStream::connect(path)?),
            UriTransport::Tcp { host, port } => {
                Socket::Tcp(connect_tcp(host, *port, options.timeout)?)
            }
        };
        Self::begin(socket, &uri.export, tls, options)
    }

    /// Connects to an export behind a Unix socket, with default options.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect_unix(path: impl AsRef<Path>, export: &str) -> Result<Self, ClientError> {
        let socket = Socket::Unix(UnixStream::connect(path)?);
        Self::begin(socket, export, None, &ConnectOptions::default())
    }

    /// Takes over a connected Unix socket, whose server has not been spoken to yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn over_unix(
        stream: UnixStream,
        export: &str,
        options: &ConnectOptions,
    ) -> Result<Self, ClientError> {
        Self::begin(Socket::Unix(stream), export, None, options)
    }

    /// Gives the socket away, for somebody else to send requests on. Its replies are framed as
    /// [`Client::style`] says, and reads and writes on it wait for ever.
    ///
    /// # Errors
    /// When the connection is no Unix socket, is broken, or the system fails.
    pub fn into_unix(mut self) -> io::Result<UnixStream> {
        let Stream::Plain(Socket::Unix(stream)) = &self.stream else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it is no Unix socket"));
        };
        if self.broken {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let stream = stream.try_clone()?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        // It takes no leave: the connection goes on.
        self.broken = true;
        Ok(stream)
    }

    fn begin(
        mut socket: Socket,
        export: &str,
        tls: Option<ClientTls>,
        options: &ConnectOptions,
    ) -> Result<Self, ClientError> {
        socket.set_timeout(options.timeout)?;
        let greeted = finish(greet(&mut Ready(&mut socket)))?;
        let mut stream = match tls {
            None => Stream::Plain(socket),
            Some(tls) => {
                finish(start_tls(&mut Ready(&mut socket)))?;
                let session = ClientConnection::new(tls.config, tls.name)
                    .map_err(|error| ClientError::Tls(error.to_string()))?;
                Stream::Tls(Box::new(StreamOwned::new(session, socket)))
            }
        };
        let mut ready = Ready(&mut stream);
        let (style, block_status) = (options.style, options.block_status);
        let agreed = finish(enter(&mut ready, greeted, export, style, block_status))?;
        Ok(Self { stream, agreed, cookie: 0, broken: false })
    }

    /// The export's size in bytes; below 2^63.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.agreed.size
    }

    /// What the export offers.
    #[must_use]
    pub const fn flags(&self) -> TransmissionFlags {
        self.agreed.flags
    }

    /// Whether writes are refused.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.agreed.flags.has(flag::READ_ONLY)
    }

    /// Every offset and length must be a multiple of it.
    #[must_use]
    pub const fn min_block(&self) -> u32 {
        self.agreed.blocks.0
    }

    /// The block size that the server likes best.
    #[must_use]
    pub const fn preferred_block(&self) -> u32 {
        self.agreed.blocks.1
    }

    /// How replies are framed on this connection.
    #[must_use]
    pub const fn style(&self) -> ReplyStyle {
        self.agreed.style
    }

    /// Reads `data.len()` bytes at `offset`.
    ///
    /// # Errors
    /// [`ClientError`]; what `data` holds then is undefined.
    pub fn read_at(&mut self, data: &mut [u8], offset: u64) -> Result<(), ClientError> {
        let step = self.agreed.max_payload();
        let mut at = offset;
        for part in data.chunks_mut(step) {
            self.read_part(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`; durable after the next [`Client::flush`].
    ///
    /// # Errors
    /// [`ClientError`]; which part was written then is undefined.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ClientError> {
        self.write_parts(data, offset, 0)
    }

    /// Writes `data` at `offset` so that it is durable when this returns, by FUA.
    ///
    /// # Errors
    /// [`ClientError`]; which part was written then is undefined.
    pub fn write_durable_at(&mut self, data: &[u8], offset: u64) -> Result<(), ClientError> {
        self.write_parts(data, offset, crate::codec::consts::command_flag::FUA)
    }

    /// Makes all completed writes durable. Does nothing where the server has no flush.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        if !self.agreed.flags.has(flag::SEND_FLUSH) {
            return Ok(());
        }
        self.command(crate::Command::Flush, 0, 0, 0)
    }

    /// Gives a range back; what it reads as afterwards is undefined. Does nothing where the
    /// server has no trim.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn trim(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        if !self.agreed.flags.has(flag::SEND_TRIM) {
            return Ok(());
        }
        self.long_command(crate::Command::Trim, 0, offset, len)
    }

    /// Makes a range read as zeroes, also where the server has no command for it.
    ///
    /// # Errors
    /// [`ClientError`]; which part was zeroed then is undefined.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        if self.agreed.flags.has(flag::SEND_WRITE_ZEROES) {
            return self.long_command(crate::Command::WriteZeroes, 0, offset, len);
        }
        let zeroes = vec![0; usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20)];
        let mut done = 0;
        while done < len {
            let step = usize::try_from(len - done).map_or(zeroes.len(), |l| l.min(zeroes.len()));
            self.write_at(&zeroes[..step], offset.saturating_add(done))?;
            done += step as u64;
        }
        Ok(())
    }

    /// What `base:allocation` says of a range: extents from `offset` on, which may end before
    /// the range does or after it.
    ///
    /// # Errors
    /// [`ClientError::Unsupported`] when it was not agreed on, and all others.
    pub fn block_status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, ClientError> {
        self.extents(offset, len)
    }

    fn write_parts(&mut self, data: &[u8], offset: u64, flags: u16) -> Result<(), ClientError> {
        let step = self.agreed.max_payload();
        let mut at = offset;
        for part in data.chunks(step) {
            self.write_part(part, at, flags)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}

impl Drop for Client {
    /// Takes its leave; nobody waits for it.
    fn drop(&mut self) {
        if !self.broken {
            self.say_goodbye();
        }
    }
}

fn connect_tcp(host: &str, port: u16, timeout: Option<Duration>) -> io::Result<TcpStream> {
    let Some(timeout) = timeout else { return TcpStream::connect((host, port)) };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests;
