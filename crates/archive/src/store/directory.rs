//! Objects as files of a directory.

use super::{Store, Version};
use crate::digest::Digest;
use bytes::Bytes;
use rustix::fs::FlockOperation;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// What unfinished files are called; no object is.
const UNFINISHED: &str = ".unfinished-";
/// The file that writers of a manifest lock.
const LOCK: &str = ".lock";

/// A directory, local or of a network filesystem.
///
/// An object is written to a file of another name, synced, given its name, and the name synced.
#[derive(Debug)]
pub struct DirectoryStore {
    root: PathBuf,
    unfinished: AtomicU64,
}

impl DirectoryStore {
    /// Uses a directory that is there.
    ///
    /// # Errors
    /// When it is not one.
    pub fn open(root: &Path) -> io::Result<Self> {
        if !fs::metadata(root)?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        Ok(Self { root: root.to_owned(), unfinished: AtomicU64::new(0) })
    }

    /// Uses a directory, and makes it when there is none.
    ///
    /// # Errors
    /// When it cannot be made, or is none.
    pub fn create(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Self::open(root)
    }

    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let good = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
        };
        if name.trim_end_matches('/').split('/').all(good) {
            Ok(self.root.join(name))
        } else {
            Err(io::Error::new(ErrorKind::InvalidInput, "no object can have that name"))
        }
    }

    /// The file's directory, made durably when there is none.
    fn parent(&self, path: &Path) -> io::Result<PathBuf> {
        let parent = path.parent().ok_or(ErrorKind::InvalidInput)?;
        let mut missing = Vec::new();
        let mut at = parent;
        while at != self.root && !at.is_dir() {
            missing.push(at);
            at = at.parent().ok_or(ErrorKind::InvalidInput)?;
        }
        for dir in missing.into_iter().rev() {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => sync_dir(dir.parent().ok_or(ErrorKind::InvalidInput)?)?,
            }
        }
        Ok(parent.to_owned())
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Store for DirectoryStore {
    fn get(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        let Some(file) = absent(File::open(self.path(name)?))? else { return Ok(None) };
        let len = file.metadata()?.len();
        let too_long = || io::Error::new(ErrorKind::InvalidData, "it is longer than it can be");
        if len > max {
            return Err(too_long());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(len).map_err(|_| too_long())?);
        file.take(max).read_to_end(&mut bytes)?;
        Ok(Some(bytes.into()))
    }

    fn len_of(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(absent(fs::metadata(self.path(name)?))?.map(|metadata| metadata.len()))
    }

    fn put(&self, name: &str, bytes: &Bytes) -> io::Result<()> {
        let path = self.path(name)?;
        let parent = self.parent(&path)?;
        let number = self.unfinished.fetch_add(1, Ordering::Relaxed);
        let unfinished = parent.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        if let Err(error) = write() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        sync_dir(&parent)
    }

    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>> {
        let found = self.get(name, max)?;
        Ok(found.map(|bytes| {
            let version = version_of(&bytes);
            (bytes, version)
        }))
    }

    fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        expected: Option<&Version>,
    ) -> io::Result<Option<Version>> {
        let parent = self.parent(&self.path(name)?)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(parent.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        let now = self.get_versioned(name, u64::MAX)?.map(|(_, version)| version);
        if now.as_ref() != expected {
            return Ok(None);
        }
        self.put(name, bytes)?;
        Ok(Some(version_of(bytes)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        absent(fs::remove_file(self.path(name)?)).map(drop)
    }

    fn put_at(&self, name: &str) -> io::Result<Option<SystemTime>> {
        absent(fs::metadata(self.path(name)?).and_then(|metadata| metadata.modified()))
    }

    fn list(
        &self,
        prefix: &str,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(entries) = absent(fs::read_dir(self.path(prefix)?))? else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            let Some(metadata) = absent(entry.metadata())? else { continue };
            let file_name = entry.file_name();
            let Some(last) = file_name.to_str().filter(|last| !last.starts_with('.')) else {
                continue;
            };
            let name = format!("{prefix}{last}");
            if metadata.is_dir() {
                self.list(&format!("{name}/"), visit)?;
            } else {
                visit(&name, metadata.len())?;
            }
        }
        Ok(())
    }

    fn archives(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if let (true, Some(name)) = (entry.file_type()?.is_dir(), entry.file_name().to_str()) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn version_of(bytes: &[u8]) -> Version {
    Version(Digest::of(bytes).to_string())
}

#[cfg(test)]
mod tests {
    use super::{DirectoryStore, Store};
    use bytes::Bytes;

    #[test]
    fn objects_come_whole_and_are_replaced_by_who_knows_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = DirectoryStore::create(&dir.path().join("a/b")).unwrap();
        assert_eq!(store.get("r/x/1", 10).unwrap(), None);
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"second"));
        store.put("r/x/1", &one).unwrap();
        store.put("r/x/1", &two).unwrap();
        store.put("r/y", &one).unwrap();
        assert_eq!(store.get("r/x/1", 10).unwrap(), Some(two.clone()));
        assert!(store.get("r/x/1", 5).is_err(), "too long");
        assert_eq!(store.len_of("r/x/1").unwrap(), Some(6));
        let mut names = Vec::new();
        let mut list = |prefix: &str| {
            names.clear();
            store
                .list(prefix, &mut |name, len| {
                    names.push((name.to_owned(), len));
                    Ok(())
                })
                .unwrap();
            names.sort();
            names.clone()
        };
        assert_eq!(list("r/"), [("r/x/1".into(), 6), ("r/y".into(), 3)]);
        assert!(list("nothing/").is_empty());
        store.remove("r/x/1").unwrap();
        store.remove("r/x/1").unwrap();

        let first = store.replace("r/m", &one, None).unwrap().unwrap();
        assert_eq!(store.replace("r/m", &two, None).unwrap(), None, "it is there by now");
        let second = store.replace("r/m", &two, Some(&first)).unwrap().unwrap();
        assert_eq!(store.replace("r/m", &one, Some(&first)).unwrap(), None);
        assert_eq!(store.get_versioned("r/m", 10).unwrap(), Some((two, second)));
        assert_eq!(store.archives().unwrap(), ["r"]);
        for bad in ["../x", "r//x", "", ".lock", "r/.x", "r/a b"] {
            assert!(store.put(bad, &one).is_err(), "{bad}");
        }
    }
}
