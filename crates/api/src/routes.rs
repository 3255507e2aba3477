//! The paths of the calls. `{name}` stands for a resource or an attachment, `{key}` for an option.

/// `GET`: everything ([`crate::status::NodeStatus`]).
pub const STATUS: &str = "/v1/status";
/// `GET`: server-sent events ([`crate::events::Event`]).
pub const EVENTS: &str = "/v1/events";
/// `GET`: the OpenAPI document.
pub const OPENAPI: &str = "/v1/openapi.json";
/// `GET`: Prometheus text.
pub const METRICS: &str = "/metrics";
/// `GET`: how long the stages of requests take ([`crate::latency::Latency`]).
pub const LATENCY: &str = "/v1/latency";
/// `GET`: versions.
pub const VERSION: &str = "/v1/version";
/// `GET`: how the daemon was started ([`crate::daemon::DaemonInfo`]).
pub const DAEMON: &str = "/v1/daemon";
/// `GET`: the cluster.
pub const CLUSTER: &str = "/v1/cluster";
/// `POST`.
pub const CLUSTER_CREATE: &str = "/v1/cluster/create";
/// `POST`.
pub const CLUSTER_TOKEN: &str = "/v1/cluster/token";
/// `POST`.
pub const CLUSTER_JOIN: &str = "/v1/cluster/join";
/// `POST`.
pub const CLUSTER_LEAVE: &str = "/v1/cluster/leave";
/// `POST`.
pub const CLUSTER_REMOVE: &str = "/v1/cluster/remove";
/// `POST`: this node's cluster becomes a part of another one.
pub const CLUSTER_MERGE: &str = "/v1/cluster/merge";
/// `POST`: some nodes become a cluster of their own.
pub const CLUSTER_SPLIT: &str = "/v1/cluster/split";
/// `POST`: answers when all nodes have the same records.
pub const CLUSTER_WAIT: &str = "/v1/cluster/wait";
/// `GET`, `PUT`: what users keep in the cluster.
pub const CLUSTER_KEYS: &str = "/v1/cluster/keys";
/// `POST`: create a resource.
pub const RESOURCES: &str = "/v1/resources";
/// `GET`: one resource ([`crate::status::ResourceStatus`]).
pub const RESOURCE: &str = "/v1/resources/{name}";
/// `POST`.
pub const RESOURCE_JOIN: &str = "/v1/resources/{name}/join";
/// `POST`.
pub const RESOURCE_LEAVE: &str = "/v1/resources/{name}/leave";
/// `POST`.
pub const RESOURCE_DELETE: &str = "/v1/resources/{name}/delete";
/// `POST`: show a resource of other nodes.
pub const RESOURCE_WATCH: &str = "/v1/resources/{name}/watch";
/// `POST`; the name may be `all`.
pub const RESOURCE_UP: &str = "/v1/resources/{name}/up";
/// `POST`; the name may be `all`.
pub const RESOURCE_DOWN: &str = "/v1/resources/{name}/down";
/// `POST`.
pub const RESOURCE_PRIMARY: &str = "/v1/resources/{name}/primary";
/// `POST`.
pub const RESOURCE_SECONDARY: &str = "/v1/resources/{name}/secondary";
/// `POST`.
pub const RESOURCE_CONNECT: &str = "/v1/resources/{name}/connect";
/// `POST`.
pub const RESOURCE_DISCONNECT: &str = "/v1/resources/{name}/disconnect";
/// `POST`.
pub const RESOURCE_INVALIDATE: &str = "/v1/resources/{name}/invalidate";
/// `POST`: compare the members' data; `GET`: how that goes ([`crate::survey::SurveyReports`]).
pub const RESOURCE_VERIFY: &str = "/v1/resources/{name}/verify";
/// `POST`: read everything; `GET`: how that goes ([`crate::survey::SurveyReports`]).
pub const RESOURCE_SCRUB: &str = "/v1/resources/{name}/scrub";
/// `GET`: how this node's disk is ([`crate::health::DiskHealth`]).
pub const RESOURCE_HEALTH: &str = "/v1/resources/{name}/health";
/// `POST`: forget the errors that were counted.
pub const RESOURCE_HEALTH_CLEAR: &str = "/v1/resources/{name}/health/clear";
/// `POST`: make it larger.
pub const RESOURCE_RESIZE: &str = "/v1/resources/{name}/resize";
/// `POST`: give it another name.
pub const RESOURCE_RENAME: &str = "/v1/resources/{name}/rename";
/// `GET`: the segments of the journal ([`crate::journal::JournalLog`]).
pub const RESOURCE_LOG: &str = "/v1/resources/{name}/log";
/// `POST`: begin a new segment.
pub const RESOURCE_LOG_ROTATE: &str = "/v1/resources/{name}/log/rotate";
/// `POST`: give up what nobody needs.
pub const RESOURCE_LOG_TRIM: &str = "/v1/resources/{name}/log/trim";
/// `GET`: what must be known of the disk before it is copied past the daemon; `POST`: make the disk of
/// a log peer the state of another moment.
pub const RESOURCE_REWIND: &str = "/v1/resources/{name}/rewind";
/// `POST`: make the local block device.
pub const RESOURCE_DEVICE: &str = "/v1/resources/{name}/device";
/// `POST`: take it away.
pub const RESOURCE_DEVICE_REMOVE: &str = "/v1/resources/{name}/device/remove";
/// `POST`.
pub const RESOURCE_ATTACH_DISK: &str = "/v1/resources/{name}/attach-disk";
/// `POST`.
pub const RESOURCE_DETACH_DISK: &str = "/v1/resources/{name}/detach-disk";
/// `POST`: move the data of this node to another disk, or stop that.
pub const RESOURCE_REPLACE_DISK: &str = "/v1/resources/{name}/replace-disk";
/// `GET`: what the table of bad sectors says ([`crate::badblocks::BadBlocks`]). Query `from=N`.
pub const RESOURCE_BADBLOCKS: &str = "/v1/resources/{name}/badblocks";
/// `POST`: move blocks into the spare.
pub const RESOURCE_BADBLOCKS_ADD: &str = "/v1/resources/{name}/badblocks/add";
/// `POST`: move blocks back.
pub const RESOURCE_BADBLOCKS_REMOVE: &str = "/v1/resources/{name}/badblocks/remove";
/// `POST`: give this node's disk another spare.
pub const RESOURCE_SPARE_ADD: &str = "/v1/resources/{name}/spares/add";
/// `POST`: take a spare away.
pub const RESOURCE_SPARE_REMOVE: &str = "/v1/resources/{name}/spares/remove";
/// `POST`.
pub const RESOURCE_PAUSE: &str = "/v1/resources/{name}/pause";
/// `POST`.
pub const RESOURCE_RESUME: &str = "/v1/resources/{name}/resume";
/// `POST`: answers when it has come true.
pub const RESOURCE_WAIT: &str = "/v1/resources/{name}/wait";
/// `GET`: all options; `PUT`: set some. Query `peer=NODE` for what holds towards a peer.
pub const RESOURCE_OPTIONS: &str = "/v1/resources/{name}/options";
/// `GET`: one option. Query `peer=NODE` for what holds towards a peer.
pub const RESOURCE_OPTION: &str = "/v1/resources/{name}/options/{key}";
/// `GET`: what is attached ([`crate::attachment::AttachmentStatus`]); `POST`: attach an export.
pub const ATTACHMENTS: &str = "/v1/attachments";
/// `GET`: one attachment.
pub const ATTACHMENT: &str = "/v1/attachments/{name}";
/// `POST`: take it away.
pub const ATTACHMENT_DETACH: &str = "/v1/attachments/{name}/detach";
/// `POST`: fail what is pending.
pub const ATTACHMENT_ABORT: &str = "/v1/attachments/{name}/abort";

