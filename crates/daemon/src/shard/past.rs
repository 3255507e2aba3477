//! A disk that nobody changes at present as a read-only NBD export: the past state that a log peer
//! holds while its replay is paused.

use super::registry::Registry;
use bytes::BytesMut;
use holdfast_nbd::{
    Export, ExportInfo, NbdError, PeerAddress, Reply, ReplyData, Request, RequestKind,
    ShutdownHandle,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How long the connections of an export that ends are waited for.
const END_WAIT: Duration = Duration::from_secs(5);

/// What is shown.
#[derive(Clone, Debug)]
pub struct PastSpec {
    /// The name of the export.
    pub name: String,
    /// The file or block device. Nobody may write to it while it is shown.
    pub path: PathBuf,
    /// Its bytes from the start that are shown.
    pub size: u64,
}

type Clients = BTreeMap<u64, PeerAddress>;

/// A disk that is shown. Dropping it ends the export and its connections.
#[derive(Debug)]
pub struct PastHandle {
    end: mpsc::Sender<oneshot::Sender<()>>,
    clients: watch::Receiver<Clients>,
}

impl PastHandle {
    /// Who has it open.
    #[must_use]
    pub fn clients(&self) -> Vec<PeerAddress> {
        self.clients.borrow().values().copied().collect()
    }

    /// Tells when [`Self::clients`] changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<impl Sized + use<>> {
        self.clients.clone()
    }

    /// Ends the export; nobody reads from the disk any more when this returns.
    pub async fn close(&self) {
        let (done, end) = oneshot::channel();
        if self.end.send(done).await.is_ok() {
            // It ends with the shard, too.
            let _ = end.await;
        }
    }
}

/// The shard's side of it.
pub(super) struct Past {
    name: String,
    file: Arc<File>,
    size: u64,
    clients: watch::Sender<Clients>,
    ends: RefCell<BTreeMap<u64, ShutdownHandle>>,
    next: Cell<u64>,
}

/// Shows a disk until its handle is dropped or closed. Its name is taken already.
pub(super) fn show(registry: &Rc<Registry>, spec: PastSpec, file: File) -> PastHandle {
    let PastSpec { name, size, .. } = spec;
    let (clients, seen) = watch::channel(Clients::new());
    let (ends, next) = (RefCell::default(), Cell::new(0));
    let past = Rc::new(Past { name, file: Arc::new(file), size, clients, ends, next });
    registry.show(&past.name, &past);
    let (end, asked) = mpsc::channel(1);
    tokio::task::spawn_local(keep(Rc::clone(registry), past, asked));
    PastHandle { end, clients: seen }
}

async fn keep(
    registry: Rc<Registry>,
    past: Rc<Past>,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let done = asked.recv().await;
    registry.hide(&past.name);
    past.ends.borrow().values().for_each(ShutdownHandle::request);
    let mut clients = past.clients.subscribe();
    // Who does not go is answered what is on the disk by then: it was told that it is over.
    let _ = tokio::time::timeout(END_WAIT, clients.wait_for(Clients::is_empty)).await;
    registry.remove(&past.name);
    if let Some(done) = done {
        // Who asked may be gone.
        let _ = done.send(());
    }
}

impl Past {
    pub(super) fn info(&self) -> ExportInfo {
        let mut info = ExportInfo::new(self.name.clone(), self.size);
        info.description = "a past state, while the replay of this node is paused".to_owned();
        info.read_only = true;
        info.can_cache = true;
        info.can_multi_conn = true;
        info
    }

    pub(super) fn open(self: &Rc<Self>, client: PeerAddress, end: ShutdownHandle) -> PastExport {
        let number = self.next.get();
        self.next.set(number + 1);
        self.ends.borrow_mut().insert(number, end);
        self.clients.send_modify(|clients| {
            clients.insert(number, client);
        });
        PastExport { past: Rc::clone(self), number }
    }
}

/// The export of one connection.
pub(super) struct PastExport {
    past: Rc<Past>,
    number: u64,
}

impl Export for PastExport {
    fn info(&self) -> ExportInfo {
        self.past.info()
    }

    fn submit(&self, request: Request, reply: Reply) {
        match request.kind {
            RequestKind::Read => {}
            RequestKind::Flush | RequestKind::Cache => return reply.complete(Ok(ReplyData::Done)),
            _ => return reply.complete(Err(NbdError::NotPermitted)),
        }
        let (file, range) = (Arc::clone(&self.past.file), request.range);
        tokio::task::spawn_local(async move {
            let read = tokio::task::spawn_blocking(move || {
                // The server admits no read beyond its limits.
                let len = usize::try_from(range.len).unwrap_or(usize::MAX);
                let mut data = BytesMut::zeroed(len);
                file.read_exact_at(&mut data, range.offset).map(|()| data.freeze())
            });
            reply.complete(match read.await {
                Ok(Ok(data)) => Ok(ReplyData::Read(data)),
                Ok(Err(_)) | Err(_) => Err(NbdError::Io),
            });
        });
    }
}

impl Drop for PastExport {
    fn drop(&mut self) {
        self.past.ends.borrow_mut().remove(&self.number);
        self.past.clients.send_modify(|clients| {
            clients.remove(&self.number);
        });
    }
}
