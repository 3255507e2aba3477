//! Whole nodes in one process: shards with real files, joined by real connections, with real NBD
//! clients.

mod frontend;
mod links;
mod metadata;
mod mirror;

use super::{
    CreateMetadata, DiskSpec, InitialContent, Limits, LinkOrigin, LinkSocket, LinkStream,
    MetaPlace, ResourceHandle, ResourceSpec, ResourceView, Shard, ShardOptions, boot_id,
    create_metadata,
};
use holdfast_core::{Command, Config, Options, PeerConfig};
use holdfast_nbd::Client;
use holdfast_store::DirectMode;
use holdfast_units::{DiskState, GenerationId, NodeId, ReplicationState, ResourceId};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Nothing here may take longer.
const PATIENCE: Duration = Duration::from_secs(20);
const RESOURCE: ResourceId = ResourceId([7; 16]);
const SIZE: u64 = 32 << 20;

fn n(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

/// A tokio runtime for the control plane's part.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A directory in memory, where disks and metadata work inline, or on a real filesystem.
#[derive(Clone, Copy)]
enum Where {
    Memory,
    Disk,
}

fn directory(place: Where) -> TempDir {
    let path = Path::new(match place {
        Where::Memory => "/dev/shm",
        Where::Disk => "/var/tmp",
    });
    if path.is_dir() { tempfile::tempdir_in(path) } else { tempfile::tempdir() }.unwrap()
}

/// A node with one resource.
struct Node {
    number: u8,
    shard: Shard,
    resource: ResourceHandle,
    socket: PathBuf,
    disk: PathBuf,
}

/// What a node is made of.
struct Plan<'a> {
    dir: &'a Path,
    number: u8,
    /// The other members, and whether each is diskless.
    peers: &'a [(u8, bool)],
    /// `None` for a diskless node; whether it is the first one.
    disk: Option<bool>,
    meta: fn(&Path) -> MetaPlace,
    limits: Limits,
    spin: Duration,
}

impl<'a> Plan<'a> {
    fn new(dir: &'a Path, number: u8, peers: &'a [(u8, bool)]) -> Self {
        let disk = Some(number == 0);
        let (limits, spin) = (Limits::default(), Duration::ZERO);
        Self { dir, number, peers, disk, meta: beside, limits, spin }
    }
}

fn beside(disk: &Path) -> MetaPlace {
    MetaPlace::File(disk.with_extension("meta"))
}

fn disk_spec(path: &Path, meta: MetaPlace) -> DiskSpec {
    DiskSpec {
        path: path.to_owned(),
        meta,
        direct: DirectMode::Auto,
        spares: Vec::new(),
        spare_writes: None,
        checksums: None,
    }
}

fn creation(disk: DiskSpec, node: u8, first: bool) -> CreateMetadata {
    CreateMetadata {
        disk,
        size: Some(SIZE),
        resource: RESOURCE,
        node: n(node),
        al_extents: 64,
        slots: None,
        spares: None,
        content: if first {
            InitialContent::Current(GenerationId(0x1234_5678_0000_0001))
        } else {
            InitialContent::Nothing
        },
    }
}

fn spec(plan: &Plan<'_>, disk: Option<DiskSpec>) -> ResourceSpec {
    let peers = plan.peers.iter().map(|(node, diskless)| PeerConfig {
        node: n(*node),
        diskless: *diskless,
        standalone: false,
    });
    ResourceSpec {
        name: "r0".into(),
        config: Config {
            sync_pause: holdfast_wire::SyncPause::No,
            node: n(plan.number),
            resource: RESOURCE,
            size: SIZE,
            boot: boot_id().unwrap(),
            peers: peers.collect(),
            options: Options { ping_timeout_ms: 5_000, ..Options::default() },
            seed: 0x9E37 + u64::from(plan.number),
        },
        disk,
        journal: None,
        limits: plan.limits,
    }
}

