//! Memory that is shared with the kernel.
#![allow(unsafe_code)]

use crate::uapi::{IoDescriptor, descriptors_offset};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A mapping, unmapped when dropped.
struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread; what is in it is only touched by
// the methods of its owners below, which say why that is sound.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(
        length: usize,
        protection: libc::c_int,
        flags: libc::c_int,
        file: libc::c_int,
        offset: u64,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at a place that the kernel chooses overlaps no memory that
        // anything else uses.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

/// The descriptors of one queue: the kernel writes them, we read.
pub(crate) struct Descriptors {
    mapping: Mapping,
    depth: u16,
}

impl Descriptors {
    pub(crate) fn map(device: &File, queue: u16, depth: u16) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let length = (usize::from(depth) * size_of::<IoDescriptor>()).next_multiple_of(page);
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let offset = descriptors_offset(queue);
        let mapping = Mapping::new(length, libc::PROT_READ, flags, device.as_raw_fd(), offset)?;
        Ok(Self { mapping, depth })
    }

    /// The request that has this tag. Only means something between the completion of its fetch and
    /// its answer.
    pub(crate) fn get(&self, tag: u16) -> IoDescriptor {
        assert!(tag < self.depth, "the kernel has {} tags", self.depth);
        let first = self.mapping.start.as_ptr().cast::<IoDescriptor>();
        // SAFETY: the mapping holds `depth` descriptors and begins at a page, so it is aligned.
        // The kernel wrote this one before it completed the fetch, and leaves it alone until it
        // is answered; any bits are a descriptor.
        unsafe { first.add(usize::from(tag)).read_volatile() }
    }
}

/// A buffer for the data of each tag, for drivers that only copy from and to our memory.
pub(crate) struct Buffers {
    mapping: Mapping,
    each: usize,
    depth: u16,
}

impl Buffers {
    /// Their pages are only there once they are used.
    pub(crate) fn new(depth: u16, each: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mapping = Mapping::new(usize::from(depth) * each, protection, flags, -1, 0)?;
        Ok(Self { mapping, each, depth })
    }

    /// Where the kernel finds the buffer of this tag.
    pub(crate) fn address(&self, tag: u16) -> u64 {
        self.start(tag).expose_provenance() as u64
    }

    /// Copies out of the buffer of a tag. The caller has it to itself: it holds the tag's lock, and
    /// the request is with us.
    pub(crate) fn read(&self, tag: u16, data: &mut [u8]) {
        assert!(data.len() <= self.each, "a request is never longer than its buffer");
        // SAFETY: the buffer has at least that many bytes and is no part of `data`; the kernel
        // filled it before it completed the fetch, and the lock keeps other threads out.
        unsafe { self.start(tag).copy_to_nonoverlapping(data.as_mut_ptr(), data.len()) };
    }

    /// Copies into the buffer of a tag, as [`Buffers::read`].
    pub(crate) fn write(&self, tag: u16, data: &[u8]) {
        assert!(data.len() <= self.each, "a request is never longer than its buffer");
        // SAFETY: as in `read`; the kernel reads it when the request is answered.
        unsafe { self.start(tag).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }

    fn start(&self, tag: u16) -> *mut u8 {
        assert!(tag < self.depth, "there are {} tags", self.depth);
        // SAFETY: the mapping has `depth` buffers of `each` bytes.
        unsafe { self.mapping.start.as_ptr().cast::<u8>().add(usize::from(tag) * self.each) }
    }
}

#[cfg(test)]
mod tests {
    use super::Buffers;

    #[test]
    fn each_tag_has_its_own_buffer() {
        let buffers = Buffers::new(4, 8192).unwrap();
        for tag in 0..4_u16 {
            buffers.write(tag, &[u8::try_from(tag).unwrap() + 1; 8192]);
        }
        for tag in 0..4_u16 {
            let mut data = [0; 100];
            buffers.read(tag, &mut data);
            assert_eq!(data, [u8::try_from(tag).unwrap() + 1; 100]);
            assert_eq!(buffers.address(tag), buffers.address(0) + u64::from(tag) * 8192);
        }
    }

    #[test]
    #[should_panic(expected = "there are 4 tags")]
    fn no_tag_beyond_the_last() {
        Buffers::new(4, 4096).unwrap().address(4);
    }
}
