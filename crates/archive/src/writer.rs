//! Writing to an archive.

use crate::digest::Digest;
use crate::error::ArchiveError;
use crate::frames::Frames;
use crate::index::{IndexEntry, IndexPart, PART_CHUNKS};
use crate::manifest::{
    Base, Line, LogObject, MAX_LOG_OBJECT, MAX_MANIFEST, Manifest, Pending, Segment, SizeAt,
};
use crate::names;
use crate::piece::{CHUNK, Piece};
use crate::reader::{Archive, read_index, read_manifest, read_object};
use crate::retention::Keep;
use crate::source::{READ_MAX, Source, SourceError};
use crate::store::{Store, Version};
use bytes::{Bytes, BytesMut};
use holdfast_format::journal::{Compression, SEGMENT_HEADER_LEN, SegmentHeader};
use holdfast_units::{BLOCK_SIZE, ByteRange, HybridTime, LogPosition, ResourceId};
use std::collections::BTreeSet;
use std::time::SystemTime;

/// An object of the journal is ended when it has so many bytes.
const LOG_OBJECT: usize = 8 << 20;
/// The manifest is written after so many bytes of new objects, so that not more is copied again.
const COMMIT_BYTES: u64 = 128 << 20;
/// So many small objects at the end of a segment are made one.
const JOIN: usize = 16;
/// What is small: objects are joined with others that are not much larger, so that each byte is
/// written again a few times at most.
const SMALL: [u64; 3] = [64 << 10, 1 << 20, MAX_LOG_OBJECT];

/// So many objects are removed before it is looked at again whether somebody took over.
const SWEEP: usize = 64;

/// What [`Writer::follow`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Followed {
    /// So many bytes of the journal were copied.
    pub bytes: u64,
    /// The journal does not continue what is archived: a new line was begun, and no moment from
    /// now on can be restored until its base image is finished.
    pub new_line: bool,
}

/// How far a base image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BaseProgress {
    /// The bytes of the disk that were copied.
    pub done: u64,
    /// The bytes of the disk.
    pub total: u64,
    /// Whether it is finished: moments from now on can be restored.
    pub finished: bool,
}

/// Writes to the archive of a resource. After an error open it anew: what was not finished is
/// done again or goes on.
#[derive(Debug)]
pub struct Writer<S> {
    store: S,
    name: String,
    manifest: Manifest,
    version: Version,
    compression: Compression,
    /// The entries so far of the part of the index that comes next.
    part: Vec<Option<IndexEntry>>,
    /// The bytes of their objects.
    part_stored: u64,
    /// Whether the newest line was begun by this writer, so that it is known to continue while it
    /// has no segment.
    began: bool,
    /// Objects that the next manifest does not name any more.
    dropped: Vec<String>,
    /// Bytes of objects since the manifest was written.
    uncommitted: u64,
    /// The manifest shall not have more bytes.
    most: u64,
    /// Base images that were given up so that it does not.
    given_up: usize,
}

impl<S: Store> Writer<S> {
    /// Opens the archive of a resource, or begins it. Whoever had it open before is refused from
    /// now on.
    ///
    /// # Errors
    /// When it is another resource's, or cannot be read or written.
    pub fn open(store: S, name: &str, resource: ResourceId) -> Result<Self, ArchiveError> {
        let (manifest, version) = match read_manifest(&store, name)? {
            Some((manifest, version)) => (manifest, Some(version)),
            None => (Manifest::new(resource), None),
        };
        if manifest.resource() != resource {
            let found = manifest.resource().to_string();
            return Err(ArchiveError::Foreign { name: name.to_owned(), found });
        }
        let mut writer = Self {
            store,
            name: name.to_owned(),
            manifest,
            version: Version(String::new()),
            compression: Compression::Zstd,
            part: Vec::new(),
            part_stored: 0,
            began: false,
            dropped: Vec::new(),
            uncommitted: 0,
            most: MAX_MANIFEST / 8 * 7,
            given_up: 0,
        };
        writer.replace(version.as_ref())?;
        Ok(writer)
    }

