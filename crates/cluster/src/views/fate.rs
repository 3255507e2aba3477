//! What became of clusters: those that were merged into another one, and those that came to be
//! by a split.

use super::{View, live};
use crate::{Key, Records, Uuid};
use serde::{Deserialize, Serialize};

pub(super) const CLUSTER: &str = "cluster";

/// What became of a cluster, or how it came to be. It sorts before all other kinds, so a node that
/// hears of it hears of it first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// The cluster's UUID.
    pub uuid: Uuid,
    /// The cluster's name.
    pub name: String,
    /// The cluster that it was merged into: its nodes are of that one now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<ClusterName>,
    /// How it came to be, if it was split off from another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitRecord>,
}

/// A cluster, by UUID and name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterName {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
}

/// A cluster that is, or is to be, split off from another one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SplitRecord {
    /// The cluster that its nodes were of.
    pub from: Uuid,
    /// Its nodes, with the names that they had.
    pub nodes: Vec<(Uuid, String)>,
    /// Whether it has been decided: until then every node only takes note of it.
    pub agreed: bool,
}

impl SplitRecord {
    /// Whether this node goes.
    #[must_use]
    pub fn takes(&self, node: Uuid) -> bool {
        self.nodes.iter().any(|(uuid, _)| *uuid == node)
    }

    /// The names of the nodes that go, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.nodes.iter().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }
}

impl Key {
    /// `cluster/UUID`
    #[must_use]
    pub fn cluster(cluster: Uuid) -> Self {
        Self::of(&format!("{CLUSTER}/{cluster}"))
    }

    /// Whether it is about what became of a cluster.
    #[must_use]
    pub fn is_fate(&self) -> bool {
        self.kind() == CLUSTER
    }
}

impl View for ClusterRecord {
    const KIND: &'static str = CLUSTER;

    fn key(&self) -> Key {
        Key::cluster(self.uuid)
    }

    fn fault(&self) -> Option<&'static str> {
        let names = [Some(&self.name), self.into.as_ref().map(|into| &into.name)];
        let bad = names.into_iter().flatten().any(|name| holdfast_units::check_name(name).is_err());
        bad.then_some("its name cannot be a cluster's")
    }
}

impl Records {
    /// What is known of what became of clusters, by UUID.
    #[must_use]
    pub fn fates(&self) -> Vec<ClusterRecord> {
        live(self).collect()
    }

    /// What became of this cluster, or how it came to be.
    #[must_use]
    pub fn fate(&self, cluster: Uuid) -> Option<ClusterRecord> {
        self.view(&Key::cluster(cluster))
    }

    /// The cluster that this one has become by now; `None` when it is still itself. Two that were
    /// merged into each other at the same moment become the one with the lower UUID.
    #[must_use]
    pub fn became(&self, cluster: Uuid) -> Option<ClusterName> {
        let mut way: Vec<ClusterName> = Vec::new();
        let mut now = cluster;
        while let Some(into) = self.fate(now).and_then(|fate| fate.into) {
            if let Some(at) = way.iter().position(|been| been.uuid == into.uuid) {
                // The first of the way is not in it yet when it is on the circle.
                return way
                    .drain(at..)
                    .min_by_key(|been| been.uuid)
                    .filter(|it| it.uuid != cluster);
            }
            now = into.uuid;
            way.push(into);
        }
        way.pop()
    }

    /// The clusters whose nodes are of this one now, or may not have heard of it yet.
    #[must_use]
    pub fn formerly(&self, cluster: Uuid) -> Vec<Uuid> {
        let fates = self.fates();
        let merged = fates.iter().filter(|fate| {
            fate.into.is_some() && self.became(fate.uuid).is_some_and(|now| now.uuid == cluster)
        });
        let split = fates.iter().filter(|fate| fate.uuid == cluster).filter_map(|fate| {
            fate.split.as_ref().filter(|split| split.agreed).map(|split| split.from)
        });
        merged.map(|fate| fate.uuid).chain(split).filter(|uuid| *uuid != cluster).collect()
    }

    /// The split of this cluster that is planned and not decided.
    #[must_use]
    pub fn planned_split(&self, cluster: Uuid) -> Option<(ClusterRecord, SplitRecord)> {
        self.fates().into_iter().find_map(|fate| {
            let split = fate.split.clone().filter(|split| split.from == cluster && !split.agreed);
            split.filter(|_| fate.into.is_none()).map(|split| (fate, split))
        })
    }

    /// A split that was carried out of just the nodes with these names (sorted), seen from either
    /// part; `cluster` is the one that this node is in.
    #[must_use]
    pub fn split_before(&self, names: &[String], cluster: Uuid) -> Option<ClusterRecord> {
        let nodes = self.nodes();
        let is_meant = |fate: &ClusterRecord| {
            let Some(split) = fate.split.as_ref().filter(|split| split.agreed) else {
                return false;
            };
            let is_over = if fate.uuid == cluster {
                nodes.iter().all(|node| split.takes(node.uuid))
            } else {
                split.from == cluster && !nodes.iter().any(|node| split.takes(node.uuid))
            };
            is_over && fate.into.is_none() && split.names() == names
        };
        self.fates().into_iter().find(is_meant)
    }

    /// Whether a split of this cluster that is planned would separate these two nodes.
    #[must_use]
    pub fn are_to_part(&self, cluster: Uuid, one: Uuid, other: Uuid) -> bool {
        self.planned_split(cluster).is_some_and(|(_, split)| split.takes(one) != split.takes(other))
    }
}
