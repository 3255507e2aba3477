//! The whole metadata area: reading it back, checking it, showing it, and making a fresh one.

use crate::al::{AlLog, AlRecovered};
use crate::bitmap::{BITS_PER_PAGE, BitmapPage, LostBlocks, PageAddress, SparseBitmap};
use crate::block::{self, BLOCK_LEN, Block, BlockError};
use crate::layout::{LayoutError, MetaLayout, Placement};
use crate::superblock::{DiskFlags, PeerRecord, Superblock};
use crate::{AlDamage, AlDamaged};
use holdfast_units::{BLOCK_SIZE, NodeId, PeerSet, format_size};
use std::fmt;

/// A read that failed, and why, as words that complete "it could not be read: ...".
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadFailed(pub String);

/// A file, device or memory that can be read anywhere.
pub trait ReadAt {
    /// How long it is, in bytes.
    fn len(&self) -> u64;

    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`ReadFailed`] when not all of them could be read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed>;

    /// The first byte at or after `offset` that may differ from zero (`SEEK_DATA`); `None` when
    /// there is none. Who cannot tell says `offset`.
    fn next_data(&self, offset: u64) -> Option<u64> {
        (offset < self.len()).then_some(offset)
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        let from = usize::try_from(offset).ok();
        let bytes = from.and_then(|at| self.get(at..)?.get(..buf.len()));
        let bytes = bytes.ok_or_else(|| ReadFailed("it lies past the end".into()))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// Why the metadata of a resource could not be loaded at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// There is no room for superblocks in this place.
    #[error("there is no metadata: {0}")]
    Layout(#[from] LayoutError),
    /// Neither copy of the superblock can be used.
    #[error(
        "no superblock can be used: of the first copy, at byte {at}, {}; of the second, {}",
        errors[0], errors[1]
    )]
    NoSuperblock {
        /// Where the first copy was looked for, in bytes.
        at: u64,
        /// What is wrong with each copy.
        errors: [BlockError; 2],
    },
    /// The metadata was written by a newer version of Holdfast.
    #[error("the metadata needs a newer version of Holdfast: {0}")]
    Newer(BlockError),
    /// The superblock says that it lies elsewhere, as after copying or resizing a disk.
    #[error(
        "the superblock was written for another place: it says {stored}, and was found in {found}"
    )]
    Moved {
        /// Where it says that it lies.
        stored: Placement,
        /// Where it was found.
        found: Placement,
    },
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Expected after a crash, or without effect.
    Note,
    /// Damage that costs work (a copy, a resync), but no data.
    Warning,
    /// Damage after which nothing is known about what is in sync.
    Error,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, and what follows from it: a sentence.
    pub what: String,
}

impl Finding {
    fn new(severity: Severity, what: String) -> Self {
        Self { severity, what }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}", self.what)
    }
}

/// A page of a bitmap as it was found on disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredPage {
    /// Which page it is.
    pub address: PageAddress,
    /// Its bytes; `None` when it could not be read.
    pub block: Option<Box<Block>>,
}

impl StoredPage {
    /// Takes the page into a bitmap in memory. A page that cannot be used becomes all set.
    ///
    /// # Errors
    /// What is wrong with the page.
    pub fn load_into(&self, bitmap: &mut SparseBitmap) -> Result<(), BlockError> {
        if let Some(block) = &self.block {
            bitmap.load_page(&self.address, block)
        } else {
            bitmap.lose_page(self.address.page());
            Err(BlockError::Unreadable)
        }
    }

    /// Takes a page of the node's own slot into the list of lost blocks. Of one that cannot be used all
    /// blocks count as old.
    ///
    /// # Errors
    /// What is wrong with the page.
    pub fn load_into_lost(&self, list: &mut LostBlocks) -> Result<(), BlockError> {
        if let Some(block) = &self.block {
            list.load_page(&self.address, block)
        } else {
            list.lose_page(self.address.page());
            Err(BlockError::Unreadable)
        }
    }

    fn decode(&self, valid: u64) -> Result<BitmapPage, BlockError> {
        let block = self.block.as_ref().ok_or(BlockError::Unreadable)?;
        BitmapPage::decode(block, &self.address, valid)
    }
}

/// The metadata of a resource as it was found; bitmaps are read on demand.
pub struct MetaImage<'a> {
    reader: &'a dyn ReadAt,
    /// The superblock that counts.
    pub superblock: Superblock,
    /// What is wrong with each copy of the superblock.
    pub copies: [Option<BlockError>; 2],
    /// The activity log, or why it cannot be trusted.
    pub al: Result<AlRecovered, AlDamaged>,
}

