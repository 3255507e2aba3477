//! Configuration of ENBD: `enbd.conf`, a line for each client, server and module.

use super::ledger::{Id, Ledger, Outcome};
use super::plan::{Plan, Step, command, part_of};
use super::source::{Place, read, wrong};
use holdfast_api::ApiError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// As many connections as `attach` makes, at most.
const CONNECTIONS: u16 = 16;
/// Words of a line, at most.
const WORDS: usize = 200;

/// Reads the file and makes the plan.
///
/// # Errors
/// What cannot be read, with its place.
pub(super) fn import(path: &Path) -> Result<Plan, ApiError> {
    let text = read(path)?;
    let file = Rc::new(path.to_owned());
    let mut ledger = Ledger::default();
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    for (number, line) in text.lines().enumerate() {
        let words = words_of(line, &file, number + 1)?;
        let Some((first, rest)) = words.split_first() else { continue };
        match first.text.as_str() {
            "server" => servers.push(server(first, rest, &mut taken, &mut ledger)?),
            "client" => clients.push(client(first, rest, &mut taken, &mut ledger)?),
            "module" => module(first, rest, &mut ledger)?,
            other => {
                let why =
                    format!("a line begins with server, client or module, not with {other:?}");
                return Err(wrong(&first.place, &why));
            }
        }
    }
    let mut remarks = vec![
        "The commands are for the machine that this file is from; import the file of the other \
         side there."
            .to_owned(),
        "A server and a client of ENBD do not speak with one of NBD: change both sides.".to_owned(),
    ];
    if !servers.is_empty() {
        remarks.push(
            "`holdfast serve` runs in the foreground: give each one a systemd unit. It needs no \
             daemon."
                .to_owned(),
        );
    }
    if !clients.is_empty() {
        remarks.push(
            "`holdfast attach` needs the daemon of this machine (systemctl enable --now \
             holdfast); put the paths under /dev/holdfast into /etc/fstab and the like. Data \
             stays where it is."
                .to_owned(),
        );
    }
    let mut steps = Vec::new();
    for (about, commands) in
        [("serve what ENBD served", servers), ("attach what ENBD attached", clients)]
    {
        if !commands.is_empty() {
            let node = "this machine".to_owned();
            steps.push(Step { node, about: about.to_owned(), config: Vec::new(), commands });
        }
    }
    Ok(Plan {
        kind: "enbd",
        files: vec![PathBuf::from(path)],
        steps,
        remarks,
        statements: ledger.close(),
    })
}

#[derive(Clone, Debug)]
struct Word {
    text: String,
    place: Place,
}

/// The words of a line up to a `#` that begins one.
fn words_of(line: &str, file: &Rc<PathBuf>, number: usize) -> Result<Vec<Word>, ApiError> {
    let mut words: Vec<Word> = Vec::new();
    let mut inside = false;
    for (at, c) in line.chars().enumerate() {
        let place = || Place { file: Rc::clone(file), line: number, column: at + 1 };
        if c.is_whitespace() {
            inside = false;
        } else if c == '#' && !inside {
            break;
        } else if c.is_control() {
            return Err(wrong(&place(), "there is a control character in this line"));
        } else if inside {
            if let Some(word) = words.last_mut() {
                word.text.push(c);
            }
        } else if words.len() == WORDS {
            return Err(wrong(&place(), &format!("the line has more than {WORDS} words")));
        } else {
            words.push(Word { text: c.to_string(), place: place() });
            inside = true;
        }
    }
    match words.iter().find(|word| word.text == "\\") {
        Some(word) => {
            Err(wrong(&word.place, "a line does not go on in the next one: write it as one"))
        }
        None => Ok(words),
    }
}

