use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// Where an NBD export is.
///
/// `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`; `nbds` instead of `nbd`
/// demands TLS. Export and path are percent-encoded. The port is 10809 unless given. Reading what
/// `Display` wrote gives the same again.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct NbdUri {
    /// How the server is reached.
    pub transport: UriTransport,
    /// The export's name; empty for the default one.
    pub export: String,
    /// Whether TLS must be used.
    pub tls: bool,
    /// Parameters about TLS (`tls-certificates`, `tls-hostname`, `tls-psk-file`,
    /// `tls-username`, `tls-verify-peer`, `tls-type`), decoded, in their order.
    pub tls_parameters: Vec<(String, String)>,
}

/// How a server is reached.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum UriTransport {
    /// TCP to a host name or address (IPv6 without brackets).
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// Where it is.
        path: PathBuf,
    },
}

/// The port of NBD.
const DEFAULT_PORT: u16 = 10809;

const TLS_PARAMETERS: [&str; 6] = [
    "tls-certificates",
    "tls-hostname",
    "tls-psk-file",
    "tls-type",
    "tls-username",
    "tls-verify-peer",
];

/// Why a text is not the URI of an export.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{uri:?} is not the URI of an NBD export: {why}")]
pub struct UriError {
    uri: String,
    why: String,
}

impl NbdUri {
    /// An export behind a Unix socket.
    pub fn unix(path: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self::plain(UriTransport::Unix { path: path.into() }, export.into())
    }

    /// An export behind a TCP port.
    pub fn tcp(host: impl Into<String>, port: u16, export: impl Into<String>) -> Self {
        Self::plain(UriTransport::Tcp { host: host.into(), port }, export.into())
    }

    /// Whether a text begins as the URI of an export does, so that it is not a path.
    #[must_use]
    pub fn is_scheme_of(text: &str) -> bool {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        scheme.is_some_and(|it| matches!(&*it, "nbd" | "nbds" | "nbd+unix" | "nbds+unix"))
    }

    const fn plain(transport: UriTransport, export: String) -> Self {
        Self { transport, export, tls: false, tls_parameters: Vec::new() }
    }
}

impl std::str::FromStr for NbdUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        parse(text)
            .map_err(|why| UriError { uri: text.chars().take(200).collect(), why: why.to_string() })
    }
}

fn parse(text: &str) -> Result<NbdUri, String> {
    let (scheme, rest) = text.split_once("://").ok_or("it has no scheme such as nbd://")?;
    let (tls, unix) = match scheme.to_ascii_lowercase().as_str() {
        "nbd" => (false, false),
        "nbds" => (true, false),
        "nbd+unix" => (false, true),
        "nbds+unix" => (true, true),
        other => {
            return Err(format!(
                "the scheme {other:?} is none of nbd, nbds, nbd+unix and nbds+unix"
            ));
        }
    };
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = place.split_once('/').unwrap_or((place, ""));
    let export = decode(export)?;
    if export.len() > crate::codec::consts::MAX_STRING || export.contains('\0') {
        return Err("the export's name is too long or holds a NUL".into());
    }
    let mut socket = None;
    let mut tls_parameters = Vec::new();
    for pair in query.split(['&', ';']).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode(key)?.to_ascii_lowercase(), decode(value)?);
        match key.as_str() {
            "socket" if socket.is_some() => return Err("it names two sockets".into()),
            "socket" => socket = Some(value),
            key if TLS_PARAMETERS.contains(&key) => tls_parameters.push((key.into(), value)),
            key if key.starts_with("x-") => {}
            key => return Err(format!("the parameter {key:?} is not known")),
        }
    }
    let transport = match (unix, socket) {
        (true, Some(path)) if path.is_empty() || path.contains('\0') => {
            return Err("the path of the socket is empty or holds a NUL".into());
        }
        (true, Some(path)) if authority.is_empty() => UriTransport::Unix { path: path.into() },
        (true, Some(_)) => return Err("a host and a Unix socket cannot be used together".into()),
        (true, None) => return Err("nbd+unix needs ?socket=PATH".into()),
        (false, Some(_)) => return Err("a socket needs the scheme nbd+unix".into()),
        (false, None) => tcp(authority)?,
    };
    Ok(NbdUri { transport, export, tls, tls_parameters })
}

fn tcp(authority: &str) -> Result<UriTransport, String> {
    // A user name means nothing to NBD itself, but is allowed.
    let server = authority.rsplit_once('@').map_or(authority, |(_, server)| server);
    let (host, port) = if let Some(rest) = server.strip_prefix('[') {
        let (host, port) =
            rest.split_once(']').ok_or("the bracket of the address is not closed")?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| "there is no IPv6 address in the brackets")?;
        (host.to_owned(), port)
    } else {
        let at = server.find(':').unwrap_or(server.len());
        let host = decode(&server[..at])?;
        let is_name = host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'));
        if host.starts_with('-') || !is_name {
            return Err("the host is no host name".into());
        }
        (host, &server[at..])
    };
    let port = match port.strip_prefix(':') {
        Some("") => DEFAULT_PORT,
        None if port.is_empty() => DEFAULT_PORT,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map_err(|_| "the port is not below 65536")?
        }
        _ => return Err("what follows the host is no port".into()),
    };
    let host = if host.is_empty() { "localhost".to_owned() } else { host };
    Ok(UriTransport::Tcp { host, port })
}

fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.extend(u8::try_from(high * 16 + low)),
            _ => return Err("a '%' is not followed by two hexadecimal digits".into()),
        }
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text when decoded".into())
}

/// Writes `text` with everything encoded that means something in a URI.
fn encode(f: &mut fmt::Formatter<'_>, text: &[u8]) -> fmt::Result {
    for byte in text {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                f.write_char(char::from(*byte))?;
            }
            _ => write!(f, "%{byte:02X}")?,
        }
    }
    Ok(())
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        let mut separator = '?';
        match &self.transport {
            UriTransport::Tcp { host, port } => {
                let bracket = host.contains(':');
                f.write_str(if bracket { "://[" } else { "://" })?;
                encode(f, host.as_bytes())?;
                f.write_str(if bracket { "]" } else { "" })?;
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                f.write_char('/')?;
                encode(f, self.export.as_bytes())?;
            }
            UriTransport::Unix { path } => {
                f.write_str("+unix:///")?;
                encode(f, self.export.as_bytes())?;
                f.write_str("?socket=")?;
                encode(f, path.as_os_str().as_encoded_bytes())?;
                separator = '&';
            }
        }
        for (key, value) in &self.tls_parameters {
            write!(f, "{separator}{key}=")?;
            encode(f, value.as_bytes())?;
            separator = '&';
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{NbdUri, UriTransport};
    use proptest::prelude::*;

    fn ok(text: &str) -> NbdUri {
        text.parse().unwrap()
    }

    #[test]
    fn the_usual_forms() {
        assert_eq!(ok("nbd://h/x"), NbdUri::tcp("h", 10809, "x"));
        assert_eq!(ok("nbd://h"), NbdUri::tcp("h", 10809, ""));
        assert_eq!(ok("NBD://u@h:7/"), NbdUri::tcp("h", 7, ""));
        assert_eq!(ok("nbd://[::1]:7/a/b"), NbdUri::tcp("::1", 7, "a/b"));
        assert_eq!(ok("nbd:///"), NbdUri::tcp("localhost", 10809, ""));
        assert_eq!(ok("nbd+unix:///?socket=/run/x"), NbdUri::unix("/run/x", ""));
        assert_eq!(ok("nbd+unix:///a%20b?socket=/r%3f&x-y=1"), NbdUri::unix("/r?", "a b"));
        let tls = ok("nbds://h/?tls-hostname=other&tls-verify-peer=1");
        assert!(tls.tls);
        assert_eq!(tls.tls_parameters[0], ("tls-hostname".into(), "other".into()));
    }

    #[test]
    fn what_is_refused_and_why() {
        for (text, why) in [
            ("h:10809", "no scheme"),
            ("http://h/", "none of nbd"),
            ("nbd+vsock://2/", "none of nbd"),
            ("nbd://h:70000/", "below 65536"),
            ("nbd://h:+7/", "no port"),
            ("nbd://[::1/", "not closed"),
            ("nbd://[x]/", "no IPv6"),
            ("nbd://[::1]x/", "no port"),
            ("nbd://-oProxy/", "no host name"),
            ("nbd://%2F", "no host name"),
            ("nbd://a%3Ab/", "no host name"),
            ("nbd+unix:///x", "needs ?socket"),
            ("nbd+unix://h/x?socket=/s", "together"),
            ("nbd+unix:///x?socket=", "empty"),
            ("nbd://h/?socket=/s", "nbd+unix"),
            ("nbd://h/?colour=red", "\"colour\" is not known"),
            ("nbd://h/%zz", "hexadecimal"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/%00", "NUL"),
        ] {
            let error = text.parse::<NbdUri>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn written_and_read_it_is_the_same(
            export in "\\PC{0,40}", path in "/\\PC{1,40}", port: u16, tls: bool, value in "\\PC{0,9}"
        ) {
            for transport in [
                UriTransport::Unix { path: path.clone().into() },
                UriTransport::Tcp { host: "fe80::1".into(), port },
            ] {
                let tls_parameters = vec![("tls-hostname".to_owned(), value.clone())];
                let uri = NbdUri { transport, export: export.clone(), tls, tls_parameters };
                prop_assert_eq!(ok(&uri.to_string()), uri);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "(nbds?(\\+unix)?://)?[\\PC\\x00]{0,60}") {
            if let Ok(uri) = text.parse::<NbdUri>() {
                prop_assert_eq!(ok(&uri.to_string()), uri);
            }
        }
    }
}
