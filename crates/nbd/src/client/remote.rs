use super::options::RemoteOptions;
use super::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use super::status::RemoteStatus;
use super::volume::{LastSeen, RemoteInfo, RemoteOpenError, RemoteVolume};
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

/// How many requests may be under way.
const MAX_REQUESTS: usize = 4096;
/// How long an answer about the disk itself may take: the engine never waits for a server.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long closing may take.
const CLOSING: Duration = Duration::from_secs(30);

/// An export of another machine as a disk here, which survives lost connections and restarted
/// servers. Clones are the same disk; any thread may use them. When the last one is dropped, the
/// connections end, without a flush: see [`RemoteDisk::close`].
///
/// * A read returns what the last completed write left, or fails.
/// * A completed write is not lost when the server restarts, as long as this process lives.
/// * A completed flush covers all that was completed before, also when the server restarted since.
/// * A request ends within [`RemoteOptions::timeout`].
#[derive(Clone, Debug)]
pub struct RemoteDisk {
    queue: UnboundedSender<Message>,
    info: RemoteInfo,
    under_way: Arc<AtomicUsize>,
}

enum Message {
    Request(RemoteRequest, Ticket),
    Status(mpsc::SyncSender<RemoteStatus>),
    Abort(Duration, mpsc::SyncSender<()>),
    Close(mpsc::SyncSender<Result<LastSeen, RemoteFailure>>),
}

/// Who waits for a request. Told in every case.
struct Ticket {
    done: Option<Box<dyn FnOnce(RemoteOutcome) + Send>>,
    under_way: Arc<AtomicUsize>,
}

impl Ticket {
    fn tell(mut self, outcome: RemoteOutcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: RemoteOutcome) {
        if let Some(done) = self.done.take() {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            done(outcome);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(Err(RemoteFailure::Closed));
    }
}

impl RemoteDisk {
    /// Reaches the server, or the first of several that answers. Blocks for as long as that takes,
    /// at most [`RemoteOptions::connect_timeout`] twice for each URI.
    ///
    /// # Errors
    /// [`RemoteOpenError`] when none can be reached now, or none has the export that is asked for.
    pub fn open(options: RemoteOptions) -> Result<Self, RemoteOpenError> {
        let (queue, messages) = unbounded_channel();
        let (sender, opened) = mpsc::sync_channel(1);
        let run = move || run(options, messages, &sender);
        let thread = thread::Builder::new().name("nbd-client".to_owned()).spawn(run);
        thread.map_err(|error| format!("there is no thread for it: {error}"))?;
        let info =
            opened.recv().unwrap_or_else(|_| Err("its thread has ended".to_owned().into()))?;
        Ok(Self { queue, info, under_way: Arc::default() })
    }

    /// What it is like.
    #[must_use]
    pub const fn info(&self) -> &RemoteInfo {
        &self.info
    }

    /// Starts a request; `done` is called with what came of it, on a thread of the disk, which it
    /// must not block. With 4096 requests under way it is called at once, with
    /// [`RemoteFailure::Busy`].
    pub fn submit(
        &self,
        request: RemoteRequest,
        done: impl FnOnce(RemoteOutcome) + Send + 'static,
    ) {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= MAX_REQUESTS {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return done(Err(RemoteFailure::Busy));
        }
        let under_way = Arc::clone(&self.under_way);
        let ticket = Ticket { done: Some(Box::new(done)), under_way };
        // A disk that was closed drops the ticket, which tells.
        let _ = self.queue.send(Message::Request(request, ticket));
    }

    /// Does one request and waits for it.
    ///
    /// # Errors
    /// [`RemoteFailure`].
    pub fn execute(&self, request: RemoteRequest) -> RemoteOutcome {
        let (sender, outcome) = mpsc::sync_channel(1);
        // Nobody can have given up waiting.
        self.submit(request, move |outcome| drop(sender.send(outcome)));
        outcome.recv().unwrap_or(Err(RemoteFailure::Closed))
    }

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// [`RemoteFailure`] as [`io::Error`]; what `data` holds then is undefined.
    pub fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in data.chunks_mut(STEP) {
            let range = ByteRange::new(at, part.len() as u64);
            part.copy_from_slice(&self.execute(RemoteRequest::Read { range })?);
            at += range.len;
        }
        Ok(())
    }

