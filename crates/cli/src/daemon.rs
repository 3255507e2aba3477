//! `daemon`.

use crate::args::Daemon;
use holdfast_api::{ApiError, ErrorCode};
use std::path::PathBuf;

/// Runs the daemon until it is told to stop.
pub(crate) fn run(args: Daemon, socket: Option<PathBuf>) -> Result<(), ApiError> {
    let Daemon { config, name, state_dir, listen, nbd_listen, http } = args;
    let _ = (config, name, state_dir, listen, nbd_listen, http, socket);
    Err(ApiError::new(ErrorCode::Internal, "the daemon was not started: it is not built in"))
}
