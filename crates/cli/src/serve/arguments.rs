//! The grammar of `serve`.

use crate::parse::{chunk, connections, export, export_name, size};
use clap::{Args, ValueEnum};
use holdfast_nbd::AllowedNet;
use std::path::PathBuf;

/// `serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Serve {
    /// The files and block devices that make up the export
    #[arg(value_name = "PATH", required_unless_present = "export")]
    pub(crate) paths: Vec<PathBuf>,
    /// Serve these, too, under a name of their own; can be given more than once
    #[arg(long, value_name = "NAME=PATH[,PATH...]", value_parser = export)]
    pub(crate) export: Vec<(String, Vec<PathBuf>)>,
    /// Where clients reach it; can be given more than once [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Vec<String>,
    /// Where clients on this machine reach it: a Unix socket
    #[arg(long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,
    /// The name of the export; clients that name none get it in any case
    #[arg(long, value_name = "EXPORT", default_value = "", hide_default_value = true)]
    #[arg(value_parser = export_name)]
    pub(crate) name: String,
    /// A text for people that clients can show
    #[arg(long, value_name = "TEXT", value_parser = export_name)]
    pub(crate) description: Option<String>,
    /// The size of each PATH; files that are not there are made with it, sparse
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "read_only")]
    pub(crate) size: Option<u64>,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// How several paths make up an export
    #[arg(long, value_name = "LAYOUT", default_value = "concat")]
    pub(crate) layout: LayoutArg,
    /// How much of each path comes in turn, with --layout stripe
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = chunk)]
    pub(crate) chunk: u64,
    /// Offer TLS with server-cert.pem and server-key.pem of this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_certificates: Option<PathBuf>,
    /// Whether clients may do without TLS
    #[arg(long, value_name = "WHEN", default_value = "required", requires = "tls_certificates")]
    pub(crate) tls: TlsWhen,
    /// Let in only clients with a certificate that ca-cert.pem of the directory has signed
    #[arg(long, requires = "tls_certificates")]
    pub(crate) tls_verify_peer: bool,
    /// Let in only clients from this address or network; can be given more than once
    #[arg(long, value_name = "ADDR[/BITS]")]
    pub(crate) allow: Vec<AllowedNet>,
    /// How many clients there may be at a time
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = connections)]
    pub(crate) max_connections: usize,
    /// Whether to keep all its memory from being swapped out or dropped [default: where it may]
    #[arg(long, value_name = "BOOL")]
    pub(crate) lock_memory: Option<bool>,
    /// Whether to go past the page cache; auto does so for block devices
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) direct: Direct,
    /// Remember what clients change, and tell it as metadata context x-holdfast:changed
    #[arg(long)]
    pub(crate) track_changes: bool,
    /// Let clients make the files larger
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) resizable: bool,
    /// End when the last client has gone
    #[arg(long)]
    pub(crate) exit_after_last: bool,
}

/// How several paths make up an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    /// One after the other
    Concat,
    /// In turns
    Stripe,
    /// Each has everything
    Mirror,
}

/// Whether clients may do without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsWhen {
    /// They may not: nothing is told in the clear
    Required,
    /// They may ask which exports there are, and enter none
    Exports,
    /// They may
    Optional,
}

/// Whether to go past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Direct {
    /// For block devices, where it works
    Auto,
    /// Always, or refuse
    Always,
    /// Never
    Never,
}
