//! The newest payloads, in memory: so that reads and write-back need not read the segments, and so
//! that a failed sync loses nothing.

use bytes::Bytes;
use holdfast_format::journal::Compression;
use holdfast_journal::{Place, decompress};
use std::collections::{HashMap, VecDeque};

/// So many payloads are kept unpacked: who reads a long one in small pieces unpacks it once.
const UNPACKED: usize = 4;

/// Payloads as they are stored, by segment and place in its file. The oldest go first when there
/// are too many bytes.
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    payloads: HashMap<(u64, u64), Bytes>,
    order: VecDeque<(u64, u64)>,
    /// The last ones that were unpacked.
    unpacked: VecDeque<((u64, u64), Bytes)>,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            payloads: HashMap::new(),
            order: VecDeque::new(),
            unpacked: VecDeque::with_capacity(UNPACKED),
        }
    }

    pub(super) fn insert(&mut self, segment: u64, offset: u64, payload: Bytes) {
        let key = (segment, offset);
        self.bytes += payload.len();
        if let Some(old) = self.payloads.insert(key, payload) {
            self.bytes -= old.len();
        } else {
            self.order.push_back(key);
        }
        while self.bytes > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            let gone = self.payloads.remove(&oldest);
            self.bytes -= gone.map_or(0, |payload| payload.len());
        }
    }

    /// Whether a payload is in memory.
    pub(super) fn has(&self, place: &Place) -> bool {
        self.payloads.contains_key(&(place.segment, place.offset))
    }

    /// The payload as it was submitted.
    pub(super) fn get(&mut self, place: &Place) -> Option<Bytes> {
        let key = (place.segment, place.offset);
        if place.compression == Compression::None {
            let payload = self.payloads.get(&key)?;
            return (payload.len() as u64 == place.plain_len).then(|| payload.clone());
        }
        if let Some((_, plain)) = self.unpacked.iter().find(|(of, _)| *of == key) {
            return Some(plain.clone());
        }
        let stored = self.payloads.get(&key)?;
        // What a record may be was checked when it was made or read.
        let plain = decompress(place.compression, stored, usize::try_from(place.plain_len).ok()?);
        let plain = plain.ok()?;
        self.unpacked(place, plain.clone());
        Some(plain)
    }

    /// A compressed payload, as it was submitted.
    pub(super) fn unpacked(&mut self, place: &Place, plain: Bytes) {
        while self.unpacked.len() >= UNPACKED {
            self.unpacked.pop_front();
        }
        self.unpacked.push_back(((place.segment, place.offset), plain));
    }

    /// Nothing of it is needed any more.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, UNPACKED};
    use bytes::Bytes;
    use holdfast_format::journal::Compression;
    use holdfast_journal::{Place, compress};

    fn place(segment: u64, offset: u64, plain_len: u64) -> Place {
        let stored_len = u32::try_from(plain_len).unwrap();
        let compression = Compression::None;
        Place { segment, offset, stored_len, plain_len, compression, stored_crc: 0, crc: 0 }
    }

    #[test]
    fn the_oldest_go_first() {
        let mut cache = Cache::new(8192);
        for n in 0..3_u8 {
            cache.insert(1, u64::from(n), Bytes::from(vec![n; 4096]));
        }
        assert!(cache.get(&place(1, 0, 4096)).is_none());
        assert_eq!(cache.get(&place(1, 2, 4096)).unwrap()[..], [2; 4096]);
        assert_eq!((cache.bytes, cache.payloads.len(), cache.order.len()), (8192, 2, 2));
        cache.insert(1, 2, Bytes::from(vec![9; 100]));
        assert_eq!((cache.bytes, cache.order.len()), (4196, 2));
        assert!(cache.get(&place(2, 2, 100)).is_none());
    }

    #[test]
    fn what_is_compressed_is_given_as_it_was_submitted() {
        for compression in [Compression::Lz4, Compression::Zstd] {
            let mut cache = Cache::new(1 << 20);
            for n in 0..10_u8 {
                let stored = compress(compression, &[n; 65536]).unwrap();
                assert!(stored.len() < 1000);
                cache.insert(1, u64::from(n), stored);
            }
            for n in (0..10_u8).chain(0..10) {
                let place = Place { compression, ..place(1, u64::from(n), 65536) };
                assert_eq!(cache.get(&place).unwrap()[..], [n; 65536]);
                assert!(cache.unpacked.len() <= UNPACKED);
                let wrong = Place { plain_len: 65535, offset: u64::from((n + 5) % 10), ..place };
                assert!(cache.get(&wrong).is_none(), "it is not so long");
            }
            cache.clear();
            let place = Place { compression, ..place(1, 9, 65536) };
            assert!(cache.get(&place).is_none());
        }
    }
}
