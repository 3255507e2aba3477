//! A frame off the wire, as it came and with a checksum that fits: refused, or a message that
//! makes the same bytes again.
#![no_main]

use bytes::Bytes;
use holdfast_wire::{HEADER_LEN, decode, encode, parse_header};
use libfuzzer_sys::fuzz_target;

fn receive(frame: &[u8]) {
    let Some((head, rest)) = frame.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = parse_header(head) else { return };
    let body = &rest[..header.body_len().min(rest.len())];
    let payload = Bytes::from(vec![0x5a; header.payload_len()]);
    let Ok(message) = decode(&header, body, payload) else { return };
    let mut again = Vec::new();
    encode(&message, &mut again);
    assert_eq!(again, frame[..HEADER_LEN + header.body_len()]);
    assert_eq!(message.payload().map_or(0, Bytes::len), header.payload_len());
}

fuzz_target!(|data: &[u8]| {
    receive(data);
    if data.len() < HEADER_LEN {
        return;
    }
    let mut frame = data.to_vec();
    frame[..2].copy_from_slice(b"HF");
    frame[2] = frame[2] % 29 + 1;
    frame[3] = 0;
    let body_len = u32::try_from(data.len() - HEADER_LEN).expect("inputs are short");
    frame[4..8].copy_from_slice(&body_len.to_le_bytes());
    let blocks = u32::from_le_bytes([frame[8], frame[9], 0, 0]) % 257;
    frame[8..12].copy_from_slice(&(blocks * 4096).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[HEADER_LEN..]);
    frame[12..16].copy_from_slice(&crc.to_le_bytes());
    receive(&frame);
});
