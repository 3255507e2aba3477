//! What `/v1/events` tells: the objects that there are, and how they change.

use holdfast_api::attachment::AttachmentStatus;
use holdfast_api::status::{ClusterNode, ClusterStatus, ResourceStatus};
use holdfast_api::{Event, EventKind};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// How many events wait for a reader at most; one that is further behind is disconnected.
const RING: usize = 1024;
/// So many of the last events are kept for readers that come back: more than one of them can be behind.
const KEPT: usize = 4096;

/// Kind, name and peer of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ObjectKey {
    name: String,
    object: &'static str,
    peer: Option<String>,
}

impl ObjectKey {
    fn new(object: &'static str, name: &str, peer: Option<&str>) -> Self {
        Self { name: name.to_owned(), object, peer: peer.map(str::to_owned) }
    }
}

/// The fields of an object, in the words of the status document.
type Fields = BTreeMap<String, String>;
/// A set of objects.
pub(crate) type Objects = BTreeMap<ObjectKey, Fields>;

/// Knows the last state of every object and tells readers of changes.
pub(crate) struct Hub {
    model: Mutex<Model>,
    readers: broadcast::Sender<Event>,
}

struct Model {
    /// The number of the last event, and what it was when the daemon started.
    seq: u64,
    start: u64,
    /// The last events, up to that number.
    kept: VecDeque<Event>,
    objects: Objects,
}

/// Whose objects an update speaks of: what is missing from the update is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part<'a> {
    /// The cluster and its nodes.
    Cluster,
    /// One resource with all that belongs to it.
    Resource(&'a str),
    /// All attachments and their servers.
    Attachments,
}

impl Part<'_> {
    fn has(self, key: &ObjectKey) -> bool {
        let of_cluster = matches!(key.object, "cluster" | "node");
        let of_attachments = matches!(key.object, "attachment" | "leg");
        match self {
            Self::Cluster => of_cluster,
            Self::Resource(name) => !of_cluster && !of_attachments && key.name == name,
            Self::Attachments => of_attachments,
        }
    }
}

impl Model {
    /// Why what came after an event is not known, if it is not.
    fn why_unknown(&self, since: u64) -> Option<&'static str> {
        let oldest = self.kept.front().map_or(self.seq, |event| event.seq - 1);
        if since < self.start {
            Some("the daemon was started since")
        } else if since > self.seq {
            Some("no event has had this number yet")
        } else {
            (since < oldest).then_some("it is too long ago")
        }
    }
}

impl Hub {
    /// Numbers begin with the microseconds since 1970: unless the clock is set back, or there are more
    /// than a million events a second, they are above those of all earlier runs of the daemon, so
    /// nobody takes an old number for a new one.
    pub(crate) fn new() -> Self {
        Self::starting_at(unix_ms().saturating_mul(1000))
    }

    fn starting_at(start: u64) -> Self {
        let kept = VecDeque::with_capacity(KEPT);
        let model = Model { seq: start, start, kept, objects: Objects::new() };
        Self { model: Mutex::new(model), readers: broadcast::channel(RING).0 }
    }

    /// Compares a part with what was there, and tells what has changed.
    pub(crate) fn update(&self, part: Part<'_>, now: Objects) {
        let mut model = self.lock();
        let gone: Vec<ObjectKey> = model
            .objects
            .keys()
            .filter(|key| part.has(key) && !now.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            model.objects.remove(&key);
            self.tell(&mut model, EventKind::Destroy, &key, Fields::new());
        }
        for (key, fields) in now {
            match model.objects.get(&key) {
                None => self.tell(&mut model, EventKind::Create, &key, fields.clone()),
                Some(before) => {
                    let changed: Fields = fields
                        .iter()
                        .filter(|(name, value)| before.get(*name) != Some(value))
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect();
                    if changed.is_empty() {
                        continue;
                    }
                    self.tell(&mut model, EventKind::Change, &key, changed);
                }
            }
            model.objects.insert(key, fields);
        }
    }

