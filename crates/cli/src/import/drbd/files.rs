//! The files, and what they include.

use super::syntax::{MOST, Statement, parse};
use crate::import::ledger::{Ledger, Outcome};
use crate::import::source::{read, wrong};
use holdfast_api::ApiError;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// Files that include one another, at most.
const DEEPEST: usize = 8;
/// Files in all, at most.
const FILES: usize = 1000;

/// All statements of some files, those that they include in their place; and the files in the order
/// in which they were read.
///
/// # Errors
/// What cannot be read.
pub(super) fn load(
    files: &[PathBuf],
    ledger: &mut Ledger,
) -> Result<(Vec<Statement>, Vec<PathBuf>), ApiError> {
    let mut loader = Loader { ledger, room: MOST, read: Vec::new() };
    let mut statements = Vec::new();
    for file in files {
        loader.file(file, 0, &mut statements)?;
    }
    Ok((statements, loader.read))
}

struct Loader<'a> {
    ledger: &'a mut Ledger,
    /// How many more statements there may be.
    room: usize,
    read: Vec<PathBuf>,
}

impl Loader<'_> {
    fn file(
        &mut self,
        path: &Path,
        depth: usize,
        out: &mut Vec<Statement>,
    ) -> Result<(), ApiError> {
        let text = read(path)?;
        self.read.push(path.to_owned());
        let file = Rc::new(path.to_owned());
        for statement in parse(&text, &file, self.ledger, &mut self.room)? {
            if statement.keyword() == "include" && statement.body.is_none() {
                self.include(path, &statement, depth, out)?;
            }
            out.push(statement);
        }
        Ok(())
    }

    fn include(
        &mut self,
        from: &Path,
        statement: &Statement,
        depth: usize,
        out: &mut Vec<Statement>,
    ) -> Result<(), ApiError> {
        let place = self.ledger.place(statement.id).clone();
        let [pattern] = statement.arguments()[..] else {
            return Err(wrong(&place, "include takes one file name"));
        };
        if depth >= DEEPEST {
            let why = format!("more than {DEEPEST} files include one another");
            return Err(wrong(&place, &why));
        }
        let found = matches(from.parent().unwrap_or(Path::new("")), pattern);
        if found.is_empty() && !is_pattern(pattern) {
            return Err(wrong(&place, &format!("there is no file {pattern}")));
        }
        let outcome = match found.len() {
            0 => Outcome::missing(
                "no file is of this name: if some should be, import them too, or nothing is made \
                 of what is in them",
            ),
            1 => Outcome::translated("1 file was read"),
            count => Outcome::translated(format!("{count} files were read")),
        };
        self.ledger.settle(statement.id, outcome);
        for path in found {
            if self.read.len() >= FILES {
                return Err(wrong(&place, &format!("there are more than {FILES} files")));
            }
            self.file(&path, depth + 1, out)?;
        }
        Ok(())
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The files of a name with `*`, `?` and `[...]` in its parts, by name; relative to a directory.
fn matches(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for part in Path::new(pattern).components() {
        let name = match part {
            Component::Normal(name) => name.to_string_lossy().into_owned(),
            other => {
                found.iter_mut().for_each(|path| path.push(other));
                continue;
            }
        };
        found = if is_pattern(&name) {
            found.iter().flat_map(|path| entries(path, &name)).take(FILES + 1).collect()
        } else {
            found.into_iter().map(|path| path.join(&name)).collect()
        };
    }
    found.retain(|path| path.is_file());
    found.sort();
    found
}

/// The entries of a directory whose names are of a pattern.
fn entries(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let here = Path::new(".");
    let open = if directory.as_os_str().is_empty() { here } else { directory };
    let pattern: Vec<char> = pattern.chars().collect();
    let entries = std::fs::read_dir(open).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_match = |name: &String| {
        // As in a shell: a name that begins with a dot must be asked for.
        (!name.starts_with('.') || pattern[0] == '.')
            && fits(&pattern, &name.chars().collect::<Vec<_>>())
    };
    names.filter(is_match).map(|name| directory.join(name)).collect()
}

/// Whether a name is of a pattern. Takes time in proportion to the product of the lengths: of several
/// stars only the last one is tried again.
fn fits(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], name[n]) {
            (p, n) = (p + length, n + 1);
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (p, n) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How much of a pattern takes one character, when it takes this one.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '[' => {
            let negated = matches!(pattern.get(1), Some('!' | '^'));
            let first = if negated { 2 } else { 1 };
            // A ] that comes first is one of the set.
            let end = first + 1 + pattern.get(first + 1..)?.iter().position(|c| *c == ']')?;
            let set = &pattern[first..end];
            let mut at = 0;
            let mut within = false;
            while at < set.len() {
                if at + 2 < set.len() && set[at + 1] == '-' {
                    within |= (set[at]..=set[at + 2]).contains(&c);
                    at += 3;
                } else {
                    within |= set[at] == c;
                    at += 1;
                }
            }
            (within != negated).then_some(end + 1)
        }
        literal => (*literal == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_pattern() {
        let fits = |pattern: &str, name: &str| {
            fits(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
        };
        for (pattern, name) in [
            ("*.res", "r0.res"),
            ("*", ""),
            ("r?.res", "r0.res"),
            ("r[0-3]*", "r2.res"),
            ("r[!a]", "rb"),
            ("[]]x", "]x"),
            ("a*b*c", "aXbYbZc"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.res", "r0.res~"),
            ("r?", "r"),
            ("r[0-3]", "r9"),
            ("[", "x"),
            ("a", ""),
            ("[a", "a"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        let long = "a".repeat(5000);
        assert!(!fits(&"*a".repeat(2000), &format!("{long}b")));
    }
}
