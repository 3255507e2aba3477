use super::*;
use crate::HeapBuffers;
use crate::codec::consts::chunk;
use crate::codec::{ChunkFrame, TransmissionFlags, simple_reply};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use tokio::io::AsyncReadExt;

/// What a test sends and gets.
#[derive(Default)]
struct Script {
    wires: RefCell<VecDeque<Wire>>,
    answers: RefCell<Vec<(u64, Result<Bytes, NbdError>)>>,
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
}

impl Port for Script {
    fn next(&self) -> Option<Wire> {
        self.wires.borrow_mut().pop_front()
    }

    fn answer(&self, cookie: u64, answer: Result<Bytes, NbdError>) -> bool {
        let goes_on = answer != Err(NbdError::Shutdown);
        self.answers.borrow_mut().push((cookie, answer));
        if self.answers.borrow().len() == 2 {
            self.ending.set(Some(Ending::Polite));
        }
        goes_on
    }

    fn listen(&self, waker: &Waker) {
        self.waker.replace(Some(waker.clone()));
    }

    fn ending(&self) -> Option<Ending> {
        self.ending.get()
    }
}

fn agreed(style: ReplyStyle) -> Agreed {
    Agreed {
        style,
        base_allocation: None,
        size: 1 << 20,
        flags: TransmissionFlags(1),
        blocks: (1, 4096, 1 << 20),
        name: None,
    }
}

fn wire(cookie: u64, command: Command, offset: u64, len: u64) -> Wire {
    let payload =
        if command == Command::Write { vec![7; len as usize].into() } else { Bytes::new() };
    Wire { cookie, command, flags: 0, offset, len, payload }
}

/// Runs a link that reads 100,000 bytes at 512 and 16 at 0, and is answered with these bytes.
fn run(style: ReplyStyle, bytes: &[u8]) -> (Script, Result<(), String>) {
    let script = Script::default();
    let reads = [wire(1, Command::Read, 512, LONG), wire(2, Command::Read, 0, 16)];
    script.wires.borrow_mut().extend(reads);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let link = Link::new(
            ours,
            &agreed(style),
            Duration::from_secs(5),
            Rc::new(HeapBuffers::default()),
        );
        let server = async {
            let mut requests = vec![0; 2 * RequestHeader::wire_len(style)];
            theirs.read_exact(&mut requests).await.unwrap();
            // The client may have had enough before.
            let _ = theirs.write_all(bytes).await;
            let _ = theirs.shutdown().await;
            // For the farewell.
            let _ = theirs.read(&mut [0; 64]).await;
            drop(theirs);
        };
        let (result, ()) = tokio::join!(link.run(&script), server);
        result.map(drop).map_err(|error| error.to_string())
    });
    (script, result)
}

const LONG: u64 = 100_000;
const FRAME: ChunkFrame = ChunkFrame { style: ReplyStyle::Structured, cookie: 1, offset: 512 };
const SHORT: ChunkFrame = ChunkFrame { style: ReplyStyle::Structured, cookie: 2, offset: 0 };

fn bytes(build: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out);
    out
}

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn replies_may_come_mixed_and_in_pieces() {
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let (long, short) = (ChunkFrame { style, ..FRAME }, ChunkFrame { style, ..SHORT });
        let data = pattern(LONG);
        let answer = bytes(|out| {
            long.data(out, false, 512 + 60_000, 40_000);
            out.extend(&data[60_000..]);
            short.hole(out, true, 0, 16);
            long.data(out, false, 512, 100);
            out.extend(&data[..100]);
            long.data(out, false, 612, 59_900);
            out.extend(&data[100..60_000]);
            long.none(out);
        });
        let (script, result) = run(style, &answer);
        assert_eq!(result, Ok(()));
        let answers = script.answers.take();
        assert_eq!(answers[0], (2, Ok(vec![0; 16].into())));
        assert!(answers[1] == (1, Ok(data.into())));
    }
}