impl<'a> MetaImage<'a> {
    /// Reads superblocks and activity log. For internal metadata, `placement` has the length of
    /// the device as it is now.
    ///
    /// # Errors
    /// [`MetaError`] when there is no superblock to go by. A damaged activity log is no error
    /// here: see [`MetaImage::al`].
    pub fn load(reader: &'a dyn ReadAt, placement: Placement) -> Result<Self, MetaError> {
        let mut read = Vec::with_capacity(2);
        for copy in 0..2 {
            let at = placement.superblock_offset(copy)?;
            read.push(
                read_block(reader, at)
                    .ok_or(BlockError::Unreadable)
                    .and_then(|block| Superblock::decode(&block, copy)),
            );
        }
        let copies = [read[0].as_ref().err().copied(), read[1].as_ref().err().copied()];
        let superblock = choose(read, placement.superblock_offset(0)?)?;
        let (stored, found) = (superblock.layout.placement(), placement);
        if stored != found {
            return Err(MetaError::Moved { stored, found });
        }
        let layout = superblock.layout;
        let ring = (0..layout.al_blocks()).map(|i| (i, read_block(reader, layout.al_offset(i))));
        let al = AlLog::recover(superblock.resource, &layout, ring);
        Ok(Self { reader, superblock, copies, al })
    }

    /// Where everything lies.
    #[must_use]
    pub const fn layout(&self) -> &MetaLayout {
        &self.superblock.layout
    }

    /// The pages of all bitmaps that are not all zeros, and those that cannot be read, in the
    /// order of their places: by page, then by slot. Holes are skipped.
    pub fn pages(&self) -> impl Iterator<Item = StoredPage> {
        let layout = self.superblock.layout;
        let resource = self.superblock.resource;
        let mut next = 0;
        std::iter::from_fn(move || {
            loop {
                let (index, block) = self.next_stored(next)?;
                next = index + 1;
                if block.as_ref().is_some_and(|block| block::is_zero(block)) {
                    continue;
                }
                let (slot, page) = layout.page_at(index);
                let address = PageAddress::new(resource, &layout, slot, page);
                return Some(StoredPage { address, block });
            }
        })
    }

    /// The bitmaps of these nodes, in one pass, each with the number of its pages that could not
    /// be used and count as all set. Nodes without a slot are left out.
    #[must_use]
    pub fn bitmaps(&self, nodes: PeerSet) -> Vec<(NodeId, SparseBitmap, u32)> {
        let layout = self.layout();
        let wanted = nodes.iter().filter(|node| layout.has_slot(*node));
        let mut bitmaps: Vec<_> =
            wanted.map(|node| (node, SparseBitmap::new(layout.blocks()), 0)).collect();
        for stored in self.pages() {
            let slot = stored.address.slot();
            if let Some((_, bitmap, lost)) = bitmaps.iter_mut().find(|(node, ..)| *node == slot)
                && stored.load_into(bitmap).is_err()
            {
                *lost += 1;
            }
        }
        bitmaps
    }

    /// The blocks of which there is no good copy on the disk, and how many pages of that list could not
    /// be used. Where the superblock says that no block may be old, such pages list nothing.
    #[must_use]
    pub fn lost_blocks(&self) -> (LostBlocks, u32) {
        let own = self.superblock.node;
        let mut list = LostBlocks::new(self.layout().blocks());
        let mut broken = 0;
        if !self.layout().has_slot(own) {
            return (list, broken);
        }
        let may_be_old = self.superblock.flags.contains(DiskFlags::LOST);
        for stored in self.pages().filter(|stored| stored.address.slot() == own) {
            let page = stored.address.page();
            if stored.load_into_lost(&mut list).is_err() {
                broken += 1;
                if !may_be_old {
                    let blocks = list.old.blocks_of_page(page);
                    list.old.clear_range(blocks);
                }
            }
        }
        (list, broken)
    }

    /// Reads everything and tells what is not as it should be.
    #[must_use]
    pub fn check(&self) -> Vec<Finding> {
        let mut findings = self.check_superblock();
        self.check_al(&mut findings);
        for peer in self.count_bitmaps() {
            check_bitmap(&peer, &mut findings);
        }
        findings
    }

