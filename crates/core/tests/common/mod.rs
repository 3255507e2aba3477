//! A few cores wired to each other with disks and a network that do as a test says: for tests that
//! look at one behaviour at a time. The simulator does the rest.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use bytes::Bytes;
use holdfast_core::{
    Action, Attachment, Command, CommandId, Config, Core, DiskOpId, DiskOutcome, Event, IoFailure,
    JournalReadId, LinkId, LoggedWrite, MetaOpId, Notice, Options, PeerConfig, Refusal, RequestId,
    RequestKind, Snapshot,
};
use holdfast_format::{
    DiskFlags, MetaImage, MetaLayout, Placement, ReadAt, Superblock, al_blocks_for, format_blocks,
};
use holdfast_units::{ByteRange, GenerationId, LogPosition, Millis, NodeId, PeerSet, ResourceId};
use holdfast_wire::Message;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const SIZE: u64 = 16 << 20;
pub const RESOURCE: ResourceId = ResourceId([7; 16]);

pub fn n(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

/// Which operations of a disk wait.
pub type HoldOp = fn(&Action) -> bool;

/// A node: its core while it runs, and what outlives it.
pub struct Node {
    pub core: Option<Core>,
    pub diskless: bool,
    pub data: BTreeMap<u64, u8>,
    /// The writes of its disk, when these go to a journal first.
    pub journal: Option<Vec<LoggedWrite>>,
    /// All before it is durable there.
    pub barrier: LogPosition,
    /// Reads of the journal are not answered.
    pub hold_journal: Option<(JournalReadId, LogPosition)>,
    pub holds_journal: bool,
    /// What a loss of power leaves of `data`.
    pub durable: BTreeMap<u64, u8>,
    /// What flushes under way make durable: the data that were there when they began.
    flushing: BTreeMap<DiskOpId, BTreeMap<u64, u8>>,
    flushed: DiskOpId,
    pub meta: Vec<u8>,
    pub done: BTreeMap<u64, Result<Option<Bytes>, IoFailure>>,
    pub commands: BTreeMap<u64, Result<(), Refusal>>,
    pub notices: Vec<Notice>,
    pub wanted: PeerSet,
    pub closed: bool,
    /// No disk operation is done.
    pub hold_disk: bool,
    /// Disk operations for which this is true are not done; others overtake them.
    pub hold_op: Option<HoldOp>,
    pub held: Vec<(DiskOpId, Action)>,
    /// Writes of metadata do not end.
    pub hold_meta: bool,
    pub held_meta: Vec<MetaOpId>,
    pub fail_flush: bool,
    /// Blocks that cannot be read until they are written, and those that cannot be stored again either.
    pub bad: BTreeSet<u64>,
    /// Bad ones of which the driver has the data.
    pub kept: BTreeSet<u64>,
    pub broken: BTreeSet<u64>,
    /// Bad ones that can be read, and hold something else.
    pub rotten: BTreeSet<u64>,
    pub boot: [u8; 16],
    /// Dies while this metadata write is being made, counted from 0; how much of it is on disk.
    pub crash_at: Option<(u64, Torn)>,
    pub meta_writes: u64,
    pub crashed: bool,
    starts: u64,
}

impl Node {
    /// Writes become records, when there is a journal. The position.
    fn log(&mut self, action: &Action) -> Option<LogPosition> {
        let (range, data) = match action {
            Action::DiskWrite { range, data, .. } => (*range, Some(data.clone())),
            Action::DiskZeroes { range, .. } => (*range, None),
            _ => return None,
        };
        let barrier = self.barrier;
        let journal = self.journal.as_mut()?;
        let position = journal.last().map_or(LogPosition(1000), |last| last.next.after(100));
        let next = position.after(range.len);
        journal.push(LoggedWrite { position, next, barrier, range, data });
        Some(position)
    }
}

/// What is left of a metadata write that a crash cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    Nothing,
    /// The first half of the blocks.
    FirstBlocks,
    /// The last half of the blocks.
    LastBlocks,
    /// The first sectors of every block.
    Sectors,
    /// All of it, but nobody was told.
    All,
}

