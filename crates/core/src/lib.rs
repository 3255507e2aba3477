//! Holdfast: core.
