//! Random requests over random faults, against a plain model.

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_format::remap::EntryState;
use holdfast_store::{BadSector, DiskErrorKind, DiskOp, OpId, Outcome, RemapOp};
use holdfast_units::ByteRange;

use crate::bed::{Bed, Rig, at};
use crate::world::Rng;

const SECTOR: u64 = 512;

/// What each sector may hold: one value, or several after a write that failed.
struct Model {
    sectors: Vec<BTreeSet<u8>>,
    /// Sectors that were marked lost, or may have been when they were moved.
    lost: BTreeSet<u64>,
    unit: u64,
}

struct Bench {
    bed: Bed,
    rig: Rig,
    model: Model,
    rng: Rng,
    /// Whether slots of the spares are spoilt, too.
    spoils_spares: bool,
}

fn sectors(range: ByteRange) -> std::ops::Range<u64> {
    range.offset / SECTOR..range.end() / SECTOR
}

impl Bench {
    fn new(seed: u64, main_blocks: u64, unit: u32, slots: &[u32], spoils_spares: bool) -> Self {
        let bed = Bed::new(main_blocks, unit, slots);
        let rig = bed.open();
        let count = usize::try_from(bed.main.size() / SECTOR).unwrap();
        let model = Model {
            sectors: vec![BTreeSet::from([0]); count],
            lost: BTreeSet::new(),
            unit: u64::from(unit),
        };
        let rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { bed, rig, model, rng, spoils_spares }
    }

    fn size(&self) -> u64 {
        self.bed.main.size()
    }

    /// Any range of sectors, most of them short.
    fn range(&mut self) -> ByteRange {
        let start = self.rng.below(self.size() / SECTOR);
        let longest = if self.rng.one_in(4) { 2048 } else { 24 };
        let len = 1 + self.rng.below(longest.min(self.size() / SECTOR - start));
        at(start * SECTOR, len * SECTOR)
    }

    fn units(&mut self) -> ByteRange {
        let units = self.size() / self.model.unit;
        let start = self.rng.below(units);
        let len = 1 + self.rng.below((units - start).min(6));
        at(start * self.model.unit, len * self.model.unit)
    }

    fn out(&self, range: ByteRange) -> ByteRange {
        let unit = self.model.unit;
        let (start, end) = (range.offset / unit * unit, range.end().div_ceil(unit) * unit);
        at(start, end - start)
    }

    /// Whether something is wrong with a unit of the range, on the main disk or on its spare.
    fn is_suspect(&self, range: ByteRange) -> bool {
        let hull = self.out(range);
        let on_main = self.rig.main.bad_sectors();
        on_main.iter().any(|(offset, _)| hull.overlaps(at(*offset, SECTOR)))
            || sectors(hull).any(|sector| self.model.lost.contains(&sector))
            || self.rig.spares.iter().any(|spare| !spare.bad_sectors().is_empty())
    }

    fn spoil(&mut self) {
        let kinds = [BadSector::UntilWritten, BadSector::Forever, BadSector::Stuck];
        let bad = kinds[usize::try_from(self.rng.below(3)).unwrap()];
        let start = self.rng.below(self.size() / SECTOR);
        let len = (1 + self.rng.below(40)).min(self.size() / SECTOR - start);
        self.rig.main.spoil(at(start * SECTOR, len * SECTOR), bad);
        if self.spoils_spares && self.rng.one_in(3) {
            let spare = usize::try_from(self.rng.below(self.rig.spares.len() as u64)).unwrap();
            // Slots only: behind the header and the first copy of the table, before the second.
            let slots = self.bed.spares[spare].size() - (128 << 10);
            let offset = (16 << 10) + self.rng.below(slots / SECTOR) * SECTOR;
            self.rig.spares[spare].spoil(at(offset, SECTOR), bad);
        }
    }

