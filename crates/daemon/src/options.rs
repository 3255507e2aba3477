//! What the daemon is started with: options of the command line, and the configuration file.

use crate::config::{CONFIG_KEYS, ConfigFile, Fault, OFF, ResourceDefaults, Setting};
use crate::journaled::MIN_SIZE;
use crate::refuse;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::Address;
use holdfast_nbd::AllowedNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// Where the state is when nobody says.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/holdfast";
/// Where the control socket is when nobody says.
pub const DEFAULT_SOCKET: &str = "/run/holdfast/control.sock";
/// Where other nodes are listened for when nobody says.
const DEFAULT_LISTEN: &str = "127.0.0.1:7850";
/// The port for other nodes, where an address names none.
pub(crate) const NODE_PORT: u16 = 7850;
/// The port for NBD clients, where an address names none.
pub(crate) const NBD_PORT: u16 = 10809;
/// The port for metrics when none is given.
pub(crate) const HTTP_PORT: u16 = 7851;
/// How long the path of a Unix socket is at most, in bytes.
const MAX_SOCKET_PATH: usize = 107;

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
    /// How many resources may be filled on this node at a time; no limit when nobody says, or 0.
    pub max_resyncs: Option<u64>,
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

/// Where the value of a key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// This line of the configuration file.
    File(usize),
    /// The command line, which goes before the file.
    CommandLine,
}

/// What holds for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key.
    pub key: &'static str,
    /// Its value; the default when there is none.
    pub value: Option<Setting>,
    /// Who said so.
    pub origin: Origin,
}

impl DaemonOptions {
    /// What the command line says, by key of the configuration file.
    fn given(&self) -> BTreeMap<&'static str, Setting> {
        let text = |value: &Option<String>| value.clone().map(Setting::Text);
        let path = |value: &Option<PathBuf>| {
            value.as_ref().map(|path| Setting::Text(path.display().to_string()))
        };
        let list = |values: Vec<String>| (!values.is_empty()).then_some(Setting::List(values));
        let access = &self.nbd_access;
        let tls =
            access.tls_optional.map(|optional| if optional { "optional" } else { "required" });
        let allow = access.allow.iter().map(ToString::to_string).collect();
        let given = [
            ("name", text(&self.name)),
            ("state-dir", path(&self.state_dir)),
            ("listen", text(&self.listen)),
            ("advertise", list(self.advertise.clone())),
            ("socket", path(&self.socket)),
            ("lock-memory", self.lock_memory.map(Setting::Flag)),
            ("journal-budget", self.journal_budget.map(|bytes| Setting::Text(bytes.to_string()))),
            ("max-resyncs", self.max_resyncs.map(Setting::Number)),
            ("nbd-listen", text(&self.nbd_listen)),
            ("nbd-tls-certificates", path(&access.tls_certificates)),
            ("nbd-tls", tls.map(|word| Setting::Text(word.to_owned()))),
            ("nbd-tls-verify-peer", access.tls_verify_peer.then_some(Setting::Flag(true))),
            ("nbd-allow", list(allow)),
            ("smartctl", path(&self.smartctl)),
            ("http", text(&self.http)),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// What holds for every key, in the order of the manual.
#[must_use]
pub fn effective(options: &DaemonOptions, file: &ConfigFile) -> Vec<Effective> {
    let mut given = options.given();
    let of = |key: &'static str| match (given.remove(key), file.value(key)) {
        (Some(value), _) => Effective { key, value: Some(value), origin: Origin::CommandLine },
        (None, Some((value, line))) => {
            Effective { key, value: Some(value.clone()), origin: Origin::File(line) }
        }
        (None, None) => Effective { key, value: None, origin: Origin::Default },
    };
    CONFIG_KEYS.iter().map(|key| key.name).map(of).collect()
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
    /// Never 0.
    pub(crate) max_resyncs: Option<u64>,
    pub(crate) smartctl: SmartProgram,
    /// For resources that are made here, as the file had them at the start.
    pub(crate) resource_defaults: ResourceDefaults,
    pub(crate) git: String,
}

impl Settings {
    /// Puts the command line, what the file has, and the defaults together.
    ///
    /// # Errors
    /// For values that cannot be, alone or together.
    pub(crate) fn from_parts(options: &DaemonOptions, file: &ConfigFile) -> Result<Self, ApiError> {
        let settings = Self::merged(options, file)?;
        match settings.conflicts().into_iter().next() {
            None => Ok(settings),
            Some((key, why)) => {
                let message = format!("the daemon was not started: {key} cannot be used: {why}");
                Err(ApiError::new(ErrorCode::InvalidRequest, message))
            }
        }
    }

