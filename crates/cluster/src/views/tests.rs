use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const R0: ResourceId = ResourceId([7; 16]);

fn id(number: u8) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

fn put(records: &mut Records, key: &Key, view: &impl Serialize, now: UnixMillis) {
    records.put(key, serde_json::to_string(view).unwrap(), id(0), now).unwrap();
}

fn node(records: &mut Records, number: u8, name: &str, joined_at: u64) {
    let view = NodeRecord {
        uuid: id(number),
        name: name.into(),
        addresses: vec!["alpha:7850".into()],
        fingerprint: Fingerprint([number; 32]),
        joined_at,
    };
    put(records, &Key::node(id(number)), &view, NOW);
}

fn resource(records: &mut Records, number: u8, name: &str, created_at: u64) {
    let id = ResourceId([number; 16]);
    let view = ResourceRecord {
        id,
        name: name.into(),
        formerly: None,
        size_bytes: 1 << 30,
        created_at,
        options: BTreeMap::from([("timeout".into(), "6".into())]),
    };
    put(records, &Key::resource(id), &view, NOW);
}

fn member(records: &mut Records, number: u8, slot: u8, joined_at: u64) {
    let view = MemberRecord {
        resource: R0,
        node: id(number),
        slot,
        diskless: false,
        protocol: "C".into(),
        addresses: vec![],
        joined_at,
    };
    put(records, &Key::member(R0, id(number)), &view, NOW);
}

fn leave(records: &mut Records, number: u8, when: UnixMillis) {
    assert!(records.delete(&Key::member(R0, id(number)), id(0), when).unwrap());
}

#[test]
fn views_read_what_was_written() {
    let mut records = Records::default();
    node(&mut records, 1, "alpha", 5);
    resource(&mut records, 7, "r0", 6);
    member(&mut records, 1, 0, 7);
    let pair = PairOptions { options: BTreeMap::from([("protocol".into(), "A".into())]) };
    put(&mut records, &Key::pair(R0, id(2), id(1)), &pair, NOW);

    assert_eq!(records.node(id(1)).unwrap(), records.node_named("alpha").unwrap());
    assert_eq!(records.nodes().len(), 1);
    assert_eq!(records.resource(R0).unwrap(), records.resource_named("r0").unwrap());
    assert_eq!(records.resources()[0].options["timeout"], "6");
    assert_eq!(records.member(R0, id(1)).unwrap(), records.members(R0)[0]);
    assert_eq!(records.memberships(id(1)).len(), 1);
    assert_eq!(records.pair_options(R0, id(1), id(2)), pair);
    assert_eq!(records.pair_options(R0, id(1), id(3)), PairOptions::default());
    assert!(records.troubles(NOW).is_empty());

    records.delete(&Key::node(id(1)), id(0), NOW).unwrap();
    assert!(records.node(id(1)).is_none() && records.node_named("alpha").is_none());
    assert!(records.get(&Key::resource(R0)).unwrap().contains(&"07".repeat(16)));
}

#[test]
fn slots_are_the_lowest_free_ones() {
    let mut records = Records::default();
    let slot = |records: &Records, number| records.free_slot(R0, id(number), NOW).unwrap();
    assert_eq!(slot(&records, 1), 0);
    member(&mut records, 1, 0, 1);
    member(&mut records, 3, 2, 1);
    assert_eq!(slot(&records, 9), 1);
    assert_eq!(slot(&records, 3), 2, "a member keeps its own");
    let other = ResourceId([9; 16]);
    assert_eq!(records.free_slot(other, id(9), NOW).unwrap(), 0);
}

#[test]
fn a_slot_that_was_left_is_held_for_a_while() {
    let mut records = Records::default();
    member(&mut records, 1, 0, 1);
    leave(&mut records, 1, NOW);
    assert_eq!(records.free_slot(R0, id(2), NOW).unwrap(), 1);
    assert_eq!(records.free_slot(R0, id(1), NOW).unwrap(), 0, "who comes back gets it back");
    let later = UnixMillis(NOW.0 + SLOT_HOLD_MS + 1000);
    assert_eq!(records.free_slot(R0, id(2), later).unwrap(), 0);
    // Given to another meanwhile: who comes back gets another.
    member(&mut records, 2, 0, 1);
    assert_eq!(records.free_slot(R0, id(1), later).unwrap(), 1);
}

