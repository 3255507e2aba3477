//! The manifest: what the archive of a resource consists of.
//!
//! JSON, and behind it a line with the SHA-256 of all before that line. It is the only object that
//! is ever replaced. An object that it does not name does not count.

use crate::digest::Digest;
use crate::index::PART_CHUNKS;
use crate::names;
use crate::piece::CHUNK;
use bytes::Bytes;
use holdfast_format::MAX_DEVICE_SIZE;
use holdfast_format::journal::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentLink};
use holdfast_units::{BLOCK_SIZE, HybridTime, LogPosition, NodeId, ResourceId};
use serde::{Deserialize, Serialize};

/// The version of the format that is written, and the newest that is read.
const VERSION: u32 = 1;
/// No manifest is longer, in bytes.
pub(crate) const MAX_MANIFEST: u64 = 64 << 20;
/// No object of the journal is longer, in bytes: one is held in memory.
pub(crate) const MAX_LOG_OBJECT: u64 = 16 << 20;
/// Positions and lengths stay below this, so that sums fit.
const MAX_NUMBER: u64 = 1 << 62;

/// What the archive of a resource consists of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format.
    holdfast_archive: u32,
    /// The id of the resource, in hexadecimal digits.
    resource: String,
    /// Up by one with each replacement.
    pub sequence: u64,
    /// Parts of the journal without gaps, oldest first.
    pub lines: Vec<Line>,
}

/// A part of the journal without gaps, and the base images to it. A new one begins when the
/// journal was begun anew, went on from another state, or lost what was not archived yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number; later lines have greater ones.
    pub number: u32,
    /// What was completed until then is in the archive: a hybrid time.
    pub complete: u64,
    /// How large the disk was, oldest first.
    pub sizes: Vec<SizeAt>,
    /// The segments, oldest first.
    pub segments: Vec<Segment>,
    /// The base images, oldest first.
    pub bases: Vec<Base>,
    /// The base image that is being made.
    pub pending: Option<Pending>,
}

/// The size of the disk from a position on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeAt {
    /// From here on.
    pub position: u64,
    /// In bytes.
    pub bytes: u64,
}

/// A segment of the journal: its file in objects, one behind the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// As in its header.
    pub number: u64,
    /// As in its header.
    pub origin: u8,
    /// As in its header.
    pub epoch: u64,
    /// As in its header.
    pub base: u64,
    /// As in its header: a hybrid time.
    pub time: u64,
    /// As in its header, in hexadecimal digits.
    pub chain: String,
    /// As in its header.
    pub alignment: u32,
    /// Its bytes, at least up to the end of its first frame.
    pub objects: Vec<LogObject>,
}

/// Some bytes of a segment's file: whole frames, and the header before the first one. Of a segment
/// without a frame it is the header alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogObject {
    /// Where in the file it ends; it begins where the one before it ends.
    pub end: u64,
    /// The time of its newest record: a hybrid time; 0 without one.
    pub time: u64,
    /// The epoch of its last frame; that of the segment without one.
    pub epoch: u64,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
}

/// An image of the disk. With the records from `from` up to any position that is not before
/// `ready` it is the state at that position.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Everything before this position is in it.
    pub from: u64,
    /// Nothing from this position on is in it.
    pub ready: u64,
    /// When it was ready: a hybrid time.
    pub time: u64,
    /// The size of the disk, in bytes.
    pub bytes: u64,
    /// The bytes of its pieces' objects.
    pub stored: u64,
    /// The SHA-256 of each part of its index.
    pub parts: Vec<Digest>,
}

/// A base image that is being made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// As of a base image.
    pub from: u64,
    /// As of a base image.
    pub bytes: u64,
    /// As of a base image, so far.
    pub stored: u64,
    /// As of a base image, so far.
    pub parts: Vec<Digest>,
}

impl Manifest {
    /// That of a new archive.
    #[must_use]
    pub fn new(resource: ResourceId) -> Self {
        Self {
            holdfast_archive: VERSION,
            resource: resource.to_string(),
            sequence: 0,
            lines: Vec::new(),
        }
    }

    /// Whose archive it is.
    #[must_use]
    pub fn resource(&self) -> ResourceId {
        // `decode` takes no other, `new` makes no other.
        self.resource.parse().unwrap_or_default()
    }

    /// The bytes of the object.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Plain structs of numbers and strings always encode.
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(digest.to_string().as_bytes());
        bytes.push(b'\n');
        bytes.into()
    }

    /// Reads the object.
    ///
    /// # Errors
    /// What is wrong with it, to complete a sentence.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        const TAIL: usize = 65;
        let at = bytes.len().checked_sub(TAIL).ok_or("it is too short")?;
        let (body, tail) = bytes.split_at(at);
        if tail != format!("{}\n", Digest::of(body)).as_bytes() {
            return Err("it does not fit its checksum".into());
        }
        #[derive(Deserialize)]
        struct Head {
            holdfast_archive: u32,
        }
        let head: Head = serde_json::from_slice(body).map_err(|why| why.to_string())?;
        if head.holdfast_archive != VERSION {
            let found = head.holdfast_archive;
            return Err(format!(
                "it has format version {found}, and this program knows version {VERSION}"
            ));
        }
        let manifest: Self = serde_json::from_slice(body).map_err(|why| why.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        self.resource.parse::<ResourceId>().map_err(|()| "its resource is not an id")?;
        if self.sequence >= MAX_NUMBER {
            return Err("its sequence number is impossible".into());
        }
        if self.lines.windows(2).any(|pair| pair[1].number <= pair[0].number) {
            return Err("its lines are not in order".into());
        }
        self.lines.iter().try_for_each(|line| {
            line.check().map_err(|why| format!("line {} of it cannot be: {why}", line.number))
        })
    }

    /// The line that is being written to.
    #[must_use]
    pub fn line(&self) -> Option<&Line> {
        self.lines.last()
    }
}

