//! Backing disks on the control side: what may be used for a new member, making it ready, and
//! giving it back. Everything here blocks.

use crate::local::{LocalDisk, LocalSpare};
use crate::shard::{
    CreateMetadata, DiskSpec, InitialContent, NewSpares, create_metadata, meta_name, region_for,
};
use crate::spares::{self, Planned};
use crate::{refuse, remote};
use holdfast_api::request::META_INTERNAL;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::{
    BLOCK_LEN, Block, DEFAULT_EXTERNAL_SLOTS, MetaLayout, Placement, Superblock, al_blocks_for,
};
use holdfast_nbd::NbdUri;
use holdfast_units::{BLOCK_SIZE, MAX_NODES, NodeId, ResourceId, format_size};
use signature::{LOOKED_AT, signature_in, signature_of};
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bitmaps for as many nodes as a resource can have, wherever the metadata are.
const SLOTS: u8 =
    if DEFAULT_EXTERNAL_SLOTS > MAX_NODES { MAX_NODES } else { DEFAULT_EXTERNAL_SLOTS };
/// The longest path that is taken, in bytes.
const MAX_PATH: usize = 4000;

/// A disk that is in use on this node.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) owner: Owner,
    pub(crate) disk: LocalDisk,
}

/// What uses a disk, by its name. Prints as `the resource r0`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Resource(String),
    Attachment(String),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Resource(name) => write!(f, "the resource {name}"),
            Self::Attachment(name) => write!(f, "the attachment {name}"),
        }
    }
}

impl Owner {
    fn way_out(&self) -> String {
        match self {
            Self::Resource(name) => format!("choose another, or run `holdfast leave {name}`"),
            Self::Attachment(name) => format!("choose another, or run `holdfast detach {name}`"),
        }
    }
}

/// A disk that is to be made ready for a resource.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The attempt, for messages: `resource r0 was not created`.
    pub(crate) what: String,
    pub(crate) resource: ResourceId,
    /// The path as it was given.
    pub(crate) disk: String,
    /// Where the metadata are to be, as it was given.
    pub(crate) meta: Option<String>,
    /// The size of the resource; `None` takes what the disk has.
    pub(crate) size: Option<u64>,
    pub(crate) al_extents: u16,
    pub(crate) state_dir: PathBuf,
    pub(crate) used: Vec<Used>,
    pub(crate) existing: Existing,
    /// The spares for bad sectors that it is to have.
    pub(crate) spares: Planned,
}

/// What becomes of what is on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Existing {
    /// It is the data of the resource. Internal metadata must not go over the end of something.
    Keep,
    /// It is overwritten; a disk on which somebody else has put something is refused.
    OverwriteUnknown,
    /// It is overwritten, whatever it is.
    Overwrite,
}

/// A disk that passed all checks; nothing was changed yet.
#[derive(Debug)]
pub(crate) struct Checked {
    wanted: Wanted,
    pub(crate) disk: LocalDisk,
    /// The file must be made first, so long.
    make_file: Option<u64>,
    ends: Ends,
}

/// The end of a disk that was there, as far as it is not part of the resource.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ends {
    /// Bytes that are no whole block, where all of the disk was to be the resource.
    pub(crate) left_over: u64,
    /// Bytes for internal metadata.
    pub(crate) metadata: u64,
    /// Bytes that are a spare for bad sectors.
    pub(crate) spare: u64,
}

/// What was made, so that it can be undone.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) disk: LocalDisk,
    /// The size of the resource.
    pub(crate) size: u64,
    pub(crate) ends: Ends,
    resource: ResourceId,
    made_file: bool,
}

impl Wanted {
    fn refuse(&self, code: ErrorCode, why: &str) -> ApiError {
        ApiError::new(code, format!("{}: {why}", self.what))
    }

