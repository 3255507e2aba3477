//! Aligned memory for payload, kept and used again.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Every buffer starts on a multiple of this many bytes, which is enough for `O_DIRECT` anywhere.
pub const BUFFER_ALIGN: usize = 4096;

/// Classes hold 4 KiB << class: 4 KiB to 1 MiB. Longer buffers are not kept.
const CLASSES: usize = 9;

/// A pool of buffers aligned to [`BUFFER_ALIGN`].
///
/// Memory comes back when a buffer, or the last `Bytes` made of it, is dropped, on whatever
/// thread. At most `limit` bytes of free memory are kept; the rest returns to the allocator.
/// Clones are the same pool. Meant for one thread: others may drop buffers, but would wait for
/// each other if they took many.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    limit: usize,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    lists: [Vec<Block>; CLASSES],
    bytes: usize,
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Free> {
        // The lists are whole between any two statements, so a panic elsewhere spoils nothing.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BufferPool {
    /// A pool that keeps at most `limit` bytes of free memory.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Shared { limit, free: Mutex::default() }) }
    }

    /// A buffer of `len` bytes whose content is arbitrary (but initialised): overwrite it.
    #[must_use]
    pub fn get(&self, len: usize) -> AlignedBuf {
        let kept = class_of(len).and_then(|class| {
            let mut free = self.shared.free();
            let block = free.lists[class].pop()?;
            free.bytes -= block.layout.size();
            Some(block)
        });
        let block = kept.unwrap_or_else(|| Block::new(capacity_of(len)));
        AlignedBuf { block: Some(block), len, home: Arc::clone(&self.shared) }
    }

    /// A buffer that holds a copy of `data`.
    #[must_use]
    pub fn copy_of(&self, data: &[u8]) -> AlignedBuf {
        let mut buffer = self.get(data.len());
        buffer.copy_from_slice(data);
        buffer
    }

    /// How many bytes of free memory are kept right now.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.shared.free().bytes
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool").field("limit", &self.shared.limit).finish_non_exhaustive()
    }
}

/// The class whose buffers hold `len` bytes; `None` when they are longer than any class.
fn class_of(len: usize) -> Option<usize> {
    (0..CLASSES).find(|class| len <= BUFFER_ALIGN << class)
}

fn capacity_of(len: usize) -> usize {
    class_of(len).map_or_else(|| len.next_multiple_of(BUFFER_ALIGN), |class| BUFFER_ALIGN << class)
}

/// Owned memory, aligned and initialised.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is the only owner of its memory, like a `Box<[u8]>`, and has no thread affinity.
unsafe impl Send for Block {}
// SAFETY: a shared block only gives out shared slices of plain bytes.
unsafe impl Sync for Block {}

impl Block {
    fn new(capacity: usize) -> Self {
        let layout = Layout::from_size_align(capacity, BUFFER_ALIGN)
            .expect("no buffer is near the size of the address space");
        // SAFETY: the layout's size is not zero: the smallest class has 4096 bytes.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` came from the global allocator with this very layout, once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A buffer that can be written to, aligned to [`BUFFER_ALIGN`]. Dropped, it returns to its pool.
pub struct AlignedBuf {
    /// Taken only by `drop`.
    block: Option<Block>,
    len: usize,
    home: Arc<Shared>,
}

impl AlignedBuf {
    /// Makes it immutable and shareable, without a copy. The memory returns to the pool when the
    /// last clone or slice is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Shortens it to `len` bytes; does nothing when it is not longer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn start(&self) -> NonNull<u8> {
        self.block.as_ref().map_or(NonNull::dangling(), |block| block.start)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `len` initialised bytes (it is gone only during `drop`),
        // and the borrow of `self` keeps everyone from writing to them.
        unsafe { std::slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow of `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }
}

impl From<AlignedBuf> for Bytes {
    fn from(buffer: AlignedBuf) -> Self {
        buffer.freeze()
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let Some(block) = self.block.take() else { return };
        let size = block.layout.size();
        let Some(class) = class_of(size) else { return };
        let mut free = self.home.free();
        if free.bytes + size <= self.home.limit {
            free.bytes += size;
            free.lists[class].push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUFFER_ALIGN, BufferPool};

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let pool = BufferPool::new(1 << 20);
        for len in [0, 1, 4095, 4096, 4097, 65536, 100_000, 1 << 20, (1 << 20) + 1, 5 << 20] {
            let mut buffer = pool.get(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().addr().is_multiple_of(BUFFER_ALIGN));
            buffer.fill(7);
            buffer.truncate(10);
            assert_eq!(buffer.len(), len.min(10));
        }
    }

    #[test]
    fn memory_returns_with_the_last_clone_and_is_used_again() {
        let pool = BufferPool::new(1 << 20);
        let buffer = pool.copy_of(&[9; 4096]);
        let start = buffer.as_ptr();
        let bytes = buffer.freeze();
        let slice = bytes.slice(100..200);
        drop(bytes);
        assert_eq!(pool.free_bytes(), 0, "a slice still holds the memory");
        std::thread::spawn(move || assert_eq!(slice[..], [9; 100])).join().unwrap();
        assert_eq!(pool.free_bytes(), 4096);
        assert_eq!(pool.get(17).as_ptr(), start);
    }

    #[test]
    fn free_memory_is_bounded() {
        let pool = BufferPool::new(10_000);
        let held: Vec<_> = (0..8).map(|_| pool.get(4096)).collect();
        drop(held);
        assert_eq!(pool.free_bytes(), 8192);
        drop(pool.get(2 << 20));
        assert_eq!(pool.free_bytes(), 8192, "long buffers are not kept");
    }
}
