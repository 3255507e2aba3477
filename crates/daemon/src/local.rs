//! What this node alone knows of its resources: where the disk is, and the switches that survive a
//! restart. One file a resource, replaced as a whole.

use crate::journaled::JournalSpec;
use crate::shard::{DiskSpec, MetaPlace};
use crate::spares::{self, SpareSpec};
use crate::statefile;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::Uuid;
use holdfast_store::DirectMode;
use holdfast_units::{ByteRange, ResourceId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The first word of a file, and the version of its content.
const HEAD: &str = "holdfast-resource 1 ";

/// A backing disk and its metadata.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalDisk {
    /// The backing file or device.
    pub(crate) path: PathBuf,
    /// Where the metadata are; `None` at the disk's end.
    pub(crate) meta: Option<PathBuf>,
    /// All spares that it has for bad sectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) spares: Vec<LocalSpare>,
}

/// A spare of a disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum LocalSpare {
    /// A file or device of its own.
    Path(PathBuf),
    /// A part of the disk.
    Region { offset: u64, len: u64 },
}

impl LocalSpare {
    /// Its path, when it is not a part of the disk.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Region { .. } => None,
        }
    }

    /// Where it begins on the disk, in bytes, when it is a part of it.
    pub(crate) const fn region_offset(&self) -> Option<u64> {
        match self {
            Self::Path(_) => None,
            Self::Region { offset, .. } => Some(*offset),
        }
    }

    /// How much of the disk it is, in bytes.
    pub(crate) const fn region_len(&self) -> u64 {
        match self {
            Self::Path(_) => 0,
            Self::Region { len, .. } => *len,
        }
    }

    /// The same for the data plane.
    pub(crate) fn spec(&self) -> SpareSpec {
        match self {
            Self::Path(path) => SpareSpec::Path(path.clone()),
            Self::Region { offset, len } => SpareSpec::Region(ByteRange::new(*offset, *len)),
        }
    }
}

impl LocalDisk {
    /// A disk without spares.
    pub(crate) const fn new(path: PathBuf, meta: Option<PathBuf>) -> Self {
        Self { path, meta, spares: Vec::new() }
    }

    /// The same for the data plane.
    pub(crate) fn spec(&self) -> DiskSpec {
        let meta = self.meta.clone().map_or(MetaPlace::Internal, MetaPlace::File);
        let spares = self.spares.iter().map(LocalSpare::spec).collect();
        DiskSpec {
            path: self.path.clone(),
            meta,
            direct: DirectMode::Auto,
            spares,
            spare_writes: None,
            checksums: None,
        }
    }

    /// The same, and an older image of one of its spares is refused.
    pub(crate) fn spec_in(&self, store: &LocalStore, resource: ResourceId) -> DiskSpec {
        DiskSpec { spare_writes: Some(store.spare_writes_path(resource)), ..self.spec() }
    }

    /// Whether a part of the disk is a spare.
    pub(crate) fn has_region(&self) -> bool {
        self.spares.iter().any(|spare| matches!(spare, LocalSpare::Region { .. }))
    }
}

/// A disk to which the data are being moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalReplacing {
    /// The new disk, and where the metadata will be.
    pub(crate) disk: LocalDisk,
    /// At most so many bytes a second; 0 for as many as there are.
    pub(crate) rate: u64,
    /// Whether the file was made for it.
    pub(crate) made_file: bool,
}

/// A journal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalJournal {
    /// The directory of its files, or the device that holds them.
    pub(crate) dir: PathBuf,
    /// The bytes that they may take.
    pub(crate) size: u64,
    /// Whether the directory was made for it.
    pub(crate) made_dir: bool,
}

impl LocalJournal {
    /// The same for the data plane.
    pub(crate) fn spec(&self) -> JournalSpec {
        JournalSpec { dir: self.dir.clone(), size: self.size }
    }
}

