//! Filling a part of a mirror from another.

use super::super::part::State;
use super::{Notice, Turn, Volume};
use holdfast_store::{DiskError, DiskOp, Outcome};
use holdfast_units::ByteRange;
use std::rc::Rc;
use tokio::sync::oneshot;
use tokio::task::yield_now;

/// How much is compared at a time. Writes there wait meanwhile.
const STEP: u64 = 1 << 20;

/// Why filling stopped before its end.
enum Stopped {
    /// The part was lost.
    Lost,
    /// Nothing that has everything can be read.
    NoSource(DiskError),
}

impl Volume {
    /// Makes a part equal to the one that is read from, and then uses it as all others. What is
    /// equal already is not written.
    pub(super) async fn fill(self: Rc<Self>, part: usize) {
        self.tell_filling(part);
        let mut at = 0;
        loop {
            let range = ByteRange::new(at, STEP.min(self.size() - at));
            if range.is_empty() {
                break;
            }
            let filled = self.fill_range(part, range).await;
            if let Err(stopped) = filled {
                return self.stop_filling(part, &stopped);
            }
            at = range.end();
            // Disks of memory never make anybody wait.
            yield_now().await;
        }
        if let Err(error) = self.alone(part, DiskOp::Flush).await {
            return self.lost(part, &error);
        }
        let mut inner = self.0.borrow_mut();
        if inner.parts[part].state == State::Filling {
            inner.parts[part].state = State::InSync;
            inner.mark(part, false);
            let part = inner.parts[part].path.display().to_string();
            (inner.tell)(Notice::Filled { part });
        }
    }

    fn tell_filling(&self, part: usize) {
        let inner = self.0.borrow();
        let name = |part: usize| inner.parts[part].path.display().to_string();
        (inner.tell)(Notice::Filling { part: name(part), from: name(inner.source()) });
    }

    async fn fill_range(&self, part: usize, range: ByteRange) -> Result<(), Stopped> {
        let (sender, turn) = oneshot::channel();
        let begun = self.0.borrow_mut().order.begin(range, Turn::Fill(sender));
        if begun.is_none() {
            // It comes when the writes before it have ended.
            let _ = turn.await;
        }
        let done = self.equalise(part, range).await;
        let mut inner = self.0.borrow_mut();
        for turn in inner.order.end(range) {
            inner.take_turn(turn);
        }
        inner.settle();
        inner.kick();
        done
    }

    async fn equalise(&self, part: usize, range: ByteRange) -> Result<(), Stopped> {
        let read = || DiskOp::Read { range, holes: true };
        let due = loop {
            let source = self.0.borrow().source();
            match self.alone(source, read()).await {
                Ok(due) => break due,
                Err(error) if self.0.borrow_mut().goes_on_without(source, &error) => {}
                Err(error) => return Err(Stopped::NoSource(error)),
            }
        };
        if self.0.borrow().parts[part].state != State::Filling {
            return Err(Stopped::Lost);
        }
        let found = self.alone(part, read()).await;
        let change = match (found, due) {
            (Ok(found), due) if found == due => return Ok(()),
            (_, Outcome::Data(data)) => DiskOp::Write { range, data, fua: false },
            // A bad place on the part may become good by writing.
            (_, _) => DiskOp::WriteZeroes { range, unmap: true, fua: false },
        };
        self.alone(part, change).await.map(drop).map_err(|error| {
            self.lost(part, &error);
            Stopped::Lost
        })
    }

    fn lost(&self, part: usize, error: &DiskError) {
        let mut inner = self.0.borrow_mut();
        if inner.parts[part].state != State::Failed {
            inner.lose(part, &error.to_string());
        }
    }

    fn stop_filling(&self, part: usize, stopped: &Stopped) {
        if let Stopped::NoSource(error) = stopped {
            let why = format!("the part that it was to be filled from cannot be read: {error}");
            self.0.borrow_mut().lose(part, &why);
        }
    }
}
