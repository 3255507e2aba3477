//! Writing metadata: one after the other, durably, away from the shard thread.

use holdfast_core::MetaOpId;
use rustix::fs::fstatfs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Blocks and their places in bytes.
pub(super) type Blocks = Vec<(u64, Box<[u8; 4096]>)>;

/// Magic numbers of filesystems that are only memory: tmpfs and ramfs.
const MEMORY_FILESYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The open metadata, claimed as long as it lives.
#[derive(Debug)]
pub(super) struct MetaFile {
    file: File,
    in_memory: bool,
}

impl MetaFile {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let magic = u64::try_from(fstatfs(&file)?.f_type).unwrap_or(0) & 0xffff_ffff;
        let in_memory = file.metadata()?.is_file() && MEMORY_FILESYSTEMS.contains(&magic);
        Ok(Self { file, in_memory })
    }

    fn write(&self, blocks: &Blocks) -> io::Result<()> {
        for (offset, block) in blocks {
            self.file.write_all_at(&block[..], *offset)?;
        }
        self.file.sync_data()
    }
}

/// The end of a write.
pub(super) type MetaDone = (MetaOpId, io::Result<()>);

/// Writes metadata in order. After a failure every further write fails: what is on disk is not
/// known any more.
pub(super) struct MetaIo {
    way: Way,
    /// Writes that were handed to the thread and have not come back.
    in_flight: usize,
    failed: bool,
}

enum Way {
    /// On the calling thread: the file lives in memory.
    Inline(MetaFile),
    Thread {
        jobs: Sender<(MetaOpId, Blocks)>,
        thread: JoinHandle<()>,
    },
}

impl MetaIo {
    /// The receiver has the ends of writes that did not end at once.
    pub(super) fn start(file: MetaFile) -> io::Result<(Self, UnboundedReceiver<MetaDone>)> {
        let (done, ends) = unbounded_channel();
        let way = if file.in_memory {
            Way::Inline(file)
        } else {
            let (jobs, queue) = channel();
            let thread = std::thread::Builder::new().name("metadata".into());
            let thread = thread.spawn(move || work(&file, &queue, &done))?;
            Way::Thread { jobs, thread }
        };
        Ok((Self { way, in_flight: 0, failed: false }, ends))
    }

    /// Starts a write; its end when it is over already. How many there are is bounded by the core:
    /// one transaction, one superblock, and the pages of the bitmaps.
    pub(super) fn write(&mut self, op: MetaOpId, blocks: Blocks) -> Option<MetaDone> {
        if self.failed {
            return Some((op, Err(failed_before())));
        }
        match &self.way {
            Way::Inline(file) => {
                let result = file.write(&blocks);
                self.failed = result.is_err();
                Some((op, result))
            }
            Way::Thread { jobs, .. } => match jobs.send((op, blocks)) {
                Ok(()) => {
                    self.in_flight += 1;
                    None
                }
                Err(_) => Some((op, Err(failed_before()))),
            },
        }
    }

    /// To be called for each end that came from the thread.
    pub(super) fn ended(&mut self) {
        self.in_flight -= 1;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Gives the file and its claim up. Nothing may be in flight: then it takes no time.
    pub(super) fn close(self) {
        if let Way::Thread { jobs, thread } = self.way {
            drop(jobs);
            // It holds the file; a panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

fn work(file: &MetaFile, queue: &Receiver<(MetaOpId, Blocks)>, done: &UnboundedSender<MetaDone>) {
    let mut failed = false;
    while let Ok((op, blocks)) = queue.recv() {
        let result = if failed { Err(failed_before()) } else { file.write(&blocks) };
        failed = result.is_err();
        if done.send((op, result)).is_err() {
            return;
        }
    }
}

/// What the writes behind one that failed say.
fn failed_before() -> io::Error {
    io::Error::other("an earlier write failed")
}
