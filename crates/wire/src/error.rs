use thiserror::Error;

/// Why bytes are not a message, or why two nodes cannot talk. Each is final for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The stream does not hold a frame where one must start.
    #[error("the peer does not speak Holdfast's protocol: a frame starts with {0:#06x}")]
    Magic(u16),
    /// A kind of message that this build does not know.
    #[error("the peer sent a message of the unknown kind {0}")]
    Kind(u8),
    /// Flag bits that no version has given a meaning.
    #[error("the peer sent a {message} frame with the unknown flags {flags:#04x}")]
    Flags {
        /// The kind of message.
        message: &'static str,
        /// All flags of the frame.
        flags: u8,
    },
    /// The header announces a body beyond [`crate::MAX_BODY`].
    #[error("the peer announced a {message} message of {len} bytes, which is too long")]
    BodyTooLong {
        /// The kind of message.
        message: &'static str,
        /// The announced length in bytes.
        len: u32,
    },
    /// The header announces a payload that this kind of message cannot have.
    #[error("the peer announced {len} bytes of data behind a {message} message: {why}")]
    Payload {
        /// The kind of message.
        message: &'static str,
        /// The announced length in bytes.
        len: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Body or payload are not as long as the header says.
    #[error("a {message} message was cut: {got} bytes came where {announced} were announced")]
    Cut {
        /// The kind of message.
        message: &'static str,
        /// Bytes that the header announced, body and payload.
        announced: usize,
        /// Bytes that came.
        got: usize,
    },
    /// The checksum over header and body does not match.
    #[error("a {0} message was damaged on its way: its checksum is wrong")]
    Checksum(&'static str),
    /// The body ends before its last field.
    #[error("the peer sent a {0} message that ends too early")]
    TooShort(&'static str),
    /// The body goes on after its last field.
    #[error("the peer sent a {0} message with bytes after its end")]
    TooLong(&'static str),
    /// A field has a value that it cannot have.
    #[error("the peer sent a {message} message whose {field} cannot be {value}")]
    Field {
        /// The kind of message.
        message: &'static str,
        /// The name of the field.
        field: &'static str,
        /// What it has.
        value: u64,
    },
    /// A range of bytes or blocks that the message cannot have.
    #[error("the peer sent a {message} message with the range {offset}+{len}: {why}")]
    Range {
        /// The kind of message.
        message: &'static str,
        /// Where the range starts.
        offset: u64,
        /// How long it is.
        len: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A text that is not UTF-8 or longer than it may be.
    #[error("the peer sent a {0} message whose text cannot be read")]
    Text(&'static str),
    /// The ranges of protocol versions do not meet.
    #[error(
        "no protocol version in common: this node speaks {}, the peer speaks {}",
        span(*mine),
        span(*theirs)
    )]
    NoCommonVersion {
        /// Oldest and newest version of this node.
        mine: (u16, u16),
        /// Oldest and newest version of the peer.
        theirs: (u16, u16),
    },
}

fn span((oldest, newest): (u16, u16)) -> String {
    if oldest == newest { format!("version {oldest}") } else { format!("{oldest} to {newest}") }
}
