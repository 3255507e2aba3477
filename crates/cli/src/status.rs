//! `status`.

pub(crate) mod check;
mod forms;

use crate::args::{Every, Form, Status};
use crate::attach::{headline as headline_of, mirrored};
use crate::cluster::span;
use crate::events::time;
use crate::output::{Style, Ui, width};
use crate::session::Session;
use crate::table::{Cell, Table, cell, shorten};
use holdfast_api::attachment::AttachmentStatus;
use holdfast_api::error::without_numbers;
use holdfast_api::status::{
    ArchiveStatus, DiskReplacing, DiskStatus, GuestStatus, IoStatus, JournalStatus, NodeStatus,
    PeerProblem, PeerStatus, ReplayStatus, ResourceStatus, ResyncStatus,
};
use holdfast_api::survey::SurveyReport;
use holdfast_api::words::{agreed, counted};
use holdfast_api::{ApiError, ErrorCode, routes};
use holdfast_units::format_size;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often `--watch` looks when nobody says.
pub(crate) const WATCH: Duration = Duration::from_secs(1);
/// A request that has been under way for so many seconds is told.
const HANGS: f64 = 1.0;
/// So many of those who use a resource are named.
const OPENERS_SHOWN: usize = 3;
/// It does not look more often.
const SHORTEST: Duration = Duration::from_millis(50);
/// No document that was kept is longer, in bytes.
const MAX_DOCUMENT: u64 = 64 << 20;

/// Prints the state of this node, or of one resource.
pub(crate) async fn run(session: &Session, args: &Status) -> Result<ExitCode, ApiError> {
    let (name, every) = wanted(args)?;
    let form = match args.format {
        Some(form) if session.ui.json && form != Form::Json => {
            let message = "the command was not understood: --json is another form than --format";
            return Err(ApiError::new(ErrorCode::Usage, message).hint("give one of the two"));
        }
        Some(form) => form,
        None if session.ui.json => Form::Json,
        None => Form::Table,
    };
    let header = form == Form::Csv && !args.no_header && !forms::appends();
    let mut printer = Printer { ui: &session.ui, form, header, redraw: false };
    if let Some(every) = every {
        printer.redraw = form == Form::Table && io::stdout().is_terminal();
        tokio::select! {
            ended = watch(session, name, every, &mut printer) => ended?,
            // Whoever has seen enough says so.
            _ = tokio::signal::ctrl_c() => {}
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (status, time) = match &args.from {
        Some(path) => of_document(path, name)?,
        None => (fetch(session, name).await?, unix_seconds(SystemTime::now())),
    };
    if !args.check {
        printer.print(&status, time);
        return Ok(ExitCode::SUCCESS);
    }
    let found = check::check(&status, name);
    if session.ui.json {
        session.ui.json(&found);
    } else {
        session.ui.line(&found.line());
    }
    Ok(ExitCode::from(found.exit_code))
}

/// The resource that was asked for, and how often to look at it. The word after `--watch` may be
/// either.
fn wanted(args: &Status) -> Result<(Option<&str>, Option<Duration>), ApiError> {
    match (&args.watch, args.name.as_deref()) {
        (None, name) => Ok((name, None)),
        (Some(Every::Time(every)), name) => Ok((name, Some((*every).max(SHORTEST)))),
        (Some(Every::Name(name)), None) => Ok((Some(name), Some(WATCH))),
        (Some(Every::Name(word)), Some(_)) => {
            let message = format!(
                "the command was not understood: {word:?} after --watch is no number of seconds"
            );
            Err(ApiError::new(ErrorCode::Usage, message).hint("for example --watch 0.5"))
        }
    }
}

/// A document that `status --json` printed, and when it was written.
fn of_document(path: &Path, name: Option<&str>) -> Result<(NodeStatus, u64), ApiError> {
    let refuse = |why: &dyn std::fmt::Display| {
        let why = without_numbers(&why.to_string());
        let message = format!("the document {} was not read: {why}", path.display());
        ApiError::new(ErrorCode::InvalidRequest, message)
            .hint("give a file that `holdfast status --json` wrote")
    };
    let mut text = String::new();
    let time = if path == Path::new("-") {
        let input = io::stdin().lock();
        input.take(MAX_DOCUMENT + 1).read_to_string(&mut text).map_err(|why| refuse(&why))?;
        SystemTime::now()
    } else {
        let file = File::open(path).map_err(|why| refuse(&why))?;
        let written = file.metadata().and_then(|meta| meta.modified());
        file.take(MAX_DOCUMENT + 1).read_to_string(&mut text).map_err(|why| refuse(&why))?;
        written.unwrap_or(UNIX_EPOCH)
    };
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(refuse(&"it is too long"));
    }
    let status = serde_json::from_str(&text).map_err(|why| refuse(&why))?;
    Ok((only(status, name)?, unix_seconds(time)))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Prints the state, once or again and again.
struct Printer<'a> {
    ui: &'a Ui,
    form: Form,
    /// The header of the CSV form is still to be printed.
    header: bool,
    redraw: bool,
}

impl Printer<'_> {
    fn print(&mut self, status: &NodeStatus, time: u64) {
        let text = match self.form {
            Form::Json => return self.ui.json(status),
            Form::Table => render(status, width(), self.ui.color),
            Form::Line => forms::lines(status),
            Form::Csv => {
                let header =
                    if std::mem::take(&mut self.header) { forms::header() } else { String::new() };
                header + &forms::csv(status, time)
            }
        };
        self.ui.text(&text);
    }

    /// One look of many.
    fn print_again(&mut self, status: &NodeStatus) {
        match self.form {
            Form::Json => self.ui.json_line(status),
            Form::Table => show(self.ui, &render(status, width(), self.ui.color), self.redraw),
            Form::Line | Form::Csv => self.print(status, unix_seconds(SystemTime::now())),
        }
    }
}

