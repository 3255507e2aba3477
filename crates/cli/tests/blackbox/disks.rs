//! Which disks are taken, and what is said about them.

use crate::{MIB, SOON, cluster, write_blocks};
use holdfast_nbd::Client;
use holdfast_testkit::{Cluster, Mount, files, run, run_ok, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device over a file of the cluster's directory; it goes with that.
pub(crate) fn loop_device(cluster: &Cluster, file: &str, arguments: &[&str]) -> Option<String> {
    loop_of(cluster, file, 8 * MIB, arguments)
}

/// The same of another length.
pub(crate) fn loop_of(
    cluster: &Cluster,
    file: &str,
    len: u64,
    arguments: &[&str],
) -> Option<String> {
    let path = cluster.scratch().join(file);
    files::make_sparse(&path, len);
    let output = run(Command::new("losetup").args(["--find", "--show"]).args(arguments).arg(path));
    if output.status != 0 {
        eprintln!("skipped: no loop device can be made here");
        return None;
    }
    Some(output.stdout.trim().to_owned())
}

pub(crate) fn let_go(device: &str) {
    assert_eq!(run(Command::new("losetup").args(["-d", device])).status, 0);
}

#[test]
fn a_device_that_cannot_be_written_is_refused() {
    let cluster = cluster(2);
    let Some(device) = loop_device(&cluster, "file", &["--read-only"]) else { return };
    cluster[0].refused(&["create", "r0", "--disk", &device], 1, "can only be read");
    assert!(cluster[0].status().resources.is_empty());
    cluster.create("r0", 8 * MIB, &[]);
    cluster[1].refused(&["join", "r0", "--disk", &device], 1, "can only be read");
    assert!(cluster[1].status().resources.is_empty());
    assert!(Path::new(&device).exists());
    let_go(&device);
}

#[test]
fn a_mounted_disk_is_refused() {
    let cluster = cluster(2);
    let Some(device) = loop_device(&cluster, "mounted", &[]) else { return };
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &device]));
    cluster.create("r0", 8 * MIB, &[]);
    let mount = Mount::new(&device, &cluster[0].dir().join("mnt"));
    cluster[0].refused(&["create", "r1", "--disk", &device], 1, "or mounted");
    cluster[1].refused(&["join", "r0", "--disk", &device, "--force"], 1, "or mounted");
    assert!(cluster[1].status().resources.is_empty());
    mount.unmount();
    // Now its data are those of a resource.
    cluster[0].ok(&["create", "r1", "--disk", &device]);
    cluster[0].ok(&["delete", "r1"]);
    let_go(&device);
}

#[test]
fn the_files_of_the_node_itself_are_refused() {
    let cluster = cluster(2);
    let node = &cluster[0];
    cluster.create("r0", 4 * MIB, &[]);
    let own = node.state_dir().join("cluster.state");
    let before = std::fs::read(&own).expect("it is there");
    let link = cluster.scratch().join("link");
    std::os::unix::fs::symlink(node.state_dir(), &link).expect("a link can be made");
    let other = cluster.scratch().join("other");
    files::make_sparse(&other, 4 * MIB);
    let text = |path: &Path| path.display().to_string();
    let state = "in the state directory";
    node.refused(&["create", "r1", "--disk", &text(&own)], 1, state);
    node.refused(&["create", "r1", "--disk", &text(&link.join("cluster.state"))], 1, state);
    node.refused(&["create", "r1", "--disk", &text(&link.join("x")), "--size", "1M"], 1, state);
    let meta = text(&node.state_dir().join("x"));
    node.refused(&["create", "r1", "--disk", &text(&other), "--meta", &meta], 1, state);
    assert_eq!(std::fs::read(&own).expect("it is there"), before);
    let own = cluster[1].state_dir().join("cluster.state");
    cluster[1].refused(&["join", "r0", "--disk", &text(&own)], 1, state);
}

#[test]
fn a_tail_that_is_no_block_is_told() {
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = cluster.scratch().join("odd");
    files::make_random(&disk, 5_000_001, 3);
    let disk = disk.display().to_string();
    let said = node.ok(&["create", "r0", "--disk", &disk]);
    assert!(said.contains("the last 2881 bytes") && said.contains("not part of it"), "{said}");
    assert_eq!(node.resource("r0").size_bytes, 4_997_120);
    node.ok(&["delete", "r0"]);
    // Who says how large it is to be knows what is left out.
    let said = node.ok(&["create", "r0", "--disk", &disk, "--size", "4M"]);
    assert!(!said.contains("not part of it"), "{said}");
    cluster.create("even", 4 * MIB, &[]);
    let output = node.cli(&["create", "r1", "--disk", "/nowhere", "--size", "1"]);
    assert!(output.stderr.ends_with("hint: for example 4096\n"), "{output}");
    let empty = ["create", "r1", "--disk", &disk, "--size", "0"];
    node.refused(&empty, 1, "a size of 0 bytes is too small: it must be at least 4096\n");
}

