use super::*;

mod fate;

use crate::{MemberRecord, ResourceRecord};
use holdfast_units::ResourceId;
use std::collections::BTreeMap;
use tempfile::TempDir;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const DAY: u64 = 86_400_000;

struct Node {
    state: ClusterState,
    dir: TempDir,
}

impl std::ops::Deref for Node {
    type Target = ClusterState;

    fn deref(&self) -> &ClusterState {
        &self.state
    }
}

impl std::ops::DerefMut for Node {
    fn deref_mut(&mut self) -> &mut ClusterState {
        &mut self.state
    }
}

impl Node {
    fn uuid(&self) -> Uuid {
        self.identity().uuid()
    }

    fn print(&self) -> Fingerprint {
        self.identity().fingerprint()
    }

    /// As after the end of the process.
    fn restart(self) -> Self {
        let Self { state, dir } = self;
        drop(state);
        let state = ClusterState::open(dir.path(), None, "default").unwrap();
        Self { state, dir }
    }
}

fn fresh(name: &str) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let state = ClusterState::open(dir.path(), Some(name), "default").unwrap();
    Node { state, dir }
}

fn at(name: &str) -> [Address; 1] {
    [Address::parse(&format!("{name}.example:7850"), None).unwrap()]
}

fn founder(name: &str) -> Node {
    let mut node = fresh(name);
    node.create_cluster(Some("lab"), &at(name), NOW).unwrap();
    node
}

fn join(issuer: &mut Node, node: &mut Node) -> Result<(), Refusal> {
    let token = issuer.issue_token(60, &[], NOW)?;
    let token = JoinToken::parse(&token.reveal())?;
    let name = node.identity().name().to_owned();
    let request = node.join_request(&token, &at(&name))?;
    let response = issuer.admit(&request, node.print(), NOW)?;
    node.accept(&token, response, NOW)?;
    Ok(())
}

fn three() -> [Node; 3] {
    let (mut alpha, mut beta, mut gamma) = (founder("alpha"), fresh("beta"), fresh("gamma"));
    join(&mut alpha, &mut beta).unwrap();
    join(&mut alpha, &mut gamma).unwrap();
    exchange(&mut alpha, &mut beta);
    [alpha, beta, gamma]
}

/// An exchange as the daemon does it; how many messages it took.
fn exchange(left: &mut Node, right: &mut Node) -> usize {
    let (left_id, right_id) = (left.uuid(), right.uuid());
    let travel = |message: SyncMessage| {
        let text = serde_json::to_string(&message).unwrap();
        assert!(text.len() <= MAX_SYNC_BYTES);
        serde_json::from_str::<SyncMessage>(&text).unwrap()
    };
    let mut message = left.start_sync().unwrap();
    for count in 1..64 {
        let (answer, _) = right.sync(left_id, travel(message), NOW).unwrap();
        let quiet = answer.records.is_empty();
        (message, _) = left.sync(right_id, travel(answer), NOW).unwrap();
        if quiet && message.records.is_empty() {
            assert_eq!(left.records().digest(), right.records().digest());
            return count;
        }
    }
    panic!("the exchange did not end");
}

fn code<T>(result: Result<T, Refusal>) -> Code {
    let refusal = result.err().expect("it must be refused");
    assert!(!refusal.message.is_empty() && !refusal.message.ends_with('.'));
    refusal.code
}

fn resource(number: u8, name: &str) -> ResourceRecord {
    ResourceRecord {
        id: ResourceId([number; 16]),
        name: name.into(),
        formerly: None,
        size_bytes: 1 << 30,
        created_at: NOW.0,
        options: BTreeMap::new(),
    }
}

fn member(number: u8, node: Uuid, slot: u8) -> MemberRecord {
    MemberRecord {
        resource: ResourceId([number; 16]),
        node,
        slot,
        diskless: false,
        protocol: "C".into(),
        addresses: vec![],
        joined_at: NOW.0,
    }
}

