//! The spares of a disk are taken into use: read, checked, mended, made one map.

use std::collections::HashMap;

use holdfast_format::remap::{EntryState, SpareId};

use super::found::{Found, TableWrites, read};
use super::layer::Remap;
use super::map::{Map, Place, SlotRef};
use super::set::{MADE, check_members, note_unnamed, proven_members};
use super::setup::{Bed, DiskIdentity, SpareAt, SpareError, SpareErrorKind, bed, in_use};
use super::spare::{Backing, Spare};
use super::{Details, UNREAD};
use crate::engine::Engine;
use crate::{BackingKind, Disk};

impl Disk {
    /// The same disk, whose bad sectors go to these spares. All spares that the disk has must be
    /// given. Blocks: it reads the tables and repairs what is broken of them. Nothing is written
    /// when it fails because of what is on a spare.
    ///
    /// # Errors
    /// [`SpareError`] says why in one sentence.
    pub fn with_spares(
        self,
        spares: Vec<SpareAt>,
        owner: &DiskIdentity,
    ) -> Result<Self, SpareError> {
        self.with_noted_spares(spares, owner, &TableWrites::new())
    }

    /// The same, and a spare whose table was written less often than somebody noted is refused: an older
    /// image of it was put back.
    ///
    /// # Errors
    /// As [`with_spares`](Self::with_spares).
    pub fn with_noted_spares(
        mut self,
        spares: Vec<SpareAt>,
        owner: &DiskIdentity,
        noted: &TableWrites,
    ) -> Result<Self, SpareError> {
        let mut spares = spares;
        let mut found = Vec::new();
        for spare in &mut spares {
            found.push(read(&mut self.bed_of(spare)?, owner)?);
        }
        found.iter().try_for_each(|spare| spare.check_age(noted))?;
        let mut notes = Vec::new();
        let members = check_members(&found, &mut notes)?;
        let highest = found.iter().map(|f| f.header.sequence).max().unwrap_or(0);
        let sequence = highest.max(MADE + 1);
        let mut used = Vec::new();
        for (at, mut spare) in spares.into_iter().zip(found) {
            if !members.contains(&spare.header.spare) {
                continue;
            }
            if spare.header.sequence != sequence || spare.header.members != members {
                spare.outdated = spare.stale_headers == [false; 2];
                (spare.header.sequence, spare.stale_headers) = (sequence, [true; 2]);
                spare.header.members.clone_from(&members);
            }
            used.push((at, spare));
        }
        self.check_fit(&used)?;
        let unit = used.first().map_or(4096, |(_, f)| f.header.layout.unit());
        let mut map = Map::new(unit);
        let (order, losers) = merge(&used, &mut map);
        if !self.info().read_only {
            for (at, spare) in &mut used {
                spare.repair(&mut self.bed_of(at)?)?;
                if spare.weak_header {
                    notes.push(format!(
                        "one of the two copies of the header of the spare {} cannot be written; add \
                         another spare and remove this one",
                        spare.name
                    ));
                }
            }
            // What counts is durable on all spares now; only then its leftovers may go.
            for ((at, spare), losers) in used.iter_mut().zip(&losers) {
                if !losers.is_empty() {
                    let mut bed = self.bed_of(at)?;
                    spare.free(&mut bed, losers).map_err(|error| bed.disk_failed(error))?;
                }
            }
        }
        let unnamed = note_unnamed(&used, &mut notes);
        let mut block_size = self.info().block_size;
        let mut in_layer = Vec::new();
        for ((at, spare), leaving) in used.into_iter().zip(unnamed) {
            let backing = match at {
                SpareAt::Region(range) => Backing::Region(range.offset),
                SpareAt::Disk(mut disk) => {
                    block_size = block_size.max(disk.info().block_size);
                    if self.share_wake(&mut disk).is_err() {
                        let why = "it cannot be used together with another disk; use a file or a \
                                   block device";
                        return Err(spare.fail(SpareErrorKind::Unusable(why)));
                    }
                    Backing::Disk(disk)
                }
            };
            let weak_header = spare.weak_header;
            let in_use = in_use(spare.header, spare.table, backing);
            in_layer.push(Spare { weak_header, leaving, ..in_use });
        }
        let details = Details {
            size: self.size(),
            block_size,
            resource: owner.resource,
            disk: owner.disk,
            has_medium: self.info().kind != BackingKind::Remote,
        };
        let wrap = |main, pool: &_, wake: &_| {
            let remap = Remap::new(main, in_layer, map, order + 1, details, pool, wake);
            Engine::Remap(Box::new(remap))
        };
        Ok(self.wrapped(wrap, block_size, notes))
    }

