//! The programs that packages are made with.

use anyhow::{Context, Result, bail};
use std::process::Command;

/// Runs a program to its end; what it printed.
///
/// # Errors
/// When it does not start, with the Debian package that has it, or fails, with what it said.
pub(crate) fn output(command: &mut Command, package: &str) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C.UTF-8").output().with_context(|| {
        format!("{name} does not start (on Debian it is in the package {package})")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed: {}\n{}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} did not print text"))
}
