//! Remote exports as local block devices: the server is the daemon of another node, which is killed,
//! stopped and exchanged under them.

use crate::device::{FileWriter, content, file, kept, skipped};
use crate::{MIB, SOON, SYNC, cluster, rounds, seed};
use holdfast_api::attachment::AttachmentStatus;
use holdfast_testkit::{Cluster, Mount, Node, Rng, run_ok, wait_until};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The node that has the devices, and the first one that serves.
const CLIENT: usize = 0;
const SERVER: usize = 1;
const SIZE: u64 = 64 * MIB;

/// A node without resources, and others with one each: `d1` on node 1, `d2` on node 2.
fn servers(count: usize) -> Cluster {
    let cluster = cluster(1 + count);
    for server in 1..=count {
        let name = format!("d{server}");
        let disk = cluster[server].disk(&name);
        holdfast_testkit::files::make_sparse(&disk, SIZE);
        let disk = disk.display().to_string();
        cluster[server].ok(&["create", &name, "--disk", &disk]);
    }
    cluster
}

fn uri(cluster: &Cluster, server: usize) -> String {
    cluster[server].uri(&format!("d{server}")).to_string()
}

/// Attaches the export of the first server; the path of its device.
fn attach(cluster: &Cluster, options: &[&str]) -> String {
    let uri = uri(cluster, SERVER);
    let made = cluster[CLIENT].json(&[&["attach", &uri], options].concat());
    made["path"].as_str().expect("it has a path").to_owned()
}

pub(crate) fn status(node: &Node, name: &str) -> AttachmentStatus {
    let all: Vec<AttachmentStatus> =
        serde_json::from_value(node.json(&["attachments", name])).expect("it is a list");
    all.into_iter().next().expect("it is there")
}

/// Detaches; what is said then. A process that another test of this program has just forked has all files
/// open until it becomes another program, so the device may be open for a moment.
fn detach(node: &Node, name: &str) -> String {
    let mut last = None;
    wait_until(SOON, "nobody has it open", || {
        let output = node.cli(&["detach", name]);
        let is_open = output.status != 0 && output.stderr.contains("open");
        last = Some(output);
        !is_open
    });
    last.expect("it was tried").ok()
}

/// Starts a server again and waits until it serves.
fn serve_again(cluster: &mut Cluster, server: usize) {
    cluster[server].start();
    let name = format!("d{server}");
    cluster[server].wait_resource(&name, SOON, "it serves again", |r| r.role == "Primary");
}

fn wait_state(node: &Node, name: &str, state: &str) {
    wait_until(SOON, state, || status(node, name).state == state);
}

/// Writes one block so that it is durable.
pub(crate) fn write_direct(path: &str, block: u64, byte: u8) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(block * 4096))?;
    file.write_all(&[byte; 4096])?;
    file.sync_all()
}

pub(crate) fn read_block(path: &str, block: u64) -> u8 {
    let mut data = [0; 4096];
    // What the kernel remembers is not what is asked for.
    run_ok(Command::new("blockdev").args(["--flushbufs", path]));
    let mut file = File::open(path).expect("it can be opened");
    file.seek(SeekFrom::Start(block * 4096)).expect("it can be sought");
    file.read_exact(&mut data).expect("it can be read");
    assert!(data.iter().all(|byte| *byte == data[0]));
    data[0]
}

#[test]
fn a_file_system_goes_on_while_its_server_is_killed_again_and_again() {
    if skipped() {
        return;
    }
    let mut cluster = servers(1);
    let path = attach(&cluster, &["--connections", "4"]);
    assert!(path.ends_with("/d1"), "{path}");
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[CLIENT].dir().join("mnt"));
    let writer = FileWriter::start(mount.path(), 0);
    let mut rng = Rng::new(seed());
    for _ in 0..rounds() {
        let due = writer.durable() + 10 + rng.below(40);
        wait_until(SYNC, "some files", || writer.durable() > due);
        cluster[SERVER].kill9();
        wait_state(&cluster[CLIENT], "d1", "Reconnecting");
        cluster[SERVER].start();
    }
    let due = writer.durable() + 10;
    wait_until(SYNC, "some files", || writer.durable() > due);
    let durable = writer.stop();
    mount.unmount();
    let mount = Mount::new(&path, &cluster[CLIENT].dir().join("mnt"));
    for number in kept(durable) {
        let found = fs::read(file(mount.path(), number)).expect("a synced file is there");
        assert!(found == content(number), "file {number}");
    }
    cluster[CLIENT].refused(&["detach", "d1"], 1, "mounted");
    mount.unmount();
    run_ok(Command::new("e2fsck").args(["-f", "-n", &path]));
    // Each connection comes back for itself.
    wait_until(SOON, "all connections are back", || {
        let now = status(&cluster[CLIENT], "d1");
        let mut connections = now.legs[0].connections.iter();
        connections.all(|one| one.requests > 0 && one.reconnects >= rounds())
    });
    let now = status(&cluster[CLIENT], "d1");
    assert_eq!((&*now.state, now.problem), ("Connected", None));
    assert_eq!(now.legs[0].outages, rounds());
    assert_eq!(now.legs[0].connections.len(), 4);
    detach(&cluster[CLIENT], "d1");
    assert!(!Path::new(&path).exists());
    cluster[CLIENT].refused(&["attachments", "d1"], 4, "d1");
}

