//! A journal that nobody uses, to read.

use super::cursors::{cursors_of, read_cursors};
use super::number_of;
use super::{CURSORS, Files, GIVEN_UP, LogError, RESCUED, Segments, place};
use crate::recover::{Found, Reading, recover};
use crate::scan::ReadSegments;
use crate::ship::FOLLOWING;
use holdfast_format::journal::{Cursors, Following};
use holdfast_format::{BLOCK_LEN, BlockError, ReadFailed};
use holdfast_units::ResourceId;
use std::io;
use std::path::Path;

/// A journal that is read without changing anything.
pub struct Offline {
    files: Box<dyn Files + Send>,
    resource: ResourceId,
    cursors: Cursors,
    found: Found,
}

impl Offline {
    /// Reads a journal; nobody else can use it until this is gone.
    ///
    /// # Errors
    /// [`LogError`]; with `WouldBlock` somebody uses it, with `NotFound` there is none.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        Self::read(place::open(path, true)?)
    }

    /// Reads the journal of a follower that is in use; it may take more meanwhile, and give up what
    /// nobody needs. Of what is here only [`Self::following`] says whether it replays.
    ///
    /// # Errors
    /// As [`Self::open`], but for `WouldBlock`.
    pub fn open_shared(path: &Path) -> Result<Self, LogError> {
        Self::read(place::open(path, false)?)
    }

    fn read(files: Box<dyn Files + Send>) -> Result<Self, LogError> {
        let names = files.list()?;
        if names.iter().any(|name| name == GIVEN_UP) || !names.iter().any(|name| name == CURSORS) {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        let blocks = read_cursors(&files)?;
        let nobody = ResourceId::default();
        let owner = |(copy, block)| match Cursors::decode(block, nobody, copy) {
            Err(BlockError::Resource { found, .. }) => Some(found),
            _ => None,
        };
        let resource = (0..).zip(&blocks).find_map(owner).unwrap_or(nobody);
        let mut cursors = cursors_of(&blocks, resource).map_err(LogError::Cursors)?;
        cursors.switches.bypassed |= names.iter().any(|name| name == RESCUED);
        let numbers: Vec<u64> = names.iter().filter_map(|n| number_of(n, "segment-")).collect();
        let reader = Segments(&files);
        let reading = Reading::NotWrittenBack;
        let found =
            recover(&reader, resource, &numbers, &cursors, reading, None, &mut |_, _, _| {})?;
        Ok(Self { files, resource, cursors, found })
    }

    /// Whose journal it is.
    #[must_use]
    pub const fn resource(&self) -> ResourceId {
        self.resource
    }

    /// The cursors. They say so, too, when a journal that had failed was being rescued.
    #[must_use]
    pub const fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    /// What the disk holds, if this node follows or did so last. Read anew each time.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub fn following(&self) -> io::Result<Option<Following>> {
        if !self.files.list()?.iter().any(|name| name == FOLLOWING) {
            return Ok(None);
        }
        let mut copies = [[0; BLOCK_LEN]; 2];
        for (index, copy) in (0..).zip(&mut copies) {
            self.files.read(FOLLOWING, index * BLOCK_LEN as u64, copy)?;
        }
        let newest = Following::newest([&copies[0], &copies[1]], self.resource);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "its state is damaged");
        newest.map(Some).ok_or_else(damaged)
    }

    /// What of it counts.
    #[must_use]
    pub const fn found(&self) -> &Found {
        &self.found
    }
}

impl ReadSegments for Offline {
    fn read_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<usize, ReadFailed> {
        Segments(&self.files).read_segment(number, offset, buf)
    }
}
