use super::*;
use holdfast_units::GenerationId;

const ID: ResourceId = ResourceId([7; 16]);
const MIB: u64 = 1 << 20;

fn wanted(dir: &Path, disk: &Path) -> Wanted {
    Wanted {
        what: "resource r0 was not created".into(),
        resource: ID,
        disk: disk.display().to_string(),
        meta: None,
        size: None,
        al_extents: 67,
        state_dir: dir.join("state"),
        used: Vec::new(),
        existing: Existing::Keep,
        spares: Planned::default(),
    }
}

fn file(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let found = entry.metadata().unwrap();
        if found.is_dir() {
            all.extend(listing(&entry.path()));
        }
        all.push((entry.path(), if found.is_file() { found.len() } else { 0 }));
    }
    all.sort();
    all
}

fn node() -> NodeId {
    NodeId::new(0).unwrap()
}

fn current() -> InitialContent {
    InitialContent::Current(GenerationId(99))
}

#[test]
fn what_cannot_be_is_refused_and_nothing_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let good = file(dir, "good", 4 * MIB);
    let small = file(dir, "small", 8192);
    let other = file(dir, "other", 64 * MIB);
    let foreign = Wanted { resource: ResourceId([8; 16]), ..wanted(dir, &other) };
    let foreign = Wanted { meta: Some("internal".into()), ..foreign };
    foreign.check().unwrap().prepare(node(), &[], current(), |_| Ok(())).unwrap();
    std::os::unix::fs::symlink(&good, dir.join("link")).unwrap();
    let before = listing(dir);
    let base = || wanted(dir, &good);
    let used = vec![Used {
        owner: Owner::Resource("r9".into()),
        disk: LocalDisk::new(good.clone(), None),
    }];
    let text = |path: &Path| path.display().to_string();
    let cases: Vec<(Wanted, ErrorCode, &str)> = vec![
        (Wanted { disk: "good".into(), ..base() }, ErrorCode::InvalidPath, "not absolute"),
        (Wanted { size: Some(4097), ..base() }, ErrorCode::InvalidSize, "no multiple of 4096"),
        (Wanted { size: Some(0), ..base() }, ErrorCode::InvalidSize, "must be at least 4096"),
        (Wanted { size: Some(5 * MIB), ..base() }, ErrorCode::DiskTooSmall, "4 MiB"),
        (Wanted { disk: text(&dir.join("none")), ..base() }, ErrorCode::DiskNotFound, "exist"),
        (
            Wanted { disk: text(&dir.join("no/dir")), size: Some(MIB), ..base() },
            ErrorCode::DiskNotFound,
            "does not exist",
        ),
        (Wanted { disk: text(dir), ..base() }, ErrorCode::DiskUnusable, "neither a regular"),
        (Wanted { disk: "/dev/null".into(), ..base() }, ErrorCode::DiskUnusable, "neither"),
        (Wanted { meta: Some(text(&good)), ..base() }, ErrorCode::InvalidPath, "where the data"),
        (
            Wanted { meta: Some(text(&dir.join("link"))), ..base() },
            ErrorCode::InvalidPath,
            "where the data",
        ),
        (
            Wanted { disk: text(&small), meta: Some("internal".into()), ..base() },
            ErrorCode::DiskTooSmall,
            "too small",
        ),
        (Wanted { used: used.clone(), ..base() }, ErrorCode::DiskBusy, "the resource r9"),
        (
            Wanted { used, disk: text(&dir.join("link")), ..base() },
            ErrorCode::DiskBusy,
            "the resource r9",
        ),
        (Wanted { disk: text(&other), ..base() }, ErrorCode::MetadataExists, "08080808"),
    ];
    for (wanted, code, part) in cases {
        let shown = format!("{wanted:?}");
        let error = wanted.check().map(drop).unwrap_err();
        assert_eq!(error.code, code, "{shown}: {}", error.message);
        assert!(error.message.contains(part), "{}", error.message);
        assert!(error.message.starts_with("resource r0 was not created: "), "{}", error.message);
    }
    assert_eq!(listing(dir), before);
}

