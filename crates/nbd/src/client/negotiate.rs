//! The client's side of the handshake, for any kind of stream.

use super::ClientError;
use crate::codec::consts::{
    BASE_ALLOCATION, INIT_MAGIC, MAX_STRING, OPTION_MAGIC, PORTABLE_PAYLOAD, handshake, info,
    option, option_reply,
};
use crate::codec::{
    Cursor, InfoRequest, MetaRequest, OptionReplyHeader, ReplyStyle, TransmissionFlags,
    option_request,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The most replies to one option.
const MAX_REPLIES: usize = 1024;
/// The longest reply to an option: a name, a description and their lengths.
const MAX_REPLY: u32 = 16 << 10;

/// One reply to an option, other than an error.
type OptionReply = (u32, Vec<u8>);

/// What was agreed on, and what the server told of the export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Agreed {
    pub(super) style: ReplyStyle,
    /// The identifier of `base:allocation`, when it was agreed on.
    pub(super) base_allocation: Option<u32>,
    /// Below 2^63.
    pub(super) size: u64,
    pub(super) flags: TransmissionFlags,
    /// Smallest, preferred and largest block.
    pub(super) blocks: (u32, u32, u32),
    /// The export's own name, where the server told it.
    pub(super) name: Option<String>,
}

impl Agreed {
    /// The largest payload of one request, in bytes.
    pub(super) fn max_payload(&self) -> usize {
        let min = usize::try_from(self.blocks.0).unwrap_or(1);
        usize::try_from(self.blocks.2).unwrap_or(usize::MAX) / min * min
    }
}

/// The greetings. Options come next, in the clear.
pub(super) async fn greet<S>(stream: &mut S) -> Result<Greeted, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await?;
    let mut fields = Cursor::new(&greeting);
    if fields.u64() != Some(INIT_MAGIC) {
        return Err(ClientError::Protocol("it does not greet like an NBD server"));
    }
    if fields.u64() != Some(OPTION_MAGIC) {
        return Err(ClientError::Protocol("it speaks the old handshake"));
    }
    let flags = fields.u16().unwrap_or(0);
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(ClientError::Protocol("it does not know the fixed newstyle handshake"));
    }
    let ours = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes()).await?;
    Ok(Greeted { zeroes: flags & handshake::NO_ZEROES == 0 })
}

/// What the greetings agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Greeted {
    /// Whether the answer to `EXPORT_NAME` is followed by zeroes.
    zeroes: bool,
}

/// Asks for TLS; when it returns, the TLS handshake comes next.
///
/// # Errors
/// When the server does not grant it: nothing may go on in the clear then.
pub(super) async fn start_tls<S>(stream: &mut S) -> Result<(), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match ask(stream, option::STARTTLS, &[]).await? {
        Ok(_) => Ok(()),
        Err(denied) => Err(ClientError::Tls(format!("the server offers none: {}", denied.text))),
    }
}

/// Everything from the first option (other than STARTTLS) up to the first request.
pub(super) async fn enter<S>(
    stream: &mut S,
    greeted: Greeted,
    export: &str,
    style: ReplyStyle,
    block_status: bool,
) -> Result<Agreed, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if export.len() > MAX_STRING {
        return Err(ClientError::Unsupported("an export name is longer than 4096 bytes"));
    }
    let mut agreed = Agreed {
        style: agree_on_style(stream, style).await?,
        base_allocation: None,
        size: 0,
        flags: TransmissionFlags::default(),
        blocks: (1, 4096, PORTABLE_PAYLOAD),
        name: None,
    };
    if block_status && agreed.style != ReplyStyle::Simple {
        agreed.base_allocation = agree_on_block_status(stream, export).await?;
    }
    go(stream, greeted, export, &mut agreed).await?;
    if i64::try_from(agreed.size).is_err() {
        return Err(ClientError::Protocol("the export's size is beyond 2^63"));
    }
    Ok(agreed)
}

async fn agree_on_style<S>(stream: &mut S, wanted: ReplyStyle) -> Result<ReplyStyle, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for (style, code) in [
        (ReplyStyle::Extended, option::EXTENDED_HEADERS),
        (ReplyStyle::Structured, option::STRUCTURED_REPLY),
    ] {
        if wanted >= style && ask(stream, code, &[]).await?.is_ok() {
            return Ok(style);
        }
    }
    Ok(ReplyStyle::Simple)
}

async fn agree_on_block_status<S>(stream: &mut S, export: &str) -> Result<Option<u32>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let queries = vec![BASE_ALLOCATION.as_bytes().to_vec()];
    let data = MetaRequest { name: export.to_owned(), queries }.encode();
    let mut id = None;
    for (kind, reply) in ask(stream, option::SET_META_CONTEXT, &data).await?.unwrap_or_default() {
        let mut fields = Cursor::new(&reply);
        let told = fields.u32();
        if kind == option_reply::META_CONTEXT && fields.rest() == BASE_ALLOCATION.as_bytes() {
            id = told;
        }
    }
    Ok(id)
}

