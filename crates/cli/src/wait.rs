//! `wait`.

use crate::args::Wait as WaitArgs;
use crate::session::Session;
use crate::status::{eta, rate, way};
use holdfast_api::request::{Done, Wait, WaitFor};
use holdfast_api::status::{PeerStatus, ResourceStatus};
use holdfast_api::{ApiError, ErrorCode, routes};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How long one call may wait; longer waits are made of several, so that a lost answer is noticed.
const CHUNK: Duration = Duration::from_secs(30);
/// What an answer may take on top of that.
const GRACE: Duration = Duration::from_secs(5);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Waits until the state is reached, or has ended, as long as it takes, or until `limit` is over.
pub(crate) async fn run(
    session: &Session,
    args: &WaitArgs,
    limit: Option<Duration>,
) -> Result<(), ApiError> {
    let state = args.reached.or(args.ended).expect("the grammar has one of them");
    let what = WaitFor::from(state);
    let ended = args.ended.is_some();
    let wait = Wait { what, ended, peer: args.peer.clone(), timeout_seconds: None };
    let of_sync = !ended && matches!(what, WaitFor::Synced | WaitFor::UpToDate);
    let shown = !session.ui.json && !session.ui.quiet && std::io::stderr().is_terminal();
    let done = if of_sync && shown {
        let progress = MultiProgress::new();
        let result = tokio::select! {
            result = waited(session, &args.name, &wait, limit) => result,
            never = show_progress(session, args, &progress) => match never {},
        };
        // Nothing is lost when the terminal does not take it.
        let _ = progress.clear();
        result
    } else {
        waited(session, &args.name, &wait, limit).await
    }?;
    session.done(&done);
    Ok(())
}

async fn waited(
    session: &Session,
    name: &str,
    wait: &Wait,
    limit: Option<Duration>,
) -> Result<Done, ApiError> {
    let path = routes::of(routes::RESOURCE_WAIT, name);
    session.ui.trace(&format!("> POST {path}"));
    let started = Instant::now();
    loop {
        let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
        let chunk = left.map_or(CHUNK, |left| left.min(CHUNK));
        let body = Wait { timeout_seconds: Some(chunk.as_secs_f64()), ..wait.clone() };
        let client = session.client.clone().with_timeout(chunk + GRACE);
        match client.post(&path, &body).await.map_err(ApiError::from) {
            Err(error) if error.code == ErrorCode::TimedOut => {
                if left.is_some_and(|left| left <= CHUNK) {
                    return Err(given_up(name, wait, started.elapsed()));
                }
            }
            result => return result,
        }
    }
}

fn given_up(name: &str, wait: &Wait, after: Duration) -> ApiError {
    let peer = wait.peer.as_ref().map(|peer| format!(" (peer {peer})")).unwrap_or_default();
    let is = if wait.ended { "still" } else { "not" };
    ApiError::new(
        ErrorCode::TimedOut,
        format!(
            "waiting for {} of resource {name}{peer} was given up: it is {is} so after {:.1} \
             seconds",
            wait.goal(),
            after.as_secs_f64()
        ),
    )
    .hint(format!("`holdfast status {name}` shows how it stands"))
}

/// Draws a bar for every running resync.
async fn show_progress(session: &Session, args: &WaitArgs, progress: &MultiProgress) -> Infallible {
    let path = routes::of(routes::RESOURCE, &args.name);
    let client = session.client.clone().with_timeout(GRACE);
    let mut bars: BTreeMap<String, ProgressBar> = BTreeMap::new();
    loop {
        // What is wrong, the call that waits will say.
        if let Ok(status) = client.get::<ResourceStatus>(&path).await {
            let wanted = |peer: &&PeerStatus| args.peer.as_ref().is_none_or(|p| *p == peer.node);
            bars.retain(|node, bar| {
                let runs = status.peers.iter().any(|p| p.node == *node && p.resync.is_some());
                if !runs {
                    bar.finish_and_clear();
                }
                runs
            });
            for peer in status.peers.iter().filter(wanted) {
                let Some(resync) = &peer.resync else { continue };
                let bar = bars
                    .entry(peer.node.clone())
                    .or_insert_with(|| progress.add(bar(&peer.node, &peer.replication)));
                bar.set_length(resync.bytes_total);
                bar.set_position(resync.bytes_done);
                bar.set_message(format!(
                    "{}  ETA {}",
                    rate(resync.rate_bytes_per_second),
                    eta(resync)
                ));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn bar(node: &str, replication: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix} [{bar:24}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {msg}",
    )
    .expect("the template is a constant")
    .progress_chars("#>.");
    ProgressBar::new(0).with_style(style).with_prefix(format!("{} {node}", way(replication)))
}
