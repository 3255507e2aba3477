//! Making spares, and giving them up. Everything here blocks.

use super::open::{open_path, write_mark};
use super::{SpareSpec, SparesError, age, disk_id, identity, open_with};
use crate::local::{LocalDisk, LocalSpare};
use crate::refuse;
use crate::shard::{DiskSpec, open_backing};
use holdfast_api::words::{agreed, counted};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::remap::{EntryState, SpareId};
use holdfast_store::{
    BufferPool, Disk, LoadedSpare, OpenOptions, RemapOp, SpareAt, SpareFormat, check_spare_place,
    format_spare, is_leftover, load_spare, read_spare_header, retire_spare,
};
use holdfast_units::{ByteRange, ResourceId};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What is moved as one, in bytes: the blocks of the core.
const UNIT: u32 = 4096;
/// So much is moved back with one operation.
const STEP: u64 = 4 << 20;

/// Spares that are to be made with a disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Planned {
    /// Files and devices of their own.
    pub(crate) paths: Vec<PathBuf>,
    /// How much of the disk's own end is a spare, in bytes.
    pub(crate) region: Option<u64>,
    /// Overwrite what is on them.
    pub(crate) force: bool,
}

impl Planned {
    /// As a call asks for them.
    pub(crate) fn of(paths: &[String], region: Option<u64>, force: bool) -> Self {
        Self { paths: paths.iter().map(PathBuf::from).collect(), region, force }
    }

    /// The spares that a disk has, whose content is given up with the disk's.
    pub(crate) fn again(disk: &LocalDisk) -> Self {
        let paths = disk.spares.iter().filter_map(LocalSpare::path).map(Path::to_owned).collect();
        let region = disk.spares.iter().map(LocalSpare::region_len).sum();
        Self { paths, region: Some(region).filter(|len| *len > 0), force: true }
    }

    /// Whether there are to be none.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.region.is_none()
    }
}

/// A random identity for a disk that gets spares.
///
/// # Errors
/// When the system gives no random number.
pub(crate) fn new_disk_id() -> Result<[u8; 16], ApiError> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&crate::resource::random()?.to_le_bytes());
    id[8..].copy_from_slice(&crate::resource::random()?.to_le_bytes());
    Ok(id)
}

fn pool() -> BufferPool {
    BufferPool::new(4 << 20)
}

/// Opens a disk that nothing else uses meanwhile.
fn open_main(path: &Path) -> Result<Disk, ApiError> {
    open_backing(path, &OpenOptions::default(), &pool()).map_err(|error| refuse::disk(&error))
}

/// Formats a spare of a disk.
fn format(
    main: &mut Disk,
    spare: &SpareSpec,
    resource: ResourceId,
    id: [u8; 16],
    force: bool,
) -> Result<(), ApiError> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let format = SpareFormat {
        id: SpareId(new_disk_id()?),
        unit: UNIT,
        slots: None,
        force,
        disk_size: main.size(),
        created,
    };
    let owner = identity(resource, id);
    let made = match spare {
        SpareSpec::Region(range) => format_spare(main, Some(*range), &owner, &format),
        SpareSpec::Path(path) => {
            let mut own = open_path(path, &pool()).map_err(|error| refuse::spares(&error))?;
            format_spare(&mut own, None, &owner, &format)
        }
    };
    made.map(drop).map_err(|error| refuse::spares(&error.into()))
}

/// That the spares of a disk can be made: a region of it, and others. Takes the room for them; what is
/// there stays.
///
/// # Errors
/// What is in the way of the first one that cannot be.
pub(crate) fn check_places(
    main: &Path,
    region: Option<ByteRange>,
    paths: &[PathBuf],
    force: bool,
) -> Result<(), ApiError> {
    let check = |disk: &mut Disk, region| {
        check_spare_place(disk, region, UNIT, force).map_err(|error| refuse::spares(&error.into()))
    };
    if let Some(region) = region {
        check(&mut open_main(main)?, Some(region))?;
    }
    paths.iter().try_for_each(|path| {
        let mut own = open_path(path, &pool()).map_err(|error| refuse::spares(&error))?;
        check(&mut own, None)
    })
}

