//! nbdkit with its filters that make a server bad, killed at random moments.
//!
//! `HOLDFAST_KILLS` says how often, for each number of connections; `HOLDFAST_SEED` when.

use crate::load::{Load, check_image};
use crate::real::{Program, Real};
use holdfast_testkit::Rng;
use std::time::{Duration, Instant};

/// One after the other: each server that is started is bad in the next way.
const FILTERS: [&[&str]; 6] = [
    &["--filter=error", "error-rate=2%"],
    &["--filter=delay", "delay-read=1ms", "delay-write=2ms"],
    &["--filter=rate", "rate=300M"],
    &["--filter=error", "error=ENOSPC", "error-pwrite-rate=5%"],
    &["--filter=error", "error=ESHUTDOWN", "error-rate=1%"],
    &["--filter=retry", "--filter=error", "error-rate=0.05%", "retries=2", "retry-delay=1"],
];

pub(crate) fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn survives(connections: usize) {
    if !Program::Nbdkit.is_here() {
        return;
    }
    let kills = number_of("HOLDFAST_KILLS", 6);
    let mut rng = Rng::new(number_of("HOLDFAST_SEED", 7) + connections as u64);
    let dir = tempfile::tempdir().unwrap();
    let mut real = Real::new(Program::Nbdkit, dir.path(), &[]);
    let disk = real.open(connections);
    let load = Load::start_where_requests_fail(&disk, 4, connections as u64);
    for round in 0..kills {
        // nbdkit 1.32 may fall over an assertion of its own when a connection with several requests
        // under way is closed.
        load.wait_for_while(rng.below(150), || real.revive());
        // In the middle of one request or another.
        let due = Instant::now() + Duration::from_micros(rng.below(3000));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        real.kill();
        real.change(FILTERS[(round % FILTERS.len() as u64) as usize]);
        real.start();
    }
    real.kill();
    real.change(&[]);
    real.start();
    load.wait_for(100);
    let counts = load.stop();
    // Some are killed before the client has come back to them.
    let outages = disk.status().unwrap().legs[0].session.outages;
    assert!(outages > kills / 3, "{outages} of {kills}");
    disk.close().unwrap();
    check_image(&std::fs::read(dir.path().join("image")).unwrap(), &counts);
}

#[test]
fn bad_servers_are_killed_with_one_connection() {
    survives(1);
}

#[test]
fn bad_servers_are_killed_with_two_connections() {
    survives(2);
}

#[test]
fn bad_servers_are_killed_with_eight_connections() {
    survives(8);
}

#[test]
fn servers_that_are_about_to_leave_are_no_loss() {
    if !Program::Nbdkit.is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let leave = dir.path().join("leave");
    let when = format!("exit-when-file-created={}", leave.display());
    let more = ["--filter=exitwhen", &when, "exit-when-poll=1"];
    let mut real = Real::new(Program::Nbdkit, dir.path(), &more);
    let disk = real.open(2);
    let load = Load::start(&disk, 4, 1);
    for _ in 0..number_of("HOLDFAST_KILLS", 6).div_ceil(3) {
        load.wait_for(50);
        // Who is there may stay; who comes back is turned away, until it is started again.
        std::fs::write(&leave, "").unwrap();
        load.wait_for(50);
        real.kill();
        std::fs::remove_file(&leave).unwrap();
        real.start();
    }
    load.wait_for(50);
    let counts = load.stop();
    disk.close().unwrap();
    check_image(&std::fs::read(dir.path().join("image")).unwrap(), &counts);
}
