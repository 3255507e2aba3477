//! `demo`: real daemons on this machine, a replicated resource, the death of its Primary, and the
//! proof that nothing was lost.

mod access;
mod leftovers;
mod node;
mod report;
mod scratch;

use crate::args::Demo as Args;
use crate::output::Ui;
use access::{Access, Written};
use holdfast_api::status::{NodeStatus, PeerStatus};
use holdfast_api::{ApiError, Client, ErrorCode, routes};
use holdfast_units::format_size;
use leftovers::LocalDevice;
use node::Node;
use report::Report;
use scratch::Scratch;
use std::fmt;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

const NAMES: [&str; 8] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];
const RESOURCE: &str = "r0";
/// The smallest resource on which there is room for a filesystem and some files.
const MIN_SIZE: u64 = 64 << 20;
/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How long all steps together may take, with a resource of up to 1 GiB.
const LIMIT: Duration = Duration::from_secs(55);
/// How long a dead Primary may stay in the way of the next one.
const PROMOTE_LIMIT: Duration = Duration::from_secs(10);
/// How often figures are looked at until they stand still, at most, and the pause in between.
const SETTLE_LOOKS: u32 = 20;
const SETTLE_PAUSE: Duration = Duration::from_millis(200);
/// How many files are written in peace, before the Primary dies and after.
const FILES: u32 = 24;
/// How many more are acknowledged before the Primary is killed in the middle of writing.
const FILES_UNDER_FIRE: u32 = 40;

/// Why a step failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened, a sentence.
    pub(crate) message: String,
    /// The node whose log may say more.
    pub(crate) node: Option<usize>,
}

impl Failure {
    fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), node: None }
    }

    fn of(node: usize, message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), node: Some(node) }
    }
}

/// Runs the demo.
pub(crate) fn run(ui: &Ui, args: &Args) -> Result<(), ApiError> {
    if args.size < MIN_SIZE {
        let least = format_size(MIN_SIZE);
        return Err(ApiError::new(
            ErrorCode::InvalidSize,
            format!("the demo was not started: the resource must be at least {least} large"),
        ));
    }
    let binary = std::env::current_exe().map_err(|why| failed(&why))?;
    let scratch = Scratch::make(args.dir.as_deref())?;
    let runtime = crate::runtime()?;
    let result = runtime.block_on(async {
        let mut demo = Demo::new(ui, args, binary, &scratch);
        demo.run_and_clean_up(args).await
    });
    // A thread may still be stuck in a device that has gone; nobody waits for it.
    runtime.shutdown_background();
    if args.keep && result.is_ok() {
        return Ok(());
    }
    scratch.remove()?;
    result
}

fn failed(why: &dyn fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the demo failed: {why}"))
}

/// Waits for the signals that end a command.
async fn told_to_stop() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

struct Demo {
    report: Report,
    binary: PathBuf,
    size: u64,
    nodes: Vec<Node>,
    /// Where the filesystem is mounted at a time.
    mount: PathBuf,
    mounted: bool,
    /// The device that is attached now, or was when its daemon died.
    device: Option<LocalDevice>,
    /// Why NBD is used and not a local device; `None` while the device can be had.
    no_device: Option<String>,
    written: Written,
}

impl Demo {
    fn new(ui: &Ui, args: &Args, binary: PathBuf, scratch: &Scratch) -> Self {
        let dir = scratch.path();
        Self {
            report: Report::new(ui),
            binary,
            size: args.size,
            nodes: NAMES[..usize::from(args.nodes)].iter().map(|n| Node::new(n, dir)).collect(),
            mount: dir.join("mnt"),
            mounted: false,
            device: None,
            no_device: (!rustix::process::geteuid().is_root())
                .then(|| "a local device needs root".to_owned()),
            written: Written::default(),
        }
    }

