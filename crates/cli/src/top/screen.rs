//! The lines that `top` shows.

use super::figures::{Figures, Peer, Row, Stage};
use super::view::View;
use crate::args::Sort;
use crate::output::Style;
use crate::status::{rate, resync_line};
use crate::table::shorten;
use holdfast_api::status::PeerStatus;
use holdfast_units::format_size;

/// What the columns of a resource other than its name take, with a blank before each.
const FIXED: usize = 68;
/// The narrowest and the widest column of names.
const NAMES: std::ops::RangeInclusive<usize> = 6..=40;

/// A line of parts.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Vec<(String, Style)>);

impl Line {
    fn plain(text: impl Into<String>) -> Self {
        Self::styled(text, Style::Plain)
    }

    fn styled(text: impl Into<String>, style: Style) -> Self {
        Self(vec![(text.into(), style)])
    }

    fn push(&mut self, text: impl Into<String>, style: Style) {
        self.0.push((text.into(), style));
    }

    /// In at most `width` columns.
    pub(super) fn render(&self, width: Option<usize>, color: bool) -> String {
        let mut left = width.unwrap_or(usize::MAX);
        let mut line = String::new();
        for (text, style) in &self.0 {
            let text: String = text.chars().take(left).collect();
            left -= text.chars().count();
            line.push_str(&style.paint(&text, color));
        }
        if color { line } else { line.trim_end().to_owned() }
    }
}

/// A cell of this width: to the left, or to the right.
fn left(text: &str, width: usize) -> String {
    format!("{:<width$}", shorten(text, width))
}

fn right(text: &str, width: usize) -> String {
    format!("{:>width$}", shorten(text, width))
}

/// A number of operations in at most 5 characters.
pub(super) fn count(number: f64) -> String {
    match number {
        n if n < 9.95 && n > 0.0 => format!("{n:.1}"),
        n if n < 99_999.5 => format!("{n:.0}"),
        n if n < 9_999_500.0 => format!("{:.0}k", n / 1e3),
        n => format!("{:.0}M", n / 1e6),
    }
}

/// MiB in at most 6 characters.
pub(super) fn mebi(bytes: f64) -> String {
    let mib = bytes / 1_048_576.0;
    match mib {
        m if m <= 0.0 => "0".to_owned(),
        m if m < 9.995 => format!("{m:.2}"),
        m if m < 999.95 => format!("{m:.1}"),
        m => format!("{m:.0}"),
    }
}

/// A time in at most 6 characters.
pub(super) fn span(seconds: f64) -> String {
    let micros = seconds * 1e6;
    match micros {
        us if us < 999.5 => format!("{us:.0}us"),
        us if us < 99_950.0 => format!("{:.1}ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0}ms", us / 1e3),
        us => format!("{:.1}s", us / 1e6),
    }
}

fn role_style(role: &str) -> Style {
    if role == "Primary" { Style::Bold } else { Style::Plain }
}

fn disk_style(state: &str) -> Style {
    match state {
        "UpToDate" => Style::Good,
        "Failed" | "Inconsistent" | "Outdated" => Style::Bad,
        _ => Style::Warn,
    }
}

/// The whole screen: at most `rows` lines.
pub(super) fn screen(view: &View, width: usize, rows: usize) -> Vec<Line> {
    let mut lines = head(view);
    let body_rows = rows.saturating_sub(lines.len() + 1);
    let body = match (&view.help, view.opened()) {
        (true, _) => help(),
        (false, Some(row)) => details(row),
        (false, None) => table(view, width, Some(body_rows)),
    };
    lines.extend(body.into_iter().take(body_rows));
    lines.truncate(rows.saturating_sub(1));
    lines.push(foot(view));
    lines
}

/// One look as plain text, which may be as long as it is.
pub(super) fn page(view: &View) -> Vec<Line> {
    let mut lines = head(view);
    lines.extend(table(view, 80, None));
    lines
}

