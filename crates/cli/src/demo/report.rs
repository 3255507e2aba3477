//! What the demo prints: each step with the commands that did it and its time.

use crate::output::{Style, Ui};
use holdfast_api::error::without_numbers;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// The longest word of a command that is printed whole, unless it is a path.
const LONGEST_WORD: usize = 48;

/// The steps as they are printed.
#[derive(Debug)]
pub(crate) struct Report {
    ui: Ui,
    title: String,
    started: Instant,
    commands: Vec<String>,
}

impl Report {
    pub(crate) fn new(ui: &Ui) -> Self {
        Self { ui: ui.clone(), title: String::new(), started: Instant::now(), commands: Vec::new() }
    }

    /// Whether colours are on.
    pub(crate) fn color(&self) -> bool {
        self.ui.color
    }

    /// Starts a step.
    pub(crate) fn begin(&mut self, title: &str) {
        title.clone_into(&mut self.title);
        self.started = Instant::now();
        self.commands.clear();
    }

    /// Gives the step that runs another title.
    pub(crate) fn rename(&mut self, title: &str) {
        title.clone_into(&mut self.title);
    }

    /// Adds a command to the step.
    pub(crate) fn command(&mut self, command: &str) {
        self.commands.push(command.to_owned());
    }

    /// Takes the last command back: it will be tried again.
    pub(crate) fn forget_command(&mut self) {
        self.commands.pop();
    }

    /// Ends a step well.
    pub(crate) fn done(&mut self, note: &str) {
        let text = self.step("✓", Style::Good, note);
        self.text(&text);
        self.title.clear();
    }

    /// Ends the demo with a step that failed, and the end of a node's log.
    pub(crate) fn failed(&mut self, why: &str, log: Option<(&str, Vec<String>)>) {
        let mut text = self.step("✗", Style::Bad, &without_numbers(why));
        if let Some((node, lines)) = log {
            text.push_str(&format!("\n    the log of {node} ends with:\n"));
            for line in lines {
                text.push_str(&format!("    | {line}\n"));
            }
        }
        self.text(&text);
    }

    /// Ends the demo.
    pub(crate) fn end(&self, after: Duration) {
        let end = "✓ nothing that was acknowledged was lost";
        let seconds = format!("{:.1} s in all", after.as_secs_f64());
        self.line("");
        self.line(&format!("{}  {seconds}", Style::Good.paint(end, self.ui.color)));
    }

    /// Prints a line.
    pub(crate) fn line(&self, text: &str) {
        self.text(&format!("{text}\n"));
    }

    fn text(&self, text: &str) {
        if !self.ui.quiet && !self.ui.json {
            // Daemons are running: who reads this no more ends the demo as it would end itself.
            let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
        }
    }

    fn step(&self, mark: &str, style: Style, note: &str) -> String {
        let color = self.ui.color;
        let time = format!("{} ms", self.started.elapsed().as_millis());
        let title = if self.title.is_empty() { "between two steps" } else { &self.title };
        let mut text = format!(
            "{} {}  {}\n",
            style.paint(mark, color),
            Style::Bold.paint(title, color),
            Style::Busy.paint(&time, color)
        );
        for command in &self.commands {
            text.push_str(&format!("    {}\n", Style::Dim.paint(&format!("$ {command}"), color)));
        }
        if !note.is_empty() {
            text.push_str(&format!("    {}\n", style.paint(note, color)));
        }
        text
    }
}

/// The words of a command as a shell takes them; long ones that are no paths (tokens) are cut.
pub(crate) fn shell_words(words: &[&str]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    let shown = words.iter().map(|word| {
        if word.chars().count() > LONGEST_WORD && !word.starts_with('/') {
            let start: String = word.chars().take(16).collect();
            format!("{start}...")
        } else if !word.is_empty() && word.chars().all(safe) {
            (*word).to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_shows_title_time_and_commands() {
        let mut report = Report::new(&Ui::plain(false, false));
        report.begin("beta is Primary");
        report.command("holdfast primary r0");
        let text = report.step("✓", Style::Good, "promoted");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("✓ beta is Primary  ") && lines[0].ends_with(" ms"));
        assert_eq!(lines[1..], ["    $ holdfast primary r0", "    promoted"]);
        report.forget_command();
        assert_eq!(report.step("✓", Style::Good, "").lines().count(), 1);
    }

    #[test]
    fn words_can_be_pasted_into_a_shell() {
        assert_eq!(shell_words(&["a", "b c", "d'e", "", "/x-1.y"]), r"a 'b c' 'd'\''e' '' /x-1.y");
        let long = "t".repeat(100);
        assert_eq!(shell_words(&[&long]), format!("{}...", "t".repeat(16)));
        let path = format!("/{long}");
        assert_eq!(shell_words(&[&path]), path);
    }
}
