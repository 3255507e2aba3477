//! The virtual world: time, nodes, network, and what happens next.

use crate::Settings;
use crate::net::{Item, Net};
use crate::node::{Node, node_id};
use crate::oracle::Oracle;
use crate::plan::Plan;
use crate::queue::Queue;
use crate::report::{Fingerprint, Stats, Trace, Violation};
use crate::rng::Rng;
use holdfast_core::{Action, Command, CommandId, DiskOpId, Event, JournalReadId, LinkId, MetaOpId};
use holdfast_units::LogPosition;
use std::collections::{BTreeMap, BTreeSet};

/// More steps than any run should need.
const MAX_STEPS: u64 = 4_000_000;

/// What can happen. Of a node, only in the life for which it was meant.
#[derive(Clone, Copy)]
pub(crate) enum Happening {
    Tick { node: usize, life: u64 },
    DiskApply { node: usize, life: u64, op: DiskOpId },
    DiskReport { node: usize, life: u64, op: DiskOpId },
    MetaApply { node: usize, life: u64, op: MetaOpId },
    MetaReport { node: usize, life: u64, op: MetaOpId },
    JournalRead { node: usize, life: u64, id: JournalReadId, from: LogPosition },
    Deliver { link: LinkId, side: usize },
    Dial(usize, usize),
    Start(usize),
    Unblock { from: usize, to: usize },
    Grow { node: usize, life: u64 },
    Client,
    Trouble,
}

/// See the module.
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    /// Virtual time in microseconds.
    pub(crate) now: u64,
    pub(crate) queue: Queue<Happening>,
    pub(crate) net: Net,
    pub(crate) nodes: Vec<Node>,
    pub(crate) oracle: Oracle,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) trace: Trace,
    pub(crate) stats: Stats,
    pub(crate) violation: Option<Violation>,
    /// Clients work and trouble is made.
    pub(crate) clients_on: bool,
    pub(crate) trouble_on: bool,
    pub(crate) client_queued: bool,
    pub(crate) trouble_queued: bool,
    pub(crate) dialing: BTreeSet<(usize, usize)>,
    pub(crate) commands: BTreeMap<CommandId, (usize, Command)>,
    pub(crate) next_name: u64,
    pub(crate) next_write: u64,
    /// All members have agreed on the size in the end.
    pub(crate) growing: bool,
    /// Blocks that clients write data to.
    pub(crate) tracked: BTreeSet<u64>,
    pub(crate) actions: Vec<Action>,
    pub(crate) last_change: u64,
    /// A block that changed by itself: the node and the block.
    pub(crate) corrupted: Option<(usize, u64)>,
    /// How the last comparison went.
    pub(crate) surveyed: Option<holdfast_core::SurveyProgress>,
    immediate_ticks: u64,
}

/// Adds a line to the trace, when it is kept.
macro_rules! note {
    ($world:expr, $($text:tt)*) => {
        if $world.trace.on {
            let line = format!("{:>10} {}", $world.now, format_args!($($text)*));
            $world.trace.line(line);
        }
    };
}
pub(crate) use note;

impl World {
    pub(crate) fn new(mut rng: Rng, plan: Plan, settings: Settings) -> Self {
        let slots = u8::try_from(plan.nodes()).expect("clusters are small");
        let nodes = (0..plan.nodes()).map(|i| Node::new(i, &plan, slots)).collect();
        let tracked = plan.spots.iter().cloned().flatten().collect();
        let trace = Trace::new(settings.trace);
        Self {
            net: Net::new(plan.nodes(), plan.net_us),
            oracle: Oracle::new(plan.nodes()),
            now: rng.below(1000),
            settings,
            plan,
            rng,
            queue: Queue::new(),
            nodes,
            fingerprint: Fingerprint::new(),
            trace,
            stats: Stats::default(),
            violation: None,
            clients_on: false,
            trouble_on: false,
            client_queued: false,
            trouble_queued: false,
            dialing: BTreeSet::new(),
            commands: BTreeMap::new(),
            next_name: 0,
            next_write: 0,
            growing: false,
            tracked,
            actions: Vec::new(),
            last_change: 0,
            corrupted: None,
            surveyed: None,
            immediate_ticks: 0,
        }
    }

