//! The parts of the user guide that a program writes. The tests that compare them with what should
//! be there do it, when they are told to.

use anyhow::{Context, Result};
use std::process::Command;

/// The tests, as arguments of `cargo test`.
const TESTS: [&[&str]; 2] =
    [&["--bin", "holdfast", "guide::pages"], &["--test", "blackbox", "guide::the_commands"]];

/// Writes them; whether all pages are as they should be then.
///
/// # Errors
/// When cargo does not start.
pub(crate) fn write(pages: Option<&str>) -> Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut well = true;
    for test in TESTS {
        let mut command = Command::new(&cargo);
        command.args(["test", "--quiet", "--package", "holdfast"]).args(test);
        command.env("HOLDFAST_WRITE_GUIDE", "1").env("HOLDFAST_GUIDE", pages.unwrap_or_default());
        well &= command.status().context("cargo does not start")?.success();
    }
    Ok(well)
}
