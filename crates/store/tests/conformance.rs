//! What every engine must do alike.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Bed, beds, drain, read, write};
use holdfast_store::{
    Disk, DiskErrorKind, DiskOp, EngineKind, MAX_TRANSFER, OpId, OpKind, OpenOptions, Outcome,
};
use holdfast_units::ByteRange;
use proptest::prelude::*;

const SIZE: u64 = 4 << 20;

fn on_every_engine(test: impl Fn(&mut Disk, &Bed)) {
    for bed in beds(SIZE) {
        eprintln!("on {}", bed.name);
        let mut disk = bed.open();
        test(&mut disk, &bed);
    }
}

#[test]
fn writes_are_read_back_and_neighbours_stay() {
    on_every_engine(|disk, _| {
        assert_eq!(disk.size(), SIZE);
        write(disk, 4096, &[1; 12288]);
        write(disk, 8192, &[2; 4096]);
        let data = read(disk, 0, 20480);
        for (block, expected) in data.chunks(4096).zip([0, 1, 2, 1, 0]) {
            assert!(block.iter().all(|byte| *byte == expected));
        }
        write(disk, SIZE - 4096, &[3; 4096]);
        assert_eq!(read(disk, SIZE - 4096, 4096)[..], [3; 4096]);
    });
}

#[test]
fn zeroes_and_discards() {
    on_every_engine(|disk, _| {
        for (unmap, fua) in [(false, false), (true, false), (false, true), (true, true)] {
            write(disk, 0, &[7; 65536]);
            let range = ByteRange::new(4096, 40960);
            assert_eq!(disk.execute(DiskOp::WriteZeroes { range, unmap, fua }), Ok(Outcome::Done));
            let data = read(disk, 0, 65536);
            assert!(data[..4096].iter().all(|byte| *byte == 7));
            assert!(data[4096..45056].iter().all(|byte| *byte == 0));
            assert!(data[45056..].iter().all(|byte| *byte == 7));
        }
        let range = ByteRange::new(0, 65536);
        assert_eq!(disk.execute(DiskOp::Discard { range }), Ok(Outcome::Done));
        let data = read(disk, 0, 65536);
        assert!(!disk.info().discard_zeroes || data.iter().all(|byte| *byte == 0));
        assert_eq!(read(disk, 0, 65536), data, "what is read is stable");
    });
}

#[test]
fn durable_writes_and_flushes_complete() {
    on_every_engine(|disk, bed| {
        let data = Bytes::from(vec![5; 8192]);
        let range = ByteRange::new(16384, 8192);
        assert_eq!(disk.execute(DiskOp::Write { range, data, fua: true }), Ok(Outcome::Done));
        assert_eq!(disk.execute(DiskOp::Flush), Ok(Outcome::Done));
        if let Some(path) = &bed.path {
            let mut found = [0; 8192];
            std::fs::File::open(path).unwrap().read_exact_at(&mut found, 16384).unwrap();
            assert_eq!(found, [5; 8192]);
        }
    });
}

#[test]
fn holes_are_told_from_data() {
    on_every_engine(|disk, bed| {
        let mut holes = |offset, len| {
            disk.execute(DiskOp::Read { range: ByteRange::new(offset, len), holes: true }).unwrap()
        };
        if !bed.knows_holes {
            assert!(matches!(holes(0, 4096), Outcome::Data(_)));
            return;
        }
        assert_eq!(holes(0, 1 << 20), Outcome::Zeroes);
        assert_eq!(holes(SIZE - 4096, 4096), Outcome::Zeroes);
        write(disk, 1 << 20, &[9; 4096]);
        let mut holes = |offset, len| {
            disk.execute(DiskOp::Read { range: ByteRange::new(offset, len), holes: true }).unwrap()
        };
        assert_eq!(holes(0, 1 << 20), Outcome::Zeroes);
        assert_eq!(holes(1 << 20, 4096), Outcome::Data(Bytes::from(vec![9; 4096])));
        assert!(matches!(holes((1 << 20) - 4096, 8192), Outcome::Data(_)));
        let range = ByteRange::new(1 << 20, 4096);
        disk.execute(DiskOp::WriteZeroes { range, unmap: true, fua: false }).unwrap();
        let outcome = disk.execute(DiskOp::Read { range, holes: true });
        assert_eq!(outcome, Ok(Outcome::Zeroes), "unmapped");
        let range = ByteRange::new(0, 4096);
        assert_eq!(
            disk.execute(DiskOp::Read { range, holes: false }),
            Ok(Outcome::Data(Bytes::from(vec![0; 4096])))
        );
    });
}

