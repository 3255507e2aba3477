//! Writes are answered with their positions, and read back from any of them.

use super::{JournalCallError, PATIENCE, Rig};
use bytes::Bytes;
use holdfast_core::LoggedWrite;
use holdfast_store::{DiskOp, OpId, Outcome};
use holdfast_units::{ByteRange, LogPosition};
use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

const WRITES: u64 = 250;

fn block(number: u64) -> ByteRange {
    ByteRange::of_blocks(number..number + 1)
}

/// What the op of this number does: writes, some forced, and zeroes.
fn op(number: u64) -> DiskOp {
    let range = block(number % 100);
    if number % 7 == 3 {
        return DiskOp::WriteZeroes { range, unmap: true, fua: false };
    }
    let data = Bytes::from((number + 1).to_le_bytes().repeat(512));
    DiskOp::Write { range, data, fua: number % 11 == 5 }
}

/// Hands in all ops at once, so that frames hold many; where each went.
fn write_all(rig: &mut Rig) -> BTreeMap<u64, LogPosition> {
    let disk = rig.disk.as_mut().unwrap();
    let (mut done, mut positions) = (Vec::new(), BTreeMap::new());
    let begin = Instant::now();
    for number in 0..WRITES {
        let at_once = disk.submit(OpId(number), op(number));
        assert_eq!(at_once, None, "{number}");
    }
    disk.kick();
    while positions.len() < usize::try_from(WRITES).unwrap() {
        assert!(begin.elapsed() < PATIENCE);
        disk.completions(&mut done);
        for completion in done.drain(..) {
            let Ok(Outcome::Logged(at)) = completion.result else { panic!("{completion:?}") };
            positions.insert(completion.op.0, at);
        }
        std::thread::yield_now();
    }
    positions
}

fn read(rig: &Rig, from: LogPosition) -> Result<(Vec<LoggedWrite>, LogPosition), JournalCallError> {
    rig.runtime.block_on(rig.handle.writes_from(from, 64 << 10))
}

#[test]
fn writes_are_read_back_in_order_at_the_positions_that_were_told() {
    let mut rig = Rig::leading();
    let told = write_all(&mut rig);
    assert!(told.values().is_sorted_by(|a, b| a < b), "in the order in which they were given");
    // Behind a write of which the position is known, whatever frame it is in.
    for first in [0, 1, 63, 64, 150] {
        let mut from = told[&first].after(u64::from(first > 0));
        let mut expected = first + u64::from(first > 0);
        while expected < WRITES {
            let (found, next) = read(&rig, from).unwrap();
            for write in found {
                let (range, data) = match op(expected) {
                    DiskOp::Write { range, data, .. } => (range, Some(data)),
                    _ => (block(expected % 100), None),
                };
                assert_eq!((write.position, write.range), (told[&expected], range));
                assert_eq!(write.data, data, "write {expected}");
                assert!(write.barrier <= write.position && write.next > write.position);
                expected += 1;
            }
            assert!(next > from);
            from = next;
        }
        assert!(read(&rig, from).is_err(), "there is nothing behind it");
    }
}

#[test]
fn what_comes_behind_a_flush_says_so() {
    let mut rig = Rig::leading();
    let Ok(Outcome::Logged(first)) = rig.try_write(1, 1, false) else { panic!() };
    rig.flush();
    let Ok(Outcome::Logged(second)) = rig.try_write(2, 2, false) else { panic!() };
    let (found, _) = read(&rig, second).unwrap();
    assert!(found[0].barrier > first, "the first one is durable before");
}

#[test]
fn what_is_not_kept_or_not_led_is_not_there() {
    let mut rig = Rig::leading();
    let Ok(Outcome::Logged(first)) = rig.try_write(1, 1, false) else { panic!() };
    rig.flush();
    rig.runtime.block_on(rig.handle.rotate()).unwrap();
    rig.write(2, 2);
    rig.flush();
    rig.settle();
    assert!(matches!(read(&rig, first), Err(JournalCallError::Mode(_))));
    rig.lead();
    rig.runtime.block_on(rig.handle.trim()).unwrap();
    rig.write(3, 3);
    let gone = read(&rig, first);
    assert!(
        matches!(&gone, Err(JournalCallError::Io(e)) if e.kind() == io::ErrorKind::NotFound),
        "{gone:?}"
    );
}
