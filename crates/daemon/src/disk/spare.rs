//! Spares that somebody wants for a disk: what may be used as one.

use super::{Wanted, bytes_of, loop_device_of, same_object};
use crate::local::LocalDisk;
use crate::remote;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::remap::MAX_SPARES;
use holdfast_units::BLOCK_SIZE;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

impl Wanted {
    /// That spares can be where they are wanted. Their content is looked at when they are made.
    pub(super) fn check_spares(&self, disk: &LocalDisk) -> Result<(), ApiError> {
        if self.spares.is_empty() {
            return Ok(());
        }
        if remote::uri_of(&disk.path).is_some() {
            return Err(self.no_remote());
        }
        if self.spares.region.is_some() && !self.spares.paths.is_empty() {
            let why = "a spare is either a part of the disk or on its own";
            return Err(self
                .refuse(ErrorCode::InvalidRequest, why)
                .hint("leave one of --spare and --spare-size away"));
        }
        if self.spares.paths.len() > MAX_SPARES {
            let why = format!("a disk has {MAX_SPARES} spares at most");
            return Err(self
                .refuse(ErrorCode::InvalidRequest, &why)
                .hint("give fewer, and larger ones"));
        }
        if let Some(size) = self.spares.region
            && (size == 0 || !size.is_multiple_of(BLOCK_SIZE))
        {
            let why = format!("a spare of {size} bytes is no multiple of {BLOCK_SIZE}");
            let up = (size / BLOCK_SIZE + 1) * BLOCK_SIZE;
            return Err(self
                .refuse(ErrorCode::InvalidSize, &why)
                .hint(format!("for example {up}")));
        }
        for (number, path) in self.spares.paths.iter().enumerate() {
            self.check_spare(disk, path, &self.spares.paths[..number])?;
        }
        Ok(())
    }

    /// The refusal of spares for a disk on another machine.
    pub(crate) fn no_remote(&self) -> ApiError {
        let why = "a disk on another machine has no spares: its bad sectors are that machine's";
        self.refuse(ErrorCode::InvalidPath, why).hint("leave --spare and --spare-size away")
    }

    /// That nobody uses this path for something else.
    pub(crate) fn check_spare(
        &self,
        disk: &LocalDisk,
        path: &Path,
        others: &[std::path::PathBuf],
    ) -> Result<(), ApiError> {
        let shown = path.display();
        let text = path.to_string_lossy();
        if remote::is_uri(&text) {
            let why = format!("the spare {shown} is on another machine");
            return Err(self
                .refuse(ErrorCode::InvalidPath, &why)
                .hint("give a file or a block device of this machine"));
        }
        let path = &self.path(&text, "the spare")?;
        self.check_foreign(path, "the spare")?;
        let found = fs::metadata(path).map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotFound => format!("the spare {shown} does not exist"),
                _ => format!("the spare {shown} cannot be used: {error}"),
            };
            let code = match error.kind() {
                io::ErrorKind::NotFound => ErrorCode::DiskNotFound,
                _ => ErrorCode::DiskUnusable,
            };
            self.refuse(code, &why)
                .hint(format!("give a block device, or make a file: `truncate --size 1G {shown}`"))
        })?;
        if !found.file_type().is_file() && !found.file_type().is_block_device() {
            let why = format!("the spare {shown} is neither a regular file nor a block device");
            return Err(self.refuse(ErrorCode::DiskUnusable, &why));
        }
        let places = [Some(disk.path.as_path()), disk.meta.as_deref()].into_iter().flatten();
        let mut places = places.chain(others.iter().map(std::path::PathBuf::as_path));
        if places.any(|place| place == path || same_object(place, path)) {
            let why = format!("the spare {shown} is the disk, its metadata, or given twice");
            return Err(self
                .refuse(ErrorCode::InvalidPath, &why)
                .hint("`--spare-size SIZE` takes a part of the disk itself"));
        }
        self.check_free(path, "the spare")?;
        if let Some(device) = loop_device_of(path).filter(|_| found.is_file()) {
            let why = format!("the spare {shown} is in use: it is the file of the device {device}");
            return Err(self
                .refuse(ErrorCode::DiskBusy, &why)
                .hint(format!("unmount it and run `losetup -d {device}`")));
        }
        bytes_of(path).map(drop).map_err(|error| {
            let why = format!("the spare {shown} cannot be read: {error}");
            self.refuse(ErrorCode::DiskUnusable, &why)
        })
    }
}