    /// Checks everything that can be checked without changing anything.
    ///
    /// # Errors
    /// What is in the way, in one sentence.
    pub(crate) fn check(self) -> Result<Checked, ApiError> {
        let path = self.path(&self.disk, "the disk")?;
        if let Some(size) = self.size
            && (size == 0 || !size.is_multiple_of(BLOCK_SIZE))
        {
            let why = if size < BLOCK_SIZE {
                format!("a size of {size} bytes is too small: it must be at least {BLOCK_SIZE}")
            } else {
                format!("a size of {size} bytes is no multiple of {BLOCK_SIZE}")
            };
            let down = size / BLOCK_SIZE * BLOCK_SIZE;
            let up = down + BLOCK_SIZE;
            let hint = match down {
                0 => format!("for example {up}"),
                _ => format!("for example {down} or {up}"),
            };
            return Err(self.refuse(ErrorCode::InvalidSize, &why).hint(hint));
        }
        self.check_foreign(&path, "the disk")?;
        let meta = self.meta_place(&path)?;
        let disk = LocalDisk::new(path, meta);
        self.check_spares(&disk)?;
        if let Some(uri) = remote::uri_of(&disk.path) {
            let ends = self.check_remote(&disk, uri)?;
            return Ok(Checked { wanted: self, disk, make_file: None, ends });
        }
        let (make_file, ends) = match fs::metadata(&disk.path) {
            Ok(found) => (None, self.check_existing(&disk, &found)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (Some(self.length_of_new(&disk)?), Ends::default())
            }
            Err(error) => {
                let why = format!("the disk {} cannot be used: {error}", disk.path.display());
                return Err(self.refuse(ErrorCode::DiskUnusable, &why));
            }
        };
        if let Some(meta) = &disk.meta {
            self.check_free(meta, "the metadata")?;
        }
        Ok(Checked { wanted: self, disk, make_file, ends })
    }

