//! Several servers with the same data.

use crate::filters::number_of;
use crate::load::{BLOCK, Load, block, check, check_image};
use crate::server::{Place, Platter, Server, options};
use crate::single::{LIMIT, wait_for};
use holdfast_nbd::{
    LegState, MirrorOptions, MirrorStart, NbdUri, OpenFault, RemoteDisk, RemoteFailure,
    RemoteOpenError, RemoteOptions, RemoteRequest, RemoteState, RequestKind, note_use,
};
use holdfast_testkit::{Rng, wait_until};
use holdfast_units::ByteRange;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SIZE: usize = 8 << 20;

/// Two or more servers, each with a disk of its own.
struct Legs {
    platters: Vec<Platter>,
    places: Vec<PathBuf>,
    servers: Vec<Option<Server>>,
    dir: tempfile::TempDir,
}

impl Legs {
    fn new(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let places = (0..count).map(|leg| dir.path().join(format!("leg{leg}"))).collect();
        let platters = (0..count).map(|_| Platter::new(SIZE)).collect();
        let mut legs = Self { platters, places, servers: Vec::new(), dir };
        legs.servers.resize_with(count, || None);
        (0..count).for_each(|leg| legs.start(leg));
        legs
    }

    fn start(&mut self, leg: usize) {
        let place = Place::Unix(self.places[leg].clone());
        self.servers[leg] = Some(Server::start(&self.platters[leg], &place));
    }

    /// The power of a server fails.
    fn crash(&mut self, leg: usize) {
        self.servers[leg].take().unwrap().kill();
        self.platters[leg].lose_power();
    }

    fn options(&self) -> RemoteOptions {
        let uris: Vec<_> = self.places.iter().map(|place| NbdUri::unix(place, "disk")).collect();
        let mut options = options(&uris.iter().collect::<Vec<_>>(), 2);
        let patience = Duration::from_millis(60);
        options.mirror = Some(MirrorOptions { patience, ..MirrorOptions::default() });
        options
    }

    /// With a state directory.
    fn noted(&self) -> RemoteOptions {
        let mut options = self.options();
        options.mirror.as_mut().unwrap().state_dir = Some(self.dir.path().join("state"));
        options
    }

    fn open(&self) -> RemoteDisk {
        RemoteDisk::open(self.options()).unwrap()
    }
}

fn legs(disk: &RemoteDisk) -> Vec<LegState> {
    disk.status().unwrap().legs.iter().map(|leg| leg.state).collect()
}

/// Opens it as soon as its state is free. Who has just been refused is letting go of it, and a program
/// that another test is starting has for a moment all files open that this process has.
fn open_when_free(options: &RemoteOptions) -> Result<RemoteDisk, RemoteOpenError> {
    let mut opened = None;
    wait_until(LIMIT, "the state is free", || {
        let result = RemoteDisk::open(options.clone());
        let taken = |why: &RemoteOpenError| why.to_string().contains("another process");
        let free = !result.as_ref().is_err_and(taken);
        opened = Some(result);
        free
    });
    opened.unwrap()
}

fn wait_leg(disk: &RemoteDisk, leg: usize, state: LegState) {
    wait_until(LIMIT, state.as_str(), || legs(disk)[leg] == state);
}

#[test]
fn all_legs_get_everything() {
    let setup = Legs::new(3);
    let disk = setup.open();
    let load = Load::start(&disk, 4, 1);
    load.wait_for(1000);
    let counts = load.stop();
    check(&disk, &counts);
    disk.close().unwrap();
    for platter in &setup.platters {
        check_image(&platter.durable(), &counts);
        assert!(platter.log().iter().any(|(kind, ..)| *kind == RequestKind::Read));
    }
}

