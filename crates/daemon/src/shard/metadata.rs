//! The metadata of a resource on its way between disk and core: made, claimed, read.

use super::meta_io::MetaFile;
use super::open::open_backing;
use crate::spares::SpareSpec;
use holdfast_core::Attachment;
use holdfast_format::{
    BLOCK_LEN, Block, DEFAULT_EXTERNAL_SLOTS, DEFAULT_INTERNAL_SLOTS, DiskFlags, LayoutError,
    MetaError, MetaImage, MetaLayout, Placement, ReadAt, ReadFailed, Superblock, al_blocks_for,
    format_blocks, looks_used,
};
use holdfast_store::{BufferPool, DirectMode, OpenOptions};
use holdfast_units::{BLOCK_SIZE, ByteRange, GenerationId, NodeId, PeerSet, ResourceId};
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{io, thread};

/// Nobody tells when a lock ends; so often it is asked for again.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Where the metadata of a resource are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaPlace {
    /// At the end of the backing device.
    Internal,
    /// In a file (or block device) of their own. The backing device is used 1:1 then.
    File(PathBuf),
}

/// The backing device of a resource on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// A regular file or a block device; or the URI of an NBD export, with metadata elsewhere.
    pub path: PathBuf,
    /// Where its metadata are.
    pub meta: MetaPlace,
    /// Whether to bypass the page cache.
    pub direct: DirectMode,
    /// Its spares for bad sectors: all of them.
    pub spares: Vec<SpareSpec>,
    /// The file that says how often the tables of the spares were written: an older image of one is
    /// refused. `None`: nobody has noted it.
    pub spare_writes: Option<PathBuf>,
    /// The file with a checksum for each block; `None` when none are kept. One that is not there, or
    /// cannot be used, is made.
    pub checksums: Option<PathBuf>,
}

impl DiskSpec {
    /// The file that the metadata are in.
    #[must_use]
    pub fn meta_path(&self) -> &Path {
        match &self.meta {
            MetaPlace::Internal => &self.path,
            MetaPlace::File(path) => path,
        }
    }
}

/// What new metadata say of the data that are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialContent {
    /// They are the resource's data, and begin this (random) generation: the first node.
    Current(GenerationId),
    /// They are an earlier state of the resource's data: the end of this generation of a peer's, or
    /// what came after it.
    Earlier(GenerationId),
    /// They are of no interest: a node that joins, and gets everything from a peer.
    Nothing,
}

/// Metadata to be made.
#[derive(Clone, Debug)]
pub struct CreateMetadata {
    /// The backing device.
    pub disk: DiskSpec,
    /// The size of the resource in bytes; `None` takes all that there is room for.
    pub size: Option<u64>,
    /// The resource.
    pub resource: ResourceId,
    /// This node's number in it.
    pub node: NodeId,
    /// Extents that the activity log holds.
    pub al_extents: u16,
    /// For how many nodes there are bitmaps; `None` is 32 in a file, 8 on the device itself.
    pub slots: Option<u8>,
    /// What the data on the disk are.
    pub content: InitialContent,
    /// The spares that it is to have; they are made afterwards.
    pub spares: Option<NewSpares>,
}

/// What metadata say of spares that are to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSpares {
    /// The identity of the disk.
    pub id: [u8; 16],
    /// How many bytes behind the data are to be a spare; a multiple of 4096.
    pub region: u64,
}

/// Why metadata could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The backing device cannot be used.
    #[error(transparent)]
    Disk(#[from] holdfast_store::OpenError),
    /// The sizes do not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The resource would be larger than the disk.
    #[error("the disk {} is too small: it has {has} bytes, the resource needs {needs}", path.display())]
    TooSmall {
        /// The disk.
        path: PathBuf,
        /// Its usable bytes.
        has: u64,
        /// What is needed.
        needs: u64,
    },
    /// The system refused something.
    #[error("the metadata in {} cannot be {verb}: {error}", path.display())]
    Io {
        /// Where the metadata are or were to be.
        path: PathBuf,
        /// What was to be done.
        verb: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody else uses the metadata.
    #[error("the metadata in {} are in use by another process or resource", .0.display())]
    InUse(PathBuf),
    /// Something is there that must not be overwritten.
    #[error("no metadata were made in {}: it holds {what}", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: String,
    },
    /// There are no metadata that can be used.
    #[error("the metadata in {} cannot be used: {error}", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        error: MetaError,
    },
    /// They belong to something else.
    #[error("the metadata in {} are not those of this resource on this node: {what}", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

