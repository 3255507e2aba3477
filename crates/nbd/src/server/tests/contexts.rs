//! Metadata contexts beyond `base:allocation`, filters, and a size that changes.

use super::super::negotiate::{Negotiation, Step, Tls};
use super::*;
use crate::codec::consts::{chunk, command_flag as flag, flag as offer, option_reply as kind};
use crate::codec::{Command, Extent, StatusFilter};
use crate::{ContextSet, ContextStatus, RequestKind};
use holdfast_units::ByteRange;

const READ: u16 = Command::Read as u16;
const STATUS: u16 = Command::BlockStatus as u16;
const RESIZE: u16 = Command::Resize as u16;
const EXTENDED: ReplyStyle = ReplyStyle::Extended;
const WIDE: usize = 8 << 20;

const DIRTY: &str = "x-holdfast:dirty";
const CHANGED: &str = "x-holdfast:changed";

fn info_with_contexts() -> ExportInfo {
    let mut info = full_info();
    info.contexts = vec![DIRTY.to_owned(), CHANGED.to_owned()];
    info
}

fn meta(queries: &[&str]) -> Vec<u8> {
    let queries = queries.iter().map(|query| query.as_bytes().to_vec()).collect();
    MetaRequest { name: "x".into(), queries }.encode()
}

/// The kinds and payloads of the replies to one option.
fn ask(peer: &mut Negotiation<'_>, code: u32, data: &[u8]) -> (Vec<(u32, Vec<u8>)>, Step) {
    let mut out = Vec::new();
    let step = peer.option(code, data, &mut out);
    let (mut replies, mut rest) = (Vec::new(), &out[..]);
    while let Some((head, after)) = rest.split_first_chunk() {
        let head = OptionReplyHeader::parse(head).unwrap();
        let (data, after) = after.split_at(head.len as usize);
        replies.push((head.kind, data.to_vec()));
        rest = after;
    }
    (replies, step)
}

/// The contexts that a selection or a list named, with their identifiers.
fn named(replies: &[(u32, Vec<u8>)]) -> Vec<(u32, String)> {
    let contexts = replies.iter().filter(|(reply, _)| *reply == kind::META_CONTEXT);
    let parse = |data: &Vec<u8>| {
        let (id, name) = data.split_first_chunk().unwrap();
        (u32::from_be_bytes(*id), String::from_utf8(name.to_vec()).unwrap())
    };
    contexts.map(|(_, data)| parse(data)).collect()
}

fn flags_of(replies: &[(u32, Vec<u8>)]) -> u16 {
    let told = replies.iter().find(|(reply, data)| *reply == kind::INFO && data[..2] == [0, 0]);
    u16::from_be_bytes(*told.unwrap().1.last_chunk().unwrap())
}

