use crate::refusal::shown;
use crate::{Code, Refusal, UnixMillis};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use uuid::Uuid;

#[cfg(test)]
mod tests;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 200;
/// The longest value, in bytes of JSON.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// How many records there can be, tombstones too.
pub const MAX_RECORDS: usize = 10_000;
/// How many bytes all keys and values together can have.
pub const MAX_TOTAL_BYTES: usize = 16 << 20;
/// How long a tombstone is kept at least, in milliseconds: 30 days.
pub const TOMBSTONE_KEEP_MS: u64 = 30 * 86_400_000;
/// A record so many milliseconds in the future is reported as clock trouble.
pub const CLOCK_TROUBLE_MS: u64 = 3_600_000;
/// What [`Records::missing_from`] is usually asked for at a time, in bytes.
pub const BATCH_BYTES: usize = 1 << 20;

/// Stamps end here (about the year 10,900), so that there is always room for a later one.
const MAX_STAMP_MS: u64 = 1 << 48;

/// What a record is about: a kind and one to three ids, `kind/id/id`. A kind has only small
/// letters; an id has 1 to 64 letters, digits, `.`, `_`, `-`, and no `.` first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

impl Key {
    /// Reads a key.
    ///
    /// # Errors
    /// [`Code::BadRecord`] when it is none.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let mut parts = text.split('/');
        let kind = parts.next().unwrap_or_default();
        let ids: Vec<&str> = parts.take(4).collect();
        let good = text.len() <= MAX_KEY_BYTES
            && (1..=16).contains(&kind.len())
            && kind.bytes().all(|b| b.is_ascii_lowercase())
            && (1..=3).contains(&ids.len())
            && ids.iter().all(|id| is_id(id));
        if good { Ok(Self(text.to_owned())) } else { Err(bad_record(text, "its key is no key")) }
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind: what stands before the first `/`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

fn is_id(id: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&id.len()) && id.bytes().all(good) && !id.starts_with('.')
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl TryFrom<String> for Key {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        Self::parse(&text)
    }
}

/// When and where a version of a record was written: a hybrid logical clock. Of two versions the
/// one with the greater stamp wins.
///
/// A new version's time is that of the writer's clock, or, when the version before it is not
/// older than that, that version's time with the next counter. So a change always wins over what
/// its author saw, and a wrong clock touches only the records that it wrote: there is no clock
/// of the node's own that a stamp from the future could drag along.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "(u64, u32, Uuid)", into = "(u64, u32, Uuid)")]
pub struct Stamp {
    /// Milliseconds since 1970-01-01 UTC by the writer's clock.
    pub ms: u64,
    /// Tells versions of the same millisecond apart.
    pub counter: u32,
    /// The node that wrote it; decides when all else is equal.
    pub origin: Uuid,
}

impl From<(u64, u32, Uuid)> for Stamp {
    fn from((ms, counter, origin): (u64, u32, Uuid)) -> Self {
        Self { ms, counter, origin }
    }
}

impl From<Stamp> for (u64, u32, Uuid) {
    fn from(stamp: Stamp) -> Self {
        (stamp.ms, stamp.counter, stamp.origin)
    }
}

impl Stamp {
    fn next(before: Option<Self>, origin: Uuid, now: UnixMillis) -> Self {
        let now = Self { ms: now.0.min(MAX_STAMP_MS), counter: 0, origin };
        match before {
            Some(before) if before.ms >= now.ms => match before.counter.checked_add(1) {
                Some(counter) => Self { ms: before.ms, counter, origin },
                None => Self { ms: before.ms.saturating_add(1), counter: 0, origin },
            },
            _ => now,
        }
    }
}

/// One version of one record, as it is kept, and as it travels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// What it is about.
    pub key: Key,
    /// When and where it was written.
    pub stamp: Stamp,
    /// Whether it is a tombstone: the record was deleted.
    #[serde(default)]
    pub deleted: bool,
    /// JSON text. A tombstone keeps the last value, so that it is known what is gone.
    pub value: String,
}

impl Record {
    /// Of two versions with the same stamp (a state directory was copied) one must win, the same
    /// on every node.
    fn rank(&self) -> (Stamp, bool, &str) {
        (self.stamp, self.deleted, &self.value)
    }

