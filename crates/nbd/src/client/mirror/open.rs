//! From options to a mirror whose legs are known to be equal, or not.

use super::bitmap::Bitmap;
use super::book::{Book, Noted, find_lacking, note_use};
use super::proof::{Found, equal, holds, places_to_compare};
use super::{Leg, Mirror, State};
use crate::client::engine::Engine;
use crate::client::keeper::Keeper;
use crate::client::options::{MirrorOptions, MirrorStart, RemoteOptions};
use crate::client::order::Order;
use crate::client::remembered::Remembered;
use crate::client::session::{Limits, Shape};
use crate::client::status::LegState;
use crate::client::volume::{OpenFault, RemoteOpenError};
use holdfast_units::ByteRange;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
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
    ) -> Result<Rc<Self>, RemoteOpenError> {
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
) -> Result<Rc<Mirror>, RemoteOpenError> {
    let errors = || reached.iter().filter_map(|(_, error)| error.clone()).collect::<Vec<_>>();
    let shape = common_shape(reached)?.ok_or_else(|| errors().join("; "))?;
    let uris: Vec<_> = options.uris.iter().map(ToString::to_string).collect();
    let (mut book, mut noted) = (None, None);
    if let Some(dir) = &mirror.state_dir {
        let (opened, says) = Book::open(dir, shape.size, &uris)?;
        (book, noted) = (Some(opened), says);
    }
    let known = noted.iter().flat_map(|noted| &noted.remembered);
    let noted_places: Vec<_> =
        known.flat_map(Remembered::places).map(|(range, _)| *range).collect();
    let start = Start { reached, shape, uris: &uris, patience: options.connect_timeout };
    let legs = match (mirror.start, noted) {
        (MirrorStart::CopyFirst, noted) => start.copy_first(noted)?,
        (MirrorStart::Equal, Some(noted)) => start.believe(noted, &noted_places).await?,
        (MirrorStart::Equal, None) => {
            if let Some(dir) = &mirror.state_dir {
                start.refuse_lacking(dir)?;
            }
            start.compare().await?
        }
    };
    let in_sync = |leg: &Leg| leg.is == LegState::InSync;
    if !legs.iter().zip(reached).any(|(leg, (_, error))| in_sync(leg) && error.is_none()) {
        let errors = errors().join("; ");
        return Err(format!("no server that has the newest data can be reached: {errors}").into());
    }
    if let Some(wanted) = &options.identity {
        let first = legs.iter().zip(reached).find(|(leg, (_, e))| in_sync(leg) && e.is_none());
        let is = first.map(|(_, (engine, _))| engine.session.borrow().identity.fingerprint());
        if is.as_ref() != Some(wanted) {
            let is = is.unwrap_or_default();
            let why = format!("the identity is {is}, and not {wanted}");
            return Err(RemoteOpenError::new(OpenFault::Different, why));
        }
    }
    if let (Some(dir), false) = (&mirror.state_dir, shape.read_only) {
        note_use(dir.parent().unwrap_or(dir), Some(dir), &uris)?;
    }
    if let Some(book) = &book {
        for (number, leg) in legs.iter().enumerate() {
            book.set_leg(number, leg.is);
            book.clear_missing(number);
            book.add_missing(number, &leg.missing);
            if in_sync(leg) && reached[number].1.is_none() {
                let remembered = reached[number].0.session.borrow().identity.remembered();
                book.remember(number, remembered);
            }
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
        noted_places,
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

/// What is known when it is decided which legs are believed.
struct Start<'a> {
    reached: &'a [Reached],
    shape: Shape,
    uris: &'a [String],
    patience: Duration,
}

fn unequal(why: String) -> RemoteOpenError {
    RemoteOpenError::new(OpenFault::Unequal, why)
}

impl Start<'_> {
    fn is_here(&self, leg: usize) -> bool {
        self.reached[leg].1.is_none()
    }

    fn engine(&self, leg: usize) -> &Rc<Engine> {
        &self.reached[leg].0
    }

    fn fingerprint(&self, leg: usize) -> String {
        self.engine(leg).session.borrow().identity.fingerprint()
    }

    /// The first one fills all others.
    fn copy_first(&self, noted: Option<Noted>) -> Result<Vec<Leg>, RemoteOpenError> {
        let lacks = |noted: &Noted| noted.legs[0] == LegState::Behind && !noted.used[0];
        if noted.is_some_and(|noted| lacks(&noted)) {
            let first = &self.uris[0];
            return Err(unequal(format!(
                "{first} lacks data that another server has, so it is not copied to the others"
            )));
        }
        let leg = |leg: usize| match leg {
            0 => Leg::new(LegState::InSync, Bitmap::default()),
            _ => Leg::unknown(self.shape.size),
        };
        Ok((0..self.reached.len()).map(leg).collect())
    }

    /// A leg that is said to be in sync is believed when it still holds what it held, and the same as
    /// the others. After a crash the hot extents are copied from one of those, one that can be reached
    /// if there is one: what was completed they all have. Legs that cannot be compared now are when
    /// they are back, and not believed before.
    ///
    /// # Errors
    /// When it cannot be known who has the newest data.
    async fn believe(
        &self,
        noted: Noted,
        places: &[ByteRange],
    ) -> Result<Vec<Leg>, RemoteOpenError> {
        if noted.used.contains(&true) {
            return self.believe_used(&noted);
        }
        let in_sync: Vec<_> =
            (0..self.uris.len()).filter(|leg| noted.legs[*leg] == LegState::InSync).collect();
        let mut here = Vec::new();
        for leg in in_sync.iter().copied().filter(|leg| self.is_here(*leg)) {
            let (engine, known) = (self.engine(leg), noted.remembered[leg].outside(&noted.hot));
            match holds(engine, &known, self.patience).await {
                Found::Same => {
                    // So the places that were written to lately are looked at from now on, too.
                    engine.session.borrow_mut().identity.recall(&known);
                    here.push(leg);
                }
                Found::Nothing => {}
                Found::Different(at) => {
                    let uri = &self.uris[leg];
                    return Err(unequal(format!(
                        "{uri} holds different data than when the mirror was used last, at byte \
                         {at}; it was written to, or is another disk, or an older state of it"
                    )));
                }
            }
        }
        let source = here.first().or(in_sync.first()).copied();
        let mut legs = Vec::new();
        let mut noted_missing = noted.missing.into_iter();
        for leg in 0..self.uris.len() {
            let mut missing = noted_missing.next().unwrap_or_default();
            legs.push(if Some(leg) == source {
                Leg::new(LegState::InSync, missing)
            } else if noted.hot.is_empty() && here.contains(&leg) {
                self.compare_with(source, leg, places).await
            } else {
                noted.hot.iter().for_each(|range| missing.set(*range));
                Leg { unproved: true, ..Leg::new(LegState::Behind, missing) }
            });
        }
        Ok(legs)
    }

    /// A leg that was used without the others has the newest data, if it had all before.
    fn believe_used(&self, noted: &Noted) -> Result<Vec<Leg>, RemoteOpenError> {
        let used: Vec<_> = (0..self.uris.len()).filter(|leg| noted.used[*leg]).collect();
        if let [only] = used[..]
            && noted.legs[only] == LegState::InSync
        {
            let leg = |leg: usize| match leg == only {
                true => Leg::new(LegState::InSync, Bitmap::default()),
                false => Leg::unknown(self.shape.size),
            };
            return Ok((0..self.uris.len()).map(leg).collect());
        }
        let uris: Vec<_> = used.iter().map(|leg| &*self.uris[*leg]).collect();
        Err(unequal(format!(
            "the servers hold different data: {} was used without the others since",
            uris.join(", and ")
        )))
    }

    /// Nothing is written down about these servers; perhaps it is about their disks.
    fn refuse_lacking(&self, dir: &Path) -> Result<(), RemoteOpenError> {
        let remembered = |(engine, _): &Reached| engine.session.borrow().identity.remembered();
        let disks: Vec<_> = self.reached.iter().map(remembered).collect();
        let Some(path) = find_lacking(dir, self.shape.size, self.uris, &disks) else {
            return Ok(());
        };
        Err(unequal(format!(
            "as it seems these disks belong to another mirror, or did under other addresses, and one \
             of them lacks data ({})",
            path.display()
        )))
    }

    /// Nothing is written down: legs that look the same are equal.
    async fn compare(&self) -> Result<Vec<Leg>, RemoteOpenError> {
        let here: Vec<_> = (0..self.uris.len()).filter(|leg| self.is_here(*leg)).collect();
        let source = here.first().copied();
        let mut legs = Vec::new();
        for leg in 0..self.uris.len() {
            if !self.is_here(leg) {
                // It cannot be asked what it has.
                legs.push(Leg::unknown(self.shape.size));
                continue;
            }
            let made = match source {
                Some(source) if self.fingerprint(source) != self.fingerprint(leg) => None,
                _ => Some(self.compare_with(source, leg, &[]).await),
            };
            let equal = made.filter(|made| !made.doubtful);
            legs.push(equal.ok_or_else(|| unequal("the servers hold different data".to_owned()))?);
        }
        Ok(legs)
    }

    /// A leg that should be equal to the source; if it is not, it gets what it lacks.
    async fn compare_with(&self, source: Option<usize>, leg: usize, places: &[ByteRange]) -> Leg {
        let Some(source) = source.filter(|source| *source != leg) else {
            return Leg::new(LegState::InSync, Bitmap::default());
        };
        let places = places_to_compare(self.shape, places);
        let (one, other) = (self.engine(source), self.engine(leg));
        match equal(one, other, &places, self.patience).await {
            Found::Same => Leg::new(LegState::InSync, Bitmap::default()),
            Found::Different(_) => Leg::unknown(self.shape.size),
            Found::Nothing => {
                Leg { unproved: true, ..Leg::new(LegState::Behind, Bitmap::default()) }
            }
        }
    }
}
