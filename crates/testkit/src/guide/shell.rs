use std::iter::Peekable;
use std::str::Chars;

/// The lines of a script, each with its number (from 0), with those that go on behind a backslash
/// joined. Empty ones are left out.
#[must_use]
pub fn command_lines(lines: &[String]) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in lines.iter().enumerate() {
        let (text, more) = match line.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (line.as_str(), false),
        };
        match found.last_mut() {
            Some((_, last)) if goes_on => {
                last.push(' ');
                last.push_str(text.trim());
            }
            _ if text.trim().is_empty() => {}
            _ => found.push((number, text.trim().to_owned())),
        }
        goes_on = more;
    }
    found
}

/// A line of a script without the comment at its end, and that comment.
#[must_use]
pub fn without_comment(line: &str) -> (&str, Option<&str>) {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before.is_whitespace() => {
                return (line[..at].trim_end(), Some(line[at + 1..].trim()));
            }
            (None, '\'' | '"') if before != '\\' => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            _ => {}
        }
        before = c;
    }
    (line.trim_end(), None)
}

/// The commands in a line of a shell script, each with its words as the program gets them: without
/// redirections, assignments and words of the shell in front. Those in `$(...)` come first. It knows
/// as much of the shell as a page of documentation should use.
///
/// # Errors
/// A sentence, when a quote or parenthesis is not closed.
pub fn simple_commands(line: &str) -> Result<Vec<Vec<String>>, String> {
    let (line, _) = without_comment(line);
    let mut parser = Parser { rest: line.chars().peekable(), found: Vec::new() };
    parser.list(false)?;
    let named = parser.found.into_iter().map(program_first);
    Ok(named.filter(|words| !words.is_empty()).collect())
}

/// Words that stand in front of a command.
const BEFORE: [&str; 15] = [
    "!", "{", "}", "do", "done", "elif", "else", "exec", "fi", "if", "sudo", "then", "time",
    "until", "while",
];

fn program_first(mut words: Vec<String>) -> Vec<String> {
    let in_front = |word: &String| {
        let assigned = word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        assigned || BEFORE.contains(&word.as_str())
    };
    let count = words.iter().take_while(|word| in_front(word)).count();
    words.drain(..count);
    words
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    found: Vec<Vec<String>>,
}

impl Parser<'_> {
    /// Commands up to the end, or to a closing parenthesis.
    fn list(&mut self, inner: bool) -> Result<(), String> {
        let mut words = Vec::new();
        // The word behind a redirection is none of the command's.
        let mut redirected = false;
        loop {
            let Some(&c) = self.rest.peek() else {
                self.found.push(words);
                return if inner { Err("a parenthesis is not closed".to_owned()) } else { Ok(()) };
            };
            match c {
                ')' if inner => {
                    self.rest.next();
                    self.found.push(words);
                    return Ok(());
                }
                ';' | '|' | '\n' | ')' => {
                    self.rest.next();
                    self.found.push(std::mem::take(&mut words));
                }
                '(' => {
                    self.rest.next();
                    self.list(true)?;
                    redirected = false;
                }
                '&' => {
                    self.rest.next();
                    if self.rest.peek() != Some(&'>') {
                        self.found.push(std::mem::take(&mut words));
                    }
                }
                '<' | '>' => {
                    self.rest.next();
                    while self.rest.next_if(|c| matches!(c, '<' | '>' | '&')).is_some() {}
                    redirected = true;
                }
                c if c.is_whitespace() => {
                    self.rest.next();
                }
                _ => {
                    let word = self.word()?;
                    let number = word.chars().all(|c| c.is_ascii_digit());
                    let of_redirection = number && matches!(self.rest.peek(), Some('<' | '>'));
                    if !redirected && !of_redirection {
                        words.push(word);
                    }
                    redirected = false;
                }
            }
        }
    }

    fn word(&mut self) -> Result<String, String> {
        let mut word = String::new();
        while let Some(&c) = self.rest.peek() {
            match c {
                ';' | '|' | '&' | '<' | '>' | '(' | ')' => break,
                c if c.is_whitespace() => break,
                '\'' => {
                    self.rest.next();
                    self.quoted('\'', &mut word)?;
                }
                '"' => {
                    self.rest.next();
                    self.quoted('"', &mut word)?;
                }
                '\\' => {
                    self.rest.next();
                    word.extend(self.rest.next());
                }
                _ => self.one(&mut word)?,
            }
        }
        Ok(word)
    }

    fn quoted(&mut self, quote: char, word: &mut String) -> Result<(), String> {
        loop {
            match self.rest.peek() {
                None => return Err(format!("a {quote} is not closed")),
                Some(&c) if c == quote => {
                    self.rest.next();
                    return Ok(());
                }
                Some(_) if quote == '"' => self.one(word)?,
                Some(_) => word.extend(self.rest.next()),
            }
        }
    }

    /// One character, or what takes the place of a `$...`.
    fn one(&mut self, word: &mut String) -> Result<(), String> {
        let c = self.rest.next();
        if c != Some('$') {
            word.extend(c);
        } else if self.rest.next_if_eq(&'(').is_some() {
            self.list(true)?;
            word.push_str("output");
        } else {
            word.push_str("value");
            let braces = self.rest.next_if_eq(&'{').is_some();
            while self.rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_').is_some() {}
            if braces && self.rest.next() != Some('}') {
                return Err("a ${ is not closed".to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_go_on_are_joined() {
        let lines = ["a \\", "  b", "", "c # d"].map(str::to_owned);
        assert_eq!(command_lines(&lines), [(0, "a b".to_owned()), (3, "c # d".to_owned())]);
    }

    #[test]
    fn comments_end_a_line() {
        assert_eq!(without_comment("a '# b' # c"), ("a '# b'", Some("c")));
        assert_eq!(without_comment("a#b"), ("a#b", None));
        assert_eq!(without_comment("# on beta"), ("", Some("on beta")));
    }

    #[test]
    fn commands_are_found_wherever_they_stand() {
        for (line, expected) in [
            ("a b  c # d", "a b c"),
            ("a && b; c | d & e", "a/b/c/d/e"),
            ("A=1 sudo b 'c d' \"e f\" g\\ h", "b c d e f g h"),
            ("a $(b c) \"$(d)\" $E ${F}", "b c/d/a output output value value"),
            ("a > b 2>&1 < c >> d e", "a e"),
            ("until ! a b; do c; done", "a b/c"),
            ("a <(b c) d", "b c/a d"),
            ("{ a; b; }", "a/b"),
        ] {
            let found = simple_commands(line).unwrap();
            let found: Vec<String> = found.iter().map(|words| words.join(" ")).collect();
            assert_eq!(found.join("/"), expected, "{line}");
        }
        for open in ["a 'b", "a \"b", "a $(b", "a ${b"] {
            assert!(simple_commands(open).is_err(), "{open}");
        }
    }
}