#[test]
fn when_all_slots_are_held_the_oldest_is_given_and_32_is_the_end() {
    let mut records = Records::default();
    for number in 0..MAX_NODES {
        member(&mut records, number, number, 1);
    }
    assert_eq!(records.free_slot(R0, id(99), NOW).unwrap_err().code, Code::NoSlot);
    leave(&mut records, 5, UnixMillis(NOW.0 + 2000));
    leave(&mut records, 6, UnixMillis(NOW.0 + 1000));
    assert_eq!(records.free_slot(R0, id(99), UnixMillis(NOW.0 + 3000)).unwrap(), 6);
}

#[test]
fn conflicts_of_two_halves_are_seen_the_same_everywhere() {
    let mut left = Records::default();
    node(&mut left, 1, "alpha", 10);
    resource(&mut left, 7, "r0", 10);
    member(&mut left, 1, 0, 10);
    let mut right = left.clone();
    node(&mut left, 2, "beta", 20);
    member(&mut left, 2, 1, 20);
    resource(&mut left, 8, "new", 20);
    node(&mut right, 3, "beta", 15);
    member(&mut right, 3, 1, 20);
    resource(&mut right, 9, "new", 20);
    for half in [&left, &right] {
        assert!(half.conflicts().is_empty());
    }

    let mut both = left.clone();
    both.merge(right.clone().into(), NOW).unwrap();
    right.merge(left.into(), NOW).unwrap();
    let troubles = both.troubles(NOW);
    assert_eq!(troubles, right.troubles(NOW));
    assert_eq!(
        troubles,
        [
            Trouble::SlotTwice { resource: R0, slot: 1, keeps: id(2), loses: id(3) },
            Trouble::NodeNameTwice { name: "beta".into(), keeps: id(3), loses: id(2) },
            Trouble::ResourceNameTwice {
                name: "new".into(),
                keeps: ResourceId([8; 16]),
                loses: ResourceId([9; 16]),
            },
        ]
    );
    assert_eq!(both.node_named("beta").unwrap().uuid, id(3));
    assert_eq!(both.resource_named("new").unwrap().id, ResourceId([8; 16]));
    assert!(troubles.iter().all(|t| t.to_string().contains("two ")));
}

#[test]
fn records_that_cannot_be_read_are_told_and_not_used() {
    let mut records = Records::default();
    member(&mut records, 1, MAX_NODES, 1);
    node(&mut records, 2, "a/b", 1);
    let mut write = |key: &Key, text: &str| records.put(key, text.into(), id(0), NOW).unwrap();
    write(&Key::node(id(1)), "{}");
    write(&Key::pair(R0, id(1), id(2)), "[]");
    write(&Key::resource(R0), &serde_json::json!({"id": "xyz", "name": "r0"}).to_string());
    write(&Key::parse("future/1").unwrap(), "[]");
    let moved = serde_json::json!({"uuid": id(4), "name": "x", "addresses": [],
        "fingerprint": Fingerprint([1; 32]), "joined_at": 1});
    write(&Key::node(id(3)), &moved.to_string());
    assert!(records.nodes().is_empty() && records.resources().is_empty());
    assert!(records.members(R0).is_empty());
    let troubles = records.troubles(NOW);
    assert_eq!(troubles.len(), 6, "{troubles:#?}");
    assert!(troubles.iter().all(|t| matches!(t, Trouble::Unreadable { .. })));
    let long = format!("\"{}\"", "x".repeat(60_000));
    records.put(&Key::node(id(5)), long, id(0), NOW).unwrap();
    assert!(records.troubles(NOW).iter().all(|t| t.to_string().len() < 400));
}

#[test]
fn fields_of_a_newer_version_do_not_matter() {
    let mut records = Records::default();
    node(&mut records, 1, "alpha", 1);
    let key = Key::node(id(1));
    let newer = records.get(&key).unwrap().replacen('{', "{\"zone\":\"b\",", 1);
    records.put(&key, newer, id(0), NOW).unwrap();
    assert_eq!(records.node(id(1)).unwrap().name, "alpha");
}

#[test]
fn a_clock_that_is_ahead_is_told() {
    let mut records = Records::default();
    node(&mut records, 1, "alpha", 1);
    let past = UnixMillis(NOW.0 - CLOCK_TROUBLE_MS - 1);
    let [Trouble::ClockAhead { key, seconds: 3600, .. }] = &records.troubles(past)[..] else {
        panic!("{:?}", records.troubles(past));
    };
    assert_eq!(*key, Key::node(id(1)));
}
