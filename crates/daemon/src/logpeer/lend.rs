//! Lending what this node has fetched to another one that follows, too.

use super::wire;
use crate::node::Node;
use crate::opening;
use crate::shard::LinkSocket;
use holdfast_cluster::PinnedNode;
use holdfast_journal::ship::{Answer, Message, Request};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio_rustls::server::TlsStream;

/// How long the opening, and each further request, may take.
const SILENCE: Duration = Duration::from_secs(10);
/// Who waits for news is answered after so long at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Serves a connection of another node that follows, until it ends.
///
/// # Errors
/// When the connection fails.
pub(crate) async fn lend(
    node: &Arc<Node>,
    mut stream: TlsStream<LinkSocket>,
    peer: &PinnedNode,
) -> io::Result<()> {
    let opening = tokio::time::timeout(SILENCE, opening::read(&mut stream)).await;
    let opening = opening.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let found = opening.and_then(|opening| {
        let resource = opening.resource_of(node, peer)?;
        resource.following().ok_or("this node does not follow")
    });
    let Some(following) = opening::answer(&mut stream, found).await? else { return Ok(()) };
    // It must not be kept from ending by who borrows from it.
    let following = Arc::downgrade(&following);
    loop {
        let read = tokio::time::timeout(SILENCE, wire::read(&mut stream)).await;
        let Ok(read) = read else { return stream.shutdown().await };
        let Some(Message::Request(request)) = read? else { return Ok(()) };
        let Some(of) = following.upgrade() else { return stream.shutdown().await };
        if let Request::Await(ask) = &request {
            let limit = Duration::from_millis(u64::from(ask.wait_ms)).min(LONGEST_WAIT);
            let more = of.watch();
            let known = ask.known;
            drop(of);
            let mut more = more;
            let news = more
                .wait_for(|view| view.status.as_ref().is_some_and(|status| status.fetched > known));
            // Its end shows when it is asked.
            let _ = tokio::time::timeout(limit, news).await;
        }
        let Some(of) = following.upgrade() else { return stream.shutdown().await };
        let Some(answer) = of.lend(request).await else { return stream.shutdown().await };
        drop(of);
        let over = matches!(answer, Answer::Refuse { .. });
        wire::write(&mut stream, &Message::Answer(answer)).await?;
        if over {
            return stream.shutdown().await;
        }
    }
}
