//! The archive: parts with limits, and a manifest of what is in it and what is not.

use super::redact::Redactor;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tar::{Builder, EntryType, Header};

/// A part is never longer than this, in bytes; of longer ones the end is kept.
pub(super) const MOST_OF_PART: usize = 4 << 20;
/// All parts together are never longer than this, in bytes.
const MOST_OF_ALL: u64 = 64 << 20;
/// When it has taken so long, nothing more is collected.
const LONGEST: Duration = Duration::from_secs(120);

/// A part as the manifest has it.
#[derive(Debug, Serialize)]
struct Part {
    /// Its name in the archive.
    name: String,
    /// How long it is, in bytes.
    bytes: usize,
    /// How long it took to make, in milliseconds.
    milliseconds: u128,
    /// Only its end is there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// An archive that is being written. Without [`Bundle::finish`] the file is removed.
pub(super) struct Bundle {
    path: PathBuf,
    /// The directory that it unpacks to.
    top: String,
    tar: Builder<GzEncoder<File>>,
    redactor: Redactor,
    parts: Vec<Part>,
    begun: Instant,
    bytes: u64,
    finished: bool,
    unix_seconds: u64,
}

impl Bundle {
    /// Makes the file, which must not be there; only its owner can read it.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn create(
        path: &Path,
        top: &str,
        redactor: Redactor,
        unix_seconds: u64,
    ) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self {
            path: path.to_owned(),
            top: top.to_owned(),
            tar: Builder::new(GzEncoder::new(file, Compression::default())),
            redactor,
            parts: Vec::new(),
            begun: Instant::now(),
            bytes: 0,
            finished: false,
            unix_seconds,
        })
    }

    /// Whether the time is over: nothing more should be collected.
    pub(super) fn is_late(&self) -> bool {
        self.begun.elapsed() >= LONGEST
    }

    /// Adds what `make` gives, without secrets; that it gives nothing goes into the manifest.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub(super) fn add(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> io::Result<()> {
        if self.is_late() {
            return self.put(
                name,
                Err("the time for the archive was over".to_owned()),
                Instant::now(),
            );
        }
        let begun = Instant::now();
        let made = make();
        self.put(name, made, begun)
    }

    /// Adds a part whose making began at `begun`.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub(super) fn put(
        &mut self,
        name: &str,
        made: Result<Vec<u8>, String>,
        begun: Instant,
    ) -> io::Result<()> {
        let mut part = Part {
            name: name.to_owned(),
            bytes: 0,
            milliseconds: begun.elapsed().as_millis(),
            cut: false,
            problem: None,
        };
        match made {
            Ok(bytes) => {
                let text = self.redactor.redact(&String::from_utf8_lossy(&bytes));
                let mut text = text.as_bytes();
                if text.len() > MOST_OF_PART {
                    part.cut = true;
                    text = &text[text.len() - MOST_OF_PART..];
                }
                let len = text.len() as u64;
                if self.bytes + len > MOST_OF_ALL {
                    part.problem = Some("the archive would become too long".to_owned());
                } else {
                    self.bytes += len;
                    part.bytes = text.len();
                    self.append(name, text)?;
                }
            }
            Err(why) => part.problem = Some(self.redactor.redact(&why)),
        }
        self.parts.push(part);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(self.unix_seconds);
        header.set_size(bytes.len() as u64);
        self.tar.append_data(&mut header, format!("{}/{name}", self.top), bytes)
    }

    /// Writes the manifest and ends the archive, durably; how many parts are there, and how many
    /// are not.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub(super) fn finish(mut self) -> io::Result<(usize, usize)> {
        let missing = self.parts.iter().filter(|part| part.problem.is_some()).count();
        let manifest = serde_json::json!({
            "made_unix_seconds": self.unix_seconds,
            "version": crate::version::text(),
            "took_milliseconds": self.begun.elapsed().as_millis(),
            "parts": self.parts,
        });
        let manifest = serde_json::to_string_pretty(&manifest)?;
        self.append("manifest.json", manifest.as_bytes())?;
        self.tar.finish()?;
        let there = self.parts.len() - missing;
        self.tar.get_mut().try_finish()?;
        self.tar.get_ref().get_ref().sync_all()?;
        self.finished = true;
        Ok((there, missing))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if !self.finished {
            // Half an archive is of no use; that it cannot be removed changes nothing.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn parts_are_bounded_and_what_failed_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        let mut bundle = Bundle::create(&path, "top", Redactor::default(), 1_700_000_000).unwrap();
        bundle.add("a/b.txt", || Ok(b"token = abc".to_vec())).unwrap();
        bundle.add("c.txt", || Err("no such thing: password=abc".to_owned())).unwrap();
        bundle.add("long.txt", || Ok(vec![b'x'; MOST_OF_PART + 5])).unwrap();
        bundle.begun = Instant::now().checked_sub(LONGEST).unwrap();
        bundle.add("late.txt", || panic!("nothing is made when the time is over")).unwrap();
        assert_eq!(bundle.finish().unwrap(), (2, 2));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Bundle::create(&path, "top", Redactor::default(), 0).is_err(), "it is there");

        let file = flate2::read::GzDecoder::new(File::open(&path).unwrap());
        let mut archive = tar::Archive::new(file);
        let mut found = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            io::Read::read_to_string(&mut entry, &mut text).unwrap();
            found.insert(name, text);
        }
        assert_eq!(found["top/a/b.txt"], "token = ***");
        assert_eq!(found["top/long.txt"].len(), MOST_OF_PART);
        let manifest: serde_json::Value =
            serde_json::from_str(&found["top/manifest.json"]).unwrap();
        assert_eq!(manifest["parts"][1]["problem"], "no such thing: password=***");
        assert_eq!(manifest["parts"][2]["cut"], true);
        assert!(manifest["parts"][3]["problem"].as_str().unwrap().contains("the time"));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn half_an_archive_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar.gz");
        drop(Bundle::create(&path, "top", Redactor::default(), 0).unwrap());
        assert!(!path.exists());
    }
}