    fn check(&self) -> Result<(), Refusal> {
        let refuse = |why| Err(bad_record(self.key.as_str(), why));
        if self.value.len() > MAX_VALUE_BYTES {
            return refuse("its value is longer than 64 KiB");
        }
        if serde_json::from_str::<serde::de::IgnoredAny>(&self.value).is_err() {
            return refuse("its value is not JSON");
        }
        if self.stamp.ms > MAX_STAMP_MS {
            return refuse("its time is not possible");
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.key.0.len() + self.value.len()
    }

    fn sum(&self) -> u64 {
        let mut hash = sha2::Sha256::new();
        hash.update([u8::from(self.deleted)]);
        hash.update(&self.value);
        let hash = hash.finalize();
        u64::from_be_bytes(std::array::from_fn(|at| hash[at]))
    }
}

fn bad_record(key: &str, why: &str) -> Refusal {
    Refusal::new(
        Code::BadRecord,
        format!("the record {} is refused: {why}", shown(key)),
        "check that all nodes run versions of Holdfast that work together",
    )
}

/// What versions a node has: key, stamp, and a check of the content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Digest(Vec<(Key, Stamp, u64)>);

impl Digest {
    /// One number for all of it: two nodes with the same number have the same records.
    #[must_use]
    pub fn root(&self) -> String {
        let mut hash = sha2::Sha256::new();
        for (key, stamp, sum) in &self.0 {
            hash.update(key.as_str());
            hash.update([0]);
            hash.update(stamp.ms.to_be_bytes());
            hash.update(stamp.counter.to_be_bytes());
            hash.update(stamp.origin.as_bytes());
            hash.update(sum.to_be_bytes());
        }
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a merge did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MergeReport {
    /// The records that have changed.
    pub changed: Vec<Key>,
    /// The changed records whose stamp lies more than [`CLOCK_TROUBLE_MS`] in the future: their
    /// key, the node that wrote them, and by how many milliseconds. They are merged all the same.
    pub clock_ahead: Vec<(Key, Uuid, u64)>,
}

/// The replicated map: last writer wins for each key. Merging is commutative, associative and
/// idempotent, so nodes that exchange records in any order end with the same map.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Record>", into = "Vec<Record>")]
pub struct Records {
    map: BTreeMap<Key, Record>,
    bytes: usize,
    /// Which nodes have shown that they have a tombstone. Kept in memory only: after a restart
    /// they show it again.
    seen: BTreeMap<Key, BTreeSet<Uuid>>,
}

impl From<Vec<Record>> for Records {
    /// For what was kept on disk by this node; nothing is checked.
    fn from(list: Vec<Record>) -> Self {
        let mut records = Self::default();
        for record in list {
            records.insert(record);
        }
        records
    }
}

impl From<Records> for Vec<Record> {
    fn from(records: Records) -> Self {
        records.map.into_values().collect()
    }
}

impl Records {
    /// The value of a record; `None` when there is none or it was deleted.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&str> {
        self.map.get(key).filter(|record| !record.deleted).map(|record| record.value.as_str())
    }

    /// Every version that is kept, tombstones too, by key.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.map.values()
    }

    /// The versions of one kind, tombstones too, by key.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Record> {
        let first = Key(format!("{kind}/"));
        self.map.range(first..).map(|(_, r)| r).take_while(move |r| r.key.kind() == kind)
    }

    /// Whether both have the same versions with the same content, tombstones too.
    #[must_use]
    pub fn has_the_same(&self, other: &Self) -> bool {
        self.map == other.map
    }

    /// How many versions are kept, tombstones too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The version that is kept of a key, also when it is a tombstone.
    #[must_use]
    pub fn version(&self, key: &Key) -> Option<&Record> {
        self.map.get(key)
    }

    /// Writes a value (JSON text) on the node `origin`; whether that changed anything.
    ///
    /// # Errors
    /// [`Code::BadRecord`], [`Code::RecordsFull`]; nothing has changed then.
    pub fn put(
        &mut self,
        key: &Key,
        value: String,
        origin: Uuid,
        now: UnixMillis,
    ) -> Result<bool, Refusal> {
        if self.get(key) == Some(&value) {
            return Ok(false);
        }
        self.write(key, value, false, origin, now)
    }

    /// Deletes a record on the node `origin`; whether there was one.
    ///
    /// # Errors
    /// [`Code::BadRecord`] when its stamp is at the end of time.
    pub fn delete(&mut self, key: &Key, origin: Uuid, now: UnixMillis) -> Result<bool, Refusal> {
        match self.get(key).map(ToOwned::to_owned) {
            Some(value) => self.write(key, value, true, origin, now),
            None => Ok(false),
        }
    }

    fn write(
        &mut self,
        key: &Key,
        value: String,
        deleted: bool,
        origin: Uuid,
        now: UnixMillis,
    ) -> Result<bool, Refusal> {
        let before = self.map.get(key).map(|record| record.stamp);
        let stamp = Stamp::next(before, origin, now);
        let record = Record { key: key.clone(), stamp, deleted, value };
        record.check()?;
        self.check_room(std::iter::once(&record))?;
        self.insert(record);
        Ok(true)
    }

