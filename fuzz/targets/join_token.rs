//! A join token, as text and with a checksum that fits: refused, or revealed as one that is read
//! as the same again.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_cluster::JoinToken;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fn read(text: &str) {
    let Ok(token) = JoinToken::parse(text) else { return };
    let again = token.reveal();
    let same = JoinToken::parse(&again).expect("it was revealed just now");
    assert_eq!(same.reveal(), again);
    assert_eq!(same.addresses, token.addresses);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        read(text);
        read(&format!("hf1-{text}"));
    }
    let mut body = data.to_vec();
    if let Some(version) = body.first_mut() {
        *version %= 2;
    }
    let sum = Sha256::digest(&body);
    body.extend_from_slice(&sum[..4]);
    read(&format!("hf1-{}", URL_SAFE_NO_PAD.encode(body)));
});
