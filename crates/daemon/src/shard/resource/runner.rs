//! What the control plane asks of a resource, and its end.

use super::{Inner, JOURNAL_TIMEOUT, RELEASE_TIMEOUT, Resource, STOP_TIMEOUT, ToResource};
use crate::shard::handle::{CloseError, RenameRefused};
use crate::shard::registry::Registry;
use holdfast_core::Command;
use holdfast_store::BufferPool;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The task that takes what the control plane sends.
pub(super) struct Runner {
    pub(super) resource: Rc<Resource>,
    pub(super) registry: Rc<Registry>,
    pub(super) pool: BufferPool,
}

impl Runner {
    pub(super) async fn run(self, mut queue: mpsc::Receiver<ToResource>) {
        let asked = loop {
            match queue.recv().await {
                Some(ToResource::Command(command, done)) => self.resource.command(command, done),
                Some(ToResource::Link(peer, origin, stream)) => {
                    self.resource.add_link(peer, origin, stream, &self.pool);
                }
                Some(ToResource::Remap(what, done)) => self.resource.remap(what, done),
                Some(ToResource::RemapEntries { skip, most, done }) => {
                    let inner = self.resource.inner.borrow();
                    let entries = inner.disk.as_ref().map(|disk| disk.remap_entries(skip, most));
                    // Who asked may be gone.
                    let _ = done.send(entries.unwrap_or_default());
                }
                Some(ToResource::Refresh(done)) => {
                    self.resource.inner.borrow_mut().publish();
                    // Nobody waits any more: no harm.
                    let _ = done.send(());
                }
                Some(ToResource::Read(range, done)) => self.resource.read(range, done),
                Some(ToResource::FirstLost(range, done)) => {
                    // Who asked may be gone.
                    let _ = done.send(self.resource.first_lost(range));
                }
                Some(ToResource::Vitals(done)) => {
                    self.resource.inner.borrow_mut().tell_vitals(done);
                }
                Some(ToResource::StageTimes(done)) => {
                    // Who asked may be gone.
                    let _ = done.send(self.resource.inner.borrow().stage_times());
                }
                Some(ToResource::ForgetHoles(done)) => {
                    if let Some(disk) = &mut self.resource.inner.borrow_mut().disk {
                        disk.forget_holes();
                    }
                    // Nobody waits any more: no harm.
                    let _ = done.send(());
                }
                Some(ToResource::HoldMetadata(quiet)) => {
                    if let Some(disk) = &mut self.resource.inner.borrow_mut().disk {
                        disk.hold_meta(quiet);
                    }
                }
                Some(ToResource::DiskReplaced(place, done)) => {
                    self.resource.inner.borrow_mut().disk_replaced(*place);
                    self.resource.finish();
                    // Nobody waits any more: no harm.
                    let _ = done.send(());
                }
                Some(ToResource::PeerNames(names)) => {
                    self.resource.inner.borrow_mut().peer_names = names;
                }
                Some(ToResource::Rename(name, done)) => {
                    // Nobody waits any more: no harm.
                    let _ = done.send(self.rename(&name));
                }
                Some(ToResource::EndConnections) => {
                    self.resource.inner.borrow().end_connections();
                }
                Some(ToResource::Close(done)) => break Some(done),
                // Nobody holds a handle any more.
                None => break None,
            }
        };
        queue.close();
        let result = self.close().await;
        if let Err(error) = result {
            let name = self.resource.inner.borrow().name.clone();
            tracing::error!(resource = %name, %error, "a resource was not closed in good order");
        }
        // Who asked may have lost patience.
        let _ = asked.map(|asked| asked.send(result));
    }

    /// From now on it is the export of another name. Nobody has it open meanwhile.
    fn rename(&self, name: &str) -> Result<(), RenameRefused> {
        let mut inner = self.resource.inner.borrow_mut();
        if !inner.connections.is_empty() {
            return Err(RenameRefused::Open);
        }
        if !self.registry.reserve(name) {
            return Err(RenameRefused::Taken);
        }
        self.registry.remove(&inner.name);
        self.registry.insert(name, &self.resource);
        inner.name = name.into();
        inner.publish();
        Ok(())
    }

    async fn close(&self) -> Result<(), CloseError> {
        let resource = &self.resource;
        let name = resource.inner.borrow().name.clone();
        self.registry.hide(&name);
        resource.inner.borrow().end_connections();
        let (done, _end) = oneshot::channel();
        resource.command(Command::Stop, done);
        let stopped = self.wait_until(STOP_TIMEOUT, |inner| inner.stopped).await;
        {
            let mut inner = resource.inner.borrow_mut();
            inner.links.values().for_each(|link| if stopped { link.close() } else { link.abort() });
            if !stopped && let Some(disk) = &mut inner.disk {
                disk.close();
            }
            inner.stopped = true;
        }
        resource.finish();
        let released = self.wait_until(RELEASE_TIMEOUT, Inner::is_closed).await;
        let journal = {
            let mut inner = resource.inner.borrow_mut();
            inner.journal_orders = None;
            inner.journal_reads = None;
            inner.journal.take()
        };
        if let Some(journal) = journal {
            journal.stop(JOURNAL_TIMEOUT).await;
        }
        self.registry.remove(&name);
        match (stopped, released) {
            (true, true) => Ok(()),
            (false, true) => Err(CloseError::TimedOut),
            (_, false) => Err(CloseError::DiskBusy),
        }
    }

    /// Waits for a condition that holds after `ended` was notified. Whether it came in time.
    async fn wait_until(&self, patience: Duration, met: impl Fn(&Inner) -> bool) -> bool {
        let wait = async {
            while !met(&self.resource.inner.borrow()) {
                self.resource.ended.notified().await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }
}
