use crate::backend::Backend;
use crate::claim::Claim;
use crate::driver::{self, Driver};
use crate::error::DeviceError;
use crate::links;
use crate::openers::{self, Opener, Target};
use crate::record::{self, Record};
use crate::sysinfo;
use crate::udev;
use crate::via::{Kind, Via, choose};
use holdfast_units::check_name;
use std::fs;
use std::io;
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
    /// A private directory below which filesystems are mounted, one per device, and where it is
    /// written down which devices can be taken over; made if it is not there. Only one process at
    /// a time may use it.
    pub run_dir: PathBuf,
    /// By which way of the kernel.
    pub via: Via,
    /// How many requests of one device are with the backend at a time.
    pub threads: usize,
    /// The program and its arguments that [`hold`](crate::hold) the device named by one more
    /// argument. Without it this process opens its own device to take it away: killed meanwhile, it
    /// cannot end before another has taken the device over.
    pub holder: Option<Vec<PathBuf>>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            links_dir: PathBuf::from("/dev/holdfast"),
            run_dir: PathBuf::from("/run/holdfast/devices"),
            via: Via::Auto,
            threads: 4,
            holder: None,
        }
    }
}

/// A block device of the kernel whose data a [`Backend`] has.
///
/// Dropping it takes the device away by force; [`LocalDevice::detach`] is the gentle way. When the
/// process dies, a device that [survives](LocalDevice::survives) it waits with its I/O for
/// [`LocalDevice::recover`].
pub struct LocalDevice {
    name: String,
    run_dir: PathBuf,
    link: PathBuf,
    kind: Kind,
    reason: String,
    driver: Driver,
    holder: Option<Vec<PathBuf>>,
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
    /// place of the link, a device of this name waits to be taken over, or a call to the kernel
    /// fails; nothing is left behind then.
    pub fn attach(
        name: &str,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Self, DeviceError> {
        check_name(name)?;
        check_geometry(name, backend.size(), backend.block_size())?;
        let choice = choose(options.via)?;
        let link = options.links_dir.join(name);
        if Self::is_left(name, options)? {
            let why = "waits for its data since an earlier run".to_owned();
            return Err(DeviceError::Exists { name: name.to_owned(), path: link, why });
        }
        links::make_room(name, &link)?;
        let driver = Driver::attach(choice.kind, name, backend, options)
            .inspect_err(|_| record::remove(&options.run_dir, name))?;
        tracing::info!("the device {name} is made by {choice}");
        let device = Self::new(name, (choice.kind, choice.to_string()), driver, options);
        links::make(&device.link, device.node())?;
        device.announce();
        Ok(device)
    }

    /// Takes over the device that an earlier process of this boot left, when there is one. Its I/O
    /// has waited meanwhile and goes on; nobody who has it open notices.
    ///
    /// # Errors
    /// [`DeviceError::Changed`] when the backend is not what the device was made for, and when a
    /// call to the kernel fails. The device waits as before then; [`LocalDevice::remove_left`]
    /// takes it away.
    pub fn recover(
        name: &str,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Option<Self>, DeviceError> {
        check_name(name)?;
        check_geometry(name, backend.size(), backend.block_size())?;
        let Some(record) = Record::load(&options.run_dir, name)? else {
            record::remove(&options.run_dir, name);
            return Ok(None);
        };
        check_unchanged(name, &record, &*backend)?;
        let kind = record.kind;
        let Some(driver) = Driver::recover(&record, backend, options)? else {
            forget(name, options);
            return Ok(None);
        };
        let reason = format!("{kind}, by which it was made");
        let device = Self::new(name, (kind, reason), driver, options);
        let is_there = links::target(&device.link).is_ok_and(|to| to == device.node());
        let linked = match is_there {
            true => Ok(()),
            false => links::make_room(name, &device.link)
                .and_then(|()| links::make(&device.link, device.node())),
        };
        if let Err(error) = linked {
            device.leave();
            return Err(error);
        }
        device.announce();
        Ok(Some(device))
    }

    /// Whether the kernel has a device of this name that an earlier process left.
    ///
    /// # Errors
    /// When what is written down of it cannot be read.
    pub fn is_left(name: &str, options: &DeviceOptions) -> Result<bool, DeviceError> {
        let record = Record::load(&options.run_dir, name)?;
        Ok(record.is_some_and(|record| driver::exists(&record)))
    }

    /// Takes a device away that an earlier process left, by force: its I/O fails. `false` when
    /// there is none.
    ///
    /// # Errors
    /// When a call to the kernel fails.
    pub fn remove_left(name: &str, options: &DeviceOptions) -> Result<bool, DeviceError> {
        let link = options.links_dir.join(name);
        let removed = match Record::load(&options.run_dir, name)? {
            Some(record) => {
                // Before the number can be another's.
                let node = driver::node(&record);
                udev::forget(&options.run_dir, kernel_name(&node));
                links::remove(&link, &node)
                    .map_err(DeviceError::system("removing the link", &link))?;
                driver::remove_left(&record)
                    .map_err(DeviceError::system("removing the device of an earlier run", &link))?
            }
            None => false,
        };
        forget(name, options);
        Ok(removed)
    }

    fn new(
        name: &str,
        (kind, reason): (Kind, String),
        driver: Driver,
        options: &DeviceOptions,
    ) -> Self {
        let link = options.links_dir.join(name);
        let (name, run_dir) = (name.to_owned(), options.run_dir.clone());
        let holder = options.holder.clone();
        Self { name, run_dir, link, kind, reason, driver, holder, attached: true }
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

    /// Why it was made by that way, as a phrase: `nbd, because ublk cannot be used: ...`.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
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

    /// Tells the kernel that the device has another size from now on, a multiple of the backend's
    /// blocks. What a device grows by must be with the backend before. `false` when the kernel
    /// cannot change it: the device keeps its size until it is made again.
    ///
    /// # Errors
    /// When the size cannot be the size of a block device, or a call to the kernel fails.
    pub fn resize(&mut self, size: u64) -> Result<bool, DeviceError> {
        let now = sysinfo::size_bytes(&self.driver.device().name)
            .map_err(DeviceError::system("reading the size", &self.link))?;
        if size == now {
            return Ok(true);
        }
        if size < now {
            let why = format!("it would lose its end, and is {now} bytes large");
            let smaller = io::Error::new(io::ErrorKind::InvalidInput, why);
            return Err(DeviceError::system("changing the size", &self.link)(smaller));
        }
        let record = Record::load(&self.run_dir, &self.name)?;
        let block = record.as_ref().map_or(512, |record| record.block_size);
        check_geometry(&self.name, size, block)?;
        let failed = DeviceError::system("changing the size", &self.link);
        if !self.driver.resize(size).map_err(failed)? {
            return Ok(false);
        }
        // Should the process end before: the size is looked at again when it is taken over.
        if let Some(record) = record {
            Record { size, ..record }.save(&self.run_dir, &self.name)?;
        }
        Ok(true)
    }

    /// Whether the device, with its I/O, waits for another process when this one ends.
    #[must_use]
    pub fn survives(&self) -> bool {
        self.driver.can_be_left()
    }

    /// Gives the device up without taking it away, for [`LocalDevice::recover`] of the next
    /// process: until then its I/O waits. One that does not [survive](LocalDevice::survives) is
    /// taken away by force.
    pub fn leave(mut self) {
        if self.survives() {
            self.attached = false;
            self.driver.leave();
        }
    }

    fn close(&mut self) -> Result<(), DeviceError> {
        let mut claim = self.claim()?;
        claim.flush().map_err(|source| DeviceError::Flush { path: self.link.clone(), source })?;
        // The link goes first: as soon as the device is unbound its number can be another's.
        self.remove_link();
        match self.driver.close(claim) {
            Ok(true) => {
                self.attached = false;
                record::remove(&self.run_dir, &self.name);
                Ok(())
            }
            closed => {
                links::make(&self.link, self.node())?;
                self.announce();
                closed.map_err(DeviceError::system("closing the device", &self.link))?;
                Err(self.busy())
            }
        }
    }

    /// Makes sure that nobody has the device open, and that nobody can mount it from now on.
    fn claim(&self) -> Result<Claim, DeviceError> {
        let holder = self.holder.as_deref().filter(|_| self.survives());
        let deadline = Instant::now() + UDEV_LIMIT;
        loop {
            let openers = self.openers()?;
            if openers.is_empty() {
                match Claim::take(self.driver.device(), holder) {
                    Ok(claim) => return Ok(claim),
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
            record::remove(&self.run_dir, &self.name);
        }
    }

    fn announce(&self) {
        udev::announce(&self.run_dir, &self.name, &self.driver.device().name);
    }

    fn remove_link(&self) {
        udev::forget(&self.run_dir, &self.driver.device().name);
        if let Err(error) = links::remove(&self.link, self.node()) {
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

/// A filesystem that was mounted before goes on with what it knows of the device.
fn check_unchanged(name: &str, record: &Record, now: &dyn Backend) -> Result<(), DeviceError> {
    let (size, block_size) = (now.size(), now.block_size());
    let why = if size != record.size {
        format!("it has {size} bytes now, and had {}", record.size)
    } else if block_size != record.block_size {
        format!("its blocks have {block_size} bytes now, and had {}", record.block_size)
    } else if now.is_read_only() && !record.read_only {
        "it is read-only now".to_owned()
    } else {
        return Ok(());
    };
    Err(DeviceError::Changed { name: name.to_owned(), why })
}

/// The kernel's name of the device with this node.
fn kernel_name(node: &Path) -> &str {
    node.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Whether something is written down of a device with this kernel name.
pub(crate) fn is_written_down(options: &DeviceOptions, name: &str) -> bool {
    let names = record::names(&options.run_dir).unwrap_or_default();
    let records = names.iter().filter_map(|of| Record::load(&options.run_dir, of).ok().flatten());
    records.map(|record| driver::node(&record)).any(|node| kernel_name(&node) == name)
}

/// Removes what leads to a device that is gone.
pub(crate) fn forget(name: &str, options: &DeviceOptions) {
    let link = options.links_dir.join(name);
    if links::target(&link).is_ok_and(|to| links::leads_nowhere(&to))
        && let Err(error) = fs::remove_file(&link)
    {
        tracing::warn!(link = %link.display(), %error, "removing a link failed");
    }
    record::remove(&options.run_dir, name);
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