    /// Tells something about a resource that is not a state: a change of its field `notice`.
    pub(crate) fn notice(&self, resource: &str, peer: Option<&str>, text: &str) {
        let object = if peer.is_some() { "peer" } else { "resource" };
        let key = ObjectKey::new(object, resource, peer);
        let fields = [("notice".to_owned(), text.to_owned())].into();
        self.tell(&mut self.lock(), EventKind::Change, &key, fields);
    }

    /// All there is now, closed by the end of the dump, and the changes from now on. For a reader that
    /// knows everything up to the event number `since`: what came after it instead of all there is,
    /// where that is known.
    pub(crate) fn subscribe(&self, since: Option<u64>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let model = self.lock();
        let (seq, now) = (model.seq, unix_ms());
        let mut first = Vec::new();
        let missed = since.and_then(|since| Some((since, model.why_unknown(since)?)));
        match (since, missed) {
            (Some(since), None) => {
                first.extend(model.kept.iter().filter(|event| event.seq > since).cloned());
            }
            (_, missed) => {
                let missed = missed.map(|(since, why)| Event::missed(seq, now, since, why));
                first.extend(missed);
                let all = model.objects.iter();
                first.extend(
                    all.map(|(key, fields)| {
                        event(seq, now, EventKind::Exists, key, fields.clone())
                    }),
                );
            }
        }
        first.push(Event::end_of_dump(seq, now));
        (first, self.readers.subscribe())
    }

