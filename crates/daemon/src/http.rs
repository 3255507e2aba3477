//! The control API on a Unix socket.

use crate::commands::{self, need_running};
use crate::node::Node;
use crate::{guests, health, latency, metrics, phases, refuse, resyncs, status};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt, stream};
use holdfast_api::attachment::{Attached, AttachmentStatus};
use holdfast_api::badblocks::{BadBlocks, BadBlocksDone};
use holdfast_api::request::{self, VersionInfo};
use holdfast_api::{ApiError, ErrorBody, ErrorCode, Event, calls, routes};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::BroadcastStream;

/// The longest body of a call, in bytes.
const MAX_BODY: usize = 1 << 20;
/// So much of a body that is longer is read, and thrown away, before the call is refused.
const MOST_TAKEN: usize = 16 << 20;
/// The longest reason that the framework gives, in bytes.
const MAX_REASON: usize = 4096;
/// Callers on the control socket at a time, readers of events not counted.
const MAX_CONNECTIONS: usize = 256;
/// Readers of events at a time.
const MAX_READERS: usize = 64;
/// Callers too many that are told so at a time; more are just turned away.
const MAX_REFUSED: usize = 64;
/// How long one of those may take to make its call.
const REFUSAL_TIME: Duration = Duration::from_secs(2);
/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A refusal on its way to the caller.
pub(crate) struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error.plain())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0.code.http_status());
        let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(ErrorBody { error: self.0 })).into_response()
    }
}

type Answer<T> = Result<Json<T>, Failure>;
type App = State<Arc<Node>>;

/// Takes callers on the control socket until the daemon stops. Only root and the user of the
/// daemon are let in.
pub(crate) async fn serve(node: Arc<Node>, listener: UnixListener) {
    let router = router(Arc::clone(&node));
    // A reader of events is a connection that stays. Room for those comes on top.
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS + MAX_READERS));
    let refusals = Arc::new(Semaphore::new(MAX_REFUSED));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = node.stopped() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "taking a caller failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            tracing::warn!("a caller was turned away: too many are connected");
            if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                tokio::spawn(async move {
                    let telling = serve_connection(stream, crowded());
                    // Who says nothing is not told anything.
                    let _ = tokio::time::timeout(REFUSAL_TIME, telling).await;
                    drop(permit);
                });
            }
            continue;
        };
        let router = if may_call(&stream) { router.clone() } else { forbidden() };
        tokio::spawn(async move {
            serve_connection(stream, router).await;
            drop(permit);
        });
    }
}

/// Whether the process at the other end is root's or the daemon's own user's.
fn may_call(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

fn forbidden() -> Router {
    Router::new().fallback(async || {
        Failure(
            ApiError::new(
                ErrorCode::Forbidden,
                "the call was refused: only root and the user of the daemon may make it",
            )
            .hint("try again with sudo"),
        )
    })
}

fn crowded() -> Router {
    Router::new().fallback(async || {
        Failure(
            ApiError::new(
                ErrorCode::TooManyCallers,
                format!(
                    "the call was refused: {} callers are connected, as many as the daemon takes",
                    MAX_CONNECTIONS + MAX_READERS
                ),
            )
            .hint("end some of them, or try again when some have ended"),
        )
    })
}

/// Serves HTTP/1.1 on one connection until it ends.
pub(crate) async fn serve_connection<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
}

