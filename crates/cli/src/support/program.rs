//! Programs of the system, with limits of time and output.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Where programs are looked for: a shell of a plain user does not have all of it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program to its end or its limit; what it printed, at most `most` bytes of each of its two
/// outputs. It gets no input and an empty environment.
///
/// # Errors
/// Why there is no output: it is not installed, does not start, or took too long.
pub(super) fn run(
    program: &Path,
    arguments: &[&str],
    limit: Duration,
    most: u64,
) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "it is not installed".to_owned(),
        _ => format!("it does not start: {error}"),
    })?;
    let deadline = Instant::now() + limit;
    let out = child.stdout.take().map(|from| read_aside(from, most));
    let errors = child.stderr.take().map(|from| read_aside(from, most));
    let take = |from: Option<Receiver<Vec<u8>>>| {
        let left = deadline.saturating_duration_since(Instant::now());
        from.and_then(|from| from.recv_timeout(left).ok())
    };
    let (out, errors) = (take(out), take(errors));
    let status = end(&mut child, deadline);
    let (Some(mut out), Some(status)) = (out, status) else {
        return Err(format!("it took longer than {} s", limit.as_secs()));
    };
    let errors = errors.unwrap_or_default();
    if !errors.is_empty() {
        out.extend_from_slice(b"\n[on standard error]\n");
        out.extend_from_slice(&errors);
    }
    if !status.success() {
        out.extend_from_slice(format!("\n[it ended with {status}]\n").as_bytes());
    }
    Ok(out)
}

/// Reads to the end or the limit on a thread of its own; past the limit the program is left to
/// write into a closed pipe.
fn read_aside(from: impl Read + Send + 'static, most: u64) -> Receiver<Vec<u8>> {
    let (done, result) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error counts, and nobody may be waiting any more.
        let _ = from.take(most).read_to_end(&mut bytes);
        let _ = done.send(bytes);
    });
    result
}

/// Waits for the end of a program until the deadline, then kills it.
fn end(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            _ => {
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration, most: u64) -> Result<String, String> {
        let out = run(Path::new("sh"), &["-c", script], limit, most);
        out.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn programs_are_bounded() {
        let second = Duration::from_secs(20);
        assert_eq!(sh("echo a; echo $HOME", second, 100).unwrap(), "a\n\n");
        let failed = sh("echo a; echo b >&2; exit 3", second, 100).unwrap();
        assert!(failed.starts_with("a\n\n[on standard error]\nb\n\n[it ended with "), "{failed}");
        let long = sh("yes", second, 10).unwrap();
        assert!(long.starts_with("y\ny\ny\ny\ny\n"), "{long}");
        let slow = sh("sleep 100", Duration::from_millis(100), 10).unwrap_err();
        assert!(slow.starts_with("it took longer"), "{slow}");
        let absent = run(Path::new("no-such-program-of-holdfast"), &[], second, 10).unwrap_err();
        assert_eq!(absent, "it is not installed");
    }
}
