//! Segments of a journal after any changes: damaged, or a prefix of what was appended that can
//! be gone through, and that can go on and is read back as it is then.
#![no_main]

use bytes::Bytes;
use holdfast_format::ReadFailed;
use holdfast_format::journal::{Compression, Cursors, FrameHeader, RecordKind};
use holdfast_fuzz::RESOURCE;
use holdfast_journal::{
    Found, Journal, Next, Op, ReadSegments, Reading, Records, Settings, recover,
};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

#[derive(Arbitrary, Debug)]
struct Input {
    fine: bool,
    ops: Vec<(u8, u8, u8)>,
    patches: Vec<Patch>,
    /// Frames decoded from any bytes.
    raw: Vec<u8>,
    cut_short: Option<u16>,
    durable: u16,
}

#[derive(Arbitrary, Debug)]
struct Patch {
    segment: u8,
    at: u16,
    bytes: Vec<u8>,
    /// Make the header of the frame there fit its bytes, as that of a faulty writer would.
    sealed: bool,
}

#[derive(Clone, Default)]
struct Files(BTreeMap<u64, Vec<u8>>);

impl ReadSegments for Files {
    fn read_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<usize, ReadFailed> {
        let file = self.0.get(&number).ok_or_else(|| ReadFailed("it is gone".into()))?;
        let from = usize::try_from(offset).map_or(file.len(), |from| from.min(file.len()));
        let len = buf.len().min(file.len() - from);
        buf[..len].copy_from_slice(&file[from..from + len]);
        Ok(len)
    }
}

const SEGMENT: usize = 10 * 4096;

fn settings(fine: bool, epoch: u64) -> Settings {
    Settings {
        segment_bytes: SEGMENT as u64,
        alignment: if fine { 512 } else { 4096 },
        ..Settings::new(RESOURCE, NodeId::new(0).expect("0 is a node"), epoch)
    }
}

fn append(journal: &mut Journal, files: &mut Files, ops: &[(u8, u8, u8)], alone: bool) {
    for (kind, block, packed) in ops.iter().take(24) {
        let (range, time) = (ByteRange::new(u64::from(*block) * 4096, 4096), HybridTime(0));
        let payload = Bytes::from(vec![*block; 4096]);
        let packed =
            [Compression::None, Compression::Lz4, Compression::Zstd][usize::from(packed % 3)];
        let op = match kind % 4 {
            0 => Op::flush(time),
            1 => Op::zeroes(range, time, true, false).expect("a block"),
            _ => Op::write_packed(range.offset, payload, time, false, packed).expect("a block"),
        };
        journal.push(op).expect("there is room");
        if alone || kind % 3 == 0 {
            pump(journal, files);
        }
    }
    pump(journal, files);
}

fn pump(journal: &mut Journal, files: &mut Files) {
    loop {
        match journal.next_step() {
            Next::Idle => break,
            Next::Wait => panic!("nothing is under way"),
            Next::Sync(position) => journal.synced(position),
            Next::Begin(header) => {
                let mut file = vec![0; SEGMENT];
                file[..4096].copy_from_slice(&header.encode());
                files.0.insert(header.number, file);
                journal.begun(header.number);
            }
            Next::Write(batch) => {
                let bytes = batch.parts.concat();
                let at = usize::try_from(batch.offset).expect("a file is short");
                let file = files.0.get_mut(&batch.segment).expect("it was begun");
                file[at..at + bytes.len()].copy_from_slice(&bytes);
                journal.written(batch.id);
                if batch.id.0 % 2 == 0 {
                    journal.synced(batch.end);
                }
            }
        }
    }
    if let Some(target) = journal.sync_target() {
        journal.synced(target);
    }
}

fn find(files: &Files, cursors: &Cursors, cut: Option<LogPosition>) -> Option<(Found, usize)> {
    let numbers: Vec<u64> = files.0.keys().copied().collect();
    let mut records = 0;
    let reading = Reading::NotWrittenBack;
    let found = recover(files, RESOURCE, &numbers, cursors, reading, cut, &mut |_, frame, _| {
        records += frame.records.len();
    });
    found.ok().map(|found| (found, records))
}

