//! `restore`.

use super::{AnyStore, Restore, moment, open_archive, refused};
use crate::events::time;
use crate::output::Ui;
use holdfast_api::error::without_numbers;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_archive::{Archive, ArchiveError, Checkpoint, FileTarget, Plan, Progress};
use holdfast_units::format_size;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What is behind the name of a file until it is the whole state.
const UNFINISHED: &str = ".restoring";
/// What is behind the name of the file that says how far it is.
const STATE: &str = ".restoring-state";
/// A file of it is never longer, in bytes.
const MAX_STATE: u64 = 4096;

/// How far a restore is: enough to know whether another one goes on with it.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    resource: String,
    line: u32,
    base_from: u64,
    base_time: u64,
    position: u64,
    size: u64,
    done: Checkpoint,
}

pub(crate) fn restore(ui: &Ui, args: &Restore) -> Result<(), ApiError> {
    let wanted = moment::parse(&args.to, jiff::Timestamp::now()).map_err(|why| {
        ApiError::new(ErrorCode::Usage, format!("resource {} was not restored: {why}", args.name))
    })?;
    let fail = |error: &ArchiveError| refused(&args.from, &args.name, error);
    let archive = open_archive(&args.from, &args.name)?;
    let plan = archive.plan(wanted, args.line).map_err(|error| fail(&error))?;
    let device = fs::metadata(&args.into).is_ok_and(|found| found.file_type().is_block_device());
    let result = if device {
        onto_device(ui, args, &archive, &plan)
    } else {
        into_file(ui, args, &archive, &plan)
    };
    result.map_err(|error| match error {
        Failed::Archive(error) => fail(&error),
        Failed::Into(why) => into_error("restored", &args.name, &args.into, &why),
    })?;
    report(ui, args, &plan);
    Ok(())
}

enum Failed {
    Archive(ArchiveError),
    Into(io::Error),
}

impl From<ArchiveError> for Failed {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(error)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Into(error)
    }
}

/// Why something was not `done` into a file or device.
pub(super) fn into_error(done: &str, name: &str, into: &Path, why: &io::Error) -> ApiError {
    let text = without_numbers(&why.to_string());
    let message = format!("resource {name} was not {done} into {}: {text}", into.display());
    match why.kind() {
        ErrorKind::AlreadyExists => ApiError::new(ErrorCode::DiskHoldsData, message)
            .hint("give another path, or --overwrite if what is there may be lost"),
        ErrorKind::StorageFull => ApiError::new(ErrorCode::NoSpace, message),
        ErrorKind::ResourceBusy => ApiError::new(ErrorCode::DiskBusy, message)
            .hint("unmount the device, or stop what uses it"),
        _ => ApiError::new(ErrorCode::DiskUnusable, message),
    }
}

fn report(ui: &Ui, args: &Restore, plan: &Plan) {
    if ui.json {
        ui.json(&json!({
            "resource": args.name,
            "path": args.into,
            "line": plan.line,
            "position": plan.position.0,
            "size_bytes": plan.size,
            "base_unix_ms": plan.base_time.unix_millis(),
        }));
    } else if !ui.quiet {
        ui.line(&format!(
            "{} is resource {} as it was at position {} ({}; base image of {}, {} of the journal)",
            args.into.display(),
            args.name,
            plan.position,
            format_size(plan.size),
            time(plan.base_time.unix_millis()),
            format_size(plan.log_bytes),
        ));
    }
}

/// A block device has no place for the state of an interrupted restore: it is done anew.
fn onto_device(
    ui: &Ui,
    args: &Restore,
    archive: &Archive<AnyStore>,
    plan: &Plan,
) -> Result<(), Failed> {
    let mut target = FileTarget::open(&args.into, plan.size, args.overwrite, false)?;
    let bar = bar(ui, plan.base_bytes + plan.log_bytes);
    archive.restore(plan, &mut target, false, Checkpoint::default(), &mut |progress| {
        if let Progress::Done(bytes) = progress {
            bar.set_position(bytes);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// The file gets its name when it is the whole state.
fn into_file(
    ui: &Ui,
    args: &Restore,
    archive: &Archive<AnyStore>,
    plan: &Plan,
) -> Result<(), Failed> {
    let file = Unfinished::begin(&args.into, args.overwrite)?;
    let (unfinished, state_path) = (file.path(), beside(&args.into, STATE));
    let mut state = State {
        resource: archive.manifest().resource().to_string(),
        line: plan.line,
        base_from: plan.base_from.0,
        base_time: plan.base_time.0,
        position: plan.position.0,
        size: plan.size,
        done: Checkpoint::default(),
    };
    let earlier = read_state(&state_path).filter(|_| unfinished.exists());
    if let Some(earlier) = earlier {
        let done = earlier.done;
        if (State { done: state.done, ..earlier }) == state {
            state.done = done;
            if !ui.quiet && !ui.json {
                ui.line(&format!("going on with {}", unfinished.display()));
            }
        }
    }
    let go_on = state.done != Checkpoint::default();
    let mut target = FileTarget::open(unfinished, plan.size, true, go_on)?;
    let bar = bar(ui, plan.base_bytes + plan.log_bytes);
    // What an interrupted restore wrote behind its last checkpoint is there: zeroes are written.
    let blank = target.blank();
    archive.restore(plan, &mut target, blank, state.done, &mut |progress| {
        match progress {
            Progress::Done(bytes) => bar.set_position(bytes),
            Progress::Checkpoint(done) => {
                state.done = done;
                write_state(&state_path, &state)?;
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    drop(target);
    file.finish()?;
    // It says nothing any more.
    let _ = fs::remove_file(&state_path);
    Ok(())
}

/// A file that gets its name when it is whole; or a block device, which has it.
pub(super) struct Unfinished {
    into: PathBuf,
    path: PathBuf,
    device: bool,
}

impl Unfinished {
    /// Where to write to.
    ///
    /// # Errors
    /// When there is a file of that name, and it is not to be overwritten.
    pub(super) fn begin(into: &Path, overwrite: bool) -> io::Result<Self> {
        let found = fs::metadata(into);
        let device = found.as_ref().is_ok_and(|found| found.file_type().is_block_device());
        if !device && !overwrite && fs::symlink_metadata(into).is_ok() {
            let why = "there is a file of that name already";
            return Err(io::Error::new(ErrorKind::AlreadyExists, why));
        }
        let path = if device { into.to_owned() } else { beside(into, UNFINISHED) };
        Ok(Self { into: into.to_owned(), path, device })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) const fn is_device(&self) -> bool {
        self.device
    }

    /// It is whole, and durable.
    ///
    /// # Errors
    /// When it cannot get its name.
    pub(super) fn finish(&self) -> io::Result<()> {
        if self.device {
            return Ok(());
        }
        fs::rename(&self.path, &self.into)?;
        sync_parent(&self.into)
    }
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(end);
    name.into()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// What cannot be read is the state of nothing.
fn read_state(path: &Path) -> Option<State> {
    let len = fs::metadata(path).ok()?.len();
    let bytes = if len <= MAX_STATE { fs::read(path).ok()? } else { return None };
    serde_json::from_slice(&bytes).ok()
}

fn write_state(path: &Path, state: &State) -> io::Result<()> {
    let unfinished = beside(path, ".new");
    let mut file = File::create(&unfinished)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_parent(path)
}

/// A bar of bytes; hidden where nobody looks.
pub(super) fn bar(ui: &Ui, total: u64) -> ProgressBar {
    if ui.json || ui.quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let style = "{bar:40} {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta}";
    // The template is a constant that is right.
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar
}
