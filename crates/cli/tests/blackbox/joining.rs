//! Who may talk to a node: tokens, certificates, strangers.

use crate::{MIB, SOON, SYNC, binary, cluster, write_blocks};
use holdfast_testkit::{Cluster, ClusterOptions, run, wait_until};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn strangers(count: usize) -> Cluster {
    Cluster::strangers(&binary(), count, ClusterOptions::default())
}

fn node_names(cluster: &Cluster, index: usize) -> Vec<String> {
    let status = cluster[index].status().cluster;
    status.into_iter().flat_map(|c| c.nodes).map(|node| node.name).collect()
}

/// Panics unless the command is refused with this code, in one sentence, and the node stays out.
#[track_caller]
fn assert_join_refused(cluster: &Cluster, index: usize, token: &str, code: &str) {
    let output = cluster[index].cli(&["cluster", "join", token, "--json"]);
    assert_eq!(output.status, 1, "{output}");
    assert!(output.stderr.contains(&format!("\"{code}\"")), "{output}");
    assert!(cluster[index].status().cluster.is_none());
}

#[test]
fn a_token_is_good_once_and_for_its_time() {
    let cluster = strangers(3);
    cluster[0].ok(&["cluster", "create"]);
    let token = cluster[0].ok(&["cluster", "token"]);
    let token = token.trim();
    cluster[1].ok(&["cluster", "join", token]);
    assert_eq!(node_names(&cluster, 0), ["alpha", "beta"]);
    assert_join_refused(&cluster, 2, token, "TOKEN_USED");

    let brief = cluster[0].ok(&["cluster", "token", "--ttl", "1s"]);
    let made = Instant::now();
    wait_until(SOON, "the token's time is over", || made.elapsed() > Duration::from_secs(2));
    assert_join_refused(&cluster, 2, brief.trim(), "TOKEN_EXPIRED");

    let mut flipped = cluster[0].ok(&["cluster", "token"]).trim().to_owned();
    let last = flipped.pop().expect("a token is not empty");
    flipped.push(if last == 'A' { 'B' } else { 'A' });
    for garbage in [&*flipped, "hf1-", "nonsense", &"A".repeat(4000)] {
        assert_join_refused(&cluster, 2, garbage, "INVALID_TOKEN");
    }
    assert_eq!(node_names(&cluster, 0), ["alpha", "beta"]);
    // A token outlives a restart of its issuer, and a good one still works.
    let good = cluster[0].ok(&["cluster", "token"]);
    cluster[2].ok(&["cluster", "join", good.trim()]);
    assert_eq!(node_names(&cluster, 0).len(), 3);
}

#[test]
fn a_token_that_was_used_stays_used_after_a_crash() {
    let mut cluster = strangers(3);
    cluster[0].ok(&["cluster", "create"]);
    let used = cluster[0].ok(&["cluster", "token"]);
    let unused = cluster[0].ok(&["cluster", "token"]);
    cluster[1].ok(&["cluster", "join", used.trim()]);
    cluster[0].kill9();
    cluster[0].start();
    assert_join_refused(&cluster, 2, used.trim(), "TOKEN_USED");
    cluster[2].ok(&["cluster", "join", unused.trim()]);
    wait_until(SOON, "all know all", || (0..3).all(|i| node_names(&cluster, i).len() == 3));
}

#[test]
fn a_token_whose_issuer_is_away_is_refused_in_time() {
    let mut cluster = strangers(2);
    cluster[0].ok(&["cluster", "create"]);
    let token = cluster[0].ok(&["cluster", "token"]);
    cluster[0].stop();
    let start = Instant::now();
    assert_join_refused(&cluster, 1, token.trim(), "PEER_NOT_REACHABLE");
    assert!(start.elapsed() < SOON);
}

