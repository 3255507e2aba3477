//! The deterministic rooms: no I/O, no clock, no thread, nothing random.

use crate::Fault;
use crate::code::{code_of, is_word, lines_with};
use crate::sources::SourceFile;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;

/// What the same events must always lead the same way through.
const ROOMS: [&str; 5] = ["units", "format", "wire", "core", "journal"];

/// Parts of these rooms that do I/O: the small driver beside the logic, and what runs it.
const DRIVERS: [&str; 3] =
    ["crates/journal/src/driver/", "crates/journal/tests/", "crates/journal/examples/"];

/// What only such a driver uses of the crates that are forbidden.
const USED_BY_DRIVERS: [(&str, &str); 1] = [("journal", "rustix")];

/// What must not stand in their code, tests included.
const FORBIDDEN: [&str; 13] = [
    "tokio",
    "io_uring",
    "rustix",
    "libc",
    "std::net",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime",
    "rand::",
    "getrandom",
];

/// The maps of std iterate in an order that differs from run to run.
const UNORDERED: [&str; 3] = ["HashMap", "HashSet", "RandomState"];

/// Crates that must not be below a deterministic room, however deep.
const FORBIDDEN_CRATES: [&str; 9] = [
    "async-std",
    "getrandom",
    "io-uring",
    "mio",
    "rand",
    "rand_core",
    "rustix",
    "socket2",
    "tokio",
];

fn room_of(path: &str) -> Option<&str> {
    if DRIVERS.iter().any(|driver| path.starts_with(driver)) {
        return None;
    }
    let room = path.strip_prefix("crates/")?.split('/').next()?;
    ROOMS.contains(&room).then_some(room)
}

pub(crate) fn check_source(file: &SourceFile, faults: &mut Vec<Fault>) {
    let Some(room) = room_of(&file.path) else { return };
    let code = code_of(&file.text);
    let mut add = |line, what: String| {
        faults.push(Fault { place: file.path.clone(), line, what });
    };
    for word in FORBIDDEN {
        for line in lines_with(&code, word) {
            add(line, format!("`{word}` must not be in the deterministic room {room}"));
        }
    }
    for word in UNORDERED {
        for line in lines_with(&code, word) {
            add(line, format!("`{word}` has a random order, use a BTreeMap in the room {room}"));
        }
    }
    for (line, word) in grouped_imports(&code) {
        if FORBIDDEN.contains(&word.as_str()) {
            add(line, format!("`{word}` must not be in the deterministic room {room}"));
        }
    }
}