#[test]
fn a_leg_that_was_lost_gets_what_it_missed_and_nothing_is_stale() {
    let mut setup = Legs::new(2);
    let disk = setup.open();
    let load = Load::start(&disk, 4, 2);
    for round in 0..6 {
        let leg = round % 2;
        load.wait_for(60);
        setup.crash(leg);
        wait_leg(&disk, leg, LegState::Behind);
        load.wait_for(100);
        setup.start(leg);
        wait_leg(&disk, leg, LegState::InSync);
    }
    load.wait_for(60);
    let counts = load.stop();
    check(&disk, &counts);
    assert!(disk.status().unwrap().legs.iter().all(|leg| leg.copied_bytes > 0));
    disk.close().unwrap();
    for platter in &setup.platters {
        check_image(&platter.durable(), &counts);
    }
}

#[test]
fn power_failures_of_any_legs_at_any_time_lose_nothing() {
    let mut rng = Rng::new(number_of("HOLDFAST_SEED", 11));
    let mut setup = Legs::new(3);
    let disk = open_when_free(&setup.noted()).unwrap();
    let load = Load::start(&disk, 4, 5);
    for _ in 0..number_of("HOLDFAST_KILLS", 12) {
        let leg = rng.below(3) as usize;
        if setup.servers[leg].is_some() {
            setup.crash(leg);
        } else {
            setup.start(leg);
        }
        let due = Instant::now() + Duration::from_millis(rng.below(120));
        while Instant::now() < due {
            std::thread::yield_now();
        }
    }
    for leg in 0..3 {
        if setup.servers[leg].is_none() {
            setup.start(leg);
        }
    }
    wait_until(LIMIT, "all are in sync", || legs(&disk) == [LegState::InSync; 3]);
    load.wait_for(60);
    let counts = load.stop();
    check(&disk, &counts);
    disk.close().unwrap();
    for platter in &setup.platters {
        check_image(&platter.durable(), &counts);
    }
}

#[test]
fn only_what_a_leg_missed_is_copied_to_it() {
    let mut setup = Legs::new(2);
    let disk = setup.open();
    let write = |number: u64, count| {
        disk.write_at(&block(number, count), number * BLOCK as u64, false).unwrap();
    };
    write(1, 1);
    disk.flush().unwrap();
    setup.crash(0);
    wait_leg(&disk, 0, LegState::Behind);
    for number in [1, 5, 900] {
        write(number, 2);
    }
    assert_eq!(disk.status().unwrap().legs[0].missing_bytes, 3 * BLOCK as u64);
    setup.start(0);
    wait_leg(&disk, 0, LegState::InSync);
    assert_eq!(disk.status().unwrap().legs[0].copied_bytes, 3 * BLOCK as u64);
    disk.close().unwrap();
    assert!(setup.platters[0].durable() == setup.platters[1].durable());
}

#[test]
fn a_leg_that_is_back_soon_is_waited_for() {
    let mut setup = Legs::new(2);
    let mut options = setup.options();
    options.mirror.as_mut().unwrap().patience = LIMIT;
    let disk = RemoteDisk::open(options).unwrap();
    let load = Load::start(&disk, 4, 3);
    for leg in [0, 1, 0] {
        load.wait_for(50);
        setup.crash(leg);
        setup.start(leg);
    }
    load.wait_for(50);
    let counts = load.stop();
    assert_eq!(legs(&disk), [LegState::InSync; 2]);
    disk.close().unwrap();
    for platter in &setup.platters {
        check_image(&platter.durable(), &counts);
    }
}

