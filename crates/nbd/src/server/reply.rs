use super::ServerOptions;
use super::memory::Share;
use super::negotiate::context_id;
use super::outbox::{Outbox, Written};
use crate::codec::{ChunkFrame, Extent, ReplyStyle, simple_reply};
use crate::{ContextSet, ContextStatus, NbdError, ReadChunk, ReplyData, RequestKind};
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

/// The most extents in one block status answer.
const MAX_EXTENTS: usize = 4096;

/// What a connection and the replies to its requests share.
pub(super) struct Shared {
    style: ReplyStyle,
    /// Whether the stream sends what is lent.
    lent: bool,
    outbox: RefCell<Outbox>,
    /// The connection's task, when it sleeps.
    waker: Cell<Option<Waker>>,
    /// Whether anybody will still send what is put into the outbox.
    open: Cell<bool>,
    /// Requests that were taken and whose replies have not left yet.
    requests: Cell<usize>,
    /// Bytes that these hold.
    reserved: Cell<u64>,
    /// How many of them need no shared memory.
    own: u64,
    /// The shared memory for the others.
    share: Share,
}

impl Shared {
    pub(super) fn new(style: ReplyStyle, lent: bool, options: &ServerOptions) -> Rc<Self> {
        Rc::new(Self {
            style,
            lent,
            outbox: RefCell::default(),
            waker: Cell::new(None),
            open: Cell::new(true),
            requests: Cell::new(0),
            reserved: Cell::new(0),
            own: options.own_bytes,
            share: options.memory.share(),
        })
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.get()
    }

    pub(super) fn reserved(&self) -> u64 {
        self.reserved.get()
    }

    pub(super) fn outbox(&self) -> &RefCell<Outbox> {
        &self.outbox
    }

    pub(super) fn share(&self) -> &Share {
        &self.share
    }

    /// Whether the shared memory has room for `bytes` more.
    pub(super) fn has_memory(&self, bytes: u64) -> bool {
        let total = self.reserved.get().saturating_add(bytes);
        self.share.has_room(total.saturating_sub(self.own))
    }

    /// Counts a request that is being taken and the bytes that it will hold.
    pub(super) fn take(&self, bytes: u64) {
        self.requests.set(self.requests.get() + 1);
        self.set_reserved(self.reserved.get() + bytes);
        self.share.leave_line();
    }

    fn set_reserved(&self, bytes: u64) {
        self.reserved.set(bytes);
        self.share.hold(bytes.saturating_sub(self.own));
    }

    /// Gives back what was written.
    pub(super) fn release(&self, written: Written) {
        self.requests.set(self.requests.get() - written.replies);
        self.release_bytes(written.reserved);
    }

    pub(super) fn release_bytes(&self, bytes: u64) {
        self.set_reserved(self.reserved.get() - bytes);
    }

    /// The task is about to sleep and wants to be woken by the next reply.
    pub(super) fn sleep(&self, waker: &Waker) {
        self.waker.set(Some(waker.clone()));
    }

    /// The task is running: it will see new replies by itself.
    pub(super) fn awake(&self) {
        self.waker.set(None);
    }

    /// Nobody sends any more: later replies are dropped.
    pub(super) fn close(&self) {
        self.open.set(false);
        self.waker.set(None);
        self.share.leave_line();
        let unsent = self.outbox.borrow_mut().clear();
        self.release_bytes(unsent);
    }

