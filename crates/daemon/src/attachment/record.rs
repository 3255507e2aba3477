//! What is kept of an attachment: enough to make it again. One file each, replaced as a whole.

use crate::local::failed;
use crate::statefile;
use holdfast_api::ApiError;
use holdfast_nbd::{MirrorOptions, MirrorStart, NbdUri, Remembered, RemoteOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The first word of a file, and the version of its content.
const HEAD: &str = "holdfast-attachment 1 ";

/// How an export is attached.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) name: String,
    /// At least one.
    pub(crate) uris: Vec<String>,
    pub(crate) connections: usize,
    pub(crate) via: String,
    pub(crate) mirror: bool,
    pub(crate) copy_first: bool,
    pub(crate) tls_certificates: Option<PathBuf>,
    pub(crate) read_only: bool,
    pub(crate) shared: bool,
    /// `None` is for ever.
    pub(crate) io_timeout_seconds: Option<f64>,
    /// The size, once it is known.
    pub(crate) size: Option<u64>,
    /// What the user says that the export must look like, when it is attached for the first time.
    pub(crate) identity: Option<String>,
    /// What it held when the daemon ended: a [`Remembered`]. Not known while it is in use, and not of
    /// mirrors.
    #[serde(default)]
    pub(crate) remembered: Option<String>,
}

impl Record {
    /// How the servers are reached.
    ///
    /// # Errors
    /// What cannot be understood, as the end of a sentence.
    pub(crate) fn options(&self, state_dir: &Path) -> Result<RemoteOptions, String> {
        let uris: Result<Vec<NbdUri>, _> = self.uris.iter().map(|uri| uri.parse()).collect();
        let uris = uris.map_err(|error: holdfast_nbd::UriError| error.to_string())?;
        let timeout = self.io_timeout_seconds.map(Duration::try_from_secs_f64).transpose();
        Ok(RemoteOptions {
            connections: self.connections,
            timeout: timeout.map_err(|_| "the timeout cannot be used".to_owned())?,
            tls_certificates: self.tls_certificates.clone(),
            read_only: self.read_only,
            content_check: !self.shared,
            identity: self.identity.clone(),
            remembered: self.remembered.as_deref().map(str::parse::<Remembered>).transpose()?,
            mirror: self.mirror.then(|| MirrorOptions {
                state_dir: Some(self.mirror_dir(state_dir)),
                start: if self.copy_first { MirrorStart::CopyFirst } else { MirrorStart::Equal },
                ..MirrorOptions::default()
            }),
            ..RemoteOptions::new(uris)
        })
    }

    /// Where it is written down which server of a mirror lacks what. It belongs to the servers and
    /// not to the name: they must never be taken for equal because somebody chose another one.
    pub(crate) fn mirror_dir(&self, state_dir: &Path) -> PathBuf {
        let mut uris = self.uris.clone();
        uris.sort();
        let digest = Sha256::digest(uris.join("\n").as_bytes());
        let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        mirrors_dir(state_dir).join(name)
    }

    /// The name of the export, when it is one that a device can have.
    pub(crate) fn export_name(&self) -> Option<String> {
        let uri: NbdUri = self.uris.first()?.parse().ok()?;
        let name = uri.export.rsplit('/').next().unwrap_or_default().to_owned();
        holdfast_units::check_name(&name).is_ok().then_some(name)
    }
}

/// Where it is written down what is to be known of mirrors.
pub(crate) fn mirrors_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("mirrors")
}

/// The files, in a directory of their own.
pub(crate) struct RecordStore {
    dir: PathBuf,
}

impl RecordStore {
    /// The store below a state directory; makes its directory when it is not there.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, ApiError> {
        let dir = state_dir.join("attachments");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| failed("made", &dir, &error))?;
        Ok(Self { dir })
    }

    /// All that can be read, and what is wrong with the others, a sentence each.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn load(&self) -> Result<(Vec<Record>, Vec<String>), ApiError> {
        let read = statefile::read_all(&self.dir, HEAD, |one: &Record| self.path(&one.name));
        let (found, damaged) = read.map_err(|error| failed("read", &self.dir, &error))?;
        let sentence = |(path, why): &(PathBuf, String)| {
            format!("the state file {} cannot be used: {why}", path.display())
        };
        Ok((found, damaged.iter().map(sentence).collect()))
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// When the system refuses; the version before is still there then.
    pub(crate) fn save(&self, record: &Record) -> Result<(), ApiError> {
        let path = self.path(&record.name);
        statefile::write(&path, HEAD, record).map_err(|error| failed("written", &path, &error))
    }

    /// Removes it durably. That it is not there is no error.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn remove(&self, name: &str) -> Result<(), ApiError> {
        let path = self.path(name);
        statefile::remove(&path).map_err(|error| failed("removed", &path, &error))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.state"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn record(uris: &[&str]) -> Record {
        Record {
            name: "d0".into(),
            uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
            connections: 2,
            via: "auto".into(),
            mirror: true,
            copy_first: false,
            tls_certificates: None,
            read_only: false,
            shared: false,
            io_timeout_seconds: Some(2.5),
            size: Some(4096),
            identity: None,
            remembered: None,
        }
    }

    #[test]
    fn what_was_saved_is_there_and_a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::open(dir.path()).unwrap();
        let one = record(&["nbd://h/a"]);
        let two = Record { name: "d1".into(), io_timeout_seconds: None, ..one.clone() };
        store.save(&one).unwrap();
        store.save(&two).unwrap();
        let mut found = store.load().unwrap().0;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found, [one, two]);
        store.remove("d1").unwrap();
        store.remove("d1").unwrap();
        fs::write(store.path("d0"), "holdfast-attachment 1 0\n{}").unwrap();
        let (found, damaged) = store.load().unwrap();
        assert!(found.is_empty() && damaged.len() == 1, "{damaged:?}");
        assert!(damaged[0].contains("d0.state") && damaged[0].contains("checksum"));
    }

    #[test]
    fn the_notes_of_a_mirror_belong_to_its_servers() {
        let (one, other) = (record(&["nbd://a/", "nbd://b/"]), record(&["nbd://b/", "nbd://a/"]));
        let dir = Path::new("/s");
        assert_eq!(one.mirror_dir(dir), Record { name: "x".into(), ..other }.mirror_dir(dir));
        assert_ne!(one.mirror_dir(dir), record(&["nbd://a/"]).mirror_dir(dir));
    }

    #[test]
    fn the_name_of_the_export_is_taken_where_it_is_one() {
        for (uri, name) in [
            ("nbd://h/r0", Some("r0")),
            ("nbd+unix:///pool/disk-1?socket=/s", Some("disk-1")),
            ("nbd://h/", None),
            ("nbd://h/a%20b", None),
            ("nbd://h/all", None),
        ] {
            assert_eq!(record(&[uri]).export_name().as_deref(), name, "{uri}");
        }
    }
}
