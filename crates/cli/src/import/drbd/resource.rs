//! `resource` sections: hosts, volumes, and the options that hold for them.

use super::syntax::Statement;
use super::{settle_all, skipped};
use crate::import::ledger::{Id, Ledger, Outcome};
use std::collections::BTreeMap;

/// One option as it stands in a file.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// `net`, `disk`, `options` and so on.
    pub(super) section: String,
    /// Its words.
    pub(super) words: Vec<String>,
    pub(super) id: Id,
}

/// The options of one level: of `common`, a resource, its connections, or a volume.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) settings: Vec<Setting>,
}

/// The sections that hold options.
const SECTIONS: [&str; 7] = ["net", "disk", "options", "syncer", "handlers", "startup", "proxy"];

impl Layer {
    /// Takes the options of the sections inside a statement in.
    pub(super) fn take(&mut self, statement: &Statement, ledger: &mut Ledger) {
        ledger.settle(statement.id, Outcome::translated("its statements are looked at one by one"));
        for inner in statement.body() {
            self.section(inner, ledger);
        }
    }

    /// Takes one section in, or `protocol`, as older files have it; whether it was one.
    fn section(&mut self, statement: &Statement, ledger: &mut Ledger) -> bool {
        let keyword = statement.keyword();
        if keyword == "protocol" && statement.body.is_none() {
            self.setting("net", statement);
            return true;
        }
        if keyword == "skip" {
            skipped(statement, ledger);
            return true;
        }
        if !SECTIONS.contains(&keyword) || statement.body.is_none() || statement.words.len() > 1 {
            return false;
        }
        ledger.settle(statement.id, Outcome::translated("its options are looked at one by one"));
        for option in statement.body() {
            if option.body.is_some() && keyword == "proxy" {
                let why = "there is no proxy between nodes: for a far node over a slow line, \
                           `join --protocol log` on it follows the journal";
                settle_all(option, ledger, &Outcome::missing(why));
            } else if option.body.is_none() {
                self.setting(keyword, option);
            }
        }
        true
    }

    fn setting(&mut self, section: &str, statement: &Statement) {
        let (section, words) = (section.to_owned(), statement.words.clone());
        self.settings.push(Setting { section, words, id: statement.id });
    }
}

/// A volume, as it is for all hosts or on one.
#[derive(Clone, Debug, Default)]
pub(super) struct Volume {
    pub(super) device: Option<(String, Id)>,
    /// `none` is a node without a disk.
    pub(super) disk: Option<(String, Id)>,
    pub(super) meta: Option<(String, Id)>,
    pub(super) options: Layer,
}

/// The volumes of a host, by number.
pub(super) type Volumes = BTreeMap<u32, Volume>;

/// A host of a resource.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Its name; for a floating one its address.
    pub(super) name: String,
    /// It has no name in the file.
    pub(super) floating: bool,
    /// Its addresses without ports, in order.
    pub(super) addresses: Vec<String>,
    pub(super) volumes: Volumes,
}

/// A resource.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) id: Id,
    pub(super) name: String,
    pub(super) hosts: Vec<Host>,
    /// What is the same on all hosts.
    pub(super) volumes: Volumes,
    /// Its own options, then those of its connections.
    pub(super) layers: [Layer; 2],
    /// The resource of DRBD whose device is its disk on some hosts.
    pub(super) stacked_on: Option<String>,
}

/// Reads a resource; `None` when it has no name.
pub(super) fn read(statement: &Statement, ledger: &mut Ledger) -> Option<Resource> {
    let [name] = statement.arguments()[..] else {
        let why = Outcome::missing("a resource has one name");
        settle_all(statement, ledger, &why);
        return None;
    };
    let mut resource = Resource {
        id: statement.id,
        name: name.to_owned(),
        hosts: Vec::new(),
        volumes: Volumes::new(),
        layers: [Layer::default(), Layer::default()],
        stacked_on: None,
    };
    for inner in statement.body() {
        resource.statement(inner, ledger);
    }
    if resource.stacked_on.is_some() {
        let why = "resources are not stacked, and nothing is made of this one: its far node \
                   becomes a member like the others, with `--protocol log`";
        settle_all(statement, ledger, &Outcome::missing(why));
        return Some(resource);
    }
    // Who the hosts are must be known before.
    for inner in statement.body() {
        match inner.keyword() {
            "connection" => resource.connection(inner, ledger),
            "connection-mesh" => resource.mesh(inner, ledger),
            _ => {}
        }
    }
    Some(resource)
}

