//! Real NBD clients on the export of a replicated resource.

use crate::serve::{have, tls::certificates};
use crate::{BLOCK, MIB, SOON, binary, cluster, write_blocks};
use holdfast_nbd::NbdUri;
use holdfast_testkit::{Cluster, ClusterOptions, Rng, Scratch, files, run, run_ok, run_with_limit};
use serde_json::Value;
use std::io::Read;
use std::net::TcpStream;
use std::process::Command;

fn uri(cluster: &Cluster) -> String {
    cluster[0].uri("r0").to_string()
}

#[test]
fn the_status_says_where_the_export_is() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let told: NbdUri = cluster[0].resource("r0").nbd_uri.parse().expect("it is a URI");
    assert_eq!(told, cluster[0].uri("r0"));
    // The other node refuses, in words.
    let output = run(Command::new("qemu-img").args(["info", &cluster[1].uri("r0").to_string()]));
    assert_ne!(output.status, 0);
    assert!(output.stderr.contains("Primary"), "{output}");
    let output = run(Command::new("nbdinfo").arg(cluster[0].uri("nope").to_string()));
    assert_ne!(output.status, 0);
}

#[test]
fn nbdinfo_sees_size_and_abilities() {
    let cluster = cluster(2);
    cluster.resource("r0", 16 * MIB, 2);
    let text = run_ok(Command::new("nbdinfo").args(["--json", &uri(&cluster)]));
    let info: Value = serde_json::from_str(&text).expect("nbdinfo prints JSON");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 16 * MIB);
    assert_eq!(info["structured"], true);
    for ability in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[ability], true, "{ability}");
    }
    assert_eq!(export["is_read_only"], false);
    assert!(export["contexts"].as_array().is_some_and(|c| c.contains(&"base:allocation".into())));
    let list =
        run_ok(Command::new("nbdinfo").args(["--list", "--json"]).arg(format!(
            "nbd+unix:///?socket={}",
            cluster[0].dir().join("run/nbd.sock").display()
        )));
    assert!(list.contains("\"r0\""), "{list}");
}

#[test]
fn nbdcopy_and_qemu_img_copy_and_compare() {
    let cluster = cluster(2);
    let size = 32 * MIB;
    cluster.resource("r0", size, 2);
    let source = cluster.scratch().join("source");
    files::make_random(&source, size, 5);
    run_ok(Command::new("nbdcopy").arg(&source).arg(uri(&cluster)));
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    files::assert_equal(&source, &cluster[1].disk("r0"), size);
    let back = cluster.scratch().join("back");
    run_ok(Command::new("nbdcopy").arg(uri(&cluster)).arg(&back));
    files::assert_equal(&source, &back, size);

    let info = run_ok(Command::new("qemu-img").args(["info", "--output=json", &uri(&cluster)]));
    let info: Value = serde_json::from_str(&info).expect("qemu-img prints JSON");
    assert_eq!(info["virtual-size"], size);
    let compare = ["compare", "-f", "raw", "-F", "raw"];
    run_ok(Command::new("qemu-img").args(compare).arg(&source).arg(uri(&cluster)));
    write_blocks(&cluster[0], "r0", 1, [100]);
    let output = run(Command::new("qemu-img").args(compare).arg(&source).arg(uri(&cluster)));
    assert_eq!(output.status, 1, "{output}");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
    run_ok(Command::new("qemu-img").args(convert).arg(&source).arg(uri(&cluster)));
    files::assert_equal(&source, &cluster[1].disk("r0"), size);
}