/// Says something of a message from one node to another.
pub type OfMessage = Box<dyn Fn(u8, u8, &Message) -> bool>;

/// The cluster.
pub struct World {
    pub nodes: Vec<Node>,
    pub now: u64,
    links: BTreeMap<(u8, u8), LinkId>,
    cut: Vec<(u8, u8)>,
    wire: VecDeque<(u8, u8, LinkId, Message)>,
    /// What nodes want done, in order.
    todo: VecDeque<(u8, Action)>,
    acting: bool,
    next: u64,
    pub log: Vec<(u8, u8, Message)>,
    /// Messages for which this is true are lost with their connection.
    pub cut_at: Option<OfMessage>,
    /// Messages for which this is true stay under way, and all behind them on their connection.
    pub hold: Option<OfMessage>,
    pub size: u64,
    pub al_extents: u16,
}

pub fn fresh_meta(node: u8, first: bool, size: u64, al_extents: u16) -> Vec<u8> {
    let layout = MetaLayout::new(
        size,
        al_extents,
        al_blocks_for(al_extents),
        4,
        Placement::External { base: 0 },
    )
    .unwrap();
    let mut superblock = Superblock::new(RESOURCE, n(node), [1; 16], layout);
    superblock.flags = DiskFlags::CLEAN;
    if first {
        superblock.current = GenerationId(0x1000);
        superblock.flags =
            DiskFlags::CLEAN.with(DiskFlags::CONSISTENT).with(DiskFlags::WAS_UPTODATE);
    }
    let mut bytes = vec![0; usize::try_from(layout.area().end()).unwrap()];
    for (offset, block) in format_blocks(&mut superblock) {
        put(&mut bytes, offset, &block[..]);
    }
    bytes
}

fn tear(meta: &mut [u8], blocks: &[(u64, Box<[u8; 4096]>)], torn: Torn) {
    let half = blocks.len().div_ceil(2);
    for (i, (offset, block)) in blocks.iter().enumerate() {
        match torn {
            Torn::FirstBlocks if i < half => put(meta, *offset, &block[..]),
            Torn::LastBlocks if i >= half => put(meta, *offset, &block[..]),
            Torn::Sectors => put(meta, *offset, &block[..512]),
            Torn::All => put(meta, *offset, &block[..]),
            _ => {}
        }
    }
}

fn put(bytes: &mut [u8], offset: u64, block: &[u8]) {
    let at = usize::try_from(offset).unwrap();
    bytes[at..at + block.len()].copy_from_slice(block);
}

impl World {
    /// `count` nodes of which the first has the data.
    pub fn new(count: u8) -> Self {
        Self::with(count, SIZE, 67)
    }

    pub fn with(count: u8, size: u64, al_extents: u16) -> Self {
        Self::build(count, size, al_extents, None)
    }

    /// `count` nodes of which the first has the data and the last one has no disk.
    pub fn with_diskless(count: u8) -> Self {
        Self::build(count, SIZE, 67, Some(count - 1))
    }

