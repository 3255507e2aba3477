use super::*;
use crate::events::EventKind;
use crate::request::{Done, Primary};
use hyper::body::{Body, Frame};
use hyper::service::service_fn;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::net::UnixListener;

/// A body that gives its chunks one by one and then ends, or stays open.
struct Chunks {
    chunks: VecDeque<Bytes>,
    ends: bool,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.chunks.pop_front() {
            Some(chunk) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn answer(status: u16, chunks: &[&str], ends: bool) -> Response<Chunks> {
    let chunks = chunks.iter().map(|c| Bytes::from((*c).to_owned())).collect();
    Response::builder().status(status).body(Chunks { chunks, ends }).unwrap()
}

/// What the test daemon says to a call.
async fn serve(request: Request<Incoming>) -> Result<Response<Chunks>, Infallible> {
    let call = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Ok(match call.as_str() {
        "POST /v1/resources/r0/primary" => {
            assert_eq!(body, r#"{"force":true}"#);
            answer(200, &[r#"{"message":"#, r#""done"}"#], true)
        }
        "POST /v1/resources/r1/primary" => answer(
            404,
            &[r#"{"error":{"code":"NO_SUCH_RESOURCE","message":"m","hint":"h"}}"#],
            true,
        ),
        "GET /metrics" => answer(200, &["up 1\n"], true),
        "GET /v1/status" => answer(200, &[], false),
        "GET /v1/version" => answer(500, &["<html>"], true),
        "GET /v1/cluster" => answer(200, &["[]"], true),
        "GET /v1/events" => answer(
            200,
            &[
                ": hello\n\nid: 1\nevent: exists\nda",
                "ta: {\"seq\":1,\"time_unix_ms\":2,\"kind\":\"exists\",\"object\":\"resource\",",
                "\"name\":\"r0\"}\r\n\r\ndata: {\"seq\":1,\"time_unix_ms\":2,",
                "\"kind\":\"exists\",\ndata: \"object\":\"-\",\"name\":\"\"}\n\n",
            ],
            true,
        ),
        _ => panic!("{call}"),
    })
}

/// A daemon on a socket in a directory that goes away with it.
fn daemon() -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(serve));
            tokio::spawn(connection);
        }
    });
    (dir, Client::new(socket))
}

#[tokio::test]
async fn a_call_carries_its_body_and_its_answer() {
    let (_dir, client) = daemon();
    let path = routes::of(routes::RESOURCE_PRIMARY, "r0");
    let done: Done =
        client.post(&path, &Primary { force: true, ..Primary::default() }).await.unwrap();
    assert_eq!(done.message, "done");
    assert_eq!(client.get_text(routes::METRICS).await.unwrap(), "up 1\n");
}

#[tokio::test]
async fn a_refusal_comes_with_its_code() {
    let (_dir, client) = daemon();
    let path = routes::of(routes::RESOURCE_PRIMARY, "r1");
    let error = client.post::<_, Done>(&path, &Primary::default()).await.unwrap_err();
    let expected = ApiError::new(ErrorCode::NoSuchResource, "m").hint("h");
    assert_eq!(error, ClientError::Refused(expected.clone()));
    assert_eq!((error.exit_code(), error.to_api_error()), (4, expected));
}

#[tokio::test]
async fn nobody_there_is_not_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    for make in [false, true] {
        if make {
            drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        }
        let error = Client::new(&socket).get_text(routes::METRICS).await.unwrap_err();
        assert!(matches!(error, ClientError::NotReachable { .. }), "{error}");
        assert_eq!(error.exit_code(), 3);
        let shown = error.to_api_error();
        assert!(shown.message.contains("control.sock: "), "{}", shown.message);
        assert!(!shown.message.contains("os error"), "{}", shown.message);
        assert!(shown.hint.is_some());
    }
}

#[tokio::test]
async fn a_daemon_that_dies_before_it_answers_is_not_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let dying = tokio::spawn(async move { drop(listener.accept().await) });
    let error = Client::new(&socket).get_text(routes::METRICS).await.unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    dying.await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_says_nothing_times_out() {
    let (_dir, client) = daemon();
    let client = client.with_timeout(Duration::from_millis(30));
    let error = client.get::<Done>(routes::STATUS).await.unwrap_err();
    let call = "GET /v1/status".to_owned();
    assert_eq!(error, ClientError::TimedOut { call, seconds: 1 });
    assert_eq!(error.exit_code(), 5);
}

#[tokio::test]
async fn what_is_not_ours_is_not_understood() {
    let (_dir, client) = daemon();
    for path in [routes::VERSION, routes::CLUSTER] {
        let error = client.get::<Done>(path).await.unwrap_err();
        assert!(matches!(error, ClientError::NotUnderstood { .. }), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
}

#[tokio::test]
async fn events_come_whole_out_of_any_chunks() {
    let (_dir, client) = daemon();
    let mut events = client.events().await.unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert_eq!((first.kind, first.name.as_str()), (EventKind::Exists, "r0"));
    assert!(events.next().await.unwrap().unwrap().is_end_of_dump());
    assert_eq!(events.next().await.unwrap(), None);
}

#[test]
fn an_event_without_end_is_refused() {
    let mut parser = EventParser::default();
    let mut ready = VecDeque::new();
    assert!(parser.feed(&vec![b'x'; MAX_EVENT], &mut ready).is_ok());
    assert!(parser.feed(b"x", &mut ready).is_err());
    let mut parser = EventParser::default();
    assert!(parser.feed(b"data: {}\n\n", &mut ready).is_err(), "not an event");
}
