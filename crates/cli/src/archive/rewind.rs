//! `rewind`: the disk of a log peer, or with `--into` a copy of a resource's disk, at another record of
//! its journal.

use super::{moment, restore};
use crate::parse::name;
use crate::session::Session;
use clap::Args;
use holdfast_api::error::without_numbers;
use holdfast_api::status::{NodeStatus, ResourceStatus};
use holdfast_api::words::counted;
use holdfast_api::{ApiError, ErrorCode, request, routes};
use holdfast_archive::{FileTarget, JournalCopy, Moment, RewindError};
use holdfast_format::journal::{FollowState, Following};
use holdfast_journal::driver::{LogError, Offline};
use holdfast_journal::ship::BACKWARDS;
use holdfast_units::{LogPosition, format_size};
use serde_json::json;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Rewind {
    /// The name of the resource: a log peer whose replay is paused, or with --into one that is down
    #[arg(value_parser = name)]
    name: String,
    /// Which state: a time (`2026-03-01T12:00:00Z`, `2026-03-01 12:00` local, `@UNIX`,
    /// `'15m ago'`), a position of the journal, or `latest`
    #[arg(long, value_name = "TIME|POSITION")]
    to: String,
    /// A file or block device that gets the state, and the resource stays as it is; without this the
    /// log peer's own disk becomes it
    #[arg(long, value_name = "PATH")]
    into: Option<PathBuf>,
    /// Overwrite what is in the file or on the device
    #[arg(long, requires = "into")]
    overwrite: bool,
}

pub(crate) async fn rewind(session: &Session, args: Rewind) -> Result<(), ApiError> {
    let refuse = |code, why: &str| {
        ApiError::new(code, format!("resource {} was not rewound: {why}", args.name))
    };
    let wanted = moment::parse(&args.to, jiff::Timestamp::now())
        .map_err(|why| refuse(ErrorCode::Usage, &why))?;
    let Some(into) = args.into.clone() else {
        return in_place(session, &args.name, wanted).await;
    };
    let status: NodeStatus = session.get(routes::STATUS).await?;
    let resource = status.resources.into_iter().find(|resource| resource.name == args.name);
    let resource = resource.ok_or_else(|| ApiError::no_such_resource(&args.name))?;
    let (disk, journal, online) = places(&resource, &refuse)?;
    copyable(session, &args.name, &refuse).await?;
    let path = Path::new(&journal);
    let opened = if online { Offline::open_shared(path) } else { Offline::open(path) };
    let journal = opened.map_err(|why| match why {
        LogError::Io(why) if why.kind() == ErrorKind::WouldBlock => {
            refuse(ErrorCode::InUse, "its journal and its disk are in use")
                .hint(format!("`holdfast down {}` on this node stops it", args.name))
        }
        why => refuse(ErrorCode::JournalUnusable, &without_numbers(&why.to_string())),
    })?;
    let unusable = |why: io::Error| refuse(ErrorCode::JournalUnusable, &why.to_string());
    let following = journal.following().map_err(unusable)?;
    let (has, may_have) = state_of(&journal, following.as_ref(), online)
        .map_err(|why| refuse(ErrorCode::MomentNotAvailable, why))?;
    let segments = journal.found().segments.clone();
    let copy = JournalCopy { reader: &journal, segments, has, may_have };
    let unavailable = |why: &RewindError| {
        let code = match why {
            RewindError::Records(_) => ErrorCode::JournalUnusable,
            RewindError::Disk(_) | RewindError::Target(_) => ErrorCode::DiskFailed,
            _ => ErrorCode::MomentNotAvailable,
        };
        refuse(code, &without_numbers(&why.to_string())).hint(
            "`holdfast restore` builds older moments from an archive, if the resource has one",
        )
    };
    let plan = copy.plan(wanted).map_err(|why| unavailable(&why))?;
    let mut source = FileTarget::open_source(Path::new(&disk))
        .map_err(|why| refuse(ErrorCode::DiskUnusable, &format!("{disk}: {why}")))?;
    let size = resource.size_bytes;
    let target = |why: &io::Error| restore::into_error("rewound", &args.name, &into, why);
    let unfinished = restore::Unfinished::begin(&into, args.overwrite).map_err(|e| target(&e))?;
    let mut to =
        FileTarget::open(unfinished.path(), size, args.overwrite || !unfinished.is_device(), false)
            .map_err(|why| target(&why))?;
    let total = size + plan.log_bytes();
    let bar = restore::bar(&session.ui, total);
    let blank = to.blank();
    copy.copy(&plan, &mut source, size, &mut to, blank, &mut |done| bar.set_position(done))
        .map_err(|why| unavailable(&why))?;
    bar.finish_and_clear();
    drop(to);
    // More may have been found while it was copied.
    copyable(session, &args.name, &refuse).await?;
    if journal.following().map_err(unusable)? != following {
        let why = "replay went on while the copy was made";
        return Err(refuse(ErrorCode::InUse, why)
            .hint(format!("`holdfast pause {} replay` holds it", args.name)));
    }
    unfinished.finish().map_err(|why| target(&why))?;
    let text = format!(
        "{} is resource {} as it was at position {} ({})",
        into.display(),
        args.name,
        plan.position,
        format_size(size)
    );
    let answer = json!({
        "resource": args.name, "path": into, "position": plan.position.0, "size_bytes": size,
    });
    session.result(&answer, &text);
    Ok(())
}

