//! Frames of the log protocol, as they came and with a checksum that fits: refused, or a message
//! that makes the same bytes again. The same bytes as a note about a follower, and as its state.
#![no_main]

use bytes::Bytes;
use holdfast_format::journal::{FollowerNote, Following};
use holdfast_journal::ship::{HEADER_LEN, decode, encode, parse_header};
use holdfast_units::{NodeId, ResourceId};
use libfuzzer_sys::fuzz_target;

/// The kinds of messages are 1 to this: `docs/design/log.md` has them.
const LAST_KIND: u8 = 16;

fn receive(frame: &[u8]) {
    let Some((head, rest)) = frame.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = parse_header(head) else { return };
    let body = &rest[..header.body_len().min(rest.len())];
    let payload = Bytes::from(vec![0x5a; header.payload_len()]);
    let Ok(message) = decode(&header, body, payload) else { return };
    let mut again = Vec::new();
    let payload = encode(&message, &mut again);
    assert_eq!(again, frame[..HEADER_LEN + header.body_len()]);
    assert_eq!(payload.len(), header.payload_len());
}

fuzz_target!(|data: &[u8]| {
    receive(data);
    let resource = ResourceId([0; 16]);
    let node = NodeId::new(0).expect("0 is a node");
    let _ = FollowerNote::decode(data, resource, node);
    if let Some((block, _)) = data.split_first_chunk::<4096>() {
        let _ = Following::newest([block, block], resource);
    }
    if data.len() < HEADER_LEN {
        return;
    }
    let mut frame = data.to_vec();
    frame[..2].copy_from_slice(b"HL");
    frame[2] = frame[2] % LAST_KIND + 1;
    frame[3] = 0;
    let body_len = u32::try_from(data.len() - HEADER_LEN).expect("inputs are short");
    frame[4..8].copy_from_slice(&body_len.to_le_bytes());
    let may_have = matches!(frame[2], 10 | 11 | 15);
    let payload = if may_have { u32::from(frame[8]) * 16 } else { 0 };
    frame[8..12].copy_from_slice(&payload.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[HEADER_LEN..]);
    frame[12..16].copy_from_slice(&crc.to_le_bytes());
    receive(&frame);
});
