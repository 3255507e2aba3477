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

use crate::engine::Core;
use crate::event::{Action, CommandId, LinkId, Notice, PeerConfig, Refusal};
use crate::peer::Peer;
use crate::peer_io::Incoming;
use crate::persist::{After, Meta};
use crate::replay::Replayed;
use crate::sync::Content;
use holdfast_units::{
    ConnectionState, DiskState, GenerationId, Millis, NodeId, PeerSet, ReplicationState, Role,
};
use holdfast_wire::{
    FEATURE_HEAL, FEATURE_PAUSE, FEATURE_REPLAY, FEATURE_VERIFY, Hello, Message, PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN, RefusalCode, SyncPause, WriteKind,
};

/// Said of a peer of which more would have to be kept than there can be.
const TOO_MUCH: &str = "it sent more at once than the protocol allows";

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
        let hello = self.greeting(node);
        let standalone =
            self.stopping.is_some() || self.peers[&node].connection == ConnectionState::StandAlone;
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.link = Some(link);
        peer.last_heard = now;
        peer.handshake_since = now;
        peer.pinged = None;
        (peer.pings, peer.pongs) = (0, 0);
        if standalone {
            let text = "the resource is StandAlone towards this node".to_owned();
            self.send(node, Message::Refuse { code: RefusalCode::StandAlone, text });
            self.peers.get_mut(&node).into_iter().for_each(|p| p.link = None);
            self.act(Action::Disconnect(node, Some(link)));
            return;
        }
        self.send(node, hello);
    }

    /// The first message of a connection, and each time that this node has grown.
    pub(crate) fn greeting(&self, to: NodeId) -> Message {
        Message::Hello(Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            features: FEATURE_REPLAY | FEATURE_HEAL | FEATURE_VERIFY | FEATURE_PAUSE,
            resource: self.config.resource,
            from: self.node,
            to,
            size: self.config.size,
        })
    }

    pub(crate) fn peer_down(&mut self, node: NodeId, link: LinkId) {
        if self.link_of(node) == Some(link) {
            self.lose_link(node);
        }
    }

    /// The connection is gone: what was under way on it is undone.
    fn lose_link(&mut self, node: NodeId) {
        self.leave_trail(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let was_up = peer.up;
        let was_primary = peer.role == Role::Primary;
        peer.link = None;
        peer.hello = false;
        peer.up = false;
        peer.awaiting = None;
        peer.reported = None;
        peer.report_wanted = false;
        peer.held_until = 0;
        peer.forget_kept();
        peer.generations_sent = false;
        peer.role = Role::Unknown;
        peer.disk = DiskState::DUnknown;
        peer.pending = 0;
        peer.pinged = None;
        peer.pause = SyncPause::No;
        peer.end_resync();
        if peer.connection == ConnectionState::Connected {
            peer.connection = ConnectionState::Connecting;
        }
        if peer.vouched {
            self.take_word_for(node);
        }
        self.surveys_lost_peer(node);
        // What it had when the Primary said so it may lose with its power from now on.
        self.peers.get_mut(&node).into_iter().for_each(|p| p.vouched = false);
        if !was_up {
            return;
        }
        self.refresh_sets();
        self.requests_lost_peer(node);
        self.heals_lost_peer(node);
        self.hedges_lost_peer(node);
        self.bump_lost(node);
        self.role_changes_lost_peer(node);
        if was_primary {
            self.unsettled_of_lost(node);
        }
        self.next_source();
        self.changed();
    }

    /// Ends a connection because of what the peer did; it may come again.
    pub(crate) fn protocol_error(&mut self, node: NodeId, what: &str) {
        self.notice(Notice::ProtocolError(node, what.to_owned()));
        self.reset(node);
    }

    pub(crate) fn reset(&mut self, node: NodeId) {
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
                let Some(link) = peer.link else { break };
                if self.is_held(peer) || peer.held.is_empty() {
                    break;
                }
                let message = self.peers.get_mut(&node).and_then(Peer::take_held);
                if let Some(message) = message {
                    self.dispatch(node, link, message);
                }
            }
        }
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
        let urgent = matches!(message, Message::Ping);
        let waits = self.is_held(peer) || !peer.held.is_empty();
        if urgent || !waits {
            self.dispatch(node, link, message);
        } else if !self.peers.get_mut(&node).is_some_and(|p| p.keep_held(message)) {
            self.protocol_error(node, TOO_MUCH);
        }
    }

    fn dispatch(&mut self, node: NodeId, link: LinkId, message: Message) {
        let Some(peer) = self.peers.get(&node) else { return };
        let allowed = match &message {
            // A further one says that it has grown.
            Message::Hello(hello) => !peer.hello || peer.size.is_some_and(|had| had < hello.size),
            Message::Ping | Message::Pong | Message::Refuse { .. } | Message::Goodbye => true,
            Message::State(_) | Message::Verdict { .. } => peer.hello,
            _ => peer.up,
        };
        let reporting = peer.awaiting.is_some() || peer.report_wanted;
        if !allowed && peer.hello && reporting {
            // It has answered a report that a newer one has replaced: its next verdict makes it so.
            if !self.peers.get_mut(&node).is_some_and(|p| p.keep_early(message)) {
                self.protocol_error(node, TOO_MUCH);
            }
            return;
        }
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
            Message::Changed { role, disk, current } => {
                self.peer_changed(node, role, disk, current);
            }
            Message::Ping => self.send(node, Message::Pong),
            Message::Pong => {
                self.peers.get_mut(&node).into_iter().for_each(|p| p.pongs += 1);
            }
            Message::Write { seq, range, kind, fua, missing, settled, payload } => {
                let write = Incoming { seq, range, kind, fua, missing, settled, payload };
                self.peer_write(node, link, write);
            }
            Message::WriteAck { seq, result } => self.write_acked(node, seq, result),
            Message::Flush { id } => self.peer_flush(node, link, id),
            Message::FlushAck { id, result } if Self::is_replay_flush(id) => {
                self.replay_flushed(node, id, result);
            }
            Message::FlushAck { id, result } => self.flush_acked(node, id, result),
            Message::Read { id, range } => self.peer_read(node, link, id, range),
            Message::HealRead { id, range } => self.heal_requested(node, link, id, range),
            Message::ReadReply { id, result, payload } if Self::is_heal(id) => {
                self.heal_answered(node, id, result, payload);
            }
            Message::ReadReply { id, result, payload } if Self::is_hedge(id) => {
                self.hedge_answered(node, id, result, payload);
            }
            Message::ReadReply { id, result, payload } if Self::is_span_read(id) => {
                self.span_read_answered(node, id, result, payload);
            }
            Message::ReadReply { id, result, payload } => {
                self.read_answered(node, id, result, payload);
            }
            Message::NewGeneration { previous, current, opened } => {
                self.adopt_generation(node, previous, current, opened);
            }
            Message::GenerationAck { .. } => self.bump_answered(node),
            Message::Settled { seq } => {
                self.peers.get_mut(&node).into_iter().for_each(|p| p.unsettled.settle(seq));
            }
            Message::Missed { peers, range } if self.in_device(range) => {
                self.missed_after_all(peers, range);
            }
            Message::Missed { .. } => {
                self.protocol_error(node, "it named blocks outside the device");
            }
            Message::Bitmap { about, round, runs, last } => {
                self.bitmap_piece(node, about, round, &runs, last);
            }
            Message::Synced { peer, current } => self.member_synced(node, peer, current),
            Message::ResyncRequest { range } => self.resync_requested(node, range, None),
            Message::ResyncData { asked, range, zeroes, payload } => {
                let content = if zeroes { Content::Zeroes } else { Content::Data(payload) };
                self.resync_data(node, asked, range, content);
            }
            Message::ResyncLost { asked, range } => {
                self.resync_data(node, asked, range, Content::Lost);
            }
            Message::ResyncAck { range } => self.resync_acked(node, range),
            Message::ResyncComplete => self.resync_complete(node),
            Message::ResyncGenerations { generations, lost_cache } => {
                self.take_over(node, &generations, lost_cache);
            }
            Message::ResyncAdopted { current } => self.target_adopted(node, current),
            Message::Replay { round, id, left, range, zeroes, payload } => {
                let kind = if zeroes { WriteKind::Zeroes } else { WriteKind::Data };
                let (fua, missing, settled) = (false, PeerSet::EMPTY, 0);
                let write = Incoming { seq: id, range, kind, fua, missing, settled, payload };
                self.replay(node, link, Replayed { round, id, left, write });
            }
            Message::ReplayAck { round, id, result } => self.replay_acked(node, round, id, result),
            Message::ReplayDone { round } => self.replay_done(node, round),
            Message::VerifyRequest { id, range, locked } => {
                self.verify_requested(node, link, id, range, locked);
            }
            Message::VerifyReply { id, epoch, result, digests } => {
                self.verify_answered(node, id, epoch, result, digests);
            }
            Message::VerifySpan { id, range, repair } => {
                self.span_wanted(node, link, id, range, repair);
            }
            Message::VerifySpanReply { id, valid, found } => {
                self.span_resolved(node, id, valid, found);
            }
            Message::VerifyRepair { id, epoch, range, zeroes, payload } => {
                let data = (!zeroes).then_some(payload);
                self.repair_wanted(node, link, (id, epoch), range, data);
            }
            Message::VerifyRepaired { id, .. } => self.span_repaired(node, id),
            Message::VerifyProgress { running, done, total } => {
                self.verify_progress(node, running, done, total);
            }
            Message::SyncPaused { pause } => self.peer_pauses(node, pause),
            Message::Promote { id, step } => self.peer_promotes(node, id, step),
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
        } else if self.is_welcome(node, hello.size) {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.hello = true;
                peer.features = hello.features;
            }
            if self.node > node {
                self.want_report(node);
            }
        }
    }

    /// The local disk is worth something else now; connected peers are told.
    pub(crate) fn set_disk(&mut self, disk: DiskState) {
        if self.disk != disk {
            self.disk = disk;
            self.outdated = disk == DiskState::Outdated;
            self.report_again();
            self.announce();
            self.changed();
        }
    }

    /// Tells connected peers role and disk.
    pub(crate) fn announce(&mut self) {
        let (role, disk, current) = (self.role, self.disk, self.gens.current);
        let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
        for node in up {
            self.send(node, Message::Changed { role, disk, current });
        }
    }

    fn peer_changed(&mut self, node: NodeId, role: Role, disk: DiskState, current: GenerationId) {
        if role == Role::Primary && self.role == Role::Primary {
            self.notice(Notice::TwoPrimaries(node));
            self.stand_alone(node);
            return;
        }
        if role == Role::Primary && self.stand().primary.is_some_and(|p| p != node) {
            // It may be connected again when the other one is gone.
            self.notice(Notice::TwoPrimaries(node));
            self.reset(node);
            return;
        }
        self.promotion_hears(node, role);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let received = peer.receives();
        let new_promotion = role == Role::Primary && peer.role != Role::Primary;
        let disk_lost = peer.disk > DiskState::Failed
            && peer.disk != DiskState::DUnknown
            && disk <= DiskState::Failed;
        let news = (peer.disk, peer.current) != (disk, current);
        let moved_on = peer.current == self.gens.current && current != self.gens.current;
        peer.role = role;
        peer.disk = disk;
        let failed = disk == DiskState::Failed && !peer.failed;
        peer.failed |= failed;
        peer.current = current;
        if new_promotion {
            peer.unsettled.clear();
        } else if role != Role::Primary {
            // One that stops in a hurry does not wait for all to have its last writes.
            self.unsettled_of_lost(node);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.replication == ReplicationState::Established && current == self.gens.current {
            self.gens.known[node.index()] = current;
        }
        if role == Role::Primary && moved_on && self.disk > DiskState::Outdated {
            // The data that it works with are on other disks, and this one does not get its writes.
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Nothing);
        }
        if failed {
            self.request_superblock(After::Nothing);
        }
        if disk == DiskState::UpToDate {
            self.learn_generation(current);
        }
        self.forget_bits_without_disk(node);
        if disk_lost {
            self.peer_disk_lost(node);
        }
        self.refresh_sets();
        if received && disk_lost {
            self.requests_lost_peer(node);
            self.heals_lost_peer(node);
            self.hedges_lost_peer(node);
            self.bump_lost(node);
        }
        self.follow(node);
        self.note_level(node);
        if news && self.peers[&node].vouched {
            self.take_word_for(node);
        }
        if news {
            self.compare_again(node);
        }
        self.changed();
    }

    /// A node that never had a disk here knows the generation of others' good data. A Primary begins
    /// them itself: what a member says may be from before it heard of the last one.
    pub(crate) fn learn_generation(&mut self, current: GenerationId) {
        if self.role == Role::Primary && !current.is_none() && current == self.void_bump {
            // One that was being filled had heard of it, and has good data by now.
            self.void_bump = GenerationId::NONE;
            if !self.diskful {
                self.gens.current = current;
            } else if self.disk <= DiskState::Inconsistent {
                self.served = current;
            }
        }
        if !self.diskful && (self.role != Role::Primary || self.gens.current.is_none()) {
            self.gens.current = current;
        }
    }

    /// A node without a disk fills nobody: what it noted is over when the member has the current data.
    pub(crate) fn forget_bits_without_disk(&mut self, node: NodeId) {
        let (current, without) = (self.gens.current, !self.has_disk());
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if without && peer.disk == DiskState::UpToDate && peer.current == current {
            peer.clear_bits();
        }
    }

    fn peer_disk_lost(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.end_resync();
            peer.replication = ReplicationState::Established;
        }
        self.notice(Notice::PeerDiskFailed(node));
        self.next_source();
    }

    /// A peer's disk is worth something else: asks for a new verdict where that may change one.
    pub(crate) fn compare_again(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node).filter(|p| p.up && !p.is_busy()) else { return };
        let equal = self.could_be_equal(peer);
        let established = peer.replication == ReplicationState::Established;
        let wanted = if self.is_filled_by_other(node) {
            // Differences are the Primary's business; only that there are none is news.
            equal && !established
        } else {
            self.is_unequal(peer)
        };
        // Peers have a new generation before this node has.
        let ahead = self.bump.is_some() && peer.disk == DiskState::UpToDate;
        if wanted && !ahead {
            self.renegotiate(node);
        }
        if self.role == Role::Primary && self.is_level(node) {
            self.tell_synced(node);
        }
    }

    /// A Primary tells, in line with its writes, those that follow it that a member has everything,
    /// and the member who else has. Where there is no Primary, and so no write, a source can tell
    /// of a target, which has taken over from it what others miss.
    pub(crate) fn tell_synced(&mut self, node: NodeId) {
        let primary = self.role == Role::Primary;
        if !primary && self.is_near_primary() {
            return;
        }
        let current = self.gens.current;
        let others: Vec<NodeId> = self
            .peers
            .values()
            .filter(|p| p.node != node && p.receives())
            .map(|p| p.node)
            .collect();
        for other in others {
            self.send(other, Message::Synced { peer: node, current });
            if primary && self.is_level(other) {
                self.send(node, Message::Synced { peer: other, current });
            }
        }
    }

    /// Tells all who have everything of each other.
    pub(crate) fn tell_who_is_level(&mut self) {
        let level: Vec<NodeId> = self.peers.keys().copied().filter(|n| self.is_level(*n)).collect();
        for node in level {
            self.tell_synced(node);
        }
    }

    /// Whether a connected peer has all that this node has.
    pub(crate) fn is_level(&self, node: NodeId) -> bool {
        self.peers
            .get(&node)
            .is_some_and(|p| p.disk == DiskState::UpToDate && self.shares_generation(p))
    }

    /// Whether a connected peer's disk is worth the same as the local one, be both Outdated, and
    /// holds the same.
    pub(crate) fn is_same(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|p| p.disk == self.disk && self.shares_generation(p))
    }

    fn shares_generation(&self, peer: &Peer) -> bool {
        peer.replication == ReplicationState::Established
            && peer.current == self.gens.current
            && peer.bitmap.count() == 0
    }

    /// A member has everything of this generation, as the Primary says; where there is none, and so
    /// no write, one that has all that is here can say it too.
    fn member_synced(&mut self, teller: NodeId, member: NodeId, current: GenerationId) {
        let primary = self.peers.get(&teller).is_some_and(|p| p.role == Role::Primary);
        if !primary && (self.is_near_primary() || !self.is_level(teller)) {
            return;
        }
        if !primary && (self.gens.current != current || self.disk != DiskState::UpToDate) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&member) else { return };
        peer.vouched = primary;
        if primary {
            self.source_has_everything(member);
        }
        self.take_word_for(member);
    }

    /// The source of this node's resync has all that counts, as the Primary says. What it was said to
    /// have missed was never completed, and this node, which has it, lacks what the source has there.
    fn source_has_everything(&mut self, source: NodeId) {
        let Some(peer) = self.peers.get_mut(&source).filter(|p| p.is_target()) else { return };
        let Some(missed) = peer.missed_meanwhile.take() else { return };
        for run in missed.runs() {
            peer.set_own_bits(run);
        }
        if peer.is_completing() {
            self.renegotiate(source);
        }
    }

    /// Uses what the Primary said about members, once this node has everything itself.
    pub(crate) fn take_words(&mut self) {
        let nodes: Vec<NodeId> =
            self.peers.values().filter(|p| p.vouched).map(|p| p.node).collect();
        for node in nodes {
            self.take_word_for(node);
        }
    }

    pub(crate) fn take_word_for(&mut self, member: NodeId) {
        let (current, i) = (self.gens.current, member.index());
        let usable =
            self.disk == DiskState::UpToDate && !self.is_adopting() && !self.knows_better(member);
        let Some(peer) = self.peers.get_mut(&member).filter(|p| usable && !p.is_busy()) else {
            return;
        };
        let mut news = peer.clear_bits();
        let equal = peer.up && peer.disk == DiskState::UpToDate && peer.current == current;
        if equal && peer.replication != ReplicationState::Established {
            peer.replication = ReplicationState::Established;
            news = true;
        }
        news |= !self.gens.slots[i].is_none() || self.gens.known[i] != current;
        self.gens.slots[i] = GenerationId::NONE;
        self.gens.known[i] = current;
        if let Some(al) = &mut self.al {
            news |= !al.take_suspects(member).is_empty();
        }
        if news {
            self.report_again_to(member);
            self.settle_with_all();
            self.clear_crash_marks();
            self.request_superblock(After::Nothing);
            self.changed();
        }
    }

    /// Whether what a crash left in doubt here is not settled by the word of the Primary: without a disk
    /// it goes by the generations, and has compared nothing.
    fn knows_better(&self, member: NodeId) -> bool {
        let stand = self.stand();
        let compared = stand.good || stand.primary.is_none_or(|primary| primary == self.node);
        !compared && self.al.as_ref().is_some_and(|al| al.has_suspects(member))
    }

    fn goodbye(&mut self, node: NodeId, link: LinkId) {
        if self.is_left_behind_by(node) {
            // It goes on without this node, on purpose.
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Nothing);
        }
        self.act(Action::Reset(node, link));
        self.lose_link(node);
    }

    /// Whether this peer is a Primary that can go on without this node, whose disk may be current: with
    /// good data that are seen from here, or those of a member that it alone may see.
    pub(crate) fn is_left_behind_by(&self, node: NodeId) -> bool {
        let is_primary = self.peers.get(&node).is_some_and(|p| p.up && p.role == Role::Primary);
        let goes_on = |p: &Peer| {
            let unseen = p.node != node && !p.up && !p.diskless;
            unseen || (p.up && p.disk == DiskState::UpToDate)
        };
        is_primary && self.disk >= DiskState::Outdated && self.peers.values().any(goes_on)
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
            .keys()
            .any(|p| which.is_none_or(|node| node == *p) && self.is_left_behind_by(*p));
        if leaves_primary {
            // The Primary goes on without this node, which must know that it is behind.
            self.leaving += 1;
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Outdated(id, which));
        } else {
            self.disconnect_now(id, which);
        }
    }

    /// That this node is behind is durable, and stays so. A verdict that came meanwhile may have found the
    /// disks equal once more: as it goes now, that is over, unless it has become Primary itself.
    pub(crate) fn disconnect_outdated(&mut self, id: CommandId, which: Option<NodeId>) {
        self.leaving = self.leaving.saturating_sub(1);
        if self.disk > DiskState::Outdated && self.role != Role::Primary {
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Nothing);
        }
        self.disconnect_now(id, which);
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
            Some(peer) => {
                peer.diskless = config.diskless;
                if peer.diskless {
                    peer.clear_bits();
                }
            }
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

    pub(crate) fn ping(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.pings += 1;
            peer.pinged.get_or_insert(now);
        }
        self.send(node, Message::Ping);
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
            self.ping(node);
        }
        for node in dead {
            self.notice(Notice::PeerTimeout(node));
            self.reset(node);
        }
    }
}
