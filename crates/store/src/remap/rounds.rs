//! The rounds that write changes of the table of a spare, for all tasks that wait for one.

use holdfast_format::remap::Entry;
use holdfast_units::ByteRange;

use super::layer::{Io, Remap, Target};
use super::task::WINDOW;
use crate::DiskOp;

impl Remap {
    /// Has a task go on when these changes of the table are durable in both copies.
    pub(super) fn commit(&mut self, task: usize, spare: usize, changes: Vec<(u32, Entry)>) {
        let Some(found) = &mut self.spares[spare] else {
            // No spare leaves while a task has to do with it. What cannot be written does not count.
            return self.poison();
        };
        self.tasks[task].waits += 1;
        found.table.queue(changes, task);
        self.begin_round(spare);
    }

    fn begin_round(&mut self, number: usize) {
        let pool = self.pool.clone();
        if let Some(spare) = &mut self.spares[number]
            && spare.table.begin_round(&spare.header, |bytes| pool.copy_of(bytes).freeze())
        {
            self.go_on_with_round(number);
        }
    }

    fn go_on_with_round(&mut self, number: usize) {
        if self.poisoned {
            return self.end_round(number);
        }
        loop {
            let Some(spare) = &mut self.spares[number] else { return };
            let layout = *spare.layout();
            let Some(round) = &mut spare.table.round else { return };
            if round.begun < round.blocks.len() && round.running < WINDOW {
                let index = round.begun;
                round.begun += 1;
                round.running += 1;
                let (block, data) = &round.blocks[index];
                let range =
                    ByteRange::new(layout.table_offset(round.copy_of(*block), *block), 4096);
                let request = DiskOp::Write { range, data: data.clone(), fua: false };
                self.send(Target::Spare(number), request, Io::Table { spare: number, index });
                continue;
            }
            if round.running == 0 && !round.flushing {
                round.flushing = true;
                self.send(Target::Spare(number), DiskOp::Flush, Io::TableFlush { spare: number });
            }
            return;
        }
    }

    pub(super) fn table_written(&mut self, number: usize, index: usize, written: bool) {
        if let Some(spare) = &mut self.spares[number]
            && let Some(round) = &mut spare.table.round
        {
            round.running -= 1;
            if !written {
                self.counters.spare_errors += 1;
                let block = round.blocks[index].0;
                round.failed[round.copy_of(block)].insert(block);
            }
            self.go_on_with_round(number);
        }
    }

    pub(super) fn table_flushed(&mut self, number: usize) {
        let Some(spare) = &mut self.spares[number] else { return };
        let Some(round) = &mut spare.table.round else { return };
        round.flushing = false;
        let pool = self.pool.clone();
        let bytes_of = |bytes: &[u8]| pool.copy_of(bytes).freeze();
        if !self.poisoned && spare.table.next_pass(&spare.header, bytes_of) {
            self.go_on_with_round(number);
        } else {
            self.end_round(number);
        }
    }

    fn end_round(&mut self, number: usize) {
        let Some(spare) = &mut self.spares[number] else { return };
        if spare.table.round.as_ref().is_some_and(|round| round.running > 0 || round.flushing) {
            return;
        }
        let (mut waiters, whole) = spare.table.end_round();
        if !whole {
            self.poison();
        } else if !self.poisoned {
            spare.table.settled();
        }
        if self.poisoned
            && let Some(spare) = &mut self.spares[number]
        {
            waiters.extend(spare.table.abandon());
        }
        for task in waiters {
            self.arrived(task);
        }
        self.begin_round(number);
    }
}
