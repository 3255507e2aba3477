//! What a node does when it hears what became of its cluster.

use super::{Data, Membership};
use crate::{ClusterRecord, Key, MemberRecord, Records, Refusal, SplitRecord, Stamp, UnixMillis};
use holdfast_units::ResourceId;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// More than this many moves in a row, no honest records make.
const MAX_MOVES: usize = 64;

/// Brings the membership to what the records say: to the cluster that this one was merged into, to
/// the part of a split that the node is in. Whether a split was carried out: then nothing else
/// of the message that it came in counts, as it may speak for the other part.
pub(super) fn settle(data: &mut Data, own: Uuid) -> Result<bool, Refusal> {
    let mut parted = false;
    for _ in 0..MAX_MOVES {
        let Some(cluster) = &mut data.cluster else { return Ok(parted) };
        if let Some(now) = data.records.became(cluster.uuid) {
            (cluster.uuid, cluster.name) = (now.uuid, now.name);
            continue;
        }
        let due = data.records.fates().into_iter().find_map(|fate| {
            let split = fate.split.clone().filter(|split| split.agreed)?;
            let is_ours = split.from == cluster.uuid && fate.into.is_none();
            (is_ours && !data.settled.contains(&fate.uuid)).then_some((fate, split))
        });
        let Some((fate, split)) = due else { return Ok(parted) };
        data.settled.insert(fate.uuid);
        let Some(stamp) = data.records.version(&Key::cluster(fate.uuid)).map(|r| r.stamp) else {
            continue;
        };
        // One that was not in the cluster then is not meant.
        if cluster.joined_at <= stamp.ms {
            part(cluster, &mut data.records, &fate, &split, own, stamp)?;
            parted = true;
        }
    }
    Ok(parted)
}

/// Carries a split out on this node.
fn part(
    cluster: &mut Membership,
    records: &mut Records,
    fate: &ClusterRecord,
    split: &SplitRecord,
    own: Uuid,
    stamp: Stamp,
) -> Result<(), Refusal> {
    let goes = split.takes(own);
    if goes {
        cluster.uuid = fate.uuid;
        cluster.name.clone_from(&fate.name);
    }
    let nodes = records.nodes().into_iter().map(|node| node.uuid);
    let away: BTreeSet<Uuid> = nodes.filter(|node| split.takes(*node) != goes).collect();
    let mut keys: Vec<Key> = Vec::new();
    for (resource, members) in by_resource(records) {
        let is_away = |member: &MemberRecord| away.contains(&member.node);
        let left = members.iter().any(|member| !is_away(member));
        keys.extend(members.iter().filter(|m| is_away(m)).map(|m| Key::member(resource, m.node)));
        if !left {
            keys.push(Key::resource(resource));
        }
        keys.extend(pairs(records, resource, |node| !left || away.contains(&node)));
    }
    keys.extend(away.into_iter().map(Key::node));
    for key in keys {
        // What was written after it was decided is another story: a node that came again.
        if records.version(&key).is_some_and(|record| record.stamp <= stamp) {
            records.delete(&key, own, UnixMillis(stamp.ms))?;
        }
    }
    Ok(())
}

/// The members of each resource that has some.
pub(super) fn by_resource(records: &Records) -> BTreeMap<ResourceId, Vec<MemberRecord>> {
    let mut found: BTreeMap<ResourceId, Vec<MemberRecord>> = BTreeMap::new();
    for node in records.nodes() {
        for member in records.memberships(node.uuid) {
            found.entry(member.resource).or_default().push(member);
        }
    }
    found
}

/// The options of the links of a resource that one of these nodes is at.
fn pairs(records: &Records, resource: ResourceId, of: impl Fn(Uuid) -> bool) -> Vec<Key> {
    let prefix = format!("option/{resource}/");
    let is_meant = |key: &Key| {
        let nodes = key.as_str().strip_prefix(&prefix).into_iter().flat_map(|rest| rest.split('/'));
        nodes.filter_map(|node| node.parse().ok()).any(&of)
    };
    let live = records.of_kind("option").filter(|record| !record.deleted);
    live.map(|record| record.key.clone()).filter(is_meant).collect()
}
