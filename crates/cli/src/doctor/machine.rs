//! What a machine tells in `/proc`, `/sys`, `/dev` and `/lib/modules`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// No file of these is read further than this, in bytes.
const MOST: u64 = 4 << 20;

/// The machine that is looked at: this one, or what an archive of `support` has of another.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// Another one, whose files are below `root`.
    pub(crate) fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether it is the one that this runs on: only that one can be asked more than its files say.
    pub(crate) fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a file of it is; `path` with or without a slash at its start.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether it has such a file, directory or device.
    pub(crate) fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// A file as text, without spaces around it; `None` when it cannot be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.bytes(path)?).trim().to_owned())
    }

    /// A file as it is; `None` when it cannot be read.
    pub(crate) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(path)).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// A file that holds one number.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// The names in a directory, in order; none when it cannot be read.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// The release of its kernel.
    pub(crate) fn release(&self) -> Option<String> {
        self.text("proc/sys/kernel/osrelease")
    }

    /// The type of the filesystem that a path is on, as its mounts say.
    pub(crate) fn filesystem_of(&self, path: &Path) -> Option<String> {
        let mounts = self.text("proc/self/mountinfo")?;
        let found = mounts.lines().filter_map(|line| {
            let (mount, rest) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?.replace("\\040", " ");
            let kind = rest.split(' ').next()?;
            path.starts_with(&point).then(|| (point.len(), kind.to_owned()))
        });
        // Of two mounts at one place the later one is seen.
        found.max_by_key(|(len, _)| *len).map(|(_, kind)| kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filesystem_is_that_of_the_longest_and_latest_mount() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let table = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     2 1 0:5 / /mnt/a\\040b rw shared:3 - xfs /dev/b rw\n\
                     3 2 0:6 / /mnt/a\\040b rw - tmpfs none rw\n";
        fs::write(root.path().join("proc/self/mountinfo"), table).unwrap();
        let machine = Machine::below(root.path());
        let of = |path: &str| machine.filesystem_of(Path::new(path));
        assert_eq!(of("/mnt/a b/c").as_deref(), Some("tmpfs"));
        assert_eq!(of("/mnt/a").as_deref(), Some("ext4"));
        assert_eq!(Machine::below(Path::new("/nowhere")).filesystem_of(Path::new("/")), None);
    }
}