#[test]
fn status_and_events_tell_of_it() {
    if skipped() {
        return;
    }
    let mut cluster = servers(2);
    assert!(cluster[CLIENT].status().attachments.is_empty());
    let log = cluster.scratch().join("events");
    let mut follower = cluster[CLIENT]
        .command(&["events", "--json", "--follow"])
        .stdout(File::create(&log).expect("there is room"))
        .spawn()
        .expect("it starts");
    // How often an object was told to be so.
    let told = |object: &str, field: &str, value: &str| {
        let text = fs::read_to_string(&log).expect("it is there");
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|e| e["object"] == object && e["fields"][field] == value).count()
    };
    wait_until(SOON, "it follows", || fs::metadata(&log).is_ok_and(|file| file.len() > 0));
    let uris = [uri(&cluster, 1), uri(&cluster, 2)];
    let path = attach(&cluster, &[]);
    wait_until(SOON, "that it is there", || told("attachment", "state", "Connected") == 1);
    let all = cluster[CLIENT].status().attachments;
    let [one] = &all[..] else { panic!("{all:?}") };
    assert_eq!((&*one.name, one.device.as_deref()), ("d1", Some(&*path)));
    assert!(cluster[CLIENT].ok(&["status"]).contains(&format!("  {path}  Connected")));
    let shown = cluster[CLIENT].ok(&["status", "d1"]);
    assert!(shown.contains(&uris[0]), "{shown}");
    cluster[CLIENT].refused(&["status", "d2"], 4, "d2");
    assert!(cluster[CLIENT].ok(&["events"]).contains("exists attachment name:d1"));
    cluster[SERVER].kill9();
    wait_until(SOON, "that it is away", || told("attachment", "state", "Reconnecting") > 0);
    cluster[SERVER].start();
    wait_until(SOON, "that it is back", || told("attachment", "state", "Connected") > 1);
    detach(&cluster[CLIENT], "d1");
    let gone = || fs::read_to_string(&log).is_ok_and(|text| text.contains("\"destroy\""));
    wait_until(SOON, "that it is gone", gone);

    // Of a mirror each server.
    let mirror = ["attach", &uris[0], &uris[1], "--mirror", "--name", "m"];
    cluster[CLIENT].ok(&mirror);
    wait_until(SOON, "both servers", || told("leg", "leg", "InSync") == 2);
    cluster[2].kill9();
    wait_until(SOON, "that one is lost", || told("leg", "leg", "Behind") > 0);
    assert!(cluster[CLIENT].ok(&["status"]).contains("Behind"));
    cluster[CLIENT].ok(&["detach", "m", "--force"]);
    follower.kill().expect("it is our child");
    follower.wait().expect("it is our child");
}

