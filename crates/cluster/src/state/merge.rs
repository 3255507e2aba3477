//! Two clusters become one: this node's is merged into the one of a token.

use super::{ClusterState, MAX_CLUSTER_NODES, apply, other_cluster};
use crate::{
    Change, ClusterName, ClusterRecord, Code, Fingerprint, JoinResponse, JoinToken, MergeReport,
    MergeRequest, Record, Records, Refusal, UnixMillis, Uuid,
};
use std::collections::BTreeMap;

impl ClusterState {
    /// What this node must say to the issuer of a token so that its cluster is merged into the
    /// issuer's. Without `commit` it only asks whether that can be.
    ///
    /// # Errors
    /// [`Code::NotMember`]; [`Code::NodeUnknown`] when this node was removed;
    /// [`Code::AlreadyMember`] when it is in that cluster already; [`Code::NodeBusy`] while a split
    /// is planned.
    pub fn merge_request(&self, token: &JoinToken, commit: bool) -> Result<MergeRequest, Refusal> {
        let (cluster, node) = (self.need_member()?, self.need_own()?);
        if cluster.uuid == token.cluster {
            return Err(Refusal::new(
                Code::AlreadyMember,
                format!("the cluster {} was not merged: the token is its own", cluster.name),
                "make a token with `holdfast cluster token` on a node of the other cluster",
            ));
        }
        self.refuse_planned("merged")?;
        let records = self.records();
        Ok(MergeRequest {
            cluster: token.cluster,
            token: token.id,
            secret: token.secret.clone(),
            node,
            from: ClusterName { uuid: cluster.uuid, name: cluster.name.clone() },
            nodes: records.nodes().into_iter().map(|node| (node.name, node.uuid)).collect(),
            resources: records
                .resources()
                .into_iter()
                .map(|r| (r.name, r.id.to_string()))
                .collect(),
            commit,
        })
    }

    /// Answers a [`MergeRequest`]. `certificate` is that of the connection. With `commit` the
    /// token is used up and the asking node known and pinned, durably, before this returns: it
    /// brings the rest of its cluster's records as any node does. It may ask again with the same
    /// token when it did not hear the answer.
    ///
    /// # Errors
    /// Those of [`ClusterState::admit`]; [`Code::NameTaken`] lists all names that both clusters
    /// have; [`Code::NodeBusy`] while a split is planned. Nothing has changed then.
    pub fn admit_cluster(
        &mut self,
        request: &MergeRequest,
        certificate: Fingerprint,
        now: UnixMillis,
    ) -> Result<JoinResponse, Refusal> {
        let cluster = self.need_member()?;
        if request.cluster != cluster.uuid {
            return Err(other_cluster("the merge request", &cluster.name));
        }
        self.need_own()?;
        let mut next = self.data.clone();
        let used = next.tokens.was_used_by(request.token, &request.secret, &certificate);
        if !used {
            next.tokens.redeem(request.token, &request.secret, certificate, now)?;
        }
        if request.node.fingerprint != certificate {
            return Err(Refusal::new(
                Code::CertificateInvalid,
                "the merge request is refused: its node has another certificate",
                "check that both nodes run versions of Holdfast that work together",
            ));
        }
        self.refuse_planned("merged with another one")?;
        self.check_disjoint(request)?;
        let known = self.records().node(request.node.uuid);
        if request.commit && !(used && known.is_some_and(|n| n.fingerprint == certificate)) {
            let mut node = request.node.clone();
            node.joined_at = now.0;
            let own = self.identity.uuid();
            apply(&mut next.records, vec![Change::node(&node)], own, now)?;
            self.commit(next)?;
        }
        self.join_response()
    }

    /// Whether [`ClusterState::accept_cluster`] would take this answer now.
    ///
    /// # Errors
    /// As that, apart from [`Code::StateIo`].
    pub fn check_cluster(
        &self,
        token: &JoinToken,
        response: &JoinResponse,
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        self.united(token, response.clone(), now).map(|_| ())
    }

    /// Takes the answer to a [`MergeRequest`] with `commit`: from now on this node is in the other
    /// cluster, with everything that its own had. The other nodes follow when they hear of it.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::OtherCluster`], [`Code::NameTaken`], [`Code::NodeExists`],
    /// [`Code::ClusterFull`], [`Code::BadRecord`], [`Code::RecordsFull`], [`Code::NodeUnknown`]
    /// when the answer does not know its own sender, [`Code::StateIo`].
    pub fn accept_cluster(
        &mut self,
        token: &JoinToken,
        response: JoinResponse,
        now: UnixMillis,
    ) -> Result<MergeReport, Refusal> {
        let into = ClusterName { uuid: response.cluster, name: response.name.clone() };
        let (mut records, report) = self.united(token, response, now)?;
        let cluster = self.need_member()?.clone();
        let own = self.identity.uuid();
        let fate =
            ClusterRecord { uuid: cluster.uuid, name: cluster.name, into: Some(into), split: None };
        apply(&mut records, vec![Change::fate(&fate)], own, now)?;
        let mut next = self.data.clone();
        next.records = records;
        self.commit(next)?;
        Ok(report)
    }

