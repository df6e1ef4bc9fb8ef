//! Times as the Docker API reads and writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::{Error, Result};

/// Longer texts are no times.
const LONGEST: usize = 64;

/// RFC 3339 in UTC, nanoseconds without trailing zeros. A time beyond the year 9999 is the zero time.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| gantry_api::ZERO_TIME.to_owned(), |t| t.to_string())
}

/// Whole seconds since 1970; 0 for earlier times.
#[must_use]
pub fn unix(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// The point in time that the query parameter or filter `name` means, by [`parse`] with the present
/// as reference.
///
/// # Errors
///
/// `InvalidArgument` naming the parameter.
pub fn query(name: &str, text: &str) -> Result<SystemTime> {
    parse(text, SystemTime::now()).ok_or_else(|| {
        Error::invalid(format!(
            "invalid value for \"{name}\": failed to parse value as time or duration: {text:.80?}"
        ))
    })
}

/// A point in time in any of the forms that the reference engine takes:
///
/// | form | meaning |
/// |---|---|
/// | `1h30m`, `1.5h`, `10ms` | so long before `now`; with a sign after it |
/// | `2006-01-02T15:04:05.5+02:00`, `…Z` | RFC 3339; seconds and minutes may be left out |
/// | `2006-01-02T15:04:05` and shorter | the same in the zone of this machine |
/// | `2006-01-02`, `2006-01-02Z` | the beginning of that day, likewise |
/// | `1136073600`, `1136073600.25` | seconds since 1970; digits after the ninth do not count |
///
/// `None` for anything else, and for times that cannot be represented. The zone's offset is the one
/// at `now`, as there.
///
/// Source: `GetTimestamp` and `ParseTimestamps` of the reference engine's `api/types/time`.
#[must_use]
pub fn parse(text: &str, now: SystemTime) -> Option<SystemTime> {
    let now = Timestamp::try_from(now).ok()?;
    parse_in(text, now, || TimeZone::system().to_offset(now).to_time_zone())
}

fn parse_in(text: &str, now: Timestamp, zone: impl FnOnce() -> TimeZone) -> Option<SystemTime> {
    if text.len() > LONGEST {
        return None;
    }
    if text != "0"
        && let Some(nanos) = duration(text)
    {
        return now.checked_sub(SignedDuration::from_nanos(nanos)).ok().map(SystemTime::from);
    }
    since_epoch(text).or_else(|| calendar(text, zone).map(SystemTime::from))
}

fn since_epoch(text: &str) -> Option<SystemTime> {
    let (seconds, fraction) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text, "0"),
    };
    if !seconds.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::new(seconds.parse().ok()?, nanos))
}

/// Only the forms with dashes: the date library knows more of them, the reference engine does not.
fn calendar(text: &str, zone: impl FnOnce() -> TimeZone) -> Option<Timestamp> {
    let (date, rest) = text.split_at_checked(10)?;
    let dashed = date.bytes().enumerate().all(|(n, byte)| match n {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    if !dashed || rest.contains('[') {
        return None;
    }
    let (time, offset) = match rest.find(['z', 'Z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let time = match time.strip_prefix('T') {
        Some(_) => time,
        None if time.is_empty() => "T00:00:00",
        None => return None,
    };
    if offset.is_empty() {
        let local: DateTime = format!("{date}{time}").parse().ok()?;
        return zone().to_timestamp(local).ok();
    }
    format!("{date}{time}{offset}").parse().ok()
}

/// Nanoseconds of a duration as Go writes them: numbers with units from `ns` to `h`, the sign in
/// front. `None` for anything else, and beyond 292 years.
///
/// Source: `time.ParseDuration` of Go's library.
#[must_use]
pub fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
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

/// How long something has lasted, in the words of `docker ps`.
#[must_use]
pub fn human(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..2760 => format!("{minutes} minutes"),
        _ if hours == 1 || seconds < 3600 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_all_forms() {
        let now: Timestamp = "2024-01-02T00:00:00Z".parse().unwrap();
        let read = |text: &str| {
            let zone = || jiff::tz::offset(-5).to_time_zone();
            parse_in(text, now, zone).map(rfc3339)
        };
        let cases = [
            ("24h", "2024-01-01T00:00:00Z"),
            ("1h30m", "2024-01-01T22:30:00Z"),
            ("1.5h", "2024-01-01T22:30:00Z"),
            ("-1m", "2024-01-02T00:01:00Z"),
            ("10ms", "2024-01-01T23:59:59.99Z"),
            ("2023-05-06", "2023-05-06T05:00:00Z"),
            ("2023-05-06Z", "2023-05-06T00:00:00Z"),
            ("2023-05-06+02:00", "2023-05-05T22:00:00Z"),
            ("2023-05-06T07", "2023-05-06T12:00:00Z"),
            ("2023-05-06T07:08", "2023-05-06T12:08:00Z"),
            ("2023-05-06T07:08Z", "2023-05-06T07:08:00Z"),
            ("2023-05-06T07:08:09", "2023-05-06T12:08:09Z"),
            ("2023-05-06T07:08:09.25", "2023-05-06T12:08:09.25Z"),
            ("2023-05-06T07:08:09Z", "2023-05-06T07:08:09Z"),
            ("2023-05-06T07:08:09.5+02:00", "2023-05-06T05:08:09.5Z"),
            ("2023-05-06T07:08:09-02:00", "2023-05-06T09:08:09Z"),
            ("1683356889", "2023-05-06T07:08:09Z"),
            ("1683356889.25", "2023-05-06T07:08:09.25Z"),
            ("1683356889.2500000001", "2023-05-06T07:08:09.25Z"),
            ("20230506", "1970-08-23T03:35:06Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        let long = "9".repeat(65);
        for text in [
            "",
            " ",
            "yesterday",
            "1d",
            "h",
            "2023-13-01",
            "1.x",
            "1.",
            "-1",
            "+1",
            "2023-05-06 07:08",
            "2023-05-06T07:08[UTC]",
            "2023-5-6",
            "20230506T070809Z",
            "2023-05-06T",
            &long,
            "18446744073709551615",
            "2023-05-0\u{e9}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = query("until", "yesterday").unwrap_err().to_string();
        assert!(error.contains("\"until\"") && error.contains("yesterday"), "{error}");
    }

    #[test]
    fn durations_as_go_writes_them() {
        for (text, nanos) in [("1.5s", 1_500_000_000), ("-2ms", -2_000_000), ("0", 0)] {
            assert_eq!(duration(text), Some(nanos), "{text}");
        }
        for text in ["5", "", "-", ".s", "1e3s", "999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn durations_in_words() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (300, "5 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86400 * 3, "3 days"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
