//! Points in time as `until` filters give them.

use gantry_sdk::{Error, Result};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Parses a duration before `now` (`24h`, `1h30m`), a time or date of RFC 3339 with or without
/// zone (the host's zone is UTC to the daemon), or seconds since 1970 with a fraction.
///
/// # Errors
///
/// `InvalidArgument`.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp> {
    if text.trim().is_empty() {
        return Err(invalid("value is empty"));
    }
    if text != "0"
        && let Some(nanos) = duration(text)
    {
        let before = SignedDuration::from_nanos(nanos);
        return now.checked_sub(before).map_err(|e| invalid(&e.to_string()));
    }
    let found = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| {
            civil(text).and_then(|time| time.to_zoned(TimeZone::UTC).ok()).map(|z| z.timestamp())
        })
        .or_else(|| unix(text));
    found.ok_or_else(|| invalid(&format!("{text:.80?} is neither")))
}

fn invalid(what: &str) -> Error {
    Error::invalid(format!("failed to parse value as time or duration: {what}"))
}

fn civil(text: &str) -> Option<DateTime> {
    if !text.contains('T') {
        return text.trim_end_matches('Z').parse::<Date>().ok().map(|date| date.at(0, 0, 0, 0));
    }
    text.parse::<DateTime>().ok()
}

fn unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 20 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i32 = format!("{:0<9.9}", fraction).parse().ok()?;
    Timestamp::new(seconds.parse().ok()?, nanos).ok()
}

/// Nanoseconds of a duration as Go writes them: numbers with units, the sign in front.
pub fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    // Exact for whole units up to a hundred days, and far finer than a second beyond.
    let total = if negative { -total } else { total };
    #[expect(clippy::cast_possible_truncation, reason = "checked against the bounds")]
    (total.abs() < 9.2e18).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_all_forms() {
        let now: Timestamp = "2024-01-02T00:00:00Z".parse().unwrap();
        let cases = [
            ("24h", "2024-01-01T00:00:00Z"),
            ("1h30m", "2024-01-01T22:30:00Z"),
            ("2023-05-06", "2023-05-06T00:00:00Z"),
            ("2023-05-06T07:08", "2023-05-06T07:08:00Z"),
            ("2023-05-06T07:08:09", "2023-05-06T07:08:09Z"),
            ("2023-05-06T07:08:09.5+02:00", "2023-05-06T05:08:09.5Z"),
            ("1683356889", "2023-05-06T07:08:09Z"),
            ("1683356889.25", "2023-05-06T07:08:09.25Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text, now).unwrap().to_string(), expected, "{text}");
        }
        for text in ["", " ", "yesterday", "1d", "h", "2023-13-01", "1.x"] {
            assert!(parse(text, now).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, nanos) in [("1.5s", 1_500_000_000), ("-2ms", -2_000_000), ("0", 0)] {
            assert_eq!(duration(text), Some(nanos), "{text}");
        }
        assert_eq!(duration("5"), None);
    }
}
