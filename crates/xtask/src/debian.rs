//! The programs that tests run: real clients of NBD, file systems, network namespaces.

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A Debian package and the file that shows that it (or something as good) is there.
const NEEDED: [(&str, &str); 16] = [
    ("dpkg-dev", "dpkg-shlibdeps"),
    ("e2fsprogs", "mkfs.ext4"),
    ("fio", "fio"),
    ("fuse3", "fusermount3"),
    ("iproute2", "ip"),
    ("jq", "jq"),
    ("libnbd-bin", "nbdcopy"),
    ("lintian", "lintian"),
    ("nbd-client", "nbd-client"),
    ("nbd-server", "nbd-server"),
    ("nbdkit", "nbdkit"),
    ("openssl", "openssl"),
    ("python3-libnbd", "nbdsh"),
    ("qemu-utils", "qemu-img"),
    ("rpm", "rpmbuild"),
    ("util-linux", "losetup"),
];

/// Installs what is missing, as root on Debian; otherwise says what is missing and goes on. What
/// is there already is neither replaced nor upgraded.
///
/// # Errors
/// When apt-get fails.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, program)| !is_program(program))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() || !is_program("apt-get") {
        eprintln!("warning: some tests need programs that are missing here, and will fail");
        eprintln!("hint: on Debian, run: sudo apt-get install --no-install-recommends {list}");
        return Ok(());
    }
    eprintln!("installing {list}");
    apt_get(&["update", "-q"])?;
    let install = ["install", "-q", "-y", "--no-install-recommends", "--no-upgrade"];
    apt_get(&[&install[..], &missing].concat())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("apt-get does not start")?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Root's programs count for everybody: some tests run them by `sudo` or in a user namespace.
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let roots_own = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).join(name));
    std::env::split_paths(&path).map(|dir| dir.join(name)).chain(roots_own).any(|p| p.is_file())
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}
