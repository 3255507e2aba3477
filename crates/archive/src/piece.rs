//! Pieces of a base image: 4 MiB of the disk, without its zeroes, compressed.
//!
//! ```text
//!  0  u8[4]   magic "HFAP"
//!  4  u32     CRC-32C of the header, this field zero
//!  8  u8[16]  resource
//! 24  u64     number of the piece: its place on the disk / 4 MiB
//! 32  u32     bytes of the blocks that are there, as they were read
//! 36  u32     bytes as stored
//! 40  u32     CRC-32C of the blocks as they were read
//! 44  u8      compression, as in records of the journal
//! 45  u8[19]  zero
//! 64  u8[128] a bit per block of 4096 bytes, the lowest first: whether it is there; else zeroes
//! then the blocks that are there, compressed together
//! ```

use bytes::Bytes;
use holdfast_format::journal::Compression;
use holdfast_journal::{compress, decompress};
use holdfast_units::{BLOCK_SIZE, ByteRange, ResourceId};

/// The bytes of the disk that a piece holds; the last one may hold less.
pub const CHUNK: u64 = 4 << 20;

const MAGIC: [u8; 4] = *b"HFAP";
const AT_CRC: usize = 4;
const AT_RESOURCE: usize = 8;
const AT_NUMBER: usize = 24;
const AT_PLAIN_LEN: usize = 32;
const AT_STORED_LEN: usize = 36;
const AT_PLAIN_CRC: usize = 40;
const AT_COMPRESSION: usize = 44;
const AT_ZERO: usize = 45;
const AT_BLOCKS: usize = 64;
const HEADER_LEN: usize = AT_BLOCKS + 128;
const BLOCKS: u16 = 1024;
const BLOCK: usize = 4096;

/// No object of a piece is longer, in bytes.
pub(crate) const MAX_PIECE: u64 = CHUNK + HEADER_LEN as u64;

const _: () = assert!(CHUNK == BLOCKS as u64 * BLOCK_SIZE);

/// A piece, unpacked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which one.
    number: u64,
    blocks: [u8; 128],
    plain: Bytes,
}

impl Piece {
    /// What is at this place of the disk; `None` when it is all zeroes. Bytes behind the last
    /// whole block are left out; there are [`CHUNK`] at most.
    #[must_use]
    pub fn of(number: u64, data: &[u8]) -> Option<Self> {
        let mut blocks = [0; 128];
        let mut plain = Vec::new();
        for (index, block) in (0..BLOCKS).zip(data.chunks_exact(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                blocks[usize::from(index / 8)] |= 1 << (index % 8);
                plain.extend_from_slice(block);
            }
        }
        (!plain.is_empty()).then(|| Self { number, blocks, plain: plain.into() })
    }

    /// The bytes of the object.
    #[must_use]
    pub fn encode(&self, resource: ResourceId, compression: Compression) -> Bytes {
        let packed = compress(compression, &self.plain);
        let compression = if packed.is_some() { compression } else { Compression::None };
        let stored = packed.unwrap_or_else(|| self.plain.clone());
        let len = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut b = vec![0; HEADER_LEN];
        b[..4].copy_from_slice(&MAGIC);
        b[AT_RESOURCE..AT_NUMBER].copy_from_slice(&resource.0);
        b[AT_NUMBER..AT_PLAIN_LEN].copy_from_slice(&self.number.to_le_bytes());
        b[AT_PLAIN_LEN..AT_STORED_LEN].copy_from_slice(&len(&self.plain));
        b[AT_STORED_LEN..AT_PLAIN_CRC].copy_from_slice(&len(&stored));
        let crc = crc32c::crc32c(&self.plain);
        b[AT_PLAIN_CRC..AT_COMPRESSION].copy_from_slice(&crc.to_le_bytes());
        b[AT_COMPRESSION] = compression as u8;
        b[AT_BLOCKS..].copy_from_slice(&self.blocks);
        let crc = header_crc(&b);
        b[AT_CRC..AT_RESOURCE].copy_from_slice(&crc.to_le_bytes());
        b.extend_from_slice(&stored);
        b.into()
    }