impl MetadataError {
    pub(super) fn io(path: &Path, verb: &'static str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::InUse(path.to_owned()),
            _ => Self::Io { path: path.to_owned(), verb, error },
        }
    }
}

/// The id of the machine's current boot: what was only in the page cache is lost when it changes.
///
/// # Errors
/// When `/proc` is not there or has no such id.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = uuid::Uuid::parse_str(text.trim()).map_err(io::Error::other)?;
    Ok(id.into_bytes())
}

/// Makes the metadata of a resource on this node, durably. Gives the size of the resource in bytes.
/// Metadata of the same resource are overwritten. The data on the disk are not touched, apart from
/// where internal metadata go. Blocks while it works.
///
/// # Errors
/// [`MetadataError`]; the disk is untouched unless writing itself failed.
pub fn create_metadata(spec: &CreateMetadata) -> Result<u64, MetadataError> {
    let options = OpenOptions { direct: DirectMode::Never, ..OpenOptions::default() };
    // Holds the claim on the disk while the metadata are made.
    let disk = open_backing(&spec.disk.path, &options, &BufferPool::new(0))?;
    let layout = layout_of(spec, disk.size())?;
    let path = spec.disk.meta_path();
    let internal = spec.disk.meta == MetaPlace::Internal;
    let file = open_meta(&spec.disk, true)?;
    check_vacant(path, &file, &layout, spec.resource)?;
    let fail = |error: io::Error| MetadataError::io(path, "written", error);
    let area = layout.area();
    let is_file = file.metadata().map_err(fail)?.file_type().is_file();
    if is_file && !internal {
        file.set_len(0).and_then(|()| file.set_len(area.end())).map_err(fail)?;
    } else {
        let bitmaps = ByteRange::new(layout.bitmap_start(), layout.bitmap_len());
        zero(&file, bitmaps).map_err(fail)?;
    }
    let mut superblock =
        Superblock::new(spec.resource, spec.node, boot_id().map_err(fail)?, layout);
    superblock.flags = DiskFlags::CLEAN;
    superblock.spares = spec.spares.map(|spares| spares.id);
    match spec.content {
        InitialContent::Current(generation) => {
            superblock.current = generation;
            superblock.flags.insert(DiskFlags::CONSISTENT.with(DiskFlags::WAS_UPTODATE));
        }
        InitialContent::Earlier(generation) => {
            superblock.current = generation;
            superblock.flags.insert(DiskFlags::CONSISTENT.with(DiskFlags::OUTDATED));
        }
        InitialContent::Nothing => {}
    }
    let blocks = format_blocks(&mut superblock);
    let (log, superblocks) = blocks.split_at(blocks.len() - 2);
    for part in [log, superblocks] {
        for (offset, block) in part {
            file.write_all_at(block, *offset).map_err(fail)?;
        }
        file.sync_all().map_err(fail)?;
    }
    if !internal {
        sync_parent(path).map_err(fail)?;
    }
    Ok(layout.device_size())
}

/// Where the spare on the disk itself will be. Nothing is written.
///
/// # Errors
/// As [`create_metadata`], as far as that can be known beforehand.
pub(crate) fn region_for(spec: &CreateMetadata) -> Result<Option<ByteRange>, MetadataError> {
    let options = OpenOptions { direct: DirectMode::Never, ..OpenOptions::default() };
    let size = open_backing(&spec.disk.path, &options, &BufferPool::new(0))?.size();
    Ok(region_of(spec, size, &layout_of(spec, size)?))
}

