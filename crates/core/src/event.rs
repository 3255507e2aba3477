//! What the core is told, and what it answers.

use crate::verify::{SurveyAction, SurveyEnd, SurveyKind, SurveyOrder, SurveyProgress};
use bytes::Bytes;
use holdfast_format::{AlLog, DiskFlags, LostBlocks, MetaImage, SparseBitmap, Superblock};
use holdfast_units::{ByteRange, DiskState, LogPosition, NodeId, PeerSet, Role};
use holdfast_wire::{Message, SyncPause};

/// A client's request, named by the frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// An operation on the backing disk, named by the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DiskOpId(pub u64);

/// A write of metadata, named by the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MetaOpId(pub u64);

/// One connection to a peer, named by the driver. A new connection has a new, higher number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// A command of a person, named by the driver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CommandId(pub u64);

/// What a client wants. Ranges are whole blocks, inside the device; reads and writes are at most
/// [`holdfast_units::MAX_REQUEST`] long, zeroes at most [`holdfast_units::EXTENT_SIZE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Read this range.
    Read(ByteRange),
    /// Write these data from this offset on.
    Write {
        /// Where; as long as the data.
        range: ByteRange,
        /// The data.
        data: Bytes,
        /// Durable everywhere before it completes.
        fua: bool,
    },
    /// Write zeroes; space may be given back. Discards are this too, so that all copies stay equal.
    Zeroes {
        /// Where.
        range: ByteRange,
        /// Durable everywhere before it completes.
        fua: bool,
    },
    /// Make all completed writes durable on every connected peer.
    Flush,
}

/// Why a request or a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// This node is not Primary.
    NotPrimary,
    /// Neither the local disk nor a connected peer has the data or can take them.
    NoData,
    /// The disk reported an error.
    Disk,
    /// The range is not whole blocks inside the device.
    Range,
    /// The resource is being stopped.
    Stopping,
}

/// What a disk operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOutcome {
    /// Done (writes, flushes).
    Done,
    /// Data of a read, as long as its range.
    Data(Bytes),
    /// All of the range is a hole; only for a read with `holes`.
    Zeroes,
    /// A write is done, and in the journal before the disk: this is the position of its record. Later
    /// writes have higher ones.
    Logged(LogPosition),
    /// A read of which some blocks cannot be had from this disk, while the others can: the disk as such
    /// works.
    Partial {
        /// As long as the range, or the part of it that was read; what the bad blocks hold means nothing.
        data: Bytes,
        /// The bad blocks: sorted, within the range, whole blocks, at least one.
        bad: Vec<ByteRange>,
        /// Those of them that can be read and hold something else than what was written: what the disk
        /// gives for them later may be believed by nobody.
        wrong: Vec<ByteRange>,
    },
    /// A read of which the disk cannot give some blocks, while the driver has what it would have given:
    /// from a journal, never older than what the disk held.
    Salvaged {
        /// As long as the range; what the bad blocks hold means nothing.
        data: Bytes,
        /// The bad blocks: sorted, within the range, whole blocks; perhaps none.
        bad: Vec<ByteRange>,
        /// The blocks that are not from the disk: sorted, within the range, whole blocks, at least
        /// one, none of them bad.
        salvaged: Vec<ByteRange>,
        /// Those of the bad ones that hold something else, as in [`DiskOutcome::Partial`].
        wrong: Vec<ByteRange>,
    },
}

/// A read of the journal, named by the core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JournalReadId(pub u64);

/// A write in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedWrite {
    /// Its position.
    pub position: LogPosition,
    /// The position behind it.
    pub next: LogPosition,
    /// When it was submitted, all before this position was durable: whoever carries it out elsewhere
    /// makes that durable first.
    pub barrier: LogPosition,
    /// Where.
    pub range: ByteRange,
    /// The data; `None` is zeroes.
    pub data: Option<Bytes>,
}

