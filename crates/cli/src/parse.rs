//! Reading single values of the command line.

use holdfast_api::request::META_INTERNAL;
use holdfast_archive::BUCKET_SCHEME;
use holdfast_nbd::NbdUri;
use std::path::PathBuf;
use std::time::Duration;

/// A name of a resource, node or cluster.
pub(crate) fn name(text: &str) -> Result<String, String> {
    holdfast_units::check_name(text).map_err(|why| why.to_string())?;
    Ok(text.to_owned())
}

/// A size in bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    holdfast_units::parse_size(text).map_err(|why| why.to_string())
}

/// A path that means the same in the daemon's working directory.
pub(crate) fn absolute_path(text: &str) -> Result<String, String> {
    let path = std::path::absolute(text).map_err(|_| "the path is empty".to_owned())?;
    path.into_os_string().into_string().map_err(|_| "the path is not valid UTF-8".to_owned())
}

/// A path as above, or the URI of an NBD export.
pub(crate) fn disk_place(text: &str) -> Result<String, String> {
    if NbdUri::is_scheme_of(text) { Ok(text.to_owned()) } else { absolute_path(text) }
}

/// The place of an archive: a directory, or part of a bucket.
pub(crate) fn archive_place(text: &str) -> Result<String, String> {
    if text.starts_with(BUCKET_SCHEME) { Ok(text.to_owned()) } else { absolute_path(text) }
}

/// `internal`, or a path.
pub(crate) fn meta_place(text: &str) -> Result<String, String> {
    if text == META_INTERNAL { Ok(text.to_owned()) } else { absolute_path(text) }
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// A time with a unit: `90s`, `10m`, `1h`, `2d`; a plain number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fail = || "write a number of seconds, or one with s, m, h or d".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(fail()),
    };
    let number: u64 = digits.parse().map_err(|_| fail())?;
    match number.checked_mul(seconds) {
        Some(0) => Err("it must be more than nothing".to_owned()),
        Some(total) if total <= 366 * 86_400 => Ok(Duration::from_secs(total)),
        _ => Err("it must not be more than a year".to_owned()),
    }
}

/// A number of seconds, not negative; fractions are allowed.
pub(crate) fn positive_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    if (0.0..=31_622_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("it must be between 0 seconds and a year".to_owned())
    }
}

/// A name of an NBD export, or a text about it: what the protocol can carry.
pub(crate) fn export_name(text: &str) -> Result<String, String> {
    if text.len() > 4096 {
        Err("it is longer than 4096 bytes".to_owned())
    } else if text.contains('\0') {
        Err("it holds a NUL".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// `NAME=PATH[,PATH...]`.
pub(crate) fn export(text: &str) -> Result<(String, Vec<PathBuf>), String> {
    let (name, paths) = text.split_once('=').ok_or("write it as NAME=PATH[,PATH...]")?;
    let paths: Vec<PathBuf> = paths.split(',').map(PathBuf::from).collect();
    if name.is_empty() || paths.iter().any(|path| path.as_os_str().is_empty()) {
        return Err("write it as NAME=PATH[,PATH...]".to_owned());
    }
    Ok((export_name(name)?, paths))
}

/// The size of a turn in a stripe.
pub(crate) fn chunk(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes > 0 && bytes <= 1 << 30 && bytes.is_multiple_of(4096) => Ok(bytes),
        _ => Err("it must be a multiple of 4K, and 1G at most".to_owned()),
    }
}

/// A number of connections.
pub(crate) fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=100_000) => Ok(number),
        _ => Err("it must be a number from 1 to 100000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "h", "-1", "1x", "0", "0h", "400d", "99999999999999999999", "1.5h", "ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(positive_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(positive_seconds("0"), Ok(Duration::ZERO));
        for bad in ["", "-1", "NaN", "inf", "1e99", "5s"] {
            assert!(positive_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_for_the_daemon() {
        assert_eq!(absolute_path("/a/b"), Ok("/a/b".into()));
        let here = std::env::current_dir().unwrap().join("x");
        assert_eq!(absolute_path("x"), Ok(here.to_str().unwrap().into()));
        assert!(absolute_path("").is_err());
        let uri = "nbd+unix:///x?socket=/s";
        assert_eq!(disk_place(uri), Ok(uri.into()));
        assert!(disk_place("nbd/x").unwrap().ends_with("/nbd/x"));
        assert_eq!(meta_place("internal"), Ok("internal".into()));
        assert!(meta_place("./internal").unwrap().ends_with("/internal"));
    }

    #[test]
    fn keys_and_values() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
    }

    #[test]
    fn exports_and_their_numbers() {
        assert_eq!(export("a=/x,y"), Ok(("a".into(), vec!["/x".into(), "y".into()])));
        assert_eq!(export("a=b=c"), Ok(("a".into(), vec!["b=c".into()])));
        for bad in ["", "a", "=x", "a=", "a=x,", "a=,x"] {
            assert!(export(bad).is_err(), "{bad}");
        }
        assert_eq!(chunk("64K"), Ok(65536));
        assert!(["0", "1K", "6000", "2G", "x"].iter().all(|bad| chunk(bad).is_err()));
        assert_eq!(connections("7"), Ok(7));
        assert!(["0", "-1", "100001", ""].iter().all(|bad| connections(bad).is_err()));
        assert!(export_name(&"n".repeat(4097)).is_err() && export_name("ä\0").is_err());
    }
}