#[test]
fn fio_verifies_what_it_wrote() {
    let cluster = cluster(2);
    let size = 32 * MIB;
    cluster.resource("r0", size, 2);
    let output = run_with_limit(
        Command::new("fio").current_dir(cluster.scratch()).args([
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", uri(&cluster)),
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--bs_unaligned=0",
            "--size=16M",
            "--iodepth=16",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--randseed=7",
        ]),
        SOON * 3,
    );
    assert_eq!(output.status, 0, "{output}");
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

const NBDSH: &str = r#"
import os, sys
uri = sys.argv[1]
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation")
assert h.can_multi_conn() and h.can_fua() and h.can_flush() and h.can_trim() and h.can_zero()
size = h.get_size()

# FUA and plain writes, seen by a second connection at once
other = nbd.NBD()
other.connect_uri(uri)
data = os.urandom(65536)
h.pwrite(data, 0, nbd.CMD_FLAG_FUA)
assert other.pread(65536, 0) == data
other.pwrite(b"x" * 512, 512)
other.flush()
data = data[:512] + b"x" * 512 + data[1024:]
assert h.pread(65536, 0) == data

# zeroes and trims read as zeroes
h.zero(4096, 8192)
h.zero(1000, 20000, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 32768)
data = data[:8192] + bytes(4096) + data[12288:]
data = data[:20000] + bytes(1000) + data[21000:]
data = data[:32768] + bytes(4096) + data[36864:]
assert h.pread(65536, 0) == data
assert other.pread(65536, 0) == data

# what is allocated
h.zero(1 << 20, 1 << 20)
h.pwrite(b"y" * 4096, 1 << 20)
seen = []
def extents(context, offset, entries, error):
    if context == "base:allocation":
        seen.append((offset, list(entries)))
h.block_status(1 << 20, 1 << 20, extents)
offset, entries = seen[0]
assert offset == 1 << 20, seen
lengths, flags = entries[0::2], entries[1::2]
assert flags[0] & nbd.STATE_HOLE == 0 and lengths[0] >= 4096, seen

# structured reads in pieces
pieces = []
def piece(buf, offset, status, error):
    pieces.append((offset, len(buf), status))
h.pread_structured(65536, 0, piece)
assert sum(length for _, length, _ in pieces) == 65536, pieces

# errors leave the connection as it is
h.set_strict_mode(0)
for bad in (lambda: h.pread(4096, size), lambda: h.pwrite(b"z" * 4096, size - 100)):
    try:
        bad()
    except nbd.Error:
        pass
    else:
        raise SystemExit("what is out of bounds was accepted")
assert h.pread(65536, 0) == data
h.shutdown()
other.shutdown()
print("well")
"#;

#[test]
fn nbdsh_tries_every_command() {
    let cluster = cluster(2);
    let size = 16 * MIB;
    cluster.resource("r0", size, 2);
    let script = format!("import nbd\n{NBDSH}");
    let output = run(Command::new("/usr/bin/python3").args(["-c", &script, &uri(&cluster)]));
    assert_eq!((output.status, output.stdout.trim()), (0, "well"), "{output}");
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn writes_of_any_offset_and_length_are_replicated() {
    let cluster = cluster(2);
    let size = 4 * MIB;
    cluster.resource("r0", size, 2);
    let mut model = vec![0_u8; usize::try_from(size).expect("it is small")];
    let mut clients = [cluster[0].open("r0"), cluster[0].open("r0")];
    let mut rng = Rng::new(512);
    for turn in 0..300 {
        let sectors = 1 + rng.below(if turn % 3 == 0 { 40 } else { 3 });
        let len = if turn % 2 == 0 { sectors * 512 } else { 1 + rng.below(5000) };
        let offset = match turn % 2 {
            0 => rng.below((size - len) / 512) * 512,
            _ => rng.below(size - len),
        };
        let client = &mut clients[usize::from(turn % 5 == 0)];
        let range = usize::try_from(offset).expect("it is small")..;
        let target = &mut model[range][..usize::try_from(len).expect("it is small")];
        match turn % 7 {
            6 => {
                client.write_zeroes(offset, len).expect("it is zeroed");
                target.fill(0);
            }
            _ => {
                rng.fill(target);
                client.write_at(target, offset).expect("it is written");
            }
        }
    }
    let mut found = vec![0; model.len()];
    clients[0].read_at(&mut found, 0).expect("it can be read");
    assert!(found == model);
    for node in cluster.nodes() {
        assert!(files::read(&node.disk("r0"), 0, model.len()) == model, "node {}", node.name());
    }
}

/// Writes that lie in the same block, from many connections at the same time.
#[test]
fn neighbours_in_a_block_do_not_disturb_each_other() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let threads: Vec<_> = (0..8_u8)
        .map(|index| {
            let mut client = cluster[0].open("r0");
            std::thread::spawn(move || {
                for turn in 0..100_u8 {
                    for block in 0..4 {
                        let offset = block * BLOCK + u64::from(index) * 512;
                        client.write_at(&[index * 16 + turn % 16; 512], offset).expect("written");
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("it ends well");
    }
    let due: Vec<u8> = (0..8_u8).flat_map(|index| [index * 16 + 99 % 16; 512]).collect();
    for node in cluster.nodes() {
        for block in 0..4 {
            assert!(files::read(&node.disk("r0"), block * BLOCK, 4096) == due, "{}", node.name());
        }
    }
}

/// A node with one resource of 4 MiB whose exports are there by TCP, and the port.
fn by_tcp(arguments: &[&str]) -> (Cluster, u16) {
    let options = ClusterOptions { arguments, ..Default::default() };
    let cluster = Cluster::with(&binary(), 1, options);
    cluster.create("r0", 4 * MIB, &[]);
    // The log says which port was picked.
    let log = cluster[0].log();
    let port = log.lines().find_map(|line| {
        let (_, rest) = line.split_once("NBD clients are served on 127.0.0.1:")?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u16>().ok()
    });
    let port = port.unwrap_or_else(|| panic!("no port in {log}"));
    (cluster, port)
}

/// The size that nbdinfo finds; `None` when it is not let in.
fn found_size(uri: &str) -> Option<u64> {
    let output = run(Command::new("nbdinfo").args(["--size", uri]));
    (output.status == 0).then(|| output.stdout.trim().parse().expect("it is a number"))
}

#[test]
fn the_export_is_there_by_tcp_when_asked_for() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let (_cluster, port) = by_tcp(&["--nbd-listen", "127.0.0.1:0", "--nbd-allow", "127.0.0.0/8"]);
    assert_eq!(found_size(&format!("nbd://127.0.0.1:{port}/r0")), Some(4 * MIB));
}

#[test]
fn strangers_are_not_let_in_by_tcp() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let (cluster, port) = by_tcp(&["--nbd-listen", "127.0.0.1:0", "--nbd-allow", "127.0.0.2"]);
    assert_eq!(found_size(&format!("nbd://127.0.0.1:{port}/r0")), None);
    cluster[0].wait_log("is turned away: it is not allowed");
    assert_eq!(found_size(&cluster[0].uri("r0").to_string()), Some(4 * MIB));
}

#[test]
fn many_clients_by_tcp_do_not_keep_this_machine_out() {
    let (cluster, port) = by_tcp(&["--nbd-listen", "127.0.0.1:0"]);
    let greeted = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.read_exact(&mut [0; 18]).ok().map(|()| stream)
    };
    let crowd: Vec<_> = (0..300).map_while(greeted).collect();
    assert!((100..256).contains(&crowd.len()), "{} were let in", crowd.len());
    let mut client = cluster[0].open("r0");
    client.write_at(&[3; 4096], 0).expect("it is written");
}

#[test]
fn clients_come_inside_tls_where_that_is_asked_for() {
    if !have(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let scratch = Scratch::new();
    certificates(&scratch.join("tls"));
    certificates(&scratch.join("stranger"));
    let directory = scratch.join("tls").display().to_string();
    let listen = ["--nbd-listen", "127.0.0.1:0", "--nbd-tls-certificates", &directory];
    let (cluster, port) = by_tcp(&[&listen[..], &["--nbd-tls-verify-peer"]].concat());
    let uri = |files: &str| {
        let files = scratch.join(files);
        format!("nbds://127.0.0.1:{port}/r0?tls-certificates={}", files.display())
    };
    assert_eq!(found_size(&format!("nbd://127.0.0.1:{port}/r0")), None, "nothing in the clear");
    assert_eq!(found_size(&uri("stranger")), None);
    assert_eq!(found_size(&uri("tls")), Some(4 * MIB));
    let image = scratch.join("image");
    files::make_random(&image, 4 * MIB, 5);
    run_ok(Command::new("nbdcopy").arg("--flush").arg(&image).arg(uri("tls")));
    files::assert_equal(&image, &cluster[0].disk("r0"), 4 * MIB);
    // Whoever may open the socket of the daemon needs no certificate.
    assert_eq!(found_size(&cluster[0].uri("r0").to_string()), Some(4 * MIB));
}

#[test]
fn a_daemon_that_cannot_offer_tls_does_not_start() {
    let scratch = Scratch::new();
    for (arguments, why) in [
        (&["--nbd-tls-certificates", "/nowhere"][..], "/nowhere/server-cert.pem cannot be used"),
        (&["--nbd-tls-verify-peer"], "no directory with certificates was named"),
    ] {
        let output = run(Command::new(binary())
            .args(["daemon", "--nbd-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
            .args(["--state-dir", "state", "--socket", "run/control.sock"])
            .args(arguments)
            .current_dir(scratch.path()));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains(why), "{output}");
    }
}
