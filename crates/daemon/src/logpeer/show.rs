//! Log peers in the status document.

use super::follow::word_of;
use super::{FollowView, Serving};
use holdfast_api::status::{JournalStatus, PeerProblem, PeerStatus, ReplayStatus, ResyncStatus};
use holdfast_api::words::{agreed, counted};
use holdfast_format::journal::FollowState;
use holdfast_journal::ship::{FollowStatus, FollowerStatus, Trouble, Verdict};
use holdfast_units::{HybridTime, NodeId};

/// The word for the disk of a node that follows.
pub(crate) fn disk_word(view: &FollowView) -> &'static str {
    view.status.as_ref().map_or("Failed", |status| word_of(status.holding))
}

/// Fetch and replay.
pub(crate) fn replay_of(view: &FollowView) -> Option<ReplayStatus> {
    let status = view.status.as_ref()?;
    let lag = status.head.since(status.replayed);
    let seconds = if lag == 0 { 0 } else { status.replay_lag_ms };
    let mut paused = Vec::new();
    if status.fetch_paused {
        paused.push("fetch".to_owned());
    }
    if status.replay_paused {
        paused.push("replay".to_owned());
    }
    let rate = if view.replay_rate > 0 { view.replay_rate } else { view.rate };
    Some(ReplayStatus {
        head: status.head.0,
        fetched: status.fetched.0,
        replayed: status.replayed.0,
        lag_bytes: lag,
        lag_seconds: seconds_of(seconds),
        paused,
        fetch_bytes_per_second: view.rate,
        replay_bytes_per_second: view.replay_rate,
        eta_seconds: lag.checked_div(rate).unwrap_or(0),
        problem: unkept(view)
            .or_else(|| problem_of(view).map(|problem| problem.message))
            .or_else(|| to_come(status)),
    })
}

/// The list of blocks without a good copy cannot be kept: what that holds up, and the way out.
pub(crate) fn unkept(view: &FollowView) -> Option<String> {
    let healed = &view.status.as_ref()?.healed;
    let why = healed.unkept.as_ref()?;
    let (blocks, has) = (counted(healed.blocks, "block"), agreed(healed.blocks, "has", "have"));
    Some(format!(
        "it cannot be noted that {blocks} of the disk here {has} no good copy, so none is healed and a filling \
         does not end: {why}; make room on the filesystem of the state directory, or see what is \
         wrong with it: it goes on by itself then"
    ))
}

/// Blocks without a good copy that only the replay can bring.
fn to_come(status: &FollowStatus) -> Option<String> {
    let blocks = status.healed.to_come;
    (blocks > 0).then(|| {
        let (blocks, wait) = (counted(blocks, "block"), agreed(blocks, "waits", "wait"));
        format!("{blocks} without a good copy here {wait} for the replay, which brings what was written since")
    })
}

fn seconds_of(millis: u64) -> f64 {
    f64::from(u32::try_from(millis).unwrap_or(u32::MAX)) / 1000.0
}

/// The journal of a node that follows.
pub(crate) fn journal_of(view: &FollowView, shown: JournalStatus) -> JournalStatus {
    let Some(status) = &view.status else { return shown };
    JournalStatus {
        head: status.fetched.0,
        tail: status.tail.0,
        bytes: status.bytes,
        durable: status.fetched.0,
        written_back: status.replayed.0,
        ..shown
    }
}

/// The other members, for a node that follows.
pub(crate) fn peers_of_leader(
    view: &FollowView,
    members: impl Iterator<Item = (NodeId, String)>,
) -> Vec<PeerStatus> {
    let peer = |(slot, node)| {
        let leads = view.leader == Some(slot);
        let lends = view.lender == Some(slot);
        let status = view.status.as_ref().filter(|_| leads || lends);
        let follows = status.is_some_and(|status| status.follows);
        let filling = status.filter(|status| status.fill_left > 0);
        PeerStatus {
            node,
            connection: if leads || lends { "Connected" } else { "Connecting" }.to_owned(),
            role: match (leads, lends) {
                (true, _) => "Primary",
                (_, true) => "Secondary",
                _ => "Unknown",
            }
            .to_owned(),
            disk: if leads { "UpToDate" } else { "DUnknown" }.to_owned(),
            replication: match (follows, filling) {
                (true, Some(_)) => "SyncTarget",
                (true, None) => "Replaying",
                (false, _) => "Off",
            }
            .to_owned(),
            protocol: "log".to_owned(),
            out_of_sync_bytes: filling.map_or(0, |status| status.fill_left),
            tls: leads || lends,
            received_bytes: status.map_or(0, |status| status.transferred),
            resync: filling.map(|status| resync(status.fill_left, view)),
            problem: if leads { problem_of(view) } else { None },
            ..PeerStatus::default()
        }
    };
    members.map(peer).collect()
}

fn resync(left: u64, view: &FollowView) -> ResyncStatus {
    let (rate, total) = (view.rate, view.fill_bytes.max(left));
    let done = total - left;
    ResyncStatus {
        // Precise enough for a percentage.
        percent: (u128::from(done) * 1000 / u128::from(total.max(1))) as f64 / 10.0,
        bytes_done: done,
        bytes_total: total,
        rate_bytes_per_second: rate,
        eta_seconds: left.checked_div(rate).unwrap_or(0),
    }
}

