//! Objects in a store that speaks S3.

use super::{Store, Version};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutResult, UpdateVersion,
};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::runtime::{Builder, Runtime};

/// A bucket, or a part of one. Credentials and region come from the environment (`AWS_...`), or
/// from the machine that this runs on.
pub struct BucketStore {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Runtime,
}

impl BucketStore {
    /// Uses `s3://BUCKET/PREFIX`.
    ///
    /// # Errors
    /// When that is no such URL, or the environment has not what is needed.
    pub fn open(url: &str) -> io::Result<Self> {
        let rest = url.strip_prefix("s3://").ok_or(ErrorKind::InvalidInput)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let s3 = AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(failed)?;
        Self::over(Arc::new(s3), prefix)
    }

    /// Uses what is below `prefix` of any store of objects.
    ///
    /// # Errors
    /// When no runtime can be made for it.
    pub fn over(inner: Arc<dyn ObjectStore>, prefix: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { inner, prefix: Path::from(prefix), runtime })
    }

    fn path(&self, name: &str) -> Path {
        let parts = name.split('/').filter(|part| !part.is_empty());
        parts.fold(self.prefix.clone(), Path::join)
    }

    /// The name of an object, without the prefix.
    fn name(&self, path: &Path) -> String {
        let parts = path.prefix_match(&self.prefix).into_iter().flatten();
        parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/")
    }
}

impl std::fmt::Debug for BucketStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BucketStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn failed(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ErrorKind::PermissionDenied
        }
        _ => ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn absent<T>(result: Result<T, Error>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Both tags of a version, as one text.
fn version_of(e_tag: Option<String>, version: Option<String>) -> Version {
    Version(format!("{}\n{}", e_tag.unwrap_or_default(), version.unwrap_or_default()))
}

fn update_of(version: &Version) -> UpdateVersion {
    let (e_tag, version) = version.0.split_once('\n').unwrap_or((&version.0, ""));
    let known = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    UpdateVersion { e_tag: known(e_tag), version: known(version) }
}

impl Store for BucketStore {
    fn get(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        Ok(self.get_versioned(name, max)?.map(|(bytes, _)| bytes))
    }

    fn len_of(&self, name: &str) -> io::Result<Option<u64>> {
        let path = self.path(name);
        let found = self.runtime.block_on(self.inner.head(&path));
        Ok(absent(found)?.map(|meta| meta.size))
    }

    fn put(&self, name: &str, bytes: &Bytes) -> io::Result<()> {
        let path = self.path(name);
        let put = self.inner.put(&path, bytes.clone().into());
        self.runtime.block_on(put).map(drop).map_err(failed)
    }

    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>> {
        let path = self.path(name);
        self.runtime.block_on(async {
            let Some(found) = absent(self.inner.get(&path).await)? else { return Ok(None) };
            if found.meta.size > max {
                let why = "it is longer than it can be";
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
            let version = version_of(found.meta.e_tag.clone(), found.meta.version.clone());
            Ok(Some((found.bytes().await.map_err(failed)?, version)))
        })
    }

    fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        expected: Option<&Version>,
    ) -> io::Result<Option<Version>> {
        let path = self.path(name);
        let mode = expected.map_or(PutMode::Create, |v| PutMode::Update(update_of(v)));
        let put = self.inner.put_opts(&path, bytes.clone().into(), PutOptions::from(mode));
        match self.runtime.block_on(put) {
            Ok(PutResult { e_tag, version, .. }) => Ok(Some(version_of(e_tag, version))),
            Err(
                Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. },
            ) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        absent(self.runtime.block_on(self.inner.delete(&path))).map(drop)
    }

    fn put_at(&self, name: &str) -> io::Result<Option<SystemTime>> {
        let path = self.path(name);
        let found = self.runtime.block_on(self.inner.head(&path));
        Ok(absent(found)?.map(|meta| meta.last_modified.into()))
    }

    fn list(
        &self,
        prefix: &str,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let path = self.path(prefix);
        self.runtime.block_on(async {
            let mut found = self.inner.list(Some(&path));
            while let Some(meta) = found.try_next().await.map_err(failed)? {
                visit(&self.name(&meta.location), meta.size)?;
            }
            Ok(())
        })
    }

    fn archives(&self) -> io::Result<Vec<String>> {
        let listed = self.inner.list_with_delimiter(Some(&self.prefix));
        let found = self.runtime.block_on(listed).map_err(failed)?;
        Ok(found.common_prefixes.iter().map(|path| self.name(path)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::BucketStore;
    use crate::store::Store;
    use bytes::Bytes;
    use object_store::memory::InMemory;
    use std::sync::Arc;

    #[test]
    fn objects_come_whole_and_are_replaced_by_who_knows_them() {
        let store = BucketStore::over(Arc::new(InMemory::new()), "some/where").unwrap();
        assert_eq!(store.get("r/x/1", 10).unwrap(), None);
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"second"));
        store.put("r/x/1", &one).unwrap();
        store.put("r/x/1", &two).unwrap();
        store.put("r/y", &one).unwrap();
        assert_eq!(store.get("r/x/1", 10).unwrap(), Some(two.clone()));
        assert!(store.get("r/x/1", 5).is_err(), "too long");
        assert_eq!(store.len_of("r/x/1").unwrap(), Some(6));
        let mut names = Vec::new();
        store
            .list("r/", &mut |name, len| {
                names.push((name.to_owned(), len));
                Ok(())
            })
            .unwrap();
        names.sort();
        assert_eq!(names, [("r/x/1".into(), 6), ("r/y".into(), 3)]);
        store.remove("r/x/1").unwrap();
        store.remove("r/x/1").unwrap();
        let first = store.replace("r/m", &one, None).unwrap().unwrap();
        assert_eq!(store.replace("r/m", &two, None).unwrap(), None, "it is there by now");
        let second = store.replace("r/m", &two, Some(&first)).unwrap().unwrap();
        assert_eq!(store.replace("r/m", &one, Some(&first)).unwrap(), None);
        assert_eq!(store.get_versioned("r/m", 10).unwrap(), Some((two, second)));
        assert_eq!(store.archives().unwrap(), ["r"]);
    }
}