/// Where the spare on the disk itself is: between the data and internal metadata, or at its end.
fn region_of(spec: &CreateMetadata, disk_size: u64, layout: &MetaLayout) -> Option<ByteRange> {
    let len = spec.spares.map(|spares| spares.region).filter(|len| *len > 0)?;
    let end = if spec.disk.meta == MetaPlace::Internal { layout.bitmap_start() } else { disk_size };
    Some(ByteRange::new(end - len, len))
}

fn layout_of(spec: &CreateMetadata, disk_size: u64) -> Result<MetaLayout, MetadataError> {
    let blocks = al_blocks_for(spec.al_extents);
    let spare = spec.spares.map_or(0, |spares| spares.region);
    let free = disk_size.saturating_sub(spare);
    let (slots, placement, room) = match spec.disk.meta {
        MetaPlace::Internal => {
            let slots = spec.slots.unwrap_or(DEFAULT_INTERNAL_SLOTS);
            let room = MetaLayout::usable_size(free, blocks, slots)?;
            (slots, Placement::Internal { device_len: disk_size }, room)
        }
        MetaPlace::File(_) => {
            let slots = spec.slots.unwrap_or(DEFAULT_EXTERNAL_SLOTS);
            (slots, Placement::External { base: 0 }, free)
        }
    };
    let size = spec.size.unwrap_or(room);
    if size > room {
        let path = spec.disk.path.clone();
        return Err(MetadataError::TooSmall { path, has: room, needs: size });
    }
    Ok(MetaLayout::new(size, spec.al_extents, blocks, slots, placement)?)
}

/// Opens the file or device with the metadata and claims it, so that no other daemon uses it.
pub(super) fn open_meta(disk: &DiskSpec, create: bool) -> Result<File, MetadataError> {
    let path = disk.meta_path();
    let fail = |error: io::Error| MetadataError::io(path, "opened", error);
    let external = disk.meta != MetaPlace::Internal;
    let mut options = File::options();
    options.read(true).write(true).create(create && external).truncate(false).mode(0o600);
    let file = options.open(path).map_err(fail)?;
    if external {
        // Internal metadata are guarded by the claim on the disk.
        lock_patiently(&file).map_err(fail)?;
    }
    Ok(file)
}

/// A program that this daemon has just started still holds what was open before, for a moment; and the kernel
/// what a process that was killed had.
fn lock_patiently(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + OpenOptions::default().claim_wait;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            locked => return locked.map_err(io::Error::from),
        }
    }
}

/// Refuses to overwrite the metadata of another resource, or a file that is something else.
pub(super) fn check_vacant(
    path: &Path,
    file: &File,
    layout: &MetaLayout,
    resource: ResourceId,
) -> Result<(), MetadataError> {
    let reader = MetaReader::new(file).map_err(|e| MetadataError::io(path, "read", e))?;
    let occupied = |what: String| Err(MetadataError::Occupied { path: path.to_owned(), what });
    let mut known = false;
    for copy in 0..2 {
        let mut block: Block = [0; BLOCK_LEN];
        if reader.read_at(layout.superblock_offset(copy), &mut block).is_err() {
            continue;
        }
        let Some(what) = looks_used(&block) else { continue };
        match Superblock::decode(&block, copy) {
            Ok(superblock) if superblock.resource == resource => known = true,
            Ok(superblock) => return occupied(format!("{what} ({})", superblock.resource)),
            Err(_) => return occupied(what.to_owned()),
        }
    }
    let foreign_file = !known
        && matches!(layout.placement(), Placement::External { .. })
        && reader.is_file
        && !is_unfinished(path, file, layout, resource);
    if foreign_file {
        occupied("something that is not metadata of Holdfast".into())
    } else {
        Ok(())
    }
}

/// The name of the file that has the metadata of a resource when nobody says where they are to be.
pub(crate) fn meta_name(resource: ResourceId) -> String {
    format!("{resource}.meta")
}

