//! The registry of options: name, kind, default, range, scope and what each one does.
//!
//! A value is kept and travels in its canonical text: a plain number in the option's unit, or a
//! word. What people write may also bear a size suffix (`64M`) or a time suffix (`500ms`, `6s`).

use crate::error::{ApiError, ErrorCode};
use crate::request::OptionValue;
use holdfast_units::{format_size, parse_size};
use std::collections::BTreeMap;
use std::time::Duration;

/// Options by name, in canonical text.
pub type OptionMap = BTreeMap<String, String>;

/// What an option is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The resource as a whole.
    Resource,
    /// What the node keeps on which it is set, and nobody else.
    Node,
    /// The way to a peer; set for the resource, it holds for every peer without a value of its own.
    Peer,
}

impl Scope {
    /// The word as it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Node => "node",
            Self::Peer => "peer",
        }
    }
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Seconds.
    Seconds,
    /// Tenths of a second, as in DRBD.
    Deciseconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Bytes.
    Bytes,
    /// Bytes per second.
    BytesPerSecond,
}

impl Unit {
    /// The unit in `get`; empty for counts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Seconds => "s",
            Self::Deciseconds => "ds",
            Self::Milliseconds => "ms",
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes/s",
        }
    }

    const fn is_size(self) -> bool {
        matches!(self, Self::Bytes | Self::BytesPerSecond)
    }

    /// Milliseconds in one; `None` for what is no time.
    const fn millis(self) -> Option<u64> {
        match self {
            Self::Seconds => Some(1000),
            Self::Deciseconds => Some(100),
            Self::Milliseconds => Some(1),
            Self::Count | Self::Bytes | Self::BytesPerSecond => None,
        }
    }

    /// The number with its unit, for people.
    fn show(self, number: u64) -> String {
        match self {
            Self::Count => number.to_string(),
            Self::Seconds => format!("{number} s"),
            Self::Deciseconds => format!("{number} ds"),
            Self::Milliseconds => format!("{number} ms"),
            Self::Bytes => format_size(number),
            Self::BytesPerSecond => format!("{}/s", format_size(number)),
        }
    }

    /// `1 to 120 seconds`.
    fn show_range(self, min: u64, max: u64) -> String {
        match self {
            Self::Count => format!("{min} and {max}"),
            Self::Seconds => format!("{min} and {max} seconds"),
            Self::Deciseconds => format!("{min} and {max} tenths of a second"),
            Self::Milliseconds => format!("{min} and {max} milliseconds"),
            Self::Bytes | Self::BytesPerSecond => {
                format!("{} and {}", self.show(min), self.show(max))
            }
        }
    }
}

/// What values an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, both ends included.
    Number {
        /// What it counts.
        unit: Unit,
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
        /// What it is when nobody set it.
        default: u64,
    },
    /// One of some words.
    Word {
        /// The words that are taken; the first is the default.
        words: &'static [&'static str],
        /// Words that the grammar has, but this version refuses.
        not_yet: &'static [&'static str],
    },
    /// A part of each day, `HH:MM-HH:MM` in local time, or `always`, which is the default.
    Window,
    /// A directory by its absolute path, `s3://BUCKET/PREFIX`, or `none`, which is the default.
    Directory,
}

/// The option that each node has for itself.
pub const CHECKSUMS: &str = "checksums";

/// A part of each day, in minutes since midnight of local time; over midnight where the end is not
/// behind the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DayWindow {
    /// Its first minute.
    from: u16,
    /// The minute behind its last one.
    to: u16,
}

impl DayWindow {
    /// All day.
    pub const ALWAYS: Self = Self { from: 0, to: 0 };

    /// Reads `HH:MM-HH:MM` or `always`.
    fn parse(text: &str) -> Option<Self> {
        if text == "always" {
            return Some(Self::ALWAYS);
        }
        let (from, to) = text.split_once('-')?;
        Some(Self { from: minute(from)?, to: minute(to)? }).filter(|w| w.from != w.to)
    }

    /// Whether a minute of the day is in it.
    #[must_use]
    pub const fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            self.from <= minute && minute < self.to
        } else {
            self.from <= minute || minute < self.to
        }
    }
}

impl std::fmt::Display for DayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::ALWAYS {
            return f.write_str("always");
        }
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

/// `HH:MM` as minutes since midnight.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, below: u16| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|n: &u16| digits && *n < below)
    };
    Some(number(hour, 24)? * 60 + number(minute, 60)?)
}

