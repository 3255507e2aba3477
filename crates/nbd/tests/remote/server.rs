//! A server in a thread, with a disk that outlives it and forgets what was not flushed when the
//! power fails.

use bytes::Bytes;
use holdfast_nbd::{
    ClientInfo, Export, ExportInfo, NbdError, NbdUri, RemoteOptions, Reply, ReplyData, Request,
    RequestKind, ServerOptions, ServerTls, Shutdown, ShutdownHandle, SingleExport, serve,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

const BLOCK: usize = 512;

/// Shared by the servers that serve it, one after the other.
#[derive(Clone)]
pub(crate) struct Platter(Arc<Mutex<Content>>);

struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
    fail_writes: bool,
    /// Reads from here on fail.
    fail_reads: Option<u64>,
    /// Requests of these kinds are never answered.
    swallow: Vec<RequestKind>,
    /// What was asked for so far.
    log: Vec<(RequestKind, u64, u64)>,
}

impl Platter {
    pub(crate) fn new(size: usize) -> Self {
        Self(Arc::new(Mutex::new(Content {
            seen: vec![0; size],
            durable: vec![0; size],
            dirty: BTreeSet::new(),
            fail_writes: false,
            fail_reads: None,
            swallow: Vec::new(),
            log: Vec::new(),
        })))
    }

    /// Another disk with the same content.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new(self.content().len());
        let content = self.content();
        let mut theirs = copy.0.lock().unwrap();
        theirs.seen.clone_from(&content);
        theirs.durable = content;
        drop(theirs);
        copy
    }

    /// What reads see.
    pub(crate) fn content(&self) -> Vec<u8> {
        self.0.lock().unwrap().seen.clone()
    }

    /// What is certain to be there after a power failure.
    pub(crate) fn durable(&self) -> Vec<u8> {
        self.0.lock().unwrap().durable.clone()
    }

    /// Somebody else changes it.
    pub(crate) fn overwrite(&self, at: usize, byte: u8) {
        let mut content = self.0.lock().unwrap();
        content.seen[at..at + BLOCK].fill(byte);
        content.durable[at..at + BLOCK].fill(byte);
    }

    /// The power fails: all that was not flushed is gone.
    pub(crate) fn lose_power(&self) {
        let mut content = self.0.lock().unwrap();
        content.dirty.clear();
        content.seen = content.durable.clone();
    }

    pub(crate) fn fail_writes(&self, fail: bool) {
        self.0.lock().unwrap().fail_writes = fail;
    }

    pub(crate) fn fail_reads(&self, from: Option<u64>) {
        self.0.lock().unwrap().fail_reads = from;
    }

    pub(crate) fn swallow(&self, kinds: &[RequestKind]) {
        self.0.lock().unwrap().swallow = kinds.to_vec();
    }

    /// What was asked for since the last call.
    pub(crate) fn log(&self) -> Vec<(RequestKind, u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    fn run(&self, request: &Request) -> Option<Result<ReplyData, NbdError>> {
        let mut content = self.0.lock().unwrap();
        let content = &mut *content;
        let part = request.range.offset as usize..request.range.end() as usize;
        content.log.push((request.kind, request.range.offset, request.range.len));
        if content.swallow.contains(&request.kind) {
            return None;
        }
        match request.kind {
            RequestKind::Read if content.fail_reads.is_some_and(|at| request.range.end() > at) => {
                return Some(Err(NbdError::Io));
            }
            RequestKind::Read => {
                let data = Bytes::copy_from_slice(&content.seen[part]);
                return Some(Ok(ReplyData::Read(data)));
            }
            RequestKind::Flush => {
                for block in std::mem::take(&mut content.dirty) {
                    let part = block * BLOCK..(block + 1) * BLOCK;
                    content.durable[part.clone()].copy_from_slice(&content.seen[part]);
                }
                return Some(Ok(ReplyData::Done));
            }
            _ if content.fail_writes => return Some(Err(NbdError::Io)),
            RequestKind::Write => content.seen[part.clone()].copy_from_slice(&request.payload),
            _ => content.seen[part.clone()].fill(0),
        }
        if request.fua {
            content.durable[part.clone()].copy_from_slice(&content.seen[part]);
        } else {
            content.dirty.extend(part.start / BLOCK..part.end / BLOCK);
        }
        Some(Ok(ReplyData::Done))
    }
}

#[derive(Clone)]
struct Disk {
    info: ExportInfo,
    platter: Platter,
}

