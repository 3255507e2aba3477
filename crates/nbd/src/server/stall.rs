//! Ends connections that hold memory which others wait for, and make no use of it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How often in the time of its patience a watch looks.
const LOOKS: u32 = 5;
/// How many times its patience one payload or reply may take.
const WHOLE: u32 = 6;

/// What has gone through a connection since it began.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Moved {
    /// Bytes of payloads and replies.
    pub(super) bytes: u64,
    /// Whole payloads and replies.
    pub(super) messages: u64,
}

/// A connection as its watch sees it.
pub(super) struct Moves {
    pub(super) moved: Moved,
    /// Whether the client is to send or read something that shared memory is held for.
    pub(super) holds: bool,
    /// Whether others wait for this memory.
    pub(super) in_the_way: bool,
}

/// Looks now and then, and only while there is something to look at: the way of a request costs
/// no look at the clock.
pub(super) struct StallWatch {
    patience: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    seen: Moved,
    /// How many looks in a row found that no byte, or no message, had moved.
    without_byte: u32,
    without_message: u32,
}

impl StallWatch {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, timer: None, seen: Moved::default(), without_byte: 0, without_message: 0 }
    }

    /// Ready when the connection must end.
    pub(super) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>, moves: &Moves) -> Poll<()> {
        let this = self.get_mut();
        loop {
            if !moves.holds {
                // An old timer may go on: its wakeup is harmless, and it need not be made again.
                (this.without_byte, this.without_message) = (0, 0);
                if this.timer.is_none() {
                    return Poll::Pending;
                }
            }
            let interval = this.patience / LOOKS;
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
            ready!(timer.as_mut().poll(cx));
            if !moves.holds {
                this.timer = None;
                return Poll::Pending;
            }
            if this.look(moves) {
                return Poll::Ready(());
            }
            if let Some(timer) = &mut this.timer {
                timer.as_mut().reset(Instant::now() + interval);
            }
        }
    }

    /// Whether it has been patient long enough.
    fn look(&mut self, moves: &Moves) -> bool {
        let seen = std::mem::replace(&mut self.seen, moves.moved);
        let count = |same: bool, before: u32| if same { before.saturating_add(1) } else { 0 };
        self.without_byte = count(seen.bytes == moves.moved.bytes, self.without_byte);
        self.without_message = count(seen.messages == moves.moved.messages, self.without_message);
        // One more, because the first look comes some time after the last byte.
        moves.in_the_way
            && (self.without_byte > LOOKS || self.without_message > LOOKS.saturating_mul(WHOLE))
    }
}
