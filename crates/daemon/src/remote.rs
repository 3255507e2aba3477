//! An NBD export of another machine as the disk of a resource.

use bytes::Bytes;
use holdfast_nbd::{NbdUri, RemoteDisk, RemoteOptions, RemoteRequest};
use holdfast_store::{
    BackingKind, BufferPool, Disk, DiskInfo, DiskOp, EngineKind, ExternalDisk, OpenError,
    OpenErrorKind, Outcome, Ticket,
};
use std::io;
use std::path::Path;
use std::time::Duration;

/// How long a request waits for a server that is away. Shorter than peers wait for a node whose
/// disk does not answer: the disk fails before the node is given up.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Used where the server keeps several coherent.
const CONNECTIONS: usize = 4;

/// The URI, when the place of a disk is one.
pub(crate) fn uri_of(place: &Path) -> Option<NbdUri> {
    place.to_str().filter(|text| is_uri(text))?.parse().ok()
}

/// Whether the place of a disk is a URI and not a path.
pub(crate) fn is_uri(place: &str) -> bool {
    NbdUri::is_scheme_of(place)
}

fn open(uri: NbdUri) -> Result<RemoteDisk, String> {
    let options = RemoteOptions {
        connections: CONNECTIONS,
        timeout: Some(TIMEOUT),
        ..RemoteOptions::new(vec![uri])
    };
    let disk = RemoteDisk::open(options).map_err(|error| error.to_string())?;
    let info = disk.info();
    if info.read_only {
        return Err("it is read-only".to_owned());
    }
    if info.block_size > 4096 {
        return Err(format!("its blocks have {} bytes, more than 4096", info.block_size));
    }
    Ok(disk)
}

/// The size of an export, and its first bytes, at most `count`.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn look(uri: NbdUri, count: usize) -> Result<(u64, Vec<u8>), String> {
    let disk = open(uri)?;
    let size = disk.info().size;
    let block = usize::try_from(disk.info().block_size).unwrap_or(4096);
    let count = usize::try_from(size).unwrap_or(count).min(count) / block * block;
    let mut start = vec![0; count];
    disk.read_at(&mut start, 0).map_err(|error| error.to_string())?;
    Ok((size, start))
}

/// Opens an export as a disk.
///
/// # Errors
/// When it cannot be reached now, or not be used.
pub(crate) fn open_disk(
    path: &Path,
    uri: NbdUri,
    max_in_flight: usize,
    pool: &BufferPool,
) -> Result<Disk, OpenError> {
    let fail = |why| OpenError::new(path, OpenErrorKind::Remote(why));
    let disk = open(uri).map_err(fail)?;
    let info = disk.info();
    if info.size < 4096 {
        return Err(OpenError::new(path, OpenErrorKind::TooSmall(info.size)));
    }
    let info = DiskInfo {
        path: Some(path.to_owned()),
        kind: BackingKind::Remote,
        engine: EngineKind::External,
        size: info.size,
        read_only: false,
        direct: false,
        block_size: info.block_size.max(1),
        discard: info.can_trim,
        discard_zeroes: false,
        // How long the server takes is not known.
        fast_zeroes: false,
        rotational: Some(info.rotational),
        volatile_cache: Some(true),
        notes: Vec::new(),
    };
    Disk::external(Box::new(Export { disk }), info, max_in_flight, pool)
        .map_err(|error| fail(error.to_string()))
}

struct Export {
    disk: RemoteDisk,
}

impl ExternalDisk for Export {
    fn submit(&mut self, request: DiskOp, ticket: Ticket) {
        let is_read = matches!(request, DiskOp::Read { .. });
        let request = match request {
            DiskOp::Read { range, holes: _ } => RemoteRequest::Read { range },
            DiskOp::Write { range, data, fua } => {
                RemoteRequest::Write { offset: range.offset, data, fua }
            }
            DiskOp::Flush => RemoteRequest::Flush,
            DiskOp::Discard { range } => RemoteRequest::Trim { range },
            DiskOp::WriteZeroes { range, unmap, fua } => {
                RemoteRequest::WriteZeroes { range, may_unmap: unmap, fua }
            }
        };
        self.disk.submit(request, move |outcome| {
            let outcome = outcome.map_err(io::Error::from);
            ticket.complete(outcome.map(|data: Bytes| match is_read {
                true => Outcome::Data(data),
                false => Outcome::Done,
            }));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::uri_of;
    use std::path::Path;

    #[test]
    fn paths_are_no_uris() {
        for uri in ["nbd://h/x", "NBDS://h/", "nbd+unix:///x?socket=/s", "nbds+unix:///?socket=/s"]
        {
            assert!(uri_of(Path::new(uri)).is_some(), "{uri}");
        }
        for path in ["/dev/sdx", "nbd:/x", "/nbd://h/x", "http://h/x", "nbd://", "nbd+unix:///x"] {
            let is_host = path == "nbd://";
            assert_eq!(uri_of(Path::new(path)).is_some(), is_host, "{path}");
        }
    }
}
