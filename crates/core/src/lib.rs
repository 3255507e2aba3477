//! The replication engine of ONE resource on ONE node.
//!
//! It is sans-IO and deterministic: [`Core::on`] takes one [`Event`] and appends the [`Action`]s
//! that the driver must carry out. No clock, socket, file, thread or random source is used inside;
//! the same events give the same actions. The promises, the states and the messages are described in
//! `docs/design/replication.md`.

#![deny(clippy::cast_possible_truncation)]

mod actlog;
mod compare;
mod decide;
mod engine;
mod event;
mod generation;
mod grow;
mod handshake;
mod heal;
mod hedge;
mod invalidate;
mod kept;
mod link;
mod locks;
mod pause;
mod peer;
mod peer_io;
mod persist;
mod planted;
mod replay;
mod requests;
mod resync_end;
mod roles;
mod sync;
mod verify;
mod zeroes;

pub use engine::Core;

pub use event::{
    Action, Attachment, Command, CommandId, Config, DiskOpId, DiskOutcome, Event, IoFailure,
    JournalReadId, LinkId, LoggedWrite, MetaOpId, Notice, Options, PeerConfig, PeerSnapshot,
    Refusal, RequestId, RequestKind, ResyncProgress, Snapshot, StandsStill,
};
pub use planted::PlantedBug;
pub use verify::{
    MAX_FOUND, Order as SurveyChunks, SurveyAction, SurveyEnd, SurveyKind, SurveyOrder,
    SurveyProgress,
};
