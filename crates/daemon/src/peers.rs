//! The other nodes: calls to them, keeping the records the same, and whether they are alive.

use crate::events::unix_ms;
use crate::node::Node;
use crate::peer_api::{SYNC, SyncAnswer, SyncCall};
use crate::refuse;
use crate::shard::LinkSocket;
use crate::task::Task;
use bytes::Bytes;
use holdfast_api::{ApiError, ErrorBody, ErrorCode};
use holdfast_cluster::{Address, Code, NodeRecord, Purpose, Uuid};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// How often two nodes compare their records when nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long comparing may take, message by message.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);
/// A node that was not heard of for so long is not alive.
const SILENCE: Duration = Duration::from_secs(10);
/// How long making a connection may take, for each address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long looking a name up may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A newcomer speaks first, within so long.
const GREETING: Duration = Duration::from_secs(2);
/// More messages than this are not needed for 10,000 records.
const MAX_ROUNDS: usize = 64;

/// What is known of the other nodes besides the records.
#[derive(Default)]
pub(crate) struct Peers {
    health: Mutex<BTreeMap<Uuid, Health>>,
    /// Wakes those who keep the records the same.
    changed: Notify,
}

/// How another node is.
#[derive(Clone, Default, Debug)]
pub(crate) struct Health {
    /// It answered last time, and not long ago.
    pub(crate) alive: bool,
    /// It was not reached last time.
    pub(crate) failed: bool,
    /// It does not let this node in: it does not know its certificate.
    pub(crate) refuses: bool,
    /// When it was last heard of.
    pub(crate) last_seen: Option<Instant>,
    /// The version of its daemon.
    pub(crate) version: String,
    /// How far its clock is ahead, in seconds.
    pub(crate) clock_offset: Option<f64>,
}

impl Peers {
    /// How a node is, as far as is known.
    pub(crate) fn health(&self, node: Uuid) -> Health {
        let mut health = self.lock().get(&node).cloned().unwrap_or_default();
        health.alive &= health.last_seen.is_some_and(|at| at.elapsed() < SILENCE);
        health
    }

    /// It spoke: it is alive. `clock_ms` is its clock, and `round_trip` how long ago at most it
    /// was looked at.
    pub(crate) fn heard(&self, node: Uuid, version: &str, clock_ms: u64, round_trip: Duration) {
        let now = unix_ms();
        let mut health = self.lock();
        let health = health.entry(node).or_default();
        health.alive = true;
        health.last_seen = Some(Instant::now());
        version.clone_into(&mut health.version);
        let ahead = i128::from(clock_ms) - i128::from(now);
        // Half of the way was after it had looked at its clock.
        let seconds = i32::try_from(ahead).map_or(f64::from(i32::MAX), f64::from) / 1000.0;
        health.clock_offset = Some(seconds + round_trip.as_secs_f64() / 2.0);
    }

    /// Looks at once how all nodes are: something happened that makes it doubtful.
    pub(crate) fn look_now(&self) {
        self.changed.notify_waiters();
    }

    /// It was not reached. One that calls by itself although it cannot be called is alive.
    fn not_reached(&self, node: Uuid, refuses: bool) {
        let mut health = self.lock();
        let health = health.entry(node).or_default();
        let calls = health.failed && health.alive;
        health.alive = calls;
        health.failed = true;
        health.refuses = refuses;
    }