#[test]
fn bad_requests_are_refused() {
    on_every_engine(|disk, _| {
        let data = |len: usize| Bytes::from(vec![1; len]);
        let at = ByteRange::new;
        let read = |range| DiskOp::Read { range, holes: false };
        let write = |range, len| DiskOp::Write { range, data: data(len), fua: false };
        for (request, kind) in [
            (read(at(SIZE, 4096)), DiskErrorKind::OutOfRange),
            (read(at(SIZE - 4096, 8192)), DiskErrorKind::OutOfRange),
            (read(at(u64::MAX - 4095, 4096)), DiskErrorKind::OutOfRange),
            (read(at(4096, u64::MAX)), DiskErrorKind::OutOfRange),
            (write(at(SIZE, 4096), 4096), DiskErrorKind::OutOfRange),
            (DiskOp::Discard { range: at(0, SIZE + 4096) }, DiskErrorKind::OutOfRange),
            (write(at(0, 4096), 8192), DiskErrorKind::Invalid),
            (write(at(0, 8192), 4096), DiskErrorKind::Invalid),
        ] {
            let error = disk.execute(request).unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
        }
        if disk.info().direct {
            let error = disk.execute(read(at(1, 4096))).unwrap_err();
            assert_eq!(error.kind, DiskErrorKind::Invalid);
        }
        assert_eq!(disk.execute(read(at(SIZE, 0))), Ok(Outcome::Data(Bytes::new())));
        assert_eq!(disk.execute(write(at(0, 0), 0)), Ok(Outcome::Done));
        assert!(disk.execute(DiskOp::Flush).is_ok(), "a refusal changes nothing");
        assert_eq!(disk.in_flight(), 0);
    });
}

#[test]
fn a_transfer_has_a_longest_length() {
    let options = OpenOptions::default();
    for bed in beds(MAX_TRANSFER + 4096).into_iter().filter(|bed| bed.name != "block device") {
        let mut disk = bed.open_with(&options);
        let range = ByteRange::new(0, MAX_TRANSFER + 4096);
        let error = disk.execute(DiskOp::Read { range, holes: false }).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::Invalid);
        let range = ByteRange::new(4096, MAX_TRANSFER);
        assert!(disk.execute(DiskOp::Read { range, holes: false }).is_ok());
    }
}

#[test]
fn many_operations_in_flight_end_once_each() {
    on_every_engine(|disk, _| {
        let mut done = Vec::new();
        let blocks = SIZE / 4096;
        for number in 0..blocks {
            let range = ByteRange::new(number * 4096, 4096);
            let data = Bytes::from(vec![u8::try_from(number % 251).unwrap(); 4096]);
            let request = DiskOp::Write { range, data, fua: number % 64 == 0 };
            done.extend(disk.submit(OpId(number), request));
            if number % 100 == 0 {
                done.extend(disk.submit(OpId(blocks + number), DiskOp::Flush));
            }
        }
        drain(disk, &mut done);
        let mut seen: Vec<u64> = done.iter().map(|completion| completion.op.0).collect();
        seen.sort_unstable();
        let mut expected: Vec<u64> = (0..blocks).collect();
        expected.extend((0..blocks).step_by(100).map(|number| blocks + number));
        assert_eq!(seen, expected);
        assert!(done.iter().all(|completion| completion.result == Ok(Outcome::Done)));

        done.clear();
        for number in 0..blocks {
            let range = ByteRange::new(number * 4096, 4096);
            done.extend(disk.submit(OpId(number), DiskOp::Read { range, holes: false }));
        }
        drain(disk, &mut done);
        assert_eq!(done.len() as u64, blocks);
        for completion in done {
            let expected = vec![u8::try_from(completion.op.0 % 251).unwrap(); 4096];
            assert_eq!(completion.result, Ok(Outcome::Data(Bytes::from(expected))));
        }
    });
}

