use super::*;
use proptest::prelude::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const DAY: u64 = 86_400_000;

fn node(number: u8) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn record(id: u8, ms: u64, counter: u32, origin: u8, deleted: bool, value: u8) -> Record {
    Record {
        key: key(&format!("node/{id}")),
        stamp: Stamp { ms, counter, origin: node(origin) },
        deleted,
        value: value.to_string(),
    }
}

/// Few keys, times, origins and values, so that every kind of tie happens often.
fn any_record() -> impl Strategy<Value = Record> {
    (0u8..4, 0u64..3, 0u32..2, 0u8..2, any::<bool>(), 0u8..3)
        .prop_map(|(id, ms, counter, origin, dead, v)| record(id, ms, counter, origin, dead, v))
}

fn any_list() -> impl Strategy<Value = Vec<Record>> {
    proptest::collection::vec(any_record(), 0..12)
}

fn merged(lists: &[&[Record]]) -> Records {
    let mut records = Records::default();
    for list in lists {
        records.merge(list.to_vec(), NOW).unwrap();
    }
    records
}

fn same(a: &Records, b: &Records) -> bool {
    a.map == b.map && a.bytes == b.bytes
}

proptest! {
    #[test]
    fn merge_is_commutative(a in any_list(), b in any_list()) {
        prop_assert!(same(&merged(&[&a, &b]), &merged(&[&b, &a])));
    }

    #[test]
    fn merge_is_associative(a in any_list(), b in any_list(), c in any_list()) {
        let left: Vec<Record> = merged(&[&a, &b]).into();
        let right: Vec<Record> = merged(&[&b, &c]).into();
        prop_assert!(same(&merged(&[&left, &c]), &merged(&[&a, &right])));
    }

    #[test]
    fn merge_is_idempotent(a in any_list(), b in any_list()) {
        let once = merged(&[&a, &b]);
        let mut twice = once.clone();
        prop_assert!(twice.merge(a, NOW).unwrap().changed.is_empty());
        prop_assert!(same(&once, &twice));
    }

    #[test]
    fn the_bytes_are_counted_right(a in any_list(), b in any_list()) {
        let records = merged(&[&a, &b]);
        prop_assert_eq!(records.bytes, records.iter().map(Record::bytes).sum::<usize>());
    }

    #[test]
    fn an_exchange_makes_two_nodes_equal(a in any_list(), b in any_list()) {
        let (mut left, mut right) = (merged(&[&a]), merged(&[&b]));
        // The smallest batches, so that several rounds are needed.
        for _ in 0..16 {
            let to_left = right.missing_from(&left.digest(), 1);
            let to_right = left.missing_from(&right.digest(), 1);
            left.merge(to_left, NOW).unwrap();
            right.merge(to_right, NOW).unwrap();
        }
        prop_assert!(same(&left, &right));
        prop_assert_eq!(left.digest().root(), right.digest().root());
        prop_assert!(left.missing_from(&right.digest(), BATCH_BYTES).is_empty());
    }

    #[test]
    fn a_local_write_always_wins(a in any_list(), ms in 0u64..4, origin in 0u8..2) {
        let mut records = merged(&[&a]);
        let others = records.clone();
        records.put(&key("node/0"), "\"mine\"".into(), node(origin), UnixMillis(ms)).unwrap();
        records.merge(others.clone().into(), NOW).unwrap();
        prop_assert_eq!(records.get(&key("node/0")), Some("\"mine\""));
        records.delete(&key("node/0"), node(origin), UnixMillis(0)).unwrap();
        records.merge(others.into(), NOW).unwrap();
        prop_assert_eq!(records.get(&key("node/0")), None);
    }

    #[test]
    fn garbage_as_json_is_an_error_or_records(text in "\\PC{0,80}") {
        let _ = serde_json::from_str::<Vec<Record>>(&text);
        let _ = Key::parse(&text);
    }
}

