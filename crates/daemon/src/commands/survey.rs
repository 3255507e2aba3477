//! `verify` and `scrub`.

use super::core_refusal;
use super::links::no_such_peer;
use crate::node::Node;
use crate::survey::{self, Surveyed};
use holdfast_api::request::Done;
use holdfast_api::survey::{Scrub, SurveyReports, SurveyWord, Verify};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::{Command, SurveyAction, SurveyKind, SurveyOrder};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use holdfast_wire::RepairMode;
use std::sync::Arc;

/// What is done to a run; `None`: it begins.
fn action_of(word: SurveyWord) -> Option<SurveyAction> {
    match word {
        SurveyWord::Start => None,
        SurveyWord::Pause => Some(SurveyAction::Pause),
        SurveyWord::Resume => Some(SurveyAction::Resume),
        SurveyWord::Stop => Some(SurveyAction::Stop),
    }
}

fn said(name: &str, what: &str, action: Option<SurveyAction>) -> Done {
    Done::new(match action {
        None => format!("the {what} of resource {name} has begun"),
        Some(SurveyAction::Pause) => format!("the {what} of resource {name} is paused"),
        Some(SurveyAction::Resume) => format!("the {what} of resource {name} goes on"),
        Some(SurveyAction::Stop) => format!("the {what} of resource {name} is stopped"),
    })
}

/// Compares the data of connected members, or does something to the comparison that goes on.
///
/// # Errors
/// When there is nobody to compare with, one goes on already, or the range is not one.
pub(crate) async fn verify(
    node: &Arc<Node>,
    name: &str,
    request: &Verify,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let handle = resource.need_handle()?;
    let action = action_of(request.action);
    let what = "verify was refused";
    let refuse = |refusal| core_refusal(node, &resource, what, refusal);
    if let Some(action) = action {
        let command = Command::SurveyControl(SurveyKind::Verify, action);
        handle.command(command).await.map_err(refuse)?;
        return Ok(said(name, "verify", Some(action)));
    }
    let peer = match &request.peer {
        None => None,
        Some(peer) => {
            let peers = node.view().peers_of(resource.id, node.uuid);
            let found = peers.into_iter().find(|(_, known)| known.name == *peer);
            Some(found.ok_or_else(|| no_such_peer(name, peer))?.0)
        }
    };
    let size = handle.snapshot().snapshot.own_size;
    let (start, stop) = (request.start.unwrap_or(0), request.stop.unwrap_or(size));
    let whole = start.is_multiple_of(BLOCK_SIZE) && stop.is_multiple_of(BLOCK_SIZE);
    if !whole || start >= stop || stop > size {
        let message = format!(
            "{what} for {name}: {start} to {stop} are not whole blocks of {BLOCK_SIZE} bytes inside \
             of the device"
        );
        let hint = format!("the device has {size} bytes");
        return Err(ApiError::new(ErrorCode::InvalidSize, message).hint(hint));
    }
    let range = Some(ByteRange::new(start, stop - start));
    let repair = if request.repair { RepairMode::Always } else { RepairMode::Never };
    let order = SurveyOrder { kind: SurveyKind::Verify, range, peer, repair, from: 0 };
    survey::begin_verify(&resource, &handle, order).await.map_err(refuse)?;
    Ok(said(name, "verify", None))
}

/// Reads everything on this node's disk, or does something to the scrub that goes on.
///
/// # Errors
/// When the node has no disk in use, or there is one that goes on, or none.
pub(crate) async fn scrub(node: &Arc<Node>, name: &str, request: &Scrub) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let surveyed = match resource.following() {
        Some(following) => Surveyed::Follower(following.scrub().clone()),
        None => Surveyed::Core(resource.need_handle()?),
    };
    let action = action_of(request.action);
    survey::scrub(node, &resource, &surveyed, action)
        .await
        .map_err(|refusal| core_refusal(node, &resource, "scrub was refused", refusal))?;
    Ok(said(name, "scrub", action))
}

/// How a run goes, or went.
///
/// # Errors
/// When there is no such resource.
pub(crate) fn reports(
    node: &Arc<Node>,
    name: &str,
    kind: SurveyKind,
) -> Result<SurveyReports, ApiError> {
    let resource = node.resource_named(name)?;
    Ok(survey::reports(node, &resource, kind))
}
