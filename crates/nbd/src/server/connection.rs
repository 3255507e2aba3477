use super::admit::{Verdict, judge, judge_filter};
use super::input::{INPUT, Input};
use super::negotiate::Session;
use super::reply::{Shared, Ticket};
use super::stall::{Moved, Moves};
use super::stream::ClientStream;
use super::{Reply, ServeError, ServerOptions};
use crate::codec::consts::command_flag as flag;
use crate::codec::{Command, Extent, RequestHeader};
use crate::{ContextSet, PayloadBuf, ReplyData, Request, RequestKind};
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

/// Payloads from this length on are read from the socket into their buffer.
const DIRECT: usize = 16 << 10;
/// Behind a payload of this length little is read ahead, so that the next one is not copied.
const BIG: usize = 64 << 10;
/// When so many bytes wait to be sent, they go before another request is taken: a client that
/// reads slowly does not pile up answers, and data leave while the cache still has them.
const SEND_FIRST: u64 = 512 << 10;
/// How much is read ahead between big payloads.
const SMALL_INPUT: usize = 4 << 10;

/// A connection in transmission. One task owns it and polls it.
pub(super) struct Connection<'a, S> {
    stream: S,
    session: Session,
    shared: Rc<Shared>,
    options: &'a ServerOptions,
    input: Input,
    arriving: Arriving,
    /// Whether requests are still read.
    reading: bool,
    /// Whether the server takes no new requests.
    stopping: bool,
    /// Whether the last write was a big one.
    big: bool,
    /// What has moved so far.
    moved: Moved,
}

/// What the socket's next bytes belong to, apart from request headers.
enum Arriving {
    Nothing,
    /// The payload of a request, `filled` bytes of which are there.
    Payload {
        kind: RequestKind,
        head: RequestHeader,
        buf: Box<dyn PayloadBuf>,
        filled: usize,
    },
    /// The payload of a request that was refused.
    Refuse(u64),
}

/// Why no more requests can be taken from the input.
#[derive(PartialEq, Eq)]
enum Took {
    /// More must be read.
    Everything,
    /// A request waits until others are done.
    Full,
}

impl<S> Drop for Connection<'_, S> {
    fn drop(&mut self) {
        if let Arriving::Payload { kind, head, .. } = &self.arriving {
            self.shared.release_bytes(cost(*kind, head));
        }
        self.shared.close();
    }
}

impl<'a, S: ClientStream> Connection<'a, S> {
    pub(super) fn new(stream: S, session: Session, options: &'a ServerOptions) -> Self {
        let shared = Shared::new(session.style, stream.socket().is_some(), options);
        Self {
            stream,
            shared,
            session,
            options,
            input: Input::default(),
            arriving: Arriving::Nothing,
            reading: true,
            stopping: false,
            big: false,
            moved: Moved::default(),
        }
    }

