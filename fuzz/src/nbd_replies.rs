//! What NBD servers say, with the right magic numbers and any content.

use libfuzzer_sys::arbitrary::{self, Arbitrary};

/// A piece of what a server says.
#[derive(Arbitrary, Debug)]
#[allow(missing_docs, reason = "the fields are those of the protocol")]
pub enum Sent {
    OptionReply { option: u8, kind: u8, is_error: bool, data: Vec<u8> },
    Export { size: u64, flags: u16 },
    Blocks { least: u32, preferred: u32, most: u32 },
    Context { id: u32 },
    Simple { error: u32, cookie: u8, data: u16 },
    Chunk { done: bool, kind: u8, is_error: bool, cookie: u8, data: Vec<u8> },
    Data { cookie: u8, offset: u32, len: u16 },
    Extended { done: bool, kind: u8, cookie: u8, offset: u64, data: Vec<u8> },
    Bytes(Vec<u8>),
}

/// A reply to an option.
pub fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    put_bytes(out, data);
}

/// A length and the bytes.
fn put_bytes(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(u32::try_from(data.len()).expect("it is short").to_be_bytes());
    out.extend(data);
}

fn chunk(out: &mut Vec<u8>, done: bool, kind: u16, cookie: u8, data: &[u8]) {
    out.extend(0x668e_33ef_u32.to_be_bytes());
    out.extend(u16::from(done).to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u64::from(cookie).to_be_bytes());
    put_bytes(out, data);
}

/// The option that enters an export.
pub const GO: u32 = 7;
const SET_META_CONTEXT: u32 = 10;

impl Sent {
    /// Its bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::OptionReply { option, kind, is_error, data } => {
                let kind = u32::from(*kind) | if *is_error { 1 << 31 } else { 0 };
                option_reply(out, (*option).into(), kind, data);
            }
            Self::Export { size, flags } => {
                let data = [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
                option_reply(out, GO, 3, &data);
            }
            Self::Blocks { least, preferred, most } => {
                let sizes = [least, preferred, most].map(|size| size.to_be_bytes()).concat();
                option_reply(out, GO, 3, &[&[0, 3][..], &sizes].concat());
            }
            Self::Context { id } => {
                let data = [&id.to_be_bytes()[..], b"base:allocation"].concat();
                option_reply(out, SET_META_CONTEXT, 4, &data);
            }
            Self::Simple { error, cookie, data } => {
                out.extend(0x6744_6698_u32.to_be_bytes());
                out.extend(error.to_be_bytes());
                out.extend(u64::from(*cookie).to_be_bytes());
                out.resize(out.len() + usize::from(*data), 7);
            }
            Self::Chunk { done, kind, is_error, cookie, data } => {
                let kind = u16::from(*kind) | if *is_error { 1 << 15 } else { 0 };
                chunk(out, *done, kind, *cookie, data);
            }
            Self::Data { cookie, offset, len } => {
                let data = vec![7; usize::from(*len)];
                let offset = u64::from(*offset).to_be_bytes();
                chunk(out, true, 1, *cookie, &[&offset[..], &data].concat());
            }
            Self::Extended { done, kind, cookie, offset, data } => {
                out.extend(0x6e8a_278c_u32.to_be_bytes());
                out.extend(u16::from(*done).to_be_bytes());
                out.extend(u16::from(*kind).to_be_bytes());
                out.extend(u64::from(*cookie).to_be_bytes());
                out.extend(offset.to_be_bytes());
                out.extend((data.len() as u64).to_be_bytes());
                out.extend(data);
            }
            Self::Bytes(bytes) => out.extend(bytes),
        }
    }
}
