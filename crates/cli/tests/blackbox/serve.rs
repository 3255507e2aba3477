//! `holdfast serve` with the clients of others.

mod bounds;
mod clients;
mod ends;
mod faults;
mod layouts;
mod mirror;
mod refusals;
pub(crate) mod tls;

use crate::{SOON, binary};
use holdfast_testkit::Output;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

/// The python that has libnbd.
const PYTHON: &str = "/usr/bin/python3";

/// A running server. Killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    events: Receiver<Value>,
    errors: Option<JoinHandle<String>>,
    ready: Value,
}

impl Server {
    /// Starts `holdfast serve` in a directory and waits until it is ready.
    pub(crate) fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["serve", "--json"]).args(arguments).current_dir(directory);
        Self::of(&mut command)
    }

    /// Starts a command that ends up as `holdfast serve --json`.
    pub(crate) fn of(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server starts");
        let (sender, events) = channel();
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("each line is a JSON object");
                // The test may have seen enough.
                let _ = sender.send(event);
            }
        });
        let mut stderr = child.stderr.take().expect("it is piped");
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            // What is not text is shown as far as it is.
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut server = Self { child, events, errors: Some(errors), ready: Value::Null };
        match server.events.recv_timeout(SOON) {
            Ok(ready) => server.ready = ready,
            Err(_) => {
                server.signal(Signal::KILL);
                panic!("the server is not ready: {}", server.wait());
            }
        }
        assert_eq!(server.ready["event"], "ready");
        server
    }

    /// The first URI of an export.
    fn uri_of(&self, export: usize) -> String {
        let uri = self.ready["exports"][export]["uris"][0].as_str();
        uri.expect("an export has a URI").to_owned()
    }

    /// The first URI of the first export.
    fn uri(&self) -> String {
        self.uri_of(0)
    }

    /// The address of its first TCP socket.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        let uri = self.uri();
        let (_, rest) = uri.split_once("://").expect("it is a URI");
        rest.split('/').next().and_then(|place| place.parse().ok()).expect("it is a TCP address")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for an event with this name.
    fn event(&self, name: &str) -> Value {
        loop {
            let event = self.events.recv_timeout(SOON);
            let event = event.unwrap_or_else(|_| panic!("there is no event {name}"));
            if event["event"] == name {
                return event;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("it is a process"), signal).expect("it is our child");
    }

    /// Waits until it has ended by itself.
    fn wait(&mut self) -> Output {
        let mut status = None;
        holdfast_testkit::wait_until(SOON, "the server ends", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        let status = status.expect("it was waited for");
        let errors = self.errors.take().map(JoinHandle::join);
        Output {
            command: "holdfast serve".into(),
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::new(),
            stderr: errors.and_then(Result::ok).unwrap_or_default(),
        }
    }

    /// Ends it in good order; what it said of itself at the end.
    pub(crate) fn stop(mut self) -> Value {
        self.signal(Signal::TERM);
        let output = self.wait();
        assert_eq!(output.status, 0, "{output}");
        self.event("stopped")
    }

    /// Ends it at once.
    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Most have ended by now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether all of these programs can be used; says which cannot.
pub(crate) fn have(tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin".into(), "/sbin".into()];
    let places: Vec<_> = std::env::split_paths(&path).chain(sbin).collect();
    let missing = tools.iter().find(|tool| !places.iter().any(|dir| dir.join(tool).is_file()));
    if let Some(tool) = missing {
        println!("skipped: {tool} is not installed");
    }
    missing.is_none()
}

/// Whether python has libnbd; says so when not.
pub(crate) fn have_libnbd() -> bool {
    let found = Command::new(PYTHON).args(["-c", "import nbd"]).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("skipped: python3-libnbd is not installed");
    }
    found
}

/// Runs a script for libnbd, with `sys.argv[1:]`.
pub(crate) fn nbdsh(script: &str, arguments: &[&str]) -> String {
    let script = format!("import nbd, os, sys\n{script}");
    holdfast_testkit::run_ok(Command::new(PYTHON).args(["-c", &script]).args(arguments))
}
