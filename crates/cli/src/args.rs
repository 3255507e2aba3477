//! The grammar of the command line.

mod cluster;
mod doctor;
mod status;

use crate::archive::{ArchiveCommand, Restore, Rewind};
use crate::badblocks::{BadBlocksCommand, SpareCommand};
use crate::config::ConfigCommand;
use crate::daemon::NbdAccess;
use crate::import::ImportCommand;
use crate::parse::{absolute_path, disk_place, key_value, meta_place, name};
use crate::parse::{positive_seconds, size};
use crate::serve::Serve;
use crate::several::{Names, names};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
pub(crate) use cluster::Cluster;
pub(crate) use doctor::{Doctor, NodeFiles, Support};
use holdfast_api::request::{PauseWhat, WaitFor};
pub(crate) use status::{Every, Form, Health, Sort, Status, Top};
use std::path::PathBuf;
use std::time::Duration;

/// Where the daemon's control socket is when nobody says.
pub(crate) const DEFAULT_SOCKET: &str = "/run/holdfast/control.sock";
/// The command that the daemon runs to hold a device of its own.
pub(crate) const HOLD_DEVICE: &str = "hold-device";

/// Replicated block storage in user space.
///
/// One daemon runs on every node (`holdfast daemon`); every other command asks the daemon of this
/// node. `holdfast demo` shows the whole on one machine.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version = crate::version::text(), max_term_width = 100)]
#[command(infer_long_args = false, propagate_version = false)]
#[command(after_help = "Exit status: 0 done, 1 refused or failed, 2 usage, 3 daemon not \
    reachable, 4 no such object, 5 timed out.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command, before or after its name.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The control socket of the daemon [default: /run/holdfast/control.sock]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "HOLDFAST_SOCKET",
        hide_env_values = true
    )]
    pub(crate) socket: Option<PathBuf>,
    /// Print answers and errors as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Give up after so many seconds, with exit status 5
    #[arg(long, global = true, value_name = "SECONDS", value_parser = positive_seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Print only what was asked for
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print also which calls are made
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Use colours
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true
    )]
    pub(crate) color: ColorWhen,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also into files and pipes
    Always,
    /// Nowhere
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon of this node in the foreground
    Daemon(Daemon),
    #[command(flatten)]
    Call(Call),
    /// Look at metadata that no daemon uses
    #[command(subcommand)]
    Meta(Meta),
    /// Build the state that a resource had at a moment from its archive, without a daemon
    Restore(Restore),
    /// Look at archives, without a daemon
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Serve files and block devices by NBD, without a daemon
    Serve(Serve),
    /// Look at the configuration file, without a daemon
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say which commands make here what another system's configuration describes
    #[command(subcommand)]
    Import(ImportCommand),
    /// Show on this machine how a resource survives the death of its Primary
    Demo(Demo),
    /// Look for what is wrong or will be with this machine, the daemon, the disks and the peers
    ///
    /// Works with and without a running daemon, and changes nothing. The exit status is 1 when there
    /// is an error among the findings; notes and warnings leave it at 0.
    Doctor(Doctor),
    /// Write an archive with all that somebody who helps needs, and no secret
    Support(Support),
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Hold a device open while the daemon takes it away
    #[command(name = HOLD_DEVICE, hide = true)]
    HoldDevice {
        /// The node of the device
        device: PathBuf,
    },
    /// Print the manual page of a command
    #[command(hide = true)]
    Man {
        /// The command, or holdfast.toml; none for the whole
        command: Vec<String>,
        /// Write the pages of all commands into this directory instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// The commands that ask the daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum Call {
    /// Make, join, leave and show the cluster
    #[command(subcommand)]
    Cluster(Cluster),
    /// Create a resource; this node is its first and becomes Primary
    Create(Create),
    /// Make this node a member of a resource
    Join(Join),
    /// End this node's membership of a resource; the data stays on the disk
    Leave(Tried),
    /// Delete a resource; the data stays on the disks
    Delete(Tried),
    /// Start a resource here
    Up(Resources),
    /// Stop a resource here
    Down(Resources),
    /// Make this node Primary
    Primary(Forced),
    /// Make this node Secondary
    Secondary(Forced),
    /// Start to use this node's disk of a resource
    AttachDisk(AttachDisk),
    /// Cease to use this node's disk of a resource
    DetachDisk(Forced),
    /// Move this node's data of a resource to another disk, while it is in use
    ReplaceDisk(ReplaceDisk),
    /// Connect to the peers of a resource
    Connect(Connect),
    /// Disconnect from the peers of a resource
    Disconnect(Disconnect),
    /// Hold resync, fetch, replay or I/O; it stays held over a restart
    Pause(Pause),
    /// Let go on what was held
    Resume(Pause),
    /// Give this node's data up and fetch it again from a peer
    Invalidate(OfPeer),
    /// Compare the data of the connected members while they are in use
    ///
    /// Every block is compared by a strong digest. Blocks that differ are marked as out of sync with
    /// the peer, reported, and make the exit status 1.
    Verify(Verify),
    /// Read everything on this node's disk, compare it with the peers, and repair what is wrong
    ///
    /// It goes on in the background, slowly while clients are busy, also after a restart of the
    /// daemon. Scrubs are also made by themselves: see the options scrub-interval, scrub-window and
    /// scrub-rate.
    Scrub(Scrub),
    /// Make a resource larger on all its members, while it is in use
    Resize(Resize),
    /// Give a resource another name, on all nodes
    Rename(Rename),
    /// Look at the journal of a resource, rotate it, or trim it
    #[command(subcommand)]
    Log(Log),
    /// Look at the bad sectors of this node's disk, and move blocks into its spare and back
    #[command(subcommand)]
    Badblocks(BadBlocksCommand),
    /// List, add and remove the spares for bad sectors of this node's disk
    #[command(subcommand)]
    Spare(SpareCommand),
    /// Make a copy of this node's disk at another record of its journal
    Rewind(Rewind),
    /// Set options
    Set(Set),
    /// Show options with value, default and range
    Get(Get),
    /// Wait until a state is reached, or has ended
    Wait(Wait),
    /// Show a resource that only other nodes have, too, in `status`; nothing of its data comes here
    Watch(Watch),
    /// Show the state of this node and its resources
    Status(Status),
    /// Show how well this node's disk of a resource is, and why; or forget its errors
    Health(Health),
    /// Show what there is as events, and what happens from now on
    Events(Events),
    /// Watch all resources on the whole screen: rates, latency, resync
    Top(Top),
    /// Make a local block device of a resource, or take it away
    Device(Device),
    /// Make a local block device of an NBD export, which survives lost connections and servers
    Attach(Attach),
    /// Show what is attached, with each connection and how much goes over it
    Attachments(Attachments),
    /// Take an attached export away
    Detach(Detach),
    /// Fail all pending requests of an attached export now, and hold new ones for a while
    Abort(Abort),
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The resource
    #[arg(value_name = "NAME", value_parser = name)]
    pub(crate) name: String,
    /// The first byte to compare, in whole blocks of 4096 [default: the start of the device]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) start: Option<u64>,
    /// The byte behind the last one to compare [default: the end of the device]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) stop: Option<u64>,
    /// Compare only with this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
    /// Write what is right to the copies that are wrong: with three or more copies what most of them
    /// hold; with two that of the Primary, or without one that of this node
    #[arg(long)]
    pub(crate) repair: bool,
    /// Do not wait for the end
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Hold the one that goes on
    #[arg(long, group = "verify-do", conflicts_with_all = ["start", "stop", "peer", "repair"])]
    pub(crate) pause: bool,
    /// Let it go on
    #[arg(long, group = "verify-do", conflicts_with_all = ["start", "stop", "peer", "repair"])]
    pub(crate) resume: bool,
    /// End it
    #[arg(long, group = "verify-do", conflicts_with_all = ["start", "stop", "peer", "repair"])]
    pub(crate) cancel: bool,
    /// Show how it goes, or what came out of the last one
    #[arg(long, group = "verify-do", conflicts_with_all = ["start", "stop", "peer", "repair"])]
    pub(crate) report: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Scrub {
    /// The resource
    #[arg(value_name = "NAME", value_parser = name)]
    pub(crate) name: String,
    /// Hold the one that goes on, also over a restart of the daemon
    #[arg(long, group = "scrub-do")]
    pub(crate) pause: bool,
    /// Let it go on
    #[arg(long, group = "scrub-do")]
    pub(crate) resume: bool,
    /// End it
    #[arg(long, group = "scrub-do")]
    pub(crate) stop: bool,
    /// Show how it goes, and what came out of the last one
    #[arg(long, group = "scrub-do")]
    pub(crate) report: bool,
    /// Wait for its end
    #[arg(long, conflicts_with_all = ["pause", "stop", "report"])]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// The configuration file [default: /etc/holdfast/holdfast.toml, if it is there]
    #[arg(long, value_name = "PATH", env = crate::config::FILE, hide_env = true)]
    pub(crate) config: Option<PathBuf>,
    /// The name of this node [default: the host name]
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) name: Option<String>,
    /// Where the node keeps what it knows [default: /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where other nodes reach this one; port 0 picks a free one [default: 127.0.0.1:7850]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,
    /// What other nodes are told instead of the address listened at; can be given more than once
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Vec<String>,
    /// Where NBD clients reach it by TCP, or off [default: off]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) nbd_listen: Option<String>,
    #[command(flatten)]
    pub(crate) nbd_access: NbdAccess,
    /// Where the metrics are reached by TCP, for Prometheus [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<String>,
    /// Whether to keep all its memory from being swapped out or dropped [default: true]
    #[arg(long, value_name = "BOOL")]
    pub(crate) lock_memory: Option<bool>,
    /// What all journals of this node may take together [default: what each was made with]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) journal_budget: Option<u64>,
    /// How many resources may be filled on this node at a time; the others wait [default: no limit]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) max_resyncs: Option<u64>,
    /// The program that reads SMART values, or off [default: smartctl, if it is installed]
    #[arg(long, value_name = "PATH")]
    pub(crate) smartctl: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Show the segments
    Ls(Resource),
    /// Begin a new segment with the next write
    Rotate(Resource),
    /// Give up what nobody needs any more
    Trim(Resource),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// The backing file or block device, or the URI of an NBD export; what is on it is kept
    #[arg(long, value_name = "PATH", value_parser = disk_place)]
    pub(crate) disk: String,
    /// The size of the resource [default: that of the disk]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<u64>,
    /// Where the metadata is: `internal`, or a path [default: in the state directory]
    #[arg(long, value_name = "internal|PATH", value_parser = meta_place)]
    pub(crate) meta: Option<String>,
    /// Where the journal is: a directory, which is made when the one above it is there; or a block
    /// device or a file of a fixed size, which it has to itself [default: there is none]
    #[arg(long, value_name = "PATH", value_parser = absolute_path)]
    pub(crate) journal: Option<String>,
    /// How large the journal may grow [default: 1 GiB; all of a device]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "journal")]
    pub(crate) journal_size: Option<u64>,
    /// Set an option; can be given more than once
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Overwrite a spare that holds something; what is on the disk is kept
    #[arg(long)]
    pub(crate) force: bool,
    /// Keep a checksum for every block, to find what changed on the disk
    #[arg(long)]
    pub(crate) checksums: bool,
    #[command(flatten)]
    pub(crate) spares: Spares,
    /// Make the block device, too, as `holdfast device` does
    #[arg(long)]
    pub(crate) device: bool,
}

