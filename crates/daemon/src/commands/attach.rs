//! `attach`, `attachments`, `detach` and `abort`: remote exports as local block devices.

use super::{blocking, device, used_disks};
use crate::attachment::{Attachment, Closed, Record, RecordStore, Running};
use crate::disk::Used;
use crate::events::{Part, of_attachments};
use crate::node::Node;
use crate::options::Settings;
use holdfast_api::attachment::{
    Abort, Attach, Attached, AttachmentStatus, DEFAULT_HOLD_SECONDS, DEFAULT_IO_TIMEOUT_SECONDS,
    Detach,
};
use holdfast_api::request::Done;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_device::Via;
use holdfast_nbd::{MAX_CONNECTIONS, MAX_URIS, NbdUri};
use holdfast_units::format_size;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time that can be asked for, in seconds: a year.
const LONGEST: f64 = 31_622_400.0;
/// The pauses between attempts to come back after a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Attaches an export.
///
/// # Errors
/// When the call does not make sense, no server can be reached, or the kernel offers no way to make
/// a device; nothing is left behind then.
pub(crate) async fn attach(node: &Arc<Node>, call: Attach) -> Result<Attached, ApiError> {
    let record = record_of(&call)?;
    let is_wanted = |used: &&Used| record.uris.iter().any(|uri| used.disk.path == Path::new(uri));
    let used = used_disks(node);
    if let Some(used) = used.iter().find(is_wanted) {
        let place = used.disk.path.display();
        let message =
            format!("{place} was not attached: it belongs to {} of this node", used.owner);
        return Err(ApiError::new(ErrorCode::AlreadyAttached, message)
            .hint("two users of one disk destroy what is on it"));
    }
    let is_free = |name: &str| !node.resources().iter().any(|one| one.name() == name);
    let attachment = node.attachments.reserve(call.name.as_deref(), is_free, record, false)?;
    let _begun = attachment.begin().await?;
    let (owned, of) = (Arc::clone(&attachment), Arc::clone(node));
    let persist = call.persist;
    let made = blocking(move || {
        let made = owned.open(&of)?;
        if persist && let Err(error) = owned.store(&of.settings.state_dir) {
            if let Some(running) = owned.stopped() {
                // It is not in use yet.
                let _ = running.take_device(true);
                running.close();
            }
            return Err(error);
        }
        Ok(made)
    })
    .await;
    if made.is_err() {
        node.attachments.remove(&attachment);
    }
    made
}

