use super::{Client, ClientError, ConnectOptions};
use crate::codec::consts::{
    BASE_ALLOCATION, INIT_MAGIC, MAX_STRING, OPTION_MAGIC, handshake, info, option, option_reply,
};
use crate::codec::{
    Cursor, InfoRequest, MetaRequest, OptionReplyHeader, ReplyStyle, TransmissionFlags,
    option_request,
};
use std::io::{Read, Write};

/// The most replies to one option.
const MAX_REPLIES: usize = 1024;
/// The longest reply to an option: a name, a description and their lengths.
const MAX_REPLY: u32 = 16 << 10;

/// One reply to an option, other than an error.
type OptionReply = (u32, Vec<u8>);

impl Client {
    /// Everything up to the first request.
    pub(super) fn handshake(
        &mut self,
        export: &str,
        options: &ConnectOptions,
    ) -> Result<(), ClientError> {
        if export.len() > MAX_STRING {
            return Err(ClientError::Unsupported("an export name is longer than 4096 bytes"));
        }
        self.greet()?;
        self.agree_on_style(options.style)?;
        if options.block_status && self.style != ReplyStyle::Simple {
            self.agree_on_block_status(export)?;
        }
        self.go(export)
    }

    fn greet(&mut self) -> Result<(), ClientError> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
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
        self.stream.write_all(&u32::from(ours).to_be_bytes())?;
        Ok(())
    }

    fn agree_on_style(&mut self, wanted: ReplyStyle) -> Result<(), ClientError> {
        for (style, code) in [
            (ReplyStyle::Extended, option::EXTENDED_HEADERS),
            (ReplyStyle::Structured, option::STRUCTURED_REPLY),
        ] {
            if wanted >= style && self.ask(code, &[])?.is_ok() {
                self.style = style;
                return Ok(());
            }
        }
        Ok(())
    }

    fn agree_on_block_status(&mut self, export: &str) -> Result<(), ClientError> {
        let queries = vec![BASE_ALLOCATION.as_bytes().to_vec()];
        let data = MetaRequest { name: export.to_owned(), queries }.encode();
        for (kind, reply) in self.ask(option::SET_META_CONTEXT, &data)?.unwrap_or_default() {
            let mut fields = Cursor::new(&reply);
            let id = fields.u32();
            if kind == option_reply::META_CONTEXT && fields.rest() == BASE_ALLOCATION.as_bytes() {
                self.base_allocation = id;
            }
        }
        Ok(())
    }

    fn go(&mut self, export: &str) -> Result<(), ClientError> {
        let kinds = vec![info::BLOCK_SIZE];
        let data = InfoRequest { name: export.to_owned(), kinds }.encode();
        let replies = self.ask(option::GO, &data)?.map_err(|refused| ClientError::Refused {
            export: export.to_owned(),
            message: refused,
        })?;
        let mut size = None;
        for (_, reply) in replies.iter().filter(|(kind, _)| *kind == option_reply::INFO) {
            let mut fields = Cursor::new(reply);
            match fields.u16() {
                Some(info::EXPORT) => {
                    size = fields.u64();
                    let flags = fields.u16();
                    self.flags = TransmissionFlags(flags.ok_or(CUT_OFF)?);
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
                    self.blocks = (min, preferred, max.min(self.blocks.2));
                }
                _ => {}
            }
        }
        self.size = size.ok_or(ClientError::Protocol("it did not tell the export's size"))?;
        if i64::try_from(self.size).is_err() {
            return Err(ClientError::Protocol("the export's size is beyond 2^63"));
        }
        Ok(())
    }

    /// Sends an option and gathers the replies: those before the acknowledgement, or the text of
    /// the error.
    fn ask(
        &mut self,
        code: u32,
        data: &[u8],
    ) -> Result<Result<Vec<OptionReply>, String>, ClientError> {
        let mut request = Vec::with_capacity(16 + data.len());
        option_request(&mut request, code, data);
        self.stream.write_all(&request)?;
        let mut replies = Vec::new();
        while replies.len() < MAX_REPLIES {
            let mut head = [0; OptionReplyHeader::LEN];
            self.stream.read_exact(&mut head)?;
            let head = OptionReplyHeader::parse(&head)?;
            if head.option != code {
                return Err(ClientError::Protocol("it answers an option that was not sent"));
            }
            if head.len > MAX_REPLY {
                return Err(ClientError::Protocol("its answer to an option is too long"));
            }
            let mut reply = vec![0; usize::try_from(head.len).unwrap_or(0)];
            self.stream.read_exact(&mut reply)?;
            match head.kind {
                option_reply::ACK => return Ok(Ok(replies)),
                kind if kind & option_reply::ERROR != 0 => {
                    return Ok(Err(error_text(kind, &reply)));
                }
                kind => replies.push((kind, reply)),
            }
        }
        Err(ClientError::Protocol("it answers an option without end"))
    }
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
