//! The remote disk that survives, against a server that answers with the right magic numbers and any
//! content, in any order, cut anywhere, on each connection that it makes.
#![no_main]

use holdfast_fuzz::nbd_replies::{GO, Sent, option_reply};
use holdfast_nbd::{NbdUri, RemoteOptions, RemoteRequest, RemoteVolume};
use holdfast_units::ByteRange;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};

/// More would wait for somebody who reads it.
const MOST: usize = 64 << 10;
/// How long everything that waits for the server may take.
const PATIENCE: Duration = Duration::from_millis(20);
const SIZE: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Whether the handshake is a good one, so that the rest answers requests.
    enters: bool,
    extended: bool,
    flags: u16,
    connections: u8,
    sent: Vec<Sent>,
}

/// The answers of a good server to what the client asks first.
fn welcome(out: &mut Vec<u8>, extended: bool, flags: u16) {
    let unknown = 1 << 31 | 1;
    option_reply(out, 11, if extended { 1 } else { unknown }, &[]);
    if !extended {
        option_reply(out, 8, 1, &[]);
    }
    let export = [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    option_reply(out, GO, 3, &export);
    option_reply(out, GO, 1, &[]);
}

/// Where the server listens; the directory is as old as the process.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        std::env::temp_dir().join(format!("nbd-remote-{}.sock", std::process::id()))
    })
}

async fn serve(listener: UnixListener, bytes: Rc<Vec<u8>>, served: Rc<Cell<u32>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        served.set(served.get() + 1);
        if served.get() > 3 {
            return;
        }
        let bytes = Rc::clone(&bytes);
        spawn_local(async move {
            // The client may have had enough before.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut rest = [0; 4096];
            while stream.readable().await.is_ok() && !matches!(stream.try_read(&mut rest), Ok(0)) {}
        });
    }
}

async fn use_it(options: RemoteOptions) {
    let Ok(volume) = RemoteVolume::open(options).await else { return };
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let range = |offset, len| ByteRange::new(offset, len);
    for request in [
        RemoteRequest::Read { range: range(0, 4096) },
        RemoteRequest::Write { offset: 4096, data: vec![7; 4096].into(), fua: false },
        RemoteRequest::Flush,
        RemoteRequest::Trim { range: range(8192, 4096) },
        RemoteRequest::WriteZeroes { range: range(0, 100_000), may_unmap: true, fua: true },
        RemoteRequest::Read { range: range(0, SIZE) },
    ] {
        let due = request.clone();
        let tell = tell.clone();
        volume.submit(request, move |outcome| {
            if let (Ok(data), RemoteRequest::Read { range }) = (&outcome, &due) {
                assert_eq!(data.len() as u64, range.len, "a read has the length asked for");
            }
            // Everything is told, also after the end.
            let _ = tell.send(());
        });
    }
    drop(tell);
    let mut told = told;
    let mut answers = 0;
    while told.recv().await.is_some() {
        answers += 1;
    }
    assert_eq!(answers, 6, "every request ends");
    let _ = volume.status();
    let _ = volume.close().await;
}

fuzz_target!(|input: Input| {
    let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
    bytes.extend((input.flags & 2 | 1).to_be_bytes());
    if input.enters {
        welcome(&mut bytes, input.extended, input.flags | 1);
    }
    input.sent.iter().take(64).for_each(|sent| sent.put(&mut bytes));
    bytes.truncate(MOST);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("there are resources"), async {
        // What the run before has left.
        let _ = std::fs::remove_file(socket());
        let listener = UnixListener::bind(socket()).expect("it can be listened at");
        spawn_local(serve(listener, Rc::new(bytes), Rc::default()));
        let mut options = RemoteOptions::new(vec![NbdUri::unix(socket(), "x")]);
        options.connections = usize::from(input.connections % 4) + 1;
        options.timeout = Some(PATIENCE);
        options.connect_timeout = PATIENCE;
        options.silence = PATIENCE;
        options.longest_pause = Duration::from_millis(1);
        let used = tokio::time::timeout(Duration::from_secs(20), use_it(options)).await;
        assert!(used.is_ok(), "it takes for ever");
    });
});