impl Resource {
    fn statement(&mut self, statement: &Statement, ledger: &mut Ledger) {
        match (statement.keyword(), &statement.body) {
            ("on", Some(_)) => self.hosts(statement, ledger),
            ("floating", Some(_)) => self.floating(statement, ledger),
            ("connection" | "connection-mesh", Some(_)) => {}
            ("stacked-on-top-of", _) => {
                self.stacked_on = Some(statement.arguments().concat());
                let why = "resources are not stacked: the third node becomes a member like the \
                           others, by `holdfast join`, or with `--protocol log` if it is far away";
                settle_all(statement, ledger, &Outcome::missing(why));
            }
            ("template-file", _) => {
                let why = "name that file before this one on the command line of the import, and \
                           look at what comes of it";
                ledger.settle(statement.id, Outcome::missing(why));
            }
            _ if volume_statement(&mut self.volumes, statement, ledger) => {}
            _ => {
                self.layers[0].section(statement, ledger);
            }
        }
    }

    fn hosts(&mut self, statement: &Statement, ledger: &mut Ledger) {
        let names = statement.arguments();
        let mut host = Host {
            name: String::new(),
            floating: false,
            addresses: Vec::new(),
            volumes: Volumes::new(),
        };
        host.take(statement, ledger);
        if !names.is_empty() {
            ledger.settle(statement.id, Outcome::translated("commands for this node"));
        }
        for name in names {
            self.hosts.push(Host { name: name.to_owned(), ..host.clone() });
        }
    }

    fn floating(&mut self, statement: &Statement, ledger: &mut Ledger) {
        let Some(address) = address_of(&statement.arguments()) else { return };
        let mut host = Host {
            name: format!("the node at {address}"),
            floating: true,
            addresses: vec![address],
            volumes: Volumes::new(),
        };
        host.take(statement, ledger);
        ledger.settle(statement.id, Outcome::translated("commands for the node of this address"));
        self.hosts.push(host);
    }

    fn mesh(&mut self, statement: &Statement, ledger: &mut Ledger) {
        let hosts: Vec<&str> = statement
            .body()
            .iter()
            .filter(|inner| inner.keyword() == "hosts")
            .flat_map(Statement::arguments)
            .collect();
        let all = self.hosts.iter().all(|host| hosts.contains(&host.name.as_str()));
        for inner in statement.body().iter().filter(|inner| inner.keyword() == "hosts") {
            let outcome = match all {
                true => {
                    Outcome::needless("all members of a resource are connected with each other")
                }
                false => not_in_the_mesh(),
            };
            ledger.settle(inner.id, outcome);
        }
        self.links(statement, all, ledger);
    }

    fn connection(&mut self, statement: &Statement, ledger: &mut Ledger) {
        self.paths(statement, ledger);
        self.links(statement, self.hosts.len() <= 2, ledger);
    }

    /// The addresses that a connection has for its hosts.
    fn paths(&mut self, statement: &Statement, ledger: &mut Ledger) {
        for inner in statement.body() {
            match (inner.keyword(), &inner.body) {
                ("path", Some(_)) => {
                    let done = Outcome::translated("its addresses are told to the other nodes");
                    ledger.settle(inner.id, done);
                    self.paths(inner, ledger);
                }
                ("host", None) => {
                    let outcome = self.way_to(&inner.arguments());
                    ledger.settle(inner.id, outcome);
                }
                _ => {}
            }
        }
    }

    /// `host NAME [address [AF] ADDR:PORT] [port N]`.
    fn way_to(&mut self, words: &[&str]) -> Outcome {
        let Some((name, rest)) = words.split_first() else { return not_in_the_mesh() };
        let Some(host) = self.hosts.iter_mut().find(|host| host.name == *name) else {
            return Outcome::missing(
                "the resource has no such host: add it by `holdfast join` there",
            );
        };
        match rest {
            [] | ["port", _] => {
                Outcome::needless("all members are connected, by one port for all resources")
            }
            ["address", address @ ..] => match address_of(address) {
                Some(address) => {
                    let said = Outcome::translated(format!("an address of {name}: {address}"));
                    host.add_address(address);
                    said
                }
                None => Outcome::missing(ADDRESS),
            },
            _ => Outcome::missing(
                "there is no proxy between nodes: for a far node over a slow line, `join \
                 --protocol log` on it follows the journal",
            ),
        }
    }

