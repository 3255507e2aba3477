//! The driver of each node: gives events to the core and carries its actions out.

use crate::checks;
use crate::data_disk::Work;
use crate::meta_disk::PLACEMENT;
use crate::net::Close;
use crate::node::node_id;
use crate::world::{Happening, World, note};
use bytes::Bytes;
use holdfast_core::{
    Action, Attachment, Command, CommandId, Core, DiskOpId, DiskOutcome, Event, IoFailure,
    JournalReadId, MetaOpId, Notice, RequestId,
};
use holdfast_format::MetaImage;
use holdfast_units::{ByteRange, LogPosition, NodeId, PeerSet};
use holdfast_wire::Message;

/// What is promised of a disk that is caught up.
pub(crate) const CAUGHT_UP: &str = "who is caught up is what a crash of its source could have left";

/// What is promised of comparisons.
pub(crate) const NO_DIFFERENCE: &str = "a comparison finds what differs and nothing else";

/// Where a node got what it stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Resync,
    Journal,
    Other,
}

/// How a node goes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crash {
    /// The daemon is killed.
    Kill,
    /// The machine loses power.
    Power,
}

/// A message in few words.
pub(crate) fn brief(message: &Message) -> String {
    let text = match message {
        Message::Replay { id, range, zeroes, .. } => format!("Replay {id} {range} zeroes {zeroes}"),
        Message::Write { seq, range, missing, settled, .. } => {
            format!("Write {seq} {range} missing {missing:?} settled {settled}")
        }
        Message::ResyncData { asked, range, zeroes, .. } => {
            format!("ResyncData {asked} {range} zeroes {zeroes}")
        }
        Message::ReadReply { id, result, .. } => format!("ReadReply {id} {result:?}"),
        Message::State(report) => format!("State {report:?}"),
        Message::Verdict { verdict, state, .. } => format!("Verdict {verdict:?} {state:?}"),
        other => format!("{other:?}"),
    };
    text.replace("0000000000000000, ", "").chars().take(1200).collect()
}

impl World {
    /// Starts the node's daemon, with its disk if it has one.
    pub(crate) fn start(&mut self, n: usize) {
        let seed = self.rng.next();
        let plan = &self.plan;
        let node = &mut self.nodes[n];
        let agreed = if self.growing { plan.size } else { plan.size_at_start };
        let on_disk = node.meta.decode().filter(|_| !node.diskless);
        let size = on_disk.map_or(agreed, |found| found.superblock.layout.device_size());
        let config = node.config(&plan.diskless, size, &plan.options, seed);
        node.life += 1;
        let mut core = Core::new(config);
        self.settings.plant(&mut core);
        node.core = Some(core);
        node.clock_ahead = self.rng.below(100_000);
        node.failed = false;
        let diskless = node.diskless;
        note!(self, "n{n} starts, boot {}", self.nodes[n].boot);
        let event = if diskless { Event::Tick } else { self.attach(n) };
        self.nodes[n].snap = self.nodes[n].core.as_ref().map(Core::snapshot);
        self.feed(n, event);
        self.grow_later(n);
    }

    /// All agree on the size in the end; each node grows when it comes to it.
    pub(crate) fn agree_to_grow(&mut self) {
        if !std::mem::replace(&mut self.growing, true) {
            (0..self.nodes.len()).for_each(|n| self.grow_later(n));
        }
    }

    fn grow_later(&mut self, n: usize) {
        let node = &self.nodes[n];
        let behind = node.snap.as_ref().is_some_and(|snap| snap.own_size < self.plan.size);
        if self.growing && node.is_up() && behind {
            let life = node.life;
            let typical = self.rng.pick(&[100, 5_000, 100_000]);
            let at = self.now + self.rng.delay(typical);
            self.queue.add(at, Happening::Grow { node: n, life });
        }
    }

    pub(crate) fn grow(&mut self, n: usize) {
        let size = self.plan.size;
        self.nodes[n].meta.make_room(size);
        self.command(n, Command::Grow { size, disk_ready: true });
    }

