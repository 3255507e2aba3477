//! `status --check`: one line and an exit status, as monitoring systems want them.

use crate::cluster::span;
use holdfast_api::attachment::AttachmentStatus;
use holdfast_api::health::{CRITICAL_BELOW, WARNING_BELOW};
use holdfast_api::status::{NodeStatus, PeerStatus, ResourceStatus};
use serde::Serialize;

/// So many reasons are told in the line.
const TOLD: usize = 5;

/// How all is together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Grade {
    /// As it should be.
    Ok,
    /// It works, and something is missing or on the way.
    Warning,
    /// It does not work, or is about to fail.
    Critical,
}

impl Grade {
    /// What the command ends with.
    pub(super) const fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }
}

/// What a reason is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Topic {
    /// A person stopped the resource on this node.
    Down,
    /// This node is Primary, and there is nothing to read from.
    NoData,
    /// I/O is held.
    Held,
    /// There are too few nodes in reach.
    Quorum,
    /// The disk is not used, and a person can attach it.
    Detached,
    /// The disk has failed, is not as it should be, or is not well.
    Disk,
    /// The health of the disk.
    Health,
    /// The journal, the archive, the replay, or a device of a run before.
    Part,
    /// A peer says why it is not connected.
    Problem,
    /// A person disconnected from a peer.
    StandAlone,
    /// A resync stands still.
    Paused,
    /// A peer is away, or does not have everything.
    Peer,
}

/// What a check found.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    /// The worst of all reasons.
    pub(super) state: Grade,
    /// What the command ends with.
    pub(super) exit_code: u8,
    /// What is not as it should be, the worst first.
    pub(super) reasons: Vec<String>,
    #[serde(skip)]
    figures: Vec<String>,
    #[serde(skip)]
    what: String,
}

impl Found {
    /// `HOLDFAST WARNING: r0: not connected to beta | r0_health=100;90:;70:;0;100`.
    pub(super) fn line(&self) -> String {
        let told = match self.reasons.len() {
            0 => self.what.clone(),
            few if few <= TOLD => self.reasons.join("; "),
            many => format!("{}; and {} more", self.reasons[..TOLD].join("; "), many - TOLD),
        };
        // A bar begins the figures.
        let told = told.replace('|', "/").replace('\n', " ");
        let figures = match self.figures.is_empty() {
            true => String::new(),
            false => format!(" | {}", self.figures.join(" ")),
        };
        format!("HOLDFAST {}: {told}{figures}", self.state.as_str())
    }
}

/// Judges all that is shown. `name` is the one resource or attachment that was asked for.
pub(super) fn check(status: &NodeStatus, name: Option<&str>) -> Found {
    let mut reasons: Vec<(Grade, String)> = Vec::new();
    for resource in &status.resources {
        let mut of_one = Vec::new();
        of_resource(resource, &mut |grade, _, why| of_one.push((grade, why)));
        let named =
            of_one.into_iter().map(|(grade, why)| (grade, format!("{}: {why}", resource.name)));
        reasons.extend(named);
    }
    reasons.extend(status.attachments.iter().filter_map(of_attachment));
    of_cluster(status, name, &mut reasons);
    reasons.sort_by_key(|(grade, _)| std::cmp::Reverse(*grade));
    let state = reasons.first().map_or(Grade::Ok, |(grade, _)| *grade);
    let figures = status.resources.iter().filter_map(|resource| {
        let score = resource.disk.health.as_ref()?.score;
        let name = &resource.name;
        Some(format!("{name}_health={score};{WARNING_BELOW}:;{CRITICAL_BELOW}:;0;100"))
    });
    Found {
        state,
        exit_code: state.exit_code(),
        figures: figures.collect(),
        what: format!(
            "{} resources and {} attachments are as they should be",
            status.resources.len(),
            status.attachments.len()
        ),
        reasons: reasons.into_iter().map(|(_, why)| why).collect(),
    }
}

