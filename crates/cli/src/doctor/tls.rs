//! The certificates of this node.

use super::Facts;
use super::finding::{Findings, Severity};
use holdfast_cluster::Validity;
use jiff::Timestamp;

/// A certificate that ends within so many days is told of.
const SOON_DAYS: i64 = 30;

/// What depends on a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// The nodes of the cluster know each other by fingerprint.
    Nodes,
    /// NBD clients look at the dates.
    Nbd,
}

pub(super) fn look(facts: &Facts, now: Timestamp, findings: &mut Findings) {
    let Some(info) = facts.info.as_ref().filter(|_| facts.machine.is_here()) else { return };
    let own = format!("{}/identity/cert.pem", info.state_dir);
    if facts.machine.has(&own) {
        certificate(facts, "tls.node", &own, Use::Nodes, now, findings);
    }
    let Some(dir) = &info.nbd_tls_certificates else { return };
    certificate(facts, "tls.nbd", &format!("{dir}/server-cert.pem"), Use::Nbd, now, findings);
    let authority = format!("{dir}/ca-cert.pem");
    if facts.machine.has(&authority) {
        certificate(facts, "tls.nbd_authority", &authority, Use::Nbd, now, findings);
    }
}

fn certificate(
    facts: &Facts,
    check: &'static str,
    path: &str,
    used: Use,
    now: Timestamp,
    findings: &mut Findings,
) {
    let Some(pem) = facts.machine.bytes(path) else {
        let why = "the daemon needs it, and does not start without it";
        let advice = "put it back, or run doctor as a user who may read it";
        return findings.warning(check, format!("{path} cannot be read"), why, advice);
    };
    let Some(validity) = Validity::of_pem(&pem) else {
        let why = "whoever is shown it will refuse it";
        return findings.error(check, format!("{path} holds no certificate"), why, "replace it");
    };
    let left_days = (validity.until - now.as_second()).div_euclid(86_400);
    let until = Timestamp::from_second(validity.until)
        .map_or_else(|_| "ever".into(), |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string());
    let early = validity.from > now.as_second();
    if left_days >= SOON_DAYS && !early {
        return findings.ok(check, format!("{path} is valid until {until}"));
    }
    let what = match (early, left_days) {
        (true, _) => format!("{path} is not valid yet"),
        (_, ..0) => format!("{path} is not valid any more: it ended {until}"),
        (_, 0) => format!("{path} ends within a day: {until}"),
        (_, days) => format!("{path} ends in {days} days: {until}"),
    };
    match used {
        Use::Nodes => findings.note(
            check,
            what,
            "nodes know each other by the fingerprint of the certificate, and do not look at its \
             dates",
            "nothing",
        ),
        Use::Nbd => {
            let over = early || left_days < 0;
            let severity = if over { Severity::Error } else { Severity::Warning };
            let why = if over {
                "NBD clients that look at it refuse to connect"
            } else {
                "from then on NBD clients that look at it refuse to connect"
            };
            let advice = if early {
                "set the clock of this machine, or replace the certificate"
            } else {
                "put a new certificate there, and restart the daemon"
            };
            findings.add(severity, check, what, why, advice);
        }
    }
}
