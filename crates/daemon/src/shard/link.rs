//! A link to a peer: one task that owns the stream, reads and writes.

use super::outbox::Outbox;
use super::resource::Resource;
use super::socket::LinkSocket;
use bytes::Bytes;
use holdfast_core::{Event, LinkId};
use holdfast_store::{AlignedBuf, BufferPool};
use holdfast_units::NodeId;
use holdfast_wire::{HEADER_LEN, Header, Message, WireError, decode, parse_header};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

/// How much is read at a time, and how much of it is handed to the core before anything is sent.
const INPUT: usize = 256 << 10;
const READ_AT_ONCE: usize = 1 << 20;
/// Payloads from this length on are read straight into their buffer.
const DIRECT: usize = 16 << 10;
/// A link on which so much waits to be sent is given up: what the core has under way is bounded
/// far below it.
const MAX_WAITING: usize = 256 << 20;
/// A link whose peer sends faster than the disk writes is not read beyond so many bytes.
const MAX_HELD: usize = 64 << 20;
/// How many encrypted bytes may wait for the socket: as many go into one system call, and wake the
/// peer once. A quarter more throughput than with the 64 KiB that rustls starts with.
const TLS_BUFFER: usize = 1 << 20;
/// How long sending the rest may take when a link is closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// A stream that a link can run on.
pub trait LinkStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// Registers with the runtime of the calling thread, in which it is used from now on.
    ///
    /// # Errors
    /// What the system says; the connection is lost then.
    fn move_here(&mut self) -> io::Result<()>;
}

/// Without TLS.
#[cfg(test)]
impl LinkStream for LinkSocket {
    fn move_here(&mut self) -> io::Result<()> {
        Self::move_here(self)
    }
}

impl LinkStream for client::TlsStream<LinkSocket> {
    fn move_here(&mut self) -> io::Result<()> {
        let (socket, session) = self.get_mut();
        session.set_buffer_limit(Some(TLS_BUFFER));
        socket.move_here()
    }
}

impl LinkStream for server::TlsStream<LinkSocket> {
    fn move_here(&mut self) -> io::Result<()> {
        let (socket, session) = self.get_mut();
        session.set_buffer_limit(Some(TLS_BUFFER));
        socket.move_here()
    }
}

/// Who made a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkOrigin {
    /// This node.
    Dialled,
    /// The peer.
    Accepted,
}

impl LinkOrigin {
    /// Whether the node with the lower number made it. Such a link wins when both sides dial.
    pub(super) fn is_preferred(self, me: NodeId, peer: NodeId) -> bool {
        (self == Self::Dialled) == (me < peer)
    }
}

/// How a link is to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    No,
    /// When everything is sent.
    AfterSent,
    Now,
}

/// The resource's end of a link.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) preferred: bool,
    shared: Rc<Shared>,
}

/// What the task and the resource share. Nobody keeps anything borrowed while calling the other.
struct Shared {
    stream: RefCell<Box<dyn LinkStream>>,
    outbox: RefCell<Outbox>,
    /// The task, when it sleeps.
    waker: Cell<Option<Waker>>,
    end: Cell<End>,
    /// Why sending failed when the resource did it.
    failure: Cell<Option<io::Error>>,
    /// Bytes of payload that came and are still in use here.
    held: Arc<AtomicUsize>,
    /// The task does not read because of `held`.
    throttled: Cell<bool>,
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Sends what waits; ready when nothing is left, in memory or below.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.stream.borrow_mut();
        let mut stream = Pin::new(&mut *stream);
        let mut outbox = self.outbox.borrow_mut();
        while !outbox.is_empty() {
            let written =
                outbox.with_slices(|slices| stream.as_mut().poll_write_vectored(cx, slices));
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => outbox.advance(count),
            }
        }
        stream.poll_flush(cx)
    }
}

impl Link {
    /// Appends a message. Whether the link can go on; if not, it is ending by itself.
    pub(super) fn send(&self, message: &Message) {
        if self.shared.end.get() != End::No {
            return;
        }
        let mut outbox = self.shared.outbox.borrow_mut();
        outbox.push(message);
        if outbox.waiting() > MAX_WAITING {
            tracing::error!("a link is given up: its peer does not read what is sent");
            self.shared.end.set(End::Now);
        }
    }

