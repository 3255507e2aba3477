//! Messages as bytes. `docs/design/wire.md` has the layout of every message.
//!
//! A frame is a header of 16 bytes, a body of fields, and a payload of data. All numbers are
//! little-endian. The checksum covers header and body; the payload is guarded by TLS.
//!
//! The layout of the header, of [`Hello`] and of [`Message::Refuse`] is frozen: a build of any
//! version can read those of any other one, so that two versions that have nothing in common can
//! say so to each other.

mod body;
#[cfg(test)]
mod tests;

use crate::{Hello, Message, WireError};
use body::{Reader, Writer};
use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, MAX_REQUEST};

/// The length of a frame's header in bytes.
pub const HEADER_LEN: usize = 16;
/// The longest body in bytes.
pub const MAX_BODY: usize = 128 << 10;
/// The longest text of [`Message::Refuse`] in bytes; [`encode`] cuts a longer one.
pub const MAX_REFUSAL_TEXT: usize = 200;
/// The most runs in one [`Message::Bitmap`].
pub const MAX_BITMAP_RUNS: usize = 4096;
/// The most blocks whose digests are asked for, and that are compared, at a time.
pub const MAX_VERIFY_BLOCKS: usize = 256;
/// The most entries in one [`Message::VerifySpanReply`].
pub const MAX_DIFFERING: usize = 4096;
/// The longest range in bytes that travels without its data: zeroes and resync requests.
pub const MAX_DATALESS_RANGE: u64 = 128 << 20;

/// The first two bytes of every frame, as they travel: `H`, `F`.
const MAGIC: [u8; 2] = *b"HF";
/// How much of the header the checksum covers: all before itself.
const SUMMED_LEN: usize = 12;

/// The kinds of messages, by the number that they have on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Hello = 1,
    State = 2,
    Verdict = 3,
    Refuse = 4,
    Goodbye = 5,
    Changed = 6,
    Ping = 7,
    Pong = 8,
    Write = 9,
    WriteAck = 10,
    Flush = 11,
    FlushAck = 12,
    Read = 13,
    ReadReply = 14,
    NewGeneration = 15,
    GenerationAck = 16,
    Settled = 17,
    Missed = 18,
    Bitmap = 19,
    ResyncRequest = 20,
    ResyncData = 21,
    ResyncAck = 22,
    ResyncComplete = 23,
    ResyncGenerations = 24,
    ResyncAdopted = 25,
    Promote = 26,
    PromoteReply = 27,
    Invalidate = 28,
    Synced = 29,
    Replay = 30,
    ReplayAck = 31,
    ReplayDone = 32,
    HealRead = 33,
    ResyncLost = 34,
    VerifyRequest = 35,
    VerifyReply = 36,
    VerifySpan = 37,
    VerifySpanReply = 38,
    VerifyRepair = 39,
    VerifyRepaired = 40,
    VerifyProgress = 41,
    SyncPaused = 42,
}

/// Every kind with its name, in the order of their numbers, from 1.
const KINDS: [(Kind, &str); 42] = [
    (Kind::Hello, "Hello"),
    (Kind::State, "State"),
    (Kind::Verdict, "Verdict"),
    (Kind::Refuse, "Refuse"),
    (Kind::Goodbye, "Goodbye"),
    (Kind::Changed, "Changed"),
    (Kind::Ping, "Ping"),
    (Kind::Pong, "Pong"),
    (Kind::Write, "Write"),
    (Kind::WriteAck, "WriteAck"),
    (Kind::Flush, "Flush"),
    (Kind::FlushAck, "FlushAck"),
    (Kind::Read, "Read"),
    (Kind::ReadReply, "ReadReply"),
    (Kind::NewGeneration, "NewGeneration"),
    (Kind::GenerationAck, "GenerationAck"),
    (Kind::Settled, "Settled"),
    (Kind::Missed, "Missed"),
    (Kind::Bitmap, "Bitmap"),
    (Kind::ResyncRequest, "ResyncRequest"),
    (Kind::ResyncData, "ResyncData"),
    (Kind::ResyncAck, "ResyncAck"),
    (Kind::ResyncComplete, "ResyncComplete"),
    (Kind::ResyncGenerations, "ResyncGenerations"),
    (Kind::ResyncAdopted, "ResyncAdopted"),
    (Kind::Promote, "Promote"),
    (Kind::PromoteReply, "PromoteReply"),
    (Kind::Invalidate, "Invalidate"),
    (Kind::Synced, "Synced"),
    (Kind::Replay, "Replay"),
    (Kind::ReplayAck, "ReplayAck"),
    (Kind::ReplayDone, "ReplayDone"),
    (Kind::HealRead, "HealRead"),
    (Kind::ResyncLost, "ResyncLost"),
    (Kind::VerifyRequest, "VerifyRequest"),
    (Kind::VerifyReply, "VerifyReply"),
    (Kind::VerifySpan, "VerifySpan"),
    (Kind::VerifySpanReply, "VerifySpanReply"),
    (Kind::VerifyRepair, "VerifyRepair"),
    (Kind::VerifyRepaired, "VerifyRepaired"),
    (Kind::VerifyProgress, "VerifyProgress"),
    (Kind::SyncPaused, "SyncPaused"),
];

