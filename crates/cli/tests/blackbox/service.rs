//! The daemon under a service manager, which the test plays: readiness, state, signs of life, reloads,
//! and sockets that outlive a restart.

use crate::{MIB, SOON, binary};
use holdfast_nbd::{Client, ConnectOptions};
use holdfast_testkit::{BadDisk, Cluster, Node, Output, Scratch, wait_until};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Sockets for the daemon get numbers from here on, out of the way of those that it takes them by.
const KEPT_FROM: i32 = 100;

/// What a service manager does for a daemon.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    /// The messages so far, each as its assignments.
    heard: Vec<Vec<String>>,
    /// The sockets that were given to it, by name.
    kept: BTreeMap<String, OwnedFd>,
    watchdog: Option<Duration>,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket can be made");
        socket.set_read_timeout(Some(SOON)).expect("it is a limit");
        Self { socket, path, heard: Vec::new(), kept: BTreeMap::new(), watchdog: None }
    }

    /// Starts the daemon with the sockets that are kept.
    fn start(&self, node: &mut Node) {
        let mut script = format!("export NOTIFY_SOCKET={}\n", self.path.display());
        if let Some(limit) = self.watchdog {
            script += &format!("export WATCHDOG_PID=$$ WATCHDOG_USEC={}\n", limit.as_micros());
        }
        let mut given = Vec::new();
        for (at, kept) in self.kept.values().enumerate() {
            let far = fcntl_dupfd_cloexec(kept, KEPT_FROM).expect("there is a number left");
            fcntl_setfd(&far, FdFlags::empty()).expect("it is open");
            let number = far.as_raw_fd();
            script += &format!("exec {}<&{number} {number}<&-\n", at + 3);
            given.push(far);
        }
        if !given.is_empty() {
            let names = self.kept.keys().cloned().collect::<Vec<_>>().join(":");
            let count = given.len();
            script += &format!("export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}\n");
        }
        node.start_by(&["bash", "-c", &format!("{script}exec \"$@\""), "bash"]);
        node.start();
    }

    /// Takes the next message in.
    fn hear(&mut self) -> &[String] {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut text)];
        let got = recvmsg(&self.socket, &mut into, &mut with, RecvFlags::CMSG_CLOEXEC);
        let got = got.expect("the daemon says something in time");
        assert!(!got.flags.contains(ReturnFlags::TRUNC));
        let mut sockets: Vec<OwnedFd> = Vec::new();
        for message in with.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                sockets.extend(fds);
            }
        }
        let text = std::str::from_utf8(&text[..got.bytes]).expect("messages are text");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME="));
        let is = |word: &str| lines.iter().any(|line| line == word);
        if is("FDSTORE=1") {
            let [socket] = <[OwnedFd; 1]>::try_from(sockets).expect("one socket a message");
            let before = self.kept.insert(name.expect("it has a name").to_owned(), socket);
            assert!(before.is_none(), "{lines:?}: it is kept already");
        } else if is("FDSTOREREMOVE=1") {
            self.kept.remove(name.expect("it has a name"));
        }
        self.heard.push(lines);
        self.heard.last().expect("it was just put there")
    }

    /// Listens until a message has this line; the message.
    fn hear_line(&mut self, line: &str) -> Vec<String> {
        let limit = Instant::now() + SOON;
        loop {
            let message = self.hear();
            if message.iter().any(|found| found == line) {
                return message.to_vec();
            }
            assert!(Instant::now() < limit, "no {line} in {:?}", self.heard);
        }
    }

    /// Whether nothing is said for so long.
    fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).expect("it is a limit");
        let silent = self.socket.recv(&mut [0; 4096]).is_err();
        self.socket.set_read_timeout(Some(SOON)).expect("it is a limit");
        silent
    }
}

