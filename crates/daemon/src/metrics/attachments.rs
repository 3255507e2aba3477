//! Exports of other machines that are attached here.

use super::{Families, Kind, Row, label, n, with, yes};
use holdfast_api::attachment::{AttachmentConnection, AttachmentLeg, AttachmentStatus};
use holdfast_api::status::NodeStatus;
use std::collections::BTreeMap;

const OF_ATTACHMENT: [Row<AttachmentStatus>; 18] = [
    ("holdfast_attachment_connected", Kind::Gauge, "Whether the server answers.", |a| {
        yes(a.state == "Connected")
    }),
    ("holdfast_attachment_problem", Kind::Gauge, "Whether it is not as it should be.", |a| {
        yes(a.problem.is_some())
    }),
    ("holdfast_attachment_size_bytes", Kind::Gauge, "The size of the device.", |a| n(a.size_bytes)),
    ("holdfast_attachment_read_only", Kind::Gauge, "Whether writes are refused.", |a| {
        yes(a.read_only)
    }),
    ("holdfast_attachment_persistent", Kind::Gauge, "Whether it comes back at a start.", |a| {
        yes(a.persist)
    }),
    ("holdfast_attachment_io_timeout_seconds", Kind::Gauge, "How long a request may take.", |a| {
        a.io_timeout_seconds
    }),
    ("holdfast_attachment_pending_requests", Kind::Gauge, "Requests that are not over.", |a| {
        n(a.pending_requests)
    }),
    (
        "holdfast_attachment_under_way_requests",
        Kind::Gauge,
        "Requests that a connection waits for.",
        |a| n(connections(a).map(|one| one.under_way).sum()),
    ),
    ("holdfast_attachment_requests_total", Kind::Counter, "Requests that were answered.", |a| {
        n(connections(a).map(|one| one.requests).sum())
    }),
    ("holdfast_attachment_read_bytes_total", Kind::Counter, "Bytes read from servers.", |a| {
        n(connections(a).map(|one| one.read_bytes).sum())
    }),
    ("holdfast_attachment_written_bytes_total", Kind::Counter, "Bytes written to servers.", |a| {
        n(connections(a).map(|one| one.written_bytes).sum())
    }),
    ("holdfast_attachment_errors_total", Kind::Counter, "Requests answered with an error.", |a| {
        n(connections(a).map(|one| one.errors).sum())
    }),
    ("holdfast_attachment_reconnects_total", Kind::Counter, "Connections made again.", |a| {
        n(connections(a).map(|one| one.reconnects).sum())
    }),
    ("holdfast_attachment_outages_total", Kind::Counter, "Losses of all connections.", |a| {
        n(legs(a).map(|leg| leg.outages).sum())
    }),
    (
        "holdfast_attachment_resent_requests_total",
        Kind::Counter,
        "Requests that were sent again because their connection broke.",
        |a| n(legs(a).map(|leg| leg.resent_requests).sum()),
    ),
    (
        "holdfast_attachment_restored_writes_total",
        Kind::Counter,
        "Writes that were written again because the server may have lost them.",
        |a| n(legs(a).map(|leg| leg.restored_writes).sum()),
    ),
    (
        "holdfast_attachment_unflushed_bytes",
        Kind::Gauge,
        "Writes that are kept here because no flush has covered them.",
        |a| n(legs(a).map(|leg| leg.unflushed_bytes).sum()),
    ),
    ("holdfast_attachment_missing_bytes", Kind::Gauge, "What servers of a mirror lack.", |a| {
        n(legs(a).map(|leg| leg.missing_bytes).sum())
    }),
];

fn legs(attachment: &AttachmentStatus) -> impl Iterator<Item = &AttachmentLeg> {
    attachment.legs.iter()
}

fn connections(attachment: &AttachmentStatus) -> impl Iterator<Item = &AttachmentConnection> {
    legs(attachment).flat_map(|leg| &leg.connections)
}

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let attachments = status.attachments.iter().map(|a| (label("attachment", &a.name), a));
    all.table(&OF_ATTACHMENT, attachments.clone());
    all.put(
        "holdfast_attachment_copied_bytes_total",
        Kind::Counter,
        "What was copied to servers of a mirror.",
        attachments
            .clone()
            .filter(|(_, a)| a.mirror)
            .map(|(labels, a)| (labels, legs(a).map(|leg| leg.copied_bytes).sum::<u64>() as f64)),
    );
    all.info(
        "holdfast_attachment_state",
        "The attachment, 1 for its state.",
        attachments.clone().map(|(labels, a)| with(&labels, "state", &a.state)),
    );
    all.info(
        "holdfast_attachment_device_info",
        "The local block device of an attachment.",
        attachments.clone().filter_map(|(labels, a)| {
            let labels = with(&labels, "device", a.device.as_deref()?);
            Some(with(&labels, "kind", a.device_kind.as_deref().unwrap_or_default()))
        }),
    );
    // By state: an address can be anything.
    all.put(
        "holdfast_attachment_servers",
        Kind::Gauge,
        "How many servers of an attachment are in a state.",
        attachments.clone().flat_map(|(labels, a)| {
            let mut counts = BTreeMap::<_, u64>::new();
            legs(a).for_each(|leg| *counts.entry((&leg.leg, &leg.state)).or_default() += 1);
            let line = |((leg, state), count): ((&String, &String), u64)| {
                (with(&with(&labels, "leg", leg), "state", state), count as f64)
            };
            counts.into_iter().map(line).collect::<Vec<_>>()
        }),
    );
    all.put(
        "holdfast_attachment_connections",
        Kind::Gauge,
        "How many connections of an attachment are in a state.",
        attachments.flat_map(|(labels, a)| {
            let mut counts = BTreeMap::<_, u64>::new();
            connections(a).for_each(|one| *counts.entry(&one.state).or_default() += 1);
            let line =
                |(state, count): (&String, u64)| (with(&labels, "state", state), count as f64);
            counts.into_iter().map(line).collect::<Vec<_>>()
        }),
    );
}
