//! What of a read is sent as data, and what as zeroes.

use holdfast_units::BLOCK_SIZE;

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE, "they are the same");
/// A shorter stretch of zeroes between data is sent as data: it costs less than another question.
pub(crate) const LEAST_ZEROES: usize = 64 << 10;

/// How many bytes from the start are sent in one answer, and whether all of them are zero. Data end
/// before a stretch of zeroes of at least [`LEAST_ZEROES`], and neither begin nor end with zeroes: so
/// who stores them needs little more space for them than the sender.
pub(crate) fn first_stretch(data: &[u8]) -> (usize, bool) {
    let zeroes = data.chunks(BLOCK).take_while(|block| is_zero(block)).count() * BLOCK;
    if zeroes > 0 {
        return (zeroes.min(data.len()), true);
    }
    let (mut end, mut at) = (0, 0);
    for block in data.chunks(BLOCK) {
        at += block.len();
        if !is_zero(block) {
            end = at;
        } else if at - end >= LEAST_ZEROES {
            break;
        }
    }
    (end, false)
}

/// Whether all bytes are zero. Compares the data with itself, one byte further: as fast as memory.
fn is_zero(data: &[u8]) -> bool {
    data.first() == Some(&0) && data[1..] == data[..data.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, LEAST_ZEROES, first_stretch};

    /// Blocks with data are `x`, those of zeroes `.`; only the last byte of `x` is not zero.
    fn blocks(picture: &str) -> Vec<u8> {
        let mut data = vec![0; picture.len() * BLOCK];
        for (at, _) in picture.match_indices('x') {
            data[(at + 1) * BLOCK - 1] = 1;
        }
        data
    }

    fn stretch(picture: &str) -> (usize, bool) {
        let (len, zeroes) = first_stretch(&blocks(picture));
        assert!(len.is_multiple_of(BLOCK));
        (len / BLOCK, zeroes)
    }

    #[test]
    fn zeroes_and_data_are_told_apart_by_blocks() {
        let gap = ".".repeat(LEAST_ZEROES / BLOCK);
        let short = &gap[1..];
        assert_eq!(stretch("."), (1, true));
        assert_eq!(stretch("x"), (1, false));
        assert_eq!(stretch("..x"), (2, true));
        assert_eq!(stretch("x.."), (1, false), "the end is asked for again");
        assert_eq!(stretch("..."), (3, true));
        assert_eq!(stretch(&format!("{gap}x")), (16, true));
        assert_eq!(stretch(&format!("x{short}x{gap}x")), (17, false), "not worth a question");
        assert_eq!(stretch(&format!("x{gap}x")), (1, false));
        assert_eq!(stretch(&format!("{gap}{gap}")), (32, true));
    }
}
