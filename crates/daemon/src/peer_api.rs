//! What nodes call on each other, and the listener for it: control calls, joins, data links.

use crate::commands;
use crate::doorstep::{Doorstep, Place, SUM_UP};
use crate::events::unix_ms;
use crate::guests;
use crate::http::{self, Failure};
use crate::logpeer;
use crate::node::Node;
use crate::opening;
use crate::peers::{sync_with_all, version};
use crate::refuse;
use crate::resyncs;
use crate::shard::{LinkOrigin, LinkSocket};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, Json, State};
use axum::routing::post;
use holdfast_api::request::{Done, PauseWhat};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{
    ACCEPT_TIMEOUT, Caller, Fingerprint, JoinRequest, JoinResponse, MAX_JOIN_REQUEST_BYTES,
    MAX_MERGE_REQUEST_BYTES, MAX_SYNC_BYTES, PinnedNode, Purpose, SyncMessage, Uuid,
};
use holdfast_units::{NodeId, ResourceId};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Keeping the records the same.
pub(crate) const SYNC: &str = "/peer/v1/sync";
/// A node asks a member for a slot in a resource.
pub(crate) const JOIN_RESOURCE: &str = "/peer/v1/join-resource";
/// A node asks a member to make room in its metadata for the bitmap of a member to come.
pub(crate) const MAKE_ROOM: &str = "/peer/v1/make-room";
/// A node asks a member whether a resource may be deleted.
pub(crate) const MAY_DELETE: &str = "/peer/v1/may-delete";
/// A node asks a member how large the resource could be there.
pub(crate) const ROOM_TO_GROW: &str = "/peer/v1/room-to-grow";
/// A node asks a member to make its disk ready for a larger size.
pub(crate) const GROW: &str = "/peer/v1/make-ready-to-grow";
/// A node asks a member whether a resource may have another name, or to take that over.
pub(crate) const RENAME: &str = "/peer/v1/rename";
/// A node has a member hold or let go on what `pause` names.
pub(crate) const PAUSE: &str = "/peer/v1/pause";
/// A node that waits for data links is ready for them.
pub(crate) const DIAL: &str = "/peer/v1/dial";
/// A node asks whether another one leads a resource.
pub(crate) const LEADS: &str = "/peer/v1/leads";
/// A node that follows asks the Primary to step back in its favour.
pub(crate) const HAND_OVER: &str = "/peer/v1/hand-over";
pub(crate) const MAY_HAND_OVER: &str = "/peer/v1/may-hand-over";
/// A node leads from now on; the others follow it.
pub(crate) const FOLLOW: &str = "/peer/v1/follow";
/// A newcomer joins the cluster.
pub(crate) const JOIN: &str = "/peer/v1/join";
/// A node of another cluster has its cluster merged into this one.
pub(crate) const MERGE: &str = "/peer/v1/merge";

/// Connections of other nodes that are served at a time, data links not counted.
const MAX_CONNECTIONS: usize = 256;
/// Those who want to join that are served at a time. Anybody can claim to be one.
const MAX_JOINERS: usize = 16;
/// Connections of nodes that follow a journal here.
const MAX_LOG_CONNECTIONS: usize = 256;
/// How long one of them may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the opening of a data link may take.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other nodes are waited for when a newcomer has joined.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(3);

/// A message of the exchange of records.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SyncCall {
    /// The caller's version.
    pub(crate) version: String,
    /// The caller's clock, milliseconds since 1970.
    pub(crate) clock_ms: u64,
    pub(crate) message: SyncMessage,
}

/// The answer to a [`SyncCall`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SyncAnswer {
    pub(crate) version: String,
    pub(crate) clock_ms: u64,
    pub(crate) message: SyncMessage,
}

/// A node wants to be a member of a resource. The node is the one of the connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JoinResource {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    pub(crate) diskless: bool,
    pub(crate) protocol: String,
    /// What its journal may take, in bytes; 0 when it has none.
    #[serde(default)]
    pub(crate) journal_bytes: u64,
}

/// Room is wanted in the metadata of a resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MakeRoom {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    /// The number of the member to come.
    pub(crate) slot: u8,
}

/// A resource that a call is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AboutResource {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
}

