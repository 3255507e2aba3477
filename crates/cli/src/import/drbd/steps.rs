//! From resources to commands.

use super::option::{Verdict, verdict};
use super::resource::{Host, Layer, Resource, Setting, Volume};
use crate::import::ledger::{Id, Ledger, Outcome};
use crate::import::plan::{Step, command, part_of};
use holdfast_api::{ApiError, ErrorCode};
use std::collections::{BTreeMap, BTreeSet};

/// The port of the daemons, one for all resources.
const PORT: u16 = 7850;
/// Nodes of all resources together, at most.
const NODES: usize = 1000;

pub(super) struct Made {
    pub(super) steps: Vec<Step>,
    pub(super) remarks: Vec<String>,
}

/// A member of a resource that is to be made.
struct Member {
    node: String,
    /// `None` for a node without one.
    disk: Option<String>,
}

/// A resource that is to be made: a volume of one of DRBD's.
struct Target {
    name: String,
    /// What DRBD calls it.
    of: String,
    /// The statement: two resources of the files can have one name.
    id: Id,
    /// Its first is the one that has the data.
    members: Vec<Member>,
    /// DRBD's device on the first.
    device: Option<String>,
    size: Option<u64>,
    set: Vec<(&'static str, String)>,
}

/// The commands for all resources.
///
/// # Errors
/// When the node that is to be the first is in no resource; when there are too many nodes.
pub(super) fn make(
    resources: &[Resource],
    common: &Layer,
    first: Option<&str>,
    ledger: &mut Ledger,
) -> Result<Made, ApiError> {
    let mut targets: Vec<Target> = Vec::new();
    let mut addresses: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut nodes: Vec<String> = Vec::new();
    let mut taken = BTreeSet::new();
    for resource in resources.iter().filter(|resource| resource.stacked_on.is_none()) {
        for host in &resource.hosts {
            if !nodes.contains(&host.name) {
                if nodes.len() == NODES {
                    let message =
                        format!("the import was not made: there are more than {NODES} nodes");
                    return Err(ApiError::new(ErrorCode::InvalidRequest, message));
                }
                nodes.push(host.name.clone());
            }
            let known = addresses.entry(host.name.clone()).or_default();
            let new = host.addresses.iter().filter(|address| !known.contains(address));
            let new: Vec<String> = new.cloned().collect();
            known.extend(new);
        }
        targets.extend(volumes(resource, common, first, &mut taken, ledger));
    }
    if let Some(first) = first.filter(|first| !nodes.iter().any(|node| node == first)) {
        let message = format!("the import was not made: no resource is on the node {first}");
        return Err(ApiError::new(ErrorCode::NoSuchNode, message)
            .hint(format!("the nodes of these files are {}", nodes.join(", "))));
    }
    if targets.is_empty() {
        for setting in &common.settings {
            ledger.settle(setting.id, Outcome::needless("no resource takes it over"));
        }
        return Ok(Made { steps: Vec::new(), remarks: vec!["There is no resource in it.".into()] });
    }
    let mut remarks = remarks(resources, &targets);
    let (mut first_of_all, mut last) = (Vec::new(), Vec::new());
    for resource in resources {
        let Some(below) = &resource.stacked_on else { continue };
        remarks.push(format!(
            "{} is stacked on {below}: nothing is made of it. Its far node becomes a member of \
             {below}, which follows the journal (`--protocol log`); the data that it has are \
             overwritten with a copy.",
            resource.name
        ));
        let upper = &resource.name;
        first_of_all.push(Step {
            node: format!("the node on which {upper} is up"),
            about: format!("stop {upper}, which is stacked on {below}"),
            config: Vec::new(),
            commands: vec![command(&["drbdadm", "--stacked", "down", upper])],
        });
        for host in &resource.hosts {
            let disk = host.volumes.values().find_map(|volume| volume.disk.as_ref());
            let disk = disk.map_or("PATH", |(disk, _)| disk.as_str());
            let join = command(&[
                "holdfast",
                "join",
                below,
                "--disk",
                disk,
                "--protocol",
                "log",
                "--force",
            ]);
            last.push(Step {
                node: host.name.clone(),
                about: format!(
                    "when all of this runs, and this node is in the cluster, follow {below}"
                ),
                config: Vec::new(),
                commands: vec![
                    format!("# {}", command(&["drbdadm", "down", upper])),
                    format!("# {join}"),
                ],
            });
        }
    }
    let steps = first_of_all.into_iter().chain(steps(&targets, &nodes, &addresses)).chain(last);
    Ok(Made { steps: steps.collect(), remarks })
}

/// What each volume of a resource becomes.
fn volumes(
    resource: &Resource,
    common: &Layer,
    first: Option<&str>,
    taken: &mut BTreeSet<String>,
    ledger: &mut Ledger,
) -> Vec<Target> {
    let of_hosts = resource.hosts.iter().flat_map(|host| host.volumes.keys());
    let numbers: BTreeSet<u32> = resource.volumes.keys().chain(of_hosts).copied().collect();
    if numbers.is_empty() || resource.hosts.is_empty() {
        let why = "it has no host with a disk: nothing is made of it";
        ledger.settle(resource.id, Outcome::missing(why));
        for setting in resource.layers.iter().flat_map(|layer| &layer.settings) {
            ledger.settle(setting.id, Outcome::missing("nothing is made of its resource"));
        }
    }
    let mut targets = Vec::new();
    for number in &numbers {
        let wanted = match numbers.len() {
            1 => resource.name.clone(),
            _ => format!("{}-{number}", resource.name),
        };
        let name = usable(&wanted, taken);
        taken.insert(name.clone());
        let none = Volume::default();
        let shared = resource.volumes.get(number).unwrap_or(&none);
        let mut parts: Vec<(&Host, &Volume)> = resource
            .hosts
            .iter()
            .map(|host| (host, host.volumes.get(number).unwrap_or(&none)))
            .collect();
        if parts.is_empty() {
            break;
        }
        // The first must have the data.
        let has_disk = |part: &(&Host, &Volume)| {
            part.1.disk.as_ref().or(shared.disk.as_ref()).is_some_and(|(disk, _)| disk != "none")
        };
        let asked = first.and_then(|f| parts.iter().position(|p| p.0.name == f && has_disk(p)));
        if let Some(at) = asked.or_else(|| parts.iter().position(has_disk)) {
            let part = parts.remove(at);
            parts.insert(0, part);
        }
        let layers = [common, &resource.layers[0], &resource.layers[1], &shared.options];
        let of_host: Vec<&Layer> = parts.iter().map(|(_, volume)| &volume.options).collect();
        let (set, size) = options(layers.into_iter().chain(of_host), ledger);
        let device = parts[0].1.device.as_ref().or(shared.device.as_ref());
        let mut members = Vec::new();
        for (host, own) in &parts {
            members.push(member(host, own, shared, &name, ledger));
        }
        let target = Target {
            of: resource.name.clone(),
            id: resource.id,
            device: device.and_then(|(text, _)| device_path(text)),
            name,
            members,
            size,
            set,
        };
        let outcome = Outcome::translated(format!("the resource {}", target.name));
        ledger.settle(resource.id, outcome);
        targets.push(target);
    }
    targets
}

/// A name that names may have and that is not taken.
fn usable(wanted: &str, taken: &BTreeSet<String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut name: String =
        wanted.chars().map(|c| if plain(c) { c } else { '-' }).take(60).collect();
    if holdfast_units::check_name(&name).is_err() {
        name = format!("r-{}", name.trim_start_matches(['.', '-', '_']));
    }
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    names.find(|name| !taken.contains(name)).unwrap_or(name)
}

/// `/dev/drbd0`, of `device /dev/drbd0`, `device drbd0 minor 0` or `device minor 0`.
fn device_path(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["minor", number] => Some(format!("/dev/drbd{number}")),
        [path, ..] if path.starts_with('/') => Some(path.to_owned()),
        [name, ..] if !name.is_empty() => Some(format!("/dev/{name}")),
        _ => None,
    }
}

