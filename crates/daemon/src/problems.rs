//! What does not fit together in the records, in words for people.

use crate::events::unix_ms;
use crate::node::Node;
use holdfast_cluster::{Records, Trouble, UnixMillis, Uuid};
use holdfast_units::ResourceId;
use std::collections::BTreeSet;

/// A sentence for each problem, with the way out; none when all is well.
pub(crate) fn of_records(node: &Node) -> BTreeSet<String> {
    let view = node.view();
    let records = &view.records;
    // How far a clock is ahead changes with every look; it is told with the records' nodes.
    let clock = |trouble: &Trouble| matches!(trouble, Trouble::ClockAhead { .. });
    let found = records.troubles(UnixMillis(unix_ms())).into_iter();
    found.filter(|trouble| !clock(trouble)).map(|trouble| sentence(records, &trouble)).collect()
}

/// Whether another resource has the name of this one and keeps it; the nodes that have that one.
pub(crate) fn name_is_lost(node: &Node, resource: ResourceId) -> Option<String> {
    let view = node.view();
    let found = view.records.troubles(UnixMillis(unix_ms()));
    found.into_iter().find_map(|trouble| match trouble {
        Trouble::ResourceNameTwice { keeps, loses, .. } if loses == resource => {
            Some(members(&view.records, keeps))
        }
        _ => None,
    })
}

fn sentence(records: &Records, trouble: &Trouble) -> String {
    match trouble {
        Trouble::ResourceNameTwice { name, keeps, loses } => format!(
            "two resources have the name {name}: the one of {} was the first; on {} run \
             `holdfast delete {name}` and create it again with another name (the data stay on \
             the disk)",
            members(records, *keeps),
            members(records, *loses)
        ),
        Trouble::SlotTwice { resource, keeps, loses, .. } => {
            let record = records.resource(*resource);
            let name = record.map_or_else(|| resource.to_string(), |record| record.name);
            format!(
                "two nodes joined resource {name} apart and have the same number in it: {0} keeps \
                 it; on {1} run `holdfast leave {name}` and join again",
                node_name(records, *keeps),
                node_name(records, *loses)
            )
        }
        Trouble::NodeNameTwice { .. } | Trouble::Unreadable { .. } | Trouble::ClockAhead { .. } => {
            trouble.to_string()
        }
    }
}

fn members(records: &Records, resource: ResourceId) -> String {
    let members = records.members(resource);
    let mut names: Vec<String> = members.iter().map(|m| node_name(records, m.node)).collect();
    names.sort();
    if names.is_empty() { "no node".to_owned() } else { names.join(", ") }
}

fn node_name(records: &Records, node: Uuid) -> String {
    records.node(node).map_or_else(|| node.to_string(), |record| record.name)
}
