//! `health`.

use crate::args::Health;
use crate::cluster::span;
use crate::events::time;
use crate::output::{Style, width};
use crate::session::Session;
use crate::table::{Cell, Table, cell, plain};
use holdfast_api::health::{DiskErrors, DiskHealth, HotRegion, SmartStatus};
use holdfast_api::request::Empty;
use holdfast_api::{ApiError, routes};
use holdfast_units::format_size;
use std::time::Duration;

pub(crate) async fn run(session: &Session, args: &Health) -> Result<(), ApiError> {
    let name = &args.name;
    if args.clear {
        return session.act(&routes::of(routes::RESOURCE_HEALTH_CLEAR, name), &Empty {}).await;
    }
    let health: DiskHealth = session.get(&routes::of(routes::RESOURCE_HEALTH, name)).await?;
    if session.ui.json {
        session.ui.json(&health);
    } else {
        session.ui.text(&render(name, &health, width(), session.ui.color));
    }
    Ok(())
}

fn render(name: &str, health: &DiskHealth, width: Option<usize>, color: bool) -> String {
    let mut lines = vec![headline(name, health, color)];
    for reason in &health.reasons {
        lines.push(format!("  -{:<3} {}", reason.deduction, reason.text));
    }
    lines.push(String::new());
    lines.push(errors(health));
    if health.stalls > 0 || health.outliers > 0 {
        lines.push(format!(
            "{} operations took a second or longer, {} more ten times the median",
            health.stalls, health.outliers
        ));
    }
    if health.oldest_pending_micros >= 1_000_000 {
        let seconds = health.oldest_pending_micros / 1_000_000;
        lines.push(format!("the oldest operation has been under way for {}", span(seconds)));
    }
    if !health.latency.is_empty() {
        lines.push(String::new());
        lines.extend(latency(health, width, color));
    }
    if !health.hot_regions.is_empty() {
        lines.push(String::new());
        lines.extend(regions(&health.hot_regions, width, color));
    }
    for device in &health.smart {
        lines.push(String::new());
        lines.extend(smart(device, width, color));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn headline(name: &str, health: &DiskHealth, color: bool) -> String {
    let style = match &*health.level {
        "critical" => Style::Bad,
        "warning" => Style::Warn,
        _ => Style::Good,
    };
    let level = style.paint(&format!("{} of 100, {}", health.score, health.level), color);
    format!("{}  health of this node's disk: {level}", Style::Bold.paint(name, color))
}

fn errors(health: &DiskHealth) -> String {
    let DiskErrors { read, write, flush, metadata, checksum } = health.errors;
    let since = time(health.counted_since_unix_ms);
    let mut line = format!("errors since {since}: ");
    let kinds = [
        ("read", read),
        ("write", write),
        ("flush", flush),
        ("metadata", metadata),
        ("checksum", checksum),
    ];
    let there: Vec<String> = kinds
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    if there.is_empty() {
        line.push_str("none");
        return line;
    }
    line.push_str(&there.join(", "));
    line.push_str(&format!(
        "; {} in the last hour, {} in the last day",
        health.errors_last_hour, health.errors_last_day
    ));
    line
}

fn latency(health: &DiskHealth, width: Option<usize>, color: bool) -> Vec<String> {
    let heading = ["LAST 5 MIN", "OPERATIONS", "P50", "P99", "P99.9", "LONGEST"];
    let mut table = Table::new(0, &heading);
    for one in &health.latency {
        let times = [one.p50_micros, one.p99_micros, one.p999_micros, one.max_micros];
        let mut row = vec![plain(&*one.kind), plain(one.operations.to_string())];
        row.extend(times.map(took));
        table.row(row);
    }
    table.render(width, color)
}

fn took(micros: u64) -> Cell {
    let style = if micros >= 1_000_000 { Style::Warn } else { Style::Plain };
    cell(duration(micros), style)
}

/// `250 us`, `1.5 ms`, `2.0 s`.
fn duration(micros: u64) -> String {
    let time = Duration::from_micros(micros);
    match micros {
        0..1000 => format!("{micros} us"),
        1000..1_000_000 => format!("{:.1} ms", time.as_secs_f64() * 1000.0),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn regions(regions: &[HotRegion], width: Option<usize>, color: bool) -> Vec<String> {
    let mut table = Table::new(0, &["BAD REGION", "ERRORS", "LAST LBA", "FIRST", "LAST"]);
    for region in regions {
        table.row(vec![
            plain(format_size(region.offset_bytes)),
            cell(region.errors.to_string(), Style::Bold),
            plain(region.lba.to_string()),
            plain(time(region.first_unix_ms)),
            plain(time(region.last_unix_ms)),
        ]);
    }
    table.render(width, color)
}

fn smart(device: &SmartStatus, width: Option<usize>, color: bool) -> Vec<String> {
    let name = Style::Bold.paint(&device.device, color);
    if let Some(problem) = &device.problem {
        return vec![format!("{name}  {}", Style::Dim.paint(problem, color))];
    }
    let mut head = format!("{name}  {} {}", device.model, device.serial).trim_end().to_owned();
    head.push_str(&match device.passed {
        Some(true) => format!("  {}", Style::Good.paint("passed", color)),
        Some(false) => format!("  {}", Style::Bad.paint("FAILED", color)),
        None => String::new(),
    });
    if let Some(degrees) = device.temperature_celsius {
        head.push_str(&format!("  {degrees} °C"));
    }
    if let Some(hours) = device.power_on_hours {
        head.push_str(&format!("  {hours} h"));
    }
    let mut lines = vec![head];
    if !device.attributes.is_empty() {
        let mut table = Table::new(2, &["ID", "ATTRIBUTE", "RAW"]);
        for one in &device.attributes {
            let id = one.id.map_or_else(|| "-".to_owned(), |id| id.to_string());
            table.row(vec![plain(id), plain(&*one.name), plain(one.value.to_string())]);
        }
        lines.extend(table.render(width, color));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::health::{DiskLatency, HealthReason, SmartAttribute};

    const AT: u64 = 1_700_000_000_123;

    fn sample() -> DiskHealth {
        let reason = |deduction, text: &str| HealthReason { deduction, text: text.into() };
        DiskHealth {
            score: 60,
            level: "critical".into(),
            reasons: vec![
                reason(34, "16 errors in the last hour"),
                reason(6, "/dev/sdb has 4 reallocated sectors"),
            ],
            errors: DiskErrors { read: 15, checksum: 1, ..DiskErrors::default() },
            errors_last_hour: 16,
            errors_last_day: 16,
            last_error_unix_ms: Some(AT),
            counted_since_unix_ms: AT - 1000,
            latency: vec![DiskLatency {
                kind: "read".into(),
                operations: 1000,
                p50_micros: 250,
                p99_micros: 1500,
                p999_micros: 999_000,
                max_micros: 2_000_000,
            }],
            stalls: 1,
            hot_regions: vec![HotRegion {
                offset_bytes: 3 << 20,
                lba: 6152,
                errors: 12,
                first_unix_ms: AT,
                last_unix_ms: AT + 5,
            }],
            smart: vec![
                SmartStatus {
                    device: "/dev/sdb".into(),
                    model: "WDC WD40".into(),
                    serial: "S1".into(),
                    passed: Some(true),
                    temperature_celsius: Some(38),
                    attributes: vec![SmartAttribute {
                        id: Some(5),
                        name: "reallocated_sectors".into(),
                        value: 4,
                    }],
                    ..SmartStatus::default()
                },
                SmartStatus {
                    device: "/dev/vda".into(),
                    problem: Some("smartctl tells nothing".into()),
                    ..SmartStatus::default()
                },
            ],
            ..DiskHealth::default()
        }
    }

    #[test]
    fn a_failing_disk_as_text() {
        let expected = "\
r0  health of this node's disk: 60 of 100, critical
  -34  16 errors in the last hour
  -6   /dev/sdb has 4 reallocated sectors

errors since 2023-11-14T22:13:19.123Z: 15 read, 1 checksum; 16 in the last hour, 16 in the last day
1 operations took a second or longer, 0 more ten times the median

LAST 5 MIN  OPERATIONS  P50     P99     P99.9     LONGEST
read        1000        250 us  1.5 ms  999.0 ms  2.0 s

BAD REGION  ERRORS  LAST LBA  FIRST                     LAST
3 MiB       12      6152      2023-11-14T22:13:20.123Z  2023-11-14T22:13:20.128Z

/dev/sdb  WDC WD40 S1  passed  38 °C
  ID  ATTRIBUTE            RAW
  5   reallocated_sectors  4

/dev/vda  smartctl tells nothing
";
        assert_eq!(render("r0", &sample(), None, false), expected);
        let colored = render("r0", &sample(), None, true);
        assert!(colored.contains("\x1b[1;31m60 of 100, critical\x1b[0m"), "{colored}");
    }

    #[test]
    fn a_disk_without_fault_is_short() {
        let health = DiskHealth { score: 100, level: "ok".into(), ..DiskHealth::default() };
        assert_eq!(
            render("r0", &health, None, false),
            "r0  health of this node's disk: 100 of 100, ok\n\n\
             errors since 1970-01-01T00:00:00.000Z: none\n"
        );
    }
}
