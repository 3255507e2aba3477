//! Which spares a disk has: how one comes, and how one goes.

use holdfast_format::remap::{EntryState, MAX_SPARES, Reason, SpareId};
use rustix::io::Errno;

use super::RemapOp;
use super::layer::{Remap, Target};
use super::map::SlotRef;
use super::placing::{Placing, Wish};
use super::spare::Spare;
use super::task::{Phase, Step, Work};

/// So many units are worked on at a time.
const BATCH: usize = 256;

impl Remap {
    fn number_of(&self, spare: SpareId) -> Option<usize> {
        let is_it = |found: &Option<Spare>| found.as_ref().is_some_and(|s| s.header.spare == spare);
        self.spares.iter().position(is_it)
    }

    /// The spare that a task removes.
    fn removed(&self, id: usize) -> Option<usize> {
        match &self.tasks[id].work {
            Work::Asked { what: RemapOp::RemoveSpare { spare, .. }, .. } => self.number_of(*spare),
            _ => None,
        }
    }

    /// The spare that a task adds.
    fn added(&self, id: usize) -> Option<usize> {
        match &self.tasks[id].work {
            Work::Asked { what: RemapOp::AddSpare(loaded), .. } => self.number_of(loaded.id),
            _ => None,
        }
    }

    /// Whether a spare that comes or goes has nothing that counts, and gets nothing: no failure of it
    /// costs anybody anything. Whoever has its table written has it in work.
    pub(super) fn bears_nothing(&self, target: Target) -> bool {
        let Target::Spare(number) = target else { return false };
        let is_empty = self.spares[number].as_ref().is_some_and(|spare| {
            let counts = spare.table.counts();
            spare.leaving && counts.mapped + counts.lost == 0
        });
        is_empty && !self.is_in_work(number)
    }

    /// Moves the next units off a spare that is to be removed; when it is empty, removes it.
    pub(super) fn evacuate(&mut self, id: usize) {
        let report = self.tasks[id].report;
        if let Some(errno) = report.first_failure {
            return self.keep_spare(id, errno);
        }
        let Some(number) = self.removed(id) else {
            return self.fail_asked(id, Errno::NOENT);
        };
        let others = self.spares.iter().flatten().count() - 1;
        let Some(spare) = &mut self.spares[number] else { return };
        let busy = spare.table.counts().mapped + spare.table.counts().lost;
        let empty_it = matches!(
            &self.tasks[id].work,
            Work::Asked { what: RemapOp::RemoveSpare { empty: true, .. }, .. }
        );
        if others == 0 || (busy > 0 && !empty_it) {
            self.tasks[id].report.busy = busy;
            return self.keep_spare(id, Errno::BUSY);
        }
        spare.leaving = true;
        let map = &self.map;
        let is_here = |unit: &u64| map.get(*unit).is_some_and(|place| place.slot.spare == number);
        let holds = |state| matches!(state, EntryState::Mapped | EntryState::Lost);
        let entries = spare.table.entries().filter(|(_, entry)| holds(entry.state));
        let mut units: Vec<u64> = entries.map(|(_, entry)| entry.unit).filter(is_here).collect();
        units.sort_unstable();
        units.truncate(BATCH);
        if units.is_empty() && self.is_in_work(number) {
            self.go(id, Phase::Evacuate);
            return self.wait_to_leave(id);
        }
        if units.is_empty() {
            return self.retire(id, number);
        }
        let placing = |unit| Placing::new(unit, Wish::Evacuate, Reason::Moved);
        self.tasks[id].units = units.into_iter().map(placing).collect();
        self.begin_placing(id);
    }

    /// Whether a task has taken a slot of a spare, or takes one away, and the table does not say so yet.
    fn is_in_work(&self, number: usize) -> bool {
        let here = |slot: SlotRef| slot.spare == number;
        self.tasks.iter().any(|(_, task)| {
            let of_units = task.units.iter().any(|placing| {
                placing.slot.is_some_and(here) || placing.from.is_some_and(|from| here(from.slot))
            });
            let mut of_task = task.spoiled.iter().chain(&task.given_up);
            of_units || of_task.any(|(slot, _)| here(*slot))
        })
    }

    /// Has the task that takes a spare away look again when others have gone on.
    fn wait_to_leave(&mut self, id: usize) {
        self.tasks[id].waits += 1;
        self.to_leave = Some(id);
    }

    /// Something has ended that may have kept a spare from leaving.
    pub(super) fn look_again(&mut self) {
        if let Some(id) = self.to_leave.take() {
            self.arrived(id);
        }
    }

    fn keep_spare(&mut self, id: usize, errno: Errno) {
        if let Some(spare) = self.removed(id).and_then(|number| self.spares[number].as_mut()) {
            spare.leaving = false;
        }
        self.fail_asked(id, errno);
    }

    pub(super) fn fail_asked(&mut self, id: usize, errno: Errno) {
        self.tasks[id].failure = Some(errno);
        self.go(id, Phase::End);
        self.wake_task(id);
    }

    /// The members are written to the others first: until then it is one of them.
    fn retire(&mut self, id: usize, number: usize) {
        let Some(gone) = self.spares[number].as_ref().map(|spare| spare.header.spare) else {
            return;
        };
        self.new_members(|members| members.retain(|member| *member != gone));
        if let Some(spare) = &mut self.spares[number] {
            (spare.header.retired, spare.header.members) = (true, vec![gone]);
        }
        let others = (0..self.spares.len()).filter(|n| *n != number && self.spares[*n].is_some());
        let order: Vec<_> = others.chain([number]).collect();
        self.write_headers(id, &order);
    }

