//! Servers that break the protocol on purpose. Whatever they send: an error in bounded time, no
//! wrong data, and the right server is used when it is there again.

use crate::single::LIMIT;
use holdfast_nbd::codec::consts::{
    INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, chunk, flag, info, option, option_reply as kind,
};
use holdfast_nbd::codec::{
    ChunkFrame, OptionHeader, RequestHeader, option_error, option_reply, simple_reply,
};
use holdfast_nbd::{Command, NbdUri, RemoteDisk, ReplyStyle};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;
const FLAGS: u16 = flag::HAS_FLAGS | flag::SEND_FLUSH;

/// A server that does with every connection what it is told to.
struct Hostile {
    dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Hostile {
    /// `play` gets each connection and its number.
    fn start(play: impl Fn(UnixStream, usize) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ending, count) = (Arc::clone(&stop), Arc::clone(&connections));
        let thread = std::thread::spawn(move || {
            let play = Arc::new(play);
            for stream in listener.incoming().map_while(Result::ok) {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                let number = count.fetch_add(1, Ordering::Relaxed);
                let play = Arc::clone(&play);
                // The client may be the one who ends it.
                std::thread::spawn(move || drop(play(stream, number)));
            }
        });
        Self { dir, stop, connections, thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// With a time to connect that a busy machine does not use up: what is wrong is to be said, and not
    /// that it took too long.
    fn options(&self) -> holdfast_nbd::RemoteOptions {
        let mut options = crate::server::options(&[&NbdUri::unix(self.path(), "disk")], 1);
        options.connect_timeout = LIMIT / 2;
        options
    }

    /// Why it cannot be opened; soon.
    fn refusal(&self) -> String {
        Self::refusal_with(self.options())
    }

    fn refusal_with(options: holdfast_nbd::RemoteOptions) -> String {
        let began = Instant::now();
        let error = RemoteDisk::open(options).unwrap_err().to_string();
        assert!(began.elapsed() < LIMIT, "it took {:?}", began.elapsed());
        error
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = UnixStream::connect(self.path());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || !matches!(ended, Some(Err(_))), "it panicked");
    }
}

fn greet(stream: &mut impl ReadWrite) -> io::Result<()> {
    let mut greeting = INIT_MAGIC.to_be_bytes().to_vec();
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend(3_u16.to_be_bytes());
    stream.write_all(&greeting)?;
    stream.read_exact(&mut [0; 4])
}

trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

/// What a good server says of the export.
fn export_info(size: u64) -> Vec<u8> {
    let fields = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &FLAGS.to_be_bytes()];
    fields.concat()
}

/// The answer of a good server to an option.
fn honest(code: u32, out: &mut Vec<u8>) {
    match code {
        option::EXTENDED_HEADERS | option::STARTTLS => {
            return option_error(out, code, kind::ERR_UNSUP, "");
        }
        option::GO => option_reply(out, code, kind::INFO, &export_info(SIZE)),
        _ => {}
    }
    option_reply(out, code, kind::ACK, &[]);
}

/// Answers options until GO has been; `answer` may be another one than that of a good server.
fn haggle(
    stream: &mut impl ReadWrite,
    answer: impl Fn(u32, &mut Vec<u8>) -> bool,
) -> io::Result<()> {
    greet(stream)?;
    loop {
        let mut head = [0; OptionHeader::LEN];
        stream.read_exact(&mut head)?;
        let OptionHeader { code, len } = OptionHeader::parse(&head).unwrap();
        stream.read_exact(&mut vec![0; len as usize])?;
        let mut out = Vec::new();
        if !answer(code, &mut out) {
            honest(code, &mut out);
        }
        stream.write_all(&out)?;
        if code == option::GO {
            return Ok(());
        }
    }
}

/// What block `number` of the export holds.
fn content(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| (at % 251) as u8).collect()
}

/// Answers requests; `answer` may be another one than that of a good server.
fn transmit(
    stream: &mut impl ReadWrite,
    mut answer: impl FnMut(&RequestHeader, &mut Vec<u8>) -> bool,
) -> io::Result<()> {
    loop {
        let mut head = vec![0; RequestHeader::wire_len(ReplyStyle::Structured)];
        stream.read_exact(&mut head)?;
        let request = RequestHeader::parse(ReplyStyle::Structured, &head).unwrap().unwrap();
        let mut out = Vec::new();
        if !answer(&request, &mut out) {
            let frame = frame_of(&request);
            if request.command == Command::Read.number() {
                frame.data(&mut out, true, request.offset, request.len);
                out.extend(content(request.offset, request.len));
            } else {
                frame.none(&mut out);
            }
        }
        stream.write_all(&out)?;
    }
}

