use super::*;
use crate::NbdError;
use crate::codec::consts::command_flag;
use crate::codec::{Command, ReplyStyle};
use holdfast_testkit::Rng;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

const ALL: u16 = flag::HAS_FLAGS
    | flag::SEND_FLUSH
    | flag::SEND_FUA
    | flag::SEND_TRIM
    | flag::SEND_WRITE_ZEROES
    | flag::CAN_MULTI_CONN;

fn agreed(size: u64, flags: u16, max: u32) -> Agreed {
    Agreed {
        style: ReplyStyle::Structured,
        base_allocation: None,
        size,
        flags: TransmissionFlags(flags),
        blocks: (1, 4, max),
        name: None,
    }
}

/// A server with a volatile cache.
struct Server {
    /// What reads see.
    content: Vec<u8>,
    /// What is left after a crash, but for what is dirty, which may be.
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Server {
    fn new(size: usize) -> Self {
        Self { content: vec![0; size], durable: vec![0; size], dirty: BTreeSet::new() }
    }

    fn run(&mut self, wire: &Wire) -> Bytes {
        let start = usize::try_from(wire.offset).unwrap();
        let end = start + usize::try_from(wire.len).unwrap();
        let fua = wire.flags & command_flag::FUA != 0;
        match wire.command {
            Command::Read => return Bytes::copy_from_slice(&self.content[start..end]),
            Command::Write => self.content[start..end].copy_from_slice(&wire.payload),
            Command::WriteZeroes => self.content[start..end].fill(0),
            Command::Flush => {
                for at in std::mem::take(&mut self.dirty) {
                    self.durable[at] = self.content[at];
                }
                return Bytes::new();
            }
            _ => return Bytes::new(),
        }
        for at in start..end {
            if fua {
                self.durable[at] = self.content[at];
                self.dirty.remove(&at);
            } else {
                self.dirty.insert(at);
            }
        }
        Bytes::new()
    }

    /// The kernel could not write, and forgets that it should have.
    fn fail_flush(&mut self) {
        self.dirty.clear();
    }

    fn crash(&mut self, rng: &mut Rng) {
        for at in std::mem::take(&mut self.dirty) {
            if rng.below(2) == 0 {
                self.durable[at] = self.content[at];
            }
        }
        self.content.clone_from(&self.durable);
    }
}

const SIZE: u64 = 48;

/// How many worlds each test runs.
const SEEDS: u64 = 400;

type Results = Rc<RefCell<Vec<(u64, RemoteOutcome)>>>;

/// Who wrote a byte last, what, and whether that went well.
#[derive(Clone, Copy, Default)]
struct Byte {
    by: u64,
    value: u8,
    /// `None` while under way; false when the byte may be anything.
    good: Option<bool>,
}

enum Asked {
    Read(Vec<Byte>, ByteRange),
    Write(ByteRange),
    Flush(Vec<Byte>),
}

/// A session, a server, and the account of what must be where.
struct World {
    rng: Rng,
    now: Instant,
    session: Session,
    server: Server,
    /// What each live lane has sent and the server has not done yet.
    lanes: Vec<Option<Vec<Wire>>>,
    bytes: Vec<Byte>,
    asked: BTreeMap<u64, Asked>,
    results: Results,
    next: u64,
    flags: u16,
    reads_checked: usize,
}

impl World {
    fn new(seed: u64, limits: Limits, lanes: usize) -> Self {
        let mut session = Session::new(limits, lanes, Identity::default());
        let shape = Shape { size: SIZE, block: 1, read_only: false };
        session.set_agreed(&agreed(SIZE, ALL, 8), shape);
        Self {
            rng: Rng::new(seed),
            now: Instant::now(),
            session,
            server: Server::new(SIZE as usize),
            lanes: (0..lanes).map(|_| None).collect(),
            bytes: vec![Byte { good: Some(true), ..Byte::default() }; SIZE as usize],
            asked: BTreeMap::new(),
            results: Rc::default(),
            next: 1,
            flags: ALL,
            reads_checked: 0,
        }
    }