#[test]
fn what_is_in_flight_is_bounded() {
    let options = OpenOptions { max_in_flight: 3, ..OpenOptions::default() };
    for bed in beds(SIZE) {
        let mut disk = bed.open_with(&options);
        let mut done = Vec::new();
        for number in 0..10 {
            let range = ByteRange::new(0, 4096);
            done.extend(disk.submit(OpId(number), DiskOp::Read { range, holes: false }));
        }
        assert!(disk.in_flight() <= 3, "{}", bed.name);
        let busy = |kind| move |error: &holdfast_store::DiskError| error.kind == kind;
        let refused = done.iter().filter_map(|completion| completion.result.as_ref().err());
        assert!(refused.clone().all(busy(DiskErrorKind::Busy)), "{}", bed.name);
        drain(&mut disk, &mut done);
        assert_eq!(done.len(), 10);
        assert_eq!(disk.in_flight(), 0);
        assert_eq!(read(&mut disk, 0, 4096)[..], [0; 4096]);
    }
}

#[test]
fn the_event_fd_is_readable_until_completions_are_taken() {
    on_every_engine(|disk, bed| {
        let range = ByteRange::new(0, 4096);
        let mut done = Vec::new();
        for (operation, wait) in [
            (DiskOp::Read { range, holes: false }, false),
            (DiskOp::Flush, false),
            (DiskOp::Flush, true),
        ] {
            disk.wait_for_flushes(wait);
            let read = operation.kind() == OpKind::Read;
            if disk.submit(OpId(1), operation).is_some() {
                let at_once = bed.is_inline || bed.engine == EngineKind::Inline;
                assert!(at_once || read && bed.engine == EngineKind::Cached, "{}", bed.name);
                continue;
            }
            disk.kick();
            assert!(common::readable(disk, Duration::from_secs(10)));
            done.clear();
            disk.wait(&mut done, Duration::from_secs(10));
            assert_eq!(done.len(), 1);
        }
        disk.completions(&mut done);
        assert!(!common::readable(disk, Duration::ZERO), "nothing is left");
        let begin = Instant::now();
        disk.wait(&mut done, Duration::from_secs(10));
        assert!(begin.elapsed() < Duration::from_secs(9), "nothing to wait for");
    });
}

#[test]
fn a_disk_dropped_in_the_middle_lets_go_of_everything() {
    for bed in beds(SIZE) {
        for _ in 0..5 {
            let mut disk = bed.open();
            let payload: Vec<_> = (0..200).map(|_| bed.pool.copy_of(&[1; 4096]).freeze()).collect();
            for (number, data) in (0..).zip(payload) {
                let range = ByteRange::new(number * 4096, 4096);
                let _ = disk.submit(OpId(number), DiskOp::Write { range, data, fua: false });
                let _ = disk.submit(OpId(number), DiskOp::Discard { range });
            }
            disk.kick();
            drop(disk);
            assert!(bed.pool.free_bytes() >= 200 * 4096, "{}: memory leaked", bed.name);
            // Opened again by the next round: the claim is gone, too.
        }
    }
}

#[test]
fn payload_memory_is_used_again() {
    on_every_engine(|disk, bed| {
        let kept = |disk: &mut Disk| {
            drop(read(disk, 0, 4096));
            bed.pool.free_bytes()
        };
        let first = kept(disk);
        assert!(first >= 4096);
        for _ in 0..100 {
            assert_eq!(kept(disk), first, "no more memory than for one read");
        }
        let data = bed.pool.copy_of(&[8; 4096]).freeze();
        let range = ByteRange::new(0, 4096);
        disk.execute(DiskOp::Write { range, data, fua: false }).unwrap();
        assert_eq!(kept(disk), first);
        // Memory that is not aligned, as it comes out of the middle of a network buffer.
        let data = Bytes::from(vec![6; 4097]).slice(1..);
        disk.execute(DiskOp::Write { range, data, fua: true }).unwrap();
        assert_eq!(read(disk, 0, 4096)[..], [6; 4096]);
    });
}

