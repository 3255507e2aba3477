//! `import`: the commands that make here what another system's configuration describes.
//!
//! Nothing is changed: the commands are printed. Every statement of the files is accounted for: what it
//! became, why nothing has to be done for it, or that it has no counterpart and what to do instead.

mod drbd;
mod enbd;
mod ledger;
mod plan;
mod source;

use crate::output::Ui;
use crate::parse::name;
use clap::Subcommand;
use holdfast_api::ApiError;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Print the commands that make here what configuration files of DRBD describe
    ///
    /// It changes nothing, and needs neither a daemon nor DRBD.
    Drbd {
        /// The files, such as /etc/drbd.conf; what they include is read, too
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The node that has the data [default: for each resource the first in the file]
        #[arg(long, value_name = "NODE", value_parser = name)]
        first: Option<String>,
    },
    /// Print the commands that make here what an enbd.conf describes
    ///
    /// It changes nothing, and needs neither a daemon nor ENBD.
    Enbd {
        /// The file, such as /etc/enbd.conf
        file: PathBuf,
    },
}

/// Prints what is to be typed.
pub(crate) fn run(ui: &Ui, command: &ImportCommand) -> Result<(), ApiError> {
    let plan = match command {
        ImportCommand::Drbd { files, first } => drbd::import(files, first.as_deref())?,
        ImportCommand::Enbd { file } => enbd::import(file)?,
    };
    if ui.json {
        ui.json(&plan.json());
    } else {
        ui.text(&plan.text());
    }
    Ok(())
}