/// Makes all spares of a disk that is not in use, whose metadata name this identity.
///
/// # Errors
/// What is in the way of the first one that cannot be made; those before it are given up again.
pub(crate) fn make(
    spec: &DiskSpec,
    resource: ResourceId,
    id: [u8; 16],
    force: bool,
) -> Result<(), ApiError> {
    let mut main = open_main(&spec.path)?;
    let mut made = Vec::new();
    let mut all = || -> Result<(), ApiError> {
        for spare in &spec.spares {
            format(&mut main, spare, resource, id, force)?;
            made.push(spare);
        }
        Ok(())
    };
    let result = all();
    drop(main);
    let result = result.and_then(|()| introduce(spec, resource, id));
    if result.is_err()
        && let Ok(mut main) = open_main(&spec.path)
    {
        for spare in made {
            retire(&mut main, spare, resource, id);
        }
    }
    result
}

/// Has several spares know of each other.
fn introduce(spec: &DiskSpec, resource: ResourceId, id: [u8; 16]) -> Result<(), ApiError> {
    let owner = identity(resource, id);
    let [first @ SpareSpec::Path(_), others @ ..] = &spec.spares[..] else { return Ok(()) };
    if others.is_empty() {
        return Ok(());
    }
    let fail = |error: holdfast_store::SpareError| refuse::spares(&error.into());
    let open = |spare: &SpareSpec| match spare {
        SpareSpec::Path(path) => open_path(path, &pool()).map_err(|error| refuse::spares(&error)),
        SpareSpec::Region(_) => Err(refuse::internal("a spare was not made", &"it is a region")),
    };
    let first = vec![SpareAt::Disk(Box::new(open(first)?))];
    let mut disk = open_main(&spec.path)?.with_spares(first, &owner).map_err(fail)?;
    for other in others {
        let loaded = load_spare(open(other)?, &owner).map_err(fail)?;
        let added = disk.remap_now(RemapOp::AddSpare(loaded)).0;
        added.map_err(|error| refuse::internal("the spares were not made", &error))?;
    }
    Ok(())
}

/// Gives one spare up. What cannot be done is said in the log.
fn retire(main: &mut Disk, spare: &SpareSpec, resource: ResourceId, id: [u8; 16]) {
    let owner = identity(resource, id);
    let done = match spare {
        SpareSpec::Region(range) => retire_spare(main, Some(*range), &owner).map_err(Into::into),
        SpareSpec::Path(path) => open_path(path, &pool())
            .and_then(|mut own| retire_spare(&mut own, None, &owner).map_err(Into::into)),
    };
    if let Err(error) = done {
        tracing::warn!("the spare {} was not given up: {error}", spare.shown());
    }
}

/// Formats another spare for a disk that has some and may be in use, and reads it for the layer. What an
/// attempt that was cut off has left of one is made anew: it must not say more than the disk's own. The
/// path must be that of none that the disk uses.
///
/// # Errors
/// What is in the way.
pub(crate) fn another(
    path: &Path,
    disk_size: u64,
    resource: ResourceId,
    id: [u8; 16],
    force: bool,
) -> Result<LoadedSpare, ApiError> {
    let mut own = open_path(path, &pool()).map_err(|error| refuse::spares(&error))?;
    let owner = identity(resource, id);
    let fail = |error: holdfast_store::SpareError| refuse::spares(&error.into());
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let format = SpareFormat {
        id: SpareId(new_disk_id()?),
        unit: UNIT,
        slots: None,
        force: force || is_leftover(&mut own, None, &owner),
        disk_size,
        created,
    };
    format_spare(&mut own, None, &owner, &format).map_err(fail)?;
    load_spare(own, &owner).map_err(fail)
}

/// Makes the first spare of a disk that is not in use; the identity that the disk has by it. The
/// metadata of the disk do not say so yet.
///
/// # Errors
/// What is in the way; nothing has changed then that matters.
pub(crate) fn first(
    spec: &DiskSpec,
    path: &Path,
    resource: ResourceId,
    force: bool,
) -> Result<[u8; 16], ApiError> {
    let mut main = open_main(&spec.path)?;
    let id = new_disk_id()?;
    let spare = SpareSpec::Path(path.to_owned());
    format(&mut main, &spare, resource, id, force)?;
    Ok(id)
}

