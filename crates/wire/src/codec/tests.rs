use super::*;
use crate::{
    Differing, Generations, HISTORY_LEN, PeerResult, PromoteAnswer, PromoteStep, RefusalCode,
    RepairMode, StateReport, SyncPause, Verdict, WriteKind,
};
use holdfast_units::{ByteRange, DiskState, GenerationId, NodeId, PeerSet, ResourceId, Role};
use proptest::prelude::*;
use proptest::sample::select;

const VERDICTS: &[Verdict] = &[
    Verdict::InSync,
    Verdict::SourceBitmap,
    Verdict::TargetBitmap,
    Verdict::SourceFull,
    Verdict::TargetFull,
    Verdict::SplitBrain,
    Verdict::Unrelated,
    Verdict::NoGoodData,
    Verdict::TwoPrimaries,
    Verdict::PrimaryMustNotBeTarget,
    Verdict::PausedSource,
    Verdict::PausedTarget,
    Verdict::SourceReplay,
    Verdict::TargetReplay,
];
const REFUSALS: &[RefusalCode] = &[
    RefusalCode::Version,
    RefusalCode::UnknownResource,
    RefusalCode::Size,
    RefusalCode::Membership,
    RefusalCode::SplitBrain,
    RefusalCode::Unrelated,
    RefusalCode::TwoPrimaries,
    RefusalCode::StandAlone,
    RefusalCode::Protocol,
];
const RESULTS: &[PeerResult] = &[PeerResult::Ok, PeerResult::DiskFailed, PeerResult::NoData];
const MODES: &[RepairMode] = &[RepairMode::Never, RepairMode::Majority, RepairMode::Always];
const STEPS: &[PromoteStep] = &[PromoteStep::Prepare, PromoteStep::Commit, PromoteStep::Abort];
const ANSWERS: &[PromoteAnswer] = &[
    PromoteAnswer::Yes,
    PromoteAnswer::IAmPrimary,
    PromoteAnswer::Busy,
    PromoteAnswer::YouAreOutdated,
];

fn node() -> impl Strategy<Value = NodeId> {
    (0u8..32).prop_map(|number| NodeId::new(number).unwrap())
}

fn peers() -> impl Strategy<Value = PeerSet> {
    any::<u32>().prop_map(PeerSet::from_bits)
}

fn generation() -> impl Strategy<Value = GenerationId> {
    any::<u64>().prop_map(GenerationId)
}

fn generations() -> impl Strategy<Value = Generations> {
    let history = proptest::collection::vec(generation(), HISTORY_LEN);
    let slots = proptest::collection::vec(generation(), 32);
    (generation(), generation(), history, slots).prop_map(|(current, base, history, slots)| {
        Generations {
            current,
            base,
            history: history.try_into().unwrap(),
            slots: slots.try_into().unwrap(),
        }
    })
}

/// Whole blocks, up to so many.
fn range(most_blocks: u64) -> impl Strategy<Value = ByteRange> {
    (0..(1u64 << 40), 1..=most_blocks)
        .prop_map(|(first, count)| ByteRange::of_blocks(first..first + count))
}

fn data(len: u64) -> Bytes {
    Bytes::from(vec![0x5a; usize::try_from(len).unwrap()])
}

fn hello() -> impl Strategy<Value = Hello> {
    let versions = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    (versions, any::<u64>(), any::<[u8; 16]>(), node(), node(), any::<u64>()).prop_map(
        |((version_min, version_max), features, resource, from, to, size)| Hello {
            version_min,
            version_max,
            features,
            resource: ResourceId(resource),
            from,
            to,
            size,
        },
    )
}

