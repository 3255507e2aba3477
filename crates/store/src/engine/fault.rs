//! An engine around another one that fails on demand.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_units::{ByteRange, parse_size};
use rustix::io::Errno;
use slab::Slab;

use super::spots::{BadSector, Spots};
use super::{Done, Engine, Job, Mark, Tag};
use crate::wake::Wake;
use crate::{DiskOp, OpKind, Outcome};

/// The most rules that a disk takes.
const MAX_RULES: usize = 256;
/// The longest delay that a rule can ask for.
const MAX_DELAY_MS: u64 = 600_000;

/// Which operations a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultOp {
    /// All of them.
    Any,
    /// Only this kind. Making a `fua` write durable is a flush of its own where the engine has no
    /// such writes, and is matched as one.
    Only(OpKind),
}

/// What happens to an operation that a rule hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// It is not done and fails with this errno.
    Error(i32),
    /// Only so many bytes of a write are written (rounded down to what the device can write), and
    /// it fails with EIO. Other operations just fail.
    Torn(u64),
    /// It is not done, but reported as done. A read finds zeros.
    Drop,
    /// It waits until [`FaultHandle::release`], and is done then.
    Hold,
    /// It is done so much later.
    Delay(Duration),
}

/// When what happens: the operation's kind and range select it, `after` and `count` say which of
/// the selected ones are hit.
///
/// As one text: `OP[:range=OFFSET+LENGTH][:after=N][:count=N]:OUTCOME`, where OP is `any`, `read`,
/// `write`, `flush`, `discard` or `zeroes`, and OUTCOME is `error=EIO` (or another name or number),
/// `torn=BYTES`, `drop`, `hold` or `delay=MILLISECONDS`. Sizes may be written like `64K`.
/// Example: `write:range=0+4096:after=3:count=2:error=EIO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRule {
    /// Which operations are selected.
    pub op: FaultOp,
    /// Only operations that overlap this are selected. Flushes have no range and ignore it.
    pub range: Option<ByteRange>,
    /// So many selected operations go unharmed first.
    pub after: u64,
    /// So many are hit then; `None` is all.
    pub count: Option<u64>,
    /// What happens to one that is hit.
    pub outcome: FaultOutcome,
}

impl FaultRule {
    /// A rule that hits every operation of this kind.
    #[must_use]
    pub const fn every(op: FaultOp, outcome: FaultOutcome) -> Self {
        Self { op, range: None, after: 0, count: None, outcome }
    }

    fn selects(&self, request: &DiskOp) -> bool {
        let kind = request.kind();
        let op = match self.op {
            FaultOp::Any => true,
            FaultOp::Only(only) => only == kind,
        };
        let near = match self.range {
            Some(range) => kind == OpKind::Flush || range.overlaps(request.range()),
            None => true,
        };
        op && near
    }
}

/// Why a text is not a fault rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a fault rule: {why}")]
pub struct FaultRuleError {
    text: String,
    why: &'static str,
}

const KINDS: [OpKind; 5] =
    [OpKind::Read, OpKind::Write, OpKind::Flush, OpKind::Discard, OpKind::WriteZeroes];

const ERRNOS: [(&str, Errno); 8] = [
    ("EIO", Errno::IO),
    ("ENOSPC", Errno::NOSPC),
    ("EROFS", Errno::ROFS),
    ("ENXIO", Errno::NXIO),
    ("ETIMEDOUT", Errno::TIMEDOUT),
    ("EINVAL", Errno::INVAL),
    ("EREMOTEIO", Errno::REMOTEIO),
    ("EILSEQ", Errno::ILSEQ),
];

impl FromStr for FaultRule {
    type Err = FaultRuleError;

    fn from_str(text: &str) -> Result<Self, FaultRuleError> {
        parse_rule(text)
            .map_err(|why| FaultRuleError { text: text.chars().take(120).collect(), why })
    }
}

fn parse_rule(text: &str) -> Result<FaultRule, &'static str> {
    let mut words = text.split(':');
    let op = match words.next() {
        Some("any") => FaultOp::Any,
        word => KINDS
            .into_iter()
            .find(|kind| Some(kind.as_str()) == word)
            .map(FaultOp::Only)
            .ok_or("it must start with any, read, write, flush, discard or zeroes")?,
    };
    let (mut range, mut after, mut count, mut outcome) = (None, None, None, None);
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let fresh = match key {
            "range" => range.replace(parse_range(value)?).is_none(),
            "after" => after.replace(parse_count(value)?).is_none(),
            "count" => count.replace(parse_count(value)?).is_none(),
            _ => outcome.replace(parse_outcome(key, value)?).is_none(),
        };
        if !fresh {
            return Err("something is said twice");
        }
    }
    let outcome =
        outcome.ok_or("it does not say what happens: error=, torn=, drop, hold, delay=")?;
    Ok(FaultRule { op, range, after: after.unwrap_or(0), count, outcome })
}

