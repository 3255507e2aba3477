//! Keeps a running resource as the cluster's records and this node's wishes say: peers, options,
//! the wish to be Primary again. Tells readers of events how it is.

use crate::commands::device;
use crate::commands::join::make_room;
use crate::commands::updown::publish;
use crate::growth;
use crate::logpeer::{self, Again, Claim, Claims};
use crate::node::{Node, PeerMember};
use crate::problems;
use crate::resource::{Plan, Problem, Resource, core_options, plan, told};
use crate::shard::{ResourceHandle, ResourceView};
use holdfast_api::status::PeerProblem;
use holdfast_api::words::{agreed, counted};
use holdfast_core::{
    Command, Notice, Options, PeerConfig, Snapshot, SurveyEnd, SurveyKind, SurveyProgress,
};
use holdfast_units::{ConnectionState, NodeId, PeerSet, Role};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast::error::RecvError;

/// How often it looks at what nobody tells it.
const TICK: Duration = Duration::from_secs(1);
/// The same while it wishes to be Primary: a command may just have been in the way.
const WISH_TICK: Duration = Duration::from_millis(50);
/// How long the peers are waited for before it is said that the node stays Secondary.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a device of an earlier run may wait for this node to be Primary again, and how long
/// after a failed attempt it is next tried to be taken over.
pub(crate) const LEFT_LIMIT: Duration = Duration::from_secs(120);
const LEFT_RETRY: Duration = Duration::from_secs(1);
/// How long a refused promotion is not tried again.
const RETRY: Duration = Duration::from_secs(3);
/// How much later that is for each further number of a node, so that two never keep asking at the same
/// moments.
const STAGGER: Duration = Duration::from_millis(100);
/// The reasons for which it stays Secondary that are told.
const MAX_TOLD: usize = 16;

/// One running resource's keeper.
pub(crate) struct Keeper {
    node: Arc<Node>,
    resource: Arc<Resource>,
    handle: ResourceHandle,
    /// The peers that the core was told of.
    known: BTreeMap<NodeId, PeerMember>,
    /// The names of peers that the shard was told.
    peer_names: BTreeMap<NodeId, String>,
    /// The options that it was told.
    options: Options,
    /// This node among the members.
    own: NodeId,
    wish: Option<Wish>,
    /// When the device that an earlier run left is next tried to be taken over.
    left_retry_at: Instant,
    /// The peers that were connected.
    connected: PeerSet,
}

/// The node was Primary when it was stopped, and is to be so again when that is safe.
struct Wish {
    since: Instant,
    /// Why it has to wait, as far as that was told.
    told: Vec<String>,
    retry_at: Instant,
}

impl Wish {
    const fn new(now: Instant) -> Self {
        Self { since: now, told: Vec::new(), retry_at: now }
    }

    /// Whether it is to be told that it waits for this: each reason is told once, and not too many.
    fn tells(&mut self, now: Instant, why: String) -> bool {
        let soon = now.duration_since(self.since) <= PATIENCE;
        if soon || self.told.len() >= MAX_TOLD || self.told.contains(&why) {
            return false;
        }
        self.told.push(why);
        true
    }
}

/// What becomes of a wish to be Primary again.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Verdict {
    /// It is Primary.
    Fulfilled,
    /// Another node is.
    Dropped(NodeId),
    /// Every member with a disk is there, and none is Primary.
    Promote,
    /// Some are not there, and may be Primary for all that is known.
    WaitFor(Vec<NodeId>),
}

impl Verdict {
    /// The same while a device of an earlier run has `waited` that long: for those who have it open
    /// this node never ceased to be Primary, so peers that cannot be reached are not waited for
    /// much longer.
    fn with_device(
        self,
        waited: Option<Duration>,
        is_out_of_reach: impl Fn(NodeId) -> bool,
    ) -> Self {
        match (self, waited) {
            (Self::WaitFor(missing), Some(waited))
                if waited > PATIENCE || missing.iter().all(|peer| is_out_of_reach(*peer)) =>
            {
                Self::Promote
            }
            (verdict, _) => verdict,
        }
    }
}

