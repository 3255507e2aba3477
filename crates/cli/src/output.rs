//! What the command prints, and how.

use crate::args::{ColorWhen, Global};
use holdfast_api::ApiError;
use holdfast_api::error::{ErrorBody, without_numbers};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// What a piece of text means; it decides its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Nothing special.
    Plain,
    /// A heading or what matters most.
    Bold,
    /// Of less importance.
    Dim,
    /// As it should be.
    Good,
    /// On the way, or to be looked at.
    Warn,
    /// Bad.
    Bad,
    /// At work.
    Busy,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "1;31",
            Self::Busy => "36",
        }
    }

    /// The text in its colour, when colours are on.
    pub(crate) fn paint(self, text: &str, color: bool) -> String {
        if color && self != Self::Plain {
            format!("\x1b[{}m{text}\x1b[0m", self.code())
        } else {
            text.to_owned()
        }
    }
}

/// Whether text to `stream` is coloured.
pub(crate) fn wants_color(when: ColorWhen, stream: &impl IsTerminal) -> bool {
    match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
            stream.is_terminal() && !refused && !dumb
        }
    }
}

/// How this run of the command prints.
#[derive(Clone, Debug)]
pub(crate) struct Ui {
    /// JSON instead of text.
    pub(crate) json: bool,
    /// Only what was asked for.
    pub(crate) quiet: bool,
    /// Also which calls are made.
    pub(crate) verbose: bool,
    /// Colours on stdout.
    pub(crate) color: bool,
    /// Colours on stderr.
    color_errors: bool,
}

impl Ui {
    /// As the options say.
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            color: wants_color(global.color, &io::stdout()),
            color_errors: wants_color(global.color, &io::stderr()),
        }
    }

    /// For a command line that could not be parsed.
    pub(crate) fn plain(json: bool, color_errors: bool) -> Self {
        Self { json, quiet: false, verbose: false, color: false, color_errors }
    }

    /// Prints an answer, and a newline.
    pub(crate) fn line(&self, text: &str) {
        self.text(&format!("{text}\n"));
    }

    /// Prints text as it is.
    pub(crate) fn text(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        if let Err(why) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // A reader that has seen enough, such as `head`, is no failure.
            let quiet_end = why.kind() == io::ErrorKind::BrokenPipe;
            if !quiet_end {
                let why = without_numbers(&why.to_string());
                say(&format!("error: the answer was not printed on standard output: {why}\n"));
            }
            std::process::exit(i32::from(!quiet_end));
        }
    }

    /// Prints a value as JSON, over several lines.
    pub(crate) fn json<T: Serialize>(&self, value: &T) {
        self.line(&serde_json::to_string_pretty(value).expect("the API's types have string keys"));
    }

    /// Prints a value as JSON in one line.
    pub(crate) fn json_line<T: Serialize>(&self, value: &T) {
        self.line(&serde_json::to_string(value).expect("the API's types have string keys"));
    }

    /// Says what goes on, with `-v`.
    pub(crate) fn trace(&self, text: &str) {
        if self.verbose {
            say(&format!("{}\n", Style::Dim.paint(text, self.color_errors)));
        }
    }

    /// Says which phase of a command begins.
    pub(crate) fn phase(&self, text: &str) {
        if !self.json && !self.quiet {
            // That nobody reads it does not end the command.
            let mut stdout = io::stdout().lock();
            let _ = writeln!(stdout, "... {text}").and_then(|()| stdout.flush());
        }
    }

    /// Prints why the command did not do what it should.
    pub(crate) fn error(&self, error: &ApiError) {
        let error = error.clone().plain();
        say(&error_text(&error, self.json, self.color_errors));
    }
}

/// Prints on standard error. That nobody can read it there changes no exit code.
pub(crate) fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// An error as it is printed: a sentence and a hint, or JSON.
fn error_text(error: &ApiError, json: bool, color: bool) -> String {
    if json {
        let body = ErrorBody { error: error.clone() };
        let text = serde_json::to_string(&body).expect("the API's types have string keys");
        return format!("{text}\n");
    }
    let mut text = format!("{} {}\n", Style::Bad.paint("error:", color), error.message);
    if let Some(hint) = &error.hint {
        text.push_str(&format!("{} {hint}\n", Style::Busy.paint("hint:", color)));
    }
    text
}

/// How many columns a table on stdout may take; `None` when it does not go to a terminal.
pub(crate) fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns >= 40)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::ErrorCode;

    #[test]
    fn errors_look_as_the_contract_says() {
        let error = ApiError::new(ErrorCode::SplitBrain, "r0 was not connected: split brain");
        assert_eq!(error_text(&error, false, false), "error: r0 was not connected: split brain\n");
        let error = error.hint("pick a victim");
        assert_eq!(
            error_text(&error, false, false),
            "error: r0 was not connected: split brain\nhint: pick a victim\n"
        );
        assert_eq!(
            error_text(&error, true, true),
            "{\"error\":{\"code\":\"SPLIT_BRAIN\",\"message\":\"r0 was not connected: split \
             brain\",\"hint\":\"pick a victim\"}}\n"
        );
        assert!(error_text(&error, false, true).starts_with("\x1b[1;31merror:\x1b[0m "));
    }
}
