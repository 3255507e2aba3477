//! Runs seeds of the simulator: `sim --seed N [--trace]` or `sim --seeds FROM..TO`.

use holdfast_sim::{Class, Outcome, Settings, Stats, TraceMode, run};
use std::process::ExitCode;
use std::time::Instant;

/// What the environment asks for: `HOLDFAST_SIM_NODES` (2 to 5) and `HOLDFAST_SIM_CLASSES` (`clean` or
/// `all`).
fn settings(trace: TraceMode) -> Settings {
    let nodes = std::env::var("HOLDFAST_SIM_NODES").ok().and_then(|n| n.parse().ok());
    let clean = std::env::var("HOLDFAST_SIM_CLASSES").is_ok_and(|text| text == "clean");
    Settings {
        trace,
        max_nodes: nodes.unwrap_or(5),
        classes: if clean { Class::CLEAN } else { Class::ALL },
        ..Settings::default()
    }
}

const USAGE: &str = "usage: sim --seed N [--trace] | sim --seeds FROM..TO [--keep-going]";

/// What the command line asks for.
enum Job {
    One { seed: u64, trace: bool },
    Many { seeds: std::ops::Range<u64>, keep_going: bool },
}

fn parse(args: &[String]) -> Option<Job> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--seed", seed] => Some(Job::One { seed: seed.parse().ok()?, trace: false }),
        ["--seed", seed, "--trace"] => Some(Job::One { seed: seed.parse().ok()?, trace: true }),
        ["--seeds", seeds, rest @ ..] if matches!(rest, [] | ["--keep-going"]) => {
            let (from, to) = seeds.split_once("..")?;
            let seeds = from.parse().ok()?..to.parse().ok()?;
            Some(Job::Many { seeds, keep_going: !rest.is_empty() })
        }
        _ => None,
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // A panic of a core is told as a violation, with its seed.
    std::panic::set_hook(Box::new(|info| {
        if let Some(at) = info.location() {
            eprintln!("panic at {at}");
        }
    }));
    match parse(&args) {
        Some(Job::One { seed, trace }) => one(seed, trace),
        Some(Job::Many { seeds, keep_going }) => many(seeds, keep_going),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn one(seed: u64, trace: bool) -> ExitCode {
    let trace = if trace { TraceMode::All } else { TraceMode::Last };
    let outcome = run(seed, &settings(trace));
    if trace == TraceMode::All || outcome.violation.is_some() {
        for line in &outcome.trace {
            println!("{line}");
        }
    }
    println!("seed {seed}, class {:?}, fingerprint {:016x}", outcome.class, outcome.fingerprint);
    println!("{:?}", outcome.stats);
    verdict(&outcome)
}

fn verdict(outcome: &Outcome) -> ExitCode {
    match &outcome.violation {
        Some(violation) => {
            println!("seed {} ({:?}): VIOLATION: {violation}", outcome.seed, outcome.class);
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn many(seeds: std::ops::Range<u64>, keep_going: bool) -> ExitCode {
    let begun = Instant::now();
    let (mut total, mut done, mut bad) = (Stats::default(), 0_u64, 0_u64);
    for seed in seeds {
        let outcome = run(seed, &settings(TraceMode::Off));
        done += 1;
        total.add(&outcome.stats);
        if outcome.violation.is_some() {
            bad += 1;
            verdict(&outcome);
            if !keep_going {
                break;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let rate = f64::from(u32::try_from(done).unwrap_or(u32::MAX)) / seconds.max(0.001);
    println!("{done} seeds in {seconds:.1} s ({rate:.0} a second), {bad} violations");
    println!("{total:?}");
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
