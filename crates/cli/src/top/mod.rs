//! `top`.

mod figures;
mod screen;
mod terminal;
mod view;

#[cfg(test)]
mod tests;

use crate::args::Top;
use crate::session::Session;
use figures::{Figures, Look};
use holdfast_api::status::NodeStatus;
use holdfast_api::{ApiError, ErrorCode, routes};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant};
use terminal::Screen;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;
use view::{Outcome, View};

/// It does not look more often.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long after the first look the second is, for first figures.
const FIRST: Duration = Duration::from_millis(300);

/// Shows how all resources go, on the whole screen or as text.
pub(crate) async fn run(session: &Session, args: &Top) -> Result<(), ApiError> {
    let every = args.interval.max(SHORTEST);
    let first = look(session, args.name.as_deref()).await?;
    let looks = if args.once { Some(1) } else { args.looks };
    let is_text = args.once || args.batch || session.ui.json;
    if is_text || !terminal::is_capable() {
        return print(session, args, first, looks, every).await;
    }
    show(session, args, first, looks, every).await
}

/// What the daemon says now; only of this resource.
async fn look(session: &Session, name: Option<&str>) -> Result<Look, ApiError> {
    let mut status: NodeStatus = session.get(routes::STATUS).await?;
    let at = Instant::now();
    if let Some(name) = name {
        status.resources.retain(|resource| resource.name == name);
        if status.resources.is_empty() {
            return Err(ApiError::no_such_resource(name));
        }
    }
    Ok(Look { at, status, latency: session.get(routes::LATENCY).await? })
}

/// Prints look after look.
async fn print(
    session: &Session,
    args: &Top,
    first: Look,
    looks: Option<u64>,
    every: Duration,
) -> Result<(), ApiError> {
    let mut view = View::new(args.sort);
    let mut before = first;
    let mut printed = 0;
    while looks.is_none_or(|looks| printed < looks) {
        tokio::time::sleep_until((before.at + every).into()).await;
        let now = look(session, args.name.as_deref()).await?;
        view.take(Figures::between(&before, &now));
        before = now;
        if session.ui.json {
            session.ui.json_line(&view.figures);
        } else {
            let lines = screen::page(&view);
            let color = session.ui.color;
            let lines: Vec<String> = lines.iter().map(|line| line.render(None, color)).collect();
            let gap = if printed == 0 { "" } else { "\n" };
            session.ui.line(&format!("{gap}{}", lines.join("\n")));
        }
        printed += 1;
    }
    Ok(())
}

/// The signals that end it, and the one that says that the screen has another size.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    resized: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            resized: signal(SignalKind::window_change())?,
        })
    }
}

type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Look, ApiError>> + 'a>>;

/// Shows it on the screen until somebody has seen enough.
async fn show(
    session: &Session,
    args: &Top,
    first: Look,
    looks: Option<u64>,
    every: Duration,
) -> Result<(), ApiError> {
    let unusable = |why: io::Error| {
        let message = format!("the screen was not taken over: {why}");
        ApiError::new(ErrorCode::Internal, message).hint("--batch prints plain text")
    };
    let mut signals = Signals::new().map_err(unusable)?;
    let mut screen = Screen::enter().map_err(unusable)?;
    let mut view = View::new(args.sort);
    view.take(Figures::between(&first, &first));
    let mut before = first;
    let mut shown = 0;
    let mut fetch: Option<Fetch<'_>> = None;
    let start = Instant::now() + FIRST.min(every);
    let mut ticks = tokio::time::interval_at(start.into(), every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (columns, rows) = Screen::size();
        let lines = screen::screen(&view, columns, rows);
        let color = session.ui.color;
        let lines: Vec<String> =
            lines.iter().map(|line| line.render(Some(columns), color)).collect();
        screen.draw(&lines).map_err(unusable)?;
        tokio::select! {
            keys = screen.keys() => {
                if keys.into_iter().any(|key| view.key(key, rows / 2) == Outcome::Quit) {
                    return Ok(());
                }
            }
            _ = ticks.tick(), if fetch.is_none() && !view.paused => {
                fetch = Some(Box::pin(look(session, args.name.as_deref())));
            }
            now = next(&mut fetch) => {
                fetch = None;
                match now {
                    Ok(now) => {
                        view.take(Figures::between(&before, &now));
                        before = now;
                        shown += 1;
                        if looks.is_some_and(|looks| shown >= looks) {
                            return Ok(());
                        }
                    }
                    Err(error) => view.error = Some(error.message),
                }
            }
            _ = signals.resized.recv() => {}
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => return Ok(()),
        }
    }
}

/// The look that is under way; never ends when there is none.
async fn next(fetch: &mut Option<Fetch<'_>>) -> Result<Look, ApiError> {
    match fetch {
        Some(fetch) => fetch.await,
        None => std::future::pending().await,
    }
}
