use super::{Index, PartSource, RunKind, WriteBackLimits};
use crate::recover::Backlog;
use holdfast_format::journal::{
    Cursors, FrameHeader, Record, RecordKind, SegmentHeader, frame_len,
};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use proptest::prelude::*;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 24;
const LIMITS: WriteBackLimits = WriteBackLimits { bytes: 6 * BLOCK, runs: 3, run_bytes: 4 * BLOCK };

/// What a block of the disk holds: which record, and which block of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    Old,
    Zero,
    Of(u64, u64),
}

fn frame(at: u64, kind: RecordKind, first: u64, blocks: u64) -> FrameHeader {
    let range = ByteRange::new(first * BLOCK, blocks * BLOCK);
    let mut record = Record::without_payload(kind, range, HybridTime(at));
    if kind == RecordKind::Write {
        record.stored_len = u32::try_from(range.len).unwrap();
    }
    let len = frame_len(&[record], 4096).unwrap();
    FrameHeader {
        position: LogPosition(at),
        epoch: 1,
        previous_epoch: 1,
        durable: LogPosition(0),
        segment: 1,
        len,
        records: vec![record],
    }
}

/// The content of each block of a range, as `lookup` tells it.
fn look(index: &Index, range: ByteRange, disk: &[Content]) -> Vec<Content> {
    let mut found = Vec::new();
    let mut at = range.offset;
    for part in index.lookup(range) {
        assert_eq!(part.range.offset, at, "parts have no gaps");
        at = part.range.end();
        for block in part.range.blocks() {
            let within = (block * BLOCK - part.range.offset) / BLOCK;
            found.push(match part.source {
                PartSource::Disk => disk[usize::try_from(block).unwrap()],
                PartSource::Zeroes => Content::Zero,
                // The tests put a frame at the file's byte that is its position.
                PartSource::Journal { place, skip } => {
                    Content::Of(place.offset - 4096, skip / BLOCK + within)
                }
            });
        }
    }
    assert_eq!(at, range.end());
    found
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        kind: u8,
        first: u64,
        blocks: u64,
    },
    Sync,
    Plan,
    /// The oldest ones, but so many of the newest records.
    PlanOldest(u64),
    /// One of the plans under way is done, or failed.
    Done {
        which: usize,
        worked: bool,
    },
    FlushBegins,
    FlushEnds,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..6, 0..BLOCKS - 4, 1u64..5)
            .prop_map(|(kind, first, blocks)| Step::Append { kind, first, blocks }),
        3 => Just(Step::Sync),
        3 => Just(Step::Plan),
        3 => (0u64..6).prop_map(Step::PlanOldest),
        3 => (0usize..4, prop::bool::weighted(0.8))
            .prop_map(|(which, worked)| Step::Done { which, worked }),
        1 => Just(Step::FlushBegins),
        1 => Just(Step::FlushEnds),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Against a disk of blocks: reads are always the newest; what is written back never goes
    /// over something newer; and from the oldest record on, a replay over what is durable on the
    /// disk gives everything.
    #[test]
    fn equals_a_naive_disk(steps in prop::collection::vec(step(), 1..60)) {
        let n = usize::try_from(BLOCKS).unwrap();
        let whole = ByteRange::new(0, BLOCKS * BLOCK);
        let mut index = Index::default();
        let mut log: Vec<FrameHeader> = Vec::new();
        let (mut newest, mut disk) = (vec![Content::Old; n], vec![Content::Old; n]);
        let mut durable_disk = disk.clone();
        let mut plans: Vec<(u64, Vec<(u64, Content)>)> = Vec::new();
        let mut flush = None;
        let (mut at, mut synced) = (0, 0);
        for step in steps {
            match step {
                Step::Append { kind, first, blocks } => {
                    let kind = match kind {
                        0 => RecordKind::Zeroes,
                        1 => RecordKind::Discard,
                        _ => RecordKind::Write,
                    };
                    let header = frame(at, kind, first, blocks);
                    index.add_frame(&header, at, 4096, LogPosition(0));
                    apply(&mut newest, &header);
                    at = header.end().0;
                    log.push(header);
                }
                Step::Sync => {
                    synced = at;
                    index.synced(LogPosition(synced));
                }
                Step::Plan | Step::PlanOldest(_) => {
                    let newest = match step {
                        Step::PlanOldest(newest) => usize::try_from(newest).unwrap(),
                        _ => 0,
                    };
                    let before = log.iter().nth_back(newest).map_or(0, |frame| frame.position.0);
                    let (synced, plan) = match step {
                        Step::PlanOldest(_) => {
                            let before = before.min(synced);
                            (before, index.plan_oldest(LIMITS, LogPosition(before)))
                        }
                        _ => (synced, index.plan(LIMITS, LogPosition(synced))),
                    };
                    let Some(plan) = plan else { continue };
                    prop_assert!(plan.runs.len() <= LIMITS.runs);
                    let mut writes = Vec::new();
                    for run in &plan.runs {
                        let pieces: u64 = run.pieces.iter().map(|p| p.range.len).sum();
                        let data = run.kind == RunKind::Data;
                        prop_assert_eq!(pieces, if data { run.range.len } else { 0 });
                        prop_assert!(run.range.len <= LIMITS.run_bytes || !data);
                        for block in run.range.blocks() {
                            let piece = run.pieces.iter().find(|p| p.range.blocks().contains(&block));
                            let content = piece.map_or(Content::Zero, |piece| {
                                let within = block - piece.range.blocks().start;
                                let index = piece.skip / BLOCK + within;
                                Content::Of(piece.place.offset - 4096, index)
                            });
                            if let Content::Of(position, _) = content {
                                prop_assert!(position < synced, "it is not durable");
                            }
                            writes.push((block, content));
                        }
                    }
                    for (_, others) in &plans {
                        let both = others.iter().any(|(b, _)| writes.iter().any(|(w, _)| w == b));
                        prop_assert!(!both, "two writes to one block at the same time");
                    }
                    // The elevator goes round at most once.
                    let starts: Vec<_> = plan.runs.iter().map(|run| run.range.offset).collect();
                    let falls = starts.windows(2).filter(|pair| pair[1] <= pair[0]).count();
                    prop_assert!(falls <= 1);
                    plans.push((plan.id, writes));
                }
                Step::Done { which, worked } if which < plans.len() => {
                    let (id, writes) = plans.remove(which);
                    // One that failed wrote a part.
                    let done = if worked { writes.len() } else { writes.len() / 2 };
                    for (block, content) in &writes[..done] {
                        disk[usize::try_from(*block).unwrap()] = *content;
                    }
                    index.plan_done(id, worked);
                }
                Step::FlushBegins => flush = Some((index.flush_token(), disk.clone())),
                Step::FlushEnds => {
                    if let Some((token, content)) = flush.take() {
                        index.flushed(token);
                        durable_disk = content;
                    }
                }
                Step::Done { .. } => {}
            }
            prop_assert_eq!(&look(&index, whole, &disk), &newest);
            let part = ByteRange::new(5 * BLOCK, 7 * BLOCK);
            prop_assert_eq!(&look(&index, part, &disk), &newest[5..12]);
            prop_assert_eq!(index.len(), index.entries.len());
            // After a crash that keeps only what is durable: disk, then the log from the oldest.
            let from = index.oldest().map_or(synced, |oldest| oldest.0.min(synced));
            let mut recovered = durable_disk.clone();
            let mut expected = vec![Content::Old; n];
            for header in log.iter().filter(|header| header.position.0 < synced) {
                if header.position.0 >= from {
                    apply(&mut recovered, header);
                }
                apply(&mut expected, header);
            }
            prop_assert_eq!(recovered, expected);
        }
    }
}

