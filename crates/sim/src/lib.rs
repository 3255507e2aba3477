//! Holdfast: sim.