    fn connect(&mut self) {
        let Some(lane) = self.lanes.iter().position(Option::is_none) else { return };
        if self.lanes.iter().all(Option::is_none) {
            // Another server program may have come up.
            let less = [0, flag::SEND_FUA, flag::SEND_WRITE_ZEROES, flag::SEND_TRIM];
            self.flags = ALL & !less[self.rng.below(4) as usize];
        }
        let shape = self.session.shape().unwrap();
        let max = [3, 8, 64][self.rng.below(3) as usize];
        self.session.set_agreed(&agreed(SIZE, self.flags, max), shape);
        self.lanes[lane] = Some(Vec::new());
        self.session.admit(lane, self.now);
    }

    fn disconnect(&mut self, lane: usize) {
        let Some(wires) = self.lanes[lane].take() else { return };
        self.session.retire(lane);
        // The server may still have done some of it.
        for wire in wires {
            if self.rng.below(2) == 0 {
                self.server.run(&wire);
            }
        }
        self.session.lost(lane, self.now);
    }

    fn crash(&mut self) {
        for lane in 0..self.lanes.len() {
            self.disconnect(lane);
        }
        self.server.crash(&mut self.rng);
    }

    /// The server does something of what one lane has sent.
    fn serve(&mut self) {
        let lane = self.rng.below(self.lanes.len() as u64) as usize;
        let Some(wires) = &mut self.lanes[lane] else { return };
        while let Some(wire) = self.session.next_wire(lane) {
            wires.push(wire);
        }
        if wires.is_empty() {
            return;
        }
        let wire = wires.swap_remove(self.rng.below(wires.len() as u64) as usize);
        let allowed = flag::SEND_WRITE_ZEROES | flag::SEND_TRIM | flag::SEND_FUA;
        let used = match wire.command {
            Command::WriteZeroes => flag::SEND_WRITE_ZEROES,
            Command::Trim => flag::SEND_TRIM,
            _ => 0,
        } | if wire.flags & command_flag::FUA == 0 { 0 } else { flag::SEND_FUA };
        assert_eq!(used & allowed & !self.flags, 0, "the server cannot do that: {wire:?}");
        let answer = match self.rng.below(40) {
            0 => Err(NbdError::Shutdown),
            1 if wire.command == Command::Flush => {
                self.server.fail_flush();
                Err(NbdError::Io)
            }
            2 => Err(NbdError::Io),
            _ => Ok(self.server.run(&wire)),
        };
        if !self.session.answered(lane, wire.cookie, answer, self.now) {
            self.disconnect(lane);
        }
        if self.session.is_unusable() {
            (0..self.lanes.len()).for_each(|lane| self.disconnect(lane));
        }
    }

    fn ask(&mut self) {
        let offset = self.rng.below(SIZE);
        let range = ByteRange::new(offset, 1 + self.rng.below(20.min(SIZE - offset)));
        let part = range.offset as usize..range.end() as usize;
        let number = self.next;
        self.next += 1;
        let fua = self.rng.below(5) == 0;
        let value = (number % 250) as u8 + 1;
        let (request, asked) = match self.rng.below(10) {
            0..3 => {
                let before = self.bytes[part].to_vec();
                (RemoteRequest::Read { range }, Asked::Read(before, range))
            }
            3 => (RemoteRequest::Flush, Asked::Flush(self.bytes.clone())),
            kind => {
                let zero = kind == 4;
                let value = if zero { 0 } else { value };
                self.bytes[part].fill(Byte { by: number, value, good: None });
                let request = if zero {
                    let may_unmap = self.rng.below(2) == 0;
                    RemoteRequest::WriteZeroes { range, may_unmap, fua }
                } else if kind == 5 {
                    // It may be anything afterwards.
                    RemoteRequest::Trim { range }
                } else {
                    let data = vec![value; range.len as usize].into();
                    RemoteRequest::Write { offset, data, fua }
                };
                (request, Asked::Write(range))
            }
        };
        let trim = matches!(request, RemoteRequest::Trim { .. });
        self.asked.insert(number, asked);
        let results = Rc::clone(&self.results);
        let done = Box::new(move |outcome: RemoteOutcome| {
            // A trim that went well leaves anything behind, as a failed write does.
            let outcome = if trim { Err(RemoteFailure::Aborted) } else { outcome };
            results.borrow_mut().push((number, outcome));
        });
        self.session.submit(request, done, self.now);
    }