#[test]
fn simple_replies_and_errors() {
    let answer = bytes(|out| {
        simple_reply(out, 2, 5);
        simple_reply(out, 1, 0);
        out.extend(pattern(LONG));
    });
    let (script, result) = run(ReplyStyle::Simple, &answer);
    assert_eq!(result, Ok(()));
    let answers = script.answers.take();
    assert_eq!(answers[0], (2, Err(NbdError::Io)));
    assert!(answers[1] == (1, Ok(pattern(LONG).into())));
    // Errors after data, with a text, and one that ends the connection.
    let answer = bytes(|out| {
        FRAME.hole(out, false, 512, 1000);
        out.extend(0x668e_33ef_u32.to_be_bytes());
        out.extend([0, 1]);
        out.extend((chunk::ERROR_OFFSET).to_be_bytes());
        out.extend(1_u64.to_be_bytes());
        out.extend(17_u32.to_be_bytes());
        out.extend(28_u32.to_be_bytes());
        out.extend([0, 3, b'o', b'h', b'!', 0, 0, 0, 0, 0, 0, 2, 0]);
        SHORT.error(out, 108);
    });
    let (script, result) = run(ReplyStyle::Structured, &answer);
    assert!(result.unwrap_err().contains("shutting down"));
    let told = [(1, Err(NbdError::NoSpace)), (2, Err(NbdError::Shutdown))];
    assert_eq!(script.answers.take(), told);
}

#[test]
fn a_hostile_server_gets_no_further_than_an_error() {
    let hole = |at, len| bytes(|out| FRAME.hole(out, true, at, len));
    let error_of = |len: u32| {
        let head = [&0x668e_33ef_u32.to_be_bytes()[..], &[0, 0, 0x80, 9]].concat();
        [&head[..], &1_u64.to_be_bytes(), &len.to_be_bytes(), &[0; 64]].concat()
    };
    let cases = [
        (hole(0, 16), "outside"),
        (hole(511, 16), "outside"),
        (hole(512 + 99_990, 16), "outside"),
        (hole(u64::MAX, 16), "outside"),
        (hole(512, 0), "outside"),
        (hole(512, 16), "leaves a part out"),
        (bytes(|out| FRAME.data(out, true, 512, u32::MAX.into())), "outside"),
        (bytes(|out| FRAME.data(out, true, 512, 0)), "outside"),
        (bytes(|out| FRAME.none(out)), "leaves a part out"),
        (bytes(|out| ChunkFrame { cookie: 9, ..FRAME }.none(out)), "not sent"),
        (bytes(|out| simple_reply(out, 1, 0)), "chunks are due"),
        (bytes(|out| simple_reply(out, 9, 0)), "not sent"),
        (bytes(|out| FRAME.block_status(out, true, 1, &[])), "unexpected chunk"),
        (vec![0; 64], "magic"),
        (error_of(u32::MAX), "too long"),
        (Vec::new(), "closed it"),
    ];
    for (answer, why) in cases {
        let error = run(ReplyStyle::Structured, &answer).1.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
    let twice = bytes(|out| {
        FRAME.hole(out, false, 1000, 100);
        FRAME.hole(out, false, 1200, 100);
        FRAME.hole(out, false, 1050, 100);
    });
    assert!(run(ReplyStyle::Structured, &twice).1.unwrap_err().contains("twice"));
    let crumbs = bytes(|out| (0..9000).for_each(|at| FRAME.hole(out, false, 512 + 2 * at, 1)));
    assert!(run(ReplyStyle::Structured, &crumbs).1.unwrap_err().contains("too many pieces"));
}

#[test]
fn silence_counts_only_while_an_answer_is_due() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let script = Script::default();
        let style = ReplyStyle::Structured;
        let silence = Duration::from_secs(30);
        let link = Link::new(ours, &agreed(style), silence, Rc::new(HeapBuffers::default()));
        let begun = Instant::now();
        let others = async {
            tokio::time::sleep_until(begun + Duration::from_secs(100)).await;
            script.wires.borrow_mut().push_back(wire(1, Command::Write, 0, 20_000));
            script.waker.take().unwrap().wake();
            let mut request = vec![0; 28 + 20_000];
            theirs.read_exact(&mut request).await.unwrap();
            assert!(request[28..].iter().all(|byte| *byte == 7));
            // Half an answer is a sign of life.
            tokio::time::sleep_until(begun + Duration::from_secs(120)).await;
            theirs.write_all(&0x668e_33ef_u32.to_be_bytes()).await.unwrap();
        };
        let (result, ()) = tokio::join!(link.run(&script), others);
        assert!(result.map(drop).unwrap_err().to_string().contains("silent for 30s"));
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(150) && took < Duration::from_secs(160), "{took:?}");
    });
}
