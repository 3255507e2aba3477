//! What two nodes say to each other about one resource.
//!
//! One connection carries one resource between two nodes, in order, both ways. The first message of
//! each side is [`Hello`]; then the node with the higher number sends [`Message::State`] and the
//! other one answers with [`Message::Verdict`]; from then on all else is allowed. See
//! `docs/design/replication.md`.

use bytes::Bytes;
use holdfast_units::{ByteRange, DiskState, GenerationId, NodeId, PeerSet, ResourceId, Role};

/// The newest protocol version that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest protocol version that this build speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;
/// Feature bit of [`Hello`]: the sender knows [`Message::Replay`] and what belongs to it.
pub const FEATURE_REPLAY: u64 = 1;
/// Feature bit of [`Hello`]: the sender knows [`Message::HealRead`] and [`Message::ResyncLost`].
pub const FEATURE_HEAL: u64 = 2;
/// Feature bit of [`Hello`]: the sender knows [`Message::VerifyRequest`] and what belongs to it.
pub const FEATURE_VERIFY: u64 = 4;
/// Feature bit of [`Hello`]: the sender knows [`Message::SyncPaused`].
pub const FEATURE_PAUSE: u64 = 8;
/// The strong digest (BLAKE3) of a block.
pub type Digest = [u8; 32];
/// How many past generations a node remembers and tells.
pub const HISTORY_LEN: usize = 32;

/// The first message of each side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest protocol version that the sender speaks.
    pub version_min: u16,
    /// The newest protocol version that the sender speaks.
    pub version_max: u16,
    /// Feature bits; a side ignores bits that it does not know.
    pub features: u64,
    /// Which resource this connection is about.
    pub resource: ResourceId,
    /// The sender's number in the resource.
    pub from: NodeId,
    /// The number that the sender takes the receiver to have.
    pub to: NodeId,
    /// The size of the resource in bytes, as the sender has it.
    pub size: u64,
}

/// The generations of one node's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generations {
    /// The generation of the data as it is.
    pub current: GenerationId,
    /// The generation of the receiver's data since which the sender has noted what the receiver
    /// misses; [`GenerationId::NONE`] when it has not.
    pub base: GenerationId,
    /// Past generations, newest first, padded with [`GenerationId::NONE`].
    pub history: [GenerationId; HISTORY_LEN],
    /// The sender's slots for all nodes, by node number.
    pub slots: [GenerationId; 32],
}

/// All that the verdict of a handshake depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateReport {
    /// Counts the reports of the node with the higher number to this receiver, upwards from 1 since its
    /// daemon started: within a connection no two have the same, so an answer names what it answers.
    /// A new connection does not begin anew, a restart does. The node with the lower number has 0
    /// here, in its verdicts and in its wishes for one: nobody answers those by number.
    pub serial: u32,
    /// The sender's generations.
    pub generations: Generations,
    /// The sender's role.
    pub role: Role,
    /// The sender's disk.
    pub disk: DiskState,
    /// The sender stopped uncleanly and has extents of which it does not know whether they equal
    /// the receiver's.
    pub doubtful: bool,
    /// That stop happened while it was Primary.
    pub crashed_primary: bool,
    /// The sender's machine lost its page cache, and with it writes that were answered and never
    /// flushed; nobody has made up for that yet.
    pub lost_cache: bool,
    /// Who has begun to fill the sender's disk, if it was one node only.
    pub filled_from: Option<NodeId>,
    /// The generation that this is to bring it to; the sender has got every write since that began.
    pub filled_to: GenerationId,
    /// The Primary that the sender followed when it stopped uncleanly.
    pub following: Option<NodeId>,
    /// A person said that the sender's changes are to be thrown away (`--discard-my-data`).
    pub discard_my_data: bool,
    /// The Primary that the sender is connected to, or the sender itself when it is Primary.
    pub primary: Option<NodeId>,
    /// That Primary has a disk, so that it fills everybody itself.
    pub primary_good: bool,
    /// The generation that clients of the sender work on, where that is not on its own disk.
    pub serves: GenerationId,
    /// The receiver's disk failed while the sender was connected, and they were not level since. What it
    /// had cached then may be lost.
    pub saw_failure: bool,
    /// How many blocks the sender's bitmap has set for the receiver.
    pub bits: u64,
    /// The generation of the receiver's data that the sender, as Primary, can bring up to date from its
    /// journal; [`GenerationId::NONE`] when it cannot. Only for a receiver with [`FEATURE_REPLAY`], as
    /// the next two.
    pub replays: GenerationId,
    /// That holds also for a receiver whose daemon was started since, as nobody else can have filled it.
    pub replays_restarted: bool,
    /// Nothing has changed the sender's disk but what the receiver sent, since it had the same as the
    /// receiver as its Primary.
    pub untouched: bool,
}