    /// The spares that the disk has, if these are all of them: what the newest of their headers says;
    /// of no spares, none. Nothing is written. Blocks.
    ///
    /// # Errors
    /// [`SpareError`]: one is missing, or older than was noted, or none of these says which ones there are.
    pub fn spare_members(
        &mut self,
        spares: &mut [SpareAt],
        owner: &DiskIdentity,
        noted: &TableWrites,
    ) -> Result<Vec<SpareId>, SpareError> {
        let mut found = Vec::new();
        for spare in spares {
            found.push(read(&mut self.bed_of(spare)?, owner)?);
        }
        found.iter().try_for_each(|spare| spare.check_age(noted))?;
        proven_members(&found)
    }

    fn bed_of<'a>(&'a mut self, at: &'a mut SpareAt) -> Result<Bed<'a>, SpareError> {
        match at {
            SpareAt::Region(range) => bed(self, Some(*range)),
            SpareAt::Disk(disk) => bed(disk, None),
        }
    }

    /// Whether the spares and the disk fit together.
    fn check_fit(&self, used: &[(SpareAt, Found)]) -> Result<(), SpareError> {
        let Some((_, first)) = used.first() else { return Ok(()) };
        let unit = first.header.layout.unit();
        if self.in_flight() > 0 || !self.size().is_multiple_of(u64::from(unit)) {
            let why = "the disk's size is not a multiple of the unit, or operations are in flight";
            return Err(first.fail(SpareErrorKind::Unfit(why)));
        }
        if matches!(self.engine(), Engine::Remap(_) | Engine::Replace(_)) {
            let why = "the disk has spares already; add it to them";
            return Err(first.fail(SpareErrorKind::Unfit(why)));
        }
        if self.info().block_size > unit {
            let why = "the disk's blocks are larger than its units; format it with units of 4096";
            return Err(first.fail(SpareErrorKind::Unfit(why)));
        }
        for (at, spare) in used {
            if spare.header.layout.unit() != unit {
                return Err(spare.fail(SpareErrorKind::OtherUnit));
            }
            let units = self.size() / u64::from(unit);
            let behind = |entry: &holdfast_format::remap::Entry| {
                entry.state != EntryState::BadSlot && entry.unit >= units
            };
            if spare.table.entries().any(|(_, entry)| behind(&entry)) {
                return Err(spare.fail(SpareErrorKind::DiskTooSmall(self.size())));
            }
            if let SpareAt::Disk(disk) = at {
                let read_only = disk.info().read_only && !self.info().read_only;
                if read_only || disk.info().block_size > unit {
                    let why =
                        "it is open for reading only, or its blocks are larger than its units";
                    return Err(spare.fail(SpareErrorKind::Unusable(why)));
                }
            }
        }
        Ok(())
    }
}

/// Fills the map. The highest order, and the slots of each spare that another one replaces.
fn merge(used: &[(SpareAt, Found)], map: &mut Map) -> (u64, Vec<Vec<u32>>) {
    let mut winners: HashMap<u64, (u64, Place)> = HashMap::new();
    let mut losers = vec![Vec::new(); used.len()];
    let mut highest = 0;
    for (number, (_, spare)) in used.iter().enumerate() {
        for (slot, entry) in spare.table.entries() {
            highest = highest.max(entry.order);
            if entry.state == EntryState::BadSlot {
                continue;
            }
            let lost = entry.state == EntryState::Lost;
            let unread = lost && entry.reason == UNREAD;
            let this = (entry.order, Place { slot: SlotRef { spare: number, slot }, lost, unread });
            let loser = match winners.get(&entry.unit) {
                None => None,
                Some(other) if other.0 > entry.order => {
                    losers[number].push(slot);
                    continue;
                }
                Some(other) => Some(other.1.slot),
            };
            if let Some(SlotRef { spare, slot }) = loser {
                losers[spare].push(slot);
            }
            winners.insert(entry.unit, this);
        }
    }
    for (unit, (_, place)) in winners {
        map.insert(unit, place);
    }
    (highest, losers)
}