fn state() -> impl Strategy<Value = Box<StateReport>> {
    let flags = any::<(bool, bool, bool, bool, bool, bool)>();
    let replay = (prop_oneof![Just(GenerationId::NONE), generation()], any::<(bool, bool)>());
    let option = || proptest::option::of(node());
    let followed = (option(), option(), option());
    (
        any::<u32>(),
        generations(),
        select(Role::ALL),
        select(DiskState::ALL),
        followed,
        flags,
        any::<u64>(),
        replay,
    )
        .prop_map(|(serial, generations, role, disk, followed, flags, bits, replay)| {
            Box::new(StateReport {
                serial,
                generations,
                role,
                disk,
                doubtful: flags.0,
                crashed_primary: flags.1,
                lost_cache: flags.2,
                filled_from: followed.2,
                filled_to: GenerationId(bits),
                following: followed.0,
                discard_my_data: flags.3,
                primary: followed.1,
                primary_good: flags.4,
                serves: GenerationId(!bits),
                saw_failure: flags.5,
                bits,
                replays: replay.0,
                replays_restarted: replay.1.0,
                untouched: replay.1.1,
            })
        })
}

fn write() -> impl Strategy<Value = Message> {
    let what = prop_oneof![
        range(256).prop_map(|range| (range, WriteKind::Data)),
        range(32768).prop_map(|range| (range, WriteKind::Zeroes)),
    ];
    (any::<u64>(), what, any::<bool>(), peers(), any::<u64>()).prop_map(
        |(seq, (range, kind), fua, missing, settled)| {
            let payload = if kind == WriteKind::Data { data(range.len) } else { Bytes::new() };
            Message::Write { seq, range, kind, fua, missing, settled, payload }
        },
    )
}

fn read_reply() -> impl Strategy<Value = Message> {
    (any::<u64>(), select(RESULTS), 1u64..=256).prop_map(|(id, result, blocks)| {
        let payload =
            if result == PeerResult::Ok { data(blocks * BLOCK_SIZE) } else { Bytes::new() };
        Message::ReadReply { id, result, payload }
    })
}

fn bitmap() -> impl Strategy<Value = Message> {
    let runs = proptest::collection::vec((0..(1u64 << 50), 1..(1u64 << 50)), 0..64);
    (node(), any::<u32>(), runs, any::<bool>())
        .prop_map(|(about, round, runs, last)| Message::Bitmap { round, about, runs, last })
}

fn resync_data() -> impl Strategy<Value = Message> {
    (range(32768), 1u64..=32768, any::<bool>()).prop_map(|(asked, blocks, zeroes)| {
        let most = if zeroes { asked.len } else { asked.len.min(MAX_REQUEST) };
        let range = ByteRange::new(asked.offset, most.min(blocks * BLOCK_SIZE));
        let payload = if zeroes { Bytes::new() } else { data(range.len) };
        Message::ResyncData { asked, range, zeroes, payload }
    })
}

fn replay() -> impl Strategy<Value = Message> {
    (any::<u32>(), any::<u64>(), any::<u64>(), range(256), any::<bool>()).prop_map(
        |(round, id, left, range, zeroes)| {
            let payload = if zeroes { Bytes::new() } else { data(range.len) };
            Message::Replay { round, id, left, range, zeroes, payload }
        },
    )
}

fn verify_reply() -> impl Strategy<Value = Message> {
    let digests = proptest::collection::vec(any::<[u8; 32]>(), 0..=MAX_VERIFY_BLOCKS);
    (any::<u64>(), any::<u64>(), select(RESULTS), digests).prop_map(
        |(id, epoch, result, digests)| {
            let digests = if result == PeerResult::Ok { digests } else { Vec::new() };
            Message::VerifyReply { id, epoch, result, digests }
        },
    )
}

fn verify_span_reply() -> impl Strategy<Value = Message> {
    let differing = (node(), 0..(1u64 << 40), 1..=256u64, any::<(bool, bool)>()).prop_map(
        |(node, first, blocks, (repaired, majority))| Differing {
            node,
            first,
            blocks,
            repaired,
            majority,
        },
    );
    (any::<u64>(), any::<bool>(), proptest::collection::vec(differing, 0..50))
        .prop_map(|(id, valid, found)| Message::VerifySpanReply { id, valid, found })
}

