//! Messages of the log protocol on a stream.

use bytes::{Bytes, BytesMut};
use holdfast_journal::ship::{HEADER_LEN, Message, ShipHeader, decode, encode, parse_header};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The next message; `None` at the end of the stream between two of them.
///
/// # Errors
/// When the stream fails, ends within a message, or holds something else.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<Message>> {
    let mut head = [0; HEADER_LEN];
    match stream.read(&mut head[..1]).await? {
        0 => return Ok(None),
        _ => drop(stream.read_exact(&mut head[1..]).await?),
    }
    let header = parse_header(&head).map_err(invalid)?;
    let (body, payload) = read_rest(stream, &header).await?;
    decode(&header, &body, payload).map(Some).map_err(invalid)
}

async fn read_rest<S: AsyncRead + Unpin>(
    stream: &mut S,
    header: &ShipHeader,
) -> io::Result<(BytesMut, Bytes)> {
    // Both are within the limits of the protocol.
    let mut body = BytesMut::zeroed(header.body_len());
    stream.read_exact(&mut body).await?;
    let mut payload = BytesMut::zeroed(header.payload_len());
    stream.read_exact(&mut payload).await?;
    Ok((body, payload.freeze()))
}

/// Sends a message.
///
/// # Errors
/// When the stream fails.
pub(super) async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &Message,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let payload = encode(message, &mut bytes);
    stream.write_all(&bytes).await?;
    if !payload.is_empty() {
        stream.write_all(&payload).await?;
    }
    stream.flush().await
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
