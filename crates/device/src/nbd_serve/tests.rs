use super::{flags_of, serve};
use crate::backend::Backend;
use holdfast_nbd::codec::consts::{command_flag, flag};
use holdfast_nbd::codec::{Command, ReplyHeader, RequestHeader};
use holdfast_nbd::{NbdError, ReplyStyle};
use holdfast_units::{ByteRange, MAX_REQUEST};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

const SIZE: u64 = 8 << 20;

/// Bytes in memory, and what was asked for.
struct Memory {
    data: Mutex<Vec<u8>>,
    calls: Mutex<Sender<String>>,
    read_only: bool,
}

impl Memory {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().send(call).unwrap();
    }

    fn slice(range: ByteRange) -> std::ops::Range<usize> {
        usize::try_from(range.offset).unwrap()..usize::try_from(range.end()).unwrap()
    }
}

impl Backend for Memory {
    fn size(&self) -> u64 {
        SIZE
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(data.len() as u64 <= MAX_REQUEST);
        if offset == SIZE - 512 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let range = Self::slice(ByteRange::new(offset, data.len() as u64));
        data.copy_from_slice(&self.data.lock().unwrap()[range]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        assert!(data.len() as u64 <= MAX_REQUEST);
        self.note(format!("write {offset} {} {fua}", data.len()));
        let range = Self::slice(ByteRange::new(offset, data.len() as u64));
        self.data.lock().unwrap()[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.note("flush".to_owned());
        Ok(())
    }

    fn trim(&self, range: ByteRange) -> io::Result<()> {
        self.note(format!("trim {} {}", range.offset, range.len));
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, may_unmap: bool) -> io::Result<()> {
        self.note(format!("zero {} {} {may_unmap}", range.offset, range.len));
        self.data.lock().unwrap()[Self::slice(range)].fill(0);
        Ok(())
    }
}

/// The kernel's part.
struct Kernel {
    stream: UnixStream,
    calls: Receiver<String>,
}

impl Kernel {
    fn new(read_only: bool) -> Self {
        let (sender, calls) = channel();
        let data = Mutex::new(vec![0; usize::try_from(SIZE).unwrap()]);
        let backend: Arc<dyn Backend> =
            Arc::new(Memory { data, calls: Mutex::new(sender), read_only });
        Self { stream: serve(&backend, 4).unwrap(), calls }
    }

    fn send(&mut self, command: Command, flags: u16, cookie: u64, range: (u64, u64)) {
        let command = command.number();
        let header = RequestHeader { flags, command, cookie, offset: range.0, len: range.1 };
        let mut bytes = Vec::new();
        header.encode(ReplyStyle::Simple, &mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The cookie and the error number of the next reply.
    fn reply(&mut self) -> (u64, u32) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).unwrap();
        let (magic, rest) = head.split_first_chunk().unwrap();
        match ReplyHeader::parse(*magic, rest).unwrap() {
            ReplyHeader::Simple { cookie, error } => (cookie, error),
            other @ ReplyHeader::Chunk { .. } => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, command: Command, flags: u16, range: (u64, u64)) -> u32 {
        self.send(command, flags, 7, range);
        let (cookie, error) = self.reply();
        assert_eq!(cookie, 7);
        error
    }
}

#[test]
fn what_was_written_is_read() {
    let mut kernel = Kernel::new(false);
    let data: Vec<u8> = (0..3u32 << 20).map(|at| (at % 251) as u8).collect();
    kernel.send(Command::Write, command_flag::FUA, 1, (4096, data.len() as u64));
    kernel.stream.write_all(&data).unwrap();
    assert_eq!(kernel.reply(), (1, 0));
    // Longer than a backend takes at a time.
    let mut calls: Vec<String> = kernel.calls.try_iter().collect();
    calls.sort();
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[1], "write 2101248 1048576 true");
    kernel.send(Command::Read, 0, 2, (4096, data.len() as u64));
    assert_eq!(kernel.reply(), (2, 0));
    let mut read = vec![0; data.len()];
    kernel.stream.read_exact(&mut read).unwrap();
    assert!(read == data);
}

#[test]
fn every_command_reaches_the_backend_as_it_was_meant() {
    let mut kernel = Kernel::new(false);
    assert_eq!(kernel.ask(Command::Flush, 0, (0, 0)), 0);
    assert_eq!(kernel.ask(Command::Trim, 0, (0, SIZE)), 0);
    assert_eq!(kernel.ask(Command::WriteZeroes, 0, (512, 512)), 0);
    assert_eq!(kernel.ask(Command::WriteZeroes, command_flag::NO_HOLE, (512, 512)), 0);
    assert_eq!(kernel.ask(Command::WriteZeroes, command_flag::FUA, (0, 4096)), 0);
    let calls: Vec<String> = kernel.calls.try_iter().collect();
    let expected =
        ["flush", "trim 0 8388608", "zero 512 512 true", "zero 512 512 false", "zero 0 4096 true"];
    assert_eq!(calls[..5], expected);
    assert_eq!(calls[5..], ["flush"]);
}

#[test]
fn what_makes_no_sense_is_refused_and_the_stream_stays_in_step() {
    let mut kernel = Kernel::new(false);
    let invalid = NbdError::Invalid.number();
    assert_eq!(kernel.ask(Command::Read, 0, (SIZE, 512)), invalid);
    assert_eq!(kernel.ask(Command::Read, 0, (u64::MAX - 511, 512)), invalid);
    assert_eq!(kernel.ask(Command::Read, 0, (1, 512)), invalid);
    assert_eq!(kernel.ask(Command::Read, 0, (0, 0)), invalid);
    assert_eq!(kernel.ask(Command::Trim, 0, (SIZE - 512, 1024)), NbdError::NoSpace.number());
    assert_eq!(kernel.ask(Command::BlockStatus, 0, (0, 512)), invalid);
    assert_eq!(kernel.ask(Command::Read, 0, (SIZE - 512, 512)), NbdError::Io.number());
    kernel.send(Command::Write, 0, 9, (SIZE, 512));
    kernel.stream.write_all(&[1; 512]).unwrap();
    assert_eq!(kernel.reply(), (9, NbdError::NoSpace.number()));
    assert_eq!(kernel.calls.try_iter().count(), 0);
    assert_eq!(kernel.ask(Command::Flush, 0, (0, 0)), 0);
}

#[test]
fn a_read_only_backend_sees_no_change() {
    let mut kernel = Kernel::new(true);
    let refused = NbdError::NotPermitted.number();
    for command in [Command::Trim, Command::WriteZeroes] {
        assert_eq!(kernel.ask(command, 0, (0, 512)), refused);
    }
    kernel.send(Command::Write, 0, 3, (0, 512));
    kernel.stream.write_all(&[1; 512]).unwrap();
    assert_eq!(kernel.reply(), (3, refused));
    assert_eq!(kernel.calls.try_iter().count(), 0);
    let (sender, _calls) = channel();
    let memory = Memory { data: Mutex::default(), calls: Mutex::new(sender), read_only: true };
    assert!(flags_of(&memory).has(flag::READ_ONLY));
}

#[test]
fn nonsense_ends_the_connection() {
    let mut wrong_magic = Kernel::new(false);
    wrong_magic.stream.write_all(&[0x55; 28]).unwrap();
    assert_eq!(wrong_magic.stream.read(&mut [0; 16]).unwrap(), 0);
    let mut too_long = Kernel::new(false);
    too_long.send(Command::Write, 0, 1, (0, u64::from(u32::MAX)));
    assert_eq!(too_long.stream.read(&mut [0; 16]).unwrap(), 0);
    let mut left = Kernel::new(false);
    left.send(Command::Disconnect, 0, 0, (0, 0));
    assert_eq!(left.stream.read(&mut [0; 16]).unwrap(), 0);
}
