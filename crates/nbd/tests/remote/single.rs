//! One server at a time.

use crate::load::{Load, check, check_image};
use crate::server::{Place, Platter, Server, options};
use holdfast_nbd::RemoteDisk;

const SIZE: usize = 4 << 20;

#[test]
fn reads_what_it_wrote_over_several_connections() {
    let dir = tempfile::tempdir().unwrap();
    let platter = Platter::new(SIZE);
    let server = Server::start(&platter, &Place::Unix(dir.path().join("s")));
    let disk = RemoteDisk::open(options(&[&server.uri], 4)).unwrap();
    let load = Load::start(&disk, 4, 1);
    load.wait_for(2000);
    let counts = load.stop();
    check(&disk, &counts);
    let status = disk.status().unwrap();
    assert_eq!(status.legs[0].session.connections.len(), 4);
    for connection in &status.legs[0].session.connections {
        assert!(connection.requests > 50, "{connection:?}");
    }
    disk.close().unwrap();
    check_image(&platter.durable(), &counts);
}
