use super::*;
use crate::codec::consts::{INIT_MAGIC, OPTION_MAGIC, info, option_reply as kind};
use crate::codec::{
    ChunkFrame, OptionHeader, RequestHeader, consts::chunk, option_reply, simple_reply,
};
use std::io::{Read, Write};
use std::thread;

/// The server's side of a handshake that grants everything, for an export of `size` bytes.
fn welcome(stream: &mut UnixStream, size: u64) {
    let mut out = INIT_MAGIC.to_be_bytes().to_vec();
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(3u16.to_be_bytes());
    stream.write_all(&out).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    loop {
        let mut head = [0; OptionHeader::LEN];
        stream.read_exact(&mut head).unwrap();
        let OptionHeader { code, len } = OptionHeader::parse(&head).unwrap();
        stream.read_exact(&mut vec![0; len as usize]).unwrap();
        out.clear();
        match code {
            crate::codec::consts::option::GO => {
                let flags = flag::HAS_FLAGS | flag::SEND_FLUSH;
                let data = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes()].concat();
                let data = [&data[..], &flags.to_be_bytes()].concat();
                option_reply(&mut out, code, kind::INFO, &data);
            }
            crate::codec::consts::option::SET_META_CONTEXT => {
                let data = [&5u32.to_be_bytes()[..], b"base:allocation"].concat();
                option_reply(&mut out, code, kind::META_CONTEXT, &data);
            }
            _ => {}
        }
        option_reply(&mut out, code, kind::ACK, &[]);
        stream.write_all(&out).unwrap();
        if code == crate::codec::consts::option::GO {
            return;
        }
    }
}

/// A client whose first request is answered with `answer`.
fn answered(style: ReplyStyle, answer: Vec<u8>) -> (Client, thread::JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        welcome(&mut theirs, 1 << 20);
        theirs.read_exact(&mut vec![0; RequestHeader::wire_len(style)]).unwrap();
        theirs.write_all(&answer).unwrap();
        // Whatever the client still says; it may also close at once.
        let _ = theirs.read(&mut [0; 64]);
    });
    let options = ConnectOptions { style, ..ConnectOptions::default() };
    (Client::over_unix(ours, "", &options).unwrap(), server)
}

fn read_error(style: ReplyStyle, answer: Vec<u8>) -> String {
    let (mut client, server) = answered(style, answer);
    let error = client.read_at(&mut [0; 16], 512).unwrap_err().to_string();
    drop(client);
    server.join().unwrap();
    error
}

const FRAME: ChunkFrame = ChunkFrame { style: ReplyStyle::Structured, cookie: 1, offset: 512 };

fn chunks(build: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

#[test]
fn a_hostile_server_gets_no_further_than_an_error() {
    let structured = |answer| read_error(ReplyStyle::Structured, answer);
    for offset in [0, 511, 513, 528, u64::MAX] {
        let data = chunks(|out| {
            FRAME.data(out, true, offset, 16);
            out.extend([0; 16]);
        });
        assert!(structured(data).contains("outside the request"), "{offset}");
        let hole = chunks(|out| FRAME.hole(out, true, offset, 16));
        assert!(structured(hole).contains("outside the request"), "{offset}");
    }
    for len in [17, 1 << 20, u64::from(u32::MAX)] {
        let data = chunks(|out| FRAME.data(out, true, 512, len));
        assert!(structured(data).contains("outside the request"), "{len}");
    }
    let part = chunks(|out| FRAME.hole(out, true, 512, 15));
    assert!(structured(part).contains("leaves a part out"));
    let nothing = chunks(|out| FRAME.none(out));
    assert!(structured(nothing).contains("leaves a part out"));
    let status = chunks(|out| FRAME.block_status(out, true, 5, &[Extent::data(9)]));
    assert!(structured(status).contains("unexpected chunk"));
    let other = ChunkFrame { cookie: 2, ..FRAME };
    assert!(structured(chunks(|out| other.none(out))).contains("not sent"));
    assert!(structured(chunks(|out| simple_reply(out, 1, 0))).contains("chunks are due"));
    assert!(structured(vec![0; 40]).contains("magic"));
    let simple = chunks(|out| FRAME.none(out));
    assert!(read_error(ReplyStyle::Simple, simple).contains("magic"));
    let endless = chunks(|out| {
        let unknown = [&0x668e_33efu32.to_be_bytes()[..], &[0, 0, 0x80, 9]].concat();
        out.extend(unknown);
        out.extend(1u64.to_be_bytes());
        out.extend(u32::MAX.to_be_bytes());
    });
    assert!(structured(endless).contains("too long"));
    assert_eq!(chunk::ERROR_BIT, 0x8000);
}

#[test]
fn an_error_of_the_server_leaves_the_client_usable_and_a_broken_stream_does_not() {
    let (mut client, server) = answered(ReplyStyle::Structured, chunks(|out| FRAME.error(out, 28)));
    let error = client.read_at(&mut [0; 16], 512).unwrap_err();
    assert!(matches!(error, ClientError::Request(NbdError::NoSpace)));
    assert!(!client.broken);
    drop(client);
    server.join().unwrap();
    let (mut client, server) = answered(ReplyStyle::Structured, vec![1; 40]);
    client.read_at(&mut [0; 16], 512).unwrap_err();
    let again = client.flush().unwrap_err().to_string();
    assert!(again.contains("broke before"), "{again}");
    drop(client);
    server.join().unwrap();
}

#[test]
fn extents_that_make_no_sense_are_refused() {
    for (context, extents, why) in [
        (6, vec![Extent::data(1)], "not agreed on"),
        (5, vec![], "cannot be read"),
        (5, vec![Extent::data(0)], "cannot be read"),
    ] {
        let answer = chunks(|out| FRAME.block_status(out, true, context, &extents));
        let (mut client, server) = answered(ReplyStyle::Structured, answer);
        let error = client.block_status(0, 512).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn impossible_exports_are_refused() {
    for size in [1 << 63, u64::MAX] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || welcome(&mut theirs, size));
        let error = Client::over_unix(ours, "", &ConnectOptions::default()).unwrap_err();
        assert!(error.to_string().contains("2^63"), "{error}");
        server.join().unwrap();
    }
}

#[test]
fn a_server_that_is_none_is_noticed() {
    for (greeting, why) in [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".to_vec(), "does not greet"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0\0\0".to_vec(), "old handshake"),
        (b"NBDMAGICIHAVEOPT\0\0".to_vec(), "fixed newstyle"),
        (b"NBD".to_vec(), "broke"),
    ] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&greeting).unwrap();
        drop(theirs);
        let error = Client::over_unix(ours, "", &ConnectOptions::default()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}
