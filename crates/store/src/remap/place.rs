//! How units find a place: in step with `docs/design/remap.md`, "How a unit is placed".

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_format::remap::{Entry, EntryState, Reason};
use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::layer::{IoResult, Remap, Target};
use super::map::{Place, SlotRef};
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
    FirstWritten,
    FirstFlushed,
    FirstChecked,
    SlotsWritten,
    SlotsFlushed,
    SlotsChecked,
    Committed,
    Cleared,
}

/// What is to become of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// It is written, and could not be where it should.
    Write,
    /// It is written where it is, or else elsewhere.
    Repair,
    /// It has no good copy.
    Lose,
    /// The main disk cannot read it.
    Suspect,
    /// It goes into a slot if the main disk has it and can be read.
    Move,
    /// It goes into a slot of another spare.
    Evacuate,
    /// It goes back to the main disk.
    Return,
}

/// What has become of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It is as it should be already.
    Nothing,
    /// It was written where it was tried first.
    First,
    /// It has a new slot.
    Slot,
    Lost,
    Failed(Errno),
    Full,
}

/// Where it is tried first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    Nowhere,
    Main,
    OwnSlot,
}

/// One unit on its way to a place.
pub(super) struct Placing {
    pub(super) unit: u64,
    /// All of its content, once that is known.
    pub(super) data: Option<Bytes>,
    /// What a request writes of it, and where in it; the rest has to be read.
    pub(super) patch: Option<(usize, Bytes)>,
    /// The slot that did not take what a request writes.
    pub(super) failed_slot: Option<SlotRef>,
    /// The slot that it is in is no good.
    slot_failed: bool,
    wish: Wish,
    reason: Reason,
    from: Option<Place>,
    first: First,
    slot: Option<SlotRef>,
    /// The last step went well.
    ok: bool,
    /// Its slot was written and read back.
    checked: bool,
    tries: u8,
    end: Option<End>,
}

impl Placing {
    pub(super) const fn new(unit: u64, wish: Wish, reason: Reason) -> Self {
        Self {
            unit,
            data: None,
            patch: None,
            failed_slot: None,
            slot_failed: false,
            wish,
            reason,
            from: None,
            first: First::Nowhere,
            slot: None,
            ok: false,
            checked: false,
            tries: 0,
            end: None,
        }
    }

    /// Finds out what is to be done, now that nobody else works on it.
    fn begin(&mut self, from: Option<Place>) {
        self.from = from;
        self.slot_failed = from.is_some_and(|place| Some(place.slot) == self.failed_slot);
        let mapped = from.is_some_and(|place| !place.lost);
        let lost = from.is_some_and(|place| place.lost);
        self.first = match self.wish {
            Wish::Write | Wish::Repair if mapped && !self.slot_failed => First::OwnSlot,
            Wish::Write if lost => First::Main,
            Wish::Repair if !mapped => First::Main,
            Wish::Return if mapped => First::Main,
            _ => First::Nowhere,
        };
        self.end = match self.wish {
            Wish::Move if from.is_some() => Some(End::Nothing),
            Wish::Return if from.is_none() => Some(End::Nothing),
            Wish::Return if lost => Some(End::Failed(Errno::IO)),
            Wish::Evacuate if from.is_none() => Some(End::Nothing),
            Wish::Lose if lost && !self.is_unread() => Some(End::Nothing),
            // What is in a slot is tried there by every read.
            Wish::Suspect if from.is_some() => Some(End::Nothing),
            // There is nothing to put the new part into.
            Wish::Write if lost && self.data.is_none() => Some(End::Failed(Errno::IO)),
            _ => None,
        };
    }

    /// It is in a slot afterwards that holds nothing.
    fn is_to_be_lost(&self) -> bool {
        matches!(self.wish, Wish::Lose | Wish::Suspect)
            || (self.data.is_none() && self.end.is_none())
    }

    /// It is lost only since the main disk could not read it.
    fn is_unread(&self) -> bool {
        self.from.is_some_and(|place| place.unread)
    }

    /// Of one that is lost afterwards: reads are tried on the main disk.
    fn stays_unread(&self) -> bool {
        self.wish == Wish::Suspect || self.is_unread() && self.wish != Wish::Lose
    }

    /// The target of what is tried first, and the slot.
    fn first_slot(&self) -> Option<SlotRef> {
        self.from.filter(|_| self.first == First::OwnSlot).map(|place| place.slot)
    }
}

