//! TLS with the clients of others.

use super::{Server, have, have_libnbd, nbdsh};
use crate::MIB;
use holdfast_testkit::{Scratch, files, run, run_ok};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::Path;
use std::process::Command;

/// Certificates as all these programs want them, in a directory of its own.
pub(crate) fn certificates(directory: &Path) {
    std::fs::create_dir(directory).expect("it can be made");
    let write = |name: &str, text: &str| {
        std::fs::write(directory.join(name), text).expect("there is room");
    };
    let mut authority = CertificateParams::new(vec![]).expect("it has no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    let key = KeyPair::generate().expect("there is randomness");
    let root = authority.self_signed(&key).expect("it is well-formed");
    write("ca-cert.pem", &root.pem());
    let issuer = Issuer::new(authority, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().expect("there is randomness");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("they are names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).expect("it is well-formed");
        write(&format!("{name}-cert.pem"), &certificate.pem());
        write(&format!("{name}-key.pem"), &key.serialize_pem());
    }
}

struct Bench {
    scratch: Scratch,
    server: Server,
}

impl Bench {
    fn new(arguments: &[&str]) -> Self {
        let scratch = Scratch::new();
        files::make_sparse(&scratch.join("a"), 16 * MIB);
        certificates(&scratch.join("tls"));
        // Those of the client alone, and those of nobody.
        for (name, files) in [
            ("client", &["ca-cert.pem", "client-cert.pem", "client-key.pem"][..]),
            ("nobody", &["ca-cert.pem"]),
        ] {
            std::fs::create_dir(scratch.join(name)).expect("it can be made");
            for file in files {
                std::fs::copy(scratch.join("tls").join(file), scratch.join(name).join(file))
                    .expect("it is there");
            }
        }
        certificates(&scratch.join("stranger"));
        let all =
            [&["a", "--listen", "127.0.0.1:0", "--tls-certificates", "tls"], arguments].concat();
        let server = Server::start(scratch.path(), &all);
        Self { scratch, server }
    }

    fn plain(&self) -> String {
        format!("nbd://{}/", self.server.address())
    }

    /// The URI for a client with the files of a directory.
    fn uri(&self, files: &str) -> String {
        let directory = self.scratch.join(files);
        format!("nbds://{}/?tls-certificates={}", self.server.address(), directory.display())
    }

    fn size(&self, uri: &str) -> Option<String> {
        let output = run(Command::new("nbdinfo").args(["--size", uri]));
        (output.status == 0).then(|| output.stdout.trim().to_owned())
    }
}

#[test]
fn required_means_that_nothing_is_told_in_the_clear() {
    if !have(&["nbdinfo", "nbdcopy"]) || !have_libnbd() {
        return;
    }
    let bench = Bench::new(&[]);
    assert!(bench.server.uri().starts_with("nbds://"));
    assert_eq!(bench.size(&bench.plain()), None);
    assert_eq!(bench.size(&bench.uri("stranger")), None, "the client trusts another authority");
    let size = Some((16 * MIB).to_string());
    assert_eq!(bench.size(&bench.uri("nobody")), size);
    assert_eq!(bench.size(&bench.uri("client")), size);
    let (image, back) = (bench.scratch.join("image"), bench.scratch.join("back"));
    files::make_random(&image, 16 * MIB, 9);
    let uri = bench.uri("client");
    run_ok(Command::new("nbdcopy").args(["--connections=4", "--flush"]).arg(&image).arg(&uri));
    run_ok(Command::new("nbdcopy").arg(&uri).arg(&back));
    files::assert_equal(&image, &back, 16 * MIB);
    files::assert_equal(&image, &bench.scratch.join("a"), 16 * MIB);
    let script = "
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri(sys.argv[1])
assert h.get_tls_negotiated()
for i in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 65536), i * 65536)
while h.aio_in_flight():
    h.poll(-1)
for i in range(64):
    assert h.pread(65536, i * 65536) == bytes([i]) * 65536
h.shutdown()
";
    nbdsh(script, &[&uri]);
    bench.server.stop();
}

#[test]
fn optional_lets_both_in() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let bench = Bench::new(&["--tls", "optional"]);
    let size = Some((16 * MIB).to_string());
    assert_eq!(bench.size(&bench.plain()), size);
    assert_eq!(bench.size(&bench.uri("nobody")), size);
}

#[test]
fn a_list_may_be_told_in_the_clear_and_nothing_else() {
    if !have(&["nbdinfo"]) || !have_libnbd() {
        return;
    }
    let bench = Bench::new(&["--tls", "exports", "--name", "disk"]);
    let script = "
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ['disk'], names
h.set_export_name('disk')
for ask in (h.opt_info, h.opt_go):
    try:
        ask()
        raise SystemExit('told in the clear')
    except nbd.Error:
        pass
h.opt_abort()
";
    nbdsh(script, &[&bench.plain()]);
    assert_eq!(bench.size(&bench.plain()), None);
    assert_eq!(bench.size(&bench.uri("nobody")), Some((16 * MIB).to_string()));
}

#[test]
fn clients_need_a_certificate_where_that_is_asked_for() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let bench = Bench::new(&["--tls-verify-peer"]);
    assert_eq!(bench.size(&bench.plain()), None);
    assert_eq!(bench.size(&bench.uri("nobody")), None);
    assert_eq!(bench.size(&bench.uri("client")), Some((16 * MIB).to_string()));
    // The right authority for the server, and a certificate of another one.
    let files = bench.scratch.join("stranger");
    std::fs::copy(bench.scratch.join("tls/ca-cert.pem"), files.join("ca-cert.pem"))
        .expect("it is there");
    assert_eq!(bench.size(&bench.uri("stranger")), None);
}

#[test]
fn qemu_and_nbdkit_come_with_tls() {
    if !have(&["qemu-img", "qemu-io", "nbdkit", "nbdinfo"]) {
        return;
    }
    let bench = Bench::new(&["--tls-verify-peer"]);
    let address = bench.server.address();
    let object = format!(
        "tls-creds-x509,id=t,endpoint=client,dir={}",
        bench.scratch.join("client").display()
    );
    let image = format!(
        "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={},tls-creds=t",
        address.port()
    );
    let told = run_ok(Command::new("qemu-io").args([
        "--object",
        &object,
        "--image-opts",
        "-c",
        "write -P 0xa5 0 1M",
        "-c",
        "read -P 0xa5 0 1M",
        "-c",
        "flush",
        &image,
    ]));
    assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
    let proxy = run_ok(
        Command::new("nbdkit")
            .args(["-U", "-", "nbd", "hostname=127.0.0.1", "tls=require", "shared=true"])
            .arg(format!("port={}", address.port()))
            .arg(format!("tls-certificates={}", bench.scratch.join("client").display()))
            .args(["--run", "nbdinfo --size \"$uri\""]),
    );
    assert_eq!(proxy.trim(), (16 * MIB).to_string());
}