/// Tells all that is not as it should be with a resource on this node.
pub(crate) fn of_resource(resource: &ResourceStatus, put: &mut impl FnMut(Grade, Topic, String)) {
    let down = resource.role == "Unknown";
    if down {
        put(Grade::Warning, Topic::Down, "it is stopped on this node".to_owned());
    }
    if !resource.suspended.is_empty() {
        let why = format!("I/O is held: {}", resource.suspended.join(", "));
        put(Grade::Critical, Topic::Held, why);
    }
    if !resource.quorum {
        put(Grade::Critical, Topic::Quorum, "quorum is lost".to_owned());
    }
    if let Some(seconds) = resource.device_waits_seconds {
        let why = format!("the device waits for {} more", span(seconds));
        put(Grade::Warning, Topic::Part, why);
    }
    let disk = &resource.disk;
    if let Some(problem) = &disk.problem {
        put(Grade::Critical, Topic::Disk, format!("the disk is not used: {problem}"));
    }
    if resource.role == "Primary" && !can_read(resource) {
        let why = "this node is Primary and has no data: the disk is not used, and no connected \
                   peer is UpToDate";
        put(Grade::Critical, Topic::NoData, why.to_owned());
    }
    match &*disk.state {
        _ if disk.problem.is_some() => {}
        "Failed" => put(Grade::Critical, Topic::Disk, "the disk has failed".to_owned()),
        "UpToDate" => {}
        _ if down || disk.path.is_none() => {}
        state => {
            let topic = if state == "Diskless" { Topic::Detached } else { Topic::Disk };
            put(Grade::Warning, topic, format!("the disk is {state}"));
        }
    }
    if let Some(health) = disk.health.as_ref().filter(|_| disk.problem.is_none()) {
        let why: Vec<&str> = health.reasons.iter().map(|reason| &*reason.text).collect();
        let text = format!("the health of the disk is {}: {}", health.score, why.join(", "));
        match &*health.level {
            "critical" => put(Grade::Critical, Topic::Health, text),
            "warning" => put(Grade::Warning, Topic::Health, text),
            _ => {}
        }
    }
    if let Some(problem) = resource.journal.as_ref().and_then(|journal| journal.problem.as_ref()) {
        put(Grade::Critical, Topic::Part, format!("the journal is not used: {problem}"));
    }
    if let Some(problem) = resource.archive.as_ref().and_then(|archive| archive.problem.as_ref()) {
        put(
            Grade::Warning,
            Topic::Part,
            format!("not everything is archived at present: {problem}"),
        );
    }
    if let Some(problem) = resource.replay.as_ref().and_then(|replay| replay.problem.as_ref()) {
        put(Grade::Warning, Topic::Part, format!("the replay is held up: {problem}"));
    }
    for peer in resource.peers.iter().filter(|_| !down) {
        if let Some((grade, topic, why)) = of_peer(peer) {
            put(grade, topic, why);
        }
    }
}

/// Whether there is a copy that this node can read, its own or that of a peer.
fn can_read(resource: &ResourceStatus) -> bool {
    // With data that are not the newest or are still coming, it reads what it lacks from a peer.
    let own = !matches!(&*resource.disk.state, "Diskless" | "Attaching" | "Detaching" | "Failed");
    let of_peer =
        |peer: &PeerStatus| peer.connection == "Connected" && matches!(&*peer.disk, "UpToDate");
    own || resource.peers.iter().any(of_peer)
}

