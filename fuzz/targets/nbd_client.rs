//! A whole connection of the NBD client to a server that answers with the right magic numbers and
//! any content, in any order, cut anywhere.
#![no_main]

use holdfast_fuzz::nbd_replies::Sent;
use holdfast_nbd::codec::ReplyStyle;
use holdfast_nbd::{Client, ConnectOptions};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// More would wait for somebody who reads it.
const MOST: usize = 64 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    flags: u16,
    style: u8,
    block_status: bool,
    sent: Vec<Sent>,
}

fuzz_target!(|input: Input| {
    let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
    bytes.extend((input.flags | 1).to_be_bytes());
    input.sent.iter().take(64).for_each(|sent| sent.put(&mut bytes));
    bytes.truncate(MOST);
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    theirs.write_all(&bytes).expect("the socket has room");
    theirs.shutdown(Shutdown::Write).expect("it is open");
    let options = ConnectOptions {
        style: [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended]
            [usize::from(input.style % 3)],
        block_status: input.block_status,
        timeout: Some(Duration::from_secs(5)),
        ..ConnectOptions::default()
    };
    let Ok(mut client) = Client::over_unix(ours, "x", &options) else { return };
    let mut data = [0; 4096];
    // Whatever it answers is good, as long as it is an answer.
    let _ = client.read_at(&mut data, 4096);
    let _ = client.block_status(0, 1 << 20);
    let _ = client.write_at(&data, 0);
    let _ = client.flush();
    let _ = client.trim(0, 4096);
    let _ = client.read_at(&mut data, 0);
});
