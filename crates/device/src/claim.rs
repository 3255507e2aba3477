//! A device held exclusively, so that nobody can mount it while it is being taken away.
//!
//! Opening and flushing a device that this process itself serves can wait for this process. Killed
//! just then, its thread would stand in the kernel for as long as the device waits for the next
//! process, and with it everything that it has locked. So a process of its own does both where the
//! device outlives its server: [`hold`] is what it runs.

use crate::blockdev::BlockDevice;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The name of a process that holds a device.
pub(crate) const HOLDER: &CStr = c"holdfast-hold";
/// How long a claim that is given up may take to end.
const END_LIMIT: Duration = Duration::from_secs(3);
/// No answer of a helper is longer.
const LINE_LIMIT: u64 = 64;

/// The device, held exclusively until this is dropped.
pub(crate) enum Claim {
    /// By this process.
    Own(File),
    /// By a helper.
    Helper(Helper),
}

/// A process that holds a device, and lets go when its input ends.
pub(crate) struct Helper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Claim {
    /// Takes the device, by the program when there is one.
    ///
    /// # Errors
    /// `EBUSY` when somebody has it exclusively, which is what a mount does.
    pub(crate) fn take(device: &BlockDevice, helper: Option<&[PathBuf]>) -> io::Result<Self> {
        match helper {
            None => open_exclusively(&device.node).map(Self::Own),
            Some(command) => Helper::start(command, &device.node).map(Self::Helper),
        }
    }

    /// Writes out what the kernel keeps of the device, and has it made durable.
    ///
    /// # Errors
    /// When one of both failed.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Own(file) => file.sync_all(),
            Self::Helper(helper) => helper.order(),
        }
    }
}

impl Helper {
    fn start(command: &[PathBuf], node: &Path) -> io::Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(io::Error::other("there is no program to hold the device with"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .arg(node)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().expect("it is a pipe, as asked for");
        let mut helper = Self { child, orders, answers: BufReader::new(answers) };
        helper.answer()?;
        Ok(helper)
    }

    /// Has the device flushed.
    fn order(&mut self) -> io::Result<()> {
        let orders = self.orders.as_mut().expect("they end when it is dropped");
        orders.write_all(b"\n")?;
        self.answer()
    }

    /// What the helper says: the number of an error, or 0.
    fn answer(&mut self) -> io::Result<()> {
        let mut line = String::new();
        io::Read::take(&mut self.answers, LINE_LIMIT).read_line(&mut line)?;
        match line.trim_end().parse() {
            Ok(0) => Ok(()),
            Ok(number) => Err(io::Error::from_raw_os_error(number)),
            Err(_) => Err(io::Error::other("the process that holds the device has ended")),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.orders = None;
        let deadline = Instant::now() + END_LIMIT;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() >= deadline {
                tracing::warn!(pid = self.child.id(), "a process does not let go of its device");
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Holds a device for the process at the other ends of standard input and output: says whether it
/// has it, flushes it at each line of input and says how that went, and ends with the input. Each
/// thing said is a line with the number of an error, or 0. The process gets another name by it.
///
/// # Errors
/// When standard input or output fail; what the device says is an answer.
pub fn hold(node: &Path) -> io::Result<()> {
    rustix::thread::set_name(HOLDER)?;
    let device = open_exclusively(node);
    say(device.as_ref().map(drop))?;
    let Ok(device) = device else {
        return Ok(());
    };
    let mut orders = io::stdin().lock();
    let mut order = [0];
    while io::Read::read(&mut orders, &mut order)? > 0 {
        say(device.sync_all().as_ref().map(drop))?;
    }
    Ok(())
}

fn say(outcome: Result<(), &io::Error>) -> io::Result<()> {
    let number = outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    let mut answers = io::stdout().lock();
    writeln!(answers, "{number}")?;
    answers.flush()
}

fn open_exclusively(node: &Path) -> io::Result<File> {
    // For reading will do, and a read-only device allows no more.
    File::options().read(true).custom_flags(libc::O_EXCL).open(node)
}