fn of_peer(peer: &PeerStatus) -> Option<(Grade, Topic, String)> {
    let node = &peer.node;
    if let Some(problem) = &peer.problem {
        let grade = match &*problem.code {
            "SPLIT_BRAIN" | "UNRELATED_DATA" | "TWO_PRIMARIES" => Grade::Critical,
            _ => Grade::Warning,
        };
        return Some((grade, Topic::Problem, format!("{} ({node})", problem.message)));
    }
    if peer.connection != "Connected" {
        let topic = if peer.connection == "StandAlone" { Topic::StandAlone } else { Topic::Peer };
        let why = format!("not connected to {node}: {}", peer.connection);
        return Some((Grade::Warning, topic, why));
    }
    if matches!(&*peer.replication, "Emergency" | "Ahead" | "Behind") {
        return Some((Grade::Warning, Topic::Peer, format!("{node} is in {}", peer.replication)));
    }
    if let Some(why) = &peer.resync_paused {
        let why = format!("the resync with {node} stands still: {why}");
        return Some((Grade::Warning, Topic::Paused, why));
    }
    if !matches!(&*peer.disk, "UpToDate" | "Diskless" | "Consistent") {
        let sync = peer.resync.as_ref();
        let sync = sync.map_or_else(String::new, |sync| format!(", {:.1} % synced", sync.percent));
        let why = format!("the disk of {node} is {}{sync}", peer.disk);
        return Some((Grade::Warning, Topic::Peer, why));
    }
    let behind = peer.out_of_sync_bytes;
    let why = || format!("{node} is {behind} bytes out of sync");
    (behind > 0).then(|| (Grade::Warning, Topic::Peer, why()))
}

pub(crate) fn of_attachment(one: &AttachmentStatus) -> Option<(Grade, String)> {
    let name = &one.name;
    if one.state == "Failed" {
        let why = one.problem.as_deref().unwrap_or("it has failed");
        return Some((Grade::Critical, format!("{name}: {why}")));
    }
    if one.state != "Connected" {
        return Some((Grade::Warning, format!("{name}: its server is {}", one.state)));
    }
    let leg = one.legs.iter().find(|leg| leg.leg != "InSync" || leg.state != "Connected")?;
    Some((Grade::Warning, format!("{name}: {} is {}, {}", leg.uri, leg.state, leg.leg)))
}

