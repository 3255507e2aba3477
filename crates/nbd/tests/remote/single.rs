//! One server at a time: what callers see while it comes and goes.

use crate::load::{BLOCK, Load, block, check, check_image};
use crate::server::{Place, Platter, Server, able, options};
use holdfast_nbd::{
    NbdError, NbdUri, OpenFault, RemoteDisk, RemoteFailure, RemoteOutcome, RemoteRequest,
    RemoteState, RequestKind,
};
use holdfast_testkit::{Cut, Proxy, Rng, wait_until};
use holdfast_units::ByteRange;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const SIZE: usize = 4 << 20;
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A disk, its server, and the directory of its socket.
struct Setup {
    platter: Platter,
    place: Place,
    server: Option<Server>,
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let platter = Platter::new(SIZE);
        let place = Place::Unix(path.clone());
        let server = Some(Server::start(&platter, &place));
        Self { platter, place, server, _dir: dir, path }
    }

    fn uri(&self) -> NbdUri {
        NbdUri::unix(&self.path, "disk")
    }

    fn disk(&self, connections: usize) -> RemoteDisk {
        RemoteDisk::open(options(&[&self.uri()], connections)).unwrap()
    }

    /// The server is gone, and what it had not flushed.
    fn crash(&mut self) {
        self.server.take().unwrap().kill();
        self.platter.lose_power();
    }

    fn start(&mut self) {
        self.server = Some(Server::start(&self.platter, &self.place));
    }
}

pub(crate) fn wait_for(disk: &RemoteDisk, state: RemoteState) {
    wait_until(LIMIT, state.as_str(), || disk.status().is_some_and(|is| is.state == state));
}

fn submit(disk: &RemoteDisk, request: RemoteRequest) -> Receiver<RemoteOutcome> {
    let (sender, receiver) = channel();
    disk.submit(request, move |outcome| drop(sender.send(outcome)));
    receiver
}

fn write(number: u64, count: u64) -> RemoteRequest {
    let data = block(number, count).into();
    RemoteRequest::Write { offset: number * BLOCK as u64, data, fua: false }
}

fn read(number: u64) -> RemoteRequest {
    RemoteRequest::Read { range: ByteRange::new(number * BLOCK as u64, BLOCK as u64) }
}

#[test]
fn several_connections_share_the_work() {
    let setup = Setup::new();
    let disk = setup.disk(4);
    let live = || disk.status().unwrap().legs[0].session.connections.clone();
    wait_until(LIMIT, "four connections", || live().iter().all(|c| c.live_for.is_some()));
    let load = Load::start(&disk, 4, 1);
    load.wait_for(2000);
    let counts = load.stop();
    check(&disk, &counts);
    for connection in live() {
        assert!(connection.requests > 100 && connection.reconnects == 0, "{connection:?}");
    }
    disk.close().unwrap();
    check_image(&setup.platter.durable(), &counts);
    assert_eq!(disk.execute(read(0)), Err(RemoteFailure::Closed));
    assert!(disk.status().is_none());
}

#[test]
fn power_failures_of_the_server_lose_nothing_that_was_completed() {
    for connections in [1, 2, 8] {
        let mut setup = Setup::new();
        let disk = setup.disk(connections);
        let load = Load::start(&disk, 4, connections as u64);
        for round in 0..12 {
            load.wait_for(60 + round * 7);
            setup.crash();
            setup.start();
        }
        load.wait_for(100);
        let counts = load.stop();
        setup.crash();
        setup.start();
        check(&disk, &counts);
        let status = disk.status().unwrap();
        assert!(status.legs[0].session.outages >= 12, "{status:?}");
        assert!(status.legs[0].session.restored > 0, "{status:?}");
        disk.close().unwrap();
        check_image(&setup.platter.durable(), &counts);
    }
}

