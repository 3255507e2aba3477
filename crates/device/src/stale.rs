//! What an earlier run of the daemon left behind.

use crate::device::{DeviceOptions, LocalDevice, forget, is_written_down};
use crate::error::DeviceError;
use crate::fuse::{self, FILE_NAME, FILESYSTEM};
use crate::links;
use crate::loopdev::{GIVEN_LENGTH, LoopDevice};
use crate::record;
use crate::sysinfo;
use crate::udev;
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

/// Removes the devices, mounts and links of a run that has ended without detaching them, except
/// for those devices that wait for [`LocalDevice::recover`] and that `keep` wants by their names.
///
/// They are known by their paths below the run directory, and by what is written down there;
/// nothing else is touched. To be called before the first device is attached, by the one process
/// that may use the run directory: it would take away the devices of a living one. Ends within 20
/// seconds.
///
/// [`LocalDevice::recover`]: crate::LocalDevice::recover
///
/// # Errors
/// When the kernel's lists cannot be read or a mount cannot be removed, and
/// [`DeviceError::TimedOut`].
pub fn clean_up_stale(
    options: &DeviceOptions,
    keep: impl Fn(&str) -> bool + Send + 'static,
) -> Result<Cleaned, DeviceError> {
    let run_dir = match fs::canonicalize(&options.run_dir) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cleaned::default()),
        Err(error) => {
            return Err(DeviceError::system("finding the directory", &options.run_dir)(error));
        }
    };
    let options = DeviceOptions { run_dir: run_dir.clone(), ..options.clone() };
    let (done, result) = channel();
    // Opening a device whose users are stuck can take long: that must not hold up the start.
    std::thread::Builder::new()
        .name("device-cleanup".to_owned())
        .spawn(move || done.send(clean_up(&options, &keep)))
        .map_err(DeviceError::system("starting a thread", &run_dir))?;
    result.recv_timeout(LIMIT).unwrap_or_else(|_| {
        let what = "cleaning up the devices of an earlier run";
        Err(DeviceError::TimedOut { what, path: run_dir, seconds: LIMIT.as_secs() })
    })
}

fn clean_up(options: &DeviceOptions, keep: &dyn Fn(&str) -> bool) -> Result<Cleaned, DeviceError> {
    let (run_dir, links_dir) = (options.run_dir.as_path(), options.links_dir.as_path());
    let mut names = remove_left(options, keep)?;
    udev::forget_others(run_dir, |name| is_written_down(options, name));
    // Loop devices first: unmounted, their files have no path any more by which to know them.
    let loops = LoopDevice::all(|file| {
        let whole = file.file_name().is_some_and(|name| name == FILE_NAME)
            && file.parent().and_then(Path::parent) == Some(run_dir);
        whole || (file.as_os_str().len() == GIVEN_LENGTH && file.starts_with(run_dir))
    })
    .map_err(DeviceError::system("listing loop devices", run_dir))?;
    remove_links(run_dir, links_dir, &loops)?;

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
        let node = &device.device.node;
        device
            .device
            .open()
            .and_then(|file| device.unbind(&file))
            .map_err(DeviceError::system("unbinding the loop device", node))?;
        if sysinfo::loop_backing(&device.device.name).is_some() {
            in_use.push(device.device.node);
        }
    }
    for directory in directories(run_dir)? {
        // One that is not empty is not ours.
        let _ = fs::remove_dir(directory);
    }
    Ok(Cleaned { names: names.into_iter().collect(), in_use })
}

/// Removes the devices that could be taken over and that nobody wants; their names.
fn remove_left(
    options: &DeviceOptions,
    keep: &dyn Fn(&str) -> bool,
) -> Result<BTreeSet<String>, DeviceError> {
    let run_dir = options.run_dir.as_path();
    let found = record::names(run_dir).map_err(DeviceError::system("reading", run_dir))?;
    let mut removed = BTreeSet::new();
    for name in found {
        match LocalDevice::is_left(&name, options) {
            Ok(true) if keep(&name) => {}
            Ok(_) => {
                // One that does not go must not hold up the others, nor the start.
                match LocalDevice::remove_left(&name, options) {
                    Ok(true) => drop(removed.insert(name)),
                    Ok(false) => {}
                    Err(error) => tracing::error!("{error}"),
                }
            }
            Err(error) => {
                tracing::error!("{error}; it is not used");
                forget(&name, options);
            }
        }
    }
    Ok(removed)
}

/// Removes the links of devices of this run directory: those to its loop devices, and those that
/// lead nowhere.
fn remove_links(run_dir: &Path, links_dir: &Path, loops: &[LoopDevice]) -> Result<(), DeviceError> {
    for directory in directories(run_dir)? {
        let Some(name) = directory.file_name() else { continue };
        let link = links_dir.join(name);
        let Ok(to) = links::target(&link) else { continue };
        if loops.iter().any(|device| device.device.node == to) || links::leads_nowhere(&to) {
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
