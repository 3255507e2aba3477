//! An NBD server that can be stopped and started again, and that can fall silent.

use holdfast_nbd::{
    ClientInfo, Export, ExportInfo, MemoryExport, Reply, Request, RequestKind, ServerOptions,
    SingleExport, serve,
};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

/// What the server's export was asked for, and whether it answers.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) flushes: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) zeroed_bytes: AtomicU64,
    pub(crate) silent: AtomicBool,
}

#[derive(Clone)]
struct Watched {
    memory: MemoryExport,
    watch: Arc<Watch>,
    /// Replies that are never given.
    kept: Rc<RefCell<Vec<Reply>>>,
}

impl Export for Watched {
    fn info(&self) -> ExportInfo {
        self.memory.info()
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.watch.requests.fetch_add(1, Ordering::SeqCst);
        if self.watch.silent.load(Ordering::SeqCst) {
            self.kept.borrow_mut().push(reply);
            return;
        }
        match request.kind {
            RequestKind::Flush => self.watch.flushes.fetch_add(1, Ordering::SeqCst),
            RequestKind::WriteZeroes => {
                self.watch.zeroed_bytes.fetch_add(request.range.len, Ordering::SeqCst)
            }
            _ => 0,
        };
        self.memory.submit(request, reply);
    }
}

enum Command {
    Start,
    Stop,
}

type Order = (Command, oneshot::Sender<()>);

/// The server and its data; the data stay when it is stopped.
pub(crate) struct Server {
    orders: Option<mpsc::UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) socket: PathBuf,
}

impl Server {
    /// An export `r0` of this size that can do everything.
    pub(crate) fn new(directory: &Path, size: u64) -> Self {
        Self::with(directory, move || MemoryExport::new("r0", size))
    }

    pub(crate) fn with(
        directory: &Path,
        export: impl FnOnce() -> MemoryExport + Send + 'static,
    ) -> Self {
        let socket = directory.join("nbd.sock");
        let watch = Arc::new(Watch::default());
        let (orders, incoming) = mpsc::unbounded_channel();
        let (path, watching) = (socket.clone(), Arc::clone(&watch));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let kept = Rc::default();
            let export = Watched { memory: export(), watch: watching, kept };
            runtime.unwrap().block_on(obey(&path, &export, incoming));
        });
        let server = Self { orders: Some(orders), thread: Some(thread), watch, socket };
        server.start();
        server
    }

    pub(crate) fn start(&self) {
        self.order(Command::Start);
    }

    /// Closes every connection and the socket, as the end of a process does.
    pub(crate) fn stop(&self) {
        self.order(Command::Stop);
    }

    fn order(&self, command: Command) {
        let (done, wait) = oneshot::channel();
        assert!(self.orders.as_ref().unwrap().send((command, done)).is_ok());
        wait.blocking_recv().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn obey(path: &Path, export: &Watched, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some((command, done)) = orders.recv().await {
        assert!(matches!(command, Command::Start));
        let listener = UnixListener::bind(path).unwrap();
        let _ = done.send(());
        let connections = LocalSet::new();
        let stopped = connections.run_until(run(&listener, export, &mut orders)).await;
        drop((connections, listener));
        std::fs::remove_file(path).unwrap();
        let Some(done) = stopped else { return };
        let _ = done.send(());
    }
}

/// Serves until it is to stop.
async fn run(
    listener: &UnixListener,
    export: &Watched,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> Option<oneshot::Sender<()>> {
    loop {
        tokio::select! {
            order = orders.recv() => return order.map(|(_, done)| done),
            connection = listener.accept() => {
                let (stream, _) = connection.unwrap();
                let exports = SingleExport(export.clone());
                tokio::task::spawn_local(async move {
                    let client = ClientInfo::unix(&stream);
                    let _ = serve(stream, &client, &exports, &ServerOptions::default()).await;
                });
            }
        }
    }
}