fn verify_repair() -> impl Strategy<Value = Message> {
    (any::<u64>(), any::<u64>(), range(256), any::<bool>()).prop_map(
        |(id, epoch, range, zeroes)| {
            let payload = if zeroes { Bytes::new() } else { data(range.len) };
            Message::VerifyRepair { id, epoch, range, zeroes, payload }
        },
    )
}

/// One strategy for each kind, in the order of [`KINDS`].
fn each_kind() -> Vec<BoxedStrategy<Message>> {
    let id = any::<u64>;
    vec![
        hello().prop_map(Message::Hello).boxed(),
        state().prop_map(Message::State).boxed(),
        (any::<u32>(), select(VERDICTS), state())
            .prop_map(|(answers, verdict, state)| Message::Verdict { answers, verdict, state })
            .boxed(),
        (select(REFUSALS), "[a-zé€ ]{0,60}")
            .prop_map(|(code, text)| Message::Refuse { code, text })
            .boxed(),
        Just(Message::Goodbye).boxed(),
        (select(Role::ALL), select(DiskState::ALL), generation())
            .prop_map(|(role, disk, current)| Message::Changed { role, disk, current })
            .boxed(),
        Just(Message::Ping).boxed(),
        Just(Message::Pong).boxed(),
        write().boxed(),
        (id(), select(RESULTS)).prop_map(|(seq, result)| Message::WriteAck { seq, result }).boxed(),
        id().prop_map(|id| Message::Flush { id }).boxed(),
        (id(), select(RESULTS)).prop_map(|(id, result)| Message::FlushAck { id, result }).boxed(),
        (id(), range(256)).prop_map(|(id, range)| Message::Read { id, range }).boxed(),
        read_reply().boxed(),
        (generation(), generation(), peers())
            .prop_map(|(previous, current, opened)| Message::NewGeneration {
                previous,
                current,
                opened,
            })
            .boxed(),
        generation().prop_map(|current| Message::GenerationAck { current }).boxed(),
        id().prop_map(|seq| Message::Settled { seq }).boxed(),
        (peers(), range(1 << 30))
            .prop_map(|(peers, range)| Message::Missed { peers, range })
            .boxed(),
        bitmap().boxed(),
        range(32768).prop_map(|range| Message::ResyncRequest { range }).boxed(),
        resync_data().boxed(),
        range(32768).prop_map(|range| Message::ResyncAck { range }).boxed(),
        Just(Message::ResyncComplete).boxed(),
        (generations(), any::<bool>())
            .prop_map(|(generations, lost_cache)| Message::ResyncGenerations {
                generations: Box::new(generations),
                lost_cache,
            })
            .boxed(),
        generation().prop_map(|current| Message::ResyncAdopted { current }).boxed(),
        (id(), select(STEPS)).prop_map(|(id, step)| Message::Promote { id, step }).boxed(),
        (id(), select(ANSWERS))
            .prop_map(|(id, answer)| Message::PromoteReply { id, answer })
            .boxed(),
        any::<bool>().prop_map(|receiver| Message::Invalidate { receiver }).boxed(),
        (node(), generation())
            .prop_map(|(peer, current)| Message::Synced { peer, current })
            .boxed(),
        replay().boxed(),
        (any::<u32>(), id(), select(RESULTS))
            .prop_map(|(round, id, result)| Message::ReplayAck { round, id, result })
            .boxed(),
        any::<u32>().prop_map(|round| Message::ReplayDone { round }).boxed(),
        (id(), range(256)).prop_map(|(id, range)| Message::HealRead { id, range }).boxed(),
        (range(32768), 1u64..=32768)
            .prop_map(|(asked, blocks)| {
                let len = asked.len.min(blocks * 4096);
                Message::ResyncLost { asked, range: ByteRange::new(asked.offset, len) }
            })
            .boxed(),
        (id(), range(256), any::<bool>())
            .prop_map(|(id, range, locked)| Message::VerifyRequest { id, range, locked })
            .boxed(),
        verify_reply().boxed(),
        (id(), range(256), select(MODES))
            .prop_map(|(id, range, repair)| Message::VerifySpan { id, range, repair })
            .boxed(),
        verify_span_reply().boxed(),
        verify_repair().boxed(),
        (id(), select(RESULTS))
            .prop_map(|(id, result)| Message::VerifyRepaired { id, result })
            .boxed(),
        (any::<bool>(), id(), id())
            .prop_map(|(running, done, total)| Message::VerifyProgress { running, done, total })
            .boxed(),
        select([SyncPause::No, SyncPause::AsTarget, SyncPause::Always].as_slice())
            .prop_map(|pause| Message::SyncPaused { pause })
            .boxed(),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    proptest::strategy::Union::new(each_kind())
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out);
    out
}

