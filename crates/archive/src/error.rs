//! What can go wrong with an archive.

use crate::source::SourceError;
use std::io;

/// Why something was not done with an archive. `Display` is a sentence without its full stop.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// An object could not be read or written.
    #[error("object {name} of the archive could not be {what}: {why}")]
    Store {
        /// Its name in the store.
        name: String,
        /// `read`, `written`, ...
        what: &'static str,
        /// What the store says.
        why: io::Error,
    },
    /// An object that the manifest names is not there.
    #[error("object {name} of the archive is missing")]
    Missing {
        /// Its name in the store.
        name: String,
    },
    /// An object is not what was written.
    #[error("object {name} of the archive is damaged: {why}")]
    Damaged {
        /// Its name in the store.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody else writes to the same archive.
    #[error("the archive of resource {name} was changed by another writer meanwhile")]
    Conflict {
        /// The resource.
        name: String,
    },
    /// There is no archive of that resource.
    #[error("there is no archive of resource {name}{}", in_store(.others))]
    NoArchive {
        /// The resource.
        name: String,
        /// What resources the store has archives of.
        others: Vec<String>,
    },
    /// It is the archive of another resource of the same name.
    #[error("the archive of resource {name} belongs to another resource of that name ({found})")]
    Foreign {
        /// The name of both.
        name: String,
        /// The id of the one that is archived.
        found: String,
    },
    /// The moment cannot be restored.
    #[error("{why}")]
    Moment {
        /// Why not, and what can be.
        why: String,
    },
    /// The resource could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What is restored to could not be written.
    #[error("the copy could not be written: {0}")]
    Target(io::Error),
    /// What is restored to must not be.
    #[error("{0}")]
    Refused(String),
}

fn in_store(others: &[String]) -> String {
    if others.is_empty() { String::new() } else { format!(" (there is {})", others.join(", ")) }
}

impl ArchiveError {
    pub(crate) fn store(name: &str, what: &'static str, why: io::Error) -> Self {
        Self::Store { name: name.to_owned(), what, why }
    }

    pub(crate) fn damaged(name: &str, why: impl Into<String>) -> Self {
        Self::Damaged { name: name.to_owned(), why: why.into() }
    }
}