/// What the node with the lower number found, seen from itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Both hold the same data (or one side has no disk): nothing to copy.
    InSync = 0,
    /// The sender of the verdict is source of a bitmap resync.
    SourceBitmap = 1,
    /// The sender of the verdict is target of a bitmap resync.
    TargetBitmap = 2,
    /// The sender of the verdict is source of a full resync.
    SourceFull = 3,
    /// The sender of the verdict is target of a full resync.
    TargetFull = 4,
    /// Both wrote apart from each other: a person must decide.
    SplitBrain = 5,
    /// The two disks never held the same data.
    Unrelated = 6,
    /// Neither has data that can be given to the other: connected, nothing copied.
    NoGoodData = 7,
    /// Both are Primary.
    TwoPrimaries = 8,
    /// A Primary would have to become target of a resync.
    PrimaryMustNotBeTarget = 9,
    /// The sender of the verdict has the newer data, but a Primary is there that fills both.
    PausedSource = 10,
    /// The sender of the verdict has the older data, but a Primary is there that fills both.
    PausedTarget = 11,
    /// The sender of the verdict is Primary, and sends what the receiver misses from its journal, in
    /// order.
    SourceReplay = 12,
    /// The sender of the verdict gets what it misses from the receiver's journal, in order.
    TargetReplay = 13,
}

/// Why a side ends a connection for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    /// No protocol version in common.
    Version = 0,
    /// The resource is not known here, or the receiver is no member of it.
    UnknownResource = 1,
    /// The sizes differ.
    Size = 2,
    /// Node numbers do not fit.
    Membership = 3,
    /// Split brain.
    SplitBrain = 4,
    /// Unrelated data.
    Unrelated = 5,
    /// Two Primaries.
    TwoPrimaries = 6,
    /// This side does not want the connection (StandAlone).
    StandAlone = 7,
    /// The receiver said something that the protocol does not allow.
    Protocol = 8,
}

/// Outcome of an operation on the peer's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PeerResult {
    /// Done.
    Ok = 0,
    /// The peer's disk failed; it is not used any more.
    DiskFailed = 1,
    /// The peer has no data that it may answer with.
    NoData = 2,
}

/// What a [`Message::Write`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WriteKind {
    /// Stores the payload.
    Data = 0,
    /// Stores zeroes; no payload. Space may be given back.
    Zeroes = 1,
}

/// A step of a role change that all reachable members agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PromoteStep {
    /// Asks whether the sender may become Primary.
    Prepare = 0,
    /// The sender is Primary now.
    Commit = 1,
    /// The sender does not become Primary after all.
    Abort = 2,
}

/// Answer to [`PromoteStep::Prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PromoteAnswer {
    /// Nothing against it.
    Yes = 0,
    /// The answering node is Primary itself.
    IAmPrimary = 1,
    /// The answering node (or one that it promised to) is becoming Primary.
    Busy = 2,
    /// The answering node has newer data than the asking one.
    YouAreOutdated = 3,
}

/// What is to be done about blocks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RepairMode {
    /// They are only found.
    Never = 0,
    /// What most of three or more copies hold is written to the others.
    Majority = 1,
    /// As `Majority`; where there are two copies, that of the Primary, or of the node that compares.
    Always = 2,
}

/// Blocks of one node that differ from what they are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differing {
    /// Whose copy.
    pub node: NodeId,
    /// The first block.
    pub first: u64,
    /// How many.
    pub blocks: u64,
    /// They were written anew, and are the same now.
    pub repaired: bool,
    /// Most of three or more copies hold the same, so this one is wrong.
    pub majority: bool,
}

