//! Runs of the simulator: many seeds, the same seed twice, and cores with bugs planted in them.

use holdfast_sim::{Class, Outcome, PlantedBug, Settings, TraceMode, run};
use std::sync::atomic::{AtomicU64, Ordering};

/// Two threads, each taking the next seed, until one of them finds a violation.
fn first_violation(seeds: std::ops::Range<u64>, settings: &Settings) -> Option<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let search = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return None;
            }
            let outcome = run(seed, settings);
            if outcome.violation.is_some() {
                next.store(seeds.end, Ordering::Relaxed);
                return Some(outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(search);
        let mine = search();
        let theirs = other.join().expect("a run catches panics of cores");
        mine.into_iter().chain(theirs).min_by_key(|outcome| outcome.seed)
    })
}

fn seeds_wanted() -> u64 {
    std::env::var("HOLDFAST_SIM_SEEDS")
        .map_or(800, |text| text.parse().expect("HOLDFAST_SIM_SEEDS is a number of seeds"))
}

/// Up to five nodes and every class of trouble. `HOLDFAST_SIM_NODES=2` and `HOLDFAST_SIM_CLASSES=clean`
/// narrow it.
fn settings() -> Settings {
    let nodes = std::env::var("HOLDFAST_SIM_NODES").ok().and_then(|n| n.parse().ok());
    let clean = std::env::var("HOLDFAST_SIM_CLASSES").is_ok_and(|text| text == "clean");
    let classes = if clean { Class::CLEAN } else { Class::ALL };
    Settings { max_nodes: nodes.unwrap_or(5), classes, ..Settings::default() }
}

#[test]
fn every_promise_is_kept() {
    let Some(found) = first_violation(0..seeds_wanted(), &settings()) else { return };
    let settings = Settings { trace: TraceMode::Last, ..settings() };
    for line in run(found.seed, &settings).trace {
        println!("{line}");
    }
    let violation = found.violation.expect("was found for it");
    panic!("seed {} ({:?}): {violation}", found.seed, found.class);
}

#[test]
fn a_seed_gives_the_same_run_bit_for_bit() {
    for seed in 0..20 {
        let (first, second) = (run(seed, &Settings::default()), run(seed, &Settings::default()));
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed}");
        assert_eq!(first.stats, second.stats, "seed {seed}");
        let traced = Settings { trace: TraceMode::All, ..Settings::default() };
        assert_eq!(run(seed, &traced).fingerprint, first.fingerprint, "seed {seed}, traced");
    }
}

#[test]
fn seeds_are_different_runs_that_do_something() {
    let runs: Vec<Outcome> = (0..40).map(|seed| run(seed, &Settings::default())).collect();
    let mut prints: Vec<u64> = runs.iter().map(|run| run.fingerprint).collect();
    prints.sort_unstable();
    prints.dedup();
    assert_eq!(prints.len(), runs.len());
    let sum = |of: fn(&Outcome) -> u64| runs.iter().map(of).sum::<u64>();
    assert!(sum(|run| run.stats.completed) > 500);
    assert!(sum(|run| run.stats.crashes) > 5);
    assert!(sum(|run| run.stats.cuts) > 5);
    assert!(sum(|run| run.stats.promotions) > 20);
    assert!(sum(|run| run.stats.resyncs) > 20);
    assert!(sum(|run| run.stats.bad_blocks) > 20);
    assert!(sum(|run| run.stats.healed) > 5);
    assert!(sum(|run| run.stats.caught_up) > 0);
    assert!(sum(|run| run.stats.compared) > 100 << 20);
    assert!(sum(|run| run.stats.corrupted) > 5);
    assert!(sum(|run| run.stats.catch_ups) > sum(|run| run.stats.caught_up));
}

