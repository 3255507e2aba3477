//! `wait`.

use super::links::no_such_peer;
use crate::node::Node;
use crate::resource::Resource;
use crate::status;
use holdfast_api::request::{Done, MAX_WAIT_SECONDS, Wait, WaitFor};
use holdfast_api::status::{PeerStatus, ResourceStatus};
use holdfast_api::{ApiError, ErrorCode};
use std::sync::Arc;
use std::time::Duration;

/// How long is waited when nobody says.
const DEFAULT: f64 = 60.0;

/// Answers when the state is reached, or has ended.
///
/// # Errors
/// `TIMED_OUT` with how it is instead; `NO_SUCH_RESOURCE` when it is gone.
pub(crate) async fn wait(node: &Arc<Node>, name: &str, request: &Wait) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    if request.what == WaitFor::Closed && request.peer.is_some() {
        let message =
            format!("wait for {name} was refused: who has it open is known on its node only");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message)
            .hint("leave --peer away, and run it on that node"));
    }
    let seconds = request.timeout_seconds.unwrap_or(DEFAULT);
    let longest = Duration::from_secs(MAX_WAIT_SECONDS);
    let limit = Duration::try_from_secs_f64(seconds).ok().filter(|limit| *limit <= longest);
    let Some(limit) = limit else {
        let message = format!("wait for {name} was refused: {seconds} seconds cannot be waited");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message)
            .hint(format!("0 to {MAX_WAIT_SECONDS} seconds can")));
    };
    let reached = tokio::time::timeout(limit, until(node, &resource, request)).await;
    reached.unwrap_or_else(|_| {
        let now = status::resource(node, &resource);
        // It may have come true in the very last moment.
        match comes_true(&now, request) {
            Ok(true) => Ok(done(name, request)),
            Ok(false) => Err(given_up(&now, request, seconds)),
            Err(error) => Err(error),
        }
    })
}

async fn until(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    request: &Wait,
) -> Result<Done, ApiError> {
    let mut changes = resource.watch();
    status::refresh(node).await;
    loop {
        changes.mark_unchanged();
        let now = status::resource(node, resource);
        if node.resource(resource.id).is_none() {
            return Err(ApiError::no_such_resource(&now.name));
        }
        if comes_true(&now, request)? {
            return Ok(done(&now.name, request));
        }
        if let Some(error) = in_vain(&now, request) {
            return Err(error);
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = node.stopped() => return Err(crate::node::shutting_down()),
        }
    }
}

fn done(name: &str, request: &Wait) -> Done {
    let is = if request.ended { "is no longer" } else { "is" };
    Done::new(format!("resource {name} {is} {}", request.what.as_str()))
}

fn given_up(now: &ResourceStatus, request: &Wait, seconds: f64) -> ApiError {
    let mut is = format!("it is {}, its disk {}", now.role, now.disk.state);
    if request.what == WaitFor::Closed {
        is.push_str(&format!(", {} have it open", now.open_count));
    }
    for peer in &now.peers {
        is.push_str(&format!(
            "; {} is {}, {}, {}",
            peer.node, peer.connection, peer.disk, peer.replication
        ));
    }
    let message = format!(
        "waiting for {} of resource {} was given up after {seconds:.1} seconds: {is}",
        request.goal(),
        now.name
    );
    ApiError::new(ErrorCode::TimedOut, message)
        .hint(format!("`holdfast status {}` shows how it stands", now.name))
}

