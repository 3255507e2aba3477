//! Clusters that become one, and one that becomes two.

use super::*;
use crate::{MergeRequest, PairOptions, SplitPlan, state::fate::settle};

/// A cluster of two with a resource of its own; `number` is that of the resource.
fn pair(name: &str, nodes: [&str; 2], number: u8, resource_name: &str) -> [Node; 2] {
    let mut one = fresh(nodes[0]);
    one.create_cluster(Some(name), &at(nodes[0]), NOW).unwrap();
    let mut other = fresh(nodes[1]);
    join(&mut one, &mut other).unwrap();
    let (a, b) = (one.uuid(), other.uuid());
    let changes = vec![
        Change::resource(&resource(number, resource_name)),
        Change::member(&member(number, a, 0)),
        Change::member(&member(number, b, 1)),
        Change::pair(ResourceId([number; 16]), a, b, &PairOptions::default()),
    ];
    one.change(changes, NOW).unwrap();
    exchange(&mut one, &mut other);
    [one, other]
}

fn lab() -> [Node; 2] {
    pair("lab", ["alpha", "beta"], 1, "r1")
}

fn office() -> [Node; 2] {
    pair("office", ["gamma", "delta"], 2, "r2")
}

fn travel<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

fn ask(
    issuer: &mut Node,
    node: &Node,
    token: &JoinToken,
    commit: bool,
) -> Result<JoinResponse, Refusal> {
    let request: MergeRequest = travel(&node.merge_request(token, commit)?);
    issuer.admit_cluster(&request, node.print(), NOW)
}

/// The cluster of `node` is merged into that of `issuer`; only these two know of it.
fn merge(issuer: &mut Node, node: &mut Node) -> Result<(), Refusal> {
    let token = issuer.issue_token(60, &[], NOW)?;
    let checked = ask(issuer, node, &token, false)?;
    node.check_cluster(&token, &checked, NOW)?;
    let response = ask(issuer, node, &token, true)?;
    node.accept_cluster(&token, travel(&response), NOW)?;
    Ok(())
}

fn names(node: &Node) -> Vec<String> {
    let mut names: Vec<String> = node.records().nodes().into_iter().map(|n| n.name).collect();
    names.sort();
    names
}

fn resources(node: &Node) -> Vec<String> {
    let mut names: Vec<String> = node.records().resources().into_iter().map(|r| r.name).collect();
    names.sort();
    names
}

fn cluster_of(node: &Node) -> (Uuid, String) {
    let cluster = node.membership().unwrap();
    (cluster.uuid, cluster.name.clone())
}

#[track_caller]
fn assert_knows(node: &Node, nodes: &[&str], all: &[&str]) {
    assert_eq!(names(node), nodes, "the nodes that {} knows", node.identity().name());
    assert_eq!(resources(node), all, "the resources that {} knows", node.identity().name());
    assert!(node.records().conflicts().is_empty());
    for other in node.others() {
        assert!(node.pins().node_of(&other.fingerprint).is_some());
    }
}

const ALL: [&str; 4] = ["alpha", "beta", "delta", "gamma"];

#[test]
fn two_clusters_become_one_and_who_was_away_follows() {
    let ([mut alpha, mut beta], [mut gamma, mut delta]) = (lab(), office());
    merge(&mut alpha, &mut gamma).unwrap();
    assert_knows(&gamma, &ALL, &["r1", "r2"]);
    assert_eq!(cluster_of(&gamma), cluster_of(&alpha));
    // Restarted in between: it is durable.
    let mut gamma = gamma.restart();
    exchange(&mut gamma, &mut alpha);
    // The one that was away speaks first, and is of the old cluster.
    let was = delta.membership().unwrap().uuid;
    exchange(&mut delta, &mut gamma);
    assert_ne!(delta.membership().unwrap().uuid, was);
    exchange(&mut beta, &mut alpha);
    let uuid = cluster_of(&alpha);
    for node in [&alpha, &beta, &gamma, &delta] {
        assert_knows(node, &ALL, &["r1", "r2"]);
        assert_eq!(cluster_of(node), uuid);
    }
    assert_eq!(exchange(&mut beta, &mut delta), 1, "nothing is left to say");
    // The memberships are as they were.
    assert_eq!(alpha.records().members(ResourceId([2; 16])).len(), 2);
    assert_eq!(code(merge(&mut alpha, &mut delta)), Code::AlreadyMember);
}

