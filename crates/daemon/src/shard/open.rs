//! Opening what a resource needs: everything here may block and runs on a blocking thread.

use super::ResourceSpec;
use super::disk::DiskDriver;
use super::meta_io::MetaFile;
use super::metadata::{DiskSpec, Expected, MetadataError, load_metadata};
use super::view::DiskView;
use crate::journaled::{self, JournalError, JournalHandle};
use crate::remote;
use holdfast_core::Attachment;
use holdfast_store::{BackingKind, BufferPool, Disk, OpenOptions};
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
    /// For looking for holes. With a journal the disk alone does not say where they are.
    pub(super) probe: Option<File>,
    pub(super) journal: Option<JournalHandle>,
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
    let (attachment, meta) = load_metadata(wanted, disk.size(), &expected)?;
    let view = view_of(wanted, &disk);
    let Some(journal) = &spec.journal else {
        let probe = match disk.info().kind {
            BackingKind::File => Some(File::open(&wanted.path)?),
            _ => None,
        };
        return Ok(Some(OpenDisk { disk, meta, attachment, view, probe, journal: None }));
    };
    let most = DiskDriver::MAX_IN_FLIGHT;
    let Expected { resource, node, .. } = expected;
    journaled::open::mark_led(journal, resource)?;
    let (disk, journal) = journaled::open(journal, resource, node, disk, most, pool)?;
    Ok(Some(OpenDisk { disk, meta, attachment, view, probe: None, journal: Some(journal) }))
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
