//! The file of cursors.

use super::{CURSORS, Files};
use holdfast_format::journal::Cursors;
use holdfast_format::{BLOCK_LEN, Block, BlockError};
use holdfast_units::ResourceId;
use std::io;

const CURSORS_BYTES: u64 = 2 * BLOCK_LEN as u64;

pub(super) fn make_cursors<F: Files>(files: &mut F) -> io::Result<()> {
    files.create(CURSORS, CURSORS_BYTES)?;
    files.sync(CURSORS)?;
    files.sync_dir()
}

/// The newest cursors. A file of them that was never written to stands for an empty journal.
pub(super) fn cursors_of(copies: &[Block; 2], resource: ResourceId) -> Result<Cursors, BlockError> {
    if let Some(cursors) = Cursors::newest([&copies[0], &copies[1]], resource) {
        return Ok(cursors);
    }
    let why = |copy: u8| Cursors::decode(&copies[usize::from(copy)], resource, copy).err();
    let whys: Vec<BlockError> = [why(0), why(1)].into_iter().flatten().collect();
    if let Some(foreign) = whys.iter().find(|why| matches!(why, BlockError::Resource { .. })) {
        return Err(*foreign);
    }
    // They are written in turn: with one that was never written, the other one was written once at
    // most, and that may have been torn.
    match whys.iter().find(|why| **why != BlockError::Blank) {
        Some(why) if !whys.contains(&BlockError::Blank) => Err(*why),
        _ => Ok(Cursors::new(resource)),
    }
}

pub(super) fn read_cursors<F: Files>(files: &F) -> io::Result<[Block; 2]> {
    let mut copies = [[0; BLOCK_LEN]; 2];
    for (index, copy) in (0..).zip(&mut copies) {
        // What cannot be read is a copy that does not count.
        if files.read(CURSORS, index * BLOCK_LEN as u64, copy).unwrap_or(0) < BLOCK_LEN {
            copy.fill(0);
        }
    }
    Ok(copies)
}