/// The command, unless one before has what it needs: the second would fail.
fn unless_taken(
    what: &str,
    line: &[&str],
    head: Id,
    taken: &mut BTreeSet<String>,
    ledger: &mut Ledger,
) -> String {
    let line = command(line);
    if taken.insert(what.to_owned()) {
        return line;
    }
    let why = format!("{what} is taken by a line before: give this one another");
    ledger.settle(head, Outcome::missing(why));
    format!("# {what} is taken: {line}")
}

fn text_of(words: &[&Word]) -> String {
    words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// An option with its value: taken off the front of the words.
struct Flag<'a> {
    name: &'a str,
    value: Option<&'a str>,
    id: Id,
}

/// Takes the next option, or a word that is none; its value when the option is one of `valued`.
fn next_flag<'a>(words: &mut &'a [Word], valued: &[&str], ledger: &mut Ledger) -> Option<Flag<'a>> {
    let (first, rest) = words.split_first()?;
    let takes = valued.contains(&first.text.as_str());
    let value = rest.first().filter(|_| takes);
    *words = if value.is_some() { &rest[1..] } else { rest };
    let shown: Vec<&Word> = std::iter::once(first).chain(value).collect();
    let id = ledger.add(first.place.clone(), text_of(&shown));
    Some(Flag { name: &first.text, value: value.map(|word| word.text.as_str()), id })
}

const TLS: &str = "certificates are not named one by one: put server-cert.pem and server-key.pem \
                   (serve), client-cert.pem and client-key.pem (attach), and ca-cert.pem into a \
                   directory, and give --tls-certificates DIR; to attach, write nbds:// instead \
                   of nbd://";

/// `server ID PORT RESOURCES options...`
fn server(
    first: &Word,
    rest: &[Word],
    taken: &mut BTreeSet<String>,
    ledger: &mut Ledger,
) -> Result<String, ApiError> {
    let [id, port, ..] = rest else {
        return Err(wrong(&first.place, "a server line is: server ID PORT RESOURCE... OPTION..."));
    };
    let number: u16 = port.text.parse().map_err(|_| wrong(&port.place, "this is no port"))?;
    let head = ledger.add(first.place.clone(), text_of(&[first, id, port]));
    let (mut paths, mut layout, mut size) = (Vec::new(), None, None);
    let mut read_only = false;
    let mut words = &rest[2..];
    let valued = [
        "-s", "-w", "-i", "-b", "-t", "-F", "-h", "-cert", "-key", "-keyfile", "-CApath",
        "-CAfile", "-verify",
    ];
    while let Some(Flag { name, value, id }) = next_flag(&mut words, &valued, ledger) {
        let outcome = match (name, value) {
            (path, None) if path.starts_with('/') => {
                paths.push(path.to_owned());
                part_of(&[path])
            }
            ("-s", Some(value)) => sized(value, &mut size),
            ("-l", None) => {
                layout = Some("concat");
                part_of(&["--layout", "concat"])
            }
            ("-0", None) => {
                layout = Some("stripe");
                Outcome::missing(
                    "--layout stripe is in the command, but the size of a turn may differ: if \
                     there is data already, copy it off before and back behind",
                )
            }
            ("-1", None) => {
                layout = Some("mirror");
                part_of(&["--layout", "mirror"])
            }
            ("-r", None) => {
                read_only = true;
                part_of(&["--read-only"])
            }
            ("-i", Some(_)) => Outcome::needless(
                "a client knows its server again by what it exports, so a server can be restarted \
                 or replaced; `attach --identity ID` insists on one",
            ),
            ("-b" | "-t" | "-w" | "-F", Some(_)) => Outcome::needless(
                "there is one port, blocks of any size, and nothing to be put in order between \
                 connections",
            ),
            ("-h", Some(_)) => Outcome::needless("there is no cache of its own"),
            ("-a" | "-y", None) => Outcome::needless(
                "a write is answered when the disk has it in its cache, and a flush when it is \
                 durable",
            ),
            ("-cert" | "-key" | "-keyfile" | "-CApath" | "-CAfile" | "-verify", _) => {
                Outcome::missing(TLS)
            }
            ("-K" | "-n", None) => Outcome::needless("it is about the processes of ENBD"),
            (number, None) if number.starts_with(|c: char| c.is_ascii_digit()) => {
                sized(number, &mut size)
            }
            (path, None) if !path.starts_with('-') => {
                Outcome::missing("write the path as an absolute one, and import again")
            }
            _ => continue,
        };
        ledger.settle(id, outcome);
    }
    if paths.is_empty() {
        ledger.settle(
            head,
            Outcome::missing("no file or device is named by an absolute path: nothing is served"),
        );
        return Ok(format!("# server {}: nothing to serve", id.text));
    }
    let listen = format!("0.0.0.0:{number}");
    let mut line = vec!["holdfast", "serve"];
    line.extend(paths.iter().map(String::as_str));
    line.extend(["--listen", &listen]);
    if let Some(layout) = layout.filter(|_| paths.len() > 1) {
        line.extend(["--layout", layout]);
    }
    let size = size.map(|size| size.to_string());
    let a_file = paths.len() == 1 && !paths[0].starts_with("/dev/");
    if let Some(size) = size.as_ref().filter(|_| !read_only && a_file) {
        line.extend(["--size", size]);
    }
    if read_only {
        line.push("--read-only");
    }
    ledger.settle(head, Outcome::translated(format!("holdfast serve at port {number}")));
    Ok(unless_taken(&format!("port {number}"), &line, head, taken, ledger))
}