fn parse_range(value: &str) -> Result<ByteRange, &'static str> {
    let (offset, len) = value.split_once('+').ok_or("a range is written OFFSET+LENGTH")?;
    let size = |text| parse_size(text).map_err(|_| "a range is written OFFSET+LENGTH");
    Ok(ByteRange::new(size(offset)?, size(len)?))
}

fn parse_count(value: &str) -> Result<u64, &'static str> {
    value.parse().map_err(|_| "after and count take a number")
}

fn parse_outcome(key: &str, value: &str) -> Result<FaultOutcome, &'static str> {
    match (key, value) {
        ("drop", "") => Ok(FaultOutcome::Drop),
        ("hold", "") => Ok(FaultOutcome::Hold),
        ("torn", bytes) => {
            parse_size(bytes).map(FaultOutcome::Torn).map_err(|_| "torn takes a number of bytes")
        }
        ("delay", text) => match text.parse() {
            Ok(ms) if ms <= MAX_DELAY_MS => Ok(FaultOutcome::Delay(Duration::from_millis(ms))),
            _ => Err("delay takes a number of milliseconds up to 600000"),
        },
        ("error", name) => ERRNOS
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, errno)| errno.raw_os_error())
            .or_else(|| name.parse().ok().filter(|number| (1..4096).contains(number)))
            .map(FaultOutcome::Error)
            .ok_or("error takes a name like EIO or a number from 1 to 4095"),
        _ => Err("a part is none of range=, after=, count=, error=, torn=, drop, hold, delay="),
    }
}

impl fmt::Display for FaultRule {
    /// Writes what [`FromStr`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            FaultOp::Any => f.write_str("any")?,
            FaultOp::Only(kind) => f.write_str(kind.as_str())?,
        }
        if let Some(range) = self.range {
            write!(f, ":range={range}")?;
        }
        if self.after > 0 {
            write!(f, ":after={}", self.after)?;
        }
        if let Some(count) = self.count {
            write!(f, ":count={count}")?;
        }
        match self.outcome {
            FaultOutcome::Error(number) => {
                let known = ERRNOS.iter().find(|(_, errno)| errno.raw_os_error() == number);
                match known {
                    Some((name, _)) => write!(f, ":error={name}"),
                    None => write!(f, ":error={number}"),
                }
            }
            FaultOutcome::Torn(bytes) => write!(f, ":torn={bytes}"),
            FaultOutcome::Drop => f.write_str(":drop"),
            FaultOutcome::Hold => f.write_str(":hold"),
            FaultOutcome::Delay(time) => write!(f, ":delay={}", time.as_millis()),
        }
    }
}

/// How often a rule has come into play.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultHits {
    /// Operations that it selected (while no earlier rule had hit them).
    pub selected: u64,
    /// Operations that it hit.
    pub hit: u64,
}

/// Steers the faults of a disk from outside, from any thread. Clones steer the same disk.
#[derive(Clone)]
pub struct FaultHandle {
    control: Arc<Mutex<Control>>,
}

struct Control {
    rules: Vec<(FaultRule, FaultHits)>,
    spots: Spots,
    held: Vec<Held>,
    next_held: u64,
    wake: Arc<Wake>,
}

struct Held {
    number: u64,
    job: Job,
    due: bool,
    /// Released by the clock, not by [`FaultHandle::release`].
    timed: bool,
}

impl FaultHandle {
    /// Adds a rule, after those that exist. Rules are asked in order; the first that hits decides.
    /// The number is for [`Self::hits`]. A disk that has 256 rules takes no more: `None`.
    #[must_use]
    pub fn add(&self, rule: FaultRule) -> Option<usize> {
        let mut control = lock(&self.control);
        if control.rules.len() == MAX_RULES {
            return None;
        }
        control.rules.push((rule, FaultHits::default()));
        Some(control.rules.len() - 1)
    }

    /// Removes all rules. What is held stays held.
    pub fn clear(&self) {
        lock(&self.control).rules.clear();
    }

    /// Makes every sector of 512 bytes of the range bad in this way; an overlapping one of before is
    /// forgotten. What lies between is as it was.
    pub fn spoil(&self, range: ByteRange, bad: BadSector) {
        lock(&self.control).spots.spoil(range, bad);
    }

    /// Makes every sector of the range good again. What it holds is what was written last.
    pub fn mend(&self, range: ByteRange) {
        lock(&self.control).spots.mend(range);
    }

