//! `set` and `get`.

use crate::args::{Get, Set};
use crate::output::{Style, width};
use crate::session::Session;
use crate::table::{Table, cell, plain};
use holdfast_api::request::{Done, OptionValue, SetOptions};
use holdfast_api::{ApiError, options, routes};

/// Sets options, all or none.
pub(crate) async fn set(session: &Session, args: Set) -> Result<(), ApiError> {
    let body = SetOptions { set: args.set.into_iter().collect(), peer: args.peer };
    let path = routes::of(routes::RESOURCE_OPTIONS, &args.name);
    let done: Done = session.put(&path, &body).await?;
    session.done(&done);
    Ok(())
}

/// Shows one option or all.
pub(crate) async fn get(session: &Session, args: &Get) -> Result<(), ApiError> {
    let peer = args.peer.as_deref();
    let values: Vec<OptionValue> = match &args.key {
        Some(key) => {
            let path = routes::with_peer(&routes::option(&args.name, key), peer);
            let value: OptionValue = session.get(&path).await?;
            if session.ui.json {
                session.ui.json(&value);
                return Ok(());
            }
            if session.ui.quiet {
                session.ui.line(&value.value);
                return Ok(());
            }
            vec![value]
        }
        None => {
            let path = routes::of(routes::RESOURCE_OPTIONS, &args.name);
            session.get(&routes::with_peer(&path, peer)).await?
        }
    };
    if session.ui.json {
        session.ui.json(&values);
    } else {
        session.ui.text(&render(&values, width().unwrap_or(100), session.ui.color));
    }
    Ok(())
}

/// A table with the description of each option below it.
fn render(values: &[OptionValue], width: usize, color: bool) -> String {
    let mut table = Table::new(0, &["OPTION", "VALUE", "DEFAULT", "RANGE", "SCOPE"]);
    for value in values {
        let set = value.value != value.default;
        let shown = show(value, &value.value);
        table.row(vec![
            cell(&*value.name, Style::Bold),
            cell(shown, if set { Style::Warn } else { Style::Plain }),
            plain(show(value, &value.default)),
            plain(&*value.range),
            plain(&*value.scope),
        ]);
    }
    let lines = table.render(Some(width), color);
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        text.push_str(line);
        text.push('\n');
        if let Some(value) = at.checked_sub(1).and_then(|at| values.get(at)) {
            for part in wrap(&value.description, width.saturating_sub(4).max(20)) {
                text.push_str(&format!("    {}\n", Style::Dim.paint(&part, color)));
            }
        }
    }
    text
}

/// A canonical value with its unit.
fn show(value: &OptionValue, canonical: &str) -> String {
    options::find(&value.name).map_or_else(|| canonical.to_owned(), |spec| spec.show(canonical))
}

/// Breaks text at blanks into lines of at most `width` characters.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::options::OptionMap;

    #[test]
    fn the_table_has_value_default_range_and_description() {
        let set: OptionMap = [("timeout".to_owned(), "100".to_owned())].into();
        let values: Vec<OptionValue> = ["max-in-flight-bytes", "protocol", "timeout"]
            .into_iter()
            .map(|name| options::find(name).unwrap().describe(&set, None))
            .collect();
        let expected = "\
OPTION               VALUE   DEFAULT  RANGE           SCOPE
max-in-flight-bytes  64 MiB  64 MiB   1 MiB .. 4 GiB  resource
    how many bytes of requests may be under way at once; further requests wait
protocol             C       C        C               peer
    when a write is done: C, when it is on the peer's disk too
timeout              100 ds  60 ds    1 ds .. 600 ds  peer
    how long a peer may take to answer a request; after ko-count of them it is
    dropped
";
        assert_eq!(render(&values, 80, false), expected);
    }

    #[test]
    fn every_option_fits_into_80_columns() {
        let values: Vec<OptionValue> =
            options::OPTIONS.iter().map(|spec| spec.describe(&OptionMap::new(), None)).collect();
        for line in render(&values, 80, false).lines() {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(!line.contains('…'), "{line}");
        }
    }
}
