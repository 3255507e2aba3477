//! Opening the files and devices of an export.

use super::export::Served;
use super::layout::{Layout, Shape};
use super::part::{Part, PartOptions, State};
use super::record::{Doubt, Record, decide};
use super::volume::{Marks, Tell, Volume};
use holdfast_api::error::without_numbers;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_store::{BufferPool, OpenError, OpenErrorKind};
use holdfast_units::format_size;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What an export is to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) paths: Vec<PathBuf>,
    pub(super) shape: Shape,
    pub(super) read_only: bool,
    pub(super) resizable: bool,
    pub(super) direct: Option<bool>,
    pub(super) track_changes: bool,
    /// The size of each path; those that are not there are made with it.
    pub(super) size: Option<u64>,
}

impl Plan {
    /// What the messages call it.
    fn title(&self) -> String {
        if self.name.is_empty() { "the export".into() } else { format!("export {}", self.name) }
    }

    fn refuse(&self, code: ErrorCode, why: &str) -> ApiError {
        ApiError::new(code, format!("{} was not served: {why}", self.title()))
    }

    /// Opens its parts. Nothing is written but what a mirror remembers of them.
    ///
    /// # Errors
    /// Why it cannot be served, in one sentence. Files that were made are gone again.
    pub(super) fn open(&self, pool: &BufferPool, tell: &Tell) -> Result<Served, ApiError> {
        self.check_paths()?;
        let made = Made::make(self)?;
        let served = self.open_all(pool, tell)?;
        made.keep();
        Ok(served)
    }

    fn open_all(&self, pool: &BufferPool, tell: &Tell) -> Result<Served, ApiError> {
        let options = PartOptions { read_only: self.read_only, direct: self.direct };
        let parts = self.paths.iter().map(|path| Part::open(path, options, pool));
        let parts: Result<Vec<Part>, _> = parts.collect();
        let mut parts = parts.map_err(|why| self.unusable(&why))?;
        self.check_sizes(&parts)?;
        // One part alone is what it is, whatever the layout.
        let shape = if parts.len() == 1 { Shape::Concat } else { self.shape };
        let layout = self.layout(shape, &parts)?;
        let marks = if shape == Shape::Mirror {
            self.mirror(&mut parts)?
        } else {
            self.leave_mirrors(&parts)?;
            None
        };
        let volume = Volume::new(layout, parts, self.track_changes, marks, Tell::clone(tell));
        volume.mark_open();
        Ok(Served {
            name: self.name.clone(),
            description: self.description.clone(),
            read_only: self.read_only,
            resizable: self.resizable,
            volume,
        })
    }