#[test]
fn when_all_are_lost_only_the_last_is_believed() {
    let mut setup = Legs::new(2);
    let disk = setup.open();
    disk.write_at(&block(1, 1), BLOCK as u64, false).unwrap();
    setup.crash(0);
    wait_leg(&disk, 0, LegState::Behind);
    disk.write_at(&block(1, 2), BLOCK as u64, false).unwrap();
    setup.crash(1);
    wait_for(&disk, RemoteState::Reconnecting);
    setup.start(0);
    wait_until(LIMIT, "the first is back", || {
        disk.status().unwrap().legs[0].session.state == RemoteState::Connected
    });
    let (sender, answer) = std::sync::mpsc::channel();
    let range = ByteRange::new(BLOCK as u64, BLOCK as u64);
    disk.submit(RemoteRequest::Read { range }, move |outcome| drop(sender.send(outcome)));
    assert_eq!(legs(&disk)[0], LegState::Behind);
    assert!(answer.try_recv().is_err(), "it waits for the one that has the newest data");
    setup.start(1);
    assert!(answer.recv_timeout(LIMIT).unwrap().unwrap() == block(1, 2));
    wait_leg(&disk, 0, LegState::InSync);
    assert!(setup.platters[0].content()[BLOCK..2 * BLOCK] == block(1, 2));
}

#[test]
fn a_leg_that_fails_writes_is_left_behind_and_filled_later() {
    let setup = Legs::new(2);
    let disk = setup.open();
    disk.write_at(&block(1, 1), BLOCK as u64, false).unwrap();
    setup.platters[1].fail_writes(true);
    disk.write_at(&block(1, 2), BLOCK as u64, true).unwrap();
    disk.write_at(&block(2, 1), 2 * BLOCK as u64, false).unwrap();
    disk.flush().unwrap();
    assert_ne!(legs(&disk)[1], LegState::InSync);
    check(&disk, &vec![0, 2, 1]);
    setup.platters[1].fail_writes(false);
    wait_leg(&disk, 1, LegState::InSync);
    assert!(setup.platters[1].durable() == setup.platters[0].durable());
    // Both fail: the caller is told, and afterwards they are equal.
    setup.platters.iter().for_each(|platter| platter.fail_writes(true));
    assert!(disk.write_at(&block(3, 1), 3 * BLOCK as u64, false).is_err());
    setup.platters.iter().for_each(|platter| platter.fail_writes(false));
    disk.write_at(&block(4, 1), 4 * BLOCK as u64, false).unwrap();
    wait_until(LIMIT, "both are in sync", || legs(&disk) == [LegState::InSync; 2]);
    disk.flush().unwrap();
    assert!(setup.platters[1].durable() == setup.platters[0].durable());
}

#[test]
fn what_cannot_be_read_is_not_copied_as_something_else() {
    let setup = Legs::new(2);
    let mut options = setup.options();
    options.mirror.as_mut().unwrap().start = MirrorStart::CopyFirst;
    setup.platters[0].overwrite(6 << 20, 8);
    setup.platters[1].overwrite(6 << 20, 7);
    setup.platters[0].fail_reads(Some(6 << 20));
    let disk = RemoteDisk::open(options).unwrap();
    wait_until(LIMIT, "all that can be read is copied", || {
        disk.status().unwrap().legs[1].missing_bytes <= 2 << 20
    });
    assert_ne!(legs(&disk)[1], LegState::InSync);
    assert_eq!(setup.platters[1].content()[6 << 20], 7, "nothing was put in its place");
    assert!(disk.read_at(&mut [0; 512], 6 << 20).is_err());
    setup.platters[0].fail_reads(None);
    wait_leg(&disk, 1, LegState::InSync);
    assert!(setup.platters[1].durable() == setup.platters[0].content());
}

#[test]
fn servers_that_differ_are_not_taken_for_equal() {
    let setup = Legs::new(2);
    setup.platters[0].overwrite(4096 * 16, 9);
    setup.platters[0].overwrite(5 << 20, 8);
    let error = RemoteDisk::open(setup.options()).unwrap_err().to_string();
    assert!(error.contains("different data"), "{error}");
    let mut options = setup.options();
    options.mirror.as_mut().unwrap().start = MirrorStart::CopyFirst;
    let disk = RemoteDisk::open(options).unwrap();
    wait_leg(&disk, 1, LegState::InSync);
    assert!(setup.platters[1].durable() == setup.platters[0].content());
}

