//! Taking secrets out of text.
//!
//! Three nets, one behind the other: values that are known to be secret (from the environment, the
//! configuration, key files) wherever they stand; forms that are secret by themselves (join tokens,
//! PEM blocks, the user part of URIs, ids of access keys, what follows `Bearer`); and the values of
//! names that speak of secrets, as `NAME=VALUE`, `NAME: VALUE`, `"NAME": VALUE` and `--NAME VALUE`,
//! also names of several words.

use std::collections::BTreeSet;
use std::path::Path;

/// What stands in the place of a secret.
pub(super) const HIDDEN: &str = "***";
/// Shorter values are not looked for: they would be found where they mean something else.
const SHORTEST: usize = 6;
/// The beginning of a join token.
const TOKEN: &str = "hf1-";
/// The beginning of the id of an access key of S3, and how long it is.
const ACCESS_KEY_IDS: [&str; 2] = ["AKIA", "ASIA"];
const ACCESS_KEY_ID_LEN: usize = 20;

/// Parts of names that speak of secrets, without what is between words.
const PARTS: [&str; 7] =
    ["secret", "password", "passwd", "passphrase", "token", "credential", "authorization"];
/// Whole names.
const NAMES: [&str; 8] = ["pass", "pwd", "pw", "auth", "bearer", "psk", "tlspsk", "awsaccesskeyid"];
/// Whole names, or ends of them, that speak of a secret before `=`: elsewhere they mean other things.
const ASSIGNED: [&str; 3] = ["sig", "signature", "pin"];
/// The same for parts of a query.
const IN_QUERIES: [&str; 1] = ["key"];
/// What comes before a token in a header of HTTP, in small letters.
const BEARER: &str = "bearer ";
/// A name has no more words.
const MOST_WORDS: usize = 3;
/// Ends of names.
const ENDS: [&str; 9] = [
    "pwd",
    "privatekey",
    "accesskey",
    "apikey",
    "encryptionkey",
    "sharedkey",
    "masterkey",
    "accountkey",
    "presharedkey",
];

/// Takes secrets out.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    known: BTreeSet<String>,
}

impl Redactor {
    /// From now on this value is taken out wherever it stands.
    pub(super) fn know(&mut self, value: &str) {
        let value = value.trim();
        // A file is no secret, and its name stands in many places.
        if value.len() >= SHORTEST && !(value.starts_with('/') && Path::new(value).exists()) {
            self.known.insert(value.to_owned());
        }
    }

    /// The same for the values of all names in a text that speak of secrets, and for the users and
    /// passwords of its URIs.
    pub(super) fn learn(&mut self, text: &str) {
        let mut found = Vec::new();
        let _ = named(text, |value| found.push(value.to_owned()));
        let _ = users(text, |user| {
            found.extend(user.split_once(':').map(|(_, password)| password.to_owned()));
        });
        for value in found {
            self.know(value.trim_matches(['"', '\'', '[', ']', ',', ' ', '\n']));
        }
    }

    /// The same for each line of a key file.
    pub(super) fn know_lines(&mut self, text: &str) {
        let lines = text.lines().filter(|line| !line.starts_with("-----"));
        lines.for_each(|line| self.know(line));
    }

    /// The text without secrets.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = pem_blocks(text);
        // The longest first: one may be a part of another.
        let mut known: Vec<&String> = self.known.iter().collect();
        known.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in known {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), HIDDEN);
            }
        }
        let text = users(&text, |_| {});
        let text = tokens(&text);
        let text = bearers(&text);
        named(&text, |_| {})
    }
}

/// Whether a name speaks of a secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    PARTS.iter().any(|part| plain.contains(part))
        || NAMES.contains(&plain.as_str())
        || ENDS.iter().any(|end| plain.ends_with(end))
}

/// Hides what is between the first and the last line of PEM.
fn pem_blocks(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        out.push_str(before);
        out.push_str(HIDDEN);
        // One that does not end hides all that comes.
        rest = after
            .split_once(END)
            .map_or("", |(_, after)| after.split_once("-----").map_or("", |(_, after)| after));
    }
    out.push_str(rest);
    out
}

/// Whether a variable of the environment holds a secret, by its name.
pub(super) fn is_secret_variable(name: &str) -> bool {
    // Not a password, but the directory that a shell is in.
    !matches!(name, "PWD" | "OLDPWD") && is_secret_name(name)
}

