//! What is missing of units is read. One is lost only when it cannot be read twice, and what it lies on
//! answers behind each of these reads: a disk that is away for a moment has bad blocks no more than any.

use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::layer::{Remap, Target};
use super::place::Stage;
use super::placing::{End, Placing, Wish};
use super::task::Step;

/// So often a unit is read before it is lost.
const READS: u8 = 2;
/// Bytes of a metadata block of a spare.
const BLOCK: u64 = 4096;

impl Remap {
    pub(super) fn fill(&mut self, id: usize, units: &[Placing]) {
        let task = &mut self.tasks[id];
        task.reads = 1;
        let wanted = units.iter().enumerate().filter(|(_, placing)| placing.has_to_be_read());
        task.steps.extend(wanted.map(|(i, _)| Step::Fill(i)));
        // A disk that is gone fails every write; that is no reason to fill the spare.
        let failed = |placing: &Placing| placing.wish == Wish::Write && placing.from.is_none();
        if units.iter().any(failed) {
            self.probe(id, Target::Main);
        }
        self.stage(id, Stage::Filled);
    }

    /// Asks a disk whether it answers at all.
    fn probe(&mut self, id: usize, target: Target) {
        let ranges = match target {
            Target::Main => {
                let last = self.details.size / self.map.unit_len() - 1;
                [0, last / 2, last].map(|unit| self.map.bytes(&(unit..unit + 1)))
            }
            Target::Spare(number) => {
                let Some(spare) = &self.spares[number] else { return };
                let layout = spare.layout();
                let table = layout.table_offset(0, 0);
                [layout.header_offset(0), layout.header_offset(1), table]
                    .map(|offset| ByteRange::new(offset, BLOCK))
            }
        };
        self.tasks[id].steps.extend(ranges.map(|range| Step::Probe(target, range)));
    }

    /// Where units could not be read, their disks are asked.
    pub(super) fn filled(&mut self, id: usize, units: &mut [Placing]) {
        let mut targets: Vec<Target> = Vec::new();
        for placing in units.iter().filter(|placing| placing.unreadable.is_some()) {
            if !targets.contains(&placing.lies_on()) {
                targets.push(placing.lies_on());
            }
        }
        if targets.is_empty() {
            return self.write_first(id, units);
        }
        self.tasks[id].answered.clear();
        targets.into_iter().for_each(|target| self.probe(id, target));
        self.stage(id, Stage::Probed);
    }

    /// What lies on a disk that does not answer is not lost; the rest is read once more.
    pub(super) fn probed(&mut self, id: usize, units: &mut [Placing]) {
        let task = &mut self.tasks[id];
        let again = task.reads < READS;
        for (i, placing) in units.iter_mut().enumerate() {
            let Some(errno) = placing.unreadable else { continue };
            if !task.answered.contains(&placing.lies_on()) {
                placing.fail(errno);
            } else if again {
                placing.unreadable = None;
                task.steps.push_back(Step::Fill(i));
            }
        }
        if task.steps.is_empty() {
            return self.write_first(id, units);
        }
        task.reads += 1;
        self.stage(id, Stage::Filled);
    }
}

impl Placing {
    /// Its place holds it, or the part of it that a request does not write.
    fn has_to_be_read(&self) -> bool {
        self.end.is_none()
            && self.data.is_none()
            && !matches!(self.wish, Wish::Lose | Wish::Suspect)
            && self.from.is_none_or(|place| !place.lost)
    }

    /// The disk that has it.
    fn lies_on(&self) -> Target {
        self.from.map_or(Target::Main, |place| Target::Spare(place.slot.spare))
    }

    /// One that is to be moved may be lost; of the others nothing becomes.
    pub(super) fn could_not_be_read(&mut self, errno: Errno) {
        let moves = matches!(self.wish, Wish::Move | Wish::Evacuate);
        if moves && super::layer::is_of_medium(errno) {
            self.unreadable = Some(errno);
        } else {
            self.fail(errno);
        }
    }

    fn fail(&mut self, errno: Errno) {
        self.end = Some(End::Failed(errno));
        self.unreadable = None;
    }
}
