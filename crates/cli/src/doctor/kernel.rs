//! What the kernel offers.

use super::finding::{Findings, Severity};
use super::machine::Machine;
use std::path::Path;

/// Before this kernel nothing was ever tried.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn look(machine: &Machine, findings: &mut Findings) {
    version(machine, findings);
    local_devices(machine, findings);
    uring(machine, findings);
    secure_boot(machine, findings);
}

fn version(machine: &Machine, findings: &mut Findings) {
    let Some(release) = machine.release() else {
        let why = "what the kernel offers is known from there";
        return findings.warning(
            "kernel.version",
            "/proc cannot be read",
            why,
            "mount it, or run doctor outside of the container",
        );
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    if version >= OLDEST {
        findings.ok("kernel.version", format!("Linux {release}"));
    } else {
        findings.warning(
            "kernel.version",
            format!("Linux {release} is older than 5.10"),
            "Holdfast was never tried on such a kernel",
            "use a newer kernel; from 6.1 on ublk is there, the fastest way to a local device",
        );
    }
}

/// Where a module of the kernel is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Module {
    /// In use, or a part of the kernel.
    There,
    /// It is loaded as soon as it is needed.
    Loadable,
    Missing,
}

fn module(machine: &Machine, name: &str) -> Module {
    if machine.has(&format!("sys/module/{name}")) {
        return Module::There;
    }
    let Some(release) = machine.release() else { return Module::Missing };
    let listed = |file: &str| {
        let list = machine.text(&format!("lib/modules/{release}/{file}")).unwrap_or_default();
        // `kernel/drivers/block/nbd.ko.zst: kernel/...`
        list.lines().any(|line| {
            let path = Path::new(line.split(':').next().unwrap_or_default());
            let file = path.file_name().map(|file| file.to_string_lossy().replace('-', "_"));
            file.is_some_and(|file| file.split('.').next() == Some(name))
        })
    };
    if listed("modules.builtin") {
        Module::There
    } else if listed("modules.dep") {
        Module::Loadable
    } else {
        Module::Missing
    }
}

fn local_devices(machine: &Machine, findings: &mut Findings) {
    let ways = [ublk(machine, findings), nbd(machine, findings), fuse(machine, findings)];
    if !ways.contains(&true) {
        findings.warning(
            "kernel.devices",
            "this machine cannot make a local block device: it has neither ublk nor nbd nor FUSE \
             with loop devices",
            "`holdfast device` and `holdfast attach` are refused; resources are still replicated, \
             and served as NBD exports",
            "install the package with all modules of this kernel (Ubuntu: \
             linux-modules-extra-RELEASE; RHEL: kernel-modules-extra), or load fuse and loop",
        );
    }
}

/// Says where a way to make devices stands; whether it can be used.
fn way(findings: &mut Findings, check: &'static str, name: &str, found: Module) -> bool {
    match found {
        Module::There => findings.ok(check, format!("{name} is there")),
        Module::Loadable => {
            findings.ok(check, format!("{name} is a module that is loaded when it is needed"));
        }
        Module::Missing => findings.note(
            check,
            format!("{name} is not offered by this kernel"),
            "it is one of three ways to make local block devices; the best that is there is taken",
            "nothing, as long as another way is there",
        ),
    }
    found != Module::Missing
}

fn ublk(machine: &Machine, findings: &mut Findings) -> bool {
    const CHECK: &str = "kernel.ublk";
    let mut found = module(machine, "ublk_drv");
    if machine.has("dev/ublk-control") {
        found = Module::There;
    }
    if found != Module::There || !machine.is_here() || !machine.has("dev/ublk-control") {
        return way(findings, CHECK, "ublk", found);
    }
    match holdfast_ublk::features() {
        Ok(Some(features)) => {
            let parts = [
                (features.recovery, "recovery"),
                (features.user_copy, "user copy"),
                (features.resize, "growing in use"),
            ];
            let missing: Vec<&str> =
                parts.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect();
            if missing.is_empty() {
                findings.ok(CHECK, "ublk is there, with recovery, user copy and growing in use");
            } else {
                let what = format!("ublk is there, without {}", missing.join(" and "));
                findings.note(CHECK, what, "it works, with less comfort", "use a newer kernel");
            }
        }
        Ok(None) => findings.ok(CHECK, "ublk is there, of a kernel before 6.5"),
        Err(why) => {
            let what = format!("/dev/ublk-control cannot be used: {}", super::plain(&why));
            let advice = "run doctor as root; else look who may open it";
            findings.note(CHECK, what, "ublk is the fastest way to a local device", advice);
        }
    }
    true
}

fn nbd(machine: &Machine, findings: &mut Findings) -> bool {
    let found = if machine.has("dev/nbd0") { Module::There } else { module(machine, "nbd") };
    way(findings, "kernel.nbd", "the kernel's NBD client", found)
}

fn fuse(machine: &Machine, findings: &mut Findings) -> bool {
    let of = |device: &str, name: &str| {
        if machine.has(device) { Module::There } else { module(machine, name) }
    };
    let found = match (of("dev/fuse", "fuse"), of("dev/loop-control", "loop")) {
        (Module::Missing, _) | (_, Module::Missing) => Module::Missing,
        (Module::There, Module::There) => Module::There,
        _ => Module::Loadable,
    };
    way(findings, "kernel.fuse", "FUSE with loop devices", found)
}

