//! The grammar of `status` and `health`.

use crate::parse::{name, positive_seconds};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Only this resource
    #[arg(value_parser = name)]
    pub(crate) name: Option<String>,
    /// Show it again every second, or as often as this says, until Ctrl-C
    #[arg(
        short,
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = watch
    )]
    pub(crate) watch: Option<Every>,
    /// How to print it [default: table]
    #[arg(long, value_name = "FORM")]
    pub(crate) format: Option<Form>,
    /// Leave the first line of the CSV form away; that happens by itself where a file goes on
    #[arg(long)]
    pub(crate) no_header: bool,
    /// Show a document that `status --json` printed, without a daemon; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    pub(crate) from: Option<PathBuf>,
    /// Print one line, and end with 0 when all is well, 1 when it works but is degraded, 2 when
    /// something has failed or is about to
    #[arg(long, conflicts_with_all = ["watch", "format"])]
    pub(crate) check: bool,
}

/// What stands after `--watch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Every {
    Time(Duration),
    Name(String),
}

/// A number of seconds, or the name that was meant to stand before.
fn watch(text: &str) -> Result<Every, String> {
    match positive_seconds(text) {
        Ok(every) => Ok(Every::Time(every)),
        Err(why) => name(text).map(Every::Name).map_err(|_| why),
    }
}

/// How the state is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// All of it, as --json
    Json,
    /// A line of values for each resource, below a line with their names
    Csv,
    /// A line of NAME=VALUE for each resource
    Line,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Only this resource
    #[arg(value_parser = name)]
    pub(crate) name: Option<String>,
    /// How often to look, and over how long rates and latencies are taken
    #[arg(
        short = 'd',
        long,
        value_name = "SECONDS",
        default_value = "1",
        value_parser = positive_seconds
    )]
    pub(crate) interval: Duration,
    /// Print plain text, look after look; so it is also where no screen is there
    #[arg(short, long)]
    pub(crate) batch: bool,
    /// End after so many looks
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) looks: Option<u64>,
    /// Print one look as plain text, and end: --batch --looks 1
    #[arg(long, conflicts_with_all = ["batch", "looks"])]
    pub(crate) once: bool,
    /// By what to sort
    #[arg(long, value_name = "COLUMN", default_value = "name")]
    pub(crate) sort: Sort,
}

/// By what `top` sorts: names upwards, all else downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// The name
    Name,
    /// Reads and writes a second
    Iops,
    /// Bytes read and written a second
    Throughput,
    /// The latency that 99 of 100 requests did not exceed
    Latency,
    /// How much peers lack
    Behind,
}

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Count errors from 0 again; remapped sectors stay
    #[arg(long)]
    pub(crate) clear: bool,
}