#[test]
fn a_cluster_of_one() {
    let mut alpha = fresh("alpha");
    assert!(!alpha.is_member() && alpha.pins().is_empty());
    let made = alpha.create_cluster(None, &at("alpha"), NOW).unwrap();
    assert_eq!(made.name, "alpha");
    assert_eq!(code(alpha.create_cluster(None, &[], NOW)), Code::AlreadyMember);
    let alpha = alpha.restart();
    assert_eq!(alpha.membership(), Some(&made));
    assert_eq!(alpha.records().nodes().len(), 1);
    assert!(alpha.pins().is_empty() && !alpha.was_removed());
}

#[test]
fn both_sides_know_each_other_after_a_join_and_a_restart() {
    let (mut alpha, mut beta) = (founder("alpha"), fresh("beta"));
    join(&mut alpha, &mut beta).unwrap();
    for _ in 0..2 {
        assert_eq!(alpha.pins().node_of(&beta.print()).unwrap().name, "beta");
        assert_eq!(beta.pins().node_of(&alpha.print()).unwrap().uuid, alpha.uuid());
        assert!(beta.pins().node_of(&beta.print()).is_none(), "itself is no other node");
        assert_eq!(alpha.membership().unwrap().uuid, beta.membership().unwrap().uuid);
        assert_eq!(beta.membership().unwrap().name, "lab");
        assert_eq!(beta.records().node_named("beta").unwrap().addresses, ["beta.example:7850"]);
        (alpha, beta) = (alpha.restart(), beta.restart());
    }
}

#[test]
fn the_third_node_hears_of_the_second_by_exchange() {
    let (mut alpha, mut beta, mut gamma) = (founder("alpha"), fresh("beta"), fresh("gamma"));
    join(&mut alpha, &mut beta).unwrap();
    join(&mut alpha, &mut gamma).unwrap();
    assert!(beta.pins().node_of(&gamma.print()).is_none());
    exchange(&mut beta, &mut alpha);
    assert_eq!(beta.pins().node_of(&gamma.print()).unwrap().name, "gamma");
    assert_eq!(exchange(&mut beta, &mut gamma), 1, "nothing to say: one message each");
}

#[test]
fn a_token_lets_one_node_in_once() {
    let (mut alpha, mut beta, gamma) = (founder("alpha"), fresh("beta"), fresh("gamma"));
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    let request = beta.join_request(&token, &[]).unwrap();
    let response = alpha.admit(&request, beta.print(), NOW).unwrap();
    // Used up, also after a restart, and for the same node when it left.
    let mut alpha = alpha.restart();
    let other = gamma.join_request(&token, &[]).unwrap();
    assert_eq!(code(alpha.admit(&other, gamma.print(), NOW)), Code::TokenUsed);
    // The answer was lost: the same node may ask again.
    drop(response);
    let response = alpha.admit(&request, beta.print(), NOW).unwrap();
    assert_eq!(code(alpha.admit(&request, gamma.print(), NOW)), Code::TokenUsed);
    beta.accept(&token, response, NOW).unwrap();
    let gone = beta.plan_leave(false, NOW).unwrap();
    alpha.merge(gone, NOW).unwrap();
    beta.finish_leave().unwrap();
    assert_eq!(code(alpha.admit(&request, beta.print(), NOW)), Code::TokenUsed);
    assert!(alpha.pins().is_empty());
}

#[test]
fn expired_unknown_and_foreign_tokens_are_refused() {
    let (mut alpha, mut delta, beta) = (founder("alpha"), founder("delta"), fresh("beta"));
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    let mut request = beta.join_request(&token, &[]).unwrap();
    let late = UnixMillis(NOW.0 + 60_000);
    assert_eq!(code(alpha.admit(&request, beta.print(), late)), Code::TokenExpired);
    assert_eq!(code(delta.admit(&request, beta.print(), NOW)), Code::OtherCluster);
    request.cluster = delta.membership().unwrap().uuid;
    assert_eq!(code(delta.admit(&request, beta.print(), NOW)), Code::TokenUnknown);
    let other = alpha.issue_token(60, &[], NOW).unwrap();
    request.cluster = token.cluster;
    request.secret = other.secret;
    assert_eq!(code(alpha.admit(&request, beta.print(), NOW)), Code::TokenWrongSecret);
    let mut nobody = fresh("nobody");
    assert_eq!(code(nobody.admit(&request, beta.print(), NOW)), Code::NotMember);
    assert_eq!(code(nobody.issue_token(60, &[], NOW)), Code::NotMember);
    assert_eq!(alpha.records().nodes().len(), 1);
}

