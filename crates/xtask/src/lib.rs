//! The rules of the repository as code. `tests/tidy.rs` runs them with all other tests.

mod code;
mod licences;
mod notices;
mod rooms;
mod sources;

pub use notices::notices;

use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, or the name of a crate.
    pub place: String,
    /// The line, counted from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Which rule, and what to do.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.what),
            line => write!(f, "{}:{line}: {}", self.place, self.what),
        }
    }
}

/// The root of the repository that this binary was built in.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies two levels below the root").to_path_buf()
}

/// Checks all rules in the repository at `root`; every place that breaks one.
///
/// # Errors
/// When a file cannot be read or `cargo metadata` fails.
pub fn tidy(root: &Path) -> Result<Vec<Fault>> {
    let files = sources::read(root)?;
    let metadata = metadata(root)?;
    let mut faults = Vec::new();
    for file in &files {
        sources::check(file, &mut faults);
        rooms::check_source(file, &mut faults);
    }
    sources::check_lints(root, &mut faults)?;
    rooms::check_dependencies(&metadata, &mut faults)?;
    licences::check(&metadata, &mut faults)?;
    Ok(faults)
}

/// What cargo knows about the workspace and all that it depends on, on this kind of machine.
/// Never uses the network: whatever has been built is there.
///
/// # Errors
/// When `cargo metadata` fails.
pub fn metadata(root: &Path) -> Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", &target])
        .current_dir(root)
        .output()
        .context("cargo metadata does not start")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata did not print JSON")
}