/// What the call asks for, when it makes sense.
fn record_of(call: &Attach) -> Result<Record, ApiError> {
    let refuse = |code, why: String| {
        let what = call.uris.first().map_or("nothing", String::as_str);
        Err(ApiError::new(code, format!("{what} was not attached: {why}")))
    };
    let invalid = |why: &str| refuse(ErrorCode::InvalidRequest, why.to_owned());
    if call.uris.is_empty() || call.uris.len() > MAX_URIS {
        return invalid(&format!("1 to {MAX_URIS} URIs are needed"));
    }
    let mut uris = Vec::new();
    for uri in &call.uris {
        match uri.parse::<NbdUri>() {
            Ok(uri) => uris.push(uri.to_string()),
            Err(error) => return refuse(ErrorCode::InvalidAddress, error.to_string()),
        }
    }
    let mut different = uris.clone();
    different.sort();
    different.dedup();
    if different.len() != uris.len() {
        return invalid("a URI is given twice");
    }
    if call.mirror && !(2..=4).contains(&uris.len()) {
        return invalid("a mirror has 2 to 4 URIs");
    }
    if call.copy_first && !call.mirror {
        return invalid("copying from the first server is for mirrors");
    }
    let connections = usize::from(call.connections.unwrap_or(1));
    if connections == 0 || connections > MAX_CONNECTIONS {
        return invalid(&format!("1 to {MAX_CONNECTIONS} connections are possible"));
    }
    let via = call.via.clone().unwrap_or_else(|| "auto".to_owned());
    if let Err(why) = via.parse::<Via>() {
        return refuse(ErrorCode::InvalidRequest, why);
    }
    if let Some(Err(why)) = call.name.as_deref().map(holdfast_units::check_name) {
        return refuse(ErrorCode::InvalidName, why.to_string());
    }
    let seconds = call.io_timeout_seconds.unwrap_or(DEFAULT_IO_TIMEOUT_SECONDS);
    if !(0.0..=LONGEST).contains(&seconds) {
        return invalid("the I/O timeout is not between 0 seconds and a year");
    }
    if call.tls_certificates.is_some()
        && let Some(clear) = uris.iter().find(|uri| !uri.starts_with("nbds"))
    {
        let what = format!("{clear} was not attached: certificates were given, and it is not TLS");
        return Err(ApiError::new(ErrorCode::InvalidRequest, what)
            .hint("write nbds:// or nbds+unix:// for an export inside TLS"));
    }
    if call.tls_certificates.as_deref().is_some_and(|dir| !Path::new(dir).is_absolute()) {
        let why = "the path of the certificates is not absolute".to_owned();
        return refuse(ErrorCode::InvalidPath, why);
    }
    Ok(Record {
        name: String::new(),
        uris,
        connections,
        via,
        mirror: call.mirror,
        copy_first: call.copy_first,
        tls_certificates: call.tls_certificates.clone().map(Into::into),
        read_only: call.read_only,
        shared: call.shared,
        io_timeout_seconds: (seconds > 0.0).then_some(seconds),
        size: None,
        identity: call.identity.clone(),
        remembered: None,
    })
}

/// Tells readers of events how all attachments are, until the daemon stops.
pub(crate) async fn tell(node: Arc<Node>) {
    loop {
        if let Ok(all) = list(&node).await {
            node.hub.update(Part::Attachments, of_attachments(&all));
        }
        tokio::select! {
            () = node.attachments.next_look() => {}
            () = node.stopped() => return,
        }
    }
}

/// All attachments, by name.
///
/// # Errors
/// None but what should not happen.
pub(crate) async fn list(node: &Arc<Node>) -> Result<Vec<AttachmentStatus>, ApiError> {
    let all = node.attachments.all();
    blocking(move || Ok(all.iter().map(|one| one.status()).collect())).await
}

/// One attachment.
///
/// # Errors
/// `NO_SUCH_ATTACHMENT`.
pub(crate) async fn show(node: &Arc<Node>, name: &str) -> Result<AttachmentStatus, ApiError> {
    let attachment = node.attachments.named(name)?;
    blocking(move || Ok(attachment.status())).await
}

/// Takes an attachment away, for good.
///
/// # Errors
/// `NO_SUCH_ATTACHMENT`. Without force `IN_USE` with who has it open, and `NOT_CONNECTED` when its
/// server is away: it works as before then.
pub(crate) async fn detach(node: &Arc<Node>, name: &str, call: &Detach) -> Result<Done, ApiError> {
    let attachment = node.attachments.named(name)?;
    let force = call.force;
    if force && let Some(running) = attachment.running() {
        // Another command may be waiting for the server.
        blocking(move || {
            running.disk.abort(Duration::ZERO);
            Ok(())
        })
        .await?;
    }
    // One that waits for its server is not waited for.
    let returns = attachment.is_stored() || attachment.device_waits();
    let waits = returns && attachment.running().is_none();
    let _begun = if waits { None } else { Some(attachment.begin().await?) };
    let behind = match attachment.running() {
        Some(running) => take_away(&attachment, running, force).await?.behind,
        None => Vec::new(),
    };
    let (owned, of) = (Arc::clone(&attachment), Arc::clone(node));
    blocking(move || {
        owned.end(&of)?;
        if let Some(running) = owned.stopped() {
            // Its server has come meanwhile.
            running.take_device(true)?;
            running.close();
        }
        owned.give_up_device(&of, "it was detached");
        Ok(())
    })
    .await?;
    node.attachments.remove(&attachment);
    let mut message = format!("{name} is detached");
    for (uri, bytes) in behind {
        let lacks = format_size(bytes);
        message.push_str(&format!(
            "; {uri} lacks {lacks}, which it gets when the mirror is attached again"
        ));
    }
    Ok(Done::new(message))
}

