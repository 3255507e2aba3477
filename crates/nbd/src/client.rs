//! A blocking client.

mod handshake;
mod transfer;

use crate::codec::consts::{PORTABLE_PAYLOAD, flag};
use crate::codec::{Extent, ReplyStyle, TransmissionFlags, WireError};
use crate::{NbdError, NbdUri, UriTransport};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

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
}

impl Default for ConnectOptions {
    /// Structured replies, block status, a patience of 30 s.
    fn default() -> Self {
        Self {
            style: ReplyStyle::Structured,
            block_status: true,
            timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// Why a client could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
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
            ClientError::Io(error) => error,
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
    /// What was agreed on.
    style: ReplyStyle,
    /// The identifier of `base:allocation`, when it was agreed on.
    base_allocation: Option<u32>,
    size: u64,
    flags: TransmissionFlags,
    /// Smallest, preferred and largest block.
    blocks: (u32, u32, u32),
    cookie: u64,
    /// Set when the stream cannot be followed any more.
    broken: bool,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write_vectored(bufs),
            Self::Tcp(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Client {
    /// Connects to what a URI says.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Unsupported`] for a URI that demands TLS.
    pub fn connect(uri: &NbdUri, options: &ConnectOptions) -> Result<Self, ClientError> {
        if uri.tls {
            return Err(ClientError::Unsupported("it has no TLS"));
        }
        match &uri.transport {
            UriTransport::Unix { path } => {
                let stream = Stream::Unix(UnixStream::connect(path)?);
                Self::begin(stream, &uri.export, options)
            }
            UriTransport::Tcp { host, port } => {
                let stream = connect_tcp(host, *port, options.timeout)?;
                Self::begin(Stream::Tcp(stream), &uri.export, options)
            }
        }
    }

    /// Connects to an export behind a Unix socket, with default options.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect_unix(path: impl AsRef<Path>, export: &str) -> Result<Self, ClientError> {
        let stream = Stream::Unix(UnixStream::connect(path)?);
        Self::begin(stream, export, &ConnectOptions::default())
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
        Self::begin(Stream::Unix(stream), export, options)
    }

    fn begin(stream: Stream, export: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        match &stream {
            Stream::Unix(stream) => {
                stream.set_read_timeout(options.timeout)?;
                stream.set_write_timeout(options.timeout)?;
            }
            Stream::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(options.timeout)?;
                stream.set_write_timeout(options.timeout)?;
            }
        }
        let mut client = Self {
            stream,
            style: ReplyStyle::Simple,
            base_allocation: None,
            size: 0,
            flags: TransmissionFlags::default(),
            blocks: (1, 4096, PORTABLE_PAYLOAD),
            cookie: 0,
            broken: false,
        };
        client.handshake(export, options)?;
        Ok(client)
    }

    /// The export's size in bytes; below 2^63.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What the export offers.
    #[must_use]
    pub const fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// Whether writes are refused.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.flags.has(flag::READ_ONLY)
    }

    /// Every offset and length must be a multiple of it.
    #[must_use]
    pub const fn min_block(&self) -> u32 {
        self.blocks.0
    }

    /// The block size that the server likes best.
    #[must_use]
    pub const fn preferred_block(&self) -> u32 {
        self.blocks.1
    }

    /// How replies are framed on this connection.
    #[must_use]
    pub const fn style(&self) -> ReplyStyle {
        self.style
    }

    /// Reads `data.len()` bytes at `offset`.
    ///
    /// # Errors
    /// [`ClientError`]; what `data` holds then is undefined.
    pub fn read_at(&mut self, data: &mut [u8], offset: u64) -> Result<(), ClientError> {
        let step = self.max_payload();
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
        if !self.flags.has(flag::SEND_FLUSH) {
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
        if !self.flags.has(flag::SEND_TRIM) {
            return Ok(());
        }
        self.long_command(crate::Command::Trim, 0, offset, len)
    }

    /// Makes a range read as zeroes, also where the server has no command for it.
    ///
    /// # Errors
    /// [`ClientError`]; which part was zeroed then is undefined.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        if self.flags.has(flag::SEND_WRITE_ZEROES) {
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

    /// The largest payload of one request, in bytes.
    fn max_payload(&self) -> usize {
        let min = usize::try_from(self.blocks.0).unwrap_or(1);
        usize::try_from(self.blocks.2).unwrap_or(usize::MAX) / min * min
    }

    fn write_parts(&mut self, data: &[u8], offset: u64, flags: u16) -> Result<(), ClientError> {
        let step = self.max_payload();
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