/// What this node keeps of one resource.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Local {
    /// The resource, 32 hexadecimal digits.
    #[serde(with = "id_text")]
    pub(crate) id: ResourceId,
    /// Its name when this was written; the records have the name that counts.
    pub(crate) name: String,
    /// The disk; `None` for a member without one.
    pub(crate) disk: Option<LocalDisk>,
    /// Where the data of the disk are being moved to. It counts for nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replacing: Option<LocalReplacing>,
    /// The disk before this one, as long as its metadata are not overwritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retired: Option<LocalDisk>,
    /// The journal before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) journal: Option<LocalJournal>,
    /// Whether a checksum is kept for each block of the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) checksums: bool,
    /// Whether the disk is to be used (`detach-disk` switches it off).
    pub(crate) attached: bool,
    /// Whether the resource is to be started here.
    pub(crate) up: bool,
    /// Whether this node was made Primary, and not Secondary since.
    pub(crate) primary: bool,
    /// Another node leads by the log, and this one follows it, whatever its own protocol is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) follows: bool,
    /// What is on its disk is also with whoever leads: when it follows, that may be replaced although
    /// its journal does not say what it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) expendable: bool,
    /// While it follows: how large a resource its disk was made ready for, in bytes. Its metadata,
    /// which say that otherwise, are made anew when it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    /// Data of these generations are an earlier state of what this node began to lead with, when it
    /// had followed before; none, when nobody stepped back in its favour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lineage: Vec<u64>,
    /// Where this node is target or source of a resync, that stands still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) sync_paused: bool,
    /// Its disk is shown read-only, as long as its replay is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) shows_past: bool,
    /// It is being created, and the cluster may not know of it yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) pending: bool,
    /// The peers that a person disconnected from.
    pub(crate) disconnected: BTreeSet<Uuid>,
}

/// The state file of a resource that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Damaged {
    /// Whose it is, by its name.
    pub(crate) id: Option<ResourceId>,
    /// What is wrong with it, one sentence.
    pub(crate) problem: String,
}

impl Damaged {
    fn new(path: &Path, why: &str) -> Self {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let problem = format!("the state file {} cannot be used: {why}", path.display());
        Self { id: stem.and_then(|stem| stem.parse().ok()), problem }
    }
}

/// The files, in a directory of their own.
#[derive(Clone, Debug)]
pub(crate) struct LocalStore {
    dir: PathBuf,
    /// What is known of the health of their disks.
    health: PathBuf,
    /// What is noted of the spares of their disks.
    spares: PathBuf,
}

impl LocalStore {
    /// The store below a state directory; makes its directory when it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, ApiError> {
        let make = |name: &str| -> Result<PathBuf, ApiError> {
            let dir = state_dir.join(name);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| failed("made", &dir, &error))?;
            Ok(dir)
        };
        Ok(Self { dir: make("resources")?, health: make("health")?, spares: make("spares")? })
    }

    /// The store below a state directory that has one already. Makes nothing.
    pub(crate) fn existing(state_dir: &Path) -> Option<Self> {
        let dir = state_dir.join("resources");
        let (health, spares) = (state_dir.join("health"), state_dir.join("spares"));
        dir.is_dir().then_some(Self { dir, health, spares })
    }

    /// All that can be read, and those that cannot.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn load(&self) -> Result<(Vec<Local>, Vec<Damaged>), ApiError> {
        let read = statefile::read_all(&self.dir, HEAD, |local: &Local| self.path(local.id));
        let (mut found, damaged) = read.map_err(|error| failed("read", &self.dir, &error))?;
        found.sort_by_key(|local| local.id);
        Ok((found, damaged.iter().map(|(path, why)| Damaged::new(path, why)).collect()))
    }

    /// Removes what those have left that were killed: versions that were never finished, and what is known
    /// of disks of resources that are gone. Nobody else may use the store meanwhile.
    pub(crate) fn sweep(&self) {
        for dir in [&self.dir, &self.health, &self.spares] {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let is = |extension: &str| path.extension().is_some_and(|found| found == extension);
                let owner = path.file_name().map(|name| self.dir.join(name));
                let is_left = is("new") || is("state") && !owner.is_some_and(|file| file.exists());
                if is_left && let Err(error) = statefile::remove(&path) {
                    tracing::warn!("{} was not removed: {error}", path.display());
                }
            }
        }
    }

    /// Writes it durably. After a crash there is the version before or this one.
    ///
    /// # Errors
    /// When the system refuses; the version before is still there then.
    pub(crate) fn save(&self, local: &Local) -> Result<(), ApiError> {
        let path = self.path(local.id);
        statefile::write(&path, HEAD, local).map_err(|error| failed("written", &path, &error))
    }

    /// Whether this is the version that is there: none came after it that may be durable.
    pub(crate) fn is_there(&self, local: &Local) -> bool {
        statefile::read::<Local>(&self.path(local.id), HEAD).is_ok_and(|found| found == *local)
    }

    /// Removes it durably. That it is not there is no error.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn remove(&self, id: ResourceId) -> Result<(), ApiError> {
        let path = self.path(id);
        statefile::remove(&path).map_err(|error| failed("removed", &path, &error))?;
        let health = self.health_path(id);
        let others = [
            (statefile::remove(&health), health),
            (spares::forget_writes(&self.spare_writes_path(id)), self.spare_writes_path(id)),
        ];
        for (removed, path) in others {
            if let Err(error) = removed {
                // It does not matter to anybody that it stays.
                tracing::warn!("{} was not removed: {error}", path.display());
            }
        }
        Ok(())
    }

    /// Where it is kept what is known of the health of a resource's disk.
    pub(crate) fn health_path(&self, id: ResourceId) -> PathBuf {
        self.health.join(format!("{id}.state"))
    }

    /// Where it is kept how often the tables of the spares of its disk were written.
    pub(crate) fn spare_writes_path(&self, id: ResourceId) -> PathBuf {
        self.spares.join(format!("{id}.state"))
    }

    /// The file of a resource.
    pub(crate) fn path(&self, id: ResourceId) -> PathBuf {
        self.dir.join(format!("{id}.state"))
    }
}

