//! How fast this machine makes checksums and compresses, measured for a few milliseconds each.

use super::finding::Findings;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What is worked on at a time, as the journal does.
const PIECE: usize = 128 << 10;
/// For how long each is measured.
const TIME: Duration = Duration::from_millis(8);
/// Slower than this, in bytes a second, it holds up a fast disk or network.
const SLOW: u64 = 500_000_000;

pub(super) fn look(findings: &mut Findings) {
    let piece = half_random();
    let blake3 = measure(|| {
        black_box(blake3::hash(black_box(&piece)));
    });
    let crc32c = measure(|| {
        black_box(crc32c::crc32c(black_box(&piece)));
    });
    let lz4 = measure(|| {
        black_box(lz4_flex::compress(black_box(&piece)));
    });
    let zstd = measure(|| {
        // A buffer that is too small cannot be: it is made large enough.
        black_box(zstd::bulk::compress(black_box(&piece), 1).is_ok());
    });
    let figures = format!(
        "BLAKE3 {}, CRC-32C {}, lz4 {}, zstd {} on one core",
        shown(blake3),
        shown(crc32c),
        shown(lz4),
        shown(zstd)
    );
    if blake3 < SLOW || crc32c < SLOW {
        findings.note(
            "speed.digests",
            figures,
            "a digest is made of all that verify and scrub read, and a checksum of all that is \
             written: on a fast disk they are as slow as this",
            "look whether the machine is busy, and whether a virtual machine is given the \
             instructions of its processor (SSE4.2, AVX2)",
        );
    } else {
        findings.ok("speed.digests", figures);
    }
}

/// Bytes a second, of the quickest round: others of this machine interrupt the rest.
fn measure(mut work: impl FnMut()) -> u64 {
    // The first time looks what the processor can do.
    work();
    let begun = Instant::now();
    let mut quickest = Duration::MAX;
    while begun.elapsed() < TIME {
        let round = Instant::now();
        work();
        quickest = quickest.min(round.elapsed());
    }
    let bytes = PIECE as u128 * 1_000_000_000 / quickest.as_nanos().max(1);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn shown(bytes_per_second: u64) -> String {
    format!("{} MB/s", bytes_per_second / 1_000_000)
}

/// Every other 64 bytes cannot be compressed.
fn half_random() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = vec![0; PIECE];
    for random in piece.chunks_mut(64).step_by(2) {
        for byte in random {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
    }
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_speed() {
        let mut findings = Findings::default();
        look(&mut findings);
        assert_eq!(findings.0.len(), 1);
        assert!(!findings.0[0].what.contains(" 0 MB/s"), "{}", findings.0[0].what);
        let packed = lz4_flex::compress(&half_random()).len();
        assert!(packed > PIECE / 3 && packed < PIECE * 3 / 4, "{packed}");
    }
}