#[test]
fn roots_differ_when_records_do() {
    let a = merged(&[&[record(0, 1, 0, 0, false, 1)]]);
    let b = merged(&[&[record(0, 1, 0, 0, false, 2)]]);
    let c = merged(&[&[record(0, 1, 0, 0, true, 1)]]);
    assert_ne!(a.digest().root(), b.digest().root());
    assert_ne!(a.digest().root(), c.digest().root());
    assert_ne!(a.digest().root(), Records::default().digest().root());
}

#[test]
fn keys_of_the_contract() {
    let uuid = Uuid::nil();
    for good in ["node/1", &format!("member/{}/{uuid}", "a".repeat(32)), "option/a/b/c"] {
        assert_eq!(Key::parse(good).unwrap().as_str(), good);
    }
    let long = format!("option/{0}/{0}/{0}", "x".repeat(64));
    for bad in [
        "",
        "node",
        "node/",
        "/a",
        "Node/a",
        "node/a b",
        "node/ä",
        "node/..",
        "node/.x",
        "a/b/c/d/e",
        "node//a",
        "n1/a",
        &format!("node/{}", "x".repeat(65)),
        &format!("{}/a", "k".repeat(17)),
        &long,
    ] {
        assert_eq!(Key::parse(bad).unwrap_err().code, Code::BadRecord, "{bad}");
    }
}

#[test]
fn a_wrong_clock_touches_only_what_it_wrote() {
    let far = NOW.0 + 365 * DAY;
    let mut records = Records::default();
    let report = records.merge(vec![record(0, far, 0, 1, false, 1)], NOW).unwrap();
    assert_eq!(report.clock_ahead, [(key("node/0"), node(1), 365 * DAY)]);
    // A change of that record goes past it by the smallest step; other records keep good time.
    records.put(&key("node/0"), "2".into(), node(0), NOW).unwrap();
    records.put(&key("node/9"), "2".into(), node(0), NOW).unwrap();
    let stamp = |id: &str| records.map[&key(id)].stamp;
    assert_eq!((stamp("node/0").ms, stamp("node/0").counter), (far, 1));
    assert_eq!((stamp("node/9").ms, stamp("node/9").counter), (NOW.0, 0));
    let soon = vec![record(1, NOW.0 + CLOCK_TROUBLE_MS, 0, 1, false, 1)];
    assert!(records.merge(soon, NOW).unwrap().clock_ahead.is_empty());
}

#[test]
fn counters_do_not_overflow() {
    let mut records = Records::default();
    records.merge(vec![record(0, NOW.0, u32::MAX, 1, false, 1)], NOW).unwrap();
    records.put(&key("node/0"), "2".into(), node(0), NOW).unwrap();
    assert_eq!(records.map[&key("node/0")].stamp.ms, NOW.0 + 1);
    let end = record(1, MAX_STAMP_MS, u32::MAX, 1, false, 1);
    records.merge(vec![end], NOW).unwrap();
    let refusal = records.put(&key("node/1"), "2".into(), node(0), NOW).unwrap_err();
    assert_eq!(refusal.code, Code::BadRecord);
    assert_eq!(records.get(&key("node/1")), Some("1"));
}

#[test]
fn the_same_value_again_is_no_change() {
    let mut records = Records::default();
    assert!(records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap());
    assert!(!records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap());
    assert!(records.delete(&key("node/0"), node(0), NOW).unwrap());
    assert!(!records.delete(&key("node/0"), node(0), NOW).unwrap());
    assert!(!records.delete(&key("node/1"), node(0), NOW).unwrap());
    assert!(records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap());
}

#[test]
fn bad_records_are_refused_and_nothing_of_their_batch_is_taken() {
    let good = record(0, 1, 0, 0, false, 1);
    let with = |value: &str| Record { value: value.into(), ..good.clone() };
    let late = Record { stamp: Stamp { ms: MAX_STAMP_MS + 1, ..good.stamp }, ..good.clone() };
    let long = format!("\"{}\"", "x".repeat(MAX_VALUE_BYTES));
    for bad in [with(""), with("{"), with("1 2"), with(&"[".repeat(1000)), with(&long), late] {
        let mut records = Records::default();
        let refusal = records.merge(vec![good.clone(), bad], NOW).unwrap_err();
        assert_eq!(refusal.code, Code::BadRecord);
        assert!(refusal.message.contains("node/0") && records.is_empty());
    }
}