/// Whether a file is empty, or what is left of metadata of this resource whose making was cut off: one
/// that has its name, or nothing but zeroes in no more than its length.
fn is_unfinished(path: &Path, file: &File, layout: &MetaLayout, resource: ResourceId) -> bool {
    if path.file_name().is_some_and(|name| *name == *meta_name(resource)) {
        return true;
    }
    let Ok(len) = file.metadata().map(|found| found.len()) else { return false };
    if len > layout.area().end() {
        return false;
    }
    let mut chunk = [0; 1 << 16];
    let mut at = 0;
    while at < len {
        let read = file.read_at(&mut chunk, at).unwrap_or(0);
        if read == 0 || chunk[..read].iter().any(|byte| *byte != 0) {
            return false;
        }
        at += read as u64;
    }
    true
}

/// Makes a range read as zeroes.
pub(crate) fn zero(file: &File, range: ByteRange) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    for way in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        let flags = way | FallocateFlags::KEEP_SIZE;
        if fallocate(file, flags, range.offset, range.len).is_ok() {
            return Ok(());
        }
    }
    let zeroes = vec![0; 1 << 20];
    let mut at = range.offset;
    while at < range.end() {
        let len = usize::try_from(range.end() - at).map_or(zeroes.len(), |n| n.min(zeroes.len()));
        file.write_all_at(&zeroes[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// A new name in a directory is durable only when the directory is.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// What is expected of the metadata that are opened.
pub(super) struct Expected {
    pub(super) resource: ResourceId,
    pub(super) node: NodeId,
    pub(super) members: PeerSet,
}

/// Opens, claims and reads the metadata of a disk of `disk_size` bytes.
pub(super) fn load_metadata(
    disk: &DiskSpec,
    disk_size: u64,
    expected: &Expected,
) -> Result<(Attachment, MetaFile), MetadataError> {
    let path = disk.meta_path();
    let file = open_meta(disk, false)?;
    let placement = match disk.meta {
        MetaPlace::Internal => Placement::Internal { device_len: disk_size },
        MetaPlace::File(_) => Placement::External { base: 0 },
    };
    let reader = MetaReader::new(&file).map_err(|e| MetadataError::io(path, "read", e))?;
    let image = MetaImage::load(&reader, placement)
        .map_err(|error| MetadataError::Unusable { path: path.to_owned(), error })?;
    let found = &image.superblock;
    let foreign = |what: String| Err(MetadataError::Foreign { path: path.to_owned(), what });
    if found.resource != expected.resource {
        return foreign(format!("they belong to the resource {}", found.resource));
    }
    if found.node != expected.node {
        return foreign(format!("they belong to node {}", found.node));
    }
    let size = found.layout.device_size();
    if matches!(disk.meta, MetaPlace::File(_)) && size > disk_size {
        let path = disk.path.clone();
        return Err(MetadataError::TooSmall { path, has: disk_size, needs: size });
    }
    let attachment = Attachment::read(&image, expected.members);
    let meta = MetaFile::new(file).map_err(|e| MetadataError::io(path, "opened", e))?;
    Ok((attachment, meta))
}

/// A file or device for the reader of the format.
pub(super) struct MetaReader<'a> {
    file: &'a File,
    len: u64,
    is_file: bool,
}

impl<'a> MetaReader<'a> {
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::other("it is neither a regular file nor a block device"));
        }
        let len = seek(file, SeekFrom::End(0))?;
        Ok(Self { file, len, is_file: kind.is_file() })
    }
}

impl ReadAt for MetaReader<'_> {
    fn len(&self) -> u64 {
        // For internal metadata the disk counts in whole blocks.
        self.len / BLOCK_SIZE * BLOCK_SIZE
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.file.read_exact_at(buf, offset).map_err(|error| ReadFailed(error.to_string()))
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        if offset >= self.len {
            return None;
        }
        match seek(self.file, SeekFrom::Data(offset)) {
            Ok(data) => Some(data),
            Err(rustix::io::Errno::NXIO) if self.is_file => None,
            Err(_) => Some(offset),
        }
    }
}
