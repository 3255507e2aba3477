//! The state in forms for scripts: CSV, and a line a resource. What stands here stays where it is;
//! new columns and words come at the end.

use super::troubles;
use holdfast_api::status::{NodeStatus, PeerStatus, ResourceStatus};
use std::io;
use std::os::fd::AsFd;

/// The columns of the CSV form.
const COLUMNS: [&str; 21] = [
    "time",
    "node",
    "resource",
    "role",
    "size_bytes",
    "disk",
    "health",
    "io_errors",
    "checksum_errors",
    "healed_blocks",
    "remapped_sectors",
    "spare_sectors_free",
    "open_count",
    "suspended",
    "quorum",
    "peers",
    "peers_connected",
    "peers_up_to_date",
    "out_of_sync_bytes",
    "lag_bytes",
    "troubles",
];

/// The first line of the CSV form.
pub(super) fn header() -> String {
    format!("{}\n", COLUMNS.join(","))
}

/// A line of CSV for each resource. `time` is in seconds since 1970.
pub(super) fn csv(status: &NodeStatus, time: u64) -> String {
    let mut text = String::new();
    for resource in &status.resources {
        let fields = row(&status.node, resource, time);
        let fields: Vec<String> = fields.iter().map(|field| quoted(field)).collect();
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

fn row(node: &str, resource: &ResourceStatus, time: u64) -> [String; COLUMNS.len()] {
    let ResourceStatus { disk, peers, .. } = resource;
    let count = |which: fn(&PeerStatus) -> bool| peers.iter().filter(|p| which(p)).count();
    [
        time.to_string(),
        node.to_owned(),
        resource.name.clone(),
        resource.role.clone(),
        resource.size_bytes.to_string(),
        disk.state.clone(),
        health(resource),
        disk.io_errors.to_string(),
        disk.checksum_errors.to_string(),
        disk.healed_blocks.to_string(),
        disk.remapped_sectors.to_string(),
        disk.spare_sectors_free.to_string(),
        resource.open_count.to_string(),
        resource.suspended.join("+"),
        resource.quorum.to_string(),
        peers.len().to_string(),
        count(|peer| peer.connection == "Connected").to_string(),
        count(|peer| peer.disk == "UpToDate").to_string(),
        out_of_sync(resource).to_string(),
        lag(resource).to_string(),
        troubles(resource).len().to_string(),
    ]
}

/// `resource=r0 node=alpha role=Primary ...` for each resource.
pub(super) fn lines(status: &NodeStatus) -> String {
    let line = |resource: &ResourceStatus| {
        let peers: Vec<String> = resource.peers.iter().map(peer).collect();
        let words = [
            ("resource", resource.name.clone()),
            ("node", status.node.clone()),
            ("role", resource.role.clone()),
            ("disk", resource.disk.state.clone()),
            ("health", health(resource)),
            ("size_bytes", resource.size_bytes.to_string()),
            ("open", resource.open_count.to_string()),
            ("suspended", resource.suspended.join("+")),
            ("out_of_sync_bytes", out_of_sync(resource).to_string()),
            ("lag_bytes", lag(resource).to_string()),
            ("troubles", troubles(resource).len().to_string()),
            ("peers", peers.join(",")),
        ];
        // What has no value still has its place.
        let word = |(name, value): &(&str, String)| match &**value {
            "" => format!("{name}=-"),
            value => format!("{name}={}", value.replace(char::is_whitespace, "_")),
        };
        format!("{}\n", words.iter().map(word).collect::<Vec<_>>().join(" "))
    };
    status.resources.iter().map(line).collect()
}

/// `beta:Connected:Secondary:UpToDate:Established`.
fn peer(peer: &PeerStatus) -> String {
    let PeerStatus { node, connection, role, disk, replication, .. } = peer;
    format!("{node}:{connection}:{role}:{disk}:{replication}")
}

fn health(resource: &ResourceStatus) -> String {
    resource.disk.health.as_ref().map_or_else(String::new, |health| health.score.to_string())
}

fn out_of_sync(resource: &ResourceStatus) -> u64 {
    resource.peers.iter().fold(0, |sum, peer| sum.saturating_add(peer.out_of_sync_bytes))
}

/// How far this node, or the slowest of those that follow it, is behind.
fn lag(resource: &ResourceStatus) -> u64 {
    let own = resource.replay.iter();
    let theirs = resource.peers.iter().filter_map(|peer| peer.replay.as_ref());
    own.chain(theirs).map(|replay| replay.lag_bytes).max().unwrap_or(0)
}

/// A field as RFC 4180 wants it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// Whether standard output is a file that something is in already: the header is there, too.
pub(super) fn appends() -> bool {
    let stdout = io::stdout();
    let file = stdout.as_fd();
    let Ok(found) = rustix::fs::fstat(file) else { return false };
    if !rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() {
        return false;
    }
    let appending =
        rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::APPEND));
    let at = rustix::fs::seek(file, rustix::fs::SeekFrom::Current(0)).unwrap_or(0);
    at > 0 || (appending && found.st_size > 0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use holdfast_api::health::DiskHealth;
    use holdfast_api::status::ReplayStatus;

    #[test]
    fn csv_as_it_was_and_stays() {
        let mut status = sample();
        status.resources[0].disk.health = Some(DiskHealth { score: 84, ..DiskHealth::default() });
        status.resources[0].disk.io_errors = 3;
        status.resources[0].suspended = vec!["no-quorum".into(), "user".into()];
        status.resources[0].peers[0].replay =
            Some(ReplayStatus { lag_bytes: 77, ..ReplayStatus::default() });
        status.resources.push(ResourceStatus::default());
        status.resources[1].name = "r\"1,".into();
        assert_eq!(
            format!("{}{}", header(), csv(&status, 1_800_000_000)),
            "time,node,resource,role,size_bytes,disk,health,io_errors,checksum_errors,\
             healed_blocks,remapped_sectors,spare_sectors_free,open_count,suspended,quorum,peers,\
             peers_connected,peers_up_to_date,out_of_sync_bytes,lag_bytes,troubles\n\
             1800000000,alpha,r0,Primary,268435456,UpToDate,84,3,0,0,0,0,0,no-quorum+user,true,2,\
             2,1,134217728,77,2\n\
             1800000000,alpha,\"r\"\"1,\",,0,,,0,0,0,0,0,0,,false,0,0,0,0,0,1\n"
        );
    }

    #[test]
    fn a_line_a_resource_as_it_was_and_stays() {
        let mut status = sample();
        status.resources.push(ResourceStatus { quorum: true, ..ResourceStatus::default() });
        assert_eq!(
            lines(&status),
            "resource=r0 node=alpha role=Primary disk=UpToDate health=- size_bytes=268435456 open=0 \
             suspended=- out_of_sync_bytes=134217728 lag_bytes=0 troubles=0 \
             peers=beta:Connected:Secondary:UpToDate:Established,\
             gamma:Connected:Secondary:Inconsistent:SyncSource\n\
             resource=- node=alpha role=- disk=- health=- size_bytes=0 open=0 suspended=- \
             out_of_sync_bytes=0 lag_bytes=0 troubles=0 peers=-\n"
        );
    }
}
