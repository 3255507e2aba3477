//! Opening a journal: what of it counts.

use crate::index::Index;
use crate::scan::{ReadSegments, Scanner, Stop};
use holdfast_format::journal::{
    Cursors, FrameError, FrameHeader, SEGMENT_HEADER_LEN, SegmentHeader, SegmentLink,
};
use holdfast_format::{BLOCK_LEN, BlockError, ReadFailed};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};

/// How the newest segment ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// Behind the last frame nothing was written since the file was made.
    Clean,
    /// What is there is not a whole frame that continues the last one: it was cut off by a crash,
    /// or is left from an earlier use of the file.
    Cut(FrameError),
    /// There is no segment.
    Empty,
}

/// The journal was durable here once, and is not whole any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// In which segment.
    pub segment: u64,
    /// The first position that cannot be used.
    pub position: LogPosition,
    /// What is wrong, to complete a sentence.
    pub why: String,
    /// How it is known that it was durable.
    pub evidence: &'static str,
    /// What the damaged records changed, when that can still be read; their data cannot.
    pub ranges: Option<Vec<ByteRange>>,
}

/// Why a journal cannot be used as it is.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecoverError {
    /// It is damaged. It can be cut before that position.
    #[error(
        "the journal is damaged in segment {} at position {}: {} ({})",
        .0.segment, .0.position, .0.why, .0.evidence
    )]
    Damaged(Damage),
    /// A segment could not be read.
    #[error("segment {segment} of the journal could not be read: {}", .why.0)]
    Read {
        /// Which one.
        segment: u64,
        /// Why.
        why: ReadFailed,
    },
    /// It is not for this program or this resource.
    #[error("segment {segment} of the journal cannot be used: {why}")]
    Foreign {
        /// Which one.
        segment: u64,
        /// Why.
        why: BlockError,
    },
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The segments that count, oldest first, with the bytes of their frames.
    pub segments: Vec<(SegmentHeader, u64)>,
    /// The epoch of the last frame or header.
    pub epoch: u64,
    /// The time of the last record.
    pub time: HybridTime,
    /// How it ends.
    pub tail: Tail,
    /// Files with the names of segments that do not count: to be taken away or used again.
    pub remnants: Vec<u64>,
    /// Whether it was cut, so that a new segment must be begun.
    pub cut: bool,
    /// Older segments are missing or broken that nothing says were given up: nothing before this
    /// can be had. Who still needed it does not get it from here.
    pub lost_before: Option<LogPosition>,
}

impl Found {
    /// An empty journal.
    #[must_use]
    pub const fn nothing() -> Self {
        Self {
            segments: Vec::new(),
            epoch: 0,
            time: HybridTime(0),
            tail: Tail::Empty,
            remnants: Vec::new(),
            cut: false,
            lost_before: None,
        }
    }

    /// The position behind the last frame.
    #[must_use]
    pub fn end(&self) -> LogPosition {
        self.segments.last().map_or(LogPosition::START, |(header, len)| header.base.after(*len))
    }
}

/// Which frames are read when a journal is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// Those from the segment on that holds the position up to which the disk is written back.
    NotWrittenBack,
    /// Those of the last segment. One with a successor was durable as a whole when that was made:
    /// whoever replays it finds out what has become of it since.
    LastSegment,
}

/// What is in the journal and not on the disk, frame by frame as [`recover`] shows them. It takes
/// as much memory as there are ranges of the disk, however many records have changed them.
pub struct Backlog {
    pub(crate) index: Index,
    written_back: LogPosition,
}

impl Backlog {
    /// Of a journal with these cursors.
    #[must_use]
    pub fn new(cursors: &Cursors) -> Self {
        Self { index: Index::default(), written_back: cursors.written_back }
    }

    /// Takes a frame in; its segment, and where it is in the file.
    pub fn add(&mut self, segment: &SegmentHeader, frame: &FrameHeader, offset: u64) {
        self.index.add_frame(frame, offset, segment.alignment, self.written_back);
        // Whatever is found becomes durable before it is used: no crash brings an older record back.
        self.index.synced(frame.end());
    }
}