#[test]
fn what_is_persistent_comes_back_with_daemon_and_server() {
    if skipped() {
        return;
    }
    let mut cluster = servers(1);
    let path = attach(&cluster, &["--persist", "--name", "kept"]);
    assert!(path.ends_with("/kept"), "{path}");
    write_direct(&path, 3, 1).expect("it can be written");
    let uri = uri(&cluster, SERVER);
    cluster[CLIENT].refused(&["attach", &uri], 1, "the attachment kept");
    let disk = cluster[CLIENT].disk("kept").display().to_string();
    let create = ["create", "kept", "--disk", &disk, "--size", "16M"];
    cluster[CLIENT].refused(&create, 1, "an attachment of this node has the name");
    // The daemon dies, and comes back while the server is away.
    cluster[CLIENT].kill9();
    cluster[SERVER].kill9();
    cluster[CLIENT].start();
    wait_until(SOON, "it says why", || status(&cluster[CLIENT], "kept").problem.is_some());
    assert_eq!(status(&cluster[CLIENT], "kept").device, None);
    cluster[CLIENT].refused(&["abort", "kept"], 1, "not been reached");
    cluster[SERVER].start();
    wait_state(&cluster[CLIENT], "kept", "Connected");
    assert_eq!(read_block(&path, 3), 1);
    write_direct(&path, 3, 2).expect("it can be written");
    // It stops in good order; meanwhile somebody writes where superblocks are.
    cluster[CLIENT].stop();
    let mut other = cluster[SERVER].open("d1");
    other.write_at(&[9; 4096], 0).expect("it can be written");
    other.flush().expect("it can be flushed");
    cluster[CLIENT].start();
    let other_content = || status(&cluster[CLIENT], "kept").problem.unwrap_or_default();
    wait_until(SOON, "other content is refused", || {
        other_content().contains("not the one that it was")
    });
    other.write_at(&[0; 4096], 0).expect("it can be written");
    other.flush().expect("it can be flushed");
    wait_until(SOON, "its content is taken", || status(&cluster[CLIENT], "kept").device.is_some());
    assert_eq!(read_block(&path, 3), 2);
    detach(&cluster[CLIENT], "kept");
    cluster[CLIENT].restart();
    assert_eq!(cluster[CLIENT].json(&["attachments"]), serde_json::json!([]));
}

#[test]
fn another_disk_is_refused_after_a_stop_without_the_server() {
    if skipped() {
        return;
    }
    let mut cluster = servers(1);
    let path = attach(&cluster, &["--persist"]);
    write_direct(&path, 7777, 1).expect("it can be written");
    cluster[SERVER].kill9();
    wait_state(&cluster[CLIENT], "d1", "Reconnecting");
    cluster[CLIENT].stop();
    // An older state: the write that came last is not in it.
    serve_again(&mut cluster, SERVER);
    let mut other = cluster[SERVER].open("d1");
    let mut older = |byte: u8| {
        other.write_at(&[byte; 4096], 7777 * 4096).expect("it can be written");
        other.flush().expect("it can be flushed");
    };
    older(0);
    let problem = |cluster: &Cluster| status(&cluster[CLIENT], "d1").problem.unwrap_or_default();
    // It is refused at every start.
    for _ in 0..2 {
        cluster[CLIENT].start();
        wait_until(SOON, "it is refused", || problem(&cluster).contains("not the one that it was"));
        assert_eq!(status(&cluster[CLIENT], "d1").device, None);
        cluster[CLIENT].stop();
    }
    older(1);
    cluster[CLIENT].start();
    wait_state(&cluster[CLIENT], "d1", "Connected");
    // What it holds after more writes is what counts from then on, also after a crash.
    write_direct(&path, 7777, 2).expect("it can be written");
    cluster[CLIENT].kill9();
    cluster[CLIENT].start();
    wait_state(&cluster[CLIENT], "d1", "Connected");
    assert_eq!(read_block(&path, 7777), 2);
    detach(&cluster[CLIENT], "d1");
}

