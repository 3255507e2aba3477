//! A page for each command.

use super::{assert_none, root};
use crate::args::Cli;
use clap::builder::{PossibleValue, StyledStr};
use clap::{Arg, Command, CommandFactory};
use holdfast_testkit::guide::Page;
use std::fmt::Write;
use std::path::PathBuf;

/// Set, it makes the test write what it would compare.
const WRITE: &str = "HOLDFAST_WRITE_GUIDE";
/// What is around the part that is made from the grammar.
const BEGIN: &str = "<!-- from the grammar; `cargo xtask guide` writes it -->";
const END: &str = "<!-- end of what is from the grammar -->";
/// What a person has written on each page.
const SECTIONS: [&str; 3] = ["## Examples", "## Exit status", "## See also"];

fn dir() -> PathBuf {
    root().join("docs/guide/commands")
}

/// The commands that have a page.
fn commands() -> Vec<Command> {
    let mut top = Cli::command().disable_help_subcommand(true);
    top.build();
    top.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect()
}

#[test]
fn every_command_has_its_page_with_its_options() {
    let write = std::env::var_os(WRITE).is_some();
    let mut faults = Vec::new();
    let mut expected = vec!["README.md".to_owned()];
    for command in commands() {
        let name = command.get_name().to_owned();
        expected.push(format!("{name}.md"));
        bring_in_line(&format!("{name}.md"), &grammar_of(&command), write, &mut faults);
        let page = read(&format!("{name}.md"));
        for section in SECTIONS {
            if !page.lines().any(|line| line == section) {
                faults.push(format!("docs/guide/commands/{name}.md lacks the section `{section}`"));
            }
        }
        let blocks = Page { path: name.clone(), text: page }.blocks();
        let used = |line: &String| line.contains(&format!("holdfast {name}"));
        if !blocks.iter().any(|block| block.has_commands() && block.lines.iter().any(used)) {
            faults.push(format!("docs/guide/commands/{name}.md has no example of the command"));
        }
    }
    bring_in_line("README.md", &list(), write, &mut faults);
    for entry in std::fs::read_dir(dir()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        if !expected.contains(&name) {
            faults.push(format!("docs/guide/commands/{name} is the page of no command"));
        }
    }
    assert_none(&faults);
}

fn read(name: &str) -> String {
    std::fs::read_to_string(dir().join(name)).unwrap_or_default()
}

/// Compares the part of a page that is made from the grammar, or writes it.
fn bring_in_line(name: &str, part: &str, write: bool, faults: &mut Vec<String>) {
    let page = read(name);
    let due = match (page.split_once(BEGIN), page.split_once(END)) {
        (Some((before, _)), Some((_, after))) => format!("{before}{BEGIN}\n{part}{END}{after}"),
        _ => {
            let command = name.trim_end_matches(".md");
            let sections = SECTIONS.join("\n\n");
            format!("# holdfast {command}\n\n{BEGIN}\n{part}{END}\n\n{sections}\n")
        }
    };
    if due == page {
        return;
    }
    if write {
        std::fs::create_dir_all(dir()).expect("the directory of the pages can be made");
        std::fs::write(dir().join(name), due).expect("the page can be written");
    } else {
        faults.push(format!(
            "docs/guide/commands/{name} is not there, or not as the grammar is: \
             run `cargo xtask guide`, and write what only a person can"
        ));
    }
}

/// All commands with what they are for.
fn list() -> String {
    let mut out = String::from("\n| command | |\n|---|---|\n");
    for command in commands() {
        let name = command.get_name();
        let about = line(command.get_about());
        writeln!(out, "| [{name}]({name}.md) | {about} |").expect("a string takes it");
    }
    out.push('\n');
    out
}

/// What the grammar knows about a command and those below it.
fn grammar_of(command: &Command) -> String {
    let mut out = String::new();
    describe(command, &mut out);
    for below in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = below.get_display_name().unwrap_or_default().replacen('-', " ", 2);
        writeln!(out, "### {name}").expect("a string takes it");
        describe(below, &mut out);
    }
    out
}

fn describe(command: &Command, out: &mut String) {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let paragraphs = about.split("\n\n").map(|text| text.replace('\n', " "));
    for paragraph in paragraphs {
        write!(out, "\n{}\n", sentence(&cell(&paragraph))).expect("a string takes it");
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let usage: Vec<&str> = usage.lines().map(str::trim).collect();
    write!(out, "\n```text\n{}\n```\n\n", usage.join("\n")).expect("a string takes it");
    let own = |arg: &&Arg| !arg.is_hide_set() && !arg.is_global_set() && arg.get_id() != "help";
    let (options, words): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(own).partition(|arg| arg.get_long().is_some());
    if words.is_empty() && options.is_empty() {
        return;
    }
    out.push_str("| | |\n|---|---|\n");
    for arg in words.into_iter().chain(options) {
        writeln!(out, "| `{}` | {} |", shown(arg), meaning(arg)).expect("a string takes it");
    }
    out.push('\n');
}

/// An argument as one types it.
fn shown(arg: &Arg) -> String {
    let values: Vec<String> = arg
        .get_value_names()
        .map(|names| names.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let values = values.join(" ");
    let takes = arg.get_num_args().is_some_and(|count| count.takes_values());
    let optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    let Some(long) = arg.get_long() else { return cell(&values) };
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    match (takes, optional) {
        (false, _) => format!("{short}--{long}"),
        (true, true) => format!("{short}--{long} [{}]", cell(&values)),
        (true, false) => format!("{short}--{long} {}", cell(&values)),
    }
}

fn meaning(arg: &Arg) -> String {
    let mut text = line(arg.get_long_help().or(arg.get_help()));
    let takes = arg.get_num_args().is_some_and(|count| count.takes_values());
    let values: Vec<PossibleValue> = if takes { arg.get_possible_values() } else { Vec::new() };
    let values: Vec<String> = values
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), cell(&help.to_string())),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        let between = if values.iter().any(|value| value.contains(':')) { "; " } else { ", " };
        write!(text, ". {}", values.join(between)).expect("a string takes it");
    }
    let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    if takes && !default.is_empty() {
        write!(text, " [default: {}]", default.join(" ")).expect("a string takes it");
    }
    text
}

fn line(text: Option<&StyledStr>) -> String {
    cell(&text.map(ToString::to_string).unwrap_or_default().replace('\n', " "))
}

/// Text as it stands in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// With the full stop that the grammar leaves away.
fn sentence(text: &str) -> String {
    if text.ends_with('.') || text.is_empty() { text.to_owned() } else { format!("{text}.") }
}