fn uring(machine: &Machine, findings: &mut Findings) {
    const CHECK: &str = "kernel.io_uring";
    let why = "without io_uring disks are driven by threads, which is slower, and ublk cannot be \
               used";
    let switch = machine.number("proc/sys/kernel/io_uring_disabled");
    if switch == Some(2) {
        let what = "io_uring is switched off for all processes (kernel.io_uring_disabled = 2)";
        return findings.warning(CHECK, what, why, "sysctl kernel.io_uring_disabled=1");
    }
    if !machine.is_here() {
        let what = match switch {
            Some(0) => "io_uring is switched on",
            Some(_) => "io_uring is switched on for privileged processes",
            None => "the kernel has no switch for io_uring",
        };
        return findings.ok(CHECK, what);
    }
    match holdfast_store::missing_uring_operations() {
        Ok(missing) if missing.is_empty() => {
            findings.ok(CHECK, "io_uring is there, with all operations that are needed");
        }
        Ok(missing) => {
            let severity =
                if missing == ["URING_CMD"] { Severity::Note } else { Severity::Warning };
            let what = format!("io_uring is there, without {}", missing.join(", "));
            findings.add(severity, CHECK, what, why, "use a newer kernel");
        }
        Err(error) => {
            let what = format!("io_uring cannot be used: {}", super::plain(&error));
            let advice = match switch {
                Some(1) => {
                    "kernel.io_uring_disabled is 1: only privileged processes may use it; run \
                     doctor as the daemon runs, as root"
                }
                _ => "look for a filter of system calls: containers have one by default",
            };
            findings.warning(CHECK, what, why, advice);
        }
    }
}

fn secure_boot(machine: &Machine, findings: &mut Findings) {
    const CHECK: &str = "kernel.secure_boot";
    const DIR: &str = "sys/firmware/efi/efivars";
    let name = machine.names(DIR).into_iter().find(|name| name.starts_with("SecureBoot-"));
    let value = name.and_then(|name| machine.bytes(&format!("{DIR}/{name}")));
    // Four bytes of attributes come first.
    let what = match value.as_deref() {
        Some([_, _, _, _, 1]) => {
            "Secure Boot is on, which does not matter: Holdfast is a program and brings no kernel \
             module that would have to be signed"
        }
        Some(_) => "Secure Boot is off; it could be on: Holdfast brings no kernel module",
        None => "no Secure Boot here; it would not matter: Holdfast brings no kernel module",
    };
    findings.ok(CHECK, what);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn machine(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &[u8])]) -> Vec<(&'static str, Severity, String)> {
        let root = machine(files);
        let mut findings = Findings::default();
        look(&Machine::below(root.path()), &mut findings);
        findings.0.into_iter().map(|one| (one.check, one.severity, one.what)).collect()
    }

    fn of<'a>(found: &'a [(&'static str, Severity, String)], check: &str) -> (Severity, &'a str) {
        let one = found.iter().find(|one| one.0 == check);
        one.map_or_else(|| panic!("no {check} in {found:?}"), |one| (one.1, &*one.2))
    }

    const RELEASE: (&str, &[u8]) = ("proc/sys/kernel/osrelease", b"6.1.0-50-amd64\n");

    #[test]
    fn modules_are_found_in_use_built_in_or_on_the_disk() {
        let found = found(&[
            RELEASE,
            ("sys/module/nbd/initstate", b"live"),
            ("dev/fuse", b""),
            (
                "lib/modules/6.1.0-50-amd64/modules.dep",
                b"kernel/drivers/block/ublk_drv.ko.xz:\nkernel/drivers/block/loop.ko: kernel/a.ko\n",
            ),
        ]);
        assert_eq!(of(&found, "kernel.ublk").0, Severity::Ok);
        assert!(of(&found, "kernel.ublk").1.contains("loaded when it is needed"));
        assert_eq!(of(&found, "kernel.nbd").1, "the kernel's NBD client is there");
        assert!(of(&found, "kernel.fuse").1.contains("loaded when it is needed"));
        assert!(!found.iter().any(|one| one.0 == "kernel.devices"));
    }

    #[test]
    fn a_kernel_without_any_way_and_without_io_uring() {
        let found = found(&[
            RELEASE,
            ("proc/sys/kernel/io_uring_disabled", b"2\n"),
            ("lib/modules/6.1.0-50-amd64/modules.dep", b"kernel/drivers/block/nbdx.ko:\n"),
        ]);
        for check in ["kernel.ublk", "kernel.nbd", "kernel.fuse"] {
            assert_eq!(of(&found, check).0, Severity::Note, "{check}");
        }
        assert_eq!(of(&found, "kernel.devices").0, Severity::Warning);
        assert_eq!(of(&found, "kernel.io_uring").0, Severity::Warning);
        assert!(of(&found, "kernel.secure_boot").1.starts_with("no Secure Boot"));
    }

    #[test]
    fn secure_boot_is_read_and_does_not_matter() {
        let name = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        for (value, word) in [(1, "is on"), (0, "is off")] {
            let found = found(&[RELEASE, (name, &[6, 0, 0, 0, value])]);
            let (severity, what) = of(&found, "kernel.secure_boot");
            assert!(severity == Severity::Ok && what.contains(word), "{what}");
        }
        let old = found(&[("proc/sys/kernel/osrelease", b"4.19.0")]);
        assert_eq!(of(&old, "kernel.version").0, Severity::Warning);
    }
}
