//! What somebody else has put on a disk, as far as its first bytes tell.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How much is looked at.
pub(super) const LOOKED_AT: usize = 68 << 10;

/// Bytes at an offset, and whose they are.
const MARKS: [(usize, &[u8], &str); 14] = [
    (1080, b"\x53\xEF", "an ext filesystem"),
    (0, b"XFSB", "an XFS filesystem"),
    (0x10040, b"_BHRfS_M", "a Btrfs filesystem"),
    (3, b"NTFS    ", "an NTFS filesystem"),
    (3, b"EXFAT   ", "an exFAT filesystem"),
    (1024, b"\x10\x20\xF5\xF2", "an F2FS filesystem"),
    (0, b"hsqs", "a SquashFS filesystem"),
    (0x8001, b"CD001", "an ISO 9660 filesystem"),
    (0, b"LUKS\xBA\xBE", "an encrypted volume (LUKS)"),
    (4086, b"SWAPSPACE2", "swap space"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (4096, b"\xFC\x4E\x2B\xA9", "a member of a RAID (md)"),
    (0, b"QFI\xFB", "an image in the format qcow2"),
];

/// What somebody has put on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Signature {
    /// In words.
    pub(super) what: &'static str,
    /// Where it ends, in bytes, if its first bytes say so.
    pub(super) end: Option<u64>,
}

/// What the disk holds; `None` when that is nothing known. A disk that cannot be read holds nothing
/// known either: who opens it is told why.
pub(super) fn signature_of(path: &Path) -> Option<Signature> {
    let mut start = Vec::with_capacity(LOOKED_AT);
    File::open(path).ok()?.take(LOOKED_AT as u64).read_to_end(&mut start).ok()?;
    signature_in(&start)
}

/// What a disk holds that begins with these bytes, [`LOOKED_AT`] of them if it has as many.
pub(super) fn signature_in(start: &[u8]) -> Option<Signature> {
    let has = |at: usize, bytes: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    if let Some((_, mark, what)) = MARKS.iter().find(|(at, bytes, _)| has(*at, bytes)) {
        return Some(Signature { what, end: end_of(mark, start) });
    }
    // LVM looks for its label in the first four sectors.
    if (0..4).any(|sector| has(sector * 512, b"LABELONE")) {
        return Some(Signature { what: "a physical volume of LVM", end: None });
    }
    has(510, b"\x55\xAA").then(|| of_boot_sector(start)).flatten()
}

/// Where a filesystem ends, for the common ones: their superblocks say it.
fn end_of(mark: &[u8], start: &[u8]) -> Option<u64> {
    let le32 = |at: usize| Some(u32::from_le_bytes(*start.get(at..)?.first_chunk()?));
    let be32 = |at: usize| Some(u32::from_be_bytes(*start.get(at..)?.first_chunk()?));
    let le64 = |at: usize| Some(u64::from_le_bytes(*start.get(at..)?.first_chunk()?));
    let be64 = |at: usize| Some(u64::from_be_bytes(*start.get(at..)?.first_chunk()?));
    match mark {
        b"\x53\xEF" => {
            let blocks = u64::from(le32(1028)?) | u64::from(le32(1360)?) << 32;
            let block = 1024u64.checked_shl(le32(1048)?).unwrap_or(0);
            Some(blocks.saturating_mul(block))
        }
        b"XFSB" => Some(be64(8)?.saturating_mul(u64::from(be32(4)?))),
        b"_BHRfS_M" => le64(0x10070),
        _ => None,
    }
}

/// FAT and the old partition table both end their first sector in the same way.
fn of_boot_sector(start: &[u8]) -> Option<Signature> {
    if start[54..].starts_with(b"FAT") || start[82..].starts_with(b"FAT") {
        return Some(Signature { what: "a FAT filesystem", end: None });
    }
    let entries = || start[446..510].chunks(16);
    let plausible = entries().all(|entry| matches!(entry[0], 0 | 0x80));
    let le32 = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let used = entries().filter(|entry| entry[4] != 0);
    let end = used.map(|e| (u64::from(le32(&e[8..])) + u64::from(le32(&e[12..]))) * 512).max();
    let what = "a partition table (MBR)";
    end.filter(|_| plausible).map(|end| Signature { what, end: Some(end) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn of(marks: &[(usize, &[u8])], len: usize) -> Option<&'static str> {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; len];
        for (at, mark) in marks {
            bytes[*at..at + mark.len()].copy_from_slice(mark);
        }
        let path = dir.path().join("disk");
        fs::write(&path, bytes).unwrap();
        signature_of(&path).map(|found| found.what)
    }

    #[test]
    fn each_mark_is_found_and_nothing_else() {
        for (at, bytes, what) in MARKS {
            assert_eq!(of(&[(at, bytes)], 128 << 10), Some(what));
            assert_eq!(of(&[(at + 1, bytes)], 128 << 10), None, "{what}");
        }
        assert_eq!(of(&[(512, b"LABELONE")], 4096), Some("a physical volume of LVM"));
        let end: (usize, &[u8]) = (510, b"\x55\xAA");
        assert_eq!(of(&[end], 4096), None);
        assert_eq!(of(&[end, (450, b"\x83")], 4096), Some("a partition table (MBR)"));
        assert_eq!(of(&[end, (450, b"\x83"), (462, b"\x17")], 4096), None);
        assert_eq!(of(&[end, (82, b"FAT32")], 4096), Some("a FAT filesystem"));
        for len in [0, 1, 511, 512, 4096] {
            assert_eq!(of(&[], len), None);
        }
        assert_eq!(signature_of(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_zeroes_and_the_noise_of_others_are_nothing_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let noise: Vec<u8> = (0..LOOKED_AT).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
        fs::write(&path, noise).unwrap();
        assert_eq!(signature_of(&path), None);
    }
}
