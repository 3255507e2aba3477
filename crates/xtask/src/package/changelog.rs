//! What changed from package to package: `packaging/deb/changelog`, for Debian and for rpm.

use super::{template, tool};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// One version of the package.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    version: String,
    revision: u32,
    /// The lines between head and signature.
    changes: Vec<String>,
    /// Name and address.
    who: String,
    /// As in mails.
    date: String,
}

/// All versions, the newest first.
#[derive(Debug)]
pub(crate) struct Changelog {
    entries: Vec<Entry>,
}

impl Changelog {
    /// Reads the file. For a revision that is not in it, it gets an entry with this time.
    ///
    /// # Errors
    /// When it cannot be read, or its newest version is not that of the workspace.
    pub(crate) fn read(root: &Path, revision: u32, time: u64) -> Result<Self> {
        let path = root.join("packaging/deb/changelog");
        let mut entries = parse(&template::read(&path)?)
            .with_context(|| format!("{} cannot be understood", path.display()))?;
        let newest = entries.first().context("the changelog is empty")?;
        let (version, who) = (newest.version.clone(), newest.who.clone());
        let wanted = env!("CARGO_PKG_VERSION");
        ensure!(version == wanted, "the changelog ends with {version}, the sources are {wanted}");
        if newest.revision != revision {
            let mut date = Command::new("date");
            let date =
                tool::output(date.args(["-u", "-R", "-d", &format!("@{time}")]), "coreutils")?;
            let changes = vec!["  * Built again.".to_owned()];
            let date = date.trim().to_owned();
            entries.insert(0, Entry { version, revision, changes, who, date });
        }
        Ok(Self { entries })
    }

    pub(crate) fn version(&self) -> &str {
        &self.entries[0].version
    }

    pub(crate) fn maintainer(&self) -> &str {
        &self.entries[0].who
    }

    pub(crate) fn debian(&self) -> String {
        let entries = self.entries.iter().map(|entry| {
            let Entry { version, revision, who, date, .. } = entry;
            let changes = entry.changes.join("\n");
            format!("holdfast ({version}-{revision}) unstable; urgency=medium\n\n{changes}\n\n -- {who}  {date}\n")
        });
        entries.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn rpm(&self) -> Result<String> {
        let entries = self.entries.iter().map(|entry| {
            let Entry { version, revision, who, .. } = entry;
            let mut date = Command::new("date");
            let date = date.args(["-u", "-d", &entry.date, "+%a %b %d %Y"]);
            let date = tool::output(date, "coreutils")?;
            let changes = entry.changes.iter().map(|line| line.trim().replacen("* ", "- ", 1));
            let changes = changes.collect::<Vec<_>>().join("\n");
            Ok(format!("* {} {who} - {version}-{revision}\n{changes}\n", date.trim()))
        });
        Ok(entries.collect::<Result<Vec<_>>>()?.join("\n"))
    }
}

fn parse(text: &str) -> Option<Vec<Entry>> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let mut entries = Vec::new();
    while let Some(head) = lines.next() {
        let (version, _) = head.strip_prefix("holdfast (")?.split_once(") ")?;
        let (version, revision) = version.rsplit_once('-')?;
        let mut changes = Vec::new();
        let signature = loop {
            let line = lines.next()?;
            match line.strip_prefix(" -- ") {
                Some(signature) => break signature,
                None => changes.push(line.to_owned()),
            }
        };
        let (who, date) = signature.split_once("  ")?;
        entries.push(Entry {
            version: version.to_owned(),
            revision: revision.parse().ok()?,
            changes,
            who: who.to_owned(),
            date: date.to_owned(),
        });
    }
    Some(entries)
}

/// The time of the sources: `SOURCE_DATE_EPOCH`, or that of the last commit.
///
/// # Errors
/// When there is neither.
pub(crate) fn source_time(root: &Path) -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            git.args(["log", "-1", "--format=%ct"]).current_dir(root);
            tool::output(&mut git, "git").context("without git, set SOURCE_DATE_EPOCH")?
        }
    };
    text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH cannot be {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "holdfast (0.2.0-1) unstable; urgency=medium

  * One thing.
    And more of it.

 -- A B <a@b.example>  Sun, 22 Nov 2026 08:00:00 +0000

holdfast (0.1.0-3) unstable; urgency=medium

  * Another.

 -- A B <a@b.example>  Mon, 02 Nov 2026 08:00:00 +0000
";

    #[test]
    fn both_forms() {
        let changes = Changelog { entries: parse(TEXT).unwrap() };
        assert_eq!((changes.version(), changes.maintainer()), ("0.2.0", "A B <a@b.example>"));
        assert_eq!(changes.debian(), TEXT);
        let rpm = "* Sun Nov 22 2026 A B <a@b.example> - 0.2.0-1\n- One thing.\nAnd more of it.\n\n\
                   * Mon Nov 02 2026 A B <a@b.example> - 0.1.0-3\n- Another.\n";
        assert_eq!(changes.rpm().unwrap(), rpm);
    }

    #[test]
    fn another_revision_gets_an_entry() {
        let root = xtask::root();
        let own = Changelog::read(&root, 1, 0).unwrap();
        let again = Changelog::read(&root, 77, 86_400).unwrap();
        let head = format!("holdfast ({}-77) unstable", own.version());
        assert!(again.debian().starts_with(&head));
        assert!(again.debian().ends_with(&own.debian()));
        assert!(again.debian().contains("Fri, 02 Jan 1970 00:00:00 +0000"));
    }

    #[test]
    fn what_is_no_changelog() {
        for bad in ["other (1-1) x\n", "holdfast (1) x\n -- a  b\n", "holdfast (1-1) x\n  * y\n"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
