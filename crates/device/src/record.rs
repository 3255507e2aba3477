//! What is written down of a device that can outlive its process, for the next one.
//!
//! One small file each, `.NAME.device` in the run directory. It is written before the kernel is
//! asked for the device, so that there is never a device that nobody knows of. It is only good for
//! the boot in which it was written: a device does not outlive the kernel.

use crate::error::DeviceError;
use crate::via::Kind;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The first line of a file, with the version of its content.
const HEAD: &str = "holdfast-device 1";
const SUFFIX: &str = ".device";
/// No record is nearly as long.
const MAX_BYTES: u64 = 4096;

/// A device that an earlier process may have left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Whose driver made it.
    pub(crate) kind: Kind,
    /// The number that the kernel knows it by.
    pub(crate) id: u32,
    /// A random word that the kernel keeps with the device, to tell it from a later one with the
    /// same number.
    pub(crate) token: u64,
    /// In bytes.
    pub(crate) size: u64,
    /// In bytes.
    pub(crate) block_size: u32,
    pub(crate) read_only: bool,
}

impl Record {
    /// Writes it; there is the version before or this one, whatever happens.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn save(&self, run_dir: &Path, name: &str) -> Result<(), DeviceError> {
        let path = path(run_dir, name);
        let new = path.with_extension("new");
        let fail = |error| DeviceError::system::<io::Error>("writing the record", &path)(error);
        let boot = boot_id().map_err(fail)?;
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(fail)?;
        // It only has to outlive the process, so it need not be durable.
        fs::write(&new, self.text(&boot)).and_then(|()| fs::rename(&new, &path)).map_err(fail)
    }

    /// The record of this name; `None` when there is none of this boot.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(crate) fn load(run_dir: &Path, name: &str) -> Result<Option<Self>, DeviceError> {
        let path = path(run_dir, name);
        let fail = |error| DeviceError::system::<io::Error>("reading the record", &path)(error);
        let broken = |why: &str| fail(io::Error::new(io::ErrorKind::InvalidData, why));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => return Err(broken("it is too long")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        }
        let text = fs::read_to_string(&path).map_err(fail)?;
        let boot = boot_id().map_err(fail)?;
        match Self::parse(&text) {
            None => Err(broken("it is no record of a device")),
            Some((_, of)) if of != boot => Ok(None),
            Some((record, _)) => Ok(Some(record)),
        }
    }

    fn text(&self, boot: &str) -> String {
        let mut text = format!("{HEAD}\n");
        let Self { kind, id, token, size, block_size, read_only } = self;
        write!(
            text,
            "boot {boot}\nkind {kind}\nid {id}\ntoken {token:016x}\nsize {size}\n\
             block-size {block_size}\nread-only {read_only}\n"
        )
        .expect("a string takes all");
        text
    }

    /// The record, and the boot that it belongs to.
    fn parse(text: &str) -> Option<(Self, String)> {
        let mut lines = text.strip_prefix(HEAD)?.strip_prefix('\n')?.lines();
        let mut next = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        let boot = next("boot")?.to_owned();
        let kind = match next("kind")? {
            "ublk" => Kind::Ublk,
            "nbd" => Kind::Nbd,
            _ => return None,
        };
        let record = Self {
            kind,
            id: next("id")?.parse().ok()?,
            token: u64::from_str_radix(next("token")?, 16).ok()?,
            size: next("size")?.parse().ok()?,
            block_size: next("block-size")?.parse().ok()?,
            read_only: next("read-only")?.parse().ok()?,
        };
        Some((record, boot))
    }
}

/// Removes the record; there is none is as good.
pub(crate) fn remove(run_dir: &Path, name: &str) {
    let path = path(run_dir, name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(record = %path.display(), %error, "removing a record failed");
        }
        _ => {}
    }
}

/// The names of all records, sorted.
pub(crate) fn names(run_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let files = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = files.filter_map(|file| name_of(&file)).collect();
    names.sort();
    Ok(names)
}

fn name_of(file: &str) -> Option<String> {
    let name = file.strip_prefix('.')?.strip_suffix(SUFFIX)?;
    holdfast_units::check_name(name).is_ok().then(|| name.to_owned())
}

/// No name of a device begins with a dot, so it is no other device's directory.
fn path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!(".{name}{SUFFIX}"))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: Record = Record {
        kind: Kind::Ublk,
        id: 7,
        token: 0x0123_4567_89ab_cdef,
        size: 1 << 40,
        block_size: 4096,
        read_only: true,
    };

    #[test]
    fn what_was_saved_is_read_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("devices");
        assert_eq!(names(&run_dir).unwrap(), [""; 0]);
        assert_eq!(Record::load(&run_dir, "r0").unwrap(), None);
        RECORD.save(&run_dir, "r0").unwrap();
        let other = Record { kind: Kind::Nbd, read_only: false, ..RECORD };
        other.save(&run_dir, "a.b").unwrap();
        assert_eq!(Record::load(&run_dir, "r0").unwrap(), Some(RECORD));
        assert_eq!(Record::load(&run_dir, "a.b").unwrap(), Some(other));
        assert_eq!(names(&run_dir).unwrap(), ["a.b", "r0"]);
        remove(&run_dir, "r0");
        remove(&run_dir, "r0");
        assert_eq!(names(&run_dir).unwrap(), ["a.b"]);
    }

    #[test]
    fn a_record_of_another_boot_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path(), "r0"), RECORD.text("another")).unwrap();
        assert_eq!(Record::load(dir.path(), "r0").unwrap(), None);
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let whole = RECORD.text(&boot_id().unwrap());
        let cut = &whole[..whole.len() - 12];
        let long = "x".repeat(5000);
        for text in ["", "x", cut, &whole.replace("id 7", "id -7"), &long] {
            fs::write(path(dir.path(), "r0"), text).unwrap();
            let error = Record::load(dir.path(), "r0").unwrap_err().to_string();
            assert!(error.starts_with("reading the record failed for "), "{error}");
        }
    }

    #[test]
    fn only_names_of_devices_are_records() {
        assert_eq!(name_of(".r0.device").as_deref(), Some("r0"));
        for other in ["r0", ".r0", "r0.device", "..device", ".r0.new", ".all.device"] {
            assert_eq!(name_of(other), None, "{other}");
        }
    }
}