fn router(node: Arc<Node>) -> Router {
    let readers = Arc::new(Semaphore::new(MAX_READERS));
    Router::new()
        .route(routes::STATUS, get(status_of_node))
        .route(routes::EVENTS, get(events).layer(Extension(readers)))
        .route(routes::OPENAPI, get(async || Json(calls::openapi())))
        .route(routes::METRICS, get(metrics_text))
        .route(routes::LATENCY, get(latency_of_node))
        .route(routes::VERSION, get(version))
        .route(routes::DAEMON, get(daemon_info))
        .route(routes::CLUSTER, get(cluster))
        .route(routes::CLUSTER_CREATE, post(cluster_create))
        .route(routes::CLUSTER_TOKEN, post(cluster_token))
        .route(routes::CLUSTER_JOIN, post(cluster_join))
        .route(routes::CLUSTER_MERGE, post(cluster_merge))
        .route(routes::CLUSTER_SPLIT, post(cluster_split))
        .route(routes::CLUSTER_WAIT, post(cluster_wait))
        .route(routes::CLUSTER_KEYS, get(cluster_keys).put(cluster_set))
        .route(routes::CLUSTER_LEAVE, post(cluster_leave))
        .route(routes::CLUSTER_REMOVE, post(cluster_remove))
        .route(routes::RESOURCES, post(create))
        .route(routes::RESOURCE, get(resource))
        .route(routes::RESOURCE_JOIN, post(join))
        .route(routes::RESOURCE_LEAVE, post(leave))
        .route(routes::RESOURCE_DELETE, post(delete))
        .route(routes::RESOURCE_WATCH, post(watch))
        .route(routes::RESOURCE_UP, post(up))
        .route(routes::RESOURCE_DOWN, post(down))
        .route(routes::RESOURCE_PRIMARY, post(primary))
        .route(routes::RESOURCE_SECONDARY, post(secondary))
        .route(routes::RESOURCE_CONNECT, post(connect))
        .route(routes::RESOURCE_DISCONNECT, post(disconnect))
        .route(routes::RESOURCE_INVALIDATE, post(invalidate))
        .route(routes::RESOURCE_RESIZE, post(resize))
        .route(routes::RESOURCE_RENAME, post(rename))
        .route(routes::RESOURCE_VERIFY, get(verify_reports).post(verify))
        .route(routes::RESOURCE_SCRUB, get(scrub_reports).post(scrub))
        .route(routes::RESOURCE_HEALTH, get(health_of))
        .route(routes::RESOURCE_HEALTH_CLEAR, post(health_clear))
        .route(routes::RESOURCE_LOG, get(log))
        .route(routes::RESOURCE_LOG_ROTATE, post(log_rotate))
        .route(routes::RESOURCE_LOG_TRIM, post(log_trim))
        .route(routes::RESOURCE_REWIND, get(copy_source).post(rewind))
        .route(routes::RESOURCE_DEVICE, post(device))
        .route(routes::RESOURCE_DEVICE_REMOVE, post(device_remove))
        .route(routes::RESOURCE_ATTACH_DISK, post(attach_disk))
        .route(routes::RESOURCE_DETACH_DISK, post(detach_disk))
        .route(routes::RESOURCE_REPLACE_DISK, post(replace_disk))
        .route(routes::RESOURCE_BADBLOCKS, get(badblocks))
        .route(routes::RESOURCE_BADBLOCKS_ADD, post(badblocks_add))
        .route(routes::RESOURCE_BADBLOCKS_REMOVE, post(badblocks_remove))
        .route(routes::RESOURCE_SPARE_ADD, post(spare_add))
        .route(routes::RESOURCE_SPARE_REMOVE, post(spare_remove))
        .route(routes::RESOURCE_PAUSE, post(pause))
        .route(routes::RESOURCE_RESUME, post(resume))
        .route(routes::RESOURCE_WAIT, post(wait))
        .route(routes::RESOURCE_OPTIONS, get(options).put(set_options))
        .route(routes::RESOURCE_OPTION, get(option))
        .route(routes::ATTACHMENTS, get(attachments).post(attach))
        .route(routes::ATTACHMENT, get(attachment))
        .route(routes::ATTACHMENT_DETACH, post(detach))
        .route(routes::ATTACHMENT_ABORT, post(abort))
        .fallback(no_such_call)
        .method_not_allowed_fallback(no_such_call)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn(take_long_bodies))
        .layer(axum::middleware::map_response(as_refusal))
        .layer(axum::middleware::from_fn(phases::tell))
        .with_state(node)
}