/// Hides `USER:PASSWORD@` of URIs. A password may hold signs that should not be there: all up to the
/// last `@` of the word counts.
fn users(text: &str, mut found: impl FnMut(&str)) -> String {
    const MARK: &str = "://";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at + MARK.len());
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || "\"'<>\\".contains(c);
        let word = &after[..after.find(ends).unwrap_or(after.len())];
        let authority = &word[..next_uri(word).unwrap_or(word.len())];
        rest = after;
        if let Some((user, _)) = authority.rsplit_once('@') {
            found(user);
            out.push_str(HIDDEN);
            rest = &after[user.len()..];
        }
    }
    out.push_str(rest);
    out
}

/// Where another URI begins in a word: behind a comma, and with a scheme. Without these `://` may be a
/// part of a password.
fn next_uri(word: &str) -> Option<usize> {
    let in_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    word.match_indices(',').map(|(at, _)| at).find(|at| {
        let behind = word[at + 1..].trim_start_matches(in_scheme);
        behind.starts_with("://") && behind.len() < word.len() - at - 1
    })
}

/// Hides join tokens and ids of access keys.
fn tokens(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(|c: char| !is_name(c)) {
        let word = piece.trim_end_matches(|c: char| !is_name(c));
        let plain = word.trim_end_matches('.');
        let is_id = plain.len() == ACCESS_KEY_ID_LEN
            && ACCESS_KEY_IDS.iter().any(|start| plain.starts_with(start));
        if let Some(at) = word.find(TOKEN).filter(|at| word.len() > at + TOKEN.len()) {
            out.push_str(&word[..at + TOKEN.len()]);
            out.push_str(HIDDEN);
            out.push_str(&piece[word.len()..]);
        } else if is_id {
            out.push_str(HIDDEN);
            out.push_str(&piece[plain.len()..]);
        } else {
            out.push_str(piece);
        }
    }
    out
}

/// Hides what stands behind `Bearer`.
fn bearers(text: &str) -> String {
    let small = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(at) = small[from..].find(BEARER).map(|at| from + at) {
        let start = at + BEARER.len();
        let ends = |c: char| c.is_whitespace() || "\"'\\,;".contains(c);
        let len = text[start..].find(ends).unwrap_or(text.len() - start);
        out.push_str(&text[from..start]);
        from = start + len;
        let is_word = !small[..at].ends_with(is_name);
        out.push_str(if is_word && len >= SHORTEST { HIDDEN } else { &text[start..from] });
    }
    out.push_str(&text[from..]);
    out
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.".contains(c)
}

/// Hides the values of names that speak of secrets.
fn named(text: &str, mut found: impl FnMut(&str)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_name) {
        let name_len = rest[start..].find(|c| !is_name(c)).unwrap_or(rest.len() - start);
        let (before, after) = rest.split_at(start + name_len);
        out.push_str(before);
        rest = after;
        let name = &before[start..];
        let secret = is_secret_name(name)
            || is_secret_here(&before[..start], name, rest)
            || out.len() > name.len() && ends_with_secret_words(&out);
        if !secret {
            continue;
        }
        if let Some((gap, value)) = value_after(rest, name.starts_with("--")) {
            let text = &rest[gap..gap + value];
            found(text);
            out.push_str(&rest[..gap]);
            out.push_str(&hidden(text));
            rest = &rest[gap + value..];
        }
    }
    out.push_str(rest);
    out
}

/// Whether a name speaks of a secret where it stands.
fn is_secret_here(before: &str, name: &str, rest: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    let ends =
        |end: &&str| plain == **end || name.to_ascii_lowercase().ends_with(&format!("-{end}"));
    rest.starts_with('=') && ASSIGNED.iter().any(ends)
        || rest.starts_with('=')
            && before.ends_with(['?', '&'])
            && IN_QUERIES.contains(&plain.as_str())
}

/// Whether a text ends with the words of a name, such as `secret access key`.
fn ends_with_secret_words(text: &str) -> bool {
    let mut start = text.len();
    for count in 1..=MOST_WORDS {
        let before = &text[..start];
        start = before.len() - before.chars().rev().take_while(|c| is_name(*c)).count();
        if start == before.len() {
            return false;
        }
        let plain: String = text[start..].chars().filter(char::is_ascii_alphanumeric).collect();
        if count > 1 && ENDS.contains(&plain.to_ascii_lowercase().as_str()) {
            return true;
        }
        match text[..start].strip_suffix(' ') {
            Some(more) => start = more.len(),
            None => return false,
        }
    }
    false
}