#[test]
fn what_became_of_a_relative_path_is_said() {
    let cluster = cluster(2);
    let inside = cluster.scratch().display().to_string();
    let said = |index: usize, arguments: &[&str]| {
        run_ok(cluster[index].command(arguments).current_dir(cluster.scratch()))
    };
    let create = said(0, &["create", "r0", "--disk", "one", "--size", "4M"]);
    assert!(create.contains(&format!("was created on {inside}/one; this node")), "{create}");
    let join = said(1, &["join", "r0", "--disk", "./two"]);
    assert!(join.contains(&format!("with the disk {inside}/two; sync")), "{join}");
    cluster.wait_members("r0", 2, SOON);
    cluster[1].ok(&["detach-disk", "r0"]);
    let attach = said(1, &["attach-disk", "r0"]);
    assert!(attach.contains(&format!("uses its disk {inside}/two on this node")), "{attach}");
}

#[test]
fn metadata_are_for_the_daemon_alone() {
    use std::os::unix::fs::MetadataExt;
    let cluster = cluster(1);
    let beside = cluster.scratch().join("beside.meta");
    cluster.create("r0", 4 * MIB, &[]);
    cluster.create("r1", 4 * MIB, &["--meta", &beside.display().to_string()]);
    let dir = cluster[0].state_dir().join("meta");
    let own = std::fs::read_dir(dir).expect("it is there").flatten().map(|entry| entry.path());
    let files: Vec<_> = own.chain([beside]).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        let mode = std::fs::metadata(&file).expect("it is there").mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

#[test]
fn a_disk_with_somebody_elses_data_is_overwritten_only_when_told_to() {
    let mut cluster = cluster(2);
    cluster.create("r0", 8 * MIB, &[]);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(make(&cluster, "ext4")));
    let swap = make(&cluster, "swap");
    run_ok(Command::new("mkswap").arg(&swap));
    let text = |file: &str| cluster.scratch().join(file).display().to_string();
    let before = files::fingerprint(&cluster.scratch().join("ext4"), 8 * MIB);
    let join = ["join", "r0", "--disk", &text("ext4")];
    cluster[1].refused(&join, 1, "holds an ext filesystem");
    cluster[1].refused(&["join", "r0", "--disk", &text("swap")], 1, "holds swap space");
    assert_eq!(files::fingerprint(&cluster.scratch().join("ext4"), 8 * MIB), before);
    assert!(cluster[1].status().resources.is_empty());
    // Not another disk in the place of the first one either.
    cluster[1].ok(&["join", "r0", "--diskless"]);
    let attach = ["attach-disk", "r0", "--disk", &text("ext4")];
    cluster[1].refused(&attach, 1, "holds an ext filesystem");
    cluster[1].ok(&["leave", "r0"]);
    cluster[1].refused(&join, 1, "holds an ext filesystem");
    cluster[1].ok(&[&join[..], &["--force"]].concat());
    cluster[1].wait_synced("r0", SOON);
    files::assert_equal(&cluster[0].disk("r0"), &cluster.scratch().join("ext4"), 8 * MIB);

    // The filesystem of the resource itself, on a member that comes again: nobody can tell.
    let uri = cluster[0].uri("r0").to_string();
    let image = text("image");
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(make(&cluster, "image")));
    run_ok(Command::new("nbdcopy").args([&image, &uri]));
    cluster[1].wait_synced("r0", SOON);
    cluster[1].ok(&["leave", "r0"]);
    // Nobody knows that it is the same disk.
    cluster[1].refused(&join, 1, "holds an ext filesystem");
    cluster[1].ok(&[&join[..], &["--force"]].concat());
    cluster[1].wait_synced("r0", SOON);
    cluster[1].restart();
    cluster[1].wait_synced("r0", SOON);
}

fn make(cluster: &Cluster, file: &str) -> PathBuf {
    let path = cluster.scratch().join(file);
    files::make_sparse(&path, 8 * MIB);
    path
}

/// A client that writes and reads whole MiBs of one value.
struct Pieces(Client);

impl Pieces {
    fn write(&mut self, mib: u64, value: u8) -> bool {
        self.0.write_at(&vec![value; 1 << 20], mib * MIB).is_ok()
    }

    #[track_caller]
    fn assert_holds(&mut self, mib: u64, value: u8) {
        let mut found = vec![0; 1 << 20];
        self.0.read_at(&mut found, mib * MIB).expect("it can be read");
        assert!(found.iter().all(|byte| *byte == value), "MiB {mib} is not all {value}");
    }
}

