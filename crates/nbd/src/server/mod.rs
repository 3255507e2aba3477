//! The server's side of one connection.

mod admit;
mod allow;
mod connection;
mod input;
mod memory;
mod negotiate;
mod outbox;
mod reply;
mod shutdown;
mod stall;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub use allow::{AllowError, AllowList, AllowedNet};
pub use memory::SharedMemory;
pub use reply::Reply;
pub use shutdown::{Shutdown, ShutdownHandle};
pub use stream::{ClientStream, Socket};
pub use tls::TlsFileError;

use crate::codec::OptionHeader;
use crate::codec::consts::PORTABLE_PAYLOAD;
use crate::{ClientInfo, Exports, HeapBuffers, PayloadBuffers, Spinner};
use connection::Connection;
use negotiate::{MAX_OPTION, Negotiation, Session, Step, Tls, greeting};
use stall::StallWatch;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The limits of a connection, and what it shares with others.
#[derive(Clone)]
pub struct ServerOptions {
    /// Requests that are under way at a time. Beyond it the socket is not read.
    pub max_requests: usize,
    /// Bytes of reads and writes that are under way at a time. Beyond it the socket is not read.
    /// One request may always be under way.
    pub max_bytes: u64,
    /// The part of `max_bytes` that this connection has for itself. What its requests hold beyond
    /// comes from `memory`.
    pub own_bytes: u64,
    /// What the connections share.
    pub memory: SharedMemory,
    /// How long a client may hold shared memory that others wait for without moving a byte of the
    /// payload or the replies that it is for. A client that moves them too slowly has six times as
    /// long for each. Then its connection ends.
    pub patience: Duration,
    /// The largest payload of one request in bytes, at least 1 MiB. What portable clients expect
    /// is 32 MiB.
    pub max_payload: u32,
    /// How long a client may take until it has entered an export.
    pub handshake_timeout: Duration,
    /// Ends the connection when asked to.
    pub shutdown: Shutdown,
    /// How long requests under way may take when the connection is to end.
    pub shutdown_grace: Duration,
    /// Keeps the thread from sleeping where requests come one by one. It is told of requests when
    /// they are taken.
    pub spinner: Option<Rc<Spinner>>,
    /// Where payloads of writes are put.
    pub buffers: Rc<dyn PayloadBuffers>,
    /// TLS, where it is offered.
    pub tls: Option<ServerTls>,
}

/// How a server does TLS. What the acceptor accepts (versions, client certificates) is decided by
/// who made it; rustls has nothing below TLS 1.2.
#[derive(Clone)]
pub struct ServerTls {
    /// Does the TLS handshake.
    pub acceptor: TlsAcceptor,
    /// Whether nothing at all is told in the clear. Otherwise [`Exports`] decide for each export,
    /// by [`ClientInfo::tls`].
    pub required: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_requests: 128,
            max_bytes: 64 << 20,
            own_bytes: 2 << 20,
            memory: SharedMemory::of_thread(),
            patience: Duration::from_secs(10),
            max_payload: PORTABLE_PAYLOAD,
            handshake_timeout: Duration::from_secs(10),
            shutdown: Shutdown::never(),
            shutdown_grace: Duration::from_secs(5),
            spinner: None,
            buffers: Rc::new(HeapBuffers::default()),
            tls: None,
        }
    }
}

/// Why a connection ended otherwise than in peace.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket failed, or the client vanished in the middle of something.
    #[error("the connection to the client broke: {0}")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("the client broke the NBD protocol: {0}")]
    Protocol(&'static str),
    /// The client did not choose an export in time.
    #[error("the client did not finish the handshake in time")]
    HandshakeTimeout,
    /// It held memory that others waited for and did not send or read what it was for.
    #[error("the client kept others waiting: it did not go on with a request or its reply")]
    Stalled,
    /// The server was to stop, and requests did not finish in time.
    #[error("requests were still under way when the server had to stop")]
    ShutdownTimeout,
}

impl ServeError {
    fn closed_early() -> Self {
        Self::Io(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it was closed in the middle of a message",
        ))
    }
}

impl From<crate::codec::WireError> for ServeError {
    fn from(error: crate::codec::WireError) -> Self {
        Self::Protocol(error.0)
    }
}

/// The bytes of options that one handshake may bring.
const MAX_HANDSHAKE: u64 = 4 << 20;
/// How long the farewell to a client may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection until it ends: handshake, requests, farewell. Must run on a tokio
/// runtime with timers. Dropping the future closes the connection at once.
///
/// What the client has sent is taken together: every complete request is submitted before any
/// reply is sent. Replies that are ready together leave together.
///
/// Ends with `Ok` when the client left or hung up between messages (requests that are under way
/// then are waited for), or when the shutdown was asked for and all requests were answered.
///
/// # Errors
/// [`ServeError`] for what deserves a line in a log.
pub async fn serve<S>(
    stream: S,
    client: &ClientInfo,
    exports: &dyn Exports,
    options: &ServerOptions,
) -> Result<(), ServeError>
where
    S: ClientStream,
{
    let mut shutdown = options.shutdown.clone();
    let entered = tokio::select! {
        biased;
        () = shutdown.requested() => return Ok(()),
        entered = tokio::time::timeout(
            options.handshake_timeout,
            handshake(stream, client, exports, options),
        ) => entered.map_err(|_| ServeError::HandshakeTimeout)??,
    };
    match entered {
        Entered::Plain(stream, session) => transmit(stream, session, options).await,
        Entered::Tls(stream, session) => transmit(stream, session, options).await,
        Entered::Left => Ok(()),
    }
}