    /// Puts a reply into the outbox and sees that it is sent.
    fn answer(&self, reserved: u64, write: impl FnOnce(&mut Outbox)) {
        if !self.open.get() {
            self.release_bytes(reserved);
            return;
        }
        let mut outbox = self.outbox.borrow_mut();
        write(&mut outbox);
        outbox.end_reply(reserved);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The way back for the answer to one request. Dropping it answers with an input/output error.
pub struct Reply {
    shared: Rc<Shared>,
    ticket: Option<Ticket>,
}

/// What is remembered of a request until it is answered.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    pub(super) kind: RequestKind,
    pub(super) cookie: u64,
    pub(super) range: ByteRange,
    pub(super) df: bool,
    pub(super) req_one: bool,
    /// The contexts that block status must tell.
    pub(super) contexts: ContextSet,
    /// Extents are cut to multiples of it.
    pub(super) min_block: u64,
    /// Bytes that are reserved for it.
    pub(super) reserved: u64,
}

impl Reply {
    pub(super) fn new(shared: Rc<Shared>, ticket: Ticket) -> Self {
        Self { shared, ticket: Some(ticket) }
    }

    /// Answers the request. Success with data that do not answer it (of another length than the
    /// range, or of another kind) reaches the client as an input/output error.
    pub fn complete(mut self, result: Result<ReplyData, NbdError>) {
        if let Some(ticket) = self.ticket.take() {
            ticket.answer(&self.shared, result);
        }
    }

    /// Whether [`ReadChunk::Lent`] may be in the answer.
    #[must_use]
    pub fn takes_lent(&self) -> bool {
        self.shared.lent
    }

    /// Whether the connection has gone, so that an answer reaches nobody.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        !self.shared.open.get()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.answer(&self.shared, Err(NbdError::Io));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("cookie", &self.ticket.map(|t| t.cookie)).finish()
    }
}

impl Ticket {
    /// Puts the answer into the outbox of the connection.
    pub(super) fn answer(&self, shared: &Shared, result: Result<ReplyData, NbdError>) {
        // A write's payload is gone by now; a read's data stay until they have left.
        let reserved = if self.kind == RequestKind::Read {
            self.reserved
        } else {
            shared.release_bytes(self.reserved);
            0
        };
        let style = shared.style;
        let frame = ChunkFrame { style, cookie: self.cookie, offset: self.range.offset };
        shared.answer(reserved, |out| match (self.kind, result) {
            (_, Err(error)) => self.put_error(out, frame, error),
            (RequestKind::Read, Ok(ReplyData::Read(data))) => {
                let len = data.len() as u64;
                self.put_read(out, frame, len, [ReadChunk::Data(data)].into_iter());
            }
            (RequestKind::Read, Ok(ReplyData::ReadChunks(mut chunks))) => {
                chunks.retain(|chunk| !chunk.is_empty());
                let len = chunks.iter().map(ReadChunk::len).sum();
                self.put_read(out, frame, len, chunks.into_iter());
            }
            (RequestKind::BlockStatus, Ok(ReplyData::Status(status))) => {
                self.put_status(out, frame, &status);
            }
            (_, Ok(ReplyData::Done)) if !self.wants_data() => self.put_done(out, frame),
            (_, Ok(_)) => self.put_error(out, frame, NbdError::Io),
        });
    }

    fn wants_data(&self) -> bool {
        let gives_data = matches!(self.kind, RequestKind::Read | RequestKind::BlockStatus);
        gives_data && !self.range.is_empty()
    }

    /// Whether the answer must not be a simple reply.
    fn in_chunks(&self, frame: ChunkFrame) -> bool {
        match frame.style {
            ReplyStyle::Simple => false,
            ReplyStyle::Structured => {
                matches!(self.kind, RequestKind::Read | RequestKind::BlockStatus)
            }
            ReplyStyle::Extended => true,
        }
    }

    fn put_done(&self, out: &mut Outbox, frame: ChunkFrame) {
        if self.in_chunks(frame) {
            out.head(|out| frame.none(out));
        } else {
            out.head(|out| simple_reply(out, self.cookie, 0));
        }
    }

    fn put_error(&self, out: &mut Outbox, frame: ChunkFrame, error: NbdError) {
        if self.in_chunks(frame) {
            out.head(|out| frame.error(out, error.number()));
        } else {
            out.head(|out| simple_reply(out, self.cookie, error.number()));
        }
    }