    /// Sends what can be sent at once, without a detour through the task: data leave while the
    /// cache has them, and a peer can work on them while this node does.
    pub(super) fn flush(&self) {
        let shared = &self.shared;
        let lost = shared.end.get() == End::Now;
        if !lost {
            if shared.outbox.borrow().is_empty() {
                return;
            }
            match shared.poll_send(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => return,
                Poll::Ready(Err(error)) => shared.failure.set(Some(error)),
                Poll::Pending => {}
            }
        }
        // The task waits for the socket, or ends the link.
        shared.wake();
    }

    /// Ends the link when everything is sent.
    pub(super) fn close(&self) {
        self.end(End::AfterSent);
    }

    /// Ends the link at once.
    pub(super) fn abort(&self) {
        self.end(End::Now);
    }

    fn end(&self, end: End) {
        self.shared.end.set(self.shared.end.get().max(end));
        self.shared.wake();
    }

    /// To be called when memory may have become free.
    pub(super) fn unthrottle(&self) {
        let shared = &self.shared;
        if shared.throttled.get() && shared.held.load(Ordering::Relaxed) < MAX_HELD / 2 {
            shared.wake();
        }
    }
}

/// Begins a link: the resource's end, and the task to spawn.
pub(super) fn start(
    resource: &Rc<Resource>,
    peer: NodeId,
    id: LinkId,
    preferred: bool,
    stream: Box<dyn LinkStream>,
    pool: BufferPool,
) -> (Link, impl Future<Output = ()> + 'static) {
    let shared = Rc::new(Shared {
        stream: RefCell::new(stream),
        failure: Cell::new(None),
        outbox: RefCell::default(),
        waker: Cell::new(None),
        end: Cell::new(End::No),
        held: Arc::default(),
        throttled: Cell::new(false),
    });
    let link = Link { id, preferred, shared: Rc::clone(&shared) };
    let resource = Rc::clone(resource);
    let mut task =
        Task { shared, resource, peer, id, input: Input::new(), arriving: Arriving::Nothing, pool };
    (link, async move { task.run().await })
}

/// Payload in memory that counts as held by a link as long as anybody uses it.
struct Held {
    buffer: AlignedBuf,
    counter: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.buffer.len(), Ordering::Relaxed);
    }
}

/// What the stream's next bytes are, apart from headers.
enum Arriving {
    Nothing,
    /// The payload of a message, `filled` bytes of which are there.
    Payload {
        header: Header,
        body: Vec<u8>,
        buffer: AlignedBuf,
        filled: usize,
    },
}

struct Task {
    shared: Rc<Shared>,
    resource: Rc<Resource>,
    peer: NodeId,
    id: LinkId,
    input: Input,
    arriving: Arriving,
    pool: BufferPool,
}

/// Why a link ended by itself.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the peer closed it")]
    Closed,
}

impl Task {
    async fn run(&mut self) {
        let (peer, id) = (self.peer, self.id);
        if let Err(error) = poll_fn(|cx| self.poll(cx)).await {
            tracing::info!(peer = %peer, %error, "a link ended");
        } else if self.shared.end.get() == End::AfterSent {
            // That the peer does not care to see the end is no error.
            let farewell = poll_fn(|cx| self.poll_farewell(cx));
            let _ = tokio::time::timeout(FAREWELL, farewell).await;
        }
        self.shared.end.set(End::Now);
        self.shared.outbox.borrow_mut().clear();
        self.resource.link_ended(peer, id);
    }

    /// Receives and sends until there is nothing to do; ready when the link is to end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        self.shared.waker.set(None);
        if self.shared.end.get() != End::No {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = self.shared.failure.take() {
            return Poll::Ready(Err(error.into()));
        }
        let more = self.receive(cx)?;
        self.resource.finish();
        if let Poll::Ready(Err(error)) = self.shared.poll_send(cx) {
            return Poll::Ready(Err(error.into()));
        }
        if self.shared.end.get() != End::No {
            return Poll::Ready(Ok(()));
        }
        self.shared.waker.set(Some(cx.waker().clone()));
        if more {
            // Others first: there may be no end to what this peer sends.
            self.shared.wake();
        }
        Poll::Pending
    }

