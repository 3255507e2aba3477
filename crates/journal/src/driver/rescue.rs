//! The end of a journal that has failed.

use super::{CURSORS, Files, GIVEN_UP, Log, RESCUED, number_of};
use holdfast_format::BLOCK_LEN;
use holdfast_format::journal::Switches;
use std::io;

impl<F: Files> Log<F> {
    /// The journal has failed, and what was written to it is about to go to the disk: also what is
    /// not durable here, which the next opening may not find. Says so durably, so that what is
    /// appended after that one continues nothing.
    ///
    /// # Errors
    /// When it is not known to have worked.
    pub fn begin_rescue(&mut self) -> io::Result<()> {
        self.journal.fail();
        if self.given_up || self.journal.head() == self.journal.durable() {
            return Ok(());
        }
        let switches = Switches { bypassed: true, ..self.journal.switches() };
        self.journal.set_switches(switches);
        if self.store_cursors().is_ok() {
            return Ok(());
        }
        self.files.create(RESCUED, BLOCK_LEN as u64)?;
        self.files.sync(RESCUED)?;
        self.files.sync_dir()
    }

    /// Marks the journal as given up, durably: the next opening begins with an empty one, whatever
    /// is left of this one. Once that has worked nothing is left to be done.
    ///
    /// # Errors
    /// When it is not known to have worked.
    pub fn give_up(&mut self) -> io::Result<()> {
        self.journal.fail();
        if !self.given_up {
            self.files.rename(CURSORS, GIVEN_UP)?;
            self.files.sync_dir()?;
            self.given_up = true;
        }
        Ok(())
    }
}

/// Takes away all files of a journal that was given up; the mark at the very end.
pub(super) fn remove_all<F: Files>(files: &mut F) -> io::Result<()> {
    let names = files.list()?;
    let ours = |name: &&String| {
        number_of(name, "segment-").or_else(|| number_of(name, "spare-")).is_some()
            || *name == CURSORS
            || *name == RESCUED
    };
    for name in names.iter().filter(ours) {
        files.remove(name)?;
    }
    files.sync_dir()?;
    files.remove(GIVEN_UP)?;
    files.sync_dir()
}
