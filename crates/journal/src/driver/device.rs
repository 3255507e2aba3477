//! A journal on a device of its own, or in one file of a fixed size, instead of a directory.
//!
//! What a directory does with names, a table does that is written as a whole, in two copies in turn:
//! [`Files::sync_dir`] writes it. Files lie in one piece each. Room that is given up is used again
//! only when the table without it is durable, and a new file is zeroes: nothing of an earlier use,
//! whosever, is ever found in it.

use super::{Files, SyncApart};
use bytes::Bytes;
use holdfast_format::journal::{
    DEVICE_DATA_AT, DEVICE_TABLE_LEN, DeviceTable, MAX_DEVICE_FILES, MAX_DEVICE_NAME,
};
use holdfast_format::{BLOCK_LEN, BlockError, MAX_DEVICE_SIZE};
use holdfast_units::ByteRange;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};

/// What a device has beside the segments, in bytes: tables, cursors, and room to align them.
const OVERHEAD: u64 = 1 << 20;
/// The most that the segments of a device can take: there are as many as its table has room for, of
/// 64 MiB at most, and a few files beside them.
const MAX_ROOM: u64 = (MAX_DEVICE_FILES as u64 - 8) * (64 << 20);
/// What is as long as this, and longer, begins on a multiple of it.
const LARGE: u64 = 1 << 20;
/// What is zeroed at a time.
const ZEROES: usize = 1 << 20;

/// The bytes of a device.
pub trait Media {
    /// How many there are.
    ///
    /// # Errors
    /// When it does not say.
    fn size(&self) -> io::Result<u64>;

    /// Reads; how many bytes there were, less than asked for only at the end.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes parts one after the other. All of it, or an error.
    ///
    /// # Errors
    /// When not all could be written.
    fn write(&mut self, offset: u64, parts: &[Bytes]) -> io::Result<()>;

    /// As [`Self::write`], durable in the same step where that can be done; whether it is.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn write_through(&mut self, offset: u64, parts: &[Bytes]) -> io::Result<bool>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn sync(&mut self) -> io::Result<()>;

    /// As [`Self::sync`], for another moment or thread; nothing, where all is durable.
    ///
    /// # Errors
    /// As [`Self::sync`].
    fn sync_apart(&mut self) -> io::Result<Option<SyncApart>> {
        self.sync().map(|()| None)
    }

    /// Writes zeroes to a range, durably, at another moment or on another thread, but never after
    /// this is gone; nothing, where that cannot be done.
    ///
    /// # Errors
    /// When it cannot be begun.
    fn zero_apart(&mut self, _range: ByteRange) -> io::Result<Option<SyncApart>> {
        Ok(None)
    }

    /// The file, for writes around the page cache that are durable when they end.
    ///
    /// # Errors
    /// When the process can open no more files.
    fn direct_file(&self) -> io::Result<Option<File>> {
        Ok(None)
    }
}

/// The files of a journal on a device.
pub struct Device<M> {
    media: M,
    table: DeviceTable,
    /// Given up, and still in the table that is durable.
    freed: Vec<ByteRange>,
}

