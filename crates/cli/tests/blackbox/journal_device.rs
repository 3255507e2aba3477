//! A journal on a device of its own: a block device, or a file of a fixed size.

use crate::disks::{let_go, loop_of};
use crate::logpeer::{assert_same, wait_all, wait_fetched, wait_follows};
use crate::{MIB, SOON, check_blocks, cluster, rounds, seed, write_blocks};
use holdfast_testkit::{Cluster, Ledger, Node, Writer, WriterOptions, files};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SIZE: u64 = 32 * MIB;
/// Room for four segments, and what is beside them.
const DEVICE: u64 = 17 * MIB;

fn device_of(node: &Node) -> PathBuf {
    let path = node.dir().join("r0.journal");
    files::make_sparse(&path, DEVICE);
    path
}

fn create(cluster: &Cluster, device: &Path) {
    cluster.create("r0", SIZE, &["--journal", &device.display().to_string()]);
}

fn wait_primary(node: &Node) {
    node.wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
}

fn is_blank(path: &Path) -> bool {
    let mut begin = vec![1; 128 << 10];
    let file = fs::File::open(path).expect("it is there");
    file.read_exact_at(&mut begin, 0).expect("it can be read");
    begin.iter().all(|byte| *byte == 0)
}

/// Load, kill -9, recovery, again and again; the journal comes round several times. Then rotate and
/// trim, and the device is given free.
fn serves(cluster: &mut Cluster, device: &Path) {
    create(cluster, device);
    let limit = cluster[0].resource("r0").journal.expect("it has one").limit_bytes;
    assert_eq!(limit, 16 * MIB, "the whole device, less what is beside the segments");
    let mut ledger = Ledger::new(seed(), 1024);
    for _ in 0..2 + rounds() {
        let options = WriterOptions { connections: 2, ..WriterOptions::default() };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        writer.wait_acknowledged(3000);
        cluster[0].kill9();
        ledger = writer.join().0;
        cluster[0].start();
        wait_primary(&cluster[0]);
        ledger.verify_export(&cluster[0].uri("r0"));
    }
    let head = cluster[0].resource("r0").journal.expect("it has one").head;
    assert!(head > 2 * DEVICE, "it came round: {head}");
    cluster[0].ok(&["log", "rotate", "r0"]);
    write_blocks(&cluster[0], "r0", 2, 2000..2010);
    cluster[0].ok(&["log", "trim", "r0"]);
    let log = cluster[0].json(&["log", "ls", "r0"]);
    assert_eq!(log["segments"].as_array().map(Vec::len), Some(1), "{log}");
    cluster[0].stop();
    cluster[0].start();
    wait_primary(&cluster[0]);
    check_blocks(&cluster[0], "r0", 2, 2000..2010);
    assert!(!is_blank(device));
    cluster[0].ok(&["delete", "r0"]);
    assert!(device.exists() && is_blank(device), "it is free again");
    ledger.verify_file(&cluster[0].disk("r0"));
    let again = device.display().to_string();
    cluster.create("r1", MIB, &["--journal", &again, "--journal-size", "16M"]);
}

#[test]
fn a_file_of_a_fixed_size_is_a_journal() {
    let mut cluster = cluster(1);
    let device = device_of(&cluster[0]);
    serves(&mut cluster, &device);
}

#[test]
fn a_block_device_is_a_journal() {
    let mut cluster = cluster(1);
    let Some(device) = loop_of(&cluster, "journal", DEVICE, &[]) else { return };
    serves(&mut cluster, Path::new(&device));
    cluster[0].ok(&["delete", "r1"]);
    let_go(&device);
}

