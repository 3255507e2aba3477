//! `replace-disk`.

use crate::args::ReplaceDisk;
use crate::session::Session;
use crate::status::rate;
use holdfast_api::request::{self, Done};
use holdfast_api::status::{DiskReplacing, ResourceStatus};
use holdfast_api::{ApiError, ErrorCode, routes};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// Begins, ends, or waits for the move of this node's data to another disk.
pub(crate) async fn run(
    session: &Session,
    args: ReplaceDisk,
    limit: Option<Duration>,
) -> Result<(), ApiError> {
    let body = request::ReplaceDisk {
        disk: args.disk,
        meta: args.meta,
        force: args.force,
        rate: args.rate.unwrap_or(0),
        stop: args.stop,
    };
    let path = routes::of(routes::RESOURCE_REPLACE_DISK, &args.name);
    if !args.wait {
        return session.act(&path, &body).await;
    }
    let begun: Done = session.post(&path, &body).await?;
    if !session.ui.json {
        session.done(&begun);
    }
    let bar = bar(session);
    let ended = wait(session, &args.name, body.disk.as_deref().unwrap_or_default(), &bar, limit);
    let ended = ended.await;
    bar.finish_and_clear();
    session.done(&ended?);
    Ok(())
}

fn bar(session: &Session) -> ProgressBar {
    if session.ui.json || session.ui.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "[{bar:24}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}",
    )
    .expect("the template is a constant")
    .progress_chars("#>.");
    ProgressBar::new(0).with_style(style)
}

async fn wait(
    session: &Session,
    name: &str,
    disk: &str,
    bar: &ProgressBar,
    limit: Option<Duration>,
) -> Result<Done, ApiError> {
    let path = routes::of(routes::RESOURCE, name);
    let begun = Instant::now();
    let mut new = disk.to_owned();
    loop {
        let status: ResourceStatus = session.get(&path).await?;
        let Some(replacing) = status.disk.replacing else {
            return match status.disk.path {
                Some(path) if path == new => {
                    Ok(Done::new(format!("the disk of resource {name} on this node is {path} now")))
                }
                _ => Err(failed(name, &format!("the move to {new} was ended"))),
            };
        };
        if replacing.state == "failed" {
            return Err(failed(name, &replacing.problem.unwrap_or_default()));
        }
        show(bar, &replacing);
        new = replacing.path;
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            let message = format!(
                "waiting for the new disk of resource {name} was given up after {:.1} seconds",
                begun.elapsed().as_secs_f64()
            );
            return Err(ApiError::new(ErrorCode::TimedOut, message)
                .hint(format!("it goes on; `holdfast status {name}` shows how far it is")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn show(bar: &ProgressBar, replacing: &DiskReplacing) {
    bar.set_length(replacing.bytes_total);
    bar.set_position(replacing.bytes_done);
    let mut message = rate(replacing.rate_bytes_per_second);
    if let Some(problem) = &replacing.problem {
        message = format!("{message}  {problem}");
    }
    bar.set_message(message);
}

fn failed(name: &str, why: &str) -> ApiError {
    ApiError::new(ErrorCode::DiskFailed, format!("replace-disk failed for {name}: {why}"))
}
