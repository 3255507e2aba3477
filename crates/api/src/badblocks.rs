//! Bad sectors of a disk and its spares: the bodies and answers of `badblocks` and `spare`.
//!
//! A *block* is what is moved as one: 4096 bytes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// What the table of the spares says of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BadBlock {
    /// The first sector of 512 bytes of the block on the disk. For a failed slot, of the block that it
    /// was for.
    pub lba: u64,
    /// The same in bytes.
    pub offset: u64,
    /// Bytes of the block.
    pub length: u64,
    /// `mapped`: it is in the slot; `lost`: no good copy is here, reads fail until it is written;
    /// `bad-slot`: the slot failed, and is used no more.
    pub state: String,
    /// `write-error`, `read-error`, `by-hand`, `imported`, `moved`, `not-read-back`, or `none`.
    pub reason: String,
    /// When that was, in seconds since 1970.
    pub time_unix_seconds: u64,
    /// Errors that were seen.
    pub errors: u64,
    /// The spare, by its id.
    pub spare: String,
    /// Its slot.
    pub slot: u64,
}

/// A part of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BadBlocks {
    /// At most 10,000 rows, in the order of the spares and their slots.
    pub rows: Vec<BadBlock>,
    /// What `from` has to be for those that follow; `null` when there are no more.
    pub next: Option<u64>,
}

/// `badblocks add` and `badblocks import`: blocks go into the spare. Those that cannot be read are
/// lost until they are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BadBlocksAdd {
    /// Which: every block that is touched. At most 10,000 ranges.
    pub ranges: Vec<Span>,
    /// They are from a list. What of it lies behind the end of the resource is left out.
    #[serde(default)]
    pub imported: bool,
    /// They are a part of something longer. With `dry_run` that the spares have too few slots is no
    /// refusal then: whoever asks adds up `moved`, and compares it with `free`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub part: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// `badblocks remove`: blocks go back to where they belong, if the disk takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BadBlocksRemove {
    /// Which; all when left out.
    #[serde(default)]
    pub ranges: Option<Vec<Span>>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What became of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BadBlocksDone {
    /// All of it in one sentence.
    pub message: String,
    /// Blocks that went into a spare.
    pub moved: u64,
    /// Blocks that are lost now: they could not be read.
    pub lost: u64,
    /// Blocks that are back where they belong.
    pub returned: u64,
    /// Blocks with which that was not possible.
    pub failed: u64,
    /// Blocks of a list that lie behind the end of the resource, and were left out.
    #[serde(default)]
    pub outside: u64,
    /// Slots that the spares had free before blocks were moved into them.
    #[serde(default)]
    pub free: u64,
    /// Nothing was changed: this is what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// `spare add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpareAdd {
    /// The file or block device, an absolute path.
    pub path: String,
    /// Overwrite what is on it.
    #[serde(default)]
    pub force: bool,
}

/// `spare remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpareRemove {
    /// Its path, or its id.
    pub spare: String,
    /// Move what it holds to the others first; without it one that holds something is refused.
    #[serde(default)]
    pub empty: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}
