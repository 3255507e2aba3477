//! The index of a base image: which object holds each piece, 4096 pieces to a part.
//!
//! ```text
//!  0  u8[4]   magic "HFAI"
//!  4  u32     CRC-32C of the part, this field zero
//!  8  u8[16]  resource
//! 24  u64     number of the part
//! 32  u32     entries
//! 36  u32     zero
//! then per piece
//!  0  u8[32]  SHA-256 of its object; zero: the place is all zeroes, and there is no object
//! 32  u64     bytes of its object
//! ```

use crate::digest::Digest;
use crate::piece::MAX_PIECE;
use bytes::Bytes;
use holdfast_units::ResourceId;

/// The pieces that a part of the index lists; the last one may list fewer.
pub const PART_CHUNKS: u64 = 4096;

const MAGIC: [u8; 4] = *b"HFAI";
const AT_CRC: usize = 4;
const AT_RESOURCE: usize = 8;
const AT_NUMBER: usize = 24;
const AT_COUNT: usize = 32;
const AT_ZERO: usize = 36;
const HEADER_LEN: usize = 40;
const ENTRY_LEN: usize = 40;

/// No part is longer, in bytes.
pub(crate) const MAX_INDEX: u64 = HEADER_LEN as u64 + PART_CHUNKS * ENTRY_LEN as u64;

/// Where a piece is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The SHA-256 of its object.
    pub digest: Digest,
    /// The bytes of its object.
    pub bytes: u64,
}

/// A part of the index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexPart {
    /// Which one: the first piece is this number × [`PART_CHUNKS`].
    pub number: u64,
    /// The pieces in order; `None` for zeroes.
    pub entries: Vec<Option<IndexEntry>>,
}

impl IndexPart {
    /// The bytes of the object.
    #[must_use]
    pub fn encode(&self, resource: ResourceId) -> Bytes {
        let mut b = vec![0; HEADER_LEN];
        b[..4].copy_from_slice(&MAGIC);
        b[AT_RESOURCE..AT_NUMBER].copy_from_slice(&resource.0);
        b[AT_NUMBER..AT_COUNT].copy_from_slice(&self.number.to_le_bytes());
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        b[AT_COUNT..AT_ZERO].copy_from_slice(&count.to_le_bytes());
        for entry in &self.entries {
            let (digest, bytes) = entry.map_or(([0; 32], 0), |e| (e.digest.0, e.bytes));
            b.extend_from_slice(&digest);
            b.extend_from_slice(&bytes.to_le_bytes());
        }
        let crc = crc_of(&b);
        b[AT_CRC..AT_RESOURCE].copy_from_slice(&crc.to_le_bytes());
        b.into()
    }

    /// Reads the object of a part.
    ///
    /// # Errors
    /// What is wrong with it, to complete a sentence.
    pub fn decode(b: &[u8], resource: ResourceId, number: u64) -> Result<Self, String> {
        let wrong = |why: &str| Err(why.to_owned());
        let Some(header) = b.get(..HEADER_LEN) else { return wrong("it is too short") };
        if header[..4] != MAGIC {
            return wrong("it is not an index of a base image");
        }
        if header[AT_CRC..AT_RESOURCE] != crc_of(b).to_le_bytes() {
            return wrong("it does not fit its checksum");
        }
        if header[AT_RESOURCE..AT_NUMBER] != resource.0 {
            return wrong("it belongs to another resource");
        }
        if header[AT_NUMBER..AT_COUNT] != number.to_le_bytes() {
            return wrong("it is another part of the index");
        }
        let rest = &b[HEADER_LEN..];
        let count = rest.len() as u64 / ENTRY_LEN as u64;
        let mut said = [0; 4];
        said.copy_from_slice(&header[AT_COUNT..AT_ZERO]);
        let whole = rest.len().is_multiple_of(ENTRY_LEN)
            && count <= PART_CHUNKS
            && u64::from(u32::from_le_bytes(said)) == count
            && header[AT_ZERO..] == [0; 4];
        if !whole {
            return wrong("its length is not that of its entries");
        }
        let entries = rest.chunks_exact(ENTRY_LEN).map(entry_of).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { number, entries })
    }
}

fn entry_of(b: &[u8]) -> Result<Option<IndexEntry>, String> {
    let (mut digest, mut bytes) = ([0; 32], [0; 8]);
    digest.copy_from_slice(&b[..32]);
    bytes.copy_from_slice(&b[32..]);
    let bytes = u64::from_le_bytes(bytes);
    match (digest == [0; 32], bytes) {
        (true, 0) => Ok(None),
        (false, 1..=MAX_PIECE) => Ok(Some(IndexEntry { digest: Digest(digest), bytes })),
        _ => Err("an entry has an impossible length".into()),
    }
}

fn crc_of(b: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&b[..AT_CRC]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &b[AT_RESOURCE..])
}

#[cfg(test)]
mod tests {
    use super::{IndexEntry, IndexPart};
    use crate::digest::Digest;
    use holdfast_units::ResourceId;

    #[test]
    fn what_goes_in_comes_out_and_every_byte_counts() {
        let resource = ResourceId([3; 16]);
        let entry = |n: u8| IndexEntry { digest: Digest::of(&[n]), bytes: u64::from(n) + 1 };
        let part = IndexPart { number: 7, entries: vec![Some(entry(1)), None, Some(entry(2))] };
        let object = part.encode(resource);
        assert_eq!(IndexPart::decode(&object, resource, 7), Ok(part));
        assert!(IndexPart::decode(&object, resource, 8).is_err());
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 1;
            assert!(IndexPart::decode(&bad, resource, 7).is_err(), "{at}");
            assert!(IndexPart::decode(&object[..at], resource, 7).is_err(), "{at}");
        }
    }
}
