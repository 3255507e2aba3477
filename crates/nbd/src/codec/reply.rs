use super::consts::{
    EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk as kind,
};
use super::{Cursor, Extent, WireError};

/// How requests are headed and replies are framed, as the handshake agreed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
pub enum ReplyStyle {
    /// One header, then the data of a read.
    #[default]
    Simple,
    /// Reads and block status are answered in chunks.
    Structured,
    /// Everything is answered in chunks; lengths have 64 bits.
    Extended,
}

/// The length of a simple reply without data, in bytes.
pub const SIMPLE_REPLY_LEN: usize = 16;

/// Appends a simple reply; `error` 0 is success, and then the data of a read must follow.
pub fn simple_reply(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend(error.to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

/// What all chunks of one reply have in common; appends the chunks' headers and small payloads.
#[derive(Clone, Copy, Debug)]
pub struct ChunkFrame {
    /// Structured or extended.
    pub style: ReplyStyle,
    /// From the request.
    pub cookie: u64,
    /// From the request; extended headers repeat it.
    pub offset: u64,
}

impl ChunkFrame {
    fn header(&self, out: &mut Vec<u8>, done: bool, kind: u16, len: u64) {
        let extended = self.style == ReplyStyle::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        out.extend(magic.to_be_bytes());
        out.extend((if done { kind::FLAG_DONE } else { 0 }).to_be_bytes());
        out.extend(kind.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        if extended {
            out.extend(self.offset.to_be_bytes());
            out.extend(len.to_be_bytes());
        } else {
            out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        }
    }

    /// Success with nothing to tell: the whole reply.
    pub fn none(&self, out: &mut Vec<u8>) {
        self.header(out, true, kind::NONE, 0);
    }

    /// The head of `len` bytes of data of `offset`; the data must follow. Without extended
    /// headers `len` must be below 4 GiB.
    pub fn data(&self, out: &mut Vec<u8>, done: bool, offset: u64, len: u64) {
        self.header(out, done, kind::OFFSET_DATA, len.saturating_add(8));
        out.extend(offset.to_be_bytes());
    }

    /// `len` zero bytes at `offset`.
    pub fn hole(&self, out: &mut Vec<u8>, done: bool, offset: u64, len: u32) {
        self.header(out, done, kind::OFFSET_HOLE, 12);
        out.extend(offset.to_be_bytes());
        out.extend(len.to_be_bytes());
    }

    /// An error: the whole reply. `error` must not be 0.
    pub fn error(&self, out: &mut Vec<u8>, error: u32) {
        self.header(out, true, kind::ERROR, 6);
        out.extend(error.to_be_bytes());
        out.extend(0u16.to_be_bytes());
    }

    /// What one metadata context says. Without extended headers every extent must be below
    /// 4 GiB, or is cut to it.
    pub fn block_status(&self, out: &mut Vec<u8>, done: bool, context: u32, extents: &[Extent]) {
        let count = extents.len() as u64;
        if self.style == ReplyStyle::Extended {
            self.header(out, done, kind::BLOCK_STATUS_EXT, 8 + count * 16);
            out.extend(context.to_be_bytes());
            out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
            for extent in extents {
                out.extend(extent.len.to_be_bytes());
                out.extend(u64::from(extent.flags).to_be_bytes());
            }
        } else {
            self.header(out, done, kind::BLOCK_STATUS, 4 + count * 8);
            out.extend(context.to_be_bytes());
            for extent in extents {
                out.extend(u32::try_from(extent.len).unwrap_or(u32::MAX).to_be_bytes());
                out.extend(extent.flags.to_be_bytes());
            }
        }
    }
}

/// What starts a reply, as the client reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyHeader {
    /// A simple reply; the data of a successful read follow.
    Simple {
        /// From the request.
        cookie: u64,
        /// 0 is success.
        error: u32,
    },
    /// A chunk; `len` bytes of payload follow.
    Chunk {
        /// From the request.
        cookie: u64,
        /// One of [`super::consts::chunk`], or anything.
        kind: u16,
        /// Whether it is the reply's last.
        done: bool,
        /// Length of its payload, in bytes.
        len: u64,
    },
}

impl ReplyHeader {
    /// The number of bytes that [`ReplyHeader::rest_len`] needs to see.
    pub const MAGIC_LEN: usize = 4;

    /// How many bytes of the header follow the first four.
    ///
    /// # Errors
    /// [`WireError`] when they are no magic number that `style` allows.
    pub fn rest_len(style: ReplyStyle, magic: [u8; 4]) -> Result<usize, WireError> {
        match (u32::from_be_bytes(magic), style) {
            (SIMPLE_REPLY_MAGIC, ReplyStyle::Simple | ReplyStyle::Structured) => Ok(12),
            (STRUCTURED_REPLY_MAGIC, ReplyStyle::Structured) => Ok(16),
            (EXTENDED_REPLY_MAGIC, ReplyStyle::Extended) => Ok(28),
            _ => Err(WireError("a reply does not start with a magic that was agreed on")),
        }
    }

    /// Reads what follows the first four bytes; `rest` is as long as [`Self::rest_len`] said.
    ///
    /// # Errors
    /// [`WireError`] when it is too short.
    pub fn parse(magic: [u8; 4], rest: &[u8]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(rest);
        let parsed = match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => (|| {
                let error = fields.u32()?;
                Some(Self::Simple { error, cookie: fields.u64()? })
            })(),
            magic => (|| {
                let done = fields.u16()? & kind::FLAG_DONE != 0;
                let (kind, cookie) = (fields.u16()?, fields.u64()?);
                let len = if magic == EXTENDED_REPLY_MAGIC {
                    fields.u64()?;
                    fields.u64()?
                } else {
                    fields.u32()?.into()
                };
                Some(Self::Chunk { cookie, kind, done, len })
            })(),
        };
        parsed.ok_or(WireError("a reply's header is cut off"))
    }
}