/// The certificate of one node is replaced by one that its cluster does not know.
#[test]
fn a_foreign_certificate_is_refused() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let stranger = strangers(1);
    let identity = |cluster: &Cluster, index: usize| cluster[index].state_dir().join("identity");
    cluster[1].stop();
    let own = identity(&cluster, 1);
    let saved = own.with_extension("own");
    copy(&own, &saved);
    for file in ["key.pem", "cert.pem"] {
        copy(&identity(&stranger, 0).join(file), &own.join(file));
    }
    write_blocks(&cluster[0], "r0", 1, 0..10);
    let alive = |cluster: &Cluster| {
        let nodes = cluster[0].status().cluster.expect("it is in a cluster").nodes;
        nodes.iter().any(|node| node.name == "beta" && node.alive)
    };
    wait_until(SOON, "the silence of beta is noticed", || !alive(&cluster));

    // It may notice by itself, and must not get in.
    if let Err(why) = cluster[1].try_start() {
        let errors = why.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{why}");
    } else {
        cluster[1].wait_log("certificate");
        let started = Instant::now();
        wait_until(SOON, "three seconds", || started.elapsed() > Duration::from_secs(3));
        assert_ne!(cluster[0].peer("r0", "beta").connection, "Connected");
        assert!(!alive(&cluster));
        cluster[1].stop();
    }

    std::fs::remove_dir_all(&own).expect("it can be removed");
    std::fs::rename(saved, &own).expect("it can be moved back");
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
}

fn copy(from: &Path, to: &Path) {
    let output = run(Command::new("cp").arg("-a").arg(from).arg(to));
    assert_eq!(output.status, 0, "{output}");
}

/// Sends bytes and waits for the other side to end the connection; what it said.
fn shout(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(SOON)).expect("it is a socket");
    // The other side may end the connection before it has read all.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    if let Err(why) = ended {
        assert_ne!(why.kind(), std::io::ErrorKind::WouldBlock, "the connection was not ended");
    }
    answer
}

#[test]
fn strangers_on_the_port_are_turned_away_and_the_daemon_lives_on() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let address = cluster[0].address();
    let mut noise = vec![0; 100_000];
    holdfast_testkit::Rng::new(71).fill(&mut noise);
    // The beginning of a TLS record that promises more than comes is cut off in time, too.
    let cases = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\0".to_vec(),
        b"SSH-2.0-x\r\n".to_vec(),
        noise,
        b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc".to_vec(),
        Vec::new(),
    ];
    let shouts: Vec<_> = cases
        .into_iter()
        .map(|case| std::thread::spawn(move || (shout(address, &case), case)))
        .collect();
    for shout in shouts {
        let (answer, case) = shout.join().expect("the connection is ended in time");
        let shown = &case[..case.len().min(20)];
        assert!(answer.len() < 100, "it talked to a stranger: {answer:?} after {shown:?}");
    }
    // Many who say nothing do not keep others out.
    let silent: Vec<TcpStream> =
        (0..200).filter_map(|_| TcpStream::connect(address).ok()).collect();
    let token = cluster[0].ok(&["cluster", "token"]);
    let late = strangers(1);
    let output = late[0].cli(&["cluster", "join", token.trim()]);
    // The name alpha is taken: that was said by the cluster, over the same port.
    assert!(output.status == 1 && output.stderr.contains("alpha"), "{output}");
    drop(silent);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].wait_synced("r0", SOON);
}

/// TLS by somebody else's client: unknown certificates, and versions of the protocol that nobody
/// speaks.
#[test]
fn a_wrong_version_and_an_unknown_certificate_end_in_the_handshake() {
    let cluster = cluster(1);
    let pem = cluster.scratch().join("stranger.pem");
    let key = cluster.scratch().join("stranger.key");
    let made = run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "1", "-subj", "/CN=stranger", "-out"])
        .arg(&pem)
        .arg("-keyout")
        .arg(&key));
    assert_eq!(made.status, 0, "{made}");
    for alpn in ["holdfast-data/1", "holdfast-ctl/1", "holdfast-data/999", "holdfast-ctl/999", "h2"]
    {
        let output = run(Command::new("openssl")
            .args(["s_client", "-ign_eof", "-alpn", alpn, "-connect"])
            .arg(cluster[0].address().to_string())
            .arg("-cert")
            .arg(&pem)
            .arg("-key")
            .arg(&key));
        let said = format!("{}{}", output.stdout, output.stderr);
        // With TLS 1.3 the client believes itself connected until it reads.
        assert!(said.contains("alert"), "{alpn}: {said}");
    }
    assert_eq!(node_names(&cluster, 0), ["alpha"]);
    cluster.create("r0", 4 * MIB, &[]);
    write_blocks(&cluster[0], "r0", 1, 0..3);
}
