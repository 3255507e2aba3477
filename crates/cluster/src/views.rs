use crate::{CLOCK_TROUBLE_MS, Code, Fingerprint, Key, Record, Records, Refusal, UnixMillis, Uuid};
use holdfast_units::{MAX_NODES, ResourceId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

mod fate;
#[cfg(test)]
mod tests;

pub use fate::{ClusterName, ClusterRecord, SplitRecord};

/// For how long the slot of a member that left is given to others only when no other is free,
/// in milliseconds: 7 days. Nodes that were away may still count what it missed.
pub const SLOT_HOLD_MS: u64 = 7 * 86_400_000;

const NODE: &str = "node";
const RESOURCE: &str = "resource";
const MEMBER: &str = "member";
const OPTION: &str = "option";
const USER: &str = "user";

/// A node of the cluster. A node that left or was removed is a deleted record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where its daemon listens for other nodes (`host:port`), in order of preference.
    pub addresses: Vec<String>,
    /// Its certificate.
    pub fingerprint: Fingerprint,
    /// When it joined, in milliseconds since 1970-01-01 UTC.
    pub joined_at: u64,
}

/// A resource.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResourceRecord {
    /// What makes it the same resource everywhere; 32 hexadecimal digits.
    #[serde(with = "hex_id")]
    pub id: ResourceId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// The name that it had before it was renamed, so that a renaming can be repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formerly: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_at: u64,
    /// Options that were set for the whole resource.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// A node's membership in a resource.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The resource.
    #[serde(with = "hex_id")]
    pub resource: ResourceId,
    /// The node.
    pub node: Uuid,
    /// Its number in the resource, below [`MAX_NODES`], unique there: see
    /// [`Records::free_slot`].
    pub slot: u8,
    /// Whether it has no disk on purpose.
    #[serde(default)]
    pub diskless: bool,
    /// How writes are carried to it: `C`, `B`, `A` or `log`.
    pub protocol: String,
    /// Where its data link is, when it is not where the node is.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// When it became a member, in milliseconds since 1970-01-01 UTC.
    pub joined_at: u64,
}

/// Options of a resource that were set for the link between two nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PairOptions {
    /// Name and value.
    pub options: BTreeMap<String, String>,
}

/// Writes a [`ResourceId`] as 32 hexadecimal digits.
mod hex_id {
    use holdfast_units::ResourceId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(id: &ResourceId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ResourceId, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(|()| D::Error::custom("a resource's id must be 32 hexadecimal digits"))
    }
}

impl Key {
    /// `node/NODE`
    #[must_use]
    pub fn node(node: Uuid) -> Self {
        Self::of(&format!("{NODE}/{node}"))
    }

    /// `resource/ID`
    #[must_use]
    pub fn resource(resource: ResourceId) -> Self {
        Self::of(&format!("{RESOURCE}/{resource}"))
    }

    /// `member/ID/NODE`
    #[must_use]
    pub fn member(resource: ResourceId, node: Uuid) -> Self {
        Self::of(&format!("{MEMBER}/{resource}/{node}"))
    }

    /// `option/ID/NODE/NODE`: the same key in whichever order the two nodes are given.
    #[must_use]
    pub fn pair(resource: ResourceId, one: Uuid, other: Uuid) -> Self {
        let (low, high) = (one.min(other), one.max(other));
        Self::of(&format!("{OPTION}/{resource}/{low}/{high}"))
    }

    /// `user/NAME`: something that users keep; `None` when the name cannot be.
    #[must_use]
    pub fn user(name: &str) -> Option<Self> {
        if name.contains('/') { None } else { Self::parse(&format!("{USER}/{name}")).ok() }
    }

    fn of(text: &str) -> Self {
        Self::parse(text).expect("UUIDs and resource ids are ids of keys")
    }
}

/// A record that knows its key and what must hold for it alone.
trait View: DeserializeOwned {
    const KIND: &'static str;

    fn key(&self) -> Key;