impl Line {
    fn check(&self) -> Result<(), String> {
        let sizes = self.sizes.iter().all(|size| is_size(size.bytes) && size.position < MAX_NUMBER);
        if !sizes || self.sizes.windows(2).any(|pair| pair[1].position < pair[0].position) {
            return Err("its sizes are impossible".into());
        }
        for segment in &self.segments {
            segment.check()?;
        }
        for pair in self.segments.windows(2) {
            if !pair[1].continues(&pair[0]) {
                let number = pair[1].number;
                return Err(format!("segment {number} does not continue the one before it"));
            }
        }
        for base in &self.bases {
            let parts = parts_of(base.bytes);
            let fits = is_size(base.bytes)
                && base.from <= base.ready
                && base.ready < MAX_NUMBER
                && base.parts.len() as u64 == parts;
            if !fits {
                return Err("a base image is impossible".into());
            }
        }
        let pending = self.pending.as_ref().is_none_or(|pending| {
            let parts = parts_of(pending.bytes);
            let begun = pending.parts.len() as u64 <= parts;
            is_size(pending.bytes) && pending.from < MAX_NUMBER && begun
        });
        if pending { Ok(()) } else { Err("its unfinished base image is impossible".into()) }
    }

    /// Where it begins as long as it has no segment: what is before that is in its oldest image.
    #[must_use]
    pub(crate) fn begin(&self) -> LogPosition {
        let pending = self.pending.as_ref().map(|pending| pending.from);
        let base = self.bases.first().map(|base| base.from);
        LogPosition(base.or(pending).unwrap_or(0))
    }

    /// The position behind the last record that is archived; `None` when none is.
    #[must_use]
    pub fn end(&self) -> Option<LogPosition> {
        self.segments.last().map(Segment::end)
    }

    /// The time of the newest record, or until when nothing more was written.
    #[must_use]
    pub fn complete_until(&self) -> HybridTime {
        let times = self.segments.iter().rev().filter_map(|segment| segment.objects.last());
        let newest = times.map(|object| object.time).find(|time| *time > 0);
        HybridTime(newest.unwrap_or(0).max(self.complete))
    }
}

impl Segment {
    /// Nothing of a segment yet.
    #[must_use]
    pub fn new(header: &SegmentHeader) -> Self {
        Self {
            number: header.number,
            origin: header.origin.number(),
            epoch: header.epoch,
            base: header.base.0,
            time: header.time.0,
            chain: ResourceId(header.chain).to_string(),
            alignment: header.alignment,
            objects: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("segment {}: {why}", self.number));
        let Some(last) = self.objects.last() else { return wrong("it has no objects") };
        if self.link().is_none() || !matches!(self.alignment, 512 | 4096) {
            return wrong("its header is impossible");
        }
        if self.base >= MAX_NUMBER || last.end >= MAX_NUMBER || self.number >= MAX_NUMBER {
            return wrong("its place is impossible");
        }
        let mut from = 0;
        for object in &self.objects {
            let least = if from == 0 { SEGMENT_HEADER_LEN } else { from + 1 };
            if object.end < least || object.end - from > MAX_LOG_OBJECT {
                return wrong("its objects have impossible lengths");
            }
            from = object.end;
        }
        if self.objects.windows(2).any(|pair| pair[1].time < pair[0].time) {
            return wrong("its objects are not in the order of their times");
        }
        Ok(())
    }

    /// What it says of itself in the chain; `None` when its fields are impossible.
    #[must_use]
    pub fn link(&self) -> Option<SegmentLink> {
        Some(SegmentLink {
            number: self.number,
            origin: NodeId::new(self.origin)?,
            epoch: self.epoch,
            base: LogPosition(self.base),
            len: self.frames(),
            time: HybridTime(self.time),
            chain: self.chain.parse::<ResourceId>().ok()?.0,
        })
    }

    /// Whether it is the one with this header.
    #[must_use]
    pub fn is(&self, header: &SegmentHeader) -> bool {
        let same = |link: SegmentLink| SegmentLink { len: 0, ..link } == header.link(0);
        self.link().is_some_and(same) && self.alignment == header.alignment
    }

    fn continues(&self, before: &Self) -> bool {
        let (Some(link), Some(before)) = (self.link(), before.link()) else { return false };
        link.number == before.number + 1
            && link.base == before.end()
            && link.chain == before.chain_after()
    }

    /// The bytes of its frames.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.objects.last().map_or(0, |object| object.end.saturating_sub(SEGMENT_HEADER_LEN))
    }

    /// The position behind its last frame.
    #[must_use]
    pub fn end(&self) -> LogPosition {
        LogPosition(self.base).after(self.frames())
    }

    /// Where its objects begin in its file, and the objects.
    pub fn objects(&self) -> impl Iterator<Item = (u64, &LogObject)> {
        let begins = std::iter::once(0).chain(self.objects.iter().map(|object| object.end));
        begins.zip(&self.objects)
    }

    /// The name of one of its objects.
    pub(crate) fn object_name(
        &self,
        archive: &str,
        line: u32,
        from: u64,
        object: &LogObject,
    ) -> String {
        names::log(archive, line, self.number, (from, object.end), &object.sha256)
    }
}

fn is_size(bytes: u64) -> bool {
    bytes <= MAX_DEVICE_SIZE && bytes.is_multiple_of(BLOCK_SIZE)
}

/// How many parts the index of a base image of so many bytes has.
pub(crate) const fn parts_of(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK).div_ceil(PART_CHUNKS)
}

#[cfg(test)]
mod tests;
