//! Who leads: at the start, by `primary`, and when another node says that it does.

use super::Following;
use super::decide::MayFollow;
use super::follow::UNPROVEN;
use super::losses;
use super::others::{
    ASK_LIMIT, SETTLE, all_is_here, ask, lineage_of, may_follow_who_leads, need_no_leader,
};
use crate::commands::create::al_extents;
use crate::commands::roles::{demote, need_closed, release, wait_exported};
use crate::commands::updown::publish;
use crate::commands::{blocking, core_command, device};
use crate::disk::renew_metadata;
use crate::growth;
use crate::local::Local;
use crate::node::{Node, PeerMember};
use crate::peer_api::{FOLLOW, HAND_OVER};
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::phases::phase;
use crate::resource::{self, Resource, random};
use crate::revert::revert;
use crate::shard::{InitialContent, JournalHandle};
use holdfast_api::request::{Done, PauseWhat};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{NodeRecord, Uuid};
use holdfast_core::Command;
use holdfast_journal::ship::{FollowStatus, Holding, Verdict};
use holdfast_units::{DiskState, GenerationId, LogPosition, NodeId, ResourceId, Role, format_size};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A planned promotion waits so long until this node has nearly everything.
const CATCH_UP: Duration = Duration::from_secs(60);
/// What is nearly everything: the Primary steps back then, and clients wait for the rest.
const NEARLY: u64 = 16 << 20;
/// How long the rest may take.
const DRAIN: Duration = Duration::from_secs(30);
/// How long the Primary may take to write back what is only in its journal before it steps back,
/// and to step back after that.
const WRITE_BACK: Duration = Duration::from_secs(60);
const HAND_OVER_LIMIT: Duration = Duration::from_secs(120);
/// How much of the time that the other node waits is left for stepping back itself.
const STEP_BACK: Duration = Duration::from_secs(1);
/// Who stepped back is not Primary by a command for so long, if he for whom it did cannot be asked.
const TAKE_OVER: Duration = Duration::from_secs(60);
/// How long a node that nobody leads may take to replay what it has, and one that stepped back to let
/// others fetch the rest.
const REST: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);
/// How often readers of events are told how following goes.
const TELL: Duration = Duration::from_millis(200);

/// A node that follows asks the Primary to step back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HandOver {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    /// It did not work: be Primary again.
    pub(crate) back: bool,
    /// How long that node waits for the answer, in milliseconds.
    #[serde(default)]
    pub(crate) within_ms: Option<u64>,
}

/// A node is not Primary any more in favour of another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SteppedBack {
    /// That one is to lead by then.
    pub(crate) until: Instant,
    pub(crate) taker: Uuid,
    /// The way of the local device that was taken away for it.
    device: Option<&'static str>,
}

/// The Primary has stepped back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HandedOver {
    /// Where its journal ends.
    pub(crate) end: u64,
    /// Data of these generations are an earlier state of what it has.
    #[serde(default)]
    pub(crate) lineage: Vec<u64>,
}

/// A node leads from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FollowCall {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    /// Data of these generations are an earlier state of what it has.
    #[serde(default)]
    pub(crate) lineage: Vec<u64>,
}

/// How a node begins to lead.
struct Ready {
    /// Who stepped back for it.
    leader: Option<NodeRecord>,
    /// Data of these generations are an earlier state of what it has.
    lineage: Vec<u64>,
}

/// Whether this node is to follow rather than to start its core.
pub(crate) fn follows(node: &Node, local: &Local) -> bool {
    let member = node.view().follows_by_log(local.id, node.uuid);
    (member || local.follows) && !local.primary && uses_its_disk(local)
}

/// A disk that a person detached may hold what is nowhere else: nothing is written to it.
const fn uses_its_disk(local: &Local) -> bool {
    local.disk.is_none() || local.attached
}

/// The members with which this one is tied by the log.
pub(super) fn log_peers(node: &Node, resource: ResourceId) -> Vec<PeerMember> {
    let view = node.view();
    let own = view.follows_by_log(resource, node.uuid);
    let peers = view.peers_of(resource, node.uuid).into_values();
    peers.filter(|peer| !peer.diskless && (peer.log || own)).collect()
}

