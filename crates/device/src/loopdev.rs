//! Loop devices, by the ioctls of `/dev/loop-control` and `/dev/loopN`.
#![allow(unsafe_code)]

use crate::error::DeviceError;
use crate::sysinfo::{self, DeviceNumber};
use rustix::fs::{CWD, FileType, Mode};
use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LO_NAME_SIZE: usize = 64;

/// How often a free device is asked for that somebody else then takes first.
const TRIES: u32 = 16;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; LO_NAME_SIZE],
    crypt_name: [u8; LO_NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

impl LoopInfo {
    const ZERO: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; LO_NAME_SIZE],
        crypt_name: [0; LO_NAME_SIZE],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// A loop device with a file under it. Dropping it does not touch the device.
pub(crate) struct LoopDevice {
    /// The kernel's name, `loopN`.
    pub(crate) name: String,
    /// `/dev/loopN`.
    pub(crate) node: PathBuf,
    pub(crate) number: DeviceNumber,
    /// The file under it.
    backing: PathBuf,
}

impl LoopDevice {
    /// Puts a free loop device with these logical blocks over the file, with direct I/O.
    pub(crate) fn over(
        backing: &Path,
        block_size: u32,
        read_only: bool,
    ) -> Result<Self, DeviceError> {
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(backing)
            .map_err(DeviceError::system("opening the FUSE file", backing))?;
        let control_path = Path::new("/dev/loop-control");
        let control = File::options()
            .read(true)
            .write(true)
            .open(control_path)
            .map_err(DeviceError::system("opening the loop driver", control_path))?;
        for _ in 0..TRIES {
            let free = get_free(&control)
                .map_err(DeviceError::system("asking for a free loop device", control_path))?;
            let name = format!("loop{free}");
            let node = PathBuf::from(format!("/dev/{name}"));
            let failed = |what| DeviceError::system::<io::Error>(what, &node);
            let number = sysinfo::device_number(&name).map_err(failed("reading the number"))?;
            let device = open_node(&node, number).map_err(failed("opening a loop device"))?;
            match configure(&device, &file, backing, block_size, read_only) {
                Ok(()) => return Ok(Self { name, node, number, backing: backing.to_owned() }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(failed("configuring a loop device")(error)),
            }
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        Err(DeviceError::system("finding a free loop device", control_path)(busy))
    }

    /// The loop devices whose file satisfies `wanted`.
    pub(crate) fn all(wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for name in sysinfo::loop_names()? {
            let Some(backing) = sysinfo::loop_backing(&name).filter(|path| wanted(path)) else {
                continue;
            };
            // It can vanish while we look.
            let Ok(number) = sysinfo::device_number(&name) else { continue };
            found.push(Self { node: PathBuf::from(format!("/dev/{name}")), name, number, backing });
        }
        Ok(found)
    }

    /// Whether the device still has our file under it. Only to be asked while the filesystem of
    /// the file is mounted.
    pub(crate) fn is_bound(&self) -> bool {
        sysinfo::loop_backing(&self.name).is_some_and(|path| path == self.backing)
    }

    /// Opens the device; nobody can mount it or take it exclusively until the file is closed.
    ///
    /// # Errors
    /// `EBUSY` when somebody has it exclusively, which is what a mount does.
    pub(crate) fn claim(&self) -> io::Result<File> {
        // For reading will do, and a read-only device allows no more.
        File::options().read(true).custom_flags(libc::O_EXCL).open(&self.node)
    }

    /// Opens the device for [`LoopDevice::unbind`] beside those who use it.
    pub(crate) fn open(&self) -> io::Result<File> {
        File::options().read(true).open(&self.node)
    }

    /// Takes the file from the device when `device` is closed, or when the last other user
    /// closes it. A device that has no file any more is as good.
    pub(crate) fn unbind(&self, device: &File) -> io::Result<()> {
        // SAFETY: LOOP_CLR_FD takes no argument and touches no memory of ours; the descriptor is
        // open for the length of the call.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) }) {
            Err(error) if error.raw_os_error() != Some(libc::ENXIO) => Err(error),
            _ => Ok(()),
        }
    }

    /// Undoes [`LoopDevice::unbind`] as long as another user has kept the file there.
    pub(crate) fn keep(&self) -> io::Result<()> {
        let device = self.open()?;
        let mut info = LoopInfo::ZERO;
        // SAFETY: `info` has the size and layout of `struct loop_info64` (asserted above) and
        // lives for the length of the call.
        let got = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        check(got)?;
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        // SAFETY: as above; the kernel only reads it.
        let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) };
        check(set).map(drop)
    }
}

fn get_free(control: &File) -> io::Result<c_int> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and touches no memory of ours; the descriptor
    // is open for the length of the call.
    check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) })
}

fn configure(
    device: &File,
    backing: &File,
    path: &Path,
    block_size: u32,
    read_only: bool,
) -> io::Result<()> {
    let flags = LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let mut info = LoopInfo { flags, ..LoopInfo::ZERO };
    // Only shown to people; its last byte must stay zero.
    let shown = path.as_os_str().as_encoded_bytes();
    let length = shown.len().min(LO_NAME_SIZE - 1);
    info.file_name[..length].copy_from_slice(&shown[..length]);
    let fd = u32::try_from(backing.as_raw_fd()).expect("a descriptor is not negative");
    let config = LoopConfig { fd, block_size, info, reserved: [0; 8] };
    // SAFETY: `config` has the size and layout of `struct loop_config` (asserted above), the
    // kernel only reads it, and both descriptors are open for the length of the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }).map(drop)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens the node of a loop device; makes it first where no devtmpfs has made it.
fn open_node(node: &Path, number: DeviceNumber) -> io::Result<File> {
    let device = rustix::fs::makedev(number.major, number.minor);
    if fs::symlink_metadata(node).is_err() {
        let mode = Mode::from_raw_mode(0o600);
        match rustix::fs::mknodat(CWD, node, FileType::BlockDevice, mode, device) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let file = File::options().read(true).write(true).open(node)?;
    let found = file.metadata()?;
    if !found.file_type().is_block_device() || found.rdev() != device {
        return Err(io::Error::other("the node belongs to another device"));
    }
    Ok(file)
}
