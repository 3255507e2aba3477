//! What a node that follows a journal and the node that leads say to each other.

use bytes::Bytes;
use holdfast_format::journal::{Compression, FollowState, SegmentHeader, SegmentLink};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};

/// The version of the protocol that this build speaks, and the oldest that it understands.
pub const VERSION: u16 = 1;
/// Pieces may travel packed with LZ4.
pub const FEATURE_LZ4: u64 = 1;
/// Parts of a filling may be offered by their digests first.
pub const FEATURE_OFFER: u64 = 2;
/// In a welcome: the other side follows, too, and lends what it has fetched.
pub const FEATURE_LENT: u64 = 4;
/// Who follows can unpack records that are compressed, and knows of segments that say so.
pub const FEATURE_PACKED: u64 = 8;

/// Who leads gives blocks of which a follower has no good copy.
pub const FEATURE_HEAL: u64 = 16;
/// Who follows can be told that who leads has no good copy of parts of a filling.
pub const FEATURE_LOST: u64 = 32;

/// What a follower says. Each is answered by exactly one [`Answer`], in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Begins the first connection of a follower; later, on the same one: the follower has
    /// changed so that the leader must judge anew.
    Hello(Hello),
    /// Begins each further connection.
    Join(Join),
    /// How far the follower is; answered when there is news, or after a while.
    Await(Await),
    /// Bytes of a segment's frames.
    Fetch(Fetch),
    /// Any part of the disk that the follower lacks.
    Copy {
        /// The filling that it is for.
        fill: u64,
    },
    /// A part of the disk that was offered and is different here.
    Take {
        /// The filling that it is for.
        fill: u64,
        /// Which part.
        range: ByteRange,
    },
    /// A part of the disk of which the follower has no good copy, at most [`MAX_HEALED`] bytes. Only
    /// for who leads and said that it gives them.
    ///
    /// [`MAX_HEALED`]: super::MAX_HEALED
    Heal(ByteRange),
}

/// The beginning of a follower's first connection. Its layout is frozen for all versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The oldest version that the sender speaks.
    pub version_min: u16,
    /// The newest one.
    pub version_max: u16,
    /// Feature bits; unknown ones are ignored.
    pub features: u64,
    /// Which resource.
    pub resource: ResourceId,
    /// Who follows.
    pub from: NodeId,
    /// Who is to lead.
    pub to: NodeId,
    /// The bytes of the resource.
    pub size: u64,
    /// A random number that ties this follower's connections together.
    pub bundle: u64,
    /// How it stands.
    pub report: Report,
}

/// How a follower stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// What its disk holds.
    pub state: FollowState,
    /// The number of its last filling; 0: there was none.
    pub fill: u64,
    /// The generation of its data.
    pub generation: GenerationId,
    /// Everything before this is durable in its journal.
    pub fetched: LogPosition,
    /// Everything before this is durable on its disk.
    pub replayed: LogPosition,
    /// The newest segments of its journal.
    pub links: Vec<SegmentLink>,
}

/// A further connection of a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Join {
    /// Which resource.
    pub resource: ResourceId,
    /// Who follows.
    pub from: NodeId,
    /// Who leads.
    pub to: NodeId,
    /// The number in the hello of its first connection.
    pub bundle: u64,
}

/// How far a follower is, and what it knows of the leader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Await {
    /// What its disk holds.
    pub state: FollowState,
    /// The number of its last filling; 0: there was none.
    pub fill: u64,
    /// Everything before this is durable in its journal.
    pub fetched: LogPosition,
    /// Everything before this is durable on its disk.
    pub replayed: LogPosition,
    /// It does not fetch: a person said so.
    pub fetch_paused: bool,
    /// It does not replay: a person said so.
    pub replay_paused: bool,
    /// Up to here it knows what is durable at the leader.
    pub known: LogPosition,
    /// It wants to hear of segments from this number on.
    pub segment: u64,
    /// The answer may wait for so many milliseconds if there is nothing new.
    pub wait_ms: u32,
    /// What it has made durable of the filling since it last said so.
    pub copied: Vec<ByteRange>,
}

/// Bytes that are wanted of a segment's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Of which segment.
    pub segment: u64,
    /// From where on.
    pub from: LogPosition,
    /// How many; the answer may be shorter.
    pub len: u32,
}