async fn fetch(session: &Session, name: Option<&str>) -> Result<NodeStatus, ApiError> {
    only(session.get(routes::STATUS).await?, name)
}

/// What it says of this resource or attachment.
fn only(mut status: NodeStatus, name: Option<&str>) -> Result<NodeStatus, ApiError> {
    if let Some(name) = name {
        status.resources.retain(|resource| resource.name == name);
        status.attachments.retain(|attachment| attachment.name == name);
        status.guests.retain(|guest| guest.name == name);
        let attached = !status.attachments.is_empty();
        if status.resources.is_empty() && status.guests.is_empty() && !attached {
            let error = match &status.cluster {
                Some(_) => ApiError::no_such_resource(name),
                None => ApiError::no_resource_without_cluster(name, &status.node),
            };
            return Err(error);
        }
    }
    Ok(status)
}

/// Shows it again and again, also while the daemon is away, until the command is stopped.
async fn watch(
    session: &Session,
    name: Option<&str>,
    every: Duration,
    printer: &mut Printer<'_>,
) -> Result<(), ApiError> {
    // The first look must succeed: a mistyped name or socket is not worth watching.
    let mut look = Ok(fetch(session, name).await?);
    loop {
        match look {
            Ok(status) => printer.print_again(&status),
            Err(error) if printer.redraw => show(printer.ui, &format!("error: {error}\n"), true),
            Err(error) => printer.ui.error(&error),
        }
        tokio::time::sleep(every).await;
        look = fetch(session, name).await;
    }
}

