//! `attach`, `attachments`, `detach` and `abort`.

use crate::args::{Abort, Attach, Attachments, Detach};
use crate::output::{Style, width};
use crate::session::Session;
use crate::status::{WATCH, show};
use crate::table::{Cell, Table, cell, plain};
use holdfast_api::attachment::{
    self, Attached, AttachmentConnection, AttachmentLeg, AttachmentStatus,
};
use holdfast_api::{ApiError, ErrorCode, routes};
use holdfast_units::format_size;
use std::io::IsTerminal;

pub(crate) async fn attach(session: &Session, args: Attach) -> Result<(), ApiError> {
    let body = attachment::Attach {
        uris: args.uris,
        name: args.name,
        connections: args.connections,
        via: args.via,
        mirror: args.mirror,
        copy_first: args.copy_first,
        tls_certificates: args.tls_certificates,
        identity: args.identity,
        persist: args.persist,
        read_only: args.read_only,
        shared: args.shared,
        io_timeout_seconds: args.io_timeout.map(|time| time.as_secs_f64()),
    };
    let made: Attached = session.post(routes::ATTACHMENTS, &body).await?;
    session.device(&made, &made.path, made.reason.as_deref());
    Ok(())
}

pub(crate) async fn detach(session: &Session, args: &Detach) -> Result<(), ApiError> {
    let path = routes::of(routes::ATTACHMENT_DETACH, &args.name);
    session.act(&path, &attachment::Detach { force: args.force }).await
}

pub(crate) async fn abort(session: &Session, args: &Abort) -> Result<(), ApiError> {
    let path = routes::of(routes::ATTACHMENT_ABORT, &args.name);
    let hold_seconds = args.hold.map(|time| time.as_secs_f64());
    session.act(&path, &attachment::Abort { hold_seconds }).await
}

pub(crate) async fn list(session: &Session, args: &Attachments) -> Result<(), ApiError> {
    let ui = &session.ui;
    let name = args.name.as_deref();
    // The first look must succeed: a mistyped name or socket is not worth watching.
    let mut look = Ok(fetch(session, name).await?);
    if !args.watch {
        let all = look?;
        if ui.json {
            ui.json(&all);
        } else {
            ui.text(&render(&all, width(), ui.color));
        }
        return Ok(());
    }
    let redraw = std::io::stdout().is_terminal() && !ui.json;
    loop {
        match look {
            Ok(all) if ui.json => ui.json_line(&all),
            Ok(all) => show(ui, &render(&all, width(), ui.color), redraw),
            Err(error) if redraw => show(ui, &format!("error: {error}\n"), redraw),
            Err(error) => ui.error(&error),
        }
        tokio::time::sleep(WATCH).await;
        look = fetch(session, name).await;
    }
}

async fn fetch(session: &Session, name: Option<&str>) -> Result<Vec<AttachmentStatus>, ApiError> {
    let mut all: Vec<AttachmentStatus> = session.get(routes::ATTACHMENTS).await?;
    if let Some(name) = name {
        all.retain(|one| one.name == name);
        if all.is_empty() {
            let message = format!("attachment {name} was not found: nothing of that name is here");
            return Err(ApiError::new(ErrorCode::NoSuchAttachment, message)
                .hint("`holdfast attachments` lists what is attached to this node"));
        }
    }
    Ok(all)
}