/// The word for every resource in [`RESOURCE_UP`] and [`RESOURCE_DOWN`].
pub const ALL: &str = "all";

/// The path of a call on a resource: `{name}` filled in.
#[must_use]
pub fn of(template: &str, name: &str) -> String {
    template.replace("{name}", &escape(name))
}

/// The path of [`RESOURCE_OPTION`].
#[must_use]
pub fn option(name: &str, key: &str) -> String {
    of(RESOURCE_OPTION, name).replace("{key}", &escape(key))
}

/// `path?peer=NODE`, or the path when there is no peer.
#[must_use]
pub fn with_peer(path: &str, peer: Option<&str>) -> String {
    match peer {
        Some(peer) => format!("{path}?peer={}", escape(peer)),
        None => path.to_owned(),
    }
}

/// Percent-encodes everything that has a meaning of its own in a path or a query.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(of(RESOURCE_UP, "r0"), "/v1/resources/r0/up");
        assert_eq!(of(RESOURCE_UP, "a/../b?c"), "/v1/resources/a%2F..%2Fb%3Fc/up");
        assert_eq!(option("r0", "ping-int"), "/v1/resources/r0/options/ping-int");
        assert_eq!(with_peer("/x", Some("be ta")), "/x?peer=be%20ta");
        assert_eq!(with_peer("/x", None), "/x");
    }
}
