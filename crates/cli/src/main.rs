//! The `holdfast` command: the daemon of a node, and the client that asks it.

mod archive;
mod args;
mod attach;
mod badblocks;
mod cluster;
mod commands;
mod config;
mod daemon;
mod demo;
mod doctor;
mod events;
#[cfg(test)]
mod guide;
mod health;
mod import;
mod journal;
mod manual;
mod meta;
mod options;
mod output;
mod parse;
mod replace_disk;
mod serve;
mod session;
mod several;
mod status;
mod support;
mod survey;
mod table;
mod top;
mod usage;
mod version;
mod wait;

use args::{Cli, Command, Global};
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use holdfast_api::{ApiError, ErrorCode};
use output::Ui;
use session::Session;
use std::process::ExitCode;

fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage::report(&error),
    };
    // The grammar has filled in every global option, so this cannot miss one.
    let ui = match Global::from_arg_matches(&matches) {
        Ok(global) => Ui::new(&global),
        Err(error) => return usage::report(&error),
    };
    match dispatch(&matches, &ui) {
        Ok(code) => code,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn dispatch(matches: &ArgMatches, ui: &Ui) -> Result<ExitCode, ApiError> {
    let cli = match Cli::from_arg_matches(matches) {
        Ok(cli) => cli,
        Err(error) => return Ok(usage::report(&error)),
    };
    match cli.command {
        Command::Daemon(arguments) => daemon::run(ui, arguments, cli.global.socket),
        Command::HoldDevice { device } => holdfast_daemon::hold_device(&device).map_err(|why| {
            ApiError::new(ErrorCode::Internal, format!("{} is not held: {why}", device.display()))
        }),
        Command::Completions { shell } => manual::completions(ui, shell),
        Command::Man { command, dir } => manual::man(ui, &command, dir.as_deref()),
        Command::Meta(command) => meta::run(ui, &command),
        Command::Restore(arguments) => archive::restore(ui, &arguments),
        Command::Archive(command) => archive::run(ui, &command),
        Command::Serve(arguments) => serve::run(ui, &arguments),
        Command::Config(command) => config::run(ui, &command),
        Command::Import(command) => import::run(ui, &command),
        Command::Demo(arguments) => demo::run(ui, &arguments),
        Command::Doctor(arguments) => {
            return runtime()?.block_on(doctor::run(ui, &cli.global, &arguments));
        }
        Command::Support(arguments) => {
            runtime()?.block_on(support::run(ui, &cli.global, &arguments))
        }
        Command::Call(call) => {
            let session = Session::new(ui, &cli.global);
            return runtime()?.block_on(commands::run(&session, call, cli.global.timeout));
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// What runs the calls of one command.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, ApiError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|why| {
        ApiError::new(ErrorCode::Internal, format!("the command could not be started: {why}"))
    })
}
