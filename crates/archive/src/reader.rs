//! An archive to read.

use crate::digest::Digest;
use crate::error::ArchiveError;
use crate::index::{IndexEntry, IndexPart, MAX_INDEX};
use crate::manifest::{Base, Line, LogObject, MAX_LOG_OBJECT, MAX_MANIFEST, Manifest, Segment};
use crate::names;
use crate::piece::{MAX_PIECE, Piece};
use crate::store::{Store, Version};
use bytes::Bytes;
use holdfast_format::journal::{FrameContext, SEGMENT_HEADER_LEN, SegmentHeader};
use holdfast_format::{BLOCK_LEN, ReadFailed};
use holdfast_journal::ReadSegments;
use holdfast_units::{LogPosition, ResourceId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;

/// So often an object that was joined with others is looked for: it can be joined again meanwhile.
const JOINED_READS: usize = 5;

/// The archive of a resource, to look at and to restore from. It may be written to meanwhile: what
/// the manifest named when it was opened is found as long as it is not given up.
#[derive(Debug)]
pub struct Archive<S> {
    pub(crate) store: S,
    pub(crate) name: String,
    pub(crate) manifest: Manifest,
    /// A later one, when an object was missing.
    newer: RefCell<Option<Manifest>>,
}

pub(crate) fn read_manifest<S: Store>(
    store: &S,
    archive: &str,
) -> Result<Option<(Manifest, Version)>, ArchiveError> {
    let name = names::manifest(archive);
    let found = store
        .get_versioned(&name, MAX_MANIFEST)
        .map_err(|why| ArchiveError::store(&name, "read", why))?;
    let Some((bytes, version)) = found else { return Ok(None) };
    let manifest = Manifest::decode(&bytes).map_err(|why| ArchiveError::Damaged { name, why })?;
    Ok(Some((manifest, version)))
}

/// The whole of an object that was named with its SHA-256.
pub(crate) fn read_object<S: Store>(
    store: &S,
    name: &str,
    digest: &Digest,
    max: u64,
) -> Result<Bytes, ArchiveError> {
    let found = match store.get(name, max) {
        Err(why) if why.kind() == io::ErrorKind::InvalidData => {
            return Err(ArchiveError::damaged(name, why.to_string()));
        }
        other => other.map_err(|why| ArchiveError::store(name, "read", why))?,
    };
    let bytes = found.ok_or_else(|| ArchiveError::Missing { name: name.to_owned() })?;
    if Digest::of(&bytes) == *digest {
        Ok(bytes)
    } else {
        Err(ArchiveError::damaged(name, "its bytes do not fit their SHA-256"))
    }
}

pub(crate) fn read_index<S: Store>(
    store: &S,
    archive: &str,
    resource: ResourceId,
    part: u64,
    digest: &Digest,
) -> Result<IndexPart, ArchiveError> {
    let name = names::index(archive, part, digest);
    let bytes = read_object(store, &name, digest, MAX_INDEX)?;
    IndexPart::decode(&bytes, resource, part).map_err(|why| ArchiveError::Damaged { name, why })
}

impl<S: Store> Archive<S> {
    /// Opens the archive of the resource of this name.
    ///
    /// # Errors
    /// [`ArchiveError::NoArchive`], or what is wrong with its manifest.
    pub fn open(store: S, name: &str) -> Result<Self, ArchiveError> {
        match read_manifest(&store, name)? {
            Some((manifest, _)) => {
                Ok(Self { store, name: name.to_owned(), manifest, newer: RefCell::new(None) })
            }
            None => {
                let others = store.archives().unwrap_or_default();
                Err(ArchiveError::NoArchive { name: name.to_owned(), others })
            }
        }
    }

    /// Whose archive it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it consists of.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn index(&self, base: &Base, part: u64) -> Result<IndexPart, ArchiveError> {
        let digest = usize::try_from(part).ok().and_then(|at| base.parts.get(at));
        let digest = digest.ok_or_else(|| {
            ArchiveError::damaged(&names::manifest(&self.name), "a base image has too few parts")
        })?;
        read_index(&self.store, &self.name, self.manifest.resource(), part, digest)
    }

    pub(crate) fn piece(
        &self,
        part: u64,
        within: usize,
        entry: &IndexEntry,
    ) -> Result<Piece, ArchiveError> {
        let name = names::piece(&self.name, part, within, &entry.digest);
        let bytes = read_object(&self.store, &name, &entry.digest, MAX_PIECE)?;
        let number = part * crate::index::PART_CHUNKS + within as u64;
        Piece::decode(&bytes, self.manifest.resource(), number)
            .map_err(|why| ArchiveError::Damaged { name, why })
    }

    pub(crate) fn log_object(
        &self,
        line: &Line,
        segment: &Segment,
        from: u64,
        object: &LogObject,
    ) -> Result<Bytes, ArchiveError> {
        let name = segment.object_name(&self.name, line.number, from, object);
        let bytes = match read_object(&self.store, &name, &object.sha256, MAX_LOG_OBJECT) {
            Err(missing @ ArchiveError::Missing { .. }) => {
                self.joined(line, segment, from, object)?.ok_or(missing)?
            }
            other => other?,
        };
        if bytes.len() as u64 == object.end - from {
            Ok(bytes)
        } else {
            Err(ArchiveError::damaged(&name, "it has not the length that the manifest says"))
        }
    }

    /// An object that was joined with its neighbours since the manifest was read, out of what they
    /// became; `None` when it was given up.
    fn joined(
        &self,
        line: &Line,
        segment: &Segment,
        from: u64,
        object: &LogObject,
    ) -> Result<Option<Bytes>, ArchiveError> {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let mut newer = self.newer.borrow_mut();
        for _ in 0..JOINED_READS {
            let lines = newer.iter().flat_map(|manifest| &manifest.lines);
            let segments = lines.filter(|now| now.number == line.number).flat_map(|l| &l.segments);
            let mut same = segments.filter(|now| now.number == segment.number);
            let holds =
                |(begins, all): &(u64, &LogObject)| *begins <= from && object.end <= all.end;
            let found = same.find_map(|now| Some((now, now.objects().find(holds)?)));
            if found.is_none() && newer.is_some() {
                // What one manifest does not name is in no later one.
                break;
            }
            let found = found.map(|(now, (begins, all))| {
                let name = now.object_name(&self.name, line.number, begins, all);
                (begins, read_object(&self.store, &name, &all.sha256, MAX_LOG_OBJECT))
            });
            let Some((begins, Ok(bytes))) = found else {
                match found {
                    None | Some((_, Err(ArchiveError::Missing { .. }))) => {}
                    Some((_, other)) => return other.map(Some),
                }
                // Joined since then, or lost.
                let known = newer.as_ref().map(|manifest| manifest.sequence);
                *newer = read_manifest(&self.store, &self.name)?.map(|(manifest, _)| manifest);
                if newer.as_ref().map(|manifest| manifest.sequence) == known {
                    break;
                }
                continue;
            };
            let part = at(from - begins)..at(object.end - begins);
            let part = bytes.get(part.clone()).map(|_| bytes.slice(part));
            // Of another writer's line with that number, if not.
            return Ok(part.filter(|part| Digest::of(part) == object.sha256));
        }
        Ok(None)
    }

    /// The header of an archived segment, which must be the one that the manifest names.
    pub(crate) fn header(
        &self,
        line: &Line,
        segment: &Segment,
    ) -> Result<SegmentHeader, ArchiveError> {
        let first = segment.objects().next();
        let (from, object) = first.ok_or_else(|| {
            ArchiveError::damaged(&names::manifest(&self.name), "a segment has no objects")
        })?;
        let bytes = self.log_object(line, segment, from, object)?;
        self.header_in(line, segment, object, &bytes)
    }

    pub(crate) fn header_in(
        &self,
        line: &Line,
        segment: &Segment,
        object: &LogObject,
        bytes: &Bytes,
    ) -> Result<SegmentHeader, ArchiveError> {
        let damaged = |why: String| {
            let name = segment.object_name(&self.name, line.number, 0, object);
            ArchiveError::Damaged { name, why }
        };
        let block = bytes.first_chunk::<BLOCK_LEN>();
        let block = block.ok_or_else(|| damaged("it is too short".into()))?;
        let header = SegmentHeader::decode(block, self.manifest.resource(), segment.number)
            .map_err(|why| damaged(why.to_string()))?;
        if segment.is(&header) {
            Ok(header)
        } else {
            Err(damaged("its header is not that of the segment that the manifest names".into()))
        }
    }

    /// What the first frame of an object must fit.
    pub(crate) fn context(header: &SegmentHeader, before: Option<&LogObject>) -> FrameContext {
        let frames = before.map_or(0, |object| object.end - SEGMENT_HEADER_LEN);
        FrameContext {
            position: header.base.after(frames),
            segment: header.number,
            epoch: before.map_or(header.epoch, |object| object.epoch),
            alignment: header.alignment,
        }
    }
}