fn payload_of(message: &Message) -> Bytes {
    message.payload().cloned().unwrap_or_default()
}

/// What a receiver does with the bytes of one frame; more or less of them than announced is its
/// end, too.
fn receive(bytes: &[u8], payload: Bytes) -> Result<Message, WireError> {
    let (header, body) = bytes.split_first_chunk().ok_or(WireError::TooShort("frame"))?;
    decode(&parse_header(header)?, body, payload)
}

/// A frame of any fields with the right lengths and checksum.
fn sealed(kind: Kind, body: &[u8], payload: &Bytes) -> Vec<u8> {
    let mut frame = b"HF".to_vec();
    frame.extend([kind as u8, 0]);
    frame.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    frame.extend(crc32c::crc32c_append(crc32c::crc32c(&frame), body).to_le_bytes());
    frame.extend(body);
    frame
}

fn refused(message: &Message) -> WireError {
    receive(&encoded(message), payload_of(message)).unwrap_err()
}

fn a_hello(version_min: u16, version_max: u16) -> Hello {
    Hello {
        version_min,
        version_max,
        features: 0x0102_0304_0506_0708,
        resource: ResourceId(*b"0123456789abcdef"),
        from: NodeId::new(1).unwrap(),
        to: NodeId::new(31).unwrap(),
        size: 10 << 30,
    }
}

fn a_write(range: ByteRange, kind: WriteKind, payload: Bytes) -> Message {
    let missing = PeerSet::from_bits(0x8000_0001);
    Message::Write { seq: 7, range, kind, fua: true, missing, settled: 5, payload }
}

