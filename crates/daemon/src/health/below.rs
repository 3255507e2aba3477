//! Which physical devices are below a file or a block device, as sysfs tells.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Stacks are not higher, and no more devices are looked at.
const DEEPEST: usize = 12;
const MOST: usize = 32;

/// The nodes of the devices at the bottom of what is below `path`, in order: the whole disk of a
/// partition, the disk of a filesystem or of the file of a loop device, all disks of a device-mapper
/// or md device. Empty for what has none, such as a file in memory.
pub(super) fn devices(path: &Path) -> Vec<PathBuf> {
    Finder { sys: Path::new("/sys"), dev: Path::new("/dev") }.below(path)
}

struct Finder<'a> {
    sys: &'a Path,
    dev: &'a Path,
}

impl Finder<'_> {
    fn below(&self, path: &Path) -> Vec<PathBuf> {
        let mut found = BTreeSet::new();
        self.below_path(path, DEEPEST, &mut found);
        found.into_iter().collect()
    }

    fn below_path(&self, path: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
        let Ok(meta) = fs::metadata(path) else { return };
        let number = if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() };
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        self.below_number(&format!("{major}:{minor}"), depth, found);
    }

    /// `number` is `MAJOR:MINOR`.
    fn below_number(&self, number: &str, depth: usize, found: &mut BTreeSet<PathBuf>) {
        let link = self.sys.join("dev/block").join(number);
        // Filesystems in memory, of the network, and some others have no device.
        let Ok(dir) = link.canonicalize() else { return };
        self.below_dir(&dir, depth, found);
    }

    fn below_dir(&self, dir: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
        if depth == 0 || found.len() >= MOST {
            return;
        }
        if dir.join("partition").exists() {
            if let Some(disk) = dir.parent() {
                self.below_dir(disk, depth - 1, found);
            }
            return;
        }
        if let Ok(file) = fs::read_to_string(dir.join("loop/backing_file")) {
            let before = found.len();
            self.below_path(Path::new(file.trim_end_matches('\n')), depth - 1, found);
            if found.len() > before {
                return;
            }
        }
        let slaves = fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten();
        let slaves: Vec<PathBuf> =
            slaves.filter_map(|slave| slave.path().canonicalize().ok()).collect();
        if slaves.is_empty() {
            // `cciss!c0d0` in sysfs is `cciss/c0d0` in /dev.
            let name = dir.file_name().map(|name| name.to_string_lossy().replace('!', "/"));
            found.extend(name.map(|name| self.dev.join(name)));
        }
        for slave in slaves {
            self.below_dir(&slave, depth - 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs with a disk and its partition, a device over two disks, one over itself, and a loop
    /// device over a file.
    fn sysfs(root: &Path, file: &Path) {
        let devices = root.join("devices");
        for dir in [
            "sda/sda1/slaves",
            "nvme0n1/slaves",
            "dm-0/slaves",
            "dm-1/slaves",
            "loop7/loop",
            "cciss!c0d0",
        ] {
            fs::create_dir_all(devices.join(dir)).unwrap();
        }
        fs::write(devices.join("sda/sda1/partition"), "1\n").unwrap();
        fs::write(devices.join("loop7/loop/backing_file"), format!("{}\n", file.display()))
            .unwrap();
        symlink(devices.join("sda/sda1"), devices.join("dm-0/slaves/sda1")).unwrap();
        symlink(devices.join("nvme0n1"), devices.join("dm-0/slaves/nvme0n1")).unwrap();
        symlink(devices.join("dm-1"), devices.join("dm-1/slaves/dm-1")).unwrap();
        fs::create_dir_all(root.join("dev/block")).unwrap();
        let own = fs::metadata(file).unwrap().dev();
        let own = format!("{}:{}", rustix::fs::major(own), rustix::fs::minor(own));
        for (number, target) in [
            (&*own, "dm-0"),
            ("8:1", "sda/sda1"),
            ("250:7", "loop7"),
            ("250:0", "dm-0"),
            ("250:1", "dm-1"),
            ("104:0", "cciss!c0d0"),
        ] {
            symlink(devices.join(target), root.join("dev/block").join(number)).unwrap();
        }
    }

    #[test]
    fn the_bottom_of_every_stack_is_found() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        sysfs(root.path(), &file);
        let finder = Finder { sys: root.path(), dev: Path::new("/dev") };
        let of_number = |number: &str| {
            let mut found = BTreeSet::new();
            finder.below_number(number, DEEPEST, &mut found);
            found.into_iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        let both = ["/dev/nvme0n1", "/dev/sda"];
        assert_eq!(of_number("8:1"), ["/dev/sda"]);
        assert_eq!(of_number("250:0"), both);
        assert_eq!(of_number("250:7"), both);
        assert_eq!(of_number("104:0"), ["/dev/cciss/c0d0"]);
        // A circle ends, and what is not there is nothing.
        assert!(of_number("250:1").is_empty() && of_number("1:1").is_empty());
        let found = finder.below(&file);
        assert_eq!(found, both.map(PathBuf::from));
        assert!(finder.below(Path::new("/nowhere/at/all")).is_empty());
    }

    #[test]
    fn a_loop_device_whose_file_is_nowhere_is_the_bottom_itself() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        sysfs(root.path(), &file);
        fs::remove_file(&file).unwrap();
        let finder = Finder { sys: root.path(), dev: Path::new("/dev") };
        let mut found = BTreeSet::new();
        finder.below_number("250:7", DEEPEST, &mut found);
        assert_eq!(found, [PathBuf::from("/dev/loop7")].into());
    }
}
