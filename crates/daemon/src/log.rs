//! The log on standard error, which must never hold anything up: a thread of its own writes it.
//!
//! A reader that is too slow, a pipe that nobody reads and a full disk cost lines, which are counted,
//! and nothing else.

use holdfast_api::error::without_numbers;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// So many lines may wait to be written.
const LINES: usize = 4096;

enum Entry {
    Line(Vec<u8>),
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
}

/// The way to the log. Each write is one line.
#[derive(Clone)]
pub(crate) struct Log {
    entries: SyncSender<Entry>,
    /// Lines that did not find room since the last one that did.
    lost: Arc<AtomicU64>,
}

impl Log {
    /// Starts the thread that writes to standard error.
    pub(crate) fn start() -> Self {
        Self::start_with(io::stderr())
    }

    fn start_with(out: impl Write + Send + 'static) -> Self {
        let (entries, received) = sync_channel(LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let log = Self { entries, lost: lost.clone() };
        // Without the thread there is no log, and the lines are counted as lost.
        let _ = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&received, &lost, out));
        log
    }

    /// Waits until all that was logged is written, at most so long.
    pub(crate) fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let (written, answer) = sync_channel(1);
        let mut entry = Entry::Flush(written);
        while let Err(TrySendError::Full(back)) = self.entries.try_send(entry) {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            entry = back;
        }
        let _ = answer.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write_all(entries: &Receiver<Entry>, lost: &AtomicU64, mut out: impl Write) {
    while let Ok(entry) = entries.recv() {
        let lost = lost.swap(0, Ordering::Relaxed);
        // That nobody reads it is no reason to stop.
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines of the log are missing here: they came too fast");
        }
        match entry {
            Entry::Line(line) => {
                let _ = match std::str::from_utf8(&line) {
                    Ok(text) => out.write_all(without_numbers(text).as_bytes()),
                    Err(_) => out.write_all(&line),
                };
            }
            Entry::Flush(written) => {
                let _ = out.flush();
                let _ = written.try_send(());
            }
        }
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Writes when it may, and keeps what was written.
    struct Gate(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_says_what_is_missing() {
        let (open, closed) = sync_channel(0);
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut log = Log::start_with(Gate(closed, written.clone()));
        for line in 0..LINES + 1000 {
            log.write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        drop(open);
        log.flush(Duration::from_secs(10));
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("line 0\n") || text.contains("line 0\n"), "{text}");
        assert!(text.contains("lines of the log are missing here"), "{text}");
        log.write_all(b"the last\n").unwrap();
        log.flush(Duration::from_secs(10));
        assert!(written.lock().unwrap().ends_with(b"the last\n"));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut log = Log::start_with(Full);
        log.write_all(b"lost\n").unwrap();
        log.flush(Duration::from_secs(10));
        log.write_all(b"lost too\n").unwrap();
    }
}