#[test]
fn connections_that_are_cut_do_no_harm() {
    let platter = Platter::new(SIZE);
    let server = Server::start(&platter, &Place::Tcp(0));
    let proxy = Proxy::new();
    proxy.set_target(server.address.unwrap());
    let uri = NbdUri::tcp("127.0.0.1", proxy.address().port(), "disk");
    for connections in [1, 3] {
        let disk = RemoteDisk::open(options(&[&uri], connections)).unwrap();
        let load = Load::start(&disk, 3, 7);
        for round in 0..10 {
            load.wait_for(80);
            proxy.cut_once(if round % 2 == 0 { Cut::Reset } else { Cut::Finish });
        }
        load.wait_for(80);
        let counts = load.stop();
        check(&disk, &counts);
        let status = disk.status().unwrap();
        assert!(status.legs[0].session.outages > 0, "{status:?}");
        disk.close().unwrap();
        check_image(&platter.durable(), &counts);
        let zeroes = RemoteDisk::open(options(&[&uri], 1)).unwrap();
        zeroes.write_zeroes(ByteRange::new(0, SIZE as u64), true).unwrap();
    }
}

#[test]
fn a_server_that_stops_in_good_order_is_waited_for() {
    let mut setup = Setup::new();
    let disk = setup.disk(2);
    let load = Load::start(&disk, 4, 3);
    for _ in 0..5 {
        load.wait_for(50);
        setup.server.take().unwrap().stop();
        setup.start();
    }
    load.wait_for(50);
    let counts = load.stop();
    check(&disk, &counts);
}

#[test]
fn another_server_takes_over() {
    let setup = Setup::new();
    let other = setup.path.with_extension("2");
    let second = Server::start(&setup.platter, &Place::Unix(other.clone()));
    let mut setup = setup;
    let uris = [setup.uri(), second.uri.clone()];
    let disk = RemoteDisk::open(options(&[&uris[0], &uris[1]], 2)).unwrap();
    let load = Load::start(&disk, 2, 5);
    load.wait_for(100);
    setup.crash();
    load.wait_for(100);
    assert_eq!(disk.status().unwrap().legs[0].session.uri, uris[1].to_string());
    setup.start();
    second.kill();
    setup.platter.lose_power();
    load.wait_for(100);
    assert_eq!(disk.status().unwrap().legs[0].session.uri, uris[0].to_string());
    check(&disk, &load.stop());
}

#[test]
fn another_disk_is_refused_until_the_right_one_is_back() {
    let mut setup = Setup::new();
    let disk = setup.disk(2);
    disk.write_at(&block(5, 1), 5 * BLOCK as u64, false).unwrap();
    disk.flush().unwrap();
    setup.server.take().unwrap().kill();
    // The start of the disk, where partition tables are, is another.
    let impostor = setup.platter.copy();
    impostor.overwrite(512, 7);
    let server = Server::start(&impostor, &setup.place);
    let waiting = submit(&disk, write(6, 1));
    wait_for(&disk, RemoteState::Refused);
    let status = disk.status().unwrap().legs[0].session.clone();
    assert!(status.last_error.unwrap().contains("byte 0 has changed"));
    assert!(waiting.try_recv().is_err(), "it waits");
    assert!(impostor.log().iter().all(|(kind, ..)| *kind == RequestKind::Read));
    server.kill();
    setup.start();
    assert_eq!(waiting.recv_timeout(LIMIT).unwrap(), Ok(bytes::Bytes::new()));
    check(&disk, &[vec![0; 5], vec![1, 1]].concat());
}

#[test]
fn another_size_is_refused() {
    let mut setup = Setup::new();
    let disk = setup.disk(1);
    setup.server.take().unwrap().kill();
    let _small = Server::start(&Platter::new(SIZE / 2), &setup.place);
    wait_for(&disk, RemoteState::Refused);
    let waiting = submit(&disk, read(0));
    disk.abort(Duration::ZERO);
    assert_eq!(waiting.recv_timeout(LIMIT).unwrap(), Err(RemoteFailure::Aborted));
}

#[test]
fn an_older_state_of_the_disk_is_refused() {
    let mut setup = Setup::new();
    let disk = setup.disk(1);
    // Far from the places that are always looked at. By a flush and without; nothing has to be read
    // to know them.
    for (number, fua) in [(333, false), (444, true)] {
        let older = setup.platter.copy();
        disk.write_at(&block(number, 1), number * BLOCK as u64, fua).unwrap();
        if !fua {
            disk.flush().unwrap();
        }
        setup.server.take().unwrap().kill();
        let server = Server::start(&older, &setup.place);
        wait_for(&disk, RemoteState::Refused);
        server.kill();
        setup.start();
        wait_for(&disk, RemoteState::Connected);
    }
}

