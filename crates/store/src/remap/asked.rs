//! Work that somebody asks for: healing, moving, and which spares there are.

use holdfast_format::remap::{EntryState, MAX_SPARES, Reason};
use rustix::io::Errno;

use super::layer::{Remap, Target};
use super::place::{Placing, Wish};
use super::spare::Spare;
use super::task::{Phase, Step, Task, Work};
use super::{RemapOp, RemapReport};
use crate::engine::{Done, Mark, More, Tag};
use crate::{OpId, OpKind, Outcome};

/// So many units are worked on at a time.
const BATCH: usize = 256;
/// The longest range that can be asked for, in units.
const MAX_UNITS: u64 = 8192;

impl Remap {
    /// Starts work that was asked for; its end is that of an operation.
    pub(crate) fn ask(&mut self, op: OpId, what: RemapOp) -> Option<Done> {
        let hull = what.range();
        self.start(Task::new(Work::Asked { op, what }, hull));
        self.pump();
        let done = self.take_ready();
        if self.has_ready() {
            self.wake.signal();
        }
        done
    }

    /// Whether the work can be asked for.
    pub(crate) fn refuses(&self, what: &RemapOp) -> bool {
        let (range, unit) = (what.range(), self.map.unit_len());
        let aligned = range.offset.is_multiple_of(unit) && range.len.is_multiple_of(unit);
        let right_length = match what {
            RemapOp::Repair { range, data } => data.len() as u64 == range.len,
            _ => true,
        };
        !aligned || !right_length || range.len / unit > MAX_UNITS
    }

    /// Whether another task changes which spares there are.
    fn members_change(&self, id: usize) -> bool {
        self.tasks.iter().any(|(other, task)| {
            let changes = matches!(
                &task.work,
                Work::Asked { what: RemapOp::AddSpare(_) | RemapOp::RemoveSpare { .. }, .. }
            );
            changes && other != id && task.phase != Phase::Start
        })
    }

    pub(super) fn start_asked(&mut self, id: usize) {
        let changes = matches!(
            &self.tasks[id].work,
            Work::Asked { what: RemapOp::AddSpare(_) | RemapOp::RemoveSpare { .. }, .. }
        );
        if changes && self.members_change(id) {
            return self.fail_asked(id, Errno::BUSY);
        }
        let Work::Asked { what, .. } = &mut self.tasks[id].work else { return };
        let range = what.range();
        let wish = match what {
            RemapOp::Repair { .. } => Wish::Repair,
            RemapOp::MarkLost { .. } => Wish::Lose,
            RemapOp::MarkUnread { .. } => Wish::Suspect,
            RemapOp::Move { .. } => Wish::Move,
            RemapOp::MoveBack { .. } => Wish::Return,
            RemapOp::AddSpare(spare) => {
                let spare = spare.spare.take();
                return self.add_spare(id, spare);
            }
            RemapOp::RemoveSpare { .. } => return self.evacuate(id),
        };
        let reason = match what {
            RemapOp::Move { imported: true, .. } => Reason::Imported,
            RemapOp::Move { .. } => Reason::ByHand,
            RemapOp::MarkLost { .. } | RemapOp::MarkUnread { .. } => Reason::ReadError,
            _ => Reason::NotReadBack,
        };
        let data = match what {
            RemapOp::Repair { data, .. } => Some(data.clone()),
            _ => None,
        };
        let unit_len = usize::try_from(self.map.unit_len()).unwrap_or(4096);
        let units = self.map.units(range);
        let task = &mut self.tasks[id];
        for (i, unit) in units.enumerate() {
            let mut placing = Placing::new(unit, wish, reason);
            placing.data = data.as_ref().map(|data| data.slice(i * unit_len..(i + 1) * unit_len));
            task.units.push(placing);
        }
        if task.units.is_empty() {
            self.go(id, Phase::End);
            self.wake_task(id);
        } else {
            self.begin_placing(id);
        }
    }

