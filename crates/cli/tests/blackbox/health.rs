//! How well a disk is: errors and where they were, times, what the device says, score and warnings.

use crate::disks::{let_go, loop_device};
use crate::{BLOCK, MIB, SOON, SYNC, binary, cluster, write_blocks};
use holdfast_api::health::{DiskHealth, HealthReason};
use holdfast_testkit::{
    Bad, BadDisk, Cluster, ClusterOptions, Node, Scratch, devices_unavailable, files, wait_until,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A node with the resource `r0` on a disk that fails on command; `None` where there is none.
fn on_bad_disk() -> Option<(Cluster, BadDisk)> {
    if let Some(why) = devices_unavailable() {
        eprintln!("not tested: {why}");
        return None;
    }
    let cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "bad", 16 * MIB);
    cluster[0].ok(&["create", "r0", "--disk", &disk.text()]);
    Some((cluster, disk))
}

fn health(node: &Node) -> DiskHealth {
    node.resource("r0").disk.health.expect("it has a disk")
}

/// Whether a reason is that something took long, which also happens when the machine that the test runs on
/// stands still for a while.
fn is_slowness(reason: &HealthReason) -> bool {
    reason.text.contains("of a second or more") || reason.text.contains("has been under way for")
}

/// The score, but for what was only slow.
fn score(health: &DiskHealth) -> u8 {
    let slow = health.reasons.iter().filter(|reason| is_slowness(reason));
    health.score + slow.map(|reason| reason.deduction).sum::<u8>()
}

/// Lets a client run into a block that cannot be read, and makes the disk well again.
fn run_into(node: &Node, disk: &BadDisk, block: u64) {
    disk.set_bad(Bad::Stuck, [block]);
    let mut found = [0; 4096];
    let failed = node.open("r0").read_at(&mut found, block * BLOCK);
    assert!(failed.is_err(), "block {block} could be read");
    disk.heal([block]);
    write_blocks(node, "r0", 1, [block]);
}

#[test]
fn row_055_070_as_many_errors_are_counted_as_there_were() {
    let Some((cluster, disk)) = on_bad_disk() else { return };
    let node = &cluster[0];
    write_blocks(node, "r0", 1, 256..512);
    // Of one long read, each bad block is an error.
    let bad: Vec<u64> = (0..37).map(|at| 260 + at * 6).collect();
    disk.set_bad(Bad::Stuck, bad.iter().copied());
    let mut found = vec![0; 256 * 4096];
    assert!(node.open("r0").read_at(&mut found, MIB).is_err());
    // The read is refused when the first of them is; the others follow.
    let listed = |reason: &HealthReason| reason.text.starts_with("37 blocks");
    wait_until(SOON, "all are listed", || health(node).reasons.iter().any(listed));
    let now = health(node);
    assert_eq!((now.errors.read, now.errors.sum()), (37, 37), "{now:?}");
    assert_eq!((now.hot_regions.len(), now.hot_regions[0].errors), (1, 37));
    assert_eq!(now.hot_regions[0].offset_bytes, MIB);
    let why = now.reasons.iter().filter(|reason| !is_slowness(reason));
    let why: Vec<_> = why.map(|r| (r.deduction, &*r.text)).collect();
    assert_eq!(
        why,
        [
            (40, "37 errors in the last hour"),
            (20, "37 blocks cannot be read, and have no good copy"),
            (5, "37 errors within 1 MiB at 1 MiB"),
        ]
    );
    assert_eq!((score(&now), &*now.level), (35, "critical"));
    let problems = node.status().cluster.expect("it is in one").problems;
    let way = "replace the disk: `holdfast replace-disk r0 --disk NEW`";
    assert!(problems.iter().any(|problem| problem.ends_with(way)), "{problems:?}");
    assert_eq!(node.cli(&["status", "--check"]).status, 2);
    // The blocks get new data: what is left is that there were errors.
    disk.heal(bad);
    write_blocks(node, "r0", 2, 256..512);
    let now = health(node);
    assert_eq!((score(&now), now.errors.sum()), (55, 37), "{now:?}");
}

