use super::{
    Compression, Cursors, FrameContext, FrameError, FrameHeader, MAX_FRAME_HEADER_LEN,
    MAX_FRAME_RECORDS, PeerCursor, PeerSwitches, Record, RecordKind, SegmentHeader, Switches,
    frame_len,
};
use crate::block::{BlockKind, Head, seal};
use crate::testing::{OTHER, RESOURCE, each_corruption, hex, node};
use crate::{BLOCK_LEN, Block, BlockError};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition};
use proptest::prelude::*;

fn segment() -> SegmentHeader {
    SegmentHeader {
        resource: RESOURCE,
        number: 7,
        origin: node(2),
        epoch: 0x1122_3344_5566_7788,
        base: LogPosition(0x12000),
        capacity: 64 << 20,
        alignment: 4096,
        time: HybridTime(0x0199_aabb_ccdd_0003),
        chain: *b"0123456789abcdef",
        predecessor: Some((node(1), 0x99, 0x2000)),
        generation: GenerationId(0xfeed),
        packed: false,
    }
}

fn write(block: u64, time: u64, payload: &[u8]) -> Record {
    let crc = crc32c::crc32c(payload);
    Record {
        fua: block == 1,
        stored_len: u32::try_from(payload.len()).unwrap(),
        crc,
        stored_crc: crc,
        ..Record::without_payload(
            RecordKind::Write,
            ByteRange::new(block * 4096, payload.len() as u64),
            HybridTime(time),
        )
    }
}

fn frame(records: Vec<Record>, alignment: u32) -> FrameHeader {
    FrameHeader {
        position: LogPosition(0x13000),
        epoch: 5,
        previous_epoch: 4,
        durable: LogPosition(0x12000),
        segment: 7,
        len: frame_len(&records, alignment).unwrap(),
        records,
    }
}

fn three() -> Vec<Record> {
    let bare = |kind, offset, len, time| {
        Record::without_payload(kind, ByteRange::new(offset, len), HybridTime(time))
    };
    vec![
        write(1, 10, &[0xab; 4096]),
        bare(RecordKind::Discard, 8192, 1 << 30, 10),
        bare(RecordKind::Flush, 0, 0, 11),
    ]
}

#[test]
fn the_bytes_of_a_segment_header() {
    assert_eq!(
        hex(&segment().encode()),
        "\
000: 48 4f 4c 44 46 41 53 54 01 00 04 00 e3 29 49 64
010: 07 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 88 77 66 55 44 33 22 11
030: 00 20 01 00 00 00 00 00 00 00 00 04 00 00 00 00
040: 00 10 00 00 02 01 00 00 03 00 dd cc bb aa 99 01
050: 30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66
060: 00 20 00 00 00 00 00 00 99 00 00 00 00 00 00 00
070: ed fe 00 00 00 00 00 00 00 00 00 00 00 00 00 00
"
    );
}

#[test]
fn a_segment_says_that_its_records_may_be_compressed_and_others_refuse_what_they_do_not_know() {
    let packed = SegmentHeader { packed: true, ..segment() };
    let (plain, mut block) = (segment().encode(), packed.encode());
    assert_eq!((plain[120], block[120]), (0, 1));
    assert_eq!(SegmentHeader::decode(&block, RESOURCE, 7), Ok(packed));
    block[120] = 3;
    let head = Head { kind: BlockKind::JournalSegment, number: 7, resource: RESOURCE };
    seal(&mut block, head);
    let refused = SegmentHeader::decode(&block, RESOURCE, 7);
    assert_eq!(refused, Err(BlockError::Features { unknown: 2 }));
}

#[test]
fn the_bytes_of_a_frame_header() {
    let header = frame(three(), 512);
    assert_eq!(header.len, 512 + 4096);
    let mut block = [0; BLOCK_LEN];
    block[..header.header_len()].copy_from_slice(&header.encode());
    assert_eq!(
        hex(&block),
        "\
000: 48 46 4a 46 be 60 5c fd 00 30 01 00 00 00 00 00
010: 05 00 00 00 00 00 00 00 04 00 00 00 00 00 00 00
020: 00 20 01 00 00 00 00 00 07 00 00 00 00 00 00 00
030: 00 12 00 00 03 00 00 00 00 00 00 00 00 00 00 00
040: 00 10 00 00 00 00 00 00 00 10 00 00 00 00 00 00
050: 0a 00 00 00 00 00 00 00 00 10 00 00 93 41 37 94
060: 93 41 37 94 01 00 01 00 00 20 00 00 00 00 00 00
070: 00 00 00 40 00 00 00 00 0a 00 00 00 00 00 00 00
080: 00 00 00 00 00 00 00 00 00 00 00 00 03 00 00 00
0a0: 0b 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
0b0: 00 00 00 00 04 00 00 00 00 00 00 00 00 00 00 00
"
    );
}