    /// Reads everything, for people to look at.
    #[must_use]
    pub fn dump(&self) -> MetaDump {
        let peers = self.count_bitmaps();
        let mut findings = self.check_superblock();
        self.check_al(&mut findings);
        for peer in &peers {
            check_bitmap(peer, &mut findings);
        }
        let record = |peer: &PeerDump| peer.record != PeerRecord::default();
        MetaDump {
            superblock: self.superblock.clone(),
            hot_extents: self.al.as_ref().ok().map(|al| al.log.extents().collect()),
            peers: peers.into_iter().filter(|p| record(p) || p.set > 0 || p.lost > 0).collect(),
            findings,
        }
    }

    fn check_superblock(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (name, error) in ["first", "second"].iter().zip(self.copies) {
            if let Some(error) = error {
                let what = format!(
                    "The {name} copy of the superblock cannot be used: {error}. The other copy \
                     is used."
                );
                findings.push(Finding::new(Severity::Warning, what));
            }
        }
        let flags = self.superblock.flags;
        if flags.contains(DiskFlags::FAILED) {
            let what = "The disk failed and was given up.".into();
            findings.push(Finding::new(Severity::Warning, what));
        }
        findings
    }

    fn check_al(&self, findings: &mut Vec<Finding>) {
        match &self.al {
            Ok(al) => {
                for AlDamage { index, error } in &al.unused {
                    let what = format!(
                        "Block {index} of the activity log cannot be used: {error}. It is not \
                         needed; a write that a crash cut off looks like this."
                    );
                    findings.push(Finding::new(Severity::Note, what));
                }
                let extents = self.layout().device_size().div_ceil(holdfast_units::EXTENT_SIZE);
                let beyond = al.log.extents().filter(|e| u64::from(*e) >= extents).count();
                if beyond > 0 {
                    let what =
                        format!("The activity log has {beyond} extents past the end of the disk.");
                    findings.push(Finding::new(Severity::Warning, what));
                }
            }
            Err(damaged) => {
                let what = format!(
                    "Which blocks may be out of sync is not known, because {damaged}. All of them \
                     count as out of sync unless the disk was stopped cleanly."
                );
                findings.push(Finding::new(Severity::Error, what));
            }
        }
    }

    /// Bits and damage of every slot but this node's own.
    fn count_bitmaps(&self) -> Vec<PeerDump> {
        let layout = self.layout();
        let own = self.superblock.node;
        let slots = (0..layout.slots()).filter_map(NodeId::new);
        let mut peers: Vec<PeerDump> = slots
            .map(|node| {
                let record = self.superblock.peers[node.index()];
                PeerDump { node, record, set: 0, lost: 0, first_error: None }
            })
            .collect();
        for stored in self.pages() {
            let start = u64::from(stored.address.page()) * BITS_PER_PAGE;
            let valid = (layout.blocks() - start).min(BITS_PER_PAGE);
            let peer = &mut peers[stored.address.slot().index()];
            match stored.decode(valid) {
                Ok(page) => peer.set += page.count(valid),
                Err(error) => {
                    peer.set += valid;
                    peer.lost += 1;
                    peer.first_error.get_or_insert(error);
                }
            }
        }
        peers.retain(|peer| peer.node != own);
        peers
    }

    /// The first bitmap block from the `from`th on that is not in a hole, with its bytes; `None`
    /// for the bytes when it cannot be read.
    fn next_stored(&self, from: u64) -> Option<(u64, Option<Box<Block>>)> {
        let layout = self.layout();
        let start = layout.bitmap_start();
        let total = layout.bitmap_len() / BLOCK_SIZE;
        // Blocks that are not wholly there: a file that is shorter than the area. They are lost,
        // not zero.
        let whole = (self.reader.len().saturating_sub(start) / BLOCK_SIZE).min(total);
        let mut index = from;
        if index < whole {
            let at = start + index * BLOCK_SIZE;
            let data = self.reader.next_data(at).map(|data| data.max(at) - start);
            index = data.map_or(whole, |data| (data / BLOCK_SIZE).min(whole));
        }
        if index < whole {
            let block = read_block(self.reader, start + index * BLOCK_SIZE);
            return Some((index, block.map(Box::new)));
        }
        (index < total).then_some((index, None))
    }
}

impl fmt::Debug for MetaImage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetaImage")
            .field("superblock", &self.superblock)
            .field("copies", &self.copies)
            .field("al", &self.al)
            .finish_non_exhaustive()
    }
}

/// What is on disk about one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerDump {
    /// Which node it is.
    pub node: NodeId,
    /// What the superblock says of it.
    pub record: PeerRecord,
    /// How many bits of its bitmap are set, or count as set because their page is lost.
    pub set: u64,
    /// How many pages of its bitmap cannot be used.
    pub lost: u64,
    /// What is wrong with the first of them.
    pub first_error: Option<BlockError>,
}

