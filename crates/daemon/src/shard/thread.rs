//! The shard thread: its runtime, its listeners, the opening of resources.

use super::heap::keep_memory;
use super::open::{OpenError, open_disk};
use super::past::{self, PastHandle, PastSpec};
use super::registry::{ConnectionExports, Registry};
use super::resource;
use super::{ResourceHandle, ResourceSpec};
use holdfast_nbd::{
    AllowList, ClientInfo, ClientStream, PeerAddress, ServerOptions, ServerTls, Shutdown, Spinner,
    serve,
};
use holdfast_store::BufferPool;
use socket2::{SockRef, TcpKeepalive};
use std::cell::Cell;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;

/// Orders that wait for the shard thread.
const QUEUE: usize = 64;
/// How long a listener rests when the process can open no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client that has said nothing for so long is asked whether it is still there; when three such
/// questions are not answered, it is gone, and the resource is not open any more.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// How a shard works.
#[derive(Clone, Copy, Debug)]
pub struct ShardOptions {
    /// How many bytes of free payload buffers are kept for later.
    pub kept_buffers: usize,
    /// NBD connections at a time; more are closed as they come. A quarter of them is for the Unix
    /// socket, so that nobody far away keeps this machine out.
    pub max_connections: usize,
    /// Bytes of requests that one NBD connection may have under way.
    pub connection_bytes: u64,
    /// Requests that one NBD connection may have under way.
    pub connection_requests: usize,
    /// How long the thread polls before it sleeps when requests come one by one. Shortens their
    /// way where CPUs are idle, at the cost of CPU time. Zero: it sleeps at once.
    pub spin: Duration,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self {
            kept_buffers: 64 << 20,
            max_connections: 256,
            connection_bytes: 32 << 20,
            connection_requests: 256,
            spin: Spinner::usual_time(),
        }
    }
}

/// Who is let in by TCP, and how.
#[derive(Clone, Default)]
pub struct TcpAccess {
    /// The addresses that may connect.
    pub allow: AllowList,
    /// TLS, where it is offered.
    pub tls: Option<ServerTls>,
}

enum ToShard {
    Open(Box<ResourceSpec>, oneshot::Sender<Result<ResourceHandle, OpenError>>),
    Show(PastSpec, oneshot::Sender<Result<PastHandle, OpenError>>),
    Unix(StdUnixListener),
    Tcp(StdTcpListener, TcpAccess),
    LetIn(bool),
    Do(Box<dyn FnOnce() + Send>),
}

/// A shard thread. Dropping it ends the thread and everything on it, without good order: close the
/// resources first.
#[derive(Debug)]
pub struct Shard {
    orders: mpsc::Sender<ToShard>,
    ended: oneshot::Receiver<()>,
}

impl Shard {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start(options: ShardOptions) -> io::Result<Self> {
        keep_memory();
        let (orders, queue) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("shard".into());
        thread.spawn(move || {
            let _guard = EndWithThread;
            let runtime = Builder::new_current_thread()
                .enable_all()
                .thread_name("shard-blocking")
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    // Who started the thread waits for this.
                    let _ = ready.send(Ok(()));
                    runtime.block_on(run(options, queue));
                    drop(runtime);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
            // Nobody waits when the shard was dropped.
            let _ = end.send(());
        })?;
        started.recv().unwrap_or_else(|_| Err(io::Error::other("the shard thread ended")))?;
        Ok(Self { orders, ended })
    }

    /// Opens a resource: claims disk and metadata, reads the metadata, starts the core as
    /// Secondary.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is claimed then.
    pub async fn open(&self, spec: ResourceSpec) -> Result<ResourceHandle, OpenError> {
        let (done, end) = oneshot::channel();
        let sent = self.orders.send(ToShard::Open(Box::new(spec), done)).await;
        sent.map_err(|_| OpenError::Stopped)?;
        end.await.unwrap_or(Err(OpenError::Stopped))
    }

