//! The disk that survives, against servers that do not.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]
#![allow(clippy::cast_possible_truncation, reason = "the numbers of the tests are small")]

mod certificates;
mod filters;
mod hostile;
mod interop;
mod load;
mod mirror;
mod real;
mod server;
mod single;
