//! A planned change of who leads: a node that follows asks the Primary to step back, and it does.

use super::Following;
use super::others::{all_is_here, ask, lineage_of};
use super::roles::{LOOK, REST, need_not_apart, refuse, until};
use crate::commands::core_command;
use crate::commands::device;
use crate::commands::roles::{READS_END, demote, need_closed, release, wait_exported};
use crate::node::Node;
use crate::peer_api::{HAND_OVER, MAY_HAND_OVER};
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::phases::phase;
use crate::resource::Resource;
use crate::shard::{JournalHandle, ResourceHandle};
use holdfast_api::request::Done;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{NodeRecord, Uuid};
use holdfast_core::Command;
use holdfast_journal::ship::{FollowStatus, Holding};
use holdfast_units::{LogPosition, ResourceId, Role, format_size};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A planned promotion waits so long until this node has nearly everything.
const CATCH_UP: Duration = Duration::from_secs(60);
/// What is nearly everything: the Primary steps back then, and clients wait for the rest.
const NEARLY: u64 = 16 << 20;
/// How long the rest may take.
pub(super) const DRAIN: Duration = Duration::from_secs(30);
/// How long the Primary may take to write back what is only in its journal before it steps back,
/// and to step back after that.
const WRITE_BACK: Duration = Duration::from_secs(60);
const HAND_OVER_LIMIT: Duration = Duration::from_secs(120);
/// How much of the time that the other node waits is left for stepping back itself.
const STEP_BACK: Duration = Duration::from_secs(1);
/// Who stepped back is not Primary by a command for so long, if he for whom it did cannot be asked.
const TAKE_OVER: Duration = Duration::from_secs(60);

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

/// How a node begins to lead.
pub(super) struct Ready {
    /// Who stepped back for it.
    pub(super) leader: Option<NodeRecord>,
    /// Data of these generations are an earlier state of what it has.
    pub(super) lineage: Vec<u64>,
}

/// What is left of the time until `end`, and no more than `most`.
fn left(end: Option<Instant>, most: Duration) -> Duration {
    end.map_or(most, |end| end.saturating_duration_since(Instant::now()).min(most))
}

/// Catches up, has the Primary step back, and fetches and replays the rest; who that was. It is given
/// up at `end`. What holds the disk behind counts until nothing is known to be in the way.
pub(super) async fn take_over(
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
    let within = |limit: Duration| HandOver {
        resource: resource.id,
        back: false,
        within_ms: u64::try_from(limit.as_millis()).ok(),
    };
    let refused = |error: ApiError| {
        let message = format!("primary was refused for {name}: {}", error.message);
        ApiError { message, ..error }
    };
    let limit = left(end, CALL_TIMEOUT);
    let may = call_node::<_, Done>(node, &leader, MAY_HAND_OVER, &within(limit), limit).await;
    match may {
        // A version that cannot be asked says so when it is to step back.
        Err(error) if error.code == ErrorCode::NotSupportedYet => {}
        may => drop(may.map_err(refused)?),
    }
    following.hurry(true).await;
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
    let ended = call_node::<_, HandedOver>(node, &leader, HAND_OVER, &within(limit), limit).await;
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            // It may have stepped back all the same, when it did not come to an answer.
            if matches!(error.code, ErrorCode::PeerNotReachable | ErrorCode::TimedOut) {
                give_back(node, resource, &leader).await;
            }
            return Err(refused(error));
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
    let not_all = |why: String| {
        let why = format!("the node that leads is not in reach, and {why}");
        refuse(&name, &why).hint(format!(
            "connect it, or make it Primary and run this again; `holdfast primary {name} --force` \
             leads with what is here: what was not fetched is lost, or must be given up on one side"
        ))
    };
    // The rest may be on its way, and after a crash it is a state again in a moment: a delay holds up
    // neither. When it does not come to that, what follows says why.
    let came = |status: &FollowStatus| {
        status.fetched >= status.head && matches!(status.holding, Holding::StateAt(_))
    };
    let _ = until(following, left(end, REST), came).await;
    all_is_here(node, resource).await.map_err(not_all)?;
    following.hurry(true).await;
    let all = |status: &FollowStatus| {
        let replayed = status.replayed;
        let whole = matches!(status.holding, Holding::StateAt(_));
        replayed >= status.fetched && replayed >= status.head && whole
    };
    // Who comes back meanwhile may have more.
    let lineage = match until(following, left(end, REST), all).await {
        Ok(_) => all_is_here(node, resource).await,
        Err(_) => Err("this node has not replayed yet what it knows of".to_owned()),
    };
    let lineage = lineage.map_err(not_all)?;
    Ok(Ready { leader: None, lineage })
}