    /// Takes note of what is over, and checks it.
    fn settle(&mut self) {
        for (done, outcome) in self.session.finished() {
            done(outcome);
        }
        for (number, outcome) in self.results.take() {
            match self.asked.remove(&number).expect("every request ends once") {
                Asked::Write(range) => {
                    let part = range.offset as usize..range.end() as usize;
                    let good = Some(outcome.is_ok());
                    let set = |byte: &mut Byte| {
                        if byte.by == number {
                            byte.good = good;
                        }
                    };
                    self.bytes[part].iter_mut().for_each(set);
                    // A flush covers only what was over when it was asked for; a read sees all
                    // that was asked for before it.
                    for asked in self.asked.values_mut() {
                        if let Asked::Read(before, _) = asked {
                            before.iter_mut().filter(|byte| byte.good.is_none()).for_each(set);
                        }
                    }
                }
                Asked::Read(before, range) => {
                    let Ok(data) = outcome else { continue };
                    assert_eq!(data.len() as u64, range.len);
                    for (at, (byte, read)) in before.iter().zip(&data).enumerate() {
                        assert!(byte.good.is_some(), "a read has overtaken a write");
                        if byte.good == Some(true) {
                            self.reads_checked += 1;
                            assert_eq!(byte.value, *read, "{range} + {at} is stale");
                        }
                    }
                }
                Asked::Flush(before) => {
                    if outcome.is_err() {
                        continue;
                    }
                    for (at, (then, byte)) in before.iter().zip(&self.bytes).enumerate() {
                        if then.by == byte.by && then.good == Some(true) {
                            let durable = self.server.durable[at];
                            assert_eq!(durable, byte.value, "byte {at} was not flushed");
                        }
                    }
                }
            }
        }
    }

    /// Any of the things that can happen, `steps` times.
    fn run(&mut self, steps: usize, timeouts: bool) {
        for _ in 0..steps {
            match self.rng.below(100) {
                0..2 => self.crash(),
                2..5 => {
                    let lane = self.rng.below(self.lanes.len() as u64) as usize;
                    self.disconnect(lane);
                }
                5..12 => self.connect(),
                12..40 if self.asked.len() < 30 => self.ask(),
                40 if timeouts => {
                    self.now += Duration::from_secs(30);
                    self.session.tick(self.now);
                }
                41 => {
                    self.now += Duration::from_millis(500);
                    self.session.tick(self.now);
                }
                _ => self.serve(),
            }
            self.settle();
        }
    }

    /// Lets everything come to an end with a server that fails no more.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            if self.asked.is_empty() {
                // The client may still be at something of its own.
                (0..self.lanes.len()).for_each(|lane| self.disconnect(lane));
                assert_eq!((self.session.changing, self.session.arriving_weight), (0, 0));
                assert!(self.session.requests.is_empty() && self.session.parked.is_empty());
                return;
            }
            self.connect();
            self.now += Duration::from_millis(20);
            self.session.tick(self.now);
            self.serve();
            self.settle();
        }
        panic!("{} requests hang", self.asked.len());
    }
}

fn limits(unflushed: u64) -> Limits {
    Limits { unflushed, lane_parts: 4, lane_bytes: 30, ..Limits::default() }
}

#[test]
fn nothing_is_stale_and_what_was_flushed_is_durable() {
    let mut checked = 0;
    for seed in 0..SEEDS {
        let lanes = 1 + (seed % 3) as usize;
        let unflushed = if seed % 2 == 0 { 1 << 20 } else { 700 };
        println!("seed {seed}");
        let mut world = World::new(seed, Limits { timeout: None, ..limits(unflushed) }, lanes);
        world.run(600, false);
        world.finish();
        checked += world.reads_checked;
    }
    assert!(checked > 50_000, "only {checked} reads were checked");
}

#[test]
fn requests_that_time_out_do_not_spoil_others() {
    for seed in 1000..1000 + SEEDS {
        println!("seed {seed}");
        let timeout = Some(Duration::from_secs(60));
        let mut world = World::new(seed, Limits { timeout, ..limits(900) }, 2);
        world.run(600, true);
        world.finish();
    }
}
