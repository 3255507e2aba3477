//! What a seed means: the shape of the cluster, the speed of things, and which faults there are.

use crate::rng::Rng;
use holdfast_core::Options;
use holdfast_units::{BLOCK_SIZE, EXTENT_SIZE};

/// Which kinds of trouble a run has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// No faults: only work and changes of role.
    Calm,
    /// Daemons are killed.
    Kill,
    /// Connections are cut, paths blocked.
    Links,
    /// Machines lose power.
    Power,
    /// Disks report errors.
    Disks,
    /// Nodes are promoted apart from each other.
    SplitBrain,
    /// All of it.
    Everything,
}

impl Class {
    /// Every class.
    pub const ALL: &[Self] = &[
        Self::Calm,
        Self::Kill,
        Self::Links,
        Self::Power,
        Self::Disks,
        Self::SplitBrain,
        Self::Everything,
    ];

    /// The classes without loss of power, failing disks or promotions apart.
    pub const CLEAN: &[Self] = &[Self::Calm, Self::Kill, Self::Links];
}

/// Chances of each kind of trouble whenever something is done to the cluster; relative weights.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weights {
    pub(crate) kill: u64,
    pub(crate) power: u64,
    pub(crate) power_all: u64,
    pub(crate) cut: u64,
    pub(crate) block: u64,
    pub(crate) partition: u64,
    pub(crate) stop: u64,
    pub(crate) demote: u64,
    pub(crate) promote: u64,
    pub(crate) promote_apart: u64,
    pub(crate) force: u64,
    pub(crate) disconnect: u64,
    pub(crate) connect: u64,
    pub(crate) invalidate: u64,
    pub(crate) detach: u64,
    pub(crate) verify: u64,
    pub(crate) pause: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) class: Class,
    pub(crate) diskless: Vec<bool>,
    /// In the end; at the start it may be smaller.
    pub(crate) size: u64,
    pub(crate) size_at_start: u64,
    pub(crate) al_extents: u16,
    /// Stretches of blocks that clients use.
    pub(crate) spots: Vec<std::ops::Range<u64>>,
    pub(crate) queue_depth: usize,
    /// Typical times in microseconds.
    pub(crate) disk_us: u64,
    pub(crate) meta_us: u64,
    pub(crate) net_us: u64,
    pub(crate) client_us: u64,
    pub(crate) trouble_us: u64,
    pub(crate) options: Options,
    pub(crate) rounds: u64,
    pub(crate) round_us: u64,
    pub(crate) weights: Weights,
    /// Chance of an error in a million operations on a data disk, and on metadata.
    pub(crate) data_errors: u64,
    pub(crate) meta_errors: u64,
    /// Chance that a block of what is read goes bad, and that a bad one cannot be stored again, in a
    /// thousand.
    pub(crate) bad_blocks: u64,
    pub(crate) stubborn: u64,
    /// Chance that a bad one holds something else, and that another one can be read again whenever it is
    /// read, in a thousand.
    pub(crate) rotten: u64,
    pub(crate) passing: u64,
    /// Chance that a bad one is kept in a journal, in a thousand.
    pub(crate) salvaged: u64,
    /// Who has a journal.
    pub(crate) journals: Vec<bool>,
    /// Chance that it is cut when it is read, in a thousand.
    pub(crate) journal_cuts: u64,
}

impl Plan {
    /// The plan of this stream of chance.
    pub(crate) fn new(rng: &mut Rng, max_nodes: usize, classes: &[Class]) -> Self {
        let class = match rng.below(100) {
            0..5 => Class::Calm,
            5..28 => Class::Kill,
            28..45 => Class::Links,
            45..60 => Class::Power,
            60..72 => Class::Disks,
            72..84 => Class::SplitBrain,
            _ => Class::Everything,
        };
        let class = if classes.contains(&class) { class } else { rng.pick(classes) };
        Self::of_class(class, rng, max_nodes)
    }

