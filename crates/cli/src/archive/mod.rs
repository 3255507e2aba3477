//! `restore`, `archive ls` and `archive verify`: all without a daemon.

mod moment;
mod restore;
mod rewind;
mod show;

pub(crate) use restore::restore;
pub(crate) use rewind::{Rewind, rewind};

use crate::output::Ui;
use crate::parse::{archive_place, name};
use clap::{Args, Subcommand};
use holdfast_api::error::without_numbers;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_archive::{Archive, ArchiveError, Store, open_store};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum ArchiveCommand {
    /// Show what can be restored
    Ls(Place),
    /// Read everything in an archive and verify every checksum
    Verify(Place),
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The directory of the archive, or `s3://BUCKET/PREFIX`
    #[arg(value_name = "ARCHIVE", value_parser = archive_place)]
    archive: String,
    /// Only this resource
    #[arg(value_parser = name)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// The directory of the archive, or `s3://BUCKET/PREFIX`
    #[arg(long, value_name = "ARCHIVE", value_parser = archive_place)]
    from: String,
    /// Which state: `latest`, a time (`2026-03-01T12:00:00Z`, `2026-03-01 12:00` local, `@UNIX`,
    /// `'15m ago'`), or a position of the journal
    #[arg(long, value_name = "TIME|POSITION")]
    to: String,
    /// The file or block device that gets the state
    #[arg(long, value_name = "PATH")]
    into: PathBuf,
    /// Which line of the archive a position belongs to, when more than one has it
    #[arg(long, value_name = "NUMBER")]
    line: Option<u32>,
    /// Overwrite what is in the file or on the device
    #[arg(long)]
    overwrite: bool,
}

type AnyStore = Box<dyn Store + Send>;

pub(crate) fn run(ui: &Ui, command: &ArchiveCommand) -> Result<(), ApiError> {
    match command {
        ArchiveCommand::Ls(place) => show::list(ui, place),
        ArchiveCommand::Verify(place) => show::verify(ui, place),
    }
}

/// The place where archives are.
fn open(place: &str) -> Result<AnyStore, ApiError> {
    open_store(place, false).map_err(|why| {
        let why = without_numbers(&why.to_string()).to_lowercase();
        ApiError::new(
            ErrorCode::ArchiveUnusable,
            format!("the archive {place} was not opened: {why}"),
        )
        .hint("give the directory that was set with `holdfast set NAME archive=DIR`")
    })
}

/// The archive of a resource there.
fn open_archive(place: &str, name: &str) -> Result<Archive<AnyStore>, ApiError> {
    Archive::open(open(place)?, name).map_err(|error| refused(place, name, &error))
}

/// What is said about an archive that cannot be used.
fn refused(place: &str, name: &str, error: &ArchiveError) -> ApiError {
    let message = match error {
        ArchiveError::Moment { .. } | ArchiveError::Refused(_) => error.to_string(),
        _ => format!("the archive {place} of resource {name} was not used: {error}"),
    };
    let refusal = |code| ApiError::new(code, message.clone());
    match error {
        ArchiveError::NoArchive { .. } => refusal(ErrorCode::NoSuchArchive)
            .hint(format!("`holdfast archive ls {place}` shows what is there")),
        ArchiveError::Moment { .. } => refusal(ErrorCode::MomentNotAvailable)
            .hint(format!("`holdfast archive ls {place} {name}` shows what can be restored")),
        ArchiveError::Missing { .. } | ArchiveError::Damaged { .. } => {
            refusal(ErrorCode::ArchiveUnusable).hint(format!(
                "`holdfast archive verify {place} {name}` finds all that is damaged; a moment that \
                 does not need these objects can still be restored"
            ))
        }
        ArchiveError::Target(_) => refusal(ErrorCode::DiskFailed),
        _ => refusal(ErrorCode::ArchiveUnusable),
    }
}
