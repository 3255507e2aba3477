//! What `doctor` has found, and how it is printed.

use crate::output::Style;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, and will not in a case that is likely.
    Warning,
    /// It does not work, or data are in danger.
    Error,
}

impl Severity {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::Ok => Style::Good,
            Self::Note => Style::Busy,
            Self::Warning => Style::Warn,
            Self::Error => Style::Bad,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at, `GROUP.CHECK`; stays the same from version to version.
    pub(crate) check: &'static str,
    pub(crate) severity: Severity,
    /// What it is.
    pub(crate) what: String,
    /// Why it matters; empty when nothing is wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) why: String,
    /// What to do; empty when there is nothing.
    #[serde(rename = "do", skip_serializing_if = "String::is_empty")]
    pub(crate) advice: String,
}

/// All findings, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    /// Something is as it should be.
    pub(crate) fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(Severity::Ok, check, what, "", "");
    }

    /// Something is worth knowing.
    pub(crate) fn note(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Severity::Note, check, what, why, advice);
    }

    /// Something will be in the way one day.
    pub(crate) fn warning(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Severity::Warning, check, what, why, advice);
    }

    /// Something does not work.
    pub(crate) fn error(
        &mut self,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(Severity::Error, check, what, why, advice);
    }

    /// Something of this severity.
    pub(crate) fn add(
        &mut self,
        severity: Severity,
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let (what, why, advice) = (what.into(), why.into(), advice.into());
        self.0.push(Finding { check, severity, what, why, advice });
    }

    /// How bad the worst one is.
    pub(crate) fn worst(&self) -> Severity {
        self.0.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    fn count(&self, severity: Severity) -> usize {
        self.0.iter().filter(|finding| finding.severity == severity).count()
    }

    /// For programs.
    pub(crate) fn json(&self, node: &str) -> serde_json::Value {
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": node,
            "worst": self.worst(),
            "counts": {
                "ok": self.count(Severity::Ok),
                "note": self.count(Severity::Note),
                "warning": self.count(Severity::Warning),
                "error": self.count(Severity::Error),
            },
            "findings": self.0,
        })
    }

    /// For people, in lines of at most 80 columns where words allow it. `least` leaves out what is
    /// less bad.
    pub(crate) fn text(&self, least: Severity, color: bool) -> String {
        let mut text = String::new();
        let mut group = "";
        for finding in self.0.iter().filter(|finding| finding.severity >= least) {
            let (this, _) = finding.check.split_once('.').unwrap_or((finding.check, ""));
            if this != group {
                if !text.is_empty() {
                    text.push('\n');
                }
                group = this;
                text.push_str(&Style::Bold.paint(heading(group), color));
                text.push('\n');
            }
            text.push_str(&of_finding(finding, color));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&self.summary());
        text
    }

    /// All of it for people, without colours.
    pub(crate) fn whole_text(&self) -> String {
        self.text(Severity::Ok, false)
    }

    fn summary(&self) -> String {
        let parts = [
            (Severity::Error, "error", "errors"),
            (Severity::Warning, "warning", "warnings"),
            (Severity::Note, "note", "notes"),
            (Severity::Ok, "ok", "ok"),
        ];
        let counts = parts.into_iter().map(|(severity, one, many)| {
            let count = self.count(severity);
            (count, if count == 1 { one } else { many })
        });
        let said: Vec<String> = counts
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        format!("{}\n", said.join(", "))
    }
}

fn heading(group: &str) -> &str {
    match group {
        "kernel" => "Kernel",
        "daemon" => "Daemon",
        "limits" => "Limits",
        "ports" => "Ports",
        "cluster" => "Cluster",
        "resources" => "Resources",
        "disks" => "Disks",
        "space" => "Space",
        "tls" => "Certificates",
        "speed" => "Speed",
        other => other,
    }
}

/// The width of a line.
const WIDTH: usize = 80;
/// Where the text begins.
const INDENT: usize = 11;

fn of_finding(finding: &Finding, color: bool) -> String {
    let mark = format!("{:<7}", finding.severity.word());
    let mut text = format!("  {}  ", finding.severity.style().paint(&mark, color));
    text.push_str(&wrapped(&finding.what, INDENT));
    for (label, part) in [("why: ", &finding.why), ("do:  ", &finding.advice)] {
        if !part.is_empty() {
            text.push_str(&format!("{:INDENT$}{}", "", Style::Dim.paint(label, color)));
            text.push_str(&wrapped(part, INDENT + label.len()));
        }
    }
    text
}

/// Words in lines, of which all but the first begin in column `indent`.
fn wrapped(words: &str, indent: usize) -> String {
    let mut text = String::new();
    let mut column = indent;
    for word in words.split_whitespace() {
        let len = word.chars().count();
        if column > indent && column + 1 + len > WIDTH {
            text.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        } else if column > indent {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += len;
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Findings {
        let mut findings = Findings::default();
        findings.ok("kernel.version", "Linux 6.12.1");
        findings.note("kernel.ublk", "this kernel has no ublk", "it is the fastest way", "");
        findings.error(
            "ports.nodes",
            "127.0.0.1:7850, where other nodes are to reach this one, is taken by nginx (process 4711)",
            "the daemon does not start",
            "stop it, or set listen in the configuration",
        );
        findings
    }

    #[test]
    fn people_read_groups_with_advice_in_80_columns() {
        let expected = "\
Kernel
  ok       Linux 6.12.1
  note     this kernel has no ublk
           why: it is the fastest way

Ports
  ERROR    127.0.0.1:7850, where other nodes are to reach this one, is taken by
           nginx (process 4711)
           why: the daemon does not start
           do:  stop it, or set listen in the configuration

1 error, 1 note, 1 ok
";
        let text = sample().text(Severity::Ok, false);
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        let short = sample().text(Severity::Warning, true);
        assert!(short.starts_with("\x1b[1mPorts\x1b[0m\n  \x1b[1;31mERROR  \x1b[0m  "), "{short}");
        let mut good = Findings::default();
        good.ok("kernel.version", "Linux 6.12.1");
        assert_eq!(good.text(Severity::Warning, false), "1 ok\n");
    }

    #[test]
    fn programs_read_the_same() {
        let json = sample().json("alpha");
        assert_eq!((&json["worst"], &json["counts"]["note"]), (&"error".into(), &1.into()));
        assert_eq!(json["findings"][2]["do"], "stop it, or set listen in the configuration");
        assert_eq!(json["findings"][0]["why"], serde_json::Value::Null);
    }
}
