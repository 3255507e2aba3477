//! The course of a run: build up, rounds of work and trouble with a quiet moment after each, then
//! everything is healed and must be well within a bounded time.

use crate::checks;
use crate::driver::NO_DIFFERENCE;
use crate::node::node_id;
use crate::world::{World, note};
use holdfast_core::{Command, SurveyKind, SurveyOrder};
use holdfast_units::{BLOCK_SIZE, ConnectionState, DiskState, ReplicationState};
use holdfast_wire::{RepairMode, SyncPause};

/// A cluster without faults must be well after so long.
const HEAL_US: u64 = 240_000_000;
/// How often the operator looks at a cluster that is not well.
const LOOK_US: u64 = 500_000;
/// Requests must have ended after so long, whatever is cut or down.
const ANSWER_US: u64 = 60_000_000;

/// A comparison of everything that repairs what it finds.
fn compare(sure: bool) -> Command {
    let (kind, repair) = if sure {
        (SurveyKind::Scrub, RepairMode::Majority)
    } else {
        (SurveyKind::Verify, RepairMode::Always)
    };
    Command::Survey(SurveyOrder { kind, range: None, peer: None, repair, from: 0 })
}

impl World {
    /// Lives through the whole run.
    pub(crate) fn live(&mut self) {
        self.build();
        for _ in 0..self.plan.rounds {
            self.start_clients();
            self.start_trouble();
            let (agreed, end) =
                (self.rng.below(2 * self.plan.round_us), self.now + self.plan.round_us);
            self.run_until(end.min(self.now + agreed));
            if agreed < self.plan.round_us && self.plan.size_at_start < self.plan.size {
                self.agree_to_grow();
            }
            self.run_until(end);
            self.trouble_on = false;
            self.clients_on = false;
            self.quiet_moment();
        }
        self.heal();
        self.last_checks();
        self.stats.virtual_us = self.now;
    }

    fn build(&mut self) {
        for n in 0..self.nodes.len() {
            self.oracle.forget(n);
            self.start(n);
        }
        self.run_until(self.now + 20_000);
        self.command(0, Command::Promote { force: true });
        let primary = |world: &Self| world.nodes[0].is_primary();
        if !self.run_until_that(self.now + 20_000_000, primary) {
            self.fail("liveness", "n0 was not promoted by force".to_owned());
        }
        if self.rng.chance(800) {
            let end = self.now + 60_000_000;
            if !self.run_until_that(end, Self::is_well) {
                let states = self.states();
                self.fail("liveness", format!("the first sync did not end\n{states}"));
            }
        }
    }

    /// Waits until nothing is under way any more, and compares.
    fn quiet_moment(&mut self) {
        // What is held would never be equal; a crash forgets it by itself.
        for n in self.up() {
            self.command(n, Command::PauseSync(SyncPause::No));
        }
        let answered = |world: &Self| world.nodes.iter().all(|node| node.pending.is_empty());
        let end = self.now + ANSWER_US;
        if !self.run_until_that(end, answered) {
            let open = self.open_requests();
            self.fail("liveness", format!("requests are not answered: {open}"));
            return;
        }
        let quiet = |world: &Self| world.is_quiet();
        let end = self.now + 3_000_000;
        if self.run_until_that(end, quiet) && self.violation.is_none() {
            let checked = checks::equality::check(self);
            self.check("equal nodes are equal", checked);
            self.refresh();
            let checked = checks::out_of_sync::check(self);
            self.check("what a peer misses is noted", checked);
            if self.violation.is_none() && self.rng.chance(500) {
                self.corrupt_and_repair();
            }
        }
    }

