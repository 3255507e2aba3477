use super::*;

/// A mirror of two parts; their content and their faults.
fn mirror(size: u64) -> ([MemoryStore; 2], [FaultHandle; 2], Bench) {
    mirror_with(size, State::InSync)
}

/// The same with this state of the second part.
fn mirror_with(size: u64, state: State) -> ([MemoryStore; 2], [FaultHandle; 2], Bench) {
    let stores = [MemoryStore::new(size), MemoryStore::new(size)];
    let (bench, faults) = mirror_of(&stores, state);
    (stores, faults, bench)
}

fn mirror_of(stores: &[MemoryStore; 2], state: State) -> (Bench, [FaultHandle; 2]) {
    let (first, first_faults) = memory("first", &stores[0]);
    let (mut second, second_faults) = memory("second", &stores[1]);
    second.state = state;
    (Bench::new(Shape::Mirror, vec![first, second]), [first_faults, second_faults])
}

fn lost(notice: &Notice) -> Option<(&str, usize)> {
    match notice {
        Notice::Lost { part, left, .. } => Some((part, *left)),
        _ => None,
    }
}

fn read(client: &mut Client, offset: u64, len: usize) -> Vec<u8> {
    let mut found = vec![0xee; len];
    client.read_at(&mut found, offset).unwrap();
    found
}

#[test]
fn a_part_that_fails_a_write_is_left_alone_and_nothing_stale_is_read() {
    for bad in [0, 1] {
        let (stores, faults, bench) = mirror(MIB);
        let mut client = bench.client();
        client.write_at(&[1; 8192], 0).unwrap();
        faults[bad].add("write:error=EIO:after=1".parse().unwrap()).unwrap();
        client.write_at(&[2; 4096], 65536).unwrap();
        client.write_at(&[3; 4096], 0).unwrap();
        assert_eq!(lost(&bench.notice()), Some((["first", "second"][bad], 1)));
        // It would work again, and has missed something.
        faults[bad].clear();
        client.write_durable_at(&[4; 4096], 8192).unwrap();
        client.write_zeroes(65536, 4096).unwrap();
        client.flush().unwrap();
        for mut client in [client, bench.client()] {
            assert_eq!(read(&mut client, 0, 4096), [3; 4096]);
            assert_eq!(read(&mut client, 4096, 4096), [1; 4096]);
            assert_eq!(read(&mut client, 8192, 4096), [4; 4096]);
            assert_eq!(read(&mut client, 65536, 4096), [0; 4096]);
        }
        bench.end().unwrap();
        assert_eq!(content(&stores[bad])[..4096], [1; 4096], "nothing reached it any more");
        assert_eq!(content(&stores[1 - bad])[..4096], [3; 4096]);
    }
}

#[test]
fn what_one_part_cannot_read_comes_from_the_other() {
    let (_, faults, bench) = mirror(MIB);
    let mut client = bench.client();
    let model = exercise(&mut client, 50, 3);
    faults[0].add("read:range=256K+4096:error=EIO".parse().unwrap()).unwrap();
    assert_eq!(read(&mut client, 0, 4096), model[..4096]);
    assert!(read(&mut client, 0, model.len()) == model);
    assert_eq!(lost(&bench.notice()), Some(("first", 1)));
    exercise(&mut client, 50, 4);
    drop(client);
    bench.end().unwrap();
}

#[test]
fn the_last_part_is_kept_and_its_errors_are_told() {
    let (_, faults, bench) = mirror(MIB);
    let mut client = bench.client();
    faults[1].add("flush:error=EIO".parse().unwrap()).unwrap();
    client.write_at(&[7; 4096], 0).unwrap();
    client.flush().unwrap();
    assert_eq!(lost(&bench.notice()), Some(("second", 1)));
    faults[0].add("write:error=EIO:count=1".parse().unwrap()).unwrap();
    faults[0].add("read:error=EIO:count=1".parse().unwrap()).unwrap();
    let error = error_of(client.write_at(&[8; 4096], 0));
    assert_eq!(error, NbdError::Io);
    assert!(matches!(bench.notice(), Notice::Failed { part, .. } if part == "first"));
    assert!(client.read_at(&mut [0; 4096], 0).is_err());
    client.write_at(&[9; 4096], 0).unwrap();
    assert_eq!(read(&mut client, 0, 4096), [9; 4096]);
    drop(client);
    bench.end().unwrap();
}

#[test]
fn a_write_that_fails_everywhere_fails_and_one_part_stays() {
    let (_, faults, bench) = mirror(MIB);
    let mut client = bench.client();
    for faults in &faults {
        faults.add("write:error=ENOSPC:count=1".parse().unwrap()).unwrap();
    }
    let error = error_of(client.write_at(&[8; 4096], 0));
    assert_eq!(error, NbdError::NoSpace);
    exercise(&mut client, 30, 9);
    drop(client);
    bench.end().unwrap();
}

