//! What the daemon is started with: options of the command line, and the configuration file.

use crate::journaled::MIN_SIZE;
use crate::refuse;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::Address;
use holdfast_nbd::AllowedNet;
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// Where the configuration is when nobody says; it need not be there.
pub const DEFAULT_CONFIG: &str = "/etc/holdfast/holdfast.toml";
/// Where the state is when nobody says.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/holdfast";
/// Where the control socket is when nobody says.
pub const DEFAULT_SOCKET: &str = "/run/holdfast/control.sock";
/// Where other nodes are listened for when nobody says.
const DEFAULT_LISTEN: &str = "127.0.0.1:7850";
/// The port for other nodes, where an address names none.
pub(crate) const NODE_PORT: u16 = 7850;
/// The port for NBD clients, where an address names none.
const NBD_PORT: u16 = 10809;
/// The port for metrics when none is given.
const HTTP_PORT: u16 = 7851;
/// A configuration file is never longer, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// The options of `holdfast daemon`. What is `None` comes from the configuration file, else it has
/// the default of the interface contract.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// The name of this node; the host name when nobody says.
    pub name: Option<String>,
    /// Where the node keeps what it knows.
    pub state_dir: Option<PathBuf>,
    /// Where other nodes reach this one, `ADDR:PORT`; port 0 picks a free one.
    pub listen: Option<String>,
    /// The addresses that other nodes are told instead of `listen`, `HOST:PORT` each: for a node
    /// behind a translation of addresses.
    pub advertise: Vec<String>,
    /// Where NBD clients reach it by TCP, `ADDR:PORT`; nowhere when nobody says.
    pub nbd_listen: Option<String>,
    /// Who is let in there, and how.
    pub nbd_access: NbdAccess,
    /// Where the metrics are reached by TCP, `ADDR:PORT`; nowhere when nobody says.
    pub http: Option<String>,
    /// The control socket.
    pub socket: Option<PathBuf>,
    /// Whether the daemon locks its memory; it does when nobody says.
    pub lock_memory: Option<bool>,
    /// The program and its arguments that run [`hold`](holdfast_device::hold) for a device; this
    /// process when there is none.
    pub device_holder: Option<Vec<PathBuf>>,
    /// What all journals of this node may take together, in bytes; no limit when nobody says.
    pub journal_budget: Option<u64>,
    /// The program that reads SMART values, or `off`; smartctl, where it is installed, when nobody
    /// says.
    pub smartctl: Option<PathBuf>,
    /// The revision that the program was built from, for `GET /v1/version`; may be empty.
    pub git: String,
}

/// Which NBD clients are let in by TCP, and how. The Unix socket is guarded by its directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NbdAccess {
    /// A directory with `server-cert.pem` and `server-key.pem`, and `ca-cert.pem` where clients
    /// need a certificate. Without it there is no TLS.
    pub tls_certificates: Option<PathBuf>,
    /// Whether clients may do without TLS; they may not when nobody says.
    pub tls_optional: Option<bool>,
    /// Whether clients need a certificate that the authority has signed.
    pub tls_verify_peer: bool,
    /// The networks from which clients are let in; empty for all.
    pub allow: Vec<AllowedNet>,
}

/// The keys of the configuration file.
pub const CONFIG_KEYS: [&str; 14] = [
    "name",
    "state-dir",
    "listen",
    "advertise",
    "nbd-listen",
    "nbd-tls-certificates",
    "nbd-tls",
    "nbd-tls-verify-peer",
    "nbd-allow",
    "http",
    "socket",
    "lock-memory",
    "journal-budget",
    "smartctl",
];

/// The configuration file: the options' names as keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    name: Option<String>,
    state_dir: Option<PathBuf>,
    listen: Option<String>,
    #[serde(default)]
    advertise: Vec<String>,
    nbd_listen: Option<String>,
    nbd_tls_certificates: Option<PathBuf>,
    nbd_tls: Option<String>,
    #[serde(default)]
    nbd_tls_verify_peer: bool,
    #[serde(default)]
    nbd_allow: Vec<String>,
    http: Option<String>,
    socket: Option<PathBuf>,
    lock_memory: Option<bool>,
    journal_budget: Option<String>,
    smartctl: Option<PathBuf>,
}