#[test]
fn newcomers_that_do_not_fit_are_refused_and_the_token_stays() {
    let (mut alpha, mut beta) = (founder("alpha"), fresh("beta"));
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    let request = beta.join_request(&token, &[]).unwrap();
    let with = |change: fn(&mut JoinRequest)| {
        let mut request = request.clone();
        change(&mut request);
        request
    };
    let cases = [
        (with(|r| r.name = "alpha".into()), Code::NameTaken),
        (with(|r| r.name = "../x".into()), Code::BadName),
        (with(|r| r.addresses = vec!["x:0".into()]), Code::BadAddress),
        (with(|r| r.addresses = vec!["x:1".into(); MAX_ADDRESSES + 1]), Code::BadAddress),
    ];
    for (request, expected) in cases {
        assert_eq!(code(alpha.admit(&request, beta.print(), NOW)), expected);
    }
    let mut copied = request.clone();
    copied.node = alpha.uuid();
    assert_eq!(code(alpha.admit(&copied, beta.print(), NOW)), Code::NodeExists);
    let own = alpha.print();
    assert_eq!(code(alpha.admit(&request, own, NOW)), Code::NodeExists);
    let response = alpha.admit(&request, beta.print(), NOW).unwrap();
    beta.accept(&token, response, NOW).unwrap();
}

#[test]
fn a_node_that_lost_its_membership_may_join_again() {
    let (mut alpha, mut beta) = (founder("alpha"), fresh("beta"));
    join(&mut alpha, &mut beta).unwrap();
    beta.finish_leave().unwrap();
    assert_eq!(alpha.records().nodes().len(), 2, "alpha was not told");
    join(&mut alpha, &mut beta).unwrap();
    assert_eq!(alpha.records().nodes().len(), 2);
}

#[test]
fn a_cluster_has_an_end() {
    let mut alpha = founder("alpha");
    let record = alpha.records().node(alpha.uuid()).unwrap();
    let list = (1..MAX_CLUSTER_NODES).map(|n| {
        let (uuid, name) = (Uuid::from_u128(n as u128), format!("n{n}"));
        Change::node(&NodeRecord {
            uuid,
            name,
            fingerprint: Fingerprint([0; 32]),
            ..record.clone()
        })
    });
    alpha.change(list.collect(), NOW).unwrap();
    let mut beta = fresh("beta");
    assert_eq!(code(join(&mut alpha, &mut beta)), Code::ClusterFull);
}

#[test]
fn answers_that_do_not_fit_are_refused() {
    let (mut alpha, mut beta) = (founder("alpha"), fresh("beta"));
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    let request = beta.join_request(&token, &[]).unwrap();
    let good = alpha.admit(&request, beta.print(), NOW).unwrap();
    let other = JoinResponse { cluster: Uuid::nil(), ..good.clone() };
    assert_eq!(code(beta.accept(&token, other, NOW)), Code::OtherCluster);
    let named = JoinResponse { name: "a/b".into(), ..good.clone() };
    assert_eq!(code(beta.accept(&token, named, NOW)), Code::BadName);
    for missing in [Key::node(alpha.uuid()), Key::node(beta.uuid())] {
        let mut cut = good.clone();
        cut.records.retain(|record| record.key != missing);
        assert_eq!(code(beta.accept(&token, cut, NOW)), Code::NodeUnknown);
    }
    assert!(!beta.is_member() && beta.pins().is_empty());
    beta.accept(&token, good.clone(), NOW).unwrap();
    assert_eq!(code(beta.accept(&token, good, NOW)), Code::AlreadyMember);
    assert_eq!(code(beta.join_request(&token, &[])), Code::AlreadyMember);
}

