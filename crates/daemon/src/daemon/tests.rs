//! Whole daemons in this process, driven over their control sockets as the command does it.

use super::*;
use holdfast_api::request as rq;
use holdfast_api::status::{ClusterStatus, NodeStatus, ResourceStatus};
use holdfast_api::{Client, ClientError, routes};
use holdfast_nbd::Client as NbdClient;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// A node whose daemon can be started and stopped.
struct TestNode {
    dir: PathBuf,
    name: &'static str,
    daemon: Option<Daemon>,
}

impl TestNode {
    fn settings(&self) -> Settings {
        Settings {
            name: Some(self.name.to_owned()),
            state_dir: self.dir.join("state"),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: Vec::new(),
            nbd_listen: None,
            nbd_access: NbdAccess::default(),
            http: None,
            lock_memory: false,
            journal_budget: None,
            max_resyncs: None,
            smartctl: crate::options::SmartProgram::Off,
            resource_defaults: crate::config::ResourceDefaults::default(),
            device_holder: None,
            socket: self.dir.join("run/control.sock"),
            git: "test".into(),
        }
    }

    async fn new(base: &Path, name: &'static str) -> Self {
        let mut node = Self { dir: base.join(name), name, daemon: None };
        node.start().await;
        node
    }

    async fn start(&mut self) {
        let started = async {
            loop {
                match Daemon::start(self.settings(), Kept::default()).await {
                    Ok(daemon) => break daemon,
                    // The last task of the stopped one may still have it in its hands.
                    Err(error) if error.message.contains("is used by another daemon") => {
                        tokio::time::sleep(Duration::from_millis(10)).await; // bounded poll
                    }
                    Err(error) => panic!("{}: {}", self.name, error.message),
                }
            }
        };
        let started = tokio::time::timeout(Duration::from_secs(15), started).await;
        self.daemon = Some(started.expect("the state directory is free in a moment"));
    }

    async fn stop(&mut self) {
        self.daemon.take().unwrap().stop().await;
    }

    fn client(&self) -> Client {
        Client::new(self.dir.join("run/control.sock")).with_timeout(Duration::from_secs(30))
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> T {
        let result = self.client().post(path, body).await;
        result.unwrap_or_else(|error| panic!("{} POST {path}: {error}", self.name))
    }

    async fn refused<B: Serialize>(&self, path: &str, body: &B) -> ApiError {
        match self.client().post::<B, serde_json::Value>(path, body).await {
            Err(ClientError::Refused(error)) => error,
            other => panic!("{} POST {path}: {other:?}", self.name),
        }
    }

    async fn on<B: Serialize>(&self, route: &str, name: &str, body: &B) -> rq::Done {
        self.post(&routes::of(route, name), body).await
    }

    async fn create(&self, name: &str, size: u64) -> rq::Done {
        self.post(routes::RESOURCES, &self.create_call(name, size)).await
    }

    fn create_call(&self, name: &str, size: u64) -> rq::ResourceCreate {
        rq::ResourceCreate {
            name: name.into(),
            disk: self.disk(name),
            size: Some(size),
            ..rq::ResourceCreate::default()
        }
    }

    fn disk(&self, name: &str) -> String {
        self.dir.join(format!("{name}.img")).display().to_string()
    }

    async fn join(&self, name: &str) {
        let call = rq::ResourceJoin { disk: Some(self.disk(name)), ..Default::default() };
        self.on(routes::RESOURCE_JOIN, name, &call).await;
    }

    async fn wait(&self, name: &str, what: rq::WaitFor, peer: Option<&str>) {
        self.wait_and(name, what, false, peer).await;
    }

    /// Waits until it is no longer so.
    async fn wait_end(&self, name: &str, what: rq::WaitFor, peer: Option<&str>) {
        self.wait_and(name, what, true, peer).await;
    }

    async fn wait_and(&self, name: &str, what: rq::WaitFor, ended: bool, peer: Option<&str>) {
        let peer = peer.map(str::to_owned);
        let call = rq::Wait { what, ended, peer, timeout_seconds: Some(20.0) };
        self.on(routes::RESOURCE_WAIT, name, &call).await;
    }

    async fn status(&self) -> NodeStatus {
        self.client().get(routes::STATUS).await.unwrap()
    }

    async fn resource(&self, name: &str) -> ResourceStatus {
        self.client().get(&routes::of(routes::RESOURCE, name)).await.unwrap()
    }

    /// Does something with the resource's export on a thread that may block.
    async fn nbd<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&mut NbdClient) -> T + Send + 'static,
    ) -> T {
        let (socket, name) = (self.dir.join("run/nbd.sock"), name.to_owned());
        let work = move || work(&mut NbdClient::connect_unix(socket, &name).unwrap());
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    async fn write(&self, name: &str, byte: u8, offset: u64, len: usize) {
        self.nbd(name, move |nbd| {
            nbd.write_at(&vec![byte; len], offset).unwrap();
            nbd.flush().unwrap();
        })
        .await;
    }

    async fn read(&self, name: &str, offset: u64, len: usize) -> Vec<u8> {
        self.nbd(name, move |nbd| {
            let mut data = vec![0; len];
            nbd.read_at(&mut data, offset).unwrap();
            data
        })
        .await
    }
}

