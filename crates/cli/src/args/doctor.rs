//! The grammar of `doctor` and `support`.

use clap::Args;
use std::path::PathBuf;

/// Where the node has its files, for a daemon that does not run.
#[derive(Debug, Args)]
pub(crate) struct NodeFiles {
    /// The configuration file of the daemon [default: /etc/holdfast/holdfast.toml, if it is there]
    #[arg(long, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// Where the node keeps what it knows [default: as the configuration says]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) files: NodeFiles,
    /// End with 1 also when there are only warnings
    #[arg(long)]
    pub(crate) strict: bool,
    /// Look at another machine instead: the directory that an archive of `holdfast support` unpacks to
    #[arg(long, value_name = "DIR", hide_short_help = true, conflicts_with_all = ["config", "state_dir"])]
    pub(crate) root: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Support {
    #[command(flatten)]
    pub(crate) files: NodeFiles,
    /// The archive to write; a file that is there is not replaced [default:
    /// holdfast-support-NODE-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE.tar.gz")]
    pub(crate) output: Option<PathBuf>,
    /// So many lines of logs
    #[arg(long, value_name = "NUMBER", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) lines: u32,
}
