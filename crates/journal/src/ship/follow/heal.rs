//! Blocks of the disk that cannot be read, or are not what was written: they are noted, and stored again
//! from the journal here or from the leader. `docs/design/log.md` says why that is the state that the
//! disk is.

use super::super::codec::MAX_HEALED;
use super::super::message::{Block, Request};
use super::types::{FollowError, Healed, Holding};
use super::{Asked, Follower};
use crate::compress::decompress;
use crate::driver::{Backing, Files, Losses, Seen};
use crate::index::RunPiece;
use crate::ranges::RangeSet;
use crate::salvage::{Held, Salvage};
use bytes::Bytes;
use holdfast_format::BLOCK_LEN;
use holdfast_units::{BLOCK_SIZE, ByteRange, LogPosition, MAX_REQUEST};
use std::io;

/// So many stretches of losses are told.
const SHOWN: usize = 64;
/// So many blocks are looked for at a time.
const BATCH: u64 = (16 << 10) * BLOCK_SIZE;
/// So many of them are stored again in a step: what is replayed waits for it.
const STEP: u64 = 32 * BLOCK_SIZE;
/// What could not be had, or not be stored, is tried again so long after: then twice as long, up to so
/// many times, as each time may cost the leader's disk a search for a sector that is gone.
const AGAIN_MS: u64 = 5_000;
const MOST_DOUBLED: u32 = 10;
/// When the list could not be kept, that is tried again so long after.
const KEEP_AGAIN_MS: u64 = 5_000;

/// All of it.
pub(super) struct Healing {
    losses: Losses,
    /// The list that is kept is another one; when to try to keep it.
    unkept: Option<u64>,
    /// Why it could not be, the last time.
    unkept_why: Option<String>,
    /// Parts to be looked at, the next one last.
    looks: Vec<ByteRange>,
    /// Blocks without a good copy that looks have found.
    found: u64,
    /// Losses that were not looked for yet.
    unsearched: RangeSet,
    /// Losses that the journal here does not have.
    absent: RangeSet,
    /// Losses of which the leader has no good copy of all of their neighbours: they are asked for one by one.
    single: RangeSet,
    /// What could not be had, or is still to come by the replay; and when it is looked for again.
    later: (RangeSet, u64),
    /// How often that was in vain.
    in_vain: u32,
    /// Those of them that are still to come by the replay.
    to_come: RangeSet,
    /// Losses that were written to since the last flush of the disk.
    stored: RangeSet,
    attempt: Option<Attempt>,
    /// The leader gives what is lost.
    pub(super) leader_gives: bool,
    healed: u64,
    shown: Healed,
}

/// Blocks that are being looked for. Those that are written to meanwhile are not among them any more.
struct Attempt {
    blocks: RangeSet,
    step: Step,
}

enum Step {
    /// The newest record here that was replayed.
    Own(Salvage),
    /// What that has found is being stored.
    Here(Salvage),
    /// The leader was asked.
    Asked(ByteRange),
    /// The leader has given it; the journal up to then is fetched.
    Given(Given),
    /// It is looked for records that are still to come over it.
    Checked(Given, Salvage),
}

/// What the leader has of a part.
struct Given {
    range: ByteRange,
    data: Bytes,
    /// It is no later than this.
    position: LogPosition,
}

impl Healing {
    pub(super) fn new(losses: Losses) -> Self {
        let mut healing = Self {
            unsearched: losses.all(),
            losses,
            unkept: None,
            unkept_why: None,
            looks: Vec::new(),
            found: 0,
            absent: RangeSet::new(),
            single: RangeSet::new(),
            later: (RangeSet::new(), 0),
            in_vain: 0,
            to_come: RangeSet::new(),
            stored: RangeSet::new(),
            attempt: None,
            leader_gives: false,
            healed: 0,
            shown: Healed::default(),
        };
        healing.show();
        healing
    }

    /// What was being done is of no use any more: the disk or the journal is another one. What was
    /// written to what is lost counts when it is flushed, as before.
    pub(super) fn begin_again(&mut self) {
        self.attempt = None;
        self.in_vain = 0;
        self.unsearched = self.losses.all();
        self.stored.iter().for_each(|stored| self.unsearched.remove(stored));
        (self.absent, self.single, self.later) =
            (RangeSet::new(), RangeSet::new(), (RangeSet::new(), 0));
        self.to_come = RangeSet::new();
    }