fn head(view: &View) -> Vec<Line> {
    let Figures { node, nodes, nodes_alive, problems, seconds, .. } = &view.figures;
    let mut first = Line::styled("holdfast top", Style::Bold);
    first.push(format!("  node {node}, "), Style::Plain);
    let well = if nodes_alive == nodes { Style::Good } else { Style::Bad };
    match nodes {
        0 => first.push("in no cluster", Style::Plain),
        _ => first.push(format!("{nodes_alive} of {nodes} nodes alive"), well),
    }
    first.push(format!(", over {seconds:.1} s"), Style::Plain);
    if view.paused {
        first.push("  PAUSED", Style::Warn);
    }
    let mut lines = vec![first];
    if let Some(error) = &view.error {
        lines.push(Line::styled(format!("error: {error}"), Style::Bad));
    }
    if let Some(problem) = problems.first() {
        let more = match problems.len() {
            1 => String::new(),
            all => format!(" (and {} more)", all - 1),
        };
        lines.push(Line::styled(format!("{problem}{more}"), Style::Bad));
    }
    lines
}

fn foot(view: &View) -> Line {
    let text = if view.editing {
        format!("filter: {}_  Enter keep, Esc clear", view.filter)
    } else if view.help || view.opened().is_some() {
        "q quit  Esc back  space pause  h help".to_owned()
    } else {
        let filter = match view.filter.as_str() {
            "" => "/ filter".to_owned(),
            filter => format!("/ filter: {filter}"),
        };
        let sort = word_of(view.sort);
        format!("q quit  arrows select  Enter open  s sort: {sort}  {filter}  space pause  h help")
    };
    Line::styled(text, Style::Dim)
}

const fn word_of(sort: Sort) -> &'static str {
    match sort {
        Sort::Name => "name",
        Sort::Iops => "IOPS",
        Sort::Throughput => "MiB/s",
        Sort::Latency => "p99",
        Sort::Behind => "behind",
    }
}

fn help() -> Vec<Line> {
    let text = "
keys
  up, down, k, j        select a resource (PgUp, PgDn, Home, End, too)
  Enter                 its members and the stages of its requests
  Esc, Backspace        back
  s                     sort by name, IOPS, MiB/s, p99, behind
  /                     show only names with this in them
  space                 pause, go on
  h, ?                  this help
  q, Ctrl-C             quit

columns
  ROLE    Pri Primary, Sec Secondary, - stopped here
  PEERS   members that are connected, of how many
  R/s W/s requests of clients a second; writes with zeroes and discards
  P99     99 of 100 requests of clients took no longer, queueing included
  BEHIND  what the peer that lacks most lacks, or what a log peer has not replayed";
    text.lines().map(Line::plain).collect()
}

fn table(view: &View, width: usize, rows: Option<usize>) -> Vec<Line> {
    let shown = view.rows();
    let longest = shown.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    // On a screen the names give way, in a file they need not.
    let room = if rows.is_some() { width.saturating_sub(FIXED + 2) } else { longest };
    let names = longest.min(room).clamp(*NAMES.start(), (*NAMES.end()).max(longest.min(room)));
    let heads = ["ROLE", "DISK", "PEERS", "R/s", "W/s", "R MiB/s", "W MiB/s", "P99", "BEHIND"];
    let mut lines = vec![Line::styled(
        format!(
            "  {} {:<4} {:<12} {:>5} {:>5} {:>5} {:>7} {:>7} {:>6} {:>8}",
            left("NAME", names),
            heads[0],
            heads[1],
            heads[2],
            heads[3],
            heads[4],
            heads[5],
            heads[6],
            heads[7],
            heads[8]
        ),
        Style::Dim,
    )];
    let mut at_selected = 0;
    for row in &shown {
        let selected = rows.is_some() && view.selected.as_deref() == Some(&row.name);
        lines.push(resource_line(row, names, selected));
        for peer in row.peers.iter().filter(|peer| peer.resync.is_some()) {
            lines.extend(resync(peer, 4));
        }
        if selected {
            at_selected = lines.len();
        }
    }
    if shown.is_empty() {
        let text = if view.filter.is_empty() { "  no resources" } else { "  no such resources" };
        lines.push(Line::plain(text));
    }
    // What is selected stays in sight, below the heading.
    if let Some(rows) = rows {
        let hidden = at_selected.saturating_sub(rows.max(2));
        lines.drain(1..=hidden);
    }
    lines
}