/// Reads a journal whose directory has the segments `numbers`; every frame that is newer than
/// what is written back is shown to `visit` when it is read, with its segment, the frame, and where
/// it is in the file. With `cut`, everything from that position on is left out.
///
/// # Errors
/// [`RecoverError`]; nothing has been changed, whatever `visit` was shown does not count.
pub fn recover<R: ReadSegments>(
    reader: &R,
    resource: ResourceId,
    numbers: &[u64],
    cursors: &Cursors,
    reading: Reading,
    cut: Option<LogPosition>,
    visit: &mut dyn FnMut(&SegmentHeader, &FrameHeader, u64),
) -> Result<Found, RecoverError> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    let mut headers = Vec::new();
    for number in &numbers {
        headers.push((*number, read_header(reader, resource, *number)?));
    }
    let mut found = Found::nothing();
    let nameless = drop_nameless_tail(&mut headers);
    let chain = usable_chain(&headers, cursors, cut, &mut found)?;
    let read_from = match reading {
        Reading::NotWrittenBack => cursors.written_back,
        Reading::LastSegment => LogPosition(u64::MAX),
    };
    let mut visit = |segment: &SegmentHeader, frame: &FrameHeader, offset| {
        if frame.end() > cursors.written_back {
            visit(segment, frame, offset);
        }
    };
    scan_chain(reader, &chain, read_from, cut, &mut found, &mut visit)?;
    if let Some(number) = nameless {
        judge_nameless(reader, number, resource, &found, cut)?;
        found.remnants.push(number);
    }
    let known = cursors.durable.max(cursors.written_back);
    if cut.is_none() && found.end() < known {
        return Err(RecoverError::Damaged(Damage {
            segment: found.segments.last().map_or(0, |(header, _)| header.number),
            position: found.end(),
            why: match found.tail {
                Tail::Cut(error) => error.to_string(),
                Tail::Clean | Tail::Empty => "nothing is there".into(),
            },
            evidence: "the cursors say that more of it was durable",
            ranges: None,
        }));
    }
    Ok(found)
}

fn read_header<R: ReadSegments>(
    reader: &R,
    resource: ResourceId,
    number: u64,
) -> Result<Option<SegmentHeader>, RecoverError> {
    let mut block = [0; BLOCK_LEN];
    let got = reader
        .read_segment(number, 0, &mut block)
        .map_err(|why| RecoverError::Read { segment: number, why })?;
    if got < BLOCK_LEN {
        return Ok(None);
    }
    match SegmentHeader::decode(&block, resource, number) {
        Ok(header) => Ok(Some(header)),
        Err(
            why @ (BlockError::Version { .. }
            | BlockError::Features { .. }
            | BlockError::Resource { .. }),
        ) => Err(RecoverError::Foreign { segment: number, why }),
        Err(_) => Ok(None),
    }
}

/// The last segment, if it has no header: a beginning that a crash cut off, or damage.
fn drop_nameless_tail(headers: &mut Vec<(u64, Option<SegmentHeader>)>) -> Option<u64> {
    let (number, header) = headers.last()?;
    let number = *number;
    if header.is_some() {
        return None;
    }
    headers.pop();
    Some(number)
}

