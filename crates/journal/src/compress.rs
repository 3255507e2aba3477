//! Compression of payloads.

use bytes::Bytes;
use holdfast_format::journal::Compression;

/// The level of Zstandard: the fastest one that makes more of a database's pages than LZ4 does.
const LEVEL: i32 = 1;

/// Why a payload could not be unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompressError {
    /// The bytes are not what a compressor makes of so many bytes.
    #[error("the compressed payload is damaged")]
    Damaged,
}

/// Packs a payload; `None` when it would not become shorter.
#[must_use]
pub fn compress(compression: Compression, plain: &[u8]) -> Option<Bytes> {
    let packed = match compression {
        Compression::None => return None,
        Compression::Lz4 => lz4_flex::block::compress(plain),
        Compression::Zstd => zstd::bulk::compress(plain, LEVEL).ok()?,
    };
    // A copy: compressors reserve for the worst case, and who counts the bytes counts these.
    let shorter = !packed.is_empty() && packed.len() < plain.len();
    shorter.then(|| Bytes::copy_from_slice(&packed))
}

/// Unpacks a payload that has `plain_len` bytes then; never makes more of it.
///
/// # Errors
/// [`CompressError`]: it is not exactly so long, or damaged.
pub fn decompress(
    compression: Compression,
    stored: &Bytes,
    plain_len: usize,
) -> Result<Bytes, CompressError> {
    let plain = match compression {
        Compression::None => stored.clone(),
        Compression::Lz4 => {
            let mut plain = vec![0; plain_len];
            let len = lz4_flex::block::decompress_into(stored, &mut plain)
                .map_err(|_| CompressError::Damaged)?;
            plain.truncate(len);
            plain.into()
        }
        Compression::Zstd => {
            let plain = zstd::bulk::decompress(stored, plain_len);
            plain.map_err(|_| CompressError::Damaged)?.into()
        }
    };
    if plain.len() == plain_len { Ok(plain) } else { Err(CompressError::Damaged) }
}

#[cfg(test)]
mod tests {
    use super::{CompressError, compress, decompress};
    use bytes::Bytes;
    use holdfast_format::journal::Compression;
    use proptest::prelude::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    #[test]
    fn only_what_becomes_shorter_is_packed() {
        let noise: Vec<u8> =
            (0u32..4096).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for kind in ALL {
            let packed = compress(kind, &[7; 4096]);
            assert_eq!(packed.is_some(), kind != Compression::None);
            if let Some(packed) = packed {
                assert!(packed.len() < 200);
                assert_eq!(decompress(kind, &packed, 4096).unwrap(), vec![7; 4096]);
                assert_eq!(decompress(kind, &packed, 4095), Err(CompressError::Damaged));
                assert_eq!(decompress(kind, &packed, 8192), Err(CompressError::Damaged));
            }
            assert!(compress(kind, &noise).is_none_or(|packed| packed.len() < noise.len()));
        }
    }

    proptest! {
        #[test]
        fn damaged_payloads_never_grow(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let stored = Bytes::from(bytes);
            for kind in ALL {
                if let Ok(plain) = decompress(kind, &stored, 512) {
                    prop_assert_eq!(plain.len(), 512);
                }
            }
        }
    }
}
