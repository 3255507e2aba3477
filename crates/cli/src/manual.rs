//! Completions and manual pages.

use crate::args::Cli;
use crate::not_yet;
use crate::output::Ui;
use clap::{Command, CommandFactory};
use holdfast_api::{ApiError, ErrorCode};
use std::path::Path;

fn grammar() -> Command {
    not_yet::add_to(Cli::command())
}

/// Prints the completions for a shell.
pub(crate) fn completions(ui: &Ui, shell: clap_complete::Shell) -> Result<(), ApiError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar(), "holdfast", &mut script);
    ui.text(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Prints the manual page of the command, or writes those of all commands into a directory.
pub(crate) fn man(ui: &Ui, dir: Option<&Path>) -> Result<(), ApiError> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(grammar()).render(&mut page);
        rendered.map_err(|why| failed("was not made", &why))?;
        ui.text(&String::from_utf8_lossy(&page));
        return Ok(());
    };
    clap_mangen::generate_to(grammar(), dir)
        .map_err(|why| failed(&format!("were not written to {}", dir.display()), &why))
}

fn failed(what: &str, why: &std::io::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the manual pages {what}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_holds_together() {
        grammar().debug_assert();
    }

    #[test]
    fn completions_and_manual_know_every_command() {
        let mut script = Vec::new();
        clap_complete::generate(
            clap_complete::Shell::Bash,
            &mut grammar(),
            "holdfast",
            &mut script,
        );
        let script = String::from_utf8(script).unwrap();
        for command in ["attach-disk", "demo", "resize", "badblocks"] {
            assert!(script.contains(command), "{command}");
        }
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(grammar(), dir.path()).unwrap();
        for page in ["holdfast.1", "holdfast-create.1", "holdfast-cluster-join.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
    }
}
