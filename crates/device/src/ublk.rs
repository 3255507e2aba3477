//! A device by the kernel's ublk driver: its requests go to a pool of threads that call the
//! backend.

use crate::backend::Backend;
use crate::blockdev::BlockDevice;
use crate::claim::Claim;
use crate::device::DeviceOptions;
use crate::error::DeviceError;
use crate::record::{self, Record};
use crate::via::Kind;
use holdfast_ublk::{
    DeviceSpec, MAX_DEPTH, MAX_QUEUES, Op, Request, Stopped, Target, UblkDevice, UblkError,
};
use holdfast_units::{ByteRange, MAX_REQUEST};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many numbers are tried that others take first.
const TRIES: usize = 64;
/// How long closing waits for udev to let go of the device.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// The device, and the threads that call the backend. Dropping it takes the device away by force.
pub(crate) struct Ublk {
    device: BlockDevice,
    ublk: UblkDevice,
    pool: Arc<Pool>,
}

impl Ublk {
    pub(crate) fn attach(
        name: &str,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Self, DeviceError> {
        let token = random().map_err(failed("making a random number", "/dev/urandom"))?;
        let (size, block_size) = (backend.size(), backend.block_size());
        let read_only = backend.is_read_only();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let spec = DeviceSpec {
            queues: u16::try_from(cpus).unwrap_or(MAX_QUEUES).min(MAX_QUEUES),
            depth: MAX_DEPTH,
            max_io_bytes: u32::try_from(MAX_REQUEST).expect("it is 1 MiB"),
            size,
            block_size,
            read_only,
            token,
            user_copy: true,
        };
        let pool = Pool::start(backend, options.threads)?;
        let target: Arc<dyn Target> = Arc::clone(&pool) as Arc<dyn Target>;
        let free = (0..u32::MAX).filter(|id| holdfast_ublk::is_free(*id));
        let mut taken = None;
        for id in free.take(TRIES) {
            let record = Record { kind: Kind::Ublk, id, token, size, block_size, read_only };
            record.save(&options.run_dir, name)?;
            match UblkDevice::create(id, &spec, &target) {
                Ok(ublk) => return Self::with_node(name, ublk, pool, options),
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                    taken = Some(error);
                }
                Err(error) => {
                    pool.close();
                    record::remove(&options.run_dir, name);
                    return Err(ublk_failed(id)(error));
                }
            }
        }
        pool.close();
        record::remove(&options.run_dir, name);
        let none = || UblkError { what: "finding a number".to_owned(), source: no_number() };
        Err(ublk_failed(0)(taken.unwrap_or_else(none)))
    }

    /// Takes over what the record tells of; `None` when it is not there any more.
    pub(crate) fn recover(
        record: &Record,
        backend: Arc<dyn Backend>,
        options: &DeviceOptions,
    ) -> Result<Option<Self>, DeviceError> {
        let pool = Pool::start(backend, options.threads)?;
        let target: Arc<dyn Target> = Arc::clone(&pool) as Arc<dyn Target>;
        let recovered = UblkDevice::recover(record.id, record.token, &target);
        let device = BlockDevice::named(format!("ublkb{}", record.id));
        match recovered.map_err(ublk_failed(record.id)) {
            Ok(Some(mut ublk)) => match device {
                Ok(device) => Ok(Some(Self { device, ublk, pool })),
                Err(error) => {
                    ublk.leave();
                    pool.close();
                    Err(failed("finding the device", "/sys/block")(error))
                }
            },
            other => {
                pool.close();
                other.map(|_| None)
            }
        }
    }

    fn with_node(
        name: &str,
        ublk: UblkDevice,
        pool: Arc<Pool>,
        options: &DeviceOptions,
    ) -> Result<Self, DeviceError> {
        let found =
            BlockDevice::named(ublk.name()).and_then(|device| device.make_node().map(|()| device));
        match found {
            Ok(device) => Ok(Self { device, ublk, pool }),
            Err(error) => {
                drop(ublk);
                pool.close();
                record::remove(&options.run_dir, name);
                Err(failed("finding the device", "/sys/block")(error))
            }
        }
    }

    pub(crate) fn device(&self) -> &BlockDevice {
        &self.device
    }

    pub(crate) fn survives(&self) -> bool {
        self.ublk.survives()
    }