/// With a name, only what the cluster says of that.
fn of_cluster(status: &NodeStatus, name: Option<&str>, reasons: &mut Vec<(Grade, String)>) {
    let Some(cluster) = &status.cluster else { return };
    let prefix = name.map(|name| format!("resource {name}:"));
    for problem in &cluster.problems {
        // The resource itself has told of its disk.
        let told = problem.contains(": the health of its disk ");
        if !told && prefix.as_ref().is_none_or(|prefix| problem.starts_with(prefix)) {
            reasons.push((Grade::Warning, problem.clone()));
        }
    }
    let silent = cluster.nodes.iter().filter(|node| !node.alive && name.is_none());
    reasons
        .extend(silent.map(|node| (Grade::Warning, format!("node {} does not answer", node.name))));
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use holdfast_api::health::{DiskHealth, HealthReason};
    use holdfast_api::status::{DiskStatus, PeerProblem};

    type Change = (&'static str, fn(&mut ResourceStatus));

    fn well() -> NodeStatus {
        let mut status = sample();
        for node in &mut status.cluster.as_mut().unwrap().nodes {
            node.alive = true;
        }
        let gamma = &mut status.resources[0].peers[1];
        gamma.disk = "UpToDate".into();
        gamma.resync = None;
        gamma.out_of_sync_bytes = 0;
        status.resources[0].disk.path = Some("/dev/sdb".into());
        status
    }

    fn of(change: impl FnOnce(&mut ResourceStatus)) -> Found {
        let mut status = well();
        change(&mut status.resources[0]);
        check(&status, Some("r0"))
    }

    #[test]
    fn all_well_is_0() {
        let found = check(&well(), None);
        assert_eq!((found.state, found.exit_code), (Grade::Ok, 0), "{found:?}");
        let due = "HOLDFAST OK: 1 resources and 0 attachments are as they should be";
        assert_eq!(found.line(), due);
        assert_eq!(check(&NodeStatus::default(), None).exit_code, 0);
    }

    #[test]
    fn what_still_works_is_1() {
        let changes: [Change; 8] = [
            ("r0: the resync with beta stands still: paused here", |r| {
                r.peers[0].disk = "Inconsistent".into();
                r.peers[0].resync_paused = Some("paused here".into());
            }),
            ("r0: not connected to beta: Connecting", |r| {
                r.peers[0].connection = "Connecting".into();
            }),
            ("r0: the disk of beta is Inconsistent", |r| r.peers[0].disk = "Inconsistent".into()),
            ("r0: beta is 4096 bytes out of sync", |r| r.peers[0].out_of_sync_bytes = 4096),
            ("r0: the disk is Outdated", |r| r.disk.state = "Outdated".into()),
            ("r0: it is stopped on this node", |r| {
                r.role = "Unknown".into();
                r.peers[0].connection = "Unconnected".into();
            }),
            ("r0: beta is in Emergency", |r| r.peers[0].replication = "Emergency".into()),
            ("r0: the health of the disk is 84: 2 errors", |r| {
                let reasons = vec![HealthReason { deduction: 16, text: "2 errors".into() }];
                let (score, level) = (84, "warning".into());
                r.disk.health = Some(DiskHealth { score, level, reasons, ..DiskHealth::default() });
            }),
        ];
        for (why, change) in changes {
            let found = of(change);
            assert_eq!((found.exit_code, &found.reasons[..]), (1, &[why.to_owned()][..]));
        }
        let status = sample();
        let found = check(&status, None);
        assert_eq!(found.exit_code, 1);
        assert_eq!(
            found.reasons,
            ["r0: the disk of gamma is Inconsistent, 50.0 % synced", "node gamma does not answer"]
        );
    }

    #[test]
    fn what_does_not_work_is_2_and_told_first() {
        let changes: [Change; 6] = [
            (
                "r0: this node is Primary and has no data: the disk is not used, and no connected \
                 peer is UpToDate",
                |r| {
                    r.role = "Primary".into();
                    r.disk.path = None;
                    r.disk.state = "Diskless".into();
                    r.peers.truncate(2);
                    r.peers[0].disk = "Diskless".into();
                },
            ),
            ("r0: quorum is lost", |r| r.quorum = false),
            ("r0: I/O is held: user", |r| r.suspended = vec!["user".into()]),
            ("r0: the disk is not used: it is gone", |r| {
                r.disk = DiskStatus { problem: Some("it is gone".into()), ..r.disk.clone() };
            }),
            ("r0: split brain: x (beta)", |r| {
                let (code, message) = ("SPLIT_BRAIN".into(), "split brain: x".into());
                r.peers[0].problem = Some(PeerProblem { code, message, hint: String::new() });
            }),
            ("r0: the health of the disk is 60: ", |r| {
                let level = "critical".into();
                r.disk.health = Some(DiskHealth { score: 60, level, ..DiskHealth::default() });
            }),
        ];
        for (why, change) in changes {
            let found = of(|r| {
                r.peers[1].connection = "StandAlone".into();
                change(r);
            });
            assert_eq!(
                (found.state, found.exit_code, &*found.reasons[0]),
                (Grade::Critical, 2, why)
            );
            assert_eq!(found.reasons.len(), 2, "{found:?}");
        }
        let found = of(|r| {
            r.disk.health =
                Some(DiskHealth { score: 97, level: "ok".into(), ..DiskHealth::default() });
        });
        assert!(found.line().ends_with(" | r0_health=97;90:;70:;0;100"), "{}", found.line());
    }

    #[test]
    fn with_a_name_only_what_is_said_of_it_counts() {
        let mut status = well();
        let cluster = status.cluster.as_mut().unwrap();
        cluster.nodes[1].alive = false;
        cluster.problems = vec!["resource r1: x".into(), "resource r0: a | b".into()];
        assert_eq!(check(&status, Some("r0")).reasons, ["resource r0: a | b"]);
        let all = check(&status, None);
        assert_eq!(all.reasons.len(), 3);
        assert_eq!(all.line().matches('|').count(), 0, "{}", all.line());
        let many = cluster_of(12);
        assert!(check(&many, None).line().ends_with("; and 7 more"));
    }

    fn cluster_of(problems: usize) -> NodeStatus {
        let mut status = well();
        let problems = (0..problems).map(|at| format!("problem {at}")).collect();
        status.cluster.as_mut().unwrap().problems = problems;
        status
    }
}
