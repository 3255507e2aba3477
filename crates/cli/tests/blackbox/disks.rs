//! Which disks are taken, and what is said about them.

use crate::{MIB, cluster};
use holdfast_testkit::{Cluster, files, run};
use std::path::Path;
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
