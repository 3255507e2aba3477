//! Two nodes in two processes with a mirrored resource, for measuring:
//!
//! ```text
//! cargo run --release -p holdfast-daemon --example mirror_bench -- /dev/shm 1G 0 'fio --uri={uri} ...'
//! ```
//!
//! The arguments are a directory, the size, for how many microseconds the shards poll before they
//! sleep, and commands. It makes the disks in a scratch directory below the given one, waits until
//! they are in sync, writes the device over once, and runs each command with `{uri}` replaced by that of the NBD export.
//! Without a command it prints the URI and serves until its input ends.

use anyhow::{Context, Result, ensure};
use holdfast_cluster::{Identity, NodeTls, PinSet, PinnedNode, Purpose};
use holdfast_core::{Command, Config, Options, PeerConfig};
use holdfast_daemon::shard::{
    CreateMetadata, DiskSpec, InitialContent, LinkOrigin, LinkSocket, MetaPlace, ResourceHandle,
    ResourceSpec, Shard, ShardOptions, boot_id, create_metadata,
};
use holdfast_nbd::Client;
use holdfast_store::{DirectMode, create_file};
use holdfast_units::{DiskState, GenerationId, NodeId, ResourceId, parse_size};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const RESOURCE: ResourceId = ResourceId([0xBE; 16]);
const NAMES: [&str; 2] = ["alpha", "beta"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = Runtime::new()?;
    match args.as_slice() {
        [word, dir, size, spin, port] if word == "--second" => {
            second(&runtime, Path::new(dir), size.parse()?, spin.parse()?, port.parse()?)
        }
        [dir, size, spin, commands @ ..] => {
            first(&runtime, dir, parse_size(size)?, spin.parse()?, commands)
        }
        _ => anyhow::bail!("usage: mirror_bench DIRECTORY SIZE SPIN_US [COMMAND...]"),
    }
}

/// Ends the other node with this one.
struct Second(Child);