    pub(super) fn add_spare(&mut self, id: usize, loaded: Option<Box<Spare>>) {
        let Some(mut spare) = loaded else {
            return self.fail_asked(id, Errno::INVAL);
        };
        let known = self.spares.iter().flatten().any(|s| s.header.spare == spare.header.spare);
        let alike = spare.header.layout.unit() as u64 == self.map.unit_len()
            && spare.header.resource == self.details.resource
            && spare.header.disk == self.details.disk
            && spare.table.counts().sum() == spare.table.counts().bad;
        let full = self.spares.iter().flatten().count() == MAX_SPARES;
        if known || !alike || full || !self.fits(&mut spare) {
            return self.fail_asked(id, Errno::INVAL);
        }
        let new = spare.header.spare;
        spare.leaving = true;
        let number = self.spares.iter().position(Option::is_none).unwrap_or(self.spares.len());
        if number == self.spares.len() {
            self.spares.push(None);
        }
        self.spares[number] = Some(*spare);
        self.new_members(|members| {
            if !members.contains(&new) {
                members.push(new);
            }
        });
        self.write_headers_with(id, number);
    }

    /// Once more what had failed for one that is there: that it is a member is written to itself, and to
    /// the others.
    pub(super) fn admit_spare(&mut self, id: usize, spare: SpareId) {
        let Some(number) = self.number_of(spare) else {
            return self.fail_asked(id, Errno::NOENT);
        };
        if self.spares[number].as_ref().is_none_or(|spare| !spare.leaving) {
            self.go(id, Phase::End);
            return self.wake_task(id);
        }
        self.new_members(|_| {});
        self.write_headers_with(id, number);
    }

    /// The headers of one that comes are written first: what the others name must be there.
    fn write_headers_with(&mut self, id: usize, number: usize) {
        let others = (0..self.spares.len()).filter(|n| *n != number && self.spares[*n].is_some());
        let order: Vec<_> = [number].into_iter().chain(others).collect();
        self.write_headers(id, &order);
    }

    fn new_members(&mut self, change: impl Fn(&mut Vec<SpareId>)) {
        let sequence = self.spares.iter().flatten().map(|s| s.header.sequence).max().unwrap_or(0);
        let mut members = self.spares.iter().flatten().map(|s| s.header.spare).collect();
        change(&mut members);
        for spare in self.spares.iter_mut().flatten() {
            spare.header.sequence = sequence + 1;
            spare.header.members = members.clone();
            spare.header.disk_size = self.details.size;
        }
    }

    fn write_headers(&mut self, id: usize, order: &[usize]) {
        self.tasks[id].headers = order.iter().flat_map(|n| [(*n, 0), (*n, 1)]).collect();
        self.go(id, Phase::Header);
        self.wake_task(id);
    }

    pub(super) fn next_header(&mut self, id: usize) {
        if self.tasks[id].failure.is_some() {
            return self.headers_failed(id);
        }
        let Some((spare, copy)) = self.tasks[id].headers.pop_front() else {
            return self.headers_written(id);
        };
        self.go(id, Phase::HeaderWritten);
        self.tasks[id].steps.push_back(Step::Header { spare, copy });
        self.tasks[id].header_of = spare;
        self.launch(id);
    }

    pub(super) fn header_written(&mut self, id: usize) {
        self.go(id, Phase::Header);
        let spare = self.tasks[id].header_of;
        self.flush_for(id, [Target::Spare(spare)]);
    }

    /// The header of a spare that bears nothing could not be flushed; of any other one the disk is
    /// poisoned.
    pub(super) fn header_not_flushed(&mut self, id: usize, errno: Errno) {
        if let Some(task) = self.tasks.get_mut(id)
            && matches!(task.work, Work::Asked { .. })
        {
            task.failure.get_or_insert(errno);
        }
    }

    /// Neither copy of a header could be written, or not be flushed.
    fn headers_failed(&mut self, id: usize) {
        let failed = self.tasks[id].header_of;
        if self.removed(id) == Some(failed) {
            // It is the last: all others say durably that it is none of them.
            let task = &mut self.tasks[id];
            task.failure = None;
            task.headers.clear();
            task.report.not_retired = true;
            return self.headers_written(id);
        }
        if self.added(id) == Some(failed) {
            // It is the first: no other one names it.
            if self.has_io(failed) {
                return self.wait_to_leave(id);
            }
            self.spares[failed] = None;
        }
        // Otherwise nobody knows which members the headers name. The spare that was to come or to go
        // gets nothing until they could be written, so either is right at the next start.
        if let Some(spare) = self.removed(id).and_then(|number| self.spares[number].as_mut()) {
            spare.header.retired = false;
        }
        self.go(id, Phase::End);
        self.wake_task(id);
    }

    fn headers_written(&mut self, id: usize) {
        if let Some(number) = self.removed(id) {
            // The end of what is under way there would never be told.
            if self.has_io(number) {
                return self.wait_to_leave(id);
            }
            self.spares[number] = None;
        }
        let weak = std::mem::take(&mut self.tasks[id].weak_headers);
        for (number, spare) in self.spares.iter_mut().enumerate() {
            let Some(spare) = spare else { continue };
            spare.weak_header = weak.contains(&number);
            // All headers name all that are left.
            spare.leaving = false;
        }
        self.go(id, Phase::End);
        self.wake_task(id);
    }
}