impl Keeper {
    pub(crate) fn new(
        node: &Arc<Node>,
        resource: &Arc<Resource>,
        handle: ResourceHandle,
        plan: &Plan,
        wish: bool,
    ) -> Self {
        let now = Instant::now();
        Self {
            node: Arc::clone(node),
            resource: Arc::clone(resource),
            handle,
            known: plan.peers.clone(),
            peer_names: BTreeMap::new(),
            options: plan.config.options.clone(),
            connected: PeerSet::EMPTY,
            own: plan.config.node,
            wish: wish.then(|| Wish::new(now)),
            left_retry_at: now,
        }
    }

    /// Works until the resource is closed.
    pub(crate) async fn run(mut self) {
        let mut views = self.handle.watch();
        let mut cluster = self.node.watch_view();
        let mut notices = self.handle.notices();
        let mut next_look = Instant::now();
        self.publish();
        self.follow_records().await;
        loop {
            tokio::select! {
                changed = views.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    views.mark_unchanged();
                    self.publish();
                    self.watch_links();
                }
                changed = cluster.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    cluster.mark_unchanged();
                    self.follow_records().await;
                    self.publish();
                }
                notice = notices.recv() => match notice {
                    Ok(notice) => self.tell(&notice),
                    Err(RecvError::Lagged(count)) => {
                        tracing::warn!(resource = self.name(), count, "notices were lost");
                    }
                    Err(RecvError::Closed) => break,
                },
                () = tokio::time::sleep(self.tick()) => {}
            }
            if Instant::now() >= next_look {
                next_look = Instant::now() + TICK;
                self.look_at_device().await;
                if !self.resource.state().no_room.is_empty() {
                    self.follow_records().await;
                }
            }
            self.grant_wish().await;
            self.look_after_left().await;
        }
        self.publish();
    }

    /// It may get another name while it runs.
    fn name(&self) -> String {
        self.resource.name()
    }

    fn tick(&self) -> Duration {
        let waits = self.wish.is_some() || self.resource.state().device_waits.is_some();
        if waits { WISH_TICK } else { TICK }
    }

    /// Tells readers of events and those who wait how the resource is.
    fn publish(&self) {
        let view = self.handle.snapshot();
        let now = Instant::now();
        {
            let mut state = self.resource.state();
            problems::forget_solved(&mut state.problems, &view.snapshot);
            state.rates.retain(|peer, _| view.snapshot.peers.iter().any(|p| p.node == *peer));
            for peer in &view.snapshot.peers {
                match peer.resync.or(peer.verify) {
                    Some(resync) => {
                        state.rates.entry(peer.node).or_default().note(now, resync.done);
                    }
                    None => drop(state.rates.remove(&peer.node)),
                }
            }
        }
        publish(&self.node, &self.resource);
    }

    /// A link that was lost makes it doubtful whether the node is alive.
    fn watch_links(&mut self) {
        let view = self.handle.snapshot();
        let connected: PeerSet = view
            .snapshot
            .peers
            .iter()
            .filter(|peer| peer.connection == ConnectionState::Connected)
            .map(|peer| peer.node)
            .collect();
        if !self.connected.difference(connected).is_empty() {
            self.node.peers.look_now();
        }
        self.connected = connected;
    }

    /// Brings the core's peers and options to what the records say.
    async fn follow_records(&mut self) {
        if let Some(journal) = self.handle.journal().cloned() {
            logpeer::forget_gone(&self.node, &self.resource, &journal).await;
        }
        let Ok(plan) = plan(&self.node, &self.resource.local()) else {
            // The resource or the membership is gone: it will be stopped in a moment.
            return;
        };
        let gone: Vec<NodeId> = self
            .known
            .iter()
            .filter(|(slot, known)| {
                plan.peers.get(*slot).is_none_or(|wanted| wanted.uuid != known.uuid)
            })
            .map(|(slot, _)| *slot)
            .collect();
        self.resource.state().no_room.retain(|slot, _| plan.peers.contains_key(slot));
        for peer in gone {
            self.command(Command::RemovePeer { peer }).await;
            self.known.remove(&peer);
        }
        for config in &plan.config.peers {
            let Some(wanted) = plan.peers.get(&config.node) else { continue };
            let known = self.known.get(&config.node);
            if known.is_none_or(|known| known.diskless != wanted.diskless) {
                if !self.has_room_for(wanted).await {
                    continue;
                }
                self.add_peer(config.clone()).await;
            }
            self.known.insert(config.node, wanted.clone());
        }
        let name_of = |(slot, peer): (&NodeId, &PeerMember)| (*slot, peer.name.clone());
        let names: BTreeMap<_, _> = plan.peers.iter().map(name_of).collect();
        if names != self.peer_names {
            self.handle.name_peers(names.clone()).await;
            self.peer_names = names;
        }
        let record = self.node.view().records.resource(self.resource.id);
        let options = record.map(|record| core_options(&record.options).0);
        if let Some(options) = options.filter(|options| *options != self.options) {
            self.command(Command::Configure(options.clone())).await;
            self.options = options;
        }
    }

    /// Whether the metadata have room for the bitmap of a new peer. Without it a write of metadata
    /// would fail, and with it the disk.
    async fn has_room_for(&self, peer: &PeerMember) -> bool {
        let made = match peer.diskless {
            true => Ok(()),
            false => make_room(&self.node, self.resource.id, peer.slot).await,
        };
        let Err(error) = made else {
            self.resource.state().no_room.remove(&peer.slot);
            return true;
        };
        let why = format!(
            "resource {}: node {} is not taken as a peer: {}",
            self.name(),
            peer.name,
            told(&error)
        );
        let before = self.resource.state().no_room.insert(peer.slot, why.clone());
        if before.is_none() {
            tracing::warn!(resource = self.name(), "{why}");
        }
        false
    }

    async fn add_peer(&self, config: PeerConfig) {
        self.command(Command::AddPeer(config)).await;
    }

    async fn command(&self, command: Command) {
        let text = format!("{command:?}");
        if let Err(refusal) = self.handle.command(command).await {
            tracing::error!(resource = self.name(), ?refusal, "{text} was refused");
        }
    }

    /// Becomes Primary again when that is safe.
    async fn grant_wish(&mut self) {
        let Some(wish) = &self.wish else { return };
        let now = Instant::now();
        let (since, due) = (wish.since, now >= wish.retry_at);
        let view = self.handle.snapshot();
        let waited = self.resource.state().device_waits.map(|_| now.duration_since(since));
        let verdict = judge(&view.snapshot).with_device(waited, |peer| self.is_out_of_reach(peer));
        let missing = match verdict {
            Verdict::Fulfilled => {
                self.wish = None;
                return;
            }
            Verdict::Dropped(primary) => return self.give_wish_up(&self.node_name(primary)).await,
            Verdict::Promote => Vec::new(),
            Verdict::WaitFor(missing) => missing,
        };
        if due && let Some(again) = self.lead_again(&missing).await {
            if let Some(wish) = &mut self.wish {
                // Asking takes its time when somebody does not answer: others get their turn.
                wish.retry_at = Instant::now() + RETRY + STAGGER * u32::from(self.own.number());
            }
            match again {
                Again::Yes => {}
                Again::Other(primary) => return self.give_wish_up(&primary).await,
                Again::Wait(why) | Again::Soon(why) => self.tell_why_it_waits(why),
            }
        }
        // A person may have decided meanwhile.
        if !self.resource.state().local.primary {
            self.wish = None;
        }
    }

    /// Has this node be Primary, if nobody else is and nobody has what is not here. `None` when that
    /// cannot be looked at now.
    async fn lead_again(&self, missing: &[NodeId]) -> Option<Again> {
        // A command that is under way may change what is wished for.
        let _begun = self.resource.try_begin()?;
        let _claim = Claim::new(&self.resource, Claims::Again);
        // Clients that knew it larger must not see its end come nearer.
        let may = || {
            let wished = self.resource.state().local.primary;
            wished && !self.is_behind(&self.handle.snapshot())
        };
        if !may() {
            return None;
        }
        let again = logpeer::lead_again(&self.node, &self.resource, &self.handle, missing).await;
        if again == Again::Yes && may() {
            match self.handle.command(Command::Promote { force: false }).await {
                Ok(()) => self.announce(None, "the node is Primary again, as before the stop"),
                Err(refusal) => {
                    tracing::info!(resource = self.name(), ?refusal, "not Primary again yet");
                }
            }
        }
        Some(again)
    }

    fn tell_why_it_waits(&mut self, why: String) {
        let text = format!(
            "the node was Primary and stays Secondary: {why}; `holdfast primary {} --force` overrides \
             that",
            self.name()
        );
        if self.wish.as_mut().is_some_and(|wish| wish.tells(Instant::now(), why)) {
            self.announce(None, &text);
        }
    }

    /// Another node is Primary now.
    async fn give_wish_up(&mut self, primary: &str) {
        self.wish = None;
        self.announce(None, &format!("the node stays Secondary: {primary} is Primary now"));
        self.drop_wish().await;
    }

    fn is_behind(&self, view: &ResourceView) -> bool {
        view.snapshot.own_size < growth::goal(&self.node, &self.resource, view)
    }

    fn is_out_of_reach(&self, peer: NodeId) -> bool {
        self.known.get(&peer).is_none_or(|peer| self.node.peers.health(peer.uuid).failed)
    }

    /// Takes over the device that an earlier run left, as soon as this node is Primary again. Its
    /// I/O must not wait for ever: when the node does not become so, it fails.
    async fn look_after_left(&mut self) {
        let Some(until) = self.resource.state().device_waits else { return };
        // A command may be taking care of it.
        let resource = Arc::clone(&self.resource);
        let Some(_begun) = resource.try_begin() else { return };
        let now = Instant::now();
        let mut why = None;
        if self.handle.snapshot().exported && now >= self.left_retry_at {
            self.left_retry_at = now + LEFT_RETRY;
            match device::take_over(&self.node, &self.resource).await {
                Ok(Some(device)) => {
                    let text = format!("{} goes on, with what waited for it", device.path);
                    return self.announce(None, &text);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(resource = self.name(), "{}", error.message);
                    why = Some(error.message);
                }
            }
        }
        if !self.resource.state().local.primary {
            why = Some("this node is not to be Primary any more".to_owned());
        } else if now < until {
            return;
        }
        let why = why.unwrap_or_else(|| {
            format!("this node did not become Primary within {} seconds", LEFT_LIMIT.as_secs())
        });
        device::give_up_left(&self.node, &self.name(), &why).await;
        self.resource.state().device_waits = None;
        let text = format!("the device of the run before is gone, and its I/O failed: {why}");
        self.node.hub.notice(&self.name(), None, &text);
    }

    async fn drop_wish(&self) {
        let changed = self.resource.change_local(&self.node, |local| local.primary = false).await;
        if let Err(error) = changed {
            tracing::error!("{}", error.message);
        }
    }

    /// Finds out who has the local device open.
    async fn look_at_device(&self) {
        if device::look(&self.resource).await {
            self.publish();
        }
    }

    fn tell(&self, notice: &Notice) {
        if let Some((peer, what)) = problems::of_notice(notice, &self.name()) {
            let problem = Problem { what, seen_apart: false };
            self.resource.state().problems.insert(peer, problem);
            self.publish();
        }
        let (peer, text) = sentence(notice, &self.name());
        let peer = peer.map(|peer| self.node_name(peer));
        if is_trouble(notice) {
            let peer = peer.as_deref().unwrap_or_default();
            tracing::warn!(resource = self.name(), peer, "{text}");
            self.node.hub.notice(&self.name(), Some(peer).filter(|p| !p.is_empty()), &text);
        } else {
            self.announce(peer.as_deref(), &text);
        }
    }

    fn announce(&self, peer: Option<&str>, text: &str) {
        match peer {
            Some(peer) => tracing::info!(resource = self.name(), peer, "{text}"),
            None => tracing::info!(resource = self.name(), "{text}"),
        }
        self.node.hub.notice(&self.name(), peer, text);
    }

    fn node_name(&self, node: NodeId) -> String {
        match self.known.get(&node) {
            Some(peer) => peer.name.clone(),
            None => self.node.view().slot_name(self.resource.id, node),
        }
    }
}

