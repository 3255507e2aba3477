use crate::backend::Backend;
use crate::error::DeviceError;
use crate::fuse_loop::FuseLoop;
use crate::openers::{self, Opener, Target};
use crate::sysinfo;
use crate::via::{Kind, Refusal, Via, choose};
use holdfast_units::check_name;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the search for openers may take.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// How long a detach waits for udev to let go of the device.
const UDEV_LIMIT: Duration = Duration::from_secs(3);

/// Where and how devices are made.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Where the links `NAME` to the devices are made; made if it is not there.
    pub links_dir: PathBuf,
    /// A private directory below which filesystems are mounted, one per device; made if it is
    /// not there. Only one process at a time may use it.
    pub run_dir: PathBuf,
    /// By which way of the kernel.
    pub via: Via,
    /// How many requests of one device are with the backend at a time.
    pub threads: usize,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            links_dir: PathBuf::from("/dev/holdfast"),
            run_dir: PathBuf::from("/run/holdfast/devices"),
            via: Via::Auto,
            threads: 4,
        }
    }
}

/// A block device of the kernel whose data a [`Backend`] has.
///
/// Dropping it takes the device away by force; [`LocalDevice::detach`] is the gentle way.
pub struct LocalDevice {
    link: PathBuf,
    kind: Kind,
    /// Boxed: it comes back in the error of a refused detach.
    driver: Box<FuseLoop>,
    attached: bool,
}

impl LocalDevice {
    /// Makes a block device for the backend, with the link `NAME` in the directory of links.
    ///
    /// Its logical blocks are the backend's. A write that it has completed was completed by the
    /// backend, and a flush of it is a flush of the backend. A discard makes the range read as
    /// zeroes. Takes well under a second, and makes no request of the backend by itself.
    ///
    /// # Errors
    /// When the name or size cannot be used, the kernel offers no way, something else is in the
    /// place of the link, or a call to the kernel fails; nothing is left behind then.
    pub fn attach(
        name: &str,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Self, DeviceError> {
        check_name(name)?;
        check_geometry(name, backend.size(), backend.block_size())?;
        let kind = choose(options.via)?;
        if kind != Kind::Fuse {
            return Err(Refusal { reasons: vec![(kind, "it has no driver".to_owned())] }.into());
        }
        let link = options.links_dir.join(name);
        make_room(name, &link)?;
        let driver = FuseLoop::attach(name, backend, &options.run_dir, options.threads)?;
        make_link(&link, &driver.device().node)?;
        Ok(Self { link, kind, driver: Box::new(driver), attached: true })
    }

    /// The link by which the device is used.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.link
    }

