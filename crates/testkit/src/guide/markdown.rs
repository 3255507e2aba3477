use std::fs;
use std::io;
use std::path::Path;

/// A page of the documentation.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its path from the root of the repository.
    pub path: String,
    /// All of it.
    pub text: String,
}

/// What stands between two fences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of the opening fence, counted from 1.
    pub line: usize,
    /// What stands behind the fence; empty when nothing does.
    pub language: String,
    /// What the comment above says, behind `test:`.
    pub note: Option<String>,
    /// The lines between the fences. The first one is line [`Self::line`] + 1 of the page.
    pub lines: Vec<String>,
}

/// What is to be done with a block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Run it.
    Run {
        /// In which world.
        world: String,
        /// Whether in another one than the block before.
        anew: bool,
        /// What happens before.
        happenings: Vec<Happening>,
    },
    /// A script of the VM lab does it.
    Lab(String),
    /// It is not run, for a reason.
    No(String),
}

/// Something that happens in a world: `kill alpha`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// What.
    pub what: String,
    /// To which node.
    pub node: String,
}

/// The front page and the user guide, in order of their paths.
///
/// # Errors
/// When one cannot be read.
pub fn pages(root: &Path) -> io::Result<Vec<Page>> {
    let mut paths = vec![root.join("README.md")];
    let mut directories = vec![root.join("docs/guide")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        Ok(Page { path: name, text: fs::read_to_string(path)? })
    };
    paths.iter().map(read).collect()
}

impl Page {
    /// All fenced blocks.
    #[must_use]
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut note = None;
        let mut open: Option<Block> = None;
        for (index, line) in self.text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => block.lines.push(line.to_owned()),
                (None, Some(language)) => {
                    let language = language.trim().to_owned();
                    let note = note.take();
                    open = Some(Block { line: index + 1, language, note, lines: Vec::new() });
                }
                (None, None) if line.trim().is_empty() => {}
                (None, None) => note = note_of(line),
            }
        }
        blocks.extend(open);
        blocks
    }

    /// What stands in backquotes outside of blocks, with the line of each.
    #[must_use]
    pub fn inline_code(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut fenced = false;
        for (index, line) in self.text.lines().enumerate() {
            if line.starts_with("```") {
                fenced = !fenced;
            } else if !fenced {
                let codes = line.split('`').skip(1).step_by(2);
                found.extend(codes.map(|code| (index + 1, code.to_owned())));
            }
        }
        found
    }
}

impl Block {
    /// Whether somebody is meant to type what stands there.
    #[must_use]
    pub fn has_commands(&self) -> bool {
        matches!(self.language.as_str(), "sh" | "console")
    }

    /// What is to be done with it.
    ///
    /// # Errors
    /// When there is no note, or one that says nothing known: a sentence about it.
    pub fn parsed_note(&self) -> Result<Note, String> {
        let Some(note) = &self.note else {
            return Err("a block of commands has no note. Put one of these on the line above it: \
                `<!-- test: run pair -->` to have it run in a world of \
                crates/cli/tests/blackbox/guide/world.rs, `<!-- test: lab SCRIPT -->` when a \
                script of vmlab/ does it, or `<!-- test: no: REASON -->`"
                .to_owned());
        };
        let unknown = || format!("the note `test: {note}` is none of run, lab, and no");
        let (what, rest) = note.split_once(' ').ok_or_else(unknown)?;
        let rest = rest.trim();
        match what {
            "run" => run(rest),
            "lab" if !rest.contains(' ') => Ok(Note::Lab(rest.to_owned())),
            "no:" if rest.split(' ').count() > 2 => Ok(Note::No(rest.to_owned())),
            "no:" => Err(format!("`{rest}` says too little about why a block is not run")),
            _ => Err(unknown()),
        }
    }
}

fn run(text: &str) -> Result<Note, String> {
    let mut parts = text.split(',').map(str::trim);
    let world = parts.next().unwrap_or_default();
    let (anew, world) = match world.strip_prefix("new ") {
        Some(world) => (true, world),
        None => (false, world),
    };
    if world.is_empty() || world.contains(' ') {
        return Err(format!("`{world}` is no world"));
    }
    let happening = |part: &str| match part.split_once(' ') {
        Some((what, node)) => Ok(Happening { what: what.to_owned(), node: node.to_owned() }),
        None => Err(format!("`{part}` does not say what happens to which node")),
    };
    let happenings = parts.map(happening).collect::<Result<_, _>>()?;
    Ok(Note::Run { world: world.to_owned(), anew, happenings })
}

fn note_of(line: &str) -> Option<String> {
    let inner = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?;
    Some(inner.trim().strip_prefix("test:")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# Page

Say `holdfast up db` or `x`.

<!-- test: run new pair, kill alpha, start alpha -->

```sh
holdfast status `x`
```

```text
output
```
<!-- test: no: it is an example only -->
Something between.
```console
$ holdfast status
```
";

    fn page() -> Page {
        Page { path: "page.md".into(), text: PAGE.into() }
    }

    #[test]
    fn blocks_and_their_notes() {
        let blocks = page().blocks();
        let shown: Vec<_> = blocks.iter().map(|b| (b.line, &*b.language)).collect();
        assert_eq!(shown, [(7, "sh"), (11, "text"), (16, "console")]);
        assert_eq!(blocks[0].lines, ["holdfast status `x`"]);
        let happening = |what: &str| Happening { what: what.into(), node: "alpha".into() };
        let happenings = vec![happening("kill"), happening("start")];
        let note = Note::Run { world: "pair".into(), anew: true, happenings };
        assert_eq!(blocks[0].parsed_note(), Ok(note));
        assert!(!blocks[1].has_commands());
        assert_eq!(blocks[2].note, None, "a note stands right above its block");
        assert!(blocks[2].parsed_note().unwrap_err().contains("no note"));
        assert_eq!(page().inline_code(), [(3, "holdfast up db".into()), (3, "x".into())]);
    }

    #[test]
    fn notes_that_say_nothing() {
        let note = |note: &str| {
            let block = Block { note: Some(note.into()), ..page().blocks().remove(0) };
            block.parsed_note()
        };
        assert_eq!(note("lab nbd.sh"), Ok(Note::Lab("nbd.sh".into())));
        assert_eq!(note("no: it never ends"), Ok(Note::No("it never ends".into())));
        for wrong in ["no: why", "no", "maybe pair", "run", "run ", "run a b", "run a, kill"] {
            assert!(note(wrong).is_err(), "{wrong}");
        }
    }
}