#[test]
fn the_bytes_of_cursors() {
    assert_eq!(
        hex(&cursors().encode()),
        "\
000: 48 4f 4c 44 46 41 53 54 01 00 05 00 72 90 37 0a
010: 01 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 03 00 00 00 00 00 00 00
030: 00 10 00 00 00 00 00 00 00 20 00 00 00 00 00 00
040: 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
090: 00 00 00 00 00 00 00 00 00 18 00 00 00 00 00 00
0a0: 00 14 00 00 00 00 00 00 03 00 00 00 00 00 00 00
"
    );
}

fn cursors() -> Cursors {
    let mut cursors = Cursors::new(RESOURCE);
    cursors.sequence = 3;
    cursors.written_back = LogPosition(0x1000);
    cursors.durable = LogPosition(0x2000);
    cursors.switches = Switches { fetch_paused: true, ..Switches::default() };
    cursors.peers[1] = PeerCursor {
        fetched: LogPosition(0x1800),
        replayed: LogPosition(0x1400),
        switches: PeerSwitches { counts: true, keeps_journal: true, cut: false },
    };
    cursors
}

#[test]
fn every_change_of_a_segment_header_and_of_cursors_is_seen() {
    each_corruption(&segment().encode(), |b| SegmentHeader::decode(b, RESOURCE, 7).is_ok());
    each_corruption(&cursors().encode(), |b| Cursors::decode(b, RESOURCE, 1).is_ok());
}

#[test]
fn what_is_not_this_segment_is_refused() {
    let block = segment().encode();
    assert_eq!(SegmentHeader::decode(&block, RESOURCE, 7), Ok(segment()));
    let misplaced = SegmentHeader::decode(&block, RESOURCE, 8);
    assert_eq!(misplaced, Err(BlockError::Misplaced { found: 7, expected: 8 }));
    let foreign = SegmentHeader::decode(&block, OTHER, 7);
    assert_eq!(foreign, Err(BlockError::Resource { found: RESOURCE, expected: OTHER }));
    for wrong in [
        SegmentHeader { number: 0, ..segment() },
        SegmentHeader { alignment: 1024, ..segment() },
        SegmentHeader { alignment: 0, ..segment() },
        SegmentHeader { base: LogPosition(513), ..segment() },
        SegmentHeader { base: LogPosition(u64::MAX - 511), ..segment() },
        SegmentHeader { base: LogPosition(0x1000), ..segment() },
        SegmentHeader { capacity: 4096, ..segment() },
        SegmentHeader { capacity: 5000, ..segment() },
        SegmentHeader { capacity: 1 << 63, ..segment() },
    ] {
        let refused = SegmentHeader::decode(&wrong.encode(), RESOURCE, wrong.number);
        assert!(matches!(refused, Err(BlockError::Content(_))), "{wrong:?}");
    }
}

#[test]
fn a_chain_depends_on_origin_number_epoch_length_and_all_before() {
    let link = segment().link(0x5000);
    let mut changed = vec![link; 5];
    changed[0].origin = node(3);
    changed[1].number += 1;
    changed[2].epoch += 1;
    changed[3].len += 512;
    changed[4].chain[15] ^= 1;
    assert!(changed.iter().all(|other| other.chain_after() != link.chain_after()));
    // The time is told, not hashed: it proves nothing about the content.
    let later = super::SegmentLink { time: HybridTime(0), ..link };
    assert_eq!(later.chain_after(), link.chain_after());

    let next = SegmentHeader {
        number: 8,
        base: link.end(),
        chain: link.chain_after(),
        predecessor: Some((link.origin, link.epoch, link.len)),
        ..segment()
    };
    assert!(next.continues(&link));
    assert!(changed.iter().all(|other| !next.continues(other)));
}

#[test]
fn switches_do_not_depend_on_each_other() {
    for bit in 0..8_u8 {
        let mut cursors = Cursors::new(RESOURCE);
        cursors.switches = Switches {
            fetch_paused: bit & 1 != 0,
            replay_paused: bit & 2 != 0,
            bypassed: bit & 4 != 0,
        };
        assert_eq!(Cursors::decode(&cursors.encode(), RESOURCE, 0), Ok(cursors));
    }
}

