//! The other nodes: whether they are reached, how far away they are, and what their clocks say.

use super::Facts;
use super::finding::Findings;
use holdfast_api::daemon::KnownNode;
use holdfast_api::status::{ClusterNode, ClusterStatus, NodeStatus};
use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// No more nodes than this are called.
const MOST_NODES: usize = 128;
/// Farther away than this, a write that waits for a peer is slow.
const FAR: Duration = Duration::from_millis(50);
/// A clock that is off by more than this, in seconds, is told of.
const CLOCK_OFF: f64 = 5.0;
/// A clock that is off by more than this, in seconds, is wrong.
const CLOCK_WRONG: f64 = holdfast_cluster::CLOCK_TROUBLE_MS as f64 / 1000.0;

pub(super) fn look(facts: &Facts, findings: &mut Findings) {
    let Some(info) = &facts.info else { return };
    if info.nodes.is_empty() {
        return findings.note(
            "cluster.membership",
            "this node is in no cluster",
            "resources belong to a cluster, also to one of a single node",
            "`holdfast cluster create`, or `holdfast cluster join TOKEN`",
        );
    }
    addresses(&info.nodes, findings);
    let others: Vec<&KnownNode> = info.nodes.iter().filter(|node| !node.own).collect();
    let calls = if facts.machine.is_here() { call_all(&others) } else { BTreeMap::new() };
    match facts.status.as_ref().and_then(|status| status.cluster.as_ref()) {
        Some(cluster) => as_the_daemon_says(cluster, &info.node, &calls, findings),
        None => as_they_answer(&others, &calls, findings),
    }
    if let Some(status) = &facts.status {
        resources(status, &calls, findings);
    }
}

/// How a call went: how long it took to be answered, or why it was not.
type Calls = BTreeMap<String, Result<Duration, String>>;

fn call_all(nodes: &[&KnownNode]) -> Calls {
    std::thread::scope(|scope| {
        let calls = nodes.iter().take(MOST_NODES).map(|node| {
            let call = scope.spawn(move || call(&node.addresses));
            (node.name.clone(), call)
        });
        let calls: Vec<_> = calls.collect();
        let answer = |call: std::thread::ScopedJoinHandle<'_, _>| {
            call.join().unwrap_or_else(|_| Err("it could not be called".to_owned()))
        };
        calls.into_iter().map(|(name, call)| (name, answer(call))).collect()
    })
}

/// Connects, and ends the connection at once: that it was accepted took the way there and back.
fn call(addresses: &[String]) -> Result<Duration, String> {
    let mut why = "it has no address".to_owned();
    for address in addresses {
        let sockets = match address.to_socket_addrs() {
            Ok(sockets) => sockets,
            Err(error) => {
                why = format!("{address}: {}", super::plain(&error));
                continue;
            }
        };
        for socket in sockets {
            let begun = Instant::now();
            match TcpStream::connect_timeout(&socket, ANSWER) {
                Ok(_) => return Ok(begun.elapsed()),
                Err(error) => why = format!("{address}: {}", super::plain(&error)),
            }
        }
    }
    Err(why)
}

/// Nodes that say the same address, or live on the same machine.
fn addresses(nodes: &[KnownNode], findings: &mut Findings) {
    let mut by_address: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut by_host: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        for address in &node.addresses {
            by_address.entry(address).or_default().push(&node.name);
        }
        if let Some((host, _)) = node.addresses.first().and_then(|first| first.rsplit_once(':')) {
            by_host.entry(host).or_default().push(&node.name);
        }
    }
    let mut told = false;
    for (address, names) in by_address.iter().filter(|(_, names)| names.len() > 1) {
        told = true;
        findings.error(
            "cluster.addresses",
            format!("nodes {} have the same address, {address}", names.join(" and ")),
            "only one of them is reached there",
            "start each with a listen or advertise address of its own",
        );
    }
    if told {
        return;
    }
    for (host, names) in by_host.into_iter().filter(|(_, names)| names.len() > 1) {
        findings.note(
            "cluster.addresses",
            format!("nodes {} are on one machine, {host}", names.join(", ")),
            "when the machine fails, all of them do: their copies are one, and so are their votes",
            "nothing for a trial; else put each node on a machine of its own",
        );
    }
}

fn as_the_daemon_says(cluster: &ClusterStatus, own: &str, calls: &Calls, findings: &mut Findings) {
    for node in cluster.nodes.iter().filter(|node| node.name != own) {
        let called = calls.get(&node.name);
        let name = &node.name;
        match (node.alive, called) {
            (true, Some(Ok(time))) => findings
                .ok("cluster.peers", format!("node {name} is there, {} away", milliseconds(*time))),
            (true, _) => findings.ok("cluster.peers", format!("node {name} is there")),
            (false, called) => {
                let how = match called {
                    Some(Err(why)) => format!(": {why}"),
                    Some(Ok(_)) => ", although something accepts connections there".to_owned(),
                    None => String::new(),
                };
                findings.warning(
                    "cluster.peers",
                    format!("node {name} ({}) does not answer{how}", node.address),
                    "what is written now is missing there until it is back",
                    format!(
                        "look whether its daemon runs, and whether a firewall lets {} through; a \
                         node that is gone for good: `holdfast cluster remove {name} --force`",
                        node.address
                    ),
                );
            }
        }
        clock(node, findings);
    }
    for problem in &cluster.problems {
        findings.warning(
            "cluster.problems",
            problem,
            "a person has to put it right",
            "as the sentence says; `holdfast status` shows it until it is done",
        );
    }
}