    /// The units of a task have found their places, or have not.
    pub(super) fn placed(&mut self, id: usize) {
        if !matches!(&self.tasks[id].work, Work::Asked { what: RemapOp::RemoveSpare { .. }, .. }) {
            return self.end(id);
        }
        let units = std::mem::take(&mut self.tasks[id].units);
        for placing in &units {
            self.map.end(placing.unit);
        }
        self.tasks[id].begun = false;
        if let Some(lock) = self.tasks[id].lock.take() {
            self.unlock(lock);
        }
        self.evacuate(id);
    }

    fn removed(&self, id: usize) -> Option<usize> {
        let Work::Asked { what: RemapOp::RemoveSpare { spare, .. }, .. } = &self.tasks[id].work
        else {
            return None;
        };
        let is_it =
            |found: &Option<Spare>| found.as_ref().is_some_and(|s| s.header.spare == *spare);
        self.spares.iter().position(is_it)
    }

    /// Moves the next units off a spare that is to be removed; when it is empty, removes it.
    fn evacuate(&mut self, id: usize) {
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
            return self.fail_asked(id, Errno::BUSY);
        }
        spare.leaving = true;
        let map = &self.map;
        let is_here = |unit: &u64| map.get(*unit).is_some_and(|place| place.slot.spare == number);
        let holds = |state| matches!(state, EntryState::Mapped | EntryState::Lost);
        let entries = spare.table.entries().filter(|(_, entry)| holds(entry.state));
        let mut units: Vec<u64> = entries.map(|(_, entry)| entry.unit).filter(is_here).collect();
        units.sort_unstable();
        units.truncate(BATCH);
        if units.is_empty() {
            return self.retire(id, number);
        }
        let placing = |unit| Placing::new(unit, Wish::Evacuate, Reason::Moved);
        self.tasks[id].units = units.into_iter().map(placing).collect();
        self.begin_placing(id);
    }

    fn keep_spare(&mut self, id: usize, errno: Errno) {
        if let Some(spare) = self.removed(id).and_then(|number| self.spares[number].as_mut()) {
            spare.leaving = false;
        }
        self.fail_asked(id, errno);
    }

    fn fail_asked(&mut self, id: usize, errno: Errno) {
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

    fn add_spare(&mut self, id: usize, loaded: Option<Box<Spare>>) {
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
        self.tasks[id].added = Some(number);
        self.new_members(|members| {
            if !members.contains(&new) {
                members.push(new);
            }
        });
        let others = (0..self.spares.len()).filter(|n| *n != number && self.spares[*n].is_some());
        let order: Vec<_> = [number].into_iter().chain(others).collect();
        self.write_headers(id, &order);
    }

    fn new_members(&mut self, change: impl Fn(&mut Vec<holdfast_format::remap::SpareId>)) {
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

    /// Nobody knows which members the headers name. The spare that was to come or to go gets nothing
    /// as long as the disk is open, so either is right at the next start.
    fn headers_failed(&mut self, id: usize) {
        if let Some(spare) = self.removed(id).and_then(|number| self.spares[number].as_mut()) {
            spare.header.retired = false;
        }
        self.go(id, Phase::End);
        self.wake_task(id);
    }

    fn headers_written(&mut self, id: usize) {
        if let Some(number) = self.removed(id) {
            self.spares[number] = None;
        } else {
            if let Some(spare) = self.tasks[id].added.and_then(|n| self.spares[n].as_mut()) {
                spare.leaving = false;
            }
        }
        self.go(id, Phase::End);
        self.wake_task(id);
    }

    pub(super) fn answer_asked(
        &mut self,
        op: OpId,
        what: &RemapOp,
        report: RemapReport,
        failure: Option<Errno>,
    ) {
        let failure = failure.or(report.first_failure);
        let tag = match failure {
            Some(_) if self.poisoned => Tag::DurableFailed,
            _ => Tag::Plain,
        };
        self.complete(Done {
            op,
            tag,
            mark: Mark::default(),
            kind: OpKind::Write,
            range: what.range(),
            result: failure.map_or(Ok(Outcome::Done), Err),
            more: Some(Box::new(More::Report(report))),
        });
    }
}