/// So many objects of the journal are held in memory: what lies across the border of two is read
/// without fetching one of them again.
const CACHED: usize = 2;

/// The archived segments of a line, as their files were.
pub(crate) struct ArchivedSegments<'a, S> {
    archive: &'a Archive<S>,
    line: &'a Line,
    cache: RefCell<VecDeque<(u64, u64, Bytes)>>,
    /// What went wrong, with the object's name.
    error: RefCell<Option<ArchiveError>>,
}

impl<'a, S: Store> ArchivedSegments<'a, S> {
    pub(crate) fn new(archive: &'a Archive<S>, line: &'a Line) -> Self {
        let (cache, error) = (RefCell::new(VecDeque::new()), RefCell::new(None));
        Self { archive, line, cache, error }
    }

    /// What went wrong, if that was with an object.
    pub(crate) fn take_error(&self) -> Option<ArchiveError> {
        self.error.take()
    }

    /// The name of the object that holds this position.
    pub(crate) fn name_at(&self, position: LogPosition) -> String {
        let holds = |segment: &&Segment| segment.end() > position;
        let Some(segment) = self.line.segments.iter().find(holds) else {
            return names::manifest(&self.archive.name);
        };
        let at = SEGMENT_HEADER_LEN + position.since(LogPosition(segment.base));
        let object = segment.objects().find(|(_, object)| object.end > at);
        object.map_or_else(
            || names::manifest(&self.archive.name),
            |(from, object)| {
                segment.object_name(&self.archive.name, self.line.number, from, object)
            },
        )
    }

