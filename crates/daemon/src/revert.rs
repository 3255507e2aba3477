//! A resource was to be started in another way, and that did not work.

use crate::commands::updown::publish;
use crate::local::Local;
use crate::node::Node;
use crate::resource::{self, Resource, told};
use holdfast_api::ApiError;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long after a failed start it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Has a resource go on as it was before, which `change` says durably. When that does not work either
/// it is down, `status` says why, and it is tried again until it works, or somebody else starts or
/// stops it. Boxed: what starts may revert.
pub(crate) fn revert<'a>(
    node: &'a Arc<Node>,
    resource: &'a Arc<Resource>,
    why: &'a ApiError,
    change: impl FnOnce(&mut Local) + Send + 'a,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(async move {
        if let Err(error) = resource.change_local(node, change).await {
            tracing::error!("{}", error.message);
        }
        if let Err(error) = resource::stop(resource).await {
            tracing::warn!("{}", error.message);
        }
        match resource::start(node, resource, true).await {
            Ok(()) if resource.local().attached => {}
            // `status` says why its disk is not used.
            Ok(()) => resource.state().trouble = Some(told(why)),
            Err(error) => {
                tracing::error!("resource {} is down: {}", resource.name(), error.message);
                resource.state().trouble = Some(told(why));
                tokio::spawn(try_again(Arc::clone(node), Arc::downgrade(resource)));
            }
        }
        publish(node, resource);
    })
}

async fn try_again(node: Arc<Node>, resource: Weak<Resource>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = node.stopped() => return,
        }
        let Some(resource) = resource.upgrade() else { return };
        // A command that is under way may start it itself.
        let Some(_begun) = resource.try_begin() else { continue };
        let wanted = resource.local().up && node.resource(resource.id).is_some();
        if resource.is_up() || !wanted {
            return;
        }
        match resource::start(&node, &resource, true).await {
            Ok(()) => return publish(&node, &resource),
            Err(error) => {
                tracing::debug!("resource {} is still down: {}", resource.name(), error.message);
            }
        }
    }
}
