//! What `serve` tells people, or scripts.

use super::volume::{Counters, Notice};
use crate::output::{Ui, say};
use holdfast_api::error::without_numbers;
use holdfast_nbd::{ClientInfo, NbdUri};
use holdfast_units::format_size;
use serde_json::{Value, json};
use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// After so many failures of disks more are only counted.
const MAX_FAILURES: u32 = 20;

/// An export as it is announced.
pub(super) struct Announced {
    pub(super) name: String,
    pub(super) parts: String,
    pub(super) layout: &'static str,
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) uris: Vec<NbdUri>,
}

/// Prints what happens. Errors and the line with counters go to stderr, all else to stdout.
pub(super) struct Reporter {
    ui: Ui,
    /// Whether a line with counters is kept up to date.
    live: bool,
    line_shown: Cell<bool>,
    failures: Cell<u32>,
}

impl Reporter {
    pub(super) fn new(ui: &Ui) -> Self {
        let live = !ui.json && !ui.quiet && std::io::stderr().is_terminal();
        Self { ui: ui.clone(), live, line_shown: Cell::new(false), failures: Cell::new(0) }
    }

    pub(super) const fn is_live(&self) -> bool {
        self.live
    }

    /// Says where the exports are. `elsewhere`: how other machines reach them, or why not.
    pub(super) fn ready(&self, exports: &[Announced], elsewhere: &str) {
        if self.ui.json {
            let exports: Vec<Value> = exports.iter().map(announced_json).collect();
            let pid = std::process::id();
            return self.ui.json_line(&json!({"event": "ready", "pid": pid, "exports": exports}));
        }
        for export in exports {
            for uri in &export.uris {
                if self.ui.quiet {
                    self.ui.line(&uri.to_string());
                } else {
                    self.ui.line(&format!("{} at {uri}", announced_text(export)));
                }
            }
        }
        if !self.ui.quiet {
            self.ui.line(elsewhere);
        }
    }

    /// Something happened to a part.
    pub(super) fn notice(&self, export: &str, notice: &Notice) {
        if let Notice::Failed { .. } = notice {
            let failures = self.failures.get().saturating_add(1);
            self.failures.set(failures);
            if failures == MAX_FAILURES {
                self.warn("more errors of disks are only counted");
            }
            if failures >= MAX_FAILURES {
                return;
            }
        }
        if self.ui.json {
            return self.ui.json_line(&notice_json(export, notice));
        }
        match notice {
            Notice::Filling { .. } | Notice::Filled { .. } if self.ui.quiet => {}
            _ => self.warn(&without_numbers(&notice_text(notice))),
        }
    }

    /// A line on stderr that people should see.
    pub(super) fn warn(&self, text: &str) {
        self.clear_line();
        say(&format!("{text}\n"));
    }

    /// A client came, went, or was turned away; with `-v`.
    pub(super) fn client(&self, client: &ClientInfo, what: &str) {
        if self.ui.verbose {
            self.clear_line();
            self.ui.trace(&format!("client {}: {what}", client.address));
        }
    }

    fn clear_line(&self) {
        if self.line_shown.replace(false) {
            say("\r\x1b[K");
        }
    }

    /// Shows the line with counters, on a terminal.
    pub(super) fn progress(&self, line: &str) {
        if !self.live {
            return;
        }
        let columns = rustix::termios::tcgetwinsize(std::io::stderr())
            .map_or(0, |size| usize::from(size.ws_col));
        // Terminals that do not know their size say 0.
        let columns = if columns == 0 { 80 } else { columns.max(20) };
        let shown: String = line.chars().take(columns - 1).collect();
        say(&format!("\r\x1b[K{shown}"));
        self.line_shown.set(true);
    }

    /// Says what was done, at the end.
    pub(super) fn end(&self, counters: Counters, clients: u64) {
        self.clear_line();
        if self.ui.json {
            let Counters { reads, read_bytes, writes, written_bytes, .. } = counters;
            let Counters { zeroed_bytes, flushes, errors, .. } = counters;
            self.ui.json_line(&json!({
                "event": "stopped",
                "clients": clients,
                "reads": reads,
                "read_bytes": read_bytes,
                "writes": writes,
                "written_bytes": written_bytes,
                "zeroed_bytes": zeroed_bytes,
                "flushes": flushes,
                "errors": errors,
            }));
        } else if !self.ui.quiet {
            let text = format!(
                "stopped: {}, {} read, {} written{}",
                count(clients, "client"),
                format_size(counters.read_bytes),
                format_size(counters.written_bytes),
                if counters.errors > 0 {
                    format!(", {}", count(counters.errors, "error"))
                } else {
                    String::new()
                },
            );
            self.ui.line(&text);
        }
    }
}