    /// The records of both clusters together. What is alive in one of them is alive: after a split
    /// each part has buried what went with the other one.
    fn united(
        &self,
        token: &JoinToken,
        response: JoinResponse,
        now: UnixMillis,
    ) -> Result<(Records, MergeReport), Refusal> {
        self.need_own()?;
        self.refuse_planned("merged")?;
        if response.cluster != token.cluster {
            return Err(other_cluster("the answer to the merge request", "the join token"));
        }
        super::check_name(&response.name)?;
        let ours = &self.data.records;
        let mut theirs = Records::default();
        theirs.merge(response.records.clone(), now)?;
        if !theirs.nodes().iter().any(|node| node.fingerprint == token.issuer) {
            return Err(Refusal::new(
                Code::NodeUnknown,
                "the answer to the merge request is refused: it does not know its own sender",
                "check that both nodes run versions of Holdfast that work together",
            ));
        }
        let own_nodes = ours.nodes().into_iter().map(|node| (node.name, node.uuid));
        let own_resources = ours.resources().into_iter().map(|r| (r.name, r.id.to_string()));
        refuse_common(&theirs, &own_nodes.collect::<Vec<_>>(), &own_resources.collect::<Vec<_>>())?;
        let buried: Vec<Record> = theirs
            .iter()
            .filter_map(|their| {
                let our = ours.version(&their.key).filter(|our| our.deleted != their.deleted)?;
                Some(if our.deleted { their.clone() } else { our.clone() })
            })
            .collect();
        let mut records = ours.clone();
        let report = records.merge(response.records, now)?;
        for alive in buried {
            records.put(&alive.key, alive.value, self.identity.uuid(), now)?;
        }
        if records.nodes().len() > MAX_CLUSTER_NODES {
            return Err(full());
        }
        Ok((records, report))
    }

    fn check_disjoint(&self, request: &MergeRequest) -> Result<(), Refusal> {
        let records = self.records();
        let same = |node: &Uuid| request.nodes.iter().any(|(_, uuid)| uuid == node);
        let nodes = records.nodes();
        if nodes
            .iter()
            .any(|n| (n.uuid == request.node.uuid) != (n.fingerprint == request.node.fingerprint))
        {
            return Err(Refusal::new(
                Code::NodeExists,
                "the clusters were not merged: another node has the identity of the one that asks",
                "a state directory was copied: delete its identity directory and join again",
            ));
        }
        refuse_common(records, &request.nodes, &request.resources)?;
        let others = nodes.iter().filter(|node| !same(&node.uuid)).count();
        if others + request.nodes.len() > MAX_CLUSTER_NODES { Err(full()) } else { Ok(()) }
    }

    /// A cluster of which a part is about to go is not to be merged.
    pub(super) fn refuse_planned(&self, what: &str) -> Result<(), Refusal> {
        let cluster = self.need_member()?;
        match self.records().planned_split(cluster.uuid) {
            None => Ok(()),
            Some((_, split)) => Err(Refusal::new(
                Code::NodeBusy,
                format!("the cluster {} was not {what}: a split of it is under way", cluster.name),
                format!(
                    "repeat `holdfast cluster split {}`, or take it back with `holdfast cluster \
                     split --cancel`",
                    split.names().join(" ")
                ),
            )),
        }
    }
}

fn full() -> Refusal {
    Refusal::new(
        Code::ClusterFull,
        format!(
            "the clusters were not merged: together they have more than {MAX_CLUSTER_NODES} nodes"
        ),
        "remove nodes first",
    )
}

/// Refuses what has the same name and is not the same.
fn refuse_common(
    records: &Records,
    nodes: &[(String, Uuid)],
    resources: &[(String, String)],
) -> Result<(), Refusal> {
    let own: BTreeMap<String, Uuid> =
        records.nodes().into_iter().map(|node| (node.name, node.uuid)).collect();
    let mut same_nodes: Vec<&str> = nodes
        .iter()
        .filter(|(name, uuid)| own.get(name).is_some_and(|known| known != uuid))
        .map(|(name, _)| name.as_str())
        .collect();
    let own: BTreeMap<String, String> =
        records.resources().into_iter().map(|r| (r.name, r.id.to_string())).collect();
    let mut same_resources: Vec<&str> = resources
        .iter()
        .filter(|(name, id)| own.get(name).is_some_and(|known| known != id))
        .map(|(name, _)| name.as_str())
        .collect();
    same_nodes.sort_unstable();
    same_resources.sort_unstable();
    let mut parts = Vec::new();
    if !same_nodes.is_empty() {
        parts.push(format!("nodes named {}", same_nodes.join(", ")));
    }
    if !same_resources.is_empty() {
        parts.push(format!("resources named {}", same_resources.join(", ")));
    }
    if parts.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        Code::NameTaken,
        format!("the clusters were not merged: both have {}", parts.join(" and ")),
        "give them other names on one side first; nothing was changed",
    ))
}
