//! `--journal` of `create` and `join`, and `log ls`, `log rotate`, `log trim`.

use super::blocking;
use crate::journaled::open::{self, check_new, usual_size};
use crate::journaled::{JournalCallError, JournalHandle, JournalSpec, MIN_SIZE};
use crate::local::LocalJournal;
use crate::node::Node;
use crate::refuse;
use crate::resource::Resource;
use crate::shard::DiskSpec;
use holdfast_api::journal::{JournalLog, JournalSegment};
use holdfast_api::request::Done;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_units::{NodeId, ResourceId, format_size};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// No journal is larger.
const MAX_SIZE: u64 = 1 << 44;

/// The journal that a command asks for, if it does; checked as far as that goes without changing
/// anything. `what` names the attempt.
///
/// # Errors
/// What is in the way.
pub(crate) async fn wanted(
    node: &Arc<Node>,
    what: &str,
    dir: Option<&String>,
    size: Option<u64>,
) -> Result<Option<JournalSpec>, ApiError> {
    let refuse = |code, why: &str| ApiError::new(code, format!("{what}: {why}"));
    let Some(dir) = dir else {
        return match size {
            Some(_) => Err(refuse(ErrorCode::InvalidRequest, "a journal needs a place")
                .hint("give --journal PATH, too: a directory, or a device of its own")),
            None => Ok(None),
        };
    };
    let path = PathBuf::from(dir);
    let state_dir = &node.settings.state_dir;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if !path.is_absolute() || dir.contains('\0') {
        let shown: String = dir.chars().take(200).collect();
        let why = format!("the path {shown:?} of the journal is not absolute");
        return Err(refuse(ErrorCode::InvalidPath, &why).hint("give a path that starts with /"));
    }
    if real(&path).starts_with(real(state_dir)) {
        let why = format!("the journal {dir} is in the state directory, which is the node's own");
        let hint = format!("choose a path outside of {}", state_dir.display());
        return Err(refuse(ErrorCode::InvalidPath, &why).hint(hint));
    }
    let owner = node.resources().into_iter().map(|resource| resource.local()).find(|local| {
        local.journal.as_ref().is_some_and(|journal| real(&journal.dir) == real(&path))
    });
    if let Some(owner) = owner {
        let why = format!("the journal {dir} belongs to the resource {}", owner.name);
        return Err(
            refuse(ErrorCode::DiskBusy, &why).hint("give each a directory or a device of its own")
        );
    }
    let size = match size {
        Some(size) => size,
        None => {
            let path = path.clone();
            blocking(move || Ok(usual_size(&path))).await?
        }
    };
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        let (least, most) = (format_size(MIN_SIZE), format_size(MAX_SIZE));
        let why = format!("a journal of {size} bytes cannot be: it must have {least} to {most}");
        return Err(refuse(ErrorCode::InvalidSize, &why).hint("for example --journal-size 1G"));
    }
    let spec = JournalSpec { dir: path, size };
    let (check, what) = (spec.clone(), what.to_owned());
    blocking(move || check_new(&check).map_err(|error| under(&what, refuse::journal(&error))))
        .await?;
    Ok(Some(spec))
}

fn under(what: &str, error: ApiError) -> ApiError {
    ApiError { message: format!("{what}: {}", error.message), ..error }
}

/// Makes an empty journal. Blocks.
///
/// # Errors
/// When something is in the way; nothing is left then.
pub(crate) fn make(
    what: &str,
    spec: &JournalSpec,
    resource: ResourceId,
    node: NodeId,
) -> Result<LocalJournal, ApiError> {
    let made = open::make(spec, resource, node);
    let made_dir = made.map_err(|error| under(what, refuse::journal(&error)))?;
    Ok(LocalJournal { dir: spec.dir.clone(), size: spec.size, made_dir })
}

/// Takes a journal away. Blocks. What cannot be removed stays, and is said in the log.
pub(crate) fn remove(journal: &LocalJournal) {
    open::remove(&journal.spec(), journal.made_dir);
}

