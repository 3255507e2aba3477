//! Whether the kernel offers what [`crate::EngineKind::Uring`] and ublk need.

use io_uring::{IoUring, Probe, opcode};
use std::io;

/// The operations of io_uring that Holdfast uses: for disks, and for ublk.
const NEEDED: [(&str, u8); 5] = [
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("URING_CMD", opcode::UringCmd16::CODE),
];

/// The names of the operations of io_uring that Holdfast uses and this kernel has not; none when all
/// are there. Makes a small ring and drops it.
///
/// # Errors
/// When no ring can be made: the kernel has no io_uring, it is switched off, or a filter of system
/// calls forbids it.
pub fn missing_uring_operations() -> io::Result<Vec<&'static str>> {
    let ring = IoUring::new(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let missing = NEEDED.into_iter().filter(|(_, code)| !probe.is_supported(*code));
    Ok(missing.map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_can_be_made_can_read() {
        match missing_uring_operations() {
            Ok(missing) => assert!(!missing.contains(&"READ"), "{missing:?}"),
            Err(why) => println!("skipped: no io_uring here: {why}"),
        }
    }
}