/// Why it will not come true before a person has done something; `None` when it may.
fn in_vain(now: &ResourceStatus, request: &Wait) -> Option<ApiError> {
    // Whatever is so now may end.
    if request.ended {
        return None;
    }
    let meant = |peer: &&PeerStatus| request.peer.as_ref().is_none_or(|name| *name == peer.node);
    let mut peers = now.peers.iter().filter(meant);
    let stuck = |peer: &&PeerStatus| peer.connection == "StandAlone" && peer.problem.is_some();
    let peer = match (request.what, &request.peer) {
        (WaitFor::Connected | WaitFor::Established | WaitFor::Synced, _) => peers.find(stuck)?,
        // The data may still come from another one.
        (WaitFor::UpToDate, None) => {
            let first = peers.next()?;
            peers.all(|peer| stuck(&peer)).then_some(first).filter(stuck)?
        }
        (WaitFor::UpToDate | WaitFor::Primary | WaitFor::Secondary, Some(_)) => {
            peers.find(stuck)?
        }
        (WaitFor::Primary | WaitFor::Secondary, None)
        | (WaitFor::Replayed | WaitFor::Closed, _) => return None,
    };
    let problem = peer.problem.as_ref()?;
    let code = match problem.code.as_str() {
        "SPLIT_BRAIN" => ErrorCode::SplitBrain,
        "UNRELATED_DATA" => ErrorCode::UnrelatedData,
        "TWO_PRIMARIES" => ErrorCode::OtherPrimary,
        _ => ErrorCode::PeerRefused,
    };
    let message = format!(
        "waiting for {} of resource {} was given up: node {}: {}",
        request.what.as_str(),
        now.name,
        peer.node,
        problem.message
    );
    Some(ApiError::new(code, message).hint(problem.hint.clone()))
}

/// Whether what is waited for is so now.
fn comes_true(now: &ResourceStatus, request: &Wait) -> Result<bool, ApiError> {
    Ok(holds(now, request)? != request.ended)
}

/// Whether the state is there now.
fn holds(now: &ResourceStatus, request: &Wait) -> Result<bool, ApiError> {
    let peer = match &request.peer {
        None => None,
        Some(name) => {
            let found = now.peers.iter().find(|peer| peer.node == *name);
            Some(found.ok_or_else(|| no_such_peer(&now.name, name))?)
        }
    };
    let every = |test: fn(&PeerStatus) -> bool| match peer {
        Some(peer) => test(peer),
        None => now.peers.iter().all(test),
    };
    let role = peer.map_or(&now.role, |peer| &peer.role);
    let disk = peer.map_or(&now.disk.state, |peer| &peer.disk);
    let up = now.role != "Unknown";
    Ok(match request.what {
        WaitFor::UpToDate => disk == "UpToDate",
        WaitFor::Connected => up && every(|peer| peer.connection == "Connected"),
        WaitFor::Established => up && every(is_established),
        WaitFor::Primary => role == "Primary",
        WaitFor::Secondary => role == "Secondary",
        WaitFor::Closed => now.open_count == 0,
        WaitFor::Synced => {
            // How far a resync is, those know who fill and who are filled, not a third one.
            up && every(|peer| {
                peer.connection == "Connected"
                    && matches!(peer.disk.as_str(), "UpToDate" | "Diskless")
                    && is_established(peer)
                    && peer.resync.is_none()
                    && peer.out_of_sync_bytes == 0
            })
        }
        WaitFor::Replayed => match &now.replay {
            Some(replay) => {
                // Before it follows, how much there is is not known.
                let follows = now.peers.iter().any(is_established);
                follows && now.disk.state == "UpToDate" && replay.lag_bytes == 0
            }
            None => {
                up && every(|peer| {
                    let all = peer.replay.as_ref().is_some_and(|replay| replay.lag_bytes == 0);
                    peer.protocol != "log"
                        || (all && is_established(peer) && peer.disk == "UpToDate")
                })
            }
        },
    })
}