#[test]
fn kinds_are_numbered_and_named_as_messages_are() {
    for (index, (kind, name)) in KINDS.iter().enumerate() {
        assert_eq!(*kind as usize, index + 1);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let tree = each_kind()[index].new_tree(&mut runner).unwrap();
        let message = proptest::strategy::ValueTree::current(&tree);
        assert_eq!(Kind::of(&message), *kind);
        assert_eq!(message.name(), *name);
    }
    assert_eq!(each_kind().len(), KINDS.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_message_survives_the_way(message in message()) {
        let bytes = encoded(&message);
        let header = parse_header(bytes.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(header.body_len(), bytes.len() - HEADER_LEN);
        prop_assert_eq!(header.payload_len(), payload_of(&message).len());
        prop_assert_eq!(header.name(), message.name());
        prop_assert_eq!(receive(&bytes, payload_of(&message)).unwrap(), message);
    }

    #[test]
    fn messages_are_appended(first in message(), second in message()) {
        let mut out = encoded(&first);
        encode(&second, &mut out);
        prop_assert_eq!(out, [encoded(&first), encoded(&second)].concat());
    }

    #[test]
    fn any_fields_with_a_right_checksum_are_harmless(
        kind in select(KINDS.map(|(kind, _)| kind).to_vec()),
        body in proptest::collection::vec(any::<u8>(), 0..700),
        blocks in 0u64..4,
    ) {
        let payload = if kind.may_have_payload() { data(blocks * BLOCK_SIZE) } else { Bytes::new() };
        let frame = sealed(kind, &body, &payload);
        if let Ok(message) = receive(&frame, payload.clone()) {
            prop_assert_eq!(payload_of(&message), payload);
            prop_assert_eq!(encoded(&message), frame);
        }
    }

    #[test]
    fn any_header_keeps_the_limits(bytes in any::<[u8; 16]>(), kind in 0u8..40) {
        let mut bytes = bytes;
        let _ = parse_header(&bytes);
        bytes[..4].copy_from_slice(&[b'H', b'F', kind, 0]);
        bytes[7] = 0;
        bytes[11] = 0;
        if let Ok(header) = parse_header(&bytes) {
            prop_assert!(header.body_len() <= MAX_BODY);
            prop_assert!(header.payload_len() as u64 <= MAX_REQUEST);
            prop_assert!(header.payload_len() == 0 || header.kind.may_have_payload());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused(message in message()) {
        let payload = payload_of(&message);
        let mut bytes = encoded(&message);
        for len in 0..bytes.len() {
            prop_assert!(receive(&bytes[..len], payload.clone()).is_err(), "cut at {}", len);
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(receive(&bytes, payload.clone()).is_err(), "bit {}", bit);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        bytes.push(0);
        prop_assert!(receive(&bytes, payload).is_err(), "one byte more");
    }

    /// As a faulty peer would send it: the checksum fits to what it sent.
    #[test]
    fn a_body_of_another_length_is_refused(message in message()) {
        // Their lists go on to the end of the body.
        let open_ended = matches!(
            message,
            Message::Bitmap { .. } | Message::VerifyReply { .. } | Message::VerifySpanReply { .. }
        );
        if open_ended {
            return Ok(());
        }
        let (payload, frame) = (payload_of(&message), encoded(&message));
        let (kind, body) = (Kind::of(&message), &frame[HEADER_LEN..]);
        // A state may be without its last fields.
        let state = matches!(message, Message::State(_) | Message::Verdict { .. });
        for len in 0..body.len() {
            if state && len + 9 == body.len() {
                continue;
            }
            let shorter = receive(&sealed(kind, &body[..len], &payload), payload.clone());
            prop_assert_eq!(shorter, Err(WireError::TooShort(message.name())));
        }
        let longer = receive(&sealed(kind, &[body, &[0]].concat(), &payload), payload.clone());
        if state {
            prop_assert!(longer.is_err());
        } else {
            prop_assert_eq!(longer, Err(WireError::TooLong(message.name())));
        }
    }
}

#[test]
fn golden_hello() {
    #[rustfmt::skip]
    let golden = [
        b'H', b'F', 1, 0,  38, 0, 0, 0,  0, 0, 0, 0,  0x6a, 0xa4, 0x97, 0x40,
        1, 0,  3, 0,  8, 7, 6, 5, 4, 3, 2, 1,
        b'0', b'1', b'2', b'3', b'4', b'5', b'6', b'7',
        b'8', b'9', b'a', b'b', b'c', b'd', b'e', b'f',
        1,  31,  0, 0, 0, 0x80, 2, 0, 0, 0,
    ];
    let hello = Message::Hello(a_hello(1, 3));
    assert_eq!(encoded(&hello), golden);
    assert_eq!(receive(&golden, Bytes::new()), Ok(hello));
}

#[test]
fn golden_write() {
    #[rustfmt::skip]
    let golden = [
        b'H', b'F', 9, 0,  38, 0, 0, 0,  0, 0x20, 0, 0,  0x2f, 0x97, 0x47, 0x67,
        7, 0, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,  0, 0x20, 0, 0, 0, 0, 0, 0,
        0,  1,  1, 0, 0, 0x80,
        5, 0, 0, 0, 0, 0, 0, 0,
    ];
    let write = a_write(ByteRange::new(4096, 8192), WriteKind::Data, data(8192));
    assert_eq!(encoded(&write), golden);
    assert_eq!(receive(&golden, data(8192)), Ok(write));
}

#[test]
fn golden_refusal() {
    #[rustfmt::skip]
    let golden = [
        b'H', b'F', 4, 0,  4, 0, 0, 0,  0, 0, 0, 0,  0x01, 0xb8, 0xfb, 0xc4,
        0,  2,  b'n', b'o',
    ];
    let refusal = Message::Refuse { code: RefusalCode::Version, text: "no".into() };
    assert_eq!(encoded(&refusal), golden);
    assert_eq!(receive(&golden, Bytes::new()), Ok(refusal));
}

#[test]
fn ranges_that_no_message_may_have() {
    let good = ByteRange::new(4096, 4096);
    let longest = ByteRange::new(0, MAX_DATALESS_RANGE);
    let end = ByteRange::new((1 << 63) - 8192, 4096);
    for range in [good, longest, end] {
        let request = Message::ResyncRequest { range };
        assert_eq!(receive(&encoded(&request), Bytes::new()), Ok(request));
    }
    let bad = [
        ByteRange::new(4096, 0),
        ByteRange::new(1, 4096),
        ByteRange::new(0, 4095),
        ByteRange::new(0, MAX_DATALESS_RANGE + 4096),
        ByteRange::new((1 << 63) - 4096, 4096),
        ByteRange::new(u64::MAX - 4095, 4096),
        ByteRange::new(u64::MAX - 4095, 8192),
    ];
    for range in bad {
        let messages = [
            Message::ResyncRequest { range },
            Message::ResyncAck { range },
            Message::Read { id: 1, range },
            Message::HealRead { id: 1, range },
            Message::ResyncLost { asked: range, range },
            a_write(range, WriteKind::Zeroes, Bytes::new()),
        ];
        for message in messages {
            assert!(matches!(refused(&message), WireError::Range { .. }), "{message:?}");
        }
        // What a member missed is told in ranges of any length.
        let peers = PeerSet::from_bits(1);
        let message = Message::Missed { peers, range };
        let any_length = range.len == MAX_DATALESS_RANGE + 4096;
        let taken = receive(&encoded(&message), Bytes::new());
        assert_eq!(taken.is_ok(), any_length, "{message:?}");
    }
    let read = Message::Read { id: 1, range: ByteRange::new(0, MAX_REQUEST + 4096) };
    assert!(matches!(refused(&read), WireError::Range { .. }));
}

#[test]
fn data_must_be_as_long_as_the_range() {
    let range = ByteRange::new(0, 8192);
    for wrong in [0, 4096, 12288] {
        let write = a_write(range, WriteKind::Data, data(wrong));
        assert!(matches!(refused(&write), WireError::Range { .. }), "{wrong}");
        let resync =
            Message::ResyncData { asked: range, range, zeroes: false, payload: data(wrong) };
        assert!(matches!(refused(&resync), WireError::Range { .. }), "{wrong}");
    }
    assert!(matches!(
        refused(&a_write(range, WriteKind::Zeroes, data(8192))),
        WireError::Range { .. }
    ));
    let zeroes = Message::ResyncData { asked: range, range, zeroes: true, payload: data(8192) };
    assert!(matches!(refused(&zeroes), WireError::Range { .. }));
    for range in [ByteRange::new(0, 12288), ByteRange::new(0, 0), ByteRange::new(0, 100)] {
        let asked = ByteRange::new(0, 8192);
        let more = Message::ResyncData { asked, range, zeroes: true, payload: Bytes::new() };
        assert!(matches!(refused(&more), WireError::Range { .. }), "{range}");
    }
    for (result, len) in [(PeerResult::Ok, 0), (PeerResult::NoData, 4096)] {
        let reply = Message::ReadReply { id: 1, result, payload: data(len) };
        assert!(matches!(refused(&reply), WireError::Field { .. }), "{result:?}");
    }
}

#[test]
fn payloads_are_refused_before_they_are_received() {
    let header = |kind: Kind, payload_len: u32| {
        let mut bytes = [0; HEADER_LEN];
        bytes[..3].copy_from_slice(&[b'H', b'F', kind as u8]);
        bytes[8..12].copy_from_slice(&payload_len.to_le_bytes());
        parse_header(&bytes)
    };
    assert!(header(Kind::Write, 1 << 20).is_ok());
    for (kind, len) in [
        (Kind::Write, (1 << 20) + 4096),
        (Kind::Write, u32::MAX),
        (Kind::Write, 4095),
        (Kind::Hello, 4096),
        (Kind::WriteAck, 4096),
    ] {
        assert!(matches!(header(kind, len), Err(WireError::Payload { .. })), "{kind:?} {len}");
    }
    let too_much = a_write(ByteRange::new(0, 2 << 20), WriteKind::Data, data(2 << 20));
    assert!(matches!(refused(&too_much), WireError::Payload { .. }));
}

#[test]
fn answers_about_digests_are_bounded() {
    let digests = |count: usize| {
        let digests = vec![[7; 32]; count];
        Message::VerifyReply { id: 1, epoch: 2, result: PeerResult::Ok, digests }
    };
    let most = encoded(&digests(MAX_VERIFY_BLOCKS));
    assert!(receive(&most, Bytes::new()).is_ok());
    let field = |error: &WireError| matches!(error, WireError::Field { .. });
    assert!(field(&refused(&digests(MAX_VERIFY_BLOCKS + 1))));
    let odd = |first, blocks| {
        let node = NodeId::new(3).unwrap();
        let one = Differing { node, first, blocks, repaired: true, majority: false };
        Message::VerifySpanReply { id: 1, valid: true, found: vec![one] }
    };
    let range = |error: &WireError| matches!(error, WireError::Range { .. });
    assert!(range(&refused(&odd(0, 0))));
    assert!(range(&refused(&odd(0, 257))));
    assert!(range(&refused(&odd(u64::MAX, 1))));
}

#[test]
fn a_state_without_the_fields_of_replay_is_one_that_says_nothing_of_it() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let tree = state().new_tree(&mut runner).unwrap();
    let mut report = *proptest::strategy::ValueTree::current(&tree);
    (report.replays, report.replays_restarted, report.untouched) = (GenerationId(9), true, true);
    let told = encoded(&Message::State(Box::new(report.clone())));
    assert_eq!(told.len(), HEADER_LEN + 576);
    let older = sealed(Kind::State, &told[HEADER_LEN..HEADER_LEN + 567], &Bytes::new());
    let Ok(Message::State(found)) = receive(&older, Bytes::new()) else { panic!("it is one") };
    (report.replays, report.replays_restarted, report.untouched) =
        (GenerationId::NONE, false, false);
    assert_eq!(*found, report);
    assert_eq!(encoded(&Message::State(found)), older);
}

#[test]
fn headers_that_are_none() {
    let mut bytes = *encoded(&Message::Ping).first_chunk().unwrap();
    assert!(parse_header(&bytes).is_ok());
    bytes[3] = 1;
    assert_eq!(parse_header(&bytes), Err(WireError::Flags { message: "Ping", flags: 1 }));
    bytes[4..8].copy_from_slice(&(128u32 * 1024 + 1).to_le_bytes());
    bytes[3] = 0;
    assert!(matches!(parse_header(&bytes), Err(WireError::BodyTooLong { len: 131_073, .. })));
    for number in [0, 43, 255] {
        bytes[2] = number;
        assert_eq!(parse_header(&bytes), Err(WireError::Kind(number)));
    }
    assert_eq!(
        parse_header(b"GET / HTTP/1.1\r\n").unwrap_err().to_string(),
        "the peer does not speak Holdfast's protocol: a frame starts with 0x4745"
    );
}

#[test]
fn bitmaps_are_bounded() {
    let about = NodeId::new(3).unwrap();
    let bitmap = |runs| Message::Bitmap { about, round: 1, runs, last: true };
    let full = bitmap(vec![(1, 1); MAX_BITMAP_RUNS]);
    assert_eq!(receive(&encoded(&full), Bytes::new()), Ok(full));
    let last_block = (1u64 << 51) - 2;
    let end = bitmap(vec![(last_block, 1)]);
    assert_eq!(receive(&encoded(&end), Bytes::new()), Ok(end));

    assert!(matches!(
        refused(&bitmap(vec![(1, 1); MAX_BITMAP_RUNS + 1])),
        WireError::Field { value: 4097, .. }
    ));
    assert!(matches!(refused(&bitmap(vec![(1, 1); 10_000])), WireError::BodyTooLong { .. }));
    for run in [(5, 0), (last_block, 2), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, u64::MAX)] {
        assert!(matches!(refused(&bitmap(vec![run])), WireError::Range { .. }), "{run:?}");
    }
    let whole = encoded(&bitmap(vec![(5, 6)]));
    for len in 1..16 {
        let cut = sealed(Kind::Bitmap, &whole[HEADER_LEN..whole.len() - len], &Bytes::new());
        assert_eq!(receive(&cut, Bytes::new()), Err(WireError::TooShort("Bitmap")));
    }
}

#[test]
fn words_beyond_the_last_one_are_refused() {
    let cases: [(Kind, usize, &[u8], u8); 10] = [
        (Kind::WriteAck, 8, &[0; 9], 3),
        (Kind::FlushAck, 8, &[0; 9], 3),
        (Kind::Promote, 8, &[0; 9], 3),
        (Kind::PromoteReply, 8, &[0; 9], 4),
        (Kind::Refuse, 0, &[0; 2], 9),
        (Kind::Verdict, 4, &[0; 572], 14),
        (Kind::State, 537, &[0; 567], 32),
        (Kind::Changed, 0, &[0; 10], 3),
        (Kind::Changed, 1, &[0; 10], 10),
        (Kind::Invalidate, 0, &[0; 1], 2),
    ];
    for (kind, at, body, first_bad) in cases {
        let mut body = body.to_vec();
        body[at] = first_bad - 1;
        let good = receive(&sealed(kind, &body, &Bytes::new()), Bytes::new());
        assert!(good.is_ok(), "{kind:?}: {good:?}");
        body[at] = first_bad;
        let bad = receive(&sealed(kind, &body, &Bytes::new()), Bytes::new()).unwrap_err();
        assert!(
            matches!(bad, WireError::Field { value, .. } if value == u64::from(first_bad)),
            "{kind:?}: {bad}"
        );
    }
    let mut body = encoded(&Message::Hello(a_hello(1, 1)))[HEADER_LEN..].to_vec();
    body[28] = 32;
    let bad = receive(&sealed(Kind::Hello, &body, &Bytes::new()), Bytes::new()).unwrap_err();
    assert_eq!(bad.to_string(), "the peer sent a Hello message whose sender cannot be 32");
}

#[test]
fn refusals_are_cut_to_their_limit() {
    let text = "x".repeat(MAX_REFUSAL_TEXT - 1) + "€ and more";
    let long = Message::Refuse { code: RefusalCode::Size, text };
    let cut = Message::Refuse { code: RefusalCode::Size, text: "x".repeat(MAX_REFUSAL_TEXT - 1) };
    assert_eq!(receive(&encoded(&long), Bytes::new()), Ok(cut));
    let too_long = [&[0, 201][..], &[b'x'; 201]].concat();
    for body in [&[0, 2, 0xff, 0xff][..], &too_long] {
        let taken = receive(&sealed(Kind::Refuse, body, &Bytes::new()), Bytes::new());
        assert_eq!(taken, Err(WireError::Text("Refuse")));
    }
}

#[test]
fn versions_meet_at_the_highest_common_one() {
    let both = |a: (u16, u16), b: (u16, u16)| {
        let (mine, theirs) = (a_hello(a.0, a.1), a_hello(b.0, b.1));
        let there = negotiate(&mine, &theirs);
        assert_eq!(there.ok(), negotiate(&theirs, &mine).ok());
        there
    };
    assert_eq!(both((1, 1), (1, 1)), Ok(1));
    assert_eq!(both((1, 4), (2, 9)), Ok(4));
    assert_eq!(both((1, 4), (2, 3)), Ok(3));
    assert_eq!(both((1, 4), (4, 5)), Ok(4));
    assert_eq!(
        both((1, 1), (2, 3)).unwrap_err().to_string(),
        "no protocol version in common: this node speaks version 1, the peer speaks 2 to 3"
    );
    let upside_down = Message::Hello(a_hello(3, 2));
    assert!(matches!(refused(&upside_down), WireError::Field { value: 3, .. }));
}
