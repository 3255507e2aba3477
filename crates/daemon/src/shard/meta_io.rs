//! Writing metadata: one after the other, durably, away from the shard thread.

use super::meta_move::{MovedMeta, Shift};
use holdfast_core::MetaOpId;
use rustix::fs::fstatfs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

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
    /// Blocks come for the places where the metadata were before.
    shifts: Vec<Shift>,
    /// Writes that wait until the metadata have been moved, while they are.
    held: Option<Vec<(MetaOpId, Blocks)>>,
    /// Who waits for the end of those before.
    quiet: Option<oneshot::Sender<()>>,
    done: UnboundedSender<MetaDone>,
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
        let way = Way::of(file, &done)?;
        let (held, quiet, shifts) = (None, None, Vec::new());
        Ok((Self { way, in_flight: 0, failed: false, shifts, held, quiet, done }, ends))
    }

    /// Writes wait from now on; it is told when those before have ended.
    pub(super) fn hold(&mut self, quiet: oneshot::Sender<()>) {
        self.held.get_or_insert_default();
        self.quiet = Some(quiet);
        self.tell_quiet();
    }

    fn tell_quiet(&mut self) {
        if self.in_flight == 0
            && let Some(quiet) = self.quiet.take()
        {
            // Nobody waits any more: no harm.
            let _ = quiet.send(());
        }
    }

    /// Writes go on, in another place if one is given; the ends of those that are over at once.
    pub(super) fn go_on(&mut self, moved: Option<MovedMeta>) -> Vec<MetaDone> {
        if let Some(MovedMeta { file, shift }) = moved {
            match file.map(|file| Way::of(file, &self.done)) {
                None => {}
                Some(Ok(way)) => std::mem::replace(&mut self.way, way).end(),
                Some(Err(_)) => self.failed = true,
            }
            self.shifts.push(shift);
        }
        let held = self.held.take().unwrap_or_default();
        held.into_iter().filter_map(|(op, blocks)| self.write(op, blocks)).collect()
    }

    /// Starts a write; its end when it is over already. How many there are is bounded by the core:
    /// one transaction, one superblock, and the pages of the bitmaps.
    pub(super) fn write(&mut self, op: MetaOpId, blocks: Blocks) -> Option<MetaDone> {
        if self.failed {
            return Some((op, Err(failed_before())));
        }
        if let Some(held) = &mut self.held {
            held.push((op, blocks));
            return None;
        }
        let shifted = self.shifts.iter().try_fold(blocks, |blocks, shift| shift.apply(&blocks));
        let blocks = match shifted {
            Ok(blocks) => blocks,
            Err(error) => {
                self.failed = true;
                return Some((op, Err(error)));
            }
        };
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
        self.tell_quiet();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.held.as_ref().is_none_or(Vec::is_empty)
    }

    /// Gives the file and its claim up. Nothing may be in flight: then it takes no time.
    pub(super) fn close(self) {
        self.way.end();
    }
}

impl Way {
    fn of(file: MetaFile, done: &UnboundedSender<MetaDone>) -> io::Result<Self> {
        if file.in_memory {
            return Ok(Self::Inline(file));
        }
        let (jobs, queue) = channel();
        let done = done.clone();
        let thread = std::thread::Builder::new().name("metadata".into());
        let thread = thread.spawn(move || work(&file, &queue, &done))?;
        Ok(Self::Thread { jobs, thread })
    }

    /// Nothing may be in flight: then it takes no time.
    fn end(self) {
        if let Self::Thread { jobs, thread } = self {
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
