//! What devices say of themselves: `smartctl --json -a DEVICE`, read now and then.
//!
//! The program runs with an environment of its own and a limit of time and output, far from the
//! threads that data go through.

use crate::events::unix_ms;
use holdfast_api::health::{SmartAttribute, SmartStatus};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// How long the program may take: a disk that has to spin up first takes a while.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// More output is not read, in bytes.
const MOST: u64 = 1 << 20;
/// No text of a device is longer, in characters.
const LONGEST: usize = 80;
/// Where the program and what it calls are looked for.
const PLACES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The attributes of ATA disks that foretell a failure.
const ATA: [(u64, &str); 6] = [
    (5, "reallocated_sectors"),
    (187, "reported_uncorrectable"),
    (188, "command_timeouts"),
    (196, "reallocation_events"),
    (197, "pending_sectors"),
    (198, "offline_uncorrectable"),
];
/// Some disks keep three counts of timeouts in one number; this is the one of all of them.
const TIMEOUTS: u64 = 188;
const TIMEOUTS_MASK: u64 = 0xffff;

/// The figures of NVMe's health log.
const NVME: [&str; 5] = [
    "critical_warning",
    "available_spare",
    "available_spare_threshold",
    "percentage_used",
    "media_errors",
];

/// The program that is used when nobody names one, where it is installed.
pub(super) fn installed() -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join("smartctl")).find(|path| path.exists())
}

/// Why there are no figures, as the end of a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Silence {
    /// The program does not work as it should.
    Program(String),
    /// The device has none, or must not be asked.
    Device(String),
}

/// Asks a device; and whether the program does not work as it should.
pub(super) async fn ask(program: &Path, device: &Path, limit: Duration) -> (SmartStatus, bool) {
    let answered = match run(program, device, limit).await {
        Ok(text) => parse(&text),
        Err(why) => Err(Silence::Program(why)),
    };
    let broken = matches!(answered, Err(Silence::Program(_)));
    let status = answered.unwrap_or_else(|(Silence::Program(why) | Silence::Device(why))| {
        let problem = Some(format!("{} tells nothing: {why}", program.display()));
        SmartStatus { problem, ..SmartStatus::default() }
    });
    let device = device.display().to_string();
    (SmartStatus { device, read_unix_ms: unix_ms(), ..status }, broken)
}

/// What the program prints.
async fn run(program: &Path, device: &Path, limit: Duration) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.args(["--json", "-a"]).arg(device);
    command.env_clear().env("PATH", PLACES.join(":")).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own: whatever it starts ends with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|why| format!("it cannot be run: {why}"))?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let out = child.stdout.take().ok_or("it has no output")?;
    let done = tokio::time::timeout(limit, async {
        let text = read(out).await;
        let ended = child.wait().await;
        (text, ended)
    });
    let done = done.await;
    if let Some(group) = group.filter(|_| done.is_err()) {
        // It may just have ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
    match done {
        // Its exit status has bits for what is wrong with the disk; what it prints says it, too.
        Ok((text, Ok(_))) => text,
        Ok((_, Err(why))) => Err(why.to_string()),
        Err(_) => Err(format!("it gave no answer within {} seconds", limit.as_secs_f32())),
    }
}

async fn read(out: impl AsyncRead + Unpin) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let mut out = out.take(MOST + 1);
    out.read_to_end(&mut text).await.map_err(|why| why.to_string())?;
    if text.len() as u64 > MOST {
        return Err(format!("its output is longer than {MOST} bytes"));
    }
    Ok(text)
}

