//! The list of all calls, and the OpenAPI document that is made from it.

use crate::{
    attachment, badblocks, daemon, error, events, health, journal, latency, request, routes,
    status, survey,
};
use serde_json::{Value, json};
use utoipa::OpenApi;

/// One call of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `GET`, `POST` or `PUT`.
    pub method: &'static str,
    /// One of [`crate::routes`].
    pub path: &'static str,
    /// The name of the body's type; empty for `GET`.
    pub body: &'static str,
    /// The name of the answer's type; empty when it is not one of the API's JSON types.
    pub answer: &'static str,
    /// What it does.
    pub summary: &'static str,
}

const fn get(path: &'static str, answer: &'static str, summary: &'static str) -> Call {
    Call { method: "GET", path, body: "", answer, summary }
}

const fn post(
    path: &'static str,
    body: &'static str,
    answer: &'static str,
    summary: &'static str,
) -> Call {
    Call { method: "POST", path, body, answer, summary }
}

/// Every call.
pub const CALLS: &[Call] = &[
    get(routes::STATUS, "NodeStatus", "everything that this node knows"),
    get(routes::EVENTS, "", "server-sent events: a dump, then the changes"),
    get(routes::OPENAPI, "", "this document"),
    get(routes::METRICS, "", "metrics as Prometheus text"),
    get(routes::LATENCY, "Latency", "how long the stages of requests take"),
    get(routes::VERSION, "VersionInfo", "the versions of the daemon and of its protocols"),
    get(routes::DAEMON, "DaemonInfo", "how the daemon was started, and what files it uses"),
    get(routes::CLUSTER, "ClusterStatus", "the nodes of the cluster"),
    post(routes::CLUSTER_CREATE, "ClusterCreate", "ClusterCreated", "make a cluster of this node"),
    post(routes::CLUSTER_TOKEN, "ClusterToken", "TokenCreated", "make a one-time join token"),
    post(routes::CLUSTER_JOIN, "ClusterJoin", "ClusterStatus", "join a cluster by a token"),
    post(routes::CLUSTER_LEAVE, "ClusterLeave", "Done", "leave the cluster"),
    post(routes::CLUSTER_REMOVE, "ClusterRemove", "Done", "remove a node that is gone for good"),
    post(routes::CLUSTER_MERGE, "ClusterMerge", "ClusterStatus", "merge it into another cluster"),
    post(routes::CLUSTER_SPLIT, "ClusterSplit", "Done", "make some nodes a cluster of their own"),
    post(routes::CLUSTER_WAIT, "ClusterWait", "Done", "answer when all nodes know the same"),
    get(routes::CLUSTER_KEYS, "", "what users keep in the cluster: an object of texts"),
    Call {
        method: "PUT",
        path: routes::CLUSTER_KEYS,
        body: "ClusterSet",
        answer: "Done",
        summary: "keep something in the cluster, or forget it",
    },
    post(routes::RESOURCES, "ResourceCreate", "Done", "create a resource; this node is Primary"),
    get(routes::RESOURCE, "ResourceStatus", "one resource"),
    post(routes::RESOURCE_JOIN, "ResourceJoin", "Done", "become a member of a resource"),
    post(routes::RESOURCE_LEAVE, "ResourceLeave", "Done", "cease to be a member; data stays"),
    post(routes::RESOURCE_DELETE, "ResourceDelete", "Done", "delete a resource; data stays"),
    post(routes::RESOURCE_WATCH, "Watch", "Done", "show a resource that only others have"),
    post(routes::RESOURCE_UP, "Empty", "Done", "start a resource here; `all` starts every one"),
    post(routes::RESOURCE_DOWN, "Empty", "Done", "stop a resource here; `all` stops every one"),
    post(routes::RESOURCE_PRIMARY, "Primary", "Done", "make this node Primary"),
    post(routes::RESOURCE_SECONDARY, "Secondary", "Done", "make this node Secondary"),
    post(routes::RESOURCE_CONNECT, "Connect", "Done", "connect to peers"),
    post(routes::RESOURCE_DISCONNECT, "Disconnect", "Done", "disconnect from peers"),
    post(routes::RESOURCE_INVALIDATE, "Invalidate", "Done", "fetch this node's data again"),
    post(routes::RESOURCE_VERIFY, "Verify", "Done", "compare the data of connected members"),
    get(routes::RESOURCE_VERIFY, "SurveyReports", "how the comparison goes, or went"),
    post(routes::RESOURCE_SCRUB, "Scrub", "Done", "read everything, and repair what is wrong"),
    get(routes::RESOURCE_SCRUB, "SurveyReports", "how the scrub goes, or went"),
    post(routes::RESOURCE_RESIZE, "Resize", "Done", "make it larger on all members"),
    post(routes::RESOURCE_RENAME, "Rename", "Done", "give it another name on all nodes"),
    get(routes::RESOURCE_HEALTH, "DiskHealth", "how this node's disk is, and why"),
    post(routes::RESOURCE_HEALTH_CLEAR, "Empty", "Done", "forget the errors that were counted"),
    get(routes::RESOURCE_LOG, "JournalLog", "the segments of its journal"),
    post(routes::RESOURCE_LOG_ROTATE, "Empty", "Done", "begin a new segment of its journal"),
    post(routes::RESOURCE_LOG_TRIM, "Empty", "Done", "give up what nobody needs of its journal"),
    get(routes::RESOURCE_REWIND, "CopySource", "whether its disk can be copied past the daemon"),
    post(routes::RESOURCE_REWIND, "Rewind", "Rewound", "make a log peer's disk another state"),
    post(routes::RESOURCE_DEVICE, "Device", "DeviceMade", "make the local block device"),
    post(routes::RESOURCE_DEVICE_REMOVE, "Empty", "Done", "take the local block device away"),
    post(routes::RESOURCE_ATTACH_DISK, "AttachDisk", "Done", "start to use this node's disk"),
    post(routes::RESOURCE_DETACH_DISK, "DetachDisk", "Done", "cease to use this node's disk"),
    post(routes::RESOURCE_REPLACE_DISK, "ReplaceDisk", "Done", "move this node's data to a disk"),
    get(routes::RESOURCE_BADBLOCKS, "BadBlocks", "the table of bad sectors, from row `from` on"),
    post(
        routes::RESOURCE_BADBLOCKS_ADD,
        "BadBlocksAdd",
        "BadBlocksDone",
        "move blocks of this node's disk into its spare",
    ),
    post(
        routes::RESOURCE_BADBLOCKS_REMOVE,
        "BadBlocksRemove",
        "BadBlocksDone",
        "move blocks back to where they belong",
    ),
    post(routes::RESOURCE_SPARE_ADD, "SpareAdd", "Done", "give this node's disk another spare"),
    post(routes::RESOURCE_SPARE_REMOVE, "SpareRemove", "Done", "take a spare away from it"),
    post(routes::RESOURCE_PAUSE, "Pause", "Done", "hold sync, fetch, replay or io"),
    post(routes::RESOURCE_RESUME, "Pause", "Done", "let it go on"),
    post(routes::RESOURCE_WAIT, "Wait", "Done", "answer when a state is reached"),
    get(routes::RESOURCE_OPTIONS, "[OptionValue]", "all options with value, default and range"),
    Call {
        method: "PUT",
        path: routes::RESOURCE_OPTIONS,
        body: "SetOptions",
        answer: "Done",
        summary: "set options, all of them or none",
    },
    get(routes::RESOURCE_OPTION, "OptionValue", "one option"),
    get(routes::ATTACHMENTS, "[AttachmentStatus]", "the remote exports that are attached"),
    post(routes::ATTACHMENTS, "Attach", "Attached", "attach a remote export as a local device"),
    get(routes::ATTACHMENT, "AttachmentStatus", "one attachment"),
    post(routes::ATTACHMENT_DETACH, "Detach", "Done", "take an attachment away"),
    post(routes::ATTACHMENT_ABORT, "Abort", "Done", "fail what is pending, hold what is new"),
];