    /// Reads the object of a piece; every checksum is verified.
    ///
    /// # Errors
    /// What is wrong with it, to complete a sentence.
    pub fn decode(bytes: &Bytes, resource: ResourceId, number: u64) -> Result<Self, String> {
        let wrong = |why: &str| Err(why.to_owned());
        let Some(header) = bytes.get(..HEADER_LEN) else { return wrong("it is too short") };
        if header[..4] != MAGIC {
            return wrong("it is not a piece of a base image");
        }
        if u32_at(header, AT_CRC) != header_crc(header) {
            return wrong("its header does not fit its checksum");
        }
        if header[AT_RESOURCE..AT_NUMBER] != resource.0 {
            return wrong("it belongs to another resource");
        }
        if header[AT_NUMBER..AT_PLAIN_LEN] != number.to_le_bytes() {
            return wrong("it belongs to another place of the disk");
        }
        if header[AT_ZERO..AT_BLOCKS].iter().any(|byte| *byte != 0) {
            return wrong("it uses what this program does not know");
        }
        let compression = match header[AT_COMPRESSION] {
            0 => Compression::None,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            _ => return wrong("it has an unknown compression"),
        };
        let mut blocks = [0; 128];
        blocks.copy_from_slice(&header[AT_BLOCKS..]);
        let there = blocks.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        let plain_len = u32_at(header, AT_PLAIN_LEN);
        let stored = bytes.slice(HEADER_LEN..);
        let fits = there > 0
            && u64::from(plain_len) == there * BLOCK_SIZE
            && stored.len() as u64 == u64::from(u32_at(header, AT_STORED_LEN));
        if !fits {
            return wrong("its length is not that of its blocks");
        }
        let plain_len = usize::try_from(plain_len).map_err(|why| why.to_string())?;
        let plain = decompress(compression, &stored, plain_len).map_err(|why| why.to_string())?;
        if crc32c::crc32c(&plain) != u32_at(header, AT_PLAIN_CRC) {
            return wrong("its blocks do not fit their checksum");
        }
        Ok(Self { number, blocks, plain })
    }

    /// The parts of the piece's place on the disk up to `size`, the size of the disk: data, or
    /// `None` for zeroes.
    pub fn parts(&self, size: u64) -> impl Iterator<Item = (ByteRange, Option<Bytes>)> {
        let base = self.number.saturating_mul(CHUNK);
        let count = size.saturating_sub(base).min(CHUNK) / BLOCK_SIZE;
        let (mut index, mut at) = (0_u64, 0_usize);
        std::iter::from_fn(move || {
            if index >= count {
                return None;
            }
            let (first, there) = (index, self.has(index));
            while index < count && self.has(index) == there {
                index += 1;
            }
            let range = ByteRange::of_blocks(first..index);
            let range = ByteRange::new(base + range.offset, range.len);
            let data = if there {
                let len = usize::try_from(range.len).ok()?;
                let data = self.plain.slice(at..at + len);
                at += len;
                Some(data)
            } else {
                None
            };
            Some((range, data))
        })
    }

    fn has(&self, index: u64) -> bool {
        let byte = usize::try_from(index / 8).ok().and_then(|at| self.blocks.get(at));
        byte.is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }
}

fn header_crc(header: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[..AT_CRC]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &header[AT_RESOURCE..HEADER_LEN])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&b[at..at + 4]);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Piece};
    use bytes::Bytes;
    use holdfast_format::journal::Compression;
    use holdfast_units::ResourceId;

    const RESOURCE: ResourceId = ResourceId([3; 16]);

    fn data() -> Vec<u8> {
        let mut data = vec![0; 10 * 4096];
        data[4096..3 * 4096].fill(7);
        data[9 * 4096 + 5] = 1;
        data
    }

    fn unpacked(piece: &Piece, base: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0xee; len];
        for (range, part) in piece.parts(base + len as u64) {
            let from = usize::try_from(range.offset - base).unwrap();
            let to = from + usize::try_from(range.len).unwrap();
            match part {
                Some(bytes) => out[from..to].copy_from_slice(&bytes),
                None => out[from..to].fill(0),
            }
        }
        out
    }

    #[test]
    fn what_goes_in_comes_out() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let piece = Piece::of(5, &data()).unwrap();
            let object = piece.encode(RESOURCE, compression);
            assert!(compression == Compression::None || object.len() < 4096);
            let again = Piece::decode(&object, RESOURCE, 5).unwrap();
            assert_eq!(again, piece);
            assert_eq!(unpacked(&again, 5 * CHUNK, data().len()), data());
        }
        assert_eq!(Piece::of(0, &[0; 8192]), None);
    }

    #[test]
    fn every_byte_counts() {
        let object = Piece::of(5, &data()).unwrap().encode(RESOURCE, Compression::Zstd);
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 0x20;
            assert!(Piece::decode(&Bytes::from(bad), RESOURCE, 5).is_err(), "{at}");
            assert!(Piece::decode(&object.slice(..at), RESOURCE, 5).is_err(), "{at}");
        }
        assert!(Piece::decode(&object, RESOURCE, 4).is_err());
        assert!(Piece::decode(&object, ResourceId([4; 16]), 5).is_err());
    }
}
