//! Other people's clients against the server, where they are installed.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod common;

use common::Server;
use holdfast_nbd::{Client, ConnectOptions, Export, MemoryExport, ServerTls};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const MIB: u64 = 1 << 20;

fn server(tls: Option<ServerTls>) -> Server {
    Server::start(MemoryExport::new("disk", 16 * MIB).info(), tls)
}

/// Whether a tool can be used; says so when not.
fn have(tool: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if !found {
        println!("skipped: {tool} is not installed");
    }
    found
}

/// Runs a tool; its output, when it succeeded.
fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "{tool} {arguments:?}: {told}");
    told
}

fn image(directory: &Path) -> String {
    let path = directory.join("image");
    let mut bytes = vec![0; 16 << 20];
    for (number, byte) in bytes.iter_mut().enumerate().filter(|(number, _)| number >> 19 & 1 == 0) {
        *byte = (number % 251) as u8;
    }
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    if !have("nbdinfo") {
        return;
    }
    let server = server(None);
    let uri = server.uri("disk").to_string();
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "16777216");
    let all = run("nbdinfo", &[&uri]);
    for line in ["can_fua: true", "can_multi_conn: true", "base:allocation", "description: memory"]
    {
        assert!(all.contains(line), "{line} is missing in {all}");
    }
    assert!(run("nbdinfo", &["--list", &uri]).contains("export=\"disk\""));
    assert!(run("nbdinfo", &["--map", "--totals", &uri]).contains("hole,zero"));
}

#[test]
fn nbdcopy_gives_back_what_it_took() {
    if !have("nbdcopy") {
        return;
    }
    let server = server(None);
    let directory = tempfile::tempdir().unwrap();
    let (image, back) = (image(directory.path()), directory.path().join("back"));
    let (uri, back) = (server.uri("").to_string(), back.to_str().unwrap());
    run("nbdcopy", &["--flush", "--connections=4", "--requests=32", &image, &uri]);
    run("nbdcopy", &["--connections=4", &uri, back]);
    assert!(std::fs::read(&image).unwrap() == std::fs::read(back).unwrap());
}

#[test]
fn qemu_reads_writes_and_compares() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let server = server(None);
    let directory = tempfile::tempdir().unwrap();
    let (image, uri) = (image(directory.path()), server.uri("disk").to_string());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]);
    let told = run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0xa5 0 1M",
            "-c",
            "write -z 256k 128k",
            "-c",
            "read -P 0 256k 128k",
            "-c",
            "write -f -P 0x11 3M 64k",
            "-c",
            "discard 2M 1M",
            "-c",
            "read -P 0x11 3M 64k",
            "-c",
            "flush",
            "-c",
            "read -P 0xa5 384k 64k",
            &uri,
        ],
    );
    assert!(!told.contains("failed") && !told.contains("rror"), "{told}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have("fio") {
        return;
    }
    let server = server(None);
    let directory = tempfile::tempdir().unwrap();
    let uri = format!("--uri={}", server.uri("disk"));
    let state = format!("--aux-path={}", directory.path().display());
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &state,
            "--rw=randwrite",
            "--bs=4k",
            "--size=4m",
            "--iodepth=32",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ],
    );
}

#[test]
fn nbdsh_asynchronous_and_out_of_bounds() {
    let python = "/usr/bin/python3";
    let present = Command::new(python).args(["-c", "import nbd"]).status();
    if !present.is_ok_and(|status| status.success()) {
        println!("skipped: python3-libnbd is not installed");
        return;
    }
    let server = server(None);
    let script = "\
import nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context('base:allocation')
h.connect_uri(sys.argv[1])
pending = []
for i in range(512):
    while h.aio_in_flight() >= 64:
        h.poll(-1)
    b = nbd.Buffer.from_bytearray(bytearray([i % 256]) * 4096)
    h.aio_pwrite(b, i * 4096, completion=lambda e: 1)
while h.aio_in_flight():
    h.poll(-1)
for i in range(512):
    assert h.pread(4096, i * 4096) == bytes([i % 256]) * 4096
try:
    h.pwrite(b'x' * 1024, 16777216 - 512)
    raise SystemExit('a write past the end succeeded')
except nbd.Error as e:
    assert e.errno == 'ENOSPC', e
h.shutdown()
";
    run(python, &["-c", script, &server.uri("disk").to_string()]);
}

#[test]
fn tls_with_a_certificate() {
    if !have("nbdinfo") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut authority = rcgen::CertificateParams::new(vec![]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let root = authority.self_signed(&authority_key).unwrap();
    std::fs::write(directory.path().join("ca-cert.pem"), root.pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = server(Some(ServerTls { acceptor, required: true }));
    let mut uri = server.uri("disk");
    let plain = Command::new("nbdinfo").arg(uri.to_string()).output().unwrap();
    assert!(!plain.status.success(), "nothing is told in the clear");
    uri.tls = true;
    let place = directory.path().to_str().unwrap().to_owned();
    uri.tls_parameters = vec![("tls-certificates".to_owned(), place)];
    let mut ours = Client::connect(&uri, &ConnectOptions::default()).unwrap();
    ours.write_at(b"secret", 4096).unwrap();
    let mut back = [0; 6];
    ours.read_at(&mut back, 4096).unwrap();
    assert_eq!(&back, b"secret");
    let uri = uri.to_string();
    assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), "16777216");
    if have("nbdcopy") {
        let image = image(directory.path());
        let back = directory.path().join("back");
        run("nbdcopy", &[&image, &uri]);
        run("nbdcopy", &[&uri, back.to_str().unwrap()]);
        assert!(std::fs::read(&image).unwrap() == std::fs::read(back).unwrap());
    }
}
