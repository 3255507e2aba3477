//! Disks that somebody else drives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use holdfast_store::{
    BackingKind, BufferPool, Disk, DiskErrorKind, DiskInfo, DiskOp, EngineKind, ExternalDisk, OpId,
    OpKind, Outcome, Ticket,
};
use holdfast_units::ByteRange;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Hands all that it is asked for to the test.
struct Told(Sender<(DiskOp, Ticket)>);

impl ExternalDisk for Told {
    fn submit(&mut self, request: DiskOp, ticket: Ticket) {
        self.0.send((request, ticket)).unwrap();
    }
}

fn disk() -> (Disk, Receiver<(DiskOp, Ticket)>) {
    let (sender, asked) = channel();
    let info = DiskInfo {
        fast_zeroes: false,
        path: None,
        kind: BackingKind::Remote,
        engine: EngineKind::External,
        size: 64 * 4096 + 512,
        read_only: false,
        direct: false,
        block_size: 512,
        discard: true,
        discard_zeroes: false,
        rotational: None,
        volatile_cache: Some(true),
        notes: Vec::new(),
    };
    let disk = Disk::external(Box::new(Told(sender)), info, 2, &BufferPool::new(0)).unwrap();
    (disk, asked)
}

fn write(block: u64, fua: bool) -> DiskOp {
    let data = Bytes::from(vec![1; 4096]);
    DiskOp::Write { range: ByteRange::new(block * 4096, 4096), data, fua }
}

/// What is told next, on another thread.
fn next(disk: &mut Disk) -> Vec<(u64, Result<Outcome, DiskErrorKind>)> {
    let mut out = Vec::new();
    disk.wait(&mut out, Duration::from_secs(10));
    out.into_iter().map(|c| (c.op.0, c.result.map_err(|error| error.kind))).collect()
}

#[test]
fn answers_come_from_any_thread_in_any_order_and_fua_is_passed_on() {
    let (mut disk, asked) = disk();
    assert_eq!((disk.size(), disk.info().engine.as_str()), (64 * 4096, "external"));
    assert!(disk.submit(OpId(1), write(0, true)).is_none());
    let read = DiskOp::Read { range: ByteRange::new(512, 512), holes: true };
    assert!(disk.submit(OpId(2), read).is_none());
    let early = disk.submit(OpId(3), write(1, false)).unwrap();
    assert_eq!(early.result.unwrap_err().kind, DiskErrorKind::Busy);
    let (request, first) = asked.recv().unwrap();
    assert!(matches!(request, DiskOp::Write { fua: true, .. }));
    let (request, second) = asked.recv().unwrap();
    assert_eq!(request.kind(), OpKind::Read);
    let data = Outcome::Data(Bytes::from_static(&[7; 512]));
    let told = data.clone();
    std::thread::spawn(move || second.complete(Ok(told))).join().unwrap();
    assert_eq!(next(&mut disk), [(2, Ok(data))]);
    first.complete(Ok(Outcome::Done));
    assert_eq!(next(&mut disk), [(1, Ok(Outcome::Done))]);
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn errors_are_told_and_a_ticket_that_is_lost_is_one() {
    let (mut disk, asked) = disk();
    assert!(disk.submit(OpId(1), write(0, false)).is_none());
    drop(asked.recv().unwrap());
    assert_eq!(next(&mut disk), [(1, Err(DiskErrorKind::Io))]);
    assert!(disk.submit(OpId(2), write(0, true)).is_none());
    asked.recv().unwrap().1.complete(Err(io::ErrorKind::StorageFull.into()));
    assert_eq!(next(&mut disk), [(2, Err(DiskErrorKind::NoSpace))]);
    assert!(!disk.is_poisoned());
    // A flush that fails is the end, as with every disk.
    assert!(disk.submit(OpId(3), DiskOp::Flush).is_none());
    disk.kick();
    asked.recv().unwrap().1.complete(Err(io::ErrorKind::TimedOut.into()));
    assert_eq!(next(&mut disk), [(3, Err(DiskErrorKind::FlushFailed))]);
    assert!(disk.is_poisoned());
}

/// Does what it is asked for when it is kicked.
#[derive(Default)]
struct AtOnce(Vec<Ticket>);

impl ExternalDisk for AtOnce {
    fn submit(&mut self, _: DiskOp, ticket: Ticket) {
        self.0.push(ticket);
    }

    fn kick(&mut self) {
        self.0.drain(..).for_each(|ticket| ticket.complete(Ok(Outcome::Done)));
    }
}

#[test]
fn what_is_over_when_it_is_kicked_comes_at_once_and_wakes_nobody() {
    let (told, _asked) = disk();
    let info = told.info().clone();
    let pool = BufferPool::new(0);
    let mut disk = Disk::external(Box::<AtOnce>::default(), info, 8, &pool).unwrap();
    assert!(disk.submit(OpId(1), write(0, false)).is_none());
    assert!(disk.submit(OpId(2), DiskOp::Flush).is_none());
    let mut out = Vec::new();
    disk.completions(&mut out);
    let ended: Vec<u64> = out.iter().map(|done| done.op.0).collect();
    assert_eq!(ended, [1, 2]);
    let mut fds = [PollFd::from_borrowed_fd(disk.event_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(0), "nobody was woken");
    // Who only kicks is told.
    assert!(disk.submit(OpId(3), write(0, false)).is_none());
    disk.kick();
    let mut fds = [PollFd::from_borrowed_fd(disk.event_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec::default())), Ok(1));
}