/// Where the bad sectors of a disk go.
#[derive(Debug, Args)]
pub(crate) struct Spares {
    /// A spare for bad sectors: a file or block device of its own; can be given more than once
    #[arg(long, value_name = "PATH", value_parser = absolute_path)]
    pub(crate) spare: Vec<String>,
    /// So much at the end of the disk is a spare for bad sectors; the resource is smaller by it
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "spare")]
    pub(crate) spare_size: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// The backing file or block device, or the URI of an NBD export; what is on it is overwritten
    #[arg(long, value_name = "PATH", value_parser = disk_place, required_unless_present = "diskless")]
    pub(crate) disk: Option<String>,
    /// Join without a disk: the data is read from and written to the peers
    #[arg(long, conflicts_with_all = ["disk", "meta"])]
    pub(crate) diskless: bool,
    /// How writes travel to this node: C, B, A or log [default: C]
    #[arg(long, value_name = "PROTOCOL", value_parser = ["C", "B", "A", "log"])]
    pub(crate) protocol: Option<String>,
    /// Where the metadata is: `internal`, or a path [default: in the state directory]
    #[arg(long, value_name = "internal|PATH", value_parser = meta_place)]
    pub(crate) meta: Option<String>,
    /// Where the journal is: a directory, which is made when the one above it is there [default: there
    /// is none]
    #[arg(long, value_name = "DIR", value_parser = absolute_path, conflicts_with = "diskless")]
    pub(crate) journal: Option<String>,
    /// How large the journal may grow [default: 1 GiB; all of a device]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "journal")]
    pub(crate) journal_size: Option<u64>,
    /// Overwrite the disk also when it holds a filesystem, a partition table or the like
    #[arg(long, conflicts_with = "diskless")]
    pub(crate) force: bool,
    /// Keep a checksum for every block, to find what changed on the disk
    #[arg(long, conflicts_with = "diskless")]
    pub(crate) checksums: bool,
    #[command(flatten)]
    pub(crate) spares: Spares,
}

