//! What the demo writes, and how it is checked: files with contents that can be told by their
//! number, or blocks where there is no filesystem.

use holdfast_nbd::{Client, ConnectOptions, NbdUri};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const BLOCK: usize = 4096;
/// The most blocks of one piece; pieces have different lengths up to this.
const MOST_BLOCKS: usize = 32;

/// The way to the data on the Primary.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Files in a mounted filesystem.
    Files(PathBuf),
    /// Pieces at their places in an NBD export of this size.
    Nbd(NbdUri, u64),
}

impl Access {
    /// By NBD.
    pub(crate) fn nbd(uri: &str, size: u64) -> Result<Self, String> {
        let uri: NbdUri = uri.parse().map_err(|why| format!("{uri} is no NBD export: {why}"))?;
        Ok(Self::Nbd(uri, size))
    }

    /// How many pieces there is room for, besides those that are there from before.
    pub(crate) fn room(&self) -> u32 {
        let free = match self {
            Self::Files(mount) => {
                rustix::fs::statvfs(mount).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
            }
            Self::Nbd(_, size) => *size,
        };
        // Half of it, so that the filesystem never runs full.
        let pieces = free / 2 / (BLOCK * MOST_BLOCKS) as u64;
        u32::try_from(pieces).unwrap_or(u32::MAX).saturating_sub(2 * super::FILES)
    }
}

/// How many pieces were written and synced, counted from 0 without a gap.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    acknowledged: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
}

impl Written {
    /// How many were acknowledged.
    pub(crate) fn count(&self) -> u32 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Tells a writer to end after the piece that it is at.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Writes pieces on a thread of its own until there are `until`, each synced before the next.
    pub(crate) fn write(
        &self,
        access: Access,
        until: u32,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let written = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut target = Target::open(&access)?;
            while written.count() < until && !written.stop.load(Ordering::Acquire) {
                target.write(written.count())?;
                written.acknowledged.fetch_add(1, Ordering::Release);
            }
            Ok(())
        });
        async { work.await.unwrap_or_else(|why| Err(why.to_string())) }
    }

    /// Reads every acknowledged piece on a thread of its own; how many bytes they were.
    pub(crate) fn check(
        &self,
        access: Access,
    ) -> impl Future<Output = Result<u64, String>> + use<> {
        let count = self.count();
        let work = tokio::task::spawn_blocking(move || {
            let mut target = Target::open(&access)?;
            let mut total = 0;
            for number in 0..count {
                let (found, expected) = (target.read(number)?, piece(number));
                if Sha256::digest(&found) != Sha256::digest(&expected) {
                    return Err(format!("piece {number} was acknowledged, and is not as written"));
                }
                total += found.len() as u64;
            }
            Ok(total)
        });
        async { work.await.unwrap_or_else(|why| Err(why.to_string())) }
    }
}

/// The contents of a piece: its number, then what a generator makes of the number.
fn piece(number: u32) -> Vec<u8> {
    let blocks = 1 + number as usize * 7 % MOST_BLOCKS;
    let mut data = Vec::with_capacity(blocks * BLOCK);
    data.extend_from_slice(&u64::from(number).to_le_bytes());
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while data.len() < blocks * BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data
}

/// An open way to the data.
enum Target {
    Files(PathBuf),
    Nbd(Box<Client>, u64),
}

impl Target {
    fn open(access: &Access) -> Result<Self, String> {
        match access {
            Access::Files(mount) => Ok(Self::Files(mount.clone())),
            Access::Nbd(uri, size) => {
                let timeout = Some(Duration::from_secs(20));
                let options = ConnectOptions { timeout, ..ConnectOptions::default() };
                let client = Client::connect(uri, &options).map_err(|why| why.to_string())?;
                Ok(Self::Nbd(Box::new(client), *size))
            }
        }
    }

    fn write(&mut self, number: u32) -> Result<(), String> {
        let data = piece(number);
        match self {
            Self::Files(mount) => {
                write_file(mount, number, &data).map_err(|why| format!("file {number}: {why}"))
            }
            Self::Nbd(client, size) => {
                let at = place(number, *size)?;
                client.write_at(&data, at).map_err(|why| format!("piece {number}: {why}"))?;
                client.flush().map_err(|why| format!("piece {number}: {why}"))
            }
        }
    }

