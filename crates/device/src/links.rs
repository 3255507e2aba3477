//! The links `NAME` to the nodes of devices. udev, where it has our rules, makes them too, as relative
//! ones.

use crate::error::DeviceError;
use crate::sysinfo;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

/// Where a link leads to, as an absolute path.
pub(crate) fn target(link: &Path) -> io::Result<PathBuf> {
    let to = fs::read_link(link)?;
    let mut path = PathBuf::new();
    for part in link.parent().unwrap_or(Path::new("/")).join(to).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    Ok(path)
}

/// Removes the link when it leads to this node.
///
/// # Errors
/// When the system refuses.
pub(crate) fn remove(link: &Path, node: &Path) -> io::Result<()> {
    if !target(link).is_ok_and(|to| to == node) {
        return Ok(());
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a link of an earlier run that leads to no device; refuses when anything else is there.
pub(crate) fn make_room(name: &str, link: &Path) -> Result<(), DeviceError> {
    let exists = |why: String| {
        Err(DeviceError::Exists { name: name.to_owned(), path: link.to_owned(), why })
    };
    match target(link) {
        Ok(to) if leads_nowhere(&to) => {
            fs::remove_file(link).map_err(DeviceError::system("removing the old link", link))
        }
        Ok(to) => exists(format!("is a link to {}, which is in use", to.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => exists("is in its place".to_owned()),
    }
}

/// Whether a link to this node leads to a loop device without a file, an NBD device without a
/// connection, or to nothing.
pub(crate) fn leads_nowhere(to: &Path) -> bool {
    if let Some(name) = sysinfo::loop_name_of(to) {
        sysinfo::loop_backing(name).is_none()
    } else if let Some(name) = sysinfo::nbd_name_of(to) {
        !sysinfo::nbd_is_connected(name)
    } else {
        !to.exists()
    }
}

pub(crate) fn make(link: &Path, node: &Path) -> Result<(), DeviceError> {
    let directory = link.parent().unwrap_or(Path::new("."));
    match fs::create_dir_all(directory).and_then(|()| symlink(node, link)) {
        // udev has been faster.
        Err(_) if target(link).is_ok_and(|to| to == node) => Ok(()),
        made => made.map_err(DeviceError::system("making the link", link)),
    }
}

#[cfg(test)]
mod tests {
    use super::{leads_nowhere, make, make_room, remove, target};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn a_relative_link_is_as_good_as_an_absolute_one() {
        let dir = tempfile::tempdir().unwrap();
        let (links, node) = (dir.path().join("links"), dir.path().join("node"));
        fs::write(&node, "").unwrap();
        let link = links.join("r0");
        make(&link, &node).unwrap();
        assert_eq!(target(&link).unwrap(), node);
        fs::remove_file(&link).unwrap();
        symlink("../node", &link).unwrap();
        assert_eq!(target(&link).unwrap(), node);
        make(&link, &node).unwrap();
        assert!(make_room("r0", &link).is_err(), "it is in use");
        remove(&link, Path::new("/dev/other")).unwrap();
        assert!(link.is_symlink());
        remove(&link, &node).unwrap();
        remove(&link, &node).unwrap();
        assert!(!link.is_symlink());
    }

    #[test]
    fn a_link_to_nothing_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("r0");
        symlink("/dev/no-such-device", &link).unwrap();
        make_room("r0", &link).unwrap();
        assert!(!link.is_symlink());
        assert!(leads_nowhere(Path::new("/dev/nbd123456789")));
    }
}
