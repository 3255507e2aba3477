use super::*;
use crate::testing::{OTHER, RESOURCE, each_corruption, hex, layout, node};
use crate::{MetaLayout, looks_used};
use proptest::prelude::*;
use std::collections::BTreeSet;

const PAGE: u64 = BITS_PER_PAGE;

fn address(layout: &MetaLayout, page: u32) -> PageAddress {
    PageAddress::new(RESOURCE, layout, node(2), page)
}

#[test]
fn golden_bytes() {
    let layout = layout(PAGE + 70, 1237);
    let mut bitmap = SparseBitmap::new(layout.blocks());
    bitmap.set_range(PAGE..PAGE + 3);
    bitmap.set_range(PAGE + 69..PAGE + 70);
    let golden = "\
000: 48 4f 4c 44 46 41 53 54 01 00 03 00 a7 bd af 98
010: 10 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 01 00 00 00 02 00 00 00
040: 07 00 00 00 00 00 00 00 20 00 00 00 00 00 00 00
";
    assert_eq!(hex(&bitmap.encode_page(&address(&layout, 1))), golden);
}

#[test]
fn pages_round_trip_and_fold() {
    let layout = layout(2 * PAGE + 100, 1237);
    let mut bitmap = SparseBitmap::new(layout.blocks());
    bitmap.set_range(5..7);
    bitmap.set_range(PAGE..layout.blocks());
    let mut loaded = SparseBitmap::new(layout.blocks());
    for page in 0..3 {
        let address = address(&layout, page);
        loaded.load_page(&address, &bitmap.encode_page(&address)).unwrap();
    }
    assert_eq!(loaded, bitmap);
    assert_eq!(loaded.count(), 2 + PAGE + 100);
    assert_eq!(loaded.pages[2], BitmapPage::Full);
    assert_eq!(loaded.dirty_count(), 0);
    assert_eq!(
        looks_used(&bitmap.encode_page(&address(&layout, 0))),
        Some("a bitmap of a Holdfast resource")
    );
    // Never written: clear. A clear page that is written is no block of zeros.
    loaded.load_page(&address(&layout, 2), &[0; 4096]).unwrap();
    assert_eq!(loaded.count(), 2 + PAGE);
    loaded.clear_all();
    assert_ne!(loaded.encode_page(&address(&layout, 2)), [0; 4096]);
}

#[test]
fn a_broken_page_counts_as_all_set_and_is_written_again() {
    let layout = layout(PAGE + 100, 1237);
    let mut bitmap = SparseBitmap::new(layout.blocks());
    bitmap.set_range(3..4);
    let good = bitmap.encode_page(&address(&layout, 1));
    let mut broken = good;
    broken[4000] ^= 4;
    let foreign = bitmap.encode_page(&PageAddress::new(OTHER, &layout, node(2), 1));
    let of_peer = bitmap.encode_page(&PageAddress::new(RESOURCE, &layout, node(1), 1));
    let other_page = bitmap.encode_page(&address(&layout, 0));
    for block in [broken, foreign, of_peer, other_page, [1; 4096]] {
        let mut loaded = SparseBitmap::new(layout.blocks());
        loaded.load_page(&address(&layout, 1), &block).unwrap_err();
        assert!(loaded.runs().eq(std::iter::once(PAGE..PAGE + 100)));
        assert_eq!(loaded.dirty_pages().collect::<Vec<_>>(), [1]);
        loaded.load_page(&address(&layout, 1), &good).unwrap();
        assert_eq!((loaded.count(), loaded.dirty_count()), (0, 0));
        loaded.lose_page(0);
        assert_eq!((loaded.count(), loaded.dirty_count()), (PAGE, 1));
    }
}

#[test]
fn every_corruption_of_one_byte_is_seen() {
    let layout = layout(PAGE, 1237);
    let mut bitmap = SparseBitmap::new(layout.blocks());
    bitmap.set_range(100..20_000);
    let address = address(&layout, 0);
    each_corruption(&bitmap.encode_page(&address), |block| {
        BitmapPage::decode(block, &address, PAGE).is_ok()
    });
}

