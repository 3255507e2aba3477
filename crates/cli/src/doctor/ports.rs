//! Who listens at the ports of the daemon.

use super::Facts;
use super::finding::Findings;
use super::machine::Machine;
use holdfast_daemon::overlap;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

pub(super) fn look(facts: &Facts, findings: &mut Findings) {
    let Some(info) = &facts.info else { return };
    let mut ports = vec![("ports.nodes", "for other nodes", "listen", info.listen.as_str())];
    if let Some(address) = &info.nbd_listen {
        ports.push(("ports.nbd", "for NBD clients", "nbd-listen", address));
    }
    if let Some(address) = &info.http {
        ports.push(("ports.http", "for the metrics", "http", address));
    }
    for (check, purpose, key, text) in ports {
        let Some(address) = resolved(text) else { continue };
        if address.port() == 0 {
            findings.ok(check, format!("{address}, {purpose}: any free port will do"));
            continue;
        }
        let listeners = listeners(&facts.machine, address, info.pid);
        match (info.pid, listeners.first()) {
            (Some(pid), Some(listener)) if listener.is(pid) && !is_ours(address) => findings.error(
                check,
                format!("the daemon listens at {address}, {purpose}, which is no address of this machine"),
                "nobody can reach this node there",
                format!("give the machine that address, or have the daemon use another one: {key} = \"ADDR:PORT\""),
            ),
            (Some(pid), Some(listener)) if listener.is(pid) => {
                findings.ok(check, format!("the daemon listens at {address}, {purpose}"));
            }
            (Some(_), None) => findings.error(
                check,
                format!("nobody listens at {address}, {purpose}, although the daemon runs"),
                "nobody can reach this node there",
                "look at its log, and restart it",
            ),
            // Without rights nobody can tell whose it is.
            (Some(_), Some(Listener { process: None })) => {
                findings.ok(check, format!("somebody listens at {address}, {purpose}"));
            }
            (None, None) => findings.ok(check, format!("{address}, {purpose}, is free")),
            (_, Some(listener)) => findings.error(
                check,
                format!("{address}, {purpose}, is taken by {listener}"),
                "the daemon does not start, or is not reached there",
                format!("stop that, or have the daemon use another port: {key} = \"ADDR:PORT\""),
            ),
        }
    }
}

/// The address; that of a name is looked up, as the daemon does.
fn resolved(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.to_socket_addrs().ok()?.next())
}

/// Whether the machine has the address now.
fn is_ours(address: SocketAddr) -> bool {
    let any_port = TcpListener::bind((address.ip(), 0));
    !any_port.is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

/// Somebody who listens at a port.
#[derive(Debug, PartialEq, Eq)]
struct Listener {
    /// The process and its name; `None` when it is not seen from here.
    process: Option<(u32, String)>,
}

impl Listener {
    fn is(&self, pid: u32) -> bool {
        self.process.as_ref().is_some_and(|(found, _)| *found == pid)
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "{name} (process {pid})"),
            None => f.write_str("a process that cannot be seen from here; as root doctor can tell"),
        }
    }
}

/// Those who are in the way of somebody who wants to listen at this address.
///
/// The kernel gives its table in pieces: while sockets come and go, a line can appear in two of
/// them or in none (proc(5) promises no snapshot). So a socket counts once, and "nobody" is looked
/// at again.
fn listeners(machine: &Machine, wanted: SocketAddr, daemon: Option<u32>) -> Vec<Listener> {
    const LOOKS: usize = 3;
    let sockets = (0..LOOKS).map(|_| sockets_at(machine, wanted)).find(|found| !found.is_empty());
    let sockets = sockets.unwrap_or_default();
    sockets.into_iter().map(|inode| Listener { process: owner(machine, inode, daemon) }).collect()
}

/// The inodes of the sockets that listen there, as one look at the kernel's tables gives them.
fn sockets_at(machine: &Machine, wanted: SocketAddr) -> BTreeSet<u64> {
    let mut sockets = BTreeSet::new();
    for table in ["proc/net/tcp", "proc/net/tcp6"] {
        let text = machine.text(table).unwrap_or_default();
        for (address, inode) in text.lines().filter_map(listening) {
            if overlap(address, wanted) {
                sockets.insert(inode);
            }
        }
    }
    sockets
}