#[test]
fn what_a_leg_missed_is_known_to_the_next_process() {
    let mut setup = Legs::new(2);
    let disk = open_when_free(&setup.noted()).unwrap();
    disk.write_at(&block(1, 1), BLOCK as u64, false).unwrap();
    setup.crash(1);
    wait_leg(&disk, 1, LegState::Behind);
    disk.write_at(&block(1, 2), BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    setup.crash(0);
    setup.start(1);
    // Only the one that is behind can be reached.
    let error = open_when_free(&setup.noted()).unwrap_err();
    assert!(matches!(&error, RemoteOpenError { .. }) && error.to_string().contains("newest data"));
    setup.start(0);
    setup.platters[1].log();
    let disk = open_when_free(&setup.noted()).unwrap();
    check(&disk, &vec![0, 2]);
    wait_leg(&disk, 1, LegState::InSync);
    assert_eq!(disk.status().unwrap().legs[1].copied_bytes, BLOCK as u64);
    assert!(setup.platters[1].durable()[BLOCK..2 * BLOCK] == block(1, 2));
    // Now it may be the only one, also for the next process.
    disk.close().unwrap();
    setup.crash(0);
    let disk = open_when_free(&setup.noted()).unwrap();
    check(&disk, &vec![0, 2]);
}

#[test]
fn a_server_that_was_away_at_the_start_is_compared_when_it_is_back() {
    for changed in [false, true] {
        let mut setup = Legs::new(2);
        let disk = open_when_free(&setup.noted()).unwrap();
        disk.write_at(&block(1, 1), BLOCK as u64, false).unwrap();
        disk.close().unwrap();
        setup.crash(1);
        let disk = open_when_free(&setup.noted()).unwrap();
        assert_eq!(legs(&disk), [LegState::InSync, LegState::Behind], "nobody knows what it has");
        disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
        if changed {
            // Meanwhile somebody uses it alone.
            setup.platters[1].overwrite(SIZE - BLOCK, 9);
        }
        setup.start(1);
        wait_leg(&disk, 1, LegState::InSync);
        // All is compared then, and what differs is written.
        let copied = if changed { 2 * BLOCK } else { BLOCK };
        assert_eq!(disk.status().unwrap().legs[1].copied_bytes, copied as u64);
        disk.close().unwrap();
        assert!(setup.platters[0].durable() == setup.platters[1].durable());
    }
}

#[test]
fn a_disk_that_was_exchanged_while_it_was_behind_gets_everything() {
    let mut setup = Legs::new(2);
    let disk = open_when_free(&setup.noted()).unwrap();
    for number in 0..20 {
        disk.write_at(&block(number, 1), number * BLOCK as u64, false).unwrap();
    }
    disk.flush().unwrap();
    setup.crash(1);
    wait_leg(&disk, 1, LegState::Behind);
    disk.write_at(&block(3, 2), 3 * BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    setup.platters[1] = Platter::new(SIZE);
    setup.start(1);
    let disk = open_when_free(&setup.noted()).unwrap();
    wait_leg(&disk, 1, LegState::InSync);
    disk.close().unwrap();
    assert!(setup.platters[0].durable() == setup.platters[1].durable());
}

/// A mirror of two whose first leg has a copy of itself from before the last write, of block 333.
fn with_an_older_copy() -> (Legs, RemoteDisk, Platter) {
    let setup = Legs::new(2);
    let disk = open_when_free(&setup.noted()).unwrap();
    disk.write_at(&block(333, 1), 333 * BLOCK as u64, false).unwrap();
    disk.flush().unwrap();
    let older = setup.platters[0].copy();
    disk.write_at(&block(333, 2), 333 * BLOCK as u64, false).unwrap();
    disk.flush().unwrap();
    (setup, disk, older)
}

fn assert_filled(setup: &Legs, disk: &RemoteDisk) {
    wait_until(LIMIT, "both are in sync", || legs(disk) == [LegState::InSync; 2]);
    for _ in 0..20 {
        let mut found = vec![0; BLOCK];
        disk.read_at(&mut found, 333 * BLOCK as u64).unwrap();
        assert!(found == block(333, 2));
    }
    disk.close().unwrap();
    assert!(setup.platters[0].durable() == setup.platters[1].durable());
    assert!(setup.platters[0].durable()[333 * BLOCK..334 * BLOCK] == block(333, 2));
}

#[test]
fn a_leg_that_was_refused_is_not_believed_by_the_next_process_either() {
    for end in ["close", "crash"] {
        let (mut setup, disk, older) = with_an_older_copy();
        setup.crash(0);
        wait_leg(&disk, 0, LegState::Behind);
        disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
        setup.platters[0] = older;
        setup.start(0);
        wait_until(LIMIT, "it is refused and lacks everything", || {
            let leg = &disk.status().unwrap().legs[0];
            leg.session.state == RemoteState::Refused && leg.missing_bytes == SIZE as u64
        });
        if end == "close" {
            disk.close().unwrap();
        } else {
            // What is completed later finds it noted.
            disk.write_at(&block(8, 1), 8 * BLOCK as u64, true).unwrap();
            drop(disk);
        }
        let mut disk = None;
        wait_until(LIMIT, "the state is free", || {
            disk = RemoteDisk::open(setup.noted()).ok();
            disk.is_some()
        });
        let disk = disk.unwrap();
        assert_filled(&setup, &disk);
    }
}

#[test]
fn a_leg_that_was_away_at_the_end_and_comes_back_older_gets_everything() {
    let (mut setup, disk, older) = with_an_older_copy();
    setup.crash(0);
    wait_leg(&disk, 0, LegState::Behind);
    disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    setup.platters[0] = older;
    setup.start(0);
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_filled(&setup, &disk);
}

#[test]
fn a_leg_that_is_older_than_at_a_good_end_is_not_read() {
    let (mut setup, disk, older) = with_an_older_copy();
    disk.close().unwrap();
    setup.crash(0);
    setup.platters[0] = older;
    setup.start(0);
    let error = open_when_free(&setup.noted()).unwrap_err();
    assert_eq!(error.fault(), OpenFault::Unequal);
    assert!(error.to_string().contains("leg0") && error.to_string().contains("different data"));
    // Somebody says which one is right.
    let mut options = setup.noted();
    options.uris.swap(0, 1);
    options.mirror.as_mut().unwrap().start = MirrorStart::CopyFirst;
    let disk = open_when_free(&options).unwrap();
    wait_until(LIMIT, "both are in sync", || legs(&disk) == [LegState::InSync; 2]);
    disk.close().unwrap();
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_eq!(legs(&disk), [LegState::InSync; 2]);
    assert_filled(&setup, &disk);
}

#[test]
fn legs_that_differ_in_what_nobody_remembers_are_made_equal() {
    let setup = Legs::new(2);
    let disk = open_when_free(&setup.noted()).unwrap();
    disk.write_at(&block(333, 2), 333 * BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    // Most of it has changed, but not the places that are remembered.
    for number in (400..1000).filter(|number| number % 10 != 0) {
        setup.platters[1].overwrite(number * BLOCK + 512, 9);
    }
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_filled(&setup, &disk);
}

#[test]
fn the_order_of_the_servers_does_not_matter() {
    let (mut setup, disk, _) = with_an_older_copy();
    setup.crash(0);
    wait_leg(&disk, 0, LegState::Behind);
    disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    setup.start(0);
    let mut swapped = setup.noted();
    swapped.uris.swap(0, 1);
    // It cannot be filled before it was looked at.
    setup.platters[0].fail_writes(true);
    let disk = open_when_free(&swapped).unwrap();
    assert_eq!(legs(&disk)[0], LegState::InSync);
    assert_ne!(legs(&disk)[1], LegState::InSync);
    setup.platters[0].fail_writes(false);
    wait_leg(&disk, 1, LegState::InSync);
    assert_eq!(disk.status().unwrap().legs[1].copied_bytes, BLOCK as u64);
    assert_filled(&setup, &disk);
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_eq!(legs(&disk), [LegState::InSync; 2]);
}

#[test]
fn the_same_disks_under_other_addresses_are_not_taken_for_equal() {
    let (mut setup, disk, _) = with_an_older_copy();
    disk.write_at(&block(0, 1), 0, false).unwrap();
    disk.flush().unwrap();
    setup.crash(0);
    wait_leg(&disk, 0, LegState::Behind);
    disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    let notes = |options: &mut RemoteOptions, name: &str| {
        let dir = setup.dir.path().join(name);
        options.mirror.as_mut().unwrap().state_dir = Some(dir);
    };
    let moved: Vec<_> = (0..2).map(|leg| setup.dir.path().join(format!("moved{leg}"))).collect();
    let servers: Vec<_> = (0..2)
        .map(|leg| Server::start(&setup.platters[leg], &Place::Unix(moved[leg].clone())))
        .collect();
    for uris in [
        // One has another address, then both.
        vec![NbdUri::unix(&moved[0], "disk"), NbdUri::unix(&setup.places[1], "disk")],
        servers.iter().map(|server| server.uri.clone()).collect(),
    ] {
        let mut options = setup.noted();
        options.uris = uris;
        notes(&mut options, "moved");
        let error = open_when_free(&options).unwrap_err();
        assert_eq!(error.fault(), OpenFault::Unequal, "{error}");
        options.uris.reverse();
        options.mirror.as_mut().unwrap().start = MirrorStart::CopyFirst;
        notes(&mut options, "copied");
        if options.uris.iter().all(|uri| servers.iter().any(|server| server.uri == *uri)) {
            let disk = open_when_free(&options).unwrap();
            assert_filled(&setup, &disk);
        }
    }
}

#[test]
fn a_leg_that_was_used_alone_fills_the_others_or_nobody() {
    let (mut setup, disk, _) = with_an_older_copy();
    disk.close().unwrap();
    let mirror = setup.noted().mirror.unwrap().state_dir.unwrap();
    let alone = |leg: usize| {
        let uri = NbdUri::unix(&setup.places[leg], "disk");
        note_use(mirror.parent().unwrap(), std::slice::from_ref(&uri)).unwrap();
        RemoteDisk::open(options(&[&uri], 1)).unwrap()
    };
    let disk = alone(1);
    disk.write_at(&block(555, 5), 555 * BLOCK as u64, true).unwrap();
    disk.close().unwrap();
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_eq!(legs(&disk)[1], LegState::InSync);
    assert_filled(&setup, &disk);
    assert!(setup.platters[0].durable()[555 * BLOCK..556 * BLOCK] == block(555, 5));
    // While it is behind, what was written to it alone is nothing that could be kept.
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_eq!(legs(&disk), [LegState::InSync; 2]);
    let own = [NbdUri::unix(&setup.places[0], "disk")];
    let in_use = note_use(mirror.parent().unwrap(), &own).unwrap_err();
    assert!(in_use.contains("is attached"), "{in_use}");
    setup.crash(0);
    wait_leg(&disk, 0, LegState::Behind);
    disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
    disk.close().unwrap();
    setup.start(0);
    let mut copy = setup.noted();
    copy.mirror.as_mut().unwrap().start = MirrorStart::CopyFirst;
    let error = open_when_free(&copy).unwrap_err().to_string();
    assert!(error.contains("lacks data"), "{error}");
    note_use(mirror.parent().unwrap(), &own).unwrap();
    assert_eq!(open_when_free(&setup.noted()).unwrap_err().fault(), OpenFault::Unequal);
    open_when_free(&copy).unwrap().close().unwrap();
}

#[test]
fn after_a_crash_of_this_side_what_was_written_lately_is_made_equal() {
    let setup = Legs::new(2);
    let disk = open_when_free(&setup.noted()).unwrap();
    disk.write_at(&block(7, 1), 7 * BLOCK as u64, false).unwrap();
    // It ends without a word, and one server was told of a write that the other was not.
    drop(disk);
    setup.platters[1].overwrite(8 * BLOCK, 5);
    let mut disk = None;
    wait_until(LIMIT, "the state is free", || {
        disk = RemoteDisk::open(setup.noted()).ok();
        disk.is_some()
    });
    let disk = disk.unwrap();
    wait_until(LIMIT, "they are in sync", || legs(&disk) == [LegState::InSync; 2]);
    assert!(setup.platters[0].content() == setup.platters[1].content());
    assert_eq!(disk.status().unwrap().legs[1].copied_bytes, 4 << 20, "one extent");
    disk.close().unwrap();
    assert!(setup.platters[0].durable() == setup.platters[1].durable());
    // After a good end nothing is copied.
    let disk = open_when_free(&setup.noted()).unwrap();
    assert_eq!(legs(&disk), [LegState::InSync; 2]);
    let taken = RemoteDisk::open(setup.noted()).unwrap_err().to_string();
    assert!(taken.contains("another process"), "{taken}");
    // Somebody writes to one of them behind the back of the mirror.
    disk.close().unwrap();
    setup.platters[1].overwrite(0, 9);
    let differs = open_when_free(&setup.noted()).unwrap_err().to_string();
    assert!(differs.contains("different data"), "{differs}");
}

#[test]
fn after_a_crash_of_this_side_any_leg_in_sync_will_do() {
    let mut setup = Legs::new(2);
    let disk = open_when_free(&setup.noted()).unwrap();
    disk.write_at(&block(7, 1), 7 * BLOCK as u64, true).unwrap();
    drop(disk);
    setup.crash(0);
    let mut disk = None;
    wait_until(LIMIT, "the state is free", || {
        disk = RemoteDisk::open(setup.noted()).ok();
        disk.is_some()
    });
    let disk = disk.unwrap();
    let mut found = vec![0; BLOCK];
    disk.read_at(&mut found, 7 * BLOCK as u64).unwrap();
    assert!(found == block(7, 1));
    disk.write_at(&block(7, 2), 7 * BLOCK as u64, true).unwrap();
    setup.start(0);
    wait_leg(&disk, 0, LegState::InSync);
    disk.close().unwrap();
    assert!(setup.platters[0].durable() == setup.platters[1].durable());
}

#[test]
fn requests_to_a_mirror_end_in_time_and_by_order() {
    let mut setup = Legs::new(2);
    let mut options = setup.options();
    options.timeout = Some(Duration::from_millis(150));
    let disk = RemoteDisk::open(options).unwrap();
    setup.crash(0);
    setup.crash(1);
    let range = ByteRange::new(0, BLOCK as u64);
    let read = RemoteRequest::Read { range };
    assert_eq!(disk.execute(read.clone()), Err(RemoteFailure::TimedOut));
    let write = RemoteRequest::Write { offset: 0, data: block(0, 1).into(), fua: false };
    assert_eq!(disk.execute(write), Err(RemoteFailure::TimedOut));
    disk.abort(Duration::ZERO);
    setup.start(0);
    setup.start(1);
    let mut now = Err(RemoteFailure::TimedOut);
    wait_until(LIMIT, "one is back", || {
        now = disk.execute(read.clone());
        now.is_ok()
    });
    let now = now.unwrap();
    assert!(now == block(0, 1) || now == block(0, 0), "it was done or not");
    // The one that is back later may have to be filled.
    wait_until(LIMIT, "both are back and equal", || {
        legs(&disk) == [LegState::InSync; 2]
            && setup.platters[0].content() == setup.platters[1].content()
    });
}