    /// What is wrong with it, if anything.
    fn fault(&self) -> Option<&'static str>;
}

impl View for NodeRecord {
    const KIND: &'static str = NODE;

    fn key(&self) -> Key {
        Key::node(self.uuid)
    }

    fn fault(&self) -> Option<&'static str> {
        holdfast_units::check_name(&self.name).err().map(|_| "its name cannot be a node's")
    }
}

impl View for ResourceRecord {
    const KIND: &'static str = RESOURCE;

    fn key(&self) -> Key {
        Key::resource(self.id)
    }

    fn fault(&self) -> Option<&'static str> {
        holdfast_units::check_name(&self.name).err().map(|_| "its name cannot be a resource's")
    }
}

impl View for MemberRecord {
    const KIND: &'static str = MEMBER;

    fn key(&self) -> Key {
        Key::member(self.resource, self.node)
    }

    fn fault(&self) -> Option<&'static str> {
        (self.slot >= MAX_NODES).then_some("its slot is not below 32")
    }
}

fn read<T: View>(record: &Record) -> Result<T, String> {
    let view: T = serde_json::from_str(&record.value).map_err(|e| why(&e))?;
    if view.key() != record.key {
        return Err("it speaks of another object than its key".to_owned());
    }
    match view.fault() {
        Some(fault) => Err(fault.to_owned()),
        None => Ok(view),
    }
}

/// The message quotes what was found there, which can be as long as a value.
fn why(error: &serde_json::Error) -> String {
    error.to_string().chars().take(160).collect()
}

fn live<T: View>(records: &Records) -> impl Iterator<Item = T> {
    records.of_kind(T::KIND).filter(|r| !r.deleted).filter_map(|record| read(record).ok())
}

/// What is wrong with the records. Two halves of a cut cluster can both be right and yet not fit
/// together; that is seen here after they met, on every node in the same way, and a person (or
/// the node that loses) puts it right. `keeps` is who was first: by its time, then its id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// Two members of a resource have the same slot.
    SlotTwice {
        /// The resource.
        resource: ResourceId,
        /// The slot.
        slot: u8,
        /// The node that keeps it.
        keeps: Uuid,
        /// The node that must leave the resource and join it again.
        loses: Uuid,
    },
    /// Two nodes have the same name.
    NodeNameTwice {
        /// The name.
        name: String,
        /// The node that keeps it.
        keeps: Uuid,
        /// The node that must leave and join with another name.
        loses: Uuid,
    },
    /// Two resources have the same name.
    ResourceNameTwice {
        /// The name.
        name: String,
        /// The resource that keeps it.
        keeps: ResourceId,
        /// The resource that must be renamed.
        loses: ResourceId,
    },
    /// A record cannot be read; it is kept, passed on and not used.
    Unreadable {
        /// Its key.
        key: Key,
        /// Why.
        why: String,
    },
    /// A record was written with a clock that was far ahead: [`CLOCK_TROUBLE_MS`].
    ClockAhead {
        /// Its key.
        key: Key,
        /// The node that wrote it.
        origin: Uuid,
        /// How far it is in the future, in seconds.
        seconds: u64,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlotTwice { resource, slot, keeps, loses } => write!(
                f,
                "two members of the resource {resource} have slot {slot}: the node {keeps} keeps \
                 it, the node {loses} must leave the resource and join it again"
            ),
            Self::NodeNameTwice { name, keeps, loses } => write!(
                f,
                "two nodes have the name {name}: {keeps} keeps it, {loses} must leave the cluster \
                 and join it with another name"
            ),
            Self::ResourceNameTwice { name, keeps, loses } => write!(
                f,
                "two resources have the name {name}: {keeps} keeps it, {loses} must be renamed"
            ),
            Self::Unreadable { key, why } => {
                write!(f, "the record {key} is not used, it cannot be read: {why}")
            }
            Self::ClockAhead { key, origin, seconds } => write!(
                f,
                "the record {key} was written {seconds} s in the future: the clock of the node \
                 {origin} is, or was, wrong, or this node's is"
            ),
        }
    }
}

