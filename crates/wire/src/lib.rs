//! Node-to-node messages of one resource.

#![deny(clippy::cast_possible_truncation)]

mod codec;
mod error;
mod message;

pub use codec::{
    HEADER_LEN, Header, MAX_BITMAP_RUNS, MAX_BODY, MAX_DATALESS_RANGE, MAX_REFUSAL_TEXT, decode,
    encode, negotiate, parse_header,
};
pub use error::WireError;
pub use message::{
    FEATURE_REPLAY, Generations, HISTORY_LEN, Hello, Message, PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN, PeerResult, PromoteAnswer, PromoteStep, RefusalCode, StateReport,
    Verdict, WriteKind,
};