/// Whether what is written here is on its way to a peer as it is written.
fn is_established(peer: &PeerStatus) -> bool {
    matches!(peer.replication.as_str(), "Established" | "Shipping" | "Replaying")
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::status::DiskStatus;
    use holdfast_api::status::PeerProblem;

    fn peer(name: &str, replication: &str, out_of_sync_bytes: u64) -> PeerStatus {
        PeerStatus {
            node: name.into(),
            connection: "Connected".into(),
            role: "Primary".into(),
            disk: "UpToDate".into(),
            replication: replication.into(),
            out_of_sync_bytes,
            ..PeerStatus::default()
        }
    }

    #[test]
    fn states_hold_for_all_peers_or_for_the_one_that_was_named() {
        let now = ResourceStatus {
            name: "r0".into(),
            role: "Secondary".into(),
            disk: DiskStatus { state: "Inconsistent".into(), ..DiskStatus::default() },
            peers: vec![peer("beta", "Established", 0), peer("gamma", "SyncTarget", 4096)],
            ..ResourceStatus::default()
        };
        let ask = |what, peer: Option<&str>| {
            let peer = peer.map(str::to_owned);
            let reached = Wait { what, ended: false, peer, timeout_seconds: None };
            let ended = Wait { ended: true, ..reached.clone() };
            let holds = comes_true(&now, &reached);
            // The one is the opposite of the other, and both know who is no peer.
            assert_eq!(comes_true(&now, &ended), holds.clone().map(|holds| !holds), "{what:?}");
            holds
        };
        for (what, all, beta) in [
            (WaitFor::UpToDate, false, true),
            (WaitFor::Connected, true, true),
            (WaitFor::Established, false, true),
            (WaitFor::Primary, false, true),
            (WaitFor::Secondary, true, false),
            (WaitFor::Synced, false, true),
        ] {
            assert_eq!(ask(what, None), Ok(all), "{what:?}");
            assert_eq!(ask(what, Some("beta")), Ok(beta), "{what:?}");
        }
        assert_eq!(ask(WaitFor::Primary, Some("x")).unwrap_err().code, ErrorCode::NoSuchPeer);
        let alone = ResourceStatus { role: "Primary".into(), ..ResourceStatus::default() };
        let down = ResourceStatus { role: "Unknown".into(), ..ResourceStatus::default() };
        let synced =
            Wait { what: WaitFor::Synced, ended: false, peer: None, timeout_seconds: None };
        assert_eq!(holds(&alone, &synced), Ok(true));
        assert_eq!(holds(&down, &synced), Ok(false));
        // A third node fills it.
        let filled = PeerStatus { disk: "Inconsistent".into(), ..peer("beta", "Established", 0) };
        let third = ResourceStatus { peers: vec![filled], ..alone };
        assert_eq!(holds(&third, &synced), Ok(false));
    }

    #[test]
    fn what_only_a_person_can_change_is_not_waited_for() {
        let stuck = |name: &str| PeerStatus {
            connection: "StandAlone".into(),
            problem: Some(PeerProblem { code: "SPLIT_BRAIN".into(), ..PeerProblem::default() }),
            ..peer(name, "Off", 0)
        };
        let disconnected = PeerStatus { problem: None, ..stuck("beta") };
        let connecting = PeerStatus { connection: "Connecting".into(), ..stuck("beta") };
        let of = |peers: &[&PeerStatus], what, peer: Option<&str>| {
            let peers = peers.iter().map(|peer| (*peer).clone()).collect();
            let now = ResourceStatus { peers, ..ResourceStatus::default() };
            let peer = peer.map(str::to_owned);
            let wait = Wait { what, ended: false, peer, timeout_seconds: None };
            // That it ends may be waited for all the same.
            assert_eq!(in_vain(&now, &Wait { ended: true, ..wait.clone() }), None);
            in_vain(&now, &wait).map(|error| error.code)
        };
        let (beta, gamma) = (stuck("beta"), peer("gamma", "Established", 0));
        let split = Some(ErrorCode::SplitBrain);
        for what in [WaitFor::Connected, WaitFor::Established, WaitFor::Synced] {
            assert_eq!(of(&[&beta, &gamma], what, None), split);
            assert_eq!(of(&[&beta, &gamma], what, Some("gamma")), None);
            assert_eq!(of(&[&disconnected, &gamma], what, None), None);
            assert_eq!(of(&[&connecting], what, None), None);
        }
        assert_eq!(of(&[&beta, &gamma], WaitFor::UpToDate, None), None);
        assert_eq!(of(&[&beta, &stuck("gamma")], WaitFor::UpToDate, None), split);
        assert_eq!(of(&[&beta], WaitFor::UpToDate, None), split);
        assert_eq!(of(&[], WaitFor::UpToDate, None), None);
        assert_eq!(of(&[&beta], WaitFor::Primary, None), None);
        assert_eq!(of(&[&beta], WaitFor::Primary, Some("beta")), split);
    }
}