    fn reached(&self, node: Uuid) {
        let mut health = self.lock();
        let health = health.entry(node).or_default();
        (health.failed, health.refuses) = (false, false);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Health>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the records the same as those of every other node, until the daemon stops: one task a
/// node, which speaks to it at every change and now and then.
pub(crate) async fn keep_in_touch(node: Arc<Node>) {
    let mut view = node.watch_view();
    let mut tasks: BTreeMap<Uuid, Task> = BTreeMap::new();
    loop {
        let others = node.others();
        tasks.retain(|uuid, _| others.iter().any(|other| other.uuid == *uuid));
        for other in &others {
            let start = || Task::spawn(touch(Arc::clone(&node), other.uuid));
            tasks.entry(other.uuid).or_insert_with(start);
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { break },
            () = node.stopped() => break,
        }
    }
}

async fn touch(node: Arc<Node>, other: Uuid) {
    let mut view = node.watch_view();
    let mut told = String::new();
    if node.view().records.node(other).is_some_and(|node| is_new(&node)) {
        // It has yet to hear that it was let in, and speaks first.
        tokio::time::sleep(GREETING).await;
    }
    loop {
        view.mark_unchanged();
        let Some(record) = node.view().records.node(other) else { return };
        let before = node.peers.health(other).alive;
        let synced = sync_with(&node, &record).await;
        if let Err(error) = &synced {
            node.peers.not_reached(other, error.code == ErrorCode::PeerRefused);
            if error.code == ErrorCode::PeerRefused {
                follow_split(&node, other).await;
            }
            if told != error.message {
                tracing::info!("{}", error.message);
                told.clone_from(&error.message);
            }
        }
        if synced.is_ok() {
            told.clear();
        }
        let after = node.peers.health(other).alive;
        if before != after {
            let word = if after { "is alive" } else { "is not reached any more" };
            tracing::info!(node = record.name, "the node {} {word}", record.name);
            node.cluster_changed();
        }
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT) => {}
            _ = view.changed() => {}
            () = node.peers.changed.notified() => {}
        }
    }
}

/// A node that knows this one not any more, and that a planned split separates from it, has carried
/// that out.
async fn follow_split(node: &Arc<Node>, other: Uuid) {
    let view = node.view();
    let Some(cluster) = &view.membership else { return };
    if !view.records.are_to_part(cluster.uuid, node.uuid, other) {
        return;
    }
    match node.cluster(move |state, now| state.refused_by(other, now)).await {
        Ok(true) => tracing::info!("the cluster was split: this node follows"),
        Ok(false) => {}
        Err(error) => tracing::warn!("{}", error.message),
    }
}

fn is_new(node: &NodeRecord) -> bool {
    let newest = u64::try_from(GREETING.as_millis()).unwrap_or(u64::MAX);
    unix_ms().saturating_sub(node.joined_at) < newest
}

/// Has the same records as another node when it returns, and knows how it is.
///
/// # Errors
/// When it cannot be reached or refuses.
pub(crate) async fn sync_with(node: &Arc<Node>, other: &NodeRecord) -> Result<(), ApiError> {
    let mut message = node.cluster(|state, _| state.start_sync()).await?;
    let from = other.uuid;
    for _ in 0..MAX_ROUNDS {
        let sent_records = !message.records.is_empty();
        let call = SyncCall { version: version(), clock_ms: unix_ms(), message };
        let started = Instant::now();
        let answer: SyncAnswer = call_node(node, other, SYNC, &call, HEARTBEAT_TIMEOUT).await?;
        node.peers.heard(from, &answer.version, answer.clock_ms, started.elapsed());
        node.peers.reached(from);
        let got_records = !answer.message.records.is_empty();
        let (next, _) =
            node.cluster(move |state, now| state.sync(from, answer.message, now)).await?;
        if !sent_records && !got_records && next.records.is_empty() {
            break;
        }
        message = next;
    }
    Ok(())
}

/// Tries to have the same records as every other node, for at most `limit`. The names of the nodes
/// that have them.
pub(crate) async fn sync_with_all(node: &Arc<Node>, limit: Duration) -> Vec<String> {
    let mut tasks = tokio::task::JoinSet::new();
    for other in node.others() {
        let node = Arc::clone(node);
        tasks.spawn(async move {
            match tokio::time::timeout(limit, sync_with(&node, &other)).await {
                Ok(Ok(())) => Some(other.name),
                _ => None,
            }
        });
    }
    let mut names: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    names.sort();
    names
}

/// The version of this daemon.
pub(crate) fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Calls another node of the cluster.
///
/// # Errors
/// `PEER_NOT_REACHABLE`, `TIMED_OUT`, or what the node refused with.
pub(crate) async fn call_node<B: Serialize, T: DeserializeOwned>(
    node: &Node,
    other: &NodeRecord,
    path: &str,
    body: &B,
    limit: Duration,
) -> Result<T, ApiError> {
    let call = async {
        let (socket, to) = connect(&other.addresses, &other.name).await?;
        let stream = node.tls.connect(socket, Purpose::Control, other.uuid, &to).await;
        request(stream.map_err(refuse::cluster)?, &other.name, path, body).await
    };
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            ErrorCode::PeerNotReachable,
            format!("node {} did not answer: {} seconds were over", other.name, limit.as_secs()),
        ))
    })
}

