//! A loop device over a FUSE file.

use crate::backend::Backend;
use crate::blockdev::BlockDevice;
use crate::claim::Claim;
use crate::error::DeviceError;
use crate::fuse::FuseMount;
use crate::loopdev::LoopDevice;
use crate::sysinfo;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long closing waits for each of: the last user, the mount, the serving threads.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// The mount, its threads and the loop device. Dropping it fails what is pending and takes all
/// of it away.
pub(crate) struct FuseLoop {
    directory: PathBuf,
    mount: FuseMount,
    device: LoopDevice,
    bound: bool,
}

impl FuseLoop {
    /// Mounts on `run_dir/name` and puts a loop device over the file there.
    pub(crate) fn attach(
        name: &str,
        backend: Arc<dyn Backend>,
        run_dir: &Path,
        threads: usize,
    ) -> Result<Self, DeviceError> {
        let directory = make_directory(run_dir, name)?;
        let (block_size, read_only) = (backend.block_size(), backend.is_read_only());
        let made = FuseMount::new(&directory, name, backend, threads).and_then(|mount| {
            LoopDevice::over(&mount.file(), block_size, read_only).map(|device| (mount, device))
        });
        match made {
            Ok((mount, device)) => Ok(Self { directory, mount, device, bound: true }),
            Err(error) => {
                remove_directory(&directory);
                Err(error)
            }
        }
    }

    pub(crate) fn device(&self) -> &BlockDevice {
        &self.device.device
    }

    /// Tells the kernel that the backend is as large as this now.
    pub(crate) fn resize(&self, size: u64) -> io::Result<()> {
        self.mount.resize(size)?;
        self.device.read_capacity()
    }

    /// Takes the loop device and the mount away when nobody has the device open. The claim
    /// keeps others off; `false` when somebody else still has it open: then everything is as it was.
    pub(crate) fn close(&mut self, claim: Claim) -> io::Result<bool> {
        self.device.unbind(&self.device().open()?)?;
        drop(claim);
        let deadline = Instant::now() + CLOSE_LIMIT;
        while self.device.is_bound() {
            if Instant::now() >= deadline {
                // It may have been let go right now: then there is nothing to keep.
                let kept = self.device.keep();
                if self.device.is_bound() {
                    return kept.map(|()| false);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.bound = false;
        self.mount.close(CLOSE_LIMIT);
        remove_directory(&self.directory);
        Ok(true)
    }

    /// Fails what is pending and all I/O from now on, and takes the mount away. The loop device
    /// goes with its last user.
    pub(crate) fn abort(&mut self) {
        // Once unmounted, the file under the device has another path.
        let bound = std::mem::take(&mut self.bound) && self.device.is_bound();
        self.mount.abort();
        if bound
            && let Err(error) = self.device().open().and_then(|device| self.device.unbind(&device))
        {
            tracing::warn!(device = %self.device().node.display(), %error, "unbinding failed");
        }
        remove_directory(&self.directory);
    }
}

impl Drop for FuseLoop {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Makes the private directory to mount on. One that is left over from an earlier run will do
/// when nothing is mounted there.
fn make_directory(run_dir: &Path, name: &str) -> Result<PathBuf, DeviceError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(DeviceError::system("making the directory", run_dir))?;
    // The kernel shows absolute paths without links, and they are compared with ours.
    let run_dir =
        fs::canonicalize(run_dir).map_err(DeviceError::system("finding the directory", run_dir))?;
    let directory = run_dir.join(name);
    let mounts =
        sysinfo::own_mounts().map_err(DeviceError::system("listing mounts", &directory))?;
    if mounts.iter().any(|mount| mount.point == directory) {
        return Err(DeviceError::Exists {
            name: name.to_owned(),
            path: directory,
            why: "is mounted already".to_owned(),
        });
    }
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(DeviceError::system("making the directory", &directory)(error))
        }
        _ => Ok(directory),
    }
}

/// Removes it when it is empty and not mounted; there is nothing to do about a failure.
fn remove_directory(directory: &Path) {
    if let Err(error) = fs::remove_dir(directory) {
        tracing::debug!(directory = %directory.display(), %error, "a directory stays");
    }
}