    fn read(&mut self, range: ByteRange) {
        let (data, bad) = match self.rig.disk.execute(DiskOp::Read { range, holes: false }) {
            Ok(Outcome::Data(data)) => (data, Vec::new()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.kind, DiskErrorKind::Unreadable, "{error}");
                let partial = self.rig.disk.partial(OpId(0)).unwrap();
                (partial.data, partial.bad)
            }
        };
        assert!(bad.iter().all(|bad| range.contains(*bad) && !bad.is_empty()));
        assert!(bad.windows(2).all(|pair| pair[0].end() < pair[1].offset), "{bad:?}");
        for (bytes, sector) in data.chunks(512).zip(sectors(range)) {
            let here = at(sector * SECTOR, SECTOR);
            if bad.iter().any(|bad| bad.contains(here)) {
                assert!(self.is_suspect(here), "{here} is said to be bad");
                continue;
            }
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{here} is mixed");
            let may = &mut self.model.sectors[usize::try_from(sector).unwrap()];
            assert!(may.contains(&bytes[0]), "{here} is {} and not of {may:?}", bytes[0]);
            *may = BTreeSet::from([bytes[0]]);
        }
    }

    /// A write of some kind has ended.
    fn wrote(&mut self, range: ByteRange, fill: u8, error: Option<DiskErrorKind>) {
        if let Some(kind) = error {
            assert!(matches!(kind, DiskErrorKind::Io | DiskErrorKind::SpareFull), "{kind:?}");
            assert!(self.is_suspect(range), "a write of {range} failed for no reason");
            let whole = self.out(range) == range && !self.spoils_spares;
            // Other units of the same request may have given theirs back since.
            let units = range.len / self.model.unit;
            let full = kind == DiskErrorKind::SpareFull && self.rig.stats().free < units;
            assert!(full || !whole, "{kind:?} of whole units, and there are slots");
        }
        for sector in sectors(range) {
            let may = &mut self.model.sectors[usize::try_from(sector).unwrap()];
            if error.is_none() {
                may.clear();
                self.model.lost.remove(&sector);
            }
            may.insert(fill);
        }
    }

    fn step(&mut self) {
        let fill = u8::try_from(self.rng.below(255) + 1).unwrap();
        let range = self.range();
        let bytes = |range: ByteRange, fill| Bytes::from(vec![fill; range.len as usize]);
        let kind = |error: holdfast_store::DiskError| error.kind;
        match self.rng.below(20) {
            0..8 => {
                let fua = self.rng.one_in(4);
                let write = DiskOp::Write { range, data: bytes(range, fill), fua };
                let error = self.rig.disk.execute(write).err().map(kind);
                self.wrote(range, fill, error);
            }
            8..12 => self.read(range),
            12 => {
                let unmap = self.rng.one_in(2);
                let zeroes = DiskOp::WriteZeroes { range, unmap, fua: false };
                let error = self.rig.disk.execute(zeroes).err().map(kind);
                self.wrote(range, 0, error);
            }
            13 => {
                let error = self.rig.disk.execute(DiskOp::Discard { range }).err().map(kind);
                self.wrote(range, 0, error);
            }
            14 => {
                let range = self.units();
                let what = RemapOp::Repair { range, data: bytes(range, fill) };
                let error = self.rig.disk.remap_now(what).0.err().map(kind);
                self.wrote(range, fill, error);
                if error.is_none() && !self.spoils_spares {
                    let read = DiskOp::Read { range, holes: false };
                    assert!(self.rig.disk.execute(read).is_ok(), "repaired, and yet unreadable");
                }
            }
            15 => {
                let range = self.units();
                if self.rig.disk.remap_now(RemapOp::MarkLost { range }).0.is_ok() {
                    self.model.lost.extend(sectors(range));
                    let error = self.rig.disk.execute(DiskOp::Read { range, holes: false });
                    assert_eq!(error.unwrap_err().kind, DiskErrorKind::Unreadable);
                    assert_eq!(self.rig.disk.partial(OpId(0)).unwrap().bad, [range]);
                } else {
                    // As many as there was room for.
                    let entries = self.rig.disk.remap_entries();
                    let lost = entries.filter(|e| e.state == EntryState::Lost);
                    let here = lost.filter(|entry| range.contains(entry.range));
                    self.model.lost.extend(here.flat_map(|entry| sectors(entry.range)));
                }
            }
            16 => {
                let range = self.units();
                let _ = self.rig.disk.remap_now(RemapOp::Move { range, imported: true });
                self.learn_what_is_lost();
            }
            17 => {
                let range = self.units();
                let _ = self.rig.disk.remap_now(RemapOp::MoveBack { range });
            }
            18 => self.spoil(),
            _ if self.rng.one_in(3) => self.open_again(),
            _ => {
                let (start, len) = (range.offset, range.len.min(8 * SECTOR));
                self.rig.main.mend(at(start, len));
                assert_eq!(self.rig.disk.execute(DiskOp::Flush), Ok(Outcome::Done));
            }
        }
    }

    /// What could not be read when it was to be moved is lost from then on.
    fn learn_what_is_lost(&mut self) {
        let lost = self.rig.disk.remap_entries().filter(|entry| entry.state == EntryState::Lost);
        for entry in lost.collect::<Vec<_>>() {
            assert!(self.is_suspect(entry.range), "{} is lost for no reason", entry.range);
            self.model.lost.extend(sectors(entry.range));
        }
    }

    fn open_again(&mut self) {
        let count = |rig: &Rig| {
            let stats = rig.stats();
            (stats.mapped, stats.lost, stats.bad_slots, stats.free)
        };
        let before = count(&self.rig);
        let bad = |handle: &holdfast_store::FaultHandle| handle.bad_sectors();
        let (main, spares) =
            (bad(&self.rig.main), self.rig.spares.iter().map(bad).collect::<Vec<_>>());
        self.rig = self.bed.open();
        for (handle, bad) in
            [&self.rig.main].into_iter().chain(&self.rig.spares).zip([main].iter().chain(&spares))
        {
            bad.iter().for_each(|(offset, bad)| handle.spoil(at(*offset, SECTOR), *bad));
        }
        assert_eq!(count(&self.rig), before);
    }

    fn check_all(&mut self) {
        for offset in (0..self.size()).step_by(16 << 20) {
            self.read(at(offset, (self.size() - offset).min(16 << 20)));
        }
        let mut units = BTreeSet::new();
        let mut slots = BTreeSet::new();
        for entry in self.rig.disk.remap_entries() {
            assert!(slots.insert((entry.spare, entry.slot)));
            assert!(entry.state == EntryState::BadSlot || units.insert(entry.range));
        }
        let stats = self.rig.stats();
        assert_eq!(stats.free + slots.len() as u64, stats.slots, "slots leak");
        assert_eq!(stats.mapped + stats.lost, units.len() as u64);
    }
}

