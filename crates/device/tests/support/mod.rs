//! A backend in memory that can fail and stall, and helpers that leave nothing behind.

use holdfast_device::{Backend, DeviceOptions, LocalDevice, Via, choose};
use holdfast_units::ByteRange;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE: u64 = 64 * MIB;

/// What was written to the device is in the memory and nowhere else, is read again, and a flush gets
/// there.
pub(crate) fn assert_it_is_the_backend(device: &LocalDevice, memory: &Memory) {
    let mut file = Direct::open(device.path());
    for (length, offset) in [(512, 512), (4096, 8192), (1 << 20, MIB), (4 << 20, SIZE - 4 * MIB)] {
        let data = pattern(length, 3);
        file.write(&data, offset).unwrap();
        assert!(memory.bytes(offset, length) == data, "{length} bytes at {offset}");
        assert!(file.read(length, offset).unwrap() == data, "{length} bytes at {offset}");
    }
    assert_eq!(memory.bytes(0, 512), [0; 512]);
    let before = memory.flushes.load(Ordering::SeqCst);
    file.sync().unwrap();
    assert!(memory.flushes.load(Ordering::SeqCst) > before);
    drop(file);
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Whether block devices can be made here; prints why not.
pub(crate) fn possible() -> bool {
    possible_by(Via::Fuse)
}

/// The same by this way.
pub(crate) fn possible_by(via: Via) -> bool {
    match choose(via) {
        Ok(_) => true,
        Err(refusal) => {
            println!("skipped: {refusal}");
            false
        }
    }
}

#[derive(Default)]
pub(crate) struct Memory {
    data: Mutex<Vec<u8>>,
    block_size: u32,
    /// Every request fails.
    pub(crate) broken: AtomicBool,
    pub(crate) flushes: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) durable_writes: AtomicU64,
    pub(crate) trimmed: AtomicU64,
    /// Every range that was made zero, and whether its space could be given back.
    pub(crate) zeroed: Mutex<Vec<(ByteRange, bool)>>,
    /// While true, reads and writes wait.
    stalled: Mutex<bool>,
    stall_changed: Condvar,
    pub(crate) waiting: AtomicU64,
}

impl Memory {
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Self::with_blocks(size, 512)
    }

    pub(crate) fn with_blocks(size: u64, block_size: u32) -> Arc<Self> {
        let data = Mutex::new(vec![0; usize::try_from(size).unwrap()]);
        Arc::new(Self { data, block_size, ..Self::default() })
    }

    pub(crate) fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let offset = usize::try_from(offset).unwrap();
        self.data.lock().unwrap()[offset..offset + length].to_vec()
    }

    pub(crate) fn grow(&self, size: u64) {
        self.data.lock().unwrap().resize(usize::try_from(size).unwrap(), 0);
    }

    pub(crate) fn stall(&self, stalled: bool) {
        *self.stalled.lock().unwrap() = stalled;
        self.stall_changed.notify_all();
    }

    fn check(&self) -> io::Result<()> {
        let stalled = self.stalled.lock().unwrap();
        if *stalled {
            self.waiting.fetch_add(1, Ordering::SeqCst);
        }
        let limit = Duration::from_secs(60);
        let waited =
            self.stall_changed.wait_timeout_while(stalled, limit, |stalled| *stalled).unwrap();
        assert!(!waited.1.timed_out(), "nobody ended the stall");
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("broken by the test"));
        }
        Ok(())
    }

    fn span(offset: u64, length: usize) -> std::ops::Range<usize> {
        let start = usize::try_from(offset).unwrap();
        start..start + length
    }
}

impl Backend for Memory {
    fn size(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.check()?;
        data.copy_from_slice(&self.data.lock().unwrap()[Self::span(offset, data.len())]);
        self.reads.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.check()?;
        self.durable_writes.fetch_add(u64::from(fua), Ordering::SeqCst);
        self.data.lock().unwrap()[Self::span(offset, data.len())].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.check()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, range: ByteRange) -> io::Result<()> {
        self.trimmed.fetch_add(range.len, Ordering::SeqCst);
        self.check()
    }