thread_local! {
    /// Replies that are never given.
    static SWALLOWED: std::cell::RefCell<Vec<Reply>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Export for Disk {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn submit(&self, request: Request, reply: Reply) {
        match self.platter.run(&request) {
            Some(answer) => reply.complete(answer),
            None => SWALLOWED.with_borrow_mut(|swallowed| swallowed.push(reply)),
        }
    }
}

/// Where a server listens.
#[derive(Clone)]
pub(crate) enum Place {
    Unix(PathBuf),
    /// On loopback; port 0 for any.
    Tcp(u16),
}

pub(crate) struct Server {
    pub(crate) uri: NbdUri,
    pub(crate) address: Option<SocketAddr>,
    shutdown: ShutdownHandle,
    kill: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// An export that can do all that a disk can.
pub(crate) fn able(platter: &Platter) -> ExportInfo {
    let mut info = ExportInfo::new("disk", platter.content().len() as u64);
    info.min_block = BLOCK as u32;
    info.can_trim = true;
    info.can_zero = true;
    info.can_multi_conn = true;
    info
}

impl Server {
    pub(crate) fn start(platter: &Platter, place: &Place) -> Self {
        Self::start_with(platter, place, able(platter), None)
    }

    pub(crate) fn start_with(
        platter: &Platter,
        place: &Place,
        info: ExportInfo,
        tls: Option<ServerTls>,
    ) -> Self {
        let (shutdown, signal) = Shutdown::new();
        let (kill, killed) = oneshot::channel();
        let mut address = None;
        let (listener, uri) = match place {
            Place::Unix(path) => {
                let _ = std::fs::remove_file(path);
                let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
                listener.set_nonblocking(true).unwrap();
                (Listener::Unix(listener), NbdUri::unix(path, "disk"))
            }
            Place::Tcp(port) => {
                let listener = std::net::TcpListener::bind(("127.0.0.1", *port)).unwrap();
                listener.set_nonblocking(true).unwrap();
                let at = listener.local_addr().unwrap();
                address = Some(at);
                (Listener::Tcp(listener), NbdUri::tcp("127.0.0.1", at.port(), "disk"))
            }
        };
        let disk = Disk { info, platter: platter.clone() };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            LocalSet::new().block_on(&runtime.unwrap(), async {
                tokio::select! {
                    () = accept(listener, disk, tls, signal) => {}
                    _ = killed => {}
                }
            });
            SWALLOWED.with_borrow_mut(Vec::clear);
        });
        Self { uri, address, shutdown, kill: Some(kill), thread: Some(thread) }
    }

    /// It is gone at once, with all its connections.
    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    fn kill_now(&mut self) {
        drop(self.kill.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || !matches!(ended, Some(Err(_))), "it panicked");
    }

    /// It stops in good order.
    pub(crate) fn stop(mut self) {
        self.shutdown.request();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(!matches!(ended, Some(Err(_))), "it panicked");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill_now();
    }
}

enum Listener {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

async fn accept(listener: Listener, disk: Disk, tls: Option<ServerTls>, mut shutdown: Shutdown) {
    let options = ServerOptions { shutdown: shutdown.clone(), tls, ..ServerOptions::default() };
    let mut connections = tokio::task::JoinSet::new();
    macro_rules! accept {
        ($listener:expr, $client:expr) => {{
            let listener = $listener;
            loop {
                let stream = tokio::select! {
                    () = shutdown.requested() => break,
                    accepted = listener.accept() => accepted.unwrap().0,
                };
                let (exports, options) = (SingleExport(disk.clone()), options.clone());
                connections.spawn_local(async move {
                    let client = $client(&stream);
                    let _ = serve(stream, &client, &exports, &options).await;
                });
            }
        }};
    }
    match listener {
        Listener::Unix(listener) => {
            accept!(UnixListener::from_std(listener).unwrap(), ClientInfo::unix);
        }
        Listener::Tcp(listener) => {
            let client =
                |stream: &tokio::net::TcpStream| ClientInfo::tcp(stream.peer_addr().unwrap());
            accept!(TcpListener::from_std(listener).unwrap(), client);
        }
    }
    while let Some(ended) = connections.join_next().await {
        ended.unwrap();
    }
}

/// Options for tests: nothing takes long.
pub(crate) fn options(uris: &[&NbdUri], connections: usize) -> RemoteOptions {
    let mut options = RemoteOptions::new(uris.iter().map(|uri| (*uri).clone()).collect());
    options.connections = connections;
    options.timeout = Some(Duration::from_secs(20));
    options.longest_pause = Duration::from_millis(40);
    options.connect_timeout = Duration::from_secs(3);
    options
}
