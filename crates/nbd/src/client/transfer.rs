use super::{Client, ClientError};
use crate::NbdError;
use crate::codec::consts::{chunk, command_flag};
use crate::codec::{Command, Cursor, Extent, ReplyHeader, ReplyStyle, RequestHeader};
use std::io::{IoSlice, Read, Write};

/// The longest payload of a chunk that is no data: an error text, extents.
const MAX_CHUNK: u64 = 2 << 20;

/// What a request waits for.
enum Expect<'a> {
    Nothing,
    Data { data: &'a mut [u8], offset: u64 },
    Extents { context: u32, into: &'a mut Vec<Extent> },
}

impl Client {
    pub(super) fn read_part(&mut self, data: &mut [u8], offset: u64) -> Result<(), ClientError> {
        let len = data.len() as u64;
        self.round(Command::Read, 0, offset, len, &[], Expect::Data { data, offset })
    }

    pub(super) fn write_part(
        &mut self,
        data: &[u8],
        offset: u64,
        flags: u16,
    ) -> Result<(), ClientError> {
        let announced =
            if self.agreed.style == ReplyStyle::Extended { command_flag::PAYLOAD_LEN } else { 0 };
        let (flags, len) = (flags | announced, data.len() as u64);
        self.round(Command::Write, flags, offset, len, data, Expect::Nothing)
    }

    pub(super) fn command(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Result<(), ClientError> {
        self.round(command, flags, offset, len, &[], Expect::Nothing)
    }

    /// A command without payload whose range may be longer than one request can name.
    pub(super) fn long_command(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Result<(), ClientError> {
        const STEP: u64 = 1 << 31;
        let mut done = 0;
        while done < len {
            let step = (len - done).min(STEP);
            self.command(command, flags, offset.saturating_add(done), step)?;
            done += step;
        }
        Ok(())
    }

    pub(super) fn extents(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, ClientError> {
        let Some(context) = self.agreed.base_allocation else {
            return Err(ClientError::Unsupported("block status was not agreed on"));
        };
        let mut extents = Vec::new();
        let len = if self.agreed.style == ReplyStyle::Extended { len } else { len.min(1 << 31) };
        let expect = Expect::Extents { context, into: &mut extents };
        self.round(Command::BlockStatus, 0, offset, len, &[], expect)?;
        Ok(extents)
    }

    pub(super) fn say_goodbye(&mut self) {
        let mut bytes = Vec::new();
        let command = Command::Disconnect.number();
        let head = RequestHeader { flags: 0, command, cookie: 0, offset: 0, len: 0 };
        head.encode(self.agreed.style, &mut bytes);
        // The server notices the end of the connection as well.
        let _ = self.stream.write_all(&bytes);
    }

    /// Sends one request and waits for its answer.
    fn round(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        len: u64,
        payload: &[u8],
        expect: Expect<'_>,
    ) -> Result<(), ClientError> {
        if self.broken {
            return Err(ClientError::Protocol("the connection broke before"));
        }
        self.cookie += 1;
        let command = command.number();
        let head = RequestHeader { flags, command, cookie: self.cookie, offset, len };
        let done = self.send(head, payload).and_then(|()| self.receive(len, expect));
        self.broken = !matches!(done, Ok(()) | Err(ClientError::Request(_)));
        done
    }

    fn send(&mut self, head: RequestHeader, payload: &[u8]) -> Result<(), ClientError> {
        let mut bytes = Vec::with_capacity(32);
        head.encode(self.agreed.style, &mut bytes);
        let sent = self.stream.write_vectored(&[IoSlice::new(&bytes), IoSlice::new(payload)])?;
        if let Some(rest) = bytes.get(sent..) {
            self.stream.write_all(rest)?;
        }
        self.stream.write_all(&payload[sent.saturating_sub(bytes.len())..])?;
        Ok(())
    }

    /// Reads the whole reply to the request that was sent last.
    fn receive(&mut self, len: u64, mut expect: Expect<'_>) -> Result<(), ClientError> {
        let mut error = None;
        let mut covered = 0;
        let mut told = false;
        loop {
            let mut magic = [0; ReplyHeader::MAGIC_LEN];
            self.stream.read_exact(&mut magic)?;
            let mut rest = [0; 28];
            let rest = &mut rest[..ReplyHeader::rest_len(self.agreed.style, magic)?];
            self.stream.read_exact(rest)?;
            match ReplyHeader::parse(magic, rest)? {
                ReplyHeader::Simple { cookie, error } => {
                    self.check_cookie(cookie)?;
                    return self.receive_simple(error, expect);
                }
                ReplyHeader::Chunk { cookie, kind, done, len: chunk_len } => {
                    self.check_cookie(cookie)?;
                    match (kind, &mut expect) {
                        (chunk::NONE, _) if chunk_len == 0 && done => {}
                        (
                            chunk::OFFSET_DATA | chunk::OFFSET_HOLE,
                            Expect::Data { data, offset },
                        ) => {
                            covered += self.receive_data(kind, chunk_len, data, *offset)?;
                        }
                        (
                            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT,
                            Expect::Extents { context, into },
                        ) if !told => {
                            let payload = self.payload(chunk_len)?;
                            **into = parse_extents(kind, &payload, *context)?;
                            told = true;
                        }
                        (kind, _) if kind & chunk::ERROR_BIT != 0 => {
                            let payload = self.payload(chunk_len)?;
                            let number = Cursor::new(&payload).u32().unwrap_or(0);
                            error.get_or_insert(NbdError::from_number(number));
                        }
                        _ => return Err(ClientError::Protocol("it sent an unexpected chunk")),
                    }
                    if !done {
                        continue;
                    }
                    return match (error, &expect) {
                        (Some(error), _) => Err(error.into()),
                        (None, Expect::Data { .. }) if covered != len => Err(INCOMPLETE),
                        (None, Expect::Extents { .. }) if !told => Err(INCOMPLETE),
                        (None, _) => Ok(()),
                    };
                }
            }
        }
    }

    fn receive_simple(&mut self, error: u32, expect: Expect<'_>) -> Result<(), ClientError> {
        if error != 0 {
            return Err(NbdError::from_number(error).into());
        }
        match expect {
            Expect::Nothing => Ok(()),
            Expect::Data { data, .. } if self.agreed.style == ReplyStyle::Simple => {
                Ok(self.stream.read_exact(data)?)
            }
            _ => Err(ClientError::Protocol("it sent a simple reply where chunks are due")),
        }
    }

    /// Reads a chunk of data or zeroes into its place; how many bytes it covers.
    fn receive_data(
        &mut self,
        kind: u16,
        chunk_len: u64,
        data: &mut [u8],
        offset: u64,
    ) -> Result<u64, ClientError> {
        let mut at = [0; 8];
        self.stream.read_exact(&mut at)?;
        let at = u64::from_be_bytes(at).checked_sub(offset).ok_or(OUTSIDE)?;
        let len = if kind == chunk::OFFSET_DATA {
            chunk_len.checked_sub(9).map(|more| more + 1).ok_or(OUTSIDE)?
        } else {
            let mut len = [0; 4];
            self.stream.read_exact(&mut len)?;
            u32::from_be_bytes(len).into()
        };
        if kind == chunk::OFFSET_HOLE && chunk_len != 12 {
            return Err(ClientError::Protocol("it sent a hole of the wrong length"));
        }
        let start = usize::try_from(at).map_err(|_| OUTSIDE)?;
        let end = at.checked_add(len).and_then(|end| usize::try_from(end).ok()).ok_or(OUTSIDE)?;
        let target = data.get_mut(start..end).ok_or(OUTSIDE)?;
        if kind == chunk::OFFSET_DATA {
            self.stream.read_exact(target)?;
        } else {
            target.fill(0);
        }
        Ok(len)
    }

    /// Reads a payload that is not data.
    fn payload(&mut self, len: u64) -> Result<Vec<u8>, ClientError> {
        let len = usize::try_from(len).ok().filter(|_| len <= MAX_CHUNK);
        let len = len.ok_or(ClientError::Protocol("it sent a chunk that is too long"))?;
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload)?;
        Ok(payload)
    }

    const fn check_cookie(&self, cookie: u64) -> Result<(), ClientError> {
        if cookie == self.cookie {
            Ok(())
        } else {
            Err(ClientError::Protocol("it answered a request that was not sent"))
        }
    }
}

const OUTSIDE: ClientError = ClientError::Protocol("it sent data from outside the request");
const INCOMPLETE: ClientError = ClientError::Protocol("its answer leaves a part out");

fn parse_extents(kind: u16, payload: &[u8], context: u32) -> Result<Vec<Extent>, ClientError> {
    const BAD: ClientError = ClientError::Protocol("its block status cannot be read");
    let mut fields = Cursor::new(payload);
    if fields.u32() != Some(context) {
        return Err(ClientError::Protocol("it tells of a context that was not agreed on"));
    }
    let wide = kind == chunk::BLOCK_STATUS_EXT;
    if wide {
        fields.u32().ok_or(BAD)?;
    }
    let mut extents = Vec::new();
    while !fields.is_empty() {
        let (len, flags) = if wide {
            (fields.u64(), fields.u64().and_then(|flags| u32::try_from(flags).ok()))
        } else {
            (fields.u32().map(u64::from), fields.u32())
        };
        match (len, flags) {
            (Some(len), Some(flags)) if len > 0 => extents.push(Extent { len, flags }),
            _ => return Err(BAD),
        }
    }
    if extents.is_empty() { Err(BAD) } else { Ok(extents) }
}
