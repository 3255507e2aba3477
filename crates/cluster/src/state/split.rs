//! One cluster becomes two.
//!
//! First every node takes note of what is to be; when all have, it is decided, and each carries it
//! out when it hears so. A node that has carried it out does not know those of the other part any
//! more; one of these that knows of the plan and is refused knows by that that it was decided.

use super::fate::by_resource;
use super::{ClusterState, apply, check_name};
use crate::{Change, ClusterRecord, Code, Key, Record, Refusal, SplitRecord, UnixMillis, Uuid};

/// What [`ClusterState::plan_split`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SplitPlan {
    /// It is noted here; the other nodes must hear of it, then it can be decided.
    Planned(ClusterRecord),
    /// It was done before.
    Done(ClusterRecord),
}

impl ClusterState {
    /// Takes note that these nodes, by name, are to be a cluster of their own with this name. The
    /// same again changes nothing.
    ///
    /// # Errors
    /// [`Code::NotMember`]; [`Code::NodeUnknown`]; [`Code::BadName`]; [`Code::NodeBusy`] when a
    /// resource has members in both parts (all such are listed), no node would be left, or
    /// another split is planned; [`Code::RecordsFull`]; [`Code::StateIo`].
    pub fn plan_split(
        &mut self,
        nodes: &[String],
        name: Option<&str>,
        now: UnixMillis,
    ) -> Result<SplitPlan, Refusal> {
        let plan = self.check_split(nodes, name)?;
        if let SplitPlan::Planned(fate) = &plan
            && self.records().fate(fate.uuid).is_none()
        {
            let mut next = self.data.clone();
            apply(&mut next.records, vec![Change::fate(fate)], self.identity.uuid(), now)?;
            self.commit(next)?;
        }
        Ok(plan)
    }

    /// What [`Self::plan_split`] would write; nothing changes.
    ///
    /// # Errors
    /// As [`Self::plan_split`].
    pub fn check_split(&self, nodes: &[String], name: Option<&str>) -> Result<SplitPlan, Refusal> {
        self.need_own()?;
        let cluster = self.need_member()?.clone();
        let mut wanted: Vec<String> = nodes.to_vec();
        wanted.sort();
        wanted.dedup();
        if let Some(done) = self.records().split_before(&wanted, cluster.uuid) {
            return Ok(SplitPlan::Done(done));
        }
        let records = self.records();
        let mut going = Vec::new();
        for name in &wanted {
            let node = records.node_named(name).ok_or_else(|| {
                Refusal::new(
                    Code::NodeUnknown,
                    format!(
                        "the cluster was not split: it has no node {}",
                        crate::refusal::shown(name)
                    ),
                    "see `holdfast cluster status`",
                )
            })?;
            going.push((node.uuid, node.name));
        }
        if let Some((fate, split)) = records.planned_split(cluster.uuid) {
            if split.names() == wanted {
                return Ok(SplitPlan::Planned(fate));
            }
            self.refuse_planned("split")?;
        }
        if going.is_empty() || going.len() >= records.nodes().len() {
            return Err(Refusal::new(
                Code::NodeBusy,
                "the cluster was not split: each part must have a node",
                "name some of its nodes, and not all",
            ));
        }
        let default = format!("{}-2", cluster.name);
        let name = name.unwrap_or(if check_name(&default).is_ok() { &default } else { "split" });
        check_name(name)?;
        let split = SplitRecord { from: cluster.uuid, nodes: going, agreed: false };
        self.refuse_shared(&split)?;
        let fate = ClusterRecord {
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            into: None,
            split: Some(split),
        };
        Ok(SplitPlan::Planned(fate))
    }

    /// The record that says that a planned split is decided, for the other nodes to merge; nothing
    /// changes here. This node merges it last, as it cannot speak to the other part afterwards.
    ///
    /// # Errors
    /// [`Code::NoSplit`] when none is planned any more; [`Code::NodeBusy`] when a resource
    /// has got members in both parts meanwhile.
    pub fn decide_split(&self, cluster: Uuid, now: UnixMillis) -> Result<Record, Refusal> {
        let found = self.records().fate(cluster);
        let planned = found.and_then(|fate| Some((fate.split.clone()?, fate)));
        let Some((mut split, mut fate)) = planned else { return Err(no_plan()) };
        self.refuse_shared(&split)?;
        split.agreed = true;
        fate.split = Some(split);
        let mut records = self.data.records.clone();
        apply(&mut records, vec![Change::fate(&fate)], self.identity.uuid(), now)?;
        records.version(&Key::cluster(cluster)).cloned().ok_or_else(no_plan)
    }

    /// Takes a planned split back.
    ///
    /// # Errors
    /// [`Code::NotMember`]; [`Code::NoSplit`] when none is planned; [`Code::StateIo`].
    pub fn cancel_split(&mut self, now: UnixMillis) -> Result<ClusterRecord, Refusal> {
        let cluster = self.need_member()?.uuid;
        let (fate, _) = self.records().planned_split(cluster).ok_or_else(no_plan)?;
        self.change(vec![Change::delete(Key::cluster(fate.uuid))], now)?;
        Ok(fate)
    }

    /// This node was refused by another one, which does not know its certificate. When a planned
    /// split would separate the two, it has been decided: it is carried out here, too. Whether it
    /// was.
    ///
    /// # Errors
    /// [`Code::RecordsFull`], [`Code::StateIo`].
    pub fn refused_by(&mut self, other: Uuid, now: UnixMillis) -> Result<bool, Refusal> {
        let Some(cluster) = self.membership().map(|cluster| cluster.uuid) else {
            return Ok(false);
        };
        let own = self.identity.uuid();
        let Some((mut fate, mut split)) = self.records().planned_split(cluster) else {
            return Ok(false);
        };
        if split.takes(own) == split.takes(other) {
            return Ok(false);
        }
        split.agreed = true;
        fate.split = Some(split);
        let mut next = self.data.clone();
        apply(&mut next.records, vec![Change::fate(&fate)], own, now)?;
        self.commit(next)?;
        Ok(true)
    }

    fn refuse_shared(&self, split: &SplitRecord) -> Result<(), Refusal> {
        let records = self.records();
        let name_of = |node: Uuid| records.node(node).map_or_else(|| node.to_string(), |n| n.name);
        let mut shared = Vec::new();
        for (resource, members) in by_resource(records) {
            let goes = |node| split.takes(node);
            let first = goes(members[0].node);
            if members.iter().all(|member| goes(member.node) == first) {
                continue;
            }
            let mut nodes: Vec<String> = members.iter().map(|m| name_of(m.node)).collect();
            nodes.sort();
            let name = records.resource(resource).map_or_else(|| resource.to_string(), |r| r.name);
            shared.push(format!("{name} ({})", nodes.join(", ")));
        }
        if shared.is_empty() {
            return Ok(());
        }
        shared.sort();
        Err(Refusal::new(
            Code::NodeBusy,
            format!(
                "the cluster was not split: these resources have members in both parts: {}",
                shared.join("; ")
            ),
            "let the nodes of one part leave them first, with `holdfast leave NAME`",
        ))
    }
}

fn no_plan() -> Refusal {
    Refusal::new(
        Code::NoSplit,
        "no split of this cluster is under way",
        "`holdfast cluster split NODE...` begins one",
    )
}
