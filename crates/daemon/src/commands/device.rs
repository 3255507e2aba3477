//! `device`: a resource as a local block device.

use super::blocking;
use crate::logpeer::past;
use crate::node::Node;
use crate::options::Settings;
use crate::refuse;
use crate::resource::{Device, Resource};
use crate::status;
use holdfast_api::request::{self, DeviceMade, Done};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_device::{DeviceOptions, LocalDevice, NbdBackend, NbdOptions, Via};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Names the directory of the devices, when it is not `/dev/holdfast`.
const DIR_VARIABLE: &str = "HOLDFAST_DEV_DIR";
/// How many requests of a device are with the resource at a time, each on a connection of its own.
const THREADS: usize = 16;

/// Where and how local devices of this node are made.
pub(crate) fn options(settings: &Settings) -> DeviceOptions {
    let mut options = DeviceOptions {
        run_dir: settings.run_dir().join("devices"),
        holder: settings.device_holder.clone(),
        ..Default::default()
    };
    if let Some(dir) = std::env::var_os(DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        options.links_dir = PathBuf::from(dir);
    }
    options
}

/// Makes the local device of a resource; the one that is there is fine too. Read-only, it is the
/// past state that a node which follows holds.
///
/// # Errors
/// When this node is not Primary (read-only: does not hold a state), or the kernel offers no way.
pub(crate) async fn make(
    node: &Arc<Node>,
    name: &str,
    request: &request::Device,
) -> Result<DeviceMade, ApiError> {
    let via: Via = request.via.as_deref().unwrap_or("auto").parse().map_err(|why: String| {
        ApiError::new(ErrorCode::InvalidRequest, format!("device {name} was not made: {why}"))
    })?;
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    if request.export_only && !request.read_only {
        let message = format!("device {name} was not made: an export alone is read-only");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    let shown = resource.state().past.is_some();
    if request.read_only {
        past::show(node, &resource).await?;
        super::updown::publish(node, &resource);
    }
    let made = attach(node, &resource, via, request.export_only).await;
    if made.is_err() && request.read_only && !shown {
        past::end(node, &resource, "the export was not taken away").await?;
    }
    made
}

/// Makes it, while no other command changes the resource.
///
/// # Errors
/// As [`make`].
pub(crate) async fn attach(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    via: Via,
    export_only: bool,
) -> Result<DeviceMade, ApiError> {
    if export_only {
        let path = status::resource(node, resource).nbd_uri;
        return Ok(DeviceMade { path, kind: "export".to_owned(), reason: None });
    }
    if let Some(device) = &resource.state().device {
        return Ok(told(device));
    }
    if resource.state().past.is_none() {
        need_exported(&resource.name(), resource)?;
    }
    let device = match take_over(node, resource).await? {
        Some(device) => device,
        None => {
            let (owned, nbd, options) = parts(node, resource, via);
            let made = blocking(move || {
                let backend = Arc::new(connect(&owned, nbd)?);
                let made = LocalDevice::attach(&owned, Arc::clone(&backend) as _, &options);
                made.map(|made| (made, backend)).map_err(|error| refuse::device(&error))
            });
            let (made, backend) = made.await?;
            keep(node, resource, made, backend)
        }
    };
    Ok(told(&device))
}

fn need_exported(name: &str, resource: &Resource) -> Result<(), ApiError> {
    let refused = |error: ApiError| {
        let hint = format!(
            "run it on the Primary, or read what this node holds: `holdfast pause {name} replay`, \
             then `holdfast device {name} --read-only`"
        );
        let follows = error.code == ErrorCode::Follows;
        if follows { error.hint(hint) } else { error }
    };
    let handle = resource.need_handle().map_err(refused)?;
    if !handle.snapshot().exported {
        let message = format!("device {name} was not made: this node is not Primary");
        return Err(ApiError::new(ErrorCode::NotPrimary, message)
            .hint(format!("run `holdfast primary {name}` first")));
    }
    Ok(())
}

fn told(device: &Device) -> DeviceMade {
    let Device { path, kind, reason, .. } = device.clone();
    DeviceMade { path, kind: kind.to_owned(), reason: Some(reason) }
}

/// What a device of a resource is made with.
fn parts(node: &Node, resource: &Resource, via: Via) -> (String, NbdOptions, DeviceOptions) {
    let name = resource.name();
    let mut nbd = NbdOptions::new(node.settings.nbd_socket(), name.as_str());
    nbd.connections = THREADS;
    nbd.read_only = resource.state().past.is_some();
    let options = DeviceOptions { via, threads: THREADS, ..options(&node.settings) };
    (name, nbd, options)
}

fn connect(name: &str, nbd: NbdOptions) -> Result<NbdBackend, ApiError> {
    NbdBackend::connect(nbd).map_err(|error| {
        ApiError::new(ErrorCode::DeviceUnavailable, format!("device {name} was not made: {error}"))
    })
}

fn keep(node: &Node, resource: &Resource, made: LocalDevice, backend: Arc<NbdBackend>) -> Device {
    let device = Device {
        path: made.path().display().to_string(),
        kind: made.kind().as_str(),
        reason: made.reason().to_owned(),
        device: Arc::new(Mutex::new(Some(made))),
        backend,
        openers: Vec::new(),
        size: 0,
        kept_size: None,
    };
    {
        let mut state = resource.state();
        state.device = Some(device.clone());
        state.device_waits = None;
    }
    super::updown::publish(node, resource);
    device
}

/// Takes over the device that an earlier run of the daemon left; `None` when there is none. To be
/// called while the resource is exported, and no other command changes it.
///
/// # Errors
/// Why not: it waits as before then.
pub(crate) async fn take_over(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
) -> Result<Option<Device>, ApiError> {
    if resource.state().device_waits.is_none() {
        return Ok(None);
    }
    let (name, nbd, options) = parts(node, resource, Via::Auto);
    let taken = blocking(move || {
        let backend = Arc::new(connect(&name, nbd)?);
        let taken = LocalDevice::recover(&name, Arc::clone(&backend) as _, &options);
        let taken = taken.map_err(|error| refuse::device(&error))?;
        Ok(taken.map(|device| (device, backend)))
    });
    match taken.await? {
        Some((device, backend)) => Ok(Some(keep(node, resource, device, backend))),
        None => {
            resource.state().device_waits = None;
            Ok(None)
        }
    }
}

/// Whether an earlier run of the daemon left a device of this name. Blocks for a moment.
pub(crate) fn is_left(node: &Node, name: &str) -> bool {
    LocalDevice::is_left(name, &options(&node.settings)).unwrap_or_else(|error| {
        tracing::error!("{error}");
        false
    })
}

/// Takes the device away that an earlier run left, by force: nobody will answer its I/O.
pub(crate) async fn give_up_left(node: &Node, name: &str, why: &str) {
    let options = options(&node.settings);
    let (owned, why) = (name.to_owned(), why.to_owned());
    let removed = blocking(move || {
        match LocalDevice::remove_left(&owned, &options) {
            Ok(true) => tracing::error!(
                "the device of {owned}, which an earlier run left, was taken away by force and \
                 its I/O fails: {why}"
            ),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}"),
        }
        Ok(())
    });
    // It was said in the log.
    let _ = removed.await;
}

