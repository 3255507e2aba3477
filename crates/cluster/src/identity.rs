use crate::durable::{self, Watch};
use crate::refusal::shown;
use crate::{Code, Refusal};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

const DIR: &str = "identity";
const NEW_DIR: &str = "identity.new";
const KEY: &str = "key.pem";
const CERT: &str = "cert.pem";
const NODE: &str = "node.json";
const MAX_FILE: u64 = 64 << 10;

/// What a node is known by to others: the SHA-256 of its certificate (DER). Printed as 64
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of this certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = Refusal;

    /// Reads 64 hexadecimal digits; colons between them are allowed, as other tools print them.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let digits: String = text.chars().filter(|c| *c != ':').take(65).collect();
        let mut bytes = [0; 32];
        if !read_hex(&digits, &mut bytes) {
            return Err(Refusal::new(
                Code::CertificateInvalid,
                format!("{} is not a fingerprint: it must be 64 hexadecimal digits", shown(text)),
                "",
            ));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// Fills `bytes` from exactly twice as many hexadecimal digits; whether it could.
pub(crate) fn read_hex(digits: &str, bytes: &mut [u8]) -> bool {
    let text = digits.as_bytes();
    if text.len() != bytes.len() * 2 || !text.iter().all(u8::is_ascii_hexdigit) {
        return false;
    }
    for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        match u8::from_str_radix(&digits[at..at + 2], 16) {
            Ok(value) => *byte = value,
            Err(_) => return false,
        }
    }
    true
}

/// Who this node is: a random UUID, a name, a key and a self-signed certificate. It lives in
/// `identity/` of the state directory and is made once. The certificate has no date at which it
/// ends to speak of: what makes it valid is that the cluster's records hold its fingerprint.
#[derive(Clone)]
pub struct Identity {
    uuid: Uuid,
    name: String,
    fingerprint: Fingerprint,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("uuid", &self.uuid)
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct NodeFile {
    uuid: Uuid,
    name: String,
}

impl Identity {
    /// The identity in this state directory; `None` when there is none yet.
    ///
    /// # Errors
    /// [`Code::StateDamaged`] when a part is missing, cannot be read as what it should be, does
    /// not fit the others, or the key can be read by other users; [`Code::StateIo`].
    pub fn load(state_dir: &Path) -> Result<Option<Self>, Refusal> {
        let dir = state_dir.join(DIR);
        if !dir.try_exists().map_err(|e| io_refusal("read", &dir, &e))? {
            return Ok(None);
        }
        check_mode(&dir.join(KEY))?;
        let certificate = read_pem::<CertificateDer<'static>>(&dir.join(CERT), "a certificate")?;
        let key = read_pem::<PrivateKeyDer<'static>>(&dir.join(KEY), "a private key")?;
        let node_path = dir.join(NODE);
        let node: NodeFile = serde_json::from_slice(&read_part(&node_path)?)
            .map_err(|_| damaged(&node_path, "it is not what was written there"))?;
        if holdfast_units::check_name(&node.name).is_err() {
            return Err(damaged(&node_path, "the node name in it cannot be one"));
        }
        let fingerprint = Fingerprint::of(&certificate);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let certified = CertifiedKey::from_der(vec![certificate], key, &provider)
            .map_err(|_| damaged(&dir.join(KEY), "it is not the key of cert.pem beside it"))?;
        let certified = Arc::new(certified);
        Ok(Some(Self { uuid: node.uuid, name: node.name, fingerprint, certified }))
    }

    /// Makes a new identity with this name in a state directory that has none. After a crash
    /// there is all of it or nothing.
    ///
    /// # Errors
    /// [`Code::BadName`], [`Code::StateIo`] (also when there is an identity already),
    /// [`Code::NoRandom`].
    pub fn create(state_dir: &Path, name: &str) -> Result<Self, Refusal> {
        Self::create_watched(state_dir, name, &mut |_| Ok(()))
    }

