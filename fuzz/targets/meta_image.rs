//! A whole metadata area with any changes: loading, checking, dumping never fails other than by an
//! error, and the dump can be shown.
#![no_main]

use holdfast_format::{MetaImage, Placement};
use holdfast_fuzz::{Patch, fresh_image};
use holdfast_units::PeerSet;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static FRESH: LazyLock<Vec<u8>> = LazyLock::new(fresh_image);

/// Above it, the bitmap in memory is large because the device is.
const SMALL: u64 = 1 << 40;

fuzz_target!(|input: (Vec<Patch>, Option<u16>, bool)| {
    let (patches, cut, internal) = input;
    let mut image = FRESH.clone();
    patches.iter().for_each(|patch| patch.apply(&mut image));
    if let Some(cut) = cut {
        image.truncate(usize::from(cut));
    }
    let placement = if internal {
        Placement::Internal { device_len: image.len() as u64 }
    } else {
        Placement::External { base: 0 }
    };
    let Ok(found) = MetaImage::load(&image, placement) else { return };
    if found.layout().device_size() > SMALL {
        return;
    }
    let _ = found.check();
    assert!(!found.dump().to_string().is_empty());
    for (_, bitmap, _) in found.bitmaps(PeerSet::from_bits(u32::MAX)) {
        assert!(bitmap.count() <= bitmap.len());
    }
});
