use super::*;
use crate::codec::consts::{chunk, command_flag as flag};
use crate::codec::{Command, Extent};
use crate::{PayloadBuf, PayloadBuffers, ReadChunk, RequestKind};
use bytes::Bytes;
use holdfast_units::ByteRange;

const READ: u16 = Command::Read as u16;
const WRITE: u16 = Command::Write as u16;
const DISC: u16 = Command::Disconnect as u16;
const FLUSH: u16 = Command::Flush as u16;
const TRIM: u16 = Command::Trim as u16;
const CACHE: u16 = Command::Cache as u16;
const ZERO: u16 = Command::WriteZeroes as u16;
const STATUS: u16 = Command::BlockStatus as u16;
const SIMPLE: ReplyStyle = ReplyStyle::Simple;
const STRUCTURED: ReplyStyle = ReplyStyle::Structured;
const EXTENDED: ReplyStyle = ReplyStyle::Extended;

/// Room enough that nobody waits for the other side.
const WIDE: usize = 8 << 20;

#[tokio::test]
async fn answers_come_in_any_order_and_batches_are_whole() {
    let export = Scripted::new(full_info());
    let served = with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        let many: Vec<u8> =
            (0..5).flat_map(|cookie| request(SIMPLE, FLUSH, cookie, 0, 0)).collect();
        peer.send(&many).await;
        export.wait_for(5).await;
        assert_eq!(*export.batches.borrow(), [5]);
        let pending: Vec<_> = export.pending.borrow_mut().drain(..).collect();
        for (_, reply) in pending.into_iter().rev() {
            reply.complete(Ok(ReplyData::Done));
        }
        for cookie in (0..5).rev() {
            assert_eq!(peer.outcome().await, (cookie, 0));
        }
    })
    .await;
    assert!(served.is_ok(), "{served:?}");
    assert_eq!(export.closed.get(), 1);
}

#[tokio::test]
async fn requests_arrive_as_they_were_sent() {
    let export = Scripted::new(full_info());
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, STRUCTURED).await;
        let payload: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut bytes = flagged(STRUCTURED, WRITE, flag::FUA, 1, 4096, 100_000);
        bytes.extend(&payload);
        bytes.extend(request(STRUCTURED, WRITE, 2, 7, 5));
        bytes.extend(b"small");
        bytes.extend(flagged(STRUCTURED, ZERO, flag::NO_HOLE, 3, 0, 40 << 20));
        bytes.extend(flagged(STRUCTURED, STATUS, flag::REQ_ONE, 4, 0, 512));
        bytes.extend(flagged(STRUCTURED, READ, flag::DF, 5, 1, 2));
        peer.send(&bytes).await;
        export.wait_for(5).await;
        let taken = (0..5).map(|_| export.take());
        let (requests, replies): (Vec<_>, Vec<_>) = taken.unzip();
        let [first, second, third, fourth, fifth] = &requests[..] else { unreachable!() };
        assert_eq!(first.kind, RequestKind::Write);
        assert!(first.fua);
        assert_eq!(first.range, ByteRange::new(4096, 100_000));
        assert_eq!(first.payload, payload);
        assert_eq!((second.fua, &second.payload[..]), (false, &b"small"[..]));
        assert!(third.no_hole && !third.fast_zero && third.payload.is_empty());
        assert!(fourth.req_one && !fourth.df);
        assert!(fifth.df && !fifth.req_one);
        drop(replies);
        for _ in 0..5 {
            assert_eq!(peer.outcome().await.1, NbdError::Io.number());
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn refusals_have_the_right_error_and_keep_the_stream_in_step() {
    let mut info = full_info();
    info.min_block = 512;
    info.can_trim = false;
    let size = info.size;
    let export = Scripted::new(info);
    for style in [SIMPLE, STRUCTURED, EXTENDED] {
        with_server(&export, ServerOptions::default(), WIDE, async |stream| {
            let mut peer = Peer::enter(stream, style).await;
            let over = (32u64 << 20) + 512;
            for (command, flags, offset, len, error) in [
                (0x55, 0, 0, 0, NbdError::Invalid),
                (READ, 0x4000, 0, 512, NbdError::Invalid),
                (READ, flag::REQ_ONE, 0, 512, NbdError::Invalid),
                (READ, 0, size - 512, 1024, NbdError::Invalid),
                (READ, 0, u64::MAX - 511, 1024, NbdError::Invalid),
                (READ, 0, 3, 5, NbdError::Invalid),
                (READ, 0, 0, over, NbdError::Invalid),
                (WRITE, 0, size - 512, 1024, NbdError::NoSpace),
                (WRITE, 0, 0, over, NbdError::Invalid),
                (WRITE, 0, 100, 100, NbdError::Invalid),
                (ZERO, 0, size - 512, 1024, NbdError::NoSpace),
                (ZERO, flag::FAST_ZERO, 0, 512, NbdError::Invalid),
                (TRIM, 0, 0, 512, NbdError::Invalid),
                (CACHE, 0, 0, 512, NbdError::Invalid),
                (STATUS, 0, size, 512, NbdError::Invalid),
                (STATUS, 0, 0, 0, NbdError::Invalid),
            ] {
                let mut bytes = flagged(style, command, flags, 9, offset, len);
                if command == WRITE {
                    bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0xee);
                }
                peer.send(&bytes).await;
                let told = peer.outcome().await;
                assert_eq!(told, (9, error.number()), "{command} {flags} {offset} {len}");
            }
            if style != SIMPLE {
                peer.send(&flagged(style, READ, flag::DF, 9, 0, over)).await;
                assert_eq!(peer.outcome().await, (9, NbdError::Overflow.number()));
            }
            // Nothing at all is nothing wrong.
            for command in [READ, WRITE, ZERO] {
                peer.send(&request(style, command, 8, 0, 0)).await;
                assert_eq!(peer.outcome().await, (8, 0));
            }
        })
        .await
        .unwrap();
    }
    assert!(export.pending.borrow().is_empty());
}