fn resource_line(row: &Row, names: usize, selected: bool) -> Line {
    let mut line = Line::styled(if selected { "> " } else { "  " }, Style::Bold);
    let name = if selected { Style::Bold } else { Style::Plain };
    line.push(left(&row.name, names), name);
    let role = match row.role.as_str() {
        "Primary" => "Pri",
        "Secondary" => "Sec",
        _ => "-",
    };
    line.push(format!(" {role:<4}"), role_style(&row.role));
    line.push(format!(" {}", left(&row.disk, 12)), disk_style(&row.disk));
    let all = row.peers.len();
    let peers = if row.peers_connected == all { Style::Plain } else { Style::Bad };
    line.push(format!(" {}", right(&format!("{}/{all}", row.peers_connected), 5)), peers);
    let p99 = row.p99_seconds.map_or_else(|| "-".to_owned(), span);
    let behind = if row.behind_bytes == 0 { Style::Plain } else { Style::Warn };
    let numbers = format!(
        " {:>5} {:>5} {:>7} {:>7} {p99:>6}",
        count(row.reads_per_second),
        count(row.writes_per_second),
        mebi(row.read_bytes_per_second),
        mebi(row.write_bytes_per_second),
    );
    line.push(numbers, Style::Plain);
    line.push(format!(" {}", right(&size(row.behind_bytes), 8)), behind);
    line
}

fn size(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { format_size(bytes).replace(' ', "") }
}

/// The bar of a resync.
fn resync(peer: &Peer, indent: usize) -> Option<Line> {
    let resync = peer.resync.as_ref()?;
    let of = PeerStatus {
        node: peer.node.clone(),
        replication: peer.replication.clone(),
        ..PeerStatus::default()
    };
    let text = format!("{}sync {}", " ".repeat(indent), resync_line(&of, resync, false));
    Some(Line::styled(text, Style::Busy))
}

fn details(row: &Row) -> Vec<Line> {
    let mut first = Line::styled(row.name.clone(), Style::Bold);
    first.push(format!("  {}", format_size(row.size_bytes)), Style::Plain);
    if let Some(device) = &row.device {
        first.push(format!("  {device}"), Style::Plain);
    }
    let mut lines = vec![first];
    let mut here = Line::plain("  this node: ");
    here.push(row.role.clone(), role_style(&row.role));
    here.push(", disk ", Style::Plain);
    here.push(row.disk.clone(), disk_style(&row.disk));
    lines.push(here);
    lines.push(Line::plain(format!(
        "  clients: {} reads/s, {} writes/s, {} read, {} written",
        count(row.reads_per_second),
        count(row.writes_per_second),
        rate(row.read_bytes_per_second as u64),
        rate(row.write_bytes_per_second as u64)
    )));
    lines.push(Line::default());
    lines.push(Line::styled(
        "  PEER         ROLE      DISK         CONNECTION     REPLICATION    BEHIND",
        Style::Dim,
    ));
    for peer in &row.peers {
        let mut line = Line::plain(format!("  {} ", left(&peer.node, 12)));
        line.push(left(&peer.role, 9), role_style(&peer.role));
        line.push(format!(" {}", left(&peer.disk, 12)), disk_style(&peer.disk));
        let well = if peer.connection == "Connected" { Style::Plain } else { Style::Bad };
        line.push(format!(" {}", left(&peer.connection, 14)), well);
        line.push(format!(" {} ", left(&peer.replication, 13)), Style::Plain);
        line.push(right(&size(peer.behind_bytes), 7), Style::Warn);
        lines.push(line);
        lines.push(Line::plain(format!(
            "    protocol {}, sends {}, receives {}, {} unanswered{}",
            peer.protocol,
            rate(peer.sent_bytes_per_second as u64),
            rate(peer.received_bytes_per_second as u64),
            peer.pending_requests,
            if peer.lag_seconds > 0.0 {
                format!(", {:.1} s behind", peer.lag_seconds)
            } else {
                String::new()
            }
        )));
        lines.extend(resync(peer, 4));
    }
    lines.push(Line::default());
    lines
        .push(Line::styled("  STAGE             OP           /s   MEAN    P50    P99", Style::Dim));
    if row.stages.is_empty() {
        lines.push(Line::plain("  nothing was asked for"));
    }
    lines.extend(row.stages.iter().map(stage));
    lines
}

fn stage(stage: &Stage) -> Line {
    let name = match &stage.peer {
        Some(peer) => format!("{} {peer}", stage.stage),
        None => stage.stage.clone(),
    };
    Line::plain(format!(
        "  {} {:<8} {:>6} {:>6} {:>6} {:>6}",
        left(&name, 17),
        stage.op,
        count(stage.per_second),
        span(stage.mean_seconds),
        span(stage.p50_seconds),
        span(stage.p99_seconds)
    ))
}
