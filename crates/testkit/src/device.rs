use crate::program::{run, run_ok};
use crate::scratch::clean_up;
use crate::wait::holds_within;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Why no local block devices can be made here; `None` when they can: as root, with FUSE and loop
/// devices in the kernel. A test that needs them says this and passes.
#[must_use]
pub fn devices_unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("this is not run by root".to_owned());
    }
    for path in ["/dev/fuse", "/dev/loop-control"] {
        if let Err(why) = File::options().read(true).write(true).open(path) {
            return Some(format!("{path} cannot be opened: {why}"));
        }
    }
    None
}

/// How long a mount may be held by what is not the test's.
const BUSY: Duration = Duration::from_secs(30);

/// Unmounts a filesystem in good order. A process that another test of the same program has just
/// forked has all files open until it becomes another program, so a mount may be busy for a moment.
///
/// # Panics
/// When it cannot.
#[track_caller]
pub fn unmount(point: &Path) {
    let umount = || Command::new("umount").arg(point).output();
    if !holds_within(BUSY, || umount().is_ok_and(|output| output.status.success())) {
        run_ok(Command::new("umount").arg(point));
    }
}

/// A mounted filesystem; it is unmounted with the value.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
}

impl Mount {
    /// Mounts a device on a directory, which is made when it is not there.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    #[must_use]
    pub fn new(device: &str, point: &Path) -> Self {
        std::fs::create_dir_all(point).expect("the mount point can be made");
        run_ok(Command::new("mount").arg(device).arg(point));
        Self { point: point.to_owned() }
    }

    /// Mounts a file system in memory that has room for so many bytes.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    #[must_use]
    pub fn memory(point: &Path, bytes: u64) -> Self {
        std::fs::create_dir_all(point).expect("the mount point can be made");
        let size = format!("size={bytes}");
        run_ok(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(point));
        Self { point: point.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Unmounts it in good order.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn unmount(self) {
        unmount(&self.point);
    }

    /// Unmounts it although its device is dead; what is not written is lost.
    pub fn give_up(self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.point));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        clean_up(&self.point);
    }
}