    pub fn build(count: u8, size: u64, al_extents: u16, diskless: Option<u8>) -> Self {
        let nodes = (0..count)
            .map(|i| Node {
                core: None,
                diskless: diskless == Some(i),
                data: BTreeMap::new(),
                journal: None,
                barrier: LogPosition::START,
                hold_journal: None,
                holds_journal: false,
                durable: BTreeMap::new(),
                flushing: BTreeMap::new(),
                flushed: DiskOpId(0),
                meta: fresh_meta(i, i == 0, size, al_extents),
                done: BTreeMap::new(),
                commands: BTreeMap::new(),
                notices: Vec::new(),
                wanted: PeerSet::EMPTY,
                closed: false,
                hold_disk: false,
                hold_op: None,
                held: Vec::new(),
                hold_meta: false,
                held_meta: Vec::new(),
                fail_flush: false,
                bad: BTreeSet::new(),
                kept: BTreeSet::new(),
                broken: BTreeSet::new(),
                rotten: BTreeSet::new(),
                boot: [1; 16],
                crash_at: None,
                meta_writes: 0,
                crashed: false,
                starts: 0,
            })
            .collect();
        let mut world = Self {
            nodes,
            now: 1,
            links: BTreeMap::new(),
            cut: Vec::new(),
            wire: VecDeque::new(),
            todo: VecDeque::new(),
            acting: false,
            next: 0,
            log: Vec::new(),
            cut_at: None,
            hold: None,
            size,
            al_extents,
        };
        for i in 0..count {
            world.start(i);
        }
        world
    }

    pub fn start(&mut self, i: u8) {
        let count = u8::try_from(self.nodes.len()).unwrap();
        let peers: Vec<PeerConfig> = (0..count)
            .filter(|p| *p != i)
            .map(|p| {
                let diskless = self.nodes[usize::from(p)].diskless;
                PeerConfig { node: n(p), diskless, standalone: false }
            })
            .collect();
        let node = &mut self.nodes[usize::from(i)];
        node.starts += 1;
        node.wanted = PeerSet::EMPTY;
        node.closed = false;
        node.crashed = false;
        node.held.clear();
        let (boot, starts, diskless) = (node.boot, node.starts, node.diskless);
        let found = (!diskless).then(|| self.on_disk(i));
        let config = Config {
            sync_pause: holdfast_wire::SyncPause::No,
            node: n(i),
            resource: RESOURCE,
            size: found.as_ref().map_or(self.size, |f| f.superblock.layout.device_size()),
            boot,
            peers,
            options: Options::default(),
            seed: u64::from(i) * 1_000_003 + starts * 7919,
        };
        self.nodes[usize::from(i)].core = Some(Core::new(config));
        self.event(i, found.map_or(Event::Tick, |found| Event::Attach(Box::new(found))));
        self.run();
    }

    /// Makes the metadata ready for a larger device, and tells the core.
    pub fn grow(&mut self, i: u8, size: u64) -> Option<Result<(), Refusal>> {
        self.make_ready(i, size);
        self.command(i, Command::Grow { size, disk_ready: true })
    }

    /// Makes the metadata ready for a larger device.
    pub fn make_ready(&mut self, i: u8, size: u64) {
        let node = &mut self.nodes[usize::from(i)];
        if node.diskless {
            return;
        }
        let placement = Placement::External { base: 0 };
        let (extents, blocks) = (self.al_extents, al_blocks_for(self.al_extents));
        let layout = MetaLayout::new(size, extents, blocks, 4, placement).unwrap();
        let end = usize::try_from(layout.area().end()).unwrap();
        node.meta.resize(end.max(node.meta.len()), 0);
    }

    /// What a node's metadata say.
    pub fn on_disk(&self, i: u8) -> Attachment {
        let count = u8::try_from(self.nodes.len()).unwrap();
        let members: PeerSet = (0..count).filter(|p| *p != i).map(n).collect();
        let meta = &self.nodes[usize::from(i)].meta as &dyn ReadAt;
        let image = MetaImage::load(meta, Placement::External { base: 0 }).unwrap();
        Attachment::read(&image, members)
    }

    /// How many of these blocks a node's bitmap on disk says a member to lack.
    pub fn lacking_on_disk(&self, i: u8, member: u8, blocks: std::ops::Range<u64>) -> u64 {
        let found = self.on_disk(i).bitmaps;
        let bitmap = found.into_iter().find(|(node, _)| *node == n(member)).unwrap().1;
        bitmap.count_range(blocks)
    }

    /// kill -9: what was in flight is gone, what was written stays.
    pub fn kill(&mut self, i: u8) {
        self.drop_core(i);
        self.run();
    }