    fn check_paths(&self) -> Result<(), ApiError> {
        let mut seen = Vec::new();
        for path in &self.paths {
            // What is wrong with it, opening will say.
            let Ok(metadata) = path.metadata() else { continue };
            let is_device = !metadata.is_file();
            let identity =
                if is_device { (0, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
            if seen.contains(&(is_device, identity)) {
                let why = format!("{} is named twice", path.display());
                return Err(self.refuse(ErrorCode::InvalidPath, &why).hint("name each part once"));
            }
            seen.push((is_device, identity));
        }
        Ok(())
    }

    fn check_sizes(&self, parts: &[Part]) -> Result<(), ApiError> {
        let Some(size) = self.size else { return Ok(()) };
        let Some(other) = parts.iter().find(|part| part.size() != size) else { return Ok(()) };
        let why = format!(
            "{} has {}, not {}",
            other.path.display(),
            format_size(other.size()),
            format_size(size)
        );
        Err(self.refuse(ErrorCode::InvalidSize, &why).hint(
            "without `--size` it is served as it is; files that are not there are made with it",
        ))
    }

    fn unusable(&self, why: &OpenError) -> ApiError {
        let code = match why.kind {
            OpenErrorKind::NotFound => ErrorCode::DiskNotFound,
            OpenErrorKind::InUse => ErrorCode::DiskBusy,
            OpenErrorKind::TooSmall(_) => ErrorCode::DiskTooSmall,
            _ => ErrorCode::DiskUnusable,
        };
        let error = self.refuse(code, &why.to_string());
        match why.kind {
            OpenErrorKind::ReadOnly | OpenErrorKind::PermissionDenied if !self.read_only => {
                error.hint("`--read-only` serves what cannot be written")
            }
            OpenErrorKind::NotFound if !self.read_only => {
                error.hint("`--size 10G` makes a file that is not there")
            }
            _ => error,
        }
    }

    fn layout(&self, shape: Shape, parts: &[Part]) -> Result<Layout, ApiError> {
        let block = parts.iter().map(|part| part.info().block_size).max().unwrap_or(1);
        let odd = |part: &&Part| !part.size().is_multiple_of(block.into());
        let inner = &parts[..parts.len() - 1];
        if let Some(part) = inner.iter().find(odd).filter(|_| shape == Shape::Concat) {
            let why = format!(
                "{} has {} bytes, and only the last part may have a size that is not a multiple \
                 of {block}",
                part.path.display(),
                part.size()
            );
            return Err(self
                .refuse(ErrorCode::InvalidSize, &why)
                .hint("name it last, or use `--direct never`"));
        }
        let cut = |len: u64| len / u64::from(block) * u64::from(block);
        let lens: Vec<u64> = parts.iter().map(|part| cut(part.size())).collect();
        Layout::new(shape, &lens).ok_or_else(|| {
            let why = match shape {
                Shape::Stripe { chunk } => {
                    format!("a part is smaller than the chunk of {}", format_size(chunk))
                }
                Shape::Concat | Shape::Mirror => "its size is nothing, or too large".into(),
            };
            self.refuse(ErrorCode::InvalidSize, &why)
        })
    }

    /// Finds out which parts of a mirror have everything. `None` where nothing can be remembered.
    fn mirror(&self, parts: &mut [Part]) -> Result<Option<Marks>, ApiError> {
        let remembers = self.read_only || parts.iter().all(can_remember);
        let read = |part: &Part| part.file().filter(|_| remembers).and_then(Record::read);
        let found: Vec<_> = parts.iter().map(read).collect();
        let decision = decide(&found).map_err(|doubt| self.doubtful(doubt))?;
        let nothing_known = decision.set.is_none();
        for (part, good) in parts.iter_mut().zip(&decision.good) {
            part.state = match (*good, self.read_only) {
                (true, _) => State::InSync,
                // Nobody writes: they are equal if whoever named them says so.
                (false, true) if nothing_known => State::InSync,
                (false, true) => State::Failed,
                (false, false) => State::Filling,
            };
        }
        if !remembers {
            self.leave_mirrors(parts)?;
        }
        if self.read_only || !remembers {
            return Ok(None);
        }
        let set = decision.set.map_or_else(|| self.new_set(), Ok)?;
        Ok(Some(Marks { set, generation: decision.generation }))
    }

    /// The name of a new mirror.
    fn new_set(&self) -> Result<String, ApiError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|why| {
            self.refuse(ErrorCode::Internal, &format!("the system has no randomness: {why}"))
        })?;
        Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn doubtful(&self, doubt: Doubt) -> ApiError {
        let path = |part: usize| self.paths[part].display();
        let first = path(0);
        match doubt {
            Doubt::OtherMirror(part) => self
                .refuse(
                    ErrorCode::UnrelatedData,
                    &format!("{} belongs to another mirror than the parts before it", path(part)),
                )
                .hint(forget_hint(&path(part).to_string())),
            Doubt::FirstIsNew(part) => self
                .refuse(
                    ErrorCode::UnrelatedData,
                    &format!("{first} is new, and {} belongs to a mirror already", path(part)),
                )
                .hint(format!(
                    "name the part that has the data first; to start anew with the data of \
                     {first}: {}",
                    forget_hint(&path(part).to_string())
                )),
        }
    }

    /// A part of a mirror that is written alone has from then on what the others miss.
    fn leave_mirrors(&self, parts: &[Part]) -> Result<(), ApiError> {
        if self.read_only {
            return Ok(());
        }
        for part in parts {
            let Some(file) = part.file() else { continue };
            let Some(record) = Record::read(file) else { continue };
            let next = Record { generation: record.generation + 1, clean: None, ..record };
            next.write(file).map_err(|why| {
                let path = part.path.display();
                let why = format!("{path} is part of a mirror, and that cannot be noted: {why}");
                self.refuse(ErrorCode::DiskUnusable, &why)
            })?;
        }
        Ok(())
    }
}

/// Files that were made for an export; gone again unless they are kept.
struct Made(Vec<PathBuf>);

impl Made {
    fn make(plan: &Plan) -> Result<Self, ApiError> {
        let mut made = Self(Vec::new());
        let Some(size) = plan.size else { return Ok(made) };
        for path in plan.paths.iter().filter(|path| path.symlink_metadata().is_err()) {
            let file = File::options().write(true).create_new(true).open(path);
            let sized = file.and_then(|file| {
                made.0.push(path.clone());
                file.set_len(size)
            });
            sized.map_err(|why| {
                let why = format!("{} cannot be made: {}", path.display(), plain(&why));
                plan.refuse(ErrorCode::DiskUnusable, &why)
            })?;
        }
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // It is empty: nothing is lost when it stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An error without the number that people do not need.
fn plain(why: &io::Error) -> String {
    without_numbers(&why.to_string())
}

fn forget_hint(path: &str) -> String {
    format!("setfattr -x user.holdfast.mirror {path}")
}

/// Whether a part can carry a record; found out by writing one that says nothing.
fn can_remember(part: &Part) -> bool {
    let Some(file) = part.file().filter(|_| part.is_file()) else { return false };
    match Record::read(file) {
        Some(_) => true,
        None => Record::probe(file).is_ok(),
    }
}

/// What people call the parts of an export.
pub(super) fn list_parts(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| short(path)).collect();
    names.join(" + ")
}

fn short(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into())
}