#[test]
fn a_terabyte_costs_next_to_nothing_while_idle_or_full() {
    let bits = (1 << 40) / 4096;
    let mut bitmap = SparseBitmap::new(bits);
    assert_eq!(bitmap.next_set(0), None);
    assert_eq!(bitmap.set_all(), bits);
    assert_eq!(bitmap.set_all(), 0);
    assert_eq!(bitmap.clear_range(bits - 1..u64::MAX), 1);
    assert_eq!(bitmap.next_run(7, u64::MAX), Some(7..bits - 1));
    let small = |page: &&BitmapPage| !matches!(page, BitmapPage::Bits(_));
    assert_eq!(bitmap.pages.iter().filter(small).count(), bitmap.pages.len() - 1);
    assert!(bitmap.pages.len() * (size_of::<BitmapPage>() + 2) < 160 << 10);
    assert_eq!(bitmap.clear_all(), bits - 1);
    assert!(bitmap.pages.iter().all(|page| *page == BitmapPage::Clear));
    assert_eq!(bitmap.next_clear(bits - 1), Some(bits - 1));
    assert_eq!(bitmap.next_clear(bits), None);
}

#[test]
fn an_empty_bitmap_holds_nothing() {
    let mut bitmap = SparseBitmap::new(0);
    assert!(bitmap.is_empty() && bitmap.set_all() == 0 && !bitmap.get(0));
    assert_eq!(bitmap.next_run(0, 10), None);
    assert_eq!(bitmap.next_clear(0), None);
    assert_eq!(bitmap.page_count(), 0);
    assert_eq!(bitmap.dirty_pages_of(0..10).count(), 0);
}

#[test]
fn dirty_pages_are_those_whose_bytes_changed() {
    let mut bitmap = SparseBitmap::new(200 * PAGE);
    bitmap.set_range(3 * PAGE - 1..3 * PAGE + 1);
    bitmap.set_range(130 * PAGE..131 * PAGE);
    bitmap.clear_range(150 * PAGE..160 * PAGE);
    assert_eq!(bitmap.dirty_pages().collect::<Vec<_>>(), [2, 3, 130]);
    assert_eq!(bitmap.dirty_pages_of(3 * PAGE..131 * PAGE).collect::<Vec<_>>(), [3, 130]);
    assert_eq!(bitmap.dirty_pages_of(0..2 * PAGE).count(), 0);
    assert_eq!(bitmap.dirty_pages_of(0..2 * PAGE + 1).collect::<Vec<_>>(), [2]);
    assert_eq!(bitmap.dirty_pages_of(5..5).count(), 0);
    assert_eq!(bitmap.take_dirty_pages(2), [2, 3]);
    assert_eq!(bitmap.dirty_count(), 1);
    bitmap.set_range(3 * PAGE..3 * PAGE + 1);
    assert_eq!(bitmap.dirty_count(), 1, "a bit that was set already changes nothing");
    bitmap.set_range(3 * PAGE..3 * PAGE + 2);
    bitmap.mark_dirty(2);
    bitmap.mark_dirty(2);
    assert_eq!(bitmap.take_dirty_pages(usize::MAX), [2, 3, 130]);
    bitmap.mark_clean(2);
    assert_eq!(bitmap.dirty_count(), 0);
    assert_eq!(bitmap.page_of(3 * PAGE), 3);
    assert_eq!(bitmap.blocks_of_page(3), 3 * PAGE..4 * PAGE);
}

#[test]
fn runs_are_cut_only_by_their_limit() {
    let mut bitmap = SparseBitmap::new(4 * PAGE);
    bitmap.set_range(100..3 * PAGE + 5);
    assert_eq!(bitmap.next_run(0, 50), Some(100..150));
    assert_eq!(bitmap.next_run(PAGE - 1, 3), Some(PAGE - 1..PAGE + 2));
    assert_eq!(bitmap.next_run(200, u64::MAX), Some(200..3 * PAGE + 5));
    assert_eq!(bitmap.next_run(0, 0), None);
    assert_eq!(bitmap.next_run(3 * PAGE + 5, 9), None);
    assert_eq!(bitmap.next_run(u64::MAX, 9), None);
}

#[derive(Clone, Debug)]
enum Op {
    Set(Range<u64>),
    Clear(Range<u64>),
    SetAll,
    ClearAll,
    Or(Vec<Range<u64>>),
    Resize(u64, bool),
}