const NO: rq::Empty = rq::Empty {};

/// Looks until it is so: what one node was told is there on another one only after a while.
async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await; // bounded poll
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(20), looking).await;
    assert!(seen.is_ok(), "{what}: not so after 20 seconds");
}

/// `count` nodes in one cluster.
async fn cluster(base: &Path, count: usize) -> Vec<TestNode> {
    let mut nodes: Vec<TestNode> = Vec::new();
    for name in NAMES.into_iter().take(count) {
        let node = TestNode::new(base, name).await;
        match nodes.first() {
            None => {
                let call = rq::ClusterCreate { name: Some("trial".into()) };
                let made: rq::ClusterCreated = node.post(routes::CLUSTER_CREATE, &call).await;
                assert_eq!(made.name, "trial");
            }
            Some(first) => {
                let call = rq::ClusterToken::default();
                let made: rq::TokenCreated = first.post(routes::CLUSTER_TOKEN, &call).await;
                let call = rq::ClusterJoin { token: made.token, dry_run: false };
                let status: ClusterStatus = node.post(routes::CLUSTER_JOIN, &call).await;
                assert_eq!(status.nodes.len(), nodes.len() + 1);
                eventually("each node is alive for the new one", async || {
                    let status = node.status().await.cluster.unwrap();
                    status.nodes.iter().all(|node| node.alive)
                })
                .await;
            }
        }
        nodes.push(node);
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_creates_writes_restarts_and_deletes() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    node.create("r0", 8 * MIB).await;
    let status = node.status().await;
    assert_eq!(status.cluster.unwrap().name, "holdfast");
    let resource = &status.resources[0];
    assert_eq!((resource.role.as_str(), resource.size_bytes), ("Primary", 8 * MIB));
    assert_eq!(resource.disk.state, "UpToDate");
    node.write("r0", 7, 4096, 8192).await;

    node.stop().await;
    assert!(!node.settings().socket.exists());
    node.start().await;
    // It is so again by itself, in a moment.
    node.wait("r0", rq::WaitFor::Primary, None).await;
    assert_eq!(node.read("r0", 4096, 8192).await, vec![7; 8192]);
    assert_eq!(node.read("r0", 0, 4096).await, vec![0; 4096]);

    node.on(routes::RESOURCE_DOWN, "r0", &NO).await;
    assert_eq!(node.resource("r0").await.role, "Unknown");
    node.on(routes::RESOURCE_UP, "all", &NO).await;
    node.wait("r0", rq::WaitFor::Primary, None).await;
    node.on(routes::RESOURCE_SECONDARY, "r0", &rq::Secondary::default()).await;
    node.stop().await;
    node.start().await;
    assert_eq!(node.resource("r0").await.role, "Secondary");

    node.on(routes::RESOURCE_DELETE, "r0", &NO).await;
    assert!(node.status().await.resources.is_empty());
    let gone = node.refused(&routes::of(routes::RESOURCE_UP, "r0"), &NO).await;
    assert_eq!(gone.code, ErrorCode::NoSuchResource);
    assert_eq!(gone.code.exit_code(), 4);
    // The data stayed, and the disk can be used again.
    let call = rq::ResourceCreate { size: None, ..node.create_call("r1", 0) };
    let call = rq::ResourceCreate { disk: node.disk("r0"), ..call };
    let _: rq::Done = node.post(routes::RESOURCES, &call).await;
    assert_eq!(node.read("r1", 4096, 8192).await, vec![7; 8192]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_create_has_changed_nothing() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    node.create("r0", MIB).await;
    let shown = async || {
        let mut status = node.status().await;
        // What is measured of the disks goes on meanwhile.
        status.resources.iter_mut().for_each(|resource| resource.disk.health = None);
        serde_json::to_value(status).unwrap()
    };
    let before = shown().await;
    let good = node.create_call("r1", MIB);
    let with = |change: &dyn Fn(&mut rq::ResourceCreate)| {
        let mut call = good.clone();
        change(&mut call);
        call
    };
    let cases = [
        (with(&|c| c.name = "r0".into()), ErrorCode::AlreadyExists),
        (with(&|c| c.name = "all".into()), ErrorCode::InvalidName),
        (with(&|c| c.disk = node.disk("r0")), ErrorCode::DiskBusy),
        (with(&|c| c.size = Some(4095)), ErrorCode::InvalidSize),
        (with(&|c| c.size = None), ErrorCode::DiskNotFound),
        (with(&|c| c.meta = Some("relative".into())), ErrorCode::InvalidPath),
        (with(&|c| c.meta = Some("/nowhere/meta".into())), ErrorCode::MetadataInvalid),
        (with(&|c| drop(c.set.insert("ping-int".into(), "0".into()))), ErrorCode::InvalidOption),
        (with(&|c| drop(c.set.insert("pong-int".into(), "1".into()))), ErrorCode::NoSuchOption),
    ];
    for (call, code) in cases {
        let error = node.refused(routes::RESOURCES, &call).await;
        assert_eq!(error.code, code, "{}", error.message);
        assert_eq!(shown().await, before, "{}", error.message);
        assert!(!Path::new(&node.disk("r1")).exists(), "{}", error.message);
    }
    let meta = fs::read_dir(node.dir.join("state/meta")).unwrap().count();
    let local = fs::read_dir(node.dir.join("state/resources")).unwrap().count();
    assert_eq!((meta, local), (1, 1));
    node.stop().await;
}

/// `from` steps back, and `to` is Primary instead, once it has heard of that.
async fn hand_over(from: &TestNode, to: &TestNode) {
    from.on(routes::RESOURCE_SECONDARY, "r0", &rq::Secondary::default()).await;
    to.wait("r0", rq::WaitFor::Secondary, Some(from.name)).await;
    to.on(routes::RESOURCE_PRIMARY, "r0", &rq::Primary::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_replicate_and_change_roles() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = cluster(base.path(), 2).await;
    let [alpha, beta] = &mut nodes[..] else { panic!() };
    alpha.create("r0", 8 * MIB).await;
    alpha.write("r0", 1, 0, 65536).await;
    let stranger = beta.refused(&routes::of(routes::RESOURCE_UP, "r0"), &NO).await;
    assert_eq!(stranger.code, ErrorCode::NotMember);
    beta.join("r0").await;
    beta.wait("r0", rq::WaitFor::UpToDate, None).await;
    beta.wait("r0", rq::WaitFor::Synced, None).await;
    alpha.wait("r0", rq::WaitFor::UpToDate, Some("beta")).await;

    alpha.write("r0", 2, 4096, 4096).await;
    let primary = routes::of(routes::RESOURCE_PRIMARY, "r0");
    beta.wait("r0", rq::WaitFor::Primary, Some("alpha")).await;
    let refused = beta.refused(&primary, &rq::Primary::default()).await;
    assert_eq!(refused.code, ErrorCode::OtherPrimary);
    assert_eq!(refused.message, "primary was refused for r0: node alpha is Primary");
    assert_eq!(refused.hint.as_deref(), Some("run `holdfast secondary r0` on alpha first"));

    hand_over(alpha, beta).await;
    assert_eq!(beta.read("r0", 0, 4096).await, vec![1; 4096]);
    assert_eq!(beta.read("r0", 4096, 4096).await, vec![2; 4096]);

    // An option that is set on one node holds on the other.
    let call = rq::SetOptions { set: [("ping-int".into(), "3".into())].into(), peer: None };
    let path = routes::of(routes::RESOURCE_OPTIONS, "r0");
    let _: rq::Done = alpha.client().put(&path, &call).await.unwrap();
    eventually("beta has the option, too", async || {
        let path = routes::option("r0", "ping-int");
        let got: rq::OptionValue = beta.client().get(&path).await.unwrap();
        got.value == "3"
    })
    .await;

    // A Primary that restarts is Primary again once it has heard of the other node.
    beta.stop().await;
    beta.start().await;
    beta.wait("r0", rq::WaitFor::Primary, None).await;
    alpha.wait("r0", rq::WaitFor::Primary, Some("beta")).await;
    alpha.wait("r0", rq::WaitFor::Synced, None).await;
    alpha.wait("r0", rq::WaitFor::UpToDate, None).await;

    let in_use = alpha.refused(&routes::of(routes::RESOURCE_DELETE, "r0"), &NO).await;
    assert_eq!(in_use.code, ErrorCode::OtherPrimary, "{}", in_use.message);
    alpha.on(routes::RESOURCE_LEAVE, "r0", &NO).await;
    assert!(alpha.status().await.resources.is_empty());
    eventually("beta is alone", async || beta.resource("r0").await.peers.is_empty()).await;
    beta.on(routes::RESOURCE_DELETE, "r0", &NO).await;
    for node in &mut nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_know_each_other_and_one_can_go() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = cluster(base.path(), 3).await;
    // The second one hears of the third one without being asked.
    eventually("the second one knows all three", async || {
        nodes[1].status().await.cluster.unwrap().nodes.len() == 3
    })
    .await;
    eventually("all are alive for the first one", async || {
        nodes[0].status().await.cluster.unwrap().nodes.iter().all(|node| node.alive)
    })
    .await;
    let alive = rq::ClusterRemove { node: "gamma".into(), force: true, dry_run: false };
    assert_eq!(nodes[0].refused(routes::CLUSTER_REMOVE, &alive).await.code, ErrorCode::InUse);
    let _: rq::Done = nodes[2].post(routes::CLUSTER_LEAVE, &rq::ClusterLeave::default()).await;
    assert!(nodes[2].status().await.cluster.is_none());
    nodes[0].create("r0", MIB).await;
    let diskless = rq::ResourceJoin { diskless: true, ..Default::default() };
    nodes[1].on(routes::RESOURCE_JOIN, "r0", &diskless).await;
    nodes[1].wait("r0", rq::WaitFor::Connected, Some("alpha")).await;
    let seen = nodes[1].resource("r0").await;
    assert_eq!((seen.disk.state.as_str(), seen.peers.len()), ("Diskless", 1));
    for node in &mut nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_begin_with_a_dump_and_go_on() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    let mut events = node.client().events().await.unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert!(first.is_end_of_dump(), "{first}");
    node.create("r0", MIB).await;
    let primary = async {
        loop {
            let event = events.next().await.unwrap().unwrap();
            if event.object == "resource"
                && event.fields.get("role").is_some_and(|r| r == "Primary")
            {
                break event;
            }
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(10), primary).await.unwrap();
    assert_eq!(event.name, "r0");
    let metrics = node.client().get_text(routes::METRICS).await.unwrap();
    assert!(metrics.contains("holdfast_role{resource=\"r0\",role=\"Primary\"} 1"), "{metrics}");
    let error = node.refused("/v1/nothing", &NO).await;
    assert_eq!(error.code, ErrorCode::NoSuchCall);
    let odd = format!("{}?colour=red", routes::of(routes::RESOURCE_OPTIONS, "r0"));
    let error = node.client().get::<Vec<rq::OptionValue>>(&odd).await.unwrap_err().to_api_error();
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{}", error.message);
    let long = serde_json::json!({ "name": "x".repeat(2 << 20) });
    let error = node.refused(routes::RESOURCES, &long).await;
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{}", error.message);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_is_refused_and_a_dead_ones_socket_is_replaced() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    let error = Daemon::start(node.settings(), Kept::default()).await.map(drop).unwrap_err();
    assert!(error.message.contains("is used by another daemon"), "{}", error.message);
    let other = Settings { state_dir: base.path().join("other"), ..node.settings() };
    let error = Daemon::start(other, Kept::default()).await.map(drop).unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists, "{}", error.message);
    node.stop().await;
    drop(StdUnixListener::bind(node.settings().socket).unwrap());
    node.start().await;
    assert_eq!(node.status().await.node, "alpha");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_does_not_stop_the_daemon() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    node.create("r0", MIB).await;
    node.create("r1", MIB).await;
    node.stop().await;
    let disk = PathBuf::from(node.disk("r0"));
    fs::rename(&disk, disk.with_extension("away")).unwrap();
    node.start().await;
    assert_eq!(node.resource("r0").await.disk.state, "Diskless");
    node.wait("r1", rq::WaitFor::Primary, None).await;
    fs::rename(disk.with_extension("away"), &disk).unwrap();
    node.on(routes::RESOURCE_ATTACH_DISK, "r0", &rq::AttachDisk::default()).await;
    assert_eq!(node.resource("r0").await.disk.state, "UpToDate");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_that_a_client_has_open_stays() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode { dir: base.path().join("a"), name: "alpha", daemon: None };
    let nbd_listen = Some("127.0.0.1:0".parse().unwrap());
    let settings = Settings { nbd_listen, ..node.settings() };
    let daemon = Daemon::start(settings, Kept::default()).await.unwrap();
    // Clients of the own process count as the local device: this one comes by TCP.
    let port = daemon.node.nbd_tcp.unwrap().port();
    node.daemon = Some(daemon);
    node.create("r0", MIB).await;
    let open = move || {
        let uri = holdfast_nbd::NbdUri::tcp("127.0.0.1", port, "r0");
        NbdClient::connect(&uri, &holdfast_nbd::ConnectOptions::default()).unwrap()
    };
    let client = tokio::task::spawn_blocking(open).await.unwrap();
    eventually("it is open", async || node.resource("r0").await.open_count == 1).await;
    for (route, what) in [
        (routes::RESOURCE_SECONDARY, "secondary"),
        (routes::RESOURCE_DOWN, "down"),
        (routes::RESOURCE_DELETE, "delete"),
    ] {
        let error = node.refused(&routes::of(route, "r0"), &NO).await;
        assert_eq!(error.code, ErrorCode::InUse, "{}", error.message);
        assert!(error.message.starts_with(&format!("{what} was refused for r0: NBD clients")));
        assert!(error.message.contains("127.0.0.1:"), "{}", error.message);
    }
    assert_eq!(node.resource("r0").await.role, "Primary");
    tokio::task::spawn_blocking(move || drop(client)).await.unwrap();
    node.wait("r0", rq::WaitFor::Closed, None).await;
    node.on(routes::RESOURCE_SECONDARY, "r0", &rq::Secondary::default()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_holds_over_a_restart_and_connect_ends_it() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = cluster(base.path(), 2).await;
    let [alpha, beta] = &mut nodes[..] else { panic!() };
    alpha.create("r0", MIB).await;
    beta.join("r0").await;
    beta.wait("r0", rq::WaitFor::Synced, None).await;
    let one = rq::Disconnect { peer: Some("alpha".into()), force: false };
    beta.on(routes::RESOURCE_DISCONNECT, "r0", &one).await;
    beta.stop().await;
    beta.start().await;
    assert_eq!(beta.resource("r0").await.peers[0].connection, "StandAlone");
    alpha.write("r0", 9, 0, 4096).await;
    beta.on(routes::RESOURCE_CONNECT, "r0", &rq::Connect::default()).await;
    beta.wait("r0", rq::WaitFor::Synced, None).await;
    beta.wait("r0", rq::WaitFor::UpToDate, None).await;
    let nobody = rq::Connect { peer: Some("gamma".into()), discard_my_data: false };
    let error = beta.refused(&routes::of(routes::RESOURCE_CONNECT, "r0"), &nobody).await;
    assert_eq!(error.code, ErrorCode::NoSuchPeer);
    beta.on(routes::RESOURCE_INVALIDATE, "r0", &rq::Invalidate::default()).await;
    beta.wait("r0", rq::WaitFor::Synced, None).await;
    beta.on(routes::RESOURCE_DETACH_DISK, "r0", &rq::DetachDisk::default()).await;
    assert_eq!(beta.resource("r0").await.disk.state, "Diskless");
    // Another disk gets all data anew.
    let other = beta.dir.join("other.img").display().to_string();
    let call = rq::AttachDisk { disk: Some(other), ..Default::default() };
    beta.on(routes::RESOURCE_ATTACH_DISK, "r0", &call).await;
    beta.wait("r0", rq::WaitFor::UpToDate, None).await;
    hand_over(alpha, beta).await;
    assert_eq!(beta.read("r0", 0, 4096).await, vec![9; 4096]);
    for node in &mut nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_returns_alone_stays_secondary() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = cluster(base.path(), 2).await;
    let [alpha, beta] = &mut nodes[..] else { panic!() };
    alpha.create("r0", MIB).await;
    beta.join("r0").await;
    beta.wait("r0", rq::WaitFor::Synced, None).await;
    alpha.stop().await;
    beta.wait_end("r0", rq::WaitFor::Connected, Some("alpha")).await;
    beta.on(routes::RESOURCE_PRIMARY, "r0", &rq::Primary::default()).await;
    beta.stop().await;
    // The other one could be Primary for all that this one knows.
    alpha.start().await;
    let ask = rq::Wait {
        what: rq::WaitFor::Primary,
        ended: false,
        peer: None,
        timeout_seconds: Some(0.5),
    };
    let error = alpha.refused(&routes::of(routes::RESOURCE_WAIT, "r0"), &ask).await;
    assert_eq!(error.code, ErrorCode::TimedOut);
    // Both wish to be Primary; the one who was last is not known, so the first to ask is.
    beta.start().await;
    alpha.wait("r0", rq::WaitFor::Connected, None).await;
    let primaries = async {
        loop {
            let roles = [alpha.resource("r0").await.role, beta.resource("r0").await.role];
            match roles.iter().filter(|role| *role == "Primary").count() {
                0 => tokio::time::sleep(Duration::from_millis(20)).await, // bounded poll
                count => break count,
            }
        }
    };
    let count = tokio::time::timeout(Duration::from_secs(15), primaries).await.unwrap();
    assert_eq!(count, 1);
    alpha.wait("r0", rq::WaitFor::Synced, None).await;
    for node in &mut nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_of_the_run_before_is_forgotten_without_its_device() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    node.stop().await;
    let record = serde_json::json!({
        "name": "d0", "uris": ["nbd://127.0.0.1:1/d0"], "connections": 1, "via": "ublk",
        "mirror": false, "copy_first": false, "tls_certificates": null, "read_only": false,
        "shared": false, "io_timeout_seconds": 60.0, "size": 4096, "identity": null,
    });
    let record: crate::attachment::Record = serde_json::from_value(record).unwrap();
    let settings = node.settings();
    crate::attachment::RecordStore::open(&settings.run_dir()).unwrap().save(&record).unwrap();
    assert_eq!(commands::attach::known(&settings), ["d0"]);
    node.start().await;
    let found: Vec<holdfast_api::attachment::AttachmentStatus> =
        node.client().get(routes::ATTACHMENTS).await.unwrap();
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(commands::attach::known(&settings), [""; 0]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_sign_of_life_comes_while_the_thread_of_the_resources_hangs() {
    let base = tempfile::tempdir().unwrap();
    let mut node = TestNode::new(base.path(), "alpha").await;
    let limit = Duration::from_millis(400);
    let (sign, mut signs) = tokio::sync::mpsc::unbounded_channel();
    let of = Arc::clone(&node.daemon.as_ref().unwrap().node);
    let sign = move || {
        // Nobody listens at the end of the test.
        let _ = sign.send(());
    };
    let watching = tokio::spawn(service::watch(Arc::clone(&of), limit, sign));
    for _ in 0..3 {
        signs.recv().await.unwrap();
    }
    let (go_on, until) = std::sync::mpsc::channel::<()>();
    // It returns when the other end is dropped.
    let hang = of.shard().unwrap().run(move || until.recv().unwrap_or_default());
    let hanging = tokio::spawn(hang);
    // One may be on its way; then there are none for longer than is waited for.
    while let Ok(sign) = tokio::time::timeout(limit * 2, signs.recv()).await {
        sign.unwrap();
    }
    drop(go_on);
    let again = tokio::time::timeout(Duration::from_secs(10), signs.recv());
    again.await.expect("it goes on").unwrap();
    hanging.await.unwrap();
    watching.abort();
    node.stop().await;
}
