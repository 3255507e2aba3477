//! The state of the daemon in one short line, as `systemctl status` shows it.

use holdfast_api::status::ResourceStatus;
use std::collections::BTreeMap;

/// What there is, and what of it needs a look: `3 resources: 2 Primary, 1 Secondary; 3 of 4 peers
/// connected; look at r0 and r1`.
pub(super) fn of(in_cluster: bool, resources: &[ResourceStatus], attachments: usize) -> String {
    let mut parts = Vec::new();
    match resources.len() {
        0 if !in_cluster => parts.push("in no cluster yet".to_owned()),
        0 => parts.push("no resources".to_owned()),
        count => {
            parts.push(format!("{}: {}", counted(count, "resource"), roles(resources)));
            let peers = || resources.iter().flat_map(|one| &one.peers);
            let connected = peers().filter(|peer| peer.connection == "Connected").count();
            if peers().count() > 0 {
                parts
                    .push(format!("{connected} of {} connected", counted(peers().count(), "peer")));
            }
        }
    }
    if attachments > 0 {
        parts.push(counted(attachments, "attachment"));
    }
    let bad: Vec<&str> = resources.iter().filter(|one| is_bad(one)).map(|r| &*r.name).collect();
    match bad[..] {
        [] => {}
        [one] => parts.push(format!("look at {one}")),
        [first, second] => parts.push(format!("look at {first} and {second}")),
        [first, ..] => parts.push(format!("look at {first} and {} more", bad.len() - 1)),
    }
    parts.join("; ")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `2 Primary, 1 Secondary, 1 down`.
fn roles(resources: &[ResourceStatus]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for resource in resources {
        let role = if resource.role == "Unknown" { "down" } else { &resource.role };
        *counts.entry(role).or_default() += 1;
    }
    let counts: Vec<String> =
        counts.iter().map(|(role, count)| format!("{count} {role}")).collect();
    counts.join(", ")
}

/// Whether `status` says that something is wrong with it that does not pass by itself.
fn is_bad(resource: &ResourceStatus) -> bool {
    resource.disk.problem.is_some() || resource.peers.iter().any(|peer| peer.problem.is_some())
}

#[cfg(test)]
mod tests {
    use super::of;
    use holdfast_api::status::{PeerProblem, PeerStatus, ResourceStatus};

    fn resource(name: &str, role: &str, connections: &[&str]) -> ResourceStatus {
        let peer = |word: &&str| PeerStatus {
            connection: (*word).to_owned(),
            problem: (*word == "StandAlone").then(PeerProblem::default),
            ..PeerStatus::default()
        };
        ResourceStatus {
            name: name.into(),
            role: role.into(),
            peers: connections.iter().map(peer).collect(),
            ..ResourceStatus::default()
        }
    }

    #[test]
    fn what_there_is_and_what_needs_a_look() {
        assert_eq!(of(false, &[], 0), "in no cluster yet");
        assert_eq!(of(false, &[], 1), "in no cluster yet; 1 attachment");
        assert_eq!(of(true, &[], 0), "no resources");
        let alone = resource("db", "Primary", &[]);
        assert_eq!(
            of(true, std::slice::from_ref(&alone), 2),
            "1 resource: 1 Primary; 2 attachments"
        );
        let mut many = vec![
            alone,
            resource("a", "Secondary", &["Connected", "Connecting"]),
            resource("b", "Secondary", &["Connected"]),
            resource("c", "Unknown", &[]),
        ];
        let words = "4 resources: 1 Primary, 2 Secondary, 1 down; 2 of 3 peers connected";
        assert_eq!(of(true, &many, 0), words);
        many[0].disk.problem = Some("it does not answer".into());
        assert_eq!(of(true, &many, 0), format!("{words}; look at db"));
        many[2] = resource("b", "Secondary", &["StandAlone"]);
        let words = "4 resources: 1 Primary, 2 Secondary, 1 down; 1 of 3 peers connected";
        assert_eq!(of(true, &many, 0), format!("{words}; look at db and b"));
        many[1] = resource("a", "Secondary", &["StandAlone", "Connected"]);
        assert_eq!(of(true, &many, 0), format!("{words}; look at db and 2 more"));
    }
}