/// That what the disk holds is what was written.
async fn copyable(
    session: &Session,
    name: &str,
    refuse: &(dyn Fn(ErrorCode, &str) -> ApiError + Sync),
) -> Result<(), ApiError> {
    let path = routes::of(routes::RESOURCE_REWIND, name);
    let source: request::CopySource = session.get(&path).await?;
    if source.checksums {
        let why = "checksums are kept for its disk, and a copy for which they are looked at is not \
                   supported by this version";
        return Err(refuse(ErrorCode::NotSupportedYet, why).hint(format!(
            "after a scrub, `holdfast set {name} checksums=off`, and `checksums=on` when it is copied"
        )));
    }
    if source.old_blocks > 0 {
        let count = counted(source.old_blocks, "block");
        let why = format!("{count} of its disk are not what was written, and were not healed yet");
        return Err(refuse(ErrorCode::NoUpToDateData, &why).hint(format!(
            "`holdfast status {name}` says which when it is up; other nodes may have them, and what \
             is written anew is good"
        )));
    }
    Ok(())
}

/// The disk of a log peer becomes that state; the daemon does it.
async fn in_place(session: &Session, name: &str, wanted: Moment) -> Result<(), ApiError> {
    let body = match wanted {
        Moment::Latest => request::Rewind::default(),
        Moment::Position(position) => {
            request::Rewind { position: Some(position.0), time_unix_ms: None }
        }
        Moment::Time(millis) => request::Rewind { position: None, time_unix_ms: Some(millis) },
    };
    let path = routes::of(routes::RESOURCE_REWIND, name);
    let done: request::Rewound = session.post(&path, &body).await?;
    session.result(&json!(done), &done.message);
    Ok(())
}

/// Everything that is on the disk for sure, and what may be on it: two positions.
fn state_of(
    journal: &Offline,
    following: Option<&Following>,
    online: bool,
) -> Result<(LogPosition, LogPosition), &'static str> {
    let end = journal.found().end();
    let led = following.is_none_or(|following| following.state == FollowState::Led);
    match following {
        Some(following) if !led => {
            let goes_back = following.fill == BACKWARDS && following.replayed < following.applying;
            if following.wipe || following.state != FollowState::Consistent || goes_back {
                return Err("its disk is not the state of any moment yet");
            }
            Ok((following.replayed, following.applying.max(following.replayed)))
        }
        _ if online => Err("it is up on this node and does not follow"),
        _ if journal.cursors().switches.bypassed => {
            Err("its disk was written to past the journal, as that of a Secondary is")
        }
        _ => Ok((journal.cursors().written_back.min(end), end)),
    }
}

/// Disk and journal, and whether it is a log peer that is up and does not replay.
fn places(
    resource: &ResourceStatus,
    refuse: &dyn Fn(ErrorCode, &str) -> ApiError,
) -> Result<(String, String, bool), ApiError> {
    let name = &resource.name;
    if !resource.disk.spares.is_empty() {
        let message = format!(
            "resource {} was not rewound: its disk has spares, and a copy of such a disk is not \
             supported by this version",
            resource.name
        );
        return Err(ApiError::new(ErrorCode::NotSupportedYet, message));
    }
    let disk = resource.disk.path.clone().filter(|path| path.starts_with('/'));
    let disk = disk.ok_or_else(|| {
        refuse(ErrorCode::NoDisk, "it has no disk that is a file or device of this node")
    })?;
    let journal = resource.journal.as_ref().map(|journal| journal.path.clone());
    let journal = journal.ok_or_else(|| {
        refuse(ErrorCode::NoJournal, "it has no journal on this node")
            .hint("a journal is made with --journal PATH of `create` and `join`")
    })?;
    let paused = resource.replay.as_ref().map(|replay| replay.paused.iter().any(|p| p == "replay"));
    match (&*resource.role, paused) {
        ("Unknown", _) => Ok((disk, journal, false)),
        ("Secondary", Some(true)) => Ok((disk, journal, true)),
        ("Secondary", Some(false)) => Err(refuse(ErrorCode::InUse, "it replays the journal")
            .hint(format!("`holdfast pause {name} replay` holds it"))),
        _ => Err(refuse(ErrorCode::InUse, "it is up on this node")
            .hint(format!("`holdfast down {name}` stops it here; the copy can be made then"))),
    }
}
