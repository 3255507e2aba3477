//! How units find a place: in step with `docs/design/remap.md`, "How a unit is placed".

use std::collections::{BTreeMap, BTreeSet};

use holdfast_format::remap::{Entry, EntryState, Reason};
use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::layer::{Fail, IoResult, Remap, Target, is_of_medium};
use super::map::{Place, SlotRef};
use super::placing::{End, First, Placing, Wish};
use super::task::{Phase, Step};
use super::{RemapChange, RemapFate, UNREAD};
use crate::{DiskOp, Outcome};

/// How many slots are tried for one unit.
const MAX_TRIES: u8 = 8;

/// Where the work on a batch of units stands: what has just ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Locked,
    Drained,
    Filled,
    Probed,
    FirstWritten,
    FirstFlushed,
    FirstChecked,
    SlotsWritten,
    SlotsFlushed,
    SlotsChecked,
    Committed,
    Cleared,
}

impl Remap {
    pub(super) fn place(&mut self, id: usize, stage: Stage) {
        let mut units = std::mem::take(&mut self.tasks[id].units);
        match stage {
            Stage::Locked => self.locked(id, &mut units),
            Stage::Drained => self.fill(id, &units),
            Stage::Filled => self.filled(id, &mut units),
            Stage::Probed => self.probed(id, &mut units),
            Stage::FirstWritten => self.flush_first(id, &units),
            Stage::FirstFlushed => self.check_first(id, &mut units),
            Stage::FirstChecked => self.write_slots(id, &mut units),
            Stage::SlotsWritten => self.slots_written(id, &mut units),
            Stage::SlotsFlushed => self.check_slots(id, &mut units),
            Stage::SlotsChecked => self.slots_checked(id, &mut units),
            Stage::Committed => self.committed(id, &mut units),
            Stage::Cleared => self.publish(id, &units),
        }
        self.tasks[id].units = units;
        if stage == Stage::Cleared {
            self.placed(id);
        } else {
            self.launch(id);
        }
    }

    pub(super) fn stage(&mut self, id: usize, stage: Stage) {
        self.go(id, Phase::Place(stage));
    }

    fn locked(&mut self, id: usize, units: &mut [Placing]) {
        for placing in units {
            let place = self.map.get(placing.unit);
            placing.begin(place);
            self.map.begin(placing.unit);
        }
        self.tasks[id].begun = true;
        self.stage(id, Stage::Drained);
        self.drain(id);
    }

    pub(super) fn write_first(&mut self, id: usize, units: &mut [Placing]) {
        let alive = self.tasks[id].answered.contains(&Target::Main);
        for (i, placing) in units.iter_mut().enumerate() {
            let failed = placing.wish == Wish::Write && placing.from.is_none();
            if placing.end.is_none() && failed && !alive {
                placing.end = Some(End::Failed(Errno::IO));
            }
            placing.ok = false;
            if placing.end.is_none() && placing.first != First::Nowhere {
                self.tasks[id].steps.push_back(Step::First(i));
            }
        }
        self.stage(id, Stage::FirstWritten);
    }

