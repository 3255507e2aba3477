//! One connection from dialling to taking requests: nothing but looks is sent before it is known
//! that the export is the right one.

use super::ClientError;
use super::dial::{Transport, dial};
use super::engine::{Engine, LanePort};
use super::identity::{Identity, Look};
use super::link::{Ending, Link, Port};
use super::negotiate::Agreed;
use super::request::{RemoteFailure, RemoteOutcome};
use super::session::Shape;
use crate::NbdUri;
use crate::codec::consts::flag;
use holdfast_units::ByteRange;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Before requests of a lost connection go to others: what the server has of them ends by then.
const SETTLE: Duration = Duration::from_millis(50);
/// How long the other connections have to prove that they reach the same server.
const PROOF: Duration = Duration::from_secs(5);

/// Why a connection was not made.
pub(super) enum NotMade {
    /// It could not be, or it broke.
    Client(ClientError),
    /// The export is another one.
    Different(String),
}

impl From<ClientError> for NotMade {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// Makes a connection and lets it take requests.
pub(super) async fn join(engine: Rc<Engine>, lane: usize, uri: NbdUri) -> Result<(), NotMade> {
    let first = engine.shape().is_none();
    if first {
        // Another server may have been looked at before.
        engine.session.borrow_mut().identity = Identity::default();
    }
    let (transport, agreed) = dial(&uri, &engine.options.dial()).await?;
    let shape = Shape {
        size: agreed.size,
        block: agreed.blocks.0,
        read_only: agreed.flags.has(flag::READ_ONLY) || engine.options.read_only,
    };
    let checked = engine.session.borrow_mut().identity.check_shape(&agreed, shape);
    checked.map_err(NotMade::Different)?;
    if let Some(remembered) = engine.options.remembered.as_ref().filter(|_| first)
        && engine.options.content_check
    {
        engine.session.borrow_mut().identity.recall(remembered);
    }
    attach(&engine, lane, transport, &agreed);
    let patience = engine.options.connect_timeout;
    let looked = tokio::time::timeout(patience, look(&engine, lane, first));
    looked.await.map_err(|_| broken("it does not let us read"))??;
    prove(&engine, lane, shape).await;
    if !engine.lanes[lane].notes.borrow().attached {
        return Err(broken("it broke at once"));
    }
    engine.with(|session, now| {
        session.set_agreed(&agreed, shape);
        session.admit(lane, now);
    });
    Ok(())
}

fn broken(why: &str) -> NotMade {
    NotMade::Client(io::Error::other(why).into())
}

/// Starts the task of a connection.
fn attach(engine: &Rc<Engine>, lane: usize, transport: Transport, agreed: &Agreed) {
    engine.lanes[lane].begin();
    engine.lanes[lane].notes.borrow_mut().attached = true;
    let buffers = Rc::clone(&engine.buffers);
    let link = Link::new(transport, agreed, engine.options.silence, buffers);
    let task = tokio::task::spawn_local(run_link(Rc::clone(engine), lane, link));
    engine.lanes[lane].notes.borrow_mut().task = Some(task.abort_handle());
}

async fn run_link(engine: Rc<Engine>, lane: usize, link: Link<Transport>) {
    let port = LanePort { engine: Rc::clone(&engine), lane };
    let error = match link.run(&port).await {
        Ok(transport) => {
            if port.ending() == Some(Ending::Polite) {
                transport.polite();
            }
            None
        }
        Err(error) => Some(error.to_string()),
    };
    let (unusable, others) = engine.with(|session, _| {
        session.retire(lane);
        (session.is_unusable(), session.is_online())
    });
    {
        let mut notes = engine.lanes[lane].notes.borrow_mut();
        notes.live_since = None;
        if let Some(error) = error {
            let mut progress = engine.progress.borrow_mut();
            progress.last_error = Some(format!("{}: {error}", notes.uri));
            notes.last_error = Some(error);
        }
    }
    if unusable {
        engine.end_links(Ending::AtOnce);
    }
    engine.note_state();
    engine.news.notify_one();
    if others && engine.session.borrow().has_changes(lane) {
        tokio::time::sleep(SETTLE).await;
    }
    engine.with(|session, now| session.lost(lane, now));
    engine.lanes[lane].notes.borrow_mut().attached = false;
    engine.news.notify_one();
}

/// Reads the samples: to compare them, or to know them if it is the first time.
async fn look(engine: &Rc<Engine>, lane: usize, first: bool) -> Result<(), NotMade> {
    if !engine.options.content_check && !first {
        return Ok(());
    }
    let reads: Vec<(Look, oneshot::Receiver<RemoteOutcome>)> = engine.with(|session, now| {
        let mut looks = session.identity.known();
        if first {
            looks.extend(session.identity.unknown());
        }
        let read = |look: Look| (look, session.read_privately(lane, look.range, now));
        looks.into_iter().map(read).collect()
    });
    for (look, read) in reads {
        let data = match read.await {
            Ok(Ok(data)) => data,
            // A place that cannot be read says nothing.
            Ok(Err(RemoteFailure::Server(_))) => continue,
            _ => return Err(broken("it broke while it was looked at")),
        };
        let identity = &mut engine.session.borrow_mut().identity;
        if !identity.is_same(look, &data) {
            let at = look.range.offset;
            return Err(NotMade::Different(format!("what is at byte {at} has changed")));
        }
        if first {
            identity.learn(look, &data);
        }
    }
    match &engine.options.identity {
        Some(wanted) if first => {
            let is = engine.session.borrow().identity.fingerprint();
            if is == *wanted {
                return Ok(());
            }
            Err(NotMade::Different(format!("its identity is {is}, and not {wanted}")))
        }
        _ => Ok(()),
    }
}

/// When others are live, makes sure that they reach the server that this connection reaches: an
/// answer of theirs that comes now proves that it has not been restarted. Those that cannot prove
/// it are ended.
async fn prove(engine: &Rc<Engine>, lane: usize, shape: Shape) {
    let range = ByteRange::new(0, u64::from(shape.block).min(shape.size));
    let deadline = Instant::now() + PROOF;
    while let Some((other, read)) = engine.with(|session, now| {
        let other = session.live_lane(lane)?;
        Some((other, session.read_privately(other, range, now)))
    }) {
        match tokio::time::timeout_at(deadline.into(), read).await {
            Ok(Ok(Ok(_) | Err(RemoteFailure::Server(_)))) => return,
            // That connection is gone.
            Ok(_) => engine.with(|session, _| session.retire(other)),
            Err(_) => {
                let others: Vec<_> = (0..engine.lanes.len()).filter(|l| *l != lane).collect();
                for other in others {
                    engine.with(|session, _| session.retire(other));
                    engine.lanes[other].end(Ending::AtOnce);
                }
            }
        }
    }
}