    /// Keeps the manifest below so many bytes, less than what can be read: the oldest moments are
    /// given up for that.
    pub const fn limit_manifest(&mut self, bytes: u64) {
        self.most = bytes;
    }

    /// How many base images were given up because the manifest had no room for them, since this was
    /// asked last.
    pub const fn given_up(&mut self) -> usize {
        std::mem::replace(&mut self.given_up, 0)
    }

    /// What the archive consists of.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The store and nothing else.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    /// Everything before this position is archived, so that the journal need not keep it for the
    /// archive. `None` when nothing is archived.
    #[must_use]
    pub fn archived(&self) -> Option<LogPosition> {
        let line = self.manifest.line()?;
        Some(line.end().unwrap_or_else(|| line.begin()))
    }

    /// When the newest base image was finished; `None` while the newest line has none.
    #[must_use]
    pub fn newest_base(&self) -> Option<HybridTime> {
        self.manifest.line()?.bases.last().map(|base| HybridTime(base.time))
    }

    /// Whether a base image is being made.
    #[must_use]
    pub fn base_pending(&self) -> bool {
        self.manifest.line().is_some_and(|line| line.pending.is_some())
    }

    fn replace(&mut self, expected: Option<&Version>) -> Result<(), ArchiveError> {
        let name = names::manifest(&self.name);
        self.manifest.sequence += 1;
        let bytes = self.encode_within()?;
        let replaced = self
            .store
            .replace(&name, &bytes, expected)
            .map_err(|why| ArchiveError::store(&name, "written", why))?;
        self.version =
            replaced.ok_or_else(|| ArchiveError::Conflict { name: self.name.clone() })?;
        self.uncommitted = 0;
        Ok(())
    }

    /// The manifest, without what it has no room for: one that cannot be read again would take
    /// everything with it.
    fn encode_within(&mut self) -> Result<Bytes, ArchiveError> {
        loop {
            let bytes = self.manifest.encode();
            if bytes.len() as u64 <= self.most {
                return Ok(bytes);
            }
            let bases = self.manifest.lines.iter().map(|line| line.bases.len()).sum::<usize>();
            let keep = Keep { age: None, bases: Some(bases.saturating_sub(1).max(1)) };
            let lines = self.manifest.lines.len();
            let names = self.manifest.expire(&self.name, keep, HybridTime::default());
            if bases < 2 && names.is_empty() && lines == self.manifest.lines.len() {
                let what = "its manifest has no room for more of the journal since the only base \
                            image; make base images (archive-base-age), and keep fewer of them \
                            (archive-keep)";
                return Err(ArchiveError::Refused(format!("{}: {what}", self.name)));
            }
            self.given_up += usize::from(bases > 1);
            self.dropped.extend(names);
        }
    }