fn member(host: &Host, own: &Volume, shared: &Volume, name: &str, ledger: &mut Ledger) -> Member {
    let disk = own.disk.as_ref().or(shared.disk.as_ref());
    if let Some((_, id)) = own.device.as_ref().or(shared.device.as_ref()) {
        let outcome = Outcome::translated(format!("/dev/holdfast/{name}"));
        ledger.settle(*id, outcome);
    }
    let path = match disk {
        Some((path, id)) if path == "none" => {
            ledger.settle(*id, part_of(&["--diskless"]));
            None
        }
        Some((path, id)) => {
            ledger.settle(*id, part_of(&["--disk", path]));
            Some(path.clone())
        }
        None => None,
    };
    if let Some((meta, id)) = own.meta.as_ref().or(shared.meta.as_ref()) {
        ledger.settle(*id, metadata(meta));
    }
    for (loser, winner) in
        [(&shared.device, &own.device), (&shared.disk, &own.disk), (&shared.meta, &own.meta)]
    {
        if let (Some((_, id)), Some(_)) = (loser, winner) {
            let why = format!("{} has a value of its own", host.name);
            ledger.settle(*id, Outcome::needless(why));
        }
    }
    Member { node: host.name.clone(), disk: path }
}

fn metadata(meta: &str) -> Outcome {
    if meta == "internal" {
        return Outcome::needless(
            "the metadata go into the state directory, and DRBD's stay unused at the end of the \
             disk. `--meta internal` would need about 260 MiB a TiB there, DRBD's take 32 MiB a \
             TiB for each peer: the end of a filesystem would be overwritten, so it is refused",
        );
    }
    let place = meta.split(' ').next().unwrap_or(meta);
    Outcome::missing(format!(
        "the metadata go into the state directory, about 32 MiB a TiB for each member; DRBD's on \
         {place} stay unused. For a place of their own give `--meta PATH` to create and join, a \
         file that is not there yet or a device of 1 GiB a TiB without anything on it"
    ))
}

