//! What must be known of this node's disk before somebody copies it past the daemon: `rewind --into`.

use super::blocking;
use crate::logpeer;
use crate::node::Node;
use holdfast_api::request::CopySource;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_units::BLOCK_SIZE;
use std::sync::Arc;

/// Looks at the disk of a resource that is down here, or follows.
///
/// # Errors
/// When it has no disk or a core uses it, or the list of its lost blocks cannot be used.
pub(crate) async fn look(node: &Arc<Node>, name: &str) -> Result<CopySource, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let refuse =
        |code, why: &str| ApiError::new(code, format!("the disk of {name} was not copied: {why}"));
    let local = resource.local();
    let checksums = local.checksums;
    if let Some(following) = resource.following() {
        let status = following.view().status.ok_or_else(|| {
            refuse(ErrorCode::DiskFailed, "the disk or the journal cannot be used")
                .hint(format!("`holdfast status {name}` says why"))
        })?;
        return Ok(CopySource { old_blocks: status.healed.old, checksums });
    }
    if resource.handle().is_some() {
        return Err(refuse(ErrorCode::InUse, "it is in use")
            .hint(format!("`holdfast down {name}` on this node stops it")));
    }
    let disk = local.disk.ok_or_else(|| refuse(ErrorCode::NoDisk, "this node has none"))?;
    let (path, id) = (logpeer::losses_path(&node.settings.state_dir, resource.id), resource.id);
    let list = blocking(move || logpeer::kept_losses(&path, &disk, id)).await?;
    let old_blocks = list.old.iter().map(|range| range.len / BLOCK_SIZE).sum();
    Ok(CopySource { old_blocks, checksums })
}