#[test]
fn contexts_of_an_export_are_listed_and_selected() {
    let exports = Catalogue(Scripted::new(info_with_contexts()));
    let mut peer = Negotiation::new(&exports, CLIENT, Tls::Off, 32 << 20, 3).unwrap();
    ask(&mut peer, option::EXTENDED_HEADERS, &[]);
    let mut list = |queries: &[&str]| {
        let (replies, _) = ask(&mut peer, option::LIST_META_CONTEXT, &meta(queries));
        named(&replies).into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), [BASE_ALLOCATION, DIRTY, CHANGED]);
    assert_eq!(list(&["x-holdfast:"]), [DIRTY, CHANGED]);
    assert_eq!(list(&[CHANGED, "base:"]), [BASE_ALLOCATION, CHANGED]);
    assert!(list(&["x-holdfast", "x-other:", "", "x-holdfast:dirt"]).is_empty());
    let select = meta(&[CHANGED, "x-other:y", BASE_ALLOCATION, CHANGED]);
    let (replies, _) = ask(&mut peer, option::SET_META_CONTEXT, &select);
    assert_eq!(named(&replies), [(1, BASE_ALLOCATION.to_owned()), (3, CHANGED.to_owned())]);
    assert_eq!(replies.last().unwrap().0, kind::ACK);
    let go = InfoRequest { name: "x".into(), kinds: vec![] }.encode();
    let (told, _) = ask(&mut peer, option::INFO, &go);
    let (entered, step) = ask(&mut peer, option::GO, &go);
    assert_eq!(told, entered);
    assert_ne!(flags_of(&told) & offer::BLOCK_STATUS_PAYLOAD, 0);
    let Step::Enter(session) = step else { panic!("refused") };
    assert_eq!(session.contexts.iter().collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn filters_are_offered_only_where_they_can_be_used() {
    let exports = Catalogue(Scripted::new(info_with_contexts()));
    for (style, select, offered) in [
        (option::STRUCTURED_REPLY, true, false),
        (option::EXTENDED_HEADERS, false, false),
        (option::EXTENDED_HEADERS, true, true),
    ] {
        let mut peer = Negotiation::new(&exports, CLIENT, Tls::Off, 32 << 20, 3).unwrap();
        ask(&mut peer, style, &[]);
        if select {
            ask(&mut peer, option::SET_META_CONTEXT, &meta(&[DIRTY]));
        }
        let go = InfoRequest { name: "x".into(), kinds: vec![] }.encode();
        let flags = flags_of(&ask(&mut peer, option::GO, &go).0);
        assert_eq!(flags & offer::BLOCK_STATUS_PAYLOAD != 0, offered);
        assert_eq!(flags & offer::SEND_RESIZE, 0);
    }
}

fn filter(len: u64, contexts: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    StatusFilter { len, contexts: contexts.to_vec() }.encode(&mut bytes);
    bytes
}

/// A block status request with a payload.
fn filtered(cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u64;
    let mut bytes = flagged(EXTENDED, STATUS, flag::PAYLOAD_LEN, cookie, offset, len);
    bytes.extend(payload);
    bytes
}

/// Answers the next request for block status, each context with its own extent.
fn answer_status(export: &Scripted) -> Request {
    let (request, reply) = export.take();
    let status = request.contexts.iter().map(|context| ContextStatus {
        context,
        extents: vec![Extent::dirty(4096 * (context as u64 + 1), context > 0)],
    });
    reply.complete(Ok(ReplyData::Status(status.collect())));
    request
}

#[tokio::test]
async fn every_context_has_a_chunk_of_its_own() {
    let export = Scripted::new(info_with_contexts());
    let all = [BASE_ALLOCATION, DIRTY, CHANGED];
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter_with(stream, EXTENDED, &all).await;
        peer.send(&request(EXTENDED, STATUS, 5, 8192, 1 << 20)).await;
        export.wait_for(1).await;
        let asked = answer_status(&export);
        assert_eq!((asked.contexts.len(), asked.range), (3, ByteRange::new(8192, 1 << 20)));
        for id in 1..=3u64 {
            let (head, payload) = peer.reply().await;
            let kind = chunk::BLOCK_STATUS_EXT;
            assert_eq!(head, ReplyHeader::Chunk { cookie: 5, kind, done: id == 3, len: 24 });
            let expected = [id << 32 | 1, 4096 * id, u64::from(id > 1)].map(u64::to_be_bytes);
            assert_eq!(payload, expected.concat());
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_filter_chooses_contexts_and_the_range() {
    let export = Scripted::new(info_with_contexts());
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter_with(stream, EXTENDED, &[BASE_ALLOCATION, CHANGED]).await;
        peer.send(&filtered(1, 4096, &filter(60 << 20, &[3]))).await;
        export.wait_for(1).await;
        let asked = answer_status(&export);
        assert_eq!(asked.kind, RequestKind::BlockStatus);
        assert_eq!(asked.range, ByteRange::new(4096, 60 << 20));
        assert_eq!(asked.contexts.iter().collect::<Vec<_>>(), [2]);
        assert!(asked.payload.is_empty());
        assert!(matches!(peer.reply().await.0, ReplyHeader::Chunk { done: true, cookie: 1, .. }));

        let size = full_info().size;
        for payload in [
            vec![],
            vec![1; 7],
            filter(4096, &[]),
            filter(4096, &[2]),
            filter(4096, &[1, 1]),
            filter(4096, &[1, 3, 4]),
            filter(4096, &[0]),
            filter(0, &[1]),
            filter(size, &[1]),
            filter(u64::MAX, &[1]),
            filter(4096, &[1])[..11].to_vec(),
            vec![0; 100_000],
        ] {
            peer.send(&filtered(2, 4096, &payload)).await;
            let told = peer.outcome().await;
            assert_eq!(told, (2, NbdError::Invalid.number()), "{payload:?}");
        }
        assert!(export.pending.borrow().is_empty());
        // One that comes in pieces.
        let bytes = filtered(3, 0, &filter(512, &[3, 1]));
        for piece in bytes.chunks(9) {
            peer.send(piece).await;
            tokio::task::yield_now().await;
        }
        export.wait_for(1).await;
        assert_eq!(answer_status(&export).contexts.len(), 2);
        peer.reply().await;
        peer.reply().await;
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_answer_without_a_context_that_was_asked_for_is_an_error() {
    let export = Scripted::new(info_with_contexts());
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter_with(stream, EXTENDED, &[BASE_ALLOCATION, DIRTY]).await;
        peer.send(&request(EXTENDED, STATUS, 1, 0, 4096)).await;
        export.wait_for(1).await;
        export.take().1.complete(Ok(ReplyData::allocation(vec![Extent::data(4096)])));
        assert_eq!(peer.outcome().await, (1, NbdError::Io.number()));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_has_grown_can_be_used_at_once() {
    let export = Scripted::new(full_info());
    let size = full_info().size;
    with_server(&export, ServerOptions::default(), WIDE, async |stream| {
        let mut peer = Peer::enter(stream, ReplyStyle::Simple).await;
        let beyond = request(ReplyStyle::Simple, READ, 1, size - 512, 1024);
        peer.send(&beyond).await;
        assert_eq!(peer.outcome().await, (1, NbdError::Invalid.number()));
        export.grown.set(Some(size + 512));
        peer.send(&beyond).await;
        export.wait_for(1).await;
        assert_eq!(export.take().0.range, ByteRange::new(size - 512, 1024));
        assert_eq!(peer.outcome().await.0, 1);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_resize_reaches_the_export_that_offers_it() {
    let style = ReplyStyle::Simple;
    for (can_resize, read_only) in [(false, false), (true, false), (true, true)] {
        let mut info = full_info();
        (info.can_resize, info.read_only, info.min_block) = (can_resize, read_only, 512);
        let offers = info.flags(style).has(offer::SEND_RESIZE);
        assert_eq!(offers, can_resize && !read_only);
        let export = Scripted::new(info);
        with_server(&export, ServerOptions::default(), WIDE, async |stream| {
            let mut peer = Peer::enter(stream, style).await;
            peer.send(&request(style, RESIZE, 1, 1 << 40, 0)).await;
            if !offers {
                assert_eq!(peer.outcome().await, (1, NbdError::Invalid.number()));
                return;
            }
            export.wait_for(1).await;
            let (request, reply) = export.take();
            assert_eq!((request.kind, request.range.offset), (RequestKind::Resize, 1 << 40));
            reply.complete(Ok(ReplyData::Done));
            assert_eq!(peer.outcome().await, (1, 0));
            for (offset, len) in [(513, 0), (1024, 1)] {
                peer.send(&flagged(style, RESIZE, 0, 2, offset, len)).await;
                assert_eq!(peer.outcome().await, (2, NbdError::Invalid.number()));
            }
        })
        .await
        .unwrap();
    }
}

#[test]
fn a_set_of_contexts_holds_what_fits() {
    let mut set = ContextSet::default();
    assert!(set.is_empty() && set.insert(0) && set.insert(31));
    assert!(!set.insert(31) && !set.insert(32));
    assert_eq!((set.len(), set.has(0), set.has(1), set.has(99)), (2, true, false, false));
    assert_eq!(set.iter().collect::<Vec<_>>(), [0, 31]);
}