/// The options that hold, and the size; of several layers the last one goes before the others.
fn options<'a>(
    layers: impl Iterator<Item = &'a Layer>,
    ledger: &mut Ledger,
) -> (Vec<(&'static str, String)>, Option<u64>) {
    let mut held: BTreeMap<String, &Setting> = BTreeMap::new();
    let lost = |loser: &Setting, winner: &Setting, ledger: &mut Ledger| {
        if loser.id != winner.id {
            let why = format!("{} says otherwise", ledger.place(winner.id));
            ledger.settle(loser.id, Outcome::needless(why));
        }
    };
    for setting in layers.flat_map(|layer| &layer.settings) {
        let Some(key) = setting.words.first() else { continue };
        let handler = setting.section == "handlers";
        let key = if handler { format!("handler {key}") } else { key.clone() };
        if let Some(before) = held.insert(key, setting) {
            lost(before, setting, ledger);
        }
    }
    // DRBD looks at c-max-rate while it finds the pace by itself, and at resync-rate otherwise.
    let fixed =
        held.get("c-plan-ahead").is_some_and(|plan| plan.words.get(1).is_some_and(|t| t == "0"));
    let rates = if fixed {
        ["resync-rate", "rate", "c-max-rate"]
    } else {
        ["c-max-rate", "resync-rate", "rate"]
    };
    let mut rates = rates.into_iter().filter(|key| held.contains_key(*key));
    if let Some(winner) = rates.next() {
        let winner = held[winner];
        for key in rates.map(str::to_owned).collect::<Vec<_>>() {
            if let Some(loser) = held.remove(&key) {
                lost(loser, winner, ledger);
            }
        }
    }
    let (mut set, mut size) = (Vec::new(), None);
    for setting in held.into_values() {
        match verdict(setting) {
            Some(Verdict::Set(name, value)) => {
                ledger.settle(setting.id, part_of(&["--set", &format!("{name}={value}")]));
                set.push((name, value));
            }
            Some(Verdict::Size(bytes)) => {
                ledger.settle(setting.id, part_of(&["--size", &bytes.to_string()]));
                size = Some(bytes);
            }
            Some(Verdict::Other(outcome)) => ledger.settle(setting.id, outcome),
            None => {}
        }
    }
    set.sort();
    (set, size)
}

fn remarks(resources: &[Resource], targets: &[Target]) -> Vec<String> {
    let mut remarks = vec![
        "The first node of each resource must be the one that has the data: look at `drbdadm \
         status`, and give --first NODE if it is another one. What the others have on their disks \
         is overwritten with a copy of it."
            .to_owned(),
        "Stop what uses the DRBD devices before step 1, and put the paths under /dev/holdfast \
         into /etc/fstab and the like. Do not start DRBD on these disks again: its metadata do \
         not know what is written from now on."
            .to_owned(),
        format!(
            "All resources use one port between nodes, {PORT}: open it in firewalls; the ports of \
             DRBD are not used."
        ),
        "TOKEN and SIZE stand for what a command before has printed. A device of DRBD is smaller \
         than its disk when its metadata are on it; with --size the resource is as large as the \
         device was, so it fits on the disks of all members. Round SIZE down to a multiple of \
         4096 if need be. Without --size it is as large as the first disk, and the others must be \
         as large."
            .to_owned(),
    ];
    for resource in resources {
        let names: Vec<&str> = targets
            .iter()
            .filter(|target| target.id == resource.id)
            .map(|target| target.name.as_str())
            .collect();
        if names.len() > 1 {
            remarks.push(format!(
                "The volumes of {} become the resources {}: each has a role and a state of its \
                 own, and writes to different ones are not kept in one order.",
                resource.name,
                names.join(", ")
            ));
        } else if names.first().is_some_and(|name| *name != resource.name) {
            remarks.push(format!(
                "{} cannot be a name here, or is taken: the resource becomes {}.",
                resource.name, names[0]
            ));
        }
        if resource.hosts.iter().any(|host| host.floating) {
            remarks.push(format!(
                "The nodes of {} have no names in the file: a node takes its host name.",
                resource.name
            ));
        }
    }
    remarks
}

fn steps(
    targets: &[Target],
    nodes: &[String],
    addresses: &BTreeMap<String, Vec<String>>,
) -> Vec<Step> {
    let step = |node: &str, about: &str, config, commands| Step {
        node: node.to_owned(),
        about: about.to_owned(),
        config,
        commands,
    };
    let mut steps = Vec::new();
    for node in nodes {
        let mut commands = Vec::new();
        for target in targets.iter().filter(|t| t.size.is_none() && t.members[0].node == *node) {
            if let Some(device) = &target.device {
                let size = command(&["blockdev", "--getsize64", device]);
                commands.push(format!("{size}   # SIZE of {}", target.name));
            }
        }
        let here = |t: &&Target| t.members.iter().any(|member| member.node == *node);
        let mut down: Vec<&str> = targets.iter().filter(here).map(|t| t.of.as_str()).collect();
        down.dedup();
        commands.extend(down.iter().map(|name| command(&["drbdadm", "down", name])));
        commands.push("systemctl restart holdfast".to_owned());
        let config = config(addresses.get(node).map_or(&[][..], Vec::as_slice));
        steps.push(step(node, "stop DRBD, and have the daemon listen", config, commands));
    }
    let founder = &targets[0].members[0].node;
    let others: Vec<&String> = nodes.iter().filter(|node| *node != founder).collect();
    let mut commands = vec!["holdfast cluster create".to_owned()];
    for other in &others {
        commands.push(format!("holdfast cluster token   # TOKEN for {other}"));
    }
    steps.push(step(founder, "make the cluster", Vec::new(), commands));
    for other in others {
        let commands = vec!["holdfast cluster join TOKEN".to_owned()];
        steps.push(step(other, "join the cluster", Vec::new(), commands));
    }
    for target in targets {
        steps.push(step(
            &target.members[0].node,
            &format!("make {}, with the data that are on its disk", target.name),
            Vec::new(),
            create(target),
        ));
        for member in &target.members[1..] {
            let (about, commands) = join(target, member);
            steps.push(step(&member.node, &about, Vec::new(), commands));
        }
    }
    steps
}

/// What a daemon must be told so that the others reach it.
fn config(addresses: &[String]) -> Vec<String> {
    let with_port = |address: &String| match address.contains(':') {
        true => format!("[{address}]:{PORT}"),
        false => format!("{address}:{PORT}"),
    };
    match addresses {
        [] => Vec::new(),
        [one] => vec![format!("listen = {:?}", with_port(one))],
        several => {
            let six = several.iter().any(|address| address.contains(':'));
            let any = if six { format!("[::]:{PORT}") } else { format!("0.0.0.0:{PORT}") };
            let all: Vec<String> = several.iter().map(with_port).collect();
            vec![format!("listen = {any:?}"), format!("advertise = {all:?}")]
        }
    }
}

fn create(target: &Target) -> Vec<String> {
    let name = &target.name;
    let Some(disk) = &target.members[0].disk else {
        return vec![format!("# no host of {name} has a disk in the file: nothing can be made")];
    };
    let size = target.size.map(|size| size.to_string());
    let size = size.or_else(|| target.device.as_ref().map(|_| "SIZE".to_owned()));
    let set: Vec<String> = target.set.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut words = vec!["holdfast", "create", name, "--disk", disk];
    if let Some(size) = &size {
        words.extend(["--size", size]);
    }
    words.extend(set.iter().flat_map(|pair| ["--set", pair.as_str()]));
    vec![
        command(&words),
        format!("{}   # prints /dev/holdfast/{name}", command(&["holdfast", "device", name])),
    ]
}

fn join(target: &Target, member: &Member) -> (String, Vec<String>) {
    let name = &target.name;
    match &member.disk {
        Some(disk) => {
            let words = ["holdfast", "join", name, "--disk", disk, "--force"];
            let wait = ["holdfast", "wait", name, "--for", "uptodate", "--timeout", "86400"];
            let about = format!("have a copy of {name}; what is on the disk is overwritten");
            (about, vec![command(&words), command(&wait)])
        }
        None => {
            let about = format!("use {name} without a copy of it");
            (about, vec![command(&["holdfast", "join", name, "--diskless"])])
        }
    }
}