    fn merged(options: &DaemonOptions, file: &ConfigFile) -> Result<Self, ApiError> {
        let some = |given: &Option<String>, key: &str| {
            given.clone().or_else(|| file.text(key)).filter(|text| text != OFF)
        };
        let some_path = |given: &Option<PathBuf>, key: &str| {
            given.clone().or_else(|| file.text(key).map(PathBuf::from))
        };
        let name = options.name.clone().or_else(|| file.text("name"));
        if let Some(name) = &name {
            holdfast_units::check_name(name)?;
        }
        let listen = options.listen.clone().or_else(|| file.text("listen"));
        let advertise = match &options.advertise[..] {
            [] => file.list("advertise"),
            given => given.to_vec(),
        };
        let advertise = advertise.iter().map(|text| Address::parse(text, Some(NODE_PORT)));
        let advertise: Result<_, _> = advertise.collect();
        let mut nbd_access = NbdAccess {
            tls_certificates: some_path(
                &options.nbd_access.tls_certificates,
                "nbd-tls-certificates",
            )
            .filter(|path| path != Path::new(OFF))
            .map(|path| absolute(&path))
            .transpose()?,
            tls_optional: (options.nbd_access.tls_optional)
                .or_else(|| file.text("nbd-tls").map(|word| word == "optional")),
            tls_verify_peer: options.nbd_access.tls_verify_peer
                || file.flag("nbd-tls-verify-peer").unwrap_or(false),
            allow: match &options.nbd_access.allow[..] {
                [] => {
                    let allow = file.list("nbd-allow");
                    allow.iter().map(|text| network(text)).collect::<Result<_, _>>()?
                }
                given => given.to_vec(),
            },
        };
        // What the file says of TLS is like its default as long as there is none.
        if nbd_access.tls_certificates.is_none() && options.nbd_access.tls_optional.is_none() {
            nbd_access.tls_optional = None;
        }
        let path = |given: &Option<PathBuf>, key: &str, default: &str| {
            absolute(&some_path(given, key).unwrap_or_else(|| PathBuf::from(default)))
        };
        let git = if options.git.is_empty() { "unknown".to_owned() } else { options.git.clone() };
        Ok(Self {
            name,
            state_dir: path(&options.state_dir, "state-dir", DEFAULT_STATE_DIR)?,
            listen: listen_address(listen.as_deref().unwrap_or(DEFAULT_LISTEN), NODE_PORT)?,
            advertise: advertise.map_err(refuse::cluster)?,
            nbd_listen: some(&options.nbd_listen, "nbd-listen")
                .map(|text| listen_address(&text, NBD_PORT))
                .transpose()?,
            nbd_access,
            http: some(&options.http, "http")
                .map(|text| listen_address(&text, HTTP_PORT))
                .transpose()?,
            lock_memory: options.lock_memory.or_else(|| file.flag("lock-memory")).unwrap_or(true),
            device_holder: options.device_holder.clone(),
            journal_budget: journal_budget(options.journal_budget, file)?,
            max_resyncs: options
                .max_resyncs
                .or_else(|| file.number("max-resyncs"))
                .filter(|most| *most > 0),
            smartctl: match some_path(&options.smartctl, "smartctl") {
                None => SmartProgram::Installed,
                Some(word) if word == Path::new(OFF) => SmartProgram::Off,
                Some(given) => SmartProgram::At(absolute(&given)?),
            },
            resource_defaults: file.resource_defaults.clone(),
            socket: path(&options.socket, "socket", DEFAULT_SOCKET)?,
            git,
        })
    }

