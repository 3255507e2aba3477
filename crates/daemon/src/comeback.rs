//! A resource whose disk is an export of another machine, and was out of reach when the resource was
//! started: it gets the disk when the server answers.

use crate::node::Node;
use crate::remote;
use crate::resource::{self, Resource};
use holdfast_nbd::NbdUri;
use holdfast_units::{DiskState, Role};
use std::sync::Arc;
use std::time::Duration;

/// The pauses between two looks at the server.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Waits for the disk of a resource that has just been started without it. Ends when the resource is
/// stopped, started again, or told not to use the disk.
pub(crate) fn wait_for_disk(node: &Arc<Node>, resource: &Arc<Resource>, uri: NbdUri) {
    let (node, resource) = (Arc::clone(node), Arc::clone(resource));
    let start = resource.state().starts;
    tokio::spawn(async move { wait(&node, &resource, start, uri).await });
}

async fn wait(node: &Arc<Node>, resource: &Arc<Resource>, start: u64, uri: NbdUri) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.stopped() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        if !is_wanted(resource, start) {
            return;
        }
        // The core takes a disk only at its start.
        if is_primary(resource) {
            continue;
        }
        // The resource is only disturbed when there is something to be had.
        let place = uri.clone();
        let look = tokio::task::spawn_blocking(move || remote::look(place, 0));
        if !matches!(look.await, Ok(Ok(_))) {
            continue;
        }
        let Some(_begun) = resource.try_begin() else { continue };
        if !is_wanted(resource, start) || node.is_stopping() {
            return;
        }
        if is_primary(resource) {
            continue;
        }
        if let Err(error) = resource::stop(resource).await {
            tracing::warn!("{}", error.message);
        }
        match resource::start(node, resource, true).await {
            Ok(()) => tracing::info!(resource = resource.name(), "it was started with its disk"),
            Err(error) => tracing::error!("{}", error.message),
        }
        return;
    }
}

/// Whether it still runs without the disk that it should have, since the same start.
fn is_wanted(resource: &Resource, start: u64) -> bool {
    let state = resource.state();
    let diskless = state
        .running
        .as_ref()
        .is_some_and(|running| running.handle.snapshot().snapshot.disk == DiskState::Diskless);
    state.starts == start && diskless && state.local.attached && state.trouble.is_some()
}

fn is_primary(resource: &Resource) -> bool {
    resource.view().is_some_and(|view| view.snapshot.role == Role::Primary)
}