fn blocks() -> impl Strategy<Value = Range<u64>> {
    // Near word and page borders, where mistakes live, and anywhere.
    let near =
        prop_oneof![Just(0), Just(64), Just(PAGE), Just(2 * PAGE), Just(3 * PAGE), 0..4 * PAGE];
    let len = prop_oneof![0_u64..4, 60_u64..70, Just(PAGE), 0..3 * PAGE];
    (near, 0_u64..3, len).prop_map(|(at, back, len)| {
        let start = at.saturating_sub(back);
        start..start + len
    })
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => blocks().prop_map(Op::Set),
        6 => blocks().prop_map(Op::Clear),
        1 => Just(Op::SetAll),
        1 => Just(Op::ClearAll),
        2 => proptest::collection::vec(blocks(), 0..4).prop_map(Op::Or),
        2 => (1..4 * PAGE, any::<bool>()).prop_map(|(bits, set)| Op::Resize(bits, set)),
    ]
}

fn apply(op: Op, bitmap: &mut SparseBitmap, model: &mut BTreeSet<u64>) {
    let bits = bitmap.len();
    let before = model.len();
    let (changed, expected) = match op {
        Op::Set(range) => {
            model.extend(range.start..range.end.min(bits));
            (bitmap.set_range(range), model.len() - before)
        }
        Op::Clear(range) => {
            model.retain(|block| !range.contains(block));
            (bitmap.clear_range(range), before - model.len())
        }
        Op::SetAll => {
            model.extend(0..bits);
            (bitmap.set_all(), model.len() - before)
        }
        Op::ClearAll => {
            model.clear();
            (bitmap.clear_all(), before)
        }
        Op::Or(ranges) => {
            let mut other = SparseBitmap::new(3 * PAGE);
            for range in ranges {
                other.set_range(range.clone());
                model.extend(range.start..range.end.min(bits).min(3 * PAGE));
            }
            (bitmap.or_assign(&other), model.len() - before)
        }
        Op::Resize(new, set) => {
            bitmap.resize(new, set);
            model.retain(|block| *block < new);
            if set && new > bits {
                model.extend(bits..new);
            }
            (0, 0)
        }
    };
    assert_eq!(changed, expected as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn does_what_a_set_of_numbers_does(
        bits in 1..4 * PAGE,
        ops in proptest::collection::vec(ops(), 1..12),
        probes in proptest::collection::vec((0..4 * PAGE, 1_u64..500), 20),
        ranges in proptest::collection::vec(blocks(), 4),
    ) {
        let mut bitmap = SparseBitmap::new(bits);
        let mut model = BTreeSet::new();
        let mut disk = bitmap.clone();
        for op in ops {
            apply(op, &mut bitmap, &mut model);
            prop_assert_eq!(bitmap.count(), model.len() as u64);
            // Writing only the dirty pages keeps the disk the same as the memory.
            let layout = layout(bitmap.len(), 1237);
            disk.resize(bitmap.len(), false);
            for page in bitmap.take_dirty_pages(usize::MAX) {
                let address = address(&layout, page);
                disk.load_page(&address, &bitmap.encode_page(&address)).unwrap();
            }
            prop_assert_eq!(&disk, &bitmap);
        }
        let bits = bitmap.len();
        for (from, len) in probes {
            prop_assert_eq!(bitmap.get(from), model.contains(&from));
            let first = model.range(from..).next().copied();
            prop_assert_eq!(bitmap.next_set(from), first);
            prop_assert_eq!(bitmap.next_clear(from), (from..bits).find(|b| !model.contains(b)));
            let run = first.map(|first| {
                let limit = (first + len).min(bits);
                first..(first..limit).find(|b| !model.contains(b)).unwrap_or(limit)
            });
            prop_assert_eq!(bitmap.next_run(from, len), run);
        }
        for range in ranges {
            prop_assert_eq!(bitmap.count_range(range.clone()), model.range(range).count() as u64);
        }
        prop_assert_eq!(bitmap.runs().flatten().collect::<BTreeSet<_>>(), model);
        for (i, page) in bitmap.pages.iter().enumerate() {
            prop_assert_eq!(page, &page.clone().collapsed(bitmap.valid(i)));
        }
    }

    #[test]
    fn garbage_never_panics(noise in proptest::collection::vec(any::<u8>(), 4096)) {
        let layout = layout(PAGE + 9, 1237);
        let mut bitmap = SparseBitmap::new(layout.blocks());
        let noise: Block = noise.try_into().unwrap();
        prop_assert!(bitmap.load_page(&address(&layout, 1), &noise).is_err());
        prop_assert_eq!(bitmap.count(), 9);
    }
}