/// Tells readers of events and those who wait how following goes, until it ends.
pub(crate) fn tell(node: &Arc<Node>, resource: &Arc<Resource>, following: &Arc<Following>) {
    let mut views = following.watch();
    let (node, resource) = (Arc::clone(node), Arc::downgrade(resource));
    tokio::spawn(async move {
        while views.changed().await.is_ok() {
            let Some(resource) = resource.upgrade() else { return };
            publish(&node, &resource);
            tokio::time::sleep(TELL).await;
        }
    });
}

/// Waits until following has come to something; the status then.
pub(super) async fn until(
    following: &Following,
    limit: Duration,
    mut is_so: impl FnMut(&FollowStatus) -> bool,
) -> Result<FollowStatus, Option<FollowStatus>> {
    let mut views = following.watch();
    let reached = async {
        let reached = views.wait_for(|view| view.status.as_ref().is_some_and(&mut is_so)).await;
        reached.ok().and_then(|view| view.status.clone())
    };
    match tokio::time::timeout(limit, reached).await {
        Ok(Some(status)) => Ok(status),
        Ok(None) | Err(_) => Err(following.view().status),
    }
}

fn refuse(name: &str, why: &str) -> ApiError {
    ApiError::new(ErrorCode::Behind, format!("primary was refused for {name}: {why}"))
}

/// Makes a node that follows Primary. Without force the Primary steps back, and this node has
/// everything first; with force it leads with what it has.
///
/// # Errors
/// What is in the way. A Primary that stepped back is Primary again then, if it can be reached.
pub(crate) async fn promote(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    force: bool,
    limit: Option<Duration>,
) -> Result<Done, ApiError> {
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    let name = resource.name();
    let following = resource.following();
    let following = following.ok_or_else(|| refuse(&name, "it does not follow any more"))?;
    let status = following.view().status;
    let status = status.ok_or_else(|| {
        refuse(&name, "the disk or the journal of this node cannot be used")
            .hint(format!("`holdfast status {name}` says why"))
    })?;
    if matches!(status.holding, Holding::Nothing | Holding::Filling) {
        return Err(refuse(&name, "the disk of this node is Inconsistent: it is being filled")
            .hint(format!("`holdfast wait {name} --for uptodate` waits for the end of that")));
    }
    // Its size stays what it is until it leads.
    let _size = Arc::clone(&resource.growth).try_lock_owned().map_err(|_| {
        let why = "its disk is just being made ready for a larger size on this node";
        ApiError { code: ErrorCode::Busy, ..refuse(&name, why) }.hint("try again in a while")
    })?;
    if !force {
        growth::need_follower_grown(node, resource)?;
    }
    // Whatever holds the disk behind does not count now.
    following.hurry(true).await;
    let ready = if force {
        let alone = || Ready { leader: None, lineage: Vec::new() };
        drain(node, resource, &following).await.map(|()| alone())
    } else {
        take_over(node, resource, &following, end).await
    };
    if ready.is_err() {
        following.hurry(false).await;
    }
    let Ready { leader, lineage } = ready?;
    drop(following);
    phase("leading from here");
    let promoted = lead(node, resource, lineage, leader.is_some(), force).await;
    if let Err(error) = promoted {
        if let (true, Some(following)) = (force, resource.following()) {
            restore_switches(&following, &status).await;
        }
        if let Some(leader) = &leader {
            give_back(node, resource, leader).await;
        }
        return Err(error);
    }
    let lineage = match resource.view() {
        Some(view) => lineage_of(&view, &resource.local()),
        None => Vec::new(),
    };
    let call = FollowCall { resource: resource.id, lineage };
    let view = node.view();
    let mut told = tokio::task::JoinSet::new();
    for peer in log_peers(node, resource.id) {
        let Some(peer) = view.records.node(peer.uuid) else { continue };
        let (node, call) = (Arc::clone(node), call.clone());
        told.spawn(async move {
            let told = call_node::<_, Done>(&node, &peer, FOLLOW, &call, CALL_TIMEOUT).await;
            if let Err(error) = told {
                // It finds out by itself.
                tracing::info!("{}", error.message);
            }
        });
    }
    // Who takes longer does it by himself.
    let _ = tokio::time::timeout(ASK_LIMIT, told.join_all()).await;
    Ok(Done::new(format!("resource {name} is Primary on this node")))
}

