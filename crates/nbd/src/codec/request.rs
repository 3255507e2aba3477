use super::consts::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};
use super::{Cursor, ReplyStyle};

/// The other side broke the protocol so that the stream cannot be followed any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct WireError(pub &'static str);

/// What starts a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// Bits of [`super::consts::command_flag`], or any others.
    pub flags: u16,
    /// The number of a [`super::Command`], or anything.
    pub command: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
}

impl RequestHeader {
    /// How many bytes one takes on the wire.
    #[must_use]
    pub const fn wire_len(style: ReplyStyle) -> usize {
        match style {
            ReplyStyle::Simple | ReplyStyle::Structured => 28,
            ReplyStyle::Extended => 32,
        }
    }

    /// Reads one off the front of `bytes`; `None` when not all of it is there yet.
    ///
    /// # Errors
    /// [`WireError`] when the magic number is wrong: the stream is out of step.
    pub fn parse(style: ReplyStyle, bytes: &[u8]) -> Result<Option<Self>, WireError> {
        if bytes.len() < Self::wire_len(style) {
            return Ok(None);
        }
        let extended = style == ReplyStyle::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let mut fields = Cursor::new(bytes);
        if fields.u32() != Some(magic) {
            return Err(WireError("a request does not start with the request magic"));
        }
        Ok((|| {
            Some(Self {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: fields.u64()?,
                offset: fields.u64()?,
                len: if extended { fields.u64()? } else { fields.u32()?.into() },
            })
        })())
    }

    /// Appends it. Without extended headers `len` must fit into 32 bits, or is cut to them.
    pub fn encode(&self, style: ReplyStyle, out: &mut Vec<u8>) {
        let extended = style == ReplyStyle::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        if extended {
            out.extend(self.len.to_be_bytes());
        } else {
            out.extend(u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes());
        }
    }
}

/// The payload with which a block status request (extended headers) says what it wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatusFilter {
    /// How long the range is that is asked about, in bytes.
    pub len: u64,
    /// The identifiers of the metadata contexts that are to be told.
    pub contexts: Vec<u32>,
}

impl StatusFilter {
    /// Reads one: 8 bytes of length and 4 for each identifier; `None` when `payload` is not that.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut fields = Cursor::new(payload);
        let len = fields.u64()?;
        let ids = fields.rest();
        if !ids.len().is_multiple_of(4) {
            return None;
        }
        let id = |bytes: &[u8]| bytes.try_into().map(u32::from_be_bytes).ok();
        Some(Self { len, contexts: ids.chunks_exact(4).filter_map(id).collect() })
    }

    /// How many bytes one with `contexts` identifiers takes on the wire.
    #[must_use]
    pub const fn wire_len(contexts: usize) -> usize {
        8 + 4 * contexts
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.len.to_be_bytes());
        out.extend(self.contexts.iter().flat_map(|id| id.to_be_bytes()));
    }
}
