//! The daemon from start to stop.

use crate::commands::{self, blocking, updown};
use crate::listeners::{self, Kept, bind, broken};
use crate::local::LocalStore;
use crate::node::{Node, Parts};
use crate::options::{NbdAccess, Settings};
use crate::resource::{self, Resource};
use crate::shard::{Shard, ShardOptions, TcpAccess, boot_id};
use crate::{
    archiving, guests, health, http, peer_api, peers, refuse, resyncs, scrape, service, space,
};
use holdfast_api::options::Settings as OptionSettings;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Address, ClusterState};
use holdfast_nbd::{AllowList, ServerTls};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

/// How long a resource may take to start before the daemon goes on without it.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the resources may take to stop, all together.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long the local devices may take to go, or to be left for the next start: finding out who has
/// them open takes a while on a large machine, and those who have must not see an error.
const DEVICE_LIMIT: Duration = Duration::from_secs(15);

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) node: Arc<Node>,
}

impl Daemon {
    /// Starts everything, with the sockets that were kept of the run before: when it returns, the
    /// daemon can be used.
    ///
    /// # Errors
    /// What it cannot start without; nothing is left running then.
    pub(crate) async fn start(settings: Settings, kept: Kept) -> Result<Self, ApiError> {
        let parts = blocking(move || prepare(settings, kept)).await?;
        let Prepared { parts, listener, control, scrape, store } = parts;
        let listener = TcpListener::from_std(listener).map_err(broken("the port for nodes"))?;
        let control = UnixListener::from_std(control).map_err(broken("the control socket"))?;
        let node = Node::new(parts);
        let started = Self { node: Arc::clone(&node) };
        let (locals, mut damaged) = blocking(move || {
            store.sweep();
            store.load()
        })
        .await?;
        for file in &damaged {
            tracing::error!("a resource is left out: {}", file.problem);
        }
        for local in locals {
            if commands::create::take_back(&node, &local).await {
                continue;
            }
            match commands::create::is_made(&node, local).await {
                Ok(local) => node.add_resource(Resource::new(local)),
                Err(left_out) => {
                    tracing::error!("a resource is left out: {}", left_out.problem);
                    damaged.push(left_out);
                }
            }
        }
        node.set_damaged(damaged);
        commands::rename::at_start(&node).await;
        guests::take_up(&node);
        tell_addresses(&node).await;
        tokio::spawn(peer_api::serve(Arc::clone(&node), listener));
        tokio::spawn(peers::keep_in_touch(Arc::clone(&node)));
        take_up(&node).await;
        // Who came before finds the resources now.
        node.shard()?.let_clients_in().await;
        tokio::spawn(commands::leave::follow_records(Arc::clone(&node)));
        tokio::spawn(commands::rename::follow_records(Arc::clone(&node)));
        commands::attach::take_up(&node).await;
        tokio::spawn(commands::attach::tell(Arc::clone(&node)));
        tokio::spawn(archiving::run(Arc::clone(&node)));
        tokio::spawn(space::run(Arc::clone(&node)));
        tokio::spawn(resyncs::run(Arc::clone(&node)));
        tokio::spawn(health::run(Arc::clone(&node)));
        tokio::spawn(health::run_smart(Arc::clone(&node)));
        tokio::spawn(http::serve(Arc::clone(&node), control));
        if let Some(listener) = scrape {
            let listener =
                TcpListener::from_std(listener).map_err(broken("the port for metrics"))?;
            if let Ok(address) = listener.local_addr() {
                tracing::info!("metrics are served on http://{address}/metrics");
            }
            tokio::spawn(scrape::serve(Arc::clone(&node), listener));
        }
        Ok(started)
    }

    /// Stops everything in good order, in bounded time.
    pub(crate) async fn stop(self) {
        let node = self.node;
        node.stop();
        let devices = node.resources().into_iter().map(|resource| {
            let node = Arc::clone(&node);
            async move { give_device_up(&node, &resource).await }
        });
        let attachments = commands::attach::give_all_up(&node);
        let devices = futures_util::future::join_all(devices);
        let devices = futures_util::future::join(devices, attachments);
        if tokio::time::timeout(DEVICE_LIMIT, devices).await.is_err() {
            tracing::warn!("a local device did not go in time");
        }
        let stopping = node.resources().into_iter().map(|resource| async move {
            if let Err(error) = resource::stop(&resource).await {
                tracing::warn!("{}", error.message);
            }
        });
        let stopping = futures_util::future::join_all(stopping);
        if tokio::time::timeout(STOP_LIMIT, stopping).await.is_err() {
            tracing::error!("not all resources stopped in time; they are treated as after a crash");
        }
        node.stop_shard().await;
        health::save_all(&node).await;
        if service::is_managed() {
            // The sockets are kept: who comes now waits for the next start.
            return;
        }
        for socket in [&node.settings.socket, &node.settings.nbd_socket()] {
            // Who starts next replaces what is left.
            let _ = fs::remove_file(socket);
        }
    }
}