#[derive(Debug, Args)]
pub(crate) struct Resource {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// The new size [default: as much as the smallest disk has room for]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) size: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Resources {
    /// The name of the resource, several with commas between them, or `all`
    #[arg(value_parser = names, value_name = "NAME")]
    pub(crate) names: Names,
}

#[derive(Debug, Args)]
pub(crate) struct Forced {
    /// The name of the resource, several with commas between them, or `all`
    #[arg(value_parser = names, value_name = "NAME")]
    pub(crate) names: Names,
    /// Do it although it may lose data
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AttachDisk {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// The backing file or block device, or the URI of an NBD export [default: the one it had]
    #[arg(long, value_name = "PATH", value_parser = disk_place)]
    pub(crate) disk: Option<String>,
    /// Where the metadata is: `internal`, or a path [default: where it was]
    #[arg(long, value_name = "internal|PATH", value_parser = meta_place)]
    pub(crate) meta: Option<String>,
    /// Overwrite another disk also when it holds a filesystem, a partition table or the like; with
    /// --discard-journal, do so also when no other node has the data
    #[arg(long)]
    pub(crate) force: bool,
    /// Begin with an empty journal; what was only in the old one is fetched from a peer
    #[arg(long)]
    pub(crate) discard_journal: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplaceDisk {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// The new backing file or block device, or the URI of an NBD export; it is overwritten
    #[arg(long, value_name = "PATH", value_parser = disk_place, required_unless_present = "stop")]
    pub(crate) disk: Option<String>,
    /// Where the metadata will be: `internal`, or a path [default: where it is]
    #[arg(long, value_name = "internal|PATH", value_parser = meta_place, conflicts_with = "stop")]
    pub(crate) meta: Option<String>,
    /// Overwrite the new disk also when it holds a filesystem, a partition table or the like
    #[arg(long, conflicts_with = "stop")]
    pub(crate) force: bool,
    /// Copy at most so many bytes a second [default: as many as the load allows]
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "stop")]
    pub(crate) rate: Option<u64>,
    /// Wait until the new disk is the disk of this node, and show how far it is
    #[arg(long, conflicts_with = "stop")]
    pub(crate) wait: bool,
    /// End the move that is under way; the old disk stays
    #[arg(long, conflicts_with = "disk")]
    pub(crate) stop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// The name of the resource, several with commas between them, or `all`
    #[arg(value_parser = names, value_name = "NAME")]
    pub(crate) names: Names,
    /// Only this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
    /// After a split brain: give up what was written on this node
    #[arg(long)]
    pub(crate) discard_my_data: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Disconnect {
    /// The name of the resource, several with commas between them, or `all`
    #[arg(value_parser = names, value_name = "NAME")]
    pub(crate) names: Names,
    /// Only this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
    /// Do not ask the peer
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The name of the resource, several with commas between them, or `all`
    #[arg(value_parser = names, value_name = "NAME")]
    pub(crate) names: Names,
    /// What
    pub(crate) what: PauseArg,
    /// On this member, not on this node
    #[arg(long, value_name = "NODE", value_parser = name, conflicts_with = "all")]
    pub(crate) peer: Option<String>,
    /// On all members that it means something to
    #[arg(long)]
    pub(crate) all: bool,
}

/// [`PauseWhat`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PauseArg {
    /// Resync to and from this node
    Sync,
    /// Fetching of the journal
    Fetch,
    /// Replay of the journal
    Replay,
    /// All I/O of clients
    Io,
}