#[test]
fn random_requests_over_random_faults_behave_like_the_model() {
    let seeds = std::env::var("HOLDFAST_MODEL_SEEDS").ok();
    for seed in 0..seeds.map_or(16, |text| text.parse().unwrap()) {
        let unit = if seed % 2 == 0 { 4096 } else { 512 };
        let slots: &[u32] = if seed % 3 == 0 { &[60, 40] } else { &[400] };
        let mut bench = Bench::new(seed, 256, unit, slots, seed % 5 == 4);
        for _ in 0..150 {
            bench.step();
        }
        bench.check_all();
        bench.open_again();
        bench.check_all();
    }
}

#[test]
fn a_thousand_bad_blocks_singly_and_in_runs() {
    let mut bench = Bench::new(77, 16384, 4096, &[2000], false);
    let mut left: u64 = 1000;
    while left > 0 {
        let run = if bench.rng.one_in(10) { left.min(1 + bench.rng.below(100)) } else { 1 };
        let first = bench.rng.below(16384 - run);
        bench.rig.main.spoil(at(first * 4096, run * 4096), BadSector::Forever);
        left -= run;
    }
    let size = bench.size();
    for (i, offset) in (0..size).step_by(4 << 20).enumerate() {
        let range = at(offset, 4 << 20);
        let data = Bytes::from(vec![u8::try_from(i + 1).unwrap(); 4 << 20]);
        let error = bench.rig.disk.execute(DiskOp::Write { range, data, fua: false }).err();
        bench.wrote(range, u8::try_from(i + 1).unwrap(), error.map(|error| error.kind));
        assert_eq!(error, None);
    }
    let bad: BTreeSet<u64> =
        bench.rig.main.bad_sectors().iter().map(|(offset, _)| offset / 4096).collect();
    assert_eq!(bench.rig.stats().mapped, bad.len() as u64);
    for _ in 0..200 {
        let range = bench.range();
        bench.read(range);
        let range = bench.range();
        let data = Bytes::from(vec![200; range.len as usize]);
        let error = bench.rig.disk.execute(DiskOp::Write { range, data, fua: false }).err();
        assert_eq!(error, None);
        bench.wrote(range, 200, None);
    }
    bench.check_all();
    bench.open_again();
    bench.check_all();
    assert!(bench.rig.disk.execute(DiskOp::Read { range: at(0, 32 << 20), holes: false }).is_ok());
}