fn frame_of(request: &RequestHeader) -> ChunkFrame {
    let (cookie, offset) = (request.cookie, request.offset);
    ChunkFrame { style: ReplyStyle::Structured, cookie, offset }
}

#[test]
fn a_long_answer_to_an_option_is_refused_before_it_is_read() {
    for wrong in [option::EXTENDED_HEADERS, option::STRUCTURED_REPLY, option::GO] {
        for len in [1 << 31, u32::MAX, (16 << 10) + 1] {
            let server = Hostile::start(move |mut stream, _| {
                haggle(&mut stream, |code, out| {
                    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
                    out.extend([code.to_be_bytes(), kind::SERVER.to_be_bytes()].concat());
                    out.extend(len.to_be_bytes());
                    code == wrong || {
                        out.clear();
                        false
                    }
                })?;
                // Nothing of it is ever sent: who waited for it would wait for ever.
                stream.read_exact(&mut [0]).map(drop)
            });
            let why = server.refusal();
            assert!(why.contains("too long"), "option {wrong}, {len} bytes: {why}");
        }
    }
}

#[test]
fn answers_without_end_and_to_other_options_are_refused() {
    let endless = Hostile::start(|mut stream, _| {
        haggle(&mut stream, |code, out| {
            let many = if code == option::GO { 5000 } else { 0 };
            (0..many).for_each(|_| option_reply(out, code, kind::INFO, &[0x7f, 0xff]));
            many > 0
        })
    });
    assert!(endless.refusal().contains("without end"));
    // An acknowledgement more than was asked for is the answer to nothing.
    let twice = Hostile::start(|mut stream, _| {
        haggle(&mut stream, |code, out| {
            honest(code, out);
            option_reply(out, code, kind::ACK, &[]);
            true
        })
    });
    assert!(twice.refusal().contains("not sent"));
    let silent = Hostile::start(|mut stream, _| {
        haggle(&mut stream, |code, out| {
            if code == option::GO {
                option_reply(out, code, kind::ACK, &[]);
            }
            code == option::GO
        })
    });
    assert!(silent.refusal().contains("did not tell the export's size"));
    let cut = Hostile::start(|mut stream, _| {
        haggle(&mut stream, |code, out| {
            if code == option::GO {
                option_reply(out, code, kind::INFO, &export_info(SIZE)[..7]);
                option_reply(out, code, kind::ACK, &[]);
            }
            code == option::GO
        })
    });
    assert!(cut.refusal().contains("cut off"));
}

#[test]
fn what_a_server_says_cannot_steer_a_terminal() {
    let server = Hostile::start(|mut stream, _| {
        haggle(&mut stream, |code, out| {
            let text = "\x1b[2J\u{7}no such export\r\n\u{9b}31m";
            if code == option::GO {
                option_error(out, code, kind::ERR_UNKNOWN, text);
            }
            code == option::GO
        })
    });
    let why = server.refusal();
    assert!(why.contains("no such export") && !why.chars().any(char::is_control), "{why:?}");
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    for (size, fits) in [(1 << 63, false), (u64::MAX, false), ((1 << 63) - 1, true), (0, true)] {
        let server = Hostile::start(move |mut stream, _| {
            haggle(&mut stream, |code, out| {
                if code == option::GO {
                    option_reply(out, code, kind::INFO, &export_info(size));
                    option_reply(out, code, kind::ACK, &[]);
                }
                code == option::GO
            })?;
            transmit(&mut stream, |_, _| false)
        });
        if !fits {
            let why = server.refusal();
            assert!(why.contains("2^63"), "{size}: {why}");
            continue;
        }
        let disk = RemoteDisk::open(server.options()).unwrap();
        assert_eq!(disk.info().size, size);
        for offset in [size, size.saturating_sub(1), u64::MAX - 1] {
            let data = &mut [0; 4096][..];
            assert!(disk.read_at(data, offset).is_err(), "{size}, {offset}");
            assert!(disk.write_at(data, offset, false).is_err(), "{size}, {offset}");
        }
    }
}

