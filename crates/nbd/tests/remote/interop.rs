//! Every kind of request with the servers of others, looked at in the file behind them.

use crate::real::{Program, Real, SIZE};
use crate::server::options;
use holdfast_nbd::{Client, ConnectOptions, NbdUri, RemoteDisk, ReplyStyle};
use holdfast_units::ByteRange;
use std::path::Path;

const PROGRAMS: [Program; 3] = [Program::Nbdkit, Program::Qemu, Program::NbdServer];

fn present() -> impl Iterator<Item = Program> {
    PROGRAMS.into_iter().filter(|program| program.is_here())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at % 253) as u8 ^ seed).collect()
}

/// The same bytes at the server, in the file, and here.
struct Trio<'a> {
    disk: &'a RemoteDisk,
    image: &'a Path,
    due: Vec<u8>,
}

impl Trio<'_> {
    fn check(&self, what: &str) {
        self.disk.flush().unwrap();
        let mut read = vec![0; self.due.len()];
        self.disk.read_at(&mut read, 0).unwrap();
        assert!(read == self.due, "{what}: what is read");
        assert!(std::fs::read(self.image).unwrap() == self.due, "{what}: what is in the file");
    }
}

#[test]
fn every_request_does_what_it_should_with_every_server() {
    for program in present() {
        let dir = tempfile::tempdir().unwrap();
        let real = Real::new(program, dir.path(), &[]);
        let disk = real.open(4);
        assert_eq!(disk.info().size, SIZE, "{program:?}");
        assert!(!disk.info().read_only);
        let image = dir.path().join("image");
        let mut trio = Trio { disk: &disk, image: &image, due: vec![0; SIZE as usize] };
        trio.check("nothing yet");
        // All of it, then odd places and lengths.
        let all = pattern(SIZE as usize, 1);
        disk.write_at(&all, 0, false).unwrap();
        trio.due.copy_from_slice(&all);
        trio.check("all");
        for (offset, len, fua) in
            [(1, 1, false), (511, 4098, true), (100_000, 70_001, false), (SIZE - 3, 3, true)]
        {
            let data = pattern(len, 77);
            disk.write_at(&data, offset, fua).unwrap();
            trio.due[offset as usize..][..len].copy_from_slice(&data);
        }
        trio.check("parts");
        for (offset, len, may_unmap) in
            [(1 << 20, 1 << 20, true), ((2 << 20) + 5, 100_000, false), (7, 20, true)]
        {
            disk.write_zeroes(ByteRange::new(offset, len), may_unmap).unwrap();
            trio.due[offset as usize..][..len as usize].fill(0);
        }
        trio.check("zeroes");
        // What a trim leaves is the server's affair; nothing beside it may change.
        let range = ByteRange::new(3 << 20, 512 << 10);
        disk.trim(range).unwrap();
        disk.flush().unwrap();
        let mut left = vec![0; range.len as usize];
        disk.read_at(&mut left, range.offset).unwrap();
        trio.due[range.offset as usize..][..left.len()].copy_from_slice(&left);
        trio.check("trim");
        let identity = disk.close().unwrap().identity;
        // Who comes again finds what was left.
        let mut again = options(&[&real.uri()], 1);
        again.identity = Some(identity);
        let disk = RemoteDisk::open(again).unwrap();
        Trio { disk: &disk, ..trio }.check("again");
    }
}

#[test]
fn a_read_only_export_is_read_and_not_written() {
    for program in present() {
        let dir = tempfile::tempdir().unwrap();
        let more = if program == Program::NbdServer { "readonly = true" } else { "--read-only" };
        let image = dir.path().join("image");
        let mut real = Real::new(program, dir.path(), &[]);
        real.kill();
        std::fs::write(&image, pattern(SIZE as usize, 9)).unwrap();
        real.change(&[more]);
        real.start();
        let disk = real.open(3);
        assert!(disk.info().read_only, "{program:?}");
        let mut read = vec![0; SIZE as usize];
        disk.read_at(&mut read, 0).unwrap();
        assert!(read == pattern(SIZE as usize, 9), "{program:?}");
        assert!(disk.write_at(&[1; 512], 0, false).is_err(), "{program:?}");
        assert!(disk.write_zeroes(ByteRange::new(0, 512), true).is_err(), "{program:?}");
        assert!(disk.trim(ByteRange::new(0, 512)).is_err(), "{program:?}");
        disk.flush().unwrap();
        disk.close().unwrap();
        assert!(std::fs::read(&image).unwrap() == read, "{program:?}");
    }
}

#[test]
fn a_server_that_has_grown_is_another_one_until_it_is_opened_anew() {
    for program in present() {
        let dir = tempfile::tempdir().unwrap();
        let mut real = Real::new(program, dir.path(), &[]);
        let disk = real.open(2);
        disk.write_at(&[5; 4096], 0, true).unwrap();
        real.kill();
        let image = std::fs::File::options().write(true).open(dir.path().join("image")).unwrap();
        image.set_len(2 * SIZE).unwrap();
        real.start();
        crate::single::wait_for(&disk, holdfast_nbd::RemoteState::Refused);
        let why = disk.status().unwrap().legs[0].session.last_error.clone().unwrap();
        assert!(why.contains(&(2 * SIZE).to_string()), "{program:?}: {why}");
        drop(disk);
        let disk = real.open(2);
        assert_eq!(disk.info().size, 2 * SIZE, "{program:?}");
        disk.write_at(&[6; 4096], 2 * SIZE - 4096, true).unwrap();
        let mut read = [0; 4096];
        disk.read_at(&mut read, 0).unwrap();
        assert_eq!(read, [5; 4096]);
    }
}

#[test]
fn the_small_client_knows_what_is_allocated_where_the_server_tells() {
    for program in present() {
        let dir = tempfile::tempdir().unwrap();
        let real = Real::new(program, dir.path(), &[]);
        drop(real.open(1));
        for style in [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended] {
            let asked = ConnectOptions { style, ..ConnectOptions::default() };
            let mut client = Client::connect(&real.uri(), &asked).unwrap();
            assert!(client.style() <= style, "{program:?}");
            client.write_at(&pattern(100_000, 3), 65536).unwrap();
            client.flush().unwrap();
            let mut read = vec![0; 100_000];
            client.read_at(&mut read, 65536).unwrap();
            assert!(read == pattern(100_000, 3), "{program:?}");
            match client.block_status(0, SIZE) {
                Ok(extents) => {
                    let told: u64 = extents.iter().map(|extent| extent.len).sum();
                    assert!(told >= 65536, "{program:?}: {extents:?}");
                }
                Err(error) => {
                    let tells = program != Program::NbdServer && style != ReplyStyle::Simple;
                    assert!(!tells, "{program:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn an_export_that_is_not_there_is_refused_in_words() {
    for program in present() {
        if program == Program::Nbdkit {
            // It gives the same file under every name.
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let real = Real::new(program, dir.path(), &[]);
        drop(real.open(1));
        let NbdUri { transport, .. } = real.uri();
        let uri = NbdUri { transport, ..NbdUri::unix("/", "nobody") };
        let error = RemoteDisk::open(options(&[&uri], 1)).unwrap_err().to_string();
        assert!(error.contains("nobody"), "{program:?}: {error}");
    }
}