fn apply(disk: &mut [Content], header: &FrameHeader) {
    let record = &header.records[0];
    for block in record.range.blocks() {
        let within = block - record.range.blocks().start;
        disk[usize::try_from(block).unwrap()] = match record.kind {
            RecordKind::Write => Content::Of(header.position.0, within),
            _ => Content::Zero,
        };
    }
}

#[test]
fn overwrites_cost_the_disk_nothing() {
    let mut index = Index::default();
    let mut at = 0;
    for round in 0..100 {
        let header = frame(at, RecordKind::Write, round % 4, 1);
        index.add_frame(&header, at, 4096, LogPosition(0));
        at = header.end().0;
    }
    assert_eq!((index.len(), index.bytes()), (4, 4 * BLOCK));
    index.synced(LogPosition(at));
    let plan = index.plan(LIMITS, LogPosition(at)).unwrap();
    assert_eq!(plan.runs.len(), 1, "neighbours are one write");
    assert_eq!(plan.runs[0].range, ByteRange::new(0, 4 * BLOCK));
    assert_eq!(index.plan(LIMITS, LogPosition(at)), None);
    index.plan_done(plan.id, true);
    assert!(index.oldest().is_some(), "the disk is not flushed");
    index.flushed(index.flush_token());
    assert_eq!((index.oldest(), index.len(), index.bytes()), (None, 0, 0));
}

