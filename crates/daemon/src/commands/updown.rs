//! `up` and `down`.

use super::roles::release;
use crate::events::{Objects, Part, of_resource};
use crate::logpeer;
use crate::node::Node;
use crate::resource::{self, Resource};
use crate::{spares, status};
use holdfast_api::request::Done;
use holdfast_api::routes::ALL;
use holdfast_api::{ApiError, ErrorCode};
use std::sync::Arc;
use std::time::Duration;

/// How long `up` waits for a node to be Primary again when nothing is in the way.
const ROLE_WAIT: Duration = Duration::from_secs(5);

/// Starts a resource, or all, here.
///
/// # Errors
/// Why it was not started; with `all`, why the first of those was not.
pub(crate) async fn up(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    each(node, name, "up", Operation::Up).await
}

/// Stops a resource, or all, here.
///
/// # Errors
/// Who has it open; with `all`, why the first of those was not stopped.
pub(crate) async fn down(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    each(node, name, "down", Operation::Down).await
}

#[derive(Clone, Copy)]
enum Operation {
    Up,
    Down,
}

impl Operation {
    async fn run(self, node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
        match self {
            Self::Up => start(node, resource).await,
            Self::Down => stop(node, resource).await,
        }
    }
}

async fn each(
    node: &Arc<Node>,
    name: &str,
    word: &str,
    operation: Operation,
) -> Result<Done, ApiError> {
    if name != ALL {
        operation.run(node, &node.resource_named(name)?).await?;
        return Ok(Done::new(format!("resource {name} is {word} on this node")));
    }
    let resources = node.resources();
    let mut errors = Vec::new();
    for resource in &resources {
        errors.extend(operation.run(node, resource).await.err());
    }
    let failed = errors.len();
    match errors.into_iter().next() {
        None => Ok(Done::new(format!("{} resources are {word} on this node", resources.len()))),
        Some(first) if failed == 1 => Err(first),
        Some(first) => {
            let message =
                format!("{} ({failed} of {} resources failed)", first.message, resources.len());
            Err(ApiError { message, ..first })
        }
    }
}

async fn start(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
    let begun = resource.begin().await?;
    if !resource.is_up() {
        resource::start(node, resource, false).await.map_err(|error| {
            let message = format!("up was refused for {}: {}", resource.name(), error.message);
            let hint = error.hint.unwrap_or_else(|| {
                let name = resource.name();
                format!(
                    "`holdfast detach-disk {name}` starts it without its disk next time, \
                     `holdfast attach-disk {name} --disk PATH` with another"
                )
            });
            ApiError { message, hint: Some(hint), ..error }
        })?;
    }
    resource.change_local(node, |local| local.up = true).await?;
    // Its keeper makes it Primary.
    drop(begun);
    wait_for_role(node, resource).await;
    Ok(())
}

/// Where nobody else can be Primary, a node that was is so again at once.
pub(crate) async fn wait_for_role(node: &Node, resource: &Resource) {
    let alone =
        node.view().core_peers_of(resource.id, node.uuid).values().all(|peer| peer.diskless);
    let Some(handle) = resource.handle().filter(|_| alone && resource.state().local.primary) else {
        return;
    };
    let mut view = handle.watch();
    // It goes on in the background when it takes longer.
    let _ = tokio::time::timeout(ROLE_WAIT, view.wait_for(|view| view.exported)).await;
}

async fn stop(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
    let _begun = resource.begin().await?;
    if resource.handle().is_some() {
        release(node, resource, "down was refused", false).await?;
    }
    logpeer::past::hide(node, resource, "down was refused").await?;
    resource.change_local(node, |local| local.up = false).await?;
    let stopped = resource::stop(resource).await;
    publish(node, resource);
    stopped
}

/// Tells readers of events, and those who wait, how a resource is.
pub(crate) fn publish(node: &Node, resource: &Resource) {
    let news = spares::news(&mut resource.state());
    if let Some(news) = news {
        let name = resource.name();
        tracing::warn!(resource = name, "{news}");
        node.hub.notice(&name, None, &news);
    }
    let status = status::resource(node, resource);
    node.hub.update(Part::Resource(&status.name), of_resource(&status));
    if resource.name() != status.name {
        // It has got another name meanwhile.
        node.hub.update(Part::Resource(&status.name), Objects::new());
    }
    resource.changed();
}

/// Refuses what is not possible while a resource is up.
///
/// # Errors
/// `IN_USE`.
pub(crate) fn refuse_primary(resource: &Resource, what: &str) -> Result<(), ApiError> {
    let name = resource.name();
    let primary = resource.view().is_some_and(|view| view.snapshot.role.as_str() == "Primary");
    if primary {
        return Err(ApiError::new(
            ErrorCode::IsPrimary,
            format!("{what} for {name}: this node is Primary"),
        )
        .hint(format!("run `holdfast secondary {name}` first")));
    }
    Ok(())
}