/// Finds out who has the local device open now. Whether that is news.
pub(crate) async fn look(resource: &Resource) -> bool {
    let device = resource.state().device.clone();
    let Some(device) = device else { return false };
    let cell = Arc::clone(&device.device);
    let looked = tokio::task::spawn_blocking(move || {
        let device = cell.lock().unwrap_or_else(PoisonError::into_inner);
        device.as_ref().map(LocalDevice::openers)
    });
    let Ok(Some(Ok(openers))) = looked.await else { return false };
    let openers: Vec<String> = openers.iter().map(ToString::to_string).collect();
    match &mut resource.state().device {
        Some(device) if device.openers != openers => {
            device.openers = openers;
            true
        }
        _ => false,
    }
}

/// Takes the local device of a resource away.
///
/// # Errors
/// `NO_SUCH_DEVICE`; `IN_USE` with who has it open.
pub(crate) async fn remove(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let has_none = {
        let state = resource.state();
        state.device.is_none() && state.device_waits.is_none() && state.past.is_none()
    };
    if has_none {
        let message = format!("the device of resource {name} was not found: it has none");
        return Err(ApiError::new(ErrorCode::NoSuchDevice, message));
    }
    past::end(node, &resource, "the device was not taken away").await?;
    let waits = resource.state().device_waits.is_some();
    take_away(node, &resource, false).await.map_err(|error| {
        let message =
            format!("the device of resource {name} was not taken away: {}", error.message);
        if waits { ApiError { message, ..error } } else { error }
    })?;
    Ok(Done::new(format!("the device of resource {name} is gone")))
}

/// Takes the local device away, if there is one.
///
/// # Errors
/// Without force, `IN_USE` with who has it open: it works as before then.
pub(crate) async fn take_away(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    force: bool,
) -> Result<(), ApiError> {
    let device = resource.state().device.clone();
    let Some(device) = device else { return take_left_away(node, resource, force).await };
    let cell = Arc::clone(&device.device);
    blocking(move || {
        let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = cell.take() else { return Ok(()) };
        device.detach(force).map_err(|(device, error)| {
            *cell = Some(device);
            refuse::device(&error)
        })
    })
    .await?;
    resource.state().device = None;
    super::updown::publish(node, resource);
    Ok(())
}

/// The same for a device that waits for this node to be Primary again. Who has it open cannot be
/// asked to let go: all of its I/O waits.
async fn take_left_away(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    force: bool,
) -> Result<(), ApiError> {
    if resource.state().device_waits.is_none() {
        return Ok(());
    }
    let name = resource.name();
    if !force {
        let message = "its device is in use since before the daemon was started, and waits until \
                       this node is Primary again";
        return Err(ApiError::new(ErrorCode::InUse, message)
            .hint(format!("`holdfast secondary {name} --force` fails what waits")));
    }
    give_up_left(node, &name, "a command took it away").await;
    resource.state().device_waits = None;
    Ok(())
}

/// Leaves the device for the next start of the daemon, when it can wait for it; its I/O waits
/// meanwhile. `false` when it cannot: it works as before then.
pub(crate) async fn leave(resource: &Arc<Resource>) -> Result<bool, ApiError> {
    let Some(device) = resource.state().device.clone() else { return Ok(true) };
    let cell = Arc::clone(&device.device);
    let left = blocking(move || {
        let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
        let can_wait = cell.as_ref().is_none_or(LocalDevice::survives);
        if can_wait && let Some(device) = cell.take() {
            device.leave();
        }
        Ok(can_wait)
    })
    .await?;
    if left {
        resource.state().device = None;
    }
    Ok(left)
}
