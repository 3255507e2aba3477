//! `log ls`, `log rotate` and `log trim`.

use crate::args::Log;
use crate::events::time;
use crate::output::{Style, width};
use crate::session::Session;
use crate::table::{Table, cell, plain};
use holdfast_api::journal::JournalLog;
use holdfast_api::request::Empty;
use holdfast_api::{ApiError, routes};
use holdfast_units::format_size;

pub(crate) async fn run(session: &Session, command: Log) -> Result<(), ApiError> {
    match command {
        Log::Ls(of) => list(session, &of.name).await,
        Log::Rotate(of) => {
            session.act(&routes::of(routes::RESOURCE_LOG_ROTATE, &of.name), &Empty {}).await
        }
        Log::Trim(of) => {
            session.act(&routes::of(routes::RESOURCE_LOG_TRIM, &of.name), &Empty {}).await
        }
    }
}

async fn list(session: &Session, name: &str) -> Result<(), ApiError> {
    let log: JournalLog = session.get(&routes::of(routes::RESOURCE_LOG, name)).await?;
    if session.ui.json {
        session.ui.json(&log);
    } else {
        session.ui.text(&render(&log, width(), session.ui.color));
    }
    Ok(())
}

fn render(log: &JournalLog, width: Option<usize>, color: bool) -> String {
    let mut table =
        Table::new(0, &["SEGMENT", "ORIGIN", "BEGUN", "FROM", "TO", "SIZE", "ON THE DISK"]);
    for segment in &log.segments {
        let written_back = match segment.written_back {
            true => cell("all", Style::Good),
            false => cell("not all", Style::Busy),
        };
        table.row(vec![
            cell(segment.number.to_string(), Style::Bold),
            plain(&*segment.origin),
            plain(time(segment.began_unix_ms)),
            plain(segment.begin.to_string()),
            plain(segment.end.to_string()),
            plain(format_size(segment.bytes)),
            written_back,
        ]);
    }
    let mut text = format!(
        "{}; head {}, durable {}, on the disk {}, tail {}\n",
        log.mode, log.head, log.durable, log.written_back, log.tail
    );
    for line in table.render(width, color) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::render;
    use holdfast_api::journal::{JournalLog, JournalSegment};

    #[test]
    fn every_segment_is_a_line() {
        let segment = JournalSegment {
            number: 7,
            origin: "alpha".into(),
            end: 4096,
            ..JournalSegment::default()
        };
        let log = JournalLog {
            mode: "leading".into(),
            head: 4096,
            segments: vec![segment],
            ..JournalLog::default()
        };
        let text = render(&log, None, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("leading; head 4096"), "{text}");
        assert!(lines[2].starts_with('7') && lines[2].contains("alpha"), "{text}");
    }
}