    /// The leader is gone, or is met: what it has not given, it may give then.
    pub(super) fn leader_changes(&mut self) {
        let here = |attempt: &Attempt| matches!(attempt.step, Step::Own(_) | Step::Here(_));
        if let Some(attempt) = self.attempt.take_if(|attempt| !here(attempt)) {
            self.absent.extend(&attempt.blocks);
        }
        self.absent.extend(&std::mem::take(&mut self.later.0));
        self.in_vain = 0;
    }

    /// When what is in vain now is tried again.
    fn again_at(&self, now_ms: u64) -> u64 {
        now_ms + (AGAIN_MS << self.in_vain.min(MOST_DOUBLED))
    }

    /// What was asked for does not come: it is asked for again later, block by block, as the leader may
    /// have a disk that hangs.
    pub(super) fn not_given(&mut self, now_ms: u64) {
        let Some(attempt) = self.attempt.take_if(|a| matches!(a.step, Step::Asked(_))) else {
            return;
        };
        self.single.extend(&attempt.blocks);
        self.later = (union(&self.later.0, &attempt.blocks), self.again_at(now_ms));
    }

    /// A part of the disk was written, by the replay or a filling.
    pub(super) fn stored(&mut self, range: ByteRange) {
        self.strike(range);
        for set in [&self.losses.old, &self.losses.unread] {
            let mut rest = range;
            while let Some(part) = first_in(set, rest) {
                self.stored.insert(part);
                rest = ByteRange::new(part.end(), range.end() - part.end());
            }
        }
    }

    /// Nothing is stored again in this part: what would be, is or may become older than what the disk has.
    fn strike(&mut self, range: ByteRange) {
        let (later, to_come) = (&mut self.later.0, &mut self.to_come);
        for set in [&mut self.unsearched, &mut self.absent, &mut self.single, later, to_come] {
            set.remove(range);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.blocks.remove(range);
        }
    }

    fn found_good(&mut self, range: ByteRange) {
        if self.losses.overlaps(range) {
            self.losses.stored(range);
            self.unkept.get_or_insert(0);
        }
    }

    /// A part of the disk can be read. What could not be before can be again; what is not what was
    /// written is not right because it can be read, and what was written counts when it is flushed.
    fn seen_good(&mut self, range: ByteRange) {
        let mut good = RangeSet::new();
        good.insert(range);
        self.stored.iter().for_each(|stored| good.remove(stored));
        for range in good.iter() {
            while let Some(part) = first_in(&self.losses.unread, range) {
                self.losses.unread.remove(part);
                self.unkept.get_or_insert(0);
                self.strike(part);
            }
        }
    }

    /// A block of the disk has no good copy.
    fn seen_lost(&mut self, range: ByteRange, seen: Seen) {
        self.stored.remove(range);
        let known = match seen {
            Seen::Old => self.losses.old.overlaps(range),
            Seen::Unread => self.losses.overlaps(range),
        };
        if !known {
            let before = self.losses.blocks();
            self.losses.lose(range, seen);
            self.unkept.get_or_insert(0);
            if self.losses.blocks() > before + range.len / BLOCK_SIZE {
                // What lies between others counts as lost with them, and is to be found, too.
                self.begin_again();
                return;
            }
        }
        if !self.is_tried(range) {
            self.unsearched.insert(range);
        }
    }

    /// The leader has no good copy of a part that it was to give.
    pub(super) fn lost_there(&mut self, range: ByteRange) {
        for block in range.blocks() {
            self.seen_lost(ByteRange::of_blocks(block..block + 1), Seen::Old);
        }
    }

    /// Whether the list is as it is kept.
    pub(super) const fn is_kept(&self) -> bool {
        self.unkept.is_none()
    }

    /// Whether the list is as it is kept, or it may be tried to keep it.
    pub(super) fn may_be_kept(&self, now_ms: u64) -> bool {
        self.unkept.is_none_or(|at| at <= now_ms)
    }

