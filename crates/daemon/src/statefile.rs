//! Small files of JSON that are replaced as a whole: after a crash there is the old or the new
//! version, and one that was damaged is known to be.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file is never longer, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Writes it durably, behind a line with `head` and a checksum.
///
/// # Errors
/// When the system refuses; the version before is still there then.
pub(crate) fn write<T: Serialize>(path: &Path, head: &str, value: &T) -> io::Result<()> {
    let text = format!("{}\n", serde_json::to_string_pretty(value)?);
    let text = format!("{head}{}\n{text}", checksum(&text));
    replace(path, text.as_bytes())
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// Why it cannot be used, as the end of a sentence.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, head: &str) -> Result<T, String> {
    if fs::metadata(path).map_err(|e| e.to_string())?.len() > MAX_FILE {
        return Err("it is too long".into());
    }
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (first, rest) = text.split_once('\n').ok_or("it has no first line")?;
    let sum = first.strip_prefix(head).ok_or("its first line is not that of such a file")?;
    if sum != checksum(rest) {
        return Err("its checksum does not fit".into());
    }
    serde_json::from_str(rest).map_err(|e| e.to_string())
}

/// What could be read, and which files could not and why, as the end of a sentence.
pub(crate) type Loaded<T> = (Vec<T>, Vec<(PathBuf, String)>);

/// Reads all files of a directory whose names end with `.state`: what [`write`] wrote. `path_of` says
/// where a value belongs.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn read_all<T: DeserializeOwned>(
    dir: &Path,
    head: &str,
    path_of: impl Fn(&T) -> PathBuf,
) -> io::Result<Loaded<T>> {
    let (mut found, mut damaged) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "state") {
            continue;
        }
        match read::<T>(&path, head) {
            Ok(value) if path_of(&value) == path => found.push(value),
            Ok(_) => damaged.push((path, "it has another name than it says".to_owned())),
            Err(why) => damaged.push((path, why)),
        }
    }
    Ok((found, damaged))
}

/// Removes it durably. That it is not there is no error.
///
/// # Errors
/// When the system refuses.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| sync_dir(path)),
    }
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts a file in the place of another, durably and at once.
///
/// # Errors
/// When the system refuses; the file before is still there then.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_dir(path)
}

/// Makes the directory of a file durable.
fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