#[test]
fn overlapping_writes_of_many_clients_leave_the_parts_equal() {
    let (stores, faults, bench) = mirror(MIB);
    // The parts take different times, so that writes would overtake each other.
    faults[0].add("write:delay=1:range=0+16K".parse().unwrap()).unwrap();
    faults[1].add("write:delay=2:range=8K+64K".parse().unwrap()).unwrap();
    let threads: Vec<_> = (0..6u64)
        .map(|number| {
            let mut client = bench.client();
            std::thread::spawn(move || {
                let mut dice = Dice(number);
                for round in 0..40u64 {
                    let (offset, len) = (dice.below(24_000), 1 + dice.below(9000));
                    let mark = (number * 40 + round) as u8;
                    match dice.below(5) {
                        0 => client.write_zeroes(offset, len).unwrap(),
                        _ => client.write_at(&vec![mark; len as usize], offset).unwrap(),
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    bench.end().unwrap();
    assert!(content(&stores[0]) == content(&stores[1]));
}

#[test]
fn a_part_is_filled_while_clients_write_and_is_read_only_afterwards() {
    let size = 8 * MIB;
    let stores = [MemoryStore::new(size), MemoryStore::new(size)];
    for place in (0..size).step_by(300_000) {
        stores[0].write(place, &[5; 100_000]);
        stores[1].write(place + 50_000, &[6; 100_000]);
    }
    let (mut second, faults) = memory("second", &stores[1]);
    second.state = State::Filling;
    let (first, first_faults) = memory("first", &stores[0]);
    // Nothing of it may be read by clients before it is filled: they would see an error.
    first_faults.add("read:delay=5:count=6".parse().unwrap()).unwrap();
    let bench = Bench::new(Shape::Mirror, vec![first, second]);
    let mut client = bench.client();
    let model = exercise(&mut client, 300, 11);
    assert!(
        matches!(bench.notice(), Notice::Filling { part, from } if part == "second" && from == "first")
    );
    assert!(matches!(bench.notice(), Notice::Filled { part } if part == "second"));
    assert!(content(&stores[0]) == model);
    assert!(content(&stores[1]) == model);
    // Now it stands in.
    first_faults.add("read:error=EIO".parse().unwrap()).unwrap();
    assert!(read(&mut client, 0, model.len()) == model);
    assert_eq!(lost(&bench.notice()), Some(("first", 1)));
    drop((client, faults));
    bench.end().unwrap();
}

#[test]
fn a_part_that_is_not_filled_yet_stands_in_for_nobody() {
    let stores = [MemoryStore::new(4 * MIB), MemoryStore::new(4 * MIB)];
    stores[0].write(3 * MIB, &[5; 4096]);
    stores[1].write(3 * MIB, &[6; 4096]);
    let (first, faults) = memory("first", &stores[0]);
    faults.add("read:range=2M+1M:hold".parse().unwrap()).unwrap();
    let (mut second, _) = memory("second", &stores[1]);
    second.state = State::Filling;
    let bench = Bench::new(Shape::Mirror, vec![first, second]);
    assert!(matches!(bench.notice(), Notice::Filling { .. }));
    faults.add("read:range=3M+4096:error=EIO:count=1".parse().unwrap()).unwrap();
    let mut client = bench.client();
    let error = error_of(client.read_at(&mut [0; 4096], 3 * MIB));
    assert_eq!(error, NbdError::Io, "an error, and not the other's content");
    assert_eq!(read(&mut client, 3 * MIB, 4096), [5; 4096]);
    faults.release();
    faults.clear();
    assert!(matches!(bench.notice(), Notice::Failed { .. }));
    assert!(matches!(bench.notice(), Notice::Filled { .. }));
    drop(client);
    bench.end().unwrap();
    assert!(content(&stores[0]) == content(&stores[1]));
}

#[test]
fn a_part_that_cannot_be_filled_is_left_alone() {
    let stores = [MemoryStore::new(2 * MIB), MemoryStore::new(2 * MIB)];
    stores[0].write(MIB, &[5; 4096]);
    let (first, _) = memory("first", &stores[0]);
    let (mut second, faults) = memory("second", &stores[1]);
    second.state = State::Filling;
    faults.add("write:error=EIO".parse().unwrap()).unwrap();
    let bench = Bench::new(Shape::Mirror, vec![first, second]);
    assert!(matches!(bench.notice(), Notice::Filling { .. }));
    assert_eq!(lost(&bench.notice()), Some(("second", 1)));
    let mut client = bench.client();
    exercise(&mut client, 20, 5);
    drop(client);
    bench.end().unwrap();
}

#[test]
fn filling_does_not_undo_a_write_that_comes_meanwhile() {
    let stores = [MemoryStore::new(MIB), MemoryStore::new(MIB)];
    stores[0].write(0, &[5; 8192]);
    let (first, _) = memory("first", &stores[0]);
    let (mut second, faults) = memory("second", &stores[1]);
    second.state = State::Filling;
    faults.add("write:hold:count=1".parse().unwrap()).unwrap();
    let bench = Bench::new(Shape::Mirror, vec![first, second]);
    let (mut client, mut writer) = (bench.client(), bench.client());
    while faults.held() == 0 {
        std::thread::yield_now();
    }
    let writer = std::thread::spawn(move || writer.write_at(&[9; 4096], 0).unwrap());
    // Time for the write to get as far as it may.
    for _ in 0..100 {
        read(&mut client, 8192, 4096);
    }
    faults.release();
    writer.join().unwrap();
    assert_eq!(read(&mut client, 0, 4096), [9; 4096]);
    while !matches!(bench.notice(), Notice::Filled { .. }) {}
    drop(client);
    bench.end().unwrap();
    assert_eq!(content(&stores[1])[..8192], [[9; 4096], [5; 4096]].concat());
    assert!(content(&stores[0]) == content(&stores[1]));
}