/// A caller that is still sending does not hear an answer: a body that is somewhat too long is taken
/// to its end before it is refused.
async fn take_long_bodies(request: Request, next: Next) -> Response {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_none_or(|length| length <= MAX_BODY) {
        return next.run(request).await;
    }
    let mut left = MOST_TAKEN;
    let mut body = request.into_body().into_data_stream();
    while let Some(Ok(part)) = body.next().await
        && part.len() <= left
    {
        left -= part.len();
    }
    let message = format!("the call was refused: its body is longer than {MAX_BODY} bytes");
    Failure(ApiError::new(ErrorCode::InvalidRequest, message)).into_response()
}

/// What the framework refuses by itself (a query, a body that is too long) becomes a refusal like
/// any other.
async fn as_refusal(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let why = axum::body::to_bytes(response.into_body(), MAX_REASON).await.unwrap_or_default();
    let why = String::from_utf8_lossy(&why).replace('\n', " ");
    let message = format!("the call was not understood: {why}");
    Failure::from(ApiError::new(ErrorCode::InvalidRequest, message)).into_response()
}

async fn no_such_call(request: axum::extract::Request) -> Failure {
    let path: String = request.uri().path().chars().take(200).collect();
    let message = format!("the call {} {path} is not one that the API has", request.method());
    let hint = format!("`GET {}` lists them", routes::OPENAPI);
    Failure(ApiError::new(ErrorCode::NoSuchCall, message).hint(hint))
}

/// Reads the body of a call; an empty one counts as `{}`.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"{}" } else { &body[..] };
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("the body of the call was not understood: {error}"),
        )
        .hint(format!("`GET {}` describes it", routes::OPENAPI))
    })
}

/// Runs a command to its end, also when the caller goes away meanwhile: half a command would leave
/// things as nobody asked for.
async fn run<T, F>(node: &Arc<Node>, command: F) -> Answer<T>
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    need_running(node)?;
    let done = phases::spawn(command).await;
    let done = done.map_err(|error| refuse::internal("the command failed", &error))?;
    if let Err(error) = &done {
        tracing::debug!(code = error.code.as_str(), "{}", error.message);
    }
    Ok(Json(done?))
}

async fn status_of_node(State(node): App) -> Json<holdfast_api::status::NodeStatus> {
    status::refresh(&node).await;
    guests::refresh(&node).await;
    let attachments = commands::attach::list(&node).await.unwrap_or_default();
    Json(status::node(&node, attachments))
}

async fn latency_of_node(State(node): App) -> Json<holdfast_api::latency::Latency> {
    Json(latency::of_node(&node).await)
}

async fn version(State(node): App) -> Json<VersionInfo> {
    Json(VersionInfo {
        version: crate::peers::version(),
        git: node.settings.git.clone(),
        protocol_min: u32::from(holdfast_wire::PROTOCOL_VERSION_MIN),
        protocol_max: u32::from(holdfast_wire::PROTOCOL_VERSION),
    })
}

async fn daemon_info(State(node): App) -> Json<holdfast_api::daemon::DaemonInfo> {
    Json(crate::inventory::of_node(&node))
}

pub(crate) async fn metrics_text(State(node): App, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = metrics::Format::accepted(accept);
    let kind = [(header::CONTENT_TYPE, format.content_type())];
    status::refresh(&node).await;
    guests::refresh(&node).await;
    let attachments = commands::attach::list(&node).await.unwrap_or_default();
    let latency = latency::of_node(&node).await;
    (kind, metrics::text(&status::node(&node, attachments), &latency, format)).into_response()
}

/// The query of the events.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    since: Option<u64>,
}

async fn events(
    State(node): App,
    Extension(readers): Extension<Arc<Semaphore>>,
    Query(query): Query<Since>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Failure> {
    let place = readers.try_acquire_owned().map_err(|_| {
        ApiError::new(
            ErrorCode::TooManyCallers,
            format!("the events were refused: {MAX_READERS} readers are served, and no more"),
        )
        .hint("end some of the others, such as `holdfast events --follow`")
    })?;
    let (dump, changes) = node.hub.subscribe(query.since);
    // A reader that is too far behind is disconnected; it comes again for what it has not read.
    let changes = BroadcastStream::new(changes)
        .take_while(|event| std::future::ready(event.is_ok()))
        .filter_map(|event| std::future::ready(event.ok()));
    let ended = async move { node.stopped().await };
    let all = stream::iter(dump).chain(changes).take_until(Box::pin(ended));
    let all = all.map(move |event| {
        // Given back with the stream.
        let _ = &place;
        Ok(encode(&event))
    });
    Ok(Sse::new(all).keep_alive(KeepAlive::default()))
}

fn encode(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).unwrap_or_default();
    sse::Event::default().id(event.seq.to_string()).event(event.kind.as_str()).data(data)
}

