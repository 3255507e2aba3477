//! The newest payloads, in memory: so that reads and write-back need not read the segments, and so
//! that a failed sync loses nothing.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// Payloads by segment and place in its file. The oldest go first when there are too many bytes.
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    payloads: HashMap<(u64, u64), Bytes>,
    order: VecDeque<(u64, u64)>,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, payloads: HashMap::new(), order: VecDeque::new() }
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

    pub(super) fn get(&self, segment: u64, offset: u64) -> Option<&Bytes> {
        self.payloads.get(&(segment, offset))
    }

    /// Nothing of it is needed any more.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;
    use bytes::Bytes;

    #[test]
    fn the_oldest_go_first() {
        let mut cache = Cache::new(8192);
        for n in 0..3_u8 {
            cache.insert(1, u64::from(n), Bytes::from(vec![n; 4096]));
        }
        assert!(cache.get(1, 0).is_none());
        assert_eq!(cache.get(1, 2).unwrap()[..], [2; 4096]);
        assert_eq!((cache.bytes, cache.payloads.len(), cache.order.len()), (8192, 2, 2));
        cache.insert(1, 2, Bytes::from(vec![9; 100]));
        assert_eq!((cache.bytes, cache.order.len()), (4196, 2));
        assert!(cache.get(2, 2).is_none());
    }
}
