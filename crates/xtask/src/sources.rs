//! Rules for every source file and every crate.

use crate::Fault;
use crate::code::{code_of, has_word};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The most lines that a source file may have.
const MAX_LINES: usize = 1500;
/// Where sources are.
const TREES: [&str; 3] = ["crates", "fuzz", "bench"];
/// What stands behind (or above) a pause in a test that asks again and again, up to a limit.
const BOUNDED_POLL: &str = "// bounded poll";

/// Words for unfinished work; written in two parts, so that this file does not have them.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("todo", "!"),
    concat!("unimplemented", "!"),
    concat!("#[ig", "nore"),
];

/// A Rust source.
pub(crate) struct SourceFile {
    /// From the root, with slashes.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

/// All Rust sources of the repository, in order of their paths.
pub(crate) fn read(root: &Path) -> Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for tree in TREES {
        let dir = root.join(tree);
        if dir.is_dir() {
            walk(root, &dir, &mut files)?;
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<SourceFile>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let generated = matches!(name, "target" | "corpus" | "artifacts") || name.starts_with('.');
        if path.is_dir() && !generated {
            walk(root, &path, files)?;
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.push(SourceFile { path, text });
        }
    }
    Ok(())
}

pub(crate) fn check(file: &SourceFile, faults: &mut Vec<Fault>) {
    let mut add = |line, what| faults.push(Fault { place: file.path.clone(), line, what });
    let lines: Vec<&str> = file.text.lines().collect();
    if lines.len() > MAX_LINES {
        add(0, format!("{} lines are too many, split it below {MAX_LINES}", lines.len()));
    }
    for (index, line) in lines.iter().enumerate() {
        if let Some(word) = UNFINISHED.iter().find(|word| has_word(line, word)) {
            add(index + 1, format!("`{word}`: finish it or leave it out"));
        }
    }
    let code = code_of(&file.text);
    let tests_from = first_test_line(&file.path, &code);
    for (index, line) in code.lines().enumerate().skip(tests_from) {
        let above = index.checked_sub(1).map_or("", |index| lines[index]);
        if has_word(line, "sleep(")
            && !lines[index].contains(BOUNDED_POLL)
            && !above.trim_start().starts_with(BOUNDED_POLL)
        {
            let what = "a test must not sleep to synchronise; \
                        mark a poll that has a limit with `// bounded poll`";
            add(index + 1, what.to_owned());
        }
    }
}

/// The index of the line from which on a file is for tests only.
fn first_test_line(path: &str, code: &str) -> usize {
    let for_tests = |part: &str| matches!(part, "tests" | "tests.rs" | "testkit");
    if path.split('/').any(for_tests) {
        return 0;
    }
    let lines: Vec<&str> = code.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].trim_end().ends_with('{'))
        .unwrap_or(lines.len())
}

/// Every crate has the lints of the workspace.
pub(crate) fn check_lints(root: &Path, faults: &mut Vec<Fault>) -> Result<()> {
    let crates = fs::read_dir(root.join("crates")).context("cannot list crates/")?;
    for entry in crates {
        let dir = entry?.path();
        let manifest = dir.join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else { continue };
        if !has_workspace_lints(&text) {
            let place = manifest.strip_prefix(root).unwrap_or(&manifest).display().to_string();
            let what = "add `[lints]` with `workspace = true`".to_owned();
            faults.push(Fault { place, line: 0, what });
        }
    }
    Ok(())
}

fn has_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
    lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| {
        line.split_once('=')
            .is_some_and(|(key, value)| (key.trim(), value.trim()) == ("workspace", "true"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(path: &str, text: &str) -> Vec<(usize, String)> {
        let mut faults = Vec::new();
        check(&SourceFile { path: path.into(), text: text.into() }, &mut faults);
        faults.into_iter().map(|fault| (fault.line, fault.what)).collect()
    }

    #[test]
    fn long_files_and_unfinished_work() {
        assert!(faults_of("a.rs", &"x\n".repeat(MAX_LINES)).is_empty());
        assert_eq!(faults_of("a.rs", &"x\n".repeat(MAX_LINES + 1))[0].0, 0);
        for word in UNFINISHED {
            assert_eq!(faults_of("a.rs", &format!("fn f() {{\n    // {word}\n}}"))[0].0, 2);
        }
    }

    #[test]
    fn tests_do_not_sleep() {
        let nap = "fn f() {\n    thread::sleep(x);\n}\n";
        assert!(faults_of("crates/a/src/b.rs", nap).is_empty());
        for path in ["crates/a/src/b/tests.rs", "crates/a/tests/b.rs", "crates/testkit/src/b.rs"] {
            assert_eq!(faults_of(path, nap)[0].0, 2, "{path}");
        }
        let inline = format!("{nap}#[cfg(test)]\nmod tests {{\n{nap}}}\n");
        assert_eq!(faults_of("crates/a/src/b.rs", &inline)[0].0, 7);
        let apart = format!("#[cfg(test)]\nmod tests;\n{nap}");
        assert!(faults_of("crates/a/src/b.rs", &apart).is_empty());
        for poll in [
            "    thread::sleep(x); // bounded poll\n",
            "    // bounded poll\n    thread::sleep(x);\n",
            "    // never sleep( here\n    f(\"sleep(1)\"); asleep(1);\n",
        ] {
            assert!(faults_of("crates/a/tests/b.rs", poll).is_empty(), "{poll}");
        }
    }

    #[test]
    fn lints_of_the_workspace() {
        assert!(has_workspace_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(!has_workspace_lints("[package]\nname = \"a\"\n"));
        assert!(!has_workspace_lints("[lints]\n\n[dependencies]\nworkspace = true\n"));
        assert!(!has_workspace_lints("[lints]\nworkspace = false\n"));
    }
}
