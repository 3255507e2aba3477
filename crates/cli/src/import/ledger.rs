//! What became of each statement. What nobody has dealt with is told as not known: nothing is lost.

use super::source::Place;

/// What became of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the commands; as what.
    Translated(String),
    /// Nothing has to be done for it; why.
    Needless(String),
    /// It has no counterpart; what to do instead.
    Missing(String),
}

impl Outcome {
    /// As what.
    pub(super) fn translated(text: impl Into<String>) -> Self {
        Self::Translated(text.into())
    }

    /// Why.
    pub(super) fn needless(text: impl Into<String>) -> Self {
        Self::Needless(text.into())
    }

    /// What to do instead.
    pub(super) fn missing(text: impl Into<String>) -> Self {
        Self::Missing(text.into())
    }

    /// The word in JSON.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Translated(_) => "translated",
            Self::Needless(_) => "needless",
            Self::Missing(_) => "missing",
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Translated(text) | Self::Needless(text) | Self::Missing(text) => text,
        }
    }

    /// Of several outcomes of one statement the one that is told: somebody must do something for a
    /// statement that has no counterpart in one of its uses.
    fn rank(&self) -> u8 {
        match self {
            Self::Needless(_) => 0,
            Self::Translated(_) => 1,
            Self::Missing(_) => 2,
        }
    }
}

/// A statement in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(usize);

/// A statement, where it stands, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) place: Place,
    /// In one line.
    pub(super) text: String,
    pub(super) outcome: Outcome,
}

/// All statements of the files.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: Vec<(Place, String, Option<Outcome>)>,
}

impl Ledger {
    /// Takes a statement in.
    pub(super) fn add(&mut self, place: Place, text: String) -> Id {
        self.entries.push((place, text, None));
        Id(self.entries.len() - 1)
    }

    /// Notes what became of it.
    pub(super) fn settle(&mut self, id: Id, outcome: Outcome) {
        let known = &mut self.entries[id.0].2;
        if known.as_ref().is_none_or(|known| known.rank() < outcome.rank()) {
            *known = Some(outcome);
        }
    }

    /// Where it stands.
    pub(super) fn place(&self, id: Id) -> &Place {
        &self.entries[id.0].0
    }

    /// All of them, in the order in which they were read.
    pub(super) fn close(self) -> Vec<Entry> {
        let not_known = || {
            Outcome::missing(
                "it is not known at this place; look up what it does and whether it matters",
            )
        };
        let entries = self.entries.into_iter().map(|(place, text, outcome)| Entry {
            place,
            text,
            outcome: outcome.unwrap_or_else(not_known),
        });
        entries.collect()
    }
}
