/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError(String);

impl std::fmt::Display for SizeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} is not a size: write a number of bytes, or one with K, M, G, T or P",
            self.0
        )
    }
}

impl std::error::Error for SizeError {}

const UNITS: [(&str, u32); 6] = [("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// Reads a size in bytes: `4096`, `64K`, `10G`; also `KiB` and `k`. Units are powers of 1024.
///
/// # Errors
/// [`SizeError`] when it is not such a text or does not fit into 63 bits.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let fail = || SizeError(text.chars().take(80).collect());
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| fail())?;
    let unit = text[digits..].to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").unwrap_or(&unit);
    let unit = if unit == "B" { "" } else { unit };
    let shift = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(fail)?.1;
    let bytes = number.checked_mul(1 << shift).ok_or_else(fail)?;
    if i64::try_from(bytes).is_err() { Err(fail()) } else { Ok(bytes) }
}

/// Writes a size for people: `0 B`, `512 B`, `4 KiB`, `1.5 GiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let (name, shift) = UNITS.iter().rev().find(|(_, s)| bytes >> s > 0).unwrap_or(&UNITS[0]);
    if *shift == 0 {
        return format!("{bytes} B");
    }
    let whole = bytes >> shift;
    let tenths = ((bytes & ((1 << shift) - 1)) * 10) >> shift;
    if tenths == 0 { format!("{whole} {name}iB") } else { format!("{whole}.{tenths} {name}iB") }
}

#[cfg(test)]
mod tests {
    use super::{format_size, parse_size};

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65536));
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("7b"), Ok(7));
        for bad in ["", "K", "-1", "1.5G", "10X", "9999999999G", "99999999999999999999", "1 G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(format_size(0), "0 B");
        assert_eq!(format_size(4096), "4 KiB");
        assert_eq!(format_size(3 << 29), "1.5 GiB");
    }
}