#[test]
fn a_server_of_a_mirror_that_was_used_alone_is_not_taken_for_equal() {
    if skipped() {
        return;
    }
    let mut cluster = servers(2);
    let uris = [uri(&cluster, 1), uri(&cluster, 2)];
    let mirror = ["attach", &uris[0], &uris[1], "--mirror", "--name", "m"];
    let swapped = ["attach", &uris[1], &uris[0], "--mirror", "--name", "m"];
    let path = cluster[CLIENT].json(&mirror)["path"].as_str().expect("a path").to_owned();
    write_direct(&path, 5000, 1).expect("it can be written");
    detach(&cluster[CLIENT], "m");
    let in_sync = |cluster: &Cluster| {
        wait_until(SYNC, "both are in sync", || {
            status(&cluster[CLIENT], "m").legs.iter().all(|leg| leg.leg == "InSync")
        });
    };
    // The second one alone: then it has the newest data.
    let alone = |cluster: &Cluster, server: usize, byte: u8| {
        cluster[CLIENT].ok(&["attach", &uris[server - 1], "--name", "m"]);
        write_direct(&path, 6000, byte).expect("it can be written");
        detach(&cluster[CLIENT], "m");
    };
    alone(&cluster, 2, 2);
    cluster[CLIENT].ok(&mirror);
    in_sync(&cluster);
    assert_eq!(read_block(&path, 6000), 2);
    // One that lacks something is used alone: nobody has all.
    cluster[1].kill9();
    wait_until(SOON, "it is behind", || status(&cluster[CLIENT], "m").legs[0].leg == "Behind");
    write_direct(&path, 5000, 3).expect("the other one has it");
    detach(&cluster[CLIENT], "m");
    serve_again(&mut cluster, 1);
    cluster[CLIENT].refused(&[&mirror[..], &["--copy-first"]].concat(), 1, "lacks data");
    alone(&cluster, 1, 4);
    cluster[CLIENT].refused(&mirror, 1, "--copy-first");
    cluster[CLIENT].ok(&[&swapped[..], &["--copy-first"]].concat());
    in_sync(&cluster);
    assert_eq!((read_block(&path, 5000), read_block(&path, 6000)), (3, 2));
    detach(&cluster[CLIENT], "m");
    let images = [cluster[1].disk("d1"), cluster[2].disk("d2")];
    holdfast_testkit::files::assert_equal(&images[0], &images[1], SIZE);
}

#[test]
fn what_waits_for_its_server_can_be_detached() {
    if skipped() {
        return;
    }
    let mut cluster = servers(1);
    attach(&cluster, &["--persist"]);
    // It takes connections and says nothing.
    cluster[SERVER].freeze();
    cluster[CLIENT].kill9();
    cluster[CLIENT].start();
    wait_state(&cluster[CLIENT], "d1", "Connecting");
    let begun = Instant::now();
    detach(&cluster[CLIENT], "d1");
    // Less than a command waits for another one to end.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    cluster[SERVER].thaw();
    // The attempt that was under way left nothing.
    let path = attach(&cluster, &["--name", "again"]);
    write_direct(&path, 1, 1).expect("it can be written");
    detach(&cluster[CLIENT], "again");
    cluster[CLIENT].restart();
    assert_eq!(cluster[CLIENT].json(&["attachments"]), serde_json::json!([]));
}

#[test]
fn what_is_not_persistent_is_gone_with_the_daemon_and_leaves_nothing() {
    if skipped() {
        return;
    }
    let mut cluster = servers(1);
    let path = attach(&cluster, &[]);
    write_direct(&path, 1, 7).expect("it can be written");
    cluster[CLIENT].restart();
    assert!(!Path::new(&path).exists());
    assert_eq!(attach(&cluster, &[]), path);
    assert_eq!(read_block(&path, 1), 7);
    cluster[CLIENT].kill9();
    cluster[CLIENT].start();
    assert_eq!(attach(&cluster, &[]), path);
    assert_eq!(read_block(&path, 1), 7);
    // A detach by force of what somebody has open.
    let open = File::open(&path).expect("it can be opened");
    cluster[CLIENT].refused(&["detach", "d1"], 1, "open");
    cluster[CLIENT].ok(&["detach", "d1", "--force"]);
    drop(open);
    assert!(!Path::new(&path).exists());
}

#[test]
fn without_a_server_requests_fail_in_time_or_by_order() {
    if skipped() {
        return;
    }
    let mut cluster = servers(1);
    let path = attach(&cluster, &["--io-timeout", "2"]);
    cluster[SERVER].kill9();
    let begun = Instant::now();
    write_direct(&path, 1, 1).expect_err("no server has it");
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    cluster[CLIENT].refused(&["detach", "d1"], 1, "does not answer");
    cluster[CLIENT].ok(&["detach", "d1", "--force"]);
    serve_again(&mut cluster, SERVER);

    // For ever, but for an abort.
    let path = attach(&cluster, &["--io-timeout", "0"]);
    cluster[SERVER].kill9();
    let writer = {
        let path = path.clone();
        std::thread::spawn(move || write_direct(&path, 2, 2))
    };
    wait_until(SOON, "a request waits", || status(&cluster[CLIENT], "d1").pending_requests > 0);
    while !writer.is_finished() {
        // The kernel may try again by itself.
        cluster[CLIENT].ok(&["abort", "d1", "--hold", "0"]);
        std::thread::yield_now();
    }
    writer.join().expect("it does not panic").expect_err("it was aborted");
    // While the device is held, a server that is back is left alone.
    cluster[CLIENT].ok(&["abort", "d1", "--hold", "600"]);
    cluster[SERVER].start();
    assert_eq!(status(&cluster[CLIENT], "d1").state, "Held");
    cluster[CLIENT].ok(&["abort", "d1", "--hold", "0"]);
    wait_state(&cluster[CLIENT], "d1", "Connected");
    write_direct(&path, 2, 3).expect("it can be written again");
    assert_eq!(read_block(&path, 2), 3);
    detach(&cluster[CLIENT], "d1");
}