/// Opens a disk that is not in use with its spares, and makes another one for it; `None` when the disk
/// has that already.
///
/// # Errors
/// What is in the way.
pub(crate) fn with_another(
    spec: &DiskSpec,
    path: &Path,
    resource: ResourceId,
    force: bool,
) -> Result<Option<(Disk, LoadedSpare)>, ApiError> {
    let main = open_main(&spec.path)?;
    let size = main.size();
    let id = identity_of(spec, size, resource)?;
    let disk = open_with(main, spec, resource, &pool()).map_err(|error| refuse::spares(&error))?;
    if disk.spares().iter().any(|spare| spare.path.as_deref() == Some(path)) {
        return Ok(None);
    }
    let loaded = another(path, size, resource, id, force)?;
    Ok(Some((disk, loaded)))
}

/// Adds a spare to those of a disk that is not in use.
///
/// # Errors
/// What is in the way.
pub(crate) fn add_offline(mut disk: Disk, loaded: LoadedSpare) -> Result<(), ApiError> {
    let added = disk.remap_now(RemapOp::AddSpare(loaded)).0;
    added.map_err(|error| refuse::internal("the spare was not made", &error))
}

fn identity_of(spec: &DiskSpec, size: u64, resource: ResourceId) -> Result<[u8; 16], ApiError> {
    disk_id(spec, size, resource).ok_or_else(|| {
        ApiError::new(
            ErrorCode::MetadataInvalid,
            "the metadata of the disk cannot be read, or say that it has no spares",
        )
    })
}

/// Whether a disk that is not in use has this spare of those that are listed: its own header says so where
/// it can be read, and those of all others. Nothing is written.
///
/// # Errors
/// Why that cannot be told.
pub(crate) fn is_member(
    spec: &DiskSpec,
    path: &Path,
    resource: ResourceId,
) -> Result<bool, ApiError> {
    let mut main = open_main(&spec.path)?;
    let id = identity_of(spec, main.size(), resource)?;
    let (mut spares, mut own) = (Vec::new(), None);
    for spare in &spec.spares {
        let other = match spare {
            SpareSpec::Region(range) => SpareAt::Region(*range),
            SpareSpec::Path(at) if at == path => {
                let Ok(mut disk) = open_path(at, &pool()) else { continue };
                match read_spare_header(&mut disk, None) {
                    Ok(found) if found.resource == resource && found.disk == id => {
                        own = Some(found.spare);
                    }
                    _ => continue,
                }
                SpareAt::Disk(Box::new(disk))
            }
            SpareSpec::Path(at) => {
                let disk = open_path(at, &pool()).map_err(|error| refuse::spares(&error))?;
                SpareAt::Disk(Box::new(disk))
            }
        };
        spares.push(other);
    }
    let noted = spec.spare_writes.as_deref().map(age::read).unwrap_or_default();
    let members = main.spare_members(&mut spares, &identity(resource, id), &noted);
    let members = members.map_err(|error| refuse::spares(&SparesError::of(error, spec)))?;
    // A disk that has had spares has one, though no other one can say which.
    Ok(members.is_empty() || own.is_some_and(|own| members.contains(&own)))
}

/// Has the metadata of a disk that is not in use say that it has spares, durably.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn mark(spec: &DiskSpec, resource: ResourceId, id: [u8; 16]) -> Result<(), ApiError> {
    let main = open_main(&spec.path)?;
    write_mark(spec, main.size(), resource, Some(id)).map_err(|error| refuse::spares(&error))
}

/// Ends the use of the spares of a disk that is not in use: what they hold goes back onto the disk,
/// then they are given up. Where blocks do not go back, the spares stay as they are, and the log says
/// so: nobody's data are thrown away. How many blocks those are.
pub(crate) fn end(spec: &DiskSpec, resource: ResourceId) -> u64 {
    match try_end(spec, resource) {
        Ok(0) => 0,
        Ok(left) => {
            let places: Vec<String> = spec.spares.iter().map(SpareSpec::shown).collect();
            tracing::error!(
                "{} of the resource {resource} {} not on its disk {}, which does not take {them}: \
                 {} in {}",
                counted(left, "block"),
                agreed(left, "is", "are"),
                spec.path.display(),
                agreed(left, "it stays", "they stay"),
                places.join(", "),
                them = agreed(left, "it", "them"),
            );
            left
        }
        Err(error) => {
            tracing::warn!(
                "the spares of {} were not given up: {}",
                spec.path.display(),
                error.message
            );
            0
        }
    }
}

