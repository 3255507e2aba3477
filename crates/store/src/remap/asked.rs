//! Work that somebody asks for: healing, and moving by hand.

use holdfast_format::remap::Reason;
use rustix::io::Errno;

use super::layer::Remap;
use super::placing::{Placing, Wish};
use super::task::{Phase, Task, Work};
use super::{RemapOp, RemapReport};
use crate::engine::{Done, Mark, More, Tag};
use crate::{OpId, OpKind, Outcome};

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
            let changes = matches!(&task.work, Work::Asked { what, .. } if what.changes_members());
            changes && other != id && task.phase != Phase::Start
        })
    }

    pub(super) fn start_asked(&mut self, id: usize) {
        let Work::Asked { what, .. } = &self.tasks[id].work else { return };
        if what.changes_members() && self.members_change(id) {
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
            RemapOp::AdmitSpare { spare } => {
                let spare = *spare;
                return self.admit_spare(id, spare);
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