    /// What can be said one by one, and not together: the key, and why it cannot be.
    fn conflicts(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for socket in [&self.socket, &self.nbd_socket()] {
            let length = socket.as_os_str().len();
            if length > MAX_SOCKET_PATH {
                let shown = socket.display();
                found.push((
                    "socket",
                    format!(
                        "the path {shown} has {length} bytes, and that of a socket has \
                         {MAX_SOCKET_PATH} at most"
                    ),
                ));
                break;
            }
        }
        let ports =
            [("listen", Some(self.listen)), ("nbd-listen", self.nbd_listen), ("http", self.http)];
        let ports = ports.map(|(key, address)| Some((key, address?)));
        let ports: Vec<_> = ports.into_iter().flatten().collect();
        for (at, (key, address)) in ports.iter().enumerate() {
            let same = ports[..at].iter().find(|(_, other)| overlap(*address, *other));
            if let Some((other, taken)) = same {
                found.push((key, format!("{address} is taken by {other}, which is {taken}")));
            }
        }
        found
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

/// Whether two cannot be listened at at once. Who listens at `[::]` gets what comes for addresses of
/// IPv4 as well (ipv6(7), `IPV6_V6ONLY`), who listens at `0.0.0.0` gets these only.
#[must_use]
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |all: IpAddr, of: IpAddr| all.is_unspecified() && (all.is_ipv6() || of.is_ipv4());
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let same_ip = a == b || covers(a, b) || covers(b, a);
    one.port() != 0 && one.port() == other.port() && same_ip
}

/// Everything for which a daemon with this file, and without a command line, would be refused.
#[must_use]
pub fn conflicts_in(file: &ConfigFile) -> Vec<Fault> {
    let fault = |key: &str, why: String| {
        let line = file.value(key).map_or(1, |(_, line)| line);
        Fault { line, column: 1, what: format!("{key} cannot be used"), why }
    };
    let settings = match Settings::merged(&DaemonOptions::default(), file) {
        Ok(settings) => settings,
        Err(error) => return vec![fault("the file", error.message)],
    };
    let mut found: Vec<_> =
        settings.conflicts().into_iter().map(|(key, why)| fault(key, why)).collect();
    if let Err(why) = crate::daemon::nbd_tls(&settings.nbd_access) {
        let certificates = settings.nbd_access.tls_certificates.is_some();
        let key = if certificates { "nbd-tls-certificates" } else { "nbd-tls-verify-peer" };
        found.push(fault(key, why));
    }
    found.sort();
    found
}

fn absolute(path: &Path) -> Result<PathBuf, ApiError> {
    std::path::absolute(path).map_err(|error| {
        let why = format!("the path {} cannot be used: {error}", path.display());
        ApiError::new(ErrorCode::InvalidPath, why)
    })
}

/// What all journals may take: a size of at least one journal, or no limit.
fn journal_budget(given: Option<u64>, file: &ConfigFile) -> Result<Option<u64>, ApiError> {
    let read = match given {
        Some(bytes) => enough(bytes).map(Some),
        None => file.text("journal-budget").map_or(Ok(None), |text| budget(&text)),
    };
    read.map_err(|why| {
        let message = format!("the daemon was not started: journal-budget cannot be used: {why}");
        ApiError::new(ErrorCode::InvalidSize, message).hint("for example 64G")
    })
}

/// Reads what all journals may take; `None` for no limit. The error says why it cannot be.
pub(crate) fn budget(text: &str) -> Result<Option<u64>, String> {
    if text == OFF {
        return Ok(None);
    }
    let bytes = holdfast_units::parse_size(text).map_err(|why| why.to_string())?;
    enough(bytes).map(Some)
}

fn enough(bytes: u64) -> Result<u64, String> {
    if bytes < MIN_SIZE {
        return Err(format!("{bytes} bytes are less than a journal needs, 16 MiB"));
    }
    Ok(bytes)
}

/// Reads an address or network from which NBD clients are let in.
pub(crate) fn network(text: &str) -> Result<AllowedNet, ApiError> {
    text.parse().map_err(|why| {
        let message = format!("nbd-allow cannot hold {text:?}: {why}");
        ApiError::new(ErrorCode::InvalidAddress, message)
    })
}

/// Reads `ADDR:PORT`, `ADDR` or `HOST:PORT`; port 0 is allowed. A host name is looked up.
pub(crate) fn listen_address(text: &str, default_port: u16) -> Result<SocketAddr, ApiError> {
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
        resolve(&DaemonOptions { config: Some(path), ..options })
    }

