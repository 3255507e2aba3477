//! A disk that took the place of another one below layers that stay.

use std::collections::HashMap;

use rustix::io::Errno;

use super::{Done, Engine, Job, Tag};
use crate::{Completion, Disk, DiskError, DiskErrorKind, DiskOp, OpId};

pub(crate) struct Nested {
    disk: Disk,
    jobs: HashMap<u64, Job>,
    next: u64,
    completed: Vec<Completion>,
}

impl Nested {
    /// Of a disk with nothing in flight that signals the eventfd of the one above.
    pub(crate) fn new(disk: Disk) -> Self {
        Self { disk, jobs: HashMap::new(), next: 0, completed: Vec::new() }
    }

    pub(crate) const fn engine(&self) -> &Engine {
        self.disk.engine()
    }

    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        self.next += 1;
        let key = self.next;
        let request = match (job.tag, job.request.clone()) {
            // Whoever wrote the tag flushes.
            (Tag::FlushAfter, DiskOp::Write { range, data, .. }) => {
                DiskOp::Write { range, data, fua: false }
            }
            (Tag::FlushAfter, DiskOp::WriteZeroes { range, unmap, .. }) => {
                DiskOp::WriteZeroes { range, unmap, fua: false }
            }
            (_, request) => request,
        };
        match self.disk.submit(OpId(key), request) {
            Some(Completion { result, .. }) => Some(done(&job, result)),
            None => {
                self.jobs.insert(key, job);
                None
            }
        }
    }

    pub(crate) fn kick(&mut self) {
        self.disk.kick();
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        let mut completed = std::mem::take(&mut self.completed);
        self.disk.gather(&mut completed);
        for Completion { op, result } in completed.drain(..) {
            out.extend(self.jobs.remove(&op.0).map(|job| done(&job, result)));
        }
        self.completed = completed;
    }

    pub(crate) fn is_inline(&self) -> bool {
        self.disk.engine().is_inline()
    }

    pub(crate) fn grown_to(&mut self, size: u64) {
        self.disk.grown_to(size);
    }
}

fn done(job: &Job, result: Result<crate::Outcome, DiskError>) -> Done {
    let flush_failed = matches!(
        &result,
        Err(error) if matches!(error.kind, DiskErrorKind::FlushFailed | DiskErrorKind::Poisoned)
    );
    let mut done = job.done(result.map_err(|error| errno(&error)));
    if flush_failed && job.tag == Tag::Durable {
        done.tag = Tag::DurableFailed;
    }
    done
}

fn errno(error: &DiskError) -> Errno {
    match (error.errno, error.kind) {
        (Some(errno), _) => Errno::from_raw_os_error(errno),
        (None, DiskErrorKind::NoSpace) => Errno::NOSPC,
        (None, _) => Errno::IO,
    }
}
