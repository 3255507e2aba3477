//! Reads and writes of files that live in memory, through a mapping of the file.
//!
//! The kernel copies a write into tmpfs page by page, and for every page it waits until the stores
//! have reached memory: 245 µs for 1 MiB, where streaming stores into a mapping take 85. A read
//! looks for every page in the tree of the file's pages, which for a large file is in no cache.
//! Nothing else changes: a store into the mapping is in the file at once, whatever becomes of the
//! process.
//!
//! A copy can fail where `pread` or `pwrite` would return an error: when somebody else has cut the
//! file, or memory is broken. The kernel then sends SIGBUS. The handler puts an anonymous page in
//! the way, so that the copy runs to its end, and the mapping is never used again: the request is
//! repeated by a system call, which says what is wrong. Pages that the file does not have yet are
//! left to system calls from the start, because a full filesystem would be told the same way, and
//! because the kernel would fill every one with zeroes first.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};

use holdfast_units::ByteRange;
use rustix::fs::{SeekFrom, seek};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munlock, munmap};

/// What is known to be allocated is kept in units of this many bytes.
const UNIT: u64 = 64 << 10;
/// Longer files are mapped up to here.
const MAX_MAPPED: u64 = 1 << 40;
/// How many stretches of data are looked at when a file is opened.
const MAX_STRETCHES: usize = 4096;
/// How much the kernel maps around a page that is read.
const AROUND: usize = 64 << 10;
/// Writes up to this many bytes are left to system calls, which a killed process leaves between two
/// pages and never within one.
const SHORT: usize = 64 << 10;
/// The smallest page of any machine.
const PAGE: usize = 4096;

/// A mapping of a file from its start on.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// A bit for every unit all of whose pages the file had when we last knew.
    present: Box<[AtomicU64]>,
    /// A store has failed.
    broken: AtomicBool,
}

