//! Remote exports that are attached here as block devices: what is kept of each, and what it is
//! doing.

mod backend;
mod record;
mod show;

use crate::commands::device;
use crate::node::Node;
use crate::refuse;
use backend::RemoteBackend;
use holdfast_api::attachment::{Attached, AttachmentStatus};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_device::{DeviceError, DeviceOptions, LocalDevice};
use holdfast_nbd::{
    LegState, NbdUri, OpenFault, RemoteDisk, RemoteOpenError, RemoteState, note_use,
};
pub(crate) use record::{Record, RecordStore, mirrors_dir};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a command waits for the one before it on the same attachment.
const COMMAND_WAIT: Duration = Duration::from_secs(10);
/// How many requests of a device are with the disk at a time, for each connection, and at most.
const THREADS_EACH: usize = 4;
const MAX_THREADS: usize = 32;

/// All that is attached, by name.
#[derive(Default)]
pub(crate) struct Attachments {
    all: Mutex<BTreeMap<String, Arc<Attachment>>>,
    /// Told when there is one more, or less.
    changed: tokio::sync::Notify,
}

/// How often it is looked whether an attachment has changed its state.
const LOOK: Duration = Duration::from_millis(500);

impl Attachments {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Attachment>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Attachment>> {
        self.lock().values().cloned().collect()
    }

    /// Waits until it is time to look at their states: something came or went, or there are some and
    /// half a second has passed.
    pub(crate) async fn next_look(&self) {
        if self.lock().is_empty() {
            self.changed.notified().await;
        } else {
            // Both ends are good.
            let _ = tokio::time::timeout(LOOK, self.changed.notified()).await;
        }
    }

    /// The one with this name.
    ///
    /// # Errors
    /// `NO_SUCH_ATTACHMENT`.
    pub(crate) fn named(&self, name: &str) -> Result<Arc<Attachment>, ApiError> {
        self.lock().get(name).cloned().ok_or_else(|| {
            let message = format!("attachment {name} was not found: nothing of that name is here");
            ApiError::new(ErrorCode::NoSuchAttachment, message)
                .hint("`holdfast attachments` lists what is attached to this node")
        })
    }

    /// Takes a name, or finds one where none is given: that of the export when `is_free` and a name
    /// at all, else `nbd0`, `nbd1` and so on.
    ///
    /// # Errors
    /// When the name, or one of the exports, is in use.
    pub(crate) fn reserve(
        &self,
        name: Option<&str>,
        is_free: impl Fn(&str) -> bool,
        mut record: Record,
        stored: bool,
    ) -> Result<Arc<Attachment>, ApiError> {
        let mut all = self.lock();
        let refuse = |code, why: String| {
            let what = name.or(record.uris.first().map(String::as_str)).unwrap_or_default();
            Err(ApiError::new(code, format!("{what} was not attached: {why}")))
        };
        let is_same = |other: &&Arc<Attachment>| {
            other.record().uris.iter().any(|uri| record.uris.contains(uri))
        };
        if let Some(other) = all.values().find(is_same) {
            let why = format!("the export is attached already, as {}", other.name);
            return refuse(ErrorCode::AlreadyAttached, why);
        }
        let is_free = |name: &str| is_free(name) && !all.contains_key(name);
        let name = match name {
            Some(name) if is_free(name) => name.to_owned(),
            Some(_) => return refuse(ErrorCode::AlreadyExists, "the name is taken".to_owned()),
            None => {
                let numbered = (0..=all.len()).map(|number| format!("nbd{number}"));
                let mut wished = record.export_name().into_iter().chain(numbered);
                match wished.find(|name| is_free(name)) {
                    Some(name) => name,
                    None => return refuse(ErrorCode::AlreadyExists, "give it a --name".to_owned()),
                }
            }
        };
        record.name.clone_from(&name);
        let attachment = Arc::new(Attachment {
            name: name.clone(),
            command: tokio::sync::Mutex::default(),
            file: Mutex::default(),
            state: Mutex::new(State {
                record,
                stored,
                device_waits: false,
                running: None,
                problem: None,
            }),
            ended: watch::channel(false).0,
        });
        all.insert(name, Arc::clone(&attachment));
        self.changed.notify_one();
        Ok(attachment)
    }

