//! Journals whose records are compressed.

use super::{Faults, PATIENCE, Rig};
use bytes::Bytes;
use holdfast_format::journal::{Compression, PeerSwitches};
use holdfast_store::{DiskOp, Outcome};
use holdfast_units::{ByteRange, LogPosition, NodeId};
use rustix::io::Errno;
use std::time::Duration;

const KINDS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];

impl Rig {
    fn pack(&self, compression: Compression) {
        self.runtime.block_on(self.handle.set_compression(compression)).unwrap();
        assert_eq!(self.status().compression, compression);
    }

    /// Which of its segments say that they may have compressed records.
    fn packed(&self) -> Vec<bool> {
        let segments = self.runtime.block_on(self.handle.segments()).unwrap();
        segments.iter().map(|(header, _)| header.packed).collect()
    }

    /// A peer needs all of it: nothing is given up when it is written back.
    fn keep_all(&self) {
        let peer = NodeId::new(3).unwrap();
        let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
        self.runtime.block_on(self.handle.set_peer(peer, counts)).unwrap();
    }

    /// A long write of several fills.
    fn write_long(&mut self, block: u64) {
        let data: Vec<u8> = (1..=64_u8).flat_map(|fill| [fill; 4096]).collect();
        let range = ByteRange::of_blocks(block..block + 64);
        self.run(DiskOp::Write { range, data: Bytes::from(data), fua: false }).unwrap();
    }
}

#[test]
fn what_is_compressed_is_read_written_back_and_found_again() {
    for kind in KINDS {
        let mut rig = Rig::leading();
        rig.pack(kind);
        rig.write_long(0);
        (100..140).for_each(|block| rig.write(block, 7));
        rig.write(20, 99);
        let figures = rig.status().figures;
        assert_eq!(figures.payload_bytes, (64 + 41) * 4096);
        assert!(figures.stored_bytes < figures.payload_bytes / 20, "{figures:?}");
        assert!(rig.status().head.0 < 64 << 12, "a frame is a block each: {}", rig.status().head);
        let expected: Vec<u8> = (1..=64).map(|n| if n == 21 { 99 } else { n }).collect();
        for block in 0..64_u8 {
            let at = u64::from(block);
            assert_eq!(rig.read(at..at + 1), [expected[usize::from(block)]]);
        }
        assert_eq!(rig.read(0..64), expected);
        // From the segments, not from memory.
        rig.reopen(Duration::ZERO);
        assert_eq!(rig.read(0..64), expected);
        assert_eq!(rig.read(100..140), [7; 40]);
        rig.lead();
        rig.settle();
        assert_eq!(rig.below(0..64), expected);
        assert_eq!(rig.below(100..140), [7; 40]);
    }
}

#[test]
fn a_failed_sync_loses_nothing_that_was_compressed() {
    for kind in KINDS {
        let mut rig = Rig::leading();
        rig.pack(kind);
        rig.set_faults(Faults { sync: Some(("segment", Errno::IO)), ..Faults::default() });
        rig.write_long(0);
        rig.flush();
        assert_eq!(rig.status().mode, super::Mode::Without);
        let expected: Vec<u8> = (1..=64).collect();
        assert_eq!(rig.below(0..64), expected);
    }
}

#[test]
fn it_is_switched_while_the_journal_is_in_use() {
    let mut rig = Rig::leading();
    rig.keep_all();
    rig.write(0, 1);
    assert_eq!(rig.packed(), [false]);
    rig.pack(Compression::Lz4);
    rig.write(1, 2);
    rig.write(2, 3);
    assert_eq!(rig.packed(), [false, true], "the segment says so");
    rig.pack(Compression::Zstd);
    rig.write(3, 4);
    rig.pack(Compression::None);
    rig.write(4, 5);
    assert_eq!(rig.packed(), [false, true], "that one may have others, too");
    rig.runtime.block_on(rig.handle.rotate()).unwrap();
    rig.write(5, 6);
    assert_eq!(rig.packed(), [false, true, false]);
    let stored = rig.status().figures.stored_bytes;
    assert!(stored > 3 * 4096 && stored < 4 * 4096, "{stored}");
    rig.flush();
    let from = LogPosition::START;
    let read = rig.runtime.block_on(rig.handle.writes_from(from, 1 << 20)).unwrap().0;
    let fills: Vec<u8> = read.iter().map(|write| write.data.as_ref().unwrap()[100]).collect();
    assert_eq!(fills, [1, 2, 3, 4, 5, 6], "peers that catch up get them as they were submitted");
    rig.reopen(Duration::ZERO);
    assert_eq!(rig.read(0..6), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn an_empty_segment_that_says_nothing_of_it_gets_no_compressed_records() {
    let mut rig = Rig::leading();
    rig.keep_all();
    rig.write(0, 1);
    rig.runtime.block_on(rig.handle.begin_segment()).unwrap();
    rig.pack(Compression::Lz4);
    rig.write(1, 2);
    assert_eq!(rig.status().figures.stored_bytes, 2 * 4096);
    rig.write(2, 3);
    assert_eq!(rig.packed(), [false, false, true]);
    assert!(rig.status().figures.stored_bytes < 3 * 4096);
}

#[test]
fn a_follower_takes_compressed_records_as_they_are() {
    let mut leader = Rig::leading();
    leader.pack(Compression::Zstd);
    leader.write_long(0);
    leader.write(3, 77);
    leader.flush();
    let follower = Rig::of_node(1);
    let (ours, theirs) = (&follower.runtime, &leader.runtime);
    ours.block_on(follower.handle.follow()).unwrap();
    for (header, len) in theirs.block_on(leader.handle.segments()).unwrap() {
        let want = usize::try_from(len).unwrap();
        let bytes = theirs.block_on(leader.handle.fetch(header.number, header.base, want)).unwrap();
        assert_eq!(ours.block_on(follower.handle.copy(header, bytes.clone())).unwrap(), want);
        let end = ours.block_on(follower.handle.flush()).unwrap();
        let kept = ours.block_on(follower.handle.fetch(header.number, header.base, want)).unwrap();
        assert_eq!(kept, bytes, "byte for byte");
        let replay = async {
            tokio::time::timeout(PATIENCE, follower.handle.replay(end, 1 << 30)).await.unwrap()
        };
        assert_eq!(ours.block_on(replay).unwrap(), end);
    }
    assert_eq!(follower.packed(), [true]);
    assert_eq!(follower.below(0..64), leader.read(0..64));
    let data = leader.run(DiskOp::Read { range: ByteRange::of_blocks(3..4), holes: false });
    assert_eq!(data.unwrap(), Outcome::Data(Bytes::from(vec![77; 4096])));
}