/// What reads the SMART values of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SmartProgram {
    /// Nothing.
    Off,
    /// smartctl, where it is installed.
    Installed,
    /// This program.
    At(PathBuf),
}

/// What holds after the command line, the configuration file and the defaults were put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The name that was asked for.
    pub(crate) name: Option<String>,
    pub(crate) state_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    /// What other nodes are told instead; empty for `listen` itself.
    pub(crate) advertise: Vec<Address>,
    pub(crate) nbd_listen: Option<SocketAddr>,
    pub(crate) nbd_access: NbdAccess,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) socket: PathBuf,
    pub(crate) lock_memory: bool,
    pub(crate) device_holder: Option<Vec<PathBuf>>,
    pub(crate) journal_budget: Option<u64>,
    pub(crate) smartctl: SmartProgram,
    pub(crate) git: String,
}

impl Settings {
    /// Reads the configuration file and puts everything together. Changes nothing.
    ///
    /// # Errors
    /// When the file cannot be read or has something wrong in it, and for values that cannot be.
    pub(crate) fn resolve(options: &DaemonOptions) -> Result<Self, ApiError> {
        let file = match &options.config {
            Some(path) => read_config(path, false)?,
            None => read_config(Path::new(DEFAULT_CONFIG), true)?,
        };
        let name = options.name.clone().or(file.name);
        if let Some(name) = &name {
            holdfast_units::check_name(name)?;
        }
        let listen = options.listen.clone().or(file.listen);
        let nbd_listen = options.nbd_listen.clone().or(file.nbd_listen);
        let http = options.http.clone().or(file.http);
        let advertise =
            if options.advertise.is_empty() { file.advertise } else { options.advertise.clone() };
        let advertise = advertise.iter().map(|text| Address::parse(text, Some(NODE_PORT)));
        let advertise: Result<_, _> = advertise.collect();
        let nbd_access = NbdAccess {
            tls_certificates: (options.nbd_access.tls_certificates.clone())
                .or(file.nbd_tls_certificates)
                .map(|path| absolute(&path))
                .transpose()?,
            tls_optional: match options.nbd_access.tls_optional {
                Some(optional) => Some(optional),
                None => file.nbd_tls.as_deref().map(tls_optional).transpose()?,
            },
            tls_verify_peer: options.nbd_access.tls_verify_peer || file.nbd_tls_verify_peer,
            allow: match &options.nbd_access.allow[..] {
                [] => file.nbd_allow.iter().map(|text| network(text)).collect::<Result<_, _>>()?,
                given => given.to_vec(),
            },
        };
        let path = |given: &Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            absolute(&given.clone().or(file).unwrap_or_else(|| PathBuf::from(default)))
        };
        let git = if options.git.is_empty() { "unknown".to_owned() } else { options.git.clone() };
        Ok(Self {
            name,
            state_dir: path(&options.state_dir, file.state_dir, DEFAULT_STATE_DIR)?,
            listen: listen_address(listen.as_deref().unwrap_or(DEFAULT_LISTEN), NODE_PORT)?,
            advertise: advertise.map_err(refuse::cluster)?,
            nbd_listen: nbd_listen.map(|text| listen_address(&text, NBD_PORT)).transpose()?,
            nbd_access,
            http: http.map(|text| listen_address(&text, HTTP_PORT)).transpose()?,
            lock_memory: options.lock_memory.or(file.lock_memory).unwrap_or(true),
            device_holder: options.device_holder.clone(),
            journal_budget: journal_budget(options.journal_budget, file.journal_budget.as_deref())?,
            smartctl: match options.smartctl.clone().or(file.smartctl) {
                None => SmartProgram::Installed,
                Some(word) if word == Path::new("off") => SmartProgram::Off,
                Some(given) => SmartProgram::At(absolute(&given)?),
            },
            socket: path(&options.socket, file.socket, DEFAULT_SOCKET)?,
            git,
        })
    }

    /// The directory of the control socket: NBD socket and local devices are beside it.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.socket.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
    }

    /// The Unix socket of the NBD server.
    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.run_dir().join("nbd.sock")
    }
}

fn absolute(path: &Path) -> Result<PathBuf, ApiError> {
    std::path::absolute(path).map_err(|error| {
        let why = format!("the path {} cannot be used: {error}", path.display());
        ApiError::new(ErrorCode::InvalidPath, why)
    })
}

