//! A superblock, as it is and with a checksum that fits: refused, or read, written and read again
//! as the same.
#![no_main]

use holdfast_format::{BLOCK_LEN, Superblock, looks_used};
use holdfast_fuzz::{Patch, fresh_image, seal};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static FRESH: LazyLock<Vec<u8>> = LazyLock::new(fresh_image);

fuzz_target!(|patches: Vec<Patch>| {
    let mut blocks = FRESH[..2 * BLOCK_LEN].to_vec();
    patches.iter().for_each(|patch| patch.apply(&mut blocks));
    for (copy, bytes) in (0u8..).zip(blocks.chunks_exact(BLOCK_LEN)) {
        let mut block = *bytes.first_chunk::<BLOCK_LEN>().expect("a whole block");
        let _ = looks_used(&block);
        let _ = Superblock::decode(&block, copy);
        seal(&mut block);
        let Ok(superblock) = Superblock::decode(&block, copy) else { continue };
        if superblock.copy() == copy {
            assert_eq!(Superblock::decode(&superblock.encode(), copy), Ok(superblock));
        }
    }
});
