//! Checksums of a disk's blocks.

#![allow(clippy::unwrap_used)]

#[path = "integrity/crash.rs"]
mod crash;
#[path = "integrity/model.rs"]
mod model;
#[path = "integrity/requests.rs"]
mod requests;
#[path = "integrity/scratch.rs"]
mod scratch;
#[path = "remap/world.rs"]
#[allow(dead_code)]
mod world;