#[test]
fn tokens_name_addresses() {
    let mut alpha = founder("alpha");
    assert_eq!(alpha.issue_token(60, &[], NOW).unwrap().addresses, at("alpha"));
    assert_eq!(alpha.issue_token(60, &at("other"), NOW).unwrap().addresses, at("other"));
    alpha.set_addresses(&[], NOW).unwrap();
    assert_eq!(code(alpha.issue_token(60, &[], NOW)), Code::BadAddress);
    let many = vec![at("x")[0].clone(); MAX_ADDRESSES + 1];
    assert_eq!(code(alpha.issue_token(60, &many, NOW)), Code::BadAddress);
    assert_eq!(code(alpha.issue_token(0, &at("x"), NOW)), Code::BadTtl);
}

#[test]
fn addresses_are_told_once() {
    let mut alpha = founder("alpha");
    assert!(!alpha.set_addresses(&at("alpha"), NOW).unwrap());
    assert!(alpha.set_addresses(&at("other"), NOW).unwrap());
    assert_eq!(alpha.restart().records().nodes()[0].addresses, ["other.example:7850"]);
}

#[test]
fn removing_a_node_takes_its_parts_and_its_pin() {
    let [mut alpha, mut beta, gamma] = three();
    let (beta_id, gamma_id) = (beta.uuid(), gamma.uuid());
    let changes = vec![
        Change::resource(&resource(7, "r0")),
        Change::member(&member(7, alpha.uuid(), 0)),
        Change::member(&member(7, gamma_id, 1)),
    ];
    assert_eq!(alpha.change(changes, NOW).unwrap().len(), 3);
    exchange(&mut alpha, &mut beta);

    assert_eq!(code(alpha.remove("nobody", true, NOW)), Code::NodeUnknown);
    assert_eq!(code(alpha.remove("alpha", true, NOW)), Code::NodeBusy);
    assert_eq!(code(alpha.remove("gamma", false, NOW)), Code::ForceNeeded);
    let gone = alpha.remove("gamma", true, NOW).unwrap();
    let resource = ResourceId([7; 16]);
    assert_eq!(gone, [Key::member(resource, gamma_id), Key::node(gamma_id)]);
    assert_eq!(code(alpha.remove("gamma", true, NOW)), Code::NodeUnknown);
    exchange(&mut alpha, &mut beta);
    for node in [&alpha, &beta] {
        assert!(node.pins().node_of(&gamma.print()).is_none());
        assert_eq!(node.records().members(resource).len(), 1);
        assert_eq!(node.pins().len(), 1);
    }
    alpha.remove(&beta_id.to_string(), true, NOW).unwrap();
    assert!(alpha.pins().is_empty());
}

#[test]
fn a_removed_node_knows_when_it_hears_of_it() {
    let [mut alpha, mut beta, _] = three();
    let gone = alpha.remove("beta", true, NOW).unwrap();
    let version = |key| alpha.records().version(key).unwrap().clone();
    let list = gone.iter().map(version).collect();
    beta.merge(list, NOW).unwrap();
    let mut beta = beta.restart();
    assert!(beta.was_removed());
    assert_eq!(code(beta.issue_token(60, &at("x"), NOW)), Code::NodeUnknown);
    assert_eq!(code(beta.change(vec![], NOW)), Code::NodeUnknown);
    beta.plan_leave(false, NOW).unwrap();
    beta.finish_leave().unwrap();
    join(&mut alpha, &mut beta).unwrap();
    assert!(!beta.was_removed());
}

#[test]
fn leaving_needs_no_resources_or_force() {
    let [mut alpha, mut beta, _] = three();
    let part = member(7, beta.uuid(), 0);
    beta.change(vec![Change::resource(&resource(7, "r0")), Change::member(&part)], NOW).unwrap();
    let refusal = beta.plan_leave(false, NOW).unwrap_err();
    assert_eq!(refusal.code, Code::NodeBusy);
    assert!(refusal.message.contains("r0"), "{refusal}");
    let gone = beta.plan_leave(true, NOW).unwrap();
    assert_eq!(gone.len(), 2);
    assert!(!beta.was_removed(), "nothing has changed yet");
    exchange(&mut alpha, &mut beta);
    alpha.merge(gone, NOW).unwrap();
    beta.finish_leave().unwrap();
    assert_eq!(alpha.others().len(), 1);
    assert!(alpha.records().members(part.resource).is_empty());
    let beta = beta.restart();
    assert!(!beta.is_member() && beta.pins().is_empty() && beta.records().is_empty());
    assert_eq!(code(beta.plan_leave(true, NOW)), Code::NotMember);
}