    fn create_watched(state_dir: &Path, name: &str, watch: Watch<'_>) -> Result<Self, Refusal> {
        check_name(name)?;
        let dir = state_dir.join(DIR);
        let node = NodeFile { uuid: Uuid::new_v4(), name: name.to_owned() };
        let (key, certificate) = generate(node.uuid)?;
        let node = serde_json::to_vec(&node).expect("a UUID and a text are JSON");
        let parts = [(KEY, key.as_bytes()), (CERT, certificate.as_bytes()), (NODE, &node)];
        write_all(state_dir, &parts, watch).map_err(|e| io_refusal("make", &dir, &e))?;
        Self::load(state_dir)?.ok_or_else(|| damaged(&dir, "it is gone again"))
    }

    /// Gives the node another name. Only for a node that is in no cluster.
    ///
    /// # Errors
    /// [`Code::BadName`], [`Code::StateIo`]; the name is then the old one.
    pub(crate) fn rename(&mut self, state_dir: &Path, name: &str) -> Result<(), Refusal> {
        check_name(name)?;
        let path = state_dir.join(DIR).join(NODE);
        let node = NodeFile { uuid: self.uuid, name: name.to_owned() };
        let bytes = serde_json::to_vec(&node).expect("a UUID and a text are JSON");
        durable::replace(&path, &bytes, &mut |_| Ok(()))
            .map_err(|e| io_refusal("write", &path, &e))?;
        name.clone_into(&mut self.name);
        Ok(())
    }

    /// The node's UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fingerprint of the node's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

fn generate(uuid: Uuid) -> Result<(String, String), Refusal> {
    let fail = |error: rcgen::Error| {
        Refusal::new(Code::NoRandom, format!("a key for this node cannot be made: {error}"), "")
    };
    let key = KeyPair::generate().map_err(fail)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("holdfast node {uuid}"));
    let certificate = params.self_signed(&key).map_err(fail)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

/// All files in a directory that gets its real name last.
fn write_all(dir: &Path, parts: &[(&str, &[u8])], watch: Watch<'_>) -> io::Result<()> {
    let new = dir.join(NEW_DIR);
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&new)?;
    for (name, bytes) in parts {
        durable::write_new(&new.join(name), bytes, watch)?;
    }
    durable::sync_dir(&new)?;
    fs::rename(&new, dir.join(DIR))?;
    durable::sync_dir(dir)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    holdfast_units::check_name(name).map_err(|error| {
        Refusal::new(
            Code::BadName,
            error.to_string(),
            "start the daemon with --name and a name of letters, digits, '.', '_' and '-'",
        )
    })
}

fn check_mode(path: &Path) -> Result<(), Refusal> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(path, "it is missing"));
        }
        Err(e) => return Err(io_refusal("read", path, &e)),
    };
    if meta.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Refusal::new(
        Code::StateDamaged,
        format!("the node's key {} is not used: other users can read it", path.display()),
        format!("if nobody had a look at it: chmod 600 {}", path.display()),
    ))
}

fn read_part(path: &Path) -> Result<Vec<u8>, Refusal> {
    durable::read_bounded(path, MAX_FILE)
        .map_err(|e| io_refusal("read", path, &e))?
        .ok_or_else(|| damaged(path, "it is missing"))
}

fn read_pem<T: PemObject>(path: &Path, what: &str) -> Result<T, Refusal> {
    T::from_pem_slice(&read_part(path)?)
        .map_err(|_| damaged(path, &format!("it does not hold {what} (PEM)")))
}

fn damaged(path: &Path, why: &str) -> Refusal {
    let dir = if path.ends_with(DIR) { path } else { path.parent().unwrap_or(path) };
    Refusal::new(
        Code::StateDamaged,
        format!("the node's identity file {} is damaged: {why}", path.display()),
        format!(
            "restore {} from a backup, or delete it to make this a new node that must join again",
            dir.display()
        ),
    )
}