#[test]
fn followers_have_their_copies_on_devices() {
    let mut cluster = cluster(2);
    let devices: Vec<String> =
        (0..2).map(|n| device_of(&cluster[n]).display().to_string()).collect();
    cluster.create("r0", SIZE, &["--journal", &devices[0]]);
    let joining = ["--protocol", "log", "--journal", &devices[1]];
    cluster.join_resource(&cluster[1], "r0", SIZE, &joining);
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    let mut ledger = Ledger::new(seed(), 1024);
    for round in 0..3 {
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
        writer.wait_acknowledged(2500);
        cluster[1].kill9();
        if round == 1 {
            cluster[0].kill9();
        }
        ledger = if round == 1 { writer.join().0 } else { writer.stop_well() };
        if round == 1 {
            cluster[0].start();
            wait_primary(&cluster[0]);
        }
        cluster[1].start();
        wait_follows(&cluster[1]);
        wait_all(&cluster[0]);
        assert_same(&cluster, 0, 1);
    }
    ledger.verify_export(&cluster[0].uri("r0"));
    // What is in the journal can be had from there, too.
    let copy = cluster.scratch().join("copy");
    let into = copy.display().to_string();
    cluster[1].ok(&["pause", "r0", "replay"]);
    write_blocks(&cluster[0], "r0", 5, 4000..4100);
    wait_fetched(&cluster[0], &cluster[1]);
    cluster[1].ok(&["rewind", "r0", "--to", "latest", "--into", &into]);
    let mut block = vec![0; 4096];
    let file = fs::File::open(&copy).expect("it was made");
    file.read_exact_at(&mut block, 4000 * 4096).expect("it can be read");
    assert!(block.iter().any(|byte| *byte != 0), "what was fetched is in it");
    cluster[1].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn a_device_that_holds_something_or_is_too_short_is_refused_and_stays_as_it_is() {
    let mut cluster = cluster(1);
    let node = &cluster[0];
    let disk = node.disk("r0").display().to_string();
    let make = |journal: &str, size: &str, words: &str| {
        let line = ["create", "r0", "--disk", &disk, "--size", "4M", "--journal", journal];
        let sized = [&line[..], &["--journal-size", size]].concat();
        node.refused(if size.is_empty() { &line } else { &sized }, 1, words);
        assert!(!Path::new(&disk).exists(), "nothing is left");
    };
    make("/dev/holdfast-no-such", "16M", "there is no such device");
    make("/dev/null", "16M", "neither a directory nor a block device");
    let device = device_of(node);
    let path = device.display().to_string();
    make(&path, "17M", "it needs 17 MiB, and there is room for 16 MiB");
    let file = fs::File::options().write(true).open(&device).expect("it is there");
    for at in [1024 + 0x38, 65536, DEVICE - 100] {
        file.write_all_at(&[0x53], at).expect("it can be written");
        make(&path, "", "there is something on it already");
        let mut byte = [0];
        fs::File::open(&device).expect("it is there").read_exact_at(&mut byte, at).expect("read");
        assert_eq!(byte, [0x53], "it stays");
        file.write_all_at(&[0], at).expect("it can be written");
    }
    file.set_len(10 * MIB).expect("it becomes shorter");
    make(&path, "", "it must have");
    file.set_len(DEVICE).expect("it becomes longer");
    assert!(node.status().resources.is_empty());
    create(&cluster, &device);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    let words = "has room for 16 MiB, and 17 MiB are asked for";
    cluster[0].refused(&["set", "r0", "journal-size=17M"], 1, words);
    // It grows while nobody uses it, and what there is to gain is used then.
    cluster[0].ok(&["down", "r0"]);
    file.set_len(DEVICE + 8 * MIB).expect("it becomes longer");
    cluster[0].ok(&["up", "r0"]);
    cluster[0].ok(&["set", "r0", "journal-size=24M"]);
    cluster[0].wait_resource("r0", SOON, "it has room", |r| {
        r.journal.as_ref().is_some_and(|journal| journal.limit_bytes == 24 * MIB)
    });
    cluster[0].ok(&["primary", "r0"]);
    let ledger = Ledger::new(seed(), 1024);
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
    writer.wait_acknowledged(8000);
    writer.stop_well().verify_export(&cluster[0].uri("r0"));
    // Two that were mixed up.
    let other = cluster[0].dir().join("r1.journal");
    files::make_sparse(&other, DEVICE + 8 * MIB);
    cluster.create("r1", 4 * MIB, &["--journal", &other.display().to_string()]);
    cluster[0].stop();
    let away = device.with_extension("away");
    for (from, to) in [(&device, &away), (&other, &device), (&away, &other)] {
        fs::rename(from, to).expect("it can be moved");
    }
    cluster[0].start();
    for name in ["r0", "r1"] {
        let problem = cluster[0].resource(name).disk.problem.expect("it says why");
        assert!(problem.contains("it belongs to another resource"), "{problem}");
    }
}
