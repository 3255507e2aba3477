use super::consts::{chunk, state};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const STYLES: [ReplyStyle; 3] = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended];

fn style() -> impl Strategy<Value = ReplyStyle> {
    proptest::sample::select(&STYLES[..])
}

#[test]
fn a_request_is_the_bytes_that_the_protocol_says() {
    let head = RequestHeader { flags: 1, command: 1, cookie: 2, offset: 0x1_0000_0000, len: 4096 };
    let mut bytes = Vec::new();
    head.encode(ReplyStyle::Simple, &mut bytes);
    assert_eq!(
        bytes,
        [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0,
            0, 0x10, 0
        ]
    );
    bytes.clear();
    head.encode(ReplyStyle::Extended, &mut bytes);
    assert_eq!(bytes[..8], [0x21, 0xe4, 0x1c, 0x71, 0, 1, 0, 1]);
    assert_eq!(bytes.len(), 32);
    assert_eq!(bytes[24..], [0, 0, 0, 0, 0, 0, 0x10, 0]);
}

#[test]
fn replies_are_the_bytes_that_the_protocol_says() {
    let mut bytes = Vec::new();
    simple_reply(&mut bytes, 7, 5);
    assert_eq!(bytes, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7]);
    bytes.clear();
    let frame = ChunkFrame { style: ReplyStyle::Structured, cookie: 7, offset: 512 };
    frame.data(&mut bytes, true, 512, 3);
    assert_eq!(bytes[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
    assert_eq!(bytes[16..], [0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 2, 0]);
    bytes.clear();
    ChunkFrame { style: ReplyStyle::Extended, ..frame }.hole(&mut bytes, false, 512, 3);
    assert_eq!(bytes[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 0, 0, 2]);
    assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 12]);
    assert_eq!(bytes[32..], [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3]);
}

#[test]
fn block_status_is_narrow_or_wide() {
    let extents = [Extent::data(4096), Extent::hole(1 << 33)];
    let mut narrow = Vec::new();
    let frame = ChunkFrame { style: ReplyStyle::Structured, cookie: 0, offset: 0 };
    frame.block_status(&mut narrow, true, 9, &extents[..1]);
    assert_eq!(narrow[20..], [0, 0, 0, 9, 0, 0, 0x10, 0, 0, 0, 0, 0]);
    let mut wide = Vec::new();
    let frame = ChunkFrame { style: ReplyStyle::Extended, ..frame };
    frame.block_status(&mut wide, true, 9, &extents);
    assert_eq!(wide.len(), 32 + 8 + 2 * 16);
    assert_eq!(u64::from_be_bytes(wide[24..32].try_into().unwrap()), 8 + 2 * 16);
    assert_eq!(wide[32..40], [0, 0, 0, 9, 0, 0, 0, 2]);
    assert_eq!(wide[56..64], (1u64 << 33).to_be_bytes());
    assert_eq!(wide[64..72], u64::from(state::HOLE | state::ZERO).to_be_bytes());
}

