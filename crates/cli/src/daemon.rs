//! `daemon`.

use crate::args::Daemon;
use holdfast_api::ApiError;
use holdfast_daemon::DaemonOptions;
use std::path::PathBuf;

/// Runs the daemon until it is told to stop.
pub(crate) fn run(args: Daemon, socket: Option<PathBuf>) -> Result<(), ApiError> {
    let Daemon { config, name, state_dir, listen, advertise, nbd_listen, http } = args;
    holdfast_daemon::run(&DaemonOptions {
        config,
        name,
        state_dir,
        listen,
        advertise,
        nbd_listen,
        http,
        socket,
        git: crate::version::GIT.to_owned(),
    })
}