#[test]
fn block_sizes_that_cannot_be_are_refused() {
    for (min, preferred, max) in
        [(0, 4096, 4096), (3, 4096, 4096), (1 << 31, 1 << 31, 1 << 31), (4096, 4096, 512)]
    {
        let server = Hostile::start(move |mut stream, _| {
            haggle(&mut stream, |code, out| {
                if code == option::GO {
                    let sizes: [u32; 3] = [min, preferred, max];
                    let sizes = sizes.map(u32::to_be_bytes).concat();
                    let data = [&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat();
                    option_reply(out, code, kind::INFO, &data);
                    honest(code, out);
                }
                code == option::GO
            })
        });
        let why = server.refusal();
        assert!(why.contains("make no sense"), "{min} {max}: {why}");
    }
}

/// Sends no more than so many bytes, then closes.
struct Short<'a> {
    stream: &'a mut UnixStream,
    left: usize,
}

impl Read for Short<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buf)
    }
}

impl Write for Short<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let now = buf.len().min(self.left);
        self.left -= now;
        self.stream.write_all(&buf[..now])?;
        if self.left == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(now) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_server_that_closes_at_any_moment_is_an_error_and_no_more() {
    // Greeting, two options, GO; then the answers to looks.
    let lens = (1..=170).chain([4000, 5000, 30_000]);
    for len in lens {
        let server = Hostile::start(move |mut stream, _| {
            let mut short = Short { stream: &mut stream, left: len };
            haggle(&mut short, |_, _| false)?;
            transmit(&mut short, |_, _| false)
        });
        let why = server.refusal();
        assert!(!why.is_empty(), "{len}");
        assert_eq!(server.connections.load(Ordering::Relaxed), 1, "{len}: it is tried once");
    }
}

#[test]
fn a_server_that_drips_its_greeting_is_given_up() {
    let server = Hostile::start(|mut stream, _| {
        stream.set_read_timeout(Some(Duration::from_millis(150)))?;
        for byte in INIT_MAGIC.to_be_bytes() {
            stream.write_all(&[byte])?;
            // The client says nothing before it was greeted.
            let _ = stream.read(&mut [0]);
        }
        Ok(())
    });
    let mut options = server.options();
    // Shorter than the whole greeting takes.
    options.connect_timeout = Duration::from_millis(500);
    assert!(Hostile::refusal_with(options).contains("did not let us in"));
}

/// An answer to a read of 4096 bytes that no good server would give.
type Lie = fn(&RequestHeader, &mut Vec<u8>);

const LIES: [(&str, Lie); 16] = [
    ("data before the request", |request, out| {
        frame_of(request).data(out, true, request.offset.wrapping_sub(1), 4096);
        out.extend([9; 4096]);
    }),
    ("data behind the request", |request, out| {
        frame_of(request).data(out, true, request.offset + 4096, 4096);
        out.extend([9; 4096]);
    }),
    ("data far away", |request, out| {
        frame_of(request).data(out, true, u64::MAX - 4096, 4096);
        out.extend([9; 4096]);
    }),
    ("more data than asked for", |request, out| {
        frame_of(request).data(out, true, request.offset, 4097);
        out.extend([9; 4097]);
    }),
    ("2 GiB of data", |request, out| {
        frame_of(request).data(out, true, request.offset, 1 << 31);
    }),
    ("less data than asked for", |request, out| {
        frame_of(request).data(out, true, request.offset, 4095);
        out.extend([9; 4095]);
    }),
    ("the same data twice", |request, out| {
        let frame = frame_of(request);
        frame.data(out, false, request.offset, 4096);
        out.extend([9; 4096]);
        frame.data(out, true, request.offset, 1);
        out.push(9);
    }),
    ("a hole of 4 GiB", |request, out| {
        frame_of(request).hole(out, true, request.offset, u32::MAX);
    }),
    ("no data", |request, out| frame_of(request).none(out)),
    ("an empty piece", |request, out| {
        frame_of(request).data(out, false, request.offset, 0);
    }),
    ("the answer to another request", |request, out| {
        let frame = ChunkFrame { cookie: request.cookie ^ 1, ..frame_of(request) };
        frame.data(out, true, request.offset, 4096);
        out.extend([9; 4096]);
    }),
    ("two answers", |request, out| {
        let frame = frame_of(request);
        for _ in 0..2 {
            frame.data(out, true, request.offset, 4096);
            out.extend(content(request.offset, 4096));
        }
    }),
    ("a simple reply", |request, out| {
        simple_reply(out, request.cookie, 0);
        out.extend([9; 4096]);
    }),
    ("a chunk of an unknown kind", |request, out| {
        out.extend(0x668e_33ef_u32.to_be_bytes());
        out.extend([0, 1, 0x7f, 1]);
        out.extend(request.cookie.to_be_bytes());
        out.extend([0; 4]);
    }),
    ("an error with 4 GiB of text", |request, out| {
        out.extend(0x668e_33ef_u32.to_be_bytes());
        out.extend([&1_u16.to_be_bytes()[..], &chunk::ERROR.to_be_bytes()].concat());
        out.extend(request.cookie.to_be_bytes());
        out.extend([0xff; 4]);
        out.extend([0; 6]);
    }),
    ("no reply at all", |_, out| out.extend([0x42; 64])),
];

