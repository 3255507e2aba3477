//! The local block device: a file system on it survives the death of its node.

use crate::{MIB, SOON, SYNC, binary, cluster, rounds, seed};
use holdfast_testkit::{Cluster, Mount, Rng, devices_unavailable, run_ok, wait_until};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Says why a test that needs local devices does nothing here.
pub(crate) fn skipped() -> bool {
    let reason = devices_unavailable();
    if let Some(why) = &reason {
        eprintln!("skipped: no local devices can be made: {why}");
    }
    reason.is_some()
}

pub(crate) fn device(cluster: &Cluster, index: usize) -> String {
    let made = cluster[index].json(&["device", "r0"]);
    made["path"].as_str().expect("it has a path").to_owned()
}

pub(crate) fn content(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let mut data = vec![0; 1 + usize::try_from(rng.below(60_000)).expect("it is small")];
    rng.fill(&mut data);
    data
}

/// How many files there are; the next one takes the place of the oldest.
const FILES: u64 = 300;

pub(crate) fn file(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("file-{}", number % FILES))
}

/// Writes a file so that it is durable with its name.
fn write_durably(dir: &Path, number: u64) -> io::Result<()> {
    let mut out = File::create(file(dir, number))?;
    out.write_all(&content(number))?;
    out.sync_all()?;
    File::open(dir)?.sync_all()
}

/// Writes files without pause, one after the other, each of them durably, until the device fails.
pub(crate) struct FileWriter {
    durable: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl FileWriter {
    pub(crate) fn start(dir: &Path, first: u64) -> Self {
        let durable = Arc::new(AtomicU64::new(first));
        let stop = Arc::new(AtomicBool::new(false));
        let (counter, dir, end) = (Arc::clone(&durable), dir.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut number = first;
            while !end.load(Ordering::Relaxed) && write_durably(&dir, number).is_ok() {
                number += 1;
                counter.store(number, Ordering::Relaxed);
            }
        });
        Self { durable, stop, thread }
    }

    /// How many files are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Relaxed)
    }

    /// Ends it; how many files are durable. Panics when its device has failed.
    pub(crate) fn stop(self) -> u64 {
        assert!(!self.thread.is_finished(), "writing failed");
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for its end, when its device is gone; how many files are durable.
    pub(crate) fn join(self) -> u64 {
        self.thread.join().expect("it does not panic");
        self.durable.load(Ordering::Relaxed)
    }
}

/// Numbers of the files that are kept: older ones are written over.
pub(crate) fn kept(durable: u64) -> std::ops::Range<u64> {
    durable.saturating_sub(FILES)..durable
}

#[test]
fn files_that_were_synced_survive_the_death_of_the_primary() {
    if skipped() {
        return;
    }
    let mut cluster = cluster(2);
    let size = 64 * MIB;
    cluster.resource("r0", size, 2);
    let mut rng = Rng::new(seed());
    let mut path = device(&cluster, 0);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mut primary = 0;
    let mut durable = 0;
    for round in 0..rounds() {
        let next = 1 - primary;
        let mount = Mount::new(&path, &cluster[primary].dir().join("mnt"));
        let writer = FileWriter::start(mount.path(), durable);
        let due = durable + 10 + rng.below(60);
        wait_until(SYNC, "some files", || writer.durable() > due);
        cluster[primary].kill9();
        durable = writer.join();
        mount.give_up();

        let dead = cluster[primary].name();
        cluster[next].wait_peer("r0", dead, SOON, "the Primary is gone", |peer| {
            peer.connection != "Connected"
        });
        cluster[next].ok(&["primary", "r0"]);
        path = device(&cluster, next);
        let mount = Mount::new(&path, &cluster[next].dir().join("mnt"));
        for number in kept(durable) {
            let found = fs::read(file(mount.path(), number)).expect("a synced file is there");
            // The one after the last durable one may be there in its place, whole or not.
            let replaced = number + FILES == durable && found != content(number);
            assert!(replaced || found == content(number), "round {round}: file {number}");
        }
        mount.unmount();
        run_ok(Command::new("e2fsck").args(["-f", "-n", &path]));
        cluster[primary].start();
        cluster[next].wait_synced("r0", SYNC);
        cluster.assert_equal_disks("r0", size, &[0, 1]);
        primary = next;
    }
    cluster[primary].ok(&["device", "r0", "--remove"]);
}

