//! Options, requests and replies as bytes. No I/O: the server and the client both build on it.
//!
//! Every integer of the protocol is big-endian.

pub mod consts;
mod cursor;
mod option;
mod reply;
mod request;

pub(crate) use cursor::Cursor;
pub(crate) use option::export_name;
pub use option::{
    InfoRequest, MetaRequest, OptionFault, OptionHeader, OptionReplyHeader, option_error,
    option_reply, option_request,
};
pub use reply::{ChunkFrame, ReplyHeader, ReplyStyle, SIMPLE_REPLY_LEN, simple_reply};
pub use request::{RequestHeader, StatusFilter, WireError};

#[cfg(test)]
mod tests;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u16)]
pub enum Command {
    /// Give back what a range holds.
    Read = 0,
    /// Store the payload.
    Write = 1,
    /// The client is about to close; there is no reply.
    Disconnect = 2,
    /// Make durable whatever was completed before.
    Flush = 3,
    /// The content of a range is not needed any more.
    Trim = 4,
    /// The range will be read soon.
    Cache = 5,
    /// Make a range read as zeroes.
    WriteZeroes = 6,
    /// Say what a range holds: data, zeroes, nothing.
    BlockStatus = 7,
    /// Change the size of the export to the offset.
    Resize = 8,
}

impl Command {
    /// The command with this number; `None` when there is none.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            8 => Self::Resize,
            _ => return None,
        })
    }

    /// The number as it travels.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// What an export offers, as the server tells it when transmission begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// Whether all bits of `flag` (one of [`consts::flag`]) are set.
    #[must_use]
    pub const fn has(self, flag: u16) -> bool {
        self.0 & flag == flag
    }
}

/// One stretch of a block status answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Extent {
    /// How long it is, in bytes; more than 0.
    pub len: u64,
    /// One of [`consts::state`], by what the metadata context tells. For `base:allocation`:
    /// [`consts::state::HOLE`] and [`consts::state::ZERO`], or 0 for data.
    pub flags: u32,
}

impl Extent {
    /// `len` bytes of data.
    #[must_use]
    pub const fn data(len: u64) -> Self {
        Self { len, flags: 0 }
    }

    /// `len` bytes that are dirty, or clean.
    #[must_use]
    pub const fn dirty(len: u64, dirty: bool) -> Self {
        Self { len, flags: if dirty { consts::state::DIRTY } else { 0 } }
    }

    /// `len` bytes that take no space and read as zeroes.
    #[must_use]
    pub const fn hole(len: u64) -> Self {
        Self { len, flags: consts::state::HOLE | consts::state::ZERO }
    }
}
