//! From the text to values, with the place of everything that is wrong.

use super::keys::{CONFIG_KEYS, ConfigKey, Takes};
use super::nearest::nearest;
use super::{ConfigFile, Fault, Given, RESOURCE, RESOURCE_DEFAULTS, Setting};
use holdfast_api::options::{OPTIONS, OptionMap, find};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// How much of a value is shown in a message, in characters.
const SHOWN: usize = 80;
/// So many faults are told, at most.
const MOST: usize = 100;

/// As [`ConfigFile::parse`].
pub(super) fn parse(text: &str) -> Result<ConfigFile, Vec<Fault>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, file: ConfigFile::default(), faults: Vec::new() };
    for error in &errors {
        let why = error.message().lines().collect::<Vec<_>>().join(", ");
        reader.fault(error.span().unwrap_or(0..0), "this cannot be read as TOML".into(), why);
    }
    reader.root(root.get_ref());
    let Reader { file, mut faults, .. } = reader;
    if faults.is_empty() {
        return Ok(file);
    }
    faults.sort();
    // Of one place the first thing said is the one that matters.
    faults.dedup_by_key(|fault| fault.at);
    faults.truncate(MOST);
    let told = faults.into_iter().map(|Found { at, what, why }| {
        let (line, column) = place(text, at);
        Fault { line, column, what, why }
    });
    Err(told.collect())
}

/// The fault of a file that is no text from this byte on.
pub(super) fn not_utf8(bytes: &[u8], at: usize) -> Fault {
    let before = String::from_utf8_lossy(&bytes[..at]);
    let (line, column) = place(&before, before.len());
    Fault {
        line,
        column,
        what: "this cannot be read as TOML".into(),
        why: "the bytes here are no UTF-8".into(),
    }
}

/// Line and column of a byte, both from 1; the column in characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// A fault at a byte; its line is looked up when it is told.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    at: usize,
    what: String,
    why: String,
}

struct Reader<'a> {
    text: &'a str,
    file: ConfigFile,
    faults: Vec<Found>,
}

impl Reader<'_> {
    fn fault(&mut self, span: Range<usize>, what: String, why: String) {
        self.faults.push(Found { at: span.start, what, why });
    }

    fn root(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            let name: &str = key.get_ref();
            match name {
                RESOURCE_DEFAULTS => {
                    let options = self.options(key, value);
                    self.file.resource_defaults.all = options;
                }
                RESOURCE => self.named(key, value),
                _ => match CONFIG_KEYS.iter().find(|known| known.name == name) {
                    Some(known) => self.key(known, value),
                    None => {
                        let tables = [RESOURCE_DEFAULTS, RESOURCE];
                        let words = CONFIG_KEYS.iter().map(|key| key.name).chain(tables);
                        self.unknown(key, "key", &words.collect::<Vec<_>>());
                    }
                },
            }
        }
    }

    fn unknown(&mut self, key: &Spanned<DeString<'_>>, kind: &str, words: &[&str]) {
        let name: &str = key.get_ref();
        let why = match nearest(name, words.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the {kind}s are {}", words.join(", ")),
        };
        self.fault(key.span(), format!("there is no {kind} {}", shown(name)), why);
    }

    fn key(&mut self, key: &ConfigKey, value: &Spanned<DeValue<'_>>) {
        let given = match (key.takes, value.get_ref()) {
            (Takes::Text(check), DeValue::String(text)) => self
                .checked(key.name, text, value.span(), check)
                .then(|| Setting::Text(text.clone().into_owned())),
            (Takes::Flag, DeValue::Boolean(flag)) => Some(Setting::Flag(*flag)),
            (Takes::Number, DeValue::Integer(number)) => match number.to_string().parse() {
                Ok(number) => Some(Setting::Number(number)),
                Err(_) => {
                    let what = format!("{} cannot be {number}", key.name);
                    let why = "it is a whole number from 0 on".to_owned();
                    self.fault(value.span(), what, why);
                    None
                }
            },
            (Takes::List(check), DeValue::Array(items)) => {
                let mut list = Vec::new();
                for item in items {
                    match item.get_ref() {
                        DeValue::String(text) => {
                            if self.checked(key.name, text, item.span(), check) {
                                list.push(text.clone().into_owned());
                            }
                        }
                        other => self.wrong_type(key, other, item.span()),
                    }
                }
                Some(Setting::List(list))
            }
            (_, other) => {
                self.wrong_type(key, other, value.span());
                None
            }
        };
        if let Some(given) = given {
            let (line, _) = place(self.text, value.span().start);
            self.file.values.insert(key.name, Given { value: given, line });
        }
    }

    fn checked(
        &mut self,
        key: &str,
        text: &str,
        span: Range<usize>,
        check: fn(&str) -> Result<(), String>,
    ) -> bool {
        match check(text) {
            Ok(()) => true,
            Err(why) => {
                self.fault(span, format!("{key} cannot be {:?}", shown(text)), why);
                false
            }
        }
    }

    fn wrong_type(&mut self, key: &ConfigKey, value: &DeValue<'_>, span: Range<usize>) {
        let what = format!("{} cannot be {}", key.name, kind_of(value));
        self.fault(span, what, format!("write it as {} = {}", key.name, key.form));
    }

    /// The tables of resources by name.
    fn named(&mut self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let DeValue::Table(table) = value.get_ref() else {
            let what = format!("{RESOURCE} cannot be {}", kind_of(value.get_ref()));
            return self.fault(
                key.span(),
                what,
                format!("write [{RESOURCE}.\"NAME\"] above options"),
            );
        };
        for (name, options) in table {
            let text: &str = name.get_ref();
            if let Err(why) = holdfast_units::check_name(text) {
                let what = format!("there is no resource {:?}", shown(text));
                self.fault(name.span(), what, why.to_string());
            }
            let options = self.options(name, options);
            self.file.resource_defaults.named.insert(text.to_owned(), options);
        }
    }

    /// The options of a table, in canonical text.
    fn options(&mut self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) -> OptionMap {
        let mut options = OptionMap::new();
        let DeValue::Table(table) = value.get_ref() else {
            let name: &str = key.get_ref();
            let what = format!("{} cannot be {}", shown(name), kind_of(value.get_ref()));
            self.fault(key.span(), what, "it is a table of options".into());
            return options;
        };
        for (name, value) in table {
            let text: &str = name.get_ref();
            let Some(spec) = find(text) else {
                let words: Vec<&str> = OPTIONS.iter().map(|spec| spec.name).collect();
                self.unknown(name, "option", &words);
                continue;
            };
            let given = match value.get_ref() {
                DeValue::String(text) => text.clone().into_owned(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                other => {
                    let what = format!("{text} cannot be {}", kind_of(other));
                    let why = format!("write a number or a text, of {}", spec.range());
                    self.fault(value.span(), what, why);
                    continue;
                }
            };
            match spec.check(&given) {
                Ok(canonical) => {
                    options.insert(spec.name.to_owned(), canonical);
                }
                Err(error) => {
                    let what = format!("{text} cannot be {:?}", shown(&given));
                    self.fault(value.span(), what, error.message);
                }
            }
        }
        options
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(SHOWN).collect();
    if chars.next().is_some() { format!("{start}...") } else { start }
}
