//! The messages as bytes: a header of 16 bytes, a body of fields, a payload. `docs/design/log.md`
//! has the layout. The checksum covers header and body; payloads have checksums of their own.

use super::message::{
    Answer, Await, Block, Fetch, Head, Hello, Join, Offer, Piece, RefuseCode, Report, Request,
    Verdict, Welcome,
};
use bytes::Bytes;
use holdfast_format::MAX_DEVICE_SIZE;
use holdfast_format::journal::{
    Compression, FollowState, SegmentHeader, SegmentLink, is_alignment,
};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, GenerationId, HybridTime, LogPosition, MAX_REQUEST, NodeId, ResourceId,
};

/// The length of a header in bytes.
pub const HEADER_LEN: usize = 16;
/// The longest body in bytes.
pub const MAX_BODY: usize = 128 << 10;
/// The longest payload in bytes, and the longest that it becomes when it is unpacked.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// The most links in a [`Hello`]: the newest ones.
pub const MAX_LINKS: usize = 2048;
/// The most ranges in an [`Await`].
pub const MAX_COPIED: usize = 4096;
/// The longest part that a follower may ask for because it has no good copy of it, in bytes.
pub const MAX_HEALED: u64 = 64 << 10;
/// The most digests in an [`Offer`].
pub const MAX_DIGESTS: usize = 256;
/// The most segments in a [`Head`].
pub const MAX_SEGMENTS: usize = 256;
/// The longest text of a refusal in bytes; a longer one is cut.
pub const MAX_TEXT: usize = 200;

const MAGIC: [u8; 2] = *b"HL";
const SUMMED_LEN: usize = 12;
const NO_NODE: u8 = u8::MAX;
const NO_POSITION: u64 = u64::MAX;
const MAX_POSITION: u64 = 1 << 62;

const _: () = assert!(MAX_LINKS * 57 + 128 <= MAX_BODY && MAX_COPIED * 16 + 128 <= MAX_BODY);
const _: () = assert!(MAX_SEGMENTS * 105 + 128 <= MAX_BODY && MAX_REQUEST <= MAX_PAYLOAD as u64);

/// A message of either side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Of a follower.
    Request(Request),
    /// Of a leader.
    Answer(Answer),
}

/// Why bytes are not a message. Each is final for the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShipError {
    /// The stream does not hold a frame where one must start.
    #[error("the peer does not speak the log protocol: a frame starts with {0:#06x}")]
    Magic(u16),
    /// A kind of message that this build does not know.
    #[error("the peer sent a log message of the unknown kind {0}")]
    Kind(u8),
    /// Flags, or a body or payload that is too long or may not be there.
    #[error("the peer announced an impossible log message of kind {0}")]
    Header(u8),
    /// The body does not fit its checksum, or there are not so many bytes.
    #[error("a log message of kind {0} was damaged on its way")]
    Damaged(u8),
    /// A field has a value that it cannot have, or the body has another length.
    #[error("a log message of kind {kind} has an impossible {field}")]
    Field {
        /// The kind.
        kind: u8,
        /// Which field.
        field: &'static str,
    },
}

const HELLO: u8 = 1;
const REFUSE: u8 = 2;
const JOIN: u8 = 3;
const AWAIT: u8 = 4;
const FETCH: u8 = 5;
const COPY: u8 = 6;
const WELCOME: u8 = 7;
const JOINED: u8 = 8;
const HEAD: u8 = 9;
const PIECE: u8 = 10;
const BLOCK: u8 = 11;
const TAKE: u8 = 12;
const OFFER: u8 = 13;
const HEAL: u8 = 14;
const HEALED: u8 = 15;
const LOST: u8 = 16;

/// A header that was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShipHeader {
    bytes: [u8; HEADER_LEN],
    kind: u8,
    body_len: usize,
    payload_len: usize,
}

impl ShipHeader {
    /// The bytes of the body; at most [`MAX_BODY`].
    #[must_use]
    pub const fn body_len(&self) -> usize {
        self.body_len
    }

    /// The bytes of the payload; at most [`MAX_PAYLOAD`].
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.payload_len
    }
}

