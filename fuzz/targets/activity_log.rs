//! The ring of the activity log after any changes on disk: damaged, or a log that can go on and
//! is read back as it is then.
#![no_main]

use holdfast_format::{AL_MAX_UPDATES, AlLog, AlUpdate, BLOCK_LEN, Block};
use holdfast_fuzz::{Patch, RESOURCE, layout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, Vec<Vec<(u8, Option<u8>)>>, Vec<Patch>, u64)| {
    let (large, transactions, patches, unreadable) = input;
    let layout = layout(1 << 40, if large { 2000 } else { 7 }, 1);
    let mut log = AlLog::new(RESOURCE, &layout, 0);
    let ring = usize::try_from(layout.al_blocks()).expect("a ring is small");
    let mut image = vec![0; ring * BLOCK_LEN];
    let put = |image: &mut [u8], (index, block): (u32, Block)| {
        let at = usize::try_from(index).expect("a ring is small") * BLOCK_LEN;
        image[at..at + BLOCK_LEN].copy_from_slice(&block);
    };
    log.format().into_iter().for_each(|block| put(&mut image, block));
    for updates in transactions.iter().take(32) {
        let updates: Vec<_> = updates
            .iter()
            .take(AL_MAX_UPDATES)
            .map(|(slot, extent)| AlUpdate { slot: (*slot).into(), extent: extent.map(Into::into) })
            .collect();
        if let Ok(block) = log.encode_transaction(&updates) {
            put(&mut image, block);
        }
    }
    let read = |image: &[u8], unreadable: u64| {
        let blocks = (0u32..).zip(image.chunks_exact(BLOCK_LEN)).map(|(index, bytes)| {
            let lost = unreadable >> (index % 64) & 1 != 0;
            (index, (!lost).then(|| *bytes.first_chunk().expect("a whole block")))
        });
        AlLog::recover(RESOURCE, &layout, blocks.collect::<Vec<_>>())
    };
    assert_eq!(read(&image, 0).expect("nothing is damaged").log.slots(), log.slots());

    patches.iter().for_each(|patch| patch.apply(&mut image));
    if let Ok(mut found) = read(&image, unreadable) {
        let update = AlUpdate { slot: 0, extent: Some(9) };
        let next = found.log.encode_transaction(&[update]).expect("the update is possible");
        put(&mut image, next);
        if found.unused.is_empty() {
            let again = read(&image, 0).expect("one transaction was added to a whole log");
            assert_eq!(again.log.slots(), found.log.slots());
        }
    }
});
