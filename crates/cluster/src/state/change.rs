use crate::{
    ClusterRecord, Code, Key, MemberRecord, NodeRecord, PairOptions, Records, Refusal,
    ResourceRecord, Trouble, UnixMillis, Uuid,
};
use holdfast_units::ResourceId;
use serde::Serialize;

/// One change of a record by this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    key: Key,
    /// The new value as JSON; `None` deletes.
    value: Option<String>,
}

impl Change {
    /// Writes a record of any kind.
    ///
    /// # Errors
    /// [`Code::BadRecord`] when the value is nothing that JSON can say.
    pub fn put(key: Key, value: &impl Serialize) -> Result<Self, Refusal> {
        let value = serde_json::to_string(value).map_err(|error| {
            Refusal::new(Code::BadRecord, format!("the record {key} is refused: {error}"), "")
        })?;
        Ok(Self { key, value: Some(value) })
    }

    /// Deletes a record.
    #[must_use]
    pub fn delete(key: Key) -> Self {
        Self { key, value: None }
    }

    /// Writes a resource.
    #[must_use]
    pub fn resource(record: &ResourceRecord) -> Self {
        Self::of(Key::resource(record.id), record)
    }

    /// Writes a member of a resource.
    #[must_use]
    pub fn member(record: &MemberRecord) -> Self {
        Self::of(Key::member(record.resource, record.node), record)
    }

    /// Writes the options of a link.
    #[must_use]
    pub fn pair(resource: ResourceId, one: Uuid, other: Uuid, options: &PairOptions) -> Self {
        Self::of(Key::pair(resource, one, other), options)
    }

    pub(super) fn fate(record: &ClusterRecord) -> Self {
        Self::of(Key::cluster(record.uuid), record)
    }

    pub(super) fn node(record: &NodeRecord) -> Self {
        Self::of(Key::node(record.uuid), record)
    }

    fn of(key: Key, value: &impl Serialize) -> Self {
        let value = serde_json::to_string(value).expect("texts, numbers and maps are JSON");
        Self { key, value: Some(value) }
    }
}

/// Makes changes as the node `own`; refused when they bring a conflict that was not there.
pub(super) fn apply(
    records: &mut Records,
    changes: Vec<Change>,
    own: Uuid,
    now: UnixMillis,
) -> Result<Vec<Key>, Refusal> {
    let before = records.conflicts();
    let mut changed = Vec::new();
    for Change { key, value } in changes {
        let news = match value {
            Some(value) => records.put(&key, value, own, now)?,
            None => records.delete(&key, own, now)?,
        };
        if news && !changed.contains(&key) {
            changed.push(key);
        }
    }
    match records.conflicts().into_iter().find(|conflict| !before.contains(conflict)) {
        Some(conflict) => Err(refuse_conflict(&conflict)),
        None => Ok(changed),
    }
}

fn refuse_conflict(conflict: &Trouble) -> Refusal {
    match conflict {
        Trouble::SlotTwice { slot, resource, .. } => Refusal::new(
            Code::SlotTaken,
            format!("slot {slot} of the resource {resource} was not given: another member has it"),
            "try again",
        ),
        Trouble::NodeNameTwice { name, .. } => Refusal::new(
            Code::NameTaken,
            format!("the node name {name} was not given: another node has it"),
            "choose another name",
        ),
        Trouble::ResourceNameTwice { name, .. } => Refusal::new(
            Code::NameTaken,
            format!("the resource name {name} was not given: another resource has it"),
            "choose another name",
        ),
        other => Refusal::new(Code::BadRecord, other.to_string(), ""),
    }
}

/// Deletes a node and its part in resources; the keys that have changed, the node's own last, so
/// that who takes them in order still knows the node while its parts go.
pub(super) fn forget_node(
    records: &mut Records,
    node: Uuid,
    own: Uuid,
    now: UnixMillis,
) -> Result<Vec<Key>, Refusal> {
    let parts = records.memberships(node);
    let mut keys: Vec<Key> = parts.iter().map(|m| Key::member(m.resource, node)).collect();
    keys.push(Key::node(node));
    for key in &keys {
        records.delete(key, own, now)?;
    }
    Ok(keys)
}
