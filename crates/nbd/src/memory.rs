use crate::codec::Extent;
use crate::{
    ClientInfo, Export, ExportInfo, ExportSummary, Exports, HeapBuffers, OpenRefusal,
    PayloadBuffers, ReadChunk, Reply, ReplyData, Request, RequestKind,
};
use holdfast_units::ByteRange;
use std::cell::RefCell;
use std::rc::Rc;

/// Memory is taken and given back in pieces of this size.
const PIECE: usize = 64 << 10;

/// Nothing where nothing was written.
type Piece = Option<Box<[u8]>>;

/// An export of memory: everything is forgotten when it is dropped. Takes memory only for what
/// was written. For tests and trials.
#[derive(Clone)]
pub struct MemoryExport {
    info: ExportInfo,
    pieces: Rc<RefCell<Vec<Piece>>>,
    buffers: HeapBuffers,
}

impl MemoryExport {
    /// `size` zero bytes that can do everything an export can.
    ///
    /// # Panics
    /// When `size` needs more pieces than memory can address.
    #[must_use]
    pub fn new(name: &str, size: u64) -> Self {
        let mut info = ExportInfo::new(name, size);
        info.description = "memory".to_owned();
        info.can_trim = true;
        info.can_zero = true;
        info.can_fast_zero = true;
        info.can_cache = true;
        info.can_multi_conn = true;
        info.can_block_status = true;
        Self::with_info(info)
    }

    /// Zero bytes with other abilities, for tests of clients.
    ///
    /// # Panics
    /// When the size needs more pieces than memory can address.
    #[must_use]
    pub fn with_info(info: ExportInfo) -> Self {
        let count = usize::try_from(info.size.div_ceil(PIECE as u64))
            .expect("the size of memory fits the address space");
        let pieces = Rc::new(RefCell::new(vec![None; count]));
        Self { info, pieces, buffers: HeapBuffers::default() }
    }

    fn read(&self, range: ByteRange) -> ReplyData {
        let pieces = self.pieces.borrow();
        let spans: Vec<_> = spans(range).collect();
        if spans.iter().all(|span| pieces[span.piece].is_none()) {
            return ReplyData::ReadChunks(vec![ReadChunk::Zeroes(range.len)]);
        }
        let mut buf = self.buffers.get(spans.iter().map(|span| span.end - span.start).sum());
        let mut data = buf.bytes_mut();
        for span in spans {
            let (head, rest) = data.split_at_mut(span.end - span.start);
            match &pieces[span.piece] {
                Some(piece) => head.copy_from_slice(&piece[span.start..span.end]),
                None => head.fill(0),
            }
            data = rest;
        }
        ReplyData::Read(buf.freeze())
    }

    fn write(&self, range: ByteRange, mut payload: &[u8]) {
        let mut pieces = self.pieces.borrow_mut();
        for span in spans(range) {
            let piece = pieces[span.piece].get_or_insert_with(|| vec![0; PIECE].into());
            let (head, rest) = payload.split_at(span.end - span.start);
            piece[span.start..span.end].copy_from_slice(head);
            payload = rest;
        }
    }

    fn zero(&self, range: ByteRange, no_hole: bool) {
        let mut pieces = self.pieces.borrow_mut();
        for span in spans(range) {
            let piece = &mut pieces[span.piece];
            if no_hole {
                piece.get_or_insert_with(|| vec![0; PIECE].into())[span.start..span.end].fill(0);
            } else if span.end - span.start == PIECE {
                *piece = None;
            } else if let Some(piece) = piece {
                piece[span.start..span.end].fill(0);
            }
        }
    }

    fn extents(&self, range: ByteRange) -> Vec<Extent> {
        let pieces = self.pieces.borrow();
        let mut extents: Vec<Extent> = Vec::new();
        for span in spans(range) {
            let len = (span.end - span.start) as u64;
            let next =
                if pieces[span.piece].is_some() { Extent::data(len) } else { Extent::hole(len) };
            match extents.last_mut() {
                Some(last) if last.flags == next.flags => last.len += len,
                _ => extents.push(next),
            }
        }
        extents
    }
}

