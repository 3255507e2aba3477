//! What comes out of a run: a fingerprint, figures, the last lines of its trace, a violation.

use crate::plan::Class;
use std::collections::VecDeque;

/// How many trace lines are kept.
const TRACE_LINES: usize = 400;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub promise: &'static str,
    /// Virtual time in microseconds.
    pub at: u64,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {} us: {}", self.promise, self.at, self.what)
    }
}

/// What was done in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Happenings that were carried out.
    pub steps: u64,
    /// Requests of clients that were completed.
    pub completed: u64,
    /// Requests of clients that failed, or whose Primary died.
    pub failed: u64,
    /// Daemons killed and machines without power.
    pub crashes: u64,
    /// Connections cut and paths blocked.
    pub cuts: u64,
    /// Errors that disks reported.
    pub disk_errors: u64,
    /// Blocks that went bad.
    pub bad_blocks: u64,
    /// Repairs of blocks.
    pub healed: u64,
    /// Times that a node became Primary.
    pub promotions: u64,
    /// Resyncs that were finished by their target.
    pub resyncs: u64,
    /// Those of them by the journal of a Primary, and how many began.
    pub caught_up: u64,
    /// See `caught_up`.
    pub catch_ups: u64,
    /// Split brains that were found by the cores.
    pub split_brains: u64,
    /// Times that nothing but force brought a healed cluster up.
    pub decrees: u64,
    /// Bytes that nodes compared with their peers' copies.
    pub compared: u64,
    /// Blocks that changed by themselves, and were found and repaired.
    pub corrupted: u64,
    /// Virtual time in microseconds.
    pub virtual_us: u64,
}

impl Stats {
    /// Adds the figures of another run.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.completed += other.completed;
        self.failed += other.failed;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.disk_errors += other.disk_errors;
        self.bad_blocks += other.bad_blocks;
        self.healed += other.healed;
        self.promotions += other.promotions;
        self.resyncs += other.resyncs;
        self.caught_up += other.caught_up;
        self.catch_ups += other.catch_ups;
        self.split_brains += other.split_brains;
        self.decrees += other.decrees;
        self.compared += other.compared;
        self.corrupted += other.corrupted;
        self.virtual_us += other.virtual_us;
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed of the run.
    pub seed: u64,
    /// What kinds of trouble it had.
    pub class: Class,
    /// Stands for all that happened: equal for equal runs.
    pub fingerprint: u64,
    /// Figures.
    pub stats: Stats,
    /// The first promise that was not kept.
    pub violation: Option<Violation>,
    /// The last lines of the trace, when it was asked for.
    pub trace: Vec<String>,
}

/// Takes in all that happens.
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517C_C1B7_2722_0A95);
    }

    pub(crate) fn add_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        self.add(bytes.len() as u64);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }
}

/// The last lines of what happened.
pub(crate) struct Trace {
    pub(crate) on: bool,
    lines: VecDeque<String>,
    all: bool,
}

impl Trace {
    pub(crate) fn new(mode: TraceMode) -> Self {
        let all = mode == TraceMode::All;
        Self { on: mode != TraceMode::Off, lines: VecDeque::new(), all }
    }

    pub(crate) fn line(&mut self, line: String) {
        if self.lines.len() == TRACE_LINES && !self.all {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// How much of the trace is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TraceMode {
    /// Nothing.
    #[default]
    Off,
    /// The last few hundred lines.
    Last,
    /// All.
    All,
}
