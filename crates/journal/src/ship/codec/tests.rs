use super::*;
use proptest::prelude::*;

fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

fn roundtrip(message: &Message) -> Result<Message, ShipError> {
    let mut bytes = Vec::new();
    let payload = encode(message, &mut bytes);
    let header = parse_header(bytes.first_chunk().unwrap())?;
    assert_eq!(header.payload_len(), payload.len());
    assert_eq!(header.body_len(), bytes.len() - HEADER_LEN);
    decode(&header, &bytes[HEADER_LEN..], payload)
}

fn link(number: u64) -> SegmentLink {
    SegmentLink {
        number,
        origin: node(1),
        epoch: 0x55,
        base: LogPosition(0x1000),
        len: 0x2000,
        time: HybridTime(0x77),
        chain: *b"0123456789abcdef",
    }
}

fn head() -> Head {
    let header = SegmentHeader {
        resource: ResourceId([0; 16]),
        number: 3,
        origin: node(1),
        epoch: 0x55,
        base: LogPosition(0x1000),
        capacity: 1 << 20,
        alignment: 512,
        time: HybridTime(0x77),
        chain: *b"0123456789abcdef",
        predecessor: Some((node(2), 4, 5)),
        generation: GenerationId(0x99),
        packed: false,
    };
    Head {
        durable: LogPosition(0x3000),
        now: HybridTime(1 << 30),
        fetch_lag_ms: 1,
        replay_lag_ms: 2,
        again: true,
        fill: 6,
        fill_left: 7,
        fill_to: Some(LogPosition(0x2800)),
        segments: vec![
            (header, 0x2000),
            (SegmentHeader { predecessor: None, number: 4, packed: true, ..header }, 0),
        ],
    }
}

fn each() -> Vec<Message> {
    let report = Report {
        state: FollowState::Filling,
        fill: 6,
        generation: GenerationId(8),
        fetched: LogPosition(0x2000),
        replayed: LogPosition(0x1000),
        links: vec![link(1), link(2)],
    };
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        features: FEATURE_LZ4_AND_MORE,
        resource: ResourceId([9; 16]),
        from: node(2),
        to: node(0),
        size: 1 << 30,
        bundle: 0xabcd,
        report,
    };
    let ask = Await {
        state: FollowState::Consistent,
        fill: 6,
        fetched: LogPosition(0x2000),
        replayed: LogPosition(0x1000),
        fetch_paused: true,
        replay_paused: false,
        known: LogPosition(0x3000),
        segment: 2,
        wait_ms: 1000,
        copied: vec![ByteRange::new(4096, 8192)],
    };
    let apart = Verdict::Apart {
        common: Some(LogPosition(0x800)),
        follower: 1,
        leader: 2,
        follower_since: HybridTime(3),
        leader_since: HybridTime(4),
    };
    let fill = Verdict::Fill { fill: 6, segment: 4, from: LogPosition(0x3000) };
    let welcome =
        |verdict| Answer::Welcome(Welcome { version: 1, features: 1, verdict, head: head() });
    let requests = [
        Request::Hello(hello),
        Request::Join(Join {
            resource: ResourceId([9; 16]),
            from: node(2),
            to: node(0),
            bundle: 0xabcd,
        }),
        Request::Await(ask),
        Request::Fetch(Fetch { segment: 3, from: LogPosition(0x1200), len: 4096 }),
        Request::Copy { fill: 6 },
        Request::Take { fill: 6, range: ByteRange::new(8192, 4096) },
        Request::Heal(ByteRange::new(4096, 8192)),
    ];
    let plain = Piece {
        segment: 3,
        from: LogPosition(0x1200),
        len: 512,
        compression: Compression::None,
        bytes: vec![1; 512].into(),
    };
    let block = Block {
        fill: 6,
        range: ByteRange::new(8192, 4096),
        zeroes: false,
        compression: Compression::Lz4,
        crc: 0x1234_5678,
        bytes: vec![2; 100].into(),
    };
    let bare = Block {
        zeroes: true,
        compression: Compression::None,
        crc: 0,
        bytes: Bytes::new(),
        ..block.clone()
    };
    let answers = [
        welcome(Verdict::Ship),
        welcome(fill),
        welcome(Verdict::FillOn),
        welcome(Verdict::Drain),
        welcome(apart),
        Answer::Joined,
        Answer::Head(head()),
        Answer::Piece(plain.clone()),
        Answer::Piece(Piece { compression: Compression::Lz4, bytes: vec![3; 9].into(), ..plain }),
        Answer::Block(Block { range: ByteRange::default(), zeroes: false, ..bare.clone() }),
        Answer::Lost { fill: 9, range: ByteRange::new(8192, 4096) },
        Answer::Healed { position: LogPosition(0x3000), block: bare.clone() },
        Answer::Healed { position: LogPosition(0x3000), block: block.clone() },
        Answer::Block(bare),
        Answer::Block(block),
        Answer::Offer(Offer {
            fill: 6,
            range: ByteRange::new(0, 12288),
            part: 8192,
            digests: vec![[1; 16], [2; 16]],
        }),
        Answer::Refuse { code: RefuseCode::Gone, text: "nö".into() },
    ];
    requests.map(Message::Request).into_iter().chain(answers.map(Message::Answer)).collect()
}

