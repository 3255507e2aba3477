mod contexts;
mod haggling;
mod lending;
mod noise;
mod requests;
mod sharing;

use super::*;
use crate::codec::consts::{BASE_ALLOCATION, handshake, option};
use crate::codec::{
    ChunkFrame, InfoRequest, MetaRequest, OptionReplyHeader, ReplyHeader, ReplyStyle,
    RequestHeader, option_request,
};
use crate::{
    Export, ExportInfo, ExportSummary, NbdError, OpenRefusal, PeerAddress, Refusal, ReplyData,
    Request,
};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use tokio::io::DuplexStream;
use tokio::net::UnixStream;

const CLIENT: ClientInfo =
    ClientInfo { address: PeerAddress::Unix { uid: None, pid: None }, tls: false };

/// An export that keeps its requests until the test answers them.
struct Scripted {
    info: ExportInfo,
    pending: RefCell<VecDeque<(Request, Reply)>>,
    batches: RefCell<Vec<usize>>,
    arrived: tokio::sync::Notify,
    closed: Cell<usize>,
    /// Its size, once it has grown.
    grown: Cell<Option<u64>>,
}

impl Scripted {
    fn new(info: ExportInfo) -> Rc<Self> {
        Rc::new(Self {
            info,
            pending: RefCell::default(),
            batches: RefCell::default(),
            arrived: tokio::sync::Notify::new(),
            closed: Cell::new(0),
            grown: Cell::new(None),
        })
    }

    /// Waits until `count` requests are pending.
    async fn wait_for(&self, count: usize) {
        while self.pending.borrow().len() < count {
            self.arrived.notified().await;
        }
    }

    fn take(&self) -> (Request, Reply) {
        self.pending.borrow_mut().pop_front().expect("a request is pending")
    }
}

struct Handle(Rc<Scripted>);

impl Export for Handle {
    fn info(&self) -> ExportInfo {
        self.0.info.clone()
    }

    fn size(&self) -> u64 {
        self.0.grown.get().unwrap_or(self.0.info.size)
    }

    fn submit(&self, request: Request, reply: Reply) {
        self.0.pending.borrow_mut().push_back((request, reply));
    }

    fn batch_submitted(&self) {
        self.0.batches.borrow_mut().push(self.0.pending.borrow().len());
        self.0.arrived.notify_one();
    }

    fn closed(&self) {
        self.0.closed.set(self.0.closed.get() + 1);
    }
}

/// Knows the export `x`, and `tls`, which wants TLS.
struct Catalogue(Rc<Scripted>);

impl Exports for Catalogue {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportSummary> {
        vec![ExportSummary { name: "x".into(), description: "scripted".into() }]
    }

    fn info(&self, name: &str, client: &ClientInfo) -> Result<ExportInfo, OpenRefusal> {
        match name {
            "x" => Ok(self.0.info.clone()),
            "tls" if client.tls => Ok(self.0.info.clone()),
            "tls" => Err(OpenRefusal::new(Refusal::TlsRequired, "only inside TLS")),
            _ => Err(OpenRefusal::unknown(name)),
        }
    }

    fn open(&self, name: &str, client: &ClientInfo) -> Result<Rc<dyn Export>, OpenRefusal> {
        self.info(name, client)?;
        Ok(Rc::new(Handle(Rc::clone(&self.0))))
    }
}

fn full_info() -> ExportInfo {
    let mut info = ExportInfo::new("x", 64 << 20);
    info.can_trim = true;
    info.can_zero = true;
    info.can_block_status = true;
    info
}

/// A client that says what the test wants, and nothing else.
struct Peer<S = DuplexStream> {
    stream: S,
    style: ReplyStyle,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// Through the handshake into the export `x`, with `base:allocation` where that can be.
    async fn enter(stream: S, style: ReplyStyle) -> Self {
        let contexts: &[&str] = if style == ReplyStyle::Simple { &[] } else { &[BASE_ALLOCATION] };
        Self::enter_with(stream, style, contexts).await
    }