    /// Hands to the core what has come. Whether more may be there.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        let mut received = 0;
        while received < READ_AT_ONCE {
            let held = self.shared.held.load(Ordering::Relaxed);
            self.shared.throttled.set(held > MAX_HELD);
            if held > MAX_HELD {
                return Ok(false);
            }
            match self.poll_fill(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(LinkError::Closed),
                Poll::Ready(count) => received += count?,
            }
            self.take_messages()?;
        }
        Ok(true)
    }

    /// Reads once, to where the next bytes belong.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut stream = self.shared.stream.borrow_mut();
        let stream = Pin::new(&mut *stream);
        match &mut self.arriving {
            Arriving::Payload { buffer, filled, .. } => {
                let mut free = ReadBuf::new(&mut buffer[*filled..]);
                let polled = stream.poll_read(cx, &mut free);
                let count = free.filled().len();
                *filled += count;
                polled.map_ok(|()| count)
            }
            Arriving::Nothing => self.input.poll_fill(stream, cx),
        }
    }

    /// Hands every complete message to the core.
    fn take_messages(&mut self) -> Result<(), LinkError> {
        loop {
            match std::mem::replace(&mut self.arriving, Arriving::Nothing) {
                Arriving::Payload { header, body, buffer, filled } if filled < buffer.len() => {
                    self.arriving = Arriving::Payload { header, body, buffer, filled };
                    return Ok(());
                }
                Arriving::Payload { header, body, buffer, .. } => {
                    let payload = self.hold(&header, buffer);
                    self.feed(decode(&header, &body, payload)?);
                }
                Arriving::Nothing => {}
            }
            if !self.take_message()? {
                return Ok(());
            }
        }
    }

    /// Takes one message from what has been read, or begins with its payload. False when more must
    /// be read first.
    fn take_message(&mut self) -> Result<bool, LinkError> {
        let bytes = self.input.bytes();
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(false);
        };
        let header = parse_header(head)?;
        let (body_len, payload_len) = (header.body_len(), header.payload_len());
        let Some((body, rest)) = rest.split_at_checked(body_len) else { return Ok(false) };
        if payload_len == 0 {
            let message = decode(&header, body, Bytes::new())?;
            self.input.consume(HEADER_LEN + body_len);
            self.feed(message);
            return Ok(true);
        }
        if rest.len() < payload_len.min(DIRECT) {
            return Ok(false);
        }
        let filled = rest.len().min(payload_len);
        let mut buffer = self.pool.get(payload_len);
        buffer[..filled].copy_from_slice(&rest[..filled]);
        if filled == payload_len {
            let message = decode(&header, body, self.hold(&header, buffer))?;
            self.input.consume(HEADER_LEN + body_len + filled);
            self.feed(message);
        } else {
            let body = body.to_vec();
            self.input.consume(HEADER_LEN + body_len + filled);
            self.arriving = Arriving::Payload { header, body, buffer, filled };
        }
        Ok(true)
    }

    fn feed(&self, message: Message) {
        self.resource.feed(Event::PeerMessage(self.peer, self.id, message));
    }

    /// The filled buffer as payload. Answers to reads do not count as held: they wait for clients,
    /// not for this node's disk.
    fn hold(&self, header: &Header, buffer: AlignedBuf) -> Bytes {
        if header.name() == "ReadReply" {
            return buffer.freeze();
        }
        self.shared.held.fetch_add(buffer.len(), Ordering::Relaxed);
        Bytes::from_owner(Held { buffer, counter: Arc::clone(&self.shared.held) })
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.shared.poll_send(cx))?;
        Pin::new(&mut *self.shared.stream.borrow_mut()).poll_shutdown(cx)
    }
}

/// Bytes that were read and not looked at yet.
struct Input {
    memory: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self { memory: vec![0; INPUT].into(), at: 0, end: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.at..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }

    /// Reads once. There is always room: what is left over is less than a header, a body and a
    /// small payload.
    fn poll_fill<S: AsyncRead + ?Sized>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.at == self.end {
            (self.at, self.end) = (0, 0);
        } else if self.memory.len() - self.end < INPUT / 4 {
            self.memory.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
        }
        let mut free = ReadBuf::new(&mut self.memory[self.end..]);
        let polled = stream.poll_read(cx, &mut free);
        let count = free.filled().len();
        self.end += count;
        polled.map_ok(|()| count)
    }
}
