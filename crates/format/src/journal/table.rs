//! The table of a device that holds a journal instead of a directory: which names lie where.

use crate::MAX_DEVICE_SIZE;
use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get_u32, get_u64, put,
};
use holdfast_units::{ByteRange, ResourceId};
use std::collections::BTreeMap;

/// The bytes of one copy of the table at most; the second one begins there.
pub const DEVICE_TABLE_LEN: u64 = TABLE_LEN as u64;
/// Where the content of files may begin.
pub const DEVICE_DATA_AT: u64 = 2 * DEVICE_TABLE_LEN;
/// The most files on a device.
pub const MAX_DEVICE_FILES: usize = (TABLE_LEN - BLOCK_LEN) / ENTRY_LEN;
/// The longest name, in bytes.
pub const MAX_DEVICE_NAME: usize = 24;

const TABLE_LEN: usize = 64 << 10;
const ENTRY_LEN: usize = 40;
const AT_SEQUENCE: usize = HEAD_LEN;
const AT_SIZE: usize = 48;
const AT_COUNT: usize = 56;
const AT_ENTRIES_CRC: usize = 60;

/// Which files a device holds. There are two copies, written in turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceTable {
    /// Goes up by one with every write; even in copy 0, odd in copy 1.
    pub sequence: u64,
    /// The bytes of the device that are used, tables included; a multiple of 4096.
    pub size: u64,
    /// The files: whole blocks behind [`DEVICE_DATA_AT`] that do not overlap.
    pub files: BTreeMap<String, ByteRange>,
}

impl DeviceTable {
    /// The copy, 0 or 1, that holds this sequence number.
    #[must_use]
    pub const fn copy(&self) -> u8 {
        if self.sequence.is_multiple_of(2) { 0 } else { 1 }
    }

