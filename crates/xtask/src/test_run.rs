//! All tests, and one line that says how many.

use crate::debian;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};

/// Budgets of tests that could go on for as long as one likes; what the caller has set stays.
const BUDGETS: [(&str, &str); 1] = [("HOLDFAST_SIM_SEEDS", "2000")];

/// How many tests of a program run at the same time.
const THREADS: &str = "RUST_TEST_THREADS";

/// Two for each CPU: most tests wait for daemons, disks and links more than they compute.
fn tests_at_once() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (2 * cpus).to_string()
}

/// Runs the tests; whether all went well and there was at least one. The last line printed is
/// `N passed, N failed`, over all test binaries.
///
/// # Errors
/// When the programs that tests need cannot be installed, or cargo does not start.
pub(crate) fn run(args: &[String]) -> Result<bool> {
    debian::install_missing()?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("test");
    if args.is_empty() {
        cargo.args(["--workspace", "--no-fail-fast"]);
    } else {
        cargo.args(args);
    }
    let at_once = tests_at_once();
    for (name, value) in BUDGETS.into_iter().chain([(THREADS, at_once.as_str())]) {
        if std::env::var_os(name).is_none() {
            cargo.env(name, value);
        }
    }
    if std::io::stderr().is_terminal() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    let mut running = cargo.stdout(Stdio::piped()).spawn().context("cargo does not start")?;
    let output = running.stdout.take().expect("standard output was asked for");
    let (mut counts, mut failures) = (Counts::default(), Failures::default());
    let mut out = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("the output of cargo test cannot be read")?;
        let text = String::from_utf8_lossy(&line);
        counts.add(&text);
        failures.add(&text);
        // Nobody may be listening; the tests go on.
        let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
    }
    let status = running.wait().context("cargo test was lost")?;
    let well = status.success() && counts.failed == 0 && counts.passed > 0;
    if !status.success() && counts.failed == 0 {
        eprintln!("error: cargo test ended with {status}: a build or a test program broke off");
    }
    if status.success() && counts.passed == 0 {
        eprintln!("error: no test ran");
    }
    for line in &failures.lines {
        println!("{line}");
    }
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(well)
}

/// How many lines of a failed test are repeated, and of all of them together.
const REPEATED: (usize, usize) = (40, 1000);

/// How tests failed: what they said first, to be repeated behind everything, where a reader of a long
/// output looks for it.
#[derive(Debug, Default)]
struct Failures {
    lines: Vec<String>,
    /// How many lines of the test whose output is being read may still be kept.
    left: usize,
}

impl Failures {
    /// Adds what belongs to the output of a failed test; any other line is nothing to it.
    fn add(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" ----") {
            self.left = REPEATED.0;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.left = 0;
        }
        if self.left > 0 && self.lines.len() < REPEATED.1 {
            self.left -= 1;
            self.lines.push(line.to_owned());
        }
    }
}

/// Sums over the summaries that each test binary prints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// Adds a line like `test result: ok. 18 passed; 0 failed; 0 ignored; ...`; any other line is
    /// nothing to it.
    fn add(&mut self, line: &str) {
        let Some((_, summary)) = line.split_once("test result: ") else { return };
        let count = |word: &str| {
            let counts = summary.split(". ").nth(1)?.split("; ");
            counts.filter_map(|part| part.strip_suffix(word)).find_map(|n| n.parse::<u64>().ok())
        };
        if let (Some(passed), Some(failed)) = (count(" passed"), count(" failed")) {
            self.passed += passed;
            self.failed += failed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Failures, REPEATED};

    #[test]
    fn summaries_are_summed() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test codec::tests::golden ... ok",
            "test result: ok. 18 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; \
             finished in 0.04s",
            "test result: FAILED. 14 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.10s",
            "I say: test result: is good",
            "7 passed; 7 failed",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 32, failed: 4 });
    }
    #[test]
    fn the_beginning_of_each_failure_is_repeated() {
        let mut failures = Failures::default();
        let long: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
        let output = ["test a ... FAILED", "", "failures:", "", "---- a stdout ----", "it broke"];
        let second = ["---- b stdout ----"];
        let end = ["failures:", "    a", "    b", "", "test result: FAILED. 0 passed; 2 failed"];
        let long = long.iter().map(String::as_str);
        for line in output.into_iter().chain(second).chain(long).chain(end) {
            failures.add(line);
        }
        let begin = ["---- a stdout ----", "it broke", "---- b stdout ----", "line 0"];
        assert_eq!(failures.lines[..4], begin);
        assert_eq!(failures.lines.len(), 2 + REPEATED.0);
    }
}