/// Checks a header. Nothing that it announces is beyond the limits then.
///
/// # Errors
/// [`ShipError`].
pub fn parse_header(bytes: &[u8; HEADER_LEN]) -> Result<ShipHeader, ShipError> {
    if bytes[..2] != MAGIC {
        return Err(ShipError::Magic(u16::from_be_bytes([bytes[0], bytes[1]])));
    }
    let kind = bytes[2];
    if !(HELLO..=LOST).contains(&kind) {
        return Err(ShipError::Kind(kind));
    }
    let len = |at: usize| {
        let len = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        usize::try_from(len).unwrap_or(usize::MAX)
    };
    let (body_len, payload_len) = (len(4), len(8));
    let may_have = matches!(kind, PIECE | BLOCK | HEALED);
    if bytes[3] != 0 || body_len > MAX_BODY || payload_len > if may_have { MAX_PAYLOAD } else { 0 }
    {
        return Err(ShipError::Header(kind));
    }
    Ok(ShipHeader { bytes: *bytes, kind, body_len, payload_len })
}

/// Makes a message of a header and what came behind it.
///
/// # Errors
/// [`ShipError`].
pub fn decode(header: &ShipHeader, body: &[u8], payload: Bytes) -> Result<Message, ShipError> {
    let kind = header.kind;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header.bytes[..SUMMED_LEN]), body);
    let whole = body.len() == header.body_len && payload.len() == header.payload_len;
    if !whole || crc.to_le_bytes() != header.bytes[SUMMED_LEN..] {
        return Err(ShipError::Damaged(kind));
    }
    let mut reader = Reader { rest: body };
    let message = read(kind, &mut reader, payload);
    match message {
        Ok(message) if reader.rest.is_empty() => Ok(message),
        Ok(_) => Err(ShipError::Field { kind, field: "length" }),
        Err(field) => Err(ShipError::Field { kind, field }),
    }
}

/// Appends header and body of a message; the payload, which goes behind it.
#[must_use]
pub fn encode(message: &Message, to: &mut Vec<u8>) -> Bytes {
    let start = to.len();
    to.resize(start + HEADER_LEN, 0);
    let (kind, payload) = write(message, &mut Writer(to));
    let body_len = u32::try_from(to.len() - start - HEADER_LEN).unwrap_or(u32::MAX);
    let payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let frame = &mut to[start..];
    frame[..2].copy_from_slice(&MAGIC);
    frame[2] = kind;
    frame[4..8].copy_from_slice(&body_len.to_le_bytes());
    frame[8..12].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..SUMMED_LEN]), &frame[HEADER_LEN..]);
    frame[SUMMED_LEN..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    payload
}

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn block(&mut self, block: &Block) {
        self.u64(block.fill);
        self.range(block.range);
        self.bool(block.zeroes);
        self.u8(block.compression as u8);
        self.u32(block.crc);
    }

    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn optional(&mut self, position: Option<LogPosition>) {
        self.u64(position.map_or(NO_POSITION, |position| position.0));
    }

    fn range(&mut self, range: ByteRange) {
        self.u64(range.offset);
        self.u64(range.len);
    }

    fn report(&mut self, report: &Report) {
        self.u8(report.state as u8);
        self.u64(report.fill);
        self.u64(report.generation.0);
        self.u64(report.fetched.0);
        self.u64(report.replayed.0);
        // The newest ones count.
        let links = &report.links[report.links.len().saturating_sub(MAX_LINKS)..];
        self.count(links.len());
        for link in links {
            self.u64(link.number);
            self.u8(link.origin.number());
            self.u64(link.epoch);
            self.u64(link.base.0);
            self.u64(link.len);
            self.u64(link.time.0);
            self.0.extend_from_slice(&link.chain);
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Ship => self.u8(0),
            Verdict::Fill { fill, segment, from } => {
                self.u8(1);
                self.u64(*fill);
                self.u64(*segment);
                self.u64(from.0);
            }
            Verdict::FillOn => self.u8(2),
            Verdict::Drain => self.u8(3),
            Verdict::Apart { common, follower, leader, follower_since, leader_since } => {
                self.u8(4);
                self.optional(*common);
                self.u64(*follower);
                self.u64(*leader);
                self.u64(follower_since.0);
                self.u64(leader_since.0);
            }
        }
    }

    fn head(&mut self, head: &Head) {
        self.u64(head.durable.0);
        self.u64(head.now.0);
        self.u64(head.fetch_lag_ms);
        self.u64(head.replay_lag_ms);
        self.bool(head.again);
        self.u64(head.fill);
        self.u64(head.fill_left);
        self.optional(head.fill_to);
        let count = head.segments.len().min(MAX_SEGMENTS);
        self.count(count);
        for (header, len) in &head.segments[..count] {
            self.segment(header, *len);
        }
    }

    fn segment(&mut self, header: &SegmentHeader, len: u64) {
        let (origin, epoch, before) = header
            .predecessor
            .map_or((NO_NODE, 0, 0), |(node, epoch, len)| (node.number(), epoch, len));
        self.u64(header.number);
        self.u8(header.origin.number());
        self.u64(header.epoch);
        self.u64(header.base.0);
        self.u64(header.capacity);
        self.u32(header.alignment | if header.packed { PACKED } else { 0 });
        self.u64(header.time.0);
        self.0.extend_from_slice(&header.chain);
        self.u8(origin);
        self.u64(epoch);
        self.u64(before);
        self.u64(header.generation.0);
        self.u64(len);
    }
}