    fn attach(&mut self, n: usize) -> Event {
        let members: PeerSet = (0..self.nodes.len()).filter(|m| *m != n).map(node_id).collect();
        let node = &mut self.nodes[n];
        match MetaImage::load(node.meta.bytes(), PLACEMENT) {
            Ok(image) => {
                let attachment = Attachment::read(&image, members);
                node.disk_open = true;
                node.data.open();
                Event::Attach(Box::new(attachment))
            }
            Err(error) => {
                self.fail("metadata", format!("n{n} cannot load its metadata: {error}"));
                Event::Tick
            }
        }
    }

    /// Gives an event to the node's core and does what it wants.
    pub(crate) fn feed(&mut self, n: usize, event: Event) {
        let clock = self.clock(n);
        let source = match event {
            Event::PeerMessage(_, _, Message::ResyncData { .. }) => Source::Resync,
            Event::PeerMessage(_, _, Message::Replay { .. }) => Source::Journal,
            _ => Source::Other,
        };
        let Some(core) = self.nodes[n].core.as_mut() else { return };
        let mut actions = std::mem::take(&mut self.actions);
        core.on(clock, event, &mut actions);
        self.nodes[n].snap_before = None;
        let Some(core) = self.nodes[n].core.as_ref() else { return };
        self.fingerprint.add(n as u64 | (actions.len() as u64) << 8);
        if actions.contains(&Action::StateChanged) {
            self.last_change = self.now;
            let snapshot = core.snapshot();
            checks::states::changed(self, n, &snapshot);
        }
        for action in actions.drain(..) {
            self.perform(n, action, source);
        }
        self.actions = actions;
        if self.nodes[n].is_up() {
            self.plan_tick(n);
        }
    }

    fn perform(&mut self, n: usize, action: Action, resync: Source) {
        match action {
            Action::Complete(id, result) => {
                self.fingerprint.add(id.0 << 1 | u64::from(result.is_ok()));
                self.completed(n, id, result);
            }
            Action::DiskRead { op, range, holes } => {
                self.disk_start(n, op, Work::Read { range, holes }, resync);
            }
            Action::DiskWrite { op, range, data, fua } => {
                self.disk_start(n, op, Work::Write { range, data, fua }, resync);
            }
            Action::DiskZeroes { op, range, fua } => {
                self.disk_start(n, op, Work::Zeroes { range, fua }, resync);
            }
            Action::DiskFlush { op } => self.disk_start(n, op, Work::Flush, resync),
            Action::DiskRepair { op, range, data, salvaged } => {
                self.disk_start(n, op, Work::Repair { range, data, salvaged }, Source::Other);
            }
            Action::DiskMarkLost { op, range, unread } => {
                self.disk_start(n, op, Work::MarkLost { range, unread }, Source::Other);
            }
            Action::ReadJournal { id, from, .. } => {
                let life = self.nodes[n].life;
                let at = self.now + self.rng.delay(self.plan.disk_us);
                self.queue.add(at, Happening::JournalRead { node: n, life, id, from });
            }
            Action::MetaWrite { op, blocks } => self.meta_start(n, op, blocks),
            Action::DiskHung => note!(self, "n{n} waits for its disk no more"),
            Action::CloseDisk => {
                note!(self, "n{n} gives its disk up");
                self.nodes[n].disk_open = false;
            }
            Action::Send(peer, link, message) => self.send(n, peer, link, message),
            Action::Connect(peer) => {
                self.nodes[n].wants.insert(peer.index());
                self.nodes[n].standalone.remove(&peer.index());
                self.want_dial(n, peer.index());
            }
            Action::Disconnect(peer, link) => {
                note!(self, "n{n} stands alone towards {peer:?}");
                self.nodes[n].wants.remove(&peer.index());
                if let Some(link) = link {
                    self.net.close(n, link, Close::Orderly, self.now, &mut self.rng);
                }
            }
            Action::Reset(peer, link) => {
                note!(self, "n{n} resets {link:?} to {peer:?}");
                self.net.close(n, link, Close::Abrupt, self.now, &mut self.rng);
                self.want_dial(n, peer.index());
            }
            Action::CommandDone(id, result) => {
                if let Some((_, command)) = self.commands.remove(&id) {
                    note!(self, "n{n} {command:?}: {result:?}");
                    self.fingerprint.add(u64::from(result.is_ok()));
                    self.command_done(n, &command, result.is_ok());
                }
            }
            Action::StateChanged => {}
            Action::Notice(notice) => self.noticed(n, &notice),
            Action::Stopped => self.stopped(n),
        }
    }

