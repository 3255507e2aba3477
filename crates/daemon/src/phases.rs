//! Tells who waits for a command how far it has come.
//!
//! A caller that accepts `application/x-ndjson` gets lines of JSON instead of one answer: one
//! `{"phase":"..."}` for each phase as it begins, and last `{"status":N,"answer":...}` with
//! what the answer would have been.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use holdfast_api::phases::{KIND, Line};
use std::convert::Infallible;
use std::future::Future;
use tokio::sync::mpsc;

/// Phases that may wait for a caller that does not read; more are not told.
const WAITING: usize = 64;
/// The longest answer of a command, in bytes.
const MAX_ANSWER: usize = 64 << 20;

tokio::task_local! {
    static TOLD: mpsc::Sender<String>;
}

/// A command begins with this, in the words of `"telling the other nodes"`.
pub(crate) fn phase(text: impl Into<String>) {
    let text = text.into();
    tracing::debug!("phase: {text}");
    // Nobody listens, or does not read: the work goes on.
    let _ = TOLD.try_with(|told| told.try_send(text));
}

/// What a command that is only tried would do now.
pub(crate) fn would(steps: &[&str]) {
    steps.iter().for_each(|step| phase(format!("it would go on with: {step}")));
}

/// Runs the work on a task of its own, for the caller who waits for this one.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    match TOLD.try_with(mpsc::Sender::clone) {
        Ok(told) => tokio::spawn(TOLD.scope(told, work)),
        Err(_) => tokio::spawn(work),
    }
}

/// Answers in lines where that is asked for.
pub(crate) async fn tell(request: Request, next: Next) -> Response {
    let accepts = request.headers().get(header::ACCEPT);
    if accepts.is_none_or(|kind| kind.as_bytes() != KIND.as_bytes()) {
        return next.run(request).await;
    }
    let (told, mut phases) = mpsc::channel::<String>(WAITING);
    let (done, answer) = tokio::sync::oneshot::channel();
    // The command runs to its end, also when the caller goes away; so this may, too.
    tokio::spawn(TOLD.scope(told, async move {
        let response = next.run(request).await;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), MAX_ANSWER).await;
        let _ = done.send((status, body.unwrap_or_default()));
    }));
    let mut answer = Some(answer);
    let lines = stream::poll_fn(move |context| {
        use std::task::Poll;
        let line = match phases.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(phase)) => Line::Phase(phase),
            // The work is over: its sender is gone.
            Poll::Ready(None) => {
                match answer.as_mut().map(tokio::sync::oneshot::Receiver::try_recv) {
                    None => return Poll::Ready(None),
                    Some(found) => {
                        answer = None;
                        let (status, body) = found.unwrap_or_else(|_| broken());
                        last(status, &body)
                    }
                }
            }
        };
        Poll::Ready(Some(Ok::<Bytes, Infallible>(encode(&line))))
    });
    ([(header::CONTENT_TYPE, KIND)], Body::from_stream(lines)).into_response()
}

fn broken() -> (StatusCode, Bytes) {
    (StatusCode::INTERNAL_SERVER_ERROR, Bytes::new())
}

fn last(status: StatusCode, body: &[u8]) -> Line {
    let answer = serde_json::from_slice(body).unwrap_or_default();
    Line::End { status: status.as_u16(), answer }
}

fn encode(line: &Line) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::{phase, spawn, tell};
    use axum::Router;
    use axum::body::Body;
    use axum::extract::Request;
    use axum::routing::post;
    use holdfast_api::phases::{KIND, Line};
    use tower_service::Service;

    async fn ask(accept: &str) -> Vec<u8> {
        let work = async || {
            phase("one");
            spawn(async { phase("two") }).await.unwrap();
            axum::Json("done")
        };
        let mut router: Router =
            Router::new().route("/x", post(work)).layer(axum::middleware::from_fn(tell));
        let request = Request::post("/x").header("accept", accept).body(Body::empty()).unwrap();
        let response = router.call(request).await.unwrap();
        axum::body::to_bytes(response.into_body(), 4096).await.unwrap().to_vec()
    }

    #[tokio::test]
    async fn phases_come_before_the_answer_to_who_wants_them() {
        let text = String::from_utf8(ask(KIND).await).unwrap();
        let lines: Vec<Line> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let answer = serde_json::Value::from("done");
        let due = [
            Line::Phase("one".into()),
            Line::Phase("two".into()),
            Line::End { status: 200, answer },
        ];
        assert_eq!(lines, due);
        assert_eq!(ask("application/json").await, b"\"done\"");
    }
}
