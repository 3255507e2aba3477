//! `meta dump` and `meta check`: metadata of a resource that no daemon uses.

use crate::args::{Meta, MetaFile};
use crate::output::Ui;
use holdfast_api::error::without_numbers;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::{
    Finding, MetaDump, MetaError, MetaImage, Placement, ReadAt, ReadFailed, Severity,
};
use holdfast_units::BLOCK_SIZE;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};

/// Runs one of them.
pub(crate) fn run(ui: &Ui, command: &Meta) -> Result<(), ApiError> {
    match command {
        Meta::Dump(file) => dump(ui, file),
        Meta::Check(file) => check(ui, file),
    }
}

fn dump(ui: &Ui, args: &MetaFile) -> Result<(), ApiError> {
    let source = Source::open(args)?;
    let dump = load(&source, args)?.dump();
    if ui.json {
        ui.json(&dump_json(&dump));
    } else {
        ui.text(&dump.to_string());
    }
    Ok(())
}

fn check(ui: &Ui, args: &MetaFile) -> Result<(), ApiError> {
    let source = Source::open(args)?;
    let findings = load(&source, args)?.check();
    let damaged = findings.iter().filter(|f| f.severity > Severity::Note).count();
    if ui.json {
        ui.json(&json!({"damaged": damaged > 0, "findings": findings_json(&findings)}));
    } else {
        for finding in &findings {
            ui.line(&finding.to_string());
        }
        if damaged == 0 && !ui.quiet {
            ui.line(&format!("the metadata in {} is whole", args.path.display()));
        }
    }
    if damaged == 0 {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::MetadataInvalid,
        format!("the metadata in {} is damaged: {damaged} things are wrong", args.path.display()),
    ))
}

fn load<'a>(source: &'a Source, args: &MetaFile) -> Result<MetaImage<'a>, ApiError> {
    let placement = if args.internal {
        Placement::Internal { device_len: source.len }
    } else {
        Placement::External { base: 0 }
    };
    MetaImage::load(source, placement).map_err(|why| unreadable(args, &why))
}

fn unreadable(args: &MetaFile, why: &MetaError) -> ApiError {
    let hint = if args.internal {
        "a file that has only metadata is read without --internal"
    } else {
        "metadata at the end of a disk is read with --internal"
    };
    ApiError::new(
        ErrorCode::MetadataInvalid,
        format!("the metadata in {} was not read: {why}", args.path.display()),
    )
    .hint(hint)
}

/// A file or block device with metadata.
struct Source {
    file: File,
    len: u64,
}

impl Source {
    fn open(args: &MetaFile) -> Result<Self, ApiError> {
        let fail = |why: &io::Error| {
            let code = match why.kind() {
                io::ErrorKind::NotFound => ErrorCode::DiskNotFound,
                _ => ErrorCode::DiskUnusable,
            };
            let text = why.to_string();
            let why = without_numbers(&text).to_lowercase();
            ApiError::new(
                code,
                format!("the metadata in {} was not read: {why}", args.path.display()),
            )
        };
        let kind = std::fs::metadata(&args.path).map_err(|why| fail(&why))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(fail(&io::Error::other("it is neither a file nor a block device")));
        }
        let mut file = File::open(&args.path).map_err(|why| fail(&why))?;
        let len = file.seek(SeekFrom::End(0)).map_err(|why| fail(&why))?;
        Ok(Self { file, len })
    }
}

impl ReadAt for Source {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        self.file.read_exact_at(buf, offset).map_err(|why| ReadFailed(why.to_string()))
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(at) => Some(at),
            Err(rustix::io::Errno::NXIO) => None,
            // Block devices and some filesystems cannot tell.
            Err(_) => (offset < self.len).then_some(offset),
        }
    }
}

