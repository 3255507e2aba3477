use bytes::Bytes;
use std::ops::DerefMut;
use std::sync::{Arc, Mutex, PoisonError};

/// A buffer that the payload of a write is read into.
pub trait PayloadBuf {
    /// All of its bytes: exactly as many as were asked for. What they hold before the payload
    /// has been read is of no interest.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// The filled buffer, to be shared. Gives the memory back when the last user is done.
    fn freeze(self: Box<Self>) -> Bytes;
}

/// Where the server gets buffers for the payloads of writes, so that they can be aligned as the
/// backing device wants them.
pub trait PayloadBuffers {
    /// A buffer of exactly `len` bytes. Never fails: how much a connection can ask for at a time
    /// is bounded by [`crate::ServerOptions::max_bytes`].
    fn get(&self, len: usize) -> Box<dyn PayloadBuf>;
}

/// Any memory that becomes bytes when it is full, such as the aligned buffers of a disk.
impl<B: DerefMut<Target = [u8]> + Into<Bytes>> PayloadBuf for B {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }

    fn freeze(self: Box<Self>) -> Bytes {
        (*self).into()
    }
}

/// Whatever gives a buffer of a length.
impl<B: PayloadBuf + 'static, F: Fn(usize) -> B> PayloadBuffers for F {
    fn get(&self, len: usize) -> Box<dyn PayloadBuf> {
        Box::new(self(len))
    }
}

/// Buffers on the heap that are used again; without any alignment. Clones share them.
#[derive(Clone, Debug)]
pub struct HeapBuffers {
    pool: Arc<Mutex<Pool>>,
}

#[derive(Debug)]
struct Pool {
    /// By the power of two that their length is.
    free: Vec<Vec<Vec<u8>>>,
    kept: usize,
    keep: usize,
}

/// The smallest buffer is `1 << MIN_CLASS` bytes.
const MIN_CLASS: u32 = 12;
const MAX_CLASS: u32 = 26;

impl HeapBuffers {
    /// Buffers of which at most `keep` bytes are kept for later.
    #[must_use]
    pub fn new(keep: usize) -> Self {
        let free = (MIN_CLASS..=MAX_CLASS).map(|_| Vec::new()).collect();
        Self { pool: Arc::new(Mutex::new(Pool { free, kept: 0, keep })) }
    }
}

impl Default for HeapBuffers {
    fn default() -> Self {
        Self::new(16 << 20)
    }
}

/// Which list a buffer of `len` bytes belongs to; `None` when it is too long to be kept.
fn class(len: usize) -> Option<usize> {
    let bits = len.checked_next_power_of_two()?.ilog2().max(MIN_CLASS);
    usize::try_from(bits - MIN_CLASS).ok().filter(|_| bits <= MAX_CLASS)
}

impl Pool {
    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let memory = self.free.get_mut(class)?.pop()?;
        self.kept -= memory.len();
        Some(memory)
    }

    fn put(&mut self, memory: Vec<u8>) {
        let Some(list) = class(memory.len()).and_then(|class| self.free.get_mut(class)) else {
            return;
        };
        if self.kept + memory.len() <= self.keep {
            self.kept += memory.len();
            list.push(memory);
        }
    }
}

impl PayloadBuffers for HeapBuffers {
    fn get(&self, len: usize) -> Box<dyn PayloadBuf> {
        let class = class(len);
        let pooled = class.and_then(|class| self.lock().take(class));
        let memory = pooled.unwrap_or_else(|| {
            vec![0; class.map_or(len, |class| 1 << (class + MIN_CLASS as usize))]
        });
        Box::new(HeapBuf { memory, len, home: self.clone() })
    }
}

impl HeapBuffers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        // A panic elsewhere cannot leave the lists half changed.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct HeapBuf {
    memory: Vec<u8>,
    len: usize,
    home: HeapBuffers,
}

impl PayloadBuf for HeapBuf {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    fn freeze(self: Box<Self>) -> Bytes {
        Bytes::from_owner(*self)
    }
}

impl AsRef<[u8]> for HeapBuf {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for HeapBuf {
    fn drop(&mut self) {
        self.home.lock().put(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::{HeapBuffers, PayloadBuffers};

    #[test]
    fn buffers_have_the_length_asked_for_and_are_used_again() {
        let buffers = HeapBuffers::new(1 << 20);
        for len in [1, 4095, 4096, 5000, 1 << 20, (64 << 20) + 1] {
            let mut buf = buffers.get(len);
            assert_eq!(buf.bytes_mut().len(), len);
            buf.bytes_mut().fill(7);
            let frozen = buf.freeze();
            assert_eq!(frozen.len(), len);
            assert!(frozen.iter().all(|byte| *byte == 7));
        }
        let mut again = buffers.get(5000);
        assert_eq!(again.bytes_mut()[0], 7, "the buffer of before");
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let buffers = HeapBuffers::new(16384);
        let many: Vec<_> = (0..100).map(|_| buffers.get(4096)).collect();
        drop(many);
        assert_eq!(buffers.lock().kept, 16384);
    }
}