/// How large a resource could be on a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RoomToGrow {
    /// In bytes; `None` when it has no disk.
    pub(crate) bytes: Option<u64>,
}

/// A disk is to be made ready for a larger resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MakeReady {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    /// The size to come, in bytes.
    pub(crate) size: u64,
}

/// A resource is to have another name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RenameMember {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    /// The name.
    pub(crate) new: String,
    /// The records say so already: it is to be taken over.
    pub(crate) now: bool,
}

/// Something of a resource is to be held, or to go on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PauseMember {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    pub(crate) what: PauseWhat,
    pub(crate) on: bool,
}

/// Takes the connections of other nodes until the daemon stops.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let doorstep = Arc::new(Doorstep::default());
    let inside = Inside::default();
    let mut sum_up = tokio::time::interval(SUM_UP);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = node.stopped() => return,
            _ = sum_up.tick() => {
                doorstep.sum_up();
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "taking a connection of a node failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (node, inside) = (Arc::clone(&node), inside.clone());
        let log = Arc::clone(&doorstep);
        doorstep.receive(from, |place| async move {
            if let Err(error) = take(&node, stream, from, place, &inside).await {
                log.refused(&error.message);
            }
        });
    }
}

/// Who is served at a time, after it is known who they are.
#[derive(Clone)]
struct Inside {
    nodes: Arc<Semaphore>,
    joiners: Arc<Semaphore>,
    logs: Arc<Semaphore>,
}

impl Default for Inside {
    fn default() -> Self {
        Self {
            nodes: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            joiners: Arc::new(Semaphore::new(MAX_JOINERS)),
            logs: Arc::new(Semaphore::new(MAX_LOG_CONNECTIONS)),
        }
    }
}

async fn take(
    node: &Arc<Node>,
    stream: TcpStream,
    from: SocketAddr,
    place: Place,
    inside: &Inside,
) -> Result<(), ApiError> {
    let broken = |error: io::Error| {
        let message = format!("the connection from {from} failed: {error}");
        ApiError::new(ErrorCode::PeerNotReachable, message)
    };
    let too_many = |_| {
        let message = format!("the connection from {from} was closed: too many are open");
        ApiError::new(ErrorCode::PeerNotReachable, message)
    };
    let greeted = tokio::time::timeout(ACCEPT_TIMEOUT, stream.readable()).await;
    greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(broken)?;
    place.spoke();
    let socket = LinkSocket::new(stream).map_err(broken)?;
    let accepted = node.tls.accept(socket, &from.to_string()).await;
    let (stream, caller) = accepted.map_err(refuse::cluster)?;
    let room = match caller {
        Caller::Node { .. } => &inside.nodes,
        Caller::Joiner { .. } => &inside.joiners,
    };
    let room = room.try_acquire().map_err(too_many)?;
    // From here on it is not in the way of strangers, nor they in its.
    drop(place);
    match caller {
        Caller::Node { node: peer, purpose: Purpose::Data } => {
            let opening = take_link(node, stream, &peer);
            match tokio::time::timeout(OPENING_TIMEOUT, opening).await {
                Ok(taken) => taken.map_err(broken),
                Err(_) => Err(broken(io::ErrorKind::TimedOut.into())),
            }
        }
        Caller::Node { node: peer, purpose: purpose @ (Purpose::Log | Purpose::Lend) } => {
            // They stay, and must not be in the way of calls.
            drop(room);
            let log_room = inside.logs.try_acquire().map_err(too_many)?;
            let served = match purpose {
                Purpose::Lend => logpeer::lend(node, stream, &peer).await,
                _ => logpeer::take(node, stream, &peer).await,
            };
            drop(log_room);
            served.map_err(broken)
        }
        Caller::Node { node: peer, .. } => {
            http::serve_connection(stream, peer_router(Arc::clone(node), peer)).await;
            Ok(())
        }
        Caller::Joiner { fingerprint } => {
            let serving =
                http::serve_connection(stream, join_router(Arc::clone(node), fingerprint));
            // Who takes longer has had its answer, or has not asked.
            let _ = tokio::time::timeout(JOIN_TIMEOUT, serving).await;
            Ok(())
        }
    }
}

