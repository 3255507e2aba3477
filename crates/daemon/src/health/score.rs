//! How well a disk is, as a number, and why. The formula is in `docs/design/health.md`.

use holdfast_api::health::{
    CRITICAL_BELOW, DiskErrors, HealthReason, HotRegion, SmartStatus, WARNING_BELOW,
};
use holdfast_api::words::{agreed, counted};
use holdfast_units::format_size;
use std::time::Duration;

/// A disk that had errors is more likely to have more for so long.
const AT_RISK: Duration = Duration::from_secs(30 * 24 * 3600);
/// So many errors in one region within a day are not chance.
const REPEATED: u64 = 10;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// An operation that is under way for so long hangs, and is given up for so long.
const HANGS: Duration = Duration::from_secs(5);
const HANGS_LONG: Duration = Duration::from_secs(30);
/// A level is left when the score is so much better: else it would come and go.
const HYSTERESIS: u8 = 2;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) enum Level {
    /// Nothing to be done.
    #[default]
    Ok,
    /// To be looked at.
    Warning,
    /// To be replaced.
    Critical,
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    const fn of(score: u8) -> Self {
        match score {
            0..CRITICAL_BELOW => Self::Critical,
            CRITICAL_BELOW..WARNING_BELOW => Self::Warning,
            _ => Self::Ok,
        }
    }

    /// The level of a score, after another one: it gets worse at once, and better a little later.
    pub(crate) fn after(self, score: u8) -> Self {
        let worse = Self::of(score);
        if worse >= self { worse } else { worse.max(Self::of(score.saturating_sub(HYSTERESIS))) }
    }
}

/// What the score is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts<'a> {
    /// Why the disk is not in use although it should be.
    pub(super) failed: Option<&'a str>,
    pub(super) now_ms: u64,
    pub(super) errors: DiskErrors,
    pub(super) errors_last_hour: u64,
    pub(super) errors_last_day: u64,
    pub(super) last_error_ms: Option<u64>,
    pub(super) stalls_last_hour: u64,
    pub(super) oldest_pending: Duration,
    pub(super) hot_regions: &'a [HotRegion],
    /// Blocks that have no good copy here, until they are written.
    pub(super) lost_blocks: u64,
    pub(super) remapped_sectors: u64,
    pub(super) spare_sectors_free: u64,
    pub(super) smart: &'a [SmartStatus],
}

/// The score, and the reasons why it is not 100, the largest deduction first.
pub(super) fn score(facts: &Facts<'_>) -> (u8, Vec<HealthReason>) {
    let mut reasons = Vec::new();
    let mut put = |deduction: u64, text: String| {
        let deduction = u8::try_from(deduction.min(100)).unwrap_or(100);
        if deduction > 0 {
            reasons.push(HealthReason { deduction, text });
        }
    };
    if let Some(why) = facts.failed {
        put(100, format!("the disk is not used: {why}"));
    }
    of_errors(facts, &mut put);
    of_times(facts, &mut put);
    of_spare(facts, &mut put);
    for device in facts.smart {
        of_smart(device, &mut put);
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.deduction));
    let sum: u32 = reasons.iter().map(|reason| u32::from(reason.deduction)).sum();
    (u8::try_from(100_u32.saturating_sub(sum)).unwrap_or(0), reasons)
}

/// `base`, and `step` more for each doubling, at most `most`; nothing for none.
fn growing(count: u64, base: u64, step: u64, most: u64) -> u64 {
    count.checked_ilog2().map_or(0, |twos| (base + step * u64::from(twos)).min(most))
}

fn of_errors(facts: &Facts<'_>, put: &mut impl FnMut(u64, String)) {
    let hour = facts.errors_last_hour;
    let before = facts.errors_last_day.saturating_sub(hour);
    put(growing(hour, 10, 6, 50), format!("{} in the last hour", counted(hour, "error")));
    let day = format!("{} in the last day before that", counted(before, "error"));
    put(growing(before, 5, 3, 20), day);
    if facts.errors_last_day == 0
        && let Some(last) = facts.last_error_ms
        && facts.now_ms.saturating_sub(last) < millis(AT_RISK)
    {
        let all = counted(facts.errors.sum(), "error");
        put(3, format!("{all} in all, the last within 30 days"));
    }
    let hot = facts.hot_regions.iter().find(|region| {
        region.errors >= REPEATED && facts.now_ms.saturating_sub(region.last_unix_ms) < millis(DAY)
    });
    if let Some(region) = hot {
        let place = format_size(region.offset_bytes);
        put(5, format!("{} errors within 1 MiB at {place}", region.errors));
    }
    let lost = facts.lost_blocks;
    let has = agreed(lost, "has", "have");
    let text = format!("{} cannot be read, and {has} no good copy", counted(lost, "block"));
    put(growing(lost, 10, 2, 25), text);
}

