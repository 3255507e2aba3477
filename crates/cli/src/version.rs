//! What `--version` prints.

use std::sync::LazyLock;

/// The revision that this binary was built from, or `unknown`.
pub(crate) const GIT: &str = env!("HOLDFAST_GIT");

/// Version, git hash and protocol versions; what clap puts after the name.
pub(crate) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let (min, max) = (holdfast_wire::PROTOCOL_VERSION_MIN, holdfast_wire::PROTOCOL_VERSION);
        let protocol = if min == max { format!("{max}") } else { format!("{min} to {max}") };
        format!(
            "{} (git {GIT}, node protocol {protocol}, API v1, NBD newstyle)",
            env!("CARGO_PKG_VERSION")
        )
    });
    TEXT.as_str()
}
