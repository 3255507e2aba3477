//! Sockets, and the clients that come by them.

use super::export::Catalogue;
use super::report::Reporter;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_nbd::{
    AllowList, ClientInfo, ClientStream, NbdUri, PeerAddress, ServeError, ServerOptions, ServerTls,
    Shutdown, Spinner, serve,
};
use holdfast_store::BufferPool;
use socket2::{SockRef, TcpKeepalive};
use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::spawn_local;

/// The port of NBD.
const PORT: u16 = 10809;
/// How long a listener rests when the process can open no more files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A client that has said nothing for so long is asked whether it is still there, so often.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;
/// Bytes of requests that a connection may hold whatever others do.
const OWN_BYTES: u64 = 512 << 10;

/// A socket that clients come by.
pub(super) enum Listener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, UnixSocket),
}

/// The file of a Unix socket; gone when this is dropped, if it was made here.
pub(super) struct UnixSocket {
    path: PathBuf,
    own: bool,
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.own {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Bytes of `sockaddr_un::sun_path`, the terminating zero among them (unix(7)).
const LONGEST_SOCKET: usize = 108;

fn refuse(place: &str, why: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidAddress, format!("{place} cannot be listened at: {why}"))
}

impl Listener {
    /// Listens at `ADDR:PORT`, `ADDR`, or `:PORT`, which means this machine only.
    pub(super) async fn tcp(text: &str) -> Result<Self, ApiError> {
        let address = resolve(text).map_err(|why| {
            refuse(text, &why).hint("write ADDRESS:PORT, such as 0.0.0.0:10809 or [::]:10809")
        })?;
        let listener = TcpListener::bind(address).await.and_then(|listener| {
            let address = listener.local_addr()?;
            Ok(Self::Tcp(listener, address))
        });
        listener.map_err(|why| {
            let error = refuse(text, &reason(&why));
            match why.kind() {
                ErrorKind::AddrInUse => error.hint("choose another port with `--listen`"),
                _ => error,
            }
        })
    }