    /// Whether something is done about a block.
    fn is_tried(&self, range: ByteRange) -> bool {
        let tried = self.attempt.as_ref().is_some_and(|attempt| attempt.blocks.overlaps(range));
        tried || [&self.absent, &self.later.0].iter().any(|set| set.overlaps(range))
    }

    /// How that goes, for people.
    pub(super) fn status(&self) -> Healed {
        let asks = self.leader_gives && !self.absent.is_empty();
        Healed {
            healed: self.healed,
            to_come: self.to_come.bytes() / BLOCK_SIZE,
            trying: asks || self.attempt.is_some() || !self.unsearched.is_empty(),
            unkept: self.unkept_why.clone(),
            ..self.shown.clone()
        }
    }

    fn show(&mut self) {
        self.shown = Healed {
            healed: self.healed,
            blocks: self.losses.blocks(),
            old: self.losses.old.bytes() / BLOCK_SIZE,
            first: self.losses.all().iter().take(SHOWN).collect(),
            ..Healed::default()
        };
    }
}

fn union(a: &RangeSet, b: &RangeSet) -> RangeSet {
    let mut both = a.clone();
    both.extend(b);
    both
}

/// The first part of a set that lies in a range.
fn first_in(set: &RangeSet, range: ByteRange) -> Option<ByteRange> {
    let found = set.next_from(range.offset).filter(|found| found.offset < range.end())?;
    Some(ByteRange::new(found.offset, found.end().min(range.end()) - found.offset))
}

