//! A key changed in the text of a configuration file; comments, order and all else stay as they are.

use super::keys::{ConfigKey, Takes};
use super::{ConfigFile, Fault, Setting};
use toml::de::DeTable;

impl ConfigKey {
    /// The value that a word of the command line stands for; that of a list has commas between.
    ///
    /// # Errors
    /// Why the key cannot have it.
    pub fn setting(&self, word: &str) -> Result<Setting, String> {
        match self.takes {
            Takes::Text(check) => check(word).map(|()| Setting::Text(word.to_owned())),
            Takes::Flag => match word {
                "true" => Ok(Setting::Flag(true)),
                "false" => Ok(Setting::Flag(false)),
                _ => Err("it is true or false".to_owned()),
            },
            Takes::Number => word
                .parse()
                .map(Setting::Number)
                .map_err(|_| "it is a whole number from 0 on".to_owned()),
            Takes::List(check) => {
                let items = word.split(',').map(str::trim).filter(|item| !item.is_empty());
                let items: Vec<String> = items.map(str::to_owned).collect();
                items.iter().try_for_each(|item| check(item))?;
                Ok(Setting::List(items))
            }
        }
    }
}

/// The text of a configuration file with this key set: in place of its old value, or of the comment
/// that stands for it in the default file, or else as the first line.
///
/// # Errors
/// Everything that is wrong in the text as it was, or else as it would be; never empty.
pub fn with_key(text: &str, key: &ConfigKey, value: &Setting) -> Result<String, Vec<Fault>> {
    ConfigFile::parse(text)?;
    let line = format!("{} = {value}", key.name);
    let replaced = |place, by: &str| {
        let mut new = text.to_owned();
        new.replace_range(place, by);
        new
    };
    if let Some(place) = value_of(text, key.name) {
        let new = replaced(place, &value.to_string());
        return ConfigFile::parse(&new).map(|_| new);
    }
    if let Some(place) = comment_of(text, key.name) {
        let new = replaced(place, &line);
        // What looks like a comment may be a part of a text of several lines.
        if ConfigFile::parse(&new).is_ok_and(|file| file.value(key.name).is_some()) {
            return Ok(new);
        }
    }
    let new = format!("{line}\n{text}");
    ConfigFile::parse(&new).map(|_| new)
}

/// Where the value of a key of the daemon stands.
fn value_of(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let (root, _) = DeTable::parse_recoverable(text);
    let found = root.get_ref().iter().find(|(name, _)| name.get_ref() == key);
    found.map(|(_, value)| value.span())
}

/// Where `#KEY = ...` stands, above all tables: below a table's name it would be an option of that.
fn comment_of(text: &str, key: &str) -> Option<std::ops::Range<usize>> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        if bare.trim_start().starts_with('[') {
            return None;
        }
        let rest = bare.strip_prefix('#').and_then(|rest| rest.strip_prefix(key));
        if rest.is_some_and(|rest| rest.trim_start().starts_with('=')) {
            return Some(at..at + bare.len());
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::CONFIG_KEYS;
    use super::*;

    fn key(name: &str) -> &'static ConfigKey {
        CONFIG_KEYS.iter().find(|key| key.name == name).expect("there is such a key")
    }

    #[track_caller]
    fn edited(text: &str, name: &str, word: &str) -> String {
        let setting = key(name).setting(word).unwrap();
        let new = with_key(text, key(name), &setting).unwrap();
        let value = ConfigFile::parse(&new).unwrap();
        assert_eq!(value.value(name).map(|(value, _)| value), Some(&setting), "{new}");
        new
    }

    #[test]
    fn a_key_is_set_where_it_stands_and_all_else_stays() {
        let listen = "listen = \"192.0.2.1:7850\"";
        for (text, expected) in [
            ("", format!("{listen}\n")),
            ("# why\nname = \"a\"\n", format!("{listen}\n# why\nname = \"a\"\n")),
            (
                "listen='[::1]:1' # ours\nname = \"a\"\n",
                "listen=\"192.0.2.1:7850\" # ours\nname = \"a\"\n".into(),
            ),
            ("# a\n#listen = \"127.0.0.1:7850\"\r\n#b\n", format!("# a\n{listen}\r\n#b\n")),
            ("#listen=1", listen.to_owned()),
            (
                "socket = \"\"\"/run/\\\n#listen = 1\"\"\"\n",
                format!("{listen}\nsocket = \"\"\"/run/\\\n#listen = 1\"\"\"\n"),
            ),
            // Below a table it would be an option of the table.
            (
                "[resource-defaults]\n#listen = 1\n",
                format!("{listen}\n[resource-defaults]\n#listen = 1\n"),
            ),
            ("# listen = 1\n#listener = 1\n", format!("{listen}\n# listen = 1\n#listener = 1\n")),
        ] {
            assert_eq!(edited(text, "listen", "192.0.2.1:7850"), expected, "{text:?}");
        }
        assert_eq!(
            edited("nbd-allow = [\n  \"10.0.0.0/8\", # old\n]\n", "nbd-allow", "192.0.2.0/24, ::1"),
            "nbd-allow = [\"192.0.2.0/24\", \"::1\"]\n"
        );
        assert_eq!(edited("lock-memory = true", "lock-memory", "false"), "lock-memory = false");
        assert_eq!(edited("", "max-resyncs", "3"), "max-resyncs = 3\n");
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        for (name, word) in [
            ("lock-memory", "yes"),
            ("max-resyncs", "-1"),
            ("nbd-tls", "maybe"),
            ("nbd-allow", "10.0.0.1/8"),
            ("state-dir", "relative"),
        ] {
            key(name).setting(word).expect_err(word);
        }
        let setting = key("listen").setting("192.0.2.1").unwrap();
        for text in ["listne = 1\n", "name = \"a", "[resource-defaults]\nping-int = 0\n"] {
            with_key(text, key("listen"), &setting).expect_err(text);
        }
    }
}