impl Node {
    /// Makes the disk when it is not there yet, and opens the resource.
    fn start(rt: &Runtime, plan: &Plan<'_>) -> Self {
        let path = plan.dir.join(format!("disk{}", plan.number));
        let disk = plan.disk.map(|first| {
            let disk = disk_spec(&path, (plan.meta)(&path));
            if !path.exists() {
                // Room for metadata at the end.
                holdfast_store::create_file(&path, SIZE + (4 << 20)).unwrap();
                create_metadata(&creation(disk.clone(), plan.number, first)).unwrap();
            }
            disk
        });
        let options = ShardOptions { spin: plan.spin, ..ShardOptions::default() };
        let shard = Shard::start(options).unwrap();
        let socket = plan.dir.join(format!("nbd{}.sock", plan.number));
        let _ = std::fs::remove_file(&socket);
        shard.serve_unix(UnixListener::bind(&socket).unwrap()).unwrap();
        let resource = rt.block_on(shard.open(spec(plan, disk))).unwrap();
        Self { number: plan.number, shard, resource, socket, disk: path }
    }

    fn client(&self) -> Client {
        Client::connect_unix(&self.socket, "r0").unwrap()
    }

    fn command(&self, rt: &Runtime, command: Command) {
        rt.block_on(self.resource.command(command)).unwrap();
    }

    fn promote(&self, rt: &Runtime) {
        self.command(rt, Command::Promote { force: false });
    }

    /// Closes everything in good order.
    fn stop(self, rt: &Runtime) {
        rt.block_on(self.resource.close()).unwrap();
        rt.block_on(self.shard.stop());
    }

    /// Waits until the view is as wanted.
    fn wait(&self, rt: &Runtime, what: &str, met: impl FnMut(&ResourceView) -> bool) {
        wait_for(rt, &self.resource, what, met);
    }

    /// Waits until its disk is UpToDate, and so is the peer's.
    fn wait_in_sync(&self, rt: &Runtime) {
        self.wait(rt, "in sync", |view| {
            let snapshot = &view.snapshot;
            snapshot.disk == DiskState::UpToDate
                && snapshot.peers.iter().all(|peer| {
                    peer.disk == DiskState::UpToDate
                        && peer.replication == ReplicationState::Established
                        && peer.out_of_sync == 0
                })
        });
    }
}

fn wait_for(
    rt: &Runtime,
    resource: &ResourceHandle,
    what: &str,
    mut met: impl FnMut(&ResourceView) -> bool,
) {
    let mut watch = resource.watch();
    let waited = rt.block_on(async {
        tokio::time::timeout(PATIENCE, watch.wait_for(|view| met(view))).await.is_ok()
    });
    assert!(waited, "not {what} in time: {:#?}", resource.snapshot());
}

/// A TCP connection between two nodes that can be cut.
struct Cable(TcpStream);

impl Cable {
    fn cut(&self) {
        self.0.shutdown(Shutdown::Both).unwrap();
    }
}

/// The two ends of a TCP connection, the one that dialled first.
fn sockets(rt: &Runtime) -> (LinkSocket, LinkSocket, Cable) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let cable = Cable(near.try_clone().unwrap());
    let _context = rt.enter();
    let wrap = |stream: TcpStream| {
        stream.set_nonblocking(true).unwrap();
        LinkSocket::new(tokio::net::TcpStream::from_std(stream).unwrap()).unwrap()
    };
    (wrap(near), wrap(far), cable)
}

/// `from` dials `to`.
fn dial(rt: &Runtime, from: &Node, to: &Node) -> Cable {
    let (near, far, cable) = sockets(rt);
    join(from, to, Box::new(near), Box::new(far));
    cable
}

fn join(from: &Node, to: &Node, near: Box<dyn LinkStream>, far: Box<dyn LinkStream>) {
    to.resource.add_link(n(from.number), LinkOrigin::Accepted, far);
    from.resource.add_link(n(to.number), LinkOrigin::Dialled, near);
}

/// Two nodes with disks that are connected and in sync, the first of them Primary.
fn pair(rt: &Runtime, dir: &Path) -> (Node, Node, Cable) {
    let a = Node::start(rt, &Plan::new(dir, 0, &[(1, false)]));
    let b = Node::start(rt, &Plan::new(dir, 1, &[(0, false)]));
    a.promote(rt);
    let cable = dial(rt, &a, &b);
    a.wait_in_sync(rt);
    (a, b, cable)
}

/// The data of a disk file.
fn data(path: &Path) -> Vec<u8> {
    let mut data = std::fs::read(path).unwrap();
    data.truncate(usize::try_from(SIZE).unwrap());
    data
}

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let seed = self.next() | 1;
        (0..len).map(|i| (i.wrapping_mul(seed) >> 16).to_le_bytes()[0]).collect()
    }
}
