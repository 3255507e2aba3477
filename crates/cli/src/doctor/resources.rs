//! What the daemon says of its resources and attachments, as `status --check` judges it.

use super::Facts;
use super::finding::{Findings, Severity};
use crate::status::check::{Grade, Topic, of_attachment, of_resource};

const CHECK: &str = "resources.state";

pub(super) fn look(facts: &Facts, findings: &mut Findings) {
    let Some(status) = &facts.status else { return };
    for resource in &status.resources {
        let name = &resource.name;
        let mut well = true;
        of_resource(resource, &mut |grade, topic, why| {
            well = false;
            let Some((matters, advice)) = advice(topic, name) else { return };
            findings.add(severity(grade), CHECK, format!("{name}: {why}"), matters, advice);
        });
        if well {
            findings
                .ok(CHECK, format!("{name}: {}, and all of it is as it should be", resource.role));
        }
    }
    for attachment in &status.attachments {
        match of_attachment(attachment) {
            Some((grade, what)) => findings.add(
                severity(grade),
                CHECK,
                what,
                "what uses the device waits, or has one copy less than it should",
                format!("`holdfast status {}` says more", attachment.name),
            ),
            None => findings.ok(CHECK, format!("{}: connected", attachment.name)),
        }
    }
}

const fn severity(grade: Grade) -> Severity {
    match grade {
        Grade::Ok => Severity::Ok,
        Grade::Warning => Severity::Warning,
        Grade::Critical => Severity::Error,
    }
}

/// Why it matters and what to do; `None` for what other checks tell.
fn advice(topic: Topic, name: &str) -> Option<(&'static str, String)> {
    let copies = "there is a copy less than there should be, and it gets older with every write";
    Some(match topic {
        Topic::Down => {
            ("nothing is replicated to this node, or from it", format!("`holdfast up {name}`"))
        }
        Topic::NoData => (
            "every read fails or waits",
            format!(
                "`holdfast connect {name}`, when it was disconnected; else bring a peer back that \
                 has the data. `holdfast status {name}` shows both sides"
            ),
        ),
        Topic::Quorum => (
            "this node may be cut off: the others may go on without it",
            "bring the other nodes back, or the network to them".to_owned(),
        ),
        Topic::Detached => (
            "this node has no copy that is kept up to date",
            format!(
                "`holdfast attach-disk {name}`; on a Primary `holdfast secondary {name}` comes first"
            ),
        ),
        Topic::Disk => (
            "this node has no copy, or one that is not the newest",
            format!("`holdfast status {name}` says what it waits for"),
        ),
        Topic::Part => (
            "it does not do all that it was made for",
            format!("`holdfast status {name}` says more"),
        ),
        Topic::StandAlone => (copies, format!("`holdfast connect {name}`")),
        Topic::Paused => (copies, format!("`holdfast resume {name}`, if nothing else holds it up")),
        Topic::Peer => (copies, format!("`holdfast status {name}` shows how far it is")),
        Topic::Held | Topic::Health | Topic::Problem => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;
    use holdfast_api::status::{NodeStatus, PeerStatus, ResourceStatus};

    fn said(change: impl FnOnce(&mut ResourceStatus)) -> Vec<(Severity, String)> {
        let peer = PeerStatus {
            node: "beta".into(),
            connection: "Connected".into(),
            disk: "UpToDate".into(),
            ..PeerStatus::default()
        };
        let mut resource = ResourceStatus {
            name: "r0".into(),
            role: "Primary".into(),
            quorum: true,
            peers: vec![peer],
            ..ResourceStatus::default()
        };
        resource.disk.path = Some("/dev/sdb".into());
        resource.disk.state = "UpToDate".into();
        change(&mut resource);
        let status = NodeStatus { resources: vec![resource], ..NodeStatus::default() };
        let facts = Facts {
            machine: Machine::below("/nowhere".as_ref()),
            info: None,
            status: Some(status),
            silent: None,
        };
        let mut findings = Findings::default();
        look(&facts, &mut findings);
        findings.0.into_iter().map(|one| (one.severity, one.what + "; " + &one.advice)).collect()
    }

    #[test]
    fn what_status_warns_of_doctor_does_too() {
        assert!(said(|_| ()).iter().all(|(severity, _)| *severity == Severity::Ok));
        type Case = (Severity, &'static str, fn(&mut ResourceStatus));
        let cases: [Case; 4] = [
            (Severity::Warning, "holdfast up r0", |r| r.role = "Unknown".into()),
            (Severity::Warning, "holdfast connect r0", |r| {
                r.peers[0].connection = "StandAlone".into();
            }),
            (Severity::Warning, "holdfast attach-disk r0", |r| r.disk.state = "Diskless".into()),
            (Severity::Warning, "holdfast resume r0", |r| {
                r.peers[0].resync_paused = Some("paused here".into());
            }),
        ];
        for (severity, words, change) in cases {
            let found = said(change);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0 == severity && found[0].1.contains(words), "{found:?}");
        }
        let none = said(|r| {
            r.disk.state = "Diskless".into();
            r.peers[0].connection = "StandAlone".into();
        });
        assert_eq!(none[0].0, Severity::Error, "{none:?}");
        assert!(none[0].1.contains("is Primary and has no data"), "{none:?}");
    }
}