fn clock(node: &ClusterNode, findings: &mut Findings) {
    let Some(offset) = node.clock_offset_seconds.filter(|_| node.alive) else { return };
    let name = &node.name;
    let off = offset.abs();
    if off <= CLOCK_OFF {
        let what = format!("the clock of node {name} is right, within {:.1} s", off.max(0.1));
        return findings.ok("cluster.clock", what);
    }
    let side = if offset > 0.0 { "ahead of" } else { "behind" };
    let what = format!("the clock of node {name} is {off:.0} s {side} this node's");
    let why = "of two changes of the cluster's records the later one counts; times of archives, \
               of `rewind --to` and of logs are those of the node that wrote them";
    let advice = "have both clocks set by NTP: `timedatectl`, `chronyc tracking`";
    if off > CLOCK_WRONG {
        findings.error("cluster.clock", what, why, advice);
    } else {
        findings.warning("cluster.clock", what, why, advice);
    }
}

/// Without a daemon: whether anything accepts connections at their addresses.
fn as_they_answer(others: &[&KnownNode], calls: &Calls, findings: &mut Findings) {
    for node in others {
        let name = &node.name;
        match calls.get(name) {
            Some(Ok(time)) => findings.ok(
                "cluster.peers",
                format!("the port of node {name} answers, {} away", milliseconds(*time)),
            ),
            Some(Err(why)) => findings.warning(
                "cluster.peers",
                format!("the port of node {name} does not answer: {why}"),
                "this node will not reach it",
                "look whether its daemon runs, and whether a firewall is between the two",
            ),
            None => {}
        }
    }
}

/// What the resources say about their peers.
fn resources(status: &NodeStatus, calls: &Calls, findings: &mut Findings) {
    for resource in &status.resources {
        let name = &resource.name;
        if !resource.suspended.is_empty() {
            findings.error(
                "cluster.resources",
                format!("I/O of resource {name} is held: {}", resource.suspended.join(", ")),
                "whoever uses it waits",
                format!("`holdfast status {name}` says for what"),
            );
        }
        for peer in &resource.peers {
            if let Some(problem) = &peer.problem {
                findings.error(
                    "cluster.resources",
                    format!("resource {name}, peer {}: {}", peer.node, problem.message),
                    "this node and the peer do not have the same data",
                    &problem.hint,
                );
            }
            let waits = match &*peer.protocol {
                "C" => "for the disk of the peer",
                "B" => "for the peer",
                _ => continue,
            };
            let Some(Ok(time)) = calls.get(&peer.node) else { continue };
            if *time > FAR {
                findings.warning(
                    "cluster.protocol",
                    format!(
                        "resource {name} goes to {} by protocol {}, and that is {} away",
                        peer.node,
                        peer.protocol,
                        milliseconds(*time)
                    ),
                    format!(
                        "every write waits {waits}, at least as long as the way there and back"
                    ),
                    format!(
                        "if losing the last moments is better than waiting: `holdfast set {name} \
                         protocol=A --peer {}`, or let it follow by the log",
                        peer.node
                    ),
                );
            }
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use holdfast_api::status::{PeerProblem, PeerStatus, ResourceStatus};

    fn said(make: impl FnOnce(&mut Findings)) -> Vec<(&'static str, Severity, String)> {
        let mut findings = Findings::default();
        make(&mut findings);
        findings.0.into_iter().map(|one| (one.check, one.severity, one.what)).collect()
    }

    fn node(name: &str, address: &str) -> KnownNode {
        KnownNode { name: name.into(), addresses: vec![address.into()], own: false }
    }

    #[test]
    fn nodes_that_share_an_address_or_a_machine() {
        let same = [node("alpha", "192.0.2.1:7850"), node("beta", "192.0.2.1:7850")];
        let found = said(|findings| addresses(&same, findings));
        assert!(
            matches!(&found[..], [(_, Severity::Error, what)] if what.contains("alpha and beta"))
        );
        let close = [node("alpha", "192.0.2.1:7850"), node("beta", "192.0.2.1:7851")];
        let found = said(|findings| addresses(&close, findings));
        assert!(matches!(&found[..], [(_, Severity::Note, _)]), "{found:?}");
        let apart = [node("alpha", "192.0.2.1:7850"), node("beta", "192.0.2.2:7850")];
        assert!(said(|findings| addresses(&apart, findings)).is_empty());
    }

    #[test]
    fn a_clock_is_right_off_or_wrong() {
        for (offset, severity) in [
            (Some(-4.9), Some(Severity::Ok)),
            (Some(-60.0), Some(Severity::Warning)),
            (Some(7200.0), Some(Severity::Error)),
            (None, None),
        ] {
            let node = ClusterNode {
                name: "beta".into(),
                alive: true,
                clock_offset_seconds: offset,
                ..ClusterNode::default()
            };
            let found = said(|findings| clock(&node, findings));
            assert_eq!(found.first().map(|one| one.1), severity, "{found:?}");
        }
    }

    #[test]
    fn a_far_peer_by_protocol_c_and_a_split_brain() {
        let peer = PeerStatus {
            node: "beta".into(),
            protocol: "C".into(),
            problem: Some(PeerProblem { message: "split brain".into(), ..PeerProblem::default() }),
            ..PeerStatus::default()
        };
        let far = PeerStatus { protocol: "A".into(), problem: None, ..peer.clone() };
        let resource = ResourceStatus { peers: vec![peer, far], ..ResourceStatus::default() };
        let status = NodeStatus { resources: vec![resource], ..NodeStatus::default() };
        let calls = [("beta".to_owned(), Ok(Duration::from_millis(80)))].into();
        let found = said(|findings| resources(&status, &calls, findings));
        let severities: Vec<_> = found.iter().map(|one| (one.0, one.1)).collect();
        let due = [("cluster.resources", Severity::Error), ("cluster.protocol", Severity::Warning)];
        assert_eq!(severities, due);
    }
}
