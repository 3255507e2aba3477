//! `cluster`.

use crate::parse::{duration, key_value, name};
use clap::Subcommand;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// Make this node a cluster of one; prints the cluster's UUID
    Create {
        /// The cluster's name
        #[arg(long, value_name = "NAME", value_parser = name)]
        name: Option<String>,
    },
    /// Print a one-time token with which a node can join
    Token {
        /// How long it is good for
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// Where the new node reaches this one [default: this node's address]
        #[arg(long, value_name = "HOST:PORT")]
        addr: Option<String>,
    },
    /// Join a cluster
    Join {
        /// What `cluster token` printed on one of its nodes
        token: String,
        /// Only check, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Leave the cluster
    Leave {
        /// Leave also when the others cannot be told, or it is a member of resources
        #[arg(long)]
        force: bool,
        /// Only check, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a node that is gone for good
    Remove {
        /// Which node
        #[arg(value_parser = name)]
        node: String,
        /// Really: the node is not asked
        #[arg(long)]
        force: bool,
        /// Only check, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Make this node's cluster a part of another one, while everything runs
    ///
    /// Nodes and resources must have different names in the two. Nothing is copied, and nothing
    /// stops. Interrupted, it can be repeated.
    Merge {
        /// What `cluster token` printed on a node of the other cluster
        token: String,
        /// Also when nodes are not reached: they follow when they are
        #[arg(long)]
        force: bool,
        /// Only check, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Make some nodes a cluster of their own, while everything runs
    ///
    /// No resource may have members in both parts. Afterwards no node of one part trusts a node of
    /// the other. Interrupted, it can be repeated.
    Split {
        /// The nodes that go
        #[arg(value_name = "NODE", value_parser = name, required_unless_present = "cancel")]
        nodes: Vec<String>,
        /// The name of the cluster that they become [default: the present one and -2]
        #[arg(long, value_name = "NAME", value_parser = name)]
        name: Option<String>,
        /// Take back a split that was begun and is not decided
        #[arg(long, conflicts_with_all = ["nodes", "name"])]
        cancel: bool,
        /// Only check, and say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Wait until all nodes have the same configuration; fails when one is not reached in time
    Wait,
    /// Keep values in the cluster, for anything; an empty value forgets its key
    Set {
        /// What to keep
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = key_value)]
        pairs: Vec<(String, String)>,
    },
    /// Show what is kept in the cluster
    Get {
        /// Only the value of this key
        key: Option<String>,
    },
    /// Show the nodes
    Status,
}
