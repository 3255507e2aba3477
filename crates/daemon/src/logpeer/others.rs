//! What the other members say: who leads, and what they have. A node that leads hears of another one
//! that does; one that waits follows whoever leads by the log, if nothing is lost by that.

use super::decide::{
    Again, MayFollow, continues, has_no_more, has_what_is_here, may_follow, may_have_more,
    may_lead_again,
};
use super::roles::{FollowCall, follow_now, log_peers};
use super::{Claims, SteppedBack};
use crate::commands::updown::publish;
use crate::local::Local;
use crate::node::{Node, PeerMember};
use crate::peer_api::{AboutResource, LEADS};
use crate::peers::call_node;
use crate::resource::Resource;
use crate::shard::{ResourceHandle, ResourceView};
use holdfast_api::status::PeerProblem;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::journal::SegmentLink;
use holdfast_journal::ship::{FollowStatus, Holding};
use holdfast_journal::{Relation, compare};
use holdfast_units::{
    ConnectionState, DiskState, GenerationId, HybridTime, LogPosition, NodeId, ResourceId, Role,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the others are asked.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How long others that are about to lead are waited for, and how often they are asked.
pub(super) const SETTLE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(100);
/// How long who did not answer is asked again.
const BRIEF: Duration = Duration::from_millis(500);
/// How long after a failed attempt it does not try to follow.
const PAUSE: Duration = Duration::from_secs(10);
/// How often a node asks.
const AGAIN: Duration = Duration::from_secs(2);
/// The generations that are told; older ones were filled long ago, or are for a person to look at.
const LINEAGE: usize = 64;
/// The newest segments that are told.
const LINKS: usize = 512;

/// Whether a node leads a resource, and what it has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Leads {
    pub(crate) leads: bool,
    /// Where its journal ends: whoever has everything before this has all that it has.
    #[serde(default)]
    pub(crate) head: Option<u64>,
    /// Data of these generations are an earlier state of what it has; the first is its own.
    #[serde(default)]
    pub(crate) lineage: Vec<u64>,
    /// Its journal, when that says all that is on its disk.
    #[serde(default)]
    pub(crate) chain: Vec<Link>,
    /// It is about to lead.
    #[serde(default)]
    pub(crate) claims: bool,
    /// That is as it did before it was stopped.
    #[serde(default)]
    pub(crate) again: bool,
    /// It is up, and says of itself what is here.
    #[serde(default)]
    pub(crate) is_up: bool,
    /// A command changes it: what it says may be of before.
    #[serde(default)]
    pub(crate) busy: bool,
    /// Its disk holds nothing that anybody could lose.
    #[serde(default)]
    pub(crate) nothing: bool,
    /// It follows by the log.
    #[serde(default)]
    pub(crate) follows: bool,
    /// The member that it is connected to as the one that leads.
    #[serde(default)]
    pub(crate) leader: Option<u8>,
    /// While it follows: how large a resource its disk is ready for, in bytes.
    #[serde(default)]
    pub(crate) size: Option<u64>,
    /// It does not follow the caller, as it may have data that the caller lacks.
    #[serde(default)]
    pub(crate) apart: bool,
}

/// A segment of a journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Link {
    number: u64,
    origin: u8,
    epoch: u64,
    base: u64,
    len: u64,
    time: u64,
    chain: [u8; 16],
}

impl Link {
    const fn of(link: &SegmentLink) -> Self {
        let SegmentLink { number, origin, epoch, base, len, time, chain } = *link;
        Self { number, origin: origin.number(), epoch, base: base.0, len, time: time.0, chain }
    }

    fn link(&self) -> Option<SegmentLink> {
        Some(SegmentLink {
            number: self.number,
            origin: NodeId::new(self.origin)?,
            epoch: self.epoch,
            base: LogPosition(self.base),
            len: self.len,
            time: HybridTime(self.time),
            chain: self.chain,
        })
    }
}

pub(super) fn told(links: &[SegmentLink]) -> Vec<Link> {
    links[links.len().saturating_sub(LINKS)..].iter().map(Link::of).collect()
}

