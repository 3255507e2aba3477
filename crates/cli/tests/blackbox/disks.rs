//! Which disks are taken, and what is said about them.

use crate::{MIB, SOON, cluster, write_blocks};
use holdfast_testkit::{Cluster, files, run, run_ok};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device over a file of the cluster's directory; it goes with that.
fn loop_device(cluster: &Cluster, file: &str, arguments: &[&str]) -> Option<String> {
    let path = cluster.scratch().join(file);
    files::make_sparse(&path, 8 * MIB);
    let output = run(Command::new("losetup").args(["--find", "--show"]).args(arguments).arg(path));
    if output.status != 0 {
        eprintln!("skipped: no loop device can be made here");
        return None;
    }
    Some(output.stdout.trim().to_owned())
}

fn let_go(device: &str) {
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

    // The filesystem of the resource itself, on a member that comes again.
    let uri = cluster[0].uri("r0").to_string();
    let (image, join) = (text("image"), join.map(str::to_owned));
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(make(&cluster, "image")));
    run_ok(Command::new("nbdcopy").args([&image, &uri]));
    cluster[1].wait_synced("r0", SOON);
    cluster[1].ok(&["leave", "r0"]);
    cluster[1].ok(&join.each_ref().map(String::as_str));
    cluster[1].wait_synced("r0", SOON);
    cluster[1].restart();
    cluster[1].wait_synced("r0", SOON);
}

fn make(cluster: &Cluster, file: &str) -> PathBuf {
    let path = cluster.scratch().join(file);
    files::make_sparse(&path, 8 * MIB);
    path
}
