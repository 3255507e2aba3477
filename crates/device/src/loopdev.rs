//! Loop devices, by the ioctls of `/dev/loop-control` and `/dev/loopN`.
#![allow(unsafe_code)]

use crate::blockdev::BlockDevice;
use crate::error::DeviceError;
use crate::fuse::FILE_NAME;
use crate::sysinfo;
use std::ffi::{OsStr, c_int};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LO_NAME_SIZE: usize = 64;
/// So much of a path is kept with a device, in bytes.
pub(crate) const GIVEN_LENGTH: usize = LO_NAME_SIZE - 1;

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
    pub(crate) device: BlockDevice,
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
            let node = PathBuf::from(format!("/dev/loop{free}"));
            let failed = |what| DeviceError::system::<io::Error>(what, &node);
            let device =
                BlockDevice::named(format!("loop{free}")).map_err(failed("reading the number"))?;
            let opened = device.open_node().map_err(failed("opening a loop device"))?;
            match configure(&opened, &file, backing, block_size, read_only) {
                Ok(()) => return Ok(Self { device, backing: backing.to_owned() }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(failed("configuring a loop device")(error)),
            }
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        Err(DeviceError::system("finding a free loop device", control_path)(busy))
    }

    /// The loop devices whose file satisfies `wanted`. A file that is mounted nowhere any more, as
    /// when the mount namespace of its daemon has ended with it, has no path: it goes by the one
    /// that was given when the device was made, of which the kernel keeps [`GIVEN_LENGTH`] bytes.
    pub(crate) fn all(wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for name in sysinfo::loop_names()? {
            let Some(mut backing) = sysinfo::loop_backing(&name) else { continue };
            // It can vanish while we look.
            let Ok(device) = BlockDevice::named(name) else { continue };
            if backing == Path::new("/").join(FILE_NAME)
                && let Ok(given) = device.open().and_then(|device| given_path(&device))
            {
                backing = given;
            }
            if wanted(&backing) {
                found.push(Self { device, backing });
            }
        }
        Ok(found)
    }

    /// Whether the device still has our file under it. Only to be asked while the filesystem of
    /// the file is mounted.
    pub(crate) fn is_bound(&self) -> bool {
        sysinfo::loop_backing(&self.device.name).is_some_and(|path| path == self.backing)
    }

    /// Has the kernel look at the size of the file again, under those who use the device.
    pub(crate) fn read_capacity(&self) -> io::Result<()> {
        let device = self.device.open()?;
        // SAFETY: LOOP_SET_CAPACITY takes no argument and touches no memory of ours; the descriptor
        // is open for the length of the call.
        check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
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
        let device = self.device.open()?;
        let mut info = status(&device)?;
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        // SAFETY: as above; the kernel only reads it.
        let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) };
        check(set).map(drop)
    }
}

fn status(device: &File) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::ZERO;
    // SAFETY: `info` has the size and layout of `struct loop_info64` (asserted above) and lives for
    // the length of the call.
    let got = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    check(got).map(|_| info)
}

/// The path that was given when the device was made, or its beginning.
fn given_path(device: &File) -> io::Result<PathBuf> {
    let name = status(device)?.file_name;
    let path = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(PathBuf::from(OsStr::from_bytes(path)))
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
    let read_only = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN | read_only;
    let mut info = LoopInfo { flags, ..LoopInfo::ZERO };
    // Shown to people, and a later run knows it by that; its last byte must stay zero.
    let shown = path.as_os_str().as_encoded_bytes();
    let length = shown.len().min(GIVEN_LENGTH);
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
