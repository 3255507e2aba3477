//! Which resyncs of this node stand still: those of resources for which a person has said so, and where
//! the node has `max-resyncs`, those that wait for their turn.

use crate::commands::links::no_such_peer;
use crate::commands::updown::publish;
use crate::local::Local;
use crate::logpeer;
use crate::node::{ClusterView, Node, PeerMember};
use crate::peer_api::{PAUSE, PauseMember};
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::resource::{Resource, State};
use holdfast_api::request::{Done, Pause, PauseWhat};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::{Command, PeerSnapshot};
use holdfast_units::{ReplicationState, ResourceId};
use holdfast_wire::SyncPause;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whose turn it is.
const LOOK: Duration = Duration::from_millis(200);

/// Whether a resource may be filled here, where the node has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Turn {
    /// There is no limit, or it is its turn.
    #[default]
    Now,
    /// It waits, since it had something to wait for.
    Waits(Option<Instant>),
}

/// What the core is told.
pub(crate) fn pause_of(local: &Local, turn: Turn) -> SyncPause {
    match (local.sync_paused, turn) {
        (true, _) => SyncPause::Always,
        (false, Turn::Waits(_)) => SyncPause::AsTarget,
        (false, Turn::Now) => SyncPause::No,
    }
}

/// A resource is about to be started: with a limit it waits for its turn. What its core is told.
pub(crate) fn at_start(node: &Node, resource: &Resource) -> SyncPause {
    let mut state = resource.state();
    state.turn = match node.settings.max_resyncs {
        Some(_) => Turn::Waits(None),
        None => Turn::Now,
    };
    pause_of(&state.local, state.turn)
}

async fn tell_core(resource: &Resource) -> Result<(), ApiError> {
    let (pause, handle) = {
        let state = resource.state();
        let handle = state.running.as_ref().map(|running| running.handle.clone());
        (pause_of(&state.local, state.turn), handle)
    };
    let Some(handle) = handle else { return Ok(()) };
    handle.command(Command::PauseSync(pause)).await.map_err(|refusal| {
        let message =
            format!("the resync of resource {} was not told: {refusal:?}", resource.name());
        ApiError::new(ErrorCode::Internal, message)
    })
}

/// `pause` and `resume`, here, on one member, or on all members that it means something to.
///
/// # Errors
/// What is in the way; with several members, who it was refused on.
pub(crate) async fn pause(
    node: &Arc<Node>,
    name: &str,
    request: &Pause,
    on: bool,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    if request.all && request.peer.is_some() {
        let message = format!("{} was refused for {name}: one peer or all, not both", word(on));
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let own = request.peer.as_ref().is_none_or(|peer| *peer == node.name);
    if !request.all && own {
        return here(node, &resource, request.what, on).await;
    }
    let (view, id) = (node.view(), resource.id);
    let members = view.peers_of(id, node.uuid).into_values();
    let call = PauseMember { resource: id, what: request.what, on };
    if let Some(peer) = &request.peer {
        let mut members = members;
        let found = members.find(|member| member.name == *peer);
        let member = found.ok_or_else(|| no_such_peer(name, peer))?;
        return there(node, &view, &member, &call).await;
    }
    let meant = |log: bool, diskless: bool| match request.what {
        PauseWhat::Fetch | PauseWhat::Replay => log,
        PauseWhat::Sync => !log && !diskless,
        PauseWhat::Io => true,
    };
    let own = view.records.member(id, node.uuid);
    let own_diskless = own.is_some_and(|own| own.diskless);
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    let mut note = |who: &str, result: Result<Done, ApiError>| match result {
        Ok(_) => done.push(who.to_owned()),
        Err(error) => failed.push(error),
    };
    if meant(resource.following().is_some(), own_diskless) {
        note(&node.name, here(node, &resource, request.what, on).await);
    }
    for member in members.filter(|member| meant(member.log, member.diskless)) {
        note(&member.name, there(node, &view, &member, &call).await);
    }
    let state = if on { "paused" } else { "going on" };
    let what = request.what.as_str();
    let all: Vec<String> = failed.iter().map(|error| error.message.clone()).collect();
    match failed.into_iter().next() {
        Some(first) => {
            let mut message = all.join("; ");
            if !done.is_empty() {
                message.push_str(&format!(" (it is {state} on {})", done.join(", ")));
            }
            Err(ApiError { message, ..first })
        }
        None if done.is_empty() => {
            let message = format!("{} was refused for {name}: no member has a {what}", word(on));
            Err(ApiError::new(ErrorCode::NotFollowing, message))
        }
        None => {
            let done = done.join(", ");
            Ok(Done::new(format!("the {what} of resource {name} is {state} on {done}")))
        }
    }
}

const fn word(on: bool) -> &'static str {
    if on { "pause" } else { "resume" }
}

