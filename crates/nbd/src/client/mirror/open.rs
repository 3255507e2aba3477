//! From options to a mirror whose legs are known to be equal, or not.

use super::bitmap::Bitmap;
use super::book::{Book, Noted};
use super::{Leg, Mirror, State};
use crate::client::engine::Engine;
use crate::client::keeper::Keeper;
use crate::client::options::{MirrorOptions, MirrorStart, RemoteOptions};
use crate::client::order::Order;
use crate::client::session::{Limits, Shape};
use crate::client::status::LegState;
use holdfast_units::ByteRange;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use tokio::sync::{oneshot, watch};

/// A leg, and why its server cannot be reached, if so.
type Reached = (Rc<Engine>, Option<String>);

impl Mirror {
    /// Reaches the servers and finds out which of them may be believed.
    ///
    /// # Errors
    /// When none of those can be reached, or they do not fit together.
    pub(in crate::client) async fn open(
        options: &RemoteOptions,
        mirror: &MirrorOptions,
    ) -> Result<Rc<Self>, String> {
        let legs = reach(options).await;
        let opened = begin(options, mirror, &legs).await;
        match opened {
            Ok(mirror) => {
                for leg in &mirror.legs {
                    let changes = mirror.changes.clone();
                    leg.watch(Box::new(move || {
                        changes.send_replace(());
                    }));
                }
                tokio::task::spawn_local(Rc::clone(&mirror).manage());
                Ok(mirror)
            }
            Err(why) => {
                legs.iter().for_each(|(leg, _)| leg.close());
                Err(why)
            }
        }
    }
}

/// Dials all servers at the same time.
async fn reach(options: &RemoteOptions) -> Vec<Reached> {
    let waiting: Vec<_> = options
        .uris
        .iter()
        .map(|uri| {
            let options = RemoteOptions {
                uris: vec![uri.clone()],
                // What is too old is for the mirror to say.
                timeout: None,
                identity: None,
                mirror: None,
                ..options.clone()
            };
            let limits = Limits { timeout: None, ..options.limits() };
            let engine = Engine::new(options, limits);
            let (sender, opened) = oneshot::channel();
            tokio::task::spawn_local(Keeper::new(Rc::clone(&engine), Some(sender)).run());
            (engine, opened)
        })
        .collect();
    let mut reached = Vec::new();
    for (engine, opened) in waiting {
        let error = match opened.await {
            Ok(Ok(())) => None,
            Ok(Err(errors)) => Some(errors.join("; ")),
            Err(_) => Some("it was closed".to_owned()),
        };
        reached.push((engine, error));
    }
    reached
}

async fn begin(
    options: &RemoteOptions,
    mirror: &MirrorOptions,
    reached: &[Reached],
) -> Result<Rc<Mirror>, String> {
    let errors = || reached.iter().filter_map(|(_, error)| error.clone()).collect::<Vec<_>>();
    let shape = common_shape(reached)?.ok_or_else(|| errors().join("; "))?;
    let uris: Vec<_> = options.uris.iter().map(ToString::to_string).collect();
    let mut book = None;
    let mut noted = None;
    if let Some(dir) = &mirror.state_dir {
        let (opened, says) = Book::open(dir, shape.size, &uris)?;
        (book, noted) = (Some(opened), says);
    }
    let legs = match noted {
        Some(noted) => believe(noted, reached)?,
        None => decide(mirror.start, shape, reached)?,
    };
    let in_sync = |leg: &Leg| leg.is == LegState::InSync;
    if !legs.iter().zip(reached).any(|(leg, (_, error))| in_sync(leg) && error.is_none()) {
        let errors = errors().join("; ");
        return Err(format!("no server that has the newest data can be reached: {errors}"));
    }
    if let Some(wanted) = &options.identity {
        let first = legs.iter().zip(reached).find(|(leg, (_, e))| in_sync(leg) && e.is_none());
        let is = first.map(|(_, (engine, _))| engine.session.borrow().identity.fingerprint());
        if is.as_ref() != Some(wanted) {
            let is = is.unwrap_or_default();
            return Err(format!("the identity is {is}, and not {wanted}"));
        }
    }
    if let Some(book) = &book {
        for (number, leg) in legs.iter().enumerate() {
            book.set_leg(number, leg.is);
            book.add_missing(number, &leg.missing);
        }
        book.begin().await.map_err(|_| "the state of the mirror cannot be written".to_owned())?;
    }
    let state = State {
        legs,
        order: Order::default(),
        turns: HashMap::new(),
        next: 0,
        callers: BTreeMap::new(),
        under_way: 0,
        round: 1,
        closed: false,
    };
    Ok(Rc::new(Mirror {
        legs: reached.iter().map(|(engine, _)| Rc::clone(engine)).collect(),
        shape,
        patience: mirror.patience,
        timeout: options.timeout,
        book,
        state: RefCell::new(state),
        changes: watch::Sender::new(()),
    }))
}