    /// Writes the manifest; then takes away what it does not name any more.
    fn commit(&mut self) -> Result<(), ArchiveError> {
        let before = self.version.clone();
        self.replace(Some(&before))?;
        for name in std::mem::take(&mut self.dropped) {
            self.remove(&name)?;
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), ArchiveError> {
        self.store.remove(name).map_err(|why| ArchiveError::store(name, "removed", why))
    }

    fn put(&mut self, name: &str, bytes: &Bytes) -> Result<(), ArchiveError> {
        self.store.put(name, bytes).map_err(|why| ArchiveError::store(name, "written", why))?;
        self.uncommitted += bytes.len() as u64;
        Ok(())
    }

    fn line_mut(&mut self) -> Result<&mut Line, ArchiveError> {
        self.manifest.lines.last_mut().ok_or_else(|| {
            ArchiveError::Refused("nothing of the journal is archived yet".to_owned())
        })
    }

    /// Copies what is durable in the journal and not archived yet.
    ///
    /// # Errors
    /// [`ArchiveError`]: what was copied so far is copied again, or kept.
    pub fn follow(&mut self, source: &mut dyn Source) -> Result<Followed, ArchiveError> {
        let now = source.now();
        let before = self.archived();
        let durable = source.flush()?;
        let size = source.size()?;
        let segments = source.segments()?;
        let mut followed = Followed::default();
        self.leave_empty(&segments);
        if !self.continues(&segments) {
            self.begin_line(durable, size);
            self.commit()?;
            followed.new_line = true;
        }
        followed.bytes = self.copy_log(source, &segments)?;
        let end = self.archived();
        let line = self.line_mut()?;
        if line.sizes.last().is_none_or(|known| known.bytes != size) {
            // It has grown somewhere between; what was added was zeroes until it was written to.
            let next = before.map_or(durable.0, |before| before.0 + 1);
            let position = next.min(durable.0);
            line.sizes.push(SizeAt { position, bytes: size });
        }
        if segments.is_empty() || end.is_some_and(|end| end >= durable) {
            line.complete = line.complete.max(now.0);
        }
        self.commit()?;
        Ok(followed)
    }

    /// A segment without a record at the end of the line that the journal does not have, though it
    /// has what is before that or in its place, was never taken over by whoever appends now. Its
    /// object is swept later: who has it may take over again meanwhile, and name it.
    fn leave_empty(&mut self, segments: &[(SegmentHeader, u64)]) {
        let Some(line) = self.manifest.lines.last_mut() else { return };
        let is_left = |last: &mut Segment| {
            last.frames() == 0
                && segments.first().is_some_and(|(first, _)| first.number <= last.number)
                && !segments.iter().any(|(header, _)| last.is(header))
        };
        // Alone it says what the journal was when the line began.
        while line.segments.len() > 1 && line.segments.pop_if(is_left).is_some() {}
    }

    /// Whether the journal goes on where the newest line ends.
    fn continues(&self, segments: &[(SegmentHeader, u64)]) -> bool {
        let Some(line) = self.manifest.line() else { return false };
        let Some(last) = line.segments.last() else {
            let begin = line.begin();
            let goes_on = begin_of(segments, begin).is_some_and(|first| {
                // A history that began here and ended here again says that the disk was written to
                // past the journal.
                let before = segments[..first].last();
                before.is_none_or(|(header, _)| header.base < begin) && is_chain(&segments[first..])
            });
            return self.began && (segments.is_empty() || goes_on);
        };
        let same = segments.iter().position(|(header, _)| header.number == last.number);
        let rest = segments.get(same.unwrap_or(0)..).unwrap_or_default();
        let goes_on = match (rest.first(), last.link()) {
            (Some((header, len)), _) if same.is_some() => last.is(header) && *len >= last.frames(),
            (Some((first, _)), Some(link)) => first.continues(&link),
            _ => false,
        };
        // A journal that began anew may still have what was before.
        goes_on && is_chain(rest)
    }

    fn begin_line(&mut self, from: LogPosition, size: u64) {
        let number = self.manifest.line().map_or(1, |line| line.number + 1);
        if let Some(last) = self.manifest.lines.last_mut() {
            last.pending = None;
            if last.bases.is_empty() {
                // Without a base image none of its moments can be restored.
                self.dropped.extend(last.object_names(&self.name));
                self.manifest.lines.pop();
            }
        }
        let pending = Pending { from: from.0, bytes: size, stored: 0, parts: Vec::new() };
        self.manifest.lines.push(Line {
            number,
            complete: 0,
            sizes: vec![SizeAt { position: from.0, bytes: size }],
            segments: Vec::new(),
            bases: Vec::new(),
            pending: Some(pending),
        });
        self.part.clear();
        self.part_stored = 0;
        self.began = true;
    }

    /// Copies what is missing of these segments; how many bytes.
    fn copy_log(
        &mut self,
        source: &mut dyn Source,
        segments: &[(SegmentHeader, u64)],
    ) -> Result<u64, ArchiveError> {
        let line = self.line_mut()?;
        let first = match line.segments.last().map(|last| last.number) {
            Some(number) => segments.iter().position(|(header, _)| header.number >= number),
            None => begin_of(segments, line.begin()),
        };
        let mut copied = 0;
        let missing = segments.get(first.unwrap_or(0)..).unwrap_or_default();
        for (index, (header, len)) in missing.iter().enumerate() {
            while let Some(bytes) = self.copy_object(source, header, *len)? {
                copied += bytes;
                if self.uncommitted >= COMMIT_BYTES {
                    self.commit()?;
                }
            }
            self.join(header.number, index + 1 < missing.len())?;
        }
        Ok(copied)
    }

    /// Copies whole frames of a segment into one object; how many bytes, `None` when all of it is
    /// archived. Of a segment without a frame the header is copied: what comes behind it continues
    /// it, and a line that ends with it is known to go on there.
    fn copy_object(
        &mut self,
        source: &mut dyn Source,
        header: &SegmentHeader,
        len: u64,
    ) -> Result<Option<u64>, ArchiveError> {
        let archived = self.line_mut()?.segments.last();
        let archived = archived.filter(|segment| segment.number == header.number);
        if archived.is_none() && len == 0 {
            let bytes = Bytes::copy_from_slice(&header.encode()[..]);
            let (end, epoch) = (SEGMENT_HEADER_LEN, header.epoch);
            let object = LogObject { end, time: 0, epoch, sha256: Digest::of(&bytes) };
            self.put_log(header, 0, object, &bytes)?;
            return Ok(Some(0));
        }
        let (done, before) = archived
            .map_or((0, None), |segment| (segment.frames(), segment.objects.last().copied()));
        if done >= len {
            return Ok(None);
        }
        let context = Archive::<S>::context(header, before.as_ref());
        let wanted = usize::try_from(len - done).unwrap_or(usize::MAX).min(LOG_OBJECT);
        let mut frames = BytesMut::new();
        while frames.len() < wanted {
            let at = context.position.after(frames.len() as u64);
            let bytes = source.fetch(header.number, at, wanted - frames.len())?;
            if bytes.is_empty() {
                break;
            }
            frames.extend_from_slice(&bytes);
        }
        let time = HybridTime(before.map_or(header.time.0, |object| object.time));
        let mut row = Frames::new(&frames, context, time);
        let whole = row.take_all();
        let (taken, time, epoch) = (row.taken, row.time, row.context.epoch);
        if taken == 0 {
            let why = whole.err().map_or_else(|| "it ends there".to_owned(), |why| why.to_string());
            let position = context.position;
            let what = format!("the journal could not be read at position {position}: {why}");
            return Err(SourceError(what).into());
        }
        frames.truncate(taken);
        let (from, bytes) = match before {
            Some(object) => (object.end, frames.freeze()),
            None => (0, Bytes::from([&header.encode()[..], &frames].concat())),
        };
        let end = from + bytes.len() as u64;
        let object = LogObject { end, time: time.0, epoch, sha256: Digest::of(&bytes) };
        self.put_log(header, from, object, &bytes)?;
        Ok(Some(taken as u64))
    }

    fn put_log(
        &mut self,
        header: &SegmentHeader,
        from: u64,
        object: LogObject,
        bytes: &Bytes,
    ) -> Result<(), ArchiveError> {
        let number = self.line_mut()?.number;
        let ends = (from, object.end);
        let name = names::log(&self.name, number, header.number, ends, &object.sha256);
        self.put(&name, bytes)?;
        let line = self.line_mut()?;
        match line.segments.last_mut().filter(|last| last.number == header.number) {
            Some(segment) => segment.objects.push(object),
            None => {
                let before = line.segments.last().and_then(Segment::link);
                if before.is_some_and(|before| !header.continues(&before)) {
                    let what = format!("segment {} does not continue the journal", header.number);
                    return Err(SourceError(what).into());
                }
                let mut segment = Segment::new(header);
                segment.objects.push(object);
                line.segments.push(segment);
            }
        }
        Ok(())
    }

    /// Makes one object of many small ones: at the end of a segment that still grows, and all over
    /// one that is sealed.
    fn join(&mut self, number: u64, sealed: bool) -> Result<(), ArchiveError> {
        let line = self.line_mut()?;
        let Some(at) = line.segments.iter().position(|segment| segment.number == number) else {
            return Ok(());
        };
        let lens: Vec<u64> =
            line.segments[at].objects().map(|(from, object)| object.end - from).collect();
        let runs =
            if sealed { runs_of_all(&lens) } else { run_at_end(&lens).into_iter().collect() };
        for run in runs.into_iter().rev() {
            self.join_run(at, run)?;
        }
        Ok(())
    }

    fn join_run(&mut self, at: usize, run: std::ops::Range<usize>) -> Result<(), ArchiveError> {
        let line = self.line_mut()?;
        let (number, segment) = (line.number, line.segments[at].clone());
        let mut joined = BytesMut::new();
        let old: Vec<(u64, LogObject)> =
            segment.objects().map(|(from, object)| (from, *object)).collect();
        let Some(((from, _), (_, last))) = old[run.clone()].first().zip(old[run.clone()].last())
        else {
            return Ok(());
        };
        for (from, object) in &old[run.clone()] {
            let name = segment.object_name(&self.name, number, *from, object);
            let bytes = read_object(&self.store, &name, &object.sha256, MAX_LOG_OBJECT)?;
            joined.extend_from_slice(&bytes);
            self.dropped.push(name);
        }
        let bytes = joined.freeze();
        let object = LogObject { sha256: Digest::of(&bytes), ..*last };
        let name = segment.object_name(&self.name, number, *from, &object);
        self.put(&name, &bytes)?;
        self.line_mut()?.segments[at].objects.splice(run, [object]);
        Ok(())
    }

    /// Begins another base image, if none is being made. The journal must be archived without gaps
    /// from now on, or this begins anew by itself.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn begin_base(&mut self, source: &mut dyn Source) -> Result<(), ArchiveError> {
        self.follow(source)?;
        if self.base_pending() {
            return Ok(());
        }
        let (from, bytes) = (source.flush()?.0, source.size()?);
        let pending = Pending { from, bytes, stored: 0, parts: Vec::new() };
        self.line_mut()?.pending = Some(pending);
        self.part.clear();
        self.part_stored = 0;
        self.commit()
    }