#[test]
fn the_newer_whole_copy_of_the_cursors_counts() {
    let older = Cursors { sequence: 2, ..Cursors::new(RESOURCE) };
    let blank = [0; BLOCK_LEN];
    let newest = |a: &Block, b: &Block| Cursors::newest([a, b], RESOURCE);
    assert_eq!(newest(&older.encode(), &cursors().encode()), Some(cursors()));
    assert_eq!(newest(&older.encode(), &blank), Some(older.clone()));
    assert_eq!(newest(&blank, &cursors().encode()), Some(cursors()));
    assert_eq!(newest(&cursors().encode(), &older.encode()), None, "in each other's place");
    let ahead = Cursors { written_back: LogPosition(0x3000), ..cursors() };
    assert!(Cursors::decode(&ahead.encode(), RESOURCE, 1).is_err());
}

/// Header, payloads and padding of a frame whose payloads are `fill` bytes.
fn whole(header: &FrameHeader, alignment: u32, fill: u8) -> Vec<u8> {
    let mut bytes = vec![0; header.len as usize];
    for range in header.payloads(alignment) {
        bytes[range.start as usize..range.end as usize].fill(fill);
    }
    bytes[..header.header_len()].copy_from_slice(&header.encode());
    bytes
}

fn accepts(bytes: &[u8], alignment: u32) -> Result<FrameHeader, FrameError> {
    let header = FrameHeader::decode(bytes, alignment)?;
    header.check_payloads(bytes, alignment)?;
    Ok(header)
}

#[test]
fn every_change_of_a_frame_and_every_prefix_is_seen() {
    for alignment in [512, 4096] {
        let header = frame(three(), alignment);
        let bytes = whole(&header, alignment, 0xab);
        assert_eq!(accepts(&bytes, alignment), Ok(header.clone()));
        let payload = header.payloads(alignment).next().unwrap();
        for at in (0..header.header_len()).chain(payload.start as usize..payload.end as usize) {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << (at % 8);
            assert!(accepts(&broken, alignment).is_err(), "byte {at}");
        }
        for len in 0..payload.end as usize {
            assert!(accepts(&bytes[..len], alignment).is_err(), "{len} bytes");
        }
        for sector in 0..payload.end as usize / 512 {
            let mut torn = bytes.clone();
            torn[sector * 512..(sector + 1) * 512].fill(0);
            let lost = sector * 512 < header.header_len() || sector * 512 >= payload.start as usize;
            assert_eq!(accepts(&torn, alignment).is_err(), lost, "sector {sector}");
        }
    }
}

#[test]
fn a_frame_of_another_place_or_time_is_refused() {
    let header = frame(three(), 4096);
    let context = FrameContext {
        position: header.position,
        segment: 7,
        epoch: header.epoch,
        alignment: 4096,
    };
    assert_eq!(header.follows(&context), Ok(()));
    assert_eq!(header.follows(&FrameContext { epoch: 4, ..context }), Ok(()), "begins an epoch");
    assert!(matches!(
        header.follows(&FrameContext { epoch: 3, ..context }),
        Err(FrameError::Epoch { .. })
    ));
    assert!(matches!(
        header.follows(&FrameContext { segment: 8, ..context }),
        Err(FrameError::Segment { .. })
    ));
    let earlier = FrameContext { position: LogPosition(0x11000), ..context };
    assert!(matches!(header.follows(&earlier), Err(FrameError::Position { .. })));
}

#[test]
fn records_that_no_writer_makes_are_refused() {
    let good = write(1, 1, &[1; 4096]);
    let bare = |kind, range| Record::without_payload(kind, range, HybridTime(1));
    for wrong in [
        Record { range: ByteRange::new(1, 4096), ..good },
        Record { range: ByteRange::new(4096, 8192), ..good },
        Record { range: ByteRange::new(1 << 50, 4096), ..good },
        Record { range: ByteRange::new(u64::MAX - 4095, 4096), ..good },
        Record { stored_crc: !good.crc, ..good },
        Record { compression: Compression::Lz4, ..good },
        Record { compression: Compression::Lz4, stored_len: 0, ..good },
        Record { kind: RecordKind::Zeroes, ..good },
        bare(RecordKind::Write, ByteRange::new(0, 0)),
        bare(RecordKind::Zeroes, ByteRange::new(0, 0)),
        bare(RecordKind::Discard, ByteRange::new(4096, u64::MAX - 4095)),
        bare(RecordKind::Flush, ByteRange::new(4096, 0)),
        bare(RecordKind::Flush, ByteRange::new(0, 4096)),
    ] {
        let header = FrameHeader { len: 8192, ..frame(vec![good], 4096) };
        let header = FrameHeader { records: vec![wrong], ..header };
        let refused = FrameHeader::decode(&header.encode(), 4096);
        assert!(matches!(refused, Err(FrameError::Content(_))), "{wrong:?}");
    }
    let long = Record { range: ByteRange::new(0, 2 << 20), stored_len: 2 << 20, ..good };
    let header = frame(vec![long], 4096);
    assert!(FrameHeader::decode(&header.encode(), 4096).is_err(), "longer than a request");
}

