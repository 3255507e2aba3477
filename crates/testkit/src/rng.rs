/// Random numbers that are the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts a sequence.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// `count` different numbers below `limit`, in random order.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn distinct(&mut self, count: usize, limit: u64) -> Vec<u64> {
        assert!(count as u64 <= limit, "there are no {count} numbers below {limit}");
        let mut seen = std::collections::HashSet::new();
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let number = self.below(limit);
            if seen.insert(number) {
                found.push(number);
            }
        }
        found
    }

    /// Fills a buffer.
    pub fn fill(&mut self, data: &mut [u8]) {
        for part in data.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence() {
        let numbers = Rng::new(7).distinct(100, 100);
        assert_eq!(numbers, Rng::new(7).distinct(100, 100));
        assert_ne!(numbers, Rng::new(8).distinct(100, 100));
        let mut sorted = numbers;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u64>>());
    }
}