    /// Shows the disk of a resource that is not open, read-only, as the export of its name.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is shown then.
    pub async fn show(&self, spec: PastSpec) -> Result<PastHandle, OpenError> {
        let (done, end) = oneshot::channel();
        let sent = self.orders.send(ToShard::Show(spec, done)).await;
        sent.map_err(|_| OpenError::Stopped)?;
        end.await.unwrap_or(Err(OpenError::Stopped))
    }

    /// Accepts NBD clients on a Unix socket until the shard ends.
    ///
    /// # Errors
    /// When the shard has ended, or too many orders wait.
    pub fn serve_unix(&self, listener: StdUnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.order(ToShard::Unix(listener))
    }

    /// Accepts NBD clients on a TCP socket until the shard ends.
    ///
    /// # Errors
    /// When the shard has ended, or too many orders wait.
    pub fn serve_tcp(&self, listener: StdTcpListener, access: TcpAccess) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.order(ToShard::Tcp(listener, access))
    }

    /// Has NBD clients wait that come from now on, other than this process itself: until
    /// [`Self::let_clients_in`] they are connected and hear nothing.
    ///
    /// # Errors
    /// When the shard has ended, or too many orders wait.
    pub fn hold_clients(&self) -> io::Result<()> {
        self.order(ToShard::LetIn(false))
    }

    /// Ends [`Self::hold_clients`].
    pub async fn let_clients_in(&self) {
        // A shard that has ended lets nobody in.
        let _ = self.orders.send(ToShard::LetIn(true)).await;
    }

    /// Does something on the thread, which does nothing else meanwhile; returns when it is done, or
    /// the thread has ended. With nothing to do it proves that the thread goes on: one that hangs
    /// does not come to it.
    pub fn run<F: FnOnce() + Send + 'static>(
        &self,
        what: F,
    ) -> impl Future<Output = ()> + Send + use<F> {
        let orders = self.orders.clone();
        async move {
            let (done, end) = oneshot::channel::<()>();
            let work = move || {
                what();
                drop(done);
            };
            let _ = orders.send(ToShard::Do(Box::new(work))).await;
            drop(orders);
            let _ = end.await;
        }
    }

    fn order(&self, order: ToShard) -> io::Result<()> {
        self.orders.try_send(order).map_err(|error| io::Error::other(error.to_string()))
    }

    /// Ends the thread and waits until it has ended.
    pub async fn stop(self) {
        drop(self.orders);
        // An error means that it has ended, too.
        let _ = self.ended.await;
    }
}

/// Ends the process when its thread panics. Resources without their thread would look alive to
/// everybody else; after a restart everything is as after a crash, which is safe.
struct EndWithThread;

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a shard thread panicked; the daemon ends");
            std::process::abort();
        }
    }
}

/// What the tasks of a shard share.
pub(super) struct Context {
    options: ShardOptions,
    pub(super) pool: BufferPool,
    pub(super) registry: Rc<Registry>,
    pub(super) spinner: Rc<Spinner>,
    connections: Cell<usize>,
    /// Whether NBD clients are let in.
    open: watch::Sender<bool>,
}

async fn run(options: ShardOptions, mut queue: mpsc::Receiver<ToShard>) {
    let context = Rc::new(Context {
        options,
        pool: BufferPool::new(options.kept_buffers),
        registry: Rc::default(),
        spinner: Spinner::new(options.spin),
        connections: Cell::new(0),
        open: watch::channel(true).0,
    });
    spawn_local(Rc::clone(&context.spinner).run());
    while let Some(order) = queue.recv().await {
        let context = Rc::clone(&context);
        match order {
            ToShard::Open(spec, done) => {
                spawn_local(async move {
                    // Who asked may be gone; the handle then closes what was opened.
                    let _ = done.send(open(&context, *spec).await);
                });
            }
            ToShard::Show(spec, done) => {
                spawn_local(async move {
                    // Who asked may be gone; the handle then ends what was shown.
                    let _ = done.send(show(&context, spec).await);
                });
            }
            ToShard::Unix(listener) => drop(spawn_local(accept_unix(context, listener))),
            ToShard::Tcp(listener, access) => {
                spawn_local(accept_tcp(context, listener, access));
            }
            ToShard::LetIn(open) => drop(context.open.send_replace(open)),
            ToShard::Do(what) => what(),
        }
    }
}