/// What stands where there is no directory.
pub const NO_DIRECTORY: &str = "none";
/// What a place in a store that speaks S3 begins with.
const BUCKET_SCHEME: &str = "s3://";
/// The longest path of a directory, in bytes.
const MAX_PATH: usize = 1024;

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it is about.
    pub scope: Scope,
    /// What it does, in one line.
    pub description: &'static str,
}

const fn number(unit: Unit, default: u64, min: u64, max: u64) -> Kind {
    Kind::Number { unit, min, max, default }
}

const fn peer(name: &'static str, kind: Kind, description: &'static str) -> OptionSpec {
    OptionSpec { name, kind, scope: Scope::Peer, description }
}

const fn resource(name: &'static str, kind: Kind, description: &'static str) -> OptionSpec {
    OptionSpec { name, kind, scope: Scope::Resource, description }
}

/// Every option, by name.
pub const OPTIONS: &[OptionSpec] = &[
    resource(
        "al-extents",
        number(Unit::Count, 1237, 67, 65534),
        "how many extents of 4 MiB may be hot: more means fewer metadata writes, and a longer \
         resync after a crash of the Primary",
    ),
    resource(
        "archive",
        Kind::Directory,
        "where the node that is Primary archives base images and the journal; the same path on all",
    ),
    resource(
        "archive-base-age",
        number(Unit::Seconds, 7 * 86_400, 0, 100 * 86_400),
        "how old the newest base image of the archive may be before another one is made; 0 makes \
         only what is needed",
    ),
    resource(
        "archive-interval",
        number(Unit::Seconds, 60, 1, 86_400),
        "how often what is new in the journal is archived",
    ),
    resource(
        "archive-keep",
        number(Unit::Seconds, 30 * 86_400, 0, 1000 * 86_400),
        "how old a moment may be that can be restored from the archive; 0 keeps everything",
    ),
    OptionSpec {
        name: CHECKSUMS,
        kind: Kind::Word { words: &["off", "on"], not_yet: &[] },
        scope: Scope::Node,
        description: "whether this node keeps a checksum for each block of its disk, to find what \
                      changed on it",
    },
    peer(
        "connect-int",
        number(Unit::Seconds, 2, 1, 120),
        "the pause between two attempts to reach a peer",
    ),
    resource(
        "disk-timeout",
        number(Unit::Deciseconds, 0, 0, 6000),
        "how long a node's disk may leave something unanswered before it is given up; 0 waits for ever",
    ),
    resource(
        "journal-compression",
        Kind::Word { words: &["none", "lz4", "zstd"], not_yet: &[] },
        "how the journal of each member stores what is written, where that makes it shorter",
    ),
    resource(
        "journal-size",
        number(Unit::Bytes, 0, 0, 16 << 40),
        "how much the journal of each member may take; at least four of its segments; 0 leaves it \
         as it was made",
    ),
    resource(
        "journal-throttle",
        number(Unit::Count, 0, 0, 99),
        "from how many percent of a journal that are needed on large writes are slowed down to what \
         the slowest follower fetches, each by 100 ms at most; 0 never",
    ),
    peer(
        "ko-count",
        number(Unit::Count, 7, 0, 200),
        "how many timeouts a request may take before the peer is dropped; 0 never drops it",
    ),
    resource(
        "max-in-flight-bytes",
        number(Unit::Bytes, 64 << 20, 1 << 20, 4 << 30),
        "how many bytes of requests may be under way at once; further requests wait",
    ),
    resource(
        "max-in-flight-requests",
        number(Unit::Count, 4096, 64, 65536),
        "how many requests may be under way at once; further requests wait",
    ),
    resource(
        "on-no-data",
        Kind::Word { words: &["io-error"], not_yet: &["suspend-io"] },
        "what a request gets when no node with good data is in reach",
    ),
    peer(
        "ping-int",
        number(Unit::Seconds, 10, 1, 120),
        "how long a peer may be silent before it is asked whether it is there",
    ),
    peer(
        "ping-timeout",
        number(Unit::Deciseconds, 5, 1, 300),
        "how long a peer may take to answer that question before it is dropped",
    ),
    peer(
        "protocol",
        Kind::Word { words: &["C"], not_yet: &["B", "A", "log"] },
        "when a write is done: C, when it is on the peer's disk too",
    ),
    resource(
        "read-hedge",
        number(Unit::Milliseconds, 50, 0, 60_000),
        "how long at least a read waits for a slow disk before a peer is asked as well; 0 never asks",
    ),
    peer(
        "replay-delay",
        number(Unit::Seconds, 0, 0, 30 * 86_400),
        "how far the disk of a node that follows by the log is held behind, by time",
    ),
    peer(
        "resync-in-flight",
        number(Unit::Bytes, 16 << 20, 1 << 20, 256 << 20),
        "how much of a resync may be under way at once",
    ),
    peer(
        "resync-rate",
        number(Unit::BytesPerSecond, 0, 0, 8 << 30),
        "how fast a resync may go; 0 means as fast as it can",
    ),
    resource(
        "scrub-interval",
        number(Unit::Seconds, 14 * 86_400, 0, 1000 * 86_400),
        "how often everything on a node's disk is read, and compared with the peers; 0 never does",
    ),
    resource(
        "scrub-rate",
        number(Unit::BytesPerSecond, 32 << 20, 0, 8 << 30),
        "how fast a scrub may read; it goes slower while clients are busy; 0 means as fast as it can",
    ),
    resource(
        "scrub-window",
        Kind::Window,
        "the part of the day in which scrubs are made that are due",
    ),
    resource(
        "svc-auto-up",
        Kind::Word { words: &["yes", "no"], not_yet: &[] },
        "whether the daemon's start starts the resource where it was up; no leaves that to `up`, \
         except where its device is still in use",
    ),
    peer(
        "timeout",
        number(Unit::Deciseconds, 60, 1, 600),
        "how long a peer may take to answer a request; after ko-count of them it is dropped",
    ),
    resource(
        "verify-rate",
        number(Unit::BytesPerSecond, 0, 0, 8 << 30),
        "how fast a verify may read; 0 means as fast as it can",
    ),
];

