//! One client program after the other.

use super::{PYTHON, Server, have, have_libnbd, nbdsh};
use crate::MIB;
use holdfast_testkit::{Scratch, files, run, run_ok};
use serde_json::Value;
use std::process::Command;

/// A server for a sparse file of 32 MiB.
fn small(arguments: &[&str]) -> (Scratch, Server) {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("disk"), 32 * MIB);
    let all = [&["disk", "--listen", "127.0.0.1:0"], arguments].concat();
    let server = Server::start(scratch.path(), &all);
    (scratch, server)
}

/// Data, holes and zeroes.
fn image(scratch: &Scratch) -> std::path::PathBuf {
    let path = scratch.join("image");
    files::make_sparse(&path, 32 * MIB);
    let mut content = vec![0; usize::try_from(32 * MIB).expect("it is small")];
    for (index, part) in content.chunks_mut(1 << 19).enumerate().filter(|(at, _)| at % 3 != 2) {
        part[..200_000].fill(u8::try_from(index).expect("there are few") + 1);
    }
    std::fs::write(&path, content).expect("there is room");
    path
}

#[test]
fn nbdinfo_sees_everything_that_is_offered() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    std::fs::write(scratch.join("odd"), vec![7; 10_001]).expect("there is room");
    files::make_sparse(&scratch.join("b"), MIB);
    files::make_sparse(&scratch.join("c"), 2 * MIB);
    let server = Server::start(
        scratch.path(),
        &[
            "odd",
            "--name",
            "first one",
            "--description",
            "for people",
            "--export",
            "both=b,c",
            "--listen",
            "127.0.0.1:0",
            "--unix",
            "socket",
        ],
    );
    let size = |uri: &str| run_ok(Command::new("nbdinfo").args(["--size", uri])).trim().to_owned();
    assert_eq!(size(&server.uri()), "10001");
    assert_eq!(size(&server.uri_of(1)), (3 * MIB).to_string());
    let address = server.address();
    assert_eq!(size(&format!("nbd://{address}")), "10001", "the first is the default");
    let socket = scratch.join("socket");
    assert_eq!(
        size(&format!("nbd+unix:///both?socket={}", socket.display())),
        (3 * MIB).to_string()
    );
    assert_ne!(run(Command::new("nbdinfo").arg(format!("nbd://{address}/none"))).status, 0);
    let list = run_ok(Command::new("nbdinfo").args(["--list", "--json", &server.uri()]));
    let list: Value = serde_json::from_str(&list).expect("nbdinfo prints JSON");
    let names: Vec<_> =
        list["exports"].as_array().into_iter().flatten().map(|e| &e["export-name"]).collect();
    assert_eq!(names, ["first one", "both"]);
    let info = run_ok(Command::new("nbdinfo").args(["--json", &server.uri()]));
    let info: Value = serde_json::from_str(&info).expect("nbdinfo prints JSON");
    let export = &info["exports"][0];
    for ability in [
        "can_cache",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[ability], true, "{ability}");
    }
    assert_eq!(export["description"], "for people");
    assert_eq!(export["is_read_only"], false);
    assert_eq!(server.ready["exports"][0]["size_bytes"], 10_001);
    drop(server);
}