/// Fails what is pending.
///
/// # Errors
/// `NO_SUCH_ATTACHMENT`, or `NOT_CONNECTED` while there is no device yet.
pub(crate) async fn abort(node: &Arc<Node>, name: &str, call: &Abort) -> Result<Done, ApiError> {
    let attachment = node.attachments.named(name)?;
    let refuse = |code, why: &str| {
        Err(ApiError::new(code, format!("the I/O of {name} was not aborted: {why}")))
    };
    let seconds = call.hold_seconds.unwrap_or(DEFAULT_HOLD_SECONDS);
    if !(0.0..=LONGEST).contains(&seconds) {
        return refuse(ErrorCode::InvalidRequest, "the hold is not between 0 seconds and a year");
    }
    let Some(running) = attachment.running() else {
        return refuse(ErrorCode::NotConnected, "its server has not been reached yet");
    };
    let hold = Duration::from_secs_f64(seconds);
    let pending = blocking(move || {
        let pending = running.disk.status().map_or(0, |status| status.pending);
        running.disk.abort(hold);
        Ok(pending)
    })
    .await?;
    Ok(Done::new(format!(
        "{pending} pending requests of {name} have failed; new ones are held for {seconds} s"
    )))
}

/// Takes the device away and ends the connections.
async fn take_away(
    attachment: &Arc<Attachment>,
    running: Running,
    force: bool,
) -> Result<Closed, ApiError> {
    let name = attachment.name.clone();
    let owned = Arc::clone(attachment);
    blocking(move || {
        if !force && !running.is_connected() {
            let message = format!("{name} was not detached: its server does not answer");
            return Err(ApiError::new(ErrorCode::NotConnected, message).hint(format!(
                "wait until it is back, or give up what was not written: `holdfast detach {name} \
                 --force`"
            )));
        }
        running.take_device(force)?;
        owned.stopped();
        Ok(running.close())
    })
    .await
}

/// The names of all that was attached when the daemon ended.
pub(crate) fn known(settings: &Settings) -> Vec<String> {
    let dirs = [settings.state_dir.clone(), settings.run_dir()];
    let records = dirs.iter().filter_map(|dir| RecordStore::open(dir).ok()?.load().ok());
    records.flat_map(|(records, _)| records).map(|record| record.name).collect()
}

/// What comes back: an attachment, whether it is to do so after every start, and whether its device
/// is still there.
struct Returning {
    record: Record,
    stored: bool,
    device_waits: bool,
}

/// Attaches what is to come back after a restart, and that whose device outlived the daemon, as
/// soon as the servers answer.
pub(crate) async fn take_up(node: &Arc<Node>) {
    let of = Arc::clone(node);
    let returning = match blocking(move || returning(&of)).await {
        Ok(returning) => returning,
        Err(error) => {
            tracing::error!("{}", error.message);
            return;
        }
    };
    for Returning { record, stored, device_waits } in returning {
        let name = record.name.clone();
        match node.attachments.reserve(Some(&name), |_| true, record, stored) {
            Ok(attachment) => {
                attachment.set_device_waits(device_waits);
                tokio::spawn(come_back(Arc::clone(node), attachment));
            }
            Err(error) => tracing::error!("{}", error.message),
        }
    }
}

