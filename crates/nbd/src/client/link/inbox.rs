use crate::client::ClientError;
use crate::client::session::Wire;
use crate::codec::consts::chunk;
use crate::codec::{Command, Cursor, ReplyHeader, ReplyStyle};
use crate::{NbdError, PayloadBuf, PayloadBuffers};
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// The longest payload of a chunk that is no data: an error text.
const MAX_CHUNK: u64 = 2 << 20;
/// How many pieces of a read may be missing at a time.
const MAX_GAPS: usize = 4096;
/// How much is read at a time.
const INPUT: usize = 128 << 10;
/// Data from this length on are read from the socket into their buffer.
const DIRECT: u64 = 16 << 10;

/// Replies on their way from the socket.
pub(super) struct Inbox {
    style: ReplyStyle,
    buffers: Rc<dyn PayloadBuffers>,
    expected: HashMap<u64, Expected>,
    memory: Box<[u8]>,
    at: usize,
    end: usize,
    arriving: Arriving,
}

/// What the next bytes belong to.
enum Arriving {
    Header,
    /// Data of a read, which is not in `expected` meanwhile.
    Data {
        cookie: u64,
        read: Box<Expected>,
        at: u64,
        left: u64,
        done: bool,
    },
    /// Bytes that mean nothing; then the reply is over, if a cookie is given.
    Skip {
        left: u64,
        over: Option<u64>,
    },
}

/// A request that was not answered, or not completely.
#[derive(Default)]
struct Expected {
    /// Of a read.
    range: Option<(u64, u64)>,
    buf: Option<Box<dyn PayloadBuf>>,
    /// What has come, without overlaps, in order; ends where the next begins are joined.
    covered: Vec<(u64, u64)>,
    error: Option<NbdError>,
}

const OUTSIDE: ClientError = ClientError::Protocol("it sent data from outside the request");
const TWICE: ClientError = ClientError::Protocol("it sent the same data twice");
const INCOMPLETE: ClientError = ClientError::Protocol("its answer leaves a part out");
const NOT_SENT: ClientError = ClientError::Protocol("it answered a request that was not sent");
const UNEXPECTED: ClientError = ClientError::Protocol("it sent an unexpected chunk");

impl Inbox {
    pub(super) fn new(style: ReplyStyle, buffers: Rc<dyn PayloadBuffers>) -> Self {
        Self {
            style,
            buffers,
            expected: HashMap::new(),
            memory: vec![0; INPUT].into(),
            at: 0,
            end: 0,
            arriving: Arriving::Header,
        }
    }

    /// A request is about to be sent.
    pub(super) fn expect(&mut self, wire: &Wire) {
        let range = (wire.command == Command::Read).then_some((wire.offset, wire.len));
        self.expected.insert(wire.cookie, Expected { range, ..Expected::default() });
    }

    /// Whether every request is answered.
    pub(super) fn expects_nothing(&self) -> bool {
        self.expected.is_empty() && matches!(self.arriving, Arriving::Header)
    }

