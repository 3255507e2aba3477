//! When nothing is under way, nodes that count as equal are equal, block by block.

use crate::world::World;
use holdfast_units::{ReplicationState, Role};

/// Checks every pair of nodes that call each other Established and themselves UpToDate.
pub(crate) fn check(world: &World) -> Result<(), String> {
    for a in 0..world.nodes.len() {
        for b in a + 1..world.nodes.len() {
            if count_as_equal(world, a, b) {
                compare(world, a, b)?;
            }
        }
    }
    Ok(())
}

pub(crate) fn count_as_equal(world: &World, a: usize, b: usize) -> bool {
    let established = |x: usize, y: usize| {
        let node = &world.nodes[x];
        node.disk_open
            && node.is_up_to_date()
            && node.is_connected_to(y)
            && node.peer(y).is_some_and(|p| p.replication == ReplicationState::Established)
    };
    // Who is cut off without a sign does not know it yet.
    let in_touch = world.net.joint_link(a, b).is_some() && world.net.is_clear(a, b);
    let misled = |x: usize| (0..world.nodes.len()).any(|p| p != x && follows_a_dead(world, x, p));
    in_touch && !misled(a) && !misled(b) && established(a, b) && established(b, a)
}

/// Whether `x` takes `p` for its Primary and has not noticed yet that it is gone: what that one wrote
/// last is still on its way to be settled.
fn follows_a_dead(world: &World, x: usize, p: usize) -> bool {
    let primary = |peer: &holdfast_core::PeerSnapshot| peer.role == Role::Primary;
    let follows = world.nodes[x].is_connected_to(p) && world.nodes[x].peer(p).is_some_and(primary);
    let there = world.net.joint_link(x, p).is_some() && world.net.is_clear(x, p);
    follows && !there
}

fn compare(world: &World, a: usize, b: usize) -> Result<(), String> {
    let (mine, theirs) = (&world.nodes[a].data, &world.nodes[b].data);
    if let Some(block) = mine.differences(theirs).first() {
        let (x, y) = (mine.get(*block), theirs.get(*block));
        return Err(format!(
            "n{a} and n{b} are UpToDate and Established, but block {block} is {x} and {y}"
        ));
    }
    for (x, y) in [(a, b), (b, a)] {
        let bits = world.nodes[x].peer(y).map_or(0, |peer| peer.out_of_sync);
        if bits > 0 {
            return Err(format!("n{x} and n{y} are Established with {bits} bytes out of sync"));
        }
    }
    Ok(())
}