    fn noticed(&mut self, n: usize, notice: &Notice) {
        note!(self, "n{n} says {notice:?}");
        match notice {
            Notice::SplitBrain(_) => self.stats.split_brains += 1,
            Notice::ResyncFinished(_, true) => self.stats.resyncs += 1,
            Notice::ProtocolError(peer, what) => {
                self.fail("protocol", format!("n{n} takes {peer:?} to break the protocol: {what}"));
            }
            Notice::MetaDamaged(what) => {
                // Power tears pages of bitmaps, which then count as all set.
                let tears = self.plan.meta_errors > 0 || self.plan.weights.power > 0;
                if !tears {
                    self.fail("metadata", format!("n{n} found its metadata damaged: {what}"));
                }
            }
            Notice::SurveyEnded(_, progress) => {
                self.stats.compared += progress.compared;
                self.surveyed = Some((**progress).clone());
                if progress.differing > 0 && self.corrupted.is_none() {
                    let found = &progress.found;
                    self.fail(NO_DIFFERENCE, format!("n{n} found differences: {found:?}"));
                }
            }
            Notice::UnrelatedData(peer) => {
                self.fail("generations", format!("n{n} takes the data of {peer:?} for unrelated"));
            }
            _ => {}
        }
    }

    fn send(&mut self, n: usize, peer: NodeId, link: holdfast_core::LinkId, message: Message) {
        let message = self.through_codec(n, message);
        if let Message::ResyncGenerations { .. } = message {
            self.oracle.promise(peer.index(), n);
        }
        self.net.send(n, link, message, self.now, &mut self.rng);
    }

    /// Encodes and decodes the message, as on a real connection.
    fn through_codec(&mut self, n: usize, message: Message) -> Message {
        let mut bytes = Vec::with_capacity(128);
        holdfast_wire::encode(&message, &mut bytes);
        self.fingerprint.add_bytes(&bytes);
        let (header, body) = bytes.split_at(holdfast_wire::HEADER_LEN);
        let header: &[u8; holdfast_wire::HEADER_LEN] = header.try_into().expect("split there");
        let payload = message.payload().cloned().unwrap_or_default();
        let decoded = holdfast_wire::parse_header(header)
            .and_then(|header| holdfast_wire::decode(&header, body, payload));
        match decoded {
            Ok(decoded) if decoded == message => decoded,
            Ok(decoded) => {
                let what = format!("n{n} sent {message:?}, which arrives as {decoded:?}");
                self.fail("codec", what);
                message
            }
            Err(error) => {
                self.fail("codec", format!("n{n} sent {message:?}, which is refused: {error}"));
                message
            }
        }
    }

    fn disk_start(&mut self, n: usize, op: DiskOpId, work: Work, source: Source) {
        checks::disk_order(self, n, &work, source);
        self.nodes[n].journal.issued(op, &work);
        if let Work::Read { range, .. } = &work {
            self.spoil(n, *range);
        }
        let stubborn = matches!(work, Work::Repair { .. })
            && self.rng.below(1000) < self.plan.stubborn
            && self.trouble_on;
        let may_fail = !matches!(work, Work::Repair { .. } | Work::MarkLost { .. });
        let fails =
            may_fail && self.may_fail(n) && self.rng.below(1_000_000) < self.plan.data_errors;
        if fails {
            note!(self, "n{n} disk will fail at {work:?}");
            self.stats.disk_errors += 1;
            self.nodes[n].failed = true;
        }
        if self.trace.on {
            let what = match &work {
                Work::Write { range, fua, .. } => format!("write {range} fua {fua}"),
                other => format!("{other:?}"),
            };
            note!(self, "n{n} disk {op:?} {what}");
        }
        let resync = source == Source::Resync && work.changes().is_some();
        let result = self.nodes[n].data.start(op, work, fails || stubborn, resync);
        self.check("disk operations", result);
        let life = self.nodes[n].life;
        let at = self.now + self.rng.delay(self.plan.disk_us);
        self.queue.add(at, Happening::DiskApply { node: n, life, op });
    }