    /// Takes the device away when nobody has it open; `false` when somebody has.
    pub(crate) fn close(&mut self, claim: Claim) -> io::Result<bool> {
        // It is an opener too.
        drop(claim);
        let deadline = Instant::now() + CLOSE_LIMIT;
        while self.ublk.stop()? == Stopped::InUse {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
        self.pool.close();
        Ok(true)
    }

    pub(crate) fn abort(&mut self) {
        self.ublk.abort();
        self.pool.close();
    }

    pub(crate) fn leave(&mut self) {
        self.ublk.leave();
        self.pool.close();
    }

    pub(crate) fn resize(&mut self, bytes: u64) -> io::Result<bool> {
        Ok(self.ublk.resize(bytes)?)
    }
}

impl Drop for Ublk {
    fn drop(&mut self) {
        self.abort();
    }
}

fn ublk_failed(id: u32) -> impl FnOnce(UblkError) -> DeviceError {
    move |error| {
        let node = format!("/dev/ublkb{id}");
        failed("making or taking over the device", &node)(error.into())
    }
}

fn failed(what: &'static str, path: &str) -> impl FnOnce(io::Error) -> DeviceError {
    DeviceError::system(what, Path::new(path))
}

fn no_number() -> io::Error {
    io::Error::from_raw_os_error(libc::EBUSY)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Threads that call the backend, one request at a time each. What waits for them is bounded by
/// what the kernel lets through.
struct Pool {
    backend: Arc<dyn Backend>,
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

struct Waiting {
    requests: VecDeque<Request>,
    closed: bool,
}

impl Pool {
    fn start(backend: Arc<dyn Backend>, threads: usize) -> Result<Arc<Self>, DeviceError> {
        let most = usize::from(MAX_QUEUES) * usize::from(MAX_DEPTH);
        let waiting = Waiting { requests: VecDeque::with_capacity(most), closed: false };
        let pool = Self { backend, waiting: Mutex::new(waiting), filled: Condvar::new() };
        let pool = Arc::new(pool);
        for number in 0..threads.max(1) {
            let own = Arc::clone(&pool);
            let spawned = std::thread::Builder::new()
                .name(format!("device-{number}"))
                .stack_size(256 << 10)
                .spawn(move || own.work());
            if let Err(error) = spawned {
                pool.close();
                return Err(failed("starting a thread", "/proc/self")(error));
            }
        }
        Ok(pool)
    }

    /// What waits fails; the threads end as soon as the backend has answered.
    fn close(&self) {
        let waiting = {
            let mut waiting = self.lock();
            waiting.closed = true;
            std::mem::take(&mut waiting.requests)
        };
        self.filled.notify_all();
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is locked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        // Memory for serving a write must not wait for that very write to free memory.
        if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
            tracing::debug!(%error, "a serving thread has no claim on memory reserves");
        }
        // Its pages are only there once they are used.
        let mut buffer = vec![0; usize::try_from(MAX_REQUEST).expect("it is 1 MiB")];
        while let Some(request) = self.next() {
            let result = self.carry_out(&request, &mut buffer);
            if let Err(error) = &result {
                tracing::debug!(op = ?request.op(), %error, "a request failed");
            }
            request.answer(result);
        }
    }

    fn next(&self) -> Option<Request> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn carry_out(&self, request: &Request, buffer: &mut [u8]) -> io::Result<()> {
        match request.op() {
            Op::Read { offset, length } => {
                let data = part(buffer, length)?;
                self.backend.read_at(data, offset)?;
                request.write_data(data)
            }
            Op::Write { offset, length, fua } => {
                let data = part(buffer, length)?;
                request.read_data(data)?;
                self.backend.write_at(data, offset, fua)
            }
            Op::Flush => self.backend.flush(),
            Op::Discard { offset, length } => self.backend.trim(ByteRange { offset, len: length }),
            Op::WriteZeroes { offset, length, may_unmap } => {
                self.backend.write_zeroes(ByteRange { offset, len: length }, may_unmap)
            }
        }
    }
}

fn part(buffer: &mut [u8], length: u32) -> io::Result<&mut [u8]> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    buffer.get_mut(..length).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Target for Pool {
    fn submit(&self, request: Request) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            // It fails: a device without its threads is about to go.
            return drop(request);
        }
        waiting.requests.push_back(request);
        drop(waiting);
        self.filled.notify_one();
    }
}
