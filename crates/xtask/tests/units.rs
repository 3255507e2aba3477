//! systemd understands the units that are shipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "/usr/bin/holdfast";

/// Where the units are.
fn units() -> PathBuf {
    xtask::root().join("packaging/systemd")
}

/// The units, in a directory of their own, with a program in them that this machine has.
fn copied() -> PathBuf {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("units");
    // One of an earlier run.
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).expect("it can be made");
    for entry in fs::read_dir(units()).expect("it is there") {
        let path = entry.expect("it can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("it has a name");
        let text = fs::read_to_string(&path).expect("it is text");
        assert!(text.contains(&format!("ExecStart={PROGRAM} ")), "{name} starts another program");
        let name = name.replace("@.", "@db.");
        fs::write(to.join(name), text.replace(PROGRAM, "/bin/sh")).expect("it can be written");
    }
    to
}

#[test]
fn the_units_are_understood_without_a_complaint() {
    let mut units: Vec<PathBuf> =
        fs::read_dir(copied()).unwrap().map(|entry| entry.unwrap().path()).collect();
    units.sort();
    let names: Vec<_> = units.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(names, ["holdfast-wait@db.service", "holdfast.service"]);
    let mut verify = Command::new("systemd-analyze");
    let output = match verify.args(["verify", "--man=no"]).args(&units).output() {
        Ok(output) => output,
        Err(why) => return eprintln!("systemd-analyze is not here ({why}): nothing is checked"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // What other units of this machine get wrong is not ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("holdfast")).collect();
    assert!(ours.is_empty(), "{said}");
}

/// What the design rests on (`docs/design/service.md`).
#[test]
fn a_restart_of_the_daemon_does_not_reach_what_is_mounted() {
    let unit = |name: &str| fs::read_to_string(units().join(name)).unwrap();
    let daemon = unit("holdfast.service");
    for line in ["KillMode=process", "RuntimeDirectoryPreserve=yes", "PrivateMounts=yes"] {
        assert!(daemon.lines().any(|found| found == line), "{line}");
    }
    let wait = unit("holdfast-wait@.service");
    let binding = ["Requires=", "BindsTo=", "PartOf=", "Requisite=", "PropagatesStopTo="];
    let bound: Vec<&str> =
        wait.lines().filter(|line| binding.iter().any(|word| line.starts_with(word))).collect();
    assert!(bound.is_empty(), "{bound:?}");
}
