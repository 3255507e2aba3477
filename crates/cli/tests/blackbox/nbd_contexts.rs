//! What the export of a resource tells of its blocks, to tools that make backups.

use crate::serve::{have_libnbd, nbdsh};
use crate::{MIB, SYNC, cluster, wait_no_primary};
use holdfast_testkit::{Cluster, Node};
use std::collections::BTreeMap;

const SIZE: u64 = 16 * MIB;

/// What each context of the namespace `x-holdfast:` says: its dirty stretches.
fn contexts(node: &Node) -> BTreeMap<String, Vec<(u64, u64)>> {
    let script = r#"
import json
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
names = []
h.add_meta_context("x-holdfast:")
h.opt_list_meta_context(names.append)
h.clear_meta_contexts()
for name in names:
    h.add_meta_context(name)
h.opt_go()
size, found = h.get_size(), {name: [] for name in names}
def told(name, offset, entries, error):
    for length, flags in zip(entries[::2], entries[1::2]):
        if flags & 1:
            found[name].append([offset, length])
        offset += length
    reached[name] = offset
for name in names:
    assert h.can_meta_context(name), name
at = 0
while at < size:
    reached = {}
    h.block_status(size - at, at, told)
    assert sorted(reached) == sorted(names), reached
    at = min(reached.values())
print(json.dumps(found))
"#;
    serde_json::from_str(&nbdsh(script, &[&node.uri("r0").to_string()])).expect("it is JSON")
}

/// The context of the namespace whose name ends with the time when it began.
fn since(all: &BTreeMap<String, Vec<(u64, u64)>>) -> &str {
    let name = all.keys().find(|name| name.starts_with("x-holdfast:changed-since:"));
    name.expect("there is one")
}

fn write(node: &Node, offset: u64, len: usize) {
    let mut client = node.open("r0");
    client.write_at(&vec![7; len], offset).expect("the Primary takes writes");
    client.flush().expect("the Primary can flush");
}

fn start(nodes: usize) -> Cluster {
    let cluster = cluster(nodes);
    cluster.resource("r0", SIZE, nodes);
    cluster
}

#[test]
fn what_was_changed_since_the_node_became_primary() {
    if !have_libnbd() {
        return;
    }
    let cluster = start(2);
    let before = contexts(&cluster[0]);
    let none: Vec<(u64, u64)> = Vec::new();
    assert_eq!(before["x-holdfast:changed"], none);
    write(&cluster[0], 65536 + 100, 10);
    write(&cluster[0], 8 * MIB, 70_000);
    let mut client = cluster[0].open("r0");
    client.write_zeroes(4 * MIB, 4096).expect("it is zeroed");
    client.trim(12 * MIB, 65536).expect("it is trimmed");
    let now = contexts(&cluster[0]);
    let due = [(65536, 65536), (4 * MIB, 65536), (8 * MIB, 131_072), (12 * MIB, 65536)];
    assert_eq!(now["x-holdfast:changed"], due);
    assert_eq!(now[since(&before)], due, "the same point has the same name");
    drop(client);

    // Another node takes over: it knows nothing of this, and says so by another name.
    cluster[0].ok(&["secondary", "r0"]);
    wait_no_primary(&cluster[1], "r0", "alpha");
    cluster[1].ok(&["primary", "r0"]);
    let other = contexts(&cluster[1]);
    assert_eq!(other["x-holdfast:changed"], none);
    assert_ne!(since(&other), since(&before));
    // And so does the first, when it is Primary again.
    cluster[1].ok(&["secondary", "r0"]);
    wait_no_primary(&cluster[0], "r0", "beta");
    cluster[0].ok(&["primary", "r0"]);
    assert_ne!(since(&contexts(&cluster[0])), since(&before));
}

#[test]
fn what_each_peer_lacks() {
    if !have_libnbd() {
        return;
    }
    let mut cluster = start(3);
    let context =
        |node: usize, cluster: &Cluster| format!("x-holdfast:out-of-sync:{}", cluster[node].name());
    let (one, two) = (context(1, &cluster), context(2, &cluster));
    let told = contexts(&cluster[0]);
    let names: Vec<_> = told.keys().filter(|name| name.contains("out-of-sync")).collect();
    assert_eq!(names, [&one, &two]);
    let none: Vec<(u64, u64)> = Vec::new();
    assert_eq!((&told[&one], &told[&two]), (&none, &none));
    cluster[1].kill9();
    write(&cluster[0], 5 * 4096 + 1, 4096);
    write(&cluster[0], 9 * 4096, 4096);
    let told = contexts(&cluster[0]);
    assert_eq!(told[&one], [(5 * 4096, 2 * 4096), (9 * 4096, 4096)]);
    assert_eq!(told[&two], none);
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    assert_eq!(contexts(&cluster[0])[&one], none);
}
