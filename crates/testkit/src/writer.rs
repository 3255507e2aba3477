use crate::rng::Rng;
use holdfast_nbd::{Client, ConnectOptions, NbdUri};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The size of a block that the writer writes, in bytes.
pub const BLOCK: usize = 4096;
const BLOCK_BYTES: u64 = BLOCK as u64;
/// How many blocks are read at once for a check.
const BATCH: u64 = 256;
const MAGIC: u64 = u64::from_be_bytes(*b"hfwriter");

/// What the write number `sequence` of a run puts into a block: the numbers, so that it can be
/// recognised, and then what follows from them, so that every bit counts.
#[must_use]
pub fn block_content(seed: u64, sequence: u64, block: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK];
    let (head, rest) = data.split_at_mut(32);
    for (part, number) in head.chunks_mut(8).zip([MAGIC, seed, sequence, block]) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    let mut rng = Rng::new(seed ^ sequence.rotate_left(20) ^ block.rotate_left(40));
    rng.fill(rest);
    data
}

/// What a writer did, and therefore what must be found.
#[derive(Clone, Debug)]
pub struct Ledger {
    seed: u64,
    /// How far the blocks are from each other, in blocks.
    stride: u64,
    /// The number of the last write that was begun.
    sequence: u64,
    blocks: Vec<Entry>,
    /// Every write that was begun: its number, its block.
    history: Vec<(u64, u64)>,
}

/// What is known of one block. Numbers of writes; 0 is the state before the first one.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    acknowledged: u64,
    /// The last one that was begun. It may be there or not until it is acknowledged.
    begun: u64,
}

impl Ledger {
    /// Of a writer that has not begun, over the first `blocks` blocks, which hold zeroes.
    #[must_use]
    pub fn new(seed: u64, blocks: usize) -> Self {
        Self::spread(seed, blocks, 1)
    }

    /// The same over every `stride`th block only, so that few of them share an extent.
    #[must_use]
    pub fn spread(seed: u64, blocks: usize, stride: u64) -> Self {
        let blocks = vec![Entry::default(); blocks];
        Self { seed, stride, sequence: 0, blocks, history: Vec::new() }
    }

    /// How many writes were begun.
    #[must_use]
    pub const fn begun(&self) -> usize {
        self.history.len()
    }

    /// How many blocks there are.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Where a block is, in bytes.
    const fn offset(&self, block: u64) -> u64 {
        block * self.stride * BLOCK_BYTES
    }

    /// Checks an export: every block holds its last acknowledged write, or a later one that was
    /// begun. What is found is from then on what must be there.
    ///
    /// # Panics
    /// When a block holds something else, with what it holds; when it cannot be read.
    #[track_caller]
    pub fn verify_export(&mut self, uri: &NbdUri) {
        let mut client = Client::connect(uri, &ConnectOptions::default())
            .unwrap_or_else(|why| panic!("{uri} cannot be opened: {why}"));
        self.verify(&uri.to_string(), |data, offset| {
            client.read_at(data, offset).map_err(Into::into)
        });
    }

    /// As [`Self::verify_export`], of a backing file.
    ///
    /// # Panics
    /// As [`Self::verify_export`].
    #[track_caller]
    pub fn verify_file(&mut self, path: &Path) {
        let file = File::open(path).expect("the backing file can be opened");
        self.verify(&path.display().to_string(), |data, offset| file.read_exact_at(data, offset));
    }

    #[track_caller]
    fn verify(&mut self, place: &str, mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<()>) {
        let mut wrong = Vec::new();
        let mut start = 0;
        while start < self.blocks() {
            let together = if self.stride == 1 { BATCH } else { 1 };
            let count = (self.blocks() - start).min(together);
            let mut data = vec![0; BLOCK * usize::try_from(count).expect("it is small")];
            read(&mut data, self.offset(start))
                .unwrap_or_else(|why| panic!("{place}: block {start} cannot be read: {why}"));
            for (block, content) in (start..).zip(data.chunks(BLOCK)) {
                if let Err(what) = self.check(block, content) {
                    wrong.push(what);
                }
            }
            start += count;
        }
        let shown = wrong.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n  ");
        assert!(wrong.is_empty(), "{place}: {} blocks are wrong:\n  {shown}", wrong.len());
    }

