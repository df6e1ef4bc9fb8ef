//! Times as the API writes them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_sdk::{Error, Result};
use jiff::Timestamp;

/// RFC 3339 in UTC, nanoseconds without trailing zeros.
pub fn rfc3339(at: SystemTime) -> String {
    Timestamp::try_from(at)
        .map_or_else(|_| gantry_sdk::api::ZERO_TIME.to_owned(), |t| t.to_string())
}

/// Reads what [`rfc3339`] wrote.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// Whole seconds since 1970.
pub fn unix(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// A point in time of a query: seconds since 1970 with an optional fraction of up to nine digits, or
/// RFC 3339. Absent, empty and `0` are none.
///
/// # Errors
///
/// `InvalidArgument` naming the parameter.
pub fn query_time(name: &str, text: &str) -> Result<Option<SystemTime>> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    unix_fraction(text)
        .or_else(|| parse_rfc3339(text))
        .map(Some)
        .ok_or_else(|| Error::invalid(format!("invalid value for \"{name}\": {text:.80?}")))
}

fn unix_fraction(text: &str) -> Option<SystemTime> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// How long ago, in the words of `docker ps`.
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
    fn query_times() {
        let at = |s, n| Some(UNIX_EPOCH + Duration::new(s, n));
        let cases = [
            ("", None),
            ("0", None),
            ("12", at(12, 0)),
            ("12.5", at(12, 500_000_000)),
            ("1970-01-01T00:00:02Z", at(2, 0)),
        ];
        for (text, expected) in cases {
            assert_eq!(query_time("since", text).unwrap(), expected, "{text}");
        }
        assert!(query_time("since", "yesterday").is_err());
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
