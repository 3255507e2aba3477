//! Just enough of Rust's lexer to tell code from comments and literals.

/// The code of a source text: comments, and what is inside of string and character literals, are
/// blanks. Lines stay where they are.
pub(crate) fn code_of(source: &str) -> String {
    let mut scanner = Scanner { rest: source, out: String::with_capacity(source.len()) };
    while !scanner.rest.is_empty() {
        scanner.step();
    }
    scanner.out
}

struct Scanner<'a> {
    rest: &'a str,
    out: String,
}

impl Scanner<'_> {
    fn step(&mut self) {
        if self.rest.starts_with("//") {
            self.blank(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.blank(block_comment_len(self.rest));
        } else if let Some((prefix, hashes)) = raw_string_start(self.rest) {
            self.keep(prefix);
            let close = format!("\"{}", "#".repeat(hashes));
            self.blank(self.rest.find(&close).unwrap_or(self.rest.len()));
            self.keep(close.len().min(self.rest.len()));
        } else if self.rest.starts_with('"') {
            self.keep(1);
            self.blank(literal_len(self.rest, '"'));
            self.keep(1.min(self.rest.len()));
        } else if let Some(len) = char_literal_len(self.rest) {
            self.blank(len);
        } else {
            // A whole word at once, so that the r of `for"` does not start a raw string.
            let word = self.rest.find(|c: char| !is_word(c)).unwrap_or(self.rest.len());
            let one = self.rest.chars().next().map_or(0, char::len_utf8);
            self.keep(word.max(one));
        }
    }

    fn keep(&mut self, len: usize) {
        let (now, rest) = self.rest.split_at(len);
        self.out.push_str(now);
        self.rest = rest;
    }

    fn blank(&mut self, len: usize) {
        let (now, rest) = self.rest.split_at(len);
        self.out.extend(now.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
    }
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_len(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of `r##"` and how many hashes it has.
fn raw_string_start(text: &str) -> Option<(usize, usize)> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
    })?;
    let rest = &text[prefix.len()..];
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    Some((prefix.len() + hashes + 1, hashes))
}

/// How far it is to the quote that ends a literal.
fn literal_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; `None` for a lifetime.
fn char_literal_len(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    let mut chars = inner.chars();
    let first = chars.next()?;
    if first == '\\' {
        return Some((literal_len(inner, '\'') + 2).min(text.len()));
    }
    (chars.next() == Some('\'')).then_some(first.len_utf8() + 2)
}

/// Where `needle` stands as a whole path in code, by line from 1: `std::net` is in
/// `std::net::TcpStream`, not in `mystd::network`.
pub(crate) fn lines_with(code: &str, needle: &str) -> Vec<usize> {
    code.lines()
        .enumerate()
        .filter(|(_, line)| has_word(line, needle))
        .map(|(index, _)| index + 1)
        .collect()
}

/// Whether `needle` stands in the line with no letter or digit right before or after it.
pub(crate) fn has_word(line: &str, needle: &str) -> bool {
    line.match_indices(needle).any(|(at, _)| {
        !line[..at].ends_with(is_word)
            && (needle.ends_with(|c| !is_word(c))
                || !line[at + needle.len()..].starts_with(is_word))
    })
}

#[cfg(test)]
mod tests {
    use super::{code_of, has_word, lines_with};

    #[test]
    fn comments_and_literals_are_no_code() {
        for (source, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("tokio \" x") g"#, r#"f("          ") g"#),
            (r##"r#"a"b"# c"##, r##"r#"   "# c"##),
            ("for\"x\" in", "for\" \" in"),
            ("'a' b 'x: '\\'' c", "    b 'x:      c"),
            ("'\"' tokio '\"'", "    tokio    "),
            ("b'\\n' é \"é\"", "b     é \" \""),
            ("\"never ends", "\"          "),
        ] {
            assert_eq!(code_of(source), code, "{source}");
        }
    }

    #[test]
    fn words_are_whole_words() {
        assert!(has_word("use std::net::X;", "std::net"));
        assert!(!has_word("use mystd::net;", "std::net"));
        assert!(!has_word("use std::network;", "std::net"));
        assert!(has_word("rand::rng()", "rand::"));
        assert!(!has_word("strand::rng()", "rand::"));
        assert!(has_word("tokio_x tokio", "tokio"));
        assert_eq!(lines_with("a\nb a\nab", "a"), [1, 2]);
    }
}
