//! `daemon`.

use crate::args::Daemon;
use crate::config;
use crate::output::Ui;
use clap::Args;
use holdfast_api::ApiError;
use holdfast_daemon::DaemonOptions;
use holdfast_nbd::AllowedNet;
use std::path::PathBuf;

/// Who is let in at `--nbd-listen`, and how.
#[derive(Debug, Args)]
pub(crate) struct NbdAccess {
    /// Offer NBD clients TLS with server-cert.pem and server-key.pem of this directory
    #[arg(long, value_name = "DIR")]
    nbd_tls_certificates: Option<PathBuf>,
    /// Whether NBD clients may do without TLS [default: required]
    #[arg(long, value_name = "WHEN", value_parser = ["required", "optional"])]
    nbd_tls: Option<String>,
    /// Let in only NBD clients with a certificate that ca-cert.pem of the directory has signed
    #[arg(long)]
    nbd_tls_verify_peer: bool,
    /// Let in only NBD clients from this address or network; can be given more than once
    #[arg(long, value_name = "ADDR[/BITS]")]
    nbd_allow: Vec<AllowedNet>,
}

impl From<NbdAccess> for holdfast_daemon::NbdAccess {
    fn from(access: NbdAccess) -> Self {
        Self {
            tls_certificates: access.nbd_tls_certificates,
            tls_optional: access.nbd_tls.map(|when| when == "optional"),
            tls_verify_peer: access.nbd_tls_verify_peer,
            allow: access.nbd_allow,
        }
    }
}

/// Runs the daemon until it is told to stop.
pub(crate) fn run(ui: &Ui, args: Daemon, socket: Option<PathBuf>) -> Result<(), ApiError> {
    config::check_before_start(ui, args.config.as_deref())?;
    let Daemon { config, name, state_dir, listen, advertise, .. } = args;
    let Daemon { nbd_listen, nbd_access, http, lock_memory, journal_budget, smartctl, .. } = args;
    holdfast_daemon::run(&DaemonOptions {
        config,
        name,
        state_dir,
        listen,
        advertise,
        nbd_listen,
        nbd_access: nbd_access.into(),
        http,
        socket,
        lock_memory,
        journal_budget,
        max_resyncs: args.max_resyncs,
        smartctl,
        device_holder: Some(vec!["/proc/self/exe".into(), crate::args::HOLD_DEVICE.into()]),
        git: crate::version::GIT.to_owned(),
    })
}
