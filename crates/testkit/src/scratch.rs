use crate::program::run_with_limit;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Where a test puts everything. It goes with the value, and so do mounts and loop devices that a
/// killed daemon left below it.
///
/// It is in memory where there is such a place: files there are quick, and the paths are short
/// enough for Unix sockets (108 bytes).
#[derive(Debug)]
pub struct Scratch {
    dir: Option<TempDir>,
}

impl Scratch {
    /// A new directory, in memory when possible.
    ///
    /// # Panics
    /// When none can be made.
    #[must_use]
    pub fn new() -> Self {
        crate::panics::tell_at_once();
        let memory = Path::new("/dev/shm");
        let builder = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix("hf-");
            builder
        };
        let dir = builder().tempdir_in(memory).or_else(|_| builder().tempdir());
        Self { dir: Some(dir.expect("a directory for the test can be made")) }
    }

    /// A new directory where the system keeps temporary files.
    ///
    /// # Panics
    /// When none can be made.
    #[must_use]
    pub fn on_disk() -> Self {
        crate::panics::tell_at_once();
        let dir = tempfile::Builder::new().prefix("hf-").tempdir();
        Self { dir: Some(dir.expect("a directory for the test can be made")) }
    }

    /// The directory.
    ///
    /// # Panics
    /// Never: the directory is there as long as the value.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.as_ref().expect("it is there until it is dropped").path()
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        clean_up(self.path());
        let Some(dir) = self.dir.take() else { return };
        if std::thread::panicking() && std::env::var_os("HOLDFAST_KEEP").is_some() {
            eprintln!("the files are kept in {}", dir.keep().display());
        }
    }
}

/// Takes away what is mounted or bound to loop devices below `dir`.
pub(crate) fn clean_up(dir: &Path) {
    let limit = Duration::from_secs(20);
    for device in loops_below(dir) {
        let _ = run_with_limit(Command::new("losetup").arg("-d").arg(device), limit);
    }
    // The latest first: it may be mounted on an earlier one.
    for point in mounts_below(dir).into_iter().rev() {
        let _ = run_with_limit(Command::new("umount").args(["-f", "-l"]).arg(point), limit);
    }
    // A loop device whose file was on such a mount goes only now.
    for device in loops_below(dir) {
        let _ = run_with_limit(Command::new("losetup").arg("-d").arg(device), limit);
    }
}

/// The mount points below `dir`, in the order in which they were mounted.
fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}

fn loops_below(dir: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = devices.map(|device| device.file_name()).filter(|name| {
        let file = Path::new("/sys/block").join(name).join("loop/backing_file");
        fs::read_to_string(file).is_ok_and(|file| Path::new(file.trim()).starts_with(dir))
    });
    names.map(|name| Path::new("/dev").join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_the_value() {
        let scratch = Scratch::new();
        let path = scratch.join("x");
        std::fs::write(&path, "x").unwrap();
        assert!(path.as_os_str().len() < 60, "{}", path.display());
        drop(scratch);
        assert!(!path.exists());
    }
}