#[test]
fn one_that_is_called_first_follows_too() {
    let ([mut alpha, _beta], [mut gamma, mut delta]) = (lab(), office());
    merge(&mut alpha, &mut gamma).unwrap();
    exchange(&mut gamma, &mut delta);
    assert_eq!(cluster_of(&delta), cluster_of(&alpha));
    assert_knows(&delta, &ALL, &["r1", "r2"]);
}

#[test]
fn common_names_are_refused_all_of_them_and_nothing_changes() {
    let [mut alpha, mut beta] = lab();
    let [mut gamma, _delta] = pair("office", ["gamma", "beta"], 2, "r1");
    gamma.change(vec![Change::resource(&resource(3, "r3"))], NOW).unwrap();
    alpha.change(vec![Change::resource(&resource(4, "r3"))], NOW).unwrap();
    let before = (alpha.records().digest(), gamma.records().digest());
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    for commit in [false, true] {
        let refusal = ask(&mut alpha, &gamma, &token, commit).unwrap_err();
        assert_eq!(refusal.code, Code::NameTaken);
        assert!(
            refusal.message.contains("nodes named beta and resources named r1, r3"),
            "{refusal}"
        );
    }
    assert_eq!((alpha.records().digest(), gamma.records().digest()), before);
    // What came up in between is seen by the one that accepts.
    let [mut gamma, _delta] = office();
    let response = ask(&mut alpha, &gamma, &token, true).unwrap();
    gamma.change(vec![Change::resource(&resource(9, "r1"))], NOW).unwrap();
    let before = (gamma.records().digest(), cluster_of(&gamma));
    assert_eq!(code(gamma.accept_cluster(&token, response, NOW)), Code::NameTaken);
    assert_eq!((gamma.records().digest(), cluster_of(&gamma)), before);
    exchange(&mut alpha, &mut beta);
    assert_eq!(names(&beta), ["alpha", "beta", "gamma"], "it can ask again");
}

#[test]
fn a_lost_answer_can_be_asked_for_again_and_a_check_uses_nothing_up() {
    let ([mut alpha, _beta], [mut gamma, _delta]) = (lab(), office());
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    ask(&mut alpha, &gamma, &token, false).unwrap();
    assert_eq!(names(&alpha), ["alpha", "beta"]);
    ask(&mut alpha, &gamma, &token, true).unwrap();
    let (mut alpha, gone) = (alpha.restart(), gamma.restart());
    gamma = gone;
    let again = ask(&mut alpha, &gamma, &token, true).unwrap();
    gamma.accept_cluster(&token, again, NOW).unwrap();
    assert_knows(&gamma, &ALL, &["r1", "r2"]);
    // Nobody else can use it, nor with another certificate.
    let [epsilon, _zeta] = pair("third", ["epsilon", "zeta"], 5, "r5");
    assert_eq!(code(ask(&mut alpha, &epsilon, &token, true)), Code::TokenUsed);
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    let request = epsilon.merge_request(&token, true).unwrap();
    let foreign = alpha.print();
    assert_eq!(code(alpha.admit_cluster(&request, foreign, NOW)), Code::CertificateInvalid);
}

