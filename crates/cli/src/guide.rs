//! Tests of the documentation: what it tells people to type is what the command understands, and each
//! command has its page with its real options. `cargo xtask guide` writes the parts of the pages that
//! are made from the grammar; `tests/blackbox/guide.rs` runs the commands.

mod pages;

use crate::args::Cli;
use clap::{CommandFactory, FromArgMatches};
use holdfast_testkit::guide::{self, Note, Page, command_lines, simple_commands, without_comment};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this crate lies two levels below the root").to_path_buf()
}

fn documentation() -> Vec<Page> {
    guide::pages(&root()).expect("the documentation can be read")
}

/// Whether the command line is one of this command, without running it. One that `names` a command in a
/// sentence may leave out what the command needs.
fn understood(words: &[String], names: bool) -> Result<(), String> {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
        MissingRequiredArgument,
    };
    let sentence = |error: &clap::Error| {
        let text = error.to_string();
        let cut_off = matches!(
            error.kind(),
            MissingRequiredArgument | DisplayHelpOnMissingArgumentOrSubcommand
        ) || text.contains("value is required");
        if matches!(error.kind(), DisplayHelp | DisplayVersion) || (names && cut_off) {
            return Ok(());
        }
        Err(text.lines().next().unwrap_or_default().to_owned())
    };
    let matches = match Cli::command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => return sentence(&error),
    };
    Cli::from_arg_matches(&matches).map(drop).or_else(|error| sentence(&error))
}

/// What is wrong with the commands in a line of a script, or in a sentence.
fn check_line(line: &str, names: bool) -> Result<(), String> {
    for words in simple_commands(line)? {
        if words.first().is_some_and(|program| program == "holdfast") {
            understood(&words, names).map_err(|why| format!("`{}`: {why}", words.join(" ")))?;
        }
    }
    Ok(())
}

/// The commands that a synopsis in a sentence stands for: with and without what is in brackets, and
/// with each of several words that have bars between them.
fn meant(synopsis: &str) -> Vec<String> {
    let synopsis = synopsis.replace(" ...", "").replace("...", "");
    if let Some((before, rest)) = synopsis.split_once('[')
        && let Some((inner, after)) = rest.split_once(']')
    {
        let with = format!("{before}{inner}{after}");
        return [with, format!("{before}{after}")].iter().flat_map(|one| meant(one)).collect();
    }
    let Some(word) = synopsis.split(' ').find(|word| word.len() > 1 && word.contains('|')) else {
        return vec![synopsis];
    };
    let each = word.split('|').map(|one| synopsis.replacen(word, one, 1));
    each.flat_map(|one| meant(&one)).collect()
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "put these right:\n{}", faults.join("\n"));
}

#[test]
fn every_command_in_the_documentation_is_one() {
    let (mut faults, mut checked) = (Vec::new(), 0);
    for page in documentation() {
        let mut check = |number: usize, line: &str, names: bool| {
            checked += usize::from(line.contains("holdfast "));
            if let Err(why) = check_line(line, names) {
                faults.push(format!("{}:{number}: {why}", page.path));
            }
        };
        for block in page.blocks() {
            for (number, line) in command_lines(&block.lines) {
                let number = block.line + 1 + number;
                match block.language.as_str() {
                    "sh" => check(number, &line, false),
                    "console" => {
                        if let Some((_, line)) = line.split_once("$ ") {
                            check(number, line, false);
                        }
                    }
                    _ => {}
                }
            }
        }
        for (number, code) in page.inline_code() {
            if code.starts_with("holdfast ") && !code.ends_with("(1)") {
                meant(&code).iter().for_each(|line| check(number, line, true));
            }
        }
    }
    assert_none(&faults);
    assert!(checked > 200, "only {checked} lines have commands");
}

#[test]
fn every_block_says_what_it_is_and_who_tests_it() {
    let (mut faults, mut run, mut elsewhere) = (Vec::new(), 0, Vec::new());
    for page in documentation() {
        for block in page.blocks() {
            let place = format!("{}:{}", page.path, block.line);
            if block.language.is_empty() {
                let what = "a block says what it is: ```sh, ```console (with output), or ```text";
                faults.push(format!("{place}: {what}"));
            }
            if !block.has_commands() {
                continue;
            }
            match block.parsed_note() {
                Ok(Note::Run { .. }) => run += 1,
                Ok(Note::Lab(script)) if root().join("vmlab").join(&script).is_file() => {
                    elsewhere.push(format!("{place}: vmlab/{script} runs it"));
                }
                Ok(Note::Lab(script)) => faults.push(format!("{place}: no vmlab/{script}")),
                Ok(Note::No(why)) => elsewhere.push(format!("{place}: {why}")),
                Err(why) => faults.push(format!("{place}: {why}")),
            }
        }
        for (index, line) in page.text.lines().enumerate() {
            if line.starts_with("    holdfast ") && !within_block(&page, index + 1) {
                faults.push(format!("{}:{}: put it between fences", page.path, index + 1));
            }
        }
    }
    println!("{run} blocks are run, {} are not:\n{}", elsewhere.len(), elsewhere.join("\n"));
    assert_none(&faults);
    assert!(run > elsewhere.len(), "most blocks are run: {run}, not {}", elsewhere.len());
}

fn within_block(page: &Page, number: usize) -> bool {
    let blocks = page.blocks();
    blocks.iter().any(|block| (block.line..=block.line + block.lines.len()).contains(&number))
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for page in documentation() {
        let dir = root().join(&page.path);
        let dir = dir.parent().expect("a page is in a directory");
        for (index, line) in page.text.lines().enumerate() {
            for rest in line.split("](").skip(1) {
                let target = rest.split(')').next().unwrap_or_default();
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                if file.contains("://") {
                    continue;
                }
                let to = if file.is_empty() { root().join(&page.path) } else { dir.join(file) };
                let text = std::fs::read_to_string(&to).unwrap_or_default();
                let known = anchor.is_empty() || text.lines().any(|line| anchor_of(line) == anchor);
                if !to.exists() || !known {
                    faults.push(format!("{}:{}: nothing at {target}", page.path, index + 1));
                }
            }
        }
    }
    assert_none(&faults);
}

/// How links name a heading.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn what_a_synopsis_stands_for() {
    assert_eq!(meant("a b"), ["a b"]);
    assert_eq!(meant("a [--b C] d ..."), ["a --b C d", "a  d"]);
    assert_eq!(meant("a b|c"), ["a b", "a c"]);
}

#[test]
fn a_comment_is_no_part_of_a_command() {
    for (line, in_script, in_sentence) in [
        ("holdfast status # --nonsense", true, true),
        ("holdfast status --nonsense", false, false),
        ("ls && $(holdfast nonsense)", false, false),
        ("holdfast --help", true, true),
        ("holdfast wait", false, true),
        ("holdfast join db --disk", false, true),
    ] {
        assert_eq!(check_line(line, false).is_ok(), in_script, "{line}");
        assert_eq!(check_line(line, true).is_ok(), in_sentence, "{line}");
    }
    assert_eq!(without_comment("holdfast status # x").0, "holdfast status");
}