/// The option of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}

/// Checks a name and a value; the value in canonical text.
///
/// # Errors
/// `NO_SUCH_OPTION`, `INVALID_OPTION` or `NOT_SUPPORTED_YET`, in one sentence that names the range.
pub fn check(name: &str, value: &str) -> Result<String, ApiError> {
    spec_of(name)?.check(value)
}

/// Checks all of them, as [`check`] does.
///
/// # Errors
/// Those of [`check`], for the first that is wrong.
pub fn check_all(options: &OptionMap) -> Result<OptionMap, ApiError> {
    options.iter().map(|(name, value)| Ok((name.clone(), check(name, value)?))).collect()
}

/// The option of this name, or the refusal.
///
/// # Errors
/// `NO_SUCH_OPTION`.
pub fn spec_of(name: &str) -> Result<&'static OptionSpec, ApiError> {
    find(name).ok_or_else(|| {
        let shown: String = name.chars().take(80).collect();
        let names: Vec<&str> = OPTIONS.iter().map(|spec| spec.name).collect();
        ApiError::new(
            ErrorCode::NoSuchOption,
            format!("option {shown} was not found: there is no option of that name"),
        )
        .hint(format!("the options are {}", names.join(", ")))
    })
}

impl OptionSpec {
    /// Checks a value; it in canonical text.
    ///
    /// # Errors
    /// `INVALID_OPTION` or `NOT_SUPPORTED_YET`, in one sentence that names the range.
    pub fn check(&self, value: &str) -> Result<String, ApiError> {
        match self.kind {
            Kind::Number { unit, min, max, .. } => {
                let number = read_number(value, unit).filter(|n| (min..=max).contains(n));
                number.map(|n| n.to_string()).ok_or_else(|| {
                    self.refuse(&format!("must be between {}", unit.show_range(min, max)), value)
                })
            }
            Kind::Word { words, not_yet } => {
                if not_yet.contains(&value) {
                    return Err(ApiError::new(
                        ErrorCode::NotSupportedYet,
                        format!("{} {value} is not supported by this version yet", self.name),
                    )
                    .hint(format!("it can be {}", words.join(" or "))));
                }
                if words.contains(&value) {
                    return Ok(value.to_owned());
                }
                Err(self.refuse(&format!("must be {}", words.join(" or ")), value))
            }
            Kind::Window => match DayWindow::parse(value) {
                Some(window) => Ok(window.to_string()),
                None => Err(self.refuse("must be HH:MM-HH:MM, or always", value)),
            },
            Kind::Directory => {
                let path = (value.starts_with('/') || value.starts_with(BUCKET_SCHEME))
                    && !value.contains('\0');
                if value == NO_DIRECTORY || (path && value.len() <= MAX_PATH) {
                    return Ok(value.to_owned());
                }
                let must = "must be the absolute path of a directory, s3://BUCKET/PREFIX, or none";
                Err(self.refuse(must, value))
            }
        }
    }

