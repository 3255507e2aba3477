//! A client of the API on a daemon's control socket.

use crate::error::without_numbers;
use crate::error::{ApiError, EXIT_NOT_REACHABLE, EXIT_REFUSED, EXIT_TIMED_OUT};
use crate::error::{ErrorBody, ErrorCode};
use crate::events::Event;
use crate::{phases, routes};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// The longest line of an event stream that is read, in bytes.
const MAX_EVENT: usize = 1 << 20;
/// How long connecting may take: the socket is local, so an answer is due at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No daemon answers at the socket, or it went away before it had answered.
    #[error("the daemon was not reached at {}: {why}", socket.display())]
    NotReachable {
        /// The control socket.
        socket: PathBuf,
        /// What failed.
        why: String,
    },
    /// The daemon did not answer in time.
    #[error("the daemon was asked for {call} and gave no answer: {seconds} seconds were over")]
    TimedOut {
        /// `POST /v1/...`.
        call: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The daemon refused.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// What answers is no Holdfast daemon, or one that this client does not understand.
    #[error("the answer to {call} was not understood: {why}")]
    NotUnderstood {
        /// `POST /v1/...`.
        call: String,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// The exit status of a command that ends with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotReachable { .. } => EXIT_NOT_REACHABLE,
            Self::TimedOut { .. } => EXIT_TIMED_OUT,
            Self::Refused(error) => error.code.exit_code(),
            Self::NotUnderstood { .. } => EXIT_REFUSED,
        }
    }

    /// The same as an [`ApiError`], for printing.
    #[must_use]
    pub fn to_api_error(&self) -> ApiError {
        let message = self.to_string();
        match self {
            Self::NotReachable { why, .. } if why.contains("permission denied") => {
                ApiError::new(ErrorCode::NotReachable, message)
                    .hint("only root and the user of the daemon may call it; try again with sudo")
            }
            Self::NotReachable { .. } => ApiError::new(ErrorCode::NotReachable, message).hint(
                "is it running? start it with `holdfast daemon`, or name its socket with --socket",
            ),
            Self::TimedOut { .. } => ApiError::new(ErrorCode::TimedOut, message)
                .hint("it may still be done; `holdfast status` shows it, --timeout waits longer"),
            Self::Refused(error) => error.clone(),
            Self::NotUnderstood { .. } => ApiError::new(ErrorCode::Internal, message)
                .hint("are `holdfast` and its daemon of the same version?"),
        }
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        error.to_api_error()
    }
}

/// A client. Every call makes its own connection, so that a daemon may restart between two calls.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// A client of the daemon that listens at `socket`, waiting 60 seconds for each answer.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: Duration::from_secs(60) }
    }

    /// The same with another limit.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How long an answer may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// `GET path`, the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, Bytes::new()).await
    }

    /// `GET path`, the answer as text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let body = self.call(Method::GET, path, Bytes::new()).await?;
        String::from_utf8(body.to_vec()).map_err(|why| not_understood(&Method::GET, path, &why))
    }

    /// `POST path` with a JSON body, the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(Method::POST, path, encode(&Method::POST, path, body)?).await
    }

    /// `POST path` with a JSON body, the answer as JSON; `told` hears of each phase as it begins.
    /// The limit of the client is for the whole.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_told<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        mut told: impl FnMut(&str),
    ) -> Result<T, ClientError> {
        let method = Method::POST;
        let body = encode(&method, path, body)?;
        let exchange = async {
            let response = self.send_for(method.clone(), path, body, phases::KIND).await?;
            let kind = response.headers().get(header::CONTENT_TYPE);
            if kind.is_none_or(|kind| kind.as_bytes() != phases::KIND.as_bytes()) {
                let status = response.status();
                return Ok((status, self.read(&method, path, response).await?.to_vec()));
            }
            self.read_lines(&method, path, response.into_body(), &mut told).await
        };
        let (status, answer) = self.in_time(&method, path, exchange).await?;
        if !status.is_success() {
            return Err(refusal(&method, path, status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|why| not_understood(&method, path, &why))
    }

    /// Reads lines until the last one; what it says.
    async fn read_lines(
        &self,
        method: &Method,
        path: &str,
        mut body: Incoming,
        told: &mut impl FnMut(&str),
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|why| self.not_reachable(&format!("it closed the connection: {why}")))?;
            read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if read.len() > MAX_ANSWER {
                return Err(not_understood(method, path, &"the answer is too long"));
            }
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = read.drain(..=end).collect();
                let line = serde_json::from_slice(&line);
                match line.map_err(|why| not_understood(method, path, &why))? {
                    phases::Line::Phase(text) => told(&text),
                    phases::Line::End { status, answer } => {
                        let status = StatusCode::from_u16(status)
                            .map_err(|why| not_understood(method, path, &why))?;
                        return Ok((status, answer.to_string().into_bytes()));
                    }
                }
            }
        }
        Err(self.not_reachable("it closed the connection before it had answered"))
    }

    /// `PUT path` with a JSON body, the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.json(Method::PUT, path, encode(&Method::PUT, path, body)?).await
    }

    /// The stream of events. The limit of the client holds until the stream begins; reading from it
    /// has none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self) -> Result<EventStream, ClientError> {
        self.events_at(routes::EVENTS).await
    }

    /// As [`Self::events`], with what came after the event with this number in place of the dump,
    /// where that is known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events_since(&self, seq: u64) -> Result<EventStream, ClientError> {
        self.events_at(&format!("{}?since={seq}", routes::EVENTS)).await
    }

    async fn events_at(&self, path: &str) -> Result<EventStream, ClientError> {
        let start = async {
            let response = self.send(Method::GET, path, Bytes::new()).await?;
            if response.status() != StatusCode::OK {
                let status = response.status();
                let body = self.read(&Method::GET, path, response).await?;
                return Err(refusal(&Method::GET, path, status, &body));
            }
            Ok(response.into_body())
        };
        let body = self.in_time(&Method::GET, path, start).await?;
        Ok(EventStream {
            socket: self.socket.clone(),
            body,
            parser: EventParser::default(),
            ready: VecDeque::new(),
        })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = self.call(method.clone(), path, body).await?;
        serde_json::from_slice(&answer).map_err(|why| not_understood(&method, path, &why))
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let exchange = async {
            let response = self.send(method.clone(), path, body).await?;
            let status = response.status();
            let answer = self.read(&method, path, response).await?;
            if status.is_success() {
                Ok(answer)
            } else {
                Err(refusal(&method, path, status, &answer))
            }
        };
        self.in_time(&method, path, exchange).await
    }

    async fn in_time<T>(
        &self,
        method: &Method,
        path: &str,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| {
            Err(ClientError::TimedOut {
                call: format!("{method} {path}"),
                seconds: self.timeout.as_secs_f64().ceil() as u64,
            })
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        self.send_for(method, path, body, "application/json").await
    }

    async fn send_for(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        kind: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket));
        let stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(why)) => return Err(self.not_reachable(&plain(&why))),
            Err(_) => return Err(self.not_reachable("it does not accept the connection")),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|why| self.not_reachable(&why.to_string()))?;
        // The connection ends with the request or the body that uses it, whichever lives longer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, kind)
            .body(Full::new(body))
            .map_err(|why| not_understood(&method, path, &why))?;
        sender
            .send_request(request)
            .await
            .map_err(|_| self.not_reachable("it closed the connection without an answer"))
    }

    async fn read(
        &self,
        method: &Method,
        path: &str,
        response: Response<Incoming>,
    ) -> Result<Bytes, ClientError> {
        match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(why) if why.is::<http_body_util::LengthLimitError>() => {
                Err(not_understood(method, path, &"the answer is too long"))
            }
            Err(why) => Err(self.not_reachable(&format!("it closed the connection: {why}"))),
        }
    }

    fn not_reachable(&self, why: &str) -> ClientError {
        ClientError::NotReachable { socket: self.socket.clone(), why: why.to_owned() }
    }
}