async fn there(
    node: &Arc<Node>,
    view: &ClusterView,
    member: &PeerMember,
    call: &PauseMember,
) -> Result<Done, ApiError> {
    let record = view.records.node(member.uuid);
    let record = record.ok_or_else(|| no_such_peer("of the call", &member.name))?;
    call_node(node, &record, PAUSE, call, CALL_TIMEOUT).await.map_err(|error| {
        let (what, word) = (call.what.as_str(), word(call.on));
        let message = format!("{word} {what} was not done on {}: {}", member.name, error.message);
        ApiError { message, ..error }
    })
}

/// What another member asks of this one.
///
/// # Errors
/// As [`pause`].
pub(crate) async fn on_member(node: &Arc<Node>, call: &PauseMember) -> Result<Done, ApiError> {
    let resource = node.resource(call.resource);
    let resource = resource.ok_or_else(|| ApiError::no_such_resource("of the call"))?;
    here(node, &resource, call.what, call.on).await
}

async fn here(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: PauseWhat,
    on: bool,
) -> Result<Done, ApiError> {
    if what != PauseWhat::Sync {
        return logpeer::pause(node, resource, what, on).await;
    }
    let _begun = resource.begin().await?;
    let name = resource.name();
    if resource.following().is_some() {
        let why = "this node follows a journal, and is filled by that";
        let message = format!("{} was refused for {name}: {why}", word(on));
        return Err(ApiError::new(ErrorCode::Follows, message).hint(format!(
            "`holdfast {} {name} replay` holds the filling of a log peer, too",
            word(on)
        )));
    }
    resource.change_local(node, |local| local.sync_paused = on).await?;
    tell_core(resource).await?;
    publish(node, resource);
    let state = if on { "paused" } else { "going on" };
    Ok(Done::new(format!("the resync of resource {name} is {state} on node {}", node.name)))
}

/// Why a resync with a peer stands still, in words; `None` when it does not.
pub(crate) fn why(node: &Node, state: &State, peer: &PeerSnapshot, name: &str) -> Option<String> {
    let still = match peer.stands_still {
        Some(still) => still,
        None if peer.replication == ReplicationState::PausedSyncT => {
            return Some("this node gets the data from another one first".to_owned());
        }
        None if peer.replication == ReplicationState::PausedSyncS => {
            return Some(format!("node {name} gets the data from another one first"));
        }
        None => return None,
    };
    let mut why = Vec::new();
    match (state.local.sync_paused, node.settings.max_resyncs) {
        (true, _) if still.here => why.push(format!(
            "paused on this node; `holdfast resume {} sync` lets it go on",
            state.local.name
        )),
        (false, Some(most)) if still.here => {
            why.push(format!("it waits for its turn: max-resyncs of this node is {most}"));
        }
        _ => {}
    }
    if still.there {
        why.push(format!("held by node {name}"));
    }
    Some(why.join("; "))
}

/// Gives turns, where the node has a limit, until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    let Some(most) = node.settings.max_resyncs else { return };
    loop {
        look(&node, usize::try_from(most).unwrap_or(usize::MAX)).await;
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = node.stopped() => return,
        }
    }
}

async fn look(node: &Arc<Node>, most: usize) {
    let (mut going, mut waiting) = (0, Vec::new());
    let mut told: Vec<Arc<Resource>> = Vec::new();
    let now = Instant::now();
    for resource in node.resources() {
        let mut state = resource.state();
        let Some(running) = &state.running else { continue };
        let view = running.handle.snapshot();
        // What its source holds takes nobody's turn.
        let goes = |peer: &PeerSnapshot| {
            peer.is_source && !peer.stands_still.is_some_and(|still| still.there)
        };
        let wants = !state.local.sync_paused && view.snapshot.peers.iter().any(goes);
        match (wants, state.turn) {
            (true, Turn::Now) => going += 1,
            (true, Turn::Waits(since)) => {
                let since = since.unwrap_or(now);
                state.turn = Turn::Waits(Some(since));
                waiting.push((since, resource.id));
            }
            // What comes next waits for its turn again.
            (false, Turn::Now) => {
                state.turn = Turn::Waits(None);
                drop(state);
                told.push(resource);
            }
            (false, Turn::Waits(_)) => state.turn = Turn::Waits(None),
        }
    }
    for id in next(waiting, most.saturating_sub(going)) {
        let Some(resource) = node.resource(id) else { continue };
        resource.state().turn = Turn::Now;
        told.push(resource);
    }
    for resource in told {
        if let Err(error) = tell_core(&resource).await {
            tracing::warn!("{}", error.message);
        }
    }
}

/// Who waited longest; the id decides between two.
fn next(mut waiting: Vec<(Instant, ResourceId)>, room: usize) -> Vec<ResourceId> {
    waiting.sort();
    waiting.into_iter().take(room).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_longest_is_next() {
        let now = Instant::now();
        let id = |number| ResourceId([number; 16]);
        let later = now + Duration::from_millis(1);
        let waiting = vec![(later, id(1)), (now, id(3)), (now, id(2))];
        assert_eq!(next(waiting.clone(), 2), [id(2), id(3)]);
        assert_eq!(next(waiting.clone(), 0), []);
        assert_eq!(next(waiting, 9).len(), 3);
    }
}