    fn path(&self, text: &str, what: &str) -> Result<PathBuf, ApiError> {
        if remote::is_uri(text) && text.len() <= MAX_PATH {
            let uri: Result<NbdUri, _> = text.parse();
            return match uri {
                Ok(uri) => Ok(uri.to_string().into()),
                Err(error) => Err(self.refuse(ErrorCode::InvalidPath, &error.to_string())),
            };
        }
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') || text.len() > MAX_PATH {
            let shown: String = text.chars().take(200).collect();
            let why = format!("the path {shown:?} of {what} is not absolute");
            return Err(self
                .refuse(ErrorCode::InvalidPath, &why)
                .hint("give a path that starts with /"));
        }
        Ok(path.to_owned())
    }

    fn meta_place(&self, disk: &Path) -> Result<Option<PathBuf>, ApiError> {
        match self.meta.as_deref() {
            Some(META_INTERNAL) if remote::uri_of(disk).is_some() => {
                let why = "the metadata of a disk on another machine cannot be at its end";
                Err(self.refuse(ErrorCode::InvalidPath, why).hint(
                    "leave --meta away, or name a file of this node: their writes must not wait \
                     for the network",
                ))
            }
            Some(META_INTERNAL) => Ok(None),
            Some(text) => {
                let path = self.path(text, "the metadata")?;
                self.check_foreign(&path, "the place of the metadata")?;
                if path == disk || same_object(&path, disk) {
                    let why = "the metadata cannot be where the data are";
                    return Err(self
                        .refuse(ErrorCode::InvalidPath, why)
                        .hint("`--meta internal` puts them at the end of the disk"));
                }
                Ok(Some(path))
            }
            None => Ok(Some(own_meta(&self.state_dir, self.resource))),
        }
    }

    /// A file that is not there is made when it is known how long it has to be.
    fn length_of_new(&self, disk: &LocalDisk) -> Result<u64, ApiError> {
        let shown = disk.path.display();
        let dir = disk.path.parent().is_some_and(Path::is_dir);
        let in_dev = disk.path.starts_with("/dev") && !disk.path.starts_with("/dev/shm");
        let Some(size) = self.size.filter(|_| dir && !in_dev) else {
            let why = format!("the disk {shown} does not exist");
            return Err(self.refuse(ErrorCode::DiskNotFound, &why).hint(
                "check the path; a file is made when its directory exists and --size is given",
            ));
        };
        let spare = self.spares.region.unwrap_or(0);
        if disk.meta.is_some() {
            return Ok(size + spare);
        }
        let placement = Placement::External { base: 0 };
        let blocks = al_blocks_for(self.al_extents);
        let layout = MetaLayout::new(size, self.al_extents, blocks, SLOTS, placement)
            .map_err(|error| self.refuse(ErrorCode::InvalidSize, &error.to_string()))?;
        Ok(size + spare + layout.area().len)
    }

    /// Checks a disk that is there.
    fn check_existing(&self, disk: &LocalDisk, found: &Metadata) -> Result<Ends, ApiError> {
        let (path, shown) = (&disk.path, disk.path.display());
        self.check_free(path, "the disk")?;
        let kind = found.file_type();
        if kind.is_file()
            && let Some(device) = loop_device_of(path)
        {
            let why = format!("the disk {shown} is in use: it is the file of the device {device}");
            return Err(self
                .refuse(ErrorCode::DiskBusy, &why)
                .hint(format!("unmount it and run `losetup -d {device}`")));
        }
        if !kind.is_file() && !kind.is_block_device() {
            let why = format!("the disk {shown} is neither a regular file nor a block device");
            return Err(self.refuse(ErrorCode::DiskUnusable, &why));
        }
        let bytes = bytes_of(path).map_err(|error| {
            let why = format!("the disk {shown} cannot be read: {error}");
            self.refuse(ErrorCode::DiskUnusable, &why)
        })?;
        let length = bytes / BLOCK_SIZE * BLOCK_SIZE;
        if let Some(owner) = internal_owner(path, length)
            && owner != self.resource
        {
            let why = format!(
                "the disk {shown} holds metadata of another Holdfast resource, {owner}, at its end"
            );
            return Err(self
                .refuse(ErrorCode::MetadataExists, &why)
                .hint("if nobody needs them any more, overwrite the last 8 KiB with zeroes"));
        }
        let spare = self.spares.region.unwrap_or(0);
        let free = length.saturating_sub(spare);
        let room = if disk.meta.is_none() {
            MetaLayout::usable_size(free, al_blocks_for(self.al_extents), SLOTS)
                .map_err(|error| self.refuse(ErrorCode::DiskTooSmall, &error.to_string()))?
        } else {
            free
        };
        let needs = self.size.unwrap_or(BLOCK_SIZE);
        if needs > room {
            let beside = match (disk.meta.is_none(), spare > 0) {
                (true, true) => " beside its metadata and its spare",
                (true, false) => " beside its metadata",
                (false, true) => " beside its spare",
                (false, false) => "",
            };
            let why = format!(
                "the disk {shown} is too small: it has room for {} ({room} bytes){beside}, the \
                 resource needs {} ({needs} bytes)",
                format_size(room),
                format_size(needs)
            );
            return Err(self
                .refuse(ErrorCode::DiskTooSmall, &why)
                .hint("give a disk that is as large or larger"));
        }
        self.check_content(disk, length, room)?;
        Ok(Ends {
            left_over: if self.size.is_none() { bytes - length } else { 0 },
            metadata: if disk.meta.is_none() { free - room } else { 0 },
            spare,
        })
    }

    /// Checks an export of another machine.
    fn check_remote(&self, disk: &LocalDisk, uri: NbdUri) -> Result<Ends, ApiError> {
        let shown = disk.path.display();
        self.check_free(&disk.path, "the disk")?;
        let (size, start) = remote::look(uri, LOOKED_AT).map_err(|why| {
            let why = format!("the disk {shown} cannot be used: {why}");
            self.refuse(ErrorCode::DiskUnusable, &why)
        })?;
        let room = size / BLOCK_SIZE * BLOCK_SIZE;
        let needs = self.size.unwrap_or(BLOCK_SIZE);
        if needs > room {
            let why = format!(
                "the disk {shown} is too small: it has {room} bytes, the resource needs {needs}"
            );
            return Err(self
                .refuse(ErrorCode::DiskTooSmall, &why)
                .hint("give a disk that is as large or larger"));
        }
        if self.existing == Existing::OverwriteUnknown
            && let Some(found) = signature_in(&start)
        {
            return Err(self.overwrites(&disk.path, found.what));
        }
        let left_over = if self.size.is_none() { size - room } else { 0 };
        Ok(Ends { left_over, ..Ends::default() })
    }

    fn overwrites(&self, disk: &Path, what: &str) -> ApiError {
        let why = format!(
            "the disk {} holds {what}, which would be overwritten with the data of the resource",
            disk.display()
        );
        self.refuse(ErrorCode::DiskHoldsData, &why)
            .hint("choose another disk; if nobody needs what is on it, add --force")
    }

    /// That nothing is destroyed that somebody may need. The disk has `length` bytes, of which the
    /// resource can have `room`.
    fn check_content(&self, disk: &LocalDisk, length: u64, room: u64) -> Result<(), ApiError> {
        let shown = disk.path.display();
        let found = match self.existing {
            Existing::Overwrite => None,
            Existing::Keep if disk.meta.is_some() && self.spares.region.is_none() => None,
            Existing::Keep | Existing::OverwriteUnknown => signature_of(&disk.path),
        };
        let Some(found) = found else { return Ok(()) };
        let what = found.what;
        if self.existing == Existing::OverwriteUnknown {
            return Err(self.overwrites(&disk.path, what));
        }
        if found.end.unwrap_or(length) <= room {
            return Ok(());
        }
        if disk.meta.is_some() {
            let why = format!(
                "the disk {shown} holds {what} that goes to where its spare would be, at its end"
            );
            return Err(self
                .refuse(ErrorCode::DiskHoldsData, &why)
                .hint("shrink it first, or put the spare elsewhere: --spare PATH"));
        }
        let why = format!(
            "the disk {shown} holds {what} that goes to where its metadata would be, at its end"
        );
        Err(self.refuse(ErrorCode::MetadataExists, &why).hint(
            "shrink it first, or put the metadata elsewhere: into a file with --meta PATH, or leave \
             --meta away",
        ))
    }

    /// That it is not among the files of the node itself.
    fn check_foreign(&self, path: &Path, what: &str) -> Result<(), ApiError> {
        let dir = fs::canonicalize(&self.state_dir).unwrap_or_else(|_| self.state_dir.clone());
        if !real_place(path).starts_with(&dir) {
            return Ok(());
        }
        let why =
            format!("{what} {} is in the state directory, which is the node's own", path.display());
        let hint = format!("choose a path outside of {}", dir.display());
        Err(self.refuse(ErrorCode::InvalidPath, &why).hint(hint))
    }

    /// That no other resource of this node has the path.
    fn check_free(&self, path: &Path, what: &str) -> Result<(), ApiError> {
        for used in &self.used {
            let spares = used.disk.spares.iter().filter_map(LocalSpare::path);
            let paths = [Some(used.disk.path.as_path()), used.disk.meta.as_deref()];
            let mut paths = paths.into_iter().flatten().chain(spares);
            let hit = paths.any(|p| p == path || same_object(p, path));
            if hit {
                let why =
                    format!("{what} {} belongs to {} of this node", path.display(), used.owner);
                return Err(self.refuse(ErrorCode::DiskBusy, &why).hint(used.owner.way_out()));
            }
        }
        Ok(())
    }
}

