//! The NBD protocol: a codec without I/O, a server for one connection, clients.
//!
//! The protocol is the fixed newstyle handshake with simple, structured and extended replies, as
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md> defines it.
//!
//! * [`codec`] turns bytes into options, requests and replies and back. It never does I/O and
//!   takes any input: what is malformed gives an error, never a panic.
//! * [`serve`] runs one connection. It hands requests to an [`Export`], which answers them in any
//!   order through [`Reply`]. Everything of a connection happens on one thread.
//! * [`RemoteDisk`] is an export of another machine as a disk here: several connections, which
//!   are made again, servers that restart, copies on several servers.
//! * [`Client`] is a small blocking client, [`NbdUri`] says where an export is.
//! * [`MemoryExport`] is an export without a disk, for tests and trials.

#![deny(clippy::cast_possible_truncation)]

mod buffers;
mod changes;
mod client;
pub mod codec;
mod error;
mod export;
mod memory;
mod server;
mod spin;
mod uri;

pub use buffers::{HeapBuffers, PayloadBuf, PayloadBuffers};
pub use changes::Changes;
pub use client::{
    Client, ClientError, ConnectOptions, ConnectionState, ConnectionStatus, LastSeen, LegState,
    LegStatus, MAX_CONNECTIONS, MAX_URIS, MirrorOptions, MirrorStart, OpenFault, Remembered,
    RemoteDisk, RemoteFailure, RemoteInfo, RemoteOpenError, RemoteOptions, RemoteOutcome,
    RemoteRequest, RemoteState, RemoteStatus, RemoteVolume, SessionStatus, note_use,
};
pub use codec::{Command, Extent, ReplyStyle, TransmissionFlags};
pub use error::NbdError;
pub use export::{
    ClientInfo, ContextSet, ContextStatus, Export, ExportInfo, ExportSummary, Exports, Lend,
    LentRange, OpenRefusal, PeerAddress, ReadChunk, Refusal, ReplyData, Request, RequestKind,
};
pub use memory::{MemoryExport, SingleExport};
pub use server::{
    AllowError, AllowList, AllowedNet, ClientStream, Reply, ServeError, ServerOptions, ServerTls,
    SharedMemory, Shutdown, ShutdownHandle, Socket, TlsFileError, serve,
};
pub use spin::Spinner;
pub use uri::{NbdUri, UriError, UriTransport};
