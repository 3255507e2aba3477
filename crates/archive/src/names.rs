//! The names of objects. Every object but the manifest is named by what is in it, and never
//! changes.

use crate::digest::Digest;

/// The last part of a manifest's name.
pub(crate) const MANIFEST: &str = "manifest";

pub(crate) fn manifest(archive: &str) -> String {
    format!("{archive}/{MANIFEST}")
}

/// Bytes `from` to `to` of a segment's file.
pub(crate) fn log(
    archive: &str,
    line: u32,
    segment: u64,
    (from, to): (u64, u64),
    digest: &Digest,
) -> String {
    let short = digest.short(8);
    format!("{archive}/log/{line:06x}-{segment:016x}-{from:010x}-{to:010x}-{short}")
}

pub(crate) fn log_prefix(archive: &str) -> String {
    format!("{archive}/log/")
}

/// A part of the index of a base image.
pub(crate) fn index(archive: &str, part: u64, digest: &Digest) -> String {
    format!("{archive}/index/{part:06x}-{}", digest.short(16))
}

pub(crate) fn index_prefix(archive: &str) -> String {
    format!("{archive}/index/")
}

/// A piece of a base image.
pub(crate) fn piece(archive: &str, part: u64, within: usize, digest: &Digest) -> String {
    format!("{archive}/disk/{part:06x}/{within:03x}-{}", digest.short(16))
}

/// All pieces that a part of an index lists.
pub(crate) fn part_prefix(archive: &str, part: u64) -> String {
    format!("{archive}/disk/{part:06x}/")
}