/// What all servers that were reached can do; `None` when there is none.
fn common_shape(reached: &[Reached]) -> Result<Option<Shape>, String> {
    let mut common: Option<Shape> = None;
    for shape in reached.iter().filter_map(|(engine, _)| engine.shape()) {
        let so_far = common.get_or_insert(shape);
        if so_far.size != shape.size {
            let (one, other) = (so_far.size, shape.size);
            return Err(format!("the servers hold disks of {one} and of {other} bytes"));
        }
        so_far.block = so_far.block.max(shape.block);
        so_far.read_only |= shape.read_only;
    }
    Ok(common)
}

/// What is written down holds. After a crash the hot extents are copied from a leg in sync, one that
/// can be reached if there is one: what was completed they all have. Legs that cannot be compared now
/// are when they are back, and not believed before.
///
/// # Errors
/// When legs that were equal at the end look different now.
fn believe(noted: Noted, reached: &[Reached]) -> Result<Vec<Leg>, String> {
    let in_sync = || (0..reached.len()).filter(|leg| noted.legs[*leg] == LegState::InSync);
    let here = || in_sync().filter(|leg| reached[*leg].1.is_none());
    let source = here().next().or_else(|| in_sync().next());
    if noted.hot.is_empty() {
        let mut looks = here().map(|leg| reached[leg].0.session.borrow().identity.fingerprint());
        let first = looks.next();
        if looks.any(|other| Some(other) != first) {
            return Err(
                "the servers hold different data, although they were equal when the mirror \
                        was closed; one of them was written to, or is another one"
                    .to_owned(),
            );
        }
    }
    let legs = noted.legs.into_iter().zip(noted.missing).enumerate();
    let legs = legs.map(|(number, (mut is, mut missing))| {
        let was_compared = noted.hot.is_empty() && reached[number].1.is_none();
        if Some(number) != source && !(was_compared && is == LegState::InSync) {
            noted.hot.iter().for_each(|range| missing.set(*range));
            is = LegState::Behind;
        }
        let unproved = is == LegState::Behind;
        Leg { unproved, ..Leg::new(is, missing) }
    });
    Ok(legs.collect())
}

/// Nothing is written down.
fn decide(start: MirrorStart, shape: Shape, reached: &[Reached]) -> Result<Vec<Leg>, String> {
    let mut all = Bitmap::default();
    all.set(ByteRange::new(0, shape.size));
    let behind = || Leg::new(LegState::Behind, all.clone());
    let in_sync = || Leg::new(LegState::InSync, Bitmap::default());
    if start == MirrorStart::CopyFirst {
        return Ok((0..reached.len())
            .map(|leg| if leg == 0 { in_sync() } else { behind() })
            .collect());
    }
    let mut first = None;
    let mut legs = Vec::new();
    for (engine, error) in reached {
        if error.is_some() {
            // It cannot be asked what it has.
            legs.push(behind());
            continue;
        }
        let looks_like = engine.session.borrow().identity.fingerprint();
        if *first.get_or_insert_with(|| looks_like.clone()) != looks_like {
            return Err(
                "the servers hold different data; say that the first is to be copied to the \
                        others if it is the right one"
                    .to_owned(),
            );
        }
        legs.push(in_sync());
    }
    Ok(legs)
}