impl Drop for Second {
    fn drop(&mut self) {
        // It ends by itself when its input does; whether it still runs is of no interest.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn first(runtime: &Runtime, base: &str, size: u64, spin: u64, commands: &[String]) -> Result<()> {
    let dir = tempfile::tempdir_in(base)?;
    for name in NAMES {
        std::fs::create_dir(dir.path().join(name))?;
        Identity::create(&dir.path().join(name), name)?;
    }
    let (shard, resource, tls) = node(runtime, dir.path(), 0, size, spin)?;
    let socket = dir.path().join("nbd.sock");
    shard.serve_unix(UnixListener::bind(&socket)?)?;
    runtime.block_on(resource.command(Command::Promote { force: false })).map_err(refused)?;
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let port = listener.local_addr()?.port().to_string();
    let second = Process::new(std::env::current_exe()?)
        .arg("--second")
        .arg(dir.path())
        .args([size.to_string(), spin.to_string(), port])
        .stdin(Stdio::piped())
        .spawn()?;
    let second = Second(second);
    runtime.block_on(async {
        let (stream, _) = listener.accept().await?;
        let (stream, _) = tls.accept(LinkSocket::new(stream)?, "beta").await?;
        resource.add_link(number(1), LinkOrigin::Accepted, Box::new(stream));
        let mut view = resource.watch();
        let synced = view.wait_for(|view| {
            view.snapshot.peers.iter().all(|peer| peer.disk == DiskState::UpToDate)
        });
        tokio::time::timeout(Duration::from_secs(60), synced).await??;
        anyhow::Ok(())
    })?;
    overwrite(&socket, size)?;
    let uri = format!("nbd+unix:///bench?socket={}", socket.display());
    eprintln!("uri {uri}, processes {} {}", std::process::id(), second.0.id());
    for command in commands {
        let command = command.replace("{uri}", &uri);
        let status = Process::new("sh").args(["-c", &command]).status()?;
        ensure!(status.success(), "{command}: {status}");
    }
    if commands.is_empty() {
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn second(runtime: &Runtime, dir: &Path, size: u64, spin: u64, port: u16) -> Result<()> {
    let (_shard, resource, tls) = node(runtime, dir, 1, size, spin)?;
    let peer = Identity::load(&dir.join(NAMES[0]))?.context("the first node has no identity")?;
    runtime.block_on(async {
        let stream = LinkSocket::new(TcpStream::connect(("127.0.0.1", port)).await?)?;
        let stream = tls.connect(stream, Purpose::Data, peer.uuid(), "alpha").await?;
        resource.add_link(number(0), LinkOrigin::Dialled, Box::new(stream));
        anyhow::Ok(())
    })?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// One node with its disk, its resource and its TLS.
fn node(
    runtime: &Runtime,
    dir: &Path,
    own: u8,
    size: u64,
    spin: u64,
) -> Result<(Shard, ResourceHandle, NodeTls)> {
    let identities: Vec<Identity> = NAMES
        .iter()
        .map(|name| Identity::load(&dir.join(name))?.context("a node has no identity"))
        .collect::<Result<_>>()?;
    let pins = PinSet::new();
    pins.replace(identities.iter().map(|node| {
        let pinned = PinnedNode { uuid: node.uuid(), name: node.name().to_owned() };
        (node.fingerprint(), pinned)
    }));
    let tls = NodeTls::new(&identities[usize::from(own)], pins);
    let disk = disk(dir, own, size)?;
    let shard = Shard::start(ShardOptions {
        spin: Duration::from_micros(spin),
        ..ShardOptions::default()
    })?;
    let peer = PeerConfig { node: number(1 - own), diskless: false, standalone: false };
    let spec = ResourceSpec {
        name: "bench".into(),
        config: Config {
            sync_pause: holdfast_wire::SyncPause::No,
            node: number(own),
            resource: RESOURCE,
            size,
            boot: boot_id()?,
            peers: vec![peer],
            options: Options { ping_timeout_ms: 10_000, ..Options::default() },
            seed: 1 + u64::from(own),
        },
        disk: Some(disk),
        journal: None,
        limits: holdfast_daemon::shard::Limits::default(),
    };
    let resource = runtime.block_on(shard.open(spec))?;
    Ok((shard, resource, tls))
}

fn disk(dir: &Path, own: u8, size: u64) -> Result<DiskSpec> {
    let path: PathBuf = dir.join(format!("disk{own}"));
    create_file(&path, size)?;
    let meta = MetaPlace::File(path.with_extension("meta"));
    let disk = DiskSpec {
        path,
        meta,
        direct: DirectMode::Auto,
        spares: Vec::new(),
        spare_writes: None,
        checksums: None,
    };
    let content = match own {
        0 => InitialContent::Current(GenerationId(0x0123_4567_89AB_CDEF)),
        _ => InitialContent::Nothing,
    };
    create_metadata(&CreateMetadata {
        disk: disk.clone(),
        size: Some(size),
        resource: RESOURCE,
        node: number(own),
        al_extents: 1237,
        slots: None,
        spares: None,
        content,
    })?;
    Ok(disk)
}

/// So that all memory below is there before anything is measured.
fn overwrite(socket: &Path, size: u64) -> Result<()> {
    let mut client = Client::connect_unix(socket, "bench")?;
    let data: Vec<u8> =
        (0..1_u32 << 20).map(|i| i.wrapping_mul(0x9E37_79B1).to_le_bytes()[3]).collect();
    let began = Instant::now();
    for at in (0..size).step_by(data.len()) {
        client.write_at(&data, at)?;
    }
    eprintln!("written over once in {:.2} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn number(number: u8) -> NodeId {
    NodeId::new(number).expect("0 and 1 are numbers of nodes")
}

fn refused(refusal: holdfast_core::Refusal) -> anyhow::Error {
    anyhow::anyhow!("the core refused: {refusal:?}")
}
