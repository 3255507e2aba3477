use super::{Base, Line, LogObject, Manifest, Segment, SizeAt};
use crate::digest::Digest;
use holdfast_format::journal::SegmentHeader;
use holdfast_units::{GenerationId, HybridTime, LogPosition, NodeId, ResourceId};

fn header() -> SegmentHeader {
    SegmentHeader {
        resource: ResourceId([1; 16]),
        number: 1,
        origin: NodeId::new(2).unwrap(),
        epoch: u64::MAX,
        base: LogPosition(0),
        capacity: 1 << 20,
        alignment: 4096,
        time: HybridTime(5),
        chain: [0xab; 16],
        predecessor: None,
        generation: GenerationId(9),
        packed: false,
    }
}

fn manifest() -> Manifest {
    let object = |end| LogObject { end, time: end, epoch: 3, sha256: Digest::of(b"x") };
    let mut one = Segment::new(&header());
    one.objects = vec![object(8192), object(3 * 4096)];
    let next = SegmentHeader {
        number: 2,
        base: one.end(),
        chain: one.link().unwrap().chain_after(),
        ..header()
    };
    let mut two = Segment::new(&next);
    two.objects = vec![object(8192)];
    let base =
        Base { from: 0, ready: 7, time: 8, bytes: 8192, stored: 5, parts: vec![Digest::of(b"p")] };
    let line = Line {
        number: 4,
        complete: u64::MAX,
        sizes: vec![SizeAt { position: 0, bytes: 8192 }],
        segments: vec![one, two],
        bases: vec![base],
        pending: None,
    };
    Manifest { lines: vec![line], ..Manifest::new(ResourceId([1; 16])) }
}

#[test]
fn what_goes_in_comes_out() {
    let manifest = manifest();
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest.clone()));
    assert_eq!(manifest.resource(), ResourceId([1; 16]));
    assert_eq!(manifest.lines[0].end(), Some(LogPosition(8192 + 4096)));
    assert!(manifest.lines[0].segments[0].is(&header()));
}

#[test]
fn every_byte_counts() {
    let bytes = manifest().encode();
    for at in 0..bytes.len() {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1;
        assert!(Manifest::decode(&bad).is_err(), "{at}");
        assert!(Manifest::decode(&bytes[..at]).is_err(), "{at}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    type Change = fn(&mut Manifest);
    let bad: [(&str, Change); 9] = [
        ("version", |m| m.holdfast_archive = 2),
        ("not an id", |m| m.resource = "x".into()),
        ("does not continue", |m| m.lines[0].segments[1].base += 4096),
        ("does not continue", |m| m.lines[0].segments[0].objects.truncate(1)),
        ("impossible lengths", |m| m.lines[0].segments[0].objects[1].end = 8192),
        ("no objects", |m| m.lines[0].segments[1].objects.clear()),
        ("base image", |m| m.lines[0].bases[0].parts.clear()),
        ("base image", |m| m.lines[0].bases[0].bytes = 5),
        ("not in order", |m| {
            let line = m.lines[0].clone();
            m.lines.push(line);
        }),
    ];
    for (why, change) in bad {
        let mut manifest = manifest();
        change(&mut manifest);
        let said = Manifest::decode(&manifest.encode()).unwrap_err();
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    }
}