const FEATURE_LZ4_AND_MORE: u64 = 5;

#[test]
fn each_message_is_read_as_it_was_written() {
    for message in each() {
        assert_eq!(roundtrip(&message).as_ref(), Ok(&message));
    }
}

#[test]
fn any_flipped_bit_of_header_or_body_is_found() {
    for message in each() {
        let mut bytes = Vec::new();
        let payload = encode(&message, &mut bytes);
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 0x04;
            let read = parse_header(rotten.first_chunk().unwrap()).and_then(|header| {
                let body = rotten.get(HEADER_LEN..HEADER_LEN + header.body_len());
                let body = body.unwrap_or(&rotten[HEADER_LEN..]);
                decode(&header, body, payload.clone())
            });
            assert!(read.is_err(), "{message:?} at {at}");
        }
    }
}

/// These bytes must stay: nodes of other versions know them.
#[test]
fn the_frozen_bytes_are_these() {
    let mut bytes = Vec::new();
    let text = "no".to_owned();
    let refuse = Answer::Refuse { code: RefuseCode::NotLeading, text };
    assert!(encode(&Message::Answer(refuse), &mut bytes).is_empty());
    assert_eq!(bytes[..12], [0x48, 0x4c, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16..], [2, 2, b'n', b'o']);
    bytes.clear();
    let hello = each().swap_remove(0);
    let _ = encode(&hello, &mut bytes);
    assert_eq!(bytes[..12], [0x48, 0x4c, 1, 0, 197, 0, 0, 0, 0, 0, 0, 0]);
    let body = &bytes[16..];
    assert_eq!(body[..12], [1, 0, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(body[12..28], [9; 16]);
    assert_eq!(body[28..38], [2, 0, 0, 0, 0, 0x40, 0, 0, 0, 0]);
    assert_eq!(body[38..46], [0xcd, 0xab, 0, 0, 0, 0, 0, 0]);
    assert_eq!(body[46..55], [1, 6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(body[79..92], [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(body[124..140], *b"0123456789abcdef");
}

#[test]
fn limits_hold() {
    let header = |kind: u8, body: u32, payload: u32| {
        let mut bytes = [0; HEADER_LEN];
        bytes[..3].copy_from_slice(&[b'H', b'L', kind]);
        bytes[4..8].copy_from_slice(&body.to_le_bytes());
        bytes[8..12].copy_from_slice(&payload.to_le_bytes());
        parse_header(&bytes)
    };
    let len = |len: usize| u32::try_from(len).unwrap();
    let (most_body, most_payload) = (len(MAX_BODY), len(MAX_PAYLOAD));
    assert!(header(AWAIT, most_body, 0).is_ok() && header(PIECE, 0, most_payload).is_ok());
    assert_eq!(header(AWAIT, most_body + 1, 0), Err(ShipError::Header(AWAIT)));
    assert_eq!(header(PIECE, 0, most_payload + 1), Err(ShipError::Header(PIECE)));
    assert_eq!(header(HEAD, 0, 1), Err(ShipError::Header(HEAD)));
    assert_eq!(header(HEAL, 0, 1), Err(ShipError::Header(HEAL)));
    assert_eq!(header(LOST, 0, 1), Err(ShipError::Header(LOST)));
    assert_eq!(header(LOST + 1, 0, 0), Err(ShipError::Kind(LOST + 1)));
    assert_eq!(header(0, 0, 0), Err(ShipError::Kind(0)));
    // What is too much is cut by the writer, not refused by the reader.
    let Message::Request(Request::Hello(mut hello)) = each().swap_remove(0) else { panic!() };
    hello.report.links = (0..3000).map(link).collect();
    let Ok(Message::Request(Request::Hello(read))) =
        roundtrip(&Message::Request(Request::Hello(hello)))
    else {
        panic!()
    };
    assert_eq!(read.report.links.len(), MAX_LINKS);
    assert_eq!(read.report.links.last().unwrap().number, 2999);
    let text = "ö".repeat(150);
    let refuse = Message::Answer(Answer::Refuse { code: RefuseCode::Failed, text });
    let Ok(Message::Answer(Answer::Refuse { text, .. })) = roundtrip(&refuse) else { panic!() };
    assert_eq!(text.len(), MAX_TEXT);
}

#[test]
fn no_more_than_a_little_is_asked_for_or_given_to_heal_a_disk() {
    let heal = |range| roundtrip(&Message::Request(Request::Heal(range))).is_ok();
    assert!(heal(ByteRange::new(1 << 40, MAX_HEALED)));
    assert!(!heal(ByteRange::new(0, MAX_HEALED + BLOCK_SIZE)), "too long");
    assert!(!heal(ByteRange::new(0, 0)) && !heal(ByteRange::new(512, 4096)), "no blocks");
    assert!(!heal(ByteRange::new(u64::MAX - 4095, 4096)), "behind any disk");
    let healed = |len: u64| {
        let bytes = vec![1; usize::try_from(len).unwrap()].into();
        let range = ByteRange::new(0, len);
        let (zeroes, compression, crc) = (false, Compression::None, 0);
        let block = Block { fill: 0, range, zeroes, compression, crc, bytes };
        roundtrip(&Message::Answer(Answer::Healed { position: LogPosition(1), block })).is_ok()
    };
    assert!(healed(0) && healed(MAX_HEALED) && !healed(MAX_HEALED + BLOCK_SIZE));
    let lost = |range| roundtrip(&Message::Answer(Answer::Lost { fill: 1, range })).is_ok();
    assert!(lost(ByteRange::new(0, MAX_REQUEST)) && !lost(ByteRange::new(0, 0)));
    assert!(!lost(ByteRange::new(0, MAX_REQUEST + BLOCK_SIZE)), "no more than was given out");
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_refused(
        kind in 1..=LOST,
        body in prop::collection::vec(any::<u8>(), 0..300),
        payload in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let payload = if matches!(kind, PIECE | BLOCK | HEALED) { payload } else { Vec::new() };
        let mut frame = [0; HEADER_LEN];
        frame[..3].copy_from_slice(&[b'H', b'L', kind]);
        frame[4..8].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        frame[8..12].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &body);
        frame[12..].copy_from_slice(&crc.to_le_bytes());
        let header = parse_header(&frame).unwrap();
        if let Ok(message) = decode(&header, &body, payload.into()) {
            let mut again = Vec::new();
            let _ = encode(&message, &mut again);
            prop_assert_eq!(&again[..HEADER_LEN], &frame[..]);
            prop_assert_eq!(&again[HEADER_LEN..], &body[..]);
        }
    }
}
