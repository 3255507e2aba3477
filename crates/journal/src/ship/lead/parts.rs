//! Answers that carry data.

use super::super::message::{Block, FEATURE_LZ4, Fetch, Piece};
use crate::compress::compress;
use bytes::Bytes;
use holdfast_format::BLOCK_LEN;
use holdfast_format::journal::Compression;
use holdfast_units::ByteRange;

/// The answer to a fetch: bytes of the journal, at most 1 MiB.
#[must_use]
pub fn fetch_piece(fetch: Fetch, features: u64, bytes: Bytes) -> Piece {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (compression, bytes) = pack(features, bytes);
    Piece { segment: fetch.segment, from: fetch.from, len, compression, bytes }
}

/// The answer to a request for a part of a filling: what was read of it.
#[must_use]
pub fn copy_block(fill: u64, range: ByteRange, features: u64, bytes: Bytes) -> Block {
    let none = Compression::None;
    let nothing =
        Block { fill, range, zeroes: false, compression: none, crc: 0, bytes: Bytes::new() };
    if range.is_empty() {
        return nothing;
    }
    if is_zero(&bytes) {
        return Block { zeroes: true, ..nothing };
    }
    let crc = crc32c::crc32c(&bytes);
    let (compression, bytes) = pack(features, bytes);
    Block { compression, crc, bytes, ..nothing }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
    bytes.chunks(ZEROES.len()).all(|chunk| chunk == &ZEROES[..chunk.len()])
}

fn pack(features: u64, bytes: Bytes) -> (Compression, Bytes) {
    let packed = (features & FEATURE_LZ4 != 0).then(|| compress(Compression::Lz4, &bytes));
    match packed.flatten() {
        Some(packed) => (Compression::Lz4, packed),
        None => (Compression::None, bytes),
    }
}