/// Gives up the spares of a disk that is not in use, with what they hold.
pub(crate) fn retire_all(spec: &DiskSpec, resource: ResourceId) {
    let Ok(mut main) = open_main(&spec.path) else { return };
    let Some(id) = disk_id(spec, main.size(), resource) else { return };
    for spare in &spec.spares {
        retire(&mut main, spare, resource, id);
    }
}

/// The same for a disk that is not that of the resource any more, and whose metadata may be gone.
pub(crate) fn retire_of_old(spec: &DiskSpec, resource: ResourceId) {
    for spare in &spec.spares {
        let retired = match spare {
            SpareSpec::Path(path) => {
                open_path(path, &pool()).and_then(|mut own| retire_own(&mut own, None, resource))
            }
            SpareSpec::Region(range) => match open_main(&spec.path) {
                Ok(mut main) => retire_own(&mut main, Some(*range), resource),
                // What is broken cannot be written.
                Err(_) => Ok(()),
            },
        };
        if let Err(error) = retired {
            tracing::warn!("the spare {} was not given up: {error}", spare.shown());
        }
    }
}

/// Gives up those spares of a disk that were made and hold nothing. They may not be finished.
pub(crate) fn retire_unused(spec: &DiskSpec, resource: ResourceId) {
    for spare in &spec.spares {
        let (path, region) = match spare {
            SpareSpec::Path(path) => (path, None),
            SpareSpec::Region(range) => (&spec.path, Some(*range)),
        };
        let Ok(mut disk) = open_path(path, &pool()) else { continue };
        let Ok(found) = read_spare_header(&mut disk, region) else { continue };
        let owner = identity(resource, found.disk);
        if !is_leftover(&mut disk, region, &owner) {
            continue;
        }
        if let Err(error) = retire_own(&mut disk, region, resource) {
            tracing::warn!("the spare {} was not given up: {error}", spare.shown());
        }
    }
}

/// Gives up a spare that says itself of which disk of the resource it is.
fn retire_own(
    spare: &mut Disk,
    region: Option<ByteRange>,
    resource: ResourceId,
) -> Result<(), SparesError> {
    let found = read_spare_header(spare, region)?;
    if found.resource != resource || found.retired {
        return Ok(());
    }
    Ok(retire_spare(spare, region, &identity(resource, found.disk))?)
}

fn try_end(spec: &DiskSpec, resource: ResourceId) -> Result<u64, ApiError> {
    let main = open_main(&spec.path)?;
    let size = main.size();
    let Some(id) = disk_id(spec, size, resource) else { return Ok(0) };
    let mut disk =
        open_with(main, spec, resource, &pool()).map_err(|error| refuse::spares(&error))?;
    let mapped = mapped(&disk);
    let mut left = 0;
    for range in mapped {
        let (result, report) = disk.remap_now(RemapOp::MoveBack { range });
        if result.is_err() {
            left += range.len / u64::from(UNIT) - report.in_place.min(range.len / u64::from(UNIT));
        }
    }
    if left > 0 {
        return Ok(left);
    }
    drop(disk);
    let mut main = open_main(&spec.path)?;
    for spare in &spec.spares {
        retire(&mut main, spare, resource, id);
    }
    Ok(0)
}

/// What is in the spares of a disk, sorted, in runs that are moved with one operation.
fn mapped(disk: &Disk) -> Vec<ByteRange> {
    let entries = disk.remap_entries().filter(|entry| entry.state == EntryState::Mapped);
    let mut ranges: Vec<ByteRange> = entries.map(|entry| entry.range).collect();
    ranges.sort_unstable_by_key(|range| range.offset);
    let mut runs: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match runs.last_mut() {
            Some(run) if run.end() == range.offset && run.len < STEP => run.len += range.len,
            _ => runs.push(range),
        }
    }
    runs
}