/// What becomes of the wish to be Primary, as things are.
fn judge(snapshot: &Snapshot) -> Verdict {
    if snapshot.role == Role::Primary {
        return Verdict::Fulfilled;
    }
    if let Some(primary) = snapshot.peers.iter().find(|peer| peer.role == Role::Primary) {
        return Verdict::Dropped(primary.node);
    }
    let missing: Vec<NodeId> = snapshot
        .peers
        .iter()
        .filter(|peer| !peer.diskless && peer.connection != ConnectionState::Connected)
        .map(|peer| peer.node)
        .collect();
    if missing.is_empty() { Verdict::Promote } else { Verdict::WaitFor(missing) }
}

/// Tells what a node that follows finds about its own disk.
pub(crate) fn tell_of_own(node: &Node, resource: &str, notice: &Notice) {
    let (_, text) = sentence(notice, resource);
    if is_trouble(notice) {
        tracing::warn!(resource, "{text}");
    } else {
        tracing::info!(resource, "{text}");
    }
    node.hub.notice(resource, None, &text);
}

/// Whether somebody has to do something about it.
fn is_trouble(notice: &Notice) -> bool {
    match notice {
        Notice::SplitBrain(_)
        | Notice::UnrelatedData(_)
        | Notice::TwoPrimaries(_)
        | Notice::PeerRefused(..)
        | Notice::ProtocolError(..)
        | Notice::SizesDiffer { .. }
        | Notice::DiskFailed
        | Notice::Unreadable { .. }
        | Notice::MetaDamaged(_) => true,
        Notice::SurveyEnded(_, run) => run.differing > 0 || run.unreadable > 0,
        Notice::PeerDiskFailed(_)
        | Notice::PeerTimeout(_)
        | Notice::ResyncStarted(..)
        | Notice::Grown(_)
        | Notice::Healed(_)
        | Notice::ResyncFinished(..) => false,
    }
}

