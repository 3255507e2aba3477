//! The numbers of the protocol.

/// First eight bytes of a server: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What announces the newstyle handshake, and starts every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts a request of 28 bytes.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a request of 32 bytes, once extended headers are agreed on.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Starts a chunk of a reply, once extended headers are agreed on.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// The longest string of the protocol, in bytes: names, descriptions, error texts.
pub const MAX_STRING: usize = 4096;
/// The payload that every client and server can handle unless told otherwise, in bytes.
pub const PORTABLE_PAYLOAD: u32 = 32 << 20;

/// Flags of the greeting, the same bits in both directions.
pub mod handshake {
    /// Options are answered, and unknown ones do no harm.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No 124 zero bytes after the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// Options of the handshake.
pub mod option {
    /// Choose an export the old way: no error reply exists.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Continue inside TLS.
    pub const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub const INFO: u32 = 6;
    /// Choose an export and begin transmission.
    pub const GO: u32 = 7;
    /// Replies may come in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose the metadata contexts that block status reports.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Requests and replies with 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Kinds of replies to an option. Errors have the top bit set.
pub mod option_reply {
    /// Done, the option took effect.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// A piece of information about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in all errors.
    pub const ERROR: u32 = 1 << 31;
    /// The server does not know the option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// The server's rules forbid it.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// The option's data are malformed.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// Only inside TLS.
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// The client must ask for the block sizes first.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// The option's data are too long.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
    /// Not allowed once extended headers are agreed on.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR | 10;
}

/// Pieces of information about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, best and largest block.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA command flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Seeking is slow.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF command flag works.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `RESIZE` works.
    pub const SEND_RESIZE: u16 = 1 << 9;
    /// `CACHE` works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The fast-zero command flag works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// Block status may name the contexts that it wants in a payload (extended headers only).
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Command flags.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1;
    /// Zeroes must take space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The read must not be cut up.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zero fast or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload (extended headers only).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of reply chunks. Errors have the top bit set.
pub mod chunk {
    /// Set in the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1;
    /// Nothing to tell.
    pub const NONE: u16 = 0;
    /// An offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset and a length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of 32 bits.
    pub const BLOCK_STATUS: u16 = 5;
    /// Extents of 64 bits.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Set in all errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error of the whole request.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// States of metadata contexts. What a bit means depends on the context.
pub mod state {
    /// `base:allocation`: takes no space.
    pub const HOLE: u32 = 1;
    /// `base:allocation`: reads as zeroes.
    pub const ZERO: u32 = 2;
    /// A context that tells dirty from clean: dirty.
    pub const DIRTY: u32 = 1;
}

/// The metadata context for what is allocated and what is zero.
pub const BASE_ALLOCATION: &str = "base:allocation";
