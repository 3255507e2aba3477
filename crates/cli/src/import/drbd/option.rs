//! What DRBD's options are here.

use super::resource::Setting;
use crate::import::ledger::Outcome;
use holdfast_api::options;

/// What becomes of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This option of the resource, with this value.
    Set(&'static str, String),
    /// The size of the resource in bytes.
    Size(u64),
    /// Something else.
    Other(Outcome),
}

fn needless(why: &str) -> Verdict {
    Verdict::Other(Outcome::needless(why))
}

fn missing(instead: &str) -> Verdict {
    Verdict::Other(Outcome::missing(instead))
}

/// Sets an option that is checked as `set` checks it.
fn set(name: &'static str, value: &str) -> Verdict {
    match options::check(name, value) {
        Ok(_) => Verdict::Set(name, value.to_owned()),
        Err(error) => missing(&format!("{}; `holdfast set` sets another value", error.message)),
    }
}

/// The value of a yes-or-no option; the bare word is yes.
fn yes(words: &[&str]) -> Option<bool> {
    match words {
        [] | ["yes"] => Some(true),
        ["no"] => Some(false),
        _ => None,
    }
}

/// A size with DRBD's suffixes, in bytes; without one it counts `unit` bytes.
fn size(text: &str, unit: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => unit,
        "s" | "S" => 512,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// What becomes of one option, from its section and its words.
pub(super) fn verdict(setting: &Setting) -> Option<Verdict> {
    let words: Vec<&str> = setting.words.iter().map(String::as_str).collect();
    let (key, values) = words.split_first()?;
    match setting.section.as_str() {
        "net" => net(key, values).or_else(|| syncer(key, values)),
        "disk" => disk(key, values).or_else(|| syncer(key, values)),
        "syncer" => syncer(key, values).or_else(|| disk(key, values)).or_else(|| net(key, values)),
        "options" => resource(key, values),
        "handlers" => Some(handler(key)),
        "startup" => Some(startup(key)),
        _ => Some(missing(
            "there is no proxy between nodes: for a far node over a slow line, `join --protocol \
             log` on it follows the journal",
        )),
    }
}

fn net(key: &str, values: &[&str]) -> Option<Verdict> {
    let verdict = match (key, values) {
        ("protocol", ["C"]) => set("protocol", "C"),
        ("protocol", ["A"]) => missing(
            "writes travel by protocol C; for a far node, `holdfast join NAME --disk PATH \
             --journal DIR --protocol log` there follows the journal without holding writers up",
        ),
        ("protocol", ["B"]) => missing("writes travel by protocol C, which promises more than B"),
        ("timeout", [value]) => set("timeout", value),
        ("connect-int", [value]) => set("connect-int", value),
        ("ping-int", [value]) => set("ping-int", value),
        ("ping-timeout", [value]) => set("ping-timeout", value),
        ("ko-count", [value]) => set("ko-count", value),
        ("allow-two-primaries", words) => match yes(words)? {
            false => needless("there is one Primary at a time"),
            true => missing(
                "there is one Primary at a time; for live migration move the role with \
                 `secondary` and `primary`, for a cluster filesystem there is no way",
            ),
        },
        ("cram-hmac-alg" | "shared-secret", [_]) => needless(
            "nodes know each other by certificates, which `cluster join` exchanges; there is no \
             secret to share",
        ),
        ("verify-alg", [_]) => needless("`holdfast verify` always compares by a strong digest"),
        ("csums-alg" | "csums-after-crash-only", _) => {
            needless("a resync copies only the blocks that were changed apart")
        }
        ("data-integrity-alg", [_]) => {
            needless("all that travels between nodes is inside TLS, which finds every change")
        }
        ("tls", _) => needless("all that travels between nodes is inside TLS"),
        ("tls-keyring" | "tls-privkey" | "tls-certificate", _) => {
            needless("nodes make their keys by themselves")
        }
        ("transport", ["tcp"]) => needless("nodes speak TCP"),
        ("transport", [_]) => missing("nodes speak TCP, also over InfiniBand (IPoIB)"),
        ("load-balance-paths", _) => {
            missing("one path is used at a time, the next when it is lost; bond the links for more")
        }
        ("after-sb-0pri" | "after-sb-1pri" | "after-sb-2pri", ["disconnect"]) => {
            needless("so it is: after a split brain the nodes do not connect")
        }
        ("after-sb-0pri" | "after-sb-1pri" | "after-sb-2pri" | "always-asbp", _) => missing(
            "a split brain is not resolved by itself: somebody says on the node that gives way \
             `holdfast connect NAME --discard-my-data`",
        ),
        ("rr-conflict", ["disconnect"]) => needless("so it is"),
        ("rr-conflict", _) => missing(
            "a node that would lose what it has as Primary is not overwritten: see `holdfast \
             status`",
        ),
        ("on-congestion", ["block"]) => needless("so it is: writers wait for a slow peer"),
        (
            "on-congestion" | "congestion-fill" | "congestion-extents" | "congestion-highwater",
            _,
        ) => missing(
            "a peer that is too slow to be waited for follows the journal: `holdfast join NAME \
                 --disk PATH --journal DIR --protocol log` there",
        ),
        ("fencing", ["dont-care"]) => needless("so it is"),
        ("fencing", _) => missing(
            "peers are not fenced by a script: a cluster manager that promotes must make sure \
             that the other node is off before `holdfast primary --force`",
        ),
        (
            "max-buffers"
            | "max-epoch-size"
            | "unplug-watermark"
            | "sndbuf-size"
            | "rcvbuf-size"
            | "rdma-ctrl-rcvbuf-size"
            | "rdma-ctrl-sndbuf-size",
            [_],
        ) => needless("buffers are bounded by max-in-flight-bytes and max-in-flight-requests"),
        ("tcp-cork" | "use-rle" | "socket-check-timeout" | "allow-remote-read", _) => {
            needless("it is decided by itself")
        }
        _ => return None,
    };
    Some(verdict)
}

fn disk(key: &str, values: &[&str]) -> Option<Verdict> {
    let verdict = match (key, values) {
        ("on-io-error", ["detach"]) => needless(
            "so it is: what a failing disk cannot read comes from the peers, and a disk that \
             cannot be used is given up",
        ),
        ("on-io-error", _) => missing(
            "errors of the disk are not passed on while a peer has the data: `holdfast health \
             NAME` shows them",
        ),
        ("al-extents", [value]) => set("al-extents", value),
        ("al-updates", words) => match yes(words)? {
            true => needless("so it is"),
            false => missing("the activity log is always kept: a crash costs a short resync only"),
        },
        ("size", [value]) => Verdict::Size(size(value, 512)?),
        (
            "disk-barrier" | "disk-flushes" | "disk-drain" | "md-flushes" | "no-disk-barrier"
            | "no-disk-flushes" | "no-disk-drain" | "no-md-flushes",
            words,
        ) => {
            let off = key.starts_with("no-") || !yes(words)?;
            match off && key.ends_with("flushes") {
                true => missing(
                    "what a client flushes is always flushed to the disks; with a cache that a \
                     battery keeps, have the controller ignore flushes",
                ),
                false => needless("the disk is flushed when a client asks for it"),
            }
        }
        ("resync-after" | "after", _) => missing(
            "resyncs are not put in an order: resync-rate of each resource bounds what they take",
        ),
        ("disk-timeout", [value]) => set("disk-timeout", value),
        ("read-balancing", ["prefer-local"]) => needless("so it is"),
        ("read-balancing", _) => missing("reads go to the own disk, and to a peer when that fails"),
        ("fencing", _) => return net(key, values),
        (
            "max-bio-bvecs"
            | "max-bio-size"
            | "discard-zeroes-if-aligned"
            | "disable-write-same"
            | "rs-discard-granularity"
            | "block-size"
            | "discard-granularity"
            | "bitmap"
            | "peer-tiebreaker"
            | "resync-without-replication",
            _,
        ) => needless("it is decided by itself"),
        _ => return None,
    };
    Some(verdict)
}

/// The options of a resync, which stand in `syncer` in older files.
fn syncer(key: &str, values: &[&str]) -> Option<Verdict> {
    let verdict = match (key, values) {
        ("resync-rate" | "rate" | "c-max-rate", [value]) => {
            // DRBD counts KiB where no suffix says otherwise.
            set("resync-rate", &short(size(value, 1 << 10)?))
        }
        ("c-min-rate" | "c-plan-ahead" | "c-fill-target" | "c-delay-target", [_]) => needless(
            "a resync finds its pace by itself and leaves the disk to the clients; resync-rate \
             and resync-in-flight bound it",
        ),
        ("al-extents", [value]) => set("al-extents", value),
        ("verify-alg" | "csums-alg" | "use-rle", _) => return net(key, values),
        ("cpu-mask", _) => return resource(key, values),
        _ => return None,
    };
    Some(verdict)
}

/// A number of bytes as people write it.
fn short(bytes: u64) -> String {
    let suffix = [(1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let found = suffix.iter().find(|(size, _)| bytes >= *size && bytes.is_multiple_of(*size));
    found.map_or_else(|| bytes.to_string(), |(size, suffix)| format!("{}{suffix}", bytes / size))
}

fn resource(key: &str, values: &[&str]) -> Option<Verdict> {
    let verdict = match (key, values) {
        ("on-no-data-accessible", ["io-error"]) => set("on-no-data", "io-error"),
        ("on-no-data-accessible", ["suspend-io"]) => {
            missing("I/O fails while no node with good data is in reach; it is not held yet")
        }
        ("quorum", ["off"]) => needless("so it is"),
        (
            "quorum"
            | "quorum-minimum-redundancy"
            | "on-no-quorum"
            | "on-suspended-primary-outdated",
            _,
        ) => missing(
            "there is no quorum: a node is made Primary by a command, and refuses where it may \
             lack data; a cluster manager that promotes by itself must have a quorum of its own",
        ),
        ("auto-promote", words) => match yes(words)? {
            false => needless("so it is: `holdfast primary NAME` makes a node Primary"),
            true => {
                missing("a node does not become Primary by being used: `holdfast primary NAME`")
            }
        },
        (
            "auto-promote-timeout"
            | "peer-ack-window"
            | "peer-ack-delay"
            | "twopc-timeout"
            | "twopc-retry-timeout"
            | "max-io-depth"
            | "cpu-mask"
            | "drbd8-api-compatibility",
            _,
        ) => needless("it is about how DRBD works inside"),
        _ => return None,
    };
    Some(verdict)
}

fn handler(key: &str) -> Verdict {
    let event = match key {
        "split-brain" | "initial-split-brain" => "a split brain",
        "local-io-error" | "pri-on-incon-degr" => "a failed disk",
        "quorum-lost" | "pri-lost" | "pri-lost-after-sb" => "a lost role",
        "out-of-sync" => "blocks that differ",
        "fence-peer" | "unfence-peer" | "outdate-peer" => {
            return missing(
                "no script is called to fence a peer: a cluster manager that promotes must make \
                 sure that the other node is off before `holdfast primary --force`",
            );
        }
        "before-resync-target" | "after-resync-target" | "before-resync-source" => "a resync",
        _ => "it",
    };
    missing(&format!(
        "no scripts are called: a service that reads `holdfast events --follow --json` hears of \
         {event}, and can call this one"
    ))
}

fn startup(key: &str) -> Verdict {
    match key {
        "wfc-timeout"
        | "degr-wfc-timeout"
        | "outdated-wfc-timeout"
        | "wait-after-sb"
        | "stacked-timeouts" => missing(
            "the start of the machine does not wait for peers; a unit that must can call \
             `holdfast wait NAME --for connected --timeout SECONDS`",
        ),
        "become-primary-on" => missing(
            "a node that was Primary becomes so again after a restart when that is safe; \
             otherwise `holdfast primary NAME`",
        ),
        _ => missing("there is nothing like it at the start of the daemon"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::ledger::Ledger;
    use crate::import::source::Place;
    use std::rc::Rc;

    fn of(section: &str, text: &str) -> Option<Verdict> {
        let place = Place { file: Rc::new("f".into()), line: 1, column: 1 };
        let id = Ledger::default().add(place, text.to_owned());
        let words = text.split(' ').map(str::to_owned).collect();
        verdict(&Setting { section: section.to_owned(), words, id })
    }

    #[test]
    fn rates_and_times_keep_their_meaning() {
        let set = |section, text| match of(section, text) {
            Some(Verdict::Set(name, value)) => format!("{name}={value}"),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(set("disk", "resync-rate 33M"), "resync-rate=33M");
        assert_eq!(set("syncer", "rate 10240"), "resync-rate=10M");
        assert_eq!(set("disk", "c-max-rate 1500k"), "resync-rate=1500K");
        assert_eq!(set("net", "timeout 60"), "timeout=60");
        assert_eq!(set("net", "ping-int 10"), "ping-int=10");
        assert_eq!(set("options", "on-no-data-accessible io-error"), "on-no-data=io-error");
        assert_eq!(of("disk", "size 100"), Some(Verdict::Size(51200)));
        assert_eq!(of("disk", "size 1G"), Some(Verdict::Size(1 << 30)));
    }

    #[test]
    fn what_cannot_be_set_says_what_to_do() {
        for (section, text, word) in [
            ("net", "ping-int 1000", "ping-int must be between"),
            ("net", "protocol A", "--protocol log"),
            ("net", "allow-two-primaries yes", "one Primary"),
            ("net", "allow-two-primaries", "one Primary"),
            ("disk", "no-disk-flushes", "always flushed"),
            ("disk", "disk-flushes no", "always flushed"),
            ("options", "quorum majority", "no quorum"),
            ("handlers", "fence-peer /x", "fence"),
            ("startup", "wfc-timeout 10", "holdfast wait"),
        ] {
            match of(section, text) {
                Some(Verdict::Other(Outcome::Missing(why))) => assert!(why.contains(word), "{why}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        for (section, text) in [
            ("net", "allow-two-primaries no"),
            ("net", "shared-secret x"),
            ("disk", "on-io-error detach"),
            ("disk", "md-flushes yes"),
            ("options", "quorum off"),
        ] {
            assert!(
                matches!(of(section, text), Some(Verdict::Other(Outcome::Needless(_)))),
                "{text}"
            );
        }
        for (section, text) in [("net", "nonsense 1"), ("disk", "size x"), ("disk", "size 1 2")] {
            assert_eq!(of(section, text), None, "{text}");
        }
    }
}
