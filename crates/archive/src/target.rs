//! What a state is built into: a new file, or a block device.

use bytes::{Bytes, BytesMut};
use holdfast_journal::driver::Backing;
use holdfast_units::{ByteRange, format_size};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What is written at a time where zeroes cannot be made.
const ZEROES: usize = 1 << 20;
/// So much of the beginning of a device is looked at to see whether there is something on it.
const LOOKED_AT: usize = 1 << 20;

/// A file or a block device that a state is built into.
#[derive(Debug)]
pub struct FileTarget {
    file: File,
    blank: bool,
    device: bool,
}

impl FileTarget {
    /// Opens a block device that nobody uses, or a file: a new one, or one that is there already.
    ///
    /// With `overwrite` what is in it is lost; with `go_on` what an earlier restore has written
    /// stays. With neither it must be new, empty, or (a device) read as zeroes at its beginning.
    ///
    /// # Errors
    /// When it cannot be used, with the reason as a sentence; nothing was changed.
    pub fn open(path: &Path, size: u64, overwrite: bool, go_on: bool) -> io::Result<Self> {
        let device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if device {
            let exclusive = rustix::fs::OFlags::EXCL.bits();
            options.custom_flags(exclusive.cast_signed());
        } else {
            options.create(true).truncate(false);
        }
        let mut file = options.open(path)?;
        let len = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        if device && len < size {
            let (len, size) = (format_size(len), format_size(size));
            let why = format!("the device has {len}, and the state needs {size}");
            return Err(io::Error::new(ErrorKind::StorageFull, why));
        }
        if !overwrite && !go_on && holds_data(&mut file, device, len)? {
            let why = "there is data in it already";
            return Err(io::Error::new(ErrorKind::AlreadyExists, why));
        }
        if !device {
            if !go_on {
                file.set_len(0)?;
            }
            if !go_on || len < size {
                file.set_len(size)?;
            }
        }
        Ok(Self { file, blank: !device && !go_on, device })
    }

    /// Opens a file or a block device that the caller has claimed: all of it is written over.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_claimed(path: &Path) -> io::Result<Self> {
        let device = std::fs::metadata(path)?.file_type().is_block_device();
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { file, blank: false, device })
    }

    /// Opens a file or a block device that nobody writes to, to be read.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_source(path: &Path) -> io::Result<Self> {
        let device = std::fs::metadata(path)?.file_type().is_block_device();
        Ok(Self { file: File::open(path)?, blank: false, device })
    }

    /// Whether it reads as zeroes all over.
    #[must_use]
    pub const fn blank(&self) -> bool {
        self.blank
    }

    /// Whether it is a block device.
    #[must_use]
    pub const fn is_device(&self) -> bool {
        self.device
    }
}

fn holds_data(file: &mut File, device: bool, len: u64) -> io::Result<bool> {
    if !device {
        return Ok(len > 0);
    }
    let mut beginning = Vec::new();
    file.take(LOOKED_AT as u64).read_to_end(&mut beginning)?;
    Ok(beginning.iter().any(|byte| *byte != 0))
}

impl Backing for FileTarget {
    fn read(&mut self, range: ByteRange) -> io::Result<Bytes> {
        let mut bytes = BytesMut::zeroed(usize::try_from(range.len).map_err(io::Error::other)?);
        self.file.read_exact_at(&mut bytes, range.offset)?;
        Ok(bytes.freeze())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn zeroes(&mut self, range: ByteRange, discard: bool) -> io::Result<()> {
        let flags = if discard && !self.device {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        let end = range.end();
        if !self.device && self.file.metadata()?.len() < end {
            self.file.set_len(end)?;
        }
        if fallocate(&self.file, flags, range.offset, range.len).is_ok() {
            return Ok(());
        }
        let zeroes = vec![0; ZEROES];
        let mut at = range.offset;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(ZEROES).min(ZEROES);
            self.file.write_all_at(&zeroes[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}