#[tokio::test]
async fn a_read_only_export_refuses_every_write() {
    let mut info = full_info();
    info.read_only = true;
    let export = Scripted::new(info);
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        for command in [WRITE, TRIM, ZERO] {
            let mut bytes = request(SIMPLE, command, 1, 0, 100);
            bytes.resize(28 + if command == WRITE { 100 } else { 0 }, 0);
            peer.send(&bytes).await;
            assert_eq!(peer.outcome().await, (1, NbdError::NotPermitted.number()));
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_payload_with_extended_headers_on_a_read_is_skipped() {
    let export = Scripted::new(full_info());
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, EXTENDED).await;
        let mut bytes = flagged(EXTENDED, READ, flag::PAYLOAD_LEN, 1, 0, 8);
        bytes.extend(b"12345678");
        bytes.extend(request(EXTENDED, FLUSH, 2, 0, 0));
        peer.send(&bytes).await;
        assert_eq!(peer.outcome().await, (1, NbdError::Invalid.number()));
        export.wait_for(1).await;
        export.take().1.complete(Ok(ReplyData::Done));
        assert_eq!(peer.outcome().await, (2, 0));
    })
    .await
    .unwrap();
}

/// What a read of 10 bytes at 100 is answered with.
async fn read_answer(style: ReplyStyle, df: bool, answer: ReplyData) -> Vec<u8> {
    let export = Scripted::new(full_info());
    let got = RefCell::new(Vec::new());
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, style).await;
        let flags = if df { flag::DF } else { 0 };
        peer.send(&flagged(style, READ, flags, 1, 100, 10)).await;
        export.wait_for(1).await;
        export.take().1.complete(Ok(answer));
        peer.send(&request(style, DISC, 0, 0, 0)).await;
        let mut bytes = Vec::new();
        peer.stream.read_to_end(&mut bytes).await.unwrap();
        got.replace(bytes);
    })
    .await
    .unwrap();
    got.into_inner()
}

