//! Reads and writes of files, through the page cache and around it.

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const ALIGN: usize = 4096;
/// What the kernel takes with one write.
const MAX_SLICES: usize = 1024;

/// Reads; how many bytes there were, less than asked for only at the end of the file.
pub(super) fn read_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes parts one behind the other.
pub(super) fn write_parts(file: impl AsFd, offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    write_all(file, &mut slices, offset)
}

/// How long a claim waits for what the kernel still writes for a process that was killed: that holds
/// what it was written through.
pub(super) const LAST_WRITES: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Claims an open file, until nothing holds it any more, the kernel's last writes for it among that.
pub(super) fn lock_within(file: impl AsFd, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                // Nobody tells when a claim ends, so it has to be asked for again.
                std::thread::sleep(LOOK_AGAIN);
            }
            locked => return Ok(locked?),
        }
    }
}

/// The same to a file that takes aligned memory only: what is not is copied into `scratch`.
pub(super) fn write_around(
    file: impl AsFd,
    offset: u64,
    parts: &[Bytes],
    scratch: &mut Vec<u8>,
) -> io::Result<()> {
    copy_unaligned(parts, scratch);
    let begin = scratch.as_ptr().align_offset(ALIGN);
    write_all(file, &mut slices_of(parts, &scratch[begin..]), offset)
}

/// Copies those parts that cannot go as they are, one behind the other, into the scratch memory.
fn copy_unaligned(parts: &[Bytes], scratch: &mut Vec<u8>) {
    let unaligned = || placed(parts).filter(|(part, at)| !goes_as_it_is(part, *at));
    let len = unaligned().map(|(part, _)| part.len()).sum::<usize>() + ALIGN;
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    let mut at = scratch.as_ptr().align_offset(ALIGN);
    for (part, _) in unaligned() {
        scratch[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

/// The parts, each with the bytes before it.
fn placed(parts: &[Bytes]) -> impl Iterator<Item = (&Bytes, usize)> {
    let mut end = 0;
    parts.iter().map(move |part| {
        let at = end;
        end += part.len();
        (part, at)
    })
}

/// Whether a part can go to the disk from where it is: of two that are not, what lies between must be
/// whole blocks, so its place counts, too.
fn goes_as_it_is(part: &Bytes, at: usize) -> bool {
    let in_memory = part.as_ptr().addr().is_multiple_of(ALIGN);
    in_memory && part.len().is_multiple_of(ALIGN) && at.is_multiple_of(ALIGN)
}

/// The parts as they can be written: those that cannot go as they are lie in `copies`, one behind the
/// other.
fn slices_of<'a>(parts: &'a [Bytes], mut copies: &'a [u8]) -> Vec<IoSlice<'a>> {
    let mut slices = Vec::with_capacity(parts.len());
    let mut copied = 0;
    for (part, at) in placed(parts) {
        if goes_as_it_is(part, at) {
            let (run, rest) = copies.split_at(copied);
            if !run.is_empty() {
                slices.push(IoSlice::new(run));
            }
            (copies, copied) = (rest, 0);
            slices.push(IoSlice::new(part));
        } else {
            copied += part.len();
        }
    }
    if copied > 0 {
        slices.push(IoSlice::new(&copies[..copied]));
    }
    slices
}

/// Writes all of the slices, one behind the other.
fn write_all(file: impl AsFd, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    while !slices.is_empty() {
        match rustix::io::pwritev(&file, &slices[..slices.len().min(MAX_SLICES)], at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, slices_of};
    use bytes::Bytes;

    #[test]
    fn a_part_goes_as_it_is_only_where_a_block_begins() {
        let aligned = |blocks: usize| {
            let whole = Bytes::from(vec![7; (blocks + 1) * ALIGN]);
            let skip = whole.as_ptr().align_offset(ALIGN);
            whole.slice(skip..skip + blocks * ALIGN)
        };
        let (head, tail) = (Bytes::from(vec![1; 104]), Bytes::from(vec![2; ALIGN - 104]));
        let copies = vec![9; 4 * ALIGN];
        let lens = |parts: &[Bytes]| {
            slices_of(parts, &copies).iter().map(|slice| slice.len()).collect::<Vec<_>>()
        };
        assert_eq!(lens(&[head.clone(), tail.clone(), aligned(1)]), [ALIGN, ALIGN]);
        // By chance at a good place in memory, and not in the file.
        assert_eq!(lens(&[head.clone(), aligned(1), tail.clone()]), [2 * ALIGN]);
        assert_eq!(lens(&[aligned(2), head, aligned(1), tail]), [2 * ALIGN, 2 * ALIGN]);
    }
}