    /// The power fails: what was not flushed is gone too, and the next start is another boot.
    pub fn lose_power(&mut self, i: u8) {
        self.drop_core(i);
        let node = &mut self.nodes[usize::from(i)];
        node.data = node.durable.clone();
        node.boot[0] += 1;
        self.run();
    }

    /// The same, but another node does not notice yet that its connection is dead.
    pub fn lose_power_unseen(&mut self, i: u8, by: u8) {
        let pair = (i.min(by), i.max(by));
        let dead = self.links.remove(&pair);
        self.cut.push(pair);
        self.lose_power(i);
        self.wire.retain(|(_, _, link, _)| Some(*link) != dead);
    }

    /// A node notices that the connection to another one is dead.
    pub fn notice_loss(&mut self, i: u8, of: u8, link: LinkId) {
        self.event(i, Event::PeerDown(n(of), link));
        self.heal_between(i, of);
    }

    fn drop_core(&mut self, i: u8) {
        self.nodes[usize::from(i)].core = None;
        self.nodes[usize::from(i)].held.clear();
        self.nodes[usize::from(i)].held_meta.clear();
        self.nodes[usize::from(i)].flushing.clear();
        self.nodes[usize::from(i)].flushed = DiskOpId(0);
        self.todo.retain(|(node, _)| *node != i);
        self.wire.retain(|(from, to, ..)| *from != i && *to != i);
        let gone: Vec<(u8, u8)> =
            self.links.keys().copied().filter(|(a, b)| *a == i || *b == i).collect();
        for (a, b) in gone {
            self.drop_link(a, b);
        }
    }

    fn drop_link(&mut self, a: u8, b: u8) {
        let Some(link) = self.links.remove(&(a.min(b), a.max(b))) else { return };
        self.wire.retain(|(_, _, l, _)| *l != link);
        for (x, y) in [(a, b), (b, a)] {
            if self.nodes[usize::from(x)].core.is_some() {
                self.event(x, Event::PeerDown(n(y), link));
            }
        }
    }

    pub fn cut(&mut self, a: u8, b: u8) {
        self.cut.push((a.min(b), a.max(b)));
        self.drop_link(a, b);
        self.run();
    }

    /// The connection between two nodes.
    pub fn link(&self, a: u8, b: u8) -> Option<LinkId> {
        self.links.get(&(a.min(b), a.max(b))).copied()
    }

    /// What a node that is not as it should be sends; whether the connection stands afterwards.
    pub fn forge(&mut self, from: u8, to: u8, message: Message) -> bool {
        let Some(link) = self.link(from, to) else { return false };
        self.event(to, Event::PeerMessage(n(from), link, message));
        self.link(from, to) == Some(link)
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.run();
    }

    pub fn heal_between(&mut self, a: u8, b: u8) {
        self.cut.retain(|pair| *pair != (a.min(b), a.max(b)));
        self.run();
    }

    pub fn event(&mut self, i: u8, event: Event) {
        let now = Millis(self.now);
        let mut actions = Vec::new();
        if let Some(core) = self.nodes[usize::from(i)].core.as_mut() {
            core.on(now, event, &mut actions);
        }
        self.todo.extend(actions.into_iter().map(|action| (i, action)));
        if std::mem::replace(&mut self.acting, true) {
            return;
        }
        while let Some((i, action)) = self.todo.pop_front() {
            self.act(i, action);
            if self.nodes[usize::from(i)].crashed && self.nodes[usize::from(i)].core.is_some() {
                self.drop_core(i);
            }
        }
        self.acting = false;
    }

