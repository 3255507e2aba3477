//! The Debian package, by `dpkg-deb`.

use super::tree::Entry;
use super::{Release, template, tool};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Makes the package in `out`; its path.
pub(crate) fn make(release: &Release, work: &Path, out: &Path) -> Result<PathBuf> {
    let dir = work.join("deb");
    let (architecture, _) = release.needs.architecture;
    let Release { version, revision, .. } = release;
    release.tree.write(&dir, release.time)?;
    let control = dir.join("DEBIAN");
    fs::create_dir(&control)?;
    fs::set_permissions(&control, fs::Permissions::from_mode(0o755))?;
    fs::write(control.join("control"), fields(release)?)?;
    let configs: String = release.tree.config_files().map(|path| format!("/{path}\n")).collect();
    fs::write(control.join("conffiles"), configs)?;
    fs::write(control.join("md5sums"), sums(release, &dir)?)?;
    for script in SCRIPTS {
        let path = control.join(script);
        fs::write(&path, release.script(&format!("deb/{script}"), &[])?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    for plain in ["control", "conffiles", "md5sums"] {
        fs::set_permissions(control.join(plain), fs::Permissions::from_mode(0o644))?;
    }
    let package = out.join(format!("holdfast_{version}-{revision}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    // Every dpkg that is still in use understands xz.
    let how = if release.quick { ["-Zgzip", "-z1"] } else { ["-Zxz", "-z6"] };
    build.args(["--build", "--root-owner-group"]).args(how);
    build.env("SOURCE_DATE_EPOCH", release.time.to_string()).arg(&dir).arg(&package);
    tool::output(&mut build, "dpkg")?;
    Ok(package)
}

fn fields(release: &Release) -> Result<String> {
    let text = template::read(&release.packaging().join("deb/control"))?;
    let words = [
        ("VERSION", release.version.as_str()),
        ("REVISION", &release.revision.to_string()),
        ("ARCHITECTURE", release.needs.architecture.0),
        ("MAINTAINER", release.changes.maintainer()),
        ("INSTALLED_SIZE", &release.tree.installed_kib().to_string()),
        ("DEPENDS", &release.needs.debian_depends()?),
    ];
    template::fill(&text, &words).context("packaging/deb/control")
}

/// The sums by which `dpkg --verify` sees what was changed.
fn sums(release: &Release, dir: &Path) -> Result<String> {
    let files = release
        .tree
        .iter()
        .filter(|(path, entry)| matches!(entry, Entry::File { .. }) && !path.starts_with("etc/"));
    let paths: Vec<&str> = files.map(|(path, _)| path).collect();
    tool::output(Command::new("md5sum").args(paths).current_dir(dir), "coreutils")
}
