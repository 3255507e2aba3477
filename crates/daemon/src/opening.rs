//! How a link between two nodes begins: what it is about, and whether it is wanted.

use crate::node::Node;
use crate::resource::Resource;
use holdfast_cluster::PinnedNode;
use holdfast_units::{NodeId, ResourceId};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The opening of a data link: the resource, the dialler's number and the number of the node that
/// it means.
pub(crate) struct Opening {
    pub(crate) resource: ResourceId,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

impl Opening {
    const LEN: usize = 18;

    fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.resource.0);
        bytes[16] = self.from.number();
        bytes[17] = self.to.number();
        bytes
    }

    fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[..16]);
        let (from, to) = (NodeId::new(bytes[16])?, NodeId::new(bytes[17])?);
        Some(Self { resource: ResourceId(id), from, to })
    }

    /// The resource, when it is here and both nodes have the same numbers in it.
    pub(crate) fn resource_of(
        &self,
        node: &Node,
        peer: &PinnedNode,
    ) -> Result<Arc<Resource>, &'static str> {
        let resource = node.resource(self.resource).ok_or("the resource is not on this node")?;
        let view = node.view();
        let agreed = view.slot_of(resource.id, peer.uuid) == Some(self.from)
            && view.slot_of(resource.id, node.uuid) == Some(self.to);
        let why = "the two nodes do not agree on the members of the resource";
        agreed.then_some(resource).ok_or(why)
    }
}

/// Says what a link is about, and hears whether it is wanted: `Err` with the reason when not.
pub(crate) async fn open_link<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    opening: &Opening,
) -> io::Result<Result<(), String>> {
    stream.write_all(&opening.encode()).await?;
    stream.flush().await?;
    // One byte with the length of the reason; none when the link is wanted.
    let len = stream.read_u8().await?;
    let mut reason = vec![0; usize::from(len)];
    stream.read_exact(&mut reason).await?;
    let reason = String::from_utf8_lossy(&reason).into_owned();
    Ok(if reason.is_empty() { Ok(()) } else { Err(reason) })
}

/// Hears what a link is about.
pub(crate) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> io::Result<Result<Opening, &'static str>> {
    let mut bytes = [0; Opening::LEN];
    stream.read_exact(&mut bytes).await?;
    Ok(Opening::decode(&bytes).ok_or("the numbers of the nodes cannot be"))
}

/// Tells the dialler that its link is wanted, or why not. What was found, when it is; otherwise the link
/// has been closed.
pub(crate) async fn answer<S: AsyncWrite + Unpin, T>(
    stream: &mut S,
    found: Result<T, &'static str>,
) -> io::Result<Option<T>> {
    let reason = found.as_ref().err().copied().unwrap_or_default();
    let len = u8::try_from(reason.len()).unwrap_or(u8::MAX);
    stream.write_u8(len).await?;
    stream.write_all(&reason.as_bytes()[..usize::from(len)]).await?;
    stream.flush().await?;
    if found.is_err() {
        stream.shutdown().await?;
    }
    Ok(found.ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening() -> Opening {
        let node = |number| NodeId::new(number).unwrap();
        Opening { resource: ResourceId([5; 16]), from: node(3), to: node(1) }
    }

    #[test]
    fn the_opening_of_a_link_reads_back_and_impossible_nodes_are_refused() {
        let bytes = opening().encode();
        let read = Opening::decode(&bytes).unwrap();
        assert_eq!(
            (read.resource, read.from, read.to),
            (ResourceId([5; 16]), opening().from, opening().to)
        );
        for at in [16, 17] {
            let mut bad = bytes;
            bad[at] = 32;
            assert!(Opening::decode(&bad).is_none());
        }
    }

    #[tokio::test]
    async fn the_dialler_hears_whether_the_link_is_wanted_and_reads_nothing_of_it() {
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"\0link").await.unwrap();
        assert_eq!(open_link(&mut near, &opening()).await.unwrap(), Ok(()));
        let mut rest = [0; 4];
        near.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"link");
        far.write_all(b"\x02no").await.unwrap();
        assert_eq!(open_link(&mut near, &opening()).await.unwrap(), Err("no".to_owned()));
        drop(far);
        assert!(open_link(&mut near, &opening()).await.is_err());
    }
}
