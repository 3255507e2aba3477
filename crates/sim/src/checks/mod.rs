//! The promises, one by one. A check looks at the virtual disks and at what the cores say; it never
//! asks a core what to believe.

pub(crate) mod acknowledged;
mod activity_log;
pub(crate) mod caught_up;
pub(crate) mod durable;
pub(crate) mod equality;
mod failed_disk;
mod lost;
pub(crate) mod out_of_sync;
mod promoted;
pub(crate) mod reads;
mod resync_target;
mod secondary;
mod split_brain;
pub(crate) mod states;
mod two_primaries;
pub(crate) mod unreadable;

use crate::data_disk::Work;
use crate::driver::Source;
use crate::world::World;

pub(crate) use secondary::secondary;

/// What must hold when an operation on a data disk is issued.
pub(crate) fn disk_order(world: &mut World, n: usize, work: &Work, source: Source) {
    let checked = failed_disk::check(world, n);
    world.check("a disk is not used after a failed flush", checked);
    if let Work::MarkLost { range, unread } = work {
        let checked = lost::check(world, n, *range, *unread);
        world.check("a block is lost only if it cannot be read", checked);
    }
    if let Some(range) = work.changes() {
        if source == Source::Journal {
            let checked = caught_up::before_write(world, n);
            world.check("who is caught up is durably Outdated before the first write", checked);
        }
        let resync = source == Source::Resync;
        let checked = if resync {
            resync_target::before_write(world, n)
        } else {
            activity_log::check(world, n, range)
        };
        let promise = if resync {
            "a resync target is durably Inconsistent before the first resync write"
        } else {
            "an extent is durably hot before the first write into it"
        };
        world.check(promise, checked);
    }
}
