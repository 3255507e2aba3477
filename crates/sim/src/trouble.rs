//! Trouble: crashes, cuts, and the commands of an operator who is not always careful.

use crate::driver::Crash;
use crate::node::node_id;
use crate::plan::Weights;
use crate::world::{Happening, World, note};
use holdfast_core::{Command, SurveyKind, SurveyOrder};
use holdfast_units::{ByteRange, DiskState, ReplicationState};
use holdfast_wire::{RepairMode, SyncPause};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Kill,
    Power,
    PowerAll,
    Cut,
    Block,
    Partition,
    Stop,
    Demote,
    Promote,
    PromoteApart,
    Force,
    Disconnect,
    Connect,
    Invalidate,
    Detach,
    Verify,
    Pause,
}

fn kinds(weights: &Weights) -> [(Kind, u64); 17] {
    [
        (Kind::Kill, weights.kill),
        (Kind::Power, weights.power),
        (Kind::PowerAll, weights.power_all),
        (Kind::Cut, weights.cut),
        (Kind::Block, weights.block),
        (Kind::Partition, weights.partition),
        (Kind::Stop, weights.stop),
        (Kind::Demote, weights.demote),
        (Kind::Promote, weights.promote),
        (Kind::PromoteApart, weights.promote_apart),
        (Kind::Force, weights.force),
        (Kind::Disconnect, weights.disconnect),
        (Kind::Connect, weights.connect),
        (Kind::Invalidate, weights.invalidate),
        (Kind::Detach, weights.detach),
        (Kind::Verify, weights.verify),
        (Kind::Pause, weights.pause),
    ]
}

impl World {
    /// Has trouble begin.
    pub(crate) fn start_trouble(&mut self) {
        self.trouble_on = true;
        self.queue_trouble();
    }

    fn queue_trouble(&mut self) {
        if self.trouble_on && !self.trouble_queued {
            self.trouble_queued = true;
            let at = self.now + self.rng.delay(self.plan.trouble_us);
            self.queue.add(at, Happening::Trouble);
        }
    }

    /// One thing goes wrong, or is set right, or is commanded.
    pub(crate) fn trouble(&mut self) {
        if !self.trouble_on {
            return;
        }
        self.bring_back();
        let kinds = kinds(&self.plan.weights);
        let total: u64 = kinds.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.below(total);
        for (kind, weight) in kinds {
            if at < weight {
                self.make(kind);
                break;
            }
            at -= weight;
        }
        self.queue_trouble();
    }