    /// Checks one block.
    fn check(&mut self, block: u64, content: &[u8]) -> Result<(), String> {
        let index = usize::try_from(block).expect("blocks are counted in a vector");
        let entry = self.blocks[index];
        let (acknowledged, begun) = (entry.acknowledged, entry.begun);
        let found = sequence_of(self.seed, block, content)
            .map_err(|what| format!("block {block}: {what}; write {acknowledged} is due"))?;
        if found < acknowledged {
            return Err(format!(
                "block {block}: write {found} is there, write {acknowledged} was acknowledged"
            ));
        }
        if found > begun {
            return Err(format!("block {block}: write {found} is there, and was never made"));
        }
        // Once seen it must not go, and one that was not seen must not come any more.
        self.blocks[index] = Entry { acknowledged: found, begun: found };
        Ok(())
    }

    /// Checks that a backing file holds a state that it had at one time: of writes that were
    /// made one after the other all up to some write, and none after that. The number of that
    /// write.
    ///
    /// # Panics
    /// When it does not, or cannot be read.
    #[track_caller]
    #[must_use]
    pub fn verify_prefix(&self, path: &Path) -> u64 {
        let file = File::open(path).expect("the backing file can be opened");
        let mut found = Vec::with_capacity(self.blocks.len());
        let mut content = vec![0; BLOCK];
        for block in 0..self.blocks() {
            file.read_exact_at(&mut content, self.offset(block)).expect("it can be read");
            let number = sequence_of(self.seed, block, &content);
            found.push(number.unwrap_or_else(|what| panic!("block {block}: {what}")));
        }
        let newest = found.iter().copied().max().unwrap_or(0);
        let mut due = vec![0; self.blocks.len()];
        for (sequence, block) in self.history.iter().filter(|(sequence, _)| *sequence <= newest) {
            due[usize::try_from(*block).expect("it is counted in a vector")] = *sequence;
        }
        for (block, (found, due)) in found.iter().zip(&due).enumerate() {
            assert_eq!(
                found, due,
                "block {block} holds another write than the one before write {newest}, which is \
                 there"
            );
        }
        newest
    }

    fn absorb(&mut self, part: Self) {
        for (entry, other) in self.blocks.iter_mut().zip(part.blocks) {
            entry.acknowledged = entry.acknowledged.max(other.acknowledged);
            entry.begun = entry.begun.max(other.begun);
        }
        self.history.extend(part.history);
        self.sequence = self.sequence.max(part.sequence);
    }
}

/// Which write a block holds; 0 when it holds zeroes.
fn sequence_of(seed: u64, block: u64, content: &[u8]) -> Result<u64, String> {
    if content.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let field = |index: usize| {
        let bytes = content[index * 8..][..8].try_into().expect("it has 8 bytes");
        u64::from_le_bytes(bytes)
    };
    if field(0) != MAGIC || field(1) != seed {
        return Err(format!("it holds something that nobody wrote: {:02x?}", &content[..32]));
    }
    if field(3) != block {
        return Err(format!("it holds write {}, which went to block {}", field(2), field(3)));
    }
    let whole = block_content(seed, field(2), block);
    match content.iter().zip(&whole).position(|(found, due)| found != due) {
        None => Ok(field(2)),
        Some(at) => Err(format!("it holds a part of write {}, wrong from byte {at} on", field(2))),
    }
}

/// How a writer goes about it.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// How many connections write at the same time, each one block after the other.
    pub connections: u64,
    /// After how many writes of a connection comes a flush; 0 for never.
    pub flush_every: u64,
    /// Stop by itself after so many writes of each connection; 0 for never.
    pub limit: u64,
    /// How long to wait for an answer.
    pub patience: Duration,
}