#[test]
fn a_disk_opened_for_reading_is_not_written() {
    for bed in beds(SIZE).into_iter().filter(|bed| bed.path.is_some()) {
        let mut disk = bed.open_with(&OpenOptions { read_only: true, ..OpenOptions::default() });
        let range = ByteRange::new(0, 4096);
        for request in [
            DiskOp::Write { range, data: Bytes::from(vec![1; 4096]), fua: false },
            DiskOp::Discard { range },
            DiskOp::WriteZeroes { range, unmap: false, fua: false },
        ] {
            assert_eq!(disk.execute(request).unwrap_err().kind, DiskErrorKind::ReadOnly);
        }
        assert_eq!(disk.execute(DiskOp::Flush), Ok(Outcome::Done));
        assert_eq!(read(&mut disk, 0, 4096)[..], [0; 4096]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read { block: u64, blocks: u64, holes: bool },
    Write { block: u64, blocks: u64, fill: u8, fua: bool },
    Zero { block: u64, blocks: u64, unmap: bool },
    Flush,
}

const MODEL_BLOCKS: u64 = 32;

fn step() -> impl Strategy<Value = Step> {
    let span = (0..MODEL_BLOCKS).prop_flat_map(|block| (Just(block), 1..=MODEL_BLOCKS - block));
    prop_oneof![
        3 => (span.clone(), any::<bool>())
            .prop_map(|((block, blocks), holes)| Step::Read { block, blocks, holes }),
        4 => (span.clone(), any::<u8>(), any::<bool>())
            .prop_map(|((block, blocks), fill, fua)| Step::Write { block, blocks, fill, fua }),
        2 => (span, any::<bool>())
            .prop_map(|((block, blocks), unmap)| Step::Zero { block, blocks, unmap }),
        1 => Just(Step::Flush),
    ]
}

/// Steps that do not touch each other are in flight together; others wait for what is before.
fn run_against_model(disk: &mut Disk, steps: &[Step]) {
    let mut model = vec![0_u8; usize::try_from(MODEL_BLOCKS * 4096).unwrap()];
    let clear = ByteRange::new(0, MODEL_BLOCKS * 4096);
    disk.execute(DiskOp::WriteZeroes { range: clear, unmap: true, fua: false }).unwrap();
    let mut busy: Vec<ByteRange> = Vec::new();
    let mut expected: HashMap<OpId, Vec<u8>> = HashMap::new();
    let mut done = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let range = |block, blocks| ByteRange::new(block * 4096, blocks * 4096);
        let request = match *step {
            Step::Read { block, blocks, holes } => {
                DiskOp::Read { range: range(block, blocks), holes }
            }
            Step::Write { block, blocks, fill, fua } => {
                let range = range(block, blocks);
                let data = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
                DiskOp::Write { range, data, fua }
            }
            Step::Zero { block, blocks, unmap } => {
                DiskOp::WriteZeroes { range: range(block, blocks), unmap, fua: false }
            }
            Step::Flush => DiskOp::Flush,
        };
        let touched = request.range();
        if busy.iter().any(|range| range.overlaps(touched)) {
            drain(disk, &mut done);
            check(&mut done, &mut expected);
            busy.clear();
        }
        busy.push(touched);
        let op = OpId(number as u64);
        let part =
            usize::try_from(touched.offset).unwrap()..usize::try_from(touched.end()).unwrap();
        match step {
            Step::Read { .. } => drop(expected.insert(op, model[part].to_vec())),
            Step::Write { fill, .. } => model[part].fill(*fill),
            Step::Zero { .. } => model[part].fill(0),
            Step::Flush => {}
        }
        done.extend(disk.submit(op, request));
        disk.kick();
    }
    drain(disk, &mut done);
    check(&mut done, &mut expected);
    assert!(expected.is_empty());
    assert_eq!(read(disk, 0, model.len()), model);
}

fn check(done: &mut Vec<holdfast_store::Completion>, expected: &mut HashMap<OpId, Vec<u8>>) {
    for completion in done.drain(..) {
        let outcome = completion.result.unwrap();
        match (outcome, expected.remove(&completion.op)) {
            (Outcome::Data(data), Some(expected)) => assert_eq!(data[..], expected[..]),
            (Outcome::Zeroes, Some(expected)) => assert!(expected.iter().all(|byte| *byte == 0)),
            (Outcome::Done, None) => {}
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn every_engine_behaves_like_a_plain_array() {
    for bed in beds(SIZE) {
        eprintln!("on {}", bed.name);
        let disk = std::cell::RefCell::new(bed.open());
        let config = ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() };
        proptest!(config, |(steps in prop::collection::vec(step(), 1..40))| {
            run_against_model(&mut disk.borrow_mut(), &steps);
        });
    }
}
