//! Connections to peers: handshake, verdict, keepalive, and what each message leads to.
//!
//! ```text
//!  StandAlone ──connect──▶ Connecting ──link, Hello, State, Verdict──▶ Connected
//!      ▲                       ▲  │ refused                              │
//!      └───── disconnect ──────┼──┘            link lost, timeout, Goodbye│
//!                              └─────────────────────────────────────────┘
//! ```
//!
//! The node with the higher number reports its state and waits; the other one decides with both
//! states at hand and answers. So both act on the same facts. While a report is out, the reporting
//! node changes nothing that the verdict depends on.

use crate::decide::{decide, doubts, is_history, mirror};
use crate::engine::Core;
use crate::event::{Action, CommandId, LinkId, Notice, Options, PeerConfig, Refusal};
use crate::peer_io::Incoming;
use crate::persist::{After, Meta};
use crate::sync::Resync;
use holdfast_format::SparseBitmap;
use holdfast_units::{
    ByteRange, ConnectionState, DiskState, GenerationId, Millis, NodeId, ReplicationState, Role,
};
use holdfast_wire::{
    Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, RefusalCode, StateReport, Verdict,
    WriteMark,
};
use std::collections::VecDeque;

/// A handshake that has not ended after so long is begun anew.
const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// More messages than this are never held back for one peer: its own bounds keep it far below.
const HELD_MAX: usize = 100_000;

/// A peer and the connection to it.
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) diskless: bool,
    pub(crate) connection: ConnectionState,
    pub(crate) link: Option<LinkId>,
    /// The driver was asked to connect.
    asked_to_connect: bool,
    hello: bool,
    /// The first verdict of this connection was applied.
    pub(crate) up: bool,
    /// The serial of our report that waits for a verdict.
    pub(crate) awaiting: Option<u32>,
    serial: u32,
    handshake_since: Millis,
    /// A report of the peer that waits for a verdict.
    reported: Option<Box<StateReport>>,
    pub(crate) discard_my_data: bool,
    pub(crate) role: Role,
    pub(crate) disk: DiskState,
    pub(crate) replication: ReplicationState,
    pub(crate) epoch: u64,
    pub(crate) current: GenerationId,
    pub(crate) seen: bool,
    pub(crate) bitmap: SparseBitmap,
    /// The last write for which a bit was set.
    pub(crate) noted: WriteMark,
    pub(crate) resync: Option<Resync>,
    /// Counts verdicts and whatever else begins a new resync with this peer: work for an earlier
    /// one that ends late does not count for it.
    pub(crate) round: u64,
    /// The serial of the report that the last verdict answered, which both sides know.
    pub(crate) verdict_serial: u32,
    /// The source's bitmap, or the target's, has come whole in this round.
    pub(crate) bitmap_seen: bool,
    /// The source's generations were sent to the target, which has not taken them over yet.
    pub(crate) generations_sent: bool,
    /// What the source of a resync says that this peer misses.
    pub(crate) account: Option<SparseBitmap>,
    /// Blocks that the Primary wrote here before this source's bitmap had come.
    pub(crate) fresher: Option<SparseBitmap>,
    /// What the peer sends is kept until the superblock of this version is durable here.
    held_until: u64,
    held: VecDeque<Message>,
    /// Writes of a Primary that may not be everywhere.
    pub(crate) unsettled: VecDeque<(u64, ByteRange)>,
    pub(crate) out_of_sync_sent: u64,
    pub(crate) out_of_sync_seen: u64,
    /// Writes that others say it misses came while this node was being resynced.
    pub(crate) missed_since_sync: bool,
    /// While this node was being resynced, the Primary said that it has all of this generation.
    pub(crate) synced: Option<GenerationId>,
    last_heard: Millis,
    pinged: Option<Millis>,
    pub(crate) pending: u64,
    progress: Millis,
    pub(crate) last_sent_write: Millis,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) resync_sent: u64,
    pub(crate) resync_received: u64,
}

impl Peer {
    pub(crate) fn new(config: &PeerConfig, blocks: u64) -> Self {
        Self {
            node: config.node,
            diskless: config.diskless,
            connection: if config.standalone {
                ConnectionState::StandAlone
            } else {
                ConnectionState::Connecting
            },
            link: None,
            asked_to_connect: false,
            hello: false,
            up: false,
            awaiting: None,
            serial: 0,
            handshake_since: Millis(0),
            reported: None,
            discard_my_data: false,
            role: Role::Unknown,
            disk: DiskState::DUnknown,
            replication: ReplicationState::Off,
            epoch: 0,
            current: GenerationId::NONE,
            seen: false,
            bitmap: Core::new_bitmap(blocks),
            noted: WriteMark::default(),
            resync: None,
            round: 0,
            verdict_serial: 0,
            bitmap_seen: false,
            generations_sent: false,
            account: None,
            fresher: None,
            held_until: 0,
            held: VecDeque::new(),
            unsettled: VecDeque::new(),
            out_of_sync_sent: 0,
            out_of_sync_seen: 0,
            missed_since_sync: false,
            synced: None,
            last_heard: Millis(0),
            pinged: None,
            pending: 0,
            progress: Millis(0),
            last_sent_write: Millis(0),
            sent: 0,
            received: 0,
            resync_sent: 0,
            resync_received: 0,
        }
    }

