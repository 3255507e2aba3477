//! How the daemon was started, and which files and devices it uses: for the running daemon, and from
//! the state directory of one that does not run.

use crate::config;
use crate::local::{Local, LocalStore};
use crate::node::Node;
use crate::options::{DaemonOptions, Settings};
use crate::refuse;
use holdfast_api::ApiError;
use holdfast_api::daemon::{DaemonInfo, KnownNode, ResourcePlaces};
use holdfast_api::options::Settings as Resolved;
use holdfast_cluster::{Peek, Records, Uuid};
use std::path::Path;

/// What a daemon with these options would use, read from the configuration file and the state
/// directory. Changes nothing, and needs no running daemon; parts of the state directory that
/// cannot be used are listed in the answer.
///
/// # Errors
/// When the options or the configuration file are refused.
pub fn inventory(options: &DaemonOptions) -> Result<DaemonInfo, ApiError> {
    let file = config::load(options.config.as_deref())?.unwrap_or_default();
    let settings = Settings::from_parts(options, &file)?;
    let mut damaged = Vec::new();
    let peek = Peek::at(&settings.state_dir).unwrap_or_else(|refusal| {
        damaged.push(refuse::cluster(refusal).message);
        Peek::default()
    });
    let locals = match LocalStore::existing(&settings.state_dir).map(|store| store.load()) {
        Some(Ok((locals, files))) => {
            damaged.extend(files.into_iter().map(|file| file.problem));
            locals
        }
        Some(Err(error)) => {
            damaged.push(error.message);
            Vec::new()
        }
        None => Vec::new(),
    };
    Ok(DaemonInfo {
        node: peek.name.clone().or_else(|| settings.name.clone()).unwrap_or_default(),
        nodes: nodes(&peek.records, peek.uuid),
        resources: places(&locals, &peek.records),
        damaged,
        ..of_settings(&settings)
    })
}

/// The same of the daemon that runs.
pub(crate) fn of_node(node: &Node) -> DaemonInfo {
    let view = node.view();
    let mut locals: Vec<Local> = node.resources().iter().map(|one| one.local()).collect();
    locals.sort_by_key(|local| local.id);
    DaemonInfo {
        node: node.name.clone(),
        pid: Some(std::process::id()),
        listen: node.listen.to_string(),
        nbd_listen: node.nbd_tcp.map(|address| address.to_string()),
        nodes: nodes(&view.records, Some(node.uuid)),
        resources: places(&locals, &view.records),
        damaged: node.damaged().into_iter().map(|file| file.problem).collect(),
        ..of_settings(&node.settings)
    }
}

fn of_settings(settings: &Settings) -> DaemonInfo {
    let certificates = settings.nbd_access.tls_certificates.as_deref();
    DaemonInfo {
        state_dir: text(&settings.state_dir),
        socket: text(&settings.socket),
        listen: settings.listen.to_string(),
        nbd_listen: settings.nbd_listen.map(|address| address.to_string()),
        http: settings.http.map(|address| address.to_string()),
        nbd_tls_certificates: certificates.map(text),
        lock_memory: settings.lock_memory,
        journal_budget: settings.journal_budget,
        ..DaemonInfo::default()
    }
}

fn nodes(records: &Records, own: Option<Uuid>) -> Vec<KnownNode> {
    let records = records.nodes().into_iter();
    let mut nodes: Vec<KnownNode> = records
        .map(|record| KnownNode {
            name: record.name,
            addresses: record.addresses,
            own: own == Some(record.uuid),
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

fn places(locals: &[Local], records: &Records) -> Vec<ResourcePlaces> {
    let mut places: Vec<ResourcePlaces> = locals
        .iter()
        .map(|local| {
            let record = records.resource(local.id);
            let options = record.as_ref().map(|record| record.options.clone()).unwrap_or_default();
            let disk = local.disk.as_ref();
            let spares = disk.into_iter().flat_map(|disk| &disk.spares);
            ResourcePlaces {
                name: record.as_ref().map_or_else(|| local.name.clone(), |r| r.name.clone()),
                size_bytes: record.as_ref().map_or(0, |record| record.size_bytes),
                disk: disk.map(|disk| text(&disk.path)),
                meta: disk.and_then(|disk| disk.meta.as_deref()).map(text),
                spares: spares.filter_map(|spare| spare.path()).map(text).collect(),
                journal: local.journal.as_ref().map(|journal| text(&journal.dir)),
                journal_bytes: local.journal.as_ref().map_or(0, |journal| journal.size),
                archive: Resolved::resolve(&options, None).archive,
            }
        })
        .collect();
    places.sort_by(|a, b| a.name.cmp(&b.name));
    places
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