    /// A block of one copy changes by itself: a comparison finds it, and repairs it from the others.
    fn corrupt_and_repair(&mut self) {
        if !self.is_well() {
            // Who comes back may be filled from the copy that changed before that is found.
            return;
        }
        let up = self.up();
        let equal = |n: usize, m: usize| checks::equality::count_as_equal(self, n, m);
        let group = up.iter().copied().map(|n| {
            let mut equals: Vec<usize> = Vec::new();
            for m in up.iter().copied().filter(|m| *m != n && equal(n.min(*m), n.max(*m))) {
                if equals.iter().all(|other| equal(m.min(*other), m.max(*other))) {
                    equals.push(m);
                }
            }
            (n, equals)
        });
        let Some((n, equals)) = group.max_by_key(|(_, equals)| equals.len()) else { return };
        let with_primary = |m: usize| self.nodes[m].is_primary();
        let primaries = self.primaries();
        // Where the Primary has no disk, or is not among them, it may be another one's turn.
        let settled = match primaries.as_slice() {
            [] => true,
            [primary] => with_primary(n) || equals.contains(primary),
            _ => false,
        };
        let idle = |m: &usize| self.nodes[*m].snap.as_ref().is_some_and(|s| s.surveys.is_empty());
        if !settled || equals.is_empty() || !up.iter().all(idle) {
            return;
        }
        let spot = self.plan.spots[self.rng.index(self.plan.spots.len())].clone();
        let block = self.rng.between(spot.start, spot.end - 1);
        let size = self.nodes[n].snap.as_ref().map_or(0, |snap| snap.own_size);
        if block >= size / BLOCK_SIZE {
            // It has yet to grow.
            return;
        }
        let all: Vec<usize> = equals.iter().copied().chain([n]).collect();
        if all.iter().any(|m| self.nodes[*m].has_unreadable(block..block + 1)) {
            // What another copy cannot be read of is fetched from this one.
            return;
        }
        let sure = all.len() > 2;
        // Of two copies that of the Primary counts, or of who compares.
        let right = primaries.first().copied().unwrap_or(n);
        let wrong = if sure {
            self.rng.pick(&all)
        } else {
            all.iter().copied().find(|m| *m != right).unwrap_or(n)
        };
        let stamp = self.nodes[wrong].data.get(block).0[0] + 1_000_000;
        if !self.nodes[wrong].data.corrupt(block, crate::content::Block::whole(stamp)) {
            return;
        }
        note!(self, "block {block} of n{wrong} changes by itself");
        let who = if sure { self.rng.pick(&all) } else { right };
        (self.corrupted, self.surveyed) = (Some((wrong, block)), None);
        self.command(who, compare(sure));
        let ended = |world: &Self| world.surveyed.is_some();
        if !self.run_until_that(self.now + 20_000_000, ended) {
            self.fail("liveness", format!("a comparison did not end\n{}", self.states()));
            return;
        }
        let counts = self.surveyed.as_ref().map(|found| (found.differing, found.repaired));
        // A copy that went bad meanwhile may have been healed from the one that had changed.
        if counts.is_none_or(|(differing, repaired)| differing == 0 || repaired != differing) {
            let what = format!("block {block} of n{wrong} was not repaired: {:?}", self.surveyed);
            self.fail(NO_DIFFERENCE, what);
        }
        self.run_until(self.now + 400_000);
        self.corrupted = None;
        self.stats.corrupted += 1;
        self.refresh();
        let checked = checks::equality::check(self);
        self.check("equal nodes are equal", checked);
    }

    fn open_requests(&self) -> String {
        let open = self.nodes.iter().flat_map(|node| {
            node.pending.values().map(move |pending| format!("{:?} {}", node.id, pending.what))
        });
        open.take(10).collect::<Vec<_>>().join(", ")
    }

    fn is_quiet(&self) -> bool {
        let idle = self.nodes.iter().all(|node| node.data.is_idle() && node.meta.is_idle());
        let settled = self.now.saturating_sub(self.last_change) > 300_000;
        let resync = self.nodes.iter().filter_map(|node| node.snap.as_ref()).any(|snap| {
            snap.peers.iter().any(|p| {
                !matches!(p.replication, ReplicationState::Off | ReplicationState::Established)
            })
        });
        idle && settled && !resync && self.net.is_quiet() && self.commands.is_empty()
    }

    /// Looks at every node anew: figures change without a change of state.
    fn refresh(&mut self) {
        for node in &mut self.nodes {
            node.snap = node.core.as_ref().map(holdfast_core::Core::snapshot);
        }
    }

    /// Whether every node is up, connected to all others, and has equal data.
    fn is_well(&self) -> bool {
        (0..self.nodes.len()).all(|n| {
            let node = &self.nodes[n];
            let disk = if node.diskless { DiskState::Diskless } else { DiskState::UpToDate };
            node.is_up()
                && node.disk() == disk
                && (!self.growing || node.snap.as_ref().is_some_and(|s| s.size == self.plan.size))
                && (0..self.nodes.len()).filter(|m| *m != n).all(|m| {
                    node.peer(m).is_some_and(|p| {
                        p.connection == ConnectionState::Connected
                            && p.replication == ReplicationState::Established
                    })
                })
        })
    }

    fn heal(&mut self) {
        if self.violation.is_some() {
            return;
        }
        note!(self, "all is being healed");
        for a in 0..self.nodes.len() {
            self.nodes[a].standalone.clear();
            for b in 0..self.nodes.len() {
                self.unblock(a, b);
            }
        }
        self.agree_to_grow();
        let end = self.now + HEAL_US;
        let mut looks = 0;
        while self.violation.is_none() && self.now < end {
            self.refresh();
            if self.is_well() {
                break;
            }
            self.set_right(looks);
            looks += 1;
            let next = self.now + LOOK_US;
            self.run_until_that(next, Self::is_well);
        }
        if self.violation.is_none() && !self.is_well() {
            let states = self.states();
            self.fail("liveness", format!("the healed cluster does not get well\n{states}"));
        }
    }