    /// Blocks go bad, here and perhaps on others, just when they are read.
    fn spoil(&mut self, n: usize, range: ByteRange) {
        if self.plan.passing > 0 {
            for block in self.nodes[n].data.passing(range.blocks()) {
                if self.rng.chance(self.plan.passing) {
                    self.nodes[n].data.pass(block, self.now);
                    note!(self, "n{n} block {block} can be read again");
                }
            }
        }
        if !self.trouble_on || self.rng.below(1000) >= self.plan.bad_blocks {
            return;
        }
        let (first, len) = (range.blocks().start, range.len / 4096);
        // What nobody has used is not looked at much.
        let block = first + self.rng.below(len.min(64));
        let kept = self.rng.chance(self.plan.salvaged);
        self.nodes[n].data.spoil(block, kept);
        if self.rng.chance(self.plan.rotten) {
            self.nodes[n].data.rot(block);
        }
        self.stats.bad_blocks += 1;
        note!(self, "n{n} block {block} goes bad, kept elsewhere: {kept}");
        for m in (0..self.nodes.len()).filter(|m| *m != n) {
            if self.rng.chance(150) {
                let kept = self.rng.chance(self.plan.salvaged);
                self.nodes[m].data.spoil(block, kept);
                note!(self, "n{m} block {block} goes bad");
            }
        }
    }

    pub(crate) fn disk_reported(&mut self, n: usize, op: DiskOpId) {
        let fua = self.nodes[n].data.is_forced(op);
        let repairs = self.nodes[n].data.is_repair(op);
        if let Some(mut outcome) = self.nodes[n].data.report(op) {
            self.stats.healed += u64::from(repairs && outcome.is_ok());
            note!(self, "n{n} disk {op:?} done: {}", outcome.is_ok());
            if outcome.is_ok()
                && let Some(position) = self.nodes[n].journal.done(op, fua)
            {
                outcome = Ok(DiskOutcome::Logged(position));
            }
            let checked = checks::caught_up::state(self, n);
            self.check(CAUGHT_UP, checked);
            self.feed(n, Event::DiskDone(op, outcome));
        }
    }

    pub(crate) fn journal_read(&mut self, n: usize, id: JournalReadId, from: LogPosition) {
        let cuts = self.plan.journal_cuts;
        let found = self.nodes[n].journal.read(from, cuts, &mut self.rng);
        note!(self, "n{n} journal from {from}: {:?}", found.as_ref().map(|(r, at)| (r.len(), *at)));
        self.feed(n, Event::JournalRead(id, found.ok_or(IoFailure::NoData)));
    }

    fn meta_start(&mut self, n: usize, op: MetaOpId, blocks: crate::meta_disk::Blocks) {
        let fails = self.meta_fails(n);
        note!(
            self,
            "n{n} meta {op:?}: {:?}",
            blocks.iter().map(|(at, _)| at / 4096).collect::<Vec<_>>()
        );
        if let Some(op) = self.nodes[n].meta.push(op, blocks, fails) {
            self.queue_meta(n, op);
        }
    }

    fn meta_fails(&mut self, n: usize) -> bool {
        let fails = self.may_fail(n) && self.rng.below(1_000_000) < self.plan.meta_errors;
        if fails {
            note!(self, "n{n} metadata will fail");
            self.stats.disk_errors += 1;
            self.nodes[n].failed = true;
        }
        fails
    }

    fn queue_meta(&mut self, n: usize, op: MetaOpId) {
        let life = self.nodes[n].life;
        let at = self.now + self.rng.delay(self.plan.meta_us);
        self.queue.add(at, Happening::MetaApply { node: n, life, op });
    }

    pub(crate) fn meta_reported(&mut self, n: usize, op: MetaOpId) {
        let Some(ok) = self.nodes[n].meta.report(op) else { return };
        let fails = self.meta_fails(n);
        if let Some(next) = self.nodes[n].meta.start_next(fails) {
            self.queue_meta(n, next);
        }
        note!(self, "n{n} meta {op:?} done");
        let result = if ok { Ok(()) } else { Err(holdfast_core::IoFailure::Disk) };
        self.feed(n, Event::MetaDone(op, result));
    }