#[derive(OpenApi)]
#[openapi(components(schemas(
    attachment::Abort,
    attachment::Attach,
    attachment::Attached,
    attachment::AttachmentConnection,
    attachment::AttachmentLeg,
    attachment::AttachmentStatus,
    attachment::Detach,
    badblocks::BadBlock,
    badblocks::BadBlocks,
    badblocks::BadBlocksAdd,
    badblocks::BadBlocksDone,
    badblocks::BadBlocksRemove,
    badblocks::SpareAdd,
    badblocks::SpareRemove,
    badblocks::Span,
    daemon::DaemonInfo,
    daemon::KnownNode,
    daemon::ResourcePlaces,
    error::ApiError,
    error::ErrorBody,
    error::ErrorCode,
    events::Event,
    events::EventKind,
    health::DiskErrors,
    health::DiskHealth,
    health::DiskLatency,
    health::HealthReason,
    health::HotRegion,
    health::SmartAttribute,
    health::SmartStatus,
    request::AttachDisk,
    request::ClusterCreate,
    request::ClusterCreated,
    request::ClusterJoin,
    request::ClusterLeave,
    request::ClusterMerge,
    request::ClusterRemove,
    request::ClusterSet,
    request::ClusterSplit,
    request::ClusterWait,
    request::ClusterToken,
    request::Connect,
    request::CopySource,
    request::DetachDisk,
    request::Device,
    request::DeviceMade,
    request::Disconnect,
    request::Done,
    request::Empty,
    request::Invalidate,
    request::OptionValue,
    request::Pause,
    request::PauseWhat,
    request::Primary,
    request::ResourceCreate,
    request::Rename,
    request::ReplaceDisk,
    request::Resize,
    journal::JournalLog,
    journal::JournalSegment,
    latency::Latency,
    latency::ResourceLatency,
    latency::StageLatency,
    request::ResourceDelete,
    request::ResourceJoin,
    request::ResourceLeave,
    request::Rewind,
    request::Rewound,
    request::Secondary,
    request::SetOptions,
    request::TokenCreated,
    request::VersionInfo,
    request::Wait,
    request::WaitFor,
    request::Watch,
    status::ClusterNode,
    status::ClusterStatus,
    status::DiskReplacing,
    status::DiskStatus,
    status::UnreadableRange,
    status::GuestMember,
    status::GuestStatus,
    status::IoStatus,
    status::JournalStatus,
    status::NodeStatus,
    status::PeerProblem,
    status::PeerStatus,
    status::ReplayStatus,
    status::ResourceStatus,
    status::ResyncStatus,
    status::SpareStatus,
    survey::Scrub,
    survey::SurveyPlace,
    survey::SurveyReport,
    survey::SurveyReports,
    survey::SurveyWord,
    survey::Verify,
)))]
struct Schemas;