#[test]
fn changes_are_all_or_none_and_must_fit() {
    let mut alpha = founder("alpha");
    let own = alpha.uuid();
    alpha.change(vec![Change::resource(&resource(7, "r0"))], NOW).unwrap();
    let before = alpha.records().digest();
    let bad = [
        (Change::resource(&resource(8, "r0")), Code::NameTaken),
        (Change::resource(&resource(8, "a/b")), Code::BadRecord),
        (Change::member(&member(7, own, 32)), Code::BadRecord),
        (Change::put(Key::node(own), &"x").unwrap(), Code::BadRecord),
        (
            Change::put(Key::parse("option/x").unwrap(), &"x".repeat(crate::MAX_VALUE_BYTES))
                .unwrap(),
            Code::BadRecord,
        ),
    ];
    for (change, expected) in bad {
        let good = Change::resource(&resource(9, "r9"));
        assert_eq!(code(alpha.change(vec![good, change], NOW)), expected);
        assert_eq!(alpha.records().digest(), before);
    }
    alpha.change(vec![Change::member(&member(7, own, 3))], NOW).unwrap();
    let taken = vec![Change::member(&member(7, Uuid::nil(), 3))];
    assert_eq!(code(alpha.change(taken, NOW)), Code::SlotTaken);
    let gone = vec![Change::delete(Key::resource(ResourceId([7; 16])))];
    assert_eq!(alpha.change(gone.clone(), NOW).unwrap().len(), 1);
    assert!(alpha.change(gone, NOW).unwrap().is_empty());
    assert_eq!(code(fresh("beta").change(vec![], NOW)), Code::NotMember);
}

#[test]
fn two_halves_change_apart_and_meet() {
    let [mut alpha, mut beta, mut gamma] = three();
    exchange(&mut alpha, &mut gamma);
    for number in 0..40 {
        let name = format!("r{number}");
        let on_alpha = Change::resource(&resource(number, &name));
        alpha.change(vec![on_alpha], UnixMillis(NOW.0 + 1)).unwrap();
        let on_beta =
            Change::resource(&ResourceRecord { size_bytes: 7, ..resource(number, &name) });
        beta.change(vec![on_beta], UnixMillis(NOW.0 + u64::from(number % 3))).unwrap();
    }
    exchange(&mut gamma, &mut beta);
    exchange(&mut gamma, &mut alpha);
    exchange(&mut beta, &mut alpha);
    assert_eq!(beta.records().digest(), gamma.records().digest());
    assert_eq!(alpha.records().digest(), gamma.records().digest());
    for (number, resource) in alpha.records().resources().iter().enumerate() {
        match number % 3 {
            0 => assert_eq!(resource.size_bytes, 1 << 30),
            2 => assert_eq!(resource.size_bytes, 7),
            _ => {}
        }
    }
    assert!(alpha.records().troubles(NOW).is_empty());
}

#[test]
fn many_records_go_in_several_messages() {
    let [mut alpha, mut beta, _] = three();
    let big = "x".repeat(60_000);
    let list = (0..64).map(|n| Change::put(Key::parse(&format!("option/{n}")).unwrap(), &big));
    alpha.change(list.collect::<Result<_, _>>().unwrap(), NOW).unwrap();
    assert!(exchange(&mut beta, &mut alpha) > 3);
    assert_eq!(beta.restart().records().digest(), alpha.records().digest());
}

