//! Serves a backend to the kernel's NBD client: the transmission phase with simple replies, nothing
//! before it.
//!
//! Each thread takes the next request from the socket, carries it out and answers it, so that there
//! are as many requests with the backend as there are threads, and nothing is queued.

use crate::backend::Backend;
use holdfast_nbd::codec::consts::{PORTABLE_PAYLOAD, command_flag, flag};
use holdfast_nbd::codec::{Command, RequestHeader, SIMPLE_REPLY_LEN, simple_reply};
use holdfast_nbd::{NbdError, ReplyStyle, TransmissionFlags};
use holdfast_units::{ByteRange, MAX_REQUEST};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest read or write; the kernel's client sends no longer ones.
const MAX_PAYLOAD: u64 = PORTABLE_PAYLOAD as u64;
/// A thread keeps a buffer of this size; a longer one only for its request.
const KEPT: usize = 1 << 20;

/// What the kernel is told that the server can.
pub(crate) fn flags_of(backend: &dyn Backend) -> TransmissionFlags {
    let all = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::SEND_TRIM
        | flag::SEND_WRITE_ZEROES
        | flag::CAN_MULTI_CONN;
    let read_only = if backend.is_read_only() { flag::READ_ONLY } else { 0 };
    TransmissionFlags(all | read_only)
}

/// Serves the backend at the other end of the socket that this gives back, with so many threads.
/// They end with the connection.
///
/// # Errors
/// When the system gives no sockets or threads.
pub(crate) fn serve(backend: &Arc<dyn Backend>, threads: usize) -> io::Result<UnixStream> {
    let (theirs, ours) = UnixStream::pair()?;
    let server = Arc::new(Server {
        backend: Arc::clone(backend),
        requests: Mutex::new(ours.try_clone()?),
        replies: Mutex::new(ours),
    });
    for _ in 0..threads.max(1) {
        let server = Arc::clone(&server);
        std::thread::Builder::new().name("nbd-device".to_owned()).spawn(move || server.run())?;
    }
    Ok(theirs)
}

struct Server {
    backend: Arc<dyn Backend>,
    /// Held while one request is read.
    requests: Mutex<UnixStream>,
    /// Held while one reply is written.
    replies: Mutex<UnixStream>,
}

impl Server {
    fn run(&self) {
        let mut buffer = Vec::new();
        while let Ok(true) = self.next(&mut buffer) {
            if buffer.capacity() > KEPT {
                buffer = Vec::new();
            }
        }
        // The others, and the kernel, are to see it too.
        let requests = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = requests.shutdown(std::net::Shutdown::Both);
    }

    /// Takes a request and answers it; false when there are no more.
    fn next(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let taken = {
            let mut stream = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            take_request(&mut *stream, buffer)?
        };
        let Some(request) = taken else { return Ok(false) };
        let done = self.carry_out(&request, buffer);
        let mut head = Vec::with_capacity(SIMPLE_REPLY_LEN);
        simple_reply(&mut head, request.cookie, done.err().map_or(0, NbdError::number));
        let data = match done {
            Ok(()) if request.command == Command::Read.number() => &buffer[..],
            _ => &[],
        };
        let mut stream = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(&head)?;
        stream.write_all(data)?;
        Ok(true)
    }

    fn carry_out(&self, request: &RequestHeader, buffer: &mut Vec<u8>) -> Result<(), NbdError> {
        let backend = &*self.backend;
        let command = Command::from_number(request.command).ok_or(NbdError::Invalid)?;
        if command == Command::Flush {
            return backend.flush().map_err(|error| NbdError::from(&error));
        }
        let range = self.check(command, request)?;
        let fua = request.flags & command_flag::FUA != 0;
        let done = match command {
            Command::Read => in_parts(buffer_for(buffer, range), range.offset, |part, at| {
                backend.read_at(part, at)
            }),
            Command::Write => {
                in_parts(buffer, range.offset, |part, at| backend.write_at(part, at, fua))
            }
            Command::Trim => backend.trim(range).and_then(|()| flush_if(backend, fua)),
            _ => {
                let may_unmap = request.flags & command_flag::NO_HOLE == 0;
                backend.write_zeroes(range, may_unmap).and_then(|()| flush_if(backend, fua))
            }
        };
        done.map_err(|error| NbdError::from(&error))
    }

    /// The range, when the request makes sense.
    fn check(&self, command: Command, request: &RequestHeader) -> Result<ByteRange, NbdError> {
        let block = u64::from(self.backend.block_size());
        let changes = match command {
            Command::Read => false,
            Command::Write | Command::Trim | Command::WriteZeroes => true,
            _ => return Err(NbdError::Invalid),
        };
        if changes && self.backend.is_read_only() {
            return Err(NbdError::NotPermitted);
        }
        let end = request.offset.checked_add(request.len).ok_or(NbdError::Invalid)?;
        if end > self.backend.size() {
            return Err(if changes { NbdError::NoSpace } else { NbdError::Invalid });
        }
        let aligned = request.offset.is_multiple_of(block) && request.len.is_multiple_of(block);
        let too_long = command == Command::Read && request.len > MAX_PAYLOAD;
        if !aligned || request.len == 0 || too_long {
            return Err(NbdError::Invalid);
        }
        Ok(ByteRange::new(request.offset, request.len))
    }
}

/// The next request, with the data of a write in `buffer`; `None` when the client has left.
fn take_request(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Option<RequestHeader>> {
    let mut head = [0; RequestHeader::wire_len(ReplyStyle::Simple)];
    match stream.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let parsed = RequestHeader::parse(ReplyStyle::Simple, &head);
    let request = parsed.map_err(io::Error::other)?.ok_or(io::ErrorKind::InvalidData)?;
    if request.command == Command::Disconnect.number() {
        return Ok(None);
    }
    buffer.clear();
    if request.command == Command::Write.number() {
        // Where the next request begins is only known when this one's data are read.
        if request.len > MAX_PAYLOAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        buffer.resize(usize::try_from(request.len).map_err(io::Error::other)?, 0);
        stream.read_exact(buffer)?;
    }
    Ok(Some(request))
}

fn buffer_for(buffer: &mut Vec<u8>, range: ByteRange) -> &mut [u8] {
    buffer.resize(usize::try_from(range.len).expect("a read is at most 32 MiB"), 0);
    buffer
}

/// Hands a backend no more at a time than it takes.
fn in_parts(
    data: &mut [u8],
    offset: u64,
    mut each: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let step = usize::try_from(MAX_REQUEST).expect("a constant of 1 MiB");
    let mut at = offset;
    for part in data.chunks_mut(step) {
        each(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

fn flush_if(backend: &dyn Backend, fua: bool) -> io::Result<()> {
    if fua { backend.flush() } else { Ok(()) }
}

#[cfg(test)]
mod tests;
