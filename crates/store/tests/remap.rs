//! Bad sectors moved out of the way: what callers of a disk with spares see.

#![allow(clippy::unwrap_used)]

#[path = "remap/bed.rs"]
mod bed;
#[path = "remap/crash.rs"]
mod crash;
#[path = "remap/model.rs"]
mod model;
#[path = "remap/opening.rs"]
mod opening;
#[path = "remap/requests.rs"]
mod requests;
#[path = "remap/spares.rs"]
mod spares;
#[path = "remap/world.rs"]
mod world;