impl Remap {
    pub(super) fn place(&mut self, id: usize, stage: Stage) {
        let mut units = std::mem::take(&mut self.tasks[id].units);
        match stage {
            Stage::Locked => self.locked(id, &mut units),
            Stage::Drained => self.fill(id, &units),
            Stage::Filled => self.write_first(id, &mut units),
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

    fn stage(&mut self, id: usize, stage: Stage) {
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

    fn fill(&mut self, id: usize, units: &[Placing]) {
        let task = &mut self.tasks[id];
        for (i, placing) in units.iter().enumerate() {
            let holds = placing.from.is_none_or(|place| !place.lost);
            if placing.end.is_none()
                && placing.data.is_none()
                && !matches!(placing.wish, Wish::Lose | Wish::Suspect)
                && holds
            {
                task.steps.push_back(Step::Fill(i));
            }
        }
        // A disk that is gone fails every write; that is no reason to fill the spare.
        let failed = |placing: &Placing| placing.wish == Wish::Write && placing.from.is_none();
        if units.iter().any(failed) {
            task.alive = false;
            let last = self.details.size / self.map.unit_len() - 1;
            task.steps.extend([0, last / 2, last].map(Step::Probe));
        }
        self.stage(id, Stage::Filled);
    }

    fn write_first(&mut self, id: usize, units: &mut [Placing]) {
        let alive = self.tasks[id].alive;
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
                placing.slot_failed |= placing.first == First::OwnSlot;
            }
            if placing.slot.is_none() {
                let kept = placing.from.filter(|place| {
                    let stays = place.lost || placing.wish == Wish::Lose;
                    stays && placing.wish != Wish::Evacuate && placing.tries == 0
                });
                placing.slot = match kept {
                    Some(place) => Some(place.slot),
                    None if placing.tries < MAX_TRIES => self.take_slot(),
                    None => None,
                };
                placing.tries += 1;
            }
            match placing.slot {
                None => placing.end = Some(End::Full),
                Some(_) if placing.is_to_be_lost() => placing.checked = true,
                Some(_) => {
                    placing.ok = false;
                    self.tasks[id].steps.push_back(Step::Slot(i));
                }
            }
        }
        self.stage(id, Stage::SlotsWritten);
    }

    /// A slot of whatever spare; one whose table is durable twice, if there is one.
    fn take_slot(&mut self) -> Option<SlotRef> {
        for weak in [false, true] {
            for (number, spare) in self.spares.iter_mut().enumerate() {
                if let Some(spare) = spare.as_mut().filter(|spare| !spare.leaving)
                    && let Some(slot) = spare.table.take(weak)
                {
                    return Some(SlotRef { spare: number, slot });
                }
            }
        }
        None
    }

    fn slots_written(&mut self, id: usize, units: &mut [Placing]) {
        let (mut targets, mut again): (Vec<Target>, bool) = (Vec::new(), false);
        for placing in units.iter_mut().filter(|placing| placing.end.is_none() && !placing.checked)
        {
            let Some(slot) = placing.slot else { continue };
            if !placing.ok {
                again = true;
                self.spoil(id, placing, slot);
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

    /// The slot is no good; another one is to be taken.
    fn spoil(&mut self, id: usize, placing: &mut Placing, slot: SlotRef) {
        self.tasks[id].spoiled.push((slot, placing.unit));
        placing.slot = None;
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
                self.spoil(id, placing, slot);
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
            if self.could_be_safer(slot) && placing.tries < MAX_TRIES {
                again = true;
                self.tasks[id].given_up.push(slot);
                (placing.slot, placing.checked) = (None, false);
            }
        }
        if again {
            return self.stage(id, Stage::FirstChecked);
        }
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
        for slot in &self.tasks[id].given_up {
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

    /// Whether only one copy of the table knows of this slot, and there is a better one.
    fn could_be_safer(&self, slot: SlotRef) -> bool {
        let weak = |spare: &super::spare::Spare| spare.table.is_weak(slot.slot);
        self.spares[slot.spare].as_ref().is_some_and(weak)
            && self.spares.iter().flatten().any(|spare| !spare.leaving && spare.table.has_strong())
    }

    /// Everything is durable: the map changes.
    fn publish(&mut self, id: usize, units: &[Placing]) {
        self.tell(id, units);
        let mut freed = std::mem::take(&mut self.tasks[id].given_up);
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
            watch(&changes);
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
            Step::Probe(unit) => (on_main(unit), None),
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
            (Step::Probe(_), result) => task.alive |= result.is_ok(),
            (Step::Fill(i), Ok(Outcome::Data(found))) => {
                let placing = &mut task.units[i];
                let mut data = pool.copy_of(&found);
                if let Some((at, patch)) = &placing.patch {
                    data[*at..*at + patch.len()].copy_from_slice(patch);
                }
                placing.data = Some(data.freeze());
            }
            (Step::Fill(i), _) => {
                let placing = &mut task.units[i];
                placing.end = match placing.wish {
                    // It cannot be read, so it is lost.
                    Wish::Move | Wish::Evacuate => None,
                    _ => Some(End::Failed(Errno::IO)),
                };
            }
            (Step::First(i) | Step::Slot(i), Ok(_)) => task.units[i].ok = true,
            (Step::FirstCheck(i) | Step::SlotCheck(i), Ok(Outcome::Data(found))) => {
                task.units[i].ok = task.units[i].data.as_ref() == Some(&found);
            }
            _ => {}
        }
    }
}