/// Where a node has its resyncs stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SyncPause {
    /// Nowhere.
    #[default]
    No = 0,
    /// Where it is the target.
    AsTarget = 1,
    /// Where it is target or source.
    Always = 2,
}

/// One message. Ranges are in bytes and whole blocks of 4096.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Opens the connection.
    Hello(Hello),
    /// The state of the node with the higher number, or a wish for a new verdict by either.
    State(Box<StateReport>),
    /// The verdict, with the state that it was found from.
    Verdict {
        /// Which [`StateReport`] of the receiver it answers.
        answers: u32,
        /// What was found.
        verdict: Verdict,
        /// The state of the sender.
        state: Box<StateReport>,
    },
    /// Ends the connection; not to be tried again before a person did something.
    Refuse {
        /// Why.
        code: RefusalCode,
        /// The same as a sentence, at most 200 bytes.
        text: String,
    },
    /// Ends the connection on purpose: the sender was told to disconnect or to stop.
    Goodbye,
    /// Role and disk of the sender changed.
    Changed {
        /// The sender's role.
        role: Role,
        /// The sender's disk.
        disk: DiskState,
        /// The sender's current generation.
        current: GenerationId,
    },
    /// Is the peer there?
    Ping,
    /// Yes.
    Pong,
    /// A write of the Primary.
    Write {
        /// Counts the Primary's writes of this promotion, upwards.
        seq: u64,
        /// Where.
        range: ByteRange,
        /// What.
        kind: WriteKind,
        /// To be durable before it is answered.
        fua: bool,
        /// Members that do not get this write.
        missing: PeerSet,
        /// All writes up to this one are done everywhere, or known to be missing.
        settled: u64,
        /// The data; empty for zeroes.
        payload: Bytes,
    },
    /// Answers [`Message::Write`].
    WriteAck {
        /// Which write.
        seq: u64,
        /// How it went.
        result: PeerResult,
    },
    /// All writes answered so far are to be durable.
    Flush {
        /// Chosen by the sender.
        id: u64,
    },
    /// Answers [`Message::Flush`].
    FlushAck {
        /// Which flush.
        id: u64,
        /// How it went.
        result: PeerResult,
    },
    /// A read by a node without good data of its own.
    Read {
        /// Chosen by the sender.
        id: u64,
        /// Where.
        range: ByteRange,
    },
    /// A read of blocks that the sender's disk cannot read, so that it can store them again: carried out
    /// in order with the writes of these blocks, behind all that the Primary has sent until then.
    /// Only for a receiver with [`FEATURE_HEAL`]. Answered by [`Message::ReadReply`].
    HealRead {
        /// Chosen by the sender.
        id: u64,
        /// Where.
        range: ByteRange,
    },
    /// Answers [`Message::Read`] and [`Message::HealRead`].
    ReadReply {
        /// Which read.
        id: u64,
        /// How it went.
        result: PeerResult,
        /// The data when it went well.
        payload: Bytes,
    },
    /// The Primary's data begin a new generation, because the nodes in `opened` miss writes.
    NewGeneration {
        /// The generation until now.
        previous: GenerationId,
        /// The new one.
        current: GenerationId,
        /// Who misses writes from here on.
        opened: PeerSet,
    },
    /// [`Message::NewGeneration`] is durable on the sender.
    GenerationAck {
        /// The new generation.
        current: GenerationId,
    },
    /// All writes up to `seq` are done everywhere or known to be missing.
    Settled {
        /// The last such write.
        seq: u64,
    },
    /// A write that was on its way did not reach these members.
    Missed {
        /// Who.
        peers: PeerSet,
        /// Where.
        range: ByteRange,
    },
    /// A piece of the sender's bitmap for a member, as runs of set blocks.
    Bitmap {
        /// The member: the receiver itself for the exchange before a resync, another one after it.
        about: NodeId,
        /// The serial of the report whose verdict this belongs to.
        round: u32,
        /// First block and number of blocks of each run, at most 4096 runs.
        runs: Vec<(u64, u64)>,
        /// Whether it is the last piece.
        last: bool,
    },
    /// The target asks for blocks.
    ResyncRequest {
        /// Where; the source may answer a first part only.
        range: ByteRange,
    },
    /// The source gives blocks.
    ResyncData {
        /// The range that was asked for.
        asked: ByteRange,
        /// The first part of it, which this answers. The rest was dropped and is to be asked again.
        range: ByteRange,
        /// All of it is zero; there is no payload.
        zeroes: bool,
        /// The data, unless zeroes.
        payload: Bytes,
    },
    /// Answers a part of [`Message::ResyncRequest`]: the source has no good copy of these blocks, nor does
    /// anybody that it can ask. The target has none from now on, until they are written. Only for a
    /// receiver with [`FEATURE_HEAL`].
    ResyncLost {
        /// What was asked for.
        asked: ByteRange,
        /// The first blocks of it.
        range: ByteRange,
    },
    /// The target has stored these blocks.
    ResyncAck {
        /// Where.
        range: ByteRange,
    },
    /// The target has all blocks, durably.
    ResyncComplete,
    /// The source's generations, which the target is to take over.
    ResyncGenerations {
        /// The source's generations.
        generations: Box<Generations>,
        /// The source lost its page cache, so the target lacks what it lacks.
        lost_cache: bool,
    },
    /// The target has taken the generations over, durably, and is UpToDate.
    ResyncAdopted {
        /// The generation that it has now; none when that resync was over before.
        current: GenerationId,
    },
    /// A two-phase change of role.
    Promote {
        /// Chosen by the sender.
        id: u64,
        /// Which step.
        step: PromoteStep,
    },
    /// Answers [`PromoteStep::Prepare`].
    PromoteReply {
        /// Which one.
        id: u64,
        /// The answer.
        answer: PromoteAnswer,
    },
    /// A member has everything that the sender has; accounts of what it misses that came earlier on
    /// this connection are over.
    ///
    /// Of a Primary, it stands in line with its writes: the member has all those that were sent
    /// before, and of a later one that it misses the write itself or [`Message::Missed`] says so. The
    /// receiver may remember it until it has everything itself; it is void when a write misses the
    /// member, a generation opens its slot, the connection to it is lost, or the Primary that the
    /// receiver sees is another one. Of a node that is not Primary it counts only at once, and only
    /// where no Primary is in reach, and sender and receiver are equal and UpToDate.
    Synced {
        /// Who; neither the sender nor the receiver.
        peer: NodeId,
        /// The sender's generation when it said so, which the member has too. The word of a Primary is
        /// not tied to it: the receiver may have missed the start of a generation.
        current: GenerationId,
    },
    /// A write of the Primary's journal that the receiver misses. Those that come behind it overtake it
    /// nowhere where the ranges overlap.
    Replay {
        /// The serial of the report whose verdict this belongs to.
        round: u32,
        /// Its position in the journal.
        id: u64,
        /// Bytes of the journal that come behind it.
        left: u64,
        /// Where.
        range: ByteRange,
        /// All of it is zero; there is no payload.
        zeroes: bool,
        /// The data, unless zeroes.
        payload: Bytes,
    },
    /// Answers [`Message::Replay`].
    ReplayAck {
        /// As in what it answers.
        round: u32,
        /// As in what it answers.
        id: u64,
        /// How it went.
        result: PeerResult,
    },
    /// The receiver has all that the journal held, durably; the sender's writes go to it from here on.
    ReplayDone {
        /// The serial of the report whose verdict this belongs to.
        round: u32,
    },
    /// Asks for the digests of the receiver's blocks.
    VerifyRequest {
        /// Chosen by the sender.
        id: u64,
        /// Where.
        range: ByteRange,
        /// No write to the range is under way at the sender, which is Primary or sees none: the answer
        /// counts. Else it is a first look.
        locked: bool,
    },
    /// Answers [`Message::VerifyRequest`].
    VerifyReply {
        /// Which request.
        id: u64,
        /// Names what the sender sees of Primaries; another number, another view.
        epoch: u64,
        /// How it went; `NoData` when the sender's copy is not to be compared now.
        result: PeerResult,
        /// One for each block, when it went well; none at all where all is zero.
        digests: Vec<Digest>,
    },
    /// Asks the Primary to compare all copies of a range while nobody writes to it.
    VerifySpan {
        /// Chosen by the sender.
        id: u64,
        /// Where.
        range: ByteRange,
        /// What to do about differences.
        repair: RepairMode,
    },
    /// Answers [`Message::VerifySpan`].
    VerifySpanReply {
        /// Which one.
        id: u64,
        /// It was possible.
        valid: bool,
        /// What differed.
        found: Vec<Differing>,
    },
    /// Blocks of the receiver that were found to be wrong are to be replaced.
    VerifyRepair {
        /// Chosen by the sender.
        id: u64,
        /// As in the last [`Message::VerifyReply`]; it is refused when that has changed.
        epoch: u64,
        /// Where.
        range: ByteRange,
        /// All of it is zero; there is no payload.
        zeroes: bool,
        /// The data, unless zeroes.
        payload: Bytes,
    },
    /// Answers [`Message::VerifyRepair`], when it is durable.
    VerifyRepaired {
        /// Which one.
        id: u64,
        /// How it went.
        result: PeerResult,
    },
    /// How far the sender's `verify` with the receiver is; for people.
    VerifyProgress {
        /// Whether it goes on.
        running: bool,
        /// Bytes compared.
        done: u64,
        /// Bytes to be compared.
        total: u64,
    },
    /// Whether the sender lets resyncs with the receiver go on. Each connection begins with
    /// [`SyncPause::No`]. Only for a receiver with [`FEATURE_PAUSE`].
    SyncPaused {
        /// Where it stands still.
        pause: SyncPause,
    },
    /// Starts a full resync with the sender as target (`invalidate`), or with the receiver as target
    /// (`invalidate --peer`).
    Invalidate {
        /// Whether the receiver is the one whose data are given up.
        receiver: bool,
    },
}

