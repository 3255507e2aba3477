//! Virtual connections: per pair of nodes at most one that is new, two streams each, in order.
//!
//! A stream delivers a prefix of what was sent, then perhaps its end. A path can be blocked in each
//! direction for itself: what was sent then waits, as TCP would retransmit it.

use crate::rng::Rng;
use holdfast_core::LinkId;
use holdfast_wire::Message;
use std::collections::{BTreeMap, VecDeque};

/// What arrives at one end of a connection.
pub(crate) enum Item {
    /// The connection stands.
    Up,
    /// A message.
    Message(Message),
    /// The connection is gone.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum EndState {
    /// It was not told yet that the connection stands.
    Opening,
    Open,
    Gone,
}

struct End {
    node: usize,
    state: EndState,
    inbox: VecDeque<(u64, Item)>,
    /// Its next delivery is in the queue of happenings.
    scheduled: bool,
}

impl End {
    fn push(&mut self, at: u64, item: Item) {
        let last = self.inbox.back().map_or(0, |(at, _)| *at);
        self.inbox.push_back((at.max(last), item));
    }

    /// Loses an unknown part of what is on the way. That the connection stands is not: only a side that
    /// has been told so finds out that it is dead.
    fn truncate(&mut self, rng: &mut Rng) {
        let keep =
            rng.index(self.inbox.len() + 1).max(usize::from(self.state == EndState::Opening));
        self.inbox.truncate(keep);
    }
}

struct Connection {
    ends: [End; 2],
    /// Nothing that is sent arrives any more, though neither side may know it.
    cut: bool,
}

impl Connection {
    fn side_of(&self, node: usize) -> usize {
        usize::from(self.ends[1].node == node)
    }

    fn joins(&self, a: usize, b: usize) -> bool {
        let pair = [self.ends[0].node, self.ends[1].node];
        pair == [a, b] || pair == [b, a]
    }
}

/// All connections and paths.
pub(crate) struct Net {
    connections: BTreeMap<LinkId, Connection>,
    next: u64,
    /// `blocked[from][to]`
    blocked: Vec<Vec<bool>>,
    /// Ends whose next delivery may have to be scheduled.
    touched: Vec<(LinkId, usize)>,
    /// Typical time of a message on its way, in microseconds.
    latency: u64,
}

impl Net {
    pub(crate) fn new(nodes: usize, latency: u64) -> Self {
        let blocked = vec![vec![false; nodes]; nodes];
        Self { connections: BTreeMap::new(), next: 1, blocked, touched: Vec::new(), latency }
    }

    /// Holds back what goes from one node to another, or lets it pass.
    pub(crate) fn block(&mut self, from: usize, to: usize, blocked: bool) {
        self.blocked[from][to] = blocked;
        for (link, connection) in &self.connections {
            if connection.joins(from, to) {
                self.touched.push((*link, connection.side_of(to)));
            }
        }
    }

    /// Whether messages of both could reach the other.
    pub(crate) fn is_clear(&self, a: usize, b: usize) -> bool {
        !self.blocked[a][b] && !self.blocked[b][a]
    }

    /// Whether this node has been told of a connection with the peer that it takes to stand.
    pub(crate) fn thinks_connected(&self, node: usize, peer: usize) -> bool {
        self.connections.values().any(|connection| {
            connection.joins(node, peer)
                && connection.ends[connection.side_of(node)].state != EndState::Gone
        })
    }

    /// The connection of the two that stands, or is about to, on both sides.
    pub(crate) fn joint_link(&self, a: usize, b: usize) -> Option<LinkId> {
        let stands = |connection: &Connection| {
            connection.joins(a, b)
                && !connection.cut
                && connection.ends.iter().all(|end| end.state != EndState::Gone)
        };
        self.connections.iter().find(|(_, connection)| stands(connection)).map(|(link, _)| *link)
    }

    /// A new connection of the two. Both will be told.
    pub(crate) fn connect(&mut self, a: usize, b: usize, now: u64, rng: &mut Rng) -> LinkId {
        let link = LinkId(self.next);
        self.next += 1;
        let ends = [a, b].map(|node| End {
            node,
            state: EndState::Opening,
            inbox: VecDeque::from([(now + rng.delay(self.latency), Item::Up)]),
            scheduled: false,
        });
        self.connections.insert(link, Connection { ends, cut: false });
        self.touched.extend([(link, 0), (link, 1)]);
        link
    }

    /// Sends a message, when the sender's end is open. Whether it arrives is not known.
    pub(crate) fn send(
        &mut self,
        from: usize,
        link: LinkId,
        message: Message,
        now: u64,
        rng: &mut Rng,
    ) {
        let delay = rng.delay(self.latency);
        let Some(connection) = self.connections.get_mut(&link) else { return };
        let side = connection.side_of(from);
        if connection.ends[side].state != EndState::Open || connection.cut {
            return;
        }
        let other = &mut connection.ends[1 - side];
        if other.state != EndState::Gone {
            other.push(now + delay, Item::Message(message));
            self.touched.push((link, 1 - side));
        }
    }