#[test]
fn a_foreign_file_is_not_taken_for_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good", 4 * MIB);
    let letter = dir.path().join("letter");
    fs::write(&letter, "Dear Sir").unwrap();
    let meta = Some(letter.display().to_string());
    let checked = Wanted { meta, ..wanted(dir.path(), &good) }.check().unwrap();
    let error = checked.prepare(node(), &[], current(), |_| Ok(())).unwrap_err();
    assert_eq!(error.code, ErrorCode::MetadataExists, "{}", error.message);
    assert_eq!(fs::read(&letter).unwrap(), b"Dear Sir");
}

#[test]
fn the_size_is_that_of_the_disk_and_undoing_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = file(dir, "disk", 8 * MIB + 100);
    let before = listing(dir);
    let prepared =
        wanted(dir, &disk).check().unwrap().prepare(node(), &[], current(), |_| Ok(())).unwrap();
    assert_eq!((prepared.size, prepared.ends.left_over), (8 * MIB, 100));
    prepared.undo();
    fs::remove_dir_all(dir.join("state")).unwrap();
    assert_eq!(listing(dir), before);

    for meta in [None, Some("internal".to_owned())] {
        let new = dir.join("new");
        let wanted = Wanted { size: Some(2 * MIB), meta, ..wanted(dir, &new) };
        let prepared =
            wanted.clone().check().unwrap().prepare(node(), &[], current(), |_| Ok(())).unwrap();
        assert_eq!(prepared.size, 2 * MIB);
        assert!(fs::metadata(&new).unwrap().len() >= 2 * MIB);
        prepared.undo();
        assert!(!new.exists());
    }
}

#[test]
fn what_was_begun_is_taken_back_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (disk, spare) = (file(dir, "disk", 8 * MIB), file(dir, "spare", MIB));
    for meta in [None, Some("internal".to_owned())] {
        let spares = Planned { paths: vec![spare.clone()], ..Planned::default() };
        let wanted = Wanted { meta, spares, ..wanted(dir, &disk) };
        let make = |id: u8| {
            let (mut begun, resource) = (None, ResourceId([id; 16]));
            let wanted = Wanted { resource, ..wanted.clone() };
            let begin = |disk: &LocalDisk| {
                begun = Some(disk.clone());
                Ok(())
            };
            let made =
                wanted.check().and_then(|found| found.prepare(node(), &[], current(), begin));
            (made.map(drop).map_err(|error| error.message), begun, resource)
        };
        let (made, begun, first) = make(1);
        assert_eq!(made, Ok(()));
        // As it is, it is somebody's.
        assert!(make(2).0.is_err(), "{:?}", wanted.meta);
        take_back(&begun.unwrap(), first);
        let (made, begun, third) = make(3);
        assert_eq!(made, Ok(()), "{:?}", wanted.meta);
        take_back(&begun.unwrap(), third);
        assert!(fs::read_dir(dir.join("state/meta")).into_iter().flatten().next().is_none());
    }
    // Where the first write is noted in vain, none is done.
    let before = listing(dir);
    let fails = |_: &LocalDisk| Err(ApiError::new(ErrorCode::Internal, "full"));
    let made = wanted(dir, &disk).check().unwrap().prepare(node(), &[], current(), fails);
    assert!(made.unwrap_err().message.contains("full"));
    assert_eq!(listing(dir), before);
}

