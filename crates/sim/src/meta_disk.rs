//! A virtual metadata disk: writes are carried out one after the other, each followed by a sync.
//!
//! After a kill, what was written is in the page cache; the driver syncs the metadata before it
//! reads them at a start, so that what it reads is durable.

use crate::rng::Rng;
use holdfast_core::MetaOpId;
use holdfast_format::{MetaImage, Placement, SparseBitmap, Superblock};
use holdfast_units::BLOCK_SIZE;
use holdfast_units::{NodeId, PeerSet};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

/// Blocks and where they belong.
pub(crate) type Blocks = Vec<(u64, Box<[u8; 4096]>)>;

/// Where the metadata of every virtual node lie.
pub(crate) const PLACEMENT: Placement = Placement::External { base: 0 };

/// How an operation goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    Waiting,
    Running { fails: bool },
    Applied { ok: bool },
}

/// What the durable metadata say, decoded.
pub(crate) struct Decoded {
    pub(crate) superblock: Superblock,
    pub(crate) hot: BTreeSet<u32>,
}

/// See the module.
pub(crate) struct MetaDisk {
    bytes: Vec<u8>,
    queue: VecDeque<(MetaOpId, Blocks, Progress)>,
    decoded: RefCell<Option<Option<Rc<Decoded>>>>,
}

impl MetaDisk {
    /// A disk with these blocks.
    pub(crate) fn new(len: u64, blocks: &[(u64, [u8; 4096])]) -> Self {
        let bytes = vec![0; usize::try_from(len).expect("virtual metadata are small")];
        let decoded = RefCell::new(None);
        let mut disk = Self { bytes, queue: VecDeque::new(), decoded };
        for (offset, block) in blocks {
            disk.store(*offset, block, |_| true);
        }
        disk
    }

    /// Reads what the superblocks and the activity log say.
    pub(crate) fn decode(&self) -> Option<Rc<Decoded>> {
        let mut decoded = self.decoded.borrow_mut();
        decoded
            .get_or_insert_with(|| {
                let image = MetaImage::load(&self.bytes, PLACEMENT).ok()?;
                let hot =
                    image.al.as_ref().map(|al| al.log.extents().collect()).unwrap_or_default();
                Some(Rc::new(Decoded { superblock: image.superblock.clone(), hot }))
            })
            .clone()
    }

    /// What this disk says that `peer` misses.
    pub(crate) fn bitmap(&self, peer: NodeId) -> Option<SparseBitmap> {
        let image = MetaImage::load(&self.bytes, PLACEMENT).ok()?;
        image.bitmaps(PeerSet::from_iter([peer])).pop().map(|(_, bitmap, _)| bitmap)
    }

    /// Has room for the bitmaps of a device of so many bytes from now on.
    pub(crate) fn make_room(&mut self, size: u64) {
        let Some(decoded) = self.decode() else { return };
        let layout = decoded.superblock.layout.with_device_size(size);
        let end = layout.expect("the plan gives possible sizes").area().end();
        let end = usize::try_from(end).expect("virtual metadata are small");
        self.bytes.resize(end.max(self.bytes.len()), 0);
    }

    /// All bytes, for the driver to load.
    pub(crate) fn bytes(&self) -> &Vec<u8> {
        &self.bytes
    }

    /// Takes a write. When it can start at once, its name is given back.
    pub(crate) fn push(&mut self, op: MetaOpId, blocks: Blocks, fails: bool) -> Option<MetaOpId> {
        self.queue.push_back((op, blocks, Progress::Waiting));
        self.start_next(fails)
    }

    /// Starts the write at the head of the queue if it waits.
    pub(crate) fn start_next(&mut self, fails: bool) -> Option<MetaOpId> {
        let (op, _, progress) = self.queue.front_mut()?;
        if *progress != Progress::Waiting {
            return None;
        }
        *progress = Progress::Running { fails };
        Some(*op)
    }