    /// Listens at a Unix socket. One that a dead server has left is replaced.
    pub(super) fn unix(path: &Path) -> Result<Self, ApiError> {
        let place = path.display().to_string();
        let path = std::path::absolute(path).map_err(|why| refuse(&place, &reason(&why)))?;
        if path.as_os_str().len() >= LONGEST_SOCKET {
            return Err(refuse(&place, "the path is too long for a socket").hint(format!(
                "with all its directories it has at most {} bytes",
                LONGEST_SOCKET - 1
            )));
        }
        let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
        if is_socket && StdUnixStream::connect(&path).is_err_and(|why| is_dead(&why)) {
            // When that fails, binding says why.
            let _ = std::fs::remove_file(&path);
        }
        let listener = StdUnixListener::bind(&path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        match listener {
            Ok(listener) => Ok(Self::Unix(listener, UnixSocket { path, own: true })),
            Err(why) if why.kind() == ErrorKind::AddrInUse => {
                Err(refuse(&place, "something is there already").hint("choose another path"))
            }
            Err(why) => Err(refuse(&place, &reason(&why))),
        }
    }

    /// A Unix socket that belongs to whoever started the server.
    pub(super) const fn handed_over(listener: UnixListener, path: PathBuf) -> Self {
        Self::Unix(listener, UnixSocket { path, own: false })
    }

    /// How clients reach an export by it: by name of this machine, where it has one.
    pub(super) fn uri(&self, export: &str, tls: bool) -> NbdUri {
        let mut uri = match self {
            Self::Tcp(_, address) => {
                NbdUri::tcp(reachable(address.ip()).to_string(), address.port(), export)
            }
            Self::Unix(_, socket) => NbdUri::unix(&socket.path, export),
        };
        uri.tls = tls;
        uri
    }

    /// Whether other machines can come by it.
    pub(super) fn is_public(&self) -> bool {
        matches!(self, Self::Tcp(_, address) if !address.ip().is_loopback())
    }
}

fn is_dead(why: &io::Error) -> bool {
    why.kind() == ErrorKind::ConnectionRefused
}

fn reason(why: &io::Error) -> String {
    match why.kind() {
        ErrorKind::AddrInUse => "another program listens there".into(),
        ErrorKind::AddrNotAvailable => "this machine does not have the address".into(),
        ErrorKind::PermissionDenied => "permission is denied".into(),
        ErrorKind::NotFound => "the directory does not exist".into(),
        _ => why.to_string(),
    }
}

fn resolve(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok((address, PORT).into());
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let port = if port.is_empty() { Ok(PORT) } else { port.parse() };
    let port: u16 = port.map_err(|_| "the port is no number up to 65535".to_owned())?;
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let mut found = (host, port).to_socket_addrs().map_err(|_| "the name is not known")?;
    found.next().ok_or_else(|| "the name has no address".into())
}

/// The address to tell others instead of "all addresses": the one that packets to far away have.
fn reachable(address: IpAddr) -> IpAddr {
    // Nothing is sent to these addresses of examples: the system only chooses a way to them.
    let (any, far): (IpAddr, IpAddr) = match address {
        IpAddr::V4(any) if any.is_unspecified() => (any.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        IpAddr::V6(any) if any.is_unspecified() => {
            (any.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
        }
        _ => return address,
    };
    let chosen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((far, PORT))?;
        socket.local_addr()
    });
    match (chosen, any) {
        (Ok(chosen), _) => chosen.ip(),
        // Without a way out, this machine alone can come.
        (Err(_), IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
        (Err(_), IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// How many clients there are and were.
#[derive(Default)]
pub(super) struct Clients {
    now: Cell<usize>,
    total: Cell<u64>,
    changed: Notify,
}

impl Clients {
    pub(super) fn now(&self) -> usize {
        self.now.get()
    }

    pub(super) fn total(&self) -> u64 {
        self.total.get()
    }

    /// Waits until nobody is there; when `after_first`, not before somebody was.
    pub(super) async fn gone(&self, after_first: bool) {
        while self.now.get() > 0 || (after_first && self.total.get() == 0) {
            self.changed.notified().await;
        }
    }
}

/// A client, as long as it is there.
struct Present(Rc<Server>);

impl Present {
    fn new(server: &Rc<Server>) -> Self {
        let clients = &server.clients;
        clients.now.set(clients.now.get() + 1);
        clients.total.set(clients.total.get() + 1);
        server.clients_changed();
        Self(Rc::clone(server))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let clients = &self.0.clients;
        clients.now.set(clients.now.get() - 1);
        clients.changed.notify_one();
        self.0.clients_changed();
    }
}

/// What all clients share.
pub(super) struct Server {
    pub(super) catalogue: Catalogue,
    pub(super) clients: Clients,
    pub(super) reporter: Rc<Reporter>,
    allow: AllowList,
    max_clients: usize,
    options: ServerOptions,
}

impl Server {
    pub(super) fn new(
        catalogue: Catalogue,
        reporter: Rc<Reporter>,
        (allow, max_clients): (AllowList, usize),
        tls: Option<ServerTls>,
        pool: &BufferPool,
        shutdown: Shutdown,
    ) -> Rc<Self> {
        let spinner = Spinner::new(Spinner::usual_time());
        spawn_local(Rc::clone(&spinner).run());
        let pool = pool.clone();
        let options = ServerOptions {
            spinner: Some(spinner),
            own_bytes: OWN_BYTES,
            buffers: Rc::new(move |len| pool.get(len)),
            tls,
            shutdown,
            ..ServerOptions::default()
        };
        let clients = Clients::default();
        Rc::new(Self { catalogue, clients, reporter, allow, max_clients, options })
    }

    /// Where one client uses the only export, nobody else is kept waiting by a flush.
    fn clients_changed(&self) {
        if let [served] = &self.catalogue.all[..] {
            served.volume.wait_for_flushes(self.clients.now() == 1);
        }
    }

    /// Takes clients until the task is ended.
    pub(super) async fn accept(self: Rc<Self>, listener: Listener) {
        match listener {
            Listener::Tcp(listener, _) => loop {
                match listener.accept().await {
                    Ok((stream, address)) => {
                        // Without these, replies are late and the dead are noticed late.
                        let _ = stream.set_nodelay(true);
                        let keepalive = TcpKeepalive::new()
                            .with_time(KEEPALIVE)
                            .with_interval(KEEPALIVE_INTERVAL)
                            .with_retries(KEEPALIVE_TRIES);
                        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                        self.welcome(stream, ClientInfo::tcp(address));
                    }
                    Err(error) => self.pause(&error).await,
                }
            },
            Listener::Unix(listener, _socket) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let client = ClientInfo::unix(&stream);
                        self.welcome(stream, client);
                    }
                    Err(error) => self.pause(&error).await,
                }
            },
        }
    }

    async fn pause(&self, error: &io::Error) {
        self.reporter.warn(&format!("a client could not be let in: {error}"));
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn welcome<S>(self: &Rc<Self>, stream: S, client: ClientInfo)
    where
        S: ClientStream + 'static,
    {
        if !self.allow.allows(&client.address) {
            return self.reporter.client(&client, "turned away: its address is not allowed");
        }
        if self.clients.now() >= self.max_clients {
            return self.reporter.client(&client, "turned away: there are too many");
        }
        let present = Present::new(self);
        spawn_local(async move {
            let server = &present.0;
            server.reporter.client(&client, "connected");
            let ended = serve(stream, &client, &server.catalogue, &server.options).await;
            server.reporter.client(&client, &farewell(&client, ended));
        });
    }
}

fn farewell(client: &ClientInfo, ended: Result<(), ServeError>) -> String {
    match (ended, client.address) {
        (Ok(()), _) => "gone".into(),
        (Err(error), PeerAddress::Tcp(_) | PeerAddress::Unix { .. }) => format!("gone: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Listener, reachable, resolve};
    use std::net::IpAddr;

    #[test]
    fn places_are_written_in_many_ways() {
        let cases = [
            ("127.0.0.1:5", "127.0.0.1:5"),
            ("0.0.0.0", "0.0.0.0:10809"),
            ("[::1]:7", "[::1]:7"),
            ("[::1]", "[::1]:10809"),
            ("::", "[::]:10809"),
            (":0", "127.0.0.1:0"),
            (":", "127.0.0.1:10809"),
            ("localhost:9", "127.0.0.1:9"),
        ];
        for (text, address) in cases {
            let found = resolve(text).unwrap();
            let same = found.to_string() == address || text.starts_with("localhost");
            assert!(same && found.port() > 0 || text == ":0", "{text}: {found}");
        }
        for bad in ["127.0.0.1:x", "127.0.0.1:65536", "no such name:1"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_is_told_to_go_to_all_addresses() {
        for any in ["0.0.0.0", "::"] {
            assert!(!reachable(any.parse::<IpAddr>().unwrap()).is_unspecified());
        }
        let one: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(reachable(one), one);
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_server_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::unix(&path).unwrap();
        let uri = listener.uri("a b", true).to_string();
        assert_eq!(uri, format!("nbds+unix:///a%20b?socket={}", path.display()));
        assert!(!listener.is_public());
        let error = Listener::unix(&path).err().unwrap();
        assert!(error.message.contains("something is there already"), "{error:?}");
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(Listener::unix(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