/// Commands of people and of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Become Primary. `force` makes an Outdated or Inconsistent disk UpToDate by decree.
    Promote {
        /// By decree.
        force: bool,
    },
    /// Become Secondary. The driver has made sure that nobody has the device open, or wants force.
    Demote {
        /// Fail what is in flight.
        force: bool,
    },
    /// Connect to one peer, or to all.
    Connect {
        /// Which; `None` is all.
        peer: Option<NodeId>,
        /// Throw this node's own changes away when they are in the way (split brain).
        discard_my_data: bool,
    },
    /// Disconnect from one peer, or from all, and stay so.
    Disconnect {
        /// Which; `None` is all.
        peer: Option<NodeId>,
    },
    /// Give up a node's data and copy all of it again.
    Invalidate {
        /// Whose data; `None` is this node's own.
        peer: Option<NodeId>,
    },
    /// Give up the local disk (it becomes Diskless).
    Detach,
    /// A new member. It is connected to at once.
    AddPeer(PeerConfig),
    /// A member has gone for good; its slot is cleared.
    RemovePeer {
        /// Which.
        peer: NodeId,
    },
    /// New values of options.
    Configure(Options),
    /// The device is larger. Ends when the size is durable; clients get it when every connected
    /// member has it.
    Grow {
        /// The new size in bytes: a multiple of 4096. One that is not larger changes nothing.
        size: u64,
        /// The driver has made sure that the disk has as many bytes, that all of it past the old
        /// end reads as zeroes, durably, and that the metadata have room for larger bitmaps. Not
        /// so where it saw no disk that is in use; [`Refusal::DiskNotReady`] when there is one.
        disk_ready: bool,
    },
    /// Somebody could not read these blocks of the local disk: have them healed. Ends at once; what
    /// becomes of them is told as with any other. Nothing is done unless the disk is UpToDate.
    Heal(Vec<ByteRange>),
    /// Where this node is target or source of a resync, it stands still, or goes on. It does not survive
    /// the core: see [`Config::sync_pause`].
    PauseSync(SyncPause),
    /// Compare copies, or read everything. Ends when that has begun; [`Notice::SurveyEnded`] says how it
    /// went.
    Survey(SurveyOrder),
    /// Do this to a run of [`Command::Survey`].
    SurveyControl(SurveyKind, SurveyAction),
    /// Stop in good order: demote, flush, write the bitmaps, mark the metadata clean, say goodbye.
    Stop,
}

/// A member other than this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its number.
    pub node: NodeId,
    /// It has no disk, by wish.
    pub diskless: bool,
    /// Start as StandAlone (a persistent `disconnect`).
    pub standalone: bool,
}

/// Options of a resource; times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A peer is asked for a sign of life after so long a silence.
    pub ping_interval_ms: u64,
    /// It must answer within this time.
    pub ping_timeout_ms: u64,
    /// A request that a peer has not answered for `request_timeout_ms × ko_count` ejects it.
    pub request_timeout_ms: u64,
    /// See `request_timeout_ms`; 0 means never.
    pub ko_count: u64,
    /// Size of the activity log, in extents; takes effect when the metadata are created.
    pub al_extents: u32,
    /// Upper bound of resync traffic in bytes per second; 0 is none.
    pub resync_rate: u64,
    /// How many bytes of resync are asked for ahead.
    pub resync_window: u64,
    /// Upper bound of what `verify` reads here, in bytes per second; 0 is none.
    pub verify_rate: u64,
    /// Upper bound of what `scrub` reads here, in bytes per second; 0 is none. It goes slower while
    /// clients are busy.
    pub scrub_rate: u64,
    /// The shortest time after which a read that the disk has not answered is asked of a peer as well;
    /// 0 means never.
    pub read_hedge_ms: u64,
    /// The disk is given up when it has not answered something for so long; 0 means never.
    pub disk_timeout_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ping_interval_ms: 10_000,
            ping_timeout_ms: 500,
            request_timeout_ms: 6_000,
            ko_count: 7,
            al_extents: 1237,
            resync_rate: 0,
            resync_window: 16 << 20,
            verify_rate: 0,
            scrub_rate: 0,
            read_hedge_ms: 50,
            disk_timeout_ms: 0,
        }
    }
}

/// What the core is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's number.
    pub node: NodeId,
    /// The resource.
    pub resource: holdfast_units::ResourceId,
    /// The size of the device in bytes: a multiple of 4096.
    pub size: u64,
    /// The boot in which this process runs.
    pub boot: [u8; 16],
    /// The other members.
    pub peers: Vec<PeerConfig>,
    /// Options.
    pub options: Options,
    /// Where resyncs stand still from the start on, until a [`Command::PauseSync`].
    pub sync_pause: SyncPause,
    /// Seed of the numbers that must be unique in the world (generations, epochs). The driver takes
    /// it from the system's random source, anew for every start.
    pub seed: u64,
}