pub(crate) fn io_refusal(verb: &str, path: &Path, error: &io::Error) -> Refusal {
    let path: PathBuf = path.into();
    Refusal::new(
        Code::StateIo,
        format!("cannot {verb} {}: {error}", path.display()),
        "check the state directory: its owner, its permissions and its free space",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::tests::die_at;

    #[test]
    fn what_was_made_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Identity::load(dir.path()).unwrap().is_none());
        let made = Identity::create(dir.path(), "alpha").unwrap();
        let loaded = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!(
            (loaded.uuid(), loaded.name(), loaded.fingerprint()),
            (made.uuid(), "alpha", made.fingerprint())
        );
        let mode =
            |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("identity"), mode("identity/key.pem")), (0o700, 0o600));
        assert!(Identity::create(dir.path(), "beta").is_err(), "it must be made once");
        assert_eq!(Identity::load(dir.path()).unwrap().unwrap().uuid(), made.uuid());
    }

    #[test]
    fn a_new_name_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::create(dir.path(), "alpha").unwrap();
        assert_eq!(identity.rename(dir.path(), "all").unwrap_err().code, Code::BadName);
        identity.rename(dir.path(), "beta").unwrap();
        assert_eq!(identity.name(), "beta");
        assert_eq!(Identity::load(dir.path()).unwrap().unwrap().name(), "beta");
    }

    #[test]
    fn a_crash_while_it_is_made_leaves_none() {
        for step in &crate::durable::tests::STEPS[..4] {
            let dir = tempfile::tempdir().unwrap();
            die_at(*step, |watch| {
                Identity::create_watched(dir.path(), "alpha", watch).unwrap();
            });
            assert!(Identity::load(dir.path()).unwrap().is_none());
            Identity::create(dir.path(), "alpha").unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        Identity::create(other.path(), "beta").unwrap();
        let bad_name = format!("{{\"uuid\":\"{}\",\"name\":\"a/b\"}}", Uuid::nil());
        let other_key = fs::read(other.path().join(DIR).join(KEY)).unwrap();
        let cut_cert = fs::read(other.path().join(DIR).join(CERT)).unwrap()[..200].to_vec();
        let damages = [
            (KEY, None),
            (KEY, Some(Vec::new())),
            (KEY, Some(other_key)),
            (CERT, None),
            (CERT, Some(cut_cert)),
            (CERT, Some(vec![0xff; 200_000])),
            (NODE, None),
            (NODE, Some(b"{\"uuid\":\"".to_vec())),
            (NODE, Some(bad_name.into_bytes())),
        ];
        for (file, damage) in damages {
            let _ = fs::remove_dir_all(dir.path().join(DIR));
            Identity::create(dir.path(), "alpha").unwrap();
            let path = dir.path().join(DIR).join(file);
            match damage {
                Some(bytes) => fs::write(path, bytes).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            let refusal = Identity::load(dir.path()).unwrap_err();
            assert!(refusal.message.contains(file), "{refusal}");
            assert!(!refusal.hint.is_empty());
        }
    }

    #[test]
    fn a_key_for_everyone_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::create(dir.path(), "alpha").unwrap();
        let key = dir.path().join(DIR).join(KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Identity::load(dir.path()).unwrap_err().hint.contains("chmod 600"));
    }

    #[test]
    fn the_key_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::create(dir.path(), "alpha").unwrap();
        let pem = fs::read_to_string(dir.path().join(DIR).join(KEY)).unwrap();
        let secret = pem.lines().nth(1).unwrap();
        assert!(!format!("{identity:?}").contains(secret));
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }

    #[test]
    fn fingerprints_print_and_parse() {
        let print = Fingerprint([0xa5; 32]);
        assert_eq!(print.to_string().parse::<Fingerprint>().unwrap(), print);
        let colons = vec!["A5"; 32].join(":");
        assert_eq!(colons.parse::<Fingerprint>().unwrap(), print);
        for bad in ["", "a5", &"a5".repeat(33), &"g5".repeat(32), &"ä".repeat(32), &"+5".repeat(32)]
        {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
