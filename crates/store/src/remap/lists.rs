//! Lists of bad blocks that other programs write.

use holdfast_units::ByteRange;

/// How many ranges are taken from a list at most.
const MAX_RANGES: usize = 1 << 20;
/// No disk is longer.
const MAX_OFFSET: u64 = 1 << 56;

/// Why a list of bad blocks cannot be read: the line, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line} of the list of bad blocks is wrong: {why}")]
pub struct BadListError {
    /// Its number; the first is 1.
    pub line: usize,
    why: &'static str,
}

/// Reads a list of bad blocks of a disk: what badblocks(8) prints, one block number a line, in blocks of
/// `block_size` bytes; or a map file of ddrescue (a logfile, before version 1.20), of which everything
/// counts that is not said to be rescued or never was tried (`*`, `/`, `-`). The ranges come sorted,
/// neighbours made one.
///
/// # Errors
/// [`BadListError`] names the first line that makes no sense. A list has 1,048,576 ranges at most.
pub fn read_bad_list(text: &str, block_size: u64) -> Result<Vec<ByteRange>, BadListError> {
    let mut ranges = Vec::new();
    // The first line of a map file that is no comment says where ddrescue was.
    let (mut is_map, mut status_seen, mut begun) = (false, false, false);
    for (line, content) in (1..).zip(text.lines()) {
        let fail = |why| BadListError { line, why };
        let content = content.trim();
        if let Some(comment) = content.strip_prefix('#') {
            let comment = comment.to_ascii_lowercase();
            is_map |= line == 1 && (comment.contains("mapfile") || comment.contains("logfile"));
            continue;
        }
        if content.is_empty() {
            continue;
        }
        let words: Vec<&str> = content.split_ascii_whitespace().collect();
        if !begun && let [_, status, ..] = words[..] {
            // A map without its comments.
            is_map |= ["?", "*", "/", "-", "F", "G", "+"].contains(&status);
        }
        begun = true;
        let range = match (words.as_slice(), is_map) {
            ([block], false) => {
                let block = number(block).ok_or(fail("it is not the number of a block"))?;
                let offset = block.saturating_mul(block_size);
                Some(ByteRange::new(offset, block_size))
            }
            (_, true) if !status_seen => {
                status_seen = true;
                None
            }
            ([offset, len, status], true) => {
                let sizes = map_number(offset).zip(map_number(len));
                let (offset, len) = sizes.ok_or(fail("it is not POSITION SIZE STATUS"))?;
                match *status {
                    "*" | "/" | "-" => Some(ByteRange::new(offset, len)),
                    "+" | "?" => None,
                    _ => return Err(fail("its status is none of ? * / - +")),
                }
            }
            (_, true) => return Err(fail("it is not POSITION SIZE STATUS")),
            (_, false) => {
                return Err(fail(
                    "it has more than one word, and this is not a map file of ddrescue",
                ));
            }
        };
        let Some(range) = range.filter(|range| !range.is_empty()) else { continue };
        if range.offset >= MAX_OFFSET || range.len > MAX_OFFSET {
            return Err(fail("no disk is that long"));
        }
        if ranges.len() == MAX_RANGES {
            return Err(fail("the list is too long"));
        }
        ranges.push(range);
    }
    Ok(super::task::merged(ranges))
}

/// A decimal number, or a hexadecimal one that begins with 0x.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?,
    }
}

/// A number of a map file: as [`number`], or an octal one that begins with 0.
fn map_number(word: &str) -> Option<u64> {
    let digits = word.strip_prefix('0').filter(|digits| !digits.is_empty());
    match digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())) {
        Some(digits) => u64::from_str_radix(digits, 8).ok(),
        None => number(word),
    }
}

#[cfg(test)]
mod tests {
    use super::read_bad_list;
    use holdfast_units::ByteRange;

    fn at(offset: u64, len: u64) -> ByteRange {
        ByteRange::new(offset, len)
    }

    #[test]
    fn a_list_of_badblocks() {
        assert_eq!(read_bad_list("", 1024), Ok(vec![]));
        let found = read_bad_list("7\n3\n\n4\n  9  \n", 1024);
        assert_eq!(found, Ok(vec![at(3072, 2048), at(7168, 1024), at(9216, 1024)]));
        assert_eq!(read_bad_list("3\n3\n", 4096), Ok(vec![at(12288, 4096)]));
    }

    #[test]
    fn a_map_file_of_ddrescue() {
        let map = "# Mapfile. Created by GNU ddrescue version 1.27\n\
                   # Command line: ddrescue /dev/sdb image map\n\
                   # current_pos  current_status  current_pass\n\
                   0x00120000     ?               1\n\
                   #      pos        size  status\n\
                   0x00000000  0x00117000  +\n\
                   0x00117000  0x00000200  -\n\
                   0x00117200  0x00000E00  /\n\
                   0x00118000  0x00001000  +\n\
                   0x00119000  0x00001000  *\n\
                   0x0011A000  0x7FEE6000  ?\n";
        let found = read_bad_list(map, 512);
        assert_eq!(found, Ok(vec![at(0x0011_7000, 0x1000), at(0x0011_9000, 0x1000)]));
    }

    #[test]
    fn a_map_file_of_an_old_ddrescue_or_with_numbers_from_elsewhere() {
        for head in ["# Rescue Logfile. Created by GNU ddrescue version 1.19", "# mapfile"] {
            let map = format!("{head}\n0x0 ?\n0 4096 +\n010000 512 -\n0X1200 01000 /\n00 0 *\n");
            assert_eq!(read_bad_list(&map, 512), Ok(vec![at(4096, 1024)]), "{head}");
        }
        let bare = "0x0 ? 1\n0x0 0x1000 +\n0x1000 0x200 -\n";
        assert_eq!(read_bad_list(bare, 512), Ok(vec![at(4096, 512)]), "without comments");
        assert_eq!(read_bad_list("010\n", 512), Ok(vec![at(5120, 512)]), "no map: decimal");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        for (text, line, why) in [
            ("1\nx\n", 2, "not the number"),
            ("-1\n", 1, "not the number"),
            ("+1\n", 1, "not the number"),
            ("1 2\n", 1, "more than one word"),
            ("99999999999999999999\n", 1, "not the number"),
            ("18446744073709551615\n", 1, "no disk"),
            ("# Mapfile\n0 ? 1\n0x0 0x10\n", 3, "POSITION SIZE STATUS"),
            ("# Mapfile\n0 ? 1\n0x0 0x10 x\n", 3, "status is none"),
            ("# Mapfile\n0 ? 1\n0x0 0x+1 -\n", 3, "POSITION SIZE STATUS"),
            ("# Mapfile\n0 ? 1\n0x0 08 -\n", 3, "POSITION SIZE STATUS"),
            ("# Mapfile\n0 ? 1\n0+1 0x1 -\n", 3, "POSITION SIZE STATUS"),
            ("# Mapfile\n0 ? 1\n0x0 0xFFFFFFFFFFFFFFFF -\n", 3, "no disk"),
        ] {
            let error = read_bad_list(text, 4096).unwrap_err();
            assert_eq!(error.line, line, "{text}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
