//! The keys of the configuration file: one table, from which the commented default file, the manual
//! and the checks are made.

use super::OFF;
use crate::options::{HTTP_PORT, NBD_PORT, NODE_PORT};
use crate::options::{budget, listen_address, network};
use holdfast_cluster::Address;

/// What a key takes. The check says why a text cannot be.
#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// A text.
    Text(fn(&str) -> Result<(), String>),
    /// `true` or `false`.
    Flag,
    /// A whole number that is not negative.
    Number,
    /// A list of texts.
    List(fn(&str) -> Result<(), String>),
}

/// A key of the configuration file: an option of `holdfast daemon` without its dashes.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub takes: Takes,
    /// What it takes, as the manual writes it, in TOML with capitals for what is to be filled in.
    pub form: &'static str,
    /// In TOML: the default, or an example where the default cannot be written.
    pub sample: &'static str,
    /// What holds when nobody says.
    pub default: &'static str,
    /// What it does, with unit and range, in whole sentences.
    pub about: &'static str,
}

/// Every key, in the order of the manual.
pub const CONFIG_KEYS: &[ConfigKey] = &[
    ConfigKey {
        name: "name",
        takes: Takes::Text(name),
        form: "\"NODE\"",
        sample: "\"alpha\"",
        default: "the host name",
        about: "The name of this node: 1 to 64 letters, digits, '.', '_' and '-'. Only of meaning \
                before the node is in a cluster.",
    },
    ConfigKey {
        name: "state-dir",
        takes: Takes::Text(path),
        form: "\"DIR\"",
        sample: "\"/var/lib/holdfast\"",
        default: "/var/lib/holdfast",
        about: "The directory in which the node keeps what it knows: its keys, the cluster's \
                records, the metadata of its disks.",
    },
    ConfigKey {
        name: "listen",
        takes: Takes::Text(listen),
        form: "\"ADDR:PORT\"",
        sample: "\"127.0.0.1:7850\"",
        default: "127.0.0.1:7850",
        about: "The address and port at which other nodes reach this one. Without a port it is \
                7850; port 0 picks a free one.",
    },
    ConfigKey {
        name: "advertise",
        takes: Takes::List(advertise),
        form: "[\"HOST:PORT\", ...]",
        sample: "[]",
        default: "none: the address of listen",
        about: "What other nodes are told instead of that, in the order in which they try: for a \
                node behind a router, or with several ways to it. Without a port it is 7850.",
    },
    ConfigKey {
        name: "socket",
        takes: Takes::Text(path),
        form: "\"PATH\"",
        sample: "\"/run/holdfast/control.sock\"",
        default: "/run/holdfast/control.sock",
        about: "The control socket, which the commands use. The NBD socket, nbd.sock, is beside \
                it.",
    },
    ConfigKey {
        name: "lock-memory",
        takes: Takes::Flag,
        form: "true | false",
        sample: "true",
        default: "true, where its rights allow that; it warns where they do not",
        about: "Whether the daemon keeps all its memory from being swapped out or dropped. Say \
                false when no filesystem of this machine is on its resources and attachments.",
    },
    ConfigKey {
        name: "journal-budget",
        takes: Takes::Text(journal_budget),
        form: "\"SIZE\" | \"off\"",
        sample: "\"off\"",
        default: "off: each may take what it was made with",
        about: "What all journals of this node may take together, for example \"200G\"; 16M at \
                least. When they were made larger, each gets its share.",
    },
    ConfigKey {
        name: "max-resyncs",
        takes: Takes::Number,
        form: "NUMBER",
        sample: "0",
        default: "0: no limit",
        about: "How many resources may be filled by a resync on this node at a time; the others \
                wait for their turn, and the status says so.",
    },
    ConfigKey {
        name: "nbd-listen",
        takes: Takes::Text(nbd_listen),
        form: "\"ADDR:PORT\" | \"off\"",
        sample: "\"off\"",
        default: "off; the Unix socket is always there",
        about: "The address and port at which NBD clients reach the resources by TCP. Without a \
                port it is 10809.",
    },
    ConfigKey {
        name: "nbd-tls-certificates",
        takes: Takes::Text(path_or_off),
        form: "\"DIR\" | \"off\"",
        sample: "\"/etc/holdfast/nbd\"",
        default: "off: NBD by TCP is in the clear",
        about: "The directory with server-cert.pem and server-key.pem, in the names that QEMU, \
                nbdkit and libnbd use. When it is given, clients by TCP must use TLS.",
    },
    ConfigKey {
        name: "nbd-tls",
        takes: Takes::Text(nbd_tls),
        form: "\"required\" | \"optional\"",
        sample: "\"required\"",
        default: "required",
        about: "Whether NBD clients by TCP must use TLS, or may. It means nothing without \
                nbd-tls-certificates.",
    },
    ConfigKey {
        name: "nbd-tls-verify-peer",
        takes: Takes::Flag,
        form: "true | false",
        sample: "false",
        default: "false",
        about: "Whether NBD clients need a certificate that ca-cert.pem in that directory has \
                signed, and ca-crl.pem has not revoked.",
    },
    ConfigKey {
        name: "nbd-allow",
        takes: Takes::List(nbd_allow),
        form: "[\"ADDR[/BITS]\", ...]",
        sample: "[]",
        default: "all",
        about: "The addresses and networks from which NBD clients are let in by TCP, such as \
                \"192.0.2.0/24\".",
    },
    ConfigKey {
        name: "smartctl",
        takes: Takes::Text(path_or_off),
        form: "\"PATH\" | \"off\"",
        sample: "\"/usr/sbin/smartctl\"",
        default: "smartctl, where it is installed",
        about: "The program that reads the SMART values of the devices below the disks, every 30 \
                minutes; off reads none.",
    },
    ConfigKey {
        name: "http",
        takes: Takes::Text(http),
        form: "\"ADDR:PORT\" | \"off\"",
        sample: "\"off\"",
        default: "off",
        about: "The address and port at which the metrics are reached by TCP, as \
                http://ADDR:PORT/metrics, without TLS. Without a port it is 7851. Nothing else is \
                answered there.",
    },
];