#[test]
fn what_is_remembered_is_looked_at_when_it_is_opened_again() {
    let mut setup = Setup::new();
    let disk = setup.disk(1);
    let older = setup.platter.copy();
    disk.write_at(&block(333, 1), 333 * BLOCK as u64, false).unwrap();
    disk.flush().unwrap();
    // Also when the server is away at the end, and after writes that no flush has covered.
    setup.server.take().unwrap().kill();
    wait_for(&disk, RemoteState::Reconnecting);
    let _lost =
        submit(&disk, RemoteRequest::Write { offset: 0, data: block(0, 1).into(), fua: false });
    let remembered = disk.status().unwrap().legs[0].session.remembered.clone();
    assert!(disk.close().is_err());
    let open = |uri: &NbdUri| {
        let mut options = options(&[uri], 1);
        options.remembered = Some(remembered.to_string().parse().unwrap());
        RemoteDisk::open(options)
    };
    let server = Server::start(&older, &setup.place);
    let error = open(&server.uri).unwrap_err();
    assert_eq!(error.fault(), OpenFault::Different);
    assert!(error.to_string().contains("not the one that it was"), "{error}");
    server.kill();
    setup.start();
    let disk = open(&setup.uri()).unwrap();
    check_block(&disk, 333, 1);
    // It is looked at after each outage, too.
    setup.server.take().unwrap().kill();
    let _older = Server::start(&older, &setup.place);
    wait_for(&disk, RemoteState::Refused);
}

fn check_block(disk: &RemoteDisk, number: u64, count: u64) {
    let mut found = vec![0; BLOCK];
    disk.read_at(&mut found, number * BLOCK as u64).unwrap();
    assert!(found == block(number, count));
}

#[test]
fn the_identity_that_was_asked_for_is_the_one() {
    let setup = Setup::new();
    let disk = setup.disk(1);
    disk.write_at(&block(0, 1), 0, false).unwrap();
    let identity = disk.close().unwrap().identity;
    let open = |identity: &str| {
        let mut options = options(&[&setup.uri()], 1);
        options.identity = Some(identity.to_owned());
        RemoteDisk::open(options)
    };
    let disk = open(&identity).unwrap();
    assert_eq!(disk.status().unwrap().identity, identity);
    let error = open(&identity.replace(&identity[..1], "x")).unwrap_err().to_string();
    assert!(error.contains(&identity), "{error}");
}