/// Ends a journal: what is only in it goes to the disk, then its files are taken away. Blocks. When
/// that is not possible they stay, and the log says so: nobody's data are thrown away.
pub(crate) fn end(name: &str, resource: ResourceId, disk: &DiskSpec, journal: &LocalJournal) {
    match open::write_all_back(&journal.spec(), resource, disk) {
        Ok(()) => remove(journal),
        Err(error) => tracing::error!(
            "the journal of resource {name} stays in {}: what is in it could not be written to \
             the disk: {error}",
            journal.dir.display()
        ),
    }
}

/// What a node that follows knows of its disk does not hold for the next one. Blocks.
///
/// # Errors
/// When it cannot be forgotten.
pub(crate) fn forget_disk(what: &str, journal: &LocalJournal) -> Result<(), ApiError> {
    open::forget_disk(&journal.spec()).map_err(|error| under(what, refuse::journal(&error)))
}

/// Begins with an empty journal in the same place. Blocks.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn renew(
    what: &str,
    journal: &LocalJournal,
    resource: ResourceId,
    node: NodeId,
) -> Result<(), ApiError> {
    if journal.dir.exists() {
        open::remove(&journal.spec(), false);
    }
    make(what, &journal.spec(), resource, node).map(drop)
}

fn handle(resource: &Resource, what: &str) -> Result<JournalHandle, ApiError> {
    let name = resource.name();
    if resource.local().journal.is_none() {
        let message = format!("{what} was refused for {name}: it has no journal on this node");
        return Err(ApiError::new(ErrorCode::NoJournal, message)
            .hint("a journal is made with --journal PATH of `create` and `join`"));
    }
    let handle = resource.need_handle()?;
    handle.journal().cloned().ok_or_else(|| {
        let message = format!("{what} was refused for {name}: its disk is not in use");
        ApiError::new(ErrorCode::NoDisk, message)
            .hint(format!("`holdfast attach-disk {name}` starts to use it"))
    })
}

fn failed(name: &str, what: &str, error: &JournalCallError) -> ApiError {
    let message = format!("{what} was refused for {name}: {error}");
    match error {
        JournalCallError::Mode(_) => ApiError::new(ErrorCode::NotPrimary, message)
            .hint("the node that is Primary appends to its journal"),
        _ => ApiError::new(ErrorCode::JournalUnusable, message)
            .hint(format!("`holdfast status {name}` says more")),
    }
}

/// The segments of a journal.
///
/// # Errors
/// When there is none, or its disk is not in use.
pub(crate) async fn list(node: &Arc<Node>, name: &str) -> Result<JournalLog, ApiError> {
    let resource = node.resource_named(name)?;
    let journal = handle(&resource, "log ls")?;
    let segments = journal.segments().await.map_err(|e| failed(name, "log ls", &e))?;
    let view = journal.status().await.map_err(|e| failed(name, "log ls", &e))?;
    let cluster = node.view();
    let segments = segments
        .into_iter()
        .map(|(header, bytes)| JournalSegment {
            number: header.number,
            origin: cluster.slot_name(resource.id, header.origin),
            begin: header.base.0,
            end: header.base.after(bytes).0,
            bytes,
            file_bytes: header.capacity,
            began_unix_ms: header.time.unix_millis(),
            generation: header.generation.to_string(),
            written_back: header.base.after(bytes) <= view.written_back,
        })
        .collect();
    Ok(JournalLog {
        mode: view.mode.as_str().to_owned(),
        head: view.head.0,
        durable: view.durable.0,
        written_back: view.written_back.0,
        tail: view.tail.0,
        segments,
    })
}

/// Begins a new segment with the next write.
///
/// # Errors
/// When there is no journal, or this node does not append to it.
pub(crate) async fn rotate(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let journal = handle(&resource, "log rotate")?;
    journal.rotate().await.map_err(|e| failed(name, "log rotate", &e))?;
    Ok(Done::new(format!("the next write to resource {name} begins a new segment")))
}

/// Gives up what nobody needs.
///
/// # Errors
/// When there is no journal, or it cannot be trimmed now.
pub(crate) async fn trim(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let journal = handle(&resource, "log trim")?;
    let freed = journal.trim().await.map_err(|e| failed(name, "log trim", &e))?;
    Ok(Done::new(match freed {
        0 => format!("nothing in the journal of resource {name} can be given up"),
        freed => format!("{} of the journal of resource {name} were given up", format_size(freed)),
    }))
}