fn read_config(path: &Path, may_be_missing: bool) -> Result<ConfigFile, ApiError> {
    let refuse = |why: String| {
        let message = format!("the configuration file {} was refused: {why}", path.display());
        ApiError::new(ErrorCode::InvalidRequest, message)
    };
    let text = match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_CONFIG => return Err(refuse("it is too long".into())),
        Ok(_) => std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?,
        Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => {
            return Ok(ConfigFile::default());
        }
        Err(error) => return Err(refuse(error.to_string())),
    };
    toml::from_str(&text).map_err(|error| {
        let (line, column) = place(&text, error.span().map_or(0, |span| span.start));
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        refuse(format!("line {line}, column {column}: {what}"))
            .hint(format!("the keys are {}", CONFIG_KEYS.join(", ")))
    })
}

/// What all journals may take: a size of at least one journal.
fn journal_budget(given: Option<u64>, file: Option<&str>) -> Result<Option<u64>, ApiError> {
    let refuse = |why: String| {
        let message = format!("the daemon was not started: journal-budget cannot be used: {why}");
        ApiError::new(ErrorCode::InvalidSize, message).hint("for example 64G")
    };
    let read = |text: &str| holdfast_units::parse_size(text).map_err(|why| refuse(why.to_string()));
    let budget = match given {
        Some(given) => Some(given),
        None => file.map(read).transpose()?,
    };
    match budget {
        Some(bytes) if bytes < MIN_SIZE => {
            Err(refuse(format!("{bytes} bytes are less than a journal needs, 16 MiB")))
        }
        budget => Ok(budget),
    }
}

fn tls_optional(text: &str) -> Result<bool, ApiError> {
    match text {
        "optional" => Ok(true),
        "required" => Ok(false),
        _ => {
            let message = format!("nbd-tls cannot be {text:?}");
            let error = ApiError::new(ErrorCode::InvalidRequest, message);
            Err(error.hint("it is \"required\" or \"optional\""))
        }
    }
}

fn network(text: &str) -> Result<AllowedNet, ApiError> {
    text.parse().map_err(|why| {
        let message = format!("nbd-allow cannot hold {text:?}: {why}");
        ApiError::new(ErrorCode::InvalidAddress, message)
    })
}

/// Line and column of a byte, both from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    (line, column)
}