/// What an I/O error says, without the number that Rust adds.
fn plain(why: &std::io::Error) -> String {
    let text = why.to_string();
    without_numbers(&text).to_lowercase()
}

fn encode<B: Serialize>(method: &Method, path: &str, body: &B) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|why| not_understood(method, path, &why))
}

fn not_understood(method: &Method, path: &str, why: &dyn std::fmt::Display) -> ClientError {
    ClientError::NotUnderstood { call: format!("{method} {path}"), why: why.to_string() }
}

/// What a daemon refused. A status without the body of a refusal is not from a Holdfast daemon.
fn refusal(method: &Method, path: &str, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => ClientError::Refused(body.error),
        Err(_) => not_understood(method, path, &format_args!("HTTP status {status}")),
    }
}

/// The events as they come.
#[derive(Debug)]
pub struct EventStream {
    socket: PathBuf,
    body: Incoming,
    parser: EventParser,
    ready: VecDeque<Event>,
}

impl EventStream {
    /// The next event; `None` when the daemon ended the stream. May be dropped while it waits
    /// without losing an event.
    ///
    /// # Errors
    /// [`ClientError::NotReachable`] when the connection broke, [`ClientError::NotUnderstood`].
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let frame = match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => frame,
                Some(Err(why)) => {
                    return Err(ClientError::NotReachable {
                        socket: self.socket.clone(),
                        why: format!("it closed the stream of events: {why}"),
                    });
                }
            };
            if let Some(data) = frame.data_ref() {
                self.parser
                    .feed(data, &mut self.ready)
                    .map_err(|why| not_understood(&Method::GET, routes::EVENTS, &why))?;
            }
        }
    }
}

/// Takes server-sent events apart. Comments and the fields other than `data` are passed over: the
/// event in `data` has it all.
#[derive(Debug, Default)]
struct EventParser {
    line: Vec<u8>,
    data: Vec<u8>,
}

impl EventParser {
    fn feed(&mut self, bytes: &[u8], ready: &mut VecDeque<Event>) -> Result<(), String> {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() + self.data.len() >= MAX_EVENT {
                    return Err("an event is too long".into());
                }
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if let Some(rest) = line.strip_prefix(b"data:") {
                self.data.extend_from_slice(rest.strip_prefix(b" ").unwrap_or(rest));
            } else if line.is_empty() && !self.data.is_empty() {
                let data = std::mem::take(&mut self.data);
                ready.push_back(serde_json::from_slice(&data).map_err(|why| why.to_string())?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