/// What people read of a state file that could not be used.
pub(crate) fn failed(verb: &str, path: &Path, error: &io::Error) -> ApiError {
    let message = format!("{} could not be {verb}: {error}", path.display());
    ApiError::new(ErrorCode::Internal, message).hint("check the disk of the state directory")
}

/// A [`ResourceId`] as its text.
pub(crate) mod id_text {
    use holdfast_units::ResourceId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(id: &ResourceId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ResourceId, D::Error> {
        String::deserialize(from)?.parse().map_err(|()| D::Error::custom("it is no resource id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn local(id: u8) -> Local {
        Local {
            id: ResourceId([id; 16]),
            name: "r0".into(),
            replacing: Some(LocalReplacing {
                disk: LocalDisk::new("/dev/y".into(), None),
                rate: 7,
                made_file: false,
            }),
            retired: Some(LocalDisk::new("/dev/z".into(), None)),
            disk: Some(LocalDisk {
                spares: vec![
                    LocalSpare::Path("/dev/y".into()),
                    LocalSpare::Region { offset: 8192, len: 4096 },
                ],
                ..LocalDisk::new("/dev/x".into(), None)
            }),
            journal: Some(LocalJournal { dir: "/j".into(), size: 5, made_dir: true }),
            checksums: true,
            attached: true,
            up: true,
            primary: true,
            follows: true,
            expendable: true,
            size: Some(4096),
            lineage: vec![7, 9],
            sync_paused: true,
            shows_past: true,
            pending: false,
            disconnected: [Uuid::new_v4()].into(),
        }
    }

    #[test]
    fn what_was_saved_is_there_and_what_was_removed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let (one, two) = (local(1), Local { disk: None, up: false, ..local(2) });
        store.save(&one).unwrap();
        store.save(&two).unwrap();
        let again = LocalStore::open(dir.path()).unwrap();
        assert_eq!(again.load().unwrap(), (vec![one.clone(), two], Vec::new()));
        store.remove(ResourceId([2; 16])).unwrap();
        store.remove(ResourceId([2; 16])).unwrap();
        assert_eq!(again.load().unwrap(), (vec![one], Vec::new()));
    }

    #[test]
    fn what_was_never_finished_and_what_belongs_to_nobody_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.save(&local(1)).unwrap();
        let (here, gone) = (ResourceId([1; 16]), ResourceId([2; 16]));
        let stays = [store.path(here), store.health_path(here), store.spare_writes_path(here)];
        let goes = [
            store.health_path(gone),
            store.spare_writes_path(gone),
            store.path(gone).with_extension("new"),
            store.spare_writes_path(here).with_extension("new"),
        ];
        stays[1..].iter().chain(&goes).for_each(|path| fs::write(path, "x").unwrap());
        store.sweep();
        assert!(stays.iter().all(|path| path.exists()));
        assert!(!goes.iter().any(|path| path.exists()));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_version_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.save(&local(1)).unwrap();
        let path = store.path(ResourceId([1; 16]));
        let whole = fs::read(&path).unwrap();
        // The new version is only under its real name when all of it is on the disk.
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(path.with_extension("new"), &whole[..cut]).unwrap();
            assert_eq!(store.load().unwrap().0.len(), 1, "cut at {cut}");
        }
        let next = Local { primary: false, ..store.load().unwrap().0.remove(0) };
        store.save(&next).unwrap();
        assert_eq!(store.load().unwrap(), (vec![next], Vec::new()));
    }

    #[test]
    fn a_damaged_file_is_named_and_the_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.save(&local(1)).unwrap();
        store.save(&local(2)).unwrap();
        let path = store.path(ResourceId([1; 16]));
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() - 10] ^= 1;
        for bytes in [&flipped[..], &whole[..whole.len() - 5], b"", b"x\n{}"] {
            fs::write(&path, bytes).unwrap();
            let (found, damaged) = store.load().unwrap();
            assert_eq!((found.len(), damaged.len()), (1, 1), "{damaged:?}");
            assert!(damaged[0].problem.contains(&path.display().to_string()));
            assert_eq!(damaged[0].id, Some(ResourceId([1; 16])));
        }
    }
}
