use crate::Reply;
use crate::codec::consts::{PORTABLE_PAYLOAD, flag};
use crate::codec::{Extent, ReplyStyle, TransmissionFlags};
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

/// Where a client comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerAddress {
    /// A Unix socket; who it is, where the kernel told.
    Unix {
        /// User id of the process that connected.
        uid: Option<u32>,
        /// Its process id.
        pid: Option<i32>,
    },
    /// TCP.
    Tcp(SocketAddr),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { pid: Some(pid), .. } => write!(f, "unix, process {pid}"),
            Self::Unix { pid: None, .. } => f.write_str("unix"),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// What is known about the client of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientInfo {
    /// Where it comes from.
    pub address: PeerAddress,
    /// Whether the connection is inside TLS.
    pub tls: bool,
}

impl ClientInfo {
    /// A client on this TCP connection.
    #[must_use]
    pub const fn tcp(address: SocketAddr) -> Self {
        Self { address: PeerAddress::Tcp(address), tls: false }
    }

    /// A client on this Unix socket. That the kernel does not tell who it is, is no error.
    #[must_use]
    pub fn unix(stream: &tokio::net::UnixStream) -> Self {
        let who = stream.peer_cred().ok();
        let uid = who.as_ref().map(tokio::net::unix::UCred::uid);
        let pid = who.and_then(|who| who.pid());
        Self { address: PeerAddress::Unix { uid, pid }, tls: false }
    }
}

/// An export in a list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExportSummary {
    /// The name that opens it.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
}

/// Why an export is not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is no such export.
    Unknown,
    /// It exists, and may not be used by this client or now.
    Policy,
    /// It may be used inside TLS only.
    TlsRequired,
    /// The server is stopping.
    Shutdown,
}

/// Why an export is not opened, with a sentence for the client.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpenRefusal {
    /// The kind that the protocol knows.
    pub refusal: Refusal,
    /// What to tell; only the first 4096 bytes travel.
    pub message: String,
}

impl OpenRefusal {
    /// A refusal with its sentence.
    pub fn new(refusal: Refusal, message: impl Into<String>) -> Self {
        Self { refusal, message: message.into() }
    }

    /// That there is no export with this name.
    #[must_use]
    pub fn unknown(name: &str) -> Self {
        let shown: String = name.chars().take(100).collect();
        Self::new(Refusal::Unknown, format!("there is no export with the name {shown:?}"))
    }
}

/// The exports of a server.
pub trait Exports {
    /// The exports that `client` may see.
    fn list(&self, client: &ClientInfo) -> Vec<ExportSummary>;

    /// What [`Exports::open`] would lead to. Opens nothing.
    ///
    /// # Errors
    /// [`OpenRefusal`] as [`Exports::open`] would give it.
    fn info(&self, name: &str, client: &ClientInfo) -> Result<ExportInfo, OpenRefusal>;

    /// Opens an export for one connection; the name `""` asks for the default one.
    ///
    /// # Errors
    /// [`OpenRefusal`] when there is no such export, or this client may not have it now.
    fn open(&self, name: &str, client: &ClientInfo) -> Result<Rc<dyn Export>, OpenRefusal>;
}

/// One export, opened for one connection. All calls come on the connection's thread.
pub trait Export {
    /// What it is and can. Must not change while it is open, but for the size, which may grow.
    fn info(&self) -> ExportInfo;

    /// Its size in bytes now. Asked when a request reaches beyond the size that the client was
    /// told, so that one that has heard of the growth can use it.
    fn size(&self) -> u64 {
        self.info().size
    }

    /// Starts a request. The server has checked it: it lies within the size, is aligned to
    /// `min_block`, is not empty (but for a flush), is allowed, and offered by
    /// [`Export::info`]. May answer through `reply` within the call or at any later time, in
    /// any order.
    fn submit(&self, request: Request, reply: Reply);

