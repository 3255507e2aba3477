//! `events`.

use crate::args::Events;
use crate::output::Ui;
use crate::session::Session;
use holdfast_api::{ApiError, ClientError, ErrorCode, Event, routes};

/// Prints the dump, and with `--follow` what happens after it.
pub(crate) async fn run(session: &Session, args: &Events) -> Result<(), ApiError> {
    session.ui.trace(&format!("> GET {}", routes::EVENTS));
    let limit = session.client.timeout();
    let mut events = session.client.events().await?;
    let mut dumping = true;
    loop {
        let next = if dumping {
            tokio::time::timeout(limit, events.next()).await.map_err(|_| too_slow(limit))?
        } else {
            events.next().await
        };
        let Some(event) = next? else {
            let socket = session.client.socket().to_owned();
            let why = "it ended the stream of events".to_owned();
            return Err(ClientError::NotReachable { socket, why }.into());
        };
        print(&session.ui, &event);
        dumping &= !event.is_end_of_dump();
        if !dumping && !args.follow {
            return Ok(());
        }
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
        ui.line(&format!("{} {event}", time(event.time_unix_ms)));
    } else {
        ui.line(&event.to_string());
    }
}

pub(crate) fn time(unix_ms: u64) -> String {
    let stamp =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    stamp.map_or_else(|| "-".to_owned(), |stamp| format!("{stamp:.3}"))
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_have_milliseconds_and_never_fail() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(u64::MAX), "-");
    }
}