fn name(text: &str) -> Result<(), String> {
    holdfast_units::check_name(text).map_err(|why| why.to_string())
}

/// A daemon may be started anywhere: what a file says must not depend on where.
fn path(text: &str) -> Result<(), String> {
    match text {
        "" => Err("the path is empty".to_owned()),
        _ if text.contains('\0') => Err("a path has no NUL".to_owned()),
        _ if !text.starts_with('/') => {
            Err("write the whole path, with a / at its beginning".to_owned())
        }
        _ => Ok(()),
    }
}

fn path_or_off(text: &str) -> Result<(), String> {
    if text == OFF { Ok(()) } else { path(text) }
}

fn listen(text: &str) -> Result<(), String> {
    listen_address(text, NODE_PORT).map(|_| ()).map_err(|error| error.message)
}

fn nbd_listen(text: &str) -> Result<(), String> {
    if text == OFF {
        return Ok(());
    }
    listen_address(text, NBD_PORT).map(|_| ()).map_err(|error| error.message)
}

fn advertise(text: &str) -> Result<(), String> {
    Address::parse(text, Some(NODE_PORT)).map(|_| ()).map_err(|why| why.to_string())
}

fn journal_budget(text: &str) -> Result<(), String> {
    budget(text).map(|_| ())
}

fn nbd_tls(text: &str) -> Result<(), String> {
    match text {
        "required" | "optional" => Ok(()),
        _ => Err("it is \"required\" or \"optional\"".to_owned()),
    }
}

fn nbd_allow(text: &str) -> Result<(), String> {
    network(text).map(|_| ()).map_err(|error| error.message)
}

fn http(text: &str) -> Result<(), String> {
    if text == OFF {
        return Ok(());
    }
    listen_address(text, HTTP_PORT).map(|_| ()).map_err(|error| error.message)
}