/// Reads `ADDR:PORT`, `ADDR` or `HOST:PORT`; port 0 is allowed. A host name is looked up.
fn listen_address(text: &str, default_port: u16) -> Result<SocketAddr, ApiError> {
    let refuse = |why: &str| {
        let message = format!("the address {text:?} cannot be listened at: {why}");
        ApiError::new(ErrorCode::InvalidAddress, message)
            .hint("write it as ADDRESS:PORT, for example 192.0.2.1:7850 or [::]:7850")
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, default_port));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| refuse("its port is none"))?),
        None => (text, default_port),
    };
    let mut found = (host, port).to_socket_addrs().map_err(|error| refuse(&error.to_string()))?;
    found.next().ok_or_else(|| refuse("the name has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str, options: DaemonOptions) -> Result<Settings, ApiError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holdfast.toml");
        std::fs::write(&path, text).unwrap();
        Settings::resolve(&DaemonOptions { config: Some(path), ..options })
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_defaults() {
        let text = "advertise = [\"h:1\"]\nname = \"beta\"\nlisten = \"127.0.0.1:1\"\nnbd-listen = \"127.0.0.1\"\n";
        let options = DaemonOptions { name: Some("alpha".into()), ..DaemonOptions::default() };
        let settings = with_file(text, options).unwrap();
        assert_eq!(settings.name.as_deref(), Some("alpha"));
        assert_eq!(settings.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(settings.nbd_listen, Some("127.0.0.1:10809".parse().unwrap()));
        assert_eq!(settings.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(settings.nbd_socket(), Path::new("/run/holdfast/nbd.sock"));
        assert_eq!(settings.git, "unknown");
        assert!(settings.lock_memory);
        assert_eq!(settings.smartctl, SmartProgram::Installed);
        for (text, due) in [
            ("smartctl = \"off\"", SmartProgram::Off),
            ("smartctl = \"/opt/smartctl\"", SmartProgram::At("/opt/smartctl".into())),
        ] {
            assert_eq!(with_file(text, DaemonOptions::default()).unwrap().smartctl, due);
        }
        let unlocked = with_file("lock-memory = false", DaemonOptions::default()).unwrap();
        assert!(!unlocked.lock_memory);
        assert_eq!(settings.advertise, [Address::parse("h:1", None).unwrap()]);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_said_with_its_place() {
        let none = DaemonOptions::default;
        for (text, place) in [
            ("name = \"a\"\n  listne = \"x\"\n", "line 2, column 3: unknown field `listne`"),
            ("name = 7", "line 1, column 8: invalid type"),
            ("name = \"a\"\nname = \"b\"\n", "line 2, column 1: duplicate key"),
            ("name = \"a\nb", "line 2, column 2"),
        ] {
            let error = with_file(text, none()).unwrap_err();
            assert!(error.message.contains(place), "{text:?}: {}", error.message);
            assert!(!error.message.contains('\n'), "{}", error.message);
        }
        let error = with_file("name = \"all\"", none()).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidName);
        let error = with_file("http = \"nowhere\"", none()).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidAddress);
        let settings = with_file("http = \"127.0.0.1\"", none()).unwrap();
        assert_eq!(settings.http, Some("127.0.0.1:7851".parse().unwrap()));
        let missing = DaemonOptions { config: Some("/nowhere/x.toml".into()), ..none() };
        assert!(Settings::resolve(&missing).unwrap_err().message.contains("/nowhere/x.toml"));
    }

    #[test]
    fn who_may_come_by_nbd() {
        let text = "nbd-tls-certificates = \"/etc/holdfast/nbd\"\nnbd-tls = \"optional\"\n\
                    nbd-allow = [\"10.0.0.0/8\", \"::1\"]\n";
        let access = with_file(text, DaemonOptions::default()).unwrap().nbd_access;
        assert_eq!(access.tls_certificates.as_deref(), Some(Path::new("/etc/holdfast/nbd")));
        assert_eq!((access.tls_optional, access.tls_verify_peer), (Some(true), false));
        assert_eq!(access.allow, ["10.0.0.0/8", "::1"].map(|text| text.parse().unwrap()));
        let given = NbdAccess {
            tls_optional: Some(false),
            tls_verify_peer: true,
            allow: vec!["127.0.0.1".parse().unwrap()],
            ..NbdAccess::default()
        };
        let options = DaemonOptions { nbd_access: given.clone(), ..DaemonOptions::default() };
        let both = with_file(text, options).unwrap().nbd_access;
        assert_eq!(both, NbdAccess { tls_certificates: access.tls_certificates, ..given });
        for (text, why) in [
            ("nbd-tls = \"maybe\"", "nbd-tls cannot be \"maybe\""),
            ("nbd-allow = [\"10.0.0.1/8\"]", "write 10.0.0.0/8"),
        ] {
            let error = with_file(text, DaemonOptions::default()).unwrap_err();
            assert!(error.message.contains(why), "{}", error.message);
        }
    }

    #[test]
    fn the_list_of_keys_is_that_of_the_file() {
        for key in CONFIG_KEYS {
            let known = toml::from_str::<ConfigFile>(&format!("{key} = {{}}")).unwrap_err();
            assert!(!known.message().contains("unknown field"), "{key}: {known}");
        }
        let unknown = toml::from_str::<ConfigFile>("other = 1").unwrap_err();
        let expected = unknown.message().matches('`').count() / 2 - 1;
        assert_eq!(expected, CONFIG_KEYS.len(), "{unknown}");
    }

    #[test]
    fn addresses_to_listen_at() {
        let ok = |text: &str| listen_address(text, 7850).unwrap().to_string();
        assert_eq!(ok("127.0.0.1:0"), "127.0.0.1:0");
        assert_eq!(ok("127.0.0.1"), "127.0.0.1:7850");
        assert_eq!(ok("::1"), "[::1]:7850");
        assert_eq!(ok("[::1]"), "[::1]:7850");
        for bad in ["", ":", "127.0.0.1:x", "127.0.0.1:70000"] {
            assert!(listen_address(bad, 1).is_err(), "{bad:?}");
        }
    }
}
