//! Who leads: at the start, by `primary`, and when another node says that it does.

use super::Following;
use super::decide::MayFollow;
use super::follow::UNPROVEN;
use super::handover::{DRAIN, Ready, give_back, take_over};
use super::losses;
use super::others::{ASK_LIMIT, SETTLE, ask, lineage_of, may_follow_who_leads, need_no_leader};
use crate::commands::create::al_extents;
use crate::commands::roles::wait_exported;
use crate::commands::updown::publish;
use crate::commands::{blocking, core_command};
use crate::disk::renew_metadata;
use crate::growth;
use crate::local::Local;
use crate::node::{Node, PeerMember};
use crate::peer_api::FOLLOW;
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::phases::phase;
use crate::resource::{self, Resource, random};
use crate::revert::revert;
use crate::shard::InitialContent;
use holdfast_api::request::{Done, PauseWhat};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::Command;
use holdfast_journal::ship::{FollowStatus, Holding, Verdict};
use holdfast_units::{DiskState, GenerationId, NodeId, ResourceId, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a node that nobody leads may take to replay what it has, and one that stepped back to let
/// others fetch the rest.
pub(super) const REST: Duration = Duration::from_secs(10);
/// How often it looks.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How often readers of events are told how following goes.
const TELL: Duration = Duration::from_millis(200);

/// A node leads from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FollowCall {
    #[serde(with = "crate::local::id_text")]
    pub(crate) resource: ResourceId,
    /// Data of these generations are an earlier state of what it has.
    #[serde(default)]
    pub(crate) lineage: Vec<u64>,
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

pub(super) fn refuse(name: &str, why: &str) -> ApiError {
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
    // Whatever holds the disk behind does not count from here on.
    following.hurry(true).await;
    following.set_fork(None).await.map_err(|why| refuse(&name, &why))?;
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

/// The switches as they were, and what holds it back.
async fn restore_switches(following: &Following, before: &FollowStatus) {
    let restored = async {
        following.set_switches(before.fetch_paused, before.replay_paused).await?;
        // Who was met meanwhile has judged anew.
        match before.fork.filter(|_| following.view().leader.is_none()) {
            Some(fork) => following.set_fork(Some(fork)).await,
            None => Ok(()),
        }
    };
    if let Err(error) = restored.await {
        tracing::error!("the switches of a node that follows stay turned: {error}");
    }
}

/// That what is here and what the leader has are one history.
pub(super) fn need_not_apart(name: &str, status: Option<&FollowStatus>) -> Result<(), ApiError> {
    if !status.is_some_and(|status| matches!(status.verdict, Some(Verdict::Apart { .. }))) {
        return Ok(());
    }
    let why = "this node and the Primary were written to apart from each other (split brain)";
    Err(ApiError { code: ErrorCode::SplitBrain, ..refuse(name, why) }.hint(format!(
        "`holdfast status {name}` says what each would lose; `holdfast connect {name} \
         --discard-my-data` on the node whose changes are to go"
    )))
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
