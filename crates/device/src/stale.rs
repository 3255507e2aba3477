//! What an earlier run of the daemon left behind.

use crate::device::{DeviceOptions, leads_nowhere};
use crate::error::DeviceError;
use crate::fuse::{self, FILE_NAME, FILESYSTEM};
use crate::loopdev::LoopDevice;
use crate::sysinfo;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

/// How long the whole of it may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What [`clean_up_stale`] found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cleaned {
    /// The names of the devices that were removed, sorted.
    pub names: Vec<String>,
    /// The loop devices that somebody still has open. All their I/O fails; each goes with its
    /// last user.
    pub in_use: Vec<PathBuf>,
}

/// Removes the mounts, loop devices and links of a run that has ended without detaching them.
///
/// They are known by their paths below the run directory; nothing else is touched. To be called
/// before the first device is attached, by the one process that may use the run directory: it
/// would take away the devices of a living one. Ends within 20 seconds.
///
/// # Errors
/// When the kernel's lists cannot be read or a mount cannot be removed, and
/// [`DeviceError::TimedOut`].
pub fn clean_up_stale(options: &DeviceOptions) -> Result<Cleaned, DeviceError> {
    let run_dir = match fs::canonicalize(&options.run_dir) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cleaned::default()),
        Err(error) => {
            return Err(DeviceError::system("finding the directory", &options.run_dir)(error));
        }
    };
    let links_dir = options.links_dir.clone();
    let (done, result) = channel();
    let path = run_dir.clone();
    // Opening a device whose users are stuck can take long: that must not hold up the start.
    std::thread::Builder::new()
        .name("device-cleanup".to_owned())
        .spawn(move || done.send(clean_up(&path, &links_dir)))
        .map_err(DeviceError::system("starting a thread", &run_dir))?;
    result.recv_timeout(LIMIT).unwrap_or_else(|_| {
        let what = "cleaning up the devices of an earlier run";
        Err(DeviceError::TimedOut { what, path: run_dir, seconds: LIMIT.as_secs() })
    })
}

fn clean_up(run_dir: &Path, links_dir: &Path) -> Result<Cleaned, DeviceError> {
    // Loop devices first: unmounted, their files have no path any more by which to know them.
    let loops = LoopDevice::all(|file| {
        file.file_name().is_some_and(|name| name == FILE_NAME)
            && file.parent().and_then(Path::parent) == Some(run_dir)
    })
    .map_err(DeviceError::system("listing loop devices", run_dir))?;
    remove_links(run_dir, links_dir, &loops)?;

    let mut names = BTreeSet::new();
    let mounts = sysinfo::own_mounts().map_err(DeviceError::system("listing mounts", run_dir))?;
    for mount in mounts {
        if mount.kind == FILESYSTEM && mount.point.parent() == Some(run_dir) {
            fuse::force_unmount(&mount.point)
                .map_err(DeviceError::system("unmounting", &mount.point))?;
            names.extend(mount.point.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    let mut in_use = Vec::new();
    for device in loops {
        device
            .open()
            .and_then(|file| device.unbind(&file))
            .map_err(DeviceError::system("unbinding the loop device", &device.node))?;
        if sysinfo::loop_backing(&device.name).is_some() {
            in_use.push(device.node);
        }
    }
    for directory in directories(run_dir)? {
        // One that is not empty is not ours.
        let _ = fs::remove_dir(directory);
    }
    Ok(Cleaned { names: names.into_iter().collect(), in_use })
}

/// Removes the links of devices of this run directory: those to its loop devices, and those that
/// lead nowhere.
fn remove_links(run_dir: &Path, links_dir: &Path, loops: &[LoopDevice]) -> Result<(), DeviceError> {
    for directory in directories(run_dir)? {
        let Some(name) = directory.file_name() else { continue };
        let link = links_dir.join(name);
        let Ok(to) = fs::read_link(&link) else { continue };
        if loops.iter().any(|device| device.node == to) || leads_nowhere(&to) {
            fs::remove_file(&link).map_err(DeviceError::system("removing the link", &link))?;
        }
    }
    Ok(())
}

/// The entries of the run directory. Does not look at what is mounted on them.
fn directories(run_dir: &Path) -> Result<Vec<PathBuf>, DeviceError> {
    let entries = fs::read_dir(run_dir).map_err(DeviceError::system("reading", run_dir))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}