/// The list as text; lines of tables are kept within `width`.
fn render(all: &[AttachmentStatus], width: Option<usize>, color: bool) -> String {
    if all.is_empty() {
        return "nothing is attached; `holdfast attach URI` attaches an export\n".to_owned();
    }
    let mut lines = Vec::new();
    for (at, one) in all.iter().enumerate() {
        if at > 0 {
            lines.push(String::new());
        }
        render_one(one, width, color, &mut lines);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn render_one(one: &AttachmentStatus, width: Option<usize>, color: bool, lines: &mut Vec<String>) {
    lines.push(headline(one, color));
    if let Some(problem) = &one.problem {
        lines.push(format!("  {}", Style::Bad.paint(problem, color)));
    }
    if one.legs.is_empty() {
        lines.extend(one.uris.iter().map(|uri| format!("  {uri}")));
        return;
    }
    lines.push(format!("  identity {}", one.identity));
    for leg in &one.legs {
        if one.mirror {
            lines.push(format!("  {}", mirrored(leg, color)));
        }
        if leg.unflushed_bytes + leg.resent_requests + leg.restored_writes + leg.outages > 0 {
            lines.push(format!("  {}", Style::Dim.paint(&history(leg), color)));
        }
    }
    let heading =
        ["SERVER", "STATE", "REQUESTS", "READ", "WRITTEN", "READ/S", "WRITE/S", "WAITING", "AGAIN"];
    let mut table = Table::new(2, &heading);
    for connection in one.legs.iter().flat_map(|leg| &leg.connections) {
        table.row(row(connection));
    }
    lines.extend(table.render(width, color));
}

/// What it is, in one line.
pub(crate) fn headline(one: &AttachmentStatus, color: bool) -> String {
    let mut head =
        format!("{}  {}", Style::Bold.paint(&one.name, color), format_size(one.size_bytes));
    if let Some(device) = &one.device {
        head.push_str(&format!("  {device}"));
    }
    head.push_str(&format!("  {}", style(&one.state).paint(&one.state, color)));
    let notes = [(one.mirror, "mirror"), (one.read_only, "read-only"), (one.persist, "persistent")];
    for (_, note) in notes.iter().filter(|(is, _)| *is) {
        head.push_str(&format!("  {}", Style::Dim.paint(note, color)));
    }
    head
}

/// A server of a mirror, in one line.
pub(crate) fn mirrored(leg: &AttachmentLeg, color: bool) -> String {
    let mut text = format!("{}  {}", leg.uri, style(&leg.leg).paint(&leg.leg, color));
    if leg.missing_bytes > 0 {
        text.push_str(&format!(", lacks {}", format_size(leg.missing_bytes)));
    }
    text
}

fn history(leg: &AttachmentLeg) -> String {
    format!(
        "{} unflushed, {} requests sent again, {} writes restored, outages: {}",
        format_size(leg.unflushed_bytes),
        leg.resent_requests,
        leg.restored_writes,
        leg.outages
    )
}

fn row(one: &AttachmentConnection) -> Vec<Cell> {
    vec![
        plain(&*one.uri),
        cell(&*one.state, style(&one.state)),
        plain(one.requests.to_string()),
        plain(format_size(one.read_bytes)),
        plain(format_size(one.written_bytes)),
        plain(format_size(one.read_bytes_per_second)),
        plain(format_size(one.write_bytes_per_second)),
        plain(one.under_way.to_string()),
        plain(one.reconnects.to_string()),
    ]
}

fn style(state: &str) -> Style {
    match state {
        "Connected" | "Live" | "InSync" => Style::Good,
        "Restoring" | "Syncing" => Style::Busy,
        "Refused" | "Closed" => Style::Bad,
        _ => Style::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_as_text() {
        let connection = AttachmentConnection {
            state: "Live".into(),
            uri: "nbd://h/d".into(),
            requests: 7,
            read_bytes: 8192,
            write_bytes_per_second: 1 << 20,
            reconnects: 2,
            ..AttachmentConnection::default()
        };
        let leg = |uri: &str, leg: &str, missing_bytes| AttachmentLeg {
            leg: leg.into(),
            uri: uri.into(),
            missing_bytes,
            ..AttachmentLeg::default()
        };
        let one = AttachmentStatus {
            name: "d".into(),
            device: Some("/dev/holdfast/d".into()),
            state: "Connected".into(),
            size_bytes: 1 << 30,
            identity: "abc".into(),
            mirror: true,
            persist: true,
            legs: vec![
                AttachmentLeg {
                    outages: 1,
                    connections: vec![connection],
                    ..leg("nbd://h/d", "InSync", 0)
                },
                leg("nbd://i/d", "Behind", 4096),
            ],
            ..AttachmentStatus::default()
        };
        let away = AttachmentStatus {
            name: "e".into(),
            state: "Connecting".into(),
            problem: Some("no route".into()),
            uris: vec!["nbd://x/".into()],
            ..AttachmentStatus::default()
        };
        let text = render(&[one, away], None, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "d  1 GiB  /dev/holdfast/d  Connected  mirror  persistent");
        assert_eq!(lines[2], "  nbd://h/d  InSync");
        assert_eq!(
            lines[3],
            "  0 B unflushed, 0 requests sent again, 0 writes restored, outages: 1"
        );
        assert_eq!(lines[4], "  nbd://i/d  Behind, lacks 4 KiB");
        assert!(lines[6].contains("nbd://h/d  Live   7         8 KiB"), "{text}");
        assert_eq!(lines[8..], ["e  0 B  Connecting", "  no route", "  nbd://x/"]);
        assert!(render(&[], None, false).contains("holdfast attach URI"));
    }
}