#[test]
fn two_merges_into_each_other_end_in_one_cluster() {
    let ([mut alpha, mut beta], [mut gamma, mut delta]) = (lab(), office());
    let (one, other) = (alpha.membership().unwrap().uuid, gamma.membership().unwrap().uuid);
    let to_alpha = alpha.issue_token(60, &[], NOW).unwrap();
    let to_delta = delta.issue_token(60, &[], NOW).unwrap();
    let for_gamma = ask(&mut alpha, &gamma, &to_alpha, true).unwrap();
    let for_beta = ask(&mut delta, &beta, &to_delta, true).unwrap();
    gamma.accept_cluster(&to_alpha, for_gamma, NOW).unwrap();
    beta.accept_cluster(&to_delta, for_beta, NOW).unwrap();
    exchange(&mut gamma, &mut alpha);
    exchange(&mut beta, &mut alpha);
    exchange(&mut gamma, &mut delta);
    exchange(&mut alpha, &mut delta);
    exchange(&mut beta, &mut gamma);
    for node in [&alpha, &beta, &gamma, &delta] {
        assert_eq!(cluster_of(node).0, one.min(other));
        assert_knows(node, &ALL, &["r1", "r2"]);
    }
}

fn four() -> [Node; 4] {
    let ([mut alpha, mut beta], [mut gamma, mut delta]) = (lab(), office());
    merge(&mut alpha, &mut gamma).unwrap();
    exchange(&mut gamma, &mut alpha);
    exchange(&mut delta, &mut gamma);
    exchange(&mut beta, &mut alpha);
    [alpha, beta, gamma, delta]
}

fn planned(node: &mut Node, names: &[&str]) -> Uuid {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    match node.plan_split(&names, Some("new"), NOW).unwrap() {
        SplitPlan::Planned(fate) => fate.uuid,
        SplitPlan::Done(fate) => panic!("{} was done before", fate.uuid),
    }
}

/// Tells `node` that it is decided, as `from` would.
fn tell(from: &Node, node: &mut Node, decided: &Record) -> Result<(), Refusal> {
    let message = SyncMessage { records: vec![decided.clone()], ..from.start_sync()? };
    node.sync(from.uuid(), travel(&message), NOW).map(|_| ())
}

#[track_caller]
fn assert_apart(parts: [&Node; 4], old: Uuid) {
    let [alpha, beta, gamma, delta] = parts;
    for node in [alpha, beta] {
        assert_knows(node, &["alpha", "beta"], &["r1"]);
        assert_eq!(cluster_of(node), (old, "lab".to_owned()));
        assert_eq!(node.records().members(ResourceId([1; 16])).len(), 2);
    }
    for node in [gamma, delta] {
        assert_knows(node, &["delta", "gamma"], &["r2"]);
        assert_eq!(cluster_of(node), (cluster_of(gamma).0, "new".to_owned()));
        assert_eq!(node.records().members(ResourceId([2; 16])).len(), 2);
    }
    assert_ne!(cluster_of(gamma).0, old);
    for (one, other) in [(alpha, gamma), (alpha, delta), (beta, gamma), (beta, delta)] {
        assert!(one.pins().node_of(&other.print()).is_none());
        assert!(other.pins().node_of(&one.print()).is_none());
    }
}

#[test]
fn a_cluster_becomes_two_and_they_know_nothing_of_each_other() {
    let [mut alpha, mut beta, mut gamma, mut delta] = four();
    let old = cluster_of(&alpha).0;
    let plan = planned(&mut alpha, &["gamma", "delta"]);
    assert_eq!(planned(&mut alpha, &["delta", "gamma"]), plan, "the same again");
    for node in [&mut beta, &mut gamma, &mut delta] {
        exchange(&mut alpha, node);
        assert_knows(node, &ALL, &["r1", "r2"]);
    }
    let decided = alpha.decide_split(plan, NOW).unwrap();
    for node in [&mut gamma, &mut delta, &mut beta] {
        tell(&alpha, node, &decided).unwrap();
    }
    alpha.merge(vec![decided], NOW).unwrap();
    assert_apart([&alpha, &beta, &gamma, &delta], old);
    // Again: done, from both sides.
    let again = ["gamma".to_owned(), "delta".to_owned()];
    for node in [&mut alpha, &mut delta] {
        let found = node.plan_split(&again, None, NOW).unwrap();
        assert!(matches!(found, SplitPlan::Done(_)), "{found:?}");
    }
    // A call of the other part that was under way is not taken.
    let message = gamma.start_sync().unwrap();
    let of_gamma = gamma.uuid();
    assert_eq!(code(alpha.sync(of_gamma, message, NOW)), Code::OtherCluster);
    let all = [alpha.restart(), beta.restart(), gamma.restart(), delta.restart()];
    let [alpha, beta, gamma, delta] = &all;
    assert_apart([alpha, beta, gamma, delta], old);
}

