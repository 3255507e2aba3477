use crate::codec::{ReplyStyle, RequestHeader};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

/// A payload below this length is copied behind its header.
const SMALL: usize = 8 << 10;
/// How many pieces go with one system call.
const PIECES: usize = 64;

/// Requests on their way to the socket.
#[derive(Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Bytes>,
    /// Headers and small payloads that follow the pieces.
    tail: Vec<u8>,
    waiting: usize,
    /// Something was written that a wrapper of the socket may hold back.
    unflushed: bool,
}

impl Outbox {
    pub(super) fn push(&mut self, head: &RequestHeader, style: ReplyStyle, payload: Bytes) {
        let before = self.tail.len();
        head.encode(style, &mut self.tail);
        self.waiting += self.tail.len() - before + payload.len();
        if payload.len() < SMALL {
            self.tail.extend_from_slice(&payload);
        } else {
            self.seal();
            self.pieces.push_back(payload);
        }
    }

    /// How many bytes are to be sent.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).into());
        }
    }

    /// Sends as much as goes; whether anything went.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn poll_send<S: AsyncWrite>(
        &mut self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> io::Result<bool> {
        self.seal();
        let mut any = false;
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let count = self.pieces.len().min(PIECES);
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
            }
            match stream.as_mut().poll_write_vectored(cx, &slices[..count])? {
                Poll::Pending => return Ok(any),
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => self.advance(count),
            }
            any = true;
            self.unflushed = true;
        }
        if self.unflushed && stream.poll_flush(cx)?.is_ready() {
            self.unflushed = false;
        }
        Ok(any)
    }

    fn advance(&mut self, mut count: usize) {
        self.waiting -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > count {
                piece.advance(count);
                return;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }
}
