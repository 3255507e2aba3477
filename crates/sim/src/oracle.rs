//! What the disks may hold, by what clients were told.
//!
//! There is one view per node: the writes that its copy has for sure, and those that it may have.
//! A view follows the copy: a resync target has none until it is UpToDate; then it has its source's
//! of the moment when the source found the resync complete, and what came since.
//! So two Primaries apart are two histories, and a copy that missed writes is known to lack them.
//!
//! A write is *sure* in a view once it was completed while the node had it; it is *closed* when it
//! was completed or can no longer happen. A write that failed or whose Primary died is closed but
//! never sure: unknown for ever, until something sure comes over it.

use crate::content::{Block, SECTORS, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// One write to one block.
#[derive(Clone, Debug)]
struct Entry {
    write: u64,
    content: Block,
    submitted: u64,
    closed: Option<u64>,
    sure: bool,
    durable: bool,
}

impl Entry {
    /// The zeroes with which every disk begins.
    fn beginning() -> Self {
        Self {
            write: 0,
            content: Block::ZERO,
            submitted: 0,
            closed: Some(0),
            sure: true,
            durable: true,
        }
    }
}

/// A node's copy. See the module.
#[derive(Clone, Debug, Default)]
struct View {
    blocks: BTreeMap<u64, Vec<Entry>>,
    /// Completed writes that it has, and whether they are durable.
    has: BTreeMap<u64, bool>,
    /// Completed writes that it had and lost with the power.
    lost: BTreeSet<u64>,
}

/// A client's write.
#[derive(Debug)]
struct Write {
    blocks: Vec<u64>,
    content: Block,
    submitted: u64,
    closed: Option<u64>,
}

/// See the module.
pub(crate) struct Oracle {
    clock: u64,
    nodes: usize,
    /// By node, and behind them by node what a resync target will have.
    views: Vec<Option<View>>,
    writes: BTreeMap<u64, Write>,
    reads: BTreeSet<u64>,
}

/// The entries of a block among which one is current, for a read that began at `since`.
fn candidates(entries: &[Entry], since: u64) -> impl Iterator<Item = &Entry> {
    let over = |entry: &&Entry| entry.sure && entry.closed.is_some_and(|at| at < since);
    let newest = entries.iter().filter(over).map(|entry| entry.submitted).max().unwrap_or(0);
    entries.iter().filter(move |entry| entry.closed.is_none_or(|at| at >= newest))
}

fn describe(entries: &[Entry], since: u64) -> String {
    let words = candidates(entries, since).map(|e| {
        let sure = if e.sure { "" } else { "?" };
        format!("{}{sure}", e.content)
    });
    words.collect::<Vec<_>>().join(" or ")
}

impl Oracle {
    /// Every node has zeroes, for sure.
    pub(crate) fn new(nodes: usize) -> Self {
        let mut views = vec![Some(View::default()); nodes];
        views.resize(2 * nodes, None);
        Self { clock: 0, nodes, views, writes: BTreeMap::new(), reads: BTreeSet::new() }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A client submits write number `write` (of stamp `write`, or of zeroes) to these blocks. It may
    /// reach any node: connections come and go before it is carried out.
    pub(crate) fn submit(&mut self, write: u64, blocks: &[u64], stamp: Stamp) {
        let submitted = self.tick();
        let content = Block::whole(stamp);
        for view in self.views.iter_mut().flatten() {
            for block in blocks {
                let entries = view.blocks.entry(*block).or_insert_with(|| vec![Entry::beginning()]);
                let (sure, durable) = (false, false);
                entries.push(Entry { write, content, submitted, closed: None, sure, durable });
            }
        }
        self.writes
            .insert(write, Write { blocks: blocks.to_vec(), content, submitted, closed: None });
    }

    /// Whether what a disk holds in this block shows that `write` was carried out there: it is the
    /// write's content, or that of another one at the same time.
    pub(crate) fn shows(&self, write: u64, found: Block) -> bool {
        let Some(mine) = self.writes.get(&write) else { return false };
        found.0.iter().zip(mine.content.0).all(|(stamp, wanted)| {
            *stamp == wanted
                || self
                    .writes
                    .get(stamp)
                    .is_some_and(|other| other.closed.is_none_or(|closed| closed >= mine.submitted))
                || (*stamp == 0 && self.zeroed_meanwhile(mine))
        })
    }

    fn zeroed_meanwhile(&self, mine: &Write) -> bool {
        self.writes.values().any(|other| {
            other.content == Block::ZERO
                && other.closed.is_none_or(|closed| closed >= mine.submitted)
                && other.blocks.iter().any(|block| mine.blocks.contains(block))
        })
    }

    /// The blocks of a write.
    pub(crate) fn blocks_of(&self, write: u64) -> &[u64] {
        self.writes.get(&write).map_or(&[], |write| &write.blocks)
    }

    /// What a write stores in each block.
    pub(crate) fn content_of(&self, write: u64) -> Block {
        self.writes.get(&write).map_or(Block::ZERO, |write| write.content)
    }

    /// The write was completed; `holders` had it then.
    pub(crate) fn complete(&mut self, write: u64, holders: &[usize]) {
        self.close_write(write, holders);
    }

    /// The write failed or its Primary died: whether it happened is not known.
    pub(crate) fn give_up(&mut self, write: u64) {
        self.close_write(write, &[]);
    }

    fn close_write(&mut self, write: u64, holders: &[usize]) {
        let closed = Some(self.tick());
        let oldest_read = self.reads.first().copied().unwrap_or(self.clock);
        let Some(record) = self.writes.get_mut(&write) else { return };
        record.closed = closed;
        for (node, view) in self.views.iter_mut().enumerate() {
            let Some(view) = view else { continue };
            let holds = holders.contains(&(node % self.nodes));
            if holds {
                view.has.insert(write, false);
            }
            for block in &record.blocks {
                let entries = view.blocks.entry(*block).or_insert_with(|| vec![Entry::beginning()]);
                match entries.iter_mut().rfind(|entry| entry.write == write) {
                    Some(entry) => (entry.closed, entry.sure) = (closed, holds),
                    None if holds => entries.push(Entry {
                        write,
                        content: record.content,
                        submitted: record.submitted,
                        closed,
                        sure: true,
                        durable: false,
                    }),
                    None => {}
                }
                if entries.len() > 12 {
                    prune(entries, oldest_read);
                }
            }
        }
    }

    /// A read or flush begins: the point of time for [`Self::check`] and [`Self::flushed`].
    pub(crate) fn begin(&mut self) -> u64 {
        let since = self.tick();
        self.reads.insert(since);
        since
    }

    /// What [`Self::begin`] began has ended.
    pub(crate) fn end(&mut self, since: u64) {
        self.reads.remove(&since);
    }

    /// Now, for checks that are not about a read.
    pub(crate) fn now(&self) -> u64 {
        self.clock + 1
    }

    /// Whether the node's copy may give this content to a read that began at `since`.
    ///
    /// # Errors
    /// Says what would have been right.
    pub(crate) fn check(
        &self,
        node: usize,
        block: u64,
        found: Block,
        since: u64,
    ) -> Result<(), String> {
        let Some(view) = &self.views[node] else { return Ok(()) };
        let beginning = [Entry::beginning()];
        let entries = view.blocks.get(&block).map_or(&beginning[..], Vec::as_slice);
        let fits = (0..SECTORS).all(|sector| {
            candidates(entries, since).any(|entry| entry.content.0[sector] == found.0[sector])
        });
        if fits {
            return Ok(());
        }
        let wanted = describe(entries, since);
        Err(format!("block {block} holds {found}, but should hold {wanted} (as n{node} has it)"))
    }

    /// A read from the node's own copy gave this: unless a write was under way, it stays so.
    pub(crate) fn learn(&mut self, node: usize, block: u64, found: Block, since: u64) {
        let closed = Some(self.clock);
        let Some(entries) = self.views[node].as_mut().and_then(|v| v.blocks.get_mut(&block)) else {
            return;
        };
        let busy = |e: &Entry| e.submitted >= since || e.closed.is_none_or(|at| at >= since);
        if entries.iter().any(busy) || candidates(entries, since).count() < 2 {
            return;
        }
        let (submitted, sure, durable) = (since, true, false);
        entries.push(Entry { write: 0, content: found, submitted, closed, sure, durable });
    }

    /// The blocks and contents that a flush which began at `since` made durable at the node: what
    /// it has for sure since before.
    pub(crate) fn flushed(&mut self, node: usize, since: u64) -> Vec<(u64, Block)> {
        let mut covered = Vec::new();
        let Some(view) = &mut self.views[node] else { return covered };
        for (block, entries) in &mut view.blocks {
            let current: Vec<u64> = candidates(entries, since).map(|entry| entry.write).collect();
            // Zeroes do not say which write they came from: when others are coming, or came since,
            // those on the disk prove nothing.
            let later = |entry: &Entry| entry.closed.is_none_or(|at| at >= since);
            let zeroes_later = entries.iter().any(|e| later(e) && e.content == Block::ZERO);
            for entry in entries.iter_mut().filter(|entry| entry.sure && !entry.durable) {
                if !later(entry) {
                    entry.durable = true;
                    let clear = entry.content != Block::ZERO || !zeroes_later;
                    if current.contains(&entry.write) && clear {
                        covered.push((*block, entry.content));
                    }
                }
            }
        }
        for (write, durable) in &mut view.has {
            let closed = self.writes.get(write).and_then(|write| write.closed);
            *durable |= closed.is_some_and(|at| at < since);
        }
        covered
    }

    /// A completed write with FUA is durable at the node.
    pub(crate) fn forced(&mut self, node: usize, write: u64) {
        let Some(view) = &mut self.views[node] else { return };
        if let Some(durable) = view.has.get_mut(&write) {
            *durable = true;
        }
        let entries = view.blocks.values_mut().flatten();
        entries.filter(|entry| entry.write == write).for_each(|entry| entry.durable = entry.sure);
    }

    /// The node lost its volatile cache.
    pub(crate) fn power_failed(&mut self, node: usize) {
        self.views[node + self.nodes] = None;
        let Some(view) = &mut self.views[node] else { return };
        let lost = view.has.iter().filter(|(_, durable)| !**durable).map(|(write, _)| *write);
        view.lost.extend(lost);
        view.has.retain(|_, durable| *durable);
        for entry in view.blocks.values_mut().flatten() {
            entry.sure &= entry.durable;
        }
    }

    /// The node's copy is not of use any more.
    pub(crate) fn forget(&mut self, node: usize) {
        self.views[node] = None;
    }

    /// Whether the node's copy counts.
    pub(crate) fn counts(&self, node: usize) -> bool {
        self.views[node].is_some()
    }

    /// The source found that the target has all that it has itself.
    pub(crate) fn promise(&mut self, target: usize, source: usize) {
        let view = self.views[source].clone().unwrap_or_else(|| self.anything());
        self.views[target + self.nodes] = Some(view);
    }

    /// The target's copy counts from now on; whether a source had said so.
    pub(crate) fn adopt(&mut self, target: usize) -> bool {
        let view = self.views[target + self.nodes].take();
        let told = view.is_some();
        if told {
            self.views[target] = view;
        }
        told
    }

    /// The node's copy was found to be equal to the other's.
    pub(crate) fn equal(&mut self, node: usize, other: usize) {
        self.views[node] = self.views[other].clone();
    }

    /// The node's copy is good by decree, whatever it holds.
    pub(crate) fn decree(&mut self, node: usize) {
        self.views[node] = Some(self.anything());
    }

    /// A copy that may have any of the writes that ever were.
    fn anything(&self) -> View {
        let mut view = View::default();
        for (write, record) in &self.writes {
            for block in &record.blocks {
                view.blocks.entry(*block).or_insert_with(|| vec![Entry::beginning()]).push(Entry {
                    write: *write,
                    content: record.content,
                    submitted: record.submitted,
                    closed: Some(u64::MAX),
                    sure: false,
                    durable: false,
                });
            }
        }
        view
    }

    /// The completed writes that `node` has and `other` never had. None when either does not count.
    pub(crate) fn never_had(&self, other: usize, node: usize) -> Vec<u64> {
        let lost =
            |write: &u64| self.views[other].as_ref().is_some_and(|view| view.lost.contains(write));
        let mut writes = self.all_lacking(other, node);
        writes.retain(|write| !lost(write));
        writes
    }

    /// The completed writes that `node` has and `other` does not have. None when either does not
    /// count.
    pub(crate) fn all_lacking(&self, other: usize, node: usize) -> Vec<u64> {
        let (Some(mine), Some(theirs)) = (&self.views[node], &self.views[other]) else {
            return Vec::new();
        };
        mine.has.keys().filter(|write| !theirs.has.contains_key(write)).copied().collect()
    }

    /// A completed write that `node` has and `other` does not have. None when either does not count.
    pub(crate) fn lacks(&self, other: usize, node: usize) -> Option<u64> {
        let (mine, theirs) = (self.views[node].as_ref()?, self.views[other].as_ref()?);
        mine.has.keys().find(|write| !theirs.has.contains_key(write)).copied()
    }

    /// The completed writes of each copy that another copy lacks, for people.
    pub(crate) fn differences(&self) -> String {
        let all = self.views[..self.nodes].iter().flatten().flat_map(|view| view.has.keys());
        let all: BTreeSet<u64> = all.copied().collect();
        let of = |view: &Option<View>| match view {
            Some(view) => {
                let lacks: Vec<u64> =
                    all.iter().filter(|w| !view.has.contains_key(w)).copied().collect();
                format!("lacks {lacks:?}")
            }
            None => "-".to_owned(),
        };
        self.views.iter().map(of).collect::<Vec<_>>().join(" | ")
    }

    /// How many completed writes the node's copy has.
    pub(crate) fn weight(&self, node: usize) -> usize {
        self.views[node].as_ref().map_or(0, |view| view.has.len())
    }

    /// Blocks that any write ever touched.
    pub(crate) fn touched(&self) -> BTreeSet<u64> {
        self.writes.values().flat_map(|write| write.blocks.iter().copied()).collect()
    }
}

/// Drops what a durable write, closed before the oldest read, has made impossible.
fn prune(entries: &mut Vec<Entry>, oldest_read: u64) {
    let over = |entry: &&Entry| {
        entry.sure && entry.durable && entry.closed.is_some_and(|at| at < oldest_read)
    };
    let newest = entries.iter().filter(over).map(|entry| entry.submitted).max().unwrap_or(0);
    entries.retain(|entry| entry.closed.is_none_or(|at| at >= newest));
}

#[cfg(test)]
mod tests {
    use super::Oracle;
    use crate::content::Block;

    fn ok(oracle: &Oracle, node: usize, stamp: u64) -> bool {
        oracle.check(node, 7, Block::whole(stamp), oracle.now()).is_ok()
    }

    #[test]
    fn an_unknown_write_is_possible_until_something_sure_comes_over_it() {
        let mut oracle = Oracle::new(2);
        oracle.submit(1, &[7], 1);
        oracle.complete(1, &[0, 1]);
        assert!(ok(&oracle, 0, 1) && !ok(&oracle, 0, 0));
        oracle.submit(2, &[7], 2);
        assert!(ok(&oracle, 0, 1) && ok(&oracle, 0, 2));
        oracle.give_up(2);
        assert!(ok(&oracle, 1, 1) && ok(&oracle, 1, 2));
        oracle.submit(3, &[7], 3);
        oracle.complete(3, &[0]);
        assert!(!ok(&oracle, 0, 1) && !ok(&oracle, 0, 2) && ok(&oracle, 0, 3));
        assert!(ok(&oracle, 1, 1) && ok(&oracle, 1, 3));
        assert_eq!(oracle.lacks(1, 0), Some(3));
        assert_eq!(oracle.lacks(0, 1), None);
    }

    #[test]
    fn a_power_failure_loses_what_was_not_flushed() {
        let mut oracle = Oracle::new(1);
        for write in 1..=3 {
            oracle.submit(write, &[7], write);
            oracle.complete(write, &[0]);
            if write == 2 {
                let since = oracle.begin();
                assert_eq!(oracle.flushed(0, since).len(), 1);
                oracle.end(since);
            }
        }
        assert!(!ok(&oracle, 0, 2));
        oracle.power_failed(0);
        assert!(!ok(&oracle, 0, 1) && ok(&oracle, 0, 2) && ok(&oracle, 0, 3));
    }

    #[test]
    fn a_read_must_not_be_older_than_what_was_complete_when_it_began() {
        let mut oracle = Oracle::new(1);
        oracle.submit(1, &[7], 1);
        oracle.complete(1, &[0]);
        let since = oracle.begin();
        oracle.submit(2, &[7], 2);
        oracle.complete(2, &[0]);
        assert!(oracle.check(0, 7, Block::whole(1), since).is_ok());
        assert!(oracle.check(0, 7, Block::whole(2), since).is_ok());
        assert!(oracle.check(0, 7, Block::whole(0), since).is_err());
        oracle.end(since);
        assert!(!ok(&oracle, 0, 1));
    }

    #[test]
    fn what_was_read_of_an_unknown_write_stays() {
        let mut oracle = Oracle::new(1);
        oracle.submit(1, &[7], 1);
        oracle.give_up(1);
        assert!(ok(&oracle, 0, 0) && ok(&oracle, 0, 1));
        let since = oracle.begin();
        oracle.learn(0, 7, Block::whole(1), since);
        oracle.end(since);
        assert!(!ok(&oracle, 0, 0) && ok(&oracle, 0, 1));
    }
}