/// The OpenAPI document, for `GET /v1/openapi.json`.
#[must_use]
pub fn openapi() -> Value {
    let mut document =
        serde_json::to_value(Schemas::openapi()).expect("the schemas have only string keys");
    document["info"] = json!({
        "title": "Holdfast",
        "description": "The control API of a Holdfast daemon.",
        "version": env!("CARGO_PKG_VERSION"),
    });
    document["paths"] = json!({});
    for call in CALLS {
        document["paths"][call.path][call.method.to_ascii_lowercase()] = operation(call);
    }
    document
}

fn operation(call: &Call) -> Value {
    let parameters: Vec<Value> = ["name", "key"]
        .into_iter()
        .filter(|p| call.path.contains(&format!("{{{p}}}")))
        .map(|p| json!({"name": p, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let mut operation = json!({
        "summary": call.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "done", "content": answer_content(call)},
            "default": {"description": "refused", "content": json_content("ErrorBody")},
        },
    });
    if !call.body.is_empty() {
        operation["requestBody"] = json!({"required": true, "content": json_content(call.body)});
    }
    operation
}

fn answer_content(call: &Call) -> Value {
    match call.path {
        routes::EVENTS => json!({"text/event-stream": {"schema": reference("Event")}}),
        routes::METRICS => json!({"text/plain": {"schema": {"type": "string"}}}),
        _ if call.answer.is_empty() => json!({"application/json": {}}),
        _ => json_content(call.answer),
    }
}

fn json_content(name: &str) -> Value {
    let list = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let schema = match list {
        Some(item) => json!({"type": "array", "items": reference(item)}),
        None => reference(name),
    };
    json!({"application/json": {"schema": schema}})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` below `value`.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match value {
                Value::String(target) if key == "$ref" => found.push(target.clone()),
                _ => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_of_the_document_has_a_schema() {
        let document = openapi();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 60, "{}", found.len());
        for target in found {
            let pointer = target.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn every_call_is_in_the_document_once() {
        let document = openapi();
        let operations: usize = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .map(|p| p.as_object().unwrap().len())
            .sum();
        assert_eq!(operations, CALLS.len());
        let schema = &document["components"]["schemas"]["NodeStatus"]["properties"];
        assert!(schema["resources"].is_object(), "{schema}");
        assert_eq!(document["info"]["title"], "Holdfast");
    }

    #[test]
    fn every_call_is_in_the_written_list() {
        let text = include_str!("../../../docs/design/api.md");
        for call in CALLS {
            let cell = format!("`{} {}`", call.method, call.path);
            assert!(text.contains(&cell), "docs/design/api.md lacks {cell}");
        }
    }
}
