use super::consts::{MAX_STRING, OPTION_MAGIC, OPTION_REPLY_MAGIC};
use super::{Cursor, WireError};

/// What starts an option of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// One of [`super::consts::option`], or anything.
    pub code: u32,
    /// How many bytes of data follow.
    pub len: u32,
}

impl OptionHeader {
    /// Its length on the wire, in bytes.
    pub const LEN: usize = 16;

    /// Reads one.
    ///
    /// # Errors
    /// [`WireError`] when the magic number is wrong: the stream is out of step.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(bytes);
        if fields.u64() != Some(OPTION_MAGIC) {
            return Err(WireError("the option does not start with the option magic"));
        }
        match (fields.u32(), fields.u32()) {
            (Some(code), Some(len)) => Ok(Self { code, len }),
            _ => Err(WireError("the option header is cut off")),
        }
    }
}

/// What starts the server's reply to an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: u32,
    /// One of [`super::consts::option_reply`], or anything.
    pub kind: u32,
    /// How many bytes of data follow.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Its length on the wire, in bytes.
    pub const LEN: usize = 20;

    /// Reads one.
    ///
    /// # Errors
    /// [`WireError`] when the magic number is wrong: the stream is out of step.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, WireError> {
        let mut fields = Cursor::new(bytes);
        if fields.u64() != Some(OPTION_REPLY_MAGIC) {
            return Err(WireError("the reply to an option does not start with its magic"));
        }
        match (fields.u32(), fields.u32(), fields.u32()) {
            (Some(option), Some(kind), Some(len)) => Ok(Self { option, kind, len }),
            _ => Err(WireError("the reply to an option is cut off")),
        }
    }
}

/// Why an option's data cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptionFault {
    /// Its fields contradict each other or its length.
    Invalid(&'static str),
    /// A string is longer than the protocol allows.
    TooBig(&'static str),
}

/// The data of `INFO` and `GO`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoRequest {
    /// The export.
    pub name: String,
    /// The pieces of information that the client wants.
    pub kinds: Vec<u16>,
}

impl InfoRequest {
    /// Reads the data of `INFO` or `GO`.
    ///
    /// # Errors
    /// [`OptionFault`] when the lengths in it do not fit its length, or the name is no name.
    pub fn parse(data: &[u8]) -> Result<Self, OptionFault> {
        let mut fields = Cursor::new(data);
        let name = string(&mut fields)?;
        let count = fields.u16().ok_or(OptionFault::Invalid(CUT_OFF))?;
        let kinds = fields.rest();
        if kinds.len() != usize::from(count) * 2 {
            return Err(OptionFault::Invalid("the number of information requests does not fit"));
        }
        let kinds = kinds.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Ok(Self { name, kinds: kinds.collect() })
    }

    /// The data as the client sends it. The name must not exceed [`MAX_STRING`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(6 + self.name.len() + self.kinds.len() * 2);
        put_string(&mut data, &self.name);
        data.extend(u16::try_from(self.kinds.len()).unwrap_or(u16::MAX).to_be_bytes());
        data.extend(self.kinds.iter().take(usize::from(u16::MAX)).flat_map(|k| k.to_be_bytes()));
        data
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaRequest {
    /// The export.
    pub name: String,
    /// Names of contexts, or patterns of a namespace.
    pub queries: Vec<Vec<u8>>,
}

impl MetaRequest {
    /// Reads the data of `LIST_META_CONTEXT` or `SET_META_CONTEXT`.
    ///
    /// # Errors
    /// [`OptionFault`] when the lengths in it do not fit its length, or the name is no name.
    pub fn parse(data: &[u8]) -> Result<Self, OptionFault> {
        let mut fields = Cursor::new(data);
        let name = string(&mut fields)?;
        let count = fields.u32().ok_or(OptionFault::Invalid(CUT_OFF))?;
        // The queries are gathered as they come: the count is the client's word only.
        let mut queries = Vec::new();
        for _ in 0..count {
            let len = fields.u32().ok_or(OptionFault::Invalid(CUT_OFF))?;
            let query = fields.bytes(len.into()).ok_or(OptionFault::Invalid(CUT_OFF))?;
            if query.len() > MAX_STRING {
                return Err(OptionFault::TooBig("a metadata context query is too long"));
            }
            queries.push(query.to_vec());
        }
        if !fields.is_empty() {
            return Err(OptionFault::Invalid("there are data behind the last query"));
        }
        Ok(Self { name, queries })
    }

    /// The data as the client sends it. No string in it may exceed [`MAX_STRING`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        put_string(&mut data, &self.name);
        put_len(&mut data, self.queries.len());
        for query in &self.queries {
            put_len(&mut data, query.len());
            data.extend(query);
        }
        data
    }
}

const CUT_OFF: &str = "a length in the option points past its end";

fn string(fields: &mut Cursor<'_>) -> Result<String, OptionFault> {
    let len = fields.u32().ok_or(OptionFault::Invalid(CUT_OFF))?;
    let bytes = fields.bytes(len.into()).ok_or(OptionFault::Invalid(CUT_OFF))?;
    export_name(bytes)
}

/// An export's name off the wire: at most [`MAX_STRING`] bytes of UTF-8 without NUL.
pub(crate) fn export_name(bytes: &[u8]) -> Result<String, OptionFault> {
    if bytes.len() > MAX_STRING {
        return Err(OptionFault::TooBig("the export name is longer than 4096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
        _ => Err(OptionFault::Invalid("the export name is not UTF-8 text")),
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend(text.as_bytes());
}

/// Appends an option of the client. `data` must be shorter than 4 GiB.
pub fn option_request(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(code.to_be_bytes());
    put_len(out, data.len());
    out.extend(data);
}

/// Appends a reply to `option`. `data` must be shorter than 4 GiB.
pub fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    put_len(out, data.len());
    out.extend(data);
}

/// Appends an error reply to `option` with a text for people, cut to [`MAX_STRING`].
pub fn option_error(out: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_STRING)];
    option_reply(out, option, kind, text.as_bytes());
}
