use super::{LayoutError, MAX_DEVICE_SIZE, MetaLayout, Placement};
use crate::testing::{layout, node};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use proptest::prelude::*;

const TIB: u64 = 1 << 40;

fn internal(size: u64, device_len: u64, slots: u8) -> Result<MetaLayout, LayoutError> {
    MetaLayout::new(size, 1237, 8, slots, Placement::Internal { device_len })
}

/// Every block of the area is used once, and none outside of it.
fn assert_tiles(layout: &MetaLayout) {
    let mut offsets = vec![layout.superblock_offset(0), layout.superblock_offset(1)];
    offsets.extend((0..layout.al_blocks()).map(|i| layout.al_offset(i)));
    let mut numbers = Vec::new();
    for page in 0..layout.pages() {
        for slot in (0..layout.slots()).map(node) {
            offsets.push(layout.page_offset(slot, page));
            numbers.push(layout.page_number(slot, page));
        }
    }
    offsets.sort_unstable();
    let area = layout.area();
    let expected: Vec<u64> =
        (0..layout.block_count()).map(|i| area.offset + i * BLOCK_SIZE).collect();
    assert_eq!(offsets, expected);
    let first = 2 + u64::from(layout.al_blocks());
    assert_eq!(numbers, (first..layout.block_count()).collect::<Vec<_>>());
}

#[test]
fn external_starts_with_the_superblocks() {
    let layout = layout(100_000, 1237);
    assert_eq!(layout.superblock_offset(0), 0);
    assert_eq!(layout.superblock_offset(1), 4096);
    assert_eq!(layout.al_start(), 8192);
    assert_eq!(layout.al_blocks(), 8);
    assert_eq!(layout.bitmap_start(), 10 * 4096);
    assert_eq!(layout.pages(), 4);
    assert_eq!(layout.area(), ByteRange::new(0, 26 * 4096));
    assert_tiles(&layout);
}

#[test]
fn internal_ends_with_the_superblocks_whatever_the_length() {
    for odd in [0, 1, 512, 4095] {
        let device_len = (1 << 30) + odd;
        let size = MetaLayout::usable_size(device_len, 8, 8).unwrap();
        let layout = internal(size, device_len, 8).unwrap();
        assert_eq!(layout.superblock_offset(1), (1 << 30) - 4096);
        assert_eq!(layout.superblock_offset(0), (1 << 30) - 8192);
        assert_eq!(layout.area().end(), 1 << 30);
        assert!(layout.area().offset >= size);
        assert_tiles(&layout);
    }
}

#[test]
fn terabytes_with_all_slots_do_not_overflow() {
    let external = Placement::External { base: 0 };
    let layout = MetaLayout::new(TIB, 65534, 73, 32, external).unwrap();
    assert_eq!(layout.pages(), 8323);
    assert_eq!(layout.area().len, (2 + 73 + 8323 * 32) * 4096);
    let layout = MetaLayout::new(MAX_DEVICE_SIZE, 65534, 73, 32, external).unwrap();
    assert_eq!(layout.pages(), (MAX_DEVICE_SIZE / 4096).div_ceil(32256).try_into().unwrap());
    assert!(layout.area().len < MAX_DEVICE_SIZE);
    assert_eq!(MetaLayout::usable_size(u64::MAX, 8, 32), Ok(MAX_DEVICE_SIZE));
    assert!(internal(MAX_DEVICE_SIZE, u64::MAX, 32).is_ok());
}

#[test]
fn impossible_numbers_are_refused_with_a_sentence() {
    let external = |base| Placement::External { base };
    for size in [0, 1, 4095, 4097, MAX_DEVICE_SIZE + 4096, u64::MAX / 4096 * 4096] {
        let refused = MetaLayout::new(size, 1237, 8, 8, external(0));
        assert_eq!(refused, Err(LayoutError::Size { size }));
    }
    for base in [1, 4095, u64::MAX, u64::MAX / 4096 * 4096, i64::MAX as u64 / 4096 * 4096] {
        assert_eq!(
            MetaLayout::new(4096, 1237, 8, 8, external(base)),
            Err(LayoutError::Base { base })
        );
    }
    for slots in [0, 33, 255] {
        let refused = MetaLayout::new(4096, 1237, 8, slots, external(0));
        assert_eq!(refused, Err(LayoutError::Slots { slots }));
    }
    for (extents, blocks) in
        [(0, 8), (1, 1), (1, 0), (912, 1), (913, 2), (65535, 1024), (65534, 72), (1, 1025)]
    {
        let refused = MetaLayout::new(4096, extents, blocks, 8, external(0));
        assert_eq!(refused, Err(LayoutError::ActivityLog { extents, blocks }));
    }
    for device_len in [0, 4096, 8192, 18 * 4096] {
        let refused = MetaLayout::usable_size(device_len, 8, 8).unwrap_err();
        assert_eq!(refused, LayoutError::DeviceTooSmall { device_len, needed: 19 * 4096 });
        assert!(internal(4096, device_len, 8).is_err());
    }
    assert_eq!(MetaLayout::usable_size(19 * 4096, 8, 8), Ok(4096));
    assert_eq!(
        internal(4096, 18 * 4096, 8).unwrap_err().to_string(),
        "a disk of 72 KiB is too small: data and metadata take 76 KiB (77824 bytes)"
    );
}

#[test]
fn growing_moves_no_external_block() {
    let small = layout(40_000, 1237);
    let large = small.with_device_size(900_000 * 4096).unwrap();
    for page in 0..small.pages() {
        for slot in (0..4).map(node) {
            assert_eq!(small.page_offset(slot, page), large.page_offset(slot, page));
            assert_eq!(small.page_number(slot, page), large.page_number(slot, page));
        }
    }
    assert_eq!(small.al_start(), large.al_start());
    assert_eq!(small.with_al_extents(6384).unwrap().bitmap_start(), small.bitmap_start());
    assert!(small.with_al_extents(6385).is_err());
}

proptest! {
    #[test]
    fn the_usable_size_is_the_largest_that_fits(
        blocks in 0_u64..2_000_000,
        odd in 0_u64..4096,
        slots in 1_u8..=32,
    ) {
        let device_len = blocks * BLOCK_SIZE + odd;
        match MetaLayout::usable_size(device_len, 8, slots) {
            Ok(size) => {
                let layout = internal(size, device_len, slots).unwrap();
                prop_assert!(layout.area().offset >= size);
                prop_assert_eq!(layout.area().end(), blocks * BLOCK_SIZE);
                prop_assert!(internal(size + BLOCK_SIZE, device_len, slots).is_err());
            }
            Err(_) => prop_assert!(internal(BLOCK_SIZE, device_len, slots).is_err()),
        }
    }

    #[test]
    fn any_numbers_give_a_layout_or_an_error(
        size: u64, extents: u16, blocks: u32, slots: u8, anchor: u64, internal: bool,
    ) {
        let placement = if internal {
            Placement::Internal { device_len: anchor }
        } else {
            Placement::External { base: anchor }
        };
        for size in [size, size & MAX_DEVICE_SIZE, size % MAX_DEVICE_SIZE / 4096 * 4096] {
            let _ = MetaLayout::new(size, extents, blocks % 2048, slots % 40, placement);
        }
        let _ = MetaLayout::usable_size(anchor, blocks, slots);
    }
}
