//! Files with `@WORDS@` to be replaced.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;

pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Puts the words in. What is put in is not looked at again.
///
/// # Errors
/// When a word is in the text that is not among these.
pub(crate) fn fill(text: &str, words: &[(&str, &str)]) -> Result<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('@') {
        filled.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let end = behind.find(|c: char| c != '_' && !c.is_ascii_uppercase());
        let name = &behind[..end.unwrap_or(behind.len())];
        if name.is_empty() || !behind[name.len()..].starts_with('@') {
            filled.push('@');
            rest = behind;
            continue;
        }
        let Some((_, value)) = words.iter().find(|(word, _)| *word == name) else {
            bail!("nothing is known for @{name}@");
        };
        filled.push_str(value);
        rest = &behind[name.len() + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn words_are_put_in_once() {
        let words = [("A", "1"), ("B_C", "@A@")];
        assert_eq!(fill("x @A@ y @B_C@@A@", &words).unwrap(), "x 1 y @A@1");
        let other = "holdfast-wait@.service a@b.example \"$@\" @a@ @@";
        assert_eq!(fill(other, &words).unwrap(), other);
        assert!(fill("@D@", &words).is_err());
    }
}
