//! Holdfast: wire.
