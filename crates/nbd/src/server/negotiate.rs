use crate::codec::consts::{BASE_ALLOCATION, flag, info, option, option_reply as reply};
use crate::codec::consts::{INIT_MAGIC, OPTION_MAGIC, handshake};
use crate::codec::{
    InfoRequest, MetaRequest, OptionFault, ReplyStyle, export_name, option_error, option_reply,
};
use crate::{ClientInfo, ContextSet, Export, ExportInfo, Exports, OpenRefusal, Refusal};
use std::rc::Rc;

/// The longest data of an option that is looked at, in bytes: a name and 15 long queries.
pub(super) const MAX_OPTION: u32 = 64 << 10;

/// The identifier under which a context with this index is reported.
pub(super) fn context_id(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

/// An export that a connection has entered. Tells the export when it is over.
pub(super) struct Session {
    pub(super) export: Rc<dyn Export>,
    pub(super) info: ExportInfo,
    pub(super) style: ReplyStyle,
    /// The contexts that block status tells.
    pub(super) contexts: ContextSet,
}

impl Session {
    /// Whether the client may name contexts in a payload.
    pub(super) fn takes_filters(&self) -> bool {
        takes_filters(self.style, self.contexts)
    }
}

fn takes_filters(style: ReplyStyle, contexts: ContextSet) -> bool {
    style == ReplyStyle::Extended && !contexts.is_empty()
}

impl Drop for Session {
    fn drop(&mut self) {
        self.export.closed();
    }
}

/// What is to be done after an option was answered.
pub(super) enum Step {
    /// Read the next option.
    Continue,
    /// Begin TLS once the answer is sent.
    StartTls,
    /// Begin transmission once the answer is sent.
    Enter(Session),
    /// Close once the answer is sent.
    HangUp,
}

/// How this connection stands to TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tls {
    Off,
    Offered,
    Required,
    Active,
}

/// The server's side of option haggling, without I/O.
pub(super) struct Negotiation<'a> {
    exports: &'a dyn Exports,
    client: ClientInfo,
    tls: Tls,
    max_payload: u32,
    fixed: bool,
    no_zeroes: bool,
    style: ReplyStyle,
    /// The contexts that were selected.
    selected: Option<Selection>,
}

/// The greeting: what the server sends first.
pub(super) fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&INIT_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&OUR_FLAGS.to_be_bytes());
    bytes
}

const OUR_FLAGS: u16 = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;

impl<'a> Negotiation<'a> {
    /// Begins with the client's answer to the greeting; `None` when it has flags that nobody
    /// offered, and must be left alone.
    pub(super) fn new(
        exports: &'a dyn Exports,
        client: ClientInfo,
        tls: Tls,
        max_payload: u32,
        client_flags: u32,
    ) -> Option<Self> {
        let flags = u16::try_from(client_flags).ok().filter(|flags| flags & !OUR_FLAGS == 0)?;
        Some(Self {
            exports,
            client,
            tls,
            max_payload,
            fixed: flags & handshake::FIXED_NEWSTYLE != 0,
            no_zeroes: flags & handshake::NO_ZEROES != 0,
            style: ReplyStyle::Simple,
            selected: None,
        })
    }

    /// Continues inside TLS: nothing that was agreed on in the clear holds any more.
    pub(super) fn tls_began(&mut self) {
        self.tls = Tls::Active;
        self.client.tls = true;
        self.style = ReplyStyle::Simple;
        self.selected = None;
    }

    /// Refuses an option whose data were too long to be read.
    pub(super) fn too_long(&self, code: u32, out: &mut Vec<u8>) -> Step {
        if code == option::EXPORT_NAME || !self.fixed {
            return Step::HangUp;
        }
        option_error(out, code, reply::ERR_TOO_BIG, "the option's data are too long");
        Step::Continue
    }