/// Takes blocks out of a set, at most `most` bytes of them: the first ones, or the first in one piece.
fn take(set: &mut RangeSet, most: u64, one_piece: bool) -> RangeSet {
    let mut taken = RangeSet::new();
    let mut left = most;
    while left > 0
        && let Some(first) = set.next_from(0)
    {
        let part = ByteRange::new(first.offset, first.len.min(left));
        set.remove(part);
        taken.insert(part);
        left -= part.len;
        if one_piece {
            break;
        }
    }
    taken
}

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// Has a part of the disk read; what cannot be read, or is not what was written, is noted and stored
    /// again. It is done when [`Self::is_looking`] says so.
    pub fn look_at(&mut self, range: ByteRange) {
        self.healing.looks.push(range);
    }

    /// Whether there is still something to be looked at.
    #[must_use]
    pub fn is_looking(&self) -> bool {
        !self.healing.looks.is_empty()
    }

    /// How many blocks without a good copy were found by looking, since this was asked last.
    pub fn take_found(&mut self) -> u64 {
        std::mem::take(&mut self.healing.found)
    }

    /// Everything that the disk has lost is looked for again at once.
    pub fn heal_again(&mut self) {
        self.healing.begin_again();
    }

    /// The blocks of which the disk has no good copy.
    #[must_use]
    pub const fn losses(&self) -> &Losses {
        &self.healing.losses
    }

    /// Does a bounded part of what is to be done about the blocks of which the disk has no good copy.
    /// Whether there is more to do at once.
    pub(super) fn heal(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        let looked = self.look_on()?;
        self.keep_losses(now_ms);
        if self.healing.losses.is_empty() && self.healing.attempt.is_none() {
            return Ok(looked);
        }
        // Only of a disk that is a state it is known what it is to hold; and what is being stored again is
        // on the list until it is durable.
        if !matches!(self.holding(), Holding::StateAt(_)) || !self.healing.is_kept() {
            return Ok(looked);
        }
        let moved = match self.healing.attempt.take() {
            None => self.begin_attempt(now_ms)?,
            Some(attempt) if attempt.blocks.is_empty() => true,
            Some(attempt) => self.go_on_with(attempt, now_ms)?,
        };
        self.keep_losses(now_ms);
        Ok(looked || moved)
    }

    /// Looks at the next part; whether there is another one.
    fn look_on(&mut self) -> Result<bool, FollowError> {
        let Some(range) = self.healing.looks.pop() else { return Ok(false) };
        let lost = self.disk.look(range).map_err(FollowError::Disk)?;
        if lost.iter().any(|(part, _)| *part == range) && range.len > BLOCK_SIZE {
            let half = (range.len / 2).next_multiple_of(BLOCK_SIZE);
            self.healing.looks.push(ByteRange::new(range.offset + half, range.len - half));
            self.healing.looks.push(ByteRange::new(range.offset, half));
        } else {
            let mut good = RangeSet::new();
            good.insert(range);
            for (part, seen) in lost {
                good.remove(part);
                self.healing.found += part.len / BLOCK_SIZE;
                for block in part.blocks() {
                    self.healing.seen_lost(ByteRange::of_blocks(block..block + 1), seen);
                }
            }
            good.iter().for_each(|part| self.healing.seen_good(part));
        }
        Ok(!self.healing.looks.is_empty())
    }

    /// The disk was flushed. What was lost and written since is no more so if it reads back: a disk may
    /// say that it wrote and did not.
    pub(super) fn check_stored(&mut self) -> Result<(), FollowError> {
        let mut stored = std::mem::take(&mut self.healing.stored);
        while !stored.is_empty() {
            let part = take(&mut stored, MAX_REQUEST, true);
            let Some(part) = part.iter().next() else { break };
            if self.disk.look(part).map_err(FollowError::Disk)?.is_empty() {
                self.healing.found_good(part);
                continue;
            }
            for block in part.blocks() {
                let block = ByteRange::of_blocks(block..block + 1);
                if !self.healing.losses.overlaps(block) {
                    continue;
                }
                match self.disk.look(block).map_err(FollowError::Disk)?.first() {
                    None => self.healing.found_good(block),
                    Some((_, seen)) => self.healing.seen_lost(block, *seen),
                }
            }
        }
        Ok(())
    }

    /// Keeps the list, if it is not as it is kept.
    pub(super) fn keep_losses(&mut self, now_ms: u64) {
        if self.healing.is_kept() || !self.healing.may_be_kept(now_ms) {
            return;
        }
        self.healing.show();
        let kept = self.disk.keep_losses(&self.healing.losses);
        self.healing.unkept = kept.is_err().then(|| now_ms.saturating_add(KEEP_AGAIN_MS));
        self.healing.unkept_why = kept.err().map(|error| error.to_string());
    }

    fn begin_attempt(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        if now_ms >= self.healing.later.1 && !self.healing.later.0.is_empty() {
            self.healing.in_vain += 1;
            // Not in the journal here: what was there, was there before.
            let later = std::mem::take(&mut self.healing.later.0);
            self.healing.absent.extend(&later);
        }
        if !self.healing.unsearched.is_empty() {
            let blocks = take(&mut self.healing.unsearched, BATCH, false);
            let (tail, to) = (self.log()?.journal().status().tail, self.applied);
            let search = self.search(&blocks, tail, to)?;
            self.healing.attempt = Some(Attempt { blocks, step: Step::Own(search) });
            return Ok(true);
        }
        self.ask_leader();
        Ok(false)
    }

    fn search(
        &self,
        blocks: &RangeSet,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Salvage, FollowError> {
        let blocks: Vec<u64> = blocks.iter().flat_map(ByteRange::blocks).collect();
        Ok(self.log()?.journal().search_between(blocks, from, to))
    }

    /// Asks the leader for what the journal here does not have.
    fn ask_leader(&mut self) {
        let may = self.follows() && !self.lent && self.healing.leader_gives;
        if !may || self.must_greet || self.state.fetch_paused || self.healing.absent.is_empty() {
            return;
        }
        let first = self.first;
        let free = self.conns.iter().filter(|(id, conn)| Some(**id) != first && conn.ready);
        let free = free.min_by_key(|(_, conn)| conn.asked.len());
        let Some((conn, used)) = free.map(|(id, conn)| (*id, conn.asked.len())) else { return };
        if used >= self.options.requests {
            return;
        }
        let most = match self.healing.absent.next_from(0) {
            Some(first) if self.healing.single.overlaps(first) => BLOCK_SIZE,
            _ => MAX_HEALED,
        };
        let blocks = take(&mut self.healing.absent, most, true);
        let Some(range) = blocks.iter().next() else { return };
        self.healing.attempt = Some(Attempt { blocks, step: Step::Asked(range) });
        self.send(conn, Request::Heal(range), Asked::Heal(self.round));
    }

    /// The leader's answer; whether the connection may go on.
    pub(super) fn given(
        &mut self,
        now_ms: u64,
        round: u64,
        position: LogPosition,
        block: &Block,
    ) -> bool {
        let asked = self.healing.attempt.take_if(|a| matches!(a.step, Step::Asked(_)));
        let Some(Attempt { blocks, step: Step::Asked(range) }) = asked else { return true };
        if round != self.round {
            self.healing.absent.extend(&blocks);
            return true;
        }
        if block.range.is_empty() {
            if range.len > BLOCK_SIZE {
                self.healing.single.extend(&blocks);
                self.healing.absent.extend(&blocks);
            } else {
                self.later(range, now_ms);
            }
            return true;
        }
        let len = usize::try_from(range.len).unwrap_or(usize::MAX);
        let data = if block.zeroes {
            Some(Bytes::from(vec![0; len]))
        } else {
            let bytes = decompress(block.compression, &block.bytes, len).ok();
            bytes.filter(|bytes| crc32c::crc32c(bytes) == block.crc)
        };
        let Some(data) = data.filter(|data| block.range == range && data.len() == len) else {
            self.healing.absent.extend(&blocks);
            return false;
        };
        self.transferred += block.bytes.len() as u64;
        let step = Step::Given(Given { range, data, position });
        self.healing.attempt = Some(Attempt { blocks, step });
        true
    }

    /// Whether something moved.
    fn go_on_with(&mut self, attempt: Attempt, now_ms: u64) -> Result<bool, FollowError> {
        let Attempt { mut blocks, step } = attempt;
        let (step, moved) = match step {
            Step::Asked(range) => (Step::Asked(range), false),
            Step::Given(_) if !self.healing.unsearched.is_empty() => {
                // It may have to wait for long until it can be used: what is here comes first.
                self.healing.absent.extend(&blocks);
                return Ok(true);
            }
            Step::Given(given) if self.durable() < given.position => (Step::Given(given), false),
            Step::Given(given) => {
                let search = self.search(&blocks, self.applied, given.position)?;
                (Step::Checked(given, search), true)
            }
            Step::Own(mut search) => match self.log()?.go_on_salvaging(&mut search) {
                true => (Step::Own(search), true),
                false => (Step::Here(search), true),
            },
            Step::Here(search) => {
                let now = take(&mut blocks, STEP, false);
                self.heal_from_here(&now, &search, now_ms)?;
                (Step::Here(search), true)
            }
            Step::Checked(given, mut search) => {
                if !self.log()?.go_on_salvaging(&mut search) {
                    return self.heal_from_leader(&blocks, &given, &search, now_ms).map(|()| true);
                }
                (Step::Checked(given, search), true)
            }
        };
        self.healing.attempt = Some(Attempt { blocks, step });
        Ok(moved)
    }

    /// What the newest record that was replayed says of a block is what the disk is to hold, as no
    /// record has come over it since.
    fn heal_from_here(
        &mut self,
        blocks: &RangeSet,
        search: &Salvage,
        now_ms: u64,
    ) -> Result<(), FollowError> {
        for block in blocks.iter().flat_map(ByteRange::blocks) {
            let range = ByteRange::of_blocks(block..block + 1);
            let data = match search.found().get(&block) {
                None => None,
                Some(Held::Zeroes) => Some(Bytes::from_static(&[0; BLOCK_LEN])),
                // One that cannot be read says nothing.
                Some(Held::Data { place, skip }) => {
                    let piece = RunPiece { range, place: *place, skip: *skip };
                    self.log()?.piece(&piece).ok()
                }
            };
            match data {
                Some(data) => self.store_again(range, &data, now_ms)?,
                None => self.healing.absent.insert(range),
            }
        }
        Ok(())
    }

    /// What the leader has given is what the disk is to hold when there is no record of it that is still to
    /// come. If there is one, it brings the block itself.
    fn heal_from_leader(
        &mut self,
        blocks: &RangeSet,
        given: &Given,
        search: &Salvage,
        now_ms: u64,
    ) -> Result<(), FollowError> {
        let comes = |range: &ByteRange| {
            search.is_broken() || range.blocks().any(|block| search.found().contains_key(&block))
        };
        for block in blocks.iter().flat_map(ByteRange::blocks) {
            let range = ByteRange::of_blocks(block..block + 1);
            if comes(&range) {
                self.healing.to_come.insert(range);
                self.later(range, now_ms);
                continue;
            }
            let from = usize::try_from(range.offset - given.range.offset).unwrap_or(usize::MAX);
            self.store_again(range, &given.data.slice(from..from + BLOCK_LEN), now_ms)?;
        }
        Ok(())
    }

    fn store_again(
        &mut self,
        range: ByteRange,
        data: &[u8],
        now_ms: u64,
    ) -> Result<(), FollowError> {
        if self.disk.repair(range.offset, data).map_err(FollowError::Disk)? {
            self.healing.in_vain = 0;
            self.healing.single.remove(range);
            self.healing.to_come.remove(range);
            self.healing.found_good(range);
            self.healing.healed += range.len / BLOCK_SIZE;
        } else {
            self.later(range, now_ms);
        }
        Ok(())
    }

    fn later(&mut self, range: ByteRange, now_ms: u64) {
        self.healing.later.0.insert(range);
        self.healing.later.1 = self.healing.again_at(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u64) -> ByteRange {
        ByteRange::of_blocks(number..number + 1)
    }

    /// Blocks 3 and 5 cannot be read, and the leader was asked for them.
    fn asked() -> Healing {
        let mut losses = Losses::default();
        let mut blocks = RangeSet::new();
        for range in [block(3), block(5)] {
            losses.lose(range, Seen::Unread);
            blocks.insert(range);
        }
        let mut healing = Healing::new(losses);
        healing.begin_again();
        healing.unsearched = RangeSet::new();
        let step = Step::Asked(ByteRange::of_blocks(3..6));
        healing.attempt = Some(Attempt { blocks, step });
        healing
    }

    fn tried(healing: &Healing) -> Vec<ByteRange> {
        healing.attempt.iter().flat_map(|attempt| attempt.blocks.iter()).collect()
    }

    #[test]
    fn a_block_that_reads_again_is_not_stored_again() {
        let mut healing = asked();
        healing.seen_good(block(3));
        assert_eq!(tried(&healing), [block(5)]);
        // A record that is replayed now finds nothing to be older than it.
        assert!(!healing.losses.overlaps(block(3)));
    }

    #[test]
    fn what_is_written_is_not_stored_again_whatever_the_list_says() {
        let mut healing = asked();
        healing.losses.stored(block(3));
        healing.stored(block(3));
        assert_eq!(tried(&healing), [block(5)]);
    }

    #[test]
    fn what_is_written_and_not_flushed_stays_lost_whatever_begins_again() {
        let mut healing = asked();
        healing.stored(block(3));
        // As when what lies between two losses is lost with them.
        healing.begin_again();
        assert!(healing.unsearched.overlaps(block(5)) && !healing.unsearched.overlaps(block(3)));
        healing.seen_good(ByteRange::of_blocks(0..10));
        assert!(healing.losses.overlaps(block(3)));
        assert!(!healing.losses.overlaps(block(5)));
    }

    #[test]
    fn what_is_in_vain_is_tried_more_and_more_seldom_until_something_changes() {
        let mut healing = asked();
        let mut waits = Vec::new();
        for round in 0..13 {
            healing.in_vain = round;
            waits.push(healing.again_at(1_000) - 1_000);
        }
        assert_eq!(
            (waits[0], waits[1], waits[10], waits[12]),
            (5_000, 10_000, 5_120_000, 5_120_000)
        );
        healing.leader_changes();
        assert_eq!(healing.again_at(0), AGAIN_MS);
    }

    #[test]
    fn of_a_long_write_only_what_was_lost_is_looked_at() {
        let mut healing = asked();
        healing.losses.lose(block(9), Seen::Old);
        healing.stored(ByteRange::of_blocks(4..1 << 40));
        let stored: Vec<ByteRange> = healing.stored.iter().collect();
        assert_eq!(stored, [block(5), block(9)]);
        assert_eq!(tried(&healing), [block(3)]);
    }
}