/// The promises that a planted bug breaks.
fn broken_by(bug: PlantedBug) -> &'static [&'static str] {
    match bug {
        PlantedBug::SwapActivityLogOrder => {
            &["an extent is durably hot before the first write into it"]
        }
        PlantedBug::DropBitmapBit => &[
            "equal nodes are equal",
            "what a peer misses is noted",
            "a promoted node has every completed write",
            "reads return the last completed write",
        ],
        // A Primary that does not wait for its target also finds that out by itself.
        PlantedBug::EarlyAck => {
            &["what a member missed is durably known before completion", "protocol"]
        }
        PlantedBug::NoGenerationBump => &[
            "what a member missed is durably known before completion",
            "nobody's data are overwritten unasked",
            "a promoted node has every completed write",
        ],
        PlantedBug::FlushNotForwarded => {
            &["a completed flush is durable", "a completed FUA write is durable"]
        }
        PlantedBug::ReplayAgain | PlantedBug::ReplayUnflushed => {
            &["who is caught up is what a crash of its source could have left"]
        }
        PlantedBug::HealOverNewer => &[
            "equal nodes are equal",
            "reads return the last completed write",
            "a promoted node has every completed write",
            "a completed flush is durable",
            "what a member missed is durably known before completion",
            "what a peer misses is noted",
            "a comparison finds what differs and nothing else",
        ],
        PlantedBug::LoseUnseen | PlantedBug::UnreadIsLost => {
            &["a block is lost only if it cannot be read"]
        }
        PlantedBug::SalvagedIsLost => &["a read fails only where nobody has the data"],
        PlantedBug::LostIsRead => &["reads return the last completed write"],
        PlantedBug::VerifyUnlocked => &[
            "a comparison finds what differs and nothing else",
            "equal nodes are equal",
            "reads return the last completed write",
        ],
        PlantedBug::ReplayClearsEarly => &[
            "equal nodes are equal",
            "what a peer misses is noted",
            "a promoted node has every completed write",
            "reads return the last completed write",
        ],
    }
}

fn finds(bug: PlantedBug) {
    let settings = Settings { planted: Some(bug), ..settings() };
    let found = first_violation(0..1000, &settings);
    let found = found.unwrap_or_else(|| panic!("{bug:?} was not found in 1000 seeds"));
    let violation = found.violation.expect("was found for it");
    println!("{bug:?}: seed {}: {violation}", found.seed);
    assert!(
        broken_by(bug).contains(&violation.promise),
        "{bug:?} was seen as {violation} in seed {}",
        found.seed
    );
}

#[test]
fn an_activity_log_written_too_late_is_found() {
    finds(PlantedBug::SwapActivityLogOrder);
}

#[test]
fn a_dropped_bit_is_found() {
    finds(PlantedBug::DropBitmapBit);
}

#[test]
fn a_completion_before_the_peers_answer_is_found() {
    finds(PlantedBug::EarlyAck);
}

#[test]
fn a_missing_generation_is_found() {
    finds(PlantedBug::NoGenerationBump);
}

#[test]
fn a_flush_that_stays_at_home_is_found() {
    finds(PlantedBug::FlushNotForwarded);
}

#[test]
fn a_write_that_is_replayed_over_newer_ones_is_found() {
    finds(PlantedBug::ReplayAgain);
}

#[test]
fn a_replay_without_flushes_is_found() {
    finds(PlantedBug::ReplayUnflushed);
}

#[test]
fn copies_that_are_compared_while_they_are_written_to_are_found() {
    finds(PlantedBug::VerifyUnlocked);
}

#[test]
fn bits_that_are_cleared_before_a_replay_is_through_are_found() {
    finds(PlantedBug::ReplayClearsEarly);
}

#[test]
fn a_repair_over_a_newer_write_is_found() {
    finds(PlantedBug::HealOverNewer);
}

#[test]
fn what_a_disk_gives_in_place_of_a_lost_block_is_found() {
    finds(PlantedBug::LostIsRead);
}

#[test]
fn a_block_that_is_given_up_after_it_was_written_is_found() {
    finds(PlantedBug::LoseUnseen);
}

#[test]
fn a_block_that_is_given_up_because_it_could_not_be_read_is_found() {
    finds(PlantedBug::UnreadIsLost);
}

#[test]
fn what_a_journal_has_and_nobody_gets_is_found() {
    finds(PlantedBug::SalvagedIsLost);
}