/// A node under a service manager, started, with the resource `r0`.
fn managed(arguments: &[&str]) -> (Scratch, Manager, Node) {
    let scratch = Scratch::new();
    let mut manager = Manager::new(scratch.path());
    let node = Node::new(Path::new(&binary()), "alpha", &scratch.join("alpha"));
    let mut node = node.with_arguments(arguments);
    manager.start(&mut node);
    manager.hear_line("READY=1");
    let disk = node.disk("r0").display().to_string();
    node.ok(&["create", "r0", "--disk", &disk, "--size", "4M"]);
    (scratch, manager, node)
}

fn address(socket: &OwnedFd) -> SocketAddr {
    let at = rustix::net::getsockname(socket).expect("it is a socket");
    SocketAddr::try_from(at).expect("it is a TCP port")
}

#[test]
fn who_connects_while_the_daemon_is_restarted_is_served_afterwards() {
    let (_scratch, mut manager, mut node) = managed(&["--nbd-listen", "127.0.0.1:0"]);
    assert_eq!(manager.kept.keys().collect::<Vec<_>>(), ["control", "nbd", "nbd-tcp"]);
    let port = address(&manager.kept["nbd-tcp"]);
    let mut written = node.open("r0");
    written.write_at(&[7; 4096], 0).unwrap();
    written.flush().unwrap();
    drop(written);
    for cleanly in [true, false] {
        if cleanly {
            node.stop();
            let message = manager.hear_line("STOPPING=1");
            assert!(message.iter().any(|line| line.starts_with("STATUS=")), "{message:?}");
        } else {
            node.kill9();
        }
        // Nobody is there now, and nobody is refused.
        let unix = UnixStream::connect(node.socket().with_file_name("nbd.sock")).unwrap();
        let mut tcp = TcpStream::connect(port).unwrap();
        let mut command = node.command(&["--json", "status", "r0"]);
        let asking = thread::spawn(move || -> Output { holdfast_testkit::run(&mut command) });
        manager.start(&mut node);
        let mut client = Client::over_unix(unix, "r0", &ConnectOptions::default()).unwrap();
        let mut found = [0; 4096];
        client.read_at(&mut found, 0).unwrap();
        assert_eq!(found, [7; 4096]);
        let mut greeting = [0; 8];
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGIC");
        assert!(asking.join().unwrap().ok().contains("\"Primary\""));
        // It has them already, and is not asked again.
        let before = manager.heard.len();
        manager.hear_line("READY=1");
        let said = manager.heard[before..].concat();
        assert!(!said.iter().any(|line| line.starts_with("FDSTORE")), "{said:?}");
    }
    node.stop();
}

#[test]
fn a_socket_that_is_not_wanted_any_more_is_given_back() {
    let (scratch, mut manager, mut node) = managed(&["--nbd-listen", "127.0.0.1:0"]);
    node.stop();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    manager.kept.insert("stranger".into(), listener.into());
    // It was at another address before.
    let elsewhere = ["--nbd-listen", "127.0.0.2:0"];
    let mut moved = Node::new(Path::new(&binary()), "alpha", &scratch.join("alpha"));
    moved = moved.with_arguments(&elsewhere);
    manager.start(&mut moved);
    manager.hear_line("READY=1");
    assert_eq!(manager.kept.keys().collect::<Vec<_>>(), ["control", "nbd", "nbd-tcp"]);
    let at = address(&manager.kept["nbd-tcp"]);
    assert_eq!(at.ip().to_string(), "127.0.0.2");
    moved.wait_resource("r0", SOON, "it is Primary again", |r| r.role == "Primary");
    moved.stop();
}

#[test]
fn a_sign_of_life_comes_in_time_and_a_hung_process_gives_none() {
    let scratch = Scratch::new();
    let mut manager = Manager::new(scratch.path());
    // The daemon gives one after a quarter of that, and this machine may stand still for seconds.
    let limit = Duration::from_secs(10);
    manager.watchdog = Some(limit);
    let mut node = Node::new(Path::new(&binary()), "alpha", &scratch.join("alpha"));
    manager.start(&mut node);
    manager.hear_line("READY=1");
    for _ in 0..3 {
        let since = Instant::now();
        manager.hear_line("WATCHDOG=1");
        assert!(since.elapsed() < limit, "after {:?}", since.elapsed());
    }
    node.freeze();
    while !manager.is_silent_for(limit) {}
    node.thaw();
    manager.hear_line("WATCHDOG=1");
    node.stop();
}