/// What a leader answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To a hello.
    Welcome(Welcome),
    /// To a join.
    Joined,
    /// To an await.
    Head(Head),
    /// To a fetch.
    Piece(Piece),
    /// To a copy, or a take: the part, or the beginning of it. The rest is given out again.
    Block(Block),
    /// To a copy: what the follower has to compare first.
    Offer(Offer),
    /// To a copy, or a take: of this part there is no good copy. Only for who said that it can be told.
    Lost {
        /// The filling that it is for.
        fill: u64,
        /// Which part.
        range: ByteRange,
    },
    /// To a heal.
    Healed {
        /// What the part holds is no later than this: who replays up to here without a record of the
        /// part has what it holds.
        position: LogPosition,
        /// The part, of the filling 0; empty when there is no good copy here, either.
        block: Block,
    },
    /// To anything: it cannot be done. Its layout is frozen for all versions.
    Refuse {
        /// What kind of refusal.
        code: RefuseCode,
        /// A sentence for people.
        text: String,
    },
}

/// How a leader judges a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub version: u16,
    /// The features that both know.
    pub features: u64,
    /// What the follower is to do.
    pub verdict: Verdict,
    /// How the leader stands.
    pub head: Head,
}

/// What a follower is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Fetch from the end of its journal on.
    Ship,
    /// Note durably that its disk is being filled, forget its journal, fetch from this position
    /// on, and copy.
    Fill {
        /// The number of the filling.
        fill: u64,
        /// The first segment to fetch.
        segment: u64,
        /// Where it begins.
        from: LogPosition,
    },
    /// Go on with the filling that it is in.
    FillOn,
    /// Replay everything that it has, then say hello again: it will be filled.
    Drain,
    /// Nothing: both went on apart.
    Apart {
        /// Up to here both are the same; `None` when that is not known any more.
        common: Option<LogPosition>,
        /// Bytes that only the follower has.
        follower: u64,
        /// Bytes that only the leader has.
        leader: u64,
        /// Since when the follower has been apart; zero when that is within a segment.
        follower_since: HybridTime,
        /// The same for the leader.
        leader_since: HybridTime,
    },
}

/// How a leader stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// Everything before this may be fetched.
    pub durable: LogPosition,
    /// What the leader's clock says.
    pub now: HybridTime,
    /// For how long what the follower has not fetched has been there, in milliseconds; 0 when it
    /// has everything.
    pub fetch_lag_ms: u64,
    /// The same for what it has not replayed.
    pub replay_lag_ms: u64,
    /// Say hello again: the follower can not go on as it does.
    pub again: bool,
    /// The filling that is under way; 0: none.
    pub fill: u64,
    /// The bytes that it still has to copy, as far as the leader knows.
    pub fill_left: u64,
    /// All is copied: replayed up to here, the disk is the state of a moment.
    pub fill_to: Option<LogPosition>,
    /// Segments from the wanted number on, with the bytes of their frames that are durable.
    pub segments: Vec<(SegmentHeader, u64)>,
}

/// Bytes of a segment's frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Of which segment.
    pub segment: u64,
    /// Where they begin.
    pub from: LogPosition,
    /// How many they are when they are unpacked.
    pub len: u32,
    /// How they are packed.
    pub compression: Compression,
    /// The bytes.
    pub bytes: Bytes,
}

/// A part of the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    /// The filling that it is for.
    pub fill: u64,
    /// Which part; empty when nothing is left that was not given out.
    pub range: ByteRange,
    /// It is all zeroes, and there are no bytes.
    pub zeroes: bool,
    /// How the bytes are packed.
    pub compression: Compression,
    /// CRC-32C of the part; 0 when it is empty or zeroes.
    pub crc: u32,
    /// The bytes.
    pub bytes: Bytes,
}

/// A part of the disk by its digests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The filling that it is for.
    pub fill: u64,
    /// Which part.
    pub range: ByteRange,
    /// The bytes that each digest is of; the last one may be of fewer.
    pub part: u32,
    /// The first 16 bytes of the SHA-256 of each.
    pub digests: Vec<[u8; 16]>,
}

/// Why something was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RefuseCode {
    /// No version is known to both.
    Version = 0,
    /// The resource is not known, is down, or has no journal here.
    Resource = 1,
    /// This node does not lead.
    NotLeading = 2,
    /// The follower is no log member, or its size is another one.
    Member = 3,
    /// What was asked for is not there, or the connections are not tied together: begin again.
    Gone = 4,
    /// The disk or the journal of the leader failed.
    Failed = 5,
}
