//! What the daemon's process may use.

use super::Facts;
use super::finding::Findings;
use super::machine::Machine;
use holdfast_units::format_size;

/// With fewer files open at a time, connections and disks are refused one day.
const FEW_FILES: u64 = 4096;
/// With less memory, the daemon may be killed by the limit.
const LITTLE_MEMORY: u64 = 512 << 20;
/// The capability to lock memory.
const CAP_IPC_LOCK: u32 = 14;

pub(super) fn look(facts: &Facts, findings: &mut Findings) {
    let machine = &facts.machine;
    let running = facts.info.as_ref().and_then(|info| info.pid);
    let process = running.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let whose = if running.is_some() { "the daemon" } else { "this shell" };
    files(machine, &process, whose, findings);
    if running.is_some() {
        locked(facts, &process, findings);
    }
    memory_group(machine, &process, whose, findings);
    swap(facts, findings);
}

/// The hard limit: the daemon raises its own up to it.
fn files(machine: &Machine, process: &str, whose: &str, findings: &mut Findings) {
    let Some(limits) = machine.text(&format!("proc/{process}/limits")) else { return };
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let Some(hard) = line.and_then(|line| line.split_whitespace().nth(1)) else { return };
    let what = format!("{whose} may have {hard} files open");
    match hard.parse::<u64>() {
        Ok(number) if number < FEW_FILES => findings.warning(
            "limits.files",
            what,
            "every connection, disk and journal takes some; what is above the limit is refused",
            "raise it: LimitNOFILE=65536 in the unit of the service",
        ),
        _ => findings.ok("limits.files", what),
    }
}

fn locked(facts: &Facts, process: &str, findings: &mut Findings) {
    const CHECK: &str = "limits.locked_memory";
    let Some(status) = facts.machine.text(&format!("proc/{process}/status")) else { return };
    let value = |key: &str| {
        let rest = status.lines().find_map(|line| line.strip_prefix(key));
        rest.map(|rest| rest.trim().trim_end_matches(" kB").to_owned())
    };
    let wanted = facts.info.as_ref().is_some_and(|info| info.lock_memory);
    let bytes =
        |key: &str| value(key).and_then(|kib| kib.parse::<u64>().ok()).map_or(0, |kib| kib << 10);
    let locked = bytes("VmLck:");
    if !wanted {
        return findings.note(
            CHECK,
            "lock-memory is off: the daemon can be swapped out",
            "a filesystem of this machine on one of its resources may then wait for itself when \
             memory is short",
            "leave it off only where such resources are used by other machines alone",
        );
    }
    if locked > 0 {
        // What is locked counts addresses too that have no memory yet.
        let held = locked.min(bytes("VmRSS:"));
        return findings
            .ok(CHECK, format!("the daemon's memory is locked, {} are in use", format_size(held)));
    }
    let capabilities = value("CapEff:").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    let missing = capabilities.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 0);
    findings.warning(
        CHECK,
        "none of the daemon's memory is locked",
        "a filesystem of this machine on one of its resources may wait for itself when memory is \
         short",
        if missing {
            "run it as root, or give it CAP_IPC_LOCK or LimitMEMLOCK=infinity"
        } else {
            "raise its limit: LimitMEMLOCK=infinity in the unit of the service"
        },
    );
}

/// The limit of the control group that the process is in, or of one above it.
fn memory_group(machine: &Machine, process: &str, whose: &str, findings: &mut Findings) {
    let Some(groups) = machine.text(&format!("proc/{process}/cgroup")) else { return };
    let mut limit: Option<u64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            // `max`, or a number beyond all memory, is no limit.
            let found = machine.number(&format!("{base}{path}/{file}"));
            let found = found.filter(|bytes| *bytes < 1 << 60);
            limit = [limit, found].into_iter().flatten().min();
            let Some((above, _)) = path.rsplit_once('/') else { break };
            path = above;
        }
    }
    let check = "limits.memory_group";
    match limit {
        None => findings.ok(check, format!("no control group limits the memory of {whose}")),
        Some(bytes) if bytes >= LITTLE_MEMORY => {
            let what =
                format!("a control group limits the memory of {whose} to {}", format_size(bytes));
            findings.ok(check, what);
        }
        Some(bytes) => findings.warning(
            check,
            format!("a control group limits the memory of {whose} to {}", format_size(bytes)),
            "at the limit the daemon is killed, and its devices wait until it is back",
            "raise it to 512 MiB or more: MemoryMax= in the unit of the service",
        ),
    }
}

