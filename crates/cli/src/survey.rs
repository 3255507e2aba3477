//! `verify` and `scrub`.

use crate::args::{Scrub, Verify};
use crate::session::Session;
use crate::status::rate;
use holdfast_api::survey::{self, SurveyReport, SurveyReports, SurveyWord};
use holdfast_api::words::{agreed, counted};
use holdfast_api::{ApiError, ErrorCode, routes};
use holdfast_units::format_size;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// So many places are printed.
const MOST_PLACES: usize = 20;

/// `verify`: begins a comparison and waits for its end, or does something to the one that goes on.
pub(crate) async fn verify(
    session: &Session,
    args: Verify,
    limit: Option<Duration>,
) -> Result<(), ApiError> {
    let action = word(args.pause, args.resume, args.cancel);
    let path = routes::of(routes::RESOURCE_VERIFY, &args.name);
    if args.report {
        return report(session, &path, "verify", &args.name).await;
    }
    let Verify { name, start, stop, peer, repair, no_wait, .. } = args;
    let body = survey::Verify { action, start, stop, peer, repair };
    if action != SurveyWord::Start || no_wait {
        return session.act(&path, &body).await;
    }
    let _: holdfast_api::request::Done = session.post(&path, &body).await?;
    let report = wait(session, &path, "verify", &name, limit).await?;
    tell(session, "verify", &name, &report)
}

/// `scrub`: begins one, or does something to the one that goes on.
pub(crate) async fn scrub(
    session: &Session,
    args: Scrub,
    limit: Option<Duration>,
) -> Result<(), ApiError> {
    let path = routes::of(routes::RESOURCE_SCRUB, &args.name);
    if args.report {
        return report(session, &path, "scrub", &args.name).await;
    }
    let action = word(args.pause, args.resume, args.stop);
    let body = survey::Scrub { action };
    if !args.wait {
        return session.act(&path, &body).await;
    }
    let _: holdfast_api::request::Done = session.post(&path, &body).await?;
    let report = wait(session, &path, "scrub", &args.name, limit).await?;
    tell(session, "scrub", &args.name, &report)
}

fn word(pause: bool, resume: bool, stop: bool) -> SurveyWord {
    match (pause, resume, stop) {
        (true, ..) => SurveyWord::Pause,
        (_, true, _) => SurveyWord::Resume,
        (.., true) => SurveyWord::Stop,
        _ => SurveyWord::Start,
    }
}

/// Draws progress until the run has ended, and gives what came out.
async fn wait(
    session: &Session,
    path: &str,
    what: &str,
    name: &str,
    limit: Option<Duration>,
) -> Result<SurveyReport, ApiError> {
    let shown = !session.ui.json && !session.ui.quiet && std::io::stderr().is_terminal();
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:24}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}",
    )
    .expect("the template is a constant")
    .progress_chars("#>.");
    let bar = if shown { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let bar = bar.with_style(style).with_prefix(format!("{what} {name}"));
    let started = Instant::now();
    loop {
        let reports: SurveyReports = session.get(path).await?;
        let Some(current) = reports.current else {
            bar.finish_and_clear();
            return reports.last.ok_or_else(|| gone(what, name));
        };
        bar.set_length(current.bytes_total);
        bar.set_position(current.bytes_done);
        let how = current.reason.clone().unwrap_or_else(|| {
            format!("{}  ETA {} s", rate(current.rate_bytes_per_second), current.eta_seconds)
        });
        bar.set_message(how);
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            bar.finish_and_clear();
            let message = format!(
                "waiting for the {what} of resource {name} was given up: {:.1} % is done",
                current.percent
            );
            return Err(ApiError::new(ErrorCode::TimedOut, message).hint(format!(
                "it goes on; `holdfast {what} {name} --report` shows what came out"
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn gone(what: &str, name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::SurveyState,
        format!("the {what} of resource {name} has no result: the resource was stopped meanwhile"),
    )
}

/// Prints what came out; an error when copies differ, or it did not end as it should.
fn tell(session: &Session, what: &str, name: &str, report: &SurveyReport) -> Result<(), ApiError> {
    if session.ui.json {
        session.ui.json(report);
    } else if !session.ui.quiet {
        lines(what, name, report).iter().for_each(|line| session.ui.line(line));
    }
    let left = report.differing_blocks - report.repaired_blocks.min(report.differing_blocks);
    if left > 0 {
        let message = format!(
            "the {what} of resource {name} found differences: {} of 4096 bytes {}, {left} of them \
             {} not repaired",
            counted(report.differing_blocks, "block"),
            agreed(report.differing_blocks, "differs", "differ"),
            agreed(left, "is", "are"),
        );
        return Err(ApiError::new(ErrorCode::DataDiffers, message).hint(format!(
            "`holdfast verify {name} --repair` writes what is right to the others"
        )));
    }
    if report.state != "done" {
        let why = report.reason.clone().unwrap_or_else(|| "somebody stopped it".to_owned());
        let message = format!("the {what} of resource {name} did not come to its end: {why}");
        return Err(ApiError::new(ErrorCode::SurveyState, message));
    }
    Ok(())
}

/// `--report`.
async fn report(session: &Session, path: &str, what: &str, name: &str) -> Result<(), ApiError> {
    let reports: SurveyReports = session.get(path).await?;
    if session.ui.json {
        session.ui.json(&reports);
        return Ok(());
    }
    let known = [&reports.current, &reports.last];
    if known.iter().all(|report| report.is_none()) {
        session.ui.line(&format!("there was no {what} of resource {name} yet"));
    }
    for report in known.into_iter().flatten() {
        lines(what, name, report).iter().for_each(|line| session.ui.line(line));
    }
    Ok(())
}

/// One report for people.
fn lines(what: &str, name: &str, report: &SurveyReport) -> Vec<String> {
    let reason = report.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let compared = match report.peers.as_slice() {
        [] => "there was no peer to compare it with".to_owned(),
        peers => {
            format!("{} compared with {}", format_size(report.bytes_compared), peers.join(", "))
        }
    };
    let mut lines = vec![
        format!("{what} of resource {name}: {}{reason}", report.state),
        format!(
            "  {:.1} %: {} of {} read, {compared}",
            report.percent,
            format_size(report.bytes_done),
            format_size(report.bytes_total),
        ),
        format!(
            "  {} differed, {} {} repaired, {} could not be read",
            counted(report.differing_blocks, "block"),
            report.repaired_blocks,
            agreed(report.repaired_blocks, "was", "were"),
            report.unreadable_blocks
        ),
    ];
    if report.bytes_skipped > 0 {
        let skipped = format_size(report.bytes_skipped);
        lines.push(format!("  {skipped} could not be compared: members came and went"));
    }
    for place in report.places.iter().take(MOST_PLACES) {
        let repaired = if place.repaired { "repaired" } else { "not repaired" };
        let sure = if place.majority { "the others agree" } else { "nobody knows who is right" };
        lines.push(format!(
            "  {}: {} bytes at {}, {repaired}, {sure}",
            place.node, place.length, place.offset
        ));
    }
    if report.places.len() > MOST_PLACES {
        lines.push("  and more: see the report with --json".to_owned());
    }
    lines
}
