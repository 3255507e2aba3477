//! The side that follows: asks, copies, replays.

mod ask;
mod copy;
mod delay;
mod heal;
mod lend;
mod replay;
mod rewind;
mod state;
mod talk;
mod types;

pub use rewind::BACKWARDS;
pub use state::mark_led;
pub use types::{ConnId, FollowError, FollowOptions, FollowStatus, Healed, Holding, Send, Trouble};

use super::fetch::Fetcher;
use super::message::{Await, Fetch, Head, Verdict};
use crate::driver::{Backing, Files, Log, LogError, Open};
use crate::journal::Settings;
use crate::recover::RecoverError;
use delay::Delay;
use heal::Healing;
use holdfast_format::BLOCK_LEN;
use holdfast_format::journal::{FollowState, Following, SegmentLink};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId};
use state::{journal, read_state, settle, write_state};
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// The name of the file with what this node knows of its own disk, beside the journal's.
pub const FOLLOWING: &str = "following";
const FOLLOWING_BYTES: u64 = 2 * BLOCK_LEN as u64;
/// So much of the journal may be replayed between two flushes of the disk.
const REPLAY_BYTES: u64 = 8 << 20;
/// At most so long lies between writing to the disk and flushing it.
const FLUSH_MS: u64 = 500;
/// At least so long lies between two reports to the leader that are not asked for.
const REPORT_MS: u64 = 50;
/// How long the leader may wait with news.
const WAIT_MS: u32 = 1000;
/// What came damaged twice is asked for again so long after.
const DAMAGED_MS: u64 = 1000;
/// How long after a verdict that lets nothing happen the leader is asked again.
const ASK_AGAIN_MS: u64 = 3000;

/// What was asked on a connection, in order.
enum Asked {
    Hello,
    Join,
    /// Whether it says what was copied.
    Await(bool),
    /// Of this round.
    Fetch(Fetch, u64),
    Copy(u64),
    /// In this round.
    Heal(u64),
}

struct Conn {
    asked: VecDeque<Asked>,
    /// It may carry requests.
    ready: bool,
}