#[tokio::test]
async fn reads_are_framed_as_agreed() {
    let chunks = || {
        let data = Bytes::from_static(b"abcd");
        ReplyData::ReadChunks(vec![ReadChunk::Data(data), ReadChunk::Zeroes(6)])
    };
    let mut simple = Vec::new();
    crate::codec::simple_reply(&mut simple, 1, 0);
    simple.extend(b"abcd\0\0\0\0\0\0");
    assert_eq!(read_answer(SIMPLE, false, chunks()).await, simple);

    let frame = ChunkFrame { style: STRUCTURED, cookie: 1, offset: 100 };
    let mut whole = Vec::new();
    frame.data(&mut whole, true, 100, 10);
    whole.extend(b"abcd\0\0\0\0\0\0");
    assert_eq!(read_answer(STRUCTURED, true, chunks()).await, whole);

    for style in [STRUCTURED, EXTENDED] {
        let frame = ChunkFrame { style, ..frame };
        let mut parts = Vec::new();
        frame.data(&mut parts, false, 100, 4);
        parts.extend(b"abcd");
        frame.hole(&mut parts, true, 104, 6);
        assert_eq!(read_answer(style, false, chunks()).await, parts);

        let mut error = Vec::new();
        frame.error(&mut error, NbdError::Io.number());
        let short = ReplyData::Read(Bytes::from_static(b"123456789"));
        assert_eq!(read_answer(style, false, short).await, error, "a wrong length is an error");
        assert_eq!(read_answer(style, false, ReplyData::Done).await, error);
    }
}