impl Default for WriterOptions {
    /// One connection that never flushes and never stops, and waits a minute for an answer.
    fn default() -> Self {
        Self { connections: 1, flush_every: 0, limit: 0, patience: Duration::from_secs(60) }
    }
}

/// Threads that write numbered blocks to an export without pause, until they are stopped or their
/// connection breaks.
#[derive(Debug)]
pub struct Writer {
    ledger: Ledger,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<(Ledger, Option<String>)>>,
}

impl Writer {
    /// Begins to write, going on where the ledger ends.
    ///
    /// # Panics
    /// When the export cannot be opened.
    #[track_caller]
    #[must_use]
    pub fn start(uri: &NbdUri, ledger: Ledger, options: WriterOptions) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let sequence = Arc::new(AtomicU64::new(ledger.sequence));
        let connections = options.connections.max(1);
        let threads = (0..connections).map(|index| {
            let how =
                ConnectOptions { timeout: Some(options.patience), ..ConnectOptions::default() };
            let client = Client::connect(uri, &how)
                .unwrap_or_else(|why| panic!("{uri} cannot be opened: {why}"));
            let run = Run {
                client,
                index,
                options: WriterOptions { connections, ..options },
                stop: Arc::clone(&stop),
                acknowledged: Arc::clone(&acknowledged),
                sequence: Arc::clone(&sequence),
            };
            let part = Ledger { history: Vec::new(), ..ledger.clone() };
            thread::spawn(move || run.write(part))
        });
        let threads = threads.collect();
        Self { ledger, stop, acknowledged, threads }
    }

    /// How many writes were acknowledged since the start.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many writes were acknowledged since the start.
    ///
    /// # Panics
    /// When that takes longer than a minute, or a thread has ended before.
    #[track_caller]
    pub fn wait_acknowledged(&self, count: u64) {
        crate::wait_until(Duration::from_secs(60), &format!("{count} acknowledged writes"), || {
            // In this order: one that ends by its limit has acknowledged all before.
            let ended = self.threads.iter().any(JoinHandle::is_finished);
            let enough = self.acknowledged() >= count;
            assert!(enough || !ended, "a writer ended after {} writes", self.acknowledged());
            enough
        });
    }

    /// Whether all its threads have ended by themselves.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Stops after the write that is under way; what was done, and why connections broke.
    ///
    /// # Panics
    /// When a thread panicked.
    #[must_use]
    pub fn stop(self) -> (Ledger, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until it ends by itself: by its limit, or because the connections broke.
    ///
    /// # Panics
    /// When a thread panicked.
    #[must_use]
    pub fn join(self) -> (Ledger, Vec<String>) {
        let mut ledger = self.ledger;
        let mut errors = Vec::new();
        for thread in self.threads {
            let (part, error) = thread.join().expect("a writer's thread does not panic");
            ledger.absorb(part);
            errors.extend(error);
        }
        (ledger, errors)
    }

    /// Stops, and panics when a connection broke meanwhile.
    #[track_caller]
    #[must_use]
    pub fn stop_well(self) -> Ledger {
        let (ledger, errors) = self.stop();
        assert!(errors.is_empty(), "the writer was disturbed: {errors:?}");
        ledger
    }
}

/// What one thread of a writer needs.
struct Run {
    client: Client,
    index: u64,
    options: WriterOptions,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    sequence: Arc<AtomicU64>,
}