/// The newest segments that continue each other; older ones that do not are remnants.
fn usable_chain(
    headers: &[(u64, Option<SegmentHeader>)],
    cursors: &Cursors,
    cut: Option<LogPosition>,
    found: &mut Found,
) -> Result<Vec<SegmentHeader>, RecoverError> {
    let mut chain: Vec<SegmentHeader> = Vec::new();
    for (number, header) in headers {
        let continues = match (header, chain.last()) {
            (Some(header), Some(before)) => {
                let len = header.predecessor.map_or(0, |(_, _, len)| len);
                header.continues(&before.link(len))
            }
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !continues {
            found.remnants.extend(chain.drain(..).map(|segment| segment.number));
        }
        match header {
            Some(header) => chain.push(*header),
            None => found.remnants.push(*number),
        }
    }
    let Some(first) = chain.first() else { return Ok(chain) };
    // Cursors are stored before a segment is given up. Without them all is written back again.
    let missing = cursors.sequence > 0 && first.base > cursors.written_back;
    if missing || !found.remnants.is_empty() {
        if first.base > cursors.written_back && cut.is_none() {
            return Err(RecoverError::Damaged(Damage {
                segment: first.number,
                position: first.base,
                why: "there is no segment that it continues".into(),
                evidence: "what lies before it is not written back",
                ranges: None,
            }));
        }
        found.lost_before = Some(first.base);
    }
    Ok(chain)
}

fn scan_chain<R: ReadSegments>(
    reader: &R,
    chain: &[SegmentHeader],
    read_from: LogPosition,
    cut: Option<LogPosition>,
    found: &mut Found,
    visit: &mut dyn FnMut(&SegmentHeader, &FrameHeader, u64),
) -> Result<(), RecoverError> {
    for (index, header) in chain.iter().enumerate() {
        let next = chain.get(index + 1);
        let sealed = next.and_then(|next| next.predecessor).map(|(_, _, len)| len);
        found.epoch = header.epoch;
        found.time = found.time.max(header.time);
        found.tail = Tail::Clean;
        // What lies before that, and has a successor that says how long it is, is not read.
        let old = next.is_some_and(|next| next.base <= read_from);
        let cut_here = cut.is_some_and(|cut| sealed.is_none_or(|len| cut < header.base.after(len)));
        if let (true, false, Some(len)) = (old, cut_here, sealed) {
            found.segments.push((*header, len));
            continue;
        }
        let limit = sealed.map(|len| header.base.after(len));
        let limit = if cut_here { cut } else { limit };
        let mut scanner = Scanner::new(reader, *header);
        let result = scan_segment(&mut scanner, limit, found, visit);
        found.epoch = scanner.epoch();
        let len = scanner.position().since(header.base);
        found.segments.push((*header, len));
        match result {
            Ok(()) => {}
            Err(Stop::Read(why)) => {
                return Err(RecoverError::Read { segment: header.number, why });
            }
            Err(Stop::Frame(_)) if cut_here => {}
            Err(Stop::Frame(error)) => {
                judge(&mut scanner, error, sealed.is_some())?;
                found.tail =
                    if error == FrameError::Blank { Tail::Clean } else { Tail::Cut(error) };
            }
        }
        if cut_here {
            found.cut = true;
            found.remnants.extend(chain[index + 1..].iter().map(|segment| segment.number));
            break;
        }
    }
    Ok(())
}

/// Goes on to `limit`, or to what is not a frame. A frame that reaches over the limit is left out.
fn scan_segment<R: ReadSegments>(
    scanner: &mut Scanner<'_, R>,
    limit: Option<LogPosition>,
    found: &mut Found,
    visit: &mut dyn FnMut(&SegmentHeader, &FrameHeader, u64),
) -> Result<(), Stop> {
    let header = *scanner.segment();
    let full = header.base.after(header.capacity - SEGMENT_HEADER_LEN);
    while limit.is_none_or(|limit| scanner.position() < limit) && scanner.position() < full {
        let (next, _) = scanner.peek()?;
        if limit.is_some_and(|limit| next.end() > limit) {
            return Err(Stop::Frame(FrameError::Short));
        }
        let (frame, offset) = scanner.next(true)?;
        if let Some(last) = frame.records.last() {
            found.time = found.time.max(last.time);
        }
        visit(&header, &frame, offset);
    }
    Ok(())
}

/// Whether the end of what counts is an end, or damage.
fn judge<R: ReadSegments>(
    scanner: &mut Scanner<'_, R>,
    error: FrameError,
    sealed: bool,
) -> Result<(), RecoverError> {
    let segment = scanner.segment().number;
    let evidence = if sealed {
        "a segment follows, and that is begun only when all before it is durable"
    } else {
        let later = scanner.later_evidence();
        match later.map_err(|why| RecoverError::Read { segment, why })? {
            Some(_) => "a record behind it says that it was durable",
            None => return Ok(()),
        }
    };
    let ranges = match (error, scanner.peek()) {
        (FrameError::Payload { .. }, Ok((header, _))) => {
            Some(header.records.iter().map(|record| record.range).collect())
        }
        _ => None,
    };
    let position = scanner.position();
    let why = error.to_string();
    Err(RecoverError::Damaged(Damage { segment, position, why, evidence, ranges }))
}

/// The last segment has no header. It was begun when all before it was durable, so a frame in it
/// that was made when more was durable says that the header was durable, too.
fn judge_nameless<R: ReadSegments>(
    reader: &R,
    number: u64,
    resource: ResourceId,
    found: &Found,
    cut: Option<LogPosition>,
) -> Result<(), RecoverError> {
    if cut.is_some() {
        return Ok(());
    }
    let base = found.end();
    for alignment in [4096, 512] {
        let assumed = SegmentHeader {
            resource,
            number,
            origin: NodeId::new(0).expect("0 is a node"),
            epoch: 0,
            base,
            capacity: 1 << 40,
            alignment,
            time: HybridTime::default(),
            chain: [0; 16],
            predecessor: None,
            generation: GenerationId::NONE,
            packed: false,
        };
        let mut scanner = Scanner::new(reader, assumed);
        let later = scanner.later_evidence();
        if later.map_err(|why| RecoverError::Read { segment: number, why })?.is_some() {
            return Err(RecoverError::Damaged(Damage {
                segment: number,
                position: base,
                why: "its header is broken".into(),
                evidence: "a record in it says that it was durable",
                ranges: None,
            }));
        }
    }
    Ok(())
}

/// The links of segments that were found.
pub(crate) fn links(segments: &[(SegmentHeader, u64)]) -> Vec<SegmentLink> {
    segments.iter().map(|(header, len)| header.link(*len)).collect()
}
