//! Opening what a resource needs: everything here may block and runs on a blocking thread.

use super::ResourceSpec;
use super::disk::DiskDriver;
use super::meta_io::MetaFile;
use super::meta_move::MovedMeta;
use super::metadata::{DiskSpec, Expected, MetadataError, load_metadata};
use super::view::DiskView;
use crate::checksums;
use crate::journaled::{self, JournalError, JournalHandle};
use crate::remote;
use crate::spares::{self, MapChanges, SparesError, file_is_whole, watch_map};
use holdfast_core::Attachment;
use holdfast_store::{BackingKind, BufferPool, ChecksumHandle, Disk, OpenOptions, ReplaceHandle};
use std::fs::File;
use std::path::Path;

/// Why a resource was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The backing device cannot be used.
    #[error(transparent)]
    Disk(#[from] holdfast_store::OpenError),
    /// The metadata cannot be used.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The disk has spares that cannot be used, and without them it is not what was written.
    #[error(transparent)]
    Spares(#[from] SparesError),
    /// The journal cannot be used, and without it the disk is not what was completed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A resource with this name is open already.
    #[error("the resource {0} is open already")]
    NameTaken(String),
    /// The system refused something.
    #[error("the resource cannot be opened: {0}")]
    Io(#[from] std::io::Error),
    /// The shard has ended.
    #[error("the resource cannot be opened: the daemon is stopping")]
    Stopped,
}

/// An open disk, on its way to the shard thread.
pub(super) struct OpenDisk {
    pub(super) disk: Disk,
    pub(super) meta: MetaFile,
    pub(super) attachment: Attachment,
    pub(super) view: DiskView,
    /// For looking for holes. With a journal or spares the disk alone does not say where
    /// they are.
    pub(super) probe: Option<File>,
    pub(super) journal: Option<JournalHandle>,
    pub(super) replace: ReplaceHandle,
    /// What changes in the tables of its spares.
    pub(super) map_changes: MapChanges,
    pub(super) checksums: ChecksumHandle,
}

/// Opens the disk of a resource and reads its metadata; `None` for a diskless one.
pub(super) fn open_disk(
    spec: &ResourceSpec,
    pool: &BufferPool,
) -> Result<Option<OpenDisk>, OpenError> {
    let Some(wanted) = &spec.disk else { return Ok(None) };
    let options = OpenOptions {
        direct: wanted.direct,
        max_in_flight: DiskDriver::MAX_IN_FLIGHT,
        ..OpenOptions::default()
    };
    let disk = open_backing(&wanted.path, &options, pool)?;
    let members = spec.config.peers.iter().map(|peer| peer.node).collect();
    let expected = Expected { resource: spec.config.resource, node: spec.config.node, members };
    let mut disk = spares::open_with(disk, wanted, expected.resource, pool)?;
    let map_changes = watch_map(&mut disk);
    let replace = disk.replace_handle();
    let (attachment, meta) = load_metadata(wanted, disk.size(), &expected)?;
    let view = view_of(wanted, &disk);
    let (resource, size) = (spec.config.resource, attachment.superblock.layout.device_size());
    let (disk, checksums) =
        checksums::with_layer(disk, wanted.checksums.as_deref(), resource, size, pool);
    let Some(journal) = &spec.journal else {
        let probe = match disk.info().kind {
            BackingKind::File if file_is_whole(&disk) => Some(File::open(&wanted.path)?),
            _ => None,
        };
        return Ok(Some(OpenDisk {
            disk,
            meta,
            attachment,
            view,
            probe,
            journal: None,
            checksums,
            map_changes,
            replace,
        }));
    };
    let most = DiskDriver::MAX_IN_FLIGHT;
    let Expected { resource, node, .. } = expected;
    journaled::open::mark_led(journal, resource)?;
    let (disk, journal) = journaled::open(journal, resource, node, disk, most, pool)?;
    let journal = Some(journal);
    Ok(Some(OpenDisk {
        disk,
        meta,
        attachment,
        view,
        probe: None,
        journal,
        checksums,
        map_changes,
        replace,
    }))
}

/// Opens a disk that is to take the place of one that is used with these metadata: the disk, what
/// others see of it, and itself for looking for holes. Blocks.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn open_successor(wanted: &DiskSpec) -> Result<Successor, OpenError> {
    const POOL: usize = 32 << 20;
    let options = OpenOptions {
        direct: wanted.direct,
        // Besides what the resource does there are the pieces that are copied.
        max_in_flight: 2 * DiskDriver::MAX_IN_FLIGHT,
        ..OpenOptions::default()
    };
    let disk = open_backing(&wanted.path, &options, &BufferPool::new(POOL))?;
    let view = view_of(wanted, &disk);
    let probe = match disk.info().kind {
        BackingKind::File => Some(File::open(&wanted.path)?),
        _ => None,
    };
    Ok(Successor { disk, place: NewPlace { view, probe, meta: None } })
}

impl NewPlace {
    /// That of a disk that stays after all. Blocks.
    pub(crate) fn again(view: DiskView) -> Self {
        // Without it nobody looks for holes.
        let probe = File::open(&view.path).ok();
        let is_file = |file: &File| file.metadata().is_ok_and(|found| found.is_file());
        Self { view, probe: probe.filter(is_file), meta: None }
    }
}

/// A disk that is to take the place of another one.
pub(crate) struct Successor {
    pub(crate) disk: Disk,
    pub(crate) place: NewPlace,
}

/// What else changes when a disk has taken the place of another one.
#[derive(Debug)]
pub(crate) struct NewPlace {
    pub(crate) view: DiskView,
    pub(super) probe: Option<File>,
    /// The metadata, when they have moved.
    pub(crate) meta: Option<MovedMeta>,
}

/// Opens a file, a block device, or an export of another machine.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn open_backing(
    path: &Path,
    options: &OpenOptions,
    pool: &BufferPool,
) -> Result<Disk, holdfast_store::OpenError> {
    match remote::uri_of(path) {
        Some(uri) => remote::open_disk(path, uri, options.max_in_flight, pool),
        None => Disk::open(path, options, pool),
    }
}

fn view_of(wanted: &DiskSpec, disk: &Disk) -> DiskView {
    let info = disk.info();
    DiskView {
        path: wanted.path.clone(),
        metadata: wanted.meta_path().to_owned(),
        size: info.size,
        engine: info.engine.as_str(),
        direct: info.direct,
        notes: info.notes.clone(),
    }
}
