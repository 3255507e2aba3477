//! What is to be typed, where, in which order; and how that is printed.

use super::ledger::{Entry, Outcome};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Commands for one node.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The node, as it is called in the files.
    pub(super) node: String,
    /// What this is for.
    pub(super) about: String,
    /// Lines for /etc/holdfast/holdfast.toml.
    pub(super) config: Vec<String>,
    /// Lines for a shell.
    pub(super) commands: Vec<String>,
}

/// All that an import has to say.
#[derive(Debug)]
pub(super) struct Plan {
    /// `drbd` or `enbd`.
    pub(super) kind: &'static str,
    /// The files that were read.
    pub(super) files: Vec<PathBuf>,
    /// In this order.
    pub(super) steps: Vec<Step>,
    /// What must be known before.
    pub(super) remarks: Vec<String>,
    /// Every statement.
    pub(super) statements: Vec<Entry>,
}

impl Plan {
    fn count(&self, word: &str) -> usize {
        self.statements.iter().filter(|entry| entry.outcome.word() == word).count()
    }

    /// For people, and for a shell: all but the commands are comments.
    pub(super) fn text(&self) -> String {
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        let mut text = format!("# Made of {}. Nothing was changed.\n", files.join(", "));
        for remark in &self.remarks {
            text.push_str(&comment("# * ", "#   ", remark));
        }
        for (number, step) in self.steps.iter().enumerate() {
            let Step { node, about, config, commands } = step;
            text.push_str(&format!("\n# {}. On {node}: {about}\n", number + 1));
            if !config.is_empty() {
                text.push_str("#    in /etc/holdfast/holdfast.toml:\n");
            }
            config.iter().for_each(|line| text.push_str(&format!("#      {line}\n")));
            commands.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        }
        let groups = [
            ("missing", "What has no counterpart, and what to do instead:"),
            ("needless", "What needs nothing here:"),
        ];
        for (word, heading) in groups {
            if self.count(word) > 0 {
                text.push_str(&format!("\n# {heading}\n"));
            }
            for entry in self.statements.iter().filter(|entry| entry.outcome.word() == word) {
                text.push_str(&format!("#   {}: {}\n", entry.place, entry.text));
                text.push_str(&comment("#       ", "#       ", entry.outcome.text()));
            }
        }
        text.push_str(&format!(
            "\n# {} statements: {} translated, {} need nothing, {} have no counterpart.\n",
            self.statements.len(),
            self.count("translated"),
            self.count("needless"),
            self.count("missing"),
        ));
        text
    }

    /// The same as data.
    pub(super) fn json(&self) -> Value {
        let steps = self.steps.iter().map(|step| {
            let Step { node, about, config, commands } = step;
            json!({ "node": node, "about": about, "config": config, "commands": commands })
        });
        let statements = self.statements.iter().map(|entry| {
            let Entry { place, text, outcome } = entry;
            json!({
                "file": *place.file, "line": place.line, "column": place.column,
                "statement": text, "outcome": outcome.word(), "text": outcome.text(),
            })
        });
        json!({
            "kind": self.kind,
            "files": self.files,
            "remarks": self.remarks,
            "steps": steps.collect::<Vec<_>>(),
            "statements": statements.collect::<Vec<_>>(),
            "counts": {
                "statements": self.statements.len(),
                "translated": self.count("translated"),
                "needless": self.count("needless"),
                "missing": self.count("missing"),
            },
        })
    }
}

/// The words of a command line, quoted for a shell where they must be.
pub(super) fn command(words: &[&str]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.contains('[') {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Text as comments of at most 100 columns.
fn comment(first: &str, next: &str, text: &str) -> String {
    let mut lines = vec![first.to_owned()];
    let mut empty = true;
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if !empty && line.chars().count() + 1 + word.chars().count() > 100 {
            lines.push(format!("{next}{word}"));
            continue;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.join("\n") + "\n"
}

/// An outcome with this text, for what became a part of a command.
pub(super) fn part_of(words: &[&str]) -> Outcome {
    Outcome::translated(command(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_the_words_as_they_are() {
        assert_eq!(
            command(&["a", "--set", "x=1", "/dev/disk/by-id/y:0"]),
            "a --set x=1 /dev/disk/by-id/y:0"
        );
        assert_eq!(
            command(&["", "a b", "$(x)", "it's", "[x]"]),
            "'' 'a b' '$(x)' 'it'\\''s' '[x]'"
        );
    }

    #[test]
    fn comments_are_broken_at_blanks() {
        let text = comment("# * ", "#   ", &"word ".repeat(40));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.len() <= 100), "{text}");
        assert!(text.starts_with("# * word word") && text.contains("\n#   word"), "{text}");
    }
}
