use crate::program::{Output, kill, run_with_limit};
use crate::proxy::Proxy;
use crate::scratch::clean_up;
use crate::wait::{holds_within, wait_until};
use holdfast_api::status::{NodeStatus, PeerStatus, ResourceStatus};
use holdfast_nbd::{Client, ClientError, ConnectOptions, NbdUri};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a daemon may take to be ready, and to stop.
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a request to the control API may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How many lines of a log a failed test prints.
const LOG_LINES: usize = 80;

/// A node: a directory with all that it has, and a daemon while it runs. The daemon is killed
/// with the value, and what it mounted goes.
#[derive(Debug)]
pub struct Node {
    name: String,
    binary: PathBuf,
    dir: PathBuf,
    /// Where it listens; picked at the first start and kept.
    address: Option<SocketAddr>,
    /// Where it is to listen at the first start.
    listen: String,
    /// Stands in front of it, when other nodes are to reach it that way.
    proxy: Option<Proxy>,
    arguments: Vec<String>,
    /// The program that starts the daemon, with its own arguments; none: it is started as it is.
    starter: Vec<String>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Node {
    /// A node in a directory of its own, which is made. Its daemon does not run yet.
    ///
    /// # Panics
    /// When the directory cannot be made.
    #[must_use]
    pub fn new(binary: &Path, name: &str, dir: &Path) -> Self {
        for part in ["run", "dev"] {
            fs::create_dir_all(dir.join(part)).expect("the node's directory can be made");
        }
        Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            address: None,
            listen: format!("{}:0", own_address()),
            proxy: None,
            arguments: Vec::new(),
            starter: Vec::new(),
            environment: Vec::new(),
            child: None,
        }
    }

    /// The same with a proxy in front of it, which it tells the other nodes as its address.
    #[must_use]
    pub fn behind_proxy(mut self) -> Self {
        self.proxy = Some(Proxy::new());
        self
    }

