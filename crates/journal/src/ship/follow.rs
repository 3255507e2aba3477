//! The side that follows: asks, copies, replays.

use super::codec::{MAX_COPIED, MAX_LINKS, MAX_PAYLOAD};
use super::fetch::Fetcher;
use super::message::{
    Answer, Await, Block, FEATURE_LZ4, Fetch, Head, Hello, Join, Piece, RefuseCode, Report,
    Request, VERSION, Verdict, Welcome,
};
use crate::compress::decompress;
use crate::driver::{Backing, CopyFailed, Files, Log, LogError, Logged, Open};
use crate::index::WriteBackLimits;
use crate::journal::{CopyError, Settings};
use crate::records::RecordsError;
use crate::recover::RecoverError;
use bytes::Bytes;
use holdfast_format::journal::{FollowState, Following, FrameError, RecordKind};
use holdfast_format::{BLOCK_LEN, Block as DiskBlock};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
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
/// How long after a verdict that lets nothing happen the leader is asked again.
const ASK_AGAIN_MS: u64 = 3000;

/// The number of a connection; numbers are never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// How a journal is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowOptions {
    /// The journal of this node. Its budget is where fetching waits.
    pub settings: Settings,
    /// The bytes of the resource.
    pub size: u64,
    /// What pieces are asked for, in bytes.
    pub piece: u32,
    /// How many bytes of the journal are held in memory.
    pub window: u64,
    /// How many requests are on their way on one connection.
    pub requests: usize,
    /// So many bytes of a filling are written between two flushes.
    pub copy_flush: u64,
    /// Pieces may travel packed.
    pub lz4: bool,
}

impl FollowOptions {
    /// Sensible numbers: pieces of 512 KiB, 16 MiB in memory, 4 requests on a connection.
    #[must_use]
    pub const fn new(settings: Settings, size: u64) -> Self {
        let (piece, window, copy_flush) = (512 << 10, 16 << 20, 16 << 20);
        Self { settings, size, piece, window, requests: 4, copy_flush, lz4: true }
    }
}

/// Why a node cannot follow any more. It can be opened again.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The disk.
    #[error("the disk failed: {0}")]
    Disk(io::Error),
    /// The journal.
    #[error("the journal failed: {0}")]
    Journal(String),
}

impl From<LogError> for FollowError {
    fn from(error: LogError) -> Self {
        Self::Journal(error.to_string())
    }
}

/// What the disk is, for whoever wants to use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holding {
    /// Nothing that counts.
    Nothing,
    /// A mixture, until it is filled.
    Filling,
    /// A mixture, until what was begun before a crash is replayed.
    Recovering,
    /// Exactly the state of the origin at this position.
    StateAt(LogPosition),
}

/// What keeps a follower from going on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The leader refuses it.
    Refused(RefuseCode, String),
    /// Its own journal is full until more is replayed.
    NoRoom,
    /// What the leader sends for this position is damaged.
    Damaged(LogPosition),
}

/// How a follower stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowStatus {
    /// What the disk is.
    pub holding: Holding,
    /// Everything before this is durable at the leader, as far as is known.
    pub head: LogPosition,
    /// Everything before this is durable in the journal here.
    pub fetched: LogPosition,
    /// Everything before this is on the disk.
    pub replayed: LogPosition,
    /// Where the journal here begins.
    pub tail: LogPosition,
    /// The bytes of its files.
    pub bytes: u64,
    /// How long what was not fetched has been at the leader, in milliseconds.
    pub fetch_lag_ms: u64,
    /// The same for what was not replayed.
    pub replay_lag_ms: u64,
    /// A filling still has so many bytes to copy.
    pub fill_left: u64,
    /// All the bytes that were fetched or copied since this was opened.
    pub received: u64,
    /// The bytes that came for that over the network.
    pub transferred: u64,
    /// Fetching is switched off.
    pub fetch_paused: bool,
    /// Replaying is switched off.
    pub replay_paused: bool,
    /// The leader lets it fetch.
    pub follows: bool,
    /// The last verdict.
    pub verdict: Option<Verdict>,
    /// What is in the way.
    pub trouble: Option<Trouble>,
}

/// A request to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// On this connection.
    pub conn: ConnId,
    /// What.
    pub request: Request,
}

