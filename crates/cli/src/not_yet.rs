//! Commands that the interface names and this version refuses: their grammar, so that a command
//! line written for a later version is understood, and one clear sentence.

use crate::parse::name;
use clap::{Arg, ArgMatches, Command};
use holdfast_api::ApiError;

/// Adds the commands to the grammar.
pub(crate) fn add_to(command: Command) -> Command {
    command.subcommands(commands())
}

/// The refusal, when the command line is one of these commands.
pub(crate) fn refusal(matches: &ArgMatches) -> Option<ApiError> {
    let (command, arguments) = matches.subcommand()?;
    if !commands().iter().any(|known| known.get_name() == command) {
        return None;
    }
    let (action, arguments) = match arguments.subcommand() {
        Some((action, arguments)) => (format!("{command} {action}"), arguments),
        None => (command.to_owned(), arguments),
    };
    let resource = arguments.try_get_one::<String>(RESOURCE).ok().flatten();
    Some(ApiError::not_supported_yet(&match resource {
        Some(resource) => format!("{action} of resource {resource}"),
        None => action,
    }))
}

/// The id of the argument that names a resource.
const RESOURCE: &str = "resource";

fn commands() -> Vec<Command> {
    vec![
        of_resource("rename", "Give a resource another name")
            .arg(Arg::new("new").value_name("NEW").required(true).value_parser(name)),
    ]
}

fn later(command: &'static str, about: &str) -> Command {
    Command::new(command).about(format!("{about} (not supported by this version yet)"))
}

fn of_resource(command: &'static str, about: &str) -> Command {
    later(command, about).arg(resource())
}

fn resource() -> Arg {
    Arg::new(RESOURCE).value_name("NAME").required(true).value_parser(name)
}
