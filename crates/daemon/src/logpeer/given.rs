//! What a node that follows, and an archive, gets of the disk of the node that leads: nothing that
//! is known to be no good.

use crate::resource::Resource;
use crate::shard::{JournalHandle, ResourceHandle};
use holdfast_core::IoFailure;
use holdfast_journal::ship::{Found, LeadError};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::sync::Weak;
use std::time::Duration;
use tokio::time::timeout;

/// How often the list of lost blocks may change under a read.
const ROUNDS: usize = 8;
/// How long a block that is listed as lost is tried to be had from elsewhere.
const LOST_LIMIT: Duration = Duration::from_secs(3);

/// Reads the beginning of a range, at most 1 MiB, as a client would: up to the first block of which the
/// disk has no good copy. That is had from elsewhere, if somebody has it, and else it is lost.
///
/// # Errors
/// When it cannot be read now, and it is not known either that nobody has it; when this node does not
/// lead: then what others write comes past its journal.
pub(crate) async fn read(
    resource: &Weak<Resource>,
    journal: &JournalHandle,
    range: ByteRange,
) -> Result<Found, LeadError> {
    let found = find(resource, journal, range).await?;
    journal.led_segments().await.map_err(super::source::failed)?;
    Ok(found)
}

async fn find(
    resource: &Weak<Resource>,
    journal: &JournalHandle,
    range: ByteRange,
) -> Result<Found, LeadError> {
    let handle = resource.upgrade().and_then(|resource| resource.need_handle().ok());
    let handle = handle.ok_or_else(|| LeadError("the resource is down".to_owned()))?;
    let mut part = range;
    for _ in 0..ROUNDS {
        let known = handle.first_lost(part).await.map_err(failed)?;
        match known.at {
            Some(lost) if lost == part.offset => {
                let found = read_lost(&handle, part).await?;
                need_all_recorded(journal, ByteRange::new(part.offset, BLOCK_SIZE)).await?;
                return Ok(found);
            }
            Some(lost) => {
                part.len = lost - part.offset;
                continue;
            }
            None => {}
        }
        if known.else_good {
            // It may be found out meanwhile that some of it is no good.
            let read = journal.read(part).await;
            let still = handle.first_lost(part).await.map_err(failed)? == known;
            if let (Ok(bytes), true) = (read, still) {
                return Ok(Found::Good(bytes));
            }
        }
        // Whoever reads has it healed, or from a peer: what nobody has is listed then.
        let read = handle.read(part).await;
        let lost = handle.first_lost(part).await.map_err(failed)?.at;
        match (read, lost) {
            (Ok(bytes), _) => {
                need_all_recorded(journal, part).await?;
                return Ok(Found::Good(bytes));
            }
            (Err(why), None) => return Err(failed(why)),
            (Err(_), Some(_)) => {}
        }
    }
    Err(failed(IoFailure::Disk))
}

/// What another member gave may have a write to it that waits for room in the journal here: nobody could tell
/// whether that is a part of what was given.
async fn need_all_recorded(journal: &JournalHandle, part: ByteRange) -> Result<(), LeadError> {
    let waits = "a write waits for room in the journal; what others have may be newer than it";
    journal.need_none_waiting(part).await.map_err(|_| LeadError(waits.to_owned()))
}

/// The first block is one that is listed.
async fn read_lost(handle: &ResourceHandle, range: ByteRange) -> Result<Found, LeadError> {
    let block = ByteRange::new(range.offset, BLOCK_SIZE);
    // A disk may take long to give a bad sector up, longer than the other node waits for an answer.
    let read = timeout(LOST_LIMIT, handle.read(block)).await;
    let why = match read {
        Ok(Ok(bytes)) => return Ok(Found::Good(bytes)),
        Ok(Err(why)) => why,
        Err(_) => IoFailure::Disk,
    };
    match handle.first_lost(block).await.map_err(failed)?.at {
        Some(_) => Ok(Found::Lost(BLOCK_SIZE)),
        None => Err(failed(why)),
    }
}

fn failed(why: IoFailure) -> LeadError {
    let why = match why {
        IoFailure::NotPrimary | IoFailure::Stopping => "this node does not lead any more",
        IoFailure::NoData | IoFailure::Disk | IoFailure::Range => "the disk could not be read",
    };
    LeadError(why.to_owned())
}
