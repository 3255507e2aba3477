use super::{BatchId, CopyError, Journal, Next, Settings};
use crate::recover::Found;
use crate::{Op, PushError, Ticket};
use bytes::Bytes;
use holdfast_format::journal::{Cursors, FrameHeader};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};

const RESOURCE: ResourceId = ResourceId([3; 16]);

fn journal(change: impl FnOnce(&mut Settings)) -> Journal {
    let mut settings = Settings::new(RESOURCE, NodeId::new(0).unwrap(), 77);
    settings.segment_bytes = 64 << 10;
    change(&mut settings);
    let found = Found::nothing();
    let cursors = Cursors::new(RESOURCE);
    Journal::new(settings, &found, cursors, true, GenerationId(4), HybridTime(0))
}

fn write(block: u64) -> Op {
    let payload = Bytes::from(vec![u8::try_from(block).unwrap(); 4096]);
    Op::write(block * 4096, payload, HybridTime(block), false).unwrap()
}

fn push(journal: &mut Journal, blocks: std::ops::Range<u64>) {
    blocks.for_each(|block| assert!(journal.push(write(block)).is_ok()));
}

fn batch(journal: &mut Journal) -> super::Batch {
    loop {
        match journal.next_step() {
            Next::Begin(header) => journal.begun(header.number),
            Next::Write(batch) => return batch,
            Next::Sync(_) => {
                let target = journal.sync_target().unwrap();
                journal.synced(target);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn many_writers_are_one_write_of_their_own_buffers() {
    let mut journal = journal(|_| ());
    let ops: Vec<Op> = (0..5).map(write).collect();
    let pointers: Vec<_> = ops.iter().map(|op| op.payload().as_ptr()).collect();
    for (n, op) in ops.into_iter().enumerate() {
        assert_eq!(journal.push(op), Ok(Ticket(n as u64)));
    }
    let Next::Begin(header) = journal.next_step() else { panic!("no segment was begun") };
    assert_eq!((header.number, header.base, header.predecessor), (1, LogPosition(0), None));
    assert!(matches!(journal.next_step(), Next::Wait));
    journal.begun(1);
    let Next::Write(batch) = journal.next_step() else { panic!("nothing to write") };
    assert_eq!((batch.offset, batch.tickets.clone()), (4096, 0..5));
    let len: usize = batch.parts.iter().map(Bytes::len).sum();
    assert_eq!((len, batch.end), (6 * 4096, LogPosition(6 * 4096)));
    let parts: Vec<_> = batch.parts[1..].iter().map(|part| part.as_ptr()).collect();
    assert_eq!(parts, pointers, "payloads are not copied");
    assert!(matches!(journal.next_step(), Next::Idle));
    assert_eq!(journal.written_ticket(), Ticket(0));
    journal.written(batch.id);
    assert_eq!((journal.written_ticket(), journal.durable_ticket()), (Ticket(5), Ticket(0)));
    let target = journal.sync_target().unwrap();
    journal.synced(target);
    assert_eq!(journal.durable_ticket(), Ticket(5));
    assert_eq!(journal.sync_target(), None);
}

#[test]
fn nothing_is_answered_before_what_was_appended_before_it() {
    let mut journal = journal(|s| {
        s.batches = 3;
        s.batch_bytes = 4096;
    });
    push(&mut journal, 0..4);
    let batches: Vec<BatchId> = (0..3).map(|_| batch(&mut journal).id).collect();
    assert!(matches!(journal.next_step(), Next::Wait), "three are under way");
    journal.written(batches[2]);
    journal.written(batches[1]);
    assert_eq!(journal.written_ticket(), Ticket(0));
    assert_eq!(journal.sync_target(), None);
    journal.written(batches[0]);
    assert_eq!(journal.written_ticket(), Ticket(3));
    // A sync covers what was written when it began.
    let target = journal.sync_target().unwrap();
    let last = batch(&mut journal);
    journal.written(last.id);
    journal.synced(target);
    assert_eq!((journal.written_ticket(), journal.durable_ticket()), (Ticket(4), Ticket(3)));
    journal.synced(LogPosition(u64::MAX));
    assert_eq!(journal.durable_ticket(), Ticket(4));
}

#[test]
fn a_segment_is_begun_when_all_before_it_is_durable() {
    let mut journal = journal(|s| s.segment_bytes = 4 * 4096);
    push(&mut journal, 0..3);
    let first = batch(&mut journal);
    assert_eq!(first.tickets, 0..2, "what fits");
    assert!(matches!(journal.next_step(), Next::Wait));
    journal.written(first.id);
    assert!(matches!(journal.next_step(), Next::Sync(p) if p == first.end));
    journal.synced(first.end);
    let Next::Begin(header) = journal.next_step() else { panic!("no segment was begun") };
    let len = first.end.0;
    let node = NodeId::new(0).unwrap();
    assert_eq!((header.number, header.predecessor), (2, Some((node, 77, len))));
    assert!(header.continues(&journal.links()[0]));
    journal.begun(2);
    assert_eq!(batch(&mut journal).position, first.end);
}

#[test]
fn everything_is_bounded() {
    let mut journal = journal(|s| {
        s.queue_bytes = 3 * 4096;
        s.dirty_parts = 4;
        s.segment_bytes = 3 * 4096;
    });
    let long = Op::write(0, Bytes::from(vec![0; 8192]), HybridTime(0), false).unwrap();
    assert_eq!(journal.push(long), Err(PushError::TooLong));
    push(&mut journal, 0..3);
    assert_eq!(journal.push(write(3)), Err(PushError::Queue));
    for _ in 0..3 {
        let batch = batch(&mut journal);
        journal.written(batch.id);
    }
    journal.push(write(3)).unwrap();
    assert_eq!(journal.push(write(4)), Err(PushError::WriteBack));
    // The disk gets nothing of a flush; they are no more than there could be writes.
    while journal.push(Op::flush(HybridTime(0))).is_ok() {}
    let flushes = journal.queue.iter().filter(|op| op.record.range.is_empty()).count();
    assert!((2..=4).contains(&flushes), "{flushes}");
    journal.fail();
    assert_eq!(journal.push(write(4)), Err(PushError::Failed));
    assert!(matches!(journal.next_step(), Next::Idle));
    let target = journal.sync_target();
    journal.synced(LogPosition(u64::MAX));
    assert_eq!((target, journal.durable_ticket()), (None, Ticket(2)), "nothing more is durable");
}

#[test]
fn a_sync_is_asked_for_when_much_is_not_durable() {
    let mut journal = journal(|s| s.unsynced_bytes = 8192);
    (0..2).for_each(|n| {
        journal.push(write(n)).unwrap();
        let batch = batch(&mut journal);
        journal.written(batch.id);
    });
    assert!(matches!(journal.next_step(), Next::Sync(LogPosition(16384))));
}

#[test]
fn times_never_go_back() {
    let mut journal = journal(|_| ());
    for block in [9, 3, 12] {
        journal.push(write(block)).unwrap();
    }
    let batch = batch(&mut journal);
    let header = FrameHeader::decode(&batch.parts[0], 4096).unwrap();
    let times: Vec<u64> = header.records.iter().map(|record| record.time.0).collect();
    assert_eq!(times, [9, 9, 12]);
}

#[test]
fn ops_that_are_not_whole_blocks_are_refused() {
    let time = HybridTime(0);
    let bytes = |len| Bytes::from(vec![0; len]);
    assert!(Op::write(1, bytes(4096), time, false).is_err());
    assert!(Op::write(0, bytes(4095), time, false).is_err());
    assert!(Op::write(0, bytes(0), time, false).is_err());
    assert!(Op::write(0, bytes((1 << 20) + 4096), time, false).is_err());
    assert!(Op::write(u64::MAX - 4095, bytes(4096), time, false).is_err());
    assert!(Op::zeroes(ByteRange::new(0, 0), time, true, false).is_err());
    assert!(Op::zeroes(ByteRange::new(0, 1 << 40), time, true, false).is_ok());
}

#[test]
fn who_follows_takes_only_what_continues_it() {
    let mut origin = journal(|_| ());
    push(&mut origin, 0..2);
    let first = batch(&mut origin);
    origin.written(first.id);
    origin.synced(first.end);
    let (header, _) = origin.durable_segments()[0];
    let bytes = Bytes::from(first.parts.concat());

    let mut copy = journal(|s| s.node = NodeId::new(1).unwrap());
    assert_eq!(copy.copy_segment(header), Err(CopyError::NotFollowing));
    assert!(copy.follow());
    assert_eq!(copy.push(write(0)), Err(PushError::Following));
    copy.copy_segment(header).unwrap();
    assert!(matches!(copy.copy_frames(&bytes), Err(CopyError::Busy)), "it is not begun");
    copy.begun(1);
    let mut rotten = bytes.to_vec();
    rotten[5000] ^= 1;
    assert!(matches!(copy.copy_frames(&rotten.into()), Err(CopyError::Frame { .. })));
    assert!(matches!(copy.copy_frames(&bytes.slice(..4096)), Err(CopyError::Frame { .. })));
    let mut more = bytes.to_vec();
    more.extend_from_slice(&bytes[..8192]);
    let (taken, len) = copy.copy_frames(&more.into()).unwrap();
    assert_eq!((len, taken.parts.concat()), (bytes.len(), bytes.to_vec()), "byte for byte");
    copy.written(taken.id);
    assert!(matches!(copy.copy_frames(&bytes), Err(CopyError::Frame { .. })), "not twice");
    copy.synced(taken.end);
    assert_eq!(crate::compare(&copy.links(), &origin.links()), crate::Relation::Equal);

    // It leads when all is replayed, in a segment of its own.
    assert!(!copy.lead(GenerationId(5)));
    copy.replayed(taken.end);
    assert!(copy.lead(GenerationId(5)));
    copy.push(write(7)).unwrap();
    let Next::Begin(own) = copy.next_step() else { panic!("no segment was begun") };
    assert_eq!((own.number, own.origin.number(), own.base), (2, 1, first.end));
    copy.begun(2);
    let next = batch(&mut copy);
    copy.written(next.id);
    copy.synced(next.end);
    assert_eq!(crate::compare(&copy.links(), &origin.links()), crate::Relation::Ahead);
    // The origin went on without knowing: both are apart.
    origin.push(write(8)).unwrap();
    let apart = batch(&mut origin);
    origin.written(apart.id);
    origin.synced(apart.end);
    let relation = crate::compare(&copy.links(), &origin.links());
    assert!(
        matches!(relation, crate::Relation::Apart { common, ours: 8192, theirs: 8192, .. }
            if common == Some(first.end)),
        "{relation:?}"
    );
}
