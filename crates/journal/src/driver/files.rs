//! What a journal needs of the place that holds its files.

use bytes::Bytes;
use std::fs::File;
use std::io;

/// The files of a journal: those of a directory, or what is the same on a device.
pub trait Files {
    /// The names of all files in it.
    ///
    /// # Errors
    /// When it cannot be listed.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes sure that there is a file of this length: preallocated, and written once with zeroes
    /// where it is new. Neither file nor name need be durable.
    ///
    /// # Errors
    /// When it cannot be made.
    fn create(&mut self, name: &str, len: u64) -> io::Result<()>;

    /// As [`Self::create`] of a name that is new, but it is made, durable, at another moment or on another
    /// thread by what is returned; until that has worked the file holds anything, and where it failed
    /// the file is to be removed. Nothing, where that cannot be done; then there is no such file.
    ///
    /// # Errors
    /// As [`Self::create`].
    fn create_apart(&mut self, _name: &str, _len: u64) -> io::Result<Option<SyncApart>> {
        Ok(None)
    }

    /// Writes parts one after the other. All of it, or an error.
    ///
    /// # Errors
    /// When not all could be written.
    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()>;

    /// Reads; how many bytes there were, less than asked for only at the end of the file.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Says that this will be read soon, in small pieces. Only advice.
    fn expect(&self, _name: &str, _offset: u64, _len: u64) {}

    /// As [`Self::write`], durable in the same step where that can be done; whether it is.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool>;

    /// The file, for writes around the page cache that are durable when they end, and where it begins
    /// there. Nothing, where that cannot be done.
    ///
    /// # Errors
    /// When the process can open no more files.
    fn direct_file(&self, _name: &str) -> io::Result<Option<(File, u64)>> {
        Ok(None)
    }

    /// Makes the data of a file durable.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// As [`Self::sync`], for another moment or thread: what was written when this was called is
    /// durable when what it returns has worked. Nothing, where it is durable already.
    ///
    /// # Errors
    /// As [`Self::sync`].
    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        self.sync(name).map(|()| None)
    }

    /// Gives a file another name, which no file has.
    ///
    /// # Errors
    /// When that did not work.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Takes a file away.
    ///
    /// # Errors
    /// When that did not work.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// A sync that is still to be made: see [`Files::sync_apart`].
pub type SyncApart = Box<dyn FnOnce() -> io::Result<()> + Send>;

impl<F: Files + ?Sized> Files for Box<F> {
    fn list(&self) -> io::Result<Vec<String>> {
        (**self).list()
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        (**self).create(name, len)
    }

    fn create_apart(&mut self, name: &str, len: u64) -> io::Result<Option<SyncApart>> {
        (**self).create_apart(name, len)
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        (**self).write(name, offset, parts)
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        (**self).write_through(name, offset, parts)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (**self).read(name, offset, buf)
    }

    fn expect(&self, name: &str, offset: u64, len: u64) {
        (**self).expect(name, offset, len);
    }

    fn direct_file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        (**self).direct_file(name)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        (**self).sync(name)
    }

    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        (**self).sync_apart(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        (**self).rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        (**self).remove(name)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        (**self).sync_dir()
    }
}
