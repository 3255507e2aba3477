//! The worlds in which the commands of the guide are typed: nodes named alpha, beta and gamma, each with a
//! daemon and with files of its own, however their paths look.

use crate::{BLOCK, MIB, SYNC, binary, write_blocks};
use holdfast_testkit::guide::{Happening, simple_commands};
use holdfast_testkit::{
    Cluster, ClusterOptions, Cut, Node, Output, files, holds_within, run_with_limit, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How large a disk is, and so a resource on it.
const DISK: u64 = 32 * MIB;
/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one that goes on may take until it prints something, and to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(60);
/// What stands for a token in the documentation.
const TOKEN: &str = "hf1-...";
/// Paths that are each node's own, with all that is below them.
const OWN: [&str; 9] =
    ["/dev/", "/etc/holdfast", "/fast/", "/media/", "/mnt", "/run/", "/srv/", "/var/", "/backup"];
/// Of these the real ones.
const REAL: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/std", "/dev/fd", "/dev/shm", "/dev/tty"];

/// Whether nodes can have this name.
pub(super) fn is_node(name: &str) -> bool {
    ["alpha", "beta", "gamma"].contains(&name)
}

/// Nodes, and what was typed on them so far.
pub(super) struct World {
    kind: String,
    cluster: Cluster,
    /// Where commands are typed.
    here: usize,
    /// The token that was printed last.
    token: Option<String>,
    /// What was started and goes on.
    background: Vec<Child>,
    written: u64,
}

impl World {
    /// The world of this name:
    ///
    /// | name | |
    /// |---|---|
    /// | `strangers` | three nodes that run and do not know each other |
    /// | `nodes` | they are a cluster, without a resource |
    /// | `pair` | alpha and beta have `db`, of 32 MiB on /dev/vg0/db; alpha is Primary |
    /// | `three` | gamma, too |
    /// | `journal` | alpha and beta have `db` with a journal in /var/lib/journals/db |
    /// | `far` | beta follows alpha's journal |
    /// | `alone` | alpha, a cluster of one, has `db` |
    ///
    /// # Panics
    /// When there is no such world, or something in it does not work.
    pub(super) fn new(kind: &str) -> Self {
        let options = ClusterOptions { proxies: true, ..ClusterOptions::default() };
        let cluster = match kind {
            "strangers" => Cluster::strangers(&binary(), 3, ClusterOptions::default()),
            "nodes" | "three" => Cluster::with(&binary(), 3, options),
            "pair" | "journal" | "far" => Cluster::with(&binary(), 2, options),
            "alone" => Cluster::with(&binary(), 1, options),
            _ => panic!("there is no world {kind}: see World::new"),
        };
        let kind = kind.to_owned();
        let background = Vec::new();
        let mut world = Self { kind, cluster, here: 0, token: None, background, written: 0 };
        for node in world.cluster.nodes() {
            prepare(node);
        }
        world.make_resource();
        world.here = 0;
        world
    }

    fn make_resource(&mut self) {
        let journal = " --journal /var/lib/journals/db --journal-size 64M";
        let (create, join) = match self.kind.as_str() {
            "pair" | "three" | "alone" => ("", ""),
            "journal" => (journal, journal),
            "far" => (
                " --journal /var/lib/journals/db --journal-size 16M",
                " --protocol log --journal /var/lib/journals/db --journal-size 16M",
            ),
            _ => return,
        };
        for index in 0..self.cluster.nodes().len() {
            self.here = index;
            let line = match index {
                0 => format!("holdfast create db --disk /dev/vg0/db{create}"),
                _ => format!("holdfast join db --disk /dev/vg0/db{join}"),
            };
            let _ = self.run(&line).ok();
        }
        for node in self.cluster.nodes() {
            node.wait_resource("db", SYNC, "everybody has everything", |r| {
                r.disk.state == "UpToDate"
                    && r.peers.len() + 1 == self.cluster.nodes().len()
                    && r.peers.iter().all(|peer| {
                        peer.connection == "Connected"
                            && peer.disk == "UpToDate"
                            && peer.out_of_sync_bytes == 0
                            && !matches!(peer.replication.as_str(), "SyncSource" | "SyncTarget")
                    })
            });
        }
    }

    /// Its name.
    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// What follows is typed on this node.
    pub(super) fn go_to(&mut self, node: &str) -> Result<(), String> {
        self.here = self.index(node)?;
        Ok(())
    }

    fn index(&self, node: &str) -> Result<usize, String> {
        let found = self.cluster.nodes().iter().position(|known| known.name() == node);
        found.ok_or_else(|| format!("the world {} has no node {node}", self.kind))
    }

    /// Makes something happen to a node; one that goes is not connected to the others any more when
    /// this returns:
    ///
    /// * `kill`, `start`, `stop`: its daemon
    /// * `cut`, `heal`: its network
    /// * `write`: somebody writes some blocks of `db` there
    /// * `flood`: somebody writes more than a journal of 16 MiB holds
    /// * `damage`: a block of its disk changes behind everybody's back
    /// * `lose`: the file of its disk is gone
    pub(super) fn happens(&mut self, happening: &Happening) -> Result<(), String> {
        let index = self.index(&happening.node)?;
        let disk = own_path(&self.cluster[index], "/dev/vg0/db");
        let node = &mut self.cluster[index];
        match happening.what.as_str() {
            "kill" => node.kill9(),
            "stop" => node.stop(),
            "start" => node.start(),
            "cut" => node.proxy().cut(Cut::Reset),
            "heal" => node.proxy().heal(),
            "write" => {
                self.written += 1;
                write_blocks(node, "db", self.written, 0..64);
            }
            "flood" => (1..=8).for_each(|round| write_blocks(node, "db", round, 0..1024)),
            "damage" => {
                let mut disk = File::options().write(true).open(disk).expect("the disk is there");
                disk.seek(SeekFrom::Start(5 * BLOCK)).expect("it is long enough");
                disk.write_all(&[0xa5; 4096]).expect("it can be written");
                disk.sync_all().expect("it can be flushed");
            }
            "lose" => fs::remove_file(disk).expect("the disk is there"),
            other => return Err(format!("`{other}` is nothing that happens: see World::happens")),
        }
        if ["kill", "stop", "cut"].contains(&happening.what.as_str()) {
            self.wait_missed(&happening.node);
        }
        Ok(())
    }

    /// Waits until the others see that they are not connected to a node: that comes a moment after it is so,
    /// and commands that are typed next go by it.
    fn wait_missed(&self, gone: &str) {
        let others = self.cluster.nodes().iter().filter(|node| node.name() != gone);
        for node in others.filter(|node| node.is_running()) {
            wait_until(SYNC, "it is seen to be gone", || {
                let resources = node.status().resources;
                let mut peers = resources.iter().flat_map(|resource| &resource.peers);
                peers.all(|peer| peer.node != gone || peer.connection != "Connected")
            });
        }
    }

    /// Types a line and waits for its end.
    pub(super) fn run(&mut self, line: &str) -> Output {
        if let Some(output) = self.service(line) {
            return output;
        }
        let mut output = run_with_limit(&mut self.shell(line), LIMIT);
        output.stdout = self.as_shown(&output.stdout);
        output.stderr = self.as_shown(&output.stderr);
        line.clone_into(&mut output.command);
        let mut words = output.stdout.split_whitespace();
        if let Some(token) = words.find(|word| word.starts_with("hf1-")) {
            self.token = Some(token.to_owned());
        }
        output
    }

    /// Types a line with something that goes on, until it has printed something; then it is interrupted,
    /// or left alone.
    pub(super) fn begin(&mut self, line: &str, interrupt: bool) -> Result<Output, String> {
        let line = line.trim_end_matches('&').trim();
        let mut output = Output {
            command: line.to_owned(),
            status: 0,
            stdout: String::new(),
            stderr: String::new(),
        };
        if line.starts_with("holdfast daemon") {
            // The daemons of the world run since it was made.
            return Ok(output);
        }
        let path = self.cluster.scratch().join("output");
        let file = File::create(&path).map_err(|why| why.to_string())?;
        let log = file.try_clone().map_err(|why| why.to_string())?;
        let mut shell = self.shell(&format!("exec {line}"));
        shell.stdin(Stdio::null()).stdout(file).stderr(log);
        let mut child = shell.spawn().map_err(|why| format!("`{line}` does not start: {why}"))?;
        let printed = || fs::read_to_string(&path).unwrap_or_default();
        let began = holds_within(PATIENCE, || printed().contains('\n'));
        if interrupt {
            // When it has ended by itself, waiting tells.
            let _ = kill_process(Pid::from_child(&child), Signal::INT);
            let mut ended = None;
            holds_within(PATIENCE, || {
                ended = child.try_wait().ok().flatten();
                ended.is_some()
            });
            let Some(status) = ended else {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("`{line}` does not end when it is interrupted"));
            };
            output.status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            if !matches!(output.status, 0 | 130) {
                return Err(format!("`{line}` ended with {status}: {}", printed()));
            }
        } else {
            self.background.push(child);
        }
        if !began {
            return Err(format!("`{line}` prints nothing"));
        }
        output.stdout = self.as_shown(&printed());
        Ok(output)
    }

    /// `systemctl` is for the daemon of this node.
    fn service(&mut self, line: &str) -> Option<Output> {
        let commands = simple_commands(line).ok()?;
        let words: Vec<&str> = commands.first()?.iter().map(String::as_str).collect();
        let ["systemctl", verb, ..] = words[..] else { return None };
        let node = &mut self.cluster[self.here];
        let result = match verb {
            "stop" => {
                node.stop();
                Ok(())
            }
            "restart" if node.is_running() => {
                node.stop();
                node.try_start()
            }
            "start" | "restart" | "enable" if !node.is_running() => node.try_start(),
            _ if node.is_running() => Ok(()),
            _ => Err("inactive".to_owned()),
        };
        let (status, stderr) = match result {
            Ok(()) => (0, String::new()),
            Err(why) => (1, why),
        };
        Some(Output { command: line.to_owned(), status, stdout: String::new(), stderr })
    }

    fn shell(&self, line: &str) -> Command {
        let node = &self.cluster[self.here];
        let line = self.with_own_paths(line);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", &line]).current_dir(node.dir().join("root/home"));
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", node.dir().join("bin").display()));
        command
            .env("HOLDFAST_SOCKET", node.socket())
            .env("HOLDFAST_CONFIG", own_path(node, "/etc/holdfast/holdfast.toml"))
            .env("HOLDFAST_DEV_DIR", node.dir().join("dev"));
        command
    }

    /// The line with the token, and with the paths of this node; what they need to exist is made.
    fn with_own_paths(&self, line: &str) -> String {
        let node = &self.cluster[self.here];
        let line = match &self.token {
            Some(token) => line.replace(TOKEN, token),
            None => line.to_owned(),
        };
        let mut out = String::new();
        let mut rest = line.as_str();
        while let Some(at) = rest.find('/') {
            let before = rest[..at].chars().last().unwrap_or(' ');
            let tail = &rest[at..];
            let end = |c: char| c.is_whitespace() || "'\",;|&)(".contains(c);
            let path = &tail[..tail.find(end).unwrap_or(tail.len())];
            out.push_str(&rest[..at]);
            rest = &tail[path.len()..];
            let starts = !before.is_alphanumeric() && !"/.:_-~".contains(before);
            let own = OWN.iter().any(|own| path.starts_with(own));
            if starts && own && !REAL.iter().any(|real| path.starts_with(real)) {
                out.push_str(&self.made(node, path).display().to_string());
            } else {
                // A URI has a path behind a `=`.
                match path.find("=/") {
                    Some(at) if at + 1 < path.len() => {
                        out.push_str(&path[..=at]);
                        rest = &tail[at + 1..];
                    }
                    _ => out.push_str(path),
                }
            }
        }
        out + rest
    }

    /// Where a path of this node is. A device that is not there is made.
    fn made(&self, node: &Node, path: &str) -> PathBuf {
        if let Some(below) = path.strip_prefix("/backup") {
            let shared = self.cluster.scratch().join("shared/backup");
            fs::create_dir_all(&shared).expect("the directory can be made");
            return shared.join(below.trim_start_matches('/'));
        }
        let own = own_path(node, path);
        if path.starts_with("/run/") || path.starts_with("/dev/holdfast") {
            return own;
        }
        let directory = if path.starts_with("/mnt") { Some(own.as_path()) } else { own.parent() };
        fs::create_dir_all(directory.expect("it is below the node's")).expect("it can be made");
        if path.starts_with("/dev/") && !own.exists() {
            files::make_sparse(&own, DISK);
        }
        own
    }

    /// What was printed, as it is where nobody has files of another node.
    fn as_shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for node in self.cluster.nodes() {
            for (own, shown) in [
                ("run/", "/run/holdfast/"),
                ("dev/", "/dev/holdfast/"),
                ("state", "/var/lib/holdfast"),
                ("root", ""),
            ] {
                text = text.replace(&node.dir().join(own).display().to_string(), shown);
            }
        }
        text.replace(&self.cluster.scratch().join("shared").display().to_string(), "")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.background {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn own_path(node: &Node, path: &str) -> PathBuf {
    let own = [
        ("/run/holdfast", "run"),
        ("/dev/holdfast", "dev"),
        ("/var/lib/holdfast", "state"),
        ("/run", "run"),
    ];
    for (shown, dir) in own {
        if let Some(below) = path.strip_prefix(shown) {
            return node.dir().join(dir).join(below.trim_start_matches('/'));
        }
    }
    node.dir().join("root").join(path.trim_start_matches('/'))
}

/// Makes what is there on every machine.
fn prepare(node: &Node) {
    let own = ["dev/vg0", "etc/holdfast", "home", "mnt", "srv", "var/lib/journals"];
    for dir in own.map(|dir| format!("root/{dir}")).iter().chain([&"bin".to_owned()]) {
        fs::create_dir_all(node.dir().join(dir)).expect("the directory can be made");
    }
    let program = |name: &str, script: &str| {
        files::make_program(&node.dir().join("bin").join(name), &format!("#!/bin/sh\n{script}\n"));
    };
    let binary = fs::canonicalize(Path::new(&binary())).expect("the command is there");
    program("holdfast", &format!("exec {} \"$@\"", binary.display()));
    // The line that starts a service and goes on with a command: see [`World::service`] for others.
    program("systemctl", "exec holdfast --quiet status > /dev/null");
    program("journalctl", &format!("cat {}", node.dir().join("log").display()));
    files::make_sparse(&own_path(node, "/dev/vg0/db"), DISK);
    // The packages bring one in which nothing is set.
    fs::write(own_path(node, "/etc/holdfast/holdfast.toml"), "").expect("it can be written");
}
