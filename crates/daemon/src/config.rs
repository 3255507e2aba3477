//! The configuration file: what it may hold, what stands in one, and all that is wrong in it.
//!
//! Two kinds of things can be in it: the options of the daemon, and defaults for the options of the
//! resources that are made on this node. The latter are copied into the cluster's records by `create`
//! and never looked at again for that resource, so that `set` has the last word.

mod edit;
mod keys;
mod nearest;
mod read;
#[cfg(test)]
mod tests;

pub use edit::with_key;
use holdfast_api::options::OptionMap;
use holdfast_api::{ApiError, ErrorCode};
pub use keys::{CONFIG_KEYS, ConfigKey, Takes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where the configuration is when nobody says; it need not be there.
pub const DEFAULT_CONFIG: &str = "/etc/holdfast/holdfast.toml";
/// The table with the defaults for all resources that are made here.
pub const RESOURCE_DEFAULTS: &str = "resource-defaults";
/// The table of tables with those for a resource of a name.
pub const RESOURCE: &str = "resource";
/// What stands for "none" where a key takes an address, a path or a size.
pub const OFF: &str = "off";
/// A configuration file is never longer, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Setting {
    /// A text: a name, path, address, size or word.
    Text(String),
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(u64),
    /// Several texts.
    List(Vec<String>),
}

impl fmt::Display for Setting {
    /// As TOML has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::List(list) => write!(f, "{list:?}"),
        }
    }
}

/// Something wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// Why, or what to write instead.
    pub why: String,
}

impl Fault {
    /// `FILE:LINE:COLUMN: WHAT: WHY`, one line.
    #[must_use]
    pub fn shown(&self, file: &Path) -> String {
        let Self { line, column, what, why } = self;
        format!("{}:{line}:{column}: {what}: {why}", file.display())
    }
}

/// A configuration file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadConfig {
    /// The file.
    pub file: PathBuf,
    /// Everything that is wrong in it, by place; at least one.
    pub faults: Vec<Fault>,
}

impl BadConfig {
    /// One line for each fault, as [`Fault::shown`].
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.faults.iter().map(|fault| fault.shown(&self.file))
    }

    /// The refusal as one sentence, without the faults.
    #[must_use]
    pub fn refusal(&self) -> ApiError {
        let file = self.file.display();
        let count = match self.faults.len() {
            1 => "1 error".to_owned(),
            more => format!("{more} errors"),
        };
        let message = format!("the configuration file {file} was refused: it has {count}");
        ApiError::new(ErrorCode::InvalidRequest, message).hint(format!(
            "`holdfast config check {file}` lists them; `holdfast man holdfast.toml` explains the keys"
        ))
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) value: Setting,
    pub(crate) line: usize,
}

/// Defaults for the options of resources that are made on this node; values in canonical text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceDefaults {
    /// For every resource.
    pub all: OptionMap,
    /// For the resource of a name; they go before those for all.
    pub named: BTreeMap<String, OptionMap>,
}

impl ResourceDefaults {
    /// Those for a resource of this name.
    #[must_use]
    pub fn of(&self, resource: &str) -> OptionMap {
        let mut options = self.all.clone();
        options.extend(self.named.get(resource).cloned().unwrap_or_default());
        options
    }
}

/// What stands in a configuration file. All of it can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    pub(crate) values: BTreeMap<&'static str, Given>,
    /// Defaults for resources.
    pub resource_defaults: ResourceDefaults,
}

impl ConfigFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Everything that is wrong in it, by place; never empty.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        read::parse(text)
    }

    /// The value of a key and the line where it stands.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<(&Setting, usize)> {
        self.values.get(key).map(|given| (&given.value, given.line))
    }

    /// A text, unless it says [`OFF`]: the inner `None`.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match self.value(key)?.0 {
            Setting::Text(text) => Some(text.clone()),
            Setting::Flag(_) | Setting::Number(_) | Setting::List(_) => None,
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        match self.value(key)?.0 {
            Setting::Flag(flag) => Some(*flag),
            Setting::Text(_) | Setting::Number(_) | Setting::List(_) => None,
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)?.0 {
            Setting::Number(number) => Some(*number),
            Setting::Text(_) | Setting::Flag(_) | Setting::List(_) => None,
        }
    }

    pub(crate) fn list(&self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some((Setting::List(list), _)) => list.clone(),
            _ => Vec::new(),
        }
    }
}

/// Why a configuration file was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The file cannot be opened or read, or is too long.
    Unreadable(ApiError),
    /// It has errors.
    Bad(BadConfig),
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::Unreadable(error) => error,
            ConfigError::Bad(bad) => bad.refusal(),
        }
    }
}

/// Reads the file of this path, or the usual one; `None` when that is not there.
///
/// # Errors
/// [`ConfigError`]; a file that was named must be there.
pub fn load(named: Option<&Path>) -> Result<Option<ConfigFile>, ConfigError> {
    let path = named.unwrap_or(Path::new(DEFAULT_CONFIG));
    let Some(text) = read_text(path, named.is_some())? else { return Ok(None) };
    match ConfigFile::parse(&text) {
        Ok(file) => Ok(Some(file)),
        Err(faults) => Err(ConfigError::Bad(BadConfig { file: path.to_owned(), faults })),
    }
}

/// The text of a configuration file; `None` when it is not there and need not be.
///
/// # Errors
/// [`ConfigError`]: it cannot be read, is too long, or is no text.
pub fn read_text(path: &Path, required: bool) -> Result<Option<String>, ConfigError> {
    let refuse = |why: &str| {
        let message = format!("the configuration file {} was refused: {why}", path.display());
        ConfigError::Unreadable(ApiError::new(ErrorCode::InvalidRequest, message))
    };
    let mut bytes = Vec::new();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if !required && error.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(refuse(&error.to_string())),
    };
    let length = file.take(MAX_CONFIG + 1).read_to_end(&mut bytes);
    if length.map_err(|error| refuse(&error.to_string()))? as u64 > MAX_CONFIG {
        return Err(refuse("it is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let faults = vec![read::not_utf8(error.as_bytes(), at)];
        ConfigError::Bad(BadConfig { file: path.to_owned(), faults })
    })
}
