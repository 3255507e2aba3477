//! Files that are replaced as a whole: after a crash at any moment there is the old or the new.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The moments of a replacement between which a crash can fall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Created,
    HalfWritten,
    Written,
    Synced,
    BackedUp,
    Renamed,
    DirSynced,
}

/// Is told each step when it is done. An error of it ends the replacement there; tests use that.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(Step) -> io::Result<()>;

/// `NAME.bak` beside a file: its previous version.
pub(crate) fn backup_of(path: &Path) -> PathBuf {
    with_suffix(path, ".bak")
}

/// Replaces a file by these bytes, mode 0600, and keeps the previous version as `NAME.bak`.
/// When it returns, the new version survives a power failure. There must be one writer.
pub(crate) fn replace(path: &Path, bytes: &[u8], watch: Watch<'_>) -> io::Result<()> {
    let new = with_suffix(path, ".new");
    let done = write_new(&new, bytes, watch).and_then(|()| {
        keep_previous(path)?;
        watch(Step::BackedUp)?;
        fs::rename(&new, path)
    });
    if done.is_err() {
        // A full disk should not stay full because of us; the error that counts is the first.
        let _ = fs::remove_file(&new);
    }
    done?;
    watch(Step::Renamed)?;
    sync_dir(parent(path))?;
    watch(Step::DirSynced)
}

/// Writes a file that was not there, mode 0600, and makes its content durable (not its name).
pub(crate) fn write_new(path: &Path, bytes: &[u8], watch: Watch<'_>) -> io::Result<()> {
    remove_if_there(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    watch(Step::Created)?;
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first)?;
    watch(Step::HalfWritten)?;
    file.write_all(second)?;
    watch(Step::Written)?;
    file.sync_all()?;
    watch(Step::Synced)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The file's content; `None` when there is no such file, an error when it is longer than `max`.
pub(crate) fn read_bounded(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > max) {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than {max} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// The backup gets its name by a rename too, so it is whole at every moment.
fn keep_previous(path: &Path) -> io::Result<()> {
    if !path.try_exists()? {
        return Ok(());
    }
    let linked = with_suffix(path, ".bak.new");
    remove_if_there(&linked)?;
    if fs::hard_link(path, &linked).is_err() {
        // Some filesystems have no hard links.
        fs::copy(path, &linked)?;
        File::open(&linked)?.sync_all()?;
    }
    fs::rename(&linked, backup_of(path))?;
    // Renaming one name of a file over another name of it does nothing and leaves both.
    remove_if_there(&linked)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    pub(crate) const STEPS: [Step; 7] = [
        Step::Created,
        Step::HalfWritten,
        Step::Written,
        Step::Synced,
        Step::BackedUp,
        Step::Renamed,
        Step::DirSynced,
    ];

    /// Runs a replacement that dies at `step`, as a killed process does: nothing is cleaned up.
    pub(crate) fn die_at(step: Step, run: impl FnOnce(Watch<'_>)) {
        let mut watch = |now| {
            if now == step {
                resume_unwind(Box::new("killed"));
            }
            Ok(())
        };
        assert!(catch_unwind(AssertUnwindSafe(|| run(&mut watch))).is_err(), "{step:?} not met");
    }

    #[test]
    fn a_kill_at_every_step_leaves_old_or_new_and_a_whole_backup() {
        for step in STEPS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            replace(&path, b"version 0", &mut |_| Ok(())).unwrap();
            replace(&path, b"version 1", &mut |_| Ok(())).unwrap();
            // Twice, because the leftovers of the first kill must not hurt the second.
            for _ in 0..2 {
                die_at(step, |watch| replace(&path, b"version 2", watch).unwrap());
                let now = fs::read(&path).unwrap();
                let renamed = matches!(step, Step::Renamed | Step::DirSynced);
                assert_eq!(now, if renamed { b"version 2" } else { b"version 1" }, "{step:?}");
                assert!(fs::read(backup_of(&path)).unwrap().starts_with(b"version "));
            }
            replace(&path, b"version 3", &mut |_| Ok(())).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"version 3");
            assert_ne!(fs::read(backup_of(&path)).unwrap(), b"version 3");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{step:?} left something");
        }
    }

    #[test]
    fn an_error_leaves_the_old_version_and_no_rubbish() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"old", &mut |_| Ok(())).unwrap();
        let full = |now| match now {
            Step::HalfWritten => Err(io::Error::from(io::ErrorKind::StorageFull)),
            _ => Ok(()),
        };
        let error = replace(&path, b"new", &mut { full }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_order_is_write_sync_backup_rename_sync() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Vec::new();
        let mut watch = |step| {
            seen.push(step);
            Ok(())
        };
        replace(&dir.path().join("f"), b"x", &mut watch).unwrap();
        assert_eq!(seen, STEPS);
    }

    #[test]
    fn reading_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(read_bounded(&path, 3).unwrap().is_none());
        fs::write(&path, b"123").unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap().unwrap(), b"123");
        assert!(read_bounded(&path, 2).is_err());
    }
}