#[test]
fn lengths_that_lie_are_refused() {
    let namelen = |len: u32| [&len.to_be_bytes()[..], b"abcd\0\0"].concat();
    for len in [5, 0x7fff_ffff, 0xffff_fff0, u32::MAX] {
        assert!(matches!(InfoRequest::parse(&namelen(len)), Err(OptionFault::Invalid(_))));
        assert!(matches!(MetaRequest::parse(&namelen(len)), Err(OptionFault::Invalid(_))));
    }
    assert!(InfoRequest::parse(&namelen(4)).is_ok());
    let long = InfoRequest { name: "n".repeat(4097), kinds: vec![] }.encode();
    assert!(matches!(InfoRequest::parse(&long), Err(OptionFault::TooBig(_))));
    let many = [&0u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
    assert!(matches!(MetaRequest::parse(&many), Err(OptionFault::Invalid(_))));
}

proptest! {
    #[test]
    fn requests_survive_the_wire(
        style in style(), flags: u16, command: u16, cookie: u64, offset: u64, len: u32, tail: u8
    ) {
        let head = RequestHeader { flags, command, cookie, offset, len: len.into() };
        let mut bytes = Vec::new();
        head.encode(style, &mut bytes);
        prop_assert_eq!(bytes.len(), RequestHeader::wire_len(style));
        prop_assert_eq!(RequestHeader::parse(style, &bytes[..bytes.len() - 1]), Ok(None));
        bytes.push(tail);
        prop_assert_eq!(RequestHeader::parse(style, &bytes), Ok(Some(head)));
    }

    #[test]
    fn options_survive_the_wire(
        name in "\\PC{0,40}", kinds in vec(any::<u16>(), 0..9),
        queries in vec(vec(any::<u8>(), 0..40), 0..9)
    ) {
        let info = InfoRequest { name: name.clone(), kinds };
        prop_assert_eq!(InfoRequest::parse(&info.encode()), Ok(info));
        let meta = MetaRequest { name, queries };
        prop_assert_eq!(MetaRequest::parse(&meta.encode()), Ok(meta));
    }

    #[test]
    fn option_headers_survive_the_wire(code: u32, kind: u32, data in vec(any::<u8>(), 0..40)) {
        let len = u32::try_from(data.len()).unwrap();
        let mut bytes = Vec::new();
        option_request(&mut bytes, code, &data);
        let (head, rest) = bytes.split_first_chunk().unwrap();
        prop_assert_eq!(OptionHeader::parse(head), Ok(OptionHeader { code, len }));
        prop_assert_eq!(rest, &data[..]);
        bytes.clear();
        option_reply(&mut bytes, code, kind, &data);
        let (head, rest) = bytes.split_first_chunk().unwrap();
        let parsed = OptionReplyHeader::parse(head);
        prop_assert_eq!(parsed, Ok(OptionReplyHeader { option: code, kind, len }));
        prop_assert_eq!(rest, &data[..]);
    }

    #[test]
    fn reply_headers_survive_the_wire(style in style(), cookie: u64, error in 1..200u32) {
        let mut bytes = Vec::new();
        let frame = ChunkFrame { style, cookie, offset: 5 };
        let expected = if style == ReplyStyle::Simple {
            simple_reply(&mut bytes, cookie, error);
            ReplyHeader::Simple { cookie, error }
        } else {
            frame.error(&mut bytes, error);
            ReplyHeader::Chunk { cookie, kind: chunk::ERROR, done: true, len: 6 }
        };
        let (magic, rest) = bytes.split_first_chunk().unwrap();
        let len = ReplyHeader::rest_len(style, *magic).unwrap();
        prop_assert_eq!(ReplyHeader::parse(*magic, &rest[..len]), Ok(expected));
    }

    #[test]
    fn error_texts_are_cut_at_a_character(text in "\\PC{0,2000}") {
        let mut bytes = Vec::new();
        option_error(&mut bytes, 1, 2, &text.repeat(4));
        prop_assert!(bytes.len() <= OptionReplyHeader::LEN + consts::MAX_STRING);
        prop_assert!(std::str::from_utf8(&bytes[OptionReplyHeader::LEN..]).is_ok());
    }

    #[test]
    fn no_bytes_make_it_panic(style in style(), bytes in vec(any::<u8>(), 0..80), keep_magic: bool) {
        let mut bytes = bytes;
        if keep_magic && bytes.len() >= 4 {
            let magic = if style == ReplyStyle::Extended { 0x21e4_1c71u32 } else { 0x2560_9513 };
            bytes[..4].copy_from_slice(&magic.to_be_bytes());
        }
        let _ = RequestHeader::parse(style, &bytes);
        let _ = InfoRequest::parse(&bytes);
        let _ = MetaRequest::parse(&bytes);
        if let Some((magic, rest)) = bytes.split_first_chunk() {
            let _ = ReplyHeader::rest_len(style, *magic);
            let _ = ReplyHeader::parse(*magic, rest);
        }
        if let Some(head) = bytes.first_chunk() {
            let _ = OptionHeader::parse(head);
        }
        if let Some(head) = bytes.first_chunk() {
            let _ = OptionReplyHeader::parse(head);
        }
    }
}

#[test]
fn a_filter_is_a_length_and_identifiers() {
    let mut bytes = Vec::new();
    let filter = StatusFilter { len: 1 << 40, contexts: vec![7, 9] };
    filter.encode(&mut bytes);
    assert_eq!(bytes, [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9]);
    assert_eq!(bytes.len(), StatusFilter::wire_len(2));
    assert_eq!(StatusFilter::parse(&bytes), Some(filter));
    for cut in [0, 7, 9, 13] {
        assert_eq!(StatusFilter::parse(&bytes[..cut]), None);
    }
}
