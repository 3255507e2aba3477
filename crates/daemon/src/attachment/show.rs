//! An attachment in the words of the API.

use super::{Record, Running};
use holdfast_api::attachment::{AttachmentConnection, AttachmentLeg, AttachmentStatus};
use holdfast_nbd::{ConnectionStatus, LegStatus, RemoteState};

pub(super) fn status(
    record: &Record,
    stored: bool,
    running: Option<&Running>,
    problem: Option<String>,
) -> AttachmentStatus {
    let now = running.and_then(|running| running.disk.status());
    let legs: Vec<AttachmentLeg> = now.iter().flat_map(|now| &now.legs).map(leg).collect();
    let connections = || legs.iter().flat_map(|leg| &leg.connections);
    let state = match (&now, running) {
        (Some(now), _) => now.state,
        (None, Some(_)) => RemoteState::Closed,
        (None, None) => RemoteState::Connecting,
    };
    let last_error = || legs.iter().find_map(|leg| leg.last_error.clone());
    let is_good = state == RemoteState::Connected && legs.iter().all(|leg| leg.leg == "InSync");
    AttachmentStatus {
        name: record.name.clone(),
        device: running.map(|running| running.path.clone()),
        device_kind: running.map(|running| running.kind.to_owned()),
        state: state.as_str().to_owned(),
        size_bytes: record.size.unwrap_or(0),
        uris: record.uris.clone(),
        mirror: record.mirror,
        persist: stored,
        read_only: running.map_or(record.read_only, |running| running.disk.info().read_only),
        io_timeout_seconds: record.io_timeout_seconds,
        identity: now.as_ref().map(|now| now.identity.clone()).unwrap_or_default(),
        pending_requests: now.as_ref().map_or(0, |now| number(now.pending)),
        read_bytes_per_second: connections().map(|one| one.read_bytes_per_second).sum(),
        write_bytes_per_second: connections().map(|one| one.write_bytes_per_second).sum(),
        problem: if is_good { None } else { problem.or_else(last_error) },
        legs,
    }
}

fn leg(leg: &LegStatus) -> AttachmentLeg {
    let session = &leg.session;
    AttachmentLeg {
        leg: leg.state.as_str().to_owned(),
        state: session.state.as_str().to_owned(),
        state_seconds: session.state_for.as_secs_f64(),
        uri: session.uri.clone(),
        missing_bytes: leg.missing_bytes,
        copied_bytes: leg.copied_bytes,
        pending_requests: number(session.pending),
        unflushed_bytes: session.unflushed_bytes,
        resent_requests: session.resent,
        restored_writes: session.restored,
        outages: session.outages,
        last_error: session.last_error.clone(),
        connections: session.connections.iter().map(connection).collect(),
    }
}

fn connection(one: &ConnectionStatus) -> AttachmentConnection {
    AttachmentConnection {
        state: one.state.as_str().to_owned(),
        uri: one.uri.clone(),
        requests: one.requests,
        errors: one.errors,
        read_bytes: one.bytes_read,
        written_bytes: one.bytes_written,
        read_bytes_per_second: one.read_rate,
        write_bytes_per_second: one.write_rate,
        under_way: number(one.under_way),
        reconnects: one.reconnects,
        live_seconds: one.live_for.map(|time| time.as_secs_f64()),
        last_error: one.last_error.clone(),
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
