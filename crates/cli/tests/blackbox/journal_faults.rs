//! Commands that end in the middle, on a resource with a journal.

use crate::{MIB, check_blocks, cluster, write_blocks};
use std::fs;
use std::path::{Path, PathBuf};

/// The state files of a node's resources.
fn state_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("it can be listed").flatten();
    entries
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => state_files(&path),
            path => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "state"))
        .collect()
}

/// What is only in the journal belongs to the disk that is still in use when another one could not
/// be noted.
#[test]
fn the_journal_is_not_emptied_before_its_disk_is_forgotten() {
    let cluster = cluster(1);
    let dir = cluster[0].dir().join("r0.journal").display().to_string();
    cluster.create("r0", 32 * MIB, &["--journal", &dir, "--journal-size", "16M"]);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["detach-disk", "r0", "--force"]);
    let segments = |place: &str| {
        let names = fs::read_dir(place).expect("it can be listed").flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with("segment-")).count()
    };
    let before = segments(&dir);
    assert!(before > 0);
    // The state of the resource cannot be written.
    let state = state_files(&cluster[0].state_dir());
    let blockers: Vec<PathBuf> = state.iter().map(|path| path.with_extension("new")).collect();
    for blocker in &blockers {
        fs::create_dir(blocker).expect("it can be made");
    }
    let other = cluster[0].dir().join("other.disk");
    fs::File::create(&other).expect("it can be made").set_len(64 * MIB).expect("it can grow");
    let other = other.display().to_string();
    cluster[0].refused(&["attach-disk", "r0", "--disk", &other], 1, "could not be written");
    assert_eq!(segments(&dir), before, "the disk that is attached next needs it");
    for blocker in &blockers {
        fs::remove_dir(blocker).expect("it can be removed");
    }
    cluster[0].ok(&["attach-disk", "r0"]);
    cluster[0].ok(&["up", "r0"]);
    cluster[0].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[0], "r0", 1, 0..100);
}