/// Beside the alignment of a segment: its records may be compressed.
const PACKED: u32 = 1 << 31;

fn write(message: &Message, w: &mut Writer<'_>) -> (u8, Bytes) {
    let kind = match message {
        Message::Request(Request::Hello(hello)) => {
            w.u16(hello.version_min);
            w.u16(hello.version_max);
            w.u64(hello.features);
            w.0.extend_from_slice(&hello.resource.0);
            w.u8(hello.from.number());
            w.u8(hello.to.number());
            w.u64(hello.size);
            w.u64(hello.bundle);
            w.report(&hello.report);
            HELLO
        }
        Message::Request(Request::Join(join)) => {
            w.0.extend_from_slice(&join.resource.0);
            w.u8(join.from.number());
            w.u8(join.to.number());
            w.u64(join.bundle);
            JOIN
        }
        Message::Request(Request::Await(ask)) => {
            w.u8(ask.state as u8);
            w.u64(ask.fill);
            w.u64(ask.fetched.0);
            w.u64(ask.replayed.0);
            w.bool(ask.fetch_paused);
            w.bool(ask.replay_paused);
            w.u64(ask.known.0);
            w.u64(ask.segment);
            w.u32(ask.wait_ms);
            let copied = &ask.copied[..ask.copied.len().min(MAX_COPIED)];
            w.count(copied.len());
            copied.iter().for_each(|range| w.range(*range));
            AWAIT
        }
        Message::Request(Request::Fetch(fetch)) => {
            w.u64(fetch.segment);
            w.u64(fetch.from.0);
            w.u32(fetch.len);
            FETCH
        }
        Message::Request(Request::Copy { fill }) => {
            w.u64(*fill);
            COPY
        }
        Message::Request(Request::Take { fill, range }) => {
            w.u64(*fill);
            w.range(*range);
            TAKE
        }
        Message::Request(Request::Heal(range)) => {
            w.range(*range);
            HEAL
        }
        Message::Answer(answer) => return write_answer(answer, w),
    };
    (kind, Bytes::new())
}

