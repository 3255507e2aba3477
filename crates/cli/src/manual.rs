//! Completions and manual pages.

use crate::args::Cli;
use crate::config::keys;
use crate::output::Ui;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use holdfast_api::{ApiError, ErrorCode};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::Stdio;

/// Prints the completions for a shell.
pub(crate) fn completions(ui: &Ui, shell: clap_complete::Shell) -> Result<(), ApiError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut script);
    ui.text(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Prints the manual page of a command, or writes those of all commands into a directory.
pub(crate) fn man(ui: &Ui, command: &[String], dir: Option<&Path>) -> Result<(), ApiError> {
    let Some(dir) = dir else {
        let page = page_of(command)?;
        if !(io::stdout().is_terminal() && shown(&page)) {
            ui.text(&String::from_utf8_lossy(&page));
        }
        return Ok(());
    };
    write_all(dir).map_err(|why| failed(&format!("were not written to {}", dir.display()), &why))
}

/// Has `man` show a page on the terminal; whether there is one that could.
fn shown(page: &[u8]) -> bool {
    let mut man = std::process::Command::new("man");
    let Ok(mut man) = man.args(["-l", "-"]).stdin(Stdio::piped()).spawn() else { return false };
    // Who leaves the pager early has seen enough.
    let _ = man.stdin.take().map(|mut input| input.write_all(page));
    man.wait().is_ok_and(|status| status.success())
}

/// The grammar with what commands inherit.
fn built_grammar() -> Command {
    let mut top = Cli::command().disable_help_subcommand(true);
    top.build();
    top
}

fn page_of(command: &[String]) -> Result<Vec<u8>, ApiError> {
    if command == [CONFIG_FILE] {
        return Ok(config_page().into_bytes());
    }
    let top = built_grammar();
    let mut found = &top;
    for word in &words_of(&top, command) {
        found = found.find_subcommand(word).ok_or_else(|| {
            let message = format!("there is no manual page: {word} is no command");
            ApiError::new(ErrorCode::InvalidRequest, message)
                .hint("`holdfast --help` lists the commands")
        })?;
    }
    page(found).map_err(|why| failed("were not made", &why))
}

/// The words of a command; also of the name of its page, such as `holdfast-attach-disk`.
fn words_of(top: &Command, command: &[String]) -> Vec<String> {
    let [name] = command else { return command.to_vec() };
    if name == "holdfast" {
        return Vec::new();
    }
    let Some(mut rest) = name.strip_prefix("holdfast-") else { return command.to_vec() };
    let (mut words, mut found) = (Vec::new(), top);
    while !rest.is_empty() {
        let fits = |one: &&Command| {
            rest.strip_prefix(one.get_name()).is_some_and(|r| r.is_empty() || r.starts_with('-'))
        };
        // The longest: some names begin with others.
        let next = found.get_subcommands().filter(fits).max_by_key(|one| one.get_name().len());
        let Some(next) = next else {
            words.push(rest.to_owned());
            break;
        };
        words.push(next.get_name().to_owned());
        rest = rest[next.get_name().len()..].trim_start_matches('-');
        found = next;
    }
    words
}

fn write_all(dir: &Path) -> io::Result<()> {
    write_pages(&built_grammar(), dir)?;
    std::fs::write(dir.join(format!("{CONFIG_FILE}.5")), config_page())
}

fn write_pages(command: &Command, dir: &Path) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(command, dir)?;
    }
    let name = Man::new(command.clone()).get_filename();
    std::fs::write(dir.join(name), page(command)?)
}

/// What the page about the configuration file is called.
const CONFIG_FILE: &str = "holdfast.toml";

/// The page about the configuration file, in section 5.
fn config_page() -> String {
    let text = include_str!("manual/holdfast.toml.roff")
        .replace("@KEYS@", &keys::manual_of_keys())
        .replace("@OPTIONS@", &keys::manual_of_options());
    format!(".TH {CONFIG_FILE} 5 \"\" \"{SOURCE}\" Holdfast\n{text}")
}

/// Where the pages come from.
const SOURCE: &str = concat!("Holdfast ", env!("CARGO_PKG_VERSION"));
/// What all commands have in common.
const EXIT_STATUS: &str = "\
.SH EXIT STATUS
0 done, 1 refused or failed, 2 usage, 3 daemon not reachable, 4 no such object, 5 timed out.
";

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone()).manual("Holdfast").source(SOURCE);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend(EXIT_STATUS.as_bytes());
    page.extend(more_about(&name).as_bytes());
    Ok(page)
}