async fn open(context: &Context, spec: ResourceSpec) -> Result<ResourceHandle, OpenError> {
    let name = spec.name.clone();
    if !context.registry.reserve(&name) {
        return Err(OpenError::NameTaken(name));
    }
    let result = open_reserved(context, spec).await;
    if result.is_err() {
        context.registry.remove(&name);
    }
    result
}

async fn open_reserved(context: &Context, spec: ResourceSpec) -> Result<ResourceHandle, OpenError> {
    let pool = context.pool.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let disk = open_disk(&spec, &pool);
        (spec, disk)
    });
    let (mut spec, disk) = opening.await.map_err(io::Error::other)?;
    let disk = disk?;
    if let Some(disk) = &disk {
        // Until it has grown to what was agreed on, it is as large as its metadata say.
        spec.config.size = disk.attachment.superblock.layout.device_size();
    }
    Ok(resource::start(spec, disk, context)?)
}

async fn show(context: &Context, spec: PastSpec) -> Result<PastHandle, OpenError> {
    if !context.registry.reserve(&spec.name) {
        return Err(OpenError::NameTaken(spec.name));
    }
    let path = spec.path.clone();
    let file = tokio::task::spawn_blocking(move || std::fs::File::open(path)).await;
    match file.map_err(io::Error::other).and_then(|file| file) {
        Ok(file) => Ok(past::show(&context.registry, spec, file)),
        Err(error) => {
            context.registry.remove(&spec.name);
            Err(error.into())
        }
    }
}

async fn accept_unix(context: Rc<Context>, listener: StdUnixListener) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the NBD socket cannot be used"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let client = ClientInfo::unix(&stream);
                spawn_local(serve_client(Rc::clone(&context), stream, client, None));
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_tcp(context: Rc<Context>, listener: StdTcpListener, access: TcpAccess) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the NBD port cannot be used"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let client = ClientInfo::tcp(address);
                if !access.allow.allows(&client.address) {
                    tracing::warn!(%address, "an NBD client is turned away: it is not allowed");
                    continue;
                }
                // Without these, replies are late and the dead are noticed late.
                let _ = stream.set_nodelay(true);
                let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                let tls = access.tls.clone();
                spawn_local(serve_client(Rc::clone(&context), stream, client, tls));
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "an NBD client could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Whether a client is this process, for a local device.
fn is_own(address: &PeerAddress) -> bool {
    let own = i32::try_from(std::process::id()).ok();
    matches!(address, PeerAddress::Unix { pid, .. } if pid.is_some() && *pid == own)
}

/// Counts a connection as long as it lives.
struct Counted(Rc<Context>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

async fn serve_client<S>(
    context: Rc<Context>,
    stream: S,
    client: ClientInfo,
    tls: Option<ServerTls>,
) where
    S: ClientStream,
{
    let most = context.options.max_connections;
    let most = match client.address {
        PeerAddress::Unix { .. } => most,
        PeerAddress::Tcp(_) => most - most / 4,
    };
    if context.connections.get() >= most {
        return tracing::warn!(client = %client.address, "an NBD client is turned away: too many");
    }
    context.connections.set(context.connections.get() + 1);
    let _counted = Counted(Rc::clone(&context));
    if !is_own(&client.address) {
        // The sender is in the context.
        let _ = context.open.subscribe().wait_for(|open| *open).await;
    }
    let (end, shutdown) = Shutdown::new();
    let exports = ConnectionExports::new(&context.registry, end);
    let pool = context.pool.clone();
    let options = ServerOptions {
        max_requests: context.options.connection_requests,
        max_bytes: context.options.connection_bytes,
        shutdown,
        buffers: Rc::new(move |len| pool.get(len)),
        tls,
        ..ServerOptions::default()
    };
    if let Err(error) = serve(stream, &client, &exports, &options).await {
        tracing::info!(client = %client.address, %error, "an NBD connection ended");
    }
}