    pub(super) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// From now on new requests are refused; when all others are answered, the connection ends.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Takes and answers requests until there is nothing to do. Ready when the connection has
    /// ended and every reply is sent.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServeError>> {
        self.shared.awake();
        loop {
            let took = self.take_requests()?;
            let sent = self.poll_send(cx)?;
            if !self.reading {
                if self.all_answered(sent) {
                    return Poll::Ready(Ok(()));
                }
            } else if took == Took::Full {
                if self.has_room_for_next() {
                    continue;
                }
            } else if self.poll_fill(cx)?.is_ready() {
                continue;
            } else if self.stopping && self.input.bytes().is_empty() && self.all_answered(sent) {
                return Poll::Ready(Ok(()));
            }
            self.rest(cx);
            return Poll::Pending;
        }
    }

    fn all_answered(&self, sent: Poll<()>) -> bool {
        sent.is_ready() && self.shared.requests() == 0
    }

    /// What a watch for stalled clients wants to know.
    pub(super) fn moves(&self) -> Moves {
        let on_client = matches!(self.arriving, Arriving::Payload { .. })
            || !self.shared.outbox().borrow().is_empty();
        let share = self.shared.share();
        Moves {
            moved: self.moved,
            holds: on_client && share.holds_any(),
            in_the_way: on_client && share.is_in_the_way(),
        }
    }

    /// The task is about to sleep.
    fn rest(&mut self, cx: &mut Context<'_>) {
        if self.waits_for_memory() {
            self.shared.share().wait(cx.waker());
        } else {
            self.shared.share().leave_line();
        }
        self.input.release_if_empty();
        self.shared.sleep(cx.waker());
    }

    /// Sends replies; ready when none is left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ServeError> {
        loop {
            let mut outbox = self.shared.outbox().borrow_mut();
            if outbox.is_empty() {
                break;
            }
            let sent = match outbox.next_lent() {
                Some(range) => match self.stream.socket() {
                    Some(socket) => socket.poll_send(cx, range),
                    None => Poll::Ready(Err(ErrorKind::Unsupported.into())),
                },
                None => {
                    let stream = Pin::new(&mut self.stream);
                    outbox.with_slices(|slices| stream.poll_write_vectored(cx, slices))
                }
            };
            let count = match sent {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Err(ServeError::closed_early()),
                Poll::Ready(count) => count?,
            };
            let written = outbox.advance(count);
            drop(outbox);
            self.moved.bytes += count as u64;
            self.moved.messages += written.replies as u64;
            self.shared.release(written);
        }
        // What wraps the socket may hold something back even when nothing new was written.
        match Pin::new(&mut self.stream).poll_flush(cx)? {
            Poll::Ready(()) => Ok(Poll::Ready(())),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Reads once, from the place where the next bytes belong. Ready when something was read, or
    /// the client will send no more.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ServeError> {
        let stream = Pin::new(&mut self.stream);
        let polled = match &mut self.arriving {
            Arriving::Payload { buf, filled, .. } => {
                let mut free = ReadBuf::new(&mut buf.bytes_mut()[*filled..]);
                let polled = stream.poll_read(cx, &mut free);
                let count = free.filled().len();
                *filled += count;
                self.moved.bytes += count as u64;
                polled.map_ok(|()| count)
            }
            Arriving::Nothing | Arriving::Refuse(_) => {
                let limit = if self.big { SMALL_INPUT } else { INPUT };
                self.input.poll_fill(stream, cx, limit)
            }
        };
        match polled {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(0)) => self.at_end(),
            // TLS says so when the connection ends without a farewell.
            Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => self.at_end(),
            Poll::Ready(count) => {
                count?;
                Ok(Poll::Ready(()))
            }
        }
    }

    /// The client sends no more.
    fn at_end(&mut self) -> Result<Poll<()>, ServeError> {
        let between = matches!(self.arriving, Arriving::Nothing) && self.input.bytes().is_empty();
        if !between {
            return Err(ServeError::closed_early());
        }
        self.reading = false;
        Ok(Poll::Ready(()))
    }

    /// Takes all the requests that have arrived and for which there is room.
    fn take_requests(&mut self) -> Result<Took, ServeError> {
        let mut submitted = 0;
        let took = loop {
            if !self.reading || !self.finish_payload(&mut submitted) {
                break Took::Everything;
            }
            if self.must_send_first() {
                break Took::Full;
            }
            let Some(head) = RequestHeader::parse(self.session.style, self.input.bytes())? else {
                break Took::Everything;
            };
            match judge(&head, &self.session, self.stopping) {
                Verdict::HangUp => return Err(ServeError::Protocol(TOO_LONG)),
                Verdict::Disconnect => self.reading = false,
                Verdict::Answer { result, payload } => {
                    if !self.has_room(0) {
                        break Took::Full;
                    }
                    self.consume_header();
                    self.shared.take(0);
                    let result = result.map(|()| ReplyData::Done);
                    self.ticket(&head, RequestKind::of_header(&head), 0)
                        .answer(&self.shared, result);
                    self.arriving = Arriving::Refuse(payload);
                }
                Verdict::Take { kind, payload } => {
                    let cost = cost(kind, &head);
                    if !self.has_room(cost) {
                        break Took::Full;
                    }
                    if payload > 0 && payload < DIRECT && !self.small_payload_is_here(payload) {
                        break Took::Everything;
                    }
                    self.consume_header();
                    self.shared.take(cost);
                    self.accept(kind, head, payload, &mut submitted);
                }
            }
        };
        if submitted > 0 {
            self.session.export.batch_submitted();
            if let Some(spinner) = &self.options.spinner {
                spinner.note(submitted);
            }
        }
        Ok(took)
    }

    fn small_payload_is_here(&self, payload: usize) -> bool {
        self.input.bytes().len() >= RequestHeader::wire_len(self.session.style) + payload
    }

    fn consume_header(&mut self) {
        self.input.consume(RequestHeader::wire_len(self.session.style));
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.has_room_of_its_own(bytes) && self.shared.has_memory(bytes)
    }

    fn has_room_of_its_own(&self, bytes: u64) -> bool {
        let reserved = self.shared.reserved();
        self.shared.requests() < self.options.max_requests
            && (reserved == 0 || reserved.saturating_add(bytes) <= self.options.max_bytes)
    }

    fn must_send_first(&self) -> bool {
        self.shared.outbox().borrow().waiting() >= SEND_FIRST
    }

    /// Whether the request that waits at the front of the input could be taken now.
    fn has_room_for_next(&self) -> bool {
        !self.must_send_first() && self.next_cost().is_none_or(|cost| self.has_room(cost))
    }

    /// Whether nothing but memory is missing for the request at the front of the input. Who waits
    /// for something else must not stand in the line.
    fn waits_for_memory(&self) -> bool {
        self.reading
            && matches!(self.arriving, Arriving::Nothing)
            && !self.must_send_first()
            && self
                .next_cost()
                .is_some_and(|cost| self.has_room_of_its_own(cost) && !self.shared.has_memory(cost))
    }

    /// What the request at the front of the input will hold, when its header is there.
    fn next_cost(&self) -> Option<u64> {
        let head = RequestHeader::parse(self.session.style, self.input.bytes()).ok()??;
        Some(match judge(&head, &self.session, self.stopping) {
            Verdict::Take { kind, .. } => cost(kind, &head),
            _ => 0,
        })
    }

    /// Goes on with a payload that has begun; whether it is complete, or there is none.
    fn finish_payload(&mut self, submitted: &mut usize) -> bool {
        match std::mem::replace(&mut self.arriving, Arriving::Nothing) {
            Arriving::Nothing => true,
            Arriving::Refuse(left) => {
                let here = self.input.bytes().len();
                let gone = usize::try_from(left).unwrap_or(usize::MAX).min(here);
                self.input.consume(gone);
                let left = left - gone as u64;
                if left > 0 {
                    self.arriving = Arriving::Refuse(left);
                }
                left == 0
            }
            Arriving::Payload { kind, head, mut buf, filled } => {
                if filled < buf.bytes_mut().len() {
                    self.arriving = Arriving::Payload { kind, head, buf, filled };
                    return false;
                }
                self.moved.messages += 1;
                self.submit(kind, &head, buf.freeze());
                *submitted += 1;
                true
            }
        }
    }

    /// Begins with a request whose header has been consumed.
    fn accept(
        &mut self,
        kind: RequestKind,
        head: RequestHeader,
        payload: usize,
        submitted: &mut usize,
    ) {
        if payload == 0 {
            self.submit(kind, &head, Bytes::new());
            *submitted += 1;
            return;
        }
        self.big = payload >= BIG;
        let mut buf = self.options.buffers.get(payload);
        let target = buf.bytes_mut();
        let here = self.input.bytes();
        let filled = here.len().min(target.len());
        target[..filled].copy_from_slice(&here[..filled]);
        self.input.consume(filled);
        self.arriving = Arriving::Payload { kind, head, buf, filled };
    }

    fn ticket(&self, head: &RequestHeader, kind: RequestKind, reserved: u64) -> Ticket {
        Ticket {
            kind,
            cookie: head.cookie,
            range: ByteRange::new(head.offset, head.len),
            df: head.flags & flag::DF != 0,
            req_one: head.flags & flag::REQ_ONE != 0,
            contexts: ContextSet::default(),
            min_block: self.session.info.min_block.max(1).into(),
            reserved,
        }
    }

    fn submit(&self, kind: RequestKind, head: &RequestHeader, payload: Bytes) {
        let mut ticket = self.ticket(head, kind, cost(kind, head));
        let mut contexts = self.session.contexts;
        if kind == RequestKind::BlockStatus && !payload.is_empty() {
            match judge_filter(head, &payload, &self.session) {
                Ok((head, chosen)) => {
                    ticket = self.ticket(&head, kind, 0);
                    contexts = chosen;
                }
                Err(error) => return ticket.answer(&self.shared, Err(error)),
            }
        }
        if kind != RequestKind::BlockStatus {
            contexts = ContextSet::default();
        } else if !self.session.info.can_block_status {
            let all = ReplyData::allocation(vec![Extent::data(ticket.range.len)]);
            ticket.contexts = contexts;
            return ticket.answer(&self.shared, Ok(all));
        }
        ticket.contexts = contexts;
        let request = Request {
            kind,
            range: ticket.range,
            fua: head.flags & flag::FUA != 0,
            no_hole: head.flags & flag::NO_HOLE != 0,
            fast_zero: head.flags & flag::FAST_ZERO != 0,
            req_one: ticket.req_one,
            contexts,
            df: ticket.df,
            payload: if kind == RequestKind::Write { payload } else { Bytes::new() },
        };
        self.session.export.submit(request, Reply::new(Rc::clone(&self.shared), ticket));
    }
}

const TOO_LONG: &str = "a request announces more data than can be skipped";

/// The bytes that a request holds while it is under way.
fn cost(kind: RequestKind, head: &RequestHeader) -> u64 {
    match kind {
        RequestKind::Read | RequestKind::Write => head.len,
        _ => 0,
    }
}

impl RequestKind {
    /// What decides the form of the reply to a request that was not taken.
    fn of_header(head: &RequestHeader) -> Self {
        match Command::from_number(head.command) {
            Some(Command::Read) => Self::Read,
            Some(Command::BlockStatus) => Self::BlockStatus,
            _ => Self::Flush,
        }
    }
}