    /// Keeps the first violation; nothing happens after it.
    pub(crate) fn fail(&mut self, promise: &'static str, what: String) {
        if self.violation.is_none() {
            note!(self, "VIOLATION of {promise}: {what}");
            self.violation = Some(Violation { promise, at: self.now, what });
        }
    }

    /// Takes the result of a check.
    pub(crate) fn check(&mut self, promise: &'static str, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(promise, what);
        }
    }

    /// Lets things happen up to this time.
    pub(crate) fn run_until(&mut self, end: u64) {
        while self.violation.is_none() && self.queue.next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = self.now.max(end);
    }

    /// Lets things happen until the condition holds, at most up to this time. Whether it holds.
    pub(crate) fn run_until_that(&mut self, end: u64, holds: impl Fn(&Self) -> bool) -> bool {
        loop {
            if self.violation.is_some() || holds(self) {
                return true;
            }
            if self.queue.next_at().is_none_or(|at| at > end) {
                self.now = self.now.max(end);
                return holds(self);
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let Some((at, what)) = self.queue.pop() else { return };
        self.now = at;
        self.stats.steps += 1;
        if self.stats.steps > MAX_STEPS {
            self.fail("bounded", format!("more than {MAX_STEPS} things happened"));
            return;
        }
        self.fingerprint.add(at);
        self.happen(what);
        for (at, link, side) in self.net.wakes(self.now) {
            self.queue.add(at, Happening::Deliver { link, side });
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tick { node, life } => self.tick(node, life),
            Happening::DiskApply { node, life, op } if self.lives(node, life) => {
                self.nodes[node].data.apply(op, self.now, &mut self.rng);
                // A disk tries for long before it says that it cannot read something.
                let slow = self.nodes[node].data.gave_part(op);
                let delay = if slow { self.plan.disk_us * 8 } else { self.plan.disk_us / 4 };
                let at = self.now + self.rng.delay(delay);
                self.queue.add(at, Happening::DiskReport { node, life, op });
            }
            Happening::DiskReport { node, life, op } if self.lives(node, life) => {
                self.disk_reported(node, op);
            }
            Happening::MetaApply { node, life, op } if self.lives(node, life) => {
                self.nodes[node].meta.apply(op, &mut self.rng);
                let at = self.now + self.rng.delay(self.plan.meta_us / 4);
                self.queue.add(at, Happening::MetaReport { node, life, op });
            }
            Happening::MetaReport { node, life, op } if self.lives(node, life) => {
                self.meta_reported(node, op);
            }
            Happening::JournalRead { node, life, id, from } if self.lives(node, life) => {
                self.journal_read(node, id, from);
            }
            Happening::Deliver { link, side } => self.deliver(link, side),
            Happening::Dial(a, b) => self.dial(a, b),
            Happening::Start(node) => {
                self.nodes[node].starting = false;
                if !self.nodes[node].is_up() {
                    self.start(node);
                }
            }
            Happening::Unblock { from, to } => self.unblock(from, to),
            Happening::Grow { node, life } if self.lives(node, life) => self.grow(node),
            Happening::Client => {
                self.client_queued = false;
                self.client();
            }
            Happening::Trouble => {
                self.trouble_queued = false;
                self.trouble();
            }
            _ => {}
        }
    }

    /// Whether the node is up in this life.
    pub(crate) fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].is_up() && self.nodes[node].life == life
    }

    fn tick(&mut self, node: usize, life: u64) {
        if !self.lives(node, life) || self.nodes[node].tick_at != Some(self.now) {
            return;
        }
        self.nodes[node].tick_at = None;
        let clock = self.clock(node);
        let deadline = self.nodes[node].core.as_ref().and_then(holdfast_core::Core::deadline);
        if deadline.is_some_and(|deadline| deadline <= clock) {
            self.feed(node, Event::Tick);
        } else {
            self.plan_tick(node);
        }
    }

    /// Schedules a tick for when the core wants one.
    pub(crate) fn plan_tick(&mut self, node: usize) {
        let clock = self.clock(node);
        let state = &self.nodes[node];
        let Some(deadline) = state.core.as_ref().and_then(holdfast_core::Core::deadline) else {
            return;
        };
        let wait = deadline.since(clock);
        if wait == 0 {
            self.immediate_ticks += 1;
            if self.immediate_ticks > 10_000 {
                self.fail("bounded", format!("n{node} wants a tick again and again, at once"));
                return;
            }
        } else {
            self.immediate_ticks = 0;
        }
        let at = if wait == 0 { self.now } else { (self.now / 1000 + wait) * 1000 };
        if state.tick_at.is_none_or(|planned| planned > at) {
            let life = state.life;
            self.nodes[node].tick_at = Some(at);
            self.queue.add(at, Happening::Tick { node, life });
        }
    }

    /// What the node's clock shows.
    pub(crate) fn clock(&self, node: usize) -> holdfast_units::Millis {
        holdfast_units::Millis(self.now / 1000 + self.nodes[node].clock_ahead)
    }

    fn deliver(&mut self, link: LinkId, side: usize) {
        let Some((node, from, item)) = self.net.deliver(link, side) else { return };
        let peer = node_id(from);
        match item {
            Item::Up => {
                self.net.drop_older(node, from, link);
                if self.nodes[node].wants.contains(&from) {
                    note!(self, "n{node} connected to n{from} by {link:?}");
                    self.feed(node, Event::PeerUp(peer, link));
                } else {
                    self.net.close(node, link, crate::net::Close::Orderly, self.now, &mut self.rng);
                }
            }
            Item::Message(message) => {
                note!(self, "n{node} < n{from} {}", crate::driver::brief(&message));
                self.feed(node, Event::PeerMessage(peer, link, message));
            }
            Item::End => {
                note!(self, "n{node} lost n{from}");
                self.feed(node, Event::PeerDown(peer, link));
                self.want_dial(node, from);
            }
        }
    }

    /// Has the two try to connect, when that makes sense.
    pub(crate) fn want_dial(&mut self, a: usize, b: usize) {
        let pair = (a.min(b), a.max(b));
        if self.can_connect(a, b) && self.dialing.insert(pair) {
            let typical = if self.rng.chance(100) { 200_000 } else { 3_000 };
            let at = self.now + self.rng.delay(typical);
            self.queue.add(at, Happening::Dial(pair.0, pair.1));
        }
    }

    fn can_connect(&self, a: usize, b: usize) -> bool {
        let willing =
            |x: usize, y: usize| self.nodes[x].is_up() && self.nodes[x].wants.contains(&y);
        let busy = self.net.thinks_connected(a, b) && self.net.thinks_connected(b, a);
        willing(a, b) && willing(b, a) && self.net.is_clear(a, b) && !busy
    }

    fn dial(&mut self, a: usize, b: usize) {
        self.dialing.remove(&(a, b));
        if self.can_connect(a, b) {
            let link = self.net.connect(a, b, self.now, &mut self.rng);
            note!(self, "n{a} and n{b} connect by {link:?}");
        }
    }

    pub(crate) fn unblock(&mut self, from: usize, to: usize) {
        self.net.block(from, to, false);
        self.want_dial(from, to);
    }

    /// The nodes that are up.
    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up()).collect()
    }

    /// The nodes that take themselves to be Primary.
    pub(crate) fn primaries(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_primary()).collect()
    }
}
