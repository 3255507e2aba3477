//! Log peers: nodes that follow the Primary's journal.
//!
//! The logic is `holdfast_journal::ship`; here are its connections, its disks and its place among
//! the commands. `docs/design/log.md` has states and messages.
//!
//! ```text
//!   node that leads                               node that follows
//!   JournalHandle ◀── Serving ◀── serve ◀─ TLS ─▶ session ──▶ Following (thread: journal, disk)
//! ```

mod claim;
mod decide;
mod disk;
mod follow;
mod given;
mod gone;
mod handover;
mod home;
mod lead;
mod lend;
mod losses;
mod others;
pub(crate) mod past;
pub(crate) mod rewind;
mod roles;
mod scrub;
mod session;
mod show;
mod source;
mod wire;

pub(crate) use claim::{Claim, Claims};
pub(crate) use decide::Again;
pub(crate) use follow::{FollowOrders, FollowScrub, FollowView, Following, start};
pub(crate) use given::read as read_as_given;
pub(crate) use gone::{end, forget_gone};
pub(crate) use handover::{HandOver, HandedOver, SteppedBack, hand_over, may_hand_over};
pub(crate) use home::watch as watch_for_home;
pub(crate) use lead::{Serving, keep, take};
pub(crate) use lend::lend;
pub(crate) use losses::{forget as forget_losses, kept as kept_losses, path as losses_path};
pub(crate) use others::{Leads, is_elsewhere, lead_again, look_around, need_no_newer, not_grown};
pub(crate) use past::show_again;
pub(crate) use roles::{
    FollowCall, follow_again, follow_giving_up, follow_now, follows, pause, promote, settle_losses,
    tell,
};
pub(crate) use show::{
    disk_word, journal_of, peer_of_follower, peers_of_leader, replay_of, unkept,
};

use crate::node::Node;
use crate::resource::Resource;
use std::path::PathBuf;

/// This node led, and follows nobody while it does not use its disk.
fn tell_unused(node: &Node, name: &str) {
    let text = format!(
        "the node does not follow: its disk is not in use, and may hold what is nowhere else; \
         `holdfast attach-disk {name}` has it used again"
    );
    tracing::warn!(resource = name, "{text}");
    node.hub.notice(name, None, &text);
}

/// This node led by a journal that does not say all that it wrote, and does not follow for that.
pub(crate) fn tell_unproven(node: &Node, name: &str) {
    let text = format!(
        "the node does not follow: its journal failed while it was Primary, and does not say what is \
         on its disk; `holdfast primary {name}` has it lead again, `holdfast connect {name} \
         --discard-my-data` gives its data up when another node is Primary"
    );
    tracing::warn!(resource = name, "{text}");
    node.hub.notice(name, None, &text);
}

/// Where what this node keeps of the followers of a resource is.
fn notes_dir(state_dir: &std::path::Path, resource: &Resource) -> PathBuf {
    state_dir.join("logpeers").join(resource.id.to_string())
}