    /// Forgets it; another one of the same name stays.
    pub(crate) fn remove(&self, attachment: &Arc<Attachment>) {
        let mut all = self.lock();
        if all.get(&attachment.name).is_some_and(|one| Arc::ptr_eq(one, attachment)) {
            all.remove(&attachment.name);
            self.changed.notify_one();
        }
    }
}

/// A remote export that is attached, or shall be.
pub(crate) struct Attachment {
    pub(crate) name: String,
    /// Held by the one command that changes it at a time.
    command: tokio::sync::Mutex<()>,
    /// Held while its record is written or removed.
    file: Mutex<()>,
    state: Mutex<State>,
    /// There is nothing to come back to any more.
    ended: watch::Sender<bool>,
}

struct State {
    record: Record,
    /// Whether the record is kept in the state directory.
    stored: bool,
    /// There is a device that an earlier run of the daemon left: its I/O waits for the server.
    device_waits: bool,
    running: Option<Running>,
    /// Why it is not attached although it should be.
    problem: Option<String>,
}

/// While there is a device.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) disk: RemoteDisk,
    pub(crate) path: String,
    pub(crate) kind: &'static str,
    /// `None` while it is being taken away.
    device: Arc<Mutex<Option<LocalDevice>>>,
}

/// What is left of a device.
#[derive(Default)]
pub(crate) struct Closed {
    /// For [`Record::remembered`].
    pub(crate) remembered: Option<String>,
    /// URIs of the legs of a mirror that are not in sync, and how many bytes each lacks.
    pub(crate) behind: Vec<(String, u64)>,
}

impl Running {
    /// Whether all of its servers answer, so that a flush can be waited for.
    pub(crate) fn is_connected(&self) -> bool {
        self.disk.status().is_some_and(|status| status.state == RemoteState::Connected)
    }

    /// Takes the device away.
    ///
    /// # Errors
    /// Without `force`, when somebody has it open or the flush failed: it works as before then.
    pub(crate) fn take_device(&self, force: bool) -> Result<(), ApiError> {
        if force {
            // Those who serve the device must not wait for the server.
            self.disk.abort(Duration::ZERO);
        }
        let mut cell = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = cell.take() else { return Ok(()) };
        device.detach(force).map_err(|(device, error)| {
            *cell = Some(device);
            refuse::device(&error)
        })
    }

    /// Leaves the device for the next start of the daemon, when it can wait for it. `false` when it
    /// cannot: it works as before then.
    pub(crate) fn leave_device(&self) -> bool {
        let mut cell = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let can_wait = cell.as_ref().is_none_or(LocalDevice::survives);
        if can_wait && let Some(device) = cell.take() {
            device.leave();
        }
        can_wait
    }

    fn survives(&self) -> bool {
        let cell = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        cell.as_ref().is_some_and(LocalDevice::survives)
    }

    /// Ends the connections, flushing first where a server answers; what is known of what the export
    /// holds, whatever state it is in, and of a mirror which legs lack how many bytes.
    pub(crate) fn close(&self) -> Closed {
        let status = self.disk.status();
        let known = status.as_ref().and_then(|status| status.legs.first());
        let mut remembered = known.map(|leg| leg.session.remembered.clone());
        let behind = status.iter().flat_map(|status| &status.legs);
        let behind = behind.filter(|leg| leg.state != LegState::InSync);
        let behind = behind.map(|leg| (leg.session.uri.clone(), leg.missing_bytes)).collect();
        if status.is_some_and(|status| status.state == RemoteState::Connected) {
            match self.disk.close() {
                Ok(seen) => remembered = Some(seen.remembered),
                Err(error) => {
                    tracing::warn!(device = self.path, %error, "the last flush of an export failed");
                }
            }
        }
        let remembered = remembered.filter(|known| !known.is_empty());
        Closed { remembered: remembered.map(|known| known.to_string()), behind }
    }
}

