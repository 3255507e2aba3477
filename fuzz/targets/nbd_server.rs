//! A whole connection to the NBD server: options and requests with the right magic numbers and any
//! content, in any order, cut anywhere.
#![no_main]

use holdfast_nbd::codec::{ReplyStyle, RequestHeader, option_request};
use holdfast_nbd::{ClientInfo, ClientStream, MemoryExport, ServerOptions, SingleExport, serve};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SIZE: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    flags: u8,
    sent: Vec<Sent>,
}

#[derive(Arbitrary, Debug)]
enum Sent {
    Option { code: u8, data: Vec<u8> },
    EnterByInfo,
    AskForStructuredReplies,
    AskForExtendedHeaders,
    AskForAllocation,
    Request { extended: bool, flags: u8, command: u8, offset: u32, len: u32, payload: u16 },
    Bytes(Vec<u8>),
}

const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

impl Sent {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Option { code, data } => option_request(out, (*code).into(), data),
            Self::EnterByInfo => option_request(out, GO, &[0; 6]),
            Self::AskForStructuredReplies => option_request(out, STRUCTURED_REPLY, &[]),
            Self::AskForExtendedHeaders => option_request(out, EXTENDED_HEADERS, &[]),
            Self::AskForAllocation => {
                let name = b"base:allocation";
                let data = [&[0; 4][..], &[0, 0, 0, 1], &[0, 0, 0, 15], name].concat();
                option_request(out, SET_META_CONTEXT, &data);
            }
            Self::Request { extended, flags, command, offset, len, payload } => {
                let style = if *extended { ReplyStyle::Extended } else { ReplyStyle::Simple };
                let request = RequestHeader {
                    flags: (*flags).into(),
                    command: u16::from(*command % 10),
                    cookie: 1,
                    offset: (*offset).into(),
                    len: (*len).into(),
                };
                request.encode(style, out);
                out.resize(out.len() + usize::from(*payload), 0x5a);
            }
            Self::Bytes(bytes) => out.extend(bytes),
        }
    }
}

/// What the client sent; what it is told is dropped.
struct Wire<'a>(&'a [u8]);

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, rest) = self.0.split_at(self.0.len().min(buf.remaining()));
        buf.put_slice(now);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl ClientStream for Wire<'_> {}

impl AsyncWrite for Wire<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|input: Input| {
    let mut bytes = u32::from(input.flags).to_be_bytes().to_vec();
    input.sent.iter().take(64).for_each(|sent| sent.put(&mut bytes));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without I/O");
    let exports = SingleExport(MemoryExport::new("", SIZE));
    let client = ClientInfo::tcp(([127, 0, 0, 1], 1).into());
    let options = ServerOptions { max_payload: 1 << 20, ..ServerOptions::default() };
    let _ = runtime.block_on(serve(Wire(&bytes), &client, &exports, &options));
});
