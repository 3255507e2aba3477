//! `holdfast daemon`: process, signals, logs.

use crate::config::{self, ConfigError, ConfigFile};
use crate::daemon::Daemon;
use crate::listeners::Kept;
use crate::log::Log;
use crate::memory::guard_memory;
use crate::node::Node;
use crate::options::{DaemonOptions, Settings, effective};
use crate::service;
use holdfast_api::{ApiError, ErrorCode};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Says what is logged, in the syntax of `tracing`; `info` when it is not set.
const LOG_VARIABLE: &str = "HOLDFAST_LOG";
/// When stopping takes longer, the process ends without having stopped everything.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// The last lines of the log are waited for no longer.
const LOG_LIMIT: Duration = Duration::from_secs(1);

/// Runs the daemon of a node in the foreground until SIGTERM or SIGINT. Prints
/// `ready: node NAME, listening on ADDR` on standard output, and tells systemd, once everything is
/// up. Logs go to standard error.
///
/// # Errors
/// Why it could not be started. Nothing is left running then.
pub fn run(options: &DaemonOptions) -> Result<(), ApiError> {
    // Before anything else is opened.
    let kept = Kept::take();
    let log = Log::start();
    log_to_stderr(&log);
    let result = try_run(options, kept).map_err(ApiError::plain);
    log.flush(LOG_LIMIT);
    result
}

fn try_run(options: &DaemonOptions, kept: Kept) -> Result<(), ApiError> {
    let file = config::load(options.config.as_deref())?.unwrap_or_default();
    let settings = Settings::from_parts(options, &file)?;
    if let Some(missing) = guard_memory(settings.lock_memory) {
        tracing::warn!(
            "{missing}; run it as root, or say lock-memory = false when no filesystem of this \
             machine is on its resources"
        );
    }
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| not_started(&error))?;
    let result = runtime.block_on(serve(options, &file, settings, kept));
    // What still blocks must not hold the end up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn not_started(error: &io::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the daemon was not started: {error}"))
}

async fn serve(
    options: &DaemonOptions,
    file: &ConfigFile,
    settings: Settings,
    kept: Kept,
) -> Result<(), ApiError> {
    let hook = |kind| signal(kind).map_err(|error| not_started(&error));
    let mut terminate = hook(SignalKind::terminate())?;
    let mut interrupt = hook(SignalKind::interrupt())?;
    let mut hangup = hook(SignalKind::hangup())?;
    let daemon = Daemon::start(settings, kept).await?;
    let node = &daemon.node;
    if let Some(address) = node.nbd_tcp {
        tracing::info!("NBD clients are served on {address}");
    }
    say_ready(&format!("ready: node {}, listening on {}", node.name, node.listen));
    service::ready(&service::summary(node));
    tokio::spawn(service::tell_state(Arc::clone(node)));
    if let Some(limit) = service::watchdog_limit() {
        tokio::spawn(service::watch(Arc::clone(node), limit, service::sign_of_life));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = reload_at_each(&mut hangup, || reload(options, file, node)) => {}
    }
    service::stopping();
    tracing::info!("stopping");
    tokio::select! {
        stopped = tokio::time::timeout(STOP_LIMIT, daemon.stop()) => {
            if stopped.is_err() {
                tracing::error!("not everything stopped in time");
            }
        }
        _ = terminate.recv() => tracing::warn!("told to stop twice: ended at once"),
        _ = interrupt.recv() => tracing::warn!("told to stop twice: ended at once"),
    }
    Ok(())
}

/// Reads the configuration at each SIGHUP; ends only with the signals.
async fn reload_at_each(hangup: &mut Signal, reload: impl Fn() -> String) {
    while hangup.recv().await.is_some() {
        service::reloading();
        service::ready(&reload());
    }
    std::future::pending::<()>().await;
}

/// Reads the configuration again, and tells in the log and as the answer what came of it. The defaults
/// for resources hold from now on; everything else is used at the start only, so this says what the
/// next start would change. A file that cannot be used changes nothing.
fn reload(options: &DaemonOptions, started_with: &ConfigFile, node: &Node) -> String {
    let refused = "the configuration was not read again, and the daemon goes on as before";
    let refuse = |why: &str| {
        tracing::error!("{refused}: {why}");
        format!("{refused}: {why}")
    };
    let file = match config::load(options.config.as_deref()) {
        Ok(file) => file.unwrap_or_default(),
        Err(ConfigError::Unreadable(error)) => return refuse(&error.message),
        Err(ConfigError::Bad(bad)) => {
            for line in bad.lines() {
                tracing::error!("{line}");
            }
            return refuse(&bad.refusal().message);
        }
    };
    if let Err(error) = Settings::from_parts(options, &file) {
        return refuse(&error.message);
    }
    let mut told = if node.set_resource_defaults(&file.resource_defaults) {
        "the defaults for resources have changed; they hold for what is made from now on".to_owned()
    } else {
        "the configuration was read again".to_owned()
    };
    tracing::info!("{told}");
    let (old, new) = (effective(options, started_with), effective(options, &file));
    let pairs = old.iter().zip(&new).filter(|(old, new)| old.value != new.value);
    let changed: Vec<&str> = pairs.map(|(old, _)| old.key).collect();
    if !changed.is_empty() {
        told = format!(
            "{} changed in the configuration: this holds from the next start on",
            and(&changed)
        );
        tracing::warn!("{told}");
    }
    told
}

/// `a`, `a and b`, `a, b and c`.
fn and(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn say_ready(line: &str) {
    tracing::info!("{line}");
    let mut out = io::stdout().lock();
    // Nobody may be reading it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn log_to_stderr(log: &Log) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    // journald adds the time itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let ansi = !journal && io::IsTerminal::is_terminal(&io::stderr());
    let log = log.clone();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || log.clone())
        .with_ansi(ansi)
        .log_internal_errors(false);
    // A program that has the daemon in it may have set up its own log.
    let _ = if journal { builder.without_time().try_init() } else { builder.try_init() };
}

/// Every connection and disk takes file descriptors: as many as the system lets this process have.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