/// Connects to the first address that answers. `name` is for messages.
///
/// # Errors
/// `PEER_NOT_REACHABLE` with what the last address said.
pub(crate) async fn connect(
    addresses: &[String],
    name: &str,
) -> Result<(LinkSocket, String), ApiError> {
    let mut why = "it has no address".to_owned();
    for text in addresses {
        let text = text.clone();
        let resolve = tokio::task::spawn_blocking(move || Address::parse(&text, None)?.resolve());
        let found = match tokio::time::timeout(RESOLVE_TIMEOUT, resolve).await {
            Ok(Ok(Ok(found))) => found,
            Ok(Ok(Err(refusal))) => {
                why = refusal.message;
                continue;
            }
            Ok(Err(_)) | Err(_) => {
                "its name could not be looked up in time".clone_into(&mut why);
                continue;
            }
        };
        for address in found {
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
            match connected.await.map(|stream| stream.and_then(LinkSocket::new)) {
                Ok(Ok(socket)) => return Ok((socket, address.to_string())),
                Ok(Err(error)) => why = format!("{address}: {error}"),
                Err(_) => why = format!("{address}: it did not answer in time"),
            }
        }
    }
    Err(ApiError::new(ErrorCode::PeerNotReachable, format!("node {name} was not reached: {why}"))
        .hint("check that its daemon runs, and the addresses in `holdfast cluster status`"))
}

/// One HTTP request on a fresh connection.
///
/// # Errors
/// What the other side refused with, or that it was not understood.
pub(crate) async fn request<S, B, T>(
    stream: S,
    name: &str,
    path: &str,
    body: &B,
) -> Result<T, ApiError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Serialize,
    T: DeserializeOwned,
{
    let broken = |error: &dyn std::fmt::Display| {
        ApiError::new(
            ErrorCode::PeerNotReachable,
            format!("the call to node {name} failed: {error}"),
        )
    };
    let body = serde_json::to_vec(body).map_err(|error| broken(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(&e))?;
    // Ends with the request: the sender is dropped then.
    let task = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(hyper::header::HOST, "holdfast")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| not_sent(name, &e))?;
        let status = response.status();
        let limited = Limited::new(response.into_body(), holdfast_cluster::MAX_JOIN_RESPONSE_BYTES);
        let bytes = limited.collect().await.map_err(|error| broken(&error))?.to_bytes();
        Ok((status, bytes))
    };
    let result: Result<_, ApiError> = exchange.await;
    task.abort();
    let (status, bytes) = result?;
    if status == StatusCode::OK {
        return serde_json::from_slice(&bytes).map_err(|error| broken(&error));
    }
    match serde_json::from_slice::<ErrorBody>(&bytes) {
        Ok(refused) => Err(refused.error),
        Err(_) if status == StatusCode::NOT_FOUND => {
            let message = format!("the version of node {name} does not know that call");
            Err(ApiError::new(ErrorCode::NotSupportedYet, message).hint("upgrade that node, too"))
        }
        Err(_) => Err(broken(&format!("it answered with status {status}"))),
    }
}

/// Why a request was not answered, by what is at the bottom of the error: hyper hides the sentence
/// of TLS behind its own.
fn not_sent(name: &str, error: &(dyn std::error::Error + 'static)) -> ApiError {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let of =
        |code, why: &str| ApiError::new(code, format!("the call to node {name} failed: {why}"));
    let Some(io) = error.downcast_ref::<std::io::Error>() else {
        return of(ErrorCode::PeerNotReachable, &error.to_string());
    };
    let refusal = holdfast_cluster::explain(io, "it");
    match refusal.code {
        Code::RefusedByPeer => of(ErrorCode::PeerRefused, &refusal.message).hint(REMOVED),
        _ => of(ErrorCode::PeerNotReachable, &refusal.message),
    }
}

/// The way out for a node that the others do not know any more.
pub(crate) const REMOVED: &str = "if it was removed from the cluster, run `holdfast cluster leave --force` on it, and let it join \
     again with a new token";