impl Kind {
    const fn of(message: &Message) -> Self {
        match message {
            Message::Hello(_) => Self::Hello,
            Message::State(_) => Self::State,
            Message::Verdict { .. } => Self::Verdict,
            Message::Refuse { .. } => Self::Refuse,
            Message::Goodbye => Self::Goodbye,
            Message::Changed { .. } => Self::Changed,
            Message::Ping => Self::Ping,
            Message::Pong => Self::Pong,
            Message::Write { .. } => Self::Write,
            Message::WriteAck { .. } => Self::WriteAck,
            Message::Flush { .. } => Self::Flush,
            Message::FlushAck { .. } => Self::FlushAck,
            Message::Read { .. } => Self::Read,
            Message::ReadReply { .. } => Self::ReadReply,
            Message::NewGeneration { .. } => Self::NewGeneration,
            Message::GenerationAck { .. } => Self::GenerationAck,
            Message::Settled { .. } => Self::Settled,
            Message::Missed { .. } => Self::Missed,
            Message::Bitmap { .. } => Self::Bitmap,
            Message::ResyncRequest { .. } => Self::ResyncRequest,
            Message::ResyncData { .. } => Self::ResyncData,
            Message::ResyncAck { .. } => Self::ResyncAck,
            Message::ResyncComplete => Self::ResyncComplete,
            Message::ResyncGenerations { .. } => Self::ResyncGenerations,
            Message::ResyncAdopted { .. } => Self::ResyncAdopted,
            Message::Promote { .. } => Self::Promote,
            Message::PromoteReply { .. } => Self::PromoteReply,
            Message::Invalidate { .. } => Self::Invalidate,
            Message::Synced { .. } => Self::Synced,
            Message::Replay { .. } => Self::Replay,
            Message::ReplayAck { .. } => Self::ReplayAck,
            Message::ReplayDone { .. } => Self::ReplayDone,
            Message::HealRead { .. } => Self::HealRead,
            Message::ResyncLost { .. } => Self::ResyncLost,
            Message::VerifyRequest { .. } => Self::VerifyRequest,
            Message::VerifyReply { .. } => Self::VerifyReply,
            Message::VerifySpan { .. } => Self::VerifySpan,
            Message::VerifySpanReply { .. } => Self::VerifySpanReply,
            Message::VerifyRepair { .. } => Self::VerifyRepair,
            Message::VerifyRepaired { .. } => Self::VerifyRepaired,
            Message::VerifyProgress { .. } => Self::VerifyProgress,
            Message::SyncPaused { .. } => Self::SyncPaused,
        }
    }

    const fn may_have_payload(self) -> bool {
        matches!(
            self,
            Self::Write | Self::ReadReply | Self::ResyncData | Self::Replay | Self::VerifyRepair
        )
    }
}

/// The header of a frame: what comes behind it, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: Kind,
    name: &'static str,
    body_len: usize,
    payload_len: usize,
    /// The checksum that the frame has.
    checksum: u32,
    /// The checksum of the header's own part, to go on with over the body.
    summed: u32,
}

impl Header {
    /// The length of the body in bytes, at most [`MAX_BODY`].
    #[must_use]
    pub const fn body_len(&self) -> usize {
        self.body_len
    }

