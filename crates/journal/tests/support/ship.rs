//! One node that leads, some that follow, and a network that loses connections.

use super::{Dice, Sim, State, Step};
use bytes::Bytes;
use holdfast_format::journal::{
    Compression, FollowState, FollowerNote, PeerCursor, PeerSwitches, SegmentHeader,
};
use holdfast_journal::driver::{Log, LogError, Open, Seen};
use holdfast_journal::ship::{
    Answer, ConnId, FEATURE_LOST, FEATURE_PACKED, FollowOptions, Follower, Found, Holding,
    LeadError, Leader, Message, Notes, Reply, Request, Source, decode, encode, mark_led,
    parse_header,
};
use holdfast_journal::{Op, PushError, RangeSet, RecordsError, Settings, WriteBackLimits};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use std::collections::{BTreeMap, VecDeque};
use std::io;

pub(crate) const BLOCKS: u64 = 96;
pub(crate) const SIZE: u64 = BLOCKS * 4096;
/// What clocks say when the world begins.
pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;
pub(crate) const RESOURCE: ResourceId = ResourceId([7; 16]);
const SEGMENT: u64 = 16 * 4096;
const WRITE_BACK: WriteBackLimits =
    WriteBackLimits { bytes: 1 << 20, runs: 8, run_bytes: 64 << 10 };

pub(crate) fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

/// The durable notes of the node that leads: replaced as a whole, so no crash tears them.
#[derive(Default)]
pub(crate) struct Store {
    notes: BTreeMap<u8, Vec<u8>>,
    /// Nothing can be stored.
    pub(crate) full: bool,
    /// Nor can be taken away what is there.
    pub(crate) stuck: bool,
}

impl Notes for Store {
    fn load(&self, node: NodeId) -> Option<FollowerNote> {
        FollowerNote::decode(self.notes.get(&node.number())?, RESOURCE, node).ok()
    }

    fn store(&mut self, note: &FollowerNote) -> Result<(), LeadError> {
        if self.full {
            return Err(LeadError("no room".into()));
        }
        self.notes.insert(note.node.number(), note.encode());
        Ok(())
    }

    fn forget(&mut self, node: NodeId) -> Result<(), LeadError> {
        if self.stuck {
            return Err(LeadError("it cannot be written to".into()));
        }
        self.notes.remove(&node.number());
        Ok(())
    }
}

/// Journal and disk of the node that leads.
pub(crate) struct Led<'a> {
    pub(crate) log: &'a mut Log<Sim>,
    pub(crate) disk: Sim,
    pub(crate) size: u64,
    pub(crate) lost: &'a RangeSet,
}

fn bad(error: impl std::fmt::Display) -> LeadError {
    LeadError(error.to_string())
}