/// Sections that say more than the options do.
fn more_about(name: &str) -> &'static str {
    match name {
        "holdfast" => include_str!("manual/holdfast.roff"),
        "holdfast-attach" => include_str!("manual/attach.roff"),
        "holdfast-serve" => include_str!("manual/serve.roff"),
        "holdfast-status" => include_str!("manual/status.roff"),
        _ => "",
    }
}

fn failed(what: &str, why: &io::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the manual pages {what}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_its_name_too() {
        let top = built_grammar();
        for (name, words) in [
            ("holdfast-device", "device"),
            ("holdfast-cluster-create", "cluster create"),
            ("holdfast-attach-disk", "attach-disk"),
            ("holdfast", ""),
            ("device", "device"),
            ("holdfast-nothing", "nothing"),
        ] {
            assert_eq!(words_of(&top, &[name.to_owned()]).join(" "), words, "{name}");
        }
        assert!(page_of(&["holdfast-device".to_owned()]).is_ok());
        assert!(page_of(&["holdfast-nothing".to_owned()]).is_err());
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completions_and_manual_know_every_command() {
        let mut script = Vec::new();
        clap_complete::generate(
            clap_complete::Shell::Bash,
            &mut Cli::command(),
            "holdfast",
            &mut script,
        );
        let script = String::from_utf8(script).unwrap();
        for command in ["attach-disk", "demo", "resize", "badblocks"] {
            assert!(script.contains(command), "{command}");
        }
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path()).unwrap();
        for page in ["holdfast.1", "holdfast-create.1", "holdfast-cluster-join.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
        every_command_has_a_page(&built_grammar(), dir.path());
        let serve = std::fs::read_to_string(dir.path().join("holdfast-serve.1")).unwrap();
        for part in [".TH holdfast-serve 1", "layout", ".SH PROMISES", ".SH EXIT STATUS"] {
            assert!(serve.contains(part), "{part}");
        }
        assert_eq!(page_of(&["serve".to_owned()]).unwrap(), serve.as_bytes());
    }

    /// With all of its options; so have those below it.
    fn every_command_has_a_page(command: &Command, dir: &Path) {
        let path = dir.join(Man::new(command.clone()).get_filename());
        let page = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for part in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH EXIT STATUS"] {
            assert!(page.contains(part), "{} lacks {part}", path.display());
        }
        let plain = page.replace('\\', "");
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let shown = long.is_none_or(|long| plain.contains(&long));
            assert!(shown, "{} lacks {}", path.display(), argument.get_id());
        }
        for below in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            every_command_has_a_page(below, dir);
        }
    }

    #[test]
    fn the_page_about_the_configuration_file_has_every_key() {
        let page = page_of(&[CONFIG_FILE.to_owned()]).unwrap();
        let page = String::from_utf8(page).unwrap().replace('\\', "");
        assert!(page.starts_with(".TH holdfast.toml 5 "), "{page}");
        let names = holdfast_daemon::config::CONFIG_KEYS.iter().map(|key| key.name);
        let options = holdfast_api::options::OPTIONS.iter().map(|option| option.name);
        let due: Vec<&str> = names.chain(options).collect();
        for key in &due {
            assert!(page.contains(&format!("\nfB{key}fR = ")), "{key}");
        }
        let keys = page.lines().filter(|line| line.starts_with("fB") && line.contains("fR = "));
        assert_eq!(keys.count(), due.len());
        assert!(!page.contains('@'), "{page}");
    }

    #[test]
    fn the_pages_are_well_formed() {
        let lint = |page: &[u8]| {
            use std::io::Write;
            let mut groff = std::process::Command::new("groff")
                .args(["-man", "-Tutf8", "-ww", "-z"])
                .stdin(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()?;
            groff.stdin.take().unwrap().write_all(page)?;
            groff.wait_with_output()
        };
        for words in [&[][..], &["attach"], &["serve"], &["daemon"], &[CONFIG_FILE]] {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            let Ok(said) = lint(&page_of(&words).unwrap()) else {
                return println!("skipped: groff is not installed");
            };
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.is_empty(), "{words:?}: {said}");
        }
    }

    #[test]
    fn a_command_that_is_none_has_no_page() {
        let error = page_of(&["nonsense".to_owned()]).unwrap_err();
        assert!(error.message.contains("nonsense"), "{}", error.message);
    }
}
