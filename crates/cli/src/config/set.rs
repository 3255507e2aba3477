//! `config set`: keys changed in the configuration file, and the daemon restarted with it.

use super::{FILE, refuse};
use crate::output::Ui;
use clap::Args;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_daemon::config::{
    self, BadConfig, CONFIG_KEYS, ConfigError, ConfigFile, ConfigKey, DEFAULT_CONFIG, Setting,
};
use holdfast_daemon::conflicts_in;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// A key of the daemon and its value; that of a list has commas between
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = crate::parse::key_value)]
    settings: Vec<(String, String)>,
    /// The file [default: /etc/holdfast/holdfast.toml; made when it is not there]
    #[arg(long, value_name = "PATH", env = FILE, hide_env = true)]
    file: Option<PathBuf>,
    /// Restart the service holdfast, so that the daemon uses it; when it does not start, the file is
    /// put back as it was
    #[arg(long)]
    restart: bool,
}

pub(super) fn run(ui: &Ui, args: &Set) -> Result<(), ApiError> {
    let settings = settings(&args.settings)?;
    let path = args.file.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    let old = config::read_text(path, false).map_err(|error| refuse(ui, error))?;
    let new = edited(path, old.as_deref().unwrap_or_default(), &settings)
        .map_err(|error| refuse(ui, error))?;
    let changed = old.as_deref() != Some(&new);
    if changed {
        replace(path, &new).map_err(|error| unwritable(path, &error))?;
    }
    if args.restart {
        ui.phase("restarting the service holdfast");
        if let Err(why) = restart() {
            return Err(taken_back(path, changed.then_some(old.as_deref()), &why));
        }
    }
    told(ui, path, &settings, changed, args.restart);
    Ok(())
}

/// The keys and the values that these words mean.
fn settings(words: &[(String, String)]) -> Result<Vec<(&'static ConfigKey, Setting)>, ApiError> {
    let one = |(name, word): &(String, String)| {
        let Some(key) = CONFIG_KEYS.iter().find(|key| key.name == name) else {
            let message = format!("{name} was not set: the daemon has no such key");
            let hint = if holdfast_api::options::find(name).is_some() {
                format!("it is an option of resources: `holdfast set RESOURCE {name}={word}`")
            } else {
                "`holdfast config show` lists the keys".to_owned()
            };
            return Err(ApiError::new(ErrorCode::InvalidOption, message).hint(hint));
        };
        let setting = key.setting(word).map_err(|why| {
            let message = format!("{name} was not set: it cannot be {word:?}: {why}");
            ApiError::new(ErrorCode::InvalidOption, message)
        })?;
        Ok((key, setting))
    };
    words.iter().map(one).collect()
}

/// The text with all of them; a daemon can use it.
fn edited(
    path: &Path,
    text: &str,
    settings: &[(&ConfigKey, Setting)],
) -> Result<String, ConfigError> {
    let bad = |faults| ConfigError::Bad(BadConfig { file: path.to_owned(), faults });
    let mut text = text.to_owned();
    for (key, setting) in settings {
        text = config::with_key(&text, key, setting).map_err(bad)?;
    }
    let faults = ConfigFile::parse(&text).map_or_else(|faults| faults, |file| conflicts_in(&file));
    if faults.is_empty() { Ok(text) } else { Err(bad(faults)) }
}

fn unwritable(path: &Path, error: &io::Error) -> ApiError {
    let message = format!("the configuration file {} was not changed: {error}", path.display());
    ApiError::new(ErrorCode::InvalidPath, message)
}

/// Replaces the file by this text; after a crash at any moment there is the old or the new. Mode and
/// owner stay, and so does a symbolic link to it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let before = fs::metadata(&path).ok();
    let mut beside = path.clone().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What an interrupted command left.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let done = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
        if let Some(before) = &before {
            file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    })();
    if done.is_err() {
        // The first error counts.
        let _ = fs::remove_file(&beside);
    }
    done
}

/// Has systemd restart the daemon; returns when it is ready, or why it is not.
fn restart() -> Result<(), String> {
    let output = Command::new("systemctl").args(["restart", "holdfast"]).output();
    let output = output.map_err(|error| format!("systemctl cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().next().unwrap_or("systemctl gives no reason").trim().to_owned())
}

/// The refusal after a daemon that does not start with the file. When that was changed, `old` is its
/// text before, or that there was none.
fn taken_back(path: &Path, old: Option<Option<&str>>, why: &str) -> ApiError {
    let why = why.trim_end_matches('.');
    let file = path.display();
    let put_back = |old: Option<&str>| match old {
        Some(old) => replace(path, old),
        None => fs::remove_file(path),
    };
    let message = match old.map(|old| put_back(old).map(|()| restart())) {
        Some(Ok(Ok(()))) => format!(
            "{file} was put back as it was, and the daemon runs with that: with the change it does \
             not start: {why}"
        ),
        Some(Ok(Err(_))) => format!(
            "{file} was put back as it was: the daemon does not start, neither with the change nor \
             without it: {why}"
        ),
        Some(Err(error)) => format!(
            "{file} is changed, and cannot be put back ({error}): the daemon does not start: {why}"
        ),
        None => format!("{file} is as asked for, but the daemon does not start: {why}"),
    };
    ApiError::new(ErrorCode::InvalidRequest, message)
        .hint("`journalctl -u holdfast` says what is wrong; without systemd, restart it yourself")
}

fn told(ui: &Ui, path: &Path, settings: &[(&ConfigKey, Setting)], changed: bool, restarted: bool) {
    if ui.json {
        let values: BTreeMap<_, _> =
            settings.iter().map(|(key, value)| (key.name, value)).collect();
        let answer = json!({
            "file": path, "values": values, "changed": changed, "restarted": restarted,
        });
        return ui.json(&answer);
    }
    if ui.quiet {
        return;
    }
    let file = path.display();
    for (key, value) in settings {
        ui.line(&format!("{file}: {} = {value}", key.name));
    }
    // Which file the service reads says its unit.
    let is_usual = path == Path::new(DEFAULT_CONFIG);
    ui.line(match (restarted, changed) {
        (true, _) if !is_usual => {
            "the daemon was restarted; `systemctl cat holdfast` says which file it uses"
        }
        (true, _) => "the daemon was restarted and uses it",
        (false, true) => "the daemon uses it from its next start on: `systemctl restart holdfast`",
        (false, false) => "that is what the file had before",
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_with_its_mode_and_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real.toml"), dir.path().join("link.toml"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // What a command that was killed left.
        fs::write(dir.path().join("real.toml.new"), "half").unwrap();
        replace(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_option_of_resources_is_no_key_of_the_daemon() {
        let words = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
        let error = settings(&words("ping-int", "5")).unwrap_err();
        assert_eq!(
            error.hint.as_deref(),
            Some("it is an option of resources: `holdfast set RESOURCE ping-int=5`")
        );
        assert_eq!(settings(&words("colour", "red")).unwrap_err().code, ErrorCode::InvalidOption);
        let error = settings(&words("lock-memory", "yes")).unwrap_err();
        assert_eq!(
            error.message,
            "lock-memory was not set: it cannot be \"yes\": it is true or false"
        );
    }
}
