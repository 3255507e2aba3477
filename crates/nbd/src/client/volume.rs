use super::engine::Engine;
use super::keeper::Keeper;
use super::mirror::Mirror;
use super::options::RemoteOptions;
use super::remembered::Remembered;
use super::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use super::session::Shape;
use super::status::{LegState, LegStatus, RemoteStatus};
use crate::codec::consts::flag;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the last flush may take.
const LAST_FLUSH: Duration = Duration::from_secs(10);

/// Why a remote disk could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the remote disk cannot be opened: {why}")]
pub struct RemoteOpenError {
    fault: OpenFault,
    why: String,
}

/// What to do about a remote disk that could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenFault {
    /// The server has to be reached first, or the options have to be others.
    Unreachable,
    /// What answers is not the export that is meant.
    Different,
    /// The servers of a mirror do not hold the same, or it is not known: somebody has to say which
    /// one is right, with [`super::MirrorStart::CopyFirst`].
    Unequal,
}

impl RemoteOpenError {
    pub(super) fn new(fault: OpenFault, why: impl Into<String>) -> Self {
        Self { fault, why: why.into() }
    }

    /// What to do about it.
    #[must_use]
    pub const fn fault(&self) -> OpenFault {
        self.fault
    }
}

impl From<String> for RemoteOpenError {
    fn from(why: String) -> Self {
        Self::new(OpenFault::Unreachable, why)
    }
}

/// What does not change while a remote disk is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteInfo {
    /// Bytes.
    pub size: u64,
    /// Ranges must be multiples of it: a power of two of 1 to 65536.
    pub block_size: u32,
    /// The block size that the server likes best.
    pub preferred_block: u32,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Whether the server does something about a trim.
    pub can_trim: bool,
    /// Whether the server seeks.
    pub rotational: bool,
}

/// What an export was like when it was closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastSeen {
    /// As [`super::RemoteStatus::identity`].
    pub identity: String,
    /// As [`super::SessionStatus::remembered`]; of a mirror, one of its legs.
    pub remembered: Remembered,
}

/// A remote disk on this thread: everything about it happens in tasks of the current
/// [`tokio::task::LocalSet`], in which it must have been opened. [`super::RemoteDisk`] has a thread
/// of its own instead.
pub struct RemoteVolume {
    inside: Inside,
    info: RemoteInfo,
}

enum Inside {
    Single(Rc<Engine>),
    Mirror(Rc<Mirror>),
}

impl RemoteVolume {
    /// Reaches the server, the first of several that answers, or those of a mirror.
    ///
    /// # Errors
    /// [`RemoteOpenError`] when none can be reached now, or none has the export that is asked for.
    pub async fn open(options: RemoteOptions) -> Result<Self, RemoteOpenError> {
        if let Some(fault) = options.fault() {
            return Err(fault.into());
        }
        if let Some(mirror) = &options.mirror {
            let mirror = Mirror::open(&options, mirror).await?;
            let info = info_of(mirror.first(), mirror.shape());
            return Ok(Self { inside: Inside::Mirror(mirror), info });
        }
        let limits = options.limits();
        let engine = Engine::new(options, limits);
        let (sender, opened) = oneshot::channel();
        tokio::task::spawn_local(Keeper::new(Rc::clone(&engine), Some(sender)).run());
        let result = opened.await.unwrap_or(Err(vec!["it was closed".to_owned()]));
        match (result, engine.shape()) {
            (Ok(()), Some(shape)) => {
                let info = info_of(&engine, shape);
                Ok(Self { inside: Inside::Single(engine), info })
            }
            (result, _) => {
                let refused = engine.progress.borrow().refused;
                engine.close();
                let fault = if refused { OpenFault::Different } else { OpenFault::Unreachable };
                Err(RemoteOpenError::new(fault, result.err().unwrap_or_default().join("; ")))
            }
        }
    }

    /// What it is like.
    #[must_use]
    pub const fn info(&self) -> &RemoteInfo {
        &self.info
    }

    /// Starts a request; `done` is called on this thread when it is over, perhaps at once.
    pub fn submit(&self, request: RemoteRequest, done: impl FnOnce(RemoteOutcome) + 'static) {
        match &self.inside {
            Inside::Single(engine) => engine.submit(request, Box::new(done)),
            Inside::Mirror(mirror) => mirror.submit(request, Box::new(done)),
        }
    }

    /// What is going on.
    #[must_use]
    pub fn status(&self) -> RemoteStatus {
        let engine = match &self.inside {
            Inside::Single(engine) => engine,
            Inside::Mirror(mirror) => return mirror.status(),
        };
        let session = engine.status();
        RemoteStatus {
            state: session.state,
            size: self.info.size,
            identity: session.identity.clone(),
            pending: session.pending,
            legs: vec![LegStatus {
                state: LegState::InSync,
                missing_bytes: 0,
                copied_bytes: 0,
                session,
            }],
        }
    }

    /// Fails all that is pending at once and gives all connections up; new requests wait for
    /// `hold`, then the server is dialled again.
    pub fn abort(&self, hold: Duration) {
        match &self.inside {
            Inside::Single(engine) => engine.abort(hold),
            Inside::Mirror(mirror) => mirror.abort(hold),
        }
    }

    /// Flushes and takes its leave; what the export was like last.
    ///
    /// # Errors
    /// When the flush failed, or took more than 10 seconds. It is closed all the same.
    pub async fn close(self) -> Result<LastSeen, RemoteFailure> {
        let flush = async {
            match &self.inside {
                Inside::Single(engine) => engine.ask(RemoteRequest::Flush).await,
                Inside::Mirror(mirror) => mirror.farewell().await,
            }
        };
        let flushed = tokio::time::timeout(LAST_FLUSH, flush).await;
        let flushed = flushed.unwrap_or(Err(RemoteFailure::TimedOut));
        let engine = match &self.inside {
            Inside::Single(engine) => engine,
            Inside::Mirror(mirror) => mirror.first(),
        };
        if flushed.is_ok() {
            // What cannot be looked at now is missing in the identity.
            let _ = tokio::time::timeout(LAST_FLUSH, engine.learn_all()).await;
        }
        let seen = {
            let session = engine.session.borrow();
            LastSeen {
                identity: session.identity.fingerprint(),
                remembered: session.identity.remembered(),
            }
        };
        match &self.inside {
            Inside::Single(engine) => {
                engine.close();
                engine.over.notified().await;
            }
            Inside::Mirror(mirror) => {
                mirror.close();
                mirror.release().await;
            }
        }
        flushed.map(|_| seen)
    }
}

impl Drop for RemoteVolume {
    fn drop(&mut self) {
        match &self.inside {
            Inside::Single(engine) => engine.close(),
            Inside::Mirror(mirror) => mirror.close(),
        }
    }
}

fn info_of(engine: &Engine, shape: Shape) -> RemoteInfo {
    let session = engine.session.borrow();
    let agreed = session.agreed();
    let has = |flag| agreed.is_some_and(|agreed| agreed.flags.has(flag));
    RemoteInfo {
        size: shape.size,
        block_size: shape.block,
        preferred_block: agreed.map_or(4096, |agreed| agreed.blocks.1).max(shape.block),
        read_only: shape.read_only,
        can_trim: has(flag::SEND_TRIM),
        rotational: has(flag::ROTATIONAL),
    }
}
