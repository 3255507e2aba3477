//! How long each stage of the way of a request takes: from a client's request to its answer, on the
//! disk, at each peer.
//!
//! One owner each, on the thread of the resource: plain numbers that only grow, no lock, and no
//! allocation in the steady state. The control plane gets a copy when somebody asks.

use super::vitals::NumberHasher;
use holdfast_api::latency::BUCKET_BOUNDS_MICROS;
use holdfast_store::OpKind;
use holdfast_units::NodeId;
use holdfast_wire::Message;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::{Duration, Instant};

/// So many messages that a peer has not answered are known. Of those above it, which only a peer that
/// answers nothing for a long time brings about, the times are not counted.
const MOST_UNANSWERED: usize = 1 << 16;

/// What a request or an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StageOp {
    /// Reads.
    Read,
    /// Stores data.
    Write,
    /// Stores zeroes, or gives space back.
    Discard,
    /// Makes durable.
    Flush,
}

impl StageOp {
    /// All of them, by their index.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Discard, Self::Flush];

    /// Its place in a row of [`Spread`]s.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Discard => 2,
            Self::Flush => 3,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }
}

impl From<OpKind> for StageOp {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Read => Self::Read,
            OpKind::Write => Self::Write,
            OpKind::Discard | OpKind::WriteZeroes => Self::Discard,
            OpKind::Flush => Self::Flush,
        }
    }
}

/// How times are spread: their sum, and how many are in each bucket, which only grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spread {
    /// How many were above the bound before and not above that of the same index in
    /// [`BUCKET_BOUNDS_MICROS`]; the last one has what is above all bounds.
    pub buckets: [u64; BUCKET_BOUNDS_MICROS.len() + 1],
    /// Their sum in nanoseconds.
    pub sum_nanos: u64,
}

impl Spread {
    /// Counts a time.
    pub(super) fn note(&mut self, time: Duration) {
        // A time is in the bucket whose bound it does not exceed: parts of a microsecond count.
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let micros = nanos.div_ceil(1000);
        let at = BUCKET_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The times of one stage, by [`StageOp::index`].
pub type Spreads = [Spread; StageOp::ALL.len()];

/// The times of all stages of a resource since it was started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StageTimes {
    /// From the moment at which a client's request was read until it is answered, also while it waits
    /// for its turn.
    pub client: Spreads,
    /// Operations of the local disk, or of the journal before it, that went well; `None` without one.
    pub disk: Option<Spreads>,
    /// From the moment at which a write or flush is given to the connection until the peer has
    /// answered it.
    pub peers: Vec<(NodeId, Spreads)>,
}

/// Messages by their number: what they do, and when they were sent.
type Unanswered = HashMap<u64, (StageOp, Instant), BuildHasherDefault<NumberHasher>>;

/// The times of one peer.
#[derive(Default)]
pub(super) struct PeerTimes {
    writes: Unanswered,
    flushes: Unanswered,
    spreads: Box<Spreads>,
}

impl PeerTimes {
    /// A message is given to the connection.
    pub(super) fn sent(&mut self, message: &Message, now: Instant) {
        let (waiting, number, op) = match message {
            Message::Write { seq, payload, .. } if payload.is_empty() => {
                (&mut self.writes, *seq, StageOp::Discard)
            }
            Message::Write { seq, .. } => (&mut self.writes, *seq, StageOp::Write),
            Message::Flush { id } => (&mut self.flushes, *id, StageOp::Flush),
            _ => return,
        };
        if waiting.len() < MOST_UNANSWERED {
            waiting.insert(number, (op, now));
        }
    }

    /// A message has come.
    pub(super) fn came(&mut self, message: &Message, now: Instant) {
        let sent = match message {
            Message::WriteAck { seq, .. } => self.writes.remove(seq),
            Message::FlushAck { id, .. } => self.flushes.remove(id),
            _ => return,
        };
        if let Some((op, at)) = sent
            && let Some(spread) = self.spreads.get_mut(op.index())
        {
            spread.note(now.saturating_duration_since(at));
        }
    }

    /// The connection is another one: what was not answered never will be.
    pub(super) fn forget_unanswered(&mut self) {
        self.writes.clear();
        self.flushes.clear();
    }

    /// What came together.
    pub(super) fn spreads(&self) -> Spreads {
        *self.spreads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use holdfast_units::{ByteRange, PeerSet};
    use holdfast_wire::{PeerResult, WriteKind};

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let mut spread = Spread::default();
        for (nanos, at) in [
            (0, 0),
            (10_000, 0),
            (10_001, 1),
            (20_000, 1),
            (1_000_000, 6),
            (1_000_001, 7),
            (10_000_000_000, 18),
            (10_000_000_001, 19),
            (3_600_000_000_000, 19),
        ] {
            let before = spread.buckets[at];
            spread.note(Duration::from_nanos(nanos));
            assert_eq!(spread.buckets[at], before + 1, "{nanos}");
        }
        assert_eq!(spread.count(), 9);
        spread.note(Duration::MAX);
        assert_eq!((spread.count(), spread.sum_nanos), (10, u64::MAX));
    }

    #[test]
    fn a_peer_is_timed_from_the_message_to_its_answer_and_no_longer_than_its_connection() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let write = |seq, payload: &'static [u8]| Message::Write {
            seq,
            range: ByteRange::new(0, 4096),
            kind: if payload.is_empty() { WriteKind::Zeroes } else { WriteKind::Data },
            fua: false,
            missing: PeerSet::EMPTY,
            settled: 0,
            payload: Bytes::from_static(payload),
        };
        let ack = |seq| Message::WriteAck { seq, result: PeerResult::Ok };
        let mut peer = PeerTimes::default();
        peer.sent(&write(1, b"x"), at(0));
        peer.sent(&write(2, b""), at(1));
        // Numbers of flushes and of writes have nothing to do with each other.
        peer.sent(&Message::Flush { id: 1 }, at(2));
        peer.sent(&Message::Ping, at(2));
        peer.came(&ack(2), at(4));
        peer.came(&Message::FlushAck { id: 1, result: PeerResult::Ok }, at(9));
        peer.came(&ack(1), at(40));
        // Nobody waits for these.
        peer.came(&ack(1), at(41));
        peer.came(&ack(77), at(41));
        let sums = peer.spreads().map(|spread| (spread.count(), spread.sum_nanos / 1_000_000));
        assert_eq!(sums, [(0, 0), (1, 40), (1, 3), (1, 7)]);
        peer.sent(&write(3, b"x"), at(50));
        peer.forget_unanswered();
        peer.came(&ack(3), at(60));
        assert_eq!(peer.spreads()[StageOp::Write.index()].count(), 1);
        for seq in 0..=MOST_UNANSWERED as u64 {
            peer.sent(&write(seq, b"x"), at(70));
        }
        assert_eq!(peer.writes.len(), MOST_UNANSWERED);
    }
}