/// What a person must know.
fn problem_of(view: &FollowView) -> Option<PeerProblem> {
    let status = view.status.as_ref()?;
    if let Some(apart @ Verdict::Apart { .. }) = &status.verdict {
        return Some(apart_problem(apart, false));
    }
    match &status.trouble {
        Some(Trouble::Refused(_, text)) => Some(PeerProblem {
            code: "PEER_REFUSED".to_owned(),
            message: text.clone(),
            hint: "`holdfast cluster status` and the logs of both nodes say more".to_owned(),
        }),
        Some(Trouble::NoRoom) => Some(PeerProblem {
            code: "NO_SPACE".to_owned(),
            message: "the journal of this node is full until more of it is replayed".to_owned(),
            hint: "resume the replay, or give it a larger journal".to_owned(),
        }),
        Some(Trouble::Held) => Some(PeerProblem {
            code: "REPLAY_PAUSED".to_owned(),
            message: "the Primary's journal does not reach back to what this node has: it is to \
                      be filled, and keeps its state while its replay is paused"
                .to_owned(),
            hint: "resume the replay when that state is not needed any more".to_owned(),
        }),
        Some(Trouble::Smaller(at)) => Some(PeerProblem {
            code: "SIZES_DIFFER".to_owned(),
            message: format!(
                "the resource has grown, and this node's disk has not: replay waits at position {at}"
            ),
            hint: "make the disk of this node larger; it goes on by itself then".to_owned(),
        }),
        Some(Trouble::Damaged(at)) => Some(PeerProblem {
            code: "JOURNAL_DAMAGED".to_owned(),
            message: format!("what comes for position {at} of the Primary's journal is damaged"),
            hint: "it is asked for again; when it stays, the journal on the Primary has rotted there: \
                   its log says so"
                .to_owned(),
        }),
        None => None,
    }
}

fn apart_problem(verdict: &Verdict, leads: bool) -> PeerProblem {
    let Verdict::Apart { common, follower, leader, follower_since, leader_since } = verdict else {
        return PeerProblem::default();
    };
    let since = |time: &HybridTime| match time.unix_millis() {
        0 => String::new(),
        millis => format!(" since {}", clock(millis)),
    };
    let (own, other) = if leads {
        ((leader, leader_since), (follower, follower_since))
    } else {
        ((follower, follower_since), (leader, leader_since))
    };
    let from = common.map_or_else(
        || "before what is still kept".to_owned(),
        |common| format!("at position {common}"),
    );
    PeerProblem {
        code: "SPLIT_BRAIN".to_owned(),
        message: format!(
            "the journals went on apart {from}: {} bytes only here{}, {} bytes only there{}",
            own.0,
            since(own.1),
            other.0,
            since(other.1)
        ),
        hint: "decide whose data are to be kept; on the other node `holdfast connect NAME \
               --discard-my-data` has them replaced"
            .to_owned(),
    }
}

/// A time of day in UTC.
fn clock(millis: u64) -> String {
    let seconds = millis / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (hours, minutes, seconds) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    // The civil date of a day number, by eras of 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02} UTC")
}

/// A follower, for the node that leads.
pub(crate) fn peer_of_follower(
    node: String,
    slot: NodeId,
    serving: Option<&Serving>,
) -> PeerStatus {
    let status = serving.and_then(|serving| serving.shown(slot));
    let Some(status) = status else {
        return PeerStatus {
            node,
            connection: "Connecting".to_owned(),
            role: "Unknown".to_owned(),
            disk: "DUnknown".to_owned(),
            replication: "Off".to_owned(),
            protocol: "log".to_owned(),
            ..PeerStatus::default()
        };
    };
    let connected = status.connected;
    PeerStatus {
        node,
        connection: if connected { "Connected" } else { "Connecting" }.to_owned(),
        role: if connected { "Secondary" } else { "Unknown" }.to_owned(),
        disk: disk_of(&status).to_owned(),
        replication: replication_of(&status).to_owned(),
        protocol: "log".to_owned(),
        out_of_sync_bytes: status.missing,
        tls: connected,
        replay: Some(ReplayStatus {
            head: status.head.0,
            fetched: status.fetched.0,
            replayed: status.replayed.0,
            lag_bytes: status.head.since(status.replayed),
            lag_seconds: seconds_of(status.replay_lag_ms),
            paused: [(status.fetch_paused, "fetch"), (status.replay_paused, "replay")]
                .into_iter()
                .filter(|(on, _)| *on)
                .map(|(_, word)| word.to_owned())
                .collect(),
            ..ReplayStatus::default()
        }),
        problem: status.apart.as_ref().map(|verdict| apart_problem(verdict, true)),
        ..PeerStatus::default()
    }
}

fn disk_of(status: &FollowerStatus) -> &'static str {
    match status.state {
        _ if !status.connected => "DUnknown",
        FollowState::Consistent => "UpToDate",
        FollowState::Nothing | FollowState::Filling | FollowState::Led => "Inconsistent",
    }
}

fn replication_of(status: &FollowerStatus) -> &'static str {
    match (status.connected, status.state) {
        _ if status.apart.is_some() => "Off",
        // What it still needed was given up: it will be filled.
        _ if status.cut => "Emergency",
        (false, _) => "Off",
        (true, FollowState::Consistent) => "Shipping",
        (true, _) => "SyncSource",
    }
}

#[cfg(test)]
mod tests {
    use super::clock;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(clock(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(clock(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(clock(1_735_689_599_999), "2024-12-31 23:59:59 UTC");
    }
}