    /// The same that listens elsewhere than on a free port of an address of its own.
    #[must_use]
    pub fn listening_on(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// The same with more arguments for `holdfast daemon`.
    #[must_use]
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|word| (*word).to_owned()));
        self
    }

    /// From now on this program, with these arguments and the daemon's command line behind them,
    /// starts the daemon; none, and it is started as it is. It must become the daemon itself
    /// (`exec "$@"`).
    pub fn start_by(&mut self, starter: &[&str]) {
        self.starter = starter.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it keeps what it knows.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/control.sock")
    }

    /// The backing file that it uses for a resource.
    #[must_use]
    pub fn disk(&self, resource: &str) -> PathBuf {
        self.dir.join(format!("{resource}.disk"))
    }

    /// Where its daemon listens for other nodes.
    ///
    /// # Panics
    /// Before its first start.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.expect("the daemon has been started")
    }

    /// The proxy in front of it.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the node was made with a proxy")
    }

    /// Whether its daemon was started and not stopped or killed from here.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The process of its daemon.
    ///
    /// # Panics
    /// While it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("node {}: {why}", self.name);
        }
    }

    /// Starts the daemon with these variables in its environment, from now on at each start, and waits
    /// until it is ready.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[track_caller]
    pub fn start_with_environment(&mut self, variables: &[(&str, &str)]) {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        self.environment = variables.iter().map(owned).collect();
        self.start();
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// When it ends before, with the end of its log, or takes too long (it is killed then).
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "node {} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.map_err(|why| format!("its log cannot be opened: {why}"))?;
        let log_start = log.metadata().map_or(0, |meta| meta.len());
        let listen = self.address.map_or_else(|| self.listen.clone(), |at| at.to_string());
        let mut command = match &self.starter[..] {
            [] => Command::new(&self.binary),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&self.binary);
                command
            }
        };
        command.arg("daemon").args(["--name", &self.name, "--listen", &listen]);
        command.arg("--state-dir").arg(self.state_dir()).arg("--socket").arg(self.socket());
        if let Some(proxy) = &self.proxy {
            command.args(["--advertise", &proxy.address().to_string()]);
        }
        command.args(&self.arguments);
        // Each node has a place of its own for links to devices.
        command.env("HOLDFAST_DEV_DIR", self.dir.join("dev")).env_remove("NOTIFY_SOCKET");
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let stdout = log.try_clone().map_err(|why| format!("its log cannot be used: {why}"))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(log);
        let child = command.spawn().map_err(|why| format!("its daemon does not start: {why}"))?;
        let child = self.child.insert(child);

        let marker = format!("ready: node {}, listening on ", self.name);
        let path = self.dir.join("log");
        let mut found = Ok(None);
        holds_within(START_LIMIT, || {
            let log = read_from(&path, log_start);
            let ended = child.try_wait();
            found = match (ready_address(&log, &marker), ended) {
                (Some(address), _) => Ok(Some(address)),
                (None, Ok(Some(status))) => Err(status),
                (None, _) => Ok(None),
            };
            !matches!(found, Ok(None))
        });
        match found {
            Ok(Some(address)) => {
                self.address = Some(address);
                if let Some(proxy) = &self.proxy {
                    proxy.set_target(address);
                }
                Ok(())
            }
            Ok(None) => {
                self.kill9();
                Err(format!("its daemon was not ready after {START_LIMIT:?}"))
            }
            Err(status) => {
                self.child = None;
                let log = read_from(&self.log_path(), log_start);
                Err(format!("its daemon ended before it was ready, with {status}:\n{log}"))
            }
        }
    }

    /// Kills the daemon with SIGKILL and waits for its end.
    ///
    /// # Panics
    /// While it does not run.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        // When it has ended by itself, waiting tells.
        let _ = child.kill();
        child.wait().expect("it is a child of this process");
    }

    /// Stops the daemon with SIGTERM.
    ///
    /// # Panics
    /// While it does not run; when it does not end with 0, or not in time.
    #[track_caller]
    pub fn stop(&mut self) {
        let child = self.child.as_mut().expect("the daemon runs");
        kill(child.id(), Signal::TERM);
        let mut status: Option<ExitStatus> = None;
        let ended = holds_within(STOP_LIMIT, || {
            status = child.try_wait().expect("it is a child of this process");
            status.is_some()
        });
        if !ended {
            self.kill9();
            panic!("node {} did not stop within {STOP_LIMIT:?}", self.name);
        }
        self.child = None;
        let status = status.expect("it has ended");
        assert!(status.success(), "node {} stopped with {status}", self.name);
    }

    /// Stops it in good order and starts it again at the same address.
    ///
    /// # Panics
    /// As [`Self::stop`] and [`Self::start`].
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Sends the daemon a signal.
    ///
    /// # Panics
    /// While it does not run.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Stops the daemon's process in its tracks until [`Self::thaw`]: it answers nobody, and its
    /// connections stand. All its threads have stopped when this returns.
    ///
    /// # Panics
    /// While it does not run.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // The signal is only sent: its threads stop one after the other.
        let tasks = format!("/proc/{}/task", self.pid());
        wait_until(START_LIMIT, "all threads of the daemon stand still", || {
            fs::read_dir(&tasks).into_iter().flatten().flatten().all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // `PID (NAME) STATE ...`
                stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
            })
        });
    }

    /// Lets a frozen process go on.
    ///
    /// # Panics
    /// While it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// The memory that the daemon's process has in use, in bytes (VmRSS).
    ///
    /// # Panics
    /// While it does not run.
    #[must_use]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("a process has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).map(str::trim);
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("it has a VmRSS") * 1024
    }

    /// Runs a command of this node: `holdfast --socket ... ARGUMENTS`.
    ///
    /// # Panics
    /// When it takes longer than a minute.
    #[track_caller]
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        run_with_limit(&mut self.command(arguments), COMMAND_LIMIT)
    }

    /// The command line that [`Self::cli`] runs.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.socket()).args(arguments);
        command.env_remove("HOLDFAST_SOCKET");
        command
    }

    /// Runs a command that must end with 0; what it printed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.cli(arguments).ok()
    }

    /// Runs a command that must be refused with this exit status and these words in its error.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], status: i32, words: &str) {
        let output = self.cli(arguments);
        assert_eq!(output.status, status, "{output}");
        assert!(output.stderr.contains(words), "no {words:?} in the error of {output}");
    }

    /// Runs a command with `--json`; what it printed.
    ///
    /// # Panics
    /// When it does not end with 0 or prints something else.
    #[track_caller]
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why} in {text:?}"))
    }

    /// What the node knows, straight from its API.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let text = self.get("/v1/status").unwrap_or_else(|why| panic!("node {}: {why}", self.name));
        serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why} in {text:?}"))
    }

    /// A resource as the node sees it.
    ///
    /// # Panics
    /// When it does not know it.
    #[track_caller]
    #[must_use]
    pub fn resource(&self, name: &str) -> ResourceStatus {
        let resources = self.status().resources;
        let found = resources.into_iter().find(|resource| resource.name == name);
        found.unwrap_or_else(|| panic!("node {} has no resource {name}", self.name))
    }

    /// A peer of a resource as the node sees it.
    ///
    /// # Panics
    /// When it does not know it.
    #[track_caller]
    #[must_use]
    pub fn peer(&self, resource: &str, peer: &str) -> PeerStatus {
        let peers = self.resource(resource).peers;
        let found = peers.into_iter().find(|status| status.node == peer);
        found.unwrap_or_else(|| panic!("{resource} on node {} has no peer {peer}", self.name))
    }

    /// Waits until a resource is as `condition` says.
    ///
    /// # Panics
    /// When it is not within `limit`, with how it is then.
    #[track_caller]
    pub fn wait_resource(
        &self,
        name: &str,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&ResourceStatus) -> bool,
    ) -> ResourceStatus {
        let mut last = None;
        let held = holds_within(limit, || {
            let resources = self.status().resources;
            last = resources.into_iter().find(|resource| resource.name == name);
            last.as_ref().is_some_and(&mut condition)
        });
        let shown = serde_json::to_string_pretty(&last).unwrap_or_default();
        assert!(held, "{what}: not so on node {} after {limit:?}: {shown}", self.name);
        last.expect("the condition held for something")
    }

    /// Waits until a peer of a resource is as `condition` says.
    ///
    /// # Panics
    /// When it is not within `limit`, with how it is then.
    #[track_caller]
    pub fn wait_peer(
        &self,
        resource: &str,
        peer: &str,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&PeerStatus) -> bool,
    ) -> PeerStatus {
        let of = |status: &ResourceStatus| status.peers.iter().find(|p| p.node == peer).cloned();
        let status = self.wait_resource(resource, limit, what, |status| {
            of(status).is_some_and(|peer| condition(&peer))
        });
        of(&status).expect("the condition held for it")
    }

    /// Waits until this node and all its peers have the same up-to-date data.
    ///
    /// # Panics
    /// When they do not within `limit`.
    #[track_caller]
    pub fn wait_synced(&self, name: &str, limit: Duration) -> ResourceStatus {
        self.wait_resource(name, limit, "in sync with all peers", |status| {
            status.disk.state == "UpToDate"
                && status.peers.iter().all(|peer| {
                    peer.connection == "Connected"
                        && peer.replication == "Established"
                        && peer.disk == "UpToDate"
                        && peer.out_of_sync_bytes == 0
                })
        })
    }

    /// A value of the node's metrics: the sum over all lines of that name whose labels hold all
    /// of `labels`; `None` when there is no such line.
    ///
    /// # Panics
    /// When the node does not answer.
    #[track_caller]
    #[must_use]
    pub fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.get("/metrics").unwrap_or_else(|why| panic!("node {}: {why}", self.name));
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (in_braces, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let wanted = labels.iter().all(|label| in_braces.contains(label));
            if wanted { value.split(' ').next()?.parse::<f64>().ok() } else { None }
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// Where the export of a resource is.
    #[must_use]
    pub fn uri(&self, resource: &str) -> NbdUri {
        NbdUri::unix(self.dir.join("run/nbd.sock"), resource)
    }

    /// Opens the export of a resource.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[track_caller]
    #[must_use]
    pub fn open(&self, resource: &str) -> Client {
        open_export(&self.uri(resource), &ConnectOptions::default())
            .unwrap_or_else(|why| panic!("{resource} cannot be opened on {}: {why}", self.name))
    }

    /// Everything that its daemons have logged.
    #[must_use]
    pub fn log(&self) -> String {
        read_from(&self.log_path(), 0)
    }

    /// Waits until the log has this text.
    ///
    /// # Panics
    /// When it has not within 30 seconds.
    #[track_caller]
    pub fn wait_log(&self, text: &str) {
        let what = format!("{text:?} in the log of node {}", self.name);
        wait_until(Duration::from_secs(30), &what, || self.log().contains(text));
    }

    /// Removes everything that the node has, as if its machine were new. Its address stays.
    ///
    /// # Panics
    /// While its daemon runs, or when something cannot be removed.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "the daemon of {} runs", self.name);
        clean_up(&self.dir);
        let state = self.state_dir();
        if state.exists() {
            fs::remove_dir_all(state).expect("the state can be removed");
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The body of a `GET` of the control API.
    ///
    /// # Errors
    /// When it is not answered with 200, or not in time.
    pub fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) =
            answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no answer"))?;
        if head.split(' ').nth(1) == Some("200") {
            Ok(body.to_owned())
        } else {
            Err(io::Error::other(format!("{path} was answered with {answer}")))
        }
    }
}

