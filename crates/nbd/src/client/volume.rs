use super::engine::Engine;
use super::keeper::Keeper;
use super::options::RemoteOptions;
use super::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use super::status::{LegState, LegStatus, RemoteStatus};
use crate::codec::consts::flag;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the last flush may take.
const LAST_FLUSH: Duration = Duration::from_secs(10);

/// Why a remote disk could not be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the remote disk cannot be opened: {0}")]
pub struct RemoteOpenError(pub(super) String);

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

/// A remote disk on this thread: everything about it happens in tasks of the current
/// [`tokio::task::LocalSet`], in which it must have been opened. [`super::RemoteDisk`] has a thread
/// of its own instead.
pub struct RemoteVolume {
    engine: Rc<Engine>,
    info: RemoteInfo,
}

impl RemoteVolume {
    /// Reaches the server, or the first of several that answers.
    ///
    /// # Errors
    /// [`RemoteOpenError`] when none can be reached now, or none has the export that is asked for.
    pub async fn open(options: RemoteOptions) -> Result<Self, RemoteOpenError> {
        if let Some(fault) = options.fault() {
            return Err(RemoteOpenError(fault));
        }
        let limits = options.limits();
        let engine = Engine::new(options, limits);
        let (sender, opened) = oneshot::channel();
        tokio::task::spawn_local(Keeper::new(Rc::clone(&engine), Some(sender)).run());
        let result = opened.await.unwrap_or(Err(vec!["it was closed".to_owned()]));
        if let Err(errors) = result {
            engine.close();
            return Err(RemoteOpenError(errors.join("; ")));
        }
        let info = info_of(&engine).ok_or(RemoteOpenError("it broke at once".to_owned()))?;
        Ok(Self { engine, info })
    }

    /// What it is like.
    #[must_use]
    pub const fn info(&self) -> &RemoteInfo {
        &self.info
    }

    /// Starts a request; `done` is called on this thread when it is over, perhaps at once.
    pub fn submit(&self, request: RemoteRequest, done: impl FnOnce(RemoteOutcome) + 'static) {
        self.engine.submit(request, Box::new(done));
    }

    /// What is going on.
    #[must_use]
    pub fn status(&self) -> RemoteStatus {
        let session = self.engine.status();
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
        self.engine.abort(hold);
    }

    /// Flushes and takes its leave; what the export looked like last.
    ///
    /// # Errors
    /// When the flush failed, or took more than 10 seconds. It is closed all the same.
    pub async fn close(self) -> Result<String, RemoteFailure> {
        let flush = self.engine.ask(RemoteRequest::Flush);
        let flushed = tokio::time::timeout(LAST_FLUSH, flush).await;
        let flushed = flushed.unwrap_or(Err(RemoteFailure::TimedOut));
        if flushed.is_ok() {
            // What cannot be looked at now is missing in the identity.
            let _ = tokio::time::timeout(LAST_FLUSH, learn_all(&self.engine)).await;
        }
        let identity = self.engine.session.borrow().identity.fingerprint();
        self.engine.close();
        flushed.map(|_| identity)
    }
}

impl Drop for RemoteVolume {
    fn drop(&mut self) {
        self.engine.close();
    }
}

async fn learn_all(engine: &Engine) {
    let looks = engine.session.borrow().looks_to_learn();
    for look in looks {
        if let Ok(data) = engine.ask(RemoteRequest::Read { range: look.range }).await {
            engine.session.borrow_mut().identity.learn(look, &data);
        }
    }
}

fn info_of(engine: &Engine) -> Option<RemoteInfo> {
    let session = engine.session.borrow();
    let (shape, agreed) = (session.shape()?, session.agreed()?);
    Some(RemoteInfo {
        size: shape.size,
        block_size: shape.block,
        preferred_block: agreed.blocks.1,
        read_only: shape.read_only,
        can_trim: agreed.flags.has(flag::SEND_TRIM),
        rotational: agreed.flags.has(flag::ROTATIONAL),
    })
}