impl Leads {
    /// What this node says of itself to another one.
    pub(crate) async fn of(node: &Node, id: ResourceId) -> Self {
        let Some(resource) = node.resource(id) else { return Self::default() };
        let claims = resource.state().claims;
        let settled = resource.try_begin().is_some();
        Self {
            claims: claims.is_some(),
            again: claims == Some(Claims::Again),
            busy: !settled,
            ..Self::of_what_runs(&resource, settled).await
        }
    }

    /// Who is changing (not `settled`) does not say what it is.
    async fn of_what_runs(resource: &Resource, settled: bool) -> Self {
        if let Some(following) = resource.following() {
            let view = following.view();
            let Some(status) = view.status else { return Self::default() };
            let leader = view.leader.map(NodeId::number);
            let nothing = matches!(status.holding, Holding::Nothing | Holding::Filling);
            let chain = told(&following.chain().await.unwrap_or_default());
            let (is_up, follows) = (settled, settled);
            let size = resource.local().size;
            return Self { is_up, nothing, chain, follows, leader, size, ..Self::default() };
        }
        let Some(handle) = resource.handle() else { return Self::default() };
        let view = handle.snapshot();
        let head = match handle.journal() {
            Some(journal) => journal.status().await.ok().map(|status| status.head.0),
            None => None,
        };
        // Not older than where the journal ends.
        let view = if head.is_some() { handle.snapshot() } else { view };
        let split = |problem: &PeerProblem| problem.code == "SPLIT_BRAIN";
        let apart =
            view.snapshot.role != Role::Primary && resource.state().apart.values().any(split);
        Self {
            leads: view.snapshot.role == Role::Primary,
            head,
            lineage: lineage_of(&view, &resource.local()),
            chain: told(&chain_of(&handle).await),
            is_up: settled,
            nothing: view.snapshot.disk == DiskState::Inconsistent,
            apart,
            ..Self::default()
        }
    }

    pub(super) fn links(&self) -> Vec<SegmentLink> {
        self.chain.iter().map_while(Link::link).collect()
    }
}

/// The journal of a node with a core, when it says all that is on the disk.
async fn chain_of(handle: &ResourceHandle) -> Vec<SegmentLink> {
    let Some(journal) = handle.journal() else { return Vec::new() };
    journal.chain().await.ok().flatten().unwrap_or_default()
}

/// The generations of the data here and before, newest first.
pub(super) fn lineage_of(view: &ResourceView, local: &Local) -> Vec<u64> {
    let snapshot = &view.snapshot;
    let own = [snapshot.generation].into_iter().chain(snapshot.history);
    let before = local.lineage.iter().copied().map(GenerationId);
    let counts = |one: &GenerationId| !one.is_none() && *one != GenerationId::JUST_CREATED;
    own.chain(before).filter(counts).map(|one| one.0).take(LINEAGE).collect()
}

/// Asks other members, all at once; those that answered.
pub(super) async fn ask(
    node: &Arc<Node>,
    id: ResourceId,
    peers: impl IntoIterator<Item = PeerMember>,
) -> Vec<(PeerMember, Leads)> {
    ask_within(node, id, peers, ASK_LIMIT).await
}

async fn ask_within(
    node: &Arc<Node>,
    id: ResourceId,
    peers: impl IntoIterator<Item = PeerMember>,
    limit: Duration,
) -> Vec<(PeerMember, Leads)> {
    let view = node.view();
    let mut asked = tokio::task::JoinSet::new();
    for peer in peers {
        let Some(record) = view.records.node(peer.uuid) else { continue };
        let (node, call) = (Arc::clone(node), AboutResource { resource: id });
        asked.spawn(async move {
            let answer = call_node::<_, Leads>(&node, &record, LEADS, &call, limit).await;
            answer.ok().map(|answer| (peer, answer))
        });
    }
    let mut answers: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    answers.sort_by_key(|(peer, _)| peer.slot);
    answers
}