#[test]
fn a_server_that_lies_is_left_and_its_lies_are_not_believed() {
    for (what, lie) in LIES {
        let told = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&told);
        // The place is no sample: it is read for the first time by the test.
        let place = 5 * 4096;
        let server = Hostile::start(move |mut stream, _| {
            haggle(&mut stream, |_, _| false)?;
            transmit(&mut stream, |request, out| {
                let lies = request.offset == place && !done.swap(true, Ordering::Relaxed);
                if lies {
                    lie(request, out);
                }
                lies
            })
        });
        let disk = RemoteDisk::open(server.options()).unwrap();
        let mut found = [0; 4096];
        disk.read_at(&mut found, place).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(found[..] == content(place, 4096), "{what} was believed");
        assert!(told.load(Ordering::Relaxed), "{what} was not told");
        holdfast_testkit::wait_until(LIMIT, what, || {
            // What comes behind a good answer is noticed a little later.
            let _ = disk.read_at(&mut [0; 512], place);
            disk.status().unwrap().legs[0].session.outages == 1
        });
    }
}

#[test]
fn answers_that_nobody_asked_for_end_the_connection() {
    let server = Hostile::start(|mut stream, number| {
        haggle(&mut stream, |_, _| false)?;
        let mut flood = Vec::new();
        let frame = ChunkFrame { style: ReplyStyle::Structured, cookie: 1 << 60, offset: 0 };
        (0..1000).for_each(|_| frame.none(&mut flood));
        if number == 0 {
            loop {
                stream.write_all(&flood)?;
            }
        }
        transmit(&mut stream, |_, _| false)
    });
    assert!(server.refusal().contains("broke"));
    let disk = RemoteDisk::open(server.options()).unwrap();
    disk.read_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn nothing_is_said_in_the_clear_where_tls_was_demanded() {
    for answer in [kind::ERR_UNSUP, kind::ERR_POLICY, kind::ERR_INVALID, kind::INFO, kind::ACK] {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let server = Hostile::start(move |mut stream, _| {
            greet(&mut stream)?;
            let mut head = [0; OptionHeader::LEN];
            stream.read_exact(&mut head)?;
            ear.lock().unwrap().push(OptionHeader::parse(&head).unwrap().code);
            let mut out = Vec::new();
            option_reply(&mut out, option::STARTTLS, answer, &[]);
            // Then it goes on as if it were inside.
            honest(option::GO, &mut out);
            stream.write_all(&out)?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            let magic = OPTION_MAGIC.to_be_bytes();
            if rest.windows(8).any(|bytes| bytes == magic) {
                ear.lock().unwrap().push(u32::MAX);
            }
            Ok(())
        });
        let dir = tempfile::tempdir().unwrap();
        crate::real::certificates(dir.path(), &["client"]);
        let mut options = server.options();
        options.uris[0].tls = true;
        options.tls_certificates = Some(dir.path().to_owned());
        let why = RemoteDisk::open(options).unwrap_err().to_string();
        assert!(why.contains("TLS") || why.contains("protocol"), "{answer:#x}: {why}");
        assert_eq!(*heard.lock().unwrap(), [option::STARTTLS], "{answer:#x}");
    }
}

#[test]
fn a_disk_that_is_closed_takes_its_leave() {
    let left = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&left);
    let server = Hostile::start(move |mut stream, _| {
        haggle(&mut stream, |_, _| false)?;
        transmit(&mut stream, |request, _| {
            if request.command == Command::Disconnect.number() {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            false
        })
    });
    let disk = RemoteDisk::open(server.options()).unwrap();
    disk.write_at(&[], 0, false).unwrap();
    disk.close().unwrap();
    holdfast_testkit::wait_until(LIMIT, "it has left", || left.load(Ordering::Relaxed) == 1);
}