    /// The bytes, whole blocks, for the copy that belongs to the sequence number. `None` for what no
    /// reader takes: too many files, or names that are too long.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        if self.fault().is_some() {
            return None;
        }
        let mut entries = Vec::with_capacity(self.files.len() * ENTRY_LEN);
        for (name, range) in &self.files {
            let mut padded = [0; MAX_DEVICE_NAME];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            entries.extend_from_slice(&padded);
            entries.extend_from_slice(&range.offset.to_le_bytes());
            entries.extend_from_slice(&range.len.to_le_bytes());
        }
        let mut head: Block = [0; BLOCK_LEN];
        put(&mut head, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(&mut head, AT_SIZE, self.size.to_le_bytes());
        put(&mut head, AT_COUNT, u32::try_from(self.files.len()).ok()?.to_le_bytes());
        put(&mut head, AT_ENTRIES_CRC, crc32c::crc32c(&entries).to_le_bytes());
        block::seal(&mut head, head_of(self.copy()));
        let mut bytes = head.to_vec();
        bytes.extend_from_slice(&entries);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
        Some(bytes)
    }

    /// Reads the bytes that were found in the place of copy 0 or 1: [`DEVICE_TABLE_LEN`] of them.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong with them.
    pub fn decode(bytes: &[u8], copy: u8) -> Result<Self, BlockError> {
        let head: &Block =
            bytes.first_chunk().ok_or(BlockError::Content("it is shorter than a block"))?;
        block::open_of(head, head_of(copy & 1))?;
        let sequence = get_u64(head, AT_SEQUENCE);
        if sequence >= block::MAX_SEQUENCE || sequence % 2 != u64::from(copy & 1) {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        let count = usize::try_from(get_u32(head, AT_COUNT)).unwrap_or(usize::MAX);
        if count > MAX_DEVICE_FILES {
            return Err(BlockError::Content("it has too many files"));
        }
        let entries = bytes.get(BLOCK_LEN..BLOCK_LEN + count * ENTRY_LEN);
        let entries = entries.ok_or(BlockError::Content("it ends within its files"))?;
        if crc32c::crc32c(entries) != get_u32(head, AT_ENTRIES_CRC) {
            return Err(BlockError::Content("its files do not fit their checksum"));
        }
        let mut files = BTreeMap::new();
        for entry in entries.chunks_exact(ENTRY_LEN) {
            let (name, range) = entry_of(entry).ok_or(BlockError::Content("a name is broken"))?;
            if files.insert(name, range).is_some() {
                return Err(BlockError::Content("two files have one name"));
            }
        }
        let table = Self { sequence, size: get_u64(head, AT_SIZE), files };
        table.fault().map_or(Ok(table), |why| Err(BlockError::Content(why)))
    }

    /// The newer of the copies that count; `None` when none does.
    #[must_use]
    pub fn newest(copies: [&[u8]; 2]) -> Option<Self> {
        match (Self::decode(copies[0], 0).ok(), Self::decode(copies[1], 1).ok()) {
            (Some(a), Some(b)) => Some(if a.sequence > b.sequence { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        if self.size > MAX_DEVICE_SIZE || !self.size.is_multiple_of(BLOCK_LEN as u64) {
            return Some("it has an impossible size");
        }
        if self.files.len() > MAX_DEVICE_FILES {
            return Some("it has too many files");
        }
        if !self.files.keys().all(|name| is_name(name)) {
            return Some("a file has an impossible name");
        }
        let mut ranges: Vec<ByteRange> = self.files.values().copied().collect();
        ranges.sort_unstable_by_key(|range| range.offset);
        let mut end = DEVICE_DATA_AT;
        for range in ranges {
            let fits = range.offset >= end && range.len <= self.size;
            if !fits || range.is_empty() || !range.is_aligned() || range.end() > self.size {
                return Some("a file lies where none can be");
            }
            end = range.end();
        }
        None
    }
}

const fn head_of(copy: u8) -> Head {
    // Whose journal it is stands in its cursors and segments.
    let resource = ResourceId([0; 16]);
    Head { kind: BlockKind::JournalDevice, number: copy as u64, resource }
}

fn is_name(name: &str) -> bool {
    let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= MAX_DEVICE_NAME && name.bytes().all(byte)
}

fn entry_of(entry: &[u8]) -> Option<(String, ByteRange)> {
    let (name, range) = entry.split_at_checked(MAX_DEVICE_NAME)?;
    let len = name.iter().rposition(|byte| *byte != 0)? + 1;
    let name = std::str::from_utf8(&name[..len]).ok()?;
    let number = |at: usize| Some(u64::from_le_bytes(*range.get(at..)?.first_chunk()?));
    Some((name.to_owned(), ByteRange::new(number(0)?, number(8)?)))
}

#[cfg(test)]
mod tests {
    use super::{DEVICE_DATA_AT, DEVICE_TABLE_LEN, DeviceTable, MAX_DEVICE_FILES};
    use holdfast_units::ByteRange;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn table(sequence: u64, files: &[(&str, u64, u64)]) -> DeviceTable {
        let file = |(name, offset, len): &(&str, u64, u64)| {
            ((*name).to_owned(), ByteRange::new(DEVICE_DATA_AT + offset, *len))
        };
        DeviceTable { sequence, size: 64 << 20, files: files.iter().map(file).collect() }
    }

    fn some() -> DeviceTable {
        table(7, &[("cursors", 0, 8192), ("segment-00000000000000ff", 1 << 20, 4 << 20)])
    }

    #[test]
    fn what_is_written_is_read_and_every_change_is_seen() {
        let bytes = some().encode().unwrap();
        assert_eq!(DeviceTable::decode(&bytes, 1), Ok(some()));
        assert!(DeviceTable::decode(&bytes, 0).is_err(), "the other copy");
        for at in 0..4096 + 80 {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << (at % 8);
            assert!(DeviceTable::decode(&broken, 1).is_err(), "byte {at}");
        }
        for len in [0, 1, 4095, 4096, 4096 + 79] {
            assert!(DeviceTable::decode(&bytes[..len], 1).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn the_newer_whole_copy_counts() {
        let (old, new) = (table(6, &[]).encode().unwrap(), some().encode().unwrap());
        assert_eq!(DeviceTable::newest([&old, &new]), Some(some()));
        assert_eq!(DeviceTable::newest([&old, &new[..4096]]), Some(table(6, &[])));
        assert_eq!(DeviceTable::newest([&[0; 4096], &[0; 4096]]), None);
    }

    #[test]
    fn what_cannot_be_is_neither_written_nor_read() {
        for wrong in [
            table(1, &[("a", 0, 8192), ("b", 4096, 4096)]),
            table(1, &[("a", 512, 4096)]),
            table(1, &[("a", 0, 0)]),
            table(1, &[("a", 0, 1 << 40)]),
            table(1, &[("a", u64::MAX - DEVICE_DATA_AT - 4095, 4096)]),
            table(1, &[("", 0, 4096)]),
            table(1, &[("A", 0, 4096)]),
            table(1, &[("a-name-of-too-many-letters", 0, 4096)]),
            DeviceTable { size: 5000, ..table(1, &[]) },
            DeviceTable { size: u64::MAX - 4095, ..table(1, &[]) },
            DeviceTable {
                size: 1 << 40,
                files: (0..=MAX_DEVICE_FILES as u64)
                    .map(|n| (format!("f{n}"), ByteRange::new(DEVICE_DATA_AT + n * 4096, 4096)))
                    .collect::<BTreeMap<_, _>>(),
                ..table(1, &[])
            },
        ] {
            assert_eq!(wrong.encode(), None, "{wrong:?}");
        }
        let full = DeviceTable {
            files: (0..MAX_DEVICE_FILES as u64)
                .map(|n| (format!("f{n}"), ByteRange::new(DEVICE_DATA_AT + n * 4096, 4096)))
                .collect(),
            ..table(2, &[])
        };
        let bytes = full.encode().unwrap();
        assert!(bytes.len() as u64 <= DEVICE_TABLE_LEN);
        assert_eq!(DeviceTable::decode(&bytes, 0), Ok(full));
    }

    proptest! {
        #[test]
        fn any_entries_are_decoded_or_refused(noise in prop::collection::vec(any::<u8>(), 80)) {
            let mut bytes = some().encode().unwrap();
            bytes[4096..4096 + 80].copy_from_slice(&noise);
            let crc = crc32c::crc32c(&noise);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
            bytes[12..16].fill(0);
            let whole = crc32c::crc32c(&bytes[..4096]);
            bytes[12..16].copy_from_slice(&whole.to_le_bytes());
            if let Ok(table) = DeviceTable::decode(&bytes, 1) {
                prop_assert!(table.encode().is_some());
            }
        }
    }
}