/// As [`ask`], when none of them is about to lead any more, or one leads; who still is, when that takes
/// longer.
pub(super) async fn ask_settled(
    node: &Arc<Node>,
    id: ResourceId,
    peers: &[PeerMember],
    limit: Duration,
) -> Result<Vec<(PeerMember, Leads)>, String> {
    let until = Instant::now() + limit;
    loop {
        let answers = ask(node, id, peers.to_vec()).await;
        let leads = answers.iter().any(|(_, said)| said.leads);
        let claims = answers.iter().find(|(_, said)| said.claims && !leads);
        let Some((peer, _)) = claims else { return Ok(answers) };
        if Instant::now() >= until {
            return Err(peer.name.clone());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The members with a disk to which no data link stands.
fn not_streaming(node: &Node, resource: &Resource, view: &ResourceView) -> Vec<PeerMember> {
    let connected = |peer: &PeerMember| {
        let known = view.snapshot.peers.iter().find(|known| known.node == peer.slot);
        known.is_some_and(|known| known.connection == ConnectionState::Connected)
    };
    let peers = node.view().peers_of(resource.id, node.uuid).into_values();
    peers.filter(|peer| !peer.diskless && !connected(peer)).collect()
}

/// Those of them that do not follow this node either; none, when none of all is tied by the log.
fn unconnected(node: &Node, resource: &Resource, view: &ResourceView) -> Vec<PeerMember> {
    if log_peers(node, resource.id).is_empty() {
        return Vec::new();
    }
    let serving = resource.state().serving.clone();
    let follows = |peer: &PeerMember| {
        let shown = serving.as_ref().and_then(|serving| serving.shown(peer.slot));
        shown.is_some_and(|status| status.connected)
    };
    let mut peers = not_streaming(node, resource, view);
    peers.retain(|peer| !follows(peer));
    peers
}

fn refuse_primary(resource: &Resource, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("primary was refused for {}: {why}", resource.name()))
}

/// As [`need_no_leader`], and that nobody who answers has what is not here.
///
/// # Errors
/// As there; `BEHIND`.
pub(crate) async fn need_no_newer(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
) -> Result<(), ApiError> {
    let answers = need_no_leader(node, resource, SETTLE).await?;
    let Some(handle) = resource.handle().filter(|_| !answers.is_empty()) else { return Ok(()) };
    let own = chain_of(&handle).await;
    let newer = |(peer, said): &&(PeerMember, Leads)| may_have_more(&own, peer, said, false);
    let Some((peer, _)) = answers.iter().find(newer) else { return Ok(()) };
    let (name, peer) = (resource.name(), &peer.name);
    let why = format!("the disk of this node is behind, node {peer} may have newer data");
    Err(refuse_primary(resource, ErrorCode::Behind, &why).hint(format!(
        "`holdfast primary {name}` on {peer} leads with those; `holdfast primary {name} --force` here \
         leads with what is here, and one side is to be given up then"
    )))
}

/// That no other node leads, or is about to, before this one does by its core. Each of two that want to
/// lead is seen by the other one (`Claim`), so they never do both. Who cannot be reached is not
/// waited for, unless this node has just stepped back for him. What those said who were asked.
///
/// # Errors
/// `OTHER_PRIMARY`; `BUSY` when another one is still at it at the end of `limit`.
pub(super) async fn need_no_leader(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    limit: Duration,
) -> Result<Vec<(PeerMember, Leads)>, ApiError> {
    let Some(view) = resource.view() else { return Ok(Vec::new()) };
    if view.snapshot.role == Role::Primary || log_peers(node, resource.id).is_empty() {
        return Ok(Vec::new());
    }
    let name = resource.name();
    let refuse = |code, why: &str| refuse_primary(resource, code, why);
    let busy = |why: &str| {
        refuse(ErrorCode::Busy, why).hint(format!(
            "try again in a while; `holdfast status {name}` says who is Primary then"
        ))
    };
    let asked = not_streaming(node, resource, &view);
    let answers = ask_settled(node, resource.id, &asked, limit).await;
    let answers = answers.map_err(|peer| busy(&format!("node {peer} is about to be Primary")))?;
    if let Some((leader, _)) = answers.iter().find(|(_, other)| other.leads) {
        let why = format!("node {} is Primary", leader.name);
        return Err(refuse(ErrorCode::OtherPrimary, &why).hint(format!(
            "`holdfast status {name}` says whether this node follows it, and what is in the way"
        )));
    }
    let stepped_back = resource.state().stepped_back.filter(|back| back.until > Instant::now());
    let Some(SteppedBack { taker, .. }) = stepped_back else { return Ok(answers) };
    if answers.iter().any(|(peer, _)| peer.uuid == taker) {
        return Ok(answers);
    }
    Err(busy("it has just stepped back for another node, which does not answer"))
}

/// Looks, as long as the core runs, who else leads.
pub(crate) async fn look_around(node: Arc<Node>, resource: Arc<Resource>, handle: ResourceHandle) {
    let mut views = handle.watch();
    loop {
        look(&node, &resource, &handle).await;
        let role = handle.snapshot().snapshot.role;
        let changed = async { views.wait_for(|view| view.snapshot.role != role).await.is_err() };
        if tokio::time::timeout(AGAIN, changed).await.is_ok_and(|ended| ended) {
            return;
        }
    }
}

async fn look(node: &Arc<Node>, resource: &Arc<Resource>, handle: &ResourceHandle) {
    let view = handle.snapshot();
    let snapshot = &view.snapshot;
    let leads = snapshot.role == Role::Primary;
    let led = snapshot.peers.iter().any(|peer| peer.role == Role::Primary);
    let asked = if led { Vec::new() } else { unconnected(node, resource, &view) };
    let answers = ask(node, resource.id, asked).await;
    let name = resource.name();
    let own_log = node.view().follows_by_log(resource.id, node.uuid);
    let mut found = BTreeMap::new();
    for (peer, other) in answers {
        if leads && other.leads {
            let problem = both_lead(&name, &chain_of(handle).await, &other.links());
            found.insert(peer.slot, problem);
        } else if leads && other.apart {
            found.insert(peer.slot, keeps_its_own(&name, &peer.name));
        } else if !leads && other.leads && (peer.log || own_log || is_unrelated(resource, &peer)) {
            if snapshot.disk < DiskState::Inconsistent {
                continue;
            }
            let by_log = peer.log || own_log;
            let may = may_follow_who_leads(handle, &other.lineage).await;
            if by_log && resource.local().journal.is_none() {
                found.insert(peer.slot, no_journal(&name, &peer.name));
                continue;
            }
            if may == MayFollow::Replaced || by_log && may == MayFollow::Judged {
                let after = resource.state().follow_after;
                if after.is_some_and(|after| Instant::now() < after) {
                    continue;
                }
                let call = FollowCall { resource: resource.id, lineage: other.lineage };
                // It ends this task.
                tokio::spawn(follow(Arc::clone(node), call, peer.name));
                return;
            }
            if by_log {
                found.insert(peer.slot, unproven(&name, &peer.name));
            }
        }
    }
    tell(node, resource, &found);
}

/// Whether a member that streams is not connected to, as its metadata were made anew since.
fn is_unrelated(resource: &Resource, peer: &PeerMember) -> bool {
    let state = resource.state();
    let problem = state.problems.get(&peer.slot);
    problem.is_some_and(|problem| problem.what.code == "UNRELATED_DATA")
}

/// Whether this node, which was Primary, may be so again although these members are not connected.
/// Nobody may change this resource meanwhile.
pub(crate) async fn lead_again(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    handle: &ResourceHandle,
    missing: &[NodeId],
) -> Again {
    let own = node.view().slot_of(resource.id, node.uuid);
    let (Some(own), false) = (own, log_peers(node, resource.id).is_empty()) else {
        let names = missing.iter().map(|slot| node.view().slot_name(resource.id, *slot));
        let names = names.collect::<Vec<_>>().join(", ");
        let why = format!("nothing is heard of {names}: one of them could be Primary now");
        return if missing.is_empty() { Again::Yes } else { Again::Wait(why) };
    };
    let members = not_streaming(node, resource, &handle.snapshot());
    let (mut asked, mut silent) = (members.clone(), Vec::new());
    let until = Instant::now() + SETTLE;
    let mut asked_twice = false;
    loop {
        // Who was silent has been waited for once, and may have been started since.
        let (mut answers, others) = tokio::join!(
            ask(node, resource.id, asked),
            ask_within(node, resource.id, silent, BRIEF)
        );
        answers.extend(others);
        let answered = |peer: &PeerMember| answers.iter().any(|(one, _)| one.slot == peer.slot);
        (asked, silent) = members.iter().cloned().partition(answered);
        let said = |peer: &PeerMember| {
            let at = answers.iter().position(|(one, _)| one.slot == peer.slot);
            (peer.clone(), at.map(|at| answers.swap_remove(at).1))
        };
        let answers: Vec<_> = members.iter().map(said).collect();
        match may_lead_again((own, &chain_of(handle).await), missing, &answers) {
            // Waiting for the silent took a while in which others may have begun by force.
            Again::Yes if !asked_twice => asked_twice = true,
            Again::Soon(why) if Instant::now() >= until => return Again::Wait(why),
            Again::Soon(_) => tokio::time::sleep(LOOK).await,
            again => return again,
        }
    }
}

/// Boxed: following ends, and begins again, whatever looks around.
fn follow(
    node: Arc<Node>,
    call: FollowCall,
    leader: String,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let id = call.resource;
        if let Err(error) = follow_now(&node, call, &leader).await {
            tracing::warn!("{}", error.message);
            if let Some(resource) = node.resource(id) {
                resource.state().follow_after = Some(Instant::now() + PAUSE);
            }
        }
    })
}

