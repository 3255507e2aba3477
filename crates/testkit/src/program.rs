use std::fmt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// How long a program may run when nobody says.
const LIMIT: Duration = Duration::from_secs(60);

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Its exit status; 128 and the signal when a signal ended it.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// What it printed; panics when it did not end with 0.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{self}");
        self.stdout
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "`{command}` ended with {status}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

/// Runs a program to its end, at most a minute. It gets no input.
///
/// # Panics
/// When it does not start, or takes longer; it is killed then.
#[track_caller]
#[must_use]
pub fn run(command: &mut Command) -> Output {
    run_with_limit(command, LIMIT)
}

/// Runs a program that must succeed; what it printed.
///
/// # Panics
/// As [`run`], and when it does not end with 0.
#[track_caller]
pub fn run_ok(command: &mut Command) -> String {
    run(command).ok()
}

/// [`run`] with a limit of one's own.
///
/// # Panics
/// When it does not start, or takes longer; it is killed then.
#[track_caller]
#[must_use]
pub fn run_with_limit(command: &mut Command, limit: Duration) -> Output {
    use std::os::unix::process::ExitStatusExt;
    let line = shown(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|why| panic!("`{line}` does not start: {why}"));
    let pid = child.id();
    let (done, result) = channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = result.recv_timeout(limit) else {
        kill(pid, rustix::process::Signal::KILL);
        panic!("`{line}` has not ended after {limit:?}");
    };
    let output = output.unwrap_or_else(|why| panic!("`{line}` was lost: {why}"));
    let status = output.status;
    Output {
        command: line,
        status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Sends a signal to a child of this process that has not been waited for.
pub(crate) fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself just now.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_run_to_its_end_or_its_limit() {
        let output = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 7"]));
        assert_eq!((output.status, &*output.stdout, &*output.stderr), (7, "out\n", "err\n"));
        let output = run(Command::new("sh").args(["-c", "kill -9 $$"]));
        assert_eq!(output.status, 137);
        let slow = std::panic::catch_unwind(|| {
            run_with_limit(Command::new("sleep").arg("100"), Duration::from_millis(50))
        });
        assert!(slow.is_err());
    }
}