    fn act(&mut self, i: u8, action: Action) {
        let node = &mut self.nodes[usize::from(i)];
        match action {
            Action::Complete(id, result) => {
                node.done.insert(id.0, result);
            }
            Action::DiskRead { op, .. }
            | Action::DiskWrite { op, .. }
            | Action::DiskZeroes { op, .. }
            | Action::DiskRepair { op, .. }
            | Action::DiskMarkLost { op, .. }
            | Action::DiskFlush { op } => {
                if matches!(action, Action::DiskFlush { .. }) {
                    node.flushing.insert(op, node.data.clone());
                }
                node.held.push((op, action));
            }
            Action::MetaWrite { blocks, .. }
                if node.crash_at.is_some_and(|(at, _)| at == node.meta_writes) =>
            {
                let torn = node.crash_at.take().unwrap().1;
                tear(&mut node.meta, &blocks, torn);
                node.crashed = true;
            }
            Action::MetaWrite { op, blocks } => {
                node.meta_writes += 1;
                for (offset, block) in blocks {
                    put(&mut node.meta, offset, &block[..]);
                }
                if node.hold_meta {
                    node.held_meta.push(op);
                } else {
                    self.event(i, Event::MetaDone(op, Ok(())));
                }
            }
            Action::ReadJournal { id, from, .. } if node.holds_journal => {
                node.hold_journal = Some((id, from));
            }
            Action::ReadJournal { id, from, .. } => self.read_journal(i, id, from),
            Action::CloseDisk => node.closed = true,
            Action::Send(to, link, message) => {
                let to = to.number();
                if self.links.get(&(i.min(to), i.max(to))) == Some(&link) {
                    if self.cut_at.as_ref().is_some_and(|cut| cut(i, to, &message)) {
                        self.cut_at = None;
                        self.cut.push((i.min(to), i.max(to)));
                        // The connection breaks behind what was sent before.
                        while self.deliver() {}
                        self.drop_link(i, to);
                        return;
                    }
                    self.log.push((i, to, message.clone()));
                    self.wire.push_back((i, to, link, message));
                }
            }
            Action::Connect(peer) => node.wanted.insert(peer),
            Action::Disconnect(peer, link) => {
                node.wanted.remove(peer);
                if link.is_some() {
                    while self.deliver() {}
                    self.drop_link(i, peer.number());
                }
            }
            Action::Reset(peer, _) => self.drop_link(i, peer.number()),
            Action::CommandDone(id, result) => {
                node.commands.insert(id.0, result);
            }
            Action::Notice(notice) => node.notices.push(notice),
            Action::StateChanged | Action::Stopped | Action::DiskHung => {}
        }
    }

    fn read_journal(&mut self, i: u8, id: JournalReadId, from: LogPosition) {
        let journal = self.nodes[usize::from(i)].journal.iter().flatten();
        let found: Vec<LoggedWrite> = journal.filter(|w| w.position >= from).cloned().collect();
        let next = found.last().map(|write| write.next);
        let found = next.map(|next| (found, next)).ok_or(IoFailure::NoData);
        self.event(i, Event::JournalRead(id, found));
    }

    /// Goes on with a read of the journal that waits.
    pub fn go_on_reading(&mut self, i: u8) {
        self.nodes[usize::from(i)].holds_journal = false;
        if let Some((id, from)) = self.nodes[usize::from(i)].hold_journal.take() {
            self.read_journal(i, id, from);
        }
        self.run();
    }

    fn disk(&mut self, i: u8) -> bool {
        let node = &self.nodes[usize::from(i)];
        if node.hold_disk {
            return false;
        }
        let free = |a: &Action| node.hold_op.is_none_or(|hold| !hold(a));
        let Some(at) = node.held.iter().position(|(_, action)| free(action)) else { return false };
        self.disk_op(i, at);
        true
    }