impl Source for Led<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn segments(&self) -> Vec<(SegmentHeader, u64)> {
        self.log.journal().durable_segments()
    }

    fn durable(&self) -> LogPosition {
        self.log.journal().durable()
    }

    fn peer(&self, node: NodeId) -> PeerCursor {
        self.log.journal().peer(node)
    }

    fn set_peer(&mut self, node: NodeId, switches: PeerSwitches) {
        self.log.journal_mut().set_peer(node, switches);
    }

    fn peer_reached(&mut self, node: NodeId, fetched: LogPosition, replayed: LogPosition) {
        self.log.journal_mut().peer_reached(node, fetched, replayed);
    }

    fn peer_restarts(&mut self, node: NodeId, position: LogPosition) -> Result<(), LeadError> {
        self.log.journal_mut().peer_restarts(node, position);
        self.log.store_cursors().map_err(bad)
    }

    fn begin_segment(&mut self) -> Result<(u64, LogPosition), LeadError> {
        self.log.begin_segment().map_err(bad)
    }

    fn flush(&mut self) -> Result<LogPosition, LeadError> {
        self.log.flush().map_err(bad)?;
        Ok(self.log.journal().durable())
    }

    fn changed_between(
        &self,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Option<RangeSet>, LeadError> {
        match self.log.changed_between(from, to) {
            Ok(changed) => Ok(Some(changed)),
            Err(LogError::Records(RecordsError::Gone { .. })) => Ok(None),
            Err(error) => Err(bad(error)),
        }
    }

    fn fetch(&self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, LeadError> {
        self.log.fetch(segment, from, max).map_err(bad)
    }

    fn read(&self, range: ByteRange) -> Result<Found, LeadError> {
        let lost = self.lost.next_from(range.offset).filter(|lost| lost.offset < range.end());
        let len = match lost {
            Some(lost) if lost.offset == range.offset => {
                return Ok(Found::Lost(lost.len.min(range.len)));
            }
            Some(lost) => lost.offset - range.offset,
            None => range.len,
        };
        let begin = ByteRange::new(range.offset, len);
        self.log.read(begin, &mut self.disk.clone()).map(Found::Good).map_err(bad)
    }
}

pub(crate) struct Primary {
    pub(crate) sim: Sim,
    pub(crate) log: Option<Log<Sim>>,
    pub(crate) leader: Leader,
    pub(crate) notes: Store,
    pub(crate) budget: u64,
    /// The bytes of the resource.
    size: u64,
    keep: u64,
    epoch: u64,
    /// Blocks of its disk that are not what was written, durably.
    lost: RangeSet,
    /// The number of the node that leads, then those of the followers.
    numbers: Vec<u8>,
    /// Who waits for news on which connection, and until when.
    waits: BTreeMap<u64, (usize, u64)>,
}

pub(crate) type Node = Follower<Box<dyn FnMut() -> io::Result<Sim>>, Sim, Sim>;

pub(crate) struct Secondary {
    pub(crate) sim: Sim,
    pub(crate) follower: Option<Node>,
    pub(crate) first: Option<u64>,
    pub(crate) budget: u64,
    /// The bytes of its own segments.
    pub(crate) segment: u64,
    /// So many bytes are replayed at a time.
    pub(crate) replay: u64,
    /// What its disk is ready for, durably.
    size: u64,
    /// The state of the origin that its disk is compared with, and where that is.
    model: (LogPosition, Vec<u64>),
}

impl Secondary {
    /// It hears of the whole size before the Primary does.
    pub(crate) fn grow_before_all(&mut self) {
        self.size = SIZE;
    }
}

struct Wire {
    follower: usize,
    /// What comes down takes up to so many milliseconds.
    slow: u64,
    up: VecDeque<(u64, Vec<u8>)>,
    down: VecDeque<(u64, Vec<u8>)>,
}

/// All of it.
pub(crate) struct World {
    pub(crate) dice: Dice,
    /// Goes on evenly, for all of them.
    pub(crate) now: u64,
    /// What the clocks are ahead of that, in milliseconds: of the Primary, and of each follower when
    /// it is started.
    pub(crate) clocks: (i64, i64),
    pub(crate) primary: Primary,
    pub(crate) secondaries: Vec<Secondary>,
    wires: BTreeMap<u64, Wire>,
    next_wire: u64,
    /// Connections that are gone, which the leader has not noticed.
    late: Vec<(NodeId, u64)>,
    /// Whether he notices anything.
    pub(crate) notices: bool,
    next_value: u64,
    /// Everything that was ever durable in the journal, in order.
    pub(crate) history: Vec<(LogPosition, ByteRange, u64)>,
    recorded: LogPosition,
    pub(crate) may_connect: bool,
    /// Bytes of answers, headers and all.
    pub(crate) sent: u64,
    /// Answers are damaged now and then.
    pub(crate) damage: bool,
    pub(crate) fills: u64,
    pub(crate) rewinds: u64,
    /// Two histories went on from here.
    fork: Option<LogPosition>,
    /// The followers' program does not know of compressed records, nor of what the leader has lost.
    pub(crate) old: bool,
    /// Followers hear by themselves of a size that was agreed on.
    pub(crate) hear: bool,
}

fn settings(number: u8, epoch: u64, budget: u64, keep: u64) -> Settings {
    Settings {
        segment_bytes: SEGMENT,
        alignment: 512,
        budget_bytes: budget,
        dirty_bytes: 40 * 4096,
        keep_bytes: keep,
        ..Settings::new(RESOURCE, node(number), epoch)
    }
}

impl Primary {
    fn start(&mut self) {
        self.epoch += 1;
        let open = Open {
            settings: settings(self.numbers[0], self.epoch, self.budget, self.keep),
            leads: true,
            generation: GenerationId(1),
            time: HybridTime::default(),
            cut: None,
            spares: 1,
        };
        mark_led(&mut self.sim.clone(), RESOURCE).unwrap();
        let mut log = Log::open(self.sim.clone(), &open).unwrap().0;
        self.leader = Leader::new(RESOURCE, self.epoch << 32);
        self.leader.set_copy_bytes(16 << 10);
        let (disk, size, lost) = (self.sim.clone(), self.size, &self.lost);
        let mut led = Led { log: &mut log, disk, size, lost };
        for number in &self.numbers[1..] {
            self.leader.add(node(*number), &mut led, &self.notes);
        }
        self.log = Some(log);
        self.waits.clear();
    }

    /// What an idle moment does: writes back, recycles, cuts.
    pub(crate) fn idle(&mut self, dice: &mut Dice) {
        let Some(log) = self.log.as_mut() else { return };
        let mut disk = self.sim.clone();
        let wanted = log.journal().write_back_wanted().is_some();
        if wanted || dice.one_in(3) {
            log.write_back(&mut disk, WRITE_BACK, wanted || dice.one_in(2)).unwrap();
        }
        log.recycle().unwrap();
        if dice.one_in(100) {
            // A member of the pair that this Primary belongs to was lost.
            log.journal_mut().begin_generation(GenerationId(dice.below(u64::MAX)));
        }
        let segments = log.journal().durable_segments();
        let cursors = log.journal().cursors();
        let plan = log.journal().plan_cut();
        let up_to = plan.map_or(LogPosition::START, |plan| plan.up_to);
        let (leader, notes, size) = (&mut self.leader, &mut self.notes, self.size);
        let cursor = |n: NodeId| cursors.peers[usize::from(n.number())];
        log.cut(|lost| {
            let failed = leader.cut(lost, up_to, &segments, size, cursor, notes);
            assert!(failed.is_empty() || notes.full, "{failed:?}");
            Ok(())
        })
        .unwrap();
    }
}

impl World {
    pub(crate) fn new(seed: u64, followers: u8, budget: u64) -> Self {
        let sim = || Sim::new(State::with_disk(usize::try_from(SIZE).unwrap()), false);
        let mut primary = Primary {
            sim: sim(),
            log: None,
            leader: Leader::new(RESOURCE, 0),
            notes: Store::default(),
            budget,
            size: SIZE,
            keep: if seed.is_multiple_of(2) { u64::MAX } else { 0 },
            epoch: 0,
            lost: RangeSet::new(),
            numbers: (0..=followers).collect(),
            waits: BTreeMap::new(),
        };
        primary.start();
        let secondary = |_| Secondary {
            sim: sim(),
            follower: None,
            first: None,
            budget: 40 * SEGMENT,
            segment: SEGMENT,
            replay: 1 << 20,
            size: SIZE,
            model: (LogPosition::START, Vec::new()),
        };
        Self {
            dice: Dice::new(seed),
            now: 1_000_000,
            clocks: (EPOCH_MS, EPOCH_MS),
            primary,
            secondaries: (0..followers).map(secondary).collect(),
            wires: BTreeMap::new(),
            next_wire: 0,
            late: Vec::new(),
            notices: true,
            next_value: 1,
            history: Vec::new(),
            recorded: LogPosition::START,
            may_connect: true,
            sent: 0,
            damage: false,
            fills: 0,
            rewinds: 0,
            fork: None,
            old: false,
            hear: true,
        }
    }

    fn led(&mut self) -> Option<(Led<'_>, &mut Leader, &mut Store)> {
        let Primary { sim, log, leader, notes, size, lost, .. } = &mut self.primary;
        let led = Led { log: log.as_mut()?, disk: sim.clone(), size: *size, lost };
        Some((led, leader, notes))
    }

    /// What the Primary's clock says.
    fn clock(&self) -> HybridTime {
        HybridTime::from_unix_millis(self.now.saturating_add_signed(self.clocks.0))
    }

    // The size.

    /// It begins with half of its size.
    pub(crate) fn begin_small(&mut self) {
        self.primary.size = SIZE / 2;
        self.secondaries.iter_mut().for_each(|secondary| secondary.size = SIZE / 2);
    }

    /// All have agreed on the whole size: the Primary has it at once, each follower when it hears
    /// of it.
    pub(crate) fn agree_on_all(&mut self) {
        self.primary.size = SIZE;
    }

    /// A follower has heard of the size that was agreed on.
    pub(crate) fn hears(&mut self, follower: usize) {
        let secondary = &mut self.secondaries[follower];
        secondary.size = secondary.size.max(self.primary.size);
        if let Some(node) = secondary.follower.as_mut() {
            node.grown(secondary.size);
        }
    }

    // The client.

    /// Writes, zeroes or flushes something. Never waits for a follower.
    pub(crate) fn client(&mut self) {
        let kind = self.dice.below(10);
        let all = self.primary.size / 4096;
        let offset = self.dice.below(all);
        let blocks = (1 + self.dice.below(4)).min(all - offset);
        self.write(kind, offset, blocks);
    }

    pub(crate) fn write(&mut self, kind: u64, offset: u64, blocks: u64) {
        let time = self.clock();
        let range = ByteRange::new(offset * 4096, blocks * 4096);
        let value = self.next_value;
        let packing = self.packing();
        let op = match kind {
            0 => Op::flush(time),
            1 => Op::zeroes(range, time, self.dice.one_in(2), false).unwrap(),
            _ => {
                let data = payload(value, blocks);
                Op::write_packed(range.offset, data, time, false, packing).unwrap()
            }
        };
        let Some(log) = self.primary.log.as_mut() else { return };
        match log.push(op) {
            Ok(_) => {}
            // Its own disk may hold it up, a follower never.
            Err(PushError::WriteBack) => return self.primary.idle(&mut self.dice),
            Err(error) => panic!("{error}"),
        }
        self.next_value += 1;
        log.pump().unwrap();
        if self.dice.one_in(3) {
            log.flush().unwrap();
        }
        self.record();
    }

    /// It is switched now and then.
    fn packing(&mut self) -> Compression {
        let kind = match self.next_value / 40 % 4 {
            1 if !self.old => Compression::Lz4,
            3 if !self.old => Compression::Zstd,
            _ => Compression::None,
        };
        let Some(log) = self.primary.log.as_mut() else { return kind };
        log.journal_mut().set_compression(kind);
        log.journal().packing()
    }

    /// Writes a block that no client has flushed.
    pub(crate) fn write_unflushed(&mut self) {
        let time = self.clock();
        let offset = self.dice.below(self.primary.size / 4096) * 4096;
        let op = Op::write(offset, payload(self.next_value, 1), time, false).unwrap();
        let Some(log) = self.primary.log.as_mut() else { return };
        if log.push(op).is_ok() {
            self.next_value += 1;
            log.pump().unwrap();
            self.record();
        }
    }

    /// Remembers what has become durable.
    pub(crate) fn record(&mut self) {
        let Some(log) = self.primary.log.as_ref() else { return };
        while self.recorded < log.journal().durable() {
            let found = log.records_from(self.recorded, 1 << 20).unwrap();
            for logged in found {
                let value = logged.op.payload().first_chunk::<8>();
                let value = value.map_or(0, |bytes| u64::from_le_bytes(*bytes));
                self.primary.lost.remove(logged.op.range());
                self.history.push((logged.position, logged.op.range(), value));
                self.recorded = logged.next;
            }
        }
    }

    // The network.

    fn wire(&mut self, follower: usize) {
        let id = self.next_wire;
        self.next_wire += 1;
        let slow = if self.dice.one_in(4) { 400 } else { 20 };
        self.wires.insert(id, Wire { follower, slow, up: VecDeque::new(), down: VecDeque::new() });
        let leader = node(self.primary.numbers[0]);
        let secondary = &mut self.secondaries[follower];
        let Some(node) = secondary.follower.as_mut() else { return };
        if secondary.first.is_none() {
            secondary.first = Some(id);
            node.meet(leader, self.dice.below(u64::MAX));
        }
        node.opened(ConnId(id));
    }

    /// Makes the connections that are missing, in any order.
    pub(crate) fn connect(&mut self) {
        if !self.may_connect || self.primary.log.is_none() {
            return;
        }
        for follower in 0..self.secondaries.len() {
            let has = self.wires.values().filter(|wire| wire.follower == follower).count();
            if self.secondaries[follower].follower.is_some() && has < 4 && self.dice.one_in(2) {
                self.wire(follower);
            }
        }
    }

    pub(crate) fn cut_wire(&mut self, id: u64) {
        let Some(wire) = self.wires.remove(&id) else { return };
        let follower = wire.follower;
        let first = self.secondaries[follower].first == Some(id);
        self.primary.waits.remove(&id);
        let number = node(self.primary.numbers[follower + 1]);
        // The leader may hear of it when the follower is there again.
        self.late.push((number, id));
        if self.notices && !self.dice.one_in(4) {
            self.close_late();
        }
        if let Some(node) = self.secondaries[follower].follower.as_mut() {
            if first { node.part() } else { node.closed(self.now, ConnId(id)) }
        }
        if first {
            self.secondaries[follower].first = None;
            let others: Vec<u64> = self.wires_of(follower);
            others.into_iter().for_each(|other| self.cut_wire(other));
        }
    }

    /// The leader notices which connections are gone.
    pub(crate) fn close_late(&mut self) {
        for (number, id) in self.late.drain(..) {
            self.primary.leader.closed(number, id);
        }
    }

    /// Whether the leader lets a follower fetch.
    pub(crate) fn is_served(&mut self, follower: usize) -> bool {
        let (time, number) = (self.clock(), node(self.primary.numbers[follower + 1]));
        let Some((led, leader, _)) = self.led() else { return false };
        let status = leader.status(number, time, &led);
        status.is_some_and(|status| status.connected) && leader.may_fetch(number).is_ok()
    }

    pub(crate) fn wires_of(&self, follower: usize) -> Vec<u64> {
        let of = self.wires.iter().filter(|(_, wire)| wire.follower == follower);
        of.map(|(id, _)| *id).collect()
    }

    pub(crate) fn wire_ids(&self) -> Vec<u64> {
        self.wires.keys().copied().collect()
    }

    fn deliver(&mut self) {
        let now = self.now;
        for id in self.wire_ids() {
            while let Some(wire) = self.wires.get_mut(&id)
                && let Some((_, bytes)) = wire.up.pop_front_if(|(at, _)| *at <= now)
            {
                let follower = wire.follower;
                self.serve(id, follower, &bytes);
            }
            while let Some(wire) = self.wires.get_mut(&id)
                && let Some((_, bytes)) = wire.down.pop_front_if(|(at, _)| *at <= now)
            {
                let follower = wire.follower;
                let Message::Answer(answer) = parse(&bytes) else { panic!("a request came down") };
                let Some(node) = self.secondaries[follower].follower.as_mut() else { break };
                match node.answer(now, ConnId(id), answer) {
                    Ok(true) => {}
                    Ok(false) => self.cut_wire(id),
                    Err(_) => self.crash_secondary(follower),
                }
            }
        }
    }

    fn serve(&mut self, id: u64, follower: usize, bytes: &[u8]) {
        let Message::Request(mut request) = parse(bytes) else { panic!("an answer came up") };
        if let (true, Request::Hello(hello)) = (self.old, &mut request) {
            hello.features &= !(FEATURE_PACKED | FEATURE_LOST);
        }
        if self.primary.waits.remove(&id).is_some() {
            self.answer_head(id, follower);
        }
        let time = self.clock();
        let number = node(self.primary.numbers[follower + 1]);
        let hello = matches!(request, Request::Hello(_));
        let Some((mut led, leader, notes)) = self.led() else { return };
        match leader.request(time, number, id, request, &mut led, notes) {
            Reply::Now(answer) => {
                if let Answer::Welcome(welcome) = &answer {
                    assert!(hello);
                    let fills =
                        matches!(welcome.verdict, holdfast_journal::ship::Verdict::Fill { .. });
                    let shown = leader.status(number, time, &led).map(|status| status.state);
                    let filling = shown == Some(FollowState::Filling);
                    assert!(!fills || filling, "who is to be filled has not everything: {shown:?}");
                    self.fills += u64::from(fills);
                }
                self.send_down(id, answer);
            }
            Reply::Wait { ms } => {
                self.primary.waits.insert(id, (follower, self.now + u64::from(ms)));
            }
        }
        self.record();
    }

    fn answer_head(&mut self, id: u64, follower: usize) {
        let time = self.clock();
        let number = node(self.primary.numbers[follower + 1]);
        let Some((led, leader, _)) = self.led() else { return };
        let head = leader.head(time, number, &led);
        self.send_down(id, Answer::Head(head));
    }

    fn send_down(&mut self, id: u64, mut answer: Answer) {
        if self.damage && self.dice.one_in(20) {
            damage(&mut answer, &mut self.dice);
        }
        let bytes = frame(&Message::Answer(answer));
        self.sent += bytes.len() as u64;
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let at = self.now + 1 + self.dice.below(wire.slow);
        let at = wire.down.back().map_or(at, |(last, _)| at.max(*last));
        wire.down.push_back((at, bytes));
    }

    // The nodes.

    pub(crate) fn start_secondary(&mut self, follower: usize) {
        let number = self.primary.numbers[follower + 1];
        let secondary = &mut self.secondaries[follower];
        if secondary.follower.is_some() {
            return;
        }
        let settings = Settings {
            segment_bytes: secondary.segment,
            ..settings(number, 0, secondary.budget, self.primary.keep)
        };
        let options = FollowOptions {
            piece: 8 << 10,
            window: 64 << 10,
            copy_flush: 32 << 10,
            replay: secondary.replay,
            lz4: self.dice.one_in(2),
            may_give_up: true,
            ..FollowOptions::new(settings, secondary.size)
        };
        let files = secondary.sim.clone();
        let open: Box<dyn FnMut() -> io::Result<Sim>> = Box::new(move || Ok(files.clone()));
        secondary.follower = Follower::open(open, secondary.sim.clone(), options).ok();
        let (now, clock) = (self.now, self.now.saturating_add_signed(self.clocks.1));
        if let Some(node) = secondary.follower.as_mut() {
            node.clock_says(now, HybridTime::from_unix_millis(clock));
        }
        if secondary.follower.is_none() {
            self.crash_secondary(follower);
        }
    }

    pub(crate) fn crash_secondary(&mut self, follower: usize) {
        let kind = super::CRASHES[usize::try_from(self.dice.below(5)).unwrap()];
        self.wires_of(follower).into_iter().for_each(|id| self.cut_wire(id));
        let secondary = &mut self.secondaries[follower];
        secondary.follower = None;
        secondary.first = None;
        let state = secondary.sim.0.borrow().now.crash(kind, &mut self.dice);
        secondary.sim = Sim::new(state, self.dice.one_in(2));
    }

    /// Ends a follower in good order.
    pub(crate) fn stop_secondary(&mut self, follower: usize) {
        self.wires_of(follower).into_iter().for_each(|id| self.cut_wire(id));
        let secondary = &mut self.secondaries[follower];
        secondary.first = None;
        let Some(node) = secondary.follower.take() else { return };
        if node.close().is_err() {
            self.crash_secondary(follower);
        }
    }

    /// A crash after which a segment of a follower's journal has bytes that nobody wrote.
    pub(crate) fn rot_secondary(&mut self, follower: usize) {
        self.crash_secondary(follower);
        let sim = self.secondaries[follower].sim.clone();
        let now = &mut sim.0.borrow_mut().now;
        let names = now.names.keys().filter(|name| name.starts_with("segment-"));
        let mut names: Vec<String> = names.cloned().collect();
        // At the very end it cannot be told from a crash.
        names.pop();
        if names.is_empty() {
            return;
        }
        let name = &names[usize::try_from(self.dice.below(names.len() as u64)).unwrap()];
        // Not in its header.
        let offset = 4096 + self.dice.below(SEGMENT - 4096 - 16);
        now.rot(name, usize::try_from(offset).unwrap(), &[0xee; 16]);
    }

    /// Lets one of the next steps of a follower fail, as if the crash came in its middle.
    pub(crate) fn plan_crash(&mut self, follower: usize) {
        let steps = usize::try_from(self.dice.below(40)).unwrap();
        let mut tracing = self.secondaries[follower].sim.0.borrow_mut();
        tracing.fail_at = tracing.steps.len() + steps;
    }

    pub(crate) fn crash_primary(&mut self) {
        let kind = super::CRASHES[usize::try_from(self.dice.below(5)).unwrap()];
        self.wire_ids().into_iter().for_each(|id| self.cut_wire(id));
        self.primary.log = None;
        let state = self.primary.sim.0.borrow().now.crash(kind, &mut self.dice);
        self.primary.sim = Sim::new(state, self.dice.one_in(2));
    }

    pub(crate) fn start_primary(&mut self) {
        if self.primary.log.is_none() {
            self.primary.start();
            self.record();
        }
    }

    /// One of a follower's next steps fails.
    pub(crate) fn fail_at(&mut self, follower: usize, step: usize) {
        let mut tracing = self.secondaries[follower].sim.0.borrow_mut();
        tracing.fail_at = tracing.steps.len() + step;
    }

    /// The Primary stops in good order; a follower takes everything and leads.
    pub(crate) fn hand_over(&mut self, to: usize) {
        self.primary.log.as_mut().unwrap().flush().unwrap();
        self.record();
        while !self.all_equal() {
            self.step(10);
        }
        self.swap(to);
    }

    /// A follower leads with what it has; the Primary follows it.
    pub(crate) fn force(&mut self, to: usize) {
        self.record();
        let fork = self.secondaries[to].follower.as_ref().unwrap().status().fetched;
        self.swap(to);
        // From here on it is another history.
        self.history.retain(|(position, _, _)| *position < fork);
        self.recorded = fork;
        self.fork = Some(fork);
    }

    fn swap(&mut self, to: usize) {
        self.wire_ids().into_iter().for_each(|id| self.cut_wire(id));
        self.primary.log = None;
        let secondary = &mut self.secondaries[to];
        secondary.first = None;
        let follower = secondary.follower.take().unwrap();
        // What is in its journal is written to its disk as if it had been written here.
        drop(follower.close().unwrap());
        assert_eq!(secondary.size, self.primary.size);
        std::mem::swap(&mut secondary.sim, &mut self.primary.sim);
        secondary.model = (LogPosition::START, Vec::new());
        self.primary.numbers.swap(0, to + 1);
        self.primary.notes = Store::default();
        self.primary.start();
        self.start_secondary(to);
    }

    /// So many milliseconds go by; everybody does what he can.
    pub(crate) fn step(&mut self, ms: u64) {
        self.now += ms;
        self.connect();
        self.deliver();
        if self.notices && self.dice.one_in(8) {
            self.close_late();
        }
        self.primary.idle(&mut self.dice);
        let (time, clock) = (self.now, self.clock().unix_millis());
        let durable = self.primary.log.as_ref().map(|log| log.journal().durable());
        if let Some(durable) = durable {
            self.primary.leader.moment(clock, durable);
        }
        let waits = std::mem::take(&mut self.primary.waits);
        for (id, (follower, until)) in waits {
            if time >= until || self.dice.one_in(4) {
                self.answer_head(id, follower);
            } else {
                self.primary.waits.insert(id, (follower, until));
            }
        }
        for follower in 0..self.secondaries.len() {
            let small = self.secondaries[follower].size < self.primary.size;
            if small && self.hear && self.dice.one_in(200) {
                self.hears(follower);
            }
            self.work(follower);
        }
        self.primary.sim.0.borrow_mut().steps.clear();
    }

    fn work(&mut self, follower: usize) {
        let now = self.now;
        let Some(node) = self.secondaries[follower].follower.as_mut() else { return };
        let result = node.work(now);
        let out = node.outgoing();
        for send in out {
            let bytes = frame(&Message::Request(send.request));
            let at = now + 1 + self.dice.below(20);
            if let Some(wire) = self.wires.get_mut(&send.conn.0) {
                let at = wire.up.back().map_or(at, |(last, _)| at.max(*last));
                wire.up.push_back((at, bytes));
            }
        }
        if result.is_err() {
            self.crash_secondary(follower);
            return;
        }
        let mut tracing = self.secondaries[follower].sim.0.borrow_mut();
        if tracing.fail_at == usize::MAX {
            tracing.steps.clear();
        }
    }

    // The checks.

    /// The state of the origin at a position.
    fn state_at(&self, position: LogPosition, from: (LogPosition, Vec<u64>)) -> Vec<u64> {
        let (at, mut blocks) = from;
        let fresh = at > position || blocks.is_empty();
        let at = if fresh { LogPosition::START } else { at };
        if fresh {
            blocks = vec![0; usize::try_from(BLOCKS).unwrap()];
        }
        let first = self.history.partition_point(|(p, _, _)| *p < at);
        for (_, range, value) in self.history[first..].iter().take_while(|(p, _, _)| *p < position)
        {
            for block in range.blocks() {
                blocks[usize::try_from(block).unwrap()] = *value;
            }
        }
        blocks
    }

    /// A disk that calls itself the state of a moment is exactly that.
    pub(crate) fn check(&mut self) {
        for follower in 0..self.secondaries.len() {
            let Some(node) = self.secondaries[follower].follower.as_ref() else { continue };
            let Holding::StateAt(position) = node.holding() else { continue };
            if self.fork.is_some_and(|fork| position > fork) {
                // It is a state of the other history.
                continue;
            }
            let model = std::mem::take(&mut self.secondaries[follower].model);
            let expected = self.state_at(position, model);
            let found = contents(&self.secondaries[follower].sim);
            let now = self.secondaries[follower].sim.0.borrow();
            let bad = &now.now.bad;
            assert!(
                now.now.keeps_what_is_not_flushed(),
                "follower {follower} has forgotten a loss"
            );
            for (block, (found, expected)) in (0..).zip(found.iter().zip(&expected)) {
                // What nobody could read is not taken for what was written.
                if now.now.kept.old.overlaps(ByteRange::of_blocks(block..block + 1)) {
                    continue;
                }
                if let Some(seen) = bad.get(&block) {
                    assert!(seen.is_some(), "block {block} would be taken for good");
                    continue;
                }
                assert_eq!(found, expected, "follower {follower} block {block} at {position}");
            }
            drop(now);
            self.secondaries[follower].model = (position, expected);
        }
    }

    /// Whether every follower has everything.
    pub(crate) fn all_equal(&self) -> bool {
        let Some(log) = self.primary.log.as_ref() else { return false };
        self.secondaries.iter().all(|secondary| {
            let holding = secondary.follower.as_ref().map(Node::holding);
            holding == Some(Holding::StateAt(log.journal().durable()))
        })
    }

    /// Whether no disk of a follower has lost anything.
    pub(crate) fn all_good(&self) -> bool {
        self.secondaries.iter().all(|secondary| {
            let now = &secondary.sim.0.borrow().now;
            now.bad.is_empty() && now.kept.is_empty()
        })
    }

    /// Blocks of a follower's disk become bad.
    pub(crate) fn spoil(&mut self, follower: usize, blocks: impl IntoIterator<Item = u64>) {
        let size = self.primary.size.min(self.secondaries[follower].size);
        for block in blocks.into_iter().filter(|block| *block < size / 4096) {
            let seen = if self.dice.one_in(2) { Seen::Old } else { Seen::Unread };
            self.secondaries[follower].sim.0.borrow_mut().now.spoil(block, seen);
        }
    }

    /// Half of the blocks of a follower's disk that cannot be read can be read again.
    pub(crate) fn readable_again(&mut self, follower: usize) {
        let mut sim = self.secondaries[follower].sim.0.borrow_mut();
        while self.dice.one_in(2) && sim.now.readable_again(&mut self.dice) {}
    }

    /// Blocks of the leader's disk become bad, and it knows that.
    pub(crate) fn spoil_primary(&mut self, blocks: std::ops::Range<u64>) {
        for block in blocks.filter(|block| *block < self.primary.size / 4096) {
            self.primary.sim.0.borrow_mut().now.spoil(block, Seen::Old);
            self.primary.lost.insert(ByteRange::of_blocks(block..block + 1));
        }
    }

    /// The leader gets what its disk has lost from elsewhere.
    pub(crate) fn restore_primary(&mut self) {
        if self.primary.log.is_none() {
            return;
        }
        let blocks = self.state_at(self.recorded, (LogPosition::START, Vec::new()));
        for block in std::mem::take(&mut self.primary.lost).iter().flat_map(ByteRange::blocks) {
            let value = blocks[usize::try_from(block).unwrap()];
            let data = if value == 0 { vec![0; 4096].into() } else { payload(value, 1) };
            let written = [Step::DiskWrite(block * 4096, data.to_vec()), Step::DiskFlush];
            written.into_iter().for_each(|step| self.primary.sim.step(step).unwrap());
        }
    }

    /// The blocks that the list of a follower has.
    pub(crate) fn listed(&self, follower: usize) -> Vec<u64> {
        let sim = self.secondaries[follower].sim.0.borrow();
        sim.now.kept.all().iter().flat_map(ByteRange::blocks).collect()
    }

    /// A follower looks at all of its disk.
    pub(crate) fn look(&mut self, follower: usize) {
        if let Some(node) = self.secondaries[follower].follower.as_mut() {
            node.look_at(ByteRange::new(0, SIZE));
        }
    }

    /// Nothing fails any more: in bounded time all are equal.
    pub(crate) fn heal(&mut self) {
        self.damage = false;
        self.may_connect = true;
        self.start_primary();
        self.restore_primary();
        for follower in 0..self.secondaries.len() {
            self.secondaries[follower].sim.0.borrow_mut().fail_at = usize::MAX;
            self.start_secondary(follower);
            self.hears(follower);
            let node = self.secondaries[follower].follower.as_mut().unwrap();
            node.set_switches(false, false).unwrap();
            node.set_delay(0);
            node.look_at(ByteRange::new(0, SIZE));
            node.heal_again();
        }
        self.primary.log.as_mut().unwrap().flush().unwrap();
        self.record();
        let until = self.now + 150_000;
        while !self.all_equal() || !self.all_good() {
            self.step(10);
            self.check();
            if self.now > until {
                let nodes = self.secondaries.iter();
                let states: Vec<_> = nodes.map(|s| s.follower.as_ref().map(Node::status)).collect();
                let led = self.primary.log.as_ref().map(|log| log.journal().status());
                panic!("not equal in a minute: {led:?} {states:#?}");
            }
        }
        self.check();
    }
}

fn payload(value: u64, blocks: u64) -> Bytes {
    // Half of the blocks' bytes are not zero, so that they are not all packed to nothing.
    let mut block: Vec<u8> = value.to_le_bytes().repeat(8);
    block.extend((0..4032_u64).map(|i| (i.wrapping_mul(value | 1) >> 3).to_le_bytes()[0] | 1));
    block.repeat(usize::try_from(blocks).unwrap()).into()
}

/// The value of each block of a disk; that of a block that is torn is none that was ever written.
fn contents(sim: &Sim) -> Vec<u64> {
    let all = sim.0.borrow().now.disk.seen.clone();
    let value = |block: &[u8]| {
        let value = u64::from_le_bytes(*block.first_chunk().unwrap());
        let whole = if value == 0 {
            block.iter().all(|byte| *byte == 0)
        } else {
            block == &payload(value, 1)[..]
        };
        if whole { value } else { u64::MAX }
    };
    all.chunks(4096).map(value).collect()
}

fn frame(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    let payload = encode(message, &mut bytes);
    bytes.extend_from_slice(&payload);
    bytes
}

fn parse(bytes: &[u8]) -> Message {
    let (head, rest) = bytes.split_first_chunk().unwrap();
    let header = parse_header(head).unwrap();
    let (body, payload) = rest.split_at(header.body_len());
    decode(&header, body, Bytes::copy_from_slice(payload)).unwrap()
}

/// Rot between the leader's disk and the follower: what no transport sees.
fn damage(answer: &mut Answer, dice: &mut Dice) {
    let bytes = match answer {
        Answer::Piece(piece) => &mut piece.bytes,
        Answer::Block(block) => &mut block.bytes,
        _ => return,
    };
    if !bytes.is_empty() {
        let mut rotten = bytes.to_vec();
        let at = usize::try_from(dice.below(rotten.len() as u64)).unwrap();
        rotten[at] ^= 0x40;
        *bytes = rotten.into();
    }
}
