//! Files that fail, or that others have their hands on.

use super::{Server, have_libnbd, nbdsh};
use crate::MIB;
use holdfast_testkit::{Mount, Scratch, devices_unavailable, files};

const FULL: &str = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
def errno(call):
    try:
        call()
        return None
    except nbd.Error as e:
        return e.errno
kept = bytes([7]) * (1 << 20)
h.pwrite(kept, 0)
assert errno(lambda: [h.pwrite(os.urandom(1 << 20), i << 20) for i in range(1, 8)]) == "ENOSPC"
assert errno(lambda: h.zero(1 << 20, 32 << 20, nbd.CMD_FLAG_NO_HOLE)) == "ENOSPC"
assert h.pread(1 << 20, 0) == kept
h.trim(6 << 20, 1 << 20)
h.pwrite(b"room" * 16384, 40 << 20)
h.flush()
assert h.pread(8, 40 << 20) == b"roomroom"
h.shutdown()
"#;

#[test]
fn a_full_disk_is_an_error_of_the_request_and_no_more() {
    if !have_libnbd() {
        return;
    }
    if let Some(why) = devices_unavailable() {
        return println!("skipped: {why}");
    }
    let scratch = Scratch::new();
    let mount = Mount::memory(&scratch.join("small"), 4 * MIB);
    files::make_sparse(&mount.path().join("disk"), 64 * MIB);
    let server = Server::start(scratch.path(), &["small/disk", "--unix", "socket"]);
    nbdsh(FULL, &[&server.uri()]);
    let failed = server.event("io_error");
    assert!(failed["why"].as_str().is_some_and(|why| why.contains("no space")), "{failed}");
    server.stop();
    mount.unmount();
}

const CUT: &str = r#"
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"b" * 65536, 6 << 20)
os.truncate(sys.argv[2], 1 << 20)
try:
    h.pread(4096, 6 << 20)
    raise SystemExit("there is nothing to read")
except nbd.Error as e:
    assert e.errno == "EIO", e
assert h.pread(4096, 0) == bytes(4096)
h.pwrite(b"c" * 4096, 4 << 20)
h.flush()
assert h.pread(4096, 4 << 20) == b"c" * 4096
h.shutdown()
"#;

#[test]
fn a_file_that_somebody_cuts_short_gives_errors_and_never_other_data() {
    if !have_libnbd() {
        return;
    }
    for scratch in [Scratch::new(), Scratch::on_disk()] {
        let path = scratch.join("disk");
        files::make_sparse(&path, 8 * MIB);
        let server = Server::start(scratch.path(), &["disk", "--unix", "socket"]);
        nbdsh(CUT, &[&server.uri(), &path.display().to_string()]);
        assert_eq!(server.stop()["errors"], 1);
    }
}