/// The paths one level below `std` that `use std::{...}` names.
fn grouped_imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, start) in code.match_indices("std::{") {
        let line = code[..at].matches('\n').count() + 1;
        let (mut depth, mut word_starts) = (1, true);
        let inner = &code[at + start.len()..];
        for (index, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => word_starts = true,
                c if word_starts && !c.is_whitespace() => {
                    word_starts = false;
                    let rest = &inner[index..];
                    let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                    found.push((line, format!("std::{}", &rest[..end])));
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// What the rooms depend on: directly for tests, and at any depth for the code itself.
pub(crate) fn check_dependencies(metadata: &Value, faults: &mut Vec<Fault>) -> Result<()> {
    let packages = metadata["packages"].as_array().context("metadata without packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("metadata without nodes")?;
    for room in ROOMS {
        let place = format!("holdfast-{room}");
        let package = packages
            .iter()
            .find(|package| package["name"] == place.as_str())
            .with_context(|| format!("there is no crate {place}"))?;
        let direct = package["dependencies"].as_array().into_iter().flatten();
        for name in direct.filter_map(|dependency| dependency["name"].as_str()) {
            if forbidden(room, name) {
                let what = format!("a deterministic room must not depend on {name}");
                faults.push(Fault { place: place.clone(), line: 0, what });
            }
        }
        let root = package["id"].as_str().context("a package without id")?;
        for id in reached(nodes, root) {
            let package = packages.iter().find(|package| package["id"] == id.as_str());
            let name = package.and_then(|package| package["name"].as_str()).unwrap_or_default();
            if forbidden(room, name) {
                let what = format!("a deterministic room must not reach {name} by dependencies");
                faults.push(Fault { place: place.clone(), line: 0, what });
            }
        }
    }
    Ok(())
}

fn forbidden(room: &str, name: &str) -> bool {
    FORBIDDEN_CRATES.contains(&name) && !USED_BY_DRIVERS.contains(&(room, name))
}

/// All packages that code of `root` can use: normal dependencies, not those of builds and tests.
pub(crate) fn reached(nodes: &[Value], root: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(id) = waiting.pop() {
        let node = nodes.iter().find(|node| node["id"] == id.as_str());
        let deps = node.and_then(|node| node["deps"].as_array()).into_iter().flatten();
        let normal = deps.filter(|dep| {
            let kinds = dep["dep_kinds"].as_array().into_iter().flatten();
            kinds.into_iter().any(|kind| kind["kind"].is_null())
        });
        for next in normal.filter_map(|dep| dep["pkg"].as_str()) {
            if seen.insert(next.to_owned()) {
                waiting.push(next.to_owned());
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults_of(path: &str, text: &str) -> Vec<usize> {
        let mut faults = Vec::new();
        let file = SourceFile { path: path.into(), text: text.into() };
        check_source(&file, &mut faults);
        faults.iter().map(|fault| fault.line).collect()
    }

    #[test]
    fn io_clocks_and_chance_are_seen_in_rooms_only() {
        let core = "crates/core/src/x.rs";
        for code in [
            "use tokio::sync;",
            "use std::fs::File;",
            "use std::{fmt, net};",
            "use std::{\n    fmt::{self, Debug},\n    thread,\n};",
            "let t = std::time::Instant::now();",
            "let t = time::SystemTime::now();",
            "rand::rng()",
            "use std::collections::HashMap;",
        ] {
            assert_eq!(faults_of(core, code), [1], "{code}");
            assert_eq!(faults_of("crates/journal/src/journal/tests.rs", code), [1], "{code}");
            for elsewhere in ["crates/store/src/x.rs", "crates/journal/src/driver/x.rs"] {
                assert!(faults_of(elsewhere, code).is_empty(), "{code}");
            }
        }
        for code in [
            "// no tokio here, no std::fs",
            "let x = \"std::fs\";",
            "use std::{fmt, collections::{BTreeMap, net}};",
            "use std::fmt; use rand_xoshiro::X;",
        ] {
            assert!(faults_of(core, code).is_empty(), "{code}");
        }
    }

    #[test]
    fn dependencies_are_followed() {
        let dep = |pkg: &str, kind: Value| json!({"pkg": pkg, "dep_kinds": [{"kind": kind}]});
        let package = |name: &str, dependencies: Value| json!({"id": name, "name": name, "dependencies": dependencies});
        let metadata = json!({
            "packages": [
                package("holdfast-units", json!([])),
                package("holdfast-format", json!([{"name": "tokio"}])),
                package("holdfast-wire", json!([])),
                package("holdfast-core", json!([{"name": "rustix"}])),
                package("holdfast-journal", json!([{"name": "rustix"}, {"name": "socket2"}])),
                package("middle", json!([])),
                package("mio", json!([])),
                package("rand", json!([])),
            ],
            "resolve": {"nodes": [
                {"id": "holdfast-core", "deps": [
                    dep("middle", Value::Null), dep("rand", json!("dev")),
                ]},
                {"id": "middle", "deps": [dep("mio", Value::Null)]},
            ]},
        });
        let mut faults = Vec::new();
        check_dependencies(&metadata, &mut faults).unwrap();
        let found: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "holdfast-format: a deterministic room must not depend on tokio",
                "holdfast-core: a deterministic room must not depend on rustix",
                "holdfast-core: a deterministic room must not reach mio by dependencies",
                "holdfast-journal: a deterministic room must not depend on socket2",
            ]
        );
    }
}
