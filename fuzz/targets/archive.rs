//! What an archive consists of: manifests, pieces, indexes, as they are and with checksums that fit;
//! and plans for any moment from what was accepted.
#![no_main]

use bytes::Bytes;
use holdfast_archive::{
    Archive, Base, Checkpoint, Digest, IndexEntry, IndexPart, Line, LogObject, Manifest, Moment,
    Piece, Segment, SizeAt, Store, Version,
};
use holdfast_format::journal::{Compression, SegmentHeader};
use holdfast_fuzz::RESOURCE;
use holdfast_journal::driver::Backing;
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::io;
use std::sync::LazyLock;
use std::time::SystemTime;

/// A change of some bytes.
#[derive(Arbitrary, Debug)]
struct Patch {
    at: u16,
    bytes: Vec<u8>,
}

impl Patch {
    fn apply(&self, to: &mut [u8]) {
        let at = usize::from(self.at) % to.len().max(1);
        let len = self.bytes.len().min(to.len() - at);
        to[at..at + len].copy_from_slice(&self.bytes[..len]);
    }
}

#[derive(Arbitrary, Debug)]
enum Input {
    /// The JSON of a manifest, and what is asked of it.
    Manifest(Vec<u8>, u64),
    /// A good one with changes.
    Changed(Vec<Patch>, u64),
    Piece(Vec<Patch>, bool),
    Index(Vec<Patch>, Vec<u8>),
}

static MANIFEST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let header = SegmentHeader {
        resource: RESOURCE,
        number: 1,
        origin: NodeId::new(2).expect("2 is a node"),
        epoch: 3,
        base: LogPosition(0),
        capacity: 1 << 20,
        alignment: 4096,
        time: HybridTime(5),
        chain: [7; 16],
        predecessor: None,
        generation: GenerationId(9),
        packed: false,
    };
    let object = |end| LogObject { end, time: end, epoch: 3, sha256: Digest::of(b"x") };
    let mut segment = Segment::new(&header);
    segment.objects = vec![object(8192), object(12288)];
    let parts = vec![Digest::of(b"p")];
    let base = Base { from: 0, ready: 4096, time: 8, bytes: 8192, stored: 5, parts };
    let line = Line {
        number: 4,
        complete: 1 << 40,
        sizes: vec![SizeAt { position: 0, bytes: 8192 }],
        segments: vec![segment],
        bases: vec![base],
        pending: None,
    };
    let mut manifest = Manifest::new(RESOURCE);
    manifest.lines = vec![line];
    let bytes = manifest.encode();
    bytes[..bytes.len() - 65].to_vec()
});

/// A store that has a manifest, and the same bytes under every other name.
struct Fixed {
    manifest: Bytes,
}

impl Store for Fixed {
    fn get(&self, name: &str, _: u64) -> io::Result<Option<Bytes>> {
        Ok(Some(if name.ends_with("/manifest") {
            self.manifest.clone()
        } else {
            Bytes::from_static(b"x")
        }))
    }
    fn len_of(&self, _: &str) -> io::Result<Option<u64>> {
        Ok(None)
    }
    fn put(&self, _: &str, _: &Bytes) -> io::Result<()> {
        Ok(())
    }
    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>> {
        Ok(self.get(name, max)?.map(|bytes| (bytes, Version(String::new()))))
    }
    fn replace(&self, _: &str, _: &Bytes, _: Option<&Version>) -> io::Result<Option<Version>> {
        Ok(None)
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn put_at(&self, _: &str) -> io::Result<Option<SystemTime>> {
        Ok(None)
    }
    fn list(
        &self,
        _: &str,
        _: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        Ok(())
    }
    fn archives(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// What is written to it is gone.
struct Nowhere;

impl Backing for Nowhere {
    fn read(&mut self, _: ByteRange) -> io::Result<Bytes> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn zeroes(&mut self, _: ByteRange, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn manifest(mut body: Vec<u8>, at: u64) {
    let _ = Manifest::decode(&body);
    let digest = Digest::of(&body);
    body.extend_from_slice(format!("{digest}\n").as_bytes());
    let Ok(manifest) = Manifest::decode(&body) else { return };
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    let archive = Archive::open(Fixed { manifest: body.into() }, "r").expect("it was accepted");
    for moment in [Moment::Latest, Moment::Time(at), Moment::Position(LogPosition(at))] {
        let Ok(plan) = archive.plan(moment, None) else { continue };
        let start = Checkpoint::default();
        // No object of it fits.
        let _ = archive.restore(&plan, &mut Nowhere, true, start, &mut |_| Ok(()));
    }
    if archive.manifest().lines.len() < 8 {
        let _ = archive.verify(&mut |_| {});
    }
}

fn seal(bytes: &mut [u8], header: usize) {
    if let Some(header) = bytes.get_mut(..header) {
        header[4..8].fill(0);
        let crc = crc32c::crc32c(header);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

fuzz_target!(|input: Input| match input {
    Input::Manifest(body, at) => manifest(body, at),
    Input::Changed(patches, at) => {
        let mut body = MANIFEST.clone();
        patches.iter().for_each(|patch| patch.apply(&mut body));
        manifest(body, at);
    }
    Input::Piece(patches, packed) => {
        let mut data = vec![0; 64 * 4096];
        data[4096..5 * 4096].fill(5);
        let compression = if packed { Compression::Zstd } else { Compression::Lz4 };
        let piece = Piece::of(3, &data).expect("it is not all zeroes");
        let mut bytes = piece.encode(RESOURCE, compression).to_vec();
        patches.iter().for_each(|patch| patch.apply(&mut bytes));
        seal(&mut bytes, 192);
        if let Ok(piece) = Piece::decode(&bytes.into(), RESOURCE, 3) {
            let total: u64 = piece.parts(u64::MAX).map(|(range, _)| range.len).sum();
            assert_eq!(total, 4 << 20);
            let again = piece.encode(RESOURCE, compression);
            assert_eq!(Piece::decode(&again, RESOURCE, 3), Ok(piece));
        }
    }
    Input::Index(patches, raw) => {
        let entry = |n: u8| IndexEntry { digest: Digest::of(&[n]), bytes: 100 };
        let part = IndexPart { number: 1, entries: vec![Some(entry(1)), None, Some(entry(2))] };
        let mut bytes = part.encode(RESOURCE).to_vec();
        bytes.extend_from_slice(&raw);
        patches.iter().for_each(|patch| patch.apply(&mut bytes));
        let len = bytes.len();
        seal(&mut bytes, len);
        if let Ok(part) = IndexPart::decode(&bytes, RESOURCE, 1) {
            assert_eq!(part.encode(RESOURCE), bytes);
        }
    }
});