    /// Whether the Primary's writes go to it.
    pub(crate) fn receives(&self) -> bool {
        self.up
            && self.link.is_some()
            && self.disk > DiskState::Failed
            && self.disk != DiskState::DUnknown
            && self.replication != ReplicationState::Off
    }

    /// Whether this node is, or is becoming, target of a resync from it.
    pub(crate) fn is_target(&self) -> bool {
        matches!(self.replication, ReplicationState::WFBitMapT | ReplicationState::SyncTarget)
    }

    /// Whether this node knows exactly which blocks it lacks from it.
    pub(crate) fn is_syncing_target(&self) -> bool {
        self.replication == ReplicationState::SyncTarget
    }

    /// It misses nothing.
    pub(crate) fn clear_bits(&mut self) {
        self.bitmap.clear_all();
        self.noted = WriteMark::default();
    }

    /// Whether this node is target and has everything.
    pub(crate) fn is_completing(&self) -> bool {
        self.is_syncing_target() && self.resync.as_ref().is_some_and(Resync::is_completing)
    }

    /// Whether it gets, or is about to get, what it misses from this node.
    pub(crate) fn is_fed(&self) -> bool {
        matches!(self.replication, ReplicationState::WFBitMapS | ReplicationState::SyncSource)
    }

    pub(crate) fn settle(&mut self, seq: u64) {
        while self.unsettled.front().is_some_and(|(s, _)| *s <= seq) {
            self.unsettled.pop_front();
        }
    }

    /// When a sign of life is to be asked for.
    fn ping_at(&self, options: &Options) -> Option<Millis> {
        let idle = self.link.is_some() && self.pinged.is_none();
        idle.then(|| self.last_heard.after(options.ping_interval_ms))
    }

    /// When the connection counts as dead.
    fn dead_at(&self, options: &Options) -> Option<Millis> {
        self.link?;
        let silent = self.pinged.map(|at| at.after(options.ping_timeout_ms));
        let shaking = (!self.up || self.awaiting.is_some())
            .then(|| self.handshake_since.after(HANDSHAKE_TIMEOUT_MS));
        let stuck = (self.pending > 0 && options.ko_count > 0)
            .then(|| self.progress.after(options.request_timeout_ms * options.ko_count));
        [silent, shaking, stuck].into_iter().flatten().min()
    }

    pub(crate) fn deadline(&self, options: &Options) -> Option<Millis> {
        [self.ping_at(options), self.dead_at(options)].into_iter().flatten().min()
    }
}

impl Core {
    /// Asks the driver for the links that are wanted.
    pub(crate) fn connect_wanted(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        for peer in self.peers.values_mut() {
            if peer.connection != ConnectionState::StandAlone && !peer.asked_to_connect {
                peer.asked_to_connect = true;
                self.out.push(Action::Connect(peer.node));
            }
        }
    }