    /// Carries out one operation that waits at a disk, held or not.
    pub fn disk_op(&mut self, i: u8, at: usize) {
        let node = &mut self.nodes[usize::from(i)];
        let (op, action) = node.held.remove(at);
        let covered = node.flushing.remove(&op);
        let blocks = |r: ByteRange| r.blocks();
        let position = node.log(&action);
        let done = || Ok(position.map_or(DiskOutcome::Done, DiskOutcome::Logged));
        let result = match action {
            Action::DiskRead { range, holes: true, .. }
                if node.data.range(blocks(range)).next().is_none()
                    && node.bad.range(blocks(range)).next().is_none() =>
            {
                Ok(DiskOutcome::Zeroes)
            }
            Action::DiskRead { range, .. } => {
                let range = ByteRange::new(range.offset, range.len.min(1 << 20));
                let mut data = Vec::new();
                for block in blocks(range) {
                    data.extend([node.data.get(&block).copied().unwrap_or(0); 4096]);
                }
                let bad = node.bad.range(blocks(range)).copied();
                let (kept, bad): (Vec<u64>, Vec<u64>) = bad.partition(|b| node.kept.contains(b));
                let ranges = |blocks: Vec<u64>| -> Vec<ByteRange> {
                    blocks.into_iter().map(|b| ByteRange::of_blocks(b..b + 1)).collect()
                };
                let wrong = bad.iter().copied().filter(|b| node.rotten.contains(b)).collect();
                let (data, bad, salvaged) = (data.into(), ranges(bad), ranges(kept));
                let wrong = ranges(wrong);
                Ok(match (bad.is_empty(), salvaged.is_empty()) {
                    (true, true) => DiskOutcome::Data(data),
                    (false, true) => DiskOutcome::Partial { data, bad, wrong },
                    (_, false) => DiskOutcome::Salvaged { data, bad, salvaged, wrong },
                })
            }
            Action::DiskRepair { range, .. }
                if node.broken.range(blocks(range)).next().is_some() =>
            {
                Err(IoFailure::Disk)
            }
            Action::DiskMarkLost { .. } => Ok(DiskOutcome::Done),
            Action::DiskWrite { range, data, .. } | Action::DiskRepair { range, data, .. } => {
                node.bad.retain(|block| !blocks(range).contains(block));
                for (k, block) in blocks(range).enumerate() {
                    match data[k * 4096] {
                        0 => node.data.remove(&block),
                        value => node.data.insert(block, value),
                    };
                }
                done()
            }
            Action::DiskZeroes { range, .. } => {
                node.bad.retain(|block| !blocks(range).contains(block));
                let there: Vec<u64> = node.data.range(blocks(range)).map(|(b, _)| *b).collect();
                for block in there {
                    node.data.remove(&block);
                }
                done()
            }
            _ if node.fail_flush => Err(IoFailure::Disk),
            _ => {
                // One that began later may have ended before.
                if op > node.flushed {
                    node.flushed = op;
                    node.durable = covered.expect("it is a flush");
                    let last = node.journal.iter().flatten().last();
                    node.barrier = last.map_or(node.barrier, |write| write.next);
                }
                Ok(DiskOutcome::Done)
            }
        };
        self.event(i, Event::DiskDone(op, result));
    }

    fn deliver(&mut self) -> bool {
        let mut stopped = BTreeSet::new();
        let free = |(from, to, _, message): &(u8, u8, LinkId, Message)| {
            if self.hold.as_ref().is_some_and(|hold| hold(*from, *to, message)) {
                stopped.insert((*from, *to));
            }
            !stopped.contains(&(*from, *to))
        };
        let Some(at) = self.wire.iter().position(free) else { return false };
        let Some((from, to, link, message)) = self.wire.remove(at) else { return false };
        self.event(to, Event::PeerMessage(n(from), link, message));
        true
    }

    fn connect(&mut self) -> bool {
        let count = u8::try_from(self.nodes.len()).unwrap();
        for a in 0..count {
            for b in a + 1..count {
                let wants = |x: u8, y: u8| {
                    let node = &self.nodes[usize::from(x)];
                    node.core.is_some() && node.wanted.contains(n(y))
                };
                if wants(a, b)
                    && wants(b, a)
                    && !self.links.contains_key(&(a, b))
                    && !self.cut.contains(&(a, b))
                {
                    self.next += 1;
                    let link = LinkId(self.next);
                    self.links.insert((a, b), link);
                    self.event(a, Event::PeerUp(n(b), link));
                    self.event(b, Event::PeerUp(n(a), link));
                    return true;
                }
            }
        }
        false
    }