fn write_answer(answer: &Answer, w: &mut Writer<'_>) -> (u8, Bytes) {
    let kind = match answer {
        Answer::Welcome(welcome) => {
            w.u16(welcome.version);
            w.u64(welcome.features);
            w.verdict(&welcome.verdict);
            w.head(&welcome.head);
            WELCOME
        }
        Answer::Joined => JOINED,
        Answer::Head(head) => {
            w.head(head);
            HEAD
        }
        Answer::Piece(piece) => {
            w.u64(piece.segment);
            w.u64(piece.from.0);
            w.u32(piece.len);
            w.u8(piece.compression as u8);
            return (PIECE, piece.bytes.clone());
        }
        Answer::Block(block) => {
            w.block(block);
            return (BLOCK, block.bytes.clone());
        }
        Answer::Healed { position, block } => {
            w.u64(position.0);
            w.block(block);
            return (HEALED, block.bytes.clone());
        }
        Answer::Offer(offer) => {
            w.u64(offer.fill);
            w.range(offer.range);
            w.u32(offer.part);
            let digests = &offer.digests[..offer.digests.len().min(MAX_DIGESTS)];
            w.count(digests.len());
            digests.iter().for_each(|digest| w.0.extend_from_slice(digest));
            OFFER
        }
        Answer::Lost { fill, range } => {
            w.u64(*fill);
            w.range(*range);
            LOST
        }
        Answer::Refuse { code, text } => {
            let mut end = text.len().min(MAX_TEXT);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            w.u8(*code as u8);
            w.u8(u8::try_from(end).unwrap_or(u8::MAX));
            w.0.extend_from_slice(&text.as_bytes()[..end]);
            REFUSE
        }
    };
    (kind, Bytes::new())
}

