//! `events`.

use crate::args::Events;
use crate::output::{Ui, say};
use crate::session::Session;
use holdfast_api::{ApiError, ClientError, ErrorCode, Event, EventKind, EventStream, routes};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::future::pending;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long it waits between two attempts to reach a daemon that went away: doubled from one to the
/// other.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Prints the dump, or what came after an event, and with `--follow` what happens after that.
pub(crate) async fn run(
    session: &Session,
    args: &Events,
    patience: Option<Duration>,
) -> Result<(), ApiError> {
    let mut reader = Reader { session, seq: args.since };
    if !args.follow {
        let mut events = reader.open().await?;
        return match reader.print_until_now(&mut events).await? {
            End::UpToDate => Ok(()),
            End::Closed => Err(session_ended(session).into()),
        };
    }
    tokio::select! {
        ended = follow(&mut reader, patience) => ended,
        // Whoever reads this has seen enough, as `head` does. Nothing more would come through.
        () = nobody_reads() => Ok(()),
    }
}

/// How reading what was there came to an end.
enum End {
    /// All of it was read.
    UpToDate,
    /// The daemon ended the stream.
    Closed,
}

/// Who knows what it has printed.
struct Reader<'a> {
    session: &'a Session,
    /// The number of the last event that was printed.
    seq: Option<u64>,
}

impl Reader<'_> {
    async fn open(&self) -> Result<EventStream, ApiError> {
        let client = &self.session.client;
        self.session.ui.trace(&format!("> GET {}", routes::EVENTS));
        Ok(match self.seq {
            Some(seq) => client.events_since(seq).await?,
            None => client.events().await?,
        })
    }

    /// Prints what was there when the stream began, up to the event that says so.
    async fn print_until_now(&mut self, events: &mut EventStream) -> Result<End, ApiError> {
        let limit = self.session.client.timeout();
        loop {
            let next = tokio::time::timeout(limit, events.next());
            let Some(event) = next.await.map_err(|_| too_slow(limit))?? else {
                return Ok(End::Closed);
            };
            self.print(&event);
            if event.is_end_of_dump() {
                return Ok(End::UpToDate);
            }
        }
    }

    fn print(&mut self, event: &Event) {
        print(&self.session.ui, event);
        // A dump is known when all of it is: one that breaks off is read again.
        let in_dump = matches!(event.kind, EventKind::Exists | EventKind::Missed);
        if !in_dump || event.is_end_of_dump() {
            self.seq = Some(event.seq);
        }
    }

    /// Prints what happens until the stream ends; why it did.
    async fn print_on(&mut self, events: &mut EventStream) -> ApiError {
        loop {
            match events.next().await {
                Ok(Some(event)) => self.print(&event),
                Ok(None) => return session_ended(self.session).into(),
                Err(error) => return error.into(),
            }
        }
    }
}

/// Prints what happens for ever. When the daemon goes away it is waited for, and what happened meanwhile
/// is printed, or that it is not known.
async fn follow(reader: &mut Reader<'_>, patience: Option<Duration>) -> Result<(), ApiError> {
    // The first time must succeed: a mistyped socket is not worth waiting for.
    let mut events = reader.open().await?;
    loop {
        let error = match reader.print_until_now(&mut events).await {
            Ok(End::UpToDate) => reader.print_on(&mut events).await,
            Ok(End::Closed) => session_ended(reader.session).into(),
            Err(error) => error,
        };
        if error.code != ErrorCode::NotReachable {
            return Err(error);
        }
        let ui = &reader.session.ui;
        if !ui.quiet && !ui.json {
            say("the daemon has ended the stream of events; waiting for it\n");
        }
        events = reopen(reader, patience).await?;
    }
}

/// Reaches the daemon again, however long that takes, or until `patience` is over.
async fn reopen(reader: &Reader<'_>, patience: Option<Duration>) -> Result<EventStream, ApiError> {
    let since = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match reader.open().await {
            Ok(events) => return Ok(events),
            // What else is wrong may be over when the daemon has started.
            Err(error) if patience.is_some_and(|patience| since.elapsed() >= patience) => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
}

fn session_ended(session: &Session) -> ClientError {
    let socket = session.client.socket().to_owned();
    ClientError::NotReachable { socket, why: "it ended the stream of events".to_owned() }
}

/// Ends when standard output is a pipe or socket whose other end is gone; never for anything else.
async fn nobody_reads() {
    let (gone, told) = oneshot::channel();
    // It waits as long as the process lives.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        // Nothing is asked for: errors are told always.
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut watched, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        if watched[0].revents().contains(PollFlags::ERR) {
            // The command may be at its end already.
            let _ = gone.send(());
        }
    });
    if told.await.is_err() {
        pending::<()>().await;
    }
}

fn too_slow(limit: std::time::Duration) -> ApiError {
    let seconds = limit.as_secs_f64().ceil();
    ApiError::new(
        ErrorCode::TimedOut,
        format!("the dump of events was given up: {seconds} seconds were over"),
    )
}

fn print(ui: &Ui, event: &Event) {
    if ui.json {
        ui.json_line(event);
    } else if ui.verbose {
        ui.line(&one_line(&format!("{} {event}", time(event.time_unix_ms))));
    } else {
        ui.line(&one_line(&event.to_string()));
    }
}

/// The text without signs that would break its line, or do things to a terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

pub(crate) fn time(unix_ms: u64) -> String {
    let stamp =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    stamp.map_or_else(|| "-".to_owned(), |stamp| format!("{stamp:.3}"))
}

#[cfg(test)]
mod tests {
    use super::{one_line, time};

    #[test]
    fn an_event_is_a_line_whatever_is_in_it() {
        let text = "exists resource name=r0 disk=/a\nb\u{1b}[2Jü";
        assert_eq!(one_line(text), "exists resource name=r0 disk=/a\\nb\\u{1b}[2Jü");
    }

    #[test]
    fn times_have_milliseconds_and_never_fail() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(u64::MAX), "-");
    }
}
