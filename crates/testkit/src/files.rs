//! Backing files: filled, hashed, compared. Holes are passed over, so that a sparse file of a
//! terabyte takes no time.

use crate::program::run_ok;
use crate::rng::Rng;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const STEP: usize = 1 << 20;

/// Makes a sparse file of `len` bytes, or gives an existing one that length.
///
/// # Panics
/// When it cannot.
pub fn make_sparse(path: &Path, len: u64) {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    file.and_then(|file| file.set_len(len))
        .unwrap_or_else(|why| panic!("{} cannot be made: {why}", path.display()));
}

/// Makes a program of this text, in the place of one that is there. Another process writes it: a
/// process that another test has just forked has all files open that this one writes, and a program
/// that somebody has open so cannot be run.
///
/// # Panics
/// When it cannot.
#[track_caller]
pub fn make_program(path: &Path, text: &str) {
    let script = r#"printf %s "$2" > "$1" && chmod 755 "$1""#;
    run_ok(Command::new("sh").args(["-c", script, "sh"]).arg(path).arg(text));
}

/// Makes a file of `len` random bytes.
///
/// # Panics
/// When it cannot.
pub fn make_random(path: &Path, len: u64, seed: u64) {
    make_sparse(path, len);
    let file = File::options().write(true).open(path).expect("it was just made");
    let mut rng = Rng::new(seed);
    let mut at = 0;
    while at < len {
        let step = usize::try_from(len - at).map_or(STEP, |left| left.min(STEP));
        let mut data = vec![0; step];
        rng.fill(&mut data);
        file.write_all_at(&data, at).expect("the file can be written");
        at += step as u64;
    }
}

/// Makes one file exactly like another, in place; a hole stays one.
///
/// # Panics
/// When it cannot.
pub fn copy(from: &Path, to: &Path) {
    let source = open(from);
    let len = source.metadata().expect("an open file has metadata").len();
    let target = File::options().create(true).truncate(true).write(true).open(to);
    let target = target.unwrap_or_else(|why| panic!("{} cannot be made: {why}", to.display()));
    target.set_len(len).expect("the file can grow");
    let mut buffer = vec![0; STEP];
    let mut at = next_data(&source, 0, len);
    while at < len {
        let step = usize::try_from(len - at).map_or(STEP, |left| left.min(STEP));
        read_or_zeroes(&source, &mut buffer[..step], at);
        target.write_all_at(&buffer[..step], at).expect("the file can be written");
        at = next_data(&source, at + step as u64, len);
    }
}

/// `len` bytes of a file; zeroes where it is shorter.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn read(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let file = open(path);
    let mut data = vec![0; len];
    read_or_zeroes(&file, &mut data, offset);
    data
}

/// The offset of the first byte in which the first `len` bytes of two files differ.
///
/// # Panics
/// When one cannot be read.
#[must_use]
pub fn first_difference(one: &Path, other: &Path, len: u64) -> Option<u64> {
    let files = [open(one), open(other)];
    let mut buffers = [vec![0; STEP], vec![0; STEP]];
    let mut at = 0;
    while at < len {
        // What is a hole in both is equal.
        let data = files.iter().map(|file| next_data(file, at, len)).min().unwrap_or(len);
        if data >= len {
            break;
        }
        at = data / STEP as u64 * STEP as u64;
        let step = usize::try_from(len - at).map_or(STEP, |left| left.min(STEP));
        for (file, buffer) in files.iter().zip(&mut buffers) {
            read_or_zeroes(file, &mut buffer[..step], at);
        }
        let [one, other] = &buffers;
        if one[..step] != other[..step] {
            let index = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(0);
            return Some(at + index as u64);
        }
        at += step as u64;
    }
    None
}

/// Panics when the first `len` bytes of two files differ, and says where.
#[track_caller]
pub fn assert_equal(one: &Path, other: &Path, len: u64) {
    if let Some(at) = first_difference(one, other, len) {
        let (a, b) = (read(one, at / 4096 * 4096, 16), read(other, at / 4096 * 4096, 16));
        panic!(
            "{} and {} differ at byte {at} (block {}), which begins {a:02x?} and {b:02x?}",
            one.display(),
            other.display(),
            at / 4096
        );
    }
}

/// A number that two files share only when their first `len` bytes are equal, all but certainly.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn fingerprint(path: &Path, len: u64) -> u64 {
    use std::hash::{Hash, Hasher};
    let file = open(path);
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < len {
        let data = next_data(&file, at, len);
        if data >= len {
            break;
        }
        at = data / STEP as u64 * STEP as u64;
        let step = usize::try_from(len - at).map_or(STEP, |left| left.min(STEP));
        read_or_zeroes(&file, &mut buffer[..step], at);
        if buffer[..step].iter().any(|byte| *byte != 0) {
            (at, &buffer[..step]).hash(&mut hasher);
        }
        at += step as u64;
    }
    hasher.finish()
}

/// How many bytes of the disk a file takes.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path);
    meta.unwrap_or_else(|why| panic!("{}: {why}", path.display())).blocks() * 512
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|why| panic!("{} cannot be read: {why}", path.display()))
}

/// Where the next data is, at or after `at`; `end` when there is none before it.
fn next_data(file: &File, at: u64, end: u64) -> u64 {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data.min(end),
        Err(Errno::NXIO) => end,
        Err(_) => at,
    }
}

fn read_or_zeroes(file: &File, data: &mut [u8], offset: u64) {
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(why) => panic!("a file cannot be read at {offset}: {why}"),
        }
    }
    data[filled..].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    #[test]
    fn sparse_files_are_compared_at_once_and_exactly() {
        let scratch = Scratch::new();
        let (one, other) = (scratch.join("one"), scratch.join("other"));
        let len = 1 << 40;
        make_sparse(&one, len);
        make_sparse(&other, len);
        assert_eq!(first_difference(&one, &other, len), None);
        let write = |path: &Path, data: &[u8], at| {
            File::options().write(true).open(path).unwrap().write_all_at(data, at).unwrap();
        };
        let at = (1 << 39) + 12345;
        write(&one, b"x", at);
        assert_eq!(first_difference(&one, &other, len), Some(at));
        assert_eq!(first_difference(&one, &other, at), None);
        assert_ne!(fingerprint(&one, len), fingerprint(&other, len));
        write(&other, b"x", at);
        write(&other, &[0; 10_000], 77);
        assert_eq!(first_difference(&one, &other, len), None);
        assert_eq!(fingerprint(&one, len), fingerprint(&other, len));
        assert_eq!(read(&one, at, 2), b"x\0");
        let third = scratch.join("third");
        copy(&one, &third);
        assert_equal(&one, &third, len);
        assert_eq!(std::fs::metadata(&third).unwrap().len(), len);
        assert!(allocated(&one) <= 8192);
    }

    #[test]
    fn random_files_have_their_seed() {
        let scratch = Scratch::new();
        let (one, other) = (scratch.join("one"), scratch.join("other"));
        make_random(&one, 3_000_001, 1);
        make_random(&other, 3_000_001, 1);
        assert_equal(&one, &other, 3_000_001);
        make_random(&other, 3_000_001, 2);
        assert_eq!(first_difference(&one, &other, 3_000_001), Some(0));
    }
}
