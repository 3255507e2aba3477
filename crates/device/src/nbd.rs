//! An NBD export behind a Unix socket as a backend.

use crate::backend::{Backend, KernelLine};
use crate::pool::{Fault, Pool};
use holdfast_nbd::codec::consts::flag;
use holdfast_nbd::{Client, ClientError, ConnectOptions, NbdError as Answer, ReplyStyle};
use holdfast_units::ByteRange;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Ranges are trimmed and zeroed in pieces of this many bytes, each with a time limit of its own.
const PIECE: u64 = 32 << 20;
/// How the server's replies to our own requests are framed.
const STYLE: ReplyStyle = ReplyStyle::Structured;

/// Where an export is, and how it is used.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// The server's Unix socket.
    pub socket: PathBuf,
    /// The name of the export.
    pub export: String,
    /// How many idle connections are kept. Best as many as threads use the backend.
    pub connections: usize,
    /// How long a request waits for an answer, and how long for a lost connection to come back.
    pub timeout: Duration,
    /// The export must be read-only; without this it must not be.
    pub read_only: bool,
}

impl NbdOptions {
    /// Four connections, a patience of 30 seconds.
    pub fn new(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self {
            socket: socket.into(),
            export: export.into(),
            connections: 4,
            timeout: Duration::from_secs(30),
            read_only: false,
        }
    }

    fn connect(&self, style: ReplyStyle) -> Result<Client, ClientError> {
        let stream = connect_unix(&self.socket, self.timeout)?;
        let options = ConnectOptions {
            style,
            block_status: false,
            timeout: Some(self.timeout),
            ..ConnectOptions::default()
        };
        Client::over_unix(stream, &self.export, &options)
    }
}

/// Why an export cannot be used as a backend.
#[derive(Debug, thiserror::Error)]
#[error("the export {export:?} at {} cannot be used: {reason}", socket.display())]
pub struct NbdError {
    /// The server's Unix socket.
    pub socket: PathBuf,
    /// The name of the export.
    pub export: String,
    /// What is wrong with it, or with reaching it.
    pub reason: String,
}

/// A [`Backend`] whose data an NBD server on a Unix socket has.
///
/// When a connection breaks the request is repeated on a new one, for as long as
/// [`NbdOptions::timeout`]; then it fails. While an outage lasts longer than that, further
/// requests fail at their first try. A request that gets no answer in time fails without being
/// repeated, because the server may still carry it out.
pub struct NbdBackend {
    pool: Pool<Client>,
    options: NbdOptions,
    /// The largest size that the server had: one with less is another one.
    size: Arc<AtomicU64>,
    block_size: u32,
}

impl NbdBackend {
    /// Makes the first connection.
    ///
    /// # Errors
    /// [`NbdError`] when the export cannot be reached now, is read-only where it should not be or the
    /// reverse, does not keep several
    /// connections coherent, or has blocks of more than 4096 bytes.
    pub fn connect(options: NbdOptions) -> Result<Self, NbdError> {
        let refuse = |reason| NbdError {
            socket: options.socket.clone(),
            export: options.export.clone(),
            reason,
        };
        let client = options.connect(STYLE).map_err(|error| refuse(error.to_string()))?;
        if client.is_read_only() != options.read_only {
            let what = if options.read_only { "it is not read-only" } else { "it is read-only" };
            return Err(refuse(what.to_owned()));
        }
        if !client.flags().has(flag::CAN_MULTI_CONN) {
            let reason = "a flush on one connection does not cover writes on others";
            return Err(refuse(reason.to_owned()));
        }
        let size = Arc::new(AtomicU64::new(client.size()));
        let block_size = client.min_block().max(512);
        if block_size > 4096 {
            return Err(refuse(format!("its smallest block has {block_size} bytes")));
        }
        let (keep, limit) = (options.connections, options.timeout);
        let (owned, known) = (options.clone(), Arc::clone(&size));
        let connect = move || again(&owned, STYLE, &known, block_size);
        Ok(Self { pool: Pool::new(client, keep, limit, connect), options, size, block_size })
    }

    /// Asks the server how large the export is now: [`Backend::size`] is at least that from then on.
    ///
    /// # Errors
    /// When it is not reached, or has something else under the name, or something smaller.
    pub fn look_again(&self) -> io::Result<u64> {
        again(&self.options, STYLE, &self.size, self.block_size).map(|client| client.size())
    }

    /// Runs a request for each piece of the range.
    fn in_pieces(
        &self,
        range: ByteRange,
        request: impl Fn(&mut Client, u64, u64) -> Result<(), ClientError>,
    ) -> io::Result<()> {
        let mut at = range.offset;
        while at < range.end() {
            let len = PIECE.min(range.end() - at);
            self.pool.run(|client| request(client, at, len).map_err(fault_of))?;
            at += len;
        }
        Ok(())
    }
}

/// Connects once more; a server that now has something else under the name will not do. What is there
/// may have grown.
fn again(
    options: &NbdOptions,
    style: ReplyStyle,
    size: &AtomicU64,
    block_size: u32,
) -> io::Result<Client> {
    let client = options.connect(style)?;
    let smaller = size.fetch_max(client.size(), Ordering::Relaxed) > client.size();
    if smaller || client.min_block() > block_size || client.is_read_only() != options.read_only {
        return Err(io::Error::other("the export is not the one that it was"));
    }
    Ok(client)
}

fn fault_of(error: ClientError) -> Fault {
    match error {
        ClientError::Io(error) | ClientError::Unreachable(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Fault::GivenUp(error),
            _ => Fault::Lost(error),
        },
        ClientError::Request(Answer::Shutdown) => Fault::Lost(Answer::Shutdown.into()),
        ClientError::Request(_) | ClientError::Unsupported(_) => Fault::Answered(error.into()),
        ClientError::Protocol(_) | ClientError::Refused { .. } | ClientError::Tls(_) => {
            Fault::GivenUp(error.into())
        }
    }
}

/// Connects, and does not wait longer than `limit` for a server that takes no connections.
fn connect_unix(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

impl Backend for NbdBackend {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    fn kernel_line(&self) -> Option<io::Result<KernelLine>> {
        // The kernel's client knows no others.
        let client = again(&self.options, ReplyStyle::Simple, &self.size, self.block_size);
        Some(client.and_then(|client| {
            let flags = client.flags();
            Ok(KernelLine { socket: client.into_unix()?, flags })
        }))
    }

    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.pool.run(|client| client.read_at(data, offset).map_err(fault_of))
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.pool.run(|client| {
            let written = match fua {
                true => client.write_durable_at(data, offset),
                false => client.write_at(data, offset),
            };
            written.map_err(fault_of)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.pool.run(|client| client.flush().map_err(fault_of))
    }

    fn trim(&self, range: ByteRange) -> io::Result<()> {
        self.in_pieces(range, Client::trim)
    }

    fn write_zeroes(&self, range: ByteRange, _may_unmap: bool) -> io::Result<()> {
        // The client leaves it to the server whether the range keeps its space.
        self.in_pieces(range, Client::write_zeroes)
    }
}