    fn refuse(&self, must: &str, value: &str) -> ApiError {
        let shown: String = value.chars().take(80).collect();
        let given = if shown.is_empty() { "nothing".to_owned() } else { shown };
        let verb = if value.is_empty() || read_number(value, Unit::Count).is_some() {
            format!("{given} was given")
        } else {
            format!("{given:?} was given")
        };
        ApiError::new(ErrorCode::InvalidOption, format!("{} {must}; {verb}", self.name))
            .hint(format!("the default is {}", self.show(&self.default_value())))
    }

    /// What it is when nobody set it, in canonical text.
    #[must_use]
    pub fn default_value(&self) -> String {
        match self.kind {
            Kind::Number { default, .. } => default.to_string(),
            Kind::Word { words, .. } => words.first().copied().unwrap_or_default().to_owned(),
            Kind::Window => DayWindow::ALWAYS.to_string(),
            Kind::Directory => NO_DIRECTORY.to_owned(),
        }
    }

    /// What it counts; empty for counts and words.
    #[must_use]
    pub const fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Number { unit, .. } => unit.as_str(),
            Kind::Word { .. } | Kind::Window | Kind::Directory => "",
        }
    }

    /// What it can be, for people: `1 s .. 120 s`, `C`.
    #[must_use]
    pub fn range(&self) -> String {
        match self.kind {
            Kind::Number { unit, min, max, .. } => {
                format!("{} .. {}", unit.show(min), unit.show(max))
            }
            Kind::Word { words, .. } => words.join(" | "),
            Kind::Window => "HH:MM-HH:MM | always".to_owned(),
            Kind::Directory => format!("PATH | {NO_DIRECTORY}"),
        }
    }

    /// A canonical value with its unit, for people: `64 MiB`, `10 s`.
    #[must_use]
    pub fn show(&self, canonical: &str) -> String {
        match (self.kind, canonical.parse()) {
            (Kind::Number { unit, .. }, Ok(number)) => unit.show(number),
            _ => canonical.to_owned(),
        }
    }

    /// The option as `get` answers it. `own` are the peer's values where `peer` is given.
    #[must_use]
    pub fn describe(&self, resource: &OptionMap, peer: Option<(&str, &OptionMap)>) -> OptionValue {
        OptionValue {
            name: self.name.to_owned(),
            peer: peer.map(|(name, _)| name.to_owned()),
            value: self.value(resource, peer.map(|(_, own)| own)),
            default: self.default_value(),
            unit: self.unit().to_owned(),
            range: self.range(),
            scope: self.scope.as_str().to_owned(),
            description: self.description.to_owned(),
        }
    }

    /// The value that holds: the peer's, else the resource's, else the default. A stored value that
    /// this version does not take (a newer node may have set it) counts as not set.
    #[must_use]
    pub fn value(&self, resource: &OptionMap, peer: Option<&OptionMap>) -> String {
        let own = peer.filter(|_| self.scope == Scope::Peer).and_then(|map| map.get(self.name));
        [own, resource.get(self.name)]
            .into_iter()
            .flatten()
            .find_map(|value| self.check(value).ok())
            .unwrap_or_else(|| self.default_value())
    }
}