/// How a handshake ended.
enum Entered<S> {
    Plain(S, Session),
    Tls(Box<TlsStream<S>>, Session),
    /// The client left, or was sent away.
    Left,
}

/// How haggling ended.
enum Haggled {
    Entered(Session),
    StartTls,
    Left,
}

/// Haggles until the client has entered an export.
async fn handshake<S: ClientStream>(
    mut stream: S,
    client: &ClientInfo,
    exports: &dyn Exports,
    options: &ServerOptions,
) -> Result<Entered<S>, ServeError> {
    stream.write_all(&greeting()).await?;
    stream.flush().await?;
    let mut flags = [0; 4];
    if !read_or_end(&mut stream, &mut flags).await? {
        return Ok(Entered::Left);
    }
    let flags = u32::from_be_bytes(flags);
    let tls = match &options.tls {
        None => Tls::Off,
        Some(tls) if tls.required => Tls::Required,
        Some(_) => Tls::Offered,
    };
    let begun = Negotiation::new(exports, client.clone(), tls, options.max_payload, flags);
    let Some(mut negotiation) = begun else {
        hang_up(&mut stream).await;
        return Err(ServeError::Protocol("the client has handshake flags that are not defined"));
    };
    match haggle(&mut stream, &mut negotiation).await? {
        Haggled::Entered(session) => return Ok(Entered::Plain(stream, session)),
        Haggled::Left => return Ok(Entered::Left),
        Haggled::StartTls => {}
    }
    let Some(tls) = &options.tls else { return Ok(Entered::Left) };
    // Haggling reads no byte too many: what a stranger put behind STARTTLS in the clear reaches
    // the TLS handshake, which fails.
    let mut stream = Box::new(tls.acceptor.accept(stream).await?);
    negotiation.tls_began();
    match haggle(&mut stream, &mut negotiation).await? {
        Haggled::Entered(session) => Ok(Entered::Tls(stream, session)),
        Haggled::StartTls | Haggled::Left => Ok(Entered::Left),
    }
}

async fn haggle<S: ClientStream>(
    stream: &mut S,
    negotiation: &mut Negotiation<'_>,
) -> Result<Haggled, ServeError> {
    let mut budget = MAX_HANDSHAKE;
    let mut data = Vec::new();
    let mut out = Vec::new();
    loop {
        let mut head = [0; OptionHeader::LEN];
        if !read_or_end(stream, &mut head).await? {
            return Ok(Haggled::Left);
        }
        let OptionHeader { code, len } = OptionHeader::parse(&head)?;
        budget = budget
            .checked_sub(u64::from(len) + head.len() as u64)
            .ok_or(ServeError::Protocol("the options of the handshake are too long"))?;
        let step = if len > MAX_OPTION {
            let mut rest = (&mut *stream).take(len.into());
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            negotiation.too_long(code, &mut out)
        } else {
            // The data are gathered as they come: the length is the client's word only.
            data.clear();
            (&mut *stream).take(len.into()).read_to_end(&mut data).await?;
            if data.len() as u64 != u64::from(len) {
                return Err(ServeError::closed_early());
            }
            negotiation.option(code, &data, &mut out)
        };
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        match step {
            Step::Continue => {}
            Step::Enter(session) => return Ok(Haggled::Entered(session)),
            Step::StartTls => return Ok(Haggled::StartTls),
            Step::HangUp => {
                hang_up(stream).await;
                return Ok(Haggled::Left);
            }
        }
    }
}

/// Fills `bytes`; false when the stream ended before the first of them.
async fn read_or_end<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes: &mut [u8],
) -> Result<bool, ServeError> {
    match stream.read(bytes).await {
        Ok(0) => Ok(false),
        Ok(first) => {
            stream.read_exact(&mut bytes[first..]).await?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn transmit<S: ClientStream>(
    stream: S,
    session: Session,
    options: &ServerOptions,
) -> Result<(), ServeError> {
    let mut shutdown = options.shutdown.clone();
    let mut asked = pin!(shutdown.requested());
    let mut grace = pin!(None);
    let mut connection = Connection::new(stream, session, options);
    let mut watch = pin!(StallWatch::new(options.patience));
    poll_fn(|cx| {
        if grace.is_none() && asked.as_mut().poll(cx).is_ready() {
            connection.stop();
            grace.set(Some(tokio::time::sleep(options.shutdown_grace)));
        }
        if let Some(over) = grace.as_mut().as_pin_mut()
            && over.poll(cx).is_ready()
        {
            return std::task::Poll::Ready(Err(ServeError::ShutdownTimeout));
        }
        let polled = connection.poll(cx);
        if polled.is_pending() && watch.as_mut().poll(cx, &connection.moves()).is_ready() {
            return std::task::Poll::Ready(Err(ServeError::Stalled));
        }
        polled
    })
    .await?;
    farewell(connection.stream()).await;
    Ok(())
}

/// Closes our direction, so that the client sees an end and not a break. That it does not care
/// to see it is no error.
async fn farewell<S: AsyncWrite + Unpin>(stream: &mut S) {
    let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
}

/// Closes our direction and looks away from what the client still says until it has noticed: a
/// socket that is closed with unread bytes would take the last reply from it.
async fn hang_up<S: ClientStream>(stream: &mut S) {
    farewell(stream).await;
    let mut rest = stream.take(MAX_HANDSHAKE);
    let mut nowhere = tokio::io::sink();
    let drained = tokio::io::copy(&mut rest, &mut nowhere);
    let _ = tokio::time::timeout(FAREWELL, drained).await;
}
