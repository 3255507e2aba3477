//! How the allocator treats memory that is free for a moment.

use std::sync::Once;

/// As much free memory at the end of a heap stays with the process: more than TLS has encrypted
/// and not yet sent.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 8 << 20;
/// Shorter pieces come from the heap. The default, which would no longer adapt itself, is 128 KiB.
#[cfg(target_env = "gnu")]
const LONG: libc::c_int = 4 << 20;

/// Keeps the allocator from giving memory back to the kernel that is needed again at once.
///
/// For each record TLS allocates 16 KiB and frees them when they are sent. By default glibc gives
/// back what exceeds 128 KiB, so that every record costs four page faults, and the kernel four
/// pages to clear: 0.29 ms for 1 MiB, a third of all that the sending thread did.
pub(super) fn keep_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(target_env = "gnu")]
        #[allow(unsafe_code)]
        // SAFETY: mallopt takes the allocator's own lock, and no value makes it unsafe. When it
        // refuses one, everything stays as it was.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
            libc::mallopt(libc::M_TOP_PAD, 1 << 20);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LONG);
        }
    });
}
