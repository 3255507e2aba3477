//! Two nodes that take one name.

use crate::{MIB, SOON, check_blocks, cluster, cluster_with_proxies, write_blocks};
use holdfast_testkit::{Cluster, Cut, Node, files, wait_until};

/// Makes a file for it, and asks for a resource on it.
fn try_create(node: &Node, name: &str) -> holdfast_testkit::Output {
    let disk = node.disk(name);
    files::make_sparse(&disk, 4 * MIB);
    node.cli(&["create", name, "--disk", &disk.display().to_string()])
}

fn problems(node: &Node) -> Vec<String> {
    node.status().cluster.expect("it is in a cluster").problems
}

#[test]
fn of_two_connected_nodes_that_create_one_name_at_a_time_one_succeeds() {
    let cluster = cluster(3);
    for round in 0..4 {
        let name = format!("x{round}");
        let outputs: Vec<_> = std::thread::scope(|scope| {
            let name = &name;
            let create = |node| scope.spawn(move || try_create(node, name));
            let running: Vec<_> = cluster.nodes().iter().map(create).collect();
            running.into_iter().map(|one| one.join().expect("it ends")).collect()
        });
        let done: Vec<usize> = (0..3).filter(|index| outputs[*index].status == 0).collect();
        let [winner] = done[..] else { panic!("{outputs:?}") };
        for output in outputs.iter().filter(|output| output.status != 0) {
            assert_eq!(output.status, 1, "{output}");
            assert!(output.stderr.contains("was not created: "), "{output}");
            assert!(output.stderr.contains("hint: choose another name, or"), "{output}");
        }
        write_blocks(&cluster[winner], &name, 1, 0..3);
        for (index, node) in cluster.nodes().iter().enumerate() {
            let has = node.status().resources.iter().any(|resource| resource.name == name);
            assert_eq!(has, index == winner, "node {}", node.name());
        }
        // Who lost left nothing behind, and can become a member.
        let other = &cluster[(winner + 1) % 3];
        other.ok(&["join", &name, "--disk", &other.disk(&name).display().to_string()]);
        other.wait_synced(&name, SOON);
        wait_until(SOON, "all agree", || cluster.nodes().iter().all(|n| problems(n).is_empty()));
    }
}

fn apart(cluster: &Cluster) {
    for node in cluster.nodes() {
        node.proxy().cut(Cut::Reset);
    }
}

#[test]
fn names_taken_in_two_halves_are_told_with_the_way_out() {
    let cluster = cluster_with_proxies(2);
    apart(&cluster);
    for node in cluster.nodes() {
        wait_until(SOON, "the cut is noticed", || {
            let nodes = node.status().cluster.expect("it is in a cluster").nodes;
            nodes.iter().any(|other| !other.alive)
        });
    }
    for node in cluster.nodes() {
        assert_eq!(try_create(node, "dup").status, 0);
        write_blocks(node, "dup", 5, 0..3);
    }
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    for node in cluster.nodes() {
        wait_until(SOON, "it is told", || !problems(node).is_empty());
        for command in [&["status"][..], &["cluster", "status"]] {
            let text = node.ok(command);
            assert!(text.contains("two resources have the name dup"), "{text}");
            assert!(text.contains("on beta run `holdfast rename dup NEW`"), "{text}");
        }
    }
    cluster[1].ok(&["rename", "dup", "other"]);
    for node in cluster.nodes() {
        wait_until(SOON, "it is over", || problems(node).is_empty());
    }
    check_blocks(&cluster[0], "dup", 5, 0..3);
    check_blocks(&cluster[1], "other", 5, 0..3);
}