    fn flush_first(&mut self, id: usize, units: &[Placing]) {
        let mut targets: Vec<Target> = Vec::new();
        for placing in units.iter().filter(|placing| placing.end.is_none() && placing.ok) {
            let target = match placing.first_slot() {
                Some(slot) => Target::Spare(slot.spare),
                None => Target::Main,
            };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        self.stage(id, Stage::FirstFlushed);
        self.flush_for(id, targets);
    }

    fn check_first(&mut self, id: usize, units: &mut [Placing]) {
        for (i, placing) in units.iter_mut().enumerate() {
            if placing.end.is_none() && placing.ok {
                placing.ok = false;
                self.tasks[id].steps.push_back(Step::FirstCheck(i));
            }
        }
        self.stage(id, Stage::FirstChecked);
    }

    /// Those for which the first place did not do take a slot.
    fn write_slots(&mut self, id: usize, units: &mut [Placing]) {
        for (i, placing) in units.iter_mut().enumerate() {
            if placing.end.is_some() || placing.checked {
                continue;
            }
            if placing.first != First::Nowhere && placing.tries == 0 {
                if placing.ok {
                    placing.end = Some(End::First);
                    continue;
                }
                if placing.wish == Wish::Return {
                    placing.end = Some(End::Failed(Errno::IO));
                    continue;
                }
                placing.slot_failed |=
                    placing.first == First::OwnSlot && placing.refused_by.is_empty();
            }
            if placing.slot.is_none() {
                let kept = placing.from.filter(|place| {
                    let stays = place.lost || placing.wish == Wish::Lose;
                    stays && placing.wish != Wish::Evacuate && placing.tries == 0
                });
                placing.slot = match kept {
                    Some(place) => Some(place.slot),
                    None if placing.tries < MAX_TRIES => self.take_slot(&placing.refused_by),
                    None => None,
                };
                placing.tries += 1;
            }
            if placing.slot.is_none() {
                self.take_again(id, placing);
            }
            match placing.slot {
                None => placing.end = Some(placing.refusal.map_or(End::Full, End::Failed)),
                Some(_) if placing.checked || placing.is_to_be_lost() => placing.checked = true,
                Some(_) => {
                    placing.ok = false;
                    self.tasks[id].steps.push_back(Step::Slot(i));
                }
            }
        }
        self.stage(id, Stage::SlotsWritten);
    }

    /// A slot of whatever spare but these; one whose table is durable twice, if there is one.
    fn take_slot(&mut self, but: &[usize]) -> Option<SlotRef> {
        for weak in [false, true] {
            for (number, spare) in self.spares.iter_mut().enumerate() {
                if let Some(spare) = spare.as_mut().filter(|spare| !spare.leaving)
                    && !but.contains(&number)
                    && let Some(slot) = spare.table.take(weak)
                {
                    return Some(SlotRef { spare: number, slot });
                }
            }
        }
        None
    }

    /// Where there is no better slot, the unit stays in the one that it gave up because only one copy
    /// of the table can be written there: it holds the unit, and the table says so.
    fn take_again(&mut self, id: usize, placing: &mut Placing) {
        let given_up = &mut self.tasks[id].given_up;
        if let Some(at) = given_up.iter().rposition(|(_, unit)| *unit == placing.unit) {
            placing.slot = Some(given_up.swap_remove(at).0);
            placing.checked = true;
        }
    }

    fn slots_written(&mut self, id: usize, units: &mut [Placing]) {
        let (mut targets, mut again): (Vec<Target>, bool) = (Vec::new(), false);
        for placing in units.iter_mut().filter(|placing| placing.end.is_none() && !placing.checked)
        {
            let Some(slot) = placing.slot else { continue };
            if !placing.ok {
                again = true;
                self.give_up_slot(id, placing, slot);
            } else if !targets.contains(&Target::Spare(slot.spare)) {
                targets.push(Target::Spare(slot.spare));
            }
        }
        if again {
            self.stage(id, Stage::FirstChecked);
        } else {
            self.stage(id, Stage::SlotsFlushed);
            self.flush_for(id, targets);
        }
    }

    /// Another slot is to be taken. This one is no good; or its spare does not take the unit for the
    /// moment, and it stays as it was.
    fn give_up_slot(&mut self, id: usize, placing: &mut Placing, slot: SlotRef) {
        placing.slot = None;
        if !placing.refused_by.contains(&slot.spare) {
            return self.tasks[id].spoiled.push((slot, placing.unit));
        }
        let is_kept = placing.from.is_some_and(|place| place.slot == slot);
        if let Some(spare) = self.spares[slot.spare].as_mut().filter(|_| !is_kept) {
            spare.table.give_back(slot.slot);
        }
    }

    fn check_slots(&mut self, id: usize, units: &mut [Placing]) {
        for (i, placing) in units.iter_mut().enumerate() {
            if placing.end.is_none() && !placing.checked && placing.slot.is_some() {
                placing.ok = false;
                self.tasks[id].steps.push_back(Step::SlotCheck(i));
            }
        }
        self.stage(id, Stage::SlotsChecked);
    }

    fn slots_checked(&mut self, id: usize, units: &mut [Placing]) {
        let mut again = false;
        for placing in units.iter_mut().filter(|placing| placing.end.is_none() && !placing.checked)
        {
            let Some(slot) = placing.slot else { continue };
            placing.checked = placing.ok;
            if !placing.ok {
                again = true;
                self.give_up_slot(id, placing, slot);
            }
        }
        if again {
            return self.stage(id, Stage::FirstChecked);
        }
        self.stage(id, Stage::Committed);
        let mut changes: BTreeMap<usize, Vec<(u32, Entry)>> = BTreeMap::new();
        for placing in units.iter().filter(|placing| placing.end.is_none() && placing.checked) {
            let Some(slot) = placing.slot else { continue };
            let lost = placing.is_to_be_lost();
            let entry = Entry {
                unit: placing.unit,
                order: self.next_order,
                time: Self::now(),
                errors: u16::from(placing.tries),
                state: if lost { EntryState::Lost } else { EntryState::Mapped },
                reason: if lost && placing.stays_unread() { UNREAD } else { placing.reason },
            };
            self.next_order += 1;
            changes.entry(slot.spare).or_default().push((slot.slot, entry));
        }
        for (spare, changes) in changes {
            self.commit(id, spare, changes);
        }
    }

    /// The new entries are durable. Now what they replace is taken away.
    fn committed(&mut self, id: usize, units: &mut [Placing]) {
        let mut again = false;
        for placing in units.iter_mut().filter(|placing| placing.end.is_none() && placing.checked) {
            let Some(slot) = placing.slot else { continue };
            if self.could_be_safer(slot, &placing.refused_by) && placing.tries < MAX_TRIES {
                again = true;
                self.tasks[id].given_up.push((slot, placing.unit));
                (placing.slot, placing.checked) = (None, false);
            }
        }
        if again {
            return self.stage(id, Stage::FirstChecked);
        }
        self.keep_entries(id, units);
        let mut changes: BTreeMap<usize, Vec<(u32, Entry)>> = BTreeMap::new();
        let mut clear = |slot: SlotRef, entry: Entry| {
            changes.entry(slot.spare).or_default().push((slot.slot, entry));
        };
        let bad = |unit| Entry {
            unit,
            time: Self::now(),
            errors: 1,
            state: EntryState::BadSlot,
            reason: Reason::NotReadBack,
            ..Entry::default()
        };
        for (slot, unit) in &self.tasks[id].spoiled {
            clear(*slot, bad(*unit));
        }
        for (slot, _) in &self.tasks[id].given_up {
            clear(*slot, Entry::default());
        }
        for placing in units.iter_mut() {
            if placing.end.is_none() {
                let lost = placing.is_to_be_lost();
                placing.end = Some(if lost { End::Lost } else { End::Slot });
            }
            let Some(old) = placing.from.map(|place| place.slot) else { continue };
            match placing.end {
                Some(End::First) if placing.first == First::Main => clear(old, Entry::default()),
                Some(End::Slot | End::Lost) if placing.slot != Some(old) => {
                    let spoiled = self.tasks[id].spoiled.iter().any(|(slot, _)| *slot == old);
                    if placing.slot_failed && !spoiled {
                        clear(old, bad(placing.unit));
                    } else if !spoiled {
                        clear(old, Entry::default());
                    }
                }
                _ => {}
            }
        }
        self.stage(id, Stage::Cleared);
        for (spare, changes) in changes {
            self.commit(id, spare, changes);
        }
    }

    /// A unit for which nothing came of the work keeps its entry, whatever the slot is worth: without
    /// one it would be read from the main disk at the next start, old.
    fn keep_entries(&mut self, id: usize, units: &[Placing]) {
        let kept: BTreeSet<SlotRef> = units.iter().filter_map(Placing::kept_slot).collect();
        let spoiled = &mut self.tasks[id].spoiled;
        let before = spoiled.len();
        spoiled.retain(|(slot, _)| !kept.contains(slot));
        self.counters.spare_errors += (before - spoiled.len()) as u64;
    }

    /// Whether only one copy of the table knows of this slot, and there is a better one.
    fn could_be_safer(&self, slot: SlotRef, refused_by: &[usize]) -> bool {
        let weak = |spare: &super::spare::Spare| spare.table.is_weak(slot.slot);
        let others = (0..).zip(&self.spares).filter(|(at, _)| !refused_by.contains(at));
        self.spares[slot.spare].as_ref().is_some_and(weak)
            && others
                .filter_map(|(_, spare)| spare.as_ref())
                .any(|spare| !spare.leaving && spare.table.has_strong())
    }

    /// Everything is durable: the map changes.
    fn publish(&mut self, id: usize, units: &[Placing]) {
        self.tell(id, units);
        let given_up = std::mem::take(&mut self.tasks[id].given_up);
        let mut freed: Vec<SlotRef> = given_up.into_iter().map(|(slot, _)| slot).collect();
        let spoiled = std::mem::take(&mut self.tasks[id].spoiled);
        let mut report = self.tasks[id].report;
        self.counters.spare_errors += spoiled.len() as u64;
        for placing in units {
            let old = placing.from.map(|place| place.slot);
            match placing.end {
                Some(End::First) => {
                    report.in_place += 1;
                    if placing.first == First::Main && placing.from.is_some() {
                        self.map.remove(placing.unit);
                        freed.extend(old);
                    }
                }
                Some(end @ (End::Slot | End::Lost)) => {
                    let lost = end == End::Lost;
                    let count = if lost { &mut report.lost } else { &mut report.placed };
                    *count += 1;
                    if let Some(slot) = placing.slot {
                        let unread = lost && placing.stays_unread();
                        self.map.insert(placing.unit, Place { slot, lost, unread });
                    }
                    let failed =
                        placing.slot_failed || spoiled.iter().any(|(s, _)| Some(*s) == old);
                    freed.extend(old.filter(|old| placing.slot != Some(*old) && !failed));
                }
                Some(End::Full) => {
                    report.full += 1;
                    report.first_failure.get_or_insert(Errno::IO);
                }
                Some(End::Failed(errno)) => {
                    report.failed += 1;
                    report.first_failure.get_or_insert(errno);
                }
                Some(End::Nothing) | None => {}
            }
        }
        for slot in freed {
            if let Some(spare) = &mut self.spares[slot.spare] {
                spare.table.give_back(slot.slot);
            }
        }
        self.counters.in_place += report.in_place - self.tasks[id].report.in_place;
        self.counters.placed += report.placed - self.tasks[id].report.placed;
        self.tasks[id].report = report;
    }

    /// Tells who watches what changes now.
    fn tell(&mut self, id: usize, units: &[Placing]) {
        let Some(mut watch) = self.watch.take() else { return };
        let of = |slot: SlotRef| self.spares[slot.spare].as_ref().map(|s| s.header.spare);
        let change = |unit: u64, fate, reason| RemapChange {
            range: self.map.bytes(&(unit..unit + 1)),
            fate,
            reason,
        };
        let failed = self.tasks[id].spoiled.iter().filter_map(|(slot, unit)| {
            let fate = RemapFate::SlotFailed(of(*slot)?, slot.slot);
            Some(change(*unit, fate, Reason::NotReadBack))
        });
        let moved = units.iter().filter_map(|placing| {
            let fate = match placing.end? {
                End::First if placing.first == First::Main && placing.from.is_some() => {
                    RemapFate::Returned
                }
                End::Slot => placing.slot.and_then(|s| Some(RemapFate::Placed(of(s)?, s.slot)))?,
                End::Lost => RemapFate::Lost,
                End::First | End::Full | End::Failed(_) | End::Nothing => return None,
            };
            Some(change(placing.unit, fate, placing.reason))
        });
        let changes: Vec<RemapChange> = failed.chain(moved).collect();
        if !changes.is_empty() {
            let spares = self.spares.iter().flatten();
            let writes = spares.map(|spare| (spare.header.spare, spare.table.durable_writes()));
            watch(&changes, &writes.collect());
        }
        self.watch = Some(watch);
    }

    pub(super) fn io_of_unit(&self, id: usize, step: Step) -> Option<(Target, DiskOp)> {
        let unit_len = self.map.unit_len();
        let on_main = |unit: u64| (Target::Main, self.map.bytes(&(unit..unit + 1)));
        let in_slot = |slot: SlotRef| {
            let range = self.slot_range(slot, ByteRange::new(0, unit_len));
            (Target::Spare(slot.spare), range)
        };
        let units = &self.tasks[id].units;
        let ((target, range), write) = match step {
            Step::Probe(target, range) => ((target, range), None),
            Step::Fill(i) => match units[i].from {
                Some(place) => (in_slot(place.slot), None),
                None => (on_main(units[i].unit), None),
            },
            Step::First(i) | Step::FirstCheck(i) => {
                let place = units[i].first_slot().map_or_else(|| on_main(units[i].unit), in_slot);
                (place, Some(&units[i]).filter(|_| matches!(step, Step::First(_))))
            }
            Step::Slot(i) | Step::SlotCheck(i) => {
                let write = Some(&units[i]).filter(|_| matches!(step, Step::Slot(_)));
                (in_slot(units[i].slot?), write)
            }
            Step::Piece(_) | Step::Header { .. } => return None,
        };
        let request = match write {
            Some(placing) => DiskOp::Write { range, data: placing.data.clone()?, fua: false },
            None => {
                // The memory of the kernel would prove nothing.
                self.uncache(target, range);
                DiskOp::Read { range, holes: false }
            }
        };
        Some((target, request))
    }

    pub(super) fn unit_step_done(&mut self, id: usize, step: Step, result: IoResult) {
        let pool = self.pool.clone();
        let task = &mut self.tasks[id];
        match (step, result) {
            (Step::Probe(target, _), Ok(_)) => task.answered.push(target),
            (Step::Fill(i), Ok(Outcome::Data(found))) => {
                let placing = &mut task.units[i];
                let mut data = pool.copy_of(&found);
                if let Some((at, patch)) = &placing.patch {
                    data[*at..*at + patch.len()].copy_from_slice(patch);
                }
                placing.data = Some(data.freeze());
            }
            (Step::Fill(i), result) => {
                let errno = result.err().map_or(Errno::IO, |fail| fail.errno);
                task.units[i].could_not_be_read(errno);
            }
            (Step::First(i) | Step::Slot(i), Ok(_)) => task.units[i].ok = true,
            (
                Step::First(i) | Step::FirstCheck(i) | Step::Slot(i) | Step::SlotCheck(i),
                Err(Fail { errno, .. }),
            ) if !is_of_medium(errno) => {
                let placing = &mut task.units[i];
                let first = matches!(step, Step::First(_) | Step::FirstCheck(_));
                let slot = if first { placing.first_slot() } else { placing.slot };
                if i == 0 && slot.is_some() {
                    tracing::error!(%errno, "a spare does not take the bad blocks of its disk");
                }
                placing.refused(slot, errno);
            }
            (Step::FirstCheck(i) | Step::SlotCheck(i), Ok(Outcome::Data(found))) => {
                task.units[i].ok = task.units[i].data.as_ref() == Some(&found);
            }
            _ => {}
        }
    }
}