    /// Answers one option into `out`.
    pub(super) fn option(&mut self, code: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        if code == option::EXPORT_NAME {
            return self.export_name(data, out);
        }
        if !self.fixed {
            // Such a client could not read an answer.
            return Step::HangUp;
        }
        if code == option::ABORT {
            option_reply(out, code, reply::ACK, &[]);
            return Step::HangUp;
        }
        if self.tls == Tls::Required && code != option::STARTTLS {
            option_error(out, code, reply::ERR_TLS_REQD, "this server demands TLS");
            return Step::Continue;
        }
        let done = match code {
            option::STARTTLS => return self.start_tls(data, out),
            option::GO => return self.go(data, out),
            option::LIST => self.list(data, out),
            option::INFO => self.info(data, out),
            option::STRUCTURED_REPLY => self.agree_on(ReplyStyle::Structured, data),
            option::EXTENDED_HEADERS => self.agree_on(ReplyStyle::Extended, data),
            option::LIST_META_CONTEXT => self.list_contexts(data, out),
            option::SET_META_CONTEXT => self.set_contexts(data, out),
            _ => Err(Fault(reply::ERR_UNSUP, "the server does not know this option".into())),
        };
        match done {
            Ok(()) => option_reply(out, code, reply::ACK, &[]),
            Err(Fault(kind, text)) => option_error(out, code, kind, &text),
        }
        Step::Continue
    }

    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        if self.tls == Tls::Required || self.style == ReplyStyle::Extended {
            return Step::HangUp;
        }
        let Ok(session) = export_name(data).map_err(Fault::from).and_then(|name| self.open(&name))
        else {
            return Step::HangUp;
        };
        out.extend(session.info.size.to_be_bytes());
        out.extend(self.flags(&session.info, session.contexts).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Step::Enter(session)
    }

    fn start_tls(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let refuse = |kind, text| (kind, text);
        let (kind, text) = match self.tls {
            _ if !data.is_empty() => refuse(reply::ERR_INVALID, "this option takes no data"),
            Tls::Active => refuse(reply::ERR_INVALID, "the connection is inside TLS already"),
            Tls::Off => refuse(reply::ERR_POLICY, "this server has no TLS"),
            Tls::Offered | Tls::Required => {
                option_reply(out, option::STARTTLS, reply::ACK, &[]);
                return Step::StartTls;
            }
        };
        option_error(out, option::STARTTLS, kind, text);
        Step::Continue
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        no_data(data)?;
        for export in self.exports.list(&self.client) {
            let mut item = Vec::new();
            item.extend(u32::try_from(export.name.len()).unwrap_or(u32::MAX).to_be_bytes());
            item.extend(export.name.as_bytes());
            item.extend(export.description.as_bytes());
            option_reply(out, option::LIST, reply::SERVER, &item);
        }
        Ok(())
    }

    fn info(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let request = InfoRequest::parse(data)?;
        let info = self.exports.info(&request.name, &self.client)?;
        self.describe(option::INFO, &request, &info, out);
        Ok(())
    }

    fn go(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        let opened = InfoRequest::parse(data)
            .map_err(Fault::from)
            .and_then(|request| self.open(&request.name).map(|session| (request, session)));
        match opened {
            Ok((request, session)) => {
                self.describe(option::GO, &request, &session.info, out);
                option_reply(out, option::GO, reply::ACK, &[]);
                Step::Enter(session)
            }
            Err(Fault(kind, text)) => {
                option_error(out, option::GO, kind, &text);
                Step::Continue
            }
        }
    }

    fn open(&self, name: &str) -> Result<Session, Fault> {
        if let Some(selection) = self.selected.as_ref().filter(|one| one.export == name)
            && !selection.stands(&self.exports.info(name, &self.client)?)
        {
            let text = "the metadata contexts of the export have changed: select them again";
            return Err(Fault(reply::ERR_INVALID, text.into()));
        }
        let export = self.exports.open(name, &self.client)?;
        let mut info = export.info();
        info.max_block = info.max_block.min(self.max_payload);
        Ok(Session { export, info, style: self.style, contexts: self.contexts_of(name) })
    }

    /// The contexts that were selected for this export.
    fn contexts_of(&self, name: &str) -> ContextSet {
        match &self.selected {
            Some(selection) if selection.export == name => selection.contexts,
            _ => ContextSet::default(),
        }
    }

    fn flags(&self, about: &ExportInfo, contexts: ContextSet) -> u16 {
        let filters = takes_filters(self.style, contexts);
        about.flags(self.style).0 | if filters { flag::BLOCK_STATUS_PAYLOAD } else { 0 }
    }

    /// The pieces of information about an export.
    fn describe(&self, code: u32, request: &InfoRequest, about: &ExportInfo, out: &mut Vec<u8>) {
        let mut piece = |kind: u16, parts: &[&[u8]]| {
            let data = [&[&kind.to_be_bytes()[..]], parts].concat().concat();
            option_reply(out, code, reply::INFO, &data);
        };
        let flags = self.flags(about, self.contexts_of(&request.name)).to_be_bytes();
        piece(info::EXPORT, &[&about.size.to_be_bytes(), &flags]);
        let largest = about.max_block.min(self.max_payload);
        let sizes = [about.min_block, about.preferred_block, largest].map(u32::to_be_bytes);
        piece(info::BLOCK_SIZE, &[&sizes.concat()]);
        if request.kinds.contains(&info::NAME) {
            piece(info::NAME, &[about.name.as_bytes()]);
        }
        if request.kinds.contains(&info::DESCRIPTION) && !about.description.is_empty() {
            piece(info::DESCRIPTION, &[about.description.as_bytes()]);
        }
    }

