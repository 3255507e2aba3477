//! Licences of all dependencies, and crates that must not come in.

use crate::Fault;
use anyhow::{Context, Result};
use serde_json::Value;

/// Licences that a binary under "Apache-2.0 OR MIT" may contain. All are permissive: they ask for
/// their text to be passed on, at most.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    // Tables of Unicode, which are data.
    "Unicode-3.0",
    // Mozilla's list of root certificates, which is data.
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unlicense",
    "Zlib",
];

/// What our own crates say.
const OURS: &str = "Apache-2.0 OR MIT";

/// Crates that were decided against, with the reason.
const BANNED: [(&str, &str); 5] = [
    ("bincode", "it is unmaintained, and formats here are written by hand"),
    ("devicemapper", "Holdfast does without device mapper"),
    ("libublk", "Holdfast speaks to ublk itself"),
    ("openssl", "TLS is rustls with aws-lc"),
    ("openssl-sys", "TLS is rustls with aws-lc"),
];

/// Checks every package that a build on this kind of machine uses.
pub(crate) fn check(metadata: &Value, faults: &mut Vec<Fault>) -> Result<()> {
    let packages = metadata["packages"].as_array().context("metadata without packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("metadata without nodes")?;
    for package in packages.iter().filter(|p| nodes.iter().any(|node| node["id"] == p["id"])) {
        let name = package["name"].as_str().context("a package without name")?;
        let ours = package["source"].is_null();
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            let what = format!("this crate must not be used: {why}");
            faults.push(Fault { place: format!("crate {name}"), line: 0, what });
        }
        let what = match package["license"].as_str() {
            None => "it has no licence expression".to_owned(),
            Some(licence) if ours && licence != OURS => {
                format!("the licence is {licence}, not {OURS}")
            }
            Some(licence) if !allows(licence) => {
                format!("the licence {licence} is not on the list of allowed ones")
            }
            Some(_) => continue,
        };
        faults.push(Fault { place: format!("crate {name}"), line: 0, what });
    }
    Ok(())
}

/// Whether a licence expression (SPDX, or the older form with slashes) leaves a choice that is
/// allowed. What cannot be read is not allowed.
fn allows(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words };
    parser.any() == Some(true) && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
}

impl Parser<'_> {
    fn next_is(&mut self, word: &str) -> bool {
        let is = self.words.first() == Some(&word);
        if is {
            self.words = &self.words[1..];
        }
        is
    }

    /// `a OR b OR c`; AND binds closer.
    fn any(&mut self) -> Option<bool> {
        let mut allowed = self.all()?;
        while self.next_is("OR") {
            allowed |= self.all()?;
        }
        Some(allowed)
    }

    fn all(&mut self) -> Option<bool> {
        let mut allowed = self.one()?;
        while self.next_is("AND") {
            allowed &= self.one()?;
        }
        Some(allowed)
    }

    fn one(&mut self) -> Option<bool> {
        if self.next_is("(") {
            let allowed = self.any()?;
            return self.next_is(")").then_some(allowed);
        }
        let (licence, rest) = self.words.split_first()?;
        self.words = rest;
        if matches!(*licence, "OR" | "AND" | "WITH" | ")") {
            return None;
        }
        if self.next_is("WITH") {
            let (exception, rest) = self.words.split_first()?;
            self.words = rest;
            return Some(ALLOWED.contains(&format!("{licence} WITH {exception}").as_str()));
        }
        Some(ALLOWED.contains(licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "MIT OR Apache-2.0 OR LGPL-2.1-or-later",
            "ISC AND (Apache-2.0 OR ISC) AND MIT",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
            "GPL-3.0 AND GPL-2.0 OR MIT",
            "Unlicense OR MIT",
        ] {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "",
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "MIT AND (GPL-2.0 OR OpenSSL)",
            "GPL-2.0 WITH Classpath-exception",
            "MIT WITH LLVM-exception",
            "MIT OR",
            "(MIT",
            "MIT)",
            "MIT MIT",
            "OR",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn packages() {
        let package = |name: &str, licence: Value, source: Value| json!({"id": name, "name": name, "license": licence, "source": source});
        let registry = json!("registry");
        let metadata = json!({
            "packages": [
                package("ours", json!("Apache-2.0 OR MIT"), Value::Null),
                package("ours-too", json!("MIT"), Value::Null),
                package("fine", json!("MIT"), registry.clone()),
                package("copyleft", json!("GPL-3.0-only"), registry.clone()),
                package("silent", Value::Null, registry.clone()),
                package("bincode", json!("MIT"), registry.clone()),
                package("elsewhere", json!("GPL-3.0-only"), registry),
            ],
            "resolve": {"nodes": [
                {"id": "ours"}, {"id": "ours-too"}, {"id": "fine"}, {"id": "copyleft"},
                {"id": "silent"}, {"id": "bincode"},
            ]},
        });
        let mut faults = Vec::new();
        check(&metadata, &mut faults).unwrap();
        let places: Vec<_> = faults.iter().map(|fault| fault.place.as_str()).collect();
        assert_eq!(places, ["crate ours-too", "crate copyleft", "crate silent", "crate bincode"]);
    }
}