/// Reads a number in `unit`, with the suffixes that go with it; `None` when it is none, or when a
/// time is no whole number of the unit.
fn read_number(text: &str, unit: Unit) -> Option<u64> {
    if unit.is_size() {
        return parse_size(text).ok();
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    let per_unit = match (&text[digits..], unit.millis()) {
        ("", _) => return Some(number),
        (_, None) => return None,
        ("ms", Some(unit)) => (1, unit),
        ("ds", Some(unit)) => (100, unit),
        ("s", Some(unit)) => (1000, unit),
        ("m", Some(unit)) => (60_000, unit),
        ("h", Some(unit)) => (3_600_000, unit),
        ("d", Some(unit)) => (86_400_000, unit),
        _ => return None,
    };
    let millis = number.checked_mul(per_unit.0)?;
    millis.is_multiple_of(per_unit.1).then(|| millis / per_unit.1)
}

/// The options that hold on the way to one peer, ready to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How writes travel: `C`.
    pub protocol: String,
    /// How long a peer may take to answer a request.
    pub timeout: Duration,
    /// How long a peer may be silent before it is asked.
    pub ping_int: Duration,
    /// How long it may take to answer that.
    pub ping_timeout: Duration,
    /// The pause between two attempts to connect.
    pub connect_int: Duration,
    /// How many timeouts before the peer is dropped; 0 means never.
    pub ko_count: u32,
    /// How many activity-log extents may be hot.
    pub al_extents: u16,
    /// How many bytes of requests may be under way.
    pub max_in_flight_bytes: u64,
    /// How many requests may be under way.
    pub max_in_flight_requests: u32,
    /// How journals store what is written: `none`, `lz4` or `zstd`.
    pub journal_compression: String,
    /// How much each journal may take, in bytes; 0 leaves it as it was made.
    pub journal_size: u64,
    /// The percentage of a journal from which on large writes are slowed down; 0 means never.
    pub journal_throttle: u64,
    /// How long at least a read waits for a slow disk before a peer is asked; zero means for ever.
    pub read_hedge: Duration,
    /// How long a disk may leave something unanswered; zero means for ever.
    pub disk_timeout: Duration,
    /// How far the disk of a node that follows by the log is held behind.
    pub replay_delay: Duration,
    /// Bytes per second of resync; 0 means no limit.
    pub resync_rate: u64,
    /// How many bytes of resync may be under way.
    pub resync_in_flight: u64,
    /// Bytes per second of a verify; 0 means no limit.
    pub verify_rate: u64,
    /// Bytes per second of a scrub; 0 means no limit.
    pub scrub_rate: u64,
    /// How often everything is read; zero means never.
    pub scrub_interval: Duration,
    /// When in the day that is done.
    pub scrub_window: DayWindow,
    /// The directory of the archive, if there is to be one.
    pub archive: Option<String>,
    /// How old the newest base image may be; zero means any age.
    pub archive_base_age: Duration,
    /// The pause between two looks at the journal.
    pub archive_interval: Duration,
    /// How old moments may be that can be restored; zero means any age.
    pub archive_keep: Duration,
    /// Whether the daemon's start starts the resource where it was up.
    pub auto_up: bool,
}

impl Settings {
    /// What holds, from what is set on the resource and on the peer. Never fails: what is not set,
    /// or not understood, is the default.
    #[must_use]
    pub fn resolve(resource: &OptionMap, peer: Option<&OptionMap>) -> Self {
        let text = |name| {
            let spec = find(name).expect("the name is one of OPTIONS; a test reads them all");
            spec.value(resource, peer)
        };
        let number = |name| -> u64 {
            text(name).parse().expect("the canonical text of a number option is a number")
        };
        let small = |name| -> u32 {
            u32::try_from(number(name)).expect("the range of the option ends below 2^32")
        };
        Self {
            protocol: text("protocol"),
            timeout: Duration::from_millis(number("timeout") * 100),
            ping_int: Duration::from_secs(number("ping-int")),
            ping_timeout: Duration::from_millis(number("ping-timeout") * 100),
            connect_int: Duration::from_secs(number("connect-int")),
            ko_count: small("ko-count"),
            al_extents: u16::try_from(number("al-extents"))
                .expect("the range of the option ends below 2^16"),
            max_in_flight_bytes: number("max-in-flight-bytes"),
            max_in_flight_requests: small("max-in-flight-requests"),
            journal_compression: text("journal-compression"),
            journal_size: number("journal-size"),
            journal_throttle: number("journal-throttle"),
            read_hedge: Duration::from_millis(number("read-hedge")),
            disk_timeout: Duration::from_millis(number("disk-timeout") * 100),
            replay_delay: Duration::from_secs(number("replay-delay")),
            resync_rate: number("resync-rate"),
            resync_in_flight: number("resync-in-flight"),
            verify_rate: number("verify-rate"),
            scrub_rate: number("scrub-rate"),
            scrub_interval: Duration::from_secs(number("scrub-interval")),
            scrub_window: DayWindow::parse(&text("scrub-window")).unwrap_or(DayWindow::ALWAYS),
            archive: Some(text("archive")).filter(|place| place != NO_DIRECTORY),
            archive_base_age: Duration::from_secs(number("archive-base-age")),
            archive_interval: Duration::from_secs(number("archive-interval")),
            archive_keep: Duration::from_secs(number("archive-keep")),
            auto_up: text("svc-auto-up") == "yes",
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::resolve(&OptionMap::new(), None)
    }
}

#[cfg(test)]
mod tests;