fn of_times(facts: &Facts<'_>, put: &mut impl FnMut(u64, String)) {
    let stalls = facts.stalls_last_hour;
    let text = format!("{} of a second or more in the last hour", counted(stalls, "operation"));
    put(growing(stalls, 1, 2, 20), text);
    let pending = facts.oldest_pending;
    let deduction = match pending {
        long if long >= HANGS_LONG => 40,
        long if long >= HANGS => 8,
        _ => 0,
    };
    put(deduction, format!("an operation has been under way for {} seconds", pending.as_secs()));
}

fn of_spare(facts: &Facts<'_>, put: &mut impl FnMut(u64, String)) {
    let (used, free) = (facts.remapped_sectors, facts.spare_sectors_free);
    let Some(percent) = used.saturating_mul(100).checked_div(used.saturating_add(free)) else {
        return;
    };
    let deduction = match percent {
        100 => 40,
        95.. => 25,
        80.. => 12,
        _ => growing(used, 1, 1, 8),
    };
    put(deduction, format!("{percent} % of the spare sectors are used"));
}

fn of_smart(device: &SmartStatus, put: &mut impl FnMut(u64, String)) {
    let name = &device.device;
    let mut say = |deduction, text: &str| put(deduction, format!("{name} {text}"));
    let get = |key: &str| device.get(key).unwrap_or(0);
    if device.passed == Some(false) {
        say(50, "says of itself that it fails");
    }
    let counts = [
        ("pending_sectors", 8, 3, 25, "sectors that wait to be reallocated"),
        ("offline_uncorrectable", 8, 3, 25, "sectors that cannot be read"),
        ("reallocated_sectors", 2, 2, 20, "reallocated sectors"),
        ("reported_uncorrectable", 3, 2, 20, "errors that it could not correct"),
        ("media_errors", 5, 2, 20, "media errors"),
    ];
    for (key, base, step, most, words) in counts {
        let count = get(key);
        say(growing(count, base, step, most), &format!("has {count} {words}"));
    }
    let timeouts = get("command_timeouts");
    if timeouts >= 10 {
        say(3, &format!("had {timeouts} commands that timed out"));
    }
    if let Some(degrees) = device.temperature_celsius {
        let deduction = match degrees {
            70.. => 15,
            60.. => 5,
            _ => 0,
        };
        say(deduction, &format!("is at {degrees} °C"));
    }
    let warning = get("critical_warning");
    if warning != 0 {
        say(50, &format!("gives the critical warning {warning:#04x}"));
    }
    let used = get("percentage_used");
    let deduction = match used {
        100.. => 15,
        90.. => 5,
        _ => 0,
    };
    say(deduction, &format!("has used {used} % of its life"));
    if let (Some(left), Some(least)) =
        (device.get("available_spare"), device.get("available_spare_threshold"))
        && left < least
    {
        say(40, &format!("has {left} % of its spare left, less than its limit of {least} %"));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::health::SmartAttribute;

    fn facts() -> Facts<'static> {
        Facts { now_ms: 1_800_000_000_000, ..Facts::default() }
    }

    fn only(facts: &Facts<'_>) -> (u8, String) {
        let (score, reasons) = score(facts);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        assert_eq!(u16::from(score) + u16::from(reasons[0].deduction), 100);
        (score, reasons[0].text.clone())
    }

    #[test]
    fn a_disk_without_fault_has_100_and_one_that_is_not_used_0() {
        assert_eq!(score(&facts()), (100, Vec::new()));
        let failed = Facts { failed: Some("it is gone"), ..facts() };
        assert_eq!(only(&failed), (0, "the disk is not used: it is gone".into()));
    }

    #[test]
    fn errors_weigh_more_the_more_and_the_newer_they_are() {
        let at =
            |hour, day| score(&Facts { errors_last_hour: hour, errors_last_day: day, ..facts() }).0;
        let hours = [0, 1, 2, 3, 4, 8, 15, 16, 25, 37, 1_000_000].map(|n| at(n, n));
        assert_eq!(hours, [100, 90, 84, 84, 78, 72, 72, 66, 66, 60, 50]);
        let days = [1, 2, 37, 100, u64::MAX].map(|n| at(0, n));
        assert_eq!(days, [95, 92, 80, 80, 80]);
        assert_eq!(at(u64::MAX, u64::MAX), 50);
        let one = Facts { errors_last_hour: 1, errors_last_day: 1, ..facts() };
        assert_eq!(only(&one).1, "1 error in the last hour");
        // Quiet for a day, but not forgotten for a month.
        let errors = DiskErrors { read: 37, ..DiskErrors::default() };
        let day = millis(DAY);
        let since =
            |days| Facts { errors, last_error_ms: Some(facts().now_ms - days * day), ..facts() };
        assert_eq!(only(&since(2)), (97, "37 errors in all, the last within 30 days".into()));
        assert_eq!(score(&since(31)).0, 100);
    }

    #[test]
    fn one_place_again_and_again_is_told() {
        let region = |errors, age: Duration| HotRegion {
            offset_bytes: 3 << 20,
            errors,
            last_unix_ms: facts().now_ms - millis(age),
            ..HotRegion::default()
        };
        let of = |region: HotRegion| score(&Facts { hot_regions: &[region], ..facts() });
        let (points, reasons) = of(region(10, Duration::ZERO));
        assert_eq!((points, &*reasons[0].text), (95, "10 errors within 1 MiB at 3 MiB"));
        assert_eq!(of(region(9, Duration::ZERO)).0, 100);
        assert_eq!(of(region(50, DAY)).0, 100);
    }

    #[test]
    fn slowness_spare_and_lost_blocks() {
        let stalls = |n| score(&Facts { stalls_last_hour: n, ..facts() }).0;
        assert_eq!([1, 2, 16, 1 << 40].map(stalls), [99, 97, 91, 80]);
        let pending = |s| score(&Facts { oldest_pending: Duration::from_secs(s), ..facts() }).0;
        assert_eq!([4, 5, 29, 30].map(pending), [100, 92, 92, 60]);
        let spare = |used, free| {
            score(&Facts { remapped_sectors: used, spare_sectors_free: free, ..facts() }).0
        };
        assert_eq!(spare(0, 0), 100);
        assert_eq!(spare(0, 100), 100);
        let steps = [(8, 92), (79, 21), (80, 20), (94, 6), (95, 5), (100, 0)];
        assert_eq!(steps.map(|(used, free)| spare(used, free)), [96, 93, 88, 88, 75, 60]);
        let lost = |n| score(&Facts { lost_blocks: n, ..facts() }).0;
        assert_eq!([1, 4, 1 << 30].map(lost), [90, 86, 75]);
    }

    #[test]
    fn what_the_device_says() {
        let with = |list: &[(&str, u64)], passed, degrees| {
            let attributes = list.iter().map(|(name, value)| SmartAttribute {
                id: None,
                name: (*name).into(),
                value: *value,
            });
            let device = SmartStatus {
                device: "/dev/sda".into(),
                passed,
                temperature_celsius: degrees,
                attributes: attributes.collect(),
                ..SmartStatus::default()
            };
            score(&Facts { smart: &[device], ..facts() })
        };
        assert_eq!(with(&[("reallocated_sectors", 0)], Some(true), Some(40)).0, 100);
        let (points, reasons) = with(&[("pending_sectors", 8)], Some(true), Some(61));
        assert_eq!(points, 78);
        assert_eq!(reasons[0].text, "/dev/sda has 8 sectors that wait to be reallocated");
        assert_eq!(reasons[1].text, "/dev/sda is at 61 °C");
        assert_eq!(with(&[], Some(false), None).0, 50);
        let (points, reasons) = with(&[("critical_warning", 4)], None, Some(70));
        assert_eq!((points, &*reasons[0].text), (35, "/dev/sda gives the critical warning 0x04"));
        let worn = [("available_spare", 9), ("available_spare_threshold", 10)];
        assert_eq!(with(&worn, None, None).0, 60);
        assert_eq!(with(&[("percentage_used", 101), ("media_errors", 1)], None, None).0, 80);
        let worst = [("pending_sectors", u64::MAX), ("offline_uncorrectable", u64::MAX)];
        assert_eq!(with(&worst, Some(false), Some(i64::MAX)).0, 0);
    }

    #[test]
    fn levels_come_at_once_and_go_a_little_later() {
        let mut now = Level::Ok;
        let seen: Vec<_> = [100, 90, 89, 90, 91, 92, 69, 71, 72, 100]
            .into_iter()
            .map(|score| {
                now = now.after(score);
                now.as_str()
            })
            .collect();
        let (ok, warning, critical) = ("ok", "warning", "critical");
        assert_eq!(seen, [ok, ok, warning, warning, warning, ok, critical, critical, warning, ok]);
    }
}