/// Reads what smartctl prints.
///
/// # Errors
/// Why nothing can be had from it.
fn parse(text: &[u8]) -> Result<SmartStatus, Silence> {
    let garbage = |why| Silence::Program(format!("its output cannot be read as JSON: {why}"));
    let all: Value = serde_json::from_slice(text).map_err(|why| garbage(why.to_string()))?;
    if !all.get("smartctl").is_some_and(Value::is_object) {
        let why = "its output is not that of smartctl --json".to_owned();
        return Err(Silence::Program(why));
    }
    let number = |path: &str| all.pointer(path).and_then(Value::as_u64);
    let nvme = all.get("nvme_smart_health_information_log");
    let attributes = match nvme {
        Some(log) => of_nvme(log),
        None => of_ata(all.pointer("/ata_smart_attributes/table")),
    };
    let passed = all.pointer("/smart_status/passed").and_then(Value::as_bool);
    if attributes.is_empty() && passed.is_none() {
        return Err(Silence::Device(complaint(&all)));
    }
    Ok(SmartStatus {
        model: words(all.get("model_name")),
        serial: words(all.get("serial_number")),
        passed,
        temperature_celsius: all.pointer("/temperature/current").and_then(Value::as_i64),
        power_on_hours: number("/power_on_time/hours"),
        attributes,
        ..SmartStatus::default()
    })
}

fn of_nvme(log: &Value) -> Vec<SmartAttribute> {
    let read = |name: &&str| {
        let value = log.get(*name).and_then(Value::as_u64)?;
        Some(SmartAttribute { id: None, name: (*name).to_owned(), value })
    };
    NVME.iter().filter_map(read).collect()
}

fn of_ata(table: Option<&Value>) -> Vec<SmartAttribute> {
    let rows = table.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let read = |(id, name): &(u64, &str)| {
        let row = rows.iter().find(|row| row.get("id").and_then(Value::as_u64) == Some(*id))?;
        let value = row.pointer("/raw/value").and_then(Value::as_u64)?;
        let value = if *id == TIMEOUTS { value & TIMEOUTS_MASK } else { value };
        let id = u32::try_from(*id).ok();
        Some(SmartAttribute { id, name: (*name).to_owned(), value })
    };
    ATA.iter().filter_map(read).collect()
}

/// Why it has no figures, in its own words.
fn complaint(all: &Value) -> String {
    let messages = all.pointer("/smartctl/messages").and_then(Value::as_array);
    let said = messages.into_iter().flatten().map(|message| words(message.get("string")));
    let said: Vec<String> = said.filter(|text| !text.is_empty()).take(3).collect();
    if said.is_empty() { "the device has no such figures".to_owned() } else { said.join("; ") }
}