#[test]
fn row_055_056_058_errors_are_counted_with_their_places_and_forgotten_when_told() {
    let Some((mut cluster, disk)) = on_bad_disk() else { return };
    write_blocks(&cluster[0], "r0", 1, 0..4);
    let new = health(&cluster[0]);
    assert_eq!((score(&new), new.errors.sum()), (100, 0), "{new:?}");
    assert_eq!(cluster[0].cli(&["status", "--check"]).status, 0);
    for block in [3 * 256 + 1, 7 * 256, 3 * 256 + 5] {
        run_into(&cluster[0], &disk, block);
    }
    let seen = |node: &Node| {
        let health = health(node);
        assert_eq!((health.errors.read, health.errors.sum()), (3, 3), "{health:?}");
        assert_eq!((health.errors_last_hour, health.errors_last_day), (3, 3));
        let regions = health.hot_regions.iter().map(|r| (r.offset_bytes, r.errors, r.lba));
        let due = [(3 * MIB, 2, (3 * 256 + 5) * 8), (7 * MIB, 1, 7 * 256 * 8)];
        assert_eq!(regions.collect::<Vec<_>>(), due);
        assert!(health.hot_regions[0].first_unix_ms < health.hot_regions[0].last_unix_ms);
        assert_eq!((score(&health), &*health.level), (84, "warning"), "{health:?}");
        assert_eq!(health.reasons[0].text, "3 errors in the last hour");
    };
    seen(&cluster[0]);
    let node = &cluster[0];
    // Everybody who asks hears of it.
    let points = health(node).score;
    let of_kind = ["resource=\"r0\"", "kind=\"read\""];
    assert_eq!(node.metric("holdfast_disk_errors_total", &of_kind), Some(3.0));
    let metric = node.metric("holdfast_disk_health_score", &["resource=\"r0\""]);
    assert_eq!(metric, Some(f64::from(points)));
    let problems = node.status().cluster.expect("it is in one").problems;
    let problem = problems.iter().find(|text| text.contains("the health of its disk"));
    let problem = problem.expect("it is told");
    let words = format!("is {points} of 100 (warning): 3 errors in the last hour");
    assert!(problem.contains(&words), "{problem}");
    assert!(problem.contains("`holdfast replace-disk r0 --disk NEW` replaces it"), "{problem}");
    wait_until(SOON, "the events tell of it", || node.ok(&["events"]).contains("health:warning"));
    let check = node.cli(&["status", "--check"]);
    assert_eq!(check.status, 1, "{check}");
    let words = format!("HOLDFAST WARNING: r0: the health of the disk is {points}");
    assert!(check.stdout.starts_with(&words), "{check}");
    assert!(check.stdout.contains(&format!(" | r0_health={points};90:;70:;0;100")), "{check}");
    let shown = node.ok(&["health", "r0"]);
    let words = format!("{points} of 100, warning");
    assert!(shown.contains(&words) && shown.contains("3 MiB"), "{shown}");
    // It is still known after a restart.
    cluster[0].restart();
    cluster[0].wait_resource("r0", SOON, "it is up", |status| status.role == "Primary");
    seen(&cluster[0]);
    // Forgotten, also after a crash.
    let said = cluster[0].ok(&["health", "r0", "--clear"]);
    assert!(said.contains("counted from 0 again"), "{said}");
    for _ in 0..2 {
        let health = health(&cluster[0]);
        assert_eq!((health.errors.sum(), score(&health), &*health.level), (0, 100, "ok"));
        assert!(health.hot_regions.is_empty() && health.last_error_unix_ms.is_none());
        let problems = cluster[0].status().cluster.expect("it is in one").problems;
        assert!(problems.is_empty(), "{problems:?}");
        cluster[0].kill9();
        cluster[0].start();
        cluster[0].wait_resource("r0", SOON, "it is up", |status| status.role == "Primary");
    }
}

