//! A Secondary is not writable, and not readable either.

use crate::node::Pending;
use bytes::Bytes;
use holdfast_core::IoFailure;

/// Checks the answer to a request that may have been made of a Secondary.
pub(crate) fn secondary(
    pending: &Pending,
    result: &Result<Option<Bytes>, IoFailure>,
) -> Result<(), String> {
    if pending.was_primary || result.is_err() {
        return Ok(());
    }
    Err(format!("a node that was not Primary completed {}", pending.what))
}
