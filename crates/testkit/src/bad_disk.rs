//! A file whose blocks fail on command.

mod serve;

use crate::program::{run, run_ok};
use crate::scratch::clean_up;
use serve::Served;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How a block is bad.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// Reads fail until the whole block is written, as with most sectors that a drive cannot read:
    /// it puts them elsewhere when they are written. Writing a part of the block fails.
    Unreadable,
    /// Reads fail. Writes seem to work, and change nothing about that.
    Stuck,
    /// Writes fail, reads give what is there.
    Unwritable,
    /// Reads and writes fail.
    Dead,
}

/// What a disk was asked for so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IoCounts {
    /// Reads, with those that failed.
    pub reads: u64,
    /// Writes and zeroes, with those that failed.
    pub writes: u64,
    /// Flushes, with those that failed.
    pub flushes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes and zeroes that failed.
    pub write_errors: u64,
}

/// A real file, below a mount of its own, that takes direct I/O, io_uring, locks and fsync as any
/// other, and whose blocks fail as the test says. What it stores is in another file, which the test
/// can change behind the back of who uses the disk. It goes with the value, whoever has it open, and
/// also in a panic. Needs root and FUSE: [`crate::devices_unavailable`].
#[derive(Debug)]
pub struct BadDisk {
    block: u64,
    size: u64,
    below: PathBuf,
    point: PathBuf,
    shared: Arc<Shared>,
    loop_device: Mutex<Option<PathBuf>>,
}

/// What the handle and the threads that serve have in common.
#[derive(Debug)]
struct Shared {
    block: u64,
    size: u64,
    store: File,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bad: BTreeMap<u64, Bad>,
    counts: IoCounts,
    read_delay: Duration,
    write_delay: Duration,
    all_fails: bool,
    flushes_fail: bool,
    stalled: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BadDisk {
    /// A disk of `size` bytes, all zeroes, in the directory `dir`, whose blocks of 4096 bytes can be
    /// bad. Several can be in one directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    #[must_use]
    pub fn new(dir: &Path, name: &str, size: u64) -> Self {
        Self::with_blocks(dir, name, size, 4096)
    }

    /// As [`Self::new`], with bad blocks of 512 or 4096 bytes.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    #[must_use]
    pub fn with_blocks(dir: &Path, name: &str, size: u64, block: u64) -> Self {
        assert!(block == 512 || block == 4096, "blocks of {block} bytes");
        let below = dir.join(format!("{name}.below"));
        let point = dir.join(format!("{name}.mount"));
        std::fs::create_dir_all(&point).expect("the mount point can be made");
        let store = File::options().read(true).write(true).create_new(true).open(&below);
        let store = store.expect("the file below can be made");
        store.set_len(size).expect("the file below can be that long");
        let state = Mutex::default();
        let shared = Arc::new(Shared { block, size, store, state, released: Condvar::new() });
        Served::mount(&shared, &point);
        Self { block, size, below, point, shared, loop_device: Mutex::default() }
    }

    /// The file that is to be used as a disk.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.point.join(serve::FILE_NAME)
    }

    /// The same as text, for command lines.
    #[must_use]
    pub fn text(&self) -> String {
        self.path().display().to_string()
    }

    /// The file in which its content is.
    #[must_use]
    pub fn below(&self) -> &Path {
        &self.below
    }

    /// Its bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// A block device over it, with logical blocks as large as those that can be bad. It goes with
    /// the disk.
    ///
    /// # Panics
    /// When none can be made.
    #[track_caller]
    pub fn loop_device(&self) -> PathBuf {
        let mut made = self.loop_device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &*made {
            return path.clone();
        }
        let block = self.block.to_string();
        let mut command = Command::new("losetup");
        command.args(["-f", "--show", "--direct-io=on", "-b", &block]).arg(self.path());
        let path = PathBuf::from(run_ok(&mut command).trim());
        *made = Some(path.clone());
        path
    }

    /// Makes blocks bad, by their numbers.
    ///
    /// # Panics
    /// When the disk has no such block.
    pub fn set_bad(&self, bad: Bad, blocks: impl IntoIterator<Item = u64>) {
        let mut state = self.shared.state();
        for number in blocks {
            assert!(number < self.size / self.block, "the disk has no block {number}");
            state.bad.insert(number, bad);
        }
    }

    /// Makes blocks good again.
    pub fn heal(&self, blocks: impl IntoIterator<Item = u64>) {
        let mut state = self.shared.state();
        for number in blocks {
            state.bad.remove(&number);
        }
    }

    /// Makes all blocks good again, and ends every other fault.
    pub fn heal_all(&self) {
        *self.shared.state() = State { counts: self.counts(), ..State::default() };
        self.shared.released.notify_all();
    }

    /// The blocks that are bad, in order.
    #[must_use]
    pub fn bad_blocks(&self) -> Vec<u64> {
        self.shared.state().bad.keys().copied().collect()
    }

    /// Whether every read, write and flush fails.
    pub fn fail_all(&self, fail: bool) {
        self.shared.state().all_fails = fail;
    }

    /// Whether flushes fail.
    pub fn fail_flushes(&self, fail: bool) {
        self.shared.state().flushes_fail = fail;
    }

    /// Each read and each write takes so much longer.
    pub fn delay(&self, reads: Duration, writes: Duration) {
        let mut state = self.shared.state();
        (state.read_delay, state.write_delay) = (reads, writes);
    }

    /// While it is stalled, nothing is answered.
    pub fn stall(&self, stalled: bool) {
        self.shared.state().stalled = stalled;
        self.shared.released.notify_all();
    }

    /// What it was asked for so far.
    #[must_use]
    pub fn counts(&self) -> IoCounts {
        self.shared.state().counts
    }

    /// Changes bytes silently, whatever is bad there.
    ///
    /// # Panics
    /// When that does not work.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.size, "behind the end");
        self.shared.store.write_all_at(data, offset).expect("the file below can be written");
    }

    /// The bytes that are there, whatever is bad there.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.shared.store.read_exact_at(&mut data, offset).expect("the file below can be read");
        data
    }

    /// Turns all bits of 8 bytes in the middle of a block around, silently.
    ///
    /// # Panics
    /// When the disk has no such block.
    pub fn corrupt(&self, block: u64) {
        let at = block * self.block + self.block / 2;
        let turned: Vec<u8> = self.peek(at, 8).iter().map(|byte| !byte).collect();
        self.poke(at, &turned);
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        self.heal_all();
        if let Some(path) = self.loop_device.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = run(Command::new("losetup").arg("-d").arg(path));
        }
        serve::unmount(&self.point);
        // What could not be ended in that way, and its devices.
        clean_up(&self.point);
        let _ = std::fs::remove_dir(&self.point);
        let _ = std::fs::remove_file(&self.below);
    }
}

#[cfg(test)]
mod tests;