/// Swap space on a device that Holdfast makes: to free memory, memory is needed.
fn swap(facts: &Facts, findings: &mut Findings) {
    let Some(swaps) = facts.machine.text("proc/swaps") else { return };
    let devices = facts.status.iter().flat_map(|status| {
        let resources = status.resources.iter().filter_map(|one| one.device.as_deref());
        resources.chain(status.attachments.iter().filter_map(|one| one.device.as_deref()))
    });
    let own: Vec<String> = devices
        .flat_map(|device| {
            let real = facts.machine.path(device).canonicalize().ok();
            let real = real.map(|path| path.display().to_string());
            std::iter::once(device.to_owned()).chain(real)
        })
        .collect();
    let used = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    for device in used {
        if device.starts_with("/dev/holdfast/") || own.iter().any(|path| path == device) {
            findings.error(
                "limits.swap",
                format!("{device}, a device of Holdfast, is used as swap space"),
                "to free memory the kernel would need the daemon, which needs memory: the machine \
                 may stand still for ever",
                format!("swapoff {device}, and swap to a local disk"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use holdfast_api::daemon::DaemonInfo;
    use std::fs;

    fn look_at(files: &[(&str, &str)]) -> Vec<(&'static str, Severity)> {
        let found = findings_at(files);
        found.0.into_iter().map(|one| (one.check, one.severity)).collect()
    }

    #[test]
    fn memory_that_is_locked_is_told_as_what_is_used_of_it() {
        let status = "VmLck:\t 1017000 kB\nVmRSS:\t   69632 kB\nCapEff:\t000001ffffffffff\n";
        let found = findings_at(&[("proc/7/status", status)]);
        let one = found.0.iter().find(|one| one.check == "limits.locked_memory").unwrap();
        assert_eq!(one.what, "the daemon's memory is locked, 68 MiB are in use");
    }

    fn findings_at(files: &[(&str, &str)]) -> Findings {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let info = DaemonInfo { pid: Some(7), lock_memory: true, ..DaemonInfo::default() };
        let facts = Facts {
            machine: Machine::below(root.path()),
            info: Some(info),
            status: None,
            silent: None,
        };
        let mut findings = Findings::default();
        look(&facts, &mut findings);
        findings
    }

    #[test]
    fn low_limits_are_told_and_high_ones_are_fine() {
        let low = look_at(&[
            (
                "proc/7/limits",
                "Limit  Soft Limit  Hard Limit  Units\nMax open files   256  1024  files\n",
            ),
            ("proc/7/status", "VmLck:\t       0 kB\nCapEff:\t0000000000000000\n"),
            ("proc/7/cgroup", "5:cpu:/x\n0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "268435456\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("proc/swaps", "Filename Type\n/dev/holdfast/db partition 1 0 -2\n"),
        ]);
        assert_eq!(
            low,
            [
                ("limits.files", Severity::Warning),
                ("limits.locked_memory", Severity::Warning),
                ("limits.memory_group", Severity::Warning),
                ("limits.swap", Severity::Error),
            ]
        );
        let high = look_at(&[
            ("proc/7/limits", "Max open files   1024  unlimited  files\n"),
            ("proc/7/status", "VmLck:\t    9000 kB\nCapEff:\t000001ffffffffff\n"),
            ("proc/7/cgroup", "9:memory:/a\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("proc/swaps", "Filename Type\n/dev/sda2 partition 1 0 -2\n"),
        ]);
        assert_eq!(high.len(), 3, "{high:?}");
        assert!(high.iter().all(|(_, severity)| *severity == Severity::Ok), "{high:?}");
    }
}
