//! `--http`: the metrics by TCP, for Prometheus. Nothing else is there: the control API asks who calls,
//! and TCP does not say.

use crate::http;
use crate::node::Node;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use holdfast_api::routes;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// How many are served, and how long.
#[derive(Clone, Copy)]
struct Limits {
    /// Callers at a time.
    all: usize,
    /// Of one address: whoever holds all of these is not in the way of others.
    of_one: usize,
    /// Those too many that are told so at a time; more are just turned away.
    told: usize,
    /// How long a connection may last. It carries one call.
    time: Duration,
    /// The same of one that is told.
    telling: Duration,
}

const LIMITS: Limits = Limits {
    all: 64,
    of_one: 8,
    told: 16,
    time: Duration::from_secs(30),
    telling: Duration::from_secs(2),
};
/// How long a caller may take to send the head of its call.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is logged that callers were turned away.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Answers until the daemon stops.
pub(crate) async fn serve(node: Arc<Node>, listener: TcpListener) {
    let router = router(&node);
    serve_until(node.stopped(), listener, router, LIMITS).await;
}

async fn serve_until(
    stopped: impl Future<Output = ()>,
    listener: TcpListener,
    router: Router,
    limits: Limits,
) {
    let (served, told) = (Places::default(), Places::default());
    let mut turned_away = TurnedAway::default();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => return,
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, from.ip().to_canonical()),
            Err(error) => {
                tracing::warn!(%error, "taking a caller of --http failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (place, router, time) = match served.take(from, limits.all, limits.of_one) {
            Some(place) => (place, router.clone(), limits.time),
            None => {
                if let Some(count) = turned_away.note(Instant::now()) {
                    tracing::warn!(
                        "{count} callers of --http were turned away, the last from {from}: too \
                         many are connected"
                    );
                }
                let Some(place) = told.take(from, limits.told, limits.told) else { continue };
                (place, crowded(), limits.telling)
            }
        };
        tokio::spawn(async move {
            // Also one that does not read its answer ends.
            if tokio::time::timeout(time, one_call(stream, router)).await.is_err() {
                tracing::debug!(%from, "a caller of --http took too long");
            }
            drop(place);
        });
    }
}

/// Serves one call.
async fn one_call(stream: TcpStream, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Who is connected, by address.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Places {
    /// A place for a caller from this address; `None` when there is none.
    fn take(&self, from: IpAddr, all: usize, of_one: usize) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&from).copied().unwrap_or(0);
        if own >= of_one || taken.values().sum::<usize>() >= all {
            return None;
        }
        taken.insert(from, own + 1);
        Some(Place { from, places: self.clone() })
    }
}

/// Given back when it is dropped.
struct Place {
    from: IpAddr,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.from) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.remove(&self.from);
            }
        }
    }
}

/// Counts those who were turned away since it was last logged.
#[derive(Default)]
struct TurnedAway {
    count: u64,
    logged: Option<Instant>,
}

impl TurnedAway {
    /// One more; how many there are now, when it is time to say so.
    fn note(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.logged.is_some_and(|at| now.duration_since(at) < LOG_EVERY) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

fn crowded() -> Router {
    let what = "too many callers are connected: try again in a moment\n";
    Router::new().fallback(async move || (StatusCode::SERVICE_UNAVAILABLE, what))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    async fn call(server: SocketAddr, from: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0))).unwrap();
        let mut stream = socket.connect(server).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        stream
    }

    /// The first line of the answer.
    async fn head(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 12];
        stream.read_exact(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A server that gives a client this time, and two clients of one address that do not read what
    /// they asked for: all that may be of one.
    async fn with_idle_clients(time: Duration) -> (SocketAddr, [TcpStream; 2]) {
        let limits = Limits { of_one: 2, time, ..LIMITS };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        // More than the system takes for a client that does not read.
        let much = Router::new().fallback(async || "x".repeat(64 << 20));
        tokio::spawn(serve_until(std::future::pending(), listener, much, limits));
        let mut idle = [call(server, 1).await, call(server, 1).await];
        for stream in &mut idle {
            assert_eq!(head(stream).await, "HTTP/1.1 200");
        }
        (server, idle)
    }

    #[tokio::test]
    async fn who_does_not_read_shuts_nobody_out_and_is_ended() {
        // They have more time than the test takes.
        let (server, _idle) = with_idle_clients(Duration::from_secs(600)).await;
        assert_eq!(head(&mut call(server, 1).await).await, "HTTP/1.1 503");
        assert_eq!(head(&mut call(server, 2).await).await, "HTTP/1.1 200");
        let (server, _idle) = with_idle_clients(Duration::from_secs(5)).await;
        let begun = Instant::now();
        while head(&mut call(server, 1).await).await != "HTTP/1.1 200" {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody was ended");
            tokio::time::sleep(Duration::from_millis(100)).await; // bounded poll
        }
    }

    #[test]
    fn places_are_given_back_and_the_log_is_not_flooded() {
        let (places, one) = (Places::default(), IpAddr::from(Ipv4Addr::LOCALHOST));
        let held: Vec<_> = (0..3).filter_map(|_| places.take(one, 9, 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(places.take(Ipv4Addr::BROADCAST.into(), 2, 2).is_none());
        drop(held);
        assert!(places.0.lock().unwrap().is_empty());
        let (mut turned, start) = (TurnedAway::default(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        let told: Vec<_> = [0, 1, 59, 60, 61].map(|at| turned.note(later(at))).into();
        assert_eq!(told, [Some(1), None, None, Some(3), None]);
    }
}