fn peer_router(node: Arc<Node>, peer: PinnedNode) -> Router {
    Router::new()
        .route(SYNC, post(sync))
        .route(JOIN_RESOURCE, post(join_resource))
        .route(MAKE_ROOM, post(make_room))
        .route(MAY_DELETE, post(may_delete))
        .route(ROOM_TO_GROW, post(room_to_grow))
        .route(GROW, post(make_ready))
        .route(RENAME, post(rename))
        .route(PAUSE, post(pause))
        .route(guests::LOOK, post(look))
        .route(DIAL, post(dial))
        .route(LEADS, post(leads))
        .route(HAND_OVER, post(hand_over))
        .route(MAY_HAND_OVER, post(may_hand_over))
        .route(FOLLOW, post(follow))
        .layer(DefaultBodyLimit::max(MAX_SYNC_BYTES))
        .layer(Extension(peer))
        .with_state(node)
}

fn join_router(node: Arc<Node>, fingerprint: Fingerprint) -> Router {
    Router::new()
        .route(JOIN, post(join))
        .layer(DefaultBodyLimit::max(MAX_JOIN_REQUEST_BYTES))
        .route(MERGE, post(merge).layer(DefaultBodyLimit::max(MAX_MERGE_REQUEST_BYTES)))
        .layer(Extension(fingerprint))
        .with_state(node)
}

async fn sync(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<PinnedNode>,
    Json(call): Json<SyncCall>,
) -> Result<Json<SyncAnswer>, Failure> {
    let was_alive = node.peers.health(peer.uuid).alive;
    node.peers.heard(peer.uuid, &call.version, call.clock_ms, Duration::ZERO);
    if !was_alive {
        node.cluster_changed();
    }
    let from = peer.uuid;
    let (message, _) = node.cluster(move |state, now| state.sync(from, call.message, now)).await?;
    Ok(Json(SyncAnswer { version: version(), clock_ms: unix_ms(), message }))
}

async fn join_resource(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<PinnedNode>,
    Json(call): Json<JoinResource>,
) -> Result<Json<Done>, Failure> {
    commands::join::let_in(&node, peer.uuid, call).await.map(Json).map_err(Failure::from)
}

async fn make_room(
    State(node): State<Arc<Node>>,
    Json(call): Json<MakeRoom>,
) -> Result<Json<Done>, Failure> {
    if let Some(slot) = NodeId::new(call.slot) {
        commands::join::make_room(&node, call.resource, slot).await?;
    }
    Ok(Json(Done::new("there is room")))
}

async fn may_delete(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<PinnedNode>,
    Json(call): Json<AboutResource>,
) -> Result<Json<Done>, Failure> {
    commands::leave::may_delete(&node, call.resource)?;
    Ok(Json(Done::new(format!("node {} agrees to node {}", node.name, peer.name))))
}

async fn room_to_grow(
    State(node): State<Arc<Node>>,
    Json(call): Json<AboutResource>,
) -> Result<Json<RoomToGrow>, Failure> {
    Ok(Json(RoomToGrow { bytes: commands::resize::room_of(&node, call.resource).await? }))
}

async fn make_ready(
    State(node): State<Arc<Node>>,
    Json(call): Json<MakeReady>,
) -> Result<Json<Done>, Failure> {
    commands::resize::ready(&node, call.resource, call.size).await?;
    Ok(Json(Done::new("it is ready")))
}

async fn rename(
    State(node): State<Arc<Node>>,
    Json(call): Json<RenameMember>,
) -> Result<Json<Done>, Failure> {
    commands::rename::on_member(&node, &call).await?;
    Ok(Json(Done::new("it is well")))
}

async fn pause(
    State(node): State<Arc<Node>>,
    Json(call): Json<PauseMember>,
) -> Result<Json<Done>, Failure> {
    resyncs::on_member(&node, &call).await.map(Json).map_err(Failure::from)
}

async fn dial(State(node): State<Arc<Node>>, Json(call): Json<AboutResource>) -> Json<Done> {
    if let Some(resource) = node.resource(call.resource) {
        resource.dial_now.notify_one();
    }
    Json(Done::new("it dials"))
}

