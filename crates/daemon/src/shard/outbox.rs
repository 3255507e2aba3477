//! Messages that wait for their link.

use bytes::{Buf, Bytes};
use holdfast_wire::{Message, encode};
use std::collections::VecDeque;
use std::io::IoSlice;

/// How many pieces are offered to the stream at a time.
const MAX_SLICES: usize = 64;
/// Sent headers are removed from memory when there are so many bytes of them.
const COMPACT: usize = 64 << 10;

/// Headers and bodies lie one behind the other in one buffer; payloads are never copied.
#[derive(Default)]
pub(super) struct Outbox {
    heads: Vec<u8>,
    /// How much of `heads` has been sent.
    heads_at: usize,
    pieces: VecDeque<Piece>,
    /// Bytes that wait.
    waiting: usize,
}

enum Piece {
    /// So many bytes of `heads`.
    Heads(usize),
    Payload(Bytes),
}

impl Outbox {
    /// Appends a message.
    pub(super) fn push(&mut self, message: &Message) {
        let before = self.heads.len();
        encode(message, &mut self.heads);
        let added = self.heads.len() - before;
        self.waiting += added;
        match self.pieces.back_mut() {
            Some(Piece::Heads(len)) => *len += added,
            _ => self.pieces.push_back(Piece::Heads(added)),
        }
        if let Some(payload) = message.payload() {
            self.waiting += payload.len();
            self.pieces.push_back(Piece::Payload(payload.clone()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// How many bytes wait.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Calls `write` with what is to be sent next.
    pub(super) fn with_slices<T>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut at = self.heads_at;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(match piece {
                Piece::Heads(len) => {
                    at += len;
                    &self.heads[at - len..at]
                }
                Piece::Payload(payload) => payload,
            });
            count += 1;
        }
        write(&slices[..count])
    }

    /// So many bytes have been sent.
    pub(super) fn advance(&mut self, mut count: usize) {
        self.waiting -= count;
        while count > 0 {
            let Some(piece) = self.pieces.front_mut() else { break };
            let step = match piece {
                Piece::Heads(len) => {
                    let step = count.min(*len);
                    *len -= step;
                    self.heads_at += step;
                    if *len > 0 {
                        break;
                    }
                    step
                }
                Piece::Payload(payload) => {
                    let step = count.min(payload.len());
                    payload.advance(step);
                    if !payload.is_empty() {
                        break;
                    }
                    step
                }
            };
            count -= step;
            self.pieces.pop_front();
        }
        if self.heads_at == self.heads.len() {
            self.heads.clear();
            self.heads_at = 0;
        } else if self.heads_at >= COMPACT {
            self.heads.drain(..self.heads_at);
            self.heads_at = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Outbox;
    use bytes::Bytes;
    use holdfast_units::{ByteRange, PeerSet};
    use holdfast_wire::{Message, WriteKind, encode};

    fn write(seq: u64, payload: Bytes) -> Message {
        Message::Write {
            seq,
            range: ByteRange::new(0, payload.len() as u64),
            kind: WriteKind::Data,
            fua: false,
            missing: PeerSet::EMPTY,
            settled: 0,
            payload,
        }
    }

    #[test]
    fn every_byte_leaves_once_and_in_order_whatever_is_taken_at_a_time() {
        for step in [1, 7, 100, 5000, usize::MAX] {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            let mut sent = Vec::new();
            for round in 0..200_u64 {
                for message in
                    [write(round, Bytes::from(vec![round.to_le_bytes()[0]; 4096])), Message::Ping]
                {
                    encode(&message, &mut expected);
                    expected.extend_from_slice(message.payload().map_or(&[], |p| &p[..]));
                    outbox.push(&message);
                }
                for _ in 0..3 {
                    take(&mut outbox, step, &mut sent);
                }
                assert_eq!(outbox.waiting(), expected.len() - sent.len());
            }
            while !outbox.is_empty() {
                take(&mut outbox, step.max(100), &mut sent);
            }
            assert_eq!(outbox.waiting(), 0);
            assert!(sent == expected);
        }
    }

    fn take(outbox: &mut Outbox, step: usize, sent: &mut Vec<u8>) {
        let count = outbox.with_slices(|slices| {
            let mut left = step;
            for slice in slices {
                let part = left.min(slice.len());
                sent.extend_from_slice(&slice[..part]);
                left -= part;
            }
            step - left
        });
        outbox.advance(count);
    }
}
