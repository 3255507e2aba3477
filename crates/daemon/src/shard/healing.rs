//! Reads that fail: which blocks are bad, and how what was fetched elsewhere is stored again.

use bytes::{Bytes, BytesMut};
use holdfast_api::words::counted;
use holdfast_core::{DiskOpId, DiskOutcome};
use holdfast_store::{
    Completion, Disk, DiskError, DiskErrorKind, DiskOp, OpId, OpKind, Outcome, PartialRead, RemapOp,
};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The driver's own operations have this bit; the core's never have.
const OWN: u64 = 1 << 63;
/// So many messages about blocks that cannot be read go to the log in [`LOG_PERIOD`].
const LOG_MOST: u32 = 10;
const LOG_PERIOD: Duration = Duration::from_secs(60);

/// A read that failed, and is looked into; or a repair.
enum Task {
    Search(Search),
    Repair(Repair),
}

/// The range is read again in halves, down to blocks; then it is seen whether the disk still answers;
/// then a journal before it is asked for what could not be read.
struct Search {
    of: DiskOpId,
    range: ByteRange,
    data: BytesMut,
    bad: Vec<ByteRange>,
    /// Those of them that were read and do not fit their checksums.
    wrong: Vec<ByteRange>,
    salvaged: Vec<ByteRange>,
    running: usize,
    /// What of the disk is tried at the end.
    probes: Vec<ByteRange>,
    look: Look,
    answers: bool,
    error: DiskError,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Halves,
    Probes,
    Journal,
}

/// An operation of the driver's own.
pub(super) enum Ask {
    Disk(DiskOp),
    /// What a block holds, from the journal before the disk.
    Salvage(ByteRange),
    /// What that gave is stored again.
    Restore(ByteRange, Bytes),
}

impl Ask {
    pub(super) const fn kind(&self) -> OpKind {
        match self {
            Self::Disk(request) => request.kind(),
            Self::Salvage(_) => OpKind::Read,
            Self::Restore(..) => OpKind::Write,
        }
    }

