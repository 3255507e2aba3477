//! Node-to-node messages of one resource.

#![deny(clippy::cast_possible_truncation)]

mod codec;
mod error;
mod message;

pub use codec::{
    HEADER_LEN, Header, MAX_BITMAP_RUNS, MAX_BODY, MAX_DATALESS_RANGE, MAX_DIFFERING,
    MAX_REFUSAL_TEXT, MAX_VERIFY_BLOCKS, decode, encode, negotiate, parse_header,
};
pub use error::WireError;
pub use message::{
    Differing, Digest, FEATURE_HEAL, FEATURE_PAUSE, FEATURE_REPLAY, FEATURE_VERIFY, Generations,
    HISTORY_LEN, Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, PeerResult, PromoteAnswer,
    PromoteStep, RefusalCode, RepairMode, StateReport, SyncPause, Verdict, WriteKind,
};
