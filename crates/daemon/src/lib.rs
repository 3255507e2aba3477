//! Holdfast: daemon.

pub mod shard;
