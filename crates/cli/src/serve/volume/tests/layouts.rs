use super::*;
use crate::serve::part::PartOptions;

fn stores(sizes: &[u64]) -> Vec<MemoryStore> {
    sizes.iter().map(|size| MemoryStore::new(*size)).collect()
}

fn parts(stores: &[MemoryStore]) -> Vec<Part> {
    stores.iter().map(|store| memory("part", store).0).collect()
}

#[test]
fn parts_hold_what_their_layout_says() {
    let stripe = Shape::Stripe { chunk: 64 << 10 };
    for (shape, sizes) in [
        (Shape::Concat, &[3 * MIB][..]),
        (Shape::Concat, &[MIB, 64 << 10, 2 * MIB]),
        (stripe, &[MIB, MIB, MIB + 4096]),
        (Shape::Mirror, &[2 * MIB, 2 * MIB + 8192, 2 * MIB]),
    ] {
        let stores = stores(sizes);
        let bench = Bench::new(shape, parts(&stores));
        let mut client = bench.client();
        let layout = Layout::new(shape, sizes).unwrap();
        assert_eq!(client.size(), layout.size());
        let model = exercise(&mut client, 400, 7);
        drop(client);
        bench.end().unwrap();
        let contents: Vec<_> = stores.iter().map(content).collect();
        for piece in layout.pieces(holdfast_units::ByteRange::new(0, layout.size())) {
            let due = &model[usize::try_from(piece.offset).unwrap()..];
            let (at, len) =
                (usize::try_from(piece.at).unwrap(), usize::try_from(piece.len).unwrap());
            let copies = if shape == Shape::Mirror {
                &contents[..]
            } else {
                &contents[piece.part..=piece.part]
            };
            assert!(copies.iter().all(|copy| copy[at..at + len] == due[..len]), "{shape:?}");
        }
    }
}

#[test]
fn many_clients_in_flight_at_once() {
    let stores = stores(&[MIB, MIB]);
    let bench = Bench::new(Shape::Stripe { chunk: 4096 }, parts(&stores));
    let threads: Vec<_> = (0..8u64)
        .map(|number| {
            let mut client = bench.client();
            std::thread::spawn(move || {
                let place = number * 256 * 1024;
                for round in 0..30u8 {
                    let data = vec![round ^ number as u8; 200_000];
                    client.write_at(&data, place).unwrap();
                    let mut found = vec![0; data.len()];
                    client.read_at(&mut found, place).unwrap();
                    assert!(found == data);
                }
                client.flush().unwrap();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    bench.end().unwrap();
}

#[test]
fn errors_of_a_part_reach_the_client_and_people() {
    let stores = stores(&[MIB, MIB]);
    let (good, _) = memory("good", &stores[0]);
    let (bad, faults) = memory("bad", &stores[1]);
    faults.add("write:error=ENOSPC:count=1".parse().unwrap()).unwrap();
    faults.add("read:error=EIO:count=1".parse().unwrap()).unwrap();
    let bench = Bench::new(Shape::Concat, vec![good, bad]);
    let mut client = bench.client();
    let mut buffer = [0; 8192];
    client.write_at(&buffer, 0).unwrap();
    let across = MIB - 4096;
    let error = error_of(client.write_at(&buffer, across));
    assert_eq!(error, NbdError::NoSpace);
    assert!(matches!(bench.notice(), Notice::Failed { part, .. } if part == "bad"));
    let error = error_of(client.read_at(&mut buffer, across));
    assert_eq!(error, NbdError::Io);
    client.read_at(&mut buffer, across).unwrap();
    client.flush().unwrap();
    faults.add("flush:error=EIO".parse().unwrap()).unwrap();
    client.write_at(&buffer, across).unwrap();
    assert_eq!(error_of(client.flush()), NbdError::Io);
    assert_eq!(error_of(client.flush()), NbdError::Io, "it stays unusable");
    drop(client);
    let (part, _) = bench.end().unwrap_err();
    assert_eq!(part, "bad");
}

#[test]
fn files_grow_under_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let paths = [directory.path().join("a"), directory.path().join("b")];
    for (path, len) in paths.iter().zip([4096, 5000]) {
        std::fs::File::create(path).unwrap().set_len(len).unwrap();
    }
    let open = |path: &PathBuf| {
        let options = PartOptions { read_only: false, direct: None };
        Part::open(path, options, &BufferPool::new(0)).unwrap()
    };
    let bench = Bench::new(Shape::Concat, paths.iter().map(open).collect());
    let client = bench.client();
    assert_eq!(client.size(), 9096);
    std::fs::File::options().write(true).open(&paths[1]).unwrap().set_len(20_000).unwrap();
    // The first must not grow: what lies behind it would move.
    std::fs::File::options().write(true).open(&paths[0]).unwrap().set_len(8192).unwrap();
    let mut later = bench.client();
    assert_eq!(later.size(), 24_096);
    later.write_at(b"end", 24_093).unwrap();
    later.write_at(b"start", 4096).unwrap();
    let second = std::fs::read(&paths[1]).unwrap();
    assert!(second.starts_with(b"start") && second.ends_with(b"end"));
    drop((client, later));
    bench.end().unwrap();
}