/// A text from outside: one line, not too long.
fn words(text: Option<&Value>) -> String {
    let text = text.and_then(Value::as_str).unwrap_or_default();
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(LONGEST).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn smartctl(value: &Value) -> Value {
        let mut all = json!({"json_format_version": [1, 0],
            "smartctl": {"version": [7, 3], "exit_status": 0}});
        all.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        all
    }

    #[expect(clippy::needless_pass_by_value)]
    fn read(value: Value) -> Result<SmartStatus, Silence> {
        parse(smartctl(&value).to_string().as_bytes())
    }

    #[test]
    fn an_ata_disk() {
        let row = |id: u64, raw: u64| json!({"id": id, "name": "x", "raw": {"value": raw}});
        let found = read(json!({"model_name": "WDC \u{1b}[31m WD40", "serial_number": "S1",
            "smart_status": {"passed": true}, "temperature": {"current": 38},
            "power_on_time": {"hours": 12345},
            "ata_smart_attributes": {"table": [row(1, 7), row(5, 8), row(188, 0x0002_0002_0003),
                row(197, 2), json!({"id": 198}), json!(null)]}}))
        .unwrap();
        assert_eq!((&*found.model, &*found.serial), ("WDC  [31m WD40", "S1"));
        assert_eq!((found.passed, found.temperature_celsius), (Some(true), Some(38)));
        assert_eq!(found.power_on_hours, Some(12345));
        let names: Vec<_> = found.attributes.iter().map(|a| (a.id, &*a.name, a.value)).collect();
        assert_eq!(
            names,
            [
                (Some(5), "reallocated_sectors", 8),
                (Some(188), "command_timeouts", 3),
                (Some(197), "pending_sectors", 2),
            ]
        );
    }

    #[test]
    fn an_nvme_disk() {
        let log = json!({"critical_warning": 4, "temperature": 41, "available_spare": 7,
            "available_spare_threshold": 10, "percentage_used": 97, "media_errors": 3});
        let found = read(json!({"nvme_smart_health_information_log": log,
            "smart_status": {"passed": false}, "temperature": {"current": 41}}))
        .unwrap();
        assert_eq!(found.passed, Some(false));
        for (name, value) in NVME.iter().zip([4, 7, 10, 97, 3]) {
            assert_eq!(found.get(name), Some(value));
        }
    }

    #[test]
    fn what_cannot_be_read_is_one_sentence() {
        for (text, why) in [
            (&b"smartctl 7.3 2022-02-28\n\xff"[..], "cannot be read as JSON"),
            (b"", "cannot be read as JSON"),
            (b"[1,2]", "not that of smartctl"),
            (b"{\"smartctl\":7}", "not that of smartctl"),
        ] {
            let Err(Silence::Program(said)) = parse(text) else { panic!("{text:?}") };
            assert!(said.contains(why) && !said.contains('\n'), "{said}");
        }
        let silent = |why: &str| Err(Silence::Device(why.to_owned()));
        assert_eq!(read(json!({})), silent("the device has no such figures"));
        let error = json!({"smartctl": {"messages": [
            {"string": "/dev/vda: Unable to detect\ndevice type", "severity": "error"}, {}]}});
        assert_eq!(read(error), silent("/dev/vda: Unable to detect device type"));
        // Wrong types are as if nothing was there.
        let odd = json!({"smart_status": {"passed": true}, "temperature": "hot",
            "ata_smart_attributes": {"table": [{"id": 5, "raw": {"value": -1}}]}});
        let found = read(odd).unwrap();
        assert!(found.attributes.is_empty() && found.temperature_celsius.is_none());
    }

    /// A shell script. A process of its own writes it: what this one has open for writing, a program
    /// that another test is just starting has open for a moment, too, and then it cannot be run.
    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("smartctl");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
        let mut shell = std::process::Command::new("sh");
        assert!(shell.args(["-c", write]).arg(&path).arg(text).status().unwrap().success());
        path
    }

    async fn asked(text: &str, limit: Duration) -> SmartStatus {
        let dir = tempfile::tempdir().unwrap();
        let program = script(dir.path(), text);
        let (status, broken) = ask(&program, Path::new("/dev/sdx"), limit).await;
        assert_eq!(broken, status.problem.is_some());
        status
    }

    #[tokio::test]
    async fn the_program_runs_in_an_environment_of_its_own() {
        let text = r#"test -z "$HOME$CARGO_MANIFEST_DIR" || exit 1
            test "$*" = "--json -a /dev/sdx" || exit 1
            echo '{"smartctl":{},"smart_status":{"passed":true}}'
            exit 64"#;
        let status = asked(text, LIMIT).await;
        assert_eq!((status.passed, status.problem), (Some(true), None));
        assert_eq!(status.device, "/dev/sdx");
        let program = Path::new("/nowhere/smartctl");
        let (missing, _) = ask(program, Path::new("/dev/sdx"), LIMIT).await;
        assert!(missing.problem.unwrap().contains("/nowhere/smartctl tells nothing: it cannot be"));
    }

    #[tokio::test]
    async fn a_program_that_hangs_or_talks_without_end_is_ended() {
        // What it starts keeps its output open.
        let status = asked("sleep 1000 & wait", Duration::from_millis(300)).await;
        assert!(status.problem.unwrap().contains("no answer within 0.3 seconds"));
        let status = asked("exec cat /dev/zero", LIMIT).await;
        assert!(status.problem.unwrap().contains("longer than"));
    }
}