impl From<PauseArg> for PauseWhat {
    fn from(what: PauseArg) -> Self {
        match what {
            PauseArg::Sync => Self::Sync,
            PauseArg::Fetch => Self::Fetch,
            PauseArg::Replay => Self::Replay,
            PauseArg::Io => Self::Io,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct OfPeer {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Only this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// The name that it gets
    #[arg(value_parser = name)]
    pub(crate) new: String,
    /// Only check, and say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Tried {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Only check, and say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Do not show it any more
    #[arg(long)]
    pub(crate) stop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// What to set; all of them, or none when one is refused
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Only towards this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Only this option
    pub(crate) key: Option<String>,
    /// What holds towards this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("state").required(true).args(["reached", "ended"])))]
pub(crate) struct Wait {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// What to wait for
    #[arg(long = "for", value_name = "STATE")]
    pub(crate) reached: Option<WaitArg>,
    /// Wait as long as this is so, until it has ended: the states are those of --for
    #[arg(long = "while", value_name = "STATE", hide_possible_values = true)]
    pub(crate) ended: Option<WaitArg>,
    /// Only this peer
    #[arg(long, value_name = "NODE", value_parser = name)]
    pub(crate) peer: Option<String>,
}

/// [`WaitFor`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum WaitArg {
    /// This node's disk, or the peer's, is UpToDate
    UpToDate,
    /// Connected to the peers
    Connected,
    /// Writes reach the peers
    Established,
    /// This node, or the peer, is Primary
    Primary,
    /// This node, or the peer, is Secondary
    Secondary,
    /// Connected, and nothing is out of sync
    Synced,
    /// The journal is replayed
    Replayed,
    /// Nobody has it open on this node
    Closed,
}

impl From<WaitArg> for WaitFor {
    fn from(what: WaitArg) -> Self {
        match what {
            WaitArg::UpToDate => Self::UpToDate,
            WaitArg::Connected => Self::Connected,
            WaitArg::Established => Self::Established,
            WaitArg::Primary => Self::Primary,
            WaitArg::Secondary => Self::Secondary,
            WaitArg::Synced => Self::Synced,
            WaitArg::Replayed => Self::Replayed,
            WaitArg::Closed => Self::Closed,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Go on with what happens from now on, also over restarts of the daemon; with --timeout until it
    /// has been away for so long
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin behind the event with this number, not with all there is
    #[arg(long, value_name = "SEQ")]
    pub(crate) since: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Device {
    /// The name of the resource
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// By which way of the kernel [default: auto]
    #[arg(long, value_name = "WAY", value_parser = ["auto", "ublk", "nbd", "fuse"])]
    pub(crate) via: Option<String>,
    /// On a log peer whose replay is paused: the past state that it holds; fetching goes on
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Only the NBD export of that state, no block device
    #[arg(long, requires = "read_only", conflicts_with = "via")]
    pub(crate) export_only: bool,
    /// Take it away; refused while it is open
    #[arg(long, conflicts_with_all = ["via", "read_only"])]
    pub(crate) remove: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Where the export is, as nbd://HOST[:PORT]/EXPORT, nbds://... for TLS, or
    /// nbd+unix:///EXPORT?socket=PATH; more than one are paths to the same data, or copies with
    /// --mirror
    #[arg(required = true, value_name = "URI")]
    pub(crate) uris: Vec<String>,
    /// Connections to a server
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) connections: Option<u16>,
    /// The name of the device [default: that of the export]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub(crate) name: Option<String>,
    /// By which way of the kernel [default: auto]
    #[arg(long, value_name = "WAY", value_parser = ["auto", "ublk", "nbd", "fuse"])]
    pub(crate) via: Option<String>,
    /// Every URI is a copy, and all are kept equal
    #[arg(long)]
    pub(crate) mirror: bool,
    /// The first server of a mirror has the data; fill the others from it
    #[arg(long, requires = "mirror")]
    pub(crate) copy_first: bool,
    /// The directory with ca-cert.pem, and client-cert.pem and client-key.pem if need be
    #[arg(long, value_name = "DIR", value_parser = absolute_path)]
    pub(crate) tls_certificates: Option<String>,
    /// Refuse an export that does not look like this, as `holdfast attachments` has shown it
    #[arg(long, value_name = "ID")]
    pub(crate) identity: Option<String>,
    /// Attach it again after a restart of the daemon
    #[arg(long)]
    pub(crate) persist: bool,
    /// Allow no writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Others write to the export, too: know a server that comes back by size and name only
    #[arg(long)]
    pub(crate) shared: bool,
    /// How long a request waits for a server that is away before it fails; 0 is for ever
    /// [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds)]
    pub(crate) io_timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Attachments {
    /// Only this one
    #[arg(value_parser = name)]
    pub(crate) name: Option<String>,
    /// Show it again every second
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The name of the attachment
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// Also while it is open, or its server away: pending requests fail
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Abort {
    /// The name of the attachment
    #[arg(value_parser = name)]
    pub(crate) name: String,
    /// How long new requests are held [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = positive_seconds)]
    pub(crate) hold: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Meta {
    /// Print what the metadata says
    Dump(MetaFile),
    /// Check every block of the metadata; exit status 1 when it is damaged
    Check(MetaFile),
}

#[derive(Debug, Args)]
pub(crate) struct MetaFile {
    /// The metadata file, or a disk with internal metadata
    pub(crate) path: PathBuf,
    /// The metadata is at the end of this disk
    #[arg(long)]
    pub(crate) internal: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=8))]
    pub(crate) nodes: u8,
    /// Where to put disks and state [default: a new directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The size of the resource
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size)]
    pub(crate) size: u64,
    /// Leave it running at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Run through once and end with 0 or 1, for scripts
    #[arg(long, conflicts_with = "keep")]
    pub(crate) once: bool,
}