    /// Through the handshake into the export `x`, with these metadata contexts.
    async fn enter_with(mut stream: S, style: ReplyStyle, contexts: &[&str]) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        let flags = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        stream.write_all(&flags.to_be_bytes()).await.unwrap();
        let mut peer = Self { stream, style };
        match style {
            ReplyStyle::Simple => {}
            ReplyStyle::Structured => peer.ask(option::STRUCTURED_REPLY, &[]).await,
            ReplyStyle::Extended => peer.ask(option::EXTENDED_HEADERS, &[]).await,
        }
        if !contexts.is_empty() {
            let queries = contexts.iter().map(|name| name.as_bytes().to_vec()).collect();
            let data = MetaRequest { name: "x".into(), queries }.encode();
            peer.ask(option::SET_META_CONTEXT, &data).await;
        }
        let data = InfoRequest { name: "x".into(), kinds: vec![] }.encode();
        peer.ask(option::GO, &data).await;
        peer
    }

    /// An option that must be acknowledged.
    async fn ask(&mut self, code: u32, data: &[u8]) {
        let mut bytes = Vec::new();
        option_request(&mut bytes, code, data);
        self.stream.write_all(&bytes).await.unwrap();
        loop {
            let head: [u8; OptionReplyHeader::LEN] = self.array().await;
            let head = OptionReplyHeader::parse(&head).unwrap();
            assert_eq!(head.kind & 0x8000_0000, 0, "option {code} is refused");
            let mut data = vec![0; head.len as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            if head.kind == 1 {
                return;
            }
        }
    }

    async fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The header of a reply and, for chunks, the payload.
    async fn reply(&mut self) -> (ReplyHeader, Vec<u8>) {
        let magic = self.array().await;
        let mut rest = vec![0; ReplyHeader::rest_len(self.style, magic).unwrap()];
        self.stream.read_exact(&mut rest).await.unwrap();
        let head = ReplyHeader::parse(magic, &rest).unwrap();
        let len = match head {
            ReplyHeader::Simple { .. } => 0,
            ReplyHeader::Chunk { len, .. } => usize::try_from(len).unwrap(),
        };
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).await.unwrap();
        (head, payload)
    }

    /// A reply without data: its cookie and error.
    async fn outcome(&mut self) -> (u64, u32) {
        match self.reply().await {
            (ReplyHeader::Simple { cookie, error }, _) => (cookie, error),
            (ReplyHeader::Chunk { cookie, kind, .. }, payload) if kind & 0x8000 != 0 => {
                (cookie, u32::from_be_bytes(*payload.first_chunk().unwrap()))
            }
            (ReplyHeader::Chunk { cookie, .. }, _) => (cookie, 0),
        }
    }

    async fn at_end(&mut self) -> bool {
        self.stream.read(&mut [0]).await.unwrap() == 0
    }
}

fn request(style: ReplyStyle, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    flagged(style, command, 0, cookie, offset, len)
}

fn flagged(
    style: ReplyStyle,
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    len: u64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    RequestHeader { flags, command, cookie, offset, len }.encode(style, &mut bytes);
    bytes
}

/// Runs a server against `client` on a stream with room for `room` bytes each way.
async fn with_server<F>(
    export: &Rc<Scripted>,
    options: ServerOptions,
    room: usize,
    client: F,
) -> Result<(), ServeError>
where
    F: AsyncFnOnce(DuplexStream),
{
    let (ours, theirs) = tokio::io::duplex(room);
    let exports = Catalogue(Rc::clone(export));
    let server = serve(theirs, &CLIENT, &exports, &options);
    let both = async { tokio::join!(server, client(ours)).0 };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("the test hangs")
}

/// Runs a server against `client` on a Unix socket.
async fn with_socket<F>(export: &Rc<Scripted>, client: F) -> Result<(), ServeError>
where
    F: AsyncFnOnce(UnixStream),
{
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (exports, options) = (Catalogue(Rc::clone(export)), ServerOptions::default());
    let server = serve(theirs, &CLIENT, &exports, &options);
    let both = async { tokio::join!(server, client(ours)).0 };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("the test hangs")
}