/// What stands in the place of a value: JSON and TOML stay what they are.
fn hidden(value: &str) -> String {
    match value.chars().next() {
        Some('\'') => format!("'{HIDDEN}'"),
        Some('"' | '[' | '{' | '0'..='9') => format!("\"{HIDDEN}\""),
        _ => HIDDEN.to_owned(),
    }
}

/// Where a value begins after its name, and how long it is; `None` when none comes.
fn value_after(rest: &str, is_option: bool) -> Option<(usize, usize)> {
    let spaces = |text: &str| text.len() - text.trim_start_matches([' ', '\t']).len();
    let mut gap = usize::from(rest.starts_with(['"', '\'']));
    // A quote inside of JSON inside of JSON.
    gap += if rest[gap..].starts_with("\\\"") { 2 } else { 0 };
    let quoted = gap > 0;
    gap += spaces(&rest[gap..]);
    let sign = rest[gap..].chars().next()?;
    let line = match sign {
        '=' => false,
        ':' => true,
        _ if is_option && gap > 0 && !quoted => {
            return Some((gap, plain_value(&rest[gap..], false))).filter(|(_, len)| *len > 0);
        }
        _ => return None,
    };
    gap += 1;
    gap += spaces(&rest[gap..]);
    let value = &rest[gap..];
    let len = match value.chars().next()? {
        '"' | '\'' => quoted_value(value),
        '[' | '{' => nested_value(value),
        '\\' if value.starts_with("\\\"") => {
            value[2..].find("\\\"").map_or(value.len(), |end| end + 4)
        }
        _ => plain_value(value, line && !quoted),
    };
    (len > 0 && !is_empty(&value[..len])).then_some((gap, len))
}

/// Nothing is hidden where there is nothing.
fn is_empty(value: &str) -> bool {
    matches!(value, "null" | "true" | "false" | "\"\"" | "''" | "[]" | "{}")
}

/// The length of a text in quotes, with them; of all that comes when it does not end.
fn quoted_value(value: &str) -> usize {
    let quote = &value[..1];
    let triple = quote.repeat(3);
    if let Some(inner) = value.strip_prefix(triple.as_str()) {
        return inner.find(triple.as_str()).map_or(value.len(), |at| at + 6);
    }
    let mut escaped = false;
    for (at, c) in value.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote == "\"" => escaped = true,
            _ if quote.starts_with(c) => return at + 1,
            _ => {}
        }
    }
    value.len()
}

/// The length of what is in brackets, with them.
fn nested_value(value: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(c) = value[at..].chars().next() {
        match c {
            '"' | '\'' => {
                at += quoted_value(&value[at..]);
                continue;
            }
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            _ => {}
        }
        at += c.len_utf8();
        if depth == 0 {
            return at;
        }
    }
    value.len()
}

