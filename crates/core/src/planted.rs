//! Faults that the simulator must find: each breaks one promise on purpose.
//!
//! Without the feature `planted-bugs` nothing of it is compiled.

use crate::engine::Core;

/// Which promise is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedBug {
    /// Writes start before their activity-log extent is durable.
    SwapActivityLogOrder,
    /// Some bits of missed writes are not set.
    DropBitmapBit,
    /// Writes complete before the peers have answered.
    EarlyAck,
    /// No new generation begins when a peer is lost.
    NoGenerationBump,
    /// Flushes stay local.
    FlushNotForwarded,
    /// Who is caught up from the journal gets again what it has answered.
    ReplayAgain,
    /// It is not flushed where the Primary was.
    ReplayUnflushed,
    /// Its bits are cleared when that begins.
    ReplayClearsEarly,
    /// What was fetched to heal a block is stored although a newer write came meanwhile.
    HealOverNewer,
    /// Blocks that nobody has are read from the disk, whatever that gives.
    LostIsRead,
    /// A block is lost when a read has failed, whatever was written while that was under way.
    LoseUnseen,
    /// What could not be read is given up for good.
    UnreadIsLost,
    /// What the driver has is given up when the disk does not take it.
    SalvagedIsLost,
    /// Copies are compared while they are written to.
    VerifyUnlocked,
}

impl Core {
    /// Plants a bug.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: PlantedBug) {
        self.planted = Some(bug);
    }

    /// Whether this bug was planted.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn has_bug(&self, bug: PlantedBug) -> bool {
        self.planted == Some(bug)
    }

    /// Whether this bug was planted: never.
    #[cfg(not(feature = "planted-bugs"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn has_bug(&self, _bug: PlantedBug) -> bool {
        false
    }
}