fn tell(node: &Arc<Node>, resource: &Arc<Resource>, found: &BTreeMap<NodeId, PeerProblem>) {
    let before = std::mem::replace(&mut resource.state().apart, found.clone());
    if before == *found {
        return;
    }
    let name = resource.name();
    for (slot, problem) in found {
        if !before.contains_key(slot) {
            tracing::error!(resource = name, "{}", problem.message);
            node.hub.notice(&name, None, &problem.message);
        }
    }
    publish(node, resource);
}

/// Whether this node, which has a core, may follow who leads with data of this lineage.
pub(super) async fn may_follow_who_leads(handle: &ResourceHandle, lineage: &[u64]) -> MayFollow {
    let has_chain = !chain_of(handle).await.is_empty();
    let view = handle.snapshot();
    may_follow(view.snapshot.disk, view.snapshot.generation.0, has_chain, lineage)
}

/// That nobody leads, everybody says what he has, and this node, which follows, has all of it. The
/// lineage of the data then.
///
/// # Errors
/// Who cannot be asked, or has something that is not here.
pub(super) async fn all_is_here(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
) -> Result<Vec<u64>, String> {
    let peers = node.view().peers_of(resource.id, node.uuid).into_values();
    let peers: Vec<_> = peers.filter(|peer| !peer.diskless).collect();
    let answers = ask_settled(node, resource.id, &peers, SETTLE).await;
    let answers = answers.map_err(|name| format!("node {name} is about to lead"))?;
    for peer in peers {
        let said = answers.iter().find(|(one, _)| one.slot == peer.slot);
        let name = peer.name;
        match said {
            Some((_, said)) if said.leads => {
                return Err(format!("node {name} leads, and is not followed"));
            }
            Some((_, said)) if said.is_up => {}
            _ => return Err(format!("node {name} cannot be asked whether it has more")),
        }
    }
    let following = resource.following().ok_or("it does not follow any more")?;
    let own = following.chain().await.unwrap_or_default();
    if own.is_empty() {
        return Err(
            "this node cannot show what it has: its journal is empty, or went on apart".into()
        );
    }
    for (peer, said) in &answers {
        // Of the members that stream, one has what the other has whose journal is here.
        let streamed = || {
            let mut others = answers.iter().filter(|(_, other)| continues(&own, other));
            let first = said.lineage.first();
            first.is_some_and(|first| others.any(|(_, other)| other.lineage.contains(first)))
        };
        if !has_no_more(&own, said) && !streamed() {
            return Err(format!("node {} may have more than this one", peer.name));
        }
    }
    let mut lineage: Vec<u64> = Vec::new();
    for one in answers.iter().flat_map(|(_, said)| &said.lineage) {
        if !lineage.contains(one) {
            lineage.push(*one);
        }
    }
    lineage.truncate(LINEAGE);
    Ok(lineage)
}