impl Checked {
    /// Makes file and metadata, with room for the bitmaps of the other members. `begin` is called when
    /// nothing but the file was written, and what is in the way of the spares was looked for.
    ///
    /// # Errors
    /// What failed, or `begin` says; a file that had been made is gone again then.
    pub(crate) fn prepare(
        self,
        node: NodeId,
        others: &[NodeId],
        content: InitialContent,
        begin: impl FnOnce(&LocalDisk) -> Result<(), ApiError>,
    ) -> Result<Prepared, ApiError> {
        let Self { wanted, mut disk, make_file, ends } = self;
        if disk.meta.as_ref().is_some_and(|meta| meta.starts_with(&wanted.state_dir)) {
            let dir = wanted.state_dir.join("meta");
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(|error| {
                let why = format!("{} cannot be made: {error}", dir.display());
                wanted.refuse(ErrorCode::Internal, &why)
            })?;
        }
        if let Some(length) = make_file {
            holdfast_store::create_file(&disk.path, length).map_err(|e| refuse::disk(&e))?;
        }
        let made_file = make_file.is_some();
        let (what, resource) = (wanted.what, wanted.resource);
        let planned = wanted.spares;
        let spares = match planned.is_empty() {
            true => None,
            false => {
                Some(NewSpares { id: spares::new_disk_id()?, region: planned.region.unwrap_or(0) })
            }
        };
        let new = CreateMetadata {
            disk: disk.spec(),
            size: wanted.size,
            resource,
            node,
            al_extents: wanted.al_extents,
            slots: Some(SLOTS),
            content,
            spares,
        };
        let fail = |error: ApiError| {
            Err(ApiError { message: format!("{what}: {}", error.message), ..error })
        };
        // What is refused for want of a spare has overwritten nothing.
        let made = || {
            if !planned.is_empty() {
                let region = region_for(&new).map_err(|error| refuse::metadata(&error))?;
                spares::check_places(&disk.path, region, &planned.paths, planned.force)?;
                let region =
                    region.map(|range| LocalSpare::Region { offset: range.offset, len: range.len });
                let paths = planned.paths.iter().cloned().map(LocalSpare::Path);
                disk.spares = region.into_iter().chain(paths).collect();
            }
            begin(&disk)?;
            create_metadata(&new).map_err(|error| refuse::metadata(&error))
        };
        let size = match made() {
            Ok(size) => size,
            Err(error) => {
                if made_file {
                    remove_file(&disk.path);
                }
                return fail(error);
            }
        };
        let prepared = Prepared { disk, size, ends, resource, made_file };
        if let Some(NewSpares { id, .. }) = spares
            && let Err(error) = spares::make(&prepared.disk.spec(), resource, id, planned.force)
        {
            prepared.undo();
            return fail(error);
        }
        if let Err(full) = room::reserve(&prepared.disk, resource, others) {
            prepared.undo();
            return fail(full.here());
        }
        Ok(prepared)
    }
}

