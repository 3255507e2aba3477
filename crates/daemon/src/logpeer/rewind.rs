//! `rewind` of a log peer whose replay is paused: its own disk becomes the state of another moment.

use super::follow::Following;
use super::past;
use super::roles::until;
use crate::commands::blocking;
use crate::node::Node;
use crate::resource::Resource;
use holdfast_api::error::without_numbers;
use holdfast_api::options::Settings;
use holdfast_api::request::{Rewind, Rewound};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_archive::{
    Archive, ArchiveError, Checkpoint, FileTarget, JournalCopy, Moment, RewindError, open_store,
};
use holdfast_format::journal::SegmentHeader;
use holdfast_journal::driver::Offline;
use holdfast_journal::ship::{FollowStatus, Holding};
use holdfast_units::LogPosition;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A command waits so long for the end; then it goes on by itself.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Replaying takes no longer, or something is wrong.
const REPLAY_LIMIT: Duration = Duration::from_secs(24 * 3600);

fn refuse(name: &str, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("resource {name} was not rewound: {why}"))
}

/// Makes the disk of this node the state of a moment; its replay stays paused.
///
/// # Errors
/// When this node does not follow, its replay is not paused, somebody reads its state, or the state
/// of that moment cannot be made; nothing has changed then. When a restore from the archive fails,
/// the disk is nothing that counts.
pub(crate) async fn rewind(
    node: &Arc<Node>,
    name: &str,
    request: &Rewind,
) -> Result<Rewound, ApiError> {
    let resource = node.resource_named(name)?;
    let moment = match (request.position, request.time_unix_ms) {
        (Some(_), Some(_)) => {
            let why = "a moment is a position or a time, not both";
            return Err(refuse(name, ErrorCode::InvalidRequest, why));
        }
        (Some(position), None) => Moment::Position(LogPosition(position)),
        (None, Some(millis)) => Moment::Time(millis),
        (None, None) => Moment::Latest,
    };
    let (node, name) = (Arc::clone(node), name.to_owned());
    let mut work = tokio::spawn(async move { run(&node, &resource, moment).await });
    match tokio::time::timeout(ANSWER_WAIT, &mut work).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => Err(crate::refuse::internal("the command failed", &error)),
        Err(_) => Ok(Rewound {
            position: None,
            from_archive: false,
            message: format!(
                "resource {name} is being rewound; `holdfast wait {name} --for uptodate` waits for \
                 the end of that"
            ),
        }),
    }
}

async fn run(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    moment: Moment,
) -> Result<Rewound, ApiError> {
    let name = resource.name();
    let _begun = resource.begin().await?;
    let following = resource.following().ok_or_else(|| {
        refuse(&name, ErrorCode::NotFollowing, "this node does not follow a journal").hint(
            "with --into PATH a resource that is down, or a log peer, gives a copy of that state",
        )
    })?;
    let view = following.view();
    let status = view.status.clone().ok_or_else(|| {
        refuse(&name, ErrorCode::DiskFailed, "its disk or its journal cannot be used")
            .hint(format!("`holdfast status {name}` says why"))
    })?;
    if !status.replay_paused {
        return Err(refuse(&name, ErrorCode::Follows, "it replays the journal")
            .hint(format!("`holdfast pause {name} replay` first")));
    }
    past::end(node, resource, "rewind was refused").await?;
    let again = following.view().status.is_some_and(|status| status.restored);
    let planned = match again {
        // The disk is nothing: only an archive helps.
        true => Err(refuse(&name, ErrorCode::NoUpToDateData, "its disk is no state")),
        false => plan(resource, &status, view.leader.is_some(), moment).await,
    };
    match planned {
        Ok((from, to)) => by_journal(&name, &following, from, to).await,
        Err(why) => by_archive(node, resource, &following, moment, why).await,
    }
}

/// From where the journal is to be replayed, and to where.
async fn plan(
    resource: &Resource,
    status: &FollowStatus,
    connected: bool,
    moment: Moment,
) -> Result<(LogPosition, LogPosition), ApiError> {
    let name = resource.name();
    let Holding::StateAt(has) = status.holding else {
        let why = "its disk is not the state of any moment yet";
        return Err(refuse(&name, ErrorCode::NoUpToDateData, why));
    };
    let dir = resource.local().journal.map(|journal| journal.dir).unwrap_or_default();
    let known = connected && status.follows && status.fetched >= status.head;
    blocking(move || {
        let unusable = |why: &dyn std::fmt::Display| {
            refuse(&name, ErrorCode::JournalUnusable, &without_numbers(&why.to_string()))
        };
        let journal = Offline::open_shared(&dir).map_err(|why| unusable(&why))?;
        let segments = journal.found().segments.clone();
        if segments.is_empty() {
            let why = "its journal is empty";
            return Err(refuse(&name, ErrorCode::MomentNotAvailable, why));
        }
        let end = journal.found().end();
        let copy = JournalCopy { reader: &journal, segments, has, may_have: has };
        let plan = copy.plan(moment).map_err(|why| match why {
            RewindError::Records(why) => unusable(&why),
            why => refuse(&name, ErrorCode::MomentNotAvailable, &without_numbers(&why.to_string())),
        })?;
        if matches!(moment, Moment::Time(_)) && plan.position >= end && !known {
            let why = "what was written until then is not fetched yet, as far as is known";
            return Err(refuse(&name, ErrorCode::MomentNotAvailable, why)
                .hint("`--to latest` is everything that was fetched"));
        }
        Ok((plan.from().min(has), plan.position))
    })
    .await
}

