//! Bad sectors moved out of the way: what callers of a disk with spares see.

#![allow(clippy::unwrap_used)]

#[path = "remap/away.rs"]
mod away;
#[path = "remap/bed.rs"]
mod bed;
#[path = "remap/crash.rs"]
mod crash;
#[path = "remap/exhausted.rs"]
mod exhausted;
#[path = "remap/headers.rs"]
mod headers;
#[path = "remap/leaving.rs"]
mod leaving;
#[path = "remap/membership.rs"]
mod membership;
#[path = "remap/model.rs"]
mod model;
#[path = "remap/opening.rs"]
mod opening;
#[path = "remap/requests.rs"]
mod requests;
#[path = "remap/spares.rs"]
mod spares;
#[path = "remap/weak.rs"]
mod weak;
#[path = "remap/world.rs"]
mod world;
