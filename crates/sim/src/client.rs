//! Clients: numbered writes, zeroes, reads and flushes, several at a time, overlapping.

use crate::checks;
use crate::content;
use crate::node::{Asked, Pending, node_id};
use crate::world::{Happening, World, note};
use bytes::Bytes;
use holdfast_core::{Event, IoFailure, LinkId, RequestId, RequestKind, Snapshot};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, ConnectionState, DiskState, EXTENT_SIZE, ReplicationState,
};

impl World {
    /// Has clients begin to work.
    pub(crate) fn start_clients(&mut self) {
        self.clients_on = true;
        self.queue_client();
    }

    fn queue_client(&mut self) {
        if self.clients_on && !self.client_queued {
            self.client_queued = true;
            let at = self.now + self.rng.delay(self.plan.client_us);
            self.queue.add(at, Happening::Client);
        }
    }

    /// One client does one thing.
    pub(crate) fn client(&mut self) {
        if !self.clients_on {
            return;
        }
        let primaries = self.primaries();
        let up = self.up();
        let node = if up.is_empty() {
            None
        } else if primaries.is_empty() || self.rng.chance(5) {
            self.rng.chance(20).then(|| self.rng.pick(&up))
        } else {
            Some(self.rng.pick(&primaries))
        };
        if let Some(n) = node
            && self.nodes[n].pending.len() < self.plan.queue_depth
        {
            self.submit(n);
        }
        self.queue_client();
    }

    /// Whether clients of a node may use a range: it may have yet to grow.
    fn has_range(&self, n: usize, range: ByteRange) -> bool {
        self.nodes[n].snap.as_ref().is_some_and(|snap| range.end() <= snap.size)
    }

    fn submit(&mut self, n: usize) {
        let fua = self.rng.chance(100);
        match self.rng.below(100) {
            0..62 => {
                let range = self.some_range();
                self.submit_write(n, range, false, fua);
            }
            62..68 => {
                let range = if self.rng.coin() { self.some_range() } else { self.long_range() };
                self.submit_write(n, range, true, fua);
            }
            68..90 => {
                let range = self.some_range();
                self.submit_read(n, range);
            }
            _ => {
                let since = self.oracle.begin();
                self.request(n, RequestKind::Flush, Asked::Flush, since);
            }
        }
    }

    /// A client writes.
    pub(crate) fn submit_write(&mut self, n: usize, range: ByteRange, zeroes: bool, fua: bool) {
        if !self.has_range(n, range) {
            return;
        }
        self.next_write += 1;
        let write = self.next_write;
        let stamp = if zeroes { 0 } else { write };
        let blocks: Vec<u64> = self.tracked.range(range.blocks()).copied().collect();
        self.oracle.submit(write, &blocks, stamp);
        let kind = if zeroes {
            RequestKind::Zeroes { range, fua }
        } else {
            RequestKind::Write { range, data: content::payload(range, stamp), fua }
        };
        let since = self.oracle.now();
        self.request(n, kind, Asked::Write { write, range, zeroes, fua }, since);
    }

    /// A client reads all that clients ever wrote to.
    pub(crate) fn submit_reads(&mut self, n: usize) {
        for spot in self.plan.spots.clone() {
            self.submit_read(n, ByteRange::of_blocks(spot));
        }
    }

    fn submit_read(&mut self, n: usize, range: ByteRange) {
        if self.has_range(n, range) {
            let since = self.oracle.begin();
            self.request(n, RequestKind::Read(range), Asked::Read { range }, since);
        }
    }

    fn request(&mut self, n: usize, kind: RequestKind, what: Asked, since: u64) {
        self.next_name += 1;
        let id = RequestId(self.next_name);
        if self.trace.on {
            let text = match &what {
                Asked::Write { write, fua, .. } => {
                    let blocks = self.oracle.blocks_of(*write);
                    format!("write w{write} fua {fua} blocks {blocks:?}")
                }
                Asked::Read { range } => format!("read {:?}", range.blocks()),
                Asked::Flush => "flush".to_owned(),
            };
            note!(self, "n{n} client {id:?}: {text}");
        }
        let logged_since = self.nodes[n].journal.tick();
        let node = &self.nodes[n];
        let lost = self.lost_of(&what);
        let pending = Pending {
            what,
            since,
            logged_since,
            was_primary: node.is_primary(),
            was_up_to_date: node.is_up_to_date(),
            at: self.now,
            lost,
            good: self.good_peers(n),
            reached: self.reached(n),
        };
        self.nodes[n].pending.insert(id, pending);
        self.feed(n, Event::Request(id, kind));
    }

    /// The peers that the node's writes go to, as it says, and by which connection.
    fn reached(&self, n: usize) -> Vec<(usize, LinkId)> {
        let Some(snap) = &self.nodes[n].snap else { return Vec::new() };
        let peers = (0..self.nodes.len()).filter(|m| *m != n && receives(snap, *m));
        peers.filter_map(|m| self.net.joint_link(n, m).map(|link| (m, link))).collect()
    }

    /// What of a read is lost, and where.
    fn lost_of(&self, what: &Asked) -> Vec<(usize, u64)> {
        let Asked::Read { range } = what else { return Vec::new() };
        let pairs = (0..self.nodes.len()).flat_map(|m| range.blocks().map(move |b| (m, b)));
        pairs.filter(|(m, block)| self.nodes[*m].says_lost(*block)).collect()
    }

