//! `cluster`.

use crate::args::Cluster;
use crate::output::{Style, width};
use crate::session::{Session, with_phases};
use crate::table::{Table, cell, plain};
use holdfast_api::request::{
    ClusterCreate, ClusterCreated, ClusterJoin, ClusterLeave, ClusterMerge, ClusterRemove,
    ClusterSet, ClusterSplit, ClusterToken, ClusterWait, Done, TokenCreated,
};
use holdfast_api::status::{ClusterNode, ClusterStatus};
use holdfast_api::{ApiError, ErrorCode, routes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long `cluster wait` waits when nobody says.
const WAIT: Duration = Duration::from_secs(60);
/// What an answer may take on top of that.
const GRACE: Duration = Duration::from_secs(15);

/// Runs one of the commands.
pub(crate) async fn run(
    session: &Session,
    command: Cluster,
    timeout: Option<Duration>,
) -> Result<(), ApiError> {
    match command {
        Cluster::Create { name } => {
            let body = ClusterCreate { name };
            let made: ClusterCreated = session.post(routes::CLUSTER_CREATE, &body).await?;
            session.result(&made, &made.uuid);
            Ok(())
        }
        Cluster::Token { ttl, addr } => {
            let body = ClusterToken { ttl_seconds: Some(ttl.as_secs()), addr };
            let made: TokenCreated = session.post(routes::CLUSTER_TOKEN, &body).await?;
            session.result(&made, &made.token);
            Ok(())
        }
        Cluster::Join { token, dry_run } => {
            let body = ClusterJoin { token, dry_run };
            let what = if dry_run { TRIED } else { "joined" };
            member(session, routes::CLUSTER_JOIN, &body, what).await
        }
        Cluster::Merge { token, force, dry_run } => {
            let body = ClusterMerge { token, force, dry_run };
            let what = if dry_run { TRIED } else { "merged into" };
            member(session, routes::CLUSTER_MERGE, &body, what).await
        }
        Cluster::Split { nodes, name, cancel, dry_run } => {
            let body = ClusterSplit { nodes, name, cancel, dry_run };
            session.act(routes::CLUSTER_SPLIT, &body).await
        }
        Cluster::Wait => wait(session, timeout.unwrap_or(WAIT)).await,
        Cluster::Set { pairs } => {
            let body = ClusterSet { set: pairs.into_iter().collect() };
            let done: Done = session.put(routes::CLUSTER_KEYS, &body).await?;
            session.done(&done);
            Ok(())
        }
        Cluster::Get { key } => get(session, key.as_deref()).await,
        Cluster::Leave { force, dry_run } => {
            session.act(routes::CLUSTER_LEAVE, &ClusterLeave { force, dry_run }).await
        }
        Cluster::Remove { node, force, dry_run } => {
            session.act(routes::CLUSTER_REMOVE, &ClusterRemove { node, force, dry_run }).await
        }
        Cluster::Status => status(session).await,
    }
}

/// What is said when a command was only tried.
const TRIED: &str = "nothing was changed";

/// Becomes a node of another cluster, and says of which.
async fn member<B: Serialize>(
    session: &Session,
    path: &str,
    body: &B,
    what: &str,
) -> Result<(), ApiError> {
    let (cluster, phases) = session.post_told::<_, ClusterStatus>(path, body).await?;
    if session.ui.json {
        session.ui.json(&with_phases(&cluster, &phases));
    } else if !session.ui.quiet {
        match what {
            TRIED => session.ui.line(TRIED),
            _ => session.ui.line(&became(what, &cluster)),
        }
    }
    Ok(())
}

async fn wait(session: &Session, limit: Duration) -> Result<(), ApiError> {
    let body = ClusterWait { timeout_seconds: Some(limit.as_secs_f64()) };
    let client = session.client.clone().with_timeout(limit + GRACE);
    let done: Done = client.post(routes::CLUSTER_WAIT, &body).await?;
    session.done(&done);
    Ok(())
}

async fn get(session: &Session, key: Option<&str>) -> Result<(), ApiError> {
    let all: BTreeMap<String, String> = session.get(routes::CLUSTER_KEYS).await?;
    let Some(key) = key else {
        if session.ui.json {
            session.ui.json(&all);
        } else {
            session.ui.text(
                &all.iter().map(|(key, value)| format!("{key}={value}\n")).collect::<String>(),
            );
        }
        return Ok(());
    };
    let value = all.get(key).ok_or_else(|| {
        let message = format!("the cluster keeps nothing under {key:?}");
        ApiError::new(ErrorCode::NoSuchOption, message).hint("`holdfast cluster get` lists it all")
    })?;
    session.result(value, value);
    Ok(())
}

/// Prints the nodes.
async fn status(session: &Session) -> Result<(), ApiError> {
    let status: ClusterStatus = session.get(routes::CLUSTER).await?;
    if session.ui.json {
        session.ui.json(&status);
    } else {
        session.ui.text(&render(&status, width(), session.ui.color));
    }
    Ok(())
}

/// What `cluster join` and `cluster merge` say.
fn became(what: &str, status: &ClusterStatus) -> String {
    let nodes = status.nodes.len();
    format!("{what} cluster {} ({}), which has {nodes} nodes now", status.name, status.uuid)
}

fn render(status: &ClusterStatus, width: Option<usize>, color: bool) -> String {
    let alive = status.nodes.iter().filter(|node| node.alive).count();
    let mut text = format!(
        "cluster {}  {}\n{alive} of {} nodes alive\n",
        Style::Bold.paint(&status.name, color),
        Style::Dim.paint(&status.uuid, color),
        status.nodes.len()
    );
    for problem in &status.problems {
        text.push_str(&Style::Bad.paint(problem, color));
        text.push('\n');
    }
    text.push('\n');
    let mut table = Table::new(0, &["NODE", "ADDRESS", "STATE", "VERSION", "CLOCK"]);
    for node in &status.nodes {
        let state = if node.alive {
            cell("alive", Style::Good)
        } else {
            let silent = span(node.last_seen_seconds);
            cell(format!("silent for {silent}"), Style::Bad)
        };
        table.row(vec![
            cell(&*node.name, Style::Bold),
            plain(&*node.address),
            state,
            plain(&*node.version),
            clock(node),
        ]);
    }
    for line in table.render(width, color) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn clock(node: &ClusterNode) -> crate::table::Cell {
    match node.clock_offset_seconds {
        None => plain("-"),
        Some(offset) if offset.abs() < 0.001 => cell("0 s", Style::Good),
        Some(offset) => {
            let style = if offset.abs() < 1.0 { Style::Good } else { Style::Warn };
            cell(format!("{offset:+.3} s"), style)
        }
    }
}

/// A time for people: `42 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_in_a_table() {
        let node = |name: &str, alive, last_seen_seconds, clock_offset_seconds| ClusterNode {
            name: name.into(),
            address: format!("{name}:7850"),
            alive,
            last_seen_seconds,
            version: "0.1.0".into(),
            clock_offset_seconds,
        };
        let status = ClusterStatus {
            uuid: "0000".into(),
            name: "home".into(),
            nodes: vec![
                node("alpha", true, 0, Some(0.0)),
                node("beta", true, 0, Some(-1.5)),
                node("gamma", false, 300, None),
            ],
            problems: Vec::new(),
        };
        let expected = "\
cluster home  0000
2 of 3 nodes alive

NODE   ADDRESS     STATE             VERSION  CLOCK
alpha  alpha:7850  alive             0.1.0    0 s
beta   beta:7850   alive             0.1.0    -1.500 s
gamma  gamma:7850  silent for 5 min  0.1.0    -
";
        assert_eq!(render(&status, Some(80), false), expected);
        assert!(render(&status, Some(80), true).contains("\x1b[32malive\x1b[0m"));
        let trouble = ClusterStatus { problems: vec!["two have one name".into()], ..status };
        assert!(render(&trouble, None, false).contains("alive\ntwo have one name\n\nNODE"));
    }

    #[test]
    fn spans() {
        for (seconds, text) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h")] {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(span(200_000), "2 d");
    }
}