type Field<T> = Result<T, &'static str>;

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Field<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or("length")?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Field<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn bool(&mut self) -> Field<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("flag"),
        }
    }

    fn u16(&mut self) -> Field<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Field<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Field<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn count(&mut self, most: usize) -> Field<usize> {
        let count = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if count <= most { Ok(count) } else { Err("number of entries") }
    }

    fn position(&mut self) -> Field<LogPosition> {
        match self.u64()? {
            position if position < MAX_POSITION => Ok(LogPosition(position)),
            _ => Err("position"),
        }
    }

    fn optional(&mut self) -> Field<Option<LogPosition>> {
        match self.u64()? {
            NO_POSITION => Ok(None),
            position if position < MAX_POSITION => Ok(Some(LogPosition(position))),
            _ => Err("position"),
        }
    }

    /// A number of bytes of a journal.
    fn bytes_of_log(&mut self) -> Field<u64> {
        match self.u64()? {
            len if len < MAX_POSITION => Ok(len),
            _ => Err("length of a segment"),
        }
    }

    fn node(&mut self) -> Field<NodeId> {
        NodeId::new(self.u8()?).ok_or("node")
    }

    fn time(&mut self) -> Field<HybridTime> {
        self.u64().map(HybridTime)
    }

    /// A range of whole blocks, not empty.
    fn range(&mut self) -> Field<ByteRange> {
        match self.range_or_empty()? {
            range if range.is_empty() => Err("range"),
            range => Ok(range),
        }
    }

    fn range_or_empty(&mut self) -> Field<ByteRange> {
        let range = ByteRange::new(self.u64()?, self.u64()?);
        let within = range.offset <= MAX_DEVICE_SIZE && range.len <= MAX_DEVICE_SIZE;
        if within && range.is_aligned() { Ok(range) } else { Err("range") }
    }

    fn block(&mut self, bytes: Bytes) -> Field<Block> {
        let (fill, range) = (self.u64()?, self.range_or_empty()?);
        let (zeroes, compression, crc) = (self.bool()?, self.compression()?, self.u32()?);
        packed_fits(compression, if zeroes { 0 } else { range.len }, &bytes)?;
        Ok(Block { fill, range, zeroes, compression, crc, bytes })
    }

    fn state(&mut self) -> Field<FollowState> {
        match self.u8()? {
            0 => Ok(FollowState::Nothing),
            1 => Ok(FollowState::Filling),
            2 => Ok(FollowState::Consistent),
            _ => Err("state"),
        }
    }

    fn compression(&mut self) -> Field<Compression> {
        match self.u8()? {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Lz4),
            _ => Err("compression"),
        }
    }

    fn report(&mut self) -> Field<Report> {
        let (state, fill) = (self.state()?, self.u64()?);
        let generation = GenerationId(self.u64()?);
        let (fetched, replayed) = (self.position()?, self.position()?);
        let count = self.count(MAX_LINKS)?;
        let links = (0..count).map(|_| self.link()).collect::<Field<_>>()?;
        Ok(Report { state, fill, generation, fetched, replayed, links })
    }

    fn link(&mut self) -> Field<SegmentLink> {
        Ok(SegmentLink {
            number: self.u64()?,
            origin: self.node()?,
            epoch: self.u64()?,
            base: self.position()?,
            len: self.bytes_of_log()?,
            time: self.time()?,
            chain: self.take()?,
        })
    }

    fn verdict(&mut self) -> Field<Verdict> {
        Ok(match self.u8()? {
            0 => Verdict::Ship,
            1 => {
                let (fill, segment) = (self.u64()?, self.u64()?);
                Verdict::Fill { fill, segment, from: self.position()? }
            }
            2 => Verdict::FillOn,
            3 => Verdict::Drain,
            4 => Verdict::Apart {
                common: self.optional()?,
                follower: self.u64()?,
                leader: self.u64()?,
                follower_since: self.time()?,
                leader_since: self.time()?,
            },
            _ => return Err("verdict"),
        })
    }

    fn head(&mut self) -> Field<Head> {
        let (durable, now) = (self.position()?, self.time()?);
        let (fetch_lag_ms, replay_lag_ms) = (self.u64()?, self.u64()?);
        let again = self.bool()?;
        let (fill, fill_left, fill_to) = (self.u64()?, self.u64()?, self.optional()?);
        let count = self.count(MAX_SEGMENTS)?;
        let segments = (0..count).map(|_| self.segment()).collect::<Field<_>>()?;
        Ok(Head {
            durable,
            now,
            fetch_lag_ms,
            replay_lag_ms,
            again,
            fill,
            fill_left,
            fill_to,
            segments,
        })
    }

    fn segment(&mut self) -> Field<(SegmentHeader, u64)> {
        let mut header = SegmentHeader {
            // Whose journal it is was said in the hello.
            resource: ResourceId([0; 16]),
            number: self.u64()?,
            origin: self.node()?,
            epoch: self.u64()?,
            base: self.position()?,
            capacity: self.bytes_of_log()?,
            alignment: self.u32()?,
            time: self.time()?,
            chain: self.take()?,
            predecessor: match (self.u8()?, self.u64()?, self.bytes_of_log()?) {
                (NO_NODE, 0, 0) => None,
                (node, epoch, len) => Some((NodeId::new(node).ok_or("node")?, epoch, len)),
            },
            generation: GenerationId(self.u64()?),
            packed: false,
        };
        header.packed = header.alignment & PACKED != 0;
        header.alignment &= !PACKED;
        let len = self.bytes_of_log()?;
        let possible = is_alignment(header.alignment)
            && header.number > 0
            && header.number < MAX_POSITION
            && header.base.0.is_multiple_of(512)
            && header.capacity.is_multiple_of(4096)
            && header.capacity > 4096
            && len <= header.capacity - 4096
            && len.is_multiple_of(512);
        if possible { Ok((header, len)) } else { Err("segment") }
    }
}

fn read(kind: u8, r: &mut Reader<'_>, payload: Bytes) -> Field<Message> {
    let request = match kind {
        HELLO => Request::Hello(Hello {
            version_min: r.u16()?,
            version_max: r.u16()?,
            features: r.u64()?,
            resource: ResourceId(r.take()?),
            from: r.node()?,
            to: r.node()?,
            size: r.u64()?,
            bundle: r.u64()?,
            report: r.report()?,
        }),
        JOIN => Request::Join(Join {
            resource: ResourceId(r.take()?),
            from: r.node()?,
            to: r.node()?,
            bundle: r.u64()?,
        }),
        AWAIT => Request::Await(read_await(r)?),
        FETCH => Request::Fetch(Fetch { segment: r.u64()?, from: r.position()?, len: r.u32()? }),
        COPY => Request::Copy { fill: r.u64()? },
        TAKE => {
            let (fill, range) = (r.u64()?, r.range()?);
            if range.len > MAX_REQUEST {
                return Err("range");
            }
            Request::Take { fill, range }
        }
        HEAL => match r.range()? {
            range if range.len > MAX_HEALED => return Err("range"),
            range => Request::Heal(range),
        },
        _ => return read_answer(kind, r, payload).map(Message::Answer),
    };
    Ok(Message::Request(request))
}

