//! Words of the journal: where in it, and when.

use std::fmt;

/// A place in the journal of a resource: the byte address in the endless row of all frames, the
/// same on every node that has the journal. Later records have greater positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct LogPosition(pub u64);

impl LogPosition {
    /// Where every journal begins.
    pub const START: Self = Self(0);

    /// This place and `bytes` more; saturates.
    #[must_use]
    pub const fn after(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// The bytes from `earlier` to here; 0 when it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}

/// A hybrid time: the wall clock of a writer, kept from ever going back by a counter.
///
/// The upper 48 bits are milliseconds since 1970-01-01 UTC, the lower 16 tell times of one
/// millisecond apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// The first time of this millisecond. Times past the year 10889 are the last one there is.
    #[must_use]
    pub const fn from_unix_millis(millis: u64) -> Self {
        if millis < 1 << 48 { Self(millis << 16) } else { Self(u64::MAX) }
    }

    /// Milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn unix_millis(self) -> u64 {
        self.0 >> 16
    }

    /// The time of something that happens now, by a clock that says `now`, after something that
    /// happened at `self`: `now`, or the next time after `self` when the clock is not past it.
    #[must_use]
    pub const fn next(self, now: Self) -> Self {
        if now.0 > self.0 { now } else { Self(self.0.saturating_add(1)) }
    }
}

impl fmt::Debug for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.unix_millis(), self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::{HybridTime, LogPosition};

    #[test]
    fn time_never_goes_back() {
        let at = HybridTime::from_unix_millis;
        assert_eq!(at(5).next(at(6)), at(6));
        assert!(at(5).next(at(5)) > at(5) && at(5).next(at(3)) > at(5));
        assert_eq!(at(5).next(at(3)).unix_millis(), 5);
        assert_eq!(at(u64::MAX).next(at(1)), at(u64::MAX));
    }

    #[test]
    fn positions_do_not_overflow() {
        assert_eq!(LogPosition(7).since(LogPosition(9)), 0);
        assert_eq!(LogPosition(9).since(LogPosition(7)), 2);
        assert_eq!(LogPosition(u64::MAX).after(1), LogPosition(u64::MAX));
    }
}
