//! `create`: a resource, on its first node.

use super::{blocking, journal, used_disks};
use crate::checksums;
use crate::disk::{self, Ends, Existing, Prepared, Wanted};
use crate::events::unix_ms;
use crate::local::{Damaged, Local, LocalDisk, LocalJournal};
use crate::node::Node;
use crate::phases::phase;
use crate::resource::{self, Resource, core_options, random};
use crate::shard::InitialContent;
use crate::spares::Planned;
use crate::{commands, peer_api, problems};
use holdfast_api::options::check_all;
use holdfast_api::request::{Done, ResourceCreate};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Change, Key, MemberRecord, ResourceRecord};
use holdfast_core::Command;
use holdfast_units::{GenerationId, NodeId, ResourceId, check_name, format_size};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The name of a cluster that is made because a resource needs one.
pub(crate) const CLUSTER_NAME: &str = "holdfast";

/// Creates a resource whose data are those on the disk; this node becomes Primary.
///
/// # Errors
/// What is in the way; nothing has changed then.
pub(crate) async fn create(node: &Arc<Node>, request: ResourceCreate) -> Result<Done, ApiError> {
    check_name(&request.name)?;
    let given = check_all(&request.set)?;
    let mut options = node.resource_defaults(&request.name);
    options.retain(|key, _| !given.contains_key(key));
    let from_file: Vec<String> = options.iter().map(|(key, to)| format!("{key}={to}")).collect();
    options.extend(given);
    let checksums = checksums::wanted(&mut options, request.checksums);
    let _making = node.making.lock().await;
    refuse_taken(node, &request.name)?;
    let id = ResourceId(random_id()?);
    let al_extents = al_extents(&options);
    let wanted = Wanted {
        what: format!("resource {} was not created", request.name),
        resource: id,
        disk: request.disk.clone(),
        meta: request.meta.clone(),
        size: request.size,
        al_extents,
        state_dir: node.settings.state_dir.clone(),
        used: used_disks(node),
        existing: Existing::Keep,
        spares: Planned::of(&request.spare, request.spare_size, request.force),
    };
    let what = wanted.what.clone();
    phase("checking the disk");
    let checked = blocking(move || wanted.check()).await?;
    let journal =
        journal::wanted(node, &what, request.journal.as_ref(), request.journal_size).await?;
    // A cluster of one is no harm when a later step fails.
    if node.view().membership.is_none() {
        let addresses = node.advertised();
        node.cluster(move |state, now| state.create_cluster(Some(CLUSTER_NAME), &addresses, now))
            .await?;
    }
    let slot = NodeId::new(0).expect("0 is below the number of nodes");
    let generation = GenerationId(random()?.max(GenerationId::JUST_CREATED.0 + 1));
    let content = InitialContent::Current(generation);
    phase("writing its metadata");
    let name = request.name.clone();
    // Should the daemon die from here on, its next start removes what is there.
    let (store, own_name) = (node.store.clone(), name.clone());
    let prepared = blocking(move || {
        let mut begun = None;
        let begin = |disk: &LocalDisk| {
            begun = Some(disk.clone());
            store.save(&begun_local(id, &own_name, disk, None, checksums))
        };
        let prepared = checked.prepare(slot, &[], content, begin);
        if let (Err(_), Some(disk)) = (&prepared, begun) {
            disk::take_back(&disk, id);
            if let Err(error) = store.remove(id) {
                tracing::warn!("undoing a failed command: {}", error.message);
            }
        }
        prepared
    });
    let prepared = Arc::new(prepared.await?);
    let mut journaled = None;
    if let Some(spec) = journal {
        phase("making its journal");
        let begun = LocalJournal { dir: spec.dir.clone(), size: spec.size, made_dir: false };
        let saved = begun_local(id, &name, &prepared.disk, Some(begun), checksums);
        let store = node.store.clone();
        if let Err(error) = blocking(move || store.save(&saved)).await {
            undo(node, id, &prepared, None).await;
            return Err(error);
        }
        let made = blocking(move || journal::make(&what, &spec, id, slot)).await;
        match made {
            Ok(made) => journaled = Some(made),
            Err(error) => {
                undo(node, id, &prepared, None).await;
                return Err(error);
            }
        }
    }
    let made = {
        let wanted = Establish { id, options, slot, checksums, journal: journaled.clone() };
        establish(node, request, wanted, &prepared).await
    };
    if let Err(error) = made {
        undo(node, id, &prepared, journaled).await;
        return Err(error);
    }
    let mut message = format!(
        "resource {name} of {} was created on {}; this node is Primary",
        format_size(prepared.size),
        prepared.disk.path.display()
    );
    let disk = prepared.disk.path.display();
    let Ends { left_over, metadata, spare } = prepared.ends;
    message.push_str(&told_of_spares(&prepared.disk, spare));
    if !from_file.is_empty() {
        message.push_str(&format!("; as the configuration file says, {}", from_file.join(", ")));
    }
    if metadata > 0 {
        let metadata = format_size(metadata);
        message.push_str(&format!("; the last {metadata} of {disk} hold its metadata"));
    }
    if left_over > 0 {
        message.push_str(&format!(
            "; the last {left_over} bytes of {disk} are not part of it and not replicated: they \
             are no whole block of 4096 bytes"
        ));
    }
    Ok(Done::new(message))
}

