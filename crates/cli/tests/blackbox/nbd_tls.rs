//! TLS between this server and the clients of others, and between this client and the servers of
//! others. Every pair exchanges data, with certificates of both sides.

use crate::serve::{Server, have, have_libnbd, nbdsh, tls::certificates};
use crate::{MIB, SOON, attach, cluster, device};
use holdfast_testkit::{
    Cluster, ClusterOptions, Scratch, files, run_ok, run_with_limit, wait_until,
};
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const SIZE: u64 = 16 * MIB;

/// A server that wants a certificate, by TCP.
struct Door {
    address: SocketAddr,
    export: &'static str,
    /// Where the certificates are.
    dir: PathBuf,
    /// What is behind it.
    image: PathBuf,
    scratch: PathBuf,
}

impl Door {
    /// For clients that take their certificates from the URI.
    fn uri(&self) -> String {
        format!("nbds://{}/{}?tls-certificates={}", self.address, self.export, self.dir.display())
    }

    /// For qemu.
    fn qemu(&self) -> [String; 3] {
        let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", self.dir.display());
        let image = format!(
            "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},export={},\
             tls-creds=t",
            self.address.port(),
            self.export
        );
        ["--object".to_owned(), object, image]
    }
}

/// All clients of others that there are, one after the other.
fn clients_of_others(door: &Door) {
    let uri = door.uri();
    let (source, back) = (door.scratch.join("source"), door.scratch.join("back"));
    files::make_random(&source, SIZE, 77);
    if have(&["nbdinfo", "nbdcopy"]) {
        let told = run_ok(Command::new("nbdinfo").arg(&uri));
        assert!(told.contains("with TLS"), "{told}");
        let copy = |from: &str, to: &str| {
            run_ok(Command::new("nbdcopy").args(["--flush", from, to]));
        };
        copy(&source.display().to_string(), &uri);
        files::assert_equal(&source, &door.image, SIZE);
        copy(&uri, &back.display().to_string());
        files::assert_equal(&source, &back, SIZE);
    }
    if have_libnbd() {
        let script = "
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri(sys.argv[1])
assert h.get_tls_negotiated()
h.pwrite(b'inside' * 1000, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(6000, 4096) == b'inside' * 1000
h.zero(8192, 65536)
h.trim(8192, 131072)
h.flush()
h.shutdown()
";
        nbdsh(script, &[&uri]);
        assert_eq!(files::read(&door.image, 4096, 6), b"inside");
    }
    if have(&["qemu-img", "qemu-io"]) {
        let [flag, object, image] = door.qemu();
        run_ok(
            Command::new("qemu-img")
                .args(["convert", "-n", &flag, &object, "--target-image-opts", "-f", "raw"])
                .arg(&source)
                .arg(&image),
        );
        files::assert_equal(&source, &door.image, SIZE);
        let read = ["-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", "-c", "flush"];
        let told = run_ok(
            Command::new("qemu-io").args([&flag, &object, "--image-opts"]).args(read).arg(&image),
        );
        assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
        assert_eq!(files::read(&door.image, MIB, 65536), [7; 65536]);
    }
    fio(door);
}

/// fio cannot be told where its certificates are: libnbd looks below the home directory, but not
/// root's.
fn fio(door: &Door) {
    if !have(&["fio", "setpriv"]) || !rustix::process::geteuid().is_root() {
        return println!("skipped: fio with TLS wants fio, setpriv and root");
    }
    let home = door.scratch.join("home");
    for place in [".pki/libnbd", ".config/pki/libnbd"] {
        let place = home.join(place);
        fs::create_dir_all(&place).expect("it can be made");
        for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
            fs::copy(door.dir.join(file), place.join(file)).expect("it is there");
        }
    }
    for dir in [&door.scratch, &home] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("it is ours");
    }
    let output = run_with_limit(
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "fio"])
            .args(["--name=job", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-64k"])
            .args(["--size=8M", "--iodepth=16", "--verify=crc32c", "--do_verify=1"])
            .args(["--verify_fatal=1", "--verify_state_save=0", "--randseed=7"])
            .arg(format!("--uri=nbds://{}/{}", door.address, door.export))
            .current_dir(&home)
            .env("HOME", &home),
        SOON * 2,
    );
    assert_eq!(output.status, 0, "{output}");
    assert!(!output.stdout.contains("verify:"), "{output}");
}

#[test]
fn the_clients_of_others_use_serve_inside_tls() {
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), SIZE);
    certificates(&scratch.join("tls"));
    let arguments =
        ["a", "--listen", "127.0.0.1:0", "--tls-certificates", "tls", "--tls-verify-peer"];
    let server = Server::start(scratch.path(), &arguments);
    clients_of_others(&Door {
        address: server.address(),
        export: "",
        dir: scratch.join("tls"),
        image: scratch.join("a"),
        scratch: scratch.path().to_owned(),
    });
    assert_eq!(server.stop()["errors"], 0);
}