    /// Copies the next piece of the disk for the base image that is being made; the disk may be
    /// written to meanwhile. When all of it is copied, the next step finishes the image.
    ///
    /// Call [`Self::follow`] between the steps, so that the journal need not be kept for long.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn base_step(&mut self, source: &mut dyn Source) -> Result<BaseProgress, ArchiveError> {
        let Some(pending) = self.manifest.line().and_then(|line| line.pending.as_ref()) else {
            return Ok(BaseProgress { done: 0, total: 0, finished: true });
        };
        let total = pending.bytes;
        let chunk = pending.parts.len() as u64 * PART_CHUNKS + self.part.len() as u64;
        let at = chunk * CHUNK;
        if at >= total {
            let finished = self.finish_base(source)?;
            return Ok(BaseProgress { done: total, total, finished });
        }
        let done = (at + CHUNK).min(total);
        let data = read_chunk(source, at, done)?;
        self.put_piece(chunk, &data)?;
        if self.part.len() as u64 == PART_CHUNKS || done == total {
            // What was read may not have been durable: only with the journal behind it is it
            // something that this node cannot lose any more.
            if self.follow(source)?.new_line {
                return Ok(BaseProgress { done: 0, total, finished: false });
            }
            self.finish_part()?;
        }
        Ok(BaseProgress { done, total, finished: false })
    }

    fn put_piece(&mut self, chunk: u64, data: &[u8]) -> Result<(), ArchiveError> {
        let Some(piece) = Piece::of(chunk, data) else {
            self.part.push(None);
            return Ok(());
        };
        let object = piece.encode(self.manifest.resource(), self.compression);
        let entry = IndexEntry { digest: Digest::of(&object), bytes: object.len() as u64 };
        let name = names::piece(&self.name, chunk / PART_CHUNKS, self.part.len(), &entry.digest);
        // What an older base image has, or one that was interrupted, is not written again.
        let there = self.store.len_of(&name);
        let there = there.map_err(|why| ArchiveError::store(&name, "looked for", why))?;
        if there != Some(entry.bytes) {
            self.put(&name, &object)?;
        }
        self.part.push(Some(entry));
        self.part_stored += entry.bytes;
        Ok(())
    }

    fn finish_part(&mut self) -> Result<(), ArchiveError> {
        let resource = self.manifest.resource();
        let parts = self.manifest.line().and_then(|line| line.pending.as_ref());
        let number = parts.map_or(0, |pending| pending.parts.len() as u64);
        let part = IndexPart { number, entries: std::mem::take(&mut self.part) };
        let object = part.encode(resource);
        let digest = Digest::of(&object);
        self.put(&names::index(&self.name, number, &digest), &object)?;
        let stored = std::mem::take(&mut self.part_stored);
        if let Some(pending) = &mut self.line_mut()?.pending {
            pending.parts.push(digest);
            pending.stored += stored;
        }
        self.commit()
    }

    /// Everything that the image may hold was written before now: when the journal is archived up
    /// to here, it is a state together with that. Whether it is finished.
    fn finish_base(&mut self, source: &mut dyn Source) -> Result<bool, ArchiveError> {
        let ready = source.flush()?;
        let time = source.now();
        if self.follow(source)?.new_line {
            return Ok(false);
        }
        let end = self.archived();
        let line = self.line_mut()?;
        let Some(pending) = line.pending.take() else { return Ok(true) };
        if end.unwrap_or(LogPosition(pending.from)) < ready {
            line.pending = Some(pending);
            return Ok(false);
        }
        let Pending { from, bytes, stored, parts } = pending;
        line.bases.push(Base { from, ready: ready.0, time: time.0, bytes, stored, parts });
        self.commit()?;
        Ok(true)
    }

    /// Gives up what need not be kept. While a base image is being made, objects of older ones
    /// stay.
    ///
    /// # Errors
    /// [`ArchiveError`]: what is not named any more may still be there, until the next time.
    pub fn expire(&mut self, keep: Keep, now: HybridTime) -> Result<(), ArchiveError> {
        let before = self.manifest.clone();
        let names = self.manifest.expire(&self.name, keep, now);
        if self.manifest != before {
            self.dropped.extend(names);
            self.commit()?;
        }
        Ok(())
    }

    /// Takes away all objects that the manifest does not name: of base images that were given up,
    /// or of interrupted steps. What was put after `before` stays: somebody who took over may be
    /// about to name it. Does nothing while a base image is being made, and ends early when `go_on`
    /// says so. How many.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn sweep(
        &mut self,
        before: SystemTime,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<u64, ArchiveError> {
        if self.base_pending() {
            return Ok(0);
        }
        self.commit()?;
        let mut logs: BTreeSet<String> = BTreeSet::new();
        for line in &self.manifest.lines {
            logs.extend(line.object_names(&self.name));
        }
        let mut count = self.sweep_prefix(&names::log_prefix(&self.name), &logs, before, go_on)?;
        let mut indexes = BTreeSet::new();
        let mut parts = 0;
        for base in self.manifest.lines.iter().flat_map(|line| &line.bases) {
            parts = parts.max(base.parts.len() as u64);
            for (number, digest) in (0..).zip(&base.parts) {
                indexes.insert((number, *digest));
            }
        }
        for part in 0..parts {
            if !go_on() {
                return Ok(count);
            }
            let of_part: Vec<_> = indexes.range((part, Digest([0; 32]))..).collect();
            let mut pieces = BTreeSet::new();
            for (number, digest) in of_part.into_iter().take_while(|(n, _)| *n == part) {
                let resource = self.manifest.resource();
                let index = read_index(&self.store, &self.name, resource, *number, digest)?;
                for (within, entry) in index.entries.iter().enumerate() {
                    if let Some(entry) = entry {
                        pieces.insert(names::piece(&self.name, part, within, &entry.digest));
                    }
                }
            }
            let prefix = names::part_prefix(&self.name, part);
            count += self.sweep_prefix(&prefix, &pieces, before, go_on)?;
        }
        let named = indexes.iter().map(|(n, digest)| names::index(&self.name, *n, digest));
        let (prefix, named) = (names::index_prefix(&self.name), named.collect());
        count += self.sweep_prefix(&prefix, &named, before, go_on)?;
        Ok(count)
    }

    fn sweep_prefix(
        &mut self,
        prefix: &str,
        named: &BTreeSet<String>,
        before: SystemTime,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<u64, ArchiveError> {
        let mut unnamed = Vec::new();
        self.store
            .list(prefix, &mut |name, _| {
                if !named.contains(name) {
                    unnamed.push(name.to_owned());
                }
                Ok(())
            })
            .map_err(|why| ArchiveError::store(prefix, "listed", why))?;
        let mut old = Vec::new();
        for name in unnamed {
            let put = self.store.put_at(&name);
            let put = put.map_err(|why| ArchiveError::store(&name, "looked for", why))?;
            if put.is_some_and(|put| put < before) {
                old.push(name);
            }
        }
        let mut count = 0;
        for some in old.chunks(SWEEP) {
            if !go_on() {
                break;
            }
            // Who took over since then may name what was there already: he alone sweeps.
            self.commit()?;
            for name in some {
                self.remove(name)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// Whether a segment of a journal continues the one before it there.
fn continues(segments: &[(SegmentHeader, u64)], index: usize) -> bool {
    let (before, len) = &segments[index - 1];
    segments[index].0.continues(&before.link(*len))
}

/// Whether each of them continues the one before it.
fn is_chain(segments: &[(SegmentHeader, u64)]) -> bool {
    (1..segments.len()).all(|index| continues(segments, index))
}

/// With which segment a line begins that has all before `from` in its image: one without a record is
/// gone back from, as whoever becomes Primary has the one before it, too, and is known to go on there.
fn begin_of(segments: &[(SegmentHeader, u64)], from: LogPosition) -> Option<usize> {
    let mut index = segments.iter().rposition(|(header, _)| header.base <= from)?;
    while segments[index].1 == 0 && index > 0 && continues(segments, index) {
        index -= 1;
    }
    Some(index)
}

fn read_chunk(source: &mut dyn Source, from: u64, to: u64) -> Result<BytesMut, ArchiveError> {
    let mut data = BytesMut::new();
    let mut at = from;
    while at < to {
        let range = ByteRange::new(at, READ_MAX.min(to - at));
        let bytes = source.read(range)?;
        if bytes.len() as u64 != range.len || !range.len.is_multiple_of(BLOCK_SIZE) {
            let what = format!("the disk could not be read at {at}: there is less than asked for");
            return Err(SourceError(what).into());
        }
        data.extend_from_slice(&bytes);
        at = range.end();
    }
    Ok(data)
}

/// The objects at the end that are to be one: many, each small.
fn run_at_end(lens: &[u64]) -> Option<std::ops::Range<usize>> {
    SMALL.iter().find_map(|small| {
        let mut sum = 0;
        let fits = |len: &&u64| {
            sum += **len;
            **len < *small && sum <= MAX_LOG_OBJECT
        };
        let count = lens.iter().rev().take_while(fits).count();
        (count >= JOIN).then(|| lens.len() - count..lens.len())
    })
}

/// All objects, in runs that are to be one each.
fn runs_of_all(lens: &[u64]) -> Vec<std::ops::Range<usize>> {
    let (mut runs, mut first, mut sum) = (Vec::new(), 0, 0);
    for (index, len) in lens.iter().enumerate() {
        if sum + len > MAX_LOG_OBJECT {
            runs.push(first..index);
            (first, sum) = (index, 0);
        }
        sum += len;
    }
    runs.push(first..lens.len());
    runs.retain(|run| run.len() > 1);
    runs
}

#[cfg(test)]
mod tests {
    use super::{run_at_end, runs_of_all};

    #[test]
    fn small_objects_are_joined_and_large_ones_are_left() {
        let (kib, mib) = (1024, 1 << 20);
        assert_eq!(run_at_end(&[8 * kib; 15]), None);
        assert_eq!(run_at_end(&[8 * kib; 16]), Some(0..16));
        let mut lens = vec![2 * mib, 100 * kib];
        lens.extend([8 * kib; 17]);
        assert_eq!(run_at_end(&lens), Some(2..19), "larger ones before them are left");
        assert_eq!(run_at_end(&[100 * kib; 20]), Some(0..20));
        assert_eq!(run_at_end(&[2 * mib; 20]), None, "they are too long together");
        assert!(runs_of_all(&[8 * mib; 5]) == [0..2, 2..4]);
        assert!(runs_of_all(&[]).is_empty() && runs_of_all(&[9 * mib; 3]).is_empty());
    }
}