impl Attachment {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self) -> Record {
        self.state().record.clone()
    }

    /// Whether it comes back after a restart.
    pub(crate) fn is_stored(&self) -> bool {
        self.state().stored
    }

    pub(crate) fn running(&self) -> Option<Running> {
        self.state().running.clone()
    }

    /// Whether its device waits since an earlier run of the daemon.
    pub(crate) fn device_waits(&self) -> bool {
        self.state().device_waits
    }

    pub(crate) fn set_device_waits(&self, waits: bool) {
        self.state().device_waits = waits;
    }

    pub(crate) fn set_problem(&self, problem: String) {
        self.state().problem = Some(problem);
    }

    /// What was taken away, when there was a device.
    pub(crate) fn stopped(&self) -> Option<Running> {
        self.state().running.take()
    }

    /// Waits for the command before.
    ///
    /// # Errors
    /// `BUSY`.
    pub(crate) async fn begin(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
        let begun = tokio::time::timeout(COMMAND_WAIT, self.command.lock()).await;
        begun.map_err(|_| {
            let message = format!(
                "the command on attachment {} was refused: another one is under way",
                self.name
            );
            ApiError::new(ErrorCode::Busy, message).hint("try again in a few seconds")
        })
    }

    /// Whether it was detached.
    pub(crate) fn is_over(&self) -> bool {
        *self.ended.borrow()
    }

    /// Ends when it was detached.
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as the attachment does.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Reaches the server and makes the device. Blocks.
    ///
    /// # Errors
    /// Why not; nothing is left behind then.
    pub(crate) fn open(&self, node: &Node) -> Result<Attached, ApiError> {
        let record = self.record();
        let refuse = |why: String| {
            let message = format!("{} was not attached: {why}", self.name);
            ApiError::new(ErrorCode::ServerUnusable, message)
        };
        let options = record.options(&node.settings.state_dir).map_err(refuse)?;
        let disk = RemoteDisk::open(options).map_err(|error| {
            let hint = self.hint(&error, &record);
            refuse(error.to_string()).hint(hint)
        })?;
        let size = disk.info().size;
        if record.size.is_some_and(|known| known != size) {
            let known = record.size.unwrap_or_default();
            return Err(refuse(format!("the export has {size} bytes now, and had {known}")));
        }
        if !record.mirror && !disk.info().read_only {
            let uris: Vec<NbdUri> = record.uris.iter().flat_map(|uri| uri.parse()).collect();
            note_use(&mirrors_dir(&node.settings.state_dir), &uris).map_err(refuse)?;
        }
        // From the first write on, the export does not have to hold that after a crash.
        self.rewrite(node, &record, None)?;
        let threads = (record.connections * THREADS_EACH).min(MAX_THREADS);
        let via = record.via.parse().map_err(refuse)?;
        let options = DeviceOptions { via, threads, ..device::options(&node.settings) };
        let backend = Arc::new(RemoteBackend::new(disk.clone()));
        let device = match self.make_device(backend, &options) {
            Ok(device) => device,
            Err(error) => {
                // Nothing has been written.
                self.rewrite(node, &record, record.remembered.as_ref())?;
                return Err(refuse::device(&error));
            }
        };
        let reason = Some(device.reason().to_owned());
        let identity = disk.status().map(|status| status.identity).unwrap_or_default();
        let running = Running {
            path: device.path().display().to_string(),
            kind: device.kind().as_str(),
            disk,
            device: Arc::new(Mutex::new(Some(device))),
        };
        let (name, path) = (self.name.clone(), running.path.clone());
        let kind = running.kind.to_owned();
        let survives = running.survives();
        {
            let mut state = self.state();
            state.record.size = Some(size);
            // From now on writes change what the export looks like, and the notes of a mirror say which
            // server has what.
            state.record.identity = None;
            state.record.remembered = None;
            state.record.copy_first = false;
            state.problem = None;
            state.device_waits = false;
            state.running = Some(running);
        }
        // A device that outlives the daemon is to be found by the next one.
        if survives
            && let Err(error) = RecordStore::open(&node.settings.run_dir())
                .and_then(|store| store.save(&self.record()))
        {
            tracing::warn!("{}", error.message);
        }
        Ok(Attached { name, path, kind, reason, identity })
    }

    /// What the user can do about it.
    fn hint(&self, error: &RemoteOpenError, record: &Record) -> String {
        let name = &self.name;
        match error.fault() {
            OpenFault::Unequal => "name the server first that has what is to be kept, and say \
                                   `--copy-first`; the others are filled from it"
                .to_owned(),
            OpenFault::Different if record.identity.is_some() => {
                "leave out --identity if this is the right export nevertheless".to_owned()
            }
            OpenFault::Different => format!(
                "if it was exchanged on purpose, `holdfast detach {name} --force`, then attach it"
            ),
            OpenFault::Unreachable => {
                "check that the server runs, and that address and export are right".to_owned()
            }
        }
    }

    /// Changes what the export held wherever that is written down.
    fn rewrite(
        &self,
        node: &Node,
        record: &Record,
        remembered: Option<&String>,
    ) -> Result<(), ApiError> {
        if record.remembered.is_none() {
            return Ok(());
        }
        let record = Record { remembered: remembered.cloned(), ..record.clone() };
        if self.is_stored() {
            RecordStore::open(&node.settings.state_dir)?.save(&record)?;
        }
        if self.device_waits() {
            RecordStore::open(&node.settings.run_dir())?.save(&record)?;
        }
        Ok(())
    }

    /// Takes over the device that an earlier run left, or makes one.
    fn make_device(
        &self,
        backend: Arc<RemoteBackend>,
        options: &DeviceOptions,
    ) -> Result<LocalDevice, DeviceError> {
        if self.device_waits() {
            let same = Arc::clone(&backend);
            if let Some(device) = LocalDevice::recover(&self.name, same, options)? {
                return Ok(device);
            }
        }
        LocalDevice::attach(&self.name, backend, options)
    }

    /// The device that an earlier run left is not waited for any more: its I/O fails. Blocks.
    pub(crate) fn give_up_device(&self, node: &Node, why: &str) {
        if !self.device_waits() {
            return;
        }
        match LocalDevice::remove_left(&self.name, &device::options(&node.settings)) {
            Ok(_) => tracing::error!(
                "the device of {}, which an earlier run left, was taken away by force and its I/O \
                 fails: {why}",
                self.name
            ),
            Err(error) => tracing::error!("{error}"),
        }
        self.set_device_waits(false);
    }

    /// What `attachments` shows. Blocks for a moment.
    pub(crate) fn status(&self) -> AttachmentStatus {
        let (record, stored, running, problem) = {
            let state = self.state();
            (state.record.clone(), state.stored, state.running.clone(), state.problem.clone())
        };
        show::status(&record, stored, running.as_ref(), problem)
    }

    /// Nobody wants it any more: from now on it is not attached again, and its record, which is
    /// removed, not written again.
    ///
    /// # Errors
    /// When the system refuses to remove it.
    pub(crate) fn end(&self, node: &Node) -> Result<(), ApiError> {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.send_replace(true);
        RecordStore::open(&node.settings.run_dir())?.remove(&self.name)?;
        RecordStore::open(&node.settings.state_dir)?.remove(&self.name)
    }

    /// Writes it into the state directory, for the next start.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), ApiError> {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over() {
            return Ok(());
        }
        let record = {
            let mut state = self.state();
            state.stored = true;
            state.record.clone()
        };
        RecordStore::open(dir)?.save(&record)
    }

    /// The daemon ends: what the next start has to know is kept, also of a device that waits for it.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn keep(
        &self,
        node: &Node,
        remembered: Option<String>,
        device_waits: bool,
    ) -> Result<(), ApiError> {
        {
            let mut state = self.state();
            let one = !state.record.mirror && !state.record.shared;
            state.record.remembered = remembered.filter(|_| one);
        }
        let run = RecordStore::open(&node.settings.run_dir())?;
        let kept = if device_waits { run.save(&self.record()) } else { run.remove(&self.name) };
        if self.is_stored() {
            self.store(&node.settings.state_dir)?;
        }
        kept
    }
}