/// The length of a value without quotes: a word, or all of the line.
fn plain_value(value: &str, line: bool) -> usize {
    let ends = |c: char| match c {
        '\n' | '\r' => true,
        _ if line => false,
        '&' | ',' | ';' | '"' | '\'' | '}' | ']' | ')' | '#' => true,
        c => c.is_whitespace(),
    };
    value.find(ends).unwrap_or(value.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn redacted(text: &str) -> String {
        Redactor::default().redact(text)
    }

    #[test]
    fn values_of_names_that_speak_of_secrets_are_hidden() {
        for (text, due) in [
            ("password = \"hunter2\"\nname = \"a\"", "password = \"***\"\nname = \"a\""),
            ("AWS_SECRET_ACCESS_KEY=abc/def+x y", "AWS_SECRET_ACCESS_KEY=*** y"),
            ("a?tls-psk=abc&b=c", "a?tls-psk=***&b=c"),
            ("Authorization: Bearer abc def\nnext", "Authorization: ***\nnext"),
            ("cmd --password hunter2 --name x", "cmd --password *** --name x"),
            ("cmd --api-key=hunter2 x", "cmd --api-key=*** x"),
            ("tokens = ['a', \"b]\"] # c", "tokens = \"***\" # c"),
            ("secret = \"\"\"\na\"b\n\"\"\"\nx = 1", "secret = \"***\"\nx = 1"),
            ("# private_key = 'a\\'", "# private_key = '***'"),
            ("{\"m\":\"{\\\"token\\\":\\\"abc\\\"}\"}", "{\"m\":\"{\\\"token\\\":***}\"}"),
            ("secret = \"never ends", "secret = \"***\""),
            ("secret access key: abc def\nnext", "secret access key: ***\nnext"),
            ("the API key = abc x", "the API key = *** x"),
            ("private key=abc", "private key=***"),
            ("https://h/x?sig=a%2Fb&key=c&d=e", "https://h/x?sig=***&key=***&d=e"),
            ("X-Amz-Signature=abc&x", "X-Amz-Signature=***&x"),
            ("pw=abc pin=1234 pw: abc", "pw=*** pin=\"***\" pw: ***"),
        ] {
            assert_eq!(redacted(text), due, "{text}");
        }
    }

    #[test]
    fn forms_that_are_secret_are_hidden() {
        for (text, due) in [
            ("nbd://user:pass@host/x and nbd://host/x", "nbd://***@host/x and nbd://host/x"),
            ("s3://a@b@bucket", "s3://***@bucket"),
            ("nbd://user:pa/ss@host/x y@z", "nbd://***@host/x y@z"),
            ("nbd://user:pa#s?s@host", "nbd://***@host"),
            ("nbd://h/x,nbd://u:p@h/y", "nbd://h/x,nbd://***@h/y"),
            ("nbd://user:pa://ss@host/x", "nbd://***@host/x"),
            ("X-Mine: Bearer abc.def/+=, next", "X-Mine: Bearer ***, next"),
            ("run hf1-AbC_d-9x, then", "run hf1-***, then"),
            ("key AKIAIOSFODNN7EXAMPLE.", "key ***."),
            ("key AKIAIOSFODNN7EXAMPLE is", "key *** is"),
            ("a -----BEGIN X-----\nabc\n-----END X----- b", "a *** b"),
            ("a -----BEGIN X-----\nabc\n", "a ***"),
        ] {
            assert_eq!(redacted(text), due, "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "key: ping-int\nmetadata_keys: 7",
            "passed: true, \"token\": null, \"secret\": \"\", tokens: []",
            "2026-11-22T10:00:00Z INFO holdfast: node alpha, listening on 127.0.0.1:7850",
            "the password was refused",
            "mailto a@b, http://host:1/x?y a@b",
            "bearer of news, forbearer abcdefgh",
            "the signature: ext4, pin: 3, a key: b",
            "the new access point: x",
            "hf1- is how tokens begin",
            "\u{fffd}é: ü = ß",
        ] {
            assert_eq!(redacted(text), text);
        }
    }

    #[test]
    fn json_stays_json() {
        let text =
            json!({"a": {"password": "x\"y", "token": 7, "secrets": [{"b": 1}, "]"]}, "c": "d"});
        for text in [text.to_string(), serde_json::to_string_pretty(&text).unwrap()] {
            let value: Value = serde_json::from_str(&redacted(&text)).unwrap();
            let due = json!({"a": {"password": "***", "token": "***", "secrets": "***"}, "c": "d"});
            assert_eq!(value, due);
        }
    }

    #[test]
    fn the_directory_that_a_shell_is_in_is_no_secret() {
        assert!(is_secret_variable("DB_PWD") && is_secret_variable("TOKEN"));
        assert!(!is_secret_variable("PWD") && !is_secret_variable("OLDPWD"));
        let here = std::env::current_dir().unwrap().display().to_string();
        let mut redactor = Redactor::default();
        redactor.know(&here);
        assert_eq!(redactor.redact(&here), here);
    }

    #[test]
    fn known_values_are_hidden_wherever_they_stand() {
        let mut redactor = Redactor::default();
        redactor.know("opensesame");
        redactor.know("short");
        redactor.learn("# psk = \"from-config\"\nuri = \"nbd://me:from-uri@h\"\n");
        redactor.know_lines("-----BEGIN KEY-----\nMIGHAgEA\n-----END KEY-----\n");
        let text = "a opensesame b short c from-config d from-uri e MIGHAgEA";
        assert_eq!(redactor.redact(text), "a *** b short c *** d *** e ***");
    }
}