impl<M: Media> Device<M> {
    /// Opens what [`Self::format`] made.
    ///
    /// # Errors
    /// `NotFound` when nothing was ever written there, `InvalidData` when it is something else or
    /// damaged.
    pub fn open(media: M) -> io::Result<Self> {
        let copies = read_copies(&media)?;
        if let Some(mut table) = DeviceTable::newest([&copies[0], &copies[1]]) {
            let len = usable(&media)?;
            if table.size > len {
                let why = format!("it has {len} bytes, and had {}", table.size);
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
            // It may have grown.
            table.size = len;
            return Ok(Self { media, table, freed: Vec::new() });
        }
        let why = |copy: u8| DeviceTable::decode(&copies[usize::from(copy)], copy).err();
        match (why(0), why(1)) {
            (Some(BlockError::Blank), Some(BlockError::Blank)) => Err(ErrorKind::NotFound.into()),
            (Some(BlockError::Blank) | None, Some(error)) | (Some(error), _) => {
                Err(io::Error::new(ErrorKind::InvalidData, error.to_string()))
            }
            (None, None) => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// Makes an empty one of it, durably. Nothing that was there counts any more.
    ///
    /// # Errors
    /// When it cannot be written, or is too short.
    pub fn format(mut media: M) -> io::Result<Self> {
        let size = usable(&media)?;
        if size <= DEVICE_DATA_AT {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is too short"));
        }
        wipe(&mut media)?;
        let table = DeviceTable { sequence: 0, size, files: BTreeMap::new() };
        let mut device = Self { media, table, freed: Vec::new() };
        device.store()?;
        Ok(device)
    }

    /// Ends it: what is there is no journal any more, durably, and [`Self::is_blank`]. Its files must be
    /// of no use.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn wipe(mut self) -> io::Result<()> {
        // While there is a table whoever is interrupted here finds what to do again.
        let end = self.media.size()?;
        let begin = end.saturating_sub(DEVICE_TABLE_LEN);
        self.zero(ByteRange::new(begin, end - begin))?;
        self.media.sync()?;
        wipe(&mut self.media)
    }

    /// Whether there is nothing where its tables would be, nor at its end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_blank(media: &M) -> io::Result<bool> {
        let mut end = vec![0; usize::try_from(DEVICE_TABLE_LEN).unwrap_or(0)];
        media.read(media.size()?.saturating_sub(DEVICE_TABLE_LEN), &mut end)?;
        let [first, second] = read_copies(media)?;
        Ok([first, second, end].iter().flatten().all(|byte| *byte == 0))
    }

    fn range(&self, name: &str) -> io::Result<ByteRange> {
        self.table.files.get(name).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn within(&self, name: &str, offset: u64, len: u64) -> io::Result<u64> {
        let range = self.range(name)?;
        let fits = offset.checked_add(len).is_some_and(|end| end <= range.len);
        if fits {
            Ok(range.offset + offset)
        } else {
            Err(io::Error::new(ErrorKind::InvalidInput, "it ends before that"))
        }
    }

    /// Room in one piece that no file has, also none of the table that is durable.
    fn find_room(&self, len: u64) -> io::Result<ByteRange> {
        let full = || io::Error::from(ErrorKind::StorageFull);
        let mut taken: Vec<ByteRange> = self.table.files.values().copied().collect();
        taken.extend(&self.freed);
        taken.sort_unstable_by_key(|range| range.offset);
        let align = if len >= LARGE { LARGE } else { BLOCK_LEN as u64 };
        let mut at = DEVICE_DATA_AT.next_multiple_of(align);
        for range in &taken {
            if at.checked_add(len).is_some_and(|end| end <= range.offset) {
                break;
            }
            at = at.max(range.end().next_multiple_of(align));
        }
        let end = at.checked_add(len).ok_or_else(full)?;
        if end <= self.table.size { Ok(ByteRange::new(at, len)) } else { Err(full()) }
    }

    /// Gives a new name room, which holds anything yet. Whether it had none.
    fn add(&mut self, name: &str, len: u64) -> io::Result<Option<ByteRange>> {
        let len = len.next_multiple_of(BLOCK_LEN as u64);
        if let Some(range) = self.table.files.get(name) {
            return if range.len >= len { Ok(None) } else { Err(ErrorKind::StorageFull.into()) };
        }
        if self.table.files.len() >= MAX_DEVICE_FILES || name.len() > MAX_DEVICE_NAME {
            return Err(ErrorKind::StorageFull.into());
        }
        let range = match self.find_room(len) {
            Err(_) if !self.freed.is_empty() => {
                self.store()?;
                self.find_room(len)?
            }
            found => found?,
        };
        self.table.files.insert(name.to_owned(), range);
        Ok(Some(range))
    }

    fn zero(&mut self, range: ByteRange) -> io::Result<()> {
        let zeroes = Bytes::from_static(&[0; ZEROES]);
        let mut at = range.offset;
        while at < range.end() {
            let step = usize::try_from(range.end() - at).unwrap_or(ZEROES).min(ZEROES);
            self.media.write(at, &[zeroes.slice(..step)])?;
            at += step as u64;
        }
        Ok(())
    }

    /// Writes the table, durably, over the older copy.
    fn store(&mut self) -> io::Result<()> {
        let next = DeviceTable { sequence: self.table.sequence + 1, ..self.table.clone() };
        let bytes = next.encode().ok_or(ErrorKind::InvalidInput)?;
        let offset = u64::from(next.copy()) * DEVICE_TABLE_LEN;
        if !self.media.write_through(offset, &[Bytes::from(bytes)])? {
            self.media.sync()?;
        }
        self.table = next;
        self.freed.clear();
        Ok(())
    }
}

/// The bytes that segments may take on a device of so many.
#[must_use]
pub const fn device_room(len: u64) -> u64 {
    let room = len.saturating_sub(OVERHEAD);
    if room < MAX_ROOM { room } else { MAX_ROOM }
}

/// The whole blocks of it.
fn usable<M: Media>(media: &M) -> io::Result<u64> {
    Ok((media.size()? / BLOCK_LEN as u64 * BLOCK_LEN as u64).min(MAX_DEVICE_SIZE))
}

fn read_copies<M: Media>(media: &M) -> io::Result<[Vec<u8>; 2]> {
    let read = |copy: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(DEVICE_TABLE_LEN).unwrap_or(0)];
        media.read(copy * DEVICE_TABLE_LEN, &mut bytes)?;
        Ok(bytes)
    };
    Ok([read(0)?, read(1)?])
}

fn wipe<M: Media>(media: &mut M) -> io::Result<()> {
    let zeroes = Bytes::from_static(&[0; 2 * (64 << 10)]);
    media.write(0, &[zeroes])?;
    media.sync()
}

const _: () = assert!(DEVICE_DATA_AT == 2 * (64 << 10));

impl<M: Media> Files for Device<M> {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.table.files.keys().cloned().collect())
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        let Some(range) = self.add(name, len)? else { return Ok(()) };
        let zeroed = self.zero(range);
        if zeroed.is_err() {
            // It is no file of zeroes, and must not become one with the next table.
            self.remove(name)?;
        }
        zeroed
    }

    fn create_apart(&mut self, name: &str, len: u64) -> io::Result<Option<SyncApart>> {
        let Some(range) = self.add(name, len)? else { return Ok(None) };
        let zero = self.media.zero_apart(range);
        if !matches!(zero, Ok(Some(_))) {
            // Nothing was written there.
            self.table.files.remove(name);
        }
        zero
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        let at = self.within(name, offset, len)?;
        self.media.write(at, parts)
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        let len = parts.iter().map(|part| part.len() as u64).sum();
        let at = self.within(name, offset, len)?;
        self.media.write_through(at, parts)
    }

    fn direct_file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let begin = self.range(name)?.offset;
        Ok(self.media.direct_file()?.map(|file| (file, begin)))
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let range = self.range(name)?;
        let left = range.len.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if len == 0 {
            return Ok(0);
        }
        self.media.read(range.offset + offset, &mut buf[..len])
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.range(name)?;
        self.media.sync()
    }

    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        self.range(name)?;
        self.media.sync_apart()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let range = self.range(from)?;
        if self.table.files.contains_key(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.table.files.remove(from);
        self.table.files.insert(to.to_owned(), range);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let range = self.range(name)?;
        self.table.files.remove(name);
        self.freed.push(range);
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.store()
    }
}