#[test]
fn tombstones_go_when_all_nodes_have_them() {
    let (mut alpha, mut beta) = (founder("alpha"), fresh("beta"));
    join(&mut alpha, &mut beta).unwrap();
    alpha.change(vec![Change::resource(&resource(7, "r0"))], NOW).unwrap();
    exchange(&mut alpha, &mut beta);
    alpha.change(vec![Change::delete(Key::resource(ResourceId([7; 16])))], NOW).unwrap();
    let late = UnixMillis(NOW.0 + 40 * DAY);
    assert_eq!(alpha.prune(late).unwrap(), 0, "beta was away");
    exchange(&mut alpha, &mut beta);
    exchange(&mut alpha, &mut beta);
    assert_eq!(alpha.prune(late).unwrap(), 1);
    // Until beta prunes too, it gives the tombstone back; it does no harm.
    exchange(&mut alpha, &mut beta);
    assert_eq!(alpha.prune(late).unwrap() + beta.prune(late).unwrap(), 2);
    assert_eq!(exchange(&mut alpha, &mut beta), 1);
    assert_eq!(alpha.restart().records().len(), 2);
}

#[test]
fn messages_of_another_cluster_change_nothing() {
    let (mut alpha, delta) = (founder("alpha"), founder("delta"));
    let message = delta.start_sync().unwrap();
    assert_eq!(code(alpha.sync(delta.uuid(), message, NOW)), Code::OtherCluster);
    assert_eq!(code(fresh("beta").start_sync()), Code::NotMember);
    assert_eq!(code(fresh("beta").merge(vec![], NOW)), Code::NotMember);
}

#[test]
fn the_name_follows_the_command_line_until_there_is_a_cluster() {
    let alpha = fresh("alpha");
    let dir = alpha.dir;
    drop(alpha.state);
    let mut state = ClusterState::open(dir.path(), Some("beta"), "default").unwrap();
    assert_eq!(state.identity().name(), "beta");
    state.create_cluster(None, &[], NOW).unwrap();
    drop(state);
    let refused = ClusterState::open(dir.path(), Some("gamma"), "default");
    assert_eq!(code(refused), Code::AlreadyMember);
    ClusterState::open(dir.path(), Some("beta"), "default").unwrap();
    assert_eq!(ClusterState::open(dir.path(), None, "x").unwrap().identity().name(), "beta");
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(code(ClusterState::open(empty.path(), None, "a b")), Code::BadName);
    assert!(!empty.path().join("identity").exists());
}

#[test]
fn a_state_directory_has_one_user() {
    let alpha = fresh("alpha");
    let refused = ClusterState::open(alpha.dir.path(), None, "default");
    assert_eq!(code(refused), Code::StateDirBusy);
    alpha.restart();
}

#[test]
fn mixed_up_directories_are_refused() {
    let (alpha, beta) = (founder("alpha"), fresh("beta"));
    let (from, to) = (beta.dir.path().join("identity"), alpha.dir.path().join("identity"));
    drop((alpha.state, beta.state));
    std::fs::remove_dir_all(&to).unwrap();
    std::fs::rename(from, &to).unwrap();
    let refused = ClusterState::open(alpha.dir.path(), None, "default");
    assert_eq!(code(refused), Code::StateDamaged);
}

#[test]
fn a_failed_write_changes_nothing() {
    let mut alpha = founder("alpha");
    let before = alpha.records().digest();
    // A directory in the place of the new file: it cannot be written, not even by root.
    let blocked = alpha.dir.path().join("cluster.state.new");
    std::fs::create_dir(&blocked).unwrap();
    let failed = alpha.change(vec![Change::resource(&resource(7, "r0"))], NOW);
    assert_eq!(code(failed), Code::StateIo);
    assert_eq!(code(alpha.issue_token(60, &[], NOW)), Code::StateIo);
    assert_eq!(alpha.records().digest(), before);
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(alpha.restart().records().digest(), before);
}

#[test]
fn no_secret_is_shown_or_kept() {
    let mut alpha = founder("alpha");
    let token = alpha.issue_token(60, &[], NOW).unwrap();
    let secret = String::from(token.secret.clone());
    let request = fresh("beta").join_request(&token, &[]).unwrap();
    let shown = format!("{alpha:?} {token:?} {request:?}", alpha = alpha.state);
    assert!(!shown.contains(&secret), "{shown}");
    let kept = std::fs::read_to_string(alpha.dir.path().join("cluster.state")).unwrap();
    assert!(!kept.contains(&secret));
}