    /// Reads once, from the place where the next bytes belong.
    ///
    /// # Errors
    /// Those of the socket, and its end.
    pub(super) fn poll_read<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<()>> {
        let count = match self.poll_fill(stream, cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(count) => count?,
        };
        if count == 0 {
            let why = "the server closed it";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(Poll::Ready(()))
    }

    fn poll_fill<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Arriving::Data { read, at, left, .. } = &mut self.arriving
            && self.at == self.end
            && *left >= DIRECT
            && let Some(buf) = &mut read.buf
        {
            let (start, len) = (index(*at), index(*left));
            let mut free = ReadBuf::new(&mut buf.bytes_mut()[start..start + len]);
            ready!(stream.poll_read(cx, &mut free))?;
            let count = free.filled().len();
            *at += count as u64;
            *left -= count as u64;
            return Poll::Ready(Ok(count));
        }
        // What is left over is less than a header.
        self.memory.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        let mut free = ReadBuf::new(&mut self.memory[self.end..]);
        ready!(stream.poll_read(cx, &mut free))?;
        let count = free.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Tells of every reply that is complete.
    ///
    /// # Errors
    /// When the server breaks the protocol.
    pub(super) fn take_replies(
        &mut self,
        mut tell: impl FnMut(u64, Result<Bytes, NbdError>),
    ) -> Result<(), ClientError> {
        loop {
            match std::mem::replace(&mut self.arriving, Arriving::Header) {
                Arriving::Header => {
                    if !self.take_header(&mut tell)? {
                        return Ok(());
                    }
                }
                Arriving::Skip { left, over } => {
                    let gone = left.min((self.end - self.at) as u64);
                    self.at += index(gone);
                    if gone < left {
                        self.arriving = Arriving::Skip { left: left - gone, over };
                        return Ok(());
                    }
                    if let Some(cookie) = over {
                        self.over(cookie, &mut tell)?;
                    }
                }
                Arriving::Data { cookie, mut read, at, left, done } => {
                    let here = left.min((self.end - self.at) as u64);
                    if let Some(buf) = &mut read.buf {
                        let from = &self.memory[self.at..self.at + index(here)];
                        buf.bytes_mut()[index(at)..index(at + here)].copy_from_slice(from);
                    }
                    self.at += index(here);
                    if here < left {
                        let (at, left) = (at + here, left - here);
                        self.arriving = Arriving::Data { cookie, read, at, left, done };
                        return Ok(());
                    }
                    self.expected.insert(cookie, *read);
                    if done {
                        self.over(cookie, &mut tell)?;
                    }
                }
            }
        }
    }

    /// Takes the header of a reply or chunk; false when it is not all there.
    fn take_header(
        &mut self,
        tell: &mut impl FnMut(u64, Result<Bytes, NbdError>),
    ) -> Result<bool, ClientError> {
        let bytes = &self.memory[self.at..self.end];
        let Some(magic) = bytes.first_chunk().copied() else { return Ok(false) };
        let len = 4 + ReplyHeader::rest_len(self.style, magic)?;
        let Some((head, more)) = bytes.split_at_checked(len) else { return Ok(false) };
        match ReplyHeader::parse(magic, &head[4..])? {
            ReplyHeader::Simple { cookie, error } => {
                self.at += len;
                let expected = self.expected.get_mut(&cookie).ok_or(NOT_SENT)?;
                if error != 0 {
                    expected.error = Some(NbdError::from_number(error));
                } else if let Some((_, len)) = expected.range {
                    if self.style != ReplyStyle::Simple {
                        let why = "it sent a simple reply where chunks are due";
                        return Err(ClientError::Protocol(why));
                    }
                    return self.begin_data(cookie, 0, len, true).map(|()| true);
                }
                self.over(cookie, tell)?;
            }
            ReplyHeader::Chunk { cookie, kind, done, len: payload } => {
                let needed = match kind {
                    chunk::NONE => 0,
                    chunk::OFFSET_DATA => 8,
                    chunk::OFFSET_HOLE => 12,
                    kind if kind & chunk::ERROR_BIT != 0 => index(payload.min(4)),
                    _ => return Err(UNEXPECTED),
                };
                let Some((fields, _)) = more.split_at_checked(needed) else { return Ok(false) };
                let mut fields = Cursor::new(fields);
                let (first, second) = match kind {
                    chunk::OFFSET_DATA | chunk::OFFSET_HOLE => (fields.u64(), fields.u32()),
                    _ => (None, fields.u32()),
                };
                self.at += len + needed;
                let expected = self.expected.get_mut(&cookie).ok_or(NOT_SENT)?;
                let within = |at: Option<u64>| {
                    let (offset, _) = expected.range.ok_or(UNEXPECTED)?;
                    at.unwrap_or(0).checked_sub(offset).ok_or(OUTSIDE)
                };
                match kind {
                    chunk::NONE if payload == 0 && done => {}
                    chunk::OFFSET_DATA => {
                        let at = within(first)?;
                        let len = payload.checked_sub(8).filter(|len| *len > 0).ok_or(OUTSIDE)?;
                        return self.begin_data(cookie, at, len, done).map(|()| true);
                    }
                    chunk::OFFSET_HOLE => {
                        let (at, len) = (within(first)?, u64::from(second.unwrap_or(0)));
                        if payload != 12 {
                            let why = "it sent a hole of the wrong length";
                            return Err(ClientError::Protocol(why));
                        }
                        let target = expected.target(at, len, &*self.buffers)?;
                        target.fill(0);
                    }
                    kind if kind & chunk::ERROR_BIT != 0 => {
                        if payload > MAX_CHUNK {
                            let why = "it sent a chunk that is too long";
                            return Err(ClientError::Protocol(why));
                        }
                        let number = second.unwrap_or(0);
                        expected.error.get_or_insert(NbdError::from_number(number));
                        let left = payload - needed as u64;
                        self.arriving = Arriving::Skip { left, over: done.then_some(cookie) };
                        return Ok(true);
                    }
                    _ => return Err(UNEXPECTED),
                }
                if done {
                    self.over(cookie, tell)?;
                }
            }
        }
        Ok(true)
    }

    fn begin_data(
        &mut self,
        cookie: u64,
        at: u64,
        left: u64,
        done: bool,
    ) -> Result<(), ClientError> {
        let mut read = Box::new(self.expected.remove(&cookie).ok_or(NOT_SENT)?);
        read.target(at, left, &*self.buffers)?;
        self.arriving = Arriving::Data { cookie, read, at, left, done };
        Ok(())
    }

    /// The reply to a request is complete.
    fn over(
        &mut self,
        cookie: u64,
        tell: &mut impl FnMut(u64, Result<Bytes, NbdError>),
    ) -> Result<(), ClientError> {
        let expected = self.expected.remove(&cookie).ok_or(NOT_SENT)?;
        let answer = match (expected.error, expected.range) {
            (Some(error), _) => Err(error),
            (None, None) => Ok(Bytes::new()),
            (None, Some((_, len))) => {
                if expected.covered != [(0, len)] {
                    return Err(INCOMPLETE);
                }
                Ok(expected.buf.map(PayloadBuf::freeze).unwrap_or_default())
            }
        };
        tell(cookie, answer);
        Ok(())
    }
}

impl Expected {
    /// Where a piece of the data belongs. It may come only once.
    fn target(
        &mut self,
        at: u64,
        len: u64,
        buffers: &dyn PayloadBuffers,
    ) -> Result<&mut [u8], ClientError> {
        let (_, whole) = self.range.ok_or(UNEXPECTED)?;
        let end = at.checked_add(len).filter(|end| *end <= whole && len > 0).ok_or(OUTSIDE)?;
        let place = self.covered.partition_point(|(start, _)| *start < at);
        let overlaps_before = place > 0 && self.covered[place - 1].1 > at;
        if overlaps_before || self.covered.get(place).is_some_and(|(start, _)| *start < end) {
            return Err(TWICE);
        }
        if self.covered.len() >= MAX_GAPS {
            return Err(ClientError::Protocol("it answers a read in too many pieces"));
        }
        self.covered.insert(place, (at, end));
        if self.covered.get(place + 1).is_some_and(|(start, _)| *start == end) {
            self.covered[place].1 = self.covered.remove(place + 1).1;
        }
        if place > 0 && self.covered[place - 1].1 == at {
            self.covered[place - 1].1 = self.covered.remove(place).1;
        }
        let buf = self.buf.get_or_insert_with(|| buffers.get(index(whole)));
        Ok(&mut buf.bytes_mut()[index(at)..index(end)])
    }
}

/// A length that was compared with that of a buffer before.
fn index(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
