//! One unit on its way to a place: what is wished for it, and what has become of it.

use bytes::Bytes;
use holdfast_format::remap::Reason;
use rustix::io::Errno;

use super::layer::is_full;
use super::map::{Place, SlotRef};

/// What is to become of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// It is written, and could not be where it should.
    Write,
    /// It is written where it is, or else elsewhere.
    Repair,
    /// It has no good copy.
    Lose,
    /// The main disk cannot read it.
    Suspect,
    /// It goes into a slot if the main disk has it and can be read.
    Move,
    /// It goes into a slot of another spare.
    Evacuate,
    /// It goes back to the main disk.
    Return,
}

/// What has become of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It is as it should be already.
    Nothing,
    /// It was written where it was tried first.
    First,
    /// It has a new slot.
    Slot,
    Lost,
    Failed(Errno),
    Full,
}

/// Where it is tried first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    Nowhere,
    Main,
    OwnSlot,
}

/// One unit on its way to a place.
pub(super) struct Placing {
    pub(super) unit: u64,
    /// All of its content, once that is known.
    pub(super) data: Option<Bytes>,
    /// What a request writes of it, and where in it; the rest has to be read.
    pub(super) patch: Option<(usize, Bytes)>,
    /// The slot that did not take what a request writes.
    pub(super) failed_slot: Option<SlotRef>,
    /// The slot that it is in is no good.
    pub(super) slot_failed: bool,
    pub(super) wish: Wish,
    pub(super) reason: Reason,
    pub(super) from: Option<Place>,
    pub(super) first: First,
    pub(super) slot: Option<SlotRef>,
    /// The last step went well.
    pub(super) ok: bool,
    /// Its slot was written and read back.
    pub(super) checked: bool,
    pub(super) tries: u8,
    /// Spares that do not take it for the moment, though nothing is known to be wrong with their slots:
    /// the filesystem below is full, say. And why the last of them did not.
    pub(super) refused_by: Vec<usize>,
    pub(super) refusal: Option<Errno>,
    /// It could not be read, and why.
    pub(super) unreadable: Option<Errno>,
    pub(super) end: Option<End>,
}

impl Placing {
    pub(super) const fn new(unit: u64, wish: Wish, reason: Reason) -> Self {
        Self {
            unit,
            data: None,
            patch: None,
            failed_slot: None,
            slot_failed: false,
            wish,
            reason,
            from: None,
            first: First::Nowhere,
            slot: None,
            ok: false,
            checked: false,
            tries: 0,
            refused_by: Vec::new(),
            refusal: None,
            unreadable: None,
            end: None,
        }
    }

    /// Finds out what is to be done, now that nobody else works on it.
    pub(super) fn begin(&mut self, from: Option<Place>) {
        self.from = from;
        self.slot_failed = from.is_some_and(|place| Some(place.slot) == self.failed_slot);
        let mapped = from.is_some_and(|place| !place.lost);
        let lost = from.is_some_and(|place| place.lost);
        self.first = match self.wish {
            Wish::Write | Wish::Repair if mapped && !self.slot_failed => First::OwnSlot,
            Wish::Write if lost => First::Main,
            Wish::Repair if !mapped => First::Main,
            Wish::Return if mapped => First::Main,
            _ => First::Nowhere,
        };
        self.end = match self.wish {
            Wish::Move if from.is_some() => Some(End::Nothing),
            Wish::Return if from.is_none() => Some(End::Nothing),
            Wish::Return if lost => Some(End::Failed(Errno::IO)),
            Wish::Evacuate if from.is_none() => Some(End::Nothing),
            Wish::Lose if lost && !self.is_unread() => Some(End::Nothing),
            // What is in a slot is tried there by every read.
            Wish::Suspect if from.is_some() => Some(End::Nothing),
            // There is nothing to put the new part into.
            Wish::Write if lost && self.data.is_none() => Some(End::Failed(Errno::IO)),
            _ => None,
        };
    }

    /// It is in a slot afterwards that holds nothing.
    pub(super) fn is_to_be_lost(&self) -> bool {
        matches!(self.wish, Wish::Lose | Wish::Suspect)
            || (self.data.is_none() && self.end.is_none())
    }

    /// Where it was to be written or read back, it failed with an error that says nothing of this place:
    /// another spare may take it. In the stead of the main disk a slot is taken only where the
    /// filesystem below it is full; otherwise the unit fails.
    pub(super) fn refused(&mut self, place: Option<SlotRef>, errno: Errno) {
        match place {
            Some(slot) => {
                self.refused_by.push(slot.spare);
                self.refusal = Some(errno);
            }
            None if is_full(errno) => {}
            None => self.end = Some(End::Failed(errno)),
        }
    }

    /// It is lost only since the main disk could not read it.
    pub(super) fn is_unread(&self) -> bool {
        self.from.is_some_and(|place| place.unread)
    }

    /// Of one that is lost afterwards: reads are tried on the main disk, which has nothing old of it.
    pub(super) fn stays_unread(&self) -> bool {
        matches!(self.wish, Wish::Suspect | Wish::Move)
            || self.is_unread() && self.wish != Wish::Lose
    }

    /// The slot that the table goes on to name for it, when nothing came of the work.
    pub(super) fn kept_slot(&self) -> Option<SlotRef> {
        match self.end {
            Some(End::Full | End::Failed(_)) => self.from.map(|place| place.slot),
            _ => None,
        }
    }

    /// The target of what is tried first, and the slot.
    pub(super) fn first_slot(&self) -> Option<SlotRef> {
        self.from.filter(|_| self.first == First::OwnSlot).map(|place| place.slot)
    }
}