#[test]
fn a_mirror_outlives_each_of_its_servers_and_makes_them_equal() {
    if skipped() {
        return;
    }
    let mut cluster = servers(2);
    let uris = [uri(&cluster, 1), uri(&cluster, 2)];
    let mirror = ["attach", &uris[0], &uris[1], "--mirror", "--name", "m"];
    let path = cluster[CLIENT].json(&mirror)["path"].as_str().expect("a path").to_owned();
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[CLIENT].dir().join("mnt"));
    let writer = FileWriter::start(mount.path(), 0);
    let leg = |cluster: &Cluster, leg: usize, state: &str| {
        wait_until(SYNC, state, || status(&cluster[CLIENT], "m").legs[leg].leg == state);
    };
    for round in 0..rounds() {
        let lost = if round % 2 == 0 { 1 } else { 2 };
        cluster[lost].kill9();
        leg(&cluster, lost - 1, "Behind");
        let due = writer.durable() + 20;
        wait_until(SYNC, "some files", || writer.durable() > due);
        assert!(status(&cluster[CLIENT], "m").legs[lost - 1].missing_bytes > 0);
        cluster[lost].start();
        leg(&cluster, lost - 1, "InSync");
    }
    writer.stop();
    mount.unmount();
    // One is away when the mirror ends; the next one knows what it lacks.
    cluster[2].kill9();
    leg(&cluster, 1, "Behind");
    write_direct(&path, 5000, 7).expect("the other one has it");
    let told = detach(&cluster[CLIENT], "m");
    assert!(told.contains("lacks"), "{told}");
    serve_again(&mut cluster, 2);
    cluster[CLIENT].ok(&["attach", &uris[0], &uris[1], "--mirror", "--name", "other"]);
    wait_until(SYNC, "both are in sync", || {
        status(&cluster[CLIENT], "other").legs.iter().all(|leg| leg.leg == "InSync")
    });
    detach(&cluster[CLIENT], "other");
    let images = [cluster[1].disk("d1"), cluster[2].disk("d2")];
    holdfast_testkit::files::assert_equal(&images[0], &images[1], SIZE);
    // Servers that differ are no mirror, unless somebody says which one is right.
    let mut one = cluster[1].open("d1");
    one.write_at(&[1; 4096], 0).expect("it can be written");
    cluster[CLIENT].refused(&mirror, 1, "different data");
    cluster[CLIENT].ok(&[&mirror[..], &["--copy-first"]].concat());
    wait_until(SYNC, "both are in sync", || {
        status(&cluster[CLIENT], "m").legs.iter().all(|leg| leg.leg == "InSync")
    });
    detach(&cluster[CLIENT], "m");
    holdfast_testkit::files::assert_equal(&images[0], &images[1], SIZE);
}

