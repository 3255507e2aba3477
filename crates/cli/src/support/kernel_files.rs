//! The files of `/proc`, `/sys`, `/dev` and `/lib/modules` by which `doctor --root` looks at a
//! machine from its archive, and some more for people.

use super::bundle::Bundle;
use crate::doctor::machine::Machine;
use std::io;

/// Files as they are.
const FILES: [&str; 16] = [
    "proc/sys/kernel/osrelease",
    "proc/sys/kernel/io_uring_disabled",
    "proc/sys/vm/dirty_ratio",
    "proc/version",
    "proc/meminfo",
    "proc/cpuinfo",
    "proc/loadavg",
    "proc/uptime",
    "proc/modules",
    "proc/swaps",
    "proc/mdstat",
    "proc/drbd",
    "proc/diskstats",
    "proc/self/mountinfo",
    "proc/net/tcp",
    "proc/net/tcp6",
];
/// Whether they are there is what counts.
const PRESENT: [&str; 8] = [
    "dev/ublk-control",
    "dev/nbd0",
    "dev/fuse",
    "dev/loop-control",
    "sys/module/ublk_drv",
    "sys/module/nbd",
    "sys/module/fuse",
    "sys/module/loop",
];
/// Lines of the lists of modules that are about these are kept.
const MODULES: [&str; 4] = ["ublk_drv", "nbd", "fuse", "loop"];
/// No more block devices than this.
const MOST_DEVICES: usize = 256;
/// What is kept of a block device.
const DEVICE: [&str; 9] = [
    "size",
    "ro",
    "dev",
    "partition",
    "queue/rotational",
    "queue/write_cache",
    "queue/discard_max_bytes",
    "dm/name",
    "dm/uuid",
];

/// Adds them; a file that is not there is left out.
///
/// # Errors
/// When the archive cannot be written.
pub(super) fn add(bundle: &mut Bundle, machine: &Machine, pid: Option<u32>) -> io::Result<()> {
    for name in FILES {
        file(bundle, machine, name)?;
    }
    for name in PRESENT.into_iter().filter(|name| machine.has(name)) {
        let name = if name.starts_with("sys") { format!("{name}/there") } else { name.to_owned() };
        bundle.add(&name, || Ok(Vec::new()))?;
    }
    if let Some(pid) = pid {
        for name in ["limits", "status", "cgroup", "comm"] {
            file(bundle, machine, &format!("proc/{pid}/{name}"))?;
        }
    }
    const EFI: &str = "sys/firmware/efi/efivars";
    let name = machine.names(EFI).into_iter().find(|name| name.starts_with("SecureBoot-"));
    if let Some(name) = name {
        file(bundle, machine, &format!("{EFI}/{name}"))?;
    }
    if let Some(release) = machine.release() {
        for list in ["modules.builtin", "modules.dep"] {
            let name = format!("lib/modules/{release}/{list}");
            let Some(text) = machine.text(&name) else { continue };
            let about = |line: &&str| MODULES.iter().any(|module| line.contains(module));
            let lines: Vec<&str> = text.lines().filter(about).collect();
            bundle.add(&name, || Ok(lines.join("\n").into_bytes()))?;
        }
    }
    for device in machine.names("sys/class/block").into_iter().take(MOST_DEVICES) {
        block_device(bundle, machine, &device)?;
    }
    Ok(())
}

fn file(bundle: &mut Bundle, machine: &Machine, name: &str) -> io::Result<()> {
    match machine.bytes(name) {
        Some(bytes) => bundle.add(name, || Ok(bytes)),
        None => Ok(()),
    }
}

fn block_device(bundle: &mut Bundle, machine: &Machine, device: &str) -> io::Result<()> {
    let dir = format!("sys/class/block/{device}");
    // Dozens of loop and memory devices that nobody uses say nothing.
    if machine.number(&format!("{dir}/size")) == Some(0) {
        return Ok(());
    }
    for key in DEVICE {
        file(bundle, machine, &format!("{dir}/{key}"))?;
    }
    for part in machine.names(&dir) {
        let dir = format!("{dir}/{part}");
        if !machine.has(&format!("{dir}/partition")) {
            continue;
        }
        for key in ["partition", "dev"] {
            file(bundle, machine, &format!("{dir}/{key}"))?;
        }
        holders(bundle, machine, &dir)?;
    }
    holders(bundle, machine, &dir)
}

fn holders(bundle: &mut Bundle, machine: &Machine, dir: &str) -> io::Result<()> {
    for holder in machine.names(&format!("{dir}/holders")) {
        bundle.add(&format!("{dir}/holders/{holder}"), || Ok(Vec::new()))?;
    }
    Ok(())
}