/// A part of one piece.
struct Span {
    piece: usize,
    start: usize,
    end: usize,
}

fn spans(range: ByteRange) -> impl Iterator<Item = Span> {
    let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let size = PIECE as u64;
    (range.offset / size..range.end().div_ceil(size)).map(move |piece| Span {
        piece: index(piece),
        start: index(range.offset.saturating_sub(piece * size)),
        end: index((range.end() - piece * size).min(size)),
    })
}

impl Export for MemoryExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn submit(&self, request: Request, reply: Reply) {
        let range = request.range;
        let answer = match request.kind {
            RequestKind::Read => self.read(range),
            RequestKind::BlockStatus => ReplyData::allocation(self.extents(range)),
            RequestKind::Write => {
                self.write(range, &request.payload);
                ReplyData::Done
            }
            RequestKind::Trim | RequestKind::WriteZeroes => {
                self.zero(range, request.no_hole);
                ReplyData::Done
            }
            RequestKind::Flush | RequestKind::Cache | RequestKind::Resize => ReplyData::Done,
        };
        reply.complete(Ok(answer));
    }
}

/// A server's only export; also the default one.
pub struct SingleExport<E>(pub E);

impl<E: Export + Clone + 'static> SingleExport<E> {
    fn find(&self, name: &str) -> Result<&E, OpenRefusal> {
        if name.is_empty() || self.0.info().name == name {
            Ok(&self.0)
        } else {
            Err(OpenRefusal::unknown(name))
        }
    }
}

impl<E: Export + Clone + 'static> Exports for SingleExport<E> {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportSummary> {
        let info = self.0.info();
        vec![ExportSummary { name: info.name, description: info.description }]
    }

    fn info(&self, name: &str, _client: &ClientInfo) -> Result<ExportInfo, OpenRefusal> {
        self.find(name).map(Export::info)
    }

    fn open(&self, name: &str, _client: &ClientInfo) -> Result<Rc<dyn Export>, OpenRefusal> {
        Ok(Rc::new(self.find(name)?.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::{MemoryExport, PIECE};
    use crate::codec::Extent;
    use crate::{ReadChunk, ReplyData};
    use bytes::Bytes;
    use holdfast_units::ByteRange;

    fn bytes(data: ReplyData) -> Vec<u8> {
        match data {
            ReplyData::Read(data) => data.to_vec(),
            ReplyData::ReadChunks(chunks) => {
                let zeroes = |chunk: &ReadChunk| (0..chunk.len()).map(|_| 0).collect::<Vec<_>>();
                chunks.iter().flat_map(zeroes).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn across_pieces_and_holes() {
        let memory = MemoryExport::new("m", 4 * PIECE as u64);
        let seam = ByteRange::new(PIECE as u64 - 2, 5);
        memory.write(seam, b"abcde");
        assert_eq!(bytes(memory.read(seam)), b"abcde");
        let whole = ByteRange::new(0, 4 * PIECE as u64);
        let (data, hole) = (Extent::data(2 * PIECE as u64), Extent::hole(2 * PIECE as u64));
        assert_eq!(memory.extents(whole), [data, hole]);
        memory.zero(ByteRange::new(0, PIECE as u64 + 1), false);
        assert_eq!(bytes(memory.read(seam)), b"\0\0\0de");
        assert_eq!(memory.extents(whole)[0], Extent::hole(PIECE as u64));
        memory.zero(ByteRange::new(0, 10), true);
        assert_eq!(memory.extents(ByteRange::new(5, 1)), [Extent::data(1)]);
        let far = ByteRange::new(3 * PIECE as u64, 10);
        assert_eq!(memory.read(far), ReplyData::ReadChunks(vec![ReadChunk::Zeroes(10)]));
        memory.write(far, &Bytes::from_static(b"0123456789"));
        assert_eq!(bytes(memory.read(far)), b"0123456789");
    }
}