/// How a `verify` or `scrub` ended.
fn survey_sentence(end: SurveyEnd, run: &SurveyProgress) -> String {
    let what = match run.kind {
        SurveyKind::Verify => "verify",
        SurveyKind::Scrub => "scrub",
    };
    let how = match end {
        SurveyEnd::Done => "has ended",
        SurveyEnd::Stopped => "was stopped",
        SurveyEnd::PeerLost(_) => "was given up: a peer is gone",
        SurveyEnd::DiskLost => "was given up: the disk is not used any more",
    };
    let SurveyProgress { differing, repaired, unreadable, .. } = run;
    let size = holdfast_units::format_size(run.done);
    format!(
        "the {what} {how}: {size} read, {} differed, {repaired} of them {} repaired, {unreadable} \
         could not be read",
        counted(*differing, "block"),
        agreed(*repaired, "was", "were"),
    )
}

/// A notice as a sentence, and the peer that it is about.
fn sentence(notice: &Notice, resource: &str) -> (Option<NodeId>, String) {
    match notice {
        Notice::DiskFailed => (None, "the disk failed and is not used any more".into()),
        Notice::PeerDiskFailed(peer) => (Some(*peer), "the disk of the peer failed".into()),
        Notice::PeerTimeout(peer) => (Some(*peer), "the peer did not answer in time".into()),
        Notice::ResyncStarted(peer, target, bytes) => {
            let direction = if *target { "from" } else { "to" };
            let bytes = holdfast_units::format_size(*bytes);
            (Some(*peer), format!("a resync {direction} the peer began: {bytes} to do"))
        }
        Notice::ResyncFinished(peer, _) => (Some(*peer), "the resync has ended".into()),
        Notice::Grown(size) => {
            let shown = holdfast_units::format_size(*size);
            (None, format!("the resource has grown: it has {shown} ({size} bytes) now"))
        }
        Notice::Healed(blocks) => {
            let (blocks, were) = (counted(*blocks, "block"), agreed(*blocks, "was", "were"));
            let from = "from a peer or the journal";
            (None, format!("healed: {blocks} that could not be read {were} repaired {from}"))
        }
        Notice::Unreadable { first, blocks } => {
            let (blocks, at) = (counted(*blocks, "block"), first.offset);
            let what = "cannot be read here, nor had from a connected peer or the journal";
            (None, format!("unreadable: {blocks} {what}; the first at offset {at}"))
        }
        Notice::SurveyEnded(end, run) => (None, survey_sentence(*end, run)),
        Notice::MetaDamaged(what) => {
            (None, format!("metadata are damaged: {what}; what they covered is copied again"))
        }
        Notice::SplitBrain(peer)
        | Notice::UnrelatedData(peer)
        | Notice::TwoPrimaries(peer)
        | Notice::PeerRefused(peer, _)
        | Notice::SizesDiffer { peer, .. }
        | Notice::ProtocolError(peer, _) => {
            let problem = problems::of_notice(notice, resource).map(|(_, problem)| problem);
            let PeerProblem { message, hint, .. } = problem.unwrap_or_default();
            (Some(*peer), format!("{message}; {hint}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_core::PeerSnapshot;
    use holdfast_units::{DiskState, GenerationId, ReplicationState};

    fn node(number: u8) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn peer(number: u8, connection: ConnectionState, role: Role) -> PeerSnapshot {
        PeerSnapshot {
            node: node(number),
            connection,
            role,
            disk: DiskState::UpToDate,
            behind: false,
            replication: ReplicationState::Established,
            out_of_sync: 0,
            pending: 0,
            sent: 0,
            received: 0,
            resync_sent: 0,
            resync_received: 0,
            stands_still: None,
            is_source: false,
            resync: None,
            verify: None,
            diskless: false,
            size: None,
        }
    }

    fn snapshot(peers: Vec<PeerSnapshot>) -> Snapshot {
        Snapshot {
            role: Role::Secondary,
            disk: DiskState::Consistent,
            size: 4096,
            own_size: 4096,
            generation: GenerationId(7),
            history: [GenerationId::NONE; 32],
            promotable: true,
            peers,
            hot_extents: 0,
            al_writes: 0,
            in_flight: 0,
            missing: PeerSet::EMPTY,
            surveys: Vec::new(),
            io_errors: 0,
            healed_blocks: 0,
            unreadable_blocks: 0,
            unreadable: Vec::new(),
            healing_blocks: 0,
            hedged_reads: 0,
            hedged_reads_won: 0,
        }
    }

    #[test]
    fn a_node_becomes_primary_again_only_when_nobody_else_can_be() {
        let (up, down) = (ConnectionState::Connected, ConnectionState::Connecting);
        let (first, second) = (Role::Primary, Role::Secondary);
        let of = |peers: Vec<PeerSnapshot>| judge(&snapshot(peers));
        assert_eq!(of(vec![]), Verdict::Promote);
        assert_eq!(of(vec![peer(1, up, second), peer(2, up, second)]), Verdict::Promote);
        assert_eq!(
            of(vec![peer(1, up, second), peer(2, down, Role::Unknown)]),
            Verdict::WaitFor(vec![node(2)])
        );
        assert_eq!(
            of(vec![peer(1, down, Role::Unknown), peer(2, up, first)]),
            Verdict::Dropped(node(2))
        );
        let diskless = PeerSnapshot { diskless: true, ..peer(1, down, Role::Unknown) };
        assert_eq!(of(vec![diskless]), Verdict::Promote);
        let primary = Snapshot { role: first, ..snapshot(vec![peer(1, down, Role::Unknown)]) };
        assert_eq!(judge(&primary), Verdict::Fulfilled);
    }

    #[test]
    fn each_reason_to_wait_is_told_once_and_not_too_many() {
        let begin = Instant::now();
        let mut wish = Wish::new(begin);
        let mut tells = |after: u64, why: &str| {
            wish.tells(begin + PATIENCE + Duration::from_millis(after), why.to_owned())
        };
        assert!(!tells(0, "nothing is heard of beta"), "it is not said at once");
        assert!(tells(1, "nothing is heard of beta"));
        assert!(!tells(2, "nothing is heard of beta"));
        assert!(tells(3, "node beta may have newer data"));
        assert!(!tells(4, "nothing is heard of beta"));
        let told = (0..100).filter(|number| tells(5, &format!("reason {number}"))).count();
        assert_eq!(told, MAX_TOLD - 2);
    }

    #[test]
    fn peers_that_are_away_do_not_hold_up_a_device_that_waits() {
        let missing = || Verdict::WaitFor(vec![node(1), node(2)]);
        let (soon, late) = (Duration::ZERO, PATIENCE + Duration::from_millis(1));
        assert_eq!(missing().with_device(None, |_| true), missing());
        assert_eq!(missing().with_device(Some(soon), |peer| peer == node(1)), missing());
        assert_eq!(missing().with_device(Some(soon), |_| true), Verdict::Promote);
        assert_eq!(missing().with_device(Some(late), |_| false), Verdict::Promote);
        let other = Verdict::Dropped(node(2));
        assert_eq!(other.clone().with_device(Some(late), |_| true), other);
    }
}