impl Checked {
    /// Makes the file, if it is not there; no metadata. Whether it was made.
    ///
    /// # Errors
    /// When it could not be made.
    pub(crate) fn prepare_data(self) -> Result<(LocalDisk, bool), ApiError> {
        let Self { wanted, disk, make_file, .. } = self;
        if let Some(length) = make_file {
            holdfast_store::create_file(&disk.path, length).map_err(|error| {
                let error = refuse::disk(&error);
                ApiError { message: format!("{}: {}", wanted.what, error.message), ..error }
            })?;
        }
        Ok((disk, make_file.is_some()))
    }
}

impl Prepared {
    /// Takes back what was made.
    pub(crate) fn undo(&self) {
        give_up(&self.disk, &self.disk.spec(), self.resource);
        if self.made_file {
            remove_file(&self.disk.path);
        }
    }
}

/// Makes the metadata of a disk anew: what is on it is current, and begins a generation. Blocks.
///
/// # Errors
/// When they cannot be written; there may be none then.
pub(crate) fn renew_metadata(
    disk: &LocalDisk,
    resource: ResourceId,
    node: NodeId,
    size: u64,
    al_extents: u16,
    others: &[NodeId],
    content: InitialContent,
) -> Result<(), ApiError> {
    // Its spares hold parts of the data, so it keeps them, and they stay where they are.
    let spec = disk.spec();
    let length = length_of(&disk.path).unwrap_or(0);
    let id = spares::disk_id(&spec, length, resource);
    let region = disk.spares.iter().map(LocalSpare::region_len).sum();
    wipe(disk, resource);
    create_metadata(&CreateMetadata {
        disk: spec,
        size: Some(size),
        resource,
        node,
        al_extents,
        slots: Some(SLOTS),
        content,
        spares: id.map(|id| NewSpares { id, region }),
    })
    .map_err(|error| refuse::metadata(&error))?;
    room::reserve(disk, resource, others).map_err(|full| full.here())
}

/// Where the metadata of a resource are when nobody says.
pub(crate) fn own_meta(state_dir: &Path, resource: ResourceId) -> PathBuf {
    state_dir.join("meta").join(meta_name(resource))
}

/// Ends the use of a disk for a resource: what is in its spares goes back onto it, as far as it takes
/// it, and the spares and the metadata are given up. What cannot be done is left, and said in the log.
pub(crate) fn give_up(disk: &LocalDisk, spec: &DiskSpec, resource: ResourceId) {
    if !spec.spares.is_empty() {
        spares::end(spec, resource);
    }
    wipe(disk, resource);
}

/// The same for a disk that was never used, and that may not be finished. Spares that hold something all
/// the same are kept.
pub(crate) fn take_back(disk: &LocalDisk, resource: ResourceId) {
    spares::retire_unused(&disk.spec(), resource);
    wipe(disk, resource);
}

