//! `serve`: an NBD server for files and devices, without a daemon.

mod arguments;
mod export;
mod inherited;
mod layout;
mod listen;
mod open;
mod order;
mod part;
mod record;
mod report;
mod volume;

pub(crate) use arguments::Serve;

use crate::output::{Ui, say};
use arguments::{Direct, LayoutArg, TlsWhen};
use export::Catalogue;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_nbd::{AllowList, NbdUri, ServerTls, Shutdown, ShutdownHandle};
use holdfast_store::BufferPool;
use layout::Shape;
use listen::{Listener, Server};
use open::{Plan, list_parts};
use report::{Announced, Pace, Reporter};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::Socket;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_local;
use volume::{Counters, Tell};

/// Where clients reach it when nobody says.
const DEFAULT_LISTEN: &str = "127.0.0.1:10809";
/// How many bytes of free payload buffers are kept for later.
const KEPT_BUFFERS: usize = 64 << 20;
/// How often the line with counters is renewed.
const PROGRESS: Duration = Duration::from_secs(1);
/// How long clients may take to leave at the end: more than their requests and a farewell.
const LEAVE: Duration = Duration::from_secs(8);

/// Serves until SIGTERM or SIGINT, or until the last client has gone.
pub(crate) fn run(ui: &Ui, args: &Serve) -> Result<(), ApiError> {
    let sockets = inherited::take()?;
    raise_file_limit();
    let missing = holdfast_daemon::guard_memory(args.lock_memory.unwrap_or(true));
    // Whoever did not ask for it is most likely on another machine than the clients.
    if let Some(missing) = missing.filter(|_| args.lock_memory.is_some()) {
        say(&format!("warning: {missing}\n"));
    }
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = runtime.map_err(|why| {
        ApiError::new(ErrorCode::Internal, format!("the server was not started: {why}"))
    })?;
    let result = runtime.block_on(serve(ui, args, sockets));
    // What still blocks must not hold the end up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(ui: &Ui, args: &Serve, sockets: Vec<Socket>) -> Result<(), ApiError> {
    let mut signals = Signals::new()?;
    let tls = server_tls(args)?;
    let reporter = Rc::new(Reporter::new(ui));
    let pool = BufferPool::new(KEPT_BUFFERS);
    let plans = plans(args)?;
    let mut catalogue = Vec::new();
    for plan in &plans {
        let (name, reporter) = (plan.name.clone(), Rc::clone(&reporter));
        let tell: Tell = Rc::new(move |notice| reporter.notice(&name, &notice));
        catalogue.push(plan.open(&pool, &tell)?);
    }
    let listeners = listeners(args, sockets).await?;
    let announced = announced(&plans, &catalogue, &listeners, tls.is_some());
    let (stop, shutdown) = Shutdown::new();
    let limits = (AllowList::new(args.allow.clone()), args.max_connections);
    let catalogue = Catalogue { all: catalogue, tls_only: args.tls == TlsWhen::Exports };
    let server = Server::new(catalogue, Rc::clone(&reporter), limits, tls, &pool, shutdown);
    for served in &server.catalogue.all {
        served.volume.start().map_err(|why| {
            ApiError::new(ErrorCode::Internal, format!("the server was not started: {why}"))
        })?;
    }
    reporter.ready(&announced, &elsewhere(args, &listeners, &announced));
    // That systemd does not listen is no error.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|listener| spawn_local(Rc::clone(&server).accept(listener)))
        .collect();
    if reporter.is_live() {
        spawn_local(show_progress(Rc::clone(&server)));
    }
    tokio::select! {
        () = signals.end() => {}
        () = server.clients.gone(true), if args.exit_after_last => {}
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    for task in accepting {
        task.abort();
        // An error says that it was ended, as it should.
        let _ = task.await;
    }
    end(&server, &stop, &mut signals).await
}

/// Sees the clients off and makes everything durable.
async fn end(
    server: &Server,
    stop: &ShutdownHandle,
    signals: &mut Signals,
) -> Result<(), ApiError> {
    stop.request();
    tokio::select! {
        _ = tokio::time::timeout(LEAVE, server.clients.gone(false)) => {}
        () = signals.end() => server.reporter.warn("told to stop twice: clients are cut off"),
    }
    let mut result = Ok(());
    for served in &server.catalogue.all {
        if let Err((part, why)) = served.volume.finish().await {
            let message = format!("{part} was not made durable: {why}");
            result = result.and(Err(ApiError::new(ErrorCode::DiskFailed, message).hint(
                "what clients have flushed before is safe; what they wrote since may be lost",
            )));
        }
    }
    server.reporter.end(counters(server), server.clients.total());
    result
}

/// What all exports have done together.
fn counters(server: &Server) -> Counters {
    let all = server.catalogue.all.iter().map(|served| served.volume.counters());
    all.fold(Counters::default(), |sum, one| Counters {
        reads: sum.reads + one.reads,
        read_bytes: sum.read_bytes + one.read_bytes,
        writes: sum.writes + one.writes,
        written_bytes: sum.written_bytes + one.written_bytes,
        zeroed_bytes: sum.zeroed_bytes + one.zeroed_bytes,
        flushes: sum.flushes + one.flushes,
        errors: sum.errors + one.errors,
    })
}

async fn show_progress(server: Rc<Server>) {
    let mut pace = Pace::new(Instant::now());
    loop {
        tokio::time::sleep(PROGRESS).await;
        let line = pace.line(Instant::now(), counters(&server), server.clients.now());
        server.reporter.progress(&line);
    }
}

fn plans(args: &Serve) -> Result<Vec<Plan>, ApiError> {
    let shape = match args.layout {
        LayoutArg::Concat => Shape::Concat,
        LayoutArg::Stripe => Shape::Stripe { chunk: args.chunk },
        LayoutArg::Mirror => Shape::Mirror,
    };
    let plan = |name: &str, paths: &[std::path::PathBuf]| Plan {
        name: name.to_owned(),
        description: args.description.clone().unwrap_or_default(),
        paths: paths.to_vec(),
        shape,
        read_only: args.read_only,
        resizable: args.resizable,
        direct: match args.direct {
            Direct::Auto => None,
            Direct::Always => Some(true),
            Direct::Never => Some(false),
        },
        track_changes: args.track_changes,
        size: args.size,
    };
    let mut plans = Vec::new();
    if !args.paths.is_empty() {
        plans.push(plan(&args.name, &args.paths));
    }
    for (name, paths) in &args.export {
        if plans.iter().any(|other: &Plan| other.name == *name) {
            let message = format!("export {name} was not served: its name is given twice");
            return Err(ApiError::new(ErrorCode::AlreadyExists, message));
        }
        plans.push(plan(name, paths));
    }
    Ok(plans)
}

fn server_tls(args: &Serve) -> Result<Option<ServerTls>, ApiError> {
    let Some(directory) = &args.tls_certificates else { return Ok(None) };
    let required = args.tls == TlsWhen::Required;
    let tls = ServerTls::from_directory(directory, required, args.tls_verify_peer);
    tls.map(Some).map_err(|why| {
        ApiError::new(ErrorCode::InvalidPath, format!("TLS cannot be offered: {why}"))
            .hint("the directory holds server-cert.pem and server-key.pem, and ca-cert.pem for `--tls-verify-peer`")
    })
}

async fn listeners(args: &Serve, sockets: Vec<Socket>) -> Result<Vec<Listener>, ApiError> {
    let handed_over: Result<Vec<_>, _> = sockets.into_iter().map(inherited::listen).collect();
    let mut listeners = handed_over?;
    for text in &args.listen {
        listeners.push(Listener::tcp(text).await?);
    }
    if let Some(path) = &args.unix {
        listeners.push(Listener::unix(path)?);
    }
    if listeners.is_empty() {
        listeners.push(Listener::tcp(DEFAULT_LISTEN).await?);
    }
    Ok(listeners)
}

fn announced(
    plans: &[Plan],
    catalogue: &[export::Served],
    listeners: &[Listener],
    tls: bool,
) -> Vec<Announced> {
    let one = |(plan, served): (&Plan, &export::Served)| Announced {
        name: plan.name.clone(),
        parts: list_parts(&plan.paths),
        layout: match (plan.paths.len(), plan.shape) {
            (1, _) => "single",
            (_, Shape::Concat) => "concat",
            (_, Shape::Stripe { .. }) => "stripe",
            (_, Shape::Mirror) => "mirror",
        },
        size: served.volume.size(),
        read_only: plan.read_only,
        uris: listeners.iter().map(|listener| listener.uri(&plan.name, tls)).collect(),
    };
    plans.iter().zip(catalogue).map(one).collect()
}

/// What to type on the other machine.
fn elsewhere(args: &Serve, listeners: &[Listener], announced: &[Announced]) -> String {
    let tls = if args.tls_certificates.is_some() { " --tls-certificates DIR" } else { "" };
    let attach = |uri: &NbdUri| {
        let quoted =
            if uri.to_string().contains('?') { format!("'{uri}'") } else { uri.to_string() };
        format!("holdfast attach {quoted}{tls}")
    };
    let uris = announced.first().map(|export| &export.uris[..]).unwrap_or_default();
    let public = listeners.iter().position(Listener::is_public);
    match (public.and_then(|at| uris.get(at)), uris.first()) {
        (Some(uri), _) => format!("on the other machine: {}", attach(uri)),
        (None, Some(uri)) => {
            format!("on this machine: {} (`--listen 0.0.0.0` lets other machines in)", attach(uri))
        }
        (None, None) => String::new(),
    }
}

/// The signals that end the server.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal has gone; `None` where that is of no interest (`nohup`).
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> Result<Self, ApiError> {
        let hook = |kind| {
            signal(kind).map_err(|why| {
                ApiError::new(ErrorCode::Internal, format!("the server was not started: {why}"))
            })
        };
        Ok(Self {
            terminate: hook(SignalKind::terminate())?,
            interrupt: hook(SignalKind::interrupt())?,
            hangup: if ignores_hangup() { None } else { Some(hook(SignalKind::hangup())?) },
        })
    }

    async fn end(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether whoever started this process wants it to outlive its terminal.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// Every client takes a file descriptor: as many as the system lets this process have.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer, fewer clients are let in.
    let _ = setrlimit(Resource::Nofile, limit);
}
