//! Files that live in memory: everything at once, on the calling thread.
//!
//! Where it is asked for, long writes are made by another thread instead: two that copy get more of
//! the memory's bandwidth than one, and a wake-up costs little beside such a copy.

use std::io;
use std::sync::Arc;

use holdfast_units::ByteRange;

use super::blocking::Blocking;
use super::{Done, Job};
use crate::file::BackingFile;
use crate::wake::Wake;
use crate::{BufferPool, DiskOp};

pub(crate) struct Inline {
    file: Arc<BackingFile>,
    pool: BufferPool,
    /// Makes the writes that have at least so many bytes.
    helper: Option<(usize, Blocking)>,
}

impl Inline {
    pub(crate) fn new(file: &Arc<BackingFile>, pool: &BufferPool) -> Self {
        Self { file: Arc::clone(file), pool: pool.clone(), helper: None }
    }

    /// Has writes of at least so many bytes made by another thread.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn hand_off(mut self, from: usize, wake: &Arc<Wake>) -> io::Result<Self> {
        let helper = Blocking::start(&self.file, &self.pool, wake, 1)?;
        self.helper = Some((from, helper));
        Ok(self)
    }

    pub(crate) fn submit(&self, job: Job) -> Option<Done> {
        match (&self.helper, &job.request) {
            (Some((from, helper)), DiskOp::Write { data, .. }) if data.len() >= *from => {
                helper.submit(job)
            }
            _ => Some(job.done(self.file.run(&job.request, &self.pool))),
        }
    }

    pub(crate) fn collect(&self, out: &mut Vec<Done>) {
        if let Some((_, helper)) = &self.helper {
            helper.collect(out);
        }
    }

    /// Whether every job is done when `submit` returns.
    pub(crate) const fn is_alone(&self) -> bool {
        self.helper.is_none()
    }

    pub(crate) const fn file(&self) -> &Arc<BackingFile> {
        &self.file
    }

    pub(crate) fn rewire(&self, wake: &Arc<Wake>) {
        if let Some((_, helper)) = &self.helper {
            helper.rewire(wake);
        }
    }

    pub(crate) fn in_memory(&self, range: ByteRange) -> Option<&Arc<BackingFile>> {
        Some(&self.file).filter(|file| file.has_in_memory(range))
    }
}