    pub(crate) fn peer_up(&mut self, node: NodeId, link: LinkId) {
        let Some(peer) = self.peers.get(&node) else {
            self.act(Action::Disconnect(node, Some(link)));
            return;
        };
        if peer.link.is_some() {
            self.lose_link(node);
        }
        let hello = Message::Hello(Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            features: 0,
            resource: self.config.resource,
            from: self.node,
            to: node,
            size: self.config.size,
        });
        let standalone =
            self.stopping.is_some() || self.peers[&node].connection == ConnectionState::StandAlone;
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.link = Some(link);
        peer.last_heard = now;
        peer.handshake_since = now;
        peer.pinged = None;
        if standalone {
            let text = "the resource is StandAlone towards this node".to_owned();
            self.send(node, Message::Refuse { code: RefusalCode::StandAlone, text });
            self.peers.get_mut(&node).into_iter().for_each(|p| p.link = None);
            self.act(Action::Disconnect(node, Some(link)));
            return;
        }
        self.send(node, hello);
    }

    pub(crate) fn peer_down(&mut self, node: NodeId, link: LinkId) {
        if self.link_of(node) == Some(link) {
            self.lose_link(node);
        }
    }

    /// The connection is gone: what was under way on it is undone.
    fn lose_link(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let was_up = peer.up;
        let was_primary = peer.role == Role::Primary;
        peer.link = None;
        peer.hello = false;
        peer.up = false;
        peer.awaiting = None;
        peer.reported = None;
        peer.held_until = 0;
        peer.held.clear();
        peer.generations_sent = false;
        peer.role = Role::Unknown;
        peer.disk = DiskState::DUnknown;
        peer.pending = 0;
        peer.pinged = None;
        peer.end_resync();
        if peer.connection == ConnectionState::Connected {
            peer.connection = ConnectionState::Connecting;
        }
        if !was_up {
            return;
        }
        self.refresh_sets();
        self.requests_lost_peer(node);
        self.bump_answered(node);
        self.role_changes_lost_peer(node);
        if was_primary {
            self.unsettled_of_lost(node);
            self.renegotiate_all();
        }
        self.next_source();
        self.changed();
    }

    /// Ends a connection because of what the peer did; it may come again.
    pub(crate) fn protocol_error(&mut self, node: NodeId, what: &str) {
        self.notice(Notice::ProtocolError(node, what.to_owned()));
        self.reset(node);
    }

    fn reset(&mut self, node: NodeId) {
        if let Some(link) = self.link_of(node) {
            self.act(Action::Reset(node, link));
            self.lose_link(node);
        }
    }

    /// Ends a connection; it is not tried again before a person says so.
    pub(crate) fn stand_alone(&mut self, node: NodeId) {
        let link = self.link_of(node);
        self.lose_link(node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.connection = ConnectionState::StandAlone;
            peer.asked_to_connect = false;
        }
        self.act(Action::Disconnect(node, link));
        self.changed();
    }

    fn refuse(&mut self, node: NodeId, code: RefusalCode, text: &str) {
        self.send(node, Message::Refuse { code, text: text.to_owned() });
        self.notice(Notice::PeerRefused(node, text.to_owned()));
        self.stand_alone(node);
    }

    /// Keeps what a peer sends until all that was asked of the superblock so far is durable.
    pub(crate) fn hold(&mut self, node: NodeId) {
        let version = self.meta.as_ref().map_or(0, Meta::wanted);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.held_until = version;
        }
    }

    fn is_held(&self, peer: &Peer) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.durable() < peer.held_until)
    }

    /// Hands out what was held back.
    pub(crate) fn deliver_held(&mut self) {
        let nodes: Vec<NodeId> =
            self.peers.values().filter(|p| !p.held.is_empty()).map(|p| p.node).collect();
        for node in nodes {
            while let Some(peer) = self.peers.get(&node) {
                let Some((link, message)) = peer.link.zip(peer.held.front()) else { break };
                if self.is_held(peer) || self.must_wait(node, message) {
                    break;
                }
                let message = self.peers.get_mut(&node).and_then(|p| p.held.pop_front());
                if let Some(message) = message {
                    self.dispatch(node, link, message);
                }
            }
        }
    }

    /// Messages that change what a report says that another node has of this one.
    fn must_wait(&self, node: NodeId, message: &Message) -> bool {
        matches!(message, Message::NewGeneration { .. } | Message::ResyncGenerations { .. })
            && self.peers.values().any(|p| p.node != node && p.awaiting.is_some())
    }

    pub(crate) fn peer_message(&mut self, node: NodeId, link: LinkId, message: Message) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.link != Some(link) {
            return;
        }
        peer.last_heard = now;
        peer.pinged = None;
        let Some(peer) = self.peers.get(&node) else { return };
        let urgent = matches!(message, Message::Ping | Message::Pong);
        let waits = self.is_held(peer) || !peer.held.is_empty() || self.must_wait(node, &message);
        if urgent || !waits {
            self.dispatch(node, link, message);
        } else if peer.held.len() >= HELD_MAX {
            self.protocol_error(node, "it sent more than the protocol allows at once");
        } else if let Some(peer) = self.peers.get_mut(&node) {
            peer.held.push_back(message);
        }
    }

    fn dispatch(&mut self, node: NodeId, link: LinkId, message: Message) {
        let Some(peer) = self.peers.get(&node) else { return };
        let allowed = match &message {
            Message::Hello(_) => !peer.hello,
            Message::Ping | Message::Pong | Message::Refuse { .. } | Message::Goodbye => true,
            Message::State(_) | Message::Verdict { .. } => peer.hello,
            _ => peer.up,
        };
        if !allowed {
            let name = message.name();
            self.protocol_error(node, &format!("it sent {name} out of turn"));
            return;
        }
        match message {
            Message::Hello(hello) => self.hello(node, &hello),
            Message::State(report) => self.state_reported(node, report),
            Message::Verdict { answers, verdict, state } => {
                self.verdict_arrived(node, answers, verdict, &state);
            }
            // It may be connected again there at any time.
            Message::Refuse { code: RefusalCode::StandAlone, .. } => self.reset(node),
            Message::Refuse { text, .. } => {
                self.notice(Notice::PeerRefused(node, text));
                self.stand_alone(node);
            }
            Message::Goodbye => self.goodbye(node, link),
            Message::Changed { role, disk, epoch, current } => {
                self.peer_changed(node, role, disk, epoch, current);
            }
            Message::Ping => self.send(node, Message::Pong),
            Message::Pong => {}
            Message::Write { seq, range, kind, fua, missing, settled, payload } => {
                let write = Incoming { seq, range, kind, fua, missing, settled, payload };
                self.peer_write(node, link, write);
            }
            Message::WriteAck { seq, result } => self.write_acked(node, seq, result),
            Message::Flush { id } => self.peer_flush(node, link, id),
            Message::FlushAck { id, result } => self.flush_acked(node, id, result),
            Message::Read { id, range } => self.peer_read(node, link, id, range),
            Message::ReadReply { id, result, payload } => {
                self.read_answered(node, id, result, payload);
            }
            Message::NewGeneration { previous, current, opened } => {
                self.adopt_generation(node, previous, current, opened);
            }
            Message::GenerationAck { .. } => self.bump_answered(node),
            Message::Settled { seq } => {
                self.peers.get_mut(&node).into_iter().for_each(|p| p.settle(seq));
            }
            Message::Missed { peers, range } if self.in_device(range) => {
                let epoch = self.peers.get(&node).map_or(0, |p| p.epoch);
                self.note_missed(node, peers, range, WriteMark { epoch, seq: u64::MAX });
            }
            Message::Missed { .. } => {
                self.protocol_error(node, "it named blocks outside the device");
            }
            Message::Bitmap { about, round, runs, last } => {
                self.bitmap_piece(node, about, round, &runs, last);
            }
            Message::Synced { peer, current } => self.member_synced(peer, current),
            Message::ResyncRequest { range } => self.resync_requested(node, range),
            Message::ResyncData { asked, range, zeroes, payload } => {
                self.resync_data(node, asked, range, zeroes, payload);
            }
            Message::ResyncAck { range } => self.resync_acked(node, range),
            Message::OutOfSync { range } => self.told_out_of_sync(node, range),
            Message::ResyncComplete { out_of_sync_seen } => {
                self.resync_complete(node, out_of_sync_seen);
            }
            Message::ResyncGenerations { generations, has } => {
                self.take_over(node, &generations, has);
            }
            Message::ResyncAdopted { current } => self.target_adopted(node, current),
            Message::Promote { id, step, epoch } => self.peer_promotes(node, id, step, epoch),
            Message::PromoteReply { id, answer } => self.promote_answered(node, id, answer),
            Message::Invalidate { receiver } => self.peer_invalidates(node, receiver),
        }
    }

    fn hello(&mut self, node: NodeId, hello: &Hello) {
        if hello.version_max < PROTOCOL_VERSION_MIN || hello.version_min > PROTOCOL_VERSION {
            let text = format!(
                "it speaks protocol versions {} to {}, this node {PROTOCOL_VERSION_MIN} to \
                 {PROTOCOL_VERSION}",
                hello.version_min, hello.version_max
            );
            self.refuse(node, RefusalCode::Version, &text);
        } else if hello.resource != self.config.resource {
            self.refuse(node, RefusalCode::UnknownResource, "it means another resource");
        } else if hello.from != node || hello.to != self.node {
            self.refuse(node, RefusalCode::Membership, "the node numbers do not fit");
        } else if hello.size != self.config.size {
            let text =
                format!("its size is {} bytes, here it is {} bytes", hello.size, self.config.size);
            self.refuse(node, RefusalCode::Size, &text);
        } else {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.hello = true;
            }
            if self.node > node {
                self.report_state(node);
            }
        }
    }

    fn report_state(&mut self, node: NodeId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.serial += 1;
        peer.awaiting = Some(peer.serial);
        peer.handshake_since = now;
        let report = self.report(node);
        self.send(node, Message::State(Box::new(report)));
    }

    fn report(&self, to: NodeId) -> StateReport {
        let peer = &self.peers[&to];
        StateReport {
            serial: peer.serial,
            generations: self.gens.report(to),
            role: self.role,
            disk: self.disk,
            doubtful: self.al.as_ref().is_some_and(|al| al.has_suspects(to)),
            crashed_primary: self.crashed_primary,
            boot_changed: self.boot_changed,
            following: self.following,
            discard_my_data: peer.discard_my_data,
            near_primary: self.role == Role::Primary
                || self.peers.values().any(|p| p.up && p.role == Role::Primary),
            bits: peer.bitmap.count(),
            noted: peer.noted,
            has: self.has,
        }
    }

    /// Asks for a new verdict on a connection that is up.
    pub(crate) fn renegotiate(&mut self, node: NodeId) {
        let ready = self.peers.get(&node).is_some_and(|p| p.up && p.awaiting.is_none());
        if ready {
            self.report_state(node);
            if self.node < node {
                // The other one reports when it gets this; nothing waits for a verdict here.
                self.peers.get_mut(&node).into_iter().for_each(|p| p.awaiting = None);
            }
        }
    }

    /// What a report to this peer said has changed since: a newer one replaces it.
    pub(crate) fn report_again(&mut self, node: NodeId) {
        if self.peers.get(&node).is_some_and(|p| p.awaiting.is_some()) {
            self.report_state(node);
        }
    }

    /// The Primary is gone: do those that are left hold the same?
    fn renegotiate_all(&mut self) {
        let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
        for node in up {
            self.renegotiate(node);
        }
    }

    fn state_reported(&mut self, node: NodeId, report: Box<StateReport>) {
        if self.node > node {
            // The lower node wishes a new verdict: it needs a fresh report of ours.
            let ready = self.peers.get(&node).is_some_and(|p| p.awaiting.is_none());
            if ready {
                self.report_state(node);
            }
        } else if let Some(peer) = self.peers.get_mut(&node) {
            peer.reported = Some(report);
        }
    }

    /// Decides on the reports that came, when nothing is in the way.
    pub(crate) fn answer_states(&mut self) {
        let waiting: Vec<NodeId> =
            self.peers.values().filter(|p| p.reported.is_some()).map(|p| p.node).collect();
        for node in waiting {
            if self.bump.is_some() || self.is_reported() || self.is_adopting() {
                return;
            }
            if self.peers.get(&node).is_some_and(|p| p.generations_sent) {
                // It is taking over what this node sent: its next report will say so.
                continue;
            }
            let Some(theirs) = self.peers.get_mut(&node).and_then(|p| p.reported.take()) else {
                continue;
            };
            let mine = self.report(node);
            let verdict = decide(self.node, &mine, node, &theirs);
            let answers = theirs.serial;
            self.send(node, Message::Verdict { answers, verdict, state: Box::new(mine.clone()) });
            self.peers.get_mut(&node).into_iter().for_each(|p| p.verdict_serial = answers);
            self.apply_verdict(node, verdict, &mine, &theirs);
        }
    }

    fn verdict_arrived(
        &mut self,
        node: NodeId,
        answers: u32,
        verdict: Verdict,
        state: &StateReport,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.awaiting != Some(answers) {
            return;
        }
        peer.awaiting = None;
        peer.verdict_serial = answers;
        let mine = self.report(node);
        self.apply_verdict(node, mirror(verdict), &mine, state);
    }

    /// What a verdict, seen from this node, leads to.
    fn apply_verdict(
        &mut self,
        node: NodeId,
        verdict: Verdict,
        mine: &StateReport,
        theirs: &StateReport,
    ) {
        match verdict {
            Verdict::SplitBrain => self.notice(Notice::SplitBrain(node)),
            Verdict::Unrelated => self.notice(Notice::UnrelatedData(node)),
            Verdict::TwoPrimaries => self.notice(Notice::TwoPrimaries(node)),
            Verdict::PrimaryMustNotBeTarget => {
                let text = "a Primary would have to give up data that are in use".to_owned();
                self.notice(Notice::PeerRefused(node, text));
            }
            Verdict::SourceBitmap
            | Verdict::SourceFull
            | Verdict::TargetBitmap
            | Verdict::TargetFull
                if !self.has_disk() =>
            {
                // The disk failed since it was reported.
                self.reset(node);
                return;
            }
            _ => {
                self.peer_is_up(node, theirs);
                self.start_replication(node, verdict, mine, theirs);
                return;
            }
        }
        self.stand_alone(node);
    }

    fn peer_is_up(&mut self, node: NodeId, theirs: &StateReport) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.up = true;
        peer.connection = ConnectionState::Connected;
        peer.role = theirs.role;
        peer.disk = theirs.disk;
        peer.epoch = theirs.has.epoch;
        peer.current = theirs.generations.current;
        peer.seen |= theirs.disk > DiskState::Failed;
        peer.discard_my_data = false;
        peer.end_resync();
        self.follow(node);
    }

    /// Remembers which Primary this node follows.
    fn follow(&mut self, node: NodeId) {
        let primary = self.peers.get(&node).is_some_and(|p| p.role == Role::Primary);
        if primary && self.following != Some(node) {
            self.following = Some(node);
            self.request_superblock(After::Nothing);
        }
    }

    fn start_replication(
        &mut self,
        node: NodeId,
        verdict: Verdict,
        mine: &StateReport,
        theirs: &StateReport,
    ) {
        let both_disks = mine.disk > DiskState::Failed && theirs.disk > DiskState::Failed;
        let same = mine.generations.current == theirs.generations.current;
        let consistent =
            mine.disk > DiskState::Inconsistent && theirs.disk > DiskState::Inconsistent;
        if same && consistent && is_history(mine, node, theirs) {
            self.forget_older_bits(node);
        }
        let decided = both_disks && verdict != Verdict::NoGoodData;
        if decided && doubts(mine, node, theirs) {
            self.merge_suspects(node);
        } else if decided && let Some(al) = &mut self.al {
            al.take_suspects(node);
        }
        match verdict {
            Verdict::SourceBitmap | Verdict::SourceFull => {
                self.become_source(node, verdict == Verdict::SourceFull, theirs);
            }
            Verdict::TargetBitmap | Verdict::TargetFull => {
                self.become_target(node, verdict == Verdict::TargetFull);
            }
            Verdict::InSync if both_disks => {
                debug_assert!(!doubts(mine, node, theirs), "in sync although in doubt");
                self.in_sync(node, theirs.generations.current);
            }
            _ => self.connected_without_data(node, theirs),
        }
        self.clear_crash_marks();
        self.refresh_sets();
        self.connected_during_promotion(node);
        self.changed();
    }

    /// Both are of one generation: what was noted for an older one of the peer is over.
    fn forget_older_bits(&mut self, node: NodeId) {
        self.gens.slots[node.index()] = GenerationId::NONE;
        self.peers.get_mut(&node).into_iter().for_each(Peer::clear_bits);
    }

    /// The peer's disk equals the local one.
    pub(crate) fn in_sync(&mut self, node: NodeId, theirs: GenerationId) {
        self.gens.slots[node.index()] = GenerationId::NONE;
        self.gens.known[node.index()] = theirs;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.replication = ReplicationState::Established;
        if peer.role == Role::Primary {
            // From here on its writes come without a gap.
            self.has_stands = false;
        }
        if peer.disk == DiskState::Consistent && self.disk >= DiskState::Consistent {
            // It comes to the same conclusion; its report says so in a moment.
            peer.disk = DiskState::UpToDate;
        }
        let good = peer.disk >= DiskState::Consistent || self.disk >= DiskState::Consistent;
        if good && self.disk > DiskState::Inconsistent {
            self.set_disk(DiskState::UpToDate);
        }
        self.tell_synced(node);
        self.request_superblock(After::Nothing);
    }

    /// Connected, but there is nothing to copy: a side has no disk, or neither has good data.
    fn connected_without_data(&mut self, node: NodeId, theirs: &StateReport) {
        let they_have_disk = theirs.disk > DiskState::Failed;
        let both_disks = they_have_disk && self.has_disk();
        if let Some(peer) = self.peers.get_mut(&node) {
            // Without a common past in the disks, writes would only mix them up.
            peer.replication =
                if both_disks { ReplicationState::Off } else { ReplicationState::Established };
        }
        let current = theirs.generations.current;
        if !self.has_disk() && !self.diskful && theirs.disk == DiskState::UpToDate {
            self.gens.current = current;
        }
        // A Primary without a disk knows which generation is the current one.
        if !they_have_disk
            && theirs.role == Role::Primary
            && !current.is_none()
            && self.disk >= DiskState::Outdated
        {
            let newest = current == self.gens.current;
            self.set_disk(if newest { DiskState::UpToDate } else { DiskState::Outdated });
            self.request_superblock(After::Nothing);
        }
        // It may have been the source of a resync that is over by that.
        self.next_source();
    }

    /// When nothing is suspect any more, the crash is history.
    fn clear_crash_marks(&mut self) {
        let suspect = self
            .peers
            .values()
            .filter(|p| !p.diskless)
            .any(|p| self.al.as_ref().is_some_and(|al| al.has_suspects(p.node)));
        if !suspect && (self.crashed_primary || self.boot_changed) {
            self.crashed_primary = false;
            self.boot_changed = false;
            self.request_superblock(After::Nothing);
        }
    }

    /// The local disk is worth something else now; connected peers are told.
    pub(crate) fn set_disk(&mut self, disk: DiskState) {
        if self.disk != disk {
            self.disk = disk;
            self.outdated = disk == DiskState::Outdated;
            self.announce();
            self.changed();
        }
    }

    /// Tells connected peers role and disk.
    pub(crate) fn announce(&mut self) {
        let (role, disk, epoch, current) = (self.role, self.disk, self.epoch, self.gens.current);
        let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
        for node in up {
            self.send(node, Message::Changed { role, disk, epoch, current });
        }
    }

    fn peer_changed(
        &mut self,
        node: NodeId,
        role: Role,
        disk: DiskState,
        epoch: u64,
        current: GenerationId,
    ) {
        if role == Role::Primary && self.role == Role::Primary {
            self.notice(Notice::TwoPrimaries(node));
            self.stand_alone(node);
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let received = peer.receives();
        let new_promotion = role == Role::Primary && peer.epoch != epoch;
        let disk_lost = peer.disk > DiskState::Failed
            && peer.disk != DiskState::DUnknown
            && disk <= DiskState::Failed;
        peer.role = role;
        peer.epoch = epoch;
        peer.disk = disk;
        peer.current = current;
        if new_promotion {
            peer.unsettled.clear();
        }
        if peer.replication == ReplicationState::Established && current == self.gens.current {
            self.gens.known[node.index()] = current;
        }
        if disk_lost {
            peer.end_resync();
            peer.replication = ReplicationState::Established;
            self.notice(Notice::PeerDiskFailed(node));
        }
        self.refresh_sets();
        if received && disk_lost {
            self.requests_lost_peer(node);
            self.bump_answered(node);
        }
        if disk_lost {
            self.next_source();
        }
        self.follow(node);
        let same = self.gens.current == current;
        let near_primary = self.role == Role::Primary
            || self.peers.values().any(|p| p.up && p.role == Role::Primary);
        let comparable = self.has_disk()
            && disk > DiskState::Inconsistent
            && self.peers[&node].replication == ReplicationState::Established;
        if !same && !near_primary && comparable {
            // It follows a Primary that this node has lost.
            self.renegotiate(node);
        }
        if disk == DiskState::UpToDate && same {
            self.peer_caught_up(node);
        }
        let up_to_date = disk == DiskState::UpToDate && same;
        let established = self.peers[&node].replication == ReplicationState::Established;
        if up_to_date && established && self.disk == DiskState::Consistent {
            self.set_disk(DiskState::UpToDate);
            self.request_superblock(After::Nothing);
        }
        self.changed();
    }

    /// A peer has the current generation and is UpToDate: what was noted before may be over.
    pub(crate) fn peer_caught_up(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let slot = self.gens.slots[node.index()];
        let stale = (!slot.is_none() && slot != self.gens.current) || peer.bitmap.count() > 0;
        let established = peer.replication == ReplicationState::Established;
        let near_primary = self.role == Role::Primary
            || self.peers.values().any(|p| p.up && p.role == Role::Primary);
        // A Primary tells in line with its writes when a member is in sync.
        let doubtful = stale || peer.bitmap.count() > 0;
        if established && doubtful && self.disk == DiskState::UpToDate && !near_primary {
            self.renegotiate(node);
        }
    }

    /// Tells those that follow this Primary that a member has everything, in line with the writes.
    pub(crate) fn tell_synced(&mut self, node: NodeId) {
        if self.role != Role::Primary {
            return;
        }
        let current = self.gens.current;
        let mut others = self.receivers;
        others.remove(node);
        for other in others.iter() {
            self.send(other, Message::Synced { peer: node, current });
        }
    }

    /// A member has everything of this generation.
    pub(crate) fn member_synced(&mut self, member: NodeId, current: GenerationId) {
        let filled = self.disk == DiskState::Inconsistent;
        let current_here = self.gens.current == current && self.disk == DiskState::UpToDate;
        let Some(peer) = self.peers.get_mut(&member) else { return };
        if filled {
            peer.clear_bits();
            peer.synced = Some(current);
        }
        if !current_here {
            return;
        }
        peer.clear_bits();
        self.gens.slots[member.index()] = GenerationId::NONE;
        self.gens.known[member.index()] = current;
        self.request_superblock(After::Nothing);
        self.changed();
    }

    fn goodbye(&mut self, node: NodeId, link: LinkId) {
        let primary = self.peers.get(&node).is_some_and(|p| p.up && p.role == Role::Primary);
        if primary && self.role == Role::Secondary && self.disk >= DiskState::Consistent {
            // It goes on without this node, on purpose.
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Nothing);
        }
        self.act(Action::Reset(node, link));
        self.lose_link(node);
    }

    pub(crate) fn connect(&mut self, id: CommandId, which: Option<NodeId>, discard: bool) {
        let nodes: Vec<NodeId> = match which {
            Some(node) if !self.peers.contains_key(&node) => {
                self.act(Action::CommandDone(id, Err(Refusal::NoSuchPeer)));
                return;
            }
            Some(node) => vec![node],
            None => self.peers.keys().copied().collect(),
        };
        if discard && self.role == Role::Primary {
            self.act(Action::CommandDone(id, Err(Refusal::IsPrimary)));
            return;
        }
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.discard_my_data = discard && peer.connection != ConnectionState::Connected;
            if peer.connection == ConnectionState::StandAlone {
                peer.connection = ConnectionState::Connecting;
            }
        }
        self.connect_wanted();
        self.changed();
        self.act(Action::CommandDone(id, Ok(())));
    }

    pub(crate) fn disconnect(&mut self, id: CommandId, which: Option<NodeId>) {
        if which.is_some_and(|node| !self.peers.contains_key(&node)) {
            self.act(Action::CommandDone(id, Err(Refusal::NoSuchPeer)));
            return;
        }
        let leaves_primary = self
            .peers
            .values()
            .any(|p| which.is_none_or(|node| node == p.node) && p.up && p.role == Role::Primary);
        if leaves_primary && self.disk >= DiskState::Consistent {
            // The Primary goes on without this node, which must know that it is behind.
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Outdated(id, which));
        } else {
            self.disconnect_now(id, which);
        }
    }

    pub(crate) fn disconnect_now(&mut self, id: CommandId, which: Option<NodeId>) {
        let nodes: Vec<NodeId> =
            self.peers.keys().copied().filter(|n| which.is_none_or(|w| w == *n)).collect();
        for node in nodes {
            self.send(node, Message::Goodbye);
            self.stand_alone(node);
        }
        self.act(Action::CommandDone(id, Ok(())));
    }

    pub(crate) fn add_peer(&mut self, id: CommandId, config: &PeerConfig) {
        match self.peers.get_mut(&config.node) {
            Some(peer) => peer.diskless = config.diskless,
            None => self.insert_peer(config),
        }
        self.refresh_sets();
        self.connect_wanted();
        self.request_superblock(After::Command(id));
        self.changed();
    }

    pub(crate) fn remove_peer(&mut self, id: CommandId, node: NodeId) {
        if !self.peers.contains_key(&node) {
            self.act(Action::CommandDone(id, Err(Refusal::NoSuchPeer)));
            return;
        }
        self.stand_alone(node);
        // Its pages are cleared on disk, so that the number can be given to another node.
        self.peers.get_mut(&node).into_iter().for_each(|p| {
            p.bitmap.clear_all();
        });
        self.write_dirty_pages();
        self.peers.remove(&node);
        self.gens.slots[node.index()] = GenerationId::NONE;
        self.gens.known[node.index()] = GenerationId::NONE;
        self.refresh_sets();
        if self.peers.values().all(|p| p.diskless) && self.disk == DiskState::Consistent {
            self.set_disk(DiskState::UpToDate);
        }
        self.request_superblock(After::Command(id));
        self.changed();
    }

    /// A request went out that the peer must answer.
    pub(crate) fn asked(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&node) {
            if peer.pending == 0 {
                peer.progress = now;
            }
            peer.pending += 1;
        }
    }

    /// The peer answered a request.
    pub(crate) fn answered(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.pending = peer.pending.saturating_sub(1);
            peer.progress = now;
        }
    }

    /// Sends a write.
    pub(crate) fn send_counted(&mut self, node: NodeId, message: Message, payload: u64) {
        self.asked(node);
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.sent += payload;
            peer.last_sent_write = now;
        }
        self.send(node, message);
    }

    /// Pings, and cuts those that do not answer.
    pub(crate) fn tick_links(&mut self) {
        let (now, options) = (self.now, &self.options);
        let is_due = |at: Option<Millis>| at.is_some_and(|at| at <= now);
        let dead: Vec<NodeId> =
            self.peers.values().filter(|p| is_due(p.dead_at(options))).map(|p| p.node).collect();
        let silent: Vec<NodeId> = self
            .peers
            .values()
            .filter(|p| is_due(p.ping_at(options)) && !dead.contains(&p.node))
            .map(|p| p.node)
            .collect();
        for node in silent {
            self.peers.get_mut(&node).into_iter().for_each(|p| p.pinged = Some(now));
            self.send(node, Message::Ping);
        }
        for node in dead {
            self.notice(Notice::PeerTimeout(node));
            self.reset(node);
        }
    }
}
