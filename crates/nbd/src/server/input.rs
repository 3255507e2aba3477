use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// How much is read at a time: 60 writes of 4 KiB.
pub(super) const INPUT: usize = 256 << 10;

/// Bytes that were read and not looked at yet. Holds memory only while there are any.
#[derive(Default)]
pub(super) struct Input {
    memory: Option<Box<[u8]>>,
    at: usize,
    end: usize,
}

/// How many input buffers a thread keeps for its connections.
const KEPT_INPUTS: usize = 4;

thread_local! {
    static INPUTS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

impl Input {
    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory[self.at..self.end])
    }

    /// The first `count` bytes are done with.
    pub(super) fn consume(&mut self, count: usize) {
        self.at += count;
    }

    /// Reads once, at most `limit` bytes beyond what is there; how many came.
    pub(super) fn poll_fill<S: AsyncRead>(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<std::io::Result<usize>> {
        let memory = self.memory.get_or_insert_with(|| {
            let kept = INPUTS.with_borrow_mut(Vec::pop);
            kept.unwrap_or_else(|| vec![0; INPUT].into())
        });
        // What is left over is less than a header and a small payload.
        memory.copy_within(self.at..self.end, 0);
        self.end -= self.at;
        self.at = 0;
        let until = memory.len().min(self.end + limit);
        let mut free = ReadBuf::new(&mut memory[self.end..until]);
        ready!(stream.poll_read(cx, &mut free))?;
        let count = free.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }

    /// Gives the buffer to the next connection that needs one.
    pub(super) fn release_if_empty(&mut self) {
        if self.at != self.end {
            return;
        }
        (self.at, self.end) = (0, 0);
        if let Some(memory) = self.memory.take() {
            INPUTS.with_borrow_mut(|kept| {
                if kept.len() < KEPT_INPUTS {
                    kept.push(memory);
                }
            });
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.at = self.end;
        self.release_if_empty();
    }
}