    /// What a patient operator does to a cluster that is not well.
    fn set_right(&mut self, looks: u64) {
        for n in 0..self.nodes.len() {
            if !self.nodes[n].is_up() {
                self.start_later(n, 10_000);
            }
        }
        let survivor = self.survivor();
        for n in self.up() {
            let node = &self.nodes[n];
            if !node.diskless && !node.disk_open {
                self.command(n, Command::Stop);
            } else if node.is_primary() && n != survivor {
                self.command(n, Command::Demote { force: true });
            }
        }
        for n in self.up() {
            for m in (0..self.nodes.len()).filter(|m| *m != n) {
                let alone = self.nodes[n]
                    .peer(m)
                    .is_some_and(|p| p.connection == ConnectionState::StandAlone);
                if alone {
                    self.reconnect(n, m, survivor);
                }
            }
        }
        let nobody = !self.nodes.iter().any(super::node::Node::is_up_to_date);
        // Half filled data that had newer ones wait for these, until a Primary decides.
        let undecided = looks > 60 && self.primaries().is_empty();
        let due = looks > 20 && looks.is_multiple_of(10);
        if due && (nobody || undecided) && self.may_promote(survivor) {
            self.command(survivor, Command::Promote { force: false });
        }
        let unknown = !(0..self.nodes.len()).any(|n| self.oracle.counts(n));
        if looks > 60 && nobody && (unknown || self.may_promote(survivor)) {
            // As after a Secondary left its Primary, which then lost its own disk.
            self.stats.decrees += 1;
            self.command(survivor, Command::Promote { force: true });
        }
    }

    /// Connects again; the changes of whoever is not with the survivor are thrown away.
    fn reconnect(&mut self, n: usize, m: usize, survivor: usize) {
        let victim = n != survivor && !self.nodes[n].is_primary() && self.is_apart(n, survivor);
        if victim {
            self.nodes[n].may_give_up = true;
        }
        let peer = Some(node_id(m));
        self.command(n, Command::Connect { peer, discard_my_data: victim });
    }

    fn is_apart(&self, n: usize, survivor: usize) -> bool {
        !(self.nodes[n].is_connected_to(survivor) && self.nodes[n].is_up_to_date())
    }

    /// Whose data are kept: who lacks nothing; of several the Primary, or who has most.
    fn survivor(&self) -> usize {
        let all = 0..self.nodes.len();
        let complete = |n: usize| all.clone().all(|m| self.oracle.lacks(n, m).is_none());
        let rank = |n: &usize| {
            let node = &self.nodes[*n];
            let counts = self.oracle.counts(*n);
            let (primary, weight) = (node.is_primary(), self.oracle.weight(*n));
            (!node.diskless, counts, counts && complete(*n), primary, weight)
        };
        all.clone().max_by_key(rank).unwrap_or(0)
    }

    /// All is well: now everything must be right.
    fn last_checks(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let end = self.now + 20_000_000;
        if !self.run_until_that(end, Self::is_quiet) {
            self.fail("liveness", format!("the healed cluster does not rest\n{}", self.states()));
            return;
        }
        self.refresh();
        let checked = checks::equality::check(self);
        self.check("equal nodes are equal", checked);
        let primary = self.primaries().first().copied().unwrap_or_else(|| self.survivor());
        let is_primary = move |world: &Self| world.nodes[primary].is_primary();
        // Refused as long as a node has not heard of what another one did behind a dead connection.
        let end = self.now + 20_000_000;
        let mut promoted = false;
        while !promoted && self.now < end {
            self.command(primary, Command::Promote { force: false });
            promoted = self.run_until_that(self.now + 1_000_000, is_primary);
        }
        if !promoted {
            self.fail("liveness", format!("n{primary} was not promoted\n{}", self.states()));
            return;
        }
        self.submit_reads(primary);
        for spot in self.plan.spots.clone() {
            let range = holdfast_units::ByteRange::of_blocks(spot);
            self.submit_write(primary, range, false, true);
        }
        self.quiet_moment();
        // A connection that was cut before the healing may be noticed only now.
        if !self.run_until_that(self.now + 20_000_000, Self::is_well) {
            self.fail("liveness", format!("the cluster fell ill again\n{}", self.states()));
        }
    }

    /// How every node sees things, for people.
    pub(crate) fn states(&self) -> String {
        let node = |n: &crate::node::Node| match n.core.as_ref().map(holdfast_core::Core::snapshot)
        {
            Some(snap) => format!("{:?}: {snap:?}", n.id),
            None => format!("{:?}: down", n.id),
        };
        self.nodes.iter().map(node).collect::<Vec<_>>().join("\n")
    }
}
