use super::*;

use crate::{Command, Lend, LentRange, ReadChunk};
use rustix::net::{SendFlags, send};
use std::os::fd::BorrowedFd;

const READ: u16 = Command::Read as u16;
const MIB: usize = 1 << 20;

/// Lends what it has, and then nothing more.
#[derive(Debug)]
struct Lender(Vec<u8>);

impl Lend for Lender {
    fn send(&self, socket: BorrowedFd<'_>, skip: u64) -> io::Result<usize> {
        let Some(rest) = self.0.get(usize::try_from(skip).unwrap()..).filter(|r| !r.is_empty())
        else {
            return Err(io::Error::other("it was taken away"));
        };
        Ok(send(socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }
}

fn lent(bytes: Vec<u8>, len: usize) -> ReplyData {
    let from = Rc::new(Lender(bytes));
    ReplyData::ReadChunks(vec![ReadChunk::Lent(LentRange { from, skip: 0, len: len as u64 })])
}

fn numbered() -> Vec<u8> {
    (0..MIB).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

#[tokio::test]
async fn what_is_lent_arrives_whole_between_other_replies() {
    let export = Scripted::new(full_info());
    let served = with_socket(&export, async |stream| {
        let mut peer = Peer::enter(stream, ReplyStyle::Simple).await;
        for cookie in 1..=3 {
            peer.send(&request(peer.style, READ, cookie, 0, MIB as u64)).await;
        }
        export.wait_for(3).await;
        for _ in 0..3 {
            let (_, reply) = export.take();
            assert!(reply.takes_lent());
            reply.complete(Ok(lent(numbered(), MIB)));
        }
        for cookie in 1..=3 {
            assert_eq!(peer.outcome().await, (cookie, 0));
            let mut data = vec![0; MIB];
            peer.stream.read_exact(&mut data).await.unwrap();
            assert!(data == numbered(), "reply {cookie}");
        }
    });
    served.await.unwrap();
}

#[tokio::test]
async fn a_connection_ends_when_what_was_lent_is_taken_away() {
    let export = Scripted::new(full_info());
    let served = with_socket(&export, async |stream| {
        let mut peer = Peer::enter(stream, ReplyStyle::Simple).await;
        peer.send(&request(peer.style, READ, 1, 0, MIB as u64)).await;
        export.wait_for(1).await;
        export.take().1.complete(Ok(lent(vec![7; 1000], MIB)));
        assert_eq!(peer.outcome().await, (1, 0));
        let mut data = Vec::new();
        peer.stream.read_to_end(&mut data).await.unwrap();
        assert_eq!(data, [7; 1000], "and nothing in the place of the rest");
    });
    assert!(matches!(served.await, Err(ServeError::Io(_))));
}

#[tokio::test]
async fn a_stream_that_is_no_socket_takes_nothing_lent() {
    let export = Scripted::new(full_info());
    let served = with_server(&export, ServerOptions::default(), 4096, async |stream| {
        let mut peer = Peer::enter(stream, ReplyStyle::Simple).await;
        peer.send(&request(peer.style, READ, 1, 0, 512)).await;
        export.wait_for(1).await;
        let (_, reply) = export.take();
        assert!(!reply.takes_lent());
        reply.complete(Err(NbdError::Io));
        assert_eq!(peer.outcome().await.0, 1);
    });
    served.await.unwrap();
}
