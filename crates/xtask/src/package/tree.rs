//! The files of a release: where each goes, with which mode.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// What is at a path.
#[derive(Debug)]
pub(crate) enum Entry {
    File { content: Vec<u8>, mode: u32 },
    Link { to: String },
}

/// Files and links by their paths from the root, without a slash before. Directories are those that
/// they lie in.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds a file that nobody executes.
    pub(crate) fn add(
        &mut self,
        path: impl Into<String>,
        content: impl Into<Vec<u8>>,
    ) -> Result<()> {
        self.insert(path.into(), Entry::File { content: content.into(), mode: 0o644 })
    }

    pub(crate) fn add_program(&mut self, path: &str, content: Vec<u8>) -> Result<()> {
        self.insert(path.to_owned(), Entry::File { content, mode: 0o755 })
    }

    pub(crate) fn add_link(&mut self, path: &str, to: &str) -> Result<()> {
        self.insert(path.to_owned(), Entry::Link { to: to.to_owned() })
    }

    fn insert(&mut self, path: String, entry: Entry) -> Result<()> {
        match self.entries.insert(path, entry) {
            None => Ok(()),
            Some(_) => bail!("two files of the package have the same path"),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The files that a machine's administrator may change: all below /etc.
    pub(crate) fn config_files(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().filter(|path| path.starts_with("etc/")).map(String::as_str)
    }

    /// The directories that are named after the project, which no other package has.
    pub(crate) fn own_directories(&self) -> BTreeSet<&str> {
        let parents = self.entries.keys().flat_map(|path| {
            path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| &path[..at])
        });
        parents.filter(|dir| dir.split('/').any(|part| part == "holdfast")).collect()
    }

    /// What it takes when installed, in KiB, as Debian counts.
    pub(crate) fn installed_kib(&self) -> u64 {
        let sizes = self.entries.values().map(|entry| match entry {
            Entry::File { content, .. } => (content.len() as u64).div_ceil(1024),
            Entry::Link { .. } => 1,
        });
        sizes.sum()
    }

    /// Writes it all below a directory that is made.
    pub(crate) fn write(&self, dir: &Path, time: u64) -> Result<()> {
        let time = UNIX_EPOCH + Duration::from_secs(time);
        for (path, entry) in self.iter() {
            let target = dir.join(path);
            write(&target, entry, time)
                .with_context(|| format!("cannot write {}", target.display()))?;
        }
        set_directories(dir)
    }
}

fn write(target: &Path, entry: &Entry, time: std::time::SystemTime) -> std::io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match entry {
        Entry::Link { to } => symlink(to, target),
        Entry::File { content, mode } => {
            fs::write(target, content)?;
            fs::set_permissions(target, fs::Permissions::from_mode(*mode))?;
            fs::File::options().append(true).open(target)?.set_modified(time)
        }
    }
}

/// Gives all directories the mode that they have in a system, whatever the umask here.
fn set_directories(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            set_directories(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_used_once_and_directories_follow_from_them() {
        let mut tree = Tree::default();
        tree.add("etc/holdfast/holdfast.toml", "# x\n").unwrap();
        tree.add("usr/share/doc/holdfast/guide/a.md", vec![b'x'; 1025]).unwrap();
        tree.add_program("usr/bin/holdfast", vec![1]).unwrap();
        tree.add_link("usr/bin/holdfastd", "holdfast").unwrap();
        assert!(tree.add("usr/bin/holdfast", "again").is_err());
        assert_eq!(tree.config_files().collect::<Vec<_>>(), ["etc/holdfast/holdfast.toml"]);
        let own = ["etc/holdfast", "usr/share/doc/holdfast", "usr/share/doc/holdfast/guide"];
        assert_eq!(tree.own_directories().into_iter().collect::<Vec<_>>(), own);
        assert_eq!(tree.installed_kib(), 5);
    }
}