    /// Whether an error of this node's disk leaves another copy that has all it has.
    fn may_fail(&self, n: usize) -> bool {
        let healthy = |m: usize| {
            let node = &self.nodes[m];
            node.is_up() && node.disk_open && !node.failed && !node.diskless
        };
        let has_all = |m: usize| {
            self.nodes[m].is_up_to_date()
                && self.oracle.counts(m)
                && (!self.oracle.counts(n) || self.oracle.lacks(m, n).is_none())
        };
        let others = (0..self.nodes.len()).filter(|m| *m != n && !self.nodes[*m].diskless);
        self.trouble_on
            && others.clone().all(healthy)
            && others.clone().any(has_all)
            && self.nodes[n].disk_open
    }

    /// The node dies, now.
    pub(crate) fn crash(&mut self, n: usize, how: Crash) {
        if !self.nodes[n].is_up() {
            return;
        }
        note!(self, "n{n} crashes: {how:?}");
        self.stats.crashes += 1;
        let rng = &mut self.rng;
        let node = &mut self.nodes[n];
        match how {
            Crash::Kill => {
                node.data.kill(rng);
                node.meta.kill(rng);
            }
            Crash::Power => {
                node.data.power_fail(rng);
                node.meta.power_fail(rng);
                node.boot += 1;
                node.lost_cache = true;
                self.oracle.power_failed(n);
            }
        }
        let checked = checks::caught_up::state(self, n);
        self.check(CAUGHT_UP, checked);
        let close = if how == Crash::Kill { Close::Abrupt } else { Close::Silent };
        self.gone(n, close);
    }

    /// What a person's `stop` ends with.
    fn stopped(&mut self, n: usize) {
        note!(self, "n{n} stopped");
        let ops: Vec<DiskOpId> = self.nodes[n].data.names();
        for op in ops {
            self.nodes[n].data.apply(op, self.now, &mut self.rng);
            self.nodes[n].data.report(op);
        }
        self.nodes[n].meta.finish();
        self.gone(n, Close::Orderly);
    }

    fn gone(&mut self, n: usize, close: Close) {
        let node = &mut self.nodes[n];
        node.core = None;
        node.journal.leads(false);
        node.snap = None;
        node.disk_open = false;
        node.wants.clear();
        node.tick_at = None;
        let pending = std::mem::take(&mut node.pending);
        for (_, asked) in pending {
            self.stats.failed += 1;
            self.abandoned(&asked);
        }
        self.commands.retain(|_, (node, _)| *node != n);
        for link in self.net.links_at(n) {
            self.net.close(n, link, close, self.now, &mut self.rng);
        }
    }

    /// Has the node start again after a while.
    pub(crate) fn start_later(&mut self, n: usize, typical_us: u64) {
        if !self.nodes[n].starting {
            self.nodes[n].starting = true;
            let at = self.now + self.rng.delay(typical_us);
            self.queue.add(at, Happening::Start(n));
        }
    }

    /// Gives a command to a node.
    pub(crate) fn command(&mut self, n: usize, command: Command) {
        if !self.nodes[n].is_up() {
            return;
        }
        note!(self, "n{n} is told to {command:?}");
        self.next_name += 1;
        let id = CommandId(self.next_name);
        self.commands.insert(id, (n, command.clone()));
        self.feed(n, Event::Command(id, command));
    }

    /// Whether this node is being promoted by decree.
    pub(crate) fn is_being_forced(&self, n: usize) -> bool {
        let forced = Command::Promote { force: true };
        self.commands.values().any(|(node, command)| *node == n && *command == forced)
    }

    fn command_done(&mut self, n: usize, command: &Command, ok: bool) {
        match command {
            Command::Disconnect { peer } if ok => {
                let all = 0..self.nodes.len();
                let left = all.filter(|m| *m != n && peer.is_none_or(|p| p.index() == *m));
                self.nodes[n].standalone.extend(left);
            }
            Command::Grow { .. } => {
                self.nodes[n].snap = self.nodes[n].core.as_ref().map(Core::snapshot);
                self.grow_later(n);
            }
            Command::Invalidate { peer } if !ok => {
                let given_up = peer.map_or(n, NodeId::index);
                self.nodes[given_up].may_give_up = false;
            }
            _ => {}
        }
    }

    fn completed(
        &mut self,
        n: usize,
        id: RequestId,
        result: Result<Option<Bytes>, holdfast_core::IoFailure>,
    ) {
        let Some(pending) = self.nodes[n].pending.remove(&id) else {
            self.fail("answers", format!("n{n} answers {id:?}, which is not open"));
            return;
        };
        self.answered(n, &pending, result);
    }
}