/// What was asked on a connection, in order.
enum Asked {
    Hello,
    Join,
    /// Whether it says what was copied.
    Await(bool),
    /// Of this round.
    Fetch(Fetch, u64),
    Copy(u64),
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
    delay_ms: u64,
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
    must_greet: bool,
    greeted_at: u64,
    head: Option<Head>,
    /// What the leader's clock is ahead, in milliseconds.
    ahead_ms: i64,
    fetcher: Fetcher,
    round: u64,
    reported: Option<(Await, u64)>,
    // A filling.
    copied_unflushed: Vec<ByteRange>,
    copied_bytes: u64,
    copied: Vec<ByteRange>,
    copies_given_out: bool,
    trouble: Option<Trouble>,
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
            files = open().map_err(journal)?;
            state = Following {
                state: end.map_or(FollowState::Nothing, |_| FollowState::Consistent),
                wipe: end.is_none(),
                replayed: end.unwrap_or_default(),
                applying: end.unwrap_or_default(),
                fill: 0,
                fill_to: None,
                limit: None,
                ..state
            };
            write_state(&mut files, &mut state).map_err(journal)?;
        }
        drop(files);
        let mut follower = Self {
            open,
            options,
            log: None,
            disk,
            state,
            node: options.settings.node,
            delay_ms: 0,
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
            must_greet: false,
            greeted_at: 0,
            head: None,
            ahead_ms: 0,
            fetcher: Fetcher::default(),
            round: 0,
            reported: None,
            copied_unflushed: Vec::new(),
            copied_bytes: 0,
            copied: Vec::new(),
            copies_given_out: false,
            trouble: None,
            received: 0,
            transferred: 0,
        };
        follower.open_log(None)?;
        if follower.state.wipe {
            follower.wipe()?;
        }
        follower.recover_to = state.applying.min(follower.durable());
        Ok(follower)
    }

    /// Opens the journal; what is damaged in it is cut off, and fetched again.
    fn open_log(&mut self, cut: Option<LogPosition>) -> Result<(), FollowError> {
        self.log = None;
        let settings = self.options.settings;
        // So that the next segment fits, too.
        let budget_bytes = settings.budget_bytes.saturating_sub(settings.segment_bytes);
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
                return self.open_log(Some(damage.position));
            }
            opened => opened?.0,
        };
        self.log = Some(log);
        let replayed = self.state.replayed;
        self.log_mut()?.journal_mut().replayed(replayed);
        self.must_greet = true;
        Ok(())
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
        self.state.applying = self.state.replayed;
        self.store()?;
        self.log_mut()?.store_cursors().map_err(journal)?;
        Ok(self.disk)
    }

    /// Turns the switches, durably.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn set_switches(&mut self, fetch: bool, replay: bool) -> Result<(), FollowError> {
        (self.state.fetch_paused, self.state.replay_paused) = (fetch, replay);
        self.flush_disk(self.flushed_at)?;
        self.state.applying = self.state.replayed;
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
        (self.applied, self.recover_to) = (LogPosition::START, LogPosition::START);
        self.verdict = None;
        self.round += 1;
        self.fetcher.forget();
        self.must_greet = true;
        Ok(())
    }

    /// Holds the disk behind by so many milliseconds.
    pub const fn set_delay(&mut self, delay_ms: u64) {
        self.delay_ms = delay_ms;
    }

    /// The resource has grown; what was added reads as zeroes.
    pub fn grown(&mut self, size: u64) {
        self.options.size = self.options.size.max(size);
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
            follows: self.follows(),
            verdict: self.verdict,
            trouble: self.trouble.clone(),
        }
    }

    /// Begins to follow a node, by connections to come. `bundle` is a random number.
    pub fn meet(&mut self, leader: NodeId, bundle: u64) {
        self.part();
        (self.leader, self.bundle) = (leader, bundle);
    }

    /// All connections are gone.
    pub fn part(&mut self) {
        self.conns.clear();
        self.out.clear();
        self.first = None;
        self.verdict = None;
        self.head = None;
        self.reported = None;
        self.fetcher.forget();
        self.round += 1;
        self.must_greet = true;
        // The leader may have lost with its power what it had read: only what it was told of
        // while it lives counts.
        self.unflushed |= !self.copied_unflushed.is_empty();
        self.copied_unflushed.clear();
        self.copied.clear();
        self.copies_given_out = false;
    }

    /// A connection to the leader stands. The first one carries the reports; when it is gone, call
    /// [`Self::part`] and close the others.
    pub fn opened(&mut self, conn: ConnId) {
        self.conns.insert(conn, Conn { asked: VecDeque::new(), ready: false });
        if self.first.is_none() {
            self.first = Some(conn);
            self.must_greet = true;
        } else if self.verdict.is_some() {
            self.join(conn);
        }
    }

    fn join(&mut self, conn: ConnId) {
        let (resource, from, to) = (self.options.settings.resource, self.node, self.leader);
        let join = Join { resource, from, to, bundle: self.bundle };
        self.send(conn, Request::Join(join), Asked::Join);
    }

    /// A connection is gone that is not the first one.
    pub fn closed(&mut self, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        for asked in gone.asked {
            match asked {
                Asked::Fetch(fetch, round) if round == self.round => self.fetcher.lost(fetch),
                Asked::Copy(_) => self.copies_given_out = false,
                _ => {}
            }
        }
    }

    fn send(&mut self, conn: ConnId, request: Request, asked: Asked) {
        if let Some(to) = self.conns.get_mut(&conn) {
            to.asked.push_back(asked);
            self.out.push(Send { conn, request });
        }
    }

    /// What is to be sent, in this order.
    pub fn outgoing(&mut self) -> Vec<Send> {
        std::mem::take(&mut self.out)
    }

    fn follows(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Ship | Verdict::Fill { .. } | Verdict::FillOn))
    }

    fn copies(&self) -> bool {
        self.state.state == FollowState::Filling && self.state.fill_to.is_none() && self.follows()
    }

    /// An answer came. Whether the connection may go on: if not, close it.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn answer(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        answer: Answer,
    ) -> Result<bool, FollowError> {
        let Some(asked) = self.conns.get_mut(&conn).and_then(|conn| conn.asked.pop_front()) else {
            return Ok(false);
        };
        match (asked, answer) {
            (Asked::Hello, Answer::Welcome(welcome)) => self.welcome(now_ms, conn, welcome)?,
            (Asked::Join, Answer::Joined) => {
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.ready = true;
                }
            }
            (Asked::Await(_), Answer::Head(head)) => self.learn(now_ms, head)?,
            (Asked::Fetch(fetch, round), Answer::Piece(piece)) => {
                return Ok(self.piece(fetch, round, &piece));
            }
            (Asked::Copy(fill), Answer::Block(block)) => return self.block(fill, &block),
            (asked, Answer::Refuse { code, text }) => {
                match asked {
                    Asked::Fetch(fetch, round) if round == self.round => self.fetcher.lost(fetch),
                    Asked::Copy(_) => self.copies_given_out = false,
                    _ => {}
                }
                if code == RefuseCode::Gone && Some(conn) != self.first {
                    self.must_greet = true;
                    return Ok(true);
                }
                self.trouble = Some(Trouble::Refused(code, text));
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn welcome(&mut self, now_ms: u64, conn: ConnId, welcome: Welcome) -> Result<(), FollowError> {
        self.trouble = None;
        self.round += 1;
        self.fetcher.forget();
        self.copies_given_out = false;
        self.reported = None;
        self.verdict = Some(welcome.verdict);
        match welcome.verdict {
            Verdict::Ship | Verdict::FillOn => {
                if self.state.limit.take().is_some() {
                    self.store()?;
                }
            }
            Verdict::Fill { fill, segment, from } => self.begin_fill(fill, segment, from)?,
            Verdict::Drain => {}
            Verdict::Apart { common, .. } => {
                let limit = common.unwrap_or(self.applied);
                if self.state.limit != Some(limit) {
                    self.state.limit = Some(limit);
                    self.store()?;
                }
            }
        }
        let at = self.log()?.journal().head();
        self.fetcher.restart(at.max(self.start()));
        self.learn(now_ms, welcome.head)?;
        if let Some(first) = self.conns.get_mut(&conn) {
            first.ready = true;
        }
        let others: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| !conn.ready && conn.asked.is_empty())
            .map(|(id, _)| *id)
            .collect();
        others.into_iter().for_each(|other| self.join(other));
        Ok(())
    }

    /// Where an empty journal begins.
    fn start(&self) -> LogPosition {
        if self.state.state == FollowState::Filling {
            self.state.fill_from
        } else {
            LogPosition::START
        }
    }

    fn begin_fill(
        &mut self,
        fill: u64,
        segment: u64,
        from: LogPosition,
    ) -> Result<(), FollowError> {
        self.copied_unflushed.clear();
        self.copied.clear();
        self.copied_bytes = 0;
        self.unflushed = false;
        // Before the first byte of it: the disk is nothing that anybody may use.
        self.state = Following {
            state: FollowState::Filling,
            wipe: true,
            replayed: from,
            applying: from,
            fill,
            fill_from: from,
            fill_segment: segment,
            fill_to: None,
            limit: None,
            ..self.state
        };
        self.store()?;
        self.wipe()?;
        self.applied = from;
        self.recover_to = from;
        self.must_greet = false;
        Ok(())
    }

    /// Forgets the journal, but not what is known of the disk.
    fn wipe(&mut self) -> Result<(), FollowError> {
        self.log_mut()?.clear().map_err(journal)?;
        self.state.wipe = false;
        self.store()
    }

    fn learn(&mut self, now_ms: u64, head: Head) -> Result<(), FollowError> {
        let theirs = i64::try_from(head.now.unix_millis()).unwrap_or(i64::MAX);
        self.ahead_ms = theirs.saturating_sub(i64::try_from(now_ms).unwrap_or(i64::MAX));
        let resource = self.options.settings.resource;
        let mut segments = head.segments.clone();
        segments.iter_mut().for_each(|(header, _)| header.resource = resource);
        self.fetcher.learn(&segments);
        let of_this = head.fill == self.state.fill && self.copies();
        if of_this
            && let Some(to) = head.fill_to
            && self.copied_unflushed.is_empty()
        {
            self.state.fill_to = Some(to);
            self.store()?;
        } else if of_this && head.fill_left > 0 && self.settled() {
            self.copies_given_out = false;
        }
        self.must_greet |= head.again;
        self.head = Some(head);
        Ok(())
    }

    /// Everything of a filling that was given out has come, is durable and was told.
    fn settled(&self) -> bool {
        let told = |asked: &Asked| matches!(asked, Asked::Copy(_) | Asked::Await(true));
        let flies = |conn: &Conn| conn.asked.iter().any(told);
        self.copied.is_empty()
            && self.copied_unflushed.is_empty()
            && !self.conns.values().any(flies)
    }

    fn piece(&mut self, fetch: Fetch, round: u64, piece: &Piece) -> bool {
        if round != self.round {
            return true;
        }
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        let right = piece.segment == fetch.segment
            && piece.from == fetch.from
            && piece.len <= fetch.len
            && len <= MAX_PAYLOAD;
        let bytes = decompress(piece.compression, &piece.bytes, len).ok().filter(|_| right);
        let Some(bytes) = bytes else {
            self.fetcher.lost(fetch);
            self.trouble = Some(Trouble::Damaged(fetch.from));
            return false;
        };
        self.received += bytes.len() as u64;
        self.transferred += piece.bytes.len() as u64;
        self.fetcher.came(fetch, bytes);
        true
    }

    /// Writes a part of a filling to the disk.
    fn block(&mut self, fill: u64, block: &Block) -> Result<bool, FollowError> {
        if !self.copies() || fill != self.state.fill || block.fill != fill {
            return Ok(true);
        }
        if block.range.is_empty() {
            self.copies_given_out = true;
            return Ok(true);
        }
        let len = usize::try_from(block.range.len).unwrap_or(usize::MAX);
        let within = block.range.end() <= self.options.size;
        if block.zeroes && within {
            self.disk.zeroes(block.range, true).map_err(FollowError::Disk)?;
        } else {
            let bytes = decompress(block.compression, &block.bytes, len.min(MAX_PAYLOAD)).ok();
            let bytes = bytes.filter(|bytes| within && crc32c::crc32c(bytes) == block.crc);
            let Some(bytes) = bytes else {
                // Closing gives it back to the leader, who gives it out again.
                self.trouble = Some(Trouble::Damaged(self.state.fill_from));
                self.copies_given_out = false;
                return Ok(false);
            };
            self.disk.write(block.range.offset, &bytes).map_err(FollowError::Disk)?;
        }
        self.copied_bytes += block.range.len;
        self.received += block.range.len;
        self.transferred += block.bytes.len() as u64;
        self.copied_unflushed.push(block.range);
        Ok(true)
    }

    /// Does a bounded part of what is to be done: copies what was fetched, replays, flushes, asks.
    /// Whether there is more to do at once.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn work(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        let copied = self.copy_journal()?;
        let replayed = self.replay(now_ms)?;
        self.flush_when_due(now_ms, replayed)?;
        self.recycle()?;
        self.ask(now_ms)?;
        Ok(copied || replayed)
    }

    /// Takes into the journal what was fetched; whether there may be more at once.
    fn copy_journal(&mut self) -> Result<bool, FollowError> {
        let mut moved = false;
        if !self.follows() {
            return Ok(false);
        }
        loop {
            let log = self.log()?;
            let last = log.journal().durable_segments().last().map(|(header, _)| *header);
            let at = log.journal().head();
            let Some(header) = last else {
                if !self.begin_segment(None)? {
                    break;
                }
                moved = true;
                continue;
            };
            if self.fetcher.has_more(at, header.number) {
                match self.copy_frames(at, header.number)? {
                    true => moved = true,
                    false => break,
                }
                continue;
            }
            let ended = self.fetcher.segment(header.number + 1).is_some_and(|(h, _)| h.base == at);
            if !(ended && self.begin_segment(Some(header.number))?) {
                break;
            }
            moved = true;
        }
        if moved {
            self.flush_log()?;
        }
        Ok(moved)
    }

    fn copy_frames(&mut self, at: LogPosition, number: u64) -> Result<bool, FollowError> {
        let bytes = self.fetcher.front(at, number);
        if bytes.is_empty() {
            return Ok(false);
        }
        let header = self.log()?.journal().durable_segments().last().map(|(header, _)| *header);
        let Some(header) = header else { return Ok(false) };
        match self.log_mut()?.copy(&header, &bytes) {
            Ok(used) => {
                self.fetcher.used(&bytes, used);
                if self.trouble == Some(Trouble::Damaged(at)) {
                    self.trouble = None;
                }
                if used < bytes.len() {
                    // Behind the last whole frame there is a part of one, or damage.
                    let at = self.log()?.journal().head();
                    self.copy_frames(at, number)?;
                }
                Ok(true)
            }
            // The leader's bytes always end with a frame.
            Err(CopyFailed::Copy(CopyError::Frame { why: FrameError::Short, .. }))
                if self.fetcher.goes_on(at.after(bytes.len() as u64), number) =>
            {
                self.fetcher.used(&bytes, 0);
                Ok(false)
            }
            Err(CopyFailed::Copy(CopyError::Frame { position, .. })) => {
                // Whatever it is, it is not kept, and is fetched again.
                self.trouble = Some(Trouble::Damaged(position));
                self.round += 1;
                self.fetcher.restart(at);
                Ok(false)
            }
            Err(error) => Err(FollowError::Journal(error.to_string())),
        }
    }

    /// Begins the segment behind this one; whether that was possible.
    fn begin_segment(&mut self, after: Option<u64>) -> Result<bool, FollowError> {
        let first = match (after, self.state.state) {
            (Some(after), _) => after + 1,
            (None, FollowState::Filling) => self.state.fill_segment,
            (None, _) => 1,
        };
        let Some((header, _)) = self.fetcher.segment(first) else { return Ok(false) };
        let place = after.is_some() || header.base == self.start();
        if !place {
            self.must_greet = true;
            return Ok(false);
        }
        let bytes = self.log()?.journal().status().bytes;
        if bytes + header.capacity > self.options.settings.budget_bytes && after.is_some() {
            self.recycle()?;
            let bytes = self.log()?.journal().status().bytes;
            if bytes + header.capacity > self.options.settings.budget_bytes {
                self.trouble = Some(Trouble::NoRoom);
                return Ok(false);
            }
        }
        if self.trouble == Some(Trouble::NoRoom) {
            self.trouble = None;
        }
        match self.log_mut()?.copy(&header, &Bytes::new()) {
            Ok(_) => {
                self.fetcher.passed(header.number);
                Ok(true)
            }
            Err(CopyFailed::Copy(_)) => {
                // The leader judges.
                self.must_greet = true;
                Ok(false)
            }
            Err(CopyFailed::Io(error)) => Err(journal(error)),
        }
    }

    fn flush_log(&mut self) -> Result<(), FollowError> {
        self.log_mut()?.flush().map_err(journal)
    }

    /// Gives up segments that are replayed, when they are not kept for going back or there are too
    /// many of them.
    fn recycle(&mut self) -> Result<(), FollowError> {
        let replayed = self.state.replayed;
        let log = self.log_mut()?;
        log.journal_mut().replayed(replayed);
        if let Some(plan) = log.journal().plan_cut() {
            log.journal_mut().cut(&plan);
        }
        if log.journal().recyclable().is_some() {
            log.recycle().map_err(journal)?;
        }
        Ok(())
    }

    /// Up to where may be replayed.
    fn replay_to(&self) -> LogPosition {
        let durable = self.durable();
        let limited = durable.min(self.state.limit.unwrap_or(durable));
        match self.state.state {
            FollowState::Nothing | FollowState::Led => self.applied,
            FollowState::Consistent if self.state.replay_paused => self.recover_to.min(limited),
            FollowState::Consistent => limited,
            // While it is copied nothing may come between; but what is to be filled anew must be
            // replayed first.
            FollowState::Filling if self.state.replay_paused => self.applied,
            FollowState::Filling => {
                let goes = self.state.fill_to.is_some() || self.verdict == Some(Verdict::Drain);
                if goes { limited } else { self.applied }
            }
        }
    }

    /// Replays a part; whether there is more.
    fn replay(&mut self, now_ms: u64) -> Result<bool, FollowError> {
        let to = self.replay_to();
        if self.applied >= to {
            return Ok(false);
        }
        if self.verdict == Some(Verdict::Drain) && !self.copied_unflushed.is_empty() {
            self.flush_disk(now_ms)?;
        }
        let found = match self.log()?.records_from(self.applied, REPLAY_BYTES / 2) {
            Err(LogError::Records(RecordsError::Damaged { position, .. })) => {
                self.open_log(Some(position))?;
                return Ok(true);
            }
            found => found?,
        };
        let mut moved = false;
        for logged in found {
            if logged.position >= to || self.is_early(now_ms, &logged) {
                break;
            }
            if logged.next > self.state.applying {
                self.flush_disk(now_ms)?;
                self.state.applying = self.horizon(logged.next);
                self.store()?;
            }
            self.apply(&logged)?;
            self.applied = logged.next;
            self.unflushed = true;
            moved = true;
        }
        Ok(moved)
    }

    /// Up to where the disk may be written to without saying so again.
    fn horizon(&self, next: LogPosition) -> LogPosition {
        // With a delay or a pause, a crash must not make more be replayed than was.
        if self.delay_ms > 0 || self.state.replay_paused {
            next
        } else {
            next.max(self.applied.after(REPLAY_BYTES))
        }
    }

    fn is_early(&self, now_ms: u64, logged: &Logged) -> bool {
        let whole = self.state.state == FollowState::Consistent && logged.next > self.recover_to;
        let now = i64::try_from(now_ms).unwrap_or(i64::MAX).saturating_add(self.ahead_ms);
        let time = logged.op.time().unix_millis().saturating_add(self.delay_ms);
        self.delay_ms > 0 && whole && i64::try_from(time).unwrap_or(i64::MAX) > now
    }

    fn apply(&mut self, logged: &Logged) -> Result<(), FollowError> {
        let op = &logged.op;
        let result = match op.kind() {
            RecordKind::Write => self.disk.write(op.range().offset, op.payload()),
            RecordKind::Zeroes => self.disk.zeroes(op.range(), false),
            RecordKind::Discard => self.disk.zeroes(op.range(), true),
            RecordKind::Flush => Ok(()),
        };
        result.map_err(FollowError::Disk)
    }

    fn flush_when_due(&mut self, now_ms: u64, more: bool) -> Result<(), FollowError> {
        let flies = |conn: &Conn| conn.asked.iter().any(|asked| matches!(asked, Asked::Copy(_)));
        let all_came = self.copies_given_out && !self.conns.values().any(flies);
        let copied = !self.copied_unflushed.is_empty()
            && (self.copied_bytes >= self.options.copy_flush
                || all_came
                || self.copied_unflushed.len() >= MAX_COPIED);
        let due = now_ms.saturating_sub(self.flushed_at) >= FLUSH_MS;
        let ended = self
            .state
            .fill_to
            .is_some_and(|to| self.state.state == FollowState::Filling && self.applied >= to);
        let drained = !more && self.verdict == Some(Verdict::Drain);
        if copied || ended || (self.unflushed && (due || drained)) {
            self.flush_disk(now_ms)?;
        }
        Ok(())
    }

    /// Makes durable what was written to the disk; then it is said.
    fn flush_disk(&mut self, now_ms: u64) -> Result<(), FollowError> {
        self.flushed_at = now_ms;
        if !self.unflushed && self.copied_unflushed.is_empty() && !self.fill_ends() {
            return Ok(());
        }
        self.disk.flush().map_err(FollowError::Disk)?;
        self.unflushed = false;
        self.copied.append(&mut self.copied_unflushed);
        self.copied_bytes = 0;
        let ends = self.fill_ends();
        if self.state.replayed < self.applied || ends {
            self.state.replayed = self.state.replayed.max(self.applied);
            let tight = self.delay_ms > 0 || self.state.replay_paused;
            self.state.applying =
                if tight { self.applied } else { self.state.applying.max(self.applied) };
            if ends {
                self.state.state = FollowState::Consistent;
                self.recover_to = self.applied;
            }
            self.store()?;
        }
        Ok(())
    }

    /// Everything of a filling is on the disk, and all that came meanwhile.
    fn fill_ends(&self) -> bool {
        self.state.state == FollowState::Filling
            && self.state.fill_to.is_some_and(|to| self.applied >= to)
    }

    fn report(&self) -> Report {
        let links = self.log.as_ref().map(|log| log.journal().links()).unwrap_or_default();
        let first = links.len().saturating_sub(MAX_LINKS);
        Report {
            state: self.state.state,
            fill: self.state.fill,
            generation: GenerationId(0),
            fetched: self.durable(),
            replayed: self.state.replayed,
            links: links[first..].to_vec(),
        }
    }

    /// Asks for what can be had.
    fn ask(&mut self, now_ms: u64) -> Result<(), FollowError> {
        let Some(first) = self.first else { return Ok(()) };
        self.greet_when_due(now_ms, first);
        if !self.follows() || self.must_greet {
            return Ok(());
        }
        self.report_when_due(now_ms, first);
        if self.state.fetch_paused {
            return Ok(());
        }
        let (pieces, window) = (self.options.piece, self.options.window);
        let most = self.options.requests;
        loop {
            let free = self.conns.iter().filter(|(id, conn)| **id != first && conn.ready);
            let free = free.min_by_key(|(_, conn)| conn.asked.len());
            let Some((conn, used)) = free.map(|(id, conn)| (*id, conn.asked.len())) else { break };
            if used >= most {
                break;
            }
            if self.copies() && !self.copies_given_out {
                let fill = self.state.fill;
                self.send(conn, Request::Copy { fill }, Asked::Copy(fill));
                // One connection in two keeps fetching meanwhile.
                if let Some(fetch) = self.fetcher.ask(pieces, window) {
                    let round = self.round;
                    self.send(conn, Request::Fetch(fetch), Asked::Fetch(fetch, round));
                }
                continue;
            }
            let Some(fetch) = self.fetcher.ask(pieces, window) else { break };
            let round = self.round;
            self.send(conn, Request::Fetch(fetch), Asked::Fetch(fetch, round));
        }
        Ok(())
    }

    fn greet_when_due(&mut self, now_ms: u64, first: ConnId) {
        let Some(conn) = self.conns.get(&first) else { return };
        if conn.asked.iter().any(|asked| matches!(asked, Asked::Hello)) {
            return;
        }
        let waited = now_ms.saturating_sub(self.greeted_at) >= ASK_AGAIN_MS;
        let again = match self.verdict {
            Some(Verdict::Drain) => {
                let drained = self.state.replayed >= self.durable() && !self.unflushed;
                drained || (waited && self.must_greet)
            }
            Some(Verdict::Apart { .. }) => waited,
            _ => self.must_greet,
        };
        if !again {
            return;
        }
        self.must_greet = false;
        self.greeted_at = now_ms;
        let settings = self.options.settings;
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: if self.options.lz4 { FEATURE_LZ4 } else { 0 },
            resource: settings.resource,
            from: self.node,
            to: self.leader,
            size: self.options.size,
            bundle: self.bundle,
            report: self.report(),
        };
        self.send(first, Request::Hello(hello), Asked::Hello);
    }

    fn report_when_due(&mut self, now_ms: u64, first: ConnId) {
        let Some(conn) = self.conns.get(&first) else { return };
        let waiting = conn.asked.iter().filter(|asked| matches!(asked, Asked::Await(_))).count();
        let last = self.log.as_ref().and_then(|log| {
            log.journal().durable_segments().last().map(|(header, _)| header.number)
        });
        let segment = last.unwrap_or(if self.state.state == FollowState::Filling {
            self.state.fill_segment
        } else {
            0
        });
        let take = self.copied.len().min(MAX_COPIED);
        let report = Await {
            state: self.state.state,
            fill: self.state.fill,
            fetched: self.durable(),
            replayed: self.state.replayed,
            fetch_paused: self.state.fetch_paused,
            replay_paused: self.state.replay_paused,
            known: self.fetcher.known(),
            segment,
            wait_ms: WAIT_MS,
            copied: self.copied[..take].to_vec(),
        };
        let changed = self.reported.as_ref().is_none_or(|(last, at)| {
            let long = now_ms.saturating_sub(*at) >= REPORT_MS;
            long && (*last != report)
        });
        if waiting > 1 || (waiting == 1 && !changed) {
            return;
        }
        self.copied.drain(..take);
        let told = Await { copied: Vec::new(), ..report.clone() };
        self.reported = Some((told, now_ms));
        let copied = !report.copied.is_empty();
        self.send(first, Request::Await(report), Asked::Await(copied));
    }
}