    /// Called after the last of the requests that arrived together was submitted, so that work
    /// which was held back for a batch can start.
    fn batch_submitted(&self) {}

    /// This connection has gone: no more requests come, and replies lead nowhere. Requests may
    /// still be under way.
    fn closed(&self) {}
}

/// What an export is and can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Its own name (the one to open it by may have been `""`).
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// Size in bytes: a multiple of `min_block`, below 2^63.
    pub size: u64,
    /// Whether writes, trims and zeroing are refused.
    pub read_only: bool,
    /// Whether seeking is slow.
    pub rotational: bool,
    /// Offsets and lengths must be multiples of it: a power of two of 1 to 65536.
    pub min_block: u32,
    /// The block size to prefer: a power of two, at least 512 and at least `min_block`.
    pub preferred_block: u32,
    /// The largest payload of one request; the server's own limit may be lower.
    pub max_block: u32,
    /// Whether flush works.
    pub can_flush: bool,
    /// Whether FUA works.
    pub can_fua: bool,
    /// Whether trim works.
    pub can_trim: bool,
    /// Whether zeroing works.
    pub can_zero: bool,
    /// Whether zeroing with the fast flag works: fast, or [`crate::NbdError::NotSupported`]
    /// with nothing touched.
    pub can_fast_zero: bool,
    /// Whether cache requests work.
    pub can_cache: bool,
    /// Whether a flush on any connection covers the completed writes of all connections.
    pub can_multi_conn: bool,
    /// Whether block status requests are passed on; if not, the server answers that everything
    /// is data.
    pub can_block_status: bool,
    /// Whether a client may change the size.
    pub can_resize: bool,
    /// The metadata contexts that block status can tell besides `base:allocation`; only with
    /// `can_block_status`. Names in the namespace `x-holdfast:`; what is beyond
    /// [`ContextSet::MAX`] is not offered.
    pub contexts: Vec<String>,
}

impl ExportInfo {
    /// A writable export of `size` bytes that can flush and FUA, takes any offset and prefers
    /// blocks of 4 KiB. The other abilities are off.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size,
            read_only: false,
            rotational: false,
            min_block: 1,
            preferred_block: 4096,
            max_block: PORTABLE_PAYLOAD,
            can_flush: true,
            can_fua: true,
            can_trim: false,
            can_zero: false,
            can_fast_zero: false,
            can_cache: false,
            can_multi_conn: false,
            can_block_status: false,
            can_resize: false,
            contexts: Vec::new(),
        }
    }

    /// The transmission flags that say so.
    #[must_use]
    pub fn flags(&self, style: ReplyStyle) -> TransmissionFlags {
        let offers = [
            (flag::HAS_FLAGS, true),
            (flag::READ_ONLY, self.read_only),
            (flag::SEND_FLUSH, self.can_flush),
            (flag::SEND_FUA, self.can_fua),
            (flag::ROTATIONAL, self.rotational),
            (flag::SEND_TRIM, self.can_trim),
            (flag::SEND_WRITE_ZEROES, self.can_zero),
            (flag::SEND_DF, style != ReplyStyle::Simple),
            (flag::CAN_MULTI_CONN, self.can_multi_conn),
            (flag::SEND_RESIZE, self.can_resize && !self.read_only),
            (flag::SEND_CACHE, self.can_cache),
            (flag::SEND_FAST_ZERO, self.can_zero && self.can_fast_zero),
        ];
        let set = offers.iter().filter(|(_, offered)| *offered);
        TransmissionFlags(set.fold(0, |flags, (flag, _)| flags | flag))
    }
}

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RequestKind {
    /// Answer with [`ReplyData::Read`].
    Read,
    /// Store the payload.
    Write,
    /// Make durable what was completed before; the range means nothing.
    Flush,
    /// The content of the range is not needed any more.
    Trim,
    /// Make the range read as zeroes.
    WriteZeroes,
    /// The range will be read soon.
    Cache,
    /// Answer with [`ReplyData::Status`].
    BlockStatus,
    /// Make the export as large as the offset of the (empty) range says.
    Resize,
}