#[test]
fn only_the_oldest_records_are_written_back_and_sorted_by_place() {
    let mut index = Index::default();
    let (mut at, mut starts) = (0, Vec::new());
    // Block 3 is written again and again; 9, 7 and 5 once, long ago.
    for block in [3, 9, 3, 7, 3, 5, 3, 1] {
        let header = frame(at, RecordKind::Write, block, 1);
        index.add_frame(&header, at, 4096, LogPosition(0));
        starts.push(at);
        at = header.end().0;
    }
    index.synced(LogPosition(at));
    let plan = index.plan_oldest(LIMITS, LogPosition(starts[6])).unwrap();
    let blocks: Vec<u64> = plan.runs.iter().map(|run| run.range.offset / BLOCK).collect();
    assert_eq!(blocks, [5, 7, 9]);
    assert_eq!(index.plan_oldest(LIMITS, LogPosition(starts[6])), None);
    index.plan_done(plan.id, true);
    index.flushed(index.flush_token());
    assert_eq!(index.oldest(), Some(LogPosition(starts[6])), "what is newer may stay");
    // What did not work is tried again, and what was overwritten meanwhile is not.
    let plan = index.plan_oldest(LIMITS, LogPosition(at)).unwrap();
    let header = frame(at, RecordKind::Write, 1, 1);
    index.add_frame(&header, at, 4096, LogPosition(0));
    index.plan_done(plan.id, false);
    let plan = index.plan_oldest(LIMITS, LogPosition(at)).unwrap();
    assert_eq!(plan.runs.len(), 1);
    assert_eq!(plan.runs[0].range, ByteRange::new(3 * BLOCK, BLOCK));
}

#[test]
fn what_is_found_at_an_opening_takes_as_much_memory_as_ranges_of_the_disk() {
    let segment = SegmentHeader {
        resource: ResourceId([1; 16]),
        number: 1,
        origin: NodeId::new(0).unwrap(),
        epoch: 1,
        base: LogPosition(0),
        capacity: 1 << 30,
        alignment: 4096,
        time: HybridTime(0),
        chain: [0; 16],
        predecessor: None,
        generation: GenerationId::NONE,
        packed: false,
    };
    let mut backlog = Backlog::new(&Cursors::new(segment.resource));
    for n in 0..1000 {
        // Each takes a range of the oldest one.
        let frame = frame(n * 8192, RecordKind::Zeroes, n % 8, 1);
        backlog.add(&segment, &frame, 4096 + frame.position.0);
    }
    assert_eq!(backlog.index.len(), 8);
    assert!(backlog.index.held.len() <= 8, "{}", backlog.index.held.len());
    assert_eq!(backlog.index.oldest(), Some(LogPosition(992 * 8192)));
}