/// What needs no runtime, and can fail.
struct Prepared {
    parts: Parts,
    listener: StdTcpListener,
    control: StdUnixListener,
    scrape: Option<StdTcpListener>,
    store: LocalStore,
}

fn prepare(settings: Settings, mut kept: Kept) -> Result<Prepared, ApiError> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = settings.name.as_deref();
    let cluster = ClusterState::open(&settings.state_dir, name, &host).map_err(refuse::cluster)?;
    let store = LocalStore::open(&settings.state_dir)?;
    let listener = listen(&settings, &cluster)?;
    let listen = listener.local_addr().map_err(broken("the port for nodes"))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(settings.run_dir())
        .map_err(broken("the directory of the control socket"))?;
    let control = kept.unix(listeners::CONTROL, &settings.socket, "the control socket")?;
    let nbd = kept.unix(listeners::NBD, &settings.nbd_socket(), "the NBD socket")?;
    let nbd_access = nbd_access(&settings.nbd_access)?;
    let nbd_tcp = settings.nbd_listen;
    let nbd_tcp = nbd_tcp.map(|at| kept.tcp(listeners::NBD_TCP, at, "--nbd-listen")).transpose()?;
    let scrape = settings.http.map(|address| bind(address, "--http")).transpose()?;
    kept.close_rest();
    let devices = commands::device::options(&settings);
    let wanted = wanted_devices(&settings, &store);
    match holdfast_device::clean_up_stale(&devices, move |name| wanted.contains(name)) {
        Ok(cleaned) if cleaned.names.is_empty() && cleaned.in_use.is_empty() => {}
        Ok(cleaned) => tracing::info!(?cleaned, "devices of an earlier run were removed"),
        Err(error) => tracing::warn!("{error}"),
    }
    let shard = Shard::start(ShardOptions::default()).map_err(broken("a thread for resources"))?;
    shard.hold_clients().map_err(broken("a thread for resources"))?;
    shard.serve_unix(nbd).map_err(broken("the NBD socket"))?;
    let nbd_address = nbd_tcp.as_ref().and_then(|listener| listener.local_addr().ok());
    if let Some(nbd_tcp) = nbd_tcp {
        shard.serve_tcp(nbd_tcp, nbd_access).map_err(broken("the NBD port"))?;
    }
    let boot = boot_id().map_err(broken("the number of this boot"))?;
    let parts = Parts {
        settings,
        listen,
        nbd_tcp: nbd_address,
        cluster,
        store: store.clone(),
        shard,
        boot,
    };
    Ok(Prepared { parts, listener, control, scrape, store })
}

/// The devices that may have been left by an earlier run and that this one wants to go on with:
/// those of resources that are to be Primary or shown read-only here, and of attachments.
fn wanted_devices(settings: &Settings, store: &LocalStore) -> BTreeSet<String> {
    let (locals, _) = store.load().unwrap_or_default();
    let primaries =
        locals.into_iter().filter(|local| local.up && (local.primary || local.shows_past));
    let attached = commands::attach::known(settings);
    primaries.map(|local| local.name).chain(attached).collect()
}

/// Reads what NBD clients by TCP are to meet.
fn nbd_access(access: &NbdAccess) -> Result<TcpAccess, ApiError> {
    let tls = nbd_tls(access).map_err(|why| no_tls(&why))?;
    Ok(TcpAccess { allow: AllowList::new(access.allow.clone()), tls })
}

/// What they are shown; the error says why nothing can be.
pub(crate) fn nbd_tls(access: &NbdAccess) -> Result<Option<ServerTls>, String> {
    let NbdAccess { tls_certificates, tls_optional, tls_verify_peer, .. } = access;
    let required = !tls_optional.unwrap_or(false);
    match tls_certificates {
        Some(directory) => ServerTls::from_directory(directory, required, *tls_verify_peer)
            .map(Some)
            .map_err(|why| why.to_string()),
        None if tls_optional.is_some() || *tls_verify_peer => {
            Err("no directory with certificates was named".to_owned())
        }
        None => Ok(None),
    }
}