/// What is said of the spares of a new disk, of whose own end `part` bytes are one.
pub(super) fn told_of_spares(disk: &LocalDisk, part: u64) -> String {
    if part > 0 {
        let (part, disk) = (format_size(part), disk.path.display());
        return format!("; {part} at the end of {disk} are its spare for bad sectors");
    }
    let paths: Vec<String> = disk.spares.iter().map(|spare| spare.spec().shown()).collect();
    match paths.is_empty() {
        true => String::new(),
        false => format!("; its bad sectors go to {}", paths.join(", ")),
    }
}

fn refuse_taken(node: &Node, name: &str) -> Result<(), ApiError> {
    let what = format!("resource {name} was not created");
    refuse_attached(node, name, &what)?;
    let here = node.resources().iter().any(|resource| resource.name() == name);
    if !here && node.record_named(name).is_none() {
        return Ok(());
    }
    let error = taken(name, "the cluster has a resource of this name");
    Err(if here { error.hint("choose another name") } else { error })
}

/// A resource and an attachment would both be the device of the name.
pub(crate) fn refuse_attached(node: &Node, name: &str, what: &str) -> Result<(), ApiError> {
    if node.attachments.named(name).is_err() {
        return Ok(());
    }
    let message = format!("{what}: an attachment of this node has the name");
    Err(ApiError::new(ErrorCode::AlreadyExists, message)
        .hint(format!("take it away with `holdfast detach {name}`")))
}

fn taken(name: &str, why: &str) -> ApiError {
    ApiError::new(ErrorCode::AlreadyExists, format!("resource {name} was not created: {why}"))
        .hint(format!("choose another name, or become a member with `holdfast join {name}`"))
}

/// What is known of a resource that is about to be made.
fn begun_local(
    id: ResourceId,
    name: &str,
    disk: &LocalDisk,
    journal: Option<LocalJournal>,
    checksums: bool,
) -> Local {
    Local {
        id,
        name: name.to_owned(),
        disk: Some(disk.clone()),
        journal,
        replacing: None,
        retired: None,
        checksums,
        attached: true,
        up: false,
        primary: false,
        follows: false,
        size: None,
        expendable: false,
        lineage: Vec::new(),
        sync_paused: false,
        shows_past: false,
        pending: true,
        disconnected: BTreeSet::new(),
    }
}

/// What a resource is made with.
struct Establish {
    id: ResourceId,
    options: BTreeMap<String, String>,
    slot: NodeId,
    checksums: bool,
    journal: Option<LocalJournal>,
}

/// Records, local state, core, role.
async fn establish(
    node: &Arc<Node>,
    request: ResourceCreate,
    wanted: Establish,
    prepared: &Prepared,
) -> Result<(), ApiError> {
    let Establish { id, options, slot, checksums, journal } = wanted;
    phase("telling the other nodes of it");
    let now = unix_ms();
    let record_name = request.name.clone();
    let record = ResourceRecord {
        id,
        name: request.name.clone(),
        formerly: None,
        size_bytes: prepared.size,
        created_at: now,
        options,
    };
    let member = MemberRecord {
        resource: id,
        node: node.uuid,
        slot: slot.number(),
        diskless: false,
        protocol: "C".into(),
        addresses: Vec::new(),
        joined_at: now,
    };
    let local = Local {
        id,
        name: request.name,
        disk: Some(prepared.disk.clone()),
        journal,
        replacing: None,
        retired: None,
        checksums,
        attached: true,
        up: true,
        // Only when it is: until then nobody but this command promotes it.
        primary: false,
        follows: false,
        size: None,
        expendable: false,
        lineage: Vec::new(),
        sync_paused: false,
        shows_past: false,
        pending: false,
        disconnected: BTreeSet::new(),
    };
    // Should the daemon die before that, its next start does.
    let saved = Local { primary: true, pending: true, ..local.clone() };
    let store = node.store.clone();
    blocking(move || store.save(&saved)).await?;
    node.cluster(move |state, now| {
        state.change(vec![Change::resource(&record), Change::member(&member)], now)
    })
    .await
    .map_err(|error| match error.code {
        // Another node's record has come meanwhile.
        ErrorCode::AlreadyExists => taken(&record_name, "the cluster has a resource of this name"),
        _ => error,
    })?;
    claim_name(node, id, &record_name).await?;
    phase("starting it");
    let resource = Resource::new(local);
    node.add_resource(Arc::clone(&resource));
    resource::start(node, &resource, false).await?;
    let what = "primary was refused";
    commands::core_command(node, &resource, what, Command::Promote { force: false }).await?;
    resource.change_local(node, |local| local.primary = true).await?;
    commands::roles::wait_exported(&resource).await;
    Ok(())
}