/// How many records there are; each must be one that was verified.
fn count(files: &Files, found: &Found) -> usize {
    let first = found.segments.first().map_or(LogPosition::START, |(header, _)| header.base);
    let segments = found.segments.clone();
    let mut records = Records::new(files, segments, first).expect("from the beginning");
    let mut count = 0;
    while let Some(record) = records.next().expect("what was found can be read") {
        let payload = records.payload(&record).map(|payload| payload.len() as u64);
        let write = record.record.kind == RecordKind::Write;
        if let Ok(len) = payload {
            assert_eq!(len, if write { record.record.range.len } else { 0 });
        }
        count += 1;
    }
    count
}

fuzz_target!(|input: Input| {
    for alignment in [512, 4096] {
        if let Ok(frame) = FrameHeader::decode(&input.raw, alignment) {
            assert_eq!(frame.encode(), input.raw[..frame.header_len()]);
        }
    }
    let cursors = Cursors::new(RESOURCE);
    let mut files = Files::default();
    let (empty, _) = find(&files, &cursors, None).expect("nothing is damaged");
    let new = |found: &Found, epoch| {
        let settings = settings(input.fine, epoch);
        Journal::new(settings, found, cursors.clone(), true, GenerationId(4), HybridTime(0))
    };
    append(&mut new(&empty, 1), &mut files, &input.ops, false);
    let (whole, records) = find(&files, &cursors, None).expect("nothing is damaged");
    assert_eq!(records, input.ops.len().min(24));
    assert_eq!(count(&files, &whole), records);

    for patch in &input.patches {
        let number = 1 + u64::from(patch.segment) % (files.0.len() as u64).max(1);
        let Some(file) = files.0.get_mut(&number) else { continue };
        let at = usize::from(patch.at) % file.len();
        let len = patch.bytes.len().min(file.len() - at);
        file[at..at + len].copy_from_slice(&patch.bytes[..len]);
        if patch.sealed {
            seal(&mut file[at / 512 * 512..]);
        }
    }
    if let (Some(len), Some(mut last)) = (input.cut_short, files.0.last_entry()) {
        let len = usize::from(len).min(last.get().len());
        last.get_mut().truncate(len);
    }
    let mut known = cursors.clone();
    known.durable = LogPosition(u64::from(input.durable));
    for cut in [None, Some(LogPosition(u64::from(input.durable)))] {
        let mut files = files.clone();
        let Some((found, records)) = find(&files, &known, cut) else { continue };
        assert_eq!(count(&files, &found), records);
        // What is kept may begin behind the cut: then nothing of it counts.
        let first = found.segments.first().map_or(LogPosition::START, |(header, _)| header.base);
        assert!(cut.is_none_or(|cut| found.end() <= cut.max(first) || !found.cut));
        for number in &found.remnants {
            files.0.remove(number);
        }
        files.0.values_mut().for_each(|file| file.resize(SEGMENT, 0));
        let mut journal = new(&found, 2);
        if found.segments.iter().any(|(header, _)| header.capacity != SEGMENT as u64) {
            continue;
        }
        append(&mut journal, &mut files, &[(2, 1, 0), (2, 2, 1), (2, 3, 2)], true);
        let (again, records_again) = find(&files, &cursors, None).expect("it went on");
        assert_eq!(records_again, records + 3);
        assert_eq!(count(&files, &again), records_again);
    }
});

/// The checksum of a frame's header, if there is room for one.
fn seal(frame: &mut [u8]) {
    let records = usize::from(u16::from_le_bytes([frame[52], frame[53]]));
    let Some(header) = frame.get_mut(..64 + records * 40) else { return };
    header[4..8].fill(0);
    let crc = crc32c::crc32c(header);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
}
