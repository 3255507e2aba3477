//! Resources whose disk is an NBD export of another machine: here the export of another daemon.

use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{Cluster, Node, files, wait_until};

const SIZE: u64 = 16 * MIB;

/// Makes the node a server: a resource of its own; its URI and the file behind it.
fn serve(node: &Node, name: &str) -> String {
    let disk = node.disk(name);
    files::make_sparse(&disk, SIZE);
    node.ok(&["create", name, "--disk", &disk.display().to_string()]);
    node.uri(name).to_string()
}

fn same_data(cluster: &Cluster) {
    files::assert_equal(&cluster[0].disk("r0"), &cluster[2].disk("far"), SIZE);
}

#[test]
fn a_member_with_a_remote_disk_is_filled_and_outlives_its_server() {
    let mut cluster = cluster(3);
    let uri = serve(&cluster[2], "far");
    cluster.create("r0", SIZE, &[]);
    write_blocks(&cluster[0], "r0", 1, 0..200);
    cluster[1].refused(&["join", "r0", "--disk", &uri, "--meta", "internal"], 1, "metadata");
    cluster[1].ok(&["join", "r0", "--disk", &uri]);
    cluster[1].wait_synced("r0", SYNC);
    let shown = cluster[1].resource("r0").disk.path;
    assert_eq!(shown.as_deref(), Some(&*uri));
    write_blocks(&cluster[0], "r0", 2, 100..300);
    same_data(&cluster);

    // A restart of its server goes unnoticed, but for the wait.
    cluster[2].kill9();
    let writer = {
        let mut client = cluster[0].open("r0");
        std::thread::spawn(move || {
            client.write_at(&[5; 4096], 400 * BLOCK).expect("it is written");
            client.flush().expect("it is flushed");
        })
    };
    cluster[2].start();
    writer.join().expect("it does not panic");
    assert_eq!(cluster[1].resource("r0").disk.state, "UpToDate");
    same_data(&cluster);

    // One that stays away is a disk that fails; the others go on.
    cluster[2].kill9();
    write_blocks(&cluster[0], "r0", 3, 0..50);
    cluster[1]
        .wait_resource("r0", SYNC, "its disk has failed", |status| status.disk.state == "Failed");
    write_blocks(&cluster[0], "r0", 4, 25..75);
    cluster[1].refused(&["attach-disk", "r0"], 1, "far");
    cluster[2].start();
    wait_until(SOON, "its disk is back", || cluster[1].cli(&["attach-disk", "r0"]).status == 0);
    cluster[1].wait_synced("r0", SYNC);
    same_data(&cluster);
    // It is as good as any other: it takes over.
    cluster[0].kill9();
    cluster[1].wait_peer("r0", "alpha", SOON, "it is gone", |peer| peer.connection != "Connected");
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 4, 25..75);
    check_blocks(&cluster[1], "r0", 2, 100..300);
}

#[test]
fn a_node_alone_has_its_data_on_a_remote_disk() {
    let mut cluster = cluster(2);
    let uri = serve(&cluster[1], "far");
    let too_large = (2 * SIZE).to_string();
    cluster[0].refused(&["create", "r0", "--disk", &uri, "--size", &too_large], 1, "too small");
    let nowhere = "nbd+unix:///far?socket=/nowhere";
    cluster[0].refused(&["create", "r0", "--disk", nowhere], 1, "nowhere");
    cluster[0].ok(&["create", "r0", "--disk", &uri]);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].refused(&["create", "r1", "--disk", &uri], 1, "belongs to the resource r0");
    cluster[0].refused(&["attach", &uri], 1, "belongs to the resource r0");
    cluster[0].kill9();
    cluster[1].kill9();
    cluster[1].start();
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "it is Primary again", |status| {
        status.role == "Primary" && status.disk.state == "UpToDate"
    });
    check_blocks(&cluster[0], "r0", 1, 0..100);

    // Its server comes later than itself.
    cluster[0].kill9();
    cluster[1].kill9();
    cluster[0].start();
    let late = cluster[0].wait_resource("r0", SOON, "it runs without its disk", |status| {
        status.disk.state == "Diskless" && status.role == "Secondary"
    });
    let problem = late.disk.problem.expect("it is said why");
    assert!(problem.contains("as soon as its server answers"), "{problem}");
    cluster[1].start();
    let now = cluster[0].wait_resource("r0", SOON, "it has its disk again", |status| {
        status.role == "Primary" && status.disk.state == "UpToDate"
    });
    assert_eq!(now.disk.problem, None);
    check_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["delete", "r0"]);
    // The data stay where they are.
    check_blocks(&cluster[1], "far", 1, 0..100);
}