    /// `chunks` are not empty and `len` bytes long together.
    fn put_read(
        &self,
        out: &mut Outbox,
        frame: ChunkFrame,
        len: u64,
        chunks: impl ExactSizeIterator<Item = ReadChunk>,
    ) {
        if len != self.range.len {
            return self.put_error(out, frame, NbdError::Io);
        }
        if frame.style == ReplyStyle::Simple {
            out.head(|out| simple_reply(out, self.cookie, 0));
            chunks.for_each(|chunk| put_plain(out, chunk));
            return;
        }
        if self.df && chunks.len() > 1 {
            out.head(|out| frame.data(out, true, self.range.offset, len));
            chunks.for_each(|chunk| put_plain(out, chunk));
            return;
        }
        let mut at = self.range.offset;
        let mut left = chunks.len();
        for chunk in chunks {
            left -= 1;
            let (done, len) = (left == 0, chunk.len());
            match chunk {
                ReadChunk::Data(data) => {
                    out.head(|out| frame.data(out, done, at, len));
                    out.data(data);
                }
                ReadChunk::Lent(range) => {
                    out.head(|out| frame.data(out, done, at, len));
                    out.lent(range);
                }
                // A read is no longer than the largest payload, which has 32 bits.
                ReadChunk::Zeroes(len) => {
                    let short = u32::try_from(len).unwrap_or(u32::MAX);
                    out.head(|out| frame.hole(out, done, at, short));
                }
            }
            at += len;
        }
    }

    /// One chunk for each context that was asked for; an error when one of them is missing.
    fn put_status(&self, out: &mut Outbox, frame: ChunkFrame, status: &[ContextStatus]) {
        let of = |context| status.iter().find(|told| told.context == context);
        let told = self.contexts.iter().map(|context| {
            let extents = of(context).map_or(&[][..], |told| &told.extents);
            (context, self.fit(frame.style, extents))
        });
        let told: Vec<_> = told.collect();
        if told.is_empty() || told.iter().any(|(_, extents)| extents.is_empty()) {
            return self.put_error(out, frame, NbdError::Io);
        }
        for (index, (context, extents)) in told.iter().enumerate() {
            let done = index + 1 == told.len();
            out.head(|out| frame.block_status(out, done, context_id(*context), extents));
        }
    }

    /// Merges neighbours and cuts what the request or the width of its fields does not allow.
    fn fit(&self, style: ReplyStyle, extents: &[Extent]) -> Vec<Extent> {
        let widest = match style {
            ReplyStyle::Extended => u64::MAX,
            _ => u64::from(u32::MAX) / self.min_block * self.min_block,
        };
        let longest = if self.req_one { self.range.len.min(widest) } else { widest };
        let most = if self.req_one { 1 } else { MAX_EXTENTS };
        let mut merged: Vec<Extent> = Vec::new();
        for extent in extents.iter().filter(|extent| extent.len > 0) {
            if let Some(last) = merged.last_mut().filter(|last| last.flags == extent.flags) {
                last.len = last.len.saturating_add(extent.len);
            } else if merged.len() < most {
                merged.push(*extent);
            } else {
                break;
            }
        }
        // What comes behind a cut would be told of the wrong place.
        if let Some(cut) = merged.iter().position(|extent| extent.len > longest) {
            merged.truncate(cut + 1);
            merged[cut].len = longest;
        }
        merged
    }
}

/// Data as they are, without a header of their own.
fn put_plain(out: &mut Outbox, chunk: ReadChunk) {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    match chunk {
        ReadChunk::Data(data) => out.data(data),
        ReadChunk::Lent(range) => out.lent(range),
        ReadChunk::Zeroes(mut left) => {
            while left > 0 {
                let step = left.min(ZEROES.len() as u64);
                let end = usize::try_from(step).unwrap_or(ZEROES.len());
                out.data(Bytes::from_static(&ZEROES[..end]));
                left -= step;
            }
        }
    }
}