/// A size of an export, in bytes or with a suffix.
fn sized(text: &str, size: &mut Option<u64>) -> Outcome {
    match holdfast_units::parse_size(text) {
        Ok(bytes) => {
            *size = Some(bytes);
            Outcome::missing(format!(
                "a file that is not there yet is made with --size {bytes}; one that is there, several \
                 files, and devices are served as they are"
            ))
        }
        Err(_) => Outcome::missing("it is no size: give --size SIZE"),
    }
}

/// `client ID DEVICE SERVER PORT options...`
fn client(
    first: &Word,
    rest: &[Word],
    taken: &mut BTreeSet<String>,
    ledger: &mut Ledger,
) -> Result<String, ApiError> {
    let [id, device, host, port, ..] = rest else {
        return Err(wrong(
            &first.place,
            "a client line is: client ID DEVICE SERVER PORT OPTION...",
        ));
    };
    if let Some(option) = [device, host].into_iter().find(|word| word.text.starts_with('-')) {
        let why = "options come behind the port: client ID DEVICE SERVER PORT OPTION...";
        return Err(wrong(&option.place, why));
    }
    let number: u16 = port.text.parse().map_err(|_| wrong(&port.place, "this is no port"))?;
    let head = ledger.add(first.place.clone(), text_of(&[first, id, device, host, port]));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String =
        device.text.rsplit('/').next().unwrap_or_default().chars().filter(|c| plain(*c)).collect();
    let name = if holdfast_units::check_name(&name).is_ok() { name } else { "nd".to_owned() };
    let uri = |host: &str| match host.contains(':') {
        true => format!("nbd://[{host}]:{number}"),
        false => format!("nbd://{host}:{number}"),
    };
    let mut uris = vec![uri(&host.text)];
    let (mut connections, mut read_only, mut wait) = (None, false, "0");
    let mut words = &rest[4..];
    let valued =
        ["-n", "-b", "-i", "-p", "-t", "-x", "-cert", "-key", "-CApath", "-CAfile", "-verify"];
    while let Some(Flag { name, value, id }) = next_flag(&mut words, &valued, ledger) {
        let outcome = match (name, value) {
            ("-n", Some(value)) => match value.parse::<u16>() {
                Ok(count @ 1..=CONNECTIONS) => {
                    connections = Some(count.to_string());
                    part_of(&["--connections", value])
                }
                Ok(count) if count > CONNECTIONS => {
                    connections = Some(CONNECTIONS.to_string());
                    Outcome::missing(
                        "there are 16 connections at most; each can have many requests under way",
                    )
                }
                _ => Outcome::missing("it is no number of connections: give --connections N"),
            },
            ("-r", None) => {
                read_only = true;
                part_of(&["--read-only"])
            }
            ("-e", None) => {
                wait = "1";
                part_of(&["--io-timeout", "1"])
            }
            ("-i", Some(_)) => Outcome::missing(
                "a server is known again by what it exports; to insist on one, give --identity \
                 ID, as `holdfast attachments` shows it",
            ),
            ("-a", None) => Outcome::missing(
                "a write is answered when the server has answered it: an error would get lost \
                 otherwise",
            ),
            ("-s", None) => Outcome::needless("the daemon keeps its memory (lock-memory)"),
            ("-b" | "-p" | "-t" | "-x", Some(_)) => Outcome::needless(
                "blocks may have any size, a silent server is asked whether it is there, and one \
                 that is away is tried for ever",
            ),
            ("-m", None) => Outcome::missing("what is equal already is written all the same"),
            ("-c", None) => Outcome::missing(
                "there is no local copy on write: `qemu-nbd` with a qcow2 file has one",
            ),
            ("-cert" | "-key" | "-CApath" | "-CAfile" | "-verify", _) => Outcome::missing(TLS),
            (route, None) if !route.starts_with('-') => {
                let way = uri(route);
                if !uris.contains(&way) {
                    uris.push(way.clone());
                }
                part_of(&[&way])
            }
            _ => continue,
        };
        ledger.settle(id, outcome);
    }
    let mut line = vec!["holdfast", "attach"];
    line.extend(uris.iter().map(String::as_str));
    line.extend(["--name", &name, "--persist", "--io-timeout", wait]);
    if let Some(connections) = &connections {
        line.extend(["--connections", connections]);
    }
    if read_only {
        line.push("--read-only");
    }
    ledger
        .settle(head, Outcome::translated(format!("{} becomes /dev/holdfast/{name}", device.text)));
    Ok(unless_taken(&format!("the name {name}"), &line, head, taken, ledger))
}