#[test]
fn another_server_takes_over_and_a_read_only_device_takes_no_writes() {
    if skipped() {
        return;
    }
    let mut cluster = cluster(3);
    // Two servers with the same disk: one after the other.
    let disk = cluster[SERVER].disk("d1");
    holdfast_testkit::files::make_sparse(&disk, SIZE);
    cluster[SERVER].ok(&["create", "d1", "--disk", &disk.display().to_string()]);
    cluster.join_resource(&cluster[2], "d1", SIZE, &[]);
    cluster[2].wait_synced("d1", SYNC);
    let uris = [cluster[SERVER].uri("d1").to_string(), cluster[2].uri("d1").to_string()];
    cluster[CLIENT].ok(&["attach", &uris[0], &uris[1], "--name", "d"]);
    let path = status(&cluster[CLIENT], "d").device.expect("it has a device");
    write_direct(&path, 9, 4).expect("it can be written");
    cluster[SERVER].kill9();
    let dead = cluster[SERVER].name();
    cluster[2].wait_peer("d1", dead, SOON, "the Primary is gone", |p| p.connection != "Connected");
    cluster[2].ok(&["primary", "d1"]);
    write_direct(&path, 10, 5).expect("the other server has it");
    assert_eq!((read_block(&path, 9), read_block(&path, 10)), (4, 5));
    assert_eq!(status(&cluster[CLIENT], "d").legs[0].uri, uris[1]);
    detach(&cluster[CLIENT], "d");
    let wrong = ["attach", &uris[1], "--identity", "0123456789abcdef0123456789abcdef"];
    cluster[CLIENT].refused(&wrong, 1, "leave out --identity");
    let nobody = format!("nbd+unix:///x?socket={}", cluster.scratch().join("none").display());
    cluster[CLIENT].refused(&["attach", &nobody], 1, "could not be made");
    cluster[CLIENT].ok(&["attach", &uris[1], "--read-only", "--name", "r"]);
    let path = status(&cluster[CLIENT], "r").device.expect("it has a device");
    assert_eq!(run_ok(Command::new("blockdev").args(["--getro", &path])).trim(), "1");
    write_direct(&path, 1, 1).expect_err("it is read-only");
    assert_eq!(read_block(&path, 9), 4);
    detach(&cluster[CLIENT], "r");
}

#[test]
fn a_persistent_mirror_is_made_equal_after_a_crash_of_its_own_node() {
    if skipped() {
        return;
    }
    let mut cluster = servers(2);
    let uris = [uri(&cluster, 1), uri(&cluster, 2)];
    let mirror = ["attach", &uris[0], &uris[1], "--mirror", "--persist", "--name", "m"];
    let path = cluster[CLIENT].json(&mirror)["path"].as_str().expect("a path").to_owned();
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[CLIENT].dir().join("mnt"));
    let writer = FileWriter::start(mount.path(), 0);
    wait_until(SYNC, "some files", || writer.durable() > 30);
    cluster[CLIENT].kill9();
    let durable = writer.join();
    mount.give_up();
    cluster[CLIENT].start();
    wait_until(SYNC, "both are in sync again", || {
        let legs = status(&cluster[CLIENT], "m").legs;
        legs.len() == 2 && legs.iter().all(|leg| leg.leg == "InSync")
    });
    let mount = Mount::new(&path, &cluster[CLIENT].dir().join("mnt"));
    for number in kept(durable) {
        let found = fs::read(file(mount.path(), number)).expect("a synced file is there");
        assert!(found == content(number), "file {number}");
    }
    mount.unmount();
    detach(&cluster[CLIENT], "m");
    let images = [cluster[1].disk("d1"), cluster[2].disk("d2")];
    holdfast_testkit::files::assert_equal(&images[0], &images[1], SIZE);
}

/// An nbdkit of this test; killed at its end.
struct Nbdkit {
    child: Child,
    socket: PathBuf,
}

impl Nbdkit {
    /// Serves a file; `None` where nbdkit is not installed.
    fn start(dir: &Path, image: &Path, options: &[&str]) -> Option<Self> {
        if Command::new("nbdkit").arg("--version").output().is_err() {
            eprintln!("skipped: nbdkit is not installed");
            return None;
        }
        let socket = dir.join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U", &socket.display().to_string()]).args(options);
        command.args(["file", &image.display().to_string()]);
        let child = command.spawn().expect("nbdkit runs");
        // The file is there before anybody listens.
        wait_until(SOON, "it listens", || UnixStream::connect(&socket).is_ok());
        Some(Self { child, socket })
    }

