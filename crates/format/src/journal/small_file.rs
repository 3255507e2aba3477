//! Small files of their own, which are replaced as a whole: how all of them begin, and lists of ranges in
//! them.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | which kind of file |
//! | 4 | CRC-32C of everything from byte 8 on |
//! | 8 | version, u16 |
//! | 10 | of which node it is; 0 when it is of none; then 5 zeroes |
//! | 16 | of which resource |

use crate::MAX_DEVICE_SIZE;
use holdfast_units::{ByteRange, ResourceId};

const VERSION: u16 = 1;
/// Where what is of this kind alone begins.
pub(super) const HEAD_LEN: usize = 32;
pub(super) const RANGE_LEN: usize = 16;

/// Why bytes are not such a file. `Display` completes "the file cannot be used: ...".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoteError {
    /// It is shorter or longer than it says.
    #[error("it is not as long as it says")]
    Length,
    /// It is something else.
    #[error("it is not a file of this kind and version")]
    Magic,
    /// Its bytes changed.
    #[error("its checksum does not fit")]
    Checksum,
    /// It belongs to something else.
    #[error("it is of another resource or another node")]
    Other,
    /// A field has a value that no version writes.
    #[error("it has an impossible {0}")]
    Content(&'static str),
}

/// Which file it is.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) magic: [u8; 4],
    pub(super) node: u8,
    pub(super) resource: ResourceId,
}

impl Kind {
    /// The beginning of a file that will be so long.
    pub(super) fn begin(self, len: usize) -> Vec<u8> {
        let mut b = Vec::with_capacity(len);
        b.extend_from_slice(&self.magic);
        b.extend_from_slice(&[0; 4]);
        b.extend_from_slice(&VERSION.to_le_bytes());
        b.push(self.node);
        b.extend_from_slice(&[0; 5]);
        b.extend_from_slice(&self.resource.0);
        b
    }

    /// Checks a file; its first `head` bytes, and the others.
    pub(super) fn open(self, b: &[u8], head: usize) -> Result<(&[u8], &[u8]), NoteError> {
        let (begin, rest) = b.split_at_checked(head.max(HEAD_LEN)).ok_or(NoteError::Length)?;
        if begin[..4] != self.magic || u16_at(begin, 8) != VERSION {
            return Err(NoteError::Magic);
        }
        if crc32c::crc32c(&b[8..]) != u32_at(begin, 4) {
            return Err(NoteError::Checksum);
        }
        if begin[16..HEAD_LEN] != self.resource.0 || begin[10] != self.node {
            return Err(NoteError::Other);
        }
        Ok((begin, rest))
    }
}

/// The file is complete.
pub(super) fn seal(mut b: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&b[8..]);
    b[4..8].copy_from_slice(&crc.to_le_bytes());
    b
}

pub(super) fn put_counts(b: &mut Vec<u8>, counts: [usize; 2]) {
    for count in counts {
        b.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }
}

pub(super) fn put_ranges(b: &mut Vec<u8>, ranges: &[ByteRange]) {
    for range in ranges {
        b.extend_from_slice(&range.offset.to_le_bytes());
        b.extend_from_slice(&range.len.to_le_bytes());
    }
}

/// Ranges of whole blocks of a disk, lowest first, that neither overlap nor touch.
pub(super) fn ranges(bytes: &[u8]) -> Result<Vec<ByteRange>, NoteError> {
    let mut all: Vec<ByteRange> = Vec::with_capacity(bytes.len() / RANGE_LEN);
    for bytes in bytes.chunks(RANGE_LEN) {
        let range = ByteRange::new(u64_at(bytes, 0), u64_at(bytes, 8));
        let after = all.last().is_none_or(|last| last.end() < range.offset);
        let within = range.offset <= MAX_DEVICE_SIZE
            && range.len <= MAX_DEVICE_SIZE
            && range.end() <= MAX_DEVICE_SIZE;
        if range.is_empty() || !after || !within || !range.is_aligned() {
            return Err(NoteError::Content("range"));
        }
        all.push(range);
    }
    Ok(all)
}

/// Two counts, each of which has its limit.
pub(super) fn counts(b: &[u8], at: usize, most: [usize; 2]) -> Result<[usize; 2], NoteError> {
    let count = |at| usize::try_from(u32_at(b, at)).unwrap_or(usize::MAX);
    let counts = [count(at), count(at + 4)];
    let fit = counts.iter().zip(most).all(|(count, most)| *count <= most);
    if fit { Ok(counts) } else { Err(NoteError::Content("number of entries")) }
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(bytes)
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&b[at..at + 8]);
    u64::from_le_bytes(bytes)
}