/// Says durably that this node leads from now on: its disk is what the journal makes of it. To be
/// called before the first op is appended.
///
/// # Errors
/// When that is not known to be durable.
pub fn mark_led<F: Files>(files: &mut F, resource: ResourceId) -> io::Result<()> {
    let mut state = read_state(files, resource)?;
    if state.state == FollowState::Led && state.sequence > 0 {
        return Ok(());
    }
    state.state = FollowState::Led;
    (state.fetch_paused, state.replay_paused) = (false, false);
    write_state(files, &mut state)
}

/// Writes back what this node appended while it led; where that ends. `None` when the disk was
/// written to past the journal: then it is no state of this history.
fn settle<F: Files, D: Backing>(
    files: F,
    disk: &mut D,
    options: &FollowOptions,
) -> Result<Option<LogPosition>, FollowError> {
    const ROUND: WriteBackLimits = WriteBackLimits { bytes: 8 << 20, runs: 64, run_bytes: 1 << 20 };
    let open = Open {
        settings: options.settings,
        leads: true,
        generation: GenerationId(0),
        time: HybridTime::default(),
        cut: None,
        spares: 1,
    };
    let (mut log, _) = Log::open(files, &open)?;
    while log.write_back(disk, ROUND, false)? {}
    log.write_back(disk, ROUND, true)?;
    log.store_cursors().map_err(journal)?;
    // Without a record of its own, nothing says whose state the disk is.
    let unknown = log.journal().switches().bypassed || log.journal().links().is_empty();
    Ok((!unknown).then(|| log.journal().durable()))
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn journal(error: io::Error) -> FollowError {
    FollowError::Journal(error.to_string())
}

fn read_state<F: Files>(files: &F, resource: ResourceId) -> io::Result<Following> {
    if !files.list()?.iter().any(|name| name == FOLLOWING) {
        return Ok(Following::new(resource));
    }
    let mut copies: [DiskBlock; 2] = [[0; BLOCK_LEN]; 2];
    for (index, copy) in (0..).zip(&mut copies) {
        if files.read(FOLLOWING, index * BLOCK_LEN as u64, copy)? < BLOCK_LEN {
            copy.fill(0);
        }
    }
    // Without one that counts it was never made: nothing was followed then.
    Ok(Following::newest([&copies[0], &copies[1]], resource)
        .unwrap_or_else(|| Following::new(resource)))
}

fn write_state<F: Files>(files: &mut F, state: &mut Following) -> io::Result<()> {
    if state.sequence == 0 {
        files.create(FOLLOWING, FOLLOWING_BYTES)?;
        files.sync(FOLLOWING)?;
        files.sync_dir()?;
    }
    state.sequence += 1;
    let offset = u64::from(state.copy()) * BLOCK_LEN as u64;
    let through =
        files.write_through(FOLLOWING, offset, &[Bytes::copy_from_slice(&state.encode())])?;
    if through { Ok(()) } else { files.sync(FOLLOWING) }
}
