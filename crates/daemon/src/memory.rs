//! What keeps a process that serves block devices from waiting for itself when memory is short.
//!
//! The kernel frees memory by writing out what is dirty. When that goes to a device that this process
//! serves, and this process waits for memory meanwhile, nobody goes on. So it keeps what it has,
//! never waits for a write when it takes more, and is not what the kernel kills first.

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};
use std::fs;
use std::io;

/// Where the kernel is told whom to kill last; what it is told. Only what is never to be killed has
/// less.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";
const OOM_ADJUSTMENT: &str = "-900";

/// Prepares the process for being short of memory; what could not be done, in one sentence, when
/// something could not. To be called before there are other threads than those that need nothing of
/// it.
///
/// With `lock`, all that the program is made of is read in and stays, and so does whatever memory
/// it uses from now on, once it is used: the process does not become larger than it is otherwise.
/// That needs `CAP_IPC_LOCK`, or no limit of locked memory; with a limit it is not even tried, as
/// the process would die of it.
#[must_use]
pub fn guard_memory(lock: bool) -> Option<String> {
    let mut missing = Vec::new();
    if lock && let Err(why) = lock_memory() {
        missing.push(format!("its memory is not locked ({why})"));
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        let why = or_missing(&error.into(), "CAP_SYS_RESOURCE is missing");
        missing.push(format!("it is not marked as an I/O flusher ({why})"));
    }
    if let Err(error) = spare_from_oom() {
        let why = or_missing(&error, "CAP_SYS_RESOURCE is missing");
        missing.push(format!("it may be killed to free memory ({why})"));
    }
    if missing.is_empty() || !lock {
        return None;
    }
    let missing = missing.join(", ");
    Some(format!(
        "short of memory, a machine may wait for itself on a device of its own: {missing}"
    ))
}

fn lock_memory() -> Result<(), String> {
    let allowed =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    // No limit is `None`.
    if !allowed && let Some(limit) = getrlimit(Resource::Memlock).current {
        return Err(format!("CAP_IPC_LOCK is missing, and RLIMIT_MEMLOCK is {} KiB", limit >> 10));
    }
    mlockall(MlockAllFlags::CURRENT)
        .and_then(|()| mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT))
        .map_err(|error| io::Error::from(error).to_string())
}

/// What somebody else has chosen stays.
fn spare_from_oom() -> io::Result<()> {
    if fs::read_to_string(OOM_SCORE)?.trim() == "0" {
        fs::write(OOM_SCORE, OOM_ADJUSTMENT)?;
    }
    Ok(())
}

fn or_missing(error: &io::Error, missing: &str) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => missing.to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::or_missing;
    use std::io;

    #[test]
    fn what_is_missing_is_named() {
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(or_missing(&denied, "CAP_X is missing"), "CAP_X is missing");
        let unknown = io::Error::from_raw_os_error(libc::EINVAL);
        assert!(or_missing(&unknown, "CAP_X is missing").contains("nvalid"));
    }
}
