//! Followers that are members no more: nothing is kept for them.

use super::lead::followers_of;
use super::notes_dir;
use super::source::NoteFiles;
use crate::node::Node;
use crate::resource::Resource;
use crate::shard::JournalHandle;
use holdfast_journal::ship::Notes;
use holdfast_units::NodeId;
use std::sync::Arc;

/// Forgets how far nodes are that do not follow any more, so that their part of the journal can be
/// given up, also what an earlier run or an earlier Primary kept for them.
pub(crate) async fn forget_gone(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    journal: &JournalHandle,
) {
    let Ok(cursors) = journal.cursors().await else { return };
    let mut followers = followers_of(node, resource);
    let serving = resource.state().serving.clone();
    followers.extend(serving.map(|serving| serving.all_guests()).unwrap_or_default());
    let kept = (0..).zip(&cursors.peers).filter(|(_, peer)| peer.switches.counts);
    let gone = kept.filter_map(|(number, _)| NodeId::new(number));
    for gone in gone.filter(|peer| !followers.contains(peer)) {
        if let Err(error) = journal.forget_peer(gone).await {
            tracing::warn!(resource = resource.name(), "the journal is still kept: {error}");
            continue;
        }
        let dir = notes_dir(&node.settings.state_dir, resource);
        let mut notes = NoteFiles::new(dir, resource.id);
        let forgotten = tokio::task::spawn_blocking(move || notes.forget(gone)).await;
        if let Ok(Err(error)) = forgotten {
            tracing::warn!(resource = resource.name(), "a note is left: {error:?}");
        }
        let name = resource.name();
        tracing::info!(resource = name, "nothing is kept any more for the member {gone} that was");
    }
}

/// Removes what this node kept of the followers of a resource that has ended here. Blocks.
pub(crate) fn end(node_state: &std::path::Path, resource: &Resource) {
    let dir = notes_dir(node_state, resource);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{} was not removed: {error}", dir.display());
        }
        _ => {}
    }
}