    /// The offsets of all sectors of 512 bytes that are bad, and in which way.
    #[must_use]
    pub fn bad_sectors(&self) -> Vec<(u64, BadSector)> {
        lock(&self.control).spots.list()
    }

    /// How often a rule has come into play; zeros for one that does not exist.
    #[must_use]
    pub fn hits(&self, rule: usize) -> FaultHits {
        lock(&self.control).rules.get(rule).map(|(_, hits)| *hits).unwrap_or_default()
    }

    /// How many operations are being held, without those that a delay will end.
    #[must_use]
    pub fn held(&self) -> usize {
        lock(&self.control).held.iter().filter(|held| !held.due && !held.timed).count()
    }

    /// Lets every operation go that `Hold` keeps; the disk does them when it is next driven.
    pub fn release(&self) {
        for held in &mut lock(&self.control).held {
            held.due |= !held.timed;
        }
        self.signal();
    }

    fn signal(&self) {
        lock(&self.control).wake.signal();
    }

    fn expire(&self, number: u64) {
        for held in &mut lock(&self.control).held {
            held.due |= held.number == number;
        }
        self.signal();
    }
}

impl fmt::Debug for FaultHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let control = lock(&self.control);
        let rules = control.rules.iter().map(|(rule, hits)| (rule.to_string(), hits.hit));
        f.debug_map().entries(rules).finish()
    }
}

pub(crate) struct Fault {
    inner: Engine,
    handle: FaultHandle,
    /// Torn writes end on a multiple of this.
    block_size: u64,
    due: Vec<Job>,
    /// Jobs of which only a part is being written.
    torn: Slab<Job>,
}

/// The marks of jobs that are torn, above all that others use.
const TORN: usize = 1 << (usize::BITS - 1);

impl Fault {
    pub(crate) fn new(
        inner: Engine,
        wake: Arc<Wake>,
        block_size: u64,
        rules: &[FaultRule],
    ) -> (Self, FaultHandle) {
        let rules = rules.iter().take(MAX_RULES).map(|rule| (*rule, FaultHits::default()));
        let control = Control {
            rules: rules.collect(),
            spots: Spots::default(),
            held: Vec::new(),
            next_held: 0,
            wake,
        };
        let handle = FaultHandle { control: Arc::new(Mutex::new(control)) };
        let (due, torn) = (Vec::new(), Slab::new());
        (Self { inner, handle: handle.clone(), block_size, due, torn }, handle)
    }

    pub(crate) fn rewire(&mut self, wake: &Arc<Wake>) -> io::Result<()> {
        lock(&self.handle.control).wake = Arc::clone(wake);
        self.inner.rewire(wake)
    }

    pub(crate) fn uncache(&self, range: ByteRange) {
        self.inner.uncache(range);
    }

