//! Who has a block device open.

use crate::claim::HOLDER;
use crate::sysinfo::{self, DeviceNumber, Mount};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How many openers are looked for. More than that helps nobody.
const MAX_OPENERS: usize = 64;

/// Somebody who has a block device open. Prints as what is done with the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Opener {
    /// A process other than this one.
    Process {
        /// Its id.
        pid: u32,
        /// Its short name, as `ps -o comm` shows it.
        command: String,
    },
    /// A filesystem.
    Mount {
        /// Where it is mounted, as the processes see that live in the mount's namespace.
        at: PathBuf,
    },
    /// Another block device that is built on it.
    Device {
        /// The kernel's name of that device.
        name: String,
    },
    /// Swap space.
    Swap,
    /// Somebody who could not be found.
    Unknown,
}

impl Opener {
    /// Whether this most likely lets go in a moment: udev, which looks at a device after each
    /// change, or another process that looks for a free loop device and was told of one that has
    /// just been taken, as another daemon does, or who held the device for a daemon that is gone.
    pub(crate) fn is_passing(&self) -> bool {
        let Self::Process { command, .. } = self else { return false };
        let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let holder = Some(command.as_str()) == HOLDER.to_str().ok();
        command.contains("udev") || command == "losetup" || command == own.trim_end() || holder
    }
}

impl fmt::Display for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(f, "open in {command} (process {pid})"),
            Self::Mount { at } => write!(f, "mounted at {}", at.display()),
            Self::Device { name } => write!(f, "part of the device {name}"),
            Self::Swap => f.write_str("used as swap space"),
            Self::Unknown => f.write_str("in use"),
        }
    }
}

/// What to look for.
pub(crate) struct Target<'a> {
    /// The kernel's name of the device.
    pub(crate) name: &'a str,
    pub(crate) number: DeviceNumber,
    /// Every path by which it can have been opened.
    pub(crate) paths: [&'a Path; 2],
}

impl Target<'_> {
    fn is_source_of(&self, mount: &Mount, numbers: &Numbers) -> bool {
        // A filesystem over several devices has a number of its own, and only names one of them.
        numbers.has(mount.device) || self.paths.contains(&mount.source.as_path())
    }
}

/// The numbers of a device and of its partitions.
struct Numbers(Vec<DeviceNumber>);

impl Numbers {
    fn of(target: &Target<'_>) -> Self {
        let mut numbers = sysinfo::partition_numbers(target.name);
        numbers.push(target.number);
        Self(numbers)
    }

    fn has(&self, number: DeviceNumber) -> bool {
        self.0.contains(&number)
    }
}

/// Finds who has the device open, at most [`MAX_OPENERS`], until `deadline`.
///
/// # Errors
/// When `/proc` cannot be read, and [`io::ErrorKind::TimedOut`] when nobody was found up to the
/// deadline and not all processes were looked at.
pub(crate) fn find(target: &Target<'_>, deadline: Instant) -> io::Result<Vec<Opener>> {
    let mut found: Vec<Opener> =
        sysinfo::holders(target.name).into_iter().map(|name| Opener::Device { name }).collect();
    let numbers = Numbers::of(target);
    if is_swap(target) {
        found.push(Opener::Swap);
    }
    let mut namespaces = HashSet::new();
    let own = std::process::id();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if found.len() >= MAX_OPENERS {
            break;
        }
        if Instant::now() >= deadline {
            if found.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            break;
        }
        find_mounts(target, &numbers, pid, &mut namespaces, &mut found);
        if pid != own && has_open(&numbers, pid) {
            found.push(Opener::Process { pid, command: command(pid) });
        }
    }
    found.truncate(MAX_OPENERS);
    Ok(found)
}

/// Adds the mounts of the process's mount namespace, once for each namespace.
fn find_mounts(
    target: &Target<'_>,
    numbers: &Numbers,
    pid: u32,
    namespaces: &mut HashSet<PathBuf>,
    found: &mut Vec<Opener>,
) {
    let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { return };
    if !namespaces.insert(namespace) {
        return;
    }
    let mounts = sysinfo::mounts(Path::new(&format!("/proc/{pid}/mountinfo")));
    for mount in mounts.unwrap_or_default() {
        let opener = Opener::Mount { at: mount.point.clone() };
        // A namespace is a copy of another with the same mounts in it, most of the time.
        if target.is_source_of(&mount, numbers) && !found.contains(&opener) {
            found.push(opener);
        }
    }
}

/// Whether the process has the device among its file descriptors. A process that has ended or
/// that may not be looked at has not.
fn has_open(numbers: &Numbers, pid: u32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|fd| is_device(&fd, numbers))
}

/// Asks without `STATX_DONT_SYNC` would wait for the server of a network or FUSE file.
fn is_device(path: &Path, numbers: &Numbers) -> bool {
    let Ok(stat) = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) else {
        return false;
    };
    FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice
        && numbers.has(DeviceNumber { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor })
}

fn is_swap(target: &Target<'_>) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut files = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    files.any(|file| target.paths.contains(&Path::new(file)))
}

fn command(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => "a process".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_device_that_nobody_has() {
        let number = DeviceNumber { major: 4094, minor: 1_000_000 };
        let paths = [Path::new("/dev/no-such-device"); 2];
        let target = Target { name: "no-such-device", number, paths };
        assert_eq!(find(&target, Instant::now() + Duration::from_secs(10)).unwrap(), []);
        let late = find(&target, Instant::now()).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_mount_is_known_by_number_and_by_source() {
        let number = DeviceNumber { major: 7, minor: 9 };
        let paths = [Path::new("/dev/loop9"), Path::new("/dev/holdfast/r0")];
        let target = Target { name: "loop9", number, paths };
        let other = DeviceNumber { major: 0, minor: 50 };
        let mount = |device, source: &str| Mount {
            device,
            point: PathBuf::from("/mnt"),
            kind: "btrfs".to_owned(),
            source: PathBuf::from(source),
        };
        let partition = DeviceNumber { major: 259, minor: 3 };
        let numbers = Numbers(vec![partition, number]);
        assert!(target.is_source_of(&mount(number, "/dev/root"), &numbers));
        assert!(target.is_source_of(&mount(partition, "/dev/root"), &numbers));
        assert!(target.is_source_of(&mount(other, "/dev/holdfast/r0"), &numbers));
        assert!(!target.is_source_of(&mount(other, "/dev/loop8"), &numbers));
    }
}