    /// The device node of the kernel that the link points to.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.driver.device().node
    }

    /// By which way the device was made.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many have the device open: processes other than this one, mounts, and devices built
    /// on it. Counts to 64. Does not disturb the device; takes at most 5 seconds.
    ///
    /// # Errors
    /// As [`LocalDevice::openers`].
    pub fn open_count(&self) -> Result<u32, DeviceError> {
        Ok(u32::try_from(self.openers()?.len()).expect("at most 64"))
    }

    /// Who has the device open, as [`LocalDevice::open_count`] counts.
    ///
    /// # Errors
    /// When `/proc` cannot be read or could not be read through in time.
    pub fn openers(&self) -> Result<Vec<Opener>, DeviceError> {
        let device = self.driver.device();
        let paths = [device.node.as_path(), self.link.as_path()];
        let target = Target { name: &device.name, number: device.number, paths };
        openers::find(&target, Instant::now() + SEARCH_LIMIT)
            .map_err(DeviceError::system("looking for users", &self.link))
    }

    /// Takes the device away.
    ///
    /// Without `force` it is refused while somebody has it open, and what was written is flushed
    /// first, which takes as long as the backend's flush takes. With `force` nothing is waited
    /// for: pending and later I/O of those who have it open fails, and the kernel's device goes
    /// when the last of them closes it.
    ///
    /// # Errors
    /// With the device, which works as before: [`DeviceError::Busy`] with who has it open,
    /// [`DeviceError::Flush`] when the flush failed. With `force` there is no error.
    // The device comes back to who owns it, so that a refusal loses nothing.
    #[allow(clippy::result_large_err)]
    pub fn detach(mut self, force: bool) -> Result<(), (Self, DeviceError)> {
        if force {
            self.take_away();
            return Ok(());
        }
        match self.close() {
            Ok(()) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }

    fn close(&mut self) -> Result<(), DeviceError> {
        let claimed = self.claim()?;
        claimed
            .sync_all()
            .map_err(|source| DeviceError::Flush { path: self.link.clone(), source })?;
        // The link goes first: as soon as the device is unbound its number can be another's.
        self.remove_link();
        match self.driver.close(claimed) {
            Ok(true) => {
                self.attached = false;
                Ok(())
            }
            closed => {
                make_link(&self.link, self.node())?;
                closed.map_err(DeviceError::system("unbinding the loop device", &self.link))?;
                Err(self.busy())
            }
        }
    }

    /// Makes sure that nobody has the device open, and that nobody can mount it from now on.
    fn claim(&self) -> Result<fs::File, DeviceError> {
        let deadline = Instant::now() + UDEV_LIMIT;
        loop {
            let openers = self.openers()?;
            if openers.is_empty() {
                match self.driver.device().claim() {
                    Ok(claimed) => return Ok(claimed),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        return Err(self.busy());
                    }
                    Err(error) => {
                        return Err(DeviceError::system("opening the device", &self.link)(error));
                    }
                }
            }
            if !openers.iter().all(Opener::is_passing) || Instant::now() >= deadline {
                return Err(DeviceError::Busy { path: self.link.clone(), openers });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn busy(&self) -> DeviceError {
        let mut openers = self.openers().unwrap_or_default();
        if openers.is_empty() {
            openers.push(Opener::Unknown);
        }
        DeviceError::Busy { path: self.link.clone(), openers }
    }

    fn take_away(&mut self) {
        if std::mem::take(&mut self.attached) {
            self.remove_link();
            self.driver.abort();
        }
    }

    fn remove_link(&self) {
        if fs::read_link(&self.link).is_ok_and(|to| to == self.node())
            && let Err(error) = fs::remove_file(&self.link)
        {
            tracing::warn!(link = %self.link.display(), %error, "removing a link failed");
        }
    }
}

impl Drop for LocalDevice {
    fn drop(&mut self) {
        self.take_away();
    }
}

impl std::fmt::Debug for LocalDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let node = self.node();
        f.debug_struct("LocalDevice").field("link", &self.link).field("node", &node).finish()
    }
}

fn check_geometry(name: &str, size: u64, block: u32) -> Result<(), DeviceError> {
    let name = || name.to_owned();
    if !block.is_power_of_two() || !(512..=4096).contains(&block) {
        return Err(DeviceError::BlockSize { name: name(), block });
    }
    if size == 0 || !size.is_multiple_of(u64::from(block)) {
        return Err(DeviceError::Size { name: name(), size, block });
    }
    Ok(())
}

/// Removes a link of an earlier run that leads to no device; refuses when anything else is there.
fn make_room(name: &str, link: &Path) -> Result<(), DeviceError> {
    let exists = |why: String| {
        Err(DeviceError::Exists { name: name.to_owned(), path: link.to_owned(), why })
    };
    match fs::read_link(link) {
        Ok(to) if leads_nowhere(&to) => {
            fs::remove_file(link).map_err(DeviceError::system("removing the old link", link))
        }
        Ok(to) => exists(format!("is a link to {}, which is in use", to.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => exists("is in its place".to_owned()),
    }
}

/// Whether a link to this node leads to a loop device without a file, or to nothing.
pub(crate) fn leads_nowhere(to: &Path) -> bool {
    match sysinfo::loop_name_of(to) {
        Some(name) => sysinfo::loop_backing(name).is_none(),
        None => !to.exists(),
    }
}

fn make_link(link: &Path, node: &Path) -> Result<(), DeviceError> {
    let directory = link.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)
        .and_then(|()| symlink(node, link))
        .map_err(DeviceError::system("making the link", link))
}

#[cfg(test)]
mod tests {
    use super::LocalDevice;

    #[test]
    fn a_device_can_be_used_from_any_thread() {
        fn check<T: Send + Sync>() {}
        check::<LocalDevice>();
    }
}