fn no_tls(why: &str) -> ApiError {
    let message = format!("the daemon was not started: NBD by TLS cannot be offered: {why}");
    ApiError::new(ErrorCode::InvalidPath, message).hint(
        "--nbd-tls-certificates names a directory with server-cert.pem and server-key.pem, and \
         ca-cert.pem for --nbd-tls-verify-peer",
    )
}

/// Listens for other nodes. When any port will do, the one that the cluster knows is tried first,
/// so that the others find this node again at once.
fn listen(settings: &Settings, cluster: &ClusterState) -> Result<StdTcpListener, ApiError> {
    let address = settings.listen;
    if address.port() == 0 && settings.advertise.is_empty() {
        let own = cluster.records().node(cluster.identity().uuid());
        let known = own.and_then(|own| Address::parse(own.addresses.first()?, None).ok());
        let before = known.map(|known| SocketAddr::new(address.ip(), known.port()));
        if let Some(Ok(listener)) = before.map(|before| bind(before, "--listen")) {
            return Ok(listener);
        }
    }
    bind(address, "--listen")
}

/// Writes into the records where this node listens now.
async fn tell_addresses(node: &Arc<Node>) {
    if node.view().membership.is_none() {
        return;
    }
    let addresses = node.advertised();
    let told = node.cluster(move |state, now| state.set_addresses(&addresses, now)).await;
    if let Err(error) = told {
        tracing::warn!("{}", error.message);
    }
}

/// Starts what was up when the daemon stopped. What cannot be started stays down, and says why.
async fn take_up(node: &Arc<Node>) {
    let starting = node.resources().into_iter().map(|resource| {
        let node = Arc::clone(node);
        async move {
            if commands::leave::is_over(&node, resource.id) {
                return;
            }
            if !resource.local().up || !is_to_start(&node, &resource).await {
                return updown::publish(&node, &resource);
            }
            let started = resource::start(&node, &resource, true);
            let started = tokio::time::timeout(START_LIMIT, started).await.unwrap_or_else(|_| {
                let name = resource.name();
                let why = format!("resource {name} was not started: its disk does not answer");
                Err(ApiError::new(ErrorCode::DiskFailed, why))
            });
            if let Err(error) = started {
                tracing::error!("{}", error.message);
                commands::device::give_up_left(&node, &resource.name(), &error.message).await;
                resource.state().trouble = Some(resource::told(&error));
            }
            updown::wait_for_role(&node, &resource).await;
            updown::publish(&node, &resource);
        }
    });
    futures_util::future::join_all(starting).await;
}

/// Whether the daemon's start is to start a resource that was up. One whose device outlived the run
/// before is in use, whatever is wanted after a boot.
async fn is_to_start(node: &Arc<Node>, resource: &Arc<Resource>) -> bool {
    let record = node.view().records.resource(resource.id);
    if record.is_none_or(|record| OptionSettings::resolve(&record.options, None).auto_up) {
        return true;
    }
    let (of, name) = (Arc::clone(node), resource.name());
    let is_left = blocking(move || Ok(commands::device::is_left(&of, &name))).await;
    if is_left.unwrap_or(true) {
        return true;
    }
    let name = resource.name();
    tracing::info!("resource {name} stays down: svc-auto-up is no; `holdfast up {name}` starts it");
    false
}

/// Takes the local device away. One that somebody has open is left for the next start where it can
/// wait for that, and otherwise taken away by force, as the daemon ends anyway.
async fn give_device_up(node: &Arc<Node>, resource: &Arc<Resource>) {
    if resource.state().device_waits.is_some() {
        return;
    }
    let Err(error) = commands::device::take_away(node, resource, false).await else { return };
    match commands::device::leave(resource).await {
        Ok(true) => {
            let name = resource.name();
            tracing::warn!("the device of {name} waits for the next start: it is in use");
        }
        Ok(false) => {
            tracing::warn!("{}; it is taken away by force", error.message);
            if let Err(error) = commands::device::take_away(node, resource, true).await {
                tracing::warn!("{}", error.message);
            }
        }
        Err(error) => tracing::warn!("{}", error.message),
    }
}

#[cfg(test)]
mod tests;