#[test]
fn a_request_fails_when_its_time_is_over_and_the_next_ones_do_not() {
    let mut setup = Setup::new();
    let mut options = options(&[&setup.uri()], 1);
    options.timeout = Some(Duration::from_millis(150));
    let disk = RemoteDisk::open(options).unwrap();
    // Where the server is there, a request may still be too late for so short a time: it is asked again.
    let ask = |what: &str, request: &dyn Fn() -> std::io::Result<()>| {
        wait_until(LIMIT, what, || request().is_ok());
    };
    ask("a write in time", &|| disk.write_at(&block(1, 1), BLOCK as u64, false));
    setup.crash();
    let begun = Instant::now();
    let error = disk.write_at(&block(2, 1), 2 * BLOCK as u64, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(begun.elapsed() >= Duration::from_millis(150) && begun.elapsed() < LIMIT / 2);
    assert_eq!(disk.flush().unwrap_err().kind(), ErrorKind::TimedOut);
    setup.start();
    wait_for(&disk, RemoteState::Connected);
    ask("a flush in time", &|| disk.flush());
    ask("a read in time", &|| disk.read_at(&mut [0; BLOCK], 0));
    check(&setup.disk(1), &vec![0, 1]);
    assert!(setup.platter.durable()[BLOCK..2 * BLOCK] == block(1, 1));
}

#[test]
fn without_a_limit_requests_wait_for_ever() {
    let mut setup = Setup::new();
    let mut options = options(&[&setup.uri()], 1);
    options.timeout = None;
    let disk = RemoteDisk::open(options).unwrap();
    setup.crash();
    let waiting: Vec<_> = (0..100).map(|number| submit(&disk, write(number, 1))).collect();
    let behind = submit(&disk, read(99));
    wait_for(&disk, RemoteState::Reconnecting);
    assert_eq!(disk.status().unwrap().pending, 101);
    setup.start();
    for waiting in waiting {
        waiting.recv_timeout(LIMIT).unwrap().unwrap();
    }
    assert!(behind.recv_timeout(LIMIT).unwrap().unwrap() == block(99, 1));
}

#[test]
fn an_abort_fails_what_is_pending_and_holds_what_comes() {
    let setup = Setup::new();
    let disk = setup.disk(2);
    disk.write_at(&block(3, 1), 3 * BLOCK as u64, false).unwrap();
    setup.platter.swallow(&[RequestKind::Read, RequestKind::Write]);
    let stuck: Vec<_> = (0..10).map(|number| submit(&disk, read(number))).collect();
    wait_until(LIMIT, "they are under way", || setup.platter.log().len() > 5);
    setup.platter.swallow(&[]);
    let begun = Instant::now();
    disk.abort(3 * LIMIT);
    for stuck in stuck {
        assert_eq!(stuck.recv_timeout(LIMIT).unwrap(), Err(RemoteFailure::Aborted));
    }
    assert!(begun.elapsed() < 3 * LIMIT, "they fail at once");
    assert_eq!(disk.status().unwrap().state, RemoteState::Held);
    // The last order counts.
    let hold = Duration::from_millis(300);
    let begun = Instant::now();
    disk.abort(hold);
    let held = submit(&disk, read(3));
    assert!(held.recv_timeout(LIMIT).unwrap().unwrap() == block(3, 1));
    assert!(begun.elapsed() >= hold);
}

#[test]
fn a_silent_server_is_given_up() {
    let setup = Setup::new();
    let mut options = options(&[&setup.uri()], 2);
    options.silence = Duration::from_millis(200);
    let disk = RemoteDisk::open(options).unwrap();
    setup.platter.swallow(&[RequestKind::Write]);
    let waiting = submit(&disk, write(1, 1));
    wait_until(LIMIT, "it is under way", || {
        setup.platter.log().iter().any(|(kind, ..)| *kind == RequestKind::Write)
    });
    setup.platter.swallow(&[]);
    assert_eq!(waiting.recv_timeout(LIMIT).unwrap(), Ok(bytes::Bytes::new()));
    let status = disk.status().unwrap().legs[0].session.clone();
    assert!(status.resent >= 1 && status.last_error.unwrap().contains("silent"));
}

#[test]
fn much_is_flushed_without_being_asked_for() {
    let mut setup = Setup::new();
    let mut options = options(&[&setup.uri()], 2);
    options.unflushed_limit = 128 << 10;
    let disk = RemoteDisk::open(options).unwrap();
    let all: Vec<_> = (0..1000).map(|number| submit(&disk, write(number, 1))).collect();
    for one in all {
        one.recv_timeout(LIMIT).unwrap().unwrap();
    }
    assert!(
        setup.platter.log().iter().filter(|(kind, ..)| *kind == RequestKind::Flush).count() > 5
    );
    let kept = disk.status().unwrap().legs[0].session.unflushed_bytes;
    // None when the last flush was in time for all.
    assert!(kept <= 128 << 10, "{kept}");
    setup.crash();
    setup.start();
    check(&disk, &vec![1; 1000]);
}

#[test]
fn errors_of_the_server_are_passed_on() {
    let setup = Setup::new();
    let disk = setup.disk(1);
    setup.platter.fail_writes(true);
    let failed = disk.execute(write(0, 1));
    assert_eq!(failed, Err(RemoteFailure::Server(NbdError::Io)));
    setup.platter.fail_writes(false);
    disk.execute(write(0, 2)).unwrap();
    let past = RemoteRequest::Write { offset: SIZE as u64, data: vec![0; 512].into(), fua: false };
    assert_eq!(disk.execute(past), Err(RemoteFailure::Server(NbdError::NoSpace)));
    let odd = RemoteRequest::Read { range: ByteRange::new(1, 512) };
    assert_eq!(disk.execute(odd), Err(RemoteFailure::Server(NbdError::Invalid)));
    let empty = RemoteRequest::Trim { range: ByteRange::new(512, 0) };
    assert_eq!(disk.execute(empty), Ok(bytes::Bytes::new()));
    check(&disk, &vec![2]);
}

#[test]
fn a_server_that_can_do_little_is_used_as_it_is() {
    let mut setup = Setup::new();
    setup.server.take().unwrap().kill();
    let mut info = able(&setup.platter);
    info.can_multi_conn = false;
    info.can_fua = false;
    info.can_zero = false;
    info.can_trim = false;
    info.max_block = 1 << 20;
    let server = Server::start_with(&setup.platter, &setup.place, info.clone(), None);
    let disk = setup.disk(8);
    let big = vec![7; 3 << 20];
    disk.write_at(&big, 512, true).unwrap();
    assert!(setup.platter.durable()[512..512 + (3 << 20)] == big, "a flush stands in for FUA");
    let mut back = vec![0; 3 << 20];
    disk.read_at(&mut back, 512).unwrap();
    assert!(back == big);
    disk.write_zeroes(ByteRange::new(0, 2 << 20), true).unwrap();
    disk.trim(ByteRange::new(0, 4 << 20)).unwrap();
    assert!(setup.platter.content()[..2 << 20].iter().all(|byte| *byte == 0));
    assert_eq!(setup.platter.content()[3 << 20], 7, "nothing was trimmed");
    let live = |disk: &RemoteDisk| {
        let status = disk.status().unwrap();
        status.legs[0].session.connections.iter().filter(|c| c.live_for.is_some()).count()
    };
    assert_eq!(live(&disk), 1);
    drop(server);
    info.read_only = true;
    setup.server = Some(Server::start_with(&setup.platter, &setup.place, info, None));
    wait_for(&disk, RemoteState::Refused);
    let disk = setup.disk(3);
    assert!(disk.info().read_only);
    let refused = disk.execute(write(0, 1));
    assert_eq!(refused, Err(RemoteFailure::Server(NbdError::NotPermitted)));
    wait_until(LIMIT, "three connections", || live(&disk) == 3);
}

#[test]
fn what_cannot_be_opened_says_why() {
    let setup = Setup::new();
    let nowhere = NbdUri::unix(setup.path.with_extension("no"), "disk");
    let unknown = NbdUri::unix(&setup.path, "other");
    let mut tls = setup.uri();
    tls.tls = true;
    let open = |uris: &[&NbdUri]| RemoteDisk::open(options(uris, 1)).map(drop);
    let error = open(&[&nowhere, &unknown]).unwrap_err().to_string();
    assert!(error.contains("No such file") && error.contains("no export"), "{error}");
    let error = open(&[&tls]).unwrap_err().to_string();
    assert!(error.contains("--tls-certificates"), "{error}");
    assert!(open(&[]).is_err());
    assert!(RemoteDisk::open(options(&[&setup.uri()], 17)).is_err());
    open(&[&nowhere, &setup.uri()]).unwrap();
}

#[test]
fn random_requests_of_any_length_match_a_model_through_crashes() {
    let mut setup = Setup::new();
    let disk = setup.disk(3);
    let mut rng = Rng::new(11);
    let mut model = vec![0_u8; SIZE];
    for round in 0..300 {
        let at = rng.below(SIZE as u64 / 512) * 512;
        let len = (1 + rng.below(400)) * 512;
        let range = ByteRange::new(at, len.min(SIZE as u64 - at));
        let part = range.offset as usize..range.end() as usize;
        match rng.below(8) {
            0..4 => {
                let byte = round as u8;
                model[part.clone()].fill(byte);
                disk.write_at(&model[part], at, false).unwrap();
            }
            4 => {
                model[part].fill(0);
                disk.write_zeroes(range, false).unwrap();
            }
            5 if round % 5 == 0 => {
                setup.crash();
                setup.start();
            }
            _ => {
                let mut back = vec![1; part.len()];
                disk.read_at(&mut back, at).unwrap();
                assert!(back == model[part], "round {round}");
            }
        }
    }
    disk.close().unwrap();
    assert!(setup.platter.durable() == model);
}