    /// A plan of this class.
    fn of_class(class: Class, rng: &mut Rng, max_nodes: usize) -> Self {
        let nodes = usize::try_from(rng.pick(&[2, 2, 2, 3, 3, 3, 4, 5])).expect("small");
        let nodes = nodes.min(max_nodes).max(2);
        let mut diskless = vec![false; nodes];
        if nodes > 2 && rng.chance(200) {
            let without = rng.index(nodes - 1) + 1;
            diskless[without] = true;
        }
        let extents = rng.between(4, 16);
        let size = if rng.coin() {
            extents * EXTENT_SIZE
        } else {
            extents * EXTENT_SIZE - rng.between(1, 500) * BLOCK_SIZE
        };
        let mut options = Options {
            ping_interval_ms: rng.between(200, 1500),
            ping_timeout_ms: rng.between(100, 400),
            request_timeout_ms: rng.between(300, 1000),
            ko_count: rng.between(1, 4),
            resync_window: rng.pick(&[64 << 10, 1 << 20, 16 << 20]),
            ..Options::default()
        };
        if rng.chance(100) {
            options.resync_rate = rng.pick(&[8 << 20, 64 << 20]);
        }
        let al_extents = u16::try_from(rng.between(2, 6)).expect("small");
        options.al_extents = al_extents.into();
        // Often shorter than what the disk takes, and not drawn: seeds go on meaning what they meant.
        options.read_hedge_ms = [0, 1, 3][usize::try_from(size / BLOCK_SIZE % 3).expect("small")];
        let spots = spots(size, rng);
        let blocks = size / BLOCK_SIZE;
        let size_at_start =
            if rng.chance(300) { rng.between(blocks / 4, blocks - 1) * BLOCK_SIZE } else { size };
        let often = rng.pick(&[0, 700, 1000]);
        let journals = (0..nodes).map(|_| rng.chance(often)).collect();
        let journal_cuts = rng.pick(&[0, 0, 20, 200]);
        let bad = if class == Class::Calm { 500 } else { 400 };
        let bad_blocks = if rng.chance(bad) { rng.pick(&[10, 50, 200]) } else { 0 };
        let stubborn = rng.pick(&[0, 0, 100, 500]);
        let salvaged = rng.pick(&[0, 0, 500]);
        let (rotten, passing) = (rng.pick(&[0, 0, 200]), rng.pick(&[0, 50, 400]));
        let apart = class == Class::SplitBrain || class == Class::Everything && rng.coin();
        Self {
            class,
            diskless,
            size,
            size_at_start,
            al_extents,
            spots,
            queue_depth: rng.index(12) + 1,
            disk_us: rng.pick(&[50, 100, 300, 2000]),
            meta_us: rng.pick(&[100, 400, 3000]),
            net_us: rng.pick(&[50, 100, 500, 3000]),
            client_us: rng.pick(&[200, 500, 1000]),
            trouble_us: rng.pick(&[10_000, 30_000, 100_000]),
            options,
            rounds: rng.between(1, 3),
            round_us: rng.pick(&[60_000, 150_000, 400_000]),
            weights: weights(class, apart),
            data_errors: if has_disk_errors(class) { rng.pick(&[200, 1000, 4000]) } else { 0 },
            meta_errors: if has_disk_errors(class) { rng.pick(&[0, 500, 2000]) } else { 0 },
            bad_blocks,
            stubborn,
            rotten,
            passing,
            salvaged,
            journals,
            journal_cuts,
        }
    }

    pub(crate) fn nodes(&self) -> usize {
        self.diskless.len()
    }
}

fn has_disk_errors(class: Class) -> bool {
    matches!(class, Class::Disks | Class::Everything)
}

fn spots(size: u64, rng: &mut Rng) -> Vec<std::ops::Range<u64>> {
    let blocks = size / BLOCK_SIZE;
    let extent = EXTENT_SIZE / BLOCK_SIZE;
    let count = rng.between(3, 9);
    let mut spots: Vec<std::ops::Range<u64>> = (0..count)
        .map(|_| {
            let len = rng.between(4, 12);
            let start = match rng.below(4) {
                // Over the border of two extents, or at either end of the device.
                0 => (rng.between(1, blocks / extent) * extent).saturating_sub(len / 2),
                1 if rng.coin() => 0,
                1 => blocks - len,
                _ => rng.below(blocks - len),
            };
            let start = start.min(blocks - len);
            start..start + len
        })
        .collect();
    spots.sort_by_key(|spot| spot.start);
    spots
}

fn weights(class: Class, apart: bool) -> Weights {
    let mut weights =
        Weights { demote: 4, promote: 10, stop: 2, verify: 4, pause: 4, ..Weights::default() };
    let (mut kill, mut links, mut power, mut commands) = (false, false, false, false);
    match class {
        Class::Calm => {}
        Class::Kill => (kill, commands) = (true, true),
        Class::Links => (links, commands) = (true, true),
        Class::Power => (power, kill) = (true, true),
        Class::Disks => (kill, commands) = (true, true),
        Class::SplitBrain => (kill, links) = (true, true),
        Class::Everything => (kill, links, power, commands) = (true, true, true, true),
    }
    if kill {
        weights.kill = 8;
    }
    if links {
        (weights.cut, weights.block, weights.partition) = (8, 4, 3);
    }
    if power {
        (weights.power, weights.power_all) = (6, 3);
    }
    if commands {
        (weights.disconnect, weights.connect) = (3, 6);
        (weights.invalidate, weights.detach) = (1, 1);
    }
    if apart {
        (weights.promote_apart, weights.force) = (8, 1);
        weights.partition = 8;
    }
    weights
}
