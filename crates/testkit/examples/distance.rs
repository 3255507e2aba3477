//! What a log peer far away costs its Primary, and how fast it gets what was written:
//! `distance HOLDFAST [--rtt MS] [--lost-of N] [--line MB/S] [--rounds N] [--seconds S] [--backlog MIB]`.
//!
//! Two daemons; between them a proxy with the round trip, one of N segments lost, and the line that all
//! connections share. `alone` has no peer, `far` is followed over the proxy; both have a journal on the
//! same filesystem. Prints medians of fio's latencies, taken in turns, then how a backlog is caught up.
//! Needs fio with its nbd engine.

use holdfast_testkit::{Cluster, ClusterOptions, Far, Node};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;

struct Plan {
    holdfast: String,
    rtt: u64,
    lost_of: u64,
    line: u64,
    rounds: u64,
    seconds: u64,
    backlog: u64,
}

fn plan() -> Result<Plan, String> {
    let mut arguments = std::env::args().skip(1);
    let holdfast = arguments.next().ok_or("the path of holdfast is needed")?;
    let mut plan =
        Plan { holdfast, rtt: 200, lost_of: 100, line: 12, rounds: 5, seconds: 2, backlog: 128 };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let value = value.parse().map_err(|_| format!("{value} is not a number"))?;
        match name.as_str() {
            "--rtt" => plan.rtt = value,
            "--lost-of" => plan.lost_of = value,
            "--line" => plan.line = value,
            "--rounds" => plan.rounds = value,
            "--seconds" => plan.seconds = value,
            "--backlog" => plan.backlog = value,
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(plan)
}

fn journal(node: &Node, name: &str) -> [String; 4] {
    let dir = node.dir().join(format!("{name}.journal")).display().to_string();
    ["--journal".to_owned(), dir, "--journal-size".to_owned(), "1G".to_owned()]
}

/// fio's median latency in microseconds, and operations a second.
fn fio(node: &Node, name: &str, options: &[&str]) -> (f64, f64) {
    let uri = node.resource(name).nbd_uri;
    let mut command = Command::new("fio");
    command.args(["--name=w", "--ioengine=nbd", "--thread", "--rw=randwrite"]);
    command.args(["--norandommap", "--output-format=json", "--percentile_list=50"]);
    command.arg(format!("--uri={uri}")).args(options);
    let output = command.output().expect("fio runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let at = text.find('{').unwrap_or_else(|| panic!("fio: {text}"));
    let value: serde_json::Value = serde_json::from_str(&text[at..]).expect("fio prints JSON");
    let write = &value["jobs"][0]["write"];
    let latency = write["clat_ns"]["percentile"]["50.000000"].as_f64().expect("fio wrote");
    (latency / 1e3, write["iops"].as_f64().expect("fio wrote"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Waits until the follower has all; how long that took.
fn caught_up(primary: &Node) -> Duration {
    let start = Instant::now();
    primary.wait_resource("far", Duration::from_secs(600), "it has caught up", |r| {
        r.peers[0].replay.as_ref().is_some_and(|replay| replay.lag_bytes == 0)
    });
    start.elapsed()
}

fn main() -> Result<(), String> {
    let plan = plan()?;
    let options = ClusterOptions { proxies: true, on_disk: true, ..ClusterOptions::default() };
    let cluster = Cluster::with(&plan.holdfast, 2, options);
    let (near, follower) = (&cluster[0], &cluster[1]);
    for name in ["alone", "far"] {
        let arguments = journal(near, name);
        cluster.create(name, SIZE, &arguments.each_ref().map(String::as_str));
    }
    let arguments = journal(follower, "far");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    cluster.join_resource(
        follower,
        "far",
        SIZE,
        &[&["--protocol", "log"], &arguments[..]].concat(),
    );
    follower.ok(&["wait", "far", "--for", "uptodate", "--timeout", "60"]);
    let way = Far {
        one_way: Duration::from_millis(plan.rtt / 2),
        one_lost_of: plan.lost_of,
        line: plan.line * 1_000_000,
    };
    near.proxy().far(Some(way));
    near.proxy().cut_once(holdfast_testkit::Cut::Reset);
    near.wait_resource("far", Duration::from_secs(60), "it is followed again", |r| {
        r.peers[0].connection == "Connected"
    });

    println!("| 4 KiB random writes | alone us | far us | far / alone | alone /s | far /s |");
    println!("|---|---|---|---|---|---|");
    // One after the other slowly, as a database does: so the line is not what is measured.
    let seconds = format!("--runtime={}", plan.seconds);
    let calm = ["--bs=4k", "--rate_iops=1000", "--time_based", &seconds];
    for (what, extra) in [
        ("one at a time", &["--iodepth=1"][..]),
        ("a flush after each", &["--iodepth=1", "--fdatasync=1"]),
        ("16 at a time", &["--iodepth=16"]),
    ] {
        let mut found = [const { Vec::new() }; 4];
        for _ in 0..plan.rounds {
            for (index, name) in ["alone", "far"].into_iter().enumerate() {
                let (latency, rate) = fio(near, name, &[&calm[..], extra].concat());
                found[index].push(latency);
                found[2 + index].push(rate);
            }
        }
        let [alone, far, alone_rate, far_rate] = found.map(median);
        let ratio = far / alone;
        println!(
            "| {what} | {alone:.1} | {far:.1} | {ratio:.2} | {alone_rate:.0} | {far_rate:.0} |"
        );
    }

    caught_up(near);
    follower.ok(&["pause", "far", "fetch"]);
    fio(
        near,
        "far",
        &[
            "--bs=64k",
            "--iodepth=8",
            "--end_fsync=1",
            "--size=256M",
            &format!("--io_size={}M", plan.backlog),
        ],
    );
    let lag = near.peer("far", "beta").replay.map_or(0, |replay| replay.lag_bytes);
    let before = near.proxy().forwarded();
    follower.ok(&["resume", "far", "fetch"]);
    let time = caught_up(near).as_secs_f64();
    let after = near.proxy().forwarded();
    let wire = (after.0 - before.0 + after.1 - before.1) as f64;
    println!(
        "backlog: {:.0} MB in {time:.1} s: {:.1} MB/s on a line of {} MB/s (round trip {} ms, one segment \
         of {} lost); {:.2} bytes on the wire for each",
        lag as f64 / 1e6,
        lag as f64 / 1e6 / time,
        plan.line,
        plan.rtt,
        plan.lost_of,
        wire / lag as f64,
    );
    Ok(())
}