#[test]
fn row_057_the_first_error_is_known_after_a_crash_and_another_disk_begins_anew() {
    let Some((mut cluster, disk)) = on_bad_disk() else { return };
    run_into(&cluster[0], &disk, 9);
    let now = health(&cluster[0]);
    assert_eq!(now.errors.read, 1);
    // At once, but where something slow was written just before: that is done once a minute.
    let limit = if now.stalls + now.outliers == 0 { SOON } else { 2 * SYNC };
    let mut file = PathBuf::new();
    wait_until(limit, "the first error is written", || {
        let files = std::fs::read_dir(cluster[0].state_dir().join("health")).into_iter().flatten();
        let mut files = files.flatten().map(|entry| entry.path());
        // One that is just being written has another name.
        let found = files.find(|path| path.extension().is_none_or(|end| end != "new"));
        file = found.unwrap_or_default();
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.contains("\"last_error\": ") && !text.contains("\"last_error\": null")
    });
    cluster[0].kill9();
    let kept = std::fs::read(&file).expect("it can be read");
    cluster[0].start();
    assert_eq!(health(&cluster[0]).errors.read, 1);
    // A damaged file costs the counts, and nothing else.
    cluster[0].kill9();
    let mut flipped = kept.clone();
    *flipped.last_mut().expect("it is not empty") ^= 1;
    std::fs::write(&file, flipped).expect("it can be written");
    cluster[0].start();
    assert_eq!(health(&cluster[0]).errors.read, 0);
    cluster[0].wait_log("errors are counted from nothing");
    cluster[0].wait_resource("r0", SOON, "it is up", |status| status.role == "Primary");
    cluster[0].ok(&["delete", "r0"]);
    assert!(!file.exists(), "what was known of a disk goes with the resource");
}