/// The side that follows. It owns the journal and the disk.
pub struct Follower<O, F, D> {
    open: O,
    options: FollowOptions,
    log: Option<Log<F>>,
    disk: D,
    state: Following,
    node: NodeId,
    delay: Delay,
    // The disk.
    /// Everything before this was written to the disk.
    applied: LogPosition,
    /// Up to here the disk may have been written to before it was opened.
    recover_to: LogPosition,
    unflushed: bool,
    flushed_at: u64,
    // The leader.
    leader: NodeId,
    bundle: u64,
    first: Option<ConnId>,
    conns: BTreeMap<ConnId, Conn>,
    out: Vec<Send>,
    verdict: Option<Verdict>,
    /// The verdict is of a node that follows, too.
    lent: bool,
    must_greet: bool,
    greeted_at: u64,
    head: Option<Head>,
    fetcher: Fetcher,
    round: u64,
    /// What came damaged, how often one after the other, and when it may be asked for again.
    damaged: (LogPosition, u32),
    fetch_from_ms: u64,
    reported: Option<(Await, u64)>,
    // A filling.
    copied_unflushed: Vec<ByteRange>,
    copied_bytes: u64,
    copied: Vec<ByteRange>,
    copies_given_out: bool,
    /// What was offered and is different here, to be asked for on the same connection.
    takes: VecDeque<(ConnId, ByteRange)>,
    trouble: Option<Trouble>,
    healing: Healing,
    received: u64,
    transferred: u64,
}

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// Opens journal and disk of this node; `open` gives the files of the journal.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn open(mut open: O, disk: D, options: FollowOptions) -> Result<Self, FollowError> {
        let resource = options.settings.resource;
        let mut files = open().map_err(journal)?;
        let mut state = read_state(&files, resource).map_err(journal)?;
        if state.sequence == 0 {
            write_state(&mut files, &mut state).map_err(journal)?;
        }
        let mut disk = disk;
        if state.state == FollowState::Led {
            let end = settle(files, &mut disk, &options)?;
            if end.is_none() && !options.may_give_up {
                return Err(FollowError::Unproven);
            }
            files = open().map_err(journal)?;
            state = Following {
                state: end.map_or(FollowState::Nothing, |_| FollowState::Consistent),
                wipe: end.is_none(),
                replayed: end.unwrap_or_default(),
                applying: end.unwrap_or_default(),
                shortened: false,
                fill: 0,
                fill_to: None,
                limit: None,
                ..state
            };
            write_state(&mut files, &mut state).map_err(journal)?;
        }
        drop(files);
        let losses = disk.losses();
        let mut follower = Self {
            open,
            options,
            log: None,
            disk,
            state,
            node: options.settings.node,
            delay: Delay::default(),
            applied: state.replayed,
            recover_to: LogPosition::START,
            unflushed: false,
            flushed_at: 0,
            leader: options.settings.node,
            bundle: 0,
            first: None,
            conns: BTreeMap::new(),
            out: Vec::new(),
            verdict: None,
            lent: false,
            must_greet: false,
            greeted_at: 0,
            head: None,
            fetcher: Fetcher::default(),
            round: 0,
            damaged: (LogPosition::START, 0),
            fetch_from_ms: 0,
            reported: None,
            copied_unflushed: Vec::new(),
            copied_bytes: 0,
            copied: Vec::new(),
            copies_given_out: false,
            takes: VecDeque::new(),
            trouble: None,
            healing: Healing::new(losses),
            received: 0,
            transferred: 0,
        };
        follower.open_log(None)?;
        if follower.state.wipe {
            follower.wipe()?;
        }
        // Nothing was written to the disk that was not durable in the journal before.
        let shortened = follower.state.shortened;
        let end = if shortened { state.applying } else { follower.durable() };
        follower.recover_to = state.applying.min(end);
        Ok(follower)
    }

    /// Opens the journal; what is damaged in it is cut off, and fetched again.
    fn open_log(&mut self, cut: Option<LogPosition>) -> Result<(), FollowError> {
        self.log = None;
        let settings = self.options.settings;
        let budget_bytes = self.kept_bytes(0);
        let open = Open {
            settings: Settings { budget_bytes, ..settings },
            leads: false,
            generation: GenerationId(0),
            time: HybridTime::default(),
            cut,
            spares: 1,
        };
        let files = (self.open)().map_err(journal)?;
        let log = match Log::open(files, &open) {
            Err(LogError::Recover(RecoverError::Damaged(damage))) if cut.is_none() => {
                self.note_cut(damage.position)?;
                return self.open_log(Some(damage.position));
            }
            opened => opened?.0,
        };
        self.delay.forget_from(log.journal().durable());
        self.log = Some(log);
        let replayed = self.state.replayed;
        self.log_mut()?.journal_mut().rewound(replayed);
        self.healing.begin_again();
        self.must_greet = true;
        Ok(())
    }

    /// What is replayed is kept up to so many bytes, so that the next segment fits, too, also one of so many
    /// bytes.
    fn kept_bytes(&self, next: u64) -> u64 {
        let Settings { budget_bytes, segment_bytes, .. } = self.options.settings;
        budget_bytes.saturating_sub(segment_bytes.max(next))
    }

    /// The journal is about to be cut: the disk may have more than it says then.
    fn note_cut(&mut self, at: LogPosition) -> Result<(), FollowError> {
        if self.state.applying <= at || self.state.shortened {
            return Ok(());
        }
        self.log = None;
        let mut state = Following { shortened: true, ..self.state };
        let mut files = (self.open)().map_err(journal)?;
        write_state(&mut files, &mut state).map_err(journal)?;
        self.state = state;
        Ok(())
    }

    /// From where on the disk certainly has nothing, when all that was written to it is flushed.
    fn may_have(&self) -> LogPosition {
        self.state.replayed.max(self.recover_to)
    }

    fn log(&self) -> Result<&Log<F>, FollowError> {
        self.log.as_ref().ok_or_else(|| FollowError::Journal("it is not open".into()))
    }

    fn log_mut(&mut self) -> Result<&mut Log<F>, FollowError> {
        self.log.as_mut().ok_or_else(|| FollowError::Journal("it is not open".into()))
    }

    fn durable(&self) -> LogPosition {
        self.log.as_ref().map_or(LogPosition::START, |log| log.journal().durable())
    }

    fn store(&mut self) -> Result<(), FollowError> {
        self.state.shortened &= self.applied < self.recover_to;
        let mut state = self.state;
        let log = self.log_mut()?;
        write_state(log.files_mut(), &mut state).map_err(journal)?;
        self.state = state;
        Ok(())
    }

    /// Ends it: everything that was replayed is durable then, and says so. The disk is given back.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn close(mut self) -> Result<D, FollowError> {
        self.flush_log()?;
        self.flush_disk(0)?;
        self.state.applying = self.may_have();
        self.store()?;
        self.keep_losses(u64::MAX);
        self.log_mut()?.store_cursors().map_err(journal)?;
        Ok(self.disk)
    }

    /// Turns the switches, durably.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn set_switches(&mut self, fetch: bool, replay: bool) -> Result<(), FollowError> {
        (self.state.fetch_paused, self.state.replay_paused) = (fetch, replay);
        if fetch {
            self.healing.leader_changes();
        }
        if self.trouble == Some(Trouble::Held) && !replay {
            self.trouble = None;
            self.must_greet = true;
        }
        self.flush_disk(self.flushed_at)?;
        self.state.applying = self.may_have();
        self.store()
    }

    /// Where both went on apart by what a leader said holds the disk back, durably, or does not: without
    /// one it is to lead with all that it has, as nobody leads whom it could follow.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn set_fork(&mut self, fork: Option<LogPosition>) -> Result<(), FollowError> {
        if self.state.limit == fork {
            return Ok(());
        }
        self.state.limit = fork;
        self.store()
    }

    /// Gives up what the disk and the journal hold: the disk is filled anew. What a person decides
    /// when the journals went on apart.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn discard(&mut self) -> Result<(), FollowError> {
        self.copied_unflushed.clear();
        self.copied.clear();
        self.unflushed = false;
        let Following { sequence, resource, fetch_paused, replay_paused, .. } = self.state;
        let nothing = Following::new(resource);
        self.state = Following { sequence, fetch_paused, replay_paused, wipe: true, ..nothing };
        self.store()?;
        self.wipe()?;
        self.healing.begin_again();
        (self.applied, self.recover_to) = (LogPosition::START, LogPosition::START);
        self.verdict = None;
        self.round += 1;
        self.fetcher.forget();
        self.must_greet = true;
        Ok(())
    }

    /// Holds the disk behind by so many milliseconds.
    pub const fn set_delay(&mut self, delay_ms: u64) {
        self.delay.set(delay_ms);
    }

    /// The files of the journal shall not take more bytes from now on: fetching waits there.
    pub fn set_budget(&mut self, bytes: u64) {
        self.options.settings.budget_bytes = bytes;
        let kept = self.kept_bytes(0);
        if let Some(log) = &mut self.log {
            log.journal_mut().set_budget(kept);
        }
    }

    /// The clock of this node, which may be wrong: what was written before this was opened is not
    /// replayed earlier than the delay makes it by this clock or the leader's.
    pub fn clock_says(&mut self, now_ms: u64, clock: HybridTime) {
        self.delay.clock_says(now_ms, clock, false);
    }

    /// The resource has grown, and the disk has room for it, which reads as zeroes.
    pub fn grown(&mut self, size: u64) {
        self.options.size = self.options.size.max(size);
        self.disk.grown(self.options.size);
        if matches!(self.trouble, Some(Trouble::Smaller(_))) {
            self.trouble = None;
        }
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    /// What the disk is.
    #[must_use]
    pub fn holding(&self) -> Holding {
        match self.state.state {
            FollowState::Nothing | FollowState::Led => Holding::Nothing,
            FollowState::Filling => Holding::Filling,
            FollowState::Consistent if self.applied < self.recover_to => Holding::Recovering,
            FollowState::Consistent => Holding::StateAt(self.applied),
        }
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> FollowStatus {
        let journal = self.log.as_ref().map(|log| log.journal().status());
        let head = self.head.as_ref();
        FollowStatus {
            holding: self.holding(),
            head: head.map_or(self.durable(), |head| head.durable),
            fetched: self.durable(),
            replayed: self.applied,
            tail: journal.map_or(LogPosition::START, |journal| journal.tail),
            bytes: journal.map_or(0, |journal| journal.bytes),
            fetch_lag_ms: head.map_or(0, |head| head.fetch_lag_ms),
            replay_lag_ms: head.map_or(0, |head| head.replay_lag_ms),
            fill_left: head.map_or(0, |head| head.fill_left),
            received: self.received,
            transferred: self.transferred,
            fetch_paused: self.state.fetch_paused,
            replay_paused: self.state.replay_paused,
            restored: self.is_restored(),
            follows: self.follows(),
            verdict: self.verdict,
            fork: self.state.limit,
            trouble: self.trouble.clone(),
            healed: self.healing.status(),
        }
    }

    /// The chain of what was fetched; empty while the disk is no state of it, and when both went on
    /// apart from the leader's.
    #[must_use]
    pub fn chain(&self) -> Vec<SegmentLink> {
        let whole = matches!(self.holding(), Holding::StateAt(_)) && self.state.limit.is_none();
        let log = self.log.as_ref().filter(|_| whole);
        log.map(|log| log.journal().links()).unwrap_or_default()
    }

    /// Does a bounded part of what is to be done: copies what was fetched, replays, flushes, asks.
    /// Whether there is more to do at once. `now_ms` counts evenly, here and elsewhere: it is no
    /// clock that anybody sets.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn work(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        self.delay.knows(now_ms, self.known());
        self.tighten(now_ms)?;
        let copied = self.copy_journal(now_ms)?;
        let replayed = self.replay(now_ms)?;
        self.flush_when_due(now_ms, replayed)?;
        self.recycle()?;
        let healed = self.heal(now_ms)?;
        self.ask(now_ms)?;
        Ok(copied || replayed || healed)
    }
}
