//! What this node knows of its own disk, durably.

use super::types::{FollowError, FollowOptions};
use super::{FOLLOWING, FOLLOWING_BYTES};
use crate::driver::{Backing, Files, Log, Open};
use crate::index::WriteBackLimits;
use bytes::Bytes;
use holdfast_format::journal::{FollowState, Following};
use holdfast_format::{BLOCK_LEN, Block as DiskBlock};
use holdfast_units::{GenerationId, HybridTime, LogPosition, ResourceId};
use std::io;

/// Says durably that this node leads from now on: its disk is what the journal makes of it. To be
/// called before the first op is appended.
///
/// # Errors
/// When that is not known to be durable.
pub fn mark_led<F: Files>(files: &mut F, resource: ResourceId) -> io::Result<()> {
    let mut state = read_state(files, resource)?;
    if state.state == FollowState::Led && state.sequence > 0 {
        return Ok(());
    }
    state.state = FollowState::Led;
    (state.fetch_paused, state.replay_paused) = (false, false);
    write_state(files, &mut state)
}

/// Writes back what this node appended while it led; where that ends. `None` when the disk was
/// written to past the journal: then it is no state of this history.
pub(super) fn settle<F: Files, D: Backing>(
    files: F,
    disk: &mut D,
    options: &FollowOptions,
) -> Result<Option<LogPosition>, FollowError> {
    const ROUND: WriteBackLimits = WriteBackLimits { bytes: 8 << 20, runs: 64, run_bytes: 1 << 20 };
    let open = Open {
        settings: options.settings,
        leads: true,
        generation: GenerationId(0),
        time: HybridTime::default(),
        cut: None,
        spares: 1,
    };
    let (mut log, _) = Log::open(files, &open)?;
    while log.write_back(disk, ROUND, false)? {}
    log.write_back(disk, ROUND, true)?;
    log.store_cursors().map_err(journal)?;
    // Without a record of its own, nothing says whose state the disk is.
    let unknown = log.journal().switches().bypassed || log.journal().links().is_empty();
    Ok((!unknown).then(|| log.journal().durable()))
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(super) fn journal(error: io::Error) -> FollowError {
    FollowError::Journal(error.to_string())
}

pub(super) fn read_state<F: Files>(files: &F, resource: ResourceId) -> io::Result<Following> {
    if !files.list()?.iter().any(|name| name == FOLLOWING) {
        return Ok(Following::new(resource));
    }
    let mut copies: [DiskBlock; 2] = [[0; BLOCK_LEN]; 2];
    for (index, copy) in (0..).zip(&mut copies) {
        if files.read(FOLLOWING, index * BLOCK_LEN as u64, copy)? < BLOCK_LEN {
            copy.fill(0);
        }
    }
    // Without one that counts it was never made: nothing was followed then.
    Ok(Following::newest([&copies[0], &copies[1]], resource)
        .unwrap_or_else(|| Following::new(resource)))
}

pub(super) fn write_state<F: Files>(files: &mut F, state: &mut Following) -> io::Result<()> {
    if state.sequence == 0 {
        files.create(FOLLOWING, FOLLOWING_BYTES)?;
        files.sync(FOLLOWING)?;
        files.sync_dir()?;
    }
    state.sequence += 1;
    let offset = u64::from(state.copy()) * BLOCK_LEN as u64;
    let through =
        files.write_through(FOLLOWING, offset, &[Bytes::copy_from_slice(&state.encode())])?;
    if through { Ok(()) } else { files.sync(FOLLOWING) }
}