/// Whether another member in reach has what this one has, which follows, or cannot be started.
pub(crate) async fn is_elsewhere(node: &Arc<Node>, resource: &Arc<Resource>) -> bool {
    let (mut own, mut nothing) = (Vec::new(), false);
    if let Some(following) = resource.following() {
        let status = following.view().status;
        let counts =
            |status: &FollowStatus| !matches!(status.holding, Holding::Nothing | Holding::Filling);
        nothing = status.is_some_and(|status| !counts(&status));
        own = following.chain().await.unwrap_or_default();
    }
    let peers = node.view().peers_of(resource.id, node.uuid).into_values();
    let answers = ask(node, resource.id, peers.filter(|peer| !peer.diskless)).await;
    answers.iter().any(|(_, said)| has_what_is_here(&own, nothing, said))
}

/// The log peers that do not say within a moment that they are as large as this.
pub(crate) async fn not_grown(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    size: u64,
) -> Vec<String> {
    let mut members = log_peers(node, resource.id);
    let until = Instant::now() + SETTLE;
    loop {
        let answers = ask(node, resource.id, members.clone()).await;
        let grown = |peer: &PeerMember| {
            let said = answers.iter().find(|(one, _)| one.slot == peer.slot);
            said.is_some_and(|(_, said)| said.size.is_some_and(|own| own >= size))
        };
        members.retain(|peer| !grown(peer));
        if members.is_empty() || Instant::now() >= until {
            return members.into_iter().map(|peer| peer.name).collect();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What is only here, only there, and up to where both are the same.
fn differences(
    ours: &[SegmentLink],
    theirs: &[SegmentLink],
) -> Option<(Option<LogPosition>, u64, u64)> {
    let end = |links: &[SegmentLink]| links.last().map_or(LogPosition::START, SegmentLink::end);
    match compare(ours, theirs) {
        Relation::Apart { common, ours, theirs, .. } => Some((common, ours, theirs)),
        Relation::Ahead => Some((Some(end(theirs)), end(ours).since(end(theirs)), 0)),
        Relation::Behind => Some((Some(end(ours)), 0, end(theirs).since(end(ours)))),
        Relation::Equal => Some((Some(end(ours)), 0, 0)),
        Relation::Unknown => None,
    }
}

fn both_lead(name: &str, ours: &[SegmentLink], theirs: &[SegmentLink]) -> PeerProblem {
    let bytes = differences(ours, theirs).map_or_else(String::new, |(common, ours, theirs)| {
        let from = common.map_or_else(
            || "before what is still kept".to_owned(),
            |common| format!("at position {common}"),
        );
        format!(
            "; the journals went on apart {from}: {ours} bytes only here, {theirs} bytes only there"
        )
    });
    PeerProblem {
        code: "SPLIT_BRAIN".to_owned(),
        message: format!("both nodes are Primary{bytes}"),
        hint: format!(
            "decide whose data are to be kept; on the other node `holdfast secondary {name}`, then \
             `holdfast connect {name} --discard-my-data` has them replaced"
        ),
    }
}

fn unproven(name: &str, leader: &str) -> PeerProblem {
    PeerProblem {
        code: "SPLIT_BRAIN".to_owned(),
        message: format!(
            "node {leader} was made Primary without the data of this node, which may have what is \
             not there: it is not followed"
        ),
        hint: format!(
            "decide whose data are to be kept: `holdfast connect {name} --discard-my-data` here has \
             those of this node replaced; for those of this node, `holdfast secondary {name}` on \
             {leader}, then `holdfast primary {name} --force` here"
        ),
    }
}

fn no_journal(name: &str, leader: &str) -> PeerProblem {
    PeerProblem {
        code: "NO_JOURNAL".to_owned(),
        message: format!(
            "node {leader} is Primary by the log, and this node has no journal to follow it: it gets \
             nothing, and its data are of before"
        ),
        hint: format!(
            "make a node of the pair Primary again; or `holdfast leave {name}` here, and join again \
             with --journal"
        ),
    }
}

fn keeps_its_own(name: &str, peer: &str) -> PeerProblem {
    PeerProblem {
        code: "SPLIT_BRAIN".to_owned(),
        message: format!(
            "node {peer} does not follow: this node was made Primary without its data, and they may \
             be newer"
        ),
        hint: format!(
            "decide whose data are to be kept: `holdfast connect {name} --discard-my-data` on \
             {peer} has those replaced; for those of {peer}, `holdfast secondary {name}` here, then \
             `holdfast primary {name} --force` there"
        ),
    }
}