#[test]
fn a_split_whose_coordinator_dies_at_any_step_ends_whole() {
    // Who was told before alpha died; alpha itself comes back and knows the plan only.
    for told in 0..8_u8 {
        let [mut alpha, mut beta, mut gamma, mut delta] = four();
        let old = cluster_of(&alpha).0;
        let plan = planned(&mut alpha, &["gamma", "delta"]);
        for node in [&mut beta, &mut gamma, &mut delta] {
            exchange(&mut alpha, node);
        }
        let decided = alpha.decide_split(plan, NOW).unwrap();
        for (at, node) in [&mut gamma, &mut delta, &mut beta].into_iter().enumerate() {
            if told & (1 << at) != 0 {
                tell(&alpha, node, &decided).unwrap();
            }
        }
        let mut all = [alpha.restart(), beta, gamma, delta];
        for _ in 0..2 {
            for one in 0..4 {
                for other in 0..4 {
                    if one != other {
                        meet(&mut all, one, other);
                    }
                }
            }
        }
        if told == 0 {
            assert!(all.iter().all(|node| names(node) == ALL), "nobody had decided");
            all[0].cancel_split(NOW).unwrap();
            continue;
        }
        let [alpha, beta, gamma, delta] = &all;
        assert_apart([alpha, beta, gamma, delta], old);
    }
}

/// What two nodes do when one calls the other: nothing without trust, else they exchange records.
fn meet(all: &mut [Node; 4], one: usize, other: usize) {
    let (caller, called) = (all[one].print(), all[other].print());
    let (one_id, other_id) = (all[one].uuid(), all[other].uuid());
    if all[one].pins().node_of(&called).is_none() {
        return;
    }
    if all[other].pins().node_of(&caller).is_none() {
        all[one].refused_by(other_id, NOW).unwrap();
        return;
    }
    let mut message = all[one].start_sync().unwrap();
    for _ in 0..8 {
        let Ok((answer, _)) = all[other].sync(one_id, travel(&message), NOW) else { return };
        match all[one].sync(other_id, travel(&answer), NOW) {
            Ok((next, _)) => message = next,
            Err(_) => return,
        }
    }
}

#[test]
fn what_is_buried_on_one_side_is_not_buried_on_the_other() {
    let [mut alpha, _beta, mut gamma, _delta] = four();
    let plan = planned(&mut alpha, &["gamma", "delta"]);
    exchange(&mut alpha, &mut gamma);
    let decided = alpha.decide_split(plan, NOW).unwrap();
    // It comes together with all that alpha has buried already.
    let mut after = alpha.restart();
    let before = after.start_sync().unwrap();
    after.merge(vec![decided], NOW).unwrap();
    let mut records: Vec<Record> = after.records().iter().cloned().collect();
    records.reverse();
    gamma.sync(after.uuid(), SyncMessage { records, ..before }, NOW).unwrap();
    assert_knows(&gamma, &["delta", "gamma"], &["r2"]);
}

#[test]
fn what_was_split_can_be_merged_again_either_way() {
    for back in [false, true] {
        let [mut alpha, mut beta, mut gamma, mut delta] = four();
        let old = cluster_of(&alpha).0;
        let plan = planned(&mut alpha, &["gamma", "delta"]);
        for node in [&mut beta, &mut gamma, &mut delta] {
            exchange(&mut alpha, node);
        }
        let decided = alpha.decide_split(plan, NOW).unwrap();
        for node in [&mut gamma, &mut delta, &mut beta] {
            tell(&alpha, node, &decided).unwrap();
        }
        alpha.merge(vec![decided], NOW).unwrap();
        let goal = if back { old } else { plan };
        if back {
            merge(&mut alpha, &mut gamma).unwrap();
        } else {
            merge(&mut gamma, &mut alpha).unwrap();
        }
        exchange(&mut alpha, &mut gamma);
        exchange(&mut delta, &mut gamma);
        exchange(&mut alpha, &mut beta);
        for node in [&alpha, &beta, &gamma, &delta] {
            assert_knows(node, &ALL, &["r1", "r2"]);
            assert_eq!(cluster_of(node).0, goal);
        }
        // And parted again.
        let again = planned(&mut beta, &["delta", "gamma"]);
        assert_ne!(again, plan);
    }
}