/// A request of a client.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it wants.
    pub kind: RequestKind,
    /// Where.
    pub range: ByteRange,
    /// It must be durable before it is answered.
    pub fua: bool,
    /// Zeroes must take space.
    pub no_hole: bool,
    /// Zero fast or answer [`crate::NbdError::NotSupported`].
    pub fast_zero: bool,
    /// One extent is enough.
    pub req_one: bool,
    /// Which metadata contexts block status is to tell; empty for all others.
    pub contexts: ContextSet,
    /// The client wants the data in one piece. The server sees to that itself.
    pub df: bool,
    /// The data of a write: as long as the range. Empty for all others.
    pub payload: Bytes,
}

/// A part of the answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadChunk {
    /// These bytes.
    Data(Bytes),
    /// So many zero bytes, which need not travel.
    Zeroes(u64),
    /// What is sent from where it is. Only where [`Reply::takes_lent`](crate::Reply::takes_lent) says
    /// so. Should it not be there any more, the connection ends.
    Lent(LentRange),
}

/// Bytes that are sent from where they are.
pub trait Lend: fmt::Debug {
    /// Sends to a socket what is behind the first `skip` bytes, without waiting; how many bytes it
    /// took.
    ///
    /// # Errors
    /// What the socket says; another error than `WouldBlock` ends the connection.
    fn send(&self, socket: BorrowedFd<'_>, skip: u64) -> io::Result<usize>;
}

/// Bytes that somebody lends.
#[derive(Clone, Debug)]
pub struct LentRange {
    /// Who.
    pub from: Rc<dyn Lend>,
    /// How many of its bytes come before these.
    pub skip: u64,
    /// How many these are.
    pub len: u64,
}

impl PartialEq for LentRange {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.from, &other.from) && (self.skip, self.len) == (other.skip, other.len)
    }
}

impl Eq for LentRange {}

impl ReadChunk {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) => *len,
            Self::Lent(range) => range.len,
        }
    }

    /// Whether it has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A successful answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplyData {
    /// To everything but a read or block status.
    Done,
    /// To a read: exactly the range, in one piece.
    Read(Bytes),
    /// To a read: exactly the range, the parts in order.
    ReadChunks(Vec<ReadChunk>),
    /// To block status: what each of the contexts that were asked for says.
    Status(Vec<ContextStatus>),
}

impl ReplyData {
    /// The answer to a question for `base:allocation` alone.
    #[must_use]
    pub fn allocation(extents: Vec<Extent>) -> Self {
        Self::Status(vec![ContextStatus { context: ContextSet::ALLOCATION, extents }])
    }
}

/// What one metadata context says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContextStatus {
    /// Its index, as in a [`ContextSet`].
    pub context: usize,
    /// From the start of the range on. At least one extent; they may end before the range does or
    /// after it.
    pub extents: Vec<Extent>,
}

/// Metadata contexts of an export, by index: [`ContextSet::ALLOCATION`], then those of
/// [`ExportInfo::contexts`] from 1 on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ContextSet(u32);

impl ContextSet {
    /// The index of `base:allocation`.
    pub const ALLOCATION: usize = 0;
    /// Indexes are below this.
    pub const MAX: usize = 32;

    /// Adds one; false when it was there, or the index is too large.
    pub const fn insert(&mut self, index: usize) -> bool {
        let fits = index < Self::MAX && !self.has(index);
        if fits {
            self.0 |= 1 << index;
        }
        fits
    }

    /// Whether it has this one.
    #[must_use]
    pub const fn has(self, index: usize) -> bool {
        index < Self::MAX && self.0 >> index & 1 == 1
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The indexes, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..Self::MAX).filter(move |index| self.has(*index))
    }
}