fn read_await(r: &mut Reader<'_>) -> Field<Await> {
    let (state, fill) = (r.state()?, r.u64()?);
    let (fetched, replayed) = (r.position()?, r.position()?);
    let (fetch_paused, replay_paused) = (r.bool()?, r.bool()?);
    let (known, segment, wait_ms) = (r.position()?, r.u64()?, r.u32()?);
    let count = r.count(MAX_COPIED)?;
    let copied = (0..count).map(|_| r.range()).collect::<Field<_>>()?;
    Ok(Await {
        state,
        fill,
        fetched,
        replayed,
        fetch_paused,
        replay_paused,
        known,
        segment,
        wait_ms,
        copied,
    })
}

fn read_answer(kind: u8, r: &mut Reader<'_>, bytes: Bytes) -> Field<Answer> {
    Ok(match kind {
        WELCOME => Answer::Welcome(Welcome {
            version: r.u16()?,
            features: r.u64()?,
            verdict: r.verdict()?,
            head: r.head()?,
        }),
        JOINED => Answer::Joined,
        HEAD => Answer::Head(r.head()?),
        PIECE => {
            let (segment, from, len) = (r.u64()?, r.position()?, r.u32()?);
            let compression = r.compression()?;
            packed_fits(compression, u64::from(len), &bytes)?;
            Answer::Piece(Piece { segment, from, len, compression, bytes })
        }
        BLOCK => Answer::Block(r.block(bytes)?),
        HEALED => {
            let (position, block) = (r.position()?, r.block(bytes)?);
            if block.range.len > MAX_HEALED {
                return Err("range");
            }
            Answer::Healed { position, block }
        }
        OFFER => Answer::Offer(read_offer(r)?),
        LOST => match (r.u64()?, r.range()?) {
            (_, range) if range.len > MAX_REQUEST => return Err("range"),
            (fill, range) => Answer::Lost { fill, range },
        },
        _ => {
            let code = match r.u8()? {
                0 => RefuseCode::Version,
                1 => RefuseCode::Resource,
                2 => RefuseCode::NotLeading,
                3 => RefuseCode::Member,
                4 => RefuseCode::Gone,
                5 => RefuseCode::Failed,
                _ => return Err("code"),
            };
            let len = usize::from(r.u8()?);
            let (text, rest) = r.rest.split_at_checked(len).ok_or("length")?;
            if len > MAX_TEXT {
                return Err("length");
            }
            r.rest = rest;
            let text = std::str::from_utf8(text).map_err(|_| "text")?.to_owned();
            Answer::Refuse { code, text }
        }
    })
}

fn read_offer(r: &mut Reader<'_>) -> Field<Offer> {
    let (fill, range, part) = (r.u64()?, r.range()?, r.u32()?);
    let count = r.count(MAX_DIGESTS)?;
    let digests = (0..count).map(|_| r.take()).collect::<Field<Vec<_>>>()?;
    let blocks = u64::from(part).is_multiple_of(BLOCK_SIZE) && part > 0;
    let fits = blocks && range.len.div_ceil(u64::from(part)) == count as u64;
    if fits && range.len <= MAX_REQUEST {
        Ok(Offer { fill, range, part, digests })
    } else {
        Err("offer")
    }
}

/// Bytes that are packed are fewer than those they stand for, and not none.
fn packed_fits(compression: Compression, len: u64, bytes: &Bytes) -> Field<()> {
    let got = bytes.len() as u64;
    let fits = match compression {
        Compression::None => got == len,
        Compression::Lz4 | Compression::Zstd => got > 0 && got < len,
    };
    if fits && len <= MAX_PAYLOAD as u64 { Ok(()) } else { Err("payload") }
}

#[cfg(test)]
mod tests;
