//! Reading an archive from end to end.

use crate::error::ArchiveError;
use crate::frames::Frames;
use crate::index::{IndexPart, PART_CHUNKS};
use crate::manifest::{Base, Line, Segment};
use crate::names;
use crate::reader::Archive;
use crate::store::Store;
use holdfast_format::journal::SEGMENT_HEADER_LEN;
use holdfast_units::HybridTime;
use std::collections::BTreeSet;

/// So many faults are told; more are counted.
const MAX_FAULTS: usize = 100;

/// What is wrong with an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// A whole sentence that names the object, without its full stop.
    pub what: String,
}

/// What a verification found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Verified {
    /// The objects that are whole.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong; the first hundred.
    pub faults: Vec<Fault>,
    /// All that is wrong.
    pub fault_count: u64,
}

impl Verified {
    fn good(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn bad(&mut self, error: &ArchiveError) {
        self.fault_count += 1;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault { what: error.to_string() });
        }
    }
}

impl<S: Store> Archive<S> {
    /// Reads every object that the manifest names, and verifies every checksum: what a restore of
    /// any moment would read. `tell` is told the bytes that were read so far.
    #[must_use]
    pub fn verify(&self, tell: &mut dyn FnMut(u64)) -> Verified {
        let mut found = Verified::default();
        // Pieces that several base images share are read once.
        let mut seen = BTreeSet::new();
        for line in &self.manifest.lines {
            for segment in &line.segments {
                self.verify_segment(line, segment, &mut found);
                tell(found.bytes);
            }
        }
        let parts = self.manifest.lines.iter().flat_map(|line| &line.bases);
        let parts = parts.map(|base| base.parts.len() as u64).max().unwrap_or(0);
        for part in 0..parts {
            seen.clear();
            for base in self.manifest.lines.iter().flat_map(|line| &line.bases) {
                self.verify_part(base, part, &mut seen, &mut found, tell);
            }
        }
        found
    }

    fn verify_segment(&self, line: &Line, segment: &Segment, found: &mut Verified) {
        let mut before = None;
        let mut header = None;
        for (from, object) in segment.objects() {
            let result = self.log_object(line, segment, from, object).and_then(|bytes| {
                if from == 0 {
                    header = Some(self.header_in(line, segment, object, &bytes)?);
                }
                // Without its header the frames cannot be told; that is a fault already.
                let Some(header) = &header else { return Ok(bytes) };
                let skip = if from == 0 { SEGMENT_HEADER_LEN } else { 0 };
                let frames = bytes.slice(usize::try_from(skip).unwrap_or(usize::MAX)..);
                let context = Self::context(header, before);
                let mut row = Frames::new(&frames, context, HybridTime(0));
                let why = match row.take_all() {
                    Err(why) => Some(why.to_string()),
                    Ok(()) if row.taken < frames.len() => Some("its last frame is cut off".into()),
                    Ok(()) => None,
                };
                why.map_or(Ok(bytes), |why| {
                    let name = segment.object_name(&self.name, line.number, from, object);
                    Err(ArchiveError::Damaged { name, why })
                })
            });
            match result {
                Ok(bytes) => found.good(bytes.len() as u64),
                Err(error) => found.bad(&error),
            }
            before = Some(object);
        }
    }

    fn verify_part(
        &self,
        base: &Base,
        part: u64,
        seen: &mut BTreeSet<(usize, crate::Digest)>,
        found: &mut Verified,
        tell: &mut dyn FnMut(u64),
    ) {
        if base.parts.len() as u64 <= part {
            return;
        }
        let index = self.index(base, part).and_then(|index| self.check_count(base, index));
        let index = match index {
            Ok(index) => index,
            Err(error) => return found.bad(&error),
        };
        found.good(index.encode(self.manifest.resource()).len() as u64);
        for (within, entry) in index.entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            if !seen.insert((within, entry.digest)) {
                continue;
            }
            match self.piece(part, within, entry) {
                Ok(_) => found.good(entry.bytes),
                Err(error) => found.bad(&error),
            }
            tell(found.bytes);
        }
    }

    /// An index must list all pieces of its part of the disk.
    pub(crate) fn check_count(
        &self,
        base: &Base,
        index: IndexPart,
    ) -> Result<IndexPart, ArchiveError> {
        let chunks = base.bytes.div_ceil(crate::piece::CHUNK);
        let chunks = chunks.saturating_sub(index.number * PART_CHUNKS).min(PART_CHUNKS);
        if index.entries.len() as u64 == chunks {
            return Ok(index);
        }
        let digest = usize::try_from(index.number).ok().and_then(|at| base.parts.get(at));
        let name = digest.map(|digest| names::index(&self.name, index.number, digest));
        Err(ArchiveError::damaged(&name.unwrap_or_default(), "it lists too few or too many pieces"))
    }
}