#[test]
fn the_number_of_records_is_bounded() {
    let mut records = Records::default();
    let of = |n: usize| Record { key: key(&format!("node/{n}")), ..record(0, 1, 0, 0, false, 1) };
    records.merge((0..MAX_RECORDS).map(of).collect(), NOW).unwrap();
    let refusal = records.merge(vec![of(0), of(MAX_RECORDS)], NOW).unwrap_err();
    assert_eq!(refusal.code, Code::RecordsFull);
    assert_eq!(
        records.put(&key("node/x"), "1".into(), node(0), NOW).unwrap_err().code,
        Code::RecordsFull
    );
    assert_eq!(records.len(), MAX_RECORDS);
    records.put(&key("node/0"), "2".into(), node(0), NOW).unwrap();
}

#[test]
fn the_bytes_of_all_records_are_bounded() {
    let mut records = Records::default();
    let value = format!("\"{}\"", "x".repeat(MAX_VALUE_BYTES - 2));
    let full = (0..1000)
        .position(|n| records.put(&key(&format!("node/{n}")), value.clone(), node(0), NOW).is_err())
        .unwrap();
    assert_eq!(full, (MAX_TOTAL_BYTES / MAX_VALUE_BYTES) - 1);
    // What is there can be made smaller, and then there is room again.
    records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap();
    records.put(&key("node/x"), value, node(0), NOW).unwrap();
}

#[test]
fn tombstones_stay_until_everyone_has_them_and_they_are_old() {
    let (two, both) = (BTreeSet::from([node(2)]), BTreeSet::from([node(1), node(2)]));
    let late = UnixMillis(NOW.0 + TOMBSTONE_KEEP_MS);
    let mut records = Records::default();
    records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap();
    let before = records.digest();
    records.delete(&key("node/0"), node(0), NOW).unwrap();
    let after = records.digest();

    records.note_seen(node(1), &after);
    records.note_seen(node(2), &before);
    assert_eq!(records.prune(&both, late), 0, "node 2 has not seen it");
    records.note_seen(node(2), &after);
    assert_eq!(records.prune(&both, UnixMillis(late.0 - 1)), 0, "it is too young");
    // Deleted again: who saw the first tombstone has not seen the second.
    records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap();
    records.delete(&key("node/0"), node(0), NOW).unwrap();
    assert_eq!(records.prune(&both, late), 0);
    let again = records.digest();
    records.note_seen(node(2), &again);
    assert_eq!(records.prune(&two, late), 1, "node 1 is not in the cluster any more");
    assert!(records.is_empty() && records.bytes == 0);
}

#[test]
fn live_records_are_never_pruned() {
    let mut records = Records::default();
    records.put(&key("node/0"), "1".into(), node(0), NOW).unwrap();
    assert_eq!(records.prune(&BTreeSet::new(), UnixMillis(u64::MAX)), 0);
}

#[test]
fn kinds_are_told_apart() {
    let mut records = Records::default();
    for name in ["node/a", "nodes/b", "member/c/d", "node/b"] {
        records.put(&key(name), "1".into(), node(0), NOW).unwrap();
    }
    records.delete(&key("node/b"), node(0), NOW).unwrap();
    let found: Vec<&str> = records.of_kind("node").map(|r| r.key.as_str()).collect();
    assert_eq!(found, ["node/a", "node/b"]);
    assert_eq!(records.of_kind("zzz").count(), 0);
}

#[test]
fn records_travel_as_json() {
    let records = merged(&[&[record(0, 1, 2, 3, true, 4), record(1, 1, 0, 0, false, 1)]]);
    let text = serde_json::to_string(&records).unwrap();
    assert!(same(&records, &serde_json::from_str(&text).unwrap()));
    let digest: Digest =
        serde_json::from_str(&serde_json::to_string(&records.digest()).unwrap()).unwrap();
    assert_eq!(digest, records.digest());
    let bad = text.replace("node/0", "node/../0");
    assert!(serde_json::from_str::<Vec<Record>>(&bad).is_err());
}
