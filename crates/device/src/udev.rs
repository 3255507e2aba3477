//! What udev is told of a device: its name, so that `/dev/holdfast/NAME` is a link that udev knows of
//! too, and units that wait for it do not wait in vain.
//!
//! The rules in `packaging/udev` read a small file, `.udev/KERNELNAME` in the run directory. Where there
//! is no udev, or not with these rules, nobody reads it.

use crate::sysinfo;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where the files are, below the run directory. No name of a device begins with a dot.
const DIRECTORY: &str = ".udev";

/// Tells the name of the device with this kernel name, and has udev look at it.
pub(crate) fn announce(run_dir: &Path, name: &str, kernel_name: &str) {
    let path = path(run_dir, kernel_name);
    let told = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir.join(DIRECTORY))
        .and_then(|()| fs::write(&path, format!("HOLDFAST_NAME={name}\n")))
        .and_then(|()| sysinfo::send_change(kernel_name));
    if let Err(error) = told {
        tracing::debug!(path = %path.display(), %error, "udev was not told of a device");
    }
}

/// The device with this kernel name is none of ours any more, or soon.
pub(crate) fn forget(run_dir: &Path, kernel_name: &str) {
    match fs::remove_file(path(run_dir, kernel_name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(kernel_name, %error, "what udev was told of a device stays");
        }
        _ => {}
    }
    // The last one takes the directory with it.
    let _ = fs::remove_dir(run_dir.join(DIRECTORY));
}

/// Removes what is told of devices that do not satisfy `known`, by their kernel names.
pub(crate) fn forget_others(run_dir: &Path, known: impl Fn(&str) -> bool) {
    let entries = fs::read_dir(run_dir.join(DIRECTORY)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| !known(name)) {
        forget(run_dir, &name);
    }
}

fn path(run_dir: &Path, kernel_name: &str) -> PathBuf {
    run_dir.join(DIRECTORY).join(kernel_name)
}

#[cfg(test)]
mod tests {
    use super::{announce, forget, forget_others};
    use std::fs;

    #[test]
    fn what_is_told_goes_with_the_device() {
        let run_dir = tempfile::tempdir().unwrap();
        let file = |name: &str| run_dir.path().join(".udev").join(name);
        for (name, kernel_name) in [("db", "no-such-0"), ("a.b", "no-such-1"), ("c", "no-such-2")] {
            announce(run_dir.path(), name, kernel_name);
        }
        assert_eq!(fs::read_to_string(file("no-such-1")).unwrap(), "HOLDFAST_NAME=a.b\n");
        forget_others(run_dir.path(), |name| name == "no-such-1");
        assert!(!file("no-such-0").exists() && !file("no-such-2").exists());
        forget(run_dir.path(), "no-such-1");
        forget(run_dir.path(), "no-such-1");
        assert_eq!(fs::read_dir(run_dir.path()).unwrap().count(), 0);
    }
}
