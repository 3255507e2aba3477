//! What other systems' configuration becomes: the commands that are printed do it.

use crate::{MIB, SOON, binary, check_blocks, write_blocks};
use holdfast_testkit::{Cluster, ClusterOptions, Scratch, files, run, run_ok};
use serde_json::Value;
use std::fs;
use std::process::Command;

fn import(arguments: &[&str]) -> holdfast_testkit::Output {
    // There is no daemon behind this socket.
    run(Command::new(binary())
        .args(["--socket", "/nowhere/holdfast.sock", "import"])
        .args(arguments))
}

fn drbd(scratch: &Scratch, disks: [&str; 2]) -> String {
    let directory = scratch.join("drbd.d");
    fs::create_dir_all(&directory).expect("it can be made");
    let conf = "include \"drbd.d/global_common.conf\";\ninclude \"drbd.d/*.res\";\n";
    let common = "global { usage-count no; }\ncommon { net { protocol C; ping-int 5; } }\n";
    let resource = format!(
        "resource r0 {{\n  device /dev/drbd0;\n  meta-disk internal;\n  disk {{ resync-rate 33M; \
         c-plan-ahead 0; }}\n  net {{ allow-two-primaries yes; colour blue; }}\n  \
         on alpha {{ address 10.0.0.1:7788; disk {}; }}\n  \
         on beta {{ address 10.0.0.2:7788; disk {}; }}\n}}\n",
        disks[0], disks[1]
    );
    for (name, text) in
        [("drbd.conf", conf), ("drbd.d/global_common.conf", common), ("drbd.d/r0.res", &resource)]
    {
        fs::write(scratch.join(name), text).expect("it can be written");
    }
    scratch.join("drbd.conf").display().to_string()
}

#[test]
fn what_a_drbd_resource_becomes_is_printed_and_nothing_is_dropped() {
    let scratch = Scratch::new();
    let path = drbd(&scratch, ["/dev/vg0/r0", "/dev/sdb1"]);
    let text = import(&["drbd", &path]).ok();
    for line in [
        "drbdadm down r0",
        "#      listen = \"10.0.0.1:7850\"",
        "holdfast cluster create",
        "holdfast create r0 --disk /dev/vg0/r0 --size SIZE --set ping-int=5 --set protocol=C --set \
         resync-rate=33M",
        "holdfast join r0 --disk /dev/sdb1 --force",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let res = scratch.join("drbd.d/r0.res");
    for statement in ["5: allow-two-primaries yes", "5: colour blue"] {
        let line = format!("#   {}:{statement}", res.display());
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // A shell finds nothing wrong in it.
    let script = scratch.join("script");
    fs::write(&script, &text).expect("it can be written");
    run_ok(Command::new("sh").arg("-n").arg(&script));

    let json: Value =
        serde_json::from_str(&import(&["drbd", &path, "--json"]).ok()).expect("it is JSON");
    let counts = &json["counts"];
    let count = |key: &str| counts[key].as_u64().expect("a number");
    assert_eq!(count("statements"), 23);
    assert_eq!(count("translated") + count("needless") + count("missing"), 23);
    assert_eq!(count("missing"), 2);
    assert_eq!(json["steps"][0]["node"], "alpha");
}

/// The commands of the import, typed on the nodes that they are for.
#[test]
fn the_commands_for_a_drbd_resource_make_it_with_its_data() {
    let cluster = Cluster::strangers(&binary(), 2, ClusterOptions::default());
    let disks = [cluster[0].disk("r0"), cluster[1].disk("r0")];
    // The disks that DRBD had: the second one is larger.
    files::make_sparse(&disks[0], 8 * MIB);
    files::make_sparse(&disks[1], 9 * MIB);
    let shown = disks.clone().map(|disk| disk.display().to_string());
    let scratch = Scratch::new();
    let path = drbd(&scratch, [&shown[0], &shown[1]]);
    let plan: Value =
        serde_json::from_str(&import(&["drbd", &path, "--json"]).ok()).expect("it is JSON");
    let mut token = String::new();
    for step in plan["steps"].as_array().expect("a list") {
        let node = if step["node"] == "alpha" { &cluster[0] } else { &cluster[1] };
        for line in step["commands"].as_array().expect("a list") {
            let line = line.as_str().expect("a text");
            let line = line.split('#').next().unwrap_or_default();
            let line = line.replace("TOKEN", &token).replace("SIZE", "7M");
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                // A block device needs a kernel that has one of the ways.
                ["holdfast", "device", ..] => {}
                ["holdfast", ref words @ ..] => {
                    let said = node.ok(words);
                    if words[1] == "token" {
                        token = said.trim().to_owned();
                    }
                }
                ["blockdev" | "drbdadm" | "systemctl", ..] => {}
                _ => panic!("{line}"),
            }
        }
        if step["about"].as_str().is_some_and(|about| about.starts_with("make r0")) {
            write_blocks(&cluster[0], "r0", 7, 0..20);
        }
    }
    cluster.wait_members("r0", 2, SOON);
    assert_eq!(cluster[1].resource("r0").size_bytes, 7 * MIB);
    assert_eq!(cluster[0].ok(&["get", "r0", "resync-rate", "-q"]), format!("{}\n", 33 * MIB));
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 7, 0..20);
}

#[test]
fn what_an_enbd_file_becomes_is_printed_and_nothing_is_dropped() {
    let scratch = Scratch::new();
    let path = scratch.join("enbd.conf");
    let text = "# /etc/enbd.conf\nmodule 0 merge_requests=0 sync_intvl=0 rahead=20 show_errs=1\n\
                client 0 /dev/nda karajan 1034 -n 4\nserver 0 1033 /dev/hdb1 -i sig -Q\n";
    fs::write(&path, text).expect("it can be written");
    let path = path.display().to_string();
    let text = import(&["enbd", &path]).ok();
    for line in [
        "holdfast serve /dev/hdb1 --listen 0.0.0.0:1033".to_owned(),
        "holdfast attach nbd://karajan:1034 --name nda --persist --io-timeout 0 --connections 4"
            .into(),
        format!("#   {path}:4: -Q"),
        format!("#   {path}:4: -i sig"),
        format!("#   {path}:2: show_errs=1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let json: Value =
        serde_json::from_str(&import(&["enbd", &path, "--json"]).ok()).expect("it is JSON");
    assert_eq!(json["counts"]["statements"], 11);
}

#[test]
fn a_file_that_is_none_is_refused_with_its_place() {
    let scratch = Scratch::new();
    let path = scratch.join("x.res");
    fs::write(&path, "resource r0 {\n  device /dev/drbd0\n}\n").expect("it can be written");
    let path = path.display().to_string();
    let output = import(&["drbd", &path]);
    assert_eq!(output.status, 1, "{output}");
    let due =
        format!("error: the import was not made: {path}:3:1: a ; is missing before this }}\n");
    assert!(output.stderr.starts_with(&due) && output.stdout.is_empty(), "{output}");
    let output = import(&["drbd", "/nowhere/x", "--json"]);
    assert_eq!(output.status, 1, "{output}");
    let error: Value = serde_json::from_str(&output.stderr).expect("it is JSON");
    assert_eq!(error["error"]["code"], "INVALID_PATH");
    assert_eq!(import(&["drbd"]).status, 2);
}