#[test]
fn a_device_is_made_shown_guarded_and_taken_away() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    cluster.resource("r0", 16 * MIB, 2);
    cluster[1].refused(&["device", "r0"], 1, "r0");
    let path = device(&cluster, 0);
    assert_eq!(Path::new(&path).file_name().and_then(|name| name.to_str()), Some("r0"));
    let status = cluster[0].resource("r0");
    assert_eq!(status.device.as_deref(), Some(&*path));
    assert!(status.device_kind.is_some());
    // What is written there is replicated, at any offset and length.
    run_ok(
        Command::new("dd")
            .args(["if=/etc/passwd", "bs=512", "seek=3", "count=1", "oflag=sync"])
            .arg(format!("of={path}")),
    );
    cluster.assert_equal_disks("r0", 16 * MIB, &[0, 1]);

    let open = File::open(&path).expect("the device can be opened");
    cluster[0].wait_resource("r0", SOON, "it is seen to be open", |r| !r.openers.is_empty());
    cluster[0].refused(&["device", "r0", "--remove"], 1, "open");
    cluster[0].refused(&["secondary", "r0"], 1, "r0");
    drop(open);
    // A process that another test has just forked has it open until it becomes another program.
    cluster[0].wait_resource("r0", SOON, "nobody has it open", |r| r.openers.is_empty());
    cluster[0].ok(&["device", "r0", "--remove"]);
    assert!(!Path::new(&path).exists());
    assert_eq!(cluster[0].resource("r0").device, None);
    cluster[0].refused(&["device", "r0", "--remove"], 4, "r0");
    cluster[0].ok(&["secondary", "r0"]);
    assert_eq!(
        holdfast_testkit::files::read(&cluster[1].disk("r0"), 1536, 4),
        fs::read("/etc/passwd").expect("it is there")[..4]
    );
}

#[test]
fn mkfs_trim_and_unmount_work_on_it() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    let size = 64 * MIB;
    cluster.resource("r0", size, 2);
    let path = device(&cluster, 0);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[0].dir().join("mnt"));
    let mounted = format!("mounted at {}", mount.path().display());
    let told =
        cluster[0].wait_resource("r0", SOON, "the mount is told", |r| r.openers.contains(&mounted));
    assert_eq!(told.open_count as usize, told.openers.len());
    let text = cluster[0].ok(&["status", "r0"]);
    assert!(text.contains(&mounted), "{text}");
    let big = mount.path().join("big");
    fs::write(&big, vec![7; 20 << 20]).expect("it can be written");
    run_ok(Command::new("sync").arg("-f").arg(mount.path()));
    let full = holdfast_testkit::files::allocated(&cluster[1].disk("r0"));
    fs::remove_file(big).expect("it can be removed");
    run_ok(Command::new("sync").arg("-f").arg(mount.path()));
    run_ok(Command::new("fstrim").arg(mount.path()));
    wait_until(SOON, "the peer gives the room back", || {
        holdfast_testkit::files::allocated(&cluster[1].disk("r0")) + (15 << 20) < full
    });
    mount.unmount();
    cluster[0].wait_resource("r0", SOON, "nobody uses it", |r| r.openers.is_empty());
    run_ok(Command::new("e2fsck").args(["-f", "-n", &path]));
    cluster[0].ok(&["device", "r0", "--remove"]);
    cluster[0].ok(&["secondary", "r0"]);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn the_demo_ends_well() {
    let mut command = Command::new(binary());
    command.args(["demo", "--once", "--nodes", "2", "--size", "64M"]);
    let output = holdfast_testkit::run_with_limit(&mut command, SYNC * 2);
    assert_eq!(output.status, 0, "{output}");
}
