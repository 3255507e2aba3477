//! Errors of the command line, in the form of all other errors.

use crate::args::ColorWhen;
use crate::output::{Ui, wants_color};
use clap::error::ErrorKind;
use holdfast_api::error::EXIT_USAGE;
use holdfast_api::{ApiError, ErrorCode};
use std::process::ExitCode;

/// How long a word may be that is shown as it is, and how much of a longer one is shown.
const MAX_WORD: usize = 200;
const SHOWN: usize = 80;
/// How much of one part of a message is shown.
const MAX_BLOCK: usize = 2000;

/// Prints help or version, or what is wrong.
pub(crate) fn report(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody reads the help any more when its pipe is closed.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // Arguments that could not be parsed cannot tell whether JSON is wanted.
    let words = || std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let json = words().any(|word| word == "--json");
    Ui::plain(json, wants_color(color(words()), &std::io::stderr())).error(&translate(error));
    ExitCode::from(EXIT_USAGE)
}

/// Colours as asked for on a command line that could not be parsed.
fn color(arguments: impl Iterator<Item = String>) -> ColorWhen {
    let mut arguments = arguments.skip_while(|word| !word.starts_with("--color"));
    let word = match arguments.next().as_deref().and_then(|word| word.split_once('=')) {
        Some((_, value)) => Some(value.to_owned()),
        None => arguments.next(),
    };
    match word.as_deref() {
        Some("always") => ColorWhen::Always,
        Some("never") => ColorWhen::Never,
        _ => ColorWhen::Auto,
    }
}

/// A word of a message as it is shown: of a long one its start, and the quote that closes it.
fn shortened(word: &str) -> String {
    if word.chars().count() <= MAX_WORD {
        return word.to_owned();
    }
    let start: String = word.chars().take(SHOWN).collect();
    let rest = word.trim_end_matches(['\'', '"', ':', ',']);
    format!("{start}...{}", &word[rest.len()..])
}

/// clap's message as one sentence, its advice as the hint.
fn translate(error: &clap::Error) -> ApiError {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let block = |block: &str| {
        let words = block.split_whitespace().map(shortened).collect::<Vec<_>>().join(" ");
        words.chars().take(MAX_BLOCK).collect::<String>()
    };
    let mut blocks = text.split("\n\n");
    let what = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "no command was given".to_owned()
        }
        _ => block(blocks.next().unwrap_or_default()),
    };
    // The dots of `<KEY=VALUE>...`, at the end, would look like those of a sentence.
    let what = what.trim_end_matches('.');
    let tip = blocks.find_map(|b| b.trim().strip_prefix("tip: ").map(block));
    let help = "`holdfast --help` and `holdfast COMMAND --help` show how it is written";
    let hint = tip.map_or_else(|| help.to_owned(), |tip| format!("{tip}; {help}"));
    ApiError::new(ErrorCode::Usage, format!("the command was not understood: {what}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::CommandFactory;

    fn message(line: &str) -> (String, String) {
        let words = std::iter::once("holdfast").chain(line.split_whitespace());
        let error = Cli::command().try_get_matches_from(words).unwrap_err();
        let error = translate(&error);
        assert_eq!(error.code, ErrorCode::Usage);
        assert!(!error.message.contains('\n'), "{}", error.message);
        (error.message, error.hint.unwrap())
    }

    #[test]
    fn every_error_is_one_sentence() {
        let cases = [
            ("", "no command was given"),
            ("cluster", "no command was given"),
            ("nope", "unrecognized subcommand 'nope'"),
            ("status --nope", "unexpected argument '--nope' found"),
            ("create", "the following required arguments were not provided: --disk <PATH> <NAME>"),
            ("join r0", "the following required arguments were not provided: --disk <PATH>"),
            (
                "up a/b",
                "invalid value 'a/b' for '<NAME>': the name \"a/b\" cannot be used: only letters, \
                 digits, '.', '_' and '-' are allowed",
            ),
            (
                "create r0 --disk /d --size 1X",
                "invalid value '1X' for '--size <SIZE>': \"1X\" is not a size: write a number of \
                 bytes, or one with K, M, G, T or P",
            ),
            (
                "wait r0 --for ready",
                "invalid value 'ready' for '--for <STATE>' [possible values: uptodate, connected, \
                 established, primary, secondary, synced, replayed, closed]",
            ),
            (
                "wait r0",
                "the following required arguments were not provided: <--for <STATE>|--while <STATE>>",
            ),
            ("set r0", "the following required arguments were not provided: <KEY=VALUE>"),
            ("-q -v status", "the argument '--quiet' cannot be used with '--verbose'"),
        ];
        for (line, expected) in cases {
            let (message, _) = message(line);
            assert_eq!(message, format!("the command was not understood: {expected}"), "{line}");
        }
    }

    #[test]
    fn a_long_word_is_shown_cut() {
        let long = "a".repeat(100_000);
        for line in [
            format!("status {long}"),
            format!("create {long} --disk /d"),
            format!("{long} x"),
            format!("create r0 --disk /d --size {long}"),
            format!("set r0 --{long}"),
        ] {
            let (message, hint) = message(&line);
            assert!(message.len() + hint.len() < 800, "{message} {hint}");
            assert!(message.contains(&format!("{}...", "a".repeat(70))), "{message}");
        }
        let (message, _) = message(&format!("status {long}"));
        assert!(message.contains("...' for '[NAME]': the name \"aaa"), "{message}");
    }

    #[test]
    fn the_colour_is_found_on_a_line_that_is_wrong() {
        let of = |line: &str| color(line.split(' ').map(str::to_owned));
        assert_eq!(of("nope --color never"), ColorWhen::Never);
        assert_eq!(of("--color=always nope"), ColorWhen::Always);
        assert_eq!(of("nope"), ColorWhen::Auto);
        assert_eq!(of("nope --color"), ColorWhen::Auto);
    }

    #[test]
    fn what_clap_suggests_is_in_the_hint() {
        assert!(message("statu").1.contains("'status'"));
        assert!(message("zzzzzz").1.starts_with("`holdfast --help`"));
    }
}
