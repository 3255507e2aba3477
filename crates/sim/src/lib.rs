//! The simulator: whole clusters of replication cores in one thread, with virtual time, disks and
//! network, under crashes, cuts and careless operators.
//!
//! One seed gives one run, bit for bit. Everything that a run does is drawn from the seed; there is
//! no thread, no clock and no order of a hash map in it. While a run goes on, the promises of
//! Holdfast are checked against the virtual disks and against what clients were told
//! (`docs/design/simulator.md`).

mod checks;
mod client;
mod content;
mod course;
mod data_disk;
mod driver;
mod journal;
mod meta_disk;
mod net;
mod node;
mod oracle;
mod plan;
mod queue;
mod report;
mod rng;
mod trouble;
mod world;

#[cfg(feature = "planted-bugs")]
pub use holdfast_core::PlantedBug;
pub use plan::Class;
pub use report::{Outcome, Stats, TraceMode, Violation};

use plan::Plan;
use rng::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// What a run is to be like, beside its seed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much of the trace is kept.
    pub trace: TraceMode,
    /// The largest cluster that a seed may ask for; larger ones are cut down to it. 2 to 5.
    pub max_nodes: usize,
    /// The classes that a seed may have; at least one.
    pub classes: &'static [Class],
    /// A bug that every core has.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<PlantedBug>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trace: TraceMode::Off,
            max_nodes: 5,
            classes: Class::ALL,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

impl Settings {
    #[cfg(feature = "planted-bugs")]
    fn plant(&self, core: &mut holdfast_core::Core) {
        if let Some(bug) = self.planted {
            core.plant(bug);
        }
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[allow(clippy::unused_self)]
    fn plant(&self, _core: &mut holdfast_core::Core) {}
}

/// Runs one seed to its end, or to the first promise that is not kept.
///
/// A panic of a core is a violation too. The panic hook prints it; whoever minds sets another one.
#[must_use]
pub fn run(seed: u64, settings: &Settings) -> Outcome {
    let mut rng = Rng::new(seed);
    let plan = Plan::new(&mut rng, settings.max_nodes, settings.classes);
    let class = plan.class;
    let mut world = World::new(rng, plan, *settings);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.live())) {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("of an unknown kind");
        world.fail("no panic", format!("a core panicked: {text}"));
    }
    Outcome {
        seed,
        class,
        fingerprint: world.fingerprint.value(),
        stats: world.stats,
        violation: world.violation,
        trace: world.trace.into_lines(),
    }
}