#[test]
fn a_resource_with_members_in_both_parts_is_in_the_way() {
    let [mut alpha, mut beta, ..] = four();
    let plan = |node: &mut Node, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        node.plan_split(&names, None, NOW)
    };
    let before = alpha.records().digest();
    let refusal = plan(&mut alpha, &["gamma", "beta"]).unwrap_err();
    assert_eq!(refusal.code, Code::NodeBusy);
    assert!(refusal.message.ends_with("r1 (alpha, beta); r2 (delta, gamma)"), "{refusal}");
    assert_eq!(code(plan(&mut alpha, &["nobody"])), Code::NodeUnknown);
    assert_eq!(code(plan(&mut alpha, &[])), Code::NodeBusy);
    assert_eq!(code(plan(&mut alpha, &ALL)), Code::NodeBusy);
    assert_eq!(alpha.records().digest(), before);
    // A member that came between plan and decision is seen.
    let fate = planned(&mut alpha, &["gamma", "delta"]);
    exchange(&mut alpha, &mut beta);
    let gamma = alpha.records().node_named("gamma").unwrap().uuid;
    alpha.change(vec![Change::member(&member(1, gamma, 5))], NOW).unwrap();
    assert_eq!(code(alpha.decide_split(fate, NOW)), Code::NodeBusy);
    // Only one at a time, and no merge meanwhile.
    assert_eq!(code(plan(&mut beta, &["alpha"])), Code::NodeBusy);
    assert_eq!(code(beta.refuse_planned("merged")), Code::NodeBusy);
    beta.cancel_split(NOW).unwrap();
    exchange(&mut alpha, &mut beta);
    assert_eq!(code(alpha.cancel_split(NOW)), Code::NoSplit);
}

#[test]
fn a_refusal_without_a_plan_means_nothing() {
    let [mut alpha, _beta, gamma, _delta] = four();
    assert!(!alpha.refused_by(gamma.uuid(), NOW).unwrap());
    planned(&mut alpha, &["gamma", "delta"]);
    let beta = alpha.records().node_named("beta").unwrap().uuid;
    assert!(!alpha.refused_by(beta, NOW).unwrap(), "it stays with this one");
    assert!(alpha.refused_by(gamma.uuid(), NOW).unwrap());
    assert_knows(&alpha, &["alpha", "beta"], &["r1"]);
}

#[test]
fn a_node_that_came_again_after_the_split_is_not_meant_by_it() {
    let [mut alpha, mut beta, mut gamma, mut delta] = four();
    let plan = planned(&mut alpha, &["gamma", "delta"]);
    exchange(&mut alpha, &mut beta);
    exchange(&mut alpha, &mut gamma);
    exchange(&mut alpha, &mut delta);
    let decided = alpha.decide_split(plan, NOW).unwrap();
    tell(&alpha, &mut delta, &decided).unwrap();
    alpha.merge(vec![decided], NOW).unwrap();
    let later = UnixMillis(NOW.0 + DAY);
    delta.finish_leave().unwrap();
    let token = alpha.issue_token(60, &[], later).unwrap();
    let request = delta.join_request(&token, &at("delta")).unwrap();
    let response = alpha.admit(&request, delta.print(), later).unwrap();
    delta.accept(&token, response, later).unwrap();
    // Beta was away, and hears of both at once.
    exchange(&mut alpha, &mut beta);
    for node in [&alpha, &beta, &delta] {
        assert_eq!(names(node), ["alpha", "beta", "delta"]);
        assert_eq!(node.membership().unwrap().uuid, cluster_of(&alpha).0);
    }
    let own = delta.uuid();
    assert!(!settle(&mut delta.data.clone(), own).unwrap());
}
