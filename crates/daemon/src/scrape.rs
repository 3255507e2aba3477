//! `--http`: the metrics by TCP, for Prometheus. Nothing else is there: the control API asks who calls,
//! and TCP does not say.

use crate::http;
use crate::node::Node;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use holdfast_api::routes;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Callers at a time; more are turned away.
const MAX_CONNECTIONS: usize = 32;

/// Answers until the daemon stops.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let router = router(&node);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = node.stopped() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "taking a caller of --http failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            tracing::warn!("a caller of --http was turned away: too many are connected");
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            http::serve_connection(stream, router).await;
            drop(permit);
        });
    }
}

fn router(node: &Arc<Node>) -> Router {
    let nothing = async || {
        let what = format!(
            "only {} is answered here; all else is on the control socket\n",
            routes::METRICS
        );
        (StatusCode::NOT_FOUND, what)
    };
    Router::new()
        .route(routes::METRICS, get(http::metrics_text))
        .fallback(nothing)
        .with_state(Arc::clone(node))
}