    /// Writes `data` at `offset`; with `fua` it is durable on return.
    ///
    /// # Errors
    /// [`RemoteFailure`] as [`io::Error`]; a part may have been written then.
    pub fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let mut at = offset;
        for part in data.chunks(STEP) {
            let data = Bytes::copy_from_slice(part);
            self.execute(RemoteRequest::Write { offset: at, data, fua })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Makes durable what was completed before.
    ///
    /// # Errors
    /// [`RemoteFailure`] as [`io::Error`].
    pub fn flush(&self) -> io::Result<()> {
        Ok(self.execute(RemoteRequest::Flush).map(drop)?)
    }

    /// Gives a range back; what it reads as is undefined then.
    ///
    /// # Errors
    /// [`RemoteFailure`] as [`io::Error`].
    pub fn trim(&self, range: ByteRange) -> io::Result<()> {
        Ok(self.execute(RemoteRequest::Trim { range }).map(drop)?)
    }

    /// Makes a range read as zeroes; its space may be given back if `may_unmap`.
    ///
    /// # Errors
    /// [`RemoteFailure`] as [`io::Error`].
    pub fn write_zeroes(&self, range: ByteRange, may_unmap: bool) -> io::Result<()> {
        let request = RemoteRequest::WriteZeroes { range, may_unmap, fua: false };
        Ok(self.execute(request).map(drop)?)
    }

    /// What is going on; `None` when the disk was closed.
    #[must_use]
    pub fn status(&self) -> Option<RemoteStatus> {
        let (sender, status) = mpsc::sync_channel(1);
        self.queue.send(Message::Status(sender)).ok()?;
        status.recv_timeout(PATIENCE).ok()
    }

    /// Fails all that is pending at once and gives all connections up; new requests wait for
    /// `hold`, then the server is dialled again.
    pub fn abort(&self, hold: Duration) {
        let (sender, aborted) = mpsc::sync_channel(1);
        if self.queue.send(Message::Abort(hold, sender)).is_ok() {
            // A disk that is closed meanwhile fails all requests, too.
            let _ = aborted.recv_timeout(PATIENCE);
        }
    }

    /// Flushes, ends the connections and fails all further requests of all clones. What the export
    /// was like last.
    ///
    /// # Errors
    /// When the flush failed or took more than 10 seconds, or the disk was closed already. It is
    /// closed in every case.
    pub fn close(&self) -> Result<LastSeen, RemoteFailure> {
        let (sender, closed) = mpsc::sync_channel(1);
        if self.queue.send(Message::Close(sender)).is_err() {
            return Err(RemoteFailure::Closed);
        }
        closed.recv_timeout(CLOSING).unwrap_or(Err(RemoteFailure::Closed))
    }
}

/// Longer reads and writes are done one part after the other.
const STEP: usize = 32 << 20;

fn run(
    options: RemoteOptions,
    messages: UnboundedReceiver<Message>,
    opened: &mpsc::SyncSender<Result<RemoteInfo, RemoteOpenError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = format!("there is no runtime for it: {error}").into();
            // Who opens it waits for this.
            let _ = opened.send(Err(error));
            return;
        }
    };
    LocalSet::new().block_on(&runtime, serve(options, messages, opened));
    // A lookup of a name may still be stuck on a thread of the runtime.
    runtime.shutdown_background();
}

async fn serve(
    options: RemoteOptions,
    mut messages: UnboundedReceiver<Message>,
    opened: &mpsc::SyncSender<Result<RemoteInfo, RemoteOpenError>>,
) {
    let volume = match RemoteVolume::open(options).await {
        Ok(volume) => volume,
        Err(error) => {
            // Who opens it waits for this.
            let _ = opened.send(Err(error));
            return;
        }
    };
    // As above, and below: who asked may have given up waiting.
    let _ = opened.send(Ok(*volume.info()));
    while let Some(message) = messages.recv().await {
        match message {
            Message::Request(request, ticket) => {
                volume.submit(request, |outcome| ticket.tell(outcome));
            }
            Message::Status(reply) => drop(reply.send(volume.status())),
            Message::Abort(hold, reply) => {
                volume.abort(hold);
                let _ = reply.send(());
            }
            Message::Close(reply) => {
                messages.close();
                let _ = reply.send(volume.close().await);
                return;
            }
        }
    }
}
