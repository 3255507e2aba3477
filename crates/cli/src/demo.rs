//! `demo`.
use crate::args::Demo;
use crate::output::Ui;
use holdfast_api::{ApiError, ErrorCode};

pub(crate) fn run(_ui: &Ui, args: Demo) -> Result<(), ApiError> {
    let Demo { nodes, dir, size, keep, once } = args;
    let _ = (nodes, dir, size, keep, once);
    Err(ApiError::new(ErrorCode::Internal, "the demo was not started"))
}