impl Run {
    /// Writes to the blocks whose number leaves this thread's number over.
    fn write(mut self, mut ledger: Ledger) -> (Ledger, Option<String>) {
        let mut rng = Rng::new(ledger.seed ^ ledger.sequence ^ (self.index << 56));
        let connections = self.options.connections;
        let own = (ledger.blocks() + connections - 1 - self.index) / connections;
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.options.limit != 0 && count == self.options.limit {
                break;
            }
            count += 1;
            let block = rng.below(own) * connections + self.index;
            let index = usize::try_from(block).expect("it is counted in a vector");
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
            let content = block_content(ledger.seed, sequence, block);
            ledger.sequence = sequence;
            ledger.blocks[index].begun = sequence;
            ledger.history.push((sequence, block));
            if let Err(why) = self.client.write_at(&content, ledger.offset(block)) {
                return (ledger, Some(why.to_string()));
            }
            ledger.blocks[index].acknowledged = sequence;
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            let every = self.options.flush_every;
            if every != 0
                && count.is_multiple_of(every)
                && let Err(why) = self.client.flush()
            {
                return (ledger, Some(why.to_string()));
            }
        }
        (ledger, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scratch, files};

    fn put(path: &Path, ledger: &Ledger, sequence: u64, block: u64) {
        let file = File::options().write(true).open(path).unwrap();
        let content = block_content(ledger.seed, sequence, block);
        file.write_all_at(&content, ledger.offset(block)).unwrap();
    }

    fn fails(check: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(check).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let scratch = Scratch::new();
        let path = scratch.join("disk");
        files::make_sparse(&path, 10 * BLOCK_BYTES);
        let mut ledger = Ledger::new(5, 10);
        ledger.blocks[3] = Entry { acknowledged: 7, begun: 9 };
        let why = fails(|| ledger.clone().verify_file(&path));
        assert!(why.contains("write 0 is there, write 7 was acknowledged"), "{why}");
        for good in [7, 9] {
            put(&path, &ledger, good, 3);
            ledger.clone().verify_file(&path);
        }
        put(&path, &ledger, 10, 3);
        let why = fails(|| ledger.clone().verify_file(&path));
        assert!(why.contains("was never made"), "{why}");
        put(&path, &ledger, 9, 3);
        ledger.verify_file(&path);
        put(&path, &ledger, 7, 3);
        let why = fails(|| ledger.clone().verify_file(&path));
        assert!(why.contains("write 7 is there, write 9 was acknowledged"), "{why}");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&block_content(5, 9, 4), 3 * BLOCK_BYTES).unwrap();
        let why = fails(|| ledger.clone().verify_file(&path));
        assert!(why.contains("which went to block 4"), "{why}");
        put(&path, &ledger, 9, 3);
        file.write_all_at(b"torn", 3 * BLOCK_BYTES + 4000).unwrap();
        let why = fails(|| ledger.clone().verify_file(&path));
        assert!(why.contains("wrong from byte 4000 on"), "{why}");
    }

    #[test]
    fn blocks_can_be_far_from_each_other() {
        let scratch = Scratch::new();
        let path = scratch.join("disk");
        files::make_sparse(&path, 100 * BLOCK_BYTES);
        let mut ledger = Ledger::spread(5, 4, 32);
        ledger.blocks[3] = Entry { acknowledged: 7, begun: 7 };
        put(&path, &ledger, 7, 3);
        ledger.verify_file(&path);
        assert_eq!(files::read(&path, 96 * BLOCK_BYTES, BLOCK), block_content(5, 7, 3));
    }

    #[test]
    fn a_prefix_of_the_writes_is_told_from_a_choice_of_them() {
        let scratch = Scratch::new();
        let path = scratch.join("disk");
        files::make_sparse(&path, 4 * BLOCK_BYTES);
        let mut ledger = Ledger::new(5, 4);
        ledger.history = vec![(1, 0), (2, 1), (3, 0), (4, 2)];
        assert_eq!(ledger.verify_prefix(&path), 0);
        put(&path, &ledger, 1, 0);
        put(&path, &ledger, 2, 1);
        assert_eq!(ledger.verify_prefix(&path), 2);
        put(&path, &ledger, 4, 2);
        let why = fails(|| {
            let _ = ledger.verify_prefix(&path);
        });
        assert!(why.contains("block 0 holds another write"), "{why}");
        put(&path, &ledger, 3, 0);
        assert_eq!(ledger.verify_prefix(&path), 4);
    }
}