#[test]
fn frames_that_no_writer_makes_are_refused() {
    let good = frame(three(), 4096);
    let mut backwards = three();
    backwards[0].time = HybridTime(12);
    for wrong in [
        FrameHeader { len: good.len + 4096, ..good.clone() },
        FrameHeader { len: good.len - 512, ..good.clone() },
        FrameHeader { len: u32::MAX, ..good.clone() },
        FrameHeader { position: LogPosition(0x13001), ..good.clone() },
        FrameHeader { position: LogPosition(1 << 62), ..good.clone() },
        FrameHeader { durable: LogPosition(0x13200), ..good.clone() },
        FrameHeader { records: backwards, ..good.clone() },
        FrameHeader { records: Vec::new(), ..good.clone() },
        FrameHeader { records: vec![three()[2]; MAX_FRAME_RECORDS + 1], ..good.clone() },
    ] {
        assert!(FrameHeader::decode(&wrong.encode(), 4096).is_err(), "{wrong:?}");
    }
    assert_eq!(frame_len(&[], 4096), None);
    assert_eq!(frame_len(&vec![three()[2]; MAX_FRAME_RECORDS + 1], 4096), None);
    let long = write(0, 0, &vec![0; 1 << 20]);
    assert_eq!(frame_len(&[long; 3], 4096), Some((3 << 20) + 4096));
    assert_eq!(frame_len(&[long; 4], 4096), None);
    assert_eq!(FrameHeader::decode(&[0; 4096], 4096), Err(FrameError::Blank));
    assert_eq!(FrameHeader::decode(&[0; 63], 4096), Err(FrameError::Short));
}

prop_compose! {
    fn any_record()(
        block in 0u64..1000, blocks in 1u64..8, kind in 1u8..5, fua: bool, packed in 0u8..3,
        stored in 1u32..4096, crc: u32, stored_crc: u32,
    ) -> Record {
        let range = ByteRange::new(block * 4096, blocks * 4096);
        let kind = RecordKind::from_number(kind).unwrap();
        let range = if kind == RecordKind::Flush { ByteRange::default() } else { range };
        let bare = Record { fua, ..Record::without_payload(kind, range, HybridTime(0)) };
        let compression = Compression::from_number(packed).unwrap();
        match (kind, compression) {
            (RecordKind::Write, Compression::None) => {
                let stored_len = u32::try_from(range.len).unwrap();
                Record { stored_len, crc, stored_crc: crc, ..bare }
            }
            (RecordKind::Write, _) => {
                Record { compression, stored_len: stored, crc, stored_crc, ..bare }
            }
            _ => bare,
        }
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        mut records in prop::collection::vec(any_record(), 1..=MAX_FRAME_RECORDS),
        fine: bool,
        times in prop::collection::vec(0u64..1000, MAX_FRAME_RECORDS),
    ) {
        let alignment = if fine { 512 } else { 4096 };
        let mut time = 0;
        for (record, step) in records.iter_mut().zip(times) {
            time += step;
            record.time = HybridTime(time);
        }
        let header = frame(records, alignment);
        let bytes = header.encode();
        prop_assert!(bytes.len() <= MAX_FRAME_HEADER_LEN);
        prop_assert_eq!(FrameHeader::decode(&bytes, alignment), Ok(header.clone()));
        // Payloads do not overlap, keep their order, and plain ones are aligned.
        let mut end = u32::try_from(bytes.len()).unwrap();
        for (range, record) in header.payloads(alignment).zip(&header.records) {
            prop_assert!(range.start >= end && range.end <= header.len);
            prop_assert_eq!(range.end - range.start, record.stored_len);
            let plain = record.compression == Compression::None && record.stored_len > 0;
            prop_assert!(!plain || range.start.is_multiple_of(alignment));
            end = range.end;
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut bytes = bytes;
        let _ = FrameHeader::decode(&bytes, 512);
        if bytes.len() >= 4 {
            bytes[..4].copy_from_slice(b"HFJF");
        }
        prop_assert!(FrameHeader::decode(&bytes, 4096).is_err());
    }
}
