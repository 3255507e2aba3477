//! Commands that the interface names and this version refuses: their grammar, so that a command
//! line written for a later version is understood, and one clear sentence.

use clap::{ArgMatches, Command};
use holdfast_api::ApiError;

/// Adds the commands to the grammar.
pub(crate) fn add_to(command: Command) -> Command {
    command.subcommands(commands())
}

/// The refusal, when the command line is one of these commands.
pub(crate) fn refusal(matches: &ArgMatches) -> Option<ApiError> {
    let (command, _) = matches.subcommand()?;
    let known = commands().iter().any(|known| known.get_name() == command);
    known.then(|| ApiError::not_supported_yet(command))
}

fn commands() -> Vec<Command> {
    vec![later("top", "Watch all resources")]
}

fn later(command: &'static str, about: &str) -> Command {
    Command::new(command).about(format!("{about} (not supported by this version yet)"))
}