    fn uri(&self, scheme: &str) -> String {
        format!("{scheme}:///?socket={}", self.socket.display())
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sectors_can_be_written_and_other_servers_serve() {
    if skipped() {
        return;
    }
    let cluster = cluster(1);
    let dir = cluster[0].dir().to_owned();
    let image = dir.join("image");
    holdfast_testkit::files::make_sparse(&image, 8 * MIB);
    let Some(server) = Nbdkit::start(&dir, &image, &[]) else { return };
    cluster[0].ok(&["attach", &server.uri("nbd+unix")]);
    let path = status(&cluster[0], "nbd0").device.expect("it has a device");
    // One sector, in the middle of a block.
    run_ok(
        Command::new("dd")
            .args(["if=/etc/passwd", "bs=512", "seek=3", "count=1", "oflag=sync"])
            .arg(format!("of={path}")),
    );
    detach(&cluster[0], "nbd0");
    assert_eq!(
        holdfast_testkit::files::read(&image, 1536, 4),
        fs::read("/etc/passwd").expect("it is there")[..4]
    );
}

/// Certificates of a new authority for server and client.
fn certificates(dir: &Path) {
    fs::create_dir_all(dir).expect("it can be made");
    let write = |name: &str, text: String| fs::write(dir.join(name), text).expect("it is written");
    let mut authority = rcgen::CertificateParams::new(vec![]).expect("they are good");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().expect("a key");
    write("ca-cert.pem", authority.self_signed(&key).expect("it is signed").pem());
    let issuer = rcgen::Issuer::new(authority, key);
    for who in ["server", "client"] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]);
        let signed = params.expect("they are good").signed_by(&key, &issuer);
        write(&format!("{who}-cert.pem"), signed.expect("it is signed").pem());
        write(&format!("{who}-key.pem"), key.serialize_pem());
    }
}

#[test]
fn inside_tls_only_the_right_server_is_attached() {
    if skipped() {
        return;
    }
    let cluster = cluster(1);
    let dir = cluster[0].dir().to_owned();
    let image = dir.join("image");
    holdfast_testkit::files::make_sparse(&image, 8 * MIB);
    let (right, wrong) = (dir.join("right"), dir.join("wrong"));
    certificates(&right);
    certificates(&wrong);
    let (right, wrong) = (right.display().to_string(), wrong.display().to_string());
    let place = format!("--tls-certificates={right}");
    let options = ["--tls=require", "--tls-verify-peer", &*place];
    let Some(server) = Nbdkit::start(&dir, &image, &options) else { return };
    let uri = server.uri("nbds+unix");
    cluster[0].refused(&["attach", &server.uri("nbd+unix")], 1, "TLS");
    cluster[0].refused(&["attach", &uri, "--tls-certificates", &wrong], 1, "was not attached");
    cluster[0].ok(&["attach", &uri, "--tls-certificates", &right, "--connections", "2"]);
    let path = status(&cluster[0], "nbd0").device.expect("it has a device");
    write_direct(&path, 7, 3).expect("it can be written");
    assert_eq!(read_block(&path, 7), 3);
    detach(&cluster[0], "nbd0");
    assert_eq!(holdfast_testkit::files::read(&image, 7 * 4096, 1), [3]);
}

/// The role of a pair is moved under a file system on an attached export: it waits, and goes on.
#[test]
fn the_primary_moves_as_planned_under_a_mounted_file_system() {
    if skipped() {
        return;
    }
    let cluster = cluster(3);
    let disk = cluster[SERVER].disk("d1");
    holdfast_testkit::files::make_sparse(&disk, SIZE);
    cluster[SERVER].ok(&["create", "d1", "--disk", &disk.display().to_string()]);
    cluster.join_resource(&cluster[2], "d1", SIZE, &[]);
    cluster[2].wait_synced("d1", SYNC);
    let uris = [cluster[SERVER].uri("d1").to_string(), cluster[2].uri("d1").to_string()];
    cluster[CLIENT].ok(&["attach", &uris[0], &uris[1], "--name", "d"]);
    let path = status(&cluster[CLIENT], "d").device.expect("it has a device");
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[CLIENT].dir().join("mnt"));
    let writer = FileWriter::start(mount.path(), 0);
    for (from, to) in [(SERVER, 2), (2, SERVER), (SERVER, 2)] {
        let due = writer.durable() + 20;
        wait_until(SYNC, "some files", || writer.durable() > due);
        cluster[from].refused(&["secondary", "d1"], 1, "open");
        cluster[from].ok(&["secondary", "d1", "--force"]);
        cluster[to].ok(&["primary", "d1"]);
        let due = writer.durable() + 20;
        wait_until(SYNC, "it goes on", || writer.durable() > due);
        assert_eq!(cluster[to].resource("d1").role, "Primary");
    }
    let durable = writer.stop();
    for number in kept(durable) {
        let found = fs::read(file(mount.path(), number)).expect("a synced file is there");
        assert!(found == content(number), "file {number}");
    }
    mount.unmount();
    run_ok(Command::new("e2fsck").args(["-f", "-n", &path]));
    detach(&cluster[CLIENT], "d");
    cluster[2].wait_synced("d1", SYNC);
    cluster.assert_equal_disks("d1", SIZE, &[SERVER, 2]);
}
