//! Which state is wanted: how people write it.

use crate::parse::duration;
use holdfast_archive::Moment;
use holdfast_units::LogPosition;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Reads `latest`, a position, or a time: RFC 3339, a local date and time, `@UNIX`, `15m ago`.
pub(super) fn parse(text: &str, now: Timestamp) -> Result<Moment, String> {
    let text = text.trim();
    if text == "latest" {
        return Ok(Moment::Latest);
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let position = text.parse().map_err(|_| "the position is too large".to_owned())?;
        return Ok(Moment::Position(LogPosition(position)));
    }
    let time = time(text, now).ok_or_else(|| {
        format!(
            "{text:?} is no moment: write a position, latest, or a time such as \
             2026-03-01T12:00:00Z, '2026-03-01 12:00' (local), @1772366400 or '15m ago'"
        )
    })?;
    let millis =
        u64::try_from(time.as_millisecond()).map_err(|_| "it is before 1970".to_owned())?;
    Ok(Moment::Time(millis))
}

fn time(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Some(seconds) = text.strip_prefix('@') {
        let (whole, part) = seconds.split_once('.').unwrap_or((seconds, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let millis = format!("{part:0<3}").get(..3)?.parse::<i64>().ok()?;
        let whole = Some(whole).filter(|whole| digits(whole) && digits(part))?;
        let whole = whole.parse::<i64>().ok()?.checked_mul(1000)?;
        return Timestamp::from_millisecond(whole.checked_add(millis)?).ok();
    }
    if let Some(ago) = text.strip_suffix("ago") {
        let ago =
            SignedDuration::try_from(duration(ago.trim_end_matches([' ', '-'])).ok()?).ok()?;
        return now.checked_sub(ago).ok();
    }
    let exact = text.parse::<Timestamp>().ok();
    exact.or_else(|| {
        let local: DateTime = text.parse().ok()?;
        Some(local.to_zoned(TimeZone::system()).ok()?.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use holdfast_archive::Moment;
    use holdfast_units::LogPosition;
    use jiff::Timestamp;

    fn at(text: &str) -> Result<Moment, String> {
        let now = Timestamp::from_second(1_772_366_400).unwrap();
        parse(text, now)
    }

    #[test]
    fn moments() {
        assert_eq!(at("latest"), Ok(Moment::Latest));
        assert_eq!(at("8192"), Ok(Moment::Position(LogPosition(8192))));
        let time = |millis| Ok(Moment::Time(millis));
        assert_eq!(at("2026-03-01T12:00:00Z"), time(1_772_366_400_000));
        assert_eq!(at("2026-03-01T13:00:00.25+01:00"), time(1_772_366_400_250));
        assert_eq!(at("@1772366400"), time(1_772_366_400_000));
        assert_eq!(at("@1772366400.5"), time(1_772_366_400_500));
        assert_eq!(at("15m ago"), time(1_772_365_500_000));
        assert_eq!(at("90s-ago"), time(1_772_366_310_000));
        assert!(matches!(at("2026-03-01 12:00"), Ok(Moment::Time(_))));
        for bad in
            ["", "yesterday", "@", "@x", "@1.x", "ago", "-5", "99999999999999999999999", "5x ago"]
        {
            assert!(at(bad).is_err(), "{bad}");
        }
        assert!(at("1960-01-01T00:00:00Z").unwrap_err().contains("1970"));
    }
}
