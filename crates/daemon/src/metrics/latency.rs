//! How long the stages of requests take.

use super::{Families, Family, Kind, Labels, Sample, label, with};
use holdfast_api::latency::{BUCKET_BOUNDS_MICROS, Latency, StageLatency};

const STAGES: [(&str, &str, &str); 3] = [
    (
        "client",
        "holdfast_client_request_duration_seconds",
        "From a client's request to its answer.",
    ),
    (
        "disk",
        "holdfast_disk_operation_duration_seconds",
        "Operations of this node's disk, or of the journal before it, that went well.",
    ),
    (
        "peer",
        "holdfast_peer_answer_duration_seconds",
        "From sending a write or flush to a peer until its answer.",
    ),
];

pub(super) fn add(all: &mut Families, latency: &Latency) {
    for (stage, name, help) in STAGES {
        let mut samples = Vec::new();
        for resource in &latency.resources {
            for one in resource.stages.iter().filter(|one| one.stage == stage) {
                let mut labels = label("resource", &resource.name);
                if let Some(peer) = &one.peer {
                    labels = with(&labels, "peer", peer);
                }
                lines(&with(&labels, "op", &one.op), one, &mut samples);
            }
        }
        all.0.push(Family { name, kind: Kind::Histogram, help, samples });
    }
}

/// The lines of a histogram, whose buckets hold what the smaller ones do.
fn lines(labels: &Labels, one: &StageLatency, samples: &mut Vec<Sample>) {
    let mut passed = 0;
    let bounds = BUCKET_BOUNDS_MICROS.iter().map(|micros| bound(*micros)).chain(["+Inf".into()]);
    for (bound, bucket) in bounds.zip(&one.buckets) {
        passed += bucket;
        let labels = with(labels, "le", &bound);
        samples.push(Sample { suffix: "_bucket", labels, value: passed as f64 });
    }
    samples.push(Sample { suffix: "_sum", labels: labels.clone(), value: one.sum_seconds });
    samples.push(Sample { suffix: "_count", labels: labels.clone(), value: passed as f64 });
}

/// A bound in seconds, the same in both formats: whole seconds have a point, too.
fn bound(micros: u64) -> String {
    let seconds = micros as f64 / 1e6;
    if micros.is_multiple_of(1_000_000) { format!("{seconds:.1}") } else { seconds.to_string() }
}
