//! `config`: the configuration file, looked at without a daemon.

pub(crate) mod keys;
mod set;

use crate::output::{Style, Ui, say};
use crate::table::{Table, cell, plain};
use clap::Subcommand;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_daemon::config::{
    self, BadConfig, CONFIG_KEYS, ConfigError, ConfigFile, DEFAULT_CONFIG, Setting,
};
use holdfast_daemon::{DaemonOptions, Origin, conflicts_in, effective};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The variable of the environment that names the file where no command line does.
pub(crate) const FILE: &str = "HOLDFAST_CONFIG";

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say everything that is wrong in a configuration file, with line and column
    ///
    /// Exit status 1 when the daemon would refuse it. No daemon is needed.
    Check {
        /// The file [default: /etc/holdfast/holdfast.toml]
        #[arg(env = FILE, hide_env = true)]
        file: Option<PathBuf>,
    },
    /// Set keys in a configuration file; all else in it stays as it is
    ///
    /// The file is written only when a daemon can use it as it will be. No daemon is needed, but for
    /// --restart.
    Set(set::Set),
    /// Show what a daemon takes that is started with a file, and where each value comes from
    ///
    /// No daemon is needed. What its command line says goes before the file, and is not shown.
    Show {
        /// The file [default: /etc/holdfast/holdfast.toml, if it is there]
        #[arg(env = FILE, hide_env = true)]
        file: Option<PathBuf>,
    },
    /// Print a configuration file in which every option stands as a comment, with its default
    Template,
}

/// Runs one of them.
pub(crate) fn run(ui: &Ui, command: &ConfigCommand) -> Result<(), ApiError> {
    match command {
        ConfigCommand::Check { file } => check(ui, file.as_deref()),
        ConfigCommand::Set(args) => set::run(ui, args),
        ConfigCommand::Show { file } => show(ui, file.as_deref()),
        ConfigCommand::Template => {
            ui.text(&keys::template());
            Ok(())
        }
    }
}

fn check(ui: &Ui, file: Option<&Path>) -> Result<(), ApiError> {
    let path = file.unwrap_or(Path::new(DEFAULT_CONFIG));
    let checked =
        config::load(Some(path)).and_then(|found| match conflicts_in(&found.unwrap_or_default()) {
            none if none.is_empty() => Ok(()),
            faults => Err(ConfigError::Bad(BadConfig { file: path.to_owned(), faults })),
        });
    match checked {
        Ok(()) if ui.json => {
            ui.json(&json!({ "file": path, "valid": true, "errors": [] }));
            Ok(())
        }
        Ok(()) => {
            if !ui.quiet {
                ui.line(&format!("the configuration file {} can be used", path.display()));
            }
            Ok(())
        }
        Err(ConfigError::Bad(bad)) if ui.json => {
            ui.json(&json!({ "file": bad.file, "valid": false, "errors": bad.faults }));
            Err(bad.refusal())
        }
        Err(error) => Err(refuse(ui, error)),
    }
}

/// The refusal of a file as one sentence; what is wrong in it is printed before, a line each.
pub(crate) fn refuse(ui: &Ui, error: ConfigError) -> ApiError {
    if let (ConfigError::Bad(bad), false) = (&error, ui.json) {
        say(&lines(bad));
    }
    error.into()
}

fn lines(bad: &BadConfig) -> String {
    bad.lines().map(|line| line + "\n").collect()
}

fn show(ui: &Ui, file: Option<&Path>) -> Result<(), ApiError> {
    let loaded = config::load(file).map_err(|error| refuse(ui, error))?;
    let path = loaded.is_some().then(|| file.unwrap_or(Path::new(DEFAULT_CONFIG)));
    let config = loaded.unwrap_or_default();
    let held = effective(&DaemonOptions::default(), &config);
    if ui.json {
        let values = held.iter().map(|held| {
            let (source, line) = match held.origin {
                Origin::File(line) => ("file", Some(line)),
                Origin::Default | Origin::CommandLine => ("default", None),
            };
            json!({
                "key": held.key, "value": held.value, "default": default_of(held.key),
                "source": source, "line": line,
            })
        });
        let values: Vec<Value> = values.collect();
        ui.json(&json!({
            "file": path,
            "values": values,
            "resource_defaults": config.resource_defaults.all,
            "resource": config.resource_defaults.named,
        }));
        return Ok(());
    }
    let mut table = Table::new(0, &["KEY", "VALUE", "FROM"]);
    for held in &held {
        let (value, from) = match (&held.value, held.origin) {
            (Some(value), Origin::File(line)) => (text_of(value), format!("line {line}")),
            _ => (default_of(held.key).to_owned(), "default".to_owned()),
        };
        let style = if from == "default" { Style::Plain } else { Style::Warn };
        table.row(vec![cell(held.key, Style::Bold), cell(value, style), plain(from)]);
    }
    for (name, value, table_name) in options(&config) {
        let style = Style::Warn;
        table.row(vec![cell(name, Style::Bold), cell(value, style), plain(table_name)]);
    }
    match path {
        Some(path) => ui.line(&format!("configuration file: {}", path.display())),
        None => ui.line(&format!("configuration file: none ({DEFAULT_CONFIG} is not there)")),
    }
    ui.text(&table.render(None, ui.color).into_iter().map(|line| line + "\n").collect::<String>());
    Ok(())
}

/// The defaults for resources: option, value for people, table.
fn options(config: &ConfigFile) -> Vec<(String, String, String)> {
    let defaults = &config.resource_defaults;
    let all = std::iter::once((format!("[{}]", config::RESOURCE_DEFAULTS), &defaults.all));
    let named = &defaults.named;
    let named = named.iter().map(|(name, map)| (format!("[{}.{name:?}]", config::RESOURCE), map));
    let rows = all.chain(named).flat_map(|(table, map)| {
        map.iter().map(move |(option, value)| {
            let spec = holdfast_api::options::find(option);
            let value = spec.map_or_else(|| value.clone(), |spec| spec.show(value));
            (option.clone(), value, table.clone())
        })
    });
    rows.collect()
}

fn text_of(value: &Setting) -> String {
    match value {
        Setting::Text(text) => text.clone(),
        Setting::Flag(flag) => flag.to_string(),
        Setting::Number(number) => number.to_string(),
        Setting::List(list) => list.join(", "),
    }
}

fn default_of(key: &str) -> &'static str {
    CONFIG_KEYS.iter().find(|known| known.name == key).map_or("", |known| known.default)
}

/// The refusal of a daemon that is to be started with a file that cannot be used.
pub(crate) fn check_before_start(ui: &Ui, file: Option<&Path>) -> Result<(), ApiError> {
    match config::load(file) {
        Ok(_) => Ok(()),
        Err(error) => {
            let refusal = refuse(ui, error);
            let message = format!("the daemon was not started: {}", refusal.message);
            Err(ApiError { message, code: ErrorCode::InvalidRequest, ..refusal })
        }
    }
}