async fn cluster(State(node): App) -> Answer<holdfast_api::status::ClusterStatus> {
    Ok(Json(commands::cluster::show(&node)?))
}

async fn cluster_create(State(node): App, body: Bytes) -> Answer<request::ClusterCreated> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::cluster::create(&node, call).await }).await
}

async fn cluster_token(State(node): App, body: Bytes) -> Answer<request::TokenCreated> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::cluster::token(&node, call).await }).await
}

async fn cluster_join(
    State(node): App,
    body: Bytes,
) -> Answer<holdfast_api::status::ClusterStatus> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::cluster::join(&node, call).await }).await
}

async fn cluster_merge(
    State(node): App,
    body: Bytes,
) -> Answer<holdfast_api::status::ClusterStatus> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::merge::merge(&node, call).await }).await
}

async fn cluster_split(State(node): App, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::split::split(&node, call).await }).await
}

/// Changes nothing, so it ends with its caller.
async fn cluster_wait(State(node): App, body: Bytes) -> Answer<request::Done> {
    let call: request::ClusterWait = read(&body)?;
    Ok(Json(commands::keys::wait(&node, &call).await?))
}

async fn cluster_keys(State(node): App) -> Answer<BTreeMap<String, String>> {
    Ok(Json(commands::keys::all(&node)?))
}

async fn cluster_set(State(node): App, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::keys::set(&node, call).await }).await
}

async fn cluster_leave(State(node): App, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::cluster::leave(&node, call).await }).await
}

async fn cluster_remove(State(node): App, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::cluster::remove(&node, call).await }).await
}

async fn create(State(node): App, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::create::create(&node, call).await }).await
}

async fn resource(
    State(node): App,
    Path(name): Path<String>,
) -> Answer<holdfast_api::status::ResourceStatus> {
    let resource = node.resource_named(&name)?;
    status::refresh(&node).await;
    Ok(Json(status::resource(&node, &resource)))
}

async fn health_of(
    State(node): App,
    Path(name): Path<String>,
) -> Answer<holdfast_api::health::DiskHealth> {
    Ok(Json(health::of(&node, &name).await?))
}

async fn log(
    State(node): App,
    Path(name): Path<String>,
) -> Answer<holdfast_api::journal::JournalLog> {
    Ok(Json(commands::journal::list(&node, &name).await?))
}

async fn copy_source(State(node): App, Path(name): Path<String>) -> Answer<request::CopySource> {
    Ok(Json(commands::copy_source::look(&node, &name).await?))
}

async fn verify_reports(
    State(node): App,
    Path(name): Path<String>,
) -> Answer<holdfast_api::survey::SurveyReports> {
    Ok(Json(commands::survey::reports(&node, &name, holdfast_core::SurveyKind::Verify)?))
}

async fn scrub_reports(
    State(node): App,
    Path(name): Path<String>,
) -> Answer<holdfast_api::survey::SurveyReports> {
    Ok(Json(commands::survey::reports(&node, &name, holdfast_core::SurveyKind::Scrub)?))
}

/// A call on a resource or an attachment whose command takes the node, the name and the body.
macro_rules! on_resource {
    ($($name:ident, $answer:ty, $command:path;)*) => {$(
        async fn $name(
            State(node): App,
            Path(name): Path<String>,
            body: Bytes,
        ) -> Answer<$answer> {
            let call = read(&body)?;
            run(&node.clone(), async move { $command(&node, &name, &call).await }).await
        }
    )*};
}