async fn look(
    State(node): State<Arc<Node>>,
    Json(call): Json<AboutResource>,
) -> Result<Json<guests::Look>, Failure> {
    guests::Look::of(&node, call.resource).map(Json).ok_or_else(|| {
        let message = format!("node {} is no member of the resource", node.name);
        ApiError::new(ErrorCode::NotMember, message).into()
    })
}

async fn leads(
    State(node): State<Arc<Node>>,
    Json(call): Json<AboutResource>,
) -> Json<logpeer::Leads> {
    Json(logpeer::Leads::of(&node, call.resource).await)
}

/// Carries a call out to its end, also when the caller dies: half of a change of roles is nobody's.
async fn to_its_end<T: Send + 'static>(
    call: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<Json<T>, Failure> {
    let ended = tokio::spawn(call).await;
    let ended = ended.unwrap_or_else(|e| Err(refuse::internal("a call was not carried out", &e)));
    ended.map(Json).map_err(Failure::from)
}

async fn hand_over(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<PinnedNode>,
    Json(call): Json<logpeer::HandOver>,
) -> Result<Json<logpeer::HandedOver>, Failure> {
    to_its_end(async move { logpeer::hand_over(&node, call, peer.uuid).await }).await
}

async fn may_hand_over(
    State(node): State<Arc<Node>>,
    Json(call): Json<logpeer::HandOver>,
) -> Result<Json<Done>, Failure> {
    logpeer::may_hand_over(&node, call).await.map(Json).map_err(Failure::from)
}

async fn follow(
    State(node): State<Arc<Node>>,
    Extension(peer): Extension<PinnedNode>,
    Json(call): Json<logpeer::FollowCall>,
) -> Result<Json<Done>, Failure> {
    to_its_end(async move { logpeer::follow_now(&node, call, &peer.name).await }).await
}

async fn join(
    State(node): State<Arc<Node>>,
    Extension(fingerprint): Extension<Fingerprint>,
    Json(request): Json<JoinRequest>,
) -> Result<Json<JoinResponse>, Failure> {
    let name = request.name.clone();
    let newcomer = request.node;
    let response = node.cluster(move |state, now| state.admit(&request, fingerprint, now)).await?;
    tracing::info!("node {name} joined the cluster");
    spread(&node, newcomer).await;
    Ok(Json(response))
}

async fn merge(
    State(node): State<Arc<Node>>,
    Extension(fingerprint): Extension<Fingerprint>,
    Json(call): Json<commands::merge::Call>,
) -> Result<Json<JoinResponse>, Failure> {
    commands::merge::take_in(&node, fingerprint, call).await.map(Json).map_err(Failure::from)
}

/// Tells the other nodes of a newcomer, who cannot be called yet: it waits for the answer.
pub(crate) async fn spread(node: &Arc<Node>, newcomer: Uuid) {
    let mut tasks = tokio::task::JoinSet::new();
    for other in node.others().into_iter().filter(|other| other.uuid != newcomer) {
        let node = Arc::clone(node);
        tasks.spawn(async move {
            let synced = crate::peers::sync_with(&node, &other);
            // Who is not reached now hears of it later.
            let _ = tokio::time::timeout(SPREAD_TIMEOUT, synced).await;
        });
    }
    tasks.join_all().await;
}

/// Reads the opening of a link and hands the link to its resource, or says why not.
async fn take_link(
    node: &Arc<Node>,
    mut stream: tokio_rustls::server::TlsStream<LinkSocket>,
    peer: &PinnedNode,
) -> io::Result<()> {
    let found = opening::read(&mut stream).await?.and_then(|opening| {
        let resource = opening.resource_of(node, peer)?;
        if resource.state().no_room.contains_key(&opening.from) {
            return Err("there is no room in the metadata for the bitmap of the caller");
        }
        let handle = resource.handle().ok_or("the resource is down on this node")?;
        Ok((opening.from, handle))
    });
    if let Some((from, handle)) = opening::answer(&mut stream, found).await? {
        handle.add_link(from, LinkOrigin::Accepted, Box::new(stream));
    }
    Ok(())
}

/// Tells the other nodes of a change at once; the names of those that were reached.
pub(crate) async fn announce(node: &Arc<Node>) -> Vec<String> {
    sync_with_all(node, SPREAD_TIMEOUT).await
}