/// The metadata of a disk, as they were read.
#[derive(Debug)]
pub struct Attachment {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// The activity log; when it cannot be trusted, the sequence number to go on from.
    pub log: Result<AlLog, u64>,
    /// A block of the activity log that was cut off, to be written again, with its index in the ring.
    pub log_again: Option<(u32, Box<[u8; 4096]>)>,
    /// The bitmaps of the members.
    pub bitmaps: Vec<(NodeId, SparseBitmap)>,
    /// The blocks of which there is no good copy on the disk.
    pub unreadable: LostBlocks,
    /// What was damaged, in words.
    pub damage: Vec<String>,
}

impl Attachment {
    /// Takes from metadata what the core needs, with the bitmaps of `members`.
    #[must_use]
    pub fn read(image: &MetaImage<'_>, members: PeerSet) -> Self {
        let mut damage = Vec::new();
        let mut bitmaps = Vec::new();
        for (node, bitmap, lost) in image.bitmaps(members) {
            if lost > 0 {
                damage.push(format!("{lost} pages of the bitmap of node {node} were damaged"));
            }
            bitmaps.push((node, bitmap));
        }
        let (unreadable, broken) = image.lost_blocks();
        // A broken page of a disk that lost nothing says nothing.
        if broken > 0 && image.superblock.flags.contains(DiskFlags::LOST) {
            damage.push(format!("{broken} pages of the list of unreadable blocks were damaged"));
        }
        let log = match &image.al {
            Ok(recovered) => Ok(recovered.log.clone()),
            Err(damaged) => Err(damaged.next_sequence),
        };
        let again = image.al.as_ref().ok().and_then(|recovered| recovered.again);
        let log_again = again.map(|(index, block)| (index, Box::new(block)));
        Self { superblock: image.superblock.clone(), log, log_again, bitmaps, unreadable, damage }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The disk and its metadata were opened. Only as first event, at most once; without it the
    /// node is diskless.
    Attach(Box<Attachment>),
    /// A client's request.
    Request(RequestId, RequestKind),
    /// A disk operation ended.
    DiskDone(DiskOpId, Result<DiskOutcome, IoFailure>),
    /// A metadata write is durable, or failed.
    MetaDone(MetaOpId, Result<(), IoFailure>),
    /// A connection to a peer stands; the peer has proved who it is and that it means this
    /// resource. An older connection to the same peer is gone by that.
    PeerUp(NodeId, LinkId),
    /// A message arrived.
    PeerMessage(NodeId, LinkId, Message),
    /// The connection is gone.
    PeerDown(NodeId, LinkId),
    /// A command.
    Command(CommandId, Command),
    /// The writes that [`Action::ReadJournal`] asked for, as far as they were read, in order, and the
    /// position behind them, which is higher than what was asked for; or they are not kept any more, or
    /// cannot be read.
    JournalRead(JournalReadId, Result<(Vec<LoggedWrite>, LogPosition), IoFailure>),
    /// Time has passed (see [`crate::Core::deadline`]).
    Tick,
}

/// What the driver must do. Actions are to be carried out in order, except that disk operations may
/// overtake each other.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Answer a client.
    Complete(RequestId, Result<Option<Bytes>, IoFailure>),
    /// Read from the disk. With `holes`, a range that is all hole may be answered by
    /// [`DiskOutcome::Zeroes`].
    DiskRead {
        /// Names the operation.
        op: DiskOpId,
        /// Where.
        range: ByteRange,
        /// Whether a hole may be answered as such.
        holes: bool,
    },
    /// Write to the disk.
    DiskWrite {
        /// Names the operation.
        op: DiskOpId,
        /// Where.
        range: ByteRange,
        /// The data.
        data: Bytes,
        /// Durable before it completes.
        fua: bool,
    },
    /// Write zeroes to the disk, giving space back where possible.
    DiskZeroes {
        /// Names the operation.
        op: DiskOpId,
        /// Where.
        range: ByteRange,
        /// Durable before it completes.
        fua: bool,
    },
    /// Make all completed writes of the disk durable.
    DiskFlush {
        /// Names the operation.
        op: DiskOpId,
    },
    /// These blocks of the disk could not be read: store these data in their place, durably, so that they
    /// can be read from then on. Ends with [`DiskOutcome::Done`] when they read back as they are.
    DiskRepair {
        /// Names the operation.
        op: DiskOpId,
        /// Where.
        range: ByteRange,
        /// The data.
        data: Bytes,
        /// They are what a read of the disk gave as [`DiskOutcome::Salvaged`], and nobody has written there
        /// since: the content stays what it was.
        salvaged: bool,
    },
    /// Of these blocks there is no good copy: reads of the disk are to fail until they are written, where
    /// the disk can remember that. The core remembers it, too.
    DiskMarkLost {
        /// Names the operation.
        op: DiskOpId,
        /// Which.
        range: ByteRange,
        /// They only could not be read: reads of them are to be tried, and what is written there is to be
        /// looked at.
        unread: bool,
    },
    /// Read the writes of the journal from a position on, durable ones only: what is not durable yet
    /// and was reported as [`DiskOutcome::Logged`] is made so. At least one, if any is there; no more
    /// than about so many bytes. Answered by [`Event::JournalRead`].
    ReadJournal {
        /// Names the read.
        id: JournalReadId,
        /// From here on.
        from: LogPosition,
        /// About so many bytes.
        bytes: u64,
    },
    /// Write these blocks of metadata (offset in the metadata area, content), then make them
    /// durable. The driver carries metadata writes out one after the other, in order.
    MetaWrite {
        /// Names the operation.
        op: MetaOpId,
        /// Blocks.
        blocks: Vec<(u64, Box<[u8; 4096]>)>,
    },
    /// The disk has not answered something for [`Options::disk_timeout_ms`], or for longer than a stop
    /// waits, and is given up.
    DiskHung,
    /// The disk is not used any more: close it and its metadata when what is in flight has ended. Writes
    /// of metadata that were asked for before are made, though nobody hears of their ends.
    CloseDisk,
    /// Send a message on this connection; messages of one connection stay in order.
    Send(NodeId, LinkId, Message),
    /// Keep trying to reach this peer (dial, or accept it) until told otherwise.
    Connect(NodeId),
    /// Close this connection after what was sent, and do not try again until told to.
    Disconnect(NodeId, Option<LinkId>),
    /// Close this connection at once and try again.
    Reset(NodeId, LinkId),
    /// A command ended.
    CommandDone(CommandId, Result<(), Refusal>),
    /// Role, a disk state or a connection changed: the snapshot is worth a look.
    StateChanged,
    /// Something that a person should read.
    Notice(Notice),
    /// All is stopped (answer to [`Command::Stop`]); nothing more will come.
    Stopped,
}

