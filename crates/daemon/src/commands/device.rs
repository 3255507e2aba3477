//! `device`: a resource as a local block device.

use super::blocking;
use crate::node::Node;
use crate::refuse;
use crate::resource::{Device, Resource};
use holdfast_api::request::{self, DeviceMade, Done};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_device::{DeviceOptions, LocalDevice, NbdBackend, NbdOptions, Via};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Names the directory of the devices, when it is not `/dev/holdfast`.
const DIR_VARIABLE: &str = "HOLDFAST_DEV_DIR";

/// Where and how local devices of this node are made.
pub(crate) fn options(run_dir: &Path) -> DeviceOptions {
    let mut options = DeviceOptions { run_dir: run_dir.join("devices"), ..Default::default() };
    if let Some(dir) = std::env::var_os(DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        options.links_dir = PathBuf::from(dir);
    }
    options
}

/// Makes the local device of a resource; the one that is there is fine too.
///
/// # Errors
/// When this node is not Primary, or the kernel offers no way.
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
    if let Some(device) = &resource.state().device {
        let (path, kind) = (device.path.clone(), device.kind.to_owned());
        return Ok(DeviceMade { path, kind, reason: None });
    }
    let handle = resource.need_handle()?;
    if !handle.snapshot().exported {
        let message = format!("device {name} was not made: this node is not Primary");
        return Err(ApiError::new(ErrorCode::NotPrimary, message)
            .hint(format!("run `holdfast primary {name}` first")));
    }
    let nbd = NbdOptions::new(node.settings.nbd_socket(), name);
    let options = DeviceOptions { via, ..options(&node.settings.run_dir()) };
    let owned = name.to_owned();
    let made = blocking(move || {
        let backend = NbdBackend::connect(nbd).map_err(|error| {
            ApiError::new(
                ErrorCode::DeviceUnavailable,
                format!("device {owned} was not made: {error}"),
            )
        })?;
        LocalDevice::attach(&owned, Arc::new(backend), &options).map_err(|e| refuse::device(&e))
    })
    .await?;
    let path = made.path().display().to_string();
    let (kind, reason) = (made.kind().as_str(), Some(made.reason().to_owned()));
    let device = Arc::new(Mutex::new(Some(made)));
    resource.state().device =
        Some(Device { path: path.clone(), kind, device, openers: Vec::new() });
    super::updown::publish(node, &resource);
    Ok(DeviceMade { path, kind: kind.to_owned(), reason })
}

/// Takes the local device of a resource away.
///
/// # Errors
/// `NO_SUCH_DEVICE`; `IN_USE` with who has it open.
pub(crate) async fn remove(node: &Arc<Node>, name: &str) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    if resource.state().device.is_none() {
        let message = format!("the device of resource {name} was not found: it has none");
        return Err(ApiError::new(ErrorCode::NoSuchDevice, message));
    }
    take_away(node, &resource, false).await?;
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
    let Some(device) = resource.state().device.clone() else { return Ok(()) };
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
