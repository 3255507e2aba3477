//! `support`: one archive with what somebody who helps needs, and no secret.
//!
//! What can hold secrets is not collected at all (the files of the state directory, keys, tokens,
//! what users keep in the cluster, environments); what is collected goes through [`redact`].

mod bundle;
mod kernel_files;
mod program;
mod redact;

use crate::args::{Global, Support};
use crate::doctor::{self, Facts, INFO_FILE, STATUS_FILE};
use crate::output::Ui;
use crate::session::Session;
use bundle::{Bundle, MOST_OF_PART};
use holdfast_api::daemon::{DaemonInfo, ResourcePlaces};
use holdfast_api::{ApiError, ErrorCode, Event, routes};
use jiff::Timestamp;
use redact::Redactor;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one answer or one program may take.
const LIMIT: Duration = Duration::from_secs(10);
/// No more resources, files and events than this are asked for.
const MOST_RESOURCES: usize = 200;
const MOST_FILES: usize = 2000;
const MOST_EVENTS: usize = 10_000;

/// Runs the command.
///
/// # Errors
/// When the archive cannot be written.
pub(crate) async fn run(ui: &Ui, global: &Global, args: &Support) -> Result<(), ApiError> {
    let now = Timestamp::now();
    let facts = doctor::of_here(ui, global, &args.files).await;
    let node = facts.info.as_ref().map(|info| info.node.as_str()).filter(|name| !name.is_empty());
    let top =
        format!("holdfast-support-{}-{}", node.unwrap_or("node"), now.strftime("%Y%m%dT%H%M%SZ"));
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{top}.tar.gz")));
    let fail = |why: &io::Error| {
        let why = holdfast_api::error::without_numbers(&why.to_string()).to_lowercase();
        let message = format!("the archive {} was not written: {why}", path.display());
        ApiError::new(ErrorCode::InvalidPath, message)
            .hint("--output names a new file in a directory with room")
    };
    let config = config_file(args, &facts);
    let redactor = redactor(&facts, config.as_deref());
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let mut bundle = Bundle::create(&path, &top, redactor, seconds).map_err(|why| fail(&why))?;
    collect(&mut bundle, ui, global, args, &facts, config.as_deref())
        .await
        .map_err(|why| fail(&why))?;
    let (parts, missing) = bundle.finish().map_err(|why| fail(&why))?;
    let shown = path.display().to_string();
    if ui.json {
        ui.json(&serde_json::json!({"path": shown, "parts": parts, "missing": missing}));
    } else if ui.quiet {
        ui.line(&shown);
    } else {
        ui.line(&shown);
        ui.line(&format!(
            "{parts} parts; {missing} could not be had, manifest.json in it says why. Secrets are \
             left out; look through it before you pass it on."
        ));
    }
    Ok(())
}

/// The configuration of the daemon that runs, or of the one that would.
fn config_file(args: &Support, facts: &Facts) -> Option<PathBuf> {
    let running = || {
        let pid = facts.info.as_ref()?.pid?;
        let line = facts.machine.text(&format!("proc/{pid}/cmdline"))?;
        let words: Vec<&str> = line.split('\0').collect();
        let after = words.iter().position(|word| *word == "--config").map(|at| at + 1);
        let given = words.iter().find_map(|word| word.strip_prefix("--config="));
        given.or_else(|| words.get(after?).copied()).map(PathBuf::from)
    };
    let default = PathBuf::from(holdfast_daemon::config::DEFAULT_CONFIG);
    let path = args.files.config.clone().or_else(running).unwrap_or(default);
    path.exists().then_some(path)
}