    fn write_zeroes(&self, range: ByteRange, may_unmap: bool) -> io::Result<()> {
        self.check()?;
        let length = usize::try_from(range.len).unwrap();
        self.data.lock().unwrap()[Self::span(range.offset, length)].fill(0);
        self.zeroed.lock().unwrap().push((range, may_unmap));
        Ok(())
    }
}

/// Directories of its own for one test.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
    pub(crate) options: DeviceOptions,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::by(Via::Auto)
    }

    pub(crate) fn by(via: Via) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = DeviceOptions { via, ..options_in(directory.path()) };
        Self { directory, options }
    }

    pub(crate) fn attach(&self, name: &str, backend: &Arc<Memory>) -> LocalDevice {
        LocalDevice::attach(name, Arc::clone(backend) as Arc<dyn Backend>, &self.options).unwrap()
    }

    /// No mount, no directory and no link is left.
    pub(crate) fn assert_clean(&self) {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
        for directory in [&self.options.run_dir, &self.options.links_dir] {
            let left: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a failed test has left; the result would hide the failure.
        let _ = holdfast_device::clean_up_stale(&self.options, |_| false);
    }
}

pub(crate) fn options_in(directory: &Path) -> DeviceOptions {
    DeviceOptions {
        links_dir: directory.join("links"),
        run_dir: directory.join("run"),
        ..DeviceOptions::default()
    }
}

/// A filesystem mounted by the test.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(device: &Path, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        run("mount", &[device.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at)
    }

    pub(crate) fn unmount(self) {}
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).output();
        if !done.is_ok_and(|output| output.status.success()) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        }
    }
}

/// A process that has a file open until it is dropped.
pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn open(path: &Path) -> Self {
        let script = "exec 3<\"$0\"; echo open; read line";
        Self::start(Command::new("sh").args(["-c", script]).arg(path))
    }

    /// Starts a command and waits for its first line that ends in `open`.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let holder = Self(child);
        assert!(lines.any(|line| line.unwrap().ends_with("open")), "the child did not start");
        holder
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"))
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file opened with `O_DIRECT`, and a buffer that is aligned for it.
pub(crate) struct Direct {
    file: File,
    buffer: Vec<u8>,
}

impl Direct {
    pub(crate) fn open(path: &Path) -> Self {
        Self::with_buffer(path, 5 << 20)
    }

    /// For requests of up to 4 KiB.
    pub(crate) fn small(path: &Path) -> Self {
        Self::with_buffer(path, 8192)
    }

    fn with_buffer(path: &Path, bytes: usize) -> Self {
        let file =
            File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
        Self { file, buffer: vec![0; bytes] }
    }

    fn aligned(&mut self, length: usize) -> &mut [u8] {
        let skip = self.buffer.as_ptr().align_offset(4096);
        &mut self.buffer[skip..skip + length]
    }

    pub(crate) fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        self.aligned(data.len()).copy_from_slice(data);
        let file = self.file.try_clone()?;
        file.write_all_at(self.aligned(data.len()), offset)
    }

    pub(crate) fn read(&mut self, length: usize, offset: u64) -> io::Result<Vec<u8>> {
        let file = self.file.try_clone()?;
        file.read_exact_at(self.aligned(length), offset)?;
        Ok(self.aligned(length).to_vec())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Bytes that differ from block to block.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at / 512 * 7 + at) as u8 ^ seed).collect()
}

/// Waits for something that another thread or process does soon.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5)); // bounded poll
    }
    panic!("{what} did not happen within 10 seconds");
}

/// A setting or figure of the kernel for a block device.
pub(crate) fn sysfs(node: &Path, name: &str) -> String {
    let path = format!("/sys/block/{}/{name}", node.file_name().unwrap().to_str().unwrap());
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// Runs this test binary again for one test, in a process of its own that says `open` when it
/// has done its work and then waits.
pub(crate) fn start_again(test: &str, variable: &str, value: &Path) -> Holder {
    Holder::start(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(variable, value),
    )
}

/// The other side of [`start_again`]: does not come back while the other process wants it.
pub(crate) fn wait_to_be_killed() {
    println!("\nopen");
    io::stdout().flush().unwrap();
    let _ = io::stdin().read(&mut [0]);
}
