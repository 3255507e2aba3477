//! Answers that carry data.

use super::super::message::{
    Answer, Block, FEATURE_LOST, FEATURE_LZ4, FEATURE_PACKED, Fetch, Offer, Piece, RefuseCode,
};
use super::refuse;
use super::types::{Found, Handed, Refusal};
use crate::compress::compress;
use bytes::Bytes;
use holdfast_format::BLOCK_LEN;
use holdfast_format::journal::{Compression, SegmentHeader};
use holdfast_units::{ByteRange, LogPosition};
use sha2::{Digest as _, Sha256};

/// The answer to a fetch: bytes of the journal, at most 1 MiB.
#[must_use]
pub fn fetch_piece(fetch: Fetch, features: u64, bytes: Bytes) -> Piece {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (compression, bytes) = pack(features, bytes);
    Piece { segment: fetch.segment, from: fetch.from, len, compression, bytes }
}

/// The digest of bytes, as it is offered.
#[must_use]
pub(in crate::ship) fn digest(bytes: &[u8]) -> [u8; 16] {
    let whole = Sha256::digest(bytes);
    std::array::from_fn(|at| whole[at])
}

/// An answer to a request for a part of a filling: what was read of it, by digests of so many bytes.
#[must_use]
fn make_offer(fill: u64, range: ByteRange, part: u32, bytes: &[u8]) -> Offer {
    let len = usize::try_from(part).unwrap_or(usize::MAX).max(1);
    Offer { fill, range, part, digests: bytes.chunks(len).map(digest).collect() }
}

/// The answer to a request for a part of a filling: what was found of it. It is of all that was handed
/// out: of what was not found, [`Leader::found`] has to know.
///
/// [`Leader::found`]: super::Leader::found
#[must_use]
pub fn filling(fill: u64, handed: Handed, found: Found) -> Answer {
    let Handed { range, features, offer } = handed;
    match (found, offer) {
        (Found::Good(bytes), Some(part)) if !range.is_empty() => {
            Answer::Offer(make_offer(fill, range, part, &bytes))
        }
        (Found::Good(bytes), _) => Answer::Block(copy_block(fill, range, features, bytes)),
        (Found::Lost(_), _) if features & FEATURE_LOST != 0 => Answer::Lost { fill, range },
        (Found::Lost(_), _) => {
            let text =
                "blocks of the disk cannot be read, which this node's version cannot be told";
            refuse(RefuseCode::Failed, text).into()
        }
    }
}

/// What was read of a part.
fn copy_block(fill: u64, range: ByteRange, features: u64, bytes: Bytes) -> Block {
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

/// The answer to a request for a part of which a follower has no good copy: what was read of it, if
/// that could be done, before everything up to `position` was durable.
#[must_use]
pub fn healed(
    range: ByteRange,
    features: u64,
    bytes: Option<Bytes>,
    position: LogPosition,
) -> Answer {
    let block = match bytes {
        Some(bytes) => copy_block(0, range, features, bytes),
        None => copy_block(0, ByteRange::default(), features, Bytes::new()),
    };
    Answer::Healed { position, block }
}

/// Whether a follower of these features can use segments like these.
///
/// # Errors
/// The refusal.
pub(in crate::ship) fn may_unpack(
    features: u64,
    segments: impl FnOnce() -> Vec<(SegmentHeader, u64)>,
) -> Result<(), Refusal> {
    if features & FEATURE_PACKED == 0 && segments().iter().any(|(header, _)| header.packed) {
        let why = "the journal has compressed records, and this node's version cannot unpack them";
        return Err(refuse(RefuseCode::Version, why));
    }
    Ok(())
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