/// Replays all that is here: it counts, and nothing more does.
async fn drain(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    following: &Arc<Following>,
) -> Result<(), ApiError> {
    let name = resource.name();
    let view = following.view();
    need_not_apart(&name, view.status.as_ref())?;
    if let Some(leader) = view.leader {
        let leader = node.view().slot_name(resource.id, leader);
        let message = format!("primary was refused for {name}: {leader} leads, and is in reach");
        return Err(ApiError::new(ErrorCode::OtherPrimary, message).hint(format!(
            "`holdfast primary {name}` without --force has it step back, and loses nothing"
        )));
    }
    super::past::end(node, resource, "primary was refused").await?;
    following.set_switches(true, false).await.map_err(|why| refuse(&name, &why))?;
    let all = |status: &FollowStatus| {
        status.replayed >= status.fetched && matches!(status.holding, Holding::StateAt(_))
    };
    if until(following, DRAIN, all).await.is_ok() {
        return Ok(());
    }
    if let Some(status) = &view.status {
        restore_switches(following, status).await;
    }
    Err(refuse(&name, "what was fetched is not replayed yet").hint("try again in a while"))
}

/// The switches as they were.
async fn restore_switches(following: &Following, before: &FollowStatus) {
    if let Err(error) = following.set_switches(before.fetch_paused, before.replay_paused).await {
        tracing::error!("the switches of a node that follows stay turned: {error}");
    }
}

/// What is left of the time until `end`, and no more than `most`.
fn left(end: Option<Instant>, most: Duration) -> Duration {
    end.map_or(most, |end| end.saturating_duration_since(Instant::now()).min(most))
}

/// Catches up, has the Primary step back, and fetches and replays the rest; who that was. It is given
/// up at `end`.
async fn take_over(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    following: &Arc<Following>,
    end: Option<Instant>,
) -> Result<Ready, ApiError> {
    let name = resource.name();
    let status = following.view().status;
    if let Some(status) = status.filter(|status| status.fetch_paused || status.replay_paused) {
        let what = if status.fetch_paused { "fetch" } else { "replay" };
        return Err(refuse(&name, &format!("the {what} of this node is paused"))
            .hint(format!("`holdfast resume {name} {what}` first")));
    }
    need_not_apart(&name, following.view().status.as_ref())?;
    if following.view().leader.is_none() {
        meet_leader(node, resource, following, left(end, REST)).await;
    }
    let Some(leader) = following.view().leader else {
        return stood_down(node, resource, following, end).await;
    };
    let view = node.view();
    let members = view.peers_of(resource.id, node.uuid);
    let leader = members.get(&leader).cloned();
    let record = leader.as_ref().and_then(|peer| view.records.node(peer.uuid));
    let (Some(peer), Some(leader)) = (leader, record) else {
        return Err(refuse(&name, "the node that leads is not known"));
    };
    // Who stepped back by himself lets his followers fetch the rest for a while.
    let said = ask(node, resource.id, [peer]).await.pop();
    if said.is_some_and(|(_, said)| said.is_up && !said.leads) {
        return stood_down(node, resource, following, end).await;
    }
    let nearly =
        |status: &FollowStatus| status.follows && status.head.since(status.replayed) <= NEARLY;
    phase("catching up with the Primary");
    until(following, left(end, CATCH_UP), nearly).await.map_err(|status| {
        let lag = status.map_or(0, |status| status.head.since(status.replayed));
        let why = format!("this node is {} behind", format_size(lag));
        ApiError { code: ErrorCode::TimedOut, ..refuse(&name, &why) }
            .hint(format!("`holdfast wait {name} --for replayed` waits until it is not"))
    })?;
    phase("having the Primary step back");
    let limit = left(end, HAND_OVER_LIMIT);
    let within_ms = u64::try_from(limit.as_millis()).ok();
    let call = HandOver { resource: resource.id, back: false, within_ms };
    let ended = call_node::<_, HandedOver>(node, &leader, HAND_OVER, &call, limit).await;
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            // It may have stepped back all the same, when it did not come to an answer.
            if matches!(error.code, ErrorCode::PeerNotReachable | ErrorCode::TimedOut) {
                give_back(node, resource, &leader).await;
            }
            let message = format!("primary was refused for {name}: {}", error.message);
            return Err(ApiError { message, ..error });
        }
    };
    let last = LogPosition(ended.end);
    phase("replaying the rest");
    let all = |status: &FollowStatus| status.fetched >= last && status.replayed >= last;
    if until(following, left(end, DRAIN), all).await.is_err() {
        give_back(node, resource, &leader).await;
        let why = "the rest of the journal did not come in time; the other node leads again";
        return Err(ApiError { code: ErrorCode::TimedOut, ..refuse(&name, why) });
    }
    Ok(Ready { leader: Some(leader), lineage: ended.lineage })
}

