//! Reads: by the index, from the journal, the disk, or nowhere.

use super::JournalCallError;
use super::worker::{Flight, Worker};
use bytes::Bytes;
use holdfast_format::journal::Compression;
use holdfast_journal::{Part, PartSource, RunPiece};
use holdfast_store::{AlignedBuf, DiskOp, Outcome, Ticket};
use holdfast_units::{ByteRange, MAX_REQUEST};
use rustix::io::Errno;
use std::io;
use tokio::sync::oneshot;

/// Who gets what is read.
pub(super) enum Reader {
    Client(Ticket),
    Call(usize, oneshot::Sender<Result<Bytes, JournalCallError>>),
}

impl Reader {
    pub(super) fn answer(self, result: io::Result<Outcome>) {
        match self {
            Self::Client(ticket) => ticket.complete(result),
            Self::Call(len, done) => {
                let result = result.map(|outcome| match outcome {
                    Outcome::Data(data) => data,
                    Outcome::Zeroes | Outcome::Done | Outcome::Logged(_) => {
                        Bytes::from(vec![0; len])
                    }
                });
                // Who asked may be gone.
                let _ = done.send(result.map_err(Into::into));
            }
        }
    }
}

/// A read whose parts come from several places.
pub(super) struct Gather {
    buffer: AlignedBuf,
    /// Parts that are under way.
    left: usize,
    failed: Option<io::Error>,
    reader: Reader,
}

impl Worker {
    /// A read of a call.
    pub(super) fn read_for(
        &mut self,
        range: ByteRange,
        done: oneshot::Sender<Result<Bytes, JournalCallError>>,
    ) {
        let fits = range.len <= MAX_REQUEST && range.is_aligned();
        match usize::try_from(range.len) {
            Ok(len) if fits && self.broken.is_none() => {
                self.read(range, false, Reader::Call(len, done));
            }
            _ => drop(done.send(Err(io::Error::from(io::ErrorKind::InvalidInput).into()))),
        }
    }

    /// What is read, when memory has it in one piece.
    pub(super) fn read_from_memory(&mut self, range: ByteRange, holes: bool) -> Option<Outcome> {
        match self.log.journal().lookup(range)[..] {
            [Part { source: PartSource::Zeroes, .. }] if holes => Some(Outcome::Zeroes),
            [Part { source: PartSource::Journal { place, skip }, .. }] => {
                self.cached(&RunPiece { range, place, skip }).map(Outcome::Data)
            }
            _ => None,
        }
    }

    /// Starts a read.
    pub(super) fn read(&mut self, range: ByteRange, holes: bool, reader: Reader) {
        let parts = self.log.journal().lookup(range);
        if let [Part { source: PartSource::Disk, .. }] = parts[..] {
            return self.fly(Flight::Read(reader), DiskOp::Read { range, holes });
        }
        if holes && parts.iter().all(|part| part.source == PartSource::Zeroes) {
            return reader.answer(Ok(Outcome::Zeroes));
        }
        if let [Part { source: PartSource::Journal { place, skip }, .. }] = parts[..] {
            let piece = RunPiece { range, place, skip };
            return reader.answer(self.piece(&piece).map(Outcome::Data));
        }
        self.gather(range, &parts, reader);
    }

    fn gather(&mut self, range: ByteRange, parts: &[Part], reader: Reader) {
        let Ok(len) = usize::try_from(range.len) else {
            return reader.answer(Err(io::ErrorKind::InvalidInput.into()));
        };
        let mut buffer = self.pool.get(len);
        let mut from_disk = Vec::new();
        for part in parts {
            let within = within(range, part.range);
            match part.source {
                PartSource::Disk => from_disk.push(part.range),
                PartSource::Zeroes => buffer[within].fill(0),
                PartSource::Journal { place, skip } => {
                    match self.piece(&RunPiece { range: part.range, place, skip }) {
                        Ok(data) => buffer[within].copy_from_slice(&data),
                        Err(error) => return reader.answer(Err(error)),
                    }
                }
            }
        }
        if from_disk.is_empty() {
            return reader.answer(Ok(Outcome::Data(buffer.freeze())));
        }
        let id = self.next_id();
        let gather = Gather { buffer, left: from_disk.len(), failed: None, reader };
        self.gathers.insert(id, gather);
        for part in from_disk {
            let flight = Flight::Part { gather: id, at: part.offset - range.offset };
            self.fly(flight, DiskOp::Read { range: part, holes: false });
        }
    }

    /// A part has come from the disk.
    pub(super) fn part_read(&mut self, id: u64, at: u64, result: io::Result<Outcome>) {
        let Some(gather) = self.gathers.get_mut(&id) else { return };
        match (result, usize::try_from(at)) {
            (Ok(Outcome::Data(data)), Ok(at)) => {
                gather.buffer[at..at + data.len()].copy_from_slice(&data);
            }
            (Err(error), _) => gather.failed = Some(error),
            _ => gather.failed = Some(Errno::IO.into()),
        }
        gather.left -= 1;
        if gather.left == 0
            && let Some(gather) = self.gathers.remove(&id)
        {
            let data = || Ok(Outcome::Data(gather.buffer.freeze()));
            gather.reader.answer(gather.failed.map_or_else(data, Err));
        }
    }

    /// The data of a piece of a record: from memory, or from its segment, verified.
    pub(super) fn piece(&mut self, piece: &RunPiece) -> io::Result<Bytes> {
        if let Some(data) = self.cached(piece) {
            return Ok(data);
        }
        if piece.place.compression == Compression::None {
            return self.log.piece(piece).map_err(io::Error::other);
        }
        let range = ByteRange::new(piece.range.offset - piece.skip, piece.place.plain_len);
        let whole = RunPiece { range, skip: 0, ..*piece };
        let plain = self.log.piece(&whole).map_err(io::Error::other)?;
        self.cache.unpacked(&piece.place, plain.clone());
        part_of(&plain, piece).ok_or_else(|| Errno::IO.into())
    }

    fn cached(&mut self, piece: &RunPiece) -> Option<Bytes> {
        part_of(&self.cache.get(&piece.place)?, piece)
    }
}

/// A piece of a whole payload.
fn part_of(payload: &Bytes, piece: &RunPiece) -> Option<Bytes> {
    let skip = usize::try_from(piece.skip).ok()?;
    let end = skip.checked_add(usize::try_from(piece.range.len).ok()?)?;
    (end <= payload.len()).then(|| payload.slice(skip..end))
}

/// Where a part is within the whole, whose length is a `usize`.
fn within(whole: ByteRange, part: ByteRange) -> std::ops::Range<usize> {
    let at = |offset: u64| usize::try_from(offset - whole.offset).unwrap_or(usize::MAX);
    at(part.offset)..at(part.end())
}