    /// The running write becomes durable, or fails half-way.
    pub(crate) fn apply(&mut self, op: MetaOpId, rng: &mut Rng) {
        let Some((front, blocks, Progress::Running { fails })) = self.queue.front() else { return };
        if *front != op {
            return;
        }
        let (blocks, fails) = (blocks.clone(), *fails);
        if fails {
            self.store_torn(&blocks, rng);
        } else {
            for (offset, block) in &blocks {
                self.store(*offset, block, |_| true);
            }
        }
        if let Some((_, _, progress)) = self.queue.front_mut() {
            *progress = Progress::Applied { ok: !fails };
        }
    }

    /// The end of the running write: whether it went well.
    pub(crate) fn report(&mut self, op: MetaOpId) -> Option<bool> {
        match self.queue.front() {
            Some((front, _, Progress::Applied { ok })) if *front == op => {
                let ok = *ok;
                self.queue.pop_front();
                Some(ok)
            }
            _ => None,
        }
    }

    /// Carries out all that is left: the driver closes the disk behind it.
    pub(crate) fn finish(&mut self) {
        for (_, blocks, progress) in std::mem::take(&mut self.queue) {
            if !matches!(progress, Progress::Applied { .. } | Progress::Running { fails: true }) {
                for (offset, block) in &blocks {
                    self.store(*offset, block, |_| true);
                }
            }
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// The process was killed: of the running write any blocks may have been written.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        if let Some((_, blocks, Progress::Running { .. })) = self.queue.pop_front() {
            for (offset, block) in &blocks {
                if rng.coin() {
                    self.store(*offset, block, |_| true);
                }
            }
        }
        self.queue.clear();
    }

    /// The power failed: of the running write any sectors may have been written.
    pub(crate) fn power_fail(&mut self, rng: &mut Rng) {
        if let Some((_, blocks, Progress::Running { .. })) = self.queue.pop_front() {
            self.store_torn(&blocks, rng);
        }
        self.queue.clear();
    }

    fn store_torn(&mut self, blocks: &Blocks, rng: &mut Rng) {
        for (offset, block) in blocks {
            let sectors = match rng.below(3) {
                0 => 0,
                1 => u64::MAX,
                _ => rng.next(),
            };
            self.store(*offset, block, |sector| sectors >> sector & 1 == 1);
        }
    }

    fn store(&mut self, offset: u64, block: &[u8; 4096], keep: impl Fn(usize) -> bool) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        assert!(
            offset.is_multiple_of(BLOCK_SIZE) && at.saturating_add(4096) <= self.bytes.len(),
            "metadata were written at byte {offset}, outside their area"
        );
        for (sector, bytes) in block.chunks_exact(512).enumerate().filter(|(s, _)| keep(*s)) {
            let at = at + sector * 512;
            self.bytes[at..at + 512].copy_from_slice(bytes);
        }
        *self.decoded.borrow_mut() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::MetaDisk;
    use crate::rng::Rng;
    use holdfast_core::MetaOpId;

    fn block(byte: u8) -> Box<[u8; 4096]> {
        Box::new([byte; 4096])
    }

    #[test]
    fn writes_happen_one_after_the_other_and_a_crash_tears_only_the_running_one() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut disk = MetaDisk::new(8192, &[]);
            assert_eq!(disk.push(MetaOpId(1), vec![(0, block(1))], false), Some(MetaOpId(1)));
            assert_eq!(disk.push(MetaOpId(2), vec![(4096, block(2))], false), None);
            assert_eq!(disk.report(MetaOpId(1)), None);
            disk.apply(MetaOpId(1), &mut rng);
            assert_eq!(disk.report(MetaOpId(1)), Some(true));
            assert_eq!(disk.start_next(false), Some(MetaOpId(2)));
            disk.push(MetaOpId(3), vec![(0, block(3))], false);
            disk.power_fail(&mut rng);
            assert!(disk.bytes()[..4096].iter().all(|byte| *byte == 1));
            assert!(disk.bytes()[4096..].chunks(512).all(|s| s.iter().all(|b| *b == s[0])));
            assert!(disk.is_idle());
        }
    }
}
