//! Shipping a journal: a node that follows fetches it from the node that leads, and replays it.
//!
//! [`Leader`] answers requests and keeps what each follower lacks; [`Follower`] asks, copies,
//! replays. Neither has a socket or a clock: they are given messages and times. States, messages,
//! orders of persistence: `docs/design/log.md`.

mod codec;
mod fetch;
mod follow;
mod lead;
mod message;

pub use codec::{
    HEADER_LEN, MAX_BODY, MAX_COPIED, MAX_DIGESTS, MAX_HEALED, MAX_LINKS, MAX_PAYLOAD,
    MAX_SEGMENTS, MAX_TEXT, Message, ShipError, ShipHeader, decode, encode, parse_header,
};
pub use follow::{
    BACKWARDS, ConnId, FOLLOWING, FollowError, FollowOptions, FollowStatus, Follower, Healed,
    Holding, Send, Trouble, mark_led,
};
pub use lead::{
    FollowerStatus, Found, Handed, LeadError, Leader, Notes, Refusal, Reply, Source, fetch_piece,
    filling, healed,
};
pub use message::{
    Answer, Await, Block, FEATURE_HEAL, FEATURE_LENT, FEATURE_LOST, FEATURE_LZ4, FEATURE_OFFER,
    FEATURE_PACKED, Fetch, Head, Hello, Join, Offer, Piece, RefuseCode, Report, Request, VERSION,
    Verdict, Welcome,
};
