//! A log peer whose disk is held behind, and who is to lead: what is held back stays so until nothing is in
//! the way, and then all of it counts.

use crate::logpeer::{hold_back, wait_fetched, wait_gone, wait_up_to_date};
use crate::logpeer_returns::{followed, is_split};
use crate::{SOON, check_blocks, write_blocks};
use holdfast_nbd::{Client, ConnectOptions};
use holdfast_testkit::Node;

fn replayed(node: &Node) -> u64 {
    node.resource("r0").replay.expect("it follows").replayed
}

#[test]
fn a_refused_promotion_replays_nothing_of_what_is_held_back() {
    let cluster = followed(2);
    let round = hold_back(&cluster, 1);
    let before = replayed(&cluster[1]);
    let client = Client::connect(&cluster[0].uri("r0"), &ConnectOptions::default());
    let client = client.expect("the export is there");
    cluster[1].refused(&["primary", "r0"], 1, "NBD clients have it open");
    cluster[1].refused(&["primary", "r0", "--force"], 1, "in reach");
    cluster[1].ok(&["pause", "r0", "fetch"]);
    cluster[1].refused(&["primary", "r0"], 1, "the fetch of this node is paused");
    cluster[1].ok(&["resume", "r0", "fetch"]);
    assert_eq!(replayed(&cluster[1]), before, "what was held back is on the disk");
    drop(client);
    cluster[0].wait_resource("r0", SOON, "nobody has it open", |r| r.open_count == 0);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", round, 0..50);
}

#[test]
fn nothing_is_replayed_for_a_promotion_beside_somebody_who_has_more() {
    let mut cluster = followed(3);
    hold_back(&cluster, 1);
    cluster[1].ok(&["pause", "r0", "fetch"]);
    write_blocks(&cluster[0], "r0", 90, 100..150);
    wait_fetched(&cluster[0], &cluster[2]);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["down", "r0"]);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["resume", "r0", "fetch"]);
    let before = replayed(&cluster[1]);
    cluster[1].refused(&["primary", "r0"], 1, "the node that leads is not in reach");
    assert_eq!(replayed(&cluster[1]), before);
}

#[test]
fn behind_a_fork_it_leads_with_all_it_has_when_whoever_led_apart_from_it_is_gone() {
    let mut cluster = followed(3);
    hold_back(&cluster, 2);
    cluster[1].ok(&["set", "r0", "replay-delay=0", "--peer", "gamma"]);
    cluster[1].ok(&["pause", "r0", "fetch"]);
    write_blocks(&cluster[0], "r0", 90, 100..150);
    wait_fetched(&cluster[0], &cluster[2]);
    let replay = cluster[2].resource("r0").replay.expect("it follows");
    assert!(replay.replayed < replay.fetched, "one has it, and has not replayed it");
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 91, 200..250);
    cluster[2].wait_peer("r0", "beta", SOON, "it is told", is_split);
    let replay = cluster[2].resource("r0").replay.expect("it follows");
    assert!(replay.replayed < replay.fetched, "nothing is replayed behind the fork");
    // A crash leaves a state of before the fork.
    cluster[2].kill9();
    cluster[2].start();
    cluster[2].wait_peer("r0", "beta", SOON, "it is told again", is_split);
    wait_up_to_date(&cluster[2]);
    cluster[1].kill9();
    wait_gone(&cluster[2], "beta");
    cluster[2].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[2], "r0", 90, 100..150);
}
