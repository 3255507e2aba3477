//! Parts of a mirror that fail, and what the others write down about it.

use super::super::part::State;
use super::super::record::Record;
use super::{Inner, Notice, Volume};
use holdfast_store::{DiskError, DiskErrorKind, DiskOp};
use std::io;

/// What a mirror writes down about its parts.
#[derive(Clone, Debug)]
pub(in super::super) struct Marks {
    /// The mirror that they belong to.
    pub(in super::super) set: String,
    /// Only parts with this generation have everything.
    pub(in super::super) generation: u64,
}

impl Inner {
    /// The part that a mirror reads from. There always is one that has everything.
    pub(super) fn source(&self) -> usize {
        self.parts.iter().position(|part| part.state == State::InSync).unwrap_or(0)
    }

    fn name_of(&self, part: usize) -> String {
        self.parts[part].path.display().to_string()
    }

    /// An operation of a part has failed. Whether the others go on without the part, so that the
    /// client need not hear of it.
    pub(super) fn goes_on_without(&mut self, part: usize, error: &DiskError) -> bool {
        if !self.layout.is_mirror() {
            self.tell_failure(part, error);
            return false;
        }
        let others = self.parts.iter().enumerate();
        let left = others.filter(|(at, other)| *at != part && other.state == State::InSync).count();
        match self.parts[part].state {
            State::Failed => true,
            State::InSync if left == 0 => {
                self.tell_failure(part, error);
                false
            }
            State::InSync | State::Filling => {
                self.lose(part, &error.to_string());
                left > 0
            }
        }
    }

    /// Leaves a part alone from now on.
    pub(super) fn lose(&mut self, part: usize, why: &str) {
        let missed = self.parts[part].state == State::InSync;
        self.parts[part].state = State::Failed;
        if missed {
            // Before any client hears that something was written which this part does not have.
            self.next_generation();
        }
        let left = self.parts.iter().filter(|part| part.state == State::InSync).count();
        let part = self.name_of(part);
        (self.tell)(Notice::Lost { part, why: why.to_owned(), left });
    }

    /// Errors of a disk that has failed before are not news.
    fn tell_failure(&self, part: usize, error: &DiskError) {
        if error.kind != DiskErrorKind::Poisoned {
            (self.tell)(Notice::Failed { part: self.name_of(part), why: error.to_string() });
        }
    }

    /// Parts that are not in sync now are older than the others from now on.
    pub(super) fn next_generation(&mut self) {
        if let Some(marks) = &mut self.marks {
            marks.generation += 1;
            for part in 0..self.parts.len() {
                if self.parts[part].state == State::InSync {
                    self.mark(part, false);
                }
            }
        }
    }

    /// Writes down that a part has everything; `closed`: and that its server has ended.
    pub(super) fn mark(&self, part: usize, closed: bool) {
        let (Some(marks), Some(file)) = (&self.marks, self.parts[part].file()) else { return };
        let open = Record { set: marks.set.clone(), generation: marks.generation, clean: None };
        let written: io::Result<()> = if closed {
            open.closed(file).and_then(|record| record.write(file))
        } else {
            open.write(file)
        };
        if let Err(why) = written {
            let part = self.name_of(part);
            (self.tell)(Notice::Forgetful { part, why: why.to_string() });
        }
    }
}

impl Volume {
    /// Writes down that the parts of a mirror are in use: after a crash nobody knows which of
    /// them has the last writes.
    pub(in super::super) fn mark_open(&self) {
        let mut inner = self.0.borrow_mut();
        if !inner.read_only {
            inner.next_generation();
        }
    }

    /// Makes everything durable, at the end. Nothing may be under way.
    ///
    /// # Errors
    /// The first part that could not be flushed, with the reason.
    pub(in super::super) async fn finish(&self) -> Result<(), (String, String)> {
        let count = self.0.borrow().parts.len();
        let mut result = Ok(());
        for part in 0..count {
            let (used, read_only) = {
                let inner = self.0.borrow();
                (inner.parts[part].state != State::Failed, inner.read_only)
            };
            if !used || read_only {
                continue;
            }
            let flushed = self.alone(part, DiskOp::Flush).await;
            let mut inner = self.0.borrow_mut();
            match flushed {
                Ok(_) if inner.parts[part].state == State::InSync => inner.mark(part, true),
                Ok(_) => {}
                Err(error) if inner.goes_on_without(part, &error) => {}
                Err(error) => result = result.and(Err((inner.name_of(part), error.to_string()))),
            }
        }
        result
    }
}
