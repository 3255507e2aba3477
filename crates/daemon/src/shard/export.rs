//! A resource as an NBD export: what it offers, and what it tells of its blocks.

use super::disk::DiskDriver;
use super::resource::Resource;
use holdfast_format::SparseBitmap;
use holdfast_nbd::{
    ContextSet, ContextStatus, Export, ExportInfo, Extent, PeerAddress, Reply, ReplyData, Request,
    RequestKind, ShutdownHandle,
};
use holdfast_units::{BLOCK_SIZE, ByteRange, NodeId};
use std::rc::Rc;

/// The most extents in one answer about a context.
const MAX_EXTENTS: usize = 1024;
/// All that is looked at for one answer about allocation.
const MAX_STATUS: u64 = 1 << 30;

/// What clients have written since this node became Primary.
const CHANGED: &str = "x-holdfast:changed";
/// The same under a name that no other time has: it ends with when that was.
const CHANGED_SINCE: &str = "x-holdfast:changed-since:";
/// What a peer lacks; its name follows.
const OUT_OF_SYNC: &str = "x-holdfast:out-of-sync:";

/// What a metadata context of an export is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Topic {
    Allocation,
    Changed,
    OutOfSync(NodeId),
}

/// What one connection has been told of a resource.
struct Offer {
    info: ExportInfo,
    /// By the index of the context.
    topics: Vec<Topic>,
}

impl Offer {
    fn of(name: &str, resource: &Resource) -> Self {
        let mut info = ExportInfo::new(name, resource.size());
        info.can_trim = true;
        info.can_zero = true;
        info.can_fast_zero = true;
        info.can_cache = true;
        info.can_multi_conn = true;
        info.can_block_status = true;
        let mut topics = vec![Topic::Allocation];
        if let Some(since) = resource.changes_since() {
            topics.extend([Topic::Changed, Topic::Changed]);
            info.contexts.extend([CHANGED.to_owned(), format!("{CHANGED_SINCE}{since}")]);
        }
        for (peer, name) in resource.peer_names() {
            topics.push(Topic::OutOfSync(peer));
            info.contexts.push(format!("{OUT_OF_SYNC}{name}"));
        }
        Self { info, topics }
    }
}

/// A resource as export of one connection.
pub(super) struct NbdExport {
    offer: Offer,
    resource: Rc<Resource>,
    number: u64,
}

impl NbdExport {
    pub(super) fn describe(name: &str, resource: &Resource) -> ExportInfo {
        Offer::of(name, resource).info
    }

    pub(super) fn open(
        name: &str,
        resource: Rc<Resource>,
        client: PeerAddress,
        end: ShutdownHandle,
    ) -> Self {
        let offer = Offer::of(name, &resource);
        let number = resource.connection_opened(client, end);
        Self { offer, resource, number }
    }

    /// What each context that was asked for says.
    fn status(&self, asked: ContextSet, range: ByteRange) -> ReplyData {
        let tell = |context: usize| {
            let topic = self.offer.topics.get(context);
            let extents = topic.map_or_else(Vec::new, |topic| self.resource.extents(*topic, range));
            ContextStatus { context, extents }
        };
        ReplyData::Status(asked.iter().map(tell).collect())
    }
}

impl Export for NbdExport {
    fn info(&self) -> ExportInfo {
        self.offer.info.clone()
    }

    fn size(&self) -> u64 {
        // It may have grown since the connection was made.
        self.resource.size()
    }

    fn submit(&self, request: Request, reply: Reply) {
        match request.kind {
            RequestKind::BlockStatus => {
                reply.complete(Ok(self.status(request.contexts, request.range)));
            }
            _ => self.resource.request(request, reply),
        }
    }

    fn batch_submitted(&self) {
        self.resource.finish();
    }
}

impl Drop for NbdExport {
    fn drop(&mut self) {
        self.resource.connection_closed(self.number);
    }
}

/// Which parts of a range hold data, as far as the local disk knows; `None` without good data here.
pub(super) fn allocation(range: ByteRange, disk: Option<&DiskDriver>) -> Vec<Extent> {
    let looked = ByteRange::new(range.offset, range.len.min(MAX_STATUS));
    let parts = disk.and_then(|disk| disk.allocation(looked, MAX_EXTENTS));
    match parts {
        Some(parts) if !parts.is_empty() => parts
            .into_iter()
            .map(|(len, data)| if data { Extent::data(len) } else { Extent::hole(len) })
            .collect(),
        _ => vec![Extent::data(range.len)],
    }
}

/// Which blocks of a range have their bits set, in whole blocks from the start of the range on.
pub(super) fn set_bits(range: ByteRange, bits: &SparseBitmap) -> Vec<Extent> {
    let (mut extents, mut at) = (Vec::new(), range.offset);
    while at < range.end() && extents.len() < MAX_EXTENTS {
        let block = at / BLOCK_SIZE;
        let set = bits.get(block);
        let next = if set { bits.next_clear(block) } else { bits.next_set(block) };
        let end = next.map_or(range.end(), |block| (block * BLOCK_SIZE).min(range.end()));
        extents.push(Extent::dirty(end - at, set));
        at = end;
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_told_from_the_start_of_the_range_to_its_end() {
        let mut bits = SparseBitmap::new(100);
        bits.set_range(3..5);
        bits.set_range(99..100);
        let told = |offset, len| set_bits(ByteRange::new(offset, len), &bits);
        let (clean, dirty) = (|len| Extent::dirty(len, false), |len| Extent::dirty(len, true));
        let all = [clean(3 * 4096), dirty(2 * 4096), clean(94 * 4096), dirty(4096)];
        assert_eq!(told(0, 100 * 4096), all);
        assert_eq!(told(4 * 4096 + 10, 5000), [dirty(4086), clean(914)]);
        assert_eq!(told(99 * 4096 + 1, 1), [dirty(1)]);
        for block in (0..5000).step_by(2) {
            bits.resize(5000, false);
            bits.set_range(block..block + 1);
        }
        let told = set_bits(ByteRange::new(0, 5000 * 4096), &bits);
        assert_eq!(told.len(), MAX_EXTENTS);
    }
}
