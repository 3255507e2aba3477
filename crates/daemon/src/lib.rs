//! Holdfast: daemon.
