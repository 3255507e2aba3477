//! What a daemon that was killed leaves in the kernel.

use std::path::{Path, PathBuf};

/// A local block device, and what it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalDevice {
    /// The device node of the kernel.
    node: PathBuf,
    /// The filesystem that holds the file under a loop device.
    filesystem: Option<PathBuf>,
}

impl LocalDevice {
    /// Finds out, while the daemon is alive, what a device stands on.
    pub(crate) fn look(path: &Path) -> Self {
        let node = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let backing = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        let filesystem =
            backing.ok().and_then(|file| Path::new(file.trim_end()).parent().map(Path::to_owned));
        Self { node, filesystem }
    }

    /// The commands that take it away when its daemon is gone. A loop device that was given to
    /// somebody else since is left alone.
    pub(crate) fn dismantling(&self) -> Vec<(&'static str, Vec<String>)> {
        let Some(filesystem) = &self.filesystem else { return Vec::new() };
        let mut commands = Vec::new();
        if Self::look(&self.node).filesystem.as_ref() == Some(filesystem) {
            commands.push(("losetup", vec!["-d".to_owned(), self.node.display().to_string()]));
        }
        if mounts_below(filesystem).iter().any(|mount| Path::new(mount) == filesystem) {
            commands.push(("umount", vec!["-l".to_owned(), filesystem.display().to_string()]));
        }
        commands
    }
}

/// The mounts at or below a directory.
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    mounts_in(&table, &dir)
}

fn mounts_in(table: &str, dir: &Path) -> Vec<String> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    // The kernel writes blanks, tabs and backslashes as octal numbers.
    let plain =
        |point: &str| point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    points.map(plain).filter(|point| Path::new(point).starts_with(dir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_whole_names() {
        let table = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 7:3 / /tmp/demo/mnt rw shared:1 - ext4 /dev/loop3 rw
24 22 0:40 / /tmp/demo/a\\040b rw - fuse x rw
25 22 0:41 / /tmp/demo2 rw - tmpfs x rw
";
        assert_eq!(mounts_in(table, Path::new("/tmp/demo")), ["/tmp/demo/mnt", "/tmp/demo/a b"]);
        assert_eq!(mounts_in("", Path::new("/tmp/demo")), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_loop_device_needs_no_dismantling() {
        let device = LocalDevice::look(Path::new("/dev/null"));
        assert_eq!(device.node, Path::new("/dev/null"));
        assert!(device.dismantling().is_empty());
    }
}