    pub(crate) fn reserve(&self, range: ByteRange) -> Result<(), Errno> {
        self.inner.reserve(range)
    }

    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        match self.strike(&job.request) {
            None => self.meet_spots(job),
            Some(FaultOutcome::Error(number)) => {
                Some(job.done(Err(Errno::from_raw_os_error(number))))
            }
            Some(FaultOutcome::Drop) => Some(job.done(Ok(invented(&job.request)))),
            Some(FaultOutcome::Torn(bytes)) => self.tear(job, bytes),
            Some(FaultOutcome::Hold) => {
                self.hold(job, false);
                None
            }
            Some(FaultOutcome::Delay(time)) => self.delay(job, time),
        }
    }

    /// Asks the rules, and counts.
    fn strike(&self, request: &DiskOp) -> Option<FaultOutcome> {
        let mut control = lock(&self.handle.control);
        for (rule, hits) in &mut control.rules {
            if !rule.selects(request) {
                continue;
            }
            hits.selected += 1;
            if hits.selected > rule.after && rule.count.is_none_or(|count| hits.hit < count) {
                hits.hit += 1;
                return Some(rule.outcome);
            }
        }
        None
    }

    fn tear(&mut self, job: Job, bytes: u64) -> Option<Done> {
        let DiskOp::Write { range, data, .. } = &job.request else {
            return Some(job.done(Err(Errno::IO)));
        };
        let len = bytes.min(range.len) / self.block_size * self.block_size;
        if len == 0 {
            return Some(job.done(Err(Errno::IO)));
        }
        let data = usize::try_from(len).map_or(data.clone(), |len| data.slice(..len));
        let range = ByteRange::new(range.offset, len);
        let request = DiskOp::Write { range, data, fua: false };
        let (op, entry) = (job.op, self.torn.vacant_entry());
        let mark = Mark(TORN | entry.key());
        entry.insert(job);
        let done = self.inner.submit(Job { op, tag: Tag::Plain, mark, request })?;
        Some(self.untorn(done))
    }

    /// A part was written: that is an error of the whole.
    fn untorn(&mut self, done: Done) -> Done {
        match done.mark.0 & TORN {
            0 => done,
            _ => match self.torn.try_remove(done.mark.0 & !TORN) {
                Some(job) => job.done(Err(Errno::IO)),
                None => done,
            },
        }
    }

    /// Bad sectors fail like those of a drive: a read that touches one fails, a write writes what
    /// lies before the first that takes nothing, and then fails.
    fn meet_spots(&mut self, job: Job) -> Option<Done> {
        let range = job.request.range();
        let met = {
            let mut control = lock(&self.handle.control);
            match job.request.kind() {
                OpKind::Read => control.spots.first_unreadable(range),
                OpKind::Write | OpKind::WriteZeroes => control.spots.write(range),
                OpKind::Flush | OpKind::Discard => None,
            }
        };
        match met {
            None => self.inner.submit(job),
            Some(bad) => self.tear(job, bad.saturating_sub(range.offset)),
        }
    }

    fn hold(&self, job: Job, timed: bool) -> u64 {
        let mut control = lock(&self.handle.control);
        let number = control.next_held;
        control.next_held += 1;
        control.held.push(Held { number, job, due: false, timed });
        number
    }

    /// A thread for each delayed operation is enough for tests, and bounded by what is in flight.
    fn delay(&mut self, job: Job, time: Duration) -> Option<Done> {
        let number = self.hold(job, true);
        let handle = self.handle.clone();
        let timer = std::thread::Builder::new().name("holdfast-delay".into()).spawn(move || {
            std::thread::sleep(time);
            handle.expire(number);
        });
        if timer.is_err() {
            self.handle.expire(number);
        }
        None
    }

    pub(crate) fn kick(&mut self) {
        self.inner.kick();
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        let mut due = std::mem::take(&mut self.due);
        due.extend(lock(&self.handle.control).held.extract_if(.., |held| held.due).map(|h| h.job));
        out.extend(due.drain(..).filter_map(|job| self.inner.submit(job)));
        self.due = due;
        let before = out.len();
        self.inner.collect(out);
        if !self.torn.is_empty() {
            let collected = out.split_off(before);
            out.extend(collected.into_iter().map(|done| self.untorn(done)));
        }
    }
}

/// What an operation says that was not done.
fn invented(request: &DiskOp) -> Outcome {
    match (request, usize::try_from(request.range().len)) {
        (DiskOp::Read { .. }, Ok(len)) => Outcome::Data(vec![0; len].into()),
        _ => Outcome::Done,
    }
}

/// The lists are whole between any two statements, so a panic elsewhere spoils nothing.
fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{FaultOp, FaultOutcome, FaultRule};
    use crate::OpKind;
    use holdfast_units::ByteRange;
    use std::time::Duration;

    #[test]
    fn rules_are_read_and_written() {
        let rule: FaultRule = "write:range=0+4096:after=3:count=2:error=EIO".parse().unwrap();
        assert_eq!(rule.op, FaultOp::Only(OpKind::Write));
        assert_eq!(rule.range, Some(ByteRange::new(0, 4096)));
        assert_eq!((rule.after, rule.count), (3, Some(2)));
        assert_eq!(rule.outcome, FaultOutcome::Error(5));
        let rule: FaultRule = "any:range=1M+64K:delay=20".parse().unwrap();
        assert_eq!(rule.outcome, FaultOutcome::Delay(Duration::from_millis(20)));
        for text in [
            "any:hold",
            "read:range=4096+8192:error=ENOSPC",
            "flush:after=1:error=77",
            "write:count=1:torn=512",
            "discard:drop",
            "zeroes:delay=5",
        ] {
            assert_eq!(text.parse::<FaultRule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_rules_are_refused_with_a_reason() {
        for (text, why) in [
            ("", "must start with"),
            ("writes:drop", "must start with"),
            ("write", "does not say what happens"),
            ("write:count=1", "does not say what happens"),
            ("write:drop:hold", "twice"),
            ("write:count=1:count=2:drop", "twice"),
            ("write:range=7:drop", "OFFSET+LENGTH"),
            ("write:range=x+1:drop", "OFFSET+LENGTH"),
            ("write:after=-1:drop", "number"),
            ("write:error=EWHAT", "error takes"),
            ("write:error=0", "error takes"),
            ("write:torn", "torn takes"),
            ("write:delay=9999999", "delay takes"),
            ("write:explode", "none of"),
            ("write:drop=1", "none of"),
        ] {
            let error = text.parse::<FaultRule>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
