//! Time: nanoseconds since the epoch, and how logs write it.

use rustix::time::{ClockId, clock_gettime};

const NANOS: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// Nanoseconds since the epoch.
pub(crate) fn now() -> u64 {
    nanos(ClockId::Realtime)
}

/// Milliseconds of a clock that never jumps, for deadlines.
pub(crate) fn ticks() -> u64 {
    nanos(ClockId::Monotonic) / 1_000_000
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * NANOS + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Appends `at` as RFC 3339 in UTC with the digits of the fraction that are needed (Go's
/// `RFC3339Nano`).
pub(crate) fn write_rfc3339_nano(out: &mut Vec<u8>, at: u64) {
    let (seconds, fraction) = (at / NANOS, at % NANOS);
    let (year, month, day) = civil(seconds / DAY);
    let rest = seconds % DAY;
    digits(out, year, 4);
    for (mark, value) in [(b'-', month), (b'-', day)] {
        out.push(mark);
        digits(out, value, 2);
    }
    for (mark, value) in [(b'T', rest / 3600), (b':', rest / 60 % 60), (b':', rest % 60)] {
        out.push(mark);
        digits(out, value, 2);
    }
    if fraction != 0 {
        out.push(b'.');
        digits(out, fraction, 9);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    out.push(b'Z');
}

fn digits(out: &mut Vec<u8>, value: u64, count: u32) {
    for place in (0..count).rev() {
        let digit = u8::try_from(value / 10u64.pow(place) % 10).unwrap_or(0);
        out.push(b'0' + digit);
    }
}

/// Year, month and day of a number of days since the epoch, in the Gregorian calendar.
///
/// Years are counted from March, so that the day that leap years add is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    const ERA: u64 = 146_097;
    let days = days + DAYS_TO_EPOCH;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let calendar_month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(calendar_month <= 2), calendar_month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_like_go_writes_them() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400 * NANOS, "2000-02-29T00:00:00Z"),
            (1_709_251_199 * NANOS + 999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (1_709_251_200 * NANOS + 100, "2024-03-01T00:00:00.0000001Z"),
            (4_102_444_799 * NANOS, "2099-12-31T23:59:59Z"),
        ] {
            let mut out = Vec::new();
            write_rfc3339_nano(&mut out, at);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