/// Waits a while until this node, which may have been started just now, follows whoever says that he leads.
async fn meet_leader(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    following: &Arc<Following>,
    limit: Duration,
) {
    let peers = node.view().peers_of(resource.id, node.uuid).into_values();
    let answers = ask(node, resource.id, peers.filter(|peer| !peer.diskless)).await;
    if answers.iter().any(|(_, said)| said.leads) {
        let mut views = following.watch();
        // When it does not, what follows says why.
        let _ = tokio::time::timeout(limit, views.wait_for(|view| view.leader.is_some())).await;
    }
}

/// Nobody leads: this node may, without force, when it has all that anybody has.
async fn stood_down(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    following: &Arc<Following>,
    end: Option<Instant>,
) -> Result<Ready, ApiError> {
    let name = resource.name();
    phase("asking the other nodes what they have");
    let all = |status: &FollowStatus| {
        let replayed = status.replayed;
        let whole = matches!(status.holding, Holding::StateAt(_));
        replayed >= status.fetched && replayed >= status.head && whole
    };
    let replayed = until(following, left(end, REST), all).await;
    let found = match replayed {
        Ok(_) => all_is_here(node, resource).await,
        Err(_) => Err("this node has not replayed yet what it knows of".to_owned()),
    };
    let lineage = found.map_err(|why| {
        let why = format!("the node that leads is not in reach, and {why}");
        refuse(&name, &why).hint(format!(
            "connect it, or make it Primary and run this again; `holdfast primary {name} --force` \
             leads with what is here: what was not fetched is lost, or must be given up on one side"
        ))
    })?;
    Ok(Ready { leader: None, lineage })
}

/// That what is here and what the leader has are one history.
fn need_not_apart(name: &str, status: Option<&FollowStatus>) -> Result<(), ApiError> {
    if !status.is_some_and(|status| matches!(status.verdict, Some(Verdict::Apart { .. }))) {
        return Ok(());
    }
    let why = "this node and the Primary were written to apart from each other (split brain)";
    Err(ApiError { code: ErrorCode::SplitBrain, ..refuse(name, why) }.hint(format!(
        "`holdfast status {name}` says what each would lose; `holdfast connect {name} \
         --discard-my-data` on the node whose changes are to go"
    )))
}

async fn give_back(node: &Arc<Node>, resource: &Arc<Resource>, leader: &NodeRecord) {
    let call = HandOver { resource: resource.id, back: true, within_ms: None };
    let back: Result<HandedOver, _> = call_node(node, leader, HAND_OVER, &call, CALL_TIMEOUT).await;
    if let Err(error) = back {
        tracing::error!("{} stays Secondary: {}", leader.name, error.message);
    }
}

