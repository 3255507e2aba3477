//! Where objects are kept.

mod directory;
#[cfg(feature = "s3")]
mod object;

pub use directory::DirectoryStore;
#[cfg(feature = "s3")]
pub use object::BucketStore;

use bytes::Bytes;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Which content of an object it was: tells whether somebody else has replaced it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version(pub String);

/// A keeper of objects by name. Names are parts of `[A-Za-z0-9._-]` with `/` between them.
///
/// All of it blocks. Objects come whole or not at all: an interrupted [`Store::put`] leaves no
/// object, or the old one, or the new one.
pub trait Store {
    /// The bytes of an object; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or has more than `max` bytes.
    fn get(&self, name: &str, max: u64) -> io::Result<Option<Bytes>>;

    /// The length of an object in bytes; `None` when there is none.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn len_of(&self, name: &str) -> io::Result<Option<u64>>;

    /// Makes an object of these bytes, in the place of one that there may be; durable when it
    /// returns.
    ///
    /// # Errors
    /// When it is not known to have worked.
    fn put(&self, name: &str, bytes: &Bytes) -> io::Result<()>;

    /// As [`Self::get`], with what [`Self::replace`] wants.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>>;

    /// As [`Self::put`], if the object is still this version, or (`None`) still not there. `None`
    /// when it is not: nothing was changed then.
    ///
    /// # Errors
    /// When it is not known to have worked.
    fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        expected: Option<&Version>,
    ) -> io::Result<Option<Version>>;

    /// Takes an object away; one that is not there already is.
    ///
    /// # Errors
    /// When it may still be there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// When an object was put, by the clock of the store; `None` when it is not there.
    ///
    /// # Errors
    /// When that cannot be told.
    fn put_at(&self, name: &str) -> io::Result<Option<SystemTime>>;

    /// Shows the names, and lengths in bytes, of all objects whose names begin with this prefix,
    /// which ends with a `/`; in any order.
    ///
    /// # Errors
    /// When they cannot be listed, or `visit` fails.
    fn list(
        &self,
        prefix: &str,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()>;

    /// The first parts of names: whose archives there are.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn archives(&self) -> io::Result<Vec<String>>;
}

/// What the places begin with that are in a store that speaks S3: `s3://BUCKET/PREFIX`.
pub const BUCKET_SCHEME: &str = "s3://";

/// Opens the place where archives are: a directory, or part of a bucket. With `create` a directory
/// is made when there is none.
///
/// # Errors
/// When it cannot be used.
pub fn open_store(place: &str, create: bool) -> io::Result<Box<dyn Store + Send>> {
    if place.starts_with(BUCKET_SCHEME) {
        return open_bucket(place);
    }
    let path = Path::new(place);
    let opened = if create { DirectoryStore::create(path) } else { DirectoryStore::open(path) };
    Ok(Box::new(opened?))
}

#[cfg(feature = "s3")]
fn open_bucket(place: &str) -> io::Result<Box<dyn Store + Send>> {
    Ok(Box::new(BucketStore::open(place)?))
}

#[cfg(not(feature = "s3"))]
fn open_bucket(_place: &str) -> io::Result<Box<dyn Store + Send>> {
    let why = "this program was built without S3 (the feature `s3`)";
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

impl Store for Box<dyn Store + Send> {
    fn get(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        (**self).get(name, max)
    }
    fn len_of(&self, name: &str) -> io::Result<Option<u64>> {
        (**self).len_of(name)
    }
    fn put(&self, name: &str, bytes: &Bytes) -> io::Result<()> {
        (**self).put(name, bytes)
    }
    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>> {
        (**self).get_versioned(name, max)
    }
    fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        expected: Option<&Version>,
    ) -> io::Result<Option<Version>> {
        (**self).replace(name, bytes, expected)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        (**self).remove(name)
    }
    fn put_at(&self, name: &str) -> io::Result<Option<SystemTime>> {
        (**self).put_at(name)
    }
    fn list(
        &self,
        prefix: &str,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        (**self).list(prefix, visit)
    }
    fn archives(&self) -> io::Result<Vec<String>> {
        (**self).archives()
    }
}

impl<S: Store + ?Sized> Store for &S {
    fn get(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        (**self).get(name, max)
    }
    fn len_of(&self, name: &str) -> io::Result<Option<u64>> {
        (**self).len_of(name)
    }
    fn put(&self, name: &str, bytes: &Bytes) -> io::Result<()> {
        (**self).put(name, bytes)
    }
    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>> {
        (**self).get_versioned(name, max)
    }
    fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        expected: Option<&Version>,
    ) -> io::Result<Option<Version>> {
        (**self).replace(name, bytes, expected)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        (**self).remove(name)
    }
    fn put_at(&self, name: &str) -> io::Result<Option<SystemTime>> {
        (**self).put_at(name)
    }
    fn list(
        &self,
        prefix: &str,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        (**self).list(prefix, visit)
    }
    fn archives(&self) -> io::Result<Vec<String>> {
        (**self).archives()
    }
}