impl Records {
    /// The nodes of the cluster, by UUID.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeRecord> {
        live(self).collect()
    }

    /// This node; `None` when it is not in the cluster.
    #[must_use]
    pub fn node(&self, uuid: Uuid) -> Option<NodeRecord> {
        self.view(&Key::node(uuid))
    }

    /// The node with this name. When two have it, the one that keeps it.
    #[must_use]
    pub fn node_named(&self, name: &str) -> Option<NodeRecord> {
        live::<NodeRecord>(self).filter(|n| n.name == name).min_by_key(|n| (n.joined_at, n.uuid))
    }

    /// The resources, by id.
    #[must_use]
    pub fn resources(&self) -> Vec<ResourceRecord> {
        live(self).collect()
    }

    /// The resource with this id.
    #[must_use]
    pub fn resource(&self, id: ResourceId) -> Option<ResourceRecord> {
        self.view(&Key::resource(id))
    }

    /// The resource with this name. When two have it, the one that keeps it.
    #[must_use]
    pub fn resource_named(&self, name: &str) -> Option<ResourceRecord> {
        live::<ResourceRecord>(self).filter(|r| r.name == name).min_by_key(|r| (r.created_at, r.id))
    }

    /// The members of a resource, by node.
    #[must_use]
    pub fn members(&self, resource: ResourceId) -> Vec<MemberRecord> {
        live::<MemberRecord>(self).filter(|m| m.resource == resource).collect()
    }

    /// Every membership, by resource and node.
    #[must_use]
    pub fn all_members(&self) -> Vec<MemberRecord> {
        live(self).collect()
    }

    /// What this node is a member of.
    #[must_use]
    pub fn memberships(&self, node: Uuid) -> Vec<MemberRecord> {
        live::<MemberRecord>(self).filter(|m| m.node == node).collect()
    }

    /// A node's membership in a resource.
    #[must_use]
    pub fn member(&self, resource: ResourceId, node: Uuid) -> Option<MemberRecord> {
        self.view(&Key::member(resource, node))
    }

    /// The options of a link; none when none were set.
    #[must_use]
    pub fn pair_options(&self, resource: ResourceId, one: Uuid, other: Uuid) -> PairOptions {
        let value = self.get(&Key::pair(resource, one, other));
        value.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// What users keep here: keys and values.
    #[must_use]
    pub fn keys(&self) -> Vec<(String, String)> {
        let live = self.of_kind(USER).filter(|record| !record.deleted);
        let read = |record: &Record| {
            let name = record.key.as_str().split_once('/')?.1.to_owned();
            Some((name, serde_json::from_str(&record.value).ok()?))
        };
        live.filter_map(read).collect()
    }

    fn view<T: View>(&self, key: &Key) -> Option<T> {
        self.version(key).filter(|record| !record.deleted).and_then(|r| read(r).ok())
    }

    /// The slot for a node that becomes a member: the one that it has or had, if nobody else has
    /// it now; else the lowest that nobody has and that nobody left within [`SLOT_HOLD_MS`];
    /// else, when there is none, the one that was left longest ago.
    ///
    /// # Errors
    /// [`Code::NoSlot`] when the resource has [`MAX_NODES`] members.
    pub fn free_slot(
        &self,
        resource: ResourceId,
        node: Uuid,
        now: UnixMillis,
    ) -> Result<u8, Refusal> {
        let mut taken = [false; MAX_NODES as usize];
        let mut left: BTreeMap<u8, u64> = BTreeMap::new();
        let mut own = None;
        for record in self.of_kind(MEMBER) {
            let Ok(member) = read::<MemberRecord>(record) else { continue };
            if member.resource != resource {
                continue;
            }
            if member.node == node {
                own = Some(member.slot);
            } else if !record.deleted {
                taken[usize::from(member.slot)] = true;
            } else {
                let when = left.entry(member.slot).or_default();
                *when = record.stamp.ms.max(*when);
            }
        }
        let free = |slot: &u8| !taken[usize::from(*slot)];
        let held = |slot: &u8| {
            left.get(slot).is_some_and(|when| now.0.saturating_sub(*when) < SLOT_HOLD_MS)
        };
        own.filter(free)
            .or_else(|| (0..MAX_NODES).find(|slot| free(slot) && !held(slot)))
            .or_else(|| left.iter().filter(|l| free(l.0)).min_by_key(|l| l.1).map(|l| *l.0))
            .ok_or_else(|| {
                Refusal::new(
                    Code::NoSlot,
                    format!("the resource takes no more members: it has {MAX_NODES}"),
                    "let a node leave the resource first",
                )
            })
    }

    /// All that is wrong, in a fixed order.
    #[must_use]
    pub fn troubles(&self, now: UnixMillis) -> Vec<Trouble> {
        let mut troubles = self.conflicts();
        for record in self.iter() {
            let ahead = record.stamp.ms.saturating_sub(now.0);
            if ahead > CLOCK_TROUBLE_MS {
                let (key, origin) = (record.key.clone(), record.stamp.origin);
                troubles.push(Trouble::ClockAhead { key, origin, seconds: ahead / 1000 });
            }
        }
        troubles
    }

    /// What does not fit together, or cannot be read; clocks left aside.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Trouble> {
        let mut troubles = self.unreadable();
        let mut nodes = self.nodes();
        nodes.sort_by_key(|n| (n.joined_at, n.uuid));
        troubles.extend(twice(&nodes, |n| n.name.clone()).map(|(first, second)| {
            let (keeps, loses) = (first.uuid, second.uuid);
            Trouble::NodeNameTwice { name: first.name.clone(), keeps, loses }
        }));
        let mut resources = self.resources();
        resources.sort_by_key(|r| (r.created_at, r.id));
        troubles.extend(twice(&resources, |r| r.name.clone()).map(|(first, second)| {
            let (keeps, loses) = (first.id, second.id);
            Trouble::ResourceNameTwice { name: first.name.clone(), keeps, loses }
        }));
        let mut members = self.all_members();
        members.sort_by_key(|m| (m.joined_at, m.node));
        troubles.extend(twice(&members, |m| (m.resource, m.slot)).map(|(first, second)| {
            let (resource, slot) = (first.resource, first.slot);
            Trouble::SlotTwice { resource, slot, keeps: first.node, loses: second.node }
        }));
        troubles.sort();
        troubles
    }

    fn unreadable(&self) -> Vec<Trouble> {
        let fault = |record: &Record| match record.key.kind() {
            NODE => read::<NodeRecord>(record).err(),
            RESOURCE => read::<ResourceRecord>(record).err(),
            MEMBER => read::<MemberRecord>(record).err(),
            fate::CLUSTER => read::<ClusterRecord>(record).err(),
            OPTION if record.key.as_str().split('/').count() == 4 => {
                serde_json::from_str::<PairOptions>(&record.value).err().map(|e| why(&e))
            }
            // A kind of a newer version: kept and passed on.
            _ => None,
        };
        let records = self.iter().filter(|record| !record.deleted);
        records
            .filter_map(|r| fault(r).map(|why| Trouble::Unreadable { key: r.key.clone(), why }))
            .collect()
    }
}

/// The pairs (first, later one) of items with the same word.
fn twice<'a, T, K: Ord>(
    items: &'a [T],
    word: impl Fn(&T) -> K,
) -> impl Iterator<Item = (&'a T, &'a T)> {
    let mut first: BTreeMap<K, &'a T> = BTreeMap::new();
    items.iter().filter_map(move |item| match first.entry(word(item)) {
        std::collections::btree_map::Entry::Occupied(entry) => Some((*entry.get(), item)),
        std::collections::btree_map::Entry::Vacant(entry) => {
            entry.insert(item);
            None
        }
    })
}
