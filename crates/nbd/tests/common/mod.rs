//! A server in a thread of its own.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

use holdfast_nbd::{
    ClientInfo, ExportInfo, MemoryExport, NbdUri, ServerOptions, ServerTls, Shutdown,
    ShutdownHandle, SingleExport, serve,
};
use std::path::PathBuf;
use std::rc::Rc;
use std::thread::JoinHandle;
use tokio::net::UnixListener;
use tokio::task::LocalSet;

/// Serves memory on a Unix socket until it is dropped.
pub(crate) struct Server {
    pub(crate) socket: PathBuf,
    shutdown: ShutdownHandle,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start(info: ExportInfo, tls: Option<ServerTls>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("nbd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (shutdown, signal) = Shutdown::new();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            LocalSet::new().block_on(&runtime.unwrap(), accept(listener, info, tls, signal));
        });
        Self { socket, shutdown, thread: Some(thread), _directory: directory }
    }

    pub(crate) fn uri(&self, export: &str) -> NbdUri {
        NbdUri::unix(&self.socket, export)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.request();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server panicked");
    }
}

async fn accept(
    listener: std::os::unix::net::UnixListener,
    info: ExportInfo,
    tls: Option<ServerTls>,
    mut shutdown: Shutdown,
) {
    let listener = UnixListener::from_std(listener).unwrap();
    let exports = Rc::new(SingleExport(MemoryExport::with_info(info)));
    let options = ServerOptions { shutdown: shutdown.clone(), tls, ..ServerOptions::default() };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.requested() => break,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let (exports, options) = (Rc::clone(&exports), options.clone());
        connections.spawn_local(async move {
            let client = ClientInfo::unix(&stream);
            let _ = serve(stream, &client, &*exports, &options).await;
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended.unwrap();
    }
}
