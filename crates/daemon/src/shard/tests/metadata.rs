use super::*;
use crate::shard::{MetadataError, OpenError};
use std::fs;

fn open_error(rt: &Runtime, shard: &Shard, spec: ResourceSpec) -> OpenError {
    rt.block_on(shard.open(spec)).unwrap_err()
}

#[test]
fn metadata_of_others_are_not_overwritten() {
    let dir = directory(Where::Memory);
    let path = dir.path().join("disk");
    holdfast_store::create_file(&path, SIZE + (4 << 20)).unwrap();
    for meta in [beside(&path), MetaPlace::Internal] {
        let mine = creation(disk_spec(&path, meta), 0, true);
        assert_eq!(create_metadata(&mine).unwrap(), SIZE);
        // The same again, for a node that joins anew.
        create_metadata(&mine).unwrap();
        let theirs = CreateMetadata { resource: ResourceId([8; 16]), ..mine };
        let refusal = create_metadata(&theirs).unwrap_err();
        assert!(matches!(refusal, MetadataError::Occupied { .. }), "{refusal}");
    }
    let precious = dir.path().join("precious");
    fs::write(&precious, "letters").unwrap();
    let spec = creation(disk_spec(&path, MetaPlace::File(precious.clone())), 0, true);
    let refusal = create_metadata(&spec).unwrap_err();
    assert!(matches!(refusal, MetadataError::Occupied { .. }), "{refusal}");
    assert_eq!(fs::read(&precious).unwrap(), b"letters");
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let dir = directory(Where::Memory);
    let path = dir.path().join("disk");
    holdfast_store::create_file(&path, SIZE).unwrap();
    let whole = CreateMetadata { size: None, ..creation(disk_spec(&path, beside(&path)), 0, true) };
    assert_eq!(create_metadata(&whole).unwrap(), SIZE);
    let too_long = CreateMetadata { size: Some(SIZE + 4096), ..whole.clone() };
    assert!(matches!(create_metadata(&too_long).unwrap_err(), MetadataError::TooSmall { .. }));
    let odd = CreateMetadata { size: Some(5000), ..whole.clone() };
    assert!(matches!(create_metadata(&odd).unwrap_err(), MetadataError::Layout(_)));
    let internal = CreateMetadata { disk: disk_spec(&path, MetaPlace::Internal), ..whole };
    let size = create_metadata(&internal).unwrap();
    assert!(size < SIZE && size > SIZE / 2);
}

#[test]
fn a_disk_is_opened_once_and_only_by_whom_it_belongs_to() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let plan = Plan::new(dir.path(), 0, &[]);
    let node = Node::start(&rt, &plan);
    let disk = disk_spec(&node.disk, beside(&node.disk));
    let wanted = spec(&plan, Some(disk));

    let error = open_error(&rt, &node.shard, wanted.clone());
    assert!(matches!(error, OpenError::NameTaken(_)), "{error}");
    let mut other = wanted.clone();
    other.name = "other".into();
    let error = open_error(&rt, &node.shard, other.clone());
    assert!(error.to_string().contains("in use"), "{error}");

    rt.block_on(node.resource.close()).unwrap();
    let mut foreign = other.clone();
    foreign.config.resource = ResourceId([9; 16]);
    let error = open_error(&rt, &node.shard, foreign);
    assert!(error.to_string().contains("belong to the resource"), "{error}");
    let mut misplaced = other.clone();
    misplaced.config.node = n(3);
    let error = open_error(&rt, &node.shard, misplaced);
    assert!(error.to_string().contains("belong to node 0"), "{error}");
    // After all these refusals nothing is claimed. It has the size that its metadata say, until it
    // has grown to what was agreed on.
    let mut larger = other;
    larger.config.size = 2 * SIZE;
    let resource = rt.block_on(node.shard.open(larger)).unwrap();
    assert_eq!(resource.snapshot().snapshot.own_size, SIZE);
    rt.block_on(resource.close()).unwrap();
    rt.block_on(node.shard.stop());
}

#[test]
fn a_resource_without_handles_is_closed() {
    let rt = runtime();
    let dir = directory(Where::Memory);
    let plan = Plan::new(dir.path(), 0, &[]);
    let node = Node::start(&rt, &plan);
    let mut watch = node.resource.watch();
    drop(node.resource);
    let closed = async { while watch.changed().await.is_ok() {} };
    rt.block_on(async { tokio::time::timeout(PATIENCE, closed).await }).unwrap();
    rt.block_on(node.shard.stop());
    Node::start(&rt, &plan).stop(&rt);
}