    /// The writes of metadata that were held end now.
    pub fn release_meta(&mut self, i: u8) {
        let node = &mut self.nodes[usize::from(i)];
        node.hold_meta = false;
        for op in std::mem::take(&mut node.held_meta) {
            self.event(i, Event::MetaDone(op, Ok(())));
        }
        self.run();
    }

    /// Until nothing moves any more.
    pub fn run(&mut self) {
        for _ in 0..1_000_000 {
            let moved = self.deliver()
                || (0..u8::try_from(self.nodes.len()).unwrap()).any(|i| self.disk(i))
                || self.connect();
            if !moved {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.log.iter().rev().take(20).collect::<Vec<_>>());
    }

    /// Lets time pass.
    pub fn pass(&mut self, milliseconds: u64) {
        self.now += milliseconds;
        for i in 0..u8::try_from(self.nodes.len()).unwrap() {
            self.event(i, Event::Tick);
        }
        self.run();
    }

    pub fn request(&mut self, i: u8, kind: RequestKind) -> u64 {
        self.next += 1;
        let id = self.next;
        self.event(i, Event::Request(RequestId(id), kind));
        self.run();
        id
    }

    pub fn write(&mut self, i: u8, block: u64, value: u8) -> u64 {
        let data = Bytes::from(vec![value; 4096]);
        let range = ByteRange::new(block * 4096, 4096);
        self.request(i, RequestKind::Write { range, data, fua: false })
    }

    pub fn read(&mut self, i: u8, block: u64) -> Result<u8, IoFailure> {
        let id = self.request(i, RequestKind::Read(ByteRange::new(block * 4096, 4096)));
        self.result(i, id).expect("answered").map(|data| data.unwrap()[0])
    }

    pub fn result(&self, i: u8, id: u64) -> Option<Result<Option<Bytes>, IoFailure>> {
        self.nodes[usize::from(i)].done.get(&id).cloned()
    }

    pub fn ok(&self, i: u8, id: u64) -> bool {
        matches!(self.result(i, id), Some(Ok(_)))
    }

    pub fn command(&mut self, i: u8, command: Command) -> Option<Result<(), Refusal>> {
        self.next += 1;
        let id = self.next;
        self.event(i, Event::Command(CommandId(id), command));
        self.run();
        self.nodes[usize::from(i)].commands.get(&id).copied()
    }

    /// A command with a number of its own, whose end is not waited for.
    pub fn next_command(&mut self, i: u8, id: u64, command: Command) {
        self.event(i, Event::Command(CommandId(id), command));
        self.run();
    }

    /// So many bytes are asked for ahead when this node is target.
    pub fn limit_resync_window(&mut self, i: u8, resync_window: u64) {
        let options = Options { resync_window, ..Options::default() };
        assert_eq!(self.command(i, Command::Configure(options)), Some(Ok(())));
    }

    pub fn promote(&mut self, i: u8) {
        assert_eq!(self.command(i, Command::Promote { force: false }), Some(Ok(())), "promote {i}");
    }

    pub fn snapshot(&self, i: u8) -> Snapshot {
        self.nodes[usize::from(i)].core.as_ref().expect("it runs").snapshot()
    }

    pub fn peer(&self, i: u8, peer: u8) -> holdfast_core::PeerSnapshot {
        self.snapshot(i).peers.into_iter().find(|p| p.node == n(peer)).unwrap()
    }

    /// Payload bytes of resync data since the log was cleared.
    pub fn resynced(&self) -> u64 {
        self.log
            .iter()
            .map(|(_, _, m)| match m {
                Message::ResyncData { payload, .. } => payload.len() as u64,
                _ => 0,
            })
            .sum()
    }
}
