//! What a release consists of.

use super::changelog::Changelog;
use super::tree::Tree;
use super::{template, tool};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Files of `packaging` that go into the system as they are: the directory there, and where they go.
const PARTS: [(&str, &str); 2] =
    [("systemd", "usr/lib/systemd/system"), ("udev", "usr/lib/udev/rules.d")];

/// Lays everything out. The program is run: it writes its manual pages and completions itself.
pub(crate) fn tree(root: &Path, program: &Path, work: &Path, changes: &Changelog) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.add_program("usr/bin/holdfast", fs::read(program)?)?;
    tree.add_link("usr/bin/holdfastd", "holdfast")?;
    let packaging = root.join("packaging");
    let config = template::read(&packaging.join("holdfast.toml"))?;
    tree.add("etc/holdfast/holdfast.toml", config)?;
    for (from, to) in PARTS {
        for (name, content) in files(&packaging.join(from))? {
            tree.add(format!("{to}/{name}"), content)?;
        }
    }
    manual(&mut tree, program, work)?;
    completions(&mut tree, program)?;
    documents(&mut tree, root, changes)?;
    Ok(tree)
}

/// The directories of documents, and where they go.
const DOCUMENTS: [(&str, &str); 3] =
    [("docs/guide", "guide"), ("docs/design", "design"), ("bench", "bench")];

/// All files below a directory, by path in it.
fn files_below(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = files(dir)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str()).context("a strange name")?;
            let below = files_below(&path)?.into_iter();
            found.extend(below.map(|(file, content)| (format!("{name}/{file}"), content)));
        }
    }
    Ok(found)
}

/// The files of a directory, by name.
fn files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().and_then(|name| name.to_str()).context("a strange name")?;
            found.push((name.to_owned(), fs::read(&path)?));
        }
    }
    found.sort();
    Ok(found)
}

fn manual(tree: &mut Tree, program: &Path, work: &Path) -> Result<()> {
    let dir = work.join("man");
    fs::create_dir_all(&dir)?;
    tool::output(Command::new(program).args(["man", "--dir"]).arg(&dir), "holdfast")?;
    for (name, _) in files(&dir)? {
        let (_, section) = name.rsplit_once('.').context("a manual page without section")?;
        tree.add(format!("usr/share/man/man{section}/{name}.gz"), gzip(&dir.join(&name))?)?;
    }
    let daemon = "usr/share/man/man1/holdfastd.1.gz";
    tree.add_link(daemon, "holdfast-daemon.1.gz")
}

fn completions(tree: &mut Tree, program: &Path) -> Result<()> {
    let print =
        |shell: &str| tool::output(Command::new(program).args(["completions", shell]), "holdfast");
    tree.add("usr/share/bash-completion/completions/holdfast", print("bash")?)?;
    tree.add("usr/share/fish/vendor_completions.d/holdfast.fish", print("fish")?)?;
    // Debian's zsh looks into the second directory, that of the others into the first.
    tree.add("usr/share/zsh/site-functions/_holdfast", print("zsh")?)?;
    let link = "usr/share/zsh/vendor-completions/_holdfast";
    tree.add_link(link, "../site-functions/_holdfast")
}

fn documents(tree: &mut Tree, root: &Path, changes: &Changelog) -> Result<()> {
    let doc = "usr/share/doc/holdfast";
    let readme = template::read(&root.join("README.md"))?;
    tree.add(format!("{doc}/README.md"), readme.replace("](docs/", "]("))?;
    for (from, to) in DOCUMENTS {
        for (name, content) in files_below(&root.join(from))? {
            match name.rsplit_once('.') {
                // Their directory is one nearer.
                Some((_, "md")) => {
                    let text = String::from_utf8(content)?.replace("](../../bench/", "](../bench/");
                    tree.add(format!("{doc}/{to}/{name}"), text)?;
                }
                Some((_, "yml")) => tree.add(format!("{doc}/{to}/{name}"), content)?,
                _ => {}
            }
        }
    }
    tree.add(format!("{doc}/copyright"), copyright(root)?)?;
    tree.add(format!("{doc}/changelog.Debian.gz"), compressed(&changes.debian())?)?;
    let notices = xtask::notices(root, "holdfast")?;
    ensure!(!notices.is_empty(), "no notices of the libraries were found");
    tree.add(format!("{doc}/third-party-notices.gz"), compressed(&notices)?)
}

/// The copyright file, in Debian's form: text of a licence is indented, and an empty line is a dot.
fn copyright(root: &Path) -> Result<String> {
    let licence = template::read(&root.join("LICENSE-MIT"))?;
    let lines = licence.trim().lines().map(|line| match line.trim() {
        "" => " .".to_owned(),
        line => format!(" {line}"),
    });
    let text = template::read(&root.join("packaging/deb/copyright"))?;
    template::fill(&text, &[("MIT", &lines.collect::<Vec<_>>().join("\n"))])
}

fn compressed(text: &str) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    gzip(file.path())
}

/// Compresses as Debian's policy asks: best, and without name and time.
fn gzip(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("gzip").args(["-9nc"]).arg(path).output();
    let output = output.context("gzip does not start")?;
    ensure!(output.status.success(), "gzip failed: {}", output.status);
    Ok(output.stdout)
}
