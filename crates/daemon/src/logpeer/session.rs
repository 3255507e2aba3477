//! The connections of a node that follows: finding who leads, and keeping several to it.

use super::follow::{FollowView, Order};
use super::wire;
use crate::node::{Node, PeerMember};
use crate::opening::{Opening, open_link};
use crate::peers::connect;
use crate::resource::Resource;
use crate::shard::LinkSocket;
use crate::task::Task;
use holdfast_api::options::Settings;
use holdfast_cluster::{Purpose, Uuid};
use holdfast_journal::ship::{ConnId, Message, Request};
use holdfast_units::ResourceId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::client::TlsStream;

/// Connections to the node that leads: one for reports, the others for data.
const CONNECTIONS: u64 = 4;
/// How long one attempt may take in all.
const ATTEMPT: Duration = Duration::from_secs(15);
/// How long is paused when nobody leads.
const PAUSE: Duration = Duration::from_secs(1);
/// A node that follows is asked for so long; then it is looked again for one that leads.
const BORROW: Duration = Duration::from_secs(5);
/// Who owes an answer and says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Requests of a connection that wait to be sent; more than are ever on their way.
const QUEUE: usize = 64;

/// A connection that stands, for the thread that follows.
pub(super) struct Link {
    pub(super) conn: ConnId,
    /// Where requests go.
    pub(super) requests: mpsc::Sender<Request>,
    /// Ends the connection when it is dropped.
    pub(super) _task: Task,
}

/// Looks for whoever leads and follows, until it is dropped.
pub(super) async fn run(
    node: Arc<Node>,
    resource: Arc<Resource>,
    orders: mpsc::Sender<Order>,
    views: watch::Receiver<FollowView>,
) {
    let (leader, led_by) = watch::channel(None);
    let known = Known { leader, views };
    tokio::select! {
        () = keep_delay(&node, &resource, &orders, led_by) => {}
        () = dial_all(&node, &resource, &orders, &known) => {}
    }
}

/// Whose delay counts: that of the last one who led and let this node follow, also when he is lost.
struct Known {
    leader: watch::Sender<Option<Uuid>>,
    views: watch::Receiver<FollowView>,
}

impl Known {
    /// Notes a leader when he lets this node follow, and waits for ever. What somebody would have replayed
    /// who went on apart stays held back.
    async fn note(&self, peer: &PeerMember) {
        let lets = |view: &FollowView| {
            let follows = view.status.as_ref().is_some_and(|status| status.follows);
            view.leader == Some(peer.slot) && follows
        };
        if self.views.clone().wait_for(lets).await.is_ok() {
            self.leader.send_replace(Some(peer.uuid));
        }
        std::future::pending::<()>().await;
    }
}

/// Tells how far this node is to be held behind, also while nobody leads.
async fn keep_delay(
    node: &Node,
    resource: &Resource,
    orders: &mpsc::Sender<Order>,
    mut leader: watch::Receiver<Option<Uuid>>,
) {
    let mut told = None;
    loop {
        let wanted = delay_of(node, resource.id, *leader.borrow_and_update());
        if told.replace(wanted) != Some(wanted) && orders.send(Order::Delay(wanted)).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            _ = leader.changed() => {}
        }
    }
}

async fn dial_all(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    orders: &mpsc::Sender<Order>,
    known: &Known,
) {
    let mut next = 0;
    loop {
        let view = node.view();
        let own = view.slot_of(resource.id, node.uuid);
        let peers = view.peers_of(resource.id, node.uuid).into_values();
        for peer in peers.filter(|peer| !peer.diskless) {
            let Some(own) = own else { continue };
            let opening = Opening { resource: resource.id, from: own, to: peer.slot };
            if follow(node, &peer, &opening, orders, known, &mut next).await.is_err() {
                return;
            }
        }
        if borrow(node, resource, orders, &mut next).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = resource.dial_now.notified() => {}
        }
    }
}

/// Nobody who leads is in reach: fetches what other nodes that follow have of the same journal, for a
/// while.
async fn borrow(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    orders: &mpsc::Sender<Order>,
    next: &mut u64,
) -> Result<(), Over> {
    let view = node.view();
    let Some(own) = view.slot_of(resource.id, node.uuid) else { return Ok(()) };
    let peers = view.peers_of(resource.id, node.uuid).into_values();
    for peer in peers.filter(|peer| !peer.diskless && peer.log) {
        let opening = Opening { resource: resource.id, from: own, to: peer.slot };
        let Ok(stream) = dial(node, &peer, &opening, Purpose::Lend).await else { continue };
        let Ok(bundle) = getrandom::u64() else { continue };
        let lent = Order::Meet { leader: peer.slot, bundle, lent: true };
        orders.send(lent).await.map_err(|_| Over)?;
        let mut ends = vec![open(stream, next, orders).await?];
        if let Ok(stream) = dial(node, &peer, &opening, Purpose::Lend).await {
            ends.push(open(stream, next, orders).await?);
        }
        // Who has nothing more closes the first one.
        let first = ends.swap_remove(0);
        let _ = tokio::time::timeout(BORROW, first).await;
        orders.send(Order::Part).await.map_err(|_| Over)?;
    }
    Ok(())
}