/// The same for a disk whose data are of no use any more.
pub(crate) fn abandon(disk: &LocalDisk, resource: ResourceId) {
    if !disk.spares.is_empty() {
        spares::retire_all(&disk.spec(), resource);
    }
    wipe(disk, resource);
}

/// Removes the metadata of a resource, so that its disk can be used for another. The data stay.
/// What cannot be removed is left, and said in the log.
pub(crate) fn wipe(disk: &LocalDisk, resource: ResourceId) {
    let path = disk.meta.as_ref().unwrap_or(&disk.path);
    if let Err(error) = try_wipe(disk, path, resource) {
        tracing::warn!("the metadata in {} were not removed: {error}", path.display());
    }
}

fn try_wipe(disk: &LocalDisk, path: &Path, resource: ResourceId) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let placement = placement(disk)?;
    // A file that has its name is its own, even if it was never finished.
    let mut ours = path.file_name().is_some_and(|name| *name == *meta_name(resource));
    for copy in 0..2 {
        let at = placement.superblock_offset(copy).map_err(io::Error::other)?;
        let mut block: Block = [0; BLOCK_LEN];
        let read = file.read_exact_at(&mut block, at);
        let found = read.ok().and_then(|()| Superblock::decode(&block, copy).ok());
        if found.is_some_and(|superblock| superblock.resource == resource) {
            ours = true;
            file.write_all_at(&[0; BLOCK_LEN], at)?;
        }
    }
    file.sync_all()?;
    if ours && disk.meta.is_some() && file.metadata()?.is_file() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Where in its file the metadata of a disk are.
fn placement(disk: &LocalDisk) -> io::Result<Placement> {
    Ok(match disk.meta {
        Some(_) => Placement::External { base: 0 },
        None => Placement::Internal { device_len: length_of(&disk.path)? },
    })
}

pub(crate) fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!("{} was not removed: {error}", path.display());
    }
}

/// Has the metadata of a disk say that it has no spares, if they say that it has some.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn unmark(disk: &LocalDisk, resource: ResourceId) -> Result<(), String> {
    let size = if disk.meta.is_some() { 0 } else { length_of(&disk.path).unwrap_or(0) };
    spares::unmark(&disk.spec(), size, resource).map_err(|error| error.to_string())
}

/// Where a path leads to, as far as it exists.
fn real_place(path: &Path) -> PathBuf {
    let parent = || path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    fs::canonicalize(path)
        .ok()
        .or_else(|| Some(parent()?.join(path.file_name()?)))
        .unwrap_or_else(|| path.to_owned())
}

fn bytes_of(path: &Path) -> io::Result<u64> {
    File::open(path)?.seek(SeekFrom::End(0))
}

pub(crate) fn length_of(path: &Path) -> io::Result<u64> {
    Ok(bytes_of(path)? / BLOCK_SIZE * BLOCK_SIZE)
}

/// Whose internal metadata are at the end of a disk.
fn internal_owner(path: &Path, device_len: u64) -> Option<ResourceId> {
    let file = File::open(path).ok()?;
    (0..2).find_map(|copy| {
        let at = Placement::Internal { device_len }.superblock_offset(copy).ok()?;
        let mut block: Block = [0; BLOCK_LEN];
        file.read_exact_at(&mut block, at).ok()?;
        Superblock::decode(&block, copy).ok().map(|superblock| superblock.resource)
    })
}

/// Whether two paths lead to the same file or device.
pub(crate) fn same_object(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some(if found.file_type().is_block_device() {
            (true, found.rdev(), 0)
        } else {
            (false, found.dev(), found.ino())
        })
    };
    id(one).is_some_and(|a| id(other) == Some(a))
}

/// The loop device that has this file, which its users would write to behind our back.
fn loop_device_of(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") {
            continue;
        }
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if backing.is_ok_and(|backing| Path::new(backing.trim_end_matches('\n')) == path) {
            return Some(format!("/dev/{name}"));
        }
    }
    None
}

pub(crate) mod growth;
pub(crate) mod room;
mod signature;
mod spare;
#[cfg(test)]
mod tests;