fn dump_json(dump: &MetaDump) -> Value {
    let superblock = &dump.superblock;
    let history = superblock.history.iter().filter(|generation| !generation.is_none());
    let peers = dump.peers.iter().map(|peer| {
        json!({
            "node": peer.node.number(),
            "bitmap": peer.record.bitmap.to_string(),
            "current": peer.record.current.to_string(),
            "flags": peer.record.flags.to_string(),
            "out_of_sync_bytes": peer.set * BLOCK_SIZE,
            "lost_pages": peer.lost,
        })
    });
    json!({
        "resource": superblock.resource.to_string(),
        "node": superblock.node.number(),
        "size_bytes": superblock.layout.device_size(),
        "flags": superblock.flags.to_string(),
        "sequence": superblock.sequence,
        "placement": superblock.layout.placement().to_string(),
        "generation": superblock.current.to_string(),
        "history": history.map(ToString::to_string).collect::<Vec<_>>(),
        "al_extents": superblock.layout.al_extents(),
        "hot_extents": dump.hot_extents,
        "bitmap_slots": superblock.layout.slots(),
        "peers": peers.collect::<Vec<_>>(),
        "findings": findings_json(&dump.findings),
    })
}

fn findings_json(findings: &[Finding]) -> Vec<Value> {
    let severity = |severity| match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    findings.iter().map(|f| json!({"severity": severity(f.severity), "what": f.what})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::{DEFAULT_AL_EXTENTS, MetaLayout, Superblock, format_blocks};
    use holdfast_units::{NodeId, ResourceId};
    use std::path::Path;

    fn quiet() -> Ui {
        let mut ui = Ui::plain(false, false);
        ui.quiet = true;
        ui
    }

    /// A file with fresh metadata for a device of 64 MiB.
    fn fresh(path: &Path, internal: bool) {
        const DEVICE: u64 = 64 << 20;
        let placement = if internal {
            Placement::Internal { device_len: DEVICE }
        } else {
            Placement::External { base: 0 }
        };
        let blocks = holdfast_format::al_blocks_for(DEFAULT_AL_EXTENTS);
        let size =
            if internal { MetaLayout::usable_size(DEVICE, blocks, 8).unwrap() } else { DEVICE };
        let layout = MetaLayout::new(size, DEFAULT_AL_EXTENTS, blocks, 8, placement).unwrap();
        let node = NodeId::new(0).unwrap();
        let mut superblock = Superblock::new(ResourceId([7; 16]), node, [0; 16], layout);
        let file = File::create(path).unwrap();
        file.set_len(layout.area().end()).unwrap();
        for (at, block) in format_blocks(&mut superblock) {
            file.write_all_at(&block, at).unwrap();
        }
    }

    #[test]
    fn fresh_metadata_is_whole_in_both_places() {
        let dir = tempfile::tempdir().unwrap();
        for internal in [false, true] {
            let path = dir.path().join("meta");
            fresh(&path, internal);
            let args = MetaFile { path, internal };
            check(&quiet(), &args).unwrap();
            let source = Source::open(&args).unwrap();
            let dump = load(&source, &args).unwrap().dump();
            let json = dump_json(&dump);
            assert_eq!(json["resource"], "07".repeat(16));
            assert_eq!(json["findings"], json!([]));
            assert!(json["size_bytes"].as_u64().unwrap() > 60 << 20);
            let wrong = MetaFile { path: args.path.clone(), internal: !internal };
            let error = check(&quiet(), &wrong).unwrap_err();
            assert_eq!(error.code, ErrorCode::MetadataInvalid);
            assert!(error.hint.unwrap().contains("--internal"));
        }
    }

    #[test]
    fn a_damaged_copy_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        fresh(&path, false);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 16], 100).unwrap();
        let error = check(&quiet(), &MetaFile { path, internal: false }).unwrap_err();
        assert_eq!((error.code, error.code.exit_code()), (ErrorCode::MetadataInvalid, 1));
    }

    #[test]
    fn what_is_no_metadata_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("short"), b"x").unwrap();
        std::fs::write(path("zeros"), vec![0; 1 << 20]).unwrap();
        for (name, code) in [
            ("absent", ErrorCode::DiskNotFound),
            ("", ErrorCode::DiskUnusable),
            ("short", ErrorCode::MetadataInvalid),
            ("zeros", ErrorCode::MetadataInvalid),
        ] {
            for internal in [false, true] {
                let args = MetaFile { path: path(name), internal };
                let error = check(&quiet(), &args).unwrap_err();
                assert_eq!(error.code, code, "{name}: {error}");
                assert!(!error.message.contains("os error"), "{error}");
            }
        }
    }
}