/// Stops following and leads from where this node is. Somebody else has all that is here until it
/// does, when it is `expendable`.
async fn lead(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    lineage: Vec<u64>,
    expendable: bool,
    force: bool,
) -> Result<(), ApiError> {
    resource::stop(resource).await?;
    let local = resource.local();
    let generation = random()? | 1;
    let content = InitialContent::Current(GenerationId(generation));
    let renewed = renew(node, &local, content).await;
    let started = match renewed {
        Ok(()) => {
            let leads = |local: &mut Local| {
                (local.primary, local.lineage, local.expendable) = (true, lineage, false);
            };
            resource.change_local(node, leads).await?;
            resource::start_core(node, resource).await
        }
        Err(error) => Err(error),
    };
    // Once more: who began to lead meanwhile was not about to when he was asked.
    let alone = match started {
        Ok(()) if !force => need_no_leader(node, resource, 2 * SETTLE).await.map(drop),
        started => started,
    };
    let promoted = match alone {
        Ok(()) => {
            let command = Command::Promote { force: true };
            core_command(node, resource, "primary was refused", command).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = promoted {
        let as_before = |local: &mut Local| (local.primary, local.expendable) = (false, expendable);
        revert(node, resource, &error, as_before).await;
        return Err(error);
    }
    resource.change_local(node, |local| local.follows = false).await?;
    wait_exported(resource).await;
    publish(node, resource);
    Ok(())
}

/// Makes the metadata anew.
pub(super) async fn renew(
    node: &Arc<Node>,
    local: &Local,
    content: InitialContent,
) -> Result<(), ApiError> {
    let view = node.view();
    let missing = || refuse(&local.name, "the records of the resource are not complete");
    let record = view.records.resource(local.id).ok_or_else(missing)?;
    let slot = view.slot_of(local.id, node.uuid).ok_or_else(missing)?;
    let disk = local.disk.clone().ok_or_else(missing)?;
    let others: Vec<_> = view
        .core_peers_of(local.id, node.uuid)
        .into_values()
        .filter(|peer| !peer.diskless)
        .map(|peer| peer.slot)
        .collect();
    let (id, al_extents) = (local.id, al_extents(&record.options));
    // It may have been agreed on more, which this disk is not ready for.
    let size = local.size.unwrap_or(record.size_bytes);
    blocking(move || renew_metadata(&disk, id, slot, size, al_extents, &others, content)).await?;
    settle_losses(node, local).await
}

/// What was lost while the node followed is in the metadata before they are used.
///
/// # Errors
/// When they cannot be written.
pub(crate) async fn settle_losses(node: &Node, local: &Local) -> Result<(), ApiError> {
    let Some(disk) = local.disk.clone().filter(|_| local.attached) else { return Ok(()) };
    let (losses, id) = (losses::path(&node.settings.state_dir, local.id), local.id);
    blocking(move || losses::give_to_metadata(&losses, &disk, id)).await
}

/// This node is Primary, and another one that follows it wants to be so.
///
/// # Errors
/// Who has the resource open.
pub(crate) async fn hand_over(
    node: &Arc<Node>,
    call: HandOver,
    taker: Uuid,
) -> Result<HandedOver, ApiError> {
    let asked_at = Instant::now();
    let resource = node.resource(call.resource);
    let resource = resource.ok_or_else(|| ApiError::no_such_resource("of the call"))?;
    let name = resource.name();
    if call.back {
        // Whoever is just about to step back hears of it at once.
        resource.state().recalled = true;
    }
    let _begun = resource.begin().await?;
    resource.state().recalled = false;
    let what = "handing over was refused";
    let handle = resource.need_handle()?;
    let journal = handle.journal().cloned();
    let journal = journal.ok_or_else(|| refuse(&name, "the other node has no journal"))?;
    let is_primary = handle.snapshot().snapshot.role == Role::Primary;
    if call.back {
        if !is_primary {
            let stepped_back = resource.state().stepped_back;
            if stepped_back.is_some_and(|back| back.taker != taker) {
                return Err(refuse(&name, "the other node has stepped back for another one"));
            }
            primary_again(node, &resource, stepped_back.and_then(|back| back.device)).await?;
        }
        resource.state().stepped_back = None;
        return Ok(HandedOver { end: journal.view().durable.0, lineage: Vec::new() });
    }
    if !is_primary {
        return Err(refuse(&name, "the other node is not Primary"));
    }
    // What nobody has yet, or what is not in the journal, cannot be handed over by it.
    if !journal.led_segments().await.is_ok_and(|segments| !segments.is_empty()) {
        return Err(refuse(&name, "the other node does not lead by its journal"));
    }
    tracing::info!(resource = name, "a node that follows asks this node to step back");
    need_closed(&resource, what).await?;
    // Who steps back waits for that, and nobody is Primary meanwhile. Nor is anybody when it does so
    // for a node that does not wait any more.
    let limit = call.within_ms.map_or(WRITE_BACK, |within| {
        let within = Duration::from_millis(within);
        (within - STEP_BACK.min(within / 2)).min(WRITE_BACK)
    });
    let written = written_back(&resource, &journal, asked_at + limit).await;
    written.map_err(|why| refuse(&name, why).hint("try again in a while"))?;
    let device = resource.state().device.as_ref().map(|device| device.kind);
    let stepped_back = async {
        release(node, &resource, what, false).await?;
        demote(node, &resource, what, false).await?;
        resource.change_local(node, |local| local.primary = false).await?;
        let end = journal.flush().await.map_err(|error| refuse(&name, &error.to_string()))?;
        if resource.state().recalled {
            return Err(refuse(&name, RECALLED));
        }
        Ok(end)
    };
    match stepped_back.await {
        Ok(end) => {
            let lineage = lineage_of(&handle.snapshot(), &resource.local());
            let until = Instant::now() + TAKE_OVER;
            resource.state().stepped_back = Some(SteppedBack { until, taker, device });
            Ok(HandedOver { end: end.0, lineage })
        }
        Err(error) => {
            primary_again(node, &resource, device).await?;
            Err(error)
        }
    }
}

/// Has a node be as before it stepped back: Primary, and with its local device.
async fn primary_again(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    device: Option<&'static str>,
) -> Result<(), ApiError> {
    if resource.view().is_some_and(|view| view.snapshot.role != Role::Primary) {
        let what = "being Primary again was refused";
        core_command(node, resource, what, Command::Promote { force: false }).await?;
    }
    resource.change_local(node, |local| local.primary = true).await?;
    let Some(kind) = device.filter(|_| resource.state().device.is_none()) else { return Ok(()) };
    wait_exported(resource).await;
    let made = device::attach(node, resource, kind.parse().unwrap_or_default(), false).await;
    if let Err(error) = made {
        let name = resource.name();
        let text = format!("this node is Primary again without its device: {}", error.message);
        tracing::error!(resource = name, "{text}");
        node.hub.notice(&name, None, &text);
    }
    Ok(())
}

const RECALLED: &str = "the node that wanted to lead has given up";

/// Waits until the disk of a node that leads has what its journal has, as long as that is of use.
async fn written_back(
    resource: &Resource,
    journal: &JournalHandle,
    until: Instant,
) -> Result<(), &'static str> {
    loop {
        let view = journal.status().await.map_err(|_| "the journal of the other node is closed")?;
        if resource.state().recalled {
            return Err(RECALLED);
        }
        if Instant::now() >= until {
            return Err("the disk of the other node does not have yet what its journal has");
        }
        if view.dirty_bytes == 0 {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Another node leads from now on.
///
/// # Errors
/// When this node is Primary itself, or cannot follow.
pub(crate) async fn follow_now(
    node: &Arc<Node>,
    call: FollowCall,
    leader: &str,
) -> Result<Done, ApiError> {
    let id = call.resource;
    let resource = node.resource(id).ok_or_else(|| ApiError::no_such_resource("of the call"))?;
    let name = resource.name();
    let _begun = resource.begin().await?;
    if resource.following().is_some() {
        resource.dial_now.notify_one();
        return Ok(Done::new(format!("node {} follows", node.name)));
    }
    if resource.view().is_some_and(|view| view.snapshot.role == Role::Primary) {
        return Err(ApiError::new(
            ErrorCode::IsPrimary,
            format!("node {} does not follow {leader}: it is Primary of {name} itself", node.name),
        ));
    }
    let local = resource.local();
    if local.journal.is_none() || local.disk.is_none() || !resource.is_up() {
        let message = format!("node {} has no journal for {name}, or it is down", node.name);
        return Err(ApiError::new(ErrorCode::NoJournal, message));
    }
    let may = match resource.handle() {
        Some(handle) => may_follow_who_leads(&handle, &call.lineage).await,
        None => MayFollow::Judged,
    };
    if may == MayFollow::No {
        let message = format!(
            "node {} does not follow {leader}: it may have data of {name} that are not there",
            node.name
        );
        return Err(ApiError::new(ErrorCode::SplitBrain, message));
    }
    begin_to_follow(node, &resource, may == MayFollow::Replaced).await?;
    Ok(Done::new(format!("node {} follows {leader}", node.name)))
}

/// From now on, also after a restart, this node follows. When that does not work it goes on as
/// before. Whether its data may be replaced unseen is for the caller to know.
async fn begin_to_follow(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    expendable: bool,
) -> Result<(), ApiError> {
    let member = node.view().follows_by_log(resource.id, node.uuid);
    let before = resource.local();
    if !uses_its_disk(&before) {
        let name = &before.name;
        let message = format!("node {} does not follow: its disk of {name} is detached", node.name);
        return Err(ApiError::new(ErrorCode::NoDisk, message)
            .hint(format!("`holdfast attach-disk {name}` has it used again")));
    }
    let follows = |local: &mut Local| {
        (local.primary, local.follows, local.expendable) = (false, !member, expendable);
    };
    resource.change_local(node, follows).await?;
    let begun = async {
        resource::stop(resource).await?;
        resource::start(node, resource, false).await?;
        resource.following().map(drop).ok_or_else(|| {
            let message = format!("resource {} does not follow: {UNPROVEN}", resource.name());
            ApiError::new(ErrorCode::SplitBrain, message)
        })
    };
    if let Err(error) = begun.await {
        let as_before = |local: &mut Local| {
            (local.follows, local.expendable) = (before.follows, before.expendable);
        };
        revert(node, resource, &error, as_before).await;
        return Err(error);
    }
    publish(node, resource);
    Ok(())
}

/// A log peer that was Primary is Secondary: it follows again, when those who follow it have the rest.
///
/// # Errors
/// When it cannot follow.
pub(crate) async fn follow_again(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
) -> Result<(), ApiError> {
    let member = node.view().follows_by_log(resource.id, node.uuid);
    if !member || resource.local().journal.is_none() {
        return Ok(());
    }
    let handle = resource.need_handle()?;
    if may_follow_who_leads(&handle, &[]).await == MayFollow::No {
        // It follows when whoever leads has all of it, or a person gives it up.
        let in_use = handle.snapshot().snapshot.disk >= DiskState::Inconsistent;
        let tell = if in_use { super::tell_unproven } else { super::tell_unused };
        tell(node, &resource.name());
        return Ok(());
    }
    drop(handle);
    let until = Instant::now() + REST;
    while resource.state().serving.is_some() && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    begin_to_follow(node, resource, false).await
}

/// A member that streams does not follow who leads by the log, as it may have data that are not there: a
/// person gives those up, for this leader, if one is named. Who is followed then.
///
/// # Errors
/// When that could not be written.
pub(crate) async fn follow_giving_up(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    peer: Option<NodeId>,
) -> Result<Option<String>, ApiError> {
    let leads = resource.view().is_none_or(|view| view.snapshot.role == Role::Primary);
    let apart: BTreeSet<NodeId> = resource.state().apart.keys().copied().collect();
    let asked = log_peers(node, resource.id).into_iter();
    let is_meant = |one: &PeerMember| peer.is_none_or(|peer| peer == one.slot);
    let asked: Vec<_> = asked.filter(|one| is_meant(one) && apart.contains(&one.slot)).collect();
    if leads || asked.is_empty() {
        return Ok(None);
    }
    if resource.local().journal.is_none() {
        let message = format!(
            "connect was refused for {}: this node has no journal to follow it by",
            resource.name()
        );
        return Err(ApiError::new(ErrorCode::NoJournal, message)
            .hint("leave, and join again with --journal"));
    }
    let answers = ask(node, resource.id, asked).await;
    let Some((leader, _)) = answers.into_iter().find(|(_, said)| said.leads) else {
        return Ok(None);
    };
    begin_to_follow(node, resource, true).await?;
    if let Some(following) = resource.following() {
        following.discard().await.map_err(|why| {
            let message = format!("connect was refused for {}: {why}", resource.name());
            ApiError::new(ErrorCode::DiskFailed, message)
        })?;
    }
    Ok(Some(leader.name))
}

/// `pause` and `resume` of fetch and replay on this node.
///
/// # Errors
/// When this node does not follow, or it could not be written.
pub(crate) async fn pause(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    part: PauseWhat,
    on: bool,
) -> Result<Done, ApiError> {
    let (name, word) = (resource.name(), part.as_str());
    if part == PauseWhat::Io {
        return Err(ApiError::not_supported_yet(&format!("pausing io of resource {name}")));
    }
    let _begun = resource.begin().await?;
    let what = if on { "pause" } else { "resume" };
    let following = resource.following().ok_or_else(|| {
        let message = format!("{what} was refused for {name}: this node does not follow a journal");
        ApiError::new(ErrorCode::NotFollowing, message)
            .hint("run it on the node that follows; `holdfast status` shows which one does")
    })?;
    let status = following.view().status;
    let (mut fetch, mut replay) =
        status.map_or((false, false), |status| (status.fetch_paused, status.replay_paused));
    match part {
        PauseWhat::Fetch => fetch = on,
        _ => replay = on,
    }
    if !replay {
        super::past::end(node, resource, "resume was refused").await?;
    }
    following.set_switches(fetch, replay).await.map_err(|why| {
        let message = format!("{what} was refused for {name}: {why}");
        ApiError::new(ErrorCode::DiskFailed, message)
    })?;
    let state = if on { "paused" } else { "going on" };
    Ok(Done::new(format!("the {word} of resource {name} is {state} on node {}", node.name)))
}
