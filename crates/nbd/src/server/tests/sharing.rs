//! Connections that share memory.

use super::*;
use crate::codec::Command;
use bytes::Bytes;
use std::time::Instant;

const READ: u16 = Command::Read as u16;
const WRITE: u16 = Command::Write as u16;
const SIMPLE: ReplyStyle = ReplyStyle::Simple;
const MIB: u64 = 1 << 20;
const SHORT: Duration = Duration::from_millis(100);

fn sharing(memory: &SharedMemory) -> ServerOptions {
    ServerOptions {
        own_bytes: 64 << 10,
        memory: memory.clone(),
        patience: SHORT,
        ..ServerOptions::default()
    }
}

/// Announces a write of `len` bytes and sends one of them.
async fn half_a_write(stream: DuplexStream, len: u64) -> Peer {
    let mut peer = Peer::enter(stream, SIMPLE).await;
    let mut bytes = request(SIMPLE, WRITE, 1, 0, len);
    bytes.push(1);
    peer.send(&bytes).await;
    peer
}

async fn whole_write(peer: &mut Peer, export: &Scripted, len: usize) {
    let mut bytes = request(SIMPLE, WRITE, 7, 0, len as u64);
    bytes.resize(bytes.len() + len, 7);
    peer.send(&bytes).await;
    export.wait_for(1).await;
    let (request, reply) = export.take();
    assert_eq!(request.payload.len(), len);
    reply.complete(Ok(ReplyData::Done));
    assert_eq!(peer.outcome().await, (7, 0));
}

#[tokio::test]
async fn half_writes_hold_no_more_than_the_memory_and_are_cut_when_others_wait() {
    let memory = SharedMemory::new(4 * MIB);
    let export = Scripted::new(full_info());
    let others = Scripted::new(full_info());
    let options = sharing(&memory);
    let cut = Cell::new(0);
    let stalled = async || {
        let served = with_server(&export, options.clone(), 1 << 16, async |stream| {
            let mut peer = half_a_write(stream, 4 * MIB).await;
            assert!(peer.at_end().await);
        })
        .await;
        cut.set(cut.get() + 1);
        served
    };
    let honest = with_server(&others, options.clone(), 1 << 16, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        while memory.used() == 0 {
            tokio::task::yield_now().await;
        }
        // There is no room in the memory before one of them is cut.
        whole_write(&mut peer, &others, 4096).await;
        assert_eq!(cut.get(), 0, "small requests do not wait for the memory");
        assert!(memory.used() <= 4 * MIB);
        whole_write(&mut peer, &others, 3 << 20).await;
        assert!(memory.used() <= 4 * MIB);
    });
    let stalled = async {
        let ended = tokio::join!(stalled(), stalled());
        assert!(matches!(ended.0, Err(ServeError::Stalled)), "{ended:?}");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // Who stalls behind all others is in nobody's way.
        () = stalled => {}
        honest = honest => honest.unwrap(),
    }
    assert_eq!(memory.used(), 0);
    assert!(export.pending.borrow().is_empty(), "half a write is no write");
}

#[tokio::test]
async fn replies_that_nobody_fetches_make_room_for_others() {
    let memory = SharedMemory::new(MIB);
    let export = Scripted::new(full_info());
    let others = Scripted::new(full_info());
    let options = sharing(&memory);
    let lazy = with_server(&export, options.clone(), 4096, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        peer.send(&request(SIMPLE, READ, 1, 0, MIB)).await;
        export.wait_for(1).await;
        let data = Bytes::from(vec![7; 1 << 20]);
        export.take().1.complete(Ok(ReplyData::Read(data)));
        // It never reads, and finds the connection closed when it writes.
        while peer.stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(SHORT / 10).await; // bounded poll
        }
    });
    let honest = with_server(&others, options.clone(), 1 << 16, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        while memory.used() == 0 {
            tokio::task::yield_now().await;
        }
        whole_write(&mut peer, &others, 1 << 20).await;
    });
    let (lazy, honest) = tokio::join!(lazy, honest);
    honest.unwrap();
    assert!(matches!(lazy, Err(ServeError::Stalled)), "{lazy:?}");
    assert_eq!(memory.used(), 0);
}

#[tokio::test]
async fn a_slow_client_in_nobodys_way_is_left_alone() {
    let memory = SharedMemory::new(4 * MIB);
    let export = Scripted::new(full_info());
    let patience = Duration::from_millis(5);
    let options = ServerOptions { patience, ..sharing(&memory) };
    with_server(&export, options, 1 << 16, async |stream| {
        let mut peer = half_a_write(stream, MIB).await;
        let start = Instant::now();
        while start.elapsed() < 20 * patience {
            tokio::task::yield_now().await;
        }
        peer.send(&vec![1; (1 << 20) - 1]).await;
        export.wait_for(1).await;
        export.take().1.complete(Ok(ReplyData::Done));
        assert_eq!(peer.outcome().await, (1, 0));
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn memory_comes_back_when_a_client_vanishes() {
    let memory = SharedMemory::new(4 * MIB);
    let export = Scripted::new(full_info());
    let options = sharing(&memory);
    let vanished = with_server(&export, options, 1 << 16, async |stream| {
        let mut peer = Peer::enter(stream, SIMPLE).await;
        peer.send(&request(SIMPLE, READ, 1, 0, MIB)).await;
        export.wait_for(1).await;
        let mut half = request(SIMPLE, WRITE, 2, 0, MIB);
        half.resize(half.len() + 100_000, 0);
        peer.send(&half).await;
        while memory.used() < MIB {
            tokio::task::yield_now().await;
        }
    });
    assert!(vanished.await.is_err());
    assert_eq!(memory.used(), MIB - (64 << 10), "what is under way still holds it");
    export.take().1.complete(Ok(ReplyData::Read(Bytes::from(vec![0; 1 << 20]))));
    assert_eq!(memory.used(), 0);
}