#[test]
fn row_057_a_disk_that_is_not_used_has_no_points_and_status_check_fails() {
    let Some((cluster, disk)) = on_bad_disk() else { return };
    let node = &cluster[0];
    disk.fail_all(true);
    let mut found = [0; 4096];
    assert!(node.open("r0").read_at(&mut found, 0).is_err());
    node.wait_resource("r0", SOON, "the disk is not used", |r| r.disk.problem.is_some());
    let now = health(node);
    assert_eq!((now.score, &*now.level), (0, "critical"), "{now:?}");
    assert!(now.reasons[0].text.starts_with("the disk is not used: "), "{now:?}");
    let check = node.cli(&["status", "r0", "--check"]);
    assert_eq!(check.status, 2, "{check}");
    assert!(check.stdout.starts_with("HOLDFAST CRITICAL: r0: the disk is not used"), "{check}");
    let json = node.cli(&["status", "--check", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&json.stdout).expect("it is JSON");
    assert_eq!(
        (json.status, &found["state"], &found["exit_code"]),
        (2, &"CRITICAL".into(), &2.into())
    );
    node.refused(&["status", "r1", "--check"], 4, "r1");
    disk.heal_all();
}

#[test]
fn row_054_times_are_those_of_the_disk() {
    const DELAY: Duration = Duration::from_millis(200);
    let Some((cluster, disk)) = on_bad_disk() else { return };
    let node = &cluster[0];
    write_blocks(node, "r0", 1, 0..20);
    let reads = |health: &DiskHealth| health.latency.iter().find(|one| one.kind == "read").cloned();
    let slowest_before = reads(&health(node)).map_or(0, |read| read.max_micros);
    disk.delay(DELAY, Duration::ZERO);
    let mut client = node.open("r0");
    let mut found = [0; 4096];
    let mut took: Vec<Duration> = (0..15_u64)
        .map(|block| {
            let begin = Instant::now();
            client.read_at(&mut found, block * BLOCK).expect("it is only slow");
            begin.elapsed()
        })
        .collect();
    took.sort_unstable();
    let micros = |time: Duration| u64::try_from(time.as_micros()).expect("it is short");
    let now = health(node);
    let read = reads(&now).expect("there were reads");
    // Those that opened the resource were quick: they are fewer.
    assert!(read.operations >= 15, "{read:?}");
    assert!(read.p50_micros >= micros(DELAY) * 9 / 10, "{read:?}");
    assert!(read.p50_micros <= micros(took[7]) * 11 / 10, "{read:?} and {took:?}");
    let slowest = micros(took[14]).max(slowest_before);
    assert!(read.max_micros <= slowest, "{read:?} and {took:?}, {slowest_before} before");
    let labels = ["resource=\"r0\"", "kind=\"read\"", "percentile=\"50\""];
    let metric = node.metric("holdfast_disk_recent_latency_seconds", &labels);
    assert!(metric.is_some_and(|value| value >= 0.18), "{metric:?}");
    let before = now.stalls;
    // More than a second is a stall.
    disk.delay(Duration::from_millis(1100), Duration::ZERO);
    client.read_at(&mut found, 0).expect("it is only slow");
    let now = health(node);
    // Where the machine stands still for a while there may be more.
    assert!(now.stalls > before && now.stalls_last_hour == now.stalls, "{before} and {now:?}");
    assert!(now.reasons.iter().any(|r| r.text.contains("of a second or more")), "{now:?}");
    assert_eq!((&*now.level, now.errors.sum()), ("ok", 0), "slow is not broken");
    disk.delay(Duration::ZERO, Duration::ZERO);
}

/// A program that says what is in a file beside it.
fn fake_smartctl(dir: &Path) -> PathBuf {
    let path = dir.join("smartctl");
    let dir = dir.display();
    let text = format!("#!/bin/sh\nenv > {dir}/env\necho \"$*\" >> {dir}/calls\ncat {dir}/says\n");
    files::make_program(&path, &text);
    path
}

#[test]
fn row_060_what_the_device_says_is_told_and_counts() {
    let scratch = Scratch::new();
    let program = fake_smartctl(scratch.path()).display().to_string();
    let says = scratch.join("says");
    let text = r#"{"smartctl":{"version":[7,3]},"model_name":"Fake 4000","serial_number":"S-1",
        "smart_status":{"passed":true},"temperature":{"current":41},
        "power_on_time":{"hours":77},"ata_smart_attributes":{"table":[
        {"id":5,"raw":{"value":0}},{"id":197,"raw":{"value":8}},{"id":198,"raw":{"value":1}}]}}"#;
    std::fs::write(&says, text).expect("it can be written");
    let arguments = ["--smartctl", &program];
    let options = ClusterOptions { arguments: &arguments, ..ClusterOptions::default() };
    let mut cluster = Cluster::with(&binary(), 1, options);
    let Some(device) = loop_device(&cluster, "file", &[]) else { return };
    cluster[0].ok(&["create", "r0", "--disk", &device]);
    let asked = |node: &Node, what: &str, met: fn(&DiskHealth) -> bool| {
        let status = node.wait_resource("r0", SOON, what, |status| {
            status
                .disk
                .health
                .as_ref()
                .is_some_and(|health| !health.smart.is_empty() && met(health))
        });
        status.disk.health.expect("it was there")
    };
    let health = asked(&cluster[0], "the device was asked", |_| true);
    let smart = &health.smart[0];
    assert_eq!((&*smart.device, &*smart.model, &*smart.serial), (&*device, "Fake 4000", "S-1"));
    assert_eq!((smart.passed, smart.temperature_celsius), (Some(true), Some(41)));
    assert_eq!(
        (smart.get("pending_sectors"), smart.get("offline_uncorrectable")),
        (Some(8), Some(1))
    );
    // 8 + 3 * 3 for those that wait, 8 for the one that cannot be read.
    assert_eq!((score(&health), &*health.level), (75, "warning"), "{health:?}");
    let labels = ["resource=\"r0\"", "name=\"pending_sectors\""];
    assert_eq!(cluster[0].metric("holdfast_disk_smart_value", &labels), Some(8.0));
    let shown = cluster[0].ok(&["health", "r0"]);
    assert!(shown.contains("Fake 4000 S-1  passed  41 °C  77 h"), "{shown}");
    // Asked once, and with nothing of the daemon's own environment.
    let calls = std::fs::read_to_string(scratch.join("calls")).expect("it was called");
    assert_eq!(calls, format!("--json -a {device}\n"));
    let env = std::fs::read_to_string(scratch.join("env")).expect("it was called");
    assert!(!env.contains("HOLDFAST_") && !env.contains("HOME="), "{env}");
    // Nonsense is one problem, and the disk is used all the same.
    std::fs::write(&says, "no JSON \u{7}\n at all").expect("it can be written");
    cluster[0].restart();
    let health =
        asked(&cluster[0], "it was asked again", |health| health.smart[0].problem.is_some());
    assert_eq!(score(&health), 100, "{health:?}");
    let status = cluster[0].status();
    let problems = status.cluster.expect("it is in one").problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    let words =
        format!("the SMART values of {device} are not known: {program} tells nothing: its ");
    assert!(problems[0].starts_with(&words) && !problems[0].contains('\u{7}'), "{problems:?}");
    cluster[0].wait_resource("r0", SOON, "it is up", |status| status.role == "Primary");
    write_blocks(&cluster[0], "r0", 1, 0..4);
    cluster[0].ok(&["delete", "r0"]);
    let_go(&device);
}
