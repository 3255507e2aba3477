//! Volumes of memory, asked by real clients over a socket.

mod layouts;
mod mirrors;

use super::super::export::{Catalogue, Served};
use super::super::layout::{Layout, Shape};
use super::super::part::{Part, State};
use super::{Notice, Tell, Volume};
use holdfast_nbd::{Client, ClientError, NbdError, ServerOptions, Shutdown, ShutdownHandle, serve};
use holdfast_store::{BufferPool, Disk, FaultHandle, MemoryStore};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

const MIB: u64 = 1 << 20;
/// How long anything may take.
const SOON: Duration = Duration::from_secs(20);

/// A part of memory, and what it does wrong.
fn memory(name: &str, store: &MemoryStore) -> (Part, FaultHandle) {
    let disk = Disk::memory(store, &BufferPool::new(1 << 20)).unwrap();
    let (disk, faults) = disk.with_faults(&[]);
    (Part::of_disk(Path::new(name), disk, None), faults)
}

fn content(store: &MemoryStore) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(store.size()).unwrap()];
    store.read(0, &mut content);
    content
}

/// A served volume, in a thread of its own.
struct Bench {
    directory: TempDir,
    stop: Option<ShutdownHandle>,
    notices: Receiver<Notice>,
    thread: Option<JoinHandle<Result<(), (String, String)>>>,
}

impl Bench {
    fn new(shape: Shape, parts: Vec<Part>) -> Self {
        Self::with(shape, parts, false)
    }

    fn with(shape: Shape, parts: Vec<Part>, resizable: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, shutdown) = Shutdown::new();
        let (sender, notices) = channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let lens: Vec<u64> = parts.iter().map(Part::size).collect();
            let layout = Layout::new(shape, &lens).unwrap();
            let tell: Tell = Rc::new(move |notice| drop(sender.send(notice)));
            runtime.unwrap().block_on(async move {
                let volume = Volume::new(layout, parts, true, None, tell);
                volume.start().unwrap();
                let served = Served {
                    name: "x".into(),
                    description: String::new(),
                    read_only: false,
                    resizable,
                    volume: Rc::clone(&volume),
                };
                answer(
                    listener,
                    Rc::new(Catalogue { all: vec![served], tls_only: false }),
                    shutdown,
                )
                .await;
                volume.finish().await
            })
        });
        Self { directory, stop: Some(stop), notices, thread: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::connect_unix(self.directory.path().join("s"), "x").unwrap()
    }

    fn notice(&self) -> Notice {
        self.notices.recv_timeout(SOON).expect("something is told")
    }

    /// Ends it; whether everything was made durable.
    fn end(mut self) -> Result<(), (String, String)> {
        self.stop.take().unwrap().request();
        self.thread.take().unwrap().join().unwrap()
    }
}

async fn answer(
    listener: std::os::unix::net::UnixListener,
    catalogue: Rc<Catalogue>,
    mut shutdown: Shutdown,
) {
    let listener = UnixListener::from_std(listener).unwrap();
    let options = ServerOptions { shutdown: shutdown.clone(), ..ServerOptions::default() };
    let mut clients = Vec::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.requested() => break,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let (catalogue, options) = (Rc::clone(&catalogue), options.clone());
        clients.push(spawn_local(async move {
            let client = holdfast_nbd::ClientInfo::unix(&stream);
            // Tests let clients vanish.
            let _ = serve(stream, &client, &*catalogue, &options).await;
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
}

/// What the server answered.
fn error_of(result: Result<(), ClientError>) -> NbdError {
    match result {
        Err(ClientError::Request(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Numbers that look random and are always the same.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % limit
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.iter_mut().for_each(|byte| *byte = self.below(256) as u8);
    }
}

/// Writes, zeroes and reads at random places; what the export must hold then.
fn exercise(client: &mut Client, rounds: usize, seed: u64) -> Vec<u8> {
    let size = client.size();
    let mut dice = Dice(seed);
    let mut model = vec![0; usize::try_from(size).unwrap()];
    client.read_at(&mut model, 0).unwrap();
    for round in 0..rounds {
        let longest = if round % 7 == 0 { 300_000 } else { 9000 };
        let len = 1 + dice.below(longest.min(size));
        let offset = dice.below(size - len + 1);
        let place = usize::try_from(offset).unwrap();
        let known = &mut model[place..place + usize::try_from(len).unwrap()];
        match dice.below(6) {
            0 => {
                client.write_zeroes(offset, len).unwrap();
                known.fill(0);
            }
            1 => {
                client.trim(offset, len).unwrap();
                known.fill(0);
            }
            2 => {
                let mut found = vec![1; known.len()];
                client.read_at(&mut found, offset).unwrap();
                assert!(found == known, "{offset}+{len} in round {round}");
            }
            3 => {
                dice.fill(known);
                client.write_durable_at(known, offset).unwrap();
            }
            _ => {
                dice.fill(known);
                client.write_at(known, offset).unwrap();
            }
        }
    }
    client.flush().unwrap();
    let mut found = vec![1; model.len()];
    client.read_at(&mut found, 0).unwrap();
    assert!(found == model);
    model
}