    async fn run_and_clean_up(&mut self, args: &Args) -> Result<(), ApiError> {
        let started = Instant::now();
        let limit = LIMIT + Duration::from_secs(self.size.saturating_sub(1 << 30) / (50 << 20));
        let outcome = tokio::select! {
            result = tokio::time::timeout(limit, self.play(args.keep)) => result.unwrap_or_else(|_| {
                Err(Failure::new(format_args!("{} seconds were over", limit.as_secs())))
            }),
            () = told_to_stop() => Err(Failure::new("it was stopped")),
        };
        if let Err(failure) = &outcome {
            let log = failure.node.map(|at| (self.nodes[at].name, self.nodes[at].log_tail()));
            self.report.failed(&failure.message, log);
        } else {
            self.report.end(started.elapsed());
            if args.keep {
                self.what_to_try();
                self.report.line("");
                self.report.line(&format!("to end it: {}", self.how_to_end()));
                return Ok(());
            }
            if !args.once && std::io::stdin().is_terminal() {
                self.what_to_try();
                self.report.line("\npress Enter to end it");
                tokio::select! {
                    _ = tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())) => {}
                    () = told_to_stop() => {}
                }
            }
        }
        self.clean_up().await;
        outcome.map_err(|failure| failed(&failure.message))
    }

    async fn play(&mut self, keep: bool) -> Result<(), Failure> {
        self.start_daemons().await?;
        self.make_cluster().await?;
        self.make_resource().await?;
        self.make_device(0).await?;
        self.write_in_peace(0).await?;
        self.kill_while_writing().await?;
        self.promote(1).await?;
        self.check(1).await?;
        self.write_in_peace(1).await?;
        self.bring_back().await?;
        if !keep {
            self.compare_disks().await?;
        }
        self.show_status().await
    }

    async fn start_daemons(&mut self) -> Result<(), Failure> {
        let count = self.nodes.len();
        self.report.begin(&format!("{count} nodes run, each with a disk of its own"));
        for at in 0..count {
            let disk = self.nodes[at].disk();
            make_disk(&disk, self.size).map_err(|why| {
                Failure::new(format_args!("{} was not made: {why}", disk.display()))
            })?;
            self.start(at).await?;
        }
        self.report.done("");
        Ok(())
    }

    async fn start(&mut self, at: usize) -> Result<(), Failure> {
        let command = self.nodes[at].start(&self.binary).map_err(|why| Failure::of(at, why))?;
        self.report.command(&command);
        self.nodes[at].ready().await.map_err(|why| Failure::of(at, why))
    }

    async fn make_cluster(&mut self) -> Result<(), Failure> {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name).collect();
        self.report.begin(&format!("{} are a cluster", names.join(", ")));
        self.holdfast(0, &["cluster", "create", "--name", "demo"]).await?;
        for at in 1..self.nodes.len() {
            let token = self.holdfast(0, &["cluster", "token"]).await?;
            self.holdfast(at, &["cluster", "join", token.trim()]).await?;
        }
        self.report.done("by mutual TLS");
        Ok(())
    }

    async fn make_resource(&mut self) -> Result<(), Failure> {
        let count = self.nodes.len();
        let size = format_size(self.size);
        self.report.begin(&format!("resource {RESOURCE}, {size}, has a copy on {count} nodes"));
        let disk = |node: &Node| node.disk().display().to_string();
        let first = disk(&self.nodes[0]);
        let bytes = self.size.to_string();
        self.holdfast(0, &["create", RESOURCE, "--disk", &first, "--size", &bytes]).await?;
        for at in 1..count {
            let path = disk(&self.nodes[at]);
            self.holdfast(at, &["join", RESOURCE, "--disk", &path]).await?;
        }
        for at in 1..count {
            self.holdfast(at, &["wait", RESOURCE, "--for", "uptodate"]).await?;
        }
        self.report.done("every copy is up to date");
        Ok(())
    }

    /// Makes the local device of the Primary and mounts it; when that is refused, NBD is used from
    /// here on.
    async fn make_device(&mut self, at: usize) -> Result<(), Failure> {
        let name = self.nodes[at].name;
        if let Some(why) = self.no_device.clone() {
            self.report.begin(&format!("{RESOURCE} is an NBD export on {name}"));
            let uri = self.nbd_uri(at).await?;
            self.report.done(&format!("{uri} ({why})"));
            return Ok(());
        }
        self.report.begin(&format!("{RESOURCE} is a block device on {name}, mounted"));
        let path = match self.holdfast(at, &["device", RESOURCE]).await {
            Ok(path) => path.trim().to_owned(),
            Err(refused) if at == 0 => {
                let uri = self.nbd_uri(at).await?;
                self.report.rename(&format!("{RESOURCE} is an NBD export on {name}"));
                self.report.done(&format!("{uri} ({})", refused.message));
                self.no_device = Some(refused.message);
                return Ok(());
            }
            Err(refused) => return Err(refused),
        };
        self.device = Some(LocalDevice::look(Path::new(&path)));
        let result = self.mount(&path, at == 0).await;
        if result.is_ok() {
            self.report.done(&path);
        }
        result.map_err(|failure| Failure { node: Some(at), ..failure })
    }

    async fn mount(&mut self, device: &str, fresh: bool) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.mount).map_err(Failure::new)?;
        if fresh {
            self.system("mkfs.ext4", &["-q", "-F", device]).await?;
        }
        let mount = self.mount.display().to_string();
        self.system("mount", &[device, &mount]).await?;
        self.mounted = true;
        Ok(())
    }

    async fn access(&self, at: usize) -> Result<Access, Failure> {
        if self.no_device.is_none() {
            return Ok(Access::Files(self.mount.clone()));
        }
        let uri = self.nbd_uri(at).await?;
        Access::nbd(&uri, self.size).map_err(|why| Failure::of(at, why))
    }

    async fn write_in_peace(&mut self, at: usize) -> Result<(), Failure> {
        let (what, name) = (self.things(), self.nodes[at].name);
        let again = if at == 0 { "" } else { " more" };
        self.report.begin(&format!("{FILES}{again} {what} are written on {name}, each synced"));
        let until = self.written.count() + FILES;
        let writer = self.written.write(self.access(at).await?, until);
        let done = tokio::time::timeout(COMMAND_LIMIT, writer).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(Failure::of(at, why)),
            Err(_) => return Err(Failure::of(at, "the writes were not completed in time")),
        }
        self.report.done("");
        Ok(())
    }

    async fn kill_while_writing(&mut self) -> Result<(), Failure> {
        let name = self.nodes[0].name;
        self.report.begin(&format!("{name}, the Primary, is killed in the middle of writing"));
        let before = self.written.count();
        let access = self.access(0).await?;
        let until = before + access.room().min(100_000);
        let writer = self.written.write(access, until);
        let written = self.written.clone();
        let enough = async {
            while written.count() < before + FILES_UNDER_FIRE {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::pin!(writer);
        tokio::select! {
            result = &mut writer => {
                let why = result.err().unwrap_or_else(|| "there was no room for more".into());
                return Err(Failure::of(0, format_args!("writing ended too early: {why}")));
            }
            () = enough => {}
            () = tokio::time::sleep(COMMAND_LIMIT) => {
                return Err(Failure::of(0, "the writes were not completed in time"));
            }
        }
        let command = self.nodes[0].kill().await.map_err(|why| Failure::of(0, why))?;
        self.report.command(&command);
        // The writer meets an error when its device is gone, and ends.
        if tokio::time::timeout(Duration::from_secs(15), writer).await.is_err() {
            return Err(Failure::of(0, "a write neither failed nor came back after the kill"));
        }
        self.clear_device(true).await;
        let (count, what) = (self.written.count(), self.things());
        self.report.done(&format!("{count} {what} had been acknowledged"));
        Ok(())
    }

    async fn promote(&mut self, at: usize) -> Result<(), Failure> {
        self.report.begin(&format!("{} is Primary", self.nodes[at].name));
        let started = Instant::now();
        while let Err(refused) = self.holdfast(at, &["primary", RESOURCE]).await {
            if started.elapsed() > PROMOTE_LIMIT {
                return Err(refused);
            }
            self.report.forget_command();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.report.done("");
        self.make_device(at).await
    }

    async fn check(&mut self, at: usize) -> Result<(), Failure> {
        let (count, what) = (self.written.count(), self.things());
        self.report.begin(&format!("all {count} {what} are there, each with the right SHA-256"));
        let check = self.written.check(self.access(at).await?);
        match tokio::time::timeout(COMMAND_LIMIT, check).await {
            Ok(Ok(bytes)) => self.report.done(&format!("{} were read", format_size(bytes))),
            Ok(Err(why)) => return Err(Failure::of(at, why)),
            Err(_) => return Err(Failure::of(at, "the reads were not completed in time")),
        }
        Ok(())
    }

    async fn bring_back(&mut self) -> Result<(), Failure> {
        let name = self.nodes[0].name;
        self.report.begin(&format!("{name} is back, and gets what it missed"));
        let missed =
            self.settled(1, |peer| if peer.node == name { peer.out_of_sync_bytes } else { 0 });
        let missed = missed.await?;
        self.start(0).await?;
        let wait = ["wait", RESOURCE, "--for", "synced", "--peer", name];
        self.holdfast(1, &wait).await?;
        self.holdfast(0, &["wait", RESOURCE, "--for", "synced"]).await?;
        let received = self.settled(0, |peer| peer.resync_received_bytes).await?;
        let [missed, received, size] = [missed, received, self.size].map(format_size);
        self.report.done(&format!(
            "it had missed {missed} of {size}; {received} came: that, and the extents of 4 MiB \
             that were being written when it died"
        ));
        Ok(())
    }

    async fn compare_disks(&mut self) -> Result<(), Failure> {
        let count = self.nodes.len();
        self.report.begin(&format!("the disks of all {count} nodes are equal, byte by byte"));
        if self.no_device.is_none() {
            self.unmount().await?;
            self.holdfast(1, &["device", RESOURCE, "--remove"]).await?;
            self.device = None;
        }
        for at in 1..count {
            self.holdfast(at, &["wait", RESOURCE, "--for", "synced"]).await?;
        }
        let disks: Vec<PathBuf> = self.nodes.iter().map(Node::disk).collect();
        let size = self.size;
        let compare = tokio::task::spawn_blocking(move || access::equal(&disks, size));
        match tokio::time::timeout(COMMAND_LIMIT, compare).await {
            Ok(Ok(Ok(()))) => self.report.done(""),
            Ok(Ok(Err(why))) => return Err(Failure::new(why)),
            Ok(Err(why)) => return Err(Failure::new(why)),
            Err(_) => return Err(Failure::new("the disks were not read in time")),
        }
        Ok(())
    }

    async fn show_status(&mut self) -> Result<(), Failure> {
        self.report.begin("this is how it stands");
        let when = if self.report.color() { "always" } else { "never" };
        let text = self.holdfast(1, &["status", "--color", when]).await?;
        self.report.done("");
        self.report.line("");
        for line in text.lines() {
            self.report.line(format!("    {line}").trim_end());
        }
        Ok(())
    }

    /// What is written: files, or blocks where there is no filesystem.
    fn things(&self) -> &'static str {
        if self.no_device.is_none() { "files" } else { "blocks" }
    }

    /// Runs `holdfast` against a node; what it printed.
    async fn holdfast(&mut self, at: usize, arguments: &[&str]) -> Result<String, Failure> {
        let socket = self.nodes[at].socket().display().to_string();
        let mut words = vec!["--socket", &*socket];
        words.extend(arguments);
        self.report.command(&format!("holdfast {}", report::shell_words(&words)));
        let binary = self.binary.clone();
        execute(&binary, &words).await.map_err(|why| Failure::of(at, why))
    }

    /// Runs a program of the system; what it printed.
    async fn system(&mut self, program: &str, arguments: &[&str]) -> Result<String, Failure> {
        self.report.command(&format!("{program} {}", report::shell_words(arguments)));
        execute(Path::new(program), arguments).await.map_err(Failure::new)
    }

    async fn status(&self, at: usize) -> Result<NodeStatus, Failure> {
        let client = Client::new(self.nodes[at].socket()).with_timeout(COMMAND_LIMIT);
        client.get(routes::STATUS).await.map_err(|why| Failure::of(at, why))
    }

    async fn nbd_uri(&self, at: usize) -> Result<String, Failure> {
        let status = self.status(at).await?;
        let resource = status.resources.into_iter().find(|r| r.name == RESOURCE);
        resource.map(|r| r.nbd_uri).ok_or_else(|| Failure::of(at, "the resource is not there"))
    }

    /// The sum of a figure over the peers of node `at`, once it stands still: a daemon counts a
    /// little behind the writes.
    async fn settled(
        &self,
        at: usize,
        figure: impl Fn(&PeerStatus) -> u64,
    ) -> Result<u64, Failure> {
        let mut last = None;
        let mut same = 0;
        for _ in 0..SETTLE_LOOKS {
            let status = self.status(at).await?;
            let peers = status.resources.iter().filter(|r| r.name == RESOURCE);
            let now: u64 = peers.flat_map(|r| &r.peers).map(&figure).sum();
            same = if last == Some(now) { same + 1 } else { 0 };
            last = Some(now);
            if same == 3 {
                break;
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        Ok(last.unwrap_or_default())
    }

    async fn unmount(&mut self) -> Result<(), Failure> {
        let mount = self.mount.display().to_string();
        self.system("umount", &[&mount]).await?;
        self.mounted = false;
        Ok(())
    }

    /// Takes away what is left of the local device: its mount, and what lies under it when the
    /// daemon is gone.
    async fn clear_device(&mut self, daemon_is_gone: bool) {
        if std::mem::take(&mut self.mounted) {
            let mount = self.mount.display().to_string();
            if daemon_is_gone || execute(Path::new("umount"), &[&mount]).await.is_err() {
                self.report.command(&format!("umount -l {mount}"));
                // What stays mounted is found when the scratch directory is removed.
                let _ = execute(Path::new("umount"), &["-l", &mount]).await;
            }
        }
        if daemon_is_gone && let Some(device) = self.device.take() {
            for (program, arguments) in device.dismantling() {
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                self.report.command(&format!("{program} {}", report::shell_words(&arguments)));
                // It may be gone already.
                let _ = execute(Path::new(program), &arguments).await;
            }
        }
    }

    async fn clean_up(&mut self) {
        self.written.stop();
        self.clear_device(false).await;
        for node in &mut self.nodes {
            node.ask_to_stop();
        }
        let deadline = Instant::now() + Duration::from_secs(8);
        for node in &mut self.nodes {
            node.stopped(deadline).await;
        }
        self.clear_device(true).await;
    }

    fn what_to_try(&self) {
        let socket = |at: usize| self.nodes[at].socket().display().to_string();
        let lines = [
            String::new(),
            "it is still running; try:".to_owned(),
            format!("  holdfast --socket {} status --watch", socket(1)),
            format!("  holdfast --socket {} events --follow", socket(0)),
            format!("  holdfast --socket {} get {RESOURCE}", socket(1)),
            format!("  holdfast --socket {} cluster status", socket(1)),
        ];
        for line in lines {
            self.report.line(&line);
        }
        if self.mounted {
            self.report.line(&format!("  ls -l {}", self.mount.display()));
        }
    }

    /// The shell command that ends what `--keep` left running.
    fn how_to_end(&self) -> String {
        let unmount =
            if self.mounted { format!("umount {}; ", self.mount.display()) } else { String::new() };
        let pids: Vec<String> =
            self.nodes.iter().filter_map(Node::pid).map(|p| p.to_string()).collect();
        let dir = self.mount.parent().unwrap_or(&self.mount).display();
        format!("{unmount}kill {}; sleep 2; rm -r --one-file-system {dir}", pids.join(" "))
    }
}

/// A sparse file of this size.
fn make_disk(path: &Path, size: u64) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::File::create_new(path)?.set_len(size)
}

/// Runs a program to its end, within [`COMMAND_LIMIT`]; what it printed, or what is wrong.
async fn execute(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .env_remove("HOLDFAST_SOCKET")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(COMMAND_LIMIT, child).await {
        Ok(Ok(output)) => output,
        Ok(Err(why)) => return Err(format!("{name} was not run: {why}")),
        Err(_) => return Err(format!("{name} did not end within {} s", COMMAND_LIMIT.as_secs())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first = first.map(|line| line.strip_prefix("error: ").unwrap_or(line));
    Err(first.map_or_else(|| format!("{name} ended with {}", output.status), str::to_owned))
}
