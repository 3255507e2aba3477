//! The grammar that all statements have: words, then `;` or more statements in braces.

use crate::import::ledger::{Id, Ledger};
use crate::import::source::{Place, wrong};
use holdfast_api::ApiError;
use std::iter::Peekable;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::Chars;

/// Sections inside of one another, at most.
const DEEPEST: usize = 16;
/// Statements of all files together, at most.
pub(super) const MOST: usize = 20_000;
/// Words of a statement, at most.
const WORDS: usize = 100;
/// How much of a statement is shown, in characters.
const SHOWN: usize = 100;

/// A statement.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) id: Id,
    /// At least one.
    pub(super) words: Vec<String>,
    /// The statements in its braces, if it has any.
    pub(super) body: Option<Vec<Statement>>,
}

impl Statement {
    /// Its first word.
    pub(super) fn keyword(&self) -> &str {
        &self.words[0]
    }

    /// The words behind that.
    pub(super) fn arguments(&self) -> Vec<&str> {
        self.words[1..].iter().map(String::as_str).collect()
    }

    /// What is in its braces.
    pub(super) fn body(&self) -> &[Self] {
        self.body.as_deref().unwrap_or_default()
    }
}

enum Token {
    Word(String),
    Open,
    Close,
    End,
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    file: Rc<PathBuf>,
    line: usize,
    column: usize,
}

impl Lexer<'_> {
    fn place(&self) -> Place {
        Place { file: Rc::clone(&self.file), line: self.line, column: self.column }
    }

    fn step(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        if c == '\n' {
            (self.line, self.column) = (self.line + 1, 1);
        } else {
            self.column += 1;
        }
        Some(c)
    }

    /// The next token and where it begins.
    fn next(&mut self) -> Result<Option<(Place, Token)>, ApiError> {
        while let Some(&c) = self.chars.peek() {
            if c == '#' {
                while self.chars.peek().is_some_and(|c| *c != '\n') {
                    self.step();
                }
            } else if c.is_whitespace() {
                self.step();
            } else {
                break;
            }
        }
        let place = self.place();
        let Some(&c) = self.chars.peek() else { return Ok(None) };
        let token = match c {
            '{' => Token::Open,
            '}' => Token::Close,
            ';' => Token::End,
            '"' => return Ok(Some((place.clone(), Token::Word(self.quoted(&place)?)))),
            _ => {
                let mut word = String::new();
                while let Some(c) = self.chars.next_if(|c| !is_mark(*c)) {
                    self.column += 1;
                    word.push(c);
                }
                return Ok(Some((place, Token::Word(word))));
            }
        };
        self.step();
        Ok(Some((place, token)))
    }

    fn quoted(&mut self, place: &Place) -> Result<String, ApiError> {
        self.step();
        let mut word = String::new();
        loop {
            match self.step() {
                Some('"') => return Ok(word),
                Some('\\') => match self.step() {
                    Some(c) if c != '\n' => word.push(c),
                    _ => return Err(wrong(place, "the quotes are not closed on their line")),
                },
                Some(c) if c != '\n' => word.push(c),
                _ => return Err(wrong(place, "the quotes are not closed on their line")),
            }
        }
    }
}

fn is_mark(c: char) -> bool {
    c.is_whitespace() || "{};#\"".contains(c)
}

/// The statements of a file.
///
/// # Errors
/// The first that is not one, with its place.
pub(super) fn parse(
    text: &str,
    file: &Rc<PathBuf>,
    ledger: &mut Ledger,
    room: &mut usize,
) -> Result<Vec<Statement>, ApiError> {
    let (line, column) = (1, 1);
    let mut lexer = Lexer { chars: text.chars().peekable(), file: Rc::clone(file), line, column };
    block(&mut lexer, ledger, room, None)
}

/// The statements up to the brace that closes what was opened at a place, or to the end of the file.
fn block(
    lexer: &mut Lexer<'_>,
    ledger: &mut Ledger,
    room: &mut usize,
    opened: Option<(&Place, usize)>,
) -> Result<Vec<Statement>, ApiError> {
    let depth = opened.map_or(0, |(_, depth)| depth);
    let mut statements = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut begin: Option<Place> = None;
    while let Some((place, token)) = lexer.next()? {
        match token {
            Token::Word(_) if words.len() >= WORDS => {
                return Err(wrong(&place, &format!("the statement has more than {WORDS} words")));
            }
            Token::Word(word) => {
                begin.get_or_insert(place);
                words.push(word);
            }
            Token::Close if !words.is_empty() => {
                return Err(wrong(&place, "a ; is missing before this }"));
            }
            Token::Close if opened.is_some() => return Ok(statements),
            Token::Close => return Err(wrong(&place, "this } closes nothing")),
            // An empty statement, as behind a closing brace.
            Token::End if words.is_empty() => {}
            Token::Open if words.is_empty() => {
                return Err(wrong(&place, "a section must have a name before its {"));
            }
            Token::Open | Token::End => {
                let Some(rest) = room.checked_sub(1) else {
                    return Err(wrong(&place, &format!("there are more than {MOST} statements")));
                };
                *room = rest;
                let at = begin.take().unwrap_or_else(|| place.clone());
                let id = ledger.add(at, shown(&words));
                let body = match token {
                    Token::Open if depth >= DEEPEST => {
                        let why = format!("more than {DEEPEST} sections are inside of one another");
                        return Err(wrong(&place, &why));
                    }
                    Token::Open => Some(block(lexer, ledger, room, Some((&place, depth + 1)))?),
                    _ => None,
                };
                statements.push(Statement { id, words: std::mem::take(&mut words), body });
            }
        }
    }
    match (begin, opened) {
        (Some(place), _) => Err(wrong(&place, "this statement has no ; at its end")),
        (None, Some((place, _))) => Err(wrong(place, "this { is not closed")),
        (None, None) => Ok(statements),
    }
}

/// What must not be shown to who looks at the answer.
const SECRETS: [&str; 1] = ["shared-secret"];

/// A statement in one line; a secret is not in it.
fn shown(words: &[String]) -> String {
    let secret = words.first().is_some_and(|word| SECRETS.contains(&word.as_str()));
    let text = if secret { format!("{} ...", words[0]) } else { words.join(" ") };
    let text = text.replace(char::is_control, " ");
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(SHOWN).collect();
    if chars.next().is_some() { format!("{start}...") } else { start }
}
