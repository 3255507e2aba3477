//! One connection in transmission: frames requests, reads replies, notices silence. What it sends
//! and who is told comes from its [`Port`].

mod inbox;
mod outbox;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of the tests are small")]
mod tests;

use super::ClientError;
use super::negotiate::Agreed;
use super::session::Wire;
use crate::codec::consts::command_flag;
use crate::codec::{Command, ReplyStyle, RequestHeader};
use crate::{NbdError, PayloadBuffers};
use bytes::Bytes;
use inbox::Inbox;
use outbox::Outbox;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

/// What a connection gets requests from and gives replies to.
pub(super) trait Port {
    /// The next request to send.
    fn next(&self) -> Option<Wire>;

    /// The reply to a request. False when the connection must end.
    fn answer(&self, cookie: u64, answer: Result<Bytes, NbdError>) -> bool;

    /// Whom to wake when there is a request to send, or an ending.
    fn listen(&self, waker: &Waker);

    /// Whether the connection is to end.
    fn ending(&self) -> Option<Ending>;
}

/// How a connection is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// When everything is answered, with a farewell.
    Polite,
    /// Now.
    AtOnce,
}

/// While so many bytes wait to be sent, no request is taken.
const ENOUGH: usize = 1 << 20;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) struct Link<S> {
    stream: S,
    style: ReplyStyle,
    outbox: Outbox,
    inbox: Inbox,
    silence: Duration,
    /// When the server was heard last, or began to owe an answer.
    heard: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    pub(super) fn new(
        stream: S,
        agreed: &Agreed,
        silence: Duration,
        buffers: Rc<dyn PayloadBuffers>,
    ) -> Self {
        Self {
            stream,
            style: agreed.style,
            outbox: Outbox::default(),
            inbox: Inbox::new(agreed.style, buffers),
            silence,
            heard: Instant::now(),
            timer: Box::pin(tokio::time::sleep(silence)),
        }
    }

    /// Runs until the connection breaks or is to end; gives the stream back after an ending.
    ///
    /// # Errors
    /// Why it cannot be used any more.
    pub(super) async fn run(mut self, port: &impl Port) -> Result<S, ClientError> {
        match poll_fn(|cx| self.poll(port, cx)).await? {
            Ending::AtOnce => {}
            Ending::Polite => {
                let command = Command::Disconnect.number();
                let head = RequestHeader { flags: 0, command, cookie: 0, offset: 0, len: 0 };
                let mut farewell = Vec::new();
                head.encode(self.style, &mut farewell);
                let stream = &mut self.stream;
                let sent = async {
                    stream.write_all(&farewell).await?;
                    stream.flush().await?;
                    stream.shutdown().await
                };
                // The server notices the end of the connection as well.
                let _ = tokio::time::timeout(FAREWELL, sent).await;
            }
        }
        Ok(self.stream)
    }

    fn poll(
        &mut self,
        port: &impl Port,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Ending, ClientError>> {
        port.listen(cx.waker());
        loop {
            match port.ending() {
                Some(Ending::AtOnce) => return Poll::Ready(Ok(Ending::AtOnce)),
                Some(Ending::Polite) if self.inbox.expects_nothing() => {
                    return Poll::Ready(Ok(Ending::Polite));
                }
                _ => {}
            }
            let took = self.take(port);
            let sent = self.outbox.poll_send(Pin::new(&mut self.stream), cx)?;
            let read = match self.inbox.poll_read(Pin::new(&mut self.stream), cx)? {
                Poll::Ready(()) => {
                    self.heard = Instant::now();
                    let mut fine = true;
                    self.inbox.take_replies(|cookie, answer| {
                        fine &= port.answer(cookie, answer);
                    })?;
                    if !fine {
                        return Poll::Ready(Err(NbdError::Shutdown.into()));
                    }
                    true
                }
                Poll::Pending => false,
            };
            if !took && !sent && !read {
                break;
            }
        }
        self.poll_silence(cx)
    }

    /// Takes requests from the port, whether any.
    fn take(&mut self, port: &impl Port) -> bool {
        let mut any = false;
        while self.outbox.waiting() < ENOUGH
            && let Some(wire) = port.next()
        {
            if self.inbox.expects_nothing() {
                self.heard = Instant::now();
            }
            self.inbox.expect(&wire);
            self.push(wire);
            any = true;
        }
        any
    }

    fn push(&mut self, wire: Wire) {
        let announced = wire.command == Command::Write && self.style == ReplyStyle::Extended;
        let head = RequestHeader {
            flags: wire.flags | if announced { command_flag::PAYLOAD_LEN } else { 0 },
            command: wire.command.number(),
            cookie: wire.cookie,
            offset: wire.offset,
            len: wire.len,
        };
        self.outbox.push(&head, self.style, wire.payload);
    }

    /// Ends the connection when the server owes an answer and has been silent for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Result<Ending, ClientError>> {
        if self.inbox.expects_nothing() {
            return Poll::Pending;
        }
        let deadline = self.heard + self.silence;
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                let why = format!("it has been silent for {:?}", self.silence);
                let silent = io::Error::new(io::ErrorKind::TimedOut, why);
                return Poll::Ready(Err(silent.into()));
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
