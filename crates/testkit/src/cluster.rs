use crate::files;
use crate::node::Node;
use crate::scratch::Scratch;
use std::ops::{Index, IndexMut};
use std::path::Path;
use std::time::Duration;

/// How long a small resource may take to be up to date everywhere.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// Names of nodes, in their order.
const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

/// What is special about a cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterOptions<'a> {
    /// A fault proxy stands in front of every node.
    pub proxies: bool,
    /// The files are on a disk, not in memory.
    pub on_disk: bool,
    /// Where each node listens; a free port of an address of its own when left out.
    pub listen: Option<&'a str>,
    /// More arguments for each `holdfast daemon`.
    pub arguments: &'a [&'a str],
}

/// Nodes with their daemons, which know each other. `cluster[0]` is the first one.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    // After the nodes: their directories are in it.
    scratch: Scratch,
}

impl Cluster {
    /// A cluster of `count` nodes named alpha, beta, gamma, delta and epsilon.
    ///
    /// # Panics
    /// When something does not work.
    #[track_caller]
    #[must_use]
    pub fn new(binary: &str, count: usize) -> Self {
        Self::with(binary, count, ClusterOptions::default())
    }

    /// A cluster that is special.
    ///
    /// # Panics
    /// When something does not work.
    #[track_caller]
    #[must_use]
    pub fn with(binary: &str, count: usize, options: ClusterOptions<'_>) -> Self {
        let mut cluster = Self::strangers(binary, count, options);
        cluster[0].ok(&["cluster", "create", "--name", "test"]);
        for index in 1..count {
            cluster.join(index);
        }
        for node in &cluster.nodes {
            // The one that issued the tokens tells the others of each other.
            crate::wait_until(SYNC_LIMIT, "every node knows every node", || {
                node.status().cluster.is_some_and(|c| c.nodes.len() == count)
            });
        }
        cluster
    }

    /// Nodes that run and do not know each other.
    ///
    /// # Panics
    /// When one does not start.
    #[track_caller]
    #[must_use]
    pub fn strangers(binary: &str, count: usize, options: ClusterOptions<'_>) -> Self {
        let scratch = if options.on_disk { Scratch::on_disk() } else { Scratch::new() };
        let further = (NAMES.len() + 1..).map(|number| format!("node-{number}"));
        let names = NAMES.iter().map(|name| (*name).to_owned()).chain(further);
        let nodes = names.take(count).map(|name| {
            let node = Node::new(Path::new(binary), &name, &scratch.join(&name));
            let node = node.with_arguments(options.arguments);
            let node = match options.listen {
                Some(listen) => node.listening_on(listen),
                None => node,
            };
            let mut node = if options.proxies { node.behind_proxy() } else { node };
            node.start();
            node
        });
        Self { nodes: nodes.collect(), scratch }
    }

    /// Lets a node join the cluster of the first one.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn join(&mut self, index: usize) {
        let token = self[0].ok(&["cluster", "token"]);
        self[index].ok(&["cluster", "join", token.trim()]);
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes, to start or stop several at a time.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The directory of the whole.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Makes a resource of `size` bytes on the first `count` nodes, over sparse files, and waits
    /// until all have the same data. The first node is Primary.
    ///
    /// # Panics
    /// When something does not work.
    #[track_caller]
    pub fn resource(&self, name: &str, size: u64, count: usize) {
        self.create(name, size, &[]);
        for node in &self.nodes[1..count] {
            self.join_resource(node, name, size, &[]);
        }
        for node in &self.nodes[..count] {
            node.wait_resource(name, SYNC_LIMIT, "all members are known", |status| {
                status.peers.len() == count - 1
            });
            node.wait_synced(name, SYNC_LIMIT);
        }
    }

    /// Makes a resource on the first node, over a sparse file unless a file is there.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn create(&self, name: &str, size: u64, arguments: &[&str]) {
        let disk = self[0].disk(name);
        files::make_sparse(&disk, size);
        let disk = disk.display().to_string();
        self[0].ok(&[&["create", name, "--disk", &disk], arguments].concat());
    }

    /// Makes a node a member of a resource, over a sparse file unless a file is there. Does not
    /// wait for the data.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn join_resource(&self, node: &Node, name: &str, size: u64, arguments: &[&str]) {
        let disk = node.disk(name);
        files::make_sparse(&disk, size);
        let disk = disk.display().to_string();
        node.ok(&[&["join", name, "--disk", &disk], arguments].concat());
    }

    /// Panics when the backing files of a resource differ on two of these nodes.
    #[track_caller]
    pub fn assert_equal_disks(&self, name: &str, size: u64, nodes: &[usize]) {
        for other in &nodes[1..] {
            files::assert_equal(&self[nodes[0]].disk(name), &self[*other].disk(name), size);
        }
    }
}

impl Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }
}