async fn by_journal(
    name: &str,
    following: &Following,
    from: LogPosition,
    to: LogPosition,
) -> Result<Rewound, ApiError> {
    let failed = |why: &str| refuse(name, ErrorCode::DiskFailed, why);
    if !following.rewind(from, to).await.map_err(|why| failed(&why))? {
        let why = "the journals went on apart before that, or it changed meanwhile";
        return Err(refuse(name, ErrorCode::MomentNotAvailable, why));
    }
    let there = |status: &FollowStatus| matches!(status.holding, Holding::StateAt(_));
    let status = until(following, REPLAY_LIMIT, there).await;
    let status = status.map_err(|_| failed("following ended; it goes on at the next start"))?;
    Ok(told(name, status.replayed, false))
}

fn told(name: &str, position: LogPosition, from_archive: bool) -> Rewound {
    Rewound {
        position: Some(position.0),
        from_archive,
        message: format!(
            "the disk of resource {name} on this node is its state at position {position}{}; \
             `holdfast resume {name} replay` goes on from there",
            if from_archive { ", from the archive" } else { "" }
        ),
    }
}

/// What a restore leads to.
struct Restored {
    position: LogPosition,
    segment: Option<SegmentHeader>,
}

async fn by_archive(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    following: &Arc<Following>,
    moment: Moment,
    why_not: ApiError,
) -> Result<Rewound, ApiError> {
    let name = resource.name();
    if why_not.code != ErrorCode::MomentNotAvailable && why_not.code != ErrorCode::NoUpToDateData {
        return Err(why_not);
    }
    let options = node.view().records.resource(resource.id).map(|record| record.options);
    let place = options.and_then(|options| Settings::resolve(&options, None).archive);
    let Some(place) = place else {
        let hint = why_not.hint.clone().unwrap_or_else(|| {
            "earlier moments need an archive (`holdfast set NAME archive=PATH`) or a log peer that \
             is held behind (replay-delay)"
                .to_owned()
        });
        return Err(why_not.hint(hint));
    };
    let disk = resource.local().disk;
    if disk.as_ref().is_some_and(|disk| !disk.spares.is_empty()) {
        let why = "its disk has spares, and filling such a disk from an archive is not supported by \
                   this version";
        return Err(refuse(&name, ErrorCode::NotSupportedYet, why).hint(format!(
            "restore it elsewhere: `holdfast rewind {name} --into PATH`; or `holdfast resume {name} \
             replay`"
        )));
    }
    if resource.local().checksums {
        let why = "checksums are kept for its disk, and filling such a disk from an archive is not \
                   supported by this version";
        return Err(refuse(&name, ErrorCode::NotSupportedYet, why).hint(format!(
            "`holdfast set {name} checksums=off`, rewind it, then `checksums=on`; or restore it \
             elsewhere: `holdfast rewind {name} --into PATH`"
        )));
    }
    let path = disk.map(|disk| disk.path).unwrap_or_default();
    let size = crate::status::resource(node, resource).size_bytes;
    let archived = name.clone();
    let opened = blocking(move || {
        let refuse = |why: &ArchiveError| {
            let why = format!("{}; {}", without_numbers(&why_not.message), why);
            ApiError::new(ErrorCode::MomentNotAvailable, why)
        };
        let store = open_store(&place, false).map_err(|error| {
            let why = format!("{}; the archive {place}: {error}", why_not.message);
            ApiError::new(ErrorCode::ArchiveUnusable, why)
        })?;
        let archive = Archive::open(store, &archived).map_err(|why| refuse(&why))?;
        let plan = archive.plan(moment, None).map_err(|why| refuse(&why))?;
        let segment = archive.segment_of(&plan).map_err(|why| refuse(&why))?;
        Ok((archive, plan, segment))
    });
    let (archive, plan, segment) = opened.await?;
    if plan.size > size {
        return Err(refuse(&name, ErrorCode::InvalidSize, "that state is larger than it is now"));
    }
    let failed = |why: &str| refuse(&name, ErrorCode::DiskFailed, why);
    if !following.begin_restore().await.map_err(|why| failed(&why))? {
        return Err(failed("its replay is not paused any more"));
    }
    let position = plan.position;
    let restored = blocking(move || {
        let result = restore(&archive, &plan, &path, size);
        result
            .map(|()| Restored { position, segment })
            .map_err(|why| why.to_string())
            .map_err(|why| ApiError::new(ErrorCode::ArchiveUnusable, without_numbers(&why)))
    });
    let restored = restored.await.map_err(|error| {
        refuse(&name, error.code, &error.message).hint(format!(
            "the disk is no state now: rewind it again, or `holdfast resume {name} replay` has it \
             filled"
        ))
    })?;
    following.restored(restored.position, restored.segment).await.map_err(|why| failed(&why))?;
    let there = |status: &FollowStatus| matches!(status.holding, Holding::StateAt(_));
    let held = until(following, ANSWER_WAIT, there).await;
    held.map_err(|_| failed("it is not known to be that state"))?;
    Ok(told(&name, restored.position, true))
}

/// Writes the state to a disk that is claimed by this process, and zeroes behind it.
fn restore<S: holdfast_archive::Store>(
    archive: &Archive<S>,
    plan: &holdfast_archive::Plan,
    path: &Path,
    size: u64,
) -> Result<(), ArchiveError> {
    use holdfast_journal::driver::Backing as _;
    let mut target = FileTarget::open_claimed(path).map_err(ArchiveError::Target)?;
    if plan.size < size {
        let rest = holdfast_units::ByteRange::new(plan.size, size - plan.size);
        target.zeroes(rest, true).map_err(ArchiveError::Target)?;
    }
    archive.restore(plan, &mut target, false, Checkpoint::default(), &mut |_| Ok(()))
}