#[test]
fn copies_go_in_and_come_out() {
    if !have(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let (scratch, server) = small(&[]);
    let (image, back) = (image(&scratch), scratch.join("back"));
    let uri = server.uri();
    let flags = ["--connections=4", "--requests=32", "--flush"];
    run_ok(Command::new("nbdcopy").args(flags).arg(&image).arg(&uri));
    files::assert_equal(&image, &scratch.join("disk"), 32 * MIB);
    run_ok(Command::new("nbdcopy").arg(&uri).arg(&back));
    files::assert_equal(&image, &back, 32 * MIB);
    let raw = ["-f", "raw", "-O", "raw"];
    run_ok(Command::new("qemu-img").args(["convert", "-n"]).args(raw).arg(&image).arg(&uri));
    run_ok(
        Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(&image).arg(&uri),
    );
    let map = run_ok(Command::new("qemu-img").args(["map", "-f", "raw", "--output=json", &uri]));
    assert!(map.contains("\"zero\": true") && map.contains("\"data\": true"), "{map}");
    let qcow = scratch.join("q.qcow2");
    run_ok(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2", &uri]).arg(&qcow));
    run_ok(
        Command::new("qemu-img")
            .args(["compare", "-f", "raw", "-F", "qcow2"])
            .arg(&image)
            .arg(&qcow),
    );
    run_ok(
        Command::new("qemu-img")
            .args(["bench", "-f", "raw", "-c", "500", "-d", "32", "-s", "4096", &uri]),
    );
    server.stop();
}

#[test]
fn qemu_io_zeroes_discards_and_flushes() {
    if !have(&["qemu-io"]) {
        return;
    }
    let (_scratch, server) = small(&[]);
    let told = run_ok(Command::new("qemu-io").args([
        "-f",
        "raw",
        "-c",
        "write -P 0xa5 0 1M",
        "-c",
        "write -z 256k 128k",
        "-c",
        "read -P 0 256k 128k",
        "-c",
        "read -P 0xa5 384k 64k",
        "-c",
        "write -f -P 0x11 3M 64k",
        "-c",
        "discard 2M 1M",
        "-c",
        "flush",
        "-c",
        "aio_write -P 2 8M 64k",
        "-c",
        "aio_write -z 9M 64k",
        "-c",
        "aio_flush",
        "-c",
        "read -P 0x11 3M 64k",
        "-c",
        "read -P 2 8M 64k",
        &server.uri(),
    ]));
    assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have(&["fio"]) {
        return;
    }
    let (scratch, server) = small(&[]);
    let output = run(Command::new("fio").current_dir(scratch.path()).args([
        "--name=job",
        "--verify_state_save=0",
        "--ioengine=nbd",
        &format!("--uri={}", server.uri()),
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--size=16M",
        "--iodepth=16",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--randseed=7",
    ]));
    assert_eq!(output.status, 0, "{output}");
    assert!(!output.stdout.contains("verify:"), "{output}");
}

#[test]
fn a_proxy_and_a_lister_of_others_get_along() {
    if !have(&["nbdkit", "nbdinfo", "nbd-client"]) {
        return;
    }
    let (_scratch, server) = small(&["--name", "disk"]);
    let uri = format!("uri={}", server.uri());
    let size = "nbdinfo --size \"$uri\"";
    let told =
        run_ok(Command::new("nbdkit").args(["-U", "-", "nbd", &uri, "shared=true", "--run", size]));
    assert_eq!(told.trim(), (32 * MIB).to_string());
    let address = server.address();
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let list = run_ok(Command::new("nbd-client").env("PATH", path).args([
        "-l",
        &address.ip().to_string(),
        &address.port().to_string(),
    ]));
    assert!(list.lines().any(|line| line == "disk"), "{list}");
}

const EVERY_COMMAND: &str = r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.add_meta_context("x-holdfast:changed")
h.connect_uri(sys.argv[1])
assert h.can_meta_context("base:allocation") and h.can_meta_context("x-holdfast:changed")
assert h.can_fast_zero() and h.can_cache() and h.can_multi_conn()

def status(context):
    seen = {}
    h.block_status(32 << 20, 0, lambda name, offset, entries, error: seen.setdefault(name, entries) and 0)
    return list(zip(seen[context][0::2], seen[context][1::2]))

assert status("x-holdfast:changed") == [(32 << 20, 0)]
h.pwrite(b"a" * 5000, 70000)
h.zero(65536, 1 << 20)
assert status("x-holdfast:changed") == [
    (65536, 0), (65536, 1), ((1 << 20) - 131072, 0), (65536, 1), ((31 << 20) - 65536, 0)]
first = status("base:allocation")[0]
assert first[1] & nbd.STATE_HOLE, first

h.zero(4096, 69632, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(8192, 69632) == bytes(4096) + b"a" * (75000 - 73728) + bytes(8192 - 4096 - 1272)
try:
    h.zero(4096, 73728, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    raise SystemExit("zeroes that take space are not fast")
except nbd.Error as e:
    assert e.errno in ("ENOTSUP", "EOPNOTSUPP"), e
assert h.pread(1272, 73728) == b"a" * 1272
h.zero(100, 74000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 73728, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
pieces = []
h.pread_structured(1 << 20, 2 << 20, lambda buf, offset, status, error: pieces.append(status))
assert pieces == [nbd.READ_HOLE], pieces
for bad, errno in ((lambda: h.pread(512, 32 << 20), "EINVAL"), (lambda: h.pwrite(b"z" * 512, (32 << 20) - 100), "ENOSPC")):
    try:
        bad()
        raise SystemExit("out of bounds")
    except nbd.Error as e:
        assert e.errno == errno, e
h.shutdown()
"#;

#[test]
fn libnbd_tries_every_command() {
    if have_libnbd() {
        let (_scratch, server) = small(&["--track-changes"]);
        nbdsh(EVERY_COMMAND, &[&server.uri()]);
        let told = server.stop();
        assert_eq!((&told["clients"], &told["errors"]), (&1.into(), &0.into()), "{told}");
    }
}

#[test]
fn old_clients_are_served_too() {
    if !have_libnbd() {
        return;
    }
    let (_scratch, server) = small(&[]);
    let script = "
for plain in (lambda h: h.set_request_structured_replies(False), lambda h: h.set_handshake_flags(0)):
    h = nbd.NBD()
    plain(h)
    h.connect_uri(sys.argv[1])
    h.pwrite(b'old' * 1000, 5)
    assert h.pread(3000, 5) == b'old' * 1000
    h.shutdown()
";
    nbdsh(script, &[&server.uri()]);
}

#[test]
fn qemu_of_newer_days_uses_extended_headers_or_not() {
    // Whatever version is there: what it agrees on must work.
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (_scratch, server) = small(&["--track-changes"]);
    let uri = server.uri();
    run_ok(Command::new("qemu-io").args(["-f", "raw", "-c", "write 1M 64k", &uri]));
    let address = server.address();
    let options = format!(
        "driver=nbd,server.type=inet,server.host={},server.port={},x-dirty-bitmap=x-holdfast:changed",
        address.ip(),
        address.port()
    );
    let map =
        run_ok(Command::new("qemu-img").args(["map", "--output=json", "--image-opts", &options]));
    let map: Value = serde_json::from_str(&map).expect("qemu-img prints JSON");
    // qemu shows what is dirty as no data.
    let changed: Vec<_> =
        map.as_array().into_iter().flatten().filter(|e| e["data"] == false).collect();
    assert_eq!(changed.len(), 1, "{map}");
    assert_eq!((&changed[0]["start"], &changed[0]["length"]), (&MIB.into(), &65536.into()));
}

#[test]
fn nbdfuse_shows_a_file() {
    let fuse = std::fs::File::options().write(true).open("/dev/fuse").is_ok();
    if !have(&["nbdfuse", "fusermount3"]) || !fuse {
        return println!("skipped: there is no FUSE here");
    }
    let (scratch, server) = small(&[]);
    let mount = scratch.join("mount");
    std::fs::create_dir(&mount).expect("it can be made");
    let mut child =
        Command::new("nbdfuse").arg(&mount).arg(server.uri()).spawn().expect("it starts");
    let file = mount.join("nbd");
    holdfast_testkit::wait_until(crate::SOON, "the file is there", || file.exists());
    let script = "f = open(sys.argv[1], 'r+b'); f.seek(4096); f.write(b'fuse'); f.close()";
    run_ok(Command::new(PYTHON).args(["-c", &format!("import sys; {script}")]).arg(&file));
    let len = file.metadata().expect("it is there").len();
    run_ok(Command::new("fusermount3").arg("-u").arg(&mount));
    child.wait().expect("it ends when it is unmounted");
    assert_eq!(len, 32 * MIB);
    assert_eq!(files::read(&scratch.join("disk"), 4096, 4), b"fuse");
}

/// libnbd opens the socket and starts the server, as systemd would.
const HANDED_OVER: &str = r#"
h = nbd.NBD()
h.connect_systemd_socket_activation([sys.argv[1], "serve", "--quiet", sys.argv[2]])
assert h.get_size() == 32 << 20
h.pwrite(b"handed over", 0)
h.shutdown()
"#;

#[test]
fn a_socket_can_be_handed_over() {
    if !have_libnbd() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.join("disk");
    files::make_sparse(&path, 32 * MIB);
    let disk = path.display().to_string();
    nbdsh(HANDED_OVER, &[&crate::binary(), &disk]);
    assert_eq!(files::read(&path, 0, 11), b"handed over");
    // Descriptors that are no sockets, and ones that are not open at all.
    for redirect in ["3</dev/null", "3<&-"] {
        let script = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve \"$1\" {redirect}");
        let output = run(Command::new("sh").args(["-c", &script, &crate::binary(), &disk]));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("cannot be listened at: descriptor 3"), "{output}");
    }
}
