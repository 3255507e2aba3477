//! A member that streams and follows by the log, as a log peer led, is taken back by its pair when one
//! of that leads.
//!
//! It follows that one by the log until it has all that was there a moment ago. What is written later
//! is noted there in its bitmap: with metadata of the generation of that moment it gets only what is
//! noted.

use super::others::ask;
use super::roles::until;
use super::{FollowView, Following};
use crate::commands::updown::publish;
use crate::dial::ask_to_dial;
use crate::local::Local;
use crate::node::Node;
use crate::resource::{self, Resource};
use crate::revert::revert;
use crate::shard::InitialContent;
use holdfast_journal::ship::{FollowStatus, Holding};
use holdfast_units::GenerationId;
use std::sync::Arc;
use std::time::Duration;

/// How often it looks whether it can.
const LOOK: Duration = Duration::from_millis(500);
/// How long it may take to get what was there a moment ago; then it is asked again.
const REST: Duration = Duration::from_secs(60);

/// Looks for the moment, until following ends.
pub(crate) fn watch(node: &Arc<Node>, resource: &Arc<Resource>, following: &Arc<Following>) {
    if node.view().follows_by_log(resource.id, node.uuid) {
        return;
    }
    let (node, resource) = (Arc::clone(node), Arc::downgrade(resource));
    let (this, mut views) = (Arc::downgrade(following), following.watch());
    // Not a task of what follows: that ends in the middle of it.
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            let (Some(resource), Some(this)) = (resource.upgrade(), this.upgrade()) else { return };
            let now = resource.following();
            if !now.is_some_and(|now| Arc::ptr_eq(&now, &this)) {
                return;
            }
            if views.borrow_and_update().leader.is_some() {
                go_home(&node, &resource, &this).await;
            } else {
                drop((resource, this));
                if views.changed().await.is_err() {
                    return;
                }
            }
        }
    });
}

async fn go_home(node: &Arc<Node>, resource: &Arc<Resource>, following: &Arc<Following>) {
    let view = following.view();
    let Some(slot) = view.leader else { return };
    let members = node.view().peers_of(resource.id, node.uuid);
    let Some(leader) = members.get(&slot).filter(|peer| !peer.log).cloned() else { return };
    if !may_go(&view) || resource.state().past.is_some() {
        return;
    }
    let said = ask(node, resource.id, [leader.clone()]).await.pop();
    let Some((_, said)) = said.filter(|(_, said)| said.leads) else { return };
    let (Some(head), Some(generation)) = (said.head, said.lineage.first()) else { return };
    let content = InitialContent::Earlier(GenerationId(*generation));
    let has_all =
        |status: &FollowStatus| matches!(status.holding, Holding::StateAt(at) if at.0 >= head);
    following.hurry(true).await;
    let reached = until(following, REST, has_all).await;
    following.hurry(false).await;
    if reached.is_err() {
        return;
    }
    let Some(_begun) = resource.try_begin() else { return };
    // The same one all the time: what it told is of the journal that is here.
    let view = following.view();
    let same = view.leader == Some(slot) && may_go(&view);
    if !same || !view.status.as_ref().is_some_and(has_all) || resource.state().past.is_some() {
        return;
    }
    let name = resource.name();
    let local = resource.local();
    let gone = async {
        resource::stop(resource).await?;
        super::roles::renew(node, &local, content).await?;
        let streams = |local: &mut Local| {
            (local.follows, local.expendable) = (false, false);
            local.lineage.clear();
        };
        resource.change_local(node, streams).await?;
        resource::start_core(node, resource).await
    };
    if let Err(error) = gone.await {
        let text = format!("this node still follows {} by the log: {}", leader.name, error.message);
        tracing::error!(resource = name, "{text}");
        node.hub.notice(&name, None, &text);
        // Whoever leads has all of it.
        let as_before = |local: &mut Local| (local.follows, local.expendable) = (true, true);
        revert(node, resource, &error, as_before).await;
        return;
    }
    ask_to_dial(node, resource.id);
    let text =
        format!("{} is Primary, and is connected to as before the log peer led", leader.name);
    tracing::info!(resource = name, "{text}");
    node.hub.notice(&name, None, &text);
    publish(node, resource);
}

/// Whether whoever leads has all that is here, and nobody wants the disk to stay as it is.
fn may_go(view: &FollowView) -> bool {
    let status = view.status.as_ref();
    status.is_some_and(|status| {
        status.follows && !status.fetch_paused && !status.replay_paused && !status.restored
    })
}
