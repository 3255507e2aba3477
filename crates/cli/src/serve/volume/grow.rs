//! Exports that grow.

use super::super::part::Part;
use super::{Inner, Volume};
use holdfast_nbd::NbdError;
use std::io;

impl Volume {
    /// Looks whether the files have grown, and uses what is new. Not of a mirror, whose parts
    /// could differ there.
    pub(in super::super) fn look_again(&self) {
        let mut inner = self.0.borrow_mut();
        if !inner.layout.is_mirror() {
            inner.grown();
        }
    }

    /// Whether a client could make it larger.
    pub(in super::super) fn can_grow(&self) -> bool {
        let inner = self.0.borrow();
        !inner.read_only && inner.parts.iter().all(Part::is_file)
    }
}

impl Inner {
    fn grown(&mut self) {
        let lens: Vec<u64> = self.parts.iter_mut().map(Part::look_again).collect();
        self.layout.grow(&lens);
        if let Some(changes) = &mut self.changes {
            changes.grow(self.layout.size());
        }
    }

    /// Makes the export `size` bytes long, durably. It never shrinks: what is cut off is gone.
    pub(super) fn resize(&mut self, size: u64) -> Result<(), NbdError> {
        let old = self.layout.size();
        if size < old || self.read_only {
            return Err(NbdError::NotPermitted);
        }
        if size > super::super::layout::MAX_SIZE {
            return Err(NbdError::NoSpace);
        }
        if size == old {
            return Ok(());
        }
        let lens = self.layout.lens_for(size);
        let mirror = self.layout.is_mirror();
        let failed = |error: &io::Error| match error.kind() {
            io::ErrorKind::Unsupported => NbdError::NotPermitted,
            _ => NbdError::from(error),
        };
        for (part, len) in self.parts.iter_mut().zip(&lens) {
            if mirror {
                // What a longer part has there is not what the others will have.
                part.cut_behind(old).map_err(|error| failed(&error))?;
            }
            part.grow(*len).map_err(|error| failed(&error))?;
        }
        self.layout.grow_to(size);
        if let Some(changes) = &mut self.changes {
            changes.grow(size);
        }
        Ok(())
    }
}