/// Metadata in a file of their own that was never finished.
#[test]
fn unfinished_metadata_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = file(dir, "disk", 8 * MIB);
    let own = own_meta(&dir.join("state"), ID);
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::write(&own, vec![1; 9000]).unwrap();
    let zeroes = file(dir, "zeroes", 20_000);
    for meta in [None, Some(zeroes.display().to_string())] {
        let wanted = Wanted { meta, ..wanted(dir, &disk) };
        wanted.check().unwrap().prepare(node(), &[], current(), |_| Ok(())).unwrap().undo();
    }
    // That is more than its metadata can have been.
    let long = file(dir, "long", 8 * MIB);
    let wanted = Wanted { meta: Some(long.display().to_string()), ..wanted(dir, &disk) };
    let made = wanted.check().unwrap().prepare(node(), &[], current(), |_| Ok(()));
    assert_eq!(made.unwrap_err().code, ErrorCode::MetadataExists);
}

#[test]
fn wiped_internal_metadata_are_gone_and_those_of_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let disk = file(dir.path(), "disk", 64 * MIB);
    let make = || Wanted { meta: Some("internal".into()), ..wanted(dir.path(), &disk) };
    let prepared = make().check().unwrap().prepare(node(), &[], current(), |_| Ok(())).unwrap();
    assert!(prepared.size < 64 * MIB);
    wipe(&prepared.disk, ResourceId([1; 16]));
    assert_eq!(internal_owner(&disk, 64 * MIB), Some(ID));
    wipe(&prepared.disk, ID);
    assert_eq!(internal_owner(&disk, 64 * MIB), None);
}

#[test]
fn internal_metadata_do_not_go_over_the_end_of_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let disk = file(dir.path(), "disk", 64 * MIB);
    let of = |size: u64| {
        let sectors = u32::try_from(size / 512 - 8).unwrap().to_le_bytes();
        let table = [&[0, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0], &sectors[..]].concat();
        let open = File::options().write(true).open(&disk).unwrap();
        open.write_all_at(&table, 446).unwrap();
        open.write_all_at(b"\x55\xAA", 510).unwrap();
        Wanted { meta: Some("internal".into()), ..wanted(dir.path(), &disk) }.check()
    };
    let error = of(64 * MIB).map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::MetadataExists);
    assert!(error.message.contains("a partition table (MBR) that goes to where"), "{error:?}");
    let fitting = of(62 * MIB).unwrap();
    assert!(fitting.ends.metadata > 0 && fitting.ends.metadata < 2 * MIB, "{fitting:?}");
    // What is beside is in nobody's way.
    of(64 * MIB).unwrap_err();
    assert_eq!(wanted(dir.path(), &disk).check().unwrap().ends, Ends::default());
    // Who does not say where it ends may need all of the disk.
    File::options().write(true).open(&disk).unwrap().write_all_at(b"LUKS\xBA\xBE", 0).unwrap();
    let error = of(MIB).map(drop).unwrap_err();
    assert!(error.message.contains("an encrypted volume"), "{error:?}");
}

#[test]
fn room_for_the_bitmap_of_a_member_is_taken_and_given_back() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    for meta in [None, Some("internal".to_owned())] {
        let path = file(dir, &format!("disk-{}", meta.is_some()), 512 * MIB);
        let made = Wanted { meta, ..wanted(dir, &path) };
        let disk = made.check().unwrap().prepare(node(), &[], current(), |_| Ok(())).unwrap().disk;
        let place = disk.meta.clone().unwrap_or(path);
        let taken = || fs::metadata(&place).unwrap().blocks() * 512;
        let member = NodeId::new(5).unwrap();
        let before = taken();
        room::reserve(&disk, ID, &[member]).unwrap();
        // Of another resource, it is left alone.
        let made = taken();
        room::reserve(&disk, ResourceId([9; 16]), &[NodeId::new(6).unwrap()]).unwrap();
        room::reserve(&disk, ID, &[member]).unwrap();
        assert_eq!(taken(), made);
        // 126 MiB a page; the filesystem may take a block for its own tables.
        assert!((5..=6).contains(&((made - before) / BLOCK_SIZE)), "{before} {made} {disk:?}");
        room::give_back(&disk, ID, member);
        assert!(taken() <= before + BLOCK_SIZE, "{before} {} {disk:?}", taken());
    }
}