/// Things for people and for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Split brain with this peer.
    SplitBrain(NodeId),
    /// The data of this peer have nothing to do with ours.
    UnrelatedData(NodeId),
    /// The peer refused the connection.
    PeerRefused(NodeId, String),
    /// The peer broke the protocol.
    ProtocolError(NodeId, String),
    /// The local disk failed.
    DiskFailed,
    /// A peer's disk failed.
    PeerDiskFailed(NodeId),
    /// A peer did not answer in time.
    PeerTimeout(NodeId),
    /// A resync began: peer, whether this node is the target, blocks to do.
    ResyncStarted(NodeId, bool, u64),
    /// A resync ended.
    ResyncFinished(NodeId, bool),
    /// Part of the metadata was damaged; what it covered is treated as out of sync.
    MetaDamaged(String),
    /// Two Primaries met.
    TwoPrimaries(NodeId),
    /// A peer has another size: the smaller one of the two must grow before they can be connected.
    SizesDiffer {
        /// Which peer.
        peer: NodeId,
        /// Its size in bytes.
        theirs: u64,
        /// The size here, in bytes.
        ours: u64,
    },
    /// The size that clients get is larger now.
    Grown(u64),
    /// So many blocks of the local disk that could not be read were fetched from a peer, and stored
    /// again, since this was told last.
    Healed(u64),
    /// So many blocks have no good copy on the local disk any more, nor at any peer that is connected,
    /// since this was told last.
    Unreadable {
        /// Some of them.
        first: ByteRange,
        /// How many.
        blocks: u64,
    },
    /// A run of [`Command::Survey`] has ended, and how far it came.
    SurveyEnded(SurveyEnd, Box<SurveyProgress>),
}