fn returning(node: &Node) -> Result<Vec<Returning>, ApiError> {
    let stores = [
        RecordStore::open(&node.settings.state_dir)?,
        RecordStore::open(&node.settings.run_dir())?,
    ];
    let mut found: Vec<Returning> = Vec::new();
    for (store, stored) in stores.iter().zip([true, false]) {
        let (records, damaged) = store.load()?;
        for problem in damaged {
            tracing::error!("an attachment is left out: {problem}");
        }
        for mut record in records {
            // It has been attached: its notes say who lacks what.
            record.copy_first = false;
            if found.iter().any(|other| other.record.name == record.name) {
                continue;
            }
            let device_waits = device::is_left(node, &record.name);
            if stored || device_waits {
                found.push(Returning { record, stored, device_waits });
            } else {
                store.remove(&record.name)?;
            }
        }
    }
    Ok(found)
}

/// Tries until it is attached, or not wanted any more.
async fn come_back(node: Arc<Node>, attachment: Arc<Attachment>) {
    let mut pause = FIRST_PAUSE;
    let began = Instant::now();
    let patience = attachment.record().io_timeout_seconds.map(Duration::from_secs_f64);
    loop {
        {
            let Ok(_begun) = attachment.begin().await else { continue };
            if attachment.is_over() || node.is_stopping() {
                return;
            }
            let (owned, of) = (Arc::clone(&attachment), Arc::clone(&node));
            let opened = blocking(move || {
                let made = owned.open(&of)?;
                if owned.is_stored() {
                    owned.store(&of.settings.state_dir)?;
                }
                if owned.is_over()
                    && let Some(running) = owned.stopped()
                {
                    running.take_device(true)?;
                    running.close();
                }
                Ok(made)
            });
            match opened.await {
                Ok(_) if attachment.is_over() => return,
                Ok(made) => {
                    tracing::info!("{} is attached again as {}", made.name, made.path);
                    return;
                }
                Err(error) => {
                    tracing::warn!("{}; it is tried again", error.message);
                    // The I/O of a device waits as long as for any server that went away.
                    if patience.is_some_and(|patience| began.elapsed() >= patience) {
                        let (owned, of) = (Arc::clone(&attachment), Arc::clone(&node));
                        let why = error.message.clone();
                        let _ = blocking(move || {
                            owned.give_up_device(&of, &why);
                            Ok(())
                        })
                        .await;
                        if !attachment.is_stored() {
                            node.attachments.remove(&attachment);
                            return;
                        }
                    }
                    attachment.set_problem(error.message);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = attachment.ended() => return,
            () = node.stopped() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Takes all devices away, because the daemon ends; what is to come back is remembered.
pub(crate) async fn give_all_up(node: &Arc<Node>) {
    let all = node.attachments.all().into_iter().map(|attachment| async move {
        let Some(running) = attachment.running() else { return };
        let (closed, waits) = match take_away(&attachment, running.clone(), false).await {
            Ok(closed) => (closed, false),
            Err(error) => match leave(&attachment, running.clone()).await {
                Ok(Some(closed)) => {
                    tracing::warn!("{} waits for the next start: it is in use", attachment.name);
                    (closed, true)
                }
                _ => {
                    tracing::warn!("{}; it is taken away by force", error.message);
                    let taken = take_away(&attachment, running, true).await;
                    let taken = taken.inspect_err(|error| tracing::warn!("{}", error.message));
                    (taken.unwrap_or_default(), false)
                }
            },
        };
        let of = Arc::clone(node);
        let kept = blocking(move || attachment.keep(&of, closed.remembered, waits)).await;
        if let Err(error) = kept {
            tracing::warn!("{}", error.message);
        }
    });
    futures_util::future::join_all(all).await;
}

/// Leaves the device for the next start, when it can wait for it, and ends the connections.
async fn leave(attachment: &Arc<Attachment>, running: Running) -> Result<Option<Closed>, ApiError> {
    let owned = Arc::clone(attachment);
    blocking(move || {
        if !running.leave_device() {
            return Ok(None);
        }
        owned.stopped();
        Ok(Some(running.close()))
    })
    .await
}