    /// The length of the payload in bytes: whole blocks, at most [`MAX_REQUEST`].
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// The kind of message, as [`Message::name`] calls it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// Appends header and body of a message. The payload is not appended: the caller sends
/// [`Message::payload`] after them, from where it is.
///
/// The message is taken to keep the limits that [`decode`] checks; the peer refuses it otherwise.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    body::write(message, &mut Writer(out));
    let payload_len = message.payload().map_or(0, Bytes::len);

    let (header, body) = out[start..].split_at_mut(HEADER_LEN);
    header[..2].copy_from_slice(&MAGIC);
    header[2] = Kind::of(message) as u8;
    header[4..8].copy_from_slice(&wire_len(body.len()).to_le_bytes());
    header[8..12].copy_from_slice(&wire_len(payload_len).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..SUMMED_LEN]), body);
    header[SUMMED_LEN..].copy_from_slice(&checksum.to_le_bytes());
}

/// A length for the header. One that does not fit becomes one that every receiver refuses.
fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Reads a header, so that the caller knows how much to receive.
///
/// # Errors
/// [`WireError`] when it is no header, announces more than the limits, or a payload that its kind
/// of message cannot have. Whether it came undamaged is known only after [`decode`].
pub fn parse_header(bytes: &[u8; HEADER_LEN]) -> Result<Header, WireError> {
    let u32_at =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if bytes[..2] != MAGIC {
        return Err(WireError::Magic(u16::from_be_bytes([bytes[0], bytes[1]])));
    }
    let (number, flags) = (bytes[2], bytes[3]);
    let (kind, name) = *usize::from(number)
        .checked_sub(1)
        .and_then(|index| KINDS.get(index))
        .ok_or(WireError::Kind(number))?;
    if flags != 0 {
        return Err(WireError::Flags { message: name, flags });
    }
    let (body_len, payload_len) = (u32_at(4), u32_at(8));
    if body_len as usize > MAX_BODY {
        return Err(WireError::BodyTooLong { message: name, len: body_len });
    }
    let payload_fault = if payload_len == 0 {
        None
    } else if !kind.may_have_payload() {
        Some("it cannot have any")
    } else if u64::from(payload_len) > MAX_REQUEST {
        Some("that is too much")
    } else if !u64::from(payload_len).is_multiple_of(BLOCK_SIZE) {
        Some("these are not whole blocks")
    } else {
        None
    };
    if let Some(why) = payload_fault {
        return Err(WireError::Payload { message: name, len: payload_len, why });
    }
    Ok(Header {
        kind,
        name,
        body_len: body_len as usize,
        payload_len: payload_len as usize,
        checksum: u32_at(SUMMED_LEN),
        summed: crc32c::crc32c(&bytes[..SUMMED_LEN]),
    })
}

/// Reads a message from a header, the body and the payload that came behind it.
///
/// # Errors
/// [`WireError`] when lengths or checksum do not match, or when any field has a value that it
/// cannot have. A message that is returned keeps all limits that can be checked without knowing
/// the resource: whether a range lies inside of the device is for the receiver to check.
pub fn decode(header: &Header, body: &[u8], payload: Bytes) -> Result<Message, WireError> {
    let announced = header.body_len + header.payload_len;
    if body.len() != header.body_len || payload.len() != header.payload_len {
        let got = body.len().saturating_add(payload.len());
        return Err(WireError::Cut { message: header.name, announced, got });
    }
    if crc32c::crc32c_append(header.summed, body) != header.checksum {
        return Err(WireError::Checksum(header.name));
    }
    let mut reader = Reader { rest: body, message: header.name };
    let message = body::read(header.kind, &mut reader, payload)?;
    reader.finish()?;
    Ok(message)
}

/// The protocol version that two nodes speak with each other: the highest that both know.
///
/// # Errors
/// [`WireError::NoCommonVersion`] when there is none.
pub fn negotiate(mine: &Hello, theirs: &Hello) -> Result<u16, WireError> {
    let newest = mine.version_max.min(theirs.version_max);
    let oldest = mine.version_min.max(theirs.version_min);
    if oldest <= newest {
        return Ok(newest);
    }
    Err(WireError::NoCommonVersion {
        mine: (mine.version_min, mine.version_max),
        theirs: (theirs.version_min, theirs.version_max),
    })
}
