//! Whether servers hold what they should, as far as looking at some places tells.

use super::{Mirror, Shape};
use crate::client::engine::Engine;
use crate::client::order::Access;
use crate::client::remembered::{Remembered, print};
use crate::client::request::{RemoteFailure, RemoteRequest};
use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How many places are chosen by chance: anywhere, and near each place that was written to.
const ANYWHERE: usize = 512;
const NEARBY: usize = 8;
/// How far "near" is.
const NEAR: u64 = super::book::EXTENT;
/// How many places are looked at, at a time.
const AT_A_TIME: usize = 32;

/// What came of a look at a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Nothing else than was expected, as far as it could be read.
    Same,
    /// Something else, at this byte.
    Different(u64),
    /// It does not answer.
    Nothing,
}

/// These places, some near them and some by chance, whole blocks of the servers.
pub(super) fn places_to_compare(shape: Shape, known: &[ByteRange]) -> Vec<ByteRange> {
    let unit = BLOCK_SIZE.max(shape.block.into());
    let count = shape.size.div_ceil(unit).max(1);
    let chance = RandomState::new();
    let mut drawn = 0_u64;
    let mut draw = |below: u64| {
        let mut hasher = chance.build_hasher();
        hasher.write_u64(drawn);
        drawn += 1;
        hasher.finish() % below.max(1)
    };
    let mut blocks: BTreeSet<u64> = known.iter().map(|range| range.offset / unit).collect();
    for range in known {
        let first = range.offset / NEAR * NEAR / unit;
        blocks.extend((0..NEARBY).map(|_| first + draw(NEAR / unit)));
    }
    blocks.extend((0..ANYWHERE).map(|_| draw(count)));
    let range = |block: u64| {
        let offset = block * unit;
        ByteRange::new(offset, unit.min(shape.size - offset))
    };
    blocks.into_iter().filter(|block| *block < count).map(range).collect()
}

/// Whether a server holds what is remembered.
pub(super) async fn holds(
    engine: &Rc<Engine>,
    remembered: &Remembered,
    patience: Duration,
) -> Found {
    let ranges: Vec<_> = remembered.places().iter().map(|(range, _)| *range).collect();
    let Some(data) = look(engine, &ranges, patience).await else { return Found::Nothing };
    for ((range, due), data) in remembered.places().iter().zip(data) {
        if data.is_some_and(|data| print(&data) != *due) {
            return Found::Different(range.offset);
        }
    }
    Found::Same
}

/// Whether two servers, which nobody writes to, hold the same in some places.
pub(super) async fn equal(
    one: &Rc<Engine>,
    other: &Rc<Engine>,
    ranges: &[ByteRange],
    patience: Duration,
) -> Found {
    for some in ranges.chunks(AT_A_TIME) {
        let both = tokio::join!(look(one, some, patience), look(other, some, patience));
        let (Some(here), Some(there)) = both else { return Found::Nothing };
        for (range, (here, there)) in some.iter().zip(here.into_iter().zip(there)) {
            if let (Some(here), Some(there)) = (here, there)
                && here != there
            {
                return Found::Different(range.offset);
            }
        }
    }
    Found::Same
}

/// What a server holds there, `None` where it cannot be read; `None` when it does not answer.
async fn look(
    engine: &Rc<Engine>,
    ranges: &[ByteRange],
    patience: Duration,
) -> Option<Vec<Option<Bytes>>> {
    let begun: Vec<_> =
        ranges.iter().map(|range| engine.begin(RemoteRequest::Read { range: *range })).collect();
    let all = async {
        let mut found = Vec::new();
        for answer in begun {
            found.push(match answer.await {
                Ok(Ok(data)) => Some(data),
                Ok(Err(RemoteFailure::Server(_))) => None,
                Ok(Err(_)) | Err(_) => return None,
            });
        }
        Some(found)
    };
    tokio::time::timeout(patience, all).await.ok().flatten()
}

impl Mirror {
    /// Compares a leg with one in sync, where it lacks nothing. If they differ it is another disk or
    /// an older state of it, or somebody has written to it, and it lacks everything. False when
    /// something could not be read.
    pub(super) async fn prove(self: &Rc<Self>, leg: usize) -> bool {
        let (unproved, unknown) = {
            let state = self.state.borrow();
            (state.legs[leg].unproved, !state.legs[leg].was_in_sync)
        };
        if !unproved {
            return true;
        }
        let mut places = Vec::new();
        for one in self.in_sync().chain([leg]) {
            places.extend(self.legs[one].session.borrow().identity.recent());
        }
        if unknown {
            places.extend(self.legs[leg].session.borrow().identity.places());
            places.extend(&self.noted_places);
            places = places_to_compare(self.shape, &places);
        }
        let mut looks = JoinSet::new();
        let mut places = places.into_iter();
        let mut result = Found::Same;
        loop {
            let next = if result == Found::Same { places.next() } else { None };
            if let Some(range) = next {
                let mirror = Rc::clone(self);
                looks.spawn_local(async move { mirror.is_same_at(leg, range).await });
                if looks.len() < AT_A_TIME {
                    continue;
                }
            }
            match looks.join_next().await {
                Some(Ok(Found::Same)) => {}
                Some(found) => result = found.unwrap_or(Found::Nothing),
                None => break,
            }
        }
        match result {
            Found::Nothing => return false,
            Found::Different(_) => self.lacks_everything(leg),
            Found::Same => {}
        }
        self.state.borrow_mut().legs[leg].unproved = false;
        true
    }

    async fn is_same_at(self: &Rc<Self>, leg: usize, range: ByteRange) -> Found {
        let mut turn = self.enter(self.number(), range, Access::Read);
        turn.comes().await;
        if self.state.borrow().legs[leg].missing.touches(range) {
            return Found::Same;
        }
        let Ok(due) = self.read(range).await else { return Found::Nothing };
        match self.legs[leg].ask(RemoteRequest::Read { range }).await {
            Ok(found) if found == due => Found::Same,
            Ok(_) => Found::Different(range.offset),
            Err(_) => {
                self.demote(leg);
                Found::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_inside_and_whole_blocks() {
        for (size, block) in [(512, 512), (5120, 512), (1 << 20, 65_536), (1 << 40, 4096)] {
            let shape = Shape { size, block, read_only: false };
            let unit = BLOCK_SIZE.max(block.into());
            let known = [ByteRange::new(0, unit.min(size))];
            let places = places_to_compare(shape, &known);
            assert!(places.contains(&known[0]));
            let fits = |range: &ByteRange| {
                range.offset.is_multiple_of(unit) && !range.is_empty() && range.end() <= size
            };
            assert!(places.iter().all(fits), "{size}: {places:?}");
            assert!(size < 1 << 30 || places.len() > ANYWHERE, "{}", places.len());
        }
    }
}