/// Opens an export that is there, or comes in a moment: of a node that becomes Primary by itself, as
/// after a start, the status says so before clients are let in.
///
/// # Errors
/// Why it cannot be opened.
pub(crate) fn open_export(uri: &NbdUri, how: &ConnectOptions) -> Result<Client, ClientError> {
    let mut opened = Client::connect(uri, how);
    holds_within(START_LIMIT, || {
        let early = |why: &ClientError| why.to_string().contains("is not Primary on this node");
        let is_early = opened.as_ref().is_err_and(early);
        if is_early {
            opened = Client::connect(uri, how);
        }
        !is_early
    });
    opened
}

/// An address of loopback that no other node of this machine has. So nobody takes the node's port
/// while its daemon does not run, as connections from 127.0.0.1 would.
fn own_address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let byte = |number: u32| u8::try_from(number % 250 + 2).expect("it is below 252");
    Ipv4Addr::new(127, byte(process), byte(process / 250), byte(count))
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!("--- the end of the log of node {}\n{}", self.name, shown.join("\n"));
        }
        clean_up(&self.dir);
    }
}

/// A file from `start` on; nothing when it cannot be read.
fn read_from(path: &Path, start: u64) -> String {
    let text = fs::read(path).unwrap_or_default();
    let start = usize::try_from(start).map_or(text.len(), |start| start.min(text.len()));
    String::from_utf8_lossy(&text[start..]).into_owned()
}

/// The address in a complete line with the marker.
fn ready_address(log: &str, marker: &str) -> Option<SocketAddr> {
    let complete = &log[..=log.rfind('\n')?];
    let rest = complete.lines().find_map(|line| line.split_once(marker).map(|(_, rest)| rest))?;
    rest.split([' ', ',', '\x1b']).next()?.parse().ok()
}
