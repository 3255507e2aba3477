//! Other people's servers, killed in the middle of a load.

use crate::load::{BLOCK, Load, block, check, check_image};
use crate::server::options;
use crate::single::{LIMIT, wait_for};
use holdfast_nbd::{NbdUri, RemoteDisk, RemoteOptions, RemoteState};
use holdfast_testkit::wait_until;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

pub(crate) const SIZE: u64 = 4 << 20;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Program {
    Nbdkit,
    Qemu,
    NbdServer,
}

impl Program {
    const fn name(self) -> &'static str {
        match self {
            Self::Nbdkit => "nbdkit",
            Self::Qemu => "qemu-nbd",
            Self::NbdServer => "nbd-server",
        }
    }

    /// Whether it can be used; says so when not.
    pub(crate) fn is_here(self) -> bool {
        let is_here = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|dir| dir.join(self.name()).is_file())
        });
        if !is_here {
            println!("skipped: {} is not installed", self.name());
        }
        is_here
    }
}

/// A server of somebody else, for a file.
pub(crate) struct Real {
    program: Program,
    dir: PathBuf,
    /// More words for its command line, or lines for its configuration.
    more: Vec<String>,
    running: Option<Child>,
}

impl Real {
    pub(crate) fn new(program: Program, dir: &Path, more: &[&str]) -> Self {
        std::fs::File::create(dir.join("image")).unwrap().set_len(SIZE).unwrap();
        let more = more.iter().map(ToString::to_string).collect();
        let mut real = Self { program, dir: dir.to_owned(), more, running: None };
        real.start();
        real
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    pub(crate) fn uri(&self) -> NbdUri {
        NbdUri::unix(self.socket(), "disk")
    }

    pub(crate) fn start(&mut self) {
        let (socket, image) = (self.socket(), self.dir.join("image"));
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(self.program.name());
        match self.program {
            Program::Nbdkit => {
                // What is for a filter comes behind the plugin.
                let (options, rest): (Vec<_>, Vec<_>) =
                    self.more.iter().partition(|word| word.starts_with('-'));
                command.arg("-f").arg("-U").arg(&socket).args(options);
                command.arg("file").arg(&image).args(rest);
            }
            Program::Qemu => {
                command.args(["--persistent", "--shared=0", "-f", "raw", "-x", "disk"]);
                command.args(["--cache=writeback", "--discard=unmap", "-k"]).arg(&socket);
                command.args(&self.more).arg(&image);
            }
            Program::NbdServer => {
                // It insists on listening at a port, too.
                let port = own_port();
                let config = format!(
                    "[generic]\nunixsock = {}\nallowlist = true\nlistenaddr = {}\n\
                     port = {}\n[disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n{}\n",
                    socket.display(),
                    port.ip(),
                    port.port(),
                    image.display(),
                    self.more.join("\n")
                );
                std::fs::write(self.dir.join("config"), config).unwrap();
                let _ = std::fs::remove_file(self.dir.join("pid"));
                command.arg("-C").arg(self.dir.join("config"));
                command.arg("-p").arg(self.dir.join("pid"));
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        if self.program == Program::NbdServer {
            // It goes into the background.
            child.wait().unwrap();
        }
        self.running = Some(child);
        wait_until(LIMIT, "its socket is there", || socket.exists());
    }

    /// `kill -9`, of all of its processes.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.running.take() else { return };
        if self.program == Program::NbdServer {
            let pid = std::fs::read_to_string(self.dir.join("pid")).unwrap();
            let group = format!("-{}", pid.trim());
            let _ = Command::new("kill").args(["-9", "--", &group]).status();
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Other words for the command line of the next start.
    pub(crate) fn change(&mut self, more: &[&str]) {
        self.more = more.iter().map(ToString::to_string).collect();
    }

    /// Starts it again if it has ended by itself.
    pub(crate) fn revive(&mut self) {
        let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
        if self.running.as_mut().is_some_and(ended) {
            self.running = None;
            self.start();
        }
    }

    pub(crate) fn open(&self, connections: usize) -> RemoteDisk {
        open(&options(&[&self.uri()], connections))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody else has, nor takes before the server has it: at an address of loopback that no
/// other process uses, each time another one, and none of those that the system gives away.
fn own_port() -> SocketAddrV4 {
    static NEXT: AtomicU16 = AtomicU16::new(12_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, 64 | a, b, c), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Opens it, when the server has come up.
fn open(options: &RemoteOptions) -> RemoteDisk {
    let mut disk = None;
    wait_until(LIMIT, "the server is up", || {
        disk = RemoteDisk::open(options.clone()).ok();
        disk.is_some()
    });
    disk.unwrap()
}

/// Kills the server `kills` times in the middle of a verifying load.
fn survives(program: Program, more: &[&str], connections: usize, kills: u64) {
    if !program.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut real = Real::new(program, dir.path(), more);
    let disk = real.open(connections);
    let load = Load::start(&disk, 4, connections as u64);
    for round in 0..kills {
        load.wait_for(40 + round * 13 % 70);
        real.kill();
        real.start();
    }
    load.wait_for(100);
    let counts = load.stop();
    check(&disk, &counts);
    let status = disk.status().unwrap();
    assert!(status.legs[0].session.outages >= kills, "{status:?}");
    disk.close().unwrap();
    check_image(&std::fs::read(dir.path().join("image")).unwrap(), &counts);
}

#[test]
fn nbdkit_killed_with_one_connection() {
    survives(Program::Nbdkit, &["--threads=16"], 1, 6);
}

#[test]
fn nbdkit_killed_with_eight_connections() {
    survives(Program::Nbdkit, &["--threads=16"], 8, 6);
}

#[test]
fn nbdkit_that_is_slow_or_speaks_the_simple_way() {
    survives(Program::Nbdkit, &["--filter=delay", "delay-read=2ms", "delay-write=3ms"], 2, 3);
    survives(Program::Nbdkit, &["--no-sr"], 2, 3);
    survives(Program::Nbdkit, &["--filter=limit", "limit=1"], 4, 3);
}

#[test]
fn qemu_killed_with_two_connections() {
    survives(Program::Qemu, &[], 2, 6);
}

#[test]
fn nbd_server_killed_with_one_and_with_four_connections() {
    survives(Program::NbdServer, &[], 1, 4);
    survives(Program::NbdServer, &[], 4, 4);
}

#[test]
fn nbdkit_that_fails_for_a_while() {
    if !Program::Nbdkit.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let switch = dir.path().join("fail");
    let file = format!("error-file={}", switch.display());
    let more = ["--filter=error", "error=EIO", "error-rate=100%", &file];
    let real = Real::new(Program::Nbdkit, dir.path(), &more);
    let disk = real.open(2);
    disk.write_at(&block(1, 1), BLOCK as u64, false).unwrap();
    std::fs::write(&switch, "").unwrap();
    assert!(disk.write_at(&block(2, 1), 2 * BLOCK as u64, false).is_err());
    assert!(disk.read_at(&mut [0; BLOCK], 0).is_err());
    std::fs::remove_file(&switch).unwrap();
    disk.write_at(&block(2, 2), 2 * BLOCK as u64, true).unwrap();
    disk.flush().unwrap();
    check(&disk, &vec![0, 1, 2]);
}

#[test]
fn nbdkit_that_pauses_is_waited_for() {
    if !Program::Nbdkit.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    let file = format!("pause-control={}", control.display());
    let real = Real::new(Program::Nbdkit, dir.path(), &["--filter=pause", &file]);
    let disk = real.open(2);
    let load = Load::start(&disk, 2, 3);
    load.wait_for(50);
    let order = |letter: &[u8]| {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&control).unwrap();
        stream.write_all(letter).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    order(b"p");
    order(b"r");
    load.wait_for(50);
    check(&disk, &load.stop());
    assert_eq!(disk.status().unwrap().legs[0].session.outages, 0);
}

/// Certificates as nbdkit and QEMU want them.
pub(crate) fn certificates(dir: &Path, who: &[&str]) {
    let mut authority = rcgen::CertificateParams::new(vec![]).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(dir.join("ca-cert.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    for who in who {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{who}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn nbdkit_inside_tls_with_certificates_of_both_sides() {
    if !Program::Nbdkit.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), &["server", "client"]);
    let place = format!("--tls-certificates={}", dir.path().display());
    let more = ["--tls=require", "--tls-verify-peer", &place];
    let mut real = Real::new(Program::Nbdkit, dir.path(), &more);
    let mut uri = real.uri();
    uri.tls = true;
    let mut secure = options(&[&uri], 2);
    secure.tls_certificates = Some(dir.path().to_owned());
    let disk = open(&secure);
    let load = Load::start(&disk, 2, 3);
    for _ in 0..3 {
        load.wait_for(50);
        real.kill();
        real.start();
    }
    load.wait_for(50);
    check(&disk, &load.stop());

    // In the clear, with nobody's certificate, with an authority that is not the server's.
    let error = RemoteDisk::open(options(&[&real.uri()], 1)).unwrap_err().to_string();
    assert!(error.contains("TLS"), "{error}");
    let stranger = tempfile::tempdir().unwrap();
    certificates(stranger.path(), &["client"]);
    secure.tls_certificates = Some(stranger.path().to_owned());
    let error = RemoteDisk::open(secure.clone()).unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer") || error.contains("certificate"), "{error}");
    let mut other = uri.clone();
    other.tls_parameters = vec![("tls-hostname".to_owned(), "elsewhere".to_owned())];
    secure.tls_certificates = Some(dir.path().to_owned());
    secure.uris = vec![other];
    let error = RemoteDisk::open(secure).unwrap_err().to_string();
    assert!(error.contains("elsewhere") || error.contains("name"), "{error}");
}

#[test]
fn qemu_inside_tls() {
    if !Program::Qemu.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), &["server", "client"]);
    let object =
        format!("tls-creds-x509,id=t0,dir={},endpoint=server,verify-peer=on", dir.path().display());
    let real = Real::new(Program::Qemu, dir.path(), &["--object", &object, "--tls-creds", "t0"]);
    let mut uri = real.uri();
    uri.tls = true;
    let place = dir.path().to_str().unwrap().to_owned();
    uri.tls_parameters = vec![("tls-certificates".to_owned(), place)];
    let disk = open(&options(&[&uri], 2));
    let load = Load::start(&disk, 2, 3);
    load.wait_for(200);
    check(&disk, &load.stop());
}

#[test]
fn from_one_program_to_another() {
    if !Program::Nbdkit.is_here() || !Program::Qemu.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut nbdkit = Real::new(Program::Nbdkit, dir.path(), &[]);
    let disk = nbdkit.open(2);
    let load = Load::start(&disk, 2, 9);
    load.wait_for(100);
    nbdkit.kill();
    wait_for(&disk, RemoteState::Reconnecting);
    nbdkit.program = Program::Qemu;
    nbdkit.start();
    load.wait_for(100);
    check(&disk, &load.stop());
}