    /// Whether the time it takes is the disk's: a search of the journal takes as long as that is.
    pub(super) const fn is_of_disk(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    /// Gives it to the disk.
    pub(super) fn submit(self, disk: &mut Disk, op: OpId) -> Option<Completion> {
        match self {
            Self::Disk(request) => disk.submit(op, request),
            Self::Salvage(range) => disk.salvage(op, range),
            Self::Restore(range, data) => disk.restore(op, range, data),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The layer for bad sectors, or the journal, does all of it.
    Whole,
    Write,
    Flush,
    ReadBack,
}

struct Repair {
    of: DiskOpId,
    range: ByteRange,
    data: Bytes,
    step: Step,
}

/// What becomes of an operation of the core. A repair that failed has no error that is one of the disk.
pub(super) type Ended = (DiskOpId, Result<DiskOutcome, Option<DiskError>>);

/// The repairs and searches of one disk. They are bounded by the reads and repairs that the core has
/// under way.
#[derive(Default)]
pub(super) struct Healing {
    tasks: BTreeMap<u64, Task>,
    /// The disk's operations, the tasks that they are for, and where they are.
    ops: BTreeMap<u64, (u64, ByteRange)>,
    last: u64,
    /// Operations to be given to the disk.
    waiting: VecDeque<(OpId, Ask)>,
    /// There is a journal before the disk.
    has_journal: bool,
    logged: Option<(Instant, u32)>,
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The range in whole blocks.
fn whole(range: ByteRange) -> ByteRange {
    let start = range.offset / BLOCK_SIZE * BLOCK_SIZE;
    let end = range.end().next_multiple_of(BLOCK_SIZE);
    ByteRange::new(start, end - start)
}

/// Whether an error is of blocks of the disk, and may be of them alone.
pub(crate) fn is_of_blocks(error: &DiskError) -> bool {
    is_of_medium(error) || error.kind == DiskErrorKind::Unreadable
}

/// Whether an error can be that of a bad sector, on a disk that works otherwise.
fn is_of_medium(error: &DiskError) -> bool {
    let of_medium = [Errno::IO, Errno::REMOTEIO, Errno::ILSEQ, Errno::NODATA, Errno::BADMSG]
        .map(Errno::raw_os_error);
    error.kind == DiskErrorKind::Io && error.errno.is_none_or(|errno| of_medium.contains(&errno))
}

impl Search {
    /// A part was read.
    fn take(&mut self, range: ByteRange, data: &[u8]) {
        let at = index(range.offset - self.range.offset);
        self.data[at..at + data.len()].copy_from_slice(data);
    }
}

/// The bad ranges of a read in whole blocks, in order, without overlaps.
fn bad_blocks(partial: PartialRead) -> DiskOutcome {
    let PartialRead { data, bad, wrong } = partial;
    DiskOutcome::Partial { data, bad: joined(bad), wrong: joined(wrong) }
}

/// Ranges that are in order, in whole blocks, without overlaps.
fn joined(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in ranges.into_iter().map(whole) {
        match joined.last_mut() {
            Some(last) if range.offset <= last.end() => {
                *last = ByteRange::new(last.offset, range.end().max(last.end()) - last.offset);
            }
            _ => joined.push(range),
        }
    }
    joined
}

impl Healing {
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) const fn is_own(op: OpId) -> bool {
        op.0 & OWN != 0
    }

    /// An operation that is to be given to the disk.
    pub(super) fn next(&mut self) -> Option<(OpId, Ask)> {
        self.waiting.pop_front()
    }

    /// There is a journal before the disk: it may have what the disk cannot read.
    pub(super) const fn has_journal(&mut self, has: bool) {
        self.has_journal = has;
    }

    fn insert(&mut self, task: Task) -> u64 {
        self.last += 1;
        self.tasks.insert(self.last, task);
        self.last
    }

    fn name(&mut self, task: u64, range: ByteRange) -> OpId {
        self.last += 1;
        let op = OWN | self.last;
        self.ops.insert(op, (task, range));
        OpId(op)
    }

    fn ask(&mut self, task: u64, request: DiskOp) {
        let op = self.name(task, request.range());
        self.waiting.push_back((op, Ask::Disk(request)));
    }

    fn ask_read(&mut self, task: u64, range: ByteRange) {
        self.ask(task, DiskOp::Read { range, holes: false });
    }

    /// A read of the core failed. What became of it, unless that takes another look at the disk.
    pub(super) fn read_failed(
        &mut self,
        disk: &mut Disk,
        of: DiskOpId,
        error: DiskError,
    ) -> Option<Ended> {
        if error.kind == DiskErrorKind::Unreadable
            && let Some(partial) = disk.partial(OpId(of.0))
        {
            self.log(&partial.bad);
            return Some((of, Ok(bad_blocks(partial))));
        }
        // Which blocks an unreadable one has was told, but perhaps too many others were at the same time.
        if !is_of_blocks(&error) || !error.range.is_aligned() || error.range.is_empty() {
            return Some((of, Err(Some(error))));
        }
        let range = error.range;
        let last = disk.size().saturating_sub(BLOCK_SIZE) / BLOCK_SIZE * BLOCK_SIZE;
        let middle = last / 2 / BLOCK_SIZE * BLOCK_SIZE;
        let probes = [0, middle, last].map(|offset| ByteRange::new(offset, BLOCK_SIZE)).to_vec();
        let task = self.insert(Task::Search(Search {
            of,
            range,
            data: BytesMut::zeroed(index(range.len)),
            bad: Vec::new(),
            wrong: Vec::new(),
            salvaged: Vec::new(),
            running: 0,
            probes,
            look: Look::Halves,
            answers: false,
            error,
        }));
        self.bisect(task, range);
        None
    }

    fn bisect(&mut self, task: u64, range: ByteRange) {
        let half = (range.len / 2).next_multiple_of(BLOCK_SIZE);
        let mut parts = vec![ByteRange::new(range.offset, half.min(range.len))];
        if half < range.len {
            parts.push(ByteRange::new(range.offset + half, range.len - half));
        }
        if let Some(Task::Search(search)) = self.tasks.get_mut(&task) {
            search.running += parts.len();
        }
        parts.into_iter().for_each(|part| self.ask_read(task, part));
    }

    /// Has the journal store in its place what it gave for a block that could not be read.
    pub(super) fn restore(&mut self, of: DiskOpId, range: ByteRange, data: Bytes) {
        let (step, again) = (Step::Whole, data.clone());
        let task = self.insert(Task::Repair(Repair { of, range, data: again, step }));
        let op = self.name(task, range);
        self.waiting.push_back((op, Ask::Restore(range, data)));
    }

    /// Has the disk store what was fetched elsewhere. What became of it, if it is over.
    pub(super) fn repair(
        &mut self,
        disk: &mut Disk,
        of: DiskOpId,
        range: ByteRange,
        data: Bytes,
    ) -> Option<Ended> {
        if disk.remap_stats().is_some() {
            let step = Step::Whole;
            let again = data.clone();
            let task = self.insert(Task::Repair(Repair { of, range, data: again, step }));
            return self.remap(disk, task, RemapOp::Repair { range, data });
        }
        let request = DiskOp::Write { range, data: data.clone(), fua: false };
        let task = self.insert(Task::Repair(Repair { of, range, data, step: Step::Write }));
        self.ask(task, request);
        None
    }

    /// Has the disk remember that it has no good copy of a range, if it can.
    pub(super) fn mark_lost(
        &mut self,
        disk: &mut Disk,
        of: DiskOpId,
        range: ByteRange,
        unread: bool,
    ) -> Option<Ended> {
        if disk.remap_stats().is_none() {
            return Some((of, Ok(DiskOutcome::Done)));
        }
        let (data, step) = (Bytes::new(), Step::Whole);
        let task = self.insert(Task::Repair(Repair { of, range, data, step }));
        self.remap(
            disk,
            task,
            match unread {
                true => RemapOp::MarkUnread { range },
                false => RemapOp::MarkLost { range },
            },
        )
    }

    fn remap(&mut self, disk: &mut Disk, task: u64, what: RemapOp) -> Option<Ended> {
        let op = self.name(task, ByteRange::default());
        let completion = disk.remap(op, what)?;
        self.ended(disk, completion)
    }

    /// One of the driver's own operations ended. What became of an operation of the core by that.
    pub(super) fn ended(&mut self, disk: &mut Disk, completion: Completion) -> Option<Ended> {
        let (key, range) = self.ops.remove(&completion.op.0)?;
        match self.tasks.get_mut(&key)? {
            Task::Search(_) => self.searched(key, range, completion.result),
            Task::Repair(_) => self.repaired(disk, key, completion.result),
        }
    }

    fn searched(
        &mut self,
        key: u64,
        range: ByteRange,
        result: Result<Outcome, DiskError>,
    ) -> Option<Ended> {
        let Some(Task::Search(search)) = self.tasks.get_mut(&key) else { return None };
        search.running -= 1;
        let mut half = None;
        match (search.look, result) {
            (Look::Probes, Ok(_)) => search.answers = true,
            (Look::Probes, Err(_)) => {}
            (Look::Journal, Ok(Outcome::Data(data))) => {
                search.take(range, &data);
                search.salvaged.push(range);
            }
            // It cannot say what the disk held.
            (Look::Journal, _) => {}
            (Look::Halves, Ok(Outcome::Data(data))) => search.take(range, &data),
            // Zeroes are there already.
            (Look::Halves, Ok(_)) => {}
            (Look::Halves, Err(error)) if is_of_blocks(&error) => {
                if range.len > BLOCK_SIZE {
                    half = Some(range);
                } else {
                    search.bad.push(range);
                    let is_wrong = error.errno == Some(Errno::BADMSG.raw_os_error());
                    search.wrong.extend(is_wrong.then_some(range));
                }
            }
            (Look::Halves, Err(error)) => {
                let of = search.of;
                // Nothing about the medium: what is still under way finds no task.
                self.tasks.remove(&key);
                return Some((of, Err(Some(error))));
            }
        }
        if let Some(range) = half {
            self.bisect(key, range);
            return None;
        }
        if self.looks_on(key) {
            return None;
        }
        let Some(Task::Search(search)) = self.tasks.remove(&key) else { return None };
        Some(self.search_ended(search))
    }

    /// Whether a search goes on.
    fn looks_on(&mut self, key: u64) -> bool {
        let has_journal = self.has_journal;
        let Some(Task::Search(search)) = self.tasks.get_mut(&key) else { return false };
        if search.running > 0 {
            return true;
        }
        match search.look {
            Look::Halves if !search.bad.is_empty() => {
                // Only now: a disk that went away meanwhile has no bad blocks.
                search.look = Look::Probes;
                let probes = std::mem::take(&mut search.probes);
                search.running = probes.len();
                probes.into_iter().for_each(|probe| self.ask_read(key, probe));
                true
            }
            Look::Probes if search.answers && has_journal => {
                search.look = Look::Journal;
                let bad = search.bad.clone();
                search.running = bad.len();
                for block in bad {
                    let op = self.name(key, block);
                    self.waiting.push_back((op, Ask::Salvage(block)));
                }
                true
            }
            _ => false,
        }
    }

    fn search_ended(&mut self, search: Search) -> Ended {
        let Search { of, data, mut bad, mut wrong, mut salvaged, answers, error, .. } = search;
        if bad.is_empty() {
            return (of, Ok(DiskOutcome::Data(data.freeze())));
        }
        if !answers {
            return (of, Err(Some(error)));
        }
        bad.sort_unstable_by_key(|range| range.offset);
        wrong.sort_unstable_by_key(|range| range.offset);
        self.log(&bad);
        if salvaged.is_empty() {
            return (of, Ok(bad_blocks(PartialRead { data: data.freeze(), bad, wrong })));
        }
        salvaged.sort_unstable_by_key(|range| range.offset);
        bad.retain(|range| salvaged.binary_search_by_key(&range.offset, |s| s.offset).is_err());
        wrong.retain(|range| salvaged.binary_search_by_key(&range.offset, |s| s.offset).is_err());
        let (bad, salvaged, wrong) = (joined(bad), joined(salvaged), joined(wrong));
        (of, Ok(DiskOutcome::Salvaged { data: data.freeze(), bad, salvaged, wrong }))
    }

    fn repaired(
        &mut self,
        disk: &mut Disk,
        key: u64,
        result: Result<Outcome, DiskError>,
    ) -> Option<Ended> {
        let Some(Task::Repair(repair)) = self.tasks.get_mut(&key) else { return None };
        let (of, range) = (repair.of, repair.range);
        let next = match (repair.step, result) {
            (_, Err(error)) => Err(error),
            (Step::Whole, Ok(_)) => Ok(None),
            (Step::Write, Ok(_)) => Ok(Some((Step::Flush, DiskOp::Flush))),
            (Step::Flush, Ok(_)) => {
                disk.uncache(range);
                Ok(Some((Step::ReadBack, DiskOp::Read { range, holes: false })))
            }
            (Step::ReadBack, Ok(Outcome::Data(found))) if found == repair.data => Ok(None),
            (Step::ReadBack, Ok(_)) => Err(DiskError {
                kind: DiskErrorKind::Io,
                op: holdfast_store::OpKind::Read,
                range,
                errno: None,
            }),
        };
        match next {
            Ok(Some((step, request))) => {
                repair.step = step;
                self.ask(key, request);
                None
            }
            Ok(None) => {
                self.tasks.remove(&key);
                Some((of, Ok(DiskOutcome::Done)))
            }
            Err(error) => {
                self.tasks.remove(&key);
                tracing::debug!("{range} could not be stored again: {error}");
                Some((of, Err(None)))
            }
        }
    }

    /// Tells the log of what cannot be read, but not of all on a disk that has much of it.
    fn log(&mut self, bad: &[ByteRange]) {
        let (since, told) = match self.logged {
            Some((since, told)) if since.elapsed() < LOG_PERIOD => (since, told),
            _ => (Instant::now(), 0),
        };
        self.logged = Some((since, told.saturating_add(1)));
        let (blocks, first) = (bad.iter().map(|r| r.len).sum::<u64>() / BLOCK_SIZE, bad.first());
        if told < LOG_MOST
            && let Some(first) = first
        {
            let more = if told + 1 == LOG_MOST { "; no more is told for a minute" } else { "" };
            let blocks = counted(blocks, "block");
            tracing::warn!("{blocks} of a disk cannot be read, the first at {first}{more}");
        }
    }
}
