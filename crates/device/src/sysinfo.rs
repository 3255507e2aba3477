//! What the kernel tells in `/proc` and `/sys` about mounts and block devices.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The number of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceNumber {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl DeviceNumber {
    /// Reads `7:0`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// One line of a mountinfo file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mount {
    pub(crate) device: DeviceNumber,
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
}

/// The mounts that this mountinfo file lists.
pub(crate) fn mounts(mountinfo: &Path) -> io::Result<Vec<Mount>> {
    let text = fs::read(mountinfo)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse_mount).collect())
}

/// The mounts that this process sees.
pub(crate) fn own_mounts() -> io::Result<Vec<Mount>> {
    mounts(Path::new("/proc/self/mountinfo"))
}

fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&byte| byte == b' ');
    let device = DeviceNumber::parse(std::str::from_utf8(words.nth(2)?).ok()?)?;
    let point = unescape(words.nth(1)?);
    words.find(|word| *word == b"-")?;
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    let source = unescape(words.next()?);
    Some(Mount { device, point, kind, source })
}

/// Undoes the kernel's `\040` for space, tab, newline and backslash.
fn unescape(word: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let octal = (first == b'\\').then(|| after.get(..3).and_then(octal_byte)).flatten();
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn octal_byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// The file under the loop device `loopN`; `None` when it has none.
pub(crate) fn loop_backing(name: &str) -> Option<PathBuf> {
    let mut path = fs::read(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    if path.last() == Some(&b'\n') {
        path.pop();
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

/// The number of the block device with this kernel name.
pub(crate) fn device_number(name: &str) -> io::Result<DeviceNumber> {
    let text = fs::read_to_string(format!("/sys/block/{name}/dev"))?;
    DeviceNumber::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The size in bytes of the block device with this kernel name.
pub(crate) fn size_bytes(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/sys/block/{name}/size"))?;
    let sectors: Option<u64> = text.trim().parse().ok();
    let bytes = sectors.and_then(|sectors| sectors.checked_mul(512));
    bytes.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The numbers of the partitions of the block device with this kernel name.
pub(crate) fn partition_numbers(name: &str) -> Vec<DeviceNumber> {
    let text = |partition: PathBuf| fs::read_to_string(partition.join("dev")).ok();
    let numbers = partitions(name).into_iter().filter_map(text);
    numbers.filter_map(|text| DeviceNumber::parse(&text)).collect()
}

fn partitions(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/sys/block/{name}")).into_iter().flatten().flatten();
    let is_partition = |path: &PathBuf| path.join("partition").exists();
    entries.map(|entry| entry.path()).filter(is_partition).collect()
}

/// Has the kernel tell udev of the block device with this kernel name once more.
pub(crate) fn send_change(name: &str) -> io::Result<()> {
    fs::write(format!("/sys/block/{name}/uevent"), "change")
}

/// The block devices that are built on the one with this kernel name, or on its partitions
/// (device mapper, md).
pub(crate) fn holders(name: &str) -> Vec<String> {
    let mut places = partitions(name);
    places.push(PathBuf::from(format!("/sys/block/{name}")));
    let entries = places.into_iter().filter_map(|place| fs::read_dir(place.join("holders")).ok());
    let entries = entries.flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn nbd_number(name: &str) -> Option<u32> {
    name.strip_prefix("nbd")?.parse().ok()
}

/// The kernel name of an NBD device from the path of its node.
pub(crate) fn nbd_name_of(node: &Path) -> Option<&str> {
    let name = node.strip_prefix("/dev").ok()?.to_str()?;
    nbd_number(name).map(|_| name)
}

/// Whether the NBD device with this kernel name has a connection, dead or not.
pub(crate) fn nbd_is_connected(name: &str) -> bool {
    Path::new(&format!("/sys/block/{name}/pid")).exists()
}

/// The numbers `N` of all block devices `nbdN`, in order.
pub(crate) fn nbd_numbers() -> io::Result<Vec<u32>> {
    let names = fs::read_dir("/sys/block")?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u32> = names.filter_map(|name| nbd_number(&name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The kernel names of all loop devices.
pub(crate) fn loop_names() -> io::Result<Vec<String>> {
    let names = fs::read_dir("/sys/block")?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| is_loop_name(name)).collect())
}

fn is_loop_name(name: &str) -> bool {
    name.strip_prefix("loop")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
}

/// The kernel name of a loop device from the path of its node.
pub(crate) fn loop_name_of(node: &Path) -> Option<&str> {
    let name = node.strip_prefix("/dev").ok()?.to_str()?;
    is_loop_name(name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_with_escapes_and_optional_fields() {
        let line =
            br"36 35 7:3 / /mnt/a\040b\134 rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw";
        let mount = parse_mount(line).unwrap();
        assert_eq!(mount.device, DeviceNumber { major: 7, minor: 3 });
        assert_eq!(mount.point, Path::new(r"/mnt/a b\"));
        assert_eq!(
            (mount.kind.as_str(), mount.source.as_path()),
            ("ext4", Path::new("/dev/loop3"))
        );
    }

    #[test]
    fn broken_lines_are_skipped() {
        for line in [&b""[..], b"36 35", b"36 35 7 / / rw - a b", b"1 2 7:0 / / rw", b"\xff \xff"] {
            assert_eq!(parse_mount(line), None);
        }
        assert_eq!(unescape(br"a\04"), Path::new(r"a\04"));
    }

    #[test]
    fn only_whole_nbd_devices_are_nbds() {
        assert_eq!(nbd_name_of(Path::new("/dev/nbd12")), Some("nbd12"));
        for other in ["/dev/nbd", "/dev/nbd1p1", "/dev/loop1", "/tmp/nbd1"] {
            assert_eq!(nbd_name_of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn only_whole_loop_devices_are_loops() {
        assert_eq!(loop_name_of(Path::new("/dev/loop12")), Some("loop12"));
        for other in ["/dev/loop", "/dev/loop1p1", "/dev/sda", "/tmp/loop1", "/dev/loop-control"] {
            assert_eq!(loop_name_of(Path::new(other)), None, "{other}");
        }
    }
}