#[tokio::test]
async fn extents_are_cut_to_what_fits() {
    let cases = [
        // style, flags, extents, what arrives
        (STRUCTURED, 0, vec![Extent::data(1), Extent::data(2), Extent::hole(9)], vec![3, 9]),
        (STRUCTURED, flag::REQ_ONE, vec![Extent::hole(9000), Extent::data(1)], vec![4096]),
        (STRUCTURED, 0, vec![Extent::hole(1 << 33), Extent::data(1)], vec![0xffff_fe00]),
        (EXTENDED, 0, vec![Extent::hole(1 << 33), Extent::data(1)], vec![1 << 33, 1]),
        (EXTENDED, 0, vec![Extent::data(0), Extent::hole(1)], vec![1]),
    ];
    let mut info = full_info();
    info.min_block = 512;
    let export = Scripted::new(info);
    for (style, flags, extents, lens) in cases {
        with_server(&export, ServerOptions::default(), WIDE, async |stream| {
            let mut peer = Peer::enter(stream, style).await;
            peer.send(&flagged(style, STATUS, flags, 1, 0, 4096)).await;
            export.wait_for(1).await;
            export.take().1.complete(Ok(ReplyData::allocation(extents)));
            let (_, payload) = peer.reply().await;
            let got: Vec<u64> = if style == EXTENDED {
                let pairs = payload[8..].chunks(16);
                pairs.map(|pair| u64::from_be_bytes(*pair.first_chunk().unwrap())).collect()
            } else {
                let pairs = payload[4..].chunks(8);
                pairs.map(|pair| u32::from_be_bytes(*pair.first_chunk().unwrap()).into()).collect()
            };
            assert_eq!(got, lens);
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn without_block_status_of_its_own_everything_is_data() {
    let mut info = full_info();
    info.can_block_status = false;
    let export = Scripted::new(info);
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, STRUCTURED).await;
        peer.send(&request(STRUCTURED, STATUS, 1, 0, 4096)).await;
        let (head, payload) = peer.reply().await;
        let len = 12;
        let kind = chunk::BLOCK_STATUS;
        assert_eq!(head, ReplyHeader::Chunk { cookie: 1, kind, done: true, len });
        assert_eq!(payload[4..], [0, 0, 0x10, 0, 0, 0, 0, 0]);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_forgotten_reply_is_an_error() {
    let export = Scripted::new(full_info());
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        peer.send(&request(SIMPLE, FLUSH, 3, 0, 0)).await;
        export.wait_for(1).await;
        drop(export.take());
        assert_eq!(peer.outcome().await, (3, NbdError::Io.number()));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn no_more_is_taken_than_the_limits_allow() {
    let export = Scripted::new(full_info());
    let limit = |max_requests, max_bytes| ServerOptions {
        max_requests,
        max_bytes,
        ..ServerOptions::default()
    };
    for options in [limit(2, 64 << 20), limit(100, 2 * 4096)] {
        with_server(&export, options, WIDE, async |stream| {
            let mut peer = Peer::enter(stream, SIMPLE).await;
            let many: Vec<u8> =
                (0..6).flat_map(|cookie| request(SIMPLE, READ, cookie, 0, 4096)).collect();
            peer.send(&many).await;
            for cookie in 0..6 {
                let waiting = 2.min(6 - cookie);
                export.wait_for(waiting).await;
                assert_eq!(export.pending.borrow().len(), waiting);
                export.take().1.complete(Ok(ReplyData::Read(vec![0; 4096].into())));
                assert_eq!(peer.outcome().await, (cookie as u64, 0));
                let _: [u8; 4096] = peer.array().await;
            }
        })
        .await
        .unwrap();
    }
    // One request may always be under way.
    with_server(&export, limit(100, 100), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        peer.send(&request(SIMPLE, READ, 0, 0, 4096)).await;
        export.wait_for(1).await;
        export.pending.borrow_mut().clear();
        assert_eq!(peer.outcome().await, (0, NbdError::Io.number()));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_client_that_reads_nothing_piles_up_nothing() {
    let export = Scripted::new(full_info());
    let options = ServerOptions { max_requests: 8, ..ServerOptions::default() };
    with_server(&export, options, 64 << 10, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        let many: Vec<u8> =
            (0..100).flat_map(|cookie| request(SIMPLE, READ, cookie, 0, 1 << 20)).collect();
        peer.send(&many).await;
        export.wait_for(8).await;
        let data = Bytes::from(vec![7; 1 << 20]);
        while let Some((_, reply)) = export.pending.borrow_mut().pop_front() {
            reply.complete(Ok(ReplyData::Read(data.clone())));
        }
        // The server has had its chance: eight answers wait, no further request was taken.
        tokio::task::yield_now().await;
        assert!(export.pending.borrow().is_empty());
        assert_eq!(peer.outcome().await, (0, 0));
        let mut first = vec![0; 1 << 20];
        peer.stream.read_exact(&mut first).await.unwrap();
        assert_eq!(data, first);
    })
    .await
    .unwrap_err();
}

#[tokio::test]
async fn a_farewell_waits_for_what_is_under_way() {
    let export = Scripted::new(full_info());
    let served = with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        let mut bytes = request(SIMPLE, FLUSH, 1, 0, 0);
        bytes.extend(request(SIMPLE, DISC, 2, 0, 0));
        bytes.extend(request(SIMPLE, FLUSH, 3, 0, 0));
        peer.send(&bytes).await;
        export.wait_for(1).await;
        let (_, reply) = export.take();
        tokio::task::yield_now().await;
        assert_eq!(export.closed.get(), 0);
        reply.complete(Ok(ReplyData::Done));
        assert_eq!(peer.outcome().await, (1, 0));
        assert!(peer.at_end().await);
    })
    .await;
    assert!(served.is_ok());
    assert!(export.pending.borrow().is_empty(), "nothing is taken after a farewell");
    assert_eq!(export.closed.get(), 1);
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing_behind() {
    let export = Scripted::new(full_info());
    let served = with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        let mut bytes = request(SIMPLE, FLUSH, 1, 0, 0);
        bytes.extend(request(SIMPLE, WRITE, 2, 0, 1 << 20));
        bytes.extend([0; 100]);
        peer.send(&bytes).await;
        export.wait_for(1).await;
    })
    .await;
    assert!(matches!(served, Err(ServeError::Io(_))), "{served:?}");
    assert_eq!(export.closed.get(), 1);
    let (_, reply) = export.take();
    assert!(reply.is_abandoned());
    reply.complete(Ok(ReplyData::Done));
    assert!(export.pending.borrow().is_empty(), "half a write is no write");
}

#[tokio::test]
async fn noise_ends_the_connection() {
    let export = Scripted::new(full_info());
    for noise in [vec![0xff; 28], request(SIMPLE, WRITE, 1, 0, 0xffff_ffff)] {
        let served = with_server(&export, ServerOptions::default(), WIDE, async |stream| {
            let mut peer = Peer::enter(stream, SIMPLE).await;
            peer.send(&noise).await;
            assert!(peer.at_end().await);
        })
        .await;
        assert!(matches!(served, Err(ServeError::Protocol(_))), "{served:?}");
    }
}

#[tokio::test]
async fn a_silent_client_is_sent_away() {
    let export = Scripted::new(full_info());
    let handshake_timeout = Duration::from_millis(20);
    let options = ServerOptions { handshake_timeout, ..ServerOptions::default() };
    let served = with_server(&export, options, WIDE, async |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 18);
    })
    .await;
    assert!(matches!(served, Err(ServeError::HandshakeTimeout)), "{served:?}");
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_under_way_and_refuses_the_rest() {
    let export = Scripted::new(full_info());
    let (handle, shutdown) = Shutdown::new();
    let options = ServerOptions { shutdown, ..ServerOptions::default() };
    with_server(&export, options.clone(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        peer.send(&request(SIMPLE, FLUSH, 1, 0, 0)).await;
        export.wait_for(1).await;
        handle.request();
        let mut bytes = request(SIMPLE, WRITE, 2, 0, 3);
        bytes.extend(b"abc");
        peer.send(&bytes).await;
        assert_eq!(peer.outcome().await, (2, NbdError::Shutdown.number()));
        export.take().1.complete(Ok(ReplyData::Done));
        assert_eq!(peer.outcome().await, (1, 0));
        assert!(peer.at_end().await);
    })
    .await
    .unwrap();
    with_server(&export, options, WIDE, async |mut stream| {
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "no new client is let in");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_an_idle_connection_and_does_not_wait_for_ever() {
    let export = Scripted::new(full_info());
    let (handle, shutdown) = Shutdown::new();
    let shutdown_grace = Duration::from_millis(20);
    let options = ServerOptions { shutdown, shutdown_grace, ..ServerOptions::default() };
    let idle = with_server(&export, options.clone(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        handle.request();
        assert!(peer.at_end().await);
    })
    .await;
    assert!(idle.is_ok(), "{idle:?}");
    let (handle, shutdown) = Shutdown::new();
    let options = ServerOptions { shutdown, ..options };
    let stuck = with_server(&export, options, WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        peer.send(&request(SIMPLE, FLUSH, 1, 0, 0)).await;
        export.wait_for(1).await;
        handle.request();
        assert!(peer.at_end().await);
    })
    .await;
    assert!(matches!(stuck, Err(ServeError::ShutdownTimeout)), "{stuck:?}");
}

/// Remembers where its buffers are.
struct Marked(Rc<RefCell<Vec<(usize, usize)>>>);
struct MarkedBuf(Vec<u8>);

impl PayloadBuf for MarkedBuf {
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn freeze(self: Box<Self>) -> Bytes {
        Bytes::from(self.0)
    }
}

impl PayloadBuffers for Marked {
    fn get(&self, len: usize) -> Box<dyn PayloadBuf> {
        let memory = vec![0; len];
        self.0.borrow_mut().push((memory.as_ptr().addr(), len));
        Box::new(MarkedBuf(memory))
    }
}

#[tokio::test]
async fn payloads_arrive_in_the_buffers_of_the_caller() {
    let export = Scripted::new(full_info());
    let buffers = Rc::new(RefCell::new(Vec::new()));
    let options =
        ServerOptions { buffers: Rc::new(Marked(Rc::clone(&buffers))), ..ServerOptions::default() };
    // A narrow stream: the payload comes in many pieces.
    with_server(&export, options, 10_000, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        for len in [1, 512, 16_383, 16_384, 70_000, 1 << 20, 4096] {
            let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
            let mut bytes = request(SIMPLE, WRITE, 1, 0, len as u64);
            bytes.extend(&payload);
            peer.send(&bytes).await;
            export.wait_for(1).await;
            let (request, reply) = export.take();
            assert_eq!(request.payload, payload);
            let place = (request.payload.as_ptr().addr(), len);
            assert_eq!(buffers.borrow_mut().pop(), Some(place));
            reply.complete(Ok(ReplyData::Done));
            assert_eq!(peer.outcome().await, (1, 0));
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn spinning_changes_nothing_but_the_time() {
    let export = Scripted::new(full_info());
    let spinner = Spinner::new(Duration::from_millis(2));
    let options = ServerOptions { spinner: Some(Rc::clone(&spinner)), ..ServerOptions::default() };
    let served = with_server(&export, options, WIDE, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        for cookie in 0..20 {
            peer.send(&request(SIMPLE, FLUSH, cookie, 0, 0)).await;
            export.wait_for(1).await;
            export.take().1.complete(Ok(ReplyData::Done));
            assert_eq!(peer.outcome().await, (cookie, 0));
        }
    });
    tokio::select! {
        () = spinner.run() => {}
        served = served => served.unwrap(),
    }
}
