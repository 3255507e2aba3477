//! The commands that ask the daemon.

use crate::args::{Call, Create, Device, Join};
use crate::session::Session;
use crate::several::{Names, each};
use crate::{
    archive, attach, badblocks, cluster, events, health, journal, options, replace_disk, status,
    survey, top, wait,
};
use holdfast_api::request::{
    AttachDisk, Connect, DetachDisk, DeviceMade, Disconnect, Done, Empty, Invalidate, Pause,
    Primary, Resize, ResourceCreate, ResourceJoin, Secondary,
};
use holdfast_api::{ApiError, request, routes};
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Runs one of them.
pub(crate) async fn run(
    session: &Session,
    call: Call,
    timeout: Option<Duration>,
) -> Result<ExitCode, ApiError> {
    let of = |template: &str, name: &str| routes::of(template, name);
    match call {
        Call::Cluster(command) => cluster::run(session, command, timeout).await,
        Call::Create(args) => create(session, args).await,
        Call::Join(args) => join(session, args).await,
        Call::Leave(a) => {
            let body = request::ResourceLeave { dry_run: a.dry_run };
            session.act(&of(routes::RESOURCE_LEAVE, &a.name), &body).await
        }
        Call::Delete(a) => {
            let body = request::ResourceDelete { dry_run: a.dry_run };
            session.act(&of(routes::RESOURCE_DELETE, &a.name), &body).await
        }
        Call::Up(a) => run_all(session, routes::RESOURCE_UP, &a.names).await,
        Call::Down(a) => run_all(session, routes::RESOURCE_DOWN, &a.names).await,
        Call::Primary(a) => {
            // The daemon gives up in time, and says how it stands; that takes a moment more.
            let seconds = timeout.map(|limit| limit.as_secs_f64());
            let body = Primary { force: a.force, timeout_seconds: seconds };
            let session = &session.with_grace(timeout);
            act_on(session, routes::RESOURCE_PRIMARY, &a.names, &body).await
        }
        Call::Secondary(a) => {
            let body = Secondary { force: a.force };
            act_on(session, routes::RESOURCE_SECONDARY, &a.names, &body).await
        }
        Call::AttachDisk(a) => {
            let (force, discard_journal) = (a.force, a.discard_journal);
            let body = AttachDisk { disk: a.disk, meta: a.meta, force, discard_journal };
            session.act(&of(routes::RESOURCE_ATTACH_DISK, &a.name), &body).await
        }
        Call::DetachDisk(a) => {
            let body = DetachDisk { force: a.force };
            act_on(session, routes::RESOURCE_DETACH_DISK, &a.names, &body).await
        }
        Call::ReplaceDisk(args) => replace_disk::run(session, args, timeout).await,
        Call::Rewind(args) => archive::rewind(session, args).await,
        Call::Connect(a) => {
            let body = Connect { peer: a.peer, discard_my_data: a.discard_my_data };
            act_on(session, routes::RESOURCE_CONNECT, &a.names, &body).await
        }
        Call::Disconnect(a) => {
            let body = Disconnect { peer: a.peer, force: a.force };
            act_on(session, routes::RESOURCE_DISCONNECT, &a.names, &body).await
        }
        Call::Pause(a) => {
            let body = Pause { what: a.what.into(), peer: a.peer, all: a.all };
            act_on(session, routes::RESOURCE_PAUSE, &a.names, &body).await
        }
        Call::Resume(a) => {
            let body = Pause { what: a.what.into(), peer: a.peer, all: a.all };
            act_on(session, routes::RESOURCE_RESUME, &a.names, &body).await
        }
        Call::Invalidate(a) => {
            let body = Invalidate { peer: a.peer };
            session.act(&of(routes::RESOURCE_INVALIDATE, &a.name), &body).await
        }
        Call::Verify(args) => survey::verify(session, args, timeout).await,
        Call::Scrub(args) => survey::scrub(session, args, timeout).await,
        Call::Resize(a) => {
            let body = Resize { size: a.size };
            session.act(&of(routes::RESOURCE_RESIZE, &a.name), &body).await
        }
        Call::Rename(a) => {
            let body = request::Rename { new: a.new, dry_run: a.dry_run };
            session.act(&of(routes::RESOURCE_RENAME, &a.name), &body).await
        }
        Call::Badblocks(command) => badblocks::run(session, command).await,
        Call::Spare(command) => badblocks::spare(session, command).await,
        Call::Log(command) => journal::run(session, command).await,
        Call::Set(args) => options::set(session, args).await,
        Call::Get(args) => options::get(session, &args).await,
        Call::Wait(args) => wait::run(session, &args, timeout).await,
        Call::Watch(a) => {
            let body = request::Watch { stop: a.stop };
            session.act(&of(routes::RESOURCE_WATCH, &a.name), &body).await
        }
        Call::Status(args) => return status::run(session, &args).await,
        Call::Health(args) => health::run(session, &args).await,
        Call::Events(args) => events::run(session, &args, timeout).await,
        Call::Top(args) => top::run(session, &args).await,
        Call::Device(args) => device(session, args).await,
        Call::Attach(args) => attach::attach(session, args).await,
        Call::Attachments(args) => attach::list(session, &args).await,
        Call::Detach(args) => attach::detach(session, &args).await,
        Call::Abort(args) => attach::abort(session, &args).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Makes the same call for each of some resources.
async fn act_on<B: Serialize>(
    session: &Session,
    template: &str,
    names: &Names,
    body: &B,
) -> Result<(), ApiError> {
    each(session, names, async |name| session.act(&routes::of(template, name), body).await).await
}

/// As [`act_on`], but the daemon knows best which ones `all` are: also those that are stopped.
async fn run_all(session: &Session, template: &str, names: &Names) -> Result<(), ApiError> {
    match names {
        Names::All => session.act(&routes::of(template, routes::ALL), &Empty {}).await,
        Names::These(_) => act_on(session, template, names, &Empty {}).await,
    }
}

async fn create(session: &Session, args: Create) -> Result<(), ApiError> {
    let name = args.name.clone();
    let body = ResourceCreate {
        name: args.name,
        disk: args.disk,
        size: args.size,
        meta: args.meta,
        journal: args.journal,
        journal_size: args.journal_size,
        spare: args.spares.spare,
        spare_size: args.spares.spare_size,
        force: args.force,
        checksums: args.checksums,
        set: args.set.into_iter().collect(),
    };
    if !args.device {
        return session.act(routes::RESOURCES, &body).await;
    }
    if session.ui.json {
        // One answer: that of the device, whose presence says that there is a resource.
        let _: (Done, _) = session.post_told(routes::RESOURCES, &body).await?;
    } else {
        session.act(routes::RESOURCES, &body).await?;
    }
    make_device(session, &name, &request::Device::default()).await.map_err(|error| ApiError {
        message: format!("the resource {name} was created, but has no device: {}", error.message),
        ..error
    })
}

async fn join(session: &Session, args: Join) -> Result<(), ApiError> {
    let body = ResourceJoin {
        disk: args.disk,
        diskless: args.diskless,
        meta: args.meta,
        journal: args.journal,
        journal_size: args.journal_size,
        spare: args.spares.spare,
        spare_size: args.spares.spare_size,
        checksums: args.checksums,
        protocol: args.protocol,
        force: args.force,
    };
    session.act(&routes::of(routes::RESOURCE_JOIN, &args.name), &body).await
}

async fn device(session: &Session, args: Device) -> Result<(), ApiError> {
    if args.remove {
        let path = routes::of(routes::RESOURCE_DEVICE_REMOVE, &args.name);
        return session.act(&path, &Empty {}).await;
    }
    let Device { name, via, read_only, export_only, .. } = args;
    make_device(session, &name, &request::Device { via, read_only, export_only }).await
}

async fn make_device(
    session: &Session,
    name: &str,
    body: &request::Device,
) -> Result<(), ApiError> {
    let made: DeviceMade = session.post(&routes::of(routes::RESOURCE_DEVICE, name), body).await?;
    session.device(&made, &made.path, made.reason.as_deref());
    Ok(())
}
