//! systemd understands the units that are shipped, and those that the guide shows.

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

/// The units that the guide has people write, put there with programs that this machine has.
fn write_those_of_the_guide(to: &Path) {
    let page = xtask::root().join("docs/guide/service.md");
    let page = fs::read_to_string(page).expect("the page is there");
    for block in page.split("```ini\n# /etc/systemd/system/").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a name stands on a line");
        let (text, _) = rest.split_once("```").expect("a block has an end");
        let text = text.replace(PROGRAM, "/bin/sh").replace("/usr/local/bin/app", "/bin/sh");
        fs::write(to.join(name), text).expect("it can be written");
    }
}

#[test]
fn the_units_are_understood_without_a_complaint() {
    let dir = copied();
    write_those_of_the_guide(&dir);
    let mut units: Vec<PathBuf> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    units.sort();
    let names: Vec<_> = units.iter().map(|path| path.file_name().unwrap()).collect();
    let known = ["db-app.service", "db-device.service", "holdfast-wait@db.service"];
    assert_eq!(names, [&known[..], &["holdfast.service"]].concat());
    let mut verify = Command::new("systemd-analyze");
    let output = match verify.args(["verify", "--man=no"]).args(&units).output() {
        Ok(output) => output,
        Err(why) => return eprintln!("systemd-analyze is not here ({why}): nothing is checked"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // What other units of this machine get wrong is not ours.
    let ours = |line: &&str| line.contains("holdfast") || line.contains("db-");
    let ours: Vec<&str> = said.lines().filter(ours).collect();
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