/// The metadata of a resource in a form to look at; `Display` prints it for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaDump {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// The hot extents; `None` when the activity log is damaged.
    pub hot_extents: Option<Vec<u32>>,
    /// The peers of which anything is known.
    pub peers: Vec<PeerDump>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl fmt::Display for MetaDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sb = &self.superblock;
        let layout = &sb.layout;
        writeln!(f, "resource      {}", sb.resource)?;
        writeln!(f, "node          {}", sb.node)?;
        write!(f, "following     ")?;
        match sb.following {
            Some(node) => writeln!(f, "{node}")?,
            None => writeln!(f, "-")?,
        }
        let size = layout.device_size();
        writeln!(f, "size          {} ({size} bytes)", format_size(size))?;
        writeln!(f, "flags         {}", sb.flags)?;
        writeln!(f, "sequence      {}", sb.sequence)?;
        writeln!(f, "boot          {:032x}", u128::from_be_bytes(sb.boot))?;
        writeln!(f, "placement     {}", layout.placement())?;
        let (start, len) = (layout.area().offset, layout.area().len);
        writeln!(f, "area          {} from byte {start}", format_size(len))?;
        writeln!(f, "generation    {}", sb.current)?;
        for generation in sb.history.iter().filter(|g| !g.is_none()) {
            writeln!(f, "history       {generation}")?;
        }
        match &self.hot_extents {
            Some(hot) => {
                let blocks = layout.al_blocks();
                writeln!(
                    f,
                    "activity log  {} of {} extents hot, ring of {blocks} blocks",
                    hot.len(),
                    layout.al_extents()
                )?;
            }
            None => writeln!(f, "activity log  damaged")?,
        }
        writeln!(f, "bitmap slots  {}", layout.slots())?;
        for peer in &self.peers {
            let PeerRecord { bitmap, current, flags } = peer.record;
            let behind = format_size(peer.set * BLOCK_SIZE);
            write!(
                f,
                "peer {:<8} bitmap {bitmap} current {current} flags {flags} out of sync {behind}",
                peer.node.number()
            )?;
            if peer.lost > 0 {
                write!(f, " ({} pages lost)", peer.lost)?;
            }
            writeln!(f)?;
        }
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        Ok(())
    }
}

/// Every block to write for a fresh metadata area, with its place in bytes: activity log first,
/// then both copies of the superblock. Afterwards `superblock` is as in the newer copy.
///
/// The bitmaps must read as zeros; the caller zeroes them or makes them a hole, and makes that and
/// the activity log durable before it writes the superblocks.
#[must_use]
pub fn format_blocks(superblock: &mut Superblock) -> Vec<(u64, Block)> {
    let layout = superblock.layout;
    let ring = AlLog::new(superblock.resource, &layout, 0).format();
    let mut blocks: Vec<_> =
        ring.into_iter().map(|(index, block)| (layout.al_offset(index), block)).collect();
    blocks.push(superblock.advance());
    blocks.push(superblock.advance());
    blocks
}

fn choose(read: Vec<Result<Superblock, BlockError>>, at: u64) -> Result<Superblock, MetaError> {
    let mut read = read.into_iter();
    let mut next = || read.next().unwrap_or(Err(BlockError::Unreadable));
    let (first, second) = (next(), next());
    Superblock::choose(first, second).map_err(|errors| match errors[0] {
        newer @ (BlockError::Version { .. } | BlockError::Features { .. }) => {
            MetaError::Newer(newer)
        }
        _ => MetaError::NoSuperblock { at, errors },
    })
}

fn check_bitmap(peer: &PeerDump, findings: &mut Vec<Finding>) {
    let node = peer.node;
    if let Some(error) = peer.first_error {
        let what = format!(
            "{} pages of the bitmap for node {node} cannot be used, the first because {error}. \
             Their blocks count as out of sync.",
            peer.lost
        );
        findings.push(Finding::new(Severity::Warning, what));
    } else if peer.set > 0 && peer.record == PeerRecord::default() {
        let what = format!(
            "The bitmap for node {node} has {} bits set, but nothing is known of that node.",
            peer.set
        );
        findings.push(Finding::new(Severity::Note, what));
    }
}

fn read_block(reader: &dyn ReadAt, at: u64) -> Option<Block> {
    let mut block = [0; BLOCK_LEN];
    reader.read_at(at, &mut block).ok().map(|()| block)
}

#[cfg(test)]
mod tests;
