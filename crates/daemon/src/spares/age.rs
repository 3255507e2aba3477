//! How often the tables of the spares of a disk were written, kept in the state directory. It only grows,
//! and it is noted when it is durable on the spare: so a spare that says less is an older image of it that
//! somebody has put back, and must not be used.

use crate::statefile;
use holdfast_store::TableWrites;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first word of a file, and the version of its content.
const HEAD: &str = "holdfast-spares 1 ";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    /// By the id of the spare, 32 hexadecimal digits.
    table_writes: BTreeMap<String, u64>,
}

/// What was noted; nothing, when there is no file, or a damaged one: that keeps no disk away.
pub(super) fn read(path: &Path) -> TableWrites {
    if !path.exists() {
        return TableWrites::new();
    }
    let noted: Noted = match statefile::read(path, HEAD) {
        Ok(noted) => noted,
        Err(why) => {
            tracing::warn!("{} cannot be used, and is written anew: {why}", path.display());
            return TableWrites::new();
        }
    };
    let known = |(id, writes): (String, u64)| Some((id.parse().ok()?, writes));
    noted.table_writes.into_iter().filter_map(known).collect()
}

/// Notes it durably, unless it is what is there. What was noted of these spares never becomes less: who
/// used the disk before may be late. With `all`, others are forgotten. Nothing is noted of a resource that
/// is gone: its own state file is `owner`. Blocks.
///
/// # Errors
/// When the system refuses; the version before is still there then.
pub(super) fn write(path: &Path, owner: &Path, writes: &TableWrites, all: bool) -> io::Result<()> {
    let _writing = writing();
    if !owner.exists() {
        return Ok(());
    }
    let before = read(path);
    let mut next = if all { TableWrites::new() } else { before.clone() };
    for (id, writes) in writes {
        let least = before.get(id).copied().unwrap_or(0);
        next.insert(*id, least.max(*writes));
    }
    if next == before {
        return Ok(());
    }
    let table_writes = next.iter().map(|(id, writes)| (id.to_string(), *writes)).collect();
    statefile::write(path, HEAD, &Noted { table_writes })
}

/// Removes what was noted, durably.
///
/// # Errors
/// When the system refuses.
pub(crate) fn forget_writes(path: &Path) -> io::Result<()> {
    let _writing = writing();
    statefile::remove(path)
}

/// One at a time writes: who used a disk before may still be at it.
fn writing() -> MutexGuard<'static, ()> {
    static WRITING: Mutex<()> = Mutex::new(());
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::remap::SpareId;

    #[test]
    fn what_was_noted_is_read_and_what_is_damaged_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        assert_eq!(read(&path), TableWrites::new());
        let writes = TableWrites::from([(SpareId([0xab; 16]), 7), (SpareId([1; 16]), u64::MAX)]);
        write(&path, dir.path(), &writes, true).unwrap();
        assert_eq!(read(&path), writes);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(": 7", ": 8")).unwrap();
        assert_eq!(read(&path), TableWrites::new());
        write(&path, dir.path(), &writes, false).unwrap();
        assert_eq!(read(&path), writes);
        forget_writes(&path).unwrap();
        assert_eq!(read(&path), TableWrites::new());
        write(&path, &dir.path().join("gone"), &writes, true).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn who_is_late_makes_nothing_less_and_forgets_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        let [a, b, c] = [1, 2, 3].map(|id| SpareId([id; 16]));
        write(&path, dir.path(), &TableWrites::from([(a, 5), (b, 7)]), true).unwrap();
        write(&path, dir.path(), &TableWrites::from([(a, 4), (c, 1)]), false).unwrap();
        assert_eq!(read(&path), TableWrites::from([(a, 5), (b, 7), (c, 1)]));
        write(&path, dir.path(), &TableWrites::from([(a, 4), (c, 2)]), true).unwrap();
        assert_eq!(read(&path), TableWrites::from([(a, 5), (c, 2)]));
    }
}