/// The thread that follows is gone.
struct Over;

/// Follows a node for as long as it leads and is in reach.
async fn follow(
    node: &Arc<Node>,
    peer: &PeerMember,
    opening: &Opening,
    orders: &mpsc::Sender<Order>,
    known: &Known,
    next: &mut u64,
) -> Result<(), Over> {
    let stream = match dial(node, peer, opening, Purpose::Log).await {
        Ok(stream) => stream,
        Err(why) => {
            let why = format!("node {}: {why}", peer.name);
            return orders.send(Order::NotReached(why)).await.map_err(|_| Over);
        }
    };
    let Ok(bundle) = getrandom::u64() else { return Ok(()) };
    let leader = peer.slot;
    orders.send(Order::Meet { leader, bundle, lent: false }).await.map_err(|_| Over)?;
    let mut first = open(stream, next, orders).await?;
    let others = async {
        let mut opened = Vec::new();
        loop {
            opened.retain(|end: &oneshot::Receiver<()>| !end.is_terminated());
            for end in &mut opened {
                // Looking at it is enough: one that has ended is terminated then.
                let _ = end.try_recv();
            }
            let missing = (CONNECTIONS - 1).saturating_sub(opened.len() as u64);
            for _ in 0..missing {
                match dial(node, peer, opening, Purpose::Log).await {
                    Ok(stream) => match open(stream, next, orders).await {
                        Ok(end) => opened.push(end),
                        Err(over) => return over,
                    },
                    Err(_) => break,
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        _ = &mut first => {}
        over = others => return Err(over),
        () = known.note(peer) => {}
    }
    orders.send(Order::Part).await.map_err(|_| Over)
}

/// How far this node is to be held behind the one that leads; the longest delay while nobody knows
/// who that is.
pub(super) fn delay_of(node: &Node, resource: ResourceId, leader: Option<Uuid>) -> Duration {
    let view = node.view();
    let options = view.records.resource(resource).map(|record| record.options).unwrap_or_default();
    let of = |peer: Uuid| {
        let own = view.records.pair_options(resource, node.uuid, peer).options;
        Settings::resolve(&options, Some(&own)).replay_delay
    };
    let peers = view.peers_of(resource, node.uuid).into_values().filter(|peer| !peer.diskless);
    leader.map_or_else(|| peers.map(|peer| of(peer.uuid)).max().unwrap_or_default(), of)
}

/// Makes a connection to a node that leads, or lends.
async fn dial(
    node: &Node,
    peer: &PeerMember,
    opening: &Opening,
    purpose: Purpose,
) -> Result<TlsStream<LinkSocket>, String> {
    let attempt = async {
        let (socket, to) = connect(&peer.addresses, &peer.name).await.map_err(|e| e.message)?;
        let stream = node.tls.connect(socket, purpose, peer.uuid, &to).await;
        let mut stream = stream.map_err(|refusal| refusal.message)?;
        let opened = open_link(&mut stream, opening).await;
        opened.map_err(|error| holdfast_cluster::explain(&error, &to).message)??;
        Ok(stream)
    };
    let attempt = tokio::time::timeout(ATTEMPT, attempt).await;
    attempt.unwrap_or_else(|_| Err("it did not answer in time".to_owned()))
}

/// Hands a connection to the thread that follows; tells of its end.
async fn open(
    stream: TlsStream<LinkSocket>,
    next: &mut u64,
    orders: &mpsc::Sender<Order>,
) -> Result<oneshot::Receiver<()>, Over> {
    let conn = ConnId(*next);
    *next += 1;
    let (requests, queue) = mpsc::channel(QUEUE);
    let (end, ended) = oneshot::channel();
    let task = Task::spawn(drive(stream, conn, queue, orders.clone(), end));
    let link = Link { conn, requests, _task: task };
    orders.send(Order::Opened(link)).await.map_err(|_| Over)?;
    Ok(ended)
}

/// Carries requests and answers. Dropping `end` tells of the end.
async fn drive(
    stream: TlsStream<LinkSocket>,
    conn: ConnId,
    mut queue: mpsc::Receiver<Request>,
    orders: mpsc::Sender<Order>,
    end: oneshot::Sender<()>,
) {
    let (mut from, mut to) = tokio::io::split(stream);
    let (sent, mut owed) = mpsc::unbounded_channel();
    let sending = Task::spawn(async move {
        while let Some(request) = queue.recv().await {
            // Before it is on its way, so that the reader knows that something is to come.
            if sent.send(()).is_err() {
                return;
            }
            if wire::write(&mut to, &Message::Request(request)).await.is_err() {
                return;
            }
        }
    });
    while owed.recv().await.is_some() {
        let read = tokio::time::timeout(SILENCE, wire::read(&mut from)).await;
        let Ok(Ok(Some(Message::Answer(answer)))) = read else { break };
        if orders.send(Order::Answer(conn, answer)).await.is_err() {
            break;
        }
    }
    drop(sending);
    // When nobody listens any more there is nobody to tell.
    let _ = orders.send(Order::Closed(conn)).await;
    drop(end);
}