#[test]
fn a_disk_that_does_not_answer_is_no_hang() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("there is no disk here that can stand still ({why}): nothing is tested");
        return;
    }
    let scratch = Scratch::new();
    let mut manager = Manager::new(scratch.path());
    manager.watchdog = Some(Duration::from_secs(2));
    let mut node = Node::new(Path::new(&binary()), "alpha", &scratch.join("alpha"));
    manager.start(&mut node);
    let disk = BadDisk::new(scratch.path(), "disk", 4 * MIB);
    node.ok(&["create", "r0", "--disk", &disk.text()]);
    let mut client = node.open("r0");
    disk.stall(true);
    let asking = thread::spawn(move || {
        let read = client.read_at(&mut [0; 4096], MIB);
        (read, client)
    });
    // What was said already may be of the time before.
    while !manager.is_silent_for(Duration::from_millis(1)) {}
    for _ in 0..3 {
        manager.hear_line("WATCHDOG=1");
    }
    assert!(!asking.is_finished(), "the disk answers");
    disk.stall(false);
    asking.join().unwrap().0.unwrap();
    node.stop();
}

#[test]
fn a_reload_begins_and_ends_and_the_state_is_told() {
    let (_scratch, mut manager, mut node) = managed(&[]);
    manager.hear_line("STATUS=1 resource: 1 Primary");
    let before = monotonic();
    node.signal(Signal::HUP);
    let message = manager.hear_line("RELOADING=1");
    let at = micros(&message).expect("it says when");
    assert!((before..=monotonic()).contains(&at), "{before} {at}");
    let message = manager.hear_line("READY=1");
    assert!(message.contains(&"STATUS=the configuration was read again".to_owned()));
    node.ok(&["secondary", "r0"]);
    manager.hear_line("STATUS=1 resource: 1 Secondary");
    node.ok(&["down", "r0"]);
    manager.hear_line("STATUS=1 resource: 1 down");
    node.stop();
}

#[test]
fn a_service_starts_without_an_address_that_the_machine_does_not_have_yet() {
    // One that is for documentation only (RFC 5737).
    let (_scratch, _manager, mut node) = managed(&["--nbd-listen", "192.0.2.1:0"]);
    node.wait_log("this machine does not have the address 192.0.2.1:0");
    let output = node.cli(&["doctor", "--json"]);
    assert!(output.stdout.contains("which is no address of this machine"), "{output}");
    node.stop();
}

/// The clock that reloads are told by, in microseconds.
fn monotonic() -> u64 {
    let now = sd_notify::NotifyState::monotonic_usec_now().expect("there is a clock").to_string();
    micros(&[now]).expect("it is a time")
}

/// The time in a message.
fn micros(message: &[String]) -> Option<u64> {
    message.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC="))?.parse().ok()
}

/// Waits until a node has heard whether r0 is to come up by itself.
#[track_caller]
fn wait_auto_up(node: &Node, due: &str) {
    wait_until(SOON, "the option is known", || {
        node.json(&["get", "r0", "svc-auto-up"])["value"] == due
    });
}

