//! The health of a disk: `disk.health` of `status --json`, and `GET /v1/resources/{name}/health`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A score below this is a warning.
pub const WARNING_BELOW: u8 = 90;
/// A score below this is critical.
pub const CRITICAL_BELOW: u8 = 70;

/// How a node's disk of one resource is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskHealth {
    /// 100 is without fault, 0 cannot be used; 100 less the sum of the deductions.
    pub score: u8,
    /// `ok`, `warning` (below 90) or `critical` (below 70).
    pub level: String,
    /// Why it is not 100, the largest deduction first.
    pub reasons: Vec<HealthReason>,
    /// Errors since `counted_since_unix_ms`, also over restarts.
    pub errors: DiskErrors,
    /// All errors of about the last hour.
    pub errors_last_hour: u64,
    /// All errors of about the last day, those of the last hour included.
    pub errors_last_day: u64,
    /// When the last error was, in milliseconds since 1970; `null` when there was none.
    pub last_error_unix_ms: Option<u64>,
    /// Since when errors are counted, in milliseconds since 1970.
    pub counted_since_unix_ms: u64,
    /// How long operations took in the last five minutes, one entry for each kind that there was.
    pub latency: Vec<DiskLatency>,
    /// Operations that took a second or longer, since `counted_since_unix_ms`.
    pub stalls: u64,
    /// Those of about the last hour.
    pub stalls_last_hour: u64,
    /// Operations shorter than that which took ten times the median of their kind and 50 ms, since
    /// `counted_since_unix_ms`.
    pub outliers: u64,
    /// For how long the oldest operation has been under way, in microseconds; 0 for none.
    pub oldest_pending_micros: u64,
    /// The pieces of 1 MiB with the most errors, at most 16, the worst first.
    pub hot_regions: Vec<HotRegion>,
    /// What the devices below say of themselves; empty when none of them can be asked.
    pub smart: Vec<SmartStatus>,
}

/// One reason for a score below 100.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthReason {
    /// What it takes from the score.
    pub deduction: u8,
    /// What it is, one sentence without a full stop.
    pub text: String,
}

/// Errors by their kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskErrors {
    /// Blocks of 4 KiB that could not be read, or whole reads where it is not known which.
    pub read: u64,
    /// Writes, zeroes and discards.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Writes of the metadata.
    pub metadata: u64,
    /// Blocks of 4 KiB with a wrong checksum.
    pub checksum: u64,
}

impl DiskErrors {
    /// All of them.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.read
            .saturating_add(self.write)
            .saturating_add(self.flush)
            .saturating_add(self.metadata)
            .saturating_add(self.checksum)
    }
}

/// How long operations of one kind took. Times are within 4 %.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskLatency {
    /// `read`, `write` (zeroes and discards included) or `flush`.
    pub kind: String,
    /// How many there were.
    pub operations: u64,
    /// Half of them took no longer, in microseconds.
    pub p50_micros: u64,
    /// 99 of 100 took no longer.
    pub p99_micros: u64,
    /// 999 of 1,000 took no longer.
    pub p999_micros: u64,
    /// The longest.
    pub max_micros: u64,
}

/// A piece of 1 MiB of the disk in which there were errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HotRegion {
    /// Where it begins, in bytes.
    pub offset_bytes: u64,
    /// The sector of 512 bytes where the last error was.
    pub lba: u64,
    /// How many errors there were.
    pub errors: u64,
    /// When the first one was, in milliseconds since 1970.
    pub first_unix_ms: u64,
    /// When the last one was.
    pub last_unix_ms: u64,
}

/// What a device says of itself by SMART, or NVMe's health log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SmartStatus {
    /// The node of the device.
    pub device: String,
    /// Its model; empty when it does not say.
    pub model: String,
    /// Its serial number; empty when it does not say.
    pub serial: String,
    /// When it was asked, in milliseconds since 1970.
    pub read_unix_ms: u64,
    /// Whether it holds itself to be well; `null` when it does not say.
    pub passed: Option<bool>,
    /// Its temperature; `null` when it does not say.
    pub temperature_celsius: Option<i64>,
    /// For how long it has been powered; `null` when it does not say.
    pub power_on_hours: Option<u64>,
    /// The figures that foretell a failure.
    pub attributes: Vec<SmartAttribute>,
    /// Why nothing could be read; `null` when it could.
    pub problem: Option<String>,
}

impl SmartStatus {
    /// The figure with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.attributes.iter().find(|one| one.name == name).map(|one| one.value)
    }
}

/// One of those figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SmartAttribute {
    /// Its number in the table of an ATA disk; `null` for NVMe.
    pub id: Option<u32>,
    /// ATA: `reallocated_sectors`, `reported_uncorrectable`, `command_timeouts`,
    /// `reallocation_events`, `pending_sectors`, `offline_uncorrectable`. NVMe: `critical_warning`,
    /// `available_spare`, `available_spare_threshold`, `percentage_used`, `media_errors`.
    pub name: String,
    /// Its raw value.
    pub value: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_names() {
        let errors = DiskErrors { read: 1, write: 2, flush: 3, metadata: 4, checksum: u64::MAX };
        assert_eq!(errors.sum(), u64::MAX);
        assert_eq!(DiskErrors { checksum: 5, ..errors }.sum(), 15);
        let one = SmartAttribute { id: Some(5), name: "reallocated_sectors".into(), value: 7 };
        let smart = SmartStatus { attributes: vec![one], ..SmartStatus::default() };
        assert_eq!(smart.get("reallocated_sectors"), Some(7));
        assert_eq!(smart.get("pending_sectors"), None);
    }
}
