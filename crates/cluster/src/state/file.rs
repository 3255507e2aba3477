//! `cluster.state`: one line that says what it is and its checksum, then JSON.

use super::Data;
use crate::durable::{self, Watch};
use crate::identity::io_refusal;
use crate::{Code, Fingerprint, Refusal};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const NAME: &str = "cluster.state";
const MAGIC: &str = "holdfast-cluster";
const VERSION: &str = "1";
/// All records with every character quoted, and then some.
const MAX_FILE: u64 = 48 << 20;

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// The state that was saved last; an empty one when none was saved yet.
pub(super) fn load(dir: &Path) -> Result<Data, Refusal> {
    let path = path(dir);
    let bytes =
        durable::read_bounded(&path, MAX_FILE).map_err(|e| io_refusal("read", &path, &e))?;
    let Some(bytes) = bytes else {
        let backup = durable::backup_of(&path);
        return match backup.try_exists() {
            Ok(false) => Ok(Data::default()),
            _ => Err(damaged(&path, "it is missing, although its previous version is there")),
        };
    };
    decode(&bytes, &path)
}

/// Replaces the state; durable when it returns.
pub(super) fn save(dir: &Path, data: &Data, watch: Watch<'_>) -> Result<(), Refusal> {
    let path = path(dir);
    durable::replace(&path, &encode(data), watch).map_err(|e| io_refusal("write", &path, &e))
}

fn encode(data: &Data) -> Vec<u8> {
    let body = serde_json::to_vec(data).expect("texts, numbers and maps of texts are JSON");
    let sum = Fingerprint(Sha256::digest(&body).into());
    let mut bytes = format!("{MAGIC} {VERSION} {sum}\n").into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8], path: &Path) -> Result<Data, Refusal> {
    let newline = bytes.iter().take(200).position(|byte| *byte == b'\n');
    let (head, body) = newline.map_or((bytes, &[][..]), |at| (&bytes[..at], &bytes[at + 1..]));
    let head = str::from_utf8(head).unwrap_or_default();
    let [MAGIC, version, sum] = head.split(' ').collect::<Vec<_>>()[..] else {
        return Err(damaged(path, "it does not begin as it should"));
    };
    if version != VERSION {
        return Err(Refusal::new(
            Code::StateTooNew,
            format!("the file {} cannot be used: another version wrote it", path.display()),
            "start the version of Holdfast that wrote it, or a newer one",
        ));
    }
    if sum != Fingerprint(Sha256::digest(body).into()).to_string() {
        return Err(damaged(path, "its checksum is wrong"));
    }
    serde_json::from_slice(body)
        .map_err(|error| damaged(path, &format!("its content is not what it should be ({error})")))
}

fn damaged(path: &Path, why: &str) -> Refusal {
    Refusal::new(
        Code::StateDamaged,
        format!("the file {} is damaged: {why}", path.display()),
        format!(
            "its previous version is {0}: rename it to {1} to go back to that; what is missing \
             then comes from the other nodes",
            durable::backup_of(path).display(),
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::Step;
    use crate::durable::tests::{STEPS, die_at};
    use crate::state::Membership;
    use std::fs;
    use uuid::Uuid;

    fn data(name: &str) -> Data {
        let id = Uuid::from_u128(1);
        let cluster = Membership { uuid: id, name: name.into(), joined_at: 2, node: id };
        Data { cluster: Some(cluster), ..Data::default() }
    }

    fn name(dir: &Path) -> Option<String> {
        load(dir).unwrap().cluster.map(|c| c.name)
    }

    #[test]
    fn a_kill_at_every_step_leaves_the_old_or_the_new_state() {
        for step in STEPS {
            let dir = tempfile::tempdir().unwrap();
            let renamed = matches!(step, Step::Renamed | Step::DirSynced);
            for (old, new) in [(None, "first"), (Some("old"), "new")] {
                if let Some(old) = old {
                    save(dir.path(), &data(old), &mut |_| Ok(())).unwrap();
                }
                die_at(step, |watch| save(dir.path(), &data(new), watch).unwrap());
                let expected = if renamed { Some(new) } else { old };
                assert_eq!(name(dir.path()).as_deref(), expected, "{step:?}");
            }
        }
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let whole = encode(&data("alpha"));
        let path = path(dir.path());
        for at in 0..whole.len() {
            fs::write(&path, &whole[..at]).unwrap();
            let refusal = load(dir.path()).err().unwrap();
            assert_eq!(refusal.code, Code::StateDamaged, "cut at {at}");
            assert!(refusal.hint.contains("cluster.state.bak"));
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(load(dir.path()).is_err(), "flipped at {at}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(name(dir.path()).unwrap(), "alpha");
    }

    #[test]
    fn garbage_newer_and_missing_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert!(name(dir.path()).is_none());
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        assert_eq!(load(dir.path()).err().unwrap().code, Code::StateDamaged);
        fs::write(&path, format!("{MAGIC} 2 00\n{{}}")).unwrap();
        assert_eq!(load(dir.path()).err().unwrap().code, Code::StateTooNew);
        let body = b"{\"records\":[{\"key\":\"../x\"}]}";
        let sum = Fingerprint(Sha256::digest(body).into());
        let text = [format!("{MAGIC} {VERSION} {sum}\n").as_bytes(), body].concat();
        fs::write(&path, text).unwrap();
        assert_eq!(load(dir.path()).err().unwrap().code, Code::StateDamaged);

        save(dir.path(), &data("a"), &mut |_| Ok(())).unwrap();
        save(dir.path(), &data("b"), &mut |_| Ok(())).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(load(dir.path()).err().unwrap().message.contains("missing"));
        fs::rename(durable::backup_of(&path), &path).unwrap();
        assert_eq!(name(dir.path()).unwrap(), "a");
    }
}
