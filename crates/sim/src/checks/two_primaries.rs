//! Connected nodes are never both Primary.

use crate::world::World;

/// Checks node `n` against all others.
pub(super) fn check(world: &World, n: usize) -> Result<(), String> {
    if !world.nodes[n].is_primary() {
        return Ok(());
    }
    let clash = (0..world.nodes.len()).find(|m| {
        *m != n
            && world.nodes[*m].is_primary()
            && world.net.joint_link(n, *m).is_some()
            && world.nodes[n].is_connected_to(*m)
            && world.nodes[*m].is_connected_to(n)
    });
    match clash {
        Some(m) => Err(format!("n{n} and n{m} are connected and both Primary")),
        None => Ok(()),
    }
}
