//! The RPM package, by `rpmbuild`, which finds out by itself what the program is linked to.

use super::tree::Entry;
use super::{Release, tool};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a build must not do by itself: strip again, make a package of debugging information, or
/// write down time and name of this machine.
const DEFINES: [&str; 8] = [
    "__os_install_post %{nil}",
    "debug_package %{nil}",
    "_build_id_links none",
    "_buildhost localhost",
    "source_date_epoch_from_changelog 0",
    "use_source_date_epoch_as_buildtime 1",
    "clamp_mtime_to_source_date_epoch 1",
    "_docdir_fmt %{NAME}",
];

/// Makes the package in `out`; its path.
pub(crate) fn make(release: &Release, work: &Path, out: &Path) -> Result<PathBuf> {
    let top = work.join("rpm");
    let tree = top.join("tree");
    let (_, architecture) = release.needs.architecture;
    let Release { version, revision, .. } = release;
    fs::create_dir(&top)?;
    release.tree.write(&tree, release.time)?;
    let words = [
        ("VERSION", version.as_str()),
        ("REVISION", &revision.to_string()),
        ("FILES", &files(release)),
        ("CHANGELOG", &release.changes.rpm()?),
    ];
    let spec = top.join("holdfast.spec");
    fs::write(&spec, release.script("rpm/holdfast.spec", &words)?)?;
    let mut build = Command::new("rpmbuild");
    build.arg("-bb").args(["--target", &format!("{architecture}-linux")]);
    let payload = if release.quick { "w1.gzdio" } else { "w6.xzdio" };
    let own = [
        format!("_topdir {}", top.display()),
        format!("tree {}", tree.display()),
        format!("_binary_payload {payload}"),
        format!("_rpmdir {}", top.join("made").display()),
    ];
    for define in DEFINES.into_iter().chain(own.iter().map(String::as_str)) {
        build.args(["--define", define]);
    }
    build.env("SOURCE_DATE_EPOCH", release.time.to_string()).arg(&spec);
    tool::output(&mut build, "rpm")?;
    let name = format!("holdfast-{version}-{revision}.{architecture}.rpm");
    let package = out.join(&name);
    fs::rename(top.join("made").join(architecture).join(&name), &package)?;
    Ok(package)
}

/// The list of what is in the package.
fn files(release: &Release) -> String {
    let directories = release.tree.own_directories();
    let mut lines: Vec<String> =
        directories.into_iter().map(|dir| format!("%dir %attr(0755,root,root) /{dir}")).collect();
    for (path, entry) in release.tree.iter() {
        let mark = if path.starts_with("etc/") {
            "%config(noreplace) "
        } else if path.starts_with("usr/share/doc/") {
            "%doc "
        } else {
            ""
        };
        lines.push(match entry {
            Entry::File { mode, .. } => format!("{mark}%attr({mode:04o},root,root) /{path}"),
            Entry::Link { .. } => format!("{mark}/{path}"),
        });
    }
    lines.join("\n")
}