on_resource! {
    primary, request::Done, commands::roles::primary;
    secondary, request::Done, commands::roles::secondary;
    connect, request::Done, commands::links::connect;
    disconnect, request::Done, commands::links::disconnect;
    invalidate, request::Done, commands::links::invalidate;
    verify, request::Done, commands::survey::verify;
    scrub, request::Done, commands::survey::scrub;
    resize, request::Done, commands::resize::resize;
    rewind, request::Rewound, crate::logpeer::rewind::rewind;
    device, request::DeviceMade, commands::device::make;
    attach_disk, request::Done, commands::disk::attach;
    detach_disk, request::Done, commands::disk::detach;
    replace_disk, request::Done, commands::replace_disk::replace;
    badblocks_add, BadBlocksDone, commands::badblocks::add;
    badblocks_remove, BadBlocksDone, commands::badblocks::remove;
    spare_add, request::Done, commands::spare::add;
    spare_remove, request::Done, commands::spare::remove;
    set_options, request::Done, commands::options::set;
    detach, request::Done, commands::attach::detach;
    abort, request::Done, commands::attach::abort;
    leave, request::Done, commands::leave::leave;
    delete, request::Done, commands::leave::delete;
    rename, request::Done, commands::rename::rename;
    watch, request::Done, guests::watch;
}

/// The same for those whose body is empty.
macro_rules! plain_on_resource {
    ($($name:ident, $command:path;)*) => {$(
        async fn $name(
            State(node): App,
            Path(name): Path<String>,
            body: Bytes,
        ) -> Answer<request::Done> {
            let request::Empty {} = read(&body)?;
            run(&node.clone(), async move { $command(&node, &name).await }).await
        }
    )*};
}

plain_on_resource! {
    up, commands::updown::up;
    down, commands::updown::down;
    device_remove, commands::device::remove;
    log_rotate, commands::journal::rotate;
    log_trim, commands::journal::trim;
    health_clear, health::clear;
}

async fn join(State(node): App, Path(name): Path<String>, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::join::join(&node, &name, call).await }).await
}

/// Changes nothing, so it ends with its caller.
async fn wait(State(node): App, Path(name): Path<String>, body: Bytes) -> Answer<request::Done> {
    let call = read(&body)?;
    Ok(Json(commands::wait::wait(&node, &name, &call).await?))
}

async fn pause(State(node): App, Path(name): Path<String>, body: Bytes) -> Answer<request::Done> {
    let call: request::Pause = read(&body)?;
    run(&node.clone(), async move { resyncs::pause(&node, &name, &call, true).await }).await
}

async fn resume(State(node): App, Path(name): Path<String>, body: Bytes) -> Answer<request::Done> {
    let call: request::Pause = read(&body)?;
    run(&node.clone(), async move { resyncs::pause(&node, &name, &call, false).await }).await
}

async fn attach(State(node): App, body: Bytes) -> Answer<Attached> {
    let call = read(&body)?;
    run(&node.clone(), async move { commands::attach::attach(&node, call).await }).await
}

async fn attachments(State(node): App) -> Answer<Vec<AttachmentStatus>> {
    Ok(Json(commands::attach::list(&node).await?))
}

async fn attachment(State(node): App, Path(name): Path<String>) -> Answer<AttachmentStatus> {
    Ok(Json(commands::attach::show(&node, &name).await?))
}

/// The query of the table of bad sectors.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FromRow {
    #[serde(default)]
    from: u64,
}

async fn badblocks(
    State(node): App,
    Path(name): Path<String>,
    Query(query): Query<FromRow>,
) -> Answer<BadBlocks> {
    Ok(Json(commands::badblocks::list(&node, &name, query.from).await?))
}

/// The query of the calls about options.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct OfPeer {
    peer: Option<String>,
}

async fn options(
    State(node): App,
    Path(name): Path<String>,
    Query(query): Query<OfPeer>,
) -> Answer<Vec<request::OptionValue>> {
    Ok(Json(commands::options::all(&node, &name, query.peer.as_deref())?))
}

async fn option(
    State(node): App,
    Path((name, key)): Path<(String, String)>,
    Query(query): Query<OfPeer>,
) -> Answer<request::OptionValue> {
    Ok(Json(commands::options::one(&node, &name, &key, query.peer.as_deref())?))
}