    /// Takes in versions from another node: all of them, or none.
    ///
    /// # Errors
    /// [`Code::BadRecord`] when one of them is not valid, [`Code::RecordsFull`] when they do not
    /// fit; nothing has changed then.
    pub fn merge(&mut self, list: Vec<Record>, now: UnixMillis) -> Result<MergeReport, Refusal> {
        let mut wins: BTreeMap<Key, Record> = BTreeMap::new();
        for record in list {
            record.check()?;
            let best = wins.get(&record.key).or_else(|| self.map.get(&record.key));
            if best.is_none_or(|best| record.rank() > best.rank()) {
                wins.insert(record.key.clone(), record);
            }
        }
        self.check_room(wins.values())?;
        let mut report = MergeReport::default();
        for (key, record) in wins {
            let ahead = record.stamp.ms.saturating_sub(now.0);
            if ahead > CLOCK_TROUBLE_MS {
                report.clock_ahead.push((key.clone(), record.stamp.origin, ahead));
            }
            report.changed.push(key);
            self.insert(record);
        }
        Ok(report)
    }

    /// What versions there are here.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(self.map.values().map(|r| (r.key.clone(), r.stamp, r.sum())).collect())
    }

    /// The versions that the owner of this digest does not have, or has only an older one of:
    /// about `max_bytes` of them, at least one when there is one. When the owner has merged
    /// them, its next digest asks for the rest.
    #[must_use]
    pub fn missing_from(&self, digest: &Digest, max_bytes: usize) -> Vec<Record> {
        let theirs: BTreeMap<&Key, (Stamp, u64)> =
            digest.0.iter().map(|(key, stamp, sum)| (key, (*stamp, *sum))).collect();
        let mut missing = Vec::new();
        let mut bytes = 0;
        for record in self.map.values() {
            let has = theirs.get(&record.key).is_some_and(|(stamp, sum)| {
                *stamp > record.stamp || (*stamp == record.stamp && *sum == record.sum())
            });
            if has {
                continue;
            }
            if !missing.is_empty() && bytes + record.bytes() > max_bytes {
                break;
            }
            bytes += record.bytes();
            missing.push(record.clone());
        }
        missing
    }

    /// Notes which tombstones a node has, by its digest: see [`Records::prune`].
    pub fn note_seen(&mut self, node: Uuid, digest: &Digest) {
        for (key, stamp, _) in &digest.0 {
            if self.map.get(key).is_some_and(|r| r.deleted && *stamp >= r.stamp) {
                self.seen.entry(key.clone()).or_default().insert(node);
            }
        }
    }

    /// Forgets the tombstones that are older than [`TOMBSTONE_KEEP_MS`] and that every one of
    /// the other nodes, `others`, was seen to have; how many. So a node that was away for longer
    /// cannot bring a deleted record back. While a node of the cluster is away, they stay.
    pub fn prune(&mut self, others: &BTreeSet<Uuid>, now: UnixMillis) -> usize {
        let (map, seen) = (&mut self.map, &mut self.seen);
        let before = map.len();
        let mut freed = 0;
        map.retain(|key, record| {
            let old = now.0.saturating_sub(record.stamp.ms) >= TOMBSTONE_KEEP_MS;
            let known =
                || others.is_empty() || seen.get(key).is_some_and(|s| s.is_superset(others));
            let forget = record.deleted && old && known();
            if forget {
                seen.remove(key);
                freed += record.bytes();
            }
            !forget
        });
        self.bytes -= freed;
        before - self.map.len()
    }

    fn check_room<'a>(&self, list: impl Iterator<Item = &'a Record>) -> Result<(), Refusal> {
        let (mut count, mut bytes) = (self.map.len(), self.bytes);
        for record in list {
            match self.map.get(&record.key) {
                Some(before) => bytes -= before.bytes(),
                None => count += 1,
            }
            bytes += record.bytes();
        }
        if count <= MAX_RECORDS && bytes <= MAX_TOTAL_BYTES {
            return Ok(());
        }
        Err(Refusal::new(
            Code::RecordsFull,
            format!(
                "the cluster's records are full: {count} of {MAX_RECORDS} records, {bytes} of \
                 {MAX_TOTAL_BYTES} bytes would be needed"
            ),
            "delete resources that are not needed, and remove nodes that are gone for good: \
             while they are members, what was deleted must be remembered for them",
        ))
    }

    fn insert(&mut self, record: Record) {
        self.seen.remove(&record.key);
        self.bytes += record.bytes();
        if let Some(before) = self.map.insert(record.key.clone(), record) {
            self.bytes -= before.bytes();
        }
    }
}