    fn resolve(options: &DaemonOptions) -> Result<Settings, ApiError> {
        let file = crate::config::load(options.config.as_deref())?.unwrap_or_default();
        Settings::from_parts(options, &file)
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_defaults() {
        let text = "advertise = [\"h:1\"]\nname = \"beta\"\nlisten = \"127.0.0.1:1\"\nnbd-listen \
                    = \"127.0.0.1\"\n";
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
    fn what_cannot_be_is_refused() {
        let error =
            with_file("listne = 1\nname = \"all\"\n", DaemonOptions::default()).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(error.message.ends_with("was refused: it has 2 errors"), "{}", error.message);
        let given = DaemonOptions { name: Some("all".into()), ..DaemonOptions::default() };
        assert_eq!(with_file("", given).unwrap_err().code, ErrorCode::InvalidName);
        let given = DaemonOptions { http: Some("nowhere".into()), ..DaemonOptions::default() };
        assert_eq!(with_file("", given).unwrap_err().code, ErrorCode::InvalidAddress);
        let given = DaemonOptions { journal_budget: Some(4096), ..DaemonOptions::default() };
        assert_eq!(with_file("", given).unwrap_err().code, ErrorCode::InvalidSize);
        let missing =
            DaemonOptions { config: Some("/nowhere/x.toml".into()), ..DaemonOptions::default() };
        assert!(resolve(&missing).unwrap_err().message.contains("/nowhere/x.toml"));
    }

    #[test]
    fn off_on_the_command_line_takes_back_what_the_file_says() {
        let text = "nbd-listen = \"127.0.0.1:1\"\nsmartctl = \"/x\"\njournal-budget = \"1G\"\n";
        let none = with_file(text, DaemonOptions::default()).unwrap();
        assert_eq!(none.nbd_listen, Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(none.journal_budget, Some(1 << 30));
        let given = DaemonOptions {
            nbd_listen: Some(OFF.into()),
            smartctl: Some(OFF.into()),
            ..DaemonOptions::default()
        };
        let settings = with_file(text, given).unwrap();
        assert_eq!((settings.nbd_listen, settings.smartctl), (None, SmartProgram::Off));
    }

    #[test]
    fn every_key_is_an_option_of_the_command_line_and_says_where_it_comes_from() {
        let options = DaemonOptions {
            name: Some("a".into()),
            state_dir: Some("/s".into()),
            listen: Some("127.0.0.1".into()),
            advertise: vec!["h:1".into()],
            nbd_listen: Some("127.0.0.1".into()),
            nbd_access: NbdAccess {
                tls_certificates: Some("/t".into()),
                tls_optional: Some(true),
                tls_verify_peer: true,
                allow: vec!["127.0.0.1".parse().unwrap()],
            },
            http: Some(OFF.into()),
            socket: Some("/c".into()),
            lock_memory: Some(false),
            journal_budget: Some(1 << 30),
            max_resyncs: Some(2),
            smartctl: Some(OFF.into()),
            ..DaemonOptions::default()
        };
        for shown in effective(&options, &ConfigFile::default()) {
            assert_eq!(shown.origin, Origin::CommandLine, "{}", shown.key);
        }
        assert_eq!(options.given().len(), CONFIG_KEYS.len());
        let file = ConfigFile::parse("\nname = \"b\"\n").unwrap();
        let none = effective(&DaemonOptions::default(), &file);
        assert_eq!((none[0].key, none[0].origin), ("name", Origin::File(2)));
        assert_eq!(none[0].value, Some(Setting::Text("b".into())));
        assert!(none[1..].iter().all(|shown| shown.origin == Origin::Default));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_and_defaults_may_be_written_down() {
        for (text, words) in [
            ("\nhttp = \"127.0.0.1:7850\"", "2 http: 127.0.0.1:7850 is taken by listen"),
            ("http = \"[::]:10809\"\nnbd-listen = \"127.0.0.1\"", "1 http: "),
            ("nbd-tls-verify-peer = true", "1 nbd-tls-verify-peer: no directory with cert"),
            ("nbd-tls-certificates = \"/nowhere/x\"", "1 nbd-tls-certificates: /nowhere/x/"),
        ] {
            let found = conflicts_in(&ConfigFile::parse(text).unwrap());
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            let Fault { line, what, why, .. } = &found[0];
            let said = format!("{line} {}: {why}", what.trim_end_matches(" cannot be used"));
            assert!(said.starts_with(words), "{said}");
            if text.contains("http") {
                let error = with_file(text, DaemonOptions::default()).unwrap_err();
                assert!(error.message.contains("http cannot be used"), "{}", error.message);
                let off = DaemonOptions { http: Some(OFF.into()), ..DaemonOptions::default() };
                assert!(with_file(text, off).is_ok());
            }
        }
        let long = format!("socket = \"/{}/s\"", "x".repeat(99));
        let found = conflicts_in(&ConfigFile::parse(&long).unwrap());
        assert!(found[0].why.contains("nbd.sock has 109 bytes"), "{found:?}");
        for fine in [
            "nbd-tls = \"required\"",
            "nbd-tls = \"optional\"\nnbd-tls-certificates = \"off\"",
            "listen = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"",
            "listen = \"127.0.0.1:7850\"\nhttp = \"127.0.0.2:7850\"",
        ] {
            assert_eq!(conflicts_in(&ConfigFile::parse(fine).unwrap()), [], "{fine}");
            let settings = with_file(fine, DaemonOptions::default()).unwrap();
            assert_eq!(settings.nbd_access.tls_optional, None, "{fine}");
        }
    }

    #[test]
    fn metrics_have_a_port_of_their_own() {
        let settings = with_file("http = \"127.0.0.1\"", DaemonOptions::default()).unwrap();
        assert_eq!(settings.http, Some("127.0.0.1:7851".parse().unwrap()));
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