/// Tells the other nodes of the resource and hears whether one of them has made another of the same
/// name in the same moment. Both did so after they had written their own, so at least one of them
/// sees it, and the one whose resource is the later one does.
async fn claim_name(node: &Arc<Node>, id: ResourceId, name: &str) -> Result<(), ApiError> {
    peer_api::announce(node).await;
    let Some(others) = problems::name_is_lost(node, id) else { return Ok(()) };
    Err(taken(name, &format!("{others} created one of this name in the same moment")))
}

/// Takes back what had been done for a resource that could not be created.
async fn undo(
    node: &Arc<Node>,
    id: ResourceId,
    prepared: &Arc<Prepared>,
    journal: Option<LocalJournal>,
) {
    if let Some(resource) = node.resource(id) {
        if let Err(error) = resource::stop(&resource).await {
            tracing::warn!("{}", error.message);
        }
        node.remove_resource(id);
    }
    let own = node.uuid;
    let forgotten = node
        .cluster(move |state, now| {
            let keys = [Key::member(id, own), Key::resource(id)];
            let known = |key: &Key| state.records().get(key).is_some();
            let changes = keys.into_iter().filter(known).map(Change::delete).collect();
            state.change(changes, now)
        })
        .await;
    let (store, prepared) = (node.store.clone(), Arc::clone(prepared));
    let undone = blocking(move || {
        journal.iter().for_each(journal::remove);
        prepared.undo();
        store.remove(id)
    });
    for error in [forgotten.map(drop).err(), undone.await.err()].into_iter().flatten() {
        tracing::warn!("undoing a failed command: {}", error.message);
    }
}

/// Takes back a resource whose creation ended with the daemon before the cluster knew of it. Whether
/// it was one.
pub(crate) async fn take_back(node: &Arc<Node>, local: &Local) -> bool {
    if !local.pending || node.view().records.version(&Key::resource(local.id)).is_some() {
        return false;
    }
    let (store, gone) = (node.store.clone(), local.clone());
    let removed = blocking(move || {
        gone.journal.iter().for_each(journal::remove);
        if let Some(disk) = &gone.disk {
            disk::take_back(disk, gone.id);
        }
        store.remove(gone.id)
    });
    if let Err(error) = removed.await {
        tracing::warn!("undoing a failed command: {}", error.message);
    }
    tracing::info!("resource {} was not created: the daemon ended meanwhile", local.name);
    true
}

/// A resource that is more than begun, which is noted before it is used: nothing takes it back any more,
/// whatever becomes of the records.
///
/// # Errors
/// That it could not be noted.
pub(crate) async fn is_made(node: &Arc<Node>, local: Local) -> Result<Local, Damaged> {
    if !local.pending {
        return Ok(local);
    }
    let (store, made) = (node.store.clone(), Local { pending: false, ..local });
    let (id, saved) = (made.id, made.clone());
    match blocking(move || store.save(&saved)).await {
        Ok(()) => Ok(made),
        Err(error) => Err(Damaged { id: Some(id), problem: error.message }),
    }
}

/// How many extents the activity log of a new member has.
pub(crate) fn al_extents(options: &BTreeMap<String, String>) -> u16 {
    // The range of the option ends below 2^16.
    u16::try_from(core_options(options).0.al_extents).unwrap_or(u16::MAX)
}

fn random_id() -> Result<[u8; 16], ApiError> {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&random()?.to_le_bytes());
    id[8..].copy_from_slice(&random()?.to_le_bytes());
    Ok(id)
}