    /// Those of them that have good data, as both sides say.
    pub(crate) fn good_peers(&self, n: usize) -> Vec<(usize, LinkId)> {
        let good = |m: usize| {
            let node = &self.nodes[m];
            let seen = self.nodes[n].peer(m);
            node.is_up_to_date()
                && node.disk_open
                && seen.is_some_and(|p| p.disk == DiskState::UpToDate && p.out_of_sync == 0)
        };
        self.reached(n).into_iter().filter(|(m, _)| good(*m)).collect()
    }

    /// A request was answered.
    pub(crate) fn answered(
        &mut self,
        n: usize,
        pending: &Pending,
        result: Result<Option<Bytes>, IoFailure>,
    ) {
        if result.is_ok() {
            self.stats.completed += 1;
            match pending.what {
                Asked::Write { write, range, zeroes, fua } => {
                    let stamp = if zeroes { 0 } else { write };
                    self.nodes[n].journal.completed(stamp, range, fua);
                }
                Asked::Flush => self.nodes[n].journal.flushed(pending.logged_since),
                Asked::Read { .. } => {}
            }
        } else {
            self.stats.failed += 1;
        }
        note!(self, "n{n} answers {}: {:?}", pending.what, result.as_ref().map(|_| ()));
        let checked = checks::secondary(pending, &result);
        self.check("a Secondary serves no client", checked);
        let still: Vec<usize> = {
            let now = self.reached(n);
            pending.reached.iter().filter(|r| now.contains(r)).map(|(m, _)| *m).collect()
        };
        match (&pending.what, result) {
            (Asked::Write { write, fua, .. }, Ok(None)) => {
                let (write, fua) = (*write, *fua);
                let holders = checks::acknowledged::holders(self, write);
                // Who has it by luck, on a connection that the Primary has given up, may lose it.
                // What this event itself changed, perhaps the end of a connection, comes after it.
                let node = &self.nodes[n];
                let before = node.snap_before.as_ref().or(node.snap.as_ref());
                let known = |m: usize| before.is_some_and(|snap| receives(snap, m));
                // So may one that has lost its power since it answered.
                let lost =
                    |m: usize| self.nodes[m].lost_cache && self.net.joint_link(n, m).is_none();
                let sure: Vec<usize> =
                    holders.iter().copied().filter(|m| *m == n || known(*m) && !lost(*m)).collect();
                self.oracle.complete(write, &sure);
                let checked = checks::acknowledged::check(self, n, write, &holders);
                self.check("what a member missed is durably known before completion", checked);
                if fua {
                    let checked = checks::durable::forced(self, n, write, &still, &holders);
                    self.check("a completed FUA write is durable", checked);
                }
            }
            (Asked::Write { write, .. }, Err(_)) => self.oracle.give_up(*write),
            (Asked::Flush, Ok(None)) => {
                let checked = checks::durable::flushed(self, n, pending.since, &still);
                self.check("a completed flush is durable", checked);
            }
            (Asked::Read { range }, Ok(Some(data))) => {
                let checked = checks::reads::check(self, n, *range, &data, pending);
                self.check("reads return the last completed write", checked);
            }
            (Asked::Read { range }, Err(failure)) => {
                let checked = checks::unreadable::check(self, n, *range, failure, pending);
                self.check("a read fails only where nobody has the data", checked);
            }
            (_, Err(_)) => {}
            (what, Ok(_)) => self.fail("answers", format!("n{n} answers {what} out of kind")),
        }
        self.end(pending);
    }

    /// The node died over a request.
    pub(crate) fn abandoned(&mut self, pending: &Pending) {
        if let Asked::Write { write, .. } = pending.what {
            self.oracle.give_up(write);
        }
        self.end(pending);
    }

    /// A read or flush is over. A write began nothing: its time may be that of the next read.
    fn end(&mut self, pending: &Pending) {
        if !matches!(pending.what, Asked::Write { .. }) {
            self.oracle.end(pending.since);
        }
    }

    fn some_range(&mut self) -> ByteRange {
        let spot = self.plan.spots[self.rng.index(self.plan.spots.len())].clone();
        let len = self.rng.between(1, 8).min(spot.end - spot.start);
        let start = self.rng.between(spot.start, spot.end - len);
        ByteRange::of_blocks(start..start + len)
    }

    fn long_range(&mut self) -> ByteRange {
        let total = self.plan.size / BLOCK_SIZE;
        let len = self.rng.between(1, EXTENT_SIZE / BLOCK_SIZE).min(total);
        let start = self.rng.below(total - len + 1);
        ByteRange::of_blocks(start..start + len)
    }
}

/// Whether, by this snapshot, the writes of its node go to the peer.
fn receives(snap: &Snapshot, peer: usize) -> bool {
    let id = node_id(peer);
    snap.peers.iter().any(|p| {
        p.node == id
            && p.connection == ConnectionState::Connected
            && p.disk > DiskState::Failed
            && p.disk != DiskState::DUnknown
            && p.replication != ReplicationState::Off
            && !p.behind
    })
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Write { write, .. } => write!(f, "write w{write}"),
            Self::Read { range } => write!(f, "read {range}"),
            Self::Flush => write!(f, "flush"),
        }
    }
}