#[test]
fn the_clients_of_others_use_the_export_of_a_daemon_inside_tls() {
    let scratch = Scratch::new();
    let (cluster, address) = daemon(&scratch);
    clients_of_others(&Door {
        address,
        export: "r0",
        dir: scratch.join("tls"),
        image: cluster[0].disk("r0"),
        scratch: scratch.path().to_owned(),
    });
}

/// A daemon with the resource `r0`, whose clients need certificates.
fn daemon(scratch: &Scratch) -> (Cluster, SocketAddr) {
    certificates(&scratch.join("tls"));
    let dir = scratch.join("tls").display().to_string();
    let arguments =
        ["--nbd-listen", "127.0.0.1:0", "--nbd-tls-certificates", &dir, "--nbd-tls-verify-peer"];
    let options = ClusterOptions { arguments: &arguments, ..ClusterOptions::default() };
    let cluster = Cluster::with(&crate::binary(), 1, options);
    cluster.create("r0", SIZE, &[]);
    let address = nbd_address(&cluster[0].log());
    (cluster, address)
}

/// Where a daemon says that it serves NBD clients by TCP.
fn nbd_address(log: &str) -> SocketAddr {
    let said = log.lines().find_map(|line| {
        let (_, rest) = line.split_once("NBD clients are served on ")?;
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
        rest[..end.unwrap_or(rest.len())].parse().ok()
    });
    said.unwrap_or_else(|| panic!("no address in {log}"))
}

/// Attaches an export inside TLS, writes, and looks at the file behind it. A client with other
/// certificates, and one in the clear, are turned away.
fn attached(uri: &str, scratch: &Scratch, image: &Path) {
    certificates(&scratch.join("stranger"));
    let (right, wrong) = (scratch.join("tls"), scratch.join("stranger"));
    let (right, wrong) = (right.display().to_string(), wrong.display().to_string());
    let cluster = cluster(1);
    let clear = uri.replacen("nbds", "nbd", 1);
    cluster[0].refused(&["attach", &clear], 1, "was not attached");
    cluster[0].refused(&["attach", uri, "--tls-certificates", &wrong], 1, "was not attached");
    let attach = ["attach", uri, "--tls-certificates", &right, "--connections", "4", "--name"];
    let made = cluster[0].json(&[&attach[..], &["far"]].concat());
    let path = made["path"].as_str().expect("it has a path").to_owned();
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    attach::write_direct(&path, 1000, 3).expect("it can be written");
    assert_eq!(attach::read_block(&path, 1000), 3);
    let seen = attach::status(&cluster[0], "far");
    let live = seen.legs[0].connections.iter().filter(|one| one.state == "Live").count();
    assert!(live >= 1, "{seen:?}");
    cluster[0].ok(&["detach", "far"]);
    assert_eq!(files::read(image, 1000 * 4096, 4096), [3; 4096]);
    run_ok(Command::new("e2fsck").args(["-fn"]).arg(image));
}

#[test]
fn the_export_of_serve_is_attached_inside_tls() {
    if device::skipped() {
        return;
    }
    let scratch = Scratch::new();
    files::make_sparse(&scratch.join("a"), SIZE);
    certificates(&scratch.join("tls"));
    let arguments =
        ["a", "--listen", "127.0.0.1:0", "--tls-certificates", "tls", "--tls-verify-peer"];
    let server = Server::start(scratch.path(), &arguments);
    let uri = format!("nbds://{}/", server.address());
    attached(&uri, &scratch, &scratch.join("a"));
}

#[test]
fn the_export_of_a_daemon_is_attached_inside_tls() {
    if device::skipped() {
        return;
    }
    let scratch = Scratch::new();
    let (far, address) = daemon(&scratch);
    attached(&format!("nbds://{address}/r0"), &scratch, &far[0].disk("r0"));
}

/// A program that serves until the end of the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server of others at a Unix socket.
fn serve_by(command: &mut Command, socket: &Path) -> Served {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let served = Served(command.spawn().expect("it starts"));
    // A socket that is there is not listened at yet.
    wait_until(SOON, "it listens", || UnixStream::connect(socket).is_ok());
    served
}

#[test]
fn the_exports_of_nbdkit_and_qemu_are_attached_inside_tls() {
    if device::skipped() || !have(&["nbdkit", "qemu-nbd"]) {
        return;
    }
    for program in ["nbdkit", "qemu-nbd"] {
        let scratch = Scratch::new();
        let (image, socket) = (scratch.join("image"), scratch.join("socket"));
        files::make_sparse(&image, SIZE);
        certificates(&scratch.join("tls"));
        let dir = scratch.join("tls").display().to_string();
        let mut command = Command::new(program);
        if program == "nbdkit" {
            command.args(["-f", "--tls=require", "--tls-verify-peer", "-U"]).arg(&socket);
            command.arg(format!("--tls-certificates={dir}")).arg("file").arg(&image);
        } else {
            let object = format!("tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir={dir}");
            command.args(["--object", &object, "--tls-creds", "t", "-f", "raw"]);
            command.args(["--persistent", "--shared=0", "-k"]).arg(&socket).arg(&image);
        }
        let _served = serve_by(&mut command, &socket);
        let uri = format!("nbds+unix:///?socket={}", socket.display());
        attached(&uri, &scratch, &image);
    }
}
