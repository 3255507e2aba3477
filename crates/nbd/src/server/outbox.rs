use crate::LentRange;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

/// How many pieces go into one system call.
const MAX_SLICES: usize = 128;

/// What was released by writing.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Written {
    /// Replies that have left entirely.
    pub(super) replies: usize,
    /// The bytes that were reserved for them.
    pub(super) reserved: u64,
}

/// Replies that wait for the socket. Headers lie one behind the other in one buffer; data are
/// never copied.
#[derive(Default)]
pub(super) struct Outbox {
    heads: Vec<u8>,
    heads_at: usize,
    pieces: VecDeque<Piece>,
    /// Where in the stream each reply ends, and what it holds reserved.
    ends: VecDeque<(u64, u64)>,
    queued: u64,
    written: u64,
}

enum Piece {
    /// So many bytes of `heads`.
    Heads(usize),
    Data(Bytes),
    Lent(LentRange),
}

impl Outbox {
    /// Appends what `write` puts into the buffer of headers.
    pub(super) fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.heads.len();
        write(&mut self.heads);
        let added = self.heads.len() - before;
        self.queued += added as u64;
        match self.pieces.back_mut() {
            Some(Piece::Heads(len)) => *len += added,
            _ => self.pieces.push_back(Piece::Heads(added)),
        }
    }

    /// Appends data.
    pub(super) fn data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.queued += data.len() as u64;
            self.pieces.push_back(Piece::Data(data));
        }
    }

    /// Appends what is lent.
    pub(super) fn lent(&mut self, range: LentRange) {
        self.queued += range.len;
        self.pieces.push_back(Piece::Lent(range));
    }

    /// What is lent and next, when one is.
    pub(super) fn next_lent(&self) -> Option<&LentRange> {
        match self.pieces.front() {
            Some(Piece::Lent(range)) => Some(range),
            _ => None,
        }
    }

    /// Ends a reply. `reserved` is given back when it has left.
    pub(super) fn end_reply(&mut self, reserved: u64) {
        self.ends.push_back((self.queued, reserved));
    }

    /// How many bytes wait.
    pub(super) const fn waiting(&self) -> u64 {
        self.queued - self.written
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Shows the first pieces to `write`, up to what is lent.
    pub(super) fn with_slices<R>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut at = self.heads_at;
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
            *slot = IoSlice::new(match piece {
                Piece::Heads(len) => {
                    at += len;
                    &self.heads[at - len..at]
                }
                Piece::Data(data) => data,
                Piece::Lent(_) => break,
            });
            used += 1;
        }
        write(&slices[..used])
    }

    /// Takes away `count` bytes from the front, which must be there.
    pub(super) fn advance(&mut self, count: usize) -> Written {
        self.written += count as u64;
        let mut left = count;
        while left > 0 {
            match self.pieces.front_mut() {
                Some(Piece::Heads(len)) if *len > left => {
                    *len -= left;
                    self.heads_at += left;
                    left = 0;
                }
                Some(Piece::Heads(len)) => {
                    left -= *len;
                    self.heads_at += *len;
                    self.pieces.pop_front();
                }
                Some(Piece::Data(data)) if data.len() > left => {
                    data.advance(left);
                    left = 0;
                }
                Some(Piece::Data(data)) => {
                    left -= data.len();
                    self.pieces.pop_front();
                }
                Some(Piece::Lent(range)) if range.len > left as u64 => {
                    range.skip += left as u64;
                    range.len -= left as u64;
                    left = 0;
                }
                Some(Piece::Lent(range)) => {
                    // It is not more than what is left.
                    left -= usize::try_from(range.len).unwrap_or(left);
                    self.pieces.pop_front();
                }
                None => break,
            }
        }
        self.forget_heads();
        let mut written = Written::default();
        while let Some((end, reserved)) = self.ends.front() {
            if *end > self.written {
                break;
            }
            written.replies += 1;
            written.reserved += reserved;
            self.ends.pop_front();
        }
        written
    }

    /// Gives the room of sent headers back, so that a queue which never empties stays small.
    fn forget_heads(&mut self) {
        if self.heads_at == self.heads.len() {
            self.heads.clear();
            self.heads_at = 0;
            self.heads.shrink_to(64 << 10);
        } else if self.heads_at >= 64 << 10 {
            self.heads.drain(..self.heads_at);
            self.heads_at = 0;
        }
    }

    /// Drops everything; what was reserved for it.
    pub(super) fn clear(&mut self) -> u64 {
        let dropped = std::mem::take(self);
        dropped.ends.iter().map(|(_, reserved)| reserved).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{LentRange, Outbox, Written};
    use crate::Lend;
    use bytes::Bytes;
    use std::io;
    use std::os::fd::BorrowedFd;
    use std::rc::Rc;

    #[derive(Debug)]
    struct Nobody;

    impl Lend for Nobody {
        fn send(&self, _: BorrowedFd<'_>, _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn content(outbox: &Outbox) -> Vec<u8> {
        outbox.with_slices(|slices| slices.iter().flat_map(|slice| slice.to_vec()).collect())
    }

    #[test]
    fn replies_are_released_when_their_last_byte_has_left() {
        let mut outbox = Outbox::default();
        outbox.head(|out| out.extend(b"head1"));
        outbox.data(Bytes::from_static(b"data1"));
        outbox.end_reply(100);
        outbox.head(|out| out.extend(b"head2"));
        outbox.end_reply(1);
        outbox.head(|out| out.extend(b"head3"));
        outbox.end_reply(2);
        assert_eq!(content(&outbox), b"head1data1head2head3");
        assert_eq!(outbox.advance(9), Written::default());
        assert_eq!(content(&outbox), b"1head2head3");
        assert_eq!(outbox.advance(1), Written { replies: 1, reserved: 100 });
        assert_eq!(outbox.advance(6), Written { replies: 1, reserved: 1 });
        assert_eq!(content(&outbox), b"ead3");
        assert_eq!(outbox.advance(4), Written { replies: 1, reserved: 2 });
        assert!(outbox.is_empty());
    }

    #[test]
    fn what_is_lent_goes_alone_and_in_its_turn() {
        let from = Rc::new(Nobody);
        let mut outbox = Outbox::default();
        outbox.head(|out| out.extend(b"head"));
        outbox.lent(LentRange { from, skip: 50, len: 10 });
        outbox.data(Bytes::from_static(b"data"));
        outbox.end_reply(7);
        assert_eq!((content(&outbox), outbox.waiting()), (b"head".to_vec(), 18));
        assert!(outbox.next_lent().is_none());
        assert_eq!(outbox.advance(4), Written::default());
        assert_eq!(content(&outbox), b"");
        assert_eq!(outbox.next_lent().map(|range| (range.skip, range.len)), Some((50, 10)));
        assert_eq!(outbox.advance(4), Written::default());
        assert_eq!(outbox.next_lent().map(|range| (range.skip, range.len)), Some((54, 6)));
        assert_eq!(outbox.advance(6), Written::default());
        assert_eq!(content(&outbox), b"data");
        assert_eq!(outbox.advance(4), Written { replies: 1, reserved: 7 });
    }

    #[test]
    fn a_queue_that_never_empties_does_not_grow() {
        let mut outbox = Outbox::default();
        outbox.head(|out| out.push(0));
        for _ in 0..100_000 {
            outbox.head(|out| out.extend([0; 16]));
            outbox.end_reply(0);
            outbox.advance(16);
        }
        assert!(outbox.heads.capacity() < 300 << 10);
        assert_eq!(content(&outbox).len(), 1);
    }
}