/// `module ID key=value...`
fn module(first: &Word, rest: &[Word], ledger: &mut Ledger) -> Result<(), ApiError> {
    let [id, parameters @ ..] = rest else {
        return Err(wrong(&first.place, "a module line is: module ID KEY=VALUE..."));
    };
    let head = ledger.add(first.place.clone(), text_of(&[first, id]));
    ledger.settle(head, Outcome::needless("no kernel module of its own is needed"));
    for word in parameters {
        let id = ledger.add(word.place.clone(), word.text.clone());
        let outcome = match word.text.split('=').next().unwrap_or_default() {
            "show_errs" => Outcome::missing(
                "how long requests wait for a server that is away is set for each one: `attach \
                 --io-timeout SECONDS`, 0 for ever",
            ),
            "merge_requests" | "rahead" => Outcome::needless(
                "the kernel does that: see /sys/block/DEVICE/queue and `blockdev --setra`",
            ),
            "sync_intvl" => Outcome::needless("the filesystem flushes when it must"),
            "md5sum" => Outcome::missing("what is equal already is written all the same"),
            _ => continue,
        };
        ledger.settle(id, outcome);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(text: &str) -> Result<Plan, ApiError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("enbd.conf");
        std::fs::write(&path, text).unwrap();
        import(&path)
    }

    fn commands(text: &str) -> Vec<String> {
        plan(text).unwrap().steps.into_iter().flat_map(|step| step.commands).collect()
    }

    #[test]
    fn servers_and_clients_become_commands() {
        let text = "# all of it\nclient 0 /dev/nda karajan 1034 -n 4 -e # four\n\
                    server 0 1033 /dev/hdb1 -r\nserver 1 1035 /a /b -l\n\
                    client 1 /dev/ndb 10.0.0.1 1 10.0.1.1 -r -n 20\n";
        assert_eq!(
            commands(text),
            [
                "holdfast serve /dev/hdb1 --listen 0.0.0.0:1033 --read-only",
                "holdfast serve /a /b --listen 0.0.0.0:1035 --layout concat",
                "holdfast attach nbd://karajan:1034 --name nda --persist --io-timeout 1 \
                 --connections 4",
                "holdfast attach nbd://10.0.0.1:1 nbd://10.0.1.1:1 --name ndb --persist \
                 --io-timeout 0 --connections 16 --read-only",
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_told() {
        let plan = plan("module 0 rahead=20 colour=3\nclient 0 /dev/nda h 1 -Z\n").unwrap();
        let missing: Vec<(usize, &str)> = plan
            .statements
            .iter()
            .filter(|entry| entry.outcome.word() == "missing")
            .map(|entry| (entry.place.line, entry.text.as_str()))
            .collect();
        assert_eq!(missing, [(1, "colour=3"), (2, "-Z")]);
    }

    #[test]
    fn what_a_line_before_has_taken_is_not_taken_again() {
        let text = "server 0 1033 /a\nserver 1 1033 /b\nclient 0 /dev/nda h 1\n\
                    client 1 /dev/nda i 1\n";
        let made = plan(text).unwrap();
        let missing = made.statements.iter().filter(|entry| entry.outcome.word() == "missing");
        assert_eq!(missing.map(|entry| entry.place.line).collect::<Vec<_>>(), [2, 4]);
        let all = commands(text);
        assert!(all[1].starts_with("# port 1033 is taken: holdfast serve /b"), "{all:?}");
        assert!(all[3].starts_with("# the name nda is taken: holdfast attach nbd://i"), "{all:?}");
    }

    #[test]
    fn a_line_that_is_none_is_refused_with_its_place() {
        for (text, place) in [
            ("\n  serve 0 1\n", "enbd.conf:2:3: a line begins"),
            ("client 0 /dev/nda h x", "enbd.conf:1:21: this is no port"),
            ("server 0", "enbd.conf:1:1: a server line is"),
            ("module", "enbd.conf:1:1: a module line is"),
            ("client 2 /dev/ndb -n 2 h 3", "enbd.conf:1:19: options come behind the port"),
            ("client 2 /dev/ndb h 3 \\", "enbd.conf:1:23: a line does not go on"),
        ] {
            let error = plan(text).unwrap_err();
            assert!(error.message.contains(place), "{}", error.message);
        }
    }

    fn word() -> impl Strategy<Value = String> {
        let words = [
            "server", "client", "module", "0", "1034", "/dev/nda", "karajan", "-n", "4", "-r",
            "-e", "-i", "-cert", "-s", "10G", "-l", "-0", "-1", "rahead=1", "#", "x",
        ];
        prop_oneof![prop::sample::select(words.to_vec()).prop_map(str::to_owned), "[^\n]{0,4}"]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every word of a file stands in exactly one statement, whatever it says.
        #[test]
        fn every_word_is_accounted_for(
            lines in prop::collection::vec(prop::collection::vec(word(), 0..9), 0..6)
        ) {
            let lines: Vec<String> = lines.iter().map(|words| words.join(" ")).collect();
            if let Ok(plan) = plan(&lines.join("\n")) {
                let file = Rc::new(PathBuf::from("f"));
                let all = lines.iter().flat_map(|line| words_of(line, &file, 1).unwrap());
                let mut due: Vec<String> = all.map(|word| word.text).collect();
                let texts = plan.statements.iter().flat_map(|entry| entry.text.split(' '));
                let mut told: Vec<String> = texts.map(str::to_owned).collect();
                due.sort();
                told.sort();
                prop_assert_eq!(told, due);
            }
        }
    }
}