    /// Starts a node that is down, or one anew that has no disk any more, now and then.
    fn bring_back(&mut self) {
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            if !node.is_up() {
                if self.rng.chance(200) {
                    self.start_later(n, 5_000);
                }
            } else if !node.diskless && !node.disk_open && self.rng.chance(200) {
                self.command(n, Command::Stop);
            }
        }
    }

    fn make(&mut self, kind: Kind) {
        let up = self.up();
        if up.is_empty() {
            return;
        }
        let n = self.rng.pick(&up);
        let m = self.other_than(n);
        match kind {
            Kind::Kill => {
                let n = self.victim(n);
                self.crash_and_return(n, Crash::Kill);
            }
            Kind::Power => {
                let n = self.victim(n);
                self.crash_and_return(n, Crash::Power);
            }
            Kind::PowerAll => up.iter().for_each(|n| self.crash_and_return(*n, Crash::Power)),
            Kind::Cut => self.cut_one(),
            Kind::Block => self.block_one(n, m),
            Kind::Partition => self.partition(),
            Kind::Stop => {
                self.command(n, Command::Stop);
            }
            Kind::Demote => {
                let force = self.rng.chance(300);
                if let Some(primary) = self.primaries().first().copied() {
                    self.command(primary, Command::Demote { force });
                }
            }
            Kind::Promote => {
                if self.may_promote(n) {
                    self.command(n, Command::Promote { force: false });
                }
            }
            Kind::PromoteApart => self.command(n, Command::Promote { force: false }),
            Kind::Force => {
                // A disk that never had data would begin a history of its own.
                let fresh = holdfast_units::GenerationId::JUST_CREATED;
                let snap = self.nodes[n].snap.as_ref();
                if snap.is_some_and(|snap| snap.generation != fresh) {
                    self.command(n, Command::Promote { force: true });
                }
            }
            Kind::Disconnect => {
                let peer = self.rng.chance(700).then(|| node_id(m));
                self.command(n, Command::Disconnect { peer });
            }
            Kind::Connect => {
                for n in up {
                    self.command(n, Command::Connect { peer: None, discard_my_data: false });
                }
            }
            Kind::Invalidate => self.invalidate(n, m),
            Kind::Verify => self.survey(n),
            Kind::Pause => {
                let pauses = [SyncPause::No, SyncPause::AsTarget, SyncPause::Always];
                let pause = self.rng.pick(&pauses);
                self.command(n, Command::PauseSync(pause));
            }
            Kind::Detach => {
                if self.may_detach(n) {
                    self.command(n, Command::Detach);
                }
            }
        }
    }

    /// Has a node compare its copy with the others', as it is; whatever it finds is wrong.
    fn survey(&mut self, n: usize) {
        let kind = self.rng.pick(&[SurveyKind::Verify, SurveyKind::Scrub]);
        let repair = self.rng.pick(&[RepairMode::Never, RepairMode::Majority, RepairMode::Always]);
        let spot = self.plan.spots[self.rng.index(self.plan.spots.len())].clone();
        let whole = self.rng.chance(100);
        let range = (!whole).then(|| ByteRange::of_blocks(spot));
        self.command(n, Command::Survey(SurveyOrder { kind, range, peer: None, repair, from: 0 }));
    }

    fn other_than(&mut self, n: usize) -> usize {
        let m = self.rng.index(self.nodes.len() - 1);
        if m >= n { m + 1 } else { m }
    }

    /// Primaries die more often than others.
    fn victim(&mut self, n: usize) -> usize {
        let primaries = self.primaries();
        if !primaries.is_empty() && self.rng.chance(400) { self.rng.pick(&primaries) } else { n }
    }

    fn crash_and_return(&mut self, n: usize, how: Crash) {
        self.crash(n, how);
        if self.rng.chance(800) {
            let typical = self.rng.pick(&[500, 5_000, 50_000]);
            self.start_later(n, typical);
        }
    }

    fn cut_one(&mut self) {
        let links = self.net.links();
        if links.is_empty() {
            return;
        }
        let (link, a, b) = self.rng.pick(&links);
        self.stats.cuts += 1;
        let mut told = [None, None];
        for told in &mut told {
            // Mostly soon; sometimes only the core's own pings find it out.
            if self.rng.chance(850) {
                *told = Some(self.now + self.rng.delay(2_000));
            }
        }
        note!(self, "{link:?} of n{a} and n{b} is cut, told {told:?}");
        self.net.cut(link, told, &mut self.rng);
    }

    fn block_path(&mut self, from: usize, to: usize, for_us: u64) {
        note!(self, "n{from} to n{to} is blocked for {for_us} us");
        self.stats.cuts += 1;
        self.net.block(from, to, true);
        self.queue.add(self.now + for_us, Happening::Unblock { from, to });
    }

    fn block_one(&mut self, n: usize, m: usize) {
        let typical = self.rng.pick(&[3_000, 100_000, 1_000_000]);
        let for_us = self.rng.delay(typical);
        self.block_path(n, m, for_us);
        if self.rng.coin() {
            self.block_path(m, n, for_us);
        }
    }

    /// No message passes between two parts of the cluster for a while.
    fn partition(&mut self) {
        let typical = self.rng.pick(&[50_000, 500_000, 2_000_000]);
        let for_us = self.rng.delay(typical);
        let one_way = self.rng.chance(200);
        let sides: Vec<bool> = (0..self.nodes.len()).map(|_| self.rng.coin()).collect();
        for a in 0..sides.len() {
            for b in 0..sides.len() {
                if sides[a] && !sides[b] {
                    self.block_path(a, b, for_us);
                    if !one_way {
                        self.block_path(b, a, for_us);
                    }
                }
            }
        }
        for (link, a, b) in self.net.links() {
            if sides[a] != sides[b] && !self.net.is_clear(a, b) && self.rng.chance(300) {
                let told = [self.now; 2].map(|now| Some(now + self.rng.delay(5_000)));
                self.net.cut(link, told, &mut self.rng);
            }
        }
    }

    /// Whether a careful operator, who knows everything, would promote this node: nobody else is
    /// or is becoming Primary, and nobody has completed writes that it lacks.
    pub(crate) fn may_promote(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let promoting = self.commands.values().any(|(_, c)| matches!(c, Command::Promote { .. }));
        if promoting || self.primaries().iter().any(|primary| *primary != n) {
            return false;
        }
        // The copy that clients would get: its own, or one that it can reach.
        let copy = if node.disk_open && node.disk() > DiskState::Inconsistent {
            Some(n)
        } else {
            let good =
                |m: &usize| *m != n && node.is_connected_to(*m) && self.nodes[*m].is_up_to_date();
            (0..self.nodes.len()).find(good)
        };
        let Some(copy) = copy.filter(|copy| self.oracle.counts(*copy)) else { return false };
        (0..self.nodes.len()).all(|m| self.oracle.lacks(copy, m).is_none())
    }

    /// Gives a copy up where nothing is lost by it.
    fn invalidate(&mut self, n: usize, m: usize) {
        let established = |x: usize, y: usize| {
            self.nodes[x].is_up_to_date()
                && self.nodes[x]
                    .peer(y)
                    .is_some_and(|p| p.replication == ReplicationState::Established)
        };
        let quiet = self.nodes[m].is_up()
            && established(n, m)
            && established(m, n)
            && self.oracle.lacks(n, m).is_none()
            && self.oracle.lacks(m, n).is_none();
        if !quiet {
            return;
        }
        if self.rng.coin() {
            self.nodes[n].may_give_up = true;
            self.command(n, Command::Invalidate { peer: None });
        } else {
            self.nodes[m].may_give_up = true;
            self.command(n, Command::Invalidate { peer: Some(node_id(m)) });
        }
    }

    /// Whether another node has all that this one has.
    fn may_detach(&self, n: usize) -> bool {
        (0..self.nodes.len()).any(|m| {
            m != n
                && self.nodes[m].is_up_to_date()
                && self.oracle.counts(m)
                && self.oracle.counts(n)
                && self.oracle.lacks(m, n).is_none()
        })
    }
}