    fn tell(&self, model: &mut Model, kind: EventKind, key: &ObjectKey, fields: Fields) {
        model.seq += 1;
        let event = event(model.seq, unix_ms(), kind, key, fields);
        if model.kept.len() >= KEPT {
            model.kept.pop_front();
        }
        model.kept.push_back(event.clone());
        // That nobody reads is no error.
        let _ = self.readers.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event(seq: u64, time: u64, kind: EventKind, key: &ObjectKey, fields: Fields) -> Event {
    Event {
        seq,
        time_unix_ms: time,
        kind,
        object: key.object.to_owned(),
        name: key.name.clone(),
        peer: key.peer.clone(),
        fields,
    }
}

/// The objects of a resource.
pub(crate) fn of_resource(status: &ResourceStatus) -> Objects {
    let name = &status.name;
    let mut objects = Objects::new();
    let resource = [
        ("role", status.role.clone()),
        ("size_bytes", status.size_bytes.to_string()),
        ("suspended", status.suspended.join(",")),
        ("quorum", status.quorum.to_string()),
        ("open_count", status.open_count.to_string()),
        ("promotable", status.promotable.to_string()),
        ("generation", status.generation.clone()),
        ("nbd_uri", status.nbd_uri.clone()),
    ];
    objects.insert(ObjectKey::new("resource", name, None), fields(resource));
    let replacing = status.disk.replacing.as_ref().map(|new| new.state.clone());
    let health = status.disk.health.as_ref();
    let disk = [
        ("health", health.map_or_else(String::new, |health| health.level.clone())),
        ("health_score", health.map_or_else(String::new, |health| health.score.to_string())),
        ("state", status.disk.state.clone()),
        ("path", status.disk.path.clone().unwrap_or_default()),
        ("io_errors", status.disk.io_errors.to_string()),
        ("healed_blocks", status.disk.healed_blocks.to_string()),
        ("unreadable_blocks", status.disk.unreadable_blocks.to_string()),
        ("problem", status.disk.problem.clone().unwrap_or_default()),
        ("replacing", replacing.unwrap_or_default()),
    ];
    let mut disk = fields(disk);
    if let Some(fill) = &status.disk.spare_fill {
        let spares = [
            ("spare_fill", fill.clone()),
            ("remapped_sectors", status.disk.remapped_sectors.to_string()),
            ("lost_sectors", status.disk.lost_sectors.to_string()),
            ("spare_sectors_free", status.disk.spare_sectors_free.to_string()),
        ];
        disk.extend(fields(spares));
    }
    objects.insert(ObjectKey::new("disk", name, None), disk);
    if let Some(path) = &status.device {
        let kind = status.device_kind.clone().unwrap_or_default();
        let device = [("path", path.clone()), ("kind", kind)];
        objects.insert(ObjectKey::new("device", name, None), fields(device));
    }
    for peer in &status.peers {
        let of_peer = [
            ("connection", peer.connection.clone()),
            ("role", peer.role.clone()),
            ("disk", peer.disk.clone()),
            ("replication", peer.replication.clone()),
            ("problem", peer.problem.as_ref().map_or_else(String::new, |p| p.code.clone())),
        ];
        objects.insert(ObjectKey::new("peer", name, Some(&peer.node)), fields(of_peer));
    }
    objects
}

/// The objects of a cluster.
pub(crate) fn of_cluster(status: Option<&ClusterStatus>) -> Objects {
    let mut objects = Objects::new();
    let Some(status) = status else { return objects };
    let cluster = [("uuid", status.uuid.clone())];
    objects.insert(ObjectKey::new("cluster", &status.name, None), fields(cluster));
    for ClusterNode { name, address, alive, version, .. } in &status.nodes {
        let node = [
            ("address", address.clone()),
            ("alive", alive.to_string()),
            ("version", version.clone()),
        ];
        objects.insert(ObjectKey::new("node", name, None), fields(node));
    }
    objects
}

/// The objects of all attachments.
pub(crate) fn of_attachments(all: &[AttachmentStatus]) -> Objects {
    let mut objects = Objects::new();
    for one in all {
        let attachment = [
            ("state", one.state.clone()),
            ("device", one.device.clone().unwrap_or_default()),
            ("size_bytes", one.size_bytes.to_string()),
            ("problem", one.problem.clone().unwrap_or_default()),
        ];
        objects.insert(ObjectKey::new("attachment", &one.name, None), fields(attachment));
        // A single server is told of by the attachment itself.
        for leg in one.legs.iter().filter(|_| one.mirror) {
            let of_leg = [("leg", leg.leg.clone()), ("state", leg.state.clone())];
            objects.insert(ObjectKey::new("leg", &one.name, Some(&leg.uri)), fields(of_leg));
        }
    }
    objects
}

fn fields<const N: usize>(list: [(&str, String); N]) -> Fields {
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The wall clock in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::attachment::AttachmentLeg;
    use holdfast_api::status::PeerStatus;

    fn status(role: &str, connection: Option<&str>) -> ResourceStatus {
        let peer = |c: &str| PeerStatus {
            node: "beta".into(),
            connection: c.into(),
            ..PeerStatus::default()
        };
        ResourceStatus {
            name: "r0".into(),
            role: role.into(),
            peers: connection.map(peer).into_iter().collect(),
            ..ResourceStatus::default()
        }
    }

    fn lines(receiver: &mut broadcast::Receiver<Event>) -> Vec<String> {
        std::iter::from_fn(|| receiver.try_recv().ok()).map(|event| event.to_string()).collect()
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let hub = Hub::starting_at(0);
        let (dump, mut reader) = hub.subscribe(None);
        assert_eq!(dump.len(), 1);
        hub.update(Part::Resource("r0"), of_resource(&status("Secondary", Some("Connecting"))));
        let created = lines(&mut reader);
        assert_eq!(created.len(), 3, "{created:?}");
        assert!(created.iter().all(|line| line.starts_with("create ")));
        hub.update(Part::Resource("r0"), of_resource(&status("Secondary", Some("Connected"))));
        assert_eq!(lines(&mut reader), ["change peer name:r0 peer:beta connection:Connected"]);
        hub.update(Part::Resource("r0"), of_resource(&status("Primary", None)));
        assert_eq!(
            lines(&mut reader),
            ["destroy peer name:r0 peer:beta", "change resource name:r0 role:Primary"]
        );
        hub.notice("r0", Some("beta"), "split brain");
        assert_eq!(lines(&mut reader), ["change peer name:r0 peer:beta notice:split brain"]);
        let (dump, _) = hub.subscribe(None);
        assert_eq!(dump.len(), 3);
        assert!(dump.last().unwrap().is_end_of_dump());
        assert!(dump.iter().all(|event| event.seq == 7 && event.kind == EventKind::Exists));
    }

    #[test]
    fn a_reader_that_comes_back_gets_what_it_missed_or_hears_that_it_is_not_known() {
        let hub = Hub::starting_at(1000);
        for number in 0..3 {
            hub.notice("r0", None, &number.to_string());
        }
        let texts = |since: u64| -> Vec<(u64, String)> {
            let (first, _) = hub.subscribe(Some(since));
            first.iter().map(|event| (event.seq, event.to_string())).collect()
        };
        let due = |seq: u64| (seq, format!("change resource name:r0 notice:{}", seq - 1001));
        let end = |seq: u64| (seq, "exists -".to_owned());
        assert_eq!(texts(1000), [due(1001), due(1002), due(1003), end(1003)]);
        assert_eq!(texts(1002), [due(1003), end(1003)]);
        assert_eq!(texts(1003), [end(1003)]);
        let missed = |since: u64, why: &str| format!("missed events reason:{why} since:{since}");
        let started = missed(999, "the daemon was started since");
        assert_eq!(texts(999), [(1003, started), end(1003)]);
        let early = missed(1004, "no event has had this number yet");
        assert_eq!(texts(1004), [(1003, early), end(1003)]);
        for number in 3..KEPT + 2 {
            hub.notice("r0", None, &number.to_string());
        }
        let last = 1002 + KEPT as u64;
        assert_eq!(texts(1002).len(), KEPT + 1);
        assert_eq!(texts(1001)[0], (last, missed(1001, "it is too long ago")));
        assert_eq!(texts(last), [end(last)]);
        // A later run of the daemon has higher numbers.
        let (first, _) = Hub::new().subscribe(None);
        assert!(first[0].seq > 1_700_000_000_000_000 && first[0].seq < 1 << 53);
    }

    #[test]
    fn parts_do_not_touch_each_other() {
        let hub = Hub::starting_at(0);
        hub.update(Part::Resource("r0"), of_resource(&status("Primary", None)));
        let cluster = ClusterStatus { name: "r0".into(), ..ClusterStatus::default() };
        hub.update(Part::Cluster, of_cluster(Some(&cluster)));
        let (_, mut reader) = hub.subscribe(None);
        hub.update(Part::Resource("r1"), Objects::new());
        assert!(lines(&mut reader).is_empty());
        hub.update(Part::Cluster, of_cluster(None));
        assert_eq!(lines(&mut reader), ["destroy cluster name:r0"]);
        // An attachment may have the name of a resource that is there later.
        let leg = |uri: &str, state: &str| AttachmentLeg {
            uri: uri.into(),
            leg: "InSync".into(),
            state: state.into(),
            ..AttachmentLeg::default()
        };
        let attachment = |state: &str| AttachmentStatus {
            name: "r0".into(),
            state: state.into(),
            mirror: true,
            legs: vec![leg("nbd://a/", "Connected"), leg("nbd://b/", state)],
            ..AttachmentStatus::default()
        };
        hub.update(Part::Attachments, of_attachments(&[attachment("Connected")]));
        assert_eq!(lines(&mut reader).len(), 3);
        hub.update(Part::Attachments, of_attachments(&[attachment("Reconnecting")]));
        assert_eq!(
            lines(&mut reader),
            [
                "change attachment name:r0 state:Reconnecting",
                "change leg name:r0 peer:nbd://b/ state:Reconnecting",
            ]
        );
        hub.update(Part::Resource("r0"), Objects::new());
        assert_eq!(lines(&mut reader).len(), 2);
        hub.update(Part::Attachments, Objects::new());
        assert_eq!(lines(&mut reader).len(), 3);
    }
}