    fn object(&self, segment: &Segment, at: u64) -> Result<Option<(u64, Bytes)>, ArchiveError> {
        let mut cache = self.cache.borrow_mut();
        let hit = cache.iter().find(|(number, from, bytes)| {
            *number == segment.number && (*from..*from + bytes.len() as u64).contains(&at)
        });
        if let Some((_, from, bytes)) = hit {
            return Ok(Some((*from, bytes.clone())));
        }
        let Some((from, object)) = segment.objects().find(|(_, object)| object.end > at) else {
            return Ok(None);
        };
        if cache.len() >= CACHED {
            cache.pop_front();
        }
        let bytes = self.archive.log_object(self.line, segment, from, object)?;
        cache.push_back((segment.number, from, bytes.clone()));
        Ok(Some((from, bytes)))
    }
}

impl<S: Store> ReadSegments for ArchivedSegments<'_, S> {
    fn read_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<usize, ReadFailed> {
        let segment = self.line.segments.iter().find(|segment| segment.number == number);
        let segment = segment.ok_or_else(|| ReadFailed("it is not archived".into()))?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let found = self.object(segment, at).map_err(|error| {
                let failed = ReadFailed(error.to_string());
                self.error.replace(Some(error));
                failed
            })?;
            let Some((from, bytes)) = found else { break };
            let skip = usize::try_from(at - from).map_err(|why| ReadFailed(why.to_string()))?;
            let part = &bytes[skip..];
            let len = part.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&part[..len]);
            done += len;
        }
        Ok(done)
    }
}
