//! The directory in which the demo keeps everything.

use super::leftovers;
use holdfast_api::{ApiError, ErrorCode};
use std::path::{Path, PathBuf};

/// The longest path of a Unix socket that the kernel takes is 107 bytes; the sockets of a node are
/// this much longer than the directory.
const LONGEST: usize = 107 - "/epsilon/control.sock".len();

/// The directory, and what of it is the demo's to remove.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Whether the directory itself was made by the demo.
    made: bool,
}

impl Scratch {
    /// Makes the directory. One that exists must be empty.
    pub(crate) fn make(dir: Option<&Path>) -> Result<Self, ApiError> {
        let Some(dir) = dir else {
            let made = tempfile::Builder::new().prefix("holdfast-demo-").tempdir();
            let made = made.map_err(|why| refused(&std::env::temp_dir(), &why))?;
            return Self { path: made.keep(), made: true }.checked();
        };
        let path = std::path::absolute(dir).map_err(|why| refused(dir, &why))?;
        match std::fs::create_dir(&path) {
            Ok(()) => Self { path, made: true }.checked(),
            Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {
                let mut entries = std::fs::read_dir(&path).map_err(|why| refused(&path, &why))?;
                if entries.next().is_some() {
                    return Err(refused(&path, &"it is not empty"));
                }
                Self { path, made: false }.checked()
            }
            Err(why) => Err(refused(&path, &why)),
        }
    }

    fn checked(self) -> Result<Self, ApiError> {
        if self.path.as_os_str().len() <= LONGEST {
            return Ok(self);
        }
        let error = refused(&self.path, &"its path is too long for the sockets in it");
        self.remove()?;
        Err(error.hint("name a shorter one with --dir"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what the demo made. Refuses while something is mounted below it: removing would
    /// reach into that.
    pub(crate) fn remove(&self) -> Result<(), ApiError> {
        let mounts = leftovers::mounts_below(&self.path);
        if let Some(mount) = mounts.first() {
            return Err(ApiError::new(
                ErrorCode::InUse,
                format!("{} was not removed: {mount} is still mounted", self.path.display()),
            )
            .hint(format!("`umount -l {mount}`, then remove the directory")));
        }
        let result = if self.made {
            std::fs::remove_dir_all(&self.path)
        } else {
            std::fs::read_dir(&self.path).and_then(|mut entries| {
                entries.try_for_each(|entry| std::fs::remove_dir_all(entry?.path()))
            })
        };
        result.map_err(|why| {
            let path = self.path.display();
            ApiError::new(ErrorCode::Internal, format!("{path} was not removed: {why}"))
        })
    }
}

fn refused(path: &Path, why: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidPath,
        format!("the demo was not started in {}: {why}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("mine"), b"x").unwrap();
        let error = Scratch::make(Some(dir.path())).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidPath);
        assert!(dir.path().join("mine").exists());
    }

    #[test]
    fn what_was_made_is_removed_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(Some(dir.path())).unwrap();
        std::fs::create_dir(dir.path().join("alpha")).unwrap();
        scratch.remove().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let inner = dir.path().join("new");
        let scratch = Scratch::make(Some(&inner)).unwrap();
        std::fs::create_dir(inner.join("alpha")).unwrap();
        scratch.remove().unwrap();
        assert!(!inner.exists());
        assert!(Scratch::make(Some(&dir.path().join("a/b"))).is_err(), "no parent");
    }

    #[test]
    fn a_path_that_is_too_long_for_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        let error = Scratch::make(Some(&long)).unwrap_err();
        assert!(error.message.contains("too long"), "{error}");
        assert!(!long.exists());
    }
}