impl Message {
    /// A short name for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::State(_) => "State",
            Self::Verdict { .. } => "Verdict",
            Self::Refuse { .. } => "Refuse",
            Self::Goodbye => "Goodbye",
            Self::Changed { .. } => "Changed",
            Self::Ping => "Ping",
            Self::Pong => "Pong",
            Self::Write { .. } => "Write",
            Self::WriteAck { .. } => "WriteAck",
            Self::Flush { .. } => "Flush",
            Self::FlushAck { .. } => "FlushAck",
            Self::Read { .. } => "Read",
            Self::ReadReply { .. } => "ReadReply",
            Self::HealRead { .. } => "HealRead",
            Self::ResyncLost { .. } => "ResyncLost",
            Self::NewGeneration { .. } => "NewGeneration",
            Self::GenerationAck { .. } => "GenerationAck",
            Self::Settled { .. } => "Settled",
            Self::Missed { .. } => "Missed",
            Self::Bitmap { .. } => "Bitmap",
            Self::ResyncRequest { .. } => "ResyncRequest",
            Self::ResyncData { .. } => "ResyncData",
            Self::ResyncAck { .. } => "ResyncAck",
            Self::ResyncComplete => "ResyncComplete",
            Self::ResyncGenerations { .. } => "ResyncGenerations",
            Self::ResyncAdopted { .. } => "ResyncAdopted",
            Self::Promote { .. } => "Promote",
            Self::PromoteReply { .. } => "PromoteReply",
            Self::Invalidate { .. } => "Invalidate",
            Self::Synced { .. } => "Synced",
            Self::Replay { .. } => "Replay",
            Self::ReplayAck { .. } => "ReplayAck",
            Self::ReplayDone { .. } => "ReplayDone",
            Self::VerifyRequest { .. } => "VerifyRequest",
            Self::VerifyReply { .. } => "VerifyReply",
            Self::VerifySpan { .. } => "VerifySpan",
            Self::VerifySpanReply { .. } => "VerifySpanReply",
            Self::VerifyRepair { .. } => "VerifyRepair",
            Self::VerifyRepaired { .. } => "VerifyRepaired",
            Self::VerifyProgress { .. } => "VerifyProgress",
            Self::SyncPaused { .. } => "SyncPaused",
        }
    }

    /// The data that travel behind the message.
    #[must_use]
    pub fn payload(&self) -> Option<&Bytes> {
        match self {
            Self::Write { payload, .. }
            | Self::ReadReply { payload, .. }
            | Self::ResyncData { payload, .. }
            | Self::Replay { payload, .. }
            | Self::VerifyRepair { payload, .. }
                if !payload.is_empty() =>
            {
                Some(payload)
            }
            _ => None,
        }
    }
}
