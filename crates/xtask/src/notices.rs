//! What the licences of the libraries ask to be passed on with the program that contains them.

use crate::rooms::reached;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How the files begin that a crate has them in.
const BEGINNINGS: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// The names and licences of all crates that are compiled into a package of this workspace, and the texts that
/// come with them. Crates with the same text are named together.
///
/// # Errors
/// When cargo does not know the package, or a file cannot be read.
pub fn notices(root: &Path, package: &str) -> Result<String> {
    let metadata = crate::metadata(root)?;
    let packages = metadata["packages"].as_array().context("metadata without packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("metadata without nodes")?;
    let top = packages.iter().find(|found| found["name"] == package && found["source"].is_null());
    let top = top.with_context(|| format!("there is no package {package}"))?;
    let ids = reached(nodes, top["id"].as_str().context("a package without id")?);
    let mut crates = BTreeMap::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for found in packages {
        let theirs = !found["source"].is_null();
        let Some(id) = found["id"].as_str().filter(|id| theirs && ids.contains(*id)) else {
            continue;
        };
        let field =
            |name: &str| found[name].as_str().with_context(|| format!("{id} has no {name}"));
        let name = format!("{} {}", field("name")?, field("version")?);
        for text in texts_of(Path::new(field("manifest_path")?))? {
            texts.entry(text).or_default().push(name.clone());
        }
        crates.insert(name, field("license")?.to_owned());
    }
    Ok(write(package, &crates, texts))
}

/// The texts beside a manifest.
fn texts_of(manifest: &Path) -> Result<Vec<String>> {
    let dir = manifest.parent().context("a manifest without directory")?;
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut texts = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let named = |word: &str| name.to_ascii_uppercase().starts_with(word);
        if path.is_file() && BEGINNINGS.iter().any(|word| named(word)) {
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&text).replace('\r', "").trim().to_owned());
        }
    }
    texts.sort();
    texts.dedup();
    Ok(texts)
}

fn write(
    package: &str,
    crates: &BTreeMap<String, String>,
    texts: BTreeMap<String, Vec<String>>,
) -> String {
    let mut all = format!(
        "{package} contains these libraries, and the standard library of Rust (MIT or Apache-2.0):\n\n"
    );
    for (name, licence) in crates {
        all.push_str(&format!("{name}: {licence}\n"));
    }
    let mut texts: Vec<_> =
        texts.into_iter().map(|(text, names)| (names.join(", "), text)).collect();
    texts.sort();
    for (names, text) in texts {
        all.push_str(&format!("\n{}\n{names}\n\n{text}\n", "=".repeat(78)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_is_named_and_its_text_is_there() {
        let all = notices(&crate::root(), "holdfast").unwrap();
        for there in ["\nrustls 0.", "\naws-lc-sys 0.", "\ntokio 1.", "\nserde 1."] {
            assert!(all.contains(there), "{there}");
        }
        // The text of an own crate, and crates that only tests use.
        for not_there in ["\nholdfast-core ", "\nproptest "] {
            assert!(!all.contains(not_there), "{not_there}");
        }
        assert!(all.contains("Permission is hereby granted, free of charge"));
        assert!(all.contains("Redistributions in binary form must reproduce"));
    }

    #[test]
    fn the_same_text_stands_once() {
        let crates = BTreeMap::from([("a 1".into(), "MIT".into()), ("b 2".into(), "MIT".into())]);
        let texts = BTreeMap::from([("Text.".into(), vec!["a 1".into(), "b 2".into()])]);
        let all = write("p", &crates, texts);
        assert_eq!(all.matches("Text.").count(), 1);
        assert!(all.contains("a 1: MIT\nb 2: MIT\n") && all.contains("\na 1, b 2\n\nText.\n"));
    }
}