fn announced_text(export: &Announced) -> String {
    format!(
        "serving {}{} of {}{}",
        format_size(export.size),
        if export.read_only { " (read-only)" } else { "" },
        export.parts,
        if export.layout == "single" { String::new() } else { format!(" as {}", export.layout) },
    )
}

fn announced_json(export: &Announced) -> Value {
    json!({
        "name": export.name,
        "size_bytes": export.size,
        "read_only": export.read_only,
        "layout": export.layout,
        "uris": export.uris.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn notice_text(notice: &Notice) -> String {
    match notice {
        Notice::Lost { part, why, left } => format!(
            "{part} is not used any more: {why}; the mirror goes on with {}. To have it filled \
             again, repair it and start the server anew",
            count(*left as u64, "part"),
        ),
        Notice::Failed { part, why } => format!("{part}: {why}"),
        Notice::Filling { part, from } => format!("{part} is being made equal to {from}"),
        Notice::Filled { part } => format!("{part} has everything now"),
        Notice::Forgetful { part, why } => format!(
            "{part}: it could not be noted that this part has everything: {why}; name it first \
             when the server is started anew"
        ),
    }
}

fn notice_json(export: &str, notice: &Notice) -> Value {
    let mut value = match notice {
        Notice::Lost { part, why, left } => {
            json!({"event": "part_lost", "part": part, "why": why, "parts_left": left})
        }
        Notice::Failed { part, why } => json!({"event": "io_error", "part": part, "why": why}),
        Notice::Filling { part, from } => {
            json!({"event": "part_filling", "part": part, "from": from})
        }
        Notice::Filled { part } => json!({"event": "part_filled", "part": part}),
        Notice::Forgetful { part, why } => {
            json!({"event": "not_noted", "part": part, "why": why})
        }
    };
    value["export"] = export.into();
    value
}

/// `1 client`, `2 clients`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The line with counters: what is done each second, and what was done in all.
pub(super) struct Pace {
    began: Instant,
    before: Counters,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, before: Counters::default() }
    }

    /// The line for this moment.
    pub(super) fn line(&mut self, now: Instant, counters: Counters, clients: usize) -> String {
        let passed = now.saturating_duration_since(self.began).max(Duration::from_millis(1));
        let rate = |now: u64, before: u64| {
            let more = u128::from(now.saturating_sub(before)) * 1000 / passed.as_millis();
            u64::try_from(more).unwrap_or(u64::MAX)
        };
        let before = std::mem::replace(&mut self.before, counters);
        self.began = now;
        let way = |what, bytes, old_bytes, requests, old_requests| {
            format!(
                "{what} {} ({}/s, {}/s)",
                format_size(bytes),
                format_size(rate(bytes, old_bytes)),
                rate(requests, old_requests),
            )
        };
        let read =
            way("read", counters.read_bytes, before.read_bytes, counters.reads, before.reads);
        let written = way(
            "written",
            counters.written_bytes,
            before.written_bytes,
            counters.writes,
            before.writes,
        );
        let errors = match counters.errors {
            0 => String::new(),
            errors => format!(" · {}", count(errors, "error")),
        };
        format!("{} · {read} · {written}{errors}", count(clients as u64, "client"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_totals_and_what_is_done_each_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let first = Counters { reads: 100, read_bytes: 4 << 20, ..Counters::default() };
        let line = pace.line(start + Duration::from_secs(2), first, 1);
        assert_eq!(line, "1 client · read 4 MiB (2 MiB/s, 50/s) · written 0 B (0 B/s, 0/s)");
        let second = Counters { writes: 3, written_bytes: 3 << 10, errors: 2, ..first };
        let line = pace.line(start + Duration::from_millis(2500), second, 2);
        assert_eq!(
            line,
            "2 clients · read 4 MiB (0 B/s, 0/s) · written 3 KiB (6 KiB/s, 6/s) · 2 errors"
        );
    }

    #[test]
    fn what_is_served_is_said_in_one_line() {
        let mut export = Announced {
            name: "x".into(),
            parts: "a.img + b.img".into(),
            layout: "mirror",
            size: 10 << 30,
            read_only: true,
            uris: vec![NbdUri::tcp("h", 10809, "x")],
        };
        let text = announced_text(&export);
        assert_eq!(text, "serving 10 GiB (read-only) of a.img + b.img as mirror");
        assert_eq!(announced_json(&export)["uris"], json!(["nbd://h/x"]));
        (export.layout, export.read_only) = ("single", false);
        assert_eq!(announced_text(&export), "serving 10 GiB of a.img + b.img");
    }
}
