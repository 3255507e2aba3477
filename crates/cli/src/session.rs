//! Calls of one command to the daemon.

use crate::args::{DEFAULT_SOCKET, Global};
use crate::output::{Ui, say};
use holdfast_api::request::Done;
use holdfast_api::{ApiError, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::IsTerminal as _;
use std::time::Duration;

/// How long an answer may take when nobody says.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long who gives up by himself may take to say so, and to put back what was begun.
const GRACE: Duration = Duration::from_secs(15);

/// The client and the way to print of one command.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) ui: Ui,
}

impl Session {
    /// As the global options say.
    pub(crate) fn new(ui: &Ui, global: &Global) -> Self {
        let socket = global.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
        let timeout = global.timeout.unwrap_or(DEFAULT_TIMEOUT);
        Self { client: Client::new(socket).with_timeout(timeout), ui: ui.clone() }
    }

    /// The same for a command that ends in this time by itself, if there is a limit.
    pub(crate) fn with_grace(&self, limit: Option<Duration>) -> Self {
        let limit = limit.unwrap_or(DEFAULT_TIMEOUT);
        Self { client: self.client.clone().with_timeout(limit + GRACE), ui: self.ui.clone() }
    }

    /// `GET`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.ui.trace(&format!("> GET {path}"));
        Ok(self.client.get(path).await?)
    }

    /// `POST`.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ApiError> {
        self.ui.trace(&format!("> POST {path}"));
        Ok(self.client.post(path, body).await?)
    }

    /// `PUT`.
    pub(crate) async fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ApiError> {
        self.ui.trace(&format!("> PUT {path}"));
        Ok(self.client.put(path, body).await?)
    }

    /// `POST` of a command that says what it is about to do, which is printed on standard output;
    /// with `--json` it is only collected. Into a file or a pipe all is printed when it is done: a
    /// command that is refused prints nothing but its error.
    pub(crate) async fn post_told<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<(T, Vec<String>), ApiError> {
        self.ui.trace(&format!("> POST {path}"));
        let mut phases: Vec<String> = Vec::new();
        let at_once = std::io::stdout().is_terminal();
        let told = |phase: &str| {
            phases.push(phase.to_owned());
            if at_once {
                self.ui.phase(phase);
            }
        };
        let answer = self.client.post_told(path, body, told).await?;
        if !at_once {
            phases.iter().for_each(|phase| self.ui.phase(phase));
        }
        Ok((answer, phases))
    }

    /// `POST` of a command that only does something, and what it did.
    pub(crate) async fn act<B: Serialize>(&self, path: &str, body: &B) -> Result<(), ApiError> {
        let (done, phases): (Done, _) = self.post_told(path, body).await?;
        if self.ui.json {
            self.ui.json(&with_phases(&done, &phases));
        } else {
            self.done(&done);
        }
        Ok(())
    }

    /// Prints what was done.
    pub(crate) fn done(&self, done: &Done) {
        if self.ui.json {
            self.ui.json(done);
        } else if !self.ui.quiet && !done.message.is_empty() {
            self.ui.line(&done.message);
        }
    }

    /// Prints the path of a block device that was made, and on standard error by which way.
    pub(crate) fn device<T: Serialize>(&self, answer: &T, path: &str, reason: Option<&str>) {
        if let Some(reason) = reason.filter(|_| !self.ui.json && !self.ui.quiet) {
            say(&format!("{path} is made by {reason}\n"));
        }
        self.result(answer, path);
    }

    /// Prints the one thing that was asked for, also with `-q`.
    pub(crate) fn result<T: Serialize>(&self, answer: &T, text: &str) {
        if self.ui.json {
            self.ui.json(answer);
        } else {
            self.ui.line(text);
        }
    }
}

/// An answer with the phases of the command in `phases`, if it had any.
pub(crate) fn with_phases<T: Serialize>(answer: &T, phases: &[String]) -> Value {
    let mut value = serde_json::to_value(answer).expect("the API's types have string keys");
    if !phases.is_empty() {
        value["phases"] = phases.into();
    }
    value
}