    fn read(&mut self, number: u32) -> Result<Vec<u8>, String> {
        match self {
            Self::Files(mount) => {
                let mut data = Vec::new();
                File::open(file_path(mount, number))
                    .and_then(|mut file| file.read_to_end(&mut data))
                    .map_err(|why| format!("file {number} was acknowledged: {why}"))?;
                Ok(data)
            }
            Self::Nbd(client, size) => {
                let mut data = vec![0; piece(number).len()];
                let at = place(number, *size)?;
                client.read_at(&mut data, at).map_err(|why| format!("piece {number}: {why}"))?;
                Ok(data)
            }
        }
    }
}

/// Where a piece lies in an export.
fn place(number: u32, size: u64) -> Result<u64, String> {
    let slot = (BLOCK * MOST_BLOCKS) as u64;
    let at = u64::from(number) * slot;
    if at + slot <= size { Ok(at) } else { Err(format!("there is no room for piece {number}")) }
}

fn file_path(mount: &Path, number: u32) -> PathBuf {
    mount.join(format!("file-{number:05}"))
}

/// Writes a file so that it outlives a crash: the file synced, then the directory.
fn write_file(mount: &Path, number: u32, data: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(file_path(mount, number))?;
    file.write_all(data)?;
    file.sync_all()?;
    File::open(mount)?.sync_all()
}

/// Compares the first `size` bytes of files with those of the first of them.
pub(crate) fn equal(files: &[PathBuf], size: u64) -> Result<(), String> {
    const CHUNK: usize = 1 << 20;
    let mut open = Vec::with_capacity(files.len());
    for path in files {
        let file = File::open(path).map_err(|why| format!("{}: {why}", path.display()))?;
        open.push((path, file, vec![0; CHUNK]));
    }
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        for (path, file, buffer) in &mut open {
            file.read_exact(&mut buffer[..len])
                .map_err(|why| format!("{} at byte {at}: {why}", path.display()))?;
        }
        if let Some((path, ..)) = open.iter().find(|(.., b)| b[..len] != open[0].2[..len]) {
            let first = files[0].display();
            return Err(format!("{} differs from {first} after byte {at}", path.display()));
        }
        at += len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_differ_and_come_again() {
        assert_eq!(piece(7), piece(7));
        assert_ne!(piece(7)[..BLOCK], piece(8)[..BLOCK]);
        for number in 0..100 {
            let len = piece(number).len();
            assert!((BLOCK..=BLOCK * MOST_BLOCKS).contains(&len) && len.is_multiple_of(BLOCK));
        }
    }

    #[test]
    fn places_do_not_touch_and_end_in_time() {
        assert_eq!(place(0, 1 << 20), Ok(0));
        assert_eq!(place(7, 1 << 20), Ok(7 << 17));
        assert!(place(8, 1 << 20).is_err());
        assert!(place(u32::MAX, 1 << 20).is_err());
    }

    #[tokio::test]
    async fn what_was_written_is_checked_by_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::Files(dir.path().to_owned());
        let written = Written::default();
        written.write(access.clone(), 5).await.unwrap();
        assert_eq!(written.count(), 5);
        let bytes: u64 = (0..5).map(|n| piece(n).len() as u64).sum();
        assert_eq!(written.check(access.clone()).await.unwrap(), bytes);
        let path = file_path(dir.path(), 3);
        let mut data = std::fs::read(&path).unwrap();
        data[10] ^= 1;
        std::fs::write(&path, &data).unwrap();
        assert!(written.check(access.clone()).await.unwrap_err().contains("piece 3"));
        std::fs::remove_file(&path).unwrap();
        assert!(written.check(access.clone()).await.unwrap_err().contains("file 3"));
        written.stop();
        written.write(access, 50).await.unwrap();
        assert_eq!(written.count(), 5);
    }

    #[test]
    fn disks_are_compared_to_the_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|n| dir.path().join(n.to_string())).collect();
        let size = (1 << 20) + BLOCK as u64;
        for path in &paths {
            std::fs::write(path, vec![5; usize::try_from(size).unwrap()]).unwrap();
        }
        equal(&paths, size).unwrap();
        let mut data = std::fs::read(&paths[2]).unwrap();
        *data.last_mut().unwrap() = 6;
        std::fs::write(&paths[2], &data).unwrap();
        assert!(equal(&paths, size).unwrap_err().contains("differs"));
        equal(&paths, size - 1).unwrap();
        std::fs::write(&paths[1], b"short").unwrap();
        assert!(equal(&paths, size).is_err());
    }
}