#[test]
fn what_is_not_to_come_up_by_itself_waits_for_up() {
    let mut cluster = Cluster::new(&binary(), 2);
    cluster.resource("r0", MIB, 2);
    cluster.resource("r1", MIB, 1);
    cluster[0].ok(&["set", "r0", "svc-auto-up=no"]);
    cluster[0].refused(&["set", "r0", "svc-auto-up=maybe"], 1, "must be yes or no");
    wait_auto_up(&cluster[1], "no");
    for node in [0, 1] {
        cluster[node].restart();
        assert_eq!(cluster[node].resource("r0").role, "Unknown");
    }
    cluster[0].wait_log("resource r0 stays down: svc-auto-up is no");
    cluster[0].wait_resource("r1", SOON, "Primary again", |r| r.role == "Primary");
    // What it was is not forgotten.
    for node in [0, 1] {
        cluster[node].ok(&["up", "all"]);
    }
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    cluster[0].wait_synced("r0", SOON);
    // One that was put down by hand stays so, whatever the option says.
    cluster[0].ok(&["set", "r0", "svc-auto-up=yes"]);
    wait_auto_up(&cluster[1], "yes");
    cluster[1].ok(&["down", "r0"]);
    for node in [0, 1] {
        cluster[node].restart();
    }
    assert_eq!(cluster[1].resource("r0").role, "Unknown");
    cluster[1].ok(&["up", "r0"]);
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    cluster[0].wait_synced("r0", SOON);
}

/// The unit of the daemon has mounts of its own: those of FUSE end with it, and what is left of the
/// device cannot be known by them.
#[test]
fn a_device_of_a_dead_daemon_with_mounts_of_its_own_is_cleaned_up() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("there are no local devices here ({why}): nothing is tested");
        return;
    }
    let scratch = Scratch::new();
    let mut node = Node::new(Path::new(&binary()), "alpha", &scratch.join("alpha"));
    node.start_by(&["unshare", "--mount", "--propagation", "slave"]);
    node.start();
    let disk = node.disk("r0").display().to_string();
    node.ok(&["create", "r0", "--disk", &disk, "--size", "4M"]);
    let link = PathBuf::from(node.ok(&["device", "r0", "--via", "fuse"]).trim());
    let device = std::fs::canonicalize(&link).unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&node.dir().display().to_string()), "{mounts}");
    let backing = format!("/sys/block/{}/loop/backing_file", device.file_name().unwrap().display());
    let user = std::fs::File::open(&device).unwrap();
    node.kill9();
    node.start();
    assert!(std::fs::symlink_metadata(&link).is_err(), "the link is gone at once");
    drop(user);
    // Free, or somebody else's already.
    let is_ours = || std::fs::read_to_string(&backing).is_ok_and(|path| path == "/disk\n");
    wait_until(SOON, "the loop device is free", || !is_ours());
    node.ok(&["device", "r0", "--via", "fuse"]);
    node.ok(&["device", "r0", "--remove"]);
    node.stop();
}

#[test]
fn a_node_without_a_cluster_says_what_comes_first() {
    let scratch = Scratch::new();
    let mut node = Node::new(Path::new(&binary()), "alpha", &scratch.join("alpha"));
    node.refused(&["status"], 3, "the daemon was not reached");
    node.start();
    let status = node.ok(&["status"]);
    assert!(status.contains("node alpha, in no cluster yet"), "{status}");
    assert!(status.contains("holdfast create NAME") && status.contains("cluster join TOKEN"));
    assert!(node.json(&["status"])["cluster"].is_null());
    for command in [&["cluster", "status"][..], &["cluster", "token"], &["cluster", "leave"]] {
        let output = node.cli(command);
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("hint: use `holdfast cluster create`"), "{output}");
        let output = node.cli(&[&["--json"], command].concat());
        assert!(output.stderr.contains("\"code\":\"NO_CLUSTER\""), "{output}");
    }
    let disk = node.disk("db").display().to_string();
    node.refused(&["join", "db", "--disk", &disk], 1, "the node is in no cluster");
    for command in [
        &["status", "db"][..],
        &["up", "db"],
        &["primary", "db"],
        &["device", "db"],
        &["wait", "db", "--for", "primary", "--timeout", "1"],
    ] {
        node.refused(command, 4, "db was not found: node alpha is in no cluster yet");
    }
    node.ok(&["up", "all"]);
    node.ok(&["create", "db", "--disk", &disk, "--size", "1M"]);
    node.ok(&["cluster", "status"]);
    node.refused(&["up", "other"], 4, "this node has no resource of that name");
    node.stop();
}