/// Why a command was not carried out. The daemon makes sentences of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another node is Primary.
    PeerIsPrimary(NodeId),
    /// Another node is becoming Primary right now.
    PeerBusy(NodeId),
    /// No UpToDate data within reach.
    NoUpToDateData,
    /// The local data are older than those of this node.
    Outdated,
    /// The disk is Inconsistent.
    Inconsistent,
    /// There is no local disk.
    Diskless,
    /// This node is Primary, which the command does not allow.
    IsPrimary,
    /// Not connected to this peer (or to any).
    NotConnected,
    /// No such peer.
    NoSuchPeer,
    /// It would be the last UpToDate copy of a Primary.
    LastUpToDate,
    /// A resync is running.
    ResyncRunning,
    /// Another command of the kind is running, or the resource is being stopped.
    Busy,
    /// It did not end in time.
    TimedOut,
    /// Writing the metadata failed.
    MetaFailed,
    /// Requests of clients are in flight.
    InUse,
    /// The metadata cannot become larger where they are.
    CannotGrow,
    /// A disk came into use that was not made ready for what was asked.
    DiskNotReady,
    /// Such a run is going on.
    SurveyRunning,
    /// No such run is going on.
    NoSurvey,
    /// The range is not whole blocks inside the device.
    BadRange,
}

/// How a resync goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ResyncProgress {
    /// Bytes that are through (copied, or found to be zero, or written anew meanwhile).
    pub done: u64,
    /// Bytes that were out of sync when it began.
    pub total: u64,
    /// Bytes of payload that were really carried.
    pub carried: u64,
    /// When it began.
    pub started: holdfast_units::Millis,
}

/// One peer, as seen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSnapshot {
    /// Which.
    pub node: NodeId,
    /// The connection.
    pub connection: holdfast_units::ConnectionState,
    /// Its role.
    pub role: Role,
    /// Its disk.
    pub disk: DiskState,
    /// What goes on between the disks.
    pub replication: holdfast_units::ReplicationState,
    /// It is being caught up from the journal (or this node by it): consistent, and gets no writes yet.
    pub behind: bool,
    /// Bytes that differ, by the local bitmap.
    pub out_of_sync: u64,
    /// Writes, flushes and reads that the peer has not answered.
    pub pending: u64,
    /// Payload bytes of writes sent and received on all connections since the start.
    pub sent: u64,
    /// See `sent`.
    pub received: u64,
    /// Payload bytes of resyncs sent and received since the start.
    pub resync_sent: u64,
    /// See `resync_sent`.
    pub resync_received: u64,
    /// A resync that is running.
    pub resync: Option<ResyncProgress>,
    /// A resync stands still because somebody was told so.
    pub stands_still: Option<StandsStill>,
    /// This node gets data from it by a resync or its journal, or will when that does not stand still.
    pub is_source: bool,
    /// A `verify` that is running between the two disks.
    pub verify: Option<ResyncProgress>,
    /// It has no disk, by wish.
    pub diskless: bool,
    /// Its size in bytes, as it said last; `None` when it said nothing since the start.
    pub size: Option<u64>,
}

/// On which sides a resync is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandsStill {
    /// This node was told so.
    pub here: bool,
    /// The peer was.
    pub there: bool,
}

/// All there is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The local role.
    pub role: Role,
    /// The local disk.
    pub disk: DiskState,
    /// Size in bytes that clients get: no connected member has less room.
    pub size: u64,
    /// Size in bytes that this node has room for, durably; larger than `size` while a peer that
    /// has yet to grow is connected.
    pub own_size: u64,
    /// The generation of the data.
    pub generation: holdfast_units::GenerationId,
    /// Those before it, newest first: data of one of them are an earlier state of these.
    pub history: [holdfast_units::GenerationId; holdfast_format::HISTORY_LEN],
    /// Whether a `primary` without force would be granted as far as this node knows.
    pub promotable: bool,
    /// The peers.
    pub peers: Vec<PeerSnapshot>,
    /// Extents that are hot in the activity log.
    pub hot_extents: u32,
    /// Activity-log transactions written since the start.
    pub al_writes: u64,
    /// Requests of clients in flight.
    pub in_flight: u64,
    /// Members whose disk this node takes to miss writes.
    pub missing: PeerSet,
    /// Disk errors since the start; each block that could not be read counts.
    pub io_errors: u64,
    /// Blocks that could not be read here, were fetched from a peer, and are stored again, since the start.
    pub healed_blocks: u64,
    /// Blocks of which there is no good copy on the local disk ([`crate::Core::unreadable`]).
    pub unreadable_blocks: u64,
    /// Where the first of them are: at most 64 stretches.
    pub unreadable: Vec<ByteRange>,
    /// Blocks that are being healed, or wait for that.
    pub healing_blocks: u64,
    /// Reads of clients that a peer was asked for because the local disk was slow, since the start.
    pub hedged_reads: u64,
    /// Those of them that the peer answered first.
    pub hedged_reads_won: u64,
    /// The runs of [`Command::Survey`] that are going on.
    pub surveys: Vec<SurveyProgress>,
}