// SAFETY: the mapping is memory of the process and not of a thread, and belongs to this value.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference bytes are only copied in or out, never lent. Copies of the
// same bytes at the same time leave a mixture, as `pread` and `pwrite` would.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `size` bytes of a file that lives in memory. `None` when that cannot be done,
    /// or is not worth it.
    pub(crate) fn of(file: &File, size: u64) -> Option<Self> {
        let size = size.min(MAX_MAPPED) / UNIT * UNIT;
        let len = usize::try_from(size).ok().filter(|len| *len > 0)?;
        install_handler().ok()?;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
        let start = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            mmap(null_mut(), len, protection, MapFlags::SHARED, file.as_fd(), 0)
        };
        let start = start.ok()?;
        // SAFETY: this is the mapping just made; the advice changes nothing for its content.
        // When it is not taken, a core dump may be larger.
        let _ = unsafe { madvise(start, len, Advice::LinuxDontDump) };
        // SAFETY: as above. A process that locks its memory must not lock the file's: it may be
        // much larger than memory, and what is in swap need not come back for it.
        let _ = unsafe { munlock(start, len) };
        let start = NonNull::new(start.cast())?;
        let words = (size / UNIT).div_ceil(64);
        let present = (0..words).map(|_| AtomicU64::new(0)).collect();
        let mapping = Self { start, len, present, broken: AtomicBool::new(false) };
        mapping.find_present(file);
        Some(mapping)
    }

    /// Marks what the file has.
    fn find_present(&self, file: &File) {
        let mut at = 0;
        for _ in 0..MAX_STRETCHES {
            let Ok(data) = seek(file, SeekFrom::Data(at)) else { return };
            let Ok(hole) = seek(file, SeekFrom::Hole(data)) else { return };
            self.written(ByteRange::new(data, hole - data));
            at = hole;
        }
    }

    /// Writes `data`. Whether that is done; if not, it has to be done otherwise.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Ok(start) = usize::try_from(offset) else { return false };
        let range = ByteRange::new(offset, data.len() as u64);
        if data.len() <= SHORT
            || !start.is_multiple_of(PAGE)
            || !data.len().is_multiple_of(PAGE)
            || start.checked_add(data.len()).is_none_or(|end| end > self.len)
            || self.broken.load(Ordering::Relaxed)
            || !self.is_present(range)
        {
            return false;
        }
        // SAFETY: start + data.len() <= self.len, so the result is inside the mapping.
        let target = unsafe { self.start.add(start) };
        // SAFETY: the mapping is writable memory of that length, nobody has a reference to it, and
        // it stays until `self` is dropped; a payload is never a part of it.
        let store = || unsafe {
            touch(target, data.len());
            stream(target.as_ptr(), data);
        };
        self.checked(guarded((target, data.len()), store))
    }

    /// Whether the file, which is `len` bytes long now, still has all that is mapped. A copy into the
    /// rest of its last page fails nobody, but is not in the file.
    pub(crate) fn is_whole(&self, len: u64) -> bool {
        len >= self.len as u64 || self.broken.load(Ordering::Relaxed)
    }

    /// Fills `buffer`. Whether that is done; if not, it has to be done otherwise, and what the
    /// buffer holds is not to be used.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let Ok(start) = usize::try_from(offset) else { return false };
        let len = buffer.len();
        if start.checked_add(len).is_none_or(|end| end > self.len)
            || self.broken.load(Ordering::Relaxed)
            || !self.is_present(ByteRange::new(offset, len as u64))
        {
            return false;
        }
        // SAFETY: start + len <= self.len, so the result is inside the mapping.
        let source = unsafe { self.start.add(start) };
        // SAFETY: the mapping is readable memory of that length and stays until `self` is dropped;
        // the buffer is exclusively borrowed, so it is no part of it.
        let load = || unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), buffer.as_mut_ptr(), buffer.len());
        };
        self.checked(guarded((source, len), load))
    }

    /// Sends bytes to a socket, without waiting and without a copy of ours; how many.
    ///
    /// # Errors
    /// What the socket says; `EFAULT` when the file has lost some of them.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, range: ByteRange) -> io::Result<usize> {
        let (Ok(start), Ok(len)) = (usize::try_from(range.offset), usize::try_from(range.len))
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if !self.has(range) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `has` says that start + len <= self.len, so this is inside the mapping, which stays
        // until `self` is dropped. The kernel only reads there; where the file has no page any more
        // it returns EFAULT.
        let sent = unsafe {
            libc::send(socket.as_raw_fd(), self.start.as_ptr().add(start).cast(), len, flags)
        };
        let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error());
        if sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT)) {
            self.checked(false);
        }
        sent
    }

    /// After a copy that failed nothing goes through the mapping any more.
    fn checked(&self, done: bool) -> bool {
        if !done {
            tracing::warn!("a file in memory was cut short, or its memory is broken");
            self.broken.store(true, Ordering::Relaxed);
        }
        done
    }

    /// The file has got these bytes by other means.
    pub(crate) fn written(&self, range: ByteRange) {
        self.for_units(range.offset.div_ceil(UNIT), range.end() / UNIT, |word, bit| {
            word.fetch_or(bit, Ordering::Relaxed);
        });
    }

    /// The file may lose pages of this range.
    pub(crate) fn dropped(&self, range: ByteRange) {
        self.for_units(range.offset / UNIT, range.end().div_ceil(UNIT), |word, bit| {
            word.fetch_and(!bit, Ordering::Relaxed);
        });
    }

    /// Whether all of a range is mapped, and known to be allocated.
    pub(crate) fn has(&self, range: ByteRange) -> bool {
        range.end() <= self.len as u64
            && !self.broken.load(Ordering::Relaxed)
            && self.is_present(range)
    }

    fn is_present(&self, range: ByteRange) -> bool {
        let mut present = true;
        self.for_units(range.offset / UNIT, range.end().div_ceil(UNIT), |word, bit| {
            present &= word.load(Ordering::Relaxed) & bit != 0;
        });
        present
    }

    /// Calls `visit` with the word and the bit of every mapped unit from `first` up to `end`.
    fn for_units(&self, first: u64, end: u64, mut visit: impl FnMut(&AtomicU64, u64)) {
        for unit in first..end.min(self.len as u64 / UNIT) {
            let word = usize::try_from(unit / 64).ok().and_then(|word| self.present.get(word));
            if let Some(word) = word {
                visit(word, 1 << (unit % 64));
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nobody else knows it.
        // That it fails is as impossible as it would be harmless.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

thread_local! {
    /// Which part of a mapping the thread is copying, and how long it is. Nothing here has a destructor or is made
    /// lazily, so a signal handler may use it.
    static TARGET: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// The handler had to put a page in the way of the copy.
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a copy from or to a part of a mapping; whether the file has all of that part.
fn guarded((start, len): (NonNull<u8>, usize), copy: impl FnOnce()) -> bool {
    FAILED.set(false);
    TARGET.set((start.addr().get(), len));
    // The handler runs on this thread, so it is the compiler only that must keep the order.
    compiler_fence(Ordering::SeqCst);
    copy();
    compiler_fence(Ordering::SeqCst);
    TARGET.set((0, 0));
    !FAILED.get()
}

/// Reads a byte of every unit, so that the kernel maps the pages around it that it has: one page
/// fault for 16 pages, where stores would cause one for each.
///
/// # Safety
/// `len` bytes from `target` on are mapped for reading; the file behind them may be gone.
unsafe fn touch(target: NonNull<u8>, len: usize) {
    for at in (0..len).step_by(AROUND) {
        // SAFETY: `at` is below `len`. That somebody else may write the byte is why it is volatile;
        // its value is of no interest.
        unsafe { target.add(at).read_volatile() };
    }
}

/// Copies past the caches, where the machine can do that: nobody reads the data soon, and memory
/// that is overwritten whole need not be fetched first.
///
/// # Safety
/// `target` is aligned to 16 bytes, does not overlap `data`, and has room for it.
#[cfg(target_arch = "x86_64")]
unsafe fn stream(target: *mut u8, data: &[u8]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    let (lines, rest) = data.as_chunks::<64>();
    let mut to = target;
    for line in lines {
        let from = line.as_ptr();
        // SAFETY: every x86-64 has SSE2. Four times 16 bytes are the 64 of the line; as many are
        // left at `to`, which stays aligned to 16 bytes.
        unsafe {
            let words = [0, 16, 32, 48].map(|at| _mm_loadu_si128(from.add(at).cast()));
            for (at, word) in words.into_iter().enumerate() {
                _mm_stream_si128(to.add(16 * at).cast(), word);
            }
            to = to.add(64);
        }
    }
    // SAFETY: the rest of `data` has its room behind the lines. The fence orders the streaming
    // stores before whatever tells others that they are done.
    unsafe {
        std::ptr::copy_nonoverlapping(rest.as_ptr(), to, rest.len());
        _mm_sfence();
    }
}

/// # Safety
/// `target` does not overlap `data`, and has room for it.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stream(target: *mut u8, data: &[u8]) {
    // SAFETY: as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) }
}

/// What was done about SIGBUS before.
static PREVIOUS: OnceLock<Option<libc::sigaction>> = OnceLock::new();

fn install_handler() -> io::Result<()> {
    let installed = PREVIOUS.get_or_init(|| {
        // SAFETY: all zeroes are a valid `sigaction`: no flags, an empty mask, the default action.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: both point to a `sigaction` for the length of the call, and the handler has the
        // form that SA_SIGINFO asks for.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous) };
        (result == 0).then_some(previous)
    });
    if installed.is_some() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// Lets a copy go on that is under way on this thread; everything else is for who came before.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t`, and for SIGBUS it has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    let (start, len) = TARGET.get();
    if address.wrapping_sub(start) < len && put_page(address) {
        FAILED.set(true);
        return;
    }
    let Some(Some(previous)) = PREVIOUS.get() else { return default_action() };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => default_action(),
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of exactly this form.
            let handler = unsafe {
                std::mem::transmute::<
                    usize,
                    extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void),
                >(handler)
            };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: as above, without SA_SIGINFO.
            let handler =
                unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Puts an anonymous page over the one that the file has not. Only system calls.
fn put_page(address: usize) -> bool {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(size) = usize::try_from(size) else { return false };
    let page = address & !(size - 1);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the address is inside a part of a mapping that `guarded` was given, whose
    // pages nobody else relies on: the mapping is not used any more after this.
    let put = unsafe {
        let at = std::ptr::with_exposed_provenance_mut(page);
        libc::mmap(at, size, protection, flags, -1, 0)
    };
    put != libc::MAP_FAILED
}

/// The instruction is repeated when the handler returns, and then ends the process.
fn default_action() {
    // SAFETY: sets the default action of a signal, which is always valid.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::{Mapping, PAGE, SHORT, UNIT};
    use holdfast_units::ByteRange;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    const MIB: u64 = 1 << 20;

    fn filled(size: u64) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(&vec![7; usize::try_from(size).unwrap()], 0).unwrap();
        file
    }

    fn content(file: &File, range: ByteRange) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(range.len).unwrap()];
        file.read_exact_at(&mut bytes, range.offset).unwrap();
        bytes
    }

    #[test]
    fn writes_are_in_the_file_and_nowhere_else() {
        let file = filled(4 * MIB);
        let mapping = Mapping::of(&file, 4 * MIB).unwrap();
        let data: Vec<u8> = (0..MIB).map(|at| (at % 251).to_le_bytes()[0]).collect();
        assert!(mapping.write(MIB + 4096, &data));
        assert_eq!(content(&file, ByteRange::new(MIB + 4096, MIB)), data);
        assert!(content(&file, ByteRange::new(0, MIB + 4096)).iter().all(|byte| *byte == 7));
        let behind = ByteRange::new(2 * MIB + 4096, 2 * MIB - 4096);
        assert!(content(&file, behind).iter().all(|byte| *byte == 7));
    }

    #[test]
    fn what_does_not_fit_is_left_to_others() {
        let file = filled(MIB + 4096);
        let mapping = Mapping::of(&file, MIB + 4096).unwrap();
        let data = vec![1; 1 << 20];
        assert!(!mapping.write(4096, &data), "it ends behind the last unit");
        assert!(!mapping.write(512, &data[..1 << 17]), "it is not aligned");
        assert!(!mapping.write(0, &data[..(1 << 17) + 1]), "its end is not aligned");
        assert!(!mapping.write(8192, &data[..SHORT]), "a killed process must not tear it");
        assert!(mapping.write(8192, &data[..SHORT + PAGE]));
        assert!(!mapping.write(u64::MAX - 4095, &data));
        assert!(mapping.write(0, &data));
        assert!(Mapping::of(&file, UNIT - 1).is_none());
    }

    #[test]
    fn holes_are_left_to_others_until_they_have_been_written() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(4 * MIB).unwrap();
        let data = vec![1; 1 << 20];
        file.write_all_at(&data, MIB).unwrap();
        let mapping = Mapping::of(&file, 4 * MIB).unwrap();
        assert!(mapping.write(MIB, &data));
        assert!(!mapping.write(MIB - 4096, &data));
        file.write_all_at(&data, 2 * MIB).unwrap();
        mapping.written(ByteRange::new(2 * MIB, MIB));
        assert!(mapping.write(MIB + UNIT, &data));
        mapping.dropped(ByteRange::new(2 * MIB, 1));
        assert!(!mapping.write(MIB + UNIT, &data));
        assert!(mapping.write(2 * MIB + UNIT, &data[..1 << 19]));
    }

    #[test]
    fn reads_are_what_the_file_has_whoever_wrote_it() {
        let file = filled(MIB);
        let mapping = Mapping::of(&file, MIB).unwrap();
        let mut buffer = [0; 5000];
        assert!(mapping.read(12_345, &mut buffer));
        assert!(buffer.iter().all(|byte| *byte == 7));
        file.write_all_at(&[9; 100], 12_345).unwrap();
        assert!(mapping.read(12_345, &mut buffer));
        assert_eq!((buffer[99], buffer[100]), (9, 7));
        assert!(mapping.read(MIB - 5000, &mut buffer));
        assert!(!mapping.read(MIB - 4999, &mut buffer), "it ends behind the mapping");
        assert!(!mapping.read(u64::MAX - 10, &mut buffer));
        mapping.dropped(ByteRange::new(0, 1));
        assert!(!mapping.read(12_345, &mut buffer), "a read must not fill a hole");
    }

    #[test]
    fn what_a_socket_gets_is_what_the_file_has() {
        let file = filled(4 * MIB);
        let mapping = Mapping::of(&file, 4 * MIB).unwrap();
        file.write_all_at(&[9; 100], 12_345).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(mapping.send(ours.as_fd(), ByteRange::new(12_340, 1000)).unwrap(), 1000);
        let mut bytes = [0; 1000];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!((bytes[4], bytes[5], bytes[104], bytes[105]), (7, 9, 9, 7));
        let waiting = || mapping.send(ours.as_fd(), ByteRange::new(0, 4 * MIB));
        let full = std::iter::repeat_with(waiting).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
        assert!(mapping.send(ours.as_fd(), ByteRange::new(4 * MIB - 10, 11)).is_err());
        let (ours, _theirs) = UnixStream::pair().unwrap();
        file.set_len(2 * MIB).unwrap();
        assert!(mapping.send(ours.as_fd(), ByteRange::new(2 * MIB, 4096)).is_err());
        assert!(!mapping.has(ByteRange::new(0, 4096)), "nothing comes from there any more");
    }

    #[test]
    fn a_file_cut_short_by_others_fails_the_read_and_nothing_more() {
        let file = filled(4 * MIB);
        let mapping = Mapping::of(&file, 4 * MIB).unwrap();
        file.set_len(2 * MIB + 8192).unwrap();
        let mut buffer = vec![0; 1 << 20];
        assert!(mapping.read(MIB, &mut buffer));
        assert!(!mapping.read(2 * MIB, &mut buffer));
        assert!(!mapping.read(0, &mut buffer), "nothing comes from there any more");
        assert_eq!(file.metadata().unwrap().len(), 2 * MIB + 8192);
    }

    #[test]
    fn a_file_cut_short_by_others_fails_the_write_and_nothing_more() {
        let file = filled(4 * MIB);
        let mapping = Mapping::of(&file, 4 * MIB).unwrap();
        file.set_len(2 * MIB + 8192).unwrap();
        let data = vec![1; 1 << 20];
        assert!(!mapping.write(2 * MIB, &data));
        assert!(!mapping.write(0, &data), "nothing goes there any more");
        assert_eq!(file.metadata().unwrap().len(), 2 * MIB + 8192);
    }
}