    /// This node closes its end. The other one gets all that was sent (`orderly`) or a first part,
    /// and then, when it is `told`, the end.
    pub(crate) fn close(&mut self, node: usize, link: LinkId, how: Close, now: u64, rng: &mut Rng) {
        let delay = rng.delay(self.latency);
        let Some(connection) = self.connections.get_mut(&link) else { return };
        let side = connection.side_of(node);
        connection.ends[side].state = EndState::Gone;
        connection.ends[side].inbox.clear();
        let cut = connection.cut;
        let other = &mut connection.ends[1 - side];
        if other.state == EndState::Gone {
            self.connections.remove(&link);
            return;
        }
        if how != Close::Orderly {
            other.truncate(rng);
        }
        if how != Close::Silent && !cut {
            other.push(now + delay, Item::End);
        }
        self.touched.push((link, 1 - side));
    }

    /// The network breaks a connection. Each side is told at its own time, or never.
    pub(crate) fn cut(&mut self, link: LinkId, told: [Option<u64>; 2], rng: &mut Rng) {
        let Some(connection) = self.connections.get_mut(&link) else { return };
        connection.cut = true;
        for (side, (end, told)) in connection.ends.iter_mut().zip(told).enumerate() {
            if end.state == EndState::Gone {
                continue;
            }
            end.truncate(rng);
            if let Some(at) = told {
                end.push(at, Item::End);
                self.touched.push((link, side));
            }
        }
    }

    /// All connections, with the two nodes of each.
    pub(crate) fn links(&self) -> Vec<(LinkId, usize, usize)> {
        let nodes = |c: &Connection| (c.ends[0].node, c.ends[1].node);
        self.connections.iter().map(|(l, c)| (*l, nodes(c).0, nodes(c).1)).collect()
    }

    /// The connections at which this node has an end that is not gone.
    pub(crate) fn links_at(&self, node: usize) -> Vec<LinkId> {
        let here = |connection: &Connection| {
            let end = &connection.ends[connection.side_of(node)];
            end.node == node && end.state != EndState::Gone
        };
        self.connections.iter().filter(|(_, c)| here(c)).map(|(link, _)| *link).collect()
    }

    /// Whether nothing is on its way on any path that is not blocked.
    pub(crate) fn is_quiet(&self) -> bool {
        self.connections.values().all(|connection| {
            let [a, b] = &connection.ends;
            (a.inbox.is_empty() || self.blocked[b.node][a.node])
                && (b.inbox.is_empty() || self.blocked[a.node][b.node])
        })
    }

    /// Deliveries that must be scheduled: connection, side and time.
    pub(crate) fn wakes(&mut self, now: u64) -> Vec<(u64, LinkId, usize)> {
        let mut wakes = Vec::new();
        for (link, side) in std::mem::take(&mut self.touched) {
            let Some(connection) = self.connections.get_mut(&link) else { continue };
            let from = connection.ends[1 - side].node;
            let end = &mut connection.ends[side];
            if end.scheduled || self.blocked[from][end.node] {
                continue;
            }
            if let Some((at, _)) = end.inbox.front() {
                end.scheduled = true;
                wakes.push(((*at).max(now), link, side));
            }
        }
        wakes
    }

    /// A scheduled delivery: who gets what, and from whom. `None` when it was lost meanwhile.
    pub(crate) fn deliver(&mut self, link: LinkId, side: usize) -> Option<(usize, usize, Item)> {
        let connection = self.connections.get_mut(&link)?;
        let from = connection.ends[1 - side].node;
        let end = &mut connection.ends[side];
        end.scheduled = false;
        let node = end.node;
        if self.blocked[from][node] || end.state == EndState::Gone {
            return None;
        }
        let (_, item) = end.inbox.pop_front()?;
        match item {
            Item::Up => end.state = EndState::Open,
            Item::End => end.state = EndState::Gone,
            Item::Message(_) => {}
        }
        self.touched.push((link, side));
        if connection.ends.iter().all(|end| end.state == EndState::Gone) {
            self.connections.remove(&link);
        }
        Some((node, from, item))
    }

    /// This node has a newer connection with the peer: older ones are gone on its side.
    pub(crate) fn drop_older(&mut self, node: usize, peer: usize, newest: LinkId) {
        let older: Vec<LinkId> = self
            .connections
            .iter()
            .filter(|(link, c)| **link < newest && c.joins(node, peer))
            .map(|(link, _)| *link)
            .collect();
        for link in older {
            let Some(connection) = self.connections.get_mut(&link) else { continue };
            let side = connection.side_of(node);
            connection.ends[side].state = EndState::Gone;
            connection.ends[side].inbox.clear();
            if connection.ends.iter().all(|end| end.state == EndState::Gone) {
                self.connections.remove(&link);
            }
        }
    }
}

/// How an end is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Close {
    /// After all that was sent.
    Orderly,
    /// At once: what was sent arrives in part.
    Abrupt,
    /// At once, and the other side is not told.
    Silent,
}