    /// The options of some connections; they can be those of the resource when they hold for `all`.
    fn links(&mut self, statement: &Statement, all: bool, ledger: &mut Ledger) {
        ledger.settle(statement.id, Outcome::translated("its statements are looked at one by one"));
        for inner in statement.body() {
            let options = SECTIONS.contains(&inner.keyword()) && inner.body.is_some();
            if options && all {
                self.layers[1].section(inner, ledger);
            } else if options {
                let why = "it is only for some of the connections: `holdfast set NAME KEY=VALUE` \
                           sets options for all; some also take `--peer NODE`, on each node for \
                           its own side";
                settle_all(inner, ledger, &Outcome::missing(why));
            }
        }
    }
}

fn not_in_the_mesh() -> Outcome {
    Outcome::missing(
        "all members of a resource are connected with each other: none can be left out",
    )
}

const ADDRESS: &str = "only TCP over IPv4 and IPv6 is spoken between nodes: put an address of \
                       that kind into `listen` of the node's holdfast.toml";

impl Host {
    fn add_address(&mut self, address: String) {
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    /// Takes the statements of `on` or `floating` in.
    fn take(&mut self, statement: &Statement, ledger: &mut Ledger) {
        for inner in statement.body() {
            match (inner.keyword(), &inner.body) {
                ("address", None) => match address_of(&inner.arguments()) {
                    Some(address) => {
                        let said = Outcome::translated(format!("listen at {address}"));
                        ledger.settle(inner.id, said);
                        self.add_address(address);
                    }
                    None => ledger.settle(inner.id, Outcome::missing(ADDRESS)),
                },
                ("node-id", None) => {
                    let why = Outcome::needless("nodes are numbered by themselves");
                    ledger.settle(inner.id, why);
                }
                ("proxy", _) => {
                    let why = "there is no proxy between nodes: for a far node over a slow line, \
                               `join --protocol log` on it follows the journal";
                    settle_all(inner, ledger, &Outcome::missing(why));
                }
                _ => {
                    volume_statement(&mut self.volumes, inner, ledger);
                }
            }
        }
    }
}

/// The address of `[AF] ADDR[:PORT]` without its port; `None` for what is not IP.
fn address_of(words: &[&str]) -> Option<String> {
    let text = match words {
        [text] | ["ipv4" | "ipv6", text] => *text,
        _ => return None,
    };
    // The port may stand elsewhere, or be missing.
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) if !text.starts_with('[') => return None,
        _ => text,
    };
    let host = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| host.to_owned())
}

/// Takes `device`, `disk`, `meta-disk` or `volume` in; whether it was one of them.
fn volume_statement(volumes: &mut Volumes, statement: &Statement, ledger: &mut Ledger) -> bool {
    let own = |statement: &Statement| Some((statement.words[1..].join(" "), statement.id));
    match (statement.keyword(), &statement.body) {
        ("device", None) => volumes.entry(0).or_default().device = own(statement),
        ("disk", None) => volumes.entry(0).or_default().disk = own(statement),
        ("meta-disk" | "flexible-meta-disk", None) => {
            volumes.entry(0).or_default().meta = own(statement);
        }
        ("volume", Some(_)) => {
            let Ok(number) = statement.arguments().concat().parse() else { return false };
            let done = Outcome::translated("a resource of its own");
            ledger.settle(statement.id, done);
            let volume: &mut Volume = volumes.entry(number).or_default();
            for inner in statement.body() {
                match (inner.keyword(), &inner.body) {
                    ("device", None) => volume.device = own(inner),
                    ("disk", None) => volume.disk = own(inner),
                    ("meta-disk" | "flexible-meta-disk", None) => volume.meta = own(inner),
                    _ => {
                        volume.options.section(inner, ledger);
                    }
                }
            }
        }
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_without_their_ports() {
        for (text, due) in [
            ("10.0.0.1:7788", Some("10.0.0.1")),
            ("ipv4 10.0.0.1:7788", Some("10.0.0.1")),
            ("ipv6 [fd00::1]:7788", Some("fd00::1")),
            ("[fd00::1]", Some("fd00::1")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.1:x", None),
            ("ssocks 10.0.0.1:7788", None),
            (":1", None),
            ("", None),
        ] {
            let words: Vec<&str> = text.split(' ').collect();
            assert_eq!(address_of(&words).as_deref(), due, "{text}");
        }
    }
}