/// Long writes go through a mapping of the file; a page that is not there any more is a signal.
#[test]
fn a_full_filesystem_in_memory_fails_the_disk_and_not_the_daemon() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    let cluster = cluster(1);
    let node = &cluster[0];
    let (size, kept) = (32 * MIB, 6);
    let small = Mount::memory(&node.dir().join("small"), 8 * MIB);
    let disk = small.path().join("disk");
    files::make_sparse(&disk, size);
    node.ok(&["create", "r0", "--disk", &disk.display().to_string()]);
    let pid = node.pid();
    let mut client = Pieces(node.open("r0"));
    for mib in 0..kept {
        assert!(client.write(mib, 1) && client.write(mib, 2), "there is room for {mib}");
    }
    // The second half of a piece goes, and all the room with it.
    let hole = ["--punch-hole", "--offset", "3670016", "--length", "524288"];
    run_ok(Command::new("fallocate").args(hole).arg(&disk));
    let filler = small.path().join("filler");
    let filled = run(Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg({
        let mut of = std::ffi::OsString::from("of=");
        of.push(&filler);
        of
    }));
    assert_ne!(filled.status, 0, "the filesystem is full");
    assert!(!client.write(3, 3), "there is no room for it");
    node.wait_log("no space is left on the filesystem");
    let failed = node.wait_resource("r0", SOON, "it is given up", |r| r.disk.state == "Failed");
    assert_eq!(failed.role, "Primary");
    assert!(failed.disk.io_errors > 0, "{failed:?}");
    let problem = failed.disk.problem.expect("it is said what failed");
    let full = format!("the disk {}: write of ", disk.display());
    assert!(problem.starts_with(&full), "{problem}");
    assert!(problem.contains("no space is left on the filesystem"), "{problem}");
    assert!(problem.ends_with("make room there, then `holdfast attach-disk r0`"), "{problem}");
    let shown = node.ok(&["status", "r0"]);
    assert!(shown.contains(&format!("the disk is not used: {problem}")), "{shown}");
    assert!(!shown.contains("I/O errors") && !shown.contains("os error"), "{shown}");
    let told = format!("problem:{problem}");
    wait_until(SOON, "the events tell of it", || node.ok(&["events"]).contains(&told));
    assert!(!client.write(1, 4), "there is no disk");
    for mib in (0..kept).filter(|mib| *mib != 3) {
        let found = files::read(&disk, mib * MIB, 1 << 20);
        assert!(found.iter().all(|byte| *byte == 2), "MiB {mib} was acknowledged");
    }
    drop(client);

    std::fs::remove_file(&filler).expect("it was just made");
    node.ok(&["secondary", "r0"]);
    node.ok(&["attach-disk", "r0"]);
    let disk_now = node.resource("r0").disk;
    assert_eq!((disk_now.problem, disk_now.io_errors), (None, 0));
    node.ok(&["primary", "r0"]);
    assert_eq!(node.pid(), pid, "it is the same daemon");
    let mut client = Pieces(node.open("r0"));
    for mib in (0..kept).filter(|mib| *mib != 3) {
        client.assert_holds(mib, 2);
    }
    assert!(client.write(3, 5));
    client.assert_holds(3, 5);
}

#[test]
fn a_member_whose_filesystem_is_full_comes_back_when_there_is_room() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    for failing in [0, 1] {
        let cluster = cluster(2);
        let (size, other) = (32 * MIB, 1 - failing);
        let small = Mount::memory(&cluster[failing].dir().join("small"), 8 * MIB);
        let full = small.path().join("disk");
        let roomy = cluster[other].disk("r0");
        let disks = if failing == 0 { [&full, &roomy] } else { [&roomy, &full] };
        for disk in disks {
            files::make_sparse(disk, size);
        }
        cluster[0].ok(&["create", "r0", "--disk", &disks[0].display().to_string()]);
        cluster[1].ok(&["join", "r0", "--disk", &disks[1].display().to_string()]);
        cluster.wait_members("r0", 2, SOON);
        let mut client = Pieces(cluster[0].open("r0"));
        for mib in 0..20 {
            let value = u8::try_from(mib + 1).expect("it is small");
            assert!(client.write(mib, value), "the other disk has room");
        }
        cluster[failing]
            .wait_resource("r0", SOON, "the disk is given up", |r| r.disk.state == "Failed");
        for mib in 0..20 {
            client.assert_holds(mib, u8::try_from(mib + 1).expect("it is small"));
        }
        drop(client);
        run_ok(Command::new("mount").args(["-o", "remount,size=64m"]).arg(small.path()));
        if failing == 0 {
            cluster[0].ok(&["secondary", "r0"]);
            cluster[1].ok(&["primary", "r0"]);
        }
        cluster[failing].ok(&["attach-disk", "r0"]);
        cluster[other].wait_synced("r0", SOON);
        cluster[failing].wait_synced("r0", SOON);
        files::assert_equal(&full, &roomy, size);
        for mib in 0..20 {
            let value = u8::try_from(mib + 1).expect("it is small");
            assert!(files::read(&full, mib * MIB, 1 << 20).iter().all(|byte| *byte == value));
        }
    }
}
