//! A daemon of the demo.

use super::report::shell_words;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a daemon may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(15);
/// How much of a log's end is looked at, in bytes.
const TAIL: u64 = 16 << 10;
/// How many lines of it are shown.
const TAIL_LINES: usize = 15;

/// A node: a directory, and a daemon while it runs.
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: &'static str,
    dir: PathBuf,
    /// Where it listens; known once it was ready, and kept over a restart.
    address: Option<String>,
    child: Option<Child>,
    /// Where in the log the present run starts.
    log_start: u64,
}

impl Node {
    pub(crate) fn new(name: &'static str, dir: &Path) -> Self {
        Self { name, dir: dir.join(name), address: None, child: None, log_start: 0 }
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Its backing file.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// The process of its daemon, while there is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Starts the daemon; the command that did it.
    pub(crate) fn start(&mut self, binary: &Path) -> Result<String, String> {
        let fail = |why: std::io::Error| format!("its daemon was not started: {why}");
        let (socket, state) = (self.socket(), self.dir.join("state"));
        let links = self.dir.join("dev");
        let listen = self.address.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let (socket, state) = (socket.display().to_string(), state.display().to_string());
        let words = [
            "daemon",
            "--name",
            self.name,
            "--state-dir",
            &state,
            "--listen",
            &listen,
            "--socket",
            &socket,
        ];
        let log = File::options().create(true).append(true).open(self.log()).map_err(fail)?;
        self.log_start = log.metadata().map_err(fail)?.len();
        let child = Command::new(binary)
            .args(words)
            // Each node of this machine has links of its own to its devices.
            .env("HOLDFAST_DEV_DIR", &links)
            .env_remove("NOTIFY_SOCKET")
            .env_remove(crate::config::FILE)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(fail)?)
            .stderr(log)
            // Ctrl-C is for the demo, which then stops its daemons in good order.
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        self.child = Some(child);
        Ok(format!("HOLDFAST_DEV_DIR={} holdfast {} &", links.display(), shell_words(&words)))
    }

    /// Waits until the daemon says that it is ready.
    pub(crate) async fn ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let log = read_from(&self.log(), self.log_start).unwrap_or_default();
            if let Some(address) = ready_address(&log, self.name) {
                self.address = Some(address);
                return Ok(());
            }
            let child = self.child.as_mut().ok_or("its daemon does not run")?;
            if let Ok(Some(status)) = child.try_wait() {
                self.child = None;
                return Err(format!("its daemon ended before it was ready, with {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("its daemon was not ready after {} s", READY_LIMIT.as_secs()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the daemon with SIGKILL; the command that would do it.
    pub(crate) async fn kill(&mut self) -> Result<String, String> {
        let mut child = self.child.take().ok_or("its daemon does not run")?;
        let pid = child.id().ok_or("its daemon has ended by itself")?;
        child.kill().await.map_err(|why| format!("its daemon was not killed: {why}"))?;
        Ok(format!("kill -KILL {pid}"))
    }

    /// Asks the daemon to stop.
    pub(crate) fn ask_to_stop(&mut self) {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It is this process's child and not yet waited for, so the number is its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Waits until the daemon has stopped; kills it when it has not by `deadline`.
    pub(crate) async fn stopped(&mut self, deadline: Instant) {
        let Some(mut child) = self.child.take() else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, child.wait()).await.is_err() {
            // It may have ended just now.
            let _ = child.kill().await;
        }
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> Vec<String> {
        let len = std::fs::metadata(self.log()).map_or(0, |meta| meta.len());
        let text = read_from(&self.log(), len.saturating_sub(TAIL)).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
    }
}

/// A file from `start` on, as far as it may go.
fn read_from(path: &Path, start: u64) -> std::io::Result<String> {
    const MOST: u64 = 1 << 20;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The address in `ready: node NAME, listening on ADDR`.
fn ready_address(log: &str, name: &str) -> Option<String> {
    let marker = format!("ready: node {name}, listening on ");
    // A line that has no end yet may not have all of the address.
    let complete = &log[..log.rfind('\n')? + 1];
    let rest = complete.lines().find_map(|line| line.split_once(&marker).map(|(_, rest)| rest))?;
    let address = rest.split([' ', ',', '\x1b']).next()?;
    (!address.is_empty()).then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_found_when_it_is_whole() {
        let log = "x\nready: node alpha, listening on 127.0.0.1:4567\nmore";
        assert_eq!(ready_address(log, "alpha").as_deref(), Some("127.0.0.1:4567"));
        assert_eq!(ready_address(log, "beta"), None);
        assert_eq!(ready_address("ready: node alpha, listening on 127.0.0.1:45", "alpha"), None);
        assert_eq!(ready_address("", "alpha"), None);
    }

    /// A stand-in for the daemon: a shell script. A process of its own writes it: what this one has
    /// open for writing, a program that another test is just starting has open for a moment, too,
    /// and then it cannot be run.
    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("stand-in");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
        let mut shell = std::process::Command::new("sh");
        assert!(shell.args(["-c", write]).arg(&path).arg(text).status().unwrap().success());
        path
    }

    #[tokio::test]
    async fn a_daemon_is_started_found_ready_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::new("alpha", dir.path());
        std::fs::create_dir(dir.path().join("alpha")).unwrap();
        let text = "echo \"ready: node $3, listening on 127.0.0.1:7\"; exec sleep 100";
        let binary = script(dir.path(), text);
        let command = node.start(&binary).unwrap();
        assert!(command.contains("--listen 127.0.0.1:0"), "{command}");
        node.ready().await.unwrap();
        assert!(node.pid().is_some());
        node.kill().await.unwrap();
        assert_eq!(node.pid(), None);
        let command = node.start(&binary).unwrap();
        assert!(command.contains("--listen 127.0.0.1:7"), "{command}");
        node.ready().await.unwrap();
        node.ask_to_stop();
        node.stopped(Instant::now() + Duration::from_secs(10)).await;
        assert_eq!(node.log_tail().len(), 2);
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_is_an_error_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Node::new("alpha", dir.path());
        std::fs::create_dir(dir.path().join("alpha")).unwrap();
        let binary = script(dir.path(), "echo 'no room' >&2; exit 7");
        node.start(&binary).unwrap();
        let why = node.ready().await.unwrap_err();
        assert!(why.contains("ended before it was ready"), "{why}");
        assert_eq!(node.log_tail(), ["no room"]);
        assert!(node.kill().await.is_err());
    }
}