/// Draws over what was there without flicker: home, each line cleared to its end, then the rest.
pub(crate) fn show(ui: &Ui, text: &str, redraw: bool) {
    if redraw {
        ui.text(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")));
    } else {
        ui.line(text);
    }
}

/// The state as text; lines are kept within `width`.
fn render(status: &NodeStatus, width: Option<usize>, color: bool) -> String {
    let mut lines = vec![headline(status, color)];
    let problems = status.cluster.iter().flat_map(|cluster| &cluster.problems);
    lines.extend(problems.map(|problem| Style::Bad.paint(problem, color)));
    for resource in &status.resources {
        lines.push(String::new());
        render_resource(&status.node, resource, width, color, &mut lines);
    }
    for attachment in &status.attachments {
        lines.push(String::new());
        render_attachment(attachment, color, &mut lines);
    }
    for guest in &status.guests {
        lines.push(String::new());
        render_guest(guest, width, color, &mut lines);
    }
    let attached = !status.attachments.is_empty();
    if status.resources.is_empty() && status.guests.is_empty() && !attached {
        lines.push(String::new());
        lines.push("no resources; `holdfast create NAME --disk PATH` makes one".to_owned());
        if status.cluster.is_none() {
            lines.push(
                "`holdfast cluster join TOKEN` first makes this node one of others".to_owned(),
            );
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

pub(crate) fn headline(status: &NodeStatus, color: bool) -> String {
    let node = Style::Bold.paint(&status.node, color);
    let Some(cluster) = &status.cluster else {
        return format!("node {node}, in no cluster yet");
    };
    let alive = cluster.nodes.iter().filter(|node| node.alive).count();
    let all = cluster.nodes.len();
    let style = if alive == all { Style::Good } else { Style::Warn };
    let alive = style.paint(&format!("{alive} of {all} nodes alive"), color);
    format!("node {node}, cluster {}, {alive}", shorten(&cluster.name, 24))
}

fn render_resource(
    node: &str,
    resource: &ResourceStatus,
    width: Option<usize>,
    color: bool,
    lines: &mut Vec<String>,
) {
    let mut head = format!(
        "{}  {}",
        Style::Bold.paint(&resource.name, color),
        format_size(resource.size_bytes)
    );
    if let Some(device) = &resource.device {
        head.push_str(&format!("  {device}"));
    }
    if resource.read_only {
        head.push_str(match resource.device {
            Some(_) => " (read-only: a past state)",
            None => "  exported read-only: a past state",
        });
    }
    lines.push(head);
    for trouble in troubles(resource) {
        lines.push(format!("  {}", Style::Bad.paint(&trouble, color)));
    }
    let heading = ["NODE", "ROLE", "DISK", "CONNECTION", "REPLICATION", "BEHIND"];
    let mut table = Table::new(2, &heading);
    table.row(vec![
        cell(node, Style::Bold),
        role(&resource.role),
        disk(&resource.disk.state),
        cell("(this node)", Style::Dim),
    ]);
    for peer in &resource.peers {
        table.row(vec![
            cell(&*peer.node, Style::Plain),
            role(&peer.role),
            disk(&peer.disk),
            connection(&peer.connection),
            replication(&peer.replication),
            behind(peer),
        ]);
    }
    lines.extend(table.render(width, color));
    lines
        .extend(resource.disk.replacing.as_ref().map(|new| format!("  {}", replacing(new, color))));
    lines.extend(resource.disk.room_bytes.map(|room| {
        format!(
            "  this node's disk has room for {}: `holdfast resize {}` grows the resource as far as all \
             of its disks allow",
            format_size(room),
            resource.name
        )
    }));
    lines.extend(openers_line(resource).map(|line| format!("  {line}")));
    let hangs = resource.io.as_ref().filter(|io| io.oldest_seconds >= HANGS);
    lines.extend(hangs.map(|io| format!("  {}", Style::Warn.paint(&oldest_line(io), color))));
    lines.extend(resource.journal.as_ref().map(|journal| format!("  {}", journal_line(journal))));
    lines.extend(resource.replay.as_ref().map(|replay| format!("  {}", replay_line(replay))));
    let tail = resource.journal.as_ref().map_or(0, |journal| journal.tail);
    let bar = resource.replay.as_ref().and_then(|replay| log_bar(replay, tail));
    lines.extend(bar.map(|bar| format!("  {bar}")));
    lines.extend(resource.archive.as_ref().map(|archive| format!("  {}", archive_line(archive))));
    for (what, run) in [("verify", &resource.verify), ("scrub", &resource.scrub)] {
        lines.extend(run.as_ref().map(|run| format!("  {}", survey_line(what, run))));
    }
    // A resync that stands still says so itself.
    let idle = resource.peers.iter().all(|peer| peer.resync_paused.is_none());
    if resource.resyncs_paused && idle {
        let name = &resource.name;
        let line = format!("resyncs are paused on this node: `holdfast resume {name} sync`");
        lines.push(format!("  {}", Style::Warn.paint(&line, color)));
    }
    for peer in &resource.peers {
        if let Some(bar) = peer.replay.as_ref().and_then(|replay| log_bar(replay, tail)) {
            lines.push(format!("  {}: {bar}", shorten(&peer.node, 10)));
        }
        if let Some(resync) = peer.resync.as_ref().or(peer.verify.as_ref()) {
            lines.push(format!("  {}", resync_line(peer, resync, color)));
        }
        if let Some(why) = &peer.resync_paused {
            let line = format!("the resync with {} stands still: {why}", peer.node);
            lines.push(format!("  {}", Style::Warn.paint(&line, color)));
        }
    }
}

/// `in use: mounted at /srv/db, open in fio (process 4711), and by 3 more`
fn openers_line(resource: &ResourceStatus) -> Option<String> {
    let first = resource.openers.len().min(OPENERS_SHOWN);
    let shown = resource.openers[..first].join(", ");
    let more = (resource.open_count as usize).saturating_sub(first);
    let more = if more == 0 { String::new() } else { format!(", and by {more} more") };
    (first > 0).then(|| format!("in use: {shown}{more}"))
}

/// `disk moves to /dev/sdc  43.10 %  1.2 GiB of 2.8 GiB  210 MiB/s  ETA 8 s`
fn replacing(new: &DiskReplacing, color: bool) -> String {
    let mut line = match &*new.state {
        "failed" => String::new(),
        state => format!(
            "disk moves to {}  {:.2} %  {} of {}  {}  ETA {}  ({state})",
            new.path,
            new.percent,
            format_size(new.bytes_done),
            format_size(new.bytes_total),
            rate(new.rate_bytes_per_second),
            if new.eta_seconds == 0 { "-".to_owned() } else { span(new.eta_seconds) },
        ),
    };
    if let Some(problem) = &new.problem {
        line.push_str(if line.is_empty() { "" } else { "\n  " });
        line.push_str(&Style::Bad.paint(problem, color));
    }
    line
}

/// A resource that this node only watches.
fn render_guest(guest: &GuestStatus, width: Option<usize>, color: bool, lines: &mut Vec<String>) {
    let name = Style::Bold.paint(&guest.name, color);
    let size = format_size(guest.size_bytes);
    lines.push(format!("{name}  {size}  (guest: this node is no member)"));
    let mut table = Table::new(2, &["NODE", "ROLE", "DISK"]);
    for member in &guest.members {
        table.row(vec![cell(&*member.node, Style::Plain), role(&member.role), disk(&member.disk)]);
    }
    lines.extend(table.render(width, color));
    for problem in guest.members.iter().filter_map(|member| member.problem.as_ref()) {
        lines.push(format!("  {}", Style::Warn.paint(problem, color)));
    }
}

fn journal_line(journal: &JournalStatus) -> String {
    let JournalStatus { bytes, limit_bytes, dirty_bytes, path, .. } = journal;
    let mut line = format!(
        "journal {path}: {} of {}, {} not on the disk yet",
        format_size(*bytes),
        format_size(*limit_bytes),
        format_size(*dirty_bytes)
    );
    let percent = journal.stored_bytes.saturating_mul(100).checked_div(journal.payload_bytes);
    if let Some(percent) = percent.filter(|_| !["", "none"].contains(&&*journal.compression)) {
        line.push_str(&format!(", stored as {percent} % ({})", journal.compression));
    }
    line
}

/// `3 requests are under way, the oldest, a write, for 35 s`
fn oldest_line(io: &IoStatus) -> String {
    let one = format!("a {}", io.oldest_op.as_deref().unwrap_or("request"));
    let time = format!("for {:.0} s", io.oldest_seconds);
    match io.under_way {
        0 | 1 => format!("{one} is under way {time}"),
        count => format!("{count} requests are under way, the oldest, {one}, {time}"),
    }
}

fn archive_line(archive: &ArchiveStatus) -> String {
    let place = &archive.place;
    match (archive.base_percent, archive.complete_unix_ms) {
        (Some(percent), _) => format!("archive {place}: {percent:.0} % of a base image"),
        (None, 0) => format!("archive {place}: nothing yet"),
        (None, complete) => format!("archive {place}: complete until {}", time(complete)),
    }
}

/// `holdfast attachments` shows more.
fn render_attachment(one: &AttachmentStatus, color: bool, lines: &mut Vec<String>) {
    lines.push(headline_of(one, color));
    if let Some(problem) = &one.problem {
        lines.push(format!("  {}", Style::Bad.paint(problem, color)));
    }
    if one.mirror && !one.legs.is_empty() {
        lines.extend(one.legs.iter().map(|leg| format!("  {}", mirrored(leg, color))));
    } else {
        let uri = one.legs.first().map(|leg| &leg.uri).or(one.uris.first());
        lines.extend(uri.map(|uri| format!("  attached from {uri}")));
    }
}

/// What somebody should know, one sentence each.
fn troubles(resource: &ResourceStatus) -> Vec<String> {
    let mut troubles = Vec::new();
    if !resource.suspended.is_empty() {
        troubles.push(format!("I/O is held: {}", resource.suspended.join(", ")));
    }
    if let Some(seconds) = resource.device_waits_seconds {
        troubles.push(format!(
            "the device waits with its I/O until this node is Primary again, and fails it after \
             {seconds} more seconds"
        ));
    }
    if !resource.quorum {
        troubles.push("quorum is lost".to_owned());
    }
    let DiskStatus { io_errors, checksum_errors, healed_blocks, unreadable_blocks, .. } =
        resource.disk;
    // A problem says which of the two it was.
    if io_errors > 0 && resource.disk.problem.is_none() {
        let errors = counted(io_errors, "I/O error");
        troubles.push(format!("the disk or its metadata had {errors}"));
    }
    if healed_blocks > 0 {
        let (blocks, were) =
            (counted(healed_blocks, "block"), agreed(healed_blocks, "was", "were"));
        troubles.push(format!("{blocks} could not be read and {were} repaired"));
    }
    if unreadable_blocks > 0 {
        let first = resource.disk.unreadable.first().map_or(0, |range| range.offset);
        let (blocks, them) =
            (counted(unreadable_blocks, "block"), agreed(unreadable_blocks, "it", "them"));
        troubles.push(format!(
            "{blocks} cannot be read here, the first at offset {first}; a peer that has {them} \
             repairs {them} when it is connected, and so does writing {them}; a scrub tries {them} again"
        ));
    }
    if checksum_errors > 0 {
        troubles.push(format!("{} had a wrong checksum", counted(checksum_errors, "block")));
    }
    if resource.disk.remapped_sectors > 0 {
        let (moved, free) = (resource.disk.remapped_sectors, resource.disk.spare_sectors_free);
        let (blocks, are) = (counted(moved, "block"), agreed(moved, "is", "are"));
        troubles.push(format!("{blocks} of the disk {are} in its spares, {free} slots are free"));
    }
    if resource.disk.checksums == "building" {
        let percent = resource.disk.checksums_percent;
        troubles.push(format!("checksums are being computed, {percent} % of the disk has them"));
    }
    troubles.extend(resource.disk.checksums_problem.clone());
    if let Some(problem) = &resource.disk.problem {
        troubles.push(format!("the disk is not used: {problem}"));
    }
    if let Some(problem) = resource.journal.as_ref().and_then(|journal| journal.problem.as_ref()) {
        troubles.push(format!("the journal is not used any more: {problem}"));
    }
    if let Some(problem) = resource.archive.as_ref().and_then(|archive| archive.problem.as_ref()) {
        troubles.push(format!("not everything is archived at present: {problem}"));
    }
    for peer in &resource.peers {
        if let Some(problem) = &peer.problem {
            troubles.push(of_peer(&peer.node, problem));
        } else if peer.connection == "StandAlone" {
            troubles.push(format!(
                "not trying to reach {}: it was disconnected; `holdfast connect {}` connects it",
                peer.node, resource.name
            ));
        }
    }
    troubles
}

/// `split brain with beta: both nodes wrote apart; on ...`
fn of_peer(peer: &str, problem: &PeerProblem) -> String {
    let PeerProblem { message, hint, .. } = problem;
    match message.split_once(": ") {
        Some((what, why)) => {
            let with = if what == "not connected" { "to" } else { "with" };
            format!("{what} {with} {peer}: {why}; {hint}")
        }
        None => format!("{peer}: {message}; {hint}"),
    }
}

fn role(word: &str) -> Cell {
    cell(word, if word == "Primary" { Style::Bold } else { Style::Plain })
}

fn disk(word: &str) -> Cell {
    let style = match word {
        "UpToDate" => Style::Good,
        "Failed" => Style::Bad,
        "Diskless" | "DUnknown" => Style::Dim,
        _ => Style::Warn,
    };
    cell(word, style)
}

fn connection(word: &str) -> Cell {
    let style = match word {
        "Connected" => Style::Good,
        "StandAlone" | "ProtocolError" => Style::Bad,
        _ => Style::Warn,
    };
    cell(word, style)
}

fn replication(word: &str) -> Cell {
    let style = match word {
        "Established" => Style::Good,
        "Off" => Style::Dim,
        "PausedSyncS" | "PausedSyncT" | "Ahead" | "Behind" | "Emergency" => Style::Warn,
        _ => Style::Busy,
    };
    cell(word, style)
}

fn behind(peer: &PeerStatus) -> Cell {
    let lag = peer.replay.as_ref().map_or(0, |replay| replay.lag_bytes);
    match peer.out_of_sync_bytes.max(lag) {
        0 => cell("-", Style::Dim),
        bytes => cell(format_size(bytes), Style::Warn),
    }
}

/// `replay: 12 MiB (3.2 s) behind, 4 MiB of it not fetched; fetching 8 MiB/s, ETA 0:02`.
fn replay_line(replay: &ReplayStatus) -> String {
    let ReplayStatus { head, fetched, lag_bytes, lag_seconds, paused, .. } = replay;
    let mut line = match lag_bytes {
        0 => "replay: everything is on the disk".to_owned(),
        bytes => format!("replay: {} ({lag_seconds:.1} s) behind", format_size(*bytes)),
    };
    let missing = head.saturating_sub(*fetched);
    if missing > 0 {
        line.push_str(&format!(", {} of it not fetched", format_size(missing)));
    }
    if !paused.is_empty() {
        line.push_str(&format!("; paused: {}", paused.join(", ")));
    }
    if *lag_bytes > 0 && replay.fetch_bytes_per_second > 0 {
        line.push_str(&format!("; {} comes", rate(replay.fetch_bytes_per_second)));
    }
    if *lag_bytes > 0 && replay.eta_seconds > 0 {
        line.push_str(&format!(", ETA {} s", replay.eta_seconds));
    }
    line
}

/// `log [######====......]`: of the journal from `tail` to its end at the Primary, what is replayed, what
/// is only fetched, and what is not here; `None` when all is replayed.
fn log_bar(replay: &ReplayStatus, tail: u64) -> Option<String> {
    const BAR: u128 = 20;
    let head = replay.head.max(replay.fetched);
    let whole = head.checked_sub(tail).filter(|len| *len > 0 && replay.lag_bytes > 0)?;
    let cells = |to: u64| u128::from(to.saturating_sub(tail)) * BAR / u128::from(whole);
    let (replayed, fetched) = (cells(replay.replayed), cells(replay.fetched));
    let bar: String = (0..BAR)
        .map(|at| match at {
            at if at < replayed => '#',
            at if at < fetched => '=',
            _ => '.',
        })
        .collect();
    Some(format!("log [{bar}] # replayed, = fetched, . not fetched"))
}

/// `sync to gamma [########........]  50.0 %  128 MiB of 256 MiB  110 MiB/s  ETA 0:01`, without the
/// amounts where that would not fit.
pub(crate) fn resync_line(peer: &PeerStatus, resync: &ResyncStatus, color: bool) -> String {
    const BAR: u8 = 16;
    let percent = resync.percent.clamp(0.0, 100.0);
    let full = (0..BAR).filter(|at| f64::from(*at + 1) * 100.0 / f64::from(BAR) <= percent).count();
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(usize::from(BAR) - full));
    let way = way(&peer.replication);
    format!(
        "{way} {} [{}] {percent:.1} %  {}  {}  ETA {}",
        shorten(&peer.node, 10),
        Style::Busy.paint(&bar, color),
        format_size(resync.bytes_total),
        rate(resync.rate_bytes_per_second),
        eta(resync)
    )
}

/// `scrub running: 12.5 %, 32 MiB/s, ETA 0:10, 0 blocks differed, 0 repaired, 0 unreadable`.
fn survey_line(what: &str, run: &SurveyReport) -> String {
    let SurveyReport { state, percent, differing_blocks, repaired_blocks, .. } = run;
    let pace = match run.rate_bytes_per_second {
        0 => String::new(),
        pace => format!(", {}, ETA {}", rate(pace), span(run.eta_seconds)),
    };
    format!(
        "{what} {state}: {percent:.1} %{pace}, {} differed, {repaired_blocks} repaired, {} unreadable",
        counted(*differing_blocks, "block"),
        run.unreadable_blocks
    )
}

/// Whether a resync goes `to` the peer or comes `from` it.
pub(crate) fn way(replication: &str) -> &'static str {
    if replication.ends_with('T') || replication.ends_with("Target") { "from" } else { "to" }
}

/// A rate for people.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", format_size(bytes_per_second))
}

/// The time that a resync still takes, for people.
pub(crate) fn eta(resync: &ResyncStatus) -> String {
    if resync.rate_bytes_per_second == 0 { "-".to_owned() } else { span(resync.eta_seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::status::{ClusterNode, ClusterStatus};

    fn peer(node: &str, words: [&str; 4]) -> PeerStatus {
        PeerStatus {
            node: node.into(),
            role: words[0].into(),
            disk: words[1].into(),
            connection: words[2].into(),
            replication: words[3].into(),
            protocol: "C".into(),
            ..PeerStatus::default()
        }
    }

    pub(super) fn sample() -> NodeStatus {
        let mut gamma = peer("gamma", ["Secondary", "Inconsistent", "Connected", "SyncSource"]);
        gamma.out_of_sync_bytes = 128 << 20;
        gamma.resync = Some(ResyncStatus {
            percent: 50.04,
            bytes_done: 128 << 20,
            bytes_total: 256 << 20,
            rate_bytes_per_second: 110 << 20,
            eta_seconds: 2,
        });
        let node =
            |name: &str, alive| ClusterNode { name: name.into(), alive, ..ClusterNode::default() };
        NodeStatus {
            version: "0.1.0".into(),
            guests: Vec::new(),
            node: "alpha".into(),
            cluster: Some(ClusterStatus {
                name: "home".into(),
                nodes: vec![node("alpha", true), node("beta", true), node("gamma", false)],
                ..ClusterStatus::default()
            }),
            resources: vec![ResourceStatus {
                name: "r0".into(),
                role: "Primary".into(),
                size_bytes: 256 << 20,
                quorum: true,
                device: Some("/dev/holdfast/r0".into()),
                disk: DiskStatus { state: "UpToDate".into(), ..DiskStatus::default() },
                peers: vec![
                    peer("beta", ["Secondary", "UpToDate", "Connected", "Established"]),
                    gamma,
                ],
                ..ResourceStatus::default()
            }],
            attachments: Vec::new(),
        }
    }

    #[test]
    fn the_word_after_watch_is_a_time_or_a_name() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            status: Status,
        }
        let of = |line: &str| {
            let words = std::iter::once("status").chain(line.split_whitespace());
            let line = Line::try_parse_from(words).map_err(|_| ())?;
            let (name, every) = wanted(&line.status).map_err(|_| ())?;
            Ok((name.map(str::to_owned), every.map(|every| every.as_secs_f64())))
        };
        let due = |name: Option<&str>, every| Ok((name.map(str::to_owned), every));
        assert_eq!(of(""), due(None, None));
        assert_eq!(of("r0"), due(Some("r0"), None));
        assert_eq!(of("-w"), due(None, Some(1.0)));
        assert_eq!(of("--watch r0"), due(Some("r0"), Some(1.0)));
        assert_eq!(of("r0 --watch"), due(Some("r0"), Some(1.0)));
        assert_eq!(of("-w 0.5 r0"), due(Some("r0"), Some(0.5)));
        assert_eq!(of("r0 -w0.25"), due(Some("r0"), Some(0.25)));
        assert_eq!(of("--watch=2 7"), due(Some("7"), Some(2.0)));
        assert_eq!(of("-w 0"), due(None, Some(0.05)));
        for wrong in ["-w x r0", "-w -1", "-w a/b", "--from f -w", "--check --format csv"] {
            assert_eq!(of(wrong), Err(()), "{wrong}");
        }
    }

    #[test]
    fn a_node_as_a_table() {
        let expected = "\
node alpha, cluster home, 2 of 3 nodes alive

r0  256 MiB  /dev/holdfast/r0
  NODE   ROLE       DISK          CONNECTION   REPLICATION  BEHIND
  alpha  Primary    UpToDate      (this node)
  beta   Secondary  UpToDate      Connected    Established  -
  gamma  Secondary  Inconsistent  Connected    SyncSource   128 MiB
  to gamma [########........] 50.0 %  256 MiB  110 MiB/s  ETA 2 s
";
        assert_eq!(render(&sample(), Some(80), false), expected);
    }

    #[test]
    fn a_log_is_shown_with_what_is_replayed_and_fetched_of_it() {
        let replay = ReplayStatus {
            head: 3000,
            fetched: 2000,
            replayed: 1500,
            lag_bytes: 1500,
            ..ReplayStatus::default()
        };
        let bar = log_bar(&replay, 1000).unwrap();
        assert!(bar.starts_with("log [#####=====..........]"), "{bar}");
        assert_eq!(log_bar(&ReplayStatus { lag_bytes: 0, ..replay }, 1000), None);
    }

    #[test]
    fn a_request_that_hangs_is_told_with_its_age() {
        let mut status = sample();
        let io = |under_way, oldest_seconds| {
            let oldest_op = Some("write".to_owned());
            Some(IoStatus { under_way, oldest_seconds, oldest_op, ..IoStatus::default() })
        };
        for (io, expected) in [
            (io(1, 35.2), Some("  a write is under way for 35 s\n")),
            (io(3, 2.0), Some("  3 requests are under way, the oldest, a write, for 2 s\n")),
            (io(3, 0.5), None),
        ] {
            status.resources[0].io = io;
            let shown = render(&status, None, false);
            assert_eq!(shown.contains("under way"), expected.is_some(), "{shown}");
            assert!(expected.is_none_or(|line| shown.contains(line)), "{shown}");
        }
    }

    #[test]
    fn the_first_of_those_who_use_it_are_named() {
        let mut status = sample();
        for (openers, expected) in [
            (&[][..], None),
            (&["mounted at /srv"][..], Some("  in use: mounted at /srv\n")),
            (&["a", "b", "c"], Some("  in use: a, b, c\n")),
            (&["a", "b", "c", "d", "e"], Some("  in use: a, b, c, and by 2 more\n")),
        ] {
            let resource = &mut status.resources[0];
            resource.openers = openers.iter().map(|opener| (*opener).to_owned()).collect();
            resource.open_count = u32::try_from(openers.len()).unwrap();
            let shown = render(&status, None, false);
            assert_eq!(shown.contains("in use"), expected.is_some(), "{shown}");
            assert!(expected.is_none_or(|line| shown.contains(line)), "{shown}");
        }
    }

    #[test]
    fn a_device_that_waits_is_told_with_its_time() {
        let mut status = sample();
        status.resources[0].device_waits_seconds = Some(83);
        let shown = render(&status, None, false);
        assert!(shown.contains("the device waits with its I/O") && shown.contains("after 83 more"));
    }

    #[test]
    fn colours_change_nothing_but_the_colours() {
        let colored = render(&sample(), Some(80), true);
        assert!(colored.contains("\x1b[32mUpToDate\x1b[0m"));
        assert!(colored.contains("\x1b[33mInconsistent\x1b[0m"));
        let mut plain = String::new();
        for (at, part) in colored.split('\x1b').enumerate() {
            let text = if at == 0 { part } else { part.split_once('m').unwrap().1 };
            plain.push_str(text);
        }
        assert_eq!(plain, render(&sample(), Some(80), false));
    }

    #[test]
    fn the_longest_words_fit_into_80_columns() {
        let mut status = sample();
        let long = "n".repeat(64);
        status.node.clone_from(&long);
        let resource = &mut status.resources[0];
        let mut peer = peer(&long, ["Secondary", "Inconsistent", "NetworkFailure", "PausedSyncS"]);
        peer.out_of_sync_bytes = (1023 << 30) + (950 << 20);
        peer.resync = Some(ResyncStatus {
            percent: 99.94,
            bytes_total: (1023 << 30) + (950 << 20),
            rate_bytes_per_second: (1023 << 20) + (950 << 10),
            eta_seconds: 7199,
            bytes_done: 0,
        });
        resource.peers = vec![peer];
        for line in render(&status, Some(80), false).lines().skip(1) {
            assert!(line.chars().count() <= 80, "{} {line}", line.chars().count());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut status = sample();
        let resource = &mut status.resources[0];
        resource.suspended = vec!["no-quorum".into()];
        resource.quorum = false;
        resource.disk.io_errors = 3;
        resource.disk.problem = Some("it is gone".into());
        resource.peers[0].connection = "StandAlone".into();
        resource.peers[1].connection = "StandAlone".into();
        resource.peers[1].problem = Some(PeerProblem {
            code: "SPLIT_BRAIN".into(),
            message: "split brain: both nodes wrote apart".into(),
            hint: "run this".into(),
        });
        let text = render(&status, Some(80), false);
        for part in [
            "I/O is held: no-quorum",
            "quorum is lost",
            "the disk is not used: it is gone",
            "not trying to reach beta: it was disconnected",
            "split brain with gamma: both nodes wrote apart; run this",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let attached = AttachmentStatus {
            name: "far".into(),
            size_bytes: 1 << 30,
            device: Some("/dev/holdfast/far".into()),
            state: "Reconnecting".into(),
            uris: vec!["nbd://box2/far".into()],
            problem: Some("it closed the connection".into()),
            ..AttachmentStatus::default()
        };
        let alone = NodeStatus { attachments: vec![attached], ..NodeStatus::default() };
        let text = render(&alone, None, false);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "far  1 GiB  /dev/holdfast/far  Reconnecting",
                "  it closed the connection",
                "  attached from nbd://box2/far",
            ]
        );
        let empty = NodeStatus { node: "alpha".into(), ..NodeStatus::default() };
        let text = render(&empty, None, false);
        assert!(text.contains("in no cluster yet") && text.contains("no resources"), "{text}");
        assert!(text.contains("cluster join TOKEN"), "{text}");
    }

    #[test]
    fn a_resync_that_stands_still_has_no_end() {
        let mut resync = ResyncStatus { eta_seconds: 9, ..ResyncStatus::default() };
        assert_eq!(eta(&resync), "-");
        resync.rate_bytes_per_second = 1;
        assert_eq!(eta(&resync), "9 s");
        for percent in [-1.0, 0.0, 100.0, 1000.0, f64::NAN] {
            resync.percent = percent;
            assert!(!resync_line(&PeerStatus::default(), &resync, false).is_empty());
        }
    }
}