pub(super) async fn give_back(node: &Arc<Node>, resource: &Arc<Resource>, leader: &NodeRecord) {
    let call = HandOver { resource: resource.id, back: true, within_ms: None };
    let back: Result<HandedOver, _> = call_node(node, leader, HAND_OVER, &call, CALL_TIMEOUT).await;
    if let Err(error) = back {
        tracing::error!("{} stays Secondary: {}", leader.name, error.message);
    }
}

const REFUSED: &str = "handing over was refused";

fn need_journal(handle: &ResourceHandle, name: &str) -> Result<JournalHandle, ApiError> {
    handle.journal().cloned().ok_or_else(|| refuse(name, "the other node has no journal"))
}

/// That this node may step back for one that follows it, as far as that is known before.
async fn need_may_hand_over(
    resource: &Resource,
    handle: &ResourceHandle,
    journal: &JournalHandle,
) -> Result<(), ApiError> {
    let name = resource.name();
    if handle.snapshot().snapshot.role != Role::Primary {
        return Err(refuse(&name, "the other node is not Primary"));
    }
    // What nobody has yet, or what is not in the journal, cannot be handed over by it.
    if !journal.led_segments().await.is_ok_and(|segments| !segments.is_empty()) {
        return Err(refuse(&name, "the other node does not lead by its journal"));
    }
    need_closed(resource, REFUSED).await
}

/// Another node that follows this one wants to know whether it would step back; nothing changes.
///
/// # Errors
/// What is in the way, such as who has the resource open.
pub(crate) async fn may_hand_over(node: &Arc<Node>, call: HandOver) -> Result<Done, ApiError> {
    let resource = node.resource(call.resource);
    let resource = resource.ok_or_else(|| ApiError::no_such_resource("of the call"))?;
    let handle = resource.need_handle()?;
    let journal = need_journal(&handle, &resource.name())?;
    need_may_hand_over(&resource, &handle, &journal).await?;
    Ok(Done::new(format!("node {} would step back", node.name)))
}

/// What a hand-over may take, since it was asked for.
#[derive(PartialEq, Eq, Debug)]
struct HandOverTime {
    /// Until all is written back.
    write_back: Duration,
    /// Until reads of other nodes have ended: there is still time to answer then.
    reads: Duration,
}

impl HandOverTime {
    /// For a node that waits so long for the answer.
    fn of(within: Option<Duration>) -> Self {
        let within = within.unwrap_or(HAND_OVER_LIMIT).min(HAND_OVER_LIMIT);
        let rest = STEP_BACK.min(within / 2);
        Self { write_back: (within - rest).min(WRITE_BACK), reads: within - rest / 2 }
    }
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
    let handle = resource.need_handle()?;
    let journal = need_journal(&handle, &name)?;
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
    need_may_hand_over(&resource, &handle, &journal).await?;
    tracing::info!(resource = name, "a node that follows asks this node to step back");
    // Who steps back waits for that, and nobody is Primary meanwhile. Nor is anybody when it does so
    // for a node that does not wait any more.
    let time = HandOverTime::of(call.within_ms.map(Duration::from_millis));
    let written = written_back(&resource, &journal, asked_at + time.write_back).await;
    written.map_err(|why| refuse(&name, why).hint("try again in a while"))?;
    let device = resource.state().device.as_ref().map(|device| device.kind);
    let stepped_back = async {
        release(node, &resource, REFUSED, false).await?;
        let until = (Instant::now() + READS_END).min(asked_at + time.reads);
        demote(node, &resource, REFUSED, false, until).await?;
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

#[cfg(test)]
mod tests {
    use super::{HandOverTime, WRITE_BACK};
    use std::time::Duration;

    #[test]
    fn who_steps_back_does_nothing_that_is_answered_too_late() {
        let seconds = Duration::from_secs_f64;
        for within in [0.0, 0.1, 1.0, 5.0, 60.0, 119.0] {
            let within = seconds(within);
            let time = HandOverTime::of(Some(within));
            assert!(time.write_back <= time.reads && time.reads <= within, "{time:?}");
            assert!(within.is_zero() || time.reads < within, "{time:?}");
        }
        let five = HandOverTime { write_back: seconds(4.0), reads: seconds(4.5) };
        assert_eq!(HandOverTime::of(Some(seconds(5.0))), five);
        // Whatever the other side says.
        for within in [None, Some(Duration::MAX)] {
            let time = HandOverTime::of(within);
            assert_eq!((time.write_back, time.reads), (WRITE_BACK, seconds(119.5)));
        }
    }
}