/// The address and the inode of a line of `/proc/net/tcp` that is about a listener.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.get(3) != Some(&LISTEN) {
        return None;
    }
    Some((address(words[1])?, words.get(9)?.parse().ok()?))
}

/// `0100007F:1EAA`: words of 32 bits in the order of this machine's bytes, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The process that has the socket open; the daemon, if it is one of several: a service manager keeps its
/// sockets, too.
fn owner(machine: &Machine, inode: u64, daemon: Option<u32>) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let processes = machine.names("proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    for pid in daemon.into_iter().chain(processes) {
        let dir = format!("proc/{pid}/fd");
        let has = machine.names(&dir).into_iter().any(|fd| {
            let link = std::fs::read_link(machine.path(&format!("{dir}/{fd}")));
            link.is_ok_and(|target| target.to_str() == Some(&wanted))
        });
        if has {
            let name = machine.text(&format!("proc/{pid}/comm"));
            return Some((pid, name.unwrap_or_else(|| "a process".to_owned())));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn lines_of_the_table_are_read() {
        let v4 = "  0: 0100007F:1EAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                  0 0 4711 1 0000000000000000 100 0 0 10 0";
        let little = cfg!(target_endian = "little");
        if little {
            assert_eq!(listening(v4), Some(("127.0.0.1:7850".parse().unwrap(), 4711)));
        }
        assert_eq!(listening(&v4.replace(" 0A ", " 01 ")), None);
        for bad in ["", "sl  local_address rem_address   st", "0: xx:1 y 0A", "0: 0100007F 0 0A"] {
            assert_eq!(listening(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_port_of_the_metrics_is_looked_at_too_and_so_are_names() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let info = holdfast_api::daemon::DaemonInfo {
            listen: "127.0.0.1:0".into(),
            http: Some(format!("localhost:{port}")),
            ..Default::default()
        };
        let machine = Machine::here();
        let facts = Facts { machine, info: Some(info), status: None, silent: None };
        let mut findings = Findings::default();
        look(&facts, &mut findings);
        let of_http = findings.0.iter().find(|one| one.check == "ports.http").unwrap();
        // A machine whose localhost is ::1 alone has nobody there.
        if resolved("localhost:1").is_some_and(|address| address.is_ipv4()) {
            assert!(of_http.what.contains("for the metrics, is taken by"), "{}", of_http.what);
        }
    }

    #[test]
    fn a_line_that_the_kernel_gives_twice_is_one_listener() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/net")).unwrap();
        let line = "  0: 0100007F:1EAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                    0 0 4711 1 0000000000000000 100 0 0 10 0\n";
        std::fs::write(root.path().join("proc/net/tcp"), line.repeat(2)).unwrap();
        let found =
            listeners(&Machine::below(root.path()), "127.0.0.1:7850".parse().unwrap(), None);
        assert_eq!(found, [Listener { process: None }]);
        // Who listens at all addresses of IPv4 is in the way there, and not at one of IPv6.
        std::fs::write(root.path().join("proc/net/tcp"), line.replace("0100007F", "00000000"))
            .unwrap();
        for (wanted, count) in [("127.0.0.1:7850", 1), ("[::]:7850", 1), ("[::1]:7850", 0)] {
            let found = listeners(&Machine::below(root.path()), wanted.parse().unwrap(), None);
            assert_eq!(found.len(), count, "{wanted}");
        }
    }

    #[test]
    fn a_listener_of_this_process_is_found_by_its_name() {
        // An address that no other process uses, so that nobody takes the port that is given back.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        for host in [format!("127.{}.{b}.{c}:0", 64 | a), "[::1]:0".to_owned()] {
            let Ok(listener) = TcpListener::bind(&host) else {
                println!("skipped: {host} cannot be used here");
                continue;
            };
            let address = listener.local_addr().unwrap();
            let found = listeners(&Machine::here(), address, None);
            assert!(found.len() == 1 && found[0].is(std::process::id()), "{found:?}");
            drop(listener);
            // A program that another test is just starting has it open for a moment, too.
            let limit = std::time::Duration::from_secs(20);
            holdfast_testkit::wait_until(limit, "nobody listens there any more", || {
                listeners(&Machine::here(), address, None).is_empty()
            });
        }
    }
}