    fn agree_on(&mut self, style: ReplyStyle, data: &[u8]) -> Result<(), Fault> {
        no_data(data)?;
        if self.style > style {
            let text = "extended headers are agreed on already";
            return Err(Fault(reply::ERR_EXT_HEADER_REQD, text.into()));
        }
        self.style = style;
        Ok(())
    }

    fn list_contexts(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let (request, info) = self.context_request(data)?;
        for (_, name) in contexts(&info) {
            let (namespace, _) = name.split_at(name.find(':').map_or(0, |colon| colon + 1));
            let wanted =
                |query: &Vec<u8>| query == namespace.as_bytes() || query == name.as_bytes();
            if request.queries.is_empty() || request.queries.iter().any(wanted) {
                context(option::LIST_META_CONTEXT, 0, name, out);
            }
        }
        Ok(())
    }

    fn set_contexts(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        // Whatever comes of it, the former selection is gone.
        self.selected = None;
        let (request, info) = self.context_request(data)?;
        let mut selected = ContextSet::default();
        let mut names = Vec::new();
        for (index, name) in contexts(&info) {
            if request.queries.iter().any(|query| query == name.as_bytes()) {
                selected.insert(index);
                names.push((index, name.to_owned()));
                context(option::SET_META_CONTEXT, context_id(index), name, out);
            }
        }
        self.selected = Some(Selection { export: request.name, contexts: selected, names });
        Ok(())
    }

    fn context_request(&self, data: &[u8]) -> Result<(MetaRequest, ExportInfo), Fault> {
        if self.style == ReplyStyle::Simple {
            let text = "structured replies must be agreed on first";
            return Err(Fault(reply::ERR_INVALID, text.into()));
        }
        let request = MetaRequest::parse(data)?;
        let info = self.exports.info(&request.name, &self.client)?;
        Ok((request, info))
    }
}

/// The contexts that a client has selected.
#[derive(Debug)]
struct Selection {
    export: String,
    contexts: ContextSet,
    /// What they were called then.
    names: Vec<(usize, String)>,
}

impl Selection {
    /// Whether they are still what they were. An export may have gained or lost some meanwhile.
    fn stands(&self, info: &ExportInfo) -> bool {
        let is_there = |(index, name): &(usize, String)| {
            contexts(info).any(|(at, now)| at == *index && now == name)
        };
        self.names.iter().all(is_there)
    }
}

/// The metadata contexts of an export with their indexes.
fn contexts(info: &ExportInfo) -> impl Iterator<Item = (usize, &str)> {
    let more = info.contexts.iter().filter(|_| info.can_block_status);
    let names = std::iter::once(BASE_ALLOCATION).chain(more.map(String::as_str));
    names.take(ContextSet::MAX).enumerate()
}

fn context(code: u32, id: u32, name: &str, out: &mut Vec<u8>) {
    let data = [&id.to_be_bytes(), name.as_bytes()].concat();
    option_reply(out, code, reply::META_CONTEXT, &data);
}

fn no_data(data: &[u8]) -> Result<(), Fault> {
    if data.is_empty() {
        Ok(())
    } else {
        Err(Fault(reply::ERR_INVALID, "this option takes no data".into()))
    }
}

/// An error reply: its kind and text.
struct Fault(u32, String);

impl From<OptionFault> for Fault {
    fn from(fault: OptionFault) -> Self {
        match fault {
            OptionFault::Invalid(text) => Self(reply::ERR_INVALID, text.into()),
            OptionFault::TooBig(text) => Self(reply::ERR_TOO_BIG, text.into()),
        }
    }
}

impl From<OpenRefusal> for Fault {
    fn from(refusal: OpenRefusal) -> Self {
        let kind = match refusal.refusal {
            Refusal::Unknown => reply::ERR_UNKNOWN,
            Refusal::Policy => reply::ERR_POLICY,
            Refusal::TlsRequired => reply::ERR_TLS_REQD,
            Refusal::Shutdown => reply::ERR_SHUTDOWN,
        };
        Self(kind, refusal.message)
    }
}
