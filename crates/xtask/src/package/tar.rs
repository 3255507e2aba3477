//! A tar file with a script that installs, for every other distribution.

use super::{Release, tool};
use anyhow::Result;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the file in `out`; its path.
pub(crate) fn make(release: &Release, work: &Path, out: &Path) -> Result<PathBuf> {
    let (_, architecture) = release.needs.architecture;
    let name = format!("holdfast-{}-{}-linux-{architecture}", release.version, release.revision);
    let dir = work.join("tar");
    release.tree.write(&dir.join(&name).join("tree"), release.time)?;
    let glibc = release.needs.glibc().map_or_else(|| "any".to_owned(), |glibc| glibc.to_string());
    for script in ["install.sh", "uninstall.sh"] {
        let path = dir.join(&name).join(script);
        let words = [("ARCHITECTURE", architecture), ("GLIBC", &glibc)];
        fs::write(&path, release.script(&format!("tar/{script}"), &words)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755))?;
    let package = out.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    tar.arg(format!("--mtime=@{}", release.time));
    tar.args(["-I", if release.quick { "gzip -1n" } else { "gzip -9n" }, "-cf"]);
    tar.arg(&package).arg("-C").arg(&dir).arg(&name);
    tool::output(&mut tar, "tar")?;
    Ok(package)
}