async fn go<S>(
    stream: &mut S,
    greeted: Greeted,
    export: &str,
    agreed: &mut Agreed,
) -> Result<(), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let kinds = vec![info::NAME, info::BLOCK_SIZE];
    let data = InfoRequest { name: export.to_owned(), kinds }.encode();
    let replies = match ask(stream, option::GO, &data).await? {
        Ok(replies) => replies,
        Err(denied) if denied.kind == option_reply::ERR_UNSUP => {
            return enter_the_old_way(stream, greeted, export, agreed).await;
        }
        Err(denied) => {
            return Err(ClientError::Refused { export: export.to_owned(), message: denied.text });
        }
    };
    let mut told = false;
    for (_, reply) in replies.iter().filter(|(kind, _)| *kind == option_reply::INFO) {
        let mut fields = Cursor::new(reply);
        match fields.u16() {
            Some(info::EXPORT) => {
                agreed.size = fields.u64().ok_or(CUT_OFF)?;
                agreed.flags = TransmissionFlags(fields.u16().ok_or(CUT_OFF)?);
                told = true;
            }
            Some(info::BLOCK_SIZE) => {
                let sizes = (fields.u32(), fields.u32(), fields.u32());
                let (Some(min), Some(preferred), Some(max)) = sizes else {
                    return Err(CUT_OFF);
                };
                if !min.is_power_of_two() || min > 65536 || max < min {
                    return Err(ClientError::Protocol("its block sizes make no sense"));
                }
                // More than this would only cost memory.
                agreed.blocks = (min, preferred, max.min(PORTABLE_PAYLOAD));
            }
            Some(info::NAME) => {
                agreed.name = std::str::from_utf8(fields.rest()).ok().map(str::to_owned);
            }
            _ => {}
        }
    }
    if told { Ok(()) } else { Err(ClientError::Protocol("it did not tell the export's size")) }
}

/// For servers without `GO`. They hang up when there is no such export.
async fn enter_the_old_way<S>(
    stream: &mut S,
    greeted: Greeted,
    export: &str,
    agreed: &mut Agreed,
) -> Result<(), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if agreed.style == ReplyStyle::Extended {
        return Err(ClientError::Protocol("it has extended headers, but not the option GO"));
    }
    let mut request = Vec::new();
    option_request(&mut request, option::EXPORT_NAME, export.as_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 10 + 124];
    let len = if greeted.zeroes { answer.len() } else { 10 };
    match stream.read_exact(&mut answer[..len]).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            let message = "it hung up; perhaps there is no such export".to_owned();
            return Err(ClientError::Refused { export: export.to_owned(), message });
        }
        other => other?,
    };
    let mut fields = Cursor::new(&answer);
    agreed.size = fields.u64().ok_or(CUT_OFF)?;
    agreed.flags = TransmissionFlags(fields.u16().ok_or(CUT_OFF)?);
    Ok(())
}

/// An error as the answer to an option.
pub(super) struct Denied {
    kind: u32,
    text: String,
}

/// Sends an option and gathers the replies: those before the acknowledgement, or the error.
async fn ask<S>(
    stream: &mut S,
    code: u32,
    data: &[u8],
) -> Result<Result<Vec<OptionReply>, Denied>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::with_capacity(16 + data.len());
    option_request(&mut request, code, data);
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut replies = Vec::new();
    while replies.len() < MAX_REPLIES {
        let mut head = [0; OptionReplyHeader::LEN];
        stream.read_exact(&mut head).await?;
        let head = OptionReplyHeader::parse(&head)?;
        if head.option != code {
            return Err(ClientError::Protocol("it answers an option that was not sent"));
        }
        if head.len > MAX_REPLY {
            return Err(ClientError::Protocol("its answer to an option is too long"));
        }
        let mut reply = vec![0; usize::try_from(head.len).unwrap_or(0)];
        stream.read_exact(&mut reply).await?;
        match head.kind {
            option_reply::ACK => return Ok(Ok(replies)),
            kind if kind & option_reply::ERROR != 0 => {
                return Ok(Err(Denied { kind, text: error_text(kind, &reply) }));
            }
            kind => replies.push((kind, reply)),
        }
    }
    Err(ClientError::Protocol("it answers an option without end"))
}

const CUT_OFF: ClientError = ClientError::Protocol("what it tells of the export is cut off");

fn error_text(kind: u32, text: &[u8]) -> String {
    // The text comes from elsewhere: nothing in it may steer a terminal.
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    if !text.is_empty() {
        return text;
    }
    match kind {
        option_reply::ERR_UNKNOWN => "there is no such export".to_owned(),
        option_reply::ERR_POLICY => "its policy forbids it".to_owned(),
        option_reply::ERR_TLS_REQD => "it demands TLS".to_owned(),
        option_reply::ERR_SHUTDOWN => "it is shutting down".to_owned(),
        option_reply::ERR_UNSUP => "it does not know the option".to_owned(),
        other => format!("error {other:#x}"),
    }
}
