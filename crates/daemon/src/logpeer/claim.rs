//! Two nodes that want to lead at a time see that of each other.

use crate::resource::Resource;
use std::sync::Arc;

/// While it lives, whoever asks is told that this node is about to be Primary. To be had under the lock
/// of the resource's commands, before others are asked whether they lead.
pub(crate) struct Claim(Arc<Resource>);

/// Why a node is about to be Primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claims {
    /// By a command.
    Now,
    /// It was before it was stopped.
    Again,
}

impl Claim {
    pub(crate) fn new(resource: &Arc<Resource>, claims: Claims) -> Self {
        resource.state().claims = Some(claims);
        Self(Arc::clone(resource))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.state().claims = None;
    }
}