/// Knows what is secret on this machine, as far as it may be read.
fn redactor(facts: &Facts, config: Option<&Path>) -> Redactor {
    let mut redactor = Redactor::default();
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .map(|(key, value)| (lossy(key.as_encoded_bytes()), lossy(value.as_encoded_bytes())))
        .collect();
    if let Some(pid) = facts.info.as_ref().and_then(|info| info.pid) {
        let environment = facts.machine.text(&format!("proc/{pid}/environ")).unwrap_or_default();
        let pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
        variables.extend(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
    for (key, value) in variables {
        if redact::is_secret_variable(&key) {
            redactor.know(&value);
        }
        redactor.learn(&value);
    }
    if let Some(text) = config.and_then(|path| fs::read_to_string(path).ok()) {
        redactor.learn(&text);
    }
    let Some(info) = &facts.info else { return redactor };
    let own = Path::new(&info.state_dir).join("identity");
    let served = info.nbd_tls_certificates.as_ref().map(PathBuf::from);
    for dir in [Some(own), served].into_iter().flatten() {
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        for path in files.map(|file| file.path()).take(MOST_FILES) {
            if path.extension().is_some_and(|extension| extension == "pem")
                && let Ok(text) = fs::read_to_string(&path)
            {
                redactor.know_lines(&text);
            }
        }
    }
    redactor
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn collect(
    bundle: &mut Bundle,
    ui: &Ui,
    global: &Global,
    args: &Support,
    facts: &Facts,
    config: Option<&Path>,
) -> io::Result<()> {
    bundle
        .add("version.txt", || Ok(format!("holdfast {}\n", crate::version::text()).into_bytes()))?;
    let begun = Instant::now();
    let findings = doctor::examine(facts);
    let node = facts.info.as_ref().map(|info| info.node.clone()).unwrap_or_default();
    bundle.put("doctor.json", json(&findings.json(&node)), begun)?;
    bundle.add("doctor.txt", || Ok(findings.whole_text().into_bytes()))?;
    if let Some(config) = config {
        bundle.add("config/holdfast.toml", || {
            fs::read(config).map_err(|error| format!("{}: {error}", config.display()))
        })?;
    }
    let silent = || facts.silent.as_ref().map_or_else(String::new, |error| error.message.clone());
    let begun = Instant::now();
    let info = facts.info.as_ref();
    bundle.put(INFO_FILE, info.map_or_else(|| Err(silent()), json), begun)?;
    let status = facts.status.as_ref();
    bundle.put(STATUS_FILE, status.map_or_else(|| Err(silent()), json), begun)?;
    if let (Some(_), Some(info)) = (status, info) {
        let global = Global {
            socket: Some(info.socket.clone().into()),
            timeout: Some(LIMIT),
            ..global.clone()
        };
        of_daemon(bundle, &Session::new(ui, &global), info).await?;
    }
    if let Some(info) = info {
        bundle.add("state-dir.txt", || Ok(listing(Path::new(&info.state_dir))))?;
        for places in info.resources.iter().take(MOST_RESOURCES) {
            metadata(bundle, places)?;
        }
    }
    bundle.add("environment.txt", || Ok(environment_names()))?;
    logs(bundle, args, info)?;
    programs(bundle)?;
    kernel_files::add(bundle, &facts.machine, info.and_then(|info| info.pid))
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec_pretty(value).map_err(|error| error.to_string())
}

/// What only the daemon knows.
async fn of_daemon(bundle: &mut Bundle, session: &Session, info: &DaemonInfo) -> io::Result<()> {
    let mut calls = vec![
        ("version.json".to_owned(), routes::VERSION.to_owned()),
        ("cluster.json".to_owned(), routes::CLUSTER.to_owned()),
        ("metrics.txt".to_owned(), routes::METRICS.to_owned()),
        ("attachments.json".to_owned(), routes::ATTACHMENTS.to_owned()),
    ];
    for places in info.resources.iter().take(MOST_RESOURCES) {
        let name = &places.name;
        let parts = [
            ("options", routes::RESOURCE_OPTIONS),
            ("health", routes::RESOURCE_HEALTH),
            ("badblocks", routes::RESOURCE_BADBLOCKS),
            ("verify", routes::RESOURCE_VERIFY),
            ("scrub", routes::RESOURCE_SCRUB),
        ];
        let journal = places.journal.as_ref().map(|_| ("log", routes::RESOURCE_LOG));
        for (part, route) in parts.into_iter().chain(journal) {
            calls.push((format!("resources/{name}/{part}.json"), routes::of(route, name)));
        }
    }
    for (name, route) in calls {
        let begun = Instant::now();
        let answer = if bundle.is_late() {
            Err("the time for the archive was over".to_owned())
        } else {
            session.client.get_text(&route).await.map_err(|error| error.to_string())
        };
        bundle.put(&name, answer.map(String::into_bytes), begun)?;
    }
    let begun = Instant::now();
    let events = tokio::time::timeout(LIMIT, events(session)).await;
    let events = events.unwrap_or_else(|_| Err("it took too long".to_owned()));
    bundle.put("events.jsonl", events, begun)
}

/// The dump of events, a line each.
async fn events(session: &Session) -> Result<Vec<u8>, String> {
    let text = |error: holdfast_api::ClientError| error.to_string();
    let mut stream = session.client.events().await.map_err(text)?;
    let mut lines = Vec::new();
    for _ in 0..MOST_EVENTS {
        let Some(event): Option<Event> = stream.next().await.map_err(text)? else { break };
        serde_json::to_writer(&mut lines, &event).map_err(|error| error.to_string())?;
        lines.push(b'\n');
        if event.is_end_of_dump() {
            break;
        }
    }
    Ok(lines)
}

/// The head of the metadata, as `meta dump` prints it.
fn metadata(bundle: &mut Bundle, places: &ResourcePlaces) -> io::Result<()> {
    let Some(disk) = &places.disk else { return Ok(()) };
    let (path, internal) = places.meta.as_ref().map_or((disk, true), |meta| (meta, false));
    let name = format!("resources/{}/metadata.json", places.name);
    bundle.add(&name, || {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut arguments = vec!["meta", "dump", "--json", path.as_str()];
        arguments.extend(internal.then_some("--internal"));
        program::run(&own, &arguments, LIMIT, MOST_OF_PART as u64)
    })
}

/// Mode, owner, size and name of each file of a directory; not what is in them.
fn listing(dir: &Path) -> Vec<u8> {
    let mut lines = String::new();
    let mut left = MOST_FILES;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if left == 0 {
                lines.push_str("and more\n");
                return lines.into_bytes();
            }
            left -= 1;
            lines.push_str(&format!(
                "{:06o} {}:{} {:>12} {}\n",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.len(),
                path.display()
            ));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    lines.into_bytes()
}

/// The names of the variables that can matter; never what they hold.
fn environment_names() -> Vec<u8> {
    let names = std::env::vars_os().map(|(name, _)| lossy(name.as_encoded_bytes()));
    let wanted = ["HOLDFAST_", "AWS_", "NO_COLOR", "TERM", "LANG", "LC_", "PATH"];
    let mut names: Vec<String> =
        names.filter(|name| wanted.iter().any(|start| name.starts_with(start))).collect();
    names.sort_unstable();
    format!("{}\n", names.join("\n")).into_bytes()
}

/// The last lines of the logs of the daemon and of the kernel.
fn logs(bundle: &mut Bundle, args: &Support, info: Option<&DaemonInfo>) -> io::Result<()> {
    let lines = args.lines.to_string();
    let most = MOST_OF_PART as u64 * 4;
    let journal = ["-u", "holdfast", "--no-pager", "-o", "short-iso", "-n", &lines];
    bundle.add("logs/journalctl.txt", || {
        program::run(Path::new("journalctl"), &journal, LIMIT, most)
    })?;
    bundle.add("logs/dmesg.txt", || {
        let all = program::run(Path::new("dmesg"), &["--ctime"], LIMIT, most)?;
        Ok(last_lines(&all, args.lines).to_vec())
    })?;
    // Without systemd the log is often a file.
    let Some(pid) = info.and_then(|info| info.pid) else { return Ok(()) };
    let target = PathBuf::from(format!("/proc/{pid}/fd/2"));
    if !fs::metadata(&target).is_ok_and(|meta| meta.is_file()) {
        return Ok(());
    }
    bundle.add("logs/daemon.txt", || {
        let end = end_of(&target).map_err(|error| error.to_string())?;
        Ok(last_lines(&end, args.lines).to_vec())
    })
}

/// The last bytes of a file, as many as a part may have.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(MOST_OF_PART as u64)))?;
    let mut bytes = Vec::new();
    file.take(MOST_OF_PART as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn last_lines(text: &[u8], count: u32) -> &[u8] {
    let text_end = text.strip_suffix(b"\n").unwrap_or(text);
    let breaks = text_end.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = breaks.map(|(at, _)| at + 1).nth((count as usize).saturating_sub(1));
    &text[start.unwrap_or(0)..]
}

/// What programs of the system tell.
fn programs(bundle: &mut Bundle) -> io::Result<()> {
    const COLUMNS: &str = "NAME,MAJ:MIN,TYPE,SIZE,RO,ROTA,FSTYPE,MOUNTPOINT,MODEL";
    let calls: [(&str, &[&str]); 10] = [
        ("uname", &["-a"]),
        ("lsblk", &["-o", COLUMNS]),
        ("df", &["-hT"]),
        ("mount", &[]),
        ("free", &["-m"]),
        ("ss", &["-tanp"]),
        ("ip", &["-br", "address"]),
        ("timedatectl", &["status", "--no-pager"]),
        ("systemctl", &["status", "holdfast", "--no-pager", "-l"]),
        ("losetup", &["-l"]),
    ];
    for (program, arguments) in calls {
        bundle.add(&format!("programs/{program}.txt"), || {
            program::run(Path::new(program), arguments, LIMIT, MOST_OF_PART as u64)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_the_last() {
        for (text, count, due) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 1, "c"), ("a\nb\n", 5, "a\nb\n"), ("", 3, "")]
        {
            assert_eq!(last_lines(text.as_bytes(), count), due.as_bytes(), "{text:?} {count}");
        }
    }

    #[test]
    fn a_listing_has_names_and_not_contents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("in/key.pem"), "opensesame").unwrap();
        let text = String::from_utf8(listing(dir.path())).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("          10 ") && !text.contains("opensesame"), "{text}");
    }
}
